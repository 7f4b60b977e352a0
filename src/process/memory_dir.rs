//! The directory in memory: for files that are of use only while the machine runs, so that no run waits for a disk to make
//! and remove them.
//!
//! What may be lost without a word is all that is in there: somebody's logout or a clean-up may take it away under a
//! running command. So a run's facts stay in its run directory, and so does a socket that a `watchdog` depends on.

use std::ffi::OsStr;
use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::run_dir;
use crate::domain::RunToken;

/// A socket younger than so many seconds may be in the middle of being made.
const SETTLED: i64 = 60;

/// The first of the usual places that is in memory and ours alone; `None` where there is none, and then run directories
/// hold everything.
pub(super) fn open() -> Option<PathBuf> {
    let user = rustix::process::geteuid();
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(|directory| Path::new(&directory).join("callsheet"));
    let places = [
        user.is_root().then(|| "/run/callsheet".into()),
        session.filter(|path| path.is_absolute()),
        // Where a container has no other.
        Some(format!("/dev/shm/callsheet-{}", user.as_raw()).into()),
    ];
    places.into_iter().flatten().find(|path| is_usable(path).unwrap_or(false)).inspect(|path| remove_leftovers(path))
}

/// Where the socket of the run with this token is.
pub(super) fn socket(directory: &Path, token: &str) -> PathBuf {
    directory.join(token)
}

/// Removes what the run with this token has left there; its shim is gone.
pub(super) fn remove(directory: &Path, token: &RunToken) {
    // Most runs have left nothing.
    let _ = std::fs::remove_file(socket(directory, token.as_str()));
}

fn is_usable(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    if rustix::fs::statfs(parent)?.f_type != libc::TMPFS_MAGIC {
        return Ok(false);
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = path.symlink_metadata()?;
    // Anybody may have made it in `/dev/shm`.
    Ok(run_dir::refuse_foreign(path, &found).is_ok() && found.permissions().mode() & 0o077 == 0)
}

/// Removes sockets that nobody listens on: of shims that were killed.
fn remove_leftovers(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let now = crate::clock::now().unix_millis() / 1000;
        let old = |found: Metadata| found.file_type().is_socket() && now.saturating_sub(found.mtime()) > SETTLED;
        let ours = entry.file_name().as_encoded_bytes().len() == 32;
        if ours && entry.metadata().is_ok_and(old) && is_deserted(path.as_os_str()) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn is_deserted(path: &OsStr) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (Ok(socket), Ok(address)) =
        (socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None), SocketAddrUnix::new(path))
    else {
        return false;
    };
    connect(&socket, &address) == Err(Errno::CONNREFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_place_has_to_be_in_memory_and_for_us_alone() {
        let on_disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        assert!(!is_usable(&on_disk.path().join("x")).unwrap_or(false));
        let in_memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = in_memory.path().join("x");
        assert!(is_usable(&path).unwrap());
        assert!(is_usable(&path).unwrap(), "twice");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!is_usable(&path).unwrap(), "others may look in");
        let link = in_memory.path().join("link");
        std::os::unix::fs::symlink(in_memory.path(), &link).unwrap();
        assert!(!is_usable(&link).unwrap(), "a link");
    }

    #[test]
    fn only_old_sockets_that_nobody_listens_on_are_removed() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let name = |digit: &str| directory.path().join(digit.repeat(32));
        let live = UnixDatagram::bind(name("1")).unwrap();
        drop(UnixDatagram::bind(name("2")).unwrap());
        drop(UnixDatagram::bind(name("3")).unwrap());
        std::fs::write(name("4"), "no socket").unwrap();
        for old in ["1", "2", "4"] {
            let time = rustix::fs::Timespec { tv_sec: 1_000, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, name(old), &times, rustix::fs::AtFlags::empty()).unwrap();
        }
        remove_leftovers(directory.path());
        let left: Vec<bool> = ["1", "2", "3", "4"].iter().map(|digit| name(digit).exists()).collect();
        assert_eq!(left, [true, false, true, true], "live, deserted, young, and no socket");
        drop(live);
    }
}
