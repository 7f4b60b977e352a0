//! The small pieces that every view is made of: statuses, times, names that anybody may have chosen, buttons.

use maud::{Markup, PreEscaped, html};

use super::Visitor;
use crate::domain::{JobStatus, Timestamp};
use crate::http::json::rfc3339;
use crate::http::words::{age, duration_of};
use crate::process::text::made_safe;
use crate::store::Count;

/// A name that anybody may have chosen, on one line: what can't be seen in it or would turn its direction is made
/// visible, so that two names that differ look different.
pub(super) fn name(text: &str) -> Markup {
    html! { bdi { (visible(text, 200)) } }
}

/// The same, in an element whose text is all that a browser shows, such as `option`.
pub(super) fn plain_name(text: &str) -> String {
    let mut plain = String::new();
    for character in text.chars().take(200) {
        if is_hidden(character) { plain.push_str(&code_point(character)) } else { plain.push(character) }
    }
    plain
}

fn visible(text: &str, most: usize) -> Markup {
    let mut parts: Vec<(String, bool)> = Vec::new();
    for character in text.chars().take(most) {
        let hidden = is_hidden(character);
        let shown = if hidden { code_point(character) } else { character.to_string() };
        match parts.last_mut() {
            Some((part, was_hidden)) if *was_hidden == hidden => part.push_str(&shown),
            _ => parts.push((shown, hidden)),
        }
    }
    let is_cut = text.chars().nth(most).is_some();
    html! {
        @for (part, hidden) in &parts {
            @if *hidden { span.hidden-character title="characters that can't be seen" { (part) } } @else { (part) }
        }
        @if is_cut { "…" }
        @if text.is_empty() { span.muted { "(empty)" } }
    }
}

fn code_point(character: char) -> String {
    format!("[U+{:04X}]", u32::from(character))
}

/// Control characters, and those of general category Cf and Z that show nothing or change how others are shown.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// What a command or a client said, on one line.
pub(super) fn remark(text: &str, most: usize) -> String {
    let safe = made_safe(text.as_bytes());
    let line = safe.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().nth(most).is_some() { line.chars().take(most).chain(['…']).collect() } else { line }
}

/// What a command or a client said, with its line breaks.
pub(super) fn said(text: &str) -> String {
    made_safe(text.as_bytes())
}

/// The sentence that an error begins with, and the last line behind it, which is most often why a command failed.
pub(super) fn ends(error: &str) -> (String, Option<String>) {
    let error = said(error);
    let mut lines = error.lines();
    let first = lines.next().filter(|line| !line.trim().is_empty()).unwrap_or("no reason was recorded");
    (remark(first, 240), lines.rfind(|line| !line.trim().is_empty()).map(|last| remark(last, 240)))
}

/// The shapes that stand beside statuses, so that a colour is never all that tells one; each once, whatever the page shows.
const SHAPES: [(&str, &str); 8] = [
    ("pending", r#"<circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" stroke-width="2"/>"#),
    (
        "inqueue",
        r#"<circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" stroke-width="2"/><path d="M8 4.8V8l2.4 1.6" fill="none" stroke="currentColor" stroke-width="1.8"/>"#,
    ),
    ("progress", r#"<path d="M4 2.5v11l9.5-5.5z" fill="currentColor"/>"#),
    ("completed", r#"<path d="M2.5 8.5l3.6 3.7 7.4-8.4" fill="none" stroke="currentColor" stroke-width="2.4"/>"#),
    ("error", r#"<path d="M3.3 3.3l9.4 9.4M12.7 3.3l-9.4 9.4" stroke="currentColor" stroke-width="2.6"/>"#),
    (
        "cancelled",
        r#"<circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" stroke-width="2"/><path d="M4 12l8-8" stroke="currentColor" stroke-width="2"/>"#,
    ),
    ("paused", r#"<path d="M4 2.5h3v11H4zM9 2.5h3v11H9z" fill="currentColor"/>"#),
    (
        "attention",
        r#"<path d="M8 1.5L15.3 14.5H.7z" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linejoin="round"/><path d="M8 6v4M8 11.4v1.6" stroke="currentColor" stroke-width="1.8"/>"#,
    ),
];

/// What [`icon`] refers to; each page has it once.
pub(super) fn shapes() -> Markup {
    html! {
        svg hidden aria-hidden="true" {
            @for (name, drawing) in SHAPES { symbol id={ "i-" (name) } viewBox="0 0 16 16" { (PreEscaped(drawing)) } }
        }
    }
}

/// The shape of that name.
pub(super) fn icon(shape: &str) -> Markup {
    html! { svg.icon aria-hidden="true" { use href={ "#i-" (shape) } {} } }
}

/// The class and icon of a status.
pub(super) const fn shape(status: JobStatus) -> &'static str {
    match status {
        JobStatus::Pending => "pending",
        JobStatus::InQueue => "inqueue",
        JobStatus::Progress => "progress",
        JobStatus::Completed => "completed",
        JobStatus::Error => "error",
        JobStatus::Cancelled => "cancelled",
    }
}

/// What stands for a status in the title of a page, which has nothing but characters.
pub(super) const fn mark(status: JobStatus) -> &'static str {
    match status {
        JobStatus::Pending | JobStatus::InQueue => "…",
        JobStatus::Progress => "▶",
        JobStatus::Completed => "✓",
        JobStatus::Error => "✗",
        JobStatus::Cancelled => "⊘",
    }
}

/// A status: its shape and its word.
pub(super) fn badge(status: JobStatus) -> Markup {
    html! { span class={ "badge " (shape(status)) } { (icon(shape(status))) (status.as_str()) } }
}

/// A time as its distance from now, which a script keeps fresh; its title tells it exactly.
pub(super) fn ago(time: Timestamp, now: Timestamp) -> Markup {
    let said = age(time, now);
    let suffix = if time > now { "" } else { " ago" };
    html! { time datetime=(rfc3339(time)) title=(exact(time)) data-said="ago" { (said) (suffix) } }
}

/// How long it has been since a time, which a script keeps fresh.
pub(super) fn since(time: Timestamp, now: Timestamp) -> Markup {
    let elapsed = i64::try_from(now.since(time).as_millis()).unwrap_or(i64::MAX);
    // Whole seconds, as the script says it, too.
    let elapsed = if elapsed < 60_000 { format!("{}s", elapsed / 1000) } else { duration_of(elapsed) };
    html! { time datetime=(rfc3339(time)) title={ "since " (exact(time)) } data-said="since" { (elapsed) } }
}

/// A time as it stands in the table, for those who want it exactly.
pub(super) fn exact(time: Timestamp) -> String {
    rfc3339(time).replacen('T', " ", 1).replace('Z', " UTC")
}

/// A count, with a plus where there are more than were counted.
pub(super) fn count(count: Count) -> String {
    let number = crate::http::words::thousands(count.at_least);
    if count.or_more { format!("{number}+") } else { number }
}

/// How far a run has come.
pub(super) fn meter(progress: u8, of: &str) -> Markup {
    html! { progress max="100" value=(progress) aria-label={ "progress of " (of) } { (progress) "%" } }
}

/// A button that does something, as a form of its own, so that it works without a script.
pub(super) fn button(visitor: &Visitor, action: &str, label: &str, class: &str, of: &str) -> Markup {
    html! {
        form.inline method="post" action=(action) {
            (csrf(visitor))
            button type="submit" class=(class) aria-label={ (label) " " (of) } { (label) }
        }
    }
}

/// What shows that a form was sent from one of our pages.
pub(super) fn csrf(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name="csrf" value=(visitor.csrf); }
}

/// A text as it stands in a query or a path.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_hidden_characters_in_a_name_are_shown_as_text() {
        let shown = name("<script>alert(1)</script>\u{202e}gpj.exe\u{0}").into_string();
        assert!(!shown.contains("<script") && !shown.contains('\u{202e}') && !shown.contains('\0'), "{shown}");
        assert!(
            shown.contains("&lt;script&gt;") && shown.contains("[U+202E]") && shown.contains("[U+0000]"),
            "{shown}"
        );
        assert_eq!(plain_name("a\u{200b}b"), "a[U+200B]b");
        assert_ne!(name("ab").into_string(), name("a\u{200b}b").into_string());
    }

    #[test]
    fn every_status_has_a_shape() {
        let drawn = shapes().into_string();
        let known = |name: &str| assert!(drawn.contains(&format!("id=\"i-{name}\"")), "{name}");
        JobStatus::ALL.into_iter().map(shape).chain(["paused", "attention"]).for_each(known);
    }

    #[test]
    fn what_goes_into_an_address_stays_one_part_of_it() {
        assert_eq!(encoded("a/b?c&d=e f\"ä"), "a%2Fb%3Fc%26d%3De%20f%22%C3%A4");
    }

    #[test]
    fn an_error_has_a_first_and_a_last_line() {
        assert_eq!(
            ends("exit code 1\nTraceback\n  KeyError: 'a'\n\n"),
            ("exit code 1".into(), Some("KeyError: 'a'".into()))
        );
        assert_eq!(ends("exit code 1\n \n"), ("exit code 1".into(), None));
        assert_eq!(ends(""), ("no reason was recorded".into(), None));
    }

    #[test]
    fn remarks_are_one_line_and_bounded() {
        assert_eq!(remark("a\n  b\u{1b}[31mc\t", 10), "a bc");
        assert_eq!(remark("abcdef", 3), "abc…");
    }
}
