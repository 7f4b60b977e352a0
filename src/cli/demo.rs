//! `demo`: the whole product on a scratch directory, with nothing installed but this binary.

use super::Context;
use super::failure::{Exit, Failure, Result};

/// Try Callsheet: serve a scratch directory with two sample flows until Ctrl-C
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// What a job of the demo does.
#[derive(Debug, clap::Args)]
pub(super) struct JobArgs {}

pub(super) fn run(_: &Context, _: &Args) -> Result {
    Err(Failure::new(Exit::Failed, "demo is being built"))
}

pub(super) fn run_job(_: &Context, _: &JobArgs) -> Result {
    Ok(())
}
