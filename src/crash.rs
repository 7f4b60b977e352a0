//! Crash points: places with a name at which a test has the running process die, as if the OOM killer had struck there.
//!
//! Every step whose effect outlives a process has one before and one after it. `CALLSHEET_CRASH_AT` names the points,
//! separated by commas: `before-NAME` or `after-NAME`, with `:N` for the N-th pass only. A process kills itself with
//! SIGKILL at a point that is named; with `CALLSHEET_CRASH_MARKS=DIR` only the first of all processes that come there
//! does, and leaves a file of the point's name. `CALLSHEET_HANG_AT` has it wait instead, as on a disk that hangs, for ever or
//! as long as the file that `CALLSHEET_HANG_WHILE` names exists.
//!
//! Debug builds have them, and builds with the feature `crash-points`; a release binary has none.

use rustix::process::Pid;

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $step:ident = $name:literal,)+) => {
        /// A step whose effect outlives the process that takes it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Step {
            $($(#[doc = $doc])+ $step,)+
        }

        impl Step {
            /// Every step, in the order of a run's life.
            pub const ALL: &'static [Self] = &[$(Self::$step),+];

            /// The step's name, as in `CALLSHEET_CRASH_AT`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name,)+
                }
            }
        }
    };
}

steps! {
    /// `enqueue` commits.
    EnqueueCommit = "enqueue-commit",
    /// A cancel request is committed.
    CancelCommit = "cancel-commit",
    /// A retry by hand is committed.
    RetryCommit = "retry-commit",
    /// A pause or its end is committed.
    PauseCommit = "pause-commit",
    /// A request to drain is committed.
    DrainCommit = "drain-commit",
    /// Jobs that are old enough are removed.
    PruneCommit = "prune-commit",
    /// A deed that changes no other table is committed.
    DeedCommit = "deed-commit",
    /// A sign-in or its end is committed.
    SessionCommit = "session-commit",
    /// A delivery that is to be sent again by hand is committed.
    AgainCommit = "again-commit",
    /// A run directory gets the name under which it is removed.
    DirectoryAside = "directory-aside",
    /// A run directory is removed.
    DirectoryRemoval = "directory-removal",

    /// The data directory is made.
    DataDir = "data-dir",
    /// The file of a service's lock is made and locked.
    ServiceLock = "service-lock",
    /// The worker's id is written beside its place.
    WorkerIdDraft = "worker-id-draft",
    /// The worker's id is linked into its place.
    WorkerIdLink = "worker-id-link",
    /// The directory of the worker's id is synced.
    WorkerIdSync = "worker-id-sync",
    /// The data directory is told of a start.
    Incarnation = "incarnation",
    /// A migration is committed.
    MigrationCommit = "migration-commit",
    /// A start of this worker is committed.
    WorkerCommit = "worker-commit",
    /// What this worker is doing is committed.
    WorkerStateCommit = "worker-state-commit",

    /// What a recurring entry has fired is committed.
    RecurringCommit = "recurring-commit",
    /// Events are committed as deliveries of a webhook.
    SpreadCommit = "spread-commit",
    /// Deliveries are taken to be sent.
    TakeCommit = "take-commit",
    /// What came of a delivery is committed.
    DeliveryCommit = "delivery-commit",

    /// Compressed output is synced.
    PackSync = "pack-sync",
    /// Compressed output gets its name.
    PackRename = "pack-rename",
    /// The name of compressed output is synced.
    PackNameSync = "pack-name-sync",
    /// Output that was compressed is removed.
    PlainRemoval = "plain-removal",

    /// A claim that took rows, or released some that had waited for others, is committed.
    ClaimCommit = "claim-commit",
    /// PROGRESS is committed.
    StartCommit = "start-commit",
    /// A heartbeat is committed.
    ConfirmCommit = "confirm-commit",
    /// A progress note is committed.
    ProgressCommit = "progress-commit",
    /// The end of a run is committed.
    EndCommit = "end-commit",

    /// A run directory is made.
    RunDir = "run-dir",
    /// A journal is made.
    JournalFile = "journal-file",
    /// A journal is locked.
    JournalLock = "journal-lock",
    /// A payload is written into its file.
    PayloadFile = "payload-file",
    /// The journal's first record is written.
    SpecRecord = "spec-record",
    /// It is noted that a run takes a slot.
    SlotFile = "slot-file",
    /// The zygote is started.
    ZygoteSpawn = "zygote-spawn",
    /// An order is sent to the zygote.
    OrderSend = "order-send",
    /// A shim whose order was held is told to start the command.
    StartSend = "start-send",

    /// The zygote takes an order.
    OrderReceive = "order-receive",
    /// The zygote forks a shim.
    ShimFork = "shim-fork",

    /// The shim leaves the zygote's session.
    ShimSession = "shim-session",
    /// The shim binds its command's notify socket.
    NotifyBind = "notify-bind",
    /// The shim takes the word to start the command.
    StartReceive = "start-receive",
    /// The shim records that it starts the command.
    StartingRecord = "starting-record",
    /// The command is started.
    CommandSpawn = "command-spawn",
    /// The shim records that the command has started.
    StartedRecord = "started-record",
    /// The shim tells the service that the command has started.
    StartedReport = "started-report",
    /// The shim records that the command can't be started.
    SpawnFailedRecord = "spawn-failed-record",
    /// The shim makes a file for output.
    LogFile = "log-file",
    /// The shim writes output.
    LogWrite = "log-write",
    /// The shim drops the oldest output.
    LogDrop = "log-drop",
    /// The shim binds the socket on which it waits for a new service.
    ControlBind = "control-bind",
    /// The shim takes a new service in.
    ControlAccept = "control-accept",
    /// The shim takes note of its command's end.
    CommandReap = "command-reap",
    /// The shim sends SIGTERM to what the command left behind.
    Terminate = "terminate",
    /// The shim sends SIGKILL to what did not heed SIGTERM.
    Kill = "kill",
    /// The shim writes the verdict.
    VerdictRecord = "verdict-record",
    /// The shim tells the service the verdict.
    VerdictReport = "verdict-report",
    /// The shim syncs the verdict.
    VerdictSync = "verdict-sync",
    /// The shim removes the socket on which it waited.
    ControlUnlink = "control-unlink",

    /// A new service connects to a shim.
    Adoption = "adoption",
    /// What a killed shim left alive is killed.
    Sweep = "sweep",
    /// A lost run's `cancel_command` is run.
    LostCancel = "lost-cancel",
    /// The service winds down after a signal.
    WindDown = "wind-down",
}

/// The variables that name crash points.
#[cfg(any(debug_assertions, feature = "crash-points"))]
pub const VARIABLES: &[&str] =
    &["CALLSHEET_CRASH_AT", "CALLSHEET_HANG_AT", "CALLSHEET_CRASH_MARKS", "CALLSHEET_HANG_WHILE"];

/// None, in this build.
#[cfg(not(any(debug_assertions, feature = "crash-points")))]
pub const VARIABLES: &[&str] = &[];

/// The process is about to take this step.
#[cfg(any(debug_assertions, feature = "crash-points"))]
pub fn before(step: Step) {
    armed::pass("before", step, rustix::process::getpid());
}

/// The process has taken this step.
#[cfg(any(debug_assertions, feature = "crash-points"))]
pub fn after(step: Step) {
    armed::pass("after", step, rustix::process::getpid());
}

/// This process is about to take this step for another one, which it is that dies.
#[cfg(any(debug_assertions, feature = "crash-points"))]
pub fn before_for(process: Pid, step: Step) {
    armed::pass("before", step, process);
}

/// This process has taken this step for another one, which it is that dies.
#[cfg(any(debug_assertions, feature = "crash-points"))]
pub fn after_for(process: Pid, step: Step) {
    armed::pass("after", step, process);
}

/// Nothing, in this build.
#[cfg(not(any(debug_assertions, feature = "crash-points")))]
#[inline(always)]
pub const fn before(_: Step) {}

/// Nothing, in this build.
#[cfg(not(any(debug_assertions, feature = "crash-points")))]
#[inline(always)]
pub const fn after(_: Step) {}

/// Nothing, in this build.
#[cfg(not(any(debug_assertions, feature = "crash-points")))]
#[inline(always)]
pub const fn before_for(_: Pid, _: Step) {}

/// Nothing, in this build.
#[cfg(not(any(debug_assertions, feature = "crash-points")))]
#[inline(always)]
pub const fn after_for(_: Pid, _: Step) {}

#[cfg(any(debug_assertions, feature = "crash-points"))]
mod armed {
    use std::fs::OpenOptions;
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use rustix::process::{Pid, Signal};

    use super::Step;

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Deed {
        Die,
        Hang,
    }

    struct Armed {
        side: String,
        step: Step,
        /// At which pass; `None` for the first that finds no mark.
        pass: Option<u32>,
        passes: AtomicU32,
        deed: Deed,
    }

    struct Plan {
        points: Vec<Armed>,
        marks: Option<PathBuf>,
        hang_while: Option<PathBuf>,
    }

    /// Read at the first point of all; a forked shim goes by its zygote's, with the passes as they were at the fork.
    static PLAN: LazyLock<Plan> = LazyLock::new(|| {
        let mut points = read("CALLSHEET_CRASH_AT", Deed::Die);
        points.extend(read("CALLSHEET_HANG_AT", Deed::Hang));
        let path = |variable| std::env::var_os(variable).map(PathBuf::from);
        Plan { points, marks: path("CALLSHEET_CRASH_MARKS"), hang_while: path("CALLSHEET_HANG_WHILE") }
    });

    fn read(variable: &str, deed: Deed) -> Vec<Armed> {
        let names = std::env::var(variable).unwrap_or_default();
        names.split(',').filter_map(|name| armed(name, deed)).collect()
    }

    fn armed(name: &str, deed: Deed) -> Option<Armed> {
        let (name, pass) = match name.split_once(':') {
            Some((name, pass)) => (name, Some(pass.parse().ok()?)),
            None => (name, None),
        };
        let (side, step) = name.split_once('-').filter(|(side, _)| ["before", "after"].contains(side))?;
        let step = *Step::ALL.iter().find(|known| known.name() == step)?;
        Some(Armed { side: side.to_owned(), step, pass, passes: AtomicU32::new(0), deed })
    }

    pub(super) fn pass(side: &str, step: Step, process: Pid) {
        for armed in PLAN.points.iter().filter(|armed| armed.step == step && armed.side == side) {
            let pass = armed.passes.fetch_add(1, Ordering::Relaxed) + 1;
            if armed.pass.is_none_or(|wanted| wanted == pass)
                && PLAN.marks.as_deref().is_none_or(|marks| is_first(marks, armed))
            {
                strike(armed.deed, process);
            }
        }
    }

    /// Whether no process has come to this point before; leaves the mark that says so.
    fn is_first(marks: &Path, armed: &Armed) -> bool {
        let mark = marks.join(format!("{}-{}", armed.side, armed.step.name()));
        OpenOptions::new().write(true).create_new(true).open(mark).is_ok()
    }

    fn strike(deed: Deed, process: Pid) {
        if deed == Deed::Die {
            // What can't be caught, so that nothing is tidied up; the one signal that is sent outside of `process`.
            let _ = rustix::process::kill_process(process, Signal::KILL);
        }
        while PLAN.hang_while.as_deref().is_none_or(Path::exists) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_step_can_be_named_and_no_two_share_a_name() {
            for step in Step::ALL {
                for side in ["before", "after"] {
                    let read = armed(&format!("{side}-{}:3", step.name()), Deed::Die).unwrap();
                    assert_eq!((read.side.as_str(), read.step, read.pass), (side, *step, Some(3)));
                }
            }
            for unknown in ["", "before-", "run-dir", "before-nothing", "during-run-dir", "after-run-dir:x"] {
                assert!(armed(unknown, Deed::Die).is_none(), "{unknown:?}");
            }
        }
    }
}
