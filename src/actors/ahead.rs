//! Launches that are got ready while their claims are being committed: what the disk takes for a commit is what a shim needs
//! to come up.
//!
//! Nothing is started before the commit has succeeded, and where nobody knows whether it has, nothing is started by this. The
//! one writer of statuses does not wait for what is not ready by then, as on a slow disk; the run's own actor does.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{HeldRun, LaunchGuard, Launcher, Launches};
use crate::process::CommandSpec;
use crate::store::{Claimed, Foreseen, Foresight, Written};

/// How long those that are given up are waited for, so that their claims, asked for again, find nothing of them.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(1);

/// The runs that a claim will bring and that can be got ready before it counts.
pub type Readying = Arc<dyn Fn(&Claimed) -> Vec<CommandSpec> + Send + Sync>;

/// What is got ready for the claims of one transaction.
pub struct Ahead {
    launcher: Arc<dyn Launcher>,
    /// Where it is told which runs are being got ready.
    readying: Launches,
    /// For each claim, in their order.
    claims: Vec<Option<Readying>>,
}

impl Ahead {
    /// For these claims, whose answers come in this order; `None` where nothing is got ready for any.
    pub fn of(
        launcher: &Arc<dyn Launcher>,
        readying: &Launches,
        claims: Vec<Option<Readying>>,
    ) -> Option<Arc<dyn Foresight>> {
        let (launcher, readying) = (Arc::clone(launcher), readying.clone());
        let any = claims.iter().any(Option::is_some);
        any.then(|| Arc::new(Self { launcher, readying, claims }) as Arc<dyn Foresight>)
    }
}

impl Foresight for Ahead {
    fn foresee(&self, answers: &[Written]) -> Option<Box<dyn Foreseen>> {
        let claimed = answers.iter().filter_map(|answer| match answer {
            Written::Claimed(claimed) => Some(claimed.as_ref()),
            _ => None,
        });
        let of = |(ready, claimed): (&Option<Readying>, _)| ready.as_ref().map(|ready| ready(claimed));
        let specs: Vec<CommandSpec> = self.claims.iter().zip(claimed).filter_map(of).flatten().collect();
        if specs.is_empty() {
            return None;
        }
        let (launcher, is_over) = (Arc::clone(&self.launcher), Arc::new(AtomicBool::new(false)));
        let (ready, held) = mpsc::unbounded_channel();
        let over = Arc::clone(&is_over);
        // Before anybody can know of the claims: whoever launches such a run waits until this is over.
        let specs: Vec<_> = specs.into_iter().map(|spec| (self.readying.enter(spec.token.clone()), spec)).collect();
        tokio::task::spawn_blocking(move || {
            for (guard, spec) in specs {
                // What the commit leaves no time for is launched by its actors, side by side.
                if over.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(run) = launcher.hold(&spec) {
                    // Given up where nobody waits for it any more.
                    drop(ready.send(Ready { run, guard }));
                }
            }
        });
        Some(Box::new(Held { held, is_over }))
    }
}

/// A run that is held. Its owner waits for the guard, which goes after the run is released or given up.
struct Ready {
    run: Box<dyn HeldRun>,
    guard: LaunchGuard,
}

impl Ready {
    fn release(self) {
        self.run.release();
        drop(self.guard);
    }

    fn give_up(self) {
        self.run.give_up();
        drop(self.guard);
    }
}

/// Runs that are being held, or soon will be. Dropped, they are given up.
struct Held {
    held: mpsc::UnboundedReceiver<Ready>,
    /// Whether the commit is.
    is_over: Arc<AtomicBool>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl Foreseen for Held {
    fn committed(mut self: Box<Self>, committed: bool) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.is_over.store(true, Ordering::Relaxed);
        Box::pin(async move {
            if committed {
                loop {
                    match self.held.try_recv() {
                        Ok(ready) => ready.release(),
                        Err(mpsc::error::TryRecvError::Disconnected) => return,
                        Err(mpsc::error::TryRecvError::Empty) => break,
                    }
                }
                // At most one is under way still.
                tokio::spawn(async move {
                    while let Some(ready) = self.held.recv().await {
                        ready.release();
                    }
                });
                return;
            }
            let given_up = tokio::spawn(async move {
                let mut given_up = JoinSet::new();
                while let Some(ready) = self.held.recv().await {
                    given_up.spawn_blocking(move || ready.give_up());
                }
                while let Some(gone) = given_up.join_next().await {
                    if let Err(failure) = gone {
                        tracing::error!(%failure, "a launch that was got ready was not given up");
                    }
                }
            });
            // It goes on without anybody who waits.
            drop(timeout_at(Instant::now() + GIVEN_UP_WITHIN, given_up).await);
        })
    }
}
