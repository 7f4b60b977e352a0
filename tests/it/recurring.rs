//! Recurring jobs: one job for each fire, over restarts, crashes, two services, missed fires and changed settings.

use std::time::Duration;

use callsheet::config::{Config, FlowConfig};
use callsheet::domain::{JobId, JobStatus, Timestamp};
use callsheet::store::{JobFilter, JobRow, Store, Use};

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{On, Service};

const HOUR: i64 = 3_600_000;
const FLOWS: &str = "[flows.ONE]\n{job}\nconcurrency = 9\n";

fn entry(name: &str, line: &str, more: &str) -> String {
    format!("[[flows.ONE.recurring]]\nname = \"{name}\"\nidentifier = \"say:{name}\"\nschedule = \"{line}\"\n{more}\n")
}

/// The flow as a service would read it.
fn flow(entries: &str) -> FlowConfig {
    let text = format!("[flows.ONE]\ncommand = [\"true\"]\n{entries}");
    let config = Config::parse(&text, std::path::Path::new("/callsheet.toml")).unwrap();
    FlowConfig::clone(config.flows.values().next().unwrap())
}

async fn jobs(service: &Service, name: &str) -> Vec<JobRow> {
    let filter = JobFilter { identifier: Some(format!("say:{name}")), limit: 1000, ..JobFilter::default() };
    let mut rows = service.store.list(&filter).await.unwrap().rows;
    rows.sort_by_key(|row| row.run_at);
    rows
}

/// Lets the entries look as if nobody had looked at them for so long.
async fn leave_alone(service: &Service, hours: i64) {
    service.sql(&format!("UPDATE recurring SET fired_until = fired_until - {}", hours * HOUR)).await;
}

/// The full hours after `from` and up to `to`.
fn hours(from: Timestamp, to: Timestamp) -> Vec<i64> {
    (from.unix_millis() / HOUR + 1..=to.unix_millis() / HOUR).map(|hour| hour * HOUR).collect()
}

async fn what_was_missed_is_caught_up_once_whoever_looks(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    let entries = [("skip", "skip"), ("one", "one"), ("all", "all")]
        .map(|(name, policy)| entry(name, "0 * * * *", &format!("catch_up = \"{policy}\"")))
        .join("");
    let flow = flow(&entries);
    let start = service.store.now().await.unwrap();
    // One that is new has missed nothing.
    assert!(service.store.fire(&flow).await.unwrap().fires.iter().all(|fire| fire.time > start));
    let began = service.store.recurring().await.unwrap()[0].fired_until;
    leave_alone(&service, 30).await;
    // Many look at the same moment, of two services.
    let other = Store::connect(&service.url.parse().unwrap(), Use::Service).await.unwrap();
    let stores = [&service.store, &other, &service.store, &other, &service.store, &other];
    let looks = stores.map(|store| {
        let (store, flow) = (store.clone(), flow.clone());
        tokio::spawn(async move { store.fire(&flow).await.unwrap() })
    });
    let mut next = None;
    for look in looks {
        next = look.await.unwrap().next;
    }
    assert!(next.is_some_and(|next| next <= Duration::from_secs(3600)));
    let now = service.store.now().await.unwrap();
    let rows = service.store.recurring().await.unwrap();
    let row = |name| rows.iter().find(|row| row.name == name).unwrap();
    // Up to when it was looked, which may be before an hour that has begun since.
    let missed = |name| {
        let from = Timestamp::from_unix_millis(began.unix_millis() - 30 * HOUR);
        let (least, most) = (hours(from, start), hours(from, row(name).fired_until));
        assert!(most.starts_with(&least) && row(name).fired_until <= now, "{name}: {least:?} {most:?} {now:?}");
        most
    };
    let (missed, of_one) = (missed("all"), missed("one"));
    let of = async |name| jobs(&service, name).await.iter().map(|job| job.run_at.unix_millis()).collect::<Vec<_>>();
    assert_eq!(of("all").await, missed, "each once");
    assert_eq!(of("one").await, of_one[of_one.len() - 1..]);
    assert!(of("skip").await.len() <= 1, "at most one that was on time");
    let keys: Vec<_> = jobs(&service, "all").await.into_iter().filter_map(|job| job.unique_key).collect();
    assert!(
        keys.len() == missed.len() && keys[0].starts_with("recurring all 20") && keys[0].ends_with(":00:00Z"),
        "{keys:?}"
    );
    assert_eq!(row("all").last_fire_time.map(Timestamp::unix_millis), missed.last().copied());
    // A clock that is set back by hours: nothing comes twice.
    service.sql(&format!("UPDATE recurring SET fired_until = fired_until + {}", 5 * HOUR)).await;
    assert!(service.store.fire(&flow).await.unwrap().fires.is_empty());
}
on_each_database!(what_was_missed_is_caught_up_once_whoever_looks, mariadb);

async fn a_job_that_has_not_ended_is_not_overlapped_where_nobody_wants_it(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    let flow = flow(&entry("skip", "0 * * * *", "overlap = \"skip\"\ncatch_up = \"all\""));
    service.store.fire(&flow).await.unwrap();
    leave_alone(&service, 3).await;
    let fires = service.store.fire(&flow).await.unwrap().fires;
    assert!(
        fires.len() >= 3 && fires[0].job.is_some() && fires[1..].iter().all(|fire| fire.job.is_none()),
        "{fires:?}"
    );
    leave_alone(&service, 1).await;
    assert!(service.store.fire(&flow).await.unwrap().fires.iter().all(|fire| fire.job.is_none()));
    service.store.request_cancel(fires[0].job.unwrap()).await.unwrap();
    leave_alone(&service, 1).await;
    let after: Vec<_> = service.store.fire(&flow).await.unwrap().fires;
    assert_eq!(after.iter().filter(|fire| fire.job.is_some()).count(), 1, "{after:?}");
    assert_eq!(jobs(&service, "skip").await.len(), 2);
}
on_each_database!(a_job_that_has_not_ended_is_not_overlapped_where_nobody_wants_it, mariadb);

async fn a_line_that_is_changed_has_missed_nothing(on: On) {
    let Some(service) = Service::prepare(on, FLOWS).await else { return };
    let yearly = flow(&entry("a", "0 0 1 1 *", "catch_up = \"all\""));
    service.store.fire(&yearly).await.unwrap();
    leave_alone(&service, 24).await;
    let hourly = flow(&entry("a", "0 * * * *", "catch_up = \"all\""));
    assert!(service.store.fire(&hourly).await.unwrap().fires.len() <= 1, "at most one that was on time");
    leave_alone(&service, 24).await;
    assert!(service.store.fire(&hourly).await.unwrap().fires.len() >= 23, "now it has");
}
on_each_database!(a_line_that_is_changed_has_missed_nothing, mariadb);

async fn a_service_runs_them_over_its_own_death(on: On) {
    let Some(mut service) = Service::prepare(on, FLOWS).await else { return };
    service.configure(&entry("all", "0 * * * *", "catch_up = \"all\"\npayload = '{\"n\": 7}'\npriority = 3"));
    service.serve().await;
    eventually("the entry to be known", async || !service.store.recurring().await.unwrap().is_empty()).await;
    service.kill_9();
    let began = service.store.recurring().await.unwrap()[0].fired_until;
    leave_alone(&service, 4).await;
    service.serve().await;
    // An hour may begin at any time, and brings one more.
    let missed = async || {
        let now = service.store.now().await.unwrap();
        hours(Timestamp::from_unix_millis(began.unix_millis() - 4 * HOUR), now).len()
    };
    let least = missed().await;
    eventually("the missed jobs", async || jobs(&service, "all").await.len() >= least).await;
    for job in jobs(&service, "all").await {
        let done = service.until(job.id, JobStatus::Completed).await;
        assert_eq!((done.priority, done.payload.as_deref()), (3, Some("{\"n\": 7}")));
    }
    let there = jobs(&service, "all").await.len();
    let most = missed().await;
    assert!((least..=most).contains(&there), "{there} jobs of {least} to {most} hours");
    // What there is, by the command line and by HTTP.
    let output = service.cli(&["recurring", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, service.get("/api/v1/recurring").json());
    let shown = &json["recurring"][0];
    let last = jobs(&service, "all").await.last().unwrap().id;
    assert_eq!((shown["name"].as_str(), shown["last_job_id"].as_i64()), (Some("all"), Some(last.0)));
    assert!(shown["next_fire_time"].as_str() > shown["last_fire_time"].as_str(), "{json}");
    let table = String::from_utf8_lossy(&service.cli(&["recurring"]).stdout).into_owned();
    assert!(table.contains("NEXT FIRE") && table.contains("0 * * * *"), "{table}");
    let page = service.get("/").text();
    let (_, part) = page.split_once("<h2>Recurring jobs</h2>").expect("the overview shows them");
    let part = part.split("</table>").next().unwrap();
    for shown in [
        "0 * * * *",
        "UTC",
        "each is made up for",
        "enqueues another",
        &format!("href=\"/jobs/{last}\""),
        "data-said=\"ago\">in ",
    ] {
        assert!(part.contains(shown), "no {shown} in {part}");
    }
    // Read anew: another entry of its own, one of every minute that is due within one.
    let config = std::fs::read_to_string(service.path("callsheet.toml")).unwrap();
    std::fs::write(service.path("callsheet.toml"), config + &entry("minutely", "* * * * *", "")).unwrap();
    service.signal(rustix::process::Signal::HUP);
    eventually("the new entry", async || service.store.recurring().await.unwrap().len() == 2).await;
    service.sql("UPDATE recurring SET fired_until = fired_until - 60000 WHERE name = 'minutely'").await;
    // Settings that have changed are looked at at once.
    let config = std::fs::read_to_string(service.path("callsheet.toml")).unwrap();
    std::fs::write(service.path("callsheet.toml"), config + "priority = 1\n").unwrap();
    service.signal(rustix::process::Signal::HUP);
    let first = async || jobs(&service, "minutely").await.first().map(|job| job.id);
    eventually("its first job", async || first().await.is_some()).await;
    service.until(first().await.unwrap_or(JobId(0)), JobStatus::Completed).await;
}
on_each_database!(a_service_runs_them_over_its_own_death, mariadb);
