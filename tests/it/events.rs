//! The stream of status changes: nothing is missed, whatever happens to service, client and transactions.

use std::collections::BTreeSet;

use callsheet::domain::{JobId, JobStatus};
use serde_json::json;

use crate::support::client::ServerSent;
use crate::support::eventually;
use crate::support::service::{On, Service};
use crate::{on_each_database, on_each_server};

const FLOWS: &str = "[flows.ONE]\n{job}\n[flows.TWO]\n{job}\n";

fn steps(events: &[ServerSent]) -> Vec<(i64, String)> {
    events
        .iter()
        .map(|event| {
            let json = event.json();
            assert_eq!(event.id.as_deref(), Some(json["id"].to_string().as_str()));
            (json["job_id"].as_i64().unwrap(), json["to_status"].as_str().unwrap().to_owned())
        })
        .collect()
}

fn path(job: JobId) -> Vec<(i64, String)> {
    ["INQUEUE", "PROGRESS", "COMPLETED"].map(|status| (job.0, status.to_owned())).to_vec()
}

async fn a_stream_goes_on_where_it_was_over_a_restart(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let mut stream = service.events("/api/v1/events", &[]);
    let first = service.insert("ONE", &["say:a"]).await[0];
    let heard: Vec<ServerSent> = stream.by_ref().take(3).collect();
    assert_eq!(steps(&heard), path(first));
    assert_eq!(heard[0].json()["type"], "ONE");
    service.stop().await;
    // The service ends its streams, and does not wait for their clients.
    assert_eq!(stream.next(), None);
    let second = service.insert("ONE", &["say:b"]).await[0];
    service.serve().await;
    service.until(second, JobStatus::Completed).await;
    // From the middle of the first job on: what was missed comes from the database, what happens then follows.
    let last = format!("Last-Event-ID: {}", heard[1].id.as_deref().unwrap());
    let mut stream = service.events("/api/v1/events", &[&last]);
    let third = service.insert("ONE", &["say:c"]).await[0];
    let mut expected = vec![(first.0, "COMPLETED".to_owned())];
    expected.extend(path(second));
    expected.extend(path(third));
    assert_eq!(steps(&stream.by_ref().take(7).collect::<Vec<_>>()), expected);
    // A client that is told only of what it asks for.
    let mut stream = service.events(&format!("/api/v1/events?after=0&job_id={second}&type=ONE"), &[]);
    assert_eq!(steps(&stream.by_ref().take(3).collect::<Vec<_>>()), path(second));
    // An id that this database has not drawn yet is another's.
    let mut stream = service.events("/api/v1/events", &["Last-Event-ID: 99999999"]);
    assert_eq!(stream.next().unwrap().event, "resync");
    service.request("GET", "/api/v1/events", &["Last-Event-ID: x"], b"").problem(400);
    service.request("GET", "/api/v1/events?after=-1", &[], b"").problem(400);
}
on_each_database!(a_stream_goes_on_where_it_was_over_a_restart, mariadb);

async fn many_streams_all_hear_everything(on: On) {
    let Some(service) = Service::start(on, "[flows.ONE]\n{job}\nconcurrency = 8\n").await else { return };
    let streams: Vec<_> = (0..20).map(|_| service.events("/api/v1/events", &[])).collect();
    let jobs: Vec<_> = (0..40).map(|n| json!({"type": "ONE", "identifier": format!("say:{n}")})).collect();
    let made = service.post("/api/v1/jobs", &json!(jobs)).json();
    let made: BTreeSet<i64> = made.as_array().unwrap().iter().map(|job| job["id"].as_i64().unwrap()).collect();
    for mut stream in streams {
        let heard = steps(&stream.by_ref().take(120).collect::<Vec<_>>());
        let ended: BTreeSet<i64> =
            heard.iter().filter(|(_, status)| status == "COMPLETED").map(|(job, _)| *job).collect();
        assert_eq!((heard.len(), &ended), (120, &made));
    }
}
on_each_database!(many_streams_all_hear_everything);

/// Ids are drawn before the commit: a transaction that commits later may have drawn lower ones.
async fn what_is_committed_late_is_told_before_what_comes_after_it(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    use sea_orm::{ConnectionTrait, TransactionTrait};
    let jobs = service.insert("NOBODYS", &["a", "b"]).await;
    let event =
        |job: JobId| format!("INSERT INTO job_events (job_id, attempt, to_status, time) VALUES ({job}, 1, 'X', 1)");
    // On MariaDB there is no telling unless the transaction says so first, as each of the service's does.
    let before = service.store.final_event().await.unwrap();
    let turn = match on {
        On::MariaDb => {
            format!("INSERT INTO event_writers (writer, turn, drawn, time) VALUES (CONNECTION_ID(), 1, {before}, 0)")
        }
        On::Sqlite | On::Postgres => "SELECT 1".to_owned(),
    };
    let mut stream = service.events(&format!("/api/v1/events?after={before}"), &[]);
    let slow = service.foreign().await;
    let transaction = slow.begin().await.unwrap();
    transaction.execute_unprepared(&turn).await.unwrap();
    transaction.execute_unprepared(&event(jobs[0])).await.unwrap();
    // Meanwhile others commit, and one of them fails.
    service.sql(&event(jobs[1])).await;
    let fast = service.foreign().await;
    let failed = fast.begin().await.unwrap();
    failed.execute_unprepared(&event(jobs[1])).await.unwrap();
    failed.rollback().await.unwrap();
    service.sql(&event(jobs[1])).await;
    assert_eq!(service.store.final_event().await.unwrap(), before, "an id was called final that may still come");
    assert_eq!(service.store.events_after(before, 100).await.unwrap().events, []);
    // A transaction that draws several holds the lock from its first on.
    transaction.execute_unprepared(&event(jobs[0])).await.unwrap();
    assert_eq!(service.store.final_event().await.unwrap(), before);
    transaction.commit().await.unwrap();
    let ids: Vec<i64> =
        stream.by_ref().take(4).map(|event| event.id.unwrap().parse::<i64>().unwrap() - before).collect();
    assert_eq!(ids, [1, 2, 4, 5]);
    assert_eq!(service.store.final_event().await.unwrap(), before + 5);
}
on_each_server!(what_is_committed_late_is_told_before_what_comes_after_it);

async fn the_command_line_follows_them_with_the_service_down(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("ONE", &["say:a"]).await[0];
    service.until(job, JobStatus::Completed).await;
    service.stop().await;
    let shown = service.cli(&["events"]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let words = ["  INQUEUE → PROGRESS  ", "  PROGRESS → COMPLETED  "];
    assert!(shown.status.success() && words.iter().all(|words| text.contains(words)), "{text}");
    assert!(text.lines().all(|line| line.contains(&format!("  one({job})  "))), "{text}");
    let json = service.cli(&["events", "--json", "--after", "0", "--type", "ONE"]);
    let lines = String::from_utf8(json.stdout).unwrap();
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((lines.lines().count(), &last["to_status"], &last["type"]), (3, &json!("COMPLETED"), &json!("ONE")));
    assert!(service.cli(&["events", "--type", "TWO", "--after", "0"]).stdout.is_empty());
    // Followed, with no service there: a cancel by another command is seen.
    let mut child =
        service.command().args(["events", "-f", "--json"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let heard = std::io::BufReader::new(child.stdout.take().unwrap());
    let waiting = service.insert("TWO", &["say:b"]).await[0];
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::BufRead::lines(heard).map_while(Result::ok) {
            sender.send(line).ok();
        }
    });
    let mut line = None;
    eventually("the cancel to be told", async || {
        // Until it follows: what happened before it began is not told.
        service.cli(&["cancel", &waiting.to_string()]);
        let more = service.insert("TWO", &["say:c"]).await[0];
        service.cli(&["cancel", &more.to_string()]);
        line = receiver.try_recv().ok();
        line.is_some()
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
    let told: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
    assert_eq!((&told["type"], &told["to_status"]), (&json!("TWO"), &json!("CANCELLED")));
    let by = service.store.audit(&callsheet::store::AuditFilter { limit: 1, ..Default::default() }).await.unwrap().rows;
    assert_eq!((by[0].via.as_str(), by[0].action.as_str()), ("cli", "cancel"));
    // Who and from where, apart, whatever was done.
    assert!(!by[0].actor.contains('@') && by[0].address.as_ref().is_some_and(|host| !host.is_empty()), "{:?}", by[0]);
}
on_each_database!(the_command_line_follows_them_with_the_service_down);
