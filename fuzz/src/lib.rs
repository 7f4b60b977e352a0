//! The parsers of everything that comes from outside, for the fuzz targets.
//!
//! The modules are those of `../src`, by symbolic link or by path, so that nothing is made public for the fuzzer's sake;
//! what follows each `pub fn` is what must hold for every input.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "the modules are whole, and only their parsers are called"
)]

mod clock;
pub mod config;
mod crash;
pub mod domain;
pub mod process;
pub mod values;

use std::path::Path;

/// A configuration is valid or is refused with sentences; a valid one can be used without another check.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match config::Config::parse(text, Path::new("/etc/callsheet/callsheet.toml")) {
        Ok(config) => {
            assert!(config.data_dir.is_absolute());
            for flow in config.flows.values() {
                assert!(!flow.command.is_empty());
                assert!(flow.worker_concurrency <= flow.concurrency);
                for template in flow.command.iter().chain(flow.working_dir.iter()) {
                    let filled = template.fill(|_| "value");
                    assert!(!filled.contains('\0'));
                }
                assert!(flow.schedule.next_after(domain::Timestamp::from_unix_millis(0)).is_some());
                assert!(!format!("{flow:?}").is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
