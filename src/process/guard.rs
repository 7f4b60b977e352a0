//! A second pair of eyes on the time limit and on the service's word, for a shim that hangs.
//!
//! A shim has one thread, and a disk that hangs holds that up in the middle of a write, for minutes or for ever. The
//! command must not run on beyond its time for that, nor after it was cancelled. A guard is a thread that touches no disk:
//! it waits for either, and where the shim has done nothing about it a moment later, ends the run's processes itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, Signal};

use super::link::{LeaseOrder, ToShim};
use super::tree;
use crate::clock::boottime;

/// How long the shim may take to do something by itself after its time, or about what it was told.
const PATIENCE: Duration = Duration::from_secs(1);
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// poll(2)'s clock stands still while the machine sleeps, so no wait is longer than this.
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

/// Why a guard has ended a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Struck {
    TimeIsUp,
    /// The lease of this length was over.
    Unconfirmed(Duration),
    Requested,
}

/// Guards a run until it is dropped.
#[derive(Debug)]
pub(super) struct Guard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    /// The shim has begun to end the run, so that SIGKILL is due then.
    kill_at: Option<Duration>,
    /// When the run's lease is over, where it has one.
    lease: Option<LeaseOrder>,
    /// The guard's own copy of the shim's end of the link.
    link: Option<OwnedFd>,
    over: bool,
    struck: Option<Struck>,
}

impl Guard {
    /// `None` where there is no thread to be had: then the shim has to do without.
    pub(super) fn start(guarded: Guarded) -> Option<Self> {
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed });
        let guard = Self(Arc::clone(&shared));
        std::thread::Builder::new().stack_size(STACK).spawn(move || shared.watch(guarded)).ok().map(|_| guard)
    }

    /// The shim has asked the run's processes to end and will kill them then.
    pub(super) fn ending(&self, kill_at: Duration) {
        self.change(|state| state.kill_at = Some(kill_at));
    }

    /// The run is to end then; `None` where it has no lease.
    pub(super) fn lease(&self, lease: Option<LeaseOrder>) {
        self.change(|state| state.lease = lease);
    }

    /// What the run's lease is by now: the guard may have heard more of it than a shim that hung.
    pub(super) fn leased(&self) -> Option<LeaseOrder> {
        self.0.state().lease
    }

    /// The service is heard over this link from now on; `None` where there is none.
    pub(super) fn listen_to(&self, link: Option<&OwnedFd>) {
        let copy = link.and_then(|link| link.try_clone().ok());
        self.change(|state| state.link = copy);
    }

    /// Why the guard has ended the command, where it has.
    pub(super) fn struck(&self) -> Option<Struck> {
        self.0.state().struck
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state());
        // It can only fail where the guard has not yet heard of 2^64 changes.
        let _ = rustix::io::write(&self.0.changed, &1_u64.to_ne_bytes());
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.change(|state| *state = State { over: true, struck: state.struck, ..State::default() });
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, guarded: Guarded) {
        // Since when something has been waiting for the shim to read it.
        let mut unread: Option<Duration> = None;
        loop {
            let mut state = self.state();
            if state.over {
                return;
            }
            let now = boottime();
            if unread.is_some_and(|since| now >= since + PATIENCE) {
                unread = state.unread(now);
                if state.kill_at.is_none()
                    && let Some(order) = state.order()
                {
                    match order {
                        // Heard before there was a command, and a guard.
                        ToShim::Start => {}
                        ToShim::Lease(lease) => state.lease = lease,
                        ToShim::Stop => state.strike(Struck::Requested, guarded, now),
                        ToShim::StopNow => {
                            state.strike(Struck::Requested, guarded, now);
                            state.kill_at = Some(now.saturating_sub(PATIENCE));
                        }
                    }
                }
            }
            // By the shim's own plan where it has one, or else by the limit or the lease.
            let leased = state.lease.map(|lease| (Duration::from_millis(lease.until_ms), lease));
            let unconfirmed = leased.filter(|(until, _)| *until < guarded.limit_at);
            let limit_at = unconfirmed.map_or(guarded.limit_at, |(until, _)| until);
            let due = state.kill_at.unwrap_or(limit_at) + PATIENCE;
            let pause = if now < due {
                due - now
            } else if state.kill_at.is_none() {
                let why = unconfirmed.map_or(Struck::TimeIsUp, |(_, lease)| {
                    Struck::Unconfirmed(Duration::from_millis(lease.timeout_ms))
                });
                state.strike(why, guarded, now);
                guarded.kill_grace
            } else {
                tree::kill_all(guarded.root);
                SWEEP_PAUSE
            };
            let pause = unread.map_or(pause, |since| pause.min((since + PATIENCE).saturating_sub(now)));
            // A copy, so that the lock is not held while waiting.
            let link = state.link.as_ref().filter(|_| unread.is_none()).and_then(|link| link.try_clone().ok());
            drop(state);
            let pause = pause.clamp(Duration::from_millis(1), LONGEST_WAIT);
            if self.wait(link.as_ref().map(AsFd::as_fd), pause) {
                unread = Some(boottime());
            }
        }
    }

    /// Waits for a change, or for something on the link, and says whether that is what came.
    fn wait(&self, link: Option<BorrowedFd<'_>>, pause: Duration) -> bool {
        let mut polled = vec![PollFd::new(&self.changed, PollFlags::IN)];
        polled.extend(link.map(|link| PollFd::from_borrowed_fd(link, PollFlags::IN)));
        let pause = Timespec {
            tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        // An interruption is taken for nothing: the caller looks again.
        let any = poll(&mut polled, Some(&pause)).is_ok_and(|ready| ready > 0);
        let _ = rustix::io::read(&self.changed, &mut [0_u8; 8]);
        any && polled.get(1).is_some_and(|link| !link.revents().is_empty())
    }
}

impl State {
    /// Since when something is waiting to be read: now, where the shim has read what was there before.
    fn unread(&mut self, now: Duration) -> Option<Duration> {
        let link = self.link.as_ref()?;
        match recv(link, &mut [0_u8; 256], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((length, _)) if length > 0 => Some(now),
            Err(Errno::INTR) => Some(now),
            Err(Errno::AGAIN) => None,
            // The service is gone, and whoever hangs can't take another one in.
            Ok(_) | Err(_) => {
                self.link = None;
                None
            }
        }
    }

    /// What the service wants of the shim, which has not read it. A lease is taken out, since a stop may stand behind it.
    fn order(&self) -> Option<ToShim> {
        match self.received(RecvFlags::PEEK)? {
            // A shim that has just woken up may have read it: then this is what came after it, and is done here.
            ToShim::Lease(_) => self.received(RecvFlags::empty()),
            stop => Some(stop),
        }
    }

    fn received(&self, how: RecvFlags) -> Option<ToShim> {
        let mut packet = [0_u8; 256];
        let (length, _) = recv(self.link.as_ref()?, &mut packet, how | RecvFlags::DONTWAIT).ok()?;
        packet.get(..length).and_then(|packet| serde_json::from_slice(packet).ok())
    }

    fn strike(&mut self, why: Struck, guarded: Guarded, now: Duration) {
        // One that ended by itself while the shim hung was ended by nobody.
        self.struck = is_running(guarded.command).then_some(why);
        self.kill_at = Some(now + guarded.kill_grace);
        tree::signal_all(guarded.root, Signal::TERM);
        tree::signal_all(guarded.root, Signal::CONT);
    }
}

fn is_running(command: Pid) -> bool {
    tree::Stat::of(command.as_raw_nonzero().get()).is_some_and(|stat| stat.state != 'Z' && stat.state != 'X')
}
