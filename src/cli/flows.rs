//! `flows`: how each flow's queue stands.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::Cell;

use super::Context;
use super::failure::Result;
use super::output::{age, cut};
use crate::clock;
use crate::domain::Timestamp;
use crate::http::json::{FlowJson, FlowsJson};
use crate::http::words::counted;
use crate::store::{FlowState, Forsaken, LastSeen};

/// Show the queue of each flow
///
/// Types that rows have and no flow of the configuration are shown too; such rows are left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet flows\n  callsheet flows --json")]
pub(super) struct Args {}

pub(super) async fn run(context: &Context, _: &Args) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    let states: BTreeMap<String, FlowState> =
        store.flow_states().await?.into_iter().map(|state| (state.job_type.clone(), state)).collect();
    let names: BTreeSet<&str> =
        config.flows.keys().map(|flow| flow.as_str()).chain(states.keys().map(String::as_str)).collect();
    let alive = store.labels_alive().await?;
    let in_bytes = store.types_in_bytes().await?;
    let (forsaken, database_now) = store.forsaken().await?;
    let now = clock::now();
    let mut flows = Vec::new();
    let mut rows = Vec::new();
    for name in names {
        let state = states.get(name);
        let flow = config.flows.iter().find(|(flow, _)| flow.as_str() == name).map(|(_, flow)| flow);
        let json = FlowJson::new(name, flow.map(AsRef::as_ref), state, &alive);
        let requires = flow.map(|flow| flow.requires.to_string()).unwrap_or_default();
        let remark = match (flow.is_some(), json.paused) {
            (false, _) if config.path.is_some() => NO_FLOW.to_owned(),
            (_, true) => {
                state.map(|state| paused(state.paused_by.as_deref(), state.paused_time, now)).unwrap_or_default()
            }
            _ if requires.is_empty() => String::new(),
            _ if json.able_workers == Some(0) => nobody_has(&requires),
            _ => format!("requires {requires}"),
        };
        let dependent = state.and_then(|state| dependent(state.dependent, false));
        let held = forsaken.iter().filter(|rows| rows.job_type == name).map(|rows| held(rows, database_now));
        let in_bytes = in_bytes
            .get(name)
            .map(|rows| format!("{rows} of those that wait have the type as a BLOB: see `callsheet check`"));
        let remark = Some(remark).filter(|remark| !remark.is_empty());
        let remarks: Vec<String> = remark.into_iter().chain(dependent).chain(held).chain(in_bytes).collect();
        let oldest = state.and_then(|state| state.oldest_pending).map(|time| age(time, now));
        rows.push(vec![
            Cell::new(cut(name, 40)),
            Cell::new(json.concurrency.map(|count| count.to_string()).unwrap_or_default()),
            Cell::new(json.pending),
            Cell::new(json.runnable),
            Cell::new(json.inqueue),
            Cell::new(json.progress),
            Cell::new(oldest.unwrap_or_default()),
            Cell::new(cut(&remarks.join("; "), 160)),
        ]);
        flows.push(json);
    }
    if context.output.json {
        return Ok(context.output.json(&FlowsJson { flows })?);
    }
    if rows.is_empty() {
        context.output.note("there are no flows and no open jobs");
        return Ok(());
    }
    let header = ["TYPE", "CONCURRENCY", "PENDING", "DUE", "INQUEUE", "PROGRESS", "OLDEST", "REMARK"];
    Ok(context.output.table(&header, &header[1..7], rows)?)
}

/// Who holds slots of a flow without living; `now` is the database's time.
fn held(rows: &Forsaken, now: Timestamp) -> String {
    let slots = if rows.rows == 1 { "1 slot is".to_owned() } else { format!("{} slots are", rows.rows) };
    let Some(worker) = &rows.worker_id else { return format!("{slots} held by no worker") };
    let worker = cut(worker, 60);
    match rows.last_seen {
        Some(LastSeen::Silent(last)) => {
            format!("{slots} held by worker {worker}, which has not been seen for {}", age(last.min(now), now))
        }
        Some(LastSeen::Stopped(last)) => {
            format!("{slots} held by worker {worker}, which stopped {} ago", age(last.min(now), now))
        }
        None => format!("{slots} held by worker {worker}, which nobody knows"),
    }
}

/// The remark on a type of rows that are left alone.
pub(super) const NO_FLOW: &str = "no flow of the configuration has this type";

/// The remark on a paused flow.
pub(super) fn paused(by: Option<&str>, since: Option<Timestamp>, now: Timestamp) -> String {
    let by = by.map(|who| format!(" by {who}")).unwrap_or_default();
    let since = since.map(|time| format!(", {} ago", age(time.min(now), now))).unwrap_or_default();
    format!("paused{by}{since}")
}

/// The remark on a flow whose labels no living worker has.
pub(super) fn nobody_has(requires: &str) -> String {
    format!("no living worker has what it requires: {requires}")
}

/// The remark on so many rows that wait for other jobs; `None` where there are none.
pub(super) fn dependent(count: u64, or_more: bool) -> Option<String> {
    let wait = if (count, or_more) == (1, false) { "waits" } else { "wait" };
    (count > 0).then(|| format!("{} {wait} for other jobs", counted(count, or_more)))
}
