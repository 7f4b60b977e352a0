//! `top`: the overview in the terminal, from the database, so that it works with the service down.
//!
//! What is shown is a [`Model`], drawn by [`draw`] and moved by [`Model::press`], neither of which knows a terminal.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState, Wrap};
use ratatui::{DefaultTerminal, Frame};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Context;
use super::failure::{Exit, Failure, Result};
use super::logs::directory_of;
use super::output::{age, cut, duration_of};
use crate::config::Config;
use crate::domain::{FlowType, JobId, JobStatus, Timestamp};
use crate::http::words::thousands;
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
    model.served = config.path.is_some().then(|| config.flows.keys().map(|flow| flow.as_str().to_owned()).collect());
    let mut history = History::default();
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
            model.overview = Some(overview);
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

/// Everything that is drawn.
struct Model {
    overview: Option<Overview>,
    history: Option<History>,
    view: View,
    focus: Focus,
    flow: usize,
    job: usize,
    asked: Option<Act>,
    said: Option<String>,
    trouble: Option<String>,
    /// The types that the configuration has flows for; `None` where there is no configuration.
    served: Option<BTreeSet<String>>,
    colour: bool,
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
}

impl Model {
    fn new(colour: bool) -> Self {
        Self {
            overview: None,
            history: None,
            view: View::Tables,
            focus: Focus::Jobs,
            flow: 0,
            job: 0,
            asked: None,
            said: None,
            trouble: None,
            served: None,
            colour,
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

fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let [head, middle, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(headline(model), head);
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
    let waiting: u64 = overview.queues.iter().map(|queue| queue.waiting.at_least).sum();
    let more = if overview.queues.iter().any(|queue| queue.waiting.or_more) { "+" } else { "" };
    let day = model.history.as_ref().map(|history| history.last_day(None, overview.now)).unwrap_or_default();
    let alive = overview.workers.iter().filter(|worker| {
        worker.state != "STOPPED" && overview.now.since(worker.heartbeat_time) <= Duration::from_secs(30)
    });
    let workers = alive.count();
    let mut spans = vec![
        name,
        Span::raw(format!(
            "  {running} running, {}{more} waiting, in 24h {} done and ",
            thousands(waiting),
            thousands(day.completed)
        )),
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
        View::Tables => " ↑↓ move  Tab table  Enter output  c cancel  r retry  p pause/resume  ? help  q quit",
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
    let wanted = u16::try_from(model.queues().len()).unwrap_or(u16::MAX).saturating_add(2);
    let flows_height = wanted.min(area.height / 2).max(3);
    let [flows, jobs] = Layout::vertical([Constraint::Length(flows_height), Constraint::Min(3)]).areas(area);
    let now = model.overview.as_ref().map_or(Timestamp::from_unix_millis(0), |overview| overview.now);
    model.flow = model.flow.min(model.queues().len().saturating_sub(1));
    model.job = model.job.min(model.jobs().len().saturating_sub(1));
    let chosen = Style::new().add_modifier(Modifier::REVERSED);

    let header = Row::new(["FLOW", "STATE", "RUN", "WAIT", "OLDEST", "DONE 24h", "FAILED 24h"]);
    let rows: Vec<Row<'_>> = model.queues().iter().map(|queue| flow_row(model, queue, now)).collect();
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(5),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(10),
    ];
    let table = Table::new(rows, widths)
        .header(header.style(Style::new().add_modifier(Modifier::DIM)))
        .block(titled("Flows", model.focus == Focus::Flows))
        .row_highlight_style(if model.focus == Focus::Flows { chosen } else { Style::new() });
    let mut state = TableState::new().with_selected(Some(model.flow));
    frame.render_stateful_widget(table, flows, &mut state);

    let header = Row::new(["ID", "STATUS", "IDENTIFIER", "DONE", "TIME", "WHAT"]);
    let rows: Vec<Row<'_>> = model.jobs().iter().map(|job| job_row(model, job, now)).collect();
    let is_empty = rows.is_empty();
    let widths = [
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Fill(2),
        Constraint::Length(5),
        Constraint::Length(9),
        Constraint::Fill(3),
    ];
    let table = Table::new(rows, widths)
        .header(header.style(Style::new().add_modifier(Modifier::DIM)))
        .block(titled("Running, and the last failures", model.focus == Focus::Jobs))
        .row_highlight_style(if model.focus == Focus::Jobs { chosen } else { Style::new() });
    let mut state = TableState::new().with_selected(Some(model.job));
    frame.render_stateful_widget(table, jobs, &mut state);
    if is_empty && model.overview.is_some() {
        let place = Rect { y: jobs.y + 2, height: 1.min(jobs.height.saturating_sub(2)), ..jobs };
        frame.render_widget(Paragraph::new("  nothing runs, and nothing has failed"), place);
    }
}

fn flow_row(model: &Model, queue: &Queue, now: Timestamp) -> Row<'static> {
    let day = model.history.as_ref().map(|history| history.last_day(Some(&queue.job_type), now)).unwrap_or_default();
    let has_no_flow = model.served.as_ref().is_some_and(|served| !served.contains(&queue.job_type));
    let (state, style) = match (queue.paused, queue.open) {
        // Another worker may have one, and then something runs.
        (_, 0) if has_no_flow => ("no flow", model.style(Color::Yellow)),
        (true, _) => ("paused", model.style(Color::Yellow)),
        (false, 0) => ("idle", Style::new()),
        (false, _) => ("running", model.style(Color::Cyan)),
    };
    let more = if queue.waiting.or_more { "+" } else { "" };
    Row::new([
        Cell::from(cut(&queue.job_type, 60)),
        Cell::from(Span::styled(state, style)),
        Cell::from(queue.open.to_string()),
        Cell::from(format!("{}{more}", thousands(queue.waiting.at_least))),
        Cell::from(queue.oldest_waiting.map(|oldest| age(oldest, now)).unwrap_or_default()),
        Cell::from(thousands(day.completed)),
        Cell::from(Span::styled(
            thousands(day.failed),
            if day.failed > 0 { model.style(Color::Red) } else { Style::new() },
        )),
    ])
}

fn job_row(model: &Model, job: &JobLine<'_>, now: Timestamp) -> Row<'static> {
    match job {
        JobLine::Open(row) => {
            let start = row.started_time.filter(|_| row.status == JobStatus::Progress).or(row.queued_time);
            let elapsed = start.map(|start| i64::try_from(now.since(start).as_millis()).unwrap_or(i64::MAX));
            let what = if row.cancel_requested {
                "is being cancelled".to_owned()
            } else {
                cut(row.status_message.as_deref().unwrap_or_default(), 100)
            };
            Row::new([
                Cell::from(row.id.to_string()),
                Cell::from(model.status(row.status)),
                Cell::from(cut(&row.identifier, 60)),
                Cell::from(row.progress.map(|progress| format!("{progress:>3}%")).unwrap_or_default()),
                Cell::from(elapsed.map(duration_of).unwrap_or_default()),
                Cell::from(what),
            ])
        }
        JobLine::Failed(row) => {
            let error = row.error.as_deref().unwrap_or_default();
            Row::new([
                Cell::from(row.id.to_string()),
                Cell::from(model.status(row.status)),
                Cell::from(cut(&row.identifier, 60)),
                Cell::from(""),
                Cell::from(format!("{} ago", age(row.completed_time, now))),
                Cell::from(cut(error.lines().next().unwrap_or_default(), 160)),
            ])
        }
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::domain::Attempt;
    use crate::store::Count;

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
        Model { overview: Some(overview()), ..Model::new(false) }
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
            "7        PROGRESS  shot-7",
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
        let served = ["RENDER".to_owned()].into();
        let screen = drawn(&mut Model { served: Some(served), ..model() }, 110, 16);
        let state =
            |flow: &str| screen.lines().find(|line| line.starts_with(flow)).map(str::to_owned).unwrap_or_default();
        assert!(state("UPLOAD").contains("no flow") && state("RENDER").contains("running"), "{screen}");
        assert!(!drawn(&mut model(), 110, 16).contains("no flow"));
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
