//! Connections that have sent no request yet: once no more are accepted, the oldest of them make room.
//!
//! Else an address could hold all connections by saying nothing. The one that leaves is of the address with the most, so
//! that whoever has something to say gets in beside it; a new one first has a moment to speak.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Nobody has to leave sooner: many may come at once, and their requests are read one after the other.
const A_MOMENT: Duration = Duration::from_secs(1);

/// The silent connections of each address, oldest first.
#[derive(Debug, Default)]
pub(super) struct Silent(Mutex<HashMap<IpAddr, VecDeque<Arc<Seat>>>>);

/// What a silent connection takes up.
#[derive(Debug)]
struct Seat {
    since: Instant,
    leave: Notify,
}

/// A connection, which is silent until it has spoken or is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    silent: Arc<Silent>,
    address: IpAddr,
    seat: Arc<Seat>,
}

impl Silent {
    /// Counts a new connection.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Guest {
        let seat = Arc::new(Seat { since: Instant::now(), leave: Notify::new() });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(address).or_default().push_back(Arc::clone(&seat));
        drop(all);
        Guest { silent: Arc::clone(self), address, seat }
    }

    /// Tells the oldest one to leave, of the address that has the most, unless it came just now.
    pub(super) fn make_room(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(most) = all.values_mut().max_by_key(|of_address| of_address.len()) else { return };
        if most.front().is_some_and(|oldest| oldest.since.elapsed() >= A_MOMENT)
            && let Some(oldest) = most.pop_front()
        {
            oldest.leave.notify_one();
        }
    }
}

impl Guest {
    /// It has sent a request, and does not count from now on.
    pub(super) fn spoke(&self) {
        let mut all = self.silent.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_address) = all.get_mut(&self.address) {
            of_address.retain(|other| !Arc::ptr_eq(other, &self.seat));
            if of_address.is_empty() {
                all.remove(&self.address);
            }
        }
    }

    /// Waits until it has to make room. Safe to cancel.
    pub(super) async fn told_to_leave(&self) {
        self.seat.leave.notified().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.spoke();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_silent_one_of_the_address_with_the_most_makes_room() {
        let silent = Arc::new(Silent::default());
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let leaves = |guest: &Guest| guest.told_to_leave().now_or_never().is_some();
        silent.make_room();
        let other = silent.enter(address(2));
        let guests: Vec<Guest> = (0..4).map(|_| silent.enter(address(1))).collect();
        guests[0].spoke();
        silent.make_room();
        assert!(!guests.iter().any(leaves), "they came just now");
        tokio::time::advance(A_MOMENT).await;
        silent.make_room();
        let told: Vec<usize> = (0..guests.len()).filter(|place| leaves(&guests[*place])).collect();
        assert_eq!(told, [1], "one of them has spoken");
        assert!(!leaves(&other));
        drop((guests, other));
        silent.make_room();
        assert!(silent.0.lock().unwrap().is_empty());
    }
}
