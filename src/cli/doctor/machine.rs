//! What can be told by looking: files and their rights, limits, clocks, and how fast the disk says that it has written.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::Access;
use rustix::process::{Resource, getrlimit};
use tokio::time::Instant;

use super::{Finding, shown};
use crate::clock;
use crate::config::{Config, Withheld};
use crate::store::Store;

/// Who may look into the data directory, whether sockets fit into it, and whether there is room.
pub(super) fn files(config: &Config) -> Vec<Finding> {
    const NAME: &str = "data directory";
    let path = &config.data_dir;
    let shown = path.display();
    let Some(existing) = path.ancestors().find(|path| path.exists()) else {
        return vec![Finding::failed(NAME, format!("{shown} can't be looked at"), "check its path")];
    };
    let mut findings = Vec::new();
    let user = rustix::process::geteuid();
    match fs::metadata(path) {
        Ok(found) if found.uid() != user.as_raw() => findings.push(Finding::failed(
            NAME,
            format!("{shown} belongs to user {}, and this is user {}", found.uid(), user.as_raw()),
            format!("run the doctor as the service's user, or: chown -R {} {shown}", user.as_raw()),
        )),
        Ok(found) if found.mode() & 0o077 != 0 => findings.push(Finding::failed(
            NAME,
            format!("others may look into {shown} (mode {:o}), where logs and payloads are", found.mode() & 0o777),
            format!("chmod 700 {shown}"),
        )),
        Ok(_) => findings.push(Finding::ok(NAME, format!("{shown}, for its owner only"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            findings.push(Finding::ok(NAME, format!("{shown} is not there yet; `serve` makes it, for its owner only")));
        }
        Err(error) => {
            let why =
                Withheld::on_the_way_to(path, Access::READ_OK).map_or(error.to_string(), |found| found.to_string());
            findings.push(Finding::failed(NAME, format!("{shown}: {why}"), "check its path and its rights"));
        }
    }
    // `runs/JOB-ATTEMPT-TOKEN/notify` with the largest numbers; unix(7) has room for 107 bytes.
    let longest = path.as_os_str().as_bytes().len() + "/runs/9223372036854775807-4294967295-12345678/notify".len();
    findings.push(if longest <= 107 {
        Finding::ok("socket paths", format!("at most {longest} of 107 bytes"))
    } else {
        Finding::warning(
            "socket paths",
            format!("up to {longest} bytes, and 107 fit: commands get an abstract socket instead of a file"),
            "a data_dir with a shorter path, where commands run in a network namespace of their own",
        )
    });
    findings.push(space(existing));
    findings
}

fn space(path: &Path) -> Finding {
    const NAME: &str = "disk space";
    match rustix::fs::statvfs(path) {
        Ok(found) => {
            let mib = found.f_bavail.saturating_mul(found.f_frsize) >> 20;
            let text = format!("{mib} MiB and {} files are free", found.f_favail);
            // File systems without a fixed number of files say 0 of 0.
            let files_run_out = found.f_files > 0 && found.f_favail < 10_000;
            if mib < 100 || files_run_out {
                Finding::failed(NAME, text, "make room: results wait on a disk that is full, and nothing new starts")
            } else if mib < 1024 {
                Finding::warning(NAME, text, "make room, or lower limits.output")
            } else {
                Finding::ok(NAME, text)
            }
        }
        Err(error) => Finding::warning(NAME, format!("can't be told: {error}"), "check the file system"),
    }
}

/// How many commands this user may have at once.
pub(super) fn limits() -> Finding {
    const NAME: &str = "limits";
    // A run costs its service one descriptor, and the machine a shim besides the command.
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let processes = getrlimit(Resource::Nproc).current.unwrap_or(u64::MAX);
    let of = |limit: u64| if limit == u64::MAX { "any number of".to_owned() } else { limit.to_string() };
    let text = format!("{} open files, {} processes", of(files), of(processes));
    if files < 256 || processes < 256 {
        Finding::failed(NAME, text, "raise them: LimitNOFILE= and LimitNPROC= of the unit, or ulimit -n and -u")
    } else if files < 1024 {
        Finding::warning(NAME, text, "enough for some hundred commands at once; raise LimitNOFILE= for more")
    } else {
        Finding::ok(NAME, text)
    }
}

/// Whether the wall clock goes as fast as the one that nobody can set.
pub(super) async fn clock() -> Finding {
    const NAME: &str = "clock";
    const LOOK: Duration = Duration::from_millis(500);
    let (wall, monotonic) = (clock::now(), Instant::now());
    tokio::time::sleep(LOOK).await;
    let (wall, monotonic) = (clock::now().unix_millis() - wall.unix_millis(), monotonic.elapsed());
    let gone = i64::try_from(monotonic.as_millis()).unwrap_or(i64::MAX);
    let off = wall - gone;
    let year = chrono::DateTime::from_timestamp_millis(clock::now().unix_millis()).map(|time| time.to_rfc3339());
    let year = year.unwrap_or_default();
    if clock::now().unix_millis() < RELEASED {
        return Finding::failed(
            NAME,
            format!("it says {year}, which is before this release"),
            "set it: timedatectl set-ntp true",
        );
    }
    if off.abs() > 20 {
        return Finding::warning(
            NAME,
            format!("it was set by {off} ms while it was looked at"),
            "harmless for running commands, whose time is measured otherwise; slew it instead of stepping it",
        );
    }
    Finding::ok(NAME, "wall clock and monotonic clock go alike")
}

/// 2026-11-01, in Unix milliseconds.
const RELEASED: i64 = 1_793_491_200_000;

/// How far this machine's clock is from the one that the tables go by.
pub(super) async fn database_clock(store: &Store) -> Finding {
    const NAME: &str = "database clock";
    let before = clock::now();
    let there = match store.now().await {
        Ok(there) => there,
        Err(error) => return Finding::failed(NAME, error.to_string(), "check the database"),
    };
    let after = clock::now();
    // The database looked at its clock somewhere between; what lies outside is certain.
    let ahead = there.since(after);
    let behind = before.since(there);
    let off = ahead.max(behind);
    let text = format!(
        "{} from this machine's",
        if off.is_zero() { "no further than the way there".to_owned() } else { shown(off) }
    );
    if off > Duration::from_secs(60) {
        Finding::failed(NAME, text, "set both by NTP; times in tables and logs will not match")
    } else if off > Duration::from_secs(1) {
        Finding::warning(NAME, text, "set both by NTP; leases go by the database's clock alone, so they hold")
    } else {
        Finding::ok(NAME, text)
    }
}

/// Whether the database keeps what it has answered.
pub(super) async fn durability(store: &Store) -> Finding {
    const NAME: &str = "commits";
    match store.not_durable().await {
        Ok(None) => Finding::ok(NAME, "are on disk when they are answered, as far as the database says"),
        Ok(Some(setting)) => Finding::failed(
            NAME,
            format!("the database runs with {setting}: a power cut takes jobs and results that were acknowledged"),
            format!(
                "give {} its default again, which is the safe one",
                setting.split('=').next().unwrap_or_default().trim()
            ),
        ),
        Err(error) => Finding::failed(NAME, error.to_string(), "check the database"),
    }
}

/// Whether what was synced is likely to be on a disk: the kind of file system, and how long it takes.
pub(super) fn fsync(data_dir: &Path) -> Finding {
    const NAME: &str = "fsync";
    const WRITES: u32 = 40;
    /// No disk that keeps its promise is faster: NVMe with power-loss protection takes 10 to 30 µs.
    const NOT_BELIEVABLE: Duration = Duration::from_micros(8);
    let Some(directory) = data_dir.ancestors().find(|path| path.is_dir()) else {
        return Finding::skipped(NAME, "there is no directory to try it in");
    };
    match kind_of_file_system(directory) {
        Some(kind @ ("tmpfs" | "ramfs")) => {
            return Finding::failed(
                NAME,
                format!("{} is on {kind}, which is memory: a power cut takes everything", directory.display()),
                "a data_dir on a disk",
            );
        }
        Some(kind @ ("nfs" | "smb" | "fuse")) => {
            return Finding::warning(
                NAME,
                format!(
                    "{} is on {kind}: its server decides, and file locks and watches may not work",
                    directory.display()
                ),
                "a data_dir on a disk of this machine; a shared database can be elsewhere",
            );
        }
        _ => {}
    }
    match time_of_syncs(directory, WRITES) {
        Ok(time) if time < NOT_BELIEVABLE => Finding::warning(
            NAME,
            format!("takes {}, which no disk that keeps its promise is able to", shown(time)),
            "look for a write cache without a battery, or a virtual disk with cache=unsafe",
        ),
        Ok(time) => Finding::ok(NAME, format!("takes {} in {}, which is plausible", shown(time), directory.display())),
        Err(error) => Finding::failed(
            NAME,
            format!("{}: {error}", directory.display()),
            "make the directory writable for this user, and check its disk",
        ),
    }
}

/// The median.
fn time_of_syncs(directory: &Path, writes: u32) -> std::io::Result<Duration> {
    let path = directory.join(format!(".doctor-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let timed = (0..writes).map(|_| {
        file.write_all(&[0; 512])?;
        let begun = Instant::now();
        file.sync_data()?;
        Ok(begun.elapsed())
    });
    let times: std::io::Result<Vec<Duration>> = timed.collect();
    fs::remove_file(&path)?;
    let mut times = times?;
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}

/// By the magic numbers of statfs(2); `None` for every other, which is a disk's.
fn kind_of_file_system(path: &Path) -> Option<&'static str> {
    match u64::try_from(rustix::fs::statfs(path).ok()?.f_type).ok()? {
        0x0102_1994 => Some("tmpfs"),
        0x8584_58f6 => Some("ramfs"),
        0x6969 => Some("nfs"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => Some("smb"),
        0x6573_5546 => Some("fuse"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_no_disk() {
        if kind_of_file_system(Path::new("/dev/shm")) == Some("tmpfs") {
            let finding = fsync(Path::new("/dev/shm/callsheet-data"));
            assert_eq!(finding.verdict, super::super::Verdict::Failed);
            assert!(finding.help.is_some());
        }
    }

    #[test]
    fn the_trial_of_the_disk_leaves_no_file() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(time_of_syncs(scratch.path(), 3).unwrap() > Duration::ZERO);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
