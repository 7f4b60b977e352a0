//! Attempts: how many, how soon, how long, and again by hand, by the commands' own record.

use std::process::Output;
use std::time::Duration;

use callsheet::domain::{JobId, JobStatus};

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\nkill_grace = \"300ms\"\n\
    [flows.TWICE]\n{job}\nretry = { maximum_attempts = 2, initial_interval = \"50ms\", non_retryable_exit_codes = [4] }\n\
    [flows.SLOW]\n{job}\nretry = { maximum_attempts = 3, initial_interval = \"400ms\", backoff_coefficient = 2.0 }\n\
    [flows.HURRY]\n{job}\nschedule_to_close_timeout = \"5s\"\nstart_to_close_timeout = \"10min\"\nkill_grace = \"300ms\"\n\
    retry = { maximum_attempts = 50, initial_interval = \"500ms\", backoff_coefficient = 1.0 }\n\
    [flows.LONG]\n{job}\nschedule_to_close_timeout = \"5s\"\nstart_to_close_timeout = \"10min\"\nkill_grace = \"300ms\"\n";

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn a_temporary_failure_is_retried_while_attempts_remain(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("TWICE", &["exit:75"]).await[0];
    let row = service.until(job, JobStatus::Error).await;
    assert_eq!((row.attempt.0, row.exit_code), (2, Some(75)));
    assert_eq!(row.error.as_deref(), Some("the command failed with exit code 75 (EX_TEMPFAIL, a temporary failure)"));
    let forbidden = service.insert("TWICE", &["exit:4"]).await[0];
    assert_eq!(service.until(forbidden, JobStatus::Error).await.attempt.0, 1);
    // One attempt is the default, for exit code 75 too; a row may have more.
    let once = service.insert("ONE", &["exit:75"]).await[0];
    assert_eq!(service.until(once, JobStatus::Error).await.attempt.0, 1);
    service.sql("INSERT INTO jobs (type, identifier, maximum_attempts) VALUES ('ONE', 'exit:75', 2)").await;
    assert_eq!(service.until(JobId(once.0 + 1), JobStatus::Error).await.attempt.0, 2);
}
on_each_database!(a_temporary_failure_is_retried_while_attempts_remain);

async fn waits_between_attempts_are_as_long_as_written(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("SLOW", &["exit:1"]).await[0];
    service.until(job, JobStatus::Error).await;
    let evidence = service.evidence();
    let run = |attempt| &evidence[&(job.0, attempt)];
    for (attempt, wait) in [(2, 0.4), (3, 0.8)] {
        let waited = run(attempt).start - run(attempt - 1).end.unwrap();
        assert!(waited >= wait, "{waited} s before attempt {attempt}");
    }
    let events = service.store.events(job).await.unwrap();
    let again: Vec<_> = events.iter().filter(|event| event.to_status == "PENDING").collect();
    assert_eq!(again.len(), 2);
    assert_eq!(
        again[0].message.as_deref(),
        Some("attempt 1 of 3 failed and will be retried: the command failed with exit code 1")
    );
}
on_each_database!(waits_between_attempts_are_as_long_as_written);

async fn a_job_is_ended_when_its_whole_time_is_up(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    // Over its attempts and waits: there would be time for fifty of neither.
    let failing = service.insert("HURRY", &["exit:1"]).await[0];
    // In the middle of a run.
    // Of one moment, so that no time is left to the second when that of the first is up.
    service.sql("INSERT INTO jobs (type, identifier) VALUES ('LONG', 'wait'), ('LONG', 'run:0')").await;
    let (running, behind) = (JobId(failing.0 + 1), JobId(failing.0 + 2));
    let row = service.until(failing, JobStatus::Error).await;
    // Half a second before each.
    assert!((2..=11).contains(&row.attempt.0), "{row:?}");
    let row = service.until(running, JobStatus::Error).await;
    assert!(row.error.unwrap().contains("all that was left of schedule_to_close_timeout"));
    // Behind it in the queue, it never came to its turn.
    let row = service.until(behind, JobStatus::Error).await;
    let error = "timed out: schedule_to_close_timeout (5s) passed before the command could be started";
    assert_eq!(row.error.as_deref(), Some(error));
    assert!(!service.evidence().contains_key(&(behind.0, 1)));
    assert_eq!(service.changes(behind).await.last().map(String::as_str), Some("ERROR"));
}
on_each_database!(a_job_is_ended_when_its_whole_time_is_up, mariadb);

async fn what_waits_behind_a_long_run_is_ended_in_time(on: On) {
    let flows = "[flows.ONE]\n{job}\nschedule_to_close_timeout = \"1s\"\nstart_to_close_timeout = \"10min\"\n";
    let Some(service) = Service::start(on, flows).await else { return };
    // Its own time has not begun, it holds the one slot all along, and no tick comes for a year.
    service
        .sql("INSERT INTO jobs (type, identifier, created_time, run_at) VALUES ('ONE', 'wait', 4000000000000, 0)")
        .await;
    let running = JobId(1);
    service.until(running, JobStatus::Progress).await;
    let low = service.insert("ONE", &["run:0"; 3]).await;
    service.sql("UPDATE jobs SET priority = -5 WHERE identifier = 'run:0'").await;
    for job in low {
        let row = service.until(job, JobStatus::Error).await;
        let waited = row.completed_time.unwrap().since(row.created_time);
        assert!(waited >= Duration::from_secs(1), "{waited:?}");
    }
    assert_eq!(service.job(running).await.status, JobStatus::Progress, "the long run is none of theirs");
    assert_eq!(service.evidence().len(), 1);
    service.go();
    service.until(running, JobStatus::Completed).await;
}
on_each_database!(what_waits_behind_a_long_run_is_ended_in_time);

async fn a_retry_by_hand_gives_a_fresh_budget(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("TWICE", &["say:hello+exit:3"]).await[0];
    service.until(job, JobStatus::Error).await;
    let id = job.to_string();
    let output = service.cli(&["retry", &id]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{id}: waits to be tried again\n"));
    eventually("two more attempts", async || service.evidence().len() == 4).await;
    let row = service.until(job, JobStatus::Error).await;
    assert_eq!(row.attempt.0, 4);
    let runs = service.runs(job).await;
    assert_eq!(runs.iter().map(|run| run.attempt.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for attempt in ["1", "2", "3", "4"] {
        let output = service.cli(&["logs", &id, "--attempt", attempt]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n", "attempt {attempt}: {}", text(&output));
    }
    let events = service.store.events(job).await.unwrap();
    let asked: Vec<_> =
        events.iter().filter_map(|event| event.message.as_deref()).filter(|m| m.starts_with("retried by")).collect();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].contains('@') && asked[0].ends_with(" (cli)"), "{asked:?}");
    let third =
        events.iter().filter_map(|event| event.message.as_deref()).find(|m| m.starts_with("attempt 3 of 4 failed"));
    assert!(third.is_some(), "{events:?}");
}
on_each_database!(a_retry_by_hand_gives_a_fresh_budget, mariadb);

async fn what_cannot_be_retried_is_refused(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let done = service.insert("ONE", &["run:0"]).await[0];
    service.until(done, JobStatus::Completed).await;
    let running = service.insert("ONE", &["wait"]).await[0];
    service.until(running, JobStatus::Progress).await;
    for (id, status) in [(done, "COMPLETED"), (running, "PROGRESS")] {
        let output = service.cli(&["retry", &id.to_string()]);
        assert_eq!(output.status.code(), Some(4), "{}", text(&output));
        assert!(text(&output).contains(status), "{}", text(&output));
    }
    assert_eq!(service.cli(&["retry", "987654"]).status.code(), Some(3));
    for wrong in [&["retry"][..], &["retry", "x"], &["retry", "1", "--type", "ONE"], &["retry", "--status", "PROGRESS"]]
    {
        let output = service.cli(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", text(&output));
    }
    service.cli(&["cancel", &running.to_string()]);
    service.until(running, JobStatus::Cancelled).await;
    let output = service.cli(&["--json", "retry", &running.to_string(), &done.to_string()]);
    assert_eq!(output.status.code(), Some(4));
    let lines: Vec<serde_json::Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], serde_json::json!({ "id": running.0, "result": "retried" }));
    assert_eq!(lines[1], serde_json::json!({ "id": done.0, "result": "not_possible" }));
    service.begun(running, 2).await;
    service.until(running, JobStatus::Progress).await;
    service.go();
    service.until(running, JobStatus::Completed).await;
}
on_each_database!(what_cannot_be_retried_is_refused);

async fn many_are_retried_by_filter_after_a_dry_run(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let failed = service.insert("ONE", &["exit:1", "exit:2", "exit:1"]).await;
    let other = service.insert("TWICE", &["exit:4"]).await[0];
    for job in failed.iter().chain([&other]) {
        service.until(*job, JobStatus::Error).await;
    }
    service.stop().await;
    let waiting = service.insert("ONE", &["exit:1"]).await[0];
    let cancelled = service.insert("ONE", &["exit:1"]).await[0];
    assert!(service.cli(&["cancel", &cancelled.to_string()]).status.success());
    let dry = service.cli(&["retry", "--type", "ONE", "--identifier", "exit:1", "--dry-run"]);
    assert!(dry.status.success(), "{}", text(&dry));
    let expected = format!(
        "{}: would be retried (ONE exit:1, ERROR)\n{}: would be retried (ONE exit:1, ERROR)\n",
        failed[2], failed[0]
    );
    assert_eq!(String::from_utf8_lossy(&dry.stdout), expected);
    assert_eq!(
        String::from_utf8_lossy(&dry.stderr),
        "dry run: 2 jobs would be retried (2 ERROR); nothing was changed\n"
    );
    assert_eq!(service.job(failed[0]).await.status, JobStatus::Error);
    // The cancelled one is none of them unless it is asked for: somebody wanted it to end.
    let output = service.cli(&["retry", "--type", "ONE", "--identifier", "exit:1"]);
    assert!(output.status.success(), "{}", text(&output));
    for (job, status) in [
        (failed[0], JobStatus::Pending),
        (failed[1], JobStatus::Error),
        (failed[2], JobStatus::Pending),
        (other, JobStatus::Error),
        (waiting, JobStatus::Pending),
        (cancelled, JobStatus::Cancelled),
    ] {
        assert_eq!(service.job(job).await.status, status, "job {job}");
    }
    let dry = service.cli(&["--json", "retry", "--status", "cancelled", "--dry-run"]);
    let line: serde_json::Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!((line["id"].as_i64(), line["result"].as_str()), (Some(cancelled.0), Some("would_be_retried")));
    service.serve().await;
    for job in [failed[0], failed[2], waiting] {
        service.until(job, JobStatus::Error).await;
    }
    assert_eq!(service.job(failed[0]).await.attempt.0, 2);
}
on_each_database!(many_are_retried_by_filter_after_a_dry_run);
