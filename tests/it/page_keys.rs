//! The page by keyboard alone: whatever can be clicked is reached by the tab key, seen where it is, and done by Enter.

use callsheet::domain::JobStatus;
use serde_json::json;

use crate::support::browser::Browser;
use crate::support::service::{On, Service};

const TAB: &str = "\u{E004}";
const ENTER: &str = "\u{E007}";

/// Presses the tab key until this has the focus, and checks that everything on the way shows that it has it.
async fn tab_to(browser: &Browser, css: &str) {
    // The document of a page that has just been opened.
    browser.until("the page", "return document.readyState === 'complete'").await;
    let here = format!("return document.activeElement.matches({})", json!(css));
    for _ in 0..80 {
        browser.press(TAB);
        let seen = browser.run(
            "const style = getComputedStyle(document.activeElement); return document.activeElement === document.body || \
             (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2)",
        );
        assert_eq!(
            seen,
            json!(true),
            "the focus can't be seen on {}",
            browser.run("return document.activeElement.outerHTML")
        );
        if browser.run(&here) == json!(true) {
            return;
        }
    }
    panic!("the tab key does not lead to {css}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_signs_in_enqueues_and_cancels_without_a_mouse() {
    let Some(browser) = Browser::start() else { return };
    let mut service = Service::prepare(On::Sqlite, "[flows.ONE]\n{job}\nkill_grace = \"1s\"\n").await.unwrap();
    let digest = <sha2::Sha256 as sha2::Digest>::digest("the-right-token");
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    service.configure(&format!("[[http.tokens]]\nname = \"ops\"\nrole = \"operator\"\ntoken_sha256 = \"{hash}\"\n"));
    service.serve().await;
    browser.open(&format!("http://{}/", service.address()));
    browser.until("the token's field to have the focus", "return document.activeElement.id === 'token'").await;
    browser.press(&format!("the-right-token{ENTER}"));
    browser.until_text("#flows", "ONE").await;

    // The first stop of every page leads past its head.
    browser.press(TAB);
    assert_eq!(browser.run("return document.activeElement.className"), json!("skip"));
    browser.press(ENTER);
    browser.until("the content to have the focus", "return document.activeElement.id === 'main'").await;
    browser.open(&format!("http://{}/", service.address()));
    tab_to(&browser, "nav a[href='/jobs']").await;
    browser.press(ENTER);
    browser.until_text("h1", "Jobs").await;

    tab_to(&browser, ".enqueue summary").await;
    browser.press(ENTER);
    tab_to(&browser, ".enqueue-form [name=identifiers]").await;
    browser.press("run:600");
    tab_to(&browser, ".enqueue-form button[type=submit]").await;
    browser.press(ENTER);
    browser.until_text(".notice", "1 job was enqueued").await;
    let job = callsheet::domain::JobId(1);
    service.until(job, JobStatus::Progress).await;
    browser.until_text("#job .badge", "PROGRESS").await;

    tab_to(&browser, "#job a.danger").await;
    browser.press(ENTER);
    browser.until_text("h1", "Cancel 1 job?").await;
    tab_to(&browser, ".confirm button[type=submit]").await;
    browser.press(ENTER);
    browser.until_text(".notice", "asked to end").await;
    service.until(job, JobStatus::Cancelled).await;
    browser.until_text("#job .badge", "CANCELLED").await;

    // Many at once, by the box beside the job.
    browser.open(&format!("http://{}/jobs", service.address()));
    tab_to(&browser, ".choose input[value='1']").await;
    browser.press(" ");
    tab_to(&browser, "button[value=retry]").await;
    browser.press(ENTER);
    browser.until_text("h1", "Retry 1 job?").await;
    tab_to(&browser, ".confirm button[type=submit]").await;
    browser.press(ENTER);
    browser.until_text(".notice", "1 job will be tried again").await;
    service.until(job, JobStatus::Progress).await;
}
