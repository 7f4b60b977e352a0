//! In which order a command's two streams arrived: a compact index beside their segments.
//!
//! Written only once both streams have been written to, and not per line: what is noted is kept in memory for a moment.
//! A file is named by how far both streams had been noted when it begins, so that it says by itself where it belongs. It is
//! a time (milliseconds since 1970, 8 bytes, little endian), then notes: `length * 2 + stream` and the milliseconds since
//! the note before, each as a LEB128 number. What no note speaks of is read as standard output first, then standard error.

use std::ops::ControlFlow;
use std::path::Path;

use super::Stream;
use crate::domain::Timestamp;

/// How much of a stream arrived at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::process) struct Note {
    pub(in crate::process) stream: Stream,
    pub(in crate::process) length: u64,
    pub(in crate::process) time: Timestamp,
}

/// How far both streams have been noted, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::process) struct Noted {
    pub(in crate::process) stdout: u64,
    pub(in crate::process) stderr: u64,
}

impl Noted {
    pub(in crate::process) fn of(self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    pub(in crate::process) fn of_mut(&mut self, stream: Stream) -> &mut u64 {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// The bytes of both streams.
    pub(in crate::process) fn sum(self) -> u64 {
        self.stdout.saturating_add(self.stderr)
    }
}

/// Bytes of a file before its first note.
pub(in crate::process) const HEADER: usize = 8;

/// The file whose notes begin here.
pub(in crate::process) fn file_name(from: Noted) -> String {
    format!("order.{}.{}", from.stdout, from.stderr)
}

/// Where the notes of the file of this name begin; `None` for other files.
fn parse_name(name: &str) -> Option<Noted> {
    let (stdout, stderr) = name.strip_prefix("order.")?.split_once('.')?;
    let from = Noted { stdout: stdout.parse().ok()?, stderr: stderr.parse().ok()? };
    (file_name(from) == name).then_some(from)
}

/// The first bytes of a file whose first note is about this time.
pub(in crate::process) fn header(time: Timestamp) -> [u8; HEADER] {
    time.unix_millis().to_le_bytes()
}

/// Appends a note to `bytes`; `before` is the time of the note (or the header) before it.
pub(in crate::process) fn encode(note: Note, before: Timestamp, bytes: &mut Vec<u8>) {
    let stream = match note.stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    };
    number(note.length.saturating_mul(2) | stream, bytes);
    // A clock that was set back must not cost a note its meaning.
    number(u64::try_from(note.time.unix_millis().saturating_sub(before.unix_millis())).unwrap_or(0), bytes);
}

fn number(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Reads a number from the front of `bytes`; `None` where it is cut short or none of 64 bits.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Hands every whole note of a file's bytes to `each`, in order; what is cut short or garbage ends it.
fn decode(mut bytes: &[u8], each: &mut impl FnMut(Note) -> ControlFlow<()>) -> ControlFlow<()> {
    let Some((start, notes)) = bytes.split_first_chunk::<HEADER>() else { return ControlFlow::Continue(()) };
    bytes = notes;
    let mut time = i64::from_le_bytes(*start);
    while !bytes.is_empty() {
        let (Some(what), Some(after)) = (take_number(&mut bytes), take_number(&mut bytes)) else { break };
        time = time.saturating_add(i64::try_from(after).unwrap_or(i64::MAX));
        let stream = if what & 1 == 0 { Stream::Stdout } else { Stream::Stderr };
        each(Note { stream, length: what >> 1, time: Timestamp::from_unix_millis(time) })?;
    }
    ControlFlow::Continue(())
}

/// What is known of the order in which a run's output arrived.
#[derive(Debug, Default)]
pub(super) struct Order {
    files: Vec<(Noted, Vec<u8>)>,
}

/// A piece of one stream, in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) stream: Stream,
    /// Where in its stream it starts.
    pub(super) offset: u64,
    pub(super) length: u64,
    /// When it arrived; `None` where no note tells.
    pub(super) time: Option<Timestamp>,
}

impl Order {
    /// Bytes of a file that are read at most; a shim writes less.
    const LONGEST_FILE: u64 = 16 << 20;

    /// Reads what was noted; `names` are those of the run directory's files.
    pub(super) fn read<'n>(run_dir: &Path, names: impl Iterator<Item = &'n str>) -> std::io::Result<Self> {
        use std::io::Read;
        let mut files = Vec::new();
        for (name, from) in names.filter_map(|name| Some((name, parse_name(name)?))) {
            let Some(file) = super::plain_file(&run_dir.join(name))? else { continue };
            let mut bytes = Vec::new();
            file.take(Self::LONGEST_FILE).read_to_end(&mut bytes)?;
            files.push((from, bytes));
        }
        files.sort_unstable_by_key(|(from, _)| (from.sum(), from.stdout));
        Ok(Self { files })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Hands every piece of the two streams up to `end` to `each`, in the order of arrival as far as it is known.
    ///
    /// With `to_the_end` also what lies behind the last note; without it, what a live shim has yet to note is left out.
    pub(super) fn spans(&self, end: Noted, to_the_end: bool, mut each: impl FnMut(Span) -> ControlFlow<()>) {
        let mut at = Noted::default();
        let mut give = |at: &mut Noted, stream: Stream, length: u64, time| {
            let offset = at.of(stream);
            let there = length.min(end.of(stream).saturating_sub(offset));
            *at.of_mut(stream) += there;
            if there > 0 {
                each(Span { stream, offset, length: there, time })?;
            }
            // What comes after something that has yet to come has no place yet.
            if there < length && !to_the_end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut all = || {
            for (from, bytes) in &self.files {
                // One that reaches back is not a shim's.
                let (Some(stdout), Some(stderr)) =
                    (from.stdout.checked_sub(at.stdout), from.stderr.checked_sub(at.stderr))
                else {
                    continue;
                };
                give(&mut at, Stream::Stdout, stdout, None)?;
                give(&mut at, Stream::Stderr, stderr, None)?;
                decode(bytes, &mut |note| give(&mut at, note.stream, note.length, Some(note.time)))?;
            }
            if to_the_end {
                give(&mut at, Stream::Stdout, u64::MAX, None)?;
                give(&mut at, Stream::Stderr, u64::MAX, None)?;
            }
            ControlFlow::Continue(())
        };
        let _: ControlFlow<()> = all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_unix_millis(millis)
    }

    fn spans(order: &Order, end: Noted, to_the_end: bool) -> Vec<(Stream, u64, u64)> {
        let mut found = Vec::new();
        order.spans(end, to_the_end, |span| {
            found.push((span.stream, span.offset, span.length));
            ControlFlow::Continue(())
        });
        found
    }

    #[test]
    fn what_no_note_speaks_of_is_stdout_then_stderr() {
        use Stream::{Stderr, Stdout};
        let mut bytes = header(at(5)).to_vec();
        encode(Note { stream: Stderr, length: 4, time: at(7) }, at(5), &mut bytes);
        let order = Order { files: vec![(Noted { stdout: 10, stderr: 2 }, bytes)] };
        let end = Noted { stdout: 12, stderr: 9 };
        assert_eq!(spans(&order, end, false), [(Stdout, 0, 10), (Stderr, 0, 2), (Stderr, 2, 4)]);
        assert_eq!(
            spans(&order, end, true),
            [(Stdout, 0, 10), (Stderr, 0, 2), (Stderr, 2, 4), (Stdout, 10, 2), (Stderr, 6, 3)]
        );
    }

    fn any_note() -> impl Strategy<Value = (bool, u64, i64)> {
        (any::<bool>(), prop_oneof![1_u64..200, any::<u64>().prop_map(|n| n >> 1)], 0_i64..100_000)
    }

    proptest! {
        #[test]
        fn notes_are_read_back_as_written(notes in prop::collection::vec(any_note(), 0..50)) {
            let (mut bytes, mut time, mut written) = (header(at(3)).to_vec(), 3, Vec::new());
            for (stderr, length, after) in notes {
                let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
                let note = Note { stream, length, time: at(time + after) };
                let before = bytes.len();
                encode(note, at(time), &mut bytes);
                prop_assert!(bytes.len() - before <= 20, "two numbers of at most ten bytes");
                time += after;
                written.push(note);
            }
            let mut read = Vec::new();
            let _ = decode(&bytes, &mut |note| { read.push(note); ControlFlow::Continue(()) });
            prop_assert_eq!(read, written);
        }

        #[test]
        fn garbage_never_makes_more_of_a_stream_than_there_is(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            from in (0_u64..50, 0_u64..50),
            end in (0_u64..100, 0_u64..100),
        ) {
            let order = Order { files: vec![(Noted { stdout: from.0, stderr: from.1 }, bytes)] };
            let end = Noted { stdout: end.0, stderr: end.1 };
            let mut at = Noted::default();
            for (stream, offset, length) in spans(&order, end, true) {
                prop_assert_eq!(at.of(stream), offset);
                *at.of_mut(stream) += length;
            }
            prop_assert_eq!(at, end);
        }
    }
}
