//! `{placeholder}`s in a flow's command, working directory and environment.
//!
//! A placeholder is a name in braces, and not what a shell has behind a `$`. Every other brace stands for itself, so that
//! scripts and JSON are written as they are; a name in braces is had by doubling these.
//!
//! A template is cut into pieces once, when the configuration is read; filling it in can't fail. A value
//! never becomes more than the one argument it stands in, and a value that holds `{…}` is not looked at again.

use std::fmt;

/// What a placeholder may stand for (CONTRACT §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placeholder {
    /// `{identifier}`
    Identifier,
    /// `{job_id}`
    JobId,
    /// `{type}`
    Type,
    /// `{attempt}`
    Attempt,
    /// `{run_token}`
    RunToken,
    /// `{worker_id}`
    WorkerId,
    /// `{run_dir}`
    RunDir,
    /// `{signal}`, in a `cancel_command` only
    Signal,
}

impl Placeholder {
    const ALL: [(&'static str, Self); 7] = [
        ("identifier", Self::Identifier),
        ("job_id", Self::JobId),
        ("type", Self::Type),
        ("attempt", Self::Attempt),
        ("run_token", Self::RunToken),
        ("worker_id", Self::WorkerId),
        ("run_dir", Self::RunDir),
    ];
    const SIGNAL: (&'static str, Self) = ("signal", Self::Signal);

    fn name(self) -> &'static str {
        let mut known = Self::ALL.iter().chain([&Self::SIGNAL]);
        known.find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Placeholder),
}

/// One argument (or path, or environment value) with placeholders in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// A name that no placeholder has.
    #[error(
        "unknown placeholder {{{0}}}; there are {{identifier}}, {{job_id}}, {{type}}, {{attempt}}, {{run_token}}, \
         {{worker_id}} and {{run_dir}} (write {{{{{0}}}}} for {{{0}}} as it stands)"
    )]
    Unknown(String),
    /// A name that no placeholder of a `cancel_command` has.
    #[error(
        "unknown placeholder {{{0}}}; in a `cancel_command` there are {{signal}}, {{identifier}}, {{job_id}}, {{type}}, \
         {{attempt}}, {{run_token}}, {{worker_id}} and {{run_dir}} (write {{{{{0}}}}} for {{{0}}} as it stands)"
    )]
    UnknownOfCancel(String),
    /// A placeholder that nothing closes.
    #[error("the placeholder {{{0}}} lacks its closing brace")]
    NotClosed(String),
    /// A zero byte, which no argument of a program can hold (execve(2)).
    #[error("a zero byte, which no program argument can hold")]
    ZeroByte,
}

impl Template {
    /// Cuts `text` into plain pieces and placeholders.
    ///
    /// # Errors
    /// Where a placeholder is unknown or not closed, or the text holds a zero byte.
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        Self::cut(text, &[], InvalidTemplate::Unknown)
    }

    /// [`Template::parse`] for an argument of a `cancel_command`, which may also hold `{signal}`.
    ///
    /// # Errors
    /// Those of [`Template::parse`].
    pub fn parse_of_cancel(text: &str) -> Result<Self, InvalidTemplate> {
        Self::cut(text, &[Placeholder::SIGNAL], InvalidTemplate::UnknownOfCancel)
    }

    fn cut(
        text: &str,
        besides: &[(&str, Placeholder)],
        unknown: fn(String) -> InvalidTemplate,
    ) -> Result<Self, InvalidTemplate> {
        if text.contains('\0') {
            return Err(InvalidTemplate::ZeroByte);
        }
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            let (before, from_brace) = rest.split_at(at);
            plain.push_str(before);
            if let Some((name, after)) = in_double_braces(from_brace) {
                plain.push_str(&format!("{{{name}}}"));
                rest = after;
                continue;
            }
            let (name, after) = name_behind_brace(from_brace);
            let known = Placeholder::ALL.iter().chain(besides).find(|(known, _)| *known == name);
            match (after.strip_prefix('}'), known) {
                // What a shell replaces, which looks into the command's environment; or no name at all.
                _ if plain.ends_with('$') || name.is_empty() => {}
                (Some(after), Some((_, placeholder))) => {
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    }
                    pieces.push(Piece::Value(*placeholder));
                    rest = after;
                    continue;
                }
                (Some(_), None) => return Err(unknown(name.to_owned())),
                (None, Some(_)) => return Err(InvalidTemplate::NotClosed(name.to_owned())),
                (None, None) => {}
            }
            plain.push('{');
            rest = from_brace.get(1..).unwrap_or_default();
        }
        plain.push_str(rest);
        if !plain.is_empty() || pieces.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The text with every placeholder replaced by what `value` gives for it.
    pub fn fill<'v>(&self, value: impl Fn(Placeholder) -> &'v str) -> String {
        self.0.iter().fold(String::new(), |mut filled, piece| {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Value(placeholder) => filled.push_str(value(*placeholder)),
            }
            filled
        })
    }

    /// The text where it holds no placeholder.
    #[must_use]
    pub fn as_plain(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }
}

/// The name that stands right behind the brace which a text begins with, none as a rule; and what comes after it.
fn name_behind_brace(text: &str) -> (&str, &str) {
    let inner = text.get(1..).unwrap_or_default();
    let is_of_name = |(at, letter): (usize, char)| {
        letter.is_ascii_alphabetic() || letter == '_' || at > 0 && letter.is_ascii_digit()
    };
    let end = inner.char_indices().find(|&letter| !is_of_name(letter)).map_or(inner.len(), |(at, _)| at);
    inner.split_at(end)
}

/// The name that a text begins with in double braces, and what comes after these.
fn in_double_braces(text: &str) -> Option<(&str, &str)> {
    let (name, after) = name_behind_brace(text.strip_prefix('{').filter(|inner| inner.starts_with('{'))?);
    Some((name, after.strip_prefix("}}")?)).filter(|(name, _)| !name.is_empty())
}

/// A text as it has to be written to stand for itself.
fn with_doubled_braces(text: &str) -> String {
    let (mut written, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('{') {
        let (before, from_brace) = rest.split_at(at);
        written.push_str(before);
        let (name, after) = name_behind_brace(from_brace);
        match after.strip_prefix('}') {
            Some(after) if !name.is_empty() && !written.ends_with('$') => {
                written.push_str(&format!("{{{{{name}}}}}"));
                rest = after;
            }
            Some(_) | None => {
                written.push('{');
                rest = from_brace.get(1..).unwrap_or_default();
            }
        }
    }
    written + rest
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => f.write_str(&with_doubled_braces(text))?,
                Piece::Value(placeholder) => write!(f, "{{{}}}", placeholder.name())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(text: &str) -> String {
        Template::parse(text).unwrap().fill(|placeholder| match placeholder {
            Placeholder::Identifier => "a {job_id} b",
            Placeholder::JobId => "7",
            _ => "other",
        })
    }

    #[test]
    fn placeholders_are_filled_once() {
        assert_eq!(filled("--id={identifier}/{job_id}"), "--id=a {job_id} b/7");
        assert_eq!(filled(""), "");
        assert_eq!(filled("{{job_id}}"), "{job_id}");
    }

    /// A script, a program of awk's, JSON, what docker and find have.
    #[test]
    fn other_braces_stand_for_themselves() {
        for text in [
            "echo ${CALLSHEET_JOB_ID} ${job_id}",
            "f() { echo hi; }; f",
            "{print $1}",
            r#"{"a": {"b": 1}}"#,
            "{}",
            "{{.Names}}",
            "[0-9]{2,4} } {",
        ] {
            assert_eq!(filled(text), text);
        }
        assert_eq!(filled(r#"{"job": {job_id}, "of": {{type}}}"#), r#"{"job": 7, "of": {type}}"#);
        assert_eq!(filled("{{job_id} ${{job_id}}"), "{7 ${job_id}");
    }

    #[test]
    fn what_cannot_be_filled_is_refused() {
        assert_eq!(Template::parse("{id}"), Err(InvalidTemplate::Unknown("id".to_owned())));
        assert_eq!(Template::parse("{signal}"), Err(InvalidTemplate::Unknown("signal".to_owned())));
        assert_eq!(
            Template::parse_of_cancel("-s{signal}").map(|template| template.to_string()),
            Ok("-s{signal}".to_owned())
        );
        assert_eq!(Template::parse("{job_id"), Err(InvalidTemplate::NotClosed("job_id".to_owned())));
        assert_eq!(Template::parse("a\0b"), Err(InvalidTemplate::ZeroByte));
    }

    proptest! {
        #[test]
        fn a_template_reads_back_as_it_is_shown(text in "([a-c{}$]|job_id|\\{type\\}){0,20}") {
            if let Ok(template) = Template::parse(&text) {
                prop_assert_eq!(Template::parse(&template.to_string()), Ok(template));
            }
        }
    }
}
