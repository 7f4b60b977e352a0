//! What the database says about every job, held against what the commands wrote themselves.

use std::collections::BTreeMap;
use std::fs;

use callsheet::domain::{JobId, JobStatus};
use callsheet::store::{JobFilter, JobRow};

use super::service::{Service, patiently};

/// How many of what was found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub jobs: usize,
    pub attempts: usize,
    pub completed: usize,
    pub error: usize,
    pub cancelled: usize,
    pub lost: usize,
    pub never_reached_a_command: usize,
}

impl Tally {
    #[allow(dead_code, reason = "of the chaos program only")]
    pub fn add(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.attempts += other.attempts;
        self.completed += other.completed;
        self.error += other.error;
        self.cancelled += other.cancelled;
        self.lost += other.lost;
        self.never_reached_a_command += other.never_reached_a_command;
    }
}

/// What a command's own lines say about one attempt.
#[derive(Clone, Debug, Default)]
struct Told {
    starts: usize,
    ends: Vec<i64>,
}

/// Every job, the oldest first.
pub async fn all_jobs(service: &Service) -> Vec<JobRow> {
    let (mut jobs, mut filter) = (Vec::new(), JobFilter { limit: 1000, ..Default::default() });
    loop {
        let page = patiently(async || service.store.list(&filter).await).await;
        jobs.extend(page.rows);
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            jobs.sort_by_key(|job| job.id);
            return jobs;
        }
    }
}

/// Everything that is not true; empty where all is well. `may_be_lost` says whether a run with this token had its shim
/// killed.
pub async fn untruths(service: &Service, may_be_lost: impl Fn(&str) -> bool) -> (Tally, Vec<String>) {
    let (told, mut wrong) = read_log(service);
    let mut tally = Tally::default();
    let mut recorded = Vec::new();
    for job in all_jobs(service).await {
        let id = job.id;
        tally.jobs += 1;
        match job.status {
            JobStatus::Completed => tally.completed += 1,
            JobStatus::Error => tally.error += 1,
            JobStatus::Cancelled => tally.cancelled += 1,
            open => wrong.push(format!("job {id} is still {open}")),
        }
        let runs = service.runs(id).await;
        for run in &runs {
            tally.attempts += 1;
            let key = (id.0, i64::from(run.attempt.0));
            recorded.push(key);
            let told = told.get(&key).cloned().unwrap_or_default();
            let outcome = run.outcome.as_deref().unwrap_or("none");
            let mut check = |truth: bool, what: &str| {
                if !truth {
                    wrong.push(format!("job {id} attempt {}: {outcome}, but {what}: {told:?}, {run:?}", run.attempt));
                }
            };
            tally.never_reached_a_command += usize::from(told.starts == 0);
            match outcome {
                "COMPLETED" => check(told.ends == [0] && run.exit_code == Some(0), "its command did not end with 0"),
                "FAILED" if run.signal.is_none() => {
                    check(told.ends.iter().map(|code| Some(*code)).eq([run.exit_code]), "its command did not end so");
                }
                // One that came to its end in the very moment in which it was to be ended has the exit code of that end.
                "FAILED" | "TIMED_OUT" => {
                    let ends = told.ends.iter().all(|code| Some(*code) == run.exit_code);
                    check(ends, "its command came to an end of its own");
                }
                "CANCELLED" => check(job.cancel_requested_time.is_some(), "nobody asked for it"),
                "SPAWN_FAILED" => check(told.starts == 0, "its command started"),
                "LOST" => {
                    tally.lost += 1;
                    check(may_be_lost(&run.run_token), "its shim was not killed");
                    check(run.exit_code.is_none(), "it has an exit code");
                }
                _ => check(false, "there is no such outcome"),
            }
        }
        wrong.extend(wrong_end(&job, runs.last().and_then(|run| run.outcome.as_deref())));
        let events = patiently(async || service.store.events(id).await).await;
        for pair in events.windows(2) {
            if pair[1].from_status.as_deref() != Some(pair[0].to_status.as_str()) {
                wrong.push(format!("job {id} has events that do not follow one another: {pair:?}"));
            }
        }
        if events.last().is_none_or(|last| last.to_status != job.status.as_str()) {
            wrong.push(format!("job {id} is {}, but its last event says {:?}", job.status, events.last()));
        }
    }
    for key in told.keys().filter(|key| !recorded.contains(key)) {
        wrong.push(format!("job {} attempt {} had a command, but has no run", key.0, key.1));
    }
    (tally, wrong)
}

fn wrong_end(job: &JobRow, last: Option<&str>) -> Option<String> {
    let right = match job.status {
        JobStatus::Completed => last == Some("COMPLETED") && job.exit_code == Some(0),
        JobStatus::Error => !matches!(last, Some("COMPLETED" | "CANCELLED")),
        JobStatus::Cancelled => job.cancel_requested_time.is_some() && last != Some("COMPLETED"),
        JobStatus::Pending | JobStatus::InQueue | JobStatus::Progress => true,
    };
    (!right).then(|| format!("job {} ended as {} after a run that was {last:?}: {job:?}", job.id, job.status))
}

/// The commands' own lines, and what is wrong with these by themselves.
fn read_log(service: &Service) -> (BTreeMap<(i64, i64), Told>, Vec<String>) {
    let text = fs::read_to_string(service.path("evidence/log")).unwrap_or_default();
    let (mut told, mut wrong) = (BTreeMap::<_, Told>::new(), Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (what, [job, attempt, _token]) = words.split_at(words.len() - 3) else { panic!("{line:?}") };
        let entry = told.entry((job.parse().unwrap(), attempt.parse().unwrap())).or_default();
        match what {
            ["start"] => entry.starts += 1,
            ["end", code] => entry.ends.push(code.parse().unwrap()),
            ["crowded"] => wrong.push(format!("job {job} attempt {attempt} began while too many others were alive")),
            _ => panic!("{line:?}"),
        }
    }
    for ((job, attempt), told) in &told {
        if told.starts != 1 || told.ends.len() > 1 {
            wrong.push(format!("job {job} attempt {attempt} was started {} times: {told:?}", told.starts));
        }
    }
    (told, wrong)
}

/// Whether all of these have ended.
pub async fn all_final(service: &Service, jobs: &[JobId]) -> bool {
    for job in jobs {
        if !service.job(*job).await.status.is_final() {
            return false;
        }
    }
    true
}
