//! Every metric's value against work whose outcome is known: from the tables, from what the commands wrote down, or from
//! what this test did.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use callsheet::domain::JobStatus;
use sea_orm::ConnectionTrait;

use crate::on_each_database;
use crate::support::eventually;
use crate::support::processes::{gone, parent_of};
use crate::support::scrape::{Scrape, get};
use crate::support::service::{On, Service};
use crate::support::tools;

const FLOWS: &str = "worker_id = \"node-a\"\n[flows.WORK]\n{job}\nconcurrency = 2\nheartbeat_timeout = \"10s\"\n\
    schedule = \"* * * * *\"\n[flows.WORK.retry]\nmaximum_attempts = 2\ninitial_interval = \"0s\"\n\
    [flows.SHORT]\n{job}\nstart_to_close_timeout = \"1s\"\n\
    [flows.MISSING]\ncommand = [\"/nowhere/at/all\"]\n[flows.IDLE]\n{job}\nconcurrency = 7\n";

/// Prepares a service with the flows above; `worker_id` stands at the top of a configuration.
async fn service(on: On) -> Option<Service> {
    let (worker, flows) = FLOWS.split_once('\n').unwrap();
    let mut service = Service::prepare(on, flows).await?;
    service.configure(&format!("{worker}\n"));
    service.serve().await;
    Some(service)
}

async fn count(service: &Service, sql: &str) -> f64 {
    let connection = service.foreign().await;
    let statement = sea_orm::Statement::from_string(connection.get_database_backend(), sql.to_owned());
    let row = connection.query_one_raw(statement).await.unwrap().unwrap();
    let value: i64 = row.try_get("", "n").unwrap();
    connection.close().await.unwrap();
    value as f64
}

async fn every_metric_has_the_value_that_the_work_gives_it(on: On) {
    let started = callsheet::clock::now();
    let Some(mut service) = service(on).await else { return };
    let lasting = service.insert("WORK", &["wait"]).await[0];
    service.until(lasting, JobStatus::Progress).await;
    let work =
        service.insert("WORK", &["run:0.2", "say:a", "exit:3", "kill:KILL", "run:600", "..+refused", "run:0.3"]).await;
    let (cancelled, refused) = (work[4], work[5]);
    let [short, missing] = [service.insert("SHORT", &["run:600"]).await[0], service.insert("MISSING", &["a"]).await[0]];
    service.sql("INSERT INTO jobs (type, identifier) VALUES ('NOBODYS', 'a'), ('NOBODYS', 'b')").await;
    service.sql("INSERT INTO jobs (type, identifier, run_at) VALUES ('IDLE', 'later', 4102444800000)").await;
    service.until(cancelled, JobStatus::Progress).await;
    service.sql(&format!("UPDATE jobs SET cancel_requested_time = created_time WHERE id = {cancelled}")).await;
    service.until(cancelled, JobStatus::Cancelled).await;
    for job in [work[2], work[3], refused, short, missing] {
        service.until(job, JobStatus::Error).await;
    }
    for job in [work[0], work[1], work[6]] {
        service.until(job, JobStatus::Completed).await;
    }
    // By now the lasting run is well past its first confirmations.
    eventually("three heartbeats", async || Scrape::of(&service).value("callsheet_heartbeats_total", W) >= 3.0).await;
    let mut scrape = Scrape::of(&service);
    let (mut asked, mut told) = (started, started);
    eventually("the gauges to be read", async || {
        asked = callsheet::clock::now();
        scrape = Scrape::of(&service);
        told = callsheet::clock::now();
        let commits = ["callsheet_store_write_seconds_count", "callsheet_store_batch_size_count"];
        // Read now and then, so all of them have to have caught up; and the last actors to have left.
        let open = |status: &str| scrape.value("callsheet_jobs", &format!("status=\"{status}\",type=\"WORK\""));
        open("PROGRESS") == 1.0
            && open("PENDING") + open("INQUEUE") == 0.0
            && scrape.value("callsheet_runs_in_progress", W) == 1.0
            && scrape.value("callsheet_runs_in_progress", r#"type="SHORT""#) == 0.0
            && scrape.all("callsheet_mailbox_depth").all(|(_, depth)| depth == 0.0)
            && scrape.value("callsheet_unserved_jobs", "") == 2.0
            // A heartbeat may be committed between the two lines of one scrape.
            && scrape.value(commits[0], "") == scrape.value(commits[1], "")
            && scrape.value("callsheet_jobs", r#"status="PENDING",type="IDLE""#) == 1.0
    })
    .await;

    // What nobody runs is told once, and both names of a flow's queues (CONTRACT §3 and §4).
    let log = service.log();
    assert_eq!(log.matches("jobs of a type that no flow of this worker has are left alone").count(), 1, "{log}");
    assert!(log.contains("master_task_queue=\"master_work\" task_queue=\"work\""), "{log}");

    // Counters and histograms, against the tables.
    for flow in ["WORK", "SHORT", "MISSING", "IDLE"] {
        for to in ["PENDING", "INQUEUE", "PROGRESS", "COMPLETED", "ERROR", "CANCELLED"] {
            // The row's own first event, if there is one, was not written by this worker.
            let sql = format!(
                "SELECT CAST(count(*) AS bigint) AS n FROM job_events JOIN jobs ON jobs.id = job_id \
                 WHERE type = '{flow}' AND to_status = '{to}' AND from_status IS NOT NULL"
            );
            let metric = scrape.value("callsheet_job_transitions_total", &format!("to=\"{to}\",type=\"{flow}\""));
            assert_eq!(metric, count(&service, &sql).await, "{flow} {to}");
        }
        for outcome in ["COMPLETED", "FAILED", "SPAWN_FAILED", "TIMED_OUT", "CANCELLED", "LOST"] {
            let labels = format!("outcome=\"{outcome}\",type=\"{flow}\"");
            let ended =
                format!("FROM runs JOIN jobs ON jobs.id = job_id WHERE type = '{flow}' AND outcome = '{outcome}'");
            let runs = count(&service, &format!("SELECT CAST(count(*) AS bigint) AS n {ended}")).await;
            assert_eq!(scrape.value("callsheet_run_duration_seconds_count", &labels), runs, "{labels}");
        }
        let of = |sum: &str| {
            format!(
                "SELECT CAST(COALESCE(sum({sum}), 0) AS bigint) AS n FROM runs JOIN jobs ON jobs.id = job_id WHERE type = '{flow}'"
            )
        };
        for (mode, column) in [("user", "user_cpu_ms"), ("system", "system_cpu_ms")] {
            let metric = scrape.value("callsheet_run_cpu_seconds_total", &format!("mode=\"{mode}\",type=\"{flow}\""));
            let table = count(&service, &of(column)).await / 1_000.0;
            // The table has whole milliseconds of each run.
            assert!((metric - table).abs() < 0.02, "{flow} {mode}: {metric} against {table}");
        }
        let labels = format!("type=\"{flow}\"");
        assert_eq!(
            scrape.value("callsheet_run_max_rss_bytes_sum", &labels),
            count(&service, &of("max_rss_bytes")).await
        );
        let with_usage = of("CASE WHEN max_rss_bytes IS NULL THEN 0 ELSE 1 END");
        assert_eq!(scrape.value("callsheet_run_max_rss_bytes_count", &labels), count(&service, &with_usage).await);
        let ran = of("CASE WHEN runs.started_time IS NULL OR runs.pid IS NULL THEN 0 ELSE 1 END");
        let ran = count(&service, &ran).await;
        assert_eq!(scrape.value("callsheet_queue_wait_seconds_count", &labels), ran, "{flow}");
        assert_eq!(scrape.value("callsheet_dispatch_latency_seconds_count", &labels), ran, "{flow}");
        for zero in ["callsheet_heartbeat_timeouts_total", "callsheet_launch_failures_total", "callsheet_flow_paused"] {
            assert_eq!(scrape.value(zero, &labels), 0.0, "{flow} {zero}");
        }
        assert_eq!(scrape.value("callsheet_flow_up", &labels), 1.0);
        let tick = scrape.value("callsheet_scheduler_last_tick_timestamp_seconds", &labels);
        let (from, to) = (started.unix_millis() as f64 / 1_000.0, told.unix_millis() as f64 / 1_000.0);
        assert!((from - 1.0..to + 1.0).contains(&tick), "{tick} is not from {from} to {to}");
        for verdict in ["reattached", "finished_while_away", "never_started", "lost"] {
            let labels = format!("type=\"{flow}\",verdict=\"{verdict}\"");
            assert_eq!(scrape.value("callsheet_recovered_runs_total", &labels), 0.0);
        }
    }
    // What was done is known, so the tables can't be wrong in the same way: retried once each, then for good.
    assert_eq!(scrape.value("callsheet_job_transitions_total", r#"to="PENDING",type="WORK""#), 2.0);
    assert_eq!(scrape.value("callsheet_job_transitions_total", r#"to="ERROR",type="WORK""#), 3.0);
    assert_eq!(scrape.value("callsheet_run_duration_seconds_count", r#"outcome="FAILED",type="WORK""#), 4.0);
    assert_eq!(scrape.value("callsheet_run_duration_seconds_count", r#"outcome="CANCELLED",type="WORK""#), 1.0);
    assert_eq!(scrape.value("callsheet_run_duration_seconds_count", r#"outcome="TIMED_OUT",type="SHORT""#), 1.0);
    assert_eq!(scrape.value("callsheet_run_duration_seconds_count", r#"outcome="SPAWN_FAILED",type="MISSING""#), 1.0);
    let evidence = service.evidence();
    let mut ran = 0.0;
    for job in [work[0], work[1], work[6]] {
        // A shim that was held up after the exec began to count as late as this.
        let counted_from = service.job(job).await.started_time.unwrap().unix_millis() as f64 / 1_000.0;
        let run = &evidence[&(job.0, 1)];
        ran += run.end.unwrap() - run.start.max(counted_from);
    }
    let sum = scrape.value("callsheet_run_duration_seconds_sum", r#"outcome="COMPLETED",type="WORK""#);
    // A command's own record begins after its exec and ends before its exit; the table has whole milliseconds, as has the start.
    let rows = "SELECT CAST(sum(execution_ms) AS bigint) AS n FROM jobs WHERE type = 'WORK' AND status = 'COMPLETED'";
    let recorded = count(&service, rows).await / 1_000.0;
    assert!(sum >= ran - 0.003 && (sum - recorded).abs() < 0.02, "{sum} against {ran} and {recorded}");
    let timed_out = scrape.value("callsheet_run_duration_seconds_sum", r#"outcome="TIMED_OUT",type="SHORT""#);
    assert!((1.0..600.0).contains(&timed_out), "{timed_out}");
    for (bucket, runs) in [("0.5", 0.0), ("+Inf", 1.0)] {
        let labels = format!("outcome=\"TIMED_OUT\",type=\"SHORT\",le=\"{bucket}\"");
        assert_eq!(scrape.value("callsheet_run_duration_seconds_bucket", &labels), runs, "{bucket}");
    }

    // Gauges, against what this test did.
    assert_eq!(scrape.value("callsheet_jobs", r#"status="PENDING",type="WORK""#), 0.0);
    assert_eq!(scrape.value("callsheet_jobs", r#"status="INQUEUE",type="WORK""#), 0.0);
    assert_eq!(scrape.value("callsheet_runs_in_progress", W), 1.0);
    assert_eq!(scrape.value("callsheet_runs_in_progress", r#"type="SHORT""#), 0.0);
    assert_eq!(scrape.value("callsheet_flow_concurrency", r#"type="IDLE""#), 7.0);
    assert_eq!(scrape.value("callsheet_oldest_pending_seconds", r#"type="IDLE""#), 0.0, "it is not due");
    let began = service.job(lasting).await.started_time.unwrap();
    let [from, to] = [asked, told].map(|time| time.since(began).as_secs_f64());
    let age = scrape.value("callsheet_longest_run_seconds", W);
    assert!((from - 1.0..to + 1.0).contains(&age), "{age} is not from {from} to {to}");
    let used = scrape.value("callsheet_run_timeout_used_ratio", W);
    assert!((used - age / 172_800.0).abs() < 0.001, "{used} of two days is not {age} s");
    assert_eq!(scrape.value("callsheet_store_up", ""), 1.0);
    let read = told.unix_millis() as f64 / 1_000.0;
    assert!((read - scrape.value("callsheet_backlog_read_timestamp_seconds", "")).abs() < 60.0);
    let (free, size) =
        (scrape.value("callsheet_runs_disk_free_bytes", ""), scrape.value("callsheet_runs_disk_size_bytes", ""));
    let disk = rustix::fs::statvfs(service.scratch.path()).unwrap();
    assert_eq!(size, (disk.f_blocks * disk.f_frsize) as f64);
    assert!(free > 0.0 && free < size, "{free} of {size}");
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(scrape.value("callsheet_worker_info", &format!("hostname=\"{hostname}\",worker_id=\"node-a\"")), 1.0);
    assert!(scrape.value("callsheet_worker_silence_seconds", r#"worker_id="node-a""#) < 60.0);
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert_eq!(scrape.value("callsheet_build_info", &version), 1.0);
    for (_, depth) in scrape.all("callsheet_mailbox_depth") {
        assert_eq!(depth, 0.0, "all is quiet");
    }
    for metric in ["callsheet_actor_restarts_total", "callsheet_store_errors_total"] {
        assert!(scrape.all(metric).count() >= 9 && scrape.all(metric).all(|(_, value)| value == 0.0), "{metric}");
    }
    let commits = scrape.value("callsheet_store_write_seconds_count", "");
    // Each attempt is claimed, and settled; each that lasts has its start written.
    let writes = scrape.value("callsheet_store_batch_size_sum", "");
    assert!(writes >= 2.0 * 11.0 && writes >= commits, "{writes} writes in {commits} transactions");
    assert!(scrape.value("callsheet_store_write_seconds_sum", "") > 0.0);
    assert!(scrape.value("process_resident_memory_bytes", "") > 1e6);
    assert!(scrape.value("process_start_time_seconds", "") <= read);

    // A restart: counters begin anew, one run is taken over, one ended meanwhile, one never started.
    service.kill_9();
    service.serve().await;
    let verdict = |verdict: &str| format!("type=\"WORK\",verdict=\"{verdict}\"");
    eventually("the run to be taken over", async || {
        Scrape::of(&service).value("callsheet_recovered_runs_total", &verdict("reattached")) == 1.0
    })
    .await;
    service.kill_9();
    let shim = parent_of(service.evidence()[&(lasting.0, 1)].pid);
    service.go();
    // Its verdict is written then.
    gone(shim).await;
    let never = service.insert("WORK", &["say:b"]).await[0];
    // The end of a token tells in which boot of the machine it was claimed.
    let claimed = service.job(lasting).await.run_token.unwrap();
    let (_, boot) = claimed.split_at(24);
    service
        .sql(&format!(
            "UPDATE jobs SET status = 'INQUEUE', attempt = 1, worker_id = 'node-a', \
             run_token = '0123456789abcdef01234567{boot}', queued_time = created_time WHERE id = {never}"
        ))
        .await;
    service.serve().await;
    service.until(lasting, JobStatus::Completed).await;
    service.until(never, JobStatus::Completed).await;
    eventually("the verdicts", async || {
        scrape = Scrape::of(&service);
        // Taken over after its end: how long it ran is the shim's to say, and it waited for nobody this time.
        let ended = scrape.value("callsheet_run_duration_seconds_count", r#"outcome="COMPLETED",type="WORK""#);
        ended == 2.0
            && ["finished_while_away", "never_started"]
                .iter()
                .all(|found| scrape.value("callsheet_recovered_runs_total", &verdict(found)) == 1.0)
    })
    .await;
    assert_eq!(scrape.value("callsheet_recovered_runs_total", &verdict("reattached")), 0.0);

    // A flow that is configured no longer has no series once nothing of it runs.
    let config = std::fs::read_to_string(service.path("callsheet.toml")).unwrap();
    let without = config.split("[flows.IDLE]").next().unwrap();
    std::fs::write(service.path("callsheet.toml"), without).unwrap();
    service.stop().await;
    service.serve().await;
    let text = get(&service.address(), "/metrics").1;
    assert!(!text.contains("IDLE") && text.contains("WORK"), "{text}");
    service.nothing_alive().await;
}
on_each_database!(every_metric_has_the_value_that_the_work_gives_it);

const W: &str = r#"type="WORK""#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tick_is_counted_when_the_schedule_is_due() {
    let service = service(On::Sqlite).await.unwrap();
    let before = Scrape::of(&service).value("callsheet_scheduler_last_tick_timestamp_seconds", W);
    let started = Instant::now();
    // The start of the next minute, and as long again for a machine that is busy.
    while Scrape::of(&service).value("callsheet_scheduler_ticks_total", W) < 1.0 {
        assert!(started.elapsed() < Duration::from_secs(120), "no tick in two minutes");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let scrape = Scrape::of(&service);
    assert!(scrape.value("callsheet_scheduler_last_tick_timestamp_seconds", W) > before);
    assert_eq!(scrape.value("callsheet_scheduler_ticks_total", r#"type="SHORT""#), 0.0, "its schedule is not due");
}

/// While another program holds the database's lock nothing can be confirmed, and a scrape does not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_waits_for_no_database_and_a_lost_heartbeat_is_counted() {
    let Some(service) = service(On::Postgres).await else { return };
    let job = service.insert("WORK", &["wait"]).await[0];
    service.until(job, JobStatus::Progress).await;
    let foreign = service.foreign().await;
    let transaction = sea_orm::TransactionTrait::begin(&foreign).await.unwrap();
    transaction.execute_unprepared("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut slowest = Duration::ZERO;
    eventually("a heartbeat to be lost", async || {
        let asked = Instant::now();
        let scrape = Scrape::of(&service);
        slowest = slowest.max(asked.elapsed());
        scrape.value("callsheet_heartbeat_timeouts_total", W) == 1.0
    })
    .await;
    // Not the 30 s that a statement may take; a busy machine is slow at anything.
    assert!(slowest < Duration::from_secs(20), "a scrape took {slowest:?}");
    transaction.rollback().await.unwrap();
    service.go();
    service.until(job, JobStatus::Completed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn launches_that_fail_and_pauses_are_told() {
    let service = service(On::Sqlite).await.unwrap();
    // A file where the run directories should be: no fault of any job.
    let (runs, away) = (service.path("data/runs"), service.path("data/runs.away"));
    std::fs::rename(&runs, &away).unwrap();
    std::fs::write(&runs, "").unwrap();
    let job = service.insert("WORK", &["say:a"]).await[0];
    let failed = || Scrape::of(&service).value("callsheet_launch_failures_total", W);
    eventually("a launch to fail twice", async || failed() >= 2.0).await;
    std::fs::remove_file(&runs).unwrap();
    std::fs::rename(&away, &runs).unwrap();
    service.until(job, JobStatus::Completed).await;
    let told = service.log().matches("a command can't be launched").count();
    assert_eq!(failed(), told as f64, "as often as the log says");
    let scrape = Scrape::of(&service);
    assert_eq!(scrape.value("callsheet_launch_failures_total", r#"type="SHORT""#), 0.0);
    assert_eq!(scrape.value("callsheet_run_duration_seconds_count", r#"outcome="SPAWN_FAILED",type="WORK""#), 0.0);
    for (command, paused) in [("pause", 1.0), ("resume", 0.0)] {
        assert!(service.cli(&[command, "IDLE"]).status.success());
        eventually(command, async || Scrape::of(&service).value("callsheet_flow_paused", r#"type="IDLE""#) == paused)
            .await;
        assert_eq!(Scrape::of(&service).value("callsheet_flow_paused", W), 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promtool_has_nothing_to_say_about_the_metrics() {
    let Some(promtool) = tools::program("promtool") else { return };
    let service = service(On::Sqlite).await.unwrap();
    let job = service.insert("WORK", &["say:a"]).await[0];
    service.until(job, JobStatus::Completed).await;
    let text = get(&service.address(), "/metrics").1;
    let mut check = Command::new(promtool);
    let mut check = check
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success() && tools::said(&output).trim().is_empty(), "{}", tools::said(&output));
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP callsheet_")) {
        assert!(line.ends_with('.') && line.split(' ').count() > 5, "{line} is no sentence");
    }
}
