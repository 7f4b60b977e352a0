//! A control group per run (cgroups(7), version 2): its limits, what it used, and its end in one write.
//!
//! Where a run has no limits a group is only used where somebody clearly meant it to be, that is, where the service's own
//! group was delegated to it: it catches nothing that the tree of processes would not show, and costs milliseconds of kernel
//! time here and there. Limits need one, and the controllers in it; what is missing for that is said in a sentence.
//!
//! A group that hands controllers on must not hold processes itself, so a service with limits moves from its own group into
//! a group below that, [`SERVICE_GROUP`], and the runs get theirs beside it. At the root of the tree, which is exempt from
//! that rule and which only root may use, they get theirs below [`ROOT_GROUP`].

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, Mode, OFlags};

use crate::domain::limits::Limits;
use crate::domain::run::{OutOfMemory, Shortage, Usage};

/// The group that a service with limits moves into, below the one that was delegated to it.
const SERVICE_GROUP: &str = "callsheet-service";
/// The group of all runs, where the service is in the root group.
const ROOT_GROUP: &str = "callsheet";
/// What `cpu.max` counts in: a tenth of a second, the kernel's default, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// Where the runs of a service have their groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// The service's own group.
    own: PathBuf,
    /// The group that runs' groups are made in.
    base: PathBuf,
}

impl Site {
    /// The one of this process; `None` where there is no version 2 tree.
    pub(super) fn of_this_process() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(Self::at(mount_point()?.join(own)))
    }

    fn at(own: PathBuf) -> Self {
        let base = if is_root(&own) {
            own.join(ROOT_GROUP)
        } else if own.file_name().is_some_and(|name| name == SERVICE_GROUP) || is_delegated_below(own.parent()) {
            own.parent().unwrap_or(&own).to_owned()
        } else {
            own.clone()
        };
        Self { own, base }
    }

    /// The group that runs' groups are made in.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Where runs without limits may have groups, too: not at the root of the tree, and writable.
    pub(super) fn delegated(&self) -> Option<PathBuf> {
        let usable = !is_root(&self.own)
            && [&self.base, &self.base.join("cgroup.procs"), &self.base.join("cgroup.kill")]
                .into_iter()
                .all(|path| writable(path));
        usable.then(|| self.base.clone())
    }

    /// Whether runs could be held to these limits; changes nothing.
    ///
    /// # Errors
    /// A sentence for a person that says what is missing.
    pub(super) fn check(&self, limits: Limits) -> Result<(), String> {
        let from = if is_root(&self.own) { &self.own } else { &self.base };
        let given = fs::read_to_string(from.join("cgroup.controllers")).unwrap_or_default();
        for controller in limits.controllers() {
            if !given.split_whitespace().any(|given| given == controller) {
                return Err(format!(
                    "the control group {} has no {controller:?} controller (it has: {}); {}",
                    from.display(),
                    if given.trim().is_empty() { "none" } else { given.trim() },
                    if is_root(from) {
                        "the kernel lacks it, or a version 1 hierarchy holds it (boot with systemd.unified_cgroup_hierarchy=1)"
                    } else {
                        DELEGATE
                    }
                ));
            }
        }
        // At the root the group of all runs may be yet to be made.
        for path in [from.to_owned(), from.join("cgroup.procs"), from.join("cgroup.subtree_control")] {
            if !writable(&path) {
                return Err(format!("{} can't be written to by this user; {DELEGATE}", path.display()));
            }
        }
        Ok(())
    }

    /// Makes ready for groups with these limits: moves this service out of the way, and hands the controllers on.
    ///
    /// May be repeated; a service calls it before it starts anything.
    ///
    /// # Errors
    /// A sentence for a person.
    pub(super) fn prepare(&self, limits: Limits) -> Result<(), String> {
        self.check(limits)?;
        let failed = |what: &str, path: &Path, error: &io::Error| format!("can't {what} {}: {error}", path.display());
        if is_root(&self.own) {
            hand_on(&self.own, limits)?;
            match fs::create_dir(&self.base) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("make", &self.base, &error));
                }
                _ => {}
            }
        } else if self.own == self.base {
            let aside = self.base.join(SERVICE_GROUP);
            match fs::create_dir(&aside) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("make", &aside, &error));
                }
                _ => {}
            }
            move_all(&self.base, &aside).map_err(|error| failed("move the service to", &aside, &error))?;
        }
        hand_on(&self.base, limits)
    }
}

/// What to do where a group was not given to the service.
const DELEGATE: &str =
    "under systemd write Delegate=yes in the unit; elsewhere run as root, or give this user a group of its own";

/// The root of the tree is the one group without a type (cgroups(7)).
fn is_root(group: &Path) -> bool {
    !group.join("cgroup.type").exists()
}

/// Whether systemd has marked this group as handed over to who is in it (systemd.resource-control(5), `DelegateSubgroup=`).
fn is_delegated_below(group: Option<&Path>) -> bool {
    let Some(group) = group else { return false };
    let mut value = [0; 1];
    rustix::fs::getxattr(group, "user.delegate", &mut value).is_ok_and(|length| length == 1 && value == *b"1")
        && fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty())
        && writable(&group.join("cgroup.procs"))
}

fn writable(path: &Path) -> bool {
    rustix::fs::access(path, Access::WRITE_OK).is_ok()
}

/// Where the version 2 tree is mounted (proc(5), mountinfo).
fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount =
        mounts.lines().find(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup2 ")))?;
    mount.split(' ').nth(4).map(PathBuf::from)
}

/// Lets groups below `group` use what these limits need, and what tells what a run used, where that is to be had.
fn hand_on(group: &Path, limits: Limits) -> Result<(), String> {
    let path = group.join("cgroup.subtree_control");
    for controller in limits.controllers() {
        fs::write(&path, format!("+{controller}")).map_err(|error| {
            format!("the {controller:?} controller can't be handed on by {}: {error}", path.display())
        })?;
    }
    for controller in ["memory", "io"] {
        // Only accounting: a run without it is told of less.
        let _ = fs::write(&path, format!("+{controller}"));
    }
    Ok(())
}

/// Moves every process of one group to another; one that forks meanwhile is caught by the next look.
fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    let target = to.join("cgroup.procs");
    for _ in 0..100 {
        let processes = fs::read_to_string(from.join("cgroup.procs"))?;
        if processes.is_empty() {
            return Ok(());
        }
        for process in processes.lines() {
            match fs::write(&target, process) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                outcome => outcome?,
            }
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// The group of one run.
#[derive(Debug)]
pub(super) struct RunGroup {
    path: PathBuf,
    procs: OwnedFd,
    memory_limit: Option<u64>,
}

impl RunGroup {
    /// Makes the group of the run with this token, with these limits.
    ///
    /// # Errors
    /// A sentence for a person; then there is no group.
    pub(super) fn create(base: &Path, token: &str, limits: Limits) -> Result<Self, String> {
        let path = group_of(base, token);
        fs::create_dir(&path)
            .map_err(|error| format!("the control group {} can't be made: {error}", path.display()))?;
        Self::filled(&path, limits).inspect_err(|_| {
            let _ = fs::remove_dir(&path);
        })
    }

    fn filled(path: &Path, limits: Limits) -> Result<Self, String> {
        let set = |name: &str, value: &str| {
            let file = path.join(name);
            write_existing(&file, value)
                .map_err(|error| format!("{value:?} can't be written to {}: {error}", file.display()))
        };
        if let Some(memory) = limits.memory {
            set("memory.max", &memory.to_string())?;
            // Otherwise what is over the limit goes to the swap, and everything on the machine gets slow instead; a kernel
            // without swap has no such file.
            let _ = set("memory.swap.max", "0");
            // A run that has lost one of its processes at random is worth nothing.
            let _ = set("memory.oom.group", "1");
        }
        if let Some(cpu_millis) = limits.cpu_millis {
            let quota = u64::from(cpu_millis) * CPU_PERIOD / 1000;
            set("cpu.max", &format!("{quota} {CPU_PERIOD}"))?;
        }
        if let Some(pids) = limits.pids {
            set("pids.max", &pids.to_string())?;
        }
        let file = path.join("cgroup.procs");
        match rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(procs) => Ok(Self { path: path.to_owned(), procs, memory_limit: limits.memory }),
            Err(error) => Err(format!("{} can't be opened: {error}", file.display())),
        }
    }

    /// What a process writes "0" to in order to join.
    pub(super) fn procs(&self) -> BorrowedFd<'_> {
        self.procs.as_fd()
    }

    pub(super) fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// Whether the group counts the most memory that the run held.
    pub(super) fn counts_memory(&self) -> bool {
        self.path.join("memory.peak").exists()
    }

    /// Puts what the group counted in the place of what was counted otherwise, where it counted.
    pub(super) fn correct(&self, usage: &mut Usage) {
        let cpu = fs::read_to_string(self.path.join("cpu.stat")).unwrap_or_default();
        if let (Some(user), Some(system)) = (field(&cpu, "user_usec"), field(&cpu, "system_usec")) {
            usage.user_cpu = Duration::from_micros(user);
            usage.system_cpu = Duration::from_micros(system);
        }
        // Since Linux 5.19.
        if let Some(peak) = self.number("memory.peak") {
            usage.max_rss_bytes = peak;
        }
        if let Ok(io) = fs::read_to_string(self.path.join("io.stat")) {
            // A line a device; none where nothing was read or written.
            let sum =
                |key: &str| io.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum();
            usage.io_read_bytes = Some(sum("rbytes="));
            usage.io_write_bytes = Some(sum("wbytes="));
        }
    }

    /// What the run could not get.
    pub(super) fn shortage(&self) -> Shortage {
        let count = |file: &str, key: &str| {
            fs::read_to_string(self.path.join(file)).ok().and_then(|events| field(&events, key)).unwrap_or(0)
        };
        let memory = (count("memory.events", "oom_kill") > 0).then(|| match self.memory_limit {
            // Only a group that has come up against its limit counts that; a kill without it came from further up.
            Some(limit) if count("memory.events", "oom") > 0 => OutOfMemory::Run(limit),
            _ => OutOfMemory::Machine,
        });
        Shortage { memory, refused_forks: count("pids.events", "max") }
    }

    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.path.join(file)).ok()?.trim().parse().ok()
    }

    /// Removes the group, killing whatever is left in it.
    pub(super) fn remove(self) {
        remove(&self.path);
    }
}

/// The number after a key in a file of lines "key number".
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Writes to a file of the kernel's, which is never made.
fn write_existing(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn group_of(base: &Path, token: &str) -> PathBuf {
    base.join(format!("callsheet-{token:.8}"))
}

/// Removes the group that a killed shim left behind, with everything in it.
pub(super) fn remove_of(token: &str) {
    if let Some(site) = Site::of_this_process() {
        remove(&group_of(&site.base, token));
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { memory: Some(64 << 20), cpu_millis: Some(2_500), pids: Some(50) };

    /// A directory with the files that the kernel puts into a group, for what needs no kernel behind them.
    fn group(path: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(path).unwrap();
        for name in ["cgroup.procs", "cgroup.subtree_control", "cgroup.kill", "cgroup.type"] {
            fs::write(path.join(name), "").unwrap();
        }
        for (name, text) in files {
            fs::write(path.join(name), text).unwrap();
        }
    }

    #[test]
    fn what_is_missing_for_limits_is_said_with_what_to_do() {
        let scratch = tempfile::tempdir().unwrap();
        let own = scratch.path().join("service");
        group(&own, &[("cgroup.controllers", "cpu pids\n")]);
        let site = Site::at(own.clone());
        let refusal = site.check(LIMITS).unwrap_err();
        let wanted = format!(
            "the control group {} has no \"memory\" controller (it has: cpu pids); under systemd write Delegate=yes",
            own.display()
        );
        assert!(refusal.starts_with(&wanted), "{refusal}");
        assert_eq!(site.check(Limits { memory: None, ..LIMITS }), Ok(()));
        fs::remove_file(own.join("cgroup.type")).unwrap();
        let refusal = Site::at(own.clone()).check(LIMITS).unwrap_err();
        assert!(refusal.contains("a version 1 hierarchy holds it"), "{refusal}");
        fs::write(own.join("cgroup.controllers"), "").unwrap();
        assert!(Site::at(own).check(LIMITS).unwrap_err().contains("(it has: none)"));
    }

    #[test]
    fn runs_are_beside_the_service_never_below_it() {
        let scratch = tempfile::tempdir().unwrap();
        let own = scratch.path().join("unit");
        group(&own, &[]);
        assert_eq!(Site::at(own.clone()), Site { own: own.clone(), base: own.clone() });
        let moved = own.join(SERVICE_GROUP);
        group(&moved, &[]);
        assert_eq!(Site::at(moved.clone()), Site { own: moved, base: own.clone() });
        assert_eq!(Site::at(own.clone()).delegated(), Some(own.clone()));
        fs::remove_file(own.join("cgroup.type")).unwrap();
        let root = Site::at(own.clone());
        assert_eq!((root.delegated(), root.base), (None, own.join(ROOT_GROUP)));
    }

    #[test]
    fn what_the_group_counted_counts() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("run");
        let before = Usage { max_rss_bytes: 5, io_read_bytes: Some(6), ..Usage::default() };
        group(&path, &[("cpu.stat", "usage_usec 9\nuser_usec 7000\nsystem_usec 2000\n")]);
        let run = RunGroup::filled(&path, Limits::default()).unwrap();
        let mut usage = before;
        run.correct(&mut usage);
        let cpu = Usage { user_cpu: Duration::from_millis(7), system_cpu: Duration::from_millis(2), ..before };
        assert_eq!((usage, run.shortage()), (cpu, Shortage::default()));
        group(
            &path,
            &[
                ("memory.peak", "1048576\n"),
                ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n"),
                ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 1\n"),
                ("pids.events", "max 4\n"),
                ("memory.max", ""),
                ("cpu.max", ""),
                ("pids.max", ""),
            ],
        );
        run.correct(&mut usage);
        let all = Usage { max_rss_bytes: 1 << 20, io_read_bytes: Some(11), io_write_bytes: Some(22), ..cpu };
        assert_eq!((usage, run.shortage()), (all, Shortage { memory: Some(OutOfMemory::Machine), refused_forks: 4 }));
        let limited = RunGroup::filled(&path, LIMITS).unwrap();
        assert_eq!(limited.shortage().memory, Some(OutOfMemory::Run(64 << 20)));
        let written = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(["memory.max", "cpu.max", "pids.max"].map(written), ["67108864", "250000 100000", "50"]);
    }

    #[test]
    fn a_limit_that_cannot_be_set_is_no_group_at_all() {
        let scratch = tempfile::tempdir().unwrap();
        let refusal = RunGroup::create(scratch.path(), "0123456789", LIMITS).unwrap_err();
        assert!(refusal.contains("memory.max: No such file"), "{refusal}");
        assert!(!group_of(scratch.path(), "0123456789").exists());
    }
}
