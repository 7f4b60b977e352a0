//! The service dies under running commands; the next one settles every open row by evidence.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use callsheet::domain::{JobStatus, RunToken};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::on_each_database;
use crate::support::scrape::{Scrape, get};
use crate::support::service::{A_MOMENT, On, Service};
use crate::support::{eventually, processes};

const FLOWS: &str = "[flows.ONE]\n{job}\n[flows.FOUR]\n{job}\nconcurrency = 4\n\
    [flows.SHORT]\n{job}\nstart_to_close_timeout = \"1s\"\n";

async fn running_commands_do_not_notice_that_the_service_was_killed(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let first = service.insert("ONE", &["wait+exit:7"]).await[0];
    let second = service.insert("ONE", &["wait"]).await[0];
    let four = service.insert("FOUR", &["wait", "wait+exit:3", "wait", "wait"]).await;
    let mut pids = vec![service.begun(first, 1).await.pid];
    for job in &four {
        pids.push(service.begun(*job, 1).await.pid);
        service.until(*job, JobStatus::Progress).await;
    }
    service.until(first, JobStatus::Progress).await;
    for round in 1..=3 {
        service.kill_9();
        let alive: Vec<i32> = service.alive().into_iter().map(|(pid, _)| pid).collect();
        assert!(pids.iter().all(|pid| alive.contains(pid)), "{pids:?} of {alive:?}");
        service.serve().await;
        eventually("the runs to be taken over", async || service.log().matches("reattached").count() == 5 * round)
            .await;
    }
    assert_eq!(service.evidence().len(), 5, "the second of the sequential flow waits");
    service.go();
    assert_eq!(service.until(first, JobStatus::Error).await.exit_code, Some(7));
    assert_eq!(service.until(four[1], JobStatus::Error).await.exit_code, Some(3));
    for job in [four[0], four[2], four[3], second] {
        assert_eq!(service.until(job, JobStatus::Completed).await.exit_code, Some(0));
        assert_eq!(service.changes(job).await, ["INQUEUE", "PROGRESS", "COMPLETED"]);
    }
    let evidence = service.evidence();
    assert_eq!(evidence.len(), 6, "each was started once");
    assert!(evidence[&(second.0, 1)].start >= evidence[&(first.0, 1)].end.unwrap());
    service.nothing_alive().await;
}
on_each_database!(running_commands_do_not_notice_that_the_service_was_killed, mariadb);

async fn what_ended_while_the_service_was_away_keeps_its_exit_code(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("ONE", &["wait+complain:alone+exit:5"]).await[0];
    let begun = service.begun(job, 1).await;
    service.until(job, JobStatus::Progress).await;
    service.kill_9();
    let shim = processes::parent_of(begun.pid);
    service.go();
    // Its verdict is written then.
    processes::gone(shim).await;
    let gone = callsheet::clock::now().unix_millis() as f64 / 1_000.0;
    tokio::time::sleep(A_MOMENT).await;
    service.serve().await;
    let row = service.until(job, JobStatus::Error).await;
    assert_eq!(row.error.as_deref(), Some("the command failed with exit code 5\nalone"));
    assert_eq!(row.exit_code, Some(5));
    assert!(service.log().contains("finished_while_away"));
    // The time of its end is the command's, not that of its discovery.
    let ended = service.evidence()[&(job.0, 1)].end.unwrap();
    let recorded = row.completed_time.unwrap().unix_millis() as f64 / 1_000.0;
    // The command's own record ends before it does; milliseconds are cut off.
    assert!(recorded > ended - 0.002 && recorded < gone + 0.002, "{recorded} is not from {ended} to {gone}");
    assert_eq!(service.runs(job).await[0].pid, Some(i64::from(begun.pid)));
}
on_each_database!(what_ended_while_the_service_was_away_keeps_its_exit_code, mariadb);

async fn a_death_around_the_word_to_start_costs_no_run_and_makes_no_second_one(on: On) {
    // Each is held while its claim is committed, and told to start after that.
    for (point, starts) in [
        ("before-claim-commit", 0),
        ("after-claim-commit", 0),
        ("before-start-send", 0),
        ("after-start-send", 1),
        ("before-start-receive", 0),
        ("after-start-receive", 0),
    ] {
        let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
        let marks = service.path("marks");
        std::fs::create_dir(&marks).unwrap();
        let marks = marks.display().to_string();
        service.env =
            vec![("CALLSHEET_CRASH_AT".to_owned(), point.to_owned()), ("CALLSHEET_CRASH_MARKS".to_owned(), marks)];
        service.serve().await;
        let mark = service.path("marks").join(point);
        // Where a commit is over before there is time to get anything ready, as on a busy machine, that job has no such word.
        let mut jobs = Vec::new();
        while !mark.exists() {
            assert!(jobs.len() < 100, "nobody came to {point}");
            let job = service.insert("ONE", &["run:0.3"]).await[0];
            jobs.push(job);
            eventually("somebody to die, or the job to end", async || {
                mark.exists() || service.job(job).await.status == JobStatus::Completed
            })
            .await;
        }
        let job = *jobs.last().unwrap();
        if !point.ends_with("receive") {
            eventually("the service to die", async || service.is_dead()).await;
            if starts == 1 {
                service.begun(job, 1).await;
            }
            assert_eq!(service.evidence().len(), jobs.len() - 1 + starts, "{point}");
            service.serve().await;
        }
        let row = service.until(job, JobStatus::Completed).await;
        // What was never started is no attempt.
        assert_eq!((row.attempt.0, service.evidence().len()), (1, jobs.len()), "{point}");
        service.nothing_alive().await;
    }
}
on_each_database!(a_death_around_the_word_to_start_costs_no_run_and_makes_no_second_one, mariadb);

async fn a_row_that_is_claimed_again_under_its_running_command_waits_for_its_end(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("ONE", &["run:600"]).await[0];
    service.begun(job, 1).await;
    service.until(job, JobStatus::Progress).await;
    // By somebody who wants it done again, or a copy of the database that was behind.
    service.sql("UPDATE jobs SET status = 'PENDING', run_token = NULL, worker_id = NULL").await;
    let again = service.begun(job, 2).await;
    let evidence = service.evidence();
    let (first, pid) = (&evidence[&(job.0, 1)], again.pid);
    assert!(!processes::is_alive(first.pid), "two commands of one job: {} and {pid}", first.pid);
    service.cli(&["cancel", &job.to_string()]);
    service.until(job, JobStatus::Cancelled).await;
    service.nothing_alive().await;
}
on_each_database!(a_row_that_is_claimed_again_under_its_running_command_waits_for_its_end);

async fn the_timeout_holds_while_the_service_is_down(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("SHORT", &["run:600"]).await[0];
    service.begun(job, 1).await;
    service.kill_9();
    service.nothing_alive().await;
    service.serve().await;
    let row = service.until(job, JobStatus::Error).await;
    assert!(row.error.unwrap().starts_with("timed out: "));
}
on_each_database!(the_timeout_holds_while_the_service_is_down);

async fn a_run_whose_shim_was_killed_is_lost_and_nothing_of_it_lives_on(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    for service_is_up in [true, false] {
        let job = service.insert("ONE", &["daemon+run:600"]).await[0];
        let begun = service.begun(job, 1).await;
        service.until(job, JobStatus::Progress).await;
        eventually("its daemon", async || service.path(&format!("evidence/{job}.1.daemon")).exists()).await;
        if !service_is_up {
            service.kill_9();
        }
        kill_the_shim_of(begun.pid);
        if !service_is_up {
            service.serve().await;
        }
        let row = service.until(job, JobStatus::Error).await;
        let error = row.error.unwrap();
        assert!(error.starts_with("the run was lost: "), "{error}");
        assert_eq!(row.exit_code, None);
        assert_eq!(service.runs(job).await[0].outcome.as_deref(), Some("LOST"));
        assert_eq!(service.alive(), []);
        if !service_is_up {
            eventually("the metrics to tell of it", async || {
                let scrape = Scrape::of(&service);
                scrape.value("callsheet_recovered_runs_total", r#"type="ONE",verdict="lost""#) == 1.0
                    && scrape.value("callsheet_run_duration_seconds_count", r#"outcome="LOST",type="ONE""#) == 1.0
            })
            .await;
        }
    }
}
on_each_database!(a_run_whose_shim_was_killed_is_lost_and_nothing_of_it_lives_on, mariadb);

/// A command that became another user's (as by sudo) outlives its shim, and nobody but that user may end it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_started_beside_what_a_lost_run_left_to_another_user() {
    const NOBODY: u32 = 12345;
    const TEST: &str = "nothing_is_started_beside_what_a_lost_run_left_to_another_user";
    if !rustix::process::geteuid().is_root() {
        return processes::say_skipped(TEST, "it needs two users, and so root");
    }
    let flow = "[flows.ONE]\nworking_dir = \"evidence\"\nretry = { maximum_attempts = 2, initial_interval = \"20ms\" }\n\
        command = [\"../become\", \"--reuid=0\", \"--regid=0\", \"--clear-groups\", \"sh\", \"-c\", \"echo $$ >>started; exec sleep 600\"]\n";
    let mut service = Service::prepare(On::Sqlite, flow).await.unwrap();
    // As sudo has it: whoever runs it becomes root.
    let become_root = service.path("become");
    fs::copy("/usr/bin/setpriv", &become_root).unwrap();
    for program in ["callsheet", "callsheet-shim"] {
        fs::copy(service.program.with_file_name(program), service.path(program)).unwrap();
    }
    service.program = service.path("callsheet");
    service.through = vec![
        "setpriv".to_owned(),
        format!("--reuid={NOBODY}"),
        format!("--regid={NOBODY}"),
        "--clear-groups".to_owned(),
    ];
    let everything =
        Command::new("chown").arg("-R").arg(format!("{NOBODY}:{NOBODY}")).arg(service.scratch.path()).status();
    assert!(everything.unwrap().success());
    chown(&become_root, Some(0), Some(0)).unwrap();
    fs::set_permissions(&become_root, Permissions::from_mode(0o4755)).unwrap();
    service.serve().await;
    let job = service.insert("ONE", &["a"]).await[0];
    service.until(job, JobStatus::Progress).await;
    let started = || fs::read_to_string(service.path("evidence/started")).unwrap_or_default();
    eventually("the command", async || started().ends_with('\n')).await;
    let command: i32 = started().trim().parse().unwrap();
    kill_the_shim_of(command);
    eventually("readyz to name it", async || {
        get(&service.address(), "/readyz").1.contains(&format!("process {command} (sleep"))
    })
    .await;
    assert!(processes::is_alive(command), "there is nothing left that could be in the way");
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!((started().lines().count(), service.job(job).await.status), (1, JobStatus::Progress));
    processes::kill(command);
    eventually("the second attempt", async || started().lines().count() == 2).await;
    assert_eq!(service.runs(job).await[0].outcome.as_deref(), Some("LOST"));
    eventually("readyz to be well again", async || get(&service.address(), "/readyz").0 == 200).await;
    let second = started().lines().nth(1).unwrap().parse().unwrap();
    processes::kill(second);
    service.until(job, JobStatus::Error).await;
}

/// Where nothing can be looked at, nobody can say that nothing is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_descriptors_takes_no_lost_run_for_gone() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    let job = service.insert("ONE", &["daemon+run:600"]).await[0];
    let begun = service.begun(job, 1).await;
    service.until(job, JobStatus::Progress).await;
    let daemon = eventually_number(&service.path(&format!("evidence/{job}.1.daemon"))).await;
    let pid = Pid::from_raw(service.pid());
    let most = getrlimit(Resource::Nofile);
    let used: BTreeSet<u64> = fs::read_dir(format!("/proc/{}/fd", service.pid()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let free = (0..).find(|number| !used.contains(number));
    prlimit(pid, Resource::Nofile, Rlimit { current: free, maximum: most.maximum }).unwrap();
    kill_the_shim_of(begun.pid);
    eventually("it to say that it can't look", async || service.log().contains("can't clean up after a lost run"))
        .await;
    assert!(processes::is_alive(daemon), "there is nothing left that could be overlooked");
    assert_eq!(service.job(job).await.status, JobStatus::Progress);
    prlimit(pid, Resource::Nofile, most).unwrap();
    service.until(job, JobStatus::Error).await;
    assert_eq!(service.runs(job).await[0].outcome.as_deref(), Some("LOST"));
    service.nothing_alive().await;
}

async fn eventually_number(file: &Path) -> i32 {
    eventually("a number in a file", async || processes::number_in(file).is_some()).await;
    processes::number_in(file).unwrap()
}

/// The shim is the command's parent.
fn kill_the_shim_of(command: i32) {
    let status = std::fs::read_to_string(format!("/proc/{command}/status")).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(shim).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
}

/// What it leaves elsewhere is a file; its second job would find that.
const LAUNCHER: &str = r#"[flows.LAUNCHER]
working_dir = "evidence"
command = ["sh", "-c", "[ ! -e elsewhere ] || exit 9; [ $0 = first ] || exit 0; touch elsewhere; exec sleep 600", "{identifier}"]
cancel_command = ["sh", "-c", "echo $0 $CALLSHEET_RUN_TOKEN >>asked; while [ ! -e let-go ]; do sleep 0.02; done; rm elsewhere", "{signal}"]
kill_grace = "5m"
"#;

async fn the_next_run_waits_until_what_a_lost_one_left_elsewhere_is_ended(on: On) {
    let Some(mut service) = Service::start(on, LAUNCHER).await else { return };
    let jobs = service.insert("LAUNCHER", &["first", "second"]).await;
    let [lost, next] = jobs[..] else { panic!("two jobs") };
    eventually("the command", async || service.path("evidence/elsewhere").exists()).await;
    service.until(lost, JobStatus::Progress).await;
    kill_the_shim_of(service.runs(lost).await[0].pid.unwrap().try_into().unwrap());
    // Whoever dies or stops before it is done has it done again, by the next service; nobody who stops waits for it.
    let token = service.job(lost).await.run_token.unwrap();
    let told = service.path("evidence/asked");
    let asked = |times: usize| {
        let said = std::fs::read_to_string(&told).unwrap_or_default();
        said == format!("KILL {token}\n").repeat(times)
    };
    eventually("the cancel_command", async || asked(1)).await;
    service.kill_9();
    service.serve().await;
    eventually("the cancel_command, once more", async || asked(2)).await;
    service.stop().await;
    service.serve().await;
    eventually("the cancel_command, a third time", async || asked(3)).await;
    assert_eq!(service.job(lost).await.status, JobStatus::Progress);
    assert_eq!(service.job(next).await.status, JobStatus::Pending);
    std::fs::write(service.path("evidence/let-go"), "").unwrap();
    let error = service.until(lost, JobStatus::Error).await.error.unwrap();
    assert!(error.starts_with("the run was lost: ") && error.ends_with("; its cancel_command was run"), "{error}");
    assert_eq!(service.until(next, JobStatus::Completed).await.exit_code, Some(0));
    assert!(asked(3));
    service.nothing_alive().await;
}
on_each_database!(the_next_run_waits_until_what_a_lost_one_left_elsewhere_is_ended);

async fn a_claim_that_came_to_nothing_does_not_count(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    let worker = "node-a";
    service.configure(&format!("worker_id = \"{worker}\"\n"));
    let job = service.insert("ONE", &["say:hello"]).await[0];
    // What a crash right after the commit of a claim leaves behind.
    service
        .sql(&format!(
            "UPDATE jobs SET status = 'INQUEUE', attempt = 1, worker_id = '{worker}', \
             run_token = '{}', queued_time = created_time WHERE id = {job}",
            RunToken::new(1, [1; 8], callsheet::process::boot_mark())
        ))
        .await;
    service.serve().await;
    let row = service.until(job, JobStatus::Completed).await;
    assert_eq!(row.attempt.0, 1);
    assert_eq!(service.changes(job).await.join(" "), "PENDING INQUEUE PROGRESS COMPLETED");
    assert!(service.log().contains("never_started"));
}
on_each_database!(a_claim_that_came_to_nothing_does_not_count, mariadb);

async fn a_claim_from_before_a_power_failure_is_lost_rather_than_run_twice(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure("worker_id = \"node-a\"\n");
    let job = service.insert("ONE", &["say:hello"]).await[0];
    service
        .sql(&format!(
            "UPDATE jobs SET status = 'INQUEUE', attempt = 1, worker_id = 'node-a', \
             run_token = '0123456789abcdef0123456789abcdef', queued_time = created_time WHERE id = {job}"
        ))
        .await;
    service.serve().await;
    let row = service.until(job, JobStatus::Error).await;
    let error = row.error.unwrap();
    assert!(error.starts_with("the run was lost: the machine was restarted after it had been claimed"), "{error}");
    assert_eq!(service.runs(job).await[0].outcome.as_deref(), Some("LOST"));
    assert_eq!(service.evidence().len(), 0);
}
on_each_database!(a_claim_from_before_a_power_failure_is_lost_rather_than_run_twice);

async fn a_row_that_somebody_else_calls_running_holds_no_slot(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure("worker_id = \"node-a\"\n");
    let rows = service.insert("ONE", &["say:a", "say:b", "say:c"]).await;
    let (before, meanwhile, others) = (rows[0], rows[1], rows[2]);
    service.sql(&format!("UPDATE jobs SET status = 'INQUEUE' WHERE id = {before}")).await;
    let foreign = "UPDATE jobs SET status = 'PROGRESS', run_token = 'mine', worker_id =";
    if on != On::Sqlite {
        service.sql(&format!("{foreign} 'node-b' WHERE id = {others}")).await;
    }
    // While the service is away, and again while it runs: a slot of a sequential flow is at stake each time.
    service.serve().await;
    let settled = service.until(before, JobStatus::Error).await;
    assert!(settled.error.unwrap().contains("somebody else than Callsheet"));
    assert_eq!(service.changes(before).await, ["ERROR"]);
    if on != On::Sqlite {
        // Another worker's row is that worker's to settle, and holds the slot meanwhile.
        assert_eq!(service.job(others).await.status, JobStatus::Progress);
        service.sql(&format!("UPDATE jobs SET status = 'CANCELLED' WHERE id = {others}")).await;
    }
    service.until(meanwhile, JobStatus::Completed).await;
    service.sql(&format!("UPDATE jobs SET status = 'PROGRESS' WHERE id = {before}")).await;
    eventually("the row to be settled again", async || service.job(before).await.status == JobStatus::Error).await;
    let next = service.insert("ONE", &["say:d"]).await[0];
    service.until(next, JobStatus::Completed).await;
    assert!(!service.evidence().contains_key(&(before.0, 0)) && !service.evidence().contains_key(&(before.0, 1)));
}
on_each_database!(a_row_that_somebody_else_calls_running_holds_no_slot, mariadb);

async fn a_planned_stop_leaves_commands_running_and_loses_no_end(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let long = service.insert("ONE", &["wait"]).await[0];
    let short = service.insert("FOUR", &["run:0.2+exit:9", "run:0.2", "run:0.2", "run:0.2"]).await;
    let pid = service.begun(long, 1).await.pid;
    service.begun(short[0], 1).await;
    service.stop().await;
    assert!(service.alive().iter().any(|(alive, _)| *alive == pid));
    service.serve().await;
    assert_eq!(service.until(short[0], JobStatus::Error).await.exit_code, Some(9));
    for job in &short[1..] {
        service.until(*job, JobStatus::Completed).await;
    }
    service.go();
    service.until(long, JobStatus::Completed).await;
    assert_eq!(service.evidence()[&(long.0, 1)].pid, pid);
}
on_each_database!(a_planned_stop_leaves_commands_running_and_loses_no_end);

async fn runs_of_a_flow_that_is_no_longer_configured_are_finished(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("FOUR", &["wait+exit:6"]).await[0];
    service.begun(job, 1).await;
    service.until(job, JobStatus::Progress).await;
    service.stop().await;
    let config = std::fs::read_to_string(service.path("callsheet.toml")).unwrap();
    std::fs::write(service.path("callsheet.toml"), config.replace("[flows.FOUR]", "[flows.OTHER]")).unwrap();
    let waiting = service.insert("FOUR", &["wait"]).await[0];
    service.serve().await;
    service.go();
    assert_eq!(service.until(job, JobStatus::Error).await.exit_code, Some(6));
    assert_eq!(service.job(waiting).await.status, JobStatus::Pending);
}
on_each_database!(runs_of_a_flow_that_is_no_longer_configured_are_finished);

async fn a_type_that_was_renamed_by_case_only_does_not_stop_the_service(on: On) {
    let Some(mut service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("ONE", &["wait+exit:6"]).await[0];
    service.begun(job, 1).await;
    service.until(job, JobStatus::Progress).await;
    service.stop().await;
    let config = std::fs::read_to_string(service.path("callsheet.toml")).unwrap();
    std::fs::write(service.path("callsheet.toml"), config.replace("[flows.ONE]", "[flows.one]")).unwrap();
    service.serve().await;
    let renamed = service.insert("one", &["say:hello"]).await[0];
    service.until(renamed, JobStatus::Completed).await;
    service.go();
    assert_eq!(service.until(job, JobStatus::Error).await.exit_code, Some(6));
}
on_each_database!(a_type_that_was_renamed_by_case_only_does_not_stop_the_service);

async fn a_stop_waits_for_the_commands_where_it_is_told_to(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure("[service]\non_stop = \"wait\"\n");
    service.serve().await;
    let running = service.insert("ONE", &["wait+exit:8", "wait"]).await;
    service.until(running[0], JobStatus::Progress).await;
    service.signal(rustix::process::Signal::TERM);
    eventually("the stop to begin", async || service.store.workers().await.unwrap()[0].state == "DRAINING").await;
    service.go();
    service.ended().await;
    assert_eq!(service.job(running[0]).await.exit_code, Some(8));
    assert_eq!(service.job(running[1]).await.status, JobStatus::Pending, "nothing new is started meanwhile");
    assert_eq!(service.alive(), []);
}
on_each_database!(a_stop_waits_for_the_commands_where_it_is_told_to);

async fn a_stop_cancels_the_commands_where_it_is_told_to(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure("[service]\non_stop = \"cancel\"\n");
    service.serve().await;
    let running = service.insert("FOUR", &["note-term+wait", "note-term+wait"]).await;
    for job in &running {
        service.begun(*job, 1).await;
        service.until(*job, JobStatus::Progress).await;
    }
    service.stop().await;
    for job in &running {
        assert_eq!(service.job(*job).await.status, JobStatus::Cancelled);
        assert!(service.path(&format!("evidence/{job}.1.term")).exists(), "it had its time to end well");
    }
    assert_eq!(service.alive(), []);
}
on_each_database!(a_stop_cancels_the_commands_where_it_is_told_to);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_service_on_the_same_data_is_refused() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    let output = service.cli(&["serve"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("another callsheet service is running"), "{error}");
}
