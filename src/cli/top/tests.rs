use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::draw::{draw, shares, why};
use super::model::{Act, FlowInfo, LogView, Model, View, Wish};
use crate::cli::output::columns;
use crate::domain::labels::Labels;
use crate::domain::{Attempt, JobId, JobStatus, Timestamp};
use crate::store::{Count, EndedRow, OpenRow, Overview, Queue, WorkerRow};

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
    let state = |flow: &str| screen.lines().find(|line| line.starts_with(flow)).map(str::to_owned).unwrap_or_default();
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
    assert!(screen.contains(" Flows ─") && screen.contains(" Running 1–20 of 23, and the last failures ─"), "{screen}");
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
    let start =
        " 5 things need you: UPLOAD is paused, and 12 wait · 4 wait in REMOVED, which no flow of this worker runs · ";
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
    for (width, height) in [1, 9, 60, 109, 110].into_iter().flat_map(|width| (1..12).map(move |height| (width, height)))
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
