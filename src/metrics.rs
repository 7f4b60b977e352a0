//! Every metric's name, labels and meaning (CONTRACT §7), and the one place that names `prometheus`.
//!
//! Labels are bounded: flow types from the configuration, statuses, outcomes, actor roles, workers that live. Never a job
//! or a run. A scrape reads memory only: what the database and the disk say is kept here by tasks that look now and then,
//! and what grows with time (the age of the oldest waiting job) is told for the moment of the scrape.

mod catalogue;
mod flows;
mod labels;
mod mailbox;
mod moment;
mod text;

use std::sync::Mutex;
use std::time::Duration;

use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

pub use self::flows::Backlog;
pub use self::labels::{RecoveryVerdict, Role};
pub use self::mailbox::MailboxGauge;
pub use self::moment::WatchedRun;

use self::moment::Seen;
use crate::domain::run::{Timeout, Usage};
use crate::domain::{FlowType, JobStatus, Outcome, Timestamp, WorkerId};

/// Why the metrics could not be made or shown: two of one name, or a name that Prometheus does not take.
#[derive(Debug, thiserror::Error)]
#[error("the metrics can't be registered or encoded")]
pub struct Error(#[from] prometheus::Error);

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
    webhook_undelivered: IntGaugeVec,
    webhook_oldest: GaugeVec,
    seen: Mutex<Seen>,
}

impl Metrics {
    /// The text that Prometheus scrapes, in format 0.0.4. Waits for nothing: neither the database nor the disk is asked.
    ///
    /// # Errors
    /// Where a metric can't be encoded.
    pub fn encode(&self) -> Result<String, Error> {
        self.encode_at(crate::clock::now())
    }

    fn encode_at(&self, now: Timestamp) -> Result<String, Error> {
        self.tell_time(now);
        Ok(text::encode(&self.registry.gather())?)
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

    /// Makes a webhook's series appear with zeroes, so that a rate over the first event is no gap.
    pub fn add_webhook(&self, webhook: &str) {
        for result in ["delivered", "retried", "failed"] {
            self.webhook_deliveries.with_label_values(&[webhook, result]);
        }
        self.webhook_undelivered(webhook, 0, None);
    }

    /// So many events wait for a webhook, and the oldest of them happened then.
    pub fn webhook_undelivered(&self, webhook: &str, events: u64, oldest: Option<Timestamp>) {
        self.webhook_undelivered.with_label_values(&[webhook]).set(i64::try_from(events).unwrap_or(i64::MAX));
        self.seen().webhooks.insert(webhook.to_owned(), oldest);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
    fn what_waits_for_a_webhook_grows_older_until_it_is_taken() {
        let metrics = Metrics::new("1.2.3").unwrap();
        metrics.add_webhook("ours");
        let shown = |now| {
            let of = |name| value(&metrics, now, &format!(r#"callsheet_webhook_{name}{{webhook="ours"}}"#));
            (of("undelivered_events"), of("oldest_undelivered_seconds"))
        };
        assert_eq!(shown(100), (Some(0.0), Some(0.0)));
        metrics.webhook_undelivered("ours", 3, Some(at(90)));
        assert_eq!((shown(100), shown(160)), ((Some(3.0), Some(10.0)), (Some(3.0), Some(70.0))));
        metrics.webhook_undelivered("ours", 0, None);
        assert_eq!(shown(160), (Some(0.0), Some(0.0)));
        let failed = r#"callsheet_webhook_deliveries_total{result="failed",webhook="ours"}"#;
        assert_eq!(value(&metrics, 160, failed), Some(0.0));
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
        metrics.add_webhook("ours");
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
        callsheet_webhook_deliveries_total counter
        callsheet_webhook_oldest_undelivered_seconds gauge
        callsheet_webhook_undelivered_events gauge
        callsheet_worker_info gauge
        callsheet_worker_silence_seconds gauge
        ");
        #[cfg(target_os = "linux")]
        assert!(text.contains("process_resident_memory_bytes"));
        assert!(text.contains(r#"callsheet_build_info{version="1.2.3"} 1"#));
    }
}
