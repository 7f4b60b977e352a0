//! The parameters of a request's query, each read once, every mistake told by its name.

use std::fmt::Display;
use std::str::FromStr;

use axum::http::{StatusCode, Uri};

use crate::domain::JobStatus;
use crate::http::problem::{FieldError, Problem};

/// What the query holds, until every parameter has been taken out of it.
pub(super) struct Parameters {
    pairs: Vec<(String, String)>,
    known: &'static [&'static str],
    errors: Vec<FieldError>,
}

/// How many rows a page may have.
const LARGEST_PAGE: u32 = 1000;
/// How many types one list may be of.
const MOST_TYPES: usize = 20;
/// How many rows a page has where nobody says.
const USUAL_PAGE: u32 = 100;

impl Parameters {
    /// The parameters of this address, which knows these.
    pub(super) fn of(uri: &Uri, known: &'static [&'static str]) -> Self {
        // What is no form at all is one long name, which nobody knows.
        let pairs: Vec<(String, String)> =
            serde_urlencoded::from_str(uri.query().unwrap_or_default()).unwrap_or_default();
        Self { pairs, known, errors: Vec::new() }
    }

    pub(super) fn wrong(&mut self, name: &str, detail: impl Into<String>) {
        self.errors.push(FieldError { field: name.to_owned(), pointer: None, detail: detail.into() });
    }

    /// Every value of a parameter that may be repeated.
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        let (mine, rest) = std::mem::take(&mut self.pairs).into_iter().partition(|(known, _)| known == name);
        self.pairs = rest;
        let mine: Vec<(String, String)> = mine;
        mine.into_iter().map(|(_, value)| value).collect()
    }

    /// The value of a parameter that stands at most once.
    pub(super) fn one(&mut self, name: &str) -> Option<String> {
        let mut values = self.all(name);
        if values.len() > 1 {
            self.wrong(name, "it stands more than once");
        }
        values.pop()
    }

    /// The same, made into something by `read`, which says why it can't be.
    pub(super) fn read<T>(&mut self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.one(name)?;
        match read(&text) {
            Ok(value) => Some(value),
            Err(detail) => {
                self.wrong(name, detail);
                None
            }
        }
    }

    /// The same for what is written as it is shown.
    pub(super) fn parsed<T: FromStr>(&mut self, name: &str, what: &str) -> Option<T> {
        self.read(name, |text| text.parse().map_err(|_| format!("{} is not {what}", shown(text))))
    }

    /// The job types, each once.
    pub(super) fn types(&mut self) -> Vec<String> {
        let mut types = self.all("type");
        types.sort_unstable();
        types.dedup();
        if types.len() > MOST_TYPES {
            self.wrong("type", format!("there are {}; at most {MOST_TYPES} are taken at once", types.len()));
        }
        types
    }

    /// The statuses, each once.
    pub(super) fn statuses(&mut self) -> Vec<JobStatus> {
        let mut statuses = Vec::new();
        for text in self.all("status") {
            match text.parse() {
                Ok(status) => statuses.push(status),
                Err(error) => self.wrong("status", crate::domain::InvalidStatus::to_string(&error)),
            }
        }
        statuses.sort_unstable();
        statuses.dedup();
        statuses
    }

    pub(super) fn limit(&mut self) -> u32 {
        let limit = self.read("limit", |text| match text.parse() {
            Ok(limit) if (1..=LARGEST_PAGE).contains(&limit) => Ok(limit),
            _ => Err(format!("{} is not a whole number from 1 to {LARGEST_PAGE}", shown(text))),
        });
        limit.unwrap_or(USUAL_PAGE)
    }

    /// Where a page starts: what the one before gave as `next_cursor`.
    pub(super) fn cursor(&mut self) -> Option<i64> {
        self.read("cursor", |text| {
            let id = text.strip_prefix(CURSOR).and_then(|id| i64::from_str_radix(id, 16).ok()).filter(|id| *id > 0);
            id.ok_or_else(|| format!("{} is not a next_cursor of a page before", shown(text)))
        })
    }

    /// Complains about everything at once.
    pub(super) fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.pairs) {
            let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
            self.wrong(&shown(&name), format!("no such parameter; there are: {known}"));
        }
        if self.errors.is_empty() {
            return Ok(());
        }
        Err(Problem::invalid(StatusCode::BAD_REQUEST, self.errors))
    }
}

/// The first letter says what kind of cursor this is, so that a later kind can be told from it.
const CURSOR: &str = "a";

/// The cursor of the page that starts behind the row of this id.
pub(super) fn cursor(id: impl Display) -> String {
    let id: i64 = id.to_string().parse().unwrap_or(i64::MAX);
    format!("{CURSOR}{id:x}")
}

/// The text as it can be shown in a sentence.
pub(super) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(60).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Parameters {
        Parameters::of(&format!("/x?{query}").parse().unwrap(), &["limit", "status"])
    }

    #[test]
    fn every_mistake_is_told() {
        let mut parameters = of("limit=0&status=DONE&status=ERROR&x=1&cursor=7&attempt=a&attempt=b");
        assert_eq!((parameters.limit(), parameters.cursor()), (USUAL_PAGE, None));
        assert_eq!(parameters.statuses(), [JobStatus::Error]);
        assert_eq!(parameters.parsed::<u32>("attempt", "a number"), None);
        let problem = serde_json::to_value(parameters.finish().unwrap_err()).unwrap();
        let fields: Vec<_> =
            problem["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
        assert_eq!(fields, ["limit", "cursor", "status", "attempt", "attempt", "\"x\""]);
    }

    #[test]
    fn a_cursor_leads_to_where_it_was_made() {
        for id in [1, 255, i64::MAX] {
            assert_eq!(of(&format!("cursor={}", cursor(id))).cursor(), Some(id));
        }
    }
}
