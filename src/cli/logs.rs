//! `logs`: what a run's command wrote.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use serde_json::json;

use super::Context;
use super::failure::{Exit, Failure, Result};
use super::output::{Output, many_lines};
use super::show::{job_id, no_such_job};
use crate::config::Config;
use crate::domain::{Attempt, JobId, RunToken};
use crate::process::logs::{Chunk, LogReader, Stream};
use crate::process::run_dir;
use crate::store::{RunRow, Store};

/// Show what a job's command wrote
///
/// On a terminal nothing in it can move the cursor; to a file or a pipe it goes byte for byte.
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
    /// Only the last N lines of each stream
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// Go on until the run ends
    #[arg(short, long)]
    follow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Streams {
    Stdout,
    Stderr,
    Both,
}

impl Streams {
    fn all(self) -> &'static [Stream] {
        match self {
            Self::Stdout => &[Stream::Stdout],
            Self::Stderr => &[Stream::Stderr],
            Self::Both => &[Stream::Stdout, Stream::Stderr],
        }
    }
}

/// How often a run that is followed is looked at.
const POLL: Duration = Duration::from_millis(200);

/// How much is read at once, in bytes.
const AT_ONCE: usize = 64 * 1024;

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
    if !directory.is_dir() {
        let shown = directory.display();
        return Err(Failure::new(
            Exit::NotFound,
            format!("there are no logs of attempt {} of job {}: no {shown}", run.attempt, run.job_id),
        )
        .help(format!(
            "logs are kept by the worker that ran it ({}), in its data_dir",
            run.worker_id.as_deref().unwrap_or("unknown")
        )));
    }
    let readers: Vec<_> =
        args.stream.all().iter().map(|stream| (*stream, LogReader::open(&directory, *stream))).collect();
    let wrote = |reader: &LogReader| reader.read(0, 1).is_ok_and(|chunk| !chunk.bytes.is_empty());
    let both = readers.len() > 1 && readers.iter().all(|(_, reader)| wrote(reader));
    let titles = Rc::new(Titles { both, last: Cell::new(None) });
    let printer = |(stream, reader)| Printer::new(context.output, reader, stream, Rc::clone(&titles));
    let mut printers: Vec<Printer> = readers.into_iter().map(printer).collect();
    for printer in &mut printers {
        printer.first(args.tail)?;
    }
    if args.follow {
        follow(&store, &run, &mut printers).await?;
    }
    for printer in &mut printers {
        printer.finish()?;
    }
    Ok(())
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

fn directory_of(config: &Config, run: &RunRow) -> Option<PathBuf> {
    let token: RunToken = run.run_token.parse().ok()?;
    Some(run_dir(&config.data_dir, run.job_id, run.attempt, &token))
}

/// The last lines of a run's error output, as far as this machine has them.
pub(super) fn stderr_tail(config: &Config, run: &RunRow, lines: usize) -> Option<String> {
    let reader = LogReader::open(&directory_of(config, run)?, Stream::Stderr);
    reader.tail(lines).ok().map(|chunk| String::from_utf8_lossy(&chunk.bytes).into_owned())
}

async fn follow(store: &Store, run: &RunRow, printers: &mut [Printer]) -> Result {
    loop {
        // Asked before reading: what was written before the run ended is then certainly read.
        let runs = store.runs(run.job_id).await?;
        let ended = runs.iter().find(|row| row.run_token == run.run_token).is_none_or(|row| row.outcome.is_some());
        for printer in printers.iter_mut() {
            printer.rest()?;
        }
        if ended {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Which stream a terminal shows, so that each change of it is told, and nothing where there is only one.
struct Titles {
    /// Whether both streams have something to show from the start.
    both: bool,
    /// The stream that was shown last.
    last: Cell<Option<Stream>>,
}

impl Titles {
    /// Whether what is shown next, of this stream, needs its title.
    fn wants(&self, stream: Stream) -> bool {
        self.last.replace(Some(stream)).map_or(self.both, |last| last != stream)
    }
}

/// Prints one stream of a run from where it stands.
struct Printer {
    output: Output,
    reader: LogReader,
    stream: Stream,
    titles: Rc<Titles>,
    offset: u64,
    /// What has been read and not printed, since its last line is not whole.
    held: Vec<u8>,
}

impl Printer {
    fn new(output: Output, reader: LogReader, stream: Stream, titles: Rc<Titles>) -> Self {
        Self { output, reader, stream, titles, offset: 0, held: Vec::new() }
    }

    fn first(&mut self, tail: Option<usize>) -> Result {
        if let Some(lines) = tail {
            let chunk = self.reader.tail(lines).map_err(unreadable)?;
            self.take(chunk)?;
        }
        self.rest()
    }

    /// Prints everything there is by now.
    fn rest(&mut self) -> Result {
        loop {
            let chunk = self.reader.read(self.offset, AT_ONCE).map_err(unreadable)?;
            if chunk.bytes.is_empty() {
                return Ok(());
            }
            if chunk.offset > self.offset {
                let dropped = chunk.offset - self.offset;
                self.output.note(format_args!(
                    "callsheet: {dropped} bytes of {} were dropped here (limits.output)",
                    self.stream.as_str()
                ));
            }
            self.take(chunk)?;
        }
    }

    fn take(&mut self, chunk: Chunk) -> Result {
        self.offset = chunk.next_offset();
        if !self.output.json && !self.output.is_terminal() {
            return Ok(self.output.raw(&chunk.bytes)?);
        }
        self.held.extend(chunk.bytes);
        let whole = match self.held.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => newline + 1,
            None if self.held.len() >= AT_ONCE => self.held.len(),
            None => 0,
        };
        let lines: Vec<u8> = self.held.drain(..whole).collect();
        self.show(&lines)
    }

    fn show(&mut self, lines: &[u8]) -> Result {
        if lines.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(lines);
        if self.output.json {
            let offset = self.offset.saturating_sub((self.held.len() + lines.len()) as u64);
            return Ok(self.output.json(&json!({ "stream": self.stream.as_str(), "offset": offset, "text": text }))?);
        }
        if self.titles.wants(self.stream) {
            let title = format!("==> {} <==", self.stream.as_str());
            self.output.line(self.output.bold(&title))?;
        }
        Ok(self.output.raw(many_lines(&text).as_bytes())?)
    }

    fn finish(&mut self) -> Result {
        let held = std::mem::take(&mut self.held);
        self.show(&held)?;
        if !held.is_empty() && !self.output.json {
            self.output.line("")?;
        }
        Ok(())
    }
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
            let titles = Titles { both, last: Cell::new(None) };
            streams.iter().map(|stream| titles.wants(*stream)).collect::<Vec<_>>()
        };
        assert_eq!(titled(false, &[Stdout, Stdout, Stderr, Stderr, Stdout]), [false, false, true, false, true]);
        assert_eq!(titled(true, &[Stdout, Stderr, Stderr]), [true, true, false]);
    }
}
