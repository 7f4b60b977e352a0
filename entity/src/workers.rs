//! `workers`: one row a service that has ever used this database.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "workers")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false, column_type = "Text")]
    pub worker_id: String,
    #[sea_orm(column_type = "Text")]
    pub incarnation: String,
    #[sea_orm(column_type = "Text")]
    pub hostname: String,
    #[sea_orm(column_type = "Text")]
    pub version: String,
    #[sea_orm(column_type = "Text")]
    pub state: String,
    pub started_time: i64,
    pub heartbeat_time: i64,
    pub drain_requested_time: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub drain_requested_by: Option<String>,
    /// A JSON list of words.
    #[sea_orm(column_type = "Text", nullable)]
    pub labels: Option<String>,
    /// A URL without a path.
    #[sea_orm(column_type = "Text", nullable)]
    pub address: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {}
