//! What stands in for the service's side on systems without subreapers, pidfds and `/proc`.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CommandSpec, Error, Evidence, RunLink};
use crate::domain::RunToken;
use crate::domain::limits::Limits;

#[derive(Debug)]
pub(super) struct Launcher;

/// There is none.
#[derive(Debug)]
pub struct HeldLaunch(Infallible);

impl HeldLaunch {
    /// Nothing can be released.
    pub fn release(self) {
        match self.0 {}
    }

    /// Nothing can be given up.
    pub fn give_up(self) {
        match self.0 {}
    }
}

const UNSUPPORTED: Error = Error::Unsupported { what: "running commands" };

pub(super) fn check_limits(_limits: Limits) -> Result<(), String> {
    Err("limits need Linux".to_owned())
}

pub(super) fn prepare_limits(limits: Limits) -> Result<(), String> {
    check_limits(limits)
}

impl Launcher {
    pub(super) fn open(
        _runs: &Path,
        _programs: Vec<PathBuf>,
        _secrets: Vec<String>,
        _in_memory: Option<PathBuf>,
    ) -> Result<Self, Error> {
        Err(UNSUPPORTED)
    }

    pub(super) fn keep_back(&self, _secrets: Vec<String>) {}

    pub(super) async fn launch(self: &Arc<Self>, _run_dir: PathBuf, _spec: CommandSpec) -> Result<RunLink, Error> {
        Err(UNSUPPORTED)
    }

    pub(super) fn hold(self: &Arc<Self>, _run_dir: PathBuf, _spec: &CommandSpec) -> Option<HeldLaunch> {
        None
    }

    pub(super) fn released(self: &Arc<Self>, _token: &RunToken) -> Option<RunLink> {
        None
    }

    pub(super) async fn inspect(self: &Arc<Self>, _run_dir: PathBuf, _token: &RunToken) -> Result<Evidence, Error> {
        Err(UNSUPPORTED)
    }

    pub(super) async fn is_over(self: &Arc<Self>, _run_dir: PathBuf, _token: &RunToken) -> Result<bool, Error> {
        Err(UNSUPPORTED)
    }

    pub(super) async fn remove_leftovers(&self, _token: &RunToken) -> Result<usize, Error> {
        Err(UNSUPPORTED)
    }

    pub(super) async fn clean_up(&self, _run_dir: PathBuf, _spec: CommandSpec) -> Result<(), String> {
        Err("needs Linux".to_owned())
    }
}
