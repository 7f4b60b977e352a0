//! The actors: the live supervision tree of this service, with restarts, waiting messages and the age of the last one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use maud::{Markup, html};

use super::parts::{ago, icon, name, since};
use crate::actors::ActorSnapshot;
use crate::domain::Timestamp;
use crate::http::words::thousands;

/// Of more actors than these the first ones are shown; a service with thousands of flows has many that say nothing.
const MOST: usize = 1000;
/// More messages than this wait only where somebody is too slow.
const MANY_WAIT: u64 = 100;

/// The tree; `actors` has a supervisor before those under it.
pub(super) fn actors(actors: &[ActorSnapshot], worker: &str, now: Timestamp) -> Markup {
    let shown = actors.get(..MOST).unwrap_or(actors);
    let ids: BTreeSet<u64> = shown.iter().map(|actor| actor.id).collect();
    let mut under: BTreeMap<Option<u64>, Vec<&ActorSnapshot>> = BTreeMap::new();
    for actor in shown {
        // One whose supervisor is not in the list is shown all the same.
        let parent = actor.parent.filter(|parent| ids.contains(parent));
        under.entry(parent).or_default().push(actor);
    }
    let restarts: u64 = actors.iter().map(|actor| u64::from(actor.restarts)).sum();
    html! {
        h1 { "Actors" }
        p.muted {
            (thousands(actors.len() as u64)) " actors of " (name(worker)) ", "
            @if restarts == 0 { "none was started again" } @else { (thousands(restarts)) " starts after a failure" }
        }
        ul.tree { @for root in under.get(&None).into_iter().flatten() { (branch(root, &under, now)) } }
        @if actors.len() > MOST { p.muted { (thousands((actors.len() - MOST) as u64)) " more are left out; GET /api/v1/actors has them all." } }
    }
}

/// The second in which it was: the same at every look, as long as nothing has happened.
fn before(now: Timestamp, age: Duration) -> Timestamp {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_unix_millis(now.unix_millis().saturating_sub(age) / 1000 * 1000)
}

fn branch(actor: &ActorSnapshot, under: &BTreeMap<Option<u64>, Vec<&ActorSnapshot>>, now: Timestamp) -> Markup {
    let children = under.get(&Some(actor.id));
    html! {
        li {
            div.actor {
                span.role { (name(&actor.name)) }
                // Where its name is not made of the flow's (CONTRACT §3), the flow is told beside it.
                @if actor.name != actor.role.as_str() { span.muted { (actor.role.as_str()) } }
                @else if let Some(flow) = &actor.flow { span { "of " (name(flow.as_str())) } }
                span.muted { "up " (since(actor.since, now)) }
                @if actor.restarts > 0 { span.badge.attention { (icon("attention")) (actor.restarts) " restarts" } }
                @match actor.mailbox {
                    Some(waiting) if waiting >= MANY_WAIT => span.badge.attention { (icon("attention")) (thousands(waiting)) " messages wait" },
                    Some(waiting) => span.muted { (waiting) " waiting" },
                    None => "",
                }
                @match actor.last_message {
                    Some(age) => span.muted { "last message " (ago(before(now, age), now)) },
                    None => span.muted { "no message yet" },
                }
            }
            @if let Some(children) = children { ul { @for child in children { (branch(child, under, now)) } } }
        }
    }
}
