//! Which run took each slot last, in a file a slot: what a service that was killed leaves to the next one.
//!
//! A file is written before the run's order is given, and never removed: whether its run still has the device is told by the
//! run's journal, not by the file. Renamed into place, so that a kill leaves the last holder's or the next one's.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::crash::{self, Step};
use crate::domain::slots::Slot;
use crate::domain::{Attempt, JobId, RunToken};

/// Beside `runs`.
pub(super) const DIRECTORY: &str = "slots";
const DRAFT: &str = ".new";

/// A run that took a slot, and no other has since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastHolder {
    /// What it took.
    pub slot: Slot,
    /// The job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: Attempt,
    /// The run's token.
    pub token: RunToken,
}

#[derive(Serialize, Deserialize)]
struct Written {
    name: String,
    value: String,
    job: i64,
    attempt: u32,
    token: String,
}

/// Notes that a run takes a slot.
pub(super) fn take(directory: &Path, holder: &LastHolder) -> io::Result<()> {
    let LastHolder { slot, job, attempt, token } = holder;
    let written = Written {
        name: slot.name.clone(),
        value: slot.value.clone(),
        job: job.0,
        attempt: attempt.0,
        token: token.as_str().to_owned(),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // No file name holds a slash; `%` is in no value.
    let path = directory.join(slot.to_string().replace('/', "%2F"));
    let mut draft = path.clone().into_os_string();
    draft.push(DRAFT);
    crash::before(Step::SlotFile);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&serde_json::to_vec(&written)?)?;
    std::fs::rename(&draft, &path)?;
    crash::after(Step::SlotFile);
    Ok(())
}

/// The runs that took slots last. What can't be read was not written by us, and says nothing.
pub(super) fn last_holders(directory: &Path) -> io::Result<Vec<LastHolder>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut holders = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(DRAFT) {
            continue;
        }
        let holder = std::fs::read(&path).ok().and_then(|bytes| read(&bytes));
        match holder {
            Some(holder) => holders.push(holder),
            None => {
                tracing::warn!(path = %path.display(), "this file does not say which run holds a slot; it is passed over");
            }
        }
    }
    Ok(holders)
}

fn read(bytes: &[u8]) -> Option<LastHolder> {
    let Written { name, value, job, attempt, token } = serde_json::from_slice(bytes).ok()?;
    let slot = Slot { name, value };
    Some(LastHolder { slot, job: JobId(job), attempt: Attempt(attempt), token: token.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(value: &str, job: i64) -> LastHolder {
        LastHolder {
            slot: Slot { name: "GPU".to_owned(), value: value.to_owned() },
            job: JobId(job),
            attempt: Attempt(2),
            token: RunToken::from_bytes([7; 16]),
        }
    }

    #[test]
    fn the_last_holder_of_each_slot_is_read_again() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join(DIRECTORY);
        assert_eq!(last_holders(&directory).unwrap(), []);
        for (value, job) in [("0", 1), ("/dev/x", 2), ("0", 3)] {
            take(&directory, &holder(value, job)).unwrap();
        }
        std::fs::write(directory.join("GPU=9"), "half").unwrap();
        std::fs::write(directory.join("GPU=1.new"), "").unwrap();
        let mut found = last_holders(&directory).unwrap();
        found.sort_by_key(|holder| holder.job);
        assert_eq!(found, [holder("/dev/x", 2), holder("0", 3)]);
    }
}
