//! Every metric with its name, its labels and the sentence that says unit and meaning.

use std::sync::Mutex;

use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use super::labels::Role;
use super::{Error, Metrics};
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
                "Runs that were ended by the clock, by what ran out: start_to_close, schedule_to_close, watchdog, silence or heartbeat.",
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
                "Times that a run went unconfirmed in the store for longer than its heartbeat_timeout; the command runs on, unless other workers share the database: then its shim ends it.",
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
            webhook_undelivered: int_gauge(
                "callsheet_webhook_undelivered_events",
                "Status changes in the database that wait for a webhook to take them, of all workers; counted up to 100,000, at least every 5 s.",
                &["webhook"],
            )?,
            webhook_oldest: gauge(
                "callsheet_webhook_oldest_undelivered_seconds",
                "How long ago the oldest status change happened that a webhook has not taken yet, in seconds at the moment of the scrape; 0 where it has taken all.",
                &["webhook"],
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
}
