//! `events`: the stream of status changes.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::failure::Result;
use super::output::one_line;
use super::{Context, Output};
use crate::domain::{FlowType, JobId};
use crate::http::json::{StreamedEventJson, rfc3339};
use crate::store::{Store, StreamedEvent};

/// Show status changes: the last ones, or each as it happens
///
/// They are read from the database, so this works with the service down. Each has a number; `--after` goes on behind one, and
/// nothing in between is missed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet events -f\n  callsheet events --after 0 --json > all-events.jsonl\n  \
    callsheet events -f --type VEO_3_GENERATION")]
pub(super) struct Args {
    /// Go on as more happens
    #[arg(short, long)]
    follow: bool,
    /// Begin behind the change of this number; 0 for all there are [default: the last 20, with --follow what happens next]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(0..))]
    after: Option<i64>,
    /// Only of jobs of this type
    #[arg(long = "type", value_name = "TYPE")]
    flow: Option<String>,
    /// Only of this job
    #[arg(long, value_name = "ID", value_parser = super::show::job_id)]
    job: Option<JobId>,
}

/// How many changes are shown where nobody says.
const LAST: i64 = 20;
/// Changes of one page of reading.
const PAGE: u32 = 500;
/// How long to wait without being told of a change: workers tell nobody of theirs on PostgreSQL.
const LOOK_ANYWAY: Duration = Duration::from_millis(300);
/// So much of a burst is shown at once.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    // Before the first look, so that nothing falls between it and the first wait.
    let mut wakes = if args.follow { Some(store.watch().await?) } else { None };
    let last = store.final_event().await?;
    let mut after = args.after.unwrap_or(if args.follow { last } else { last.saturating_sub(LAST).max(0) });
    loop {
        after = show(context.output, &store, args, after).await?;
        let Some(wakes) = &mut wakes else { return Ok(()) };
        // Whether something has happened or the time is over, it is looked again.
        drop(timeout(LOOK_ANYWAY, wakes.next()).await);
        sleep(PAUSE).await;
        if context.output.is_unread() {
            return Ok(());
        }
    }
}

/// Shows everything behind `after` that there is by now, and says up to where that was.
async fn show(output: Output, store: &Store, args: &Args, mut after: i64) -> Result<i64> {
    loop {
        let page = store.events_after(after, PAGE).await?;
        let wanted = |streamed: &&StreamedEvent| {
            args.flow.as_ref().is_none_or(|flow| *flow == streamed.job_type)
                && args.job.is_none_or(|job| job == streamed.event.job_id)
        };
        for streamed in page.events.iter().filter(wanted) {
            if output.json {
                output.json(&StreamedEventJson::from(streamed))?;
            } else {
                output.line(line(streamed))?;
            }
        }
        after = page.next;
        if !page.more {
            return Ok(after);
        }
    }
}

/// A change on one line: its number, when, which job, from what to what, and why.
fn line(streamed: &StreamedEvent) -> String {
    let event = &streamed.event;
    let job = match streamed.job_type.parse::<FlowType>() {
        Ok(flow) => flow.workflow_id(event.job_id),
        Err(_) => format!("{}({})", one_line(&streamed.job_type), event.job_id),
    };
    let from = event.from_status.as_deref().map(one_line).unwrap_or_default();
    let why = event.message.as_deref().and_then(|message| message.lines().next()).map(one_line).unwrap_or_default();
    let text = format!("{}  {}  {job}  {from} → {}  {why}", event.id, rfc3339(event.time), one_line(&event.to_status));
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Attempt, Timestamp};
    use crate::store::EventRow;

    #[test]
    fn a_change_is_one_line_whatever_it_holds() {
        let event = EventRow {
            id: 7,
            job_id: JobId(3),
            attempt: Attempt(1),
            from_status: Some("PROGRESS".to_owned()),
            to_status: "ERROR".to_owned(),
            time: Timestamp::from_unix_millis(0),
            worker_id: None,
            message: Some("failed\u{1b}[2J with \u{202e}code 1\nmore".to_owned()),
        };
        let streamed = StreamedEvent { event, job_type: "VEO_3".to_owned() };
        assert_eq!(line(&streamed), "7  1970-01-01T00:00:00.000Z  veo_3(3)  PROGRESS → ERROR  failed with code 1");
        let odd = StreamedEvent { job_type: "no\ntype".to_owned(), ..streamed };
        assert!(line(&odd).contains("no type(3)"));
    }
}
