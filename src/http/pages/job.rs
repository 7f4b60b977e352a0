//! One job: where it stands, the way it went, each attempt, its error in full, its output, everything in its row.

use maud::{Markup, html};

use super::jobs::what;
use super::log_tail::Tail;
use super::parts::{ago, badge, button, exact, icon, meter, name, plain_name, remark, said, since};
use super::waits::{self, Awaited, Wait};
use super::{Part, Visitor};
use crate::domain::{JobStatus, Timestamp};
use crate::http::words::{duration_of, size, thousands};
use crate::store::{EventRow, JobRow, RunRow};

/// Of a job that was tried without end, so many attempts and events are shown: the last ones.
const MOST: usize = 200;
/// So much of a payload or an error is shown, in characters; the API has all of it.
const MOST_TEXT: usize = 20_000;

/// Everything that is shown of a job.
#[derive(Clone, Copy)]
pub(super) struct JobView<'a> {
    pub(super) job: &'a JobRow,
    pub(super) runs: &'a [RunRow],
    pub(super) events: &'a [EventRow],
    /// Why it has not been started; `None` where it has been, or is not due.
    pub(super) wait: Option<&'a Wait>,
    /// The jobs that it waits for, and how many more there are.
    pub(super) awaited: (&'a [Awaited], usize),
    /// How often it may be tried; `None` where neither its row nor a flow says so.
    pub(super) maximum_attempts: Option<u32>,
    pub(super) now: Timestamp,
}

/// The parts that change while the page is open.
pub(super) fn parts(view: JobView<'_>, visitor: &Visitor) -> Vec<Part> {
    let mut parts = vec![Part { id: "job", class: "job-head", body: head(view, visitor) }];
    if let Some(error) = view.job.error.as_deref().filter(|error| !error.trim().is_empty()) {
        let title = match view.job.status {
            JobStatus::Cancelled => "Why it was cancelled",
            JobStatus::Pending => "Error of the attempt before",
            JobStatus::InQueue | JobStatus::Progress | JobStatus::Completed | JobStatus::Error => "Error",
        };
        let calm = view.job.status == JobStatus::Cancelled;
        let body = html! { h2 { (title) } pre.error.calm[calm] tabindex="0" { (cut(&said(error))) } };
        parts.push(Part { id: "error", class: "panel", body });
    }
    parts
}

/// Those that stand below the output.
pub(super) fn later_parts(view: JobView<'_>) -> Vec<Part> {
    vec![
        Part { id: "path", class: "panel", body: path(view) },
        Part { id: "attempts", class: "panel", body: attempts(view) },
    ]
}

/// What does not change.
pub(super) fn rest(view: JobView<'_>) -> Markup {
    html! {
        section.panel { h2 { "Payload" } @match &view.job.payload {
            Some(payload) => pre.payload tabindex="0" { (cut(&pretty(payload))) },
            None => p.muted { "none" },
        } }
        section #row.panel { h2 { "Row" } (row(view.job, view.now)) }
    }
}

fn head(view: JobView<'_>, visitor: &Visitor) -> Markup {
    let (job, now) = (view.job, view.now);
    let of = format!("job {}", job.id);
    html! {
        p.crumbs { a href=(super::overview::jobs_of(&job.job_type, None)) { (name(&job.job_type)) } }
        h1 { span.muted { "#" (job.id) } " " (name(&job.identifier)) }
        div.state {
            (badge(job.status))
            @match (job.attempt.0, view.maximum_attempts) {
                (0, None) => {},
                (0, Some(maximum)) => span { "at most " (maximum) @if maximum == 1 { " attempt" } @else { " attempts" } },
                (attempt, None) => span { "attempt " (attempt) },
                (attempt, Some(maximum)) => span { "attempt " (attempt) " of " (maximum) },
            }
            @if let Some(worker) = &job.worker_id { span { "on " (name(worker)) } }
            @if job.cancel_requested_time.is_some() && !job.status.is_final() { span.badge.cancelled { (icon("cancelled")) "cancelling" } }
            @if visitor.operator {
                @match job.status {
                    JobStatus::Pending => (button(visitor, &format!("/jobs/{}/cancel", job.id), "Cancel", "danger", &of)),
                    // What runs may have run for hours: it is asked first.
                    JobStatus::InQueue | JobStatus::Progress => a.button.danger href={ "/jobs/bulk?do=cancel&back=job&id=" (job.id) } aria-label={ "Cancel " (of) "…" } { "Cancel…" },
                    JobStatus::Completed | JobStatus::Error | JobStatus::Cancelled => {},
                }
            }
        }
        @if job.status == JobStatus::Progress {
            div.big-progress {
                @if let Some(progress) = job.progress { (meter(progress, &of)) span.percent { (progress) "%" } }
                @if let Some(time) = job.started_time { span { "for " (since(time, now)) } }
                @if let Some(message) = &job.status_message { span { (remark(message, 300)) } }
                @if let Some(time) = job.heartbeat_time { span.muted { "confirmed " (ago(time, now)) } }
            }
        } @else {
            div.summary { (what(job, now)) @if let Some(code) = job.exit_code { span.muted { " exit code " (code) } } }
            @if let Some(wait) = view.wait { p.wait { (waits::sentence(wait, now)) } }
            // Not where Cancel was, which somebody may be about to press.
            @if visitor.operator && matches!(job.status, JobStatus::Error | JobStatus::Cancelled) {
                div.again { (button(visitor, &format!("/jobs/{}/retry", job.id), "Retry", "", &of)) }
            }
        }
        (waits::list(view.awaited.0, view.awaited.1, job.status == JobStatus::Pending))
    }
}

/// The statuses that the job went through, with the times between them.
fn path(view: JobView<'_>) -> Markup {
    let shown = view.events.len().saturating_sub(MOST);
    let mut before = Some(view.job.created_time).filter(|_| shown == 0);
    html! {
        h2 { "Path" }
        ol.path {
            @if shown == 0 { li { (badge(JobStatus::Pending)) span { (exact(view.job.created_time)) } span.muted { "created " (ago(view.job.created_time, view.now)) } } }
            @else { li.muted { (shown) " earlier changes are left out" } }
            @for event in view.events.iter().skip(shown) {
                @let gap = before.replace(event.time).map(|before| event.time.since(before));
                li {
                    @if let Some(gap) = gap { span.gap { "+" (duration_of(i64::try_from(gap.as_millis()).unwrap_or(i64::MAX))) } }
                    @match event.to_status.parse::<JobStatus>() { Ok(status) => (badge(status)), Err(_) => (name(&event.to_status)) }
                    span { (exact(event.time)) }
                    span.muted { (ago(event.time, view.now)) }
                    @if event.attempt.0 > 1 { span { "attempt " (event.attempt) } }
                    @if let Some(worker) = &event.worker_id { span { (name(worker)) } }
                    @if let Some(message) = &event.message { span.muted { (remark(message, 300)) } }
                }
            }
            @if !view.job.status.is_final() && let Some(last) = before {
                li.muted { "in this status for " (since(last, view.now)) }
            }
        }
    }
}

fn attempts(view: JobView<'_>) -> Markup {
    let skipped = view.runs.len().saturating_sub(MOST);
    html! {
        h2 { "Attempts" }
        @if view.runs.is_empty() { p.muted { (no_command(view.job)) } } @else {
            @if skipped > 0 { p.muted { (skipped) " earlier attempts are left out" } }
            div.scroll tabindex="0" role="region" aria-label="Attempts" {
                table {
                    thead { tr {
                        th.number scope="col" { "#" } th scope="col" { "Outcome" } th.number scope="col" { "Exit" } th scope="col" { "Output" }
                        th scope="col" { "Started" } th.number scope="col" { "Took" } th.number scope="col" { "CPU user / system" } th.number scope="col" { "Peak memory" } th.number scope="col" { "Read / written" }
                        th scope="col" { "Worker" } th.number scope="col" { "Pid" }
                    } }
                    tbody { @for run in view.runs.iter().skip(skipped).rev() { (attempt(run, view.now)) } }
                }
            }
        }
    }
}

fn attempt(run: &RunRow, now: Timestamp) -> Markup {
    let log = |stream: &str| download(run, stream);
    html! {
        tr {
            th.number scope="row" { (run.attempt) }
            td { @match run.outcome.as_deref() {
                None => span.badge.progress { (icon("progress")) "running" },
                Some("COMPLETED") => span.badge.completed { (icon("completed")) "COMPLETED" },
                Some("CANCELLED") => span.badge.cancelled { (icon("cancelled")) "CANCELLED" },
                Some(other) => span.badge.error { (icon("error")) (name(other)) },
            } }
            td.number { @match (run.exit_code, run.signal) {
                (_, Some(signal)) => { "signal " (signal) } (Some(code), None) => (code), (None, None) => "",
            } }
            td.downloads { a href=(log("both")) download=(file(run, "both")) { "both" } " " a href=(log("stdout")) download=(file(run, "stdout")) { "stdout" } " " a href=(log("stderr")) download=(file(run, "stderr")) { "stderr" } }
            td { @if let Some(time) = run.started_time { span.exact { (exact(time)) } " " span.muted { (ago(time, now)) } } }
            td.number {
                @match (run.started_time, run.completed_time) {
                    (Some(start), Some(end)) => (duration_of(i64::try_from(end.since(start).as_millis()).unwrap_or(i64::MAX))),
                    (Some(start), None) => (since(start, now)),
                    _ => "",
                }
            }
            td.number { @if let (Some(user), Some(system)) = (run.user_cpu_ms, run.system_cpu_ms) { (duration_of(user)) " / " (duration_of(system)) } }
            td.number { @if let Some(bytes) = run.max_rss_bytes.and_then(|bytes| u64::try_from(bytes).ok()) { (size(bytes)) } }
            td.number { @if let (Some(read), Some(written)) = (run.io_read_bytes.and_then(|bytes| u64::try_from(bytes).ok()), run.io_write_bytes.and_then(|bytes| u64::try_from(bytes).ok())) { (size(read)) " / " (size(written)) } }
            td.worker { @if let Some(worker) = &run.worker_id { (name(worker)) } @if let Some(slot) = &run.slot { " " span.muted { (name(slot)) } } }
            td.number { @if let Some(pid) = run.pid { (pid) } }
        }
    }
}

fn download(run: &RunRow, stream: &str) -> String {
    format!("/api/v1/jobs/{}/logs?attempt={}&stream={stream}", run.job_id, run.attempt)
}

fn file(run: &RunRow, stream: &str) -> String {
    format!("job-{}-attempt-{}-{stream}.log", run.job_id, run.attempt)
}

/// What is known of the output without a script: the end of it. A script takes the place over, and follows.
pub(super) struct LogView<'a> {
    pub(super) job: &'a JobRow,
    /// The attempt whose output it is.
    pub(super) run: Option<&'a RunRow>,
    pub(super) attempts: Vec<u32>,
    /// The end of it; `None` where this machine has none of it.
    pub(super) tail: Option<Tail>,
    /// The worker that it is fetched from, or why it can't be; `None` where this one ran it.
    pub(super) elsewhere: Option<Result<String, String>>,
}

pub(super) fn log(view: &LogView<'_>) -> Markup {
    let Some(run) = view.run else {
        return html! { section #output.panel { h2 { "Output" } p.muted { (no_command(view.job)) } } };
    };
    html! {
        section #output.panel {
            div.panel-head {
                h2 { "Output of attempt " (run.attempt) }
                nav.spans aria-label="Attempt" {
                    @for attempt in view.attempts.iter().rev().take(12).rev().filter(|_| view.attempts.len() > 1) {
                        @if *attempt == run.attempt.0 { a aria-current="true" href={ "?attempt=" (attempt) "#output" } { (attempt) } }
                        @else { a href={ "?attempt=" (attempt) "#output" } { (attempt) } }
                    }
                }
            }
            @match (&view.tail, &view.elsewhere) {
                (None, None) => p.muted { "There is no output of this attempt any more: retention has removed it." },
                (None, Some(Err(why))) => p.muted { "Its output is not here: " (remark(why, 400)) "." },
                (tail, elsewhere) => {
                    @let pieces = tail.as_ref().map_or(&[][..], |tail| &tail.pieces);
                    div.log-tools #log-tools hidden {
                        label { "Stream " select #log-stream { option value="both" { "both" } option value="stdout" { "stdout" } option value="stderr" { "stderr" } } }
                        label { "Search " input #log-search type="search" placeholder="in the output" maxlength="200"; }
                        button.small type="button" #log-previous { "Previous" }
                        button.small type="button" #log-next { "Next" }
                        span #log-found role="status" {}
                        label.check { input type="checkbox" #log-follow checked; " Follow" }
                        span #log-lines.muted {}
                    }
                    p.log-part #log-part hidden[!tail.as_ref().is_some_and(|tail| tail.earlier)] {
                        span #log-missing { "Only the end of it is shown here." }
                        " " a href=(download(run, "both")) download=(file(run, "both")) { "Download all of it" }
                        " " button.small type="button" #log-earlier hidden { "Load earlier output" }
                    }
                    div #log.log tabindex="0" role="log" aria-label="Output" aria-live="off" data-attempt=(run.attempt) data-job=(view.job.id) data-at=[tail.as_ref().map(|tail| tail.at)] {
                        @if let Some(Ok(worker)) = elsewhere { p.muted { "It is fetched from worker " (name(worker)) ", which has it." } }
                        @else if pieces.is_empty() { p.muted { @if run.outcome.is_some() { "Nothing was written." } @else { "Nothing has been written yet." } } }
                        // A browser takes away a line end that a `pre` begins with.
                        @for (stream, text) in pieces { pre class=(stream.as_str()) { @if text.starts_with('\n') { "\n" } (text) } }
                    }
                }
            }
        }
    }
}

/// That a job has no run, and whether it may have one.
fn no_command(job: &JobRow) -> &'static str {
    if job.status.is_final() { "No command was started." } else { "No command has been started yet." }
}

fn row(job: &JobRow, now: Timestamp) -> Markup {
    let time = |time: Option<Timestamp>| html! { @if let Some(time) = time { (exact(time)) " " span.muted { (ago(time, now)) } } };
    let text = |text: &Option<String>| html! { @if let Some(text) = text { (name(text)) } };
    let fields = [
        ("id", html! { (job.id) }),
        ("type", name(&job.job_type)),
        ("identifier", name(&job.identifier)),
        ("priority", html! { (job.priority) }),
        (
            "run_at",
            html! { @if job.waits_for_others() { span.muted { "when the jobs that it waits for have ended" } } @else { (time(Some(job.run_at))) } },
        ),
        (
            "maximum_attempts",
            html! { @match job.maximum_attempts { Some(most) => (most), None => span.muted { "as the flow says" } } },
        ),
        ("unique_key", text(&job.unique_key)),
        ("worker_id", text(&job.worker_id)),
        ("run_token", text(&job.run_token)),
        (
            "workflow id",
            html! { @if let Ok(flow) = job.job_type.parse::<crate::domain::FlowType>() { (flow.workflow_id(job.id)) } @else { (plain_name(&job.job_type)) } },
        ),
        ("cancel_requested_time", time(job.cancel_requested_time)),
        ("created_time", time(Some(job.created_time))),
        ("queued_time", time(job.queued_time)),
        ("started_time", time(job.started_time)),
        ("heartbeat_time", time(job.heartbeat_time)),
        ("completed_time", time(job.completed_time)),
        ("traceparent", text(&job.traceparent)),
        ("execution_ms", html! { @if let Some(ms) = job.execution_ms { (thousands(u64::try_from(ms).unwrap_or(0))) } }),
    ];
    html! { dl.row { @for (key, value) in fields { div { dt { (key) } dd { (value) } } } } }
}

fn pretty(payload: &str) -> String {
    let json: Option<serde_json::Value> = serde_json::from_str(payload).ok();
    let pretty = json.and_then(|json| serde_json::to_string_pretty(&json).ok());
    said(pretty.as_deref().unwrap_or(payload))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST_TEXT) {
        Some((end, _)) => format!("{}\n… cut here; the API has all of it", text.get(..end).unwrap_or(text)),
        None => text.to_owned(),
    }
}
