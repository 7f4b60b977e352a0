//! `flows`: how each flow's queue stands.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::Cell;
use serde::Serialize;

use super::Context;
use super::failure::Result;
use super::output::{age, cut};
use crate::clock;
use crate::domain::Timestamp;
use crate::http::json::rfc3339;
use crate::store::FlowState;

/// Show the queue of each flow
///
/// Types that rows have and no flow of the configuration are shown too; such rows are left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet flows\n  callsheet flows --json")]
pub(super) struct Args {}

#[derive(Serialize)]
struct FlowJson {
    #[serde(rename = "type")]
    job_type: String,
    /// Whether the configuration has a flow of this type.
    configured: bool,
    paused: bool,
    paused_time: Option<String>,
    paused_by: Option<String>,
    concurrency: Option<u32>,
    worker_concurrency: Option<u32>,
    pending: u64,
    runnable: u64,
    inqueue: u64,
    progress: u64,
    oldest_pending_time: Option<String>,
}

pub(super) async fn run(context: &Context, _: &Args) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    let states: BTreeMap<String, FlowState> =
        store.flow_states().await?.into_iter().map(|state| (state.job_type.clone(), state)).collect();
    let names: BTreeSet<&str> =
        config.flows.keys().map(|flow| flow.as_str()).chain(states.keys().map(String::as_str)).collect();
    let now = clock::now();
    let mut flows = Vec::new();
    let mut rows = Vec::new();
    for name in names {
        let state = states.get(name);
        let flow = config.flows.iter().find(|(flow, _)| flow.as_str() == name).map(|(_, flow)| flow);
        let json = FlowJson {
            job_type: name.to_owned(),
            configured: flow.is_some(),
            paused: state.is_some_and(|state| state.paused),
            paused_time: state.and_then(|state| state.paused_time).map(rfc3339),
            paused_by: state.and_then(|state| state.paused_by.clone()),
            concurrency: flow.map(|flow| flow.concurrency.get()),
            worker_concurrency: flow.map(|flow| flow.worker_concurrency.get()),
            pending: state.map_or(0, |state| state.pending),
            runnable: state.map_or(0, |state| state.runnable),
            inqueue: state.map_or(0, |state| state.inqueue),
            progress: state.map_or(0, |state| state.progress),
            oldest_pending_time: state.and_then(|state| state.oldest_pending).map(rfc3339),
        };
        let remark = match (flow.is_some(), json.paused) {
            (false, _) if config.path.is_some() => "no flow of the configuration has this type".to_owned(),
            (_, true) => paused(state, now),
            _ => String::new(),
        };
        let oldest = state.and_then(|state| state.oldest_pending).map(|time| age(time, now));
        rows.push(vec![
            Cell::new(cut(name, 40)),
            Cell::new(json.concurrency.map(|count| count.to_string()).unwrap_or_default()),
            Cell::new(json.pending),
            Cell::new(json.runnable),
            Cell::new(json.inqueue),
            Cell::new(json.progress),
            Cell::new(oldest.unwrap_or_default()),
            Cell::new(cut(&remark, 80)),
        ]);
        flows.push(json);
    }
    if context.output.json {
        return Ok(context.output.json(&serde_json::json!({ "flows": flows }))?);
    }
    if rows.is_empty() {
        context.output.note("there are no flows and no open jobs");
        return Ok(());
    }
    let header = ["TYPE", "CONCURRENCY", "PENDING", "DUE", "INQUEUE", "PROGRESS", "OLDEST", "REMARK"];
    Ok(context.output.table(&header, &header[1..7], rows)?)
}

fn paused(state: Option<&FlowState>, now: Timestamp) -> String {
    let Some(state) = state else { return String::new() };
    let by = state.paused_by.as_ref().map(|who| format!(" by {who}")).unwrap_or_default();
    let since = state.paused_time.map(|time| format!(", {} ago", age(time.min(now), now))).unwrap_or_default();
    format!("paused{by}{since}")
}
