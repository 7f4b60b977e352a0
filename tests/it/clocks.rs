//! The wall clock is set by an hour either way, and processes are suspended, under running commands.
//!
//! The real binary runs with libfaketime, which hands it a wall clock that these tests set; the clocks that nobody can set
//! are left alone, as the kernel does.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use callsheet::domain::JobStatus;

use crate::support::service::{On, Service};
use crate::support::{eventually, processes};

const FLOWS: &str = "[flows.ONE]\n{job}\n[flows.SHORT]\n{job}\nstart_to_close_timeout = \"3s\"\n\
    [flows.GRACE]\n{job}\nstart_to_close_timeout = \"5s\"\nkill_grace = \"2s\"\n";

/// libfaketime, where Debian and others put it; `None`, said plainly, where it is not installed.
fn library() -> Option<PathBuf> {
    let places = ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime"];
    let found = places.iter().map(|place| Path::new(place).join("libfaketimeMT.so.1")).find(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no libfaketime found, and CI must not skip these tests");
        processes::say_skipped("the wall clock is set", "no libfaketime found");
    }
    found
}

/// A service whose wall clock is `offset` seconds ahead of the real one.
async fn with_clock(offset: i64) -> Option<Service> {
    with_clock_and(offset, "").await
}

/// The same with more in its configuration.
async fn with_clock_and(offset: i64, more: &str) -> Option<Service> {
    with_clock_on(On::Sqlite, offset, FLOWS, more).await
}

async fn with_clock_on(on: On, offset: i64, flows: &str, more: &str) -> Option<Service> {
    let library = library()?;
    let mut service = Service::prepare(on, flows).await?;
    service.configure(more);
    set(&service, offset);
    service.env = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", service.path("clock").display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    service.serve().await;
    Some(service)
}

fn set(service: &Service, offset: i64) {
    // Renamed into place, so that nobody reads half of it.
    std::fs::write(service.path("clock.new"), format!("{offset:+}s\n")).unwrap();
    std::fs::rename(service.path("clock.new"), service.path("clock")).unwrap();
}

/// Enqueues through the command line, which goes by the same clock as the service.
async fn enqueue(service: &Service, flow: &str, identifier: &str) -> callsheet::domain::JobId {
    let variables = service.env.iter().map(|(name, value)| (name, value));
    let output = service.command().envs(variables).args(["enqueue", flow, identifier]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    callsheet::domain::JobId(String::from_utf8_lossy(&output.stdout).trim().parse().unwrap())
}

const HOUR: i64 = 3600;

/// When the jobs that there are could run, in Unix seconds.
async fn fires(service: &Service) -> Vec<i64> {
    let filter = callsheet::store::JobFilter { limit: 100, ..Default::default() };
    let rows = service.store.list(&filter).await.unwrap().rows;
    let mut fires: Vec<i64> = rows.iter().map(|job| job.run_at.unix_millis() / 1000).collect();
    fires.sort_unstable();
    fires
}

/// The full hours since `began` up to so many hours ahead of the real clock.
async fn hours(service: &Service, began: i64, ahead: i64) -> Vec<i64> {
    let now = service.store.now().await.unwrap().unix_millis() / 1000;
    (began / HOUR + 1..=now / HOUR + ahead).map(|hour| hour * HOUR).collect()
}

/// A worker's own clock has no say in whether there is time for another attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_clock_is_wrong_tries_a_job_as_often_as_any_other() {
    let flows = "[flows.THRICE]\n{job}\nschedule_to_close_timeout = \"1h\"\nretry = { maximum_attempts = 3, initial_interval = \"20ms\" }\n\
        [flows.ONCE]\n{job}\nschedule_to_close_timeout = \"2s\"\nretry = { maximum_attempts = 3, initial_interval = \"1h\" }\n";
    for offset in [3 * HOUR, -3 * HOUR] {
        let Some(mut service) = with_clock_on(On::Postgres, offset, flows, "").await else { return };
        let job = service.insert("THRICE", &["exit:1"]).await[0];
        let row = service.until(job, JobStatus::Error).await;
        assert_eq!((row.attempt.0, service.evidence().len()), (3, 3), "{offset}: {row:?}");
        // Also one that another service had begun.
        let job = service.insert("THRICE", &["wait+exit:1"]).await[0];
        service.begun(job, 1).await;
        service.kill_9();
        service.serve().await;
        service.go();
        service.begun(job, 3).await;
        let job = service.insert("ONCE", &["exit:1"]).await[0];
        let row = service.until(job, JobStatus::Error).await;
        assert_eq!(row.attempt.0, 1, "{offset}: {row:?}");
    }
}

async fn deadlines_and_durations_hold_when_the_clock_is_set(from: i64, to: i64) {
    let Some(service) = with_clock(from).await else { return };
    let asked = Instant::now();
    let short = enqueue(&service, "SHORT", "run:600").await;
    let one = enqueue(&service, "ONE", "wait+exit:4").await;
    let waiting = enqueue(&service, "ONE", "say:hello").await;
    service.begun(short, 1).await;
    service.begun(one, 1).await;
    service.until(one, JobStatus::Progress).await;
    let begun = Instant::now();
    set(&service, to);
    // Neither at once nor an hour late.
    let row = service.until(short, JobStatus::Error).await;
    let ran = Duration::from_millis(u64::try_from(row.execution_ms.unwrap()).unwrap());
    assert!(row.error.unwrap().starts_with("timed out: "));
    assert!((Duration::from_secs(3)..Duration::from_secs(600)).contains(&ran), "{ran:?}");
    // The other one was not taken for lost, and its time is the time that passed.
    assert_eq!(service.job(one).await.status, JobStatus::Progress);
    let went_on = begun.elapsed();
    service.go();
    let row = service.until(one, JobStatus::Error).await;
    assert_eq!(row.exit_code, Some(4));
    let ran = Duration::from_millis(u64::try_from(row.execution_ms.unwrap()).unwrap());
    assert!(ran >= went_on && ran < asked.elapsed() + Duration::from_millis(50), "{ran:?} is not {went_on:?} at least");
    // What waited for the slot is as due as before, though its `run_at` may lie ahead now.
    service.until(waiting, JobStatus::Completed).await;
    // What is enqueued by the new clock is noticed at once: the yearly tick of these tests can't be what did it.
    let next = enqueue(&service, "ONE", "say:hello").await;
    service.until(next, JobStatus::Completed).await;
    assert_eq!(service.evidence().len(), 4, "nothing was started twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_forward_moves_no_deadline() {
    deadlines_and_durations_hold_when_the_clock_is_set(0, 3600).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_back_moves_no_deadline() {
    deadlines_and_durations_hold_when_the_clock_is_set(3600, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recurring_job_comes_once_for_each_fire_however_the_clock_is_set() {
    let entry =
        "[[flows.GRACE.recurring]]\nschedule = \"0 * * * *\"\nidentifier = \"say:hourly\"\ncatch_up = \"all\"\n";
    let Some(mut service) = with_clock_and(0, entry).await else { return };
    eventually("the entry to be known", async || !service.store.recurring().await.unwrap().is_empty()).await;
    let began = service.store.recurring().await.unwrap()[0].fired_until.unix_millis() / 1000;
    set(&service, 2 * HOUR);
    eventually("two fires", async || fires(&service).await == hours(&service, began, 2).await).await;
    let twice = fires(&service).await;
    // Back again, and looked at anew, as a service does when it starts; then on to an hour that has not been.
    set(&service, 0);
    service.kill_9();
    service.serve().await;
    let probe = enqueue(&service, "ONE", "say:hello").await;
    service.until(probe, JobStatus::Completed).await;
    service.sql(&format!("DELETE FROM jobs WHERE id = {probe}")).await;
    assert_eq!(fires(&service).await, twice, "nothing comes twice");
    set(&service, 3 * HOUR);
    eventually("the third fire", async || fires(&service).await == hours(&service, began, 3).await).await;
    eventually("three commands", async || service.evidence().len() == fires(&service).await.len() + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_comes_back_with_another_clock_settles_what_it_finds() {
    let Some(mut service) = with_clock(3600).await else { return };
    let running = enqueue(&service, "ONE", "wait+exit:6").await;
    let pid = service.begun(running, 1).await.pid;
    service.until(running, JobStatus::Progress).await;
    service.kill_9();
    set(&service, 0);
    service.serve().await;
    eventually("the run to be taken over", async || service.log().contains("reattached")).await;
    service.go();
    assert_eq!(service.until(running, JobStatus::Error).await.exit_code, Some(6));
    assert_eq!(service.evidence()[&(running.0, 1)].pid, pid);
}

/// A suspended machine stops all processes; what goes on meanwhile is the clock that deadlines go by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_service_and_a_stopped_shim_keep_their_deadlines() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    let job = service.insert("GRACE", &["ignore-term+run:600"]).await[0];
    let begun = service.begun(job, 1).await;
    let shim = rustix::process::Pid::from_raw(processes::parent_of(begun.pid)).unwrap();
    let stop = |signal| rustix::process::kill_process(shim, signal).unwrap();
    stop(rustix::process::Signal::STOP);
    service.signal(rustix::process::Signal::STOP);
    // Until well after its time is up; that nothing happens meanwhile is what stopping means.
    tokio::time::sleep(Duration::from_millis(5500)).await;
    assert!(processes::is_alive(begun.pid));
    service.signal(rustix::process::Signal::CONT);
    stop(rustix::process::Signal::CONT);
    let row = service.until(job, JobStatus::Error).await;
    assert!(row.error.unwrap().starts_with("timed out: "));
    assert!(row.execution_ms.unwrap() >= 5500);
    service.nothing_alive().await;
    assert_eq!(service.evidence().len(), 1);
}
