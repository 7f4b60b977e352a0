//! A real Docker daemon, for one test: without systemd, without a network, and with this machine's own programs as its image.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::eventually;
use super::processes::say_skipped;
use super::tools::{program, run};

/// It ends with this.
pub struct Docker {
    scratch: TempDir,
    watchdog: Child,
}

impl Docker {
    /// `None` where it is not installed, or can't be run.
    ///
    /// # Panics
    /// Where it is there and does not start, or where it is not there and this is CI.
    pub async fn start(test: &str) -> Option<Self> {
        let programs = ["dockerd", "docker", "docker-init"].map(program);
        let [Some(_), Some(_), Some(_)] = programs else { return None };
        if !rustix::process::geteuid().is_root() {
            say_skipped(test, "dockerd needs root");
            return None;
        }
        let scratch = tempfile::Builder::new().prefix("cdocker").tempdir().unwrap();
        // `cat` ends when this process does, however it does.
        let script = r#"dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" -H "unix://$1/socket" \
                --bridge=none --iptables=false --ip6tables=false --storage-driver=vfs >"$1/log" 2>&1 & pid=$!
            cat >/dev/null; kill $pid
            (sleep 20; kill -9 $pid) >/dev/null 2>&1 & killer=$!; wait $pid; kill $killer"#;
        let mut watchdog = Command::new("/bin/sh");
        watchdog.args(["-c", script, "sh"]).arg(scratch.path()).stdin(Stdio::piped());
        let docker = Self { watchdog: watchdog.spawn().unwrap(), scratch };
        eventually("Docker to answer", async || docker.command(&["version"]).output().unwrap().status.success()).await;
        fs::create_dir(docker.scratch.path().join("image")).unwrap();
        let packed = docker.scratch.path().join("image.tar");
        run(Command::new("tar").arg("-C").arg(docker.scratch.path().join("image")).arg("-cf").arg(&packed).arg("."));
        run(docker.command(&["import"]).arg(&packed).arg("test:1"));
        Some(docker)
    }

    /// What `DOCKER_HOST` is to be.
    pub fn host(&self) -> String {
        format!("unix://{}/socket", self.scratch.path().display())
    }

    /// Arguments of `docker run` that show a container this machine's programs, and a directory of its own place.
    pub fn mounts(shown: &Path) -> Vec<String> {
        let programs = ["/bin", "/lib", "/lib64", "/usr"].map(|place| format!("--volume={place}:{place}:ro"));
        programs.into_iter().chain([format!("--volume={0}:{0}", shown.display())]).collect()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(arguments).env("DOCKER_HOST", self.host()).stdin(Stdio::null());
        command
    }

    /// Every container that there is, whether or not it runs, by its name.
    pub fn containers(&self) -> Vec<String> {
        let said = run(&mut self.command(&["ps", "--all", "--format={{.Names}}"]));
        said.lines().map(ToOwned::to_owned).collect()
    }

    pub async fn nothing_left(&self) {
        eventually("all containers to be gone", async || self.containers().is_empty()).await;
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        self.watchdog.wait().ok();
    }
}
