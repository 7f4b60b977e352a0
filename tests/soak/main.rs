//! The soak: `cargo bench --bench soak -- --minutes 60`. What the service uses stays flat, however many jobs go through.
//!
//! Prints a line of figures each sample, then how the jobs ended and everything that is not as it should be, and exits
//! with 1 where there is such a thing. `--postgres` has it on a PostgreSQL of its own instead of SQLite, and
//! `--binary PATH` tries another program than the one that was just built.

#![expect(
    unreachable_pub,
    clippy::print_stdout,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a program for the terminal"
)]

mod engine;
#[expect(dead_code, reason = "what the tests do to a server of their own")]
#[path = "../it/support/postgres.rs"]
mod postgres;

use std::process::ExitCode;
use std::time::Duration;

use engine::Plan;

/// The line above samples.
const HEADINGS: &str = "     s  nr | service: KiB fds thr | helper fds | shims KiB fds | zo |  open   jobs  events   DB KiB | dirs     KiB";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).expect("a value"))
    };
    let value = |name: &str| after(name).map(|value| value.parse::<u64>().expect("a whole number"));
    let minutes = value("--minutes").unwrap_or(5);
    let duration = Duration::from_secs(60 * minutes);
    let plan = Plan {
        duration,
        jobs_per_second: 4.0,
        long: value("--long").unwrap_or(90),
        // Long enough for what grows slowly, and an even number of kills and stops.
        incarnation: duration / 4,
        kept: Duration::from_secs(120).min(duration / 8),
        sample: Duration::from_secs(5).min(duration / 60),
        seed: value("--seed").unwrap_or(1),
        binary: after("--binary").map_or(env!("CARGO_BIN_EXE_callsheet"), String::as_str).into(),
    };
    println!("{plan:?}");
    let scratch = tempfile::Builder::new().prefix("callsheet-soak-").tempdir().expect("a scratch directory");
    let url = if arguments.iter().any(|argument| argument == "--postgres") {
        postgres::database().expect("PostgreSQL is installed")
    } else {
        format!("sqlite://{}/data/callsheet.db", scratch.path().display())
    };
    println!("{HEADINGS}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let report = runtime.block_on(engine::run(&plan, scratch.path(), &url, |sample| println!("{sample}")));
    println!("{HEADINGS}");
    println!("ended: {:?}; {} kills and {} planned stops of the service", report.ended, report.kills, report.stops);
    for problem in &report.problems {
        println!("NOT AS IT SHOULD BE: {problem}");
    }
    if report.problems.is_empty() {
        println!("all jobs ended as they should, and everything stayed flat");
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}
