//! A control group per run, where the service's own group was delegated to it (cgroups(7), version 2).
//!
//! It catches nothing that the tree of processes would not show, but it ends them all in one write. Groups cost
//! milliseconds of kernel time here and there, so they are used only where somebody clearly meant them to be.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, Mode, OFlags};

/// The service's own group, where runs may have groups below it: not the root (which has no `cgroup.kill`), and
/// writable.
pub(super) fn own_delegated() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = mount_point()?.join(own);
    let writable = |path: &Path| rustix::fs::access(path, Access::WRITE_OK).is_ok();
    let usable = writable(&group) && writable(&group.join("cgroup.procs")) && writable(&group.join("cgroup.kill"));
    usable.then_some(group)
}

/// Where the version 2 tree is mounted (proc(5), mountinfo).
fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount =
        mounts.lines().find(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup2 ")))?;
    mount.split(' ').nth(4).map(PathBuf::from)
}

/// The group of one run.
#[derive(Debug)]
pub(super) struct RunGroup {
    path: PathBuf,
    procs: OwnedFd,
}

impl RunGroup {
    /// Makes the group of the run with this token; `None` where that is refused, and the run goes without.
    pub(super) fn create(own: &Path, token: &str) -> Option<Self> {
        let path = group_of(own, token);
        fs::create_dir(&path).ok()?;
        match rustix::fs::open(path.join("cgroup.procs"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(procs) => Some(Self { path, procs }),
            Err(_) => {
                let _ = fs::remove_dir(&path);
                None
            }
        }
    }

    /// What a process writes "0" to in order to join.
    pub(super) fn procs(&self) -> BorrowedFd<'_> {
        self.procs.as_fd()
    }

    pub(super) fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// Removes the group, killing whatever is left in it.
    pub(super) fn remove(self) {
        remove(&self.path);
    }
}

fn group_of(own: &Path, token: &str) -> PathBuf {
    own.join(format!("callsheet-{token:.8}"))
}

/// Removes the group that a killed shim left behind, with everything in it.
pub(super) fn remove_of(token: &str) {
    if let Some(own) = own_delegated() {
        remove(&group_of(&own, token));
    }
}

/// Bounded: a group that can't be emptied within five seconds stays.
fn remove(path: &Path) {
    for _ in 0..1000 {
        match fs::remove_dir(path) {
            // EBUSY: somebody is in it, or a dead one is still being put away.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let _ = fs::write(path.join("cgroup.kill"), "1");
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => return,
        }
    }
}
