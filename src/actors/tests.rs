//! Every actor role dies, by panic and by kill, while work goes on; nothing may be lost or run twice.
//!
//! The store is the real one on SQLite. The launcher is a fake whose commands are entries in a table: what it saw is
//! the evidence for "ran once" and "never two".

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorRef};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::watch;
use tokio::time::Instant;

use super::dispatcher::DispatcherMessage;
use super::flow::FlowMessage;
use super::heartbeat::HeartbeatMessage;
use super::job::JobMessage;
use super::job_supervisor::JobSupervisorMessage;
use super::recovery::RecoveryMessage;
use super::retention::RetentionMessage;
use super::root::{RootActor, RootArgs, RootMessage};
use super::scheduler::{SchedulerActor, SchedulerArgs, SchedulerMessage};
use super::status::{Pending, StatusActor, StatusArgs, StatusMessage};
use super::{Health, HeldRun, Launcher, Launches, Port, Reply, Shared, Watched};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::domain::heartbeat::LeaseTerms;
use crate::domain::labels::Labels;
use crate::domain::run::{CommandEnd, EndCause, Next, Shortage, Usage, Verdict};
use crate::domain::{Attempt, FlowType, JobId, JobStatus, Outcome, RunToken, Timestamp};
use crate::metrics::{Metrics, Role};
use crate::process::upkeep::RunDirectories;
use crate::process::{self, CommandSpec, Disk, Evidence, RunControl, RunLink, RunReport, StopLevel};
use crate::store::{Claim, Due, NewJob, Settlement, Store, WorkerNote, Write, Written};
use crate::telemetry::Telemetry;

/// No fact takes longer to come about, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command of the fake launcher.
struct FakeRun {
    job: JobId,
    reports: UnboundedSender<RunReport>,
    verdict: Option<Verdict>,
}

#[derive(Default)]
struct FakeCommands {
    runs: HashMap<RunToken, FakeRun>,
    launched: HashMap<JobId, u32>,
    inspected: u32,
    /// How many launches are to fail before one succeeds, as on a full disk.
    failing_launches: u32,
    /// What was got ready and has been released, until somebody asks for it.
    released: HashMap<RunToken, RunLink>,
    most_at_once: usize,
}

#[derive(Clone, Default)]
struct FakeLauncher(Arc<Mutex<FakeCommands>>);

impl FakeLauncher {
    fn live(&self) -> Vec<JobId> {
        self.0.lock().unwrap().runs.values().filter(|run| run.verdict.is_none()).map(|run| run.job).collect()
    }

    fn end(&self, job: JobId, end: CommandEnd, cause: EndCause) {
        let now = SystemClock.now();
        let mut commands = self.0.lock().unwrap();
        let run =
            commands.runs.values_mut().find(|run| run.job == job && run.verdict.is_none()).expect("a live command");
        let verdict = Verdict {
            pid: 1000,
            end,
            cause,
            started_time: now,
            completed_time: now,
            execution: Duration::from_millis(1),
            usage: Usage::default(),
            shortage: Shortage::default(),
            stderr_tail: String::new(),
            said: None,
        };
        run.verdict = Some(verdict.clone());
        // Whether anybody listens does not matter: the verdict stands.
        run.reports.send(RunReport::Ended(verdict)).ok();
    }

    fn start(&self, spec: &CommandSpec) -> RunLink {
        let (sender, reports) = mpsc::unbounded_channel();
        {
            let mut commands = self.0.lock().unwrap();
            *commands.launched.entry(spec.job).or_default() += 1;
            let run = FakeRun { job: spec.job, reports: sender.clone(), verdict: None };
            assert!(commands.runs.insert(spec.token.clone(), run).is_none(), "a run was launched twice");
            let live = commands.runs.values().filter(|run| run.verdict.is_none()).count();
            commands.most_at_once = commands.most_at_once.max(live);
        }
        RunLink { reports, control: self.attach(spec.token.clone(), sender) }
    }

    fn attach(&self, token: RunToken, reports: UnboundedSender<RunReport>) -> RunControl {
        let (control, mut stops) = RunControl::for_tests();
        let launcher = self.clone();
        tokio::spawn(async move {
            if stops.wait_for(|wanted| wanted.level != StopLevel::Run).await.is_ok() {
                let job = {
                    let commands = launcher.0.lock().unwrap();
                    commands.runs.get(&token).filter(|run| run.verdict.is_none()).map(|run| run.job)
                };
                if let Some(job) = job {
                    launcher.end(job, CommandEnd::Signaled(15), EndCause::Requested);
                }
            }
        });
        reports.send(RunReport::Started { pid: 1000, started_time: SystemClock.now() }).ok();
        control
    }
}

struct FakeHeld {
    launcher: FakeLauncher,
    spec: CommandSpec,
}

impl HeldRun for FakeHeld {
    fn release(self: Box<Self>) {
        let link = self.launcher.start(&self.spec);
        self.launcher.0.lock().unwrap().released.insert(self.spec.token.clone(), link);
    }

    fn give_up(self: Box<Self>) {}
}

impl Launcher for FakeLauncher {
    fn launch(&self, spec: CommandSpec) -> super::BoxFuture<'_, Result<RunLink, process::Error>> {
        Box::pin(async move {
            {
                let mut commands = self.0.lock().unwrap();
                if let Some(left) = commands.failing_launches.checked_sub(1) {
                    commands.failing_launches = left;
                    return Err(process::Error::Unsupported { what: "this test" });
                }
            }
            Ok(self.start(&spec))
        })
    }

    fn hold(&self, spec: &CommandSpec) -> Option<Box<dyn HeldRun>> {
        let fails = self.0.lock().unwrap().failing_launches > 0;
        (!fails).then(|| Box::new(FakeHeld { launcher: self.clone(), spec: spec.clone() }) as Box<dyn HeldRun>)
    }

    fn released(&self, token: &RunToken) -> Option<RunLink> {
        self.0.lock().unwrap().released.remove(token)
    }

    fn inspect(&self, _: JobId, _: Attempt, token: RunToken) -> super::BoxFuture<'_, Result<Evidence, process::Error>> {
        Box::pin(async move {
            let (sender, reports) = mpsc::unbounded_channel();
            {
                let mut commands = self.0.lock().unwrap();
                commands.inspected += 1;
                if let Some(link) = commands.released.remove(&token) {
                    return Ok(Evidence::Alive(link));
                }
                match commands.runs.get_mut(&token) {
                    None => return Ok(Evidence::NeverStarted),
                    Some(FakeRun { verdict: Some(verdict), .. }) => return Ok(Evidence::Finished(verdict.clone())),
                    Some(run) => run.reports = sender.clone(),
                }
            }
            Ok(Evidence::Alive(RunLink { reports, control: self.attach(token, sender) }))
        })
    }

    fn is_over(&self, _: JobId, _: Attempt, token: RunToken) -> super::BoxFuture<'_, Result<bool, process::Error>> {
        Box::pin(async move { Ok(self.0.lock().unwrap().runs.get(&token).is_none_or(|run| run.verdict.is_some())) })
    }

    fn run_dir(&self, _: JobId, _: Attempt, _: &RunToken) -> PathBuf {
        PathBuf::from("/nowhere")
    }

    fn remove_leftovers(&self, _: RunToken) -> super::BoxFuture<'_, Result<usize, process::Error>> {
        Box::pin(async { Ok(0) })
    }

    fn clean_up(&self, _: CommandSpec) -> super::BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn disk(&self) -> Result<Disk, process::Error> {
        Ok(Disk { size: 100, free: 40 })
    }
}

/// The good end of a run that took so long.
pub(super) fn completed(job: JobId, token: RunToken, execution_ms: Option<i64>) -> Settlement {
    Settlement {
        job,
        token,
        attempt: Attempt(1),
        worker: "w".parse().unwrap(),
        next: Next::Final(JobStatus::Completed),
        outcome: Some(Outcome::Completed),
        error: None,
        exit_code: Some(0),
        signal: None,
        pid: None,
        started_time: None,
        completed_time: Timestamp::from_unix_millis(1),
        execution_ms,
        usage: None,
        message: None,
        lapsed: false,
        slot: None,
    }
}

/// A service on a scratch database with one flow.
struct World {
    flow: FlowType,
    launcher: FakeLauncher,
    args: RootArgs,
    root: ActorRef<RootMessage>,
}

impl World {
    async fn new(concurrency: u32) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Actors' names are shared by the whole test process, so each world has a type of its own.
        let flow = format!("TEST_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let text =
            format!("[flows.{flow}]\ncommand = [\"true\"]\nconcurrency = {concurrency}\nheartbeat_timeout = \"1s\"\n");
        let config = Config::parse(&text, &PathBuf::from("/callsheet.toml")).unwrap();
        let flow: FlowType = flow.parse().unwrap();
        let store = Store::in_memory().await.unwrap();
        store.apply(&[Write::RegisterFlows(vec![flow.clone()])]).await.unwrap();
        let launcher = FakeLauncher::default();
        let shared = Arc::new(Shared {
            store,
            launcher: Arc::new(launcher.clone()),
            clock: Arc::new(SystemClock),
            metrics: Arc::new(Metrics::new("test").unwrap()),
            telemetry: Telemetry::default(),
            worker: "test".parse().unwrap(),
            incarnation: String::new(),
            labels: Labels::default(),
            status: Port::default(),
            retention: Port::default(),
            launches: Launches::default(),
            readying: Launches::default(),
            slots: super::slots::SlotPool::new(Vec::new()),
            strays: super::strays::Strays::default(),
            health: Health::default(),
            tree: super::Tree::new(Arc::new(SystemClock)),
            changed: tokio::sync::watch::Sender::default(),
            draining: AtomicBool::new(false),
            displaced: AtomicBool::new(false),
            drain_requested: watch::Sender::new(None),
        });
        let worker = WorkerNote {
            worker: "test".parse().unwrap(),
            incarnation: "1".to_owned(),
            state: crate::store::WorkerState::Active,
        };
        let args = RootArgs {
            shared,
            flows: config.flows.into_values().collect(),
            worker,
            retired: vec![],
            receivers: vec![],
            kept: Some((RunDirectories::of(Path::new("/nonexistent")), crate::config::RetentionConfig::default())),
        };
        let (root, _) =
            Watched::spawn(None, args.shared.tree.watch(Role::Root, None, RootActor), args.clone()).await.unwrap();
        Self { flow, launcher, args, root }
    }

    async fn enqueue(&self, count: usize) -> Vec<JobId> {
        let job = NewJob {
            flow: self.flow.clone(),
            identifier: "a".to_owned(),
            payload: None,
            priority: 0,
            due: Due::After(Duration::ZERO),
            maximum_attempts: None,
            unique_key: None,
            trace: None,
        };
        let jobs = self.args.shared.store.enqueue(&vec![job; count]).await.unwrap();
        self.wake();
        jobs.into_iter().map(|job| job.id).collect()
    }

    fn wake(&self) {
        self.root.cast(RootMessage::Wake).ok();
    }

    async fn status(&self, job: JobId) -> JobStatus {
        self.args.shared.store.job(job).await.unwrap().unwrap().status
    }

    async fn all_completed(&self, jobs: &[JobId]) -> bool {
        for job in jobs {
            if self.status(*job).await != JobStatus::Completed {
                return false;
            }
        }
        true
    }

    async fn changes(&self, job: JobId) -> Vec<String> {
        self.args.shared.store.events(job).await.unwrap().into_iter().map(|event| event.to_status).collect()
    }

    /// The living actor of a role.
    fn actor(&self, role: Role) -> Option<ActorCell> {
        let find = |parent: &ActorCell, is: fn(&ActorCell) -> bool| parent.get_children().into_iter().find(is);
        let root = self.root.get_cell();
        let flow = || find(&root, |cell| cell.is_message_type_of::<FlowMessage>() == Some(true));
        match role {
            Role::Root => Some(root),
            Role::Status => find(&root, |cell| cell.is_message_type_of::<StatusMessage>() == Some(true)),
            Role::Recovery => find(&root, |cell| cell.is_message_type_of::<RecoveryMessage>() == Some(true)),
            Role::Retention => find(&root, |cell| cell.is_message_type_of::<RetentionMessage>() == Some(true)),
            Role::Flow => flow(),
            Role::Scheduler => ractor::registry::where_is(self.flow.master_task_queue()),
            Role::Dispatcher => ractor::registry::where_is(self.flow.task_queue()),
            Role::JobSupervisor => {
                find(&flow()?, |cell| cell.is_message_type_of::<JobSupervisorMessage>() == Some(true))
            }
            Role::Job => self.actor(Role::JobSupervisor)?.get_children().into_iter().next(),
            Role::Heartbeat => self.actor(Role::Job)?.get_children().into_iter().next(),
        }
    }

    fn fail(&self, role: Role, death: Death) {
        if let Some(actor) = self.actor(role) {
            assert!(Self::has_fail(&actor, role, death), "the {role:?} was not there to be told");
        }
    }

    /// Whether the actor was there to be told.
    fn has_fail(actor: &ActorCell, role: Role, death: Death) -> bool {
        if death == Death::Kill {
            actor.kill();
            return true;
        }
        match role {
            Role::Root => actor.send_message(RootMessage::Panic).is_ok(),
            Role::Status => actor.send_message(StatusMessage::Panic).is_ok(),
            Role::Recovery => actor.send_message(RecoveryMessage::Panic).is_ok(),
            Role::Retention => actor.send_message(RetentionMessage::Panic).is_ok(),
            Role::Flow => actor.send_message(FlowMessage::Panic).is_ok(),
            Role::Scheduler => actor.send_message(SchedulerMessage::Panic).is_ok(),
            Role::Dispatcher => actor.send_message(DispatcherMessage::Panic).is_ok(),
            Role::JobSupervisor => actor.send_message(JobSupervisorMessage::Panic).is_ok(),
            Role::Job => actor.send_message(JobMessage::Panic).is_ok(),
            Role::Heartbeat => actor.send_message(HeartbeatMessage::Panic).is_ok(),
        }
    }

    /// Waits until a role has a living actor other than `old`.
    async fn replaced(&mut self, role: Role, old: &ActorCell) {
        if role == Role::Root {
            let stopped = old.wait(Some(PATIENCE)).await;
            assert!(stopped.is_ok(), "the root did not end");
            // What app does at the next start of the service; here the old actors' names must be free first.
            let mut root = None;
            eventually("a new root", async || {
                root =
                    Watched::spawn(None, self.args.shared.tree.watch(Role::Root, None, RootActor), self.args.clone())
                        .await
                        .ok();
                root.is_some()
            })
            .await;
            self.root = root.unwrap().0;
            return;
        }
        eventually(&format!("a new {role:?}"), async || {
            self.actor(role).is_some_and(|new| new.get_id() != old.get_id())
        })
        .await;
    }

    /// Waits until the dispatcher has looked for work once more, and everything that came of it is written.
    async fn dispatched_again(&self) {
        for _ in 0..2 {
            eventually("a dispatcher that has claimed", async || {
                let claims = || self.args.shared.metrics.store_batches();
                let before = claims();
                self.wake();
                let looked = Instant::now();
                while claims() == before && looked.elapsed() < Duration::from_secs(1) {
                    tokio::task::yield_now().await;
                }
                claims() != before
            })
            .await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.root.kill();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Panic,
    Kill,
}

/// Waits for a fact.
async fn eventually(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !fact().await {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A role dies while the first of three jobs of a sequential flow runs.
async fn a_sequential_flow_survives(role: Role, death: Death) {
    let mut world = World::new(1).await;
    let jobs = world.enqueue(3).await;
    eventually("the first command", async || world.launcher.live() == [jobs[0]]).await;
    eventually("PROGRESS", async || world.status(jobs[0]).await == JobStatus::Progress).await;
    eventually("the actor", async || world.actor(role).is_some()).await;

    let old = world.actor(role).unwrap();
    world.fail(role, death);
    world.replaced(role, &old).await;
    world.dispatched_again().await;
    assert_eq!(world.launcher.live(), [jobs[0]], "the second must wait for the first");

    for job in &jobs {
        eventually("the next command", async || world.launcher.live() == [*job]).await;
        world.launcher.end(*job, CommandEnd::Exited(0), EndCause::Itself);
        eventually("COMPLETED", async || world.status(*job).await == JobStatus::Completed).await;
        assert_eq!(world.changes(*job).await, ["INQUEUE", "PROGRESS", "COMPLETED"]);
    }
    let commands = world.launcher.0.lock().unwrap();
    assert!(jobs.iter().all(|job| commands.launched[job] == 1), "{:?}", commands.launched);
    assert_eq!(commands.most_at_once, 1);
}

macro_rules! each_role_dies {
    ($($name:ident: $role:ident;)*) => {
        $(mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn by_a_panic() {
                a_sequential_flow_survives(Role::$role, Death::Panic).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn by_a_kill() {
                a_sequential_flow_survives(Role::$role, Death::Kill).await;
            }
        })*
    };
}

each_role_dies! {
    nothing_is_lost_when_the_root_dies: Root;
    nothing_is_lost_when_the_status_actor_dies: Status;
    nothing_is_lost_when_recovery_dies: Recovery;
    nothing_is_lost_when_the_flow_dies: Flow;
    nothing_is_lost_when_the_scheduler_dies: Scheduler;
    nothing_is_lost_when_the_dispatcher_dies: Dispatcher;
    nothing_is_lost_when_the_job_supervisor_dies: JobSupervisor;
    nothing_is_lost_when_the_job_actor_dies: Job;
    nothing_is_lost_when_the_heartbeat_actor_dies: Heartbeat;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_takes_the_same_command_over() {
    let mut world = World::new(1).await;
    let jobs = world.enqueue(1).await;
    eventually("PROGRESS", async || world.status(jobs[0]).await == JobStatus::Progress).await;
    let old = world.actor(Role::Job).unwrap();
    world.fail(Role::Job, Death::Kill);
    world.replaced(Role::Job, &old).await;
    eventually("an inspection", async || world.launcher.0.lock().unwrap().inspected == 1).await;
    world.launcher.end(jobs[0], CommandEnd::Exited(7), EndCause::Itself);
    eventually("ERROR", async || world.status(jobs[0]).await == JobStatus::Error).await;
    let row = world.args.shared.store.job(jobs[0]).await.unwrap().unwrap();
    assert_eq!(row.exit_code, Some(7));
    let text = world.args.shared.metrics.encode().unwrap();
    assert!(
        text.contains(&format!(r#"callsheet_recovered_runs_total{{type="{}",verdict="reattached"}} 1"#, world.flow))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tree_tells_who_was_started_again() {
    let mut world = World::new(1).await;
    let tree = world.args.shared.tree.clone();
    tree.set_root(world.root.get_cell());
    let jobs = world.enqueue(1).await;
    eventually("PROGRESS", async || world.status(jobs[0]).await == JobStatus::Progress).await;
    let found = |role: Role| tree.snapshot().into_iter().find(|actor| actor.role == role);
    let of = |role: Role| found(role).unwrap();
    for role in [Role::Dispatcher, Role::Job] {
        assert_eq!(of(role).restarts, 0);
        let old = world.actor(role).unwrap();
        world.fail(role, Death::Kill);
        world.replaced(role, &old).await;
        eventually("the new one in the tree", async || found(role).is_some_and(|new| new.restarts == 1)).await;
    }
    let text = world.args.shared.metrics.encode().unwrap();
    for role in Role::ALL {
        let restarts = u8::from([Role::Dispatcher, Role::Job].contains(&role));
        let line = format!("callsheet_actor_restarts_total{{actor=\"{}\"}} {restarts}\n", role.as_str());
        assert!(text.contains(&line), "{line}{text}");
    }
    let (supervisor, job) = (of(Role::JobSupervisor), of(Role::Job));
    assert_eq!((job.parent, job.name), (Some(supervisor.id), world.flow.workflow_id(jobs[0])));
    assert_eq!((supervisor.restarts, supervisor.mailbox, of(Role::Root).parent), (0, None, None));
    assert!(of(Role::Status).last_message.is_some() && of(Role::Status).mailbox.is_some());
    world.launcher.end(jobs[0], CommandEnd::Exited(0), EndCause::Itself);
    eventually("the job's actor to be gone", async || !tree.snapshot().iter().any(|actor| actor.role == Role::Job))
        .await;
}

/// Each job is one commit of its end with the next claim, and maybe one of its start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_flow_claims_nothing_in_vain() {
    const JOBS: usize = 30;
    let world = World::new(1).await;
    let metrics = Arc::clone(&world.args.shared.metrics);
    let jobs = world.enqueue(JOBS).await;
    eventually("the first command", async || !world.launcher.live().is_empty()).await;
    let before = metrics.store_batches();
    eventually("all of them", async || {
        for job in world.launcher.live() {
            world.launcher.end(job, CommandEnd::Exited(0), EndCause::Itself);
        }
        world.all_completed(&jobs).await
    })
    .await;
    let commits = metrics.store_batches() - before;
    assert!(commits <= 2 * JOBS as u64 + 10, "{commits} commits for {JOBS} jobs");
}

/// An end that others could join is written also where none of them comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_short_run_waits_for_others_no_longer_than_a_moment() {
    let world = World::new(8).await;
    let jobs = world.enqueue(28).await;
    for job in &jobs[..20] {
        eventually("a full flow", async || world.launcher.live().len() == 8).await;
        world.launcher.end(*job, CommandEnd::Exited(0), EndCause::Itself);
        eventually("COMPLETED", async || world.status(*job).await == JobStatus::Completed).await;
    }
    eventually("the next commands", async || world.launcher.live().len() == 8).await;
}

/// An actor dies again and again while eight commands at a time start and end.
async fn no_write_is_lost_while_one_keeps_dying(role: Role, death: Death) {
    let world = World::new(8).await;
    let jobs = world.enqueue(40).await;
    let mut deaths = 0;
    let started = Instant::now();
    while !world.all_completed(&jobs).await {
        assert!(started.elapsed() < PATIENCE, "the jobs did not all complete");
        for job in world.launcher.live() {
            world.launcher.end(job, CommandEnd::Exited(0), EndCause::Itself);
        }
        // Within what its parent allows before it gives up, and often enough to hit writes in every state.
        // One that is there may still be dying of the last time.
        if deaths < if role == Role::Status { 8 } else { 4 }
            && let Some(actor) = world.actor(role)
        {
            deaths += usize::from(World::has_fail(&actor, role, death));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(deaths > 3, "it died only {deaths} times");
    for job in &jobs {
        let changes = world.changes(*job).await;
        // A claim whose answer died with the dispatcher is put back before anything is launched.
        let put_back = changes.windows(2).filter(|two| *two == ["INQUEUE", "PENDING"]).count();
        assert!(put_back == 0 || role == Role::Dispatcher, "{changes:?}");
        assert_eq!(changes[2 * put_back..], ["INQUEUE", "PROGRESS", "COMPLETED"], "{changes:?}");
    }
    let commands = world.launcher.0.lock().unwrap();
    assert!(jobs.iter().all(|job| commands.launched[job] == 1), "{:?}", commands.launched);
    assert!(commands.most_at_once <= 8, "{} at once", commands.most_at_once);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_lost_while_the_status_actor_keeps_panicking() {
    no_write_is_lost_while_one_keeps_dying(Role::Status, Death::Panic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_lost_while_the_status_actor_keeps_being_killed() {
    no_write_is_lost_while_one_keeps_dying(Role::Status, Death::Kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_end_is_lost_while_the_dispatcher_that_holds_it_keeps_panicking() {
    no_write_is_lost_while_one_keeps_dying(Role::Dispatcher, Death::Panic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_end_is_lost_while_the_dispatcher_that_holds_it_keeps_being_killed() {
    no_write_is_lost_while_one_keeps_dying(Role::Dispatcher, Death::Kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_token_is_no_longer_current_is_killed_and_writes_nothing() {
    let world = World::new(1).await;
    let jobs = world.enqueue(1).await;
    eventually("PROGRESS", async || world.status(jobs[0]).await == JobStatus::Progress).await;
    let row = world.args.shared.store.job(jobs[0]).await.unwrap().unwrap();
    // Somebody else settles the run behind the service's back.
    let settlement = Settlement {
        attempt: row.attempt,
        worker: "somebody-else".parse().unwrap(),
        next: Next::Final(JobStatus::Error),
        outcome: Some(Outcome::Lost),
        error: Some("settled by a test".to_owned()),
        exit_code: None,
        ..completed(jobs[0], row.run_token.unwrap().parse().unwrap(), None)
    };
    world.args.shared.store.apply(&[Write::Settle(settlement)]).await.unwrap();
    eventually("the end of its command", async || world.launcher.live().is_empty()).await;
    eventually("the end of its actor", async || world.actor(Role::Job).is_none()).await;
    let row = world.args.shared.store.job(jobs[0]).await.unwrap().unwrap();
    assert_eq!((row.status, row.error.as_deref()), (JobStatus::Error, Some("settled by a test")));
    assert_eq!(world.changes(jobs[0]).await, ["INQUEUE", "PROGRESS", "ERROR"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_goes_on_after_a_part_of_it_panicked() {
    let world = World::new(1).await;
    let retention = &world.args.shared.retention;
    eventually("a RetentionActor", async || retention.actor().is_some()).await;
    retention.cast(RetentionMessage::PanicAtWork);
    eventually("the end of that work", async || {
        let (reply, at_work) = tokio::sync::oneshot::channel();
        retention.cast(RetentionMessage::GetAtWork(reply));
        at_work.await == Ok(false)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launch_that_fails_for_our_own_reasons_costs_no_job_anything() {
    let world = World::new(1).await;
    world.launcher.0.lock().unwrap().failing_launches = 1000;
    let jobs = world.enqueue(2).await;
    eventually("a complaint", async || world.args.shared.health.complaints().len() == 1).await;
    // It holds its slot meanwhile: the fault must not eat its way through the queue.
    assert_eq!(world.status(jobs[1]).await, JobStatus::Pending);
    world.launcher.0.lock().unwrap().failing_launches = 0;
    for job in &jobs {
        eventually("its command", async || world.launcher.live() == [*job]).await;
        world.launcher.end(*job, CommandEnd::Exited(0), EndCause::Itself);
        eventually("COMPLETED", async || world.status(*job).await == JobStatus::Completed).await;
        assert_eq!(world.changes(*job).await, ["INQUEUE", "PROGRESS", "COMPLETED"]);
    }
    assert_eq!(world.args.shared.health.complaints(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_cannot_be_launched_can_still_be_cancelled() {
    let world = World::new(1).await;
    world.launcher.0.lock().unwrap().failing_launches = 1000;
    let jobs = world.enqueue(1).await;
    eventually("a complaint", async || world.args.shared.health.complaints().len() == 1).await;
    world.args.shared.store.request_cancel(jobs[0]).await.unwrap();
    eventually("CANCELLED", async || {
        world.wake();
        world.status(jobs[0]).await == JobStatus::Cancelled
    })
    .await;
    assert_eq!(world.changes(jobs[0]).await, ["INQUEUE", "CANCELLED"]);
    assert!(world.launcher.0.lock().unwrap().launched.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_keeps_failing_takes_down_only_itself() {
    let world = World::new(1).await;
    for _ in 0..6 {
        eventually("the dispatcher", async || world.actor(Role::Dispatcher).is_some()).await;
        let old = world.actor(Role::Dispatcher).unwrap();
        world.fail(Role::Dispatcher, Death::Panic);
        eventually("the dispatcher's end", async || {
            world.actor(Role::Dispatcher).is_none_or(|new| new.get_id() != old.get_id())
        })
        .await;
    }
    let told = |line: &str| world.args.shared.metrics.encode().unwrap().contains(line);
    let up = format!("callsheet_flow_up{{type=\"{}\"}} 1\n", world.flow);
    // Its first restart comes at once, so that it may be up again before anybody sees that it was down.
    eventually("the flow to be started anew", async || told("callsheet_actor_restarts_total{actor=\"flow\"} 1\n"))
        .await;
    let jobs = world.enqueue(1).await;
    eventually("the flow to come back", async || {
        world.wake();
        world.launcher.live() == jobs
    })
    .await;
    assert!(told(&up));
    assert!(world.actor(Role::Root).is_some() && world.actor(Role::Status).is_some());
}

/// A clock that a test sets.
#[derive(Clone, Default)]
struct SetClock(Arc<AtomicI64>);

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_millis(self.0.load(Ordering::Relaxed))
    }
}

/// Stands for a dispatcher, and counts how often it is woken.
struct Probe;

impl Actor for Probe {
    type Msg = DispatcherMessage;
    type State = Arc<AtomicU32>;
    type Arguments = Arc<AtomicU32>;

    async fn pre_start(
        &self,
        _: ActorRef<DispatcherMessage>,
        wakes: Arc<AtomicU32>,
    ) -> Result<Arc<AtomicU32>, ractor::ActorProcessingErr> {
        Ok(wakes)
    }

    async fn handle(
        &self,
        _: ActorRef<DispatcherMessage>,
        message: DispatcherMessage,
        wakes: &mut Arc<AtomicU32>,
    ) -> Result<(), ractor::ActorProcessingErr> {
        wakes.fetch_add(u32::from(matches!(message, DispatcherMessage::Wake)), Ordering::Relaxed);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tick_wakes_the_dispatcher_when_the_schedule_is_due_and_only_then() {
    const MINUTE: i64 = 60_000;
    let world = World::new(1).await;
    let clock = SetClock::default();
    clock.0.store(10 * MINUTE + 1, Ordering::Relaxed);
    let old = &world.args.shared;
    let shared = Shared {
        store: old.store.clone(),
        launcher: Arc::clone(&old.launcher),
        clock: Arc::new(clock.clone()),
        metrics: Arc::new(Metrics::new("test").unwrap()),
        telemetry: Telemetry::default(),
        worker: old.worker.clone(),
        incarnation: String::new(),
        labels: Labels::default(),
        status: Port::default(),
        retention: Port::default(),
        launches: Launches::default(),
        readying: Launches::default(),
        slots: super::slots::SlotPool::new(Vec::new()),
        strays: super::strays::Strays::default(),
        health: Health::default(),
        tree: super::Tree::new(Arc::new(SystemClock)),
        changed: tokio::sync::watch::Sender::default(),
        draining: AtomicBool::new(false),
        displaced: AtomicBool::new(false),
        drain_requested: watch::Sender::new(None),
    };
    let (shared, wakes, port) = (Arc::new(shared), Arc::new(AtomicU32::new(0)), Port::default());
    let (probe, _) = Actor::spawn(None, Probe, Arc::clone(&wakes)).await.unwrap();
    port.connect(probe.clone(), shared.metrics.mailbox(Role::Dispatcher));
    let args = SchedulerArgs { shared: Arc::clone(&shared), flow: Arc::clone(&world.args.flows[0]), dispatcher: port };
    let (scheduler, _) = Actor::spawn(None, SchedulerActor, args).await.unwrap();

    // In the same minute, in the next, an hour back, and in the minute after that.
    for (time, woken) in [(10 * MINUTE + 2, 0), (11 * MINUTE, 1), (-49 * MINUTE, 1), (-48 * MINUTE, 2)] {
        clock.0.store(time, Ordering::Relaxed);
        scheduler.cast(SchedulerMessage::Tick).unwrap();
        eventually("the tick", async || {
            let seen = format!("timestamp_seconds{{type=\"{}\"}} {}\n", world.flow, time as f64 / 1_000.0);
            shared.metrics.encode().unwrap().contains(&seen)
        })
        .await;
        eventually("the wake-up", async || wakes.load(Ordering::Relaxed) == woken).await;
    }
    scheduler.stop(None);
    probe.stop(None);
}

/// A StatusActor by itself.
async fn status_actor(store: Store) -> (ActorRef<StatusMessage>, StatusArgs) {
    let args = StatusArgs {
        store,
        launcher: Arc::new(FakeLauncher::default()),
        readying: Launches::default(),
        port: Port::default(),
        gate: Arc::default(),
        metrics: Arc::new(Metrics::new("test").unwrap()),
        health: Health::default(),
        changed: watch::Sender::default(),
    };
    (Actor::spawn(None, StatusActor, args.clone()).await.unwrap().0, args)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_queues_up_while_a_transaction_is_in_flight_shares_the_next() {
    let store = Store::in_memory().await.unwrap();
    let (status, args) = status_actor(store).await;
    let in_flight = args.gate.lock().await;
    let answers = Arc::new(AtomicU32::new(0));
    for n in 0..10 {
        let answered = Arc::clone(&answers);
        let reply = Reply::new(move |answer: Option<Vec<Written>>| {
            answered.fetch_add(u32::from(answer.is_some()), Ordering::Relaxed);
        });
        let flow = format!("FLOW_{n}").parse().unwrap();
        assert!(args.port.cast(StatusMessage::Write(vec![Write::RegisterFlows(vec![flow])], reply)));
    }
    assert_eq!(answers.load(Ordering::Relaxed), 0, "nothing is acknowledged before its commit");
    drop(in_flight);
    eventually("every answer", async || answers.load(Ordering::Relaxed) == 10).await;
    let batches = args.metrics.store_batches();
    assert!(batches <= 3, "ten writes took {batches} transactions");
    status.stop(None);
}

#[tokio::test]
async fn a_claim_has_the_room_that_an_end_in_its_transaction_leaves() {
    let store = Store::in_memory().await.unwrap();
    let new = |identifier: &str| NewJob {
        flow: "A".parse().unwrap(),
        identifier: identifier.to_owned(),
        payload: None,
        priority: 0,
        due: Due::After(Duration::ZERO),
        maximum_attempts: None,
        unique_key: None,
        trace: None,
    };
    let jobs = store.enqueue(&[new("a"), new("b")]).await.unwrap();
    let token = |n| RunToken::from_bytes([n; 16]);
    let claim = |n| {
        Write::Claim(Claim {
            flow: "A".parse().unwrap(),
            worker: "w".parse().unwrap(),
            incarnation: String::new(),
            concurrency: 1,
            worker_concurrency: 1,
            requires: Labels::default(),
            beyond_share: false,
            schedule_to_close_timeout: Duration::from_secs(1 << 40),
            terms: LeaseTerms {
                heartbeat_timeout: Duration::from_secs(60),
                start_to_close_timeout: Duration::from_secs(60),
                kill_grace: Duration::from_secs(10),
            },
            tokens: vec![token(n)],
        })
    };
    store.apply(&[claim(1)]).await.unwrap();
    let end = Write::Settle(completed(jobs[0].id, token(1), None));
    let (status, args) = status_actor(store).await;
    let (answers, mut answered) = mpsc::unbounded_channel();
    let pending = |write: Write| {
        let answers = answers.clone();
        Pending { writes: vec![write], reply: Reply::new(move |answer| answers.send(answer).unwrap()), ahead: None }
    };
    args.port.cast(StatusMessage::WriteTogether(vec![pending(claim(2)), pending(end)]));
    assert_eq!(answered.recv().await.unwrap().unwrap(), [Written::Applied], "the end is answered first");
    let claimed = answered.recv().await.unwrap().unwrap();
    let [Written::Claimed(claimed)] = claimed.as_slice() else { panic!("{claimed:?}") };
    assert_eq!(claimed.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [jobs[1].id]);
    status.stop(None);
}
