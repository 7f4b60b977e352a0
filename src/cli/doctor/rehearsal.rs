//! A private service goes through what may happen to a service, in small.
//!
//! It is this binary, on a scratch directory beside the user's own data, with one flow of a scratch type. On a server,
//! and on a SQLite database that no service uses, its rows are in the user's own tables; a SQLite database allows one
//! service, so beside a running one (or beside open rows, which a service of this database would want to settle) a scratch
//! database on the same disk is used. The evidence is what the commands themselves write down, and `/proc`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::{Finding, Report, shown};
use crate::config::Config;
use crate::domain::database_url::DatabaseUrl;
use crate::domain::{FlowType, JobId, JobStatus, WorkerId};
use crate::store::{Due, NewJob, Store, Use};

/// How long anything may take that has to come about on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A row that is noticed later than this was noticed by luck, not by a watch.
const AT_ONCE: Duration = Duration::from_secs(2);

/// The command of every job here. Its first argument is the directory for what it writes down, its second what to do.
const JOB: &str = r#"
evidence=$1 name=$2
echo $$ >"$evidence/.$name.$$" && mv "$evidence/.$name.$$" "$evidence/$name.pid"
case $name in
  wait*) while [ ! -e "$evidence/$name.go" ]; do sleep 0.05; done; exit 7 ;;
  tree*)
    trap '' TERM
    orphan='trap "" TERM; echo $$ >"$0"; while :; do sleep 1; done'
    if command -v setsid >/dev/null; then (setsid sh -c "$orphan" "$evidence/$name.orphan" &); else (sh -c "$orphan" "$evidence/$name.orphan" &); fi
    while :; do sleep 1; done
    ;;
esac
"#;

/// The private service and all that is made for it.
pub(super) struct Stage {
    scratch: PathBuf,
    program: PathBuf,
    url: DatabaseUrl,
    /// Whether the rows are among the user's own.
    own: bool,
    store: Store,
    flow: FlowType,
    worker: WorkerId,
    service: Option<Child>,
}

impl Stage {
    /// Makes the scratch directory and chooses the database.
    pub(super) async fn set(config: &Config, users: Option<&Store>) -> Result<Self, Finding> {
        const NAME: &str = "trial";
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Finding::failed(NAME, format!("{what}: {error}"), "make the data directory's disk writable for this user")
        };
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|error| failed("no random numbers", &error))?;
        let mark = format!("{:08x}", u32::from_be_bytes(random));
        let beside = config.data_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let scratch = beside.join(format!(".callsheet-doctor-{mark}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&scratch)
            .map_err(|error| failed("can't make a scratch directory", &error))?;
        let set = Self::set_in(config, users, &scratch, &mark).await;
        set.map_err(|error| {
            remove(&scratch);
            failed("the trial can't be set up", &error)
        })
    }

    async fn set_in(
        config: &Config,
        users: Option<&Store>,
        scratch: &Path,
        mark: &str,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let flow: FlowType = format!("CALLSHEET_DOCTOR_{mark}").parse()?;
        let worker: WorkerId = format!("doctor-{mark}").parse()?;
        let own = match (&config.database_url, users) {
            (_, None) => false,
            // A table that somebody already had may be looked at by more than Callsheet.
            _ if config.adopted.is_some() => false,
            (DatabaseUrl::Sqlite(path), Some(store)) => {
                no_service_on(path) && store.open_jobs(&worker, None).await?.is_empty()
            }
            // Rows that are open and nobody's would be this worker's to settle, too.
            (DatabaseUrl::Postgres(_) | DatabaseUrl::MySql(_), Some(store)) => {
                store.open_jobs(&worker, None).await?.is_empty()
            }
        };
        let url = if own { config.database_url.clone() } else { DatabaseUrl::Sqlite(scratch.join("callsheet.db")) };
        let store = match users.filter(|_| own) {
            Some(store) => store.clone(),
            None => {
                let store = Store::connect(&url, Use::Service).await?;
                store.migrate().await?;
                store.close().await;
                Store::connect(&url, Use::Tool).await?
            }
        };
        fs::create_dir(scratch.join("evidence"))?;
        fs::write(scratch.join("job.sh"), JOB)?;
        let argument = |path: &str| {
            // Braces in a path are no placeholders.
            let path = scratch.join(path).to_string_lossy().replace('{', "{{").replace('}', "}}");
            toml::Value::String(path).to_string()
        };
        let text = format!(
            "data_dir = \"data\"\nworker_id = \"{worker}\"\n[http]\nlisten = \"off\"\n[flows.{flow}]\n\
             command = [\"/bin/sh\", {}, {}, \"{{identifier}}\"]\n\
             # Never by itself: what is noticed is noticed by the watch.\nschedule = \"0 0 1 1 *\"\n\
             concurrency = 4\nkill_grace = \"500ms\"\n",
            argument("job.sh"),
            argument("evidence"),
        );
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(scratch.join("callsheet.toml"))?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        let program = std::env::current_exe()?;
        Ok(Self { scratch: scratch.to_owned(), program, url, own, store, flow, worker, service: None })
    }

    /// Everything, in order; a line that fails does not keep the next one from being tried.
    pub(super) async fn play(&mut self, report: &mut Report<'_>) {
        let place = if self.own { "in your own tables" } else { "in a scratch database on the same disk" };
        match self.start().await {
            Ok(took) => {
                report
                    .add(Finding::ok("private service", format!("ready after {}; its rows are {place}", shown(took))));
            }
            Err(why) => {
                report.add(Finding::failed("private service", why, "callsheet check; then callsheet -v serve"));
                return;
            }
        }
        report.add(self.watch().await);
        report.add(self.reattach().await);
        report.add(self.finished_while_away().await);
        report.add(self.tree().await);
        report.add(self.lost().await);
    }

    /// Ends and removes everything, and says what could not be.
    pub(super) async fn strike(mut self) -> Vec<Finding> {
        const NAME: &str = "cleanup";
        let mut left = Vec::new();
        if self.service.is_none() {
            // Its last words: whatever runs is taken over, so that it can be ended in good order.
            let _ = self.start().await;
        }
        let begun = Instant::now();
        loop {
            match self.open().await {
                Ok(open) if open.is_empty() => break,
                Ok(open) => {
                    for job in open {
                        // Asked again in any case, until the deadline.
                        let _ = self.store.request_cancel(job).await;
                    }
                }
                Err(error) => left.push(error),
            }
            if begun.elapsed() > PATIENCE || !left.is_empty() {
                left.push("some of its commands could not be ended".to_owned());
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.end_service(Signal::TERM).await;
        if let Err(error) = self.store.forget(&self.flow, &self.worker).await {
            left.push(format!("the rows of type {} could not be removed: {error}", self.flow));
        }
        if !self.own {
            self.store.close().await;
        }
        if !remove(&self.scratch) {
            left.push(format!("{} could not be removed", self.scratch.display()));
        }
        if left.is_empty() {
            return Vec::new();
        }
        let help = format!("DELETE FROM jobs WHERE type = '{}'; rm -r {}", self.flow, self.scratch.display());
        vec![Finding::failed(NAME, left.join("; "), help)]
    }

    /// How soon a row is noticed that another process commits.
    async fn watch(&self) -> Finding {
        let (name, help) = match self.url {
            DatabaseUrl::Sqlite(_) => (
                "file watch",
                "put the database on a local disk: watches don't work on network file systems; until then `schedule` decides",
            ),
            DatabaseUrl::Postgres(_) => (
                "NOTIFY",
                "connect to the server itself: a pooler in transaction mode drops LISTEN; until then `schedule` decides",
            ),
            DatabaseUrl::MySql(_) => {
                ("poll", "look at how long the database takes for a query; until then `schedule` decides")
            }
        };
        let mut times = Vec::new();
        for n in 0..3 {
            let identifier = format!("quick-{n}");
            let begun = Instant::now();
            let job = match self.enqueue(&identifier).await {
                Ok(job) => job,
                Err(why) => return Finding::failed(name, why, "check the database"),
            };
            if self.pid(&identifier).await.is_none() {
                return Finding::failed(name, format!("job {job} was not started within {}", shown(PATIENCE)), help);
            }
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        let typical = times.get(times.len() / 2).copied().unwrap_or_default();
        if typical > AT_ONCE {
            return Finding::failed(name, format!("a new row was running only after {}", shown(typical)), help);
        }
        Finding::ok(name, format!("a new row is a running command after {}", shown(typical)))
    }

    /// A command does not notice that its service is killed, and the next service takes it over.
    async fn reattach(&mut self) -> Finding {
        const NAME: &str = "re-attach";
        let tried = async {
            let job = self.running("wait-1").await?;
            let pid = self.pid("wait-1").await.ok_or("its command did not start")?;
            self.end_service(Signal::KILL).await;
            if !is_alive(pid) {
                return Err("the command died with its service (in a unit: KillMode=process is missing)".to_owned());
            }
            let took = self.start().await?;
            if !is_alive(pid) {
                return Err("the command died when the service came back".to_owned());
            }
            self.go("wait-1")?;
            self.ended(job, JobStatus::Error, Some(7)).await?;
            let known = self.store.runs(job).await.map_err(|error| error.to_string())?;
            if known.len() != 1 || known.first().and_then(|run| run.pid) != Some(i64::from(pid)) {
                return Err("it was started a second time".to_owned());
            }
            Ok(format!(
                "after kill -9 process {pid} ran on, was taken over by a service that was up after {}, and its exit code came through",
                shown(took)
            ))
        };
        finding(
            NAME,
            tried.await,
            "KillMode=process in the unit; no supervisor that kills the whole process group or container",
        )
    }

    async fn finished_while_away(&mut self) -> Finding {
        const NAME: &str = "ended while away";
        let tried = async {
            let job = self.running("wait-2").await?;
            let pid = self.pid("wait-2").await.ok_or("its command did not start")?;
            self.end_service(Signal::KILL).await;
            self.go("wait-2")?;
            until(|| !is_alive(pid)).await.ok_or("the command did not end")?;
            self.start().await?;
            self.ended(job, JobStatus::Error, Some(7)).await?;
            Ok("a command that ended without a service has its real exit code".to_owned())
        };
        finding(NAME, tried.await, "keep data_dir on a disk that the service can always write to")
    }

    /// A cancelled command that ignores SIGTERM takes an orphan in a session of its own with it.
    async fn tree(&self) -> Finding {
        const NAME: &str = "tree kill";
        let how = if crate::process::has_control_groups() {
            "by control group"
        } else {
            "by sweep (no control group is delegated here)"
        };
        let tried = async {
            let job = self.running("tree-1").await?;
            let pid = self.pid("tree-1").await.ok_or("its command did not start")?;
            let orphan = self.orphan("tree-1").await?;
            let begun = Instant::now();
            self.store.request_cancel(job).await.map_err(|error| error.to_string())?;
            self.ended(job, JobStatus::Cancelled, None).await?;
            if is_alive(pid) || is_alive(orphan) {
                return Err(format!("process {} is still alive", if is_alive(pid) { pid } else { orphan }));
            }
            Ok(format!(
                "{how}: a command that ignores SIGTERM and its orphan were gone {} after the request",
                shown(begun.elapsed())
            ))
        };
        finding(NAME, tried.await, "/proc must be mounted without hidepid, and pidfds allowed (kernel 5.15 or newer)")
    }

    /// A run whose shim is killed is said to be lost, and nothing of it lives on.
    async fn lost(&self) -> Finding {
        const NAME: &str = "lost run";
        let tried = async {
            let job = self.running("tree-2").await?;
            let pid = self.pid("tree-2").await.ok_or("its command did not start")?;
            let orphan = self.orphan("tree-2").await?;
            let shim = parent(pid).and_then(Pid::from_raw).ok_or("the command has no shim")?;
            kill_process(shim, Signal::KILL).map_err(|error| format!("its shim can't be killed: {error}"))?;
            self.ended(job, JobStatus::Error, None).await?;
            if is_alive(pid) || is_alive(orphan) {
                return Err(format!("process {} is still alive", if is_alive(pid) { pid } else { orphan }));
            }
            Ok("a run whose shim was killed is recorded as lost, and nothing of it lives on".to_owned())
        };
        finding(NAME, tried.await, "/proc must be mounted without hidepid, so that what a run left can be found")
    }

    async fn enqueue(&self, identifier: &str) -> Result<JobId, String> {
        let new = NewJob {
            flow: self.flow.clone(),
            identifier: identifier.to_owned(),
            payload: None,
            priority: 0,
            due: Due::After(Duration::ZERO),
            maximum_attempts: Some(1),
            unique_key: None,
            trace: None,
        };
        let enqueued = self.store.enqueue(&[new]).await.map_err(|error| error.to_string())?;
        enqueued.first().map(|job| job.id).ok_or_else(|| "no job was enqueued".to_owned())
    }

    /// A job whose row says that it runs.
    async fn running(&self, identifier: &str) -> Result<JobId, String> {
        let job = self.enqueue(identifier).await?;
        self.ended_or(job, JobStatus::Progress).await?;
        Ok(job)
    }

    async fn ended(&self, job: JobId, status: JobStatus, exit_code: Option<i64>) -> Result<(), String> {
        let found = self.ended_or(job, status).await?;
        if found == exit_code { Ok(()) } else { Err(format!("its exit code is {found:?} and should be {exit_code:?}")) }
    }

    /// Waits for a status and gives the exit code.
    async fn ended_or(&self, job: JobId, status: JobStatus) -> Result<Option<i64>, String> {
        let begun = Instant::now();
        loop {
            let row = self.store.job(job).await.map_err(|error| error.to_string())?;
            let row = row.ok_or_else(|| format!("job {job} is gone"))?;
            if row.status == status {
                return Ok(row.exit_code);
            }
            if row.status.is_final() || begun.elapsed() > PATIENCE {
                let error = row.error.as_deref().and_then(|error| error.lines().next()).unwrap_or_default();
                return Err(format!("job {job} is {} and should be {status}: {error}", row.status));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn open(&self) -> Result<Vec<JobId>, String> {
        let filter = crate::store::JobFilter {
            types: vec![self.flow.as_str().to_owned()],
            statuses: vec![JobStatus::Pending, JobStatus::InQueue, JobStatus::Progress],
            limit: 100,
            ..Default::default()
        };
        let page = self.store.list(&filter).await.map_err(|error| error.to_string())?;
        Ok(page.rows.into_iter().map(|row| row.id).collect())
    }

    /// What a command says its process id is; `None` where it does not say it in time.
    async fn pid(&self, name: &str) -> Option<i32> {
        self.number(&format!("{name}.pid")).await
    }

    async fn orphan(&self, name: &str) -> Result<i32, String> {
        self.number(&format!("{name}.orphan")).await.ok_or_else(|| "its orphan did not start".to_owned())
    }

    async fn number(&self, file: &str) -> Option<i32> {
        let path = self.scratch.join("evidence").join(file);
        let read = || fs::read_to_string(&path).ok()?.strip_suffix('\n')?.parse().ok();
        let mut found = None;
        until(|| {
            found = read();
            found.is_some()
        })
        .await?;
        found
    }

    fn go(&self, name: &str) -> Result<(), String> {
        let path = self.scratch.join("evidence").join(format!("{name}.go"));
        File::create(path).map(drop).map_err(|error| error.to_string())
    }

    /// Starts the service, and waits until it says that it is ready.
    #[expect(clippy::disallowed_methods, reason = "the service that is to be killed is no job")]
    async fn start(&mut self) -> Result<Duration, String> {
        let path = self.scratch.join("service.log");
        let log =
            OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(|error| error.to_string())?;
        let ready = || fs::read_to_string(&path).unwrap_or_default().matches("the service is ready").count();
        let before = ready();
        let begun = Instant::now();
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.scratch.join("callsheet.toml")).args(["serve", "--no-migrate"]);
        // In the environment rather than in a file or an argument: it may hold a password.
        command.env("DATABASE_URL", exposed(&self.url)).env_remove("CALLSHEET_CONFIG").env_remove("RUST_LOG");
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let child =
            self.service.insert(spawned.map_err(|error| format!("can't start {}: {error}", self.program.display()))?);
        loop {
            if ready() > before {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > PATIENCE || !matches!(child.try_wait(), Ok(None)) {
                let log = fs::read_to_string(&path).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it said nothing").to_owned();
                self.end_service(Signal::KILL).await;
                return Err(format!("the private service does not start: {last}"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn end_service(&mut self, signal: Signal) {
        let Some(mut child) = self.service.take() else { return };
        // It may have ended already, which is what is wanted.
        let _ = kill_process(Pid::from_child(&child), signal);
        if until(|| !matches!(child.try_wait(), Ok(None))).await.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mut child) = self.service.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn finding(name: &'static str, tried: Result<String, String>, help: &str) -> Finding {
    match tried {
        Ok(detail) => Finding::ok(name, detail),
        // A machine without a shell (a small container) can't play the commands of this trial.
        Err(why) if why.contains("/bin/sh") => Finding::skipped(name, why),
        Err(why) => Finding::failed(name, why, help),
    }
}

/// Waits for a fact; `None` where it does not come about in time.
async fn until(mut fact: impl FnMut() -> bool) -> Option<()> {
    let begun = Instant::now();
    while !fact() {
        if begun.elapsed() > PATIENCE {
            return None;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Some(())
}

fn exposed(url: &DatabaseUrl) -> String {
    match url {
        DatabaseUrl::Sqlite(_) => url.to_string(),
        DatabaseUrl::Postgres(url) | DatabaseUrl::MySql(url) => url.expose().to_owned(),
    }
}

/// Whether no service holds the lock of this SQLite database.
fn no_service_on(path: &Path) -> bool {
    match OpenOptions::new().append(true).open(crate::app::database_lock(path)) {
        Ok(file) => file.try_lock().is_ok(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// State and parent of a process (proc(5)); a zombie counts as dead.
fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid).map(|(_, parent)| parent)
}

fn stat(pid: i32) -> Option<(String, i32)> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = line.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

/// A shim that is just going may still write its last file, so a directory that is not empty is tried again.
fn remove(scratch: &Path) -> bool {
    for _ in 0..40 {
        if fs::remove_dir_all(scratch).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}
