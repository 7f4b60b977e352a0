//! `list`: jobs, newest first.

use comfy_table::Cell;

use super::Context;
use super::failure::Result;
use super::output::{age, duration_of, one_line};
use crate::clock;
use crate::domain::{JobId, JobStatus, Timestamp};
use crate::http::json::JobsJson;
use crate::store::{JobFilter, JobRow};

/// List jobs, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet list --status PROGRESS --status INQUEUE\n  \
    callsheet list --type VEO_3_GENERATION --limit 20\n  callsheet list --identifier abc --json")]
pub(super) struct Args {
    /// Only of this type; may be repeated
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only of this status: PENDING, INQUEUE, PROGRESS, COMPLETED, ERROR or CANCELLED; may be repeated
    #[arg(long = "status", value_name = "STATUS", value_parser = status)]
    statuses: Vec<JobStatus>,
    /// Only with exactly this identifier
    #[arg(long)]
    identifier: Option<String>,
    /// At most so many, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on after the page that gave this cursor
    #[arg(long, value_name = "CURSOR", value_parser = cursor)]
    cursor: Option<JobId>,
}

/// A status, in upper or lower case.
pub(super) fn status(text: &str) -> std::result::Result<JobStatus, String> {
    text.to_ascii_uppercase().parse::<JobStatus>().map_err(|error| error.to_string())
}

fn cursor(text: &str) -> std::result::Result<JobId, String> {
    text.parse().map(JobId).map_err(|_| "a cursor is the next_cursor of a page before".to_owned())
}

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    let filter = JobFilter {
        types: args.types.clone(),
        statuses: args.statuses.clone(),
        identifier: args.identifier.clone(),
        cursor: args.cursor,
        limit: args.limit,
    };
    let page = store.list(&filter).await?;
    let output = context.output;
    if output.json {
        return Ok(output.json(&JobsJson::from(&page))?);
    }
    if page.rows.is_empty() {
        output.note("no such jobs");
        return Ok(());
    }
    let now = clock::now();
    let rows = page.rows.iter().map(|row| {
        vec![
            Cell::new(row.id),
            Cell::new(one_line(&row.job_type)),
            Cell::new(one_line(&row.identifier)),
            output.status(row.status),
            Cell::new(row.attempt),
            Cell::new(row.progress.map(|progress| format!("{progress}%")).unwrap_or_default()),
            Cell::new(age(row.created_time, now)),
            Cell::new(ran(row, now)),
            Cell::new(detail(row, now)),
        ]
    });
    let header = ["ID", "TYPE", "IDENTIFIER", "STATUS", "ATTEMPT", "PROGRESS", "AGE", "RAN", "DETAIL"];
    output.table(&header, &["ID", "ATTEMPT", "PROGRESS", "AGE", "RAN"], rows.collect())?;
    if let Some(cursor) = page.next_cursor {
        output.note(format_args!("there are more: --cursor {cursor}"));
    }
    Ok(())
}

fn ran(row: &JobRow, now: Timestamp) -> String {
    match (row.execution_ms, row.started_time) {
        (Some(milliseconds), _) => duration_of(milliseconds),
        (None, Some(started)) if row.status == JobStatus::Progress => {
            duration_of(i64::try_from(now.since(started).as_millis()).unwrap_or(i64::MAX))
        }
        _ => String::new(),
    }
}

/// What else there is to know at a glance, cut to a length that leaves the table readable.
fn detail(row: &JobRow, now: Timestamp) -> String {
    let text = match (&row.error, &row.status_message) {
        _ if row.cancel_requested_time.is_some() && !row.status.is_final() => "cancel requested".to_owned(),
        _ if row.status == JobStatus::Pending && row.run_at > now => format!("due {}", age(row.run_at, now)),
        (Some(error), _) if row.status != JobStatus::Progress => error.lines().next().unwrap_or_default().to_owned(),
        (_, Some(message)) => message.clone(),
        _ => String::new(),
    };
    let cut: String = one_line(&text).chars().take(60).collect();
    if cut.chars().count() < text.chars().count() { format!("{cut}…") } else { cut }
}
