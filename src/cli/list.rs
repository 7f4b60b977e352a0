//! `list`: jobs, newest first.

use comfy_table::Cell;

use super::Context;
use super::failure::Result;
use super::output::{age, columns, cut, duration_of};
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
    let mut lines: Vec<Vec<String>> = page.rows.iter().map(|row| line(row, now)).collect();
    let header = fit(&mut lines, output.terminal_width().map(usize::from));
    let rows = page.rows.iter().zip(lines).map(|(row, line)| {
        let cell = |(index, text)| if index == STATUS { output.status(row.status) } else { Cell::new(text) };
        line.into_iter().enumerate().map(cell).collect()
    });
    output.table_of_lines(header, &["ID", "ATTEMPT", "PROGRESS", "AGE", "RAN"], rows.collect())?;
    if let Some(cursor) = page.next_cursor {
        output.note(format_args!("there are more: --cursor {cursor}"));
    }
    Ok(())
}

const HEADER: [&str; 9] = ["ID", "TYPE", "IDENTIFIER", "STATUS", "ATTEMPT", "PROGRESS", "AGE", "RAN", "DETAIL"];
const TYPE: usize = 1;
const IDENTIFIER: usize = 2;
const STATUS: usize = 3;
const DETAIL: usize = 8;

/// How wide a type or an identifier is at most shown, wherever the table goes to, in columns.
const WIDEST: usize = 40;

/// How narrow a terminal may make them.
const NARROWEST: usize = 12;

/// The cells of a job, in the order of [`HEADER`].
fn line(row: &JobRow, now: Timestamp) -> Vec<String> {
    vec![
        row.id.to_string(),
        cut(&row.job_type, WIDEST),
        cut(&row.identifier, WIDEST),
        row.status.to_string(),
        row.attempt.to_string(),
        row.progress.map(|progress| format!("{progress}%")).unwrap_or_default(),
        age(row.created_time, now),
        ran(row, now),
        detail(row, now),
    ]
}

/// Cuts the cells so that each job keeps to one line of `width` columns, and gives the header of what is left: the
/// details give way first, and go where nothing of them would fit; then identifiers, then types.
fn fit(lines: &mut [Vec<String>], width: Option<usize>) -> &'static [&'static str] {
    const GAP: usize = 2;
    let Some(width) = width else { return &HEADER };
    let widest = |lines: &[Vec<String>], index: usize| {
        lines.iter().map(|line| columns(&line[index])).chain([HEADER[index].len()]).max().unwrap_or(0)
    };
    let used: usize = (0..DETAIL).map(|index| widest(lines, index) + GAP).sum();
    if used + HEADER[DETAIL].len() <= width {
        lines.iter_mut().for_each(|line| line[DETAIL] = cut(&line[DETAIL], width - used));
        return &HEADER;
    }
    // After the last column there is nothing to keep a distance from.
    let mut over = (used - GAP).saturating_sub(width);
    for index in [IDENTIFIER, TYPE] {
        let now = widest(lines, index);
        let then = now.saturating_sub(over).max(NARROWEST.min(now));
        lines.iter_mut().for_each(|line| line[index] = cut(&line[index], then));
        over -= now - then;
    }
    lines.iter_mut().for_each(|line| line.truncate(DETAIL));
    &HEADER[..DETAIL]
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
        _ if row.waits_for_others() => "waits for other jobs".to_owned(),
        _ if row.status == JobStatus::Pending && row.run_at > now => format!("due {}", age(row.run_at, now)),
        (Some(error), _) if row.status != JobStatus::Progress => error.lines().next().unwrap_or_default().to_owned(),
        (_, Some(message)) => message.clone(),
        _ => String::new(),
    };
    cut(&text, 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Vec<String>> {
        let line = |identifier: &str, detail: &str| {
            let kind = "SCREEN_REPLACEMENT_GENERATION";
            ["17", kind, identifier, "PROGRESS", "1", "40%", "5m", "4m 10s", detail].map(str::to_owned).to_vec()
        };
        vec![line("abc", "frame 12 of 30"), line("a-much-longer-identifier", "")]
    }

    fn widths(width: Option<usize>) -> (usize, usize) {
        let mut lines = lines();
        let header = fit(&mut lines, width);
        assert!(lines.iter().all(|line| line.len() == header.len()));
        let widest =
            |index: usize| lines.iter().map(|line| columns(&line[index])).max().unwrap().max(header[index].len());
        (header.len(), (0..header.len()).map(|index| widest(index) + 2).sum::<usize>() - 2)
    }

    #[test]
    fn a_job_keeps_to_one_line_of_the_terminal() {
        let (columns, whole) = widths(None);
        assert_eq!((columns, widths(Some(whole))), (9, (9, whole)));
        assert_eq!(widths(Some(whole - 3)), (9, whole - 3), "the details are cut");
        for width in [80, 90, 100] {
            let (columns, fitted) = widths(Some(width));
            assert!(columns == 8 && fitted <= width, "{fitted} columns on {width}");
        }
        assert_eq!(widths(Some(10)), widths(Some(20)), "less than a least width nothing is cut to");
    }
}
