//! `demo`: the whole product on a scratch directory, with nothing installed but this binary.
//!
//! The commands that it runs are this binary too (`__demo-job`), so that neither a shell nor an interpreter is needed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::{Exit, Failure, Result};
use super::output::{Output, duration_of, one_line};
use super::serve::{service_runtime, start_logging};
use super::{Context, notify};
use crate::app::{self, ServeOptions, Service, Signals};
use crate::config::{Config, Overrides};
use crate::domain::{FlowType, JobId, JobStatus};
use crate::http::{self, json::JobJson};
use crate::store::{Due, JobFilter, JobRow, NewJob, Store};

/// Try Callsheet: serve a scratch directory with two sample flows, until Ctrl-C
///
/// Runs real commands in a directory of their own: some fail, one is tried again, all report progress. Needs nothing but
/// this binary; Ctrl-C ends the commands and removes the directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  callsheet demo")]
pub(super) struct Args {}

/// What a job of the demo does.
#[derive(Debug, clap::Args)]
pub(super) struct JobArgs {
    identifier: String,
    attempt: u32,
}

/// The sample jobs, in the order in which they are enqueued; how each ends is the end of its name.
const JOBS: [(&str, &str); 10] = [
    ("DEMO_SEQUENTIAL", "poster-1"),
    ("DEMO_SEQUENTIAL", "poster-2-fails"),
    ("DEMO_SEQUENTIAL", "poster-3"),
    ("DEMO_SEQUENTIAL", "poster-4"),
    ("DEMO_CONCURRENT", "clip-1"),
    ("DEMO_CONCURRENT", "clip-2-flaky"),
    ("DEMO_CONCURRENT", "clip-3"),
    ("DEMO_CONCURRENT", "clip-4-fails"),
    ("DEMO_CONCURRENT", "clip-5"),
    ("DEMO_CONCURRENT", "clip-6"),
];

/// The configuration of the demo; `PROGRAM` and `LISTEN` are filled in.
const CONFIG: &str = include_str!("demo.toml");

/// How often the demo looks for something to tell.
const POLL: Duration = Duration::from_millis(200);

pub(super) fn run(context: &Context, _: &Args) -> Result {
    // The demo tells what happens itself; log lines are for those who ask for them.
    start_logging(context, context.verbosity - 1);
    let scratch = Scratch::make()?;
    let config = write_config(&scratch.0, free_address())?;
    let runtime = service_runtime()?;
    let served = runtime.block_on(serve(context.output, config, &scratch.0));
    // First everything that could still write to the directory, then the directory.
    drop(runtime);
    drop(scratch);
    served?;
    context.output.note("the commands have ended and the scratch directory is gone");
    Ok(())
}

async fn serve(output: Output, config: Config, scratch: &Path) -> Result {
    let mut signals = Signals::listen()?;
    // A closed terminal is to leave as little behind as Ctrl-C.
    if let Ok(mut hangup) = signal(SignalKind::hangup()) {
        tokio::spawn(async move {
            hangup.recv().await;
            stop();
        });
    }
    let options = || ServeOptions { migrate: true, overrides: None };
    let service = match Service::start(config, options()).await {
        // Somebody else was faster since the look at it: another demo, maybe.
        Err(app::Error::Http(http::Error::Bind { .. })) => {
            Service::start(write_config(scratch, ANY_PORT)?, options()).await
        }
        started => started,
    }?;
    greet(output, service.address(), scratch)?;
    let enqueued = service.store().enqueue(&jobs()?).await?;
    let teller = tokio::spawn(tell(output, service.store().clone(), enqueued.len()));
    let ended = service.run(&mut signals).await;
    teller.abort();
    Ok(ended?)
}

/// Ends this service as a signal from outside does.
fn stop() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
}

fn jobs() -> Result<Vec<NewJob>> {
    let job = |(flow, identifier): (&str, &str)| {
        let flow: FlowType = flow.parse().map_err(|error| Failure::new(Exit::Failed, format!("{error}")))?;
        Ok(NewJob {
            flow,
            identifier: identifier.to_owned(),
            payload: None,
            priority: 0,
            due: Due::After(Duration::ZERO),
            maximum_attempts: None,
            unique_key: None,
            trace: None,
        })
    };
    JOBS.into_iter().map(job).collect()
}

fn greet(output: Output, address: Option<SocketAddr>, scratch: &Path) -> Result {
    let address = address.map(|address| format!("http://{address}/")).unwrap_or_default();
    let config = scratch.join("callsheet.toml");
    if output.json {
        return Ok(output.json(&json!({ "address": address, "config": config.display().to_string() }))?);
    }
    output.line(format_args!("serving {} (try {address}healthz, {address}metrics)", output.bold(&address)))?;
    output.line(format_args!("in another terminal: callsheet --config {} list", config.display()))?;
    output.line("Ctrl-C ends the demo and leaves nothing behind\n")?;
    Ok(())
}

/// Prints what becomes of the jobs, until the service ends; ends it where nobody reads that any more.
async fn tell(output: Output, store: Store, count: usize) {
    let mut seen: BTreeMap<JobId, (JobStatus, u32, u8)> = BTreeMap::new();
    let mut ended = 0;
    let mut all_have_ended = false;
    // Asked each time, not only heard from a write: a reader may leave when there is nothing more to tell.
    while !output.is_unread() {
        if all_have_ended {
            tokio::time::sleep(POLL).await;
            continue;
        }
        let filter = JobFilter { limit: 1000, ..JobFilter::default() };
        // A look that failed is repeated; a terminal that is gone ends with its hangup.
        if let Ok(page) = store.list(&filter).await {
            for row in page.rows.iter().rev() {
                // Of what a command reports, every fourth part is told here; `show` tells it all.
                let quarters = if row.status == JobStatus::Progress { row.progress.unwrap_or(0) / 25 } else { 0 };
                let now = (row.status, row.attempt.0, quarters);
                if seen.insert(row.id, now) != Some(now) {
                    ended += usize::from(row.status.is_final());
                    if tell_one(output, row).is_err() {
                        return stop();
                    }
                }
            }
        }
        if ended == count {
            output.note(
                "\nall jobs have ended; the service runs on, and takes what `callsheet enqueue` gives it, until Ctrl-C",
            );
            all_have_ended = true;
        }
        tokio::time::sleep(POLL).await;
    }
    stop();
}

fn tell_one(output: Output, row: &JobRow) -> std::io::Result<()> {
    if output.json {
        return output.json(&JobJson::from(row));
    }
    let what = match row.status {
        JobStatus::Pending if row.attempt.0 > 0 => format!("will be tried again: {}", reason(row)),
        JobStatus::Pending => "waits".to_owned(),
        JobStatus::InQueue => return Ok(()),
        JobStatus::Progress if row.progress.is_some_and(|progress| progress >= 25) => {
            let said = row.status_message.as_deref().map(one_line).unwrap_or_default();
            format!("{:>3}%  {said}", row.progress.unwrap_or(0))
        }
        JobStatus::Progress if row.attempt.0 > 1 => format!("runs, attempt {}", row.attempt),
        JobStatus::Progress => "runs".to_owned(),
        JobStatus::Completed => format!("done in {}", duration_of(row.execution_ms.unwrap_or(0))),
        JobStatus::Error => reason(row),
        JobStatus::Cancelled => "cancelled".to_owned(),
    };
    let (id, kind, name) = (row.id, one_line(&row.job_type), one_line(&row.identifier));
    output.line(format_args!("job {id:>2}  {kind:<15}  {name:<14}  {:<9}  {what}", row.status))
}

/// What happened, and the last line of the error output.
fn reason(row: &JobRow) -> String {
    let mut lines = row.error.as_deref().unwrap_or_default().lines();
    let sentence = lines.next().unwrap_or_default();
    match lines.next_back() {
        Some(last) => one_line(&format!("{sentence}: {last}")),
        None => one_line(sentence),
    }
}

/// A directory that is removed with all that is in it, however the demo ends (other than by a kill).
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self> {
        let failed =
            |error: std::io::Error| Failure::new(Exit::Failed, format!("can't make a scratch directory: {error}"));
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| failed(std::io::Error::other(error)))?;
        let path = std::env::temp_dir().join(format!("callsheet-demo-{:016x}", u64::from_be_bytes(random)));
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A shim that is just going may still write its last file; a directory that is not empty is tried again.
        for _ in 0..20 {
            if std::fs::remove_dir_all(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        tracing::warn!(directory = %self.0.display(), "the scratch directory could not be removed");
    }
}

fn write_config(scratch: &Path, listen: SocketAddr) -> Result<Config> {
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, format!("can't set the demo up: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    // As a text of TOML, whatever is in the path, and with braces that are no placeholders.
    let program = program.to_string_lossy().replace('{', "{{").replace('}', "}}");
    let text = CONFIG.replace("\"PROGRAM\"", &toml::Value::String(program).to_string());
    let text = text.replace("LISTEN", &listen.to_string());
    let path = scratch.join("callsheet.toml");
    std::fs::write(&path, text).map_err(failed)?;
    // Nothing of the environment or the command line: the demo touches no database but its own.
    Ok(Config::load(&Overrides { config: Some(path), ..Overrides::default() })?)
}

const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The usual address, or one that the system picks where that is taken.
fn free_address() -> SocketAddr {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, 8440));
    if TcpListener::bind(usual).is_ok() { usual } else { ANY_PORT }
}

/// Does what a job of the demo does: some work, with progress, that ends as its name says.
pub(super) fn run_job(context: &Context, args: &JobArgs) -> Result {
    const STEPS: u8 = 10;
    let output = context.output;
    let name = one_line(&args.identifier);
    let fails = args.identifier.ends_with("-fails") || (args.identifier.ends_with("-flaky") && args.attempt == 1);
    for step in 1..=STEPS {
        std::thread::sleep(Duration::from_millis(200));
        output.line(format_args!("{name}: frame {step} of {STEPS}"))?;
        // Progress is a courtesy: a job whose report nobody hears does its work all the same.
        let _ = notify::report(Some(step * (100 / STEPS)), Some(&format!("frame {step} of {STEPS}")));
        if fails && step == STEPS / 2 {
            return Err(Failure::new(
                Exit::Failed,
                format!("frame {step} can't be rendered (this sample job is meant to fail)"),
            ));
        }
    }
    Ok(())
}
