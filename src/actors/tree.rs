//! The live supervision tree, for people: which actors there are, since when, how often started again, how busy.
//!
//! Who hangs under whom is ractor's to say; what it does not know is kept here by [`Watched`], a shell around every actor
//! that notes its messages as they pass.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, Message, SupervisionEvent};
use tokio::time::Instant;

use super::Port;
use crate::clock::Clock;
use crate::domain::{FlowType, Timestamp};
use crate::metrics::Role;

/// What is known of the actors of one service.
#[derive(Clone)]
pub struct Tree(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    epoch: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    root: Option<ActorCell>,
    actors: HashMap<ActorId, Arc<Entry>>,
    /// How often an actor was started in the place of one that did not end by itself.
    starts: HashMap<Place, u32>,
    mailboxes: Vec<Depth>,
    /// How many actors were started so far.
    started: u64,
}

/// Tells whose mailbox it is and how many messages are in it; `None` while there is no such actor.
type Depth = Box<dyn Fn() -> Option<(ActorId, u64)> + Send>;

/// What an actor is there for: its successor has the same place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    role: Role,
    flow: Option<FlowType>,
    name: Option<String>,
}

struct Entry {
    place: Place,
    since: Timestamp,
    restarts: u32,
    /// Nanoseconds after the epoch, and one more, of the last message; 0 where there was none.
    last_message: AtomicU64,
}

/// One actor as it is at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActorSnapshot {
    /// What tells it from every other actor of this service.
    pub id: u64,
    /// Its supervisor; `None` for the root.
    pub parent: Option<u64>,
    /// Its name in the registry (CONTRACT §3); its role where it has none.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// The flow that it belongs to.
    pub flow: Option<FlowType>,
    /// When it was started.
    pub since: Timestamp,
    /// How often it was started again after it had failed.
    pub restarts: u32,
    /// Messages that wait for it; `None` where they are not counted, since only its own timers and children send it any.
    pub mailbox: Option<u64>,
    /// How long ago it took its last message; `None` where it has had none.
    pub last_message: Option<Duration>,
}

impl Tree {
    /// No actors yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { clock, epoch: Instant::now(), state: Mutex::default() }))
    }

    /// The actor, in the shell that notes what it does.
    #[must_use]
    pub fn watch<A: Actor>(&self, role: Role, flow: Option<&FlowType>, actor: A) -> Watched<A> {
        Watched { actor, tree: self.clone(), role, flow: flow.cloned() }
    }

    /// This port leads to an actor whose waiting messages are counted.
    pub fn count<M: Message>(&self, port: &Port<M>) {
        let port = port.clone();
        self.state().mailboxes.push(Box::new(move || port.depth()));
    }

    /// This actor is the root of all.
    pub fn set_root(&self, root: ActorCell) {
        self.state().root = Some(root);
    }

    /// Every actor, a supervisor before those under it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<ActorSnapshot> {
        let state = self.state();
        let mailboxes: HashMap<ActorId, u64> = state.mailboxes.iter().filter_map(|depth| depth()).collect();
        let now = self.since_epoch();
        let mut found = Vec::new();
        let mut next: Vec<(ActorCell, Option<u64>)> = state.root.iter().map(|root| (root.clone(), None)).collect();
        while let Some((cell, parent)) = next.pop() {
            let (id, pid) = (cell.get_id(), cell.get_id().pid());
            let mut children = cell.get_children();
            // The last one is taken first.
            children.sort_unstable_by_key(|child| std::cmp::Reverse(child.get_id().pid()));
            next.extend(children.into_iter().map(|child| (child, Some(pid))));
            // One that is just being started is not known yet.
            let Some(entry) = state.actors.get(&id) else { continue };
            let last = entry.last_message.load(Ordering::Relaxed).checked_sub(1);
            found.push(ActorSnapshot {
                id: pid,
                parent,
                name: entry.place.name.clone().unwrap_or_else(|| entry.place.role.as_str().to_owned()),
                role: entry.place.role,
                flow: entry.place.flow.clone(),
                since: entry.since,
                restarts: entry.restarts,
                mailbox: mailboxes.get(&id).copied(),
                last_message: last.map(|last| Duration::from_nanos(now.saturating_sub(last))),
            });
        }
        found
    }

    /// How many actors were started so far; as each run has some, nothing was done where this stays the same.
    #[must_use]
    pub fn started(&self) -> u64 {
        self.state().started
    }

    fn enter(&self, id: ActorId, place: Place) -> Guard {
        let mut state = self.state();
        state.started += 1;
        let starts = state.starts.entry(place.clone()).or_default();
        *starts += 1;
        let entry = Arc::new(Entry {
            restarts: *starts - 1,
            place,
            since: self.0.clock.now(),
            last_message: AtomicU64::new(0),
        });
        state.actors.insert(id, Arc::clone(&entry));
        Guard { tree: self.clone(), id, entry }
    }

    fn since_epoch(&self) -> u64 {
        u64::try_from(self.0.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An actor's stay in the tree.
struct Guard {
    tree: Tree,
    id: ActorId,
    entry: Arc<Entry>,
}

impl Guard {
    fn message(&self) {
        self.entry.last_message.store(self.tree.since_epoch().saturating_add(1), Ordering::Relaxed);
    }

    /// It has done its work, and its next is none that is started again.
    fn ended_well(&self) {
        self.tree.state().starts.remove(&self.entry.place);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.tree.state().actors.remove(&self.id);
    }
}

/// An actor in the shell that notes what it does.
pub struct Watched<A> {
    actor: A,
    tree: Tree,
    role: Role,
    flow: Option<FlowType>,
}

/// The state of such an actor.
pub struct WatchedState<S> {
    state: S,
    guard: Guard,
}

impl<S> WatchedState<S> {
    /// The actor's own.
    pub fn inner(&self) -> &S {
        &self.state
    }
}

impl<A: Actor> Actor for Watched<A> {
    type Msg = A::Msg;
    type State = WatchedState<A::State>;
    type Arguments = A::Arguments;

    async fn pre_start(&self, myself: ActorRef<A::Msg>, args: A::Arguments) -> Result<Self::State, ActorProcessingErr> {
        // A heartbeat ends with its job and is none that anybody looks for again.
        let name = myself.get_name();
        let guard = self.tree.enter(myself.get_id(), Place { role: self.role, flow: self.flow.clone(), name });
        if self.role == Role::Heartbeat {
            guard.ended_well();
        }
        Ok(WatchedState { state: self.actor.pre_start(myself, args).await?, guard })
    }

    async fn post_start(&self, myself: ActorRef<A::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        self.actor.post_start(myself, &mut state.state).await
    }

    async fn post_stop(&self, myself: ActorRef<A::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        state.guard.ended_well();
        self.actor.post_stop(myself, &mut state.state).await
    }

    async fn handle(
        &self,
        myself: ActorRef<A::Msg>,
        message: A::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.guard.message();
        self.actor.handle(myself, message, &mut state.state).await
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<A::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        self.actor.handle_supervisor_evt(myself, event, &mut state.state).await
    }
}
