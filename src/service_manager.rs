//! What systemd, or whoever else started the service by its protocol, is told about it: sd_notify(3).
//!
//! Commands don't see its socket: they have one of their own, their shim's (`process::environment` keeps this one back).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to whoever started the service; says nothing where nobody listens.
#[derive(Debug, Default)]
pub struct ServiceManager {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// As the environment says: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` where `WATCHDOG_PID` does not mean another process.
    #[must_use]
    pub fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let to = match open(&name) {
            Ok(to) => to,
            Err(error) => {
                tracing::warn!(%error, socket = %name.to_string_lossy(), "the service manager can't be told anything");
                return Self::default();
            }
        };
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|microseconds| meant && *microseconds > 0);
        Self { to: Some(to), watchdog: watchdog.map(Duration::from_micros) }
    }

    /// Within which time it wants a sign of life; `None` where it wants none.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.to.is_some()
    }

    /// The service works.
    pub fn ready(&self, status: &str) {
        self.tell(&["READY=1", &format!("STATUS={}", one_line(status))]);
    }

    /// What the service is doing, for people.
    pub fn status(&self, status: &str) {
        self.tell(&[&format!("STATUS={}", one_line(status))]);
    }

    /// The service is alive.
    pub fn alive(&self) {
        self.tell(&["WATCHDOG=1"]);
    }

    /// The service begins to stop, for which it may take so long.
    pub fn stopping(&self, within: Duration) {
        self.tell(&["STOPPING=1", "STATUS=stopping", &format!("EXTEND_TIMEOUT_USEC={}", within.as_micros())]);
    }

    fn tell(&self, lines: &[&str]) {
        let Some((socket, address)) = &self.to else { return };
        if let Err(error) = socket.send_to_addr(lines.join("\n").as_bytes(), address) {
            tracing::debug!(%error, "the service manager did not hear");
        }
    }
}

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => abstract_address(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither an absolute path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up the service.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> io::Result<SocketAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "abstract sockets are Linux' own"))
}

/// A newline would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}
