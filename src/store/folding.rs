//! When SQLite's log is folded into the database file (a checkpoint, <https://www.sqlite.org/wal.html>).
//!
//! SQLite itself would try at each commit that leaves more than 1000 pages in the log. Each try sorts all pages of the log, and
//! while another connection holds an old snapshot (a report, a backup, a shell that somebody has forgotten) none gets to the end, so the
//! log grows and each commit takes longer: 3.7 times as long after 70,000 jobs. So after two tries in vain there is another one only
//! once the log has grown by half, or some time later; and none is made while somebody waits for the commit.

use std::time::{Duration, Instant};

/// After so many commits the log is tried to be folded: of 20 pages each, as those of jobs are, SQLite's own 1000.
pub(super) const COMMITS: u32 = 50;
/// Or once its file has grown by so many bytes: 1000 pages.
const BYTES: u64 = 1000 * 4096;
/// How long after a try in vain there is another one.
const AGAIN: Duration = Duration::from_secs(5);

/// What is known of the log.
#[derive(Debug, Default)]
pub(super) struct Folding {
    /// Commits since the last try.
    commits: u32,
    /// The size of the log's file at the last try, in bytes. It is written from its start again once all of it is folded.
    size: u64,
    /// Whether the last try did not get to the end, as it may be for somebody who read in that moment.
    missed: bool,
    /// When the last try was made, where neither that one nor the one before got to the end.
    in_vain: Option<Instant>,
    /// Whether a try is under way.
    asked: bool,
}

impl Folding {
    /// Something was committed; the log's file is of this size now. Whether it is time to fold it.
    pub(super) fn is_due(&mut self, size: u64, now: Instant) -> bool {
        self.commits = self.commits.saturating_add(1);
        match self.in_vain {
            _ if self.asked => false,
            None => self.commits >= COMMITS || size >= self.size.saturating_add(BYTES),
            Some(tried) => now.saturating_duration_since(tried) >= AGAIN || size >= self.size + self.size / 2 + BYTES,
        }
    }

    /// Whether the last try was in vain.
    #[cfg(test)]
    pub(super) fn is_in_vain(&self) -> bool {
        self.in_vain.is_some()
    }

    /// It will be tried.
    pub(super) fn asked(&mut self) {
        self.asked = true;
    }

    /// It was tried, and all of it was folded or not.
    pub(super) fn tried(&mut self, all: bool, size: u64, now: Instant) {
        let in_vain = (!all && self.missed).then_some(now);
        *self = Self { commits: 0, size, missed: !all, in_vain, asked: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due_after(folding: &mut Folding, size: u64, now: Instant) -> u32 {
        (1..=1000).find(|_| folding.is_due(size, now)).unwrap_or(u32::MAX)
    }

    #[test]
    fn a_log_is_folded_after_some_commits_or_some_bytes() {
        let now = Instant::now();
        let mut folding = Folding::default();
        assert_eq!(due_after(&mut folding, 100_000, now), COMMITS);
        folding.asked();
        assert_eq!(due_after(&mut folding, 5 * BYTES, now), u32::MAX);
        folding.tried(true, 100_000, now);
        assert_eq!(due_after(&mut folding, 100_000, now), COMMITS);
        folding.tried(true, 5 * BYTES, now);
        assert!(!folding.is_due(6 * BYTES - 1, now));
        assert!(folding.is_due(6 * BYTES, now));
    }

    #[test]
    fn a_log_that_somebody_has_left_behind_is_folded_with_the_first_commit() {
        assert!(Folding::default().is_due(100 * BYTES, Instant::now()));
    }

    #[test]
    fn a_try_in_vain_is_made_again_later_or_for_a_log_that_has_grown_by_half() {
        let now = Instant::now();
        let mut folding = Folding::default();
        folding.tried(false, 10 * BYTES, now);
        assert_eq!(due_after(&mut folding, 10 * BYTES, now), COMMITS);
        folding.tried(false, 10 * BYTES, now);
        assert_eq!(due_after(&mut folding, 16 * BYTES - 1, now), u32::MAX);
        assert!(folding.is_due(16 * BYTES, now));
        assert!(folding.is_due(10 * BYTES, now + AGAIN));
        folding.tried(true, 10 * BYTES, now);
        assert_eq!(due_after(&mut folding, 10 * BYTES, now), COMMITS);
    }
}
