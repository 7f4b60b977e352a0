//! `doctor`: what Callsheet promises, tried on the user's own machine and database.
//!
//! The files and clocks are looked at; then a private service on a scratch directory of the same disk goes through what
//! may happen to a service ([`rehearsal`]). Its jobs are of a scratch type, and all of it is removed afterwards.

mod machine;
mod rehearsal;

use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::Context;
use super::failure::{Exit, Failure, Result};
use crate::app::Signals;
use crate::config::Config;
use crate::store::{Store, Use};

/// Try out, on this machine and database, what Callsheet promises
///
/// Starts a private service on a scratch directory, runs commands under it, kills it, and says line by line what holds and
/// what to do about what does not. Other jobs are left alone; whatever it makes is removed afterwards, also after Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet doctor\n  callsheet --config /etc/callsheet.toml doctor --json\n\n\
    Exits with 1 where a line fails. Run it as the user that the service runs as.")]
pub(super) struct Args {}

/// What came of one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It is as it should be.
    Ok,
    /// It works, and there is something to know about it.
    Warning,
    /// Something that Callsheet promises does not hold here.
    Failed,
    /// It could not be tried.
    Skipped,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    name: &'static str,
    verdict: Verdict,
    /// What was found, for a person.
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, detail: detail.into(), help: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, help: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, detail: detail.into(), help: Some(help.into()) }
    }

    fn failed(name: &'static str, detail: impl Into<String>, help: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Failed, detail: detail.into(), help: Some(help.into()) }
    }

    fn skipped(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Skipped, detail: detail.into(), help: None }
    }
}

/// What has been found so far; people see each line as it comes.
struct Report<'a> {
    context: &'a Context,
    findings: Vec<Finding>,
}

impl Report<'_> {
    fn add(&mut self, finding: Finding) {
        let output = self.context.output;
        if !output.json {
            let word = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Failed => "FAILED",
                Verdict::Skipped => "skipped",
            };
            // A reader that has gone is noticed at the end; what was begun is cleaned up first.
            let _ = output.line(format_args!("{word:<8} {:<17} {}", finding.name, finding.detail));
            if let Some(help) = &finding.help {
                let _ = output.line(format_args!("{:<26} → {help}", ""));
            }
        }
        self.findings.push(finding);
    }
}

pub(super) async fn run(context: &Context, _: &Args) -> Result {
    let config = context.config()?;
    let mut signals = Signals::listen()?;
    let mut report = Report { context, findings: Vec::new() };
    for finding in machine::files(&config).into_iter().chain([machine::limits(), machine::clock().await]) {
        report.add(finding);
    }
    report.add(machine::fsync(&config.data_dir));
    let store = open(&config, &mut report).await;
    if let Some(store) = &store {
        report.add(machine::database_clock(store).await);
        report.add(machine::durability(store).await);
    }
    let interrupted = match rehearsal::Stage::set(&config, store.as_ref()).await {
        Ok(mut stage) => {
            let interrupted = tokio::select! {
                () = stage.play(&mut report) => false,
                () = signals.stop() => true,
            };
            for finding in stage.strike().await {
                report.add(finding);
            }
            interrupted
        }
        Err(finding) => {
            report.add(finding);
            false
        }
    };
    if interrupted {
        return Err(Failure::new(Exit::Failed, "interrupted; what was made for the trial has been removed"));
    }
    conclude(context, &report.findings)
}

/// The user's own tables, where they can be reached.
async fn open(config: &Config, report: &mut Report<'_>) -> Option<Store> {
    const NAME: &str = "database";
    let opened = async {
        let store = Store::of(config, Use::Tool).await?;
        store.check_schema().await?;
        Ok::<_, crate::store::Error>(store)
    };
    match opened.await {
        Ok(store) => {
            report.add(Finding::ok(NAME, config.database_url.to_string()));
            Some(store)
        }
        Err(error) if super::is_missing_file(&error) => {
            report.add(Finding::ok(NAME, format!("{} is not there yet; `serve` makes it", config.database_url)));
            None
        }
        Err(error) => {
            let help = if matches!(error, crate::store::Error::SchemaMissing) {
                "callsheet migrate up"
            } else {
                "check database_url, the server, and its rights for this user"
            };
            report.add(Finding::failed(NAME, super::failure::chain(&error), help));
            None
        }
    }
}

fn conclude(context: &Context, findings: &[Finding]) -> Result {
    let failed = findings.iter().filter(|finding| finding.verdict == Verdict::Failed).count();
    if context.output.json {
        context.output.json(&json!({ "ok": failed == 0, "checks": findings }))?;
        return if failed == 0 { Ok(()) } else { Err(Failure::said(Exit::Failed)) };
    }
    if failed == 0 {
        return Ok(context.output.line("\nall that was tried holds")?);
    }
    let lines = if failed == 1 { "1 line fails".to_owned() } else { format!("{failed} lines fail") };
    Err(Failure::new(Exit::Failed, format!("{lines}; each says what to do about it")))
}

/// A time for people, to the millisecond below a second.
fn shown(time: Duration) -> String {
    if time < Duration::from_millis(1) {
        format!("{} µs", time.as_micros())
    } else if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
