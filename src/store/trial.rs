//! What `doctor` asks of the database besides what everybody does.

use super::connection::Connection;
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
                transaction.execute(self.statement(delete, [value.into()])).await.doing(ACTION)?;
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
        let settings: &[(&str, &[&str])] = match dialect {
            // It is told by each connection of ours.
            Dialect::Sqlite => &[],
            Dialect::Postgres => {
                &[("fsync", &["off"]), ("full_page_writes", &["off"]), ("synchronous_commit", &["off"])]
            }
            Dialect::MySql => &[("innodb_flush_log_at_trx_commit", &["0", "2"]), ("innodb_doublewrite", &["0", "OFF"])],
        };
        let reading = async {
            for (name, wrong) in settings {
                let select = match dialect {
                    Dialect::MySql => format!("SELECT CAST(@@{name} AS CHAR) AS setting"),
                    Dialect::Sqlite | Dialect::Postgres => format!("SELECT current_setting('{name}') AS setting"),
                };
                let result = self.reader().query_one(self.statement(select, [])).await.doing(ACTION)?;
                let setting = result.map(|result| Row { result: &result, dialect }.some_text("setting")).transpose()?;
                let setting = setting.unwrap_or_default();
                if wrong.contains(&setting.as_str()) {
                    return Ok(Some(format!("{name} = {setting}")));
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
