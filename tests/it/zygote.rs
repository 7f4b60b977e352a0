//! The program that runs are forked from: the small one beside the service, or the service's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use callsheet::domain::JobStatus;
use rustix::process::Signal;

use crate::support::eventually;
use crate::support::processes::{Process, processes};
use crate::support::scrape::get;
use crate::support::service::{On, Service};

const BINARY: &str = env!("CARGO_BIN_EXE_callsheet");
const SMALL: &str = env!("CARGO_BIN_EXE_callsheet-shim");

/// The name of the file that the shim of this command runs, once it runs.
async fn shim_of(service: &Service, job: callsheet::domain::JobId) -> String {
    let command = service.begun(job, 1).await.pid;
    let shim = Process::read(command).unwrap().parent;
    fs::read_link(format!("/proc/{shim}/exe")).unwrap().file_name().unwrap().to_string_lossy().into_owned()
}

#[tokio::test]
async fn runs_are_forked_from_the_small_program_of_the_same_build_and_else_from_the_services_own() {
    // A service beside nothing, beside something that is no helper, and beside the helper of another build.
    let silent = "#!/bin/sh\nexit 0\n";
    let another = "#!/bin/sh\nprintf 'another!' >&0\nexec sleep 60\n";
    for (beside, complaint) in [
        (None, None),
        (Some(silent), Some("it ended without presenting itself")),
        (Some(another), Some("it is of another build of Callsheet")),
    ] {
        let mut service = Service::prepare(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
        let bin = service.path("bin");
        fs::create_dir(&bin).unwrap();
        service.program = bin.join("callsheet");
        fs::copy(BINARY, &service.program).unwrap();
        if let Some(script) = beside {
            fs::write(bin.join("callsheet-shim"), script).unwrap();
            fs::set_permissions(bin.join("callsheet-shim"), fs::Permissions::from_mode(0o755)).unwrap();
        }
        service.serve().await;
        let job = service.insert("ONE", &["wait+exit:7"]).await[0];
        assert_eq!(shim_of(&service, job).await, "callsheet", "{beside:?}");
        service.go();
        assert_eq!(service.until(job, JobStatus::Error).await.exit_code, Some(7));
        let log = service.log();
        assert_eq!(log.matches("no runs can be started through this program").count(), usize::from(beside.is_some()));
        assert!(complaint.is_none_or(|complaint| log.contains(complaint)), "{log}");

        // An upgrade brings the right one, which the next start finds.
        service.kill_9();
        fs::remove_file(bin.join("callsheet-shim")).ok();
        fs::copy(SMALL, bin.join("callsheet-shim")).unwrap();
        service.serve().await;
        let job = service.insert("ONE", &["run:600"]).await[0];
        assert_eq!(shim_of(&service, job).await, "callsheet-shim");
        service.store.request_cancel(job).await.unwrap();
        service.until(job, JobStatus::Cancelled).await;
    }
}

#[tokio::test]
async fn one_that_stands_still_is_complained_of_and_replaced() {
    let mut service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    let first = service.insert("ONE", &["say:first"]).await[0];
    service.until(first, JobStatus::Completed).await;
    let freeze = async |service: &Service| {
        let is_its = |process: &Process| process.parent == service.pid();
        let (helper, _) = processes().into_iter().find(|(_, process)| is_its(process)).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(helper).unwrap(), Signal::STOP).unwrap();
        let job = service.insert("ONE", &["say:later"]).await[0];
        service.until(job, JobStatus::InQueue).await;
        job
    };
    let job = freeze(&service).await;
    eventually("readyz to say so", async || get(&service.address(), "/readyz").0 == 503).await;
    assert_eq!(service.until(job, JobStatus::Completed).await.attempt.0, 1);
    assert!(service.log().contains("stood still"), "{}", service.log());
    assert_eq!(get(&service.address(), "/readyz").0, 200);
    // And where it holds a run's journal after its service.
    let job = freeze(&service).await;
    service.kill_9();
    service.serve().await;
    assert_eq!(service.until(job, JobStatus::Completed).await.attempt.0, 1);
    assert_eq!(service.evidence().len(), 3);
    service.stop().await;
}

#[test]
fn by_hand_it_says_what_it_is() {
    let output = std::process::Command::new(Path::new(SMALL)).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("only `callsheet serve` can use"), "{said}");
}
