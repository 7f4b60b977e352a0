//! Programs that tests start and that are not Rust's; `.ci/tools` installs them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// This repository.
pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A program, from `.ci/tools` or the path; `None` where it is missing, which is said plainly.
///
/// # Panics
/// Where it is missing and this is CI.
pub fn program(name: &str) -> Option<PathBuf> {
    let own = Path::new(ROOT).join("target/ci/python/bin").join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::iter::once(own).chain(std::env::split_paths(&path).map(|directory| directory.join(name)));
    missing_unless(found.into_iter().find(|path| path.is_file()), name)
}

/// The packages of `tests/grafana/package.json`, installed; `None` where they are not.
///
/// # Panics
/// Where they are missing and this is CI.
pub fn node_modules() -> Option<PathBuf> {
    let modules = Path::new(ROOT).join("target/ci/node/node_modules");
    missing_unless(modules.join("@grafana/schema").is_dir().then_some(modules), "node_modules")
}

fn missing_unless(found: Option<PathBuf>, name: &str) -> Option<PathBuf> {
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{name} is missing, and CI must not skip this test: see .ci/tools");
        // Not `eprintln!`, which libtest swallows: nobody should think that this test has run.
        let _ = std::io::stderr().write_all(format!("skipped: no {name} found; .ci/tools installs it\n").as_bytes());
    }
    found
}

/// Runs a command to its end, which must be a good one, and answers what it said.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{command:?} ended with {}:\n{said}", output.status);
    said
}

/// Both streams of a command that has ended.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
