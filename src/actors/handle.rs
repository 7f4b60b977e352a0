//! Handle: what `http` sees of the running service.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::retention::RetentionMessage;
use super::{ActorSnapshot, Shared};
use crate::domain::{Attempt, JobId, RunToken, WorkerId};
use crate::metrics::Metrics;
use crate::store::Store;

/// The way to a running service's tables, metrics and actors.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// The way to these actors.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// The tables.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Who this worker is.
    #[must_use]
    pub fn worker(&self) -> &WorkerId {
        &self.0.worker
    }

    /// Which start of it this is.
    #[must_use]
    pub fn incarnation(&self) -> &str {
        &self.0.incarnation
    }

    /// What keeps the service from working, a sentence each; empty where it is ready.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.0.complaints()
    }

    /// Where this worker keeps a run's files, whether there are any or not.
    #[must_use]
    pub fn run_dir(&self, job: JobId, attempt: Attempt, token: &RunToken) -> PathBuf {
        self.0.launcher.run_dir(job, attempt, token)
    }

    /// Every actor there is, a supervisor before those under it; cheap, and asks none of them.
    #[must_use]
    pub fn actors(&self) -> Vec<ActorSnapshot> {
        self.0.tree.snapshot()
    }

    /// Has this worker look for old logs and rows now rather than within the hour.
    pub fn look_for_old(&self) {
        self.0.retention.cast(RetentionMessage::Pass);
    }

    /// Tells whenever the tables may have changed, by this service or by others.
    ///
    /// What other workers on a PostgreSQL do as they run their jobs is not told: look again after a while.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }
}
