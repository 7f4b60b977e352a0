//! Connections that have sent no request yet: an address has only so many, or one that says nothing could hold them all.
//!
//! One too many ends the oldest rather than itself, so that whoever has something to say gets in behind the same address. A
//! proxy's connections don't count: it opens one when it has a request.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// So many of one address; of 800 in all.
const MOST: usize = 100;

/// The silent connections of each address, oldest first.
#[derive(Debug, Default)]
pub(super) struct Silent(Mutex<HashMap<IpAddr, VecDeque<Arc<Notify>>>>);

/// A connection, which is silent until it has spoken or is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    silent: Arc<Silent>,
    address: IpAddr,
    leave: Arc<Notify>,
}

impl Silent {
    /// Counts a new connection, and tells the oldest to leave where there are too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Guest {
        let leave = Arc::new(Notify::new());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = all.entry(address).or_default();
        of_address.push_back(Arc::clone(&leave));
        if of_address.len() > MOST
            && let Some(oldest) = of_address.pop_front()
        {
            oldest.notify_one();
        }
        Guest { silent: Arc::clone(self), address, leave }
    }
}

impl Guest {
    /// It has sent a request, and does not count from now on.
    pub(super) fn spoke(&self) {
        let mut all = self.silent.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_address) = all.get_mut(&self.address) {
            of_address.retain(|other| !Arc::ptr_eq(other, &self.leave));
            if of_address.is_empty() {
                all.remove(&self.address);
            }
        }
    }

    /// Waits until it has to make room. Safe to cancel.
    pub(super) async fn told_to_leave(&self) {
        self.leave.notified().await;
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

    #[test]
    fn the_oldest_silent_one_of_an_address_makes_room() {
        let silent = Arc::new(Silent::default());
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let leaves = |guest: &Guest| guest.told_to_leave().now_or_never().is_some();
        let other = silent.enter(address(2));
        let mut guests: Vec<Guest> = (0..MOST).map(|_| silent.enter(address(1))).collect();
        guests[0].spoke();
        guests.push(silent.enter(address(1)));
        assert!(!guests.iter().any(leaves), "one of them has spoken");
        guests.push(silent.enter(address(1)));
        let told: Vec<usize> = (0..guests.len()).filter(|place| leaves(&guests[*place])).collect();
        assert_eq!(told, [1]);
        assert!(!leaves(&other));
        drop((guests, other));
        assert!(silent.0.lock().unwrap().is_empty());
    }
}
