//! `retry`: has jobs that have ended tried again.

use serde_json::json;

use super::failure::{Exit, Failure, Result};
use super::select::{Selection, all, not_possible};
use super::show::no_such_job;
use super::{Context, Output, who};
use crate::domain::{JobId, JobStatus};
use crate::store::RetryResult;

/// Try jobs again that have ended as ERROR or CANCELLED
///
/// Each gets as many attempts and as much time as a new one; its old attempts, their numbers and their logs are kept.
/// Without --status, --type and --identifier mean the jobs that are ERROR. Works with the service down.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet retry 42 43\n  \
    callsheet retry --type VEO_3_GENERATION --dry-run\n  callsheet retry --identifier abc --status CANCELLED")]
pub(super) struct Args {
    #[command(flatten)]
    selection: Selection,
}

const RETRYABLE: [JobStatus; 2] = [JobStatus::Error, JobStatus::Cancelled];

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let mut filter = args.selection.filter("retried", &RETRYABLE, &[JobStatus::Error])?;
    let config = context.config()?;
    let store = context.store(&config).await?;
    if args.selection.dry_run {
        return args.selection.show(context, &store, filter, "retried", &RETRYABLE).await;
    }
    let who = who();
    let mut failures = Vec::new();
    let results = store.retry(&args.selection.ids, &who).await?;
    for (id, result) in args.selection.ids.iter().zip(results) {
        report(context.output, *id, result, &mut failures)?;
    }
    let mut found = !args.selection.ids.is_empty();
    while args.selection.ids.is_empty() {
        let page = store.retry_page(&filter, &who).await?;
        for (id, result) in page.rows {
            match result {
                // One that was chosen by its status and has none of these any more is none that anybody asked for.
                RetryResult::NotFound | RetryResult::NotPossible(_) => {}
                RetryResult::Retried | RetryResult::KeyTaken(_) => {
                    found = true;
                    report(context.output, id, result, &mut failures)?;
                }
            }
        }
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            break;
        }
    }
    if !found {
        context.output.note("no such ended jobs");
    }
    all(context, failures)
}

fn report(output: Output, id: JobId, result: RetryResult, failures: &mut Vec<Failure>) -> Result {
    let word = match result {
        RetryResult::NotFound => {
            failures.push(no_such_job(id));
            "not_found"
        }
        RetryResult::Retried => "retried",
        RetryResult::NotPossible(status) => {
            failures.push(not_possible(id, status, "retried").help("only ERROR and CANCELLED jobs are retried"));
            "not_possible"
        }
        RetryResult::KeyTaken(holder) => {
            let why = format!("job {id} can't be retried: job {holder} is open and has its unique key by now");
            failures.push(Failure::new(Exit::NotPossible, why).help(format!("cancel job {holder}, or wait for it")));
            "key_taken"
        }
    };
    if output.json {
        output.json(&json!({ "id": id.0, "result": word }))?;
    } else if result == RetryResult::Retried {
        output.line(format_args!("{id}: waits to be tried again"))?;
    }
    Ok(())
}
