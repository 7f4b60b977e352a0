//! A command that hangs is ended: by its watchdog, by its silence, and each says so; also while the service is down.

use callsheet::domain::{JobId, JobStatus};

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

const FLOWS: &str = concat!(
    "[flows.WATCHED]\n{job}\nkill_grace = \"300ms\"\nwatchdog = true\nheartbeat_timeout = \"6s\"\nenv = { BINARY = '",
    env!("CARGO_BIN_EXE_callsheet"),
    "' }\n[flows.QUIET]\n{job}\nkill_grace = \"300ms\"\nsilence_timeout = \"4s\"\n"
);

async fn error_of(service: &Service, job: JobId) -> String {
    let row = service.until(job, JobStatus::Error).await;
    assert_eq!(service.runs(job).await[0].outcome.as_deref(), Some("TIMED_OUT"));
    assert_eq!(service.alive(), [], "nothing of the run is left");
    row.error.unwrap()
}

fn timeouts(service: &Service, flow: &str, cause: &str) -> String {
    let text = service.get("/metrics").text();
    let series = format!(r#"callsheet_run_timeouts_total{{cause="{cause}",type="{flow}"}} "#);
    let line = text.lines().find(|line| line.starts_with(&series)).unwrap_or_else(|| panic!("no {series} in {text}"));
    line.trim_start_matches(&series).to_owned()
}

async fn a_command_that_stops_proving_that_it_is_alive_is_ended(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    // It proves itself for longer than the watchdog's time by one of its children, and then no more.
    let job = service.insert("WATCHED", &["environment+alive:14+daemon+say:hanging+run:600"]).await[0];
    let error = error_of(&service, job).await;
    assert!(
        error.starts_with(
            "timed out: the command had not sent WATCHDOG=1 for 6s (watchdog = true, within heartbeat_timeout) and was ended with"
        ),
        "{error}"
    );
    let execution = service.job(job).await.execution_ms.unwrap();
    assert!(execution >= 12_500, "ended after {execution} ms, while it still proved itself");
    let environment = std::fs::read_to_string(service.path(&format!("evidence/{job}.1.environment"))).unwrap();
    assert!(environment.lines().any(|line| line == "WATCHDOG_USEC=6000000"), "{environment}");
    assert!(!environment.contains("WATCHDOG_PID"), "any process of the run may prove that it is alive");
    eventually("the metrics", async || timeouts(&service, "WATCHED", "watchdog") == "1").await;
    assert_eq!(timeouts(&service, "WATCHED", "silence"), "0");
}
on_each_database!(a_command_that_stops_proving_that_it_is_alive_is_ended);

async fn a_command_that_says_itself_that_it_hangs_is_ended(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("WATCHED", &["stuck+run:600"]).await[0];
    let error = error_of(&service, job).await;
    assert!(error.starts_with("timed out: the command said itself that it hangs (WATCHDOG=trigger)"), "{error}");
}
on_each_database!(a_command_that_says_itself_that_it_hangs_is_ended);

async fn a_silent_command_is_ended_whichever_stream_it_wrote_to(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    // For longer than it may be silent on the one stream, then on the other.
    let job = service.insert("QUIET", &["say:a+err:9+out:9+ignore-term+run:600"]).await[0];
    let error = error_of(&service, job).await;
    assert!(error.starts_with("timed out: the command had written nothing for 4s (silence_timeout)"), "{error}");
    assert!(error.contains("signal 9 (SIGKILL)"), "it ignored SIGTERM: {error}");
    let execution = service.job(job).await.execution_ms.unwrap();
    assert!(execution >= 13_000, "ended after {execution} ms, while it still wrote");
    eventually("the metrics", async || timeouts(&service, "QUIET", "silence") == "1").await;
}
on_each_database!(a_silent_command_is_ended_whichever_stream_it_wrote_to);

async fn both_hold_while_the_service_is_down(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let hanging = service.insert("WATCHED", &["prove:alone+run:600"]).await[0];
    let quiet = service.insert("QUIET", &["chatter:alone+run:600"]).await[0];
    service.begun(hanging, 1).await;
    service.begun(quiet, 1).await;
    service.kill_9();
    service.go_on("alone");
    service.nothing_alive().await;
    service.serve().await;
    assert!(error_of(&service, hanging).await.contains("WATCHDOG=1 for 6s"));
    assert!(error_of(&service, quiet).await.contains("written nothing for 4s"));
    eventually("the metrics", async || timeouts(&service, "QUIET", "silence") == "1").await;
}
on_each_database!(both_hold_while_the_service_is_down);
