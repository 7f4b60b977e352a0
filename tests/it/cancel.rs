//! Cancelling, by the command line and by SQL, in every open status.

use callsheet::domain::JobStatus;

use crate::on_each_database;
use crate::support::service::{CONFIRMATION, On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\nkill_grace = \"400ms\"\n[flows.PATIENT]\n{job}\nkill_grace = \"60s\"\n";

async fn a_running_command_is_ended_with_all_it_started(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let by_cli = service.insert("ONE", &["daemon+ignore-term+run:600"]).await[0];
    service.until(by_cli, JobStatus::Progress).await;
    crate::support::eventually("its daemon", async || service.path(&format!("evidence/{by_cli}.1.daemon")).exists())
        .await;
    let output = service.cli(&["cancel", &by_cli.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let row = service.until(by_cli, JobStatus::Cancelled).await;
    assert!(row.error.unwrap().starts_with("cancelled; the command ended with signal 9 (SIGKILL)"));
    assert_eq!(service.runs(by_cli).await[0].outcome.as_deref(), Some("CANCELLED"));
    assert_eq!(service.changes(by_cli).await, ["INQUEUE", "PROGRESS", "CANCELLED"]);
    assert_eq!(service.alive(), []);

    let by_sql = service.insert("PATIENT", &["note-term+wait"]).await[0];
    service.begun(by_sql, 1).await;
    service.until(by_sql, JobStatus::Progress).await;
    service.sql(&format!("UPDATE jobs SET cancel_requested_time = created_time WHERE id = {by_sql}")).await;
    service.until(by_sql, JobStatus::Cancelled).await;
    // It was asked first, and had its time to end well.
    assert!(service.path(&format!("evidence/{by_sql}.1.term")).exists());
}
on_each_database!(a_running_command_is_ended_with_all_it_started, mariadb);

async fn a_cancel_by_sql_is_heard_of_at_once(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let ask = async |job| {
        service.sql(&format!("UPDATE jobs SET cancel_requested_time = created_time WHERE id = {job}")).await;
    };
    let running = service.insert("ONE", &["run:600"]).await[0];
    let waiting = service.insert("ONE", &["run:600"]).await[0];
    service.until(running, JobStatus::Progress).await;
    // Nothing but the wake-up tells of it: the tick of these tests is yearly.
    ask(waiting).await;
    service.until(waiting, JobStatus::Cancelled).await;
    // The next confirmation of a run would bring it too. On a machine that stands still for long it may be later than that;
    // without the wake-up it always is.
    let mut job = running;
    for left in (0..5).rev() {
        let before = service.confirmed(job).await;
        ask(job).await;
        let took = service.until(job, JobStatus::Cancelled).await.completed_time.unwrap().since(before);
        if took < CONFIRMATION {
            break;
        }
        assert!(left > 0, "each time it may have been a confirmation that brought it: {took:?}");
        job = service.insert("ONE", &["run:600"]).await[0];
        service.until(job, JobStatus::Progress).await;
    }
    assert_eq!(service.changes(waiting).await, ["CANCELLED"]);
    assert!(!service.evidence().contains_key(&(waiting.0, 1)));
    service.nothing_alive().await;
}
on_each_database!(a_cancel_by_sql_is_heard_of_at_once, mariadb);

async fn a_cancel_works_with_the_service_down(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let running = service.insert("ONE", &["wait"]).await[0];
    let waiting = service.insert("ONE", &["wait"]).await[0];
    let begun = service.begun(running, 1).await;
    service.until(running, JobStatus::Progress).await;
    service.kill_9();
    let output = service.cli(&["cancel", &waiting.to_string(), &running.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(service.job(waiting).await.status, JobStatus::Cancelled);
    assert_eq!(service.job(running).await.status, JobStatus::Progress);
    assert!(service.alive().iter().any(|(pid, _)| *pid == begun.pid));
    service.serve().await;
    service.until(running, JobStatus::Cancelled).await;
    assert_eq!(service.alive(), []);
}
on_each_database!(a_cancel_works_with_the_service_down, mariadb);

async fn what_has_ended_cannot_be_cancelled(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("ONE", &["say:done"]).await[0];
    service.until(job, JobStatus::Completed).await;
    let output = service.cli(&["cancel", &job.to_string()]);
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(service.cli(&["cancel", "987654"]).status.code(), Some(3));
    assert_eq!(service.changes(job).await, ["INQUEUE", "PROGRESS", "COMPLETED"]);
}
on_each_database!(what_has_ended_cannot_be_cancelled);
