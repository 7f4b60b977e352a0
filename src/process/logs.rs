//! Reading a run's output: one stream or both, while it is being written, its oldest part dropped, or compressed.
//!
//! Everybody who shows output reads it by [`RunLog`]. An offset counts the bytes that the command has written, kept or
//! not, so it stays valid whatever becomes of the files: for one stream in that stream, for both in their order of arrival.

mod kept;
pub(super) mod order;
mod packed;
mod shrink;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::OFlags;

use self::kept::Kept;
#[cfg(target_os = "linux")]
pub(super) use self::kept::segment_name;
use self::order::{Noted, Order, Span};
pub(super) use self::shrink::{WORTH_IT as WORTH_COMPRESSING, compress};
use crate::domain::Timestamp;

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

/// Which output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// One stream.
    Only(Stream),
    /// Both, in their order of arrival.
    Both,
}

/// What is neither `stdout` nor `stderr` nor `both`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are \"stdout\", \"stderr\" and \"both\"")]
pub struct UnknownSelection;

impl Selection {
    /// The word that it is read from.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Only(stream) => stream.as_str(),
            Self::Both => "both",
        }
    }
}

impl FromStr for Selection {
    type Err = UnknownSelection;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "stdout" => Ok(Self::Only(Stream::Stdout)),
            "stderr" => Ok(Self::Only(Stream::Stderr)),
            "both" => Ok(Self::Both),
            _ => Err(UnknownSelection),
        }
    }
}

/// Consecutive bytes of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which stream.
    pub stream: Stream,
    /// Where in its stream it starts.
    pub offset: u64,
    /// How many bytes of its stream are missing right before it: dropped for the limit's sake, or lost to a full disk.
    pub dropped: u64,
    /// What it holds, of any kind; nothing where only the gap is to be told.
    pub bytes: Vec<u8>,
    /// When its first byte arrived; known only while both streams are in use.
    pub time: Option<Timestamp>,
}

impl Piece {
    /// The line that tells of what is missing before the piece; `None` where nothing is.
    #[must_use]
    pub fn dropped_note(&self) -> Option<String> {
        let (dropped, stream) = (self.dropped, self.stream.as_str());
        (dropped > 0).then(|| format!("callsheet: {dropped} bytes of {stream} were dropped here (limits.output)"))
    }
}

/// Some output, and where the next begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In order; none where there is nothing (yet).
    pub pieces: Vec<Piece>,
    /// Where to go on reading.
    pub next_offset: u64,
}

impl Page {
    /// All its bytes, with a line in the place of what was dropped.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            if let Some(note) = piece.dropped_note() {
                if bytes.last().is_some_and(|byte| *byte != b'\n') {
                    bytes.push(b'\n');
                }
                bytes.extend_from_slice(note.as_bytes());
                bytes.push(b'\n');
            }
            bytes.extend_from_slice(&piece.bytes);
        }
        bytes
    }

    /// The same as text that is safe to show anywhere: no control sequences, and `U+FFFD` for what is no UTF-8.
    #[must_use]
    pub fn to_safe_text(&self) -> String {
        super::text::made_safe(&self.to_bytes())
    }
}

/// The output of one run. It keeps nothing open, so it may be kept for as long as one likes.
#[derive(Clone, Debug)]
pub struct RunLog {
    run_dir: PathBuf,
    selection: Selection,
    ended: bool,
}

/// The most that is read at once, in bytes.
const AT_ONCE: usize = 1 << 20;

impl RunLog {
    /// The output of the run whose directory this is; one that wrote nothing reads as empty.
    ///
    /// `ended` says that nothing more will come. Until then what a live run wrote a moment ago may be held back: of both
    /// streams until its order is known, and the beginning of a character until its end has come.
    #[must_use]
    pub fn open(run_dir: &Path, selection: Selection, ended: bool) -> Self {
        Self { run_dir: run_dir.to_owned(), selection, ended }
    }

    /// The run has ended meanwhile.
    pub fn set_ended(&mut self) {
        self.ended = true;
    }

    /// How far there is something to read, in bytes, kept or not.
    ///
    /// # Errors
    /// Where the directory can't be read.
    pub fn total_length(&self) -> io::Result<u64> {
        let mut total = 0_u64;
        self.look()?.spans(|span| {
            total = total.saturating_add(span.length);
            ControlFlow::Continue(())
        });
        Ok(total)
    }

    /// At most `max` bytes (and at most 1 MiB) of what is kept from `offset` on; no piece at the end.
    ///
    /// A page does not end within a character of UTF-8; what is no UTF-8 is left as it is.
    ///
    /// # Errors
    /// Where the directory or a file in it can't be read.
    pub fn read(&self, offset: u64, max: usize) -> io::Result<Page> {
        loop {
            let Now { layout, mut stdout, mut stderr } = self.look()?;
            let mut filling = Filling::new(max.min(AT_ONCE));
            let mut at = 0_u64;
            let mut taken = Ok(Some(()));
            layout.spans(|span| {
                let past = offset.saturating_sub(at).min(span.length);
                filling.next_offset = at + past;
                at = at.saturating_add(span.length);
                let rest = Span { offset: span.offset + past, length: span.length - past, ..span };
                let kept = if span.stream == Stream::Stdout { &mut stdout } else { &mut stderr };
                taken = filling.take(kept, rest);
                if let Ok(Some(_)) = taken
                    && filling.room > 0
                {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
            // Between the look and the read a segment was dropped or compressed: another look finds what there is now.
            if taken?.is_some() {
                return Ok(filling.finished(self.ended));
            }
        }
    }

    /// The last `lines` lines, at most 1 MiB of them; a last line without its newline counts.
    ///
    /// # Errors
    /// Where the directory or a file in it can't be read.
    pub fn tail(&self, lines: usize) -> io::Result<Page> {
        let total = self.total_length()?;
        let mut page = Page { pieces: Vec::new(), next_offset: total.saturating_sub(AT_ONCE as u64) };
        // No further than it reached at first: a command may write faster than anybody reads.
        while page.next_offset < total {
            let more = self.read(page.next_offset, AT_ONCE)?;
            if more.next_offset <= page.next_offset {
                break;
            }
            page.next_offset = more.next_offset;
            page.pieces.extend(more.pieces);
        }
        keep_last_lines(&mut page.pieces, lines);
        Ok(page)
    }

    fn look(&self) -> io::Result<Now> {
        let now = Now::of(&self.run_dir, self.selection, self.ended)?;
        // A directory is not listed in one moment: the order is noted from before the second stream's first byte on, but
        // a listing may have passed it by and found the stream. A shim of an earlier release notes none.
        if now.layout.is_unordered() { Now::of(&self.run_dir, self.selection, self.ended) } else { Ok(now) }
    }
}

/// What there is at one moment.
struct Now {
    layout: Layout,
    stdout: Kept,
    stderr: Kept,
}

/// What a selection consists of, in order.
struct Layout {
    selection: Selection,
    order: Order,
    end: Noted,
    ended: bool,
}

impl Now {
    fn of(run_dir: &Path, selection: Selection, ended: bool) -> io::Result<Self> {
        // The order first: what it speaks of is then certainly found.
        let order = match selection {
            Selection::Both => Order::read(run_dir, file_names(run_dir)?.iter().map(String::as_str))?,
            Selection::Only(_) => Order::default(),
        };
        let names = file_names(run_dir)?;
        let names = || names.iter().map(String::as_str);
        let stdout = Kept::find(run_dir, Stream::Stdout, names())?;
        let stderr = Kept::find(run_dir, Stream::Stderr, names())?;
        let end = Noted { stdout: stdout.end(), stderr: stderr.end() };
        Ok(Self { layout: Layout { selection, order, end, ended }, stdout, stderr })
    }

    fn spans(&self, each: impl FnMut(Span) -> ControlFlow<()>) {
        self.layout.spans(each);
    }
}

impl Layout {
    /// Whether both streams have come, and nothing tells in which order.
    fn is_unordered(&self) -> bool {
        !self.ended && self.order.is_empty() && self.end.stdout > 0 && self.end.stderr > 0
    }

    fn spans(&self, mut each: impl FnMut(Span) -> ControlFlow<()>) {
        match self.selection {
            Selection::Only(stream) => {
                let _: ControlFlow<()> = each(Span { stream, offset: 0, length: self.end.of(stream), time: None });
            }
            // A live run of an earlier release, whose shim notes no order: standard error has its place at the end, where
            // it stays, so that offsets stay valid.
            Selection::Both if self.is_unordered() => {
                let _: ControlFlow<()> =
                    each(Span { stream: Stream::Stdout, offset: 0, length: self.end.stdout, time: None });
            }
            Selection::Both => self.order.spans(self.end, self.ended || self.order.is_empty(), each),
        }
    }
}

/// The names of a run directory's files that may be output; none where there is no directory.
fn file_names(run_dir: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(run_dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        outcome => outcome?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // No more than ours: a command may have filled its directory with whatever it likes.
        names.extend(
            entry?
                .file_name()
                .into_string()
                .ok()
                .filter(|name| ["stdout.", "stderr.", "order."].iter().any(|start| name.starts_with(start))),
        );
    }
    Ok(names)
}

/// A page that is being filled.
struct Filling {
    pieces: Vec<Piece>,
    next_offset: u64,
    /// Bytes that still fit.
    room: usize,
    /// Bytes of each stream that were found missing and not told yet.
    missing: Noted,
    /// Where each stream was read last.
    reached: Noted,
}

impl Filling {
    fn new(room: usize) -> Self {
        Self { pieces: Vec::new(), next_offset: 0, room, missing: Noted::default(), reached: Noted::default() }
    }

    /// Takes as much of `span` as fits; `None` where a segment that was listed is gone.
    fn take(&mut self, kept: &mut Kept, span: Span) -> io::Result<Option<()>> {
        let (mut at, end) = (span.offset, span.offset.saturating_add(span.length));
        while at < end && self.room > 0 {
            let segment = kept.next(at).filter(|segment| segment.offset < end);
            let from = segment.map_or(end, |segment| segment.offset.max(at));
            self.miss(span.stream, at, from - at);
            at = from;
            let Some(segment) = segment else { break };
            let upto = end.min(segment.end());
            let wanted = usize::try_from(upto - at).unwrap_or(usize::MAX).min(self.room);
            let mut bytes = vec![0; wanted];
            let Some(length) = kept.read(segment, at, &mut bytes)? else { return Ok(None) };
            bytes.truncate(length);
            if length == 0 {
                // Shorter than its length says: damaged, or cut by somebody.
                self.miss(span.stream, at, upto - at);
                at = upto;
                continue;
            }
            self.add(span, at, bytes);
            at += length as u64;
        }
        Ok(Some(()))
    }

    fn miss(&mut self, stream: Stream, offset: u64, length: u64) {
        *self.missing.of_mut(stream) += length;
        *self.reached.of_mut(stream) = offset + length;
        self.next_offset += length;
    }

    fn add(&mut self, span: Span, offset: u64, bytes: Vec<u8>) {
        self.room -= bytes.len();
        self.next_offset += bytes.len() as u64;
        let dropped = std::mem::take(self.missing.of_mut(span.stream));
        match self.pieces.last_mut() {
            // Bytes of one stream with none of the other between them, whenever they came.
            Some(last) if last.stream == span.stream && dropped == 0 => last.bytes.extend(bytes),
            _ => self.pieces.push(Piece { stream: span.stream, offset, dropped, bytes, time: span.time }),
        }
    }

    fn finished(mut self, ended: bool) -> Page {
        // What is missing behind the last piece is told by a piece without bytes.
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (dropped, offset) = (self.missing.of(stream), self.reached.of(stream));
            if dropped > 0 {
                self.pieces.push(Piece { stream, offset, dropped, bytes: Vec::new(), time: None });
            }
        }
        if let Some(last) = self.pieces.last_mut() {
            let (cut, held) = (self.room == 0, begun_character(&last.bytes));
            if (cut && held < last.bytes.len()) || (!cut && !ended) {
                last.bytes.truncate(last.bytes.len() - held);
                self.next_offset -= held as u64;
            }
            if last.bytes.is_empty() && last.dropped == 0 {
                self.pieces.pop();
            }
        }
        Page { pieces: self.pieces, next_offset: self.next_offset }
    }
}

/// How many bytes at the end are the beginning of a character of UTF-8 that more bytes may complete.
fn begun_character(bytes: &[u8]) -> usize {
    let end = bytes.get(bytes.len().saturating_sub(3)..).unwrap_or_default();
    (1..=end.len())
        .find(|length| {
            let tail = end.get(end.len() - length..).unwrap_or_default();
            std::str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
        })
        .unwrap_or(0)
}

/// Drops all but the last `lines` lines.
fn keep_last_lines(pieces: &mut Vec<Piece>, lines: usize) {
    if lines == 0 {
        pieces.clear();
        return;
    }
    let (mut newlines, mut is_last_byte) = (0, true);
    let mut from = (0, 0);
    'search: for (index, piece) in pieces.iter().enumerate().rev() {
        for (at, byte) in piece.bytes.iter().enumerate().rev() {
            // The one at the very end ends the last line and begins none.
            newlines += usize::from(*byte == b'\n' && !is_last_byte);
            is_last_byte = false;
            if newlines == lines {
                from = (index, at + 1);
                break 'search;
            }
        }
        if piece.dropped > 0 && !is_last_byte {
            // What stands before a gap is not the end of anything.
            from = (index, 0);
            break;
        }
    }
    pieces.drain(..from.0);
    if let Some(first) = pieces.first_mut() {
        first.bytes.drain(..from.1);
        first.offset += from.1 as u64;
        first.dropped = 0;
    }
}

/// The file, where it is a plain one; symbolic links are not followed.
fn plain_file(path: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    // Non-blocking, so that a FIFO put in its place can't hold us up.
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    match options.open(path) {
        Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(None),
        // A socket.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
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
    use proptest::prelude::*;

    const STDOUT: Selection = Selection::Only(Stream::Stdout);

    fn run_with(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let scratch = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(scratch.path().join(name), bytes).unwrap();
        }
        scratch
    }

    fn piece(stream: Stream, offset: u64, dropped: u64, bytes: &[u8]) -> Piece {
        Piece { stream, offset, dropped, bytes: bytes.to_vec(), time: None }
    }

    fn tail_of(log: &RunLog, lines: usize) -> String {
        String::from_utf8(log.tail(lines).unwrap().to_bytes()).unwrap()
    }

    #[test]
    fn a_run_without_output_reads_as_empty() {
        for selection in [STDOUT, Selection::Both] {
            let log = RunLog::open(Path::new("/nonexistent"), selection, true);
            assert_eq!(log.read(5, 10).unwrap(), Page::default());
            assert_eq!(tail_of(&log, 3), "");
        }
    }

    #[test]
    fn reading_goes_on_behind_what_was_dropped_and_says_so() {
        let scratch = run_with(&[("stdout.10", b"abc\n"), ("stdout.14", b"def\nghi")]);
        let log = RunLog::open(scratch.path(), STDOUT, true);
        assert_eq!(log.total_length().unwrap(), 21);
        let page = log.read(0, 3).unwrap();
        assert_eq!((page.pieces.as_slice(), page.next_offset), (&[piece(Stream::Stdout, 10, 10, b"abc")][..], 13));
        assert_eq!(page.to_safe_text(), "callsheet: 10 bytes of stdout were dropped here (limits.output)\nabc");
        assert_eq!(log.read(12, 100).unwrap().pieces, [piece(Stream::Stdout, 12, 0, b"c\ndef\nghi")]);
        assert_eq!(log.read(21, 9).unwrap(), Page { pieces: Vec::new(), next_offset: 21 });
        assert_eq!(log.read(99, 9).unwrap(), Page { pieces: Vec::new(), next_offset: 21 });
        assert_eq!([1, 2, 99, 0].map(|lines| tail_of(&log, lines)), ["ghi", "def\nghi", "abc\ndef\nghi", ""]);
    }

    #[test]
    fn a_tail_never_joins_what_has_a_gap_between() {
        let scratch = run_with(&[("stdout.0", b"half a li"), ("stdout.100", b"ne\nwhole\n")]);
        let log = RunLog::open(scratch.path(), STDOUT, true);
        assert_eq!([9, 1].map(|lines| tail_of(&log, lines)), ["ne\nwhole\n", "whole\n"]);
        assert_eq!(log.tail(1).unwrap().pieces[0].offset, 103);
    }

    #[test]
    fn a_page_does_not_end_within_a_character() {
        let scratch = run_with(&[("stdout.0", "aäöü".as_bytes())]);
        let log = RunLog::open(scratch.path(), STDOUT, false);
        let texts = [2, 3, 4, 1].map(|max| String::from_utf8_lossy(&log.read(0, max).unwrap().to_bytes()).into_owned());
        assert_eq!(texts, ["a", "aä", "aä", "a"]);
        // One that is not whole yet is waited for while the run goes on, and shown as it is afterwards.
        std::fs::write(scratch.path().join("stdout.0"), b"a\xe2\x82").unwrap();
        assert_eq!(log.read(0, 9).unwrap(), Page { pieces: vec![piece(Stream::Stdout, 0, 0, b"a")], next_offset: 1 });
        assert_eq!(log.read(1, 9).unwrap(), Page { pieces: Vec::new(), next_offset: 1 });
        let ended = RunLog::open(scratch.path(), STDOUT, true);
        assert_eq!(ended.read(1, 9).unwrap().to_safe_text(), "\u{fffd}");
        // A limit that is smaller than the character must not stand still.
        assert_eq!(ended.read(1, 1).unwrap().next_offset, 2);
    }

    #[test]
    fn a_live_run_without_an_order_keeps_its_offsets() {
        let scratch = run_with(&[("stdout.0", b"1\n"), ("stderr.0", b"e\n")]);
        let mut log = RunLog::open(scratch.path(), Selection::Both, false);
        assert_eq!(log.read(0, 9).unwrap().to_bytes(), b"1\n");
        std::fs::write(scratch.path().join("stdout.0"), "1\n2\n").unwrap();
        assert_eq!(log.read(2, 9).unwrap().to_bytes(), b"2\n");
        log.set_ended();
        assert_eq!(log.read(4, 9).unwrap().to_bytes(), b"e\n");
    }

    proptest! {
        #[test]
        fn whatever_the_page_size_the_pages_are_the_whole(
            text in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(0xc3), Just(0xa4)], 0..300),
            cuts in prop::collection::vec(0_usize..300, 0..4),
            max in 1_usize..50,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let scratch = tempfile::tempdir().unwrap();
            for part in cuts.windows(2).filter(|part| part[0] < part[1]) {
                std::fs::write(scratch.path().join(format!("stderr.{}", part[0])), &text[part[0]..part[1]]).unwrap();
            }
            let log = RunLog::open(scratch.path(), Selection::Only(Stream::Stderr), true);
            let (mut read, mut offset) = (Vec::new(), 0);
            loop {
                let page = log.read(offset, max).unwrap();
                if page.pieces.is_empty() {
                    break;
                }
                prop_assert!(page.next_offset > offset);
                offset = page.next_offset;
                read.extend(page.to_bytes());
            }
            prop_assert_eq!(read, text);
        }
    }
}
