//! A page that stays open: whether it is told, whether it says so where it is not, and what its output begins with.

use std::fs;

use callsheet::domain::JobStatus;
use serde_json::json;

use crate::support::browser::Browser;
use crate::support::service::{On, Service};
use crate::support::{eventually, own_address};

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
async fn any_number_of_tabs_can_be_open() {
    let Some(browser) = Browser::start() else { return };
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    // A browser has six connections for all of them.
    for _ in 0..9 {
        browser.open(&address(&service, "/"));
        browser.until_text("#live", "live").await;
        browser.tab();
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_goes_on_from_what_the_page_came_with_in_the_middle_of_a_line_and_of_the_next_attempt() {
    let Some(browser) = Browser::start() else { return };
    let mut service = Service::prepare(On::Sqlite, "").await.unwrap();
    let go = service.path("go");
    let script = "printf '\\nhalf'; until [ -e $0 ]; do sleep 0.02; done; echo ' whole'; exit 1";
    let flow = format!(
        "[flows.ONE]\ncommand = [\"/bin/bash\", \"-c\", {}, \"{}\"]\nretry = {{ maximum_attempts = 2, initial_interval = \"1s\" }}\n",
        json!(script),
        go.display()
    );
    service.configure(&flow);
    service.serve().await;
    let job = service.insert("ONE", &["a"]).await[0];
    service.until(job, JobStatus::Progress).await;
    let path = format!("/jobs/{job}");
    eventually("the first half", async || service.get(&path).text().contains("half")).await;
    browser.open(&address(&service, &path));
    browser.until_text("#live", "live").await;
    let log = "return document.querySelector('#log').textContent";
    assert_eq!(browser.run(log), json!("\nhalf"), "what it came with");
    assert_eq!(browser.text("#log-lines"), "2 lines");
    fs::write(go, "").unwrap();
    browser.until("the whole line", &format!("{log} === '\\nhalf whole'")).await;
    assert_eq!(browser.text("#log-lines"), "2 lines");
    browser.until_text("#output h2", "attempt 2").await;
    service.until(job, JobStatus::Error).await;
    browser.until_text("#job .badge", "ERROR").await;
    browser.until("the second attempt's", &format!("{log} === '\\nhalf whole'")).await;
    // Nothing of it comes once more.
    browser.run("disconnect(); connect()");
    browser.until_text("#live", "live").await;
    assert_eq!(browser.run(log), json!("\nhalf whole"));
    assert_eq!(browser.text("#log-lines"), "2 lines");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_page_does_not_show_of_a_long_output_is_told() {
    let Some(browser) = Browser::start() else { return };
    let line = format!("line %.0f {}", "x".repeat(700));
    let flow = format!("[flows.ONE]\ncommand = [\"/usr/bin/seq\", \"-f\", \"{line}\", \"20000\"]\n");
    let service = Service::start(On::Sqlite, &flow).await.unwrap();
    let job = service.insert("ONE", &["a"]).await[0];
    service.until(job, JobStatus::Completed).await;
    browser.open(&address(&service, &format!("/jobs/{job}")));
    browser.until_text("#log-part", "Only the end of it is shown here. Download all of it Load earlier output").await;
    browser.until_text("#log-lines", "the last ").await;
    browser.click("#log-earlier");
    let last = "return document.querySelector('#log').textContent.includes('line 20000 ')";
    browser.until_text("#log-missing", "The first 1.").await;
    browser.until("the end", last).await;
    assert!(browser.text("#log-missing").ends_with(" MiB are not shown here."), "{}", browser.text("#log-missing"));
    assert!(!browser.text("#log-part").contains("earlier"), "there is no more to be had");
    let shown = "const t = document.querySelector('#log').textContent; const first = +t.match(/^line ([0-9]+) /)[1]; \
        return document.querySelector('#log-lines').textContent === `the last ${(20001 - first).toLocaleString('en')} lines`";
    assert_eq!(browser.run(shown), json!(true), "{}", browser.text("#log-lines"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_about_to_be_pressed_stays_where_it_is() {
    let Some(browser) = Browser::start() else { return };
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    let job = service.insert("ONE", &["wait"]).await[0];
    service.until(job, JobStatus::Progress).await;
    browser.open(&address(&service, &format!("/jobs/{job}")));
    browser.until_text("#live", "live").await;
    browser.until_text("#job .badge", "PROGRESS").await;
    assert!(browser.run("return document.title").as_str().unwrap().starts_with("▶ Job "));
    browser.hover("#job .danger", 0);
    service.go();
    service.until(job, JobStatus::Completed).await;
    let mut place = 0;
    eventually("the way it went", async || {
        place = 3 - place;
        browser.hover("#job .danger", place);
        browser.text("#path").contains("COMPLETED")
    })
    .await;
    assert!(browser.text("#job .badge").contains("PROGRESS") && browser.exists("#job .danger"), "it is pulled away");
    browser.until_text("#job .badge", "COMPLETED").await;
    // Whoever has other pages before it, and whoever hears it, knows, too.
    browser.until("the title", "return document.title.startsWith('✓ Job ')").await;
    assert_eq!(browser.run("return document.querySelector('#news[role=status]').textContent"), json!("COMPLETED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_stay_whole_and_paper_has_all_of_it() {
    let Some(browser) = Browser::start() else { return };
    let script = "for ((n = 1; n < 200; n++)); do echo line $n; echo bad $n >&2; done; exit 3";
    let flow = format!("[flows.ONE]\ncommand = [\"/bin/bash\", \"-c\", {}]\n", json!(script));
    let service = Service::start(On::Sqlite, &flow).await.unwrap();
    let job = service.insert("ONE", &["a"]).await[0];
    service.until(job, JobStatus::Error).await;
    service.sql("UPDATE runs SET worker_id = 'rendernodewithaverylongname', outcome = 'HEARTBEAT_LOST'").await;
    for width in [768, 390] {
        browser.size(width, 900);
        browser.open(&address(&service, &format!("/jobs/{job}")));
        let broken = "return [...document.querySelectorAll('#attempts td bdi')].filter(b => b.getClientRects().length > 1).map(b => b.textContent)";
        assert_eq!(browser.run(broken), json!([]), "words are broken at {width}");
    }
    browser.size(1280, 900);
    browser.open(&address(&service, &format!("/jobs/{job}")));
    browser.until_text("#live", "live").await;
    let tall =
        "const b = document.querySelector('#log'); return b.clientHeight < b.scrollHeight && b.clientHeight < 720";
    browser.until("the output to be long", tall).await;
    browser.devtools("Emulation.setEmulatedMedia", &json!({ "media": "print" }));
    let whole =
        "return [...document.querySelectorAll('#log, pre.error')].every(e => e.scrollHeight <= e.clientHeight + 1)";
    browser.until("all of it", whole).await;
    let gone = "return [...document.querySelectorAll('nav, button, .button, .log-tools')].every(e => e.getClientRects().length === 0)";
    assert_eq!(browser.run(gone), json!(true), "what can't be pressed is printed");
}
