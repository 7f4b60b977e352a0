//! The description of the API against the API: schemathesis makes requests of every kind from `/api/openapi.json`, and
//! every answer has to be one that the description knows.

use std::process::Command;

use serde_json::json;

use crate::support::service::{On, Service};
use crate::support::tools::{ROOT, program, run};

const TOKEN: &str = "Authorization: Bearer do-everything";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_one_that_the_description_knows() {
    let Some(schemathesis) = program("schemathesis") else { return };
    let mut service = Service::prepare(On::Sqlite, "[flows.ONE]\n{job}\nconcurrency = 4\n").await.unwrap();
    service.configure("[[http.tokens]]\nname = \"ops\"\nrole = \"operator\"\ntoken_env = \"CALLSHEET_TEST_TOKEN\"\n");
    service.serve_with(&[("CALLSHEET_TEST_TOKEN", "do-everything")]).await;
    let jobs: Vec<_> = (0..3).map(|n| json!({"type": "ONE", "identifier": format!("say:{n}")})).collect();
    let headers = [TOKEN, "Content-Type: application/json"];
    assert_eq!(service.request("POST", "/api/v1/jobs", &headers, json!(jobs).to_string().as_bytes()).status, 201);
    let address = format!("http://{}", service.address());
    let mut command = Command::new(schemathesis);
    command
        .args([
            "--config-file",
            &format!("{ROOT}/tests/schemathesis.toml"),
            "run",
            &format!("{address}/api/openapi.json"),
        ])
        .args(["--url", &address, "--header", TOKEN])
        .current_dir(service.scratch.path());
    let said = run(&mut command);
    // It warns of what random data can't reach, such as a job that has failed; its checks must all have passed.
    let (_, cases) = said.split_once("Test cases:").unwrap_or_else(|| panic!("{said}"));
    let mut counts = cases.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
    let (generated, passed) = (counts.next().unwrap(), counts.next().unwrap());
    assert!(generated > 200 && passed == generated && !said.contains("Unresolvable"), "{said}");
    assert_eq!(service.get("/readyz").status, 200);
}
