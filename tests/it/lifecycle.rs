//! `docs/lifecycle.md` says what the code does, and the store does what it says.

use std::fmt::Write as _;
use std::time::Duration;

use callsheet::domain::lifecycle::JobChange;
use callsheet::domain::retry::{Jitter, RetryPolicy};
use callsheet::domain::run::{
    CommandEnd, EndCause, Next, RunContext, RunEnd, RunEvent, RunPhase, Shortage, Usage, Verdict, conclude,
};
use callsheet::domain::{Attempt, FlowType, JobId, JobStatus, Outcome, RunToken, Timestamp, WorkerId};
use callsheet::store::{CancelResult, Claim, Due, NewJob, Settlement, Started, Store, Write, Written};
use proptest::prelude::*;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/lifecycle.md");

#[test]
fn the_page_about_the_lifecycle_is_drawn_from_the_code() {
    let written = std::fs::read_to_string(PAGE).unwrap();
    let mut page = written.clone();
    for (name, drawn) in [("statuses", statuses()), ("ends", ends()), ("phases", phases())] {
        let start = format!("<!-- drawn: {name} -->\n");
        let from = page.find(&start).unwrap_or_else(|| panic!("{PAGE} has no place for {name}")) + start.len();
        let to = from + page[from..].find("<!-- end -->").expect("an end of what is drawn");
        page.replace_range(from..to, &drawn);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, &page).unwrap();
        return;
    }
    assert!(page == written, "{PAGE} differs from the code; run UPDATE_DOCS=1 cargo test --test it lifecycle\n{page}");
}

fn statuses() -> String {
    let mut table = "| from | what happens | to |\n| --- | --- | --- |\n".to_owned();
    let mut diagram = "stateDiagram-v2\n    [*] --> PENDING: enqueued\n".to_owned();
    for status in JobStatus::ALL {
        for change in JobChange::ALL {
            if let Some(next) = status.after(change) {
                let words = change_in_words(change);
                writeln!(table, "| {status} | {words} | {next} |").unwrap();
                writeln!(diagram, "    {status} --> {next}: {}", short(change)).unwrap();
            }
        }
    }
    for status in JobStatus::ALL.into_iter().filter(|status| status.is_final()) {
        writeln!(diagram, "    {status} --> [*]").unwrap();
    }
    format!("{table}\n```mermaid\n{diagram}```\n")
}

fn change_in_words(change: JobChange) -> &'static str {
    match change {
        JobChange::Claimed => "a worker claims it",
        JobChange::Started => "its command starts",
        JobChange::Completed => "its command ends with exit code 0",
        JobChange::WillRetry => "the attempt fails, and another one follows at a later `run_at`",
        JobChange::Failed => "the attempt fails and no other follows, or it can't be run as asked",
        JobChange::Cancelled => "somebody asks to cancel it, and it ends for that",
        JobChange::Released => "the claim comes to nothing: no command was started; the attempt does not count",
        JobChange::Retried => "somebody asks to run it again",
    }
}

fn short(change: JobChange) -> &'static str {
    match change {
        JobChange::Claimed => "claimed",
        JobChange::Started => "command starts",
        JobChange::Completed => "exit code 0",
        JobChange::WillRetry => "failed, will retry",
        JobChange::Failed => "failed",
        JobChange::Cancelled => "cancelled",
        JobChange::Released => "never started",
        JobChange::Retried => "callsheet retry",
    }
}

fn ends() -> String {
    let verdict = |end, cause| {
        RunEnd::Ended(Verdict {
            pid: 1,
            end,
            cause,
            started_time: Timestamp::from_unix_millis(0),
            completed_time: Timestamp::from_unix_millis(1),
            execution: Duration::from_millis(1),
            usage: Usage::default(),
            shortage: Shortage::default(),
            stderr_tail: String::new(),
            said: None,
        })
    };
    let rows = [
        ("the command exits with 0", verdict(CommandEnd::Exited(0), EndCause::Itself)),
        ("it exits with another code", verdict(CommandEnd::Exited(1), EndCause::Itself)),
        ("it is killed by a signal that nobody here sent", verdict(CommandEnd::Signaled(11), EndCause::Itself)),
        ("it ends after it was asked to, with 0", verdict(CommandEnd::Exited(0), EndCause::Requested)),
        ("it ends after it was asked to, otherwise", verdict(CommandEnd::Signaled(15), EndCause::Requested)),
        ("its time is up, whatever its exit code", verdict(CommandEnd::Exited(0), EndCause::TimedOut(None))),
        ("it can't be started", RunEnd::SpawnFailed("why".to_owned())),
        ("nobody can say how it ended", RunEnd::Lost("why".to_owned())),
        ("it was certainly never started", RunEnd::NeverStarted),
        ("its launch was called off", RunEnd::CancelledBeforeStart),
        ("the row can't be run as asked", RunEnd::Refused("why".to_owned())),
    ];
    let mut table = "| the end | `runs.outcome` | not asked, left | not asked, none left | asked |\n\
                     | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (words, end) in rows {
        let cells = [(1, false), (2, false), (1, true)].map(|(attempt, cancel_requested)| {
            let retry = RetryPolicy::new(2, Duration::from_secs(1), 2.0, Duration::from_secs(1), Vec::new()).unwrap();
            let context = RunContext {
                attempt: Attempt(attempt),
                maximum_attempts: 2,
                jitter: Jitter::NONE,
                retry: &retry,
                cancel_requested,
                start_to_close_timeout: Duration::from_secs(1),
                schedule_deadline: Timestamp::from_unix_millis(1_000_000),
            };
            let conclusion = conclude(&end, &context, Timestamp::from_unix_millis(0));
            let next = match conclusion.next {
                Next::Final(status) => status.to_string(),
                Next::RetryAfter(_) => "PENDING, later".to_owned(),
                Next::Requeue => "PENDING, attempt not counted".to_owned(),
            };
            (conclusion.outcome, next)
        });
        let outcome = cells[0].0.map_or("none".to_owned(), |outcome| outcome.to_string());
        assert!(cells.iter().all(|(other, _)| *other == cells[0].0), "an outcome depends on the end alone");
        writeln!(table, "| {words} | {outcome} | {} | {} | {} |", cells[0].1, cells[1].1, cells[2].1).unwrap();
    }
    table
}

fn phases() -> String {
    let mut table = "| phase | event | phase then | to do |\n| --- | --- | --- | --- |\n".to_owned();
    let mut diagram = "stateDiagram-v2\n    [*] --> Launching\n".to_owned();
    for phase in RunPhase::ALL {
        for event in RunEvent::ALL {
            let (next, order) = phase.step(event);
            if let Some(order) = order {
                writeln!(table, "| {phase:?} | {event:?} | {next:?} | {order:?} |").unwrap();
                writeln!(diagram, "    {phase:?} --> {next:?}: {event:?} / {order:?}").unwrap();
            }
        }
    }
    format!("{table}\n```mermaid\n{diagram}    Closed --> [*]\n```\n")
}

/// What may be asked of the store about one job, by a worker that is up to date or by one that is not.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Claim,
    Start { stale: bool },
    Settle { next: Next, stale: bool },
    Cancel,
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let next = prop_oneof![
        Just(Next::Final(JobStatus::Completed)),
        Just(Next::Final(JobStatus::Error)),
        Just(Next::Final(JobStatus::Cancelled)),
        Just(Next::RetryAfter(Duration::from_millis(1))),
        Just(Next::Requeue),
    ];
    // Three times in four the current token, or few sequences would come far.
    let stale = || (0..4).prop_map(|roll| roll == 0);
    prop_oneof![
        3 => Just(Ask::Claim),
        3 => stale().prop_map(|stale| Ask::Start { stale }),
        3 => (next, stale()).prop_map(|(next, stale)| Ask::Settle { next, stale }),
        1 => Just(Ask::Cancel),
    ]
}

struct OneJob {
    store: Store,
    job: JobId,
    flow: FlowType,
    worker: WorkerId,
    tokens: Vec<(RunToken, Attempt)>,
    /// Whether the current attempt's start stands in the store.
    started: bool,
}

impl OneJob {
    async fn enqueued() -> Self {
        let store = Store::in_memory().await.unwrap();
        let flow: FlowType = "ONE".parse().unwrap();
        let new = NewJob {
            flow: flow.clone(),
            identifier: "a".to_owned(),
            payload: None,
            priority: 0,
            due: Due::After(Duration::ZERO),
            maximum_attempts: None,
            unique_key: None,
            trace: None,
        };
        let job = store.enqueue(&[new]).await.unwrap()[0].id;
        Self { store, job, flow, worker: "w".parse().unwrap(), tokens: Vec::new(), started: false }
    }

    async fn status(&self) -> JobStatus {
        self.store.job(self.job).await.unwrap().unwrap().status
    }

    /// Does it, and gives the changes that it must have been where it was one.
    async fn ask(&mut self, ask: Ask) -> Vec<JobChange> {
        match ask {
            Ask::Claim => {
                let token = RunToken::from_bytes([u8::try_from(self.tokens.len()).unwrap() + 1; 16]);
                let claim = Write::Claim(Claim {
                    flow: self.flow.clone(),
                    worker: self.worker.clone(),
                    concurrency: 1,
                    worker_concurrency: 1,
                    requires: callsheet::domain::labels::Labels::default(),
                    beyond_share: false,
                    incarnation: String::new(),
                    terms: crate::store::terms(),
                    tokens: vec![token],
                    schedule_to_close_timeout: Duration::from_secs(172_800),
                });
                let answers = self.store.apply(&[claim]).await.unwrap();
                let Written::Claimed(claimed) = &answers[0] else { panic!("{answers:?}") };
                if !claimed.cancelled_pending.is_empty() {
                    return vec![JobChange::Cancelled];
                }
                let Some(job) = claimed.jobs.first() else { return Vec::new() };
                self.tokens.push((job.token.clone(), job.attempt));
                self.started = false;
                vec![JobChange::Claimed]
            }
            Ask::Start { stale } => {
                let Some((token, attempt)) = self.token(stale) else { return Vec::new() };
                let started = Write::Started(Started {
                    job: self.job,
                    token,
                    attempt,
                    worker: self.worker.clone(),
                    pid: 1,
                    started_time: Timestamp::from_unix_millis(1),
                    slot: None,
                });
                let before = self.status().await;
                let answers = self.store.apply(&[started]).await.unwrap();
                if stale || before != JobStatus::InQueue {
                    return Vec::new();
                }
                assert_eq!(answers, [Written::Applied]);
                self.started = true;
                vec![JobChange::Started]
            }
            Ask::Settle { next, stale } => {
                // What `conclude` and the JobActor never ask for: a run that is known to have started was not "never started".
                let next = if next == Next::Requeue && self.started { Next::Final(JobStatus::Error) } else { next };
                let Some((token, attempt)) = self.token(stale) else { return Vec::new() };
                let completed = next == Next::Final(JobStatus::Completed);
                // A command that completed has a start, which the settlement may be the first to tell of.
                let tells_start = completed || self.started;
                let settle = Write::Settle(Settlement {
                    job: self.job,
                    token,
                    attempt,
                    worker: self.worker.clone(),
                    next,
                    outcome: (next != Next::Requeue).then_some(if completed {
                        Outcome::Completed
                    } else {
                        Outcome::Failed
                    }),
                    error: (!completed).then(|| "it failed".to_owned()),
                    exit_code: None,
                    signal: None,
                    pid: tells_start.then_some(1),
                    started_time: tells_start.then_some(Timestamp::from_unix_millis(1)),
                    completed_time: Timestamp::from_unix_millis(2),
                    execution_ms: None,
                    usage: None,
                    lapsed: false,
                    slot: None,
                    message: None,
                });
                let before = self.status().await;
                self.store.apply(&[settle]).await.unwrap();
                if stale || !matches!(before, JobStatus::InQueue | JobStatus::Progress) {
                    return Vec::new();
                }
                let start = (before == JobStatus::InQueue && tells_start).then_some(JobChange::Started);
                self.started = false;
                start.into_iter().chain(JobChange::of(next)).collect()
            }
            Ask::Cancel => match self.store.request_cancel(self.job).await.unwrap() {
                CancelResult::Cancelled => vec![JobChange::Cancelled],
                _ => Vec::new(),
            },
        }
    }

    /// The token of the newest claim, or of the one before.
    fn token(&self, stale: bool) -> Option<(RunToken, Attempt)> {
        self.tokens.iter().rev().nth(usize::from(stale)).cloned()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_table_of_statuses_says_and_nothing_else(asks in prop::collection::vec(any_ask(), 1..14)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut job = OneJob::enqueued().await;
            let mut status = JobStatus::Pending;
            let mut path = Vec::new();
            for ask in asks {
                for change in job.ask(ask).await {
                    let next = status.after(change);
                    prop_assert!(next.is_some(), "{:?} was done to a job that is {}", change, status);
                    status = next.unwrap();
                    path.push(status.to_string());
                }
                prop_assert_eq!(job.status().await, status, "after {:?}", ask);
            }
            let events = job.store.events(job.job).await.unwrap();
            prop_assert_eq!(events.into_iter().map(|event| event.to_status).collect::<Vec<_>>(), path);
            Ok(())
        })?;
    }
}
