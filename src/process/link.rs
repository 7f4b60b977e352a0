//! What is said over sockets: the service's order to the zygote, and the talk between a service and a shim.
//!
//! A message is a packet (`SOCK_SEQPACKET`) of JSON. Who gets a message that it does not know ignores it.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use super::run_dir::VerdictRecord;

/// The largest packet that either side takes; a socket's default buffer does not hold more.
pub(super) const LARGEST_ORDER: usize = 256 * 1024;
/// The largest packet a shim sends: a verdict with 4 KiB of standard error, escaped.
pub(super) const LARGEST_REPORT: usize = 48 * 1024;

/// Start this command. The journal and one end of the link come with it, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) token: String,
    pub(super) run_dir: OsString,
    pub(super) argv: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cancel: Option<CancelOrder>,
    pub(super) working_dir: Option<OsString>,
    /// What comes on top of the inherited environment.
    pub(super) env: Vec<(String, OsString)>,
    pub(super) time_limit_ms: u64,
    /// Whether that is what was left of `schedule_to_close_timeout`.
    pub(super) schedule_to_close: bool,
    pub(super) watchdog_ms: Option<u64>,
    pub(super) silence_timeout_ms: Option<u64>,
    pub(super) kill_grace_ms: u64,
    /// The command is not started later than this; by the time since boot, as below.
    pub(super) start_by_ms: u64,
    pub(super) lease: Option<LeaseOrder>,
    pub(super) output_limit: u64,
    pub(super) memory_limit: Option<u64>,
    pub(super) cpu_millis: Option<u32>,
    pub(super) pids_limit: Option<u32>,
    pub(super) boot_id: String,
    /// Where files may be that are of use only while the machine runs.
    pub(super) in_memory: Option<OsString>,
    /// Everything is to be got ready, but the command is not started before [`ToShim::Start`] comes, and never where the link
    /// breaks first.
    pub(super) held: bool,
}

/// See [`CancelSpec`](super::CancelSpec).
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CancelOrder {
    pub(super) term: Vec<String>,
    pub(super) kill: Vec<String>,
}

/// A shim to its service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToService {
    Started {
        pid: i32,
        time_ms: i64,
    },
    SpawnFailed {
        reason: String,
    },
    Progress {
        progress: Option<u8>,
        status_message: Option<String>,
    },
    NotDying {
        reason: String,
    },
    /// It will end its command then.
    Leased {
        until_ms: u64,
    },
    Ended(VerdictRecord),
    /// The same, and the shim waits on this connection for another [`Order`] for a moment. Only a service of the same build hears
    /// this: the one that ordered the run.
    EndedAndWaits(VerdictRecord),
    /// Another service (or another part of this one) has taken the run over; this connection ends.
    Replaced,
}

/// A service to a shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToShim {
    /// To one whose order is held: its claim is committed.
    Start,
    Stop,
    StopNow,
    /// End the command then; `None` for never. A shim of an earlier release does not know it and says nothing.
    Lease(Option<LeaseOrder>),
}

impl ToShim {
    /// What a packet means to whoever waits for [`Self::Start`]: that it has come, that it never will, or nothing. Allocates nothing,
    /// so it goes by how these are written.
    pub(super) fn starts(packet: &[u8]) -> Option<bool> {
        match packet {
            br#""start""# => Some(true),
            br#""stop""# | br#""stop_now""# => Some(false),
            _ => None,
        }
    }
}

/// When a command is to be ended that nobody confirms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseOrder {
    /// By the time since boot.
    pub(super) until_ms: u64,
    /// How long after the last confirmation that is.
    pub(super) timeout_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_the_start_knows_what_is_said_as_it_is_written() {
        let starts = |word: &ToShim| ToShim::starts(&serde_json::to_vec(word).unwrap());
        assert_eq!(starts(&ToShim::Start), Some(true));
        assert_eq!((starts(&ToShim::Stop), starts(&ToShim::StopNow)), (Some(false), Some(false)));
        assert_eq!(starts(&ToShim::Lease(Some(LeaseOrder { until_ms: 1, timeout_ms: 2 }))), None);
        assert_eq!(starts(&ToShim::Lease(None)), None);
        assert_eq!(ToShim::starts(b"start"), None);
    }
}
