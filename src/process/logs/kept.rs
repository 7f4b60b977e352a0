//! What is kept of one stream: its segments, plain or compressed, and the bytes in them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::packed::Packed;
use super::{Stream, plain_file, read_at};

/// The file that holds a stream from this offset on while its run goes on.
pub(in crate::process) fn segment_name(stream: Stream, offset: u64) -> String {
    format!("{}.{offset}", stream.as_str())
}

/// The file that holds it once it is compressed.
pub(in crate::process) fn packed_name(stream: Stream, offset: u64, length: u64) -> String {
    format!("{}.{offset}-{length}.gz", stream.as_str())
}

/// A part of a stream that is kept in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where in the stream it starts, in bytes.
    pub(super) offset: u64,
    /// How long it is, in bytes of the stream.
    pub(super) length: u64,
    pub(super) packed: bool,
}

impl Segment {
    pub(super) fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    pub(super) fn name(self, stream: Stream) -> String {
        if self.packed { packed_name(stream, self.offset, self.length) } else { segment_name(stream, self.offset) }
    }
}

/// What a file's name says of the segment in it: its offset, and its length where it is compressed.
fn parse_name(stream: Stream, name: &str) -> Option<(u64, Option<u64>)> {
    let place = name.strip_prefix(stream.as_str())?.strip_prefix('.')?;
    let (offset, length) = match place.strip_suffix(".gz") {
        None => (place.parse().ok()?, None),
        Some(place) => {
            let (offset, length) = place.split_once('-')?;
            (offset.parse().ok()?, Some(length.parse().ok()?))
        }
    };
    let ours = length.map_or_else(|| segment_name(stream, offset), |length| packed_name(stream, offset, length));
    (ours == name).then_some((offset, length))
}

/// The segments of a stream at one moment.
#[derive(Debug)]
pub(super) struct Kept {
    run_dir: PathBuf,
    stream: Stream,
    segments: Vec<Segment>,
    open: Option<(Segment, Source)>,
}

#[derive(Debug)]
enum Source {
    Plain(File),
    Packed(Packed),
}

impl Kept {
    /// Finds the stream's segments among the run directory's files.
    pub(super) fn find<'n>(run_dir: &Path, stream: Stream, names: impl Iterator<Item = &'n str>) -> io::Result<Self> {
        let mut segments: Vec<Segment> = Vec::new();
        for name in names {
            let Some((offset, length)) = parse_name(stream, name) else { continue };
            // Opened rather than looked at, so that a symbolic link put in its place is never followed.
            let Some(file) = plain_file(&run_dir.join(name))? else { continue };
            let (packed, length) =
                (length.is_some(), length.map_or_else(|| Ok(file.metadata()?.len()), Ok::<_, io::Error>)?);
            segments.push(Segment { offset, length, packed });
        }
        segments.sort_unstable_by_key(|segment| (segment.offset, segment.packed));
        // A crash may have left a segment in both forms; they hold the same.
        segments.dedup_by_key(|segment| segment.offset);
        Ok(Self { run_dir: run_dir.to_owned(), stream, segments, open: None })
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    /// How far the stream goes, kept or not.
    pub(super) fn end(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end()).max().unwrap_or(0)
    }

    /// The first segment that holds something at `offset` or after it.
    pub(super) fn next(&self, offset: u64) -> Option<Segment> {
        let after = self.segments.partition_point(|segment| segment.end() <= offset);
        self.segments.get(after).copied()
    }

    /// Fills `bytes` with what stands at `offset` of the stream, in that segment; `None` where the segment is gone.
    pub(super) fn read(&mut self, segment: Segment, offset: u64, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            let Some(file) = plain_file(&self.run_dir.join(segment.name(self.stream)))? else { return Ok(None) };
            let source = if segment.packed { Source::Packed(Packed::new(file)) } else { Source::Plain(file) };
            self.open = Some((segment, source));
        }
        let at = offset.saturating_sub(segment.offset);
        match &mut self.open {
            Some((_, Source::Plain(file))) => read_at(file, bytes, at).map(Some),
            Some((_, Source::Packed(packed))) => packed.read_at(bytes, at).map(Some),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_segments_of_the_stream_are_found() {
        let scratch = tempfile::tempdir().unwrap();
        let names = [
            "stdout.0",
            "stdout.9-4.gz",
            "stderr.0",
            "stdout.02",
            "stdout.x",
            "stdout.1-2",
            "stdout.1.gz",
            "stdout.+1",
            "journal",
        ];
        for name in names {
            std::fs::write(scratch.path().join(name), "ab").unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("stdout.2")).unwrap();
        let names = names.into_iter().chain(["stdout.2", "stdout.3"]);
        let kept = Kept::find(scratch.path(), Stream::Stdout, names).unwrap();
        let found: Vec<_> =
            kept.segments().iter().map(|segment| (segment.offset, segment.length, segment.packed)).collect();
        assert_eq!(found, [(0, 2, false), (9, 4, true)]);
        assert_eq!(kept.end(), 13);
    }
}
