//! Noting in which order a command's two streams arrive; see `logs::order` for the files.
//!
//! A command that uses one stream costs nothing here. From the other stream's first byte on, each arrival is a note in
//! memory, and the notes of a moment are one write.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use super::logs::Stream;
use super::logs::order::{HEADER, Note, Noted, encode, file_name, header};
use crate::domain::Timestamp;

/// How long a note may wait for its write; so long, too, a reader of both streams lags behind.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a line waits for its end before what there is of it is noted: a prompt, or a progress bar.
const LINE_PATIENCE: Duration = Duration::from_secs(1);
/// A line longer than this is noted as it comes.
const LONG_LINE: u64 = 8 * 1024;
/// How much is kept in memory at most, in bytes; where it can't be written (a full disk), the order of that much is lost.
const MOST_HELD: u64 = 64 * 1024;

/// The order of one run's output.
#[derive(Debug)]
pub(super) struct Arrival {
    run_dir: PathBuf,
    /// Bytes that all files together may have.
    limit: u64,
    /// What has come of each stream.
    arrived: Noted,
    /// What of it has been noted.
    noted: Noted,
    /// Whether both streams are in use.
    both: bool,
    /// Notes that are not written yet, where they begin, and the time that the first of them counts from.
    held: Vec<u8>,
    held_from: Noted,
    held_time: Timestamp,
    /// The time of the last note.
    last_time: Timestamp,
    current: Option<Current>,
    /// The file before the current one.
    previous: Option<PathBuf>,
    /// When notes are to be written, and when the rest of a line is to be noted; boot time.
    write_at: Option<Duration>,
    line_at: Option<Duration>,
}

#[derive(Debug)]
struct Current {
    file: File,
    path: PathBuf,
    length: u64,
}

impl Arrival {
    /// For streams that are kept up to `output_limit` bytes each.
    pub(super) fn new(run_dir: PathBuf, output_limit: u64) -> Self {
        Self {
            run_dir,
            // A note of a line takes three or four bytes, so this is enough for all lines of some length, and never much.
            limit: (output_limit / 32).clamp(8 * 1024, 4 << 20),
            arrived: Noted::default(),
            noted: Noted::default(),
            both: false,
            held: Vec::new(),
            held_from: Noted::default(),
            held_time: Timestamp::from_unix_millis(0),
            last_time: Timestamp::from_unix_millis(0),
            current: None,
            previous: None,
            write_at: None,
            line_at: None,
        }
    }

    /// Takes note of bytes that have come; to be called before they are written to their stream's segment.
    pub(super) fn note(
        &mut self,
        stream: Stream,
        bytes: &[u8],
        now: impl Fn() -> Duration,
        time: impl Fn() -> Timestamp,
    ) {
        *self.arrived.of_mut(stream) += bytes.len() as u64;
        if !self.both {
            if self.arrived.stdout == 0 || self.arrived.stderr == 0 {
                return;
            }
            self.both = true;
            // All of the stream that was there first stands before this.
            let before = if stream == Stream::Stdout { Stream::Stderr } else { Stream::Stdout };
            *self.noted.of_mut(before) = self.arrived.of(before);
            self.last_time = time();
            self.hold_nothing();
            // At once, so that whoever sees the second stream knows that there is an order to it.
            self.open();
        }
        let unfinished = match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => (bytes.len() - newline - 1) as u64,
            None => self.arrived.of(stream) - self.noted.of(stream),
        };
        // Whole lines, so that lines of the two streams do not run into each other where a reader joins them.
        let unfinished = if unfinished > LONG_LINE { 0 } else { unfinished };
        let upto = self.arrived.of(stream) - unfinished;
        if upto > self.noted.of(stream) {
            self.add(stream, upto, time());
            self.write_at.get_or_insert_with(|| now() + PAUSE);
        }
        if unfinished > 0 {
            self.line_at.get_or_insert_with(|| now() + LINE_PATIENCE);
        }
    }

    /// When [`Self::go_on`] wants to be called.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.write_at.into_iter().chain(self.line_at).min()
    }

    /// Does what is due.
    pub(super) fn go_on(&mut self, now: Duration, time: impl Fn() -> Timestamp) {
        if self.line_at.is_some_and(|at| now >= at) {
            self.note_rest(time);
            self.write_at.get_or_insert(now);
        }
        if self.write_at.is_some_and(|at| now >= at) {
            self.write();
        }
    }

    /// Notes and writes everything: no more will come.
    pub(super) fn finish(&mut self, time: impl Fn() -> Timestamp) {
        if self.both {
            self.note_rest(time);
            self.write();
        }
    }

    fn note_rest(&mut self, time: impl Fn() -> Timestamp) {
        self.line_at = None;
        for stream in [Stream::Stdout, Stream::Stderr] {
            if self.arrived.of(stream) > self.noted.of(stream) {
                self.add(stream, self.arrived.of(stream), time());
            }
        }
    }

    fn add(&mut self, stream: Stream, upto: u64, time: Timestamp) {
        if self.held.len() as u64 >= MOST_HELD.min(self.limit / 2) {
            self.write();
            if !self.held.is_empty() {
                // The next note starts a file, behind a gap.
                self.current = None;
                self.hold_nothing();
            }
        }
        let note = Note { stream, length: upto - self.noted.of(stream), time };
        encode(note, self.last_time, &mut self.held);
        self.last_time = self.last_time.max(time);
        *self.noted.of_mut(stream) = upto;
    }

    /// Writes what is held; where that fails it stays held, and is tried again with the next note.
    fn write(&mut self) {
        self.write_at = None;
        let is_full = self.current.as_ref().is_some_and(|current| current.length >= self.limit / 2);
        if self.held.is_empty() || (is_full || self.current.is_none()) && !self.open() {
            return;
        }
        let Some(current) = &mut self.current else { return };
        match current.file.write(&self.held) {
            Ok(written) if written == self.held.len() => {
                current.length += written as u64;
                self.hold_nothing();
            }
            // Half a note would spoil what follows.
            Ok(_) | Err(_) => {
                if current.file.set_len(current.length).is_err() {
                    self.current = None;
                }
            }
        }
    }

    /// From here on notes are held: what was held before is written, or lost.
    fn hold_nothing(&mut self) {
        self.held.clear();
        self.held_from = self.noted;
        self.held_time = self.last_time;
    }

    /// Starts a file at what is held, and drops the last but one.
    fn open(&mut self) -> bool {
        let path = self.run_dir.join(file_name(self.held_from));
        let mut options = OpenOptions::new();
        options.append(true).create_new(true).mode(0o600);
        let Ok(mut file) = options.open(&path) else { return false };
        if !file.write(&header(self.held_time)).is_ok_and(|written| written == HEADER) {
            let _ = std::fs::remove_file(&path);
            return false;
        }
        if let Some(last) = self.current.take().map(|current| current.path)
            && let Some(oldest) = self.previous.replace(last)
        {
            let _ = std::fs::remove_file(oldest);
        }
        self.current = Some(Current { file, path, length: HEADER as u64 });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::logs::{RunLog, Selection};
    use super::super::output::Log;
    use super::*;

    /// Both streams of a run, as its shim writes them.
    struct Run {
        scratch: tempfile::TempDir,
        stdout: Log,
        stderr: Log,
        arrival: Arrival,
        now: Duration,
    }

    impl Run {
        fn new(limit: u64) -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let path = scratch.path().to_owned();
            Self {
                stdout: Log::new(path.clone(), Stream::Stdout, limit),
                stderr: Log::new(path.clone(), Stream::Stderr, limit),
                arrival: Arrival::new(path, limit),
                scratch,
                now: Duration::from_secs(1),
            }
        }

        fn time(&self) -> impl Fn() -> Timestamp + use<> {
            let now = i64::try_from(self.now.as_millis()).unwrap();
            move || Timestamp::from_unix_millis(now)
        }

        fn comes(&mut self, stream: Stream, text: &str) {
            self.arrival.note(stream, text.as_bytes(), || self.now, self.time());
            let log = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
            log.take(text.as_bytes());
        }

        fn later(&mut self, by: Duration) {
            self.now += by;
            self.arrival.go_on(self.now, self.time());
        }

        fn log(&self, ended: bool) -> RunLog {
            RunLog::open(self.scratch.path(), Selection::Both, ended)
        }

        fn read(&self, ended: bool) -> String {
            self.log(ended).read(0, usize::MAX).unwrap().to_safe_text()
        }

        fn files(&self) -> usize {
            let names = std::fs::read_dir(self.scratch.path()).unwrap();
            names.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("order.")).count()
        }
    }

    #[test]
    fn one_stream_alone_needs_no_order_and_is_read_at_once() {
        let mut run = Run::new(1 << 20);
        run.comes(Stream::Stderr, "a\nb");
        assert_eq!((run.read(false).as_str(), run.files(), run.arrival.next_deadline()), ("a\nb", 0, None));
    }

    #[test]
    fn lines_are_read_in_the_order_in_which_they_came() {
        let mut run = Run::new(1 << 20);
        run.comes(Stream::Stdout, "1\n2\n");
        run.comes(Stream::Stderr, "3\n");
        run.comes(Stream::Stdout, "4\n5: begun");
        run.comes(Stream::Stderr, "6\n");
        // Not before the order is known, and then without what has no end yet.
        assert_eq!(run.read(false), "1\n2\n");
        run.later(PAUSE);
        assert_eq!(run.read(false), "1\n2\n3\n4\n6\n");
        run.comes(Stream::Stdout, ", ended\n");
        run.comes(Stream::Stderr, "50%\r");
        run.later(LINE_PATIENCE);
        run.comes(Stream::Stdout, "7\n");
        run.arrival.finish(run.time());
        let whole = "1\n2\n3\n4\n6\n5: begun, ended\n50%\n7\n";
        assert_eq!((run.read(false).as_str(), run.read(true).as_str()), (whole, whole));
        let page = run.log(true).read(0, usize::MAX).unwrap();
        let times: Vec<_> = page.pieces.iter().map(|piece| piece.time.map(Timestamp::unix_millis)).collect();
        assert_eq!(times, [None, Some(1000), Some(1000), Some(1000), Some(1100), Some(2100), Some(2100)]);
        assert_eq!(run.log(true).tail(1).unwrap().to_safe_text(), "50%\n7\n");
    }

    #[test]
    fn a_shim_that_died_leaves_all_that_it_wrote() {
        let mut run = Run::new(1 << 20);
        run.comes(Stream::Stdout, "1\n");
        run.comes(Stream::Stderr, "2\n");
        run.later(PAUSE);
        run.comes(Stream::Stderr, "4\n");
        run.comes(Stream::Stdout, "3\n");
        assert_eq!(run.read(false), "1\n2\n");
        assert_eq!(run.read(true), "1\n2\n3\n4\n");
    }

    #[test]
    fn pages_of_a_run_that_goes_on_add_up_to_the_whole_and_files_stay_small() {
        let limit = 1 << 20;
        let mut run = Run::new(limit);
        let (mut read, mut offset, mut written) = (Vec::new(), 0, Vec::new());
        for number in 0..20_000 {
            let stream = if number % 3 == 0 { Stream::Stderr } else { Stream::Stdout };
            let line = format!("{number}\n");
            run.comes(stream, &line);
            written.extend(line.into_bytes());
            if number % 10 == 0 {
                run.later(Duration::from_millis(30));
                let page = run.log(false).read(offset, 1000).unwrap();
                offset = page.next_offset;
                read.extend(page.to_bytes());
            }
        }
        run.arrival.finish(run.time());
        while let Some(page) = Some(run.log(true).read(offset, 1 << 20).unwrap()).filter(|page| !page.pieces.is_empty())
        {
            offset = page.next_offset;
            read.extend(page.to_bytes());
        }
        assert!(read == written, "the pages are not what was written");
        assert!(run.files() <= 2, "{} files", run.files());
        let on_disk = |start: &str| -> u64 {
            let entries = std::fs::read_dir(run.scratch.path()).unwrap().map(Result::unwrap);
            let ours = entries.filter(|entry| entry.file_name().to_str().unwrap().starts_with(start));
            ours.map(|entry| entry.metadata().unwrap().len()).sum()
        };
        assert!(on_disk("order.") <= limit / 16, "{} bytes of order", on_disk("order."));
    }

    #[test]
    fn what_has_lost_its_order_is_read_all_the_same() {
        // So small a limit that most of the order and of the output is dropped.
        let mut run = Run::new(8 * 1024);
        for number in 0..40_000 {
            run.comes(if number % 2 == 0 { Stream::Stderr } else { Stream::Stdout }, &format!("{number}\n"));
            run.later(Duration::from_millis(50));
        }
        run.arrival.finish(run.time());
        assert!(run.files() <= 2, "{} files", run.files());
        let log = run.log(true);
        let page = log.read(0, usize::MAX).unwrap();
        assert_eq!(page.next_offset, log.total_length().unwrap());
        let kept: u64 = page.pieces.iter().map(|piece| piece.dropped + piece.bytes.len() as u64).sum();
        assert_eq!(kept, page.next_offset);
        assert!(page.to_safe_text().starts_with("callsheet: "), "what was dropped is told");
        assert_eq!(log.tail(3).unwrap().to_safe_text(), "39997\n39998\n39999\n");
    }

    #[test]
    fn a_full_disk_costs_the_order_of_what_it_swallowed() {
        let mut run = Run::new(1 << 20);
        run.comes(Stream::Stdout, "1\n");
        run.comes(Stream::Stderr, "2\n");
        run.later(PAUSE);
        let whole = run.arrival.current.take().unwrap();
        // /dev/full answers every write with ENOSPC.
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        run.arrival.current = Some(Current { file: full, ..whole });
        for number in 3..60_000 {
            run.comes(if number % 2 == 0 { Stream::Stderr } else { Stream::Stdout }, &format!("{number}\n"));
            run.later(PAUSE);
        }
        assert!(run.arrival.held.len() as u64 <= MOST_HELD);
        run.comes(Stream::Stderr, "last\n");
        run.arrival.finish(run.time());
        let text = run.read(true);
        assert!(text.starts_with("1\n2\n") && text.ends_with("\nlast\n"));
        assert_eq!(text.lines().count(), 60_000);
    }
}
