//! Callsheet's schema, step by step. A step that has been released is never changed; a new one is added.

pub use sea_orm_migration::prelude::MigratorTrait;
use sea_orm_migration::prelude::*;

mod m20261123_000001_first_tables;
mod m20261125_000002_control;
mod m20261125_000003_accounting;
mod m20261125_000004_access;
mod m20261125_000005_traceparent;
mod m20261125_000006_overview;
mod m20261125_000007_recurring;
mod m20261125_000009_dependencies;
mod m20261125_000010_webhooks;
mod m20261125_000011_tracestate;
mod m20261125_000012_undelivered;
mod m20261125_000013_lease;
mod m20261126_000014_labels;
mod m20261126_000015_slot;
mod m20261126_000016_address;
mod m20261126_000020_mysql;
mod m20261127_000021_by_status;

/// Every step, oldest first.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261123_000001_first_tables::Migration),
            Box::new(m20261125_000002_control::Migration),
            Box::new(m20261125_000003_accounting::Migration),
            Box::new(m20261125_000004_access::Migration),
            Box::new(m20261125_000005_traceparent::Migration),
            Box::new(m20261125_000006_overview::Migration),
            Box::new(m20261125_000007_recurring::Migration),
            Box::new(m20261125_000009_dependencies::Migration),
            Box::new(m20261125_000010_webhooks::Migration),
            Box::new(m20261125_000011_tracestate::Migration),
            Box::new(m20261125_000012_undelivered::Migration),
            Box::new(m20261125_000013_lease::Migration),
            Box::new(m20261126_000014_labels::Migration),
            Box::new(m20261126_000015_slot::Migration),
            Box::new(m20261126_000016_address::Migration),
            Box::new(m20261126_000020_mysql::Migration),
            Box::new(m20261127_000021_by_status::Migration),
        ]
    }
}
