//! Releases follow one another under running commands: what an old one left behind is read, and its runs are taken over.
//!
//! `samples/run-dirs-VERSION/` holds run directories as that release wrote them, one of every shape; they are never
//! changed, only added to. What service and shim say to each other is held to the words of the first release, each side
//! played by the test in turn; and with `CALLSHEET_OLD_BINARY` naming a program of an earlier release, the hand-over itself
//! is tried in both directions: `CALLSHEET_OLD_BINARY=PATH cargo test --test it upgrade -- --ignored`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use callsheet::domain::JobStatus;
use callsheet::process::logs::{RunLog, Selection, Stream};
use rustix::fs::{FlockOperation, flock};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    recv, send, socket_with, sockopt,
};

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/samples");

/// The directories of samples, one for each release that had a format or a shape of its own.
fn releases() -> Vec<PathBuf> {
    let mut releases: Vec<PathBuf> =
        std::fs::read_dir(SAMPLES).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    releases.sort();
    assert!(!releases.is_empty());
    releases
}

/// What stands in the first record of a journal.
fn spec(sample: &Path) -> serde_json::Value {
    let journal = std::fs::read_to_string(sample.join("journal")).unwrap();
    let (_, json) = journal.lines().next().unwrap().split_once(' ').unwrap();
    serde_json::from_str::<serde_json::Value>(json).unwrap()["spec"].clone()
}

/// What must become of a job whose run directory is this sample: its status, its exit code, and how its error begins.
fn becomes(shape: &str) -> (JobStatus, Option<i64>, &'static str) {
    match shape {
        "completed" | "with-payload" | "dropped-output" => (JobStatus::Completed, Some(0), ""),
        "failed" => (JobStatus::Error, Some(3), "the command failed with exit code 3\nbroken"),
        "signalled" => (JobStatus::Error, None, "the command was killed by signal 9 (SIGKILL)"),
        "timed-out" => (JobStatus::Error, None, "timed out: the command had run for 1s"),
        "cancelled" => (JobStatus::Cancelled, None, "cancelled; the command ended with signal 15 (SIGTERM)"),
        "spawn-failed" => {
            (JobStatus::Error, None, "the command could not be started: the program \"/no/such/program\"")
        }
        // The samples are of another boot of another machine; what they say on the same one is tested beside the reader.
        "shim-killed" | "starting" | "never-started" => {
            (JobStatus::Error, None, "the run was lost: the machine was restarted while it ran")
        }
        _ => panic!("a new shape, {shape}: say here what becomes of it"),
    }
}

async fn what_an_old_release_left_behind_is_settled(on: On) {
    for release in releases() {
        let Some(mut service) = Service::prepare(on, "[flows.OLD]\n{job}\nconcurrency = 100\n").await else { return };
        service.configure("worker_id = \"node-a\"\n");
        let mut shapes = Vec::new();
        for entry in std::fs::read_dir(&release).unwrap() {
            let sample = entry.unwrap().path();
            let shape = sample.file_name().unwrap().to_str().unwrap().to_owned();
            let job = service.insert("OLD", &["say:no"]).await[0];
            let token = format!("{:08x}{}", job.0, &spec(&sample)["token"].as_str().unwrap()[8..]);
            // The same journal under the token of this job; its first record is the only one that names it.
            let run = service.path(&format!("data/runs/{job}-1-{}", &token[..8]));
            // Of a boot that this machine has never had, wherever and whenever the sample was made.
            adopt(&sample, &run, &token, "00000000-0000-4000-8000-000000000000");
            service
                .sql(&format!(
                    "UPDATE jobs SET status = 'INQUEUE', attempt = 1, maximum_attempts = 1, worker_id = 'node-a', \
                     run_token = '{token}', queued_time = created_time WHERE id = {job}"
                ))
                .await;
            shapes.push((job, shape, run));
        }
        service.serve().await;
        for (job, shape, run) in shapes {
            let (status, exit_code, error) = becomes(&shape);
            let row = service.until(job, status).await;
            assert_eq!(row.exit_code, exit_code, "{shape}");
            let said = row.error.unwrap_or_default();
            assert!(said.starts_with(error) && said.is_empty() == error.is_empty(), "{shape}: {said}");
            if shape == "dropped-output" {
                let log = RunLog::open(&run, Selection::Only(Stream::Stdout), true);
                assert_eq!(log.total_length().unwrap(), 28_897);
                assert_eq!(log.tail(1).unwrap().to_bytes(), b"end\n");
                // What was dropped is missing, and the rest is where it was.
                let pieces = log.read(0, 1 << 20).unwrap().pieces;
                assert_eq!(pieces.iter().map(|piece| piece.dropped).sum::<u64>(), 24_576);
                assert_eq!(pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>(), 4_321);
            }
        }
        assert_eq!(service.evidence().len(), 0, "nothing was started again");
    }
}
on_each_database!(what_an_old_release_left_behind_is_settled);

/// Copies a run directory as it is, but for the token in the journal's first record and the boot that it is of.
fn adopt(sample: &Path, run: &Path, token: &str, boot_id: &str) {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(run).unwrap();
    for entry in std::fs::read_dir(sample).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, run.join(path.file_name().unwrap())).unwrap();
    }
    let journal = std::fs::read_to_string(run.join("journal")).unwrap();
    let spec = spec(sample);
    let moved = journal.lines().map(|line| {
        let json = line[9..]
            .replace(spec["token"].as_str().unwrap(), token)
            .replace(spec["boot_id"].as_str().unwrap(), boot_id);
        format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
    });
    std::fs::write(run.join("journal"), moved.collect::<String>()).unwrap();
}

/// A packet of at most 64 KiB, waited for.
fn packet(link: &OwnedFd) -> Vec<u8> {
    let mut packet = vec![0; 64 * 1024];
    let (length, _) = recv(link, &mut packet[..], RecvFlags::empty()).unwrap();
    packet.truncate(length);
    packet
}

fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    // A test that waits in vain has to fail.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(60))).unwrap();
    socket
}

/// The test is a shim of 0.1.0, the service of which is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_of_the_first_release_is_understood_and_obeys() {
    let mut service = Service::prepare(On::Sqlite, "[flows.LONG]\n{job}\n").await.unwrap();
    service.configure("worker_id = \"node-a\"\n");
    let job = service.insert("LONG", &["say:no"]).await[0];
    let sample = Path::new(SAMPLES).join("run-dirs-0.1.0/shim-killed");
    let token = spec(&sample)["token"].as_str().unwrap().to_owned();
    let run = service.path(&format!("data/runs/{job}-1-{}", &token[..8]));
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    adopt(&sample, &run, &token, boot_id.trim());
    let journal = std::fs::File::open(run.join("journal")).unwrap();
    flock(&journal, FlockOperation::LockExclusive).unwrap();
    let control = socket();
    bind(&control, &SocketAddrUnix::new(run.join("ctl")).unwrap()).unwrap();
    listen(&control, 8).unwrap();
    service
        .sql(&format!(
            "UPDATE jobs SET status = 'INQUEUE', attempt = 1, maximum_attempts = 1, worker_id = 'node-a', \
             run_token = '{token}', queued_time = created_time WHERE id = {job}"
        ))
        .await;
    service.serve().await;
    let link = accept_with(&control, SocketFlags::CLOEXEC).unwrap();
    let say = |packet: &str| assert_eq!(send(&link, packet.as_bytes(), SendFlags::NOSIGNAL), Ok(packet.len()));
    say(r#"{"started":{"pid":28218,"time_ms":1795616748173}}"#);
    say(r#"{"progress":{"progress":41,"status_message":"frame 12"}}"#);
    eventually("the progress to be written", async || service.job(job).await.progress == Some(41)).await;
    service.cli(&["cancel", &job.to_string()]);
    assert_eq!(packet(&link), br#""stop""#);
    say(
        r#"{"ended":{"pid":28218,"end":{"signaled":15},"cause":"requested","started_ms":1795616748173,"completed_ms":1795616749173,"execution_us":1000000,"user_cpu_us":5000,"system_cpu_us":6000,"max_rss_bytes":1048576,"stderr_tail":"oops\n"}}"#,
    );
    let row = service.until(job, JobStatus::Cancelled).await;
    assert_eq!((row.execution_ms, row.status_message.as_deref()), (Some(1000), Some("frame 12")));
    assert_eq!(service.runs(job).await[0].pid, Some(28218));
    service.stop().await;
}

/// The test is a service of 0.1.0 that comes after this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_the_first_release_understands_a_shim_of_this_one() {
    let mut service = Service::start(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    let job = service.insert("ONE", &["wait+complain:oops+exit:7"]).await[0];
    let pid = service.begun(job, 1).await.pid;
    let token = service.until(job, JobStatus::Progress).await.run_token.unwrap();
    let run = service.path(&format!("data/runs/{job}-1-{}", &token[..8]));
    service.kill_9();
    let link = socket();
    let control = SocketAddrUnix::new(run.join("ctl")).unwrap();
    eventually("the shim to wait for a service", async || connect(&link, &control).is_ok()).await;
    let started: serde_json::Value = serde_json::from_slice(&packet(&link)).unwrap();
    assert_eq!(started["started"]["pid"], pid);
    assert!(started["started"]["time_ms"].is_i64(), "{started}");
    service.go();
    let ended: serde_json::Value = serde_json::from_slice(&packet(&link)).unwrap();
    let ended = &ended["ended"];
    assert_eq!((&ended["pid"], &ended["end"]), (&pid.into(), &serde_json::json!({ "exited": 7 })), "{ended}");
    assert_eq!((&ended["cause"], &ended["stderr_tail"]), (&"itself".into(), &"oops\n".into()), "{ended}");
    let numbers = ["started_ms", "completed_ms", "execution_us", "user_cpu_us", "system_cpu_us", "max_rss_bytes"];
    assert!(numbers.iter().all(|name| ended[name].is_u64()), "{ended}");
    // And every record of its journal is of a kind that the first release knows.
    let journal = std::fs::read_to_string(run.join("journal")).unwrap();
    for line in journal.lines() {
        let record: serde_json::Value = serde_json::from_str(&line[9..]).unwrap();
        let kind = record.as_object().unwrap().keys().next().unwrap();
        assert!(["spec", "starting", "started", "verdict"].contains(&kind.as_str()), "{journal}");
    }
    assert_eq!(spec(&run)["version"], 1);
}

fn old_binary() -> PathBuf {
    std::env::var_os("CALLSHEET_OLD_BINARY").expect("CALLSHEET_OLD_BINARY names a program of an earlier release").into()
}

async fn a_command_of_the_old_release_is_taken_over_by_this_one(on: On) {
    let old = old_binary();
    let new = PathBuf::from(env!("CARGO_BIN_EXE_callsheet"));
    let Some(mut service) = Service::prepare_by(on, "[flows.TWO]\n{job}\nconcurrency = 2\n", &old).await else {
        return;
    };
    service.serve().await;
    for identifier in ["wait+exit:7", "wait"] {
        service.sql(&format!("INSERT INTO jobs (type, identifier) VALUES ('TWO', '{identifier}')")).await;
    }
    let jobs = [callsheet::domain::JobId(1), callsheet::domain::JobId(2)];
    let pids = [service.begun(jobs[0], 1).await.pid, service.begun(jobs[1], 1).await.pid];
    service.kill_9();
    service.program = new;
    service.serve().await;
    service.go();
    assert_eq!(service.until(jobs[0], JobStatus::Error).await.exit_code, Some(7));
    service.until(jobs[1], JobStatus::Completed).await;
    for (job, pid) in jobs.into_iter().zip(pids) {
        assert_eq!(service.evidence()[&(job.0, 1)].pid, pid);
        assert_eq!(service.runs(job).await[0].pid, Some(i64::from(pid)));
    }
    service.nothing_alive().await;
}
on_each_database!(
    #[ignore = "needs CALLSHEET_OLD_BINARY"]
    a_command_of_the_old_release_is_taken_over_by_this_one
);

/// An old release takes the commands of this one over, or says that it can't and touches nothing.
async fn a_command_of_this_release_is_taken_over_by_the_old_one_or_left_alone(on: On) {
    let old = old_binary();
    let Some(mut service) = Service::start(on, "[flows.ONE]\n{job}\n").await else { return };
    let job = service.insert("ONE", &["wait+exit:7"]).await[0];
    let pid = service.begun(job, 1).await.pid;
    service.until(job, JobStatus::Progress).await;
    service.kill_9();
    let new = std::mem::replace(&mut service.program, old);
    let status = service.cli(&["migrate", "status"]);
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    if status.status.success() {
        service.serve().await;
        service.go();
        assert_eq!(service.until(job, JobStatus::Error).await.exit_code, Some(7));
    } else {
        assert!(said.contains("newer"), "{said}");
        let refused = service.cli(&["serve"]);
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("newer"), "{refused:?}");
        assert!(service.alive().iter().any(|(alive, _)| *alive == pid), "the command runs on");
        service.program = new;
        service.serve().await;
        service.go();
        assert_eq!(service.until(job, JobStatus::Error).await.exit_code, Some(7));
    }
    assert_eq!(service.evidence()[&(job.0, 1)].pid, pid);
}
on_each_database!(
    #[ignore = "needs CALLSHEET_OLD_BINARY"]
    a_command_of_this_release_is_taken_over_by_the_old_one_or_left_alone
);
