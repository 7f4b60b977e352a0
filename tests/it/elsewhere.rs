//! Commands whose work is elsewhere, as docs/recipes.md has them: `srun` on a real Slurm of one node, `docker run` by a real
//! daemon, `ssh` to a real sshd.
//!
//! Exit codes, output, cancel and timeouts are those of what runs there.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use callsheet::domain::{JobId, JobStatus};

use crate::support::docker::Docker;
use crate::support::eventually;
use crate::support::processes::{is_alive, kill, processes};
use crate::support::service::{On, Service};
use crate::support::slurm::Slurm;
use crate::support::tools::{program, run};

/// `{slurm}` is where slurm.conf is.
const SLURM: &str = r#"
env = { SLURM_CONF = "{slurm}" }
kill_grace = "2s"
cancel_command = ["scancel", "--signal={{signal}", "--name=callsheet-{{run_token}"]
[flows.SLURM]
command = ["srun", "--quiet", "--job-name=callsheet-{{run_token}", "--cpus-per-task=2", {job}]
concurrency = 2
[flows.SHORT]
command = ["srun", "--quiet", "--job-name=callsheet-{{run_token}", {job}]
start_to_close_timeout = "2s"
"#;

/// A service with these flows, in which `{job}` is the command of the tests and `{here}` the scratch directory.
async fn service(flows: &str, job: &str) -> Service {
    let mut service = Service::prepare(On::Sqlite, "# flows\n").await.unwrap();
    let here = service.scratch.path().display().to_string();
    let flows = flows.replace("{job}", job).replace("{here}", &here).replace("{{", "{");
    let config = fs::read_to_string(service.path("callsheet.toml")).unwrap();
    fs::write(service.path("callsheet.toml"), config.replace("# flows\n", &flows)).unwrap();
    service.serve().await;
    service
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn srun_ends_as_its_slurm_job_does_and_takes_it_along() {
    let Some(slurm) = Slurm::start().await else { return };
    let flows = SLURM.replace("{slurm}", &slurm.configuration().display().to_string());
    let job = r#""/bin/bash", "{here}/job.sh", "{here}/evidence", "{{job_id}", "{{attempt}", "{{identifier}""#;
    let mut service = service(&flows, job).await;

    // Its exit code and its output.
    let failed = service.insert("SLURM", &["say:hello+complain:oh+exit:42"]).await[0];
    assert_eq!(service.until(failed, JobStatus::Error).await.exit_code, Some(42));
    let logs = |stream: &str| {
        String::from_utf8(service.cli(&["logs", &failed.to_string(), "--stream", stream]).stdout).unwrap()
    };
    assert_eq!(logs("stdout"), "hello\n");
    assert!(logs("stderr").contains("oh\n"), "{}", logs("stderr"));

    cancelled_gently(&service, "SLURM").await;
    slurm.nothing_left().await;

    // One that does not listen is killed, and what waits for a free processor never begins.
    let deaf = service.insert("SLURM", &["ignore-term+wait"]).await[0];
    service.begun(deaf, 1).await;
    let waiting = service.insert("SLURM", &["exit:0"]).await[0];
    eventually("a Slurm job to be pending", async || slurm.queue().iter().any(|(_, state)| state == "PENDING")).await;
    cancel(&service, waiting).await;
    service.until(waiting, JobStatus::Cancelled).await;
    eventually("the pending Slurm job to be gone", async || slurm.queue().len() == 1).await;
    // Nor does one whose shim is killed with its srun, which Slurm itself would let wait for ever.
    let lost = service.insert("SLURM", &["exit:0"]).await[0];
    eventually("a Slurm job to be pending", async || slurm.queue().iter().any(|(_, state)| state == "PENDING")).await;
    lose(&service, lost).await;
    assert_eq!(slurm.queue().len(), 1);
    cancel(&service, deaf).await;
    service.until(deaf, JobStatus::Cancelled).await;
    slurm.nothing_left().await;
    assert!([waiting, lost].iter().all(|job| !service.evidence().contains_key(&(job.0, 1))));

    // Its shim holds it to its time, whether or not there is a service.
    let late = service.insert("SHORT", &["note-term+environment+wait"]).await[0];
    listening(&service, late).await;
    service.kill_9();
    slurm.nothing_left().await;
    assert!(service.path(&format!("evidence/{late}.1.term")).exists(), "its own TERM handler did not run");
    service.serve().await;
    let job = service.until(late, JobStatus::Error).await;
    assert!(job.error.unwrap().starts_with("timed out"));
    service.nothing_alive().await;
}

/// A cancel reaches the command as SIGTERM, and it may end in its own way.
async fn cancelled_gently(service: &Service, flow: &str) -> JobId {
    let gentle = service.insert(flow, &["note-term+environment+wait"]).await[0];
    listening(service, gentle).await;
    cancel(service, gentle).await;
    service.until(gentle, JobStatus::Cancelled).await;
    assert!(service.path(&format!("evidence/{gentle}.1.term")).exists(), "its own TERM handler did not run");
    assert_eq!(service.job(gentle).await.exit_code, Some(0));
    gentle
}

/// Waits until its command, which says `environment` after it has set its TERM handler, is under way.
async fn listening(service: &Service, job: JobId) {
    let then = service.path(&format!("evidence/{job}.1.environment"));
    eventually("the command to be under way", async || then.exists()).await;
}

async fn cancel(service: &Service, job: JobId) {
    service.store.request_cancel(job).await.unwrap();
}

/// Kills the job's shim, and waits until the run is lost and what it had elsewhere has been ended.
async fn lose(service: &Service, job: JobId) {
    service.until(job, JobStatus::Progress).await;
    let launcher = i32::try_from(service.runs(job).await[0].pid.unwrap()).unwrap();
    kill(processes()[&launcher].parent);
    let error = service.until(job, JobStatus::Error).await.error.unwrap();
    assert!(error.starts_with("the run was lost: ") && error.ends_with("; its cancel_command was run"), "{error}");
}

/// `{options}` lead to the test's own sshd.
const SSH: &str = r#"
kill_grace = "10s"
cancel_command = ["ssh", {options}, "127.0.0.1", "kill -{{signal} -- -$(cat {here}/{{run_token})"]
[flows.SSH]
command = ["ssh", {options}, "127.0.0.1", "echo $$ >{here}/{{run_token}; exec {job}"]
"#;

/// Its server ends with this.
struct Sshd(Child);

impl Drop for Sshd {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// An sshd with keys in this directory that lets its own user in, and the options that lead a client there.
async fn sshd(here: &Path) -> Option<(Sshd, String)> {
    let server = program("sshd")?;
    for key in ["host", "user"] {
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(here.join(key)));
    }
    if rustix::process::geteuid().is_root() {
        // What sshd(8) insists on where it separates privileges.
        fs::create_dir_all("/run/sshd").unwrap();
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let here = here.display();
    let configuration = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/host\nAuthorizedKeysFile {here}/user.pub\n\
         StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n"
    );
    fs::write(format!("{here}/sshd_config"), configuration).unwrap();
    let mut command = Command::new(server);
    command.args(["-D", "-f", &format!("{here}/sshd_config"), "-E", &format!("{here}/sshd.log")]).stdin(Stdio::null());
    let sshd = Sshd(command.spawn().unwrap());
    let options = format!(
        "-F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile={here}/known -o LogLevel=ERROR -i {here}/user -p {port}"
    );
    eventually("sshd to answer", async || {
        let mut ssh = Command::new("ssh");
        ssh.args(options.split(' ')).args(["127.0.0.1", "true"]).status().unwrap().success()
    })
    .await;
    Some((sshd, options.split(' ').map(|option| format!("{option:?}")).collect::<Vec<_>>().join(", ")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ssh_ends_as_its_remote_command_does_and_takes_it_along() {
    let scratch = tempfile::tempdir().unwrap();
    let Some((_sshd, options)) = sshd(scratch.path()).await else { return };
    let job = "/bin/bash {here}/job.sh {here}/evidence {{job_id} {{attempt} {{identifier}";
    let service = service(&SSH.replace("{options}", &options), job).await;
    let failed = service.insert("SSH", &["say:hello+exit:42"]).await[0];
    assert_eq!(service.until(failed, JobStatus::Error).await.exit_code, Some(42));

    let gentle = service.insert("SSH", &["note-term+environment+wait"]).await[0];
    listening(&service, gentle).await;
    cancel(&service, gentle).await;
    service.until(gentle, JobStatus::Cancelled).await;
    assert!(service.path(&format!("evidence/{gentle}.1.term")).exists(), "its own TERM handler did not run");
    assert_eq!(service.job(gentle).await.exit_code, Some(0));

    // Its ssh is gone by the time that it is killed; only the cancel_command reaches it.
    let deaf = service.insert("SSH", &["ignore-term+wait"]).await[0];
    let command = service.begun(deaf, 1).await;
    cancel(&service, deaf).await;
    service.until(deaf, JobStatus::Cancelled).await;
    assert!(!is_alive(command.pid), "it runs on");

    let lost = service.insert("SSH", &["wait"]).await[0];
    let command = service.begun(lost, 1).await;
    lose(&service, lost).await;
    assert!(!is_alive(command.pid), "it runs on");
}

/// `{docker}` is where its daemon is, `{mounts}` what a container sees.
const DOCKER: &str = r#"
env = { DOCKER_HOST = "{docker}" }
kill_grace = "3s"
cancel_command = ["docker", "kill", "--signal={{signal}", "callsheet-{{run_token}"]
[flows.DOCKER]
command = ["docker", "run", "--rm", "--init", "--pull=never", "--network=none", "--name=callsheet-{{run_token}", "--env=CALLSHEET_JOB_ID", {mounts}, "test:1", {job}]
[flows.PROGRAM]
command = ["docker", "run", "--rm", "--init", "--pull=never", "--network=none", {mounts}, "test:1", "{{identifier}"]
[flows.IMAGE]
command = ["docker", "run", "--rm", "--init", "--pull=never", "--network=none", "{{identifier}"]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_run_ends_as_its_container_does_and_takes_it_along() {
    let Some(docker) = Docker::start("docker_run_ends_as_its_container_does").await else { return };
    let mounts: Vec<String> =
        Docker::mounts(Path::new("{here}")).iter().map(|argument| format!("{argument:?}")).collect();
    let flows = DOCKER.replace("{docker}", &docker.host()).replace("{mounts}", &mounts.join(", "));
    let job = r#""/bin/bash", "{here}/job.sh", "{here}/evidence", "{{job_id}", "{{attempt}", "{{identifier}""#;
    let service = service(&flows, job).await;

    // Its exit code and its output; what docker itself can't do has codes of its own.
    let failed = service.insert("DOCKER", &["say:hello+complain:oh+exit:42"]).await[0];
    assert_eq!(service.until(failed, JobStatus::Error).await.exit_code, Some(42));
    let logs = |stream: &str| {
        String::from_utf8(service.cli(&["logs", &failed.to_string(), "--stream", stream]).stdout).unwrap()
    };
    assert_eq!((logs("stdout").as_str(), logs("stderr").as_str()), ("hello\n", "oh\n"));
    for (flow, identifier, code) in [("PROGRAM", "no-such-program", 127), ("IMAGE", "no-such-image:1", 125)] {
        let job = service.insert(flow, &[identifier]).await[0];
        assert_eq!(service.until(job, JobStatus::Error).await.exit_code, Some(code), "{flow}");
    }

    let gentle = cancelled_gently(&service, "DOCKER").await;
    let seen = fs::read_to_string(service.path(&format!("evidence/{gentle}.1.environment"))).unwrap();
    assert!(seen.contains(&format!("CALLSHEET_JOB_ID={gentle}\n")), "{seen}");

    // One that does not listen is killed with its container.
    let deaf = service.insert("DOCKER", &["ignore-term+wait"]).await[0];
    service.begun(deaf, 1).await;
    cancel(&service, deaf).await;
    service.until(deaf, JobStatus::Cancelled).await;
    docker.nothing_left().await;

    // So is one whose shim was killed, and `docker run` with it: only then is it the next one's turn.
    let lost = service.insert("DOCKER", &["wait"]).await[0];
    let next = service.insert("DOCKER", &["wait"]).await[0];
    service.begun(lost, 1).await;
    lose(&service, lost).await;
    service.begun(next, 1).await;
    assert_eq!(docker.containers(), [format!("callsheet-{}", service.job(next).await.run_token.unwrap())]);
    service.go();
    assert_eq!(service.until(next, JobStatus::Completed).await.exit_code, Some(0));
    docker.nothing_left().await;
    service.nothing_alive().await;
}
