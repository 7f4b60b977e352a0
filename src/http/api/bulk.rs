//! Cancelling and retrying many jobs with one request, by the rules of the command line.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::document;
use super::query::shown;
use crate::domain::{JobId, JobStatus};
use crate::http::problem::{FieldError, Problem};
use crate::http::{App, Operator, body};
use crate::store::{CancelResult, JobFilter, RetryResult, Store};

/// So many jobs are taken at once, at the most.
const MOST: usize = 10_000;
/// So many by their ids, each of which is cancelled by a transaction of its own.
const MOST_IDS: usize = 1000;
/// Jobs of one transaction: claims go on between two.
const PAGE: u32 = 500;
/// More than ten thousand ids take.
const LARGEST_BODY: usize = 1 << 20;
const OPEN: [JobStatus; 3] = [JobStatus::Pending, JobStatus::InQueue, JobStatus::Progress];
const RETRYABLE: [JobStatus; 2] = [JobStatus::Error, JobStatus::Cancelled];

/// Which jobs are meant: those with these ids, or else all that are as the other fields say.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields, expecting = "an object")]
struct WantedJson {
    /// These jobs; one that is named twice counts once.
    #[schema(max_items = 1000)]
    ids: Vec<i64>,
    /// Instead: all jobs of one of these types.
    #[serde(rename = "type")]
    #[schema(max_items = 20)]
    types: Vec<String>,
    /// Instead: all jobs of one of these statuses. Where nothing is said, cancelling means every open job, and retrying ERROR.
    #[serde(rename = "status")]
    #[schema(value_type = Vec<crate::http::json::StatusWord>)]
    statuses: Vec<String>,
    /// Instead: all jobs with exactly this identifier.
    identifier: Option<String>,
    /// Say which jobs it would be, and change nothing.
    dry_run: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct DoneJson {
    /// Whether nothing was changed.
    dry_run: bool,
    /// How many of `jobs` were, or would be, cancelled or retried.
    count: u64,
    /// Whether there are more jobs than are taken at once; they are reached by asking again.
    more: bool,
    /// The jobs that were looked at, in the order of `ids`, or newest first.
    jobs: Vec<JobDoneJson>,
}

/// What came of it for one job.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct JobDoneJson {
    /// The job.
    id: i64,
    /// What came of it.
    result: ResultWord,
}

/// What came of it for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ResultWord {
    /// It is cancelled.
    Cancelled,
    /// Its command is being ended.
    Requested,
    /// Somebody had asked already.
    AlreadyRequested,
    /// It waits to be tried again.
    Retried,
    /// It would be cancelled.
    WouldBeCancelled,
    /// It would be retried.
    WouldBeRetried,
    /// Its status does not allow it.
    NotPossible,
    /// An open job has its `unique_key`.
    KeyTaken,
    /// There is no such job.
    NotFound,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    Cancel,
    Retry,
}

/// Cancel many jobs
///
/// Those that wait are cancelled at once; of open ones the command is ended. At most 10,000 are taken at once, the newest
/// first; `more` says whether to ask again. Safe to repeat.
#[utoipa::path(
    post, path = "/api/v1/jobs/cancel", tag = "jobs", operation_id = "cancel_jobs",
    request_body(content = WantedJson, content_type = "application/json"),
    responses(
        (status = 200, description = "What came of it, job by job", body = DoneJson),
        (status = 408, description = "The body came too slowly", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is larger than 1 MiB", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not `application/json`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A value can't be used; `errors` says which", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn cancel(
    State(app): State<App>,
    Operator(who): Operator,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DoneJson>, Problem> {
    let by = format!("{} (api)", who.name);
    act(&app.store_for(&who), &by, Deed::Cancel, &headers, body).await
}

/// Have many jobs tried again
///
/// Each waits again, with as many attempts and as much time as a new one. At most 10,000 are taken at once, the newest first;
/// `more` says whether to ask again. Safe to repeat.
#[utoipa::path(
    post, path = "/api/v1/jobs/retry", tag = "jobs", operation_id = "retry_jobs",
    request_body(content = WantedJson, content_type = "application/json"),
    responses(
        (status = 200, description = "What came of it, job by job", body = DoneJson),
        (status = 408, description = "The body came too slowly", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is larger than 1 MiB", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not `application/json`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A value can't be used; `errors` says which", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn retry(
    State(app): State<App>,
    Operator(who): Operator,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DoneJson>, Problem> {
    let by = format!("{} (api)", who.name);
    act(&app.store_for(&who), &by, Deed::Retry, &headers, body).await
}

/// Which jobs are meant.
enum Wanted {
    Ids(Vec<JobId>),
    Filter(JobFilter),
}

async fn act(store: &Store, by: &str, deed: Deed, headers: &HeaderMap, body: Body) -> Result<Json<DoneJson>, Problem> {
    document::expect_json(headers)?;
    let written: WantedJson = document::read(&body::read(headers, body, LARGEST_BODY).await?)?;
    let dry_run = written.dry_run;
    let wanted = written.validated(deed)?;
    let (jobs, more) = match wanted {
        Wanted::Ids(ids) if dry_run => (would_be(store, deed, &ids).await?, false),
        Wanted::Ids(ids) => (done(store, by, deed, &ids).await?, false),
        Wanted::Filter(filter) => all(store, by, deed, filter, dry_run).await?,
    };
    let counts =
        |word: ResultWord| !matches!(word, ResultWord::NotPossible | ResultWord::KeyTaken | ResultWord::NotFound);
    let count = jobs.iter().filter(|job| counts(job.result)).count() as u64;
    Ok(Json(DoneJson { dry_run, count, more, jobs }))
}

impl WantedJson {
    fn validated(self, deed: Deed) -> Result<Wanted, Problem> {
        let (possible, usual, verb) = match deed {
            Deed::Cancel => (&OPEN[..], &OPEN[..], "cancelled"),
            Deed::Retry => (&RETRYABLE[..], &[JobStatus::Error][..], "retried"),
        };
        let mut errors = Vec::new();
        let mut wrong = |field: &str, place: String, detail: String| {
            errors.push(FieldError { field: field.to_owned(), pointer: Some(place), detail });
        };
        let mut statuses = Vec::new();
        for (place, word) in self.statuses.iter().enumerate() {
            let at = format!("#/status/{place}");
            match word.parse::<JobStatus>() {
                Ok(status) if possible.contains(&status) => statuses.push(status),
                Ok(status) => wrong("status", at, format!("a job that is {status} can't be {verb}")),
                Err(_) => wrong("status", at, format!("{} is no status", shown(word))),
            }
        }
        if self.types.len() > 20 {
            wrong("type", "#/type".to_owned(), "at most 20 types are taken at once".to_owned());
        }
        if self.ids.len() > MOST_IDS {
            wrong("ids", "#/ids".to_owned(), format!("at most {MOST_IDS} jobs are taken at once"));
        }
        let filters = !self.types.is_empty() || !self.statuses.is_empty() || self.identifier.is_some();
        match (self.ids.is_empty(), filters) {
            // What names nothing must not mean everything.
            (true, false) => {
                wrong("body", "#".to_owned(), "it names no jobs; give ids, or type, status or identifier".to_owned());
            }
            (false, true) => {
                wrong("ids", "#/ids".to_owned(), "there is a filter too; one of them says which jobs".to_owned());
            }
            (true, true) | (false, false) => {}
        }
        if !errors.is_empty() {
            return Err(Problem::invalid(StatusCode::UNPROCESSABLE_ENTITY, errors));
        }
        if !filters {
            let mut known = BTreeSet::new();
            return Ok(Wanted::Ids(self.ids.into_iter().map(JobId).filter(|id| known.insert(*id)).collect()));
        }
        let statuses = if statuses.is_empty() { usual.to_vec() } else { statuses };
        let Self { types, identifier, .. } = self;
        Ok(Wanted::Filter(JobFilter { types, statuses, identifier, cursor: None, limit: PAGE }))
    }
}

async fn would_be(store: &Store, deed: Deed, ids: &[JobId]) -> Result<Vec<JobDoneJson>, Problem> {
    let rows = store.jobs(ids).await?;
    let statuses: BTreeMap<JobId, JobStatus> = rows.iter().map(|row| (row.id, row.status)).collect();
    let (possible, word) = deed.would_be();
    let one = |id: &JobId| match statuses.get(id) {
        None => job_done(*id, ResultWord::NotFound),
        Some(status) if possible.contains(status) => job_done(*id, word),
        Some(_) => job_done(*id, ResultWord::NotPossible),
    };
    Ok(ids.iter().map(one).collect())
}

async fn done(store: &Store, by: &str, deed: Deed, ids: &[JobId]) -> Result<Vec<JobDoneJson>, Problem> {
    match deed {
        Deed::Retry => {
            let results = store.retry(ids, by).await?;
            Ok(ids.iter().zip(results).map(|(id, result)| job_done(*id, retried(result))).collect())
        }
        Deed::Cancel => {
            let mut jobs = Vec::with_capacity(ids.len());
            for id in ids {
                jobs.push(job_done(*id, cancelled(store.request_cancel(*id).await?)));
            }
            Ok(jobs)
        }
    }
}

/// All jobs that are as the filter says, up to [`MOST`]; and whether there are more.
async fn all(
    store: &Store,
    by: &str,
    deed: Deed,
    mut filter: JobFilter,
    dry_run: bool,
) -> Result<(Vec<JobDoneJson>, bool), Problem> {
    let mut jobs = Vec::new();
    loop {
        let (page, next) = match (dry_run, deed) {
            (true, _) => {
                let page = store.list(&filter).await?;
                let (_, word) = deed.would_be();
                (page.rows.iter().map(|row| job_done(row.id, word)).collect(), page.next_cursor)
            }
            (false, Deed::Cancel) => {
                let page = store.cancel_page(&filter).await?;
                (page.rows.iter().map(|(id, result)| job_done(*id, cancelled(*result))).collect(), page.next_cursor)
            }
            (false, Deed::Retry) => {
                let page = store.retry_page(&filter, by).await?;
                (
                    page.rows.iter().map(|(id, result)| job_done(*id, retried(*result))).collect::<Vec<_>>(),
                    page.next_cursor,
                )
            }
        };
        // One that was chosen by its status and has none of these any more is none that anybody asked for.
        let gone = |word: ResultWord| matches!(word, ResultWord::NotFound | ResultWord::NotPossible);
        jobs.extend(page.into_iter().filter(|job| !gone(job.result)));
        filter.cursor = next;
        if filter.cursor.is_none() || jobs.len() >= MOST {
            return Ok((jobs, filter.cursor.is_some()));
        }
    }
}

impl Deed {
    /// The statuses that it is for, and what a dry run says of jobs in them.
    const fn would_be(self) -> (&'static [JobStatus], ResultWord) {
        match self {
            Self::Cancel => (&OPEN, ResultWord::WouldBeCancelled),
            Self::Retry => (&RETRYABLE, ResultWord::WouldBeRetried),
        }
    }
}

const fn job_done(id: JobId, result: ResultWord) -> JobDoneJson {
    JobDoneJson { id: id.0, result }
}

const fn cancelled(result: CancelResult) -> ResultWord {
    match result {
        CancelResult::NotFound => ResultWord::NotFound,
        CancelResult::Cancelled => ResultWord::Cancelled,
        CancelResult::Requested => ResultWord::Requested,
        CancelResult::AlreadyRequested => ResultWord::AlreadyRequested,
        CancelResult::NotPossible(_) => ResultWord::NotPossible,
    }
}

const fn retried(result: RetryResult) -> ResultWord {
    match result {
        RetryResult::NotFound => ResultWord::NotFound,
        RetryResult::Retried => ResultWord::Retried,
        RetryResult::NotPossible(_) => ResultWord::NotPossible,
        RetryResult::KeyTaken(_) => ResultWord::KeyTaken,
    }
}
