//! What a command reports about itself arrives in its row and on the command line.

use callsheet::domain::JobStatus;

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

async fn a_command_reports_its_progress(on: On) {
    let flows = format!("[flows.ONE]\n{{job}}\nenv = {{ BINARY = {:?} }}\n", env!("CARGO_BIN_EXE_callsheet"));
    let Some(mut service) = Service::start(on, &flows).await else { return };
    let job = service.insert("ONE", &["progress:40+wait+progress:90"]).await[0];
    eventually("40 %", async || service.job(job).await.progress == Some(40)).await;
    assert_eq!(service.job(job).await.status_message.as_deref(), Some("at 40"));
    // The socket is the shim's, so what is said while no service is there is heard all the same.
    service.kill_9();
    service.go();
    service.command_ended(job, 1).await;
    service.serve().await;
    let row = service.until(job, JobStatus::Completed).await;
    assert_eq!(row.status_message.as_deref(), Some("at 90"));
    let shown = String::from_utf8(service.cli(&["show", &job.to_string()]).stdout).unwrap();
    assert!(shown.contains("at 90"), "{shown}");
}
on_each_database!(a_command_reports_its_progress, mariadb);

#[test]
fn notify_outside_a_job_says_so() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_callsheet"))
        .args(["notify", "--progress", "1"])
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("NOTIFY_SOCKET"));
}
