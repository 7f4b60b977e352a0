//! The one place that prints: what was asked for to standard output, everything else to standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};
use serde::Serialize;

use crate::domain::{FlowType, JobStatus};
pub(super) use crate::http::words::{age, duration_of};
use crate::process::text::made_safe;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    /// JSON instead of text for people.
    pub(super) json: bool,
    /// Less of what was not asked for.
    pub(super) quiet: bool,
    /// Whether standard output may be coloured.
    colour: bool,
}

/// What standard output did not take, other than because nobody reads it any more.
pub(super) type Printed = io::Result<()>;

/// The narrowest terminal that a table is fitted to, in characters.
const NARROWEST: u16 = 80;

impl Output {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        // https://no-color.org: any value that is not empty.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, quiet, colour: io::stdout().is_terminal() && !unwanted && !json }
    }

    /// Whether standard output is a terminal.
    pub(super) fn is_terminal(self) -> bool {
        io::stdout().is_terminal()
    }

    /// Whether standard output is a pipe whose reader has gone, which a write would only find out later.
    pub(super) fn is_unread(self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let stdout = io::stdout();
        let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut asked, Some(&now)).is_ok_and(|_| asked[0].revents().contains(PollFlags::ERR))
    }

    /// One line of what was asked for.
    pub(super) fn line(self, text: impl Display) -> Printed {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// One JSON document on a line of its own.
    pub(super) fn json(self, value: &impl Serialize) -> Printed {
        let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
        line.push(b'\n');
        self.raw(&line)
    }

    /// Bytes as they are.
    pub(super) fn raw(self, bytes: &[u8]) -> Printed {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// A remark for people; nothing with `--quiet`.
    pub(super) fn note(self, text: impl Display) {
        if !self.quiet {
            self.error(text);
        }
    }

    /// What failed.
    pub(super) fn error(self, text: impl Display) {
        // Where standard error can't be written to either, nobody is left to tell.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// A table with the columns `header`; those named in `right` are aligned to the right.
    pub(super) fn table(self, header: &[&str], right: &[&str], rows: Vec<Vec<Cell>>) -> Printed {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(header.to_vec());
        // Fitted to the terminal, unless that would leave columns of one letter.
        if let Some(width) = self.terminal_width().filter(|width| *width >= NARROWEST) {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        self.print_table(table, header, right, rows)
    }

    /// The same with every row on one line, which is longer than a narrow terminal where nothing more can be left out.
    pub(super) fn table_of_lines(self, header: &[&str], right: &[&str], rows: Vec<Vec<Cell>>) -> Printed {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(header.to_vec());
        self.print_table(table, header, right, rows)
    }

    /// How many characters fit on a line; `None` where standard output is no terminal.
    pub(super) fn terminal_width(self) -> Option<u16> {
        // Asked of a table that is not told whether it may be coloured, since that is no matter of the layout.
        if self.is_terminal() { Table::new().width() } else { None }
    }

    fn print_table(self, mut table: Table, header: &[&str], right: &[&str], rows: Vec<Vec<Cell>>) -> Printed {
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.add_rows(rows);
        for (index, name) in header.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, 2));
                if right.contains(name) {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        self.line(table.trim_fmt())
    }

    /// The status as a cell, in its colour.
    pub(super) fn status(self, status: JobStatus) -> Cell {
        let cell = Cell::new(status);
        match status {
            JobStatus::Pending => cell,
            JobStatus::InQueue | JobStatus::Progress => cell.fg(Color::Cyan),
            JobStatus::Completed => cell.fg(Color::Green),
            JobStatus::Error => cell.fg(Color::Red),
            JobStatus::Cancelled => cell.fg(Color::Yellow),
        }
    }

    /// The text in bold, where that is possible.
    pub(super) fn bold(self, text: &str) -> String {
        if self.colour { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// The text on one line as [`one_line`] shows it, with `…` for what does not fit in `width` columns.
pub(super) fn cut(text: &str, width: usize) -> String {
    // What made safe has no more than one line of a few columns need not be read to its end.
    let enough = text.char_indices().nth(width.saturating_mul(8)).map_or(text, |(end, _)| &text[..end]);
    let shown = one_line(enough);
    if columns(&shown) <= width && enough.len() == text.len() {
        return shown;
    }
    let mut room = width.saturating_sub(1);
    let fits = |character: &char| {
        let left = room.checked_sub(columns_of(*character));
        room = left.unwrap_or(0);
        left.is_some()
    };
    let mut cut: String = shown.chars().take_while(fits).collect();
    cut.push('…');
    cut
}

/// A job type that somebody has written: quoted where no flow could have it, and cut to a length that can be read.
pub(super) fn shown_type(name: &str) -> String {
    if name.parse::<FlowType>().is_ok() { name.to_owned() } else { quoted(name) }
}

/// What somebody has written, in quotes, cut to a length that can be read.
pub(super) fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(60).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}

/// How many columns of a terminal the text takes.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// Two for the scripts and symbols that terminals show wide (UAX #11, by block), one for all others.
fn columns_of(character: char) -> usize {
    match character {
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

/// The text on one line, with nothing in it that could move a terminal's cursor or turn its direction.
pub(super) fn one_line(text: &str) -> String {
    many_lines(text).replace(['\n', '\t'], " ")
}

/// The text with its line breaks, and nothing else that could move a terminal's cursor or turn its direction.
pub(super) fn many_lines(text: &str) -> String {
    made_safe(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut() {
        assert_eq!([cut("abcd", 4), cut("abcde", 4), cut("", 4)], ["abcd", "abc…", ""]);
        assert_eq!(cut("映画の", 6), "映画の");
        assert_eq!(cut("映画の最後", 6), "映画…");
        assert_eq!(cut(&"a".repeat(200_000), 40).chars().count(), 40);
    }

    #[test]
    fn a_type_that_no_flow_can_have_is_quoted_and_cut() {
        assert_eq!(["HELLO", "MY-TYPE", "", "A\nB"].map(shown_type), ["HELLO", "\"MY-TYPE\"", "\"\"", "\"A\\nB\""]);
        assert_eq!(shown_type(&"a".repeat(200_000)).chars().count(), 63);
    }

    #[test]
    fn nothing_shown_moves_the_cursor() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc\u{202e}d"), "ab cd");
        assert_eq!(many_lines("a\r\nb\tc"), "a\nb\tc");
    }
}
