//! A page that stays open: whether it is told, whether it says so where it is not, and what its output begins with.

use std::fs;

use callsheet::domain::JobStatus;
use serde_json::json;

use crate::support::browser::Browser;
use crate::support::own_address;
use crate::support::service::{On, Service};

fn address(service: &Service, path: &str) -> String {
    format!("http://{}{path}", service.address())
}

/// Keeps every stream that a page opens, and says to the page that it is hidden, or seen.
const WATCHED: &str = "window.streams = []; const Real = EventSource; \
    window.EventSource = class extends Real { constructor(...a) { super(...a); streams.push(this); } }; \
    const be = (hidden) => Object.defineProperty(document, 'hidden', { value: hidden, configurable: true }); \
    window.hide = (hidden) => { be(hidden); document.dispatchEvent(new Event('visibilitychange', { bubbles: true })); }; \
    if (location.hash === '#hidden') be(true);";
const OPEN: &str = "return streams.filter(stream => stream.readyState !== 2).length";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_nobody_sees_has_no_stream_and_is_fresh_when_it_is_seen_again() {
    let Some(browser) = Browser::start() else { return };
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": WATCHED }));
    browser.open(&address(&service, "/"));
    browser.until_text("#live", "live").await;
    assert_eq!(browser.run(OPEN), json!(1));
    browser.run("hide(true)");
    assert_eq!(browser.run(OPEN), json!(0), "a hidden page holds a connection");
    let job = service.insert("ONE", &["say:out+exit:1"]).await[0];
    service.until(job, JobStatus::Error).await;
    browser.run("hide(false)");
    browser.until_text("#failures", "say:out").await;
    assert_eq!(browser.run(OPEN), json!(1));

    // Whatever it is left for may need the connection; it stays here, as for a download, so it is told again.
    browser.run("dispatchEvent(new Event('beforeunload'))");
    assert_eq!(browser.run(OPEN), json!(0), "a page that is left holds a connection");
    browser.until("a stream again", &format!("{OPEN} === 1")).await;

    // One that is opened behind another one asks for nothing before somebody looks at it.
    browser.open("about:blank");
    browser.open(&address(&service, "/#hidden"));
    browser.until("the page", "return document.readyState === 'complete'").await;
    assert_eq!(browser.run("return streams.length"), json!(0));
    browser.run("hide(false)");
    browser.until_text("#live", "live").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_whose_service_is_gone_says_since_when_and_stops_counting() {
    let Some(browser) = Browser::start() else { return };
    let mut service = Service::prepare(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    let config = service.config().replace("127.0.0.1:0", &own_address().to_string());
    fs::write(service.path("callsheet.toml"), config).unwrap();
    service.serve().await;
    let job = service.insert("ONE", &["run:600"]).await[0];
    service.until(job, JobStatus::Progress).await;
    browser.open(&address(&service, "/"));
    browser.until_text("#live", "live").await;
    browser.until_text(".run-state", "s").await;
    service.kill_9();
    browser.until_text("#stale[role=alert]", "No connection to the service since ").await;
    assert_eq!(browser.run("return document.body.classList.contains('stale')"), json!(true));
    let said = browser.text("#stale");
    let time = said.split("since ").nth(1).unwrap().split(" UTC").next().unwrap();
    assert!(chrono::NaiveTime::parse_from_str(time, "%H:%M:%S").is_ok(), "{said}");
    // It is in sight wherever the page is scrolled to, and what it covers is worth nothing now.
    browser.size(1280, 300);
    browser.run("scrollTo(0, document.body.scrollHeight)");
    let in_sight = "const b = document.querySelector('#stale').getBoundingClientRect(); return b.top >= 0 && b.bottom < innerHeight";
    browser.until("the banner to be in sight", in_sight).await;
    let calm = "const s = getComputedStyle(document.querySelector('#situation h1 span')); return s.color";
    let muted = "const s = getComputedStyle(document.querySelector('.muted')); return s.color";
    assert_eq!(browser.run(calm), browser.run(muted), "what is old is said in a colour that says it is so");
    // A run that may have ended has no time that runs on.
    let two_looks = "const done = arguments[0], look = () => document.querySelector('.run-state time').textContent, first = look(); \
        setTimeout(() => done([first, look()]), 2500)";
    let looks = browser.run_async(two_looks);
    assert_eq!(looks[0], looks[1], "a time runs on that nobody has confirmed");
    service.serve().await;
    browser.until("the banner to be gone", "return !document.querySelector('#stale, .stale')").await;
    browser.until_text("#live", "live").await;
}
