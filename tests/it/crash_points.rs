//! The service, its helper and its shims die at every crash point there is; nothing is lost, doubled or mislabelled.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use callsheet::crash::Step;
use callsheet::domain::JobId;
use sha2::{Digest, Sha256};

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{Evidence, On, Service};
use crate::support::truth::{all_final, untruths};

const TOKEN: &str = "a-token-of-the-tests-long-enough";
const SECRET: &str = "whsec_Y2FsbHNoZWV0J3MgdGVzdCBzZWNyZXQh";

/// As many attempts as there are points at which a shim can die, and some. The first lines go to `[defaults]`.
const FLOWS: &str = "kill_grace = \"200ms\"\nlimits = { output = \"64KiB\" }\n\
    retry = { maximum_attempts = 99, initial_interval = \"10ms\", backoff_coefficient = 1.0, non_retryable_exit_codes = [7] }\n\
    [flows.ONE]\n{job}\nkill_grace = \"1s\"\ncancel_command = [\"true\"]\nenv = { SLOTS = \"1\", BINARY = \"{binary}\" }\n\
    [flows.FOUR]\n{job}\nconcurrency = 4\nslots = { name = \"DEVICE\", values = [\"0\", \"1\", \"2\", \"3\"] }\nheartbeat_timeout = \"1s\"\nenv = { SLOTS = \"4\", BINARY = \"{binary}\" }\n\
    [flows.NOT_THERE]\ncommand = [\"/nowhere/at-all\"]\nretry = { maximum_attempts = 3 }\n\
    [[flows.NOT_THERE.recurring]]\nname = \"yearly\"\nidentifier = \"y\"\nschedule = \"0 0 1 1 *\"\n\
    [[webhooks]]\nname = \"nobody\"\nurl = \"http://127.0.0.1:1/\"\nsecret_env = \"CALLSHEET_TEST_HOOK\"\n";

/// Every point that there is, by name.
fn points() -> Vec<String> {
    Step::ALL.iter().flat_map(|step| ["before", "after"].map(|side| format!("{side}-{}", step.name()))).collect()
}

/// The points at which nobody has died yet.
fn left(service: &Service) -> Vec<String> {
    points().into_iter().filter(|point| !service.path("marks").join(point).exists()).collect()
}

/// Jobs that between them make everybody pass every point, together with what [`lead_through`] does to them.
async fn enqueue(service: &Service, round: usize) -> Vec<JobId> {
    let mut jobs = service.insert("ONE", &["say:hello+run:0.05", "complain:no+exit:7"]).await;
    let waits = format!("wait:{round}");
    // Long enough to be confirmed, until somebody has died of that.
    let steady = if left(service).iter().any(|point| point.contains("confirm")) { "1.5" } else { "0.3" };
    let steady = format!("progress:40+run:{steady}");
    let four = ["daemon+say:left-one-behind", "flood:300000", &steady, &waits, "note-term+run:600"];
    jobs.extend(service.insert("FOUR", &four).await);
    jobs.extend(service.insert("NOT_THERE", &["x"]).await);
    jobs.push(service.insert_row("type, identifier, payload", "'ONE', 'say:payload', '{}'").await);
    jobs
}

/// Signs in at the page, whether or not the service lives to answer.
fn sign_in(service: &Service) {
    let form = format!("token={TOKEN}&next=%2F");
    let request = format!(
        "POST /sign-in HTTP/1.1\r\nHost: {0}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {1}\r\nConnection: close\r\n\r\n{form}",
        service.address(),
        form.len()
    );
    if let Ok(mut stream) = TcpStream::connect(service.address()) {
        stream.write_all(request.as_bytes()).ok();
        stream.read_to_end(&mut Vec::new()).ok();
    }
}

/// What operators do between the rounds: each command may die at its commit, and is then said again.
async fn operate(service: &mut Service, failed: JobId, round: usize) {
    if service.is_dead() {
        service.try_serve().await;
    }
    sign_in(service);
    // The directory of a run of long ago, which `prune` removes.
    let old = service.path(&format!("data/runs/{}-1-0123abcd", 900_000 + round));
    fs::create_dir(&old).unwrap();
    fs::File::open(&old).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    service.insert_row("type, identifier, status, completed_time", "'ONE', 'old', 'COMPLETED', 1").await;
    let (after, failed) = (failed.to_string(), failed.to_string());
    for arguments in [
        ["pause", "FOUR"].as_slice(),
        &["resume", "FOUR"],
        &["enqueue", "ONE", "say:after", "--after", &after],
        &["retry", &failed],
        &["prune"],
        &["deliveries", "--again", "999999"],
        &["drain"],
    ] {
        let said = Instant::now();
        while run_cli(service, arguments).code().is_none() {
            assert!(said.elapsed() < Duration::from_secs(180), "{arguments:?} dies again and again");
        }
    }
}

/// Sees to it that these jobs end, whoever dies, and that the service has no easy time meanwhile.
async fn lead_through(service: &mut Service, jobs: &[JobId], round: usize) {
    let (waiting, cancelled) = (jobs[5], jobs[6]);
    let (mut orphaned, mut asked) = (false, false);
    let begun = Instant::now();
    while !all_final(service, jobs).await {
        assert!(begun.elapsed() < Duration::from_secs(300), "the jobs do not end: {jobs:?}\n{}", service.log());
        if service.is_dead() {
            service.spawn();
        } else if !orphaned && run_now(service, waiting).await.is_some() {
            // One run ends while there is no service: its shim waits for the next, and has to keep the verdict by itself.
            orphaned = true;
            service.kill_9();
            service.go_on(&round.to_string());
            tokio::time::sleep(Duration::from_millis(50)).await;
        } else if !asked && orphaned && run_now(service, cancelled).await.is_some() {
            // The command may die at its commit; asked again, the answer is the same.
            while !["0", "4"].contains(&cancel(service, cancelled).as_str()) {}
            asked = true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The command of the job's present attempt, once it has begun.
async fn run_now(service: &Service, job: JobId) -> Option<Evidence> {
    let attempt = service.job(job).await.attempt.0;
    service.evidence().remove(&(job.0, attempt))
}

fn cancel(service: &Service, job: JobId) -> String {
    let status = run_cli(service, &["cancel", &job.to_string()]);
    status.code().map_or_else(|| "killed".to_owned(), |code| code.to_string())
}

fn run_cli(service: &Service, arguments: &[&str]) -> std::process::ExitStatus {
    let mut command = service.command();
    command.envs(service.env.iter().map(|(name, value)| (name, value))).args(arguments);
    command.stdin(std::process::Stdio::null()).output().unwrap().status
}

async fn every_crash_point_is_survived(on: On) {
    let token: String = Sha256::digest(TOKEN).iter().map(|byte| format!("{byte:02x}")).collect();
    let token = format!("[[http.tokens]]\nname = \"ops\"\nrole = \"operator\"\ntoken_sha256 = \"{token}\"\n");
    let flows = FLOWS.replace("{binary}", env!("CARGO_BIN_EXE_callsheet")) + &token;
    let Some(mut service) = Service::prepare(on, &flows).await else { return };
    fs::create_dir(service.path("marks")).unwrap();
    let marks = service.path("marks").display().to_string();
    service.env =
        vec![("CALLSHEET_CRASH_AT".to_owned(), points().join(",")), ("CALLSHEET_CRASH_MARKS".to_owned(), marks)];
    let secret = ("CALLSHEET_TEST_HOOK".to_owned(), SECRET.to_owned());
    service.env.push(secret.clone());
    // Its id is made once in a worker's life, so for these points it is made anew each time.
    while left(&service).iter().any(|point| point.contains("worker-id")) {
        fs::remove_file(service.path("data/worker_id")).ok();
        if service.try_serve().await {
            service.kill_9();
        }
    }
    let (mut round, mut acknowledged) = (0, 0);
    while !left(&service).is_empty() {
        assert!(round < 24, "nobody came to {:?}\n{}", left(&service), service.log());
        // Committed once in a database's life, too, and by a service that may die of something else just then.
        if left(&service).iter().any(|point| point.contains("recurring")) {
            service.sql("DELETE FROM recurring").await;
        }
        if service.is_dead() {
            service.try_serve().await;
        }
        // Acknowledged only with exit code 0; then it is there, whoever died.
        acknowledged += usize::from(run_cli(&service, &["enqueue", "ONE", "say:enqueued"]).success());
        let jobs = enqueue(&service, round).await;
        assert!(all_enqueued(&service).await >= acknowledged, "an acknowledged job is not there");
        lead_through(&mut service, &jobs, round).await;
        operate(&mut service, jobs[1], round).await;
        if !service.is_dead() {
            service.signal(rustix::process::Signal::TERM);
            eventually("the service to end", async || service.is_dead()).await;
        }
        round += 1;
    }
    service.env = vec![secret];
    if service.is_dead() {
        service.serve().await;
    }
    eventually("every job to end", async || {
        let jobs = crate::support::truth::all_jobs(&service).await;
        jobs.iter().all(|job| job.status.is_final())
    })
    .await;
    service.nothing_alive().await;
    assert!(run_cli(&service, &["prune"]).success());
    assert!(crate::support::truth::all_jobs(&service).await.iter().all(|job| job.identifier != "old"));
    let (tally, wrong) = untruths(&service, |_| true).await;
    assert!(wrong.is_empty(), "{tally:?}:\n{}\n{}", wrong.join("\n"), service.log());
    // Each run that was lost had its shim die once at a point.
    let shim_points = points().len() - points().iter().position(|point| point == "before-shim-session").unwrap();
    assert!(tally.lost <= shim_points, "{tally:?}");
    eprintln!("died at {} points in {round} rounds: {tally:?}", points().len());
}
on_each_database!(every_crash_point_is_survived, mariadb);

async fn all_enqueued(service: &Service) -> usize {
    let jobs = crate::support::truth::all_jobs(service).await;
    jobs.iter().filter(|job| job.identifier == "say:enqueued").count()
}
