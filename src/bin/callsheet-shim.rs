//! The `callsheet-shim` binary: what runs are forked from, and nothing else, so that a fork is as cheap as it can be.

use std::process::ExitCode;

fn main() -> ExitCode {
    callsheet::process::run_zygote()
}
