//! The zygote: a helper process of the same build, which forks the shims.
//!
//! Started by the service on its first launch; ends when the service is gone. A fork costs what the forking
//! process has in memory, and a service may have much; the zygote has next to nothing, and only one thread. Its program is
//! `callsheet-shim`, which has nothing else in it, or where that is not beside the service, the service's own.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, Shutdown, SocketType, recvmsg, send,
    shutdown, sockopt,
};

use super::cgroup;
use super::environment::{self, Environment};
use super::link::{LARGEST_ORDER, Order};
use super::run_dir::Journal;
use super::shim::{self, Surroundings};
use super::spawn::{self, Refusal};
use crate::clock::boottime;
use crate::crash::{self, Step};

/// What a zygote says first: which build it is of. An order has no version, so that a service gives none to a zygote that may
/// understand another thing by it: one made of other sources of what the two say to each other and do about it.
pub(super) const BUILD: [u8; 8] = fnv_1a(&[
    env!("CARGO_PKG_VERSION").as_bytes(),
    include_bytes!("link.rs"),
    include_bytes!("run_dir.rs"),
    include_bytes!("shim.rs"),
    include_bytes!("spawn.rs"),
])
.to_be_bytes();

/// <http://www.isthe.com/chongo/tech/comp/fnv/>
const fn fnv_1a(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut rest = parts;
    while let [part, more @ ..] = rest {
        let mut bytes = *part;
        while let [byte, after @ ..] = bytes {
            hash = (hash ^ *byte as u64).wrapping_mul(0x0100_0000_01b3);
            bytes = after;
        }
        rest = more;
    }
    hash
}

/// Serves orders from the socket that stands in for standard input, until its other end is closed.
pub(super) fn serve() -> ExitCode {
    let Some(orders) = take_socket() else {
        let _ = writeln!(std::io::stderr(), "callsheet: this is a helper process that only `callsheet serve` can use");
        return ExitCode::from(2);
    };
    spawn::allocate_in_one_place();
    spawn::outlive_signals();
    // Away from the service's terminal; fails only where that is so already.
    let _ = rustix::process::setsid();
    let surroundings = Surroundings {
        environment: Environment::inherited(std::env::vars_os().filter(|(name, _)| environment::is_passed_on(name))),
        groups: cgroup::Site::of_this_process().and_then(|site| site.delegated()),
        start_ticks: std::cell::OnceCell::new(),
    };
    // What a processor can do is asked once for all shims: in a virtual machine each such question is dear.
    let _ = crc32fast::hash(b"callsheet");
    // As is where the kernel has put its clocks.
    let _ = (boottime(), crate::clock::now());
    if send(&orders, &BUILD, SendFlags::NOSIGNAL).is_err() {
        return ExitCode::FAILURE;
    }
    let mut packet = vec![0; LARGEST_ORDER];
    loop {
        match receive(&orders, &mut packet) {
            Ok(Received::Order { length, journal, link }) => {
                crash::after(Step::OrderReceive);
                crash::before(Step::ShimFork);
                match spawn::fork() {
                    Ok(Some(_)) => crash::after(Step::ShimFork),
                    Ok(None) => {
                        drop(orders);
                        become_shim(&mut packet, (length, journal, link), &surroundings);
                    }
                    Err(error) => {
                        refuse(journal, link, Refusal::new(format!("its shim can't be forked: {error}"), &error));
                    }
                }
            }
            Ok(Received::Unreadable) => {}
            Ok(Received::ServiceGone) => return ExitCode::SUCCESS,
            Err(Errno::INTR) => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}

/// The socket to the service; takes care that nothing else of the service's is held.
fn take_socket() -> Option<OwnedFd> {
    spawn::close_from(3);
    if sockopt::socket_type(rustix::stdio::stdin()).ok()? != SocketType::SEQPACKET {
        return None;
    }
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).ok()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()?;
    rustix::stdio::dup2_stdin(&null).ok()?;
    rustix::stdio::dup2_stdout(&null).ok()?;
    rustix::stdio::dup2_stderr(&null).ok()?;
    Some(socket)
}

enum Received {
    /// So many bytes of the packet. Its shim reads them: what this process allocated and freed would be copied page by page.
    Order {
        length: usize,
        journal: OwnedFd,
        link: OwnedFd,
    },
    /// No order; whoever holds the other ends sees them closed.
    Unreadable,
    ServiceGone,
}

fn receive(orders: &OwnedFd, packet: &mut [u8]) -> Result<Received, Errno> {
    crash::before(Step::OrderReceive);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(orders, &mut [IoSliceMut::new(packet)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::with_capacity(2);
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if received.bytes == 0 && descriptors.is_empty() {
        return Ok(Received::ServiceGone);
    }
    let whole = !received.flags.contains(ReturnFlags::TRUNC);
    let mut descriptors = descriptors.into_iter();
    Ok(match (descriptors.next(), descriptors.next()) {
        (Some(journal), Some(link)) if whole => Received::Order { length: received.bytes, journal, link },
        _ => Received::Unreadable,
    })
}

/// How long a shim waits for another order when its run is over: as long as a service takes to commit an end and to order the
/// next run, also on a slow disk.
const WAITS: Duration = Duration::from_millis(100);

fn become_shim(packet: &mut [u8], first: (usize, OwnedFd, OwnedFd), surroundings: &Surroundings) -> ! {
    // A panic must not unwind into the zygote's loop: its run is found to be gone, and all others are safe.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut next = Some(first);
        while let Some((length, journal, link)) = next {
            let order = serde_json::from_slice::<Order>(packet.get(..length).unwrap_or_default());
            let waits_on = match (order, Journal::received(journal)) {
                (Ok(order), Ok(journal)) => shim::run(order, journal, link, surroundings),
                // Dropping the link tells the service; the journal has no `starting`, so the run never started.
                (Err(_), _) | (_, Err(_)) => None,
            };
            next = waits_on.and_then(|link| another(&link, packet));
        }
    }));
    spawn::exit_now(if outcome.is_ok() { 0 } else { 101 })
}

/// Waits for another order on the link of a run that is over: so short runs one after the other need no fork each.
fn another(link: &OwnedFd, packet: &mut [u8]) -> Option<(usize, OwnedFd, OwnedFd)> {
    let until = boottime() + WAITS;
    let mut closed = false;
    loop {
        let left = until.saturating_sub(boottime());
        if left.is_zero() && !closed {
            // From here on the service can't send any more (EPIPE). What it had sent before is still to be read, and then this
            // is the end, so no order is lost.
            shutdown(link, Shutdown::Read).ok()?;
            closed = true;
        }
        let mut readable = [PollFd::new(link, PollFlags::IN)];
        if !closed && !poll(&mut readable, Some(&shim::timespec(left))).is_ok_and(|ready| ready > 0) {
            continue;
        }
        match receive(link, packet) {
            Ok(Received::Order { length, journal, link }) => {
                crash::after(Step::OrderReceive);
                return Some((length, journal, link));
            }
            // Something about the run that is over.
            Ok(Received::Unreadable) | Err(Errno::INTR) => {}
            Ok(Received::ServiceGone) | Err(_) => return None,
        }
    }
}

fn refuse(journal: OwnedFd, link: OwnedFd, refusal: Refusal) {
    if let Ok(mut journal) = Journal::received(journal) {
        shim::refuse(&mut journal, link, refusal);
    }
}
