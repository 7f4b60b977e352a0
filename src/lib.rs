//! Callsheet.

pub mod clock;
pub mod config;
pub mod domain;
pub mod process;
pub mod store;
