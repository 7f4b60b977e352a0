//! What shows that a form was sent from a page of ours: a secret of the session, which each answer holds under another mask,
//! so that its bytes never repeat and the length of a compressed page can't be used to guess it.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// In bytes, of the secret as of its mask.
const LENGTH: usize = 16;

/// The secret of whoever holds this key.
fn secret(key: &str) -> [u8; LENGTH] {
    let hash = Sha256::digest(format!("callsheet csrf {key}"));
    std::array::from_fn(|place| hash[place])
}

/// A new token for the holder of this key; empty, and so good for nothing, where the system has no random numbers.
pub(super) fn token(key: &str) -> String {
    let mut mask = [0; LENGTH];
    if let Err(error) = getrandom::fill(&mut mask) {
        tracing::error!(%error, "the system gives no random numbers");
        return String::new();
    }
    let masked: Vec<u8> = secret(key).iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    super::auth::hex(&mask) + &super::auth::hex(&masked)
}

/// Whether this is a token for the holder of this key, in a time that does not depend on how much of it is right.
pub(super) fn is_token(given: &str, key: &str) -> bool {
    let Some(bytes) = unhex(given) else { return false };
    let (mask, masked) = bytes.split_at(LENGTH);
    let unmasked: Vec<u8> = masked.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    unmasked.ct_eq(&secret(key)).into()
}

fn unhex(text: &str) -> Option<[u8; 2 * LENGTH]> {
    let digits = text.as_bytes();
    if digits.len() != 4 * LENGTH {
        return None;
    }
    let mut bytes = [0; 2 * LENGTH];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_another_and_all_are_good_for_their_holder_only() {
        let (first, second) = (token("a"), token("a"));
        assert!(first.len() == 64 && first != second);
        assert!(is_token(&first, "a") && is_token(&second, "a") && !is_token(&first, "b"));
        for place in [0, 15, 32, 63] {
            let mut other = first.clone().into_bytes();
            other[place] = if other[place] == b'0' { b'1' } else { b'0' };
            assert!(!is_token(&String::from_utf8(other).unwrap(), "a"), "{place}");
        }
        for wrong in ["", "0", &first[1..], &format!("{first}0"), &"é".repeat(32), &"g".repeat(64), &"0".repeat(64)] {
            assert!(!is_token(wrong, "a"), "{wrong}");
        }
    }
}
