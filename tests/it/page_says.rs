//! What the page says of jobs and flows, as it comes from the server: no script and no browser.

use callsheet::domain::{JobId, JobStatus};

use crate::support::eventually;
use crate::support::service::{On, Service};

/// The words of a page, without its markup.
fn words(service: &Service, path: &str) -> String {
    let page = service.get(path).text();
    let texts = page.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text));
    texts.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_says_why_it_waits_and_for_which_others() {
    let flows = "[flows.ONE]\n{job}\n[flows.GPU]\n{job}\nrequires = [\"gpu\"]\n";
    let service = Service::start(On::Sqlite, flows).await.unwrap();
    let one = service.insert("ONE", &["run:600", "say:second", "say:third"]).await;
    service.until(one[0], JobStatus::Progress).await;
    let job = |id: JobId| words(&service, &format!("/jobs/{id}"));
    assert!(job(one[1]).contains("It is the next of its flow."), "{}", job(one[1]));
    assert!(job(one[2]).contains("1 job of its flow is before it."));
    let gpu = service.insert("GPU", &["a"]).await[0];
    assert!(job(gpu).contains("No living worker has what its flow requires: gpu."), "{}", job(gpu));
    eventually("the card", async || words(&service, "/").contains("GPU waiting")).await;
    let nobodys = service.insert("NOBODYS", &["a"]).await[0];
    assert!(job(nobodys).contains("No flow of this worker runs its type."));
    service.store.pause(&"ONE".parse().unwrap(), "ops <b>").await.unwrap();
    assert!(job(one[1]).contains("Its flow is paused, by ops &lt;b&gt;"), "{}", job(one[1]));

    // What waits for others is not due in thousands of years.
    let late = service.insert("ONE", &["after"]).await[0];
    let depends =
        format!("INSERT INTO job_dependencies (job_id, after_id) VALUES ({late}, {}), ({late}, {gpu})", one[0]);
    service.sql(&depends).await;
    let said = job(late);
    for part in [
        "waits for other jobs",
        "Waits for PROGRESS",
        &format!("{gpu} a"),
        "when the jobs that it waits for have ended",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for path in [format!("/jobs/{late}"), "/jobs".to_owned()] {
        let said = words(&service, &path);
        assert!(!said.contains("9999") && !said.contains("2912") && said.contains("waits for other jobs"), "{said}");
    }
    // One that runs says nothing of it.
    assert!(!job(one[0]).contains("before it") && !job(one[0]).contains("Waits for"));
}

/// Rows that have ended, `ago` seconds ago after three of running.
async fn ended(service: &Service, flow: &str, count: u32, ago: i64, status: &str, error: &str) {
    let now = service.store.now().await.unwrap().unix_millis();
    let numbers = format!("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {count})");
    let end = now - ago * 1000;
    service
        .sql(&format!(
            "INSERT INTO jobs (type, identifier, status, attempt, created_time, started_time, completed_time, execution_ms, error) \
             {numbers} SELECT '{flow}', 'shot-' || x, '{status}', 1, {end} - 9000, {end} - 3000, {end}, 3000, '{error}' FROM n"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_noisy_flow_hides_no_other_failure() {
    let flows: String =
        ["NOISY", "A", "B", "C", "D", "E", "F"].map(|flow| format!("[flows.{flow}]\n{{job}}\n")).concat();
    let service = Service::start(On::Sqlite, &flows).await.unwrap();
    ended(&service, "A", 2, 600, "ERROR", "exit code 1\nKeyError").await;
    for flow in ["B", "C", "D", "E", "F"] {
        ended(&service, flow, 1, 900, "ERROR", "exit code 2").await;
    }
    ended(&service, "NOISY", 130, 120, "ERROR", "exit code 1\nTraceback\nOSError: no GPU").await;
    ended(&service, "NOISY", 1, 130, "ERROR", "it is another").await;
    let counted = "131 jobs of NOISY have failed in the last hour, the last one 2m ago";
    eventually("the hour to be counted", async || words(&service, "/").contains(counted)).await;
    let said = words(&service, "/");
    assert!(said.contains("2 jobs of A have failed in the last hour, the last one 10m ago"), "{said}");
    assert!(
        said.contains("1 job of B has failed") && said.contains("2 more flows have jobs that failed in the last hour")
    );
    assert!(said.contains("(6) Overview · Callsheet") && said.contains("6 things need you."), "{said}");
    let page = service.get("/").text();
    assert!(page.contains("href=\"/jobs?type=NOISY&amp;status=ERROR\">131 jobs of NOISY"), "it leads to them");
    // Those that say the same are one, and a number that leads somewhere says what it is of.
    assert!(said.contains("100+ × NOISY the last one") && said.contains("OSError: no GPU"), "{said}");
    assert!(page.contains("aria-label=\"131 failed in 24 h, NOISY\""));
    assert!(!page.contains(">0</a>"), "a number that counts nothing leads nowhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_that_differ_are_shown_each() {
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n[flows.TWO]\n{job}\n").await.unwrap();
    ended(&service, "ONE", 3, 50, "ERROR", "exit code 1\nKeyError").await;
    ended(&service, "ONE", 1, 40, "ERROR", "exit code 1\nOSError").await;
    ended(&service, "TWO", 1, 30, "ERROR", "exit code 1\nKeyError").await;
    eventually("the failures", async || words(&service, "/").contains("3 × ONE the last one")).await;
    let page = service.get("/").text();
    let panel = page.split("id=\"failures\"").nth(1).unwrap().split("</section>").next().unwrap();
    assert_eq!(panel.matches("<li>").count(), 3, "{panel}");
    assert_eq!(panel.matches("/retry").count(), 2, "only what is one job is retried from here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_failed_jobs_says_when_and_why_each_failed() {
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    ended(&service, "ONE", 1, 7300, "ERROR", "the command exited with code 1\nTraceback\nKeyError: shot").await;
    ended(&service, "ONE", 1, 7300, "CANCELLED", "cancelled by somebody").await;
    let said = words(&service, "/jobs?status=ERROR");
    assert!(said.contains("the command exited with code 1 KeyError: shot failed 2h ago , after 3.0s"), "{said}");
    let said = words(&service, "/jobs?status=CANCELLED");
    assert!(said.contains("cancelled 2h ago , after 3.0s"), "{said}");
    // Who wanted it to end is told nothing bad.
    let page = service.get("/jobs/2").text();
    assert!(page.contains("Why it was cancelled") && !page.contains("<h2>Error</h2>") && page.contains("error calm"));
    assert!(service.get("/jobs/1").text().contains("<h2>Error</h2>"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_told_of_in_the_right_words() {
    let flow = "[flows.ONE]\n{job}\nretry = { maximum_attempts = 3, initial_interval = \"1s\" }\n";
    let service = Service::start(On::Sqlite, flow).await.unwrap();
    let silent = service.insert("ONE", &["exit:0"]).await[0];
    let runs = service.insert("ONE", &["run:600"]).await[0];
    let waits = service.insert("ONE", &["a"]).await[0];
    let job = |id: JobId| words(&service, &format!("/jobs/{id}"));
    service.until(silent, JobStatus::Completed).await;
    service.until(runs, JobStatus::Progress).await;
    assert!(job(silent).contains("Nothing was written.") && job(silent).contains("attempt 1 of 3"), "{}", job(silent));
    assert!(job(silent).starts_with("✓ Job 1: exit:0"), "{}", job(silent));
    eventually("its run", async || job(runs).contains("Nothing has been written yet.")).await;
    assert!(job(waits).contains("No command has been started yet.") && job(waits).contains("at most 3 attempts"));
    service.store.request_cancel(waits).await.unwrap();
    assert!(job(waits).contains("No command was started.") && !job(waits).contains("yet"), "{}", job(waits));
    // The time of each step can be written down, and what matters of an attempt is its beginning.
    let created = service.job(silent).await.created_time.unix_millis();
    let exact = chrono::DateTime::from_timestamp_millis(created).unwrap().format("%Y-%m-%d %H:%M:%S").to_string();
    let said = job(silent);
    let path = said.split(" Path ").nth(1).unwrap().split(" Attempts ").next().unwrap();
    assert!(path.contains(&format!("PENDING {exact}")), "{path}");
    let attempts = said.split(" Attempts ").nth(1).unwrap();
    assert!(attempts.starts_with("# Outcome Exit Output Started Took"), "{attempts}");
    let minute = exact.get(..16).unwrap();
    assert!(attempts.contains(&format!("COMPLETED 0 both stdout stderr {minute}")), "{attempts}");

    // Only what runs is asked about, and the answer leads back.
    let page = |id: JobId| service.get(&format!("/jobs/{id}")).text();
    assert!(
        page(runs).contains(&format!("/jobs/bulk?do=cancel&amp;back=job&amp;id={runs}"))
            && !page(runs).contains("/cancel\"")
    );
    let ask = service.get(&format!("/jobs/bulk?do=cancel&back=job&id={runs}")).text();
    assert!(ask.contains(&format!("href=\"/jobs/{runs}\">Leave it")) && ask.contains("name=\"back\" value=\"job\""));
    let foreign = service.get(&format!("/jobs/bulk?do=cancel&back=//example.org&id={runs}")).text();
    assert!(!foreign.contains("example.org"));
    let bulk = |query: &str| words(&service, &format!("/jobs/bulk?{query}"));
    assert!(bulk("do=retry").contains("No job was chosen."), "{}", bulk("do=retry"));
    assert!(bulk(&format!("do=retry&id={runs}")).contains("The chosen job can't be retried"));
    assert!(bulk("do=retry-all&type=NOBODYS").contains("No job that is as the filter says can be retried"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_no_webhook_takes_are_told_of() {
    let mut service = Service::prepare(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    // Nobody listens there.
    let nobody = crate::support::own_address();
    service.configure(&format!(
        "[[webhooks]]\nname = \"bridge\"\nurl = \"http://{nobody}/\"\nsecret_env = \"CALLSHEET_TEST_HOOK\"\n"
    ));
    service.serve_with(&[("CALLSHEET_TEST_HOOK", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")]).await;
    let job = service.insert("ONE", &["exit:0"]).await[0];
    service.until(job, JobStatus::Completed).await;
    assert!(!words(&service, "/").contains("for webhook"), "it may still be on its way");
    service.sql("UPDATE job_events SET time = time - 605000").await;
    eventually("the webhook's events", async || {
        words(&service, "/").contains("3 events wait for webhook bridge since 10m")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeline_that_does_not_reach_back_says_so() {
    let service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n[flows.TWO]\n{job}\n").await.unwrap();
    ended(&service, "ONE", 39, 300, "COMPLETED", "").await;
    ended(&service, "TWO", 5, 600, "COMPLETED", "").await;
    let timeline = || service.get("/?span=15m").text().split("id=\"timeline\"").nth(1).unwrap().to_owned();
    eventually("the runs", async || timeline().contains("runs of TWO")).await;
    assert!(!timeline().contains("unread"), "all of them are shown");
    ended(&service, "ONE", 1, 300, "COMPLETED", "").await;
    eventually("the hatching", async || timeline().contains("<path class=\"unread\" d=\"M0 7h")).await;
    let shown = timeline();
    assert_eq!(shown.matches("<path class=\"unread\"").count(), 1, "of one flow only");
    assert!(shown.contains("not read: only the last 40 of each flow are shown"));
}
