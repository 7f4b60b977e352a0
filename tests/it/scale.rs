//! What one PostgreSQL carries: claims and heartbeats of a hundred workers, each a store of its own in this process.
//!
//! `cargo test --test it scale:: -- --ignored --nocapture` prints the tables and plans of docs/scale.md. Half of this
//! machine's time goes to the hundred stores, which would be on a hundred machines; so what PostgreSQL itself used of a
//! processor is told beside each rate.

use std::time::{Duration, Instant};

use callsheet::domain::heartbeat::{Lease, LeaseTerms};
use callsheet::domain::run::Next;
use callsheet::domain::{FlowType, JobStatus, Outcome, RunToken, Timestamp, WorkerId};
use callsheet::store::{Claim, ClaimedJob, Confirm, Settlement, Store, Use, Worker, Write, Written};

use crate::support::postgres::Server;

const EACH: Duration = Duration::from_secs(3);
const TERMS: LeaseTerms = LeaseTerms {
    heartbeat_timeout: Duration::from_secs(20),
    start_to_close_timeout: Duration::from_secs(172_800),
    kill_grace: Duration::from_secs(10),
};
/// Rows of history, waiting rows of the flow that all workers share, and of each flow that one has for itself.
const FILL: &str = "INSERT INTO jobs (type, identifier, status, run_token, created_time, completed_time) \
    SELECT 'ALL', 'i', 'COMPLETED', md5(n::text), n, n FROM generate_series(1, 300000) AS n; \
    INSERT INTO jobs (type, identifier) SELECT 'ALL', 'i' FROM generate_series(1, 60000); \
    INSERT INTO jobs (type, identifier) SELECT 'OWN' || n % 100, 'i' FROM generate_series(1, 60000) AS n; \
    ANALYZE";

/// A worker, as far as the database knows.
#[derive(Clone)]
struct Simulated {
    store: Store,
    name: WorkerId,
    number: usize,
}

/// What was done in a time, and what it took.
#[derive(Default)]
struct Measured {
    done: usize,
    latencies: Vec<Duration>,
}

impl Measured {
    fn percentile(&mut self, of_hundred: usize) -> f64 {
        self.latencies.sort_unstable();
        let at = (self.latencies.len() * of_hundred / 100).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
    }
}

fn token() -> RunToken {
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
    RunToken::from_bytes(random)
}

impl Simulated {
    async fn of(server: &Server, number: usize) -> Self {
        let store = Store::connect(&server.url().parse().unwrap(), Use::Service).await.unwrap();
        let name: WorkerId = format!("w{number}").parse().unwrap();
        let worker = Worker {
            worker: name.clone(),
            incarnation: "1".to_owned(),
            hostname: "here".to_owned(),
            version: "0".to_owned(),
            labels: callsheet::domain::labels::Labels::default(),
            displaces: None,
            address: None,
        };
        store.apply(&[Write::RegisterWorker(worker)]).await.unwrap();
        Self { store, name, number }
    }

    /// The end of one job and the claim of the next, in one commit, as a service with one slot has them.
    async fn next(&self, flow: &FlowType, ended: Option<ClaimedJob>) -> ClaimedJob {
        let claim = Claim {
            flow: flow.clone(),
            worker: self.name.clone(),
            concurrency: 20_000,
            worker_concurrency: 20_000,
            requires: callsheet::domain::labels::Labels::default(),
            beyond_share: true,
            incarnation: String::new(),
            schedule_to_close_timeout: Duration::from_secs(1 << 40),
            terms: TERMS,
            tokens: vec![token()],
        };
        let mut writes: Vec<Write> = ended.into_iter().map(|job| self.settlement(&job)).collect();
        writes.push(Write::Claim(claim));
        match self.store.apply(&writes).await.unwrap().pop() {
            Some(Written::Claimed(mut claimed)) => claimed.jobs.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn settlement(&self, job: &ClaimedJob) -> Write {
        Write::Settle(Settlement {
            job: job.id,
            token: job.token.clone(),
            attempt: job.attempt,
            worker: self.name.clone(),
            next: Next::Final(JobStatus::Completed),
            outcome: Some(Outcome::Completed),
            error: None,
            exit_code: Some(0),
            signal: None,
            pid: Some(1),
            started_time: Some(Timestamp::from_unix_millis(1)),
            completed_time: Timestamp::from_unix_millis(2),
            execution_ms: Some(1),
            usage: None,
            slot: None,
            lapsed: false,
            message: None,
        })
    }

    async fn claims(self, flow: FlowType, until: Instant) -> Measured {
        let (mut measured, mut job) = (Measured::default(), None);
        while Instant::now() < until {
            let begun = Instant::now();
            job = Some(self.next(&flow, job).await);
            measured.latencies.push(begun.elapsed());
            measured.done += 1;
        }
        if let Some(job) = job {
            self.store.apply(&[self.settlement(&job)]).await.unwrap();
        }
        measured
    }

    async fn heartbeats(self, tokens: Vec<RunToken>, until: Instant) -> Measured {
        let confirms: Vec<_> =
            tokens.into_iter().map(|token| Confirm { token, untouched: TERMS.untouched(Lease::Short) }).collect();
        let mut measured = Measured::default();
        while Instant::now() < until {
            let begun = Instant::now();
            let Some(Written::Confirmed(runs)) =
                self.store.apply(&[Write::Confirm(confirms.clone())]).await.unwrap().pop()
            else {
                panic!("no answer to a confirmation");
            };
            assert_eq!(runs.len(), confirms.len());
            measured.latencies.push(begun.elapsed());
            measured.done += confirms.len();
        }
        measured
    }
}

/// Has all of them work at once, and says how many a second, how long each took, and PostgreSQL's time for one.
async fn together<F>(server: &Server, workers: &[Simulated], work: impl Fn(Simulated, Instant) -> F) -> String
where
    F: Future<Output = Measured> + Send + 'static,
{
    let (before, begun) = (server.processor_time(), Instant::now());
    let tasks: Vec<_> = workers.iter().map(|worker| tokio::spawn(work(worker.clone(), begun + EACH))).collect();
    let mut all = Measured::default();
    for task in tasks {
        let measured = task.await.unwrap();
        all.done += measured.done;
        all.latencies.extend(measured.latencies);
    }
    let (took, used) = (begun.elapsed().as_secs_f64(), server.processor_time() - before);
    let done = all.done as f64;
    format!(
        "{:.0} | {:.1} | {:.1} | {:.2}",
        done / took,
        all.percentile(50),
        all.percentile(99),
        used.as_secs_f64() * 1000.0 / done
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check: run it alone"]
async fn claims_and_heartbeats_of_a_hundred_workers() {
    let Some(server) = Server::durable() else { return };
    let store = Store::connect(&server.url().parse().unwrap(), Use::Service).await.unwrap();
    store.migrate().await.unwrap();
    server.sql(FILL);
    let mut workers = Vec::new();
    for number in 0..100 {
        workers.push(Simulated::of(&server, number).await);
    }
    println!("| workers | flows | claims/s | p50 ms | p99 ms | PostgreSQL, ms of a processor a claim |");
    for count in [1, 2, 5, 10, 20, 50, 100] {
        for shared in [true, false] {
            let told = together(&server, &workers[..count], |worker, until| {
                let flow = if shared { "ALL".to_owned() } else { format!("OWN{}", worker.number) };
                worker.claims(flow.parse().unwrap(), until)
            })
            .await;
            println!("| {count} | {} | {told} |", if shared { "one" } else { "one each" });
        }
    }
    println!("| workers | runs of each | heartbeats/s | p50 ms | p99 ms | PostgreSQL, ms of a processor a heartbeat |");
    for (count, runs) in [(1, 1), (10, 1), (100, 1), (10, 10), (100, 10), (10, 100), (100, 100)] {
        let all = open_runs(&server, count, runs);
        let told = together(&server, &workers[..count], |worker, until| {
            let tokens = all[worker.number].clone();
            worker.heartbeats(tokens, until)
        })
        .await;
        println!("| {count} | {runs} | {told} |");
    }
    println!(
        "| open runs of the flow | claims/s of ten workers | p50 ms | p99 ms | PostgreSQL, ms of a processor a claim |"
    );
    for runs in [0, 10, 100] {
        open_runs(&server, 100, runs);
        let flow: FlowType = "ALL".parse().unwrap();
        let told = together(&server, &workers[..10], |worker, until| worker.claims(flow.clone(), until)).await;
        println!("| {} | {told} |", 100 * runs);
    }
    println!("{}", plans(&server, &workers[0]).await);
}

/// Makes so many waiting rows of the shared flow runs of so many workers, and no others: their tokens, by worker.
fn open_runs(server: &Server, workers: usize, runs: usize) -> Vec<Vec<RunToken>> {
    server.sql("UPDATE jobs SET status = 'COMPLETED', completed_time = 1 WHERE status IN ('INQUEUE', 'PROGRESS')");
    let mut values = Vec::new();
    let tokens: Vec<Vec<RunToken>> = (0..workers).map(|_| (0..runs).map(|_| token()).collect()).collect();
    for (worker, tokens) in tokens.iter().enumerate() {
        values.extend(tokens.iter().map(|token| format!("('w{worker}', '{token}')")));
    }
    for some in values.chunks(1000) {
        // Rows that nobody claims, since they are runs at once.
        server.sql(&format!(
            "INSERT INTO jobs (type, identifier, status, attempt, worker_id, run_token, lease_time) \
             SELECT 'ALL', 'i', 'PROGRESS', 1, worker, token, 5000000000000 FROM (VALUES {}) AS run (worker, token)",
            some.join(", ")
        ));
    }
    server.sql("ANALYZE jobs");
    tokens
}

/// PostgreSQL's own plans of a claim and of a confirmation, with what they took.
async fn plans(server: &Server, worker: &Simulated) -> String {
    server.sql(
        "ALTER DATABASE test SET session_preload_libraries = 'auto_explain'; \
         ALTER DATABASE test SET auto_explain.log_min_duration = 0; \
         ALTER DATABASE test SET auto_explain.log_analyze = on; ALTER DATABASE test SET auto_explain.log_timing = off",
    );
    let explained = Simulated {
        store: Store::connect(&server.url().parse().unwrap(), Use::Service).await.unwrap(),
        ..worker.clone()
    };
    let before = server.log().len();
    let job = explained.next(&"ALL".parse().unwrap(), None).await;
    let confirm = Confirm { token: job.token.clone(), untouched: TERMS.untouched(Lease::Short) };
    explained.store.apply(&[Write::Confirm(vec![confirm])]).await.unwrap();
    explained.store.apply(&[explained.settlement(&job)]).await.unwrap();
    server.log().split_off(before)
}
