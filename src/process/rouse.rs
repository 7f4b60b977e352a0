//! Whoever stands still (SIGSTOP) where a run waits for it.
//!
//! A zygote in that state takes no order, and what was sent to it stays in its socket with the run's journal, whose lock keeps
//! everybody from saying that the run never started; also when its service is gone. It is killed, since it is only a helper: what it
//! has not carried out is found never to have started. A shim has a command to look after, and is woken.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::run_dir::{History, JOURNAL, LARGEST_JOURNAL, StartingRecord};
use super::tree::{self, Stat};
use super::{ZYGOTE_NAME, ZYGOTE_WORD};

/// The variable of a zygote that names the runs directory it was started for. No command gets it.
pub(super) const RUNS: &str = "CALLSHEET_RUNS";

/// Wakes this shim up where it stands still, and says whether it did.
pub(super) fn wake(shim: &StartingRecord) -> bool {
    let pid = shim.shim_pid;
    // Opened before it is looked at, so that it is no other process that is woken, which may have been given its number.
    let Some(process) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return false;
    };
    let stands_still = Stat::of(pid).is_some_and(|stat| stat.start_ticks == shim.shim_start_ticks && stat.state == 'T');
    stands_still && pidfd_send_signal(process, Signal::CONT).is_ok()
}

/// Kills what stands still of the helpers that were started for this runs directory and have no command to look after: zygotes, of
/// whichever service, and shims before a start or between two. Says which.
pub(super) fn end_idle(runs: &Path) -> Vec<i32> {
    // Where they can't be listed, this is asked again.
    let all = tree::all_processes().unwrap_or_default();
    all.into_iter().filter(|pid| ended(*pid, runs).is_some()).collect()
}

fn ended(pid: i32, runs: &Path) -> Option<()> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let stat = Stat::of(pid)?;
    let stands_still = stat.state == 'T' || stat.state == 't';
    (stands_still && is_helper(pid, runs)? && !looks_after_a_command(pid)?).then_some(())?;
    pidfd_send_signal(process, Signal::KILL).ok()
}

fn is_helper(pid: i32, runs: &Path) -> Option<bool> {
    let words = format!("{ZYGOTE_NAME}\0{ZYGOTE_WORD}\0");
    let variable = [RUNS.as_bytes(), b"=", runs.as_os_str().as_encoded_bytes()].concat();
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let is_ours = environment.split(|byte| *byte == 0).any(|entry| entry == variable);
    Some(is_ours && fs::read(format!("/proc/{pid}/cmdline")).ok()? == words.as_bytes())
}

/// Whether it has a journal open, wherever that is by now, that may have a command. `None` where that can't be seen.
fn looks_after_a_command(pid: i32) -> Option<bool> {
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).ok()? {
        let descriptor = descriptor.ok()?.path();
        let target = fs::read_link(&descriptor).ok()?;
        // Also one that was removed: its name goes on.
        let is_journal = target.file_name().is_some_and(|name| name.to_string_lossy().starts_with(JOURNAL));
        if is_journal {
            let mut bytes = Vec::new();
            File::open(&descriptor).ok()?.take(LARGEST_JOURNAL).read_to_end(&mut bytes).ok()?;
            let never_started = |history: History| history.starting.is_none() && !history.unreadable;
            if !History::parse(&bytes).is_ok_and(never_started) {
                return Some(true);
            }
        }
    }
    Some(false)
}
