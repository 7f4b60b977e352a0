//! The store's promises, each shown on SQLite, on PostgreSQL and on MariaDB.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests may fail like tests"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use callsheet::config::Config;
use callsheet::domain::heartbeat::{Lease, LeaseTerms};
use callsheet::domain::labels::Labels;
use callsheet::domain::run::{Next, Usage};
use callsheet::domain::trace::TraceContext;
use callsheet::domain::{Attempt, FlowType, JobId, JobStatus, Outcome, RunToken, Timestamp, WorkerId};
use callsheet::store::{
    CancelResult, Claim, Claimed, ClaimedJob, Confirm, Due, Enqueued, Error, JobFilter, JobRow, NewJob, ProgressNote,
    Settlement, Started, Store, Use, Wakes, Worker, WorkerNote, WorkerState, Write, Written,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement, TransactionTrait};

use crate::support::service::{On, connect};
use crate::support::{eventually, mariadb as mariadb_server, postgres as server};

/// A database of its own, with another client beside the store.
pub struct Db {
    pub store: Store,
    url: String,
    /// Says which table is `jobs`, where it is not Callsheet's own.
    config: Option<Config>,
    /// A client that knows nothing of Callsheet.
    pub foreign: DatabaseConnection,
    pub on: On,
    path: Option<PathBuf>,
    _directory: Option<tempfile::TempDir>,
}

impl Db {
    pub async fn sqlite() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("callsheet.db");
        let url = format!("sqlite://{}", path.display());
        Some(Self::open(On::Sqlite, url, Some(path), Some(directory)).await)
    }

    pub async fn postgres() -> Option<Self> {
        Some(Self::open(On::Postgres, server::database()?, None, None).await)
    }

    pub async fn mariadb() -> Option<Self> {
        Some(Self::open(On::MariaDb, mariadb_server::database()?, None, None).await)
    }

    async fn open(on: On, url: String, path: Option<PathBuf>, directory: Option<tempfile::TempDir>) -> Self {
        let store = Store::connect(&url.parse().unwrap(), Use::Service).await.unwrap();
        store.migrate().await.unwrap();
        let foreign = connect(&url).await;
        Self { store, url, config: None, foreign, on, path, _directory: directory }
    }

    /// PostgreSQL, with a table that was there before as `jobs`: under our names it is what our own is.
    pub async fn adopted() -> Option<Self> {
        let url = server::database()?;
        let text = format!(
            "database_url = \"{url}\"\n[store.jobs]\ntable = \"Job\"\n{}\n[flows.RENDER]\ncommand = [\"true\"]\n",
            super::adopted::MAPPING
        );
        let config = Config::parse(&text, std::path::Path::new("/callsheet.toml")).unwrap();
        let owner = connect(&url).await;
        // `jsonb` forgets the order of the keys, which a test looks at.
        owner.execute_unprepared(&super::adopted::PRISMA.replace("JSONB", "JSON")).await.unwrap();
        let store = Store::of(&config, Use::Service).await.unwrap();
        let script = store.adoption().await.unwrap().unwrap().script();
        owner.execute_unprepared(&script).await.unwrap();
        owner.close().await.unwrap();
        store.migrate().await.unwrap();
        let foreign = connect(format!("{url}&options[search_path]=callsheet")).await;
        Some(Self { store, url, config: Some(config), foreign, on: On::Postgres, path: None, _directory: None })
    }

    pub fn is_sqlite(&self) -> bool {
        self.on == On::Sqlite
    }

    /// `FROM` and a table `n` whose column `n` is 1 to `most`, behind what comes first in a statement on SQLite.
    pub fn numbers(&self, most: u32) -> (String, String) {
        match self.on {
            On::Sqlite => {
                let with = format!("WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {most}) ");
                (with, "FROM n".to_owned())
            }
            On::Postgres => (String::new(), format!("FROM generate_series(1, {most}) AS n(n)")),
            On::MariaDb => (String::new(), format!("FROM (SELECT seq AS n FROM seq_1_to_{most}) AS n")),
        }
    }

    /// Another service on the same database.
    pub async fn another(&self) -> Store {
        match &self.config {
            Some(config) => Store::of(config, Use::Service).await.unwrap(),
            None => Store::connect(&self.url.parse().unwrap(), Use::Service).await.unwrap(),
        }
    }

    pub async fn sql(&self, sql: &str) -> Result<u64, sea_orm::DbErr> {
        self.foreign.execute_unprepared(sql).await.map(|done| done.rows_affected())
    }

    pub async fn number(&self, sql: &str) -> i64 {
        let statement = Statement::from_string(self.foreign.get_database_backend(), sql);
        let row = self.foreign.query_one_raw(statement).await.unwrap().unwrap();
        row.try_get_by_index(0).unwrap()
    }

    /// Waits until no session of a store is left on PostgreSQL, which knows all of its counts at its end only.
    pub async fn alone(&self) {
        const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity \
            WHERE datname = current_database() AND application_name = 'callsheet'";
        eventually("the sessions of stores to end", async || self.number(OTHERS).await == 0).await;
    }

    pub async fn row(&self, job: JobId) -> callsheet::store::JobRow {
        self.store.job(job).await.unwrap().unwrap()
    }

    /// `(from, to)` of every event of a job.
    pub async fn steps(&self, job: JobId) -> Vec<(String, String)> {
        let events = self.store.events(job).await.unwrap();
        assert!(events.iter().all(|event| event.message.as_ref().is_some_and(|message| !message.is_empty())));
        assert!(events.windows(2).all(|pair| pair[0].id < pair[1].id && pair[0].time <= pair[1].time));
        events.into_iter().map(|event| (event.from_status.unwrap_or_default(), event.to_status)).collect()
    }

    pub async fn apply(&self, write: Write) -> Written {
        self.store.apply(&[write]).await.unwrap().remove(0)
    }

    pub async fn claim(&self, tokens: &[RunToken]) -> Claimed {
        claim_with(&self.store, claim(tokens)).await
    }

    /// Enqueues a job and claims it.
    pub async fn claimed(&self, identifier: &str, n: u8) -> ClaimedJob {
        self.store.enqueue(&[new(identifier)]).await.unwrap();
        let mut claimed = self.claim(&[token(n)]).await;
        assert_eq!(claimed.jobs.len(), 1, "{claimed:?}");
        claimed.jobs.remove(0)
    }

    pub async fn running(&self, identifier: &str, n: u8) -> ClaimedJob {
        let job = self.claimed(identifier, n).await;
        assert_eq!(self.apply(started(&job)).await, Written::Applied);
        job
    }
}

pub async fn claim_with(store: &Store, claim: Claim) -> Claimed {
    match store.apply(&[Write::Claim(claim)]).await.unwrap().remove(0) {
        Written::Claimed(claimed) => *claimed,
        other => panic!("{other:?}"),
    }
}

pub fn flow() -> FlowType {
    "RENDER".parse().unwrap()
}

pub fn worker() -> WorkerId {
    "node-a".parse().unwrap()
}

pub fn token(n: u8) -> RunToken {
    RunToken::from_bytes([n; 16])
}

pub fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_unix_millis(milliseconds)
}

pub fn new(identifier: &str) -> NewJob {
    NewJob {
        flow: flow(),
        identifier: identifier.to_owned(),
        payload: None,
        priority: 0,
        due: Due::After(Duration::ZERO),
        maximum_attempts: None,
        unique_key: None,
        trace: None,
    }
}

/// As a flow has them where nothing is configured.
pub fn terms() -> LeaseTerms {
    LeaseTerms {
        heartbeat_timeout: Duration::from_secs(20),
        start_to_close_timeout: Duration::from_secs(172_800),
        kill_grace: Duration::from_secs(10),
    }
}

pub fn confirm(tokens: &[RunToken]) -> Write {
    let untouched = terms().untouched(Lease::Long);
    Write::Confirm(tokens.iter().map(|token| Confirm { token: token.clone(), untouched }).collect())
}

pub fn claim(tokens: &[RunToken]) -> Claim {
    Claim {
        flow: flow(),
        worker: worker(),
        concurrency: 100,
        worker_concurrency: 100,
        requires: Labels::default(),
        beyond_share: false,
        incarnation: String::new(),
        schedule_to_close_timeout: LONG,
        terms: terms(),
        tokens: tokens.to_vec(),
    }
}

/// Longer than any test's rows have waited, whatever times they were given.
const LONG: Duration = Duration::from_secs(400 * 366 * 86_400);

pub fn started(job: &ClaimedJob) -> Write {
    Write::Started(Started {
        job: job.id,
        token: job.token.clone(),
        attempt: job.attempt,
        worker: worker(),
        pid: 4242,
        started_time: at(5_000_000_000_000),
        slot: None,
    })
}

pub fn settlement(job: &ClaimedJob, next: Next, outcome: Option<Outcome>) -> Settlement {
    Settlement {
        job: job.id,
        token: job.token.clone(),
        attempt: job.attempt,
        worker: worker(),
        next,
        outcome,
        error: None,
        exit_code: None,
        signal: None,
        pid: None,
        started_time: None,
        completed_time: at(5_000_000_001_500),
        execution_ms: None,
        usage: None,
        lapsed: false,
        slot: None,
        message: None,
    }
}

pub fn completed(job: &ClaimedJob) -> Settlement {
    Settlement {
        exit_code: Some(0),
        pid: Some(4242),
        started_time: Some(at(5_000_000_000_000)),
        execution_ms: Some(1500),
        usage: Some(Usage {
            user_cpu: Duration::from_millis(20),
            system_cpu: Duration::from_millis(3),
            max_rss_bytes: 5_000_000_000,
            io_read_bytes: Some(6_000_000_000),
            io_write_bytes: None,
            output_bytes: 0,
        }),
        ..settlement(job, Next::Final(JobStatus::Completed), Some(Outcome::Completed))
    }
}

pub fn failed(job: &ClaimedJob, next: Next) -> Settlement {
    Settlement {
        error: Some("the command failed with exit code 3\nlast words\0".to_owned()),
        exit_code: Some(3),
        execution_ms: Some(7),
        ..settlement(job, next, Some(Outcome::Failed))
    }
}

pub fn steps(words: &[&str]) -> Vec<(String, String)> {
    words.windows(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
}

pub fn ids(enqueued: &[Enqueued]) -> Vec<JobId> {
    enqueued.iter().map(|job| job.id).collect()
}

const ERROR: Next = Next::Final(JobStatus::Error);

/// Waits for a wake-up, and says how long it took.
async fn woken(wakes: &mut Wakes) -> Duration {
    let start = Instant::now();
    tokio::time::timeout(Duration::from_secs(60), wakes.next()).await.expect("a wake-up");
    start.elapsed()
}

/// Longer than a wake-up takes on a machine that is not busy, and than MariaDB is left unasked.
const QUIET: Duration = Duration::from_millis(600);

/// Waits until nothing has woken anybody for a while.
async fn calm(wakes: &mut Wakes) {
    while tokio::time::timeout(QUIET, wakes.next()).await.is_ok() {}
}

/// Checks that this wakes nobody. One wake-up may be a late one of what was before; each time it is not.
async fn wakes_nobody(wakes: &mut Wakes, what: impl AsyncFn()) {
    for _ in 0..5 {
        calm(wakes).await;
        what().await;
        if tokio::time::timeout(QUIET, wakes.next()).await.is_err() {
            return;
        }
    }
    panic!("woken by nobody else's change, each time");
}

/// One after the other, or each when all is quiet.
#[derive(PartialEq, Eq)]
enum Each {
    AtOnce,
    OutOfCalm,
}

/// Checks that something wakes in no more than this as a rule: half of so many times, on a machine that is not always busy.
async fn wakes_within(wakes: &mut Wakes, each: Each, times: usize, most: Duration, what: impl AsyncFn()) {
    let begun = Instant::now();
    loop {
        let mut latencies = Vec::new();
        for _ in 0..times {
            if each == Each::OutOfCalm {
                calm(wakes).await;
            }
            what().await;
            latencies.push(woken(wakes).await);
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        latencies.sort_unstable();
        if latencies[times / 2] < most {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{latencies:?}");
    }
}

macro_rules! on_every_database {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(db) = super::Db::sqlite().await {
                    super::$test(db).await;
                }
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(db) = super::Db::postgres().await {
                    super::$test(db).await;
                }
            })*
        }
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(db) = super::Db::mariadb().await {
                    super::$test(db).await;
                }
            })*
        }
    };
}
pub(crate) use on_every_database;

on_every_database!(
    a_row_with_a_type_and_an_identifier_is_a_complete_enqueue,
    rows_are_claimed_by_priority_then_run_at_then_id,
    delayed_rows_are_not_claimed_and_hold_up_nobody,
    no_more_runs_are_open_than_the_flow_may_have,
    a_worker_that_lacks_a_label_has_no_part_of_the_flow,
    eight_claimers_at_once_take_every_row_once_and_never_too_many,
    a_claim_that_is_repeated_brings_the_same_rows,
    rows_that_differ_in_their_identifiers_only_are_as_all_others,
    a_job_goes_its_way_with_every_column_and_event,
    a_failed_attempt_waits_for_its_retry_and_keeps_its_schedule_time,
    a_run_that_never_started_is_put_back_uncounted,
    an_end_that_overtakes_its_start_is_told_with_it,
    a_run_whose_token_is_not_current_writes_nothing,
    every_write_may_be_repeated,
    a_whole_batch_may_be_repeated,
    ends_that_share_a_batch_are_told_of_one_by_one,
    what_an_end_lets_go_is_there_for_the_claim_that_shares_its_batch,
    a_job_can_be_cancelled_in_every_open_status,
    a_cancel_request_by_sql_is_found_by_the_claim,
    a_settlement_does_not_lose_a_cancel_request,
    a_paused_flow_claims_nothing_but_cancels,
    rows_of_other_types_are_left_alone,
    claims_of_several_flows_find_what_waits_or_runs_in_any,
    unreadable_rows_are_claimed_with_the_reason,
    a_batch_may_be_larger_than_what_a_server_takes_at_once,
    an_open_unique_key_is_enqueued_once_also_in_a_race,
    a_batch_of_jobs_is_numbered_in_its_order,
    lists_are_stable_under_the_cursor,
    lists_by_status_bring_every_type_newest_first,
    times_are_kept_to_the_millisecond_past_2038,
    what_makes_no_sense_is_refused_with_a_name,
    open_rows_are_found_whoever_wrote_them,
    queues_are_counted_without_ended_rows,
    workers_and_flows_are_registered,
    a_batch_is_all_or_nothing,
    migrations_run_once_also_when_two_processes_start,
    an_index_that_somebody_has_dropped_is_no_obstacle_to_its_removal,
    a_newer_schema_is_refused,
    a_foreign_commit_wakes_and_an_own_one_does_not,
    many_cancelled_rows_are_settled_in_portions,
);

macro_rules! on_an_adopted_table {
    ($($test:ident),* $(,)?) => {
        mod adopted_table {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(db) = super::Db::adopted().await {
                    super::$test(db).await;
                }
            })*
        }
    };
}

on_an_adopted_table!(
    rows_are_claimed_by_priority_then_run_at_then_id,
    eight_claimers_at_once_take_every_row_once_and_never_too_many,
    rows_that_differ_in_their_identifiers_only_are_as_all_others,
    a_job_goes_its_way_with_every_column_and_event,
    a_failed_attempt_waits_for_its_retry_and_keeps_its_schedule_time,
    a_run_that_never_started_is_put_back_uncounted,
    a_run_whose_token_is_not_current_writes_nothing,
    a_whole_batch_may_be_repeated,
    ends_that_share_a_batch_are_told_of_one_by_one,
    a_job_can_be_cancelled_in_every_open_status,
    an_open_unique_key_is_enqueued_once_also_in_a_race,
    times_are_kept_to_the_millisecond_past_2038,
    open_rows_are_found_whoever_wrote_them,
    claims_of_several_flows_find_what_waits_or_runs_in_any,
    a_foreign_commit_wakes_and_an_own_one_does_not,
    no_table_is_read_from_its_start_to_claim,
);

async fn a_row_with_a_type_and_an_identifier_is_a_complete_enqueue(db: Db) {
    let before = db.store.now().await.unwrap();
    db.sql("INSERT INTO jobs (type, identifier) VALUES ('RENDER', 'abc')").await.unwrap();
    let after = db.store.now().await.unwrap();
    let id = JobId(db.number("SELECT max(id) FROM jobs").await);
    let row = db.row(id).await;
    assert_eq!((row.job_type.as_str(), row.identifier.as_str()), ("RENDER", "abc"));
    assert_eq!((row.status, row.priority, row.attempt), (JobStatus::Pending, 0, Attempt(0)));
    assert!(before <= row.created_time && row.created_time <= after, "{before:?} {:?} {after:?}", row.created_time);
    assert!(before <= row.run_at && row.run_at <= after);
    assert_eq!((row.run_token, row.worker_id, row.progress, row.queued_time), (None, None, None, None));
    // Due at once: not a millisecond in the future.
    let claimed = db.claim(&[token(1)]).await;
    assert_eq!(claimed.jobs.len(), 1);
    assert_eq!(claimed.jobs[0].identifier, Ok("abc".to_owned()));
    assert_eq!(claimed.jobs[0].payload, Ok(None));

    // An id is never used twice.
    db.sql("DELETE FROM jobs").await.unwrap();
    db.sql("INSERT INTO jobs (type, identifier) VALUES ('RENDER', 'abc')").await.unwrap();
    assert!(db.number("SELECT max(id) FROM jobs").await > id.0);
}

async fn rows_are_claimed_by_priority_then_run_at_then_id(db: Db) {
    for (identifier, priority, run_at) in
        [("e", 0, 2000), ("c", 0, 1000), ("d", 0, 1000), ("a", 7, 9000), ("b", 7, 9500), ("f", -3, 1)]
    {
        let job = NewJob { priority, due: Due::At(at(run_at)), ..new(identifier) };
        db.store.enqueue(&[job]).await.unwrap();
    }
    let mut order = String::new();
    for n in 0..3 {
        for job in db.claim(&[token(n * 2), token(n * 2 + 1)]).await.jobs {
            order.push_str(&job.identifier.unwrap());
        }
    }
    assert_eq!(order, "abcdef");
}

async fn delayed_rows_are_not_claimed_and_hold_up_nobody(db: Db) {
    let now = db.store.now().await.unwrap();
    let later = now.plus(Duration::from_secs(600));
    let soon = now.plus(Duration::from_secs(300));
    for priority in [5, 4, 3] {
        for _ in 0..3 {
            db.store.enqueue(&[NewJob { priority, due: Due::At(later), ..new("later") }]).await.unwrap();
        }
    }
    db.store.enqueue(&[NewJob { due: Due::At(soon), ..new("soon") }]).await.unwrap();
    let nothing = db.claim(&[token(1)]).await;
    assert_eq!((nothing.jobs.len(), nothing.next_due), (0, Some(soon)));
    db.store.enqueue(&[new("due"), NewJob { priority: 4, due: Due::At(now), ..new("due first") }]).await.unwrap();
    let claimed = db.claim(&[token(1), token(2), token(3)]).await;
    let names: Vec<_> = claimed.jobs.iter().map(|job| job.identifier.clone().unwrap()).collect();
    assert_eq!(names, ["due first", "due"]);
    assert_eq!(claimed.next_due, Some(soon));
    assert_eq!(db.store.next_due(&flow()).await.unwrap(), Some(soon));
    assert_eq!(db.store.next_due(&"OTHER".parse().unwrap()).await.unwrap(), None);
    let delayed = db.store.enqueue(&[NewJob { due: Due::After(Duration::from_secs(60)), ..new("x") }]).await.unwrap();
    let row = db.row(delayed[0].id).await;
    let delay = row.run_at.since(row.created_time);
    assert!((59_900..60_100).contains(&delay.as_millis()), "{delay:?}");
}

async fn no_more_runs_are_open_than_the_flow_may_have(db: Db) {
    db.store.enqueue(&vec![new("x"); 10]).await.unwrap();
    let limits = |worker: &str, concurrency, worker_concurrency, tokens: std::ops::Range<u8>| Claim {
        worker: worker.parse().unwrap(),
        concurrency,
        worker_concurrency,
        ..claim(&tokens.map(token).collect::<Vec<_>>())
    };
    let first = claim_with(&db.store, limits("node-a", 4, 3, 0..9)).await;
    assert_eq!((first.jobs.len(), first.open, first.next_due), (3, 3, None));
    let second = claim_with(&db.store, limits("node-b", 4, 3, 10..19)).await;
    assert_eq!((second.jobs.len(), second.open), (1, 4));
    let third = claim_with(&db.store, limits("node-b", 4, 3, 20..29)).await;
    assert_eq!((third.jobs.len(), third.open), (0, 4));
    // A running row counts like a claimed one, an ended one no more.
    db.apply(started(&first.jobs[0])).await;
    assert_eq!(claim_with(&db.store, limits("node-b", 4, 3, 20..29)).await.jobs.len(), 0);
    db.apply(Write::Settle(completed(&first.jobs[0]))).await;
    assert_eq!(claim_with(&db.store, limits("node-b", 4, 3, 20..29)).await.jobs.len(), 1);
}

async fn a_worker_that_lacks_a_label_has_no_part_of_the_flow(db: Db) {
    if db.is_sqlite() {
        return;
    }
    let list = |words: &[&str]| words.iter().map(|word| word.parse().unwrap()).collect::<Labels>();
    for (name, labels) in [("a", &["gpu", "ssd"][..]), ("b", &["a100", "gpu"]), ("c", &["gpus", "g_u"]), ("d", &[])] {
        let worker = Worker {
            worker: name.parse().unwrap(),
            incarnation: "1".to_owned(),
            hostname: "h".to_owned(),
            version: "v".to_owned(),
            labels: list(labels),
            displaces: None,
            address: None,
        };
        db.apply(Write::RegisterWorker(worker)).await;
    }
    db.store.enqueue(&vec![new("x"); 20]).await.unwrap();
    let part = async |requires: &[&str], first: u8| {
        let claim = Claim {
            worker: "a".parse().unwrap(),
            concurrency: 8,
            worker_concurrency: 8,
            requires: list(requires),
            ..claim(&(first..first + 8).map(token).collect::<Vec<_>>())
        };
        let claimed = claim_with(&db.store, claim).await;
        for job in &claimed.jobs {
            db.apply(Write::Settle(completed(job))).await;
        }
        claimed.jobs.len()
    };
    assert_eq!(part(&[], 10).await, 2);
    assert_eq!(part(&["gpu"], 20).await, 4);
    assert_eq!(part(&["gpu", "ssd"], 30).await, 8);
}

async fn eight_claimers_at_once_take_every_row_once_and_never_too_many(db: Db) {
    const JOBS: usize = 120;
    const CONCURRENCY: u32 = 5;
    db.store.enqueue(&vec![new("x"); JOBS]).await.unwrap();
    // As many as there may be at once, whatever the race brings.
    let mut first = Vec::new();
    for (n, expected) in [(100, 2), (101, 2), (102, 1), (103, 0)] {
        let worker = format!("first-{n}").parse().unwrap();
        let claim =
            Claim { worker, concurrency: CONCURRENCY, worker_concurrency: 2, ..claim(&[token(n), token(n + 50)]) };
        let claimed = claim_with(&db.store, claim).await.jobs;
        assert_eq!(claimed.len(), expected);
        first.extend(claimed);
    }
    for job in &first {
        assert_eq!(db.apply(Write::Settle(completed(job))).await, Written::Applied);
    }
    let mut claimers = tokio::task::JoinSet::new();
    for n in 0..8_u8 {
        // On a server each is a service of its own; a SQLite database has one.
        let store = if db.is_sqlite() { db.store.clone() } else { db.another().await };
        claimers.spawn(async move {
            let worker: WorkerId = format!("node-{n}").parse().unwrap();
            let mut taken = Vec::new();
            let mut most = 0;
            let mut serial = 0_u32;
            loop {
                let mut tokens = Vec::new();
                for _ in 0..3 {
                    serial += 1;
                    let mut bytes = [n; 16];
                    bytes[..4].copy_from_slice(&serial.to_be_bytes());
                    tokens.push(RunToken::from_bytes(bytes));
                }
                let claim = Claim {
                    terms: terms(),
                    flow: flow(),
                    worker: worker.clone(),
                    concurrency: CONCURRENCY,
                    worker_concurrency: 2,
                    requires: Labels::default(),
                    beyond_share: false,
                    incarnation: String::new(),
                    schedule_to_close_timeout: Duration::from_secs(86_400),
                    tokens,
                };
                let claimed = claim_with(&store, claim).await;
                most = most.max(claimed.open);
                let writes: Vec<_> = claimed.jobs.iter().map(|job| Write::Settle(completed(job))).collect();
                taken.extend(claimed.jobs.iter().map(|job| job.id));
                assert!(store.apply(&writes).await.unwrap().iter().all(|answer| *answer == Written::Applied));
                if claimed.jobs.is_empty() && claimed.open == 0 {
                    return (taken, most);
                }
                tokio::task::yield_now().await;
            }
        });
    }
    let all = claimers.join_all().await;
    let others = all.iter().flat_map(|(taken, _)| taken.clone());
    let taken: Vec<_> = first.iter().map(|job| job.id).chain(others).collect();
    assert_eq!(taken.len(), JOBS);
    assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), JOBS);
    let most = all.iter().map(|(_, most)| *most).max().unwrap();
    assert!(most <= CONCURRENCY, "{most}");
    assert_eq!(db.number("SELECT count(*) FROM jobs WHERE status = 'COMPLETED' AND attempt = 1").await, 120);
    // Each event names the status that was left, so the open runs at any moment can be replayed from them.
    let most = "SELECT CAST(max(open) AS bigint) FROM (SELECT sum(CASE WHEN to_status = 'INQUEUE' THEN 1 ELSE -1 END) \
                OVER (ORDER BY id) AS open FROM job_events) AS replay";
    if db.is_sqlite() {
        assert_eq!(db.number(most).await, i64::from(CONCURRENCY));
    }
}

async fn a_claim_that_is_repeated_brings_the_same_rows(db: Db) {
    db.store.enqueue(&[new("a"), new("b"), new("c")]).await.unwrap();
    let tokens = [token(1), token(2)];
    let first = db.claim(&tokens).await;
    let again = db.claim(&tokens).await;
    assert_eq!(first.jobs.len(), 2);
    assert_eq!(
        again.jobs.iter().map(|job| ClaimedJob { attempt: Attempt(1), ..job.clone() }).collect::<Vec<_>>(),
        first.jobs
    );
    assert_eq!(again.jobs[0].attempt, Attempt(1));
    assert_eq!(again.open, 2);
    assert_eq!(db.steps(first.jobs[0].id).await, steps(&["PENDING", "INQUEUE"]));
    // A third token takes one more row, and those in use stay where they are.
    let more = db.claim(&[token(1), token(2), token(3)]).await;
    assert_eq!(more.jobs.len(), 3);
    // A token of a running row is not used again either.
    db.apply(started(&first.jobs[0])).await;
    db.store.enqueue(&[new("d")]).await.unwrap();
    let last = db.claim(&[token(1)]).await;
    assert_eq!(last.jobs.len(), 0);
}

/// They are inserted by a statement of their own.
async fn rows_that_differ_in_their_identifiers_only_are_as_all_others(db: Db) {
    let identifiers = ["a", "a", "'; --", "c\"\\{}", "日本\n", "$1 ?"];
    let full = NewJob {
        payload: Some(r#"{"a": [1.0, "'é"]}"#.to_owned()),
        priority: -3,
        maximum_attempts: Some(7),
        trace: Some(TraceContext {
            parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap(),
            state: "a=1".parse().ok(),
        }),
        ..new("")
    };
    let minute = Due::After(Duration::from_secs(60));
    // Whatever else differs, each row has its own.
    for one in [
        NewJob { payload: full.payload.clone(), ..new("x") },
        NewJob { priority: 3, ..new("x") },
        NewJob { maximum_attempts: Some(7), ..new("x") },
        NewJob { trace: full.trace.clone(), ..new("x") },
        NewJob { due: Due::At(at(5)), ..new("x") },
        NewJob { unique_key: Some("k".to_owned()), ..new("x") },
    ] {
        let values = |row: JobRow| {
            let due = row.run_at == at(5);
            (row.payload, row.priority, row.maximum_attempts, row.traceparent, row.tracestate, due, row.unique_key)
        };
        let alone = db.store.enqueue(std::slice::from_ref(&one)).await.unwrap()[0].id;
        db.sql(&format!("UPDATE jobs SET status = 'ERROR' WHERE id = {alone}")).await.unwrap();
        let both = db.store.enqueue(&[new("plain"), one]).await.unwrap();
        let (plain, with) = (values(db.row(both[0].id).await), values(db.row(both[1].id).await));
        assert_eq!((&plain, &with), (&(None, 0, None, None, None, false, None), &values(db.row(alone).await)));
        assert_ne!(plain, with);
    }
    for common in
        [new(""), full.clone(), NewJob { due: minute, ..full.clone() }, NewJob { due: Due::At(at(5)), ..full }]
    {
        let alike = identifiers.map(|identifier| NewJob { identifier: identifier.to_owned(), ..common.clone() });
        let other = NewJob { flow: "OTHER".parse().unwrap(), ..new("other") };
        let ids: Vec<JobId> = db.store.enqueue(&alike).await.unwrap().iter().map(|job| job.id).collect();
        let mixed = db.store.enqueue(&[&alike[..], &[other]].concat()).await.unwrap();
        for ((id, mixed), identifier) in ids.iter().zip(&mixed).zip(identifiers) {
            let (row, mut expected) = (db.row(*id).await, db.row(mixed.id).await);
            assert_eq!(row.identifier, identifier);
            assert!(
                row.run_at.since(expected.run_at).as_secs() < 50 && expected.run_at.since(row.run_at).as_secs() < 50
            );
            assert_eq!(row.run_at == at(5), common.due == Due::At(at(5)));
            assert_eq!(row.run_at > row.created_time.plus(Duration::from_secs(30)), common.due == minute);
            expected = JobRow { id: row.id, run_at: row.run_at, created_time: row.created_time, ..expected };
            assert_eq!(row, expected);
        }
    }
}

async fn a_job_goes_its_way_with_every_column_and_event(db: Db) {
    let new = NewJob {
        payload: Some(r#"{"b": 1, "a": [1.0, "é"]}"#.to_owned()),
        maximum_attempts: Some(3),
        unique_key: Some("k".to_owned()),
        ..new("ünï")
    };
    let id = db.store.enqueue(&[new]).await.unwrap()[0].id;
    let job = db.claim(&[token(1)]).await.jobs.remove(0);
    assert_eq!(job.payload, Ok(Some(r#"{"b": 1, "a": [1.0, "é"]}"#.as_bytes().to_vec())));
    assert_eq!((job.identifier.as_deref(), job.maximum_attempts, job.attempt), (Ok("ünï"), Some(3), Attempt(1)));
    assert_eq!(job.schedule_time, job.created_time.max(job.run_at));
    let queued = db.row(id).await;
    assert_eq!((queued.status, queued.worker_id.as_deref()), (JobStatus::InQueue, Some("node-a")));
    assert_eq!(queued.run_token.as_deref(), Some(token(1).as_str()));
    assert!(queued.queued_time.is_some());

    assert_eq!(db.apply(started(&job)).await, Written::Applied);
    let running = db.row(id).await;
    assert_eq!((running.status, running.started_time), (JobStatus::Progress, Some(at(5_000_000_000_000))));
    let heartbeat = running.heartbeat_time.unwrap();
    let note = ProgressNote { token: token(1), progress: Some(40), status_message: Some("frame 12\0".to_owned()) };
    assert_eq!(db.apply(Write::Progress(note.clone())).await, Written::Applied);
    assert_eq!(
        db.apply(Write::Progress(ProgressNote { progress: None, status_message: None, ..note.clone() })).await,
        Written::Applied
    );
    assert_eq!(
        db.apply(Write::Progress(ProgressNote { progress: Some(200), status_message: None, ..note })).await,
        Written::Applied
    );
    tokio::time::sleep(Duration::from_millis(3)).await;
    let Written::Confirmed(current) = db.apply(confirm(&[token(9), token(1)])).await else { panic!() };
    assert_eq!(current.iter().map(|run| (&run.token, run.cancel_requested)).collect::<Vec<_>>(), [(&token(1), false)]);
    let running = db.row(id).await;
    assert_eq!((running.progress, running.status_message.as_deref()), (Some(100), Some("frame 12\u{fffd}")));
    assert!(running.heartbeat_time.unwrap() > heartbeat);
    let runs = db.store.runs(id).await.unwrap();
    assert_eq!((runs.len(), runs[0].pid, runs[0].outcome.as_deref()), (1, Some(4242), None));

    assert_eq!(db.apply(Write::Settle(completed(&job))).await, Written::Applied);
    let row = db.row(id).await;
    assert_eq!((row.status, row.exit_code, row.error.as_deref()), (JobStatus::Completed, Some(0), None));
    assert_eq!((row.progress, row.execution_ms), (Some(100), Some(1500)));
    assert_eq!(row.completed_time, Some(at(5_000_000_001_500)));
    assert_eq!(row.worker_id.as_deref(), Some("node-a"));
    let runs = db.store.runs(id).await.unwrap();
    assert_eq!(runs.len(), 1);
    let run = &runs[0];
    assert_eq!((run.attempt, run.outcome.as_deref(), run.exit_code), (Attempt(1), Some("COMPLETED"), Some(0)));
    assert_eq!((run.user_cpu_ms, run.system_cpu_ms, run.max_rss_bytes), (Some(20), Some(3), Some(5_000_000_000)));
    assert_eq!((run.io_read_bytes, run.io_write_bytes), (Some(6_000_000_000), None));
    assert_eq!((run.started_time, run.completed_time), (Some(at(5_000_000_000_000)), Some(at(5_000_000_001_500))));
    assert_eq!(db.steps(id).await, steps(&["PENDING", "INQUEUE", "PROGRESS", "COMPLETED"]));
    // The key is free again.
    assert_eq!(db.claim(&[token(2)]).await.open, 0);
}

async fn a_failed_attempt_waits_for_its_retry_and_keeps_its_schedule_time(db: Db) {
    let job = db.running("x", 1).await;
    let wait = Duration::from_millis(2000);
    let before = db.store.now().await.unwrap().plus(wait);
    assert_eq!(db.apply(Write::Settle(failed(&job, Next::RetryAfter(wait)))).await, Written::Applied);
    let after = db.store.now().await.unwrap().plus(wait);
    let row = db.row(job.id).await;
    assert_eq!((row.status, row.attempt), (JobStatus::Pending, Attempt(1)));
    assert!(before <= row.run_at && row.run_at <= after, "{before:?} {:?} {after:?}", row.run_at);
    assert_eq!((row.run_token, row.worker_id, row.completed_time), (None, None, None));
    assert_eq!(row.error.as_deref(), Some("the command failed with exit code 3\nlast words\u{fffd}"));
    let mut early = db.claim(&[token(2)]).await;
    assert_eq!(early.jobs.is_empty(), early.now < row.run_at, "{early:?}");
    eventually("the next attempt is due", async || db.store.now().await.unwrap() >= row.run_at).await;
    early.jobs.extend(if early.jobs.is_empty() { db.claim(&[token(2)]).await.jobs } else { Vec::new() });
    let again = early.jobs.remove(0);
    assert_eq!((again.attempt, again.schedule_time), (Attempt(2), job.schedule_time));
    let row = db.row(job.id).await;
    assert_eq!((row.error, row.exit_code, row.started_time, row.heartbeat_time), (None, None, None, None));
    // The second attempt ends before its start could be written.
    assert_eq!(db.apply(Write::Settle(failed(&again, Next::Final(JobStatus::Error)))).await, Written::Applied);
    let row = db.row(job.id).await;
    assert_eq!((row.status, row.exit_code, row.execution_ms), (JobStatus::Error, Some(3), Some(7)));
    let runs = db.store.runs(job.id).await.unwrap();
    let seen: Vec<_> = runs.iter().map(|run| (run.attempt.0, run.outcome.as_deref(), run.pid)).collect();
    assert_eq!(seen, [(1, Some("FAILED"), Some(4242)), (2, Some("FAILED"), None)]);
    assert_eq!(db.steps(job.id).await, steps(&["PENDING", "INQUEUE", "PROGRESS", "PENDING", "INQUEUE", "ERROR"]));
}

async fn a_run_that_never_started_is_put_back_uncounted(db: Db) {
    let job = db.claimed("x", 1).await;
    let requeue = settlement(&job, Next::Requeue, None);
    assert_eq!(db.apply(Write::Settle(requeue.clone())).await, Written::Applied);
    let row = db.row(job.id).await;
    assert_eq!((row.status, row.attempt, row.run_token, row.worker_id), (JobStatus::Pending, Attempt(0), None, None));
    assert_eq!((row.run_at, row.queued_time), (job.run_at, None));
    assert_eq!(db.store.runs(job.id).await.unwrap(), []);
    assert_eq!(db.apply(Write::Settle(requeue.clone())).await, Written::Applied, "repeated");
    let again = db.claim(&[token(2)]).await.jobs.remove(0);
    assert_eq!(again.attempt, Attempt(1));
    assert_eq!(db.apply(Write::Settle(requeue)).await, Written::Fenced);
    assert_eq!(db.steps(job.id).await, steps(&["PENDING", "INQUEUE", "PENDING", "INQUEUE"]));
}

async fn an_end_that_overtakes_its_start_is_told_with_it(db: Db) {
    let job = db.claimed("x", 1).await;
    let end = Settlement { pid: Some(4242), started_time: Some(at(5_000_000_000_000)), ..completed(&job) };
    for _ in 0..2 {
        assert_eq!(db.apply(Write::Settle(end.clone())).await, Written::Applied);
        assert_eq!(db.steps(job.id).await, steps(&["PENDING", "INQUEUE", "PROGRESS", "COMPLETED"]));
    }
    let row = db.row(job.id).await;
    assert_eq!((row.status, row.started_time), (JobStatus::Completed, Some(at(5_000_000_000_000))));
    let events = db.store.events(job.id).await.unwrap();
    assert!(events[1].message.as_deref().is_some_and(|message| message.contains("4242")), "{events:?}");
    // The start comes after all, and changes nothing.
    assert_eq!(db.apply(started(&job)).await, Written::Applied);
    assert_eq!(db.steps(job.id).await, steps(&["PENDING", "INQUEUE", "PROGRESS", "COMPLETED"]));
}

async fn a_run_whose_token_is_not_current_writes_nothing(db: Db) {
    let old = db.running("x", 1).await;
    let lost = Settlement { outcome: Some(Outcome::Lost), ..failed(&old, Next::RetryAfter(Duration::ZERO)) };
    assert_eq!(db.apply(Write::Settle(lost)).await, Written::Applied);
    let current = db.claim(&[token(2)]).await.jobs.remove(0);
    let before = (db.row(old.id).await, db.store.runs(old.id).await.unwrap(), db.store.events(old.id).await.unwrap());
    let note = ProgressNote { token: token(1), progress: Some(1), status_message: Some("x".to_owned()) };
    for write in [
        started(&old),
        Write::Progress(note.clone()),
        Write::Settle(completed(&old)),
        Write::Settle(failed(&old, Next::RetryAfter(Duration::ZERO))),
        Write::Settle(settlement(&old, Next::Requeue, None)),
        Write::Settle(settlement(&old, Next::Final(JobStatus::Error), None)),
        // Of the right job, by a token of another one.
        Write::Settle(Settlement { token: token(7), ..completed(&current) }),
        started(&ClaimedJob { token: token(7), ..current.clone() }),
        started(&ClaimedJob { id: JobId(999_999), ..current.clone() }),
    ] {
        assert_eq!(db.apply(write.clone()).await, Written::Fenced, "{write:?}");
    }
    assert_eq!(db.apply(confirm(&[token(1)])).await, Written::Confirmed(Vec::new()));
    let after = (db.row(old.id).await, db.store.runs(old.id).await.unwrap(), db.store.events(old.id).await.unwrap());
    assert_eq!(before, after);
    // What has ended is over, also for its own token.
    assert_eq!(db.apply(Write::Settle(completed(&current))).await, Written::Applied);
    assert_eq!(db.apply(Write::Progress(ProgressNote { token: token(2), ..note })).await, Written::Fenced);
    assert_eq!(db.apply(Write::Settle(failed(&current, Next::RetryAfter(Duration::ZERO)))).await, Written::Fenced);
    assert_eq!(db.apply(confirm(&[token(2)])).await, Written::Confirmed(Vec::new()));
    assert_eq!(db.row(old.id).await.status, JobStatus::Completed);
}

async fn every_write_may_be_repeated(db: Db) {
    let a = db.running("a", 1).await;
    let b = db.running("b", 2).await;
    let c = db.claimed("c", 3).await;
    let writes = [
        started(&a),
        Write::Progress(ProgressNote { token: token(1), progress: Some(1), status_message: None }),
        Write::Settle(completed(&a)),
        Write::Settle(failed(&b, Next::RetryAfter(Duration::from_secs(600)))),
        Write::Settle(settlement(&c, Next::Final(JobStatus::Error), None)),
        Write::RegisterFlows(vec![flow()]),
        Write::RegisterWorker(Worker {
            worker: worker(),
            incarnation: "1".to_owned(),
            hostname: "h".to_owned(),
            version: "v".to_owned(),
            labels: Labels::default(),
            displaces: None,
            address: None,
        }),
    ];
    for write in writes {
        assert_eq!(db.apply(write.clone()).await, Written::Applied, "{write:?}");
        let before = (db.steps(a.id).await, db.steps(b.id).await, db.steps(c.id).await);
        assert_eq!(db.apply(write.clone()).await, Written::Applied, "repeated: {write:?}");
        assert_eq!((db.steps(a.id).await, db.steps(b.id).await, db.steps(c.id).await), before, "{write:?}");
    }
    assert_eq!(db.row(b.id).await.attempt, Attempt(1));
    assert_eq!(db.steps(c.id).await, steps(&["PENDING", "INQUEUE", "ERROR"]));
    assert_eq!(db.store.runs(c.id).await.unwrap(), [], "no run to speak of");
    assert_eq!(db.number("SELECT count(*) FROM runs").await, 2);
}

async fn a_whole_batch_may_be_repeated(db: Db) {
    for (n, next) in [(1, Next::Final(JobStatus::Completed)), (2, Next::RetryAfter(Duration::from_secs(600)))] {
        let job = db.claimed("x", n).await;
        let end = if n == 1 { completed(&job) } else { failed(&job, next) };
        let batch = [started(&job), Write::Settle(end), confirm(std::slice::from_ref(&job.token))];
        let first = db.store.apply(&batch).await.unwrap();
        assert_eq!(first, [Written::Applied, Written::Applied, Written::Confirmed(Vec::new())]);
        let events = db.store.events(job.id).await.unwrap();
        assert_eq!(db.store.apply(&batch).await.unwrap(), first);
        assert_eq!(db.store.events(job.id).await.unwrap(), events);
        assert_eq!(db.store.runs(job.id).await.unwrap().len(), 1);
    }
}

async fn ends_that_share_a_batch_are_told_of_one_by_one(db: Db) {
    let mut jobs = Vec::new();
    for n in 1..=6 {
        jobs.push(db.claimed("x", n).await);
    }
    let [first, second, third, fourth, fifth, sixth] = jobs.as_slice() else { panic!("{jobs:?}") };
    let error = Settlement { error: Some("\"quoted\", {braces} and a\0".to_owned()), ..failed(second, ERROR) };
    let before = Write::Settle(completed(first));
    assert_eq!(db.apply(before.clone()).await, Written::Applied);
    let others = Settlement { token: token(99), ..completed(third) };
    let again = Settlement { exit_code: Some(9), ..failed(fourth, ERROR) };
    let writes = [
        before,
        Write::Settle(error),
        Write::Settle(others),
        Write::Settle(completed(fourth)),
        Write::Settle(again),
        Write::Settle(failed(fifth, Next::RetryAfter(Duration::from_secs(600)))),
        started(sixth),
        Write::Settle(completed(sixth)),
    ];
    let answers = db.store.apply(&writes).await.unwrap();
    let [applied, fenced] = [Written::Applied, Written::Fenced].each_ref();
    assert_eq!(
        answers.iter().collect::<Vec<_>>(),
        [applied, applied, fenced, applied, fenced, applied, applied, applied]
    );
    for (job, status, exit_code) in [
        (first, JobStatus::Completed, Some(0)),
        (second, JobStatus::Error, Some(3)),
        (third, JobStatus::InQueue, None),
        (fourth, JobStatus::Completed, Some(0)),
        (fifth, JobStatus::Pending, Some(3)),
        (sixth, JobStatus::Completed, Some(0)),
    ] {
        let row = db.row(job.id).await;
        assert_eq!((row.status, row.exit_code), (status, exit_code), "{row:?}");
    }
    assert_eq!(db.row(second.id).await.error.as_deref(), Some("\"quoted\", {braces} and a\u{fffd}"));
    let ended = steps(&["PENDING", "INQUEUE", "PROGRESS", "COMPLETED"]);
    for job in [first, fourth, sixth] {
        assert_eq!(db.steps(job.id).await, ended);
        assert_eq!(db.store.runs(job.id).await.unwrap().len(), 1);
    }
    assert_eq!(db.steps(second.id).await, steps(&["PENDING", "INQUEUE", "ERROR"]));
    assert_eq!(db.store.runs(third.id).await.unwrap(), []);
}

async fn what_an_end_lets_go_is_there_for_the_claim_that_shares_its_batch(db: Db) {
    let first = db.running("first", 1).await;
    let urgent = db.store.enqueue(&[NewJob { priority: 10, ..new("urgent") }, new("other")]).await.unwrap()[0].id;
    let (waits, after) = (urgent.0, first.id.0);
    db.sql(&format!("INSERT INTO job_dependencies (job_id, after_id) VALUES ({waits}, {after})")).await.unwrap();
    let one = Claim { concurrency: 1, worker_concurrency: 1, ..claim(&[token(2)]) };
    let written = db.store.apply(&[Write::Settle(completed(&first)), Write::Claim(one)]).await.unwrap();
    let [Written::Applied, Written::Claimed(claimed)] = written.as_slice() else { panic!("{written:?}") };
    assert_eq!(claimed.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [urgent]);
}

/// A user's transaction on a flow and then on its jobs, as people write them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_a_flow_has_no_job_locked() {
    const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let Some(db) = Db::postgres().await else { return };
    let job = db.running("x", 1).await;
    let foreign = db.foreign.begin().await.unwrap();
    foreign.execute_unprepared("SET LOCAL lock_timeout = '5s'").await.unwrap();
    foreign.execute_unprepared("UPDATE flows SET paused = paused").await.unwrap();
    let (store, writes) = (db.store.clone(), [Write::Settle(completed(&job)), Write::Claim(claim(&[token(2)]))]);
    let applied = tokio::spawn(async move { store.apply(&writes).await });
    eventually("the batch to wait for the flow", async || db.number(WAITING).await == 1).await;
    foreign.execute_unprepared("UPDATE jobs SET priority = 7").await.unwrap();
    foreign.commit().await.unwrap();
    let written = applied.await.unwrap().unwrap();
    assert_eq!(written[0], Written::Applied);
    assert_eq!((db.row(job.id).await.status, db.row(job.id).await.priority), (JobStatus::Completed, 7));
}

async fn a_job_can_be_cancelled_in_every_open_status(db: Db) {
    assert_eq!(db.store.request_cancel(JobId(77)).await.unwrap(), CancelResult::NotFound);
    let pending = db.store.enqueue(&[new("x")]).await.unwrap()[0].id;
    assert_eq!(db.store.request_cancel(pending).await.unwrap(), CancelResult::Cancelled);
    let row = db.row(pending).await;
    assert_eq!(
        (row.status, row.error.as_deref()),
        (JobStatus::Cancelled, Some("cancelled before its command was started"))
    );
    assert!(row.completed_time.is_some() && row.cancel_requested_time.is_some());
    assert_eq!(db.steps(pending).await, steps(&["PENDING", "CANCELLED"]));
    assert_eq!(db.store.request_cancel(pending).await.unwrap(), CancelResult::NotPossible(JobStatus::Cancelled));

    let queued = db.claimed("y", 1).await;
    let running = db.running("z", 2).await;
    for job in [&queued, &running] {
        assert_eq!(db.store.request_cancel(job.id).await.unwrap(), CancelResult::Requested);
        let first = db.row(job.id).await.cancel_requested_time;
        assert_eq!(db.store.request_cancel(job.id).await.unwrap(), CancelResult::AlreadyRequested);
        assert_eq!(db.row(job.id).await.cancel_requested_time, first);
    }
    let Written::Confirmed(current) = db.apply(confirm(&[token(1), token(2)])).await else { panic!() };
    assert_eq!(current.iter().map(|run| run.cancel_requested).collect::<Vec<_>>(), [true, true]);
    let claimed = db.claim(&[token(3)]).await;
    assert_eq!(claimed.cancel_requested, [(queued.id, token(1)), (running.id, token(2))]);
    let repeated = db.claim(&[token(1)]).await;
    assert!(repeated.jobs[0].cancel_requested);

    // A job that waits for its retry keeps the error of the attempt that it had.
    let retrying = db.running("r", 4).await;
    db.apply(Write::Settle(failed(&retrying, Next::RetryAfter(Duration::from_secs(600))))).await;
    assert_eq!(db.store.request_cancel(retrying.id).await.unwrap(), CancelResult::Cancelled);
    let error = db.row(retrying.id).await.error.unwrap();
    assert!(
        error.starts_with("cancelled while it waited for another attempt; the last one: the command failed"),
        "{error}"
    );
}

async fn a_cancel_request_by_sql_is_found_by_the_claim(db: Db) {
    let running = db.running("a", 1).await;
    let waiting = ids(&db.store.enqueue(&[new("b"), new("c")]).await.unwrap());
    db.sql("UPDATE jobs SET cancel_requested_time = 1 WHERE identifier IN ('a', 'b')").await.unwrap();
    let claimed = db.claim(&[token(2), token(3)]).await;
    assert_eq!(claimed.cancelled_pending, [waiting[0]]);
    assert_eq!(claimed.cancel_requested, [(running.id, token(1))]);
    assert_eq!(claimed.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [waiting[1]]);
    assert_eq!(db.row(waiting[0]).await.error.as_deref(), Some("cancelled before its command was started"));
    assert_eq!(db.steps(waiting[0]).await, steps(&["PENDING", "CANCELLED"]));
    assert_eq!(db.claim(&[token(4)]).await.cancelled_pending, []);
}

async fn a_settlement_does_not_lose_a_cancel_request(db: Db) {
    let a = db.running("a", 1).await;
    let b = db.claimed("b", 2).await;
    for job in [&a, &b] {
        assert_eq!(db.store.request_cancel(job.id).await.unwrap(), CancelResult::Requested);
    }
    // Both were decided before the request was seen.
    db.apply(Write::Settle(failed(&a, Next::RetryAfter(Duration::ZERO)))).await;
    db.apply(Write::Settle(settlement(&b, Next::Requeue, None))).await;
    let claimed = db.claim(&[token(3), token(4)]).await;
    assert_eq!((claimed.jobs.len(), claimed.cancelled_pending), (0, vec![a.id, b.id]));
    assert_eq!(db.steps(a.id).await, steps(&["PENDING", "INQUEUE", "PROGRESS", "PENDING", "CANCELLED"]));
}

async fn a_paused_flow_claims_nothing_but_cancels(db: Db) {
    db.apply(Write::RegisterFlows(vec![flow()])).await;
    let jobs = ids(&db.store.enqueue(&[new("a"), new("b")]).await.unwrap());
    let yes = if db.is_sqlite() { "1" } else { "true" };
    db.sql(&format!("UPDATE flows SET paused = {yes}")).await.unwrap();
    db.sql("UPDATE jobs SET cancel_requested_time = 1 WHERE identifier = 'a'").await.unwrap();
    let claimed = db.claim(&[token(1)]).await;
    assert_eq!((claimed.paused, claimed.jobs.len(), claimed.cancelled_pending), (true, 0, vec![jobs[0]]));
    db.sql(&format!("UPDATE flows SET paused = NOT {yes}")).await.unwrap();
    assert_eq!(db.claim(&[token(1)]).await.jobs[0].id, jobs[1]);
}

async fn rows_of_other_types_are_left_alone(db: Db) {
    db.sql("INSERT INTO jobs (type, identifier) VALUES ('OTHER', 'a'), ('render', 'b'), ('', 'c')").await.unwrap();
    db.sql("INSERT INTO jobs (type, identifier, cancel_requested_time) VALUES ('OTHER', 'd', 1)").await.unwrap();
    db.sql("INSERT INTO jobs (type, identifier, status, run_token) VALUES ('OTHER', 'e', 'PROGRESS', 'zz')")
        .await
        .unwrap();
    let claimed = db.claim(&[token(1)]).await;
    assert_eq!((claimed.jobs.len(), claimed.open, claimed.cancelled_pending.len()), (0, 0, 0));
    assert_eq!(db.number("SELECT count(*) FROM jobs WHERE status = 'PENDING'").await, 4);
    assert_eq!(db.number("SELECT count(*) FROM job_events").await, 0);
}

/// Claims of these flows, in one batch.
fn claims(flows: [&str; 3], n: u8) -> Vec<Write> {
    let claims = flows.into_iter().zip(n..);
    claims.map(|(flow, n)| Write::Claim(Claim { flow: flow.parse().unwrap(), ..claim(&[token(n)]) })).collect()
}

async fn claims_of_several_flows_find_what_waits_or_runs_in_any(db: Db) {
    const FLOWS: [&str; 3] = ["IDLE", "PAUSED", "RENDER"];
    let of = async |n| {
        let answers = db.store.apply(&claims(FLOWS, n)).await.unwrap().into_iter();
        answers
            .map(|answer| if let Written::Claimed(claimed) = answer { *claimed } else { panic!("{answer:?}") })
            .collect::<Vec<_>>()
    };
    db.apply(Write::RegisterFlows(FLOWS.map(|flow| flow.parse().unwrap()).to_vec())).await;
    let yes = if db.is_sqlite() { "1" } else { "true" };
    db.sql(&format!("UPDATE flows SET paused = {yes} WHERE type = 'PAUSED'")).await.unwrap();
    // Nothing anywhere, then a row that waits, then the same as a run that somebody wants to be cancelled.
    let found = |claimed: &[Claimed]| {
        claimed.iter().map(|claimed| (claimed.jobs.len(), claimed.open, claimed.paused)).collect::<Vec<_>>()
    };
    assert_eq!(found(&of(1).await), [(0, 0, false), (0, 0, true), (0, 0, false)]);
    let id = ids(&db.store.enqueue(&[new("a")]).await.unwrap())[0];
    let claimed = of(4).await;
    assert_eq!(found(&claimed), [(0, 0, false), (0, 0, true), (1, 1, false)]);
    let job = claimed[2].jobs[0].clone();
    // As it is told once more after a commit whose answer was lost.
    assert_eq!(found(&of(4).await), [(0, 0, false), (0, 0, true), (1, 1, false)]);
    db.store.request_cancel(id).await.unwrap();
    let claimed = of(7).await;
    assert_eq!(found(&claimed), [(0, 0, false), (0, 0, true), (0, 1, false)]);
    assert_eq!(claimed[2].cancel_requested, [(id, token(6))]);
    // What may run only later.
    db.sql("INSERT INTO jobs (type, identifier, run_at) VALUES ('IDLE', 'later', 253402300798000)").await.unwrap();
    let claimed = of(10).await;
    assert_eq!((claimed[0].jobs.len(), claimed[0].next_due.is_some()), (0, true));
    db.sql("DELETE FROM jobs WHERE type = 'IDLE'").await.unwrap();
    // What waited for a job that has ended is seen to by any claim.
    db.sql("INSERT INTO jobs (type, identifier) VALUES ('OTHER', 'after')").await.unwrap();
    let waits = db.number("SELECT id FROM jobs WHERE type = 'OTHER'").await;
    db.sql(&format!("INSERT INTO job_dependencies (job_id, after_id) VALUES ({waits}, {})", id.0)).await.unwrap();
    db.apply(Write::Settle(completed(&job))).await;
    db.store.apply(&claims(["IDLE", "PAUSED", "NONE"], 13)).await.unwrap();
    assert_eq!(db.number("SELECT count(*) FROM job_dependencies WHERE looked_at = 0").await, 0);
}

/// A user's transaction that changes all flows, while word of a job comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_flows_with_nothing_to_do_lock_nothing() {
    let Some(db) = Db::postgres().await else { return };
    let flows = ["IDLE", "OTHER", "RENDER"];
    db.apply(Write::RegisterFlows(flows.map(|flow| flow.parse().unwrap()).to_vec())).await;
    let foreign = db.foreign.begin().await.unwrap();
    foreign.execute_unprepared("UPDATE flows SET paused = paused").await.unwrap();
    let applied = tokio::time::timeout(Duration::from_secs(20), db.store.apply(&claims(flows, 1))).await;
    assert_eq!(applied.expect("it waits for a flow").unwrap().len(), 3);
    foreign.rollback().await.unwrap();
}

async fn unreadable_rows_are_claimed_with_the_reason(db: Db) {
    if db.is_sqlite() {
        db.sql("INSERT INTO jobs (type, identifier) VALUES ('RENDER', CAST(x'ff00fe' AS TEXT)), ('RENDER', x'80')")
            .await
            .unwrap();
        db.sql("INSERT INTO jobs (type, identifier, payload) VALUES ('RENDER', '', '{'), ('RENDER', 'x', x'00ff')")
            .await
            .unwrap();
        db.sql("INSERT INTO jobs (type, identifier) VALUES (CAST(x'ff' AS TEXT), 'y'), (x'ff', 'z'), ('RENDER', 12)")
            .await
            .unwrap();
        db.sql("INSERT INTO jobs (type, identifier, status, run_token) VALUES ('RENDER', x'ff', 'PROGRESS', x'ff')")
            .await
            .unwrap();
    } else {
        db.sql("INSERT INTO jobs (type, identifier, payload) VALUES ('RENDER', '', 'null'), ('RENDER', 'a\nb', '[1]')")
            .await
            .unwrap();
    }
    db.sql("INSERT INTO jobs (type, identifier, attempt) VALUES ('RENDER', 'worn out', 2147483647)").await.unwrap();
    let tokens: Vec<_> = (1..20).map(token).collect();
    let jobs = db.claim(&tokens).await.jobs;
    let seen: Vec<_> = jobs.iter().map(|job| (job.identifier.as_deref().unwrap_or("?"), job.payload.is_ok())).collect();
    if db.is_sqlite() {
        assert_eq!(seen, [("?", true), ("?", true), ("", false), ("x", false), ("12", true), ("worn out", true)]);
        let reason = jobs[2].payload.clone().unwrap_err().to_string();
        assert!(reason.starts_with("the payload is no valid JSON: EOF"), "{reason}");
    } else {
        assert_eq!(seen, [("", true), ("a\nb", true), ("worn out", true)]);
    }
    assert_eq!(jobs.last().unwrap().attempt, Attempt(2_147_483_647));
    // Nor do they break anything that is read for people.
    let page = db.store.list(&JobFilter { limit: 100, ..JobFilter::default() }).await.unwrap();
    assert_eq!(page.rows.len(), if db.is_sqlite() { 9 } else { 3 });
    let open = db.store.open_jobs(&worker(), None).await.unwrap();
    // The claim has settled the row that said it was running without a run.
    assert_eq!(open.len(), if db.is_sqlite() { 6 } else { 3 });
    db.store.flow_states().await.unwrap();
    for row in page.rows {
        db.store.job(row.id).await.unwrap().unwrap();
    }
    for job in &jobs {
        let refused =
            Settlement { error: Some("refused".to_owned()), ..settlement(job, Next::Final(JobStatus::Error), None) };
        assert_eq!(db.apply(Write::Settle(refused)).await, Written::Applied);
    }
}

async fn a_batch_may_be_larger_than_what_a_server_takes_at_once(db: Db) {
    // MariaDB takes 16 MiB (max_allowed_packet).
    let payload = format!("\"{}\"", "x".repeat(1 << 20));
    let job = |n: usize| NewJob {
        payload: Some(payload.clone()),
        unique_key: (n == 3).then(|| "a".to_owned()),
        ..new(&n.to_string())
    };
    let enqueued = db.store.enqueue(&(0..20).map(job).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(enqueued.len(), 20);
    for (n, job) in enqueued.iter().enumerate() {
        let row = db.row(job.id).await;
        assert_eq!((row.identifier, row.payload.map(|payload| payload.len())), (n.to_string(), Some(payload.len())));
    }
    // One that is larger by itself is refused, and nothing of its batch is there.
    if db.on == On::MariaDb {
        let large = NewJob { payload: Some(format!("\"{}\"", "x".repeat(17 << 20))), ..new("large") };
        let refused = db.store.enqueue(&[new("small"), large]).await.unwrap_err();
        let said = refused.to_string();
        assert!(said.contains("(max_allowed_packet is 16777216)"), "{said}");
        assert_eq!(db.number("SELECT count(*) FROM jobs").await, 20);
    }
}

async fn an_open_unique_key_is_enqueued_once_also_in_a_race(db: Db) {
    let keyed = |key: &str| NewJob { unique_key: Some(key.to_owned()), ..new("x") };
    let keys: Vec<_> = (0..90).map(|n| if n % 3 == 1 { None } else { Some(format!("key {n}")) }).collect();
    let mut race = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = db.another().await;
        // Every other one the other way round, which is what makes two transactions wait for each other.
        let mut batch = keys.iter().map(|key| key.as_deref().map_or_else(|| new("free"), keyed)).collect::<Vec<_>>();
        if n % 2 == 0 {
            batch.reverse();
        }
        race.spawn(async move {
            let enqueued = store.enqueue(&batch).await.unwrap();
            // A session's counts are told at its end.
            store.close().await;
            (n, enqueued)
        });
    }
    let mut new_ones = 0;
    for (n, mut answers) in race.join_all().await {
        if n % 2 == 0 {
            answers.reverse();
        }
        new_ones += answers.iter().filter(|answer| !answer.existing).count();
        for (answer, key) in answers.iter().zip(&keys) {
            assert_eq!(db.row(answer.id).await.unique_key, *key);
        }
    }
    // MariaDB's are told for all databases together.
    if db.on == On::Postgres {
        let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(db.number(deadlocks).await, 0);
    }
    assert_eq!(new_ones, 60 + 8 * 30);
    assert!(db.sql("INSERT INTO jobs (type, identifier, unique_key) VALUES ('RENDER', 'x', 'key 0')").await.is_err());
    db.sql("INSERT INTO jobs (type, identifier, unique_key) VALUES ('OTHER', 'x', 'a')").await.unwrap();
    // Once the job has ended the key is free.
    let holder = db.store.enqueue(&[keyed("key 0")]).await.unwrap()[0];
    assert!(holder.existing);
    db.store.request_cancel(holder.id).await.unwrap();
    assert!(!db.store.enqueue(&[keyed("key 0")]).await.unwrap()[0].existing);
    for bad in [
        NewJob { unique_key: Some("a\0".to_owned()), ..new("x") },
        new("\0"),
        NewJob { payload: Some("\0".to_owned()), ..new("x") },
    ] {
        assert!(matches!(db.store.enqueue(&[new("before"), bad]).await, Err(Error::NulCharacter { .. })));
    }
    assert_eq!(db.number("SELECT count(*) FROM jobs WHERE identifier = 'before'").await, 0);
}

async fn a_batch_of_jobs_is_numbered_in_its_order(db: Db) {
    let mut batch: Vec<_> = (0..1203).map(|n| new(&n.to_string())).collect();
    for n in [0, 3, 4, 600] {
        batch[n].unique_key = Some(n.to_string());
    }
    let enqueued = db.store.enqueue(&batch).await.unwrap();
    assert_eq!(enqueued.len(), batch.len());
    assert!(enqueued.windows(2).all(|pair| pair[0].id < pair[1].id));
    for n in [0, 1, 3, 499, 500, 501, 600, 1202] {
        assert_eq!(db.row(enqueued[n].id).await.identifier, n.to_string());
    }
    assert_eq!(db.store.enqueue(&[]).await.unwrap(), []);
    // All or none.
    let bad = NewJob { maximum_attempts: Some(0), ..new("bad") };
    assert!(db.store.enqueue(&[new("good"), bad]).await.is_err());
    assert_eq!(db.number("SELECT count(*) FROM jobs").await, 1203);
}

async fn lists_are_stable_under_the_cursor(db: Db) {
    let jobs =
        ids(&db.store.enqueue(&(0..7).map(|n| new(&format!("job {}", n % 2))).collect::<Vec<_>>()).await.unwrap());
    let mut filter = JobFilter { limit: 3, ..JobFilter::default() };
    let first = db.store.list(&filter).await.unwrap();
    assert_eq!(first.rows.iter().map(|row| row.id).collect::<Vec<_>>(), [jobs[6], jobs[5], jobs[4]]);
    db.store.enqueue(&[new("new")]).await.unwrap();
    let mut seen = Vec::new();
    filter.cursor = first.next_cursor;
    while filter.cursor.is_some() {
        let page = db.store.list(&filter).await.unwrap();
        seen.extend(page.rows.iter().map(|row| row.id));
        filter.cursor = page.next_cursor;
    }
    assert_eq!(seen, [jobs[3], jobs[2], jobs[1], jobs[0]]);
    db.store.request_cancel(jobs[1]).await.unwrap();
    let list = async |filter: JobFilter| -> Vec<_> {
        db.store.list(&filter).await.unwrap().rows.iter().map(|row| row.id).collect()
    };
    let all = JobFilter { limit: 1000, ..JobFilter::default() };
    assert_eq!(
        list(JobFilter { statuses: vec![JobStatus::Cancelled, JobStatus::Error], ..all.clone() }).await,
        [jobs[1]]
    );
    assert_eq!(
        list(JobFilter { identifier: Some("job 1".to_owned()), ..all.clone() }).await,
        [jobs[5], jobs[3], jobs[1]]
    );
    assert_eq!(list(JobFilter { types: vec!["OTHER".to_owned()], ..all.clone() }).await, []);
    // More types than fit into one statement.
    let many = || (0..45).map(|n| format!("OTHER{n}")).chain(["RENDER".to_owned()]).collect::<Vec<_>>();
    assert_eq!(list(JobFilter { types: many(), ..all.clone() }).await, list(all.clone()).await);
    let named = JobFilter { identifier: Some("job 1".to_owned()), ..all.clone() };
    assert_eq!(list(JobFilter { types: many(), ..named.clone() }).await, list(named).await);
    assert_eq!(
        list(JobFilter { types: vec!["OTHER".to_owned(), "RENDER".to_owned()], limit: 0, ..all.clone() }).await.len(),
        1
    );
    assert_eq!(list(JobFilter { identifier: Some("'; DROP TABLE jobs --\0".to_owned()), ..all }).await, []);
}

async fn lists_by_status_bring_every_type_newest_first(db: Db) {
    let of_type = |n| NewJob { flow: format!("T{}", if n % 2 == 0 { 7 } else { n % 60 }).parse().unwrap(), ..new("x") };
    db.store.enqueue(&(0..300).map(of_type).collect::<Vec<_>>()).await.unwrap();
    for (status, rest) in [("ERROR", 0), ("CANCELLED", 1)] {
        db.sql(&format!("UPDATE jobs SET status = '{status}', completed_time = 1 WHERE id % 7 = {rest}"))
            .await
            .unwrap();
    }
    let every = db.store.list(&JobFilter { limit: 1000, ..JobFilter::default() }).await.unwrap().rows;
    for statuses in [vec![JobStatus::Error], vec![JobStatus::Pending, JobStatus::Cancelled, JobStatus::Progress]] {
        // Fewer than a type has of them.
        let mut filter = JobFilter { statuses: statuses.clone(), limit: 3, ..JobFilter::default() };
        let mut found = Vec::new();
        loop {
            let page = db.store.list(&filter).await.unwrap();
            found.extend(page.rows.into_iter().map(|row| row.id));
            filter.cursor = page.next_cursor;
            if filter.cursor.is_none() {
                break;
            }
        }
        let all: Vec<_> = every.iter().filter(|row| statuses.contains(&row.status)).map(|row| row.id).collect();
        assert_eq!(found, all, "{statuses:?}");
        assert!(all.len() > 40);
    }
}

async fn times_are_kept_to_the_millisecond_past_2038(db: Db) {
    let far = at(253_402_300_799_999);
    let job = NewJob { due: Due::At(far), ..new("x") };
    let id = db.store.enqueue(&[job]).await.unwrap()[0].id;
    assert_eq!(db.row(id).await.run_at, far);
    assert_eq!(db.store.next_due(&flow()).await.unwrap(), Some(far));
    if !db.is_sqlite() {
        return;
    }
    for (text, milliseconds) in [
        ("'2040-02-29T12:34:56.789Z'", 2_214_131_696_789),
        ("'2040-02-29 12:34:56'", 2_214_131_696_000),
        ("'2040-02-29T12:34:56.5+02:00'", 2_214_124_496_500),
        ("'2214131696789'", 2_214_131_696_789),
        ("2214131696789.25", 2_214_131_696_789),
        ("datetime('2040-02-29 12:34:56')", 2_214_131_696_000),
    ] {
        let insert =
            format!("INSERT INTO jobs (type, identifier, run_at, created_time) VALUES ('T', 'x', {text}, {text})");
        db.sql(&insert).await.unwrap();
        let row = db.row(JobId(db.number("SELECT max(id) FROM jobs").await)).await;
        assert_eq!((row.run_at, row.created_time), (at(milliseconds), at(milliseconds)), "{text}");
        db.sql(&format!("UPDATE jobs SET run_at = 1, cancel_requested_time = {text} WHERE id = {}", row.id))
            .await
            .unwrap();
        assert_eq!(db.row(row.id).await.cancel_requested_time, Some(at(milliseconds)), "{text}");
    }
    for bad in ["'tomorrow'", "'now'", "x'31'", "''", "'2040-13-01'", "'12:00'"] {
        for sql in [
            format!("INSERT INTO jobs (type, identifier, run_at) VALUES ('T', 'x', {bad})"),
            format!("INSERT INTO jobs (type, identifier, created_time) VALUES ('T', 'x', {bad})"),
            format!("UPDATE jobs SET cancel_requested_time = {bad}"),
        ] {
            let error = db.sql(&sql).await.unwrap_err().to_string();
            assert!(
                error.contains("_time is no time: write milliseconds") || error.contains("run_at is no time: write"),
                "{sql}: {error}"
            );
        }
    }
    // CURRENT_TIMESTAMP is due now, like a row that says nothing.
    db.sql("INSERT INTO jobs (type, identifier, run_at) VALUES ('RENDER', 'now', CURRENT_TIMESTAMP)").await.unwrap();
    assert_eq!(db.claim(&[token(1)]).await.jobs.len(), 1);
}

async fn what_makes_no_sense_is_refused_with_a_name(db: Db) {
    let of = |sqlite, postgres, mariadb| match db.on {
        On::Sqlite => sqlite,
        On::Postgres => postgres,
        On::MariaDb => mariadb,
    };
    for (columns, values, name) in [
        ("status", "'RUNNING'", "status_is_PENDING_INQUEUE_PROGRESS_COMPLETED_ERROR_or_CANCELLED"),
        ("status", "'pending'", "status_is_PENDING_INQUEUE_PROGRESS_COMPLETED_ERROR_or_CANCELLED"),
        ("status", "NULL", "status"),
        ("type", "NULL", "type"),
        ("priority", "3000000000", "priority_is_a_whole_number"),
        ("attempt", "-1", "attempt_is_0_or_more"),
        ("maximum_attempts", "0", "maximum_attempts_is_1_or_more"),
        ("progress", "101", "progress_is_0_to_100"),
        ("run_at", "NULL", "run_at"),
        ("priority", "'high'", of("priority_is_a_whole_number", "high", "high")),
        ("exit_code", "'x'", of("exit_code_is_a_whole_number", "bigint", "exit_code")),
        ("started_time", "'2040-01-01'", of("times_are_whole_milliseconds_since_1970_in_UTC", "2040", "started_time")),
    ] {
        db.sql("DELETE FROM jobs").await.unwrap();
        db.sql("INSERT INTO jobs (type, identifier) VALUES ('RENDER', 'x')").await.unwrap();
        let error = db.sql(&format!("UPDATE jobs SET {columns} = {values}")).await.unwrap_err().to_string();
        assert!(error.contains(name), "{columns} = {values}: {error}");
    }
}

async fn open_rows_are_found_whoever_wrote_them(db: Db) {
    let mine = db.running("mine", 1).await;
    let other = claim_with(&db.store, {
        db.store.enqueue(&[new("other")]).await.unwrap();
        Claim { worker: "node-b".parse().unwrap(), ..claim(&[token(2)]) }
    })
    .await;
    db.sql("INSERT INTO jobs (type, identifier, status, run_token) VALUES ('WEIRD', 'foreign', 'PROGRESS', 'garbage')")
        .await
        .unwrap();
    db.sql("INSERT INTO jobs (type, identifier, status) VALUES ('RENDER', 'foreign', 'INQUEUE')").await.unwrap();
    db.store.enqueue(&[new("waiting")]).await.unwrap();
    let open = db.store.open_jobs(&worker(), None).await.unwrap();
    let seen: Vec<_> =
        open.iter().map(|job| (job.identifier.as_deref().unwrap(), job.token.clone(), job.status, job.pid)).collect();
    let mut expected = vec![
        ("mine", Some(token(1)), JobStatus::Progress, Some(4242)),
        ("other", Some(token(2)), JobStatus::InQueue, None),
        ("foreign", None, JobStatus::Progress, None),
        ("foreign", None, JobStatus::InQueue, None),
    ];
    if !db.is_sqlite() {
        expected.remove(1);
    }
    assert_eq!(seen, expected);
    assert_eq!((open[0].id, open[0].attempt, open[0].schedule_time), (mine.id, Attempt(1), mine.schedule_time));
    assert_eq!((open[0].job_type.as_str(), open[0].started_time), ("RENDER", Some(at(5_000_000_000_000))));
    let of_flow = db.store.open_jobs(&worker(), Some(&flow())).await.unwrap();
    assert_eq!(of_flow.len(), expected.len() - 1);
    assert_eq!(other.jobs.len(), 1);
}

async fn queues_are_counted_without_ended_rows(db: Db) {
    db.apply(Write::RegisterFlows(vec!["QUIET".parse().unwrap(), flow()])).await;
    let now = db.store.now().await.unwrap();
    let done = db.running("done", 1).await;
    db.apply(Write::Settle(completed(&done))).await;
    db.running("a", 2).await;
    db.claimed("b", 3).await;
    db.store
        .enqueue(&[
            NewJob { due: Due::At(at(1000)), ..new("c") },
            NewJob { due: Due::At(now.plus(Duration::from_secs(60))), ..new("d") },
        ])
        .await
        .unwrap();
    db.sql("INSERT INTO jobs (type, identifier, run_at) VALUES ('UNKNOWN', 'x', 99999999999999)").await.unwrap();
    let states = db.store.flow_states().await.unwrap();
    let seen: Vec<_> = states
        .iter()
        .map(|s| (s.job_type.as_str(), s.paused, s.pending, s.runnable, s.inqueue, s.progress, s.oldest_pending))
        .collect();
    assert_eq!(
        seen,
        [
            ("QUIET", false, 0, 0, 0, 0, None),
            ("RENDER", false, 2, 1, 1, 1, Some(at(1000))),
            ("UNKNOWN", false, 1, 0, 0, 0, None)
        ]
    );
}

async fn workers_and_flows_are_registered(db: Db) {
    let me = |incarnation: &str| Worker {
        worker: worker(),
        incarnation: incarnation.to_owned(),
        hostname: "host".to_owned(),
        version: "1.2".to_owned(),
        labels: Labels::default(),
        displaces: None,
        address: None,
    };
    let note = |incarnation: &str, state| {
        Write::WorkerState(WorkerNote { worker: worker(), incarnation: incarnation.to_owned(), state })
    };
    assert_eq!(db.apply(note("1", WorkerState::Active)).await, Written::Fenced);
    assert_eq!(db.apply(Write::RegisterWorker(me("1"))).await, Written::Applied);
    assert_eq!(db.apply(note("1", WorkerState::Draining)).await, Written::Applied);
    let first = db.store.workers().await.unwrap().remove(0);
    assert_eq!((first.state.as_str(), first.hostname.as_str(), first.version.as_str()), ("DRAINING", "host", "1.2"));
    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(db.apply(Write::RegisterWorker(me("2"))).await, Written::Applied);
    assert_eq!(db.apply(note("1", WorkerState::Stopped)).await, Written::Fenced);
    let workers = db.store.workers().await.unwrap();
    assert_eq!((workers.len(), workers[0].state.as_str(), workers[0].incarnation.as_str()), (1, "ACTIVE", "2"));
    assert!(workers[0].started_time > first.started_time);
    assert_eq!(db.apply(Write::RegisterFlows(vec![flow(), "B".parse().unwrap(), flow()])).await, Written::Applied);
    assert_eq!(db.number("SELECT count(*) FROM flows").await, 2);
}

async fn a_batch_is_all_or_nothing(db: Db) {
    let job = db.claimed("x", 1).await;
    // What no migration allows, in the middle of a batch.
    db.sql("INSERT INTO runs (job_id, attempt, run_token) SELECT id, 1, 'taken' FROM jobs").await.unwrap();
    let bad = Write::Settle(Settlement {
        attempt: Attempt(1),
        job: job.id,
        execution_ms: Some(1),
        ..failed(&job, Next::Final(JobStatus::Pending))
    });
    if db.is_sqlite() {
        db.sql("CREATE TRIGGER refuse BEFORE UPDATE OF error ON jobs BEGIN SELECT RAISE(ABORT, 'no'); END")
            .await
            .unwrap();
    } else {
        db.sql("ALTER TABLE jobs ADD CONSTRAINT refuse CHECK (error IS NULL)").await.unwrap();
    }
    let before = (db.row(job.id).await, db.steps(job.id).await);
    let error = db.store.apply(&[started(&job), bad]).await.unwrap_err();
    assert!(!error.is_transient(), "{error:?}");
    assert_eq!(error.kind(), "statement");
    assert_eq!((db.row(job.id).await, db.steps(job.id).await), before);
    assert_eq!(db.apply(started(&job)).await, Written::Applied, "the store works on");
}

async fn an_index_that_somebody_has_dropped_is_no_obstacle_to_its_removal(db: Db) {
    db.sql("DELETE FROM seaql_migrations WHERE version LIKE '%by_status'").await.unwrap();
    assert_eq!(db.store.migrate().await.unwrap(), ["m20261127_000021_by_status"]);
    db.store.check_schema().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_on_postgres_does_not_keep_others_waiting_for_a_backup() {
    let Some(db) = Db::postgres().await else { return };
    let undo = "CREATE INDEX jobs_by_status ON jobs (status, id); DELETE FROM seaql_migrations WHERE version LIKE '%by_status'";
    db.sql(undo).await.unwrap();
    let backup = db.foreign.begin().await.unwrap();
    backup.execute_unprepared("LOCK TABLE jobs IN ACCESS SHARE MODE").await.unwrap();
    let error = db.store.migrate().await.unwrap_err();
    let chain = format!("{error}: {:?}", std::error::Error::source(&error));
    assert!(chain.contains("lock timeout"), "{chain}");
    backup.rollback().await.unwrap();
    assert_eq!(db.store.migrate().await.unwrap(), ["m20261127_000021_by_status"]);
}

async fn migrations_run_once_also_when_two_processes_start(db: Db) {
    assert_eq!(db.store.migrate().await.unwrap(), Vec::<String>::new());
    db.store.check_schema().await.unwrap();
    assert!(db.store.migration_status().await.unwrap().iter().all(|(_, applied)| *applied));
    let (fresh, _directory) = if db.is_sqlite() {
        let directory = tempfile::tempdir().unwrap();
        (format!("sqlite://{}/fresh.db", directory.path().display()), Some(directory))
    } else {
        let database = if db.on == On::MariaDb { mariadb_server::database() } else { server::database() };
        (database.unwrap(), None)
    };
    let url: callsheet::domain::database_url::DatabaseUrl = fresh.parse().unwrap();
    if db.is_sqlite() {
        assert!(matches!(Store::connect(&url, Use::Tool).await, Err(Error::NoDatabase { .. })));
        let nowhere = "sqlite:///nonexistent/callsheet.db".parse().unwrap();
        assert!(matches!(Store::connect(&nowhere, Use::Service).await, Err(Error::NoDirectory { .. })));
    }
    let store = Store::connect(&url, Use::Service).await.unwrap();
    for error in [
        store.check_schema().await.unwrap_err(),
        store.enqueue(&[new("x")]).await.unwrap_err(),
        store.apply(&[Write::Claim(claim(&[token(1)]))]).await.unwrap_err(),
        store.job(JobId(1)).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::SchemaMissing), "{error:?}");
    }
    let mut race = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let url = url.clone();
        race.spawn(async move { Store::connect(&url, Use::Service).await.unwrap().migrate().await.unwrap() });
    }
    let applied: usize = race.join_all().await.iter().map(Vec::len).sum();
    assert_eq!(applied, store.migration_status().await.unwrap().len());
    store.check_schema().await.unwrap();
    store.close().await;
}

async fn a_newer_schema_is_refused(db: Db) {
    db.sql("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m20990101_000001_newer', 1)").await.unwrap();
    for error in [
        db.store.migrate().await.unwrap_err(),
        db.store.check_schema().await.unwrap_err(),
        db.store.migration_status().await.unwrap_err(),
    ] {
        assert!(
            matches!(&error, Error::SchemaTooNew { migration } if migration == "m20990101_000001_newer"),
            "{error:?}"
        );
    }
}

async fn a_foreign_commit_wakes_and_an_own_one_does_not(db: Db) {
    db.apply(Write::RegisterFlows(vec![flow()])).await;
    let mut wakes = db.store.watch().await.unwrap();
    wakes_nobody(&mut wakes, async || ()).await;
    let insert = "INSERT INTO jobs (type, identifier) VALUES ('RENDER', 'x')";
    // The floor of the whole way to the exec is 10 ms. MariaDB is asked four times a second.
    let soon = if db.on == On::MariaDb { Duration::from_millis(400) } else { Duration::from_millis(8) };
    wakes_within(&mut wakes, Each::AtOnce, 20, soon, async || {
        db.sql(insert).await.unwrap();
    })
    .await;
    calm(&mut wakes).await;
    db.sql("UPDATE jobs SET cancel_requested_time = 1 WHERE id = (SELECT max(id) FROM jobs)").await.unwrap();
    woken(&mut wakes).await;

    // What this service does itself is no news, except on MariaDB, which can't tell whose it is; the answer is a look.
    let serial = std::sync::atomic::AtomicU8::new(1);
    let own = async || {
        let token = token(serial.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let job = db.claim(std::slice::from_ref(&token)).await.jobs.remove(0);
        for write in [
            started(&job),
            confirm(std::slice::from_ref(&token)),
            Write::Progress(ProgressNote { token, progress: Some(3), status_message: None }),
            Write::Settle(failed(&job, Next::RetryAfter(Duration::ZERO))),
        ] {
            db.apply(write).await;
        }
    };
    if db.on == On::MariaDb {
        own().await;
    } else {
        wakes_nobody(&mut wakes, own).await;
    }
    calm(&mut wakes).await;
    // But an enqueue by another part of this process is, without any asking.
    let direct = Duration::from_millis(50);
    wakes_within(&mut wakes, Each::OutOfCalm, if db.on == On::MariaDb { 5 } else { 1 }, direct, async || {
        db.store.enqueue(&[new("here")]).await.unwrap();
    })
    .await;
    // And so is another service's settlement.
    let job = db.claim(&[token(200)]).await.jobs.remove(0);
    calm(&mut wakes).await;
    let another = db.another().await;
    another.apply(&[Write::Settle(completed(&job))]).await.unwrap();
    woken(&mut wakes).await;
    // A rolled back transaction changes nothing.
    let rolled_back = format!("BEGIN; {insert}; ROLLBACK; SELECT nonsense");
    wakes_nobody(&mut wakes, async || assert!(db.sql(&rolled_back).await.is_err())).await;
}

/// SQLite's plans are held by `src/store/plans.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_reads_no_table_from_its_start_to_claim_before_a_large_backlog() {
    if let Some(db) = Db::postgres().await {
        no_table_is_read_from_its_start_to_claim(db).await;
    }
}

/// By the server's own count of the rows that it has read of each table, and the small ones that claims lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_reads_few_rows_to_claim_before_a_backlog() {
    const READ: &str = "SELECT CAST(COALESCE(sum(rows_read), 0) AS SIGNED) FROM information_schema.table_statistics \
        WHERE table_schema = DATABASE() AND table_name IN ('jobs', 'runs', 'job_events')";
    const PRIORITIES: i64 = 20;
    const ROUNDS: u8 = 10;
    let Some(db) = Db::mariadb().await else { return };
    for (kind, status, priority, run_at) in [
        ("RENDER", "PENDING", "0", "n".to_owned()),
        ("RENDER", "PENDING", "9 + n % 20", "n + 90000000000000".to_owned()),
        ("RENDER", "COMPLETED", "5", "n".to_owned()),
        ("OTHER", "PENDING", "20", "n".to_owned()),
    ] {
        let (_, numbers) = db.numbers(3000);
        let insert = format!(
            "INSERT INTO jobs (type, identifier, status, priority, run_at) \
             SELECT '{kind}', 'x', '{status}', {priority}, {run_at} {numbers}"
        );
        db.sql(&insert).await.unwrap();
    }
    db.apply(Write::RegisterFlows(vec![flow()])).await;
    let mut wakes = db.store.watch().await.unwrap();
    let (before, begun) = (db.number(READ).await, Instant::now());
    for n in 0..ROUNDS {
        let claimed = db.claim(&[token(n)]).await;
        assert_eq!((claimed.jobs.len(), claimed.jobs[0].priority), (1, 0));
        let batch = [started(&claimed.jobs[0]), confirm(&[token(n)]), Write::Settle(completed(&claimed.jobs[0]))];
        db.store.apply(&batch).await.unwrap();
        woken(&mut wakes).await;
    }
    let read = (db.number(READ).await - before) / i64::from(ROUNDS);
    // The priorities before it, and some dozens of looks into indexes, and ten rows for each look whether there is anything,
    // four times a second; a table from its start would be 12,000.
    let looks = i64::try_from(begun.elapsed().as_millis()).unwrap() / 250 / i64::from(ROUNDS);
    assert!((1..PRIORITIES + 100 + 10 * looks).contains(&read), "{read} rows are read for each job");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_migrates_again_what_was_interrupted_and_leaves_other_tables_alone() {
    let Some(url) = mariadb_server::database() else { return };
    let store = Store::connect(&url.parse().unwrap(), Use::Service).await.unwrap();
    let foreign = connect(&url).await;
    foreign.execute_unprepared("CREATE TABLE jobs (id BIGINT PRIMARY KEY)").await.unwrap();
    let error = store.migrate().await.unwrap_err();
    let chain = format!("{error}: {:?}", std::error::Error::source(&error));
    assert!(chain.contains("a table jobs that is not Callsheet's"), "{chain}");
    foreign.execute_unprepared("DROP TABLE jobs").await.unwrap();
    assert_eq!(store.migrate().await.unwrap().len(), 17, "nothing was done before it was looked at");
    // As if it had been killed on the way.
    let undo = "DELETE FROM seaql_migrations WHERE version >= 'm20261126_000020'; DROP TRIGGER jobs_that_wait_again; \
                DROP TABLE deliveries; DROP FUNCTION callsheet_due_priority; INSERT INTO flows (type) VALUES ('KEPT')";
    foreign.execute_unprepared(undo).await.unwrap();
    assert_eq!(store.migrate().await.unwrap().len(), 2);
    store.check_schema().await.unwrap();
    assert_eq!(store.flow_states().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_compares_texts_as_they_are() {
    let Some(db) = Db::mariadb().await else { return };
    let texts = ["a", "A", "a ", "\u{e4}", "a\u{308}", "\u{1f600}"];
    let keyed = texts.map(|text| NewJob { unique_key: Some(text.to_owned()), ..new(text) });
    let jobs = ids(&db.store.enqueue(&keyed).await.unwrap());
    assert_eq!(jobs.iter().collect::<BTreeSet<_>>().len(), texts.len(), "each is a key of its own");
    for (job, text) in jobs.iter().zip(texts) {
        let filter = JobFilter { identifier: Some(text.to_owned()), limit: 10, ..JobFilter::default() };
        let found: Vec<_> = db.store.list(&filter).await.unwrap().rows.iter().map(|row| row.id).collect();
        assert_eq!((found, db.row(*job).await.identifier.as_str()), (vec![*job], text));
    }
    let cancelled = "cancelled \u{1f600} '\"\\ $1 \u{7f}\n";
    let job = db.claim(&[token(1)]).await.jobs.remove(0);
    let end = Settlement { error: Some(cancelled.to_owned()), message: Some(cancelled.to_owned()), ..completed(&job) };
    db.apply(Write::Settle(end)).await;
    assert_eq!(db.row(job.id).await.error.as_deref(), Some(cancelled));
    assert_eq!(db.store.events(job.id).await.unwrap().last().unwrap().message.as_deref(), Some(cancelled));
}

async fn no_table_is_read_from_its_start_to_claim(mut db: Db) {
    const SCANS: &str = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname IN ('jobs', 'Job')";
    // Pending, delayed before them in the order, ended, and of another type.
    for (kind, status, priority, run_at) in [
        ("RENDER", "PENDING", "0", "n"),
        ("RENDER", "PENDING", "9 + n % 500", "n + 90000000000000"),
        ("RENDER", "COMPLETED", "5", "n"),
        ("OTHER", "PENDING", "20", "n"),
    ] {
        let insert = format!(
            "INSERT INTO jobs (type, identifier, status, priority, run_at) \
             SELECT '{kind}', 'x', '{status}', {priority}, {run_at} FROM generate_series(1, 60000) AS n"
        );
        db.sql(&insert).await.unwrap();
    }
    // A session tells at its end at the latest what it has read, and building an index is to read the table.
    db.store.close().await;
    db.alone().await;
    db.store = db.another().await;
    let before = db.number(SCANS).await;
    for n in 0..40 {
        let claimed = db.claim(&[token(n)]).await;
        assert_eq!((claimed.jobs.len(), claimed.jobs[0].priority), (1, 0));
        let batch = [started(&claimed.jobs[0]), Write::Settle(completed(&claimed.jobs[0])), confirm(&[token(n)])];
        db.store.apply(&batch).await.unwrap();
    }
    db.store.close().await;
    db.alone().await;
    assert_eq!(db.number(SCANS).await - before, 0, "the table was read from end to end");
}

async fn many_cancelled_rows_are_settled_in_portions(db: Db) {
    let (with, numbers) = db.numbers(1200);
    let many =
        format!("INSERT INTO jobs (type, identifier, cancel_requested_time) {with}SELECT 'RENDER', 'x', 1 {numbers}");
    db.sql(&many).await.unwrap();
    db.store.enqueue(&[new("good")]).await.unwrap();
    let mut cancelled = Vec::new();
    for round in 0.. {
        let claimed = db.claim(&[token(1)]).await;
        cancelled.push(claimed.cancelled_pending.len());
        if let Some(job) = claimed.jobs.first() {
            assert_eq!((round, job.identifier.as_deref()), (2, Ok("good")));
            break;
        }
        assert_eq!(claimed.next_due, Some(claimed.now), "there is more to do at once");
    }
    assert_eq!(cancelled, [500, 500, 200]);
    assert_eq!(db.number("SELECT count(*) FROM job_events WHERE to_status = 'CANCELLED'").await, 1200);
}

/// `python3` and the `sqlite3` shell bring their own SQLite, which may be years older than ours.
#[tokio::test]
async fn clients_with_their_own_sqlite_enqueue_and_wake() {
    let db = Db::sqlite().await.unwrap();
    let path = db.path.clone().unwrap();
    let mut wakes = db.store.watch().await.unwrap();
    let python = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); \
        db.execute(\"INSERT INTO jobs (type, identifier) VALUES ('RENDER', 'abc')\"); \
        db.execute(\"INSERT INTO jobs (type, identifier, run_at) VALUES ('RENDER', 'abc', CURRENT_TIMESTAMP)\"); db.commit()";
    let shell = "INSERT INTO jobs (type, identifier) VALUES ('RENDER', 'abc');";
    let mut clients = 0;
    for (program, arguments) in
        [("python3", vec!["-c", python, path.to_str().unwrap()]), ("sqlite3", vec![path.to_str().unwrap(), shell])]
    {
        let before = db.store.now().await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "a client, not a job")]
        let run = std::process::Command::new(program).args(&arguments).output();
        let Ok(output) = run else { continue };
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        clients += 1;
        woken(&mut wakes).await;
        let page = db.store.list(&JobFilter { limit: 1000, ..JobFilter::default() }).await.unwrap();
        assert!(page.rows.iter().all(|row| row.status == JobStatus::Pending));
        assert!(page.rows[0].created_time >= before, "{program}: {:?} {before:?}", page.rows[0]);
    }
    assert_eq!(db.claim(&[token(1), token(2), token(3)]).await.jobs.len(), if clients == 2 { 3 } else { clients });
}

/// Not a test: prints what a batch costs. `cargo test --release --test it -- --ignored --nocapture store_latency`
mod store_latency {
    use super::*;

    async fn measure(name: &str, db: Db) {
        const ROUNDS: usize = 500;
        db.store.enqueue(&vec![new("x"); ROUNDS + 1]).await.unwrap();
        let mut times: [Vec<Duration>; 4] = Default::default();
        for n in 0..ROUNDS {
            let mut bytes = [1; 16];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            let start = Instant::now();
            let job = db.claim(&[RunToken::from_bytes(bytes)]).await.jobs.remove(0);
            times[0].push(start.elapsed());
            for (kind, write) in
                [started(&job), confirm(std::slice::from_ref(&job.token)), Write::Settle(completed(&job))]
                    .into_iter()
                    .enumerate()
            {
                let start = Instant::now();
                db.apply(write).await;
                times[kind + 1].push(start.elapsed());
            }
        }
        for (kind, mut times) in ["claim", "started", "confirm", "settle"].into_iter().zip(times) {
            times.sort_unstable();
            println!("{name} {kind}: p50 {:?} p99 {:?}", times[ROUNDS / 2], times[ROUNDS * 99 / 100]);
        }
        let mut wakes = db.store.watch().await.unwrap();
        let mut times = Vec::new();
        for _ in 0..200 {
            db.sql("INSERT INTO jobs (type, identifier) VALUES ('RENDER', 'x')").await.unwrap();
            let start = Instant::now();
            wakes.next().await;
            times.push(start.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        times.sort_unstable();
        println!("{name} foreign commit to wake-up: p50 {:?} p99 {:?}", times[100], times[198]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "a measurement"]
    async fn print() {
        measure("sqlite", Db::sqlite().await.unwrap()).await;
        if let Some(db) = Db::postgres().await {
            measure("postgres", db).await;
        }
        if let Some(db) = Db::adopted().await {
            measure("adopted", db).await;
        }
        if let Some(db) = Db::mariadb().await {
            measure("mariadb", db).await;
        }
    }
}
