//! What SQLite plans for the statements of a job's way through the tables: none may read a table from its start.
//!
//! PostgreSQL's are held by its own count of such reads, in `tests/it/store.rs`.

use std::cell::RefCell;
use std::time::Duration;

use sea_orm::Statement;

use super::connection::Connection;
use super::{
    Claim, ClaimedJob, Confirm, Due, JobFilter, NewJob, ProgressNote, Settlement, Started, Store, Write, Written,
};
use crate::domain::heartbeat::LeaseTerms;
use crate::domain::labels::Labels;
use crate::domain::run::Next;
use crate::domain::{JobId, JobStatus, Outcome, RunToken, Timestamp};

thread_local! {
    static SEEN: RefCell<Option<Vec<Statement>>> = const { RefCell::new(None) };
}

/// A statement is about to be run.
pub(super) fn seen(statement: &Statement) {
    SEEN.with_borrow_mut(|seen| {
        if let Some(seen) = seen {
            seen.push(statement.clone());
        }
    });
}

const ROWS: &str = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 3000) ";

async fn filled() -> Store {
    let store = Store::in_memory().await.unwrap();
    for sql in [
        "INSERT INTO jobs (type, identifier, status, run_token, completed_time) \
         SELECT 'A', 'i' || n, CASE WHEN n % 3 = 0 THEN 'ERROR' ELSE 'COMPLETED' END, printf('%032x', n), n FROM n",
        "INSERT INTO runs (job_id, attempt, run_token, outcome) SELECT n, 1, printf('%032x', n), 'COMPLETED' FROM n",
        "INSERT INTO job_events (job_id, attempt, to_status, time) SELECT n, 1, 'COMPLETED', n FROM n",
        "INSERT INTO jobs (type, identifier) SELECT 'A', 'w' || n FROM n",
    ] {
        store.writer().run(&format!("{ROWS}{sql}")).await.unwrap();
    }
    store
}

fn settlement(job: &ClaimedJob, next: Next, outcome: Option<Outcome>) -> Write {
    Write::Settle(Settlement {
        job: job.id,
        token: job.token.clone(),
        attempt: job.attempt,
        worker: "w".parse().unwrap(),
        next,
        outcome,
        error: None,
        exit_code: Some(0),
        signal: None,
        pid: Some(1),
        started_time: Some(Timestamp::from_unix_millis(1)),
        completed_time: Timestamp::from_unix_millis(2),
        execution_ms: Some(1),
        usage: None,
        lapsed: false,
        slot: None,
        message: None,
    })
}

const WAIT: Duration = Duration::from_secs(20);
const TERMS: LeaseTerms = LeaseTerms { heartbeat_timeout: WAIT, start_to_close_timeout: WAIT, kill_grace: WAIT };

fn claim(tokens: &[u8]) -> Claim {
    Claim {
        flow: "A".parse().unwrap(),
        worker: "w".parse().unwrap(),
        concurrency: 8,
        worker_concurrency: 8,
        requires: Labels::default(),
        beyond_share: false,
        incarnation: String::new(),
        schedule_to_close_timeout: Duration::from_secs(1 << 40),
        terms: TERMS,
        tokens: tokens.iter().map(|n| RunToken::from_bytes([*n; 16])).collect(),
    }
}

/// All that is asked of the tables for a job, and what goes on beside.
async fn work(store: &Store) {
    let written = store.apply(&[Write::Claim(claim(&[1, 2, 3]))]).await.unwrap();
    let Some(Written::Claimed(claimed)) = written.first() else { panic!("{written:?}") };
    let [first, second, third] = claimed.jobs.as_slice() else { panic!("{claimed:?}") };
    let started = |job: &ClaimedJob| {
        Write::Started(Started {
            job: job.id,
            token: job.token.clone(),
            attempt: job.attempt,
            worker: "w".parse().unwrap(),
            pid: 1,
            started_time: Timestamp::from_unix_millis(1),
            slot: None,
        })
    };
    let note = ProgressNote { token: first.token.clone(), progress: Some(1), status_message: None };
    store.request_cancel(third.id).await.unwrap();
    store.request_cancel(JobId(4000)).await.unwrap();
    let writes = [
        started(first),
        started(first),
        Write::Confirm(claimed.jobs.iter().map(|job| Confirm { token: job.token.clone(), untouched: WAIT }).collect()),
        Write::Progress(note),
        settlement(first, Next::Final(JobStatus::Completed), Some(Outcome::Completed)),
        settlement(first, Next::Final(JobStatus::Completed), Some(Outcome::Completed)),
        settlement(second, Next::RetryAfter(Duration::from_secs(600)), Some(Outcome::Failed)),
        settlement(third, Next::Requeue, None),
        Write::Claim(claim(&[4])),
    ];
    let answers = store.apply(&writes).await.unwrap();
    assert!(!answers.contains(&Written::Fenced), "{answers:?}");
    let keyed = NewJob {
        flow: "A".parse().unwrap(),
        identifier: "k".to_owned(),
        payload: None,
        priority: 0,
        due: Due::After(Duration::ZERO),
        maximum_attempts: None,
        unique_key: Some("key".to_owned()),
        trace: None,
    };
    for _ in 0..2 {
        store.enqueue(std::slice::from_ref(&keyed)).await.unwrap();
    }
    store.next_due(&keyed.flow).await.unwrap();
    store.open_jobs(&"w".parse().unwrap(), Some(&keyed.flow)).await.unwrap();
    store.open_jobs(&"w".parse().unwrap(), None).await.unwrap();
    store.jobs(&[JobId(1), JobId(2)]).await.unwrap();
    store.known_runs(&[JobId(1), JobId(2)]).await.unwrap();
    store.runs(first.id).await.unwrap();
    store.events(first.id).await.unwrap();
    store.events_after(5, 10).await.unwrap();
    let page = JobFilter { types: vec!["A".to_owned()], limit: 10, ..JobFilter::default() };
    store.list(&page).await.unwrap();
    store.workers().await.unwrap();
    store.overview().await.unwrap();
    let ended = JobFilter { statuses: vec![JobStatus::Error, JobStatus::Completed], limit: 10, ..JobFilter::default() };
    store.list(&ended).await.unwrap();
}

/// The statements that are run one after the other; a semicolon in a text is not followed by one.
fn alone(sql: &str) -> Vec<String> {
    let mut marked = sql.to_owned();
    for word in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
        marked = marked.replace(&format!("; {word} "), &format!(";\n{word} "));
    }
    marked.split(";\n").map(str::to_owned).collect()
}

#[tokio::test]
async fn no_statement_of_a_jobs_way_reads_a_table_from_its_start() {
    // Statements are seen on the thread that makes them.
    let store = filled().await.here();
    SEEN.with_borrow_mut(|seen| *seen = Some(Vec::new()));
    work(&store).await;
    let statements = SEEN.take().unwrap();
    let mut looked = 0;
    for statement in &statements {
        for sql in alone(&statement.sql).iter().filter(|sql| !sql.starts_with("PRAGMA")) {
            let explain = Statement { sql: format!("EXPLAIN QUERY PLAN {sql}"), ..statement.clone() };
            for row in store.reader().query_all(explain).await.unwrap() {
                let step: String = row.get("detail").unwrap();
                let scans =
                    ["jobs", "runs", "job_events"].iter().any(|table| step.starts_with(&format!("SCAN {table}")));
                // In which is what is open now, and nothing else.
                let scans = scans && !step.ends_with("USING INDEX jobs_open");
                assert!(!scans, "{step:?} in the plan of {sql}");
                looked += 1;
            }
        }
    }
    assert!(statements.len() > 20 && looked > 40, "{} statements, {looked} steps of plans", statements.len());
}

#[tokio::test]
async fn a_claim_where_nothing_waits_asks_once() {
    let store = Store::in_memory().await.unwrap().here();
    SEEN.with_borrow_mut(|seen| *seen = Some(Vec::new()));
    let written = store.apply(&[Write::Claim(claim(&[1]))]).await.unwrap();
    let statements = SEEN.take().unwrap();
    let [Written::Claimed(claimed)] = written.as_slice() else { panic!("{written:?}") };
    assert_eq!((claimed.jobs.len(), claimed.next_due), (0, None));
    assert_eq!(statements.len(), 1, "{statements:?}");
}

#[tokio::test]
async fn delayed_rows_of_many_priorities_cost_a_claim_no_statement_each() {
    // Statements are seen on the thread that makes them.
    let store = filled().await.here();
    let delayed = "INSERT INTO jobs (type, identifier, priority, run_at) SELECT 'A', 'd', n, 253402300799000 FROM n";
    store.writer().run(&format!("{ROWS}{delayed}")).await.unwrap();
    for (priority, expected) in [(1500_i64, 1500), (-7, 0)] {
        let due = format!("INSERT INTO jobs (type, identifier, priority, run_at) VALUES ('A', 'due', {priority}, 1)");
        store.writer().run(&due).await.unwrap();
        SEEN.with_borrow_mut(|seen| *seen = Some(Vec::new()));
        let written = store.apply(&[Write::Claim(claim(&[priority.to_le_bytes()[0]]))]).await.unwrap();
        let statements = SEEN.take().unwrap();
        let Some(Written::Claimed(claimed)) = written.first() else { panic!("{written:?}") };
        assert_eq!(claimed.jobs.iter().map(|job| job.priority).collect::<Vec<_>>(), [expected]);
        assert!(statements.len() < 12, "{statements:#?}");
    }
}
