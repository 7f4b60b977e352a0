//! What MySQL and MariaDB spell otherwise: statements are written once, in the words of the two other databases.

use sea_orm::Value;

/// A list as [`super::sql::Dialect::among`] writes it, up to its parameter.
pub(super) const LIST: &str = "LIST($";

/// The same statement in MySQL's words:
/// - `$3` is a question mark, with its value where that stands, as often as it stands there;
/// - `LIST($3)` is as many of them as the JSON array has elements, since no subquery is as good as a list to its planner;
/// - `AS bigint` is `AS SIGNED` in a cast;
/// - `ON CONFLICT (…) DO NOTHING` and `DO UPDATE SET` are `ON DUPLICATE KEY UPDATE`, `excluded.x` is `VALUES(x)`.
///
/// Nothing within quotes is looked at.
pub(super) fn spelled(sql: &str, values: &[Value]) -> (String, Vec<Value>) {
    const NOTHING: &str = ") DO NOTHING";
    let (mut text, mut used) = (String::with_capacity(sql.len()), Vec::with_capacity(values.len()));
    let mut rest = sql;
    while let Some(next) = rest.chars().next() {
        if next == '\'' {
            let quoted = rest.get(1..).and_then(|after| after.find('\'')).map_or(rest.len(), |end| end + 2);
            take(&mut text, &mut rest, quoted);
        } else if let Some((number, after)) = rest.strip_prefix(LIST).and_then(number) {
            let items = values.get(number - 1).map(elements).unwrap_or_default();
            text.push_str(&format!("({})", vec!["?"; items.len()].join(", ")));
            used.extend(items);
            rest = after.strip_prefix(')').unwrap_or(after);
        } else if let Some((number, after)) = rest.strip_prefix('$').and_then(number) {
            text.push('?');
            used.extend(values.get(number - 1).cloned());
            rest = after;
        } else if let Some(after) = rest.strip_prefix(" AS bigint)") {
            text.push_str(" AS SIGNED)");
            rest = after;
        } else if let Some((columns, after)) =
            rest.strip_prefix("ON CONFLICT (").and_then(|after| after.split_once(')'))
        {
            text.push_str("ON DUPLICATE KEY UPDATE");
            let first = columns.split(',').next().unwrap_or_default();
            if rest.get("ON CONFLICT (".len() + columns.len()..).is_some_and(|end| end.starts_with(NOTHING)) {
                // It is that already: nothing is changed.
                text.push_str(&format!(" {first} = VALUES({first})"));
            }
            rest = after.strip_prefix(" DO NOTHING").or_else(|| after.strip_prefix(" DO UPDATE SET")).unwrap_or(after);
        } else if let Some(after) = rest.strip_prefix("excluded.") {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && !"_\"".contains(c)).unwrap_or(after.len());
            text.push_str(&format!("VALUES({})", after.get(..end).unwrap_or_default()));
            rest = after.get(end..).unwrap_or_default();
        } else {
            take(&mut text, &mut rest, next.len_utf8());
        }
    }
    (text, used)
}

fn take(text: &mut String, rest: &mut &str, length: usize) {
    let (taken, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
    text.push_str(taken);
    *rest = after;
}

/// The number, from 1 on, that a text starts with, and what follows it.
fn number(text: &str) -> Option<(usize, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, after) = text.split_at_checked(end)?;
    digits.parse().ok().filter(|number| *number > 0).map(|number| (number, after))
}

/// The texts and whole numbers of a JSON array, the last one repeated up to a power of two: so there are few different
/// statements to prepare. Of none there is NULL, which equals nothing.
fn elements(value: &Value) -> Vec<Value> {
    let Value::String(Some(json)) = value else { return vec![Value::String(None)] };
    let Ok(serde_json::Value::Array(array)) = serde_json::from_str(json) else { return vec![Value::String(None)] };
    let mut items: Vec<Value> = array
        .into_iter()
        .map(|element| match element {
            serde_json::Value::String(text) => text.into(),
            other => other.as_i64().into(),
        })
        .collect();
    let last = items.last().cloned().unwrap_or(Value::String(None));
    items.resize(items.len().next_power_of_two(), last);
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[Value]) -> Vec<String> {
        values.iter().map(|value| format!("{value:?}")).collect()
    }

    #[test]
    fn a_value_stands_wherever_its_number_does() {
        let (sql, values) =
            spelled("a = $2 AND b = $1 OR c = $2 AND d = '$1 it''s' || $10", &[1_i64.into(), 2_i64.into()]);
        assert_eq!(sql, "a = ? AND b = ? OR c = ? AND d = '$1 it''s' || ?");
        assert_eq!(texts(&values), texts(&[2_i64.into(), 1_i64.into(), 2_i64.into()]));
    }

    #[test]
    fn a_list_has_its_elements_and_one_without_any_holds_nothing() {
        let (sql, values) = spelled("x IN LIST($1) AND y IN LIST($2)", &[r#"["a","b'","c"]"#.into(), "[]".into()]);
        assert_eq!(sql, "x IN (?, ?, ?, ?) AND y IN (?)");
        let none = Value::String(None);
        assert_eq!(texts(&values), texts(&["a".into(), "b'".into(), "c".into(), "c".into(), none]));
        let (sql, values) = spelled("id IN LIST($1)", &["[9007199254740993]".into()]);
        assert_eq!((sql.as_str(), texts(&values)), ("id IN (?)", texts(&[Some(9_007_199_254_740_993_i64).into()])));
    }

    #[test]
    fn casts_and_upserts_are_spelled_its_way() {
        for (common, mysql) in [
            ("CAST(count(*) AS bigint) AS n", "CAST(count(*) AS SIGNED) AS n"),
            ("INSERT … ON CONFLICT (type, name) DO NOTHING", "INSERT … ON DUPLICATE KEY UPDATE type = VALUES(type)"),
            (
                "ON CONFLICT (id) DO UPDATE SET a = COALESCE(excluded.a_b, t.a), c = excluded.c",
                "ON DUPLICATE KEY UPDATE a = COALESCE(VALUES(a_b), t.a), c = VALUES(c)",
            ),
            ("'excluded.a AS bigint)'", "'excluded.a AS bigint)'"),
        ] {
            assert_eq!(spelled(common, &[]).0, mysql);
        }
    }
}
