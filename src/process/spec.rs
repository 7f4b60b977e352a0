//! What a run's shim has to know about its command.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::run_dir::PAYLOAD;
use crate::domain::{Attempt, FlowType, JobId, RunToken, WorkerId};

/// Everything that a shim needs; `Debug` shows neither environment nor payload.
#[derive(Clone)]
pub struct CommandSpec {
    /// The job's type.
    pub flow: FlowType,
    /// The job.
    pub job: JobId,
    /// Which attempt at the job this is.
    pub attempt: Attempt,
    /// What makes the run unlike every other.
    pub token: RunToken,
    /// The program and its arguments, filled in; never empty.
    pub argv: Vec<String>,
    /// Where the command runs; `None` is where the service runs.
    pub working_dir: Option<PathBuf>,
    /// What the flow adds to the environment, filled in; later entries win.
    pub env: Vec<(String, String)>,
    /// The job's identifier.
    pub identifier: String,
    /// The worker that claimed the job.
    pub worker: WorkerId,
    /// The job's payload, as JSON; the command finds it in a file.
    pub payload: Option<Vec<u8>>,
    /// How long the command may run.
    pub time_limit: Duration,
    /// How long after SIGTERM SIGKILL follows.
    pub kill_grace: Duration,
    /// How many bytes each of standard output and standard error are kept; older output is dropped.
    pub output_limit: u64,
}

impl fmt::Debug for CommandSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandSpec")
            .field("flow", &self.flow)
            .field("job", &self.job)
            .field("attempt", &self.attempt)
            .field("token", &self.token)
            .field("program", &self.argv.first())
            .field("working_dir", &self.working_dir)
            .field("worker", &self.worker)
            .field("time_limit", &self.time_limit)
            .field("kill_grace", &self.kill_grace)
            .field("output_limit", &self.output_limit)
            .finish_non_exhaustive()
    }
}

/// Whether a variable of the service's own environment reaches its commands (CONTRACT §6).
///
/// The service's secrets don't, nor what a service manager or another Callsheet told the service about itself.
pub(super) fn is_passed_on(name: &OsStr) -> bool {
    const KEPT_BACK: [&str; 7] = [
        "DATABASE_URL",
        "PGPASSWORD",
        "PGPASSFILE",
        "NOTIFY_SOCKET",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        // systemd sets it for services; a command that finds it may think that it is one.
        "MANAGERPID",
    ];
    const KEPT_BACK_PREFIXES: [&str; 3] = ["CALLSHEET_", "WATCHDOG_", "LISTEN_"];
    let name = name.as_encoded_bytes();
    !KEPT_BACK.iter().any(|kept| kept.as_bytes() == name)
        && !KEPT_BACK_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

impl CommandSpec {
    /// What comes on top of the inherited environment: the flow's variables, then ours, which win.
    pub(super) fn added_environment(&self, run_dir: &Path) -> Vec<(String, OsString)> {
        let mut added: Vec<(String, OsString)> =
            self.env.iter().map(|(name, value)| (name.clone(), value.into())).collect();
        let mut ours = |name: &str, value: OsString| added.push((name.to_owned(), value));
        ours("CALLSHEET_JOB_ID", self.job.to_string().into());
        ours("CALLSHEET_JOB_TYPE", self.flow.as_str().into());
        ours("CALLSHEET_IDENTIFIER", self.identifier.as_str().into());
        ours("CALLSHEET_ATTEMPT", self.attempt.to_string().into());
        ours("CALLSHEET_RUN_TOKEN", self.token.as_str().into());
        ours("CALLSHEET_WORKER_ID", self.worker.as_str().into());
        ours("CALLSHEET_WORKFLOW_ID", self.flow.workflow_id(self.job).into());
        ours("CALLSHEET_RUN_DIR", run_dir.into());
        if self.payload.is_some() {
            ours("CALLSHEET_PAYLOAD", run_dir.join(PAYLOAD).into());
        }
        added
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_services_secrets_are_kept_back() {
        for name in
            ["DATABASE_URL", "CALLSHEET_OPS_TOKEN", "NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "PGPASSWORD"]
        {
            assert!(!is_passed_on(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "HOME", "PGHOST", "DATABASE_URL_OF_SOMETHING_ELSE", "MY_CALLSHEET_"] {
            assert!(is_passed_on(OsStr::new(name)), "{name}");
        }
    }

    fn spec() -> CommandSpec {
        CommandSpec {
            flow: "VEO_3".parse().unwrap(),
            job: JobId(7),
            attempt: Attempt(2),
            token: RunToken::from_bytes([1; 16]),
            argv: vec!["true".to_owned(), "secret-argument".to_owned()],
            working_dir: None,
            env: vec![("CALLSHEET_JOB_ID".to_owned(), "forged".to_owned()), ("KEY".to_owned(), "secret".to_owned())],
            identifier: "abc".to_owned(),
            worker: "w".parse().unwrap(),
            payload: None,
            time_limit: Duration::from_secs(1),
            kill_grace: Duration::from_secs(1),
            output_limit: 1,
        }
    }

    #[test]
    fn our_variables_win_and_a_payload_is_named_only_where_there_is_one() {
        let last = |spec: &CommandSpec, name: &str| {
            let added = spec.added_environment(Path::new("/runs/7"));
            added.into_iter().rev().find(|(added, _)| added == name).map(|(_, value)| value)
        };
        assert_eq!(last(&spec(), "CALLSHEET_JOB_ID"), Some("7".into()));
        assert_eq!(last(&spec(), "CALLSHEET_WORKFLOW_ID"), Some("veo_3(7)".into()));
        assert_eq!(last(&spec(), "CALLSHEET_PAYLOAD"), None);
        let with_payload = CommandSpec { payload: Some(b"{}".to_vec()), ..spec() };
        assert_eq!(last(&with_payload, "CALLSHEET_PAYLOAD"), Some("/runs/7/payload.json".into()));
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", spec()).contains("secret"));
    }
}
