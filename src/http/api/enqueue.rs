//! Enqueueing: one job, or up to ten thousand in one transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{HeaderMap, HeaderValue, LOCATION};
use axum::response::{IntoResponse, Response};
use chrono::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::document;
use super::query::shown;
use crate::config::FlowConfig;
use crate::domain::retry::{MOST_ATTEMPTS, attempts_in_range};
use crate::domain::trace::{self, TraceContext};
use crate::domain::{FlowType, JobId, Timestamp, payload};
use crate::http::json::{EnqueuedJson, JobJson};
use crate::http::problem::{FieldError, Problem};
use crate::http::{App, Operator, body};
use crate::store::{Due, Enqueued, NewJob};

/// CONTRACT §5.
const LARGEST_BODY: usize = 16 << 20;
const MOST_JOBS: usize = 10_000;
/// More mistakes than these help nobody.
const MOST_ERRORS: usize = 50;
const LONGEST_KEY: usize = 255;
const MOST_AWAITED: usize = 1000;
/// What is not larger than this needs no turn: eight hundred of them are not many.
const SMALL_BODY: usize = 64 << 10;

/// A job to be enqueued.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct NewJobJson {
    /// Its type: a flow of this service.
    #[serde(rename = "type")]
    job_type: String,
    /// What it is about; the flow's `identifier_pattern` says which it takes.
    #[schema(max_length = 1024)]
    identifier: String,
    /// Any JSON of at most 1 MiB, kept as it is written.
    #[serde(default)]
    #[schema(value_type = Option<Object>, nullable)]
    payload: Option<Box<RawValue>>,
    /// Higher first; 0 where nothing is said.
    #[serde(default)]
    priority: Option<i32>,
    /// When it may start; at once where nothing is said.
    #[serde(default)]
    #[schema(format = DateTime)]
    run_at: Option<String>,
    /// At least 1; the flow's where nothing is said.
    #[serde(default)]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 2_147_483_647)]
    maximum_attempts: Option<serde_json::Number>,
    /// While an open job of the type has it, no second one is made.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255)]
    unique_key: Option<String>,
    /// The trace that it is a part of (W3C Trace Context). Where nothing is said, the payload's key of this name, and else
    /// the request's header.
    #[serde(default)]
    #[schema(pattern = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")]
    traceparent: Option<String>,
    /// What goes along with `traceparent`.
    #[serde(default)]
    #[schema(max_length = 512)]
    tracestate: Option<String>,
    /// The ids of jobs that must be COMPLETED before it may start; where one ends otherwise, it ends as ERROR.
    #[serde(default)]
    #[schema(max_items = 1000)]
    after: Option<Vec<i64>>,
}

/// One job, or up to 10,000.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the description; the body is read by its first character, for the sake of its errors")]
enum NewJobs {
    /// One.
    One(NewJobJson),
    /// Several, all or none.
    Many(Vec<NewJobJson>),
}

/// What came of it: one job, or as many as were asked for, in their order.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum EnqueuedJobs {
    /// One.
    One(Box<EnqueuedJson>),
    /// Several.
    Many(Vec<EnqueuedJson>),
}

/// Enqueue one job, or up to 10,000 in one transaction
///
/// Safe to repeat where the jobs have a `unique_key`: while an open job of the type has that key, it is the answer, and
/// nothing is added. Where anything is wrong with any of them, nothing is enqueued.
#[utoipa::path(
    post, path = "/api/v1/jobs", tag = "jobs", operation_id = "enqueue_jobs",
    params(
        ("traceparent" = Option<String>, Header, description = "The trace that the jobs are a part of, where neither they nor their payloads \
            name one (W3C Trace Context); one that is not valid is ignored"),
        ("tracestate" = Option<String>, Header, description = "What goes along with it, the same"),
    ),
    request_body(content = NewJobs, content_type = "application/json"),
    responses(
        (status = 201, description = "Enqueued", body = EnqueuedJobs),
        (status = 200, description = "Open jobs have these unique keys already; nothing was added", body = EnqueuedJobs),
        (status = 408, description = "The body came too slowly", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is larger than 16 MiB", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not `application/json`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A value can't be used; `errors` says which", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn enqueue(
    State(app): State<App>,
    Operator(who): Operator,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    document::expect_json(&headers)?;
    let turn = if body::is_at_most(&headers, SMALL_BODY) { None } else { Some(app.large_body_turn().await?) };
    let bytes = body::read(&headers, body, LARGEST_BODY).await?;
    let (written, several) = parse(&bytes)?;
    let new = validate(&written, several, &app.config().flows, in_headers(&headers).as_ref())?;
    let after = written.iter().enumerate().filter_map(|(place, job)| Some((place, job.after()?))).collect();
    drop((written, bytes));
    // The database may take its time; what is left by now is what was asked for.
    drop(turn);
    let enqueued = app.store_for(&who).enqueue_after(&new, &after).await?;
    let mut jobs = answered(&app, &enqueued).await?;
    let status = if enqueued.iter().all(|job| job.existing) { StatusCode::OK } else { StatusCode::CREATED };
    if several {
        return Ok((status, Json(EnqueuedJobs::Many(jobs))).into_response());
    }
    let job = jobs.pop().ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "somebody has deleted the job at once"))?;
    let mut response = (status, Json(EnqueuedJobs::One(Box::new(job)))).into_response();
    if let Some(location) =
        enqueued.first().and_then(|job| HeaderValue::try_from(format!("/api/v1/jobs/{}", job.id)).ok())
    {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// The jobs of a body, and whether it is an array.
fn parse(bytes: &[u8]) -> Result<(Vec<NewJobJson>, bool), Problem> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let several = bytes.trim_ascii_start().first() == Some(&b'[');
    let jobs = if several {
        serde_path_to_error::deserialize(&mut json)
    } else {
        serde_path_to_error::deserialize(&mut json).map(|job| vec![job])
    };
    let jobs: Vec<NewJobJson> = jobs.map_err(|error| document::unreadable(&error))?;
    document::end(&mut json)?;
    let wrong = |detail: String| {
        let error = FieldError { field: "body".to_owned(), pointer: Some("#".to_owned()), detail };
        Err(Problem::invalid(StatusCode::UNPROCESSABLE_ENTITY, vec![error]))
    };
    match jobs.len() {
        0 => wrong("there is no job in it".to_owned()),
        1..=MOST_JOBS => Ok((jobs, several)),
        count => wrong(format!("there are {count} jobs in it; at most {MOST_JOBS} are taken at once")),
    }
}

pub(in crate::http) type Flows = BTreeMap<FlowType, Arc<FlowConfig>>;

/// The trace that a request is a part of, by its headers; `None` where they are not as W3C Trace Context has them.
fn in_headers(headers: &HeaderMap) -> Option<TraceContext> {
    let text = |name: &str| {
        let values: Option<Vec<&str>> = headers.get_all(name).iter().map(|value| value.to_str().ok()).collect();
        values.filter(|values| !values.is_empty())
    };
    // There is one parent, and a state may come in several headers.
    let [parent] = text("traceparent")?[..] else { return None };
    TraceContext::read(Some(parent), text("tracestate").map(|states| states.join(",")).as_deref())
}

/// The jobs, each fit for its flow; or everything that is wrong with any of them. `asked_by` is what those are a part of
/// that don't say.
fn validate(
    written: &[NewJobJson],
    several: bool,
    flows: &Flows,
    asked_by: Option<&TraceContext>,
) -> Result<Vec<NewJob>, Problem> {
    let mut errors = Vec::new();
    let mut jobs = Vec::with_capacity(written.len());
    for (index, job) in written.iter().enumerate() {
        let place = if several { format!("#/{index}") } else { "#".to_owned() };
        match job.validated(flows, asked_by) {
            Ok(job) => jobs.push(job),
            Err(found) => errors.extend(found.into_iter().map(|(field, detail)| FieldError {
                field: field.to_owned(),
                pointer: Some(format!("{place}/{field}")),
                detail,
            })),
        }
        if errors.len() >= MOST_ERRORS {
            break;
        }
    }
    if errors.is_empty() { Ok(jobs) } else { Err(Problem::invalid(StatusCode::UNPROCESSABLE_ENTITY, errors)) }
}

impl NewJobJson {
    /// The jobs that it waits for; `None` where there are none.
    fn after(&self) -> Option<Vec<JobId>> {
        let after = self.after.as_ref().filter(|after| !after.is_empty())?;
        Some(after.iter().copied().map(JobId).collect())
    }

    /// What is written there, where it can be.
    fn maximum_attempts(&self) -> Option<u32> {
        attempts_in_range(self.maximum_attempts.as_ref()?.as_i64()?)
    }

    fn validated(&self, flows: &Flows, asked_by: Option<&TraceContext>) -> Result<NewJob, Vec<(&'static str, String)>> {
        let flow = self.job_type.parse::<FlowType>().ok().and_then(|flow| flows.get(&flow));
        let written = Written {
            job_type: &self.job_type,
            identifier: &self.identifier,
            payload: self.payload.as_deref().map(RawValue::get),
            unique_key: self.unique_key.as_deref(),
        };
        let mut errors = written.faults(flows);
        let due = match self.run_at.as_deref().map(DateTime::parse_from_rfc3339) {
            None => Due::After(std::time::Duration::ZERO),
            Some(Ok(time)) => Due::At(Timestamp::from_unix_millis(time.timestamp_millis())),
            Some(Err(_)) => {
                errors.push(("run_at", "a time is written as in 2026-11-23T08:00:00Z (RFC 3339)".to_owned()));
                Due::After(std::time::Duration::ZERO)
            }
        };
        let maximum_attempts = self.maximum_attempts();
        if maximum_attempts.is_none() && self.maximum_attempts.is_some() {
            errors.push(("maximum_attempts", format!("it is a whole number from 1 to {MOST_ATTEMPTS}")));
        }
        let payload = self.payload.as_deref().map(RawValue::get);
        let trace = match trace::checked(self.traceparent.as_deref(), self.tracestate.as_deref()) {
            // What the payload says is left to whoever claims the job.
            Ok(None) => {
                asked_by.filter(|_| payload.and_then(|text| trace::in_payload(text.as_bytes())).is_none()).cloned()
            }
            Ok(trace) => trace,
            Err(fault) => {
                errors.push((fault.field(), format!("it is {fault}")));
                None
            }
        };
        if self.after.as_ref().is_some_and(|after| after.len() > MOST_AWAITED) {
            errors.push(("after", format!("a job waits for at most {MOST_AWAITED} others")));
        }
        match flow {
            Some(flow) if errors.is_empty() => Ok(NewJob {
                flow: flow.flow.clone(),
                identifier: self.identifier.clone(),
                payload: payload.map(ToOwned::to_owned),
                priority: self.priority.unwrap_or(0),
                due,
                maximum_attempts,
                unique_key: self.unique_key.clone(),
                trace,
            }),
            _ => Err(errors),
        }
    }
}

/// What both the API and the form of the page take as text.
pub(in crate::http) struct Written<'a> {
    pub(in crate::http) job_type: &'a str,
    pub(in crate::http) identifier: &'a str,
    pub(in crate::http) payload: Option<&'a str>,
    pub(in crate::http) unique_key: Option<&'a str>,
}

impl Written<'_> {
    /// What is wrong with it: each field, and a sentence.
    pub(in crate::http) fn faults(&self, flows: &Flows) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        match self.job_type.parse::<FlowType>().ok().and_then(|flow| flows.get(&flow)) {
            None => faults.push(("type", unknown_type(self.job_type, flows))),
            Some(flow) => {
                if let Err(refusal) = flow.identifier_pattern.check(self.identifier) {
                    faults.push(("identifier", refusal.to_string()));
                }
            }
        }
        if let Some(key) = self.unique_key {
            if key.is_empty() || key.len() > LONGEST_KEY {
                faults.push(("unique_key", format!("a key has 1 to {LONGEST_KEY} bytes")));
            } else if key.contains('\0') {
                faults.push(("unique_key", "a NUL character can't be kept".to_owned()));
            }
        }
        if let Some(Err(refusal)) = self.payload.map(payload::check) {
            faults.push(("payload", format!("it {refusal}")));
        }
        faults
    }
}

fn unknown_type(name: &str, flows: &Flows) -> String {
    let known: Vec<&str> = flows.keys().map(FlowType::as_str).collect();
    match known.iter().find(|known| known.eq_ignore_ascii_case(name)) {
        Some(near) => format!("no flow has the type {}; did you mean {near}? Upper and lower case count", shown(name)),
        None if known.is_empty() => "this service has no flows".to_owned(),
        None => format!("no flow of this service has the type {}; there are {}", shown(name), known.join(", ")),
    }
}

/// The rows as they are now, in the order in which they were asked for.
async fn answered(app: &App, enqueued: &[Enqueued]) -> Result<Vec<EnqueuedJson>, Problem> {
    let ids: Vec<JobId> = enqueued.iter().map(|job| job.id).collect();
    let rows = app.store().jobs(&ids).await?;
    let rows: BTreeMap<JobId, _> = rows.iter().map(|row| (row.id, row)).collect();
    // One that somebody has deleted since is not there to be shown.
    let found = enqueued.iter().filter_map(|job| Some((job, *rows.get(&job.id)?)));
    Ok(found.map(|(job, row)| EnqueuedJson { job: JobJson::from(row), existing: job.existing }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flows() -> Flows {
        let text = "[flows.ONE]\ncommand = [\"true\"]\n";
        crate::config::Config::parse(text, std::path::Path::new("/callsheet.toml")).unwrap().flows
    }

    fn errors(body: &str) -> Vec<String> {
        let problem = match parse(body.as_bytes()).and_then(|(jobs, several)| validate(&jobs, several, &flows(), None))
        {
            Ok(jobs) => panic!("{jobs:?}"),
            Err(problem) => serde_json::to_value(problem).unwrap(),
        };
        let error = |error: &serde_json::Value| {
            let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}: {}", text("pointer"), text("field"), text("detail"))
        };
        match problem["errors"].as_array() {
            Some(errors) => errors.iter().map(error).collect(),
            None => vec![format!("{}: {}", problem["status"], problem["detail"].as_str().unwrap())],
        }
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let body = r#"[{"type": "ONE", "identifier": "a"}, {"type": "one", "identifier": "b", "unique_key": ""}, {
            "type": "ONE", "identifier": "-x", "run_at": "soon", "maximum_attempts": 0}]"#;
        let found = errors(body);
        let starts = [
            "#/1/type type: no flow has the type \"one\"; did you mean ONE?",
            "#/1/unique_key unique_key: a key has 1 to 255 bytes",
            "#/2/identifier identifier: the identifier \"-x\" does not match",
            "#/2/run_at run_at: a time is written as",
            "#/2/maximum_attempts maximum_attempts: it is a whole number",
        ];
        assert_eq!(found.len(), starts.len(), "{found:#?}");
        assert!(found.iter().zip(starts).all(|(found, start)| found.starts_with(start)), "{found:#?}");
    }

    #[test]
    fn what_attempts_there_may_be_is_said_alike_of_every_other_number() {
        for wrong in ["-1", "0", "1.5", "2147483648", "1e99"] {
            let body = format!(r#"{{"type": "ONE", "identifier": "a", "maximum_attempts": {wrong}}}"#);
            assert_eq!(
                errors(&body),
                ["#/maximum_attempts maximum_attempts: it is a whole number from 1 to 2147483647"],
                "{wrong}"
            );
        }
        let fine = r#"{"type": "ONE", "identifier": "a", "maximum_attempts": 2147483647}"#;
        let (jobs, several) = parse(fine.as_bytes()).unwrap();
        assert_eq!(validate(&jobs, several, &flows(), None).unwrap()[0].maximum_attempts, Some(2_147_483_647));
    }

    #[test]
    fn what_is_no_such_json_is_told_with_its_place() {
        for (body, start) in [
            ("", "400: the body is no JSON: EOF"),
            ("{", "400: the body is no JSON: EOF"),
            ("{} x", "#/ "),
            (
                r#"{"type": "ONE", "identifier": 7}"#,
                "#/identifier identifier: invalid type: integer `7`, expected a string",
            ),
            (r#"[{"type": "ONE", "identifier": "a"}, {"type": "ONE"}]"#, "#/1 identifier: missing field `identifier`"),
            (r#"{"type": "ONE", "identifier": "a", "priorty": 1}"#, "#/priorty priorty: unknown field `priorty`"),
            (r#"{"type": "ONE", "identifier": "a", "priority": 2147483648}"#, "#/priority priority: invalid value"),
            (
                r#"{"type": "ONE", "identifier": "a", "payload": {"x": "\ud800"}}"#,
                "#/payload payload: it is JSON that can't be read: ",
            ),
            (r#"{"type": "ONE", "identifier": "a"} x"#, "400: the body is no JSON: trailing characters"),
            ("[]", "# body: there is no job in it"),
            ("7", "# body: invalid type: integer `7`, expected an object"),
            (
                r#"{"type": "ONE", "identifier": "a", "priority": "x, expected i32"}"#,
                "#/priority priority: invalid type: string \"x, expected i32\", expected a whole number from -2147483648",
            ),
        ] {
            let found = errors(body);
            // The second of these is complained about as an object that lacks its fields.
            assert!(body == "{} x" || found[0].starts_with(start), "{body}: {found:?}");
        }
        let deep =
            format!(r#"[{{"type": "ONE", "identifier": "a", "payload": {}{}}}]"#, "[".repeat(9999), "]".repeat(9999));
        assert!(errors(&deep)[0].starts_with("#/0/payload payload: it is JSON that can't be read: recursion limit"));
        let many = format!("[{}]", vec![r#"{"type": "ONE", "identifier": "a"}"#; MOST_JOBS + 1].join(","));
        assert_eq!(errors(&many), ["# body: there are 10001 jobs in it; at most 10000 are taken at once"]);
    }

    #[test]
    fn a_payload_is_kept_as_it_is_written() {
        let body = r#"{"type": "ONE", "identifier": "a", "payload": {"b": 1.50,  "a": 12345678901234567890123}}"#;
        let (jobs, several) = parse(body.as_bytes()).unwrap();
        let jobs = validate(&jobs, several, &flows(), None).unwrap();
        assert_eq!(jobs[0].payload.as_deref(), Some(r#"{"b": 1.50,  "a": 12345678901234567890123}"#));
    }
}
