//! From the configuration as written to one that needs no further check.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::adopted::{self, AdoptedTable};
use super::report::Notes;
use super::tokens::{is_of_nothing, parse_sha256};
use super::written::{Flow, Peers, Recurring, Size, SlotsTable, Tls, Token, Webhook, Written};
use super::{
    AccessRole, FlowConfig, HttpConfig, OnStop, OtlpEndpoint, PeerSecret, PeersConfig, RecurringConfig,
    RetentionConfig, ServiceConfig, TlsConfig, TokenConfig, TokenSecret, WebhookConfig, WebhookSecret, WebhookUrl,
};
use crate::domain::admission::IdentifierPattern;
use crate::domain::database_url::DatabaseUrl;
use crate::domain::labels::{Label, Labels};
use crate::domain::limits::Limits;
use crate::domain::recurring::{CatchUp, Overlap};
use crate::domain::retry::{InvalidRetryPolicy, MOST_ATTEMPTS, RetryPolicy, TEMPORARY_FAILURE, attempts_in_range};
use crate::domain::schedule::{InvalidSchedule, Schedule};
use crate::domain::slots::{InvalidSlots, Slots};
use crate::domain::template::{InvalidTemplate, Template};
use crate::domain::{FlowType, JobStatus, WorkerId};

/// `data_dir` where none is named.
pub(super) const DATA_DIR: &str = "callsheet-data";

/// What a file says, validated; a [`Config`](super::Config) once the command line has been heard too.
pub(super) struct Validated {
    pub(super) data_dir: PathBuf,
    pub(super) database_url: Option<DatabaseUrl>,
    pub(super) worker_id: Option<WorkerId>,
    pub(super) labels: Labels,
    pub(super) service: ServiceConfig,
    pub(super) http: HttpConfig,
    pub(super) retention: RetentionConfig,
    pub(super) webhooks: Vec<WebhookConfig>,
    pub(super) adopted: Option<AdoptedTable>,
    pub(super) otlp: Option<OtlpEndpoint>,
    pub(super) flows: BTreeMap<FlowType, Arc<FlowConfig>>,
    /// Where the keys stand that a look at the machine may find wrong.
    pub(super) places: Vec<(String, Range<usize>)>,
}

/// The most that `concurrency` may be: each run is a process of its own with a shim, and ten thousand of both is more
/// than one machine's default limits allow.
const MAXIMUM_CONCURRENCY: i64 = 10_000;

/// In bytes; it stands in every line of the audit trail.
const LONGEST_TOKEN_NAME: usize = 100;
/// In bytes; it is a part of the unique key of its jobs, with a time behind it.
const LONGEST_ENTRY_NAME: usize = 200;

/// What a duration may be, and why.
struct Bounds {
    least: Duration,
    most: Duration,
    why: &'static str,
}

const fn bounds(least: u64, most: u64, why: &'static str) -> Bounds {
    Bounds { least: Duration::from_secs(least), most: Duration::from_secs(most), why }
}

const MIB: u64 = 1 << 20;
/// A millisecond in each tenth of a second is the least that the kernel hands out (`cpu.max` in cgroups(7), version 2).
const LEAST_CPUS: f64 = 0.01;
const MOST_CPUS: f64 = 10_000.0;
/// The kernel's PID_MAX_LIMIT on 64-bit machines (proc(5), pid_max).
const MOST_PIDS: u32 = 4_194_304;
const LEAST_WATCHDOG: Duration = Duration::from_secs(2);
const DAY: u64 = 86_400;
/// As humantime counts years.
const TEN_YEARS: u64 = 10 * 31_557_600;
const STOP_DEADLINE: Bounds = bounds(1, 30 * DAY, "a stop needs at least a second to write down what it leaves behind");
/// The shortest `kill_grace` in which a program can ask another machine for anything.
const LEAST_CANCEL: Duration = Duration::from_secs(1);
const RUN: Bounds = bounds(1, TEN_YEARS, "a command needs at least a second to start and end");
const HEARTBEAT: Bounds =
    bounds(1, DAY, "a run is confirmed several times within it, and a lost worker is noticed only after it");
const KILL_GRACE: Bounds = bounds(0, DAY, "a slot stays taken until it has passed");
const RETRY: Bounds = bounds(0, TEN_YEARS, "the next attempt would never come");
const KEPT: Bounds = bounds(1, 10 * TEN_YEARS, "rows that go at once could not be looked at");
const WEBHOOK: Bounds = bounds(1, 300, "whoever takes longer should answer first and work afterwards");
const SILENCE: Bounds = bounds(1, TEN_YEARS, "a command needs at least a second to print something");

/// Validates everything, and complains about everything that is wrong.
pub(super) fn validate(written: Written, file: &Path, notes: Notes) -> Result<Validated, Notes> {
    let directory = file.parent().unwrap_or_else(|| Path::new("/"));
    let mut validator = Validator { directory, notes, places: Vec::new() };
    let validated = validator.all(written);
    if validator.notes.is_empty() {
        Ok(Validated { places: validator.places, ..validated })
    } else {
        Err(validator.notes)
    }
}

/// Every method complains where it can't take what is written, and then answers with the default, so that the walk
/// goes on to the next complaint.
struct Validator<'a> {
    directory: &'a Path,
    notes: Notes,
    places: Vec<(String, Range<usize>)>,
}

impl Validator<'_> {
    fn all(&mut self, written: Written) -> Validated {
        let Written { defaults, flows, .. } = written;
        let data_dir = self.data_dir(written.data_dir.as_ref());
        let database_url = self.database_url(written.database_url.as_ref());
        let worker_id = self.worker_id(written.worker_id.as_ref());
        let labels = self.labels("labels", written.labels.as_deref());
        let service = ServiceConfig {
            on_stop: self.on_stop(written.on_stop.as_ref()),
            stop_deadline: self
                .duration("stop_deadline", written.stop_deadline.as_ref(), &STOP_DEADLINE)
                .unwrap_or(ServiceConfig::default().stop_deadline),
        };
        let http = HttpConfig {
            listen: self.listen(written.listen.as_ref(), written.tokens.is_empty()),
            tokens: self.tokens(&written.tokens),
            tls: written.tls.as_ref().and_then(|tls| self.tls(tls)),
            peers: written.peers.as_ref().and_then(|peers| self.peers(peers)),
        };
        let adopted = written.jobs.as_ref().and_then(|jobs| {
            self.places.extend(adopted::places(jobs));
            adopted::adopted(jobs, &mut self.notes)
        });
        let retention = self.retention(&written.retention, adopted.is_some());
        let webhooks = self.webhooks(&written.webhooks);
        let otlp = written.otlp_endpoint.as_ref().and_then(|url| self.otlp_endpoint(url));
        let defaults = defaults.unwrap_or_default();
        if flows.is_empty() {
            // Nobody uses them, and they should be right all the same.
            self.flow_values(&defaults);
        }
        let flows = self.flows(flows, &defaults);
        let only = flows.keys().next().filter(|_| flows.len() == 1).map(ToString::to_string);
        let adopted = adopted.map(|table| AdoptedTable { only_type: only, ..table });
        Validated {
            data_dir,
            database_url,
            worker_id,
            labels,
            service,
            http,
            retention,
            webhooks,
            adopted,
            otlp,
            flows,
            places: Vec::new(),
        }
    }

    fn place(&mut self, key: impl Into<String>, span: Range<usize>) {
        self.places.push((key.into(), span));
    }

    /// The rows of a table that was there before Callsheet are not its to remove, unless somebody says so.
    fn retention(&mut self, written: &[(&'static str, Spanned<String>)], adopted: bool) -> RetentionConfig {
        let mut retention = RetentionConfig::default();
        if adopted {
            retention = RetentionConfig { completed: None, error: None, cancelled: None, ..retention };
        }
        for (key, value) in written {
            let kept = match value.get_ref().as_str() {
                "off" => None,
                _ => match self.duration(key, Some(value), &KEPT) {
                    Some(duration) => Some(duration),
                    None => continue,
                },
            };
            match *key {
                "completed" => retention.completed = kept,
                "error" => retention.error = kept,
                "cancelled" => retention.cancelled = kept,
                "audit" => retention.audit = kept,
                "deliveries" => retention.deliveries = kept,
                _ => retention.logs = kept,
            }
        }
        retention
    }

    fn webhooks(&mut self, written: &[Spanned<Webhook>]) -> Vec<WebhookConfig> {
        let mut webhooks: Vec<WebhookConfig> = Vec::new();
        for webhook in written {
            let Some(config) = self.webhook(webhook) else { continue };
            if webhooks.iter().any(|other| other.name == config.name) {
                let message = format!("two webhooks have the name {:?}", config.name);
                self.notes.add(webhook.span(), message).help("the database knows by it what has been sent");
            }
            webhooks.push(config);
        }
        webhooks
    }

    fn webhook(&mut self, webhook: &Spanned<Webhook>) -> Option<WebhookConfig> {
        let Webhook { name, url, secret_env, secret_file, types, statuses, timeout, certificate_authority } =
            webhook.get_ref();
        for (key, written) in [("name", name), ("url", url)] {
            if written.is_none() {
                self.notes.add(webhook.span(), format!("this webhook has no `{key}`")).missing();
            }
        }
        if let Some(name) = name.as_ref().filter(|name| {
            let name = name.get_ref();
            name.is_empty() || name.len() > LONGEST_TOKEN_NAME || name.contains(char::is_control)
        }) {
            let message =
                format!("a webhook's `name` has 1 to {LONGEST_TOKEN_NAME} bytes, none of a control character");
            self.notes.add(name.span(), message);
        }
        let address = url.as_ref().and_then(|url| {
            let parsed = url.get_ref().parse::<WebhookUrl>();
            if let Err(reason) = parsed {
                // Its path is often all that protects a receiver.
                let message = format!("`url` can't be used: {reason}");
                self.notes
                    .add(url.span(), message)
                    .help("for example \"https://example.org/hooks/callsheet\"")
                    .private();
            }
            parsed.ok()
        });
        let secret = match (secret_env, secret_file) {
            (Some(variable), None) => {
                if !variable.get_ref().starts_with("CALLSHEET_") || variable.get_ref().contains(['=', '\0']) {
                    self.notes
                        .add(variable.span(), "`secret_env` must be a name that starts with CALLSHEET_")
                        .help("all other variables of the service's environment reach its commands")
                        .private();
                }
                Some(WebhookSecret::Env(variable.get_ref().clone()))
            }
            (None, Some(file)) => {
                self.path("secret_file", file);
                Some(WebhookSecret::File(self.directory.join(file.get_ref())))
            }
            (Some(_), Some(second)) => {
                self.notes.add(second.span(), "a webhook has either `secret_env` or `secret_file`, not both").private();
                None
            }
            (None, None) => {
                self.notes
                    .add(webhook.span(), "this webhook has neither `secret_env` nor `secret_file`")
                    .help("requests are signed with it; it is whsec_ and the base64 of 24 to 64 random bytes")
                    .missing();
                None
            }
        };
        let types = types.iter().flatten().filter_map(|text| match text.get_ref().parse::<FlowType>() {
            Ok(flow) => Some(flow),
            Err(error) => {
                self.notes.add(text.span(), format!("{:?} is no job type", text.get_ref())).help(error.to_string());
                None
            }
        });
        let types = types.collect();
        let statuses = statuses.iter().flatten().filter_map(|text| match text.get_ref().parse::<JobStatus>() {
            Ok(status) => Some(status),
            Err(error) => {
                self.notes.add(text.span(), error.to_string());
                None
            }
        });
        let statuses = statuses.collect();
        let timeout = self.duration("timeout", timeout.as_ref(), &WEBHOOK).unwrap_or(Duration::from_secs(15));
        let certificate_authority = certificate_authority.as_ref().map(|file| {
            self.path("certificate_authority", file);
            self.directory.join(file.get_ref())
        });
        Some(WebhookConfig {
            name: name.as_ref()?.get_ref().clone(),
            url: address?,
            secret: secret?,
            types,
            statuses,
            timeout,
            certificate_authority,
        })
    }

    fn data_dir(&mut self, written: Option<&Spanned<String>>) -> PathBuf {
        if let Some(path) = written {
            self.place("data_dir", path.span());
            self.path("data_dir", path);
        }
        self.directory.join(written.map_or(DATA_DIR, |path| path.get_ref().as_str()))
    }

    fn otlp_endpoint(&mut self, url: &Spanned<String>) -> Option<OtlpEndpoint> {
        let parsed = OtlpEndpoint::parse(url.get_ref());
        if let Err(reason) = &parsed {
            let message = format!("`otlp_endpoint` can't be used: {reason}");
            // Whoever writes a password there anyway need not see it in a log.
            self.notes.add(url.span(), message).help("for example \"http://localhost:4318\"").private();
        }
        parsed.ok()
    }

    fn path(&mut self, key: &str, path: &Spanned<String>) {
        let text = path.get_ref();
        if text.is_empty() {
            self.notes.add(path.span(), format!("`{key}` is empty"));
        } else if text.contains('\0') {
            self.notes.add(path.span(), format!("`{key}` holds a zero byte, which no path can hold"));
        } else if text == "~" || text.starts_with("~/") {
            self.notes
                .add(path.span(), format!("`{key}` starts with ~, which only a shell expands"))
                .help("write the whole path");
        }
    }

    fn database_url(&mut self, written: Option<&Spanned<String>>) -> Option<DatabaseUrl> {
        let written = written?;
        self.place("database_url", written.span());
        match written.get_ref().parse::<DatabaseUrl>() {
            Ok(url) => Some(url.resolved(self.directory)),
            Err(error) => {
                self.notes.add(written.span(), format!("`database_url` can't be used: {error}")).private();
                None
            }
        }
    }

    fn worker_id(&mut self, written: Option<&Spanned<String>>) -> Option<WorkerId> {
        let written = written?;
        self.place("worker_id", written.span());
        match written.get_ref().parse() {
            Ok(id) => Some(id),
            Err(error) => {
                self.notes
                    .add(written.span(), format!("{:?} is no worker id", written.get_ref()))
                    .help(format!("{error}"));
                None
            }
        }
    }

    fn labels(&mut self, key: &str, written: Option<&[Spanned<String>]>) -> Labels {
        let mut labels = Labels::default();
        for word in written.unwrap_or_default() {
            match word.get_ref().parse::<Label>() {
                Ok(label) => {
                    if !labels.insert(label) {
                        let message = format!("{:?} stands in `{key}` twice", word.get_ref());
                        self.notes.add(word.span(), message);
                    }
                }
                Err(error) => {
                    let message = format!("{:?} in `{key}` is no label", word.get_ref());
                    self.notes.add(word.span(), message).help(error.to_string());
                }
            }
        }
        labels
    }

    fn slots(&mut self, written: &SlotsTable, env: &[(Spanned<String>, Spanned<String>)]) -> Option<Slots> {
        let SlotsTable { span, name, values } = written;
        for (key, is_missing) in [("name", name.is_none()), ("values", values.is_none())] {
            if is_missing {
                let note = self.notes.add(span.clone(), format!("`slots` has no `{key}`"));
                note.help("write slots = { name = \"CUDA_VISIBLE_DEVICES\", values = [\"0\", \"1\"] }").missing();
            }
        }
        let (name, values) = (name.as_ref()?, values.as_ref()?);
        self.variable_name(name, true);
        if let Some((variable, _)) = env.iter().find(|(variable, _)| variable.get_ref() == name.get_ref()) {
            let message = format!("`env` sets {}, which is what `slots` sets for each run", variable.get_ref());
            self.notes.add(variable.span(), message).help("take it out of one of them").private();
        }
        let texts: Vec<&str> = values.iter().map(|value| value.get_ref().as_str()).collect();
        match Slots::new(name.get_ref(), &texts) {
            Ok(slots) => Some(slots),
            Err(error) => {
                let place = match &error {
                    InvalidSlots::Name(_) => name.span(),
                    InvalidSlots::Empty => span.clone(),
                    InvalidSlots::Value(place, _) | InvalidSlots::Twice(place, _) => {
                        values.get(*place).map_or(span.clone(), Spanned::span)
                    }
                };
                self.notes.add(place, format!("`slots`: {error}"));
                None
            }
        }
    }

    fn on_stop(&mut self, written: Option<&Spanned<String>>) -> OnStop {
        match written.map(|word| word.get_ref().as_str()) {
            None | Some("leave") => OnStop::Leave,
            Some("wait") => OnStop::Wait,
            Some("cancel") => OnStop::Cancel,
            Some(other) => {
                let span = written.map_or(0..0, Spanned::span);
                self.notes
                    .add(span, format!("`on_stop` can't be {other:?}"))
                    .help("\"leave\" leaves runs to their shims, \"wait\" waits for them, \"cancel\" cancels them");
                OnStop::Leave
            }
        }
    }

    fn listen(&mut self, written: Option<&Spanned<String>>, no_tokens: bool) -> Option<SocketAddr> {
        let Some(written) = written else { return HttpConfig::default().listen };
        self.place("http.listen", written.span());
        let text = written.get_ref();
        if text == "off" {
            return None;
        }
        match text.parse::<SocketAddr>() {
            Ok(address) => {
                let reachable_by_others = match address.ip() {
                    IpAddr::V4(ip) => !ip.is_loopback(),
                    IpAddr::V6(ip) => !ip.is_loopback(),
                };
                if reachable_by_others && no_tokens {
                    self.notes
                        .add(
                            written.span(),
                            format!("`listen` = {text:?} can be reached by other machines, and there are no tokens"),
                        )
                        .help(
                            "without [[http.tokens]] only a loopback address is accepted, such as \"127.0.0.1:8440\"",
                        );
                }
                Some(address)
            }
            Err(_) => {
                let help =
                    "write an IP address and a port, such as \"127.0.0.1:8440\" or \"[::1]:8440\", or \"off\" for none";
                self.notes.add(written.span(), format!("`listen` can't be {text:?}")).help(help);
                None
            }
        }
    }

    fn tls(&mut self, written: &Tls) -> Option<TlsConfig> {
        let mut file = |key: &str, file: Option<&Spanned<String>>| match file {
            Some(file) => {
                self.place(format!("http.tls.{key}"), file.span());
                self.path(key, file);
                Some(self.directory.join(file.get_ref()))
            }
            None => {
                self.notes.add(written.span.clone(), format!("`http.tls` has no `{key}`")).missing();
                None
            }
        };
        let (certificate, key) = (file("certificate", written.certificate.as_ref()), file("key", written.key.as_ref()));
        Some(TlsConfig { certificate: certificate?, key: key? })
    }

    fn peers(&mut self, written: &Peers) -> Option<PeersConfig> {
        let Peers { span, secret_env, secret_file, advertise, certificate_authority } = written;
        let secret = match (secret_env, secret_file) {
            (Some(variable), None) => {
                if !variable.get_ref().starts_with("CALLSHEET_") || variable.get_ref().contains(['=', '\0']) {
                    self.notes
                        .add(variable.span(), "`secret_env` must be a name that starts with CALLSHEET_")
                        .help("all other variables of the service's environment reach its commands")
                        .private();
                }
                Some(PeerSecret::Env(variable.get_ref().clone()))
            }
            (None, Some(file)) => {
                self.path("secret_file", file);
                Some(PeerSecret::File(self.directory.join(file.get_ref())))
            }
            (Some(_), Some(second)) => {
                let message = "the workers have either `secret_env` or `secret_file`, not both";
                self.notes.add(second.span(), message).private();
                None
            }
            (None, None) => {
                self.notes
                    .add(span.clone(), "`http.peers` has neither `secret_env` nor `secret_file`")
                    .help("the workers know each other by it; at least 32 characters, the same for all of them")
                    .missing();
                None
            }
        };
        let advertise = match advertise {
            None => None,
            Some(url) => match url.get_ref().parse::<WebhookUrl>() {
                Ok(address) if address.path == "/" => Some(address),
                Ok(_) | Err(_) => {
                    let message = format!("`advertise` can't be {:?}", url.get_ref());
                    self.notes
                        .add(url.span(), message)
                        .help("write \"http://10.0.0.5:8440\", or https, without a path");
                    None
                }
            },
        };
        let certificate_authority = certificate_authority.as_ref().map(|file| {
            self.path("certificate_authority", file);
            self.directory.join(file.get_ref())
        });
        Some(PeersConfig { secret: secret?, advertise, certificate_authority })
    }

    fn tokens(&mut self, written: &[Spanned<Token>]) -> Vec<TokenConfig> {
        let mut tokens: Vec<TokenConfig> = Vec::new();
        for token in written {
            let Some(config) = self.token(token) else { continue };
            if tokens.iter().any(|other| other.name == config.name) {
                // The audit trail names people by it.
                let message = format!("two tokens have the name {:?}", config.name);
                self.notes.add(token.span(), message).help("give each its own, so that one can tell who did what");
            }
            tokens.push(config);
        }
        tokens
    }

    fn token(&mut self, token: &Spanned<Token>) -> Option<TokenConfig> {
        const ROLES: &str = "\"viewer\" reads, \"operator\" also writes";
        let Token { name, role, token_sha256, token_env } = token.get_ref();
        let name = name.as_ref().filter(|name| !name.get_ref().is_empty());
        match name {
            None => {
                self.notes.add(token.span(), "this token has no `name`").missing();
            }
            Some(name) if name.get_ref().len() > LONGEST_TOKEN_NAME || name.get_ref().contains(char::is_control) => {
                let message =
                    format!("a token's `name` has at most {LONGEST_TOKEN_NAME} bytes, none of a control character");
                self.notes.add(name.span(), message);
            }
            Some(_) => {}
        }
        let role = match role {
            None => {
                self.notes.add(token.span(), "this token has no `role`").help(ROLES).missing();
                None
            }
            Some(written) => {
                let role = AccessRole::ALL.into_iter().find(|role| role.as_str() == written.get_ref());
                if role.is_none() {
                    self.notes.add(written.span(), format!("`role` can't be {:?}", written.get_ref())).help(ROLES);
                }
                role
            }
        };
        let secret = match (token_sha256, token_env) {
            (Some(hash), None) => {
                let parsed = parse_sha256(hash.get_ref());
                match parsed {
                    None => {
                        let message = "`token_sha256` is a SHA-256 hash of 64 hexadecimal digits";
                        self.notes.add(hash.span(), message).private();
                    }
                    Some(hashed) if is_of_nothing(&hashed) => {
                        let message = "`token_sha256` is the hash of an empty text, which is no token";
                        self.notes.add(hash.span(), message).help("was $TOKEN set when it was hashed?");
                    }
                    Some(_) => {}
                }
                parsed.map(TokenSecret::Sha256)
            }
            (None, Some(variable)) => {
                self.variable_name(variable, false);
                Some(TokenSecret::Env(variable.get_ref().clone()))
            }
            (Some(_), Some(second)) => {
                self.notes.add(second.span(), "a token has either `token_sha256` or `token_env`, not both").private();
                None
            }
            (None, None) => {
                self.notes.add(token.span(), "this token has neither `token_sha256` nor `token_env`").missing();
                None
            }
        };
        Some(TokenConfig { name: name?.get_ref().clone(), role: role?, secret: secret? })
    }

    fn flows(&mut self, written: Vec<(Spanned<String>, Flow)>, defaults: &Flow) -> BTreeMap<FlowType, Arc<FlowConfig>> {
        // What names the actors of a flow, and which flow took the name first.
        let mut taken: BTreeMap<String, FlowType> = BTreeMap::new();
        let mut flows = BTreeMap::new();
        for (name, flow) in written {
            let merged = flow.or(defaults);
            let values = self.flow_values(&merged);
            let flow: FlowType = match name.get_ref().parse() {
                Ok(flow) => flow,
                Err(error) => {
                    self.notes
                        .add(name.span(), format!("{:?} is no job type", name.get_ref()))
                        .help(format!("{error}"));
                    continue;
                }
            };
            let queues = [flow.task_queue(), flow.master_task_queue()];
            if let Some((queue, first)) = queues.iter().find_map(|queue| Some((queue, taken.get(queue)?))) {
                let message = format!("the job types {first} and {flow} would both use the task queue name {queue:?}");
                self.notes
                    .add(name.span(), message)
                    .help("upper and lower case make no difference in it, and a scheduler's starts with master_");
            }
            taken.extend(queues.map(|queue| (queue, flow.clone())));
            let Some(command) = &merged.command else {
                if !merged.command_refused {
                    self.notes
                        .add(name.span(), format!("the flow {flow} has no `command`"))
                        .help("write command = [\"program\", \"--id\", \"{identifier}\"]")
                        .missing();
                }
                continue;
            };
            self.place(
                format!("flows.{flow}.command"),
                command.get_ref().first().map_or(command.span(), Spanned::span),
            );
            let limits = [
                &merged.memory.as_ref().map(Spanned::span),
                &merged.cpus.as_ref().map(Spanned::span),
                &merged.pids.as_ref().map(Spanned::span),
            ];
            if let Some(first) = limits.into_iter().flatten().min_by_key(|span| span.start) {
                self.place(format!("flows.{flow}.limits"), first.clone());
            }
            if let Some(first) = merged.requires.as_ref().and_then(|labels| labels.first()) {
                self.place(format!("flows.{flow}.requires"), first.span());
            }
            if let Some(working_dir) = &merged.working_dir {
                self.place(format!("flows.{flow}.working_dir"), working_dir.span());
            }
            if let Some(values) = values {
                flows.insert(flow.clone(), Arc::new(FlowConfig { flow, ..values }));
            }
        }
        flows
    }

    /// The values of a flow whose name is still to be filled in; `None` where there is something to complain about.
    fn flow_values(&mut self, written: &Flow) -> Option<FlowConfig> {
        let command = written.command.as_ref().and_then(|command| self.command("command", command, Template::parse));
        let cancel_command = written.cancel_command.as_ref().map(|written| {
            let parsed = self.command("cancel_command", written, Template::parse_of_cancel);
            (written.span(), parsed)
        });
        let working_dir = self.working_dir(written.working_dir.as_ref());
        let env = self.env(&written.env);
        let schedule = self.schedule(written.schedule.as_ref(), written.timezone.as_ref());
        let concurrency = self.count("concurrency", written.concurrency.as_ref()).unwrap_or(NonZeroU32::MIN);
        let worker_concurrency =
            self.count("worker_concurrency", written.worker_concurrency.as_ref()).unwrap_or(concurrency);
        if let (true, Some(place)) = (worker_concurrency > concurrency, &written.worker_concurrency) {
            let message =
                format!("`worker_concurrency` is {worker_concurrency}, more than the {concurrency} of `concurrency`");
            self.notes.add(place.span(), message).help("`concurrency` counts the runs of all workers together");
        }
        let requires = self.labels("requires", written.requires.as_deref());
        let slots = written.slots.as_ref().and_then(|slots| self.slots(slots, &written.env));
        let (start_to_close_timeout, schedule_to_close_timeout) = self.timeouts(written);
        let heartbeat_timeout = self.duration("heartbeat_timeout", written.heartbeat_timeout.as_ref(), &HEARTBEAT);
        let kill_grace = self.duration("kill_grace", written.kill_grace.as_ref(), &KILL_GRACE);
        let kill_grace = kill_grace.unwrap_or(Duration::from_secs(10));
        if let Some((span, _)) = cancel_command.as_ref().filter(|_| kill_grace < LEAST_CANCEL) {
            let message = "`cancel_command` needs a `kill_grace` of at least 1s";
            self.notes.add(span.clone(), message).help("that is how long it has until SIGKILL follows");
        }
        let identifier_pattern = self.identifier_pattern(written.identifier_pattern.as_ref());
        let recurring = self.recurring(written, identifier_pattern.as_ref());
        let retry = self.retry(written);
        let output_limit = self.output_limit(written);
        let limits = self.limits(written);
        let heartbeat_timeout = heartbeat_timeout.unwrap_or(Duration::from_secs(20));
        let watchdog = self.watchdog(written, heartbeat_timeout, start_to_close_timeout);
        let silence_timeout = self.silence_timeout(written, start_to_close_timeout);
        Some(FlowConfig {
            // Filled in by the caller, who knows it; a type can't be empty, so there is no neutral one.
            flow: "UNNAMED".parse().ok()?,
            command: command?,
            cancel_command: cancel_command.and_then(|(_, parsed)| parsed),
            working_dir,
            env,
            schedule: schedule?,
            concurrency,
            worker_concurrency,
            requires,
            slots,
            start_to_close_timeout,
            schedule_to_close_timeout,
            heartbeat_timeout,
            watchdog,
            silence_timeout,
            kill_grace,
            identifier_pattern: identifier_pattern?,
            retry: retry?,
            output_limit,
            limits,
            recurring,
        })
    }

    fn recurring(&mut self, written: &Flow, pattern: Option<&IdentifierPattern>) -> Vec<RecurringConfig> {
        let mut entries: Vec<RecurringConfig> = Vec::new();
        for entry in &written.recurring {
            let Some(config) = self.recurring_entry(entry, written.timezone.as_ref(), pattern) else { continue };
            if entries.iter().any(|other| other.name == config.name) {
                let place = entry.get_ref().name.as_ref().map_or(entry.span(), Spanned::span);
                self.notes
                    .add(place, format!("two recurring entries of this flow have the name {:?}", config.name))
                    .help("the database knows an entry's last fire by its name, which is its identifier where none is given");
            }
            entries.push(config);
        }
        entries
    }

    fn recurring_entry(
        &mut self,
        entry: &Spanned<Recurring>,
        timezone: Option<&Spanned<String>>,
        pattern: Option<&IdentifierPattern>,
    ) -> Option<RecurringConfig> {
        let Recurring { name, schedule, timezone: own_zone, identifier, payload, priority, catch_up, overlap } =
            entry.get_ref();
        for (key, written) in [("schedule", schedule), ("identifier", identifier)] {
            if written.is_none() {
                self.notes.add(entry.span(), format!("this recurring entry has no `{key}`")).missing();
            }
        }
        if let (Some(identifier), Some(pattern)) = (identifier, pattern)
            && let Err(refusal) = pattern.check(identifier.get_ref())
        {
            self.notes.add(identifier.span(), format!("`identifier` can't be used: {refusal}"));
        }
        let name = name.as_ref().or(identifier.as_ref());
        if let Some(name) = name.filter(|name| {
            name.get_ref().is_empty()
                || name.get_ref().len() > LONGEST_ENTRY_NAME
                || name.get_ref().contains(char::is_control)
        }) {
            let message =
                format!("a recurring entry's `name` has 1 to {LONGEST_ENTRY_NAME} bytes, none of a control character");
            self.notes.add(name.span(), message).help("without `name` it is the identifier");
        }
        if let Some(payload) = payload
            && let Err(refusal) = crate::domain::payload::check(payload.get_ref())
        {
            self.notes.add(payload.span(), format!("`payload` {refusal}"));
        }
        let priority = priority.as_ref().and_then(|priority| {
            let number = i32::try_from(*priority.get_ref()).ok();
            if number.is_none() {
                let message = format!("`priority` must be {} to {}, not {}", i32::MIN, i32::MAX, priority.get_ref());
                self.notes.add(priority.span(), message);
            }
            number
        });
        const CATCH_UP: &str = "of the fires that no service was there for, \"skip\" leaves all out, \"one\" makes up for the \
            last, \"all\" for each";
        const OVERLAP: &str =
            "\"allow\" enqueues another job while an earlier one has not ended, \"skip\" leaves that fire out";
        let catch_up =
            self.word("catch_up", catch_up.as_ref(), &CatchUp::ALL.map(|policy| (policy.as_str(), policy)), CATCH_UP);
        let overlap =
            self.word("overlap", overlap.as_ref(), &Overlap::ALL.map(|policy| (policy.as_str(), policy)), OVERLAP);
        let schedule = schedule.as_ref().and_then(|line| self.schedule(Some(line), own_zone.as_ref().or(timezone)));
        Some(RecurringConfig {
            name: name?.get_ref().clone(),
            schedule: schedule?,
            identifier: identifier.as_ref()?.get_ref().clone(),
            payload: payload.as_ref().map(|payload| payload.get_ref().clone()),
            priority: priority.unwrap_or(0),
            catch_up: catch_up.unwrap_or(CatchUp::One),
            overlap: overlap.unwrap_or(Overlap::Allow),
        })
    }

    /// What one of some words means; `None` where there is none, or another one.
    fn word<T: Copy>(
        &mut self,
        key: &str,
        written: Option<&Spanned<String>>,
        words: &[(&str, T)],
        help: &str,
    ) -> Option<T> {
        let written = written?;
        let found = words.iter().find(|(word, _)| word == written.get_ref()).map(|(_, meaning)| *meaning);
        if found.is_none() {
            self.notes.add(written.span(), format!("`{key}` can't be {:?}", written.get_ref())).help(help);
        }
        found
    }

    fn command(
        &mut self,
        key: &str,
        written: &Spanned<Vec<Spanned<String>>>,
        parse: fn(&str) -> Result<Template, InvalidTemplate>,
    ) -> Option<Vec<Template>> {
        match written.get_ref().first() {
            None => {
                self.notes
                    .add(written.span(), format!("`{key}` is empty"))
                    .help("write the program and its arguments: [\"program\", \"--id\", \"{identifier}\"]");
            }
            Some(program) if program.get_ref().trim().is_empty() => {
                self.notes.add(program.span(), format!("the program, the first text of `{key}`, is empty"));
            }
            Some(program) if written.get_ref().len() == 1 && program.get_ref().contains(char::is_whitespace) => {
                self.notes
                    .add(program.span(), format!("`{key}` is one text with spaces in it; no shell takes it apart"))
                    .help("write the program and each argument as a text of its own: [\"program\", \"--id\", \"{identifier}\"]");
            }
            Some(_) => {}
        }
        let words = written.get_ref().iter().map(|word| self.template_by(word, parse)).collect::<Vec<_>>();
        words.into_iter().collect()
    }

    fn template(&mut self, written: &Spanned<String>) -> Option<Template> {
        self.template_by(written, Template::parse)
    }

    fn template_by(
        &mut self,
        written: &Spanned<String>,
        parse: fn(&str) -> Result<Template, InvalidTemplate>,
    ) -> Option<Template> {
        match parse(written.get_ref()) {
            Ok(template) => Some(template),
            Err(error) => {
                let mut span = written.span();
                if let InvalidTemplate::Unknown(name) | InvalidTemplate::UnknownOfCancel(name) = &error {
                    // Right at the placeholder, where the text is written as it reads (no escapes before it).
                    if let Some(at) = written.get_ref().find(&format!("{{{name}}}")) {
                        let quote = (span.len().saturating_sub(written.get_ref().len())) / 2;
                        if span.len() == written.get_ref().len() + 2 * quote {
                            span = span.start + quote + at..span.start + quote + at + name.len() + 2;
                        }
                    }
                }
                self.notes.add(span, format!("{error}"));
                None
            }
        }
    }

    fn working_dir(&mut self, written: Option<&Spanned<String>>) -> Option<Template> {
        let plain_directory = self.directory.to_string_lossy().replace('{', "{{").replace('}', "}}");
        let Some(written) = written else { return Template::parse(&plain_directory).ok() };
        self.path("working_dir", written);
        let template = self.template(written)?;
        if written.get_ref().starts_with('/') || written.get_ref().starts_with("{run_dir}") {
            return Some(template);
        }
        Template::parse(&format!("{}/{}", plain_directory.trim_end_matches('/'), written.get_ref())).ok()
    }

    fn env(&mut self, written: &[(Spanned<String>, Spanned<String>)]) -> Vec<(String, Template)> {
        let mut env = Vec::new();
        for (name, value) in written {
            self.variable_name(name, true);
            match Template::parse(value.get_ref()) {
                Ok(template) => env.push((name.get_ref().clone(), template)),
                Err(error) => {
                    self.notes.add(value.span(), format!("the value of {:?}: {error}", name.get_ref())).private();
                }
            }
        }
        env
    }

    fn variable_name(&mut self, name: &Spanned<String>, is_set: bool) {
        let text = name.get_ref();
        if text.is_empty() || text.contains(['=', '\0']) {
            self.notes
                .add(name.span(), format!("{text:?} can't be the name of an environment variable"))
                .help("a name is not empty and holds neither = nor a zero byte")
                .private();
        } else if is_set
            && (text.starts_with("CALLSHEET_")
                || ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"].contains(&text.as_str()))
        {
            self.notes
                .add(name.span(), format!("{text} is set by Callsheet itself and can't be given another value"))
                .private();
        }
    }

    fn schedule(&mut self, line: Option<&Spanned<String>>, timezone: Option<&Spanned<String>>) -> Option<Schedule> {
        let text = line.map_or("*/1 * * * *", |line| line.get_ref());
        let zone = timezone.map_or("UTC", |zone| zone.get_ref());
        match Schedule::new(text, zone) {
            Ok(schedule) => Some(schedule),
            Err(error) => {
                let (zone_is_wrong, span) = match error {
                    InvalidSchedule::UnknownTimezone(_) => (true, timezone),
                    InvalidSchedule::Syntax { .. } | InvalidSchedule::NeverDue(_) => (false, line),
                };
                self.notes.add(span.map_or(0..0, Spanned::span), format!("{error}"));
                // The zone is read first, and a wrong one must not hide a wrong line.
                if zone_is_wrong { self.schedule(line, None) } else { None }
            }
        }
    }

    fn count(&mut self, key: &str, written: Option<&Spanned<i64>>) -> Option<NonZeroU32> {
        let written = written?;
        let count = *written.get_ref();
        if (1..=MAXIMUM_CONCURRENCY).contains(&count) {
            return u32::try_from(count).ok().and_then(NonZeroU32::new);
        }
        self.notes.add(written.span(), format!("`{key}` must be 1 to {MAXIMUM_CONCURRENCY}, not {count}"));
        None
    }

    fn timeouts(&mut self, written: &Flow) -> (Duration, Duration) {
        const TWO_DAYS: Duration = Duration::from_secs(2 * DAY);
        let run = self.duration("start_to_close_timeout", written.start_to_close_timeout.as_ref(), &RUN);
        let whole = self.duration("schedule_to_close_timeout", written.schedule_to_close_timeout.as_ref(), &RUN);
        let run = run.unwrap_or_else(|| whole.map_or(TWO_DAYS, |whole| whole.min(TWO_DAYS)));
        // Where only the longer time for one run is written, the whole must not cut it short unasked.
        (run, whole.unwrap_or(run.max(TWO_DAYS)))
    }

    fn identifier_pattern(&mut self, written: Option<&Spanned<String>>) -> Option<IdentifierPattern> {
        match IdentifierPattern::new(written.map_or(IdentifierPattern::DEFAULT, |pattern| pattern.get_ref())) {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                // The parser's own excerpt is of many lines; its last one says what is wrong.
                let reason =
                    error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                self.notes
                    .add(
                        written.map_or(0..0, Spanned::span),
                        format!("`identifier_pattern` is no regular expression: {reason}"),
                    )
                    .help("the syntax is that of the Rust crate regex: https://docs.rs/regex/latest/regex/#syntax");
                None
            }
        }
    }

    fn retry(&mut self, written: &Flow) -> Option<RetryPolicy> {
        let attempts = match &written.maximum_attempts {
            None => 1,
            Some(attempts) => match attempts_in_range(*attempts.get_ref()) {
                Some(count) => count,
                None => {
                    self.notes
                        .add(
                            attempts.span(),
                            format!("`maximum_attempts` must be 1 to {MOST_ATTEMPTS}, not {}", attempts.get_ref()),
                        )
                        .help("1 means that a failed job is not tried again");
                    1
                }
            },
        };
        let initial = self.duration("initial_interval", written.initial_interval.as_ref(), &RETRY);
        let initial = initial.unwrap_or(Duration::from_secs(1));
        let maximum = self.duration("maximum_interval", written.maximum_interval.as_ref(), &RETRY);
        // Temporal's own default, which is CONTRACT §2's 100s for its one second.
        let maximum = maximum.unwrap_or_else(|| initial.saturating_mul(100));
        let coefficient = written.backoff_coefficient.as_ref().map_or(2.0, |coefficient| *coefficient.get_ref());
        let codes = written.non_retryable_exit_codes.as_deref().unwrap_or_default();
        let mut exit_codes = Vec::new();
        for code in codes {
            match i32::try_from(*code.get_ref()) {
                Ok(number) if (1..=255).contains(&number) => exit_codes.push(number),
                _ => {
                    let message = format!("{}: {}", code.get_ref(), InvalidRetryPolicy::ImpossibleExitCode);
                    self.notes.add(code.span(), message);
                }
            }
        }
        match RetryPolicy::new(attempts, initial, coefficient, maximum, exit_codes) {
            Ok(policy) => Some(policy),
            Err(error) => {
                let span = match error {
                    InvalidRetryPolicy::AttemptsOutOfRange => written.maximum_attempts.as_ref().map(Spanned::span),
                    InvalidRetryPolicy::ShrinkingBackoff => written.backoff_coefficient.as_ref().map(Spanned::span),
                    InvalidRetryPolicy::InitialOverMaximum => {
                        let initial = written.initial_interval.as_ref().map(Spanned::span);
                        initial.or_else(|| written.maximum_interval.as_ref().map(Spanned::span))
                    }
                    InvalidRetryPolicy::ImpossibleExitCode => None,
                    InvalidRetryPolicy::TemporaryFailure => {
                        codes.iter().find(|code| *code.get_ref() == i64::from(TEMPORARY_FAILURE)).map(Spanned::span)
                    }
                };
                let (initial, maximum) = (humantime::format_duration(initial), humantime::format_duration(maximum));
                let note = self.notes.add(span.unwrap_or(0..0), format!("{error}"));
                if error == InvalidRetryPolicy::InitialOverMaximum {
                    note.help(format!("initial_interval is {initial}, maximum_interval is {maximum}"));
                }
                None
            }
        }
    }

    fn output_limit(&mut self, written: &Flow) -> u64 {
        let output = written.output.as_ref();
        output.and_then(|output| self.size("limits.output", output, 1024..=1 << 40)).unwrap_or(64 * MIB)
    }

    /// Whether this machine can hold a run to them is not a matter of the file.
    fn limits(&mut self, written: &Flow) -> Limits {
        let memory = written.memory.as_ref();
        let memory = memory.and_then(|memory| self.size("limits.memory", memory, MIB..=1 << 50));
        let cpu_millis = written.cpus.as_ref().and_then(|cpus| {
            if (LEAST_CPUS..=MOST_CPUS).contains(cpus.get_ref()) {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is in bounds")]
                return Some((cpus.get_ref() * 1000.0).round() as u32);
            }
            let message = format!("`limits.cpus` must be {LEAST_CPUS} to {MOST_CPUS}, not {}", cpus.get_ref());
            self.notes.add(cpus.span(), message).help("2 means the time of two CPUs, 0.5 half of the time of one");
            None
        });
        let pids = written.pids.as_ref().and_then(|pids| {
            let count = u32::try_from(*pids.get_ref()).ok().filter(|count| (1..=MOST_PIDS).contains(count));
            if count.is_none() {
                let message = format!("`limits.pids` must be 1 to {MOST_PIDS}, not {}", pids.get_ref());
                self.notes.add(pids.span(), message).help("it counts threads, too");
            }
            count
        });
        Limits { memory, cpu_millis, pids }
    }

    fn watchdog(&mut self, written: &Flow, heartbeat_timeout: Duration, start_to_close_timeout: Duration) -> bool {
        let Some(watchdog) = written.watchdog.as_ref().filter(|watchdog| *watchdog.get_ref()) else { return false };
        let shown = humantime::format_duration;
        if heartbeat_timeout < LEAST_WATCHDOG {
            let place = written.heartbeat_timeout.as_ref().map_or(watchdog.span(), Spanned::span);
            let message = format!(
                "with `watchdog = true`, `heartbeat_timeout` must be at least {}, not {}",
                shown(LEAST_WATCHDOG),
                shown(heartbeat_timeout)
            );
            self.notes
                .add(place, message)
                .help("a command says that it is alive twice within it, and a busy machine may keep it waiting");
        } else if heartbeat_timeout >= start_to_close_timeout {
            let message = format!(
                "`watchdog = true` would never end a run: its `heartbeat_timeout` is {}, and `start_to_close_timeout` is {}",
                shown(heartbeat_timeout),
                shown(start_to_close_timeout)
            );
            self.notes.add(watchdog.span(), message).help("make heartbeat_timeout shorter, or remove watchdog");
        }
        true
    }

    fn silence_timeout(&mut self, written: &Flow, start_to_close_timeout: Duration) -> Option<Duration> {
        let silence = written.silence_timeout.as_ref().filter(|silence| silence.get_ref() != "off")?;
        let timeout = self.duration("silence_timeout", Some(silence), &SILENCE)?;
        if timeout >= start_to_close_timeout {
            let message = format!(
                "`silence_timeout` = {:?} would never end a run: `start_to_close_timeout` is {}",
                silence.get_ref(),
                humantime::format_duration(start_to_close_timeout)
            );
            self.notes.add(silence.span(), message).help("make it shorter, or write \"off\"");
        }
        Some(timeout)
    }

    fn size(&mut self, key: &str, written: &Spanned<Size>, allowed: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let bytes = match written.get_ref() {
            Size::Bytes(bytes) => u64::try_from(*bytes).ok(),
            Size::Text(text) => parse_size(text),
        };
        let Some(bytes) = bytes else {
            let shown = match written.get_ref() {
                Size::Bytes(bytes) => bytes.to_string(),
                Size::Text(text) => format!("{text:?}"),
            };
            self.notes
                .add(written.span(), format!("`{key}` can't be {shown}"))
                .help("write a number of bytes with or without a unit (kB, MB, GB, TB, KiB, MiB, GiB, TiB), such as \"64MiB\"");
            return None;
        };
        if allowed.contains(&bytes) {
            return Some(bytes);
        }
        let bound = if bytes < *allowed.start() {
            format!("at least {}", shown_size(*allowed.start()))
        } else {
            format!("at most {}", shown_size(*allowed.end()))
        };
        self.notes.add(written.span(), format!("`{key}` must be {bound}"));
        None
    }

    fn duration(&mut self, key: &str, written: Option<&Spanned<String>>, bounds: &Bounds) -> Option<Duration> {
        let written = written?;
        let text = written.get_ref();
        let duration = match humantime::parse_duration(text) {
            Ok(duration) => duration,
            Err(error) => {
                self.notes
                    .add(written.span(), format!("`{key}` = {text:?} is no duration: {error}"))
                    .help("write a number with a unit, such as \"30s\", \"10min\", \"12h\" or \"2d\"");
                return None;
            }
        };
        let bound = if duration < bounds.least {
            format!("at least {}", humantime::format_duration(bounds.least))
        } else if duration > bounds.most {
            format!("at most {}", humantime::format_duration(bounds.most))
        } else {
            return Some(duration);
        };
        self.notes.add(written.span(), format!("`{key}` must be {bound}")).help(bounds.why);
        None
    }
}

impl Flow {
    /// This flow, with what it does not say taken from `defaults`; variables of the environment one by one.
    fn or(self, defaults: &Self) -> Self {
        fn either<T: Clone>(own: Option<T>, default: &Option<T>) -> Option<T> {
            own.or_else(|| default.clone())
        }
        let mut env = self.env;
        let inherited =
            defaults.env.iter().filter(|(name, _)| !env.iter().any(|(own, _)| own.get_ref() == name.get_ref()));
        let inherited = inherited.cloned().collect::<Vec<_>>();
        env.extend(inherited);
        Self {
            command_refused: self.command_refused || defaults.command_refused,
            command: either(self.command, &defaults.command),
            cancel_command: either(self.cancel_command, &defaults.cancel_command),
            working_dir: either(self.working_dir, &defaults.working_dir),
            env,
            schedule: either(self.schedule, &defaults.schedule),
            timezone: either(self.timezone, &defaults.timezone),
            concurrency: either(self.concurrency, &defaults.concurrency),
            worker_concurrency: either(self.worker_concurrency, &defaults.worker_concurrency),
            requires: self.requires.or_else(|| defaults.requires.clone()),
            slots: self.slots.or_else(|| defaults.slots.clone()),
            start_to_close_timeout: either(self.start_to_close_timeout, &defaults.start_to_close_timeout),
            schedule_to_close_timeout: either(self.schedule_to_close_timeout, &defaults.schedule_to_close_timeout),
            heartbeat_timeout: either(self.heartbeat_timeout, &defaults.heartbeat_timeout),
            watchdog: either(self.watchdog, &defaults.watchdog),
            silence_timeout: either(self.silence_timeout, &defaults.silence_timeout),
            kill_grace: either(self.kill_grace, &defaults.kill_grace),
            identifier_pattern: either(self.identifier_pattern, &defaults.identifier_pattern),
            maximum_attempts: either(self.maximum_attempts, &defaults.maximum_attempts),
            initial_interval: either(self.initial_interval, &defaults.initial_interval),
            backoff_coefficient: either(self.backoff_coefficient, &defaults.backoff_coefficient),
            maximum_interval: either(self.maximum_interval, &defaults.maximum_interval),
            non_retryable_exit_codes: either(self.non_retryable_exit_codes, &defaults.non_retryable_exit_codes),
            memory: either(self.memory, &defaults.memory),
            cpus: either(self.cpus, &defaults.cpus),
            pids: either(self.pids, &defaults.pids),
            output: either(self.output, &defaults.output),
            recurring: self.recurring,
        }
    }
}

const UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A number of bytes with a unit of IEC 80000-13, or without one.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, factor) =
        UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor))).unwrap_or((text, 1));
    let number = number.trim_end();
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn shown_size(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}
