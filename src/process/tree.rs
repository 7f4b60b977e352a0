//! Finding and ending every process that a run has started.
//!
//! The shim is a child subreaper (prctl(2)), so whatever its command starts stays below it, in whatever session
//! or group, and however often it was forked away: an orphan becomes the shim's own child.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::domain::RunToken;

/// What `/proc/<pid>/stat` says about a process (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) name: String,
    pub(super) state: char,
    pub(super) parent: i32,
    /// When it started, in clock ticks since boot.
    pub(super) start_ticks: u64,
}

impl Stat {
    /// `None` where there is no such process, or it can't be told.
    pub(super) fn of(pid: i32) -> Option<Self> {
        Self::read(pid).ok().flatten()
    }

    /// `None` where there is no such process.
    ///
    /// # Errors
    /// Where it can't be told.
    fn read(pid: i32) -> io::Result<Option<Self>> {
        // In one read: a line is some 300 bytes long, and the file does not know its length.
        let mut line = [0; 1024];
        let read = fs::File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut line));
        match read {
            Ok(length) => Ok(Self::parse(&String::from_utf8_lossy(line.get(..length).unwrap_or_default()))),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::SRCH) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// A name may hold spaces and parentheses, so the fields are counted from the last one.
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let mut fields = after.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        // Field 22 of proc(5); state is field 3.
        let start_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self { name: name.to_owned(), state, parent, start_ticks })
    }
}

/// Every process below `root`, with its parent.
pub(super) fn descendants(root: i32) -> BTreeMap<i32, i32> {
    let mut found = BTreeMap::new();
    let mut to_visit = vec![root];
    let mut by_parent = None;
    while let Some(parent) = to_visit.pop() {
        let children = match children_by_kernel(parent) {
            Some(children) => children,
            // A kernel without CONFIG_PROC_CHILDREN.
            None => by_parent.get_or_insert_with(children_by_scan).get(&parent).cloned().unwrap_or_default(),
        };
        for child in children {
            if found.insert(child, parent).is_none() {
                to_visit.push(child);
            }
        }
    }
    found
}

/// The children of every thread of `pid`; `None` where the kernel doesn't tell.
fn children_by_kernel(pid: i32) -> Option<Vec<i32>> {
    let mut children = Vec::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Some(children);
    };
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => children.extend(list.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok())),
            Err(_) if !fs::exists("/proc/thread-self/children").unwrap_or(false) => return None,
            // This thread has just ended.
            Err(_) => {}
        }
    }
    Some(children)
}

fn children_by_scan() -> BTreeMap<i32, Vec<i32>> {
    let mut by_parent: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in all_processes().unwrap_or_default() {
        if let Some(stat) = Stat::of(pid) {
            by_parent.entry(stat.parent).or_default().push(pid);
        }
    }
    by_parent
}

/// The number of every process of this machine.
pub(super) fn all_processes() -> io::Result<Vec<i32>> {
    Ok(fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Sends `signal` to every process below `root`, once.
pub(super) fn signal_all(root: i32, signal: Signal) {
    for (pid, parent) in descendants(root) {
        send(pid, parent, root, signal);
    }
}

/// Kills every process below `root`; to be repeated until there are none.
///
/// All are stopped first, until no new one turns up: a fork(2) fails while a signal is pending, so what keeps
/// forking can't outrun this.
pub(super) fn kill_all(root: i32) {
    let mut stopped = BTreeMap::new();
    for _ in 0..64 {
        let fresh: Vec<_> = descendants(root).into_iter().filter(|(pid, _)| !stopped.contains_key(pid)).collect();
        if fresh.is_empty() {
            break;
        }
        for (pid, parent) in fresh {
            send(pid, parent, root, Signal::STOP);
            stopped.insert(pid, parent);
        }
    }
    for (pid, parent) in stopped {
        send(pid, parent, root, Signal::KILL);
    }
}

/// Signals the process that is still the one that was found: its parent is what it was, or has died and left it
/// to `root`. (A pid alone might have been given to a stranger in between.)
fn send(pid: i32, parent: i32, root: i32, signal: Signal) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let below = Stat::of(pid.as_raw_nonzero().get()).is_some_and(|stat| stat.parent == parent || stat.parent == root);
    if below {
        // It may be gone, which is what we want, or not ours to signal (setuid), which the caller notices.
        let _ = pidfd_send_signal(process, signal);
    }
}

/// What every process below `root` holds in memory, in bytes: what is its own, and once the most that any shares.
///
/// Shared pages (libraries, a fork's untouched copies of files) would be counted many times otherwise.
pub(super) fn resident(root: i32) -> u64 {
    let (mut own, mut shared) = (0_u64, 0_u64);
    for pid in descendants(root).into_keys() {
        // Sizes in pages: total, resident, resident and shared (proc(5), statm).
        let Ok(sizes) = fs::read_to_string(format!("/proc/{pid}/statm")) else { continue };
        let mut sizes = sizes.split_ascii_whitespace().skip(1).map_while(|size| size.parse::<u64>().ok());
        let (Some(resident), Some(of_it_shared)) = (sizes.next(), sizes.next()) else { continue };
        own += resident.saturating_sub(of_it_shared);
        shared = shared.max(of_it_shared);
    }
    (own + shared).saturating_mul(rustix::param::page_size() as u64)
}

/// What is still alive below `root`, for a person.
pub(super) fn names(root: i32) -> String {
    let alive = descendants(root).into_keys().filter_map(|pid| Some((pid, Stat::of(pid)?)));
    let named = alive.filter(|(_, stat)| stat.state != 'Z').take(8);
    named
        .map(|(pid, stat)| format!("{pid} ({}, state {})", stat.name.escape_debug(), stat.state))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The mark that a run's command and everything it starts carry: their limit of file locks.
///
/// Linux has not enforced that limit since 2.4.25 (getrlimit(2), RLIMIT_LOCKS), every process inherits it through fork and
/// exec, a new session, an emptied environment and closed descriptors change nothing about it, and anybody may read it in
/// `/proc/<pid>/limits`. A pid may be given anew, this number is not: it holds the token's first sixty bits.
pub(super) fn mark_of(token: &str) -> u64 {
    1 << 62 | token.get(..15).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
}

/// What a file of a process in `/proc` holds; `None` where that process is gone, or keeps it from this user.
///
/// # Errors
/// Where it can't be told, as where this process may have no more descriptors: that is no sign that nobody is there.
fn file_of(pid: i32, file: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(format!("/proc/{pid}/{file}")) {
        Ok(found) => Ok(Some(found)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM) => Ok(None),
            _ => Err(error),
        },
    }
}

fn is_marked(pid: i32, mark: u64) -> io::Result<bool> {
    let limits = file_of(pid, "limits")?.unwrap_or_default();
    let limits = String::from_utf8_lossy(&limits);
    let locks = limits.lines().find_map(|line| line.strip_prefix("Max file locks"));
    Ok(locks.is_some_and(|values| values.split_ascii_whitespace().any(|value| value.parse() == Ok(mark))))
}

/// Kills every process that carries the run's mark, or its token in its environment, with all that is below it, and says
/// how many there were. None of them lives by then.
///
/// # Errors
/// Where `/proc` or a process in it can't be looked at, or one can't be ended: it is another user's by now (credentials(7),
/// setuid), or is not dead after ten seconds of trying (state D). Nobody may count on its absence then.
pub(super) fn kill_marked(token: &RunToken) -> io::Result<usize> {
    let entry = format!("CALLSHEET_RUN_TOKEN={token}");
    let mark = mark_of(token.as_str());
    let mut seen = BTreeSet::new();
    let begun = crate::clock::boottime();
    loop {
        let (mut killed, mut out_of_reach) = (None, None);
        for pid in all_processes()? {
            match kill_if_marked(pid, mark, entry.as_bytes())? {
                None => {}
                Some(Found::Killed { start_ticks }) => {
                    killed = Some(pid);
                    seen.insert((pid, start_ticks));
                }
                Some(Found::OutOfReach) => out_of_reach = Some(pid),
            }
        }
        match (killed, out_of_reach) {
            (None, None) => return Ok(seen.len()),
            (None, Some(pid)) => {
                let reason = format!("process {} runs as another user, who has to end it", described(pid));
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
            }
            (Some(pid), _) if crate::clock::boottime().saturating_sub(begun) >= TRIED_FOR => {
                return Err(io::Error::other(format!("process {} outlives SIGKILL", described(pid))));
            }
            (Some(_), _) => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}

/// For how long processes of a run are killed again and again.
const TRIED_FOR: std::time::Duration = std::time::Duration::from_secs(10);

/// A process for people.
fn described(pid: i32) -> String {
    match Stat::of(pid) {
        Some(stat) => format!("{pid} ({}, state {})", stat.name.escape_debug(), stat.state),
        None => pid.to_string(),
    }
}

/// A living process of a run.
enum Found {
    /// It got SIGKILL.
    Killed { start_ticks: u64 },
    /// It may not be signalled.
    OutOfReach,
}

/// Kills the process where it carries the mark; `None` where it doesn't, or is dead.
///
/// # Errors
/// Where that can't be told.
fn kill_if_marked(pid: i32, mark: u64, entry: &[u8]) -> io::Result<Option<Found>> {
    let Some(number) = Pid::from_raw(pid).filter(|_| Ok(pid) != i32::try_from(std::process::id())) else {
        return Ok(None);
    };
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !(is_marked(pid, mark)? || has_in_environment(pid, entry)?) {
        return Ok(None);
    }
    let Some(stat) = Stat::read(pid)?.filter(|stat| stat.state != 'Z' && stat.state != 'X') else { return Ok(None) };
    // Stopped through the descriptor first: what can't end by itself keeps its number, and so its children are its own.
    let stopped = pidfd_send_signal(&process, Signal::STOP);
    if stopped.is_ok() {
        kill_all(pid);
    }
    // The descriptor was opened before the mark was read: both are of one process, or this fails.
    match stopped.and_then(|()| pidfd_send_signal(process, Signal::KILL)) {
        Ok(()) => Ok(Some(Found::Killed { start_ticks: stat.start_ticks })),
        Err(Errno::SRCH) => Ok(None),
        Err(Errno::PERM) => Ok(Some(Found::OutOfReach)),
        Err(error) => Err(error.into()),
    }
}

/// Anybody may write anything there, so only this user's processes are looked at.
fn has_in_environment(pid: i32, entry: &[u8]) -> io::Result<bool> {
    let own =
        fs::metadata(format!("/proc/{pid}")).is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw());
    let environment = if own { file_of(pid, "environ")?.unwrap_or_default() } else { Vec::new() };
    Ok(environment.split(|byte| *byte == 0).any(|found| found == entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_hold_anything() {
        let line = "42 (a) R (b) S 7 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 9999 1000 10 184";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat, Stat { name: "a) R (b".to_owned(), state: 'S', parent: 7, start_ticks: 9999 });
        assert_eq!(Stat::parse("garbage"), None);
        assert!(Stat::of(std::process::id().cast_signed()).is_some());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test of the process layer")]
    fn descendants_are_found_by_both_ways() {
        let mut child = std::process::Command::new("sh").args(["-c", "sleep 600 & wait"]).spawn().unwrap();
        let (us, pid) = (std::process::id().cast_signed(), child.id().cast_signed());
        let begun = crate::clock::boottime();
        while descendants(pid).is_empty() {
            assert!(crate::clock::boottime() - begun < std::time::Duration::from_secs(60), "no grandchild was seen");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let all = descendants(us);
        let grandchild = descendants(pid).into_keys().next().unwrap();
        assert_eq!(all.get(&pid), Some(&us));
        assert_eq!(all.get(&grandchild), Some(&pid));
        assert_eq!(children_by_scan().get(&pid), Some(&vec![grandchild]));
        kill_all(pid);
        child.wait().unwrap();
    }
}
