//! Where on its disk the directory of all runs is.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{CWD, IFlags, Mode, OFlags, RenameFlags, ioctl_getflags, ioctl_setflags, open, renameat_with};

use crate::clock::boottime;

/// The start of the name that the directory has until it has its place.
const NEW: &str = ".runs-";

/// Makes the directory of all runs, where there is none.
///
/// A directory that ext4 makes goes into the part of the disk where the one around it is, and so does what is made in it later. There it
/// looks for a free inode from the start on, and without a journal of its own passes over each one that was freed within the last
/// minutes (`recently_deleted` in `fs/ext4/ialloc.c`): beside a few thousand files that somebody has removed this took a quarter of
/// the CPU of all short runs. So the directory is made in a part where few others are, as ext4 chooses one for what stands at the top
/// of a hierarchy (`T` in chattr(1)): by its name to begin with, which is therefore another one each time.
///
/// # Errors
/// Where it can't be made.
pub(super) fn make_runs(runs: &Path) -> io::Result<()> {
    let builder = || {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder
    };
    if let (Some(parent), false) = (runs.parent(), runs.try_exists()?) {
        builder().recursive(true).create(parent)?;
        remove_leftovers(parent);
        set_apart(parent);
        let new = parent.join(format!("{NEW}{}-{}", std::process::id(), boottime().as_nanos()));
        // Where this fails it is made as any other; where it was made meanwhile, that is the one.
        if builder().create(&new).is_ok() && renameat_with(CWD, &new, CWD, runs, RenameFlags::NOREPLACE).is_err() {
            remove_leftovers(parent);
        }
    }
    builder().recursive(true).create(runs)
}

/// Has each directory that is made in this one be put where few others are, by a file system that knows of such a thing.
fn set_apart(directory: &Path) {
    let set =
        open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).and_then(|directory| {
            let flags = ioctl_getflags(&directory)?;
            ioctl_setflags(&directory, flags | IFlags::TOPDIR)
        });
    if let Err(error) = set {
        tracing::debug!(%error, directory = %directory.display(), "can't have its directories be set apart on the disk");
    }
}

/// Those of a process that was killed; they are empty.
fn remove_leftovers(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        // One that is not empty is nobody's business here; one that is gone is another process's.
        if entry.file_name().to_string_lossy().starts_with(NEW)
            && let Err(error) = std::fs::remove_dir(entry.path())
        {
            tracing::debug!(%error, directory = %entry.path().display(), "can't remove a directory that is left over");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_directory_is_made_once_and_nothing_is_left_of_earlier_tries() {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path().join("data");
        let left = data.join(format!("{NEW}1-2"));
        std::fs::create_dir_all(&left).unwrap();
        let runs = data.join("runs");
        make_runs(&runs).unwrap();
        assert_eq!(runs.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let names = || std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(), ["runs"]);
        std::fs::write(runs.join("a"), "").unwrap();
        make_runs(&runs).unwrap();
        assert!(runs.join("a").exists());
        assert_eq!(names(), ["runs"]);
        std::fs::write(data.join("file"), "").unwrap();
        make_runs(&data.join("file")).unwrap_err();
    }

    #[test]
    fn a_file_system_that_knows_of_it_sets_the_directory_apart() {
        let flags = |path: &Path| std::fs::File::open(path).and_then(|file| Ok(ioctl_getflags(&file)?));
        let scratch = tempfile::tempdir().unwrap();
        let (data, other) = (scratch.path().join("data"), scratch.path().join("other"));
        std::fs::create_dir(&other).unwrap();
        set_apart(&other);
        let knows = flags(&other).is_ok_and(|flags| flags.contains(IFlags::TOPDIR));
        make_runs(&data.join("runs")).unwrap();
        assert_eq!(flags(&data).is_ok_and(|flags| flags.contains(IFlags::TOPDIR)), knows);
        assert!(!flags(&data.join("runs")).is_ok_and(|flags| flags.contains(IFlags::TOPDIR)));
    }
}
