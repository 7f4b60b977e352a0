//! `show`: all that is known about one job.

use comfy_table::Cell;
use serde::Serialize;

use super::failure::{Exit, Failure, Result};
use super::output::{duration_of, many_lines, one_line};
use super::{Context, logs};
use crate::domain::{FlowType, JobId};
use crate::http::json::{DependencyJson, EventJson, JobDetailJson, JobJson, RunJson, rfc3339};
use crate::store::{EventRow, JobRow, RunRow};

/// Show one job: its fields, every run, every event, and the end of its error output
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet show 42\n  callsheet show 42 --json")]
pub(super) struct Args {
    /// The job
    #[arg(value_parser = job_id)]
    id: JobId,
}

/// A job's id.
pub(super) fn job_id(text: &str) -> std::result::Result<JobId, String> {
    text.parse().map(JobId).map_err(|_| "a job's id is a whole number, as `enqueue` and `list` print it".to_owned())
}

/// The failure to find a job.
pub(super) fn no_such_job(id: JobId) -> Failure {
    Failure::new(Exit::NotFound, format!("there is no job {id}")).help("`callsheet list` shows the jobs there are")
}

/// How much of the error output is shown, in lines.
const STDERR_LINES: usize = 20;

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    detail: JobDetailJson,
    workflow_id: Option<String>,
    task_queue: Option<String>,
    master_task_queue: Option<String>,
    stderr_tail: Option<String>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    let job = store.job(args.id).await?.ok_or_else(|| no_such_job(args.id))?;
    let runs = store.runs(args.id).await?;
    let events = store.events(args.id).await?;
    let stderr_tail = runs.last().and_then(|run| logs::stderr_tail(&config, run, STDERR_LINES));
    let flow = job.job_type.parse::<FlowType>().ok();
    let shown = Shown {
        detail: JobDetailJson {
            job: JobJson::from(&job),
            runs: runs.iter().map(RunJson::from).collect(),
            events: events.iter().map(EventJson::from).collect(),
            after: store.dependencies(args.id).await?.into_iter().map(DependencyJson::from).collect(),
        },
        workflow_id: flow.as_ref().map(|flow| flow.workflow_id(job.id)),
        task_queue: flow.as_ref().map(FlowType::task_queue),
        master_task_queue: flow.as_ref().map(FlowType::master_task_queue),
        stderr_tail,
    };
    if context.output.json {
        return Ok(context.output.json(&shown)?);
    }
    print(context, &job, &runs, &events, &shown)
}

fn print(context: &Context, job: &JobRow, runs: &[RunRow], events: &[EventRow], shown: &Shown) -> Result {
    let output = context.output;
    let text = |text: &Option<String>| text.as_deref().map(one_line);
    let after: Vec<String> = shown.detail.after.iter().map(awaited).collect();
    let fields: [(&str, Option<String>); 25] = [
        ("id", Some(job.id.to_string())),
        ("type", Some(one_line(&job.job_type))),
        ("identifier", Some(one_line(&job.identifier))),
        ("status", Some(job.status.to_string())),
        ("progress", job.progress.map(|progress| format!("{progress}%"))),
        ("status_message", text(&job.status_message)),
        ("attempt", Some(job.attempt.to_string())),
        ("maximum_attempts", job.maximum_attempts.map(|attempts| attempts.to_string())),
        ("exit_code", job.exit_code.map(|code| code.to_string())),
        ("priority", Some(job.priority.to_string())),
        ("payload", text(&job.payload)),
        ("unique_key", text(&job.unique_key)),
        ("worker_id", text(&job.worker_id)),
        ("run_token", text(&job.run_token)),
        ("created_time", Some(rfc3339(job.created_time))),
        ("run_at", Some(if job.waits_for_others() { "waits for other jobs".to_owned() } else { rfc3339(job.run_at) })),
        ("after", (!after.is_empty()).then(|| after.join(", "))),
        ("queued_time", job.queued_time.map(rfc3339)),
        ("started_time", job.started_time.map(rfc3339)),
        ("heartbeat_time", job.heartbeat_time.map(rfc3339)),
        ("completed_time", job.completed_time.map(rfc3339)),
        ("execution_ms", job.execution_ms.map(|ms| format!("{ms} ({})", duration_of(ms)))),
        ("cancel_requested_time", job.cancel_requested_time.map(rfc3339)),
        ("workflow_id", shown.workflow_id.clone()),
        (
            "task_queue",
            shown
                .task_queue
                .as_ref()
                .zip(shown.master_task_queue.as_ref())
                .map(|(own, master)| format!("{own} (scheduler: {master})")),
        ),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            output.line(format_args!("{name:<22} {value}"))?;
        }
    }
    if let Some(error) = &job.error {
        section(context, "Error")?;
        output.line(many_lines(error))?;
    }
    if !runs.is_empty() {
        section(context, "Runs")?;
        output.table(
            &[
                "ATTEMPT",
                "OUTCOME",
                "EXIT",
                "PID",
                "STARTED",
                "COMPLETED",
                "USER CPU",
                "SYSTEM CPU",
                "MEMORY",
                "READ",
                "WRITTEN",
                "WORKER",
                "SLOT",
            ],
            &["ATTEMPT", "EXIT", "PID", "USER CPU", "SYSTEM CPU", "MEMORY", "READ", "WRITTEN"],
            runs.iter().map(run_row).collect(),
        )?;
    }
    if !events.is_empty() {
        section(context, "Events")?;
        output.table(
            &["TIME", "FROM", "TO", "ATTEMPT", "WORKER", "MESSAGE"],
            &["ATTEMPT"],
            events.iter().map(event_row).collect(),
        )?;
    }
    if let Some(tail) = shown.stderr_tail.as_deref().filter(|tail| !tail.trim().is_empty()) {
        section(context, "End of the error output")?;
        output.line(many_lines(tail.trim_end()))?;
    }
    Ok(())
}

/// A job that is waited for, and how it ended.
fn awaited(dependency: &DependencyJson) -> String {
    let ended = dependency.ended.as_deref().map_or_else(|| "has not ended".to_owned(), one_line);
    format!("{} ({ended})", dependency.job_id)
}

fn section(context: &Context, title: &str) -> Result {
    Ok(context.output.line(format_args!("\n{}", context.output.bold(title)))?)
}

fn run_row(run: &RunRow) -> Vec<Cell> {
    let exit = match (run.exit_code, run.signal) {
        (Some(code), _) => code.to_string(),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => String::new(),
    };
    let time = |milliseconds: Option<i64>| Cell::new(milliseconds.map(duration_of).unwrap_or_default());
    let size = |bytes: Option<i64>| {
        Cell::new(bytes.map(|bytes| format!("{} MiB", bytes.saturating_add((1 << 20) - 1) >> 20)).unwrap_or_default())
    };
    vec![
        Cell::new(run.attempt),
        Cell::new(run.outcome.as_deref().map_or_else(|| "running".to_owned(), one_line)),
        Cell::new(exit),
        Cell::new(run.pid.map(|pid| pid.to_string()).unwrap_or_default()),
        Cell::new(run.started_time.map(rfc3339).unwrap_or_default()),
        Cell::new(run.completed_time.map(rfc3339).unwrap_or_default()),
        time(run.user_cpu_ms),
        time(run.system_cpu_ms),
        size(run.max_rss_bytes),
        size(run.io_read_bytes),
        size(run.io_write_bytes),
        Cell::new(run.worker_id.as_deref().map(one_line).unwrap_or_default()),
        Cell::new(run.slot.as_deref().map(one_line).unwrap_or_default()),
    ]
}

fn event_row(event: &EventRow) -> Vec<Cell> {
    vec![
        Cell::new(rfc3339(event.time)),
        Cell::new(event.from_status.as_deref().map(one_line).unwrap_or_default()),
        Cell::new(one_line(&event.to_status)),
        Cell::new(event.attempt),
        Cell::new(event.worker_id.as_deref().map(one_line).unwrap_or_default()),
        Cell::new(
            event.message.as_deref().and_then(|message| message.lines().next()).map(one_line).unwrap_or_default(),
        ),
    ]
}
