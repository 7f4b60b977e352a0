//! The service's side: ordering runs from the zygote, and following their shims.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
    sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::held::{Held, HeldLaunch};
use super::helper::{Waiting, Zygote, hand_over, packet_sockets};
use super::link::{CancelOrder, LARGEST_ORDER, LARGEST_REPORT, LeaseOrder, Order, ToService, ToShim};
use super::run_dir::{self, Ended, FORMAT, Look, Record, SpecRecord};
use super::shim::CONTROL_SOCKET;
use super::slots::{self, LastHolder};
use super::spare::Spare;
use super::{
    CancelSpec, CommandSpec, Error, Evidence, LeaseUntil, RunControl, RunLink, RunReport, StopLevel, Wanted,
    WantedLease,
};
use super::{cgroup, lost, memory_dir, place, rouse, spawn, tree};
use crate::crash::{self, Step};
use crate::domain::limits::Limits;
use crate::domain::run::Timeout;
use crate::domain::{RunToken, Timestamp};

/// How long a shim that has lost its service may take until it listens for a new one. What takes longer is told to people.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(5);
/// A shim says something over a new link at once; for one that was ordered, the zygote has to take the order first. Who takes longer
/// may stand still, and so may a shim that has not ended its run so long after it was asked to.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
const NO_ANSWER: &str = "neither its shim nor the helper that starts runs has answered for 10 s";
const NOT_LISTENING: &str =
    "its shim does not listen for a service: it has no room in the data directory, no descriptor, or stands still";
/// So many looks at run directories are taken at once.
const LOOKS: usize = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// The link of a run that was released is kept so long for an owner.
const UNCLAIMED_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Launcher {
    /// The runs directory, by the path that it is known by to everybody.
    runs: PathBuf,
    /// Programs that a zygote can be started from, the best one first.
    programs: Vec<PathBuf>,
    /// Variables of the environment that no command may see.
    secrets: Mutex<Vec<String>>,
    boot_id: String,
    /// See [`memory_dir`].
    in_memory: Option<PathBuf>,
    zygote: Mutex<Option<Zygote>>,
    waiting: Mutex<Waiting>,
    /// For the run that is ordered next.
    spare: Mutex<Option<Spare>>,
    /// Runs that were held and have been let go, until their owner takes them.
    released: Mutex<HashMap<RunToken, (Instant, Held)>>,
    looks: Semaphore,
}

/// A run on its way to the zygote, or refused on the way.
enum Launched {
    Ordered { link: OwnedFd },
    Refused { reason: String },
}

impl Launcher {
    /// Makes the runs directory where it is missing; the zygote will be started from the first of `programs` that can be one.
    pub(super) fn open(
        runs: &Path,
        programs: Vec<PathBuf>,
        secrets: Vec<String>,
        in_memory: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let failed = |source| Error::RunsDirectory { path: runs.to_owned(), source };
        place::make_runs(runs).map_err(failed)?;
        let found = runs.symlink_metadata().map_err(failed)?;
        run_dir::refuse_foreign(runs, &found)?;
        if found.permissions().mode() & 0o022 != 0 {
            // Whoever can rename a run's directory could make it look as if it had never started.
            return Err(Error::Refused { path: runs.to_owned(), problem: "others than its owner may write to it" });
        }
        let runs = runs.canonicalize().map_err(failed)?;
        let (secrets, zygote) = (Mutex::new(secrets), Mutex::new(None));
        let (waiting, spare, released) = (Mutex::default(), Mutex::default(), Mutex::default());
        let looks = Semaphore::new(LOOKS);
        let boot_id = run_dir::boot_id();
        Ok(Self { runs, programs, secrets, boot_id, in_memory, zygote, waiting, spare, released, looks })
    }

    /// Keeps these variables back from now on: a zygote that was started with others goes, and the next run has another.
    pub(super) fn keep_back(&self, secrets: Vec<String>) {
        let mut zygote = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != secrets {
            *known = secrets;
            *zygote = None;
            self.waiting().forget();
        }
    }

    pub(super) async fn launch(self: &Arc<Self>, run_dir: PathBuf, spec: CommandSpec) -> Result<RunLink, Error> {
        let (launcher, token, directory) = (Arc::clone(self), spec.token.clone(), run_dir.clone());
        // Before the order, which may get a shim of a later generation, but of no earlier one.
        let (generation, kill_grace) = (self.waiting().generation, spec.kill_grace);
        let launched = tokio::task::spawn_blocking(move || launcher.order(&directory, &spec, false)).await;
        let launched = launched.map_err(|error| Error::Zygote { action: "reached", source: error.into() })??;
        self.make_spare_later(&run_dir);
        Ok(match launched {
            Launched::Ordered { link } => self.follow(run_dir, token, Some(link), generation, kill_grace, None),
            Launched::Refused { reason } => {
                let (reports, receiver) = mpsc::unbounded_channel();
                // The receiver is right here, so this can't fail.
                let _ = reports.send(RunReport::SpawnFailed { reason });
                RunLink { reports: receiver, control: RunControl { wanted: watch::Sender::new(Wanted::NOTHING) } }
            }
        })
    }

    /// Has everything of a run ready but the start of its command. Blocks.
    ///
    /// `None` where that fails, upon which nothing of it is left and it can be launched like any other.
    pub(super) fn hold(self: &Arc<Self>, run_dir: PathBuf, spec: &CommandSpec) -> Option<HeldLaunch> {
        let generation = self.waiting().generation;
        let (leased, kill_grace) = (spec.lease.map(|lease| lease.until), spec.kill_grace);
        match self.order(&run_dir, spec, true) {
            Ok(Launched::Ordered { link }) => {
                let held = Held { run_dir, link, generation, leased, kill_grace };
                Some(HeldLaunch::new(Arc::clone(self), spec.token.clone(), held))
            }
            Ok(Launched::Refused { .. }) => {
                let _ = std::fs::remove_dir_all(&run_dir);
                None
            }
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "a run can't be got ready ahead of its claim"
                );
                None
            }
        }
    }

    /// Follows a run that was held and has been let go, where nobody does yet.
    pub(super) fn released(self: &Arc<Self>, token: &RunToken) -> Option<RunLink> {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
        released.map(|(_, Held { run_dir, link, generation, leased, kill_grace })| {
            self.make_spare_later(&run_dir);
            // Its shim says so only where it has had another link before.
            let first = leased.map(|until| RunReport::Leased { until });
            self.follow(run_dir, token.clone(), Some(link), generation, kill_grace, first)
        })
    }

    /// Has the run's command started; from now on it is there for whoever asks for it.
    pub(super) fn release(&self, token: RunToken, run: Held) {
        if run.generation != self.waiting().generation {
            return run.give_up_later();
        }
        let mut released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        // The shim of one that nobody has come for listens for another service, and is found by that.
        released.retain(|_, (since, _)| since.elapsed() < UNCLAIMED_AFTER);
        run.tell();
        released.insert(token, (Instant::now(), run));
    }

    fn make_spare_later(self: &Arc<Self>, run_dir: &Path) {
        if let Some(runs) = run_dir.parent().map(Path::to_owned) {
            let launcher = Arc::clone(self);
            tokio::task::spawn_blocking(move || launcher.make_spare(&runs));
        }
    }

    /// Everything of a launch that may block.
    fn order(&self, run_dir: &Path, spec: &CommandSpec, held: bool) -> Result<Launched, Error> {
        let spare = self.spare().take();
        let mut journal = run_dir::create(run_dir, &self.spec_record(spec), spec.payload.as_deref(), spare)?;
        if let Some(slot) = spec.slot.clone() {
            let holder = LastHolder { slot, job: spec.job, attempt: spec.attempt, token: spec.token.clone() };
            let directory = run_dir.parent().unwrap_or(run_dir).with_file_name(slots::DIRECTORY);
            if let Err(source) = slots::take(&directory, &holder) {
                // Nobody has been told of the run.
                let _ = std::fs::remove_dir_all(run_dir);
                return Err(Error::RunFile { action: "write", path: directory, source });
            }
        }
        let order = Order {
            token: spec.token.as_str().to_owned(),
            run_dir: run_dir.into(),
            argv: spec.argv.clone(),
            cancel: spec.cancel.clone().map(|CancelSpec { term, kill }| CancelOrder { term, kill }),
            working_dir: spec.working_dir.clone().map(Into::into),
            env: spec.added_environment(run_dir),
            time_limit_ms: millis(spec.time_limit),
            schedule_to_close: spec.time_limit_is == Timeout::ScheduleToClose,
            watchdog_ms: spec.watchdog.map(millis),
            silence_timeout_ms: spec.silence_timeout.map(millis),
            kill_grace_ms: millis(spec.kill_grace),
            start_by_ms: millis(spec.start_by),
            lease: spec.lease.map(lease_order),
            output_limit: spec.output_limit,
            memory_limit: spec.limits.memory,
            cpu_millis: spec.limits.cpu_millis,
            pids_limit: spec.limits.pids,
            boot_id: self.boot_id.clone(),
            in_memory: self.in_memory.clone().map(Into::into),
            held,
        };
        let sent =
            serde_json::to_vec(&order).map_err(|error| SendError::Zygote(started(error.into()))).and_then(|order| {
                let link = self.send(&order, journal.descriptor())?;
                Ok(Launched::Ordered { link })
            });
        match sent {
            Ok(launched) => Ok(launched),
            Err(SendError::TooLong) => {
                let reason = "its arguments and environment are too long".to_owned();
                let record = Record::SpawnFailed { reason: reason.clone() };
                // Without it the run is found never to have started, which is as true.
                let _ = journal.append(&record);
                Ok(Launched::Refused { reason })
            }
            Err(SendError::Zygote(error)) => {
                // Nobody else has it: the order was not taken.
                let _ = std::fs::remove_dir_all(run_dir);
                Err(error)
            }
        }
    }

    fn spec_record(&self, spec: &CommandSpec) -> SpecRecord {
        SpecRecord {
            version: FORMAT,
            job: spec.job.0,
            attempt: spec.attempt.0,
            token: spec.token.as_str().to_owned(),
            flow: spec.flow.as_str().to_owned(),
            worker: spec.worker.as_str().to_owned(),
            boot_id: self.boot_id.clone(),
            created_ms: crate::clock::now().unix_millis(),
            time_limit_ms: millis(spec.time_limit),
            kill_grace_ms: millis(spec.kill_grace),
            output_limit: spec.output_limit,
        }
    }

    fn spare(&self) -> MutexGuard<'_, Option<Spare>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a directory for the next run, while nobody waits for it.
    fn make_spare(&self, runs: &Path) {
        if self.spare().is_some() {
            return;
        }
        // Where it can't be made, the next run tells why it can't be either.
        if let Ok(new) = Spare::make(runs) {
            // Another may have come first; the one that is too many is removed without the lock.
            let surplus = self.spare().replace(new);
            drop(surplus);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an order over to a shim that waits for one or else to the zygote, starting one where there is none, and returns
    /// our end of the link.
    fn send(&self, order: &[u8], journal: &File) -> Result<OwnedFd, SendError> {
        if order.len() > LARGEST_ORDER {
            return Err(SendError::TooLong);
        }
        let reached = |error: Errno| SendError::Zygote(Error::Zygote { action: "reached", source: error.into() });
        let (ours, theirs) = packet_sockets().map_err(reached)?;
        loop {
            // A statement of its own, so that the lock is not held while sending.
            let waiting = self.waiting().take();
            let Some(shim) = waiting else { break };
            if hand_over(&shim, order, journal, &theirs, SendFlags::DONTWAIT).is_ok() {
                return Ok(ours);
            }
        }
        let mut zygote = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        let mut repeated = false;
        loop {
            let live = match zygote.as_mut() {
                Some(live) => live,
                None => {
                    let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
                    let live = Zygote::start(&self.programs, &secrets, &self.runs);
                    zygote.insert(live.map_err(|error| SendError::Zygote(started(error)))?)
                }
            };
            match live.send(order, journal, &theirs) {
                Ok(()) => return Ok(ours),
                Err(Errno::MSGSIZE) => return Err(SendError::TooLong),
                Err(error) => {
                    *zygote = None;
                    if std::mem::replace(&mut repeated, true) {
                        return Err(reached(error));
                    }
                }
            }
        }
    }

    pub(super) async fn inspect(self: &Arc<Self>, run_dir: PathBuf, token: &RunToken) -> Result<Evidence, Error> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(link) = self.released(token) {
                return Ok(Evidence::Alive(link));
            }
            let (look, link) = match self.look(&run_dir, token).await {
                // It will not get better by itself, and nothing in there can be believed.
                Err(error @ Error::Refused { .. }) => return Ok(Evidence::Gone { reason: error.to_string() }),
                found => found?,
            };
            match look {
                Look::Missing => return Ok(run_dir::without_a_word(token, &self.boot_id).into()),
                Look::Free(ended) => return Ok(ended.into()),
                Look::Held(history) => {
                    if let Some(verdict) = history.verdict {
                        return Ok(Evidence::Finished(verdict.into()));
                    }
                    if link.is_some() || begun.elapsed() >= ADOPTION_PATIENCE {
                        let first = link.is_none().then(|| RunReport::OutOfReach { reason: NOT_LISTENING.to_owned() });
                        let kill_grace = history.spec.map_or(0, |spec| spec.kill_grace_ms);
                        let kill_grace = Duration::from_millis(kill_grace);
                        // One that was found waits for nothing when its run is over.
                        return Ok(Evidence::Alive(self.follow(run_dir, token.clone(), link, 0, kill_grace, first)));
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Without adopting its shim.
    pub(super) async fn is_over(self: &Arc<Self>, run_dir: PathBuf, token: &RunToken) -> Result<bool, Error> {
        let cant_read = |source: io::Error| Error::RunFile { action: "read", path: run_dir.clone(), source };
        let turn = self.looks.acquire().await.map_err(|closed| cant_read(io::Error::other(closed)))?;
        let (launcher, directory, of) = (Arc::clone(self), run_dir.clone(), token.clone());
        let looked = tokio::task::spawn_blocking(move || run_dir::look(&directory, &of, &launcher.boot_id)).await;
        drop(turn);
        match looked.map_err(|error| cant_read(error.into()))? {
            Ok(Look::Held(history)) => Ok(history.verdict.is_some()),
            Ok(Look::Free(Ended::Finished(_) | Ended::SpawnFailed(_))) => Ok(true),
            Ok(Look::Missing | Look::Free(Ended::NeverStarted | Ended::Gone { .. })) | Err(Error::Refused { .. }) => {
                Ok(self.remove_leftovers(token).await? == 0)
            }
            Err(error) => Err(error),
        }
    }

    /// Looks into a run's directory and, where its shim holds it and has not told how the run ended, connects to the shim.
    ///
    /// On a thread that may wait for the disk. On a disk that hangs, no more of them wait than may look at once.
    async fn look(self: &Arc<Self>, run_dir: &Path, token: &RunToken) -> Result<(Look, Option<OwnedFd>), Error> {
        let cant_read = |source: io::Error| Error::RunFile { action: "read", path: run_dir.to_owned(), source };
        let _turn = self.looks.acquire().await.map_err(|closed| cant_read(io::Error::other(closed)))?;
        let (launcher, run_dir, token) = (Arc::clone(self), run_dir.to_owned(), token.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let look = run_dir::look(&run_dir, &token, &launcher.boot_id)?;
            let asks = matches!(&look, Look::Held(history) if history.verdict.is_none());
            let link = if asks { connect_to_shim(&run_dir).ok() } else { None };
            Ok((look, link))
        });
        looked.await.map_err(|error| cant_read(error.into()))?
    }

    /// Has whoever the run waits for, and stands still, go on or go: its shim is woken, and where none has begun with it, the helpers
    /// that may have its order are killed.
    async fn rouse(self: Arc<Self>, run_dir: PathBuf, token: RunToken) {
        let Ok(_turn) = self.looks.acquire().await else { return };
        let launcher = Arc::clone(&self);
        let roused = tokio::task::spawn_blocking(move || {
            // Where it can't be looked into now, this is done again.
            let Ok(Look::Held(history)) = run_dir::look(&run_dir, &token, &launcher.boot_id) else { return };
            match &history.starting {
                Some(shim) if rouse::wake(shim) => {
                    tracing::warn!(run_token = %token, pid = shim.shim_pid, "a run's shim stood still (SIGSTOP) and was woken");
                }
                Some(_) => {}
                None => {
                    for pid in rouse::end_idle(&launcher.runs) {
                        tracing::warn!(
                            pid,
                            "a helper that starts runs stood still (SIGSTOP) and was killed; what it had not started is started by another"
                        );
                    }
                }
            }
        });
        if let Err(failure) = roused.await {
            tracing::error!(%failure, "what was to rouse a run panicked");
        }
    }

    pub(super) async fn remove_leftovers(&self, token: &RunToken) -> Result<usize, Error> {
        let failed = |source| Error::Leftovers { source };
        let (token, in_memory) = (token.clone(), self.in_memory.clone());
        let removed = tokio::task::spawn_blocking(move || {
            crash::before(Step::Sweep);
            let removed = tree::kill_marked(&token);
            cgroup::remove_of(token.as_str());
            if let Some(in_memory) = in_memory {
                memory_dir::remove(&in_memory, &token);
            }
            crash::after(Step::Sweep);
            removed
        });
        removed.await.map_err(|error| failed(error.into()))?.map_err(failed)
    }

    pub(super) async fn clean_up(&self, run_dir: PathBuf, spec: CommandSpec) -> Result<(), String> {
        let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (told, answer) = oneshot::channel();
        // A thread of its own: a service that stops would wait for a blocking task of its runtime, for all of its time.
        let clean_up = move || drop(told.send(lost::clean_up(&spec, &run_dir, &secrets)));
        let started = std::thread::Builder::new().name("lost run".to_owned()).spawn(clean_up);
        started.map_err(|error| format!("can't be run: {error}"))?;
        answer.await.unwrap_or_else(|_| Err("can't be run: its thread ended".to_owned()))
    }

    fn follow(
        self: &Arc<Self>,
        run_dir: PathBuf,
        token: RunToken,
        link: Option<OwnedFd>,
        generation: u64,
        kill_grace: Duration,
        first: Option<RunReport>,
    ) -> RunLink {
        let (reports, receiver) = mpsc::unbounded_channel();
        let within_reach = !matches!(first, Some(RunReport::OutOfReach { .. }));
        if let Some(first) = first {
            // The receiver is right here, so this can't fail.
            let _ = reports.send(first);
        }
        let sender = watch::Sender::new(Wanted::NOTHING);
        let wanted = sender.subscribe();
        let launcher = Arc::clone(self);
        let follower = Follower {
            launcher,
            run_dir,
            token,
            reports,
            wanted,
            started: false,
            within_reach,
            ending: Ending::default(),
            kill_grace,
            generation,
        };
        tokio::spawn(follower.run(link));
        RunLink { reports: receiver, control: RunControl { wanted: sender } }
    }
}

fn site() -> Result<cgroup::Site, String> {
    cgroup::Site::of_this_process().ok_or_else(|| "there is no version 2 tree of control groups".to_owned())
}

pub(super) fn check_limits(limits: Limits) -> Result<(), String> {
    site()?.check(limits)
}

pub(super) fn prepare_limits(limits: Limits) -> Result<(), String> {
    site()?.prepare(limits)
}

fn started(source: io::Error) -> Error {
    Error::Zygote { action: "started", source }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

enum SendError {
    TooLong,
    Zygote(Error),
}

/// Connects to a shim that has lost its service.
fn connect_to_shim(run_dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(run_dir, flags | OFlags::DIRECTORY, Mode::empty())?;
    // The very file rather than its name, so that a link planted there leads nowhere.
    let control = rustix::fs::openat(&directory, CONTROL_SOCKET, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&control)?.st_mode) != FileType::Socket {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    crash::before(Step::Adoption);
    connect(&socket, &SocketAddrUnix::new(spawn::path_of(&control))?)?;
    crash::after(Step::Adoption);
    if sockopt::socket_peercred(&socket)?.uid != rustix::process::geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(socket)
}

impl From<Ended> for Evidence {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Finished(verdict) => Self::Finished(verdict),
            Ended::SpawnFailed(reason) => Self::SpawnFailed(reason),
            Ended::NeverStarted => Self::NeverStarted,
            Ended::Gone { reason } => Self::Gone { reason },
        }
    }
}

impl From<Ended> for RunReport {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Finished(verdict) => Self::Ended(verdict),
            Ended::SpawnFailed(reason) => Self::SpawnFailed { reason },
            Ended::NeverStarted => {
                Self::LinkLost { reason: "its shim ended before it had started the command".to_owned() }
            }
            Ended::Gone { reason } => Self::LinkLost { reason },
        }
    }
}

/// Follows one shim until its run is over or nobody wants to know any more.
struct Follower {
    launcher: Arc<Launcher>,
    run_dir: PathBuf,
    token: RunToken,
    reports: mpsc::UnboundedSender<RunReport>,
    wanted: watch::Receiver<Wanted>,
    /// Whether `Started` was reported: a shim repeats it to every new connection.
    started: bool,
    /// What was reported last of that; at first it is not said.
    within_reach: bool,
    ending: Ending,
    kill_grace: Duration,
    /// See [`Waiting`].
    generation: u64,
}

/// What has become of the wish that a run ends.
#[derive(Default)]
struct Ending {
    asked: Option<Instant>,
    /// When to look (again) whether its shim stands still.
    due: Option<Instant>,
    told: bool,
}

impl Ending {
    fn is_wanted(&mut self, level: StopLevel) {
        if level != StopLevel::Run && self.asked.is_none() {
            let now = Instant::now();
            (self.asked, self.due) = (Some(now), Some(now + ANSWER_PATIENCE));
        }
    }

    /// What people are told where it takes longer than it may: `kill_grace` for the command and as long for its `cancel_command`.
    fn look(&mut self, now: Instant, kill_grace: Duration) -> Option<String> {
        self.due = Some(now + ANSWER_PATIENCE);
        let since = now.saturating_duration_since(self.asked?);
        // Once, and not before it is late.
        let is_late = since >= 2 * (kill_grace + ANSWER_PATIENCE) && !std::mem::replace(&mut self.told, true);
        is_late.then(|| format!("it was asked to end {} s ago and has not", since.as_secs()))
    }
}

/// Whether there is more to come of a run.
enum Goes {
    On,
    Over,
    /// It is over, and its shim waits for another order.
    OverAndWaits,
}

impl Follower {
    async fn run(mut self, mut link: Option<OwnedFd>) {
        loop {
            let link = match link.take() {
                Some(link) => link,
                None => match self.find_link().await {
                    Some(link) => link,
                    None => return,
                },
            };
            match registered(link) {
                Ok(link) => match self.listen(&link).await {
                    Goes::On => {}
                    Goes::Over => return,
                    Goes::OverAndWaits => return self.launcher.waiting().keep(link.into_inner(), self.generation),
                },
                // Out of memory or descriptors: as good as a lost connection.
                Err(_) => tokio::time::sleep(LONGEST_PAUSE).await,
            }
        }
    }

    /// Passes on what the shim says, and to the shim what is wanted, until the connection or the run is over.
    async fn listen(&mut self, link: &AsyncFd<OwnedFd>) -> Goes {
        let mut may_change = true;
        let wanted = *self.wanted.borrow_and_update();
        ask(link.get_ref(), wanted);
        let mut answer_by = Some(Instant::now() + ANSWER_PATIENCE);
        loop {
            self.ending.is_wanted(self.wanted.borrow().level);
            let due = answer_by.into_iter().chain(self.ending.due).min();
            tokio::select! {
                biased;
                // First: who wanted something and has gone since, as a service that stops, is to have it.
                changed = self.wanted.changed(), if may_change => {
                    may_change = changed.is_ok();
                    let wanted = *self.wanted.borrow_and_update();
                    ask(link.get_ref(), wanted);
                }
                () = self.reports.closed() => return Goes::Over,
                ready = link.readable() => {
                    let Ok(mut ready) = ready else { return Goes::On };
                    match ready.try_io(|link| receive(link.get_ref(), RecvFlags::DONTWAIT)) {
                        Err(_would_block) => {}
                        Ok(Ok(Some(message))) => {
                            answer_by = None;
                            self.is_within_reach();
                            match self.pass_on(message) {
                                Goes::On => {}
                                over => return over,
                            }
                        }
                        Ok(Ok(None) | Err(_)) => return Goes::On,
                    }
                }
                // Last: after it has stood still itself, the service hears first what was said meanwhile.
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let now = Instant::now();
                    if answer_by.is_some_and(|by| now >= by) {
                        answer_by = Some(now + ANSWER_PATIENCE);
                        self.is_out_of_reach(NO_ANSWER);
                        self.rouse();
                    }
                    if self.ending.due.is_some_and(|due| now >= due) {
                        if let Some(reason) = self.ending.look(now, self.kill_grace) {
                            self.report(RunReport::OutOfReach { reason });
                        }
                        self.rouse();
                    }
                }
            }
        }
    }

    fn pass_on(&mut self, message: ToService) -> Goes {
        let (report, goes) = match message {
            ToService::Started { pid, time_ms } => {
                if std::mem::replace(&mut self.started, true) {
                    return Goes::On;
                }
                let started_time = Timestamp::from_unix_millis(time_ms);
                (RunReport::Started { pid, started_time }, Goes::On)
            }
            ToService::Progress { progress, status_message } => {
                (RunReport::Progress { progress, status_message }, Goes::On)
            }
            ToService::NotDying { reason } => (RunReport::NotDying { reason }, Goes::On),
            ToService::Leased { until_ms } => (RunReport::Leased { until: Duration::from_millis(until_ms) }, Goes::On),
            ToService::SpawnFailed { reason } => (RunReport::SpawnFailed { reason }, Goes::Over),
            ToService::Ended(verdict) => (RunReport::Ended(verdict.into()), Goes::Over),
            ToService::EndedAndWaits(verdict) => (RunReport::Ended(verdict.into()), Goes::OverAndWaits),
            ToService::Replaced => {
                (RunReport::LinkLost { reason: "another service has taken the run over".to_owned() }, Goes::Over)
            }
        };
        self.report(report);
        goes
    }

    fn is_within_reach(&mut self) {
        if !std::mem::replace(&mut self.within_reach, true) {
            self.report(RunReport::WithinReach);
        }
    }

    fn is_out_of_reach(&mut self, reason: &str) {
        if std::mem::replace(&mut self.within_reach, false) {
            self.report(RunReport::OutOfReach { reason: reason.to_owned() });
        }
    }

    /// In a task of its own: a disk may hang.
    fn rouse(&self) {
        tokio::spawn(Arc::clone(&self.launcher).rouse(self.run_dir.clone(), self.token.clone()));
    }

    /// Nobody may be listening any more, which is noticed where this task waits.
    fn report(&self, report: RunReport) {
        let _ = self.reports.send(report);
    }

    /// Finds the shim again, or out what has become of it, which is then reported; `None` when the run is over.
    async fn find_link(&mut self) -> Option<OwnedFd> {
        let (mut pause, mut rouse_at) = (FIRST_PAUSE, Instant::now());
        if self.within_reach {
            rouse_at += ADOPTION_PATIENCE;
        }
        let mut given_up = None;
        loop {
            match self.launcher.look(&self.run_dir, &self.token).await {
                Ok((Look::Missing, _)) => {
                    self.report(RunReport::LinkLost { reason: "its run directory is gone".to_owned() });
                    return None;
                }
                Ok((Look::Free(ended), _)) => {
                    self.report(ended.into());
                    return None;
                }
                Ok((Look::Held(history), link)) => {
                    if let Some(verdict) = history.verdict {
                        self.report(RunReport::Ended(verdict.into()));
                        return None;
                    }
                    if link.is_some() {
                        return link;
                    }
                    let now = Instant::now();
                    if now >= rouse_at {
                        self.is_out_of_reach(NOT_LISTENING);
                        self.rouse();
                        rouse_at = now + ANSWER_PATIENCE;
                    }
                }
                Err(error @ (Error::Refused { .. } | Error::NewerFormat { .. })) => {
                    self.report(RunReport::LinkLost { reason: error.to_string() });
                    return None;
                }
                // Out of descriptors, or a disk that fails: the run may well live, so this goes on asking.
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "can't look after a run");
                }
            }
            tokio::select! {
                () = self.reports.closed(), if given_up.is_none() => {
                    if *self.wanted.borrow() == Wanted::NOTHING {
                        return None;
                    }
                    // Who wanted something and has gone since, as a service that stops, is to have it where there soon is a link.
                    given_up = Some(Instant::now() + ADOPTION_PATIENCE);
                }
                () = tokio::time::sleep(pause) => {}
            }
            if given_up.is_some_and(|at| Instant::now() >= at) {
                return None;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The link as the runtime waits for it.
#[expect(unsafe_code, reason = "tokio leaves it to the caller that the descriptor stays the same")]
fn registered(link: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor, the same one from here until it is dropped with the `AsyncFd`.
    Ok(unsafe { AsyncFd::register_with_interest(link, Interest::READABLE) }?)
}

/// Tells the shim what is wanted; a shim that is gone is noticed by whoever reads.
fn ask(link: &OwnedFd, wanted: Wanted) {
    let lease = match wanted.lease {
        WantedLease::AsItIs => None,
        WantedLease::None => Some(ToShim::Lease(None)),
        WantedLease::Until(lease) => Some(ToShim::Lease(Some(lease_order(lease)))),
    };
    let stop = match wanted.level {
        StopLevel::Run => None,
        StopLevel::Stop => Some(ToShim::Stop),
        StopLevel::StopNow => Some(ToShim::StopNow),
    };
    for message in stop.into_iter().chain(lease) {
        tell(link, message);
    }
}

/// Sends without ever waiting; tells whether it was sent.
pub(super) fn tell(link: &OwnedFd, message: ToShim) -> bool {
    let packet = serde_json::to_vec(&message).ok();
    packet.is_some_and(|packet| send(link, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok())
}

fn lease_order(lease: LeaseUntil) -> LeaseOrder {
    LeaseOrder { until_ms: millis(lease.until), timeout_ms: millis(lease.timeout) }
}

/// The next message that is understood; `None` where the other end is closed.
pub(super) fn receive(link: &OwnedFd, how: RecvFlags) -> io::Result<Option<ToService>> {
    // Here rather than in the task, whose memory lasts as long as the run.
    let mut packet = [0_u8; LARGEST_REPORT];
    let mut reset = false;
    loop {
        match recv(link, &mut packet, how) {
            Ok((0, _)) => return Ok(None),
            Ok((length, _)) => {
                if let Some(message) = packet.get(..length).and_then(|packet| serde_json::from_slice(packet).ok()) {
                    return Ok(Some(message));
                }
            }
            Err(Errno::INTR) => {}
            // The shim ended with a request of ours unread; what it had said before is still there.
            Err(Errno::CONNRESET) if !std::mem::replace(&mut reset, true) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
