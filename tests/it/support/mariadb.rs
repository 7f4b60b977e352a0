//! A real MariaDB for the tests of one process: reached by a socket in its own directory, as the PostgreSQL beside it.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

use std::io::Write as _;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The user that a server may run as when the tests run as root, which MariaDB refuses: `nobody`.
const NOBODY: u32 = 65534;

/// Small files that reach the disk when the system likes: the server ends with the tests.
const CHEAP: &str = "--innodb-log-file-size=8M --innodb-buffer-pool-size=64M --innodb-flush-method=nosync \
    --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0";

struct Server {
    directory: PathBuf,
    /// Its end of the pipe keeps the server alive: the watchdog stops it when this process is gone, however it went.
    _watchdog: Child,
}

/// The URL of a new, empty database; `None` where no MariaDB is installed.
///
/// # Panics
/// Where MariaDB is there and does not work, or where it is not there and this is CI.
pub fn database() -> Option<String> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(start).as_ref()?;
    let name = format!("test{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    // Its default character set is `latin1` on purpose: whatever it is, ours says what it needs.
    let output = server.client(&format!("CREATE DATABASE {name} CHARACTER SET latin1"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(format!("mysql://root@localhost/{name}?socket={}/socket", server.directory.display()))
}

impl Server {
    fn client(&self, sql: &str) -> Output {
        program("mariadb")
            .args(["--no-defaults", "-u", "root", "-e", sql, "-S"])
            .arg(self.directory.join("socket"))
            .output()
            .unwrap()
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.client("SELECT 1");
            if output.status.success() {
                return;
            }
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(Instant::now() < deadline, "MariaDB does not start: {said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn start() -> Option<Server> {
    let there = |name: &str| program(name).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there("mariadbd") || !there("mariadb") {
        assert!(std::env::var_os("CI").is_none(), "no MariaDB (mariadbd) found, and CI must not skip these tests");
        // Not `eprintln!`, which libtest swallows: nobody should think that these tests have run.
        let _ = std::io::stderr().write_all(b"skipped: no MariaDB (mariadbd) found\n");
        return None;
    }
    // Not TMPDIR: a socket's path has to be short, and `nobody` has to get there.
    let directory = tempfile::Builder::new().prefix("callsheet-my-").tempdir_in("/tmp").unwrap().keep();
    if is_root() {
        chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let made = program("mariadb-install-db")
        .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
        .args(CHEAP.split_whitespace())
        .arg(format!("--datadir={}", directory.join("data").display()))
        .output()
        .unwrap();
    assert!(made.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&made.stdout));
    let server = Server { _watchdog: serve(&directory), directory };
    server.wait();
    Some(server)
}

/// Starts the server; what is returned is its watchdog.
fn serve(directory: &Path) -> Child {
    // `cat` ends when the last writing end of its standard input is closed, and only this process has one.
    let script = r#"exec 2>/dev/null; mariadbd --no-defaults --datadir="$1/data" --socket="$1/socket" --pid-file="$1/pid" --skip-networking \
        --max-connections=500 --userstat=1 $2 >>"$1/log" 2>&1 & server=$!; cat >/dev/null; kill -KILL $server; wait $server; rm -rf "$1""#;
    program("/bin/sh")
        .args(["-c", script, "sh"])
        .arg(directory)
        .arg(CHEAP)
        .stdin(Stdio::piped())
        // Ctrl-C in a terminal reaches the whole process group; the watchdog has to outlive it.
        .process_group(0)
        .spawn()
        .unwrap()
}

/// A command as the server's user, with the place where Debian puts servers in its path.
#[expect(clippy::disallowed_methods, reason = "these are no jobs")]
fn program(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file());
    let mut command = Command::new(found.unwrap_or_else(|| PathBuf::from(name)));
    command.env("PATH", path).env("LC_ALL", "C").current_dir("/");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
