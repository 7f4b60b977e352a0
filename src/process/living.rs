//! Which runs of this data directory have a living shim, whatever the database says about them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::run_dir::{History, JOURNAL, LARGEST_JOURNAL};
use super::tree::all_processes;
use super::{LivingRun, ZYGOTE_NAME, ZYGOTE_WORD, run_dir_name};
use crate::domain::{Attempt, JobId};

/// The descriptor that a shim's journal most likely is, since the order is the first that it receives.
const USUAL: &str = "4";

/// All of them, by a look at every process: a shim has its journal open for as long as it lives, and the words that it was started
/// with are the zygote's, of which it is a fork. What is of another release's format is left out.
///
/// # Errors
/// Where the processes of this machine can't be listed, or the runs directory is not there.
pub(super) fn living(runs: &Path) -> io::Result<Vec<LivingRun>> {
    let runs = runs.canonicalize()?;
    let words = format!("{ZYGOTE_NAME}\0{ZYGOTE_WORD}\0");
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let mut found = BTreeMap::new();
    for pid in all_processes()?.into_iter().filter(|pid| *pid != own) {
        // Who has ended meanwhile, and other users' processes, can't be read.
        let descriptors = PathBuf::from(format!("/proc/{pid}/fd"));
        let journal = journal_at(&descriptors.join(USUAL), &runs).or_else(|| {
            let is_shim = fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == words.as_bytes());
            // Each descriptor takes as long as all the rest.
            let all = is_shim.then(|| fs::read_dir(&descriptors).ok()).flatten()?;
            all.flatten().find_map(|descriptor| journal_at(&descriptor.path(), &runs))
        });
        if let Some(journal) = journal {
            match run_of(&journal) {
                Some(run) => drop(found.insert(run.token.clone(), run)),
                None => {
                    tracing::warn!(pid, journal = %journal.display(), "a shim lives whose run can't be told by its directory and journal");
                }
            }
        }
    }
    Ok(found.into_values().collect())
}

/// What this descriptor is, where that is the journal in one of these run directories.
fn journal_at(descriptor: &Path, runs: &Path) -> Option<PathBuf> {
    let path = fs::read_link(descriptor).ok()?;
    let is_journal = path.file_name().is_some_and(|name| name == JOURNAL) && path.ancestors().nth(2) == Some(runs);
    is_journal.then_some(path)
}

/// The run whose journal this is, where it is in that run's own directory: somebody may have moved it.
fn run_of(journal: &Path) -> Option<LivingRun> {
    let mut bytes = Vec::new();
    File::open(journal).ok()?.take(LARGEST_JOURNAL).read_to_end(&mut bytes).ok()?;
    let history = History::parse(&bytes).ok()?;
    let spec = history.spec?;
    let run = LivingRun {
        job: JobId(spec.job),
        attempt: Attempt(spec.attempt),
        token: spec.token.parse().ok()?,
        flow: spec.flow.parse().ok()?,
        pid: history.started.map(|started| started.pid),
    };
    let name = run_dir_name(run.job, run.attempt, &run.token);
    journal.parent().and_then(Path::file_name).is_some_and(|found| found == name.as_str()).then_some(run)
}
