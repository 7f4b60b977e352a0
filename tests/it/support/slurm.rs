//! A real Slurm of one node, for one test: munge, controller and node daemon, without systemd.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::eventually;
use super::tools::{program, run};

/// Its daemons end with this.
pub struct Slurm {
    scratch: TempDir,
    watchdog: Child,
}

impl Slurm {
    /// `None` where it is not installed.
    ///
    /// # Panics
    /// Where it is there and does not start, or where it is not there and this is CI.
    pub async fn start() -> Option<Self> {
        let daemons = ["munged", "slurmctld", "slurmd"].map(program);
        let [Some(_), Some(_), Some(_)] = daemons else { return None };
        let scratch = tempfile::Builder::new().prefix("cslurm").tempdir().unwrap();
        let here = scratch.path();
        fs::write(here.join("key"), [7; 1024]).unwrap();
        fs::set_permissions(here.join("key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        for directory in ["state", "spool"] {
            fs::create_dir(here.join(directory)).unwrap();
        }
        fs::write(here.join("slurm.conf"), configuration(here)).unwrap();
        // `cat` ends when this process does, however it does.
        let script = r#"cd "$1" || exit
            munged --foreground --key-file="$1/key" --socket="$1/munge" --pid-file="$1/munge.pid" \
                --log-file="$1/munge.log" --seed-file="$1/munge.seed" >>munged.out 2>&1 & pids=$!
            while [ ! -S munge ] && kill -0 $! ; do sleep 0.02; done
            slurmctld -D -i >>slurmctld.out 2>&1 & pids="$pids $!"
            slurmd -D >>slurmd.out 2>&1 & pids="$pids $!"
            cat >/dev/null; kill $pids
            (sleep 10; kill -9 $pids) >/dev/null 2>&1 & killer=$!; wait $pids; kill $killer"#;
        let mut watchdog = Command::new("/bin/sh");
        watchdog.args(["-c", script, "sh"]).arg(here).env("SLURM_CONF", here.join("slurm.conf")).stdin(Stdio::piped());
        let slurm = Self { watchdog: watchdog.spawn().unwrap(), scratch };
        eventually(&format!("Slurm to be ready, see {}", slurm.scratch.path().display()), async || {
            let asked = slurm.command("sinfo").args(["-h", "-o", "%T"]).output().unwrap();
            String::from_utf8_lossy(&asked.stdout).trim() == "idle"
        })
        .await;
        Some(slurm)
    }

    pub fn configuration(&self) -> PathBuf {
        self.scratch.path().join("slurm.conf")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.configuration()).stdin(Stdio::null());
        command
    }

    /// Every job that it knows of and that has not ended: its name and its state.
    pub fn queue(&self) -> Vec<(String, String)> {
        let said = run(self.command("squeue").args(["-h", "-o", "%j %T"]));
        let jobs = said.lines().filter_map(|line| line.split_once(' '));
        jobs.map(|(name, state)| (name.to_owned(), state.to_owned())).collect()
    }

    pub async fn nothing_left(&self) {
        eventually("Slurm's queue to be empty", async || self.queue().is_empty()).await;
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        self.watchdog.wait().ok();
    }
}

fn configuration(here: &Path) -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = name.split('.').next().unwrap_or(&name);
    let here = here.display();
    // As whoever runs the tests; they say themselves what the task sees and may use.
    let user = run(Command::new("id").arg("-un"));
    let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [controller, node] = ports.each_ref().map(|port| port.local_addr().unwrap().port());
    format!(
        "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={controller}\nSlurmdPort={node}\n\
         SlurmUser={user}SlurmdUser={user}AuthType=auth/munge\nAuthInfo=socket={here}/munge\nCredType=cred/munge\n\
         StateSaveLocation={here}/state\nSlurmdSpoolDir={here}/spool\n\
         SlurmctldPidFile={here}/slurmctld.pid\nSlurmdPidFile={here}/slurmd.pid\n\
         ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\nSwitchType=switch/none\n\
         JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none\n\
         SchedulerType=sched/builtin\nSelectType=select/cons_tres\nReturnToService=2\nKillWait=2\n\
         SlurmdParameters=config_overrides\n\
         NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN\n\
         PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
    )
}
