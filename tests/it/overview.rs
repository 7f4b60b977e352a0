//! What the overview and the lists of the page read, on each database.

use std::collections::BTreeSet;

use callsheet::domain::{JobId, JobStatus, Timestamp};
use callsheet::store::{COUNTED_UP_TO, Ended, Found, History, JobSearch};

use crate::on_each_database;
use crate::support::service::{On, Service};

const FLOWS: &str = "[flows.ONE]\n{job}\n[flows.TWO]\n{job}\n";

/// Rows of `generate_series`-like numbers 1 to `count` as a table `n(x)`.
fn numbers(count: u32) -> String {
    format!("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {count}) ")
}

async fn the_overview_tells_what_waits_runs_and_has_ended(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    let now = service.store.now().await.unwrap().unix_millis();
    service.sql("INSERT INTO flows (type) VALUES ('ONE'), ('TWO')").await;
    service
        .sql(&format!(
            "INSERT INTO jobs (type, identifier, status, run_at, attempt, started_time, completed_time, heartbeat_time, \
             execution_ms, error, progress, worker_id) VALUES \
             ('ONE', 'waits', 'PENDING', {}, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL), \
             ('ONE', 'later', 'PENDING', {}, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL), \
             ('ONE', 'runs', 'PROGRESS', 1, 2, {}, NULL, {now}, NULL, NULL, 40, 'w'), \
             ('ONE', 'done', 'COMPLETED', 1, 1, {}, {}, NULL, 1000, NULL, 100, 'w'), \
             ('TWO', 'failed', 'ERROR', 1, 1, {}, {}, NULL, 1000, 'it broke', NULL, 'w'), \
             ('NOBODYS', 'waits', 'PENDING', 1, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL), \
             ('ONE', 'long ago', 'ERROR', 1, 1, 1000, 2000, NULL, 1000, 'long gone', NULL, 'w')",
            now - 5000,
            now + 60_000,
            now - 9000,
            now - 3000,
            now - 2000,
            now - 3000,
            now - 1000,
        ))
        .await;
    service
        .sql(&format!(
            "INSERT INTO runs (job_id, attempt, run_token, started_time, completed_time, outcome) \
             VALUES (3, 1, 'a', {}, {}, 'FAILED'), (3, 2, 'b', {}, NULL, NULL)",
            now - 20_000,
            now - 15_000,
            now - 9000
        ))
        .await;
    let overview = service.store.overview().await.unwrap();
    let names: Vec<&str> = overview.queues.iter().map(|queue| queue.job_type.as_str()).collect();
    assert_eq!(names, ["NOBODYS", "ONE", "TWO"]);
    let one = &overview.queues[1];
    assert_eq!((one.waiting.at_least, one.waiting.or_more, one.delayed.at_least, one.open), (1, false, 1, 1));
    assert_eq!(one.oldest_waiting, Some(Timestamp::from_unix_millis(now - 5000)));
    assert_eq!(one.next_due, Some(Timestamp::from_unix_millis(now + 60_000)));
    let open: Vec<_> = overview.open.iter().map(|row| (row.identifier.as_str(), row.progress)).collect();
    assert_eq!(open, [("runs", Some(40))]);
    let earlier: Vec<_> = overview.earlier.iter().map(|run| (run.job, run.attempt.0)).collect();
    assert_eq!(earlier, [(JobId(3), 1)]);
    let failures: Vec<_> =
        overview.failures.iter().map(|row| (row.identifier.as_str(), row.error.as_deref())).collect();
    assert_eq!(failures, [("failed", Some("it broke")), ("long ago", Some("long gone"))]);
    let ended: Vec<_> = overview.ended.iter().map(|row| row.identifier.as_str()).collect();
    assert_eq!(ended, ["done", "long ago", "failed"]);

    // What waits for another job is not called delayed until the end of time, which is where it stands in the queue.
    let behind = service.insert_row("type, identifier", "'ONE', 'behind'").await;
    service.sql(&format!("INSERT INTO job_dependencies (job_id, after_id) VALUES ({behind}, 3)")).await;
    service.sql("UPDATE flows SET paused = TRUE, paused_time = 7, paused_by = 'ana' WHERE type = 'ONE'").await;
    let queues = service.store.overview().await.unwrap().queues;
    let one = &queues[1];
    assert_eq!((one.waiting.at_least, one.delayed.at_least, one.dependent.at_least), (1, 1, 1));
    assert_eq!(one.next_due, Some(Timestamp::from_unix_millis(now + 60_000)));
    let by = (one.paused, one.paused_time, one.paused_by.as_deref());
    assert_eq!(by, (true, Some(Timestamp::from_unix_millis(7)), Some("ana")));
    assert_eq!((queues[0].paused_by.as_deref(), queues[0].dependent.at_least), (None, 0));
    let state = service.store.flow_states().await.unwrap().remove(1);
    assert_eq!((state.pending, state.runnable, state.dependent), (3, 1, 1));

    // Many waiting rows are counted no further than is cheap.
    let many = format!("{} INSERT INTO jobs (type, identifier) SELECT 'TWO', 'x' FROM n", numbers(1100));
    service.sql(&insert_last(on, &many)).await;
    let two = service.store.overview().await.unwrap().queues.remove(2);
    assert_eq!((two.waiting.at_least, two.waiting.or_more), (COUNTED_UP_TO, true));
    assert_eq!(service.store.count_waiting().await.unwrap()["TWO"], 1100);
}
on_each_database!(the_overview_tells_what_waits_runs_and_has_ended, mariadb);

/// `WITH … INSERT` as all databases take it.
fn insert_last(on: On, sql: &str) -> String {
    let (with, rest) = sql.split_once(" INSERT ").unwrap();
    let (insert, select) = rest.split_once(" SELECT ").unwrap();
    // MariaDB ends a recursion after a thousand steps, without a word.
    let first = if on == On::MariaDb { "SET max_recursive_iterations = 1000000; " } else { "" };
    format!("{first}INSERT {insert} {with} SELECT {select}")
}

async fn the_end_of_a_long_error_is_read_too(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    // As long as what is kept of a command's last words.
    let error = format!("the command failed with exit code 1\n{}\nValueError", "x".repeat(4096));
    let insert = "INSERT INTO jobs (type, identifier, status, completed_time, error) VALUES ('ONE', 'x', 'ERROR', 1, ";
    service.sql(&format!("{insert}'{error}')")).await;
    assert_eq!(service.store.overview().await.unwrap().failures[0].error.as_ref(), Some(&error));
}
on_each_database!(the_end_of_a_long_error_is_read_too, mariadb);

async fn what_ends_is_counted_by_the_minute(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    let types: BTreeSet<String> = ["ONE".to_owned(), "TWO".to_owned()].into();
    let now = service.store.now().await.unwrap();
    let end = |flow: &'static str, status: &'static str, minutes_ago: i64| {
        let (service, at) = (&service, now.unix_millis() - minutes_ago * 60_000);
        async move {
            let row = format!("'{flow}', 'x', '{status}', {at}");
            service.sql(&format!("INSERT INTO jobs (type, identifier, status, completed_time) VALUES ({row})")).await;
        }
    };
    for (flow, status, minutes_ago) in [
        ("ONE", "COMPLETED", 0),
        ("ONE", "COMPLETED", 90),
        ("ONE", "ERROR", 90),
        ("TWO", "CANCELLED", 1400),
        ("ONE", "ERROR", 1500),
    ] {
        end(flow, status, minutes_ago).await;
    }
    let mut history = History::default();
    assert!(history.is_far_behind(now, &types));
    history.update(&service.store, now, &types).await.unwrap();
    assert_eq!(history.last_day(None, now), Ended { completed: 2, failed: 1, cancelled: 1 });
    assert_eq!(history.last_day(Some("TWO"), now), Ended { cancelled: 1, ..Ended::default() });
    let halves: Vec<u64> = history.ended(Some("ONE"), now, 120, 2).into_iter().map(Ended::all).collect();
    assert_eq!(halves, [2, 1]);

    // What ended just now is counted at the next look; what was written late is, at the latest, a quarter of an hour on.
    end("ONE", "COMPLETED", 0).await;
    end("TWO", "ERROR", 700).await;
    let later = Timestamp::from_unix_millis(now.unix_millis() + 60_000);
    history.update(&service.store, later, &types).await.unwrap();
    assert_eq!(history.last_day(None, later), Ended { completed: 3, failed: 1, cancelled: 1 });
    let later = Timestamp::from_unix_millis(now.unix_millis() + 20 * 60_000);
    history.update(&service.store, later, &types).await.unwrap();
    assert_eq!(history.last_day(None, later), Ended { completed: 3, failed: 2, cancelled: 1 });
    // A day later nothing of it is left.
    let later = Timestamp::from_unix_millis(now.unix_millis() + 1600 * 60_000);
    history.update(&service.store, later, &types).await.unwrap();
    assert_eq!(history.last_day(None, later), Ended::default());
}
on_each_database!(what_ends_is_counted_by_the_minute, mariadb);

async fn jobs_are_found_by_every_part_of_the_filter(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    let rows: Vec<String> = (1..=60)
        .map(|n| {
            let flow = if n % 2 == 0 { "TWO" } else { "ONE" };
            let status = ["PENDING", "ERROR", "COMPLETED"][n % 3];
            let error = if n % 3 == 1 { "'Disk 100% full_'" } else { "NULL" };
            format!("('{flow}', 'shot-{n:03}', '{status}', {error}, {})", n * 60_000)
        })
        .collect();
    let insert = "INSERT INTO jobs (type, identifier, status, error, created_time) VALUES ";
    service.sql(&format!("{insert}{}", rows.join(", "))).await;
    let find = async |search: JobSearch| service.store.search(&search).await.unwrap();
    let ids = |found: &Found| found.rows.iter().map(|row| row.id.0).collect::<Vec<_>>();
    let all = JobSearch { limit: 50, ..JobSearch::default() };

    let first = find(all.clone()).await;
    assert_eq!((ids(&first).first(), ids(&first).len(), first.next_cursor), (Some(&60), 50, Some(JobId(11))));
    let second = find(JobSearch { cursor: first.next_cursor, ..all.clone() }).await;
    assert_eq!((ids(&second), second.next_cursor), ((1..=10).rev().collect(), None));

    let one = JobSearch { types: vec!["ONE".to_owned()], ..all.clone() };
    assert_eq!(ids(&find(one.clone()).await), (1..=60).rev().filter(|n| n % 2 == 1).collect::<Vec<_>>());
    let failed = JobSearch { statuses: vec![JobStatus::Error, JobStatus::Pending], ..one.clone() };
    assert_eq!(ids(&find(failed).await), (1..=60).rev().filter(|n| n % 2 == 1 && n % 3 != 2).collect::<Vec<_>>());
    let failed = JobSearch { statuses: vec![JobStatus::Error], ..all.clone() };
    assert_eq!(ids(&find(failed).await), (1..=60).rev().filter(|n| n % 3 == 1).collect::<Vec<_>>());

    let text = |text: &str| JobSearch { text: Some(text.to_owned()), ..all.clone() };
    assert_eq!(ids(&find(text("SHOT-00")).await), (1..=9).rev().collect::<Vec<_>>());
    assert_eq!(ids(&find(text("shot-007")).await), [7]);
    assert_eq!(ids(&find(text("#41")).await), [41]);
    assert_eq!(ids(&find(text("100% FULL_")).await).len(), 20);
    for nothing in ["shot%7", "shot_007", "'; DROP TABLE jobs; --", "\0"] {
        assert!(find(text(nothing)).await.rows.is_empty(), "{nothing:?}");
    }

    let time = |minutes: i64| Some(Timestamp::from_unix_millis(minutes * 60_000));
    let timed = JobSearch { from: time(10), until: time(13), ..all.clone() };
    assert_eq!(ids(&find(timed.clone()).await), [12, 11, 10]);
    assert_eq!(ids(&find(JobSearch { types: vec!["TWO".to_owned()], ..timed }).await), [12, 10]);
    assert!(find(JobSearch { from: time(100), ..all }).await.rows.is_empty());
}
on_each_database!(jobs_are_found_by_every_part_of_the_filter, mariadb);

async fn large_payloads_make_short_pages(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    let large = match on {
        On::Sqlite => "'\"' || hex(zeroblob(4500000)) || '\"'",
        On::Postgres => "('\"' || repeat('0', 9000000) || '\"')::json",
        On::MariaDb => "CONCAT('\"', repeat('0', 9000000), '\"')",
    };
    for payload in ["'1'", large, large, "'2'"] {
        service.sql(&format!("INSERT INTO jobs (type, identifier, payload) VALUES ('ONE', 'x', {payload})")).await;
    }
    let with = JobSearch { limit: 50, payloads: true, ..JobSearch::default() };
    let sizes = |found: &Found| {
        let size = |payload: &String| payload.len();
        found.rows.iter().map(|row| (row.id.0, row.payload.as_ref().map(size))).collect::<Vec<_>>()
    };
    let first = service.store.search(&with).await.unwrap();
    assert_eq!((sizes(&first), first.next_cursor), (vec![(4, Some(1)), (3, Some(9_000_002))], Some(JobId(3))));
    let second = service.store.search(&JobSearch { cursor: first.next_cursor, ..with.clone() }).await.unwrap();
    assert_eq!((sizes(&second), second.next_cursor), (vec![(2, Some(9_000_002)), (1, Some(1))], None));
    let without = service.store.search(&JobSearch { payloads: false, ..with }).await.unwrap();
    assert_eq!((sizes(&without), without.next_cursor), (vec![(4, None), (3, None), (2, None), (1, None)], None));
}
on_each_database!(large_payloads_make_short_pages, mariadb);

async fn a_text_is_looked_for_in_a_part_at_a_time(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    service.sql("INSERT INTO jobs (type, identifier) VALUES ('ONE', 'needle in the hay')").await;
    let many = format!("{} INSERT INTO jobs (type, identifier) SELECT 'TWO', 'hay' FROM n", numbers(15_000));
    service.sql(&insert_last(on, &many)).await;
    let search = JobSearch { text: Some("needle".to_owned()), limit: 50, ..JobSearch::default() };
    let first = service.store.search(&search).await.unwrap();
    assert_eq!(
        (first.rows.len(), first.looked_down_to, first.next_cursor),
        (0, Some(JobId(5_001)), Some(JobId(5_001)))
    );
    let second = service.store.search(&JobSearch { cursor: first.next_cursor, ..search.clone() }).await.unwrap();
    assert_eq!((second.rows.len(), second.looked_down_to, second.next_cursor), (1, None, None));
    // A whole identifier is found wherever it is.
    let whole = JobSearch { text: Some("needle in the hay".to_owned()), ..search };
    assert_eq!(service.store.search(&whole).await.unwrap().rows.len(), 1);
}
on_each_database!(a_text_is_looked_for_in_a_part_at_a_time, mariadb);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_refuses_where_there_is_no_terminal() {
    let service = Service::prepare(On::Sqlite, FLOWS).await.unwrap();
    let output = service.cli(&["top"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("top draws on a terminal, and this is none"));
}
