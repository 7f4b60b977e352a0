//! What can happen to the files of a run: clear verdicts, never a wrong exit code, and nothing outside is touched.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use callsheet::domain::{Attempt, JobId, JobStatus};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::eventually;
use crate::support::processes::{Process, gone, parent_of, processes, say_skipped};
use crate::support::scrape::get;
use crate::support::service::{Evidence, On, Service};
use crate::support::small_disk::SmallDisk;

const FLOWS: &str = "kill_grace = \"300ms\"\n[flows.ONE]\n{job}\n[flows.FOUR]\n{job}\nconcurrency = 4\n\
    [flows.SHORT]\n{job}\nstart_to_close_timeout = \"1s\"\n";

async fn service() -> Service {
    Service::start(On::Sqlite, FLOWS).await.unwrap()
}

/// A run that waits for `name`, in PROGRESS.
async fn running(service: &Service, todo: &str) -> (JobId, Evidence, PathBuf) {
    let job = service.insert("FOUR", &[todo]).await[0];
    let begun = service.begun(job, 1).await;
    let row = service.until(job, JobStatus::Progress).await;
    let token = row.run_token.unwrap().parse().unwrap();
    (job, begun, callsheet::process::run_dir(&service.path("data"), job, Attempt(1), &token))
}

async fn lost(service: &Service, job: JobId, because: &str) {
    let row = service.until(job, JobStatus::Error).await;
    let error = row.error.unwrap();
    assert!(error.starts_with("the run was lost: ") && error.contains(because), "{error}");
    assert_eq!(row.exit_code, None);
    assert!(!service.log().contains("panicked"), "{}", service.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_output_but_no_exit_code_and_starts_nothing_new() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    let Some(small) = SmallDisk::mount("a_full_disk", service.path("data/runs"), "1m") else { return };
    service.serve().await;
    let (job, ..) = running(&service, "wait:full+flood:100000+complain:last-words+exit:7").await;
    small.fill();
    service.go_on("full");
    let row = service.until(job, JobStatus::Error).await;
    assert_eq!((row.exit_code, row.error.unwrap().lines().last()), (Some(7), Some("last-words")));
    let next = service.insert("ONE", &["say:later"]).await[0];
    eventually("readyz to say why nothing starts", async || {
        let (status, body) = get(&service.address(), "/readyz");
        status == 503 && body.contains("can't be launched")
    })
    .await;
    assert!(!service.evidence().contains_key(&(next.0, 1)));
    small.clear();
    service.until(next, JobStatus::Completed).await;
    service.nothing_alive().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_waits_for_room_on_the_disk_when_there_is_no_service() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    let Some(small) = SmallDisk::mount("a_verdict_waits", service.path("data/runs"), "1m") else { return };
    service.serve().await;
    let (job, ..) = running(&service, "wait:full+exit:7").await;
    service.kill_9();
    small.fill();
    service.go_on("full");
    service.command_ended(job, 1).await;
    service.serve().await;
    assert_eq!(service.until(job, JobStatus::Error).await.exit_code, Some(7), "its shim told the new service");
    small.clear();
    service.nothing_alive().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_disk_costs_no_exit_code_and_starts_nothing_new() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    // The database is elsewhere; only where new files would be made nothing can be written.
    let Some(small) = SmallDisk::mount("a_read_only_disk", service.path("data/runs"), "1m") else { return };
    small.remount("ro");
    service.serve().await;
    let job = service.insert("ONE", &["say:later+exit:7"]).await[0];
    eventually("readyz to say why nothing starts", async || {
        let (status, body) = get(&service.address(), "/readyz");
        status == 503 && body.contains("can't be launched")
    })
    .await;
    small.remount("rw");
    assert_eq!(service.until(job, JobStatus::Error).await.exit_code, Some(7));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_directory_is_deleted_is_told_by_its_shim_or_lost() {
    let mut service = service().await;
    let (watched, _, directory) = running(&service, "wait:a+say:hello+exit:7").await;
    fs::remove_dir_all(directory).unwrap();
    service.go_on("a");
    assert_eq!(service.until(watched, JobStatus::Error).await.exit_code, Some(7));

    let (unwatched, begun, directory) = running(&service, "wait:b+exit:7").await;
    let (unwritten, other, elsewhere) = running(&service, "wait:c+exit:7").await;
    service.kill_9();
    // What they still make in there has been made.
    let (one, two) = (directory.join("ctl"), elsewhere.join("ctl"));
    eventually("their shims to wait for a service", async || one.exists() && two.exists()).await;
    fs::remove_dir_all(directory).unwrap();
    fs::remove_dir_all(elsewhere).unwrap();
    // As if the service had died before PROGRESS was committed: only what is alive tells that it was started.
    service.sql(&format!("UPDATE jobs SET status = 'INQUEUE', started_time = NULL WHERE id = {unwritten}")).await;
    service.serve().await;
    lost(&service, unwatched, "removed while its command was alive").await;
    lost(&service, unwritten, "removed while its command was alive").await;
    service.nothing_alive().await;
    assert!(
        service.evidence()[&(unwatched.0, 1)].pid == begun.pid
            && service.evidence()[&(unwritten.0, 1)].pid == other.pid
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_is_no_verdict() {
    let mut service = service().await;
    for (name, damage) in [("cut", &b""[..]), ("garbage", &[0xa5_u8; 3000][..]), ("zeros", &[0_u8; 100][..])] {
        // While its shim lives the lock is what counts, and the shim knows how it ends.
        let (alive, alive_begun, directory) = running(&service, &format!("wait:{name}+exit:7")).await;
        let (ended, ended_begun, other) = running(&service, &format!("wait:{name}+exit:7")).await;
        service.kill_9();
        fs::write(directory.join("journal"), damage).unwrap();
        service.serve().await;
        eventually("the run to be taken over", async || {
            let log = service.log();
            log.lines().any(|line| line.contains("reattached") && line.contains(&format!("job={alive} ")))
        })
        .await;
        service.kill_9();
        let shims = [alive_begun.pid, ended_begun.pid].map(parent_of);
        service.go_on(name);
        // Their verdicts are written then.
        for shim in shims {
            gone(shim).await;
        }
        fs::write(other.join("journal"), damage).unwrap();
        service.serve().await;
        // The verdict of the first came after the damage, so it can't be told whose it is; there is none of the second.
        for job in [alive, ended] {
            let row = service.until(job, JobStatus::Error).await;
            assert!(row.exit_code.is_none_or(|code| code == 7) && !row.error.unwrap().is_empty());
        }
        assert_eq!(service.job(ended).await.exit_code, None);
    }
    assert!(!service.log().contains("panicked"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_somebody_else_is_not_believed() {
    if !rustix::process::geteuid().is_root() {
        return say_skipped("a_directory_of_somebody_else", "only root can give a directory away");
    }
    let mut service = service().await;
    let (job, _, directory) = running(&service, "wait:never+exit:7").await;
    service.kill_9();
    std::os::unix::fs::chown(directory, Some(65534), Some(65534)).unwrap();
    service.serve().await;
    lost(&service, job, "belongs to another user").await;
    service.nothing_alive().await;
    service.stop().await;
}

/// Everything below a directory, with what it holds.
fn listing(directory: &std::path::Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(&path).unwrap_or_default()))
        .collect();
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_in_place_of_a_runs_files_lead_nowhere() {
    let mut service = service().await;
    let outside = service.path("outside");
    fs::create_dir(&outside).unwrap();
    for name in ["journal", "stdout.0", "stderr.0", "notify", "ctl"] {
        fs::write(outside.join(name), "not ours").unwrap();
    }
    let before = listing(&outside);
    // In place of the whole directory, under a live shim that will write output and a verdict, and unlink its sockets.
    let (watched, _, directory) = running(&service, "wait:a+say:hello+complain:oh+exit:7").await;
    fs::rename(&directory, directory.with_extension("moved")).unwrap();
    symlink(&outside, &directory).unwrap();
    service.go_on("a");
    assert_eq!(service.until(watched, JobStatus::Error).await.exit_code, Some(7));
    eventually("its shim to tidy up", async || !directory.with_extension("moved").join("notify").exists()).await;
    assert!(directory.with_extension("moved").join("stdout.0").exists());

    // The same while there is no service: what is found there is not believed.
    let (unwatched, _, directory) = running(&service, "wait:b+exit:7").await;
    let (journal, _, with_journal) = running(&service, "wait:b+exit:7").await;
    let (socket, _, with_socket) = running(&service, "wait:c+exit:7").await;
    service.kill_9();
    fs::rename(&directory, directory.with_extension("moved")).unwrap();
    symlink(&outside, &directory).unwrap();
    fs::rename(with_journal.join("journal"), with_journal.join("moved")).unwrap();
    symlink(outside.join("journal"), with_journal.join("journal")).unwrap();
    eventually("its shim to wait for a service", async || with_socket.join("ctl").exists()).await;
    fs::remove_file(with_socket.join("ctl")).unwrap();
    let stranger = outside.join("../stranger");
    let listener = std::os::unix::net::UnixListener::bind(&stranger).unwrap();
    listener.set_nonblocking(true).unwrap();
    symlink(&stranger, with_socket.join("ctl")).unwrap();
    service.serve().await;
    lost(&service, unwatched, "symbolic link").await;
    lost(&service, journal, "symbolic link").await;
    // Its shim lives and can't be reached; how it ends stands in its journal.
    service.go_on("c");
    assert_eq!(service.until(socket, JobStatus::Error).await.exit_code, Some(7));
    assert!(listener.accept().is_err(), "a stranger was spoken to");
    service.nothing_alive().await;
    assert_eq!(listing(&outside), before);
    service.stop().await;
}

/// The guard of a shim that hangs hears it in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_is_heard_while_the_disk_hangs() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    let hanging = service.path("hanging");
    fs::write(&hanging, "").unwrap();
    service
        .serve_with(&[("CALLSHEET_HANG_AT", "before-log-write"), ("CALLSHEET_HANG_WHILE", hanging.to_str().unwrap())])
        .await;
    let job = service.insert("FOUR", &["daemon+say:hello+ignore-term+run:600"]).await[0];
    let pid = service.begun(job, 1).await.pid;
    service.until(job, JobStatus::Progress).await;
    service.cli(&["cancel", &job.to_string()]);
    eventually("the command to be ended", async || !crate::support::processes::is_alive(pid)).await;
    service.nothing_alive().await;
    fs::remove_file(&hanging).unwrap();
    service.until(job, JobStatus::Cancelled).await;
    assert_eq!(service.runs(job).await[0].outcome.as_deref(), Some("CANCELLED"));
    service.stop().await;
}

/// The shim hangs in a write, as on a disk that hangs, and goes on when that is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_limit_holds_while_the_disk_hangs() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    let hanging = service.path("hanging");
    fs::write(&hanging, "").unwrap();
    service
        .serve_with(&[("CALLSHEET_HANG_AT", "before-log-write"), ("CALLSHEET_HANG_WHILE", hanging.to_str().unwrap())])
        .await;
    let job = service.insert("SHORT", &["daemon+say:hello+ignore-term+run:600"]).await[0];
    let pid = service.begun(job, 1).await.pid;
    eventually("the command to be ended", async || !crate::support::processes::is_alive(pid)).await;
    service.nothing_alive().await;
    fs::remove_file(&hanging).unwrap();
    let row = service.until(job, JobStatus::Error).await;
    assert!(row.error.as_ref().unwrap().starts_with("timed out: "), "{row:?}");
    assert_eq!(service.runs(job).await[0].outcome.as_deref(), Some("TIMED_OUT"));
    service.stop().await;
}

/// A launch that is got ready while its claim is being committed: its directory is there, and it goes on much later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launch_that_hangs_holds_up_no_other_run_and_goes_on_afterwards() {
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    let hanging = service.path("hanging");
    fs::write(&hanging, "").unwrap();
    service
        .serve_with(&[
            ("CALLSHEET_HANG_AT", "before-spec-record:2"),
            ("CALLSHEET_HANG_WHILE", hanging.to_str().unwrap()),
        ])
        .await;
    let first = service.insert("FOUR", &["wait"]).await[0];
    service.begun(first, 1).await;
    let second = service.insert("ONE", &["say:once"]).await[0];
    service.until(second, JobStatus::InQueue).await;
    service.go();
    service.until(first, JobStatus::Completed).await;
    // Longer than anybody who waits for it would, were it given up.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(service.job(second).await.status, JobStatus::InQueue);
    fs::remove_file(&hanging).unwrap();
    service.until(second, JobStatus::Completed).await;
    assert_eq!(service.changes(second).await, ["INQUEUE", "PROGRESS", "COMPLETED"]);
    service.stop().await;
    assert_eq!(service.evidence().len(), 2);
    service.nothing_alive().await;
}

/// No descriptors: whatever it is that can't be made then, no job pays for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_has_nothing_left_costs_no_job_an_attempt() {
    let mut service = service().await;
    let first = service.insert("ONE", &["say:first"]).await[0];
    service.until(first, JobStatus::Completed).await;
    let is_helper = |process: &Process| process.parent == service.pid();
    let (helper, _) = processes().into_iter().find(|(_, process)| is_helper(process)).unwrap();
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = |current: Option<u64>| {
        prlimit(Pid::from_raw(helper), Resource::Nofile, Rlimit { current, maximum: most }).unwrap();
    };
    for few in 5..14 {
        limit(Some(few));
        let job = service.insert("ONE", &["say:through"]).await[0];
        eventually("a try to have failed, or the command to have run", async || {
            get(&service.address(), "/readyz").1.contains("can't be launched")
                || service.job(job).await.status == JobStatus::Completed
        })
        .await;
        limit(most);
        let row = service.until(job, JobStatus::Completed).await;
        assert_eq!((row.attempt, service.runs(job).await.len()), (Attempt(1), 1), "with {few} descriptors");
    }
    eventually("readyz to be well again", async || get(&service.address(), "/readyz").0 == 200).await;
    service.stop().await;
}

/// Nothing can be bound there, as where there is no room for a file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_can_not_listen_for_a_service_is_complained_of_until_it_can() {
    let mut service = service().await;
    let (job, begun, directory) = running(&service, "run:600").await;
    fs::create_dir_all(directory.join("ctl/something")).unwrap();
    service.kill_9();
    service.serve().await;
    let complains = || get(&service.address(), "/readyz").1.contains("does not answer");
    eventually("readyz to say so", async || complains()).await;
    service.cli(&["cancel", &job.to_string()]);
    assert!(crate::support::processes::is_alive(begun.pid));
    fs::remove_dir_all(directory.join("ctl")).unwrap();
    service.until(job, JobStatus::Cancelled).await;
    assert!(!complains(), "{}", get(&service.address(), "/readyz").1);
    service.nothing_alive().await;
    service.stop().await;
}
