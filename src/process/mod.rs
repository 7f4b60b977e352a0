//! Runs: starting a command under a shim, hearing of it, and finding out later what became of it.
//!
//! A run, end to end. [`Processes::launch`] makes the run directory with a locked journal in it and sends the
//! spec, the journal and one end of a socket (the link) to the *zygote*, a helper process of the same build.
//! The zygote forks; its child is the run's *shim*, which starts the command, reads its output into files,
//! enforces its limits, ends whatever it leaves behind, and writes the verdict into the journal. The shim
//! needs no service: when the link breaks it goes on, and listens for a new one. [`Processes::inspect`] says
//! what has become of a run whose link is gone; the lock on the journal tells whether its shim lives.
//!
//! [`Processes::hold`] does the same ahead of the commit that the run depends on: the shim starts the command when it is
//! released, and never where the link breaks before.
#![cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "no command is started there"))]

mod error;
pub mod logs;
mod run_dir;
mod slots;
mod spare;
mod spec;
pub(crate) mod text;
pub mod upkeep;

#[cfg(target_os = "linux")]
mod arrival;
#[cfg(target_os = "linux")]
mod canceller;
#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod environment;
#[cfg(target_os = "linux")]
mod guard;
#[cfg(target_os = "linux")]
mod held;
#[cfg(target_os = "linux")]
mod helper;
#[cfg(target_os = "linux")]
mod launch;
#[cfg(target_os = "linux")]
mod link;
#[cfg(target_os = "linux")]
mod living;
#[cfg(target_os = "linux")]
mod lost;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod memory_dir;
#[cfg(target_os = "linux")]
mod notify;
#[cfg(target_os = "linux")]
mod oom;
#[cfg(target_os = "linux")]
mod output;
#[cfg(target_os = "linux")]
mod place;
#[cfg(target_os = "linux")]
mod rouse;
#[cfg(target_os = "linux")]
mod shim;
#[cfg(target_os = "linux")]
mod spawn;
#[cfg(target_os = "linux")]
mod tree;
#[cfg(target_os = "linux")]
mod zygote;

#[cfg(not(target_os = "linux"))]
#[path = "unsupported.rs"]
mod launch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use self::error::Error;
#[cfg(target_os = "linux")]
pub use self::held::HeldLaunch;
#[cfg(not(target_os = "linux"))]
pub use self::launch::HeldLaunch;
use self::launch::Launcher;
pub use self::slots::LastHolder;
pub use self::spec::{CancelSpec, CommandSpec, LeaseUntil};
use crate::domain::limits::Limits;
use crate::domain::run::Verdict;
use crate::domain::{Attempt, BootMark, FlowType, JobId, RunToken, Timestamp};

/// Keeps what the threads of a service allocate close together; to be called before there are any.
pub fn allocate_in_two_places() {
    #[cfg(target_os = "linux")]
    spawn::allocate_in_two_places();
}

/// Gives the system back what this process holds of memory and does not need while it is idle: what was freed, and the parts
/// of its program that only some work needs, which stay in the page cache. Blocks for a moment.
pub fn give_memory_back() {
    #[cfg(target_os = "linux")]
    memory::give_back();
}

/// Owns the runs directory and the zygote; one per service, cheap to clone.
#[derive(Clone, Debug)]
pub struct Processes {
    runs: PathBuf,
    launcher: Arc<Launcher>,
}

/// What is known about a run whose link is gone.
#[derive(Debug)]
pub enum Evidence {
    /// Its shim lives and has been adopted.
    Alive(RunLink),
    /// The command ended, and its shim wrote down how.
    Finished(Verdict),
    /// The command could not be started; the sentence says why.
    SpawnFailed(String),
    /// The command was certainly never started.
    NeverStarted,
    /// The command was started, or may have been, and nobody can say how it ended.
    Gone {
        /// Why nobody can say.
        reason: String,
    },
}

/// A run whose shim lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LivingRun {
    /// Which job's.
    pub job: JobId,
    /// Which attempt at it.
    pub attempt: Attempt,
    /// Its token.
    pub token: RunToken,
    /// Which flow's.
    pub flow: FlowType,
    /// The command's process id, once it has started.
    pub pid: Option<i32>,
}

/// A live connection to a run's shim; dropping `reports` lets go of the run, which goes on.
#[derive(Debug)]
pub struct RunLink {
    /// What the shim tells, in order; after `SpawnFailed`, `Ended` or `LinkLost` nothing follows.
    pub reports: mpsc::UnboundedReceiver<RunReport>,
    /// Asks the shim to end the run.
    pub control: RunControl,
}

/// What a shim tells about its run, or what keeps it from telling. An adopted link first repeats `Started` and the last `Progress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunReport {
    /// The exec succeeded.
    Started {
        /// The command's process id.
        pid: i32,
        /// When.
        started_time: Timestamp,
    },
    /// The command could not be started; the run is over.
    SpawnFailed {
        /// A sentence for a person.
        reason: String,
    },
    /// What the command last said about itself, both values each time.
    Progress {
        /// Per cent, 0 to 100; `None` where it never said.
        progress: Option<u8>,
        /// Safe to show, at most 1000 characters; `None` where it never said.
        status_message: Option<String>,
    },
    /// Processes of the run are still alive a minute after SIGKILL; the run is not over and the shim goes on trying.
    NotDying {
        /// Which ones, for a person.
        reason: String,
    },
    /// The shim does not answer, or has not ended the run as it was asked to; it is tried further.
    OutOfReach {
        /// What is the matter, for a person.
        reason: String,
    },
    /// The shim answers again.
    WithinReach,
    /// The shim will end its command then, unless it hears otherwise.
    Leased {
        /// By [`boottime`](crate::clock::boottime).
        until: Duration,
    },
    /// The run is over: nothing that it started is alive, and the verdict is on disk.
    Ended(Verdict),
    /// The shim is gone and left no verdict; the run is over as far as anybody can say.
    LinkLost {
        /// Why, for a person.
        reason: String,
    },
}

/// How much a run is wanted to end; it only ever rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopLevel {
    Run,
    Stop,
    StopNow,
}

/// What a shim is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) level: StopLevel,
    pub(crate) lease: WantedLease,
}

/// What a shim is to know about its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WantedLease {
    /// Nothing was said.
    AsItIs,
    /// It needs none.
    None,
    /// Until then.
    Until(LeaseUntil),
}

impl Wanted {
    const NOTHING: Self = Self { level: StopLevel::Run, lease: WantedLease::AsItIs };
}

/// Asks a run's shim to end the run; may be kept after the run has ended, and then does nothing.
#[derive(Clone, Debug)]
pub struct RunControl {
    wanted: watch::Sender<Wanted>,
}

impl RunControl {
    /// Asks for SIGTERM to the whole tree, then SIGKILL after the kill grace; asking again changes nothing.
    pub fn stop(&self) {
        self.raise(StopLevel::Stop);
    }

    /// Asks for SIGKILL to the whole tree at once.
    pub fn stop_now(&self) {
        self.raise(StopLevel::StopNow);
    }

    /// A control without a shim, and where its requests arrive: for fakes of this layer.
    #[cfg(test)]
    pub(crate) fn for_tests() -> (Self, watch::Receiver<Wanted>) {
        let (wanted, receiver) = watch::channel(Wanted::NOTHING);
        (Self { wanted }, receiver)
    }

    /// Has the shim end its command then, unless it hears otherwise; `None` where it may let it run. Acknowledged by
    /// [`RunReport::Leased`].
    pub fn lease(&self, lease: Option<LeaseUntil>) {
        self.wanted.send_modify(|wanted| wanted.lease = lease.map_or(WantedLease::None, WantedLease::Until));
    }

    fn raise(&self, to: StopLevel) {
        self.wanted.send_if_modified(|wanted| {
            let raised = wanted.level < to;
            wanted.level = to.max(wanted.level);
            raised
        });
    }
}

impl Processes {
    /// Opens `data_dir/runs`, making it where it is missing; the zygote is started by the first launch. Neither it nor any
    /// command gets the variables of the environment that `secrets` names.
    ///
    /// # Errors
    /// Where the directory can't be made, or is not a directory that belongs to this user.
    pub fn open(data_dir: &Path, secrets: Vec<String>) -> Result<Self, Error> {
        #[cfg(target_os = "linux")]
        let in_memory = memory_dir::open();
        #[cfg(not(target_os = "linux"))]
        let in_memory = None;
        Self::open_at(data_dir, zygote_programs(), secrets, in_memory)
    }

    /// From the next launch on, neither the zygote nor any command gets the variables that `secrets` names.
    pub fn keep_back(&self, secrets: Vec<String>) {
        self.launcher.keep_back(secrets);
    }

    /// As [`Self::open`], with the zygote started from this file and everything of a run in its directory: for tests, which
    /// are not the service's binary.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_exe(data_dir: &Path, executable: PathBuf) -> Result<Self, Error> {
        Self::open_at(data_dir, vec![executable], Vec::new(), None)
    }

    fn open_at(
        data_dir: &Path,
        programs: Vec<PathBuf>,
        secrets: Vec<String>,
        in_memory: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let runs = data_dir.join("runs");
        let absolute = std::path::absolute(&runs);
        let runs = absolute.map_err(|source| Error::RunsDirectory { path: runs, source })?;
        let launcher = Arc::new(Launcher::open(&runs, programs, secrets, in_memory)?);
        Ok(Self { runs, launcher })
    }

    /// Where a run's files are; see [`run_dir()`].
    #[must_use]
    pub fn run_dir(&self, job: JobId, attempt: Attempt, token: &RunToken) -> PathBuf {
        self.runs.join(run_dir_name(job, attempt, token))
    }

    /// Starts a run: makes its directory and hands it over to a new shim.
    ///
    /// A command that can't be started is reported over the link. Dropping the future does not undo a launch;
    /// ask [`Self::inspect`] then. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// Where the run was launched before, its files can't be written, or the zygote can't be started; the command
    /// was certainly not started then.
    pub async fn launch(&self, spec: CommandSpec) -> Result<RunLink, Error> {
        let run_dir = self.run_dir(spec.job, spec.attempt, &spec.token);
        self.launcher.launch(run_dir, spec).await
    }

    /// Has everything of a run ready but its command, which starts with [`HeldLaunch::release`], and never where this service
    /// dies first. Blocks. `None` where that fails; then nothing of it is left but what was there before, and [`Self::launch`] says why.
    #[must_use]
    pub fn hold(&self, spec: &CommandSpec) -> Option<HeldLaunch> {
        self.launcher.hold(self.run_dir(spec.job, spec.attempt, &spec.token), spec)
    }

    /// A run that was held and has been released, to whoever asks first: a run is [launched](Self::launch) where this has
    /// nothing. Needs a tokio runtime with I/O and time.
    #[must_use]
    pub fn released(&self, token: &RunToken) -> Option<RunLink> {
        self.launcher.released(token)
    }

    /// Finds out what has become of a run, and adopts its shim where that lives. Cancel safe.
    ///
    /// A shim listens for a new service as soon as it has lost the last one, so a run is adopted at once after a
    /// crash of its service; while another link to it is open, this waits a few seconds for it to be dropped.
    ///
    /// # Errors
    /// Where the run's files can't be read, are refused, or are of a newer release.
    pub async fn inspect(&self, job: JobId, attempt: Attempt, token: &RunToken) -> Result<Evidence, Error> {
        self.launcher.inspect(self.run_dir(job, attempt, token), token).await
    }

    /// Whether nothing of this run is alive any more; what is left of one without a shim is killed. Cancel safe.
    ///
    /// # Errors
    /// Where the run's files can't be read, or the processes of this machine can't be listed.
    pub async fn is_over(&self, job: JobId, attempt: Attempt, token: &RunToken) -> Result<bool, Error> {
        self.launcher.is_over(self.run_dir(job, attempt, token), token).await
    }

    /// Every run of this data directory whose shim lives.
    ///
    /// # Errors
    /// Where the processes of this machine can't be listed.
    pub async fn living(&self) -> Result<Vec<LivingRun>, Error> {
        #[cfg(target_os = "linux")]
        {
            let failed = |source| Error::RunFile { action: "list", path: "/proc".into(), source };
            let runs = self.runs.clone();
            // Every process is looked at.
            let living = tokio::task::spawn_blocking(move || living::living(&runs)).await;
            living.map_err(|error| failed(error.into()))?.map_err(failed)
        }
        #[cfg(not(target_os = "linux"))]
        Ok(Vec::new())
    }

    /// The runs that took slots last; whether they still hold them, [`Self::is_over`] tells.
    ///
    /// # Errors
    /// Where the directory that says so can't be read.
    pub fn last_holders(&self) -> Result<Vec<LastHolder>, Error> {
        let directory = self.runs.with_file_name(slots::DIRECTORY);
        slots::last_holders(&directory).map_err(|source| Error::RunFile { action: "read", path: directory, source })
    }

    /// Kills every process that still carries the run's token in its environment, and says how many there were.
    ///
    /// For runs that are [`Evidence::Gone`]: a killed shim's command dies with it, but what that had started may not.
    ///
    /// # Errors
    /// Where the processes of this machine can't be looked at, or one of the run's lives on, as where it runs as another user.
    pub async fn remove_leftovers(&self, token: &RunToken) -> Result<usize, Error> {
        self.launcher.remove_leftovers(token).await
    }

    /// Ends elsewhere what a run that is [`Evidence::Gone`] may have left there, by the spec's `cancel`, which gets its
    /// `kill_grace`. To be asked again where nobody knows whether it was done.
    ///
    /// # Errors
    /// A sentence for a person, to follow "its cancel_command".
    pub async fn clean_up(&self, spec: CommandSpec) -> Result<(), String> {
        self.launcher.clean_up(self.run_dir(spec.job, spec.attempt, &spec.token), spec).await
    }
}

impl Processes {
    /// How full the file system of the run directories is. Blocks for as long as it takes to answer.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn disk(&self) -> Result<Disk, Error> {
        let answer = rustix::fs::statvfs(&self.runs);
        let told = answer.map_err(|error| Error::RunsDirectory { path: self.runs.clone(), source: error.into() })?;
        // What is kept for root alone is no space for anybody else, so a full disk has none free.
        let free = if rustix::process::geteuid().is_root() { told.f_bfree } else { told.f_bavail };
        Ok(Disk { size: told.f_blocks * told.f_frsize, free: free * told.f_frsize })
    }
}

/// A file system's size and what is free of it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// All of it.
    pub size: u64,
    /// What this user may still use.
    pub free: u64,
}

/// The mark that claims of this boot of the machine carry in their run tokens.
#[must_use]
pub fn boot_mark() -> BootMark {
    #[cfg(target_os = "linux")]
    {
        static MARK: std::sync::LazyLock<BootMark> = std::sync::LazyLock::new(|| run_dir::mark_of(&run_dir::boot_id()));
        *MARK
    }
    // No command runs there, so none can be lost with a boot.
    #[cfg(not(target_os = "linux"))]
    BootMark([0; 4])
}

/// Whether this process could hold runs to these limits; changes nothing.
///
/// # Errors
/// A sentence for a person that says what is missing, and what to do.
pub fn check_limits(limits: Limits) -> Result<(), String> {
    if limits.is_unlimited() { Ok(()) } else { launch::check_limits(limits) }
}

/// Makes ready to hold runs to these limits: the service moves into a control group of its own. May be repeated.
///
/// # Errors
/// [`Error::Limits`] where that is not possible.
pub fn prepare_limits(limits: Limits) -> Result<(), Error> {
    if limits.is_unlimited() {
        return Ok(());
    }
    launch::prepare_limits(limits).map_err(|reason| Error::Limits { reason })
}

const ZYGOTE_NAME: &str = "callsheet-zygote";
const ZYGOTE_WORD: &str = "__zygote";

/// A program of its own that is nothing but the zygote, so that a fork of it is a fork of little.
const ZYGOTE_PROGRAM: &str = "callsheet-shim";

/// What the zygote may be started from: the small program where it is installed beside this one, or else this one.
fn zygote_programs() -> Vec<PathBuf> {
    // The running program itself, also after an upgrade has replaced its file.
    let this = PathBuf::from("/proc/self/exe");
    let small = std::env::current_exe().map(|file| file.with_file_name(ZYGOTE_PROGRAM));
    small.ok().filter(|file| file.is_file()).into_iter().chain([this]).collect()
}

/// Whether this process was delegated a control group, so that each run that it starts gets one of its own.
#[must_use]
pub fn has_control_groups() -> bool {
    #[cfg(target_os = "linux")]
    return cgroup::Site::of_this_process().and_then(|site| site.delegated()).is_some();
    #[cfg(not(target_os = "linux"))]
    false
}

/// Where the files of a run are, for those who only read them:
/// `data_dir/runs/{job}-{attempt}-{first 8 digits of the token}`.
#[must_use]
pub fn run_dir(data_dir: &Path, job: JobId, attempt: Attempt, token: &RunToken) -> PathBuf {
    data_dir.join("runs").join(run_dir_name(job, attempt, token))
}

fn run_dir_name(job: JobId, attempt: Attempt, token: &RunToken) -> String {
    format!("{job}-{attempt}-{:.8}", token.as_str())
}

/// Whether this process was started to be the zygote; to be asked before anything else in `main`.
#[must_use]
pub fn is_zygote_invocation() -> bool {
    let mut arguments = std::env::args_os();
    arguments.next().is_some_and(|name| name == ZYGOTE_NAME) && arguments.next().is_some_and(|word| word == ZYGOTE_WORD)
}

/// Runs the zygote until its service is gone; the process must have one thread.
#[must_use]
pub fn run_zygote() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return zygote::serve();
    #[cfg(not(target_os = "linux"))]
    std::process::ExitCode::FAILURE
}
