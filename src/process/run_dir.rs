//! The run directory and its journal.
//!
//! `journal` is a line a record: the CRC-32 of the JSON in eight hexadecimal digits, a space, the JSON, a
//! newline; each is appended by one write(2). Whoever is responsible for the run (the service until the shim
//! has it, then the shim) holds an exclusive lock on it, by one open file description that is handed on, so a
//! run is unlocked only when nobody is left who could start or watch its command.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use super::Error;
use super::spare::Spare;
use crate::crash::{self, Step};
use crate::domain::run::{CommandEnd, EndCause, OutOfMemory, Said, Shortage, TimedOut, Timeout, Usage, Verdict};
use crate::domain::{BootMark, RunToken, Timestamp};

/// The format of journals and of what is said over links; raised when an older release could not read them.
pub(super) const FORMAT: u32 = 1;

/// A journal is a few records of a few KiB; what is larger was not written by us.
pub(super) const LARGEST_JOURNAL: u64 = 1 << 20;

pub(super) const JOURNAL: &str = "journal";
pub(super) const PAYLOAD: &str = "payload.json";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    Spec(SpecRecord),
    Starting(StartingRecord),
    Started(StartedRecord),
    SpawnFailed {
        reason: String,
    },
    /// Not started, since the machine had nothing to start it with then. A release that does not know this record takes the
    /// run for LOST.
    NotStarted {
        reason: String,
    },
    Verdict(VerdictRecord),
}

/// What the service knew when it launched the run; neither arguments nor environment, which may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SpecRecord {
    pub(super) version: u32,
    pub(super) job: i64,
    pub(super) attempt: u32,
    pub(super) token: String,
    pub(super) flow: String,
    pub(super) worker: String,
    pub(super) boot_id: String,
    pub(super) created_ms: i64,
    pub(super) time_limit_ms: u64,
    pub(super) kill_grace_ms: u64,
    pub(super) output_limit: u64,
}

/// Written right before the command's fork: from here on it may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StartingRecord {
    pub(super) shim_pid: i32,
    pub(super) shim_start_ticks: u64,
    pub(super) boot_id: String,
}

/// Written when the exec has succeeded. Pid, start time and boot id together name one process for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StartedRecord {
    pub(super) pid: i32,
    pub(super) start_ticks: u64,
    pub(super) boot_id: String,
    pub(super) time_ms: i64,
}

/// [`Verdict`] as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VerdictRecord {
    pid: i32,
    end: EndRecord,
    cause: CauseRecord,
    started_ms: i64,
    completed_ms: i64,
    execution_us: u64,
    user_cpu_us: u64,
    system_cpu_us: u64,
    max_rss_bytes: u64,
    stderr_tail: String,
    // What came after the first release: left out where there is nothing to say, so that this is still its format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<TimeoutRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    io_read_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    io_write_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    output_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    out_of_memory: Option<OutOfMemoryRecord>,
    #[serde(default, skip_serializing_if = "is_zero")]
    refused_forks: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status_message: Option<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EndRecord {
    Exited(i32),
    Signaled(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CauseRecord {
    Itself,
    Requested,
    TimedOut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TimeoutRecord {
    which: WhichTimeout,
    limit_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WhichTimeout {
    StartToClose,
    ScheduleToClose,
    Watchdog,
    Silence,
    Heartbeat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutOfMemoryRecord {
    Run(u64),
    Machine,
}

impl From<TimedOut> for TimeoutRecord {
    fn from(timed_out: TimedOut) -> Self {
        let which = match timed_out.timeout {
            Timeout::StartToClose => WhichTimeout::StartToClose,
            Timeout::ScheduleToClose => WhichTimeout::ScheduleToClose,
            Timeout::Watchdog => WhichTimeout::Watchdog,
            Timeout::Silence => WhichTimeout::Silence,
            Timeout::Heartbeat => WhichTimeout::Heartbeat,
        };
        Self { which, limit_ms: u64::try_from(timed_out.limit.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl From<TimeoutRecord> for TimedOut {
    fn from(record: TimeoutRecord) -> Self {
        let timeout = match record.which {
            WhichTimeout::StartToClose => Timeout::StartToClose,
            WhichTimeout::ScheduleToClose => Timeout::ScheduleToClose,
            WhichTimeout::Watchdog => Timeout::Watchdog,
            WhichTimeout::Silence => Timeout::Silence,
            WhichTimeout::Heartbeat => Timeout::Heartbeat,
        };
        Self { timeout, limit: Duration::from_millis(record.limit_ms) }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl From<&Verdict> for VerdictRecord {
    fn from(verdict: &Verdict) -> Self {
        Self {
            pid: verdict.pid,
            end: match verdict.end {
                CommandEnd::Exited(code) => EndRecord::Exited(code),
                CommandEnd::Signaled(signal) => EndRecord::Signaled(signal),
            },
            cause: match verdict.cause {
                EndCause::Itself => CauseRecord::Itself,
                EndCause::Requested => CauseRecord::Requested,
                EndCause::TimedOut(_) => CauseRecord::TimedOut,
            },
            timeout: if let EndCause::TimedOut(Some(timed_out)) = verdict.cause {
                Some(timed_out.into())
            } else {
                None
            },
            started_ms: verdict.started_time.unix_millis(),
            completed_ms: verdict.completed_time.unix_millis(),
            execution_us: micros(verdict.execution),
            user_cpu_us: micros(verdict.usage.user_cpu),
            system_cpu_us: micros(verdict.usage.system_cpu),
            max_rss_bytes: verdict.usage.max_rss_bytes,
            stderr_tail: verdict.stderr_tail.clone(),
            io_read_bytes: verdict.usage.io_read_bytes,
            io_write_bytes: verdict.usage.io_write_bytes,
            output_bytes: verdict.usage.output_bytes,
            out_of_memory: verdict.shortage.memory.map(|memory| match memory {
                OutOfMemory::Run(limit) => OutOfMemoryRecord::Run(limit),
                OutOfMemory::Machine => OutOfMemoryRecord::Machine,
            }),
            refused_forks: verdict.shortage.refused_forks,
            progress: verdict.said.as_ref().and_then(|said| said.progress),
            status_message: verdict.said.as_ref().and_then(|said| said.status_message.clone()),
        }
    }
}

impl From<VerdictRecord> for Verdict {
    fn from(record: VerdictRecord) -> Self {
        Self {
            pid: record.pid,
            end: match record.end {
                EndRecord::Exited(code) => CommandEnd::Exited(code),
                EndRecord::Signaled(signal) => CommandEnd::Signaled(signal),
            },
            cause: match record.cause {
                CauseRecord::Itself => EndCause::Itself,
                CauseRecord::Requested => EndCause::Requested,
                CauseRecord::TimedOut => EndCause::TimedOut(record.timeout.map(Into::into)),
            },
            started_time: Timestamp::from_unix_millis(record.started_ms),
            completed_time: Timestamp::from_unix_millis(record.completed_ms),
            execution: Duration::from_micros(record.execution_us),
            usage: Usage {
                user_cpu: Duration::from_micros(record.user_cpu_us),
                system_cpu: Duration::from_micros(record.system_cpu_us),
                max_rss_bytes: record.max_rss_bytes,
                io_read_bytes: record.io_read_bytes,
                io_write_bytes: record.io_write_bytes,
                output_bytes: record.output_bytes,
            },
            shortage: Shortage {
                memory: record.out_of_memory.map(|memory| match memory {
                    OutOfMemoryRecord::Run(limit) => OutOfMemory::Run(limit),
                    OutOfMemoryRecord::Machine => OutOfMemory::Machine,
                }),
                refused_forks: record.refused_forks,
            },
            stderr_tail: record.stderr_tail,
            said: (record.progress.is_some() || record.status_message.is_some())
                .then(|| Box::new(Said { progress: record.progress, status_message: record.status_message })),
        }
    }
}

/// The record as its line.
pub(super) fn encoded(record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(record)?;
    let mut line = format!("{:08x} ", crc32fast::hash(&json)).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    Ok(line)
}

/// The JSON of a line without its newline, where the checksum is right.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (sum, rest) = line.split_at_checked(8)?;
    let json = rest.strip_prefix(b" ")?;
    let written = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    (written == crc32fast::hash(json)).then_some(json)
}

/// An open journal whose lock this process shares in; it is released when the last holder is gone.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    length: u64,
}

impl Journal {
    /// Makes the journal of a new run directory, and locks it.
    pub(super) fn make(run_dir: &Path) -> Result<Self, Error> {
        let path = run_dir.join(JOURNAL);
        crash::before(Step::JournalFile);
        let file = new_file(path.clone())?;
        crash::after(Step::JournalFile);
        crash::before(Step::JournalLock);
        lock_new(&file).map_err(|source| Error::RunFile { action: "write", path, source })?;
        crash::after(Step::JournalLock);
        Ok(Self { file, length: 0 })
    }

    /// The journal behind a descriptor that another process handed over.
    pub(super) fn received(descriptor: OwnedFd) -> io::Result<Self> {
        let file = File::from(descriptor);
        let length = file.metadata()?.len();
        Ok(Self { file, length })
    }

    /// Appends a record; after an error the journal is as it was.
    pub(super) fn append(&mut self, record: &Record) -> io::Result<()> {
        self.append_line(&encoded(record)?)
    }

    /// The same with a record as [`encoded`] gives it; allocates nothing.
    pub(super) fn append_line(&mut self, line: &[u8]) -> io::Result<()> {
        match self.file.write(line) {
            Ok(written) if written == line.len() => {
                self.length += line.len() as u64;
                Ok(())
            }
            outcome => {
                // Half a line (a full disk) would spoil the next one.
                self.file.set_len(self.length)?;
                Err(outcome.err().unwrap_or_else(|| io::ErrorKind::StorageFull.into()))
            }
        }
    }

    /// Takes back what somebody who was appending was killed over.
    pub(super) fn take_back_unfinished(&self) -> io::Result<()> {
        self.file.set_len(self.length)
    }

    /// Makes what was appended outlast a power failure.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn descriptor(&self) -> &File {
        &self.file
    }
}

/// Makes the directory of a run, which must not exist, with a locked journal that holds `spec`.
///
/// Nothing is left behind where it fails.
pub(super) fn create(
    path: &Path,
    spec: &SpecRecord,
    payload: Option<&[u8]>,
    spare: Option<Spare>,
) -> Result<Journal, Error> {
    crash::before(Step::RunDir);
    // One that can't be had is no reason to have none.
    let journal = match spare.map(|spare| spare.become_run(path)) {
        Some(Ok(journal)) => Some(journal),
        Some(Err(error)) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::AlreadyExists { path: path.to_owned() });
        }
        Some(Err(_)) | None => {
            DirBuilder::new().mode(0o700).create(path).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => Error::AlreadyExists { path: path.to_owned() },
                _ => Error::RunFile { action: "make the run directory", path: path.to_owned(), source },
            })?;
            None
        }
    };
    crash::after(Step::RunDir);
    fill(path, spec, payload, journal).inspect_err(|_| {
        // What can't be removed now is removed with the old run directories; the error that counts is the first.
        let _ = std::fs::remove_dir_all(path);
    })
}

fn fill(path: &Path, spec: &SpecRecord, payload: Option<&[u8]>, journal: Option<Journal>) -> Result<Journal, Error> {
    let not_written = |name: &str, source: io::Error| Error::RunFile { action: "write", path: path.join(name), source };
    let mut journal = journal.map_or_else(|| Journal::make(path), Ok)?;
    if let Some(payload) = payload {
        crash::before(Step::PayloadFile);
        new_file(path.join(PAYLOAD))?.write_all(payload).map_err(|source| not_written(PAYLOAD, source))?;
        crash::after(Step::PayloadFile);
    }
    crash::before(Step::SpecRecord);
    journal.append(&Record::Spec(spec.clone())).map_err(|source| not_written(JOURNAL, source))?;
    crash::after(Step::SpecRecord);
    Ok(journal)
}

fn new_file(path: PathBuf) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create_new(true).mode(0o600);
    options.open(&path).map_err(|source| Error::RunFile { action: "make", path, source })
}

/// Waits where somebody who looks into the run holds the lock for the moment of a look.
fn lock_new(file: &File) -> io::Result<()> {
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

/// What a journal tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History {
    pub(super) spec: Option<SpecRecord>,
    pub(super) starting: Option<StartingRecord>,
    pub(super) started: Option<StartedRecord>,
    pub(super) spawn_failed: Option<String>,
    pub(super) not_started: bool,
    pub(super) verdict: Option<VerdictRecord>,
    /// Bytes that are no record; a line that was cut short by a power failure or a full disk, or damage.
    pub(super) unreadable: bool,
}

/// A journal of a newer format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NewerFormat(pub(super) u32);

impl History {
    /// Reads what is whole; what is not is noted in `unreadable`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, NewerFormat> {
        let mut history = Self::default();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let record = line.strip_suffix(b"\n").and_then(checked);
            if let Some(version) = record.and_then(newer_version) {
                return Err(NewerFormat(version));
            }
            match record.and_then(|json| serde_json::from_slice(json).ok()) {
                None => history.unreadable = true,
                Some(Record::Spec(spec)) => history.spec = Some(spec),
                Some(Record::Starting(starting)) => history.starting = Some(starting),
                Some(Record::Started(started)) => history.started = Some(started),
                Some(Record::SpawnFailed { reason }) => history.spawn_failed = Some(reason),
                Some(Record::NotStarted { .. }) => history.not_started = true,
                Some(Record::Verdict(verdict)) => history.verdict = Some(verdict),
            }
        }
        Ok(history)
    }
}

/// The version of a `spec` record of a newer release, whose other fields we may not understand.
fn newer_version(json: &[u8]) -> Option<u32> {
    let value: serde_json::Value = serde_json::from_slice(json).ok()?;
    let version = value.get("spec")?.get("version")?.as_u64()?;
    (version > u64::from(FORMAT)).then(|| u32::try_from(version).unwrap_or(u32::MAX))
}

/// What a look into a run directory found.
#[derive(Debug)]
pub(super) enum Look {
    /// Nothing of that name.
    Missing,
    /// Somebody holds the lock; this is what stands in the journal so far.
    Held(Box<History>),
    /// Nobody holds the lock.
    Free(Ended),
}

/// What became of a run whose lock nobody holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ended {
    Finished(Verdict),
    SpawnFailed(String),
    NeverStarted,
    Gone { reason: String },
}

/// Looks into the directory of the run with this token; a few system calls.
pub(super) fn look(path: &Path, token: &RunToken, boot_id: &str) -> Result<Look, Error> {
    let cant_read = |source| Error::RunFile { action: "read", path: path.to_owned(), source };
    let directory = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Missing),
        outcome => outcome.map_err(cant_read)?,
    };
    refuse_foreign(path, &directory)?;
    let journal_path = path.join(JOURNAL);
    let mut options = OpenOptions::new();
    // Non-blocking, so that a FIFO put in its place can't hold us up.
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let file = match options.open(&journal_path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Look::Free(without_a_record(path, token, boot_id).map_err(cant_read)?));
        }
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(Error::Refused { path: journal_path, problem: "it is a symbolic link" });
        }
        Err(error) => return Err(cant_read(error)),
    };
    let metadata = file.metadata().map_err(cant_read)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::Refused { path: journal_path, problem: "it belongs to another user" });
    }
    if !metadata.is_file() {
        return Ok(Look::Free(Ended::Gone { reason: "its journal is not a file".to_owned() }));
    }
    let free = match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => true,
        Err(rustix::io::Errno::WOULDBLOCK) => false,
        Err(error) => return Err(cant_read(error.into())),
    };
    let mut bytes = Vec::new();
    let read = (&file).take(LARGEST_JOURNAL + 1).read_to_end(&mut bytes);
    if free {
        // Explicitly, so that a copy of the descriptor in a process being spawned does not keep the lock.
        flock(&file, FlockOperation::Unlock).map_err(|error| cant_read(error.into()))?;
    }
    read.map_err(cant_read)?;
    let history = History::parse(&bytes).map_err(|NewerFormat(version)| Error::NewerFormat {
        path: journal_path,
        version,
        known: FORMAT,
    })?;
    let another = history.spec.as_ref().is_some_and(|spec| spec.token != token.as_str());
    Ok(if !free && !another {
        Look::Held(Box::new(history))
    } else if bytes.is_empty() {
        Look::Free(without_a_record(path, token, boot_id).map_err(cant_read)?)
    } else {
        Look::Free(judged(history, token, boot_id))
    })
}

/// Refuses what is no directory of ours.
pub(super) fn refuse_foreign(path: &Path, found: &std::fs::Metadata) -> Result<(), Error> {
    let problem = if found.is_symlink() {
        "it is a symbolic link"
    } else if !found.is_dir() {
        "it is not a directory"
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        "it belongs to another user"
    } else {
        return Ok(());
    };
    Err(Error::Refused { path: path.to_owned(), problem })
}

/// What a run directory without any record says. The first record is written before anything but the journal and the
/// payload is made, so where there is more the records were taken away, and the command may have run.
fn without_a_record(path: &Path, token: &RunToken, boot_id: &str) -> io::Result<Ended> {
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        if name != JOURNAL && name != PAYLOAD {
            return Ok(Ended::Gone { reason: "its journal was emptied or removed".to_owned() });
        }
    }
    Ok(without_a_word(token, boot_id))
}

/// What the absence of a run directory or of any record in it says: nothing is synced before a command starts, so after
/// a power failure silence proves nothing.
pub(super) fn without_a_word(token: &RunToken, boot_id: &str) -> Ended {
    if token.is_of(mark_of(boot_id)) {
        Ended::NeverStarted
    } else {
        let reason =
            "the machine was restarted after it had been claimed, and nothing tells whether its command started";
        Ended::Gone { reason: reason.to_owned() }
    }
}

/// The mark of the boot with this id.
pub(super) fn mark_of(boot_id: &str) -> BootMark {
    BootMark(crc32fast::hash(boot_id.as_bytes()).to_be_bytes())
}

/// What the history of an unlocked run amounts to.
pub(super) fn judged(history: History, token: &RunToken, boot_id: &str) -> Ended {
    let gone = |reason: &str| Ended::Gone { reason: reason.to_owned() };
    let Some(spec) = &history.spec else {
        return gone("its journal is damaged");
    };
    if spec.token != token.as_str() {
        return gone("its run directory belongs to another run");
    }
    if let Some(verdict) = history.verdict {
        return Ended::Finished(verdict.into());
    }
    if let Some(reason) = history.spawn_failed {
        return Ended::SpawnFailed(reason);
    }
    if history.not_started {
        return Ended::NeverStarted;
    }
    if spec.boot_id != boot_id {
        return gone("the machine was restarted while it ran");
    }
    if history.starting.is_some() || history.started.is_some() {
        return gone("the shim that watched over its command was killed");
    }
    // The line that can't be read may have been the one that says that it was started.
    if history.unreadable { gone("its journal is damaged") } else { Ended::NeverStarted }
}

/// What names this boot of the machine (proc(5), `boot_id`); empty where the system has no such name.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> RunToken {
        RunToken::new(1, [1; 8], mark_of(&boot_id()))
    }

    fn spec() -> SpecRecord {
        SpecRecord {
            version: FORMAT,
            job: 7,
            attempt: 1,
            token: token().to_string(),
            flow: "F".to_owned(),
            worker: "w".to_owned(),
            boot_id: boot_id(),
            created_ms: 1,
            time_limit_ms: 1000,
            kill_grace_ms: 1000,
            output_limit: 1000,
        }
    }

    fn starting() -> Record {
        Record::Starting(StartingRecord { shim_pid: 5, shim_start_ticks: 6, boot_id: boot_id() })
    }

    fn verdict(code: i32, stderr_tail: &str) -> Verdict {
        Verdict {
            pid: 77,
            end: CommandEnd::Exited(code),
            cause: EndCause::Itself,
            started_time: Timestamp::from_unix_millis(1),
            completed_time: Timestamp::from_unix_millis(2),
            execution: Duration::from_micros(1500),
            usage: Usage::default(),
            shortage: Shortage::default(),
            stderr_tail: stderr_tail.to_owned(),
            said: None,
        }
    }

    fn journal_of(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let scratch = tempfile::tempdir().unwrap();
        let run = scratch.path().join("run");
        DirBuilder::new().mode(0o700).create(&run).unwrap();
        std::fs::write(run.join(JOURNAL), bytes).unwrap();
        (scratch, run)
    }

    fn ended(bytes: &[u8]) -> Ended {
        let (_scratch, run) = journal_of(bytes);
        match look(&run, &token(), &boot_id()).unwrap() {
            Look::Free(ended) => ended,
            other => panic!("{other:?}"),
        }
    }

    fn lines(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(|record| encoded(record).unwrap()).collect()
    }

    #[test]
    fn a_journal_tells_what_became_of_the_run() {
        let spec = || Record::Spec(spec());
        assert_eq!(ended(b""), Ended::NeverStarted);
        assert_eq!(ended(&lines(&[spec()])), Ended::NeverStarted);
        assert!(matches!(ended(&lines(&[spec(), starting()])), Ended::Gone { reason } if reason.contains("killed")));
        let failed = Record::SpawnFailed { reason: "no such program".to_owned() };
        assert_eq!(ended(&lines(&[spec(), starting(), failed])), Ended::SpawnFailed("no such program".to_owned()));
        let short = Record::NotStarted { reason: "no more processes can be started".to_owned() };
        assert_eq!(ended(&lines(&[spec(), starting(), short])), Ended::NeverStarted);
        let done = Record::Verdict((&verdict(3, "oops")).into());
        assert_eq!(ended(&lines(&[spec(), starting(), done])), Ended::Finished(verdict(3, "oops")));
    }

    /// By a process that was killed over it.
    #[test]
    fn half_a_record_is_taken_back_before_the_next_one() {
        let scratch = tempfile::tempdir().unwrap();
        let mut journal = Journal::make(scratch.path()).unwrap();
        journal.append(&Record::Spec(spec())).unwrap();
        let line = encoded(&starting()).unwrap();
        journal.file.write_all(&line[..line.len() / 2]).unwrap();
        journal.take_back_unfinished().unwrap();
        let reason = "its process was killed".to_owned();
        journal.append(&Record::NotStarted { reason: reason.clone() }).unwrap();
        let written = std::fs::read(scratch.path().join(JOURNAL)).unwrap();
        assert_eq!(written, lines(&[Record::Spec(spec()), Record::NotStarted { reason }]));
    }

    #[test]
    fn a_verdict_of_the_first_release_is_read_and_what_it_did_not_know_is_left_open() {
        let json = br#"{"verdict":{"pid":77,"end":{"signaled":15},"cause":"timed_out","started_ms":1,"completed_ms":2,"execution_us":1500,"user_cpu_us":0,"system_cpu_us":0,"max_rss_bytes":0,"stderr_tail":"oops"}}"#;
        let first = Verdict { end: CommandEnd::Signaled(15), cause: EndCause::TimedOut(None), ..verdict(0, "oops") };
        assert_eq!(serde_json::from_slice::<Record>(json).unwrap(), Record::Verdict((&first).into()));
        assert_eq!(serde_json::to_vec(&Record::Verdict((&first).into())).unwrap(), json);
        let limit = Duration::from_secs(9);
        let cause = EndCause::TimedOut(Some(TimedOut { timeout: Timeout::Silence, limit }));
        let usage = Usage { io_read_bytes: Some(5), io_write_bytes: Some(6), output_bytes: 9, ..Usage::default() };
        let shortage = Shortage { memory: Some(OutOfMemory::Run(7)), refused_forks: 8 };
        let said = Said { progress: Some(41), status_message: Some("frame 12".to_owned()) };
        let whole = Verdict { cause, usage, shortage, said: Some(Box::new(said)), ..verdict(1, "oops") };
        assert_eq!(ended(&lines(&[Record::Spec(spec()), Record::Verdict((&whole).into())])), Ended::Finished(whole));
    }

    #[test]
    fn another_boot_is_told_apart_from_a_killed_shim() {
        let earlier = SpecRecord { boot_id: "another".to_owned(), ..spec() };
        for records in [vec![Record::Spec(earlier.clone())], vec![Record::Spec(earlier), starting()]] {
            assert!(
                matches!(ended(&lines(&records)), Ended::Gone { reason } if reason.contains("machine was restarted"))
            );
        }
    }

    #[test]
    fn silence_from_before_a_restart_of_the_machine_proves_nothing() {
        let earlier = RunToken::new(1, [1; 8], mark_of("another"));
        let (_scratch, run) = journal_of(b"");
        for journal in [true, false] {
            let look = look(&run, &earlier, &boot_id()).unwrap();
            assert!(matches!(look, Look::Free(Ended::Gone { reason }) if reason.contains("machine was restarted")));
            if journal {
                std::fs::remove_file(run.join(JOURNAL)).unwrap();
            }
        }
        assert_eq!(without_a_word(&token(), &boot_id()), Ended::NeverStarted);
        assert!(matches!(without_a_word(&earlier, &boot_id()), Ended::Gone { .. }));
    }

    #[test]
    fn a_journal_that_was_emptied_or_removed_is_no_proof_that_nothing_ran() {
        let (_scratch, run) = journal_of(b"");
        std::fs::write(run.join(PAYLOAD), "{}").unwrap();
        let found = || look(&run, &token(), &boot_id()).unwrap();
        assert!(matches!(found(), Look::Free(Ended::NeverStarted)));
        std::fs::write(run.join("stdout.log"), "").unwrap();
        assert!(matches!(found(), Look::Free(Ended::Gone { reason }) if reason.contains("emptied")));
        std::fs::remove_file(run.join(JOURNAL)).unwrap();
        assert!(matches!(found(), Look::Free(Ended::Gone { reason }) if reason.contains("emptied")));
    }

    #[test]
    fn garbage_is_never_a_verdict() {
        for garbage in [&b"\0\0\0\0"[..], b"garbage\n", b"00000000 {}\n", b"\n\n\n", &[0xff; 4096]] {
            assert!(matches!(ended(garbage), Ended::Gone { .. }), "{garbage:?}");
        }
        let mut torn = lines(&[Record::Spec(spec())]);
        torn.extend_from_slice(b"1234");
        assert!(matches!(ended(&torn), Ended::Gone { .. }));
        let other = SpecRecord { token: "f".repeat(32), ..spec() };
        assert!(
            matches!(ended(&lines(&[Record::Spec(other)])), Ended::Gone { reason } if reason.contains("another run"))
        );
    }

    #[test]
    fn a_newer_format_is_refused_whatever_else_it_holds() {
        let json = br#"{"spec":{"version":2,"colour":"green"}}"#;
        let mut line = format!("{:08x} ", crc32fast::hash(json)).into_bytes();
        line.extend_from_slice(json);
        line.push(b'\n');
        let (_scratch, run) = journal_of(&line);
        let error = look(&run, &token(), &boot_id()).unwrap_err();
        assert!(matches!(error, Error::NewerFormat { version: 2, .. }), "{error}");
    }

    #[test]
    fn symbolic_links_are_refused() {
        let (scratch, run) = journal_of(b"");
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&run, &link).unwrap();
        assert!(matches!(look(&link, &token(), "").unwrap_err(), Error::Refused { .. }));
        std::fs::rename(run.join(JOURNAL), run.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(run.join("elsewhere"), run.join(JOURNAL)).unwrap();
        assert!(matches!(look(&run, &token(), "").unwrap_err(), Error::Refused { .. }));
    }

    #[test]
    fn a_fifo_in_place_of_the_journal_holds_nobody_up() {
        let (_scratch, run) = journal_of(b"");
        std::fs::remove_file(run.join(JOURNAL)).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, run.join(JOURNAL), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(matches!(look(&run, &token(), "").unwrap(), Look::Free(Ended::Gone { .. })));
    }

    #[test]
    fn a_run_is_created_once_and_locked_until_its_last_holder_is_gone() {
        let scratch = tempfile::tempdir().unwrap();
        let run = scratch.path().join("run");
        let journal = create(&run, &spec(), Some(b"{}"), None).unwrap();
        assert!(matches!(create(&run, &spec(), None, None).unwrap_err(), Error::AlreadyExists { .. }));
        assert_eq!(run.symlink_metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(run.join(JOURNAL).metadata().unwrap().mode() & 0o777, 0o600);
        let handed_on = journal.descriptor().try_clone().unwrap();
        drop(journal);
        assert!(matches!(look(&run, &token(), "").unwrap(), Look::Held(_)));
        drop(handed_on);
        assert!(matches!(look(&run, &token(), &boot_id()).unwrap(), Look::Free(Ended::NeverStarted)));
    }

    #[test]
    fn a_spare_directory_becomes_a_run_once_or_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let entries = || std::fs::read_dir(scratch.path()).unwrap().count();
        drop(Spare::make(scratch.path()).unwrap());
        assert_eq!(entries(), 0);
        let run = scratch.path().join("run");
        let journal = create(&run, &spec(), Some(b"{}"), Some(Spare::make(scratch.path()).unwrap())).unwrap();
        assert_eq!((entries(), run.symlink_metadata().unwrap().mode() & 0o777), (1, 0o700));
        assert!(matches!(look(&run, &token(), "").unwrap(), Look::Held(history) if history.spec.is_some()));
        let again = create(&run, &spec(), None, Some(Spare::make(scratch.path()).unwrap())).unwrap_err();
        assert!(matches!(again, Error::AlreadyExists { .. }));
        assert_eq!(entries(), 1, "the spare one is gone");
        drop(journal);
        assert!(matches!(look(&run, &token(), &boot_id()).unwrap(), Look::Free(Ended::NeverStarted)));
        // One that somebody has taken away.
        let spare = Spare::make(scratch.path()).unwrap();
        std::fs::remove_dir_all(spare.path()).unwrap();
        create(&scratch.path().join("other"), &spec(), None, Some(spare)).unwrap();
        assert!(scratch.path().join("other").join(JOURNAL).exists());
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let text = "[^\u{0}]{0,40}";
        prop_oneof![
            (any::<i64>(), any::<u32>(), text).prop_map(|(job, attempt, flow)| Record::Spec(SpecRecord {
                job,
                attempt,
                flow,
                ..spec()
            })),
            any::<i32>().prop_map(|pid| Record::Started(StartedRecord {
                pid,
                start_ticks: 9,
                boot_id: "b".to_owned(),
                time_ms: -1
            })),
            text.prop_map(|reason| Record::SpawnFailed { reason }),
            (any::<i32>(), text).prop_map(|(code, tail)| Record::Verdict((&verdict(code, &tail)).into())),
        ]
    }

    proptest! {
        #[test]
        fn a_record_is_read_back_as_written(record in any_record()) {
            let mut line = encoded(&record).unwrap();
            prop_assert_eq!(line.pop(), Some(b'\n'));
            prop_assert!(!line.contains(&b'\n'));
            let json = checked(&line).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Record>(json).unwrap(), record);
        }

        #[test]
        fn a_damaged_journal_never_tells_another_verdict(at in 0usize..400, byte in any::<u8>(), cut in 0usize..600) {
            let whole = lines(&[Record::Spec(spec()), starting(), Record::Verdict((&verdict(0, "tail")).into())]);
            let mut damaged = whole.clone();
            if let Some(place) = damaged.get_mut(at) {
                *place = byte;
            }
            damaged.truncate(cut);
            if let Ok(history) = History::parse(&damaged) && let Some(found) = history.verdict {
                prop_assert_eq!(Verdict::from(found), verdict(0, "tail"));
            }
        }
    }
}
