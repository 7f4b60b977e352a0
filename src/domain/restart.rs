//! Whether a supervisor restarts a child that has failed, and after which wait.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How many restarts a supervisor allows within which time, and how long it waits before each.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Restarts within [`RestartPolicy::window`] before the supervisor gives up.
    pub intensity: usize,
    /// The time over which restarts are counted.
    pub window: Duration,
    /// The wait before the second restart in a row; it doubles with each. The first is made at once.
    pub initial_backoff: Duration,
    /// The longest wait.
    pub maximum_backoff: Duration,
}

/// What a supervisor does about a failed child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartDecision {
    /// Start it again after this wait.
    After(Duration),
    /// Give up, and let the supervisor above decide.
    GiveUp,
}

/// The restarts of one child within the last window.
///
/// Times are durations since any fixed moment of a clock that only goes forward.
#[derive(Clone, Debug, Default)]
pub struct RestartBudget {
    recent: VecDeque<Duration>,
}

impl RestartBudget {
    /// Decides about a failure at `now`, and remembers it.
    pub fn on_failure(&mut self, policy: &RestartPolicy, now: Duration) -> RestartDecision {
        while self.recent.front().is_some_and(|at| now.saturating_sub(*at) > policy.window) {
            self.recent.pop_front();
        }
        if self.recent.len() >= policy.intensity {
            return RestartDecision::GiveUp;
        }
        let in_a_row = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        self.recent.push_back(now);
        RestartDecision::After(match in_a_row.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => {
                policy.initial_backoff.saturating_mul(2_u32.saturating_pow(doublings)).min(policy.maximum_backoff)
            }
        })
    }

    /// Whether no failure counts any more at `now`.
    fn is_whole(&self, policy: &RestartPolicy, now: Duration) -> bool {
        self.recent.back().is_none_or(|last| now.saturating_sub(*last) > policy.window)
    }
}

/// The budgets of children that come and go, by name, and that nobody gives up.
#[derive(Clone, Debug, Default)]
pub struct NamedBudgets {
    recent: BTreeMap<String, RestartBudget>,
}

impl NamedBudgets {
    /// How long this child waits for its next start after a failure at `now`; at the end of its budget the longest time.
    pub fn wait_after_failure(&mut self, name: &str, policy: &RestartPolicy, now: Duration) -> Duration {
        self.recent.retain(|_, budget| !budget.is_whole(policy, now));
        match self.recent.entry(name.to_owned()).or_default().on_failure(policy, now) {
            RestartDecision::After(wait) => wait,
            RestartDecision::GiveUp => policy.maximum_backoff,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: RestartPolicy = RestartPolicy {
        intensity: 5,
        window: Duration::from_secs(60),
        initial_backoff: Duration::from_millis(100),
        maximum_backoff: Duration::from_secs(1),
    };

    #[test]
    fn waits_double_and_then_it_gives_up() {
        let mut budget = RestartBudget::default();
        let decisions: Vec<_> = (0..6).map(|second| budget.on_failure(&POLICY, Duration::from_secs(second))).collect();
        let after = |milliseconds| RestartDecision::After(Duration::from_millis(milliseconds));
        assert_eq!(decisions, [after(0), after(100), after(200), after(400), after(800), RestartDecision::GiveUp]);
    }

    #[test]
    fn a_child_that_ran_well_for_a_window_starts_afresh() {
        let mut budget = RestartBudget::default();
        for second in 0..5 {
            budget.on_failure(&POLICY, Duration::from_secs(second));
        }
        assert_eq!(budget.on_failure(&POLICY, Duration::from_secs(120)), RestartDecision::After(Duration::ZERO));
    }

    #[test]
    fn a_child_that_is_not_given_up_waits_the_longest_time_and_is_forgotten_once_it_is_well() {
        let mut budgets = NamedBudgets::default();
        let mut wait =
            |name, second| budgets.wait_after_failure(name, &POLICY, Duration::from_secs(second)).as_millis();
        let waits: Vec<_> = (0..8).map(|second| wait("bad", second)).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1000, 1000, 1000]);
        assert_eq!((wait("other", 8), wait("bad", 100)), (0, 0));
        assert_eq!(budgets.recent.len(), 1);
    }

    proptest! {
        #[test]
        fn no_window_sees_more_restarts_than_the_intensity(gaps in prop::collection::vec(0_u64..40_000, 1..60)) {
            let mut budget = RestartBudget::default();
            let (mut now, mut restarts) = (Duration::ZERO, Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                if let RestartDecision::After(wait) = budget.on_failure(&POLICY, now) {
                    prop_assert!(wait <= POLICY.maximum_backoff);
                    restarts.push(now);
                }
                prop_assert!(restarts.iter().filter(|at| now - **at <= POLICY.window).count() <= POLICY.intensity);
            }
        }
    }
}
