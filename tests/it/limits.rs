//! Limits and accounting: by real control groups under a real kernel, by nothing but the process tree, and refused where
//! they can't be kept.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use callsheet::domain::JobStatus;
use serde_json::Value;

use crate::on_each_database;
use crate::support::service::{On, Service};
use crate::support::tools::program;

/// The kernel as a program: Debian's package `user-mode-linux`.
const KERNEL: &str = "linux.uml";

const CONFIG: &str = r#"
[http]
listen = "off"
[defaults]
kill_grace = "1s"
[flows.MEMORY]
command = ["python3", "-c", "import time; time.sleep(0.2); x = b'x' * (200 << 20); print(len(x))"]
limits = { memory = "64MiB" }
[flows.PIDS]
command = ["python3", "-c", """
import os, sys, time
for n in range(20):
    try:
        if os.fork() == 0:
            time.sleep(60)
    except OSError:
        sys.exit(3)
"""]
limits = { pids = 5 }
[flows.CPU]
command = ["python3", "-c", "import time\nwhile time.process_time() < 0.6: pass"]
limits = { cpus = 0.2 }
[flows.TREE]
# Each holds its part until all do, however long that takes.
command = ["bash", "-c", """
hold='
import glob, os, time
x = b"x" * (30 << 20)
open("held." + str(os.getpid()), "w")
while len(glob.glob("held.*")) < 3: time.sleep(0.05)
time.sleep(0.5)'
python3 -c "$hold" & python3 -c "$hold" & (setsid python3 -c "$hold" &) ; wait; sleep 1
"""]
working_dir = "{run_dir}"
limits = { memory = "400MiB", pids = 50 }
[flows.FREE]
command = ["bash", "-c", "echo free; kill -9 $$"]
[flows.HUNGRY]
command = ["python3", "-c", "import time; time.sleep(0.2); x = [b'x' * (50 << 20) for _ in range(30)]"]
"#;

struct Guest(tempfile::TempDir);

impl Guest {
    /// Boots a kernel of its own, and has it run the script to its end; `None` where there is none to boot.
    fn run() -> Option<Self> {
        let kernel = program(KERNEL)?;
        let results = tempfile::Builder::new().prefix("cg").tempdir().unwrap();
        fs::write(results.path().join("callsheet.toml"), CONFIG).unwrap();
        let script = results.path().join("init.sh");
        fs::write(&script, include_str!("support/control_groups.sh")).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let console = fs::File::create(results.path().join("console")).unwrap();
        let mut kernel = std::process::Command::new(kernel);
        kernel
            .args(["mem=384M", "rootfstype=hostfs", "rootflags=/", "rw", "con=null", "con0=null,fd:1", "quiet"])
            .arg(format!("uml_dir={}", results.path().display()))
            .arg(format!("init={}", script.display()))
            .args([results.path().to_str().unwrap(), env!("CARGO_BIN_EXE_callsheet")])
            .env("HOME", results.path())
            .env("TMPDIR", results.path())
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console);
        let mut child = kernel.spawn().unwrap();
        let begun = std::time::Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > std::time::Duration::from_secs(600) {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!(
                    "the kernel did not come to an end:\n{}",
                    fs::read_to_string(results.path().join("console")).unwrap()
                );
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let guest = Self(results);
        assert!(guest.has("done"), "the script did not come to its end:\n{}", guest.text("console"));
        Some(guest)
    }

    fn has(&self, name: &str) -> bool {
        self.0.path().join(name).exists()
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.0.path().join(name)).unwrap_or_default()).trim().to_owned()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.text(name)).unwrap_or_else(|error| panic!("{name}: {error}: {}", self.text(name)))
    }
}

#[test]
fn a_real_kernel_holds_runs_to_their_limits_and_counts_what_they_use() {
    let Some(guest) = Guest::run() else { return };
    // Without control groups they are refused, before anything is started, and the exit code is a configuration's.
    for (what, code) in [("without", "without.code"), ("serve-without", "serve-without.code")] {
        assert_eq!(guest.text(code), "2", "{}", guest.text(what));
        assert!(guest.text(what).contains("there is no version 2 tree of control groups"), "{}", guest.text(what));
    }
    for round in ["root", "unit"] {
        assert_eq!(guest.text(&format!("{round}.check.code")), "0", "{}", guest.text(&format!("{round}.check")));
        let job = |id: u32| guest.json(&format!("{round}.{id}.json"));
        let text = |job: &Value| job["error"].as_str().unwrap_or_default().to_owned();
        let run = |job: &Value, key: &str| job["runs"][0][key].as_i64().unwrap_or(-1);

        let memory = job(1);
        let wanted = "the command was killed by signal 9 (SIGKILL); out of memory: the kernel killed it at its limits.memory of 64 MiB";
        assert!(text(&memory).starts_with(wanted), "{round}: {memory:#}");
        let peak = run(&memory, "max_rss_bytes");
        assert!((60 << 20..=64 << 20).contains(&peak), "{round}: a peak of {peak}");

        let pids = job(2);
        assert_eq!(run(&pids, "exit_code"), 3, "{round}: {pids:#}");
        assert!(
            text(&pids).starts_with("the command failed with exit code 3; it was refused a process by its limits.pids")
        );

        let cpu = job(3);
        assert_eq!(cpu["status"], "COMPLETED", "{round}: {cpu:#}");
        let (took, user) =
            (cpu["execution_ms"].as_i64().unwrap(), run(&cpu, "user_cpu_ms") + run(&cpu, "system_cpu_ms"));
        assert!(user >= 500 && took >= 3 * user, "{round}: {user} ms of CPU in {took} ms");

        let tree = job(4);
        assert_eq!(tree["status"], "COMPLETED", "{round}: {tree:#}");
        let peak = run(&tree, "max_rss_bytes");
        assert!((90 << 20..=400 << 20).contains(&peak), "{round}: three of 30 MiB each make a peak of {peak}");

        // Another SIGKILL is told apart.
        let free = job(5);
        assert!(
            text(&free).starts_with("the command was killed by signal 9 (SIGKILL)") && !text(&free).contains("memory")
        );

        // So is the machine's own want of memory, by the group's count in a unit and by the kernel's log without a group.
        let hungry = text(&job(6));
        let wanted = "the command was killed by signal 9 (SIGKILL); out of memory: the kernel killed processes of it";
        assert!(hungry.starts_with(wanted), "{round}: {hungry}");

        assert!(!guest.text(&format!("{round}.left")).contains("callsheet-0"), "groups are left");
    }
    assert_eq!(guest.text("root.group"), "0::/");
    assert_eq!(guest.text("unit.group"), "0::/unit/callsheet-service");
}

async fn limits_that_cannot_be_kept_are_refused_with_the_reason(on: On) {
    let Some(service) = Service::prepare(on, "[flows.ONE]\n{job}\nlimits.pids = 10\n").await else { return };
    let checked = service.cli(&["check"]);
    let refused = String::from_utf8_lossy(&checked.stderr).into_owned();
    if checked.status.success() {
        // This machine can keep them; that it does is tested under a kernel of its own.
        return;
    }
    assert_eq!(checked.status.code(), Some(2), "{refused}");
    assert!(refused.contains("the limits of ONE can't be kept here: "), "{refused}");
    assert!(refused.contains("callsheet.toml:"), "its place is told: {refused}");
    let served = service.cli(&["serve"]);
    assert_eq!(served.status.code(), Some(2), "{}", String::from_utf8_lossy(&served.stderr));
    assert!(String::from_utf8_lossy(&served.stderr).contains("can't be held to their limits: "));
}
on_each_database!(limits_that_cannot_be_kept_are_refused_with_the_reason);

#[tokio::test]
async fn the_whole_tree_is_counted_without_a_control_group_too() {
    // It is looked at after 1, 3, 7 and 15 s, so the two hold what they have for longer than there may be in between.
    let flows = r#"[flows.TREE]
command = ["bash", "-c", """
hold='x = b"x" * (40 << 20); import time; time.sleep(9)'
spin='
import time
while time.process_time() < 0.5: pass
open("spun", "w")'
python3 -c "$hold" & python3 -c "$hold" & (setsid python3 -c "$spin" &)
dd if=/dev/zero of=written bs=1M count=5 conv=fsync status=none; wait
while [ ! -e spun ]; do sleep 0.1; done; sleep 1
"""]
working_dir = "{run_dir}"
"#;
    let Some(service) = Service::start(On::Sqlite, flows).await else { return };
    let job = service.insert("TREE", &["a"]).await[0];
    service.until(job, JobStatus::Completed).await;
    let run = service.runs(job).await.pop().unwrap();
    let peak = run.max_rss_bytes.unwrap();
    assert!(peak >= 80 << 20, "two of 40 MiB at the same time make a peak of {peak}");
    let cpu = run.user_cpu_ms.unwrap() + run.system_cpu_ms.unwrap();
    assert!(cpu >= 450, "one in a session of its own used half a second, all together {cpu} ms");
    assert!(run.io_read_bytes.is_some(), "{run:?}");
    // What is written to memory only is written nowhere.
    if !is_in_memory(service.scratch.path()) {
        assert!(run.io_write_bytes.unwrap() >= 5 << 20, "{run:?}");
    }
    let shown = String::from_utf8(service.cli(&["show", &job.to_string()]).stdout).unwrap();
    for column in ["USER CPU", "SYSTEM CPU", "MEMORY", "READ", "WRITTEN"] {
        assert!(shown.contains(column), "{shown}");
    }
    let json: Value = serde_json::from_slice(&service.cli(&["show", &job.to_string(), "--json"]).stdout).unwrap();
    assert_eq!(json["runs"][0]["io_write_bytes"].as_i64(), run.io_write_bytes);
}

fn is_in_memory(path: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::statfs(path).unwrap().f_type == TMPFS_MAGIC
}
