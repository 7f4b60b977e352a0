//! What the first view weighs, plain and compressed, and what is never compressed.

use std::collections::BTreeSet;
use std::io::Read;

use crate::support::client::Answer;
use crate::support::eventually;
use crate::support::service::{On, Service};

/// The floor: everything that a browser gets before somebody can read.
const MOST: usize = 150 * 1024;
const GZIP: &str = "Accept-Encoding: gzip, deflate, br";

fn unpacked(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(answer.body.as_slice()).read_to_end(&mut plain).unwrap();
    plain
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_view_of_many_flows_weighs_less_than_150_kb() {
    let flows: String = (0..12)
        .map(|flow| {
            format!(
                "[flows.SCREEN_REPLACEMENT_GENERATION_{flow}]\n{{job}}\nconcurrency = 4\nstart_to_close_timeout = \"1d\"\n"
            )
        })
        .collect();
    let service = Service::start(On::Sqlite, &flows).await.unwrap();
    let now = service.store.now().await.unwrap().unix_millis();
    let numbers =
        |count: u32| format!("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {count})");
    // The last runs of a day, some of which failed, with reasons as they are.
    service
        .sql(&format!(
            "INSERT INTO jobs (type, identifier, status, run_at, attempt, created_time, queued_time, started_time, completed_time, \
             execution_ms, error, worker_id) {} SELECT 'SCREEN_REPLACEMENT_GENERATION_' || (x % 12), \
             'projects/autumn-campaign/shot-' || x || '/take-2.mov', CASE WHEN x % 9 = 0 THEN 'ERROR' WHEN x % 41 = 0 THEN \
             'CANCELLED' ELSE 'COMPLETED' END, {now} - x * 86000, 1, {now} - x * 86000, {now} - x * 86000, {now} - x * 86000, \
             {now} - x * 86000 + x * 700, x * 700, CASE WHEN x % 9 = 0 THEN 'the command exited with code 1' || char(10) || \
             'Traceback (most recent call last):' || char(10) || 'RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB \
             (GPU 0; 23.69 GiB total capacity; 21.10 GiB already allocated)' END, 'node-a' FROM n",
            numbers(1000)
        ))
        .await;
    // Four that run in each flow, with as much to say as commands have.
    let insert =
        "INSERT INTO jobs (type, identifier) {} SELECT 'SCREEN_REPLACEMENT_GENERATION_' || (x % 12), 'run:600' FROM n";
    service.sql(&insert.replace("{}", &numbers(48))).await;
    eventually("all to run", async || service.get("/").text().contains("48 running")).await;
    service.sql("UPDATE jobs SET progress = id % 100, status_message = 'frame ' || id || ' of 2880, denoising' WHERE status = 'PROGRESS'").await;
    service.sql(&format!("INSERT INTO jobs (type, identifier, run_at) {} SELECT 'SCREEN_REPLACEMENT_GENERATION_' || (x % 12), 'later', {now} + 3600000 FROM n", numbers(200))).await;
    eventually("the day to be counted", async || service.get("/").text().contains("in half hours")).await;
    // What was read for a page is good for the next one for a moment.
    eventually("what the commands say", async || service.get("/").text().contains("of 2880")).await;
    let page = service.get("/");
    let text = page.text();
    assert!(text.contains("CUDA out of memory") && text.contains("48 running"), "{text}");
    let files: BTreeSet<&str> = text.split('"').filter(|part| part.starts_with("/assets/")).collect();
    assert_eq!(files.len(), 3);
    let whole = page.body.len() + files.iter().map(|file| service.get(file).body.len()).sum::<usize>();
    let packed = |path: &str| service.request("GET", path, &[GZIP], b"");
    let sent = packed("/").body.len() + files.iter().map(|file| packed(file).body.len()).sum::<usize>();
    println!("the page {}, with its files {whole}, compressed {sent} bytes", page.body.len());
    assert!(whole < MOST, "the first view takes {whole} bytes");
    assert!(sent < 40 * 1024, "compressed it takes {sent} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_whole_is_compressed_and_what_goes_on_is_not() {
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    let job = service.insert("ONE", &["say:hello+run:600"]).await[0];
    let packed = |path: &str| service.request("GET", path, &[GZIP], b"");
    let script = service.get("/").text().split('"').find(|part| part.ends_with(".js")).unwrap().to_owned();
    assert_eq!(unpacked(&packed(&script)), service.get(&script).body);
    assert_eq!(unpacked(&packed("/api/openapi.json")), service.get("/api/openapi.json").body);
    let page = unpacked(&packed("/jobs"));
    assert!(String::from_utf8(page).unwrap().ends_with("</body>"), "the whole page");
    for path in ["/jobs", "/api/openapi.json"] {
        let plain = service.get(path);
        assert_eq!((plain.header("content-encoding"), plain.header("vary")), (None, Some("accept-encoding")));
        let head = service.request("HEAD", path, &[GZIP], b"");
        assert_eq!((head.status, head.header("content-encoding")), (200, None));
        let refusal = service.request("GET", path, &["Accept-Encoding: gzip;q=0, identity"], b"");
        assert_eq!(refusal.header("content-encoding"), None);
    }
    let metrics = packed("/metrics");
    assert!(metrics.header("content-encoding").is_none() && metrics.text().contains("callsheet_build_info"));
    // Each event comes when it happens, not when there are enough to compress.
    service.until(job, callsheet::domain::JobStatus::Progress).await;
    let mut log = service.events(&format!("/api/v1/jobs/{job}/logs?follow=true"), &[GZIP]);
    assert!(log.by_ref().any(|sent| sent.data.contains("hello")));
    let mut live = service.events("/live?page=%2F", &[GZIP]);
    assert!(live.by_ref().any(|sent| sent.event == "part"));
}
