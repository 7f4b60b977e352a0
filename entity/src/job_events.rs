//! `job_events`: one row a status change.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "job_events")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub job_id: i64,
    pub attempt: i64,
    #[sea_orm(column_type = "Text", nullable)]
    pub from_status: Option<String>,
    #[sea_orm(column_type = "Text")]
    pub to_status: String,
    pub time: i64,
    #[sea_orm(column_type = "Text", nullable)]
    pub worker_id: Option<String>,
    #[sea_orm(column_type = "Text", nullable)]
    pub message: Option<String>,
    #[sea_orm(belongs_to, from = "job_id", to = "id", on_delete = "Cascade")]
    pub job: HasOne<super::jobs::Entity>,
}

impl ActiveModelBehavior for ActiveModel {}
