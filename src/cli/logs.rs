//! `logs`: what a run's command wrote.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::Context;
use super::failure::{Exit, Failure, Result};
use super::output::{Output, many_lines};
use super::show::{job_id, no_such_job};
use crate::config::{Config, known_worker_id};
use crate::domain::{Attempt, JobId, RunToken};
use crate::http::json::rfc3339;
use crate::http::peers::{Event, Form, NoAnswer, Peers, Question};
use crate::process::logs::{Page, Piece, RunLog, Selection, Stream};
use crate::process::run_dir;
use crate::store::{RunRow, Store};

/// Show what a job's command wrote
///
/// Both streams come in the order in which they arrived. On a terminal nothing in them can move the cursor; to a file or a
/// pipe they go byte for byte, and lines about what was dropped go to standard error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet logs 42 --tail 100\n  callsheet logs 42 --follow --stream stderr\n  \
    callsheet logs 42 --attempt 1 --stream stdout > output.txt")]
pub(super) struct Args {
    /// The job
    #[arg(value_parser = job_id)]
    id: JobId,
    /// Which attempt [default: the last one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: Option<u32>,
    /// Which stream
    #[arg(long, value_name = "STREAM", default_value = "both")]
    stream: Streams,
    /// Only the last N lines
    #[arg(long, value_name = "N", conflicts_with = "offset")]
    tail: Option<usize>,
    /// Only from this byte on, counted from the first that the command wrote
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
    /// Go on until the run ends
    #[arg(short, long)]
    follow: bool,
    /// Byte for byte on a terminal too, control sequences and all
    #[arg(long)]
    raw: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Streams {
    Stdout,
    Stderr,
    Both,
}

impl Streams {
    fn selection(self) -> Selection {
        match self {
            Self::Stdout => Selection::Only(Stream::Stdout),
            Self::Stderr => Selection::Only(Stream::Stderr),
            Self::Both => Selection::Both,
        }
    }
}

/// How often a run that is followed is looked at.
const POLL: Duration = Duration::from_millis(200);

/// How much is read at once, in bytes.
const AT_ONCE: usize = 256 * 1024;

/// The longest line that is waited for to be whole, in bytes.
const LONG_LINE: usize = 64 * 1024;

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    let Some(run) = find_run(&store, args).await? else { return Ok(()) };
    let Some(directory) = directory_of(&config, &run) else {
        return Err(Failure::new(
            Exit::Failed,
            format!("the run_token of attempt {} of job {} is none", run.attempt, run.job_id),
        ));
    };
    let own = known_worker_id(&config)?;
    let elsewhere = run.worker_id.clone().filter(|worker| own.as_ref().is_none_or(|own| own.as_str() != worker));
    if !directory.is_dir()
        && config.http.peers.is_some()
        && let Some(worker) = elsewhere
    {
        return relayed(context, &config, &store, &worker, &run, args).await;
    }
    if !directory.is_dir() {
        let shown = directory.display();
        return Err(Failure::new(
            Exit::NotFound,
            format!("there are no logs of attempt {} of job {}: no {shown}", run.attempt, run.job_id),
        )
        .help(format!(
            "logs are kept by the worker that ran it ({}), in its data_dir, for some time after the run's end (retention.logs); with \
             [http.peers] it is asked for them",
            run.worker_id.as_deref().unwrap_or("unknown")
        )));
    }
    let log = RunLog::open(&directory, args.stream.selection(), run.outcome.is_some());
    let mut printer = Printer::new(context.output, args, log);
    if let Some(lines) = args.tail {
        let page = printer.log.tail(lines).map_err(unreadable)?;
        printer.take(page)?;
    }
    if args.follow {
        follow(&store, &run, &mut printer).await?;
    }
    printer.rest()?;
    printer.finish()
}

/// The run that is asked for; with `--follow` the one to come, where the job has not started. `None` where the job ended
/// before it had a run.
async fn find_run(store: &Store, args: &Args) -> Result<Option<RunRow>> {
    loop {
        let job = store.job(args.id).await?.ok_or_else(|| no_such_job(args.id))?;
        let mut runs = store.runs(args.id).await?;
        let wanted = match args.attempt {
            Some(attempt) => runs.iter().rposition(|run| run.attempt == Attempt(attempt)),
            None => runs.len().checked_sub(1),
        };
        if let Some(index) = wanted {
            return Ok(Some(runs.swap_remove(index)));
        }
        if let Some(attempt) = args.attempt.filter(|_| !args.follow || job.status.is_final()) {
            let had = runs.len();
            return Err(Failure::new(
                Exit::NotFound,
                format!("job {} has no attempt {attempt}; it has had {had}", args.id),
            ));
        }
        if job.status.is_final() {
            return Err(Failure::new(
                Exit::NotFound,
                format!("job {} has no logs: it ended as {} before a command ran", args.id, job.status),
            ));
        }
        if !args.follow {
            return Err(Failure::new(Exit::NotFound, format!("job {} has no logs yet: it is {}", args.id, job.status))
                .help("--follow waits for them"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Prints what another worker has.
async fn relayed(context: &Context, config: &Config, store: &Store, worker: &str, run: &RunRow, args: &Args) -> Result {
    let peers = Peers::of(&config.http).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let Some(peers) = peers else {
        return Err(Failure::new(Exit::Failed, NoAnswer::NoSecret(worker.to_owned()).to_string()));
    };
    let selection = args.stream.selection();
    let mut question = Question { offset: args.offset, tail: args.tail, ..Question::of(run, selection, Form::Events) };
    let refused = |no_answer: NoAnswer| match no_answer {
        NoAnswer::Store(error) => Failure::from(error),
        NoAnswer::Refused { .. } | NoAnswer::Unknown(_) => Failure::new(Exit::NotFound, no_answer.to_string()),
        other => Failure::new(Exit::Failed, other.to_string()),
    };
    let nowhere = RunLog::open(std::path::Path::new(""), selection, true);
    let mut printer = Printer::new(context.output, args, nowhere);
    if printer.raw && !args.follow {
        // As events its text would have to be UTF-8.
        question.form = Form::Text;
        let mut relay = peers.ask(store, worker, &question).await.map_err(refused)?;
        while let Some(bytes) = relay.bytes().await.map_err(unreadable)? {
            context.output.raw(&bytes)?;
        }
        return Ok(());
    }
    if args.follow {
        question.form = Form::Follow;
    }
    loop {
        let mut relay = peers.ask(store, worker, &question).await.map_err(refused)?;
        loop {
            match relay.event().await {
                Ok(Some(Event::Page(page))) => {
                    (question.offset, question.tail) = (Some(page.next_offset), None);
                    printer.take(page)?;
                }
                Ok(Some(Event::End)) => return printer.finish(),
                // It comes back, or it is found to be gone.
                Ok(None) | Err(_) => break,
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

pub(super) fn directory_of(config: &Config, run: &RunRow) -> Option<PathBuf> {
    let token: RunToken = run.run_token.parse().ok()?;
    Some(run_dir(&config.data_dir, run.job_id, run.attempt, &token))
}

/// The last lines of a run's error output, as far as this machine has them.
pub(super) fn stderr_tail(config: &Config, run: &RunRow, lines: usize) -> Option<String> {
    let directory = directory_of(config, run)?;
    let log = RunLog::open(&directory, Selection::Only(Stream::Stderr), run.outcome.is_some());
    log.tail(lines).ok().map(|page| String::from_utf8_lossy(&page.to_bytes()).into_owned())
}

async fn follow(store: &Store, run: &RunRow, printer: &mut Printer) -> Result {
    loop {
        // Asked before reading: what was written before the run ended is then certainly read.
        let runs = store.runs(run.job_id).await?;
        let ended = runs.iter().find(|row| row.run_token == run.run_token).is_none_or(|row| row.outcome.is_some());
        if ended {
            printer.log.set_ended();
        }
        printer.rest()?;
        if ended {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

#[derive(Serialize)]
struct PieceJson<'a> {
    stream: &'a str,
    /// Where in its stream it starts.
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    /// How many bytes of its stream are missing before it.
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u64,
    text: &'a str,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Prints a run's output from where it stands.
struct Printer {
    output: Output,
    log: RunLog,
    offset: u64,
    /// Whether bytes are printed as they are.
    raw: bool,
    /// Whether the streams need to be told apart.
    both: bool,
    /// The stream that was shown last.
    last: Option<Stream>,
    /// What has been read of each stream and not printed, since its last line is not whole.
    held: [Option<Piece>; 2],
}

impl Printer {
    fn new(output: Output, args: &Args, log: RunLog) -> Self {
        Self {
            output,
            log,
            offset: args.offset.unwrap_or(0),
            raw: !output.json && (args.raw || !output.is_terminal()),
            both: args.stream == Streams::Both,
            last: None,
            held: [None, None],
        }
    }

    /// Prints everything there is by now.
    fn rest(&mut self) -> Result {
        loop {
            let page = self.log.read(self.offset, AT_ONCE).map_err(unreadable)?;
            if page.pieces.is_empty() {
                return Ok(());
            }
            self.take(page)?;
        }
    }

    fn take(&mut self, page: Page) -> Result {
        self.offset = page.next_offset;
        for piece in page.pieces {
            if !self.output.json
                && let Some(note) = piece.dropped_note()
            {
                self.output.note(note);
            }
            if self.raw {
                self.output.raw(&piece.bytes)?;
            } else {
                self.hold(piece)?;
            }
        }
        Ok(())
    }

    /// Shows the whole lines that there are with this piece, and holds the rest.
    fn hold(&mut self, piece: Piece) -> Result {
        let place = usize::from(piece.stream == Stream::Stderr);
        let mut piece = match self.held[place].take() {
            Some(mut earlier) if piece.dropped == 0 => {
                earlier.bytes.extend(piece.bytes);
                earlier
            }
            Some(earlier) => {
                self.show(&earlier)?;
                piece
            }
            None => piece,
        };
        let whole = match piece.bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => newline + 1,
            None if piece.bytes.len() >= LONG_LINE => piece.bytes.len(),
            None => 0,
        };
        let rest = piece.bytes.split_off(whole);
        let begins = Piece { offset: piece.offset + whole as u64, dropped: 0, bytes: rest, ..piece };
        if whole > 0 || piece.dropped > 0 {
            self.show(&piece)?;
        }
        if !begins.bytes.is_empty() {
            self.held[place] = Some(begins);
        }
        Ok(())
    }

    fn show(&mut self, piece: &Piece) -> Result {
        let text = String::from_utf8_lossy(&piece.bytes);
        if self.output.json {
            return Ok(self.output.json(&PieceJson {
                stream: piece.stream.as_str(),
                offset: piece.offset,
                time: piece.time.map(rfc3339),
                dropped: piece.dropped,
                text: &text,
            })?);
        }
        if piece.bytes.is_empty() {
            return Ok(());
        }
        if wants_title(self.both, self.last.replace(piece.stream), piece.stream) {
            let title = format!("==> {} <==", piece.stream.as_str());
            self.output.line(self.output.bold(&title))?;
        }
        Ok(self.output.raw(many_lines(&text).as_bytes())?)
    }

    fn finish(&mut self) -> Result {
        for held in std::mem::take(&mut self.held).into_iter().flatten() {
            self.show(&held)?;
            if !self.output.json {
                self.output.line("")?;
            }
        }
        Ok(())
    }
}

/// Whether a terminal needs to be told which stream comes: where it changes, and where standard error comes first.
fn wants_title(both: bool, last: Option<Stream>, next: Stream) -> bool {
    both && last.map_or(next == Stream::Stderr, |last| last != next)
}

fn unreadable(error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("can't read the logs: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_tells_a_change_of_the_stream() {
        use Stream::{Stderr, Stdout};
        let titled = |both, streams: &[Stream]| {
            let mut last = None;
            streams.iter().map(|next| wants_title(both, last.replace(*next), *next)).collect::<Vec<_>>()
        };
        assert_eq!(titled(true, &[Stdout, Stdout, Stderr, Stderr, Stdout]), [false, false, true, false, true]);
        assert_eq!(titled(true, &[Stderr, Stderr]), [true, false]);
        assert_eq!(titled(false, &[Stderr]), [false]);
    }
}
