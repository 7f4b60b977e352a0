//! Several workers of one PostgreSQL: how many runs there are at once, over all of them and on each.

use std::time::{Duration, Instant};

use callsheet::domain::{JobId, JobStatus};

use crate::support::eventually;
use crate::support::service::{On, Service, most_at_once};

/// So many services on one database, each with these lines before its flows.
async fn workers(count: usize, flows: &str) -> Option<Vec<Service>> {
    let mut services = vec![Service::prepare(On::Postgres, flows).await?];
    for _ in 1..count {
        services.push(Service::prepare_at(Some(services[0].url.clone()), flows).await);
    }
    for service in &mut services {
        service.serve().await;
    }
    Some(services)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_over_all_workers_and_on_each_while_all_of_them_claim() {
    const JOBS: usize = 200;
    let flows = "[flows.MANY]\n{job}\nconcurrency = 4\nworker_concurrency = 2\n\
        [flows.SIX]\n{job}\nconcurrency = 6\nworker_concurrency = 2\n";
    let Some(services) = workers(3, flows).await else { return };
    let rows = format!("INSERT INTO jobs (type, identifier) SELECT 'MANY', 'run:0.01' FROM generate_series(1, {JOBS})");
    services[0].sql(&rows).await;
    let last = JobId(i64::try_from(JOBS).unwrap());
    eventually("every job to end", async || {
        let flows = services[0].store.flow_states().await.unwrap();
        flows.iter().map(|flow| flow.pending + flow.inqueue + flow.progress).sum::<u64>() == 0
    })
    .await;
    assert_eq!(services[0].job(last).await.status, JobStatus::Completed);
    let mut all = std::collections::BTreeMap::new();
    for service in &services {
        let own = service.evidence();
        assert!(most_at_once(&own) <= 2, "{}", most_at_once(&own));
        for (run, evidence) in own {
            assert!(all.insert(run, evidence).is_none(), "{run:?} ran twice");
        }
    }
    assert_eq!(all.len(), JOBS);
    assert!(all.keys().all(|(_, attempt)| *attempt == 1));
    assert!(most_at_once(&all) <= 4, "{}", most_at_once(&all));
    // As many as there may be, and each with its part, told by commands that wait: the short ones need not have met.
    let alive = |service: &Service| service.evidence().values().filter(|run| run.end.is_none()).count();
    services[0].sql("INSERT INTO jobs (type, identifier) SELECT 'MANY', 'wait' FROM generate_series(1, 6)").await;
    eventually("four to run", async || services.iter().map(alive).sum::<usize>() == 4).await;
    services[0].sql("INSERT INTO jobs (type, identifier) SELECT 'SIX', 'wait' FROM generate_series(1, 9)").await;
    eventually("six more to run", async || services.iter().map(alive).sum::<usize>() == 10).await;
    let of_six = |service: &Service| service.evidence().keys().filter(|(job, _)| *job > last.0 + 6).count();
    assert_eq!(services.iter().map(of_six).collect::<Vec<_>>(), [2, 2, 2]);
    services.iter().for_each(Service::go);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_gets_its_share_and_where_nobody_takes_it_another_does() {
    let flows = "[flows.FOUR]\n{job}\nconcurrency = 4\n";
    let Some(services) = workers(2, flows).await else { return };
    let alive = |service: &Service| service.evidence().values().filter(|run| run.end.is_none()).count();
    // All at once, so that whoever comes first could take them all, and would each time; on a machine that is busy the other
    // one may come too late, as it may for as long as the machine is.
    let (mut shares, begun) = (Vec::new(), Instant::now());
    while !shares.contains(&[2, 2]) {
        assert!(begun.elapsed() < Duration::from_secs(120), "{shares:?}");
        services[0].sql("INSERT INTO jobs (type, identifier) SELECT 'FOUR', 'wait' FROM generate_series(1, 4)").await;
        eventually("all four to run", async || services.iter().map(alive).sum::<usize>() == 4).await;
        shares.push([alive(&services[0]), alive(&services[1])]);
        services.iter().for_each(Service::go);
        eventually("them to end", async || services.iter().all(|service| alive(service) == 0)).await;
        for service in &services {
            std::fs::remove_file(service.path("evidence/go")).unwrap();
        }
        eventually("them to be settled", async || services[0].store.flow_states().await.unwrap()[0].progress == 0)
            .await;
    }
    // One that is frozen still counts as living, here for an hour; what it does not take is not left lying.
    services[1].signal(rustix::process::Signal::STOP);
    services[0].sql("UPDATE workers SET heartbeat_time = heartbeat_time + 3600000").await;
    services[0].sql("INSERT INTO jobs (type, identifier) SELECT 'FOUR', 'wait' FROM generate_series(1, 4)").await;
    eventually("all four to run on the other", async || alive(&services[0]) == 4).await;
    services[1].signal(rustix::process::Signal::CONT);
    services[0].go();
}
