//! The benchmark: `cargo bench --bench callsheet`. Everything is measured side by side in one run and printed as one table;
//! `-- --json FILE` writes it as JSON too, `--rows N` sets the largest table that claims are timed on (a million), `--claims N`
//! how many are made under an old snapshot (20,000), `--runs N` how many commands sleep at a time while memory is measured (500),
//! `--only sqlite` or `--only postgres` leaves the other out. `--churn N` is another benchmark: how large the tables get while
//! so many jobs come and go.
//!
//! Jobs go through a real service of the release binary, as rows committed by another process (this one); the evidence
//! of when a command started or ended is what the command itself writes. Rates are given beside the raw rate of spawning
//! `/bin/true` from here, so that they can be compared on another machine.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a program for the terminal"
)]

mod churn;
#[expect(dead_code, reason = "what the tests do to a server of their own")]
#[path = "../it/support/postgres.rs"]
#[expect(unreachable_pub, reason = "shared with the tests")]
mod postgres;
mod report;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use callsheet::domain::database_url::DatabaseUrl;
use callsheet::domain::{FlowType, JobId, JobStatus};
use callsheet::store::{Due, JobFilter, NewJob, Store, Use};
use sea_orm::sqlx::postgres::PgListener;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use tokio::sync::oneshot;

use report::Report;

const SEQUENTIAL_JOBS: usize = 1_500;
const CONCURRENT_JOBS: usize = 3_000;
const LATENCY_JOBS: usize = 200;
const IDLE: Duration = Duration::from_secs(10);

/// What the program was asked to do.
struct Options {
    json: Option<PathBuf>,
    rows: u64,
    claims: u32,
    runs: usize,
    only: Option<String>,
    churn: Option<usize>,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options { json: None, rows: 1_000_000, claims: 20_000, runs: 500, only: None, churn: None };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("a value for the option");
        match argument.as_str() {
            "--json" => options.json = Some(value().into()),
            "--rows" => options.rows = value().parse().expect("a number of rows"),
            "--claims" => options.claims = value().parse().expect("a number of claims"),
            "--runs" => options.runs = value().parse().expect("a number of runs"),
            "--only" => options.only = Some(value()),
            "--churn" => options.churn = Some(value().parse().expect("a number of jobs")),
            // What cargo passes to every benchmark.
            _ => {}
        }
    }
    runtime().block_on(run(&options));
}

async fn run(options: &Options) {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut report = Report::new(format!("{cores} cores, {}", kernel()));
    if options.only.as_deref() != Some("postgres") {
        let directory = scratch.path().join("sqlite");
        fs::create_dir(&directory).expect("a directory");
        let url = format!("sqlite://{}/callsheet.db", directory.display());
        measure("SQLite", &directory, url, options, &mut report).await;
    }
    if options.only.as_deref() != Some("sqlite") {
        // One that waits for the disk at each commit, as it is when nobody has said otherwise.
        match postgres::Server::durable() {
            Some(server) => {
                let directory = scratch.path().join("postgres");
                fs::create_dir(&directory).expect("a directory");
                measure("PostgreSQL", &directory, server.url(), options, &mut report).await;
            }
            None => println!("PostgreSQL: skipped, no initdb found"),
        }
    }
    if let Some(path) = &options.json {
        report.write(path);
    }
}

async fn measure(name: &'static str, directory: &Path, url: String, options: &Options, report: &mut Report) {
    if let Some(jobs) = options.churn {
        return churn::measure(name, directory, url, jobs, report).await;
    }
    let stamps = directory.join("stamps");
    fs::create_dir(&stamps).expect("a directory");
    let stamp = stamp_program(directory);
    let config = format!(
        "data_dir = {data:?}\n[http]\nlisten = \"off\"\n\
         [flows.ONE]\ncommand = [\"/bin/true\"]\n\
         [flows.EIGHT]\ncommand = [\"/bin/true\"]\nconcurrency = 8\n\
         [flows.STAMP]\ncommand = [{stamp:?}, \"{stamps}/{{identifier}}\"]\n\
         [flows.SLEEP]\ncommand = [\"/bin/sleep\", \"1000\"]\nconcurrency = {runs}\n",
        data = directory.join("data"),
        stamps = stamps.display(),
        runs = options.runs,
    );
    fs::write(directory.join("callsheet.toml"), config).expect("the configuration can be written");
    let parsed: DatabaseUrl = url.parse().expect("a database URL");
    let store = Store::connect(&parsed, Use::Service).await.expect("the database");
    store.migrate().await.expect("the schema");
    report.add(name, "raw commits of one row", commit_rate(&url).await, "/s", None);

    let mut half = 0.0;
    for (flow, count, at_once, what) in
        [("ONE", SEQUENTIAL_JOBS, 1, "jobs, one at a time"), ("EIGHT", CONCURRENT_JOBS, 8, "jobs, eight at a time")]
    {
        let before = raw_rate(at_once);
        let (rate, cpu) = throughput(&store, directory, &url, flow, count).await;
        // The machine's own speed drifts: before and after.
        let raw = (before + raw_rate(at_once)) / 2.0;
        report.add(name, what, rate, "/s", Some((rate / raw, format!("of the raw {raw:.0}/s"))));
        if let Some(cpu) = cpu {
            report.add(name, "CPU for each of them, the command included", cpu, "ms", None);
        }
        half = rate / 2.0;
    }

    let mut service = Service::start(directory, &url);
    let mut client = Client::connect(&url).await;
    bare_spawns(&stamp, &stamps, name, LATENCY_JOBS, report).await;
    latencies(&store, &mut client, &stamps, name, "idle", LATENCY_JOBS, report).await;
    let (stop, stopped) = oneshot::channel();
    let load = std::thread::spawn(move || keep_busy(&parsed, half, stopped));
    latencies(&store, &mut client, &stamps, name, "at half load", LATENCY_JOBS, report).await;
    stop.send(()).expect("the load goes on");
    load.join().expect("the load was there");
    drained(&store, "EIGHT").await;
    let (cpu, resident) = service.idle();
    report.add(name, "idle service, of one core", cpu * 100.0, "%", None);
    report.add(name, "idle service, resident with its helper", resident, "MiB", None);
    many(&store, (directory, &url), &mut service, name, options.runs, report).await;
    service.stop();
    tables::measure(&store, directory, &url, name, (options.rows, options.claims), report).await;
}

/// A program as small as a command may be; it is the way to its `main` that is timed.
fn stamp_program(directory: &Path) -> PathBuf {
    let program = directory.join("stamp");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/stamp.rs");
    let built = Command::new("rustc").args(["-O", "-C", "panic=abort", "-o"]).arg(&program).arg(source).status();
    assert!(built.expect("rustc").success(), "{source} is not to be compiled");
    program
}

/// How often one row can be changed durably in a second, by a client that does nothing else.
async fn commit_rate(url: &str) -> f64 {
    const COMMITS: u32 = 500;
    let database = Database::connect(url).await.expect("the database");
    database.execute_unprepared("CREATE TABLE scratch (n bigint)").await.expect("a table");
    database.execute_unprepared("INSERT INTO scratch VALUES (0)").await.expect("a row");
    let started = Instant::now();
    for _ in 0..COMMITS {
        database.execute_unprepared("UPDATE scratch SET n = n + 1").await.expect("a commit");
    }
    let rate = f64::from(COMMITS) / started.elapsed().as_secs_f64();
    database.execute_unprepared("DROP TABLE scratch").await.expect("the table can go");
    rate
}

/// Enqueues so many short jobs a second, on this thread: whoever measures keeps theirs to themselves.
fn keep_busy(url: &DatabaseUrl, rate: f64, stopped: oneshot::Receiver<()>) {
    const TURN: Duration = Duration::from_millis(20);
    let work = async {
        let store = Store::connect(url, Use::Tool).await.expect("the database");
        let mut turns = tokio::time::interval(TURN);
        let mut owed = 0.0;
        loop {
            turns.tick().await;
            owed += rate * TURN.as_secs_f64();
            let now = owed as usize;
            owed -= now as f64;
            enqueue(&store, "EIGHT", (0..now).map(|n| format!("l{n}"))).await;
        }
    };
    runtime().block_on(async {
        tokio::select! {
            () = work => {}
            stop = stopped => stop.expect("whoever measures says when it is over"),
        }
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What sleeping runs take of memory and CPU, their shims' and their share of the service's, and how soon a service that was
/// killed has them again.
async fn many(
    store: &Store,
    (directory, url): (&Path, &str),
    service: &mut Service,
    name: &'static str,
    runs: usize,
    report: &mut Report,
) {
    let before = service.resident();
    let started = Instant::now();
    let ids = enqueue(store, "SLEEP", (0..runs).map(|n| format!("m{n}"))).await;
    let running = JobFilter {
        types: vec!["SLEEP".to_owned()],
        statuses: vec![JobStatus::Progress],
        limit: 1,
        ..JobFilter::default()
    };
    let waiting = JobFilter { statuses: vec![JobStatus::Pending, JobStatus::InQueue], ..running.clone() };
    while !store.list(&waiting).await.expect("the database answers").rows.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(300), "not all runs have started");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!store.list(&running).await.expect("the database answers").rows.is_empty());
    report.add(
        name,
        "that many runs started, from their enqueue",
        runs as f64 / started.elapsed().as_secs_f64(),
        "/s",
        None,
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    let shims = service.shims();
    let (cpu, begun) = (|pids: &[u32]| pids.iter().copied().map(report::cpu_seconds).sum::<f64>(), Instant::now());
    let own = service.processes();
    let before_idle = (cpu(&own), cpu(&shims));
    std::thread::sleep(IDLE);
    let busy = |after: f64, before: f64| (after - before) / begun.elapsed().as_secs_f64() * 100.0;
    report.add(name, "the service beside them, of one core", busy(cpu(&own), before_idle.0), "%", None);
    report.add(name, "a shim, of one core", busy(cpu(&shims), before_idle.1) / shims.len() as f64, "%", None);
    report.add(name, "the longest since a run was confirmed", unconfirmed(store, &running).await, "s", None);
    let sizes: Vec<(f64, f64)> = shims.into_iter().filter_map(report::private_and_proportional).collect();
    let mean = |total: f64| total / sizes.len().max(1) as f64;
    report.add(name, "a shim, private", mean(sizes.iter().map(|size| size.0).sum()), "KiB", None);
    let proportional: f64 = sizes.iter().map(|size| size.1).sum();
    report.add(name, "a shim, proportional set", mean(proportional), "KiB", None);
    let own: f64 = own.into_iter().filter_map(report::private_and_proportional).map(|size| size.1).sum();
    report.add(name, "service, helper and shims, proportional set", (own + proportional) / 1024.0, "MiB", None);
    let more = (service.resident() - before) * 1024.0 / runs as f64;
    report.add(name, "the service, for each run", more, "KiB", None);

    service.kill();
    let restarted = Instant::now();
    *service = Service::start(directory, url);
    let log = directory.join("service.log");
    while fs::read_to_string(&log).expect("a log").matches("verdict=\"reattached\"").count() < runs {
        assert!(restarted.elapsed() < Duration::from_secs(300), "not all runs were taken over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    report.add(name, "start until all of them are taken over", restarted.elapsed().as_secs_f64(), "s", None);
    for id in ids {
        store.request_cancel(id).await.expect("the database answers");
    }
    drained(store, "SLEEP").await;
}

/// Seconds since the confirmation of the run that was confirmed first.
async fn unconfirmed(store: &Store, running: &JobFilter) -> f64 {
    let (mut oldest, mut cursor) = (i64::MAX, None);
    loop {
        let page = store.list(&JobFilter { limit: 1000, cursor, ..running.clone() }).await.expect("the jobs");
        let confirmed = page.rows.iter().map(|job| job.heartbeat_time.expect("a confirmation").unix_millis());
        oldest = confirmed.min().map_or(oldest, |first| first.min(oldest));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    let now = store.now().await.expect("the time").unix_millis();
    now.saturating_sub(oldest) as f64 / 1e3
}

/// Waits until nothing of a flow waits or runs.
async fn drained(store: &Store, flow: &str) {
    let open = JobFilter {
        types: vec![flow.to_owned()],
        statuses: vec![JobStatus::Pending, JobStatus::InQueue, JobStatus::Progress],
        limit: 1,
        ..JobFilter::default()
    };
    let started = Instant::now();
    while !store.list(&open).await.expect("the database answers").rows.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(300), "{flow} does not come to an end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A service of the release binary, killed when it is dropped.
struct Service(Child, Option<report::Account>);

impl Service {
    fn start(directory: &Path, url: &str) -> Self {
        let log = fs::File::create(directory.join("service.log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_callsheet"))
            .args(["--config".as_ref(), directory.join("callsheet.toml").as_os_str(), "serve".as_ref()])
            .env("DATABASE_URL", url)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the service starts");
        let account = report::Account::open(child.id());
        Self(child, account)
    }

    /// The service and its helper.
    fn processes(&self) -> Vec<u32> {
        children(self.0.id()).into_iter().chain([self.0.id()]).collect()
    }

    fn resident(&self) -> f64 {
        self.processes().into_iter().map(report::resident_mib).sum()
    }

    /// The helper's children.
    fn shims(&self) -> Vec<u32> {
        children(self.0.id()).into_iter().flat_map(children).collect()
    }

    /// CPU as a share of one core over [`IDLE`], and resident MiB after it.
    fn idle(&mut self) -> (f64, f64) {
        let cpu = || self.processes().into_iter().map(report::cpu_seconds).sum::<f64>();
        std::thread::sleep(Duration::from_secs(2));
        let (before, started) = (cpu(), Instant::now());
        std::thread::sleep(IDLE);
        ((cpu() - before) / started.elapsed().as_secs_f64(), self.resident())
    }

    fn kill(&mut self) {
        self.0.kill().expect("the service can be killed");
        self.0.wait().expect("the service ends");
    }

    fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the service can be stopped");
        self.0.wait().expect("the service ends");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The children of all threads of a process.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Jobs a second from the first start to the last end of a backlog that was there before the service, and milliseconds of
/// CPU for each, where they can be counted.
async fn throughput(store: &Store, directory: &Path, url: &str, flow: &str, count: usize) -> (f64, Option<f64>) {
    let ids = enqueue(store, flow, (0..count).map(|n| format!("n{n}"))).await;
    let mut service = Service::start(directory, url);
    let last = *ids.last().expect("a job");
    wait_for(store, flow, last).await;
    let cpu = service.1.as_ref().and_then(report::Account::milliseconds).map(|spent| spent / count as f64);
    service.stop();
    let (mut first_start, mut last_end, mut done) = (i64::MAX, 0, 0);
    let mut cursor = None;
    loop {
        let filter = JobFilter { types: vec![flow.to_owned()], limit: 1000, cursor, ..JobFilter::default() };
        let page = store.list(&filter).await.expect("the jobs");
        for job in &page.rows {
            assert_eq!(job.status, JobStatus::Completed, "{job:?}");
            first_start = first_start.min(job.started_time.expect("a start").unix_millis());
            last_end = last_end.max(job.completed_time.expect("an end").unix_millis());
            done += 1;
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(done, count);
    (count as f64 / ((last_end - first_start).max(1) as f64 / 1_000.0), cpu)
}

/// Another client that waits for the ends of jobs, in a way that takes as little as can be from whoever is being measured.
enum Client {
    /// Nobody tells it of a commit, so it asks.
    Sqlite(rusqlite::Connection),
    /// It is told, as every client may be.
    Postgres(DatabaseConnection, PgListener),
}

impl Client {
    async fn connect(url: &str) -> Self {
        match url.strip_prefix("sqlite://") {
            Some(file) => Self::Sqlite(rusqlite::Connection::open(file).expect("the database")),
            None => {
                let mut listener = PgListener::connect(url).await.expect("the database");
                listener.listen("callsheet").await.expect("word of changes");
                Self::Postgres(Database::connect(url).await.expect("the database"), listener)
            }
        }
    }

    /// Whether the final row is there to be seen.
    async fn sees_the_end_of(&self, job: JobId) -> bool {
        let select = "SELECT count(*) FROM jobs WHERE id = $1 AND status IN ('COMPLETED', 'ERROR', 'CANCELLED')";
        let count: i64 = match self {
            Self::Sqlite(connection) => {
                let mut select = connection.prepare_cached(select).expect("a statement");
                select.query_row([job.0], |row| row.get(0)).expect("a number")
            }
            Self::Postgres(database, _) => {
                let select = Statement::from_sql_and_values(DbBackend::Postgres, select, [job.0.into()]);
                let row = database.query_one_raw(select).await.expect("the database answers").expect("a number");
                row.try_get_by_index(0).expect("a number")
            }
        };
        count > 0
    }

    /// Waits until it is.
    async fn wait_for_the_end_of(&mut self, job: JobId) {
        let begun = Instant::now();
        while !self.sees_the_end_of(job).await {
            assert!(begun.elapsed() < Duration::from_secs(60), "{job} does not end");
            match self {
                // Finer than the runtime's timers.
                Self::Sqlite(_) => std::thread::sleep(Duration::from_micros(200)),
                // What this one would be told of may have been told before.
                Self::Postgres(_, listener) => {
                    if let Ok(word) = tokio::time::timeout(Duration::from_secs(1), listener.recv()).await {
                        word.expect("word of a change");
                    }
                }
            }
        }
    }
}

/// What the same command takes to its `main` where nothing but its spawn is in between: one at a time, on an idle machine.
async fn bare_spawns(program: &Path, stamps: &Path, name: &'static str, count: usize, report: &mut Report) {
    let mut starts = Vec::new();
    for n in 0..count {
        let stamp = stamps.join(format!("bare-{n}"));
        let spawned = nanoseconds();
        assert!(Command::new(program).arg(&stamp).status().expect("the command runs").success());
        let started: u128 = fs::read_to_string(&stamp).expect("a stamp").parse().expect("a time");
        starts.push(started.saturating_sub(spawned) as f64 / 1e6);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    report.percentiles(name, "a bare spawn to main(), idle", starts);
}

/// From the return of the enqueue call to the first line of the command's `main`, and from there (it ends with its next
/// breath) to when another client sees the final row, one job at a time.
async fn latencies(
    store: &Store,
    client: &mut Client,
    stamps: &Path,
    name: &'static str,
    when: &'static str,
    count: usize,
    report: &mut Report,
) {
    let warm_up = 5;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for n in 0..count + warm_up {
        let identifier = format!("{}-{n}", when.replace(' ', "-"));
        let stamp: PathBuf = stamps.join(&identifier);
        let id = *enqueue(store, "STAMP", [identifier].into_iter()).await.first().expect("a job");
        let committed = nanoseconds();
        // The command says itself when it was, so it need not be seen at once; looking for it more often takes time from it.
        let started: u128 = loop {
            if let Some(started) = fs::read_to_string(&stamp).ok().and_then(|stamp| stamp.parse().ok()) {
                break started;
            }
            assert!(nanoseconds() - committed < 60_000_000_000, "{id} does not start");
            std::thread::sleep(Duration::from_millis(1));
        };
        client.wait_for_the_end_of(id).await;
        let seen = nanoseconds();
        if n >= warm_up {
            // A command may be quicker than the return of the call that enqueued it.
            starts.push(started.saturating_sub(committed) as f64 / 1e6);
            ends.push(seen.saturating_sub(started) as f64 / 1e6);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    report.percentiles(name, &format!("commit to main(), {when}"), starts);
    report.percentiles(name, &format!("end of main() to final row, {when}"), ends);
}

async fn enqueue(store: &Store, flow: &str, identifiers: impl Iterator<Item = String>) -> Vec<JobId> {
    let flow: FlowType = flow.parse().expect("a type");
    let jobs: Vec<NewJob> = identifiers
        .map(|identifier| NewJob {
            flow: flow.clone(),
            identifier,
            payload: None,
            priority: 0,
            due: Due::After(Duration::ZERO),
            maximum_attempts: None,
            unique_key: None,
            trace: None,
        })
        .collect();
    store.enqueue(&jobs).await.expect("the jobs are taken").into_iter().map(|job| job.id).collect()
}

async fn wait_for(store: &Store, flow: &str, id: JobId) {
    let started = Instant::now();
    loop {
        let job = store.job(id).await.expect("the database answers").expect("the job");
        if job.status.is_final() {
            let filter = JobFilter {
                types: vec![flow.to_owned()],
                statuses: vec![JobStatus::Pending, JobStatus::InQueue, JobStatus::Progress],
                limit: 1,
                ..JobFilter::default()
            };
            if store.list(&filter).await.expect("the database answers").rows.is_empty() {
                return;
            }
        }
        assert!(started.elapsed() < Duration::from_secs(120), "{flow} did not finish: {job:?}");
        // Rarely enough to take nothing from the service.
        tokio::time::sleep(Duration::from_millis(if started.elapsed().as_millis() < 100 { 2 } else { 50 })).await;
    }
}

/// How often `/bin/true` can be spawned and waited for in a second, this many at a time.
fn raw_rate(at_once: usize) -> f64 {
    let each = 2_000 / at_once;
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                for _ in 0..each {
                    assert!(Command::new("/bin/true").status().expect("/bin/true runs").success());
                }
            });
        }
    });
    (each * at_once) as f64 / started.elapsed().as_secs_f64()
}

fn nanoseconds() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_nanos()
}

fn kernel() -> String {
    let uname = rustix::system::uname();
    format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy())
}
