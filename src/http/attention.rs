//! What needs somebody, in sentences: the page and `top` say the same.
//!
//! Nothing here reads anything: what was read comes in, what to say of it goes out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::words::{age, counted, thousands};
use crate::domain::labels::Labels;
use crate::domain::{JobId, Timestamp};
use crate::store::{EndedRow, History, Overview, Queue};

/// Due jobs of a flow in which nothing runs are waited for this long before somebody is told.
const NOTHING_CLAIMS: Duration = Duration::from_secs(60);
/// Failures are news for this long.
const RECENTLY: Duration = Duration::from_secs(3600);
/// How long a run may go unconfirmed whose type no flow has.
const UNCONFIRMED: Duration = Duration::from_secs(30);

/// What the configuration says about a flow, as far as it decides whether somebody is needed.
#[derive(Clone, Copy, Debug)]
pub struct FlowRules<'a> {
    /// The labels that a worker needs for it.
    pub requires: &'a Labels,
    /// How long a run may go unconfirmed.
    pub heartbeat_timeout: Duration,
}

/// How everything stands at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// What was read.
    pub overview: &'a Overview,
    /// `None` while the last day is being counted for the first time.
    pub history: Option<&'a History>,
    /// The flows of the configuration, by type; `None` where there is none, and so no type is unknown.
    pub flows: Option<&'a BTreeMap<&'a str, FlowRules<'a>>>,
    /// Makes a name, which anybody may have written, safe to stand in a sentence.
    pub name: fn(&str) -> String,
}

/// One thing that an operator should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The sentence, without a full stop.
    pub sentence: String,
    /// Where there is more about it.
    pub about: About,
}

/// What a [`Need`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// The workers.
    Workers,
    /// This job.
    Job(JobId),
    /// The waiting rows of this type.
    Waiting(String),
    /// This flow, whose waiting rows would go on if it were resumed.
    Paused(String),
    /// The last failures.
    Failures,
}

/// Why nothing takes the rows of a flow that are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck<'a> {
    /// No flow of the configuration has their type.
    NoFlow,
    /// It is paused.
    Paused,
    /// Workers live, and none of them has these labels, which it requires.
    NobodyFits(&'a Labels),
    /// Nothing of it runs although a row has been due since then.
    NothingRuns(Timestamp),
}

impl<'a> Situation<'a> {
    /// Everything that is stuck, missing or broken, the gravest first.
    #[must_use]
    pub fn needs(&self) -> Vec<Need> {
        let mut found = Vec::new();
        self.workers(&mut found);
        self.unconfirmed(&mut found);
        found.extend(self.overview.queues.iter().filter_map(|queue| self.queue(queue)));
        found.extend(self.failures());
        found
    }

    /// Why rows of this flow wait that are due; `None` where there is none, or they have only just come.
    #[must_use]
    pub fn stuck(&self, queue: &Queue) -> Option<Stuck<'a>> {
        if queue.waiting.at_least == 0 {
            return None;
        }
        let rules = self.flows.map(|flows| flows.get(queue.job_type.as_str()));
        if let Some(None) = rules {
            return Some(Stuck::NoFlow);
        }
        if queue.paused {
            return Some(Stuck::Paused);
        }
        if let Some(rules) =
            rules.flatten().filter(|rules| self.somebody_lives() && nobody_fits(self.overview, rules.requires))
        {
            return Some(Stuck::NobodyFits(rules.requires));
        }
        let since = queue.oldest_waiting.filter(|_| queue.open == 0)?;
        (self.overview.now.since(since) > NOTHING_CLAIMS).then_some(Stuck::NothingRuns(since))
    }

    /// Whether any worker is alive.
    #[must_use]
    pub fn somebody_lives(&self) -> bool {
        self.overview.workers.iter().any(|worker| worker.is_live(self.overview.now))
    }

    fn workers(&self, found: &mut Vec<Need>) {
        let (overview, now) = (self.overview, self.overview.now);
        for worker in overview.workers.iter().filter(|worker| worker.is_silent(now)) {
            let runs = overview.open.iter().filter(|row| row.worker_id.as_deref() == Some(&worker.worker_id)).count();
            let left = match runs {
                0 => String::new(),
                1 => "; 1 job of it is open".to_owned(),
                _ => format!("; {runs} jobs of it are open"),
            };
            let silence = age(worker.heartbeat_time, now);
            let name = (self.name)(&worker.worker_id);
            let sentence = format!("Worker {name} has shown no sign of life for {silence}{left}");
            found.push(Need { sentence, about: About::Workers });
        }
        if !self.somebody_lives() {
            let sentence = "No worker is alive, so nothing is started".to_owned();
            found.push(Need { sentence, about: About::Workers });
        }
    }

    fn unconfirmed(&self, found: &mut Vec<Need>) {
        let now = self.overview.now;
        for row in &self.overview.open {
            let rules = self.flows.and_then(|flows| flows.get(row.job_type.as_str()));
            let timeout = rules.map_or(UNCONFIRMED, |rules| rules.heartbeat_timeout);
            let confirmed = row.heartbeat_time.or(row.started_time).or(row.queued_time);
            if let Some(confirmed) = confirmed.filter(|confirmed| now.since(*confirmed) > timeout) {
                let sentence = format!("Job {} has not been confirmed for {}", row.id, age(confirmed, now));
                found.push(Need { sentence, about: About::Job(row.id) });
            }
        }
    }

    fn queue(&self, queue: &Queue) -> Option<Need> {
        let stuck = self.stuck(queue)?;
        let flow = (self.name)(&queue.job_type);
        let number = counted(queue.waiting.at_least, queue.waiting.or_more);
        let waiting = if number == "1" { "1 waits".to_owned() } else { format!("{number} wait") };
        let about = About::Waiting(queue.job_type.clone());
        Some(match stuck {
            Stuck::NoFlow => {
                Need { sentence: format!("{waiting} in {flow}, which no flow of this worker runs"), about }
            }
            Stuck::Paused => {
                let about = About::Paused(queue.job_type.clone());
                Need { sentence: format!("{flow} is paused, and {waiting}"), about }
            }
            Stuck::NobodyFits(requires) => {
                let sentence = format!("{waiting} in {flow}, and no living worker has what it requires: {requires}");
                Need { sentence, about }
            }
            Stuck::NothingRuns(since) => {
                let since = age(since, self.overview.now);
                Need { sentence: format!("{waiting} in {flow} since {since}, and nothing runs"), about }
            }
        })
    }

    fn failures(&self) -> Option<Need> {
        let (overview, now) = (self.overview, self.overview.now);
        let failed: Vec<&EndedRow> =
            overview.failures.iter().filter(|row| now.since(row.completed_time) <= RECENTLY).collect();
        let last = failed.first()?;
        // Only so many are read, and whether there were more is the history's to say.
        let counted =
            self.history.map(|history| history.ended(None, now, 60, 1).first().map_or(0, |ended| ended.failed));
        let many = counted.unwrap_or(0).max(failed.len() as u64);
        let jobs = if many == 1 { "1 job has".to_owned() } else { format!("{} jobs have", thousands(many)) };
        let sentence = format!("{jobs} failed in the last hour, the last one {} ago", age(last.completed_time, now));
        Some(Need { sentence, about: About::Failures })
    }
}

/// Whether no living worker has these labels.
#[must_use]
pub fn nobody_fits(overview: &Overview, requires: &Labels) -> bool {
    !overview.workers.iter().any(|worker| worker.is_live(overview.now) && worker.labels.satisfy(requires))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Attempt, JobStatus};
    use crate::store::{Count, OpenRow, WorkerRow};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_millis(seconds * 1000)
    }

    fn worker(name: &str, state: &str, heartbeat: i64) -> WorkerRow {
        WorkerRow {
            worker_id: name.to_owned(),
            incarnation: String::new(),
            hostname: String::new(),
            version: String::new(),
            state: state.to_owned(),
            started_time: at(0),
            heartbeat_time: at(heartbeat),
            drain_requested_time: None,
            drain_requested_by: None,
            labels: Labels::default(),
            address: None,
            runs: 0,
        }
    }

    fn open(id: i64, worker: &str, heartbeat: i64) -> OpenRow {
        OpenRow {
            id: JobId(id),
            job_type: "RENDER".to_owned(),
            identifier: "x".to_owned(),
            status: JobStatus::Progress,
            attempt: Attempt(1),
            worker_id: Some(worker.to_owned()),
            progress: None,
            status_message: None,
            queued_time: None,
            started_time: None,
            heartbeat_time: Some(at(heartbeat)),
            cancel_requested: false,
        }
    }

    fn failure(completed: i64) -> EndedRow {
        EndedRow {
            id: JobId(3),
            job_type: "RENDER".to_owned(),
            identifier: "x".to_owned(),
            status: JobStatus::Error,
            attempt: Attempt(1),
            started_time: None,
            completed_time: at(completed),
            execution_ms: None,
            error: None,
        }
    }

    fn queue(job_type: &str, waiting: u64, oldest: i64) -> Queue {
        Queue {
            job_type: job_type.to_owned(),
            waiting: Count { at_least: waiting, or_more: waiting == 1000 },
            oldest_waiting: (waiting > 0).then(|| at(oldest)),
            ..Queue::default()
        }
    }

    fn overview(workers: Vec<WorkerRow>, queues: Vec<Queue>) -> Overview {
        let (open, failures, ended, earlier) = Default::default();
        Overview { now: at(100_000), queues, open, failures, ended, earlier, workers }
    }

    /// With a flow RENDER that any worker can run, and MODEL, which takes one with a GPU.
    fn needs(overview: &Overview) -> Vec<Need> {
        let (none, mut gpu) = (Labels::default(), Labels::default());
        gpu.insert("gpu".parse().unwrap());
        let rules = |requires| FlowRules { requires, heartbeat_timeout: Duration::from_secs(20) };
        let flows = [("MODEL", rules(&gpu)), ("RENDER", rules(&none))].into();
        Situation { overview, history: None, flows: Some(&flows), name: str::to_lowercase }.needs()
    }

    fn sentences(overview: &Overview) -> Vec<String> {
        needs(overview).into_iter().map(|need| need.sentence).collect()
    }

    fn live() -> Vec<WorkerRow> {
        vec![worker("A", "ACTIVE", 99_990)]
    }

    #[test]
    fn nobody_is_needed_where_all_goes_on() {
        let busy = Queue { open: 1, ..queue("RENDER", 1000, 1) };
        let stopped = worker("GONE", "STOPPED", 1);
        let mut all = overview(vec![stopped, worker("A", "ACTIVE", 99_990)], vec![busy, queue("RENDER", 5, 99_950)]);
        all.open.push(open(1, "A", 99_990));
        all.failures.push(failure(90_000));
        assert_eq!(sentences(&all), Vec::<String>::new());
    }

    #[test]
    fn a_silent_worker_is_told_with_what_it_left_and_that_no_other_lives() {
        let mut all = overview(vec![worker("A", "ACTIVE", 92_800), worker("B", "ACTIVE", 99_960)], Vec::new());
        all.open = vec![open(1, "A", 99_990), open(2, "A", 99_990), open(3, "B", 99_900)];
        let expected = [
            "Worker a has shown no sign of life for 2h; 2 jobs of it are open",
            "Worker b has shown no sign of life for 40s; 1 job of it is open",
            "No worker is alive, so nothing is started",
            "Job 3 has not been confirmed for 1m",
        ];
        assert_eq!(sentences(&all), expected);
        assert_eq!(needs(&all).last().map(|need| need.about.clone()), Some(About::Job(JobId(3))));
    }

    #[test]
    fn waiting_rows_that_nothing_takes_are_told_with_the_reason() {
        let paused = Queue { paused: true, ..queue("RENDER", 1, 99_990) };
        let queues = vec![queue("MODEL", 1000, 99_990), queue("OLD", 2, 99_990), paused, queue("RENDER", 1, 96_400)];
        let found = needs(&overview(live(), queues));
        let sentences: Vec<_> = found.iter().map(|need| need.sentence.as_str()).collect();
        let expected = [
            "1000+ wait in model, and no living worker has what it requires: gpu",
            "2 wait in old, which no flow of this worker runs",
            "render is paused, and 1 waits",
            "1 waits in render since 1h, and nothing runs",
        ];
        assert_eq!(sentences, expected);
        let about: Vec<_> = found.into_iter().map(|need| need.about).collect();
        let waiting = |flow: &str| About::Waiting(flow.to_owned());
        assert_eq!(about, [waiting("MODEL"), waiting("OLD"), About::Paused("RENDER".to_owned()), waiting("RENDER")]);
    }

    #[test]
    fn no_type_is_unknown_where_there_is_no_configuration() {
        let all = overview(live(), vec![queue("OLD", 2, 99_990)]);
        let situation = Situation { overview: &all, history: None, flows: None, name: str::to_owned };
        assert_eq!(situation.needs(), []);
    }

    #[test]
    fn failures_are_news_for_an_hour() {
        let mut all = overview(live(), Vec::new());
        all.failures = vec![failure(99_700), failure(96_500), failure(96_000)];
        assert_eq!(sentences(&all), ["2 jobs have failed in the last hour, the last one 5m ago"]);
        all.failures.remove(1);
        assert_eq!(sentences(&all), ["1 job has failed in the last hour, the last one 5m ago"]);
    }
}
