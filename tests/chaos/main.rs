//! The chaos program: `kill -9` of service, helper and shims at random, for as long as it is told.
//!
//! `cargo test --release --test chaos -- --seeds 20 --minutes 30`; without arguments, as within `cargo test`, a short run.
//! Each seed is a service of its own with a sequential and a concurrent flow, retries and cancels, on PostgreSQL, MariaDB
//! and SQLite in turn. After the last kill every job must end, and what the database says about each is held
//! against what the commands wrote themselves and against `/proc`. A seed decides what is done and after which pauses;
//! what the machine makes of it differs from time to time.
//!
//! `cargo test --test chaos -- --workers 2-5 --seeds 20 --minutes 30` is the same with several workers on one PostgreSQL:
//! killed, frozen, cut off, slowed and stopped, with clocks apart, while the database is restarted, killed and failed over.

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

mod chance;
mod cluster;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod support;
mod trial;

use std::process::ExitCode;
use std::time::Duration;

use trial::Plan;

/// The short run within `cargo test`: a seed on each database.
const SHORT: (u64, Duration) = (3, Duration::from_secs(8));

/// The short run with several workers: a seed that has a bit of everything in so little time.
const SHORT_CLUSTER: (u64, Duration) = (12708, Duration::from_secs(12));

/// What came of one seed.
trait Report: Default {
    fn heading() -> String;
    fn line(&mut self, name: &str) -> String;
    fn add(&mut self, other: Self);
    /// What is not true; empty where all is well.
    fn untruths(&self) -> &[String];
}

/// What the arguments ask for.
struct Wanted {
    /// Between how many workers there are; `None` for one service.
    workers: Option<(u64, u64)>,
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
                "{problem}\nusage: chaos [--workers N|N-M] [--seeds N] [--first-seed N] [--minutes M | --seconds S] [--keep-going]"
            );
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let well = runtime.block_on(async {
        match wanted {
            Some(wanted) if wanted.workers.is_some() => cluster(&wanted).await,
            Some(wanted) => alone(&wanted).await,
            None => {
                let short =
                    |workers, first_seed, seeds, each| Wanted { workers, first_seed, seeds, each, keep_going: false };
                let (seed, time) = SHORT_CLUSTER;
                alone(&short(None, 1, SHORT.0, SHORT.1)).await & cluster(&short(Some((3, 3)), seed, 1, time)).await
            }
        }
    });
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The time is for all seeds together; `None` where nothing is asked for.
fn wanted(arguments: &[String]) -> Result<Option<Wanted>, String> {
    let (mut workers, mut first_seed, mut seeds, mut time, mut keep_going) = (None, None, None, None, false);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a number"));
        let number = |value: &str| value.parse().map_err(|_| format!("{argument} wants a number, not {value:?}"));
        match argument.as_str() {
            "--workers" => {
                let range = value()?;
                let (least, most) = range.split_once('-').unwrap_or((range, range));
                let range: (u64, u64) = (number(least)?, number(most)?);
                if range.0 < 2 || range.1 < range.0 || range.1 > 20 {
                    return Err(format!("{argument} wants 2 to 20 workers, such as 2-5"));
                }
                workers = Some(range);
            }
            "--seeds" => seeds = Some(number(value()?)?.max(1)),
            "--first-seed" => first_seed = Some(number(value()?)?),
            "--minutes" => time = Some(Duration::from_secs(60 * number(value()?)?)),
            "--seconds" => time = Some(Duration::from_secs(number(value()?)?)),
            "--keep-going" => keep_going = true,
            other if ["--seed", "--min", "--work"].iter().any(|start| other.starts_with(start)) => {
                return Err(format!("unknown option {other:?}"));
            }
            // Of `cargo test`.
            _ => {}
        }
    }
    if workers.is_none() && first_seed.is_none() && seeds.is_none() && time.is_none() {
        return Ok(None);
    }
    let seeds = seeds.unwrap_or(SHORT.0);
    let count = u32::try_from(seeds).map_err(|_| "too many seeds".to_owned())?;
    let each = time.map_or(SHORT.1, |time| time / count);
    Ok(Some(Wanted { workers, first_seed: first_seed.unwrap_or(1), seeds, each, keep_going }))
}

/// Seeds of one service.
async fn alone(wanted: &Wanted) -> bool {
    each_seed(wanted, async |seed| trial::run(Plan { seed, time: wanted.each }).await).await
}

/// Seeds of several workers.
async fn cluster(wanted: &Wanted) -> bool {
    let (namespaces, survey) = cluster::survey();
    println!("{survey}");
    let workers = wanted.workers.unwrap_or((2, 5));
    each_seed(wanted, async |seed| cluster::run(seed, workers, wanted.each, namespaces).await).await
}

/// Whether all that was said is true.
async fn each_seed<R: Report>(wanted: &Wanted, run: impl AsyncFn(u64) -> Option<R>) -> bool {
    println!("{}", R::heading());
    let mut total = R::default();
    for seed in wanted.first_seed..wanted.first_seed + wanted.seeds {
        let Some(mut report) = run(seed).await else {
            println!("{seed:>6}  skipped: its database was not found");
            continue;
        };
        println!("{}", report.line(&seed.to_string()));
        for untruth in report.untruths() {
            println!("        {untruth}");
        }
        let failed = !report.untruths().is_empty();
        total.add(report);
        if failed && !wanted.keep_going {
            break;
        }
    }
    println!("{}", total.line("all"));
    total.untruths().is_empty()
}
