//! `{placeholder}`s in a flow's command, working directory and environment.
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
         {{worker_id}} and {{run_dir}} (write {{{{ and }}}} for plain braces)"
    )]
    Unknown(String),
    /// A name that no placeholder of a `cancel_command` has.
    #[error(
        "unknown placeholder {{{0}}}; in a `cancel_command` there are {{signal}}, {{identifier}}, {{job_id}}, {{type}}, \
         {{attempt}}, {{run_token}}, {{worker_id}} and {{run_dir}} (write {{{{ and }}}} for plain braces)"
    )]
    UnknownOfCancel(String),
    /// A brace that nothing closes, or that closes nothing.
    #[error("a brace without its partner (write {{{{ and }}}} for plain braces)")]
    UnbalancedBrace,
    /// A zero byte, which no argument of a program can hold (execve(2)).
    #[error("a zero byte, which no program argument can hold")]
    ZeroByte,
}

impl Template {
    /// Cuts `text` into plain pieces and placeholders; `{{` and `}}` stand for plain braces.
    ///
    /// # Errors
    /// Where a placeholder is unknown, a brace has no partner, or the text holds a zero byte.
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
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from_brace) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = from_brace.strip_prefix("{{") {
                plain.push('{');
                rest = after;
            } else if let Some(after) = from_brace.strip_prefix("}}") {
                plain.push('}');
                rest = after;
            } else {
                let inner = from_brace.strip_prefix('{').ok_or(InvalidTemplate::UnbalancedBrace)?;
                let (name, after) = inner.split_once('}').ok_or(InvalidTemplate::UnbalancedBrace)?;
                let known = Placeholder::ALL.iter().chain(besides).find(|(known, _)| *known == name);
                let (_, placeholder) = known.ok_or_else(|| unknown(name.to_owned()))?;
                if !plain.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                }
                pieces.push(Piece::Value(*placeholder));
                rest = after;
            }
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

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}"))?,
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

    #[test]
    fn what_cannot_be_filled_is_refused() {
        assert_eq!(Template::parse("{id}"), Err(InvalidTemplate::Unknown("id".to_owned())));
        assert_eq!(Template::parse("{signal}"), Err(InvalidTemplate::Unknown("signal".to_owned())));
        assert_eq!(
            Template::parse_of_cancel("-s{signal}").map(|template| template.to_string()),
            Ok("-s{signal}".to_owned())
        );
        assert_eq!(Template::parse("{job_id"), Err(InvalidTemplate::UnbalancedBrace));
        assert_eq!(Template::parse("job_id}"), Err(InvalidTemplate::UnbalancedBrace));
        assert_eq!(Template::parse("a\0b"), Err(InvalidTemplate::ZeroByte));
    }

    proptest! {
        #[test]
        fn a_template_reads_back_as_it_is_shown(text in "[a-z{}]{0,30}") {
            if let Ok(template) = Template::parse(&text) {
                prop_assert_eq!(Template::parse(&template.to_string()), Ok(template));
            }
        }
    }
}
