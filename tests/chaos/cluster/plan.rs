//! What is done to whom and when: drawn from the seed and from nothing else.

use std::fmt;
use std::time::Duration;

use crate::chance::Chance;

/// What a flow of the trial says of its leases; strikes are shorter and longer than these.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);
pub const KILL_GRACE: Duration = Duration::from_millis(200);

/// What a takeover may take after its worker was killed, and what the plan then leaves free of other strikes.
pub const TAKEOVER: Duration = Duration::from_millis(7200);

/// How far a worker's wall clock may be from the database's, in seconds.
const CLOCKS: [i64; 7] = [0, 0, 3600, -3600, 37, -90, 86_400 * 400];

/// Which packets between a worker and its database are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// What it asks.
    Out,
    /// What it is answered, so that it never hears of what it has done.
    In,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// `kill -9` of the service, and its next start so long later.
    Kill(usize),
    /// SIGSTOP.
    Freeze(usize),
    CutOff(usize, Cut),
    /// The network's delay and loss.
    Slow(usize),
    /// SIGTERM, with the commands left running.
    Stop(usize),
    /// Whichever worker runs a certain command is killed, with nothing else wrong, and the takeover is timed.
    KillAndTime,
    RestartDatabase,
    KillDatabase,
    /// The primary is killed, and its replica promoted so long later.
    FailOver,
    /// The so many-th of the open jobs.
    Cancel(u64),
}

/// One strike, and when the end of it comes.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// Since the first strike could have been.
    pub at: Duration,
    pub strike: Strike,
    pub lasts: Duration,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Each worker's wall clock, in seconds ahead of the database's.
    pub clocks: Vec<i64>,
    /// In the order of their times.
    pub strikes: Vec<Planned>,
}

impl Plan {
    /// A plan of strikes on so many workers for so long.
    pub fn draw(seed: u64, workers: (u64, u64), time: Duration) -> Self {
        let mut chance = Chance(seed);
        let count = workers.0 + chance.below(workers.1 - workers.0 + 1);
        let clocks: Vec<i64> = (0..count).map(|_| *chance.pick(&CLOCKS).unwrap()).collect();
        let mut free: Vec<Duration> = vec![Duration::ZERO; clocks.len()];
        let (mut database_free, mut at, mut strikes) = (Duration::ZERO, Duration::ZERO, Vec::new());
        // A takeover is timed in each plan, and comes again where there is time for it.
        let mut timed_at = chance.time(500, 2500);
        while at < time {
            at += chance.time(50, 900);
            if at >= timed_at {
                let quiet = free.iter().copied().fold(database_free, Duration::max).max(at);
                strikes.push(Planned { at: quiet, strike: Strike::KillAndTime, lasts: TAKEOVER });
                at = quiet + TAKEOVER;
                timed_at = at + chance.time(8_000, 20_000);
                continue;
            }
            let worker = usize::try_from(chance.below(count)).unwrap();
            let (strike, lasts) = match chance.below(100) {
                0..=24 => (Strike::Kill(worker), chance.time(100, 6_000)),
                25..=39 => (Strike::Freeze(worker), chance.time(500, 7_000)),
                40..=62 => {
                    let cut = *chance.pick(&[Cut::Out, Cut::In, Cut::Both]).unwrap();
                    (Strike::CutOff(worker, cut), chance.time(300, 7_000))
                }
                63..=71 => (Strike::Slow(worker), chance.time(1_000, 5_000)),
                72..=77 => (Strike::Stop(worker), chance.time(100, 3_000)),
                78..=81 => (Strike::RestartDatabase, chance.time(0, 1_000)),
                82..=85 => (Strike::KillDatabase, chance.time(0, 1_500)),
                86..=90 => (Strike::FailOver, chance.time(0, 1_500)),
                _ => (Strike::Cancel(chance.below(64)), Duration::ZERO),
            };
            // One strike at a time on each, but any number of them at once.
            let struck = match strike {
                Strike::Kill(worker)
                | Strike::Freeze(worker)
                | Strike::CutOff(worker, _)
                | Strike::Slow(worker)
                | Strike::Stop(worker) => Some(&mut free[worker]),
                Strike::RestartDatabase | Strike::KillDatabase | Strike::FailOver => Some(&mut database_free),
                Strike::KillAndTime | Strike::Cancel(_) => None,
            };
            if let Some(free) = struck {
                if *free > at {
                    continue;
                }
                // Time to do something between two of them.
                *free = at + lasts + Duration::from_secs(1);
            }
            strikes.push(Planned { at, strike, lasts });
        }
        Self { seed, clocks, strikes }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plan {}: {} workers, clocks {:?} s;", self.seed, self.clocks.len(), self.clocks)?;
        for Planned { at, strike, lasts } in &self.strikes {
            write!(f, " {:.1} {strike:?} {:.1};", at.as_secs_f32(), lasts.as_secs_f32())?;
        }
        Ok(())
    }
}
