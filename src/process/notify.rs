//! What a command says about itself over `NOTIFY_SOCKET`, in systemd's protocol (`sd_notify(3)`).
//!
//! The command may be anybody's, so everything that comes in is hostile until it has been read here.

use super::text;
use crate::domain::run::Said;

/// The longest status message that is kept, in characters.
const LONGEST_STATUS: usize = 1000;

/// What was new in what was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Progress or status.
    pub(super) changed: bool,
    /// The command said that it is alive (`WATCHDOG=1`).
    pub(super) alive: bool,
    /// The command said that it hangs (`WATCHDOG=trigger`).
    pub(super) stuck: bool,
}

impl std::ops::BitOrAssign for Heard {
    fn bitor_assign(&mut self, more: Self) {
        self.changed |= more.changed;
        self.alive |= more.alive;
        self.stuck |= more.stuck;
    }
}

impl Said {
    /// Takes a datagram in, and says what was new in it.
    ///
    /// `WATCHDOG_USEC` is not taken: how often a command has to say that it is alive is its flow's decision.
    pub(super) fn hear(&mut self, datagram: &[u8]) -> Heard {
        let mut new = Heard::default();
        let mut heard = self.clone();
        for line in datagram.split(|byte| *byte == b'\n') {
            if let Some(value) = line.strip_prefix(b"X_PROGRESS=") {
                heard.progress = percent(value).or(heard.progress);
            } else if let Some(value) = line.strip_prefix(b"STATUS=") {
                heard.status_message = Some(text::made_safe(value).chars().take(LONGEST_STATUS).collect());
            } else if line == b"WATCHDOG=1" {
                new.alive = true;
            } else if line == b"WATCHDOG=trigger" {
                new.stuck = true;
            }
        }
        new.changed = heard != *self;
        *self = heard;
        new
    }
}

/// A whole number from 0 to 100 in plain digits.
fn percent(value: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|percent| *percent <= 100)
}

#[cfg(target_os = "linux")]
pub(super) use self::socket::Inbox;

#[cfg(target_os = "linux")]
mod socket {
    use std::ffi::OsString;
    use std::fs;
    use std::io::{self, IoSliceMut};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    use rustix::net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
        bind, recvmsg, socket_with, sockopt,
    };

    use super::super::memory_dir;
    use super::{Heard, Said};

    /// What fits into `sun_path` with its closing zero (unix(7)).
    const LONGEST_PATH: usize = 107;

    /// The socket behind `NOTIFY_SOCKET`.
    #[derive(Debug)]
    pub(crate) struct Inbox {
        socket: OwnedFd,
        /// What to remove in the end; `None` for an abstract address.
        file: Option<PathBuf>,
        /// The value of `NOTIFY_SOCKET`.
        address: OsString,
    }

    impl Inbox {
        /// Binds a name in the directory `in_memory`, where there is one, or else `run_dir/notify`, or an abstract address
        /// where that path is too long for a command. `directory` leads to `run_dir` whatever becomes of the name.
        pub(crate) fn open(
            run_dir: &Path,
            directory: &Path,
            in_memory: Option<&Path>,
            token: &str,
        ) -> io::Result<Self> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
            sockopt::set_socket_passcred(&socket, true)?;
            if let Some(path) = in_memory.map(|in_memory| memory_dir::socket(in_memory, token))
                && path.as_os_str().as_bytes().len() <= LONGEST_PATH
                && bind(&socket, &SocketAddrUnix::new(&path)?).is_ok()
            {
                return Ok(Self { socket, address: path.clone().into(), file: Some(path) });
            }
            let path = run_dir.join("notify");
            if path.as_os_str().as_bytes().len() <= LONGEST_PATH {
                let file = directory.join("notify");
                bind(&socket, &SocketAddrUnix::new(&file)?)?;
                return Ok(Self { socket, address: path.into(), file: Some(file) });
            }
            let name = format!("callsheet/{token}");
            bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
            Ok(Self { socket, address: format!("@{name}").into(), file: None })
        }

        pub(crate) fn address(&self) -> OsString {
            self.address.clone()
        }

        pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }

        /// Takes everything in that has arrived, up to a bound, and says what was new in it.
        pub(crate) fn drain_into(&self, said: &mut Said) -> Heard {
            let mut heard = Heard::default();
            // Bounded, so that a command that floods its socket can't keep its shim from anything else.
            for _ in 0..256 {
                let mut bytes = [0_u8; 8192];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(16))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let received =
                    recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
                let Ok(received) = received else { break };
                let mut trusted = false;
                // Descriptors that came along (a file descriptor store is systemd's) are closed by being dropped.
                for message in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmCredentials(sender) = message {
                        trusted = sender.uid == rustix::process::geteuid() || sender.uid.is_root();
                    }
                }
                if trusted && let Some(datagram) = bytes.get(..received.bytes) {
                    heard |= said.hear(datagram);
                }
            }
            heard
        }
    }

    impl Drop for Inbox {
        fn drop(&mut self) {
            if let Some(file) = &self.file {
                let _ = fs::remove_file(file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heard(datagrams: &[&[u8]]) -> Said {
        let mut said = Said::default();
        for datagram in datagrams {
            said.hear(datagram);
        }
        said
    }

    #[test]
    fn progress_and_status_are_taken_and_the_rest_is_ignored() {
        let said = heard(&[b"READY=1\nX_PROGRESS=40\nSTATUS=frame 12 of 30\n", b"WATCHDOG=1", b"X_PROGRESS=41"]);
        assert_eq!(said, Said { progress: Some(41), status_message: Some("frame 12 of 30".to_owned()) });
    }

    #[test]
    fn bad_values_leave_the_last_good_one() {
        for bad in ["101", "-1", "+5", "4.5", "", " 5", "999999999999", "٣"] {
            let said = heard(&[b"X_PROGRESS=7", format!("X_PROGRESS={bad}").as_bytes()]);
            assert_eq!(said.progress, Some(7), "{bad:?}");
        }
        assert_eq!(Said::default().hear(b"X_PROGRESS=no"), Heard::default());
    }

    #[test]
    fn only_the_words_of_the_protocol_are_a_sign_of_life() {
        let heard = |datagram: &[u8]| Said::default().hear(datagram);
        assert_eq!(heard(b"STATUS=x\nWATCHDOG=1\n"), Heard { changed: true, alive: true, stuck: false });
        assert_eq!(heard(b"WATCHDOG=trigger"), Heard { stuck: true, ..Heard::default() });
        for other in
            [&b"WATCHDOG=0"[..], b"WATCHDOG=", b"WATCHDOG=1 ", b"watchdog=1", b"WATCHDOG_USEC=1", b"X_WATCHDOG=1"]
        {
            assert_eq!(heard(other), Heard::default(), "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn a_status_is_made_safe_and_cut() {
        let said = heard(&[b"STATUS=\x1b[31mred\x1b[0m\x00\x07!"]);
        assert_eq!(said.status_message.as_deref(), Some("red!"));
        let long = format!("STATUS={}", "ä".repeat(5000));
        assert_eq!(heard(&[long.as_bytes()]).status_message.map(|status| status.chars().count()), Some(1000));
    }

    proptest! {
        #[test]
        fn whatever_comes_in_what_is_kept_is_in_bounds(datagram in prop::collection::vec(any::<u8>(), 0..300), key in prop_oneof![Just("X_PROGRESS="), Just("STATUS="), Just("")]) {
            let said = heard(&[&[key.as_bytes(), &datagram].concat()]);
            prop_assert!(said.progress.is_none_or(|percent| percent <= 100));
            if let Some(status) = said.status_message {
                prop_assert!(status.chars().count() <= 1000 && status.chars().all(|c| !c.is_control() || c == '\t'|| c == '\n'));
            }
        }

        #[test]
        fn every_percentage_is_taken(percent in 0u8..=100) {
            prop_assert_eq!(heard(&[format!("X_PROGRESS={percent}").as_bytes()]).progress, Some(percent));
        }
    }
}
