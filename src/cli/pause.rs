//! `pause` and `resume`: whether anything of a flow is claimed, over all workers.

use serde_json::json;

use super::failure::{Exit, Failure, Result};
use super::select::all;
use super::{Context, who};
use crate::domain::FlowType;
use crate::store::{PauseResult, Write};

/// Claim nothing of a flow any more, over all workers, until it is resumed
///
/// Running commands are left alone, and enqueueing goes on. It holds across restarts, and works with the service down.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet pause VEO_3_GENERATION\n  callsheet flows")]
pub(super) struct PauseArgs {
    /// The job types
    #[arg(value_name = "TYPE", required = true, value_parser = flow_type)]
    types: Vec<FlowType>,
}

/// Let paused flows go on
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  callsheet resume VEO_3_GENERATION")]
pub(super) struct ResumeArgs {
    /// The job types
    #[arg(value_name = "TYPE", required = true, value_parser = flow_type)]
    types: Vec<FlowType>,
}

fn flow_type(text: &str) -> std::result::Result<FlowType, String> {
    text.parse().map_err(|error: crate::domain::InvalidFlowType| error.to_string())
}

pub(super) async fn pause(context: &Context, args: &PauseArgs) -> Result {
    set(context, &args.types, true).await
}

pub(super) async fn resume(context: &Context, args: &ResumeArgs) -> Result {
    set(context, &args.types, false).await
}

async fn set(context: &Context, types: &[FlowType], paused: bool) -> Result {
    let config = context.config()?;
    let store = context.store(&config).await?;
    // A flow of the configuration may be paused before any service has served it.
    let configured = types.iter().filter(|flow| config.flows.contains_key(flow)).cloned().collect();
    store.apply(&[Write::RegisterFlows(configured)]).await?;
    let who = who();
    let mut failures = Vec::new();
    for flow in types {
        let result = if paused { store.pause(flow, &who).await? } else { store.resume(flow, &who).await? };
        let text = match (result, paused) {
            (PauseResult::NotFound, _) => {
                let failure = Failure::new(Exit::NotFound, format!("there is no flow {flow}"));
                failures.push(failure.help("`callsheet flows` shows the flows there are; upper and lower case count"));
                continue;
            }
            (PauseResult::Changed, true) => "paused; nothing of it is claimed any more, and what runs runs on",
            (PauseResult::Changed, false) => "resumed",
            (PauseResult::Unchanged, true) => "was paused already",
            (PauseResult::Unchanged, false) => "was not paused",
        };
        if context.output.json {
            let changed = result == PauseResult::Changed;
            context.output.json(&json!({ "type": flow.as_str(), "paused": paused, "changed": changed }))?;
        } else {
            context.output.line(format_args!("{flow}: {text}"))?;
        }
    }
    all(context, failures)
}
