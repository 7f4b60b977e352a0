//! `enqueue --wait`: watching jobs until they have ended.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Exit, Failure, Result};
use super::output::{duration_of, one_line};
use super::{Context, live_workers};
use crate::domain::{JobId, JobStatus};
use crate::http::json::JobJson;
use crate::store::{JobRow, Store, WorkerState};

/// How long to wait between two looks where nothing has told of a change.
const POLL: Duration = Duration::from_millis(250);

/// After this long without a start it is worth asking whether there is a service at all.
const PATIENCE: Duration = Duration::from_secs(3);

/// Listens for Ctrl-C from now on; before anything is enqueued, so that none ends the wait without a word.
pub(super) fn interrupts() -> Result<Signal> {
    signal(SignalKind::interrupt())
        .map_err(|error| Failure::new(Exit::Failed, format!("can't listen for signals: {error}")))
}

/// Waits until all jobs have ended, showing how they get on; fails where one did not end as COMPLETED.
pub(super) async fn until_ended(context: &Context, store: &Store, ids: &[JobId], mut interrupts: Signal) -> Result {
    let mut wakes = store.watch().await?;
    let mut watch = Watch::new(context, ids);
    loop {
        let started = tokio::time::Instant::now();
        watch.look(store).await?;
        if watch.open.is_empty() {
            return watch.conclude();
        }
        watch.wonder(store).await?;
        // Thousands of jobs take a while to look at; a quarter of one core's worth of looking is enough.
        let pause = POLL.max(started.elapsed() * 3);
        tokio::select! {
            biased;
            _ = interrupts.recv() => return Err(watch.interrupted()),
            () = async {
                // What this store's own connections wrote is told to nobody, and a wake-up in a storm of them is enough.
                tokio::time::sleep(pause / 5).await;
                let _ = tokio::time::timeout(pause, wakes.next()).await;
            } => {}
        }
    }
}

struct Watch<'a> {
    context: &'a Context,
    /// Those that have not ended, with what was last seen of them.
    open: BTreeMap<JobId, Option<Seen>>,
    ended: BTreeMap<JobStatus, u64>,
    /// Whether there is only one, which is shown in more detail.
    single: bool,
    bar: ProgressBar,
    began: tokio::time::Instant,
    any_started: bool,
    /// When to ask next whether there is a service; `None` once it has been said that there is none.
    wonder_at: Option<tokio::time::Instant>,
}

#[derive(PartialEq)]
struct Seen {
    status: JobStatus,
    progress: Option<u8>,
    message: Option<String>,
}

impl<'a> Watch<'a> {
    fn new(context: &'a Context, ids: &[JobId]) -> Self {
        let single = ids.len() == 1;
        let on_terminal = std::io::stderr().is_terminal() && !context.output.json && !context.output.quiet;
        let length = if single { 100 } else { ids.len() as u64 };
        let target = if on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        let template = if single {
            "{elapsed_precise} [{bar:30}] {pos}% {wide_msg}"
        } else {
            "{elapsed_precise} [{bar:30}] {pos}/{len} {wide_msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        Self {
            context,
            open: ids.iter().map(|id| (*id, None)).collect(),
            ended: BTreeMap::new(),
            single,
            bar,
            began: tokio::time::Instant::now(),
            any_started: false,
            wonder_at: Some(tokio::time::Instant::now() + PATIENCE),
        }
    }

    async fn look(&mut self, store: &Store) -> Result {
        let ids: Vec<JobId> = self.open.keys().copied().collect();
        for id in ids {
            let Some(row) = store.job(id).await? else {
                self.bar.finish_and_clear();
                return Err(Failure::new(Exit::NotFound, format!("job {id} is gone: somebody deleted its row")));
            };
            self.saw(&row)?;
        }
        Ok(())
    }

    fn saw(&mut self, row: &JobRow) -> Result {
        self.any_started |= row.status != JobStatus::Pending;
        let seen = Seen { status: row.status, progress: row.progress, message: row.status_message.clone() };
        let changed = self.open.get(&row.id).is_none_or(|before| before.as_ref() != Some(&seen));
        if changed && !row.status.is_final() {
            self.show_change(row);
        }
        if !row.status.is_final() {
            self.open.insert(row.id, Some(seen));
            return Ok(());
        }
        self.open.remove(&row.id);
        *self.ended.entry(row.status).or_default() += 1;
        self.show_end(row)?;
        if !self.single {
            self.bar.inc(1);
            self.bar.set_message(self.counts());
        }
        Ok(())
    }

    fn show_change(&self, row: &JobRow) {
        let message = row.status_message.as_deref().map(one_line).unwrap_or_default();
        if self.single {
            self.bar.set_position(row.progress.map_or(0, u64::from));
            self.bar.set_message(format!("{} {message}", row.status));
        }
        // Beside a bar that shows the same, lines would only be noise; so they are for thousands of jobs.
        if self.bar.is_hidden() && self.single && !self.context.output.json {
            let progress = row.progress.map(|progress| format!(" {progress}%")).unwrap_or_default();
            self.context.output.note(format!("job {}: {}{progress} {message}", row.id, row.status).trim_end());
        }
    }

    fn show_end(&self, row: &JobRow) -> Result {
        if self.context.output.json {
            return Ok(self.context.output.json(&JobJson::from(row))?);
        }
        let took = row.execution_ms.map(|ms| format!(" in {}", duration_of(ms))).unwrap_or_default();
        let error = match &row.error {
            Some(error) if self.single => format!(": {}", super::output::many_lines(error.trim_end())),
            Some(error) => format!(": {}", one_line(error.lines().next().unwrap_or_default())),
            None => String::new(),
        };
        let line = format!("job {}: {}{took}{error}", row.id, row.status);
        if self.single || row.status != JobStatus::Completed || self.bar.is_hidden() {
            self.bar.suspend(|| self.context.output.note(line));
        }
        Ok(())
    }

    /// Says so once, where nothing seems to be there that could run the jobs.
    async fn wonder(&mut self, store: &Store) -> Result {
        let now = tokio::time::Instant::now();
        if self.any_started || self.wonder_at.is_none_or(|time| now < time) {
            return Ok(());
        }
        // Again later: a service that has just died looks alive for a while.
        self.wonder_at = Some(now + PATIENCE);
        // One that drains claims nothing more.
        if !live_workers(store).await?.iter().any(|worker| worker.state == WorkerState::Active.as_str()) {
            self.wonder_at = None;
            let hint = "no worker seems to be running; the jobs wait until `callsheet serve` is started";
            self.bar.suspend(|| self.context.output.note(hint));
        }
        Ok(())
    }

    fn counts(&self) -> String {
        let count = |(status, count): (&JobStatus, &u64)| format!("{count} {status}");
        self.ended.iter().map(count).collect::<Vec<_>>().join(", ")
    }

    fn conclude(self) -> Result {
        self.bar.finish_and_clear();
        let failed: u64 =
            self.ended.iter().filter(|(status, _)| **status != JobStatus::Completed).map(|(_, count)| count).sum();
        if !self.single && !self.context.output.json {
            self.context.output.note(format_args!(
                "{} in {}",
                self.counts(),
                humantime::format_duration(Duration::from_secs(self.began.elapsed().as_secs()))
            ));
        }
        if failed == 0 { Ok(()) } else { Err(Failure::said(Exit::Failed)) }
    }

    fn interrupted(&self) -> Failure {
        self.bar.finish_and_clear();
        let left = self.open.len();
        let shown: Vec<String> = self.open.keys().take(10).map(ToString::to_string).collect();
        let dots = if left > 10 { ", …" } else { "" };
        let (what, them) = match left {
            1 => ("1 job is left as it is".to_owned(), "it"),
            _ => (format!("{left} jobs are left as they are"), "them"),
        };
        Failure::new(Exit::Failed, format!("stopped waiting; {what}: {}{dots}", shown.join(", ")))
            .help(format!("`callsheet show ID` shows {them}, `callsheet cancel ID` ends {them}"))
    }
}
