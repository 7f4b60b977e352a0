//! A service under a load shaped like its real one, and what it uses meanwhile.
//!
//! Two-day jobs in an accelerated form: a few long ones that print and report progress, many short ones, some that fail
//! and are tried again, some that print more than is kept, some that have to be cancelled and killed, and a service that
//! is killed or stopped now and then. Nothing of what it uses may grow with the number of jobs that have gone through.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use callsheet::domain::database_url::DatabaseUrl;
use callsheet::domain::{JobId, JobStatus};
use callsheet::store::{Due, JobFilter, JobRow, NewJob, Store, Use};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};

const JOB: &str = include_str!("job.sh");
/// How long anything may take that has to come about.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the parent of a process that has ended may take to notice on a machine that is busy.
const UNREAPED: Duration = Duration::from_secs(10);
const OPEN: [JobStatus; 3] = [JobStatus::Pending, JobStatus::InQueue, JobStatus::Progress];

/// How long and how hard.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long jobs are enqueued.
    pub duration: Duration,
    /// How many short jobs come in a second.
    pub jobs_per_second: f64,
    /// How long a long job takes, in whole seconds.
    pub long: u64,
    /// How long the service lives before it is killed or stopped, in turn.
    pub incarnation: Duration,
    /// How long a job that has ended is kept.
    pub kept: Duration,
    /// How often it is looked at what the service uses.
    pub sample: Duration,
    /// What the choices are made of.
    pub seed: u64,
    /// The service's program.
    pub binary: PathBuf,
}

/// What the service and its database used at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub at: Duration,
    pub incarnation: u32,
    pub service_rss_kib: u64,
    pub service_fds: u64,
    pub service_threads: u64,
    pub helper_rss_kib: u64,
    pub helper_fds: u64,
    pub shims: u64,
    pub largest_shim_rss_kib: u64,
    pub most_shim_fds: u64,
    pub zombies: BTreeSet<i32>,
    pub open_rows: u64,
    pub job_rows: u64,
    pub event_rows: u64,
    pub database_kib: u64,
    pub runs_kib: u64,
    pub run_dirs: u64,
}

impl Sample {
    /// Whether nothing runs and nothing waits.
    fn is_clean(&self) -> bool {
        (self.shims, self.open_rows, self.zombies.len()) == (0, 0, 0)
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    pub samples: Vec<Sample>,
    /// How the jobs ended, by status.
    pub ended: BTreeMap<&'static str, u64>,
    pub kills: u32,
    pub stops: u32,
    /// What is not as it should be, a sentence each.
    pub problems: Vec<String>,
}

/// Does all of it in a scratch directory and the database of this URL, and judges it.
pub async fn run(plan: &Plan, scratch: &Path, url: &str, tell: impl Fn(&Sample)) -> Report {
    let mut soak = Soak::prepare(plan.clone(), scratch, url).await;
    soak.work(tell).await;
    soak.finish().await;
    soak.report.judge(plan);
    std::mem::take(&mut soak.report)
}

struct Soak {
    plan: Plan,
    scratch: PathBuf,
    url: String,
    store: Store,
    foreign: DatabaseConnection,
    random: Random,
    service: Option<Child>,
    incarnation: u32,
    begun: Instant,
    /// Jobs that have not been seen to end.
    expected: BTreeMap<JobId, Expected>,
    report: Report,
}

struct Expected {
    flow: &'static str,
    ends: JobStatus,
    cancelled: bool,
}

impl Soak {
    async fn prepare(plan: Plan, scratch: &Path, url: &str) -> Self {
        fs::create_dir_all(scratch.join("data")).expect("a directory");
        fs::write(scratch.join("job.sh"), JOB).expect("the script");
        let config = format!(
            "data_dir = \"data\"\n[http]\nlisten = \"off\"\n\
             [defaults]\ncommand = [\"/bin/sh\", \"{}/job.sh\", \"{{identifier}}\"]\n\
             env = {{ CALLSHEET = \"{}\" }}\nkill_grace = \"1s\"\n\
             [flows.LONG]\nconcurrency = 3\n\
             [flows.ONE]\n\
             [flows.SHORT]\nconcurrency = 4\n\
             [flows.SHORT.retry]\nmaximum_attempts = 2\ninitial_interval = \"100ms\"\n\
             [flows.NOISY]\nconcurrency = 2\n[flows.NOISY.limits]\noutput = \"256KiB\"\n\
             [flows.STUBBORN]\nconcurrency = 2\n",
            scratch.display(),
            plan.binary.display(),
        );
        fs::write(scratch.join("callsheet.toml"), config).expect("the configuration");
        let parsed: DatabaseUrl = url.parse().expect("a database URL");
        let store = Store::connect(&parsed, Use::Service).await.expect("the database");
        store.migrate().await.expect("the schema");
        Self {
            random: Random(plan.seed | 1),
            plan,
            scratch: scratch.to_owned(),
            url: url.to_owned(),
            store,
            foreign: Database::connect(url).await.expect("the database"),
            service: None,
            incarnation: 0,
            begun: Instant::now(),
            expected: BTreeMap::new(),
            report: Report::default(),
        }
    }

    async fn work(&mut self, tell: impl Fn(&Sample)) {
        self.start().await;
        let (mut born, mut sampled, mut tidied, mut looked) =
            (Instant::now(), Instant::now(), Instant::now(), Instant::now());
        let mut due = 0.0;
        while self.goes_on() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            due += looked.elapsed().as_secs_f64() * self.plan.jobs_per_second;
            looked = Instant::now();
            let whole = due.floor();
            due -= whole;
            self.enqueue(whole as u32).await;
            if sampled.elapsed() >= self.plan.sample {
                sampled = Instant::now();
                self.cancel_stubborn().await;
                let sample = self.sample().await;
                tell(&sample);
                self.report.samples.push(sample);
            }
            if tidied.elapsed() >= self.plan.kept / 4 {
                tidied = Instant::now();
                self.settle().await;
                self.tidy().await;
            }
            if born.elapsed() >= self.plan.incarnation && self.goes_on() {
                self.restart().await;
                born = Instant::now();
            }
        }
    }

    /// For as long as is planned, and on a slow machine until the service has been ended in both ways.
    fn goes_on(&self) -> bool {
        let both = self.report.kills > 0 && self.report.stops > 0;
        self.begun.elapsed() < self.plan.duration || !both
    }

    /// This many short jobs, and of the other kinds as many as keep some of each going.
    async fn enqueue(&mut self, count: u32) {
        let mut new: Vec<(&'static str, String, JobStatus)> = Vec::new();
        let ends = |code: u64| if code == 0 { JobStatus::Completed } else { JobStatus::Error };
        for _ in 0..count {
            let code = if self.random.below(8) == 0 { 1 + self.random.below(100) } else { 0 };
            // The sequential flow gets no more than it can do in the time, so that its queue stays short.
            let (flow, hundredths) =
                if self.random.below(4) == 0 { ("ONE", 5) } else { ("SHORT", self.random.below(40)) };
            new.push((flow, format!("short/0.{hundredths:02}/{code}"), ends(code)));
        }
        let going = |flow: &str| self.expected.values().filter(|expected| expected.flow == flow).count();
        let (long, stubborn, noisy) = (going("LONG"), going("STUBBORN"), going("NOISY"));
        if long < 4 {
            let code = if self.random.below(4) == 0 { 3 } else { 0 };
            new.push(("LONG", format!("long/{}/{code}", self.plan.long), ends(code)));
        }
        if count > 0 && stubborn < 2 && self.random.below(40) == 0 {
            new.push(("STUBBORN", "stubborn/0/0".to_owned(), JobStatus::Cancelled));
        }
        if count > 0 && noisy < 2 && self.random.below(20) == 0 {
            new.push(("NOISY", "noisy/0/0".to_owned(), JobStatus::Completed));
        }
        let jobs: Vec<NewJob> = new.iter().map(|(flow, identifier, _)| new_job(flow, identifier)).collect();
        let enqueued = self.store.enqueue(&jobs).await.expect("the jobs are taken");
        for (job, (flow, _, ends)) in enqueued.iter().zip(new) {
            self.expected.insert(job.id, Expected { flow, ends, cancelled: false });
        }
    }

    /// Asks for the end of every job that will not end by itself.
    async fn cancel_stubborn(&mut self) {
        for row in self.list(&["STUBBORN"], &[JobStatus::Progress]).await {
            if let Some(expected) = self.expected.get_mut(&row.id)
                && !std::mem::replace(&mut expected.cancelled, true)
            {
                self.store.request_cancel(row.id).await.expect("the database answers");
            }
        }
    }

    /// Notes how jobs have ended, and which of them ended otherwise than they should.
    async fn settle(&mut self) {
        let closed = [JobStatus::Completed, JobStatus::Error, JobStatus::Cancelled];
        for row in self.list(&[], &closed).await {
            let Some(expected) = self.expected.remove(&row.id) else { continue };
            *self.report.ended.entry(row.status.as_str()).or_default() += 1;
            if row.status != expected.ends {
                self.report.problems.push(format!("{} job {} ended as {row:?}", expected.flow, row.id));
            }
        }
    }

    /// What retention does, in the same accelerated time: jobs that ended a while ago go, with all that is theirs.
    async fn tidy(&mut self) {
        let kept = i64::try_from(self.plan.kept.as_millis()).expect("a time");
        let before = self.store.now().await.expect("the database answers").unix_millis() - kept;
        // Not those whose end has not been noted yet: a service may learn of one long after it.
        let unseen: Vec<String> = self.expected.keys().map(JobId::to_string).chain(["0".to_owned()]).collect();
        let delete = format!(
            "DELETE FROM jobs WHERE status IN ('COMPLETED', 'ERROR', 'CANCELLED') AND completed_time < {before} \
             AND id NOT IN ({})",
            unseen.join(", ")
        );
        self.foreign.execute_unprepared(&delete).await.expect("old jobs can be deleted");
        let rows: BTreeSet<i64> = self.list(&[], &[]).await.into_iter().map(|row| row.id.0).collect();
        for entry in fs::read_dir(self.scratch.join("data/runs")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let job = name.to_str().and_then(|name| name.split('-').next()?.parse::<i64>().ok());
            if job.is_some_and(|job| !rows.contains(&job)) {
                // Its shim or the service may tidy up in it just now; then it goes next time.
                fs::remove_dir_all(entry.path()).ok();
            }
        }
    }

    async fn list(&self, types: &[&str], statuses: &[JobStatus]) -> Vec<JobRow> {
        let mut rows = Vec::new();
        let mut cursor = None;
        loop {
            let filter = JobFilter {
                types: types.iter().map(|&name| name.to_owned()).collect(),
                statuses: statuses.to_vec(),
                cursor,
                limit: 1000,
                ..JobFilter::default()
            };
            let page = self.store.list(&filter).await.expect("the database answers");
            rows.extend(page.rows);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return rows;
            }
        }
    }

    async fn start(&mut self) {
        let log = self.scratch.join("service.log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let ready = || fs::read_to_string(&log).unwrap_or_default().matches("the service is ready").count();
        let before = ready();
        let service = Command::new(&self.plan.binary)
            .arg("--config")
            .arg(self.scratch.join("callsheet.toml"))
            .arg("serve")
            .env("DATABASE_URL", &self.url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("the service starts");
        self.service = Some(service);
        self.incarnation += 1;
        let started = Instant::now();
        while ready() == before {
            assert!(started.elapsed() < PATIENCE, "the service is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the service, by a kill and by a planned stop in turn, and starts it again.
    async fn restart(&mut self) {
        if self.incarnation % 2 == 1 {
            self.report.kills += 1;
            self.end_service(rustix::process::Signal::KILL).await;
        } else {
            self.report.stops += 1;
            self.end_service(rustix::process::Signal::TERM).await;
        }
        self.start().await;
    }

    async fn end_service(&mut self, signal: rustix::process::Signal) {
        let Some(mut service) = self.service.take() else { return };
        rustix::process::kill_process(rustix::process::Pid::from_child(&service), signal).expect("a signal");
        let started = Instant::now();
        while service.try_wait().expect("a child").is_none() {
            assert!(started.elapsed() < PATIENCE, "the service does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for what is under way, and looks what is left.
    async fn finish(&mut self) {
        let started = Instant::now();
        while !self.list(&[], &OPEN).await.is_empty() {
            self.cancel_stubborn().await;
            if started.elapsed() > PATIENCE + Duration::from_secs(4 * self.plan.long) {
                self.report.problems.push("jobs are still open".to_owned());
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.settle().await;
        for id in self.expected.keys() {
            self.report.problems.push(format!("job {id} is gone without an end"));
        }
        let started = Instant::now();
        while !self.of_runs().is_empty() && started.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for (pid, name) in self.of_runs() {
            self.report.problems.push(format!("process {pid} ({name}) outlived its run"));
        }
        // Shims go after their commands, and whoever has ended is a zombie for a moment.
        let mut last = self.sample().await;
        while !last.is_clean() && started.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(100)).await;
            last = self.sample().await;
        }
        self.report.samples.push(last);
        self.end_service(rustix::process::Signal::TERM).await;
    }

    /// Every living process of a run: shims, commands, and what they have started.
    fn of_runs(&self) -> Vec<(i32, String)> {
        let mark = format!("CALLSHEET_RUN_DIR={}", self.scratch.display());
        let found =
            pids().filter(|pid| text(*pid, "environ").contains(&mark) && Status::of(*pid).is_some_and(|s| !s.zombie));
        found.map(|pid| (pid, text(pid, "cmdline").replace('\0', " "))).collect()
    }

    async fn sample(&self) -> Sample {
        let mut sample = Sample { at: self.begun.elapsed(), incarnation: self.incarnation, ..Sample::default() };
        let service = self.service.as_ref().and_then(|service| i32::try_from(service.id()).ok()).unwrap_or(0);
        let mine = rustix::process::getpid().as_raw_nonzero().get();
        let all: BTreeMap<i32, Status> = pids().filter_map(|pid| Some((pid, Status::of(pid)?))).collect();
        let data = self.scratch.join("data").display().to_string();
        for (pid, status) in &all {
            if status.zombie {
                // Not those of other programs on this machine.
                let of_ours = status.parent == service
                    || status.parent == mine
                    || text(status.parent, "cmdline").contains("callsheet-zygote");
                if of_ours {
                    sample.zombies.insert(*pid);
                }
            } else if *pid == service {
                sample.service_rss_kib = status.rss_kib;
                sample.service_threads = status.threads;
                sample.service_fds = descriptors(*pid);
            } else if text(*pid, "cmdline").starts_with("callsheet-zygote") {
                if status.parent == service {
                    sample.helper_rss_kib = status.rss_kib;
                    sample.helper_fds = descriptors(*pid);
                } else if holds_a_file_below(*pid, &data) {
                    sample.shims += 1;
                    sample.largest_shim_rss_kib = sample.largest_shim_rss_kib.max(status.rss_kib);
                    sample.most_shim_fds = sample.most_shim_fds.max(descriptors(*pid));
                }
            }
        }
        sample.open_rows = self.count("jobs WHERE status IN ('PENDING', 'INQUEUE', 'PROGRESS')").await;
        sample.job_rows = self.count("jobs").await;
        sample.event_rows = self.count("job_events").await;
        sample.database_kib = self.database_kib().await;
        let runs = self.scratch.join("data/runs");
        sample.run_dirs = fs::read_dir(&runs).into_iter().flatten().count() as u64;
        sample.runs_kib = bytes_below(&runs) / 1024;
        sample
    }

    async fn count(&self, from: &str) -> u64 {
        self.number(&format!("SELECT CAST(count(*) AS bigint) AS n FROM {from}")).await
    }

    async fn number(&self, sql: &str) -> u64 {
        let statement = sea_orm::Statement::from_string(self.foreign.get_database_backend(), sql.to_owned());
        let row = self.foreign.query_one_raw(statement).await.expect("the database answers").expect("a row");
        u64::try_from(row.try_get::<i64>("", "n").expect("a number")).unwrap_or(0)
    }

    async fn database_kib(&self) -> u64 {
        match self.url.strip_prefix("sqlite://") {
            Some(path) => {
                let size = |end: &str| fs::metadata(format!("{path}{end}")).map_or(0, |file| file.len());
                (size("") + size("-wal")) / 1024
            }
            None => self.number("SELECT pg_database_size(current_database()) AS n").await / 1024,
        }
    }
}

impl Drop for Soak {
    fn drop(&mut self) {
        if let Some(mut service) = self.service.take() {
            service.kill().ok();
            service.wait().ok();
        }
        for (pid, _) in self.of_runs() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }
}

impl Report {
    /// What of it grew, or stayed that should have gone.
    fn judge(&mut self, plan: &Plan) {
        let mut problems = Vec::new();
        for (place, first) in self.samples.iter().enumerate() {
            let meanwhile = || self.samples[place..].iter().take_while(|sample| sample.at <= first.at + UNREAPED);
            let lasts = self.samples.last().is_some_and(|last| last.at >= first.at + UNREAPED);
            let mut zombies = first.zombies.iter().filter(|_| lasts);
            if let Some(pid) = zombies.find(|pid| meanwhile().all(|sample| sample.zombies.contains(pid))) {
                problems.push(format!("process {pid} has been a zombie for {UNREAPED:?}"));
            }
        }
        if let Some(last) = self.samples.last()
            && !last.is_clean()
        {
            problems.push(format!("something is left when all is over: {last:?}"));
        }
        let incarnations: BTreeSet<u32> = self.samples.iter().map(|sample| sample.incarnation).collect();
        for incarnation in incarnations {
            let lived: Vec<&Sample> = self.samples.iter().filter(|sample| sample.incarnation == incarnation).collect();
            // Fewer would compare the service's first breaths with its second ones.
            if lived.len() < 40 {
                continue;
            }
            let (early, late) = (&lived[lived.len() / 4..lived.len() / 2], &lived[lived.len() * 3 / 4..]);
            let mut grew = |what: &str, of: fn(&Sample) -> u64, spare: u64| {
                let (before, after) = (median(early.iter().map(|s| of(s))), median(late.iter().map(|s| of(s))));
                if after > before + before / 10 + spare {
                    problems.push(format!("{what} of service {incarnation} grew from {before} to {after}"));
                }
            };
            grew("resident KiB", |s| s.service_rss_kib, 2048);
            grew("descriptors", |s| s.service_fds, 8);
            grew("threads", |s| s.service_threads, 2);
            grew("resident KiB of the helper", |s| s.helper_rss_kib, 256);
            grew("descriptors of the helper", |s| s.helper_fds, 2);
            grew("resident KiB of the largest shim", |s| s.largest_shim_rss_kib, 256);
            grew("descriptors of a shim", |s| s.most_shim_fds, 2);
        }
        if self.samples.len() >= 40 {
            // From when the first jobs have been deleted.
            let settled = self.samples.iter().position(|s| s.at > plan.kept * 2).unwrap_or(self.samples.len());
            let lived = &self.samples[settled..self.samples.len().saturating_sub(1)];
            let (early, late) = (&lived[..lived.len() / 3], &lived[lived.len() * 2 / 3..]);
            let mut grew = |what: &str, of: fn(&Sample) -> u64, spare: u64| {
                let (before, after) = (median(early.iter().map(of)), median(late.iter().map(of)));
                if after > before + before / 4 + spare {
                    problems.push(format!("{what} grew from {before} to {after}"));
                }
            };
            grew("rows of jobs", |s| s.job_rows, 20);
            grew("rows of job_events", |s| s.event_rows, 60);
            grew("KiB of the database", |s| s.database_kib, 1024);
            grew("KiB of run directories", |s| s.runs_kib, 1024);
            grew("run directories", |s| s.run_dirs, 20);
        }
        self.problems.append(&mut problems);
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>6} {:>3} | {:>7} {:>4} {:>4} | {:>6} {:>4} | {:>3} {:>6} {:>4} | {:>2} | {:>5} {:>6} {:>7} {:>7} | {:>5} {:>7}",
            self.at.as_secs(),
            self.incarnation,
            self.service_rss_kib,
            self.service_fds,
            self.service_threads,
            self.helper_rss_kib,
            self.helper_fds,
            self.shims,
            self.largest_shim_rss_kib,
            self.most_shim_fds,
            self.zombies.len(),
            self.open_rows,
            self.job_rows,
            self.event_rows,
            self.database_kib,
            self.run_dirs,
            self.runs_kib,
        )
    }
}

fn new_job(flow: &str, identifier: &str) -> NewJob {
    NewJob {
        flow: flow.parse().expect("a type"),
        identifier: identifier.to_owned(),
        payload: None,
        priority: 0,
        due: Due::After(Duration::ZERO),
        maximum_attempts: None,
        unique_key: None,
        trace: None,
    }
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// Of proc_pid_status(5).
struct Status {
    zombie: bool,
    parent: i32,
    rss_kib: u64,
    threads: u64,
}

impl Status {
    fn of(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        let number = |name: &str| field(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        Some(Self {
            zombie: field("State:") == Some("Z"),
            parent: field("PPid:")?.parse().ok()?,
            rss_kib: number("VmRSS:"),
            threads: number("Threads:"),
        })
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn text(pid: i32, file: &str) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default()).into_owned()
}

fn open_files(pid: i32) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok())
}

fn descriptors(pid: i32) -> u64 {
    open_files(pid).count() as u64
}

fn holds_a_file_below(pid: i32, directory: &str) -> bool {
    open_files(pid).any(|path| path.starts_with(directory))
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_below(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

/// xorshift64*, so that a seed gives the same choices for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}
