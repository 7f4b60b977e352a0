//! Dashboards and alerts: made from their source, right by Grafana's own types, and every query of them asked of a real
//! Prometheus that scrapes a real service which is at work.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use callsheet::domain::{JobStatus, Timestamp};
use serde_json::Value;

use crate::support::scrape::get;
use crate::support::service::{On, Service};
use crate::support::tools::{self, ROOT, node_modules, program, run};
use crate::support::{eventually, own_address};

const NAMES: [&str; 3] = ["overview", "flow", "service"];

fn dashboard(name: &str) -> Value {
    let path = format!("{ROOT}/grafana/dashboards/{name}.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a Vec<Value> {
    value.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    list(dashboard, "/panels").iter().filter(|panel| text(panel, "type") != "row")
}

#[test]
fn the_dashboards_are_what_their_source_makes() {
    let Some(python) = program("python3") else { return };
    run(Command::new(python).arg(format!("{ROOT}/grafana/dashboards.py")).arg("--check"));
}

#[test]
fn the_dashboards_are_right_by_grafanas_own_types() {
    let (Some(modules), Some(node)) = (node_modules(), program("node")) else { return };
    let check = |files: &[String]| {
        Command::new(&node).arg(format!("{ROOT}/tests/grafana/check.mjs")).arg(&modules).args(files).output().unwrap()
    };
    let files = NAMES.map(|name| format!("{ROOT}/grafana/dashboards/{name}.json"));
    let output = check(&files);
    assert!(output.status.success(), "{}", tools::said(&output));

    // A key that Grafana does not know, and a value that it does not take, are found.
    let scratch = tempfile::tempdir().unwrap();
    let mut wrong = dashboard("flow");
    let panel = list(&wrong, "/panels").iter().position(|panel| text(panel, "type") == "timeseries").unwrap();
    wrong["panels"][panel]["options"]["legend"]["placement"] = "somewhere".into();
    wrong["refreshes"] = "30s".into();
    let path = scratch.path().join("wrong.json").display().to_string();
    fs::write(&path, wrong.to_string()).unwrap();
    let output = check(&[path]);
    let said = tools::said(&output);
    assert!(!output.status.success() && said.contains("somewhere") && said.contains("refreshes"), "{said}");
}

#[test]
fn every_panel_says_what_it_shows_and_in_which_unit() {
    for name in NAMES {
        let dashboard = dashboard(name);
        let mut titles = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for panel in list(&dashboard, "/panels") {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: two panels of one id");
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(place("x") + place("w") <= 24, "{name}: {panel} is wider than the page");
        }
        for panel in panels(&dashboard) {
            let title = text(panel, "title");
            assert!(titles.insert(title), "{name}: two panels are called {title}");
            let description = text(panel, "description");
            assert!(
                description.len() > 20 && description.ends_with('.'),
                "{name}/{title}: {description:?} is no description"
            );
            assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{name}/{title} has no unit");
            if text(panel, "type") == "stat" {
                assert!(
                    panel.pointer("/fieldConfig/defaults/thresholds/steps/0").is_some(),
                    "{name}/{title} has no thresholds"
                );
            }
            for target in list(panel, "/targets") {
                assert_eq!(text(&target["datasource"], "uid"), "${datasource}", "{name}/{title}");
                assert!(text(target, "expr").contains("$worker"), "{name}/{title} does not look at the chosen workers");
            }
        }
        let variables: Vec<_> = list(&dashboard, "/templating/list").iter().map(|each| text(each, "name")).collect();
        for variable in ["datasource", "worker", "service_url", "log_url"] {
            assert!(variables.contains(&variable), "{name} has no variable {variable}");
        }
        assert_eq!(variables.contains(&"flow"), name != "service");
        let annotations: Vec<_> = list(&dashboard, "/annotations/list").iter().map(|each| text(each, "name")).collect();
        assert_eq!(annotations, ["Restarts", "Deploys"]);
        let links = list(&dashboard, "/links").iter().filter_map(|link| link["url"].as_str());
        assert_eq!(links.collect::<Vec<_>>(), ["${service_url}/", "${log_url}"]);
    }
}

/// The alerts of the rule file, as promtool's own parser would see them; the file is plain enough to be read by lines.
fn alerts() -> Vec<String> {
    let rules = fs::read_to_string(format!("{ROOT}/grafana/prometheus/callsheet.rules.yml")).unwrap();
    rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

#[test]
fn each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let Some(promtool) = program("promtool") else { return };
    let directory = format!("{ROOT}/grafana/prometheus");
    run(Command::new(&promtool).args(["check", "rules", "callsheet.rules.yml"]).current_dir(&directory));
    let said = run(Command::new(&promtool).args(["test", "rules", "callsheet.rules.test.yml"]).current_dir(&directory));
    assert!(said.contains("SUCCESS"), "{said}");
    run(Command::new(&promtool).args(["check", "config", "prometheus.yml"]).current_dir(&directory));
    let rules = fs::read_to_string(format!("{directory}/callsheet.rules.yml")).unwrap();
    let cases = fs::read_to_string(format!("{directory}/callsheet.rules.test.yml")).unwrap();
    let alerts = alerts();
    assert!(alerts.len() >= 9);
    for (alert, rule) in alerts.iter().zip(rules.split("- alert: ").skip(1)) {
        let firing = |samples: &str| {
            cases.lines().any(|line| {
                line.contains(&format!("alertname=\"{alert}\", alertstate=\"firing\"}}', eval_time"))
                    | line.contains(&format!("alertname=\"{alert}\", alertstate=\"firing\"}})', eval_time"))
                    && line.contains(samples)
            })
        };
        assert!(firing("exp_samples: [{ labels"), "{alert} has no case that fires");
        assert!(firing("exp_samples: []"), "{alert} has no case that does not fire");
        for part in ["severity: ", "summary: ", "description: ", "runbook: |", "1. "] {
            assert!(rule.contains(part), "{alert} has no {part}");
        }
    }
}

/// A Prometheus that scrapes a service every second, with the rules of this repository.
struct Prometheus {
    address: String,
    child: Child,
    _data: tempfile::TempDir,
}

impl Prometheus {
    fn start(program: &Path, target: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let address = own_address().to_string();
        let shipped = fs::read_to_string(format!("{ROOT}/grafana/prometheus/prometheus.yml")).unwrap();
        let config = shipped.replace("15s", "1s").replace("localhost:8440", target);
        assert!(config.contains(target) && config.contains("1s"), "{config}");
        fs::write(data.path().join("prometheus.yml"), config).unwrap();
        fs::copy(format!("{ROOT}/grafana/prometheus/callsheet.rules.yml"), data.path().join("callsheet.rules.yml"))
            .unwrap();
        let log = fs::File::create(data.path().join("log")).unwrap();
        let child = Command::new(program)
            .arg(format!("--config.file={}", data.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", data.path().join("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { address, child, _data: data }
    }

    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let query: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let (status, body) = get(&self.address, &format!("{path}?{}", query.join("&")));
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert!(status == 200 && answer["status"] == "success", "{parameters:?}: {body}");
        answer["data"].clone()
    }

    fn answers(&self) -> bool {
        std::net::TcpStream::connect(&self.address).is_ok() && get(&self.address, "/-/ready").0 == 200
    }

    /// The series of a query as of now.
    fn vector(&self, query: &str) -> Vec<Value> {
        self.vector_at(query, callsheet::clock::now())
    }

    /// The series of a query as of a moment.
    fn vector_at(&self, query: &str, time: Timestamp) -> Vec<Value> {
        let data = self.ask("/api/v1/query", &[("query", query), ("time", &seconds(time))]);
        assert_eq!(data["resultType"], "vector", "{query}");
        list(&data, "/result").clone()
    }

    /// The series of a query over the time between two moments.
    fn matrix(&self, query: &str, start: Timestamp, end: Timestamp) -> Vec<Value> {
        let (start, end) = (seconds(start), seconds(end));
        let data =
            self.ask("/api/v1/query_range", &[("query", query), ("start", &start), ("end", &end), ("step", "1")]);
        assert_eq!(data["resultType"], "matrix", "{query}");
        list(&data, "/result").clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn seconds(time: Timestamp) -> String {
    format!("{:.3}", time.unix_millis() as f64 / 1_000.0)
}

fn escaped(text: &str) -> String {
    let byte = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(byte).collect()
}

/// A query as Grafana would send it, with every variable filled in.
fn filled(query: &str, flow: &str) -> String {
    let filled = query.replace("$__rate_interval", "5m").replace("$worker", ".*").replace("$flow", flow);
    assert!(!filled.contains('$'), "an unknown variable in {query}");
    filled
}

/// Whether a series has a sample that is a number.
fn has_number(series: &Value) -> bool {
    let samples = series["values"].as_array().cloned().unwrap_or_else(|| vec![series["value"].clone()]);
    samples
        .iter()
        .any(|sample| sample[1].as_str().and_then(|value| value.parse::<f64>().ok()).is_some_and(f64::is_finite))
}

const FLOWS: &str = "[flows.MIXED]\n{job}\nconcurrency = 2\nheartbeat_timeout = \"1s\"\nschedule = \"* * * * *\"\n\
    start_to_close_timeout = \"60s\"\n[flows.MIXED.retry]\nmaximum_attempts = 2\ninitial_interval = \"0s\"\n\
    [flows.MISSING]\ncommand = [\"/nowhere/at/all\"]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_of_every_panel_and_rule_has_an_answer_of_the_right_shape() {
    let Some(program) = program("prometheus") else { return };
    let mut service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    // The same address after its restart, as an operator's service has.
    let address = own_address().to_string();
    let config = fs::read_to_string(service.path("callsheet.toml")).unwrap();
    fs::write(service.path("callsheet.toml"), config.replace("127.0.0.1:0", &address)).unwrap();
    // Of a webhook's requests there is something to see even where nobody is there to take them.
    let nobody = own_address();
    service.configure(&format!(
        "[[webhooks]]\nname = \"away\"\nurl = \"http://{nobody}/\"\nsecret_env = \"CALLSHEET_TEST_HOOK\"\n"
    ));
    service.env.push(("CALLSHEET_TEST_HOOK".to_owned(), "whsec_Y2FsbHNoZWV0J3MgdGVzdCBzZWNyZXQh".to_owned()));
    service.serve().await;
    let lasting = service.insert("MIXED", &["wait"]).await[0];
    service.until(lasting, JobStatus::Progress).await;
    let started = callsheet::clock::now();
    let prometheus = Prometheus::start(&program, &address);
    eventually("Prometheus", async || prometheus.answers()).await;
    eventually("a first scrape", async || !prometheus.vector("callsheet_build_info").is_empty()).await;
    // A mixed load with failures, while it is scraped; and a run that is taken over.
    service.insert("MISSING", &["a"]).await;
    for _ in 0..3 {
        let jobs = service.insert("MIXED", &["run:0.3", "exit:1", "say:a", "kill:TERM", "..refused"]).await;
        service.until(jobs[3], JobStatus::Error).await;
    }
    service.kill_9();
    service.serve().await;
    let more = service.insert("MIXED", &["exit:2", "run:0.1", "run:0.2"]).await;
    for _ in 0..2 {
        service.insert("MISSING", &["a"]).await;
    }
    service.until(more[2], JobStatus::Completed).await;
    // Left over when everything is asked: one that waits and one that runs.
    service.insert("MIXED", &["wait", "wait"]).await;
    // All is asked as of a moment just after a scrape, when there was one, and over the time up to then.
    let mut loaded = started;
    let scrapes = "callsheet_build_info and count_over_time(callsheet_build_info[5m]) >= 12";
    eventually("a dozen scrapes", async || {
        loaded = callsheet::clock::now();
        !prometheus.vector_at(scrapes, loaded).is_empty()
    })
    .await;

    let mut asked = 0;
    let mut names = BTreeSet::new();
    for name in NAMES {
        let dashboard = dashboard(name);
        for panel in panels(&dashboard) {
            for target in list(panel, "/targets") {
                let title = format!("{name}/{}", text(panel, "title"));
                let expr = filled(text(target, "expr"), if name == "flow" { "MIXED" } else { ".*" });
                names.extend(metric_names(&expr));
                let instant = target["instant"] == true;
                let series = if instant {
                    prometheus.vector_at(&expr, loaded)
                } else {
                    prometheus.matrix(&expr, started, loaded)
                };
                assert!(!series.is_empty(), "{title} has no data: {expr}");
                assert!(series.iter().any(has_number), "{title} has no number: {expr}");
                let legend = text(target, "legendFormat");
                for label in legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(label, _)| label)
                {
                    for each in &series {
                        assert!(each["metric"][label].is_string(), "{title}: no label {label} in {each}");
                    }
                }
                match text(panel, "type") {
                    "stat" => assert_eq!(series.len(), 1, "{title} shows one figure: {series:?}"),
                    "heatmap" => {
                        assert!(series.iter().any(|each| each["metric"]["le"] == "+Inf"), "{title}: {series:?}");
                    }
                    "table" => assert!(series.iter().all(|each| !each["metric"].as_object().unwrap().is_empty())),
                    _ => assert!(legend != "__auto" || series.len() == 1, "{title}: series without names"),
                }
                asked += 1;
            }
        }
        for annotation in list(&dashboard, "/annotations/list") {
            let expr = filled(text(&annotation["target"], "expr"), ".*");
            let series = prometheus.matrix(&expr, started, loaded);
            assert!(series.iter().any(has_number), "{name}: no {}", text(annotation, "name"));
            for label in text(annotation, "titleFormat").split("{{").skip(1).filter_map(|rest| rest.split_once("}}")) {
                assert!(series[0]["metric"][label.0].is_string(), "{name}: no label {} in {series:?}", label.0);
            }
        }
    }
    assert!(asked > 60, "only {asked} queries were asked");
    // Both starts of the service are marked, each at its own time.
    let starts = prometheus.vector_at("changes(process_start_time_seconds{job=\"callsheet\"}[5m])", loaded);
    assert_eq!(starts[0]["value"][1], "1");
    let worker = prometheus.vector_at("callsheet_worker_info", loaded);
    assert!(worker[0]["metric"]["worker_id"].is_string() && worker[0]["metric"]["instance"] == address.as_str());

    // The rules: evaluated without error, and of every metric that they name there is data.
    let mut rules = Vec::new();
    eventually("the rules to be evaluated", async || {
        let data = prometheus.ask("/api/v1/rules", &[]);
        rules = list(&data, "/groups/0/rules").clone();
        rules.iter().all(|rule| rule["health"] == "ok")
    })
    .await;
    assert_eq!(rules.len(), alerts().len());
    for rule in &rules {
        let query = text(rule, "query");
        prometheus.vector_at(query, loaded);
        let found = metric_names(query);
        assert!(!found.is_empty(), "{query} names no metric");
        for metric in found {
            assert!(!prometheus.vector_at(&metric, loaded).is_empty(), "{}: there is no {metric}", text(rule, "name"));
        }
    }
    let firing: BTreeSet<_> =
        rules.iter().filter(|rule| rule["state"] == "firing").map(|rule| text(rule, "name")).collect();
    // A disk of a build machine may well be full; nothing else is wrong but what the load made so.
    let expected = BTreeSet::from(["CallsheetFlowFailing", "CallsheetRunsDiskNearlyFull", "CallsheetHeartbeatsLost"]);
    assert!(firing.is_subset(&expected), "{firing:?}");

    // No metric of the service is shown nowhere.
    for rule in &rules {
        names.extend(metric_names(text(rule, "query")));
    }
    let scraped = get(&address, "/metrics").1;
    let shown = |metric: &str| {
        names.iter().any(|name| name == metric || name.strip_prefix(metric).is_some_and(|rest| rest.starts_with('_')))
    };
    for metric in scraped.lines().filter_map(|line| line.strip_prefix("# TYPE callsheet_")?.split(' ').next()) {
        assert!(shown(&format!("callsheet_{metric}")), "callsheet_{metric} is in no panel and no rule");
    }
    service.go();
    service.until(lasting, JobStatus::Completed).await;
    service.nothing_alive().await;
}

/// The metrics that a query names.
fn metric_names(query: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    query
        .split(|c| !word(c))
        .filter(|name| name.starts_with("callsheet_") || name.starts_with("process_") || *name == "up")
        .map(str::to_owned)
        .collect()
}
