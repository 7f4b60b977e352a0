//! The spans of jobs that end while they wait, which no run of theirs can tell: cancelled, or out of time.
//!
//! They are found in the stream of status changes, whoever wrote them. Of several workers the first by name tells them,
//! so that a job is told once; what ended while no service ran is told by nobody.

use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Span, Telemetry};
use crate::domain::trace::{JobTrace, TraceContext, in_payload};
use crate::domain::{FlowType, JobStatus, WorkerId};
use crate::store::{Error, JobRow, Store, StreamedEvent};

/// Changes of one look.
const PAGE: u32 = 500;
/// Nobody waits for a span, so what comes within this time is read at once.
const PAUSE: Duration = Duration::from_secs(1);
/// Other workers tell nobody of theirs.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);

/// Tells them from now on, for as long as this is polled.
pub async fn tell_unrun(store: Store, telemetry: Telemetry, worker: WorkerId, mut changes: watch::Receiver<()>) {
    let mut after = None;
    loop {
        changes.mark_unchanged();
        match tell(&store, &telemetry, &worker, after).await {
            Ok(next) => after = Some(next),
            Err(error) => tracing::debug!(%error, "the status changes can't be read for their traces"),
        }
        drop(timeout(LOOK_ANYWAY, changes.changed()).await);
        sleep(PAUSE).await;
    }
}

/// Tells what there is behind the id `after`, and says where to go on.
async fn tell(store: &Store, telemetry: &Telemetry, worker: &WorkerId, after: Option<i64>) -> Result<i64, Error> {
    let Some(mut after) = after else { return store.final_event().await };
    loop {
        let page = store.events_after(after, PAGE).await?;
        let ended: Vec<&StreamedEvent> = page.events.iter().filter(|event| ended_while_it_waited(event)).collect();
        if !ended.is_empty() && is_first(store, worker).await? {
            let mut spans = Vec::new();
            for event in ended {
                spans.extend(store.job(event.event.job_id).await?.and_then(|job| span(&job, event)));
            }
            telemetry.export(spans);
        }
        after = page.next;
        if !page.more {
            return Ok(after);
        }
    }
}

fn ended_while_it_waited(told: &StreamedEvent) -> bool {
    let to: Option<JobStatus> = told.event.to_status.parse().ok();
    told.event.from_status.as_deref() == Some(JobStatus::Pending.as_str()) && to.is_some_and(JobStatus::is_final)
}

async fn is_first(store: &Store, worker: &WorkerId) -> Result<bool, Error> {
    let (now, workers) = tokio::try_join!(store.now(), store.workers())?;
    let first = workers.iter().filter(|row| row.is_live(now)).map(|row| row.worker_id.as_str()).min();
    Ok(first.is_none_or(|first| first == worker.as_str()))
}

/// The job's own span; `None` where nobody wants it.
fn span(job: &JobRow, told: &StreamedEvent) -> Option<Span> {
    let context = match &job.traceparent {
        Some(parent) => TraceContext::read(Some(parent), job.tracestate.as_deref()),
        None => job.payload.as_ref().and_then(|payload| in_payload(payload.as_bytes())),
    };
    let trace = JobTrace::of(job.id, job.created_time, context);
    let flow: FlowType = job.job_type.parse().ok()?;
    let failed = told.event.to_status == JobStatus::Error.as_str();
    trace.sampled.then(|| Span {
        trace: trace.id,
        id: trace.job,
        parent: trace.parent,
        state: trace.state,
        name: format!("job {flow}"),
        start: job.created_time,
        end: told.event.time,
        attributes: vec![
            ("callsheet.job.id", json!(job.id.0)),
            ("callsheet.job.type", json!(flow.as_str())),
            ("callsheet.job.identifier", json!(job.identifier)),
            ("callsheet.job.status", json!(told.event.to_status)),
            ("callsheet.workflow.id", json!(flow.workflow_id(job.id))),
            ("callsheet.attempts", json!(told.event.attempt.0)),
        ],
        error: told.event.message.clone().filter(|_| failed),
    })
}
