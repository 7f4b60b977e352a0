//! How a [`Model`] looks on a terminal of any size.

use std::ops::Range;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, Wrap};

use super::model::{FlowInfo, Focus, JobLine, LogView, Model, View, waiting_word};
use crate::cli::flows;
use crate::cli::output::{age, columns, cut, duration_of};
use crate::domain::{JobStatus, Timestamp};
use crate::http::attention::{Situation, Stuck};
use crate::http::words::{counted, thousands};
use crate::store::Queue;

/// From this width on there is room for more than what every terminal has to show, in columns.
const WIDE: u16 = 110;

pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model) {
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
pub(super) fn shares(room: usize, running: usize, failures: usize, chosen_has_failed: bool) -> (usize, usize) {
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
pub(super) fn why(error: &str, room: usize) -> String {
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
