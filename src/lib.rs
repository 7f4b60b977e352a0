//! Callsheet.

pub mod actors;
pub mod clock;
pub mod config;
pub mod domain;
pub mod metrics;
pub mod process;
pub mod store;
