//! Why a job has not been started, and the jobs that it waits for.

use maud::{Markup, html};

use super::parts::{ago, badge, count, name};
use crate::domain::labels::Labels;
use crate::domain::{JobId, JobStatus, Timestamp};
use crate::http::{App, Problem};
use crate::store::{Count, JobRow, Pause, Store};

/// So many of the jobs that one waits for are shown.
const MOST: usize = 20;

/// Why a job that is due has not been started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Paused(Pause),
    /// No flow of this worker has its type.
    NoFlow,
    NoWorker,
    /// No living worker has these labels.
    NobodyFits(Labels),
    /// So many jobs are before it.
    Turn(Count),
}

/// A job that another one waits for, or has waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Awaited {
    job: JobId,
    /// `None` where it has been removed.
    identifier: Option<String>,
    /// The status that it ended with, or DELETED, or the one that it has.
    status: String,
    ended: bool,
}

/// Why it waits; `None` where it does not, or is not due.
pub(super) async fn why(app: &App, job: &JobRow, now: Timestamp) -> Result<Option<Wait>, Problem> {
    if job.status != JobStatus::Pending || job.run_at > now {
        return Ok(None);
    }
    let store = app.store();
    if let Some(pause) = store.pause_of(&job.job_type).await? {
        return Ok(Some(Wait::Paused(pause)));
    }
    let config = app.config();
    let flow = config.flows.iter().find_map(|(name, flow)| (name.as_str() == job.job_type).then_some(flow));
    if flow.is_none() && !config.flows.is_empty() {
        return Ok(Some(Wait::NoFlow));
    }
    let alive = store.labels_alive().await?;
    if alive.is_empty() {
        return Ok(Some(Wait::NoWorker));
    }
    let unfit = flow.filter(|flow| !alive.iter().any(|labels| labels.satisfy(&flow.requires)));
    Ok(Some(match unfit {
        Some(flow) => Wait::NobodyFits(flow.requires.clone()),
        None => Wait::Turn(store.ahead_of(job, now).await?),
    }))
}

/// The jobs that this one waits for, the first of them, and how many more there are.
pub(super) async fn awaited(store: &Store, job: JobId) -> Result<(Vec<Awaited>, usize), Problem> {
    let mut all = store.dependencies(job).await?;
    // What has not ended is what matters.
    all.sort_by_key(|one| one.ended.is_some());
    let more = all.len().saturating_sub(MOST);
    all.truncate(MOST);
    let ids: Vec<JobId> = all.iter().map(|one| one.after).collect();
    let rows = store.jobs(&ids).await?;
    let shown = all.into_iter().map(|one| {
        let row = rows.iter().find(|row| row.id == one.after);
        let ended = one.ended.is_some();
        let status =
            one.ended.or_else(|| row.map(|row| row.status.to_string())).unwrap_or_else(|| "DELETED".to_owned());
        Awaited { job: one.after, identifier: row.map(|row| row.identifier.clone()), status, ended }
    });
    Ok((shown.collect(), more))
}

/// The sentence.
pub(super) fn sentence(wait: &Wait, now: Timestamp) -> Markup {
    html! {
        @match wait {
            Wait::Paused(Pause { since, by }) => {
                "Its flow is paused"
                @if let Some(by) = by { ", by " (name(by)) }
                @if let Some(since) = since { ", " (ago(*since, now)) }
                ": nothing of it is started."
            },
            Wait::NoFlow => "No flow of this worker runs its type.",
            Wait::NoWorker => "No worker is alive, so nothing is started.",
            Wait::NobodyFits(labels) => { "No living worker has what its flow requires: " (labels) "." },
            // All that were looked at are delayed, and what is behind them was not.
            Wait::Turn(Count { at_least: 0, or_more: true }) => "Others may be before it.",
            Wait::Turn(Count { at_least: 0, or_more: false }) => "It is the next of its flow.",
            Wait::Turn(Count { at_least: 1, or_more: false }) => "1 job of its flow is before it.",
            Wait::Turn(ahead) => {
                @if ahead.or_more { "More than " }
                (count(Count { or_more: false, ..*ahead })) " jobs of its flow are before it."
            },
        }
    }
}

/// The jobs that one waits for, each with where it stands.
pub(super) fn list(awaited: &[Awaited], more: usize, waits: bool) -> Markup {
    html! {
        @if !awaited.is_empty() {
            div.awaited {
                h2 { @if waits { "Waits for" } @else { "Waited for" } }
                ul {
                    @for one in awaited {
                        li {
                            @match one.status.parse::<JobStatus>() { Ok(status) => (badge(status)), Err(_) => span.badge { (name(&one.status)) } }
                            @match &one.identifier {
                                Some(identifier) => a href={ "/jobs/" (one.job) } { (one.job) " " (name(identifier)) },
                                None => span.muted { (one.job) ", which has been removed" },
                            }
                            @if waits && !one.ended && one.status == "COMPLETED" { span.muted { "is looked at with the next claim" } }
                        }
                    }
                    @if more > 0 { li.muted { "and " (more) " more" } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_a_sentence() {
        let now = Timestamp::from_unix_millis(60_000);
        let said = |wait: Wait| {
            let text = sentence(&wait, now).into_string();
            text.split('<').map(|part| part.rsplit_once('>').map_or(part, |(_, text)| text)).collect::<String>()
        };
        let pause = Pause { since: Some(Timestamp::from_unix_millis(0)), by: Some("<b>ops".to_owned()) };
        assert_eq!(said(Wait::Paused(pause)), "Its flow is paused, by &lt;b&gt;ops, 1m ago: nothing of it is started.");
        assert_eq!(
            said(Wait::Paused(Pause { since: None, by: None })),
            "Its flow is paused: nothing of it is started."
        );
        let labels: Labels = ["gpu".parse().unwrap()].into_iter().collect();
        assert_eq!(said(Wait::NobodyFits(labels)), "No living worker has what its flow requires: gpu.");
        let turn = |at_least, or_more| said(Wait::Turn(Count { at_least, or_more }));
        assert_eq!(turn(0, false), "It is the next of its flow.");
        assert_eq!(turn(1, false), "1 job of its flow is before it.");
        assert_eq!(turn(1000, true), "More than 1000 jobs of its flow are before it.");
    }
}
