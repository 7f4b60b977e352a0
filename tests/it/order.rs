//! One at a time in order, and several at once up to the limit, by the commands' own record.

use callsheet::domain::JobStatus;

use crate::on_each_database;
use crate::support::service::{On, Service, most_at_once};

async fn a_sequential_flow_runs_one_at_a_time_in_order(on: On) {
    let Some(service) = Service::prepare(on, "[flows.ONE]\n{job}\n").await else { return };
    let mut service = service;
    // Before the service is there: order is by priority, then run_at, then id.
    let low = service.insert("ONE", &["run:0.05", "run:0.05", "run:0.05"]).await;
    service.sql("INSERT INTO jobs (type, identifier, priority) VALUES ('ONE', 'run:0.05', 5)").await;
    service.sql("INSERT INTO jobs (type, identifier, run_at) VALUES ('ONE', 'run:0.05', 1000)").await;
    service.serve().await;
    for job in &low {
        service.until(*job, JobStatus::Completed).await;
    }
    let evidence = service.evidence();
    assert_eq!(most_at_once(&evidence), 1);
    let mut order: Vec<_> = evidence.values().collect();
    order.sort_by(|a, b| a.start.total_cmp(&b.start));
    let first = low[0].0;
    assert_eq!(order.iter().map(|run| run.job - first).collect::<Vec<_>>(), [3, 4, 0, 1, 2]);
    assert!(evidence.values().all(|run| run.end.is_some() && run.attempt == 1));
}
on_each_database!(a_sequential_flow_runs_one_at_a_time_in_order, mariadb);

async fn a_concurrent_flow_reaches_its_limit_and_not_more(on: On) {
    let Some(service) = Service::start(on, "[flows.FOUR]\n{job}\nconcurrency = 4\n").await else { return };
    let jobs = service.insert("FOUR", &["wait"; 9]).await;
    crate::support::eventually("four commands", async || service.evidence().len() >= 4).await;
    // The fifth would have been claimed with the fourth, or on the wake-up of one of these.
    service.sql("UPDATE jobs SET priority = 1 WHERE status = 'PENDING'").await;
    tokio::time::sleep(crate::support::service::A_MOMENT).await;
    assert_eq!(service.evidence().len(), 4);
    service.go();
    for job in jobs {
        service.until(job, JobStatus::Completed).await;
    }
    assert_eq!(most_at_once(&service.evidence()), 4);
    assert_eq!(service.evidence().len(), 9);
}
on_each_database!(a_concurrent_flow_reaches_its_limit_and_not_more);

async fn a_row_of_a_foreign_client_is_noticed_without_the_tick(on: On) {
    // The schedule of every flow in these tests ticks once a year.
    let Some(service) = Service::start(on, "[flows.ONE]\n{job}\n").await else { return };
    let job = service.insert("ONE", &["say:hello"]).await[0];
    let row = service.until(job, JobStatus::Completed).await;
    assert_eq!(service.changes(job).await, ["INQUEUE", "PROGRESS", "COMPLETED"]);
    assert_eq!((row.attempt.0, row.exit_code, row.error), (1, Some(0), None));
    let (created, started, completed) = (row.created_time, row.started_time.unwrap(), row.completed_time.unwrap());
    assert!(created <= started && started <= completed, "{created:?} {started:?} {completed:?}");
    assert!(row.execution_ms.is_some_and(|ms| (0..600_000).contains(&ms)));
    let runs = service.runs(job).await;
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].outcome.as_deref(), Some("COMPLETED"));
    assert_eq!(runs[0].pid, Some(i64::from(service.evidence()[&(job.0, 1)].pid)));
}
on_each_database!(a_row_of_a_foreign_client_is_noticed_without_the_tick, mariadb);

async fn a_delayed_row_waits_for_its_time(on: On) {
    let Some(service) = Service::start(on, "[flows.ONE]\n{job}\n").await else { return };
    let output = service.cli(&["enqueue", "ONE", "run:0", "--delay", "1s"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let later = callsheet::domain::JobId(String::from_utf8_lossy(&output.stdout).trim().parse().unwrap());
    let at_once = service.insert("ONE", &["run:0"]).await[0];
    service.until(at_once, JobStatus::Completed).await;
    let row = service.until(later, JobStatus::Completed).await;
    assert!(row.started_time.unwrap() >= row.run_at, "{row:?}");
    assert!(row.run_at.since(row.created_time).as_millis() >= 900);
}
on_each_database!(a_delayed_row_waits_for_its_time);
