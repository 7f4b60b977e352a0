//! The list of jobs: the address holds the filter, so that a list can be sent to somebody, and found again.

use chrono::{DateTime, NaiveDateTime};
use maud::{Markup, html};

use super::form::Fields;
use super::parts::{ago, badge, csrf, encoded, ends, meter, name, plain_name, remark, since};
use super::{Part, Visitor};
use crate::domain::{JobId, JobStatus, Timestamp};
use crate::http::words::duration_of;
use crate::store::{Found, JobRow, JobSearch};

/// Jobs of a page.
const LIMIT: u32 = 50;

/// The filter as it stands in the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) types: Vec<String>,
    pub(super) statuses: Vec<JobStatus>,
    pub(super) text: String,
    /// As `2026-11-25T03:00`, UTC.
    pub(super) from: String,
    pub(super) until: String,
    pub(super) cursor: Option<i64>,
    /// A sentence about each value that can't be read, and so filters nothing.
    pub(super) mistakes: Vec<String>,
}

impl Filter {
    /// Reads it; what can't be read is a mistake, and whoever shows or changes jobs by the filter must tell of it.
    pub(super) fn of(fields: &Fields) -> Self {
        let mut mistakes = Vec::new();
        let words = fields.all("status").filter(|word| !word.is_empty());
        mistakes.extend(words.filter_map(|word| Some(word.parse::<JobStatus>().err()?.to_string())));
        for key in ["from", "until"] {
            let text = fields.first(key).filter(|text| !text.is_empty() && time(text).is_none());
            mistakes.extend(text.map(|text| format!("{key}: {} is no time, as 2026-11-25T03:00 is", plain_name(text))));
        }
        let cursor = fields.first("cursor").filter(|cursor| cursor.parse::<i64>().is_err());
        mistakes.extend(cursor.map(|cursor| format!("cursor: {} is no job's id", plain_name(cursor))));
        Self {
            mistakes,
            types: fields.all("type").filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect(),
            statuses: fields.all("status").filter_map(|word| word.parse().ok()).collect(),
            text: fields.first("text").unwrap_or_default().trim().to_owned(),
            from: fields.first("from").unwrap_or_default().to_owned(),
            until: fields.first("until").unwrap_or_default().to_owned(),
            cursor: fields.first("cursor").and_then(|cursor| cursor.parse().ok()),
        }
    }

    /// What the store is asked.
    pub(super) fn search(&self) -> JobSearch {
        JobSearch {
            types: self.types.clone(),
            statuses: self.statuses.clone(),
            text: (!self.text.is_empty()).then(|| self.text.clone()),
            from: time(&self.from),
            until: time(&self.until),
            cursor: self.cursor.map(JobId),
            limit: LIMIT,
            payloads: false,
        }
    }

    /// The address of the list, from `cursor` on.
    pub(super) fn address(&self, cursor: Option<i64>) -> String {
        let mut pairs: Vec<(&str, String)> = self.types.iter().map(|name| ("type", name.clone())).collect();
        pairs.extend(self.statuses.iter().map(|status| ("status", status.to_string())));
        for (key, value) in [("text", &self.text), ("from", &self.from), ("until", &self.until)] {
            if !value.is_empty() {
                pairs.push((key, value.clone()));
            }
        }
        pairs.extend(cursor.map(|cursor| ("cursor", cursor.to_string())));
        let query: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={}", encoded(value))).collect();
        if query.is_empty() { "/jobs".to_owned() } else { format!("/jobs?{}", query.join("&")) }
    }

    /// The filter as fields of a form.
    pub(super) fn hidden(&self) -> Markup {
        html! {
            @for name in &self.types { input type="hidden" name="type" value=(name); }
            @for status in &self.statuses { input type="hidden" name="status" value=(status); }
            @for (key, value) in [("text", &self.text), ("from", &self.from), ("until", &self.until)] {
                @if !value.is_empty() { input type="hidden" name=(key) value=(value); }
            }
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self { cursor: self.cursor, ..Self::default() }
    }
}

fn time(text: &str) -> Option<Timestamp> {
    let formats = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"];
    let read = formats.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    let read =
        read.map(|time| time.and_utc()).or_else(|| DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc()));
    read.map(|time| Timestamp::from_unix_millis(time.timestamp_millis()))
}

/// Everything that the list shows.
#[derive(Clone, Copy)]
pub(super) struct JobsView<'a> {
    pub(super) filter: &'a Filter,
    pub(super) found: &'a Found,
    /// The types that there are.
    pub(super) types: &'a [String],
    pub(super) now: Timestamp,
}

/// The form above the list, and what may be enqueued.
pub(super) fn head(view: JobsView<'_>, visitor: &Visitor) -> Markup {
    let filter = view.filter;
    html! {
        div.panel-head {
            h1 { "Jobs" }
            @if visitor.operator {
                details.enqueue { summary { "Enqueue jobs" } (enqueue(view.types, visitor, &Draft::default(), None)) }
            }
        }
        form.filter method="get" action="/jobs" role="search" aria-label="Filter the jobs" {
            label { "Flow" select name="type" {
                option value="" { "all" }
                @for name in view.types { option value=(name) selected[filter.types.contains(name)] { (plain_name(name)) } }
                @for name in filter.types.iter().filter(|name| !view.types.contains(name)) { option value=(name) selected { (plain_name(name)) } }
            } }
            fieldset.statuses {
                legend { "Status" }
                @for status in JobStatus::ALL {
                    label.check { input type="checkbox" name="status" value=(status) checked[filter.statuses.contains(&status)]; (badge(status)) }
                }
            }
            label.text { "Text or id" input type="search" name="text" value=(filter.text) placeholder="identifier, error, id" maxlength="200"; }
            label { "Created from (UTC)" input type="datetime-local" name="from" value=(filter.from); }
            label { "until (UTC)" input type="datetime-local" name="until" value=(filter.until); }
            div.buttons { button type="submit" { "Filter" } @if !filter.is_empty() { a.button.quiet href="/jobs" { "Clear" } } }
        }
    }
}

/// The list itself.
pub(super) fn list(view: JobsView<'_>, visitor: &Visitor) -> Part {
    let (found, filter) = (view.found, view.filter);
    let body = html! {
        @if !filter.mistakes.is_empty() {
            @for mistake in &filter.mistakes { p.notice.bad role="alert" { (mistake) } }
        } @else if found.rows.is_empty() {
            p.muted.empty {
                @if found.looked_down_to.is_some() { "Nothing among the jobs that were looked at." }
                @else if filter.is_empty() && filter.cursor.is_none() { "There are no jobs yet." }
                @else { "No job is as the filter says." }
            }
        } @else {
            form method="get" action="/jobs/bulk" #bulk {
                (filter.hidden())
                @if visitor.operator {
                    div.bulk {
                        span { "Chosen jobs: " }
                        button.small type="submit" name="do" value="cancel" { "Cancel…" }
                        button.small type="submit" name="do" value="retry" { "Retry…" }
                        span.muted { "or all as filtered: " }
                        button.small.quiet type="submit" name="do" value="cancel-all" { "Cancel all…" }
                        button.small.quiet type="submit" name="do" value="retry-all" { "Retry all…" }
                    }
                }
                div.scroll {
                    table.jobs {
                        thead { tr {
                            @if visitor.operator { th.choose scope="col" { span.hidden { "Choose" } } }
                            th.status scope="col" { "Status" } th.job scope="col" { "Job" } th scope="col" { "What of it" } th.when scope="col" { "Created" }
                        } }
                        tbody { @for row in &found.rows { (job_row(row, view.now, visitor.operator)) } }
                    }
                }
            }
        }
        nav.pages aria-label="Pages" {
            @if let Some(down) = found.looked_down_to.filter(|_| filter.mistakes.is_empty()) { span.muted { "Looked at every job down to " (down) "." } }
            @if filter.cursor.is_some() { a.button href=(filter.address(None)) { "Newest" } }
            @if let Some(cursor) = found.next_cursor.filter(|_| filter.mistakes.is_empty()) { a.button rel="next" href=(filter.address(Some(cursor.0))) { "Older" } }
        }
    };
    Part { id: "jobs", class: "panel", body }
}

fn job_row(row: &JobRow, now: Timestamp, can_choose: bool) -> Markup {
    html! {
        tr {
            @if can_choose { td.choose { input type="checkbox" name="id" value=(row.id) aria-label={ "choose job " (row.id) }; } }
            td.status { (badge(row.status)) }
            td.job {
                a href={ "/jobs/" (row.id) } { (name(&row.identifier)) }
                div.muted { span { (row.id) } " " (name(&row.job_type)) @if row.attempt.0 > 1 { ", attempt " (row.attempt) } }
            }
            td.what { (what(row, now)) }
            td.when { (ago(row.created_time, now)) }
        }
    }
}

/// The one thing about a job that matters most in its present status.
pub(super) fn what(row: &JobRow, now: Timestamp) -> Markup {
    let took = row.execution_ms.map(duration_of);
    let when = html! { @if let Some(time) = row.completed_time { " " (ago(time, now)) } };
    match row.status {
        JobStatus::Pending if row.waits_for_others() => html! { "waits for other jobs" },
        JobStatus::Pending if row.run_at > now => html! {
            @if row.attempt.0 > 0 { "tried again " (ago(row.run_at, now)) } @else { "due " (ago(row.run_at, now)) }
            @if let Some(error) = &row.error { (reason(error)) }
        },
        JobStatus::Pending => html! { "has waited " (since(row.run_at, now)) },
        JobStatus::InQueue => html! { "claimed" @if let Some(time) = row.queued_time { " " (ago(time, now)) } },
        JobStatus::Progress => html! {
            @if row.cancel_requested_time.is_some() { span.badge.cancelled { "cancelling" } " " }
            @if let Some(progress) = row.progress { (meter(progress, &format!("job {}", row.id))) span.percent { (progress) "%" } " " }
            @if let Some(time) = row.started_time { "for " (since(time, now)) }
            @if let Some(message) = &row.status_message { div.muted { (remark(message, 160)) } }
        },
        JobStatus::Completed => html! { @if let Some(took) = took { "took " (took) } },
        JobStatus::Error => html! {
            (reason(row.error.as_deref().unwrap_or_default()))
            div.muted { "failed" (when) @if let Some(took) = took { ", after " (took) } }
        },
        JobStatus::Cancelled => html! {
            @if let Some(error) = &row.error { (reason(error)) }
            div.muted { "cancelled" (when) @if let Some(took) = took { ", after " (took) } @else { ", before it started" } }
        },
    }
}

/// Why something failed: its first line, and its last.
fn reason(error: &str) -> Markup {
    let (first, last) = ends(error);
    html! {
        div.reason { (first) }
        @if let Some(last) = last { p.last-line { code { (last) } } }
    }
}

/// What somebody wants to enqueue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) flow: String,
    pub(super) identifiers: String,
    pub(super) priority: String,
    pub(super) run_at: String,
    pub(super) maximum_attempts: String,
    pub(super) unique_key: String,
    pub(super) payload: String,
}

impl Draft {
    /// What was sent.
    pub(super) fn of(fields: &Fields) -> Self {
        let field = |name| fields.first(name).unwrap_or_default().to_owned();
        Self {
            flow: field("type"),
            identifiers: field("identifiers"),
            priority: field("priority"),
            run_at: field("run_at"),
            maximum_attempts: field("maximum_attempts"),
            unique_key: field("unique_key"),
            payload: field("payload"),
        }
    }

    /// When it is to run: a time of the form, UTC; `None` where it is to run at once.
    ///
    /// # Errors
    /// A sentence, where it is no time.
    pub(super) fn due(&self) -> Result<Option<Timestamp>, String> {
        match self.run_at.trim() {
            "" => Ok(None),
            text => time(text).map(Some).ok_or_else(|| format!("“not before” is no time: {}", plain_name(text))),
        }
    }
}

/// The form to enqueue jobs; `refused` is why the last try was not taken.
pub(super) fn enqueue(types: &[String], visitor: &Visitor, draft: &Draft, refused: Option<&str>) -> Markup {
    html! {
        form.enqueue-form method="post" action="/jobs" {
            (csrf(visitor))
            @if let Some(refused) = refused { p.notice.bad role="alert" { (refused) } }
            label { "Flow" select name="type" required {
                @for name in types { option value=(name) selected[*name == draft.flow] { (plain_name(name)) } }
            } }
            label.text { "Identifiers, one a line" textarea name="identifiers" rows="3" required spellcheck="false" { (draft.identifiers) } }
            label { "Priority" input type="number" name="priority" value=(if draft.priority.is_empty() { "0" } else { &draft.priority }); }
            label { "Not before (UTC)" input type="datetime-local" name="run_at" value=(draft.run_at); }
            label { "Attempts" input type="number" name="maximum_attempts" min="1" placeholder="as the flow says" value=(draft.maximum_attempts); }
            label { "Unique key" input type="text" name="unique_key" maxlength="255" value=(draft.unique_key); }
            label.text { "Payload (JSON)" textarea name="payload" rows="2" spellcheck="false" { (draft.payload) } }
            div.buttons { button type="submit" { "Enqueue" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_holds_the_filter() {
        let address = "type=A_B&status=ERROR&status=PENDING&text=a%26b+c&from=2026-11-25T03%3A00&cursor=7";
        let filter = Filter::of(&Fields::parse(address));
        assert_eq!(
            (filter.types.as_slice(), filter.text.as_str(), filter.cursor),
            (&["A_B".to_owned()][..], "a&b c", Some(7))
        );
        assert_eq!(filter.statuses, [JobStatus::Error, JobStatus::Pending]);
        let again = filter.address(Some(7));
        assert_eq!(Filter::of(&Fields::parse(again.split_once('?').unwrap().1)), filter);
        assert_eq!(filter.search().from, Some(Timestamp::from_unix_millis(1_795_575_600_000)));
        assert_eq!(Filter::default().address(None), "/jobs");
    }

    #[test]
    fn nonsense_in_the_address_is_told_of() {
        let filter = Filter::of(&Fields::parse("status=NOPE&from=yesterday&until=&cursor=x&%zz=1&&="));
        let told: Vec<&str> = filter.mistakes.iter().map(String::as_str).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("NOPE") && told[1].starts_with("from: yesterday is no time"), "{told:?}");
        assert_eq!(filter.search(), JobSearch { limit: LIMIT, ..JobSearch::default() });
        assert!(Filter::of(&Fields::parse("status=&from=&until=&type=")).mistakes.is_empty());
    }
}
