//! What `top` shows, and what keys change about it.

use std::collections::BTreeMap;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::{Color, Style};
use ratatui::text::Span;

use crate::cli::output::cut;
use crate::domain::labels::Labels;
use crate::domain::{JobId, JobStatus};
use crate::http::attention::{FlowRules, Situation, Stuck};
use crate::store::{EndedRow, History, OpenRow, Overview, Queue};

/// What is to be done to the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Cancel(JobId),
    Retry(JobId),
    /// Pause, or resume where false.
    Pause(String, bool),
}

impl Act {
    pub(super) fn question(&self) -> String {
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
pub(super) enum Wish {
    Nothing,
    Quit,
    Refresh,
    Act(Act),
}

/// What is shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum View {
    Tables,
    Help,
    Log(LogView),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct LogView {
    pub(super) job: JobId,
    pub(super) attempt: Option<u32>,
    pub(super) text: String,
    /// Lines from the end; 0 follows it.
    pub(super) up: u16,
}

/// Which table the keys move in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Focus {
    Flows,
    Jobs,
}

/// What the configuration says about a flow, as far as it is shown.
#[derive(Clone, Debug)]
pub(super) struct FlowInfo {
    pub(super) concurrency: u32,
    pub(super) requires: Labels,
    pub(super) heartbeat_timeout: Duration,
}

/// Everything that is drawn.
pub(super) struct Model {
    /// With the queues in the order in which they are shown.
    pub(super) overview: Option<Overview>,
    pub(super) history: Option<History>,
    /// How many wait of each type, counted exactly a while ago.
    pub(super) waiting: BTreeMap<String, u64>,
    pub(super) view: View,
    pub(super) focus: Focus,
    pub(super) flow: usize,
    pub(super) job: usize,
    pub(super) asked: Option<Act>,
    pub(super) said: Option<String>,
    pub(super) trouble: Option<String>,
    /// The flows of the configuration, by type; `None` where there is no configuration.
    pub(super) flows: Option<BTreeMap<String, FlowInfo>>,
    pub(super) colour: bool,
    pub(super) scrolled: Scrolled,
}

/// The first row that is shown, of each list that is longer than its place.
#[derive(Default)]
pub(super) struct Scrolled {
    pub(super) flows: usize,
    pub(super) running: usize,
    pub(super) failures: usize,
}

/// A row of the table of jobs.
pub(super) enum JobLine<'a> {
    Open(&'a OpenRow),
    Failed(&'a EndedRow),
}

impl JobLine<'_> {
    pub(super) fn id(&self) -> JobId {
        match self {
            Self::Open(row) => row.id,
            Self::Failed(row) => row.id,
        }
    }

    pub(super) fn flow(&self) -> &str {
        match self {
            Self::Open(row) => &row.job_type,
            Self::Failed(row) => &row.job_type,
        }
    }

    pub(super) fn identifier(&self) -> &str {
        match self {
            Self::Open(row) => &row.identifier,
            Self::Failed(row) => &row.identifier,
        }
    }
}

impl Model {
    pub(super) fn new(colour: bool) -> Self {
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
    pub(super) fn take(&mut self, mut overview: Overview) {
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

    pub(super) fn rules(&self) -> Option<BTreeMap<&str, FlowRules<'_>>> {
        let flows = self.flows.as_ref()?.iter();
        let rules = flows.map(|(name, FlowInfo { requires, heartbeat_timeout, .. })| {
            (name.as_str(), FlowRules { requires, heartbeat_timeout: *heartbeat_timeout })
        });
        Some(rules.collect())
    }

    pub(super) fn situation<'a>(
        &'a self,
        overview: &'a Overview,
        flows: Option<&'a BTreeMap<&'a str, FlowRules<'a>>>,
    ) -> Situation<'a> {
        Situation { overview, history: self.history.as_ref(), flows, name: |name| cut(name, 60) }
    }

    pub(super) fn flow_of(&self, job_type: &str) -> Option<&FlowInfo> {
        self.flows.as_ref().and_then(|flows| flows.get(job_type))
    }

    /// How many rows of a flow wait, and whether there may be more.
    pub(super) fn waiting_of(&self, queue: &Queue) -> (u64, bool) {
        match self
            .waiting
            .get(&queue.job_type)
            .filter(|exact| queue.waiting.or_more && **exact > queue.waiting.at_least)
        {
            Some(exact) => (*exact, false),
            None => (queue.waiting.at_least, queue.waiting.or_more),
        }
    }

    pub(super) fn queues(&self) -> &[Queue] {
        self.overview.as_ref().map_or(&[], |overview| &overview.queues)
    }

    /// What runs, then what failed last.
    pub(super) fn jobs(&self) -> Vec<JobLine<'_>> {
        let Some(overview) = &self.overview else { return Vec::new() };
        overview.open.iter().map(JobLine::Open).chain(overview.failures.iter().map(JobLine::Failed)).collect()
    }

    pub(super) fn press(&mut self, key: KeyEvent) -> Wish {
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

    pub(super) fn press_elsewhere(&mut self, key: KeyCode) -> Wish {
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

    pub(super) fn move_to(&mut self, row: usize) {
        match self.focus {
            Focus::Flows => self.flow = row,
            Focus::Jobs => self.job = row,
        }
    }

    pub(super) fn style(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    pub(super) fn status(&self, status: JobStatus) -> Span<'static> {
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
pub(super) fn place(queue: &Queue, stuck: Option<Stuck<'_>>) -> u8 {
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

/// The state of a flow that has nothing to do.
const IDLE: &str = "idle";

/// How a flow stands of which nothing runs, and need not.
pub(super) fn waiting_word(queue: &Queue) -> &'static str {
    match (queue.waiting.at_least, queue.delayed.at_least, queue.dependent.at_least) {
        (0, 0, 0) => IDLE,
        (0, 1.., _) => "delayed",
        (1.., _, _) | (0, 0, 1..) => "waiting",
    }
}
