//! `[store.jobs]`: a table that the user already has, and what its columns and statuses are called there.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;

use super::report::Notes;
use super::written::Jobs;
use crate::domain::JobStatus;

/// The columns of `jobs` that a table may have under names of its own (CONTRACT §4, and a job's
/// trace); all others are Callsheet's alone.
pub(crate) const COLUMNS: &[&str] = &[
    "id",
    "type",
    "identifier",
    "payload",
    "status",
    "priority",
    "run_at",
    "attempt",
    "maximum_attempts",
    "unique_key",
    "worker_id",
    "cancel_requested_time",
    "progress",
    "status_message",
    "error",
    "exit_code",
    "created_time",
    "queued_time",
    "started_time",
    "heartbeat_time",
    "completed_time",
    "execution_ms",
    "traceparent",
    "tracestate",
];

/// PostgreSQL's NAMEDATALEN without the zero byte: it cuts longer names without a word.
const LONGEST_NAME: usize = 63;

/// A jobs table that was there before Callsheet; its names are anything that PostgreSQL takes as a quoted identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptedTable {
    /// The schema that it is in.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// What those columns of `jobs` are called there that have another name.
    pub columns: BTreeMap<String, String>,
    /// The word that stands there for each status; no two are the same.
    pub statuses: BTreeMap<JobStatus, String>,
    /// The type of its rows where it has no column for it: that of the only flow.
    pub only_type: Option<String>,
}

/// What is wrong is complained about; `None` where it leaves no table to speak of.
pub(super) fn adopted(written: &Jobs, notes: &mut Notes) -> Option<AdoptedTable> {
    let columns: Vec<_> = written.columns.iter().collect();
    for (_, name) in &columns {
        check_name("a column", name, notes);
    }
    for (place, (key, name)) in columns.iter().enumerate() {
        let twice = columns.iter().take(place).find(|(_, other)| other.get_ref() == name.get_ref());
        // The id of a table whose ids are texts is what its rows are known by.
        let may = |key: &str| key == "id" || key == "identifier";
        if let Some((other, _)) = twice.filter(|(other, _)| !(may(other.get_ref()) && may(key.get_ref()))) {
            let message =
                format!("`{}` and `{}` are both the column {:?}", other.get_ref(), key.get_ref(), name.get_ref());
            notes.add(name.span(), message).help("each column can be only one of Callsheet's");
        }
    }
    let statuses = statuses(written, notes);
    let schema = written.schema.as_ref().map_or_else(|| "public".to_owned(), |schema| schema.get_ref().clone());
    if let Some(schema) = &written.schema {
        check_name("a schema", schema, notes);
        if schema.get_ref() == OWN_SCHEMA {
            notes.add(schema.span(), format!("the schema {OWN_SCHEMA} is where Callsheet keeps its own tables"));
        }
    }
    let Some(table) = &written.table else {
        notes
            .add(written.span.clone(), "[store.jobs] names no `table`")
            .help("write the name of the table that you have: table = \"Job\"")
            .missing();
        return None;
    };
    check_name("a table", table, notes);
    Some(AdoptedTable {
        schema,
        table: table.get_ref().clone(),
        columns: columns.into_iter().map(|(key, name)| (key.get_ref().clone(), name.get_ref().clone())).collect(),
        statuses,
        only_type: None,
    })
}

/// Where Callsheet's own tables are beside one that it has adopted.
pub(crate) const OWN_SCHEMA: &str = "callsheet";

fn statuses(written: &Jobs, notes: &mut Notes) -> BTreeMap<JobStatus, String> {
    let mut words: BTreeMap<JobStatus, String> =
        JobStatus::ALL.into_iter().map(|status| (status, status.as_str().to_owned())).collect();
    for (key, word) in &written.statuses {
        check_name("a status", word, notes);
        if let Ok(status) = key.get_ref().parse::<JobStatus>() {
            words.insert(status, word.get_ref().clone());
        }
    }
    for (key, word) in &written.statuses {
        let twice = words.iter().find(|(status, other)| *other == word.get_ref() && status.as_str() != key.get_ref());
        if let Some((other, _)) = twice {
            let message = format!("{:?} stands for both {} and {other}", word.get_ref(), key.get_ref());
            notes.add(word.span(), message).help(
                "each status needs a word of its own; one that the table has no word for yet keeps Callsheet's, and `check` \
                 says how to add it",
            );
        }
    }
    words
}

fn check_name(what: &str, name: &Spanned<String>, notes: &mut Notes) {
    let text = name.get_ref();
    if text.is_empty() || text.len() > LONGEST_NAME || text.contains(char::is_control) {
        let message = format!("{text:?} is no name of {what}");
        notes.add(name.span(), message).help(format!("1 to {LONGEST_NAME} bytes, none of a control character"));
    }
}

/// Where each key stands that a look at the table may find wrong.
pub(super) fn places(written: &Jobs) -> Vec<(String, Range<usize>)> {
    let table = written.table.as_ref().map_or_else(|| written.span.clone(), Spanned::span);
    let mut places = vec![("store.jobs".to_owned(), table)];
    for (section, pairs) in [("columns", &written.columns), ("statuses", &written.statuses)] {
        places
            .extend(pairs.iter().map(|(key, value)| (format!("store.jobs.{section}.{}", key.get_ref()), value.span())));
    }
    places
}
