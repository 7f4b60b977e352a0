//! When an event that a receiver did not take is sent again, and when no more.

use std::time::Duration;

use super::Timestamp;

/// The wait before the second try; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 60);
/// How long an event is tried.
pub const TRIED_FOR: Duration = Duration::from_secs(86_400);

/// How long to wait after so many tries that failed, the first of them at `first`; `None` where it is given up.
#[must_use]
pub fn next_try(tries: u32, first: Timestamp, now: Timestamp) -> Option<Duration> {
    let wait = FIRST_WAIT.saturating_mul(1 << tries.saturating_sub(1).min(20)).min(LONGEST_WAIT);
    (now.plus(wait) <= first.plus(TRIED_FOR)).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_tried_for_a_day_more_and_more_seldom() {
        let first = Timestamp::from_unix_millis(0);
        let (mut now, mut tries, mut waits) = (first, 1, Vec::new());
        while let Some(wait) = next_try(tries, first, now) {
            waits.push(wait.as_secs());
            now = now.plus(wait);
            tries += 1;
        }
        assert_eq!(waits[..5], [1, 2, 4, 8, 16]);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]) && waits.ends_with(&[1800, 1800]));
        assert!(now.since(first) > TRIED_FOR - LONGEST_WAIT && now.since(first) <= TRIED_FOR);
        assert!(next_try(u32::MAX, first, first).is_some());
        // A clock that was set back does not end it.
        assert!(next_try(3, Timestamp::from_unix_millis(50_000), first).is_some());
    }
}
