//! A job's life: its statuses, and what moves it from one to another.
//!
//! The store's writes are conditional on the status (and on the run token), so that nothing else can happen to a row;
//! a test holds the store to this table. `docs/lifecycle.md` shows it, drawn by another test.

use super::JobStatus;
use super::run::Next;

/// What moves a job from one status to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobChange {
    /// A worker claims it.
    Claimed,
    /// Its command starts.
    Started,
    /// Its command ends with exit code 0.
    Completed,
    /// An attempt fails, and another one follows.
    WillRetry,
    /// An attempt fails and no other follows, or it can't be run as asked.
    Failed,
    /// Somebody asks to cancel it, and it ends for that.
    Cancelled,
    /// A worker's claim comes to nothing: its command was never started.
    Released,
    /// Somebody asks to run it again.
    Retried,
}

impl JobChange {
    /// Every change, in the order of a job's life.
    pub const ALL: [Self; 8] = [
        Self::Claimed,
        Self::Started,
        Self::Completed,
        Self::WillRetry,
        Self::Failed,
        Self::Cancelled,
        Self::Released,
        Self::Retried,
    ];

    /// The change that a settlement is; `None` for an end that is none.
    #[must_use]
    pub const fn of(next: Next) -> Option<Self> {
        match next {
            Next::Final(JobStatus::Completed) => Some(Self::Completed),
            Next::Final(JobStatus::Error) => Some(Self::Failed),
            Next::Final(JobStatus::Cancelled) => Some(Self::Cancelled),
            Next::Final(JobStatus::Pending | JobStatus::InQueue | JobStatus::Progress) => None,
            Next::RetryAfter(_) => Some(Self::WillRetry),
            Next::Requeue => Some(Self::Released),
        }
    }
}

impl JobStatus {
    /// The status after `change`; `None` where that can't happen to a job of this status.
    #[must_use]
    pub const fn after(self, change: JobChange) -> Option<Self> {
        match (self, change) {
            (Self::Pending, JobChange::Claimed) => Some(Self::InQueue),
            (Self::InQueue, JobChange::Started) => Some(Self::Progress),
            // A command that ended has started: where nobody was there to write it, both are written at once.
            (Self::Progress, JobChange::Completed) => Some(Self::Completed),
            (Self::InQueue | Self::Progress, JobChange::WillRetry) | (Self::InQueue, JobChange::Released) => {
                Some(Self::Pending)
            }
            (Self::InQueue | Self::Progress, JobChange::Failed) => Some(Self::Error),
            (Self::Pending | Self::InQueue | Self::Progress, JobChange::Cancelled) => Some(Self::Cancelled),
            (Self::Error | Self::Cancelled, JobChange::Retried) => Some(Self::Pending),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_a_person_brings_a_job_back_that_has_ended() {
        for status in JobStatus::ALL {
            for change in JobChange::ALL {
                let next = status.after(change);
                assert_ne!(next, Some(status), "a change that changes nothing would be an event about nothing");
                assert!(!status.is_final() || next.is_none() || change == JobChange::Retried, "{status} + {change:?}");
            }
            assert!(
                status == JobStatus::Completed || JobChange::ALL.iter().any(|change| status.after(*change).is_some()),
                "{status} is a dead end"
            );
        }
    }

    #[test]
    fn from_everywhere_a_job_can_reach_an_end() {
        for status in JobStatus::ALL {
            let mut reached = vec![status];
            for _ in JobStatus::ALL {
                let further: Vec<_> = reached
                    .iter()
                    .flat_map(|from| JobChange::ALL.iter().filter_map(|change| from.after(*change)))
                    .collect();
                reached.extend(further);
                reached.sort_unstable();
                reached.dedup();
            }
            assert!(reached.iter().any(|status| status.is_final()), "{status}");
        }
    }

    proptest! {
        #[test]
        fn no_order_of_changes_starts_a_command_twice_for_one_claim(changes in prop::collection::vec(prop::sample::select(JobChange::ALL.to_vec()), 0..60)) {
            let mut status = JobStatus::Pending;
            let (mut claims, mut starts, mut ends) = (0, 0, 0);
            for change in changes {
                let Some(next) = status.after(change) else { continue };
                claims += u32::from(change == JobChange::Claimed);
                starts += u32::from(change == JobChange::Started);
                ends += u32::from(next.is_final());
                prop_assert!(starts <= claims);
                // Between two ends somebody has asked for the second one.
                prop_assert!(next.is_final() || change != JobChange::Retried || ends > 0);
                status = next;
            }
        }
    }
}
