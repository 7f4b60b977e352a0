//! The slots of this worker: which run holds which device.
//!
//! A dispatcher asks for slots before it claims, so that it claims no more rows than there are free ones; each is held in
//! the name of a run token, and belongs to the run's JobActor from that one's start until nothing of the run is alive.
//! Where nobody looks after a run any more (its JobActor has died, or the service that had it), its slot is held until
//! the run's journal says that it is over: a successor takes it over, or [`watch()`] gives it back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::status::ErrorChain;
use super::{Launcher, Launches};
use crate::domain::slots::{Slot, Slots};
use crate::domain::{Attempt, FlowType, JobId, RunToken};
use crate::process::LastHolder;

/// How often it is looked whether a run that nobody looks after is over.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Who holds a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    /// A claim of this flow is under way, or its run has no JobActor yet.
    Asked(FlowType),
    /// A JobActor sees to the run.
    Owned(JobId, Attempt),
    /// Nobody does.
    Left(JobId, Attempt),
}

/// All slots of a worker; clones are the same.
#[derive(Clone)]
pub struct SlotPool(Arc<Inner>);

struct Inner {
    held: Mutex<BTreeMap<Slot, (RunToken, Held)>>,
    /// Told whenever a slot is given back, and whenever one is left.
    freed: watch::Sender<()>,
    left: watch::Sender<()>,
}

impl SlotPool {
    /// The slots as the last service has left them.
    #[must_use]
    pub fn new(last: Vec<LastHolder>) -> Self {
        let left =
            last.into_iter().map(|LastHolder { slot, job, attempt, token }| (slot, (token, Held::Left(job, attempt))));
        let held = Mutex::new(left.collect());
        Self(Arc::new(Inner { held, freed: watch::Sender::new(()), left: watch::Sender::new(()) }))
    }

    /// Holds a free slot for each of these tokens, and says how many were free.
    pub fn ask(&self, flow: &FlowType, slots: &Slots, tokens: &[RunToken]) -> usize {
        let mut held = self.held();
        let free: Vec<Slot> = slots.iter().filter(|slot| !held.contains_key(slot)).collect();
        let given =
            free.into_iter().zip(tokens).map(|(slot, token)| (slot, (token.clone(), Held::Asked(flow.clone()))));
        let before = held.len();
        held.extend(given);
        held.len() - before
    }

    /// Gives back what these tokens hold, for which nothing was claimed.
    pub fn give_back<'a>(&self, tokens: impl IntoIterator<Item = &'a RunToken>) {
        let tokens: Vec<&RunToken> = tokens.into_iter().collect();
        self.free(|token, held| matches!(held, Held::Asked(_)) && tokens.contains(&token));
    }

    /// Gives back what a dispatcher of this flow had asked for that is no more; what came of its claims is owned by now.
    pub fn give_back_of(&self, flow: &FlowType) {
        self.free(|_, held| matches!(held, Held::Asked(asker) if asker == flow));
    }

    /// The slot that this run holds, which belongs to its JobActor from now on; `None` where it holds none.
    #[must_use]
    pub fn own(&self, token: &RunToken, job: JobId, attempt: Attempt) -> Option<HeldSlot> {
        let mut held = self.held();
        let (slot, (_, state)) = held.iter_mut().find(|(_, (holder, _))| holder == token)?;
        *state = Held::Owned(job, attempt);
        Some(HeldSlot { pool: self.clone(), slot: slot.clone(), token: token.clone() })
    }

    /// Tells of every slot that is given back from here on.
    #[must_use]
    pub fn freed(&self) -> watch::Receiver<()> {
        self.0.freed.subscribe()
    }

    /// The runs that hold slots and that nobody looks after.
    fn left(&self) -> Vec<(RunToken, JobId, Attempt)> {
        let left = |(token, held): &(RunToken, Held)| match held {
            Held::Left(job, attempt) => Some((token.clone(), *job, *attempt)),
            Held::Asked(_) | Held::Owned(..) => None,
        };
        self.held().values().filter_map(left).collect()
    }

    fn free(&self, which: impl Fn(&RunToken, &Held) -> bool) {
        let mut held = self.held();
        let before = held.len();
        held.retain(|_, (token, state)| !which(token, state));
        let fewer = held.len() < before;
        drop(held);
        if fewer {
            self.0.freed.send_replace(());
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Slot, (RunToken, Held)>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot in the hands of a run's JobActor. Dropped, it is held on until the run is over.
pub struct HeldSlot {
    pool: SlotPool,
    slot: Slot,
    token: RunToken,
}

impl HeldSlot {
    /// Which.
    #[must_use]
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Gives it back: nothing of the run is alive.
    pub fn release(self) {
        self.pool.free(|token, _| *token == self.token);
    }
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        let mut held = self.pool.held();
        let entry = held.get_mut(&self.slot).filter(|(token, _)| *token == self.token);
        if let Some((_, state)) = entry
            && let Held::Owned(job, attempt) = *state
        {
            *state = Held::Left(job, attempt);
            drop(held);
            self.pool.0.left.send_replace(());
        }
    }
}

/// Gives back the slots of runs that nobody looks after and that are over.
pub async fn watch(pool: SlotPool, launcher: Arc<dyn Launcher>, launches: Launches) {
    let mut more = pool.0.left.subscribe();
    loop {
        let left = pool.left();
        if left.is_empty() {
            // Its sender lives as long as the pool.
            if more.changed().await.is_err() {
                return;
            }
            continue;
        }
        for (token, job, attempt) in left {
            launches.settled(&token).await;
            match launcher.is_over(job, attempt, token.clone()).await {
                Ok(true) => pool.free(|holder, held| *holder == token && matches!(held, Held::Left(..))),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(job = job.0, error = %ErrorChain(&error), "can't tell whether a run still holds its slot");
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(byte: u8) -> RunToken {
        RunToken::from_bytes([byte; 16])
    }

    fn flow(name: &str) -> FlowType {
        name.parse().unwrap()
    }

    #[test]
    fn a_slot_has_one_holder_whichever_flow_it_is_of() {
        let pool = SlotPool::new(Vec::new());
        let slots = Slots::new("GPU", &["0", "1"]).unwrap();
        let fewer = Slots::new("GPU", &["1"]).unwrap();
        assert_eq!(pool.ask(&flow("A"), &slots, &[token(1), token(2), token(3)]), 2);
        assert_eq!(pool.ask(&flow("B"), &fewer, &[token(4)]), 0);
        let mut freed = pool.freed();
        // Only one row was there.
        pool.give_back(&[token(2)]);
        assert!(freed.has_changed().unwrap());
        freed.mark_unchanged();
        let held = pool.own(&token(1), JobId(1), Attempt(1)).unwrap();
        assert_eq!(held.slot().to_string(), "GPU=0");
        assert!(pool.own(&token(2), JobId(2), Attempt(1)).is_none());
        assert_eq!(pool.ask(&flow("B"), &fewer, &[token(4)]), 1);
        pool.give_back_of(&flow("B"));
        pool.give_back_of(&flow("A"));
        assert_eq!(pool.ask(&flow("B"), &slots, &[token(5), token(6)]), 1, "the first one's is its JobActor's");
        held.release();
        assert!(pool.left().is_empty());
        assert_eq!(pool.ask(&flow("B"), &slots, &[token(6)]), 1);
    }

    #[test]
    fn what_nobody_looks_after_is_held_on_and_may_be_taken_over() {
        let slot = Slot { name: "GPU".to_owned(), value: "0".to_owned() };
        let last = LastHolder { slot, job: JobId(7), attempt: Attempt(2), token: token(1) };
        let pool = SlotPool::new(vec![last]);
        let slots = Slots::new("GPU", &["0"]).unwrap();
        assert_eq!(pool.left(), [(token(1), JobId(7), Attempt(2))]);
        assert_eq!(pool.ask(&flow("A"), &slots, &[token(2)]), 0);
        let held = pool.own(&token(1), JobId(7), Attempt(2)).unwrap();
        assert!(pool.left().is_empty());
        drop(held);
        assert_eq!(pool.left().len(), 1);
        assert_eq!(pool.ask(&flow("A"), &slots, &[token(2)]), 0);
        pool.own(&token(1), JobId(7), Attempt(2)).unwrap().release();
        assert_eq!(pool.ask(&flow("A"), &slots, &[token(2)]), 1);
    }
}
