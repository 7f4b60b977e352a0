//! Flows that are bound to workers by label.

use callsheet::domain::JobStatus;

use crate::on_each_database;
use crate::support::eventually;
use crate::support::service::{A_MOMENT, On, Service};

const FLOWS: &str = "[flows.GPU]\n{job}\nrequires = [\"gpu\"]\nheartbeat_timeout = \"5s\"\nkill_grace = \"1s\"\n\
    retry = { maximum_attempts = 2, initial_interval = \"0s\" }\n[flows.ANY]\n{job}\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_worker_with_every_label_runs_a_flows_jobs_and_any_other_settles_them() {
    let Some(first) = Service::start(On::Postgres, FLOWS).await else { return };
    assert!(first.log().contains("this worker claims no jobs of a flow: it lacks a label"), "{}", first.log());
    let job = first.insert("GPU", &["note-term+wait"]).await[0];
    let other = first.insert("ANY", &["exit:0"]).await[0];
    first.until(other, JobStatus::Completed).await;
    assert_eq!(first.job(job).await.status, JobStatus::Pending);
    // It is said wherever somebody may look.
    let told = String::from_utf8(first.cli(&["flows"]).stdout).unwrap();
    assert!(told.contains("no living worker has what it requires: gpu"), "{told}");
    let told = String::from_utf8(first.cli(&["check"]).stderr).unwrap();
    assert!(told.contains("this worker claims no jobs of GPU, which requires gpu"), "{told}");
    let flows = first.get("/api/v1/flows").json();
    assert_eq!((&flows["flows"][1]["requires"][0], &flows["flows"][1]["able_workers"]), (&"gpu".into(), &0.into()));
    eventually("the page to say it", async || {
        let page = first.get("/").text();
        page.contains("1 waits in GPU, and no living worker has what it requires: gpu")
            && page.contains("requires gpu: no living worker has it")
    })
    .await;

    let mut second = Service::prepare_at(Some(first.url.clone()), FLOWS).await;
    second.configure("labels = [\"ssd\", \"gpu\"]\n");
    second.serve().await;
    second.begun(job, 1).await;
    let flows = first.get("/api/v1/flows").json();
    assert_eq!(flows["flows"][1]["able_workers"], 1, "{flows}");
    let workers = first.get("/api/v1/workers").json();
    let labels: Vec<_> = workers["workers"].as_array().unwrap().iter().map(|worker| worker["labels"].clone()).collect();
    assert!(
        labels.contains(&serde_json::json!(["gpu", "ssd"])) && labels.contains(&serde_json::json!([])),
        "{labels:?}"
    );
    let told = String::from_utf8(first.cli(&["workers"]).stdout).unwrap();
    assert!(told.contains("gpu, ssd"), "{told}");
    // One rendering is for all who look within a moment.
    eventually("the page to say it", async || first.get("/workers").text().contains("gpu, ssd")).await;

    // The run of a dead worker is settled by whoever is there, and tried again by whoever may.
    second.until(job, JobStatus::Progress).await;
    second.kill_9();
    eventually("the run to be taken over", async || first.job(job).await.status == JobStatus::Pending).await;
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(first.job(job).await.status, JobStatus::Pending);
    second.go();
    second.serve().await;
    first.until(job, JobStatus::Completed).await;
    assert!(!first.evidence().contains_key(&(job.0, 2)) && second.evidence().contains_key(&(job.0, 2)));
    second.nothing_alive().await;
}

async fn what_a_flow_requires_can_be_changed_while_the_service_runs(on: On) {
    let Some(service) = Service::start(on, FLOWS).await else { return };
    let job = service.insert("GPU", &["exit:0"]).await[0];
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(service.job(job).await.status, JobStatus::Pending);
    let config = service.config();
    service.reload(&config.replace("requires = [\"gpu\"]", "requires = []")).await;
    assert!(service.log().contains("configuration: flow GPU: requires [gpu] -> []"), "{}", service.log());
    service.until(job, JobStatus::Completed).await;
    service.reload(&config).await;
    let next = service.insert("GPU", &["exit:0"]).await[0];
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(service.job(next).await.status, JobStatus::Pending);
}
on_each_database!(what_a_flow_requires_can_be_changed_while_the_service_runs);
