//! A real PostgreSQL for the tests of one process: its own cluster, reached by a socket in its own directory.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

use std::io::Write as _;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The user that a server may run as when the tests run as root, which PostgreSQL refuses: `nobody`.
const NOBODY: u32 = 65534;

struct Cluster {
    programs: PathBuf,
    directory: PathBuf,
    /// Its end of the pipe keeps the server alive: the watchdog stops it when this process is gone, however it went.
    _watchdog: Option<Child>,
}

/// The URL of a new, empty database; `None` where no PostgreSQL is installed.
///
/// # Panics
/// Where PostgreSQL is there and does not work, or where it is not there and this is CI.
pub fn database() -> Option<String> {
    static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let cluster = CLUSTER.get_or_init(start).as_ref()?;
    let name = format!("test{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    cluster.psql("postgres", &format!("CREATE DATABASE {name}"));
    Some(format!("postgres:///{name}?host={}&user=callsheet", cluster.directory.display()))
}

/// A PostgreSQL of one test's own, to be stopped, killed and started again; it ends with this.
pub struct Server {
    programs: PathBuf,
    directory: PathBuf,
    watchdog: Option<Child>,
    fsync: bool,
}

impl Server {
    /// A server that runs, with an empty database; `None` where no PostgreSQL is installed.
    ///
    /// # Panics
    /// As [`database`].
    pub fn start() -> Option<Self> {
        Self::start_with(false)
    }

    /// [`Self::start`] of one that waits for the disk at each commit.
    pub fn durable() -> Option<Self> {
        Self::start_with(true)
    }

    fn start_with(fsync: bool) -> Option<Self> {
        let programs = programs_or_skip()?;
        let directory = new_cluster(&programs);
        let mut server = Self { programs, directory, watchdog: None, fsync };
        server.start_again();
        server.cluster(|cluster| cluster.psql("postgres", "CREATE DATABASE test"));
        Some(server)
    }

    /// The URL of its database.
    pub fn url(&self) -> String {
        format!("postgres:///test?host={}&user=callsheet", self.directory.display())
    }

    /// Runs SQL in its database.
    pub fn sql(&self, sql: &str) {
        self.cluster(|cluster| cluster.psql("test", sql));
    }

    /// All that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap()
    }

    /// What its processes that live have used of processors.
    pub fn processor_time(&self) -> Duration {
        let data = self.directory.join("data");
        let ours = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let ours = ours.filter(|path| std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd == data));
        let ticks = ours.filter_map(|path| {
            // Fields 14 and 15 of proc(5); the first after the name is field 3.
            let stat = std::fs::read_to_string(path.join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
            Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
        });
        Duration::from_secs(ticks.sum::<u64>()) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.join(".s.PGSQL.5432")
    }

    /// Sends this signal to the postmaster: INT for a fast stop, KILL for a crash. Returns when it is gone.
    pub fn end(&mut self, signal: rustix::process::Signal) {
        let file = std::fs::read_to_string(self.directory.join("data/postmaster.pid")).unwrap();
        let pid = rustix::process::Pid::from_raw(file.lines().next().unwrap().trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        // Its backends see that it is gone, and only without them another one can start.
        let data = self.directory.join("data");
        let any_left = || {
            let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
            processes.any(|process| std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == data))
        };
        while any_left() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stop_watchdog();
    }

    /// Starts it (again), and returns when it answers.
    pub fn start_again(&mut self) {
        self.watchdog = Some(serve(&self.programs, &self.directory, false, self.fsync));
        self.cluster(Cluster::wait);
    }

    /// A streaming replica of this server. From now on this one acknowledges no commit that the replica does not have.
    #[allow(dead_code, reason = "of the chaos program only")]
    pub fn replica(&self) -> Self {
        let directory = new_directory();
        let data = directory.join("data");
        let copied = program(&self.programs.join("pg_basebackup"))
            .args(["-R", "-X", "stream", "--checkpoint=fast", "--no-sync", "-U", "callsheet", "-D"])
            .arg(&data)
            .arg("-h")
            .arg(&self.directory)
            .output()
            .unwrap();
        assert!(copied.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&copied.stderr));
        // The last line of a setting holds. Once it is a primary itself it waits for nobody.
        let mut settings = std::fs::OpenOptions::new().append(true).open(data.join("postgresql.auto.conf")).unwrap();
        settings.write_all(b"synchronous_standby_names = ''\nwal_retrieve_retry_interval = 200ms\n").unwrap();
        let mut replica = Self { programs: self.programs.clone(), directory, watchdog: None, fsync: self.fsync };
        replica.start_again();
        self.cluster(|cluster| {
            cluster.until("SELECT 1 / count(*) FROM pg_stat_replication WHERE state = 'streaming'");
            cluster.psql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'");
            cluster.psql("postgres", "SELECT pg_reload_conf()");
            cluster.until("SELECT 1 / count(*) FROM pg_stat_replication WHERE sync_state = 'sync'");
        });
        replica
    }

    /// Makes a replica a primary, and returns when it is one.
    #[allow(dead_code, reason = "of the chaos program only")]
    pub fn promote(&self) {
        self.cluster(|cluster| cluster.psql("postgres", "SELECT 1 / pg_promote()::int"));
    }

    fn stop_watchdog(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.stdin.take());
            watchdog.wait().unwrap();
        }
    }

    fn cluster(&self, work: impl FnOnce(&Cluster)) {
        work(&Cluster { programs: self.programs.clone(), directory: self.directory.clone(), _watchdog: None });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_watchdog();
        std::fs::remove_dir_all(&self.directory).ok();
    }
}

impl Cluster {
    fn wait(&self) {
        self.until("SELECT 1");
    }

    /// Waits until this statement succeeds.
    fn until(&self, sql: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.try_psql("postgres", sql);
            if output.status.success() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "PostgreSQL is not as it should be by {sql}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn try_psql(&self, database: &str, sql: &str) -> Output {
        program(&self.programs.join("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "callsheet", "-d", database, "-c", sql, "-h"])
            .arg(&self.directory)
            .output()
            .unwrap()
    }

    fn psql(&self, database: &str, sql: &str) {
        let output = self.try_psql(database, sql);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn start() -> Option<Cluster> {
    let programs = programs_or_skip()?;
    let directory = new_cluster(&programs);
    let watchdog = serve(&programs, &directory, true, false);
    let cluster = Cluster { programs, directory, _watchdog: Some(watchdog) };
    cluster.wait();
    Some(cluster)
}

fn programs_or_skip() -> Option<PathBuf> {
    let found = programs();
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no PostgreSQL (initdb) found, and CI must not skip these tests");
        // Not `eprintln!`, which libtest swallows: nobody should think that these tests have run.
        let _ = std::io::stderr().write_all(b"skipped: no PostgreSQL (initdb) found\n");
    }
    found
}

fn new_directory() -> PathBuf {
    // Not TMPDIR: a socket's path has to be short, and `nobody` has to get there.
    let directory = tempfile::Builder::new().prefix("callsheet-pg-").tempdir_in("/tmp").unwrap().keep();
    if is_root() {
        chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    directory
}

fn new_cluster(programs: &Path) -> PathBuf {
    let directory = new_directory();
    let data = directory.join("data");
    let initdb = program(&programs.join("initdb"))
        .args(["-A", "trust", "--no-sync", "-U", "callsheet", "-E", "UTF8", "--locale=C", "-D"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
    directory
}

/// Starts the server; what is returned is its watchdog.
fn serve(programs: &Path, directory: &Path, remove: bool, fsync: bool) -> Child {
    // `cat` ends when the last writing end of its standard input is closed, and only this process has one.
    let script = r#""$1/postgres" -D "$2/data" -k "$2" -c listen_addresses= -c fsync="$4" -c max_connections=300 \
        >>"$2/log" 2>&1 & server=$!; cat >/dev/null; kill -QUIT $server; wait $server; [ "$3" = keep ] || rm -rf "$2""#;
    program(Path::new("/bin/sh"))
        .args(["-c", script, "sh"])
        .args([programs, directory])
        .args([if remove { "remove" } else { "keep" }, if fsync { "on" } else { "off" }])
        .stdin(Stdio::piped())
        // Ctrl-C in a terminal reaches the whole process group; the watchdog has to outlive it.
        .process_group(0)
        .spawn()
        .unwrap()
}

/// A command as the server's user and in its language, without the settings of the person who runs the tests.
#[expect(clippy::disallowed_methods, reason = "these are no jobs")]
fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C").current_dir("/");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The directory with initdb and postgres: from PATH, or where Debian puts them.
fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debian =
        std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    std::env::split_paths(&path)
        .filter_map(|directory| directory.join("initdb").canonicalize().ok()?.parent().map(Path::to_owned))
        .chain(debian)
        .find(|directory| directory.join("postgres").is_file() && directory.join("psql").is_file())
}
