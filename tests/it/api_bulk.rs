//! Many jobs, and a worker, at once by the API: by the rules of the command line, safe to repeat, and put down to who asked.

use callsheet::domain::JobStatus;
use serde_json::{Value, json};

use crate::on_each_database;
use crate::support::client::Answer;
use crate::support::eventually;
use crate::support::service::{On, Service};

const FLOWS: &str = "worker_id = \"node-a\"\n[flows.ONE]\n{job}\nkill_grace = \"300ms\"\n[flows.TWO]\n{job}\n";

async fn start(on: On) -> Option<Service> {
    let (worker, flows) = FLOWS.split_once('\n').unwrap();
    let mut service = Service::prepare(on, flows).await?;
    service.configure(&format!("{worker}\n"));
    service.serve().await;
    Some(service)
}

fn post(service: &Service, path: &str, body: Value) -> Answer {
    service.post(&format!("/api/v1/{path}"), &body)
}

/// Ids and what came of each.
fn results(answer: &Answer) -> Vec<(i64, String)> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let jobs = answer.json()["jobs"].as_array().unwrap().clone();
    jobs.iter().map(|job| (job["id"].as_i64().unwrap(), job["result"].as_str().unwrap().to_owned())).collect()
}

fn each(word: &str, ids: &[i64]) -> Vec<(i64, String)> {
    ids.iter().map(|id| (*id, word.to_owned())).collect()
}

async fn many_jobs_are_cancelled_and_retried_with_one_request(on: On) {
    let Some(service) = start(on).await else { return };
    let running = service.insert("ONE", &["run:600"]).await[0];
    service.until(running, JobStatus::Progress).await;
    let waiting: Vec<i64> = service.insert("ONE", &["run:0"; 3]).await.iter().map(|job| job.0).collect();
    let other = service.insert("TWO", &["exit:1"]).await[0];
    service.until(other, JobStatus::Error).await;
    let newest_first: Vec<i64> = waiting.iter().rev().copied().collect();

    let filter = json!({ "type": ["ONE"], "status": ["PENDING"] });
    let mut dry = filter.clone();
    dry["dry_run"] = json!(true);
    let answer = post(&service, "jobs/cancel", dry);
    assert_eq!(results(&answer), each("would_be_cancelled", &newest_first));
    assert_eq!((&answer.json()["dry_run"], &answer.json()["count"]), (&json!(true), &json!(3)));
    for id in &waiting {
        assert_eq!(service.job(callsheet::domain::JobId(*id)).await.status, JobStatus::Pending);
    }
    assert_eq!(results(&post(&service, "jobs/cancel", filter.clone())), each("cancelled", &newest_first));
    assert_eq!(results(&post(&service, "jobs/cancel", filter)), [], "there is nothing left to do");
    assert_eq!(service.job(running).await.cancel_requested_time, None, "it is PROGRESS, which was not meant");

    // By their ids each is told of, whatever its status is.
    let ids = json!({ "ids": [running.0, other.0, 999_999] });
    let answer = post(&service, "jobs/cancel", ids);
    let words: Vec<String> = results(&answer).into_iter().map(|(_, word)| word).collect();
    assert_eq!(words, ["requested", "not_possible", "not_found"]);
    assert_eq!(answer.json()["count"], 1);
    service.until(running, JobStatus::Cancelled).await;

    let answer =
        post(&service, "jobs/retry", json!({ "status": ["ERROR", "CANCELLED"], "type": ["TWO"], "dry_run": true }));
    assert_eq!(results(&answer), each("would_be_retried", &[other.0]));
    // Without a status, retrying means what has failed, and not what somebody has cancelled.
    assert_eq!(results(&post(&service, "jobs/retry", json!({ "type": ["ONE"] }))), []);
    assert_eq!(results(&post(&service, "jobs/retry", json!({ "identifier": "exit:1" }))), each("retried", &[other.0]));
    eventually("the second attempt to fail", async || service.job(other).await.attempt.0 == 2).await;
    service.until(other, JobStatus::Error).await;
    assert_eq!(results(&post(&service, "jobs/retry", json!({ "ids": waiting }))), each("retried", &waiting));
    for id in &waiting {
        service.until(callsheet::domain::JobId(*id), JobStatus::Completed).await;
    }

    let deeds = service.get("/api/v1/audit?limit=100").json()["audit"].as_array().unwrap().clone();
    let of = |action: &str| deeds.iter().filter(|deed| deed["action"] == action && deed["via"] == "api").count();
    assert!(of("cancel") >= 3 && of("retry") >= 2, "{deeds:?}");
}
on_each_database!(many_jobs_are_cancelled_and_retried_with_one_request);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_nothing_or_cannot_be_is_refused_before_anything_is_done() {
    let service = start(On::Sqlite).await.unwrap();
    service.sql("INSERT INTO jobs (type, identifier) VALUES ('NOBODYS', 'a')").await;
    for (path, body, field, says) in [
        ("jobs/cancel", json!({}), "body", "it names no jobs"),
        ("jobs/cancel", json!({ "dry_run": true }), "body", "it names no jobs"),
        ("jobs/cancel", json!({ "ids": [1], "type": ["NOBODYS"] }), "ids", "there is a filter too"),
        ("jobs/cancel", json!({ "status": ["PENDING", "ERROR"] }), "status", "a job that is ERROR can't be cancelled"),
        ("jobs/retry", json!({ "status": ["PENDING"] }), "status", "a job that is PENDING can't be retried"),
        ("jobs/retry", json!({ "status": ["Pending"] }), "status", "\"Pending\" is no status"),
        ("jobs/retry", json!({ "ids": ["1"] }), "ids", "invalid type"),
        ("jobs/cancel", json!({ "types": ["NOBODYS"] }), "types", "unknown field"),
        ("jobs/cancel", json!({ "ids": (0..1001).collect::<Vec<_>>() }), "ids", "at most 1000"),
    ] {
        let answer = post(&service, path, body.clone());
        answer.problem(422);
        let error = &answer.json()["errors"][0];
        assert_eq!(error["field"], field, "{body}");
        assert!(error["detail"].as_str().unwrap().contains(says), "{error}");
    }
    service.request("POST", "/api/v1/jobs/cancel", &["Content-Type: text/plain"], b"{}").problem(415);
    service.request("POST", "/api/v1/jobs/retry", &["Content-Type: application/json"], b"{").problem(400);
    assert_eq!(service.job(callsheet::domain::JobId(1)).await.status, JobStatus::Pending);
}

async fn a_worker_is_drained_by_the_api(on: On) {
    let Some(mut service) = start(on).await else { return };
    let job = service.insert("ONE", &["wait"]).await[0];
    service.until(job, JobStatus::Progress).await;
    for nobody in ["node-b", "x%20y"] {
        assert!(
            post(&service, &format!("workers/{nobody}/drain"), Value::Null).problem(404).contains("no running service")
        );
    }
    let drain = |service: &Service| service.request("POST", "/api/v1/workers/node-a/drain", &[], b"");
    let first = drain(&service);
    assert_eq!(first.status, 202, "{}", first.text());
    assert_eq!(first.json(), json!({ "worker_id": "node-a", "result": "requested", "waits_for": [job.0] }));
    assert_eq!(drain(&service).json()["result"], "already_requested");
    let audit = service.get("/api/v1/audit?action=drain").json();
    assert_eq!((&audit["audit"][0]["target"], &audit["audit"][0]["via"]), (&json!("worker node-a"), &json!("api")));
    let late = service.insert("ONE", &["run:0"]).await[0];
    service.go();
    service.until(job, JobStatus::Completed).await;
    service.ended().await;
    assert_eq!(service.job(late).await.status, JobStatus::Pending);
}
on_each_database!(a_worker_is_drained_by_the_api);
