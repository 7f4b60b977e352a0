//! The overview: what needs somebody, why the last ones failed, every flow, the timeline, the charts, the workers.

use std::collections::BTreeMap;
use std::time::Duration;

use maud::{Markup, html};

use super::charts::{self, Durations};
use super::parts::{ago, badge, button, count, encoded, icon, meter, name, plain_name, remark, said, since};
use super::recurring::{self, Entry};
use super::timeline::timeline;
use super::workers::workers_table;
use super::{Part, Visitor};
use crate::domain::labels::Labels;
use crate::domain::{JobStatus, Timestamp};
use crate::http::attention::{About, FlowRules, Need, Situation, nobody_fits};
use crate::http::words::{duration_of, rough, thousands};
use crate::store::{Ended, EndedRow, History, OpenRow, Overview, Queue, WorkerRow};

/// What the configuration says about a flow, as far as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlowInfo {
    /// How many runs there may be at once.
    pub(super) concurrency: u32,
    /// The labels that a worker needs for it.
    pub(super) requires: Labels,
    /// How long a run may go unconfirmed.
    pub(super) heartbeat_timeout: Duration,
    /// When its scheduler ticks next.
    pub(super) next_tick: Option<Timestamp>,
}

/// Everything that the overview shows.
#[derive(Clone, Copy)]
pub(super) struct OverviewView<'a> {
    pub(super) overview: &'a Overview,
    /// `None` while the last day is being counted for the first time.
    pub(super) history: Option<&'a History>,
    /// How many wait of each type, counted exactly a while ago.
    pub(super) waiting: &'a BTreeMap<String, u64>,
    /// The flows of the configuration.
    pub(super) flows: &'a BTreeMap<String, FlowInfo>,
    /// The jobs that the configuration has enqueued by the clock.
    pub(super) recurring: &'a [Entry],
    /// What the service says is wrong with itself.
    pub(super) complaints: &'a [String],
    /// What the address asks for.
    pub(super) span: Option<&'a str>,
}

/// So many running jobs are shown on a card.
const RUNS_ON_A_CARD: usize = 4;

/// One thing that an operator should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attention {
    /// The sentence.
    pub(super) sentence: String,
    /// Where there is more about it.
    pub(super) link: Option<String>,
    /// What can be done about it at once: the address of a form, and its word.
    pub(super) act: Option<(String, &'static str)>,
}

/// The parts that change while the page is open.
pub(super) fn parts(view: OverviewView<'_>, visitor: &Visitor) -> Vec<Part> {
    let now = view.overview.now;
    let mut parts = vec![
        Part { id: "situation", class: "", body: situation(view, visitor) },
        Part { id: "flows", class: "", body: cards(view, visitor) },
        Part { id: "failures", class: "panel", body: failures(&view.overview.failures, now, visitor) },
        Part {
            id: "timeline",
            class: "panel",
            body: timeline(
                view.overview,
                &view.flows.iter().map(|(name, flow)| (name.clone(), flow.concurrency)).collect(),
                view.span,
            ),
        },
        Part { id: "throughput", class: "panel", body: throughput(view) },
        Part { id: "durations", class: "panel", body: durations(view.overview) },
    ];
    if !view.recurring.is_empty() {
        parts.push(Part { id: "recurring", class: "panel", body: recurring::table(view.recurring, now) });
    }
    let workers = workers_table(&view.overview.workers, Some(&view.overview.open), now);
    parts.push(Part { id: "workers", class: "panel", body: html! { h2 { "Workers" } (workers) } });
    parts
}

fn situation(view: OverviewView<'_>, visitor: &Visitor) -> Markup {
    let overview = view.overview;
    let running = overview.open.iter().filter(|row| row.status == JobStatus::Progress).count();
    let waiting: u64 = overview.queues.iter().map(|queue| waiting(queue, view.waiting).0).sum();
    let more = overview.queues.iter().any(|queue| waiting_is_more(queue, view.waiting));
    let attention = attention(view);
    html! {
        h1.situation {
            @if attention.is_empty() {
                span.ok { (icon("completed")) "All is well." }
            } @else if let [_] = attention.as_slice() {
                span.bad { (icon("attention")) "One thing needs you." }
            } @else {
                span.bad { (icon("attention")) (attention.len()) " things need you." }
            }
            " " span.numbers { (running) " running, " (thousands(waiting)) @if more { "+" } " waiting" }
        }
        @if !attention.is_empty() {
            ul.needs {
                @for item in &attention {
                    li {
                        (icon("attention"))
                        span { @if let Some(link) = &item.link { a href=(link) { (item.sentence) } } @else { (item.sentence) } }
                        @if let Some((action, label)) = item.act.as_ref().filter(|_| visitor.operator) {
                            (button(visitor, action, label, "small", &item.sentence))
                        }
                    }
                }
            }
        }
    }
}

/// What the service says is wrong with itself, then everything else that needs somebody, the gravest first.
pub(super) fn attention(view: OverviewView<'_>) -> Vec<Attention> {
    let flows = view.flows.iter().map(|(name, flow)| {
        (name.as_str(), FlowRules { requires: &flow.requires, heartbeat_timeout: flow.heartbeat_timeout })
    });
    let flows: BTreeMap<_, _> = flows.collect();
    let flows = (!view.flows.is_empty()).then_some(&flows);
    let situation = Situation { overview: view.overview, history: view.history, flows, name: plain_name };
    let complaint = |text: &String| Attention { sentence: remark(text, 300), link: None, act: None };
    view.complaints.iter().map(complaint).chain(situation.needs().into_iter().map(Attention::from)).collect()
}

impl From<Need> for Attention {
    fn from(need: Need) -> Self {
        let waiting = |flow: &str| jobs_of(flow, Some(JobStatus::Pending));
        let (link, act) = match &need.about {
            About::Workers => ("/workers".to_owned(), None),
            About::Job(id) => (format!("/jobs/{id}"), None),
            About::Waiting(flow) => (waiting(flow), None),
            About::Paused(flow) => (waiting(flow), Some((format!("/flows/{}/resume", encoded(flow)), "Resume"))),
            About::Failures => ("#failures".to_owned(), None),
        };
        Self { sentence: need.sentence, link: Some(link), act }
    }
}

fn waiting(queue: &Queue, exact: &BTreeMap<String, u64>) -> (u64, bool) {
    match exact.get(&queue.job_type).filter(|exact| queue.waiting.or_more && **exact > queue.waiting.at_least) {
        Some(exact) => (*exact, false),
        None => (queue.waiting.at_least, queue.waiting.or_more),
    }
}

fn waiting_is_more(queue: &Queue, exact: &BTreeMap<String, u64>) -> bool {
    waiting(queue, exact).1
}

fn cards(view: OverviewView<'_>, visitor: &Visitor) -> Markup {
    let known: Vec<&str> = view.overview.queues.iter().map(|queue| queue.job_type.as_str()).collect();
    // A flow of the configuration that has never been registered has no row, and still is one.
    let missing: Vec<Queue> = view
        .flows
        .keys()
        .filter(|flow| !known.contains(&flow.as_str()))
        .map(|flow| Queue { job_type: flow.clone(), ..Queue::default() })
        .collect();
    let mut queues: Vec<&Queue> = view.overview.queues.iter().chain(&missing).collect();
    let is_busy = |queue: &Queue| queue.open > 0 || queue.waiting.at_least > 0 || queue.paused;
    queues.sort_by_key(|queue| (!is_busy(queue), queue.job_type.clone()));
    html! {
        h2 { "Flows" }
        @if queues.is_empty() {
            p.muted { "No flow is configured yet: `callsheet init` writes a callsheet.toml to start from." }
        }
        div.cards { @for queue in queues { (card(queue, view, visitor)) } }
    }
}

fn card(queue: &Queue, view: OverviewView<'_>, visitor: &Visitor) -> Markup {
    let (flow, now) = (queue.job_type.as_str(), view.overview.now);
    let info = view.flows.get(flow);
    let runs: Vec<&OpenRow> = view.overview.open.iter().filter(|row| row.job_type == flow).collect();
    let (waiting, more) = waiting(queue, view.waiting);
    let day = view.history.map(|history| history.last_day(Some(flow), now));
    let link = |status| jobs_of(flow, Some(status));
    let (state, word) = match (queue.paused, info.is_some() || view.flows.is_empty(), queue.open) {
        (true, _, _) => ("paused", "paused"),
        (false, false, _) => ("attention", "not configured"),
        (false, true, 0) => ("pending", "idle"),
        (false, true, _) => ("progress", "running"),
    };
    html! {
        article.card aria-label={ "flow " (plain_name(flow)) } {
            header {
                h3 { a href=(jobs_of(flow, None)) { (name(flow)) } }
                span class={ "badge " (state) } { (icon(state)) (word) }
                @if visitor.operator && (info.is_some() || queue.paused) {
                    @let (action, label) = if queue.paused { ("resume", "Resume") } else { ("pause", "Pause") };
                    (button(visitor, &format!("/flows/{}/{action}", encoded(flow)), label, "small quiet", &plain_name(flow)))
                }
            }
            dl.figures {
                div { dt { "Running" } dd { (queue.open) @if let Some(info) = info { span.muted { " of " (info.concurrency) } } } }
                div { dt { "Waiting" } dd { a href=(link(JobStatus::Pending)) { (thousands(waiting)) @if more { "+" } } } }
                div { dt { "Done 24h" } dd { a href=(link(JobStatus::Completed)) { (day.map_or("…".to_owned(), |day| thousands(day.completed))) } } }
                div { dt { "Failed 24h" } dd class=[day.filter(|day| day.failed > 0).map(|_| "bad")] {
                    a href=(link(JobStatus::Error)) { (day.map_or("…".to_owned(), |day| thousands(day.failed))) }
                } }
            }
            @if !runs.is_empty() {
                ul.runs {
                    @for run in runs.iter().take(RUNS_ON_A_CARD) { (running(run, now)) }
                    @if queue.open > RUNS_ON_A_CARD.min(runs.len()) as u64 {
                        li { a href=(link(JobStatus::Progress)) { (queue.open - RUNS_ON_A_CARD.min(runs.len()) as u64) " more" } }
                    }
                }
            }
            footer.muted {
                @if let Some(info) = info.filter(|info| !info.requires.is_empty()) {
                    span { "requires " (info.requires) @if nobody_fits(view.overview, &info.requires) { ": no living worker has it" } }
                }
                @if let Some(oldest) = queue.oldest_waiting { span { "the oldest has waited " (since(oldest, now)) } }
                @if queue.delayed.at_least > 0 { span { (count(queue.delayed)) " delayed" @if let Some(due) = queue.next_due { ", next due " (ago(due, now)) } } }
                @if queue.dependent.at_least > 0 { span { (count(queue.dependent)) " waiting for other jobs" } }
                @if let Some(tick) = info.and_then(|info| info.next_tick) { span { "next tick " (ago(tick, now)) } }
                @if let Some(history) = view.history { (spark(&history.ended(Some(flow), now, 1440, 48))) }
            }
        }
    }
}

fn running(run: &OpenRow, now: Timestamp) -> Markup {
    let start = run.started_time.filter(|_| run.status == JobStatus::Progress).or(run.queued_time);
    let of = format!("job {}", run.id);
    html! {
        li {
            a.run-name href={ "/jobs/" (run.id) } { span.muted { (run.id) } " " (name(&run.identifier)) }
            span.run-state {
                @if run.cancel_requested { span.badge.cancelled { (icon("cancelled")) "cancelling" } }
                @else if run.status == JobStatus::InQueue { (badge(run.status)) }
                @if run.attempt.0 > 1 { span.muted { "attempt " (run.attempt) } }
                @if let Some(start) = start { (since(start, now)) }
            }
            @if let Some(progress) = run.progress {
                span.run-progress { (meter(progress, &of)) span.percent { (progress) "%" } }
            }
            @if let Some(message) = &run.status_message { span.run-message.muted { (remark(message, 120)) } }
        }
    }
}

/// A day of a flow as a row of tiny bars; what it says stands in words beside it.
fn spark(ended: &[Ended]) -> Markup {
    let most = ended.iter().map(|ended| ended.all()).max().unwrap_or(0);
    if most == 0 {
        return html! {};
    }
    let height = |count: u64| (count * 18).div_ceil(most);
    let bars = |count: fn(&Ended) -> u64| {
        let bars = ended.iter().enumerate().filter(|(_, ended)| count(ended) > 0);
        bars.map(|(place, ended)| format!("M{} 18v-{}", place * 3 + 1, height(count(ended)))).collect::<String>()
    };
    let failed = bars(|ended| ended.failed);
    html! {
        svg.spark viewBox={ "0 0 " (ended.len() * 3) " 18" } width="120" height="18" preserveAspectRatio="none" aria-hidden="true" focusable="false" {
            path.completed d=(bars(|ended| ended.all())) {}
            @if !failed.is_empty() { path.error d=(failed) {} }
        }
    }
}

fn failures(failures: &[EndedRow], now: Timestamp, visitor: &Visitor) -> Markup {
    html! {
        div.panel-head { h2 { "Last failures" } a href="/jobs?status=ERROR" { "all failed jobs" } }
        @if failures.is_empty() { p.muted { "No job has failed." } }
        ul.failures {
            @for row in failures {
                @let error = said(row.error.as_deref().unwrap_or_default());
                @let mut lines = error.lines();
                li {
                    div.failure-head {
                        (badge(row.status))
                        a href={ "/jobs/" (row.id) } { (row.id) " " (name(&row.identifier)) }
                        span.muted { (name(&row.job_type)) }
                        span.muted { (ago(row.completed_time, now)) @if let Some(ms) = row.execution_ms { ", after " (duration_of(ms)) } }
                        @if visitor.operator { (button(visitor, &format!("/jobs/{}/retry", row.id), "Retry", "small", &format!("job {}", row.id))) }
                    }
                    p.reason { (remark(lines.next().unwrap_or("no reason was recorded"), 240)) }
                    @if let Some(last) = lines.rfind(|line| !line.trim().is_empty()) { p.last-line { code { (remark(last, 240)) } } }
                }
            }
        }
    }
}

fn throughput(view: OverviewView<'_>) -> Markup {
    let day = view.history.map(|history| history.ended(None, view.overview.now, 1440, 48));
    html! {
        h2 { "Ended in the last 24 hours" }
        @match day {
            Some(day) => {
                (charts::throughput(&day, &["24h ago", "18h", "12h", "6h", "now"]))
                @let sum = |of: fn(&Ended) -> u64| thousands(day.iter().map(of).sum());
                p.legend {
                    span { span.key.completed aria-hidden="true" {} (sum(|ended| ended.completed)) " completed" }
                    span { span.key.error aria-hidden="true" {} (sum(|ended| ended.failed)) " failed" }
                    span { span.key.cancelled aria-hidden="true" {} (sum(|ended| ended.cancelled)) " cancelled" }
                    span.muted { "in half hours" }
                }
            }
            None => p.muted { "The last day is being counted." }
        }
    }
}

fn durations(overview: &Overview) -> Markup {
    let mut flows: BTreeMap<&str, Durations> = BTreeMap::new();
    for row in overview.ended.iter().filter(|row| row.started_time.is_some()) {
        let Some(length) = row.execution_ms else { continue };
        let flow = flows
            .entry(&row.job_type)
            .or_insert_with(|| Durations { name: plain_name(&row.job_type), runs: Vec::new() });
        flow.runs.push((row.status, length));
    }
    let flows: Vec<Durations> = flows.into_values().take(16).collect();
    html! {
        h2 { "How long the last runs took" }
        @if flows.is_empty() { p.muted { "No run has ended yet." } } @else {
            (charts::durations(&flows))
            p.legend {
                span { span.key.completed aria-hidden="true" {} "completed" }
                span { span.key.cross aria-hidden="true" { "×" } "failed" }
                span { span.key.cancelled aria-hidden="true" {} "cancelled" }
                span { span.key.middle aria-hidden="true" {} "median" }
            }
        }
    }
}

/// The address of a list of jobs.
pub(super) fn jobs_of(flow: &str, status: Option<JobStatus>) -> String {
    let status = status.map(|status| format!("&status={status}")).unwrap_or_default();
    format!("/jobs?type={}{status}", encoded(flow))
}

/// How long a worker has been silent, where that is too long.
pub(super) fn silence(worker: &WorkerRow, now: Timestamp) -> Option<String> {
    worker.is_silent(now).then(|| rough(now.since(worker.heartbeat_time).as_secs()))
}
