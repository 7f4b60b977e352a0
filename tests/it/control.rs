//! What operators do to flows and workers, by the commands' own record of what it does to them.

use std::process::{Output, Stdio};

use callsheet::domain::JobStatus;
use serde_json::Value;

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{A_MOMENT, CONFIRMATION, On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\nkill_grace = \"300ms\"\n[flows.MANY]\n{job}\nconcurrency = 4\n";

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

async fn a_paused_flow_starts_nothing_and_its_running_command_is_left_alone(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let running = service.insert("ONE", &["wait"]).await[0];
    let begun = service.begun(running, 1).await;
    service.until(running, JobStatus::Progress).await;
    let output = service.cli(&["pause", "ONE"]);
    assert!(output.status.success(), "{}", text(&output));
    let waiting = service.insert("ONE", &["run:0"]).await[0];
    let other = service.insert("MANY", &["run:0"]).await[0];
    service.until(other, JobStatus::Completed).await;
    service.go();
    service.until(running, JobStatus::Completed).await;
    assert_eq!(service.evidence()[&(running.0, 1)].pid, begun.pid, "its command was left alone");
    let flows = json(&service.cli(&["--json", "flows"]));
    let one = flows["flows"].as_array().unwrap().iter().find(|flow| flow["type"] == "ONE").unwrap();
    assert_eq!((one["paused"].as_bool(), one["pending"].as_u64()), (Some(true), Some(1)));
    assert!(one["paused_by"].as_str().unwrap().ends_with(" (cli)"));
    assert!(text(&service.cli(&["flows"])).contains("paused by "));
    // Across a restart, and when it was asked for twice.
    service.stop().await;
    assert!(text(&service.cli(&["pause", "ONE"])).contains("was paused already"));
    service.serve().await;
    let other = service.insert("MANY", &["run:0"]).await[0];
    service.until(other, JobStatus::Completed).await;
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(service.job(waiting).await.status, JobStatus::Pending);
    assert!(!service.evidence().contains_key(&(waiting.0, 1)));
    let output = service.cli(&["--json", "resume", "ONE"]);
    assert_eq!(json(&output), serde_json::json!({ "type": "ONE", "paused": false, "changed": true }));
    service.until(waiting, JobStatus::Completed).await;
}
on_each_database!(a_paused_flow_starts_nothing_and_its_running_command_is_left_alone, mariadb);

async fn what_cannot_be_paused_is_refused(on: On) {
    // Before any service has served it: the configuration knows the flow.
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    assert!(service.cli(&["pause", "ONE", "MANY"]).status.success());
    let output = service.cli(&["pause", "one"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert_eq!(service.cli(&["resume", "NOTHING"]).status.code(), Some(3));
    for wrong in [&["pause"][..], &["pause", "a b"], &["pause", "x;y"], &["resume"]] {
        assert_eq!(service.cli(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let states = service.store.flow_states().await.unwrap();
    assert_eq!(states.iter().filter(|state| state.paused).count(), 2);
}
on_each_database!(what_cannot_be_paused_is_refused);

async fn waiting_jobs_are_cancelled_in_bulk_also_while_the_service_is_down(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let running = service.insert("ONE", &["wait"]).await[0];
    service.until(running, JobStatus::Progress).await;
    service.kill_9();
    let waiting = service.insert("ONE", &["run:0"; 4]).await;
    let other = service.insert("MANY", &["run:0"]).await[0];
    let dry = service.cli(&["cancel", "--type", "ONE", "--dry-run"]);
    assert!(text(&dry).contains("dry run: 5 jobs would be cancelled (4 PENDING, 1 PROGRESS)"), "{}", text(&dry));
    let output = service.cli(&["cancel", "--type", "ONE", "--status", "PENDING"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 4);
    for job in &waiting {
        assert_eq!(service.job(*job).await.status, JobStatus::Cancelled);
        assert_eq!(service.changes(*job).await, ["CANCELLED"]);
    }
    assert_eq!(service.job(running).await.cancel_requested_time, None);
    assert_eq!(service.job(other).await.status, JobStatus::Pending);
    assert_eq!(service.cli(&["cancel", "--status", "ERROR"]).status.code(), Some(2));
    assert_eq!(service.cli(&["cancel", "1", "--type", "ONE"]).status.code(), Some(2));
    assert!(text(&service.cli(&["cancel", "--type", "NOTHING"])).contains("no such open jobs"));
    service.serve().await;
    assert!(service.cli(&["cancel", "--type", "ONE"]).status.success());
    service.until(running, JobStatus::Cancelled).await;
    service.until(other, JobStatus::Completed).await;
    service.nothing_alive().await;
}
on_each_database!(waiting_jobs_are_cancelled_in_bulk_also_while_the_service_is_down, mariadb);

async fn a_unique_key_is_enqueued_once_by_many_processes(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    let enqueue = |key: &str| {
        let mut command = service.command();
        command.args(["enqueue", "ONE", "run:0", "--unique-key", key]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let children: Vec<_> = (0..8).map(|n| enqueue(["k", "other"][n % 2])).collect();
    let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    let ids: Vec<String> =
        outputs.iter().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).collect();
    for key in 0..2 {
        assert!(ids.iter().skip(key).step_by(2).all(|id| *id == ids[key]), "{ids:?}");
    }
    assert_ne!(ids[0], ids[1]);
    for hostile in ["", "a\nb", "a\u{1b}[2J", &"x".repeat(300)] {
        let output = service.cli(&["enqueue", "ONE", "run:0", "--unique-key", hostile]);
        assert_eq!(output.status.code(), Some(2), "{hostile:?}: {}", text(&output));
    }
    // The quote of SQL is a character like any other.
    let quote = "it's; DROP TABLE jobs --";
    let first = service.cli(&["enqueue", "ONE", "run:0", "--unique-key", quote]);
    let second = service.cli(&["enqueue", "ONE", "run:1", "--unique-key", quote]);
    assert!(first.status.success() && first.stdout == second.stdout, "{}{}", text(&first), text(&second));
    // The same key in another type is another job, and one that has ended is free again.
    let other = service.cli(&["enqueue", "MANY", "run:0", "--unique-key", "k"]);
    assert!(other.status.success() && String::from_utf8_lossy(&other.stdout).trim() != ids[0]);
    assert!(service.cli(&["cancel", &ids[0]]).status.success());
    let again = service.cli(&["enqueue", "ONE", "run:0", "--unique-key", "k"]);
    assert!(String::from_utf8_lossy(&again.stdout).trim() != ids[0]);
}
on_each_database!(a_unique_key_is_enqueued_once_by_many_processes, mariadb);

async fn workers_show_who_lives_and_what_they_run(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("ONE", &["wait"]).await[0];
    service.until(job, JobStatus::Progress).await;
    let workers = json(&service.cli(&["--json", "workers"]));
    let worker = &workers["workers"][0];
    assert_eq!((worker["state"].as_str(), worker["runs"].as_u64()), (Some("ACTIVE"), Some(1)));
    assert_eq!(worker["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
    assert!(worker["heartbeat_age_seconds"].as_u64().unwrap() < 30);
    let table = text(&service.cli(&["workers"]));
    assert!(table.starts_with("WORKER") && table.contains("ACTIVE"), "{table}");
    service.kill_9();
    // Dead for longer than any live one is silent, by the database's clock.
    service.sql("UPDATE workers SET heartbeat_time = heartbeat_time - 60000").await;
    let workers = json(&service.cli(&["--json", "workers"]));
    assert_eq!(workers["workers"][0]["state"].as_str(), Some("MISSING"));
    service.serve().await;
    eventually("the worker to be back", async || {
        json(&service.cli(&["--json", "workers"]))["workers"][0]["state"].as_str() == Some("ACTIVE")
    })
    .await;
    service.go();
    service.until(job, JobStatus::Completed).await;
    service.stop().await;
    let workers = json(&service.cli(&["--json", "workers"]));
    assert_eq!(workers["workers"][0]["state"].as_str(), Some("STOPPED"));
}
on_each_database!(workers_show_who_lives_and_what_they_run);

async fn a_drained_worker_ends_when_its_runs_have_ended(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let running = service.insert("MANY", &["wait"; 4]).await;
    for job in &running {
        service.until(*job, JobStatus::Progress).await;
    }
    let [a, b, c, d] = [0, 1, 2, 3].map(|n: usize| running[n]);
    let output = service.cli(&["drain"]);
    assert!(output.status.success(), "{}", text(&output));
    let says = text(&output);
    assert!(says.contains(&format!("4 runs have ended (jobs {a}, {b}, {c}, {d})")), "{says}");
    eventually("the worker to say that it drains", async || {
        json(&service.cli(&["--json", "workers"]))["workers"][0]["state"].as_str() == Some("DRAINING")
    })
    .await;
    let waiting = service.insert("ONE", &["run:0"]).await[0];
    let again = json(&service.cli(&["--json", "drain"]));
    assert_eq!(again["result"].as_str(), Some("already_requested"));
    assert_eq!(again["waits_for"], serde_json::json!([a.0, b.0, c.0, d.0]));
    let table = text(&service.cli(&["workers"]));
    assert!(table.contains("DRAINING") && table.contains("drained by "), "{table}");
    eventually("readyz to say what it waits for", async || {
        let ready = ready(&service);
        ready.starts_with("HTTP/1.1 503") && ready.contains(&format!("waits for 4 of its runs to end: many({a})"))
    })
    .await;
    assert_eq!(service.job(waiting).await.status, JobStatus::Pending);
    // One ends: the others are still waited for. Cancelling is as prompt as ever: it is heard of before the run is confirmed
    // next, which would bring it too. On a machine that stands still for long it may take another try.
    let mut prompt = false;
    for (job, left) in [(a, 3), (b, 2), (c, 1)] {
        let before = service.confirmed(job).await;
        assert!(service.cli(&["cancel", &job.to_string()]).status.success());
        let ended = service.until(job, JobStatus::Cancelled).await.completed_time.unwrap();
        prompt = ended.since(before) < CONFIRMATION;
        let says = format!("waits for {left} of its runs");
        eventually("one run less", async || ready(&service).contains(&says)).await;
        if prompt {
            break;
        }
    }
    assert!(prompt, "each time it may have been a confirmation that brought it");
    let mut drain = service.command();
    let said = service.path("drain");
    let mut drain = drain.args(["drain", "--wait"]).stdout(std::fs::File::create(&said).unwrap()).spawn().unwrap();
    // One that comes when all is over is told that there is nothing to drain.
    eventually("drain --wait to wait", async || std::fs::metadata(&said).unwrap().len() > 0).await;
    service.go();
    service.ended().await;
    let mut status = None;
    eventually("drain --wait to end", async || {
        status = drain.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert!(status.unwrap().success());
    assert_eq!(service.job(d).await.status, JobStatus::Completed);
    assert_eq!(service.job(waiting).await.status, JobStatus::Pending);
    let workers = json(&service.cli(&["--json", "workers"]));
    assert_eq!(workers["workers"][0]["state"].as_str(), Some("STOPPED"));
    let gone = service.cli(&["drain"]);
    assert_eq!(gone.status.code(), Some(3), "{}", text(&gone));
    // A new start of the worker is not drained.
    service.serve().await;
    service.until(waiting, JobStatus::Completed).await;
}
on_each_database!(a_drained_worker_ends_when_its_runs_have_ended, mariadb);

async fn an_idle_worker_drains_at_once_and_a_signal_hastens_a_busy_one(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    assert_eq!(service.cli(&["drain"]).status.code(), Some(3), "no service has ever run here");
    assert!(!service.path("data/worker_id").exists(), "asking makes none");
    service.serve().await;
    assert!(text(&service.cli(&["drain", "--wait"])).contains("ends at once"));
    service.ended().await;
    service.serve().await;
    let running = service.insert("ONE", &["wait"]).await[0];
    let begun = service.begun(running, 1).await;
    service.until(running, JobStatus::Progress).await;
    assert!(service.cli(&["drain"]).status.success());
    eventually("the drain to begin", async || ready(&service).contains("waits for 1 of its runs")).await;
    // SIGTERM while it drains: on_stop is "leave", and the command runs on.
    service.stop().await;
    assert!(service.alive().iter().any(|(pid, _)| *pid == begun.pid), "{:?}", service.alive());
    service.serve().await;
    service.go();
    service.until(running, JobStatus::Completed).await;
    assert_eq!(service.cli(&["drain", "--worker", "nobody"]).status.code(), Some(3));
    assert_eq!(service.cli(&["drain", "--worker", "a b"]).status.code(), Some(2));
}
on_each_database!(an_idle_worker_drains_at_once_and_a_signal_hastens_a_busy_one);

fn ready(service: &Service) -> String {
    let mut response = String::new();
    let Ok(mut stream) = std::net::TcpStream::connect(service.address()) else { return response };
    std::io::Write::write_all(&mut stream, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    std::io::Read::read_to_string(&mut stream, &mut response).ok();
    response
}
