//! What open pages are told, asked for as a browser does it: one rendering for all, everybody's own forms in it, and no
//! more of them than there are connections for.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use callsheet::domain::JobStatus;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::client::Events;
use crate::support::eventually;
use crate::support::service::{On, Service};

/// The first `part` with this id that a stream tells.
fn part(events: &mut Events, id: &str) -> Value {
    let parts = events.by_ref().filter(|sent| sent.event == "part").map(|sent| sent.json());
    parts.into_iter().find(|part| part["id"] == id).expect("the stream tells the part")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_of_one_view_are_told_the_same_with_their_own_forms() {
    let mut service = Service::prepare(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    let token = |name: &str, role: &str| {
        format!(
            "[[http.tokens]]\nname = \"{name}\"\nrole = \"{role}\"\ntoken_sha256 = \"{}\"\n",
            hex(&Sha256::digest(name))
        )
    };
    service.configure(&(token("first", "operator") + &token("second", "operator") + &token("guest", "viewer")));
    service.serve().await;
    let sign_in = |token: &str| {
        let form = "Content-Type: application/x-www-form-urlencoded";
        let answer = service.request("POST", "/sign-in", &[form], format!("token={token}&next=%2F").as_bytes());
        let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let key = cookie.split_once('=').unwrap().1;
        let csrf = hex(&Sha256::digest(format!("callsheet csrf {key}")));
        (format!("Cookie: {cookie}"), csrf)
    };
    let people = ["first", "second", "first", "guest"].map(sign_in);
    let mut streams: Vec<Events> =
        people.iter().map(|(cookie, _)| service.events("/live?page=%2F", &[cookie.as_str()])).collect();
    let told: Vec<Value> = streams.iter_mut().map(|stream| part(stream, "flows")).collect();
    let html = |told: &Value| told["html"].as_str().unwrap().to_owned();
    for (place, (_, csrf)) in people.iter().take(3).enumerate() {
        assert!(html(&told[place]).contains(csrf.as_str()), "{place} can't use the forms");
        let others = people.iter().map(|(_, other)| other).filter(|other| *other != csrf);
        assert!(
            others.into_iter().all(|other| !html(&told[place]).contains(other.as_str())),
            "{place} has another's token"
        );
        assert_eq!(told[place]["hash"], told[0]["hash"]);
        let page = service.request("GET", "/", &[&people[place].0], b"").text();
        assert!(page.contains(&format!("data-part=\"{}\"", told[0]["hash"].as_str().unwrap())), "told what it shows");
    }
    assert!(!html(&told[3]).contains("<form"), "a viewer is shown a button");
    // Whoever signs out is told nothing more.
    let (cookie, csrf) = &people[1];
    let form = "Content-Type: application/x-www-form-urlencoded";
    let out = service.request("POST", "/sign-out", &[form, cookie], format!("csrf={csrf}").as_bytes());
    assert_eq!(out.status, 303);
    let mut left = streams.remove(1);
    assert!(left.by_ref().all(|sent| sent.event != "trouble"), "its stream ends");
    // A change is told to everybody.
    let job = service.insert("ONE", &["say:a"]).await[0];
    service.until(job, JobStatus::Completed).await;
    for stream in &mut streams {
        while !part(stream, "timeline")["html"].as_str().unwrap().contains("/jobs/1") {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_pages_count_as_streams_and_leave_connections_for_the_rest() {
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    // Both ends of 600 connections are in this machine, one of each in this process.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum.map(|most| most.min(8192)).or(Some(8192));
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let open = || {
        let mut stream = TcpStream::connect(service.address()).unwrap();
        write!(stream, "GET /live?page=%2Fworkers HTTP/1.1\r\nHost: {}\r\n\r\n", service.address()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        (reader, line)
    };
    let streams: Vec<_> = (0..600).map(|_| open()).collect();
    assert!(streams.iter().all(|(_, line)| line.contains(" 200 ")), "600 are taken");
    assert!(open().1.contains(" 503 "), "and no more");
    service.get("/api/v1/events").problem(503);
    assert_eq!(service.get("/").status, 200);
    drop(streams);
    eventually("a stream to be taken again", async || open().1.contains(" 200 ")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_view_of_twelve_busy_flows_is_small() {
    let flows: String = (0..12).map(|flow| format!("[flows.SCREEN_REPLACEMENT_{flow}]\n{{job}}\n")).collect();
    let mut service = Service::prepare(On::Sqlite, &flows).await.unwrap();
    let now = service.store.now().await.unwrap().unix_millis();
    let series =
        |count: u32| format!("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {count}) ");
    let columns = "INSERT INTO jobs (type, identifier, status, attempt, progress, status_message, worker_id, created_time, \
        started_time, heartbeat_time, completed_time, execution_ms, error) ";
    service
        .sql(&format!(
            "{columns}{}SELECT 'SCREEN_REPLACEMENT_' || (x % 12), 'project-17/shot-' || x, CASE WHEN x % 7 = 0 THEN 'ERROR' \
             ELSE 'COMPLETED' END, 1, 100, 'done', 'w', {now} - x * 20000, {now} - x * 20000, NULL, {now} - x * 20000 + 15000, \
             15000, CASE WHEN x % 7 = 0 THEN 'the command exited with code 1' || char(10) || substr(hex(zeroblob(2000)), 1, 2000) \
             END FROM n",
            series(4000)
        ))
        .await;
    service
        .sql(&format!(
            "INSERT INTO jobs (type, identifier) {}SELECT 'SCREEN_REPLACEMENT_' || (x % 12), 'shot-' || x FROM n",
            series(12_000)
        ))
        .await;
    // So that nothing is begun that would take a place on the page.
    service.sql("INSERT INTO flows (type, paused) SELECT DISTINCT type, 1 FROM jobs").await;
    service.serve().await;
    // As of another worker, and only now: a start settles what nobody runs.
    let columns = columns.replace("identifier, ", "identifier, run_token, ");
    service
        .sql(&format!(
            "{columns}{}SELECT 'SCREEN_REPLACEMENT_' || (x % 12), 'project-17/shot-' || x, lower(hex(randomblob(16))), 'PROGRESS', 1 + x % 3, x % 100, \
             'frame ' || x || ' of 3000, 12 min left', 'w', {now} - 90000, {now} - 60000, {now}, NULL, NULL, NULL FROM n",
            series(96)
        ))
        .await;
    let mut page = String::new();
    eventually("the day to be counted", async || {
        page = service.get("/").text();
        page.matches("<article").count() == 12 && !page.contains("…</a>")
    })
    .await;
    for busy in ["min left", "exited with code 1", "1000", "paused"] {
        assert!(page.contains(busy), "nothing of {busy:?} is on the page: {page}");
    }
    let files: BTreeSet<&str> = page.split('"').filter(|part| part.starts_with("/assets/")).collect();
    let files: usize = files.into_iter().map(|file| service.get(file).body.len()).sum();
    assert!(page.len() + files < 150 * 1024, "the first view takes {} and {files} bytes", page.len());
}
