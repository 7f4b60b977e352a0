//! The series of a flow: there with zeroes from its first moment, and gone with it.

use super::Metrics;
use super::labels::RecoveryVerdict;
use crate::domain::run::Timeout;
use crate::domain::{FlowType, JobStatus, Outcome, Timestamp};

/// How a flow's queue stands in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Rows that wait, delayed ones included.
    pub pending: u64,
    /// Claimed rows.
    pub inqueue: u64,
    /// Running rows.
    pub progress: u64,
    /// Since when the row that has waited longest could have run; `None` where none waits.
    pub oldest: Option<Timestamp>,
    /// Whether it is paused.
    pub paused: bool,
}

impl Metrics {
    /// Makes a flow's series appear with zeroes, so that a rate over the first event is no gap.
    pub fn add_flow(&self, flow: &FlowType, concurrency: u32) {
        self.seen().flows.insert(flow.clone());
        let flow = flow.as_str();
        for status in JobStatus::ALL {
            self.transitions.with_label_values(&[flow, status.as_str()]);
            if !status.is_final() {
                self.jobs.with_label_values(&[flow, status.as_str()]);
            }
        }
        for outcome in Outcome::ALL {
            self.run_duration.with_label_values(&[flow, outcome.as_str()]);
        }
        for verdict in RecoveryVerdict::ALL {
            self.recovered_runs.with_label_values(&[flow, verdict.as_str()]);
        }
        for mode in ["user", "system"] {
            self.run_cpu.with_label_values(&[flow, mode]);
        }
        self.flow_concurrency.with_label_values(&[flow]).set(i64::from(concurrency));
        for direction in ["read", "write"] {
            self.run_io.with_label_values(&[flow, direction]);
        }
        for timeout in Timeout::ALL {
            self.run_timeouts.with_label_values(&[flow, timeout.as_str()]);
        }
        self.queue_wait.with_label_values(&[flow]);
        self.dispatch_latency.with_label_values(&[flow]);
        self.run_max_rss.with_label_values(&[flow]);
        self.heartbeats.with_label_values(&[flow]);
        self.heartbeat_timeouts.with_label_values(&[flow]);
        self.scheduler_ticks.with_label_values(&[flow]);
        self.launch_failures.with_label_values(&[flow]);
        self.flow_up.with_label_values(&[flow]);
        self.flow_paused.with_label_values(&[flow]);
    }

    /// Ends every series of a flow that is configured no longer and has no runs.
    pub fn remove_flow(&self, flow: &FlowType) {
        let mut seen = self.seen();
        seen.flows.remove(flow);
        seen.oldest_pending.remove(flow);
        let flow = flow.as_str();
        // That a series was not there is as good: every answer of a removal is let go.
        for status in JobStatus::ALL {
            let _ = self.transitions.remove_label_values(&[flow, status.as_str()]);
            let _ = self.jobs.remove_label_values(&[flow, status.as_str()]);
        }
        for outcome in Outcome::ALL {
            let _ = self.run_duration.remove_label_values(&[flow, outcome.as_str()]);
        }
        for verdict in RecoveryVerdict::ALL {
            let _ = self.recovered_runs.remove_label_values(&[flow, verdict.as_str()]);
        }
        for mode in ["user", "system"] {
            let _ = self.run_cpu.remove_label_values(&[flow, mode]);
        }
        for direction in ["read", "write"] {
            let _ = self.run_io.remove_label_values(&[flow, direction]);
        }
        for timeout in Timeout::ALL {
            let _ = self.run_timeouts.remove_label_values(&[flow, timeout.as_str()]);
        }
        for gauges in [&self.oldest_pending, &self.scheduler_last_tick, &self.longest_run, &self.run_timeout_used] {
            let _ = gauges.remove_label_values(&[flow]);
        }
        for gauges in [&self.runs_in_progress, &self.flow_up, &self.flow_paused, &self.flow_concurrency] {
            let _ = gauges.remove_label_values(&[flow]);
        }
        for histograms in [&self.queue_wait, &self.dispatch_latency, &self.run_max_rss] {
            let _ = histograms.remove_label_values(&[flow]);
        }
        for counters in [&self.heartbeats, &self.heartbeat_timeouts, &self.scheduler_ticks, &self.launch_failures] {
            let _ = counters.remove_label_values(&[flow]);
        }
    }

    /// A flow's actors run, or have failed and wait to be started again.
    pub fn flow_up(&self, flow: &FlowType, up: bool) {
        self.flow_up.with_label_values(&[flow.as_str()]).set(i64::from(up));
    }

    /// The store holds this many open jobs of a flow.
    pub fn backlog(&self, flow: &FlowType, backlog: Backlog) {
        let Backlog { pending, inqueue, progress, oldest, paused } = backlog;
        for (status, count) in
            [(JobStatus::Pending, pending), (JobStatus::InQueue, inqueue), (JobStatus::Progress, progress)]
        {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.jobs.with_label_values(&[flow.as_str(), status.as_str()]).set(count);
        }
        self.flow_paused.with_label_values(&[flow.as_str()]).set(i64::from(paused));
        let mut seen = self.seen();
        match oldest {
            Some(oldest) => seen.oldest_pending.insert(flow.clone(), oldest),
            None => seen.oldest_pending.remove(flow),
        };
    }
}
