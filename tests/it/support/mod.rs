//! What several tests need.

pub mod browser;
pub mod client;
#[cfg(target_os = "linux")]
pub mod docker;
pub mod mariadb;
pub mod postgres;
#[cfg(target_os = "linux")]
pub mod processes;
pub mod proxy;
pub mod scrape;
pub mod service;
#[cfg(target_os = "linux")]
pub mod slurm;
pub mod small_disk;
pub mod tools;
pub mod truth;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// No fact takes longer to come about, on a machine that is busy with other tests too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a fact, with a bound, and says what was waited for in vain.
pub async fn eventually(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !fact().await {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An address at which nobody listens now, nor will but for who is given it: of the many that mean this machine, one that
/// no other test binds, and no client is given a port of.
pub fn own_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // 127.64.0.0/10, by process and by call.
    let number = (std::process::id() << 8) + NEXT.fetch_add(1, Ordering::Relaxed) % 256;
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 0).to_bits() + (number & 0x003f_ffff));
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap()
}

/// Makes a test of `async fn NAME(On)` for SQLite and PostgreSQL; after `, mariadb` for MariaDB too.
#[macro_export]
macro_rules! on_each_database {
    ($(#[$attribute:meta])* $name:ident) => {
        mod $name {
            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                super::$name($crate::support::service::On::Sqlite).await;
            }

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                super::$name($crate::support::service::On::Postgres).await;
            }
        }
    };
    ($(#[$attribute:meta])* $name:ident, mariadb) => {
        mod $name {
            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                super::$name($crate::support::service::On::Sqlite).await;
            }

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                super::$name($crate::support::service::On::Postgres).await;
            }

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_mariadb() {
                super::$name($crate::support::service::On::MariaDb).await;
            }
        }
    };
}

/// Makes a test of `async fn NAME(On)` for each database that several workers may share.
#[macro_export]
macro_rules! on_each_server {
    ($name:ident) => {
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                super::$name($crate::support::service::On::Postgres).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_mariadb() {
                super::$name($crate::support::service::On::MariaDb).await;
            }
        }
    };
}
