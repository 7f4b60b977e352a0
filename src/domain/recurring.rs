//! Recurring jobs: which fires of a schedule are due, and which of those that nobody was there for are caught up.

use std::time::Duration;

use super::Timestamp;
use super::schedule::Schedule;

/// What becomes of fires that nobody was there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// They are left out.
    Skip,
    /// The last of them is made up for, and stands for all.
    One,
    /// Each is made up for.
    All,
}

/// What becomes of a fire while the job of an earlier one has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// It enqueues another one.
    Allow,
    /// It enqueues nothing.
    Skip,
}

impl CatchUp {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Skip, Self::One, Self::All];

    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::One => "one",
            Self::All => "all",
        }
    }
}

impl Overlap {
    /// Every policy.
    pub const ALL: [Self; 2] = [Self::Allow, Self::Skip];

    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Skip => "skip",
        }
    }
}

/// A fire that is looked at so long after its time was not missed: a scheduler that has fallen silent is noticed, and a
/// service is restarted, within less.
pub const ON_TIME: Duration = Duration::from_secs(120);
/// Fires that are made up for in one look at most.
pub const MOST: usize = 200;
/// An entry that has fired so far ahead of the clock did so by a clock that was wrong.
const WRONG_CLOCK: Duration = Duration::from_secs(86_400);

/// What a look at an entry has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The fires to enqueue a job for, oldest first.
    pub fires: Vec<Timestamp>,
    /// Up to where all fires are dealt with now.
    pub until: Timestamp,
    /// Whether fires were left out because nobody was there for them.
    pub missed: bool,
    /// Whether there are more that are due.
    pub more: bool,
}

/// The fires after `until`, up to where all were dealt with before, that are due at `now`.
///
/// A clock that was set back finds nothing due until it is where it was, so that nothing comes twice; one that was wrong by
/// more than a day is not waited for.
#[must_use]
pub fn due(schedule: &Schedule, catch_up: CatchUp, until: Timestamp, now: Timestamp) -> Due {
    let nothing = |until| Due { fires: Vec::new(), until, missed: false, more: false };
    if until > now.plus(WRONG_CLOCK) {
        return nothing(now);
    }
    let Some(first) = schedule.next_fire(until).filter(|first| *first <= now) else { return nothing(until) };
    let on_time = now.minus(ON_TIME);
    let missed = first < on_time;
    match catch_up {
        CatchUp::All => {
            let mut fires = up_to(schedule, first, now, MOST + 1);
            let more = fires.len() > MOST;
            fires.truncate(MOST);
            Due { until: fires.last().copied().unwrap_or(first), fires, missed: false, more }
        }
        CatchUp::One if missed => {
            let last = last(schedule, first, now);
            Due { fires: vec![last], until: last, missed: true, more: false }
        }
        CatchUp::One | CatchUp::Skip => {
            let from = if missed { schedule.next_fire(on_time.minus(Duration::from_millis(1))) } else { Some(first) };
            let fires = from.map(|from| up_to(schedule, from, now, usize::MAX)).unwrap_or_default();
            let until = fires.last().copied().unwrap_or_else(|| last(schedule, first, now));
            Due { fires, until, missed, more: false }
        }
    }
}

/// `first` and the fires after it, up to `now`.
fn up_to(schedule: &Schedule, first: Timestamp, now: Timestamp, most: usize) -> Vec<Timestamp> {
    let fires = std::iter::successors(Some(first), |fire| schedule.next_fire(*fire));
    fires.take_while(|fire| *fire <= now).take(most).collect()
}

/// The last fire up to `now`, where `first` is one of them; found from its end, since there may be very many.
fn last(schedule: &Schedule, first: Timestamp, now: Timestamp) -> Timestamp {
    let mut back = ON_TIME;
    while now.minus(back) > first {
        if let Some(fire) = schedule.next_fire(now.minus(back)).filter(|fire| *fire <= now) {
            return up_to(schedule, fire, now, usize::MAX).pop().unwrap_or(fire);
        }
        back *= 2;
    }
    up_to(schedule, first, now, usize::MAX).pop().unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_unix_millis(milliseconds)
    }

    fn hourly() -> Schedule {
        Schedule::new("0 * * * *", "UTC").unwrap()
    }

    fn fires(catch_up: CatchUp, until: i64, now: i64) -> (Vec<i64>, i64) {
        let due = due(&hourly(), catch_up, at(until), at(now));
        (due.fires.iter().map(|fire| fire.unix_millis() / HOUR).collect(), due.until.unix_millis())
    }

    #[test]
    fn a_fire_that_is_on_time_comes_under_every_policy() {
        for policy in CatchUp::ALL {
            assert_eq!(fires(policy, 4 * HOUR, 5 * HOUR - 1), (vec![], 4 * HOUR));
            assert_eq!(fires(policy, 4 * HOUR, 5 * HOUR), (vec![5], 5 * HOUR));
            assert_eq!(fires(policy, 4 * HOUR, 5 * HOUR + MINUTE), (vec![5], 5 * HOUR));
        }
    }

    #[test]
    fn what_was_missed_is_caught_up_as_the_policy_says() {
        let (until, now) = (4 * HOUR, 7 * HOUR + 10 * MINUTE);
        assert_eq!(fires(CatchUp::Skip, until, now), (vec![], 7 * HOUR));
        assert_eq!(fires(CatchUp::One, until, now), (vec![7], 7 * HOUR));
        assert_eq!(fires(CatchUp::All, until, now), (vec![5, 6, 7], 7 * HOUR));
        // With one that is on time behind them.
        let now = 7 * HOUR + MINUTE;
        assert_eq!(fires(CatchUp::Skip, until, now), (vec![7], 7 * HOUR));
        assert_eq!(fires(CatchUp::One, until, now), (vec![7], 7 * HOUR));
        assert_eq!(fires(CatchUp::All, until, now), (vec![5, 6, 7], 7 * HOUR));
    }

    #[test]
    fn years_are_made_up_for_in_parts_or_at_once() {
        let minutely = Schedule::new("* * * * *", "UTC").unwrap();
        let (until, now) = (at(0), at(2 * 365 * 24 * HOUR));
        let all = due(&minutely, CatchUp::All, until, now);
        assert_eq!((all.fires.len(), all.more, all.until), (MOST, true, all.fires[MOST - 1]));
        assert_eq!(due(&minutely, CatchUp::One, until, now).fires, [now]);
        assert_eq!(due(&minutely, CatchUp::Skip, until, now).fires.len(), 3);
        let yearly = Schedule::new("0 0 1 1 *", "UTC").unwrap();
        assert_eq!(due(&yearly, CatchUp::One, until, at(now.unix_millis() + HOUR)).fires, [now]);
    }

    #[test]
    fn a_clock_that_was_set_back_fires_nothing_twice_and_one_that_was_wrong_is_not_waited_for() {
        assert_eq!(fires(CatchUp::All, 7 * HOUR, 5 * HOUR), (vec![], 7 * HOUR));
        assert_eq!(fires(CatchUp::All, 7 * HOUR, 7 * HOUR + 59 * MINUTE), (vec![], 7 * HOUR));
        assert_eq!(fires(CatchUp::All, 7 * HOUR, 8 * HOUR), (vec![8], 8 * HOUR));
        assert_eq!(fires(CatchUp::All, 1000 * HOUR, 7 * HOUR), (vec![], 7 * HOUR));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// However often and with whatever clock is looked, and whoever looks, each fire comes once.
        #[test]
        fn each_fire_comes_once(
            zone in prop_oneof![Just("Europe/Berlin"), Just("America/New_York"), Just("Australia/Lord_Howe"), Just("UTC")],
            line in prop_oneof![Just("*/7 * * * *"), Just("0,30 1-4 * * *"), Just("15 2 * * *"), Just("0 */3 * * *")],
            start in 1_700_000_000_000_i64..1_900_000_000_000,
            steps in prop::collection::vec(-3 * HOUR..9 * HOUR, 1..60),
        ) {
            let schedule = Schedule::new(line, zone).unwrap();
            let (mut now, mut until, mut seen, mut latest, mut wrong) = (start, at(start), Vec::new(), start, false);
            for step in steps {
                now += step;
                latest = latest.max(now);
                wrong |= latest - now > 20 * HOUR;
                loop {
                    let due = due(&schedule, CatchUp::All, until, at(now));
                    until = due.until;
                    seen.extend(due.fires);
                    if !due.more {
                        break;
                    }
                }
            }
            // As long as no clock was wrong by a day.
            if !wrong {
                let wanted: Vec<_> = std::iter::successors(schedule.next_fire(at(start)), |fire| schedule.next_fire(*fire))
                    .take_while(|fire| fire.unix_millis() <= latest).collect();
                prop_assert_eq!(seen, wanted);
            }
        }
    }
}
