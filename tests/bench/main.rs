//! The benchmark: `cargo bench`. Everything is measured side by side in one run and printed as one table.
//!
//! Jobs go through a real service of the release binary, as rows committed by another process (this one); the evidence
//! of when a command started is what the command itself writes. Rates are given beside the raw rate of spawning
//! `/bin/true` from here, so that they can be compared on another machine.

#![expect(clippy::print_stdout, clippy::expect_used, clippy::disallowed_methods, reason = "a program for the terminal")]

#[expect(dead_code, reason = "what the tests do to a server of their own")]
#[path = "../it/support/postgres.rs"]
#[expect(unreachable_pub, reason = "shared with the tests")]
mod postgres;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use callsheet::domain::database_url::DatabaseUrl;
use callsheet::domain::{FlowType, JobId, JobStatus};
use callsheet::store::{Due, JobFilter, NewJob, Store, Use};

const SEQUENTIAL_JOBS: usize = 1_500;
const CONCURRENT_JOBS: usize = 3_000;
const LATENCY_JOBS: usize = 200;
const IDLE: Duration = Duration::from_secs(10);

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--stamp") {
        let file = arguments.next().expect("a file to write the time to");
        return fs::write(file, nanoseconds().to_string()).expect("the time can be written");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    println!("machine: {} cores, {}", std::thread::available_parallelism().map_or(1, usize::from), kernel());
    let sqlite = scratch.path().join("sqlite");
    fs::create_dir(&sqlite).expect("a directory");
    measure("SQLite", &sqlite, format!("sqlite://{}/callsheet.db", sqlite.display())).await;
    match postgres::database() {
        Some(url) => {
            let directory = scratch.path().join("postgres");
            fs::create_dir(&directory).expect("a directory");
            measure("PostgreSQL", &directory, url).await;
        }
        None => println!("PostgreSQL: skipped, no initdb found"),
    }
}

async fn measure(name: &str, directory: &Path, url: String) {
    let stamps = directory.join("stamps");
    fs::create_dir(&stamps).expect("a directory");
    let this = std::env::current_exe().expect("this program's path");
    let config = format!(
        "data_dir = {data:?}\n[http]\nlisten = \"off\"\n\
         [flows.ONE]\ncommand = [\"/bin/true\"]\n\
         [flows.EIGHT]\ncommand = [\"/bin/true\"]\nconcurrency = 8\n\
         [flows.STAMP]\ncommand = [{this:?}, \"--stamp\", \"{stamps}/{{identifier}}\"]\n",
        data = directory.join("data"),
        stamps = stamps.display(),
    );
    fs::write(directory.join("callsheet.toml"), config).expect("the configuration can be written");
    let parsed: DatabaseUrl = url.parse().expect("a database URL");
    let store = Store::connect(&parsed, Use::Service).await.expect("the database");
    store.migrate().await.expect("the schema");

    let raw_one = raw_rate(1);
    let one = throughput(&store, directory, &url, "ONE", SEQUENTIAL_JOBS).await;
    row(name, "sequential jobs/s", one, &format!("{:.2} of the raw {raw_one:.0}/s", one / raw_one));
    let raw_eight = raw_rate(8);
    let eight = throughput(&store, directory, &url, "EIGHT", CONCURRENT_JOBS).await;
    row(name, "jobs/s, 8 at a time", eight, &format!("{:.2} of the raw {raw_eight:.0}/s", eight / raw_eight));

    let mut service = Service::start(directory, &url);
    let (p50, p99, worst) = latency(&store, &stamps).await;
    row(name, "commit to main(), p50", p50, "ms");
    row(name, "commit to main(), p99", p99, "ms");
    row(name, "commit to main(), worst", worst, "ms");
    let (cpu, resident) = service.idle();
    row(name, "idle, of one core", cpu * 100.0, "%");
    row(name, "idle, resident", resident, "MiB (service and its helper)");
    service.stop();
}

fn row(database: &str, what: &str, value: f64, unit: &str) {
    println!("{database:<11} {what:<26} {value:>9.2}  {unit}");
}

/// A service of the release binary, killed when it is dropped.
struct Service(Child);

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
        Self(child)
    }

    /// CPU as a share of one core over [`IDLE`], and resident MiB after it.
    fn idle(&mut self) -> (f64, f64) {
        let processes = || {
            let me = self.0.id();
            let children = fs::read_to_string(format!("/proc/{me}/task/{me}/children")).unwrap_or_default();
            children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([me]).collect::<Vec<u32>>()
        };
        let cpu = || processes().into_iter().map(cpu_seconds).sum::<f64>();
        std::thread::sleep(Duration::from_secs(2));
        let (before, started) = (cpu(), Instant::now());
        std::thread::sleep(IDLE);
        let used = (cpu() - before) / started.elapsed().as_secs_f64();
        (used, processes().into_iter().map(resident_mib).sum())
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

/// From the first start to the last end of a backlog that was there before the service.
async fn throughput(store: &Store, directory: &Path, url: &str, flow: &str, count: usize) -> f64 {
    let ids = enqueue(store, flow, (0..count).map(|n| format!("n{n}"))).await;
    let mut service = Service::start(directory, url);
    let last = *ids.last().expect("a job");
    wait_for(store, flow, last).await;
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
    count as f64 / ((last_end - first_start).max(1) as f64 / 1_000.0)
}

/// From the return of the enqueue call to the first line of the command's `main`, one job at a time.
async fn latency(store: &Store, stamps: &Path) -> (f64, f64, f64) {
    let warm_up = 5;
    let mut milliseconds = Vec::new();
    for n in 0..LATENCY_JOBS + warm_up {
        let identifier = format!("s{n}");
        let stamp: PathBuf = stamps.join(&identifier);
        let id = *enqueue(store, "STAMP", [identifier].into_iter()).await.first().expect("a job");
        let committed = nanoseconds();
        wait_for(store, "STAMP", id).await;
        let started: u128 = fs::read_to_string(&stamp).expect("the command's stamp").parse().expect("a time");
        // A command may be quicker than the return of the call that enqueued it.
        let waited = started.saturating_sub(committed) as f64 / 1e6;
        if n >= warm_up {
            milliseconds.push(waited);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    milliseconds.sort_by(f64::total_cmp);
    let at = |share: f64| milliseconds[((milliseconds.len() - 1) as f64 * share).round() as usize];
    (at(0.5), at(0.99), at(1.0))
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

fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime and stime, the 14th and 15th field of proc_pid_stat(5), in clock ticks.
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
}

fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn nanoseconds() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_nanos()
}

fn kernel() -> String {
    let uname = rustix::system::uname();
    format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy())
}
