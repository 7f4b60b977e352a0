//! Reading a run's output, also while it is being written and its oldest part dropped.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// One of a command's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The stream's name, as in `logs --stream`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The file that holds a stream from this offset on.
pub(super) fn segment_name(stream: Stream, offset: u64) -> String {
    format!("{}.{offset}", stream.as_str())
}

/// A part of a stream that is kept in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the stream it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

impl Segment {
    fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// A piece of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it starts; later than was asked for where the part in between is not kept.
    pub offset: u64,
    /// What it holds; empty at the end of what was written so far.
    pub bytes: Vec<u8>,
}

impl Chunk {
    /// Where to go on reading.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// Reads one stream of one run. It keeps nothing open, so it may be kept for as long as one likes.
#[derive(Clone, Debug)]
pub struct LogReader {
    run_dir: PathBuf,
    stream: Stream,
}

impl LogReader {
    /// A reader of this stream of the run whose directory this is; a run without output reads as empty.
    #[must_use]
    pub fn open(run_dir: &Path, stream: Stream) -> Self {
        Self { run_dir: run_dir.to_owned(), stream }
    }

    /// What is kept, in order; there may be gaps, in front and between.
    ///
    /// # Errors
    /// Where the directory can't be read.
    pub fn segments(&self) -> io::Result<Vec<Segment>> {
        let entries = match std::fs::read_dir(&self.run_dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            outcome => outcome?,
        };
        let mut segments = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some((stream, offset)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
            let Ok(offset) = offset.parse::<u64>() else { continue };
            if stream != self.stream.as_str() || segment_name(self.stream, offset).as_str() != name {
                continue;
            }
            // Opened rather than looked at, so that a symbolic link put in its place is never followed.
            if let Some(file) = self.segment_file(offset)? {
                segments.push(Segment { offset, length: file.metadata()?.len() });
            }
        }
        segments.sort_unstable_by_key(|segment| segment.offset);
        Ok(segments)
    }

    /// How many bytes the command has written in all, kept or not.
    ///
    /// # Errors
    /// Where the directory can't be read.
    pub fn total_length(&self) -> io::Result<u64> {
        Ok(self.segments()?.last().map_or(0, |last| last.end()))
    }

    /// The offset of the first byte that is kept; the total length where none is.
    ///
    /// # Errors
    /// Where the directory can't be read.
    pub fn first_kept(&self) -> io::Result<u64> {
        Ok(self.segments()?.first().map_or(0, |first| first.offset))
    }

    /// At most `max` bytes (and at most 1 MiB, and none beyond a gap) from `offset`, or from the next kept byte
    /// after it; an empty chunk at the end.
    ///
    /// # Errors
    /// Where the directory or a file in it can't be read.
    pub fn read(&self, offset: u64, max: usize) -> io::Result<Chunk> {
        const AT_ONCE: usize = 1 << 20;
        loop {
            let segments = self.segments()?;
            let Some(segment) = segments.iter().find(|segment| offset < segment.end()) else {
                // A reader that asks beyond the end is told the end, as after a restart of a command's log.
                let end = segments.last().map_or(0, |last| last.end());
                return Ok(Chunk { offset: offset.min(end), bytes: Vec::new() });
            };
            // Between the listing and this it may have been dropped; then the next one is first.
            let Some(file) = self.segment_file(segment.offset)? else { continue };
            let from = offset.max(segment.offset);
            let wanted = usize::try_from(segment.end() - from).unwrap_or(usize::MAX).min(max).min(AT_ONCE);
            let mut bytes = vec![0; wanted];
            let length = read_at(&file, &mut bytes, from - segment.offset)?;
            bytes.truncate(length);
            return Ok(Chunk { offset: from, bytes });
        }
    }

    /// The last `lines` lines, at most 1 MiB of them; a last line without its newline counts.
    ///
    /// # Errors
    /// Where the directory or a file in it can't be read.
    pub fn tail(&self, lines: usize) -> io::Result<Chunk> {
        const LONGEST: u64 = 1 << 20;
        let total = self.total_length()?;
        let mut chunk = Chunk { offset: total, bytes: Vec::new() };
        let mut at = total.saturating_sub(LONGEST);
        // No further than it reached at first: a command may write faster than anybody reads.
        while at < total {
            let next = self.read(at, usize::MAX)?;
            if next.bytes.is_empty() {
                break;
            }
            if chunk.bytes.is_empty() || next.offset != chunk.next_offset() {
                // The part before a gap is not the end of anything.
                chunk = Chunk { offset: next.offset, bytes: Vec::new() };
            }
            at = next.next_offset();
            chunk.bytes.extend(next.bytes);
        }
        let ended = chunk.bytes.strip_suffix(b"\n").unwrap_or(&chunk.bytes);
        let mut newlines = ended.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let from = if lines == 0 { chunk.bytes.len() } else { newlines.nth(lines - 1).unwrap_or(0) };
        chunk.bytes.drain(..from);
        chunk.offset += from as u64;
        Ok(chunk)
    }

    /// `None` where it has been dropped, or is not a plain file.
    fn segment_file(&self, offset: u64) -> io::Result<Option<File>> {
        let mut options = File::options();
        options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
        match options.open(self.run_dir.join(segment_name(self.stream, offset))) {
            Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn read_at(file: &File, bytes: &mut [u8], mut at: u64) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(more) => {
                length += more;
                at += more as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(files: &[(&str, &str)]) -> (tempfile::TempDir, LogReader) {
        let scratch = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(scratch.path().join(name), text).unwrap();
        }
        let reader = LogReader::open(scratch.path(), Stream::Stdout);
        (scratch, reader)
    }

    fn tail_of(reader: &LogReader, lines: usize) -> String {
        String::from_utf8(reader.tail(lines).unwrap().bytes).unwrap()
    }

    #[test]
    fn a_run_without_output_reads_as_empty() {
        let reader = LogReader::open(Path::new("/nonexistent"), Stream::Stdout);
        assert_eq!(reader.read(5, 10).unwrap(), Chunk { offset: 0, bytes: Vec::new() });
        assert_eq!(tail_of(&reader, 3), "");
    }

    #[test]
    fn only_segments_of_the_stream_are_read() {
        let (scratch, reader) = run_with(&[
            ("stdout.0", "ab"),
            ("stderr.0", "no"),
            ("stdout.02", "no"),
            ("stdout.x", "no"),
            ("journal", "no"),
        ]);
        std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("stdout.2")).unwrap();
        assert_eq!(reader.segments().unwrap(), [Segment { offset: 0, length: 2 }]);
        assert_eq!(reader.read(1, 10).unwrap(), Chunk { offset: 1, bytes: b"b".to_vec() });
    }

    #[test]
    fn reading_goes_on_behind_what_was_dropped() {
        let (_scratch, reader) = run_with(&[("stdout.10", "abc\n"), ("stdout.14", "def\nghi")]);
        assert_eq!((reader.first_kept().unwrap(), reader.total_length().unwrap()), (10, 21));
        let chunk = reader.read(0, 3).unwrap();
        assert_eq!((chunk.offset, chunk.bytes.as_slice(), chunk.next_offset()), (10, &b"abc"[..], 13));
        assert_eq!(reader.read(21, 9).unwrap(), Chunk { offset: 21, bytes: Vec::new() });
        assert_eq!(tail_of(&reader, 1), "ghi");
        assert_eq!(tail_of(&reader, 2), "def\nghi");
        assert_eq!(tail_of(&reader, 99), "abc\ndef\nghi");
        assert_eq!(tail_of(&reader, 0), "");
    }

    #[test]
    fn a_tail_never_joins_what_has_a_gap_between() {
        let (_scratch, reader) = run_with(&[("stdout.0", "half a li"), ("stdout.100", "ne\nwhole\n")]);
        assert_eq!(tail_of(&reader, 9), "ne\nwhole\n");
        assert_eq!(reader.tail(1).unwrap().offset, 103);
    }
}
