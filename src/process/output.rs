//! Writing a command's output into segments of bounded size.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::logs::{Stream, segment_name};
use super::text;
use crate::crash::{self, Step};

/// Segments smaller than this are not worth a file of their own.
const SMALLEST_SEGMENT: u64 = 4096;
/// Two, unless a full disk cut some short.
const MOST_SEGMENTS: usize = 16;
/// How much of the end of standard error a verdict holds, in bytes.
const TAIL: usize = 4096;
/// How much is remembered for it: some of it may be colours, which are taken out.
const REMEMBERED: usize = 4 * TAIL;

/// One stream of a run.
///
/// Its files are named by the offset in the stream of their first byte, so that an offset stays valid when older
/// segments are dropped, and a reader sees where something is missing.
#[derive(Debug)]
pub(super) struct Log {
    run_dir: PathBuf,
    stream: Stream,
    limit: u64,
    /// Where the next byte belongs.
    offset: u64,
    current: Option<File>,
    /// Start and length of every segment that is kept; the last one is the open one.
    segments: VecDeque<(u64, u64)>,
    tail: VecDeque<u8>,
}

impl Log {
    /// Makes no file before there is something to write.
    pub(super) fn new(run_dir: PathBuf, stream: Stream, limit: u64) -> Self {
        Self { run_dir, stream, limit, offset: 0, current: None, segments: VecDeque::new(), tail: VecDeque::new() }
    }

    /// Takes bytes in. Never fails: what can't be written (a full disk) is missing from the files, and seen to be.
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        if self.stream == Stream::Stderr {
            let keep_from = bytes.len().saturating_sub(REMEMBERED);
            self.tail.extend(bytes.iter().skip(keep_from));
            let excess = self.tail.len().saturating_sub(REMEMBERED);
            self.tail.drain(..excess);
        }
        while !bytes.is_empty() {
            let room = self.room();
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            crash::before(Step::LogWrite);
            let written = self.write(now);
            crash::after(Step::LogWrite);
            if let Some((_, length)) = self.segments.back_mut() {
                *length += written as u64;
            }
            self.offset += now.len() as u64;
            if written < now.len() {
                // The rest is lost; what follows has to start a segment at its own offset.
                self.current = None;
                self.forget_empty_segment();
            }
            bytes = later;
        }
    }

    /// How many bytes have come, kept or not.
    pub(super) fn length(&self) -> u64 {
        self.offset
    }

    fn segment_size(&self) -> u64 {
        (self.limit / 2).max(SMALLEST_SEGMENT)
    }

    /// How much the open segment still takes, after opening one where there is none with room.
    fn room(&mut self) -> u64 {
        let size = self.segment_size();
        if let (Some(_), Some((_, length))) = (&self.current, self.segments.back())
            && *length < size
        {
            return size - *length;
        }
        // Room for a full one, so that the limit holds whatever comes.
        while self.segments.len() >= MOST_SEGMENTS || self.kept() + size > self.limit.max(2 * SMALLEST_SEGMENT) {
            let Some((start, _)) = self.segments.pop_front() else { break };
            crash::before(Step::LogDrop);
            let _ = std::fs::remove_file(self.run_dir.join(segment_name(self.stream, start)));
            crash::after(Step::LogDrop);
        }
        crash::before(Step::LogFile);
        let path = self.run_dir.join(segment_name(self.stream, self.offset));
        self.current = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path).ok();
        crash::after(Step::LogFile);
        if self.current.is_some() {
            self.segments.push_back((self.offset, 0));
        }
        size
    }

    /// So that a disk that stays full costs none of what was kept.
    fn forget_empty_segment(&mut self) {
        if let Some((start, 0)) = self.segments.back() {
            let _ = std::fs::remove_file(self.run_dir.join(segment_name(self.stream, *start)));
            self.segments.pop_back();
        }
    }

    fn kept(&self) -> u64 {
        self.segments.iter().map(|(_, length)| length).sum()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(file) = &mut self.current else { return 0 };
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match file.write(rest) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        written
    }

    /// The end of the stream, safe to show, at most 4 KiB.
    pub(super) fn safe_tail(&mut self) -> String {
        let safe = text::made_safe(self.tail.make_contiguous());
        text::end_of(&safe, TAIL).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::logs::{RunLog, Selection};
    use super::*;

    fn log(limit: u64) -> (tempfile::TempDir, Log) {
        let scratch = tempfile::tempdir().unwrap();
        let log = Log::new(scratch.path().to_owned(), Stream::Stderr, limit);
        (scratch, log)
    }

    fn numbered(range: std::ops::Range<u32>) -> Vec<u8> {
        range.flat_map(|number| format!("{number:07}\n").into_bytes()).collect()
    }

    #[test]
    fn silence_makes_no_file() {
        let (scratch, mut log) = log(1 << 20);
        log.take(b"");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        assert_eq!(log.safe_tail(), "");
    }

    #[test]
    fn the_oldest_is_dropped_and_offsets_stay_valid() {
        let (scratch, mut log) = log(64 * 1024);
        let all = numbered(0..100_000);
        for part in all.chunks(5000) {
            log.take(part);
            let on_disk: u64 =
                std::fs::read_dir(scratch.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
            assert!(on_disk <= 64 * 1024, "{on_disk} bytes are kept");
        }
        let reader = RunLog::open(scratch.path(), Selection::Only(Stream::Stderr), true);
        assert_eq!(reader.total_length().unwrap(), all.len() as u64);
        let page = reader.read(0, usize::MAX).unwrap();
        let [piece] = page.pieces.as_slice() else { panic!("{page:?}") };
        assert_eq!((piece.offset, page.next_offset), (piece.dropped, all.len() as u64));
        assert!(piece.bytes.len() >= 32 * 1024, "at least half of the limit is kept");
        assert_eq!(piece.bytes, all[all.len() - piece.bytes.len()..]);
        let tail = log.safe_tail();
        assert_eq!(tail.as_bytes(), &all[all.len() - 4096..]);
    }

    #[test]
    fn what_a_full_disk_swallows_is_seen_to_be_missing() {
        let (scratch, mut log) = log(1 << 20);
        log.take(b"before ");
        // /dev/full answers every write with ENOSPC.
        log.current = Some(OpenOptions::new().append(true).open("/dev/full").unwrap());
        log.take(b"lost ");
        log.take(b"after");
        let reader = RunLog::open(scratch.path(), Selection::Only(Stream::Stderr), true);
        assert_eq!(reader.total_length().unwrap(), 17);
        let page = reader.read(0, 100).unwrap();
        let pieces: Vec<_> =
            page.pieces.iter().map(|piece| (piece.offset, piece.dropped, piece.bytes.as_slice())).collect();
        assert_eq!(pieces, [(0, 0, &b"before "[..]), (12, 5, &b"after"[..])]);
        assert_eq!(log.safe_tail(), "before lost after");
    }
}
