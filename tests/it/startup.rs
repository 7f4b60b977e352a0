//! A service starts under many running commands, and rests when it has nothing to do.

use callsheet::domain::JobStatus;

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

/// As many as a busy machine starts in some seconds; `cargo bench --bench startup` does it with thousands.
const RUNS: usize = 120;

async fn every_one_of_many_running_commands_is_taken_over_and_ends_as_it_did(on: On) {
    let flows = format!("[flows.MANY]\n{{job}}\nconcurrency = {RUNS}\n");
    let Some(mut service) = Service::start(on, &flows).await else { return };
    // Half of them end while nobody is there.
    service
        .sql(&format!(
            "INSERT INTO jobs (type, identifier) SELECT 'MANY', {} FROM {}",
            "CASE WHEN n % 2 = 0 THEN 'wait+exit:3' ELSE 'wait' END",
            match on {
                On::Sqlite => format!(
                    "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {RUNS}) SELECT n FROM c)"
                ),
                On::Postgres => format!("generate_series(1, {RUNS}) AS n"),
                On::MariaDb => format!("(SELECT seq AS n FROM seq_1_to_{RUNS}) AS c"),
            }
        ))
        .await;
    eventually("all to run", async || service.evidence().len() == RUNS).await;
    eventually("all to be known to run", async || {
        let states = service.store.flow_states().await.unwrap();
        states.iter().any(|state| state.progress == RUNS as u64)
    })
    .await;
    let before = service.evidence();
    service.kill_9();
    service.serve().await;
    eventually("all to be taken over", async || service.log().matches("reattached").count() == RUNS).await;
    assert_eq!(service.evidence(), before, "nobody noticed");
    service.kill_9();
    service.go();
    service.nothing_alive().await;
    service.serve().await;
    for (job, _) in before.into_keys() {
        let job = callsheet::domain::JobId(job);
        let code = if job.0 % 2 == 0 { 3 } else { 0 };
        let status = if code == 0 { JobStatus::Completed } else { JobStatus::Error };
        assert_eq!(service.until(job, status).await.exit_code, Some(code));
    }
    assert_eq!(service.evidence().len(), RUNS, "each was started once");
}
on_each_database!(every_one_of_many_running_commands_is_taken_over_and_ends_as_it_did);

/// So many KiB of its program's and its libraries' files a process has mapped (proc_pid_status(5)).
fn mapped_files(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

async fn a_service_at_rest_gives_memory_back_and_works_on(on: On) {
    let Some(service) = Service::start(on, "[flows.ONE]\n{job}\n").await else { return };
    for _ in 0..2 {
        let job = service.insert("ONE", &["exit:0"]).await[0];
        service.until(job, JobStatus::Completed).await;
        let working = mapped_files(service.pid());
        eventually("memory to be given back", async || mapped_files(service.pid()) < working * 9 / 10).await;
    }
}
on_each_database!(a_service_at_rest_gives_memory_back_and_works_on);
