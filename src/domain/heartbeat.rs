//! How often a run is confirmed in the store.

use std::time::Duration;

/// The longest time between two confirmations, so that a cancel request that no wake-up announced is seen soon.
const LONGEST_INTERVAL: Duration = Duration::from_secs(5);

/// How often a run is confirmed: four times within its `heartbeat_timeout`, so that three in a row may fail
/// before another worker may think it lost, and at least every five seconds.
#[must_use]
pub fn confirmation_interval(heartbeat_timeout: Duration) -> Duration {
    (heartbeat_timeout / 4).clamp(Duration::from_millis(50), LONGEST_INTERVAL)
}

/// Whether a run that was last confirmed `unconfirmed` ago counts as lost to its worker.
#[must_use]
pub fn is_overdue(unconfirmed: Duration, heartbeat_timeout: Duration) -> bool {
    unconfirmed > heartbeat_timeout
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn three_confirmations_may_fail(timeout in 200_u64..10_000_000) {
            let timeout = Duration::from_millis(timeout);
            let interval = confirmation_interval(timeout);
            prop_assert!(!is_overdue(interval * 4, timeout));
            prop_assert!(interval <= LONGEST_INTERVAL);
        }
    }
}
