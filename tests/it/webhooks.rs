//! Webhooks: signed events, in order per job, to receivers that fail, hang and restart, over the service's own death.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use callsheet::domain::{JobId, JobStatus};
use serde_json::Value;

use crate::on_each_database;
use crate::support::scrape::Scrape;
use crate::support::service::{On, Service};
use crate::support::{eventually, own_address};

const FLOWS: &str = "[flows.ONE]\n{job}\nconcurrency = 4\n[flows.TWO]\n{job}\n";
/// `whsec_` and the base64 of `callsheet's test secret!`
const SECRET: &str = "whsec_Y2FsbHNoZWV0J3MgdGVzdCBzZWNyZXQh";
/// An answer that never comes.
const HANG: u16 = 0;

/// A request that a receiver got.
#[derive(Clone, Debug)]
struct Got {
    headers: BTreeMap<String, String>,
    body: String,
    answered: u16,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A real HTTP server that answers every request with one status, or not at all.
struct Receiver {
    address: SocketAddr,
    answer: Arc<AtomicU16>,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Receiver {
    fn start(answer: u16) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), answer)
    }

    fn start_at(address: SocketAddr, answer: u16) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            answer: Arc::new(AtomicU16::new(answer)),
            got: Arc::default(),
        };
        let (answer, got) = (Arc::clone(&receiver.answer), Arc::clone(&receiver.got));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, got) = (Arc::clone(&answer), Arc::clone(&got));
                std::thread::spawn(move || serve(stream, &answer, &got));
            }
        });
        receiver
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// The statuses that were taken, by job, in the order in which they were.
    fn taken(&self) -> BTreeMap<i64, Vec<String>> {
        let mut taken: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for got in self.got().iter().filter(|got| got.answered == 204) {
            let data = &got.json()["data"];
            taken
                .entry(data["job_id"].as_i64().unwrap())
                .or_default()
                .push(data["to_status"].as_str().unwrap().to_owned());
        }
        taken
    }
}

fn serve(mut stream: TcpStream, answer: &AtomicU16, got: &Mutex<Vec<Got>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut headers = BTreeMap::new();
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "POST /hook?k=v HTTP/1.1\r\n");
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let answered = answer.load(Ordering::Relaxed);
    got.lock().unwrap().push(Got { headers, body: String::from_utf8(body).unwrap(), answered });
    if answered == HANG {
        std::thread::sleep(std::time::Duration::from_secs(600));
    }
    stream.write_all(format!("HTTP/1.1 {answered} Whatever\r\nContent-Length: 0\r\n\r\n").as_bytes()).ok();
}

fn webhook(name: &str, receiver: SocketAddr, more: &str) -> String {
    format!(
        "[[webhooks]]\nname = \"{name}\"\nurl = \"http://{receiver}/hook?k=v\"\nsecret_env = \"CALLSHEET_TEST_HOOK\"\n\
         {more}\n"
    )
}

async fn serve_with(service: &mut Service) {
    service.serve_with(&[("CALLSHEET_TEST_HOOK", SECRET)]).await;
    // What is told is what happens from when the webhooks are known.
    eventually("the webhooks to be known", async || {
        service.store.deliveries(&Default::default()).await.is_ok() && known(service).await
    })
    .await;
}

async fn known(service: &Service) -> bool {
    let webhooks = i64::try_from(service.config().matches("[[webhooks]]").count()).unwrap();
    use sea_orm::ConnectionTrait;
    let connection = service.foreign().await;
    let select =
        sea_orm::Statement::from_string(connection.get_database_backend(), "SELECT count(*) AS n FROM webhooks");
    let row = connection.query_one_raw(select).await.unwrap().unwrap();
    let known: i64 = row.try_get("", "n").unwrap();
    connection.close().await.unwrap();
    known >= webhooks
}

const PATH: [&str; 3] = ["INQUEUE", "PROGRESS", "COMPLETED"];

async fn all_taken(receiver: &Receiver, jobs: &[JobId]) {
    eventually("every event to be taken", async || {
        let taken = receiver.taken();
        jobs.iter().all(|job| taken.get(&job.0).is_some_and(|statuses| statuses.len() >= 3))
    })
    .await;
}

async fn events_are_signed_cloud_events_and_only_those_that_are_wanted(on: On) {
    let (all, some) = (Receiver::start(204), Receiver::start(204));
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.insert("ONE", &["say:before"]).await;
    service.configure(&webhook("all", all.address, ""));
    service.configure(&webhook("some", some.address, "types = [\"TWO\"]\nstatuses = [\"ERROR\", \"COMPLETED\"]"));
    serve_with(&mut service).await;
    let job = service.insert("ONE", &["say:a"]).await[0];
    let other = service.insert("TWO", &["exit:3"]).await[0];
    service.until(other, JobStatus::Error).await;
    all_taken(&all, &[job, other]).await;
    assert_eq!(all.taken()[&job.0], PATH);
    assert_eq!(all.taken()[&other.0], ["INQUEUE", "PROGRESS", "ERROR"]);
    eventually("the one that is wanted", async || !some.got().is_empty()).await;
    assert_eq!(some.taken(), BTreeMap::from([(other.0, vec!["ERROR".to_owned()])]));
    let got = some.got().remove(0);
    let json = got.json();
    assert_eq!((json["specversion"].as_str(), json["source"].as_str()), (Some("1.0"), Some("callsheet")));
    assert_eq!(
        (json["type"].as_str(), json["subject"].as_str()),
        (Some("callsheet.job.error"), Some(&*other.to_string()))
    );
    assert_eq!(json["datacontenttype"], "application/json");
    let events = service.store.events(other).await.unwrap();
    assert_eq!(json["id"].as_str().unwrap(), events[2].id.to_string());
    assert_eq!(json["data"]["identifier"], "exit:3");
    assert_eq!(json["data"]["message"].as_str(), events[2].message.as_deref());
    assert!(got.headers["content-type"].starts_with("application/cloudevents+json"));
    // By the standard's own words: HMAC-SHA256 of id.timestamp.body.
    let (id, timestamp) = (&got.headers["webhook-id"], &got.headers["webhook-timestamp"]);
    assert_eq!(*id, format!("msg_{}", events[2].id));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"callsheet's test secret!");
    let tag = ring::hmac::sign(&key, format!("{id}.{timestamp}.{}", got.body).as_bytes());
    use base64::Engine as _;
    let expected = format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(tag));
    assert_eq!(got.headers["webhook-signature"], expected);
    assert!(!service.log().contains("whsec") && !service.log().contains("/hook?k=v"), "{}", service.log());
    eventually("the metrics to tell of it", async || {
        let metrics = service.get("/metrics").text();
        metrics.contains("callsheet_webhook_deliveries_total{result=\"delivered\",webhook=\"some\"} 1")
    })
    .await;
    // The secret is none of the commands' business.
    let output = service.cli(&["check"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("CALLSHEET_TEST_HOOK"), "{output:?}");
}
on_each_database!(events_are_signed_cloud_events_and_only_those_that_are_wanted, mariadb);

async fn a_receiver_that_fails_or_hangs_delays_nobody_and_gets_everything_in_order_at_last(on: On) {
    let (good, bad, hanging) = (Receiver::start(204), Receiver::start(500), Receiver::start(HANG));
    // Nobody listens there until later.
    let down = own_address();
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    for (name, address) in [("good", good.address), ("bad", bad.address), ("down", down)] {
        service.configure(&webhook(name, address, ""));
    }
    service.configure(&webhook("hanging", hanging.address, "timeout = \"1s\""));
    serve_with(&mut service).await;
    let mut jobs = service.insert("ONE", &["say:a", "say:b"]).await;
    for job in &jobs {
        service.until(*job, JobStatus::Completed).await;
    }
    all_taken(&good, &jobs).await;
    eventually("the others to be tried again", async || bad.got().len() >= 4 && hanging.got().len() >= 3).await;
    // One after the other: nothing of a job comes before what was not taken.
    for receiver in [&bad, &hanging] {
        assert!(receiver.got().iter().all(|got| got.json()["data"]["to_status"] == "INQUEUE"));
    }
    let waiting = service.get("/api/v1/deliveries?webhook=bad&state=WAITING").json();
    assert_eq!(waiting["deliveries"].as_array().unwrap().len(), 6, "{waiting}");
    assert!(waiting["deliveries"][5]["error"] == "the answer was status 500", "{waiting}");
    let table = String::from_utf8_lossy(&service.cli(&["deliveries", "--webhook", "hanging"]).stdout).into_owned();
    assert!(table.contains("no answer within 1s"), "{table}");
    // A day's worth of it is seen by whoever looks at the metrics, as is that the one that takes them has none left.
    eventually("what waits to be counted", async || {
        let scrape = Scrape::of(&service);
        let of = |metric: &str, webhook: &str| scrape.value(metric, &format!("webhook=\"{webhook}\""));
        let undelivered = |webhook| of("callsheet_webhook_undelivered_events", webhook);
        let oldest = |webhook| of("callsheet_webhook_oldest_undelivered_seconds", webhook);
        undelivered("bad") == 6.0
            && undelivered("down") == 6.0
            && undelivered("good") == 0.0
            && oldest("good") == 0.0
            && oldest("bad") > 0.0
            && oldest("bad") < 600.0
    })
    .await;
    let oldest = service.store.undelivered("bad").await.unwrap().oldest;
    assert_eq!(oldest, Some(service.store.events(jobs[0]).await.unwrap()[0].time));
    // The service dies in the middle of it, and more happens before it is back.
    service.kill_9();
    jobs.extend(service.insert("ONE", &["say:c"]).await);
    bad.answer.store(204, Ordering::Relaxed);
    hanging.answer.store(204, Ordering::Relaxed);
    service.serve_with(&[("CALLSHEET_TEST_HOOK", SECRET)]).await;
    let down = Receiver::start_at(down, 204);
    // What was under way when the service died is nobody else's for a while.
    service.sql("UPDATE deliveries SET next_time = 0 WHERE state = 'WAITING' AND next_time < 253402300799000").await;
    for receiver in [&good, &bad, &hanging, &down] {
        all_taken(receiver, &jobs).await;
        for (job, statuses) in receiver.taken() {
            let mut statuses = statuses;
            statuses.dedup();
            assert_eq!(statuses, PATH, "job {job}");
        }
    }
    // The same event has the same id, however often it was sent.
    let ids: std::collections::BTreeSet<_> = bad.got().iter().map(|got| got.headers["webhook-id"].clone()).collect();
    assert_eq!(ids.len(), 9);
}
on_each_database!(a_receiver_that_fails_or_hangs_delays_nobody_and_gets_everything_in_order_at_last);

async fn what_was_given_up_can_be_sent_again(on: On) {
    let receiver = Receiver::start(503);
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure(&webhook("w", receiver.address, "statuses = [\"COMPLETED\"]"));
    serve_with(&mut service).await;
    let job = service.insert("ONE", &["say:a"]).await[0];
    service.until(job, JobStatus::Completed).await;
    eventually("a try", async || !receiver.got().is_empty()).await;
    // As if it had been tried for a day.
    service.sql("UPDATE deliveries SET first_time = first_time - 86400000").await;
    let failed = async || service.get("/api/v1/deliveries?state=FAILED").json()["deliveries"][0]["id"].as_i64();
    eventually("it to be given up", async || failed().await.is_some()).await;
    let id = failed().await.unwrap();
    let failed_of = "result=\"failed\",webhook=\"w\"";
    eventually("the metrics to tell of it", async || {
        Scrape::of(&service).value("callsheet_webhook_deliveries_total", failed_of) == 1.0
    })
    .await;
    service.request("POST", "/api/v1/deliveries/424242/again", &[], b"").problem(404);
    receiver.answer.store(204, Ordering::Relaxed);
    let output = service.cli(&["deliveries", "--again", &id.to_string()]);
    assert!(output.status.success(), "{output:?}");
    eventually("it to be taken", async || receiver.taken().contains_key(&job.0)).await;
    eventually("it to be delivered", async || failed().await.is_none()).await;
    service.request("POST", &format!("/api/v1/deliveries/{id}/again"), &[], b"").problem(409);
    assert_eq!(service.cli(&["deliveries", "--again", &id.to_string()]).status.code(), Some(4));
    assert_eq!(service.cli(&["deliveries", "--again", "424242"]).status.code(), Some(3));
}
on_each_database!(what_was_given_up_can_be_sent_again, mariadb);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_does_not_start_without_the_secret() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    service.configure(&webhook("w", "127.0.0.1:9".parse().unwrap(), ""));
    for secret in ["", "whsec_short", "not-a-secret-at-all"] {
        service.env = vec![("CALLSHEET_TEST_HOOK".to_owned(), secret.to_owned())];
        service.spawn();
        eventually("the service to end", async || service.is_dead()).await;
        let log = service.log();
        assert!(log.contains("the webhook \"w\" can't be used: the environment variable CALLSHEET_TEST_HOOK"), "{log}");
        assert!(secret.is_empty() || !log.contains(secret), "{log}");
    }
}
