//! What is measured on the tables alone: enqueues, and claims beside few and many rows and under an old snapshot.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use callsheet::domain::heartbeat::LeaseTerms;
use callsheet::domain::run::Next;
use callsheet::domain::{JobStatus, Outcome, RunToken};
use callsheet::store::{Claim, Settlement, Store, Write, Written};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, IsolationLevel, TransactionTrait};

use super::enqueue;
use super::report::Report;

const CLAIMS: u32 = 200;
const TERMS: LeaseTerms = LeaseTerms {
    heartbeat_timeout: Duration::from_secs(20),
    start_to_close_timeout: Duration::from_secs(172_800),
    kill_grace: Duration::from_secs(10),
};
const FROM_A_FILE: usize = 100_000;
const BATCH: usize = 10_000;
/// Rows of one statement that fills a table: its log is not to be larger than what it fills.
const CHUNK: u64 = 1_000_000;

pub(super) async fn measure(
    store: &Store,
    directory: &Path,
    url: &str,
    name: &'static str,
    (most, snapshot): (u64, u32),
    report: &mut Report,
) {
    let started = Instant::now();
    enqueue(store, "BATCHED", (0..BATCH).map(|n| format!("b{n}"))).await;
    report.add(name, "rows in one batch of 10,000", BATCH as f64 / started.elapsed().as_secs_f64(), "/s", None);
    report.add(name, "rows by `enqueue --from FILE`", by_command(directory, url), "/s", None);
    let database = Database::connect(url).await.expect("the database");
    let mut smallest = None;
    let mut waiting = vec![10, 10_000];
    waiting.extend((most > CHUNK).then_some(CHUNK));
    waiting.push(most);
    for (rows, status) in waiting.into_iter().map(|rows| (rows, "PENDING")).chain([(most, "COMPLETED")]) {
        fill(&database, url, rows, status).await;
        let time = claim_time(store).await;
        let smallest = *smallest.get_or_insert(time);
        let what = format!("claim and end, with {rows} {status} rows more");
        report.add(name, &what, time, "ms", Some((time / smallest, "of that with the fewest".to_owned())));
    }
    under_old_snapshot(store, &database, url, name, snapshot, report).await;
}

/// Claims while another session holds what it saw before them.
async fn under_old_snapshot(
    store: &Store,
    database: &DatabaseConnection,
    url: &str,
    name: &'static str,
    claims: u32,
    report: &mut Report,
) {
    fill(database, url, u64::from(claims), "PENDING").await;
    let level = (!url.starts_with("sqlite")).then_some(IsolationLevel::RepeatableRead);
    let held = database.begin_with_config(level, None).await.expect("a transaction");
    held.execute_unprepared("SELECT 1 FROM jobs LIMIT 1").await.expect("a snapshot");
    let (mut claiming, mut times) = (Claiming::default(), Vec::new());
    for _ in 0..claims {
        times.extend(claiming.turn(store).await);
    }
    claiming.end(store).await;
    held.rollback().await.expect("the end of it");
    let part = times.len() / 10;
    let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len().max(1) as f64;
    let (first, last) = (mean(&times[..part]), mean(&times[times.len() - part..]));
    let what = format!("claim and end, the first of {claims} under a snapshot");
    report.add(name, &what, first, "ms", None);
    let what = "claim and end, the last tenth of them".to_owned();
    report.add(name, &what, last, "ms", Some((last / first, "of the first tenth".to_owned())));
}

/// Rows a second.
fn by_command(directory: &Path, url: &str) -> f64 {
    let file = directory.join("identifiers");
    let lines: String = (0..FROM_A_FILE).map(|n| format!("f{n}\n")).collect();
    fs::write(&file, lines).expect("a file");
    let started = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_callsheet"))
        .args(["--config".as_ref(), directory.join("callsheet.toml").as_os_str()])
        .args(["enqueue".as_ref(), "ONE".as_ref(), "--from".as_ref(), file.as_os_str()])
        .env("DATABASE_URL", url)
        .output()
        .expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    FROM_A_FILE as f64 / started.elapsed().as_secs_f64()
}

async fn fill(database: &DatabaseConnection, url: &str, rows: u64, status: &str) {
    let columns = "INSERT INTO jobs (type, identifier, status, completed_time)";
    let completed = if status == "PENDING" { "NULL" } else { "n" };
    let select = format!("SELECT 'TABLE', 'x', '{status}', {completed}");
    let mut left = rows;
    while left > 0 {
        let rows = left.min(CHUNK);
        left -= rows;
        let sql = if url.starts_with("sqlite") {
            format!(
                "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows}) {columns} {select} FROM n"
            )
        } else {
            format!("{columns} {select} FROM generate_series(1, {rows}) AS n")
        };
        database.execute_unprepared(&sql).await.expect("the rows");
    }
    database.execute_unprepared("ANALYZE").await.expect("statistics");
    if !url.starts_with("sqlite") {
        // What filling it has left to be written would be written while claims wait for the same disk.
        database.execute_unprepared("CHECKPOINT").await.expect("a checkpoint");
    }
}

/// The median, in milliseconds, of a claim of one row with its commit.
async fn claim_time(store: &Store) -> f64 {
    let (mut claiming, mut times) = (Claiming::default(), Vec::new());
    for n in 0..CLAIMS {
        let Some(time) = claiming.turn(store).await else {
            assert!(n >= 9, "there was a row to claim");
            break;
        };
        times.push(time);
    }
    claiming.end(store).await;
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// One job after the other.
#[derive(Default)]
struct Claiming {
    last: Option<Write>,
}

impl Claiming {
    /// The end of the last job and the claim of the next in one commit, in milliseconds; `None` where there is no next one.
    async fn turn(&mut self, store: &Store) -> Option<f64> {
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes).expect("random numbers");
        let claim = Write::Claim(Claim {
            flow: "TABLE".parse().expect("a type"),
            worker: "bench".parse().expect("a worker"),
            concurrency: 1,
            worker_concurrency: 1,
            requires: callsheet::domain::labels::Labels::default(),
            beyond_share: false,
            incarnation: String::new(),
            schedule_to_close_timeout: Duration::from_secs(1 << 33),
            terms: TERMS,
            tokens: vec![RunToken::from_bytes(bytes)],
        });
        let writes: Vec<Write> = self.last.take().into_iter().chain([claim]).collect();
        let started = Instant::now();
        let written = store.apply(&writes).await.expect("a claim");
        let time = started.elapsed().as_secs_f64() * 1e3;
        let Some(Written::Claimed(claimed)) = written.last() else { panic!("{written:?}") };
        let job = claimed.jobs.first()?;
        self.last = Some(Write::Settle(Settlement {
            job: job.id,
            token: job.token.clone(),
            attempt: job.attempt,
            worker: "bench".parse().expect("a worker"),
            next: Next::Final(JobStatus::Completed),
            outcome: Some(Outcome::Completed),
            error: None,
            exit_code: Some(0),
            signal: None,
            pid: None,
            started_time: None,
            completed_time: job.created_time,
            execution_ms: Some(1),
            usage: None,
            lapsed: false,
            slot: None,
            message: None,
        }));
        Some(time)
    }

    async fn end(self, store: &Store) {
        if let Some(end) = self.last {
            store.apply(&[end]).await.expect("the last end");
        }
    }
}
