//! How often somebody may try a wrong token, in bounded memory.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many wrong tokens are taken from one address within [`WINDOW`]; a person who mistypes needs fewer.
const MOST_FAILURES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// More addresses than this are not remembered; the one that has been here longest is forgotten.
const MOST_ADDRESSES: usize = 4096;

/// The wrong tokens of late, by address.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<IpAddr, Window>>);

#[derive(Clone, Copy, Debug)]
struct Window {
    since: Instant,
    failures: u32,
}

impl Failures {
    /// How long this address has to wait before it may try again; `None` where it may at once.
    pub(super) fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let window = *self.windows().get(&whose(address))?;
        let left = WINDOW.checked_sub(now.saturating_duration_since(window.since))?;
        (window.failures >= MOST_FAILURES && !left.is_zero()).then_some(left)
    }

    /// A wrong token came from this address.
    pub(super) fn failed(&self, address: IpAddr, now: Instant) {
        let mut windows = self.windows();
        let over = |window: &Window| now.saturating_duration_since(window.since) >= WINDOW;
        let address = whose(address);
        if windows.len() >= MOST_ADDRESSES && !windows.contains_key(&address) {
            windows.retain(|_, window| !over(window));
            if windows.len() >= MOST_ADDRESSES
                && let Some(oldest) = windows.iter().min_by_key(|(_, window)| window.since).map(|(address, _)| *address)
            {
                windows.remove(&oldest);
            }
        }
        let window = windows.entry(address).or_insert(Window { since: now, failures: 0 });
        if over(window) {
            *window = Window { since: now, failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
    }

    fn windows(&self) -> MutexGuard<'_, HashMap<IpAddr, Window>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One machine: an IPv4 address, or the /64 that a host on IPv6 usually has to itself (RFC 7421).
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn who_fails_too_often_waits_for_the_window_to_end() {
        let (failures, start) = (Failures::default(), Instant::now());
        for n in 0..MOST_FAILURES {
            assert_eq!(failures.wait(address(1), start), None, "after {n}");
            failures.failed(address(1), start);
        }
        assert_eq!(failures.wait(address(1), start + Duration::from_secs(20)), Some(Duration::from_secs(40)));
        assert_eq!(failures.wait(address(2), start), None);
        assert_eq!(failures.wait(address(1), start + WINDOW), None);
        failures.failed(address(1), start + WINDOW);
        assert_eq!(failures.wait(address(1), start + WINDOW), None);
    }

    #[test]
    fn a_machine_with_many_addresses_is_one() {
        let (failures, start) = (Failures::default(), Instant::now());
        for n in 0..u128::from(MOST_FAILURES) {
            failures.failed(IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + n)), start);
        }
        assert!(failures.wait("2001:db8::ffff".parse().unwrap(), start).is_some());
        assert!(failures.wait("2001:db8:0:1::".parse().unwrap(), start).is_none());
        for _ in 0..MOST_FAILURES {
            failures.failed("::ffff:10.0.0.1".parse().unwrap(), start);
        }
        assert!(failures.wait("10.0.0.1".parse().unwrap(), start).is_some());
    }

    #[test]
    fn memory_is_bounded() {
        let (failures, start) = (Failures::default(), Instant::now());
        for n in 0..u32::try_from(MOST_ADDRESSES).unwrap() + 100 {
            failures.failed(address(n), start + Duration::from_micros(n.into()));
        }
        assert_eq!(failures.windows().len(), MOST_ADDRESSES);
        assert!(!failures.windows().contains_key(&address(0)));
    }
}
