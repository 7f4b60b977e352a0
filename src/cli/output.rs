//! The one place that prints: what was asked for to standard output, everything else to standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};
use serde::Serialize;

use crate::domain::{JobStatus, Timestamp};
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
        if self.is_terminal() && table.width().is_some_and(|width| width >= NARROWEST) {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
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

/// How long ago `time` was, with its one largest unit, such as `5m`; `in 5m` where it lies ahead.
pub(super) fn age(time: Timestamp, now: Timestamp) -> String {
    if time > now { format!("in {}", rough(time.since(now).as_secs())) } else { rough(now.since(time).as_secs()) }
}

fn rough(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A length of time with its two largest units, such as `1h 20m` or `350ms`.
pub(super) fn duration_of(milliseconds: i64) -> String {
    let milliseconds = u64::try_from(milliseconds).unwrap_or(0);
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    match seconds {
        0 => format!("{rest}ms"),
        1..60 => format!("{seconds}.{}s", rest / 100),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
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
    fn times_are_shown_roughly() {
        let at = Timestamp::from_unix_millis;
        let ages = [(0, 59_000), (0, 61_000), (0, 7_200_000), (0, 400_000_000), (90_000, 0)];
        assert_eq!(ages.map(|(time, now)| age(at(time), at(now))), ["59s", "1m", "2h", "4d", "in 1m"]);
        assert_eq!(
            [7, 1_550, 61_000, 4_800_000, 176_400_000].map(duration_of),
            ["7ms", "1.5s", "1m 1s", "1h 20m", "2d 1h"]
        );
    }

    #[test]
    fn nothing_shown_moves_the_cursor() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc\u{202e}d"), "ab cd");
        assert_eq!(many_lines("a\r\nb\tc"), "a\nb\tc");
    }
}
