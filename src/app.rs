//! Builds the service from its configuration in order, binds early, serves late, and owns its stop.
//!
//! What is taken first is given back last: the locks that make this the only service on its data directory and its
//! embedded database. Nothing here owns a command; whatever happens to this process, the shims go on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorRef};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::actors::root::{RootActor, RootArgs, RootMessage};
use crate::actors::slots::SlotPool;
use crate::actors::status::{ErrorChain, StatusMessage};
use crate::actors::strays::Strays;
use crate::actors::{AbortOnDrop, Handle, Health, Launches, Port, Reply, Shared, Tree, Watched};
use crate::clock::SystemClock;
use crate::config::{self, Changes, Config, FlowConfig, KnownToken, OnStop, Overrides};
use crate::crash::{self, Step};
use crate::domain::database_url::DatabaseUrl;
use crate::domain::labels::Labels;
use crate::domain::{FlowType, WorkerId};
use crate::http;
use crate::http::peers::Peers;
use crate::identity::Starts;
use crate::metrics::{self, Metrics, Role};
use crate::outgoing::{self, Receiver};
use crate::process::upkeep::RunDirectories;
use crate::process::{self, Processes};
use crate::service_manager::ServiceManager;
use crate::store::{self, Store, Use, Worker, WorkerNote, WorkerState, Write};
use crate::telemetry::{Telemetry, tell_unrun};

/// How long the last writes may take when the service stops; what is not written by then is on disk, and found again.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// How long flows that are no longer configured may take to stop claiming before a reload is told of.
const RELOAD: Duration = Duration::from_secs(10);
/// The file in the data directory that says where the service listens.
pub const ADDRESS_FILE: &str = "http_address";
/// How often a service manager is told what the service does, where it does not want a sign of life more often.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often a draining service looks whether its runs have ended, which may take days.
const DRAIN_LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Why the service could not be started, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory can't be made or used.
    #[error("can't use the data directory {path}", path = path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another service holds the lock.
    #[error(
        "another callsheet service is running on {what} (it holds {path}); stop it first, or give this one its own",
        path = path.display()
    )]
    AlreadyRunning {
        /// What may have one service only.
        what: &'static str,
        /// The lock's file.
        path: PathBuf,
    },
    /// A service with another data directory has this worker's name.
    #[error(
        "a service on {hostname} that was started from another data directory is worker {worker} of this database (its last \
         sign of life came {silent} ago); give this one a worker_id of its own, or where that service is gone, wait 30 s"
    )]
    WorkerTaken {
        /// The name.
        worker: WorkerId,
        /// The other one's machine.
        hostname: String,
        /// How long it has been silent, in words.
        silent: String,
    },
    /// The lock's file can't be made.
    #[error("can't lock {path}", path = path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The worker id can't be kept.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The database can't be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The run directories can't be used.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// Other workers can't be asked.
    #[error(transparent)]
    Peers(#[from] http::peers::Unusable),
    /// A webhook can't be sent to.
    #[error(transparent)]
    Webhook(#[from] outgoing::Unusable),
    /// The address can't be listened on.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The metrics can't be made.
    #[error(transparent)]
    Metrics(#[from] metrics::Error),
    /// Signals can't be listened for.
    #[error("can't listen for signals")]
    Signals(#[source] io::Error),
    /// No random numbers can be had.
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
    /// The root could not start its children.
    #[error("the actors can't be started")]
    Start(#[from] ractor::SpawnErr),
    /// The root gave up.
    #[error(
        "the service gave up: an actor that it can't do without kept failing (the log says which); commands run on"
    )]
    GaveUp,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Stop,
    Reload,
}

/// How the service is run.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Whether the schema is brought up to date first.
    pub migrate: bool,
    /// How the configuration is read again; `None` where it can't be.
    pub overrides: Option<Overrides>,
}

/// A service that runs.
pub struct Service {
    shared: Arc<Shared>,
    root: ActorRef<RootMessage>,
    root_task: JoinHandle<()>,
    http: Option<(SocketAddr, JoinHandle<()>)>,
    stop_http: watch::Sender<bool>,
    worker: WorkerNote,
    manager: Arc<ServiceManager>,
    _told: AbortOnDrop,
    _traced: Option<AbortOnDrop>,
    /// As it was last read; who has to know of a change listens here.
    config: watch::Sender<Arc<Config>>,
    tokens: watch::Sender<Arc<[KnownToken]>>,
    processes: Processes,
    overrides: Option<Overrides>,
    _locks: Vec<File>,
}

/// Runs the service until SIGTERM, SIGINT or the root's end, then stops it as the configuration says.
///
/// # Errors
/// Where the service can't be started, or its root gave up.
pub async fn serve(config: Config, options: ServeOptions) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    let service = tokio::select! {
        service = Service::start(config, options) => service?,
        // What has been started by then is settled by the next start, as after a crash.
        () = signals.stop() => return Ok(()),
    };
    service.run(&mut signals).await
}

/// The signals that the service hears.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    /// Listens from now on, so that none is missed while the service starts.
    ///
    /// # Errors
    /// Where the system does not allow it.
    pub fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(Error::Signals);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next of them. Safe to cancel.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            // By default it would end the service; a terminal that is closed is no reason to.
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// The next that asks to stop; what else comes before it is too late or too early to be done. Safe to cancel.
    pub async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

impl Service {
    /// Builds everything in order: directory, locks, address, database, actors; then serves.
    ///
    /// # Errors
    /// Where any of it can't be had; what was started is ended again.
    pub async fn start(config: Config, options: ServeOptions) -> Result<Self, Error> {
        make_data_dir(&config.data_dir)?;
        let locks = take_locks(&config)?;
        for flow in config.flows.values() {
            process::prepare_limits(flow.limits)?;
        }
        let worker = config::worker_id(&config)?;
        // What a first start may lack is told before the tables are made.
        let tokens = watch::Sender::new(Arc::from(config::known_tokens(&config.http)?));
        let receivers: Result<Vec<_>, _> =
            config.webhooks.iter().map(|webhook| Receiver::of(webhook).map(Arc::new)).collect();
        let receivers = receivers?;
        let peers = Peers::of(&config.http)?;
        let endpoint = config::otlp_endpoint(&config)?;
        let server = match config.http.listen {
            Some(address) => Some(http::Server::bind(address, config.http.tls.as_ref()).await?),
            None => None,
        };
        let store = Store::of(&config, Use::Service).await?;
        store.check_rights().await?;
        if options.migrate {
            for migration in store.migrate().await? {
                tracing::info!(migration, "the schema was brought up to date");
            }
        } else {
            store.check_adoption().await?;
        }
        store.check_schema().await?;
        let local_key = config::local_key(&config)?;
        let (starts, displaces) = not_another_ones(&store, &worker, &config).await?;
        let processes = Processes::open(&config.data_dir, config.http.token_variables())?;
        let kept = Some((RunDirectories::of(&config.data_dir), config.retention));
        let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION"))?);
        metrics.this_worker(&worker, &hostname());
        let telemetry = Telemetry::start(endpoint, &worker, &hostname(), &metrics);
        let retired = retired_flows(&store, &worker, &config).await?;
        let incarnation = new_incarnation()?;
        starts.remember(&config.data_dir, &incarnation).map_err(|source| data_dir_error(&config.data_dir, source))?;
        let note = register(
            &store,
            &worker,
            incarnation,
            displaces,
            http::peers::advertised(&config.http, server.as_ref().map(http::Server::address)),
            &config.labels,
            config.flows.keys().chain(retired.iter().map(|flow| &flow.flow)),
        )
        .await?;
        let shared = Arc::new(Shared {
            store,
            launcher: Arc::new(processes.clone()),
            clock: Arc::new(SystemClock),
            metrics,
            telemetry,
            worker,
            incarnation: note.incarnation.clone(),
            labels: config.labels.clone(),
            status: Port::default(),
            retention: Port::default(),
            launches: Launches::default(),
            readying: Launches::default(),
            slots: SlotPool::new(processes.last_holders()?),
            strays: Strays::new(processes.living().await?),
            health: Health::default(),
            tree: Tree::new(Arc::new(SystemClock)),
            changed: watch::Sender::default(),
            draining: AtomicBool::new(false),
            displaced: AtomicBool::new(false),
            drain_requested: watch::Sender::new(None),
        });
        let flows = config.flows.values().cloned().collect();
        let args = RootArgs { shared: Arc::clone(&shared), flows, worker: note.clone(), retired, kept, receivers };
        let (root, root_task) = Watched::spawn(None, shared.tree.watch(Role::Root, None, RootActor), args).await?;
        shared.tree.set_root(root.get_cell());
        let stop_http = watch::Sender::new(false);
        let config = watch::Sender::new(Arc::new(config));
        let http = server.map(|server| {
            let address = server.address();
            note_address(&config.borrow().data_dir, address);
            let handle = Handle::new(Arc::clone(&shared));
            let settings =
                http::Settings { handle, config: config.subscribe(), tokens: tokens.subscribe(), local_key, peers };
            (address, tokio::spawn(server.serve(settings, stop_http.subscribe())))
        });
        let loaded = Arc::clone(&config.borrow());
        tell_left(&loaded.labels, loaded.flows.values());
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            worker_id = %shared.worker,
            data_dir = %loaded.data_dir.display(),
            database = %loaded.database_url,
            http = http.as_ref().map(|(address, _)| address.to_string()).as_deref().unwrap_or("off"),
            flows = loaded.flows.len(),
            "the service is ready"
        );
        let overrides = options.overrides;
        let manager = Arc::new(ServiceManager::from_environment());
        manager.ready(&status(&shared));
        let traced = shared.telemetry.is_on().then(|| {
            let (store, telemetry) = (shared.store.clone(), shared.telemetry.clone());
            AbortOnDrop::spawn(tell_unrun(store, telemetry, shared.worker.clone(), shared.changed.subscribe()))
        });
        let told = AbortOnDrop::spawn(tell_manager(Arc::clone(&manager), root.clone(), Arc::clone(&shared)));
        Ok(Self {
            shared,
            root,
            root_task,
            http,
            stop_http,
            worker: note,
            manager,
            _told: told,
            _traced: traced,
            config,
            tokens,
            processes,
            overrides,
            _locks: locks,
        })
    }

    /// Where the service listens; `None` where HTTP is off.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|(address, _)| *address)
    }

    /// The service's tables.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Waits for a signal, or for the root's end, and stops.
    ///
    /// # Errors
    /// Where the root gave up.
    pub async fn run(self, signals: &mut Signals) -> Result<(), Error> {
        let mut drain = self.shared.drain_requested.subscribe();
        loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::Stop => break,
                    Asked::Reload => self.reload().await,
                },
                who = requested(&mut drain) => {
                    tokio::select! {
                        () = self.drain(&who) => break,
                        () = signals.stop() => break,
                        _ = self.root.wait(None) => return gave_up(),
                    }
                }
                _ = self.root.wait(None) => return gave_up(),
            }
        }
        self.stop(signals).await;
        Ok(())
    }

    /// Reads the configuration again and takes its flows over; one that is wrong changes nothing.
    async fn reload(&self) {
        let Some(overrides) = &self.overrides else {
            tracing::warn!("SIGHUP: this service has no configuration that it could read again");
            return;
        };
        let config = match Config::load(overrides) {
            // Without its file there would be no flows, which nobody means by taking the file away.
            Ok(config) if config.path.is_none() => {
                tracing::error!(
                    "SIGHUP: the configuration file is gone; the service goes on with what it has read before"
                );
                self.shared.metrics.reloaded(false);
                return;
            }
            Ok(config) => config,
            Err(error) => {
                refuse_reload(&error);
                self.shared.metrics.reloaded(false);
                return;
            }
        };
        for flow in config.flows.values() {
            if let Err(error) = process::prepare_limits(flow.limits) {
                tracing::error!(r#type = %flow.flow, error = %ErrorChain(&error), "configuration: it can't be taken over");
                self.shared.metrics.reloaded(false);
                return;
            }
        }
        let before = Arc::clone(&self.config.borrow());
        let tokens = match config::known_tokens(&config.http) {
            Ok(tokens) => tokens,
            Err(error) => {
                refuse_reload(&error);
                self.shared.metrics.reloaded(false);
                return;
            }
        };
        let changes = Changes::between(&before, &config);
        for line in changes.flows.iter().chain(&changes.tokens) {
            tracing::info!("configuration: {line}");
        }
        if config.flows.is_empty() && !before.flows.is_empty() {
            let gone = before.flows.keys().map(FlowType::as_str).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                gone,
                "configuration: the file has no flows any more, and nothing new is started; if that is not meant, put them back"
            );
        }
        for key in &changes.restart {
            tracing::warn!(
                "configuration: {key} is different in the file; it holds from the next start of the service"
            );
        }
        let register = vec![Write::RegisterFlows(config.flows.keys().cloned().collect())];
        self.shared.status.cast(StatusMessage::Write(register, Reply::new(drop)));
        let (reply, answered) = answer_channel();
        let flows: Vec<_> = config.flows.values().cloned().collect();
        let changed =
            |flow: &&Arc<FlowConfig>| before.flows.get(&flow.flow).is_none_or(|old| old.requires != flow.requires);
        tell_left(&self.shared.labels, flows.iter().filter(changed));
        // What holds from the next start only stays as it is, and is told of again with the next reload.
        let mut now = Config { flows: config.flows, ..Config::clone(&before) };
        if !changes.tokens.is_empty() {
            now.http.tokens = config.http.tokens;
            self.processes.keep_back(now.http.token_variables());
            self.tokens.send_replace(Arc::from(tokens));
        }
        self.config.send_replace(Arc::new(now));
        if self.root.cast(RootMessage::Reconfigure(flows, reply)).is_ok() {
            // Bounded: a claim that is under way may be waiting for a database that is away.
            drop(tokio::time::timeout(RELOAD, answered).await);
        }
        self.shared.metrics.reloaded(true);
        let (changed, restart) = (changes.flows.len() + changes.tokens.len(), changes.restart.len());
        tracing::info!(changed, restart, "the configuration was read again");
    }

    /// Claims nothing more, and waits until every run of this worker has ended, however long that takes. Safe to cancel.
    async fn drain(&self, who: &str) {
        tracing::info!(who, "the service drains: it claims nothing new, and ends when its runs have ended");
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.health.draining(format!("this worker drains, as {who} asked"));
        self.write_state(WorkerState::Draining).await;
        let (reply, answered) = answer_channel();
        if self.root.cast(RootMessage::StopClaiming(reply)).is_ok() {
            drop(answered.await);
        }
        let mut waits_for = None;
        loop {
            match self.open_runs().await {
                Ok(open) if open.is_empty() && self.running() == 0 => break,
                Ok(open) => {
                    if waits_for.as_ref() != Some(&open) {
                        let runs = open.join(", ");
                        tracing::info!(waits_for = runs, "the service drains");
                        self.shared.health.draining(format!(
                            "this worker drains, as {who} asked: it claims nothing new, and waits for {} of its runs to end: {runs}",
                            open.len()
                        ));
                        waits_for = Some(open);
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "the service drains, and can't see what is still open");
                }
            }
            tokio::time::sleep(DRAIN_LOOK_AGAIN).await;
        }
        tracing::info!("the service has drained");
    }

    /// The workflow ids of this worker's open runs; not of rows that others set to an open status, which nobody runs.
    async fn open_runs(&self) -> Result<Vec<String>, store::Error> {
        if self.shared.displaced.load(Ordering::Relaxed) {
            // What stands under its name in the tables is another's.
            return Ok(ractor::registry::registered().into_iter().filter(|name| name.ends_with(')')).collect());
        }
        let open = self.shared.store.open_jobs(&self.shared.worker, None).await?;
        let own = open.iter().filter(|job| job.token.is_some());
        Ok(own
            .map(|job| job.job_type.parse().map_or(job.id.to_string(), |flow: FlowType| flow.workflow_id(job.id)))
            .collect())
    }

    /// Claims nothing more, does to running commands what `on_stop` says, writes what has ended, and ends.
    async fn stop(self, signals: &mut Signals) {
        let service = self.config.borrow().service.clone();
        let on_stop = service.on_stop;
        tracing::info!(?on_stop, running = self.running(), "the service stops; a second signal hastens it");
        let deadline = Instant::now() + service.stop_deadline;
        self.manager.stopping(service.stop_deadline + 5 * LAST_WRITES);
        tokio::select! {
            () = self.wind_down(on_stop, deadline) => {}
            () = signals.stop() => tracing::warn!("a second signal: the service ends at once, and commands run on"),
        }
        let left = self.running();
        if left > 0 {
            tracing::info!(left, "commands run on; the next start of the service takes them over");
        }
        self.write_state(WorkerState::Stopped).await;
        self.shared.telemetry.flush(Instant::now() + LAST_WRITES).await;
        // Only now the actors: nothing of them is left to be written, and their commands are not theirs.
        self.root.stop(None);
        self.stop_http.send_replace(true);
        if let Some((_, http)) = self.http
            && http.await.is_err()
        {
            tracing::error!("the HTTP server panicked");
        }
        if self.root_task.await.is_err() {
            tracing::error!("the root panicked while it stopped");
        }
        // Left to the end of the process, connections that only read might end last or never, and the log would not be folded.
        if tokio::time::timeout(LAST_WRITES, self.shared.store.close()).await.is_err() {
            tracing::warn!("the connections to the database could not be closed in time");
        }
    }

    async fn wind_down(&self, on_stop: OnStop, deadline: Instant) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.health.draining("the service stops, and claims nothing new".to_owned());
        crash::before(Step::WindDown);
        match on_stop {
            OnStop::Leave => self.stop_claiming(deadline).await,
            OnStop::Wait => {
                self.stop_claiming(deadline).await;
                self.wait_for_runs(deadline, || ()).await;
            }
            OnStop::Cancel => {
                // Asked again and again: a run may just be between two actors.
                let cancel = || {
                    if self.root.cast(RootMessage::CancelRuns).is_err() {
                        tracing::debug!("the root is gone while its runs are to be cancelled");
                    }
                };
                // To end a command needs no database, which a claim may be waiting for. What that brings is ended, too.
                tokio::join!(self.stop_claiming(deadline), self.wait_for_runs(deadline, cancel));
                self.wait_for_runs(deadline, cancel).await;
            }
        }
        self.keep_runs().await;
        // A launch that is under way ends up either on disk or in the store; an end that is known goes to the store.
        let last = Instant::now() + LAST_WRITES;
        drop(tokio::time::timeout_at(last, self.shared.launches.all_settled()).await);
        let (reply, answered) = answer_channel();
        self.shared.status.cast(StatusMessage::Barrier(reply));
        drop(tokio::time::timeout_at(last, answered).await);
        crash::after(Step::WindDown);
    }

    async fn stop_claiming(&self, deadline: Instant) {
        self.write_state(WorkerState::Draining).await;
        let (reply, answered) = answer_channel();
        if self.root.cast(RootMessage::StopClaiming(reply)).is_ok() {
            // Bounded: a claim may be waiting for a database that is away.
            drop(tokio::time::timeout_at(deadline, answered).await);
        }
    }

    /// Has the leases of what runs on made long enough for an upgrade, where other workers live.
    async fn keep_runs(&self) {
        let (kept, mut all_kept) = mpsc::unbounded_channel();
        if self.root.cast(RootMessage::KeepRuns(kept)).is_ok() {
            // Nothing is ever sent: it is closed by the last run that has no use for it any more. Bounded, for the database
            // may be away, and then the leases end when they end.
            drop(tokio::time::timeout(LAST_WRITES, all_kept.recv()).await);
        }
    }

    async fn wait_for_runs(&self, deadline: Instant, each_time: impl Fn()) {
        while self.running() > 0 && Instant::now() < deadline {
            each_time();
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// How many runs have a live actor.
    fn running(&self) -> usize {
        running()
    }

    async fn write_state(&self, state: WorkerState) {
        let (written, answered) = answer_channel();
        let note = Write::WorkerState(WorkerNote { state, ..self.worker.clone() });
        let reply = Reply::new(move |answer: Option<_>| {
            if answer.is_some() {
                written.send(());
            }
        });
        self.shared.status.cast(StatusMessage::Write(vec![note], reply));
        if !matches!(tokio::time::timeout(LAST_WRITES, answered).await, Ok(Ok(()))) {
            tracing::warn!(state = state.as_str(), "the worker's state could not be written");
        }
    }
}

/// Logs which of these flows this worker leaves to others.
fn tell_left<'a>(labels: &Labels, flows: impl Iterator<Item = &'a Arc<FlowConfig>>) {
    for flow in flows {
        let lacking = labels.lacks(&flow.requires);
        if !lacking.is_empty() {
            tracing::info!(r#type = %flow.flow, requires = %flow.requires, lacking = %lacking, "this worker claims no jobs of a flow: it lacks a label");
        }
    }
}

/// Logs why a configuration was not taken, each mistake with its place.
fn refuse_reload(error: &config::Error) {
    match error {
        config::Error::Invalid(complaints) => {
            for complaint in &complaints.0 {
                let place = complaint.place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default();
                let help = complaint.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
                tracing::error!("configuration: {place}{}{help}", complaint.message);
            }
        }
        other => tracing::error!(error = %ErrorChain(other), "configuration: it can't be read"),
    }
    tracing::error!("SIGHUP: the configuration is not right; the service goes on with what it has read before");
}

/// Waits until somebody has asked to drain, and says who. Safe to cancel.
async fn requested(drain: &mut watch::Receiver<Option<String>>) -> String {
    match drain.wait_for(Option::is_some).await {
        Ok(who) => who.clone().unwrap_or_default(),
        // Nobody can ask any more.
        Err(_) => std::future::pending().await,
    }
}

fn gave_up() -> Result<(), Error> {
    tracing::error!("the root gave up; the service ends, and its commands run on");
    Err(Error::GaveUp)
}

fn running() -> usize {
    ractor::registry::registered().iter().filter(|name| name.ends_with(')')).count()
}

/// What the service is doing, for `systemctl status`.
fn status(shared: &Shared) -> String {
    let (running, complaints) = (running(), shared.complaints());
    let what = if shared.draining.load(Ordering::Relaxed) { "stopping" } else { "working" };
    let runs = if running == 1 { "1 run".to_owned() } else { format!("{running} runs") };
    if complaints.is_empty() { format!("{what}: {runs}") } else { format!("{what}: {runs}; {}", complaints.join("; ")) }
}

/// Tells the service manager what the service does, and that it lives: for as long as the root answers.
async fn tell_manager(manager: Arc<ServiceManager>, root: ActorRef<RootMessage>, shared: Arc<Shared>) {
    if !manager.listens() {
        return;
    }
    // A third for asking and a third for waiting leave a third for a machine that is busy.
    let third = manager.watchdog().map_or(STATUS_INTERVAL, |within| STATUS_INTERVAL.min(within / 3));
    loop {
        let (reply, answered) = answer_channel();
        let asked = root.cast(RootMessage::GetAlive(reply)).is_ok();
        if asked && matches!(tokio::time::timeout(third, answered).await, Ok(Ok(()))) {
            manager.alive();
            manager.status(&status(&shared));
        } else {
            tracing::warn!("the root does not answer; the service manager is not told that the service lives");
        }
        tokio::time::sleep(third).await;
    }
}

/// A reply and the place where its answer arrives; an answer of `None` arrives as an error.
fn answer_channel() -> (Reply<()>, oneshot::Receiver<()>) {
    let (sender, receiver) = oneshot::channel();
    let reply = Reply::new(move |answer: Option<()>| {
        if answer.is_some() && sender.send(()).is_err() {
            tracing::debug!("an answer came after its time");
        }
    });
    (reply, receiver)
}

/// Says where the service listens, for commands that ask it where the system chose the port.
fn note_address(data_dir: &Path, address: SocketAddr) {
    let path = data_dir.join(ADDRESS_FILE);
    if let Err(error) = std::fs::write(&path, format!("{address}\n")) {
        tracing::warn!(%error, path = %path.display(), "can't write down where the service listens");
    }
}

fn make_data_dir(path: &Path) -> Result<(), Error> {
    // Only its owner may look into it: logs and payloads are the jobs' business.
    crash::before(Step::DataDir);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    crash::after(Step::DataDir);
    made.map_err(|source| Error::DataDir { path: path.to_owned(), source })
}

fn take_locks(config: &Config) -> Result<Vec<File>, Error> {
    let mut locks = vec![take_lock("this data directory", config.data_dir.join("service.lock"))?];
    if let DatabaseUrl::Sqlite(path) = &config.database_url {
        locks.push(take_lock("this database", database_lock(path))?);
    }
    Ok(locks)
}

/// The file that the one service of a SQLite database holds a lock on.
#[must_use]
pub fn database_lock(database: &Path) -> PathBuf {
    let mut name = database.file_name().unwrap_or_default().to_owned();
    name.push(".service-lock");
    database.with_file_name(name)
}

/// How long a lock is asked for: the helper of a service that was killed while it started that one has it until its exec.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Takes a lock that ends with this process, however it ends.
fn take_lock(what: &'static str, path: PathBuf) -> Result<File, Error> {
    crash::before(Step::ServiceLock);
    let open = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let mut file = open.map_err(|source| Error::Lock { path: path.clone(), source })?;
    let begun = std::time::Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(std::fs::TryLockError::WouldBlock) if begun.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(std::fs::TryLockError::WouldBlock) => return Err(Error::AlreadyRunning { what, path }),
            Err(std::fs::TryLockError::Error(source)) => return Err(Error::Lock { path, source }),
        }
    }
    crash::after(Step::ServiceLock);
    // For a person who wonders who holds it; the lock itself is what counts.
    let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    noted.map_err(|source| Error::Lock { path, source })?;
    Ok(file)
}

/// Flows that have open runs of this worker and stand in the configuration no longer.
async fn retired_flows(store: &Store, worker: &WorkerId, config: &Config) -> Result<Vec<Arc<FlowConfig>>, Error> {
    let open = store.open_jobs(worker, None).await?;
    let mut types: Vec<FlowType> = open.iter().filter_map(|job| job.job_type.parse().ok()).collect();
    types.sort();
    types.dedup();
    types.retain(|flow| !config.flows.contains_key(flow));
    for flow in &types {
        tracing::warn!(r#type = %flow, "a flow that is no longer configured has open runs; they are finished, and nothing new is started");
    }
    // Every value that nothing can tell any more is the product's default; the command is never started. Each is read by
    // itself, since two of them may differ only by case, which one configuration may not hold.
    let mut flows = Vec::new();
    for flow in types {
        let text = format!("[flows.{flow}]\ncommand = [\"true\"]\n");
        flows.extend(Config::parse(&text, Path::new("/"))?.flows.into_values());
    }
    Ok(flows)
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Refuses a worker's name under which a service with another data directory lives, and names the last start of one that is
/// gone.
async fn not_another_ones(
    store: &Store,
    worker: &WorkerId,
    config: &Config,
) -> Result<(Starts, Option<String>), Error> {
    let starts = Starts::of(&config.data_dir).map_err(|source| data_dir_error(&config.data_dir, source))?;
    if matches!(config.database_url, DatabaseUrl::Sqlite(_)) {
        // Its lock keeps every other service out.
        return Ok((starts, None));
    }
    let (now, workers) = (store.now().await?, store.workers().await?);
    match workers.into_iter().find(|row| row.worker_id == worker.as_str()) {
        Some(row) if starts.is_another(&row, now) => Err(Error::WorkerTaken {
            worker: worker.clone(),
            hostname: row.hostname,
            silent: humantime::format_duration(Duration::from_secs(now.since(row.heartbeat_time).as_secs()))
                .to_string(),
        }),
        Some(row) if starts.displaces(&row) => {
            tracing::warn!(worker_id = %worker, hostname = row.hostname, incarnation = row.incarnation, "this worker's name was another one's, whose open runs are left to it until their leases are over");
            Ok((starts, Some(row.incarnation)))
        }
        Some(_) | None => Ok((starts, None)),
    }
}

fn data_dir_error(data_dir: &Path, source: io::Error) -> Error {
    Error::DataDir { path: data_dir.to_owned(), source }
}

fn new_incarnation() -> Result<String, Error> {
    let mut incarnation = [0; 8];
    getrandom::fill(&mut incarnation)?;
    Ok(format!("{:016x}", u64::from_be_bytes(incarnation)))
}

async fn register<'a>(
    store: &Store,
    worker: &WorkerId,
    incarnation: String,
    displaces: Option<String>,
    address: Option<String>,
    labels: &Labels,
    flows: impl Iterator<Item = &'a FlowType>,
) -> Result<WorkerNote, Error> {
    let this = Worker {
        worker: worker.clone(),
        incarnation: incarnation.clone(),
        hostname: hostname(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: labels.clone(),
        displaces,
        address,
    };
    store.apply(&[Write::RegisterFlows(flows.cloned().collect()), Write::RegisterWorker(this)]).await?;
    Ok(WorkerNote { worker: worker.clone(), incarnation, state: WorkerState::Active })
}
