//! When a failed attempt is tried again: Temporal's retry policy under Temporal's names.

use std::time::Duration;

use super::Attempt;

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
    /// A job that may not be tried at all.
    #[error("maximum_attempts must be at least 1")]
    NoAttempts,
    /// A coefficient that would shrink the waits, or is no number.
    #[error("backoff_coefficient must be a number of at least 1")]
    ShrinkingBackoff,
    /// A first wait that is longer than the longest.
    #[error("initial_interval must not be longer than maximum_interval")]
    InitialOverMaximum,
    /// An exit code that no process can have.
    #[error("an exit code is a number from 1 to 255")]
    ImpossibleExitCode,
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
        if maximum_attempts == 0 {
            return Err(InvalidRetryPolicy::NoAttempts);
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
        Ok(Self { maximum_attempts, initial_interval, backoff_coefficient, maximum_interval, non_retryable_exit_codes })
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
    /// `initial_interval × backoff_coefficient^(failed − 1)`, at most `maximum_interval`.
    #[must_use]
    pub fn wait_after(&self, failed: Attempt) -> Duration {
        let exponent = i32::try_from(failed.0.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.initial_interval.as_secs_f64() * self.backoff_coefficient.powi(exponent);
        if seconds.is_finite() && seconds < self.maximum_interval.as_secs_f64() {
            Duration::from_secs_f64(seconds)
        } else {
            self.maximum_interval
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy() -> RetryPolicy {
        RetryPolicy::new(5, Duration::from_secs(1), 2.0, Duration::from_secs(100), vec![2]).unwrap()
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<u64> = [1, 2, 3, 7, 8, 400].map(|n| policy().wait_after(Attempt(n)).as_secs()).to_vec();
        assert_eq!(waits, [1, 2, 4, 64, 100, 100]);
    }

    #[test]
    fn policies_that_make_no_sense_are_refused() {
        let second = Duration::from_secs(1);
        assert_eq!(RetryPolicy::new(0, second, 2.0, second, vec![]), Err(InvalidRetryPolicy::NoAttempts));
        assert_eq!(RetryPolicy::new(1, second, 0.5, second, vec![]), Err(InvalidRetryPolicy::ShrinkingBackoff));
        assert_eq!(RetryPolicy::new(1, second, f64::NAN, second, vec![]), Err(InvalidRetryPolicy::ShrinkingBackoff));
        assert_eq!(RetryPolicy::new(1, 2 * second, 2.0, second, vec![]), Err(InvalidRetryPolicy::InitialOverMaximum));
        assert_eq!(RetryPolicy::new(1, second, 2.0, second, vec![0]), Err(InvalidRetryPolicy::ImpossibleExitCode));
    }

    proptest! {
        #[test]
        fn waits_grow_and_stay_in_bounds(
            initial in 0_u64..10_000, more in 0_u64..1_000_000, coefficient in 1.0_f64..10.0, attempt in 1_u32..100_000,
        ) {
            let (initial, longest) = (Duration::from_millis(initial), Duration::from_millis(initial + more));
            let policy = RetryPolicy::new(9, initial, coefficient, longest, vec![]).unwrap();
            let wait = policy.wait_after(Attempt(attempt));
            prop_assert!(wait >= initial && wait <= longest);
            prop_assert!(policy.wait_after(Attempt(attempt + 1)) >= wait);
        }
    }
}
