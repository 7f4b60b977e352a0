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
pub const TAKEOVER_MARGIN: Duration = Duration::from_secs(3);

/// How long a run may go unconfirmed after its service has stopped as it was told to and left the command running: long
/// enough for an upgrade.
pub const PLANNED_STOP: Duration = Duration::from_secs(600);

/// How long a run is its worker's after a confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// As long as its command may run at all: no other worker lives that could take it over.
    Long,
    /// For `heartbeat_timeout`; other workers wait for it.
    Short,
    /// For [`PLANNED_STOP`], or for `heartbeat_timeout` where that is longer.
    Planned,
}

/// What a flow says about the leases of its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// `heartbeat_timeout`
    pub heartbeat_timeout: Duration,
    /// `start_to_close_timeout`
    pub start_to_close_timeout: Duration,
    /// `kill_grace`
    pub kill_grace: Duration,
}

impl LeaseTerms {
    /// How long after a confirmation the command may run on without another one; `None` for as long as it may run at all.
    #[must_use]
    pub fn runs_on(self, lease: Lease) -> Option<Duration> {
        match lease {
            Lease::Long => None,
            Lease::Short => Some(self.heartbeat_timeout),
            Lease::Planned => Some(PLANNED_STOP.max(self.heartbeat_timeout)),
        }
    }

    /// How long after a confirmation no other worker may take the run over, by the database's clock.
    ///
    /// By then its shim, wherever it is, has asked its command to end for want of a confirmation (or for want of time), has
    /// killed it when `kill_grace` had passed, and has been given [`TAKEOVER_MARGIN`] to be late. A command may start up to
    /// `heartbeat_timeout` after its claim and no later.
    #[must_use]
    pub fn untouched(self, lease: Lease) -> Duration {
        let longest = self.heartbeat_timeout.saturating_add(self.start_to_close_timeout);
        self.runs_on(lease).unwrap_or(longest).saturating_add(self.kill_grace).saturating_add(TAKEOVER_MARGIN)
    }
}

/// What a shim is to be told about its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// Nothing.
    Nothing,
    /// To end its command at a time that this lease counts from when the confirmation was asked for.
    Until(Lease),
    /// To let its command run without confirmations.
    Freely,
}

/// Whether a run's lease is short, in the store and at its shim.
///
/// The store's is never the shorter one: before it is shortened the shim has acknowledged the same, and before the shim is
/// let go the store has a long one. So at no moment may a run be taken over whose command still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leasing {
    /// Long in both.
    Long,
    /// Long in the store; the shim was told of a short one.
    Shortening,
    /// Short at the shim; short in the store from the next confirmation on.
    Short,
    /// Short at the shim; long in the store from the next confirmation on.
    Lengthening,
    /// The service stops, and the run is to have a longer lease that ends.
    Planned,
    /// The service stops, long in both.
    Left,
}

impl Leasing {
    /// The lease that the next confirmation writes.
    #[must_use]
    pub const fn to_write(self) -> Lease {
        match self {
            Self::Long | Self::Shortening | Self::Lengthening | Self::Left => Lease::Long,
            Self::Short => Lease::Short,
            Self::Planned => Lease::Planned,
        }
    }

    /// A confirmation has been committed that wrote this lease, while other workers lived or did not.
    #[must_use]
    pub const fn confirmed(self, wrote: Lease, shared: bool) -> (Self, Tell) {
        match (self, wrote, shared) {
            (Self::Long, _, false) => (Self::Long, Tell::Nothing),
            (Self::Long | Self::Shortening, _, true) | (Self::Lengthening, Lease::Long, true) => {
                (Self::Shortening, Tell::Until(Lease::Short))
            }
            (Self::Shortening, _, false) | (Self::Lengthening, Lease::Long, false) => (Self::Long, Tell::Freely),
            (Self::Short, _, true) => (Self::Short, Tell::Until(Lease::Short)),
            (Self::Short | Self::Lengthening, _, _) => (Self::Lengthening, Tell::Until(Lease::Short)),
            (Self::Planned, Lease::Planned, _) => (Self::Planned, Tell::Until(Lease::Planned)),
            (Self::Planned, _, _) => (Self::Planned, Tell::Nothing),
            (Self::Left, _, _) => (Self::Left, Tell::Nothing),
        }
    }

    /// The service stops and leaves the command running. A shim that may have heard of a short lease, which the store does
    /// not have, is told to forget it; and no other one is begun.
    #[must_use]
    pub const fn left(self) -> (Self, Tell) {
        match self {
            Self::Short | Self::Lengthening | Self::Planned => (Self::Planned, Tell::Nothing),
            Self::Shortening => (Self::Left, Tell::Freely),
            Self::Long | Self::Left => (Self::Left, Tell::Nothing),
        }
    }

    /// The shim has acknowledged what it was told last.
    #[must_use]
    pub const fn acknowledged(self) -> Self {
        match self {
            Self::Shortening => Self::Short,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: LeaseTerms = LeaseTerms {
        heartbeat_timeout: Duration::from_secs(20),
        start_to_close_timeout: Duration::from_secs(100),
        kill_grace: Duration::from_secs(10),
    };

    /// What the store and the shim hold, as the worst reader of each sees it: the shortest lease that another worker may
    /// have read, and the longest time that the shim may take.
    #[derive(Debug)]
    struct World {
        leasing: Leasing,
        /// Whether the store's lease may be short.
        store_short: bool,
        /// Whether the shim has no deadline.
        shim_free: bool,
        told: Option<Tell>,
    }

    proptest! {
        #[test]
        fn three_confirmations_may_fail(timeout in 200_u64..10_000_000) {
            let timeout = Duration::from_millis(timeout);
            let interval = confirmation_interval(timeout);
            prop_assert!(!is_overdue(interval * 4, timeout));
            prop_assert!(interval <= LONGEST_INTERVAL);
        }

        #[test]
        fn nobody_takes_over_what_may_still_run(timeout in 0_u64..10_000_000, longest in 0_u64..10_000_000, grace in 0_u64..10_000_000) {
            let [heartbeat_timeout, start_to_close_timeout, kill_grace] = [timeout, longest, grace].map(Duration::from_millis);
            let terms = LeaseTerms { heartbeat_timeout, start_to_close_timeout, kill_grace };
            for lease in [Lease::Long, Lease::Short, Lease::Planned] {
                // A command without a deadline of its lease may start late, and then has all its time.
                let runs = terms.runs_on(lease).unwrap_or(heartbeat_timeout + start_to_close_timeout);
                prop_assert_eq!(terms.untouched(lease), runs + kill_grace + TAKEOVER_MARGIN);
            }
        }

        /// Whatever happens in whatever order, with confirmations in flight and acknowledgements that never come.
        #[test]
        fn the_store_never_has_a_shorter_lease_than_the_shim(steps in prop::collection::vec((0_u8..4, any::<bool>()), 0..60)) {
            let mut world = World { leasing: Leasing::Long, store_short: false, shim_free: true, told: None };
            let (mut in_flight, mut left) = (None, false);
            for (step, shared) in steps {
                match step {
                    0 => in_flight = in_flight.or(Some(world.leasing.to_write())),
                    1 => {
                        // Committed and answered.
                        if let Some(wrote) = in_flight.take() {
                            world.store_short = wrote != Lease::Long;
                            let (leasing, tell) = world.leasing.confirmed(wrote, shared);
                            world.leasing = leasing;
                            if tell != Tell::Nothing {
                                world.told = Some(tell);
                            }
                        }
                    }
                    // The shim hears what it was told, and maybe acknowledges it.
                    2 => if let Some(tell) = world.told.take() {
                        world.shim_free = tell == Tell::Freely;
                        if !world.shim_free && shared {
                            world.leasing = world.leasing.acknowledged();
                        }
                    },
                    _ => if shared {
                        let (leasing, tell) = world.leasing.left();
                        world.leasing = leasing;
                        if tell != Tell::Nothing {
                            world.told = Some(tell);
                        }
                        left = true;
                    },
                }
                prop_assert!(!(world.store_short && world.shim_free), "{world:?}");
                // A confirmation that is in flight may have been committed already.
                let may_be_short = in_flight.is_some_and(|wrote| wrote != Lease::Long);
                let will_be_free = world.shim_free || world.told == Some(Tell::Freely);
                prop_assert!(!(may_be_short && will_be_free), "{world:?}, in flight: {in_flight:?}");
                prop_assert!(!left || matches!(world.leasing, Leasing::Planned | Leasing::Left), "{world:?}");
                let is_short = world.told == Some(Tell::Until(Lease::Short));
                prop_assert!(world.leasing != Leasing::Left || (world.shim_free || world.told == Some(Tell::Freely)) && !is_short, "{world:?}");
            }
        }
    }

    #[test]
    fn a_short_lease_is_over_soon_and_a_long_one_when_the_command_has_had_its_time() {
        let [short, long] = [Lease::Short, Lease::Long].map(|lease| TERMS.untouched(lease).as_secs());
        assert_eq!((short, long), (33, 133));
    }
}
