//! `doctor` on the database and the machine of these tests: what it says, and what it leaves.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use callsheet::domain::JobStatus;
use serde_json::Value;

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\n";

fn lines(report: &Value, verdict: &str) -> Vec<String> {
    let checks = report["checks"].as_array().expect("checks");
    let named = checks.iter().filter(|check| check["verdict"] == verdict);
    named.map(|check| check["name"].as_str().unwrap().to_owned()).collect()
}

async fn the_doctor_tries_everything_beside_a_running_service_and_leaves_nothing(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    std::fs::set_permissions(service.path("data"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let running = service.insert("ONE", &["wait"]).await[0];
    let pid = service.begun(running, 1).await.pid;
    service.until(running, JobStatus::Progress).await;
    let output = service.cli(&["doctor", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{output:?}"));
    let tried = lines(&report, "ok");
    let watch = match on {
        On::Sqlite => "file watch",
        On::Postgres => "NOTIFY",
        On::MariaDb => "poll",
    };
    for line in ["private service", watch, "re-attach", "ended while away", "tree kill", "lost run"] {
        assert!(tried.iter().any(|name| name == line), "{line}: {text}");
    }
    // The servers of these tests run without fsync, which is just what the doctor is to find.
    let wrong: &[&str] = if on == On::Sqlite { &[] } else { &["commits"] };
    assert_eq!(lines(&report, "failed"), wrong, "{text}");
    assert_eq!(output.status.code(), Some(i32::from(on != On::Sqlite)));
    nothing_left(&service).await;
    // The user's own job did not notice.
    assert_eq!(service.job(running).await.status, JobStatus::Progress);
    service.go();
    service.until(running, JobStatus::Completed).await;
    assert_eq!(service.evidence()[&(running.0, 1)].pid, pid);
}
on_each_database!(the_doctor_tries_everything_beside_a_running_service_and_leaves_nothing);

async fn nothing_left(service: &Service) {
    let types = service.store.flow_states().await.unwrap();
    assert!(types.iter().all(|flow| flow.job_type == "ONE"), "{types:?}");
    let workers = service.store.workers().await.unwrap();
    assert!(workers.iter().all(|worker| !worker.worker_id.starts_with("doctor-")), "{workers:?}");
    let strange = |path: &str| {
        let names = std::fs::read_dir(service.path(path)).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().contains("doctor")).collect::<Vec<_>>()
    };
    assert_eq!((strange("."), strange("data")), (Vec::new(), Vec::new()));
    eventually("the doctor's processes to be gone", async || doctors_processes(service).is_empty()).await;
}

/// Every process that has to do with the scratch directory of a doctor of this service.
fn doctors_processes(service: &Service) -> Vec<String> {
    let mark = format!("{}/data/.callsheet-doctor-", service.scratch.path().display());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(&mark)).collect()
}

async fn a_doctor_that_is_interrupted_cleans_up(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let mut command = service.command();
    let mut doctor = command.arg("doctor").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Held still in between, so that it is not over before it has been seen to be under way.
    let pid = rustix::process::Pid::from_child(&doctor);
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    eventually("a command of the doctor", async || {
        signal(rustix::process::Signal::STOP);
        let lines = doctors_processes(&service);
        let seen = lines.iter().any(|line| line.contains("tree-1") || line.contains("wait-1"));
        if !seen {
            signal(rustix::process::Signal::CONT);
        }
        seen
    })
    .await;
    signal(rustix::process::Signal::INT);
    signal(rustix::process::Signal::CONT);
    eventually("the doctor to end", async || doctor.try_wait().unwrap().is_some()).await;
    let output = doctor.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("interrupted; what was made for the trial has been removed"), "{said}");
    nothing_left(&service).await;
}
on_each_database!(a_doctor_that_is_interrupted_cleans_up);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_says_what_to_do_about_a_data_directory_that_others_may_read() {
    let service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    std::fs::set_permissions(service.path("data"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = service.cli(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert_eq!(lines(&report, "failed"), ["data directory"], "{report}");
    let line = report["checks"].as_array().unwrap().iter().find(|check| check["verdict"] == "failed").unwrap();
    assert_eq!(line["help"], format!("chmod 700 {}", service.path("data").display()));
}
