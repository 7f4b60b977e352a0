//! How the service is shipped: under systemd, in a container, with compose.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use callsheet::config::Config;
use callsheet::domain::JobStatus;

use crate::support::service::{On, Service};
use crate::support::tools::{self, ROOT, program, run};
use crate::support::{eventually, own_address};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_is_told_of_start_life_and_stop_and_commands_do_not_see_its_socket() {
    let mut service = Service::prepare(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    let path = service.path("notify").display().to_string();
    let socket = UnixDatagram::bind(&path).unwrap();
    // Heard all the time, since what finds no room in the socket is lost.
    let (sender, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            sender.send(String::from_utf8(buffer[..length].to_vec()).unwrap()).ok();
        }
    });
    let hear = || heard.recv_timeout(Duration::from_secs(60)).expect("a message to the service manager");
    service.serve_with(&[("NOTIFY_SOCKET", &path), ("WATCHDOG_USEC", "600000")]).await;
    let first = hear();
    assert!(first.starts_with("READY=1\nSTATUS=working: 0 runs"), "{first}");
    let lasting = service.insert("ONE", &["environment+wait"]).await[0];
    service.begun(lasting, 1).await;
    service.until(lasting, JobStatus::Progress).await;
    let (mut alive, mut status) = (0, String::new());
    while alive < 3 || !status.contains("working: 1 run") {
        match hear().as_str() {
            "WATCHDOG=1" => alive += 1,
            other => other.clone_into(&mut status),
        }
    }
    let environment = fs::read_to_string(service.path(&format!("evidence/{lasting}.1.environment"))).unwrap();
    assert!(!environment.contains(&path) && !environment.contains("WATCHDOG_USEC"), "{environment}");
    assert!(environment.contains("NOTIFY_SOCKET="), "its own: {environment}");
    service.stop().await;
    let mut last = hear();
    while !last.starts_with("STOPPING=1") {
        last = hear();
    }
    assert!(last.contains("EXTEND_TIMEOUT_USEC=55000000"), "{last}");
    assert!(service.alive().iter().any(|(_, command)| command.contains("job.sh")), "the command runs on");

    // A watchdog of another process is none of ours, and a socket that is not there keeps nobody from working.
    fs::remove_file(&path).unwrap();
    service.serve_with(&[("NOTIFY_SOCKET", &path), ("WATCHDOG_USEC", "600000"), ("WATCHDOG_PID", "1")]).await;
    service.go();
    service.until(lasting, JobStatus::Completed).await;
    service.nothing_alive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_ready_answers_for_a_health_check() {
    let mut service = Service::prepare(On::Sqlite, "[flows.ONE]\n{job}\n").await.unwrap();
    let address = own_address().to_string();
    let config = fs::read_to_string(service.path("callsheet.toml")).unwrap().replace("127.0.0.1:0", &address);
    fs::write(service.path("callsheet.toml"), &config).unwrap();
    let before = service.cli(&["check", "--ready"]);
    assert_eq!(before.status.code(), Some(1), "{}", tools::said(&before));
    assert!(tools::said(&before).contains(&address), "{}", tools::said(&before));
    service.serve().await;
    eventually("a service that is ready", async || {
        let output = service.cli(&["check", "--ready"]);
        output.status.success() && String::from_utf8_lossy(&output.stdout) == "ready\n"
    })
    .await;
    fs::write(service.path("callsheet.toml"), config.replace(&address, "off")).unwrap();
    let off = service.cli(&["check", "--ready"]);
    assert_eq!(off.status.code(), Some(2), "{}", tools::said(&off));
}

#[test]
fn systemd_has_nothing_to_say_about_the_unit() {
    let Some(analyze) = program("systemd-analyze") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let unit = fs::read_to_string(format!("{ROOT}/docs/callsheet.service")).unwrap();
    // What `init` writes does not start there as it is.
    assert!(
        unit.contains("data_dir = \"/var/lib/callsheet\"") && unit.contains("callsheet callsheet-shim /usr/local/bin/")
    );
    assert!(callsheet::config::TEMPLATE.contains("\"/var/lib/callsheet\""));
    for wanted in
        ["Type=notify", "WatchdogSec=", "KillMode=process", "Delegate=yes", "OOMPolicy=continue", "Restart=on-failure"]
    {
        assert!(unit.lines().any(|line| line.starts_with(wanted)), "the unit has no {wanted}");
    }
    // systemd wants to see the program.
    let verify = |unit: &str| {
        let path = scratch.path().join("callsheet.service");
        fs::write(&path, unit.replace("/usr/local/bin/callsheet", env!("CARGO_BIN_EXE_callsheet"))).unwrap();
        let output = Command::new(&analyze).arg("verify").arg(&path).output().unwrap();
        (output.status.success(), tools::said(&output))
    };
    let (good, said) = verify(&unit);
    // What it says about other units of this machine is not ours.
    let ours: Vec<_> = said.lines().filter(|line| line.contains("callsheet")).collect();
    assert!(good && ours.is_empty(), "{said}");
    let (_, said) = verify(&unit.replace("KillMode=process", "KillMode=everything"));
    assert!(said.contains("KillMode") || said.contains("kill mode"), "a mistake is found: {said}");
}

#[test]
fn the_shell_of_sqlite_is_told_to_wait_for_its_turn() {
    for page in ["README.md", "docs/operations.md"] {
        let text = fs::read_to_string(format!("{ROOT}/{page}")).unwrap();
        let beside_a_service =
            |line: &&str| line.starts_with("$ sqlite3 ") && (line.contains("INSERT") || line.contains(".backup"));
        let lines: Vec<&str> = text.lines().filter(beside_a_service).collect();
        assert!(
            !lines.is_empty() && lines.iter().all(|line| line.contains("-cmd \".timeout 5000\"")),
            "{page}: {lines:?}"
        );
    }
}

#[test]
fn the_dockerfile_is_linted_and_never_root() {
    let Some(hadolint) = program("hadolint") else { return };
    run(Command::new(hadolint).arg(format!("{ROOT}/Dockerfile")));
    let dockerfile = fs::read_to_string(format!("{ROOT}/Dockerfile")).unwrap();
    let after = |instruction: &str| dockerfile.lines().filter(|line| line.starts_with(instruction)).collect::<Vec<_>>();
    assert_eq!(after("USER "), ["USER 8440:8440"]);
    assert!(after("FROM ").len() == 2 && after("HEALTHCHECK ").len() == 1 && after("ENTRYPOINT ")[0].contains("tini"));
    // Whatever is copied is there, and nothing else gets into the build.
    for line in after("COPY ").iter().filter(|line| !line.contains("--from=")) {
        for source in line.split_whitespace().skip(1).collect::<Vec<_>>().split_last().unwrap().1 {
            assert!(Path::new(ROOT).join(source).exists(), "{line}: no {source}");
            let top = source.split('/').next().unwrap();
            let ignored = fs::read_to_string(format!("{ROOT}/.dockerignore")).unwrap();
            assert!(ignored.lines().any(|line| line == format!("!{top}")), "{source} is ignored");
        }
    }
}

/// The build takes ten minutes; what its steps do before cargo does not.
#[test]
fn the_steps_of_the_image_are_right_for_a_shell_and_make_what_cargo_looks_for() {
    let dockerfile = fs::read_to_string(format!("{ROOT}/Dockerfile")).unwrap().replace("\\\n", " ");
    let steps: Vec<&str> = dockerfile.lines().filter_map(|line| line.strip_prefix("RUN ")).collect();
    assert_eq!(steps.len(), 3, "{steps:?}");
    for step in &steps {
        run(Command::new("sh").args(["-n", "-c", step]));
    }
    let scratch = tempfile::tempdir().unwrap();
    let copy = |path: &str| {
        let to = scratch.path().join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(format!("{ROOT}/{path}"), to).unwrap();
    };
    ["Cargo.toml", "Cargo.lock", "entity/Cargo.toml", "migration/Cargo.toml"].into_iter().for_each(copy);
    let (before, build) = steps[0].split_once("&& cargo ").unwrap();
    run(Command::new("sh").args(["-e", "-c", before.trim_end()]).current_dir(scratch.path()));
    assert!(build.trim_start().starts_with("build --locked --profile dist --bins"));
    // Reads every manifest, and wants a file for each program in them.
    let mut plan = Command::new(env!("CARGO"));
    plan.args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]).current_dir(scratch.path());
    assert!(run(&mut plan).contains("callsheet"));
}

#[test]
fn the_compose_file_is_valid_and_so_is_what_it_configures() {
    let Some(check) = program("check-jsonschema") else { return };
    let compose = format!("{ROOT}/compose.yaml");
    run(Command::new(&check).args(["--builtin-schema", "vendor.compose-spec", &compose]));
    let read = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let json = run(Command::new(check.with_file_name("python")).args(["-c", read, &compose]));
    let compose: serde_json::Value = serde_json::from_str(&json).unwrap();
    let scratch = tempfile::tempdir().unwrap();

    let toml = compose["configs"]["callsheet"]["content"].as_str().unwrap();
    let config = Config::parse(toml, &scratch.path().join("callsheet.toml")).unwrap();
    assert!(!config.http.listen.unwrap().ip().is_loopback(), "Prometheus is on another machine");
    let environment = compose["services"]["callsheet"]["environment"].as_object().unwrap();
    assert!(environment["DATABASE_URL"].as_str().unwrap().contains("@postgres/"));
    for token in toml.lines().filter_map(|line| line.strip_prefix("token_env = ")) {
        assert!(environment.contains_key(token.trim_matches('"')), "{token} is not set");
    }
    let Some(promtool) = program("promtool") else { return };
    let prometheus = compose["configs"]["prometheus"]["content"].as_str().unwrap();
    assert!(prometheus.contains(environment["CALLSHEET_VIEWER_TOKEN"].as_str().unwrap()));
    fs::write(scratch.path().join("prometheus.yml"), prometheus).unwrap();
    fs::copy(format!("{ROOT}/grafana/prometheus/callsheet.rules.yml"), scratch.path().join("callsheet.rules.yml"))
        .unwrap();
    run(Command::new(promtool).args(["check", "config", "prometheus.yml"]).current_dir(scratch.path()));
    // Every file that is mounted is there, and every volume declared.
    for (name, service) in compose["services"].as_object().unwrap() {
        for volume in service["volumes"].as_array().unwrap() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            let found = match source.strip_prefix("./") {
                Some(path) => Path::new(ROOT).join(path).exists(),
                None => compose["volumes"].as_object().unwrap().contains_key(source),
            };
            assert!(found, "{name}: no {source}");
        }
        let loopback = |port: &serde_json::Value| port.as_str().unwrap().starts_with("127.0.0.1:");
        assert!(
            service["ports"].as_array().is_none_or(|ports| ports.iter().all(loopback)),
            "{name} is open to the network"
        );
    }
}
