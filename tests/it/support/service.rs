//! A real service of the real binary in a scratch directory, and what its commands write about themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use callsheet::config::{Config, Overrides};
use callsheet::domain::database_url::DatabaseUrl;
use callsheet::domain::{JobId, JobStatus, Timestamp};
use callsheet::store::{EventRow, JobRow, RunRow, Store, Use};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use tempfile::TempDir;

use super::eventually;
use super::processes::is_alive;

/// The command of every test flow: writes down when it began and ended, and does in between what its identifier says,
/// words joined by `+`: `run:SECONDS`, `wait` (until the test makes `<evidence>/go`), `wait:NAME` (until it makes
/// `<evidence>/go.NAME`), `exit:CODE`, `kill:SIGNAL`, `ignore-term`, `say:WORD`, `complain:WORD`, `flood:BYTES`, `daemon`
/// (leaves a process in a session of its own that ignores SIGTERM), `progress:N`. A flow with `SLOTS` in its `env` says how
/// many of its commands may be alive at once; whoever has a `DEVICE`, or `ALONE` (a file, of several workers too), must be
/// the only one alive that has it. `environment` is written before the start is told.
const JOB: &str = include_str!("job.sh");

/// A client of a database that has nothing to do with Callsheet. Without sqlx's task that looks after idle connections, which may
/// count for ever (`Trust::kept_by` in `src/store/place.rs` tells why).
pub async fn connect(url: impl Into<String>) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.idle_timeout(None).max_lifetime(None);
    Database::connect(options).await.unwrap()
}

/// A service and everything around it.
pub struct Service {
    pub scratch: TempDir,
    pub store: Store,
    pub url: String,
    /// What the service finds in its environment besides.
    pub env: Vec<(String, String)>,
    /// What its command line says besides.
    pub arguments: Vec<String>,
    /// The binary; another one for tests of upgrades.
    pub program: PathBuf,
    /// A program that becomes it, with its arguments; none as a rule.
    pub through: Vec<String>,
    child: Option<Child>,
}

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Sqlite,
    Postgres,
    MariaDb,
}

/// What a command wrote about one of its attempts.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    pub job: i64,
    pub attempt: u32,
    pub pid: i32,
    pub start: f64,
    pub end: Option<f64>,
}

impl Service {
    /// A scratch directory and database with these flows (TOML without `command`; `{job}` in it stands for the command
    /// of the tests), and no service yet. `None` where the database is not to be had.
    pub async fn prepare(on: On, flows: &str) -> Option<Self> {
        let url = match on {
            On::Sqlite => None,
            On::Postgres => Some(super::postgres::database()?),
            On::MariaDb => Some(super::mariadb::database()?),
        };
        Some(Self::prepare_at(url, flows).await)
    }

    /// [`Self::prepare`] with the tables made by another release.
    pub async fn prepare_by(on: On, flows: &str, other: &Path) -> Option<Self> {
        let url = match on {
            On::Sqlite => None,
            On::Postgres => Some(super::postgres::database()?),
            On::MariaDb => Some(super::mariadb::database()?),
        };
        Some(Self::prepare_with(url, flows, Some(other)).await)
    }

    /// [`Self::prepare`] with the database at this URL; `None` for a SQLite file in the scratch directory.
    pub async fn prepare_at(url: Option<String>, flows: &str) -> Self {
        Self::prepare_with(url, flows, None).await
    }

    async fn prepare_with(url: Option<String>, flows: &str, other: Option<&Path>) -> Self {
        let scratch = scratch(flows);
        let url = url.unwrap_or_else(|| format!("sqlite://{}/data/callsheet.db", scratch.path().display()));
        let program = other.unwrap_or(Path::new(env!("CARGO_BIN_EXE_callsheet"))).to_owned();
        if other.is_some() {
            let mut migrate = Command::new(&program);
            migrate.arg("--config").arg(scratch.path().join("callsheet.toml")).args(["migrate", "up"]);
            assert!(migrate.env("DATABASE_URL", &url).status().unwrap().success());
        }
        let parsed: DatabaseUrl = url.parse().unwrap();
        let store = Store::connect(&parsed, Use::Service).await.unwrap();
        if other.is_none() {
            store.migrate().await.unwrap();
        }
        Self { scratch, store, url, env: Vec::new(), arguments: Vec::new(), program, through: Vec::new(), child: None }
    }

    /// A scratch directory with these flows and tables, one of them adopted as `section` says, of which nothing is checked.
    pub async fn prepare_adopted(flows: &str, tables: &str, section: &str) -> Option<Self> {
        let url = super::postgres::database()?;
        let scratch = scratch(&format!("{flows}{section}"));
        let overrides = Overrides {
            config: Some(scratch.path().join("callsheet.toml")),
            database_url: Some(url.clone()),
            data_dir: None,
        };
        let store = Store::of(&Config::load(&overrides).unwrap(), Use::Service).await.unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_callsheet")).to_owned();
        let service = Self {
            scratch,
            store,
            url,
            env: Vec::new(),
            arguments: Vec::new(),
            program,
            through: Vec::new(),
            child: None,
        };
        service.sql(tables).await;
        Some(service)
    }

    /// [`Self::prepare`], and the service started and ready.
    pub async fn start(on: On, flows: &str) -> Option<Self> {
        let mut service = Self::prepare(on, flows).await?;
        service.serve().await;
        Some(service)
    }

    /// Adds to the configuration: keys of the top level, then tables.
    pub fn configure(&self, more: &str) {
        let config = fs::read_to_string(self.path("callsheet.toml")).unwrap();
        let tables = if more.starts_with('[') { Some(0) } else { more.find("\n[").map(|end| end + 1) };
        let (keys, tables) = more.split_at(tables.unwrap_or(more.len()));
        fs::write(self.path("callsheet.toml"), config.replace("# more\n", keys) + tables).unwrap();
    }

    /// Starts the service and waits until it is ready.
    pub async fn serve(&mut self) {
        self.serve_with(&[]).await;
    }

    /// The same with these variables in its environment.
    pub async fn serve_with(&mut self, variables: &[(&str, &str)]) {
        assert!(self.serve_or_die(variables).await, "the service ended:\n{}", self.log());
    }

    /// Starts the service and waits until it is ready, or killed: then `false`.
    pub async fn try_serve(&mut self) -> bool {
        self.serve_or_die(&[]).await
    }

    async fn serve_or_die(&mut self, variables: &[(&str, &str)]) -> bool {
        let before = self.ready_lines();
        self.spawn_with(variables);
        eventually("the service to be ready", async || self.is_dead() || self.ready_lines() > before).await;
        let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
        if let Some(code) = ended.and_then(|status| status.code()) {
            panic!("the service ended with code {code}:\n{}", self.log());
        }
        ended.is_none()
    }

    /// Starts the service and waits for nothing.
    pub fn spawn(&mut self) {
        self.spawn_with(&[]);
    }

    fn spawn_with(&mut self, variables: &[(&str, &str)]) {
        assert!(self.is_dead(), "one service at a time");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("service.log")).unwrap();
        let mut command = self.command();
        command.envs(self.env.iter().map(|(name, value)| (name, value))).envs(variables.iter().copied());
        command.arg("serve").args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Whether there is no service, or none any more.
    pub fn is_dead(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// The service's process id.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("a running service").id().cast_signed()
    }

    fn ready_lines(&self) -> usize {
        ready(&self.log()).count()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("service.log")).unwrap_or_default()
    }

    /// The address that the service says it listens on.
    pub fn address(&self) -> String {
        let log = self.log();
        let line = ready(&log).last().expect("a service that was ready");
        let (_, after) = line.rsplit_once("http").expect("an address in the log");
        let of_address = |letter: &char| letter.is_ascii_digit() || ".:".contains(*letter);
        after.chars().skip_while(|letter| !letter.is_ascii_digit()).take_while(of_address).collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Ends the service as a power cut would, and its helper with it.
    pub fn kill_9(&mut self) {
        let mut child = self.child.take().expect("a running service");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Asks the service to stop, and waits until it has.
    pub async fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        self.ended().await;
    }

    /// Waits until the service has ended by itself, in good order.
    pub async fn ended(&mut self) {
        let mut child = self.child.take().expect("a running service");
        let mut status = None;
        eventually("the service to end", async || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        assert!(status.unwrap().success(), "the service ended with {status:?}:\n{}", self.log());
    }

    /// The binary, with this service's configuration.
    pub fn command(&self) -> Command {
        let words: Vec<_> =
            self.through.iter().map(Into::into).chain([self.program.clone().into_os_string()]).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.arg("--config").arg(self.path("callsheet.toml")).env("DATABASE_URL", &self.url).env_remove("NO_COLOR");
        command
    }

    /// Runs the command line to its end.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// A connection of a client that has nothing to do with Callsheet.
    pub async fn foreign(&self) -> DatabaseConnection {
        connect(&self.url).await
    }

    /// Runs SQL as a foreign client.
    pub async fn sql(&self, sql: &str) {
        let connection = self.foreign().await;
        connection.execute_unprepared(sql).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Enqueues by the plainest SQL there is, as a foreign client.
    pub async fn insert(&self, flow: &str, identifiers: &[&str]) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for identifier in identifiers {
            jobs.push(self.insert_row("type, identifier", &format!("'{flow}', '{identifier}'")).await);
        }
        jobs
    }

    /// Enqueues one job with these columns, as a foreign client.
    pub async fn insert_row(&self, columns: &str, values: &str) -> JobId {
        let connection = self.foreign().await;
        let backend = connection.get_database_backend();
        if backend == sea_orm::DbBackend::MySql {
            let insert = format!("INSERT INTO jobs ({columns}) VALUES ({values})");
            let inserted = connection.execute_unprepared(&insert).await.unwrap();
            connection.close().await.unwrap();
            return JobId(inserted.last_insert_id().cast_signed());
        }
        let insert = format!("INSERT INTO jobs ({columns}) VALUES ({values}) RETURNING CAST(id AS bigint) AS id");
        let insert = sea_orm::Statement::from_string(backend, insert);
        let row = connection.query_one_raw(insert).await.unwrap().unwrap();
        connection.close().await.unwrap();
        JobId(row.try_get("", "id").unwrap())
    }

    pub async fn job(&self, id: JobId) -> JobRow {
        patiently(async || self.store.job(id).await).await.unwrap()
    }

    pub async fn runs(&self, id: JobId) -> Vec<RunRow> {
        patiently(async || self.store.runs(id).await).await
    }

    /// The statuses that a job went through, without the first.
    pub async fn changes(&self, id: JobId) -> Vec<String> {
        let events: Vec<EventRow> = patiently(async || self.store.events(id).await).await;
        for pair in events.windows(2) {
            assert_eq!(pair[1].from_status.as_deref(), Some(pair[0].to_status.as_str()), "{events:?}");
        }
        events.into_iter().map(|event| event.to_status).collect()
    }

    pub async fn until(&self, id: JobId, status: JobStatus) -> JobRow {
        eventually(&format!("job {id} to be {status}"), async || {
            let now = self.job(id).await.status;
            assert!(
                !now.is_final() || now == status,
                "job {id} is {now} and not {status}: {:?}\n{}",
                self.job(id).await,
                self.log()
            );
            now == status
        })
        .await;
        self.job(id).await
    }

    /// What the commands wrote about themselves, by job and attempt.
    pub fn evidence(&self) -> BTreeMap<(i64, u32), Evidence> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.path("evidence")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "start") {
                let evidence = read_evidence(&path);
                let before = found.insert((evidence.job, evidence.attempt), evidence);
                assert!(before.is_none(), "{before:?} was started twice");
            }
        }
        found
    }

    /// Waits until an attempt's command has written that it began.
    pub async fn begun(&self, id: JobId, attempt: u32) -> Evidence {
        eventually(&format!("the command of job {id}"), async || self.evidence().contains_key(&(id.0, attempt))).await;
        self.evidence()[&(id.0, attempt)].clone()
    }

    /// Waits until an attempt's command has written that it came to its end, and has ended: a signal can't reach it
    /// any more.
    pub async fn command_ended(&self, id: JobId, attempt: u32) {
        eventually(&format!("the command of job {id} to end"), async || {
            let evidence = self.evidence();
            evidence.get(&(id.0, attempt)).is_some_and(|run| run.end.is_some() && !is_alive(run.pid))
        })
        .await;
    }

    /// Waits until a run has just been confirmed, so that it is not for [`CONFIRMATION`]: when that was.
    pub async fn confirmed(&self, id: JobId) -> Timestamp {
        let (before, mut now) = (self.job(id).await.heartbeat_time, None);
        eventually("the run to be confirmed", async || {
            now = self.job(id).await.heartbeat_time;
            now != before
        })
        .await;
        now.unwrap()
    }

    /// Lets every command that waits go on.
    pub fn go(&self) {
        fs::write(self.path("evidence/go"), "").unwrap();
    }

    /// Lets the commands that wait for this name go on.
    pub fn go_on(&self, name: &str) {
        fs::write(self.path(&format!("evidence/go.{name}")), "").unwrap();
    }

    /// Every living process that has this scratch directory in its command line or a run of it in its environment.
    pub fn alive(&self) -> Vec<(i32, String)> {
        let mark = self.scratch.path().to_str().unwrap().to_owned();
        let mut alive = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let entry = entry.unwrap();
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let read = |file: &str| {
                String::from_utf8_lossy(&fs::read(entry.path().join(file)).unwrap_or_default()).into_owned()
            };
            let (command, environment) = (read("cmdline").replace('\0', " "), read("environ"));
            let is_service = self.child.as_ref().is_some_and(|child| i64::from(child.id()) == i64::from(pid));
            let ours = environment.contains(&format!("CALLSHEET_RUN_DIR={mark}"));
            if !is_service && (ours || command.contains(&format!("{mark}/job.sh"))) {
                alive.push((pid, command));
            }
        }
        alive
    }

    pub async fn nothing_alive(&self) {
        eventually("every process of the runs to be gone", async || self.alive().is_empty()).await;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        // A failed test must not leave its commands behind; killing a command ends its shim.
        for (pid, _) in self.alive() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
        if std::thread::panicking() {
            eprintln!("the service's log:\n{}", self.log());
        }
    }
}

/// The lines of a log, written to their ends, that say so.
fn ready(log: &str) -> impl Iterator<Item = &str> {
    log.split_inclusive('\n').filter(|line| line.ends_with('\n') && line.contains("the service is ready"))
}

/// The directory with everything but the database.
fn scratch(flows: &str) -> TempDir {
    let scratch = tempfile::Builder::new().prefix("cs").tempdir().unwrap();
    fs::create_dir(scratch.path().join("evidence")).unwrap();
    fs::create_dir(scratch.path().join("data")).unwrap();
    fs::write(scratch.path().join("job.sh"), JOB).unwrap();
    let command = format!(
        "command = [\"/bin/bash\", \"{0}/job.sh\", \"{0}/evidence\", \"{{job_id}}\", \"{{attempt}}\", \"{{identifier}}\"]",
        scratch.path().display()
    );
    let config = format!(
        "# more\ndata_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\n[defaults]\nschedule = \"0 0 1 1 *\"\n{}",
        flows.replace("{job}", &command)
    );
    fs::write(scratch.path().join("callsheet.toml"), config).unwrap();
    scratch
}

fn read_evidence(path: &Path) -> Evidence {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let (job, attempt) = name.split_once('.').unwrap();
    let text = fs::read_to_string(path).unwrap();
    // Written to another name first, so what is there is whole.
    let (pid, start) = text.trim().split_once(' ').unwrap();
    let end = fs::read_to_string(path.with_extension("end")).ok();
    Evidence {
        job: job.parse().unwrap(),
        attempt: attempt.parse().unwrap(),
        pid: pid.parse().unwrap(),
        start: start.parse().unwrap(),
        end: end.map(|end| end.trim().parse().unwrap()),
    }
}

/// How many of these were under way at once, at the most, by their own record. One that has no end runs on for ever.
pub fn most_at_once(evidence: &BTreeMap<(i64, u32), Evidence>) -> usize {
    let overlaps =
        |at: f64| evidence.values().filter(|run| run.start <= at && run.end.is_none_or(|end| end > at)).count();
    evidence.values().map(|run| overlaps(run.start)).max().unwrap_or(0)
}

/// The time from one confirmation of a run to the next, which brings a cancel request that no wake-up has brought.
pub const CONFIRMATION: Duration = Duration::from_secs(5);

/// A wait that a test needs because a thing must *not* happen meanwhile.
pub const A_MOMENT: Duration = Duration::from_millis(300);

/// What `read` gives, once the database is there: a connection of ours may have died with a server that a test has killed.
pub async fn patiently<T>(read: impl AsyncFn() -> Result<T, callsheet::store::Error>) -> T {
    let mut found = None;
    eventually("the database to be read", async || match read().await {
        Ok(rows) => {
            found = Some(rows);
            true
        }
        Err(callsheet::store::Error::Unavailable { .. }) => false,
        Err(error) => panic!("{error}"),
    })
    .await;
    found.unwrap()
}
