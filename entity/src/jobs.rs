//! `jobs`: one row a job.

use sea_orm::entity::prelude::*;

/// `jobs.status`, stored as these words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text")]
pub enum Status {
    #[sea_orm(string_value = "PENDING")]
    Pending,
    #[sea_orm(string_value = "INQUEUE")]
    InQueue,
    #[sea_orm(string_value = "PROGRESS")]
    Progress,
    #[sea_orm(string_value = "COMPLETED")]
    Completed,
    #[sea_orm(string_value = "ERROR")]
    Error,
    #[sea_orm(string_value = "CANCELLED")]
    Cancelled,
}

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "jobs")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    #[sea_orm(column_type = "Text")]
    pub r#type: String,
    #[sea_orm(column_type = "Text")]
    pub identifier: String,
    #[sea_orm(column_type = "Text", nullable)]
    pub payload: Option<String>,
    pub status: Status,
    pub priority: i64,
    pub run_at: i64,
    pub attempt: i64,
    pub attempts_before: i64,
    pub maximum_attempts: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub unique_key: Option<String>,
    #[sea_orm(column_type = "Text", nullable)]
    pub worker_id: Option<String>,
    #[sea_orm(column_type = "Text", nullable)]
    pub run_token: Option<String>,
    pub cancel_requested_time: Option<i64>,
    pub progress: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub status_message: Option<String>,
    #[sea_orm(column_type = "Text", nullable)]
    pub error: Option<String>,
    pub exit_code: Option<i64>,
    pub created_time: i64,
    pub schedule_time: Option<i64>,
    pub queued_time: Option<i64>,
    pub started_time: Option<i64>,
    pub heartbeat_time: Option<i64>,
    pub completed_time: Option<i64>,
    pub execution_ms: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub traceparent: Option<String>,
    #[sea_orm(column_type = "Text", nullable)]
    pub tracestate: Option<String>,
    pub lease_time: Option<i64>,
    #[sea_orm(has_many)]
    pub runs: HasMany<super::runs::Entity>,
    #[sea_orm(has_many)]
    pub job_events: HasMany<super::job_events::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
