//! `[flows.TYPE]` and `[defaults]`: what is run for a job, when, how often and within which limits.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::{Bounds, DAY, MIB, TEN_YEARS, Validator, bounds};
use crate::config::FlowConfig;
use crate::config::written::{Flow, SlotsTable};
use crate::domain::FlowType;
use crate::domain::admission::IdentifierPattern;
use crate::domain::limits::Limits;
use crate::domain::retry::{InvalidRetryPolicy, MOST_ATTEMPTS, RetryPolicy, TEMPORARY_FAILURE, attempts_in_range};
use crate::domain::schedule::{InvalidSchedule, Schedule};
use crate::domain::slots::{InvalidSlots, Slots};
use crate::domain::template::{InvalidTemplate, Template};

/// The most that `concurrency` may be: each run is a process of its own with a shim, and ten thousand of both is more
/// than one machine's default limits allow.
const MAXIMUM_CONCURRENCY: i64 = 10_000;
/// A millisecond in each tenth of a second is the least that the kernel hands out (`cpu.max` in cgroups(7), version 2).
const LEAST_CPUS: f64 = 0.01;
const MOST_CPUS: f64 = 10_000.0;
/// The kernel's PID_MAX_LIMIT on 64-bit machines (proc(5), pid_max).
const MOST_PIDS: u32 = 4_194_304;
const LEAST_WATCHDOG: Duration = Duration::from_secs(2);
/// The shortest `kill_grace` in which a program can ask another machine for anything.
const LEAST_CANCEL: Duration = Duration::from_secs(1);
const RUN: Bounds = bounds(1, TEN_YEARS, "a command needs at least a second to start and end");
const HEARTBEAT: Bounds =
    bounds(1, DAY, "a run is confirmed several times within it, and a lost worker is noticed only after it");
const KILL_GRACE: Bounds = bounds(0, DAY, "a slot stays taken until it has passed");
const RETRY: Bounds = bounds(0, TEN_YEARS, "the next attempt would never come");
const SILENCE: Bounds = bounds(1, TEN_YEARS, "a command needs at least a second to print something");

impl Validator<'_> {
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

    pub(super) fn flows(
        &mut self,
        written: Vec<(Spanned<String>, Flow)>,
        defaults: &Flow,
    ) -> BTreeMap<FlowType, Arc<FlowConfig>> {
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
    pub(super) fn flow_values(&mut self, written: &Flow) -> Option<FlowConfig> {
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

    /// What one of some words means; `None` where there is none, or another one.
    pub(super) fn word<T: Copy>(
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

    pub(super) fn template(&mut self, written: &Spanned<String>) -> Option<Template> {
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
                    // Where nothing before it is escaped, the placeholder stands as far behind the quote as in what was read.
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

    pub(super) fn variable_name(&mut self, name: &Spanned<String>, is_set: bool) {
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

    pub(super) fn schedule(
        &mut self,
        line: Option<&Spanned<String>>,
        timezone: Option<&Spanned<String>>,
    ) -> Option<Schedule> {
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
