//! What a command wrote: in order, whole or with what is missing told, from any offset, compressed, and gone in time.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;

use callsheet::domain::{JobId, JobStatus};
use callsheet::process::run_dir;
use serde_json::Value;

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\n[flows.LITTLE]\n{job}\nlimits.output = \"1MiB\"\n";

async fn directory(service: &Service, job: JobId) -> PathBuf {
    let run = service.runs(job).await.pop().unwrap();
    run_dir(&service.path("data"), job, run.attempt, &run.run_token.parse().unwrap())
}

fn names(directory: &PathBuf, start: &str) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(start)).collect()
}

fn logs(service: &Service, arguments: &[&str]) -> Vec<u8> {
    let output = service.cli(&[&["logs"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

async fn both_streams_are_read_in_the_order_in_which_they_came(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    // Each once the one before it has been read: what waits in two pipes has no order.
    let job = service.insert("ONE", &["say:1+wait:2+complain:2+wait:3+say:3+wait:4+complain:4"]).await[0];
    let id = job.to_string();
    service.until(job, JobStatus::Progress).await;
    for (read, next) in [(&b"1\n"[..], "2"), (b"1\n2\n", "3"), (b"1\n2\n3\n", "4")] {
        eventually("what was written to be read", async || logs(&service, &[&id]) == read).await;
        service.go_on(next);
    }
    service.until(job, JobStatus::Completed).await;
    assert_eq!(logs(&service, &[&id]), b"1\n2\n3\n4\n");
    assert_eq!(logs(&service, &[&id, "--stream", "stderr"]), b"2\n4\n");
    assert_eq!(logs(&service, &[&id, "--tail", "2"]), b"3\n4\n");
    assert_eq!(logs(&service, &[&id, "--offset", "3"]), b"\n3\n4\n");
    let lines = String::from_utf8(logs(&service, &[&id, "--json"])).unwrap();
    let pieces: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> =
        pieces.iter().map(|piece| (piece["stream"].as_str().unwrap(), piece["offset"].as_u64().unwrap())).collect();
    assert_eq!(told, [("stdout", 0), ("stderr", 0), ("stdout", 2), ("stderr", 2)]);
    assert!(pieces[3]["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{lines}");
}
on_each_database!(both_streams_are_read_in_the_order_in_which_they_came);

#[tokio::test]
async fn following_goes_on_across_a_kill_and_a_restart_of_the_service() {
    let Some(mut service) = Service::start(On::Sqlite, FLOWS).await else { return };
    let job = service.insert("ONE", &["say:before+complain:between+wait+say:after"]).await[0];
    service.begun(job, 1).await;
    service.until(job, JobStatus::Progress).await;
    let mut follow = service.command();
    follow.args(["logs", &job.to_string(), "--follow"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let following = follow.spawn().unwrap();
    service.kill_9();
    service.go();
    service.command_ended(job, 1).await;
    service.serve().await;
    service.until(job, JobStatus::Completed).await;
    let output = tokio::task::spawn_blocking(move || following.wait_with_output().unwrap()).await.unwrap();
    assert_eq!((output.status.success(), output.stdout.as_slice()), (true, &b"before\nbetween\nafter\n"[..]));
}

#[tokio::test]
async fn logs_are_compressed_after_the_run_and_read_the_same() {
    let Some(mut service) = Service::start(On::Sqlite, FLOWS).await else { return };
    let job = service.insert("ONE", &["count:100000+complain:done+wait"]).await[0];
    service.until(job, JobStatus::Progress).await;
    let directory = directory(&service, job).await;
    let whole = || logs(&service, &[&job.to_string(), "--stream", "stdout"]);
    let mut before = Vec::new();
    eventually("all of the output", async || {
        before = whole();
        before.len() == 588_895
    })
    .await;
    assert_eq!(names(&directory, "stdout."), ["stdout.0"], "nothing is compressed while the run goes on");
    service.go();
    service.until(job, JobStatus::Completed).await;
    eventually("the compressed segment", async || names(&directory, "stdout.") == ["stdout.0-588895.gz"]).await;
    assert!(directory.join("stdout.0-588895.gz").metadata().unwrap().len() < 588_895 / 2);
    assert!(directory.join("stderr.0").exists(), "what is small stays as it is");
    assert!(whole() == before, "it reads the same");
    assert_eq!(logs(&service, &[&job.to_string(), "--stream", "stdout", "--offset", "588889"]), b"00000\n");

    // What a crash has left undone is done by the next start.
    service.kill_9();
    let packed = directory.join("stdout.0-588895.gz");
    fs::remove_file(packed).unwrap();
    fs::write(directory.join("stdout.0"), &before).unwrap();
    service.serve().await;
    eventually("the compressed segment", async || names(&directory, "stdout.") == ["stdout.0-588895.gz"]).await;
}

/// Makes a run and its directory look as if they were of this many days ago.
async fn age(service: &Service, job: JobId, days: i64) {
    service
        .sql(&format!("UPDATE runs SET completed_time = completed_time - {} WHERE job_id = {job}", days * 86_400_000))
        .await;
    let directory = directory(service, job).await;
    let then = rustix::fs::Timespec { tv_sec: directory.metadata().unwrap().mtime() - days * 86_400, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: then, last_modification: then };
    rustix::fs::utimensat(rustix::fs::CWD, &directory, &times, rustix::fs::AtFlags::empty()).unwrap();
}

async fn old_logs_are_removed_and_those_of_open_runs_never(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure("[retention]\nlogs = \"20d\"\n");
    service.serve().await;
    let old = service.insert("ONE", &["say:old"]).await[0];
    service.until(old, JobStatus::Completed).await;
    let young = service.insert("ONE", &["say:young"]).await[0];
    service.until(young, JobStatus::Completed).await;
    let open = service.insert("ONE", &["say:open+wait"]).await[0];
    service.until(open, JobStatus::Progress).await;
    eventually("its output", async || logs(&service, &[&open.to_string()]) == b"open\n").await;
    age(&service, old, 21).await;
    age(&service, young, 19).await;
    age(&service, open, 21).await;
    let directories =
        [directory(&service, old).await, directory(&service, young).await, directory(&service, open).await];
    service.kill_9();
    service.serve().await;
    eventually("the old logs to go", async || !directories[0].exists()).await;
    eventually("the log line about it", async || service.log().contains("were removed (retention.logs)")).await;
    assert!(directories[1].exists() && directories[2].exists());
    let gone = service.cli(&["logs", &old.to_string()]);
    let said = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(gone.status.code() == Some(3) && said.contains("retention.logs"), "{said}");
    service.go();
    service.until(open, JobStatus::Completed).await;
    assert_eq!(logs(&service, &[&open.to_string()]), b"open\n");
}
on_each_database!(old_logs_are_removed_and_those_of_open_runs_never);

#[tokio::test]
async fn a_flood_costs_its_limit_on_disk_and_no_memory() {
    let Some(service) = Service::start(On::Sqlite, FLOWS).await else { return };
    let job = service.insert("LITTLE", &["megabytes:400+complain:done+say:end+wait"]).await[0];
    service.until(job, JobStatus::Progress).await;
    let directory = directory(&service, job).await;
    let id = job.to_string();
    let tail = |stream: &str| logs(&service, &[&id, "--stream", stream, "--tail", "1"]);
    eventually("the end of the flood", async || tail("stderr") == b"done\n" && tail("stdout") == b"end\n").await;
    let on_disk: u64 = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(on_disk <= (1 << 20) + (1 << 17), "{on_disk} bytes are kept");
    let command = service.begun(job, 1).await.pid;
    let parent = fs::read_to_string(format!("/proc/{command}/stat")).unwrap();
    let shim = parent.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().to_owned();
    let status = fs::read_to_string(format!("/proc/{shim}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    let anonymous =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().trim().trim_end_matches(" kB");
    // Most of the peak is the file of the debug binary; what it has of its own is what a flood could have grown.
    assert!(anonymous.parse::<u64>().unwrap() < 4 * 1024, "{anonymous} kB of its own, {peak} kB at most");
    let shown = service.cli(&["logs", &id, "--stream", "stdout", "--tail", "1"]);
    assert_eq!(shown.stdout, b"end\n");
    let from_the_start = service.cli(&["logs", &id, "--stream", "stdout"]);
    let note = String::from_utf8_lossy(&from_the_start.stderr).into_owned();
    let dropped: u64 = note.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(note.contains("bytes of stdout were dropped here (limits.output)"), "{note}");
    assert_eq!(dropped + from_the_start.stdout.len() as u64, 400 * 1024 * 1024 + 5);
    service.go();
    service.until(job, JobStatus::Completed).await;
}

#[tokio::test]
async fn nothing_that_a_command_prints_reaches_a_terminal_as_it_is() {
    let Some(service) = Service::start(On::Sqlite, FLOWS).await else { return };
    let job = service.insert("ONE", &["junk"]).await[0];
    service.until(job, JobStatus::Completed).await;
    let junk = b"\x1b[2J\x1b]0;title\x07red \xff\xc3\x28 \xe2\x80\xae end\x08\n";
    assert_eq!(logs(&service, &[&job.to_string()]), junk, "byte for byte to a pipe");
    let on_a_terminal = |raw: &str| {
        let binary = service.command();
        let command = format!(
            "{} --config {} logs {job} {raw}",
            binary.get_program().display(),
            service.path("callsheet.toml").display()
        );
        let script = std::process::Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .env("DATABASE_URL", &service.url)
            .stdin(Stdio::null())
            .output();
        script.unwrap().stdout
    };
    let shown = String::from_utf8(on_a_terminal("")).expect("valid UTF-8 on a terminal");
    assert_eq!(shown.trim_end(), "red \u{fffd}\u{fffd}(  end");
    assert!(on_a_terminal("--raw").starts_with(b"\x1b[2J"));
}
