//! What a shim tells its service and hears from it, and how it waits for one where it has none.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recv,
    send, socket_with, sockopt,
};

use super::{CONTROL_SOCKET, LISTEN_PAUSE, NOT_DYING_AFTER, Shim};
use crate::clock::boottime;
use crate::crash::{self, Step};
use crate::domain::run::{EndCause, Said};
use crate::process::link::{ToService, ToShim};
use crate::process::tree;

impl Shim {
    pub(super) fn tell_progress(&mut self) {
        if !self.progress_untold {
            return;
        }
        self.progress_untold = false;
        self.progress_told = boottime();
        self.report_progress();
    }

    pub(super) fn report_progress(&mut self) {
        let Said { progress, status_message } = self.said.clone();
        self.report(&ToService::Progress { progress, status_message });
    }

    pub(super) fn tell_start(&mut self) {
        if std::mem::take(&mut self.start_untold) {
            crash::before(Step::StartedReport);
            self.report_started();
            crash::after(Step::StartedReport);
        }
    }

    pub(super) fn report_started(&mut self) {
        let pid = self.command.as_raw_nonzero().get();
        self.report(&ToService::Started { pid, time_ms: self.started_time.unix_millis() });
    }

    pub(super) fn report_not_dying(&mut self) {
        let reason = format!(
            "processes of this run are still alive {} s after SIGKILL: {}",
            NOT_DYING_AFTER.as_secs(),
            tree::names(self.own_pid)
        );
        self.not_dying = Some(reason.clone());
        self.report(&ToService::NotDying { reason });
    }

    /// Tells the service, where there is one; one that doesn't read is let go, since the files hold the truth.
    pub(super) fn report(&mut self, message: &ToService) -> bool {
        // First, whatever it is.
        self.tell_start();
        let told = self.link.as_ref().is_some_and(|link| tell(link, message));
        if !told {
            self.lose_link();
        }
        told
    }

    /// Reads what the service wants.
    pub(super) fn obey(&mut self) {
        let Some(link) = &self.link else { return };
        match word_from(link) {
            Ok(word) => self.heed(word),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.lose_link(),
        }
    }

    pub(super) fn heed(&mut self, word: Option<ToShim>) {
        match word {
            Some(ToShim::Stop) => self.end(EndCause::Requested, false),
            Some(ToShim::StopNow) => self.end(EndCause::Requested, true),
            Some(ToShim::Lease(lease)) => self.renew(lease),
            Some(ToShim::Start) | None => {}
        }
    }

    /// The service is gone or does not read. What it had said before it went is still there, and is done.
    pub(super) fn lose_link(&mut self) {
        let Some(link) = self.connect(None) else { return };
        self.listen();
        let mut reset = false;
        loop {
            match word_from(&link) {
                Ok(word) => self.heed(word),
                Err(Errno::INTR) => {}
                // It went with a word of ours unread; told once, and before what is there.
                Err(Errno::CONNRESET) if !std::mem::replace(&mut reset, true) => {}
                Err(_) => return,
            }
        }
    }

    /// Talks with this service from now on, or with none; gives the link to the one before.
    pub(super) fn connect(&mut self, link: Option<OwnedFd>) -> Option<OwnedFd> {
        let earlier = std::mem::replace(&mut self.link, link);
        if let Some(guard) = &self.guard {
            guard.listen_to(self.link.as_ref());
        }
        earlier
    }

    /// Waits for a new service from now on; where that can't be done now (no room on the disk, no descriptor), a moment later.
    pub(super) fn listen(&mut self) {
        if self.control.is_none() {
            self.control = listening_socket(&self.run_dir).ok();
            if self.control.is_none() {
                self.be_deaf();
            }
        }
    }

    pub(super) fn be_deaf(&mut self) {
        self.deaf_until = Some(boottime() + LISTEN_PAUSE);
    }

    pub(super) fn listen_again(&mut self, now: Duration) {
        if self.deaf_until.is_some_and(|until| now >= until) {
            self.deaf_until = None;
            if self.link.is_none() {
                self.listen();
            }
        }
    }

    /// Where a new service is to be taken in from, where one can be.
    pub(super) fn awaited(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().filter(|_| self.deaf_until.is_none()).map(AsFd::as_fd)
    }

    /// Takes a new service in; the newest one counts.
    pub(super) fn welcome(&mut self) {
        let Some(control) = &self.control else { return };
        crash::before(Step::ControlAccept);
        let link = match accept_with(control, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(link) => link,
            // It has gone again, or there was nobody.
            Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED) => return,
            // No descriptor: whoever waits there goes on waiting, so that poll(2) would return at once.
            Err(_) => return self.be_deaf(),
        };
        let trusted = sockopt::socket_peercred(&link)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid() || peer.uid.is_root());
        if !trusted {
            return;
        }
        if let Some(earlier) = self.connect(Some(link)) {
            tell(&earlier, &ToService::Replaced);
        }
        crash::after(Step::ControlAccept);
        // First, so that whoever hears of the start knows about the lease.
        self.start_untold = false;
        self.report_lease();
        self.report_started();
        if self.said != Said::default() {
            self.report_progress();
        }
        if let Some(reason) = self.not_dying.clone() {
            self.report(&ToService::NotDying { reason });
        }
    }
}

/// Sends without ever waiting; false where the service is gone or does not read.
pub(super) fn tell(link: &OwnedFd, message: &ToService) -> bool {
    let Ok(packet) = serde_json::to_vec(message) else { return false };
    send(link, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
}

/// What the service says next, where that is understood.
fn word_from(link: &OwnedFd) -> Result<Option<ToShim>, Errno> {
    let mut packet = [0_u8; 256];
    match recv(link, &mut packet, RecvFlags::DONTWAIT)? {
        (0, _) => Err(Errno::PIPE),
        (length, _) => Ok(packet.get(..length).and_then(|packet| serde_json::from_slice(packet).ok())),
    }
}

/// Whether nothing can come over this link any more.
pub(super) fn is_broken(link: &OwnedFd) -> bool {
    let mut byte = [0_u8];
    match recv(link, &mut byte, RecvFlags::DONTWAIT | RecvFlags::PEEK) {
        Ok((length, _)) => length == 0,
        Err(error) => !matches!(error, Errno::INTR | Errno::AGAIN),
    }
}

fn listening_socket(run_dir: &Path) -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Whatever the command may have put in its place.
    let _ = std::fs::remove_file(run_dir.join(CONTROL_SOCKET));
    crash::before(Step::ControlBind);
    bind(&socket, &SocketAddrUnix::new(run_dir.join(CONTROL_SOCKET))?)?;
    listen(&socket, 8)?;
    crash::after(Step::ControlBind);
    Ok(socket)
}
