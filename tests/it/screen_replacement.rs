//! The old flow's own command line, run for real: a poetry project that puts a screenshot into a photographed screen.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use callsheet::domain::JobStatus;

use crate::support::eventually;
use crate::support::service::{On, Service};

const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/screen-replacement");

/// The project with its dependencies installed by poetry, in a directory of its own; `None` where there is no poetry.
fn installed(scratch: &Path, groups: &[&str]) -> Option<()> {
    let poetry = Command::new("poetry").arg("--version").output();
    if !poetry.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI has no poetry");
        let note = b"skipped: screen replacement, since there is no poetry here\n";
        // Written past the test harness, which would swallow what is printed.
        std::io::stderr().write_all(note).unwrap();
        return None;
    }
    let copied = Command::new("cp").args(["-r", PROJECT]).arg(scratch.join("project")).status().unwrap();
    assert!(copied.success());
    fs::remove_dir_all(scratch.join("project/.venv")).ok();
    let output = Command::new("poetry")
        .args(["install", "--no-root", "--no-interaction"])
        .args(groups)
        .current_dir(scratch.join("project"))
        .env("POETRY_VIRTUALENVS_IN_PROJECT", "true")
        .env_remove("VIRTUAL_ENV")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "poetry install failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_flows_command_line_runs_for_real() {
    let flows = "[flows.SCREEN_REPLACEMENT_GENERATION]\n\
        command = [\"poetry\", \"run\", \"invoke\", \"generate-screen-replacement\", \"--id\", \"{identifier}\", \"--jobId\", \"{job_id}\"]\n\
        working_dir = \"project\"\n\
        env = { PYTHONUNBUFFERED = \"1\", POETRY_VIRTUALENVS_IN_PROJECT = \"true\" }\n";
    let mut service = Service::prepare(On::Sqlite, flows).await.unwrap();
    let scratch = service.scratch.path().to_owned();
    if installed(&scratch, &["--only", "main"]).is_none() {
        return;
    }
    service.serve().await;
    let flow = "SCREEN_REPLACEMENT_GENERATION";
    let jobs = service.insert(flow, &["phone-tilted", "no-such-input", "no-screen", "laptop-desk"]).await;

    let mut seen = Vec::new();
    eventually("the first picture", async || {
        let row = service.job(jobs[0]).await;
        seen.extend(row.progress);
        row.status.is_final()
    })
    .await;
    let row = service.until(jobs[0], JobStatus::Completed).await;
    assert!(seen.is_sorted() && row.progress == Some(100), "{seen:?}");
    let picture = fs::read(scratch.join(format!("project/outputs/{}/phone-tilted.png", jobs[0]))).unwrap();
    assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n") && picture.len() > 50_000, "{} bytes", picture.len());

    let row = service.until(jobs[1], JobStatus::Error).await;
    assert_eq!(row.exit_code, Some(4));
    let error = row.error.unwrap();
    assert!(error.starts_with("the command failed with exit code 4\n") && error.contains("no-such-input"), "{error}");
    let row = service.until(jobs[2], JobStatus::Error).await;
    assert_eq!(row.exit_code, Some(6), "{:?}", row.error);
    service.until(jobs[3], JobStatus::Completed).await;
    assert!(scratch.join(format!("project/outputs/{}/laptop-desk.png", jobs[3])).exists());

    let log = String::from_utf8(service.cli(&["logs", &jobs[0].to_string()]).stdout).unwrap();
    assert!(!log.is_empty(), "the command's own lines are in its log");
}

#[test]
fn the_projects_own_tests_pass() {
    let scratch = tempfile::tempdir().unwrap();
    if installed(scratch.path(), &[]).is_none() {
        return;
    }
    let output = Command::new("poetry")
        .args(["run", "pytest", "--quiet", "-p", "no:cacheprovider"])
        .current_dir(scratch.path().join("project"))
        .env("POETRY_VIRTUALENVS_IN_PROJECT", "true")
        .env_remove("VIRTUAL_ENV")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("passed"), "{printed}");
}
