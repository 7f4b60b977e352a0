//! The page in a real browser, driving a real service.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use callsheet::domain::{JobId, JobStatus};
use serde_json::{Value, json};

use crate::support::browser::{Browser, axe};
use crate::support::service::{On, Service};
use crate::support::{eventually, own_address};

const BINARY: &str = env!("CARGO_BIN_EXE_callsheet");

/// One whose name is as long as they get.
const LONG_NAME: &str = "[flows.NIGHTLY_CONSISTENCY_CHECK_OF_THE_WHOLE_ASSET_LIBRARY]\n{job}\n\
    [[flows.NIGHTLY_CONSISTENCY_CHECK_OF_THE_WHOLE_ASSET_LIBRARY.recurring]]\nidentifier = \"say:a\"\nschedule = \"@yearly\"\n";

/// One flow of the test command that can report its progress.
fn flow() -> String {
    format!("[flows.ONE]\n{{job}}\nenv = {{ BINARY = \"{BINARY}\" }}\nkill_grace = \"1s\"\n")
}

fn address(service: &Service, path: &str) -> String {
    format!("http://{}{path}", service.address())
}

/// Enqueues by the form, and is on the job's page then.
async fn enqueue(browser: &Browser, service: &Service, identifier: &str) -> JobId {
    browser.open(&address(service, "/jobs"));
    browser.click(".enqueue summary");
    browser.enter(".enqueue-form [name=identifiers]", identifier);
    browser.click(".enqueue-form button[type=submit]");
    browser.until_text(".notice", "1 job was enqueued").await;
    let path = browser.run("return location.pathname");
    JobId(path.as_str().unwrap().rsplit_once('/').unwrap().1.parse().unwrap())
}

const NO_RELOAD: &str = "window.marked = true";
const IS_MARKED: &str = "return window.marked === true";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_enqueued_watched_cancelled_and_retried() {
    let Some(browser) = Browser::start() else { return };
    let service = Service::start(On::Sqlite, &flow()).await.unwrap();
    let job = enqueue(&browser, &service, "progress:10+say:first+wait+progress:80+say:second+complain:third").await;
    browser.run(NO_RELOAD);
    browser.until_text("#live", "live").await;
    browser.until_text("#job .percent", "10%").await;
    browser.until_text("#log", "first").await;
    service.go();
    service.until(job, JobStatus::Completed).await;
    browser.until_text("#job .badge", "COMPLETED").await;
    browser.until_text("#log", "second").await;
    browser.until_text("#log .stderr", "third").await;
    browser.until_text("#path", "COMPLETED").await;
    assert_eq!(browser.run(IS_MARKED), json!(true), "the page was loaded anew");
    let text = browser.text("#log");
    assert_eq!(text.matches("first").count(), 1, "{text}");

    let job = enqueue(&browser, &service, "run:600").await;
    browser.until_text("#job .badge", "PROGRESS").await;
    browser.click("#job .danger");
    browser.until_text("h1", "Cancel 1 job?").await;
    browser.click(".confirm .danger");
    browser.until_text(".notice", "asked to end").await;
    assert_eq!(browser.run("return location.pathname"), json!(format!("/jobs/{job}")), "it leads back to the job");
    service.until(job, JobStatus::Cancelled).await;
    browser.until_text("#job .badge", "CANCELLED").await;
    browser.click("#job form[action$=retry] button");
    browser.until_text("#attempts", "running").await;
    browser.until_text("#output h2", "attempt 2").await;

    // The list holds what was chosen while it changes, and asks before it acts on many.
    browser.open(&address(&service, "/jobs?status=PROGRESS"));
    browser.click(&format!(".choose input[value='{job}']"));
    browser.click("button[value=cancel]");
    browser.until_text("h1", "Cancel 1 job?").await;
    browser.click(".confirm .danger");
    browser.until_text(".notice", "1 job was asked to end").await;
    service.until(job, JobStatus::Cancelled).await;
    browser.until_text("#jobs", "No job is as the filter says").await;
    let who =
        service.store.audit(&callsheet::store::AuditFilter { limit: 100, ..Default::default() }).await.unwrap().rows;
    let deeds: BTreeSet<&str> = who.iter().map(|row| row.action.as_str()).collect();
    assert!(["enqueue", "cancel", "retry"].iter().all(|deed| deeds.contains(deed)), "{deeds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_is_paused_and_resumed_and_everything_works_without_a_script() {
    let Some(browser) = Browser::start() else { return };
    let service = Service::start(On::Sqlite, &flow()).await.unwrap();
    browser.open(&address(&service, "/"));
    browser.click(".card form[action$=pause] button");
    browser.until_text(".notice", "paused").await;
    browser.until_text(".card .badge", "paused").await;
    service.insert("ONE", &["say:hello"]).await;
    browser.until_text(".needs", "ONE is paused, and 1 waits").await;
    browser.scripts(false);
    browser.open(&address(&service, "/"));
    browser.click(".needs form button");
    service.until(JobId(1), JobStatus::Completed).await;
    browser.open(&address(&service, "/jobs"));
    browser.enter("[name=text]", "hello");
    browser.click(".filter button");
    let source = |path: &str| get(&service, path).1;
    assert!(source("/jobs?text=hello").contains("say:hello") && !source("/jobs?text=goodbye").contains("say:hello"));
    assert!(source("/jobs/1").contains("<pre class=\"stdout\">hello"), "{}", source("/jobs/1"));
}

fn get(service: &Service, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(service.address()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_right_token_signs_in_and_a_viewer_is_shown_no_buttons() {
    let Some(browser) = Browser::start() else { return };
    let mut service = Service::prepare(On::Sqlite, &flow()).await.unwrap();
    let hash = |token: &str| {
        let digest = <sha2::Sha256 as sha2::Digest>::digest(token);
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let token = |name: &str, role: &str, token: &str| {
        format!("[[http.tokens]]\nname = \"{name}\"\nrole = \"{role}\"\ntoken_sha256 = \"{}\"\n", hash(token))
    };
    service.configure(
        &(token("ops", "operator", "right-operator-token") + &token("guest", "viewer", "right-viewer-token")),
    );
    service.serve().await;
    browser.open(&address(&service, "/jobs?status=ERROR"));
    browser.until_text("h1", "Sign in").await;
    browser.enter("#token", "wrong");
    browser.click(".sign-in button");
    browser.until_text("[role=alert]", "nobody has this token").await;
    browser.enter("#token", "right-operator-token");
    browser.click(".sign-in button");
    browser.until_text("h1", "Jobs").await;
    assert_eq!(browser.run("return location.search"), json!("?status=ERROR"));
    assert!(browser.exists(".enqueue") && browser.text(".who").contains("ops"));
    assert_eq!(browser.run("return document.cookie"), json!(""), "a script can read the session");
    browser.click(".who button");
    browser.until_text("h1", "Sign in").await;
    browser.enter("#token", "right-viewer-token");
    browser.click(".sign-in button");
    browser.until_text("#flows", "ONE").await;
    assert!(browser.text(".who").contains("guest (viewer)") && !browser.exists("main button"));
    browser.until_text("#live", "live").await;
}

/// What would run, if anything of it were taken for markup.
const HOSTILE: &str = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u{202e}gpj";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_names_and_output_are_shown_as_text() {
    let Some(browser) = Browser::start() else { return };
    let command = r#"command = ["/bin/bash", "-c", "echo \"$0\"; echo \"$0\" >&2; exit 1", "{identifier}"]"#;
    let flows = format!("[flows.ONE]\n{command}\nidentifier_pattern = '(?s)^.+$'\n");
    let service = Service::start(On::Sqlite, &flows).await.unwrap();
    service
        .sql(&format!("INSERT INTO jobs (type, identifier) VALUES ('{HOSTILE}', 'waits'), ('ONE', '{HOSTILE}')"))
        .await;
    service.until(JobId(2), JobStatus::Error).await;
    service.sql(&format!("UPDATE workers SET hostname = '{HOSTILE}', version = '{HOSTILE}'")).await;
    service.sql(&format!("UPDATE jobs SET status_message = '{HOSTILE}', unique_key = '{HOSTILE}' WHERE id = 2")).await;
    let sane = |place: &str| {
        let strange =
            browser.run("return window.hacked === 1 || document.querySelector('main script, main img') !== null");
        assert_eq!(strange, json!(false), "{place}");
    };
    for path in [
        "/",
        "/jobs",
        "/jobs/1",
        "/jobs/2",
        "/workers",
        "/actors",
        "/jobs/bulk?do=retry-all",
        "/audit?actor=<script>",
        "/jobs?text=<img>&type=<b>",
    ] {
        browser.open(&address(&service, path));
        if browser.exists("#live") {
            browser.until_text("#live", "live").await;
        }
        sane(path);
    }
    browser.open(&address(&service, "/jobs/2"));
    // What the server has shown is replaced by what comes, and a block has text once it has been laid out.
    for place in ["#log", "#error"] {
        browser.until_text(place, "<script>window.hacked=1</script>").await;
    }
    browser.until("the output", "return document.querySelectorAll('#log .block').length === 2").await;
    sane("the output");
    let name = browser.text("h1");
    assert!(name.contains("<img src=x") && name.contains("[U+202E]"), "{name}");
    assert_eq!(browser.run(r"return document.querySelector('main').textContent.includes('\u202e')"), json!(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_page_outlives_a_restart_of_the_service_and_misses_nothing() {
    let Some(browser) = Browser::start() else { return };
    let script = "for ((n = 1; n < 100000; n++)); do echo line-$n-; sleep 0.02; [ -e $0 ] && exit; done";
    let mut service = Service::prepare(On::Sqlite, "").await.unwrap();
    let stop = service.path("stop");
    let flow = format!("[flows.ONE]\ncommand = [\"/bin/bash\", \"-c\", {}, \"{}\"]\n", json!(script), stop.display());
    service.configure(&flow);
    let config = service.config().replace("127.0.0.1:0", &own_address().to_string());
    fs::write(service.path("callsheet.toml"), config).unwrap();
    service.serve().await;
    let job = service.insert("ONE", &["a"]).await[0];
    service.until(job, JobStatus::Progress).await;
    browser.open(&address(&service, &format!("/jobs/{job}")));
    browser.run(NO_RELOAD);
    browser.until_text("#log", "line-20-").await;
    service.kill_9();
    browser.until_text("#live", "reconnecting").await;
    service.serve().await;
    browser.until_text("#live", "live").await;
    let seen = browser.run("return document.querySelector('#log').textContent.split('line-').length");
    let later = format!("line-{}-", seen.as_u64().unwrap() + 20);
    browser
        .until("new output", &format!("return document.querySelector('#log').textContent.includes('{later}')"))
        .await;
    fs::write(stop, "").unwrap();
    browser.until_text("#job .badge", "COMPLETED").await;
    assert_eq!(browser.run(IS_MARKED), json!(true), "the page was loaded anew");
    let count = "return document.querySelector('#log').textContent.match(/line-[0-9]+-/g).map(l => +l.slice(5, -1))";
    let mut last = Value::Null;
    eventually("every line once, in order", async || {
        last = browser.run(count);
        let numbers: Vec<u64> = last.as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        numbers.iter().copied().eq(1..=numbers.len() as u64) && numbers.len() > 40
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_lines_are_shown_and_searched() {
    let Some(browser) = Browser::start() else { return };
    let flow =
        "[flows.ONE]\ncommand = [\"/usr/bin/seq\", \"-f\", \"line %.0f of the output of a long run\", \"100000\"]\n";
    let service = Service::start(On::Sqlite, flow).await.unwrap();
    let job = service.insert("ONE", &["a"]).await[0];
    service.until(job, JobStatus::Completed).await;
    browser.open(&address(&service, &format!("/jobs/{job}")));
    // Its end is there at once, and stays until the rest is asked for.
    browser
        .until("the end", "return document.querySelector('#log-lines').textContent === 'the last 1,000 lines'")
        .await;
    browser.until_text("#live", "live").await;
    let first = browser.run("return document.querySelector('#log').textContent.slice(0, 14)");
    assert_eq!(first, json!("line 99001 of "), "the end begins there");
    browser.click("#log-earlier");
    browser.until("all", "return document.querySelector('#log-lines').textContent === '100,000 lines'").await;
    assert_eq!(browser.run("return document.querySelector('#log-part').hidden"), json!(true), "nothing is missing");
    let numbers = "const t = document.querySelector('#log').textContent.match(/line [0-9]+ /g).map(l => +l.slice(5)); \
        return t.length === 100000 && t.every((n, at) => n === at + 1)";
    assert_eq!(browser.run(numbers), json!(true), "each line once, in order");
    let at_the_end =
        "const l = document.querySelector('#log'); return l.scrollTop + l.clientHeight > l.scrollHeight - 50";
    browser.until("the end to be followed", at_the_end).await;
    browser.enter("#log-search", "line 77 of");
    browser.until_text("#log-found", "1 of 1").await;
    let in_sight = "const r = [...CSS.highlights.get('current')][0].getBoundingClientRect(), \
        b = document.querySelector('#log').getBoundingClientRect(); return r.top >= b.top && r.bottom <= b.bottom";
    browser.until("what was found to be in sight", in_sight).await;

    // What is looked for is found in what has not been sent yet.
    browser.open(&address(&service, &format!("/jobs/{job}")));
    browser.until_text("#log-lines", "the last 1,000 lines").await;
    browser.enter("#log-search", "line 777 of");
    browser.until_text("#log-found", "1 of 1").await;
    browser.until("what was found to be in sight", in_sight).await;

    // On a phone the output is out of sight at first, and its end is where it is then scrolled to.
    browser.size(390, 100);
    browser.open(&address(&service, &format!("/jobs/{job}")));
    browser.run("document.querySelector('#log-earlier').click()");
    browser.until("all lines", "return document.querySelector('#log-lines').textContent.startsWith('100,')").await;
    browser.size(390, 700);
    browser.run("document.querySelector('#output').scrollIntoView()");
    let at_end = "const b = document.querySelector('#log'), end = b.lastChild.getBoundingClientRect().bottom; \
        return Math.abs(end - b.getBoundingClientRect().bottom) < 40";
    browser.until("the end of the output to be in sight", at_end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_view_is_accessible_and_small() {
    let (Some(browser), Some(axe)) = (Browser::start(), axe()) else { return };
    let service = Service::start(On::Sqlite, &(flow() + LONG_NAME)).await.unwrap();
    let jobs = service.insert("ONE", &["say:out+complain:broken+exit:1", "say:out+exit:0", "run:600", "run:600"]).await;
    service.until(jobs[0], JobStatus::Error).await;
    service.until(jobs[2], JobStatus::Progress).await;
    service.sql("INSERT INTO jobs (type, identifier, payload) VALUES ('NOBODYS', 'x', '{\"a\": 1}')").await;
    let views = [
        "/",
        "/jobs",
        "/jobs/1",
        "/jobs/3",
        "/jobs/bulk?do=cancel-all",
        "/workers",
        "/actors",
        "/audit",
        "/jobs/999",
        "/jobs?text=nothing",
        "/sign-in",
    ];
    for (width, scheme) in [(1400, "light"), (390, "dark"), (1400, "dark"), (390, "light")] {
        browser.size(width, 900);
        browser.colours(scheme);
        for view in views {
            browser.open(&address(&service, view));
            if view == "/jobs" {
                browser.click(".enqueue summary");
            }
            if browser.exists("#live") {
                browser.until_text("#live", "live").await;
            }
            // Not `innerWidth`: a phone's grows with what does not fit.
            let wider =
                browser.run("const page = document.documentElement; return page.scrollWidth > page.clientWidth");
            assert_eq!(wider, json!(false), "{view} is wider than the window at {width}");
            if view == "/jobs" {
                let job = browser.run("return document.querySelector('.jobs td.job').clientWidth");
                assert!(job.as_f64().unwrap() > 250.0, "a job's name has {job} pixels at {width}");
            }
            browser.devtools("Runtime.evaluate", &json!({ "expression": axe }));
            let tags = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']";
            let found = browser.run_async(&format!(
                "const done = arguments[0]; axe.run({{ runOnly: {tags} }}).then(r => done(r.violations.map(v => \
                 [v.id, v.help, v.nodes.slice(0, 3).map(n => [n.html.slice(0, 300), n.failureSummary])])), e => done(String(e)))"
            ));
            assert_eq!(found, json!([]), "{view}, {width}, {scheme}: {found:#}");
        }
    }
    let (_, page) = get(&service, "/");
    let files = page.split('"').filter(|part| part.starts_with("/assets/")).collect::<BTreeSet<_>>();
    assert_eq!(files.len(), 3);
    let bytes = page.len() + files.iter().map(|file| get(&service, file).1.len()).sum::<usize>();
    assert!(bytes < 150 * 1024, "the first view takes {bytes} bytes");
    assert!(!page.contains(" style=") && !page.contains("<style") && !page.contains("onclick"));
}
