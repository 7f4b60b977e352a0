//! Launches that are got ready while their claims are being committed: what the disk takes for a commit is what a shim needs
//! to come up.
//!
//! Nothing is started before the commit has succeeded, and where nobody knows whether it has, nothing is started by this.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use super::{HeldRun, Launcher};
use crate::process::CommandSpec;
use crate::store::{Claimed, Foreseen, Foresight, Written};

/// The runs that a claim will bring and that can be got ready before it counts.
pub type Readying = Arc<dyn Fn(&Claimed) -> Vec<CommandSpec> + Send + Sync>;

/// What is got ready for the claims of one transaction.
pub struct Ahead {
    launcher: Arc<dyn Launcher>,
    /// For each claim, in their order.
    claims: Vec<Readying>,
}

impl Ahead {
    /// For these claims, whose answers come in this order; `None` where there are none.
    pub fn of(launcher: &Arc<dyn Launcher>, claims: Vec<Readying>) -> Option<Arc<dyn Foresight>> {
        (!claims.is_empty()).then(|| Arc::new(Self { launcher: Arc::clone(launcher), claims }) as Arc<dyn Foresight>)
    }
}

impl Foresight for Ahead {
    fn foresee(&self, answers: &[Written]) -> Option<Box<dyn Foreseen>> {
        let claimed = answers.iter().filter_map(|answer| match answer {
            Written::Claimed(claimed) => Some(claimed.as_ref()),
            _ => None,
        });
        let specs: Vec<CommandSpec> =
            self.claims.iter().zip(claimed).flat_map(|(ready, claimed)| ready(claimed)).collect();
        if specs.is_empty() {
            return None;
        }
        let (launcher, is_over) = (Arc::clone(&self.launcher), Arc::new(AtomicBool::new(false)));
        let over = Arc::clone(&is_over);
        let held = tokio::task::spawn_blocking(move || {
            // What the commit leaves no time for is launched by its actors, side by side.
            let in_time = specs.into_iter().take_while(|_| !over.load(Ordering::Relaxed));
            in_time.filter_map(|spec| launcher.hold(&spec)).collect()
        });
        Some(Box::new(Held { held, is_over }))
    }
}

/// Runs that are being held, or soon will be. Dropped, they are given up.
struct Held {
    held: JoinHandle<Vec<Box<dyn HeldRun>>>,
    /// Whether the commit is.
    is_over: Arc<AtomicBool>,
}

impl Foreseen for Held {
    fn committed(self: Box<Self>, committed: bool) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.is_over.store(true, Ordering::Relaxed);
        Box::pin(async move {
            let held = match self.held.await {
                Ok(held) => held,
                // Whatever was held has been given up, and is launched like any other.
                Err(failure) => return tracing::error!(%failure, "launches were not got ready"),
            };
            if committed {
                held.into_iter().for_each(HeldRun::release);
                return;
            }
            let given_up = tokio::task::spawn_blocking(move || held.into_iter().for_each(HeldRun::give_up));
            if let Err(failure) = given_up.await {
                tracing::error!(%failure, "launches that were got ready were not given up");
            }
        })
    }
}
