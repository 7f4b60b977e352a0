//! `healthz`, `readyz` and `metrics` of a running service.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use callsheet::domain::JobStatus;

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

fn get(service: &Service, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(service.address()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

async fn the_metrics_tell_what_was_done(on: On) {
    let Some(service) = Service::start(on, "[flows.ONE]\n{job}\n[flows.TWO]\n{job}\n").await else { return };
    assert_eq!(get(&service, "/healthz").0, 200);
    assert_eq!(get(&service, "/readyz"), (200, "ready\n".to_owned()));
    let good = service.insert("ONE", &["say:a", "say:b", "exit:1"]).await;
    for (job, status) in good.iter().zip([JobStatus::Completed, JobStatus::Completed, JobStatus::Error]) {
        service.until(*job, status).await;
    }
    service.sql("INSERT INTO jobs (type, identifier, run_at) VALUES ('ONE', 'later', 4102444800000)").await;
    let mut text = String::new();
    let expected = [
        r#"callsheet_job_transitions_total{to="INQUEUE",type="ONE"} 3"#,
        r#"callsheet_job_transitions_total{to="PROGRESS",type="ONE"} 3"#,
        r#"callsheet_job_transitions_total{to="COMPLETED",type="ONE"} 2"#,
        r#"callsheet_job_transitions_total{to="ERROR",type="ONE"} 1"#,
        r#"callsheet_job_transitions_total{to="COMPLETED",type="TWO"} 0"#,
        r#"callsheet_jobs{status="PENDING",type="ONE"} 1"#,
        r#"callsheet_run_duration_seconds_count{outcome="COMPLETED",type="ONE"} 2"#,
        r#"callsheet_run_duration_seconds_count{outcome="FAILED",type="ONE"} 1"#,
        r#"callsheet_queue_wait_seconds_count{type="ONE"} 3"#,
        r#"callsheet_dispatch_latency_seconds_count{type="ONE"} 3"#,
        r#"callsheet_run_max_rss_bytes_count{type="ONE"} 3"#,
        r#"callsheet_runs_in_progress{type="ONE"} 0"#,
        r#"callsheet_mailbox_depth{actor="status"} 0"#,
        r#"callsheet_actor_restarts_total{actor="job"} 0"#,
    ];
    eventually("the metrics to say so", async || {
        text = get(&service, "/metrics").1;
        expected.iter().all(|line| text.lines().any(|have| have == *line))
    })
    .await;
    assert!(text.contains("callsheet_build_info") && text.contains("process_resident_memory_bytes"));
    // One thing needs somebody: a job that has failed.
    assert!(get(&service, "/").1.contains("<title>(1) Overview"));
    let (status, body) = get(&service, "/nothing");
    assert_eq!(status, 404);
    assert!(body.contains(r#""status":404"#), "{body}");
}
on_each_database!(the_metrics_tell_what_was_done);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_does_not_end_the_service() {
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    service.signal(rustix::process::Signal::HUP);
    eventually("a word about it", async || service.log().contains("the configuration was read again")).await;
    assert_eq!(get(&service, "/readyz").0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_none_or_too_much_are_refused() {
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    let answer = |request: &str| {
        let mut stream = TcpStream::connect(service.address()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).map(ToOwned::to_owned).unwrap_or_default()
    };
    let close = "Connection: close\r\n\r\n";
    assert_eq!(answer(&format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}{close}", "X: y\r\n".repeat(100))), "431");
    assert_eq!(answer(&format!("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{close}")), "405");
    assert_eq!(answer("nonsense\r\n\r\n"), "400");
    // A request that never ends is given up, and meanwhile disturbs nobody.
    let mut slow = TcpStream::connect(service.address()).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    assert_eq!(get(&service, "/healthz").0, 200);
    let mut rest = Vec::new();
    slow.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    slow.read_to_end(&mut rest).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_at_once_are_served_and_the_oldest_silent_ones_make_room() {
    // Of this process and, by inheritance, of the service.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let more = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, more).unwrap();
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    let connect = || {
        let stream = TcpStream::connect(service.address()).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        stream
    };
    let say = |stream: &mut TcpStream| {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    };
    let hear = |stream: &mut TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    let mut burst: Vec<TcpStream> = (0..500).map(|_| connect()).collect();
    burst.iter_mut().for_each(say);
    burst.iter_mut().for_each(hear);
    // As many as are let in at all. Sooner than a silent one is given up anyway the oldest leaves: the last one, which is as
    // silent, is still there after that.
    let mut silent: Vec<TcpStream> = (0..800).map(|_| connect()).collect();
    let mut late = connect();
    say(&mut late);
    hear(&mut late);
    let ended = silent[0].read(&mut [0]);
    assert!(
        !matches!(&ended, Ok(1..)) && !matches!(&ended, Err(error) if error.kind() == ErrorKind::WouldBlock),
        "{ended:?}"
    );
    let last = silent.last_mut().unwrap();
    say(last);
    hear(last);
}
