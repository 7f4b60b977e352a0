//! What an open page is told: each part of it that has changed, and what the command has written, as server-sent events.
//!
//! A stream begins with every part as it is, so a page that was away, or that saw the service restart, misses nothing;
//! the id of an event says how far the output was read, and a page that comes back goes on from there.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use axum::body::Bytes;
use axum::response::Response;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::form::Fields;
use super::frame::assets;
use super::log_tail::shown;
use super::renderings::{Looker, Shown, ShownOutput};
use super::{Place, Renderings, Visitor};
use crate::actors::AbortOnDrop;
use crate::domain::{Attempt, JobId};
use crate::http::api::logs::ask;
use crate::http::peers::{Event, Form, Question};
use crate::http::words::size;
use crate::http::{App, Viewer, sse};
use crate::process::logs::{RunLog, Selection, Stream};
use crate::store::RunRow;

/// How often the output is looked at.
const LOG_EVERY: Duration = Duration::from_millis(250);
/// So much of a stream's past is sent to a page that opens, in bytes; all of it can be downloaded.
const PAST: u64 = 12 << 20;
/// So much is read at once, in bytes.
const AT_ONCE: usize = 256 << 10;
/// The same of a run on another worker, in lines.
const PAST_LINES: usize = 100_000;
/// How soon another worker is asked again that did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Pieces of another worker's output that may wait to be sent; it waits with them.
const MOST_WAITING: usize = 8;

/// A page that is open.
struct Watcher {
    app: App,
    job: Option<JobId>,
    looker: Looker,
    told: BTreeMap<&'static str, String>,
    title: String,
    log: Option<Log>,
    ready: VecDeque<Bytes>,
}

/// The answer to a page that wants to be told.
pub(super) fn stream(
    app: &App,
    viewer: &Viewer,
    place: Place,
    renderings: &Renderings,
    fields: &Fields,
    permit: OwnedSemaphorePermit,
) -> Response {
    let job = match &place {
        Place::Job(id, _) => Some(*id),
        Place::Overview(_) | Place::Jobs(_) | Place::Workers | Place::Actors => None,
    };
    let attempt = fields.first("attempt").and_then(|text| text.parse().ok()).map(Attempt);
    let log = job.zip(attempt).map(|(job, attempt)| {
        let read = fields.first("at").and_then(|text| text.parse().ok());
        Log { job, attempt, source: Source::Unknown, read, ended: false }
    });
    let hello = json!({ "script": assets()[1].path }).to_string();
    let watcher = Watcher {
        looker: renderings.look(app, place, &Visitor::from(viewer)),
        app: app.clone(),
        job,
        told: BTreeMap::new(),
        title: String::new(),
        log,
        ready: VecDeque::from([sse::frame(None, Some("hello"), &hello)]),
    };
    sse::respond(watcher, app, viewer, permit)
}

impl sse::Source for Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            // Looked for first: a command that never stops writing must not hide what becomes of it.
            if let Some(shown) = self.looker.fresh() {
                self.show(&shown);
                continue;
            }
            self.read_log().await;
            if self.ready.is_empty() {
                let log_is_open = self.log.as_ref().is_some_and(Log::is_open);
                tokio::select! {
                    shown = self.looker.next() => self.show(&*shown?),
                    () = tokio::time::sleep(LOG_EVERY), if log_is_open => {}
                }
            }
        }
    }
}

impl Watcher {
    fn event(&mut self, name: &str, data: &str) {
        self.ready.push_back(sse::frame(None, Some(name), data));
    }

    /// Tells what of the view is other than before.
    fn show(&mut self, shown: &Shown) {
        match &shown.what {
            Ok(view) => {
                if self.title != view.title {
                    self.event("title", &view.title);
                    self.title.clone_from(&view.title);
                }
                for part in &view.parts {
                    if self.told.get(part.id) == Some(&part.hash) {
                        continue;
                    }
                    self.ready.push_back(sse::frame(None, Some("part"), &self.looker.personal(part)));
                    self.told.insert(part.id, part.hash.clone());
                }
                if let Some(output) = &view.output {
                    self.follow(output);
                }
            }
            Err(trouble) => {
                self.event("trouble", trouble);
                // Once there is a view again all of it is told: that is how a page learns that it is fresh.
                self.told.clear();
            }
        }
    }

    /// Follows this output, which may be that of a later attempt than the page has shown so far.
    fn follow(&mut self, output: &ShownOutput) {
        let Some(job) = self.job else { return };
        if let Some(log) = self.log.as_mut().filter(|log| log.attempt == output.attempt) {
            log.ended = output.ended;
            return;
        }
        self.event("output", &output.json);
        // The page is given the end of it, and goes on from there.
        let (attempt, read, ended) = (output.attempt, output.at, output.ended);
        self.log = Some(Log { job, attempt, source: Source::Unknown, read, ended });
    }

    async fn read_log(&mut self) {
        let Some(log) = self.log.as_mut() else { return };
        if matches!(log.source, Source::Unknown) {
            log.source = source_of(&self.app, log.job, log.attempt, log.read).await;
        }
        let place = match &mut log.source {
            Source::Unknown => return,
            Source::Here(place) => place.clone(),
            Source::There(remote) => {
                let told: Vec<Told> = std::iter::from_fn(|| remote.told.try_recv().ok()).take(MOST_WAITING).collect();
                for one in told {
                    self.tell(one);
                }
                return;
            }
        };
        let (read, ended) = (log.read, log.ended);
        // Files are read where that may take its time.
        let Ok(Some(written)) = tokio::task::spawn_blocking(move || read_on(&place, read, ended)).await else {
            return;
        };
        log.read = Some(written.next);
        self.tell_output(&written);
    }

    fn tell_output(&mut self, written: &Written) {
        if !written.pieces.is_empty() {
            let pieces: Vec<_> = written.pieces.iter().map(|(stream, text)| [stream.as_str(), text]).collect();
            let mut data = json!({ "pieces": pieces, "at": written.next });
            if written.skipped > 0 {
                data["skipped"] = json!({ "bytes": written.skipped, "size": size(written.skipped) });
            }
            self.event("log", &data.to_string());
        }
    }

    fn tell(&mut self, told: Told) {
        match told {
            Told::Output(pieces, next) => {
                if let Some(log) = &mut self.log {
                    log.read = Some(next);
                }
                self.tell_output(&Written { pieces, next, skipped: 0 });
            }
            Told::Note(why) => {
                let at = self.log.as_ref().and_then(|log| log.read);
                let data = json!({ "pieces": [["callsheet", format!("callsheet: {why}\n")]], "at": at });
                self.event("log", &data.to_string());
            }
            Told::Over => {
                if let Some(Log { source: Source::There(remote), .. }) = &mut self.log {
                    remote.over = true;
                }
            }
        }
    }
}

/// The output of one run that is followed.
struct Log {
    job: JobId,
    attempt: Attempt,
    source: Source,
    /// How far it was read, in bytes.
    read: Option<u64>,
    ended: bool,
}

impl Log {
    /// Whether there may be more of it.
    fn is_open(&self) -> bool {
        match &self.source {
            Source::There(remote) => !remote.over,
            Source::Unknown | Source::Here(_) => !self.ended,
        }
    }
}

/// Where output comes from.
enum Source {
    Unknown,
    /// A directory of this worker.
    Here(std::path::PathBuf),
    /// Another worker.
    There(Remote),
}

/// The output of a run of another worker.
struct Remote {
    told: mpsc::Receiver<Told>,
    over: bool,
    _task: AbortOnDrop,
}

/// What there is to say of it.
enum Told {
    /// More output, and where the next begins.
    Output(Vec<(Stream, String)>, u64),
    /// Why there is none just now.
    Note(String),
    /// There is no more.
    Over,
}

/// Where the output of an attempt is to be had.
async fn source_of(app: &App, job: JobId, attempt: Attempt, read: Option<u64>) -> Source {
    let run = app.store().runs(job).await.ok().and_then(|runs| runs.into_iter().rfind(|run| run.attempt == attempt));
    let Some(run) = run else { return Source::Unknown };
    let Ok(token) = run.run_token.parse() else { return Source::Unknown };
    let place = app.handle().run_dir(job, attempt, &token);
    match run.worker_id.clone().filter(|worker| worker != app.handle().worker().as_str()) {
        Some(worker) if !place.is_dir() => {
            let (sender, told) = mpsc::channel(MOST_WAITING);
            let task = AbortOnDrop::spawn(fetch(app.clone(), run, worker, read, sender));
            Source::There(Remote { told, over: false, _task: task })
        }
        Some(_) | None => Source::Here(place),
    }
}

/// Follows the output of a run that another worker has, from `at` on; of what is past, the end.
async fn fetch(app: App, run: RunRow, worker: String, mut at: Option<u64>, told: mpsc::Sender<Told>) {
    let mut refused = None;
    loop {
        let tail = at.is_none().then_some(PAST_LINES);
        let question = Question { offset: at, tail, ..Question::of(&run, Selection::Both, Form::Follow) };
        let more = match ask(&app, &worker, &question).await {
            Ok(mut relay) => {
                refused = None;
                loop {
                    match relay.event().await {
                        Ok(Some(Event::Page(page))) => {
                            at = Some(page.next_offset);
                            if told.send(Told::Output(shown(&page), page.next_offset)).await.is_err() {
                                return;
                            }
                        }
                        Ok(Some(Event::End)) => break Some(Told::Over),
                        Ok(None) | Err(_) => break None,
                    }
                }
            }
            Err(no_answer) => {
                let kind = std::mem::discriminant(&no_answer);
                (refused.replace(kind) != Some(kind)).then(|| Told::Note(no_answer.to_string()))
            }
        };
        let is_over = matches!(more, Some(Told::Over));
        if let Some(more) = more
            && told.send(more).await.is_err()
        {
            return;
        }
        if is_over {
            return;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Some output that was read.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    pieces: Vec<(Stream, String)>,
    /// Where to go on, in bytes.
    next: u64,
    /// How much is left out before it, in bytes.
    skipped: u64,
}

/// What was written from this offset on (of what is past, the end), up to the end of a line.
fn read_on(place: &std::path::Path, from: Option<u64>, ended: bool) -> Option<Written> {
    let log = RunLog::open(place, Selection::Both, ended);
    let mut skipped = 0;
    let start = match from {
        Some(from) => from,
        None => {
            skipped = log.total_length().ok()?.saturating_sub(PAST);
            skipped
        }
    };
    let mut page = log.read(start, AT_ONCE).ok()?;
    // It begins where a line does.
    if skipped > 0
        && let Some(first) = page.pieces.first_mut()
        && let Some(end) = first.bytes.iter().position(|byte| *byte == b'\n')
    {
        first.bytes.drain(..=end);
        skipped += end as u64 + 1;
    }
    let length: usize = page.pieces.iter().map(|piece| piece.bytes.len()).sum();
    // A line that is not whole is waited for, unless nothing more will come or it is longer than anybody reads.
    if !ended
        && length < AT_ONCE / 2
        && let Some(last) = page.pieces.last_mut()
    {
        let whole = last.bytes.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).map_or(0, |end| end + 1);
        page.next_offset = page.next_offset.saturating_sub((last.bytes.len() - whole) as u64);
        last.bytes.truncate(whole);
    }
    Some(Written { pieces: shown(&page), next: page.next_offset, skipped })
}

/// What tells a part from the same part as it was before, however much time has passed and whose token its forms have.
pub(super) fn hash(html: &str, csrf: &str) -> String {
    let mut hasher = DefaultHasher::new();
    let html = if csrf.is_empty() { html.into() } else { html.replace(csrf, "") };
    without_times(&html).for_each(|text| text.hash(&mut hasher));
    format!("{:016x}", hasher.finish())
}

/// The markup without the words of its times, which every page keeps fresh by itself.
fn without_times(html: &str) -> impl Iterator<Item = &str> {
    html.split("<time ").enumerate().flat_map(|(place, piece)| {
        let (head, rest) = if place == 0 { ("", piece) } else { piece.split_once('>').unwrap_or((piece, "")) };
        let rest = if place == 0 { rest } else { rest.split_once("</time>").map_or("", |(_, rest)| rest) };
        [head, rest]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_in_which_only_time_has_passed_is_the_same() {
        let html =
            |said: &str| format!("<p>a <time datetime=\"x\">{said}</time> b<time datetime=\"y\">{said}</time></p>");
        let rest = |html: &str| without_times(html).collect::<String>();
        assert_eq!(rest(&html("1s ago")), rest(&html("2s ago")));
        assert_ne!(rest(&html("1s")), rest(&html("1s").replace("b<", "c<")));
        assert_ne!(rest(&html("1s")), rest(&html("1s").replace("\"x\"", "\"z\"")));
    }

    #[test]
    fn output_is_told_in_whole_lines_and_from_where_it_was_left() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("stdout.0"), "one\ntwo\nthr").unwrap();
        std::fs::write(scratch.path().join("stderr.0"), "\u{1b}[31mbad\u{1b}[0m\n").unwrap();
        let all = |pieces: &[(Stream, String)]| pieces.iter().map(|(_, text)| text.as_str()).collect::<String>();
        let first = read_on(scratch.path(), None, false).unwrap();
        let text = all(&first.pieces);
        assert!(text.contains("one\ntwo\n") && !text.contains('\u{1b}') && first.skipped == 0, "{first:?}");
        let more = read_on(scratch.path(), Some(first.next), true).unwrap();
        let both = text + &all(&more.pieces);
        assert!(both.contains("thr") && both.contains("bad\n") && both.len() == "one\ntwo\nthrbad\n".len(), "{both:?}");
        let nothing = Written { pieces: Vec::new(), next: more.next, skipped: 0 };
        assert_eq!(read_on(scratch.path(), Some(more.next), true), Some(nothing));
    }

    #[test]
    fn a_past_that_is_too_long_begins_where_a_line_does_and_says_how_much_is_left_out() {
        let scratch = tempfile::tempdir().unwrap();
        let line = format!("{}\n", "x".repeat(99));
        let lines = PAST as usize / line.len() + 1000;
        std::fs::write(scratch.path().join("stdout.0"), line.repeat(lines)).unwrap();
        let first = read_on(scratch.path(), None, true).unwrap();
        assert!(first.pieces[0].1.starts_with(&line), "it begins within a line");
        let left_out = (lines * line.len()) as u64 - PAST;
        assert!(first.skipped >= left_out && first.skipped < left_out + 100, "{}", first.skipped);
        assert_eq!(first.skipped % 100, 0);
        let second = read_on(scratch.path(), Some(first.next), true).unwrap();
        assert_eq!((second.skipped, second.pieces[0].1.len()), (0, AT_ONCE));
    }
}
