//! Callsheet's tables as sea-orm entities.
//!
//! The columns and their names are CONTRACT §4. Times are Unix milliseconds, UTC.
#![allow(missing_docs, reason = "sea-orm's macros make public items without docs")]

pub mod audit;
pub mod flows;
pub mod job_events;
pub mod jobs;
pub mod runs;
pub mod workers;
