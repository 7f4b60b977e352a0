//! Every metric's name, labels and meaning (CONTRACT §7), and the one place that names `prometheus`.
//!
//! Labels are bounded: flow types from the configuration, statuses, outcomes, actor roles. Never a job or a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::domain::run::Usage;
use crate::domain::{FlowType, JobStatus, Outcome, Timestamp};

/// From 10 ms to two days at readable edges: what a command may take.
const RUN_SECONDS: [f64; 16] = [
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 7_200.0, 14_400.0, 43_200.0, 86_400.0, 172_800.0,
];
/// From 1 ms to 10 s: what the service itself may take.
const SERVICE_SECONDS: [f64; 13] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// From 0.1 ms to 5 s: what a commit may take.
const COMMIT_SECONDS: [f64; 13] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
/// From 1 MiB to 256 GiB: what a command may hold in memory.
const MEMORY_BYTES: [f64; 10] = [
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
    4_294_967_296.0,
    17_179_869_184.0,
    68_719_476_736.0,
    274_877_906_944.0,
];
const BATCH_SIZES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 512.0];

/// The part of an actor's name that a label may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The supervisor of all.
    Root,
    /// The writer of statuses.
    Status,
    /// The settler of unowned runs.
    Recovery,
    /// The supervisor of one flow.
    Flow,
    /// The ticker of one flow.
    Scheduler,
    /// The claimer of one flow.
    Dispatcher,
    /// The supervisor of one flow's runs.
    JobSupervisor,
    /// The owner of one run.
    Job,
    /// The confirmer of one run.
    Heartbeat,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 9] = [
        Self::Root,
        Self::Status,
        Self::Recovery,
        Self::Flow,
        Self::Scheduler,
        Self::Dispatcher,
        Self::JobSupervisor,
        Self::Job,
        Self::Heartbeat,
    ];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Status => "status",
            Self::Recovery => "recovery",
            Self::Flow => "flow",
            Self::Scheduler => "scheduler",
            Self::Dispatcher => "dispatcher",
            Self::JobSupervisor => "job_supervisor",
            Self::Job => "job",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// What recovery found out about an open row that nobody owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryVerdict {
    /// Its command lives, and is watched again.
    Reattached,
    /// Its command ended meanwhile, and left its verdict.
    FinishedWhileAway,
    /// Its command was certainly never started.
    NeverStarted,
    /// Its command was started and nobody knows how it ended.
    Lost,
}

impl RecoveryVerdict {
    /// Every verdict.
    pub const ALL: [Self; 4] = [Self::Reattached, Self::FinishedWhileAway, Self::NeverStarted, Self::Lost];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reattached => "reattached",
            Self::FinishedWhileAway => "finished_while_away",
            Self::NeverStarted => "never_started",
            Self::Lost => "lost",
        }
    }
}

/// Every metric of the service.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    transitions: IntCounterVec,
    jobs: IntGaugeVec,
    oldest_pending: GaugeVec,
    queue_wait: HistogramVec,
    run_duration: HistogramVec,
    runs_in_progress: IntGaugeVec,
    dispatch_latency: HistogramVec,
    run_cpu: CounterVec,
    run_max_rss: HistogramVec,
    heartbeats: IntCounterVec,
    heartbeat_timeouts: IntCounterVec,
    recovered_runs: IntCounterVec,
    scheduler_ticks: IntCounterVec,
    scheduler_last_tick: GaugeVec,
    actor_restarts: IntCounterVec,
    mailbox_depth: IntGaugeVec,
    store_write: Histogram,
    store_batch: Histogram,
    store_errors: IntCounterVec,
}

/// Why the metrics could not be made or shown: two of one name, or a name that Prometheus does not take.
#[derive(Debug, thiserror::Error)]
#[error("the metrics can't be registered or encoded")]
pub struct Error(#[from] prometheus::Error);

impl Metrics {
    /// A registry of its own with every metric in it.
    ///
    /// # Errors
    /// Where a name is not valid or taken twice, which a test excludes.
    pub fn new(version: &str) -> Result<Self, Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let metric = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let int_gauge = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let plain_histogram = |name: &str, help: &str, buckets: &[f64]| {
            let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let run_cpu = CounterVec::new(
            Opts::new("callsheet_run_cpu_seconds_total", "CPU seconds that ended runs used, by mode: user or system."),
            &["type", "mode"],
        )?;
        registry.register(Box::new(run_cpu.clone()))?;
        let build_info = Gauge::with_opts(
            Opts::new("callsheet_build_info", "Always 1; the label holds the version.").const_label("version", version),
        )?;
        build_info.set(1.0);
        registry.register(Box::new(build_info))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let metrics = Self {
            transitions: counter(
                "callsheet_job_transitions_total",
                "Status changes of jobs that this worker wrote, by the status changed to.",
                &["type", "to"],
            )?,
            jobs: int_gauge("callsheet_jobs", "Jobs that have not ended, by status.", &["type", "status"])?,
            oldest_pending: gauge(
                "callsheet_oldest_pending_seconds",
                "How long the oldest job that could run has been waiting; 0 where none waits.",
                &["type"],
            )?,
            queue_wait: histogram(
                "callsheet_queue_wait_seconds",
                "From the moment a job could run to the start of its command.",
                &["type"],
                &RUN_SECONDS,
            )?,
            run_duration: histogram(
                "callsheet_run_duration_seconds",
                "How long a command ran, by outcome of the run.",
                &["type", "outcome"],
                &RUN_SECONDS,
            )?,
            runs_in_progress: int_gauge("callsheet_runs_in_progress", "Runs that this worker watches now.", &["type"])?,
            dispatch_latency: histogram(
                "callsheet_dispatch_latency_seconds",
                "From noticing that there may be work to the exec of the command that came of it.",
                &["type"],
                &SERVICE_SECONDS,
            )?,
            run_cpu,
            run_max_rss: histogram(
                "callsheet_run_max_rss_bytes",
                "Largest resident set of any process of a run.",
                &["type"],
                &MEMORY_BYTES,
            )?,
            heartbeats: counter(
                "callsheet_heartbeats_total",
                "Confirmations of runs that reached the store.",
                &["type"],
            )?,
            heartbeat_timeouts: counter(
                "callsheet_heartbeat_timeouts_total",
                "Times that a run went unconfirmed for longer than its heartbeat_timeout.",
                &["type"],
            )?,
            recovered_runs: counter(
                "callsheet_recovered_runs_total",
                "Open runs without an owner that were settled, by what was found.",
                &["type", "verdict"],
            )?,
            scheduler_ticks: counter("callsheet_scheduler_ticks_total", "Ticks of a flow's schedule.", &["type"])?,
            scheduler_last_tick: gauge(
                "callsheet_scheduler_last_tick_timestamp_seconds",
                "When a flow's scheduler last looked at its schedule, in seconds since the Unix epoch.",
                &["type"],
            )?,
            actor_restarts: counter(
                "callsheet_actor_restarts_total",
                "Actors restarted by their supervisors.",
                &["actor"],
            )?,
            mailbox_depth: int_gauge(
                "callsheet_mailbox_depth",
                "Messages that wait in an actor's mailbox.",
                &["actor"],
            )?,
            store_write: plain_histogram(
                "callsheet_store_write_seconds",
                "How long one transaction of status writes took.",
                &COMMIT_SECONDS,
            )?,
            store_batch: plain_histogram(
                "callsheet_store_batch_size",
                "Writes that shared one transaction.",
                &BATCH_SIZES,
            )?,
            store_errors: counter(
                "callsheet_store_errors_total",
                "Transactions that failed, by kind of failure.",
                &["kind"],
            )?,
            registry,
        };
        for role in Role::ALL {
            metrics.actor_restarts.with_label_values(&[role.as_str()]);
        }
        Ok(metrics)
    }

    /// The text that Prometheus scrapes, in format 0.0.4.
    ///
    /// # Errors
    /// Where a metric can't be encoded.
    pub fn encode(&self) -> Result<String, Error> {
        Ok(TextEncoder::new().encode_to_string(&self.registry.gather())?)
    }

    /// Makes a flow's series appear with zeroes, so that a rate over the first event is no gap.
    pub fn add_flow(&self, flow: &FlowType) {
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
        self.oldest_pending.with_label_values(&[flow]);
        self.queue_wait.with_label_values(&[flow]);
        self.runs_in_progress.with_label_values(&[flow]);
        self.dispatch_latency.with_label_values(&[flow]);
        self.run_max_rss.with_label_values(&[flow]);
        self.heartbeats.with_label_values(&[flow]);
        self.heartbeat_timeouts.with_label_values(&[flow]);
        self.scheduler_ticks.with_label_values(&[flow]);
        self.scheduler_last_tick.with_label_values(&[flow]);
    }

    /// A job's status was changed to `to`.
    pub fn transition(&self, flow: &FlowType, to: JobStatus) {
        self.transitions.with_label_values(&[flow.as_str(), to.as_str()]).inc();
    }

    /// The store holds this many open jobs of a flow, of which the oldest runnable one has waited this long.
    pub fn backlog(&self, flow: &FlowType, counts: [(JobStatus, i64); 3], oldest: Duration) {
        for (status, count) in counts {
            self.jobs.with_label_values(&[flow.as_str(), status.as_str()]).set(count);
        }
        self.oldest_pending.with_label_values(&[flow.as_str()]).set(oldest.as_secs_f64());
    }

    /// A command started, this long after its job could have run.
    pub fn run_started(&self, flow: &FlowType, queue_wait: Duration) {
        self.queue_wait.with_label_values(&[flow.as_str()]).observe(queue_wait.as_secs_f64());
    }

    /// A command started, this long after the dispatcher had noticed that there may be work.
    pub fn dispatched(&self, flow: &FlowType, latency: Duration) {
        self.dispatch_latency.with_label_values(&[flow.as_str()]).observe(latency.as_secs_f64());
    }

    /// A run ended.
    pub fn run_ended(&self, flow: &FlowType, outcome: Outcome, ran: Duration, usage: Option<Usage>) {
        self.run_duration.with_label_values(&[flow.as_str(), outcome.as_str()]).observe(ran.as_secs_f64());
        if let Some(usage) = usage {
            self.run_cpu.with_label_values(&[flow.as_str(), "user"]).inc_by(usage.user_cpu.as_secs_f64());
            self.run_cpu.with_label_values(&[flow.as_str(), "system"]).inc_by(usage.system_cpu.as_secs_f64());
            #[expect(clippy::cast_precision_loss, reason = "a histogram's bucket does not need the last bits")]
            self.run_max_rss.with_label_values(&[flow.as_str()]).observe(usage.max_rss_bytes as f64);
        }
    }

    /// The gauge of runs that this worker watches now.
    pub fn runs_in_progress(&self, flow: &FlowType, change: i64) {
        self.runs_in_progress.with_label_values(&[flow.as_str()]).add(change);
    }

    /// A run was confirmed in the store.
    pub fn heartbeat(&self, flow: &FlowType) {
        self.heartbeats.with_label_values(&[flow.as_str()]).inc();
    }

    /// A run went unconfirmed for longer than its `heartbeat_timeout`.
    pub fn heartbeat_timeout(&self, flow: &FlowType) {
        self.heartbeat_timeouts.with_label_values(&[flow.as_str()]).inc();
    }

    /// An open run without an owner was settled.
    pub fn recovered(&self, flow: &FlowType, verdict: RecoveryVerdict) {
        self.recovered_runs.with_label_values(&[flow.as_str(), verdict.as_str()]).inc();
    }

    /// A scheduler looked at its schedule, and found it due or not.
    pub fn scheduler_tick(&self, flow: &FlowType, now: Timestamp, due: bool) {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit a double's 53 bits")]
        self.scheduler_last_tick.with_label_values(&[flow.as_str()]).set(now.unix_millis() as f64 / 1_000.0);
        if due {
            self.scheduler_ticks.with_label_values(&[flow.as_str()]).inc();
        }
    }

    /// A supervisor started an actor again.
    pub fn actor_restarted(&self, role: Role) {
        self.actor_restarts.with_label_values(&[role.as_str()]).inc();
    }

    /// The gauge of messages that wait for an actor of this role.
    #[must_use]
    pub fn mailbox(&self, role: Role) -> MailboxGauge {
        let gauge = self.mailbox_depth.with_label_values(&[role.as_str()]);
        MailboxGauge(Arc::new(Mailbox { gauge, depth: AtomicI64::new(0) }))
    }

    /// One transaction of status writes took this long for so many writes.
    pub fn store_written(&self, took: Duration, writes: usize) {
        self.store_write.observe(took.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a batch holds some hundreds of writes")]
        self.store_batch.observe(writes as f64);
    }

    /// How many transactions of status writes there were.
    #[cfg(test)]
    pub fn store_batches(&self) -> u64 {
        self.store_batch.get_sample_count()
    }

    /// A transaction failed.
    pub fn store_failed(&self, kind: &'static str) {
        self.store_errors.with_label_values(&[kind]).inc();
    }
}

/// Counts the messages in one incarnation's mailbox, in a gauge that it shares with all actors of its role.
#[derive(Clone, Debug)]
pub struct MailboxGauge(Arc<Mailbox>);

#[derive(Debug)]
struct Mailbox {
    gauge: IntGauge,
    depth: AtomicI64,
}

impl MailboxGauge {
    /// A message was put in.
    pub fn entered(&self) {
        self.0.gauge.inc();
        self.0.depth.fetch_add(1, Ordering::Relaxed);
    }

    /// A message was taken out.
    pub fn left(&self) {
        self.0.gauge.dec();
        self.0.depth.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // What an actor left unread when it died waits for nobody any more.
        self.gauge.sub(self.depth.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_contract_is_there_from_the_start() {
        let metrics = Metrics::new("1.2.3").unwrap();
        metrics.add_flow(&"FLOW".parse().unwrap());
        metrics.mailbox(Role::Status).entered();
        metrics.store_failed("unavailable");
        let text = metrics.encode().unwrap();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter(|line| line.starts_with("callsheet_"))
            .collect();
        insta::assert_snapshot!(names.join("\n"), @r"
        callsheet_actor_restarts_total counter
        callsheet_build_info gauge
        callsheet_dispatch_latency_seconds histogram
        callsheet_heartbeat_timeouts_total counter
        callsheet_heartbeats_total counter
        callsheet_job_transitions_total counter
        callsheet_jobs gauge
        callsheet_mailbox_depth gauge
        callsheet_oldest_pending_seconds gauge
        callsheet_queue_wait_seconds histogram
        callsheet_recovered_runs_total counter
        callsheet_run_cpu_seconds_total counter
        callsheet_run_duration_seconds histogram
        callsheet_run_max_rss_bytes histogram
        callsheet_runs_in_progress gauge
        callsheet_scheduler_last_tick_timestamp_seconds gauge
        callsheet_scheduler_ticks_total counter
        callsheet_store_batch_size histogram
        callsheet_store_errors_total counter
        callsheet_store_write_seconds histogram
        ");
        #[cfg(target_os = "linux")]
        assert!(text.contains("process_resident_memory_bytes"));
        assert!(text.contains(r#"callsheet_build_info{version="1.2.3"} 1"#));
    }
}
