//! Cancelling or retrying many jobs: a page that says how many, and of which kinds, before anything is done.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::Visitor;
use super::form::Fields;
use super::jobs::Filter;
use super::parts::{badge, csrf, name, plain_name};
use crate::domain::{JobId, JobStatus};
use crate::http::words::thousands;
use crate::store::{Error, JobRow, JobSearch, Store};

/// So many jobs are taken at once, at the most.
pub(super) const MOST: usize = 10_000;
/// So many of them are named on the page.
const NAMED: usize = 12;
/// Jobs of one look.
const AT_ONCE: u32 = 1000;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Cancel,
    Retry,
}

impl Deed {
    /// The deed that a form names, and whether it means all jobs of the filter.
    pub(super) fn of(word: &str) -> Option<(Self, bool)> {
        match word {
            "cancel" => Some((Self::Cancel, false)),
            "cancel-all" => Some((Self::Cancel, true)),
            "retry" => Some((Self::Retry, false)),
            "retry-all" => Some((Self::Retry, true)),
            _ => None,
        }
    }

    /// The statuses in which it is possible.
    pub(super) const fn statuses(self) -> &'static [JobStatus] {
        match self {
            Self::Cancel => &[JobStatus::Pending, JobStatus::InQueue, JobStatus::Progress],
            Self::Retry => &[JobStatus::Error, JobStatus::Cancelled],
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Retry => "retry",
        }
    }
}

/// The jobs that a deed means.
pub(super) struct Chosen {
    /// Those in which it is possible.
    pub(super) rows: Vec<JobRow>,
    /// How many were chosen in which it is not.
    pub(super) others: usize,
    /// Whether there are more than [`MOST`].
    pub(super) more: bool,
}

/// What can't be read of the fields that say which jobs are meant.
pub(super) fn mistakes(fields: &Fields) -> Vec<String> {
    let mut mistakes = Filter::of(fields).mistakes;
    let upto = fields.first("upto").filter(|id| id.parse::<i64>().is_err());
    mistakes.extend(upto.map(|id| format!("{} is no job's id", plain_name(id))));
    mistakes
}

/// The jobs that the form means: the chosen ones, or all that are as the filter says.
pub(super) async fn chosen(store: &Store, deed: Deed, all: bool, fields: &Fields) -> Result<Chosen, Error> {
    let mut chosen = Chosen { rows: Vec::new(), others: 0, more: false };
    if !all {
        let mut ids: Vec<i64> = fields.all("id").filter_map(|id| id.parse().ok()).take(MOST).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            match store.job(JobId(id)).await? {
                Some(row) if deed.statuses().contains(&row.status) => chosen.rows.push(row),
                _ => chosen.others += 1,
            }
        }
        return Ok(chosen);
    }
    let filter = Filter::of(fields);
    let wanted = |status: &JobStatus| filter.statuses.is_empty() || filter.statuses.contains(status);
    let statuses: Vec<JobStatus> = deed.statuses().iter().filter(|status| wanted(status)).copied().collect();
    if statuses.is_empty() {
        return Ok(chosen);
    }
    // What came after the page was shown was not meant.
    let newest = fields.first("upto").and_then(|id| id.parse().ok()).map(|id: i64| JobId(id.saturating_add(1)));
    let mut search = JobSearch { statuses, limit: AT_ONCE, cursor: newest, ..filter.search() };
    loop {
        let found = store.search(&search).await?;
        chosen.rows.extend(found.rows);
        search.cursor = found.next_cursor;
        if chosen.rows.len() > MOST {
            chosen.rows.truncate(MOST);
            chosen.more = true;
        }
        if search.cursor.is_none() || chosen.more {
            return Ok(chosen);
        }
    }
}

/// The address of the page that it leads back to: of the only job, if it was asked for there, or of the list.
pub(super) fn back(fields: &Fields) -> String {
    let ids: Vec<&str> = fields.all("id").collect();
    match (fields.first("back"), ids.as_slice()) {
        (Some("job"), [id]) if id.parse::<i64>().is_ok() => format!("/jobs/{id}"),
        _ => Filter::of(fields).address(None),
    }
}

/// The page that asks.
pub(super) fn confirm(deed: Deed, all: bool, chosen: &Chosen, fields: &Fields, visitor: &Visitor) -> Markup {
    let count = chosen.rows.len();
    let jobs = if count == 1 { "1 job".to_owned() } else { format!("{} jobs", thousands(count as u64)) };
    let mut kinds: BTreeMap<(&str, JobStatus), usize> = BTreeMap::new();
    for row in &chosen.rows {
        *kinds.entry((&row.job_type, row.status)).or_default() += 1;
    }
    let filter = Filter::of(fields);
    let back = back(fields);
    let to_list = back == filter.address(None);
    let running = chosen.rows.iter().filter(|row| row.status == JobStatus::Progress).count();
    html! {
        section.panel.confirm {
            @if count == 0 {
                h1 { "Nothing to " (deed.word()) }
                p {
                    @if all { "No job that is as the filter says" } @else if chosen.others == 0 { "No job was chosen." }
                    @else if chosen.others == 1 { "The chosen job" } @else { "None of the chosen jobs" }
                    @if all || chosen.others > 0 {
                        @if chosen.others == 1 { " can't be " } @else { " can be " }
                        @match deed { Deed::Cancel => "cancelled: what has ended can't.", Deed::Retry => "retried: only ERROR and CANCELLED jobs can." }
                    }
                }
                a.button href=(back) { @if to_list { "Back to the list" } @else { "Back to the job" } }
            } @else {
                h1 { @match deed { Deed::Cancel => "Cancel ", Deed::Retry => "Retry " } (jobs) "?" }
                @match deed {
                    Deed::Cancel if running > 0 => p.bad { "The " (if running == 1 { "command" } else { "commands" }) " of " (running) @if running == 1 { " running job" } @else { " running jobs" } " will be ended: SIGTERM, then SIGKILL after the flow's kill_grace." },
                    Deed::Cancel => p { @if count == 1 { "It does not run." } @else { "None of them runs." } },
                    Deed::Retry => p { "Each goes back to PENDING with a fresh budget of attempts; its runs and logs are kept." },
                }
                @if chosen.more { p.bad { "More than " (thousands(MOST as u64)) " are as the filter says: the newest " (thousands(MOST as u64)) " are taken now." } }
                @if chosen.others > 0 { p.muted { (chosen.others) " of the chosen can't be, and are left alone." } }
                ul.kinds { @for ((flow, status), count) in &kinds { li { (thousands(*count as u64)) " " (badge(*status)) " " (name(flow)) } } }
                p.muted { @for row in chosen.rows.iter().take(NAMED) { span.one { (row.id) " " (name(&row.identifier)) } " " } @if count > NAMED { "and " (thousands((count - NAMED) as u64)) " more" } }
                form method="post" action="/jobs/bulk" {
                    (csrf(visitor))
                    input type="hidden" name="do" value={ (deed.word()) @if all { "-all" } };
                    (filter.hidden())
                    @if !to_list { input type="hidden" name="back" value="job"; }
                    @if all {
                        input type="hidden" name="upto" value=(chosen.rows.first().map_or(0, |row| row.id.0));
                    } @else {
                        @for row in &chosen.rows { input type="hidden" name="id" value=(row.id); }
                    }
                    div.buttons {
                        button class=(if deed == Deed::Cancel { "danger" } else { "" }) type="submit" { @match deed { Deed::Cancel => "Cancel ", Deed::Retry => "Retry " } (jobs) }
                        a.button.quiet href=(back) { @if count == 1 { "Leave it" } @else { "Leave them" } }
                    }
                }
            }
        }
    }
}
