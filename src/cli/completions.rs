//! `completions`: what a shell needs to complete our arguments.

use clap::CommandFactory;
use clap_complete::Shell;

use super::failure::Result;
use super::{Cli, Context};

/// Print a shell's completion script
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  callsheet completions bash > ~/.local/share/bash-completion/completions/callsheet\n  \
    callsheet completions zsh > ~/.zfunc/_callsheet"
)]
pub(super) struct Args {
    /// For which shell
    shell: Shell,
}

pub(super) fn run(context: &Context, args: &Args) -> Result {
    // Written to memory first: the generator panics where its output is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "callsheet", &mut script);
    Ok(context.output.raw(&script)?)
}
