//! What a job's payload may be: checked wherever one is taken, so that whoever reads it later can.

use serde::de::IgnoredAny;
use serde_json::Value;

/// The most that one payload holds, in bytes.
pub const LARGEST: usize = 1 << 20;
/// The most that the payloads of one order hold together, in bytes: as much as a body of the HTTP API (CONTRACT §5).
pub const LARGEST_TOGETHER: usize = 16 << 20;

/// Why a text is no payload.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPayload {
    /// It is too long.
    #[error("has {0} bytes; a payload has at most 1 MiB")]
    TooLarge(usize),
    /// It is no JSON.
    #[error("is no JSON: {0}")]
    NoJson(#[source] serde_json::Error),
    /// Its form is that of JSON, but it is nested too deeply, or has a number or an escape that stands for nothing.
    #[error("is JSON that can't be read: {0}")]
    Unreadable(#[source] serde_json::Error),
    /// So many jobs with it would be too much.
    #[error("{jobs} jobs with {bytes} bytes each are more than the 16 MiB that are taken at once")]
    TooMuch {
        /// How many jobs.
        jobs: usize,
        /// The size of the payload.
        bytes: usize,
    },
}

/// Checks a payload in the way in which it is read later: nested at most 127 deep, every escape a character.
///
/// # Errors
/// What is wrong with it.
pub fn check(text: &str) -> Result<(), InvalidPayload> {
    if text.len() > LARGEST {
        return Err(InvalidPayload::TooLarge(text.len()));
    }
    serde_json::from_str::<IgnoredAny>(text).map_err(InvalidPayload::NoJson)?;
    serde_json::from_str::<Value>(text).map(drop).map_err(InvalidPayload::Unreadable)
}

/// Checks that so many jobs may have this payload.
///
/// # Errors
/// [`InvalidPayload::TooMuch`] where they would hold more than [`LARGEST_TOGETHER`].
pub fn check_together(text: &str, jobs: usize) -> Result<(), InvalidPayload> {
    let bytes = text.len();
    if bytes.saturating_mul(jobs) > LARGEST_TOGETHER { Err(InvalidPayload::TooMuch { jobs, bytes }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_reader_could_read_is_refused() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for fine in ["7", "null", "\"\\ud83d\\ude00\"", "{\"n\": 12345678901234567890123}", &deep(127)] {
            assert!(check(fine).is_ok(), "{fine}");
        }
        for (text, start) in [
            ("{", "is no JSON: EOF"),
            ("{} x", "is no JSON: trailing"),
            ("\"\\ud800\"", "is JSON that can't be read: "),
            ("{\"a\": \"\\udfff x\"}", "is JSON that can't be read: "),
            (&deep(128), "is JSON that can't be read: recursion limit"),
            (&deep(100_000), "is JSON that can't be read: recursion limit"),
            (&"7".repeat(LARGEST + 1), "has 1048577 bytes"),
        ] {
            let refusal = check(text).unwrap_err().to_string();
            assert!(refusal.starts_with(start), "{refusal}");
        }
        assert!(check(&format!("\"{}\"", "x".repeat(LARGEST - 2))).is_ok());
    }

    #[test]
    fn many_jobs_share_a_limit() {
        let text = "x".repeat(LARGEST);
        assert!(check_together(&text, 16).is_ok());
        assert!(check_together(&text, 17).unwrap_err().to_string().starts_with("17 jobs with 1048576 bytes each"));
    }
}
