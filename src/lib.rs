//! Callsheet.

pub mod clock;
pub mod domain;
pub mod process;
