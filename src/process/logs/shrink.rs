//! Compressing the logs of a run that has ended.
//!
//! At every moment each segment is there in at least one form that is whole, also after a power failure: the compressed
//! one is synced before it gets its name, and its name is synced before the plain one goes.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::kept::{Kept, packed_name};
use super::{Stream, file_names, packed, plain_file};
use crate::crash::{self, Step};

/// Segments smaller than this take no less room on the disk when they are compressed, in bytes.
pub(in crate::process) const WORTH_IT: u64 = 16 * 1024;
/// The name that a compressed segment has until it is whole.
const UNFINISHED: &str = "packing";

/// Compresses what is worth it in this run directory; what an earlier attempt had begun is finished.
pub(in crate::process) fn compress(run_dir: &Path) -> io::Result<()> {
    // Two at once in one directory would take each other's unfinished file for their own; one service has one data directory.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let names = file_names(run_dir)?;
    for stream in [Stream::Stdout, Stream::Stderr] {
        let kept = Kept::find(run_dir, stream, names.iter().map(String::as_str))?;
        for segment in kept.segments().iter().filter(|segment| !segment.packed && segment.length >= WORTH_IT) {
            let plain = run_dir.join(segment.name(kept.stream()));
            if let Some(source) = plain_file(&plain)? {
                pack(run_dir, &source, |length| packed_name(stream, segment.offset, length))?;
                crash::before(Step::PlainRemoval);
                std::fs::remove_file(plain)?;
                crash::after(Step::PlainRemoval);
            }
        }
    }
    Ok(())
}

fn pack(run_dir: &Path, mut source: &File, name: impl Fn(u64) -> String) -> io::Result<()> {
    let unfinished = run_dir.join(UNFINISHED);
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let done = packed::pack(&mut source, &mut target).and_then(|length| {
        crash::before(Step::PackSync);
        target.sync_all()?;
        crash::after(Step::PackSync);
        crash::before(Step::PackRename);
        std::fs::rename(&unfinished, run_dir.join(name(length)))?;
        crash::after(Step::PackRename);
        crash::before(Step::PackNameSync);
        File::open(run_dir)?.sync_all()?;
        crash::after(Step::PackNameSync);
        Ok(())
    });
    done.inspect_err(|_| {
        // A full disk needs the room; the error that counts is the first.
        let _ = std::fs::remove_file(&unfinished);
    })
}

#[cfg(test)]
mod tests {
    use super::super::{RunLog, Selection};
    use super::*;

    fn names(run_dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(run_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn numbered(range: std::ops::Range<u32>) -> Vec<u8> {
        range.flat_map(|number| format!("{number:09}\n").into_bytes()).collect()
    }

    #[test]
    fn every_offset_reads_the_same_as_before() {
        let scratch = tempfile::tempdir().unwrap();
        let run_dir = scratch.path();
        std::fs::write(run_dir.join("stdout.1000"), numbered(0..60_000)).unwrap();
        std::fs::write(run_dir.join("stdout.601000"), numbered(60_000..62_000)).unwrap();
        std::fs::write(run_dir.join("stderr.0"), "short\n").unwrap();
        let log = RunLog::open(run_dir, Selection::Both, true);
        let read = || {
            let pages = [0, 1, 1000, 301_234, 600_995, 621_002].map(|offset| log.read(offset, 70_000).unwrap());
            (log.total_length().unwrap(), pages, log.tail(3).unwrap())
        };
        let before = read();
        // What a crash had left: something unfinished, and a plain segment beside its compressed form.
        std::fs::write(run_dir.join(UNFINISHED), "half").unwrap();
        compress(run_dir).unwrap();
        assert_eq!(names(run_dir), ["stderr.0", "stdout.1000-600000.gz", "stdout.601000-20000.gz"]);
        assert_eq!(read(), before);
        std::fs::write(run_dir.join("stdout.601000"), numbered(60_000..62_000)).unwrap();
        assert_eq!(read(), before);
        compress(run_dir).unwrap();
        assert_eq!(names(run_dir), ["stderr.0", "stdout.1000-600000.gz", "stdout.601000-20000.gz"]);
        assert_eq!(read(), before);
    }

    #[test]
    fn where_it_fails_nothing_is_lost() {
        let scratch = tempfile::tempdir().unwrap();
        let run_dir = scratch.path();
        std::fs::write(run_dir.join("stdout.0"), numbered(0..10_000)).unwrap();
        // A directory in the place of the unfinished file can't be removed as a file.
        std::fs::create_dir(run_dir.join(UNFINISHED)).unwrap();
        compress(run_dir).unwrap_err();
        assert_eq!(RunLog::open(run_dir, Selection::Both, true).total_length().unwrap(), 100_000);
        assert!(run_dir.join("stdout.0").exists());
    }
}
