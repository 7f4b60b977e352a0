//! Making text that a command wrote safe to store and to show.

/// `bytes` as text without terminal escape sequences, control characters (newlines and tabs stay) or characters
/// that change the direction of writing. A carriage return counts as a newline, as progress bars use it.
pub(crate) fn made_safe(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut safe = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => skip_escape_sequence(&mut characters),
            '\r' => {
                if characters.peek() != Some(&'\n') {
                    safe.push('\n');
                }
            }
            '\n' | '\t' => safe.push(character),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {}
            _ if character.is_control() => {}
            _ => safe.push(character),
        }
    }
    safe
}

/// The end of `text`, at most `limit` bytes of it, from a character's start.
pub(super) fn end_of(text: &str, limit: usize) -> &str {
    let mut from = text.len().saturating_sub(limit);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.get(from..).unwrap_or_default()
}

/// ECMA-48: `ESC [ … final byte`, the strings `ESC ] … BEL` or `… ESC \`, and two-character sequences.
fn skip_escape_sequence(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match characters.peek() {
        Some('[') => {
            characters.next();
            while let Some(character) = characters.peek() {
                let (character, ends) = (*character, ('@'..='~').contains(character));
                if !(' '..='~').contains(&character) {
                    return;
                }
                characters.next();
                if ends {
                    return;
                }
            }
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            characters.next();
            while let Some(character) = characters.peek() {
                match character {
                    // An unfinished string must not swallow what follows on the next line.
                    '\n' => return,
                    '\u{7}' => {
                        characters.next();
                        return;
                    }
                    '\u{1b}' => {
                        characters.next();
                        characters.next_if_eq(&'\\');
                        return;
                    }
                    _ => {
                        characters.next();
                    }
                }
            }
        }
        Some('(' | ')' | '#' | '%' | ' ') => {
            characters.next();
            characters.next_if(|character| ('0'..='~').contains(character));
        }
        Some(character) if ('0'..='~').contains(character) => {
            characters.next();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn colours_titles_and_control_characters_are_removed() {
        assert_eq!(
            made_safe(b"\x1b[1;31merror\x1b[0m: \x1b]0;title\x07no\x00 \x9b disk\r\n\tx\x08"),
            "error: no \u{fffd} disk\n\tx"
        );
        assert_eq!(made_safe("50%\r100%\u{202e}\n".as_bytes()), "50%\n100%\n");
        assert_eq!(made_safe(b"\x1b]never closed\nnext"), "\nnext");
    }

    #[test]
    fn the_end_starts_at_a_character() {
        assert_eq!(end_of("aäb", 2), "b");
        assert_eq!(end_of("aäb", 3), "äb");
        assert_eq!(end_of("ab", 9), "ab");
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x1b), Just(b'['), Just(b']')], 0..200)) {
            let safe = made_safe(&bytes);
            prop_assert!(safe.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
        }
    }
}
