//! Strays: commands that the last service has left running and that the database takes for ended, or knows nothing of.
//!
//! Somebody may have changed or removed a row while no service was there to fence its run, or have brought an old copy of the
//! database back. So at its start a service looks which shims live. Each of them counts as one of its flow's runs until the
//! database says that it is one, which makes it recovery's, or until nothing of it is alive. One that the database says is over is
//! killed, like any run whose token is no longer current; one that it has never heard of is not, since it may be the
//! wrong database that was asked. A run that starts later is this service's own, and has an actor that watches its row.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use super::status::ErrorChain;
use super::{AbortOnDrop, Shared, root};
use crate::domain::{FlowType, RunToken};
use crate::process::{Evidence, LivingRun, RunReport};
use crate::store::Standing;

/// How many runs the database is asked about at a time.
const TOGETHER: usize = 500;
/// How long to wait before a stray is looked at again, or the database is asked again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The runs that were found alive and that nobody is known to look after; clones are the same.
#[derive(Clone, Default)]
pub struct Strays(Arc<Mutex<ByFlow>>);

type ByFlow = BTreeMap<FlowType, BTreeMap<RunToken, LivingRun>>;

impl Strays {
    /// Every run that was alive before this service started its first.
    #[must_use]
    pub fn new(living: Vec<LivingRun>) -> Self {
        let strays = Self::default();
        for run in living {
            strays.runs().entry(run.flow.clone()).or_default().insert(run.token.clone(), run);
        }
        strays
    }

    /// How many of a flow's runs the database may not know of.
    #[must_use]
    pub fn of(&self, flow: &FlowType) -> u32 {
        self.runs().get(flow).map_or(0, |runs| u32::try_from(runs.len()).unwrap_or(u32::MAX))
    }

    fn all(&self) -> Vec<LivingRun> {
        self.runs().values().flat_map(BTreeMap::values).cloned().collect()
    }

    fn first_of(&self, flow: &FlowType) -> Option<LivingRun> {
        self.runs().get(flow).and_then(|runs| runs.values().next().cloned())
    }

    fn remove(&self, run: &LivingRun) {
        let mut runs = self.runs();
        if let Some(of_flow) = runs.get_mut(&run.flow) {
            of_flow.remove(&run.token);
        }
        runs.retain(|_, of_flow| !of_flow.is_empty());
    }

    fn runs(&self) -> MutexGuard<'_, ByFlow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds out about each stray, and sees to those that are some; `wake` is called where there may be room for more runs.
pub fn watch(shared: &Arc<Shared>, wake: impl Fn() + Send + Sync + 'static) -> AbortOnDrop {
    let (shared, wake) = (Arc::clone(shared), Arc::new(wake));
    root::keep_running("looking after strays", move || {
        let (shared, wake) = (Arc::clone(&shared), Arc::clone(&wake));
        async move {
            let mut ending = JoinSet::new();
            for runs in shared.strays.all().chunks(TOGETHER) {
                let tokens: Vec<_> = runs.iter().map(|run| run.token.clone()).collect();
                let standings = loop {
                    match shared.store.standings(&tokens).await {
                        Ok(standings) => break standings,
                        Err(error) => {
                            tracing::warn!(error = %ErrorChain(&error), "can't ask the database about the runs that are alive");
                            tokio::time::sleep(LOOK_AGAIN).await;
                        }
                    }
                };
                for run in runs {
                    match standings.get(&run.token) {
                        Some(Standing::Open) => shared.strays.remove(run),
                        standing => {
                            let (shared, run, is_over) = (Arc::clone(&shared), run.clone(), standing.is_some());
                            ending.spawn(async move { until_gone(&shared, &run, is_over).await });
                        }
                    }
                }
                wake();
            }
            while let Some(gone) = ending.join_next().await {
                match gone {
                    Ok(()) => wake(),
                    Err(failure) => tracing::error!(%failure, "a stray is looked at once more"),
                }
            }
            if shared.strays.all().is_empty() {
                std::future::pending::<()>().await;
            }
        }
    })
}

/// Waits until nothing of the run is alive; has it killed where it `is_over`.
async fn until_gone(shared: &Shared, run: &LivingRun, is_over: bool) {
    let (launcher, token) = (&shared.launcher, &run.token);
    let (job, r#type, attempt, run_token) = (run.job.0, &run.flow, run.attempt.0, token.as_str());
    let mut is_told = false;
    loop {
        match launcher.is_over(run.job, run.attempt, token.clone()).await {
            Ok(true) => break,
            Ok(false) if is_told => {}
            Ok(false) if is_over => {
                is_told = true;
                tracing::warn!(job, %r#type, attempt, run_token, "the database says that this run is over; its command is killed and nothing is written about it");
            }
            Ok(false) => {
                // One that was only got ready is gone in a moment.
                tokio::time::sleep(LOOK_AGAIN).await;
                is_told = launcher.is_over(run.job, run.attempt, token.clone()).await.is_ok_and(|over| !over);
                if is_told {
                    shared.health.unknown(r#type, Some(which(run)));
                    tracing::error!(job, %r#type, attempt, run_token, pid = run.pid, "a command runs that the database knows nothing of; it counts as a run of its flow until it ends, or somebody ends it");
                }
            }
            Err(error) => {
                tracing::warn!(job, run_token, error = %ErrorChain(&error), "can't tell whether a run is alive");
            }
        }
        match launcher.inspect(run.job, run.attempt, token.clone()).await {
            Ok(Evidence::Alive(mut link)) => {
                if is_over {
                    link.control.stop_now();
                }
                while let Some(report) = link.reports.recv().await {
                    if let RunReport::NotDying { reason } = report {
                        tracing::error!(
                            job,
                            run_token,
                            reason,
                            "processes of a run outlive SIGKILL; the run has not ended"
                        );
                    }
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(job, run_token, error = %ErrorChain(&error), "can't look into a run"),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    shared.strays.remove(run);
    if is_told && !is_over {
        let more = shared.strays.first_of(r#type);
        shared.health.unknown(r#type, more.as_ref().map(which));
    }
    tracing::info!(job, %r#type, attempt, run_token, "nothing of a run that the database did not know as one is alive any more");
}

fn which(run: &LivingRun) -> String {
    let pid = run.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    format!("attempt {} at job {}{pid}", run.attempt, run.job)
}
