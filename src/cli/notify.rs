//! `notify`: what a job's command calls to report.

#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use super::failure::{Exit, Failure, Result};

/// Report from inside a job's command: progress, a status line, or that it is still alive
///
/// Sends systemd's notify protocol to the socket that NOTIFY_SOCKET names, which Callsheet sets for each command.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  callsheet notify --progress 40 --status \"frame 12 of 30\"\n  callsheet notify --watchdog"
)]
#[group(required = true, multiple = true)]
pub(super) struct Args {
    /// How far the command is, in per cent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    progress: Option<u8>,
    /// What the command is doing
    #[arg(long, value_name = "TEXT")]
    status: Option<String>,
    /// Say that the command is alive
    #[arg(long)]
    watchdog: bool,
}

pub(super) fn run(args: &Args) -> Result {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return Err(Failure::new(Exit::Usage, "this is not inside a job: NOTIFY_SOCKET is not set")
            .help("`callsheet notify` is for the command of a flow, or what that starts, to call while the job runs"));
    };
    send(socket.as_encoded_bytes(), message(args).as_bytes()).map_err(|error| {
        let shown = socket.display();
        Failure::new(Exit::Failed, format!("can't report to {shown} (NOTIFY_SOCKET): {error}"))
            .help("the job that this process belongs to may have ended")
    })
}

/// Reports progress (per cent) and what is being done to the socket that this process was given.
///
/// # Errors
/// Where there is none, or nobody listens.
pub(super) fn report(progress: Option<u8>, status: Option<&str>) -> std::io::Result<()> {
    let socket = std::env::var_os("NOTIFY_SOCKET").ok_or(std::io::ErrorKind::NotFound)?;
    let args = Args { progress, status: status.map(ToOwned::to_owned), watchdog: false };
    send(socket.as_encoded_bytes(), message(&args).as_bytes())
}

fn message(args: &Args) -> String {
    let mut lines = Vec::new();
    lines.extend(args.progress.map(|progress| format!("X_PROGRESS={progress}")));
    // A line break would start another variable (sd_notify(3)).
    lines.extend(args.status.as_ref().map(|status| format!("STATUS={}", status.replace(['\n', '\r'], " "))));
    lines.extend(args.watchdog.then(|| "WATCHDOG=1".to_owned()));
    lines.join("\n")
}

fn send(socket: &[u8], message: &[u8]) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let address = match socket.strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => SocketAddr::from_abstract_name(name)?,
        #[cfg(not(target_os = "linux"))]
        Some(_) => return Err(std::io::Error::other("a name that starts with @ needs Linux")),
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_stays_one_line_of_the_protocol() {
        let args = Args { progress: Some(40), status: Some("a\nWATCHDOG=1".to_owned()), watchdog: false };
        assert_eq!(message(&args), "X_PROGRESS=40\nSTATUS=a WATCHDOG=1");
    }

    #[test]
    fn abstract_and_path_sockets_are_reached() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("callsheet-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (socket, receiver) in [(path.display().to_string(), by_path), (format!("@{name}"), by_name)] {
            send(socket.as_bytes(), b"WATCHDOG=1").unwrap();
            let mut received = [0; 64];
            let length = receiver.recv(&mut received).unwrap();
            assert_eq!(&received[..length], b"WATCHDOG=1");
        }
    }
}
