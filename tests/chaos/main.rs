//! The chaos program: `kill -9` of service, helper and shims at random, for as long as it is told.
//!
//! `cargo test --release --test chaos -- --seeds 20 --minutes 30`; without arguments, as within `cargo test`, a short run.
//! Each seed is a service of its own with a sequential and a concurrent flow, retries and cancels, on SQLite (even seeds)
//! or PostgreSQL (odd ones). After the last kill every job must end, and what the database says about each is held
//! against what the commands wrote themselves and against `/proc`. A seed decides what is done and after which pauses;
//! what the machine makes of it differs from time to time.

#![expect(unreachable_pub, reason = "a program has no outside")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failed trial panics, and its table is what it is for"
)]

#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod support;
mod trial;

use std::process::ExitCode;
use std::time::Duration;

use trial::{Plan, Report};

/// The short run within `cargo test`: a seed on each database.
const SHORT: (u64, Duration) = (2, Duration::from_secs(12));

/// What the arguments ask for.
struct Wanted {
    first_seed: u64,
    seeds: u64,
    each: Duration,
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // What `cargo test` passes to test programs (a name to filter by, `--list`) is not for this one.
    if arguments.iter().any(|argument| argument == "--list") {
        println!("chaos: test");
        return ExitCode::SUCCESS;
    }
    let wanted = match wanted(&arguments) {
        Ok(wanted) => wanted,
        Err(problem) => {
            eprintln!(
                "{problem}\nusage: chaos [--seeds N] [--first-seed N] [--minutes M | --seconds S] [--keep-going]"
            );
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(wanted))
}

/// The time is for all seeds together.
fn wanted(arguments: &[String]) -> Result<Wanted, String> {
    let (mut first_seed, mut seeds, mut time, mut keep_going) = (None, None, None, false);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().ok_or(format!("{argument} wants a number"))?;
            value.parse::<u64>().map_err(|_| format!("{argument} wants a number, not {value:?}"))
        };
        match argument.as_str() {
            "--seeds" => seeds = Some(number()?.max(1)),
            "--first-seed" => first_seed = Some(number()?),
            "--minutes" => time = Some(Duration::from_secs(60 * number()?)),
            "--seconds" => time = Some(Duration::from_secs(number()?)),
            "--keep-going" => keep_going = true,
            other if other.starts_with("--seed") || other.starts_with("--min") => {
                return Err(format!("unknown option {other:?}"));
            }
            // Of `cargo test`.
            _ => {}
        }
    }
    let seeds = seeds.unwrap_or(SHORT.0);
    let time = time.unwrap_or(SHORT.1 * u32::try_from(SHORT.0).unwrap_or(1));
    let each = time / u32::try_from(seeds).map_err(|_| "too many seeds".to_owned())?;
    Ok(Wanted { first_seed: first_seed.unwrap_or(1), seeds, each, keep_going })
}

async fn run(wanted: Wanted) -> ExitCode {
    println!("{}", Report::heading());
    let mut total = Report::default();
    for seed in wanted.first_seed..wanted.first_seed + wanted.seeds {
        let Some(report) = trial::run(Plan { seed, time: wanted.each }).await else {
            println!("{seed:>6}  skipped: no PostgreSQL found");
            continue;
        };
        println!("{}", report.line(&seed.to_string()));
        for untruth in &report.untruths {
            println!("        {untruth}");
        }
        let failed = !report.untruths.is_empty();
        total.add(report);
        if failed && !wanted.keep_going {
            break;
        }
    }
    println!("{}", total.line("all"));
    if total.untruths.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
