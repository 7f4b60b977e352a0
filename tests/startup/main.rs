//! Start-up under load: `cargo bench --bench startup -- --runs 5000`. How long a service takes to have every running
//! command again after it was killed, and to settle every one that ended while it was away; and what a run costs it.
//!
//! `--postgres` has it on a PostgreSQL of its own, `--binary PATH` tries another program than the one that was just built.

#![expect(
    unreachable_pub,
    clippy::print_stdout,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a program for the terminal"
)]

#[expect(dead_code, reason = "what the tests do to a server of their own")]
#[path = "../it/support/postgres.rs"]
mod postgres;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use callsheet::domain::database_url::DatabaseUrl;
use callsheet::store::{Due, NewJob, Store, Use};

/// What start-up may take, by the issue that asked for it.
const GOAL: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).expect("a value").as_str())
    };
    let runs: usize = after("--runs").map_or(5000, |runs| runs.parse().expect("a number"));
    let binary = PathBuf::from(after("--binary").unwrap_or(env!("CARGO_BIN_EXE_callsheet")));
    let scratch = tempfile::Builder::new().prefix("callsheet-startup-").tempdir().expect("a scratch directory");
    let url = if arguments.iter().any(|argument| argument == "--postgres") {
        postgres::database().expect("PostgreSQL is installed")
    } else {
        format!("sqlite://{}/data/callsheet.db", scratch.path().display())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let slowest = runtime.block_on(measure(scratch.path(), &binary, &url, runs));
    println!("the slower of the two took {slowest:.2?}; the goal is {GOAL:?}");
    if slowest <= GOAL { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(scratch: &Path, binary: &Path, url: &str, runs: usize) -> Duration {
    fs::create_dir(scratch.join("data")).expect("a directory");
    let config = format!(
        "data_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\n[flows.MANY]\ncommand = [\"/bin/sleep\", \"86400\"]\nconcurrency = {runs}\n"
    );
    fs::write(scratch.join("callsheet.toml"), config).expect("the configuration");
    let parsed: DatabaseUrl = url.parse().expect("a database URL");
    let store = Store::connect(&parsed, Use::Service).await.expect("the database");
    store.migrate().await.expect("the schema");
    let load =
        || fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default().to_owned();

    let mut service = Service::start(scratch, binary, url).await;
    let idle = resident_kib(service.child.id());
    let begun = Instant::now();
    let jobs: Vec<NewJob> = (0..runs).map(|n| new_job(&format!("n{n}"))).collect();
    for some in jobs.chunks(1000) {
        store.enqueue(some).await.expect("the jobs are taken");
    }
    until("all commands to run", async || progress(&store).await == runs as u64).await;
    println!("{runs} commands started in {:.1?} (load {})", begun.elapsed(), load());
    let launched = resident_kib(service.child.id());
    service.kill();

    let begun = Instant::now();
    let mut service = Service::start(scratch, binary, url).await;
    let ready = begun.elapsed();
    until("all runs to be taken over", async || service.recovered("reattached") == runs as u64).await;
    let reattached = begun.elapsed();
    println!("re-attached {runs}: ready after {ready:.2?}, all taken over after {reattached:.2?} (load {})", load());
    // Heartbeats and all.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let taken_over = resident_kib(service.child.id());
    let each = |kib: u64| kib.saturating_sub(idle) as f64 / runs as f64;
    println!(
        "resident: {idle} KiB idle, {launched} KiB with all launched ({:.1} each), {taken_over} KiB with all taken over ({:.1} each)",
        each(launched),
        each(taken_over),
    );
    println!("descriptors: {}", fs::read_dir(format!("/proc/{}/fd", service.child.id())).map_or(0, Iterator::count));
    service.kill();

    end_commands(scratch);
    until("all shims to end", async || end_commands(scratch) == 0).await;
    let begun = Instant::now();
    let mut service = Service::start(scratch, binary, url).await;
    until("all ends to be written", async || progress(&store).await == 0).await;
    let settled = begun.elapsed();
    println!("settled {runs} that had ended while away in {settled:.2?} (load {})", load());
    service.kill();
    reattached.max(settled)
}

struct Service {
    child: Child,
    address: String,
}

impl Service {
    async fn start(scratch: &Path, binary: &Path, url: &str) -> Self {
        let path = scratch.join("service.log");
        let log = fs::File::create(&path).expect("a log");
        let child = Command::new(binary)
            .arg("--config")
            .arg(scratch.join("callsheet.toml"))
            .arg("serve")
            .env("DATABASE_URL", url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the service starts");
        let mut address = String::new();
        until("the service to be ready", async || {
            let log = fs::read_to_string(&path).unwrap_or_default();
            if let Some((_, after)) = log.split_once("http=\"127.0.0.1:").or_else(|| log.split_once("127.0.0.1:")) {
                address = format!("127.0.0.1:{}", after.chars().take_while(char::is_ascii_digit).collect::<String>());
            }
            log.contains("the service is ready")
        })
        .await;
        Self { child, address }
    }

    /// How many runs recovery has given this verdict, as the service's own metrics say.
    fn recovered(&self, verdict: &str) -> u64 {
        let asked = TcpStream::connect(&self.address).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let answer = asked.unwrap_or_default();
        let mark = format!("verdict=\"{verdict}\"");
        let lines =
            answer.lines().filter(|line| line.starts_with("callsheet_recovered_runs_total") && line.contains(&mark));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ends every command of this scratch directory, and says how many processes of its runs there still are.
fn end_commands(scratch: &Path) -> usize {
    let mark = format!("CALLSHEET_RUN_DIR={}", scratch.display());
    let held = scratch.join("data/runs");
    let mut alive = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        if String::from_utf8_lossy(&read("environ")).contains(&mark) {
            alive += 1;
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
            }
        } else if read("cmdline").starts_with(b"callsheet-zygote") {
            let files = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
            alive += usize::from(
                files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.starts_with(&held)),
            );
        }
    }
    alive
}

async fn progress(store: &Store) -> u64 {
    let states = store.flow_states().await.expect("the database answers");
    states.iter().find(|state| state.job_type == "MANY").map_or(0, |state| state.progress)
}

async fn until(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !fact().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn new_job(identifier: &str) -> NewJob {
    NewJob {
        flow: "MANY".parse().expect("a type"),
        identifier: identifier.to_owned(),
        payload: None,
        priority: 0,
        due: Due::After(Duration::ZERO),
        maximum_attempts: None,
        unique_key: None,
        trace: None,
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
