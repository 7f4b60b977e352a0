//! Complaints about a configuration: what is wrong, where, and what to write instead.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::Utf8Error;

/// Where in a file something stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, relative to the current directory where it lies under it.
    pub file: PathBuf,
    /// The line; the first is 1.
    pub line: usize,
    /// The character in the line; the first is 1.
    pub column: usize,
}

/// One thing that is wrong; `Display` shows it with its place first and an excerpt of the file below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Where it stands; `None` for what is in no file.
    pub place: Option<Place>,
    /// What is wrong, as a sentence without a full stop.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    excerpt: Option<Excerpt>,
}

/// Every complaint about one configuration, in the order of the file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaints(pub Vec<Complaint>);

/// One line of the file with a part of it marked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    line: usize,
    text: String,
    indent: usize,
    carets: usize,
}

/// How many characters of a line an excerpt shows.
const EXCERPT_WIDTH: usize = 100;

impl Complaint {
    /// A complaint about something that stands in no file.
    #[must_use]
    pub fn without_place(message: impl Into<String>, help: Option<String>) -> Self {
        Self { place: None, message: message.into(), help, excerpt: None }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)?;
        let margin = self.excerpt.as_ref().map_or(1, |excerpt| excerpt.line.to_string().len());
        if let Some(Excerpt { line, text, indent, carets }) = &self.excerpt {
            write!(f, "\n{:margin$} |\n{line} | {text}\n{:margin$} | {:indent$}{:^<carets$}", "", "", "", "")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n{:margin$} = {help}", "")?;
        }
        Ok(())
    }
}

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, complaint) in self.0.iter().enumerate() {
            write!(f, "{}{complaint}", if index == 0 { "" } else { "\n\n" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// A complaint before it is known which file it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    span: Range<usize>,
    message: String,
    help: Option<String>,
    /// The line may hold a secret, so no excerpt shows it.
    private: bool,
    /// It is about something that is not there, so a syntax error elsewhere may be the real reason.
    missing: bool,
}

impl Note {
    pub(super) fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn private(&mut self) -> &mut Self {
        self.private = true;
        self
    }

    pub(super) fn missing(&mut self) -> &mut Self {
        self.missing = true;
        self
    }
}

/// What has been complained about so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    notes: Vec<Note>,
    syntax: Vec<Note>,
}

impl Notes {
    pub(super) fn add(&mut self, span: Range<usize>, message: impl Into<String>) -> &mut Note {
        push(&mut self.notes, span, message.into())
    }

    pub(super) fn add_syntax(&mut self, span: Range<usize>, message: impl Into<String>) {
        push(&mut self.syntax, span, message.into());
    }

    pub(super) fn len(&self) -> usize {
        self.notes.len() + self.syntax.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.notes.is_empty() && self.syntax.is_empty()
    }

    /// These complaints as complaints about `file`, whose content is `text`.
    pub(super) fn located(self, file: &Path, text: &str) -> Complaints {
        // What the parser made of a line that it could not read is not worth a complaint of its own.
        let broken: Vec<usize> = self.syntax.iter().map(|note| position(text, note.span.start).0).collect();
        let sound =
            |note: &Note| broken.is_empty() || !(note.missing || broken.contains(&position(text, note.span.start).0));
        let mut all = self.syntax;
        all.extend(self.notes.into_iter().filter(sound));
        all.sort_by(|a, b| (a.span.start, a.span.end, &a.message).cmp(&(b.span.start, b.span.end, &b.message)));
        // A bad value of [defaults] is met once for each flow.
        all.dedup();
        Complaints(all.into_iter().map(|note| complaint(note, file, text)).collect())
    }
}

fn push(notes: &mut Vec<Note>, span: Range<usize>, message: String) -> &mut Note {
    let at = notes.len();
    notes.push(Note { span, message, help: None, private: false, missing: false });
    &mut notes[at]
}

fn complaint(note: Note, file: &Path, text: &str) -> Complaint {
    let (line, column) = position(text, note.span.start);
    let excerpt = if note.private { None } else { excerpt(text, &note.span) };
    Complaint {
        place: Some(Place { file: file.to_owned(), line, column }),
        message: safe(&note.message),
        help: note.help.map(|help| safe(&help)),
        excerpt,
    }
}

/// Where things stand in a file that was read, for complaints that only a look at the machine can give.
#[derive(Clone, Default)]
pub struct Places {
    pub(super) file: PathBuf,
    pub(super) text: String,
    pub(super) spans: Vec<(String, Range<usize>)>,
}

impl Places {
    /// Whether the file has this key, and its place is known.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.spans.iter().any(|(known, _)| known == key)
    }

    /// A complaint about `key` (such as `data_dir` or `flows.VEO_3_GENERATION.command`), at its place where it has one.
    #[must_use]
    pub fn complaint(&self, key: &str, message: impl Into<String>, help: Option<String>) -> Complaint {
        let message = message.into();
        match self.spans.iter().find(|(known, _)| known == key) {
            Some((_, span)) => {
                let note = Note { span: span.clone(), message, help, private: key == "database_url", missing: false };
                complaint(note, &self.file, &self.text)
            }
            None => Complaint::without_place(message, help),
        }
    }
}

/// The complaint about a file that is no UTF-8, at the first byte that is none.
pub(super) fn not_utf8(file: &Path, bytes: &[u8], error: Utf8Error) -> Complaints {
    let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
    let (line, column) = position(&before, before.len());
    Complaints(vec![Complaint {
        place: Some(Place { file: file.to_owned(), line, column }),
        message: "this is not UTF-8 text, which a TOML file has to be".to_owned(),
        help: Some("save the file as UTF-8".to_owned()),
        excerpt: None,
    }])
}

/// Line and column of the byte `at`, both counted from 1; columns count characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn excerpt(text: &str, span: &Range<usize>) -> Option<Excerpt> {
    let start = text.floor_char_boundary(span.start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
    let shown = without_secrets(text[line_start..line_end].trim_end_matches('\r'));
    let indent = text[line_start..start].chars().count();
    let end = text.floor_char_boundary(span.end.clamp(start, line_end));
    let marked = text[start..end].chars().count().max(1);
    // A window over a line that is too long to be read, with the marked part in it.
    let skip = if indent + marked.min(40) > EXCERPT_WIDTH { indent.saturating_sub(20) } else { 0 };
    let cut: String = shown.chars().skip(skip).take(EXCERPT_WIDTH).collect();
    if cut.trim().is_empty() {
        return None;
    }
    let dots = if skip > 0 { "…" } else { "" };
    let shown = format!("{dots}{}", safe(cut.trim_end()));
    let indent = indent - skip + dots.chars().count();
    let carets = marked.min((shown.chars().count() + 1).saturating_sub(indent)).max(1);
    Some(Excerpt { line: position(text, start).0, text: shown, indent, carets })
}

/// The line with what follows a `://` starred out: a database's URL may hold a password, and where a line can't be
/// parsed nothing tells where it ends.
fn without_secrets(line: &str) -> String {
    match line.split_once("://") {
        Some((before, after)) if !before.ends_with("sqlite") => {
            let hidden: String = after.chars().map(|c| if c.is_whitespace() { c } else { '*' }).collect();
            format!("{before}://{hidden}")
        }
        _ => line.to_owned(),
    }
}

/// The text with nothing in it that could move a terminal's cursor or turn its direction; one character for one.
fn safe(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() || turns(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}
