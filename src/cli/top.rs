//! `top`: the overview in the terminal, from the database, so that it works with the service down.
//!
//! What is shown is a [`Model`], drawn by [`draw`] and moved by [`Model::press`], neither of which knows a terminal.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::ops::Range;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, Wrap};
use ratatui::{DefaultTerminal, Frame};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Context;
use super::failure::{Exit, Failure, Result};
use super::flows;
use super::logs::directory_of;
use super::output::{age, columns, cut, duration_of};
use crate::config::Config;
use crate::domain::labels::Labels;
use crate::domain::{FlowType, JobId, JobStatus, Timestamp};
use crate::http::attention::{FlowRules, Situation, Stuck};
use crate::http::words::{counted, thousands};
use crate::process::logs::{RunLog, Selection};
use crate::store::{CancelResult, EndedRow, History, OpenRow, Overview, PauseResult, Queue, RetryResult, Store};

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
/// From this width on there is room for more than what every terminal has to show, in columns.
const WIDE: u16 = 110;
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

/// What is to be done to the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    Cancel(JobId),
    Retry(JobId),
    /// Pause, or resume where false.
    Pause(String, bool),
}

impl Act {
    fn question(&self) -> String {
        match self {
            Self::Cancel(id) => format!("Cancel job {id}? Its command is ended. y / n"),
            Self::Retry(id) => format!("Retry job {id}? y / n"),
            Self::Pause(flow, true) => format!("Pause {flow}? Nothing of it is started until it is resumed. y / n"),
            Self::Pause(flow, false) => format!("Resume {flow}? y / n"),
        }
    }
}

/// What a key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    Quit,
    Refresh,
    Act(Act),
}

/// What is shown.
#[derive(Debug, PartialEq, Eq)]
enum View {
    Tables,
    Help,
    Log(LogView),
}

#[derive(Debug, PartialEq, Eq)]
struct LogView {
    job: JobId,
    attempt: Option<u32>,
    text: String,
    /// Lines from the end; 0 follows it.
    up: u16,
}

/// Which table the keys move in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Focus {
    Flows,
    Jobs,
}

/// What the configuration says about a flow, as far as it is shown.
#[derive(Clone, Debug)]
struct FlowInfo {
    concurrency: u32,
    requires: Labels,
    heartbeat_timeout: Duration,
}

/// Everything that is drawn.
struct Model {
    /// With the queues in the order in which they are shown.
    overview: Option<Overview>,
    history: Option<History>,
    /// How many wait of each type, counted exactly a while ago.
    waiting: BTreeMap<String, u64>,
    view: View,
    focus: Focus,
    flow: usize,
    job: usize,
    asked: Option<Act>,
    said: Option<String>,
    trouble: Option<String>,
    /// The flows of the configuration, by type; `None` where there is no configuration.
    flows: Option<BTreeMap<String, FlowInfo>>,
    colour: bool,
    scrolled: Scrolled,
}

/// The first row that is shown, of each list that is longer than its place.
#[derive(Default)]
struct Scrolled {
    flows: usize,
    running: usize,
    failures: usize,
}

/// A row of the table of jobs.
enum JobLine<'a> {
    Open(&'a OpenRow),
    Failed(&'a EndedRow),
}

impl JobLine<'_> {
    fn id(&self) -> JobId {
        match self {
            Self::Open(row) => row.id,
            Self::Failed(row) => row.id,
        }
    }

    fn flow(&self) -> &str {
        match self {
            Self::Open(row) => &row.job_type,
            Self::Failed(row) => &row.job_type,
        }
    }

    fn identifier(&self) -> &str {
        match self {
            Self::Open(row) => &row.identifier,
            Self::Failed(row) => &row.identifier,
        }
    }
}

impl Model {
    fn new(colour: bool) -> Self {
        Self {
            overview: None,
            history: None,
            waiting: BTreeMap::new(),
            view: View::Tables,
            focus: Focus::Jobs,
            flow: 0,
            job: 0,
            asked: None,
            said: None,
            trouble: None,
            flows: None,
            colour,
            scrolled: Scrolled::default(),
        }
    }

    /// Takes what was read. The flow and the job that were chosen stay so wherever they stand now, but for those at the top, where
    /// somebody may never have moved from: there the gravest is to stay in sight.
    fn take(&mut self, mut overview: Overview) {
        let flow = self.queues().get(self.flow).filter(|_| self.flow > 0).map(|queue| queue.job_type.clone());
        let job = self.jobs().get(self.job).filter(|_| self.job > 0).map(JobLine::id);
        let mut queues = std::mem::take(&mut overview.queues);
        let rules = self.rules();
        let situation = self.situation(&overview, rules.as_ref());
        queues.sort_by_cached_key(|queue| (place(queue, situation.stuck(queue)), queue.job_type.clone()));
        overview.queues = queues;
        self.overview = Some(overview);
        if let Some(row) = flow.and_then(|flow| self.queues().iter().position(|queue| queue.job_type == flow)) {
            self.flow = row;
        }
        if let Some(row) = job.and_then(|job| self.jobs().iter().position(|line| line.id() == job)) {
            self.job = row;
        }
    }

    fn rules(&self) -> Option<BTreeMap<&str, FlowRules<'_>>> {
        let flows = self.flows.as_ref()?.iter();
        let rules = flows.map(|(name, FlowInfo { requires, heartbeat_timeout, .. })| {
            (name.as_str(), FlowRules { requires, heartbeat_timeout: *heartbeat_timeout })
        });
        Some(rules.collect())
    }

    fn situation<'a>(
        &'a self,
        overview: &'a Overview,
        flows: Option<&'a BTreeMap<&'a str, FlowRules<'a>>>,
    ) -> Situation<'a> {
        Situation { overview, history: self.history.as_ref(), flows, name: |name| cut(name, 60) }
    }

    fn flow_of(&self, job_type: &str) -> Option<&FlowInfo> {
        self.flows.as_ref().and_then(|flows| flows.get(job_type))
    }

    /// How many rows of a flow wait, and whether there may be more.
    fn waiting_of(&self, queue: &Queue) -> (u64, bool) {
        match self
            .waiting
            .get(&queue.job_type)
            .filter(|exact| queue.waiting.or_more && **exact > queue.waiting.at_least)
        {
            Some(exact) => (*exact, false),
            None => (queue.waiting.at_least, queue.waiting.or_more),
        }
    }

    fn queues(&self) -> &[Queue] {
        self.overview.as_ref().map_or(&[], |overview| &overview.queues)
    }

    /// What runs, then what failed last.
    fn jobs(&self) -> Vec<JobLine<'_>> {
        let Some(overview) = &self.overview else { return Vec::new() };
        overview.open.iter().map(JobLine::Open).chain(overview.failures.iter().map(JobLine::Failed)).collect()
    }

    fn press(&mut self, key: KeyEvent) -> Wish {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Wish::Quit;
        }
        self.said = None;
        if let Some(act) = self.asked.take() {
            return if matches!(key.code, KeyCode::Char('y' | 'Y')) { Wish::Act(act) } else { Wish::Nothing };
        }
        if self.view != View::Tables {
            return self.press_elsewhere(key.code);
        }
        let jobs = self.jobs();
        let (rows, count) = match self.focus {
            Focus::Flows => (self.flow, self.queues().len()),
            Focus::Jobs => (self.job, jobs.len()),
        };
        let chosen = jobs.get(self.job.min(jobs.len().saturating_sub(1)));
        let flow = match self.focus {
            Focus::Flows => self.queues().get(self.flow).map(|queue| queue.job_type.clone()),
            Focus::Jobs => chosen.map(|job| job.flow().to_owned()),
        };
        let chosen =
            chosen.filter(|_| self.focus == Focus::Jobs).map(|job| (job.id(), matches!(job, JobLine::Open(_))));
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Char('?' | 'h') => self.view = View::Help,
            KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right => {
                self.focus = if self.focus == Focus::Flows { Focus::Jobs } else { Focus::Flows };
            }
            KeyCode::Down | KeyCode::Char('j') => self.move_to((rows + 1).min(count.saturating_sub(1))),
            KeyCode::Up | KeyCode::Char('k') => self.move_to(rows.min(count).saturating_sub(1)),
            KeyCode::Home | KeyCode::Char('g') => self.move_to(0),
            KeyCode::End | KeyCode::Char('G') => self.move_to(count.saturating_sub(1)),
            KeyCode::Enter | KeyCode::Char('l') => {
                if let Some((job, _)) = chosen {
                    self.view = View::Log(LogView { job, attempt: None, text: String::new(), up: 0 });
                    return Wish::Refresh;
                }
            }
            KeyCode::Char('c') => match chosen {
                Some((job, true)) => self.asked = Some(Act::Cancel(job)),
                Some((job, false)) => self.said = Some(format!("job {job} has ended; only open jobs can be cancelled")),
                None => {}
            },
            KeyCode::Char('r') => match chosen {
                Some((job, false)) => self.asked = Some(Act::Retry(job)),
                Some((job, true)) => {
                    self.said = Some(format!("job {job} has not ended; only failed jobs can be retried"));
                }
                None => {}
            },
            KeyCode::Char('p') => {
                let paused = flow.as_ref().and_then(|flow| self.queues().iter().find(|queue| queue.job_type == *flow));
                self.asked = paused.map(|queue| Act::Pause(queue.job_type.clone(), !queue.paused));
            }
            _ => {}
        }
        Wish::Nothing
    }

    fn press_elsewhere(&mut self, key: KeyCode) -> Wish {
        match (key, &mut self.view) {
            (KeyCode::Char('q') | KeyCode::Esc | KeyCode::Backspace, _) | (KeyCode::Char('?' | 'h'), View::Help) => {
                self.view = View::Tables;
            }
            (KeyCode::Up | KeyCode::Char('k'), View::Log(log)) => log.up = log.up.saturating_add(1),
            (KeyCode::Down | KeyCode::Char('j'), View::Log(log)) => log.up = log.up.saturating_sub(1),
            (KeyCode::PageUp, View::Log(log)) => log.up = log.up.saturating_add(20),
            (KeyCode::PageDown, View::Log(log)) => log.up = log.up.saturating_sub(20),
            (KeyCode::Home | KeyCode::Char('g'), View::Log(log)) => log.up = u16::MAX,
            (KeyCode::End | KeyCode::Char('G'), View::Log(log)) => log.up = 0,
            _ => {}
        }
        Wish::Nothing
    }

    fn move_to(&mut self, row: usize) {
        match self.focus {
            Focus::Flows => self.flow = row,
            Focus::Jobs => self.job = row,
        }
    }

    fn style(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn status(&self, status: JobStatus) -> Span<'static> {
        let colour = match status {
            JobStatus::Pending => Color::Reset,
            JobStatus::InQueue | JobStatus::Progress => Color::Cyan,
            JobStatus::Completed => Color::Green,
            JobStatus::Error => Color::Red,
            JobStatus::Cancelled => Color::Yellow,
        };
        Span::styled(status.as_str(), self.style(colour))
    }
}

/// Where a flow stands among the others: what is stuck first, then what is busy, then what has something to do later, then what is
/// idle.
fn place(queue: &Queue, stuck: Option<Stuck<'_>>) -> u8 {
    match stuck {
        Some(Stuck::Paused) => 0,
        Some(Stuck::NoFlow) => 1,
        Some(Stuck::NobodyFits(_)) => 2,
        Some(Stuck::NothingRuns(_)) => 3,
        None if queue.open > 0 || queue.waiting.at_least > 0 || queue.paused => 4,
        None if waiting_word(queue) != IDLE => 5,
        None => 6,
    }
}

fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let heights = [Constraint::Length(1), Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)];
    let [head, below, middle, foot] = Layout::vertical(heights).areas(frame.area());
    frame.render_widget(headline(model), head);
    frame.render_widget(needs(model, usize::from(below.width)), below);
    match &model.view {
        View::Help => frame.render_widget(help(), middle),
        View::Log(log) => draw_log(frame, log, middle),
        View::Tables => draw_tables(frame, model, middle),
    }
    frame.render_widget(footline(model), foot);
}

fn headline(model: &Model) -> Line<'static> {
    let name = Span::styled(" callsheet ", Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED));
    let Some(overview) = &model.overview else {
        return Line::from(vec![name, Span::raw("  reading the database…")]);
    };
    let running = overview.open.iter().filter(|row| row.status == JobStatus::Progress).count();
    let waiting: Vec<(u64, bool)> = overview.queues.iter().map(|queue| model.waiting_of(queue)).collect();
    let waiting = counted(waiting.iter().map(|(number, _)| number).sum(), waiting.iter().any(|(_, or_more)| *or_more));
    let day = model.history.as_ref().map(|history| history.last_day(None, overview.now)).unwrap_or_default();
    let workers = overview.workers.iter().filter(|worker| worker.is_live(overview.now)).count();
    let mut spans = vec![
        name,
        Span::raw(format!("  {running} running, {waiting} waiting, in 24h {} done and ", thousands(day.completed))),
        Span::styled(
            format!("{} failed", thousands(day.failed)),
            if day.failed > 0 { model.style(Color::Red) } else { Style::new() },
        ),
    ];
    spans.push(match workers {
        0 => Span::styled(", no worker is alive", model.style(Color::Red).add_modifier(Modifier::BOLD)),
        1 => Span::raw(", 1 worker"),
        _ => Span::raw(format!(", {workers} workers")),
    });
    Line::from(spans)
}

/// What needs somebody, as far as it fits on one line.
fn needs(model: &Model, width: usize) -> Line<'static> {
    // What was read before the database fell silent tells nothing of how things are.
    let Some(overview) = model.overview.as_ref().filter(|_| model.trouble.is_none()) else { return Line::default() };
    let rules = model.rules();
    let needs = model.situation(overview, rules.as_ref()).needs();
    let sentences = needs.iter().map(|need| need.sentence.as_str()).collect::<Vec<_>>().join(" · ");
    let (text, colour) = match needs.len() {
        0 => ("All is well.".to_owned(), Color::Green),
        1 => (format!("One thing needs you: {sentences}"), Color::Red),
        many => (format!("{many} things need you: {sentences}"), Color::Red),
    };
    Line::styled(format!(" {}", cut(&text, width.saturating_sub(1))), model.style(colour))
}

fn footline(model: &Model) -> Line<'static> {
    let strong = Style::new().add_modifier(Modifier::BOLD);
    if let Some(act) = &model.asked {
        return Line::styled(format!(" {}", act.question()), model.style(Color::Yellow).add_modifier(Modifier::BOLD));
    }
    if let Some(trouble) = &model.trouble {
        return Line::styled(format!(" the database does not answer: {}", cut(trouble, 200)), model.style(Color::Red));
    }
    if let Some(said) = &model.said {
        return Line::styled(format!(" {said}"), strong);
    }
    let keys = match model.view {
        View::Tables => " ↑↓ move  Tab table  Enter output  c cancel  r retry  p pause  ? help  q quit",
        View::Help => " q back",
        View::Log(_) => " ↑↓ PgUp PgDn scroll  End follow  q back",
    };
    Line::styled(keys, Style::new().add_modifier(Modifier::DIM))
}

fn help() -> Paragraph<'static> {
    let keys = [
        ("↑ ↓  j k", "move"),
        ("Tab  ← →", "between flows and jobs"),
        ("Enter  l", "the output of the chosen job, followed"),
        ("c", "cancel the chosen job (asks first)"),
        ("r", "retry the chosen job (asks first)"),
        ("p", "pause or resume the chosen flow, or the flow of the chosen job (asks first)"),
        ("q  Esc", "back, or quit"),
    ];
    let lines: Vec<Line<'_>> = keys.iter().map(|(key, does)| Line::from(format!("  {key:<10} {does}"))).collect();
    Paragraph::new(lines).block(titled("Keys", true)).wrap(Wrap { trim: false })
}

fn draw_log(frame: &mut Frame<'_>, log: &LogView, area: Rect) {
    let title = match log.attempt {
        Some(attempt) => format!("Output of job {}, attempt {attempt}", log.job),
        None => format!("Output of job {}", log.job),
    };
    let room = usize::from(area.height.saturating_sub(2)).max(1);
    let lines: Vec<&str> = log.text.lines().collect();
    let end = lines.len().saturating_sub(usize::from(log.up)).max(room.min(lines.len()));
    let width = usize::from(area.width.saturating_sub(2));
    let shown: Vec<Line<'_>> =
        lines[end.saturating_sub(room)..end].iter().map(|line| Line::from(cut(line, width.max(1)))).collect();
    frame.render_widget(Paragraph::new(shown).block(titled(&title, true)), area);
}

fn titled(title: &str, focused: bool) -> Block<'static> {
    let style =
        if focused { Style::new().add_modifier(Modifier::BOLD) } else { Style::new().add_modifier(Modifier::DIM) };
    Block::new().borders(Borders::TOP).title(Span::styled(format!(" {title} "), style))
}

fn draw_tables(frame: &mut Frame<'_>, model: &mut Model, area: Rect) {
    let [flows, jobs] = [model.queues().len(), model.jobs().len()];
    // One line is the title's, and one the header's.
    let [flows_height, jobs_height] = [flows, jobs].map(|rows| u16::try_from(rows + 2).unwrap_or(u16::MAX));
    let half = (area.height / 2).max(area.height.saturating_sub(jobs_height));
    let heights = [Constraint::Length(flows_height.min(half).max(3)), Constraint::Min(3)];
    let [upper, lower] = Layout::vertical(heights).areas(area);
    model.flow = model.flow.min(flows.saturating_sub(1));
    model.job = model.job.min(jobs.saturating_sub(1));
    draw_flows(frame, model, upper);
    draw_jobs(frame, model, lower);
}

/// Those of `count` rows that are shown in `room`, from `first` on, which is moved as little as keeps the chosen one in sight.
fn window(first: &mut usize, room: usize, count: usize, chosen: Option<usize>) -> Range<usize> {
    *first = (*first).min(count.saturating_sub(room));
    if let Some(chosen) = chosen.filter(|_| room > 0) {
        *first = (*first).clamp((chosen + 1).saturating_sub(room), chosen);
    }
    *first..(*first + room).min(count)
}

/// A title, with which rows are shown where that is not all.
fn range(title: &str, shown: &Range<usize>, count: usize) -> String {
    match shown.len() {
        all if all == count => title.to_owned(),
        0 => format!("{title} 0 of {count}"),
        _ => format!("{title} {}–{} of {count}", shown.start + 1, shown.end),
    }
}

/// How many rows of `room` running jobs and failures have: failures at least a third, where there are that many, and both
/// at least one; where there is only one, it is that of the chosen job.
fn shares(room: usize, running: usize, failures: usize, chosen_has_failed: bool) -> (usize, usize) {
    let least = if room > 1 { room.div_ceil(3) } else { room.min(usize::from(chosen_has_failed)) };
    let failed = least.max(room.saturating_sub(running)).min(failures);
    (running.min(room - failed), failed)
}

/// How wide the widest of these texts is, but neither less than `least` nor more than `most`, in columns.
fn width_of<'a>(texts: impl Iterator<Item = &'a str>, least: usize, most: usize) -> usize {
    texts.map(columns).max().unwrap_or(0).clamp(least, most.max(least))
}

fn lengths(widths: &[usize]) -> Vec<Constraint> {
    widths.iter().map(|width| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX))).collect()
}

/// The inside of a table that has a title and a header, in rows.
fn room_in(area: Rect) -> usize {
    usize::from(area.height.saturating_sub(2))
}

/// The style of a row, which is another one where it is chosen.
fn row_style(is_chosen: bool) -> Style {
    if is_chosen { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() }
}

/// What is said of a flow, in the order of the columns.
struct FlowLine {
    cells: [String; 7],
    style: Style,
    has_failures: bool,
    remark: String,
}

fn draw_flows(frame: &mut Frame<'_>, model: &mut Model, area: Rect) {
    const HEADER: [&str; 7] = ["FLOW", "STATE", "RUN", "WAIT", "OLDEST", "DONE 24h", "FAILED 24h"];
    let count = model.queues().len();
    let shown = window(&mut model.scrolled.flows, room_in(area), count, Some(model.flow));
    let Some(overview) = &model.overview else { return };
    let rules = model.rules();
    let situation = model.situation(overview, rules.as_ref());
    // Of all of them, so that nothing moves aside while one scrolls.
    let lines: Vec<FlowLine> = overview.queues.iter().map(|queue| flow_line(model, queue, &situation)).collect();
    let widest = |column: usize, least: usize| {
        let texts = lines.iter().map(|line| line.cells[column].as_str());
        width_of(texts.chain([HEADER[column]]), least, 40)
    };
    let numbers = [widest(1, 9), widest(2, 5), widest(3, 6), widest(4, 6), widest(5, 8), widest(6, 10)];
    let total = usize::from(area.width);
    let wide = area.width >= WIDE;
    let left = total.saturating_sub(numbers.iter().map(|width| width + 1).sum());
    let name = if wide { widest(0, 4) } else { left };
    let mut widths = [&[name], &numbers[..]].concat();
    let mut header = HEADER.to_vec();
    if wide {
        widths.push(left.saturating_sub(name + 1));
        header.push("REMARK");
    }
    let rows: Vec<Row<'_>> = lines
        .iter()
        .enumerate()
        .skip(shown.start)
        .take(shown.len())
        .map(|(place, line)| {
            let cell = |(column, text): (usize, &String)| match column {
                0 => Cell::from(cut(text, name)),
                1 => Cell::from(Span::styled(text.clone(), line.style)),
                6 if line.has_failures => Cell::from(Span::styled(text.clone(), model.style(Color::Red))),
                _ => Cell::from(text.clone()),
            };
            let remark = wide.then(|| Cell::from(cut(&line.remark, left.saturating_sub(name + 1))));
            let is_chosen = model.focus == Focus::Flows && place == model.flow;
            Row::new(line.cells.iter().enumerate().map(cell).chain(remark)).style(row_style(is_chosen))
        })
        .collect();
    let table = Table::new(rows, lengths(&widths))
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::DIM)))
        .block(titled(&range("Flows", &shown, count), model.focus == Focus::Flows));
    frame.render_widget(table, area);
}

fn flow_line(model: &Model, queue: &Queue, situation: &Situation<'_>) -> FlowLine {
    let now = situation.overview.now;
    let day = model.history.as_ref().map(|history| history.last_day(Some(&queue.job_type), now)).unwrap_or_default();
    let info = model.flow_of(&queue.job_type);
    let has_no_flow = model.flows.is_some() && info.is_none();
    let (state, colour) = match (queue.paused, queue.open) {
        // Another worker may have one, and then something runs.
        (_, 0) if has_no_flow => ("no flow", Some(Color::Yellow)),
        (true, _) => ("paused", Some(Color::Yellow)),
        (false, 1..) => ("running", Some(Color::Cyan)),
        (false, 0) => match situation.stuck(queue) {
            Some(Stuck::NobodyFits(_)) => ("no worker", Some(Color::Red)),
            Some(Stuck::NothingRuns(_)) => ("stuck", Some(Color::Red)),
            Some(Stuck::NoFlow | Stuck::Paused) | None => (waiting_word(queue), None),
        },
    };
    let (waiting, or_more) = model.waiting_of(queue);
    FlowLine {
        cells: [
            cut(&queue.job_type, 60),
            state.to_owned(),
            info.map_or_else(|| queue.open.to_string(), |info| format!("{}/{}", queue.open, info.concurrency)),
            counted(waiting, or_more),
            queue.oldest_waiting.map(|oldest| age(oldest, now)).unwrap_or_default(),
            thousands(day.completed),
            thousands(day.failed),
        ],
        style: colour.map_or_else(Style::new, |colour| model.style(colour)),
        has_failures: day.failed > 0,
        remark: flow_remark(queue, info, has_no_flow, situation),
    }
}

/// The state of a flow that has nothing to do.
const IDLE: &str = "idle";

/// How a flow stands of which nothing runs, and need not.
fn waiting_word(queue: &Queue) -> &'static str {
    match (queue.waiting.at_least, queue.delayed.at_least, queue.dependent.at_least) {
        (0, 0, 0) => IDLE,
        (0, 1.., _) => "delayed",
        (1.., _, _) | (0, 0, 1..) => "waiting",
    }
}

/// What else there is to know of a flow: above all why nothing takes what waits.
fn flow_remark(queue: &Queue, info: Option<&FlowInfo>, has_no_flow: bool, situation: &Situation<'_>) -> String {
    let now = situation.overview.now;
    let requires = info.map(|info| info.requires.to_string()).unwrap_or_default();
    let mut remarks = Vec::new();
    match situation.stuck(queue) {
        _ if has_no_flow => remarks.push(flows::NO_FLOW.to_owned()),
        _ if queue.paused => remarks.push(flows::paused(queue.paused_by.as_deref(), queue.paused_time, now)),
        Some(Stuck::NobodyFits(requires)) => remarks.push(flows::nobody_has(&requires.to_string())),
        Some(Stuck::NothingRuns(_)) if situation.somebody_lives() => {
            remarks.push("due, and nothing runs".to_owned());
        }
        Some(Stuck::NothingRuns(_)) => remarks.push("no worker is alive".to_owned()),
        Some(Stuck::NoFlow | Stuck::Paused) | None if requires.is_empty() => {}
        Some(Stuck::NoFlow | Stuck::Paused) | None => remarks.push(format!("requires {requires}")),
    }
    if queue.delayed.at_least > 0 {
        let due = queue.next_due.map(|due| format!(", next due {}", age(due, now))).unwrap_or_default();
        remarks.push(format!("{} delayed{due}", counted(queue.delayed.at_least, queue.delayed.or_more)));
    }
    remarks.extend(flows::dependent(queue.dependent.at_least, queue.dependent.or_more));
    remarks.join("; ")
}

/// How wide the columns of jobs are whose width depends on the terminal's.
struct JobColumns {
    id: usize,
    /// `None` on a terminal that has no room for it.
    flow: Option<usize>,
    identifier: usize,
    what: usize,
}

impl JobColumns {
    const STATUS: usize = 9;
    const DONE: usize = 5;
    const TIME: usize = 9;

    fn of(jobs: &[JobLine<'_>], width: u16) -> Self {
        let ids: Vec<String> = jobs.iter().map(|job| job.id().to_string()).collect();
        let id = width_of(ids.iter().map(String::as_str), 8, 19);
        let fixed = [id, Self::STATUS, Self::DONE, Self::TIME].iter().map(|width| width + 1).sum();
        let left = usize::from(width).saturating_sub(fixed);
        let texts = |text: fn(&JobLine<'_>) -> String| jobs.iter().map(text).collect::<Vec<_>>();
        let widest = |texts: &[String], least, most| width_of(texts.iter().map(String::as_str), least, most);
        let identifiers = texts(|job| cut(job.identifier(), 60));
        if width < WIDE {
            let identifier = widest(&identifiers, 10, left * 2 / 5).min(left);
            return Self { id, flow: None, identifier, what: left.saturating_sub(identifier + 1) };
        }
        // What they do not need is left for what was said.
        let flow = widest(&texts(|job| cut(job.flow(), 40)), 4, left / 3);
        let identifier = widest(&identifiers, 10, left / 3);
        Self { id, flow: Some(flow), identifier, what: left.saturating_sub(flow + identifier + 2) }
    }

    fn header(&self) -> Row<'static> {
        let flow = self.flow.map(|_| "TYPE");
        let header = ["ID"].into_iter().chain(flow).chain(["STATUS", "IDENTIFIER", "DONE", "TIME", "WHAT"]);
        Row::new(header.collect::<Vec<_>>()).style(Style::new().add_modifier(Modifier::DIM))
    }

    fn widths(&self) -> Vec<Constraint> {
        let widths = [self.id].into_iter().chain(self.flow);
        let widths = widths.chain([Self::STATUS, self.identifier, Self::DONE, Self::TIME, self.what]);
        lengths(&widths.collect::<Vec<_>>())
    }
}

fn draw_jobs(frame: &mut Frame<'_>, model: &mut Model, area: Rect) {
    let Some(overview) = &model.overview else { return };
    let (running, failures, room) = (overview.open.len(), overview.failures.len(), room_in(area));
    let counted = overview.queues.iter().map(|queue| queue.open).sum::<u64>();
    let open = usize::try_from(counted).unwrap_or(usize::MAX).max(running);
    let chosen_failure = model.job.checked_sub(running);
    let (running_room, failures_room) = shares(room, running, failures, chosen_failure.is_some());
    let chosen_running = Some(model.job).filter(|_| chosen_failure.is_none());
    let upper = window(&mut model.scrolled.running, running_room, running, chosen_running);
    let lower = window(&mut model.scrolled.failures, failures_room, failures, chosen_failure);
    let title = match (open, failures) {
        (0, 1..) => range("The last failures", &lower, failures),
        (1.., 0) => range("Running", &upper, open),
        _ => format!("{}, and {}", range("Running", &upper, open), range("the last failures", &lower, failures)),
    };
    let jobs = model.jobs();
    let columns = JobColumns::of(&jobs, area.width);
    let shown = upper.chain(lower.start + running..lower.end + running);
    let rows = shown.filter_map(|place| {
        let is_chosen = model.focus == Focus::Jobs && place == model.job;
        jobs.get(place).map(|job| job_row(model, job, overview.now, &columns).style(row_style(is_chosen)))
    });
    let table =
        Table::new(rows, columns.widths()).header(columns.header()).block(titled(&title, model.focus == Focus::Jobs));
    frame.render_widget(table, area);
    if jobs.is_empty() {
        let place = Rect { y: area.y + 2, height: 1.min(area.height.saturating_sub(2)), ..area };
        frame.render_widget(Paragraph::new("  nothing runs, and nothing has failed"), place);
    }
}

fn job_row(model: &Model, job: &JobLine<'_>, now: Timestamp, columns: &JobColumns) -> Row<'static> {
    let (status, done, time, what) = match job {
        JobLine::Open(row) => {
            let start = row.started_time.filter(|_| row.status == JobStatus::Progress).or(row.queued_time);
            let elapsed = start.map(|start| i64::try_from(now.since(start).as_millis()).unwrap_or(i64::MAX));
            let said = if row.cancel_requested {
                "is being cancelled"
            } else {
                row.status_message.as_deref().unwrap_or_default()
            };
            let done = row.progress.map(|progress| format!("{progress:>3}%")).unwrap_or_default();
            (row.status, done, elapsed.map(duration_of).unwrap_or_default(), cut(said, columns.what))
        }
        JobLine::Failed(row) => {
            let error = row.error.as_deref().unwrap_or_default();
            let room = columns.what;
            let what = if columns.flow.is_some() { why(error, room) } else { cut(first_line(error), room) };
            (row.status, String::new(), format!("{} ago", age(row.completed_time, now)), what)
        }
    };
    let cells = [Cell::from(job.id().to_string())]
        .into_iter()
        .chain(columns.flow.map(|width| Cell::from(cut(job.flow(), width))))
        .chain([
            Cell::from(model.status(status)),
            Cell::from(cut(job.identifier(), columns.identifier)),
            Cell::from(done),
            Cell::from(time),
            Cell::from(what),
        ]);
    Row::new(cells.collect::<Vec<_>>())
}

fn first_line(error: &str) -> &str {
    error.lines().next().unwrap_or_default()
}

/// The first line of an error, and the last one, where a traceback says why: that has two thirds of the room, and each what the
/// other one does not need.
fn why(error: &str, room: usize) -> String {
    const BETWEEN: &str = " · ";
    let first = first_line(error);
    let Some(last) =
        error.split_once('\n').and_then(|(_, rest)| rest.lines().map(str::trim).rfind(|line| !line.is_empty()))
    else {
        return cut(first, room);
    };
    let room = room.saturating_sub(columns(BETWEEN));
    let wanted = columns(&cut(last, room));
    let first = cut(first, (room / 3).max(room.saturating_sub(wanted)));
    let last = cut(last, room.saturating_sub(columns(&first)));
    format!("{first}{BETWEEN}{last}")
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::domain::Attempt;
    use crate::store::{Count, WorkerRow};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_millis(seconds * 1000)
    }

    fn overview() -> Overview {
        let queue = |name: &str, paused, waiting, open| Queue {
            job_type: name.to_owned(),
            paused,
            waiting: Count { at_least: waiting, or_more: waiting == 1000 },
            oldest_waiting: (waiting > 0).then(|| at(940)),
            open,
            ..Queue::default()
        };
        Overview {
            now: at(1000),
            queues: vec![queue("RENDER", false, 1000, 1), queue("UPLOAD", true, 2, 0)],
            open: vec![OpenRow {
                id: JobId(7),
                job_type: "RENDER".to_owned(),
                identifier: "shot\u{1b}[2J-7".to_owned(),
                status: JobStatus::Progress,
                attempt: Attempt(1),
                worker_id: None,
                progress: Some(40),
                status_message: Some("frame 12 of 30".to_owned()),
                queued_time: Some(at(900)),
                started_time: Some(at(910)),
                heartbeat_time: Some(at(999)),
                cancel_requested: false,
            }],
            failures: vec![EndedRow {
                id: JobId(3),
                job_type: "UPLOAD".to_owned(),
                identifier: "shot-3".to_owned(),
                status: JobStatus::Error,
                attempt: Attempt(1),
                started_time: Some(at(100)),
                completed_time: at(700),
                execution_ms: Some(1000),
                error: Some("the command exited with code 1\nno space".to_owned()),
            }],
            ended: Vec::new(),
            earlier: Vec::new(),
            workers: Vec::new(),
        }
    }

    fn model() -> Model {
        let mut model = Model::new(false);
        model.take(overview());
        model
    }

    fn drawn(model: &mut Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect::<Vec<_>>().join("\n")
    }

    fn press(model: &mut Model, key: KeyCode) -> Wish {
        model.press(KeyEvent::new(key, KeyModifiers::NONE))
    }

    #[test]
    fn the_first_look_tells_what_runs_waits_and_failed() {
        let screen = drawn(&mut model(), 110, 16);
        for part in [
            "1 running, 1002+ waiting",
            "no worker is alive",
            "RENDER",
            "paused",
            "7        RENDER PROGRESS  shot-7",
            "40%",
            "1m 30s",
            "frame 12 of 30",
            "the command exited with code 1",
            "5m ago",
            "q quit",
        ] {
            assert!(screen.contains(part), "{part}:\n{screen}");
        }
        assert!(!screen.contains('\u{1b}'), "{screen}");
    }

    #[test]
    fn a_type_without_a_flow_is_not_called_idle() {
        let info = FlowInfo { concurrency: 1, requires: Labels::default(), heartbeat_timeout: Duration::from_secs(20) };
        let flows = [("RENDER".to_owned(), info)].into();
        let screen = drawn(&mut Model { flows: Some(flows), ..model() }, 110, 16);
        let state =
            |flow: &str| screen.lines().find(|line| line.starts_with(flow)).map(str::to_owned).unwrap_or_default();
        assert!(state("UPLOAD").contains("no flow") && state("RENDER").contains("running"), "{screen}");
        assert!(!drawn(&mut model(), 110, 16).contains("no flow"));
    }

    /// A busy afternoon: 15 flows of which four are in trouble, 23 running jobs, and eight failures.
    fn busy() -> Model {
        let queue = |name: String, open| Queue { job_type: name, open, ..Queue::default() };
        let trouble = |name: &str, waiting| Queue {
            waiting: Count { at_least: waiting, or_more: false },
            oldest_waiting: Some(at(580)),
            ..queue(name.to_owned(), 0)
        };
        let paused = Queue {
            paused: true,
            paused_by: Some("ana@desk (cli)".to_owned()),
            paused_time: Some(at(400)),
            ..trouble("UPLOAD", 12)
        };
        let delayed = Queue {
            delayed: Count { at_least: 3, or_more: false },
            dependent: Count { at_least: 1, or_more: false },
            next_due: Some(at(1300)),
            ..queue("NIGHTLY".to_owned(), 0)
        };
        let long = Queue { waiting: Count { at_least: 1000, or_more: true }, ..queue("FLOW_09".to_owned(), 2) };
        let mut queues: Vec<Queue> = (0..9).map(|n| queue(format!("FLOW_{n:02}"), if n < 7 { 3 } else { 0 })).collect();
        queues.extend([trouble("GPU_ONLY", 2), long, delayed, trouble("REMOVED", 4), trouble("THUMBNAIL", 1), paused]);
        let mut gpu = Labels::default();
        gpu.insert("gpu".parse().unwrap());
        let info = |name: &str| FlowInfo {
            concurrency: 4,
            requires: if name == "GPU_ONLY" { gpu.clone() } else { Labels::default() },
            heartbeat_timeout: Duration::from_secs(20),
        };
        let configured = queues.iter().map(|queue| queue.job_type.as_str()).filter(|name| *name != "REMOVED");
        let flows = configured.map(|name| (name.to_owned(), info(name))).collect();
        let first = overview();
        let open = |n: i64| OpenRow {
            id: JobId(n),
            job_type: format!("FLOW_{:02}", n / 3),
            identifier: format!("shot-{n}"),
            ..first.open[0].clone()
        };
        let failure = |n: i64| EndedRow {
            id: JobId(100 + n),
            identifier: format!("take-{n}"),
            error: Some(format!(
                "the command failed with exit code 1\nTraceback:\n  line {n}\nValueError: no frame {n}\n\n"
            )),
            ..first.failures[0].clone()
        };
        let worker = WorkerRow {
            worker_id: "node-a".to_owned(),
            incarnation: String::new(),
            hostname: String::new(),
            version: String::new(),
            state: "ACTIVE".to_owned(),
            started_time: at(0),
            heartbeat_time: at(995),
            drain_requested_time: None,
            drain_requested_by: None,
            labels: Labels::default(),
            address: None,
            runs: 23,
        };
        let mut model = Model { flows: Some(flows), ..Model::new(false) };
        model.take(Overview {
            queues,
            open: (0..23).map(open).collect(),
            failures: (0..8).map(failure).collect(),
            workers: vec![worker],
            ..first.clone()
        });
        model
    }

    /// The rows of the table whose header starts with this.
    fn table<'a>(screen: &'a str, header: &str) -> Vec<&'a str> {
        let lines = screen.lines().skip_while(|line| !line.starts_with(header)).skip(1);
        lines.take_while(|line| !line.contains("──") && !line.starts_with(" ↑")).collect()
    }

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn a_small_terminal_shows_trouble_and_failures_and_that_there_is_more() {
        let mut model = busy();
        let screen = drawn(&mut model, 80, 24);
        let flows = table(&screen, "FLOW");
        assert!(table(&drawn(&mut model, 80, 60), "FLOW").iter().rev().nth(2).unwrap().starts_with("NIGHTLY "));
        let states: Vec<_> = flows.iter().take(5).map(|line| words(line)[..4].join(" ")).collect();
        let expected = [
            "UPLOAD paused 0/4 12",
            "REMOVED no flow 0",
            "GPU_ONLY no worker 0/4",
            "THUMBNAIL stuck 0/4 1",
            "FLOW_00 running 3/4 0",
        ];
        assert_eq!(states, expected, "{screen}");
        assert!(screen.contains(&format!(" Flows 1–{} of 15 ", flows.len())), "{screen}");
        let jobs = table(&screen, "ID");
        let failed = jobs.iter().filter(|line| line.contains("ERROR")).count();
        assert!(jobs.len() >= 8 && failed * 3 >= jobs.len() && failed < jobs.len(), "{failed}:\n{screen}");
        let title = format!(" Running 1–{} of 23, and the last failures 1–{failed} of 8 ", jobs.len() - failed);
        assert!(screen.contains(&title), "{title}:\n{screen}");
        assert!(screen.lines().all(|line| columns(line) <= 80) && screen.ends_with("q quit"), "{screen}");
    }

    #[test]
    fn a_large_terminal_shows_everything_and_the_reasons() {
        let mut model = busy();
        model.waiting = [("FLOW_09".to_owned(), 3037)].into();
        let screen = drawn(&mut model, 200, 50);
        let line = |start: &str| screen.lines().find(|line| line.starts_with(start)).unwrap_or_default();
        assert!(
            screen.contains(" Flows ─") && screen.contains(" Running 1–20 of 23, and the last failures ─"),
            "{screen}"
        );
        for (flow, state, remark) in [
            ("UPLOAD", "paused", "paused by ana@desk (cli), 10m ago"),
            ("REMOVED", "no flow", "no flow of the configuration has this type"),
            ("GPU_ONLY", "no worker", "no living worker has what it requires: gpu"),
            ("THUMBNAIL", "stuck", "due, and nothing runs"),
            ("NIGHTLY", "delayed", "3 delayed, next due in 5m; 1 waits for other jobs"),
            ("FLOW_08", "idle", "0"),
            ("FLOW_09", "running", "2/4   3037"),
        ] {
            assert!(line(flow).contains(&format!(" {state} ")) && line(flow).contains(remark), "{flow}:\n{screen}");
        }
        assert!(line(" callsheet").contains("23 running, 3056 waiting"), "{screen}");
        assert!(line("100 ").contains("UPLOAD"), "{screen}");
        assert!(line("107 ").ends_with("the command failed with exit code 1 · ValueError: no frame 7"), "{screen}");
        assert!(line("19 ").contains("FLOW_06"), "{screen}");
    }

    #[test]
    fn a_line_says_what_needs_somebody() {
        let screen = drawn(&mut busy(), 200, 50);
        let said = screen.lines().nth(1).unwrap();
        let start = " 5 things need you: UPLOAD is paused, and 12 wait · 4 wait in REMOVED, which no flow of this worker runs · ";
        assert!(said.starts_with(start), "{said}");
        let narrow = drawn(&mut busy(), 80, 24);
        let said = narrow.lines().nth(1).unwrap();
        assert!(said.starts_with(" 5 things need you: ") && said.ends_with('…') && columns(said) == 80, "{said}");
        let mut model = busy();
        let calm =
            Overview { queues: Vec::new(), open: Vec::new(), failures: Vec::new(), ..model.overview.take().unwrap() };
        model.take(calm);
        assert_eq!(drawn(&mut model, 80, 24).lines().nth(1), Some(" All is well."));
        // Nobody knows.
        model.trouble = Some("gone".to_owned());
        assert_eq!(drawn(&mut model, 80, 24).lines().nth(1), Some(""));
    }

    #[test]
    fn what_is_chosen_stays_in_sight_and_chosen() {
        let mut model = busy();
        for row in 0..31 {
            let screen = drawn(&mut model, 80, 24);
            let id = if row < 23 { row } else { 77 + row };
            assert!(table(&screen, "ID").iter().any(|line| words(line)[0] == id.to_string()), "{id}:\n{screen}");
            press(&mut model, KeyCode::Down);
        }
        // In so small a place that there is one row only, it is the one.
        assert!(drawn(&mut model, 80, 9).contains("take-7"));
        press(&mut model, KeyCode::Home);
        assert!(drawn(&mut model, 80, 9).contains("shot-0"));
        press(&mut model, KeyCode::Down);
        press(&mut model, KeyCode::Tab);
        press(&mut model, KeyCode::End);
        assert!(drawn(&mut model, 80, 24).contains(" of 15 ") && model.flow == 14);
        let chosen = model.queues()[14].job_type.clone();
        let mut next = model.overview.clone().unwrap();
        next.open.remove(0);
        next.queues.retain(|queue| queue.job_type != "REMOVED");
        model.take(next);
        assert_eq!((model.queues()[model.flow].job_type.as_str(), model.flow), (chosen.as_str(), 13));
        assert_eq!((model.jobs()[model.job].id(), model.job), (JobId(1), 0));
    }

    #[test]
    fn failures_have_at_least_a_third_of_the_rows() {
        for (room, running, failures, expected) in [
            (9, 23, 8, (6, 3)),
            (8, 23, 8, (5, 3)),
            (9, 23, 1, (8, 1)),
            (9, 2, 8, (2, 7)),
            (9, 2, 3, (2, 3)),
            (9, 0, 8, (0, 8)),
            (2, 5, 5, (1, 1)),
            (1, 5, 5, (1, 0)),
            (0, 5, 5, (0, 0)),
        ] {
            assert_eq!(shares(room, running, failures, false), expected, "{room} {running} {failures}");
        }
        assert_eq!(shares(1, 5, 5, true), (0, 1));
    }

    #[test]
    fn both_ends_of_an_error_are_told_where_there_is_room() {
        let error = "the command failed with exit code 1\n  File \"a.py\"\nValueError: no frame\n";
        assert_eq!(why(error, 80), "the command failed with exit code 1 · ValueError: no frame");
        assert_eq!(why(error, 43), "the command failed … · ValueError: no frame");
        assert_eq!(why(error, 23), "the c… · ValueError: n…");
        assert_eq!(why("cancelled\n \n", 80), "cancelled");
        assert_eq!(why("", 80), "");
        assert!((5..70).all(|room| columns(&why(error, room)) <= room));
        why(error, 0);
    }

    #[test]
    fn every_size_can_be_drawn() {
        for (width, height) in [(1, 1), (10, 4), (40, 10), (80, 24), (300, 80)] {
            for view in [
                View::Tables,
                View::Help,
                View::Log(LogView { job: JobId(1), attempt: Some(1), text: "a\nb\nc".repeat(50), up: 3 }),
            ] {
                drawn(&mut Model { view, ..model() }, width, height);
            }
        }
        for (width, height) in
            [1, 9, 60, 109, 110].into_iter().flat_map(|width| (1..12).map(move |height| (width, height)))
        {
            for job in [0, 30] {
                drawn(&mut Model { job, ..busy() }, width, height);
            }
        }
        drawn(&mut Model::new(true), 80, 24);
    }

    #[test]
    fn nothing_is_done_that_was_not_confirmed() {
        let mut model = model();
        assert_eq!(press(&mut model, KeyCode::Char('c')), Wish::Nothing);
        assert!(drawn(&mut model, 100, 16).contains("Cancel job 7? Its command is ended. y / n"));
        assert_eq!(press(&mut model, KeyCode::Char('n')), Wish::Nothing);
        assert_eq!(press(&mut model, KeyCode::Char('y')), Wish::Nothing);
        press(&mut model, KeyCode::Char('c'));
        assert_eq!(press(&mut model, KeyCode::Char('y')), Wish::Act(Act::Cancel(JobId(7))));
        press(&mut model, KeyCode::Char('r'));
        assert!(model.asked.is_none() && model.said.is_some());
        press(&mut model, KeyCode::Down);
        press(&mut model, KeyCode::Char('r'));
        assert_eq!(press(&mut model, KeyCode::Char('y')), Wish::Act(Act::Retry(JobId(3))));
        press(&mut model, KeyCode::Char('p'));
        assert_eq!(press(&mut model, KeyCode::Char('y')), Wish::Act(Act::Pause("UPLOAD".to_owned(), false)));
        press(&mut model, KeyCode::Tab);
        press(&mut model, KeyCode::Down);
        press(&mut model, KeyCode::Char('p'));
        assert_eq!(press(&mut model, KeyCode::Char('y')), Wish::Act(Act::Pause("RENDER".to_owned(), true)));
    }

    #[test]
    fn the_output_is_followed_until_somebody_scrolls_up() {
        let mut model = model();
        assert_eq!(press(&mut model, KeyCode::Enter), Wish::Refresh);
        let View::Log(log) = &mut model.view else { panic!("no log") };
        log.text = (1..=100).map(|n| format!("line {n}\n")).collect();
        assert!(drawn(&mut model, 60, 12).contains("line 100"));
        press(&mut model, KeyCode::PageUp);
        let screen = drawn(&mut model, 60, 12);
        assert!(screen.contains("line 80") && !screen.contains("line 81"), "{screen}");
        press(&mut model, KeyCode::Home);
        assert!(drawn(&mut model, 60, 12).contains("line 1\n"));
        press(&mut model, KeyCode::End);
        assert!(drawn(&mut model, 60, 12).contains("line 100"));
        assert_eq!(press(&mut model, KeyCode::Char('q')), Wish::Nothing);
        assert_eq!(press(&mut model, KeyCode::Char('q')), Wish::Quit);
        assert_eq!(model.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Wish::Quit);
    }
}
