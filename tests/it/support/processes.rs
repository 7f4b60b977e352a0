//! For tests that start real processes.
#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long anything that must happen may take on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `condition` gives a value; panics with `what` was awaited.
pub async fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Every process that is not a zombie, by id, with its environment and its parent's id, as `/proc` shows them.
pub fn processes() -> BTreeMap<i32, Process> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, Process::read(pid)?))).collect()
}

/// What `/proc` says about a process.
#[derive(Debug)]
pub struct Process {
    pub parent: i32,
    pub session: i32,
    pub command_line: String,
    pub environment: Vec<String>,
}

impl Process {
    /// `None` where it is dead.
    pub fn read(pid: i32) -> Option<Self> {
        let text =
            |name: &str| Some(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{name}")).ok()?).into_owned());
        let stat = text("stat")?;
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let (parent, _group, session) = (fields.next()?.parse().ok()?, fields.next()?, fields.next()?.parse().ok()?);
        let command_line = text("cmdline")?.replace('\0', " ").trim_end().to_owned();
        let environment = text("environ").unwrap_or_default().split_terminator('\0').map(ToOwned::to_owned).collect();
        (state != "Z" && state != "X").then_some(Self { parent, session, command_line, environment })
    }
}

/// The live processes that carry this run's token in their environment.
pub fn marked_with(token: &str) -> Vec<i32> {
    let mark = format!("CALLSHEET_RUN_TOKEN={token}");
    processes().into_iter().filter(|(_, process)| process.environment.contains(&mark)).map(|(pid, _)| pid).collect()
}

/// Whether this process is alive.
pub fn is_alive(pid: i32) -> bool {
    Process::read(pid).is_some()
}

/// The process that started this one, which has to be alive.
pub fn parent_of(pid: i32) -> i32 {
    Process::read(pid).expect("a living process").parent
}

/// Waits until this process is no more.
pub async fn gone(pid: i32) {
    wait_until("the end of a process", || (!is_alive(pid)).then_some(())).await;
}

/// The number that a script has written into this file, once it has.
pub fn number_in(file: &Path) -> Option<i32> {
    fs::read_to_string(file).ok()?.strip_suffix('\n')?.trim().parse().ok()
}

/// Kills one process.
pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Says on standard error, past the test harness, that a test could not show what it is for on this machine.
pub fn say_skipped(test: &str, why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
