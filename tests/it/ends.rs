//! Every way in which a run can end is told truthfully: status, outcome, exit code, error, events.

use callsheet::domain::{JobId, JobStatus};

use crate::on_each_database;
use crate::support::processes::Process;
use crate::support::service::{On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\nkill_grace = \"300ms\"\n\
    [flows.SHORT]\n{job}\nstart_to_close_timeout = \"1s\"\nkill_grace = \"300ms\"\n\
    [flows.TWICE]\n{job}\nretry = { maximum_attempts = 3, initial_interval = \"50ms\", non_retryable_exit_codes = [4] }\n\
    [flows.NOT_THERE]\ncommand = [\"/nowhere/at-all\"]\n\
    [flows.NO_PROGRAM]\ncommand = [\"no-such-program-anywhere\"]\n\
    [flows.NOT_EXECUTABLE]\ncommand = [\"/etc/passwd\"]\n\
    [flows.NO_DIRECTORY]\ncommand = [\"true\"]\nworking_dir = \"/nowhere\"\n";

async fn the_error_says_what_happened_and_then_the_last_words(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let failed = service.insert("ONE", &["say:unseen+complain:out-of-paint+exit:7"]).await[0];
    let row = service.until(failed, JobStatus::Error).await;
    assert_eq!(row.error.as_deref(), Some("the command failed with exit code 7\nout-of-paint"));
    assert_eq!(row.exit_code, Some(7));
    assert_eq!(service.changes(failed).await, ["INQUEUE", "PROGRESS", "ERROR"]);
    let runs = service.runs(failed).await;
    assert_eq!((runs[0].outcome.as_deref(), runs[0].exit_code, runs[0].signal), (Some("FAILED"), Some(7), None));

    let killed = service.insert("ONE", &["kill:SEGV"]).await[0];
    let row = service.until(killed, JobStatus::Error).await;
    assert_eq!(row.error.as_deref(), Some("the command was killed by signal 11 (SIGSEGV)"));
    assert_eq!(row.exit_code, None);
    assert_eq!(service.runs(killed).await[0].signal, Some(11));
}
on_each_database!(the_error_says_what_happened_and_then_the_last_words, mariadb);

async fn a_command_that_cannot_start_is_no_failed_command(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    for (flow, says) in [
        ("NOT_THERE", "/nowhere/at-all"),
        ("NO_PROGRAM", "no-such-program-anywhere"),
        ("NOT_EXECUTABLE", "/etc/passwd"),
        ("NO_DIRECTORY", "/nowhere"),
    ] {
        let job = service.insert(flow, &["a"]).await[0];
        let row = service.until(job, JobStatus::Error).await;
        let error = row.error.unwrap();
        assert!(error.starts_with("the command could not be started: ") && error.contains(says), "{flow}: {error}");
        assert_eq!(row.exit_code, None, "{flow}");
        assert_eq!(service.runs(job).await[0].outcome.as_deref(), Some("SPAWN_FAILED"), "{flow}");
        assert_eq!(service.changes(job).await, ["INQUEUE", "ERROR"], "{flow}");
    }
}
on_each_database!(a_command_that_cannot_start_is_no_failed_command);

async fn a_run_that_takes_too_long_is_ended_with_all_it_started(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("SHORT", &["daemon+ignore-term+run:60"]).await[0];
    let row = service.until(job, JobStatus::Error).await;
    let error = row.error.unwrap();
    let (ran, _) = error.split_once(" (start_to_close_timeout is 1s)").unwrap_or_else(|| panic!("{error}"));
    // In whole seconds, and until it was dead.
    let ran = ran.strip_prefix("timed out: the command had run for ").unwrap_or_else(|| panic!("{error}"));
    assert!(humantime::parse_duration(ran).unwrap().as_secs() >= 1, "{error}");
    assert_eq!(service.runs(job).await[0].outcome.as_deref(), Some("TIMED_OUT"));
    assert_eq!(service.alive(), []);
}
on_each_database!(a_run_that_takes_too_long_is_ended_with_all_it_started);

async fn nothing_is_left_alive_after_a_normal_end(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("ONE", &["daemon"]).await[0];
    service.until(job, JobStatus::Completed).await;
    assert!(service.path(&format!("evidence/{job}.1.daemon")).exists());
    assert_eq!(service.alive(), []);
}
on_each_database!(nothing_is_left_alive_after_a_normal_end);

async fn failed_attempts_are_retried_and_each_is_kept(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("TWICE", &["exit:3"]).await[0];
    let row = service.until(job, JobStatus::Error).await;
    assert_eq!((row.attempt.0, row.exit_code), (3, Some(3)));
    let changes = service.changes(job).await;
    assert_eq!(changes.join(" "), "INQUEUE PROGRESS PENDING INQUEUE PROGRESS PENDING INQUEUE PROGRESS ERROR");
    let runs = service.runs(job).await;
    assert_eq!(runs.iter().map(|run| run.attempt.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(service.evidence().len(), 3);
    let forbidden = service.insert("TWICE", &["exit:4"]).await[0];
    assert_eq!(service.until(forbidden, JobStatus::Error).await.attempt.0, 1);
}
on_each_database!(failed_attempts_are_retried_and_each_is_kept, mariadb);

async fn hostile_identifiers_never_reach_a_command(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let long = "a".repeat(300);
    let hostile = ["-rf", "--help", "a b", "a\nb", "", "a;b", "$(id)", "{job_id}", "\u{202e}", long.as_str()];
    let mut jobs: Vec<JobId> = Vec::new();
    for identifier in hostile {
        // From the command line it does not even reach the table.
        let output = service.cli(&["enqueue", "ONE", "--", identifier]);
        assert_eq!(output.status.code(), Some(2), "{identifier:?}");
        jobs.extend(service.insert("ONE", &[identifier]).await);
    }
    if on == On::Sqlite {
        for value in ["CAST(x'ff41' AS TEXT)", "x'00ff'", "CAST(x'61006200' AS TEXT)"] {
            let before = service.insert("ONE", &["ok"]).await[0];
            service.until(before, JobStatus::Completed).await;
            // Refused by the table, or settled as ERROR: either way it never reaches a command.
            let sql = format!("INSERT INTO jobs (type, identifier) VALUES ('ONE', {value})");
            let connection = service.foreign().await;
            if sea_orm::ConnectionTrait::execute_unprepared(&connection, &sql).await.is_ok() {
                jobs.push(JobId(before.0 + 1));
            }
        }
    }
    for job in &jobs {
        let row = service.until(*job, JobStatus::Error).await;
        let error = row.error.unwrap();
        assert!(error.starts_with("refused: "), "{error}");
        assert!(!error.chars().any(char::is_control), "{error:?}");
        assert_eq!(service.changes(*job).await, ["INQUEUE", "ERROR"]);
        assert_eq!(service.runs(*job).await.len(), 0);
        assert!(!service.evidence().contains_key(&(job.0, 1)));
    }
    let fine = service.insert("ONE", &["say:fine"]).await[0];
    service.until(fine, JobStatus::Completed).await;
}
on_each_database!(hostile_identifiers_never_reach_a_command, mariadb);

async fn rows_of_other_types_are_left_alone(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let other = service.insert("SOMETHING_ELSE", &["a"]).await[0];
    let fine = service.insert("ONE", &["say:fine"]).await[0];
    service.until(fine, JobStatus::Completed).await;
    assert_eq!(service.job(other).await.status, JobStatus::Pending);
    let flows = String::from_utf8(service.cli(&["flows"]).stdout).unwrap();
    assert!(flows.contains("SOMETHING_ELSE"), "{flows}");
}
on_each_database!(rows_of_other_types_are_left_alone);

async fn a_command_sees_its_job_and_none_of_the_services_secrets(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure("[[http.tokens]]\nname = \"ops\"\nrole = \"operator\"\ntoken_env = \"OPS_TOKEN\"\n");
    service.serve_with(&[("OPS_TOKEN", "do-everything"), ("PGPASSWORD", "do-everything")]).await;
    let job = service.insert("ONE", &["environment+wait"]).await[0];
    let command = service.begun(job, 1).await.pid;
    // Whatever stands between the service and the command shows its environment to the command too.
    let mut above = Process::read(command).unwrap().parent;
    let mut helpers = 0;
    while above != service.pid() && above > 1 {
        let helper = Process::read(above).unwrap();
        let secret = |entry: &&String| entry.starts_with("DATABASE_URL=") || entry.contains("do-everything");
        assert_eq!(helper.environment.iter().find(secret), None, "{}", helper.command_line);
        assert!(helper.environment.iter().any(|entry| entry.starts_with("PATH=")));
        above = helper.parent;
        helpers += 1;
    }
    assert_eq!(helpers, 2, "the shim and the zygote");
    service.go();
    let row = service.until(job, JobStatus::Completed).await;
    let environment = std::fs::read_to_string(service.path(&format!("evidence/{job}.1.environment"))).unwrap();
    let value = |name: &str| environment.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
    let id = job.to_string();
    assert_eq!(value("CALLSHEET_JOB_ID"), Some(id.as_str()));
    assert_eq!(value("CALLSHEET_JOB_TYPE"), Some("ONE"));
    assert_eq!(value("CALLSHEET_IDENTIFIER"), Some("environment+wait"));
    assert_eq!(value("CALLSHEET_ATTEMPT"), Some("1"));
    assert_eq!(value("CALLSHEET_WORKER_ID"), row.worker_id.as_deref());
    let workflow = format!("one({job})");
    assert_eq!(value("CALLSHEET_WORKFLOW_ID"), Some(workflow.as_str()));
    assert!(
        value("CALLSHEET_RUN_TOKEN").is_some()
            && value("CALLSHEET_RUN_DIR").is_some()
            && value("NOTIFY_SOCKET").is_some()
    );
    assert!(!environment.contains("DATABASE_URL"), "{environment}");
    assert!(!environment.contains(&service.url) && !environment.contains("do-everything"), "{environment}");
}
on_each_database!(a_command_sees_its_job_and_none_of_the_services_secrets);
