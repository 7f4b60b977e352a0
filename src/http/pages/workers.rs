//! The workers: who has ever used this database, and who of them lives.

use maud::{Markup, html};

use super::overview::silence;
use super::parts::{ago, icon, name};
use crate::domain::Timestamp;
use crate::store::{OpenRow, WorkerRow};

/// A table of the workers; `open` is what they have claimed.
pub(super) fn workers_table(workers: &[WorkerRow], open: Option<&[OpenRow]>, now: Timestamp) -> Markup {
    let labelled = workers.iter().any(|worker| !worker.labels.is_empty());
    html! {
        @if workers.is_empty() { p.muted { "No worker has ever used this database." } } @else {
            div.scroll tabindex="0" role="region" aria-label="Workers" {
                table {
                    thead { tr {
                        th scope="col" { "Worker" } th scope="col" { "State" } th scope="col" { "Last sign of life" }
                        @if open.is_some() { th.number scope="col" { "Open jobs" } }
                        @if labelled { th scope="col" { "Labels" } }
                        th scope="col" { "Host" } th scope="col" { "Version" } th scope="col" { "Up since" }
                    } }
                    tbody {
                        @for worker in workers {
                            tr {
                                th scope="row" { (name(&worker.worker_id)) }
                                td { (state(worker, now)) }
                                td { (ago(worker.heartbeat_time, now)) }
                                @if let Some(open) = open {
                                    td.number { (open.iter().filter(|row| row.worker_id.as_deref() == Some(&worker.worker_id)).count()) }
                                }
                                @if labelled { td { (worker.labels) } }
                                td { (name(&worker.hostname)) }
                                td { (name(&worker.version)) }
                                td { (ago(worker.started_time, now)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn state(worker: &WorkerRow, now: Timestamp) -> Markup {
    if silence(worker, now).is_some() {
        return html! { span.badge.attention { (icon("attention")) "silent" } };
    }
    let (class, word) = match worker.state.as_str() {
        "ACTIVE" => ("completed", "active"),
        "DRAINING" => ("paused", "draining"),
        "STOPPED" => ("cancelled", "stopped"),
        other => ("pending", other),
    };
    html! { span class={ "badge " (class) } { (icon(class)) (name(word)) } }
}
