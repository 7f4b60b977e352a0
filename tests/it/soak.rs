//! The soak in small: every kind of job goes through a service that is killed on the way, and nothing is left.

use std::time::Duration;

use crate::soak_engine::{Plan, run};
use crate::support::service::On;
use crate::{on_each_database, support};

async fn a_short_soak_leaves_nothing_behind(on: On) {
    let scratch = tempfile::Builder::new().prefix("cs").tempdir().unwrap();
    let url = match on {
        On::Sqlite => format!("sqlite://{}/data/callsheet.db", scratch.path().display()),
        On::Postgres => {
            let Some(url) = support::postgres::database() else { return };
            url
        }
        On::MariaDb => {
            let Some(url) = support::mariadb::database() else { return };
            url
        }
    };
    let plan = Plan {
        duration: Duration::from_secs(8),
        jobs_per_second: 6.0,
        long: 3,
        incarnation: Duration::from_millis(2700),
        kept: Duration::from_secs(2),
        sample: Duration::from_millis(400),
        seed: 7,
        binary: env!("CARGO_BIN_EXE_callsheet").into(),
    };
    let report = run(&plan, scratch.path(), &url, |_| ()).await;
    assert_eq!(report.problems, Vec::<String>::new(), "\n{report:#?}");
    assert!(report.kills > 0 && report.stops > 0, "{report:#?}");
    assert!(report.ended.get("COMPLETED").is_some_and(|ended| *ended > 10), "{:?}", report.ended);
}
on_each_database!(a_short_soak_leaves_nothing_behind);
