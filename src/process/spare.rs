//! The directory of the next run, made while nobody waits for it.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, UTIME_NOW, renameat_with, utimensat};

use super::Error;
use super::run_dir::Journal;
use crate::clock::boottime;

/// A run directory with a journal, locked and empty, for a run that is yet to come.
///
/// To make the two takes a millisecond where a file system looks long for a place (ext4 without a journal of its own, for
/// minutes after other files were removed), and a run that comes after another has somebody wait for it. Removed when it is
/// dropped; what a service that was killed leaves goes with the old run directories.
#[derive(Debug)]
pub(super) struct Spare {
    path: PathBuf,
    /// `None` once it is a run's.
    journal: Option<Journal>,
    /// By the clock that goes on while the machine sleeps.
    made: Duration,
}

/// A run directory may be so much older than its run, which nobody minds who counts days.
const YOUNG: Duration = Duration::from_mins(1);

/// The start of the name of a spare directory, which is no run's.
pub(super) const SPARE: &str = ".spare-";

impl Spare {
    /// Makes one, with a name that no other has.
    ///
    /// # Errors
    /// Where it can't be made. A run can still make its own.
    pub(super) fn make(runs: &Path) -> Result<Self, Error> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let path = runs.join(format!("{SPARE}{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
        let not_made = |source| Error::RunFile { action: "make", path: path.clone(), source };
        DirBuilder::new().mode(0o700).create(&path).map_err(not_made)?;
        let mut spare = Self { path, journal: None, made: boottime() };
        spare.journal = Some(Journal::make(&spare.path)?);
        Ok(spare)
    }

    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it the name of a run, which nobody must have.
    ///
    /// # Errors
    /// Where somebody has, or it is gone.
    pub(super) fn become_run(mut self, path: &Path) -> io::Result<Journal> {
        let journal = self.journal.take().ok_or(io::ErrorKind::NotFound)?;
        renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE)?;
        self.path = PathBuf::new();
        if boottime().saturating_sub(self.made) > YOUNG {
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            // What it counts from when it is old; where that fails it is a little older than it is.
            let _ = utimensat(CWD, path, &Timestamps { last_access: now, last_modification: now }, AtFlags::empty());
        }
        Ok(journal)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // What can't be removed now is removed with the old run directories.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_run_is_not_as_old_as_a_directory_that_has_waited_for_it() {
        let scratch = tempfile::tempdir().unwrap();
        let mut spare = Spare::make(scratch.path()).unwrap();
        let then = Timespec { tv_sec: 1_000_000, tv_nsec: 0 };
        let times = Timestamps { last_access: then, last_modification: then };
        utimensat(CWD, spare.path(), &times, AtFlags::empty()).unwrap();
        spare.made = boottime().saturating_sub(2 * YOUNG);
        let run = scratch.path().join("run");
        spare.become_run(&run).unwrap();
        assert!(run.symlink_metadata().unwrap().mtime() > 1_700_000_000);
    }
}
