//! One job after others: released when all are COMPLETED, ended where one is not, whoever wrote it and in whatever way.

use callsheet::domain::{JobId, JobStatus};
use serde_json::json;

use crate::support::eventually;
use crate::support::service::{A_MOMENT, On, Service};
use crate::{on_each_database, on_each_server};

const FLOWS: &str = "[flows.ONE]\n{job}\nconcurrency = 4\n[flows.TWO]\n{job}\nconcurrency = 4\n";

fn enqueue(service: &Service, arguments: &[&str]) -> JobId {
    let output = service.cli(&[&["enqueue"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    JobId(String::from_utf8_lossy(&output.stdout).trim().parse().unwrap())
}

/// A job by SQL that waits for these, in one transaction.
async fn waiting(service: &Service, identifier: &str, after: &[JobId]) -> JobId {
    let id = service.insert_row("type, identifier, run_at", &format!("'TWO', '{identifier}', 99999999999999")).await;
    for after in after {
        service.sql(&format!("INSERT INTO job_dependencies (job_id, after_id) VALUES ({id}, {after})")).await;
    }
    // Which it would have been from the start in a transaction.
    service.sql(&format!("UPDATE jobs SET run_at_wanted = 0 WHERE id = {id}")).await;
    id
}

async fn error(service: &Service, job: JobId) -> String {
    service.until(job, JobStatus::Error).await.error.unwrap()
}

async fn a_job_runs_once_all_that_it_waits_for_are_completed(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let first = service.insert("ONE", &["wait:a", "wait:b"]).await;
    let (a, b) = (first[0].to_string(), first[1].to_string());
    let by_cli = enqueue(&service, &["TWO", "say:cli", "--after", &a, &b, "--priority", "9"]);
    let body = json!({"type": "TWO", "identifier": "say:http", "after": [first[0].0, first[1].0]});
    let answer = service.post("/api/v1/jobs", &body);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let by_http = JobId(answer.json()["id"].as_i64().unwrap());
    let by_sql = waiting(&service, "say:sql", &first).await;
    let behind = enqueue(&service, &["TWO", "say:behind", "--after", &by_cli.to_string()]);
    service.until(first[0], JobStatus::Progress).await;
    service.go_on("a");
    service.until(first[0], JobStatus::Completed).await;
    // Others of the flow go on meanwhile, those of lower priority too.
    let other = service.insert("TWO", &["say:other"]).await[0];
    service.until(other, JobStatus::Completed).await;
    tokio::time::sleep(A_MOMENT).await;
    for job in [by_cli, by_http, by_sql, behind] {
        assert_eq!(service.job(job).await.status, JobStatus::Pending);
    }
    let shown = service.get(&format!("/api/v1/jobs/{by_cli}")).json();
    let after = json!([{"job_id": first[0].0, "ended": "COMPLETED"}, {"job_id": first[1].0, "ended": null}]);
    assert_eq!(shown["after"], after);
    let text = String::from_utf8_lossy(&service.cli(&["show", &by_cli.to_string()]).stdout).into_owned();
    assert!(text.contains(&format!("{a} (COMPLETED), {b} (has not ended)")), "{text}");
    let run_at = text.lines().find(|line| line.starts_with("run_at ")).unwrap_or_default();
    assert!(run_at.ends_with(" waits for other jobs"), "{text}");
    for (arguments, said) in [(&["list"][..], " waits for other jobs"), (&["flows"], "4 wait for other jobs")] {
        let text = String::from_utf8_lossy(&service.cli(arguments).stdout).into_owned();
        assert!(text.contains(said) && !text.contains("due in"), "{text}");
    }
    let page = service.get("/").text();
    assert!(page.contains("4 waiting for other jobs") && !page.contains("delayed"), "{page}");
    service.go_on("b");
    let ended = service.until(first[1], JobStatus::Completed).await.completed_time.unwrap();
    for job in [by_cli, by_http, by_sql, behind] {
        let row = service.until(job, JobStatus::Completed).await;
        assert!(row.started_time.unwrap() >= ended && row.run_at >= row.created_time, "{row:?}");
    }
    // One that waits for what has ended long ago need not wait.
    let late = enqueue(&service, &["TWO", "say:late", "--after", &a]);
    service.until(late, JobStatus::Completed).await;
}
on_each_database!(a_job_runs_once_all_that_it_waits_for_are_completed, mariadb);

async fn where_one_ends_otherwise_the_job_says_which_and_so_on_down_the_chain(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let first = service.insert("ONE", &["wait:a", "wait:b", "wait:c"]).await;
    let failing = service.insert("ONE", &["wait:a+exit:3"]).await[0];
    let doomed = waiting(&service, "say:no", &[first[0], failing]).await;
    let cancelled = waiting(&service, "say:no", &[first[1]]).await;
    let plain = waiting(&service, "say:no", &[first[2]]).await;
    let mut chain = vec![doomed];
    for _ in 0..30 {
        chain.push(waiting(&service, "say:no", &chain[chain.len() - 1..]).await);
    }
    service.until(first[1], JobStatus::Progress).await;
    service.store.request_cancel(first[1]).await.unwrap();
    assert_eq!(
        error(&service, cancelled).await,
        format!("job {}, which this one waits for, ended as CANCELLED", first[1])
    );
    service.go_on("a");
    assert_eq!(error(&service, doomed).await, format!("job {failing}, which this one waits for, ended as ERROR"));
    for link in chain.windows(2) {
        let said = error(&service, link[1]).await;
        assert_eq!(said, format!("job {}, which this one waits for, ended as ERROR", link[0]));
    }
    assert_eq!(service.changes(chain[30]).await, ["ERROR"]);
    service.go_on("c");
    service.until(first[2], JobStatus::Completed).await;
    service.until(plain, JobStatus::Completed).await;
    // Somebody else's SQL ends or removes what is waited for; nobody of ours has to be there.
    let far = service.insert_row("type, identifier, run_at", "'ONE', 'x', 99999999999999").await;
    let gone = waiting(&service, "say:no", &[far]).await;
    service.sql(&format!("DELETE FROM jobs WHERE id = {far}")).await;
    assert_eq!(error(&service, gone).await, format!("job {far}, which this one waits for, was deleted"));
    // Tried again, it still waits for what has to be tried again first.
    let output = service.cli(&["retry", &cancelled.to_string()]);
    assert!(output.status.success());
    eventually("the same end again", async || service.changes(cancelled).await == ["ERROR", "PENDING", "ERROR"]).await;
    service.go_on("b");
    assert!(service.cli(&["retry", &first[1].to_string()]).status.success());
    assert!(service.cli(&["retry", &cancelled.to_string()]).status.success());
    service.until(first[1], JobStatus::Completed).await;
    service.until(cancelled, JobStatus::Completed).await;
}
on_each_database!(where_one_ends_otherwise_the_job_says_which_and_so_on_down_the_chain, mariadb);

async fn what_can_not_be_waited_for_is_refused(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let jobs = service.insert("ONE", &["wait", "say:x"]).await;
    let far = "type, identifier, run_at";
    let a = service.insert_row(far, "'TWO', 'a', 99999999999999").await;
    let b = service.insert_row(far, "'TWO', 'b', 99999999999999").await;
    service.until(jobs[0], JobStatus::Progress).await;
    let foreign = service.foreign().await;
    use sea_orm::ConnectionTrait;
    for (job, after, reason) in
        [(a, b, "no_cycles"), (a, a, "no_cycles"), (b, JobId(0), "there is no job"), (jobs[1], jobs[0], "PENDING")]
    {
        let insert = format!("INSERT INTO job_dependencies (job_id, after_id) VALUES ({job}, {after})");
        if job == jobs[1] {
            service.until(job, JobStatus::Completed).await;
        }
        let refused = foreign.execute_unprepared(&insert).await.unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    let output = service.cli(&["enqueue", "TWO", "x", "--after", "424242"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no job 424242 to wait for"), "{output:?}");
    let before = service.store.list(&callsheet::store::JobFilter { limit: 99, ..Default::default() }).await.unwrap();
    let refused = service.post(
        "/api/v1/jobs",
        &json!([{"type": "TWO", "identifier": "x"},
        {"type": "TWO", "identifier": "y", "after": [jobs[0].0, 424242]}]),
    );
    assert!(refused.problem(422).contains("there is no job 424242"), "{}", refused.text());
    service.post("/api/v1/jobs", &json!({"type": "TWO", "identifier": "x", "after": "1"})).problem(422);
    let after = service.store.list(&callsheet::store::JobFilter { limit: 99, ..Default::default() }).await.unwrap();
    assert_eq!(before.rows.len(), after.rows.len(), "nothing was written");
}
on_each_database!(what_can_not_be_waited_for_is_refused, mariadb);

async fn neither_a_crash_nor_retention_loses_a_job_that_waits(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure("[retention]\ncompleted = \"1d\"\n");
    service.serve().await;
    let done = service.insert("ONE", &["say:done"]).await[0];
    service.until(done, JobStatus::Completed).await;
    let running = service.insert("ONE", &["wait"]).await[0];
    let job = waiting(&service, "say:at-last", &[done, running]).await;
    service.begun(running, 1).await;
    service.sql(&format!("UPDATE jobs SET completed_time = 1 WHERE id = {done}")).await;
    service.kill_9();
    service.go();
    service.serve().await;
    service.until(running, JobStatus::Completed).await;
    service.until(job, JobStatus::Completed).await;
    let output = service.cli(&["prune", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert!(service.store.job(done).await.unwrap().is_none(), "nobody waits for it any more");
    assert_eq!(service.evidence()[&(job.0, 1)].job, job.0);
}
on_each_database!(neither_a_crash_nor_retention_loses_a_job_that_waits, mariadb);

async fn the_end_of_one_and_the_wish_to_wait_for_it_never_miss_each_other(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    // Many at the same moments: what waits is enqueued while what it waits for ends.
    let mut all = Vec::new();
    for _ in 0..25 {
        let first = service.insert("ONE", &["run:0", "run:0.01"]).await;
        all.push(enqueue_store(&service, &first).await);
    }
    for job in all {
        service.until(job, JobStatus::Completed).await;
    }
}
on_each_server!(the_end_of_one_and_the_wish_to_wait_for_it_never_miss_each_other);

/// A retry notes what has ended of what its job waits for, and must not note over an end that is committed just then.
async fn an_end_that_is_committed_during_a_retry_is_not_forgotten(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    use sea_orm::{ConnectionTrait, TransactionTrait};
    let first = service.insert_row("type, identifier, status, run_token", "'ONE', 'a', 'PROGRESS', 'x'").await;
    let job = waiting(&service, "b", &[first]).await;
    service.sql(&format!("UPDATE jobs SET status = 'ERROR' WHERE id = {job}")).await;
    let foreign = service.foreign().await;
    let ending = foreign.begin().await.unwrap();
    ending.execute_unprepared(&format!("UPDATE jobs SET status = 'COMPLETED' WHERE id = {first}")).await.unwrap();
    let store = service.store.clone();
    let retry = tokio::spawn(async move { store.retry(&[job], "me").await.unwrap() });
    tokio::time::sleep(A_MOMENT).await;
    ending.commit().await.unwrap();
    assert_eq!(retry.await.unwrap(), [callsheet::store::RetryResult::Retried]);
    let after = service.store.dependencies(job).await.unwrap();
    assert_eq!(after[0].ended.as_deref(), Some("COMPLETED"));
}
on_each_server!(an_end_that_is_committed_during_a_retry_is_not_forgotten);

async fn enqueue_store(service: &Service, after: &[JobId]) -> JobId {
    let new = callsheet::store::NewJob {
        flow: "TWO".parse().unwrap(),
        identifier: "run:0".to_owned(),
        payload: None,
        priority: 0,
        due: callsheet::store::Due::After(std::time::Duration::ZERO),
        maximum_attempts: None,
        unique_key: None,
        trace: None,
    };
    let after = [(0, after.to_vec())].into();
    service.store.enqueue_after(&[new], &after).await.unwrap()[0].id
}
