//! What can't be meant as it is written is refused with its reason, by the API, the page's forms and the command line alike.

use callsheet::domain::JobStatus;
use serde_json::json;

use crate::on_each_database;
use crate::support::client::Answer;
use crate::support::service::{On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\n";
const JSON: &str = "Content-Type: application/json";

/// What every form of the page holds, as a browser on this machine finds it.
fn csrf(service: &Service) -> String {
    let page = service.get("/jobs").text();
    let (_, value) = page.split_once("name=\"csrf\" value=\"").unwrap();
    value.split('"').next().unwrap().to_owned()
}

fn send_form(service: &Service, path: &str, fields: &[(&str, &str)]) -> Answer {
    let csrf = csrf(service);
    let fields: Vec<(&str, &str)> = fields.iter().copied().chain([("csrf", csrf.as_str())]).collect();
    let body = serde_urlencoded::to_string(fields).unwrap();
    service.request("POST", path, &["Content-Type: application/x-www-form-urlencoded"], body.as_bytes())
}

fn deep(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

async fn what_no_reader_could_read_or_no_command_may_get_is_not_enqueued(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    let long = "k".repeat(256);
    let payloads = [
        (deep(10_000), "recursion limit"),
        ("\"\\ud800\"".to_owned(), "can't be read"),
        ("{\"a\": 1e999}".to_owned(), "number out of range"),
        (large.clone(), "at most 1 MiB"),
    ];
    for (payload, why) in &payloads {
        let body = format!(r#"[{{"type": "ONE", "identifier": "a", "payload": {payload}}}]"#);
        let answer = service.request("POST", "/api/v1/jobs", &[JSON], body.as_bytes());
        assert!(answer.problem(422).contains(why), "{}", answer.text());
        assert_eq!(answer.json()["errors"][0]["pointer"], "#/0/payload");
    }
    let form = |fields: &[(&str, &str)]| send_form(&service, "/jobs", fields);
    let refused = |fields: &[(&str, &str)], why: &str| {
        let answer = form(fields);
        let text = answer.text();
        assert!(answer.status == 422 && text.contains(why), "{} {text}", answer.status);
    };
    refused(&[("type", "ONE"), ("identifiers", "a"), ("payload", &deep(10_000))], "recursion limit");
    refused(&[("type", "ONE"), ("identifiers", "a"), ("payload", "\"\\ud800\"")], "payload: it is JSON that can");
    refused(&[("type", "NO_SUCH"), ("identifiers", "a")], "no flow of this service has the type");
    refused(&[("type", "ONE"), ("identifiers", "fine\n--evil")], "identifier: the identifier");
    refused(&[("type", "ONE"), ("identifiers", "a"), ("unique_key", &long)], "unique_key: a key has 1 to 255 bytes");
    // Ninety kilobytes that would become four hundred megabytes.
    let (many, payload) = ("a\n".repeat(10_000), format!("\"{}\"", "x".repeat(70_000)));
    refused(&[("type", "ONE"), ("identifiers", &many), ("payload", &payload)], "more than the 16 MiB");
    std::fs::write(service.path("many"), &many).unwrap();
    let from = service.path("many");
    for (payload, why) in [
        (deep(10_000), "recursion limit"),
        ("\"\\ud800\"".to_owned(), "can't be read"),
        (payload.clone(), "more than the 16 MiB"),
    ] {
        let came = service.cli(&["enqueue", "ONE", "--from", from.to_str().unwrap(), "--payload", &payload]);
        let said = String::from_utf8_lossy(&came.stderr).into_owned();
        assert!(came.status.code() == Some(2) && said.contains(why), "{said}");
    }
    assert_eq!(service.get("/api/v1/jobs").json()["jobs"], json!([]), "something was enqueued");
    let fine = form(&[("type", "ONE"), ("identifiers", "say:fine"), ("payload", "{\"n\": 1}")]);
    assert_eq!(fine.status, 303, "{}", fine.text());
}
on_each_database!(what_no_reader_could_read_or_no_command_may_get_is_not_enqueued, mariadb);

async fn a_filter_that_cant_be_read_means_no_job_rather_than_all(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert_row("type, identifier, run_at", "'ONE', 'later', 4102444800000").await;
    let list = service.get("/jobs?status=FOO&from=yesterday");
    let text = list.text();
    assert!(list.status == 200 && text.contains("FOO") && text.contains("is no status"), "{text}");
    assert!(text.contains("from: yesterday is no time") && !text.contains("cancel-all"), "{text}");
    assert!(service.get("/jobs?status=PENDING").text().contains("cancel-all"));
    for fields in
        [[("status", "FOO"), ("upto", "9")], [("until", "soon"), ("upto", "9")], [("type", "ONE"), ("upto", "x")]]
    {
        let query = serde_urlencoded::to_string(fields).unwrap();
        let asked = service.get(&format!("/jobs/bulk?do=cancel-all&{query}"));
        assert_eq!(asked.status, 422, "{}", asked.text());
        let done = send_form(&service, "/jobs/bulk", &[&[("do", "cancel-all")], &fields[..]].concat());
        assert_eq!(done.status, 422, "{}", done.text());
    }
    assert_eq!(service.job(job).await.status, JobStatus::Pending);
    assert_eq!(service.get("/jobs/bulk?do=cancel-all&status=PENDING").status, 200);
}
on_each_database!(a_filter_that_cant_be_read_means_no_job_rather_than_all);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_is_shown_a_page_where_there_is_nothing_and_a_program_a_problem() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    let get =
        |path: &str| service.request("GET", path, &["Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"], b"");
    let page = get("/nope/a&b");
    assert_eq!((page.status, page.header("content-type")), (404, Some("text/html; charset=utf-8")));
    assert!(page.text().contains("there is nothing at /nope/a&amp;b"), "{}", page.text());
    assert!(get("/api/nope").problem(404).contains("/api/nope"));
    assert!(service.get("/nope").problem(404).contains("/nope"));
}
