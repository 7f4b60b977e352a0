//! `flows`: what is kept about a flow beside its configuration.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "flows")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false, column_type = "Text")]
    pub r#type: String,
    pub paused: bool,
    pub paused_time: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub paused_by: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {}
