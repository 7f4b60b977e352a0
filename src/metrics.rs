//! Every metric's name, labels and meaning (CONTRACT §7), and the one place that names `prometheus`.
//!
//! Labels are bounded: flow types from the configuration, statuses, outcomes, actor roles, workers that live. Never a job
//! or a run. A scrape reads memory only: what the database and the disk say is kept here by tasks that look now and then,
//! and what grows with time (the age of the oldest waiting job) is told for the moment of the scrape.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::domain::run::{Timeout, Usage};
use crate::domain::{FlowType, JobStatus, Outcome, Timestamp, WorkerId};
use crate::store;

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
/// A worker that has been silent for so long is gone, and its series ends; an alert had its time until then.
const WORKER_GONE: Duration = Duration::from_secs(3_600);
/// The most workers that get a series of their own, whatever stands in the table.
const MOST_WORKERS: usize = 200;

/// The part of an actor's name that a label may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The supervisor of all.
    Root,
    /// The writer of statuses.
    Status,
    /// The settler of unowned runs.
    Recovery,
    /// The keeper of run directories.
    Retention,
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
    pub const ALL: [Self; 10] = [
        Self::Root,
        Self::Status,
        Self::Recovery,
        Self::Retention,
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
            Self::Retention => "retention",
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
    run_io: IntCounterVec,
    run_timeouts: IntCounterVec,
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
    launch_failures: IntCounterVec,
    flow_up: IntGaugeVec,
    flow_paused: IntGaugeVec,
    flow_concurrency: IntGaugeVec,
    longest_run: GaugeVec,
    run_timeout_used: GaugeVec,
    unserved_jobs: IntGauge,
    backlog_read: Gauge,
    store_up: IntGauge,
    worker_info: IntGaugeVec,
    worker_silence: GaugeVec,
    disk_free: Gauge,
    disk_size: Gauge,
    last_reload: IntGauge,
    trace_spans: IntCounterVec,
    webhook_deliveries: IntCounterVec,
    seen: Mutex<Seen>,
}

/// What the gauges that change with time are told from.
#[derive(Debug, Default)]
struct Seen {
    flows: BTreeSet<FlowType>,
    oldest_pending: BTreeMap<FlowType, Timestamp>,
    runs: HashMap<u64, SeenRun>,
    next_run: u64,
    workers: BTreeMap<String, Timestamp>,
}

#[derive(Debug)]
struct SeenRun {
    flow: FlowType,
    /// Since when its command runs, and how long it may.
    command: Option<(Timestamp, Duration)>,
}

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
        let plain_gauge = |name: &str, help: &str| {
            let metric = Gauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let plain_int_gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let run_cpu = CounterVec::new(
            Opts::new(
                "callsheet_run_cpu_seconds_total",
                "CPU time that ended runs used, in seconds, by mode: user or system; retries count too.",
            ),
            &["type", "mode"],
        )?;
        registry.register(Box::new(run_cpu.clone()))?;
        let build_info = Gauge::with_opts(
            Opts::new("callsheet_build_info", "Always 1; the label holds the version of the running service.")
                .const_label("version", version),
        )?;
        build_info.set(1.0);
        registry.register(Box::new(build_info))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let metrics = Self {
            transitions: counter(
                "callsheet_job_transitions_total",
                "Status changes of jobs that this worker wrote, by the status changed to; a retry is one to PENDING.",
                &["type", "to"],
            )?,
            jobs: int_gauge(
                "callsheet_jobs",
                "Jobs in the database that have not ended, by status, of all workers; read at most every half second and at least every 15 s.",
                &["type", "status"],
            )?,
            oldest_pending: gauge(
                "callsheet_oldest_pending_seconds",
                "How long the oldest job that could run has been waiting, in seconds at the moment of the scrape; 0 where none waits.",
                &["type"],
            )?,
            queue_wait: histogram(
                "callsheet_queue_wait_seconds",
                "From the moment a job could run (its run_at) to the start of its command, in seconds; an observation an attempt.",
                &["type"],
                &RUN_SECONDS,
            )?,
            run_duration: histogram(
                "callsheet_run_duration_seconds",
                "How long a command ran, in seconds, by outcome of the run; an observation an attempt, 0 where it could not be started.",
                &["type", "outcome"],
                &RUN_SECONDS,
            )?,
            runs_in_progress: int_gauge(
                "callsheet_runs_in_progress",
                "Runs that this worker watches now: launching, running or being settled.",
                &["type"],
            )?,
            dispatch_latency: histogram(
                "callsheet_dispatch_latency_seconds",
                "From noticing that there may be work to the exec of the command that came of it, in seconds.",
                &["type"],
                &SERVICE_SECONDS,
            )?,
            run_cpu,
            run_timeouts: counter(
                "callsheet_run_timeouts_total",
                "Runs that were ended by the clock, by what ran out: start_to_close, schedule_to_close, watchdog or silence.",
                &["type", "cause"],
            )?,
            run_io: counter(
                "callsheet_run_io_bytes_total",
                "Bytes that ended runs had read from and written to storage, by direction: read or write.",
                &["type", "direction"],
            )?,
            run_max_rss: histogram(
                "callsheet_run_max_rss_bytes",
                "The most memory that the processes of an ended run held at a time, in bytes.",
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
                "Times that a run went unconfirmed in the store for longer than its heartbeat_timeout; its command runs on.",
                &["type"],
            )?,
            recovered_runs: counter(
                "callsheet_recovered_runs_total",
                "Open runs without an owner that were looked into, by what was found: reattached, finished_while_away, never_started or lost.",
                &["type", "verdict"],
            )?,
            scheduler_ticks: counter(
                "callsheet_scheduler_ticks_total",
                "Times that a flow's schedule was due and the scheduler woke the dispatcher.",
                &["type"],
            )?,
            scheduler_last_tick: gauge(
                "callsheet_scheduler_last_tick_timestamp_seconds",
                "When a flow's scheduler last looked at its schedule, in seconds since the Unix epoch.",
                &["type"],
            )?,
            actor_restarts: counter(
                "callsheet_actor_restarts_total",
                "Actors that failed and were started again, by role.",
                &["actor"],
            )?,
            mailbox_depth: int_gauge(
                "callsheet_mailbox_depth",
                "Messages that wait in the mailboxes of the actors of a role.",
                &["actor"],
            )?,
            store_write: plain_histogram(
                "callsheet_store_write_seconds",
                "How long one committed transaction of status writes took, in seconds.",
                &COMMIT_SECONDS,
            )?,
            store_batch: plain_histogram(
                "callsheet_store_batch_size",
                "Status writes that shared one committed transaction.",
                &BATCH_SIZES,
            )?,
            store_errors: counter(
                "callsheet_store_errors_total",
                "Transactions of status writes that failed and are tried again, by kind of failure.",
                &["kind"],
            )?,
            launch_failures: counter(
                "callsheet_launch_failures_total",
                "Commands that could not be launched for reasons of this service or its machine (a full disk, no more processes), and are tried again.",
                &["type"],
            )?,
            flow_up: int_gauge(
                "callsheet_flow_up",
                "1 while a flow's actors run, 0 while the flow has failed and waits to be started again.",
                &["type"],
            )?,
            flow_paused: int_gauge(
                "callsheet_flow_paused",
                "1 while a flow is paused and nothing of it is claimed.",
                &["type"],
            )?,
            flow_concurrency: int_gauge(
                "callsheet_flow_concurrency",
                "How many runs of a flow there may be at once over all workers, from the configuration.",
                &["type"],
            )?,
            longest_run: gauge(
                "callsheet_longest_run_seconds",
                "How long the command that runs for the longest time has been running, in seconds at the moment of the scrape; 0 where none runs.",
                &["type"],
            )?,
            run_timeout_used: gauge(
                "callsheet_run_timeout_used_ratio",
                "The largest part of its time limit that a running command has used, 0 to 1, at the moment of the scrape; 0 where none runs.",
                &["type"],
            )?,
            unserved_jobs: plain_int_gauge(
                "callsheet_unserved_jobs",
                "Jobs that have not ended and whose type no flow of this worker has.",
            )?,
            backlog_read: plain_gauge(
                "callsheet_backlog_read_timestamp_seconds",
                "When the gauges of the backlog were last read from the database, in seconds since the Unix epoch.",
            )?,
            store_up: plain_int_gauge(
                "callsheet_store_up",
                "1 where the last use of the database succeeded, 0 where it failed; an idle service uses it every 10 s.",
            )?,
            worker_info: int_gauge(
                "callsheet_worker_info",
                "Always 1; the labels say which worker this is and on which host.",
                &["worker_id", "hostname"],
            )?,
            worker_silence: gauge(
                "callsheet_worker_silence_seconds",
                "How long ago a worker that has not stopped last showed a sign of life, in seconds at the moment of the scrape, for every worker of the database; the series ends an hour after the last one.",
                &["worker_id"],
            )?,
            disk_free: plain_gauge(
                "callsheet_runs_disk_free_bytes",
                "Space that this service may still use on the file system of the run directories, in bytes.",
            )?,
            disk_size: plain_gauge(
                "callsheet_runs_disk_size_bytes",
                "Size of the file system of the run directories, in bytes.",
            )?,
            last_reload: plain_int_gauge(
                "callsheet_config_last_reload_successful",
                "1 where the configuration was taken when it was read last, 0 where it was refused and the one before stays.",
            )?,
            trace_spans: counter(
                "callsheet_trace_spans_total",
                "Spans of traces, by what became of them: exported to the collector, or dropped because it did not take them.",
                &["result"],
            )?,
            webhook_deliveries: counter(
                "callsheet_webhook_deliveries_total",
                "Requests to a webhook, by what came of them: delivered, to be retried, or failed, which is given up after a day.",
                &["webhook", "result"],
            )?,
            seen: Mutex::default(),
            registry,
        };
        metrics.last_reload.set(1);
        for result in ["exported", "dropped"] {
            metrics.trace_spans.with_label_values(&[result]);
        }
        for role in Role::ALL {
            metrics.actor_restarts.with_label_values(&[role.as_str()]);
        }
        for kind in store::Error::KINDS {
            metrics.store_errors.with_label_values(&[kind]);
        }
        Ok(metrics)
    }

    /// The text that Prometheus scrapes, in format 0.0.4. Waits for nothing: neither the database nor the disk is asked.
    ///
    /// # Errors
    /// Where a metric can't be encoded.
    pub fn encode(&self) -> Result<String, Error> {
        self.encode_at(crate::clock::now())
    }

    fn encode_at(&self, now: Timestamp) -> Result<String, Error> {
        self.tell_time(now);
        Ok(TextEncoder::new().encode_to_string(&self.registry.gather())?)
    }

    /// Sets the gauges that grow by themselves.
    fn tell_time(&self, now: Timestamp) {
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
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

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

    /// The backlog of every flow has been read, and of types that no flow has there are this many open jobs.
    pub fn backlog_read(&self, now: Timestamp, unserved: u64) {
        self.backlog_read.set(seconds_since_epoch(now));
        self.unserved_jobs.set(i64::try_from(unserved).unwrap_or(i64::MAX));
    }

    /// Which worker this is.
    pub fn this_worker(&self, worker: &WorkerId, hostname: &str) {
        self.worker_info.with_label_values(&[worker.as_str(), hostname]).set(1);
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

    /// The database could be used, or not.
    pub fn store_up(&self, up: bool) {
        self.store_up.set(i64::from(up));
    }

    /// The file system of the run directories has this many bytes, and so many of them free.
    pub fn disk(&self, size: u64, free: u64) {
        #[expect(clippy::cast_precision_loss, reason = "nobody needs a disk's last bytes")]
        let (size, free) = (size as f64, free as f64);
        self.disk_size.set(size);
        self.disk_free.set(free);
    }

    /// The configuration was read again, and taken or refused.
    pub fn reloaded(&self, taken: bool) {
        self.last_reload.set(i64::from(taken));
    }

    /// A job's status was changed to `to`.
    pub fn transition(&self, flow: &FlowType, to: JobStatus) {
        self.transitions.with_label_values(&[flow.as_str(), to.as_str()]).inc();
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
            for (direction, bytes) in [("read", usage.io_read_bytes), ("write", usage.io_write_bytes)] {
                self.run_io.with_label_values(&[flow.as_str(), direction]).inc_by(bytes.unwrap_or(0));
            }
        }
    }

    /// A run was ended by the clock.
    pub fn run_timed_out(&self, flow: &FlowType, timeout: Timeout) {
        self.run_timeouts.with_label_values(&[flow.as_str(), timeout.as_str()]).inc();
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

    /// A command could not be launched, for a reason that is not its own.
    pub fn launch_failed(&self, flow: &FlowType) {
        self.launch_failures.with_label_values(&[flow.as_str()]).inc();
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
        self.scheduler_last_tick.with_label_values(&[flow.as_str()]).set(seconds_since_epoch(now));
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

    /// So many spans reached the collector.
    pub fn spans_exported(&self, count: usize) {
        self.trace_spans.with_label_values(&["exported"]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// A request to a webhook came to this: `delivered`, `retried` or `failed`.
    pub fn webhook_sent(&self, webhook: &str, result: &'static str) {
        self.webhook_deliveries.with_label_values(&[webhook, result]).inc();
    }

    /// So many spans never will.
    pub fn spans_dropped(&self, count: usize) {
        self.trace_spans.with_label_values(&["dropped"]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
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

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit a double's 53 bits")]
fn seconds_since_epoch(time: Timestamp) -> f64 {
    time.unix_millis() as f64 / 1_000.0
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

    /// How many messages are in it.
    #[must_use]
    pub fn depth(&self) -> u64 {
        u64::try_from(self.0.depth.load(Ordering::Relaxed)).unwrap_or(0)
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

    const fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_millis(seconds * 1_000)
    }

    /// The value of the one series that this line names.
    fn value(metrics: &Metrics, now: i64, series: &str) -> Option<f64> {
        let text = metrics.encode_at(at(now)).unwrap();
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn what_grows_with_time_is_told_for_the_moment_of_the_scrape() {
        let metrics = Arc::new(Metrics::new("1.2.3").unwrap());
        let flow: FlowType = "FLOW".parse().unwrap();
        metrics.add_flow(&flow, 2);
        metrics.backlog(&flow, Backlog { pending: 3, oldest: Some(at(100)), ..Backlog::default() });
        assert_eq!(value(&metrics, 160, r#"callsheet_oldest_pending_seconds{type="FLOW"}"#), Some(60.0));
        let (first, second) = (metrics.watch_run(&flow), metrics.watch_run(&flow));
        first.started(at(100), Duration::from_secs(1_000));
        second.started(at(150), Duration::from_secs(20));
        assert_eq!(value(&metrics, 160, r#"callsheet_runs_in_progress{type="FLOW"}"#), Some(2.0));
        assert_eq!(value(&metrics, 160, r#"callsheet_longest_run_seconds{type="FLOW"}"#), Some(60.0));
        assert_eq!(value(&metrics, 160, r#"callsheet_run_timeout_used_ratio{type="FLOW"}"#), Some(0.5));
        drop(second);
        assert_eq!(value(&metrics, 160, r#"callsheet_run_timeout_used_ratio{type="FLOW"}"#), Some(0.06));
        drop(first);
        metrics.backlog(&flow, Backlog::default());
        for gauge in ["runs_in_progress", "longest_run_seconds", "run_timeout_used_ratio", "oldest_pending_seconds"] {
            assert_eq!(value(&metrics, 160, &format!(r#"callsheet_{gauge}{{type="FLOW"}}"#)), Some(0.0), "{gauge}");
        }
    }

    #[test]
    fn the_series_of_a_removed_flow_end_and_no_other() {
        let metrics = Arc::new(Metrics::new("1.2.3").unwrap());
        let (gone, kept): (FlowType, FlowType) = ("GONE".parse().unwrap(), "KEPT".parse().unwrap());
        for flow in [&gone, &kept] {
            metrics.add_flow(flow, 1);
            metrics.scheduler_tick(flow, at(1), true);
            metrics.backlog(flow, Backlog { oldest: Some(at(1)), ..Backlog::default() });
            metrics.run_ended(flow, Outcome::Failed, Duration::from_secs(1), Some(Usage::default()));
        }
        let series =
            |text: &str, flow: &str| text.lines().filter(|line| line.contains(&format!("type=\"{flow}\""))).count();
        let before = metrics.encode().unwrap();
        assert_eq!(series(&before, "GONE"), series(&before, "KEPT"));
        metrics.remove_flow(&gone);
        let after = metrics.encode().unwrap();
        assert_eq!(series(&after, "GONE"), 0, "{after}");
        assert_eq!(series(&after, "KEPT"), series(&before, "KEPT"));
    }

    #[test]
    fn the_series_of_a_worker_ends_when_it_stops_or_has_long_been_silent() {
        let metrics = Metrics::new("1.2.3").unwrap();
        let silence =
            |now, worker| value(&metrics, now, &format!(r#"callsheet_worker_silence_seconds{{worker_id="{worker}"}}"#));
        metrics.workers(at(100), [("a".to_owned(), at(90)), ("b".to_owned(), at(95)), ("old".to_owned(), at(-3_600))]);
        assert_eq!((silence(100, "a"), silence(100, "b"), silence(100, "old")), (Some(10.0), Some(5.0), None));
        metrics.workers(at(3_692), [("a".to_owned(), at(90)), ("c".to_owned(), at(3_690))]);
        assert_eq!((silence(3_692, "a"), silence(3_692, "b"), silence(3_692, "c")), (None, None, Some(2.0)));
    }

    #[test]
    fn every_metric_of_the_contract_is_there_from_the_start() {
        let metrics = Metrics::new("1.2.3").unwrap();
        metrics.add_flow(&"FLOW".parse().unwrap(), 1);
        metrics.mailbox(Role::Status).entered();
        metrics.scheduler_tick(&"FLOW".parse().unwrap(), at(0), false);
        metrics.this_worker(&"w".parse().unwrap(), "host");
        metrics.workers(at(0), [("w".to_owned(), at(0))]);
        let text = metrics.encode().unwrap();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter(|line| line.starts_with("callsheet_"))
            .collect();
        insta::assert_snapshot!(names.join("\n"), @r"
        callsheet_actor_restarts_total counter
        callsheet_backlog_read_timestamp_seconds gauge
        callsheet_build_info gauge
        callsheet_config_last_reload_successful gauge
        callsheet_dispatch_latency_seconds histogram
        callsheet_flow_concurrency gauge
        callsheet_flow_paused gauge
        callsheet_flow_up gauge
        callsheet_heartbeat_timeouts_total counter
        callsheet_heartbeats_total counter
        callsheet_job_transitions_total counter
        callsheet_jobs gauge
        callsheet_launch_failures_total counter
        callsheet_longest_run_seconds gauge
        callsheet_mailbox_depth gauge
        callsheet_oldest_pending_seconds gauge
        callsheet_queue_wait_seconds histogram
        callsheet_recovered_runs_total counter
        callsheet_run_cpu_seconds_total counter
        callsheet_run_duration_seconds histogram
        callsheet_run_io_bytes_total counter
        callsheet_run_max_rss_bytes histogram
        callsheet_run_timeout_used_ratio gauge
        callsheet_run_timeouts_total counter
        callsheet_runs_disk_free_bytes gauge
        callsheet_runs_disk_size_bytes gauge
        callsheet_runs_in_progress gauge
        callsheet_scheduler_last_tick_timestamp_seconds gauge
        callsheet_scheduler_ticks_total counter
        callsheet_store_batch_size histogram
        callsheet_store_errors_total counter
        callsheet_store_up gauge
        callsheet_store_write_seconds histogram
        callsheet_trace_spans_total counter
        callsheet_unserved_jobs gauge
        callsheet_worker_info gauge
        callsheet_worker_silence_seconds gauge
        ");
        #[cfg(target_os = "linux")]
        assert!(text.contains("process_resident_memory_bytes"));
        assert!(text.contains(r#"callsheet_build_info{version="1.2.3"} 1"#));
    }
}
