//! How large the tables get while many jobs come and go: `--churn JOBS`, and nothing else is measured then.
//!
//! The jobs go through a real service, eight at a time, and a few thousand are waiting at any time. After each tenth of them what
//! retention lets go is removed, as a service does by itself each hour, so what the tables then have is what churn leaves behind.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use callsheet::domain::database_url::DatabaseUrl;
use callsheet::store::{Store, Use};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement};

use super::report::Report;
use super::{Service, drained, enqueue};

/// Rows of one batch; one more is enqueued where fewer than as many are waiting.
const BATCH: usize = 2_000;

const POSTGRES: &str = "SELECT relname AS name, pg_relation_size(relid) AS own, pg_indexes_size(relid) AS indexes, \
    n_dead_tup AS dead, n_tup_hot_upd AS in_place, n_tup_upd AS updates FROM pg_stat_user_tables \
    WHERE relname IN ('jobs', 'job_events', 'runs') ORDER BY relname";
const SQLITE: &str = "SELECT 'the file' AS name, (SELECT * FROM pragma_page_count()) * (SELECT * FROM pragma_page_size()) AS own, \
    (SELECT * FROM pragma_freelist_count()) * (SELECT * FROM pragma_page_size()) AS free";

pub(super) async fn measure(name: &'static str, directory: &Path, url: String, jobs: usize, report: &mut Report) {
    let config = format!(
        "data_dir = {data:?}\n[http]\nlisten = \"off\"\n[flows.EIGHT]\ncommand = [\"/bin/true\"]\nconcurrency = 8\n\
         [retention]\ncompleted = \"1s\"\nlogs = \"1s\"\n",
        data = directory.join("data"),
    );
    fs::write(directory.join("callsheet.toml"), config).expect("the configuration can be written");
    let parsed: DatabaseUrl = url.parse().expect("a database URL");
    let store = Store::connect(&parsed, Use::Service).await.expect("the database");
    store.migrate().await.expect("the schema");
    let database = Database::connect(&url).await.expect("the database");
    let service = Service::start(directory, &url);
    let part = (jobs / 10).max(1);
    for tenth in 1..=10 {
        let begun = Instant::now();
        let mut enqueued = 0;
        while enqueued < part {
            if waiting(&database).await < BATCH {
                let now = BATCH.min(part - enqueued);
                enqueue(&store, "EIGHT", (0..now).map(|n| format!("c{n}"))).await;
                enqueued += now;
            } else {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        drained(&store, "EIGHT").await;
        let (done, rate) = (tenth * part, part as f64 / begun.elapsed().as_secs_f64());
        report.add(name, &format!("{done} jobs have been, the last tenth"), rate, "/s", None);
        sizes(name, &database, &format!("{done} jobs"), report).await;
        let pruned = Instant::now();
        prune(directory, &url);
        let removed = part as f64 / pruned.elapsed().as_secs_f64();
        report.add(name, &format!("{done} jobs, that tenth removed"), removed, "/s", None);
    }
    drop(service);
}

async fn waiting(database: &DatabaseConnection) -> usize {
    let count = "SELECT count(*) AS n FROM jobs WHERE type = 'EIGHT' AND status = 'PENDING'";
    let count = Statement::from_string(database.get_database_backend(), count);
    let row = database.query_one_raw(count).await.expect("the database answers").expect("a number");
    row.try_get::<i64>("", "n").map(|count| usize::try_from(count).unwrap_or(0)).expect("a number")
}

async fn sizes(name: &'static str, database: &DatabaseConnection, when: &str, report: &mut Report) {
    let is_sqlite = name == "SQLite";
    let select = Statement::from_string(database.get_database_backend(), if is_sqlite { SQLITE } else { POSTGRES });
    for row in database.query_all_raw(select).await.expect("the database answers") {
        let number = |column| row.try_get::<i64>("", column).expect("a number") as f64;
        let (table, mib) = (row.try_get::<String>("", "name").expect("a name"), |column| number(column) / 1_048_576.0);
        report.add(name, &format!("{when}, {table}"), mib("own"), "MiB", None);
        if is_sqlite {
            report.add(name, &format!("{when}, free in it"), mib("free"), "MiB", None);
            continue;
        }
        report.add(name, &format!("{when}, {table}, indexes"), mib("indexes"), "MiB", None);
        report.add(name, &format!("{when}, {table}, dead rows"), number("dead"), "", None);
        if number("updates") > 0.0 {
            let in_place = number("in_place") / number("updates") * 100.0;
            report.add(name, &format!("{when}, {table}, updates in place"), in_place, "%", None);
        }
    }
}

fn prune(directory: &Path, url: &str) {
    // What has ended a second ago may go.
    std::thread::sleep(Duration::from_secs(1));
    let output = Command::new(env!("CARGO_BIN_EXE_callsheet"))
        .args(["--config".as_ref(), directory.join("callsheet.toml").as_os_str(), "prune".as_ref()])
        .env("DATABASE_URL", url)
        .output()
        .expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
