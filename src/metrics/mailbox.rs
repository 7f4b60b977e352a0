//! How many messages wait for the actors of a role.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use prometheus::IntGauge;

use super::{Metrics, Role};

impl Metrics {
    /// The gauge of messages that wait for an actor of this role.
    #[must_use]
    pub fn mailbox(&self, role: Role) -> MailboxGauge {
        let gauge = self.mailbox_depth.with_label_values(&[role.as_str()]);
        MailboxGauge(Arc::new(Mailbox { gauge, depth: AtomicI64::new(0) }))
    }
}

/// Counts the messages in one incarnation's mailbox, in a gauge that it shares with all actors of its role.
#[derive(Clone, Debug)]
pub struct MailboxGauge(Arc<Mailbox>);

#[derive(Debug)]
struct Mailbox {
    gauge: IntGauge,
    depth: AtomicI64,
}

impl MailboxGauge {
    /// A message was put in.
    pub fn entered(&self) {
        self.0.gauge.inc();
        self.0.depth.fetch_add(1, Ordering::Relaxed);
    }

    /// How many messages are in it.
    #[must_use]
    pub fn depth(&self) -> u64 {
        u64::try_from(self.0.depth.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// A message was taken out.
    pub fn left(&self) {
        self.0.gauge.dec();
        self.0.depth.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // What an actor left unread when it died waits for nobody any more.
        self.gauge.sub(self.depth.load(Ordering::Relaxed));
    }
}
