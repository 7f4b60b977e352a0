//! The words that labels hold, each kind of them a bounded set.

/// The part of an actor's name that a label may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The supervisor of all.
    Root,
    /// The writer of statuses.
    Status,
    /// The settler of unowned runs.
    Recovery,
    /// The keeper of run directories.
    Retention,
    /// The supervisor of one flow.
    Flow,
    /// The ticker of one flow.
    Scheduler,
    /// The claimer of one flow.
    Dispatcher,
    /// The supervisor of one flow's runs.
    JobSupervisor,
    /// The owner of one run.
    Job,
    /// The confirmer of one run.
    Heartbeat,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 10] = [
        Self::Root,
        Self::Status,
        Self::Recovery,
        Self::Retention,
        Self::Flow,
        Self::Scheduler,
        Self::Dispatcher,
        Self::JobSupervisor,
        Self::Job,
        Self::Heartbeat,
    ];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Status => "status",
            Self::Recovery => "recovery",
            Self::Retention => "retention",
            Self::Flow => "flow",
            Self::Scheduler => "scheduler",
            Self::Dispatcher => "dispatcher",
            Self::JobSupervisor => "job_supervisor",
            Self::Job => "job",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// What recovery found out about an open row that nobody owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryVerdict {
    /// Its command lives, and is watched again.
    Reattached,
    /// Its command ended meanwhile, and left its verdict.
    FinishedWhileAway,
    /// Its command was certainly never started.
    NeverStarted,
    /// Its command was started and nobody knows how it ended.
    Lost,
}

impl RecoveryVerdict {
    /// Every verdict.
    pub const ALL: [Self; 4] = [Self::Reattached, Self::FinishedWhileAway, Self::NeverStarted, Self::Lost];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reattached => "reattached",
            Self::FinishedWhileAway => "finished_while_away",
            Self::NeverStarted => "never_started",
            Self::Lost => "lost",
        }
    }
}
