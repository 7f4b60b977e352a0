//! What the process layer could not do.

use std::io;
use std::path::PathBuf;

/// Why a run could not be launched or looked into.
///
/// A command that can't be started is no error: its run ends as `SPAWN_FAILED`, with a sentence.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runs directory can't be made or used.
    #[error("the runs directory {path} can't be used", path = path.display())]
    RunsDirectory {
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A directory that should be ours belongs to somebody else, is a symbolic link, or is no directory.
    #[error("{path} is refused: {problem}", path = path.display())]
    Refused {
        /// What was refused.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The run has a directory already, so it was launched before.
    #[error("the run directory {path} exists already: this run was launched before", path = path.display())]
    AlreadyExists {
        /// The directory.
        path: PathBuf,
    },
    /// A file of a run can't be written or read.
    #[error("can't {action} {path}", path = path.display())]
    RunFile {
        /// What was to be done with it: "write", "read" and the like.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What a run without a shim has left alive can't be ended, or not be told from the rest.
    #[error("what the run has left alive can't be ended")]
    Leftovers {
        /// Which process it is, or what the system said.
        #[source]
        source: io::Error,
    },
    /// A run directory written by a newer release.
    #[error(
        "{path} was written by a newer release of callsheet (format {version}, this one knows up to {known}): \
         start that release again, or wait until the run has ended",
        path = path.display()
    )]
    NewerFormat {
        /// The journal.
        path: PathBuf,
        /// The format it names.
        version: u32,
        /// The newest format that this release reads.
        known: u32,
    },
    /// This service can't hold runs to their limits.
    #[error("runs can't be held to their limits: {reason}")]
    Limits {
        /// What is missing, and what to do.
        reason: String,
    },
    /// The helper process that starts the commands can't be started or reached.
    #[error("the helper process that starts the commands can't be {action}")]
    Zygote {
        /// "started" or "reached".
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// This system can't run commands under a shim.
    #[error("{what} needs Linux")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
}
