//! One seed with several workers on one PostgreSQL and its streaming replica.
//!
//! A calm part, in which order must be kept; then a storm as planned; then everything must end well. All commands write
//! into one directory, so they see for themselves whether another worker's command of their flow is still alive.

mod database;
mod ground;
mod plan;
mod wire;

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use callsheet::domain::JobId;
use rustix::process::Signal;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database as Connector, DatabaseConnection, DbBackend, DbErr, Statement,
};

use self::database::Database;
use self::ground::Ground;
pub use self::ground::survey;
use self::plan::{HEARTBEAT_TIMEOUT, KILL_GRACE, Plan, Planned, Strike, TAKEOVER};
use self::wire::Wire;
use crate::chance::Chance;
use crate::support::postgres::Server;
use crate::support::service::Service;
use crate::support::truth::{self, Tally};

/// What a command does; the time is filled in.
const COMMANDS: [&str; 7] = [
    "run:{}",
    "run:{}",
    "say:hello+run:{}",
    "run:{}+exit:3",
    "complain:oh+run:{}+exit:4",
    "daemon+run:{}",
    "ignore-term+run:{}",
];
/// So many jobs are open at once at the most.
const MOST_OPEN: usize = 12;
/// How long commands go on being enqueued while nothing fails.
const CALM: Duration = Duration::from_secs(3);
/// A machine that is later than this with waking a thread up does not keep up, and is timed in vain.
const KEEPS_UP: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(120);

/// What was done, and what came of it.
#[derive(Debug, Default)]
pub struct Report {
    workers: usize,
    killed: u32,
    frozen: u32,
    cut: u32,
    slowed: u32,
    stopped: u32,
    database: [u32; 3],
    cancels: u32,
    took: Duration,
    tally: Tally,
    in_order: usize,
    /// From each kill to the start of the next attempt, in seconds.
    takeovers: Vec<f64>,
    untruths: Vec<String>,
}

impl crate::Report for Report {
    fn heading() -> String {
        "  seed workers | killed frozen cut slow stopped | PostgreSQL: restarted killed failed over | cancels | jobs attempts | completed error cancelled  lost | in order | takeovers: s min median max | untrue | took"
            .to_owned()
    }

    fn line(&mut self, name: &str) -> String {
        self.takeovers.sort_by(f64::total_cmp);
        let tally = self.tally;
        let [restarted, killed, failed_over] = self.database;
        let takeover = |at: usize| self.takeovers.get(at).copied().unwrap_or_default();
        let last = self.takeovers.len().saturating_sub(1);
        format!(
            "{name:>6} {:>7} | {:>6} {:>6} {:>3} {:>4} {:>7} | {restarted:>21} {killed:>6} {failed_over:>11} | {:>7} | {:>4} {:>8} | {:>9} {:>5} {:>9} {:>5} | {:>8} | {:>10} {:>5.2} {:>6.2} {:>5.2} | {:>6} | {:>3}s",
            self.workers,
            self.killed,
            self.frozen,
            self.cut,
            self.slowed,
            self.stopped,
            self.cancels,
            tally.jobs,
            tally.attempts,
            tally.completed,
            tally.error,
            tally.cancelled,
            tally.lost,
            self.in_order,
            self.takeovers.len(),
            takeover(0),
            takeover(last / 2),
            takeover(last),
            self.untruths.len(),
            self.took.as_secs(),
        )
    }

    fn add(&mut self, other: Self) {
        self.workers += other.workers;
        self.killed += other.killed;
        self.frozen += other.frozen;
        self.cut += other.cut;
        self.slowed += other.slowed;
        self.stopped += other.stopped;
        for (sum, more) in self.database.iter_mut().zip(other.database) {
            *sum += more;
        }
        self.cancels += other.cancels;
        self.took += other.took;
        self.tally.add(other.tally);
        self.in_order += other.in_order;
        self.takeovers.extend(other.takeovers);
        self.untruths.extend(other.untruths);
    }

    fn untruths(&self) -> &[String] {
        &self.untruths
    }
}

/// A worker, and whether it is meant to be alive.
struct Worker {
    service: Service,
    ground: Ground,
    wanted: bool,
    /// How often it had been ready before its last start.
    ready_before: usize,
}

impl Worker {
    /// Starts it where it is meant to be alive and is not: after its end, and as systemd does where it ended by itself.
    fn see_to(&mut self) {
        if self.wanted && self.service.is_dead() {
            self.ready_before = self.times_ready();
            self.service.spawn();
        }
    }

    fn is_ready(&mut self) -> bool {
        !self.service.is_dead() && self.times_ready() > self.ready_before
    }

    fn times_ready(&self) -> usize {
        self.service.log().matches("the service is ready").count()
    }
}

struct Trial {
    workers: Vec<Worker>,
    database: Database,
    client: Client,
    lateness: Lateness,
    report: Report,
}

/// `None` where there is no PostgreSQL.
pub async fn run(seed: u64, workers: (u64, u64), time: Duration, namespaces: bool) -> Option<Report> {
    let plan = Plan::draw(seed, workers, time.saturating_sub(CALM));
    let server = Server::start()?;
    println!("        {plan}");
    let begun = Instant::now();
    let mut trial = Trial::prepare(&plan, server, namespaces).await;
    trial.calm().await;
    trial.storm(&plan).await;
    trial.settle().await;
    trial.report.took = begun.elapsed();
    Some(trial.report)
}

fn flows(command: &str) -> String {
    let (timeout, grace) = (HEARTBEAT_TIMEOUT.as_millis(), KILL_GRACE.as_millis());
    format!(
        "kill_grace = \"{grace}ms\"\nheartbeat_timeout = \"{timeout}ms\"\n{command}\n\
         retry = {{ maximum_attempts = 5, initial_interval = \"20ms\", non_retryable_exit_codes = [4] }}\n\
         [flows.ONE]\nenv = {{ SLOTS = \"1\" }}\n\
         [flows.FOUR]\nconcurrency = 4\nenv = {{ SLOTS = \"4\" }}\n\
         [flows.TIMED]\nconcurrency = 8\n"
    )
}

impl Trial {
    async fn prepare(plan: &Plan, server: Server, namespaces: bool) -> Self {
        let way = Wire::to(server.socket(), Ipv4Addr::LOCALHOST).await;
        let url = format!("postgres://callsheet@127.0.0.1:{}/test?sslmode=disable", way.port);
        let mut workers: Vec<Worker> = Vec::new();
        let mut wires = vec![way];
        for (number, clock) in plan.clocks.iter().enumerate() {
            let command = workers.first().map_or("{job}".to_owned(), |first| command_in(first.service.scratch.path()));
            let mut service = Service::prepare_at(Some(url.clone()), &flows(&command)).await;
            service.configure(&format!("worker_id = \"w{number}\"\n"));
            let ground = Ground::lay(number, server.socket(), namespaces).await;
            wires.push(ground.wire.clone());
            service.url = ground.url();
            service.through = ground.entrance();
            service.env = with_clock(*clock);
            workers.push(Worker { service, ground, wanted: true, ready_before: 0 });
        }
        let client = Client::start(&url, plan.seed).await;
        let report = Report { workers: workers.len(), ..Report::default() };
        let database = Database::of(server, wires);
        Self { workers, database, client, lateness: Lateness::watch(), report }
    }

    /// Everything works, and jobs of a sequential flow run in their order.
    async fn calm(&mut self) {
        self.all_well().await;
        self.lateness.forget();
        self.client.enqueue(Wanted::Short);
        tokio::time::sleep(CALM).await;
        self.client.enqueue(Wanted::Nothing);
        self.until("the jobs of the calm to have ended", async |trial| trial.client.open().is_empty()).await;
        let ones = self.client.sequential();
        let started = started(self.workers[0].service.path("evidence/log").as_path());
        let order: Vec<JobId> = started.into_iter().filter(|job| ones.contains(job)).collect();
        self.report.in_order = order.len();
        if !order.is_sorted() {
            self.report.untruths.push(format!("nothing had failed, and jobs began in the order {order:?}"));
        }
        // A worker that gets no processor can't confirm its runs.
        if self.lateness.most() > KEEPS_UP {
            println!("        leases in the calm are not judged: this machine was {:?} late", self.lateness.most());
            return;
        }
        for job in truth::all_jobs(&self.workers[0].service).await {
            for run in self.workers[0].service.runs(job.id).await {
                if run.outcome.as_deref() == Some("LOST") {
                    self.report.untruths.push(format!("nothing had failed, and a run is lost: {run:?}"));
                }
            }
        }
    }

    async fn storm(&mut self, plan: &Plan) {
        self.client.enqueue(Wanted::Anything);
        // The beginnings and ends of all strikes.
        let mut agenda: Vec<(Duration, bool, Strike, Duration)> = Vec::new();
        for Planned { at, strike, lasts } in plan.strikes.iter().copied() {
            agenda.push((at, true, strike, lasts));
            agenda.push((at + lasts, false, strike, lasts));
        }
        agenda.sort_by_key(|(at, ..)| *at);
        let mut origin = Instant::now();
        for (at, begins, strike, lasts) in agenda {
            self.until("the next strike", async |_| origin.elapsed() >= at).await;
            if !begins {
                self.end(strike);
            } else if strike == Strike::KillAndTime {
                self.kill_and_time().await;
                // Whatever it took, what is planned after it comes as long after it.
                origin = Instant::now().checked_sub(at + lasts).unwrap_or(origin);
            } else {
                self.begin(strike, lasts);
            }
        }
        self.client.enqueue(Wanted::Nothing);
    }

    fn begin(&mut self, strike: Strike, lasts: Duration) {
        match strike {
            Strike::Kill(worker) => {
                self.kill(worker);
                self.report.killed += 1;
            }
            Strike::Freeze(worker) => {
                self.signal(worker, Signal::STOP);
                self.report.frozen += 1;
            }
            Strike::CutOff(worker, cut) => {
                self.workers[worker].ground.cut(cut);
                self.report.cut += 1;
            }
            Strike::Slow(worker) => {
                self.workers[worker].ground.slow();
                self.report.slowed += 1;
            }
            Strike::Stop(worker) => {
                self.signal(worker, Signal::TERM);
                self.workers[worker].wanted = false;
                self.report.stopped += 1;
            }
            Strike::RestartDatabase | Strike::KillDatabase | Strike::FailOver => {
                self.database.strike(strike, lasts);
                let kind = [Strike::RestartDatabase, Strike::KillDatabase, Strike::FailOver];
                for (count, _) in self.report.database.iter_mut().zip(kind).filter(|(_, kind)| *kind == strike) {
                    *count += 1;
                }
            }
            Strike::Cancel(which) => {
                let open: Vec<JobId> = self.client.open().into_iter().collect();
                if let Some(job) = Chance(which).pick(&open).copied() {
                    let store = self.workers[0].service.store.clone();
                    // The database may be away; then nobody is cancelled.
                    tokio::spawn(async move { store.request_cancel(job).await.ok() });
                    self.report.cancels += 1;
                }
            }
            Strike::KillAndTime => {}
        }
    }

    fn end(&mut self, strike: Strike) {
        match strike {
            Strike::Kill(worker) | Strike::Stop(worker) => self.workers[worker].wanted = true,
            Strike::Freeze(worker) => self.signal(worker, Signal::CONT),
            Strike::CutOff(worker, _) | Strike::Slow(worker) => self.workers[worker].ground.mend(),
            Strike::RestartDatabase
            | Strike::KillDatabase
            | Strike::FailOver
            | Strike::Cancel(_)
            | Strike::KillAndTime => {}
        }
    }

    fn kill(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        worker.wanted = false;
        if !worker.service.is_dead() {
            worker.service.kill_9();
        }
    }

    fn signal(&mut self, worker: usize, signal: Signal) {
        if !self.workers[worker].service.is_dead() {
            self.workers[worker].service.signal(signal);
        }
    }

    /// Kills the worker of a command that waits, and measures how long it takes until another worker starts it again.
    async fn kill_and_time(&mut self) {
        self.all_well().await;
        let name = format!("timed{}", self.report.killed);
        let evidence = self.workers[0].service.path("evidence");
        let Ok(job) = self.client.insert("TIMED", &format!("wait:{name}")).await else { return };
        self.until("the timed command", async |_| evidence.join(format!("{job}.1.start")).exists()).await;
        let Some(worker) = self.workers[0].service.job(job).await.worker_id else { return };
        let number: usize = worker.trim_start_matches('w').parse().unwrap();
        self.lateness.forget();
        let killed = SystemTime::now();
        self.kill(number);
        self.report.killed += 1;
        let again = evidence.join(format!("{job}.2.start"));
        self.until("the timed command's second start", async |_| again.exists()).await;
        let started = fs::metadata(&again).and_then(|metadata| metadata.modified()).unwrap();
        let took = started.duration_since(killed).unwrap_or_default();
        self.workers[number].wanted = true;
        self.workers[0].service.go_on(&name);
        if self.lateness.most() > KEEPS_UP {
            println!("        not timed: this machine was {:?} late with a thread", self.lateness.most());
            return;
        }
        self.report.takeovers.push(took.as_secs_f64());
        if took > TAKEOVER {
            self.report
                .untruths
                .push(format!("job {job} of {worker}, which was killed, began again only after {took:?}"));
        }
    }

    /// Waits until every worker is up and the database is whole.
    async fn all_well(&mut self) {
        self.until("every worker and the database to be well", async |trial| {
            trial.database.is_well() && trial.workers.iter_mut().all(Worker::is_ready)
        })
        .await;
    }

    /// Waits for a fact while dead services are started again.
    async fn until(&mut self, what: &str, fact: impl AsyncFn(&mut Self) -> bool) {
        let begun = Instant::now();
        while !fact(self).await {
            self.workers.iter_mut().for_each(Worker::see_to);
            if begun.elapsed() > PATIENCE {
                self.keep_logs();
                panic!("waited in vain for {what}; see {}", kept().display());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Nobody is struck any more: all has to end well, and to be true.
    async fn settle(&mut self) {
        self.all_well().await;
        let begun = Instant::now();
        loop {
            self.workers.iter_mut().for_each(Worker::see_to);
            let first = &self.workers[0].service;
            let open: Vec<_> = truth::all_jobs(first).await.into_iter().filter(|job| !job.status.is_final()).collect();
            let alive: Vec<_> = self.workers.iter().flat_map(|worker| worker.service.alive()).collect();
            // Services are not alive in this sense, but each takes the others for left over.
            let services: BTreeSet<i32> = self.workers.iter().map(|worker| worker.service.pid()).collect();
            let alive: Vec<_> = alive.into_iter().filter(|(pid, _)| !services.contains(pid)).collect();
            if open.is_empty() && alive.is_empty() {
                break;
            }
            if begun.elapsed() > PATIENCE {
                self.report.untruths.push(format!("still open: {open:?}; still alive: {alive:?}"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let first = &self.workers[0].service;
        // Which worker could not confirm a run, and when, is the storm's doing; in the calm there was none.
        let (tally, untruths) = truth::untruths(first, |_| true).await;
        self.report.tally = tally;
        self.report.untruths.extend(untruths);
        let there: BTreeSet<JobId> = truth::all_jobs(first).await.into_iter().map(|job| job.id).collect();
        for job in self.client.acknowledged().difference(&there) {
            self.report.untruths.push(format!("job {job} was acknowledged, and is gone"));
        }
        if !self.report.untruths.is_empty() {
            self.keep_logs();
            self.report.untruths.push(format!("logs are in {}", kept().display()));
        }
    }

    fn keep_logs(&self) {
        fs::create_dir_all(kept()).unwrap();
        for (number, worker) in self.workers.iter().enumerate() {
            fs::write(kept().join(format!("w{number}.log")), worker.service.log()).unwrap();
        }
        fs::copy(self.workers[0].service.path("evidence/log"), kept().join("evidence")).ok();
    }
}

fn kept() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("callsheet-chaos-{}", std::process::id()))
}

/// `command` of a flow whose evidence goes to this scratch directory.
fn command_in(scratch: &Path) -> String {
    format!(
        "command = [\"/bin/bash\", \"{0}/job.sh\", \"{0}/evidence\", \"{{job_id}}\", \"{{attempt}}\", \"{{identifier}}\"]",
        scratch.display()
    )
}

/// The environment of a service whose wall clock is so many seconds ahead.
fn with_clock(ahead: i64) -> Vec<(String, String)> {
    let places = ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime"];
    let library = places.iter().map(|place| Path::new(place).join("libfaketimeMT.so.1")).find(|path| path.exists());
    let Some(library) = library.filter(|_| ahead != 0) else { return Vec::new() };
    let variables = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", format!("{ahead:+}s")),
        ("FAKETIME_DISABLE_SHM", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    variables.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// The jobs that have begun, in that order, each once.
fn started(log: &Path) -> Vec<JobId> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let first = text.lines().filter_map(|line| {
        let mut words = line.strip_prefix("start ")?.split(' ');
        let (job, attempt) = (words.next()?.parse().ok()?, words.next()?);
        (attempt == "1").then_some(JobId(job))
    });
    first.collect()
}

/// A foreign client that enqueues, and knows which rows it was told are there.
struct Client {
    connection: DatabaseConnection,
    known: Arc<Mutex<Known>>,
}

/// Which jobs are enqueued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wanted {
    #[default]
    Nothing,
    Short,
    Anything,
}

#[derive(Debug, Default)]
struct Known {
    wanted: Wanted,
    acknowledged: BTreeSet<JobId>,
    sequential: BTreeSet<JobId>,
    open: BTreeSet<JobId>,
}

impl Client {
    async fn start(url: &str, seed: u64) -> Self {
        let mut options = ConnectOptions::new(url);
        options.max_connections(4).acquire_timeout(Duration::from_secs(2)).sqlx_logging(false);
        let connection = Connector::connect(options).await.unwrap();
        let client = Self { connection, known: Arc::default() };
        let worker = Self { connection: client.connection.clone(), known: Arc::clone(&client.known) };
        tokio::spawn(async move {
            let mut chance = Chance(seed);
            // Until the trial is over.
            while Arc::strong_count(&worker.known) > 1 {
                let pause = chance.time(20, 150);
                tokio::time::sleep(pause).await;
                // An error, or no answer: nobody knows whether it is there.
                let _ = tokio::time::timeout(Duration::from_secs(2), worker.top_up(&mut chance)).await;
            }
        });
        client
    }

    async fn top_up(&self, chance: &mut Chance) -> Result<(), DbErr> {
        let select = "SELECT id FROM jobs WHERE status IN ('PENDING', 'INQUEUE', 'PROGRESS')";
        let rows = self.connection.query_all_raw(Statement::from_string(DbBackend::Postgres, select)).await?;
        let open: BTreeSet<JobId> =
            rows.iter().map(|row| row.try_get("", "id").map(JobId)).collect::<Result<_, _>>()?;
        let wanting = MOST_OPEN.saturating_sub(open.len());
        let wanted = {
            let mut known = self.known.lock().unwrap();
            known.open = open;
            known.wanted
        };
        for _ in 0..if wanted == Wanted::Nothing { 0 } else { wanting } {
            // Some run for longer than a lease: only those can still be alive when somebody else takes their job over.
            let long = wanted == Wanted::Anything && chance.below(4) == 0;
            let millis = chance.below(if long { 6000 } else { 600 });
            let time = format!("{}.{:03}", millis / 1000, millis % 1000);
            let command = chance.pick(&COMMANDS).unwrap().replace("{}", &time);
            let flow = *chance.pick(&["ONE", "FOUR", "FOUR"]).unwrap();
            self.insert(flow, &command).await?;
        }
        Ok(())
    }

    async fn insert(&self, flow: &str, identifier: &str) -> Result<JobId, DbErr> {
        let insert = format!("INSERT INTO jobs (type, identifier) VALUES ('{flow}', '{identifier}') RETURNING id");
        let row = self.connection.query_one_raw(Statement::from_string(DbBackend::Postgres, insert)).await?;
        let job = JobId(row.ok_or(DbErr::RecordNotInserted)?.try_get("", "id")?);
        let mut known = self.known.lock().unwrap();
        known.acknowledged.insert(job);
        known.open.insert(job);
        if flow == "ONE" {
            known.sequential.insert(job);
        }
        Ok(job)
    }

    fn enqueue(&self, wanted: Wanted) {
        self.known.lock().unwrap().wanted = wanted;
    }

    fn open(&self) -> BTreeSet<JobId> {
        self.known.lock().unwrap().open.clone()
    }

    fn sequential(&self) -> BTreeSet<JobId> {
        self.known.lock().unwrap().sequential.clone()
    }

    fn acknowledged(&self) -> BTreeSet<JobId> {
        self.known.lock().unwrap().acknowledged.clone()
    }
}

/// How late this machine wakes a thread up, at the most.
struct Lateness(Arc<AtomicU64>);

impl Lateness {
    fn watch() -> Self {
        let most = Arc::new(AtomicU64::new(0));
        let weak = Arc::downgrade(&most);
        std::thread::spawn(move || {
            let pause = Duration::from_millis(20);
            loop {
                let before = Instant::now();
                std::thread::sleep(pause);
                let Some(most) = weak.upgrade() else { return };
                let late = before.elapsed().saturating_sub(pause);
                most.fetch_max(u64::try_from(late.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self(most)
    }

    fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn most(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}
