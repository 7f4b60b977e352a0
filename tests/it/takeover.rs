//! The protocol by which several workers share one database, checked in every order in which things can happen.
//!
//! Claim, confirmation, lease, fence and takeover, as DESIGN describes them: workers stall at any point and for any time
//! (so freezes, slow networks and a slow database are in it), services and machines crash, commits happen whose answer is
//! never heard and are asked for again. Time is counted in ticks of the takeover's margin. The decisions are those of
//! `domain`; what is written here is who knows what, and when.
//!
//! Broken variants of the protocol show that the checker would see it: each must violate what the right one keeps.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use callsheet::domain::heartbeat::{Lease, LeaseTerms, TAKEOVER_MARGIN, is_overdue};
use callsheet::domain::retry::{Jitter, RetryPolicy};
use callsheet::domain::run::{
    CommandEnd, EndCause, Next, RunContext, RunEnd, RunEvent, RunOrder, RunPhase, Shortage, Usage, Verdict, conclude,
};
use callsheet::domain::{Attempt, JobStatus, Timestamp};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// In ticks.
const HEARTBEAT_TIMEOUT: u8 = 1;
const KILL_GRACE: u8 = 1;
/// How late a shim may be with its SIGKILL: as much as the margin allows for.
const LATENESS: u8 = 1;
/// From here on more time changes nothing.
const LONG: u8 = HEARTBEAT_TIMEOUT + KILL_GRACE + LATENESS + 1;

fn ticks(count: u8) -> Duration {
    TAKEOVER_MARGIN * u32::from(count)
}

/// What is done otherwise than it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The taker does not wait for the kill grace.
    NoGrace,
    /// The taker does not wait for a shim that is late.
    NoMargin,
    /// The shim counts from when it heard of a confirmation, not from when that was asked for.
    LeaseFromAnswer,
    /// The shim counts from its start, not from the claim.
    LeaseFromLaunch,
    /// An end is written whether or not its run is still current.
    UnconditionalSettle,
}

#[derive(Clone, Debug)]
struct Protocol {
    workers: u8,
    jobs: u8,
    attempts: u8,
    crashes: u8,
    broken: Broken,
}

/// A run token; a number that nothing refers to any more may be given again, which makes it as good as fresh.
type Token = u8;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct State {
    rows: Vec<Row>,
    workers: Vec<Worker>,
    /// By token; what is on the machines: shims, commands and verdicts.
    runs: Vec<Run>,
    /// What is on its way to the database and back.
    writes: Vec<InFlight>,
    crashes_left: u8,
    /// Whether a write about a run that was not current changed a row.
    stale_write: bool,
}

/// A row of `jobs`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Row {
    status: JobStatus,
    attempt: u8,
    worker: u8,
    token: Option<Token>,
    /// Since `heartbeat_time`.
    unconfirmed: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Worker {
    up: bool,
    actors: Vec<Actor>,
}

/// A JobActor with its HeartbeatActor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Actor {
    token: Token,
    phase: RunPhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Run {
    job: u8,
    worker: u8,
    command: Command,
    /// By the machine's clock, since the confirmation that the lease rests on was asked for.
    unconfirmed: u8,
    token: Token,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Command {
    /// Claimed; no shim has been started.
    NotStarted,
    /// The shim was too late and started nothing.
    Refused,
    Alive,
    Done,
    /// Ended by its shim because the lease was over, or because its worker was told that it is no longer its own.
    Ended,
    /// The machine or the shim died with it.
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct InFlight {
    token: Token,
    what: What,
    /// What the database answered, once it did: whether the run was current.
    answer: Option<bool>,
    /// Since it was asked for.
    age: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum What {
    Confirm,
    Settle(Command),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Tick,
    Claim {
        worker: u8,
        job: u8,
    },
    Launch {
        token: Token,
    },
    AskConfirm {
        token: Token,
    },
    /// The database commits a write, and answers or does not.
    Commit {
        write: InFlight,
        answered: bool,
    },
    /// An answer arrives.
    Answer {
        write: InFlight,
    },
    /// A write comes to nothing.
    Lose {
        write: InFlight,
    },
    TakeOver {
        worker: u8,
        job: u8,
    },
    /// The command ends by itself.
    Finish {
        token: Token,
    },
    /// The shim ends the command.
    End {
        token: Token,
    },
    CrashService {
        worker: u8,
    },
    CrashMachine {
        worker: u8,
    },
    Restart {
        worker: u8,
    },
    /// A restarted service finds an open row of its own.
    Recover {
        worker: u8,
        job: u8,
    },
}

impl State {
    fn run(&self, token: Token) -> Option<&Run> {
        self.runs.iter().find(|run| run.token == token)
    }

    fn run_mut(&mut self, token: Token) -> Option<&mut Run> {
        self.runs.iter_mut().find(|run| run.token == token)
    }

    fn actor(&self, token: Token) -> Option<(usize, Actor)> {
        let find = |(worker, state): (usize, &Worker)| {
            state.actors.iter().find(|actor| actor.token == token).map(|actor| (worker, *actor))
        };
        self.workers.iter().enumerate().find_map(find)
    }

    fn fresh_token(&self) -> Token {
        let used: BTreeSet<Token> = self.runs.iter().map(|run| run.token).collect();
        (0..).find(|token| !used.contains(token)).unwrap()
    }

    fn alive(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.command == Command::Alive)
    }

    /// Makes states the same that differ in nothing that matters any more.
    fn tidied(mut self) -> Self {
        let needed: BTreeSet<Token> = self
            .rows
            .iter()
            .filter(|row| is_open(row.status))
            .filter_map(|row| row.token)
            .chain(self.workers.iter().flat_map(|worker| worker.actors.iter().map(|actor| actor.token)))
            .chain(self.writes.iter().map(|write| write.token))
            .chain(self.alive().map(|run| run.token))
            .collect();
        self.runs.retain(|run| needed.contains(&run.token));
        for run in &mut self.runs {
            if !matches!(run.command, Command::Alive | Command::NotStarted) {
                run.unconfirmed = 0;
            }
        }
        for row in &mut self.rows {
            if !is_open(row.status) {
                (row.token, row.worker, row.unconfirmed) = (None, 0, 0);
            }
        }
        let orders = orders(self.workers.len());
        orders.iter().map(|order| self.with_workers_in(order)).min().unwrap_or(self)
    }

    /// The same with the workers in another order, all of them being alike, and the tokens named by where they are.
    fn with_workers_in(&self, order: &[u8]) -> Self {
        let mut state = self.clone();
        for (from, to) in order.iter().enumerate() {
            state.workers[usize::from(*to)] = self.workers[from].clone();
        }
        let moved = |worker: u8| order[usize::from(worker)];
        for row in state.rows.iter_mut().filter(|row| is_open(row.status)) {
            row.worker = moved(row.worker);
        }
        for run in &mut state.runs {
            run.worker = moved(run.worker);
        }
        state.runs.sort_unstable();
        let names: Vec<Token> = state.runs.iter().map(|run| run.token).collect();
        let name = |token: Token| names.iter().position(|old| *old == token).unwrap() as Token;
        for row in &mut state.rows {
            row.token = row.token.map(name);
        }
        for run in &mut state.runs {
            run.token = name(run.token);
        }
        for actor in state.workers.iter_mut().flat_map(|worker| &mut worker.actors) {
            actor.token = name(actor.token);
        }
        for write in &mut state.writes {
            write.token = name(write.token);
        }
        state.writes.sort_unstable();
        for worker in &mut state.workers {
            worker.actors.sort_unstable();
        }
        state
    }

    /// The run's actor, where there is one, hears what has become of its command. It may take its time with what follows
    /// from that, so that hearing it late would be the same.
    fn hear(&mut self, token: Token) {
        match self.run(token).map(|run| run.command) {
            None | Some(Command::NotStarted) => {}
            Some(Command::Alive) => self.step(token, RunEvent::Started),
            Some(Command::Refused | Command::Done | Command::Ended | Command::Dead) => {
                self.step(token, RunEvent::Ended);
            }
        }
    }

    /// What an event does to an actor, by the rules of the real one.
    fn step(&mut self, token: Token, event: RunEvent) {
        let Some((worker, actor)) = self.actor(token) else { return };
        let (phase, order) = actor.phase.step(event);
        let actors = &mut self.workers[worker].actors;
        if let Some(actor) = actors.iter_mut().find(|actor| actor.token == token) {
            actor.phase = phase;
        }
        match order {
            None | Some(RunOrder::RecordStart) => {}
            Some(RunOrder::Settle) => {
                if let Some(run) = self.run(token) {
                    let what = What::Settle(run.command);
                    self.writes.push(InFlight { token, what, answer: None, age: 0 });
                }
            }
            // The shim acts on it in its own time; see `Action::End`.
            Some(RunOrder::Stop | RunOrder::StopNow) => {}
            Some(RunOrder::Leave) => actors.retain(|actor| actor.token != token),
        }
    }
}

/// Every order of so many.
fn orders(count: usize) -> Vec<Vec<u8>> {
    match count {
        0 => vec![Vec::new()],
        _ => {
            let shorter = orders(count - 1);
            let insert = |order: &Vec<u8>, at: usize| {
                let mut order = order.clone();
                order.insert(at, (count - 1) as u8);
                order
            };
            shorter.iter().flat_map(|order| (0..count).map(move |at| insert(order, at))).collect()
        }
    }
}

fn is_open(status: JobStatus) -> bool {
    matches!(status, JobStatus::InQueue | JobStatus::Progress)
}

/// What becomes of a job whose run ended so, by the real decision.
fn next_of(command: Command, attempt: u8, attempts: u8) -> Next {
    let end = match command {
        Command::NotStarted | Command::Refused => RunEnd::NeverStarted,
        Command::Alive | Command::Ended | Command::Dead => RunEnd::Lost("its lease was over".to_owned()),
        Command::Done => RunEnd::Ended(Verdict {
            pid: 1,
            end: CommandEnd::Exited(0),
            cause: EndCause::Itself,
            started_time: Timestamp::from_unix_millis(0),
            completed_time: Timestamp::from_unix_millis(1),
            execution: Duration::from_millis(1),
            usage: Usage::default(),
            shortage: Shortage::default(),
            stderr_tail: String::new(),
            said: None,
        }),
    };
    let most = u32::from(attempts);
    let retry = RetryPolicy::new(most, Duration::from_secs(1), 2.0, Duration::from_secs(1), Vec::new()).unwrap();
    let context = RunContext {
        attempt: Attempt(u32::from(attempt)),
        maximum_attempts: most,
        jitter: Jitter::NONE,
        retry: &retry,
        cancel_requested: false,
        start_to_close_timeout: Duration::from_secs(1),
        schedule_deadline: Timestamp::from_unix_millis(i64::MAX),
    };
    conclude(&end, &context, Timestamp::from_unix_millis(0)).next
}

fn settle(row: &mut Row, command: Command, attempts: u8) {
    let next = next_of(command, row.attempt, attempts);
    row.status = next.status();
    row.token = None;
    if next == Next::Requeue {
        row.attempt = row.attempt.saturating_sub(1);
    }
}

impl Protocol {
    fn may_take_over(&self, unconfirmed: u8) -> bool {
        let unconfirmed = ticks(unconfirmed);
        let heartbeat_timeout = ticks(HEARTBEAT_TIMEOUT);
        let after = |kill_grace| {
            let terms = LeaseTerms { heartbeat_timeout, start_to_close_timeout: Duration::ZERO, kill_grace };
            is_overdue(unconfirmed, terms.untouched(Lease::Short))
        };
        match self.broken {
            Broken::NoGrace => after(Duration::ZERO),
            Broken::NoMargin => is_overdue(unconfirmed, ticks(HEARTBEAT_TIMEOUT + KILL_GRACE)),
            _ => after(ticks(KILL_GRACE)),
        }
    }

    /// Whether the shim has to be done with its command before time goes on.
    fn must_end(run: &Run) -> bool {
        run.command == Command::Alive && run.unconfirmed >= HEARTBEAT_TIMEOUT + KILL_GRACE + LATENESS
    }

    fn commit(&self, state: &mut State, write: InFlight) -> bool {
        let Some(job) = state.run(write.token).map(|run| usize::from(run.job)) else { return false };
        let row = &mut state.rows[job];
        let current = is_open(row.status) && row.token == Some(write.token);
        match write.what {
            What::Confirm if current => row.unconfirmed = 0,
            What::Settle(command) if current => settle(row, command, self.attempts),
            What::Settle(command) if self.broken == Broken::UnconditionalSettle => {
                let before = row.clone();
                settle(row, command, self.attempts);
                state.stale_write |= *row != before;
            }
            What::Confirm | What::Settle(_) => {}
        }
        current
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let row = Row { status: JobStatus::Pending, attempt: 0, worker: 0, token: None, unconfirmed: 0 };
        vec![State {
            rows: vec![row; usize::from(self.jobs)],
            workers: vec![Worker { up: true, actors: Vec::new() }; usize::from(self.workers)],
            runs: Vec::new(),
            writes: Vec::new(),
            crashes_left: self.crashes,
            stale_write: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.runs.iter().any(Self::must_end) {
            actions.push(Action::Tick);
        }
        let any_open = state.rows.iter().any(|row| is_open(row.status));
        let first = state.rows.iter().position(|row| row.status == JobStatus::Pending);
        for (number, worker) in (0..).zip(&state.workers) {
            if !worker.up {
                actions.push(Action::Restart { worker: number });
                continue;
            }
            // A job's actor is the only one of its name, so the launch of a new claim waits until the last one has left.
            if let Some(job) = first.filter(|_| !any_open && worker.actors.is_empty()) {
                actions.push(Action::Claim { worker: number, job: job as u8 });
            }
            for (job, row) in (0..).zip(&state.rows) {
                if is_open(row.status) && row.worker == number && worker.actors.is_empty() {
                    actions.push(Action::Recover { worker: number, job });
                }
                if is_open(row.status) && row.worker != number && self.may_take_over(row.unconfirmed) {
                    actions.push(Action::TakeOver { worker: number, job });
                }
            }
            for actor in &worker.actors {
                let token = actor.token;
                let asked = state.writes.iter().any(|write| write.token == token && write.what == What::Confirm);
                if actor.phase == RunPhase::Running && !asked {
                    actions.push(Action::AskConfirm { token });
                }
                if actor.phase == RunPhase::Launching
                    && state.run(token).is_some_and(|run| run.command == Command::NotStarted)
                {
                    actions.push(Action::Launch { token });
                }
            }
            if state.crashes_left > 0 {
                actions.push(Action::CrashService { worker: number });
                actions.push(Action::CrashMachine { worker: number });
            }
        }
        for &write in &state.writes {
            let waits = state.actor(write.token).is_some();
            if write.answer.is_some() {
                actions.push(if waits { Action::Answer { write } } else { Action::Lose { write } });
                continue;
            }
            actions.push(Action::Commit { write, answered: true });
            if !waits || write.what == What::Confirm {
                actions.push(Action::Lose { write });
            } else {
                actions.push(Action::Commit { write, answered: false });
            }
        }
        for run in state.alive() {
            actions.push(Action::Finish { token: run.token });
            let fenced = state.actor(run.token).is_some_and(|(_, actor)| actor.phase == RunPhase::Fenced);
            if fenced || run.unconfirmed >= HEARTBEAT_TIMEOUT {
                actions.push(Action::End { token: run.token });
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Tick => {
                let older = |age: &mut u8| *age = (*age + 1).min(LONG);
                state.rows.iter_mut().filter(|row| is_open(row.status)).for_each(|row| older(&mut row.unconfirmed));
                state.runs.iter_mut().for_each(|run| older(&mut run.unconfirmed));
                // An answer that is older brings nothing, however old it is.
                let asked = state.writes.iter_mut().filter(|write| write.what == What::Confirm);
                asked.for_each(|write| write.age = (write.age + 1).min(HEARTBEAT_TIMEOUT));
            }
            Action::Claim { worker, job } => {
                let token = state.fresh_token();
                let row = &mut state.rows[usize::from(job)];
                let attempt = row.attempt + 1;
                *row = Row { status: JobStatus::InQueue, attempt, worker, token: Some(token), unconfirmed: 0 };
                state.runs.push(Run { token, job, worker, command: Command::NotStarted, unconfirmed: 0 });
                state.workers[usize::from(worker)].actors.push(Actor { token, phase: RunPhase::Launching });
            }
            Action::Launch { token } => {
                let run = state.run_mut(token)?;
                if self.broken == Broken::LeaseFromLaunch {
                    run.unconfirmed = 0;
                }
                let over = run.unconfirmed >= HEARTBEAT_TIMEOUT;
                run.command = if over { Command::Refused } else { Command::Alive };
                state.hear(token);
            }
            Action::AskConfirm { token } => {
                state.writes.push(InFlight { token, what: What::Confirm, answer: None, age: 0 });
            }
            Action::Commit { write, answered } => {
                let current = self.commit(&mut state, write);
                let at = state.writes.iter().position(|other| *other == write)?;
                match write.what {
                    What::Confirm => state.writes[at].answer = Some(current),
                    What::Settle(_) if answered => {
                        state.writes.remove(at);
                        state.step(write.token, RunEvent::Settled);
                    }
                    What::Settle(_) => {}
                }
            }
            Action::Answer { write } => {
                let at = state.writes.iter().position(|other| *other == write)?;
                state.writes.remove(at);
                if !write.answer? {
                    state.step(write.token, RunEvent::OwnershipLost);
                } else if let Some(run) = state.run_mut(write.token) {
                    if self.broken == Broken::LeaseFromAnswer {
                        run.unconfirmed = 0;
                    } else if run.unconfirmed < HEARTBEAT_TIMEOUT {
                        // A shim that has begun to end its command goes through with it.
                        run.unconfirmed = run.unconfirmed.min(write.age);
                    }
                }
            }
            Action::Lose { write } => {
                let at = state.writes.iter().position(|other| *other == write)?;
                state.writes.remove(at);
            }
            Action::TakeOver { job, .. } => settle(&mut state.rows[usize::from(job)], Command::Dead, self.attempts),
            Action::Finish { token } => {
                state.run_mut(token)?.command = Command::Done;
                state.hear(token);
            }
            Action::End { token } => {
                state.run_mut(token)?.command = Command::Ended;
                state.hear(token);
            }
            Action::CrashService { worker } => {
                state.crashes_left -= 1;
                state.workers[usize::from(worker)] = Worker { up: false, actors: Vec::new() };
            }
            Action::CrashMachine { worker } => {
                state.crashes_left -= 1;
                state.workers[usize::from(worker)] = Worker { up: false, actors: Vec::new() };
                for run in state.runs.iter_mut().filter(|run| run.worker == worker && run.command == Command::Alive) {
                    run.command = Command::Dead;
                }
            }
            Action::Restart { worker } => state.workers[usize::from(worker)].up = true,
            Action::Recover { worker, job } => {
                let token = state.rows[usize::from(job)].token?;
                state.workers[usize::from(worker)].actors.push(Actor { token, phase: RunPhase::Launching });
                if state.run(token)?.command == Command::NotStarted {
                    // Nothing can start it any more: whoever could is dead.
                    state.run_mut(token)?.command = Command::Refused;
                }
                state.hear(token);
            }
        }
        let state = state.tidied();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_OF_A_JOB, |_, state: &State| {
                let mut jobs: Vec<u8> = state.alive().map(|run| run.job).collect();
                let all = jobs.len();
                jobs.sort_unstable();
                jobs.dedup();
                jobs.len() == all
            }),
            Property::always(ONE_OF_A_FLOW, |_, state: &State| state.alive().count() <= 1),
            Property::always(NONE_OF_AN_ENDED_JOB, |_, state: &State| {
                state.alive().all(|run| !state.rows[usize::from(run.job)].status.is_final())
            }),
            Property::always(STALE_WRITES_NOTHING, |_, state: &State| !state.stale_write),
            Property::eventually(EVERY_JOB_ENDS, |_, state: &State| all_ended(state)),
            // Without these the others might hold for want of anything that could break them.
            Property::sometimes(RUN_AGAIN, |_, state: &State| {
                state.rows.iter().any(|row| row.status == JobStatus::Completed && row.attempt == 2)
            }),
            Property::sometimes(TOO_LATE, |_, state: &State| {
                state.runs.iter().any(|run| run.command == Command::Refused)
            }),
        ]
    }
}

const ONE_OF_A_JOB: &str = "a job has one live command at most";
const ONE_OF_A_FLOW: &str = "a sequential flow has one live command at most";
const NONE_OF_AN_ENDED_JOB: &str = "a job that has ended has no live command";
const STALE_WRITES_NOTHING: &str = "who is no longer current writes nothing";
const EVERY_JOB_ENDS: &str = "every job ends";
const RUN_AGAIN: &str = "a job is run again after its worker was lost";
const TOO_LATE: &str = "a shim is too late to start anything";

fn all_ended(state: &State) -> bool {
    state.rows.iter().all(|row| row.status.is_final())
}

fn right(workers: u8, jobs: u8, attempts: u8, crashes: u8) -> Protocol {
    Protocol { workers, jobs, attempts, crashes, broken: Broken::Nothing }
}

/// Checks all that must always hold, and that the space that was looked at has in it what could break it.
fn check(protocol: Protocol, seen: &'static str) {
    let what = format!("{protocol:?}");
    let checked = protocol.checker().threads(2).spawn_bfs().join();
    let found = checked.discoveries();
    for property in [ONE_OF_A_JOB, ONE_OF_A_FLOW, NONE_OF_AN_ENDED_JOB, STALE_WRITES_NOTHING, EVERY_JOB_ENDS] {
        assert!(!found.contains_key(property), "{what}: {property}: {}", checked.discovery(property).unwrap());
    }
    assert!(found.contains_key(seen), "{what}: in {} states nothing of: {seen}", checked.unique_state_count());
}

#[test]
fn two_workers_never_run_a_job_twice_nor_lose_one() {
    check(right(2, 1, 2, 0), RUN_AGAIN);
    check(right(2, 1, 1, 1), TOO_LATE);
}

#[test]
fn two_workers_never_run_two_jobs_of_a_sequential_flow_at_once() {
    check(right(2, 2, 1, 0), TOO_LATE);
}

#[test]
fn three_workers_never_run_a_job_twice_nor_lose_one() {
    check(right(3, 1, 2, 0), RUN_AGAIN);
}

/// `eventually` of stateright looks at paths that come to an end; here is the rest: from wherever they are, and however
/// often they go in circles, the jobs can still end.
#[test]
fn from_every_reachable_state_all_jobs_can_still_end() {
    let protocol = right(2, 1, 1, 2);
    let mut numbers: HashMap<State, usize> = HashMap::new();
    let mut states = protocol.init_states();
    let mut comes_from: Vec<Vec<usize>> = vec![Vec::new()];
    numbers.insert(states[0].clone(), 0);
    let mut looked_at = 0;
    while looked_at < states.len() {
        for next in protocol.next_states(&states[looked_at]) {
            let number = *numbers.entry(next).or_insert_with_key(|next| {
                states.push(next.clone());
                comes_from.push(Vec::new());
                states.len() - 1
            });
            comes_from[number].push(looked_at);
        }
        looked_at += 1;
    }
    let mut reached: Vec<bool> = states.iter().map(all_ended).collect();
    let mut to_visit: Vec<usize> = (0..states.len()).filter(|state| reached[*state]).collect();
    while let Some(state) = to_visit.pop() {
        for &before in &comes_from[state] {
            if !std::mem::replace(&mut reached[before], true) {
                to_visit.push(before);
            }
        }
    }
    assert!(states.len() > 1000, "{} states", states.len());
    if let Some(stuck) = reached.iter().position(|reached| !reached) {
        panic!("from here the jobs never end: {:#?}", states[stuck]);
    }
}

/// Finds the violation that a broken variant must show.
fn caught(broken: Broken, violated: &'static str) {
    let protocol = Protocol { broken, ..right(2, 1, 2, 0) };
    let checked = protocol.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checked.discoveries();
    assert!(found.contains_key(violated), "{broken:?} was not caught: {:?}", found.keys().collect::<Vec<_>>());
}

#[test]
fn a_taker_that_does_not_wait_for_the_grace_is_caught() {
    caught(Broken::NoGrace, ONE_OF_A_JOB);
}

#[test]
fn a_taker_that_does_not_wait_for_a_late_shim_is_caught() {
    caught(Broken::NoMargin, ONE_OF_A_JOB);
}

#[test]
fn a_lease_that_counts_from_the_answer_is_caught() {
    caught(Broken::LeaseFromAnswer, ONE_OF_A_JOB);
}

#[test]
fn a_lease_that_counts_from_the_launch_is_caught() {
    caught(Broken::LeaseFromLaunch, ONE_OF_A_JOB);
}

#[test]
fn an_end_that_is_written_by_who_is_no_longer_current_is_caught() {
    caught(Broken::UnconditionalSettle, STALE_WRITES_NOTHING);
}
