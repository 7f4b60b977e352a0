//! Callsheet turns rows of a `jobs` table into supervised processes that survive a crash or upgrade of the service.
//!
//! # One job, end to end
//!
//! Somebody commits `INSERT INTO jobs (type, identifier) VALUES ('SCREEN_REPLACEMENT_GENERATION', 'abc')`. The
//! [`store`] notices (a file watch on SQLite, NOTIFY on PostgreSQL) and the root actor wakes the dispatchers; the
//! scheduler's minute tick is the safety net behind that. The flow's [`DispatcherActor`] sends a claim to the
//! [`StatusActor`], which writes everything that has queued up in one transaction: the row is INQUEUE, with a fresh
//! run token. [`domain::admission`] decides whether it can be run as asked. A [`JobActor`] under the job's workflow
//! id has [`process`] launch the command: a run directory with a locked journal is made, and a helper process forks
//! a *shim*, which starts the command, reads its output into files, holds it to its time, ends whatever it leaves
//! behind, and writes the verdict into the journal. (All but the command is got ready while the claim is being committed,
//! [`actors::ahead`]; the shim waits for word of that.) Once the exec has succeeded the row is PROGRESS; a
//! [`HeartbeatActor`] confirms it and learns of cancel requests. The verdict comes back over the shim's socket,
//! [`domain::run::conclude`] turns it into outcome, next status and retry time, and the StatusActor writes that,
//! conditional on the run token.
//!
//! SIGHUP has [`app`] read the configuration again; the root hands each flow its settings, and runs end as they were begun.
//!
//! If the service dies anywhere on this way, the shim and its command do not notice. The next service's
//! [`RecoveryActor`] gives every open row a JobActor, which finds out what became of the command: its shim holds the
//! lock (taken over), the journal has a verdict (finished while away), no command was ever started (back to PENDING),
//! or nobody can say (lost).
//!
//! # Modules, in reading order
//!
//! [`domain`] decides; [`clock`] and [`config`] say when and how; [`process`] and [`store`] do, each the only place that
//! names its side of the outside; [`metrics`] names every metric, [`telemetry`] sends traces, and [`outgoing`] speaks to webhooks; [`actors`] connect all
//! of it; [`http`] and [`cli`] show it; [`app`] builds it, and tells the [`service_manager`]. A module uses those before it
//! and none after it. [`crash`] marks, for tests only, where a process may die.
//!
//! # What is always so
//!
//! - `domain` does no I/O, reads no clock and knows no actor.
//! - No actor owns a process, and no process has the service as the only one who knows how it ended.
//! - Nothing is written about a run but on the condition that its token is still current.
//! - A claim counts the open runs of its flow in its own transaction; what any actor remembers decides nothing.
//! - Every way in which a run can end passes through [`domain::run::conclude`] before anything is written.
//! - A row is settled by evidence (a lock, a journal), never by its age.
//! - No shell is involved, and a value from a row fills exactly one argument.
//!
//! [`DispatcherActor`]: actors::dispatcher::DispatcherActor
//! [`StatusActor`]: actors::status::StatusActor
//! [`JobActor`]: actors::job::JobActor
//! [`HeartbeatActor`]: actors::heartbeat::HeartbeatActor
//! [`RecoveryActor`]: actors::recovery::RecoveryActor

pub mod actors;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crash;
pub mod domain;
pub mod http;
pub mod identity;
pub mod metrics;
pub mod outgoing;
pub mod process;
pub mod service_manager;
pub mod store;
pub mod telemetry;
