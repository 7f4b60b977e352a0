//! What differs between two configurations, line by line: what a reload does, and what it can't do.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{AdoptedTable, Config, FlowConfig, HttpConfig, RecurringConfig, TokenConfig};
use crate::domain::template::Template;

/// What differs between the configuration that a service runs with and the one that it has read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What is different about flows, a line each, such as `flow X: concurrency 1 -> 3`.
    pub flows: Vec<String>,
    /// What is different about tokens, a line each, such as `token ops: removed`.
    pub tokens: Vec<String>,
    /// Keys that are different and hold only from the next start of the service.
    pub restart: Vec<&'static str>,
}

impl Changes {
    /// What `new` has otherwise than `old`.
    #[must_use]
    pub fn between(old: &Config, new: &Config) -> Self {
        let mut flows = Vec::new();
        let names: std::collections::BTreeSet<_> = old.flows.keys().chain(new.flows.keys()).collect();
        for name in names {
            match (old.flows.get(name), new.flows.get(name)) {
                (Some(old), Some(new)) => flows.extend(flow_changes(old, new)),
                (None, Some(new)) => flows.push(format!("flow {name}: added, concurrency {}", new.concurrency)),
                (Some(_), None) => {
                    flows.push(format!("flow {name}: removed; its runs are finished, and nothing new is started"));
                }
                (None, None) => {}
            }
        }
        Self { flows, tokens: token_changes(old, new), restart: restart(old, new) }
    }
}

/// Taken apart in full, so that a key that is added is not forgotten here.
fn restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let Config {
        path: _,
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
        flows: _,
    } = new;
    let HttpConfig { listen, tokens, tls, peers } = http;
    let same = [
        ("data_dir", *data_dir == old.data_dir),
        ("database_url", *database_url == old.database_url),
        ("worker_id", *worker_id == old.worker_id),
        ("labels", *labels == old.labels),
        ("[service]", *service == old.service),
        ("[http]", *listen == old.http.listen && *tls == old.http.tls && *peers == old.http.peers),
        ("[[http.tokens]]", !opens(old, tokens)),
        ("[retention]", *retention == old.retention),
        ("[[webhooks]]", *webhooks == old.webhooks),
        ("[store.jobs]", names(adopted) == names(&old.adopted)),
        ("[telemetry]", *otlp == old.otlp),
    ];
    same.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
}

/// What an adopted table is called and its parts are; its `only_type` is about flows.
fn names(adopted: &Option<Arc<AdoptedTable>>) -> Option<AdoptedTable> {
    adopted.as_deref().map(|table| AdoptedTable { only_type: None, ..table.clone() })
}

/// Whether it would let everybody in who comes from this machine; that has to be meant, and waits for the next start.
fn opens(old: &Config, tokens: &[TokenConfig]) -> bool {
    tokens.is_empty() && !old.http.tokens.is_empty()
}

fn token_changes(old: &Config, new: &Config) -> Vec<String> {
    if opens(old, &new.http.tokens) {
        return Vec::new();
    }
    let by_name = |config: &Config| -> BTreeMap<String, TokenConfig> {
        config.http.tokens.iter().map(|token| (token.name.clone(), token.clone())).collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let line = |name: &String| match (old.get(name), new.get(name)) {
        (Some(old), Some(new)) if old == new => None,
        (Some(old), Some(new)) if old.role != new.role => {
            Some(format!("token {name}: {} -> {}", old.role.as_str(), new.role.as_str()))
        }
        (Some(_), Some(_)) => Some(format!("token {name}: another value")),
        (None, Some(new)) => Some(format!("token {name}: added, {}", new.role.as_str())),
        (Some(_), None) => Some(format!("token {name}: removed; its sessions have ended")),
        (None, None) => None,
    };
    names.into_iter().filter_map(line).collect()
}

fn flow_changes(old: &FlowConfig, new: &FlowConfig) -> Vec<String> {
    let name = &new.flow;
    let pairs = settings(old).into_iter().zip(settings(new));
    let mut lines: Vec<String> = pairs
        .filter(|((_, old), (_, new))| old != new)
        .map(|((key, old), (_, new))| format!("flow {name}: {key} {old} -> {new}"))
        .collect();
    // Values of environment variables are often secrets.
    let (before, after): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (old.env.iter().cloned().collect(), new.env.iter().cloned().collect());
    let variables: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for variable in variables {
        let change = match (before.get(variable), after.get(variable)) {
            (Some(old), Some(new)) if old == new => continue,
            (Some(_), Some(_)) => "changed",
            (None, _) => "added",
            (_, None) => "removed",
        };
        lines.push(format!("flow {name}: env.{variable} {change}"));
    }
    lines
}

/// Every setting of a flow but its environment, as it is shown; taken apart in full as above.
fn settings(flow: &FlowConfig) -> Vec<(&'static str, String)> {
    let FlowConfig {
        flow: _,
        command,
        cancel_command,
        working_dir,
        env: _,
        schedule,
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
        identifier_pattern,
        retry,
        output_limit,
        limits,
        recurring,
    } = flow;
    let limit = |limit: Option<String>| limit.unwrap_or_else(|| "none".to_owned());
    let duration = |duration: &std::time::Duration| humantime::format_duration(*duration).to_string();
    let list = |words: &Vec<Template>| {
        format!("[{}]", words.iter().map(|word| format!("{:?}", word.to_string())).collect::<Vec<_>>().join(", "))
    };
    let mut settings = vec![
        ("command", list(command)),
        ("cancel_command", limit(cancel_command.as_ref().map(list))),
        ("working_dir", working_dir.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("schedule", format!("{:?}", schedule.line())),
        ("timezone", schedule.timezone().to_owned()),
        ("concurrency", concurrency.to_string()),
        ("worker_concurrency", worker_concurrency.to_string()),
        ("requires", format!("[{requires}]")),
        ("slots", slots.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)),
        ("start_to_close_timeout", duration(start_to_close_timeout)),
        ("schedule_to_close_timeout", duration(schedule_to_close_timeout)),
        ("heartbeat_timeout", duration(heartbeat_timeout)),
        ("watchdog", watchdog.to_string()),
        ("silence_timeout", silence_timeout.as_ref().map_or_else(|| "off".to_owned(), duration)),
        ("kill_grace", duration(kill_grace)),
        ("identifier_pattern", format!("{:?}", identifier_pattern.as_str())),
        ("limits.output", format!("{output_limit} bytes")),
        ("limits.memory", limit(limits.memory.map(|bytes| format!("{bytes} bytes")))),
        ("limits.cpus", limit(limits.cpu_millis.map(|millis| (f64::from(millis) / 1000.0).to_string()))),
        ("limits.pids", limit(limits.pids.map(|pids| pids.to_string()))),
    ];
    settings.extend(retry.settings());
    settings.push(("recurring", format!("[{}]", recurring.iter().map(entry).collect::<Vec<_>>().join(", "))));
    settings
}

/// A recurring entry in a few words; its payload is the jobs' business.
fn entry(entry: &RecurringConfig) -> String {
    let RecurringConfig { name, schedule, identifier, payload, priority, catch_up, overlap } = entry;
    let payload = if payload.is_some() { ", with a payload" } else { "" };
    format!(
        "{name:?}: {identifier:?} at {:?} ({}), priority {priority}, catch_up {}, overlap {}{payload}",
        schedule.line(),
        schedule.timezone(),
        catch_up.as_str(),
        overlap.as_str()
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("/etc/callsheet.toml")).unwrap()
    }

    #[test]
    fn what_differs_is_told_line_by_line() {
        let old = config(
            "[http]\nlisten = \"127.0.0.1:1\"\n[defaults]\nkill_grace = \"5s\"\n\
             [flows.A]\ncommand = [\"a\", \"{identifier}\"]\nenv = { TOKEN = \"secret\", GONE = \"1\", SAME = \"2\" }\n\
             [flows.B]\ncommand = [\"b\"]\n[flows.SAME]\ncommand = [\"same\"]\nkill_grace = \"5s\"\n",
        );
        let new = config(
            "[service]\non_stop = \"wait\"\n[http]\nlisten = \"127.0.0.1:2\"\n[defaults]\nkill_grace = \"6s\"\n\
             [flows.A]\ncommand = [\"a2\", \"{job_id}\"]\nconcurrency = 3\nschedule = \"@hourly\"\ntimezone = \"Europe/Berlin\"\n\
             env = { TOKEN = \"other\", NEW = \"1\", SAME = \"2\" }\n\
             retry = { maximum_attempts = 2, initial_interval = \"2s\", backoff_coefficient = 3.0, non_retryable_exit_codes = [3, 4] }\n\
             [flows.C]\ncommand = [\"c\"]\n[flows.SAME]\ncommand = [\"same\"]\nkill_grace = \"5s\"\n",
        );
        let changes = Changes::between(&old, &new);
        insta::assert_snapshot!(changes.flows.join("\n"), @r#"
        flow A: command ["a", "{identifier}"] -> ["a2", "{job_id}"]
        flow A: schedule "*/1 * * * *" -> "@hourly"
        flow A: timezone UTC -> Europe/Berlin
        flow A: concurrency 1 -> 3
        flow A: worker_concurrency 1 -> 3
        flow A: kill_grace 5s -> 6s
        flow A: retry.maximum_attempts 1 -> 2
        flow A: retry.initial_interval 1s -> 2s
        flow A: retry.backoff_coefficient 2 -> 3
        flow A: retry.maximum_interval 1m 40s -> 3m 20s
        flow A: retry.non_retryable_exit_codes [] -> [3, 4]
        flow A: env.GONE removed
        flow A: env.NEW added
        flow A: env.TOKEN changed
        flow B: removed; its runs are finished, and nothing new is started
        flow C: added, concurrency 1
        "#);
        assert_eq!(changes.restart, ["[service]", "[http]"]);
        assert_eq!(Changes::between(&new, &new), Changes::default());
    }

    #[test]
    fn the_last_token_goes_with_the_next_start_only() {
        let token = |name: &str, role: &str, digit: &str| {
            format!("[[http.tokens]]\nname = \"{name}\"\nrole = \"{role}\"\ntoken_sha256 = \"{}\"\n", digit.repeat(64))
        };
        let all = |tokens: &[(&str, &str, &str)]| {
            config(&tokens.iter().map(|(name, role, digit)| token(name, role, digit)).collect::<String>())
        };
        let old = all(&[("a", "viewer", "0"), ("b", "viewer", "1"), ("c", "viewer", "2"), ("d", "viewer", "3")]);
        let new = all(&[("a", "viewer", "0"), ("b", "operator", "1"), ("c", "viewer", "4"), ("e", "viewer", "3")]);
        insta::assert_snapshot!(Changes::between(&old, &new).tokens.join("\n"), @r"
        token b: viewer -> operator
        token c: another value
        token d: removed; its sessions have ended
        token e: added, viewer
        ");
        assert_eq!(Changes::between(&old, &new).restart, [""; 0]);
        let open = Changes::between(&old, &all(&[]));
        assert_eq!((open.tokens, open.restart), (Vec::new(), vec!["[[http.tokens]]"]));
        assert_eq!(Changes::between(&all(&[]), &old).tokens.len(), 4);
    }
}
