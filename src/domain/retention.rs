//! When what is left of a run, and of a job, may go.

use std::time::Duration;

use super::{JobStatus, Timestamp};

/// What may go by now: the rows of each kind whose time is this or an earlier one; `None` keeps all of the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon {
    /// Of COMPLETED jobs, by their `completed_time`.
    pub completed: Option<Timestamp>,
    /// Of ERROR jobs.
    pub error: Option<Timestamp>,
    /// Of CANCELLED jobs.
    pub cancelled: Option<Timestamp>,
    /// Of deliveries to webhooks, by when they ended.
    pub deliveries: Option<Timestamp>,
    /// Of the audit trail.
    pub audit: Option<Timestamp>,
}

impl Horizon {
    /// That of jobs with this status; `None` keeps them, as it keeps those that have not ended.
    #[must_use]
    pub const fn of(&self, status: JobStatus) -> Option<Timestamp> {
        match status {
            JobStatus::Completed => self.completed,
            JobStatus::Error => self.error,
            JobStatus::Cancelled => self.cancelled,
            JobStatus::Pending | JobStatus::InQueue | JobStatus::Progress => None,
        }
    }
}

/// What the store knows of a run whose directory is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It goes on, or is claimed.
    Open,
    /// It ended then.
    Ended(Timestamp),
    /// There is no row of it: its job was removed, or it never started.
    Nothing,
}

/// Whether the directory of a run may be removed, where it is kept for so long; `modified` is when something was last made
/// or removed in it.
#[must_use]
pub fn may_go(known: Known, modified: Timestamp, now: Timestamp, kept: Duration) -> bool {
    let old_enough = |time: Timestamp| time.plus(kept) <= now;
    match known {
        Known::Open => false,
        Known::Ended(ended) => old_enough(ended),
        Known::Nothing => old_enough(modified),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ended_long_ago_may_go() {
        let at = Timestamp::from_unix_millis;
        let may_go = |known, modified| may_go(known, at(modified), at(10_000), Duration::from_secs(5));
        assert!(!may_go(Known::Open, 0));
        assert!(may_go(Known::Ended(at(5_000)), 0) && !may_go(Known::Ended(at(5_001)), 0));
        assert!(may_go(Known::Nothing, 5_000) && !may_go(Known::Nothing, 5_001));
        // A time that is still to come, by whichever clock, keeps it.
        assert!(!may_go(Known::Ended(at(20_000)), 0));
    }
}
