//! What is written, logged, counted and traced of a run: its start and its end.

use std::time::Duration;

use ractor::ActorRef;
use serde_json::{Value, json};

use super::{JobMessage, JobStart, JobState};
use crate::actors::retention::RetentionMessage;
use crate::actors::status::{Pending, StatusMessage};
use crate::actors::{Reply, Transition};
use crate::domain::run::{Conclusion, Next, RunEnd, RunEvent, RunPhase, Said, Verdict};
use crate::domain::trace::{JobTrace, RunPart};
use crate::domain::{JobStatus, Outcome};
use crate::process::upkeep::{RunDirectory, is_worth_compressing};
use crate::store::{ProgressNote, Settlement, Started, Write, Written};
use crate::telemetry::Span;

impl JobState {
    pub(super) fn note_dispatch(&self) {
        if let (JobStart::Launch { noticed, .. }, Some((_, started))) = (&self.args.start, self.started) {
            // The shim takes its time to tell of it.
            let since = self.args.shared.clock.now().since(started);
            self.args.shared.metrics.dispatched(&self.args.flow.flow, noticed.elapsed().saturating_sub(since));
        }
    }

    fn start_write(&self) -> Option<Write> {
        let (pid, started_time) = self.started?;
        Some(Write::Started(Started {
            job: self.args.run.job,
            token: self.args.run.token.clone(),
            attempt: self.args.run.attempt,
            worker: self.args.shared.worker.clone(),
            pid,
            started_time,
            slot: self.slot.clone(),
        }))
    }

    pub(super) fn record_start(&mut self, myself: &ActorRef<JobMessage>) {
        if self.start_recorded || self.phase == RunPhase::Settling {
            return;
        }
        let write = self.start_write().into_iter().collect();
        self.args.shared.status.cast(StatusMessage::Write(write, Reply::to(myself, JobMessage::StartRecorded)));
    }

    pub(super) fn start_recorded(&mut self, myself: &ActorRef<JobMessage>, answer: Option<Vec<Written>>) {
        match answer.as_deref() {
            // Where the start is not written, the settlement writes it.
            None if self.phase == RunPhase::Settling => {}
            None => self.ask_again(myself, JobMessage::RecordStart),
            Some([Written::Fenced]) => self.step(myself, RunEvent::OwnershipLost),
            Some(_) => {
                self.start_recorded = true;
                self.note_start();
            }
        }
    }

    fn note_start(&mut self) {
        if self.start_noted || self.args.run.status == JobStatus::Progress {
            return;
        }
        self.start_noted = true;
        let Some((_, started_time)) = self.started else { return };
        self.args.shared.metrics.run_started(&self.args.flow.flow, started_time.since(self.args.run.runnable_since));
        self.note(JobStatus::InQueue, JobStatus::Progress, "its command runs");
    }

    fn note(&self, from: JobStatus, to: JobStatus, message: &str) {
        self.args.shared.note(&Transition {
            flow: &self.args.flow.flow,
            job: self.args.run.job,
            attempt: self.args.run.attempt,
            token: Some(&self.args.run.token),
            from,
            to,
            message,
        });
    }

    /// Writes the end without the dispatcher, which may be what could not do it.
    pub(super) fn record_end(&mut self, myself: &ActorRef<JobMessage>) {
        if let Some(end) = self.pending_end(myself) {
            self.args.shared.status.cast(StatusMessage::WriteTogether(vec![end]));
            (self.args.slot_freed)(self.args.run.job);
        }
    }

    pub(super) fn pending_end(&self, myself: &ActorRef<JobMessage>) -> Option<Pending> {
        let end = Write::Settle(self.settlement()?);
        let writes = self.last_words().map(Write::Progress).into_iter().chain([end]).collect();
        Some(Pending { writes, reply: Reply::to(myself, JobMessage::EndRecorded), ahead: None })
    }

    /// What the command said last: while nobody was there to hear it, maybe.
    fn last_words(&self) -> Option<ProgressNote> {
        let Some((RunEnd::Ended(verdict), ..)) = &self.end else { return None };
        let Said { progress, status_message } = verdict.said.as_deref()?.clone();
        Some(ProgressNote { token: self.args.run.token.clone(), progress, status_message })
    }

    fn settlement(&self) -> Option<Settlement> {
        let (end, conclusion, now) = self.end.as_ref()?;
        let verdict = if let RunEnd::Ended(verdict) = end { Some(verdict) } else { None };
        Some(Settlement {
            job: self.args.run.job,
            token: self.args.run.token.clone(),
            attempt: self.args.run.attempt,
            worker: self.args.shared.worker.clone(),
            next: conclusion.next,
            outcome: conclusion.outcome,
            error: conclusion.error.clone(),
            exit_code: conclusion.exit_code,
            signal: conclusion.signal,
            pid: self.started.map(|(pid, _)| pid),
            started_time: self.started.map(|(_, time)| time),
            completed_time: verdict.map_or(*now, |verdict| verdict.completed_time),
            execution_ms: verdict.map(Verdict::execution_ms),
            usage: verdict.map(|verdict| verdict.usage),
            message: Some(self.end_message(conclusion)),
            lapsed: false,
            slot: self.slot.clone(),
        })
    }

    fn end_message(&self, conclusion: &Conclusion) -> String {
        let what = conclusion.error.as_deref().and_then(|error| error.lines().next());
        match (conclusion.next, what) {
            (Next::Final(JobStatus::Completed), _) => "the command ended with exit code 0".to_owned(),
            (Next::Requeue, _) => "the command was never started; the attempt does not count".to_owned(),
            (Next::RetryAfter(_), what) => format!(
                "attempt {} of {} failed and will be retried: {}",
                self.args.run.attempt,
                self.args.run.attempts_before.saturating_add(self.args.run.maximum_attempts),
                what.unwrap_or_default()
            ),
            (Next::Final(_), what) => what.unwrap_or_default().to_owned(),
        }
    }

    pub(super) fn end_recorded(&mut self, myself: &ActorRef<JobMessage>, answer: Option<Vec<Written>>) {
        let Some(answers) = answer else {
            self.ask_again(myself, JobMessage::RecordEnd);
            return;
        };
        if let Some((end, conclusion, _)) = &self.end {
            let (end, conclusion) = (end.clone(), conclusion.clone());
            if matches!(answers.last(), Some(Written::Fenced)) {
                tracing::warn!("the end of a run that is no longer current was not written");
            } else {
                self.note_end(&end, &conclusion);
            }
        }
        self.step(myself, RunEvent::Settled);
    }

    fn note_end(&mut self, end: &RunEnd, conclusion: &Conclusion) {
        if self.started.is_some() {
            self.note_start();
        }
        let flow = &self.args.flow.flow;
        if let (Some(outcome), RunEnd::Ended(verdict)) = (conclusion.outcome, end) {
            self.args.shared.metrics.run_ended(flow, outcome, verdict.execution, Some(verdict.usage));
            if is_worth_compressing(verdict.usage) {
                let run = &self.args.run;
                let directory = RunDirectory::of(run.job, run.attempt, &run.token, self.args.shared.clock.now());
                self.args.shared.retention.cast(RetentionMessage::RunEnded(directory));
            }
            if let Some(timeout) = conclusion.timeout {
                self.args.shared.metrics.run_timed_out(flow, timeout);
            }
        } else if let Some(outcome @ (Outcome::SpawnFailed | Outcome::Lost)) = conclusion.outcome {
            let ran = self.started.map_or(Duration::ZERO, |(_, started)| self.args.shared.clock.now().since(started));
            self.args.shared.metrics.run_ended(flow, outcome, ran, None);
        }
        let from = if self.started.is_some() { JobStatus::Progress } else { self.args.run.status };
        let to = conclusion.next.status();
        self.note(from, to, &self.end_message(conclusion));
        self.export_trace(end, conclusion, to);
    }

    /// What this attempt was, and the whole job where it has ended; a parent is told after its children.
    fn export_trace(&self, end: &RunEnd, conclusion: &Conclusion, to: JobStatus) {
        let (run, shared) = (&self.args.run, &self.args.shared);
        if !shared.telemetry.is_on() || !run.trace.sampled {
            return;
        }
        let flow = self.args.flow.flow.as_str();
        let now = shared.clock.now();
        let ended = if let RunEnd::Ended(verdict) = end { verdict.completed_time } else { now };
        let started = self.started.map(|(_, started)| started);
        let error = || conclusion.error.as_deref().and_then(|error| error.lines().next()).map(str::to_owned);
        let attempt: Vec<(&'static str, Value)> = vec![
            ("callsheet.job.id", json!(run.job.0)),
            ("callsheet.job.type", json!(flow)),
            ("callsheet.attempt", json!(run.attempt.0)),
            ("callsheet.run.token", json!(run.token.as_str())),
            ("callsheet.worker.id", json!(shared.worker.as_str())),
        ];
        let part = |part, name: &str, start, end, error, more: Vec<(&'static str, Value)>| Span {
            trace: run.trace.id,
            id: JobTrace::part(&run.token, part),
            parent: Some(run.trace.job),
            state: run.trace.state.clone(),
            name: name.to_owned(),
            start,
            end,
            attributes: attempt.iter().cloned().chain(more).collect(),
            error,
        };
        let mut spans = vec![part(RunPart::Queued, "queued", run.runnable_since, run.claimed_time, None, Vec::new())];
        let failed_launch = matches!(end, RunEnd::SpawnFailed(_)).then(error).flatten();
        if started.is_some() || failed_launch.is_some() {
            let launched = started.unwrap_or(now);
            spans.push(part(RunPart::Launch, "launch", run.claimed_time, launched, failed_launch, Vec::new()));
        }
        if let Some((pid, started)) = self.started {
            let usage = if let RunEnd::Ended(verdict) = end { Some(verdict.usage) } else { None };
            let more = vec![
                ("process.pid", json!(pid)),
                ("process.exit.code", json!(conclusion.exit_code)),
                ("callsheet.signal", json!(conclusion.signal)),
                ("callsheet.outcome", json!(conclusion.outcome.map(Outcome::as_str))),
                ("callsheet.cpu.user.seconds", json!(usage.map(|usage| usage.user_cpu.as_secs_f64()))),
                ("callsheet.cpu.system.seconds", json!(usage.map(|usage| usage.system_cpu.as_secs_f64()))),
                ("callsheet.max_rss.bytes", json!(usage.map(|usage| usage.max_rss_bytes))),
            ];
            spans.push(part(RunPart::Run, "run", started, ended, error(), more));
        }
        if let Next::Final(_) = conclusion.next {
            spans.push(Span {
                trace: run.trace.id,
                id: run.trace.job,
                parent: run.trace.parent,
                state: run.trace.state.clone(),
                name: format!("job {flow}"),
                start: run.created_time,
                end: ended,
                attributes: vec![
                    ("callsheet.job.id", json!(run.job.0)),
                    ("callsheet.job.type", json!(flow)),
                    ("callsheet.job.identifier", json!(run.identifier)),
                    ("callsheet.job.status", json!(to.as_str())),
                    ("callsheet.workflow.id", json!(self.args.flow.flow.workflow_id(run.job))),
                    ("callsheet.attempts", json!(run.attempt.0)),
                ],
                error: error(),
            });
        }
        shared.telemetry.export(spans);
    }
}
