//! Launches that are got ready while their claims are being committed.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvFlags, Shutdown, shutdown, sockopt};

use super::launch::{Launcher, receive, tell};
use super::link::ToShim;
use crate::crash::{self, Step};
use crate::domain::RunToken;

/// How long the end of a shim whose run is given up before its start is waited for.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(5);

/// A run of which everything is ready but its command, which starts when it is released; given up when it is dropped.
///
/// Its shim waits for a word over its link, and records that the command was not started where the link breaks first. So
/// whoever dies meanwhile, the service or the shim, leaves a run that was never started, which is found to be just that where
/// its claim was committed, and is nobody's directory where it was not.
#[derive(Debug)]
pub struct HeldLaunch {
    launcher: Arc<Launcher>,
    token: RunToken,
    /// `None` once it is released or given up.
    held: Option<Held>,
}

/// The link to a shim that was ordered to wait.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) run_dir: PathBuf,
    pub(super) link: OwnedFd,
    /// See [`Waiting`](super::helper::Waiting).
    pub(super) generation: u64,
    /// When the shim ends its command that nobody confirms; by [`boottime`](crate::clock::boottime).
    pub(super) leased: Option<Duration>,
    pub(super) kill_grace: Duration,
}

impl HeldLaunch {
    pub(super) fn new(launcher: Arc<Launcher>, token: RunToken, held: Held) -> Self {
        Self { launcher, token, held: Some(held) }
    }

    /// Has the command started, which from now on is the run that [`Processes::released`](super::Processes::released) finds. Given up
    /// where its environment is one that no command may have any more.
    pub fn release(mut self) {
        if let Some(held) = self.held.take() {
            self.launcher.release(self.token.clone(), held);
        }
    }

    /// Has nothing started by this, and removes what was made for it. Blocks for a moment.
    pub fn give_up(mut self) {
        if let Some(held) = self.held.take() {
            held.give_up();
        }
    }
}

impl Drop for HeldLaunch {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            held.give_up_later();
        }
    }
}

impl Held {
    /// Has the command started. A shim that is gone is noticed by whoever follows it.
    pub(super) fn tell(&self) {
        crash::before(Step::StartSend);
        if !tell(&self.link, ToShim::Start) {
            // It must not wait for ever for a word that got lost.
            let _ = shutdown(&self.link, Shutdown::Write);
        }
        crash::after(Step::StartSend);
    }

    /// [`Self::give_up`] on a thread that may be kept waiting.
    pub(super) fn give_up_later(self) {
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || self.give_up())),
            Err(_) => self.give_up(),
        }
    }

    fn give_up(self) {
        // The shim, also one that is yet to be forked, reads the end of the link. It is waited for, so that a run of the same
        // token meets nothing of it.
        let _ = shutdown(&self.link, Shutdown::Write);
        let _ = sockopt::set_socket_timeout(&self.link, sockopt::Timeout::Recv, Some(GIVEN_UP_AFTER));
        let _ = receive(&self.link, RecvFlags::empty());
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}
