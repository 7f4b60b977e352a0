//! What shims, commands and disks say.

mod error;
mod link;
mod memory_dir;
pub mod logs;
mod notify;
mod run_dir;
mod spare;
pub(crate) mod text;

pub use error::Error;

use crate::domain::RunToken;
use crate::domain::run::{Said, Verdict};

/// What a command says about itself stays in bounds, whatever it says and however often.
pub fn notify(bytes: &[u8]) {
    let mut said = Said::default();
    for datagram in bytes.split(|byte| *byte == 0xff) {
        let before = said.clone();
        let heard = said.hear(datagram);
        assert_eq!(heard.changed, said != before);
        assert!(said.progress.is_none_or(|percent| percent <= 100));
        if let Some(status) = &said.status_message {
            assert!(status.chars().count() <= 1000);
            assert!(status.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
        }
    }
}

/// A packet is understood or ignored, and what is understood says the same when it is said again.
pub fn link(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<link::ToService>(bytes) {
        let again = serde_json::to_vec(&message).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<link::ToService>(&again).expect("and read again"), message);
        if let link::ToService::Ended(record) = message {
            let verdict = Verdict::from(record.clone());
            assert_eq!(run_dir::VerdictRecord::from(&verdict), record);
        }
    }
    if let Ok(message) = serde_json::from_slice::<link::ToShim>(bytes) {
        let again = serde_json::to_vec(&message).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<link::ToShim>(&again).expect("and read again"), message);
    }
    if let Ok(order) = serde_json::from_slice::<link::Order>(bytes) {
        assert!(serde_json::to_vec(&order).is_ok());
    }
}

/// A journal is read or is damaged; a verdict comes out of one only where a whole line with the right checksum has it.
///
/// The first byte chooses: the bytes as they are, or each line with its checksum put right, so that what lies behind the
/// checksum is tried too. The rest names files of a stream, by the reader of logs.
pub fn run_dir(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    if *first == b'#' {
        return segments(rest);
    }
    let journal = if first % 2 == 0 { rest.to_vec() } else { with_checksums(rest) };
    let Ok(history) = run_dir::History::parse(&journal) else { return };
    let (has_verdict, has_spec, has_start) =
        (history.verdict.is_some(), history.spec.is_some(), history.starting.is_some() || history.started.is_some());
    let token = "0123456789abcdef0123456789abcdef".parse::<RunToken>().expect("a token");
    match run_dir::judged(history, &token, "boot") {
        run_dir::Ended::Finished(_) => assert!(has_verdict && has_spec),
        run_dir::Ended::NeverStarted => assert!(!has_start && !has_verdict && has_spec),
        run_dir::Ended::SpawnFailed(_) | run_dir::Ended::Gone { .. } => {}
    }
}

fn with_checksums(lines: &[u8]) -> Vec<u8> {
    let mut journal = Vec::new();
    for line in lines.split(|byte| *byte == b'\n') {
        journal.extend_from_slice(format!("{:08x} ", crc32fast::hash(line)).as_bytes());
        journal.extend_from_slice(line);
        journal.push(b'\n');
    }
    journal
}

/// Files of any name in a run directory: what the reader gives is in order, and it comes to an end.
fn segments(names: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    // On memory where there is some: a file system that writes would be what is tried.
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a scratch directory");
    for (number, name) in names.split(|byte| *byte == b'\n').take(8).enumerate() {
        let usable = !name.is_empty()
            && name.len() < 64
            && !name.contains(&0)
            && !name.contains(&b'/')
            && name != b"."
            && name != b"..";
        if usable {
            let path = directory.path().join(std::ffi::OsStr::from_bytes(name));
            std::fs::write(path, vec![b'x'; number]).expect("a file");
        }
    }
    let only = [logs::Stream::Stdout, logs::Stream::Stderr].map(logs::Selection::Only);
    for selection in only.into_iter().chain([logs::Selection::Both]) {
        let log = logs::RunLog::open(directory.path(), selection, true);
        let total = log.total_length().expect("the directory can be read");
        let (mut offset, mut reads) = (0, 0);
        loop {
            let Ok(page) = log.read(offset, 4) else { break };
            if page.next_offset <= offset {
                break;
            }
            offset = page.next_offset;
            reads += 1;
            assert!(reads < 256, "reading never ends");
        }
        assert!(offset <= total, "{offset} of {total}");
        // What pretends to be compressed is refused, as an error.
        let _ = log.tail(3);
    }
}
