//! The jobs that are enqueued by the clock: when each entry fired last, when it fires next, and what it does about fires
//! that were missed or come too soon.

use maud::{Markup, html};

use super::parts::{ago, name};
use crate::config::Config;
use crate::domain::recurring::{CatchUp, Overlap};
use crate::domain::{JobId, Timestamp};
use crate::store::RecurringRow;

/// An entry of the configuration, with what the database knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    flow: String,
    name: String,
    /// The cron line and its time zone.
    schedule: (String, &'static str),
    catch_up: CatchUp,
    overlap: Overlap,
    /// The last fire that enqueued a job, and that job, which may have been removed since.
    last: Option<(Timestamp, Option<JobId>)>,
    next: Option<Timestamp>,
}

/// The entries of the configuration, in the order of their flows.
pub(super) fn entries(config: &Config, rows: &[RecurringRow], now: Timestamp) -> Vec<Entry> {
    let entries = config.flows.values().flat_map(|flow| flow.recurring.iter().map(move |entry| (&flow.flow, entry)));
    let entry = |(flow, entry): (&crate::domain::FlowType, &crate::config::RecurringConfig)| {
        let row = rows.iter().find(|row| row.job_type == flow.as_str() && row.name == entry.name);
        Entry {
            flow: flow.as_str().to_owned(),
            name: entry.name.clone(),
            schedule: (entry.schedule.line().to_owned(), entry.schedule.timezone()),
            catch_up: entry.catch_up,
            overlap: entry.overlap,
            last: row.and_then(|row| Some((row.last_fire_time?, row.last_job))),
            next: entry.schedule.next_fire(row.map_or(now, |row| row.fired_until.max(now))),
        }
    };
    entries.map(entry).collect()
}

/// A table of them.
pub(super) fn table(entries: &[Entry], now: Timestamp) -> Markup {
    html! {
        h2 { "Recurring jobs" }
        div.scroll tabindex="0" role="region" aria-label="Recurring jobs" {
            table {
                thead { tr {
                    th scope="col" { "Entry" } th scope="col" { "Flow" } th scope="col" { "Schedule" } th scope="col" { "Last fire" }
                    th scope="col" { "Next fire" } th scope="col" { "Missed fires" } th scope="col" { "While the last job is open" }
                } }
                tbody { @for entry in entries { (row(entry, now)) } }
            }
        }
    }
}

fn row(entry: &Entry, now: Timestamp) -> Markup {
    let (line, timezone) = &entry.schedule;
    html! {
        tr {
            th scope="row" { (name(&entry.name)) }
            td { a href=(super::overview::jobs_of(&entry.flow, None)) { (name(&entry.flow)) } }
            td { code { (line) } " " span.muted { (timezone) } }
            td { @match entry.last {
                None => span.muted { "never" },
                Some((time, None)) => (ago(time, now)),
                Some((time, Some(job))) => { (ago(time, now)) " " a href={ "/jobs/" (job) } { "job " (job) } },
            } }
            td { @match entry.next { Some(time) => (ago(time, now)), None => span.muted { "never again" } } }
            td { @match entry.catch_up {
                CatchUp::Skip => "left out", CatchUp::One => "the last is made up for", CatchUp::All => "each is made up for",
            } }
            td { @match entry.overlap { Overlap::Allow => "enqueues another", Overlap::Skip => "enqueues nothing" } }
        }
    }
}
