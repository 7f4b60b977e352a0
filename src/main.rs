//! The `callsheet` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    if callsheet::process::is_zygote_invocation() {
        return callsheet::process::run_zygote();
    }
    callsheet::cli::run()
}
