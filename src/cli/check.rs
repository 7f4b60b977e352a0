//! `check`: everything that would stop the service or a flow, found before it does.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use serde::Serialize;

use super::Context;
use super::ask::{Asked, ask};
use super::failure::{Exit, Failure, ProblemJson, Result, what_to_do};
use super::output::shown_type;
use super::places::{Obstacle, obstacle};
use crate::config::{self, Complaint, Config, FlowConfig, Places, known_tokens, worker_id};
use crate::domain::FlowType;
use crate::domain::database_url::DatabaseUrl;
use crate::domain::template::Template;
use crate::http;
use crate::http::peers::Peers;
use crate::outgoing::Receiver;
use crate::process::check_limits;
use crate::store::{self, Store, Use};

/// Check the configuration and everything that it names; start nothing
///
/// Looks at the file itself, each flow's program and directory, the data directory, and the database.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  callsheet check\n  callsheet --config /etc/callsheet/callsheet.toml check --json\n  callsheet check --ready"
)]
pub(super) struct Args {
    /// Ask the running service whether it is ready instead, and exit with 1 where it is not
    #[arg(long)]
    ready: bool,
}

#[derive(Serialize)]
struct CheckJson {
    ok: bool,
    problems: Vec<ProblemJson>,
    warnings: Vec<ProblemJson>,
    /// What an adopted table lacks, as a script for `psql`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ddl: Option<String>,
}

struct Findings<'a> {
    config: &'a Config,
    places: &'a Places,
    problems: Vec<Complaint>,
    database_problems: Vec<Complaint>,
    warnings: Vec<Complaint>,
    ddl: Option<String>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    if args.ready {
        return ready(context).await;
    }
    let (config, places) = match Config::load_with_places(&context.overrides) {
        Ok(loaded) => loaded,
        Err(error) => return Err(invalid(context, error)?),
    };
    let mut findings = Findings {
        config: &config,
        places: &places,
        problems: Vec::new(),
        database_problems: Vec::new(),
        warnings: Vec::new(),
        ddl: None,
    };
    if config.path.is_none() {
        findings.warn("", "there is no configuration file, so there are no flows", "`callsheet init` writes one");
    } else if config.flows.is_empty() {
        findings.warn("", "the configuration has no flows, so nothing would be run", "add a [flows.TYPE] table");
    }
    findings.places();
    findings.http();
    for flow in config.flows.values() {
        findings.command(flow);
        findings.limits(flow);
        findings.labels(flow);
    }
    findings.database().await;
    findings.report(context)
}

/// What `/readyz` of the service of this configuration says: for a container's health check.
async fn ready(context: &Context) -> Result {
    let Asked { address, status, body } = ask(&context.config()?, "/readyz").await?;
    let body = body.trim_end();
    if status == 200 {
        return Ok(context.output.line(body)?);
    }
    Err(Failure::new(Exit::Failed, format!("the service at {address} is not ready (status {status}): {body}")))
}

/// The configuration itself is wrong; as JSON that is an answer like any other.
fn invalid(context: &Context, error: crate::config::Error) -> Result<Failure> {
    if let (true, crate::config::Error::Invalid(complaints)) = (context.output.json, &error) {
        let problems = complaints.0.iter().map(ProblemJson::from).collect();
        context.output.json(&CheckJson { ok: false, problems, warnings: Vec::new(), ddl: None })?;
        return Ok(Failure::said(Exit::Usage));
    }
    if let crate::config::Error::Invalid(complaints) = error {
        let rest = "programs, directories and the database were not looked at yet";
        return Ok(Failure::invalid(complaints, rest));
    }
    Ok(error.into())
}

impl Findings<'_> {
    fn problem(&mut self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        self.problems.push(self.places.complaint(key, message, Some(help.into())));
    }

    fn warn(&mut self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        self.warnings.push(self.places.complaint(key, message, Some(help.into())));
    }

    fn places(&mut self) {
        let path = &self.config.data_dir;
        let (shown, user) = (path.display(), rustix::process::geteuid().as_raw());
        // One that others may write to could be used, until there are runs in it.
        if let Some(owner) = std::fs::metadata(path).ok().filter(|found| found.is_dir() && found.uid() != user) {
            let message =
                format!("the data directory {shown} belongs to user {}, and this is user {user}", owner.uid());
            let help = format!("run as its owner, or give it to this user: chown {user} {shown}");
            return self.problem("data_dir", message, help);
        }
        if let Some(Obstacle { key, message, help }) = obstacle(self.config) {
            return self.problem(key, message, help);
        }
        if self.config.worker_id.is_none()
            && path.join("worker_id").exists()
            && let Err(error) = worker_id(self.config)
        {
            self.problem("data_dir", error.to_string(), "the file keeps what this worker calls itself");
        }
    }

    fn http(&mut self) {
        if let Some(tls) = &self.config.http.tls
            && let Err(error) = http::check_tls(tls)
        {
            let key = if error.to_string().contains(&*tls.key.to_string_lossy()) { "key" } else { "certificate" };
            let help = "http.tls wants the certificate and its private key, each in PEM and readable by this user";
            self.problem(&format!("http.tls.{key}"), error.to_string(), help);
        }
        for webhook in &self.config.webhooks {
            if let Err(error) = Receiver::of(webhook) {
                self.warn(
                    "",
                    error.to_string(),
                    "the service does not start without; it may be there where the service runs",
                );
            }
        }
        if let Err(error) = Peers::of(&self.config.http) {
            self.warn(
                "",
                error.to_string(),
                "the service does not start without; it may be there where the service runs",
            );
        }
        match known_tokens(&self.config.http) {
            Err(error @ config::Error::TokenUnfit { .. }) => {
                self.problem("", error.to_string(), "look for a line break at its end");
            }
            // It may be set where the service runs, which need not be here.
            Err(error) => {
                self.warn("", error.to_string(), "the service needs it in its environment, and does not start without");
            }
            Ok(_) => {}
        }
        if let Err(error) = config::otlp_endpoint(self.config) {
            self.problem("", error.to_string(), "write http://HOST:PORT, or take it out of the environment");
        }
    }

    fn command(&mut self, flow: &FlowConfig) {
        let directory = flow.working_dir.as_ref().and_then(|template| template.as_plain()).map(Path::new);
        if let Some(directory) = directory
            && !directory.is_dir()
        {
            let key = format!("flows.{}.working_dir", flow.flow);
            let state = match directory.ancestors().find(|ancestor| ancestor.exists()) {
                Some(found) if found == directory => "is no directory".to_owned(),
                Some(found) if !found.is_dir() => format!("can't exist, since {} is no directory", found.display()),
                _ => "does not exist".to_owned(),
            };
            let message = format!("the working_dir {} of {} {state}", directory.display(), flow.flow);
            self.problem(
                &key,
                message,
                "make it, or name another one; a relative one is relative to the configuration file",
            );
        }
        self.program(flow, "command", &flow.command, directory);
        if let Some(cancel) = &flow.cancel_command {
            self.program(flow, "cancel_command", cancel, directory);
        }
    }

    fn program(&mut self, flow: &FlowConfig, key: &str, words: &[Template], directory: Option<&Path>) {
        // With placeholders in it nobody knows the program before there is a job.
        let Some(program) = words.first().and_then(|template| template.as_plain()) else { return };
        let own_path = flow.env.iter().find(|(name, _)| name == "PATH");
        let path = match own_path {
            Some((_, template)) => template.as_plain().map(Into::into),
            None => Some(std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())),
        };
        let (key, kind) = (format!("flows.{}.{key}", flow.flow), flow.flow.clone());
        let is_relative = program.contains('/') && !program.starts_with('/');
        match find_program(program, directory, path) {
            Found::Executable => {}
            Found::Directory(path) => {
                let message = format!("the program {} of {kind} is a directory", path.display());
                self.problem(&key, message, "write the program's own path");
            }
            Found::NotExecutable(path) => {
                let message = format!("the program {} of {kind} can't be executed by this user", path.display());
                self.problem(&key, message, format!("chmod +x {}", path.display()));
            }
            // Where its directory is wrong nothing can be said about the program.
            Found::Nothing if is_relative && directory.is_some_and(|directory| !directory.is_dir()) => {}
            Found::Nothing if program.contains('/') => {
                let help = if is_relative { "a relative path is relative to working_dir" } else { "check its path" };
                self.problem(&key, format!("the program {program:?} of {kind} does not exist"), help);
            }
            Found::Nothing => {
                let help = "install it, write its whole path, or set PATH for the service";
                self.problem(&key, format!("the program {program:?} of {kind} is not in any directory of PATH"), help);
            }
        }
    }

    fn limits(&mut self, flow: &FlowConfig) {
        if let Err(reason) = check_limits(flow.limits) {
            let message = format!("the limits of {} can't be kept here: {reason}", flow.flow);
            self.problem(
                &format!("flows.{}.limits", flow.flow),
                message,
                "or remove memory, cpus and pids from its limits",
            );
        }
    }

    fn labels(&mut self, flow: &FlowConfig) {
        let lacking = self.config.labels.lacks(&flow.requires);
        if !lacking.is_empty() {
            let message = format!("this worker claims no jobs of {}, which requires {lacking}", flow.flow);
            let help = "add it to `labels` at the top of the file, or leave these jobs to workers that have it";
            self.warn(&format!("flows.{}.requires", flow.flow), message, help);
        }
    }

    async fn database(&mut self) {
        let shown = self.config.database_url.to_string();
        match self.look_into_table().await {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => {
                let complaint =
                    self.places.complaint("store.jobs", format!("{shown}: {}", super::failure::chain(&error)), None);
                self.database_problems.push(complaint);
                return;
            }
        }
        match self.look_into_database().await {
            Ok((strange, in_bytes)) => {
                for (name, waiting) in in_bytes {
                    let rows = if waiting == 1 { "1 row waits".to_owned() } else { format!("{waiting} rows wait") };
                    let message = format!(
                        "{rows} for ever: the type {} was written as a BLOB, which equals the name of no flow",
                        shown_type(&name)
                    );
                    let help =
                        "UPDATE jobs SET type = CAST(type AS TEXT) WHERE typeof(type) = 'blob'; and bind it as a text";
                    self.warn("", message, help);
                }
                for name in strange {
                    let shown = shown_type(&name);
                    let message = format!(
                        "there are open jobs of the type {shown}, which no flow of this worker has; they are left alone"
                    );
                    let near = self.config.flows.keys().find(|flow| flow.as_str().eq_ignore_ascii_case(name.trim()));
                    let help = match (near, name.parse::<FlowType>()) {
                        (Some(near), _) => format!(
                            "did you mean {near}? Upper and lower case count; put their type right, or leave them to another worker"
                        ),
                        (None, Ok(flow)) => format!("add [flows.{flow}], or leave them to another worker"),
                        (None, Err(rule)) => {
                            format!("no flow can have it: {rule}; put their type right, or cancel them")
                        }
                    };
                    self.warn("", message, help);
                }
            }
            // It is made by the first `serve`, `migrate up` or `enqueue`.
            Err(store::Error::NoDatabase { .. } | store::Error::NoDirectory { .. })
                if matches!(self.config.database_url, DatabaseUrl::Sqlite(_)) => {}
            Err(store::Error::SchemaMissing) => {
                let message = format!("the database {shown} lacks tables of this version");
                self.warn("database_url", message, "`callsheet serve` and `callsheet migrate up` make them");
            }
            // That its directory can't be looked into has been said.
            Err(store::Error::Withheld { path, .. })
                if !self.problems.is_empty() && path.starts_with(&self.config.data_dir) => {}
            Err(error) => {
                let message = format!("{shown}: {}", super::failure::chain(&error));
                let help = what_to_do(&error).map(str::to_owned);
                self.database_problems.push(self.places.complaint("database_url", message, help));
            }
        }
    }

    /// The table that is to be adopted: whether it can't be as it is.
    async fn look_into_table(&mut self) -> std::result::Result<bool, store::Error> {
        if self.config.adopted.is_none() {
            return Ok(false);
        }
        let store = Store::of(self.config, Use::Tool).await?;
        let Some(adoption) = store.adoption().await? else { return Ok(false) };
        for unfit in &adoption.unfit {
            // A name that the key does not give has its place at the table's.
            let key = if self.places.has(&unfit.key) { unfit.key.as_str() } else { "store.jobs" };
            self.problem(key, unfit.reason.clone(), unfit.help.clone());
        }
        if !adoption.unfillable.is_empty() {
            let message = format!(
                "only others can insert rows into {}: Callsheet has no value for {}",
                adoption.table,
                adoption.unfillable.join(", ")
            );
            self.warn(
                "store.jobs",
                message,
                "give these columns defaults, or leave `enqueue` and recurring jobs alone",
            );
        }
        if adoption.unfit.is_empty() && !adoption.missing.is_empty() {
            let message = format!("the table {} lacks what Callsheet needs", adoption.table);
            let help = "run the statements that are printed, as the owner of the table: callsheet check | psql … (they are one \
                transaction, and lock the table while they run)";
            self.problem("store.jobs", message, help);
            self.ddl = Some(adoption.script());
        }
        Ok(!adoption.unfit.is_empty() || !adoption.missing.is_empty())
    }

    /// Open types that no flow has, and those that are in bytes.
    async fn look_into_database(&self) -> std::result::Result<(Vec<String>, BTreeMap<String, u64>), store::Error> {
        let store = Store::of(self.config, Use::Tool).await?;
        store.check_rights().await?;
        store.check_schema().await?;
        let configured: BTreeSet<&str> = self.config.flows.keys().map(|flow| flow.as_str()).collect();
        let states = store.flow_states().await?.into_iter();
        let open = states.filter(|state| state.pending + state.inqueue + state.progress > 0);
        let strange = open.map(|state| state.job_type).filter(|name| !configured.contains(name.as_str())).collect();
        Ok((strange, store.types_in_bytes().await?))
    }

    fn report(self, context: &Context) -> Result {
        let exit = match (self.problems.is_empty(), self.database_problems.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Exit::Database),
            (false, _) => Some(Exit::Usage),
        };
        let output = context.output;
        let problems: Vec<&Complaint> = self.problems.iter().chain(&self.database_problems).collect();
        if output.json {
            output.json(&CheckJson {
                ok: exit.is_none(),
                problems: problems.iter().map(|problem| ProblemJson::from(*problem)).collect(),
                warnings: self.warnings.iter().map(ProblemJson::from).collect(),
                ddl: self.ddl,
            })?;
            return exit.map_or(Ok(()), |exit| Err(Failure::said(exit)));
        }
        for warning in &self.warnings {
            output.note(format_args!("warning: {warning}\n"));
        }
        for problem in &problems {
            output.error(format_args!("{problem}\n"));
        }
        if let Some(ddl) = &self.ddl {
            output.raw(ddl.as_bytes())?;
        }
        match exit {
            None => {
                let flows = self.config.flows.len();
                let flows = if flows == 1 { "1 flow".to_owned() } else { format!("{flows} flows") };
                let file =
                    self.config.path.as_ref().map_or_else(|| "no file".to_owned(), |path| path.display().to_string());
                Ok(output.line(format_args!("ok: {file}, {flows}, {}", self.config.database_url))?)
            }
            Some(exit) => {
                let count = problems.len();
                let count = if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") };
                Err(Failure::new(exit, format!("found {count}")))
            }
        }
    }
}

/// Where programs are looked for without a `PATH`, as `process::spawn` does when it starts them.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

enum Found {
    Executable,
    NotExecutable(PathBuf),
    Directory(PathBuf),
    Nothing,
}

/// Looks for a program as execvp(3) does.
fn find_program(program: &str, directory: Option<&Path>, path: Option<std::ffi::OsString>) -> Found {
    let base = directory.unwrap_or(Path::new("."));
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![base.join(program)]
    } else {
        std::env::split_paths(&path.unwrap_or_default()).map(|directory| base.join(directory).join(program)).collect()
    };
    let mut not_executable = None;
    // In a directory of PATH it is passed over, as it is by execvp(3).
    let directory = candidates.iter().find(|candidate| program.contains('/') && candidate.is_dir()).cloned();
    for candidate in candidates.into_iter().filter(|candidate| candidate.is_file()) {
        if access(&candidate, Access::EXEC_OK).is_ok() {
            return Found::Executable;
        }
        not_executable.get_or_insert(candidate);
    }
    let directory = directory.map(Found::Directory);
    not_executable.map(Found::NotExecutable).or(directory).unwrap_or(Found::Nothing)
}
