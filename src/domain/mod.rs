//! Pure decisions: what is due, may it start, how a run ends, when it is retried, whether it is alive.
//!
//! Nothing here does I/O, reads a clock, draws a random number or knows an actor: state, event and
//! `now` come in, a decision goes out. That is what lets the rules be tested exhaustively.

pub mod admission;
pub mod database_url;
pub mod delivery;
pub mod heartbeat;
pub mod labels;
pub mod lifecycle;
pub mod limits;
pub mod payload;
pub mod recurring;
pub mod restart;
pub mod retention;
pub mod retry;
pub mod run;
pub mod schedule;
pub mod slots;
pub mod template;
pub mod trace;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A point in time: UTC, in whole milliseconds since the Unix epoch, as the tables store it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The time that lies `milliseconds` after the Unix epoch (before it, where negative).
    #[must_use]
    pub const fn from_unix_millis(milliseconds: i64) -> Self {
        Self(milliseconds)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn unix_millis(self) -> i64 {
        self.0
    }

    /// This time moved `by` into the future; the far end of the calendar where that overflows.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This time moved `by` into the past; the far end of the calendar where that overflows.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero where it is not after.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// `jobs.id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub i64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which try at a job this is; the first is 1, and 0 means that it was never claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u32);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A job type, the name of a flow: a letter, then letters, digits and underscores, 100 characters at most.
///
/// The names of the flow that Callsheet replaces derive from it; see [`FlowType::task_queue`] and its neighbours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowType(String);

/// Why a text is no job type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job type is a letter followed by letters, digits and underscores, 100 characters at most")]
pub struct InvalidFlowType;

impl FromStr for FlowType {
    type Err = InvalidFlowType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic());
        let all_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if starts_well && all_plain && text.len() <= 100 { Ok(Self(text.to_owned())) } else { Err(InvalidFlowType) }
    }
}

impl FlowType {
    /// The type as it stands in `jobs.type`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The task queue of the old flow, and the name of this flow's dispatcher: the type in lower case.
    #[must_use]
    pub fn task_queue(&self) -> String {
        self.0.to_ascii_lowercase()
    }

    /// The master task queue of the old flow, and the name of this flow's scheduler.
    #[must_use]
    pub fn master_task_queue(&self) -> String {
        format!("master_{}", self.task_queue())
    }

    /// The workflow id of a job in the old flow, and the name of its `JobActor`.
    #[must_use]
    pub fn workflow_id(&self, job: JobId) -> String {
        format!("{}({job})", self.task_queue())
    }
}

impl fmt::Display for FlowType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a worker calls itself: 1 to 100 of letters, digits, `.`, `_`, `:` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(String);

/// Why a text is no worker id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker id is 1 to 100 letters, digits, '.', '_', ':' or '-'")]
pub struct InvalidWorkerId;

impl FromStr for WorkerId {
    type Err = InvalidWorkerId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        if (1..=100).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidWorkerId)
        }
    }
}

impl WorkerId {
    /// The id as it stands in `worker_id` columns.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What makes one attempt unlike every other: 128 bits as 32 lower-case hexadecimal digits.
///
/// Every write about a run is conditional on it, so a run whose token is no longer current changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunToken(String);

/// Why a text is no run token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a run token is 32 lower-case hexadecimal digits")]
pub struct InvalidRunToken;

/// Names one boot of a machine, as far as four bytes can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootMark(pub [u8; 4]);

impl RunToken {
    /// The token of a claim that is made during this boot: a number that grows with the claims, random bytes, then the mark.
    ///
    /// By the number tokens that are made one after the other are neighbours in the indexes, so that a commit changes a page or two of
    /// those, as with the first bytes of a UUIDv7 (RFC 9562, section 5.7). By the mark a claim tells for ever, in the very commit
    /// that made it, whether the machine was restarted since: what was not synced by then (a run directory) may be gone without having
    /// proved anything.
    #[must_use]
    pub fn new(number: u32, random: [u8; 8], boot: BootMark) -> Self {
        let bytes = (u128::from(number) << 96)
            | (u128::from(u64::from_be_bytes(random)) << 32)
            | u128::from(u32::from_be_bytes(boot.0));
        Self::from_bytes(bytes.to_be_bytes())
    }

    /// Whether the token was made during this boot. One that was made before tokens had a mark was not.
    #[must_use]
    pub fn is_of(&self, boot: BootMark) -> bool {
        let mark = boot.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.0.ends_with(&mark)
    }

    /// The token made of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The token as it stands in `run_token` columns.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunToken {
    type Err = InvalidRunToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 32 && text.bytes().all(hex) { Ok(Self(text.to_owned())) } else { Err(InvalidRunToken) }
    }
}

impl fmt::Display for RunToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `jobs.status`: where a job stands.
///
/// `PENDING → INQUEUE → PROGRESS → COMPLETED | ERROR | CANCELLED`; a retry goes back to `PENDING`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobStatus {
    /// Waiting to be claimed.
    Pending,
    /// Claimed by a worker; its command has not started yet.
    InQueue,
    /// Its command runs.
    Progress,
    /// Its command ended with exit code 0.
    Completed,
    /// It ended otherwise, and no attempt is left; `error` says how.
    Error,
    /// It was cancelled before its command had ended.
    Cancelled,
}

impl JobStatus {
    /// Every status, in the order of a job's life.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::InQueue, Self::Progress, Self::Completed, Self::Error, Self::Cancelled];

    /// The word that the database, the API and the command line use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::InQueue => "INQUEUE",
            Self::Progress => "PROGRESS",
            Self::Completed => "COMPLETED",
            Self::Error => "ERROR",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Whether a job of this status has ended for good (unless somebody retries it).
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Error | Self::Cancelled)
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a text is no status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no status; the statuses are PENDING, INQUEUE, PROGRESS, COMPLETED, ERROR and CANCELLED")]
pub struct InvalidStatus(pub String);

impl FromStr for JobStatus {
    type Err = InvalidStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| InvalidStatus(text.to_owned()))
    }
}

/// `runs.outcome`: how one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The command ended with exit code 0.
    Completed,
    /// The command ended with another exit code, or by a signal.
    Failed,
    /// The command could not be started.
    SpawnFailed,
    /// The command was ended because a timeout had passed.
    TimedOut,
    /// The command was ended because somebody asked for it.
    Cancelled,
    /// Nobody knows how the command ended: the machine or its shim died with it.
    Lost,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] =
        [Self::Completed, Self::Failed, Self::SpawnFailed, Self::TimedOut, Self::Cancelled, Self::Lost];

    /// The word that the database, the API and the metrics use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::SpawnFailed => "SPAWN_FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::Cancelled => "CANCELLED",
            Self::Lost => "LOST",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_those_of_the_flow_that_this_replaces() {
        let flow: FlowType = "SCREEN_REPLACEMENT_GENERATION".parse().unwrap();
        assert_eq!(flow.task_queue(), "screen_replacement_generation");
        assert_eq!(flow.master_task_queue(), "master_screen_replacement_generation");
        assert_eq!(flow.workflow_id(JobId(7)), "screen_replacement_generation(7)");
    }

    #[test]
    fn statuses_are_read_back_as_written() {
        for status in JobStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert!("pending".parse::<JobStatus>().is_err());
    }

    proptest! {
        #[test]
        fn a_flow_type_holds_only_what_is_safe_in_a_name(text in ".{0,120}") {
            if let Ok(flow) = text.parse::<FlowType>() {
                prop_assert!(flow.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
                prop_assert!(!flow.as_str().is_empty() && flow.as_str().len() <= 100);
            }
        }

        #[test]
        fn every_random_token_is_read_back(bytes in any::<[u8; 16]>()) {
            let token = RunToken::from_bytes(bytes);
            prop_assert_eq!(token.as_str().parse::<RunToken>(), Ok(token));
        }

        #[test]
        fn tokens_are_in_the_order_of_their_numbers_and_tell_their_boot(
            numbers in any::<[u32; 2]>(), random in any::<[[u8; 8]; 2]>(), boots in any::<[[u8; 4]; 2]>(),
        ) {
            let token = |index: usize| RunToken::new(numbers[index], random[index], BootMark(boots[index]));
            if numbers[0] != numbers[1] {
                prop_assert_eq!(token(0) < token(1), numbers[0] < numbers[1]);
            }
            prop_assert!(token(0).is_of(BootMark(boots[0])));
            prop_assert_eq!(token(0).is_of(BootMark(boots[1])), boots[0] == boots[1]);
        }
    }
}
