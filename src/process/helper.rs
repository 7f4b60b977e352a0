//! The service's end of the zygote, and of shims that wait for another order.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
    sendmsg, socketpair, sockopt,
};

use super::link::LARGEST_ORDER;
use super::{ZYGOTE_NAME, ZYGOTE_WORD, environment, rouse, zygote};
use crate::crash::{self, Step};

/// So many shims may wait for another order at a time: more orders than that are rarely under way.
const MOST_WAITING: usize = 16;
/// After this time a shim that waited for another order has ended.
const GONE_AFTER: Duration = Duration::from_secs(1);

/// Shims whose runs are over and that wait for another one.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// How often it has changed what a command may see: an earlier shim has an earlier environment.
    pub(super) generation: u64,
    /// Where they wait, and since when.
    links: Vec<(Instant, OwnedFd)>,
}

impl Waiting {
    /// Forgets all of them: from now on commands may see something else.
    pub(super) fn forget(&mut self) {
        self.generation += 1;
        self.links.clear();
    }

    /// The one that has waited for the shortest time, and is most likely still there.
    pub(super) fn take(&mut self) -> Option<OwnedFd> {
        self.links.pop().map(|(_, link)| link)
    }

    /// Keeps the link of one that was started in this generation, where there are not many of them.
    pub(super) fn keep(&mut self, link: OwnedFd, generation: u64) {
        self.links.retain(|(since, _)| since.elapsed() < GONE_AFTER);
        if generation == self.generation && self.links.len() < MOST_WAITING {
            self.links.push((Instant::now(), link));
        }
    }
}

/// The running helper process.
#[derive(Debug)]
pub(super) struct Zygote {
    /// `None` only while it is being dropped.
    orders: Option<OwnedFd>,
    process: Child,
}

impl Zygote {
    /// A zygote that takes no order, or does not present itself, for so long is stuck.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// From the first of these programs that is one of this very build: both sides of a socket have to mean the same.
    pub(super) fn start(programs: &[PathBuf], secrets: &[String], runs: &Path) -> io::Result<Self> {
        let mut failed = io::Error::from(io::ErrorKind::NotFound);
        for program in programs {
            match Self::start_one(program, secrets, runs) {
                Ok(zygote) => return Ok(zygote),
                Err(error) => {
                    tracing::warn!(program = %program.display(), %error, "no runs can be started through this program");
                    failed = error;
                }
            }
        }
        Err(failed)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the place where processes are started")]
    fn start_one(program: &Path, secrets: &[String], runs: &Path) -> io::Result<Self> {
        let (ours, theirs) = packet_sockets()?;
        // What the system allows at most; the default holds a little less than the largest order.
        sockopt::set_socket_send_buffer_size(&ours, 2 * LARGEST_ORDER)?;
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Send, Some(Self::PATIENCE))?;
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(Self::PATIENCE))?;
        let mut command = Command::new(program);
        command.arg0(ZYGOTE_NAME).arg(ZYGOTE_WORD).stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        let for_zygote = |(name, _): &(OsString, OsString)| environment::is_for_zygote(name, secrets);
        command.env_clear().envs(std::env::vars_os().filter(for_zygote)).env(rouse::RUNS, runs);
        crash::before(Step::ZygoteSpawn);
        let process = command.spawn()?;
        crash::after(Step::ZygoteSpawn);
        // Our copy of its end would keep a zygote that died from being noticed.
        drop(command);
        let zygote = Self { orders: Some(ours), process };
        zygote.is_of_this_build().map(|()| zygote)
    }

    fn is_of_this_build(&self) -> io::Result<()> {
        let Some(orders) = &self.orders else { return Err(Errno::PIPE.into()) };
        let mut presented = [0; size_of_val(&zygote::BUILD) + 1];
        let length = loop {
            match recv(orders, &mut presented, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                received => break received?.0,
            }
        };
        match presented.get(..length) {
            Some(build) if build == zygote::BUILD => Ok(()),
            Some([]) | None => Err(io::Error::other("it ended without presenting itself")),
            Some(_) => Err(io::Error::other("it is of another build of Callsheet")),
        }
    }

    pub(super) fn send(&self, order: &[u8], journal: &File, link: &OwnedFd) -> rustix::io::Result<()> {
        let Some(orders) = &self.orders else { return Err(Errno::PIPE) };
        hand_over(orders, order, journal, link, SendFlags::empty())
    }
}

/// Sends an order with the run's journal and one end of its link.
pub(super) fn hand_over(
    orders: &OwnedFd,
    order: &[u8],
    journal: &File,
    link: &OwnedFd,
    how: SendFlags,
) -> rustix::io::Result<()> {
    crash::before(Step::OrderSend);
    let descriptors = [journal.as_fd(), link.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    loop {
        match sendmsg(orders, &[IoSlice::new(order)], &mut ancillary, SendFlags::NOSIGNAL | how) {
            Err(Errno::INTR) => {}
            outcome => {
                crash::after(Step::OrderSend);
                return outcome.map(drop);
            }
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // It carries out what it has been ordered and then ends by itself; the shims don't need it.
        self.orders = None;
        for _ in 0..500 {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) fn packet_sockets() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}
