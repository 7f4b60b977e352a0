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

/// What a token of the forms says under its mask.
fn unmasked(token: &str) -> String {
    let byte = |place: usize| u8::from_str_radix(&token[place..place + 2], 16).unwrap();
    hex(&(0..32).step_by(2).map(|place| byte(place) ^ byte(place + 32)).collect::<Vec<u8>>())
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
        let secret = hex(&Sha256::digest(format!("callsheet csrf {key}"))[..16]);
        (format!("Cookie: {cookie}"), secret)
    };
    let people = ["first", "second", "first", "guest"].map(sign_in);
    let mut streams: Vec<Events> =
        people.iter().map(|(cookie, _)| service.events("/live?page=%2F", &[cookie.as_str()])).collect();
    let told: Vec<Value> = streams.iter_mut().map(|stream| part(stream, "flows")).collect();
    let html = |told: &Value| told["html"].as_str().unwrap().to_owned();
    let mut tokens = BTreeSet::new();
    for (place, (cookie, secret)) in people.iter().take(3).enumerate() {
        let html = html(&told[place]);
        let theirs: BTreeSet<&str> = html.split("name=\"csrf\" value=\"").skip(1).map(|rest| &rest[..64]).collect();
        assert_eq!(theirs.len(), 1, "{place} has another's token, too");
        for token in theirs {
            assert_eq!(unmasked(token), *secret, "{place} can't use the forms");
            tokens.insert(token.to_owned());
        }
        tokens.insert(service.csrf(cookie));
        assert_eq!(told[place]["hash"], told[0]["hash"]);
        let page = service.request("GET", "/", &[&people[place].0], b"").text();
        assert!(page.contains(&format!("data-part=\"{}\"", told[0]["hash"].as_str().unwrap())), "told what it shows");
    }
    assert_eq!(tokens.len(), 6, "each answer has a token of its own: {tokens:?}");
    assert!(!html(&told[3]).contains("<form"), "a viewer is shown a button");
    // Whoever signs out is told nothing more.
    let (cookie, _) = &people[1];
    let csrf = service.csrf(cookie);
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
