//! `runs`: one row an attempt.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "runs")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub job_id: i64,
    pub attempt: i64,
    #[sea_orm(column_type = "Text", unique)]
    pub run_token: String,
    #[sea_orm(column_type = "Text", nullable)]
    pub worker_id: Option<String>,
    pub pid: Option<i64>,
    pub started_time: Option<i64>,
    pub completed_time: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub outcome: Option<String>,
    pub exit_code: Option<i64>,
    pub signal: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub error: Option<String>,
    pub user_cpu_ms: Option<i64>,
    pub system_cpu_ms: Option<i64>,
    pub max_rss_bytes: Option<i64>,
    pub io_read_bytes: Option<i64>,
    pub io_write_bytes: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub slot: Option<String>,
    #[sea_orm(belongs_to, from = "job_id", to = "id", on_delete = "Cascade")]
    pub job: HasOne<super::jobs::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
