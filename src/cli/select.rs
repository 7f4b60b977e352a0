//! Which jobs a command is about: by their ids, or all that a filter means.

use serde_json::json;

use super::failure::{Exit, Failure, Result};
use super::output::cut;
use super::show::{job_id, no_such_job};
use super::{Context, list};
use crate::domain::{JobId, JobStatus};
use crate::store::{JobFilter, JobRow, Store};

/// Jobs of one transaction, where there are many: claims go on between two.
const PAGE: u32 = 500;

#[derive(Debug, clap::Args)]
pub(super) struct Selection {
    /// The jobs
    #[arg(value_name = "ID", value_parser = job_id)]
    pub(super) ids: Vec<JobId>,
    /// Instead: all jobs of this type; may be repeated
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "ids")]
    types: Vec<String>,
    /// Instead: all jobs of this status; may be repeated
    #[arg(long = "status", value_name = "STATUS", value_parser = list::status, conflicts_with = "ids")]
    statuses: Vec<JobStatus>,
    /// Instead: all jobs with exactly this identifier
    #[arg(long, value_name = "IDENTIFIER", conflicts_with = "ids")]
    identifier: Option<String>,
    /// Say which jobs and how many it would be, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

impl Selection {
    /// The filter, one page of it; without `--status` it means `usual`. Statuses that are not `possible` are refused.
    pub(super) fn filter(&self, verb: &str, possible: &[JobStatus], usual: &[JobStatus]) -> Result<JobFilter> {
        if self.ids.is_empty() && self.types.is_empty() && self.statuses.is_empty() && self.identifier.is_none() {
            return Err(Failure::new(Exit::Usage, format!("nothing says which jobs are to be {verb}"))
                .help("name them by their ids, or all of a kind by --type, --status or --identifier"));
        }
        if let Some(status) = self.statuses.iter().find(|status| !possible.contains(status)) {
            let possible: Vec<&str> = possible.iter().map(|status| status.as_str()).collect();
            return Err(Failure::new(Exit::Usage, format!("a job that is {status} can't be {verb}"))
                .help(format!("--status takes {} here", possible.join(", "))));
        }
        let statuses = if self.statuses.is_empty() { usual.to_vec() } else { self.statuses.clone() };
        let (types, identifier) = (self.types.clone(), self.identifier.clone());
        Ok(JobFilter { types, statuses, identifier, cursor: None, limit: PAGE })
    }

    /// Says which jobs it would be, and how many; `possible` are the statuses that `verb` (such as `cancelled`) is for.
    pub(super) async fn show(
        &self,
        context: &Context,
        store: &Store,
        mut filter: JobFilter,
        verb: &str,
        possible: &[JobStatus],
    ) -> Result {
        let mut counts = [0_u64; JobStatus::ALL.len()];
        let mut failures = Vec::new();
        let mut show = |job: &JobRow| {
            counts[JobStatus::ALL.iter().position(|status| *status == job.status).unwrap_or_default()] += 1;
            print(context, job, verb)
        };
        for id in &self.ids {
            match store.job(*id).await? {
                None => failures.push(no_such_job(*id)),
                Some(job) if possible.contains(&job.status) => show(&job)?,
                Some(job) => failures.push(not_possible(*id, job.status, verb)),
            }
        }
        while self.ids.is_empty() {
            let page = store.list(&filter).await?;
            page.rows.iter().try_for_each(&mut show)?;
            filter.cursor = page.next_cursor;
            if filter.cursor.is_none() {
                break;
            }
        }
        let parts: Vec<String> = JobStatus::ALL
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(status, count)| format!("{count} {status}"))
            .collect();
        let total = counts.iter().sum::<u64>();
        let jobs = if total == 1 { "1 job".to_owned() } else { format!("{total} jobs") };
        let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
        context.output.note(format_args!("dry run: {jobs} would be {verb}{parts}; nothing was changed"));
        all(context, failures)
    }
}

fn print(context: &Context, job: &JobRow, verb: &str) -> Result {
    if context.output.json {
        let json = json!({
            "id": job.id.0, "type": job.job_type, "identifier": job.identifier, "status": job.status.as_str(),
            "result": format!("would_be_{verb}"),
        });
        return Ok(context.output.json(&json)?);
    }
    let (kind, identifier) = (cut(&job.job_type, 100), cut(&job.identifier, 255));
    Ok(context.output.line(format_args!("{}: would be {verb} ({kind} {identifier}, {})", job.id, job.status))?)
}

/// A job that is in no status for it.
pub(super) fn not_possible(id: JobId, status: JobStatus, verb: &str) -> Failure {
    let why = if status.is_final() { format!("it has ended and is {status}") } else { format!("it is {status}") };
    Failure::new(Exit::NotPossible, format!("job {id} can't be {verb}: {why}"))
}

/// Reports all failures in their order, and fails as the first one does; nothing where there are none.
pub(super) fn all(context: &Context, failures: Vec<Failure>) -> Result {
    let Some(first) = failures.first() else { return Ok(()) };
    for failure in &failures {
        failure.report(context.output);
    }
    Err(Failure::said(first.exit()))
}
