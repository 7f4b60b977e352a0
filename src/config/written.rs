//! The configuration as written: every key with its place, of the right TOML type or complained about.
//!
//! A hand-written walk over the parsed document instead of serde, which stops at the first unknown key.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::Notes;

/// A value and its place, where the key was written.
pub(super) type Field<T> = Option<Spanned<T>>;

#[derive(Default)]
pub(super) struct Written {
    pub(super) data_dir: Field<String>,
    pub(super) database_url: Field<String>,
    pub(super) worker_id: Field<String>,
    pub(super) labels: Option<Vec<Spanned<String>>>,
    pub(super) on_stop: Field<String>,
    pub(super) stop_deadline: Field<String>,
    pub(super) listen: Field<String>,
    pub(super) tokens: Vec<Spanned<Token>>,
    pub(super) tls: Option<Tls>,
    pub(super) peers: Option<Peers>,
    pub(super) otlp_endpoint: Field<String>,
    pub(super) defaults: Option<Flow>,
    pub(super) flows: Vec<(Spanned<String>, Flow)>,
    pub(super) retention: Vec<(&'static str, Spanned<String>)>,
    pub(super) webhooks: Vec<Spanned<Webhook>>,
    pub(super) jobs: Option<Jobs>,
}

/// `[store.jobs]`; keys of `columns` and `statuses` are Callsheet's names, values the table's.
pub(super) struct Jobs {
    pub(super) span: Range<usize>,
    pub(super) schema: Field<String>,
    pub(super) table: Field<String>,
    pub(super) columns: Vec<(Spanned<String>, Spanned<String>)>,
    pub(super) statuses: Vec<(Spanned<String>, Spanned<String>)>,
}

/// `[[webhooks]]`
pub(super) struct Webhook {
    pub(super) name: Field<String>,
    pub(super) url: Field<String>,
    pub(super) secret_env: Field<String>,
    pub(super) secret_file: Field<String>,
    pub(super) types: Option<Vec<Spanned<String>>>,
    pub(super) statuses: Option<Vec<Spanned<String>>>,
    pub(super) timeout: Field<String>,
    pub(super) certificate_authority: Field<String>,
}

pub(super) struct Tls {
    pub(super) span: Range<usize>,
    pub(super) certificate: Field<String>,
    pub(super) key: Field<String>,
}

/// `[http.peers]`
pub(super) struct Peers {
    pub(super) span: Range<usize>,
    pub(super) secret_env: Field<String>,
    pub(super) secret_file: Field<String>,
    pub(super) advertise: Field<String>,
    pub(super) certificate_authority: Field<String>,
}

#[derive(Default)]
pub(super) struct Token {
    pub(super) name: Field<String>,
    pub(super) role: Field<String>,
    pub(super) token_sha256: Field<String>,
    pub(super) token_env: Field<String>,
}

#[derive(Clone, Default)]
pub(super) struct Flow {
    pub(super) command: Field<Vec<Spanned<String>>>,
    /// There is a `command` that is no list, which has been complained about.
    pub(super) command_refused: bool,
    pub(super) cancel_command: Field<Vec<Spanned<String>>>,
    pub(super) working_dir: Field<String>,
    pub(super) env: Vec<(Spanned<String>, Spanned<String>)>,
    pub(super) schedule: Field<String>,
    pub(super) timezone: Field<String>,
    pub(super) concurrency: Field<i64>,
    pub(super) worker_concurrency: Field<i64>,
    pub(super) requires: Option<Vec<Spanned<String>>>,
    pub(super) slots: Option<SlotsTable>,
    pub(super) start_to_close_timeout: Field<String>,
    pub(super) schedule_to_close_timeout: Field<String>,
    pub(super) heartbeat_timeout: Field<String>,
    pub(super) watchdog: Field<bool>,
    pub(super) silence_timeout: Field<String>,
    pub(super) kill_grace: Field<String>,
    pub(super) identifier_pattern: Field<String>,
    pub(super) maximum_attempts: Field<i64>,
    pub(super) initial_interval: Field<String>,
    pub(super) backoff_coefficient: Field<f64>,
    pub(super) maximum_interval: Field<String>,
    pub(super) non_retryable_exit_codes: Option<Vec<Spanned<i64>>>,
    pub(super) memory: Field<Size>,
    pub(super) cpus: Field<f64>,
    pub(super) pids: Field<i64>,
    pub(super) output: Field<Size>,
    pub(super) recurring: Vec<Spanned<Recurring>>,
}

/// `slots`
#[derive(Clone)]
pub(super) struct SlotsTable {
    pub(super) span: Range<usize>,
    pub(super) name: Field<String>,
    pub(super) values: Option<Vec<Spanned<String>>>,
}

/// `[[flows.TYPE.recurring]]`
#[derive(Clone)]
pub(super) struct Recurring {
    pub(super) name: Field<String>,
    pub(super) schedule: Field<String>,
    pub(super) timezone: Field<String>,
    pub(super) identifier: Field<String>,
    /// JSON text.
    pub(super) payload: Field<String>,
    pub(super) priority: Field<i64>,
    pub(super) catch_up: Field<String>,
    pub(super) overlap: Field<String>,
}

/// A number of bytes, as written.
#[derive(Clone, PartialEq)]
pub(super) enum Size {
    Bytes(i64),
    Text(String),
}

const TOP: &[&str] = &[
    "data_dir",
    "database_url",
    "worker_id",
    "labels",
    "service",
    "http",
    "telemetry",
    "defaults",
    "flows",
    "retention",
    "webhooks",
    "store",
];
const STORE: &[&str] = &["jobs"];
const JOBS: &[&str] = &["schema", "table", "columns", "statuses"];
const STATUSES: &[&str] = &["PENDING", "INQUEUE", "PROGRESS", "COMPLETED", "ERROR", "CANCELLED"];
const SERVICE: &[&str] = &["on_stop", "stop_deadline"];
const HTTP: &[&str] = &["listen", "tokens", "tls", "peers"];
const PEERS: &[&str] = &["secret_env", "secret_file", "advertise", "certificate_authority"];
const TLS: &[&str] = &["certificate", "key"];
const TELEMETRY: &[&str] = &["otlp_endpoint"];
const TOKEN: &[&str] = &["name", "role", "token_sha256", "token_env"];
const FLOW: &[&str] = &[
    "command",
    "cancel_command",
    "working_dir",
    "env",
    "schedule",
    "timezone",
    "concurrency",
    "worker_concurrency",
    "requires",
    "slots",
    "start_to_close_timeout",
    "schedule_to_close_timeout",
    "heartbeat_timeout",
    "watchdog",
    "silence_timeout",
    "kill_grace",
    "identifier_pattern",
    "retry",
    "limits",
    "recurring",
];
const RETRY: &[&str] =
    &["maximum_attempts", "initial_interval", "backoff_coefficient", "maximum_interval", "non_retryable_exit_codes"];
const LIMITS: &[&str] = &["memory", "cpus", "pids", "output"];
const SLOTS: &[&str] = &["name", "values"];
const RECURRING: &[&str] =
    &["name", "schedule", "timezone", "identifier", "payload", "priority", "catch_up", "overlap"];
const WEBHOOK: &[&str] =
    &["name", "url", "secret_env", "secret_file", "types", "statuses", "timeout", "certificate_authority"];
const RETENTION: &[&str] = &["completed", "error", "cancelled", "deliveries", "audit", "logs"];

/// Where a key that stands in the wrong table belongs.
const SECTIONS: &[(&[&str], &str)] = &[
    (TOP, "at the top of the file, before the first [table]"),
    (SERVICE, "in [service]"),
    (HTTP, "in [http]"),
    (PEERS, "in [http.peers]"),
    (TELEMETRY, "in [telemetry]"),
    (FLOW, "in [flows.TYPE] or [defaults]"),
    (RETRY, "in [flows.TYPE.retry] or [defaults.retry]"),
    (LIMITS, "in [flows.TYPE.limits] or [defaults.limits]"),
    (RECURRING, "in [[flows.TYPE.recurring]]"),
    (WEBHOOK, "in [[webhooks]]"),
    (RETENTION, "in [retention]"),
    (JOBS, "in [store.jobs]"),
];

const DURATION: &str = "a duration is a text with a unit, such as \"30s\", \"10min\" or \"2d\"";
const VARIABLE: &str = "the value of an environment variable is a text: write \"1\", not 1";
const LABELS: &str = "write them as texts in a list: [\"gpu\"]";
const COMMAND: &str =
    "write the program and each argument as a text of its own: [\"program\", \"--id\", \"{identifier}\"]";

/// Reads all that can be read of `text`, and complains about the rest.
pub(super) fn read(text: &str) -> (Written, Notes) {
    let mut notes = Notes::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut twice = None;
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        let Some(name) = text.get(span.clone()).filter(|_| message == "duplicate key") else {
            notes.add_syntax(span, message);
            continue;
        };
        let line = text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
        if text[line..].trim_start().starts_with('[') {
            let header = text[line..].lines().next().unwrap_or_default().trim();
            notes.add_syntax(span.clone(), format!("the table {header} is there already"));
            twice = Some(span.start);
        // A table that is there twice has its keys twice, which is one mistake.
        } else if twice.is_none_or(|table| text[table..span.start].contains("\n[")) {
            notes.add_syntax(span, format!("the key `{name}` is there already"));
        }
    }
    let mut top = Table { name: "the file".to_owned(), table: document.get_ref(), notes: &mut notes };
    let mut written = Written {
        data_dir: top.string("data_dir", ""),
        database_url: top.string("database_url", ""),
        worker_id: top.string("worker_id", ""),
        labels: top.texts("labels", LABELS),
        ..Written::default()
    };
    if let Some(mut service) = top.table("service", "[service]") {
        written.on_stop = service.string("on_stop", "");
        written.stop_deadline = service.string("stop_deadline", DURATION);
        service.no_other_keys(SERVICE);
    }
    if let Some(mut http) = top.table("http", "[http]") {
        written.listen = http.string("listen", "write \"127.0.0.1:8440\", or \"off\" for none");
        written.tokens = http.tokens();
        written.tls = http.tls();
        written.peers = http.peers();
        http.no_other_keys(HTTP);
    }
    if let Some(mut telemetry) = top.table("telemetry", "[telemetry]") {
        written.otlp_endpoint = telemetry.string("otlp_endpoint", "write \"http://localhost:4318\"");
        telemetry.no_other_keys(TELEMETRY);
    }
    if let Some(mut retention) = top.table("retention", "[retention]") {
        for key in RETENTION {
            written.retention.extend(retention.string(key, DURATION).map(|value| (*key, value)));
        }
        retention.no_other_keys(RETENTION);
    }
    written.webhooks = top.webhooks();
    if let Some(mut store) = top.table("store", "[store]") {
        written.jobs = store.jobs();
        store.no_other_keys(STORE);
    }
    written.defaults = top.table("defaults", "[defaults]").map(|mut defaults| defaults.flow("defaults"));
    if let Some(mut flows) = top.table("flows", "[flows]") {
        for key in flows.table.keys() {
            let name = key.get_ref();
            if let Some(mut flow) = flows.table(name, &format!("[flows.{name}]")) {
                written.flows.push((Spanned::new(key.span(), name.to_string()), flow.flow(&format!("flows.{name}"))));
            }
        }
    }
    top.no_other_keys(TOP);
    (written, notes)
}

/// One table of the document, and where to complain about it.
struct Table<'t, 'i> {
    name: String,
    table: &'t DeTable<'i>,
    notes: &'t mut Notes,
}

impl<'t, 'i> Table<'t, 'i> {
    fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.table.iter().find(|(known, _)| known.get_ref() == key).map(|(_, value)| value)
    }

    fn wrong_type(&mut self, key: &str, wanted: &str, found: &Spanned<DeValue<'_>>, help: &str) {
        let found_type = with_article(found.get_ref().type_str());
        let note = self.notes.add(found.span(), format!("`{key}` must be {wanted}, not {found_type}"));
        if !help.is_empty() {
            note.help(help);
        }
        // What was written as a number or a table may be (part of) a secret all the same.
        if key == "database_url" || self.name.ends_with(".env]") {
            note.private();
        }
    }

    fn string(&mut self, key: &str, help: &str) -> Field<String> {
        let value = self.get(key)?;
        self.as_string(key, value, help)
    }

    fn as_string(&mut self, key: &str, value: &Spanned<DeValue<'_>>, help: &str) -> Field<String> {
        if let Some(text) = value.get_ref().as_str() {
            return Some(Spanned::new(value.span(), text.to_owned()));
        }
        self.wrong_type(key, "a text in quotes", value, help);
        None
    }

    fn boolean(&mut self, key: &str) -> Field<bool> {
        let value = self.get(key)?;
        if let Some(boolean) = value.get_ref().as_bool() {
            return Some(Spanned::new(value.span(), boolean));
        }
        self.wrong_type(key, "true or false", value, "");
        None
    }

    fn integer(&mut self, key: &str) -> Field<i64> {
        let value = self.get(key)?;
        self.as_integer(key, value)
    }

    fn as_integer(&mut self, key: &str, value: &Spanned<DeValue<'_>>) -> Field<i64> {
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, "a whole number", value, "");
            return None;
        };
        match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Some(Spanned::new(value.span(), number)),
            Err(_) => {
                self.notes.add(value.span(), format!("`{key}` is too large a number"));
                None
            }
        }
    }

    fn float(&mut self, key: &str) -> Field<f64> {
        let value = self.get(key)?;
        let number = match value.get_ref() {
            DeValue::Float(float) => float.as_str().parse().ok(),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().parse().ok(),
            _ => None,
        };
        if number.is_none() {
            self.wrong_type(key, "a number", value, "");
        }
        number.map(|number| Spanned::new(value.span(), number))
    }

    fn size(&mut self, key: &str) -> Field<Size> {
        let value = self.get(key)?;
        if let Some(text) = value.get_ref().as_str() {
            return Some(Spanned::new(value.span(), Size::Text(text.to_owned())));
        }
        if value.get_ref().is_integer() {
            return self
                .as_integer(key, value)
                .map(|bytes| Spanned::new(bytes.span(), Size::Bytes(bytes.into_inner())));
        }
        self.wrong_type(key, "a number of bytes", value, "write \"64MiB\", \"8GiB\" or a plain number");
        None
    }

    /// A program with its arguments.
    fn words(&mut self, key: &str) -> Field<Vec<Spanned<String>>> {
        let (span, values) = self.array(key, "a list of texts", COMMAND)?;
        // A word that is no text is complained about, and the others are still worth checking.
        let words = values.iter().filter_map(|value| self.as_string(key, value, COMMAND)).collect();
        Some(Spanned::new(span, words))
    }

    fn array(&mut self, key: &str, wanted: &str, help: &str) -> Option<(Range<usize>, Vec<&'t Spanned<DeValue<'i>>>)> {
        let value = self.get(key)?;
        if let Some(array) = value.get_ref().as_array() {
            return Some((value.span(), array.iter().collect()));
        }
        self.wrong_type(key, wanted, value, help);
        None
    }

    fn table<'n>(&'n mut self, key: &str, name: &str) -> Option<Table<'n, 'i>> {
        let value = self.get(key)?;
        if let Some(table) = value.get_ref().as_table() {
            return Some(Table { name: name.to_owned(), table, notes: self.notes });
        }
        self.wrong_type(key, "a table", value, "");
        None
    }

    fn tokens(&mut self) -> Vec<Spanned<Token>> {
        const TOKENS: (&str, &str) = ("a list of tables", "write [[http.tokens]] above each token");
        let mut tokens = Vec::new();
        for value in self.array("tokens", TOKENS.0, TOKENS.1).map(|(_, values)| values).unwrap_or_default() {
            let Some(table) = value.get_ref().as_table() else {
                self.wrong_type("tokens", TOKENS.0, value, TOKENS.1);
                continue;
            };
            let mut table = Table { name: "[[http.tokens]]".to_owned(), table, notes: self.notes };
            let token = Token {
                name: table.string("name", ""),
                role: table.string("role", ""),
                token_sha256: table.string("token_sha256", ""),
                token_env: table.string("token_env", ""),
            };
            table.no_other_keys(TOKEN);
            tokens.push(Spanned::new(value.span(), token));
        }
        tokens
    }

    fn webhooks(&mut self) -> Vec<Spanned<Webhook>> {
        const WANTED: (&str, &str) = ("a list of tables", "write [[webhooks]] above each of them");
        let mut webhooks = Vec::new();
        for value in self.array("webhooks", WANTED.0, WANTED.1).map(|(_, values)| values).unwrap_or_default() {
            let Some(table) = value.get_ref().as_table() else {
                self.wrong_type("webhooks", WANTED.0, value, WANTED.1);
                continue;
            };
            let mut table = Table { name: "[[webhooks]]".to_owned(), table, notes: self.notes };
            let webhook = Webhook {
                name: table.string("name", ""),
                url: table.string("url", ""),
                secret_env: table.string("secret_env", ""),
                secret_file: table.string("secret_file", ""),
                types: table.texts("types", "write types = [\"VEO_3_GENERATION\"]"),
                statuses: table.texts("statuses", "write statuses = [\"COMPLETED\", \"ERROR\"]"),
                timeout: table.string("timeout", DURATION),
                certificate_authority: table.string("certificate_authority", ""),
            };
            table.no_other_keys(WEBHOOK);
            webhooks.push(Spanned::new(value.span(), webhook));
        }
        webhooks
    }

    fn texts(&mut self, key: &str, help: &str) -> Option<Vec<Spanned<String>>> {
        let (_, values) = self.array(key, "a list of texts", help)?;
        Some(values.iter().filter_map(|value| self.as_string(key, value, help)).collect())
    }

    fn jobs(&mut self) -> Option<Jobs> {
        const NAME: &str = "the name of a column is a text in quotes, without quotes of its own: \"startedTime\"";
        let span = self.get("jobs")?.span();
        let mut jobs = self.table("jobs", "[store.jobs]")?;
        let read = Jobs {
            span,
            schema: jobs.string("schema", ""),
            table: jobs.string("table", "write the name of the table that you have: table = \"Job\""),
            columns: jobs.texts_of("columns", super::adopted::COLUMNS, NAME),
            statuses: jobs.texts_of("statuses", STATUSES, "the word of a status is a text in quotes"),
        };
        jobs.no_other_keys(JOBS);
        Some(read)
    }

    /// A table of texts with these keys only.
    fn texts_of(&mut self, key: &str, known: &[&str], help: &str) -> Vec<(Spanned<String>, Spanned<String>)> {
        let Some(mut table) = self.table(key, &format!("[store.jobs] {key}")) else { return Vec::new() };
        let texts = table.variables(help);
        table.no_other_keys(known);
        texts
    }

    fn tls(&mut self) -> Option<Tls> {
        let span = self.get("tls")?.span();
        let mut tls = self.table("tls", "http.tls")?;
        let read = Tls { span, certificate: tls.string("certificate", ""), key: tls.string("key", "") };
        tls.no_other_keys(TLS);
        Some(read)
    }

    fn peers(&mut self) -> Option<Peers> {
        let span = self.get("peers")?.span();
        let mut peers = self.table("peers", "[http.peers]")?;
        let read = Peers {
            span,
            secret_env: peers.string("secret_env", ""),
            secret_file: peers.string("secret_file", ""),
            advertise: peers.string("advertise", "write \"http://10.0.0.5:8440\""),
            certificate_authority: peers.string("certificate_authority", ""),
        };
        peers.no_other_keys(PEERS);
        Some(read)
    }

    fn flow(&mut self, path: &str) -> Flow {
        let mut flow = Flow {
            working_dir: self.string("working_dir", ""),
            env: self.table("env", &format!("[{path}.env]")).map(|mut env| env.variables(VARIABLE)).unwrap_or_default(),
            schedule: self.string("schedule", "a cron line is a text, such as \"*/1 * * * *\""),
            timezone: self.string("timezone", ""),
            concurrency: self.integer("concurrency"),
            worker_concurrency: self.integer("worker_concurrency"),
            requires: self.texts("requires", LABELS),
            slots: self.slots(path),
            start_to_close_timeout: self.string("start_to_close_timeout", DURATION),
            schedule_to_close_timeout: self.string("schedule_to_close_timeout", DURATION),
            heartbeat_timeout: self.string("heartbeat_timeout", DURATION),
            watchdog: self.boolean("watchdog"),
            silence_timeout: self.string("silence_timeout", DURATION),
            kill_grace: self.string("kill_grace", DURATION),
            identifier_pattern: self.string("identifier_pattern", ""),
            ..Flow::default()
        };
        flow.command = self.words("command");
        flow.cancel_command = self.words("cancel_command");
        flow.command_refused = flow.command.is_none() && self.get("command").is_some();
        if let Some(mut retry) = self.table("retry", &format!("[{path}.retry]")) {
            flow.maximum_attempts = retry.integer("maximum_attempts");
            flow.initial_interval = retry.string("initial_interval", DURATION);
            flow.backoff_coefficient = retry.float("backoff_coefficient");
            flow.maximum_interval = retry.string("maximum_interval", DURATION);
            if let Some((_, codes)) = retry.array("non_retryable_exit_codes", "a list of whole numbers", "") {
                let codes = codes.iter().filter_map(|code| retry.as_integer("non_retryable_exit_codes", code));
                flow.non_retryable_exit_codes = Some(codes.collect());
            }
            retry.no_other_keys(RETRY);
        }
        if let Some(mut limits) = self.table("limits", &format!("[{path}.limits]")) {
            flow.memory = limits.size("memory");
            flow.cpus = limits.float("cpus");
            flow.pids = limits.integer("pids");
            flow.output = limits.size("output");
            limits.no_other_keys(LIMITS);
        }
        flow.recurring = self.recurring(path);
        self.no_other_keys(FLOW);
        flow
    }

    fn slots(&mut self, path: &str) -> Option<SlotsTable> {
        const VALUES: &str = "write each as a text: values = [\"0\", \"1\"]";
        let span = self.get("slots")?.span();
        let mut slots = self.table("slots", &format!("[{path}.slots]"))?;
        let before = slots.notes.len();
        let read = SlotsTable { span, name: slots.string("name", ""), values: slots.texts("values", VALUES) };
        // A text that is none is complained about once; what is left without it is not what was meant.
        let is_read = slots.notes.len() == before;
        slots.no_other_keys(SLOTS);
        is_read.then_some(read)
    }

    fn recurring(&mut self, path: &str) -> Vec<Spanned<Recurring>> {
        const WANTED: (&str, &str) = ("a list of tables", "write [[flows.TYPE.recurring]] above each entry");
        const PAYLOAD: &str = "write JSON as a text: payload = '{\"seed\": 7}'";
        let Some((span, values)) = self.array("recurring", WANTED.0, WANTED.1) else { return Vec::new() };
        if path == "defaults" {
            self.notes
                .add(span, "`recurring` can't stand in [defaults]: every flow would enqueue the same job")
                .help(WANTED.1);
            return Vec::new();
        }
        let mut entries = Vec::new();
        for value in values {
            let Some(table) = value.get_ref().as_table() else {
                self.wrong_type("recurring", WANTED.0, value, WANTED.1);
                continue;
            };
            let mut table = Table { name: format!("[[{path}.recurring]]"), table, notes: self.notes };
            let entry = Recurring {
                name: table.string("name", ""),
                schedule: table.string("schedule", "a cron line is a text, such as \"0 3 * * *\""),
                timezone: table.string("timezone", ""),
                identifier: table.string("identifier", ""),
                payload: table.string("payload", PAYLOAD),
                priority: table.integer("priority"),
                catch_up: table.string("catch_up", ""),
                overlap: table.string("overlap", ""),
            };
            table.no_other_keys(RECURRING);
            entries.push(Spanned::new(value.span(), entry));
        }
        entries
    }

    fn variables(&mut self, help: &str) -> Vec<(Spanned<String>, Spanned<String>)> {
        let mut variables = Vec::new();
        for (key, value) in self.table {
            let text = self.as_string(key.get_ref(), value, help);
            variables.extend(text.map(|text| (Spanned::new(key.span(), key.get_ref().to_string()), text)));
        }
        variables
    }

    fn no_other_keys(&mut self, known: &[&str]) {
        for key in self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref().as_ref();
            let near = known
                .iter()
                .map(|known| (strsim::damerau_levenshtein(known, name), *known))
                .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
                .min();
            let elsewhere = SECTIONS.iter().find(|(keys, _)| keys.contains(&name));
            let help = match (elsewhere, near) {
                (Some((_, place)), _) => format!("`{name}` belongs {place}"),
                (None, Some((_, near))) => format!("did you mean `{near}`?"),
                (None, None) => format!("known here: {}", known.join(", ")),
            };
            self.notes.add(key.span(), format!("unknown key `{name}` in {}", self.name)).help(help);
        }
    }
}

fn with_article(type_name: &str) -> String {
    match type_name {
        "array" | "integer" => format!("an {type_name}"),
        "string" => "a text".to_owned(),
        _ => format!("a {type_name}"),
    }
}
