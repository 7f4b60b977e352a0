//! A second pair of eyes on the time limit, for a shim that hangs.
//!
//! A shim has one thread, and a disk that hangs holds that up in the middle of a write, for minutes or for ever. The
//! command must not run on beyond its time for that. A guard is a thread that touches no disk: it waits for the limit,
//! and where the shim has done nothing about it a moment later, ends the run's processes itself.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::run_dir::boottime;
use super::tree;

/// How long after its time the shim may take to do something by itself.
const PATIENCE: Duration = Duration::from_secs(1);
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// The condition variable's clock stands still while the machine sleeps, so no wait is longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A few calls deep, and lists of processes on the heap.
const STACK: usize = 64 * 1024;

/// What is guarded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guarded {
    /// The shim, below which everything of the run is.
    pub(super) root: i32,
    pub(super) command: Pid,
    /// By [`boottime`].
    pub(super) limit_at: Duration,
    pub(super) kill_grace: Duration,
}

/// Guards a run until it is dropped.
#[derive(Debug)]
pub(super) struct Guard(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The shim has begun to end the run, so that SIGKILL is due then.
    kill_at: Option<Duration>,
    over: bool,
    struck: bool,
}

impl Guard {
    /// `None` where there is no thread to be had: then the shim has to do without.
    pub(super) fn start(guarded: Guarded) -> Option<Self> {
        let shared = Arc::new(Shared::default());
        let guard = Self(Arc::clone(&shared));
        std::thread::Builder::new().stack_size(STACK).spawn(move || shared.watch(guarded)).ok().map(|_| guard)
    }

    /// The shim has asked the run's processes to end and will kill them then.
    pub(super) fn ending(&self, kill_at: Duration) {
        self.0.state().kill_at = Some(kill_at);
        self.0.changed.notify_all();
    }

    /// Whether the command was ended by the guard, because its time was up.
    pub(super) fn has_struck(&self) -> bool {
        self.0.state().struck
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.state().over = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, guarded: Guarded) {
        let mut state = self.state();
        loop {
            if state.over {
                return;
            }
            let now = boottime();
            // By the shim's own plan where it has one, or else by the limit.
            let due = state.kill_at.unwrap_or(guarded.limit_at) + PATIENCE;
            let pause = if now < due {
                due - now
            } else if state.kill_at.is_none() {
                // One that ended by itself while the shim hung was not ended by its time.
                state.struck = is_running(guarded.command);
                state.kill_at = Some(now + guarded.kill_grace);
                tree::signal_all(guarded.root, Signal::TERM);
                tree::signal_all(guarded.root, Signal::CONT);
                guarded.kill_grace
            } else {
                tree::kill_all(guarded.root);
                SWEEP_PAUSE
            };
            let waited = self.changed.wait_timeout(state, pause.clamp(Duration::from_millis(1), LONGEST_WAIT));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn is_running(command: Pid) -> bool {
    tree::Stat::of(command.as_raw_nonzero().get()).is_some_and(|stat| stat.state != 'Z' && stat.state != 'X')
}
