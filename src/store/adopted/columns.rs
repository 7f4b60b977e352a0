//! How each column of `jobs` is had from an adopted table: as it is, in step with one that is of another type, or added.

use std::collections::BTreeMap;

use crate::config::{AdoptedTable, JOB_COLUMNS};

/// What every column is called that Callsheet has added to somebody's table.
const ADDED: &str = "callsheet_";

/// Where the value belongs in a piece of SQL: a character that no name and no word may hold.
pub(super) const VALUE: char = '\u{1}';

/// A column of Callsheet's `jobs`, as the migrations make it.
#[derive(Clone, Debug)]
pub(super) struct Ours {
    pub(super) name: String,
    /// Its SQL type.
    pub(super) kind: String,
    pub(super) not_null: bool,
    /// SQL.
    pub(super) default: Option<String>,
    /// Whether a constraint says what may be in it.
    pub(super) checked: bool,
}

/// A column of the adopted table.
#[derive(Clone, Debug)]
pub(super) struct Theirs {
    pub(super) name: String,
    /// Its SQL type, as people write it.
    pub(super) kind: String,
    /// `pg_type.typname` of a type of PostgreSQL's own, `enum`, or nothing.
    pub(super) base: String,
    /// The most characters that it takes; `None` for any number.
    pub(super) length: Option<i64>,
    /// The words of an enum.
    pub(super) words: Vec<String>,
    /// The name of the type, quoted and with its schema.
    pub(super) type_name: String,
    pub(super) not_null: bool,
    /// Whether an insert may leave it out.
    pub(super) has_default: bool,
    /// Whether its value is computed.
    pub(super) generated: bool,
    /// Whether no two rows have the same.
    pub(super) unique: bool,
}

/// Where a column of ours is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is this one of theirs.
    Theirs(String),
    /// It is added to their table.
    Added,
    /// It is added, and a trigger keeps this one of theirs in step with it. `read` and `write` are SQL in which [`VALUE`]
    /// stands for their value, and for ours; `None` where ours never changes by itself.
    InStep { theirs: String, read: String, write: Option<String> },
}

#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) ours: Ours,
    pub(super) place: Place,
}

impl Column {
    /// What it is called in their table, quoted.
    pub(super) fn stored(&self) -> String {
        match &self.place {
            Place::Theirs(name) => quoted(name),
            Place::Added | Place::InStep { .. } => format!("{ADDED}{}", self.ours.name),
        }
    }

    /// Whether it must have a value there: a row whose status is none of ours has none.
    pub(super) fn must_be_there(&self) -> bool {
        self.ours.not_null && self.ours.name != "status"
    }
}

/// Why a table can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The key of the configuration that it is about, such as `store.jobs.columns.status`.
    pub key: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub help: String,
}

fn unfit(key: impl Into<String>, reason: impl Into<String>, help: impl Into<String>) -> Unfit {
    Unfit { key: key.into(), reason: reason.into(), help: help.into() }
}

/// Where each column of ours is to be; and everything for which there is no place.
pub(super) fn place(adopted: &AdoptedTable, ours: &[Ours], theirs: &[Theirs]) -> (Vec<Column>, Vec<Unfit>) {
    let by_name: BTreeMap<&str, &Theirs> = theirs.iter().map(|column| (column.name.as_str(), column)).collect();
    let (mut columns, mut unfits) = (Vec::new(), Vec::new());
    for ours in ours {
        let added = format!("{ADDED}{}", ours.name);
        let key = format!("store.jobs.columns.{}", ours.name);
        let named = adopted.columns.get(&ours.name);
        let wanted = named.map_or(ours.name.as_str(), String::as_str);
        let may_be_theirs = JOB_COLUMNS.contains(&ours.name.as_str()) && wanted != added;
        let place = match by_name.get(wanted).filter(|_| may_be_theirs) {
            Some(theirs) => match fit(adopted, ours, theirs) {
                Ok(place) => place,
                Err(reason) => {
                    let reason = format!("the column {wanted:?} can't be `{}`: {reason}", ours.name);
                    let help = format!("name another one, or {} = \"{added}\" for one that is added", ours.name);
                    unfits.push(unfit(key, reason, help));
                    continue;
                }
            },
            None if named.is_some() && may_be_theirs => {
                let known: Vec<&str> =
                    by_name.keys().copied().filter(|name| !name.starts_with(ADDED)).take(100).collect();
                let help = format!("it has: {}; without this key a column is added", known.join(", "));
                unfits.push(unfit(key, format!("the table has no column {wanted:?}"), help));
                continue;
            }
            None => Place::Added,
        };
        let is_there = by_name.contains_key(added.as_str());
        if place == Place::Added && !is_there {
            match (ours.name.as_str(), &adopted.only_type) {
                ("identifier", _) => {
                    let help = "name the column that says what a job is about: identifier = \"…\" (it may be the id)";
                    unfits.push(unfit("store.jobs", "the table has no column `identifier`", help));
                }
                ("type", None) => {
                    let help = "name the column that says which flow a row is for: type = \"…\"";
                    let reason = "the table has no column `type`, and there is more than one flow, or none";
                    unfits.push(unfit("store.jobs", reason, help));
                }
                ("status", _) => {
                    let help = "name the column that says how far a job is: status = \"…\"";
                    unfits.push(unfit("store.jobs", "the table has no column `status`", help));
                }
                _ => {}
            }
        }
        columns.push(Column { ours: ours.clone(), place });
    }
    (columns, unfits)
}

/// Texts that people look for, which must not be cut to what a column takes.
const WHOLE: [&str; 3] = ["type", "identifier", "unique_key"];

fn fit(adopted: &AdoptedTable, ours: &Ours, theirs: &Theirs) -> Result<Place, String> {
    if theirs.generated {
        return Err("it is a generated column, which nobody can write".to_owned());
    }
    let name = ours.name.as_str();
    let base = theirs.base.as_str();
    let as_it_is = theirs.not_null == ours.not_null && !ours.checked;
    let is_text = matches!(base, "text" | "varchar" | "bpchar");
    let number = matches!(base, "int2" | "int4" | "int8" | "float4" | "float8" | "numeric");
    let cut = |length: Option<i64>| length.map_or("\u{1}".to_owned(), |length| format!("left(\u{1}, {length})"));
    let (read, write) = match (name, ours.kind.as_str()) {
        ("id", _) => {
            let whole = matches!(base, "int2" | "int4" | "int8");
            return match (whole, theirs.not_null && theirs.unique) {
                (true, true) if base == "int8" => Ok(Place::Theirs(theirs.name.clone())),
                (true, true) => {
                    Ok(Place::InStep { theirs: theirs.name.clone(), read: "\u{1}::bigint".to_owned(), write: None })
                }
                (true, false) => Err("an id has to be NOT NULL and unique".to_owned()),
                // Its rows are known by something else; ours is a number of our own.
                (false, _) => Ok(Place::Added),
            };
        }
        ("status", _) => {
            let longest = adopted.statuses.values().map(|word| word.chars().count()).max().unwrap_or_default();
            if !is_text && base != "enum" {
                return Err(format!("it is of the type {}; a status is a text or an enum", theirs.kind));
            }
            if theirs.length.is_some_and(|length| length < i64::try_from(longest).unwrap_or(i64::MAX)) {
                return Err(format!("it is of the type {}, which is too short for its words", theirs.kind));
            }
            statuses(adopted)
        }
        (_, "json") => match base {
            "json" | "jsonb" | "text" | "varchar" if as_it_is => return Ok(Place::Theirs(theirs.name.clone())),
            "json" | "jsonb" | "text" | "varchar" => ("\u{1}::json".to_owned(), "\u{1}".to_owned()),
            _ => return Err(format!("it is of the type {}; a payload is jsonb, json or text", theirs.kind)),
        },
        (_, "text") if is_text => {
            let whole = WHOLE.contains(&name);
            if as_it_is && base != "bpchar" && (whole || theirs.length.is_none()) {
                return Ok(Place::Theirs(theirs.name.clone()));
            }
            ("\u{1}::text".to_owned(), cut(theirs.length.filter(|_| !whole)))
        }
        (_, "text") if WHOLE.contains(&name) && matches!(base, "enum" | "uuid" | "int2" | "int4" | "int8") => {
            ("\u{1}::text".to_owned(), "\u{1}".to_owned())
        }
        (_, "text") => return Err(format!("it is of the type {}, not text", theirs.kind)),
        _ if is_time(name) => match base {
            "int8" if as_it_is => return Ok(Place::Theirs(theirs.name.clone())),
            "int8" => ("\u{1}".to_owned(), "\u{1}".to_owned()),
            "timestamp" => (milliseconds("TIMESTAMP"), "to_timestamp(\u{1} / 1000.0) AT TIME ZONE 'UTC'".to_owned()),
            "timestamptz" => (milliseconds("TIMESTAMPTZ"), "to_timestamp(\u{1} / 1000.0)".to_owned()),
            _ => {
                return Err(format!(
                    "it is of the type {}; a time is a timestamp (in UTC), a timestamptz, or a bigint of milliseconds since 1970",
                    theirs.kind
                ));
            }
        },
        _ if base == "int8" && as_it_is => return Ok(Place::Theirs(theirs.name.clone())),
        _ if number => {
            let limits = match base {
                "int2" => Some((i64::from(i16::MIN), i64::from(i16::MAX))),
                "int4" => Some((i64::from(i32::MIN), i64::from(i32::MAX))),
                _ => None,
            };
            let write =
                limits.map_or("\u{1}".to_owned(), |(least, most)| format!("LEAST(GREATEST(\u{1}, {least}), {most})"));
            ("round(\u{1})::bigint".to_owned(), write)
        }
        ("execution_ms", _) if base == "interval" => (
            "floor(extract(epoch FROM \u{1}) * 1000)::bigint".to_owned(),
            "make_interval(secs => \u{1} / 1000.0)".to_owned(),
        ),
        _ => return Err(format!("it is of the type {}, not a number", theirs.kind)),
    };
    // What ours can't be without it gets; what theirs can't be without stays what it was.
    let read = match (&ours.default, ours.not_null && name != "status") {
        (Some(default), true) => format!("COALESCE({read}, {default})"),
        (None, true) => format!("COALESCE({read}, '')"),
        (_, false) => read,
    };
    let write = match (theirs.not_null && !ours.not_null, is_text) {
        (true, true) => format!("COALESCE({write}, '')"),
        (true, false) => format!("COALESCE(({write})::{}, NEW.{})", theirs.type_name, quoted(&theirs.name)),
        (false, _) => write,
    };
    Ok(Place::InStep { theirs: theirs.name.clone(), read, write: Some(write) })
}

fn is_time(name: &str) -> bool {
    name.ends_with("_time") || name == "run_at"
}

/// In Unix milliseconds; what is infinite is so far away that nobody waits for it.
fn milliseconds(kind: &str) -> String {
    format!(
        "CASE WHEN isfinite(\u{1}) THEN floor(extract(epoch FROM \u{1}) * 1000)::bigint \
         WHEN \u{1} > {kind} '1970-01-01' THEN 253402300799000 WHEN \u{1} IS NOT NULL THEN 0 END"
    )
}

/// A row with a word that is none of these is none of ours; what is none of our statuses the table's constraint refuses.
fn statuses(adopted: &AdoptedTable) -> (String, String) {
    let (mut read, mut write) = (String::new(), String::new());
    for (status, word) in &adopted.statuses {
        let (status, word) = (literal(status.as_str()), literal(word));
        read += &format!(" WHEN {word} THEN {status}");
        write += &format!(" WHEN {status} THEN {word}");
    }
    (format!("CASE {VALUE}::text{read} END"), format!("CASE {VALUE}{write} ELSE {VALUE} END"))
}

/// An identifier, whatever is in it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text; one with a backslash is written so that it is the same under either `standard_conforming_strings`.
pub(super) fn literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", text.replace('\\', "\\\\")) } else { format!("'{text}'") }
}
