//! The end of a run's output as a page is given it; its script goes on from there.

use std::path::Path;

use crate::process::logs::{Page, RunLog, Selection, Stream};
use crate::process::text::made_safe;

/// So many lines are shown at first.
const LINES: usize = 1000;
/// No more of them than this, in bytes: a page is read before it has all come.
const MOST: usize = 96 << 10;

/// The end of some output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// As it is shown.
    pub(super) pieces: Vec<(Stream, String)>,
    /// Where it ends, in bytes.
    pub(super) at: u64,
    /// Whether there is output before it.
    pub(super) earlier: bool,
}

/// The end of the output of the run whose directory this is; `None` where there is no such directory, or it can't be read.
pub(super) fn read(directory: &Path, ended: bool) -> Option<Tail> {
    let log = RunLog::open(directory, Selection::Both, ended);
    let mut page = directory.is_dir().then(|| log.tail(LINES).ok()).flatten()?;
    keep_last_bytes(&mut page, MOST);
    if !ended {
        hold_back(&mut page);
    }
    let kept: u64 = page.pieces.iter().map(|piece| piece.dropped + piece.bytes.len() as u64).sum();
    Some(Tail { earlier: page.next_offset > kept, at: page.next_offset, pieces: shown(&page) })
}

/// The pieces of some output as they are shown.
pub(super) fn shown(page: &Page) -> Vec<(Stream, String)> {
    let pieces = page.pieces.iter().filter(|piece| !piece.bytes.is_empty()).map(|piece| {
        let note = piece.dropped_note().map(|note| note + "\n").unwrap_or_default();
        (piece.stream, note + &made_safe(&piece.bytes))
    });
    pieces.collect()
}

/// Drops what is before the last `most` bytes, and the rest of the line that this cuts, unless it is all there is.
fn keep_last_bytes(page: &mut Page, most: usize) {
    let mut room = most;
    let cut = page.pieces.iter().rposition(|piece| match room.checked_sub(piece.bytes.len()) {
        Some(left) => {
            room = left;
            false
        }
        None => true,
    });
    page.pieces.drain(..cut.unwrap_or(0));
    let others = page.pieces.len() > 1;
    if let Some(first) = page.pieces.first_mut().filter(|_| cut.is_some()) {
        let from = first.bytes.len() - room;
        let next_line = first.bytes.iter().skip(from).position(|byte| *byte == b'\n').map(|end| from + end + 1);
        let start = next_line.filter(|start| others || *start < first.bytes.len()).unwrap_or(from);
        first.bytes.drain(..start);
        first.dropped = 0;
    }
}

/// Leaves to the script what can't be shown before more of it has come: what a control sequence does, and whether a line
/// ends with a carriage return or with two characters.
fn hold_back(page: &mut Page) {
    let Some(last) = page.pieces.last_mut() else { return };
    let line = last.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let unclear = last.bytes.iter().skip(line).rposition(|byte| *byte == 0x1b).map(|at| line + at);
    let end = unclear.unwrap_or(last.bytes.len() - usize::from(last.bytes.last() == Some(&b'\r')));
    page.next_offset -= (last.bytes.len() - end) as u64;
    last.bytes.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail_of(stdout: &str, ended: bool) -> (String, u64, bool) {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("stdout.0"), stdout).unwrap();
        let tail = read(scratch.path(), ended).unwrap();
        (tail.pieces.iter().map(|(_, text)| text.as_str()).collect(), tail.at, tail.earlier)
    }

    #[test]
    fn the_end_says_where_it_is_and_whether_there_is_more_before_it() {
        assert_eq!(tail_of("", true), (String::new(), 0, false));
        assert_eq!(tail_of("one\ntwo", false), ("one\ntwo".into(), 7, false));
        let lines: String = (1..=1500).map(|n| format!("{n}\n")).collect();
        let (text, at, earlier) = tail_of(&lines, true);
        assert_eq!((text.lines().next(), text.lines().count(), earlier), (Some("501"), LINES, true));
        assert_eq!(at, lines.len() as u64);
        assert_eq!(read(Path::new("/nowhere"), true), None);
    }

    #[test]
    fn long_lines_are_fewer_and_begin_where_a_line_does() {
        let lines: String = (1..=1000).map(|n| format!("{n} {}\n", "x".repeat(300))).collect();
        let (text, at, earlier) = tail_of(&lines, true);
        assert!(text.len() <= MOST && text.len() > MOST - 400 && earlier, "{}", text.len());
        assert!(text.starts_with(|first: char| first.is_ascii_digit()) && text.ends_with("x\n"));
        assert_eq!(at, lines.len() as u64);
        let (text, _, earlier) = tail_of(&"y".repeat(2 * MOST), true);
        assert_eq!((text.len(), earlier), (MOST, true), "one line without an end is cut");
    }

    #[test]
    fn what_is_not_clear_yet_is_left_to_what_follows() {
        assert_eq!(tail_of("a\nb\u{1b}[3", false), ("a\nb".into(), 3, false));
        assert_eq!(tail_of("50%\r", false), ("50%".into(), 3, false));
        assert_eq!(tail_of("a\nb\u{1b}[3", true).1, 6);
    }
}
