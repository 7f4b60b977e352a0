//! The whole program, and the store on real databases.

#![expect(unreachable_pub, reason = "a program of tests has no outside")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a failed test panics, in its helpers too"
)]

mod access;
mod adopted;
mod api;
mod api_bulk;
mod cancel;
mod cli;
mod clocks;
mod control;
mod crash_points;
mod database_faults;
mod dependencies;
mod disk_faults;
mod doctor;
#[cfg(target_os = "linux")]
mod elsewhere;
mod ends;
mod events;
mod flat;
mod grafana;
mod http;
mod labels;
mod leases;
mod lifecycle;
mod limits;
mod liveness;
mod logs;
mod metrics;
mod order;
mod overview;
mod page;
mod page_keys;
mod page_live;
mod page_open;
mod page_says;
mod page_weight;
mod peers;
mod process_layer;
mod progress;
mod recovery;
mod recurring;
mod refusals;
mod reload;
mod retention;
mod retry;
mod scale;
mod schemathesis;
mod screen_replacement;
mod shipped;
mod shutdown;
mod slots;
mod soak;
#[path = "../soak/engine.rs"]
mod soak_engine;
mod startup;
mod store;
mod store_control;
mod strays;
mod support;
mod takeover;
mod traces;
mod upgrade;
mod webhooks;
mod workers;
mod zygote;
