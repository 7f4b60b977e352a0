//! What a job's commands wrote: as text, or followed as server-sent events.
//!
//! An offset counts the bytes that the command has written, kept or not, so it means the same after a restart of the service
//! and after the oldest part was dropped.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Segment;
use super::events::LAST_EVENT_ID;
use super::jobs::{job_id, no_such_job};
use super::query::{Parameters, shown};
use crate::domain::{Attempt, JobId, JobStatus, RunToken};
use crate::http::json::rfc3339;
use crate::http::peers::{Form, NoAnswer, Question, Relay, find_worker};
use crate::http::problem::{FieldError, Problem};
use crate::http::{App, Viewer, sse};
use crate::process::logs::{Page, RunLog, Selection};
use crate::store::RunRow;

/// Where the text begins, in bytes.
const OFFSET: HeaderName = HeaderName::from_static("callsheet-offset");
/// Where what is written later begins.
const NEXT_OFFSET: HeaderName = HeaderName::from_static("callsheet-next-offset");
/// How much is read at once, in bytes.
const AT_ONCE: usize = 128 * 1024;
/// How often a run that is followed is looked at.
const POLL: Duration = Duration::from_millis(250);
/// How often it is asked whether it has ended, without being told of a change.
const ASK_ANYWAY: Duration = Duration::from_secs(2);
/// The most lines of a tail.
const LONGEST_TAIL: usize = 1_000_000;

/// Read a job's output, or follow it
///
/// As text: what is kept of it from `offset` on, a line of ours in the place of what was dropped. The header
/// `Callsheet-Next-Offset` says where to go on. With `follow=true` as server-sent events, which begin with what is there and
/// end with an event `end` when the run has ended: the `id` of each is the offset behind it, so that a client which comes
/// back with `Last-Event-ID` misses nothing and gets nothing twice, whatever happened to the service meanwhile; `data` has
/// `offset`, `next_offset` and `pieces`, each with `stream`, `offset`, `time`, `dropped` (bytes that are missing before it)
/// and `text`. An offset of `both` counts both streams together, in the order in which they came.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}/logs", tag = "jobs", operation_id = "get_logs",
    params(
        ("id" = i64, Path, description = "The job"),
        ("attempt" = Option<u32>, Query, minimum = 1, description = "Which attempt; the last one where nothing is said"),
        ("stream" = inline(Option<StreamWord>), Query, description = "Which stream; both where nothing is said"),
        ("offset" = Option<u64>, Query, description = "Where to begin, in bytes"),
        ("tail" = Option<u32>, Query, maximum = 1_000_000, description = "Instead: only so many lines from the end"),
        ("follow" = Option<bool>, Query, description = "Go on until the run ends, as server-sent events"),
        ("Last-Event-ID" = Option<String>, Header, pattern = "^[0-9]{1,18}$", description = "With `follow`: the `id` of the last event that the client has had"),
    ),
    responses(
        (status = 200, content(
            (String = "text/plain; charset=utf-8"),
            (String = "text/event-stream"),
        ), description = "What was written"),
        (status = 404, description = "There is no such job or attempt, or its output is kept no longer", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The worker that ran it is not known any more", body = Problem, content_type = "application/problem+json"),
        (status = 502, description = "The worker that has it is gone, or can't be reached", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "The worker that has it does not answer", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn logs(
    State(app): State<App>,
    viewer: Viewer,
    Segment(id): Segment,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let job = job_id(&id)?;
    let mut parameters = Parameters::of(&uri, &["attempt", "stream", "offset", "tail", "follow"]);
    let attempt = parameters.read("attempt", |text| match text.parse() {
        Ok(attempt) if attempt > 0 => Ok(Attempt(attempt)),
        _ => Err(format!("{} is no attempt; the first is 1", shown(text))),
    });
    let selection = parameters.read("stream", |text| text.parse::<Selection>().map_err(|error| error.to_string()));
    let selection = selection.unwrap_or(Selection::Both);
    let offset = parameters.parsed::<u64>("offset", "a number of bytes");
    let tail = parameters.read("tail", |text| match text.parse() {
        Ok(lines) if lines <= LONGEST_TAIL => Ok(lines),
        _ => Err(format!("{} is not a number of lines up to {LONGEST_TAIL}", shown(text))),
    });
    let follow = parameters.parsed("follow", "true or false").unwrap_or(false);
    if offset.is_some() && tail.is_some() {
        parameters.wrong("tail", "there is an offset too; one of them says where to begin");
    }
    parameters.finish()?;
    if !follow {
        return text(&app, Which::of(job, attempt), selection, offset, tail).await;
    }
    let last = headers.get(LAST_EVENT_ID).map(|value| value.to_str().ok().and_then(|text| text.parse::<u64>().ok()));
    if last == Some(None) {
        let detail = "it is not the id of an event of this stream, which is a number of bytes".to_owned();
        let error = FieldError { field: "Last-Event-ID".to_owned(), pointer: None, detail };
        return Err(Problem::invalid(StatusCode::BAD_REQUEST, vec![error]));
    }
    let last = last.flatten();
    // What can't be followed is refused now; what has not begun yet is waited for.
    let found = find(&app, &Which::of(job, attempt)).await?;
    let permit = app.stream_permit()?;
    match found {
        Found::Never(problem) => return Err(problem),
        Found::Elsewhere(run, worker) => {
            let (offset, tail) = (last.or(offset), if last.is_some() { None } else { tail });
            let question = Question { offset, tail, ..Question::of(&run, selection, Form::Follow) };
            let relay = ask(&app, &worker, &question).await?;
            return Ok(sse::respond(relay, &app, &viewer, permit));
        }
        Found::Run(..) | Found::NotYet(_) => {}
    }
    let follower = Follower {
        changes: app.handle().changes(),
        told: false,
        app: app.clone(),
        which: Which::of(job, attempt),
        once: false,
        relay: None,
        selection,
        offset: last.or(offset).unwrap_or(0),
        tail: if last.is_some() { None } else { tail },
        run: None,
        asked: None,
        phase: Phase::Waiting,
    };
    Ok(sse::respond(follower, &app, &viewer, permit))
}

/// The words that `stream` takes.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "for the description")]
enum StreamWord {
    Stdout,
    Stderr,
    Both,
}

/// A run with its output, as far as it can be had.
enum Found {
    Run(Box<RunRow>, PathBuf),
    /// There may be one later.
    NotYet(Problem),
    /// There is none, and will not be.
    Never(Problem),
    /// This worker has it.
    Elsewhere(Box<RunRow>, String),
}

/// Which run's output is meant.
#[derive(Clone)]
struct Which {
    job: JobId,
    attempt: Option<Attempt>,
    /// Only the run with this token.
    token: Option<RunToken>,
}

impl Which {
    fn of(job: JobId, attempt: Option<Attempt>) -> Self {
        Self { job, attempt, token: None }
    }
}

async fn find(app: &App, which: &Which) -> Result<Found, Problem> {
    let Which { job: id, attempt, token } = which.clone();
    let store = app.store();
    let job = store.job(id).await?.ok_or_else(|| no_such_job(id))?;
    let mut runs = store.runs(id).await?;
    let not_found = |detail: String| Problem::new(StatusCode::NOT_FOUND, detail);
    let wanted = match attempt {
        Some(attempt) => runs.iter().rposition(|run| {
            run.attempt == attempt && token.as_ref().is_none_or(|token| run.run_token == token.as_str())
        }),
        None => runs.len().checked_sub(1),
    };
    let Some(index) = wanted else {
        let problem = not_found(match attempt {
            Some(attempt) => format!("job {id} has had no attempt {attempt}; it has had {}", runs.len()),
            None => format!("job {id} has no output: no command of it has run, and it is {}", job.status),
        });
        return Ok(if job.status.is_final() { Found::Never(problem) } else { Found::NotYet(problem) });
    };
    let run = runs.swap_remove(index);
    let token: Option<RunToken> = run.run_token.parse().ok();
    let directory = token.map(|token| app.handle().run_dir(id, run.attempt, &token)).filter(|path| path.is_dir());
    let worker = run.worker_id.clone().filter(|worker| worker != app.handle().worker().as_str());
    Ok(match (directory, worker) {
        (Some(directory), _) => Found::Run(Box::new(run), directory),
        (None, Some(worker)) => Found::Elsewhere(Box::new(run), worker),
        (None, None) => Found::Never(not_found(format!(
            "the output of attempt {} of job {id} is not here any more; it is kept for some time after the run ([retention] logs)",
            run.attempt,
        ))),
    })
}

async fn text(
    app: &App,
    which: Which,
    selection: Selection,
    offset: Option<u64>,
    tail: Option<usize>,
) -> Result<Response, Problem> {
    let (run, directory) = match find(app, &which).await? {
        Found::Run(run, directory) => (run, directory),
        // A worker that is asked by another one asks nobody.
        Found::Elsewhere(run, worker) if which.token.is_some() => return Err(not_with(&run, &worker)),
        Found::Elsewhere(run, worker) => {
            let question = Question { offset, tail, ..Question::of(&run, selection, Form::Text) };
            return Ok(relayed(ask(app, &worker, &question).await?));
        }
        Found::NotYet(problem) | Found::Never(problem) => return Err(problem),
    };
    let log = RunLog::open(&directory, selection, run.outcome.is_some());
    let number = |number: u64| HeaderValue::from(number);
    let kind = (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Some(lines) = tail {
        let page = blocking(move || log.tail(lines)).await?;
        let bytes = page.to_bytes();
        return Ok(([kind, (NEXT_OFFSET, number(page.next_offset))], bytes).into_response());
    }
    let offset = offset.unwrap_or(0);
    let reader = log.clone();
    // No further than there is now: a command may write faster than a client reads.
    let total = blocking(move || reader.total_length()).await?.max(offset);
    let pages = stream::try_unfold(offset, move |at| {
        let log = log.clone();
        async move {
            if at >= total {
                return Ok::<_, io::Error>(None);
            }
            let room = usize::try_from(total - at).unwrap_or(AT_ONCE).min(AT_ONCE);
            let page = tokio::task::spawn_blocking(move || log.read(at, room)).await.map_err(io::Error::other)??;
            if page.next_offset <= at {
                return Ok(None);
            }
            Ok(Some((Bytes::from(page.to_bytes()), page.next_offset)))
        }
    });
    let headers = [kind, (OFFSET, number(offset)), (NEXT_OFFSET, number(total))];
    Ok((headers, Body::from_stream(pages)).into_response())
}

fn not_with(run: &RunRow, worker: &str) -> Problem {
    let detail =
        format!("attempt {} of job {} was run by {worker}, and its output is not here", run.attempt, run.job_id);
    Problem::new(StatusCode::NOT_FOUND, detail)
}

/// Asks the worker that has an output.
///
/// # Errors
/// Why there is no answer.
pub(in crate::http) async fn ask(app: &App, worker: &str, question: &Question) -> Result<Relay, NoAnswer> {
    let Some(peers) = app.peers() else {
        // One that is gone is not to be asked either.
        find_worker(app.store(), worker).await?;
        return Err(NoAnswer::NoSecret(worker.to_owned()));
    };
    peers.ask(app.store(), worker, question).await
}

/// What another worker has answered, as text.
fn relayed(relay: Relay) -> Response {
    let kind = (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let numbers = [OFFSET, NEXT_OFFSET].map(|name| (relay.number(&name), name));
    let pages = stream::try_unfold(relay, |mut relay| async move {
        let bytes = relay.bytes().await?;
        Ok::<_, io::Error>(bytes.map(|bytes| (bytes, relay)))
    });
    let mut response = ([kind], Body::from_stream(pages)).into_response();
    for (number, name) in numbers {
        if let Some(number) = number {
            response.headers_mut().insert(name, HeaderValue::from(number));
        }
    }
    response
}

/// What another worker asks for.
pub(in crate::http) struct Asked {
    which: Which,
    selection: Selection,
    offset: Option<u64>,
    tail: Option<usize>,
    form: Form,
}

impl Asked {
    /// As its address says it.
    ///
    /// # Errors
    /// Where it is not understood.
    pub(in crate::http) fn read(uri: &Uri) -> Result<Self, Problem> {
        let mut parameters = Parameters::of(uri, &["job", "attempt", "token", "stream", "offset", "tail", "form"]);
        let job = parameters.parsed::<i64>("job", "the id of a job");
        let attempt = parameters.parsed::<u32>("attempt", "an attempt");
        let token = parameters.parsed::<RunToken>("token", "a run's token");
        let selection = parameters.parsed::<Selection>("stream", "a stream");
        let offset = parameters.parsed::<u64>("offset", "a number of bytes");
        let tail = parameters.parsed::<usize>("tail", "a number of lines").map(|lines| lines.min(LONGEST_TAIL));
        let form = parameters.read("form", |text| match text {
            "text" => Ok(Form::Text),
            "events" => Ok(Form::Events),
            "follow" => Ok(Form::Follow),
            _ => Err(format!("{} is none", shown(text))),
        });
        parameters.finish()?;
        let (Some(job), Some(attempt), Some(token)) = (job, attempt, token) else {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "it is not said which run is meant"));
        };
        let which = Which { job: JobId(job), attempt: Some(Attempt(attempt)), token: Some(token) };
        let (selection, form) = (selection.unwrap_or(Selection::Both), form.unwrap_or(Form::Text));
        Ok(Self { which, selection, offset, tail, form })
    }
}

/// Answers another worker from this one's own disk, or not at all.
///
/// # Errors
/// Where there is no such output here.
pub(in crate::http) async fn answer_here(app: &App, viewer: &Viewer, asked: Asked) -> Result<Response, Problem> {
    let Asked { which, selection, offset, tail, form } = asked;
    if form == Form::Text {
        return text(app, which, selection, offset, tail).await;
    }
    match find(app, &which).await? {
        Found::Run(..) => {}
        Found::Elsewhere(run, worker) => return Err(not_with(&run, &worker)),
        Found::Never(problem) | Found::NotYet(problem) => return Err(problem),
    }
    let permit = app.stream_permit()?;
    let follower = Follower {
        changes: app.handle().changes(),
        told: false,
        app: app.clone(),
        which,
        once: form == Form::Events,
        relay: None,
        selection,
        offset: offset.unwrap_or(0),
        tail,
        run: None,
        asked: None,
        phase: Phase::Waiting,
    };
    Ok(sse::respond(follower, app, viewer, permit))
}

/// Reads files without holding up anybody else.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(read).await.map_err(io::Error::other) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) | Err(error) => {
            tracing::warn!(%error, "a run's output can't be read");
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the output can't be read: {error}")))
        }
    }
}

/// One client that follows a run.
struct Follower {
    app: App,
    changes: watch::Receiver<()>,
    /// Whether something has changed since the database was asked.
    told: bool,
    which: Which,
    /// Whether it ends with what there is by now.
    once: bool,
    /// The run has begun on another worker, which tells the rest.
    relay: Option<Relay>,
    selection: Selection,
    offset: u64,
    /// Begin with so many lines from the end.
    tail: Option<usize>,
    run: Option<(Box<RunRow>, RunLog)>,
    /// When it was last asked for what only the database knows.
    asked: Option<Instant>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no run yet.
    Waiting,
    Running,
    /// The run has ended, and what it wrote is still being sent.
    Ended,
    /// All is said.
    Over,
}

impl Follower {
    /// Asks the database, where something has changed or it was not asked for a while.
    async fn ask(&mut self) -> Result<(), Problem> {
        self.told |= self.changes.has_changed().unwrap_or(true);
        self.changes.mark_unchanged();
        let pause = if self.told { POLL } else { ASK_ANYWAY };
        if self.asked.is_some_and(|at| at.elapsed() < pause) {
            return Ok(());
        }
        self.told = false;
        match self.phase {
            Phase::Waiting => match find(&self.app, &self.which).await? {
                Found::Run(run, directory) => {
                    let ended = run.outcome.is_some();
                    self.phase = if ended { Phase::Ended } else { Phase::Running };
                    self.run = Some((run, RunLog::open(&directory, self.selection, ended)));
                }
                Found::NotYet(_) => {}
                Found::Never(_) => self.phase = Phase::Ended,
                Found::Elsewhere(..) if self.which.token.is_some() => self.phase = Phase::Ended,
                Found::Elsewhere(run, worker) => {
                    let (offset, tail) = (Some(self.offset), self.tail);
                    let offset = offset.filter(|_| tail.is_none());
                    let question = Question { offset, tail, ..Question::of(&run, self.selection, Form::Follow) };
                    self.relay = Some(ask(&self.app, &worker, &question).await?);
                }
            },
            Phase::Running => {
                let runs = self.app.store().runs(self.which.job).await?;
                if let Some((run, log)) = &mut self.run {
                    let now = runs.into_iter().find(|row| row.run_token == run.run_token);
                    if now.as_ref().is_none_or(|row| row.outcome.is_some()) {
                        log.set_ended();
                        self.phase = Phase::Ended;
                        **run = now.unwrap_or_else(|| (**run).clone());
                    }
                }
            }
            Phase::Ended | Phase::Over => {}
        }
        self.asked = Some(Instant::now());
        Ok(())
    }

    /// What there is to send by now; `None` where there is nothing new.
    async fn read(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some((_, log)) = &self.run else { return Ok(None) };
        let (log, at, tail) = (log.clone(), self.offset, self.tail);
        let page = blocking(move || match tail {
            Some(lines) => log.tail(lines),
            None => log.read(at, AT_ONCE),
        })
        .await?;
        self.tail = None;
        self.offset = page.next_offset;
        let told = page.pieces.iter().map(|piece| piece.dropped.saturating_add(piece.bytes.len() as u64));
        // A tail begins where it turned out to.
        let at = if tail.is_some() { page.next_offset.saturating_sub(told.sum()) } else { at };
        Ok((!page.pieces.is_empty()).then(|| frame(at, &page)))
    }

    async fn last(&mut self) -> Bytes {
        self.phase = Phase::Over;
        let run = self.run.as_ref().map(|(run, _)| run);
        let status = self.app.store().job(self.which.job).await.ok().flatten().map(|job| job.status);
        let data = json!({
            "job_id": self.which.job.0,
            "attempt": run.map(|run| run.attempt.0),
            "outcome": run.and_then(|run| run.outcome.clone()),
            "exit_code": run.and_then(|run| run.exit_code),
            "status": status.map(JobStatus::as_str),
        });
        sse::frame(Some(&self.offset.to_string()), Some("end"), &data.to_string())
    }
}

impl sse::Source for Follower {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.phase == Phase::Over {
                return None;
            }
            if let Some(relay) = &mut self.relay {
                return sse::Source::next(relay).await;
            }
            // Asked before reading: what was written before the run ended is then certainly read.
            let sent = match self.ask().await {
                Ok(()) => self.read().await,
                Err(problem) => Err(problem),
            };
            match sent {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) if self.phase == Phase::Ended || self.once => return Some(self.last().await),
                Ok(None) => self.told |= timeout(POLL, self.changes.changed()).await.is_ok(),
                // The client comes back from where it was, by then perhaps to a database that answers.
                Err(problem) => {
                    tracing::debug!(detail = problem.detail(), "a stream of output ends");
                    return None;
                }
            }
            if self.phase == Phase::Running {
                // However often others' jobs change something, a file is not read more often than this.
                sleep(POLL / 5).await;
            }
        }
    }
}

fn frame(offset: u64, page: &Page) -> Bytes {
    let pieces: Vec<_> = page
        .pieces
        .iter()
        .map(|piece| {
            json!({
                "stream": piece.stream.as_str(),
                "offset": piece.offset,
                "time": piece.time.map(rfc3339),
                "dropped": piece.dropped,
                "text": String::from_utf8_lossy(&piece.bytes),
            })
        })
        .collect();
    let data = json!({ "offset": offset, "next_offset": page.next_offset, "pieces": pieces });
    sse::frame(Some(&page.next_offset.to_string()), None, &data.to_string())
}
