//! One seed: a service, its jobs, and who is killed when.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use callsheet::domain::JobId;
use rustix::process::{Pid, Signal, kill_process};

use crate::chance::Chance;
use crate::support::eventually;
use crate::support::service::{On, Service};
use crate::support::truth::{self, Tally};

/// The first lines go to `[defaults]`; `SLOTS` has each command see for itself whether too many of its flow are alive.
const FLOWS: &str = "kill_grace = \"200ms\"\nheartbeat_timeout = \"1s\"\n\
    retry = { maximum_attempts = 3, initial_interval = \"20ms\", non_retryable_exit_codes = [4] }\n\
    [flows.ONE]\n{job}\nenv = { SLOTS = \"1\" }\n\
    [flows.FOUR]\n{job}\nconcurrency = 4\nenv = { SLOTS = \"4\" }\n";

/// What a command does; the time is filled in.
const COMMANDS: [&str; 9] = [
    "run:{}",
    "say:hello+run:{}",
    "run:{}+exit:3",
    "complain:oh+run:{}+exit:4",
    "daemon+run:{}",
    "ignore-term+run:{}",
    "note-term+run:{}",
    "flood:20000+run:{}",
    "run:{}+kill:KILL",
];

/// So many jobs are open at once at the most, so that each kill meets some of them, and the end comes soon.
const MOST_OPEN: usize = 10;

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// How long somebody is killed every now and then.
    pub time: Duration,
}

/// What was done, and what came of it.
#[derive(Debug, Default)]
pub struct Report {
    database: &'static str,
    service: u32,
    helper: u32,
    shims: u32,
    stops: u32,
    cancels: u32,
    took: Duration,
    tally: Tally,
    untruths: Vec<String>,
}

impl crate::Report for Report {
    fn heading() -> String {
        "  seed  database    killed: service  helper  shims | stopped  cancels |  jobs attempts | completed  error cancelled   lost | untrue |   took"
            .to_owned()
    }

    fn line(&mut self, name: &str) -> String {
        let tally = self.tally;
        format!(
            "{name:>6}  {:<10} {:>16} {:>7} {:>6} | {:>7} {:>8} | {:>5} {:>8} | {:>9} {:>6} {:>9} {:>6} | {:>6} | {:>5}s",
            self.database,
            self.service,
            self.helper,
            self.shims,
            self.stops,
            self.cancels,
            tally.jobs,
            tally.attempts,
            tally.completed,
            tally.error,
            tally.cancelled,
            tally.lost,
            self.untruths.len(),
            self.took.as_secs()
        )
    }

    fn add(&mut self, other: Self) {
        self.service += other.service;
        self.helper += other.helper;
        self.shims += other.shims;
        self.stops += other.stops;
        self.cancels += other.cancels;
        self.took += other.took;
        self.tally.add(other.tally);
        self.untruths.extend(other.untruths);
    }

    fn untruths(&self) -> &[String] {
        &self.untruths
    }
}

/// One of a service's helper processes.
#[derive(Clone, Debug)]
struct Helper {
    pid: i32,
    parent: i32,
    /// The first digits of the token of the run whose journal it holds; a shim has one.
    run: Option<String>,
}

/// The helper and the shims of this service, of an earlier start too.
fn helpers(service: &Service) -> Vec<Helper> {
    let runs = service.path("data/runs");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if !fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.starts_with(b"callsheet-zygote\0")) {
            continue;
        }
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        let open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let mut held = open.filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.strip_prefix(&runs).ok()?.to_owned()));
        let run = held.find_map(|path| {
            let directory = path.iter().next()?.to_str()?.rsplit('-').next()?.to_owned();
            path.ends_with("journal").then_some(directory)
        });
        found.push(Helper { pid, parent: parent.unwrap_or(0), run });
    }
    found
}

fn kill(pid: i32, signal: Signal) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

struct Trial {
    service: Service,
    chance: Chance,
    report: Report,
    /// The runs whose shims were killed.
    struck: BTreeSet<String>,
    jobs: Vec<JobId>,
}

/// `None` where the seed's database is not to be had.
pub async fn run(plan: Plan) -> Option<Report> {
    let (on, database) = match plan.seed % 3 {
        0 => (On::Sqlite, "SQLite"),
        1 => (On::Postgres, "PostgreSQL"),
        _ => (On::MariaDb, "MariaDB"),
    };
    let service = Service::prepare(on, FLOWS).await?;
    let report = Report { database, ..Report::default() };
    let mut trial = Trial { service, chance: Chance(plan.seed), report, struck: BTreeSet::new(), jobs: Vec::new() };
    let begun = Instant::now();
    trial.service.serve().await;
    while begun.elapsed() < plan.time {
        trial.enqueue().await;
        let pause = trial.chance.below(120);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        trial.strike().await;
        if trial.service.is_dead() {
            let pause = trial.chance.below(150);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            trial.service.spawn();
        }
    }
    trial.settle().await;
    trial.report.took = begun.elapsed();
    Some(trial.report)
}

impl Trial {
    async fn enqueue(&mut self) {
        let mut open = Vec::new();
        for job in std::mem::take(&mut self.jobs) {
            if !self.service.job(job).await.status.is_final() {
                open.push(job);
            }
        }
        self.jobs = open;
        while self.jobs.len() < MOST_OPEN {
            let time = format!("0.{:03}", self.chance.below(400));
            let command = self.chance.pick(&COMMANDS).unwrap().replace("{}", &time);
            let flow = *self.chance.pick(&["ONE", "FOUR", "FOUR"]).unwrap();
            self.jobs.extend(self.service.insert(flow, &[&command]).await);
        }
    }

    async fn strike(&mut self) {
        match self.chance.below(100) {
            0..=34 if !self.service.is_dead() => {
                self.service.kill_9();
                self.report.service += 1;
            }
            35..=49 => {
                let service = if self.service.is_dead() { 0 } else { self.service.pid() };
                let helper = helpers(&self.service).into_iter().find(|helper| helper.parent == service && service != 0);
                self.report.helper += u32::from(helper.is_some_and(|helper| kill(helper.pid, Signal::KILL)));
            }
            50..=84 => {
                let shims: Vec<_> =
                    helpers(&self.service).into_iter().filter_map(|helper| Some((helper.pid, helper.run?))).collect();
                if let Some((pid, run)) = self.chance.pick(&shims).cloned() {
                    self.struck.insert(run);
                    self.report.shims += u32::from(kill(pid, Signal::KILL));
                }
            }
            85..=93 => {
                if let Some(job) = self.chance.pick(&self.jobs).copied() {
                    self.service.store.request_cancel(job).await.unwrap();
                    self.report.cancels += 1;
                }
            }
            94..=96 if !self.service.is_dead() => {
                self.service.signal(Signal::TERM);
                self.report.stops += 1;
                let service = &mut self.service;
                eventually("the service to stop", async || service.is_dead()).await;
            }
            97.. if !self.service.is_dead() => {
                // It is held still for a while, and finds that much has happened.
                self.service.signal(Signal::STOP);
                let pause = self.chance.below(400);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                self.service.signal(Signal::CONT);
            }
            _ => {}
        }
    }

    /// Nobody is killed any more: all has to end well, and to be true.
    async fn settle(&mut self) {
        if self.service.is_dead() {
            self.service.spawn();
        }
        let begun = Instant::now();
        loop {
            let open: Vec<_> =
                truth::all_jobs(&self.service).await.into_iter().filter(|job| !job.status.is_final()).collect();
            if open.is_empty() && self.service.alive().is_empty() {
                break;
            }
            if begun.elapsed() > Duration::from_secs(120) {
                self.report.untruths.push(format!("still open after two minutes: {open:?}"));
                self.report.untruths.push(format!("still alive after two minutes: {:?}", self.service.alive()));
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let struck = &self.struck;
        let (tally, untruths) = truth::untruths(&self.service, |token| struck.contains(&token[..8])).await;
        self.report.tally = tally;
        self.report.untruths.extend(untruths);
        if self.service.is_dead() {
            self.report.untruths.push("the service ended by itself".to_owned());
        }
        if !self.report.untruths.is_empty() {
            let kept = std::env::temp_dir().join(format!("callsheet-chaos-{}", std::process::id()));
            fs::create_dir_all(&kept).unwrap();
            fs::write(kept.join(format!("{}.log", self.report.database)), self.service.log()).unwrap();
            fs::copy(self.service.path("evidence/log"), kept.join("evidence")).ok();
            self.report.untruths.push(format!("the service's log is in {}", kept.display()));
        }
    }
}
