//! Which runs of this data directory have a living shim, whatever the database says about them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::run_dir::{History, JOURNAL, LARGEST_JOURNAL};
use super::tree::all_processes;
use super::{LivingRun, ZYGOTE_NAME, ZYGOTE_WORD};
use crate::domain::{Attempt, JobId};

/// All of them, by a look at every process: a shim has its journal open for as long as it lives, and the words that it was started
/// with are the zygote's, of which it is a fork. What is of another release's format is left out.
///
/// # Errors
/// Where the processes of this machine can't be listed, or the runs directory is not there.
pub(super) fn living(runs: &Path) -> io::Result<Vec<LivingRun>> {
    let runs = runs.canonicalize()?;
    let words = format!("{ZYGOTE_NAME}\0{ZYGOTE_WORD}\0");
    let mut found = BTreeMap::new();
    for pid in all_processes()? {
        // Who has ended meanwhile, and other users' processes, can't be read.
        if fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == words.as_bytes())
            && let Some(journal) = journal_of(pid, &runs)
        {
            match run_of(&journal) {
                Some(run) => drop(found.insert(run.token.clone(), run)),
                None => {
                    tracing::warn!(pid, journal = %journal.display(), "a shim's journal does not say which run it is");
                }
            }
        }
    }
    Ok(found.into_values().collect())
}

/// The journal in one of these run directories that this process has open.
fn journal_of(pid: i32, runs: &Path) -> Option<PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let mut open = open.flatten().filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    open.find(|path| path.file_name().is_some_and(|name| name == JOURNAL) && path.ancestors().nth(2) == Some(runs))
}

fn run_of(journal: &Path) -> Option<LivingRun> {
    let mut bytes = Vec::new();
    File::open(journal).ok()?.take(LARGEST_JOURNAL).read_to_end(&mut bytes).ok()?;
    let history = History::parse(&bytes).ok()?;
    let spec = history.spec?;
    Some(LivingRun {
        job: JobId(spec.job),
        attempt: Attempt(spec.attempt),
        token: spec.token.parse().ok()?,
        flow: spec.flow.parse().ok()?,
        pid: history.started.map(|started| started.pid),
    })
}
