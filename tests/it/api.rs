//! The HTTP API: what a program gets, and what it is told where it is wrong.

use callsheet::domain::JobStatus;
use serde_json::{Value, json};

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\n[flows.TWO]\n{job}\nidentifier_pattern = '[a-z]+'\n";

async fn jobs_are_enqueued_and_looked_at(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let answer = service.post(
        "/api/v1/jobs",
        &json!({
            "type": "ONE", "identifier": "say:hello", "payload": {"n": 1.5}, "priority": 3, "maximum_attempts": 2,
        }),
    );
    assert_eq!(answer.status, 201, "{}", answer.text());
    let job = answer.json();
    let id = job["id"].as_i64().unwrap();
    assert_eq!(answer.header("location"), Some(format!("/api/v1/jobs/{id}").as_str()));
    assert_eq!(
        (&job["type"], &job["identifier"], &job["payload"]),
        (&json!("ONE"), &json!("say:hello"), &json!({"n": 1.5}))
    );
    assert_eq!((&job["priority"], &job["maximum_attempts"], &job["existing"]), (&json!(3), &json!(2), &json!(false)));
    service.until(callsheet::domain::JobId(id), JobStatus::Completed).await;
    let shown = service.get(&format!("/api/v1/jobs/{id}")).json();
    assert_eq!((&shown["status"], &shown["exit_code"]), (&json!("COMPLETED"), &json!(0)));
    assert_eq!(shown["runs"][0]["outcome"], "COMPLETED");
    let steps: Vec<&str> =
        shown["events"].as_array().unwrap().iter().map(|event| event["to_status"].as_str().unwrap()).collect();
    assert_eq!(steps, ["INQUEUE", "PROGRESS", "COMPLETED"]);
    assert!(shown["created_time"].as_str().unwrap().ends_with('Z'));
    service.get("/api/v1/jobs/987654").problem(404);
    let refused = service.get("/api/v1/jobs/abc");
    assert!(refused.problem(400).contains("abc"));
    assert_eq!(refused.json()["errors"][0]["field"], "id");
}
on_each_database!(jobs_are_enqueued_and_looked_at);

async fn an_enqueue_can_be_repeated(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = |key: &str| json!({"type": "ONE", "identifier": "wait", "unique_key": key});
    let first = service.post("/api/v1/jobs", &job("a"));
    let again = service.post("/api/v1/jobs", &job("a"));
    assert_eq!((first.status, again.status), (201, 200));
    assert_eq!((&first.json()["id"], &again.json()["existing"]), (&again.json()["id"], &json!(true)));
    let both = service.post("/api/v1/jobs", &json!([job("b"), job("a")]));
    assert_eq!(both.status, 201);
    assert_eq!((&both.json()[1]["id"], &both.json()[0]["existing"]), (&first.json()["id"], &json!(false)));
    assert_eq!(service.post("/api/v1/jobs", &json!([job("b"), job("a")])).status, 200);
    service.go();
}
on_each_database!(an_enqueue_can_be_repeated);

async fn ten_thousand_are_one_transaction(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let later =
        |identifier: String| json!({"type": "ONE", "identifier": identifier, "run_at": "2099-01-01T00:00:00+01:00"});
    let mut many: Vec<Value> = (0..10_000).map(|n| later(format!("job{n}"))).collect();
    let answer = service.post("/api/v1/jobs", &json!(many));
    assert_eq!(answer.status, 201, "{}", answer.text());
    let made = answer.json();
    let made = made.as_array().unwrap();
    assert_eq!(made.len(), 10_000);
    assert!(made.iter().enumerate().all(|(n, job)| job["identifier"] == format!("job{n}")));
    assert_eq!(made[0]["run_at"], "2098-12-31T23:00:00.000Z");
    // One that can't be used keeps all others out.
    many[7_777]["identifier"] = json!("--help");
    let refused = service.post("/api/v1/jobs", &json!(many[7_000..8_000]));
    refused.problem(422);
    let error = &refused.json()["errors"][0];
    assert_eq!((&error["pointer"], &error["field"]), (&json!("#/777/identifier"), &json!("identifier")));
    many.push(later("one-more".to_owned()));
    assert!(service.post("/api/v1/jobs", &json!(many)).problem(422).contains("10001"));
    let count = service.store.flow_states().await.unwrap();
    assert_eq!(count.iter().find(|flow| flow.job_type == "ONE").unwrap().pending, 10_000);
    let audit = service.get("/api/v1/audit?limit=1").json();
    let deed = &audit["audit"][0];
    assert_eq!((&deed["actor"], &deed["via"], &deed["action"]), (&json!("local"), &json!("api"), &json!("enqueue")));
    assert!(deed["target"].as_str().unwrap().starts_with("10000 jobs"), "{deed}");
}
on_each_database!(ten_thousand_are_one_transaction);

async fn pages_stay_right_while_rows_change(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let many: Vec<Value> = (0..25)
        .map(|n| json!({"type": "TWO", "identifier": "wait", "priority": n, "run_at": "2099-01-01T00:00:00Z"}))
        .collect();
    service.post("/api/v1/jobs", &json!(many));
    let mut seen = Vec::new();
    let mut address = "/api/v1/jobs?type=TWO&status=PENDING&status=CANCELLED&limit=10".to_owned();
    loop {
        let page = service.get(&address).json();
        seen.extend(page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_i64().unwrap()));
        // More come, and some change, while somebody turns the pages.
        service.post("/api/v1/jobs", &json!({"type": "TWO", "identifier": "wait", "run_at": "2099-01-01T00:00:00Z"}));
        service.post(&format!("/api/v1/jobs/{}/cancel", seen.last().unwrap()), &json!(null));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        address = format!("/api/v1/jobs?type=TWO&status=PENDING&status=CANCELLED&limit=10&cursor={cursor}");
    }
    assert_eq!(seen.len(), 25);
    assert!(seen.windows(2).all(|pair| pair[0] > pair[1]), "{seen:?}");
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("cursor=17", "cursor"),
        ("status=DONE", "status"),
        ("identifier=a&identifier=b", "identifier"),
        ("nonsense=1", "\"nonsense\""),
    ] {
        let refused = service.get(&format!("/api/v1/jobs?{query}"));
        refused.problem(400);
        assert_eq!(refused.json()["errors"][0]["field"], field);
    }
}
on_each_database!(pages_stay_right_while_rows_change);

async fn a_job_is_cancelled_once(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let id = service.post("/api/v1/jobs", &json!({"type": "ONE", "identifier": "wait"})).json()["id"].as_i64().unwrap();
    let job = callsheet::domain::JobId(id);
    service.until(job, JobStatus::Progress).await;
    let cancel = format!("/api/v1/jobs/{id}/cancel");
    let accepted = service.post(&cancel, &json!(null));
    assert_eq!((accepted.status, &accepted.json()["id"]), (202, &json!(id)));
    service.until(job, JobStatus::Cancelled).await;
    assert!(service.post(&cancel, &json!(null)).problem(409).contains("CANCELLED"));
    service.post("/api/v1/jobs/987654/cancel", &json!(null)).problem(404);
    let audit = service.get("/api/v1/audit?action=cancel").json();
    let deeds: Vec<_> = audit["audit"]
        .as_array()
        .unwrap()
        .iter()
        .map(|deed| format!("{}: {}", deed["target"], deed["outcome"]))
        .collect();
    let expected = [
        "\"job 987654\": \"refused: there is no such job\"".to_owned(),
        format!("\"job {id}\": \"refused: it is CANCELLED\""),
        format!("\"job {id}\": \"done\""),
    ];
    assert_eq!(deeds, expected);
    service.nothing_alive().await;
}
on_each_database!(a_job_is_cancelled_once);

async fn flows_are_paused_and_jobs_retried(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let paused = service.post("/api/v1/flows/ONE/pause", &json!(null));
    assert_eq!((paused.status, &paused.json()["paused"]), (200, &json!(true)), "{}", paused.text());
    assert_eq!(service.post("/api/v1/flows/ONE/pause", &json!(null)).json()["paused_by"], "local (api)");
    service.post("/api/v1/flows/NONE/pause", &json!(null)).problem(404);
    service.post("/api/v1/flows/n%00ne/resume", &json!(null)).problem(404);
    let id =
        service.post("/api/v1/jobs", &json!({"type": "ONE", "identifier": "exit:1"})).json()["id"].as_i64().unwrap();
    let retry = format!("/api/v1/jobs/{id}/retry");
    assert!(service.post(&retry, &json!(null)).problem(409).contains("PENDING"));
    let flows = service.get("/api/v1/flows").json();
    let one = flows["flows"].as_array().unwrap().iter().find(|flow| flow["type"] == "ONE").unwrap();
    assert_eq!((&one["paused"], &one["pending"], &one["concurrency"]), (&json!(true), &json!(1), &json!(1)));
    assert_eq!(service.post("/api/v1/flows/ONE/resume", &json!(null)).json()["paused"], false);
    let job = callsheet::domain::JobId(id);
    service.until(job, JobStatus::Error).await;
    assert_eq!(service.post(&retry, &json!(null)).status, 202);
    eventually("the second attempt to have failed", async || {
        service.runs(job).await.iter().filter(|run| run.outcome.is_some()).count() == 2
    })
    .await;
    service.post("/api/v1/jobs/987654/retry", &json!(null)).problem(404);
    let workers = service.get("/api/v1/workers").json();
    assert_eq!(workers["workers"][0]["state"], "ACTIVE");
    let audit = service.get("/api/v1/audit").json();
    let deeds: Vec<&str> =
        audit["audit"].as_array().unwrap().iter().map(|deed| deed["action"].as_str().unwrap()).collect();
    for action in ["pause", "resume", "enqueue", "retry"] {
        assert!(deeds.contains(&action), "{deeds:?}");
    }
}
on_each_database!(flows_are_paused_and_jobs_retried);

async fn output_is_read_by_offset_and_followed(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let id =
        service.post("/api/v1/jobs", &json!({"type": "ONE", "identifier": "say:first+complain:second+wait+say:third"}));
    let job = callsheet::domain::JobId(id.json()["id"].as_i64().unwrap());
    service.until(job, JobStatus::Progress).await;
    let logs = format!("/api/v1/jobs/{job}/logs");
    eventually("the first lines", async || service.get(&format!("{logs}?stream=stderr")).text() == "second\n").await;
    // Another pipe is read in its own time.
    eventually("the other one", async || service.get(&format!("{logs}?stream=stdout")).text() == "first\n").await;
    let first = service.get(&format!("{logs}?stream=stdout"));
    assert_eq!((first.status, first.text().as_str()), (200, "first\n"));
    assert_eq!(first.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(first.header("callsheet-next-offset"), Some("6"));
    assert_eq!(service.get(&format!("{logs}?stream=stdout&offset=2")).text(), "rst\n");
    assert_eq!(service.get(&format!("{logs}?stream=stdout&tail=1")).text(), "first\n");
    let follow = format!("{logs}?stream=stdout&follow=true");
    let mut stream = service.events(&follow, &[]);
    let told = stream.next().unwrap();
    assert_eq!(told.json()["pieces"][0]["text"], "first\n");
    // The service goes and comes, the command notices nothing, and the client goes on where it was.
    service.stop().await;
    assert_eq!(stream.next(), None);
    service.serve().await;
    let last = format!("Last-Event-ID: {}", told.id.unwrap());
    let mut stream = service.events(&follow, &[&last]);
    service.go();
    let told = stream.next().unwrap();
    assert_eq!((&told.json()["offset"], &told.json()["pieces"][0]["text"]), (&json!(6), &json!("third\n")));
    let end = stream.next().unwrap();
    assert_eq!((end.event.as_str(), &end.json()["outcome"]), ("end", &json!("COMPLETED")));
    assert_eq!(stream.next(), None);
    // From the start again, after the end: everything, and that it has ended.
    let both: Vec<_> = service.events(&format!("{logs}?follow=true"), &[]).collect();
    assert_eq!(both.last().unwrap().event, "end");
    let text: String = both
        .iter()
        .filter(|told| told.event == "message")
        .flat_map(|told| told.json()["pieces"].as_array().unwrap().clone())
        .map(|piece| piece["text"].as_str().unwrap().to_owned())
        .collect();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["first", "second", "third"]);
    for (query, field) in
        [("offset=x", "offset"), ("stream=x", "stream"), ("attempt=0", "attempt"), ("offset=1&tail=1", "tail")]
    {
        let refused = service.get(&format!("{logs}?{query}"));
        refused.problem(400);
        assert_eq!(refused.json()["errors"][0]["field"], field);
    }
    assert!(service.get(&format!("{logs}?attempt=2")).problem(404).contains("attempt 2"));
    service.get("/api/v1/jobs/987654/logs?follow=true").problem(404);
    // What has not begun is waited for, and what never will is told.
    let later =
        service.post("/api/v1/jobs", &json!({"type": "TWO", "identifier": "say", "run_at": "2099-01-01T00:00:00Z"}));
    let later = later.json()["id"].as_i64().unwrap();
    assert!(service.get(&format!("/api/v1/jobs/{later}/logs")).problem(404).contains("PENDING"));
    let mut stream = service.events(&format!("/api/v1/jobs/{later}/logs?follow=true"), &[]);
    service.post(&format!("/api/v1/jobs/{later}/cancel"), &json!(null));
    let end = stream.next().unwrap();
    assert_eq!((end.event.as_str(), &end.json()["status"]), ("end", &json!("CANCELLED")));
}
on_each_database!(output_is_read_by_offset_and_followed);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_refused_as_a_problem() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    let json = "Content-Type: application/json";
    service.request("POST", "/api/v1/jobs", &["Content-Type: text/plain"], b"{}").problem(415);
    service.request("POST", "/api/v1/jobs", &[], b"{}").problem(415);
    assert!(service.request("POST", "/api/v1/jobs", &[json], b"{").problem(400).contains("no JSON"));
    assert!(service.request("POST", "/api/v1/jobs", &[json], b"\xff").problem(400).contains("no JSON"));
    let unknown = service.post("/api/v1/jobs", &json!({"type": "one", "identifier": "a"}));
    assert!(unknown.problem(422).contains("did you mean ONE?"));
    service.post("/api/v1/jobs", &json!({"type": "TWO", "identifier": "A", "unique_key": "a\0"})).problem(422);
    // A body that says it is too large is not read; one that turns out to be is not read to its end.
    let unfinished = |length: usize| {
        let address = service.address();
        format!(
            "POST /api/v1/jobs HTTP/1.1\r\nHost: {address}\r\n{json}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{{"
        )
    };
    service.send(unfinished((16 << 20) + 1).as_bytes()).problem(413);
    let large = vec![b' '; (16 << 20) + 1];
    assert_eq!(service.request("POST", "/api/v1/jobs", &[json], &large).status, 413);
    let large = service.request("GET", "/api/v1/jobs", &[&format!("X-Large: {}", "x".repeat(40_000))], b"");
    assert_eq!(large.status, 431);
    let refused = service.request("DELETE", "/api/v1/jobs", &[], b"");
    refused.problem(405);
    assert_eq!(refused.header("allow"), Some("GET,HEAD,POST"));
    let options = service.request("OPTIONS", "/api/v1/jobs", &[], b"");
    assert_eq!((options.status, options.header("allow")), (204, Some("GET,HEAD,POST,OPTIONS")));
    let head = service.request("HEAD", "/api/v1/jobs", &[], b"");
    assert_eq!((head.status, head.body.len(), head.header("content-type")), (200, 0, Some("application/json")));
    service.get("/api/v1/nothing").problem(404);
    service.request("POST", "/api/v1/jobs/1/nothing", &[], b"").problem(404);
    // A client that promises a body and sends none holds up nobody, and is told so in the end.
    let begun = std::time::Instant::now();
    let slow = service.send(unfinished(9).as_bytes());
    slow.problem(408);
    assert!(begun.elapsed().as_secs() >= 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tree_of_actors_is_shown() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    let job = service.insert("ONE", &["wait"]).await[0];
    service.until(job, JobStatus::Progress).await;
    let mut tree = Value::Null;
    let named = |tree: &Value, name: &str| {
        tree["actors"].as_array().unwrap().iter().find(|actor| actor["name"] == name).cloned()
    };
    eventually("the job's actor and its heartbeat", async || {
        tree = service.get("/api/v1/actors").json();
        // Asked for at a moment at which nobody has sent anything.
        named(&tree, "heartbeat").is_some() && named(&tree, "two").is_some_and(|two| two["mailbox_depth"] == 0)
    })
    .await;
    let run = named(&tree, &format!("one({job})")).unwrap();
    assert_eq!((&run["role"], &run["type"], &run["restarts"]), (&json!("job"), &json!("ONE"), &json!(0)));
    assert!(run["last_message_age_ms"].is_u64());
    assert_eq!(named(&tree, "heartbeat").unwrap()["parent_id"], run["id"]);
    let dispatcher = named(&tree, "two").unwrap();
    assert_eq!(dispatcher["role"], "dispatcher");
    assert_eq!(named(&tree, "master_two").unwrap()["role"], "scheduler");
    assert_eq!(named(&tree, "root").unwrap()["parent_id"], Value::Null);
    let shown = service.cli(&["actors"]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && text.contains(&format!("      one({job})")), "{text}");
    let asked: Value = serde_json::from_slice(&service.cli(&["actors", "--json"]).stdout).unwrap();
    assert_eq!(asked["worker_id"], tree["worker_id"]);
    service.go();
    eventually("the job's actor to be gone", async || {
        named(&service.get("/api/v1/actors").json(), &format!("one({job})")).is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_service_there_are_no_actors() {
    let mut service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    service.stop().await;
    let asked = service.cli(&["actors"]);
    let text = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert_eq!(asked.status.code(), Some(1), "{text}");
    assert!(text.contains("no service answers at") && text.contains("callsheet serve"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_is_whole() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    let description = service.get("/api/openapi.json").json();
    assert!(description["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut operations = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations.push(format!("{} {path}", method.to_uppercase()));
            for status in ["400", "401", "403", "500", "503"] {
                assert!(operation["responses"][status].is_object(), "{method} {path} {status}");
            }
        }
    }
    operations.sort();
    let expected = [
        "GET /api/v1/actors",
        "GET /api/v1/audit",
        "GET /api/v1/deliveries",
        "GET /api/v1/events",
        "GET /api/v1/flows",
        "GET /api/v1/jobs",
        "GET /api/v1/jobs/{id}",
        "GET /api/v1/jobs/{id}/logs",
        "GET /api/v1/recurring",
        "GET /api/v1/workers",
        "POST /api/v1/deliveries/{id}/again",
        "POST /api/v1/flows/{type}/pause",
        "POST /api/v1/flows/{type}/resume",
        "POST /api/v1/jobs",
        "POST /api/v1/jobs/cancel",
        "POST /api/v1/jobs/retry",
        "POST /api/v1/jobs/{id}/cancel",
        "POST /api/v1/jobs/{id}/retry",
        "POST /api/v1/prune",
        "POST /api/v1/workers/{worker_id}/drain",
    ];
    assert_eq!(operations, expected);
    // Whatever is referred to is there.
    let text = description.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(description["components"]["schemas"][reference].is_object(), "{reference}");
    }
}
