//! From the configuration as written to one that needs no further check.

mod flows;
mod http;
mod recurring;
mod webhooks;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::adopted::{self, AdoptedTable};
use super::report::Notes;
use super::written::{Size, Written};
use super::{FlowConfig, HttpConfig, OnStop, OtlpEndpoint, RetentionConfig, SecretPlace, ServiceConfig, WebhookConfig};
use crate::domain::database_url::DatabaseUrl;
use crate::domain::labels::{Label, Labels};
use crate::domain::{FlowType, WorkerId};

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

/// In bytes; it stands in every line of the audit trail.
const LONGEST_TOKEN_NAME: usize = 100;

/// What a duration may be, and why.
struct Bounds {
    least: Duration,
    most: Duration,
    why: &'static str,
}

const fn bounds(least: u64, most: u64, why: &'static str) -> Bounds {
    Bounds { least: Duration::from_secs(least), most: Duration::from_secs(most), why }
}

/// What is said where a secret stands in two places or in none.
struct SecretWords {
    both: &'static str,
    neither: &'static str,
    what_it_is: &'static str,
}

const MIB: u64 = 1 << 20;
const DAY: u64 = 86_400;
/// As humantime counts years.
const TEN_YEARS: u64 = 10 * 31_557_600;
const STOP_DEADLINE: Bounds = bounds(1, 30 * DAY, "a stop needs at least a second to write down what it leaves behind");
const KEPT: Bounds = bounds(1, 10 * TEN_YEARS, "rows that go at once could not be looked at");

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

    /// Where a secret is that has to be somewhere, in `secret_env` or in `secret_file`.
    fn secret_place(
        &mut self,
        (variable, file): (Option<&Spanned<String>>, Option<&Spanned<String>>),
        place: Range<usize>,
        words: &SecretWords,
    ) -> Option<SecretPlace> {
        match (variable, file) {
            (Some(variable), None) => {
                if !variable.get_ref().starts_with("CALLSHEET_") || variable.get_ref().contains(['=', '\0']) {
                    self.notes
                        .add(variable.span(), "`secret_env` must be a name that starts with CALLSHEET_")
                        .help("all other variables of the service's environment reach its commands")
                        .private();
                }
                Some(SecretPlace::Env(variable.get_ref().clone()))
            }
            (None, Some(file)) => {
                self.path("secret_file", file);
                Some(SecretPlace::File(self.directory.join(file.get_ref())))
            }
            (Some(_), Some(second)) => {
                self.notes.add(second.span(), words.both).private();
                None
            }
            (None, None) => {
                self.notes.add(place, words.neither).help(words.what_it_is).missing();
                None
            }
        }
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
