//! `cancel_command`: how a run is ended whose work is elsewhere, on a cluster or behind a daemon.
//!
//! It is run in place of SIGTERM while the command lives, and once more when the command has died of a signal, since what
//! dies so has told nobody to stop. Each time it has `kill_grace`. A shim that is killed runs nothing any more; then
//! [`lost`](super::lost) does.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use super::environment::Environment;
use super::link::Order;
use super::spawn::{self, Outlets, Prepared};
use crate::domain::run::CommandEnd;

/// A run's own way to its end.
#[derive(Debug)]
pub(super) struct Canceller {
    term: Prepared,
    kill: Prepared,
    running: Option<Pid>,
    /// The run's processes have not been sent SIGTERM, because it was asked in their place.
    spared: bool,
    failed: bool,
    cleaned_up: bool,
}

impl Canceller {
    /// `None` where the order has none.
    ///
    /// # Errors
    /// A sentence for a person: better no command than one that can't be ended.
    pub(super) fn new(order: &Order, environment: &Environment) -> Result<Option<Self>, String> {
        let Some(cancel) = &order.cancel else { return Ok(None) };
        let prepared = |argv| {
            Prepared::of(argv, order, environment)
                .map_err(|reason| format!("its cancel_command can't be run: {reason}"))
        };
        let (term, kill) = (prepared(&cancel.term)?, prepared(&cancel.kill)?);
        Ok(Some(Self { term, kill, running: None, spared: false, failed: false, cleaned_up: false }))
    }

    /// Runs it in place of SIGTERM; false where it can't be started. What it says goes where `said` leads.
    pub(super) fn ask(&mut self, said: Option<&OwnedFd>) -> bool {
        self.running = start(&self.term, said);
        self.spared = self.running.is_some();
        self.spared
    }

    /// Runs it after a command that has died of a signal, once; false where there is nothing to wait for.
    pub(super) fn clean_up(&mut self, said: Option<&OwnedFd>) -> bool {
        if std::mem::replace(&mut self.cleaned_up, true) {
            return false;
        }
        self.running = start(&self.kill, said);
        self.running.is_some()
    }

    /// Takes note of a child that has ended.
    pub(super) fn reaped(&mut self, pid: Pid, end: CommandEnd) {
        if self.running == Some(pid) {
            self.running = None;
            self.failed = end != CommandEnd::Exited(0);
        }
    }

    /// Whether the run's processes are to be sent SIGTERM after all, which they then are: it has failed, or the command has
    /// ended and left others behind.
    pub(super) fn leaves_it_to_sigterm(&mut self, command_ended: bool) -> bool {
        self.spared && self.running.is_none() && (self.failed || command_ended) && {
            self.spared = false;
            true
        }
    }
}

fn start(prepared: &Prepared, said: Option<&OwnedFd>) -> Option<Pid> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let open = |path: &str| rustix::fs::open(path, flags, Mode::empty()).ok();
    // Another writing end of the pipe that the command writes to (pipe(7), proc(5)).
    let said = said.and_then(|pipe| open(&spawn::path_of(pipe))).or_else(|| open("/dev/null"))?;
    // Outside the run's control group, whose limits may be what is wrong.
    let outlets = Outlets { stdout: said.as_fd(), stderr: said.as_fd(), cgroup: None, may_run_outside: true };
    spawn::start(prepared, outlets, &mut || true).ok()
}
