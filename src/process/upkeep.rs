//! What becomes of run directories after their runs: logs are compressed, and directories that are old enough removed.
//!
//! Nothing here touches a run whose journal is locked, follows a symbolic link, or leaves a state in which something that
//! was there before can't be read any more.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};

use super::logs;
use super::run_dir::{self, JOURNAL};
use super::spare::SPARE;
use crate::crash::{self, Step};
use crate::domain::run::Usage;
use crate::domain::{Attempt, JobId, RunToken, Timestamp};

/// The start of the name that a directory has while it is being removed.
const REMOVED: &str = ".removed-";

/// A spare directory that is younger may be in the middle of being made, before its lock is taken.
const SPARE_SETTLED: Duration = Duration::from_secs(60);

/// Run directories that are looked up in the database together.
const BATCH: usize = 200;

/// The run directories of one data directory.
#[derive(Clone, Debug)]
pub struct RunDirectories {
    runs: PathBuf,
}

/// A run directory, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDirectory {
    /// The job.
    pub job: JobId,
    /// Which attempt at it.
    pub attempt: Attempt,
    /// The first eight digits of the run's token.
    pub token_start: String,
    /// When something was last made or removed in it.
    pub modified: Timestamp,
}

impl RunDirectory {
    /// That of a run which has ended now.
    #[must_use]
    pub fn of(job: JobId, attempt: Attempt, token: &RunToken, now: Timestamp) -> Self {
        Self { job, attempt, token_start: format!("{:.8}", token.as_str()), modified: now }
    }

    fn parse(name: &str, modified: Timestamp) -> Option<Self> {
        let mut parts = name.splitn(3, '-');
        let (job, attempt, token_start) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        let directory =
            Self { job: JobId(job), attempt: Attempt(attempt), token_start: token_start.to_owned(), modified };
        let ours = token_start.len() == 8 && token_start.bytes().all(|byte| byte.is_ascii_hexdigit());
        (ours && directory.name() == name).then_some(directory)
    }

    fn name(&self) -> String {
        format!("{}-{}-{}", self.job, self.attempt, self.token_start)
    }
}

/// Whether the logs of a run that used this much are worth compressing.
#[must_use]
pub const fn is_worth_compressing(usage: Usage) -> bool {
    usage.output_bytes >= logs::WORTH_COMPRESSING
}

impl RunDirectories {
    /// Those of this data directory.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self { runs: data_dir.join("runs") }
    }

    /// Hands all directories that were last changed before `before` to `each`, some at a time, and finishes what an
    /// earlier removal had begun. Blocks.
    ///
    /// # Errors
    /// Where the runs directory can't be read.
    pub fn older_than(&self, before: Timestamp, mut each: impl FnMut(Vec<RunDirectory>)) -> io::Result<()> {
        let mut batch = Vec::new();
        for entry in std::fs::read_dir(&self.runs)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with(REMOVED) {
                // A command may have left there what only another user can delete; that is no reason to keep the others.
                if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                    tracing::warn!(path = %entry.path().display(), %error, "an old run directory can't be removed");
                }
                continue;
            }
            // Of the entry itself, where that is a link.
            let Ok(found) = entry.metadata() else { continue };
            let modified = Timestamp::from_unix_millis(found.mtime().saturating_mul(1000));
            if name.starts_with(SPARE) {
                let settled = modified.plus(SPARE_SETTLED) < crate::clock::now();
                if settled && found.is_dir() && !is_locked(&entry.path()).unwrap_or(true) {
                    // Of a service that was killed. Where it can't be removed it is in nobody's way.
                    let _ = std::fs::remove_dir_all(entry.path());
                }
                continue;
            }
            let Some(directory) = RunDirectory::parse(&name, modified) else { continue };
            if found.is_dir() && modified < before {
                batch.push(directory);
            }
            if batch.len() >= BATCH {
                each(std::mem::take(&mut batch));
            }
        }
        if !batch.is_empty() {
            each(batch);
        }
        Ok(())
    }

    /// Where the directory is; `None` where it is gone, not ours, or its shim lives.
    fn unwatched(&self, directory: &RunDirectory) -> io::Result<Option<PathBuf>> {
        let path = self.runs.join(directory.name());
        let found = match path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            outcome => outcome?,
        };
        let watched = run_dir::refuse_foreign(&path, &found).is_err() || is_locked(&path)?;
        Ok((!watched).then_some(path))
    }

    /// Removes the directory of a run that has ended; `false` where its shim lives, or it is not ours. Blocks.
    ///
    /// # Errors
    /// Where it can't be removed; it is gone by its name then, and the rest goes with the next [`Self::older_than`].
    pub fn remove(&self, directory: &RunDirectory) -> io::Result<bool> {
        let Some(path) = self.unwatched(directory)? else { return Ok(false) };
        // In one step, so that nobody finds half of it and takes a run without a journal for one that never started.
        let aside = self.runs.join(format!("{REMOVED}{}", directory.name()));
        crash::before(Step::DirectoryAside);
        std::fs::rename(&path, &aside)?;
        crash::after(Step::DirectoryAside);
        crash::before(Step::DirectoryRemoval);
        std::fs::remove_dir_all(aside)?;
        crash::after(Step::DirectoryRemoval);
        Ok(true)
    }

    /// Compresses the logs of a run that has ended, where that is worth while; `false` where its shim lives. Blocks.
    ///
    /// # Errors
    /// Where that fails, as on a full disk; everything can be read all the same, and it may be tried again.
    pub fn compress(&self, directory: &RunDirectory) -> io::Result<bool> {
        let Some(path) = self.unwatched(directory)? else { return Ok(false) };
        logs::compress(&path)?;
        Ok(true)
    }
}

/// Whether somebody is responsible for the run in this directory at this moment.
fn is_locked(run_dir: &Path) -> io::Result<bool> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let journal: File = match options.open(run_dir.join(JOURNAL)) {
        Ok(journal) => journal,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match flock(&journal, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(true),
        Err(error) => return Err(error.into()),
    }
    // Explicitly, so that a copy of the descriptor in a process being spawned does not keep the lock.
    flock(&journal, FlockOperation::Unlock)?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_unix_millis(millis)
    }

    fn all(directories: &RunDirectories) -> Vec<String> {
        let mut names = Vec::new();
        directories.older_than(at(i64::MAX), |batch| names.extend(batch.iter().map(RunDirectory::name))).unwrap();
        names.sort();
        names
    }

    fn one(name: &str) -> RunDirectory {
        RunDirectory::parse(name, at(0)).unwrap()
    }

    #[test]
    fn only_directories_of_runs_are_found_and_only_old_ones() {
        let scratch = tempfile::tempdir().unwrap();
        let directories = RunDirectories::of(scratch.path());
        let runs = scratch.path().join("runs");
        for name in
            ["7-1-0123abcd", "7-01-0123abcd", "x-1-0123abcd", "7-1-0123abc", "lost+found", ".removed-9-1-0123abcd"]
        {
            std::fs::create_dir_all(runs.join(name).join("inside")).unwrap();
        }
        std::fs::write(runs.join("8-1-0123abcd"), "a file").unwrap();
        std::os::unix::fs::symlink(scratch.path(), runs.join("9-1-0123abcd")).unwrap();
        // Nothing that `remove_dir_all` could remove.
        std::fs::write(runs.join(".removed-5-1-0123abcd"), "").unwrap();
        assert_eq!(all(&directories), ["7-1-0123abcd"]);
        assert!(!runs.join(".removed-9-1-0123abcd").exists(), "what was begun is finished");
        let mut found = 0;
        directories.older_than(at(1), |batch| found += batch.len()).unwrap();
        assert_eq!(found, 0);
    }

    #[test]
    fn what_a_killed_service_had_made_ahead_is_removed_once_it_is_settled_and_not_locked() {
        let scratch = tempfile::tempdir().unwrap();
        let runs = scratch.path().join("runs");
        let spare = |name: &str, age: i64| {
            let directory = runs.join(name);
            std::fs::create_dir_all(&directory).unwrap();
            let journal = File::create(directory.join(JOURNAL)).unwrap();
            let time = rustix::fs::Timespec { tv_sec: crate::clock::now().unix_millis() / 1000 - age, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, &directory, &times, rustix::fs::AtFlags::empty()).unwrap();
            journal
        };
        drop((spare(".spare-1-0", 3600), spare(".spare-1-1", 0)));
        let held = spare(".spare-1-2", 3600);
        flock(&held, FlockOperation::LockExclusive).unwrap();
        std::os::unix::fs::symlink(scratch.path(), runs.join(".spare-1-3")).unwrap();
        assert!(all(&RunDirectories::of(scratch.path())).is_empty());
        let there = |number: u32| runs.join(format!(".spare-1-{number}")).symlink_metadata().is_ok();
        assert_eq!([0, 1, 2, 3].map(there), [false, true, true, true], "old, young, locked, a link");
    }

    #[test]
    fn a_run_that_is_watched_over_is_never_touched() {
        let scratch = tempfile::tempdir().unwrap();
        let run = scratch.path().join("runs/7-1-0123abcd");
        std::fs::create_dir_all(&run).unwrap();
        std::fs::write(run.join("stdout.0"), vec![b'x'; 100_000]).unwrap();
        let journal = File::create(run.join(JOURNAL)).unwrap();
        flock(&journal, FlockOperation::LockExclusive).unwrap();
        let directories = RunDirectories::of(scratch.path());
        assert!(!directories.remove(&one("7-1-0123abcd")).unwrap());
        assert!(!directories.compress(&one("7-1-0123abcd")).unwrap());
        assert!(run.join("stdout.0").exists());
        drop(journal);
        assert!(directories.compress(&one("7-1-0123abcd")).unwrap());
        assert!(run.join("stdout.0-100000.gz").exists() && !run.join("stdout.0").exists());
        assert!(directories.remove(&one("7-1-0123abcd")).unwrap());
        assert!(!directories.remove(&one("7-1-0123abcd")).unwrap(), "it is gone");
    }

    #[test]
    fn links_are_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let runs = scratch.path().join("runs");
        let outside = scratch.path().join("outside");
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("precious"), "data").unwrap();
        std::fs::create_dir_all(runs.join("7-1-0123abcd")).unwrap();
        std::os::unix::fs::symlink(&outside, runs.join("7-1-0123abcd/link")).unwrap();
        std::os::unix::fs::symlink(&outside, runs.join("8-1-0123abcd")).unwrap();
        let directories = RunDirectories::of(scratch.path());
        assert!(directories.remove(&one("7-1-0123abcd")).unwrap());
        assert!(!directories.remove(&one("8-1-0123abcd")).unwrap());
        assert!(outside.join("precious").exists());
    }
}
