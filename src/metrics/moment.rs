//! The gauges that change with time alone: told for the moment of the scrape, from what was seen before it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::Metrics;
use crate::domain::{FlowType, Timestamp};

/// A worker that has been silent for so long is gone, and its series ends; an alert had its time until then.
const WORKER_GONE: Duration = Duration::from_secs(3_600);
/// The most workers that get a series of their own, whatever stands in the table.
const MOST_WORKERS: usize = 200;

/// What the gauges that change with time are told from.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) flows: BTreeSet<FlowType>,
    pub(super) oldest_pending: BTreeMap<FlowType, Timestamp>,
    runs: HashMap<u64, SeenRun>,
    next_run: u64,
    workers: BTreeMap<String, Timestamp>,
    /// When the oldest event happened that a webhook has not taken; `None` where it has taken all.
    pub(super) webhooks: BTreeMap<String, Option<Timestamp>>,
}

#[derive(Debug)]
struct SeenRun {
    flow: FlowType,
    /// Since when its command runs, and how long it may.
    command: Option<(Timestamp, Duration)>,
}

impl Metrics {
    /// Sets the gauges that grow by themselves.
    pub(super) fn tell_time(&self, now: Timestamp) {
        let seen = self.seen();
        let mut flows: BTreeMap<&FlowType, (i64, Duration, f64)> =
            seen.flows.iter().map(|flow| (flow, (0, Duration::ZERO, 0.0))).collect();
        for run in seen.runs.values() {
            // A flow that is being removed has its series for as long as it has runs.
            let (count, longest, used) = flows.entry(&run.flow).or_default();
            *count += 1;
            if let Some((since, limit)) = run.command {
                let ran = now.since(since);
                *longest = ran.max(*longest);
                *used = (ran.as_secs_f64() / limit.as_secs_f64().max(0.001)).max(*used);
            }
        }
        for (flow, (count, longest, used)) in flows {
            let oldest = seen.oldest_pending.get(flow).map_or(Duration::ZERO, |oldest| now.since(*oldest));
            let flow = flow.as_str();
            self.runs_in_progress.with_label_values(&[flow]).set(count);
            self.longest_run.with_label_values(&[flow]).set(longest.as_secs_f64());
            self.run_timeout_used.with_label_values(&[flow]).set(used);
            self.oldest_pending.with_label_values(&[flow]).set(oldest.as_secs_f64());
        }
        for (worker, heartbeat) in &seen.workers {
            self.worker_silence.with_label_values(&[worker]).set(now.since(*heartbeat).as_secs_f64());
        }
        for (webhook, oldest) in &seen.webhooks {
            let age = oldest.map_or(Duration::ZERO, |oldest| now.since(oldest));
            self.webhook_oldest.with_label_values(&[webhook]).set(age.as_secs_f64());
        }
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The workers that have not stopped, with their last signs of life; the series of every other one ends.
    pub fn workers(&self, now: Timestamp, workers: impl IntoIterator<Item = (String, Timestamp)>) {
        let mut workers: Vec<_> =
            workers.into_iter().filter(|(_, heartbeat)| now.since(*heartbeat) < WORKER_GONE).collect();
        workers.sort_by_key(|(_, heartbeat)| std::cmp::Reverse(*heartbeat));
        workers.truncate(MOST_WORKERS);
        let workers: BTreeMap<_, _> = workers.into_iter().collect();
        let mut seen = self.seen();
        for gone in seen.workers.keys().filter(|worker| !workers.contains_key(*worker)) {
            let _ = self.worker_silence.remove_label_values(&[gone]);
        }
        seen.workers = workers;
    }

    /// This worker watches a run from here on, until what this answers is dropped.
    #[must_use]
    pub fn watch_run(self: &Arc<Self>, flow: &FlowType) -> WatchedRun {
        let mut seen = self.seen();
        let id = seen.next_run;
        seen.next_run += 1;
        seen.runs.insert(id, SeenRun { flow: flow.clone(), command: None });
        WatchedRun { metrics: Arc::clone(self), id }
    }
}

/// Counts a run among those in progress for as long as it lives, however its owner ends.
#[derive(Debug)]
pub struct WatchedRun {
    metrics: Arc<Metrics>,
    id: u64,
}

impl WatchedRun {
    /// Its command runs since then, and may run for so long.
    pub fn started(&self, since: Timestamp, limit: Duration) {
        if let Some(run) = self.metrics.seen().runs.get_mut(&self.id) {
            run.command = Some((since, limit));
        }
    }
}

impl Drop for WatchedRun {
    fn drop(&mut self) {
        self.metrics.seen().runs.remove(&self.id);
    }
}
