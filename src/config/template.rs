//! What `callsheet init` writes.

/// A commented configuration to start from; it is valid as it stands.
pub const TEMPLATE: &str = include_str!("callsheet.toml");
