//! SIGHUP: the flows of the configuration as they are now, and no run lost over it.

use std::fs;

use callsheet::domain::{JobId, JobStatus};

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service, most_at_once};

const FLOWS: &str = "[flows.ONE]\n{job}\nkill_grace = \"300ms\"\n[flows.GOES]\n{job}\nconcurrency = 2\n";

impl Service {
    pub fn config(&self) -> String {
        fs::read_to_string(self.path("callsheet.toml")).unwrap()
    }

    /// Writes another configuration and has the service read it; waits until it has said what came of it.
    pub async fn reload(&self, config: &str) {
        fs::write(self.path("callsheet.toml"), config).unwrap();
        let heard =
            || self.log().matches("the configuration was read again").count() + self.log().matches("SIGHUP: ").count();
        let before = heard();
        self.signal(rustix::process::Signal::HUP);
        eventually("the service to have read its configuration again", async || heard() > before).await;
    }

    fn metrics(&self) -> String {
        let mut response = String::new();
        let address = self.address();
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        std::io::Write::write_all(
            &mut stream,
            b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
        std::io::Read::read_to_string(&mut stream, &mut response).unwrap();
        response
    }
}

async fn more_concurrency_and_a_new_flow_hold_at_once(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let jobs = service.insert("ONE", &["wait"; 4]).await;
    let begun = service.begun(jobs[0], 1).await;
    let waiting = service.insert("NEW", &["run:0"]).await[0];
    assert_eq!(service.evidence().len(), 1);
    let config = service.config();
    let command = config.lines().find(|line| line.starts_with("command")).unwrap().to_owned();
    let more = config.replace("[flows.ONE]\n", "[flows.ONE]\nconcurrency = 3\n") + "[flows.NEW]\n" + &command + "\n";
    service.reload(&more).await;
    let log = service.log();
    assert!(log.contains("configuration: flow ONE: concurrency 1 -> 3"), "{log}");
    assert!(log.contains("configuration: flow NEW: added, concurrency 1"), "{log}");
    service.until(waiting, JobStatus::Completed).await;
    eventually("three commands at once", async || service.evidence().len() == 4).await;
    assert_eq!(service.evidence()[&(jobs[0].0, 1)], begun, "the command that ran was left alone");
    // Less again: what runs runs on, and nothing new starts above it.
    service.reload(&config).await;
    let log = service.log();
    assert!(log.contains("flow ONE: concurrency 3 -> 1") && log.contains("flow NEW: removed"), "{log}");
    service.go();
    for job in &jobs {
        assert_eq!(service.until(*job, JobStatus::Completed).await.attempt.0, 1);
    }
    let mut of_one = service.evidence();
    of_one.retain(|(job, _), _| jobs.contains(&JobId(*job)));
    assert_eq!(most_at_once(&of_one), 3);
    let last = of_one.values().find(|run| run.job == jobs[3].0).unwrap();
    assert!(of_one.values().filter(|run| run.job != jobs[3].0).all(|run| run.end.unwrap() <= last.start));
}
on_each_database!(more_concurrency_and_a_new_flow_hold_at_once);

async fn a_changed_command_is_for_new_runs_only(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let running = service.insert("ONE", &["wait"]).await[0];
    let begun = service.begun(running, 1).await;
    service.until(running, JobStatus::Progress).await;
    let next = service.insert("ONE", &["environment"]).await[0];
    let config =
        service.config().replace("kill_grace = \"300ms\"", "kill_grace = \"300ms\"\nenv = { COLOUR = \"green\" }");
    service.reload(&config).await;
    assert!(service.log().contains("configuration: flow ONE: env.COLOUR added"));
    assert!(!service.log().contains("green"), "values of variables may be secrets");
    service.go();
    service.until(running, JobStatus::Completed).await;
    assert_eq!(service.evidence()[&(running.0, 1)].pid, begun.pid);
    service.until(next, JobStatus::Completed).await;
    let environment = fs::read_to_string(service.path(&format!("evidence/{next}.1.environment"))).unwrap();
    assert!(environment.contains("COLOUR=green"), "{environment}");
}
on_each_database!(a_changed_command_is_for_new_runs_only);

async fn a_removed_flow_finishes_what_runs_and_starts_nothing_new(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let running = service.insert("GOES", &["wait"; 2]).await;
    for job in &running {
        service.until(*job, JobStatus::Progress).await;
    }
    let waiting = service.insert("GOES", &["run:0"]).await[0];
    let config = service.config();
    let (kept, removed) = config.split_at(config.find("[flows.GOES]").unwrap());
    service.reload(kept).await;
    assert!(service.log().contains("flow GOES: removed; its runs are finished, and nothing new is started"));
    assert!(service.metrics().contains("type=\"GOES\""), "it has runs still");
    // Its running commands are still watched over: one is cancelled, one ends by itself.
    assert!(service.cli(&["cancel", &running[0].to_string()]).status.success());
    service.until(running[0], JobStatus::Cancelled).await;
    service.go();
    service.until(running[1], JobStatus::Completed).await;
    eventually("the flow's series to end", async || !service.metrics().contains("type=\"GOES\"")).await;
    assert!(
        service.log().contains("a flow that is no longer configured has finished its runs"),
        "said before it is so"
    );
    let other = service.insert("ONE", &["run:0"]).await[0];
    service.until(other, JobStatus::Completed).await;
    assert_eq!(service.job(waiting).await.status, JobStatus::Pending);
    // It comes back.
    service.reload(&format!("{kept}{removed}")).await;
    service.until(waiting, JobStatus::Completed).await;
    assert!(service.metrics().contains("type=\"GOES\""));
}
on_each_database!(a_removed_flow_finishes_what_runs_and_starts_nothing_new);

async fn a_flow_may_be_renamed_by_case_while_its_run_goes_on(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let running = service.insert("GOES", &["wait"]).await[0];
    service.until(running, JobStatus::Progress).await;
    let config = service.config();
    service.reload(&config.replace("[flows.GOES]", "[flows.Goes]")).await;
    let new = service.insert("Goes", &["run:0"]).await[0];
    service.until(new, JobStatus::Completed).await;
    assert_eq!(service.job(running).await.status, JobStatus::Progress);
    // Back again while the old run still goes on: it is the same flow's.
    service.reload(&config).await;
    let again = service.insert("GOES", &["run:0"]).await[0];
    service.until(again, JobStatus::Completed).await;
    service.go();
    assert_eq!(service.until(running, JobStatus::Completed).await.attempt.0, 1);
    // Both at once have the same names, and are refused as at a start.
    let both = format!("{config}[flows.goes]\ncommand = [\"true\"]\n");
    service.reload(&both).await;
    assert!(service.log().contains("would both use the task queue name"), "{}", service.log());
}
on_each_database!(a_flow_may_be_renamed_by_case_while_its_run_goes_on);

async fn a_wrong_configuration_is_refused_with_its_places(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let config = service.config();
    let wrong = format!("{config}[flows.NEW]\ncommand = []\nconcurency = 3\n");
    service.reload(&wrong).await;
    let log = service.log();
    let line = wrong.lines().position(|line| line == "concurency = 3").unwrap() + 1;
    assert!(log.contains(&format!("callsheet.toml:{line}:1: ")) && log.contains("`command` is empty"), "{log}");
    assert!(log.contains("the service goes on with what it has read before"), "{log}");
    assert!(service.metrics().contains("callsheet_config_last_reload_successful 0"));
    let job = service.insert("ONE", &["run:0"]).await[0];
    service.until(job, JobStatus::Completed).await;
    // What can't change at run time is named, and what can is taken all the same.
    let other = config
        .replace("listen = \"127.0.0.1:0\"", "listen = \"127.0.0.1:9\"")
        .replace("[flows.ONE]\n", "[flows.ONE]\nconcurrency = 2\n");
    service.reload(&format!("worker_id = \"another\"\n{other}[service]\non_stop = \"cancel\"\n")).await;
    let log = service.log();
    for key in ["worker_id", "[service]", "[http]"] {
        let says =
            format!("configuration: {key} is different in the file; it holds from the next start of the service");
        assert!(log.contains(&says), "{key}: {log}");
    }
    assert!(log.contains("flow ONE: concurrency 1 -> 2"), "{log}");
    assert!(service.metrics().contains("callsheet_config_last_reload_successful 1"));
    fs::remove_file(service.path("callsheet.toml")).unwrap();
    let before = service.log().len();
    service.signal(rustix::process::Signal::HUP);
    eventually("a word about the missing file", async || service.log()[before..].contains("SIGHUP: ")).await;
    let job = service.insert("ONE", &["run:0"]).await[0];
    service.until(job, JobStatus::Completed).await;
}
on_each_database!(a_wrong_configuration_is_refused_with_its_places);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_has_lost_all_flows_is_warned_of() {
    let service = Service::start(On::Sqlite, FLOWS).await.unwrap();
    let config = service.config();
    service.reload(config.split("[flows.").next().unwrap()).await;
    let log = service.log();
    let warning = log.lines().find(|line| line.contains("the file has no flows any more"));
    assert!(warning.is_some_and(|line| line.contains("WARN") && line.contains("GOES, ONE")), "{log}");
}
