//! `top`: the overview in the terminal, from the database, so that it works with the service down.
//!
//! What is shown is a [`Model`], drawn by [`draw()`] and moved by [`Model::press`], neither of which knows a terminal.

mod draw;
mod model;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::draw::draw;
use self::model::{Act, FlowInfo, LogView, Model, View, Wish};
use super::Context;
use super::failure::{Exit, Failure, Result};
use super::logs::directory_of;
use super::output::cut;
use crate::config::Config;
use crate::domain::FlowType;
use crate::process::logs::{RunLog, Selection};
use crate::store::{CancelResult, History, PauseResult, Queue, RetryResult, Store};

/// Watch the queues and runs live, and act on them
///
/// Reads the database, so it works with the service down. Keys: arrows or j and k to move, Tab to change the table, Enter
/// for a job's output, c to cancel, r to retry, p to pause or resume a flow, ? for help, q to quit.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  callsheet top")]
pub(super) struct Args {}

/// How often the database is looked at.
const REFRESH: Duration = Duration::from_secs(1);
/// So many lines are shown.
const LOG_LINES: usize = 2000;
/// A long backlog is counted exactly this often, and never for more than a twentieth of the time: all that waits is read.
const COUNT_EVERY: Duration = Duration::from_secs(10);

pub(super) async fn run(context: &Context, _: &Args) -> Result {
    if context.output.json || !context.output.is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "top draws on a terminal, and this is none")
            .help("`callsheet flows`, `list --status PROGRESS` and `events` print the same for scripts"));
    }
    let config = context.config()?;
    let store = context.store(&config).await?;
    let unusable = |error: std::io::Error| Failure::new(Exit::Failed, format!("the terminal can't be used: {error}"));
    let mut signals = Signals::listen().map_err(unusable)?;
    // From here on a panic, too, gives the terminal back first.
    let mut terminal = ratatui::try_init().map_err(unusable)?;
    let watched = watch(&mut terminal, &config, &store, &mut signals).await;
    ratatui::restore();
    watched.map_err(unusable)
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

async fn watch(
    terminal: &mut DefaultTerminal,
    config: &Config,
    store: &Store,
    signals: &mut Signals,
) -> std::io::Result<()> {
    let mut keys = keyboard();
    let mut model = Model::new(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()));
    model.flows = config.path.is_some().then(|| flows_of(config));
    let mut history = History::default();
    let mut backlog = Backlog::default();
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| draw(frame, &mut model))?;
        let wish = tokio::select! {
            () = signals.next() => return Ok(()),
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => model.press(key),
                Some(_) => Wish::Nothing,
                // The terminal is gone.
                None => return Ok(()),
            },
            _ = refresh.tick() => Wish::Refresh,
        };
        match wish {
            Wish::Nothing => continue,
            Wish::Quit => return Ok(()),
            Wish::Refresh => {}
            Wish::Act(act) => model.said = Some(carry_out(store, &act).await),
        }
        look(config, store, &mut history, &mut model).await;
        model.waiting.clone_from(backlog.count(store, model.queues()).await);
    }
}

fn flows_of(config: &Config) -> BTreeMap<String, FlowInfo> {
    let flows = config.flows.iter().map(|(name, flow)| {
        let info = FlowInfo {
            concurrency: flow.concurrency.get(),
            requires: flow.requires.clone(),
            heartbeat_timeout: flow.heartbeat_timeout,
        };
        (name.as_str().to_owned(), info)
    });
    flows.collect()
}

/// How many wait of each type where that is more than is counted at each look: counted in the background, a while ago.
#[derive(Default)]
struct Backlog {
    counted: BTreeMap<String, u64>,
    counting: Option<JoinHandle<Counted>>,
    next: Option<Instant>,
}

/// `None` where the database failed, and how long it took.
struct Counted {
    waiting: Option<BTreeMap<String, u64>>,
    took: Duration,
}

impl Backlog {
    async fn count(&mut self, store: &Store, queues: &[Queue]) -> &BTreeMap<String, u64> {
        if let Some(counting) = self.counting.take_if(|counting| counting.is_finished())
            && let Ok(Counted { waiting, took }) = counting.await
        {
            // What could not be counted is counted again; meanwhile there is a number that is a little older.
            self.counted = waiting.unwrap_or_else(|| std::mem::take(&mut self.counted));
            self.next = Some(Instant::now() + COUNT_EVERY.max(took * 20));
        }
        let is_time = self.counting.is_none() && self.next.is_none_or(|next| next <= Instant::now());
        if is_time && queues.iter().any(|queue| queue.waiting.or_more) {
            let store = store.clone();
            self.counting = Some(tokio::spawn(async move {
                let started = Instant::now();
                Counted { waiting: store.count_waiting().await.ok(), took: started.elapsed() }
            }));
        }
        &self.counted
    }
}

/// The keys, read by a thread of their own, since reading them waits.
fn keyboard() -> mpsc::UnboundedReceiver<Event> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn look(config: &Config, store: &Store, history: &mut History, model: &mut Model) {
    match store.overview().await {
        Ok(overview) => {
            let types: BTreeSet<String> = overview.queues.iter().map(|queue| queue.job_type.clone()).collect();
            // Without it the counts of the day are missing, and the rest is as true.
            model.trouble = history.update(store, overview.now, &types).await.err().map(|error| error.to_string());
            model.history = Some(history.clone());
            model.take(overview);
        }
        Err(error) => model.trouble = Some(error.to_string()),
    }
    if let View::Log(log) = &mut model.view {
        read_log(config, store, log).await;
    }
}

async fn read_log(config: &Config, store: &Store, log: &mut LogView) {
    let runs = store.runs(log.job).await.unwrap_or_default();
    let Some(run) = runs.last() else {
        log.text = "No command has been started yet.".to_owned();
        return;
    };
    log.attempt = Some(run.attempt.0);
    let directory = directory_of(config, run).filter(|directory| directory.is_dir());
    let Some(directory) = directory else {
        let worker = run.worker_id.as_deref().unwrap_or("another worker");
        log.text = format!("This machine has no output of it; {} may.", cut(worker, 60));
        return;
    };
    let output = RunLog::open(&directory, Selection::Both, run.outcome.is_some());
    let text = output.tail(LOG_LINES).map(|page| page.to_safe_text()).unwrap_or_default();
    log.text = if text.is_empty() { "Nothing has been written yet.".to_owned() } else { text };
}

async fn carry_out(store: &Store, act: &Act) -> String {
    let done = match act {
        Act::Cancel(id) => store.request_cancel(*id).await.map(|result| match result {
            CancelResult::Cancelled => format!("job {id} is cancelled"),
            CancelResult::Requested | CancelResult::AlreadyRequested => format!("job {id} was asked to end"),
            CancelResult::NotPossible(status) => format!("job {id} has ended and is {status}"),
            CancelResult::NotFound => format!("there is no job {id}"),
        }),
        Act::Retry(id) => store.retry(&[*id], &super::who()).await.map(|results| match results.first() {
            Some(RetryResult::Retried) => format!("job {id} will be tried again"),
            Some(RetryResult::NotPossible(status)) => {
                format!("job {id} is {status}; only ERROR and CANCELLED jobs are retried")
            }
            Some(RetryResult::KeyTaken(holder)) => {
                format!("job {id} can't be retried: job {holder} has its unique key")
            }
            Some(RetryResult::NotFound) | None => format!("there is no job {id}"),
        }),
        Act::Pause(flow, pause) => {
            let Ok(flow) = flow.parse::<FlowType>() else { return format!("{} is no flow", cut(flow, 60)) };
            let result =
                if *pause { store.pause(&flow, &super::who()).await } else { store.resume(&flow, &super::who()).await };
            result.map(|result| match (result, pause) {
                (PauseResult::NotFound, _) => format!("no service has a flow {flow}"),
                (_, true) => format!("{flow} is paused"),
                (_, false) => format!("{flow} goes on"),
            })
        }
    };
    done.unwrap_or_else(|error| format!("not done: {error}"))
}
