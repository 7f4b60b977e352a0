//! `enqueue`: new rows, refused before anything is written where they could not be run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use serde_json::json;

use super::failure::{Exit, Failure, Result};
use super::output::quoted;
use super::{Context, is_missing_file, open_for_service, this_user, wait};
use crate::config::{Config, FlowConfig};
use crate::domain::database_url::DatabaseUrl;
use crate::domain::trace::{self, InvalidTraceParent, InvalidTraceState, TraceContext, TraceParent, TraceState};
use crate::domain::{JobId, Timestamp, payload};
use crate::store::{Due, Enqueued, NewJob, Store};

/// Enqueue jobs; works with the service down
///
/// Every identifier is checked before anything is written. Prints the ids, one a line.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet enqueue SCREEN_REPLACEMENT_GENERATION abc --wait\n  \
    callsheet enqueue VEO_3_GENERATION --from identifiers.txt --priority 5\n  \
    callsheet enqueue VEO_3_GENERATION abc --delay 10min --payload '{\"seed\": 7}'\n  \
    callsheet enqueue UPLOAD abc --after 41 42")]
pub(super) struct Args {
    /// The job type: a flow of the configuration
    #[arg(value_name = "TYPE")]
    flow: String,
    /// What each job is about; fills {identifier} in the flow's command
    #[arg(value_name = "IDENTIFIER", required_unless_present = "from")]
    identifiers: Vec<String>,
    /// Read more identifiers from a file, one a line; - is standard input
    #[arg(long, value_name = "FILE|-")]
    from: Option<PathBuf>,
    /// Higher goes first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Not before this has passed, such as 10min
    #[arg(long, value_name = "DUR", value_parser = delay, allow_hyphen_values = true, conflicts_with = "run_at")]
    delay: Option<Duration>,
    /// Not before this time, such as 2026-11-23T10:00:00Z
    #[arg(long, value_name = "RFC3339", value_parser = time)]
    run_at: Option<Timestamp>,
    /// While an open job of this type has this key, none is added and its id is printed
    #[arg(long, value_name = "K", value_parser = key)]
    unique_key: Option<String>,
    /// JSON that the command finds in the file that CALLSHEET_PAYLOAD names
    #[arg(long, value_name = "JSON", value_parser = payload_text)]
    payload: Option<String>,
    /// How often a job may be tried [default: the flow's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2_147_483_647))]
    maximum_attempts: Option<u32>,
    /// The trace that they are a part of (W3C Trace Context) [default: the payload's, else that of the environment variable
    /// TRACEPARENT]
    #[arg(long, value_name = "00-…", value_parser = traceparent)]
    traceparent: Option<TraceParent>,
    /// What goes along with it
    #[arg(long, value_name = "K=V,…", requires = "traceparent", value_parser = tracestate)]
    tracestate: Option<TraceState>,
    /// Run them only once all of these jobs are COMPLETED; where one ends otherwise, they end as ERROR
    #[arg(long, value_name = "ID", num_args = 1.., value_delimiter = ',', value_parser = super::show::job_id)]
    after: Vec<JobId>,
    /// Wait until the jobs have ended; exits with 0 where all are COMPLETED, else with 1
    #[arg(long)]
    wait: bool,
}

fn delay(text: &str) -> std::result::Result<Duration, String> {
    const TEN_YEARS: Duration = Duration::from_secs(10 * 31_557_600);
    if text.starts_with('-') {
        return Err("a delay is not negative; write 30s, 10min or 2d".to_owned());
    }
    let delay = humantime::parse_duration(text).map_err(|error| format!("{error}; write 30s, 10min or 2d"))?;
    if delay > TEN_YEARS { Err("a delay is at most ten years".to_owned()) } else { Ok(delay) }
}

fn time(text: &str) -> std::result::Result<Timestamp, String> {
    DateTime::parse_from_rfc3339(text)
        .map(|time| Timestamp::from_unix_millis(time.timestamp_millis()))
        .map_err(|_| "a time has a date, an hour and a zone: write 2026-11-23T08:00:00Z, or +01:00 for Z".to_owned())
}

fn key(text: &str) -> std::result::Result<String, String> {
    match text.len() {
        0 => Err("a key is not empty".to_owned()),
        1..=255 if text.chars().any(char::is_control) => Err("a key holds no control characters".to_owned()),
        1..=255 => Ok(text.to_owned()),
        _ => Err("a key is at most 255 bytes long".to_owned()),
    }
}

fn payload_text(text: &str) -> std::result::Result<String, String> {
    payload::check(text).map_err(|refusal| format!("this {refusal}"))?;
    Ok(text.to_owned())
}

fn traceparent(text: &str) -> std::result::Result<TraceParent, String> {
    text.parse().map_err(|error: InvalidTraceParent| error.to_string())
}

fn tracestate(text: &str) -> std::result::Result<TraceState, String> {
    text.parse().map_err(|error: InvalidTraceState| error.to_string())
}

/// The trace that the jobs are a part of; `None` leaves it to their payload.
fn trace_context(args: &Args) -> Option<TraceContext> {
    if let Some(parent) = args.traceparent {
        return Some(TraceContext { parent, state: args.tracestate.clone() });
    }
    if args.payload.as_deref().and_then(|payload| trace::in_payload(payload.as_bytes())).is_some() {
        return None;
    }
    // Whoever calls us may be a part of one, such as a job's command that enqueues what comes next.
    let variable = |name| std::env::var(name).ok();
    TraceContext::read(variable("TRACEPARENT").as_deref(), variable("TRACESTATE").as_deref())
}

pub(super) async fn run(context: &Context, args: &Args) -> Result {
    let config = context.config()?;
    let flow = find_flow(&config, &args.flow)?;
    let identifiers = identifiers(args, &flow)?;
    if args.unique_key.is_some() && identifiers.len() > 1 {
        return Err(Failure::new(
            Exit::Usage,
            format!("--unique-key is for one job, and here are {} identifiers", identifiers.len()),
        )
        .help("enqueue them one by one, each with its own key"));
    }
    if let Some(text) = &args.payload {
        payload::check_together(text, identifiers.len()).map_err(|refusal| {
            Failure::new(Exit::Usage, format!("{refusal}; nothing was enqueued"))
                .help("enqueue fewer at once, or let the payload name a file")
        })?;
    }
    let due = match (args.delay, args.run_at) {
        (_, Some(time)) => Due::At(time),
        (delay, None) => Due::After(delay.unwrap_or_default()),
    };
    let trace = trace_context(args);
    let jobs: Vec<NewJob> = identifiers
        .into_iter()
        .map(|identifier| NewJob {
            flow: flow.flow.clone(),
            identifier,
            payload: args.payload.clone(),
            priority: args.priority,
            due,
            maximum_attempts: args.maximum_attempts,
            unique_key: args.unique_key.clone(),
            trace: trace.clone(),
        })
        .collect();
    let interrupts = args.wait.then(wait::interrupts).transpose()?;
    let store = store(context, &config).await?;
    let after = if args.after.is_empty() { BTreeMap::new() } else { each(jobs.len(), &args.after) };
    let enqueued = store.enqueue_after(&jobs, &after).await?;
    // With --json a waiting command prints each job once, when it has ended.
    if interrupts.is_none() || !context.output.json {
        print(context, &jobs, &enqueued).map_err(|failure| failure.after(&done(&enqueued)))?;
    }
    let Some(interrupts) = interrupts else { return Ok(()) };
    let ids: Vec<JobId> = enqueued.iter().map(|job| job.id).collect();
    wait::until_ended(context, &store, &ids, interrupts).await
}

/// Every one of so many jobs waits for these.
fn each(jobs: usize, after: &[JobId]) -> BTreeMap<usize, Vec<JobId>> {
    (0..jobs).map(|place| (place, after.to_vec())).collect()
}

/// The tables. An embedded database that nothing has used yet is made, so that the first command need not be `serve`; that is said,
/// since a slip of the pen makes one, too, whose jobs no service runs.
async fn store(context: &Context, config: &Config) -> Result<Store> {
    match Store::of(config, crate::store::Use::Tool).await {
        Err(error) if is_missing_file(&error) && matches!(config.database_url, DatabaseUrl::Sqlite(_)) => {
            let store = open_for_service(config).await?;
            store.migrate().await?;
            context.output.note(format_args!("made a new database at {}", config.database_url));
            Ok(store.on_behalf_of(this_user()))
        }
        Err(error) => Err(error.into()),
        Ok(_) => context.store(config).await,
    }
}

fn print(context: &Context, jobs: &[NewJob], enqueued: &[Enqueued]) -> Result {
    // At once: ten thousand ids are ten thousand writes to a terminal otherwise.
    let mut text = String::new();
    for (job, row) in jobs.iter().zip(enqueued) {
        if context.output.json {
            let json = json!({
                "id": row.id.0, "type": job.flow.as_str(), "identifier": job.identifier, "existing": row.existing,
            });
            let _ = writeln!(text, "{json}");
        } else {
            let _ = writeln!(text, "{}", row.id);
        }
        if row.existing {
            context
                .output
                .note(format_args!("job {} is open and has this unique key already; nothing was added", row.id));
        }
    }
    Ok(context.output.raw(text.as_bytes())?)
}

/// What was done, for whoever can't be given the ids in the usual way.
fn done(enqueued: &[Enqueued]) -> String {
    let ids: Vec<i64> = enqueued.iter().map(|job| job.id.0).collect();
    match (ids.iter().min(), ids.iter().max()) {
        (Some(first), Some(last)) if first == last => format!("job {first} was enqueued"),
        (Some(first), Some(last)) => format!("{} jobs were enqueued (from {first} to {last})", ids.len()),
        _ => "nothing was enqueued".to_owned(),
    }
}

fn find_flow(config: &Config, name: &str) -> Result<Arc<FlowConfig>> {
    let found = config.flows.iter().find(|(flow, _)| flow.as_str() == name);
    if let Some((_, flow)) = found {
        return Ok(Arc::clone(flow));
    }
    let Some(file) = &config.path else {
        return Err(Failure::new(
            Exit::Usage,
            "no configuration file, so no flow is known and no identifier can be checked",
        )
        .help("run `callsheet init` to write a callsheet.toml, or name one with --config PATH"));
    };
    let known: Vec<&str> = config.flows.keys().map(|flow| flow.as_str()).collect();
    let help = match known.iter().find(|known| known.eq_ignore_ascii_case(name)) {
        Some(near) => format!("did you mean {near}? Upper and lower case count"),
        None if known.is_empty() => format!("{} has no flows; add a [flows.TYPE] table", file.display()),
        None => format!("the flows of {} are: {}", file.display(), known.join(", ")),
    };
    let shown = quoted(name);
    Err(Failure::new(Exit::Usage, format!("no flow has the type {shown}; nothing was enqueued")).help(help))
}

/// All identifiers, of the arguments and of `--from`, each fit for the flow.
fn identifiers(args: &Args, flow: &FlowConfig) -> Result<Vec<String>> {
    let mut refused = Vec::new();
    let mut identifiers = Vec::new();
    for (index, identifier) in args.identifiers.iter().enumerate() {
        match flow.identifier_pattern.check(identifier) {
            Ok(()) => identifiers.push(identifier.clone()),
            Err(refusal) => refused.push(format!("argument {}: {refusal}", index + 1)),
        }
    }
    if let Some(from) = &args.from {
        let (name, bytes) = read(from)?;
        for (number, line) in lines(&bytes) {
            match std::str::from_utf8(line) {
                Err(_) => refused.push(format!("{name}:{number}: this line is not UTF-8 text")),
                Ok(line) => match flow.identifier_pattern.check(line) {
                    Ok(()) => identifiers.push(line.to_owned()),
                    Err(refusal) => refused.push(format!("{name}:{number}: {refusal}")),
                },
            }
        }
        if identifiers.is_empty() && refused.is_empty() {
            return Err(Failure::new(Exit::Usage, format!("{name} holds no identifier; nothing was enqueued")));
        }
    }
    if refused.is_empty() {
        return Ok(identifiers);
    }
    let count = refused.len();
    let what = if count == 1 { "1 identifier is".to_owned() } else { format!("{count} identifiers are") };
    let mut message = format!("{what} refused; nothing was enqueued");
    for refusal in &refused {
        let _ = write!(message, "\n  {refusal}");
    }
    Err(Failure::new(Exit::Usage, message))
}

/// The lines that are not empty, with their numbers, without their ends (LF or CR LF) and without a byte order mark.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.enumerate().map(|(index, line)| (index + 1, line)).filter(|(_, line)| !line.is_empty())
}

fn read(from: &Path) -> Result<(String, Vec<u8>)> {
    let is_stdin = from == Path::new("-");
    let name = if is_stdin { "standard input".to_owned() } else { from.display().to_string() };
    let mut bytes = Vec::new();
    let read = if is_stdin {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
    } else {
        std::fs::read(from).map(|read| bytes = read)
    };
    match read {
        Ok(()) => Ok((name, bytes)),
        Err(error) => Err(Failure::new(Exit::Usage, format!("can't read {name}: {error}; nothing was enqueued"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_numbers() {
        let read: Vec<(usize, &[u8])> = lines(b"\xef\xbb\xbfa\r\n\n\r\nb c\nlast").collect();
        assert_eq!(read, [(1, &b"a"[..]), (4, b"b c"), (5, b"last")]);
        assert_eq!(lines(b"").count(), 0);
    }
}
