//! Whether the kernel killed a process for want of memory, where no control group counts that: by the kernel's own log.

use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Records of the log that are looked at, the buffer holds some thousands.
const MOST_RECORDS: usize = 100_000;

/// Whether the log says that this process was killed for it since `since_micros` after boot.
///
/// `false` also where the log may not be read (dmesg_restrict in proc(5)), or counts processes of another pid namespace.
pub(super) fn was_killed(pid: i32, since_micros: u64) -> bool {
    search(pid, since_micros).unwrap_or(false)
}

fn search(pid: i32, since_micros: u64) -> io::Result<bool> {
    let log = rustix::fs::open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let mut record = [0; 8192];
    for _ in 0..MOST_RECORDS {
        match rustix::io::read(&log, &mut record) {
            Ok(0) | Err(Errno::AGAIN) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                if tells_of(&text, pid, since_micros) {
                    return Ok(true);
                }
            }
            // EPIPE: records were overwritten meanwhile; the next read goes on behind them.
            Err(Errno::PIPE | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// A record is "priority,sequence,microseconds,flags;text" (Documentation/ABI/testing/dev-kmsg).
fn tells_of(record: &str, pid: i32, since_micros: u64) -> bool {
    let Some((head, text)) = record.split_once(';') else { return false };
    let recent = head.split(',').nth(2).and_then(|at| at.parse::<u64>().ok()).is_some_and(|at| at >= since_micros);
    recent && text.contains(&format!("ut of memory: Killed process {pid} ("))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_recent_kill_of_this_process_counts() {
        let machine = "3,999,5000000,-;Out of memory: Killed process 42 (python3) total-vm:1kB, anon-rss:1kB\n";
        let group = "3,999,5000000,-;Memory cgroup out of memory: Killed process 42 (python3) total-vm:1kB\n";
        assert!(tells_of(machine, 42, 5_000_000) && tells_of(group, 42, 1));
        assert!(!tells_of(machine, 42, 5_000_001) && !tells_of(machine, 4, 1) && !tells_of(machine, 421, 1));
        assert!(!tells_of("3,999,5000000,-;42 was seen", 42, 1) && !tells_of("", 42, 0));
    }
}
