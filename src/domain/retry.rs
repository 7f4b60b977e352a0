//! When a failed attempt is tried again: Temporal's retry policy under Temporal's names.

use std::time::Duration;

use super::{Attempt, RunToken};

/// EX_TEMPFAIL of sysexits.h(3head): "temporary failure; the user is invited to try again later". Always retryable.
pub const TEMPORARY_FAILURE: i32 = 75;

/// By how much of itself a wait may grow, so that jobs that failed together are not tried again together.
const JITTER: f64 = 0.1;

/// Where in the spread of a wait one attempt stands, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jitter(f64);

impl Jitter {
    /// The shortest wait of the spread.
    pub const NONE: Self = Self(0.0);

    /// The one of an attempt: what follows the number in its token is as random as anything drawn now, and says the same when asked
    /// again.
    #[must_use]
    pub fn of(token: &RunToken) -> Self {
        let bits =
            token.as_str().get(8..16).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
        Self(f64::from(bits) / f64::from(u32::MAX))
    }
}

/// How often and how soon a failed attempt is tried again.
///
/// Invariants, held by [`RetryPolicy::new`]: at least one attempt; a coefficient of at least 1, so waits never
/// shrink; a first wait no longer than the longest.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    maximum_attempts: u32,
    initial_interval: Duration,
    backoff_coefficient: f64,
    maximum_interval: Duration,
    non_retryable_exit_codes: Vec<i32>,
}

/// Why numbers make no retry policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRetryPolicy {
    /// A job that may not be tried at all, or more often than can be counted in its row.
    #[error("maximum_attempts must be 1 to {MOST_ATTEMPTS}")]
    AttemptsOutOfRange,
    /// A coefficient that would shrink the waits, or is no number.
    #[error("backoff_coefficient must be a number of at least 1")]
    ShrinkingBackoff,
    /// A first wait that is longer than the longest.
    #[error("initial_interval must not be longer than maximum_interval")]
    InitialOverMaximum,
    /// An exit code that no process can have.
    #[error("an exit code is a number from 1 to 255")]
    ImpossibleExitCode,
    /// The exit code that asks to be tried again.
    #[error("exit code {TEMPORARY_FAILURE} (EX_TEMPFAIL) asks to be tried again, so it can't be a non-retryable one")]
    TemporaryFailure,
}

/// The most attempts that a job may have: what its row can hold, on every database (constraint `maximum_attempts_is_1_or_more`).
pub const MOST_ATTEMPTS: u32 = i32::MAX.unsigned_abs();

/// This many attempts, where a job may have so many: 1 to [`MOST_ATTEMPTS`].
#[must_use]
pub fn attempts_in_range(attempts: i64) -> Option<u32> {
    u32::try_from(attempts).ok().filter(|attempts| (1..=MOST_ATTEMPTS).contains(attempts))
}

impl RetryPolicy {
    /// A policy of these numbers.
    ///
    /// # Errors
    /// Where they break one of the type's invariants.
    pub fn new(
        maximum_attempts: u32,
        initial_interval: Duration,
        backoff_coefficient: f64,
        maximum_interval: Duration,
        non_retryable_exit_codes: Vec<i32>,
    ) -> Result<Self, InvalidRetryPolicy> {
        if attempts_in_range(maximum_attempts.into()).is_none() {
            return Err(InvalidRetryPolicy::AttemptsOutOfRange);
        }
        if !backoff_coefficient.is_finite() || backoff_coefficient < 1.0 {
            return Err(InvalidRetryPolicy::ShrinkingBackoff);
        }
        if initial_interval > maximum_interval {
            return Err(InvalidRetryPolicy::InitialOverMaximum);
        }
        if non_retryable_exit_codes.iter().any(|code| !(1..=255).contains(code)) {
            return Err(InvalidRetryPolicy::ImpossibleExitCode);
        }
        if non_retryable_exit_codes.contains(&TEMPORARY_FAILURE) {
            return Err(InvalidRetryPolicy::TemporaryFailure);
        }
        Ok(Self { maximum_attempts, initial_interval, backoff_coefficient, maximum_interval, non_retryable_exit_codes })
    }

    /// Every number under its name in the configuration, as it is shown.
    #[must_use]
    pub fn settings(&self) -> [(&'static str, String); 5] {
        let duration = |duration| humantime::format_duration(duration).to_string();
        [
            ("retry.maximum_attempts", self.maximum_attempts.to_string()),
            ("retry.initial_interval", duration(self.initial_interval)),
            ("retry.backoff_coefficient", self.backoff_coefficient.to_string()),
            ("retry.maximum_interval", duration(self.maximum_interval)),
            ("retry.non_retryable_exit_codes", format!("{:?}", self.non_retryable_exit_codes)),
        ]
    }

    /// How many attempts a job of this flow gets where its row does not say.
    #[must_use]
    pub fn maximum_attempts(&self) -> u32 {
        self.maximum_attempts
    }

    /// Whether a command that ended with `code` may be tried again at all.
    #[must_use]
    pub fn is_retryable_exit_code(&self, code: i32) -> bool {
        !self.non_retryable_exit_codes.contains(&code)
    }

    /// How long to wait after attempt `failed` before the next:
    /// `initial_interval × backoff_coefficient^(failed − 1)`, and up to a tenth more; never less than `initial_interval`
    /// nor more than `maximum_interval`, so the longest waits are spread below it.
    #[must_use]
    pub fn wait_after(&self, failed: Attempt, jitter: Jitter) -> Duration {
        let exponent = i32::try_from(failed.0.saturating_sub(1)).unwrap_or(i32::MAX);
        let (initial, longest) = (self.initial_interval.as_secs_f64(), self.maximum_interval.as_secs_f64());
        // Zero times infinity is no number, which `min` takes for the longest; without a first wait there is none later.
        let nominal = if initial > 0.0 { initial * self.backoff_coefficient.powi(exponent) } else { 0.0 };
        let most = (nominal * (1.0 + JITTER)).min(longest);
        let least = nominal.min(most / (1.0 + JITTER)).max(initial);
        let wait = Duration::try_from_secs_f64(least + (most - least).max(0.0) * jitter.0);
        // Rounding in floating point must not leave the bounds that were asked for.
        wait.unwrap_or(self.maximum_interval).clamp(self.initial_interval, self.maximum_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::BootMark;
    use proptest::prelude::*;

    fn policy() -> RetryPolicy {
        RetryPolicy::new(5, Duration::from_secs(1), 2.0, Duration::from_secs(100), vec![2]).unwrap()
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<u64> =
            [1, 2, 3, 7, 8, 400].map(|n| policy().wait_after(Attempt(n), Jitter::NONE).as_secs()).to_vec();
        assert_eq!(waits, [1, 2, 4, 64, 90, 90]);
        let waits: Vec<u128> =
            [1, 2, 7, 8, 400].map(|n| policy().wait_after(Attempt(n), Jitter(1.0)).as_millis()).to_vec();
        assert_eq!(waits, [1100, 2200, 70_400, 100_000, 100_000]);
    }

    #[test]
    fn policies_that_make_no_sense_are_refused() {
        let second = Duration::from_secs(1);
        for attempts in [0, MOST_ATTEMPTS + 1] {
            let refused = Err(InvalidRetryPolicy::AttemptsOutOfRange);
            assert_eq!(RetryPolicy::new(attempts, second, 2.0, second, vec![]), refused);
        }
        assert_eq!(RetryPolicy::new(1, second, 0.5, second, vec![]), Err(InvalidRetryPolicy::ShrinkingBackoff));
        assert_eq!(RetryPolicy::new(1, second, f64::NAN, second, vec![]), Err(InvalidRetryPolicy::ShrinkingBackoff));
        assert_eq!(RetryPolicy::new(1, 2 * second, 2.0, second, vec![]), Err(InvalidRetryPolicy::InitialOverMaximum));
        assert_eq!(RetryPolicy::new(1, second, 2.0, second, vec![0]), Err(InvalidRetryPolicy::ImpossibleExitCode));
        assert_eq!(RetryPolicy::new(1, second, 2.0, second, vec![75]), Err(InvalidRetryPolicy::TemporaryFailure));
    }

    proptest! {
        #[test]
        fn waits_grow_and_stay_in_bounds(
            initial in 0_u64..10_000, more in 0_u64..1_000_000, coefficient in 1.0_f64..10.0, attempt in 1_u32..100_000,
            token in any::<[u8; 16]>(),
        ) {
            let (initial, longest) = (Duration::from_millis(initial), Duration::from_millis(initial + more));
            let policy = RetryPolicy::new(9, initial, coefficient, longest, vec![]).unwrap();
            let jitter = Jitter::of(&RunToken::from_bytes(token));
            let wait = policy.wait_after(Attempt(attempt), jitter);
            prop_assert!(wait >= initial && wait <= longest);
            prop_assert!(policy.wait_after(Attempt(attempt + 1), jitter) >= wait);
            let (least, most) = (policy.wait_after(Attempt(attempt), Jitter(0.0)), policy.wait_after(Attempt(attempt), Jitter(1.0)));
            prop_assert!(least <= wait && wait <= most && most.as_secs_f64() <= least.as_secs_f64() * 1.1 + 1e-6);
        }

        #[test]
        fn a_wait_that_has_room_is_spread_over_its_whole_tenth(random in prop::collection::vec(any::<[u8; 8]>(), 200)) {
            // Of runs that were claimed, and maybe fail, together.
            let tokens = (0..).zip(random).map(|(number, random)| RunToken::new(number, random, BootMark([0; 4])));
            let waits: Vec<Duration> =
                tokens.map(|token| policy().wait_after(Attempt(3), Jitter::of(&token))).collect();
            prop_assert!(waits.iter().min() < Some(&Duration::from_millis(4_100)));
            prop_assert!(waits.iter().max() > Some(&Duration::from_millis(4_300)));
        }
    }
}
