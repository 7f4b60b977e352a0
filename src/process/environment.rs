//! The environment of a command.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::CommandSpec;
use super::run_dir::PAYLOAD;
use crate::crash;

/// The environment of a command: the inherited one with `added` on top; a later entry of a name wins.
pub(super) fn merged(
    inherited: &[(OsString, OsString)],
    added: impl IntoIterator<Item = (String, OsString)>,
) -> BTreeMap<OsString, OsString> {
    let added = added.into_iter().map(|(name, value)| (OsString::from(name), value));
    inherited.iter().cloned().chain(added).collect()
}

/// Whether a variable of the service's own environment reaches its commands (CONTRACT §6).
///
/// The service's secrets don't, nor what a service manager or another Callsheet told the service about itself.
pub(super) fn is_passed_on(name: &OsStr) -> bool {
    const KEPT_BACK: [&str; 13] = [
        "DATABASE_URL",
        "PGPASSWORD",
        "PGPASSFILE",
        "NOTIFY_SOCKET",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        // systemd sets it for services; a command that finds it may think that it is one.
        "MANAGERPID",
        // What the service itself was started as a part of, and how it names itself to a collector; the headers are secrets.
        "TRACEPARENT",
        "TRACESTATE",
        "OTEL_SERVICE_NAME",
        "OTEL_RESOURCE_ATTRIBUTES",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    ];
    const KEPT_BACK_PREFIXES: [&str; 3] = ["CALLSHEET_", "WATCHDOG_", "LISTEN_"];
    let name = name.as_encoded_bytes();
    !KEPT_BACK.iter().any(|kept| kept.as_bytes() == name)
        && !KEPT_BACK_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// Whether a variable reaches the zygote: what its commands get, what its run is found by where the service is itself a run
/// of another Callsheet, and what has it die in tests. Of its own environment a process hides nothing from `/proc`.
pub(super) fn is_for_zygote(name: &OsStr, secrets: &[String]) -> bool {
    let is = |known: &str| name == OsStr::new(known);
    (is_passed_on(name) && !secrets.iter().any(|secret| is(secret)))
        || is("CALLSHEET_RUN_TOKEN")
        || crash::VARIABLES.iter().any(|known| is(known))
}

impl CommandSpec {
    /// What comes on top of the inherited environment: the flow's variables, then ours, which win.
    pub(super) fn added_environment(&self, run_dir: &Path) -> Vec<(String, OsString)> {
        let mut added: Vec<(String, OsString)> =
            self.env.iter().map(|(name, value)| (name.clone(), value.into())).collect();
        added.extend(self.slot.iter().map(|slot| (slot.name.clone(), slot.value.clone().into())));
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
    use std::time::Duration;

    use super::*;
    use crate::domain::limits::Limits;
    use crate::domain::run::Timeout;
    use crate::domain::{Attempt, JobId, RunToken};

    #[test]
    fn the_services_secrets_are_kept_back() {
        for name in [
            "DATABASE_URL",
            "CALLSHEET_OPS_TOKEN",
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "LISTEN_FDS",
            "PGPASSWORD",
            "TRACEPARENT",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ] {
            assert!(!is_passed_on(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "HOME", "PGHOST", "DATABASE_URL_OF_SOMETHING_ELSE", "MY_CALLSHEET_"] {
            assert!(is_passed_on(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn the_zygote_holds_no_secret_either_not_even_one_of_a_name_that_the_configuration_chose() {
        let secrets = ["OPS_TOKEN".to_owned()];
        let is_for_zygote = |name: &str| is_for_zygote(OsStr::new(name), &secrets);
        for name in ["DATABASE_URL", "PGPASSWORD", "OPS_TOKEN", "CALLSHEET_OPS_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS"] {
            assert!(!is_for_zygote(name), "{name}");
        }
        for name in ["PATH", "OPS_TOKEN_2", "CALLSHEET_RUN_TOKEN", "CALLSHEET_CRASH_AT"] {
            assert!(is_for_zygote(name), "{name}");
        }
    }

    fn spec() -> CommandSpec {
        CommandSpec {
            start_by: Duration::MAX,
            lease: None,
            flow: "VEO_3".parse().unwrap(),
            job: JobId(7),
            attempt: Attempt(2),
            token: RunToken::from_bytes([1; 16]),
            argv: vec!["true".to_owned(), "secret-argument".to_owned()],
            cancel: None,
            working_dir: None,
            env: vec![("CALLSHEET_JOB_ID".to_owned(), "forged".to_owned()), ("KEY".to_owned(), "secret".to_owned())],
            slot: None,
            identifier: "abc".to_owned(),
            worker: "w".parse().unwrap(),
            payload: None,
            time_limit: Duration::from_secs(1),
            time_limit_is: Timeout::StartToClose,
            watchdog: None,
            silence_timeout: None,
            kill_grace: Duration::from_secs(1),
            output_limit: 1,
            limits: Limits::default(),
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

    #[test]
    fn a_later_entry_of_a_name_wins() {
        let inherited = [("A".into(), "inherited".into()), ("B".into(), "inherited".into())];
        let added = [("B".to_owned(), "flow".into()), ("B".to_owned(), "ours".into())];
        let all = merged(&inherited, added);
        assert_eq!(all.get(OsStr::new("A")), Some(&"inherited".into()));
        assert_eq!(all.get(OsStr::new("B")), Some(&"ours".into()));
    }
}
