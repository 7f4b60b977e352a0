//! Ends of short runs that wait for each other, so that more of them share a transaction.
//!
//! Where a flow is full and its commands end within milliseconds, a transaction for each two or three of them costs the
//! machine more than what else has to do with them. Nobody waits whom it could matter to: a flow with room, whose rows want to
//! be seen, has its ends written at once, and so has a command that ran for longer.

use std::time::Duration;

use tokio::time::Instant;

use super::status::Pending;
use crate::domain::RunToken;
use crate::store::Write;

/// The longest that an end waits for others. Timers of the runtime have milliseconds.
pub const PATIENCE: Duration = Duration::from_millis(1);
/// A command that ran for no longer is a short one. With 5, commands of 3 ms lost more by waiting than they gained.
const SHORT_MS: i64 = 2;
/// A run that was claimed so long ago, and is not over, is not one of a short command.
const YOUNG: Duration = Duration::from_millis(20);
/// Fewer than so many ends and young runs have little to share.
const FEWEST: usize = 4;
/// Of so many ends and young runs ...
const OF: usize = 8;
/// ... so many share a transaction: what the others do meanwhile keeps the processors busy while it is committed. Measured at
/// eight runs on two processors, where 4 and 6 did as well.
const SHARE: usize = 5;

/// The ends of a flow's runs that are not handed on yet, and what could come with them.
#[derive(Default)]
pub struct Gathering {
    held: Vec<Pending>,
    /// Whether one of them waits for nobody.
    hasty: bool,
    /// The runs that were claimed of late and are not over, and when that was.
    young: Vec<(RunToken, Instant)>,
    /// Whether the flow has no room for more runs than it has.
    full: bool,
}

impl Gathering {
    /// These runs were claimed, and with them the flow is full or is not.
    pub fn claimed<'a>(&mut self, tokens: impl Iterator<Item = &'a RunToken>, full: bool, now: Instant) {
        self.full = full;
        self.young.retain(|(_, claimed)| now.duration_since(*claimed) < YOUNG);
        self.young.extend(tokens.map(|token| (token.clone(), now)));
    }

    /// A run has ended.
    pub fn ended(&mut self, end: Pending) {
        for write in &end.writes {
            if let Write::Settle(settlement) = write {
                self.young.retain(|(token, _)| *token != settlement.token);
                self.hasty |= settlement.execution_ms.is_none_or(|ms| ms > SHORT_MS);
            }
        }
        self.held.push(end);
    }

    /// Whether what is held may wait for anything at all.
    pub fn may_wait(&self) -> bool {
        self.full && !self.hasty
    }

    /// Whether others are about to come that what is held should wait for.
    pub fn waits(&self, now: Instant) -> bool {
        let young = self.young.iter().filter(|(_, claimed)| now.duration_since(*claimed) < YOUNG).count();
        let all = self.held.len() + young;
        self.may_wait() && all >= FEWEST && self.held.len() * OF < all * SHARE
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What is held, to be handed on.
    pub fn take(&mut self) -> Vec<Pending> {
        self.hasty = false;
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::Reply;
    use crate::actors::tests::completed;
    use crate::domain::JobId;

    fn token(number: u32) -> RunToken {
        format!("{number:032x}").parse().unwrap()
    }

    fn end(number: u32, execution_ms: Option<i64>) -> Pending {
        let settlement = completed(JobId(number.into()), token(number), execution_ms);
        Pending { writes: vec![Write::Settle(settlement)], reply: Reply::new(|_| ()), ahead: None }
    }

    fn with_runs(count: u32, full: bool, now: Instant) -> Gathering {
        let mut gathering = Gathering::default();
        gathering.claimed((0..count).map(token).collect::<Vec<_>>().iter(), full, now);
        gathering
    }

    /// How many ends of a full flow's short runs are held before they are handed on.
    fn share_of(runs: u32) -> usize {
        let now = Instant::now();
        let mut gathering = with_runs(runs, true, now);
        for number in 0..runs {
            gathering.ended(end(number, Some(1)));
            if !gathering.waits(now) {
                break;
            }
        }
        gathering.take().len()
    }

    #[test]
    fn ends_of_short_runs_wait_until_most_of_them_are_there() {
        assert_eq!([1, 2, 3, 4, 8, 64].map(share_of), [1, 1, 1, 3, 5, 40]);
    }

    #[test]
    fn those_that_are_left_wait_for_those_that_are_claimed_next() {
        let now = Instant::now();
        let mut gathering = with_runs(8, true, now);
        for number in 0..5 {
            gathering.ended(end(number, Some(1)));
        }
        assert_eq!(gathering.take().len(), 5);
        for number in 5..8 {
            gathering.ended(end(number, Some(1)));
        }
        assert!(!gathering.waits(now), "nobody else is about to end");
        gathering.claimed((8..13).map(token).collect::<Vec<_>>().iter(), true, now);
        assert!(gathering.waits(now));
        gathering.ended(end(8, Some(1)));
        gathering.ended(end(9, Some(1)));
        assert!(!gathering.waits(now));
        assert_eq!(gathering.take().len(), 5);
        assert!(gathering.is_empty());
    }

    #[test]
    fn nobody_waits_in_a_flow_with_room() {
        let now = Instant::now();
        let mut gathering = with_runs(8, false, now);
        gathering.ended(end(0, Some(1)));
        assert!(!gathering.waits(now) && !gathering.may_wait());
    }

    #[test]
    fn the_end_of_a_longer_command_and_what_never_ran_wait_for_nobody() {
        let now = Instant::now();
        for execution_ms in [Some(3), None] {
            let mut gathering = with_runs(8, true, now);
            gathering.ended(end(0, Some(1)));
            assert!(gathering.waits(now));
            gathering.ended(end(1, execution_ms));
            assert!(!gathering.waits(now) && !gathering.may_wait(), "{execution_ms:?}");
            gathering.take();
            gathering.ended(end(2, Some(1)));
            assert!(gathering.waits(now), "the next ones do again");
        }
    }

    #[test]
    fn runs_that_are_not_over_soon_are_not_waited_for() {
        let claimed = Instant::now();
        let mut gathering = with_runs(8, true, claimed);
        gathering.ended(end(0, Some(1)));
        assert!(gathering.waits(claimed + YOUNG / 2));
        assert!(!gathering.waits(claimed + YOUNG));
        // Nor are they remembered.
        gathering.claimed(std::iter::empty(), true, claimed + YOUNG);
        assert!(gathering.young.is_empty());
    }
}
