//! The statements that a table lacks to be `jobs`: what the migrations made of Callsheet's own table, under its names.

use super::columns::{Column, Place, Theirs, VALUE, literal, quoted};
use crate::config::{AdoptedTable, OWN_SCHEMA};

/// Of the BEFORE triggers of a row the last one by name: what others change is seen by it.
const IN_STEP: &str = "zz_callsheet_in_step";
const IN_STEP_FUNCTION: &str = "adopted_in_step";

/// What a service needs to be allowed to do with the table.
pub(super) const RIGHTS: &str = "SELECT, INSERT, UPDATE, DELETE, REFERENCES";

/// What hangs on Callsheet's own table once its columns are called as in the adopted one, as PostgreSQL tells it.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// Name, whether it is unique, and what comes after `USING`.
    pub(super) indexes: Vec<(String, bool, String)>,
    /// Name and definition.
    pub(super) checks: Vec<(String, String)>,
    /// Definitions.
    pub(super) triggers: Vec<String>,
    /// Name and body of the functions of these triggers.
    pub(super) functions: Vec<(String, String)>,
}

/// What the adopted table has already.
#[derive(Debug, Default)]
pub(super) struct Present {
    /// The role that the service works as, quoted.
    pub(super) service: String,
    /// Whether it may do with the table what a service does.
    pub(super) has_rights: bool,
    pub(super) columns: Vec<Theirs>,
    pub(super) indexes: Vec<(String, bool, String)>,
    pub(super) checks: Vec<(String, String)>,
    pub(super) triggers: Vec<String>,
    /// Name, whether it runs with its owner's rights, and body.
    pub(super) functions: Vec<(String, bool, String)>,
}

/// The table, quoted and with its schema.
pub(super) fn table(adopted: &AdoptedTable) -> String {
    format!("{}.{}", quoted(&adopted.schema), quoted(&adopted.table))
}

/// What is to be done to the table before it can be `jobs`, in this order; nothing where it is complete.
pub(super) fn missing(adopted: &AdoptedTable, columns: &[Column], model: &Model, present: &Present) -> Vec<String> {
    let table = table(adopted);
    let mut statements = Vec::new();
    statements.extend(missing_words(adopted, columns, &present.columns));
    // Whoever writes a row need have no right to Callsheet's tables, nor know where they are.
    let wanted: Vec<(String, bool, String)> = std::iter::once((IN_STEP_FUNCTION.to_owned(), false, in_step(columns)))
        .chain(model.functions.iter().map(|(name, body)| (adopted_name(name), true, adopted_body(body, columns))))
        .collect();
    let old: Vec<_> = wanted.iter().filter(|function| !present.functions.contains(function)).collect();
    if !old.is_empty() {
        statements.push(format!("CREATE SCHEMA IF NOT EXISTS {OWN_SCHEMA} AUTHORIZATION {}", present.service));
    }
    if !present.has_rights {
        statements.push(format!("GRANT {RIGHTS} ON {table} TO {}", present.service));
    }
    let was_in_step = present.columns.iter().any(|column| column.name == "callsheet_status");
    let other_words = was_in_step && old.iter().any(|(name, ..)| name == IN_STEP_FUNCTION);
    let mut triggers_there = present.triggers.clone();
    if other_words {
        // What depends on a column stands in the way of filling it anew.
        statements.push(format!("DROP VIEW IF EXISTS {OWN_SCHEMA}.jobs"));
        let ours = triggers_there.extract_if(.., |trigger| {
            let name = trigger_name(trigger);
            name == IN_STEP || name.starts_with("callsheet_")
        });
        statements.extend(ours.map(|trigger| format!("DROP TRIGGER {} ON {table}", trigger_name(&trigger))));
    }
    statements.extend(missing_columns(adopted, &table, columns, &present.columns, other_words));
    let checks = model.checks.iter().map(|(name, check)| (format!("callsheet_{name}"), check));
    for (name, check) in checks {
        let name: String = name.chars().take(63).collect();
        if present.checks.iter().any(|(_, there)| there == check) {
            continue;
        }
        if present.checks.iter().any(|(there, _)| *there == name) {
            statements.push(format!("ALTER TABLE {table} DROP CONSTRAINT {}", quoted(&name)));
        }
        statements.push(format!("ALTER TABLE {table} ADD CONSTRAINT {} {check}", quoted(&name)));
    }
    statements.extend(missing_indexes(adopted, &table, columns, model, &present.indexes));
    for (name, reads_tables, body) in old {
        let quote = dollars(body);
        let how = format!("SECURITY DEFINER SET search_path = {OWN_SCHEMA}, pg_temp ");
        statements.push(format!(
            "CREATE OR REPLACE FUNCTION {OWN_SCHEMA}.{name}() RETURNS trigger LANGUAGE plpgsql {}AS {quote}{body}{quote}",
            if *reads_tables { &how } else { "" }
        ));
        statements.push(format!("ALTER FUNCTION {OWN_SCHEMA}.{name}() OWNER TO {}", present.service));
    }
    let in_step = format!(
        "CREATE TRIGGER {IN_STEP} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {IN_STEP_FUNCTION}()"
    );
    let triggers = model.triggers.iter().filter_map(|definition| adopted_trigger(definition, &table, columns));
    for trigger in std::iter::once(in_step).chain(triggers) {
        // PostgreSQL quotes a name only where it has to.
        if triggers_there.iter().any(|there| there.replace('"', "") == trigger.replace('"', "")) {
            continue;
        }
        let name = trigger_name(&trigger);
        if triggers_there.iter().any(|there| trigger_name(there) == name) {
            statements.push(format!("DROP TRIGGER {name} ON {table}"));
        }
        statements.push(trigger.replace("EXECUTE FUNCTION ", &format!("EXECUTE FUNCTION {OWN_SCHEMA}.")));
    }
    statements
}

fn missing_words(adopted: &AdoptedTable, columns: &[Column], theirs: &[Theirs]) -> Vec<String> {
    let status = columns.iter().find(|column| column.ours.name == "status").map(|column| &column.place);
    let Some(Place::InStep { theirs: name, .. }) = status else { return Vec::new() };
    let Some(column) = theirs.iter().find(|column| column.name == *name && column.base == "enum") else {
        return Vec::new();
    };
    let lacks = adopted.statuses.values().filter(|word| !column.words.contains(word));
    lacks.map(|word| format!("ALTER TYPE {} ADD VALUE IF NOT EXISTS {}", column.type_name, literal(word))).collect()
}

/// Columns that are there already are left as they are, but for what must be in them. Values of rows that are there are
/// filled in as the columns' types are set: an UPDATE would set off the triggers of the table's owner for each row.
fn missing_columns(
    adopted: &AdoptedTable,
    table: &str,
    columns: &[Column],
    theirs: &[Theirs],
    other_words: bool,
) -> Vec<String> {
    let (mut add, mut fill, mut status) = (Vec::new(), Vec::new(), None);
    for column in columns {
        let stored = column.stored();
        let there = theirs.iter().find(|theirs| theirs.name == stored);
        let (ours, kind) = (&column.ours, &column.ours.kind);
        match (&column.place, there) {
            (Place::Theirs(_), _) => {}
            (Place::Added, None) => {
                let not_null = if column.must_be_there() { " NOT NULL" } else { "" };
                let rest = match (&ours.default, ours.name.as_str()) {
                    (_, "id") => " GENERATED BY DEFAULT AS IDENTITY".to_owned(),
                    (None, "type") => {
                        format!("{not_null} DEFAULT {}", literal(adopted.only_type.as_deref().unwrap_or_default()))
                    }
                    (Some(default), _) => format!("{not_null} DEFAULT {default}"),
                    (None, _) => not_null.to_owned(),
                };
                add.push(format!("ADD COLUMN {stored} {kind}{rest}"));
            }
            (Place::Added, Some(_)) => {}
            (Place::InStep { theirs, read, .. }, there) => {
                let value = read.replace(VALUE, &quoted(theirs));
                let from = format!("ALTER COLUMN {stored} TYPE {kind} USING ({value})");
                match there {
                    None => {
                        add.push(format!("ADD COLUMN {stored} {kind}"));
                        fill.push(from);
                        if column.must_be_there() {
                            fill.push(format!("ALTER COLUMN {stored} SET NOT NULL"));
                        }
                    }
                    Some(_) if ours.name == "status" && other_words => status = Some(from),
                    Some(there) => {
                        if column.must_be_there() && !there.not_null {
                            fill.push(format!("ALTER COLUMN {stored} SET NOT NULL"));
                        }
                        if there.has_default {
                            fill.push(format!("ALTER COLUMN {stored} DROP DEFAULT"));
                        }
                    }
                }
            }
        }
    }
    fill.extend(status);
    let lists = [add, fill].into_iter().filter(|actions| !actions.is_empty());
    lists.map(|actions| format!("ALTER TABLE {table}\n    {}", actions.join(",\n    "))).collect()
}

fn missing_indexes(
    adopted: &AdoptedTable,
    table: &str,
    columns: &[Column],
    model: &Model,
    present: &[(String, bool, String)],
) -> Vec<String> {
    let id = columns.iter().find(|column| column.ours.name == "id");
    let of_id = id.filter(|column| !matches!(column.place, Place::Theirs(_)));
    let of_id = of_id.map(|column| ("jobs_id".to_owned(), true, format!("btree ({})", column.stored())));
    let mut statements = Vec::new();
    for (name, unique, rest) in of_id.iter().chain(&model.indexes) {
        if present.iter().any(|(_, is_unique, there)| is_unique == unique && there == rest) {
            continue;
        }
        let name = format!("callsheet_{name}");
        if present.iter().any(|(there, ..)| *there == name) {
            statements.push(format!("DROP INDEX {}.{}", quoted(&adopted.schema), quoted(&name)));
        }
        let unique = if *unique { "UNIQUE " } else { "" };
        statements.push(format!("CREATE {unique}INDEX {} ON {table} USING {rest}", quoted(&name)));
    }
    statements
}

/// What keeps the two columns of each pair in step, whichever of them is written; ours, where both are. A client that
/// knows nothing of Callsheet leaves ours out.
fn in_step(columns: &[Column]) -> String {
    let (mut inserted, mut updated) = (String::new(), String::new());
    for column in columns {
        let Place::InStep { theirs, read, write } = &column.place else { continue };
        let (ours, theirs) = (format!("NEW.{}", column.stored()), format!("NEW.{}", quoted(theirs)));
        let read = format!("{ours} := {};", read.replace(VALUE, &theirs));
        let other = |of: &str| {
            let (cast, old) = (if column.ours.kind == "json" { "::text" } else { "" }, of.replacen("NEW", "OLD", 1));
            format!("{of}{cast} IS DISTINCT FROM {old}{cast}")
        };
        match write {
            Some(write) => {
                let write = format!("{theirs} := {};", write.replace(VALUE, &ours));
                inserted += &format!("        IF {ours} IS NULL THEN {read} ELSE {write} END IF;\n");
                updated += &format!(
                    "        IF {} THEN {write}\n        ELSIF {} THEN {read} END IF;\n",
                    other(&ours),
                    other(&theirs)
                );
            }
            None => {
                inserted += &format!("        {read}\n");
                updated += &format!("        IF {} THEN {read} END IF;\n", other(&theirs));
            }
        }
    }
    format!(
        "\nBEGIN\n    IF TG_OP = 'INSERT' THEN\n{inserted}        NULL;\n    ELSE\n{updated}        NULL;\n    END IF;\n    \
         RETURN NEW;\nEND\n"
    )
}

fn trigger_name(definition: &str) -> &str {
    definition.split(' ').nth(2).unwrap_or_default()
}

fn adopted_name(function: &str) -> String {
    format!("adopted_{}", function.trim_start_matches("callsheet_"))
}

/// A trigger's function, for a row that has other names; it does nothing while Callsheet's own tables are not there.
fn adopted_body(body: &str, columns: &[Column]) -> String {
    let mut body = body.to_owned();
    for column in columns {
        for row in ["NEW", "OLD"] {
            body = whole_words_replaced(
                &body,
                &format!("{row}.{}", column.ours.name),
                &format!("{row}.{}", column.stored()),
            );
        }
    }
    let guard =
        format!("\nBEGIN\n    IF to_regclass('{OWN_SCHEMA}.jobs') IS NULL THEN\n        RETURN NULL;\n    END IF;\n");
    body.replacen("\nBEGIN\n", &guard, 1)
}

fn whole_words_replaced(text: &str, word: &str, with: &str) -> String {
    let mut replaced = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(word) {
        let goes_on = after.starts_with(|letter: char| letter.is_ascii_alphanumeric() || letter == '_');
        replaced += before;
        replaced += if goes_on { word } else { with };
        rest = after;
    }
    replaced + rest
}

/// A trigger of our table for theirs: an update of one of their columns is one of ours that is in step with it.
fn adopted_trigger(definition: &str, table: &str, columns: &[Column]) -> Option<String> {
    let (head, tail) = definition.split_once(&format!(" ON {OWN_SCHEMA}.{MODEL} "))?;
    let head = head.replacen("CREATE TRIGGER ", "CREATE TRIGGER callsheet_", 1);
    let head = match head.split_once(" UPDATE OF ") {
        Some((event, list)) => {
            let mut list: Vec<String> = list.split(", ").map(str::to_owned).collect();
            for column in columns {
                if let Place::InStep { theirs, .. } = &column.place
                    && list.contains(&column.stored())
                {
                    list.push(quoted(theirs));
                }
            }
            format!("{event} UPDATE OF {}", list.join(", "))
        }
        None => head,
    };
    let (condition, function) = tail.split_once("EXECUTE FUNCTION ")?;
    Some(format!("{head} ON {table} {condition}EXECUTE FUNCTION {}", adopted_name(function)))
}

/// What Callsheet's own table is called where another one is used instead: empty, it is what migrations are made to.
pub(super) const MODEL: &str = "jobs_model";

/// A quote that the text does not hold.
fn dollars(text: &str) -> String {
    let mut quote = "$callsheet$".to_owned();
    while text.contains(&quote) {
        quote.insert(1, '_');
    }
    quote
}

/// The view that is `jobs`: nothing in it is computed, so that it can be written and locked as the table itself.
pub(super) fn view(adopted: &AdoptedTable, columns: &[Column], theirs: &[Theirs]) -> Vec<String> {
    let status = columns.iter().find(|column| column.ours.name == "status").map(Column::stored).unwrap_or_default();
    let mut list: Vec<String> =
        columns.iter().map(|column| format!("{} AS {}", column.stored(), column.ours.name)).collect();
    let mut defaults: Vec<String> = columns
        .iter()
        .filter_map(|column| {
            let default = column.ours.default.as_ref()?;
            Some(format!("ALTER COLUMN {} SET DEFAULT {default}", column.ours.name))
        })
        .collect();
    for (place, (column, value)) in fillable(columns, theirs).into_iter().enumerate() {
        list.push(format!("{} AS callsheet_fill_{place}", quoted(&column.name)));
        defaults.push(format!("ALTER COLUMN callsheet_fill_{place} SET DEFAULT {value}"));
    }
    vec![
        format!(
            "CREATE VIEW {OWN_SCHEMA}.jobs AS SELECT {} FROM {} WHERE {status} IS NOT NULL",
            list.join(", "),
            table(adopted)
        ),
        format!("ALTER VIEW {OWN_SCHEMA}.jobs {}", defaults.join(", ")),
    ]
}

/// The columns that an insert has to name, none of them ours, and what Callsheet gives them when it enqueues a job: a
/// time, or a random name. Others it can't know.
fn fillable<'a>(columns: &[Column], theirs: &'a [Theirs]) -> Vec<(&'a Theirs, &'static str)> {
    let value = |column: &Theirs| match column.base.as_str() {
        "timestamp" => Some("(clock_timestamp() AT TIME ZONE 'UTC')"),
        "timestamptz" => Some("clock_timestamp()"),
        "uuid" => Some("gen_random_uuid()"),
        "text" | "varchar" if column.unique && column.length.is_none_or(|length| length >= 36) => {
            Some("gen_random_uuid()::text")
        }
        _ => None,
    };
    wanted(columns, theirs).filter_map(|column| Some((column, value(column)?))).collect()
}

/// The columns that an insert has to name and that Callsheet has no value for: rows are inserted by others only.
pub(super) fn unfillable<'a>(columns: &[Column], theirs: &'a [Theirs]) -> Vec<&'a str> {
    let filled = fillable(columns, theirs);
    wanted(columns, theirs)
        .filter(|column| !filled.iter().any(|(other, _)| other.name == column.name))
        .map(|column| column.name.as_str())
        .collect()
}

fn wanted<'a>(columns: &[Column], theirs: &'a [Theirs]) -> impl Iterator<Item = &'a Theirs> {
    let used: Vec<String> = columns
        .iter()
        .map(|column| match &column.place {
            Place::Theirs(name) => name.clone(),
            Place::InStep { theirs, .. } => theirs.clone(),
            Place::Added => column.stored(),
        })
        .chain(columns.iter().map(Column::stored))
        .collect();
    theirs.iter().filter(move |column| {
        column.not_null && !column.has_default && !column.generated && !used.contains(&column.name)
    })
}
