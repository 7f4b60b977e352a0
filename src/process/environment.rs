//! The environment of a command.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use super::CommandSpec;
use super::run_dir::PAYLOAD;
use crate::crash;

/// A variable, as the `name=value` by which execve(2) hands it over.
#[derive(Debug)]
struct Variable {
    name: OsString,
    entry: CString,
}

impl Variable {
    fn new(name: OsString, value: &OsStr) -> Result<Self, String> {
        let entry = CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).map_err(|_| {
            format!("the environment variable {} holds a zero byte, which no program can be given", name.display())
        })?;
        Ok(Self { name, entry })
    }
}

/// The environment of a command: what all inherit, with its own on top; the last one of a name wins.
///
/// What is inherited is made ready once: each string that a shim makes costs it a page of the memory that it shares with the
/// zygote. A clone is the same one.
#[derive(Clone, Debug)]
pub(super) struct Environment {
    inherited: Rc<[Variable]>,
    added: Rc<[Variable]>,
}

impl Environment {
    /// Without anything of its own.
    pub(super) fn inherited(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        // What a process has been given holds no zero byte, so none is left out.
        let variables = variables.into_iter().filter_map(|(name, value)| Variable::new(name, &value).ok());
        Self { inherited: variables.collect(), added: Rc::default() }
    }

    /// The same with these on top.
    ///
    /// # Errors
    /// A sentence for a person.
    pub(super) fn with(&self, added: impl IntoIterator<Item = (String, OsString)>) -> Result<Self, String> {
        let added = added.into_iter().map(|(name, value)| Variable::new(name.into(), &value));
        Ok(Self { inherited: Rc::clone(&self.inherited), added: added.collect::<Result<_, _>>()? })
    }

    /// What a variable holds.
    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        self.pairs().find_map(|(found, value)| (found == name).then_some(value))
    }

    /// All of it, each name once, with what it holds.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.variables().map(|Variable { name, entry }| {
            // Behind the name and the sign of equality.
            let value = entry.as_bytes().get(name.len() + 1..).unwrap_or_default();
            (name.as_os_str(), OsStr::from_bytes(value))
        })
    }

    /// All of it, each name once, as execve(2) takes it.
    pub(super) fn entries(&self) -> impl Iterator<Item = &CStr> {
        self.variables().map(|variable| variable.entry.as_c_str())
    }

    fn variables(&self) -> impl Iterator<Item = &Variable> {
        let is_in = |list: &[Variable], name: &OsStr| list.iter().any(|variable| variable.name == name);
        let inherited = self.inherited.iter().filter(move |variable| !is_in(&self.added, &variable.name));
        let added = self.added.iter().enumerate().filter(move |(place, variable)| {
            !self.added.get(place + 1..).is_some_and(|later| is_in(later, &variable.name))
        });
        inherited.chain(added.map(|(_, variable)| variable))
    }
}

/// Whether a variable of the service's own environment reaches its commands (CONTRACT §6).
///
/// The service's secrets don't, nor what a service manager or another Callsheet told the service about itself.
pub(super) fn is_passed_on(name: &OsStr) -> bool {
    const KEPT_BACK: [&str; 14] = [
        "DATABASE_URL",
        "PGPASSWORD",
        "PGPASSFILE",
        "MYSQL_PWD",
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
        for name in [
            "DATABASE_URL",
            "PGPASSWORD",
            "MYSQL_PWD",
            "OPS_TOKEN",
            "CALLSHEET_OPS_TOKEN",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ] {
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
    fn a_later_entry_of_a_name_wins_and_each_name_is_there_once() {
        let inherited = Environment::inherited([("A".into(), "inherited".into()), ("B".into(), "inherited".into())]);
        let all = inherited.with([("B".to_owned(), "flow".into()), ("B".to_owned(), "ours".into())]).unwrap();
        assert_eq!(all.get("A"), Some(OsStr::new("inherited")));
        assert_eq!(all.get("B"), Some(OsStr::new("ours")));
        assert_eq!(all.get("C"), None);
        assert_eq!(all.entries().collect::<Vec<_>>(), [c"A=inherited", c"B=ours"]);
        assert_eq!(inherited.entries().collect::<Vec<_>>(), [c"A=inherited", c"B=inherited"]);
    }

    #[test]
    fn a_zero_byte_is_refused_without_its_value() {
        let refused = Environment::inherited([]).with([("KEY".to_owned(), "sec\0ret".into())]).unwrap_err();
        assert_eq!(refused, "the environment variable KEY holds a zero byte, which no program can be given");
    }
}
