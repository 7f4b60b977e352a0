//! The PostgreSQL of a trial and its streaming replica, and what is done to them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;

use super::plan::Strike;
use super::wire::Wire;
use crate::support::postgres::Server;

/// Works on a thread of its own, since making a replica takes a while.
#[derive(Debug)]
pub struct Database {
    orders: Option<mpsc::Sender<(Strike, Duration)>>,
    undone: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Database {
    /// The wires lead to whichever server is the primary.
    pub fn of(primary: Server, wires: Vec<Wire>) -> Self {
        let (orders, received) = mpsc::channel();
        let undone = Arc::new(AtomicUsize::new(1));
        let done = Arc::clone(&undone);
        let thread = std::thread::spawn(move || {
            let mut pair = Pair { replica: primary.replica(), primary, wires };
            done.fetch_sub(1, Ordering::Relaxed);
            while let Ok((strike, lasts)) = received.recv() {
                pair.suffer(strike, lasts);
                done.fetch_sub(1, Ordering::Relaxed);
            }
        });
        Self { orders: Some(orders), undone, thread: Some(thread) }
    }

    pub fn strike(&self, strike: Strike, lasts: Duration) {
        self.undone.fetch_add(1, Ordering::Relaxed);
        self.orders.as_ref().unwrap().send((strike, lasts)).unwrap();
    }

    /// Whether all that was ordered is over, and commits are on two servers again.
    pub fn is_well(&self) -> bool {
        self.undone.load(Ordering::Relaxed) == 0
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(self.orders.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the thread of the trial's PostgreSQL has panicked");
        }
    }
}

struct Pair {
    primary: Server,
    replica: Server,
    wires: Vec<Wire>,
}

impl Pair {
    fn suffer(&mut self, strike: Strike, lasts: Duration) {
        let signal = if strike == Strike::RestartDatabase { Signal::INT } else { Signal::KILL };
        self.primary.end(signal);
        std::thread::sleep(lasts);
        if strike != Strike::FailOver {
            return self.primary.start_again();
        }
        self.replica.promote();
        for wire in &self.wires {
            wire.switch(self.replica.socket());
        }
        // The old primary is no more: what it had and its replica had not, nobody was told of.
        let another = self.replica.replica();
        self.primary = std::mem::replace(&mut self.replica, another);
    }
}
