//! May it start: which identifiers a flow takes, and whether a claimed row can be run as asked.

use regex::Regex;

use super::Timestamp;

/// The longest identifier that any flow takes, in bytes, whatever its own pattern says.
pub const MAX_IDENTIFIER_BYTES: usize = 1024;

/// The identifiers that a flow takes: a regular expression over the whole text.
#[derive(Clone, Debug)]
pub struct IdentifierPattern {
    pattern: String,
    regex: Regex,
}

/// Why an identifier can't be taken; the text is fit to be shown, whatever the identifier held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedIdentifier {
    /// Nothing at all.
    #[error("the identifier is empty")]
    Empty,
    /// More than [`MAX_IDENTIFIER_BYTES`].
    #[error("the identifier is {0} bytes long; at most {MAX_IDENTIFIER_BYTES} are taken")]
    TooLong(usize),
    /// A character that has no place in a name, by its number.
    #[error("the identifier holds a control character (U+{0:04X})")]
    ControlCharacter(u32),
    /// Something that the flow's pattern does not take.
    #[error("the identifier {shown} does not match the flow's identifier_pattern {pattern}")]
    Mismatch {
        /// The identifier, quoted and cut to a length that can be read.
        shown: String,
        /// The pattern.
        pattern: String,
    },
}

impl IdentifierPattern {
    /// CONTRACT §2's default: a letter or digit, then up to 254 characters that mean nothing to a program's option parser.
    pub const DEFAULT: &'static str = "^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,254}$";

    /// The pattern that takes what matches `pattern` from its first to its last character.
    ///
    /// # Errors
    /// Where `pattern` is no regular expression of the `regex` crate.
    pub fn new(pattern: &str) -> Result<Self, regex::Error> {
        // `\A(?:…)\z`: an unanchored pattern must not let a hostile tail through, and `$` alone would match before a final newline
        // in multi-line mode.
        let regex = Regex::new(&format!(r"\A(?:{pattern})\z"))?;
        Ok(Self { pattern: pattern.to_owned(), regex })
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.pattern
    }

    /// Checks that `identifier` may stand in a command line of this flow.
    ///
    /// # Errors
    /// Where it is empty, too long, holds a control character, or does not match.
    pub fn check(&self, identifier: &str) -> Result<(), RefusedIdentifier> {
        if identifier.is_empty() {
            return Err(RefusedIdentifier::Empty);
        }
        if identifier.len() > MAX_IDENTIFIER_BYTES {
            return Err(RefusedIdentifier::TooLong(identifier.len()));
        }
        if let Some(control) = identifier.chars().find(|c| c.is_control()) {
            return Err(RefusedIdentifier::ControlCharacter(u32::from(control)));
        }
        if self.regex.is_match(identifier) {
            return Ok(());
        }
        let cut: String = identifier.chars().take(80).collect();
        let dots = if cut.len() < identifier.len() { "…" } else { "" };
        Err(RefusedIdentifier::Mismatch { shown: format!("{cut:?}{dots}"), pattern: self.pattern.clone() })
    }
}

impl PartialEq for IdentifierPattern {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern
    }
}

/// What a claimed row asks for, as far as it could be read.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The identifier; the error says why it is no text.
    pub identifier: Result<&'a str, &'a str>,
    /// Whether the payload can be read; the error says why not.
    pub payload: Result<(), &'a str>,
    /// When the job must have ended, retries included.
    pub schedule_deadline: Timestamp,
}

/// Decides whether a claimed row can be run as asked, before anything is started for it.
///
/// # Errors
/// A sentence that says why not, which becomes the job's `error`.
pub fn admit(request: Request<'_>, pattern: &IdentifierPattern, now: Timestamp) -> Result<(), String> {
    let identifier = request.identifier.map_err(|reason| format!("refused: the identifier can't be read: {reason}"))?;
    pattern.check(identifier).map_err(|refusal| format!("refused: {refusal}"))?;
    request.payload.map_err(|reason| format!("refused: the payload can't be read: {reason}"))?;
    if now >= request.schedule_deadline {
        return Err("timed out: schedule_to_close_timeout passed before the command could be started".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn default_pattern() -> IdentifierPattern {
        IdentifierPattern::new(IdentifierPattern::DEFAULT).unwrap()
    }

    #[test]
    fn hostile_identifiers_are_refused() {
        let too_long = "a".repeat(300);
        for hostile in
            ["", "-rf", "--help", "a b", "a\nb", "a\n", "\u{202e}abc", "ä", "a;b", "$(x)", "{job_id}", &too_long]
        {
            assert!(default_pattern().check(hostile).is_err(), "{hostile:?}");
        }
        for plain in ["a", "abc-1.2_3:x@y/z+w", &"a".repeat(255)] {
            assert_eq!(default_pattern().check(plain), Ok(()));
        }
    }

    #[test]
    fn a_pattern_without_anchors_still_covers_the_whole_text() {
        let pattern = IdentifierPattern::new("[a-z]+|x1").unwrap();
        assert!(pattern.check("abc").is_ok());
        assert!(pattern.check("abc;rm").is_err());
        assert!(pattern.check("x1 ").is_err());
    }

    #[test]
    fn a_row_that_waited_too_long_is_refused() {
        let request =
            Request { identifier: Ok("a"), payload: Ok(()), schedule_deadline: Timestamp::from_unix_millis(10) };
        assert!(admit(request, &default_pattern(), Timestamp::from_unix_millis(9)).is_ok());
        assert!(admit(request, &default_pattern(), Timestamp::from_unix_millis(10)).is_err());
    }

    proptest! {
        #[test]
        fn no_refusal_repeats_control_characters(identifier in any::<String>()) {
            if let Err(refusal) = default_pattern().check(&identifier) {
                prop_assert!(!refusal.to_string().chars().any(char::is_control));
            }
        }
    }
}
