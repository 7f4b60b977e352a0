//! How often a run is confirmed in the store, and what follows where it is not.
//!
//! With a shared database a run is its worker's by lease. Two clocks measure it, and neither is compared with the other:
//! the shim counts from when the last confirmation was *asked for* and ends its command; the database counts from when
//! that confirmation was *committed*, which is later, and another worker takes the job over only well after that.

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

/// How late a shim may be with a SIGKILL that is due, on a machine too busy to run it, and what two clocks may differ by
/// over one lease.
pub const TAKEOVER_MARGIN: Duration = Duration::from_secs(5);

/// Whether another worker may take a run over that was last confirmed `unconfirmed` ago by the database's clock.
///
/// By then its shim, wherever it is, has asked its command to end for want of a confirmation, has killed it when
/// `kill_grace` had passed, and has been given [`TAKEOVER_MARGIN`] to be late.
#[must_use]
pub fn may_be_taken_over(unconfirmed: Duration, heartbeat_timeout: Duration, kill_grace: Duration) -> bool {
    is_overdue(unconfirmed, heartbeat_timeout.saturating_add(kill_grace).saturating_add(TAKEOVER_MARGIN))
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

        #[test]
        fn nobody_takes_over_what_may_still_run(timeout in 0_u64..10_000_000, grace in 0_u64..10_000_000, unconfirmed in 0_u64..30_000_000) {
            let [timeout, grace, unconfirmed] = [timeout, grace, unconfirmed].map(Duration::from_millis);
            if may_be_taken_over(unconfirmed, timeout, grace) {
                prop_assert!(unconfirmed > timeout + grace + TAKEOVER_MARGIN);
                prop_assert!(is_overdue(unconfirmed, timeout));
            }
            prop_assert!(!may_be_taken_over(timeout.max(grace), Duration::MAX, grace));
        }
    }
}
