//! What `doctor` asks of the database besides what everybody does.

use sea_orm::ConnectionTrait;

use super::sql::{Dialect, Doing, Row};
use super::{Error, Store};
use crate::domain::{FlowType, WorkerId};

impl Store {
    /// Removes every row of a scratch type, and of the worker that ran it.
    ///
    /// # Errors
    /// Where the database fails; then nothing is removed.
    pub async fn forget(&self, flow: &FlowType, worker: &WorkerId) -> Result<(), Error> {
        const ACTION: &str = "remove the rows of a trial";
        let removing = async {
            let transaction = self.begin(ACTION).await?;
            // Runs and events go with their jobs.
            for (delete, value) in [
                ("DELETE FROM jobs WHERE type = $1", flow.as_str()),
                ("DELETE FROM flows WHERE type = $1", flow.as_str()),
                ("DELETE FROM workers WHERE worker_id = $1", worker.as_str()),
            ] {
                transaction.execute_raw(self.statement(delete, [value.into()])).await.doing(ACTION)?;
            }
            transaction.commit().await.doing(ACTION)
        };
        self.in_time(ACTION, removing).await
    }

    /// The setting with which the database answers commits that a power cut can still take; `None` where it has none.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn not_durable(&self) -> Result<Option<String>, Error> {
        const ACTION: &str = "read its settings";
        let dialect = self.dialect();
        // SQLite is told by each connection of ours.
        if dialect == Dialect::Sqlite {
            return Ok(None);
        }
        let reading = async {
            for name in ["fsync", "full_page_writes", "synchronous_commit"] {
                let select = self.statement("SELECT current_setting($1) AS setting", [name.into()]);
                let result = self.reader().query_one_raw(select).await.doing(ACTION)?;
                let setting = result.map(|result| Row { result: &result, dialect }.some_text("setting")).transpose()?;
                if setting.as_deref() == Some("off") {
                    return Ok(Some(format!("{name} = off")));
                }
            }
            Ok(None)
        };
        self.in_time(ACTION, reading).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{Due, JobFilter, NewJob, Write};

    #[tokio::test]
    async fn only_the_rows_of_the_scratch_type_are_removed() {
        let store = Store::in_memory().await.unwrap();
        let flows: Vec<FlowType> =
            ["SCRATCH", "SCRATCH_TOO", "scratch"].iter().map(|name| name.parse().unwrap()).collect();
        store.apply(&[Write::RegisterFlows(flows.clone())]).await.unwrap();
        for flow in &flows {
            let new = NewJob {
                flow: flow.clone(),
                identifier: "a".to_owned(),
                payload: None,
                priority: 0,
                due: Due::After(Duration::ZERO),
                maximum_attempts: None,
                unique_key: None,
                trace: None,
            };
            store.enqueue(&[new]).await.unwrap();
        }
        store.forget(&flows[0], &"doctor".parse().unwrap()).await.unwrap();
        let left = store.list(&JobFilter { limit: 10, ..JobFilter::default() }).await.unwrap().rows;
        assert_eq!(left.iter().map(|job| job.job_type.as_str()).collect::<Vec<_>>(), ["scratch", "SCRATCH_TOO"]);
        assert_eq!(store.flow_states().await.unwrap().len(), 2);
        assert_eq!(store.not_durable().await.unwrap(), None);
    }
}
