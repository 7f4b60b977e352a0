//! The database: the one place that knows sea-orm, entities and SQL.

mod error;
mod read;
mod write;

pub use error::Error;
pub use read::*;
pub use write::*;

use crate::domain::database_url::DatabaseUrl;
use crate::domain::{FlowType, JobId, Timestamp, WorkerId};

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The service, or a migration: a SQLite file is made where there is none.
    Service,
    /// A short command beside a service that may be running.
    Tool,
}

/// The tables; clones share one set of connections.
#[derive(Clone, Debug)]
pub struct Store {}

/// Tells that somebody else may have changed something.
#[derive(Debug)]
pub struct Wakes {}

impl Wakes {
    /// Waits until a connection other than this store's own may have changed jobs or flows since the last call.
    ///
    /// Many changes may be told as one, and some are told though nothing of interest has changed. Cancel safe.
    pub async fn next(&mut self) {
        std::future::pending::<()>().await;
    }
}

#[allow(clippy::unused_async, missing_docs)]
impl Store {
    /// Opens a database.
    ///
    /// # Errors
    /// Where it can't be reached, or is none.
    pub async fn connect(_url: &DatabaseUrl, _use_: Use) -> Result<Self, Error> {
        Err(Error::SchemaMissing)
    }
    /// A migrated database in memory, for tests.
    pub async fn in_memory() -> Result<Self, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn migrate(&self) -> Result<Vec<String>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn migration_status(&self) -> Result<Vec<(String, bool)>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn check_schema(&self) -> Result<(), Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn ping(&self) -> Result<(), Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn now(&self) -> Result<Timestamp, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn apply(&self, _writes: &[Write]) -> Result<Vec<Written>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn watch(&self) -> Result<Wakes, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn open_jobs(&self, _worker: &WorkerId, _flow: Option<&FlowType>) -> Result<Vec<OpenJob>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn job(&self, _id: JobId) -> Result<Option<JobRow>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn runs(&self, _id: JobId) -> Result<Vec<RunRow>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn events(&self, _id: JobId) -> Result<Vec<EventRow>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn list(&self, _filter: &JobFilter) -> Result<Page<JobRow>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn enqueue(&self, _jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn request_cancel(&self, _id: JobId) -> Result<CancelResult, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn flow_states(&self) -> Result<Vec<FlowState>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn workers(&self) -> Result<Vec<WorkerRow>, Error> {
        Err(Error::SchemaMissing)
    }
    pub async fn next_due(&self, _flow: &FlowType) -> Result<Option<Timestamp>, Error> {
        Err(Error::SchemaMissing)
    }
}
