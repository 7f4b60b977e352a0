//! The command line from outside: what each command prints, where, and with which exit code.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use assert_cmd::Command;
use callsheet::domain::run::{Next, Usage};
use callsheet::domain::{FlowType, JobId, JobStatus, Outcome, RunToken, Timestamp, WorkerId};
use callsheet::process::run_dir;
use callsheet::store::{Claim, Due, NewJob, ProgressNote, Settlement, Started, Store, Use, Write, Written};
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::service::On;
use super::support::{eventually, mariadb, postgres};
use crate::on_each_database;

const CONFIG: &str = "\
[flows.SEQ]
command = [\"true\", \"{identifier}\"]
[flows.PAR]
command = [\"true\"]
concurrency = 4
";

/// A directory with a configuration in it.
struct Place(TempDir);

/// What a command came to.
struct Came {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new(config: &str) -> Self {
        let place = Self::empty();
        std::fs::write(place.path("callsheet.toml"), config).unwrap();
        place
    }

    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("callsheet"));
        for variable in ["CALLSHEET_CONFIG", "DATABASE_URL", "NOTIFY_SOCKET", "RUST_LOG"] {
            command.env_remove(variable);
        }
        command.current_dir(self.0.path()).args(arguments).timeout(Duration::from_secs(60));
        command
    }

    fn run(&self, arguments: &[&str]) -> Came {
        came(&mut self.command(arguments))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let came = self.run(arguments).exits(0);
        serde_json::from_str(&came.stdout).unwrap_or_else(|error| panic!("{error}: {}", came.stdout))
    }

    async fn store(&self) -> Store {
        let store =
            Store::connect(&format!("sqlite://{}", self.database()).parse().unwrap(), Use::Service).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    fn database(&self) -> String {
        std::fs::create_dir_all(self.path("callsheet-data")).unwrap();
        self.path("callsheet-data/callsheet.db").display().to_string()
    }
}

fn came(command: &mut Command) -> Came {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Came { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Came {
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        self
    }

    fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{text:?} is not said in: {}", self.stderr);
        self
    }

    fn prints(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "{text:?} is not printed in: {}", self.stdout);
        self
    }

    fn prints_nothing(self) -> Self {
        assert_eq!(self.stdout, "");
        self
    }
}

#[test]
fn init_writes_a_valid_file_and_never_overwrites() {
    let place = Place::empty();
    place.run(&["init"]).exits(0).prints("wrote callsheet.toml");
    place.run(&["check"]).exits(0).prints("ok: ");
    std::fs::write(place.path("callsheet.toml"), "mine").unwrap();
    place.run(&["init"]).exits(2).says("callsheet.toml exists already").prints_nothing();
    assert_eq!(std::fs::read_to_string(place.path("callsheet.toml")).unwrap(), "mine");
    assert_eq!(place.json(&["--config", "other.toml", "--json", "init"]), json!({ "config": "other.toml" }));
}

#[test]
fn help_has_examples() {
    let place = Place::empty();
    let commands = [
        "init",
        "check",
        "serve",
        "enqueue",
        "list",
        "show",
        "logs",
        "cancel",
        "retry",
        "pause",
        "resume",
        "drain",
        "flows",
        "workers",
        "migrate",
        "completions",
        "notify",
        "demo",
    ];
    for command in commands {
        place.run(&[command, "--help"]).exits(0).prints("Example");
    }
    insta::assert_snapshot!("help", place.run(&["-h"]).exits(0).stdout);
    insta::assert_snapshot!("help_enqueue", place.run(&["enqueue", "-h"]).exits(0).stdout);
}

#[test]
fn wrong_usage_exits_with_2() {
    let place = Place::new(CONFIG);
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["list", "--status", "DONE"],
        &["list", "--limit", "0"],
        &["list", "--cursor", "x"],
        &["show", "abc"],
        &["enqueue", "SEQ"],
        &["enqueue", "SEQ", "a", "--delay", "soon"],
        &["enqueue", "SEQ", "a", "--run-at", "tomorrow"],
        &["enqueue", "SEQ", "a", "--delay", "1s", "--run-at", "2026-11-23T10:00:00Z"],
        &["enqueue", "SEQ", "a", "--payload", "{"],
        &["enqueue", "SEQ", "a", "--maximum-attempts", "0"],
        &["enqueue", "SEQ", "a", "b", "--unique-key", "k"],
        &["enqueue", "SEQ", "--from", "missing.txt"],
        &["cancel"],
        &["cancel", "--status", "COMPLETED"],
        &["retry"],
        &["retry", "--status", "COMPLETED"],
        &["retry", "1", "--identifier", "a"],
        &["pause"],
        &["resume", "a b"],
        &["drain", "--worker", "a b"],
        &["--config", "missing.toml", "check"],
        &["--database-url", "oracle://x", "list"],
        &["notify"],
        &["notify", "--progress", "101"],
        &["completions", "tcsh"],
    ] {
        let came = place.run(arguments);
        assert_eq!(came.code, 2, "{arguments:?}: {}", came.stderr);
        assert!(!came.stderr.is_empty() && came.stdout.is_empty(), "{arguments:?}");
    }
    assert!(!place.path("callsheet-data").exists(), "nothing was written");
}

#[test]
fn check_prints_every_problem_with_its_place() {
    let place = Place::new(
        "data_dir = \"callsheet.toml\"\n[flows.A]\ncommand = [\"no-such-program\"]\nworking_dir = \"nowhere\"\n",
    );
    std::fs::write(place.path("plain"), "").unwrap();
    let came = place.run(&["check"]).exits(2).prints_nothing();
    came.says("callsheet.toml:1:12: ")
        .says("is no directory\n")
        .says("callsheet.toml:3:12: the program \"no-such-program\" of A is not in any directory of PATH")
        .says("callsheet.toml:4:15: the working_dir ")
        .says("found 3 problems");
    std::fs::write(place.path("callsheet.toml"), "[flows.A]\ncommand = [\"./plain\"]\ntimezone = \"Mars\"\n").unwrap();
    let problems = place.run(&["--json", "check"]).exits(2).stdout;
    let problems: Value = serde_json::from_str(&problems).unwrap();
    assert_eq!(problems["ok"], json!(false));
    assert_eq!((&problems["problems"][0]["line"], &problems["problems"][0]["column"]), (&json!(3), &json!(12)));
    place.run(&["list"]).exits(2).says("callsheet.toml:3:12: \"Mars\" is no time zone");
    std::fs::write(place.path("callsheet.toml"), "[flows.A]\ncommand = [\"./plain\"]\n").unwrap();
    place.run(&["check"]).exits(2).says("callsheet.toml:2:12: the program ").says("can't be executed");
}

#[test]
fn check_says_one_thing_about_each_mistake() {
    let place = Place::new("[flows.A]\ncommand = \"echo hi\"\nschedule = \"0 25 * * *\"\n");
    let came = place.run(&["check"]).exits(2);
    let came = came
        .says("`command` must be a list of texts, not a text")
        .says("the hour, \"25\": one of its numbers is out of bounds")
        .says("has 2 problems; programs, directories and the database were not looked at yet");
    assert!(!came.stderr.contains("Component error"), "{}", came.stderr);
    place.run(&["list"]).exits(2).says("has 2 problems; nothing was done");
    std::fs::write(place.path("file"), "").unwrap();
    let config = "\
[flows.A]
command = [\"/nowhere/program\"]
[flows.B]
command = [\"./program\"]
working_dir = \"file/below\"
";
    std::fs::write(place.path("callsheet.toml"), config).unwrap();
    let came = place.run(&["check"]).exits(2).says("found 2 problems");
    let came = came.says("the program \"/nowhere/program\" of A does not exist").says("/file is no directory");
    assert!(!came.stderr.contains("relative to working_dir"), "{}", came.stderr);
}

#[test]
fn a_configuration_that_never_ends_is_not_read() {
    let place = Place::empty();
    rustix::fs::mknodat(rustix::fs::CWD, place.path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for path in ["pipe", "/dev/zero", "."] {
        place.run(&["--config", path, "check"]).exits(2).says("is no regular file");
    }
}

#[test]
fn check_tells_a_directory_from_a_program_and_no_service_from_no_actor() {
    let place = Place::new("[http]\nlisten = \"127.0.0.1:1\"\n[flows.A]\ncommand = [\"/tmp\"]\n");
    place.run(&["check"]).exits(2).says("the program /tmp of A is a directory");
    let came = place.run(&["check", "--ready"]).exits(1).says("no service answers at 127.0.0.1:1");
    assert!(!came.stderr.contains("actors"), "{}", came.stderr);
}

#[test]
fn check_finds_programs_without_a_path_as_serve_does() {
    let place = Place::new("[flows.A]\ncommand = [\"sh\"]\n");
    came(place.command(&["check"]).env_remove("PATH")).exits(0);
    came(place.command(&["check"]).env("PATH", "/nowhere")).exits(2).says("is not in any directory of PATH");
}

#[test]
fn wrong_values_are_told_with_what_to_write() {
    let place = Place::new(CONFIG);
    place.run(&["enqueue", "SEQ", "a", "--delay", "-5s"]).exits(2).says("a delay is not negative");
    place.run(&["enqueue", "SEQ", "a", "--run-at", "2026-11-23"]).exits(2).says("write 2026-11-23T08:00:00Z");
    let came = place.run(&["list", "--bogus", "--json"]).exits(2).prints_nothing();
    let error: Value = serde_json::from_str(&came.stderr).unwrap();
    assert_eq!((&error["error"], &error["exit_code"]), (&json!("unexpected argument '--bogus' found"), &json!(2)));
    place.run(&["list", "--json", "--help"]).exits(0).prints("Usage: callsheet list");
}

/// What `serve` would fail of is found by `check`, which writes nothing, and said in the same words.
#[test]
fn what_serve_fails_of_is_found_by_check() {
    let place = Place::new(&format!("[http]\nlisten = \"off\"\n{CONFIG}"));
    let both = |options: &[&str], code: i32, sentence: &str| {
        for command in ["check", "serve"] {
            place.run(&[options, &[command]].concat()).exits(code).says(sentence);
        }
        assert!(!place.path("callsheet-data/callsheet.db").exists(), "{options:?}: something was written");
    };
    both(&["--data-dir", "/proc/x"], 2, "the data directory /proc/x does not exist and can't be made in /proc");
    both(
        &["--database-url", "sqlite:///proc/x/a.db"],
        2,
        "the database's directory /proc/x does not exist and can't be",
    );
    std::fs::write(place.path("file"), "").unwrap();
    both(&["--database-url", "sqlite://file/a.db"], 2, "/file is no directory");
    for command in ["check", "serve"] {
        let mut command = place.command(&[command]);
        came(command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "nope"))
            .exits(2)
            .says("OTEL_EXPORTER_OTLP_ENDPOINT can't be used");
    }
    assert!(!place.path("callsheet-data/callsheet.db").exists(), "something was written");
    rusqlite::Connection::open(place.path("theirs.db")).unwrap().execute_batch("CREATE TABLE jobs (a)").unwrap();
    let taken = "has a table jobs that is not Callsheet's";
    both(&["--database-url", "sqlite://theirs.db"], 5, taken);
    place.run(&["--database-url", "sqlite://theirs.db", "migrate", "up"]).exits(5).says(taken);
    place.run(&["--database-url", "sqlite://theirs.db", "list"]).exits(5).says(taken);
    // One by the name of a table that there is on MySQL only is in nobody's way.
    rusqlite::Connection::open(place.path("other.db")).unwrap().execute_batch("CREATE TABLE unique_keys (a)").unwrap();
    place.run(&["--database-url", "sqlite://other.db", "migrate", "up"]).exits(0);
}

#[test]
fn what_is_wrong_with_a_first_start_is_told_before_there_are_tables() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen = \"{}\"", taken.local_addr().unwrap());
    let place = Place::new(&format!("database_url = \"sqlite://new/callsheet.db\"\n[http]\n{listen}\n{CONFIG}"));
    place.run(&["check"]).exits(0);
    place.run(&["serve"]).exits(1).says("can't listen on 127.0.0.1");
    assert!(place.path("new").is_dir(), "its directory is made, as `migrate up` makes it");
    assert!(!place.path("new/callsheet.db").exists());
    let token = "[[http.tokens]]\nname = \"a\"\nrole = \"viewer\"\ntoken_env = \"CALLSHEET_NOWHERE\"\n";
    std::fs::write(place.path("callsheet.toml"), format!("[http]\nlisten = \"off\"\n{token}{CONFIG}")).unwrap();
    place.run(&["serve"]).exits(2).says("CALLSHEET_NOWHERE");
    assert!(!place.path("callsheet-data/callsheet.db").exists());
}

#[tokio::test]
async fn a_role_that_may_not_write_or_a_table_that_is_another_ones_is_found_before_a_start() {
    let Some(url) = postgres::database() else { return };
    let place = Place::new(&format!("[http]\nlisten = \"off\"\n{CONFIG}"));
    let owner = sea_orm::Database::connect(&url).await.unwrap();
    owner.execute_unprepared("CREATE TABLE jobs (id bigint)").await.unwrap();
    let run = |url: &str, command: &str| place.run(&["--database-url", url, command]);
    for command in ["check", "serve"] {
        run(&url, command).exits(5).says("has a table jobs that is not Callsheet's").says("[store.jobs]");
    }
    owner.execute_unprepared("DROP TABLE jobs").await.unwrap();
    let reader = format!("reader_{}", std::process::id());
    let grant = format!(
        "CREATE ROLE {reader} LOGIN; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {reader}; \
         REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    );
    owner.execute_unprepared(&grant).await.unwrap();
    let as_reader = url.replace("user=callsheet", &format!("user={reader}"));
    for command in ["check", "serve"] {
        run(&as_reader, command)
            .exits(5)
            .says(&format!("the role {reader} has no right to make tables in the schema public"));
    }
    place.run(&["--database-url", &url, "migrate", "up"]).exits(0);
    for command in ["check", "serve"] {
        run(&as_reader, command)
            .exits(5)
            .says(&format!("the role {reader} has no right to read and write the table flows"));
    }
    run(&as_reader, "list").exits(0);
    let refused =
        place.run(&["--database-url", &as_reader, "enqueue", "SEQ", "a"]).exits(1).says("permission denied for table");
    assert!(!refused.stderr.contains("at line"), "of the server's source: {}", refused.stderr);
    // Somebody else may be the one who inserts jobs, and rights be had of columns.
    let more = format!(
        "GRANT INSERT, UPDATE ON runs, flows, workers TO {reader}; GRANT UPDATE (status, attempt) ON jobs TO {reader}"
    );
    owner.execute_unprepared(&more).await.unwrap();
    run(&as_reader, "check").exits(0);
    owner.execute_unprepared(&format!("DROP OWNED BY {reader}; DROP ROLE {reader}")).await.unwrap();
}

#[test]
fn check_starts_and_writes_nothing() {
    let place = Place::new(CONFIG);
    place.run(&["check"]).exits(0);
    assert!(!place.path("callsheet-data").exists());
}

#[tokio::test]
async fn check_and_flows_show_types_that_no_flow_has() {
    let place = Place::new(CONFIG);
    let strange = NewJob { flow: "STRANGE".parse().unwrap(), ..new_job("a") };
    place.store().await.enqueue(&[strange]).await.unwrap();
    place.run(&["check"]).exits(0).says("open jobs of the type STRANGE");
    place.run(&["flows"]).exits(0).prints("no flow of the configuration has this type");
    let flows = place.json(&["--json", "flows"]);
    let shown = |flow: &Value| {
        (flow["type"].clone(), flow["configured"].clone(), flow["pending"].clone(), flow["concurrency"].clone())
    };
    let shown: Vec<_> = flows["flows"].as_array().unwrap().iter().map(shown).collect();
    assert_eq!(
        shown,
        [
            (json!("PAR"), json!(true), json!(0), json!(4)),
            (json!("SEQ"), json!(true), json!(0), json!(1)),
            (json!("STRANGE"), json!(false), json!(1), Value::Null),
        ]
    );
}

#[tokio::test]
async fn a_type_in_bytes_is_named_since_no_flow_ever_takes_it() {
    let place = Place::new(CONFIG);
    place.store().await;
    let sql = rusqlite::Connection::open(place.database()).unwrap();
    sql.execute_batch(
        "INSERT INTO jobs (type, identifier) VALUES ('SEQ', 'a'), (CAST('SEQ' AS BLOB), 'b'), (x'ff', 'c')",
    )
    .unwrap();
    let came = place.run(&["check"]).exits(0).says("1 row waits for ever: the type SEQ was written as a BLOB");
    came.says("UPDATE jobs SET type = CAST(type AS TEXT)");
    place.run(&["flows"]).exits(0).prints("1 of those that wait have the type as a BLOB");
    sql.execute_batch("UPDATE jobs SET type = CAST(type AS TEXT) WHERE typeof(type) = 'blob'").unwrap();
    assert!(!place.run(&["check"]).exits(0).stderr.contains("BLOB"));
}

#[tokio::test]
async fn check_gives_no_advice_that_it_would_refuse() {
    let place = Place::new(CONFIG);
    place.store().await;
    let sql = rusqlite::Connection::open(place.database()).unwrap();
    let add = |flow: &str| sql.execute("INSERT INTO jobs (type, identifier) VALUES (?1, 'a')", [flow]).unwrap();
    for flow in ["seq", "MY-TYPE", "", "TWO\nLINES", "NEW"] {
        add(flow);
    }
    add(&"L".repeat(200_000));
    let came = place.run(&["check"]).exits(0);
    assert!(came.stderr.len() < 5_000, "{} bytes", came.stderr.len());
    let came = came.says("the type seq, which").says("did you mean SEQ? Upper and lower case count");
    let came =
        came.says("the type \"MY-TYPE\", which").says("the type \"\", which").says("the type \"TWO\\nLINES\", which");
    let came = came
        .says("add [flows.NEW]")
        .says("LLL\"…, which")
        .says("no flow can have it: a job type is a letter followed by");
    assert_eq!(came.stderr.matches("add [flows.").count(), 1, "{}", came.stderr);
    place.run(&["enqueue", &"L".repeat(100_000), "a"]).exits(2).says("no flow has the type \"LLL");
}

#[tokio::test]
async fn flows_names_who_holds_slots_and_does_not_live() {
    let place = Place::new(CONFIG);
    place.store().await;
    let sql = rusqlite::Connection::open(place.database()).unwrap();
    let now = Timestamp::from_unix_millis(chrono::Utc::now().timestamp_millis()).unix_millis();
    let add = |worker: &str, state: &str, silent: i64| {
        let row = "INSERT INTO workers (worker_id, incarnation, hostname, version, state, started_time, heartbeat_time) \
                   VALUES (?1, 'a', 'host', '1', ?2, ?3, ?3)";
        sql.execute(row, rusqlite::params![worker, state, now - silent]).unwrap();
    };
    add("gone", "ACTIVE", 200_000);
    add("rested", "STOPPED", 200_000);
    let open = |flow: &str, worker: Option<&str>| {
        let row = "INSERT INTO jobs (type, identifier, status, worker_id) VALUES (?1, 'a', 'PROGRESS', ?2)";
        sql.execute(row, rusqlite::params![flow, worker]).unwrap();
    };
    for (flow, worker) in [("PAR", Some("gone")), ("PAR", Some("gone")), ("PAR", Some("rested")), ("SEQ", None)] {
        open(flow, worker);
    }
    open("SEQ", Some("never"));
    let quiet = place.run(&["flows"]).exits(0).stdout;
    assert!(!quiet.contains("held"), "without any service all of it waits for one: {quiet}");
    add("here", "ACTIVE", 0);
    open("SEQ", Some("here"));
    let flows = place.run(&["flows"]).exits(0);
    flows
        .prints("2 slots are held by worker gone, which has not been seen for 3m; 1 slot is held by worker rested, which stopped 3m ago")
        .prints("1 slot is held by no worker; 1 slot is held by worker never, which nobody knows\n");
}

#[test]
fn enqueue_prints_ids_and_works_on_a_fresh_directory() {
    let place = Place::new(CONFIG);
    let first = place.run(&["enqueue", "SEQ", "a", "b"]).exits(0).says("made a new database at sqlite://");
    assert_eq!(first.stdout, "1\n2\n");
    let line = place.json(&[
        "--json",
        "enqueue",
        "PAR",
        "c",
        "--priority",
        "-3",
        "--payload",
        "{\"seed\": 7}",
        "--delay",
        "1h",
    ]);
    assert_eq!(line, json!({ "id": 3, "type": "PAR", "identifier": "c", "existing": false }));
    let jobs = place.json(&["--json", "list", "--type", "PAR"]);
    let job = &jobs["jobs"][0];
    assert_eq!(
        (&job["priority"], &job["payload"], &job["status"]),
        (&json!(-3), &json!({ "seed": 7 }), &json!("PENDING"))
    );
    assert!(job["run_at"].as_str() > job["created_time"].as_str());
    let at = place.json(&[
        "--json",
        "enqueue",
        "PAR",
        "d",
        "--run-at",
        "2040-02-03T04:05:06.007+01:00",
        "--maximum-attempts",
        "3",
    ]);
    let shown = place.json(&["--json", "show", &at["id"].to_string()]);
    assert_eq!((&shown["run_at"], &shown["maximum_attempts"]), (&json!("2040-02-03T03:05:06.007Z"), &json!(3)));
}

#[test]
fn what_was_enqueued_is_told_where_the_ids_find_no_room() {
    let place = Place::new(CONFIG);
    place.run(&["migrate", "up"]).exits(0);
    let enqueue = |identifiers: &[&str]| {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("callsheet"));
        command
            .current_dir(place.0.path())
            .env_remove("DATABASE_URL")
            .env("CALLSHEET_CONFIG", "")
            .args(["enqueue", "SEQ"]);
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command.args(identifiers).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let one = enqueue(&["a"]);
    assert!(one.contains("job 1 was enqueued, but can't write to standard output"), "{one}");
    let two = enqueue(&["b", "c"]);
    assert!(two.contains("2 jobs were enqueued (from 2 to 3), but can't write"), "{two}");
}

#[test]
fn enqueue_says_where_it_has_made_a_database_and_only_then() {
    let place = Place::new(CONFIG);
    let wrong = ["--data-dir", "typo", "enqueue", "SEQ", "a"];
    assert_eq!(place.run(&wrong).exits(0).says("made a new database at ").says("typo/callsheet.db").stdout, "1\n");
    assert!(!place.run(&wrong).exits(0).stderr.contains("made a new database"));
    came(place.command(&["enqueue", "SEQ", "a"]).env("DATABASE_URL", "sqlite://typo.db")).says("typo.db");
}

/// As root another user is asked; anybody else locks itself out.
#[test]
fn what_a_user_may_not_look_at_is_not_said_to_be_missing() {
    let place = Place::new(CONFIG);
    place.run(&["migrate", "up"]).exits(0);
    let [program, data] = [place.path("callsheet"), place.path("callsheet-data")];
    let built = assert_cmd::cargo::cargo_bin!("callsheet");
    std::fs::hard_link(built, &program).or_else(|_| std::fs::copy(built, &program).map(drop)).unwrap();
    let rights = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    rights(place.0.path(), 0o755);
    let is_root = rustix::process::geteuid().is_root();
    rights(&data, if is_root { 0o700 } else { 0o000 });
    let (is_data_dir, why) = if is_root {
        ("belongs to user 0, and this is user 65534", "callsheet-data belongs to user 0, and this is user 65534")
    } else {
        ("can't be written to", "callsheet-data keep its owner out")
    };
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&program);
        if is_root {
            command.uid(65534);
        }
        command.current_dir("/").env_remove("DATABASE_URL").env("CALLSHEET_CONFIG", place.path("callsheet.toml"));
        came(Command::from_std(command).args(arguments).timeout(Duration::from_secs(60)))
    };
    let alone = ["list", "flows", "workers", "events"].map(|command| vec![command]);
    let of_a_job = ["show", "logs", "cancel", "retry"].map(|command| vec![command, "1"]);
    for arguments in alone.into_iter().chain(of_a_job).chain([vec!["enqueue", "SEQ", "a"]]) {
        run(&arguments).exits(5).prints_nothing().says("can't read and write the database ").says(why);
    }
    run(&["drain"]).exits(2).says("can't read this worker's id in ").says(why);
    let checked = run(&["check"]).exits(2).says(is_data_dir);
    assert!(!checked.stderr.contains("there is no database"), "{}", checked.stderr);
    run(&["doctor"]).exits(1).prints(why);
    rights(&data, 0o700);
}

#[test]
fn a_unique_key_gives_the_job_that_holds_it() {
    let place = Place::new(CONFIG);
    assert_eq!(place.run(&["enqueue", "SEQ", "a", "--unique-key", "k"]).exits(0).stdout, "1\n");
    let again = place.run(&["enqueue", "SEQ", "b", "--unique-key", "k"]).exits(0).says("nothing was added");
    assert_eq!(again.stdout, "1\n");
    place.run(&["cancel", "1"]).exits(0);
    assert_ne!(place.run(&["enqueue", "SEQ", "b", "--unique-key", "k"]).exits(0).stdout, "1\n");
}

#[test]
fn what_could_not_be_run_is_refused_before_anything_is_written() {
    let place = Place::new(CONFIG);
    place.run(&["enqueue", "NOPE", "a"]).exits(2).says("no flow has the type \"NOPE\"").says("are: PAR, SEQ");
    place.run(&["enqueue", "seq", "a"]).exits(2).says("did you mean SEQ?");
    let hostile = ["good", "a b", "-rf", "x\ny", "", "\u{202e}x", &"a".repeat(300)];
    let came = place.run(&[&["enqueue", "SEQ", "--"][..], &hostile].concat()).exits(2).prints_nothing();
    assert!((2..=7).all(|argument| came.stderr.contains(&format!("argument {argument}: "))), "{}", came.stderr);
    let input = &b"\xef\xbb\xbffirst\r\n\r\nsec ond\nthi\xffrd\n\nlast"[..];
    came_from(&place, &["enqueue", "SEQ", "--from", "-"], input)
        .exits(2)
        .says("2 identifiers are refused; nothing was enqueued")
        .says("standard input:3: the identifier \"sec ond\" does not match")
        .says("standard input:4: this line is not UTF-8 text");
    came_from(&place, &["enqueue", "SEQ", "--from", "-"], b"\n\n").exits(2).says("holds no identifier");
    assert!(!place.path("callsheet-data").exists(), "nothing was written");
    let no_config = Place::empty();
    no_config.run(&["enqueue", "SEQ", "a", "--data-dir", "x"]).exits(2).says("callsheet init");
}

fn came_from(place: &Place, arguments: &[&str], stdin: &[u8]) -> Came {
    came(place.command(arguments).write_stdin(stdin))
}

#[test]
fn many_are_enqueued_from_a_file() {
    let place = Place::new(CONFIG);
    let lines: String = (0..3000).map(|n| format!("item-{n}\r\n")).collect();
    std::fs::write(place.path("items.txt"), lines).unwrap();
    let came = place.run(&["enqueue", "PAR", "zero", "--from", "items.txt"]).exits(0);
    assert_eq!(came.stdout.lines().count(), 3001);
    assert_eq!(place.json(&["--json", "flows"])["flows"][0]["pending"], json!(3001));
}

#[test]
fn list_filters_and_pages_newest_first() {
    let place = Place::new(CONFIG);
    place.run(&["list", "--data-dir", "d"]).exits(5).says("callsheet migrate up");
    place.run(&["migrate", "up"]).exits(0).prints("applied ");
    place.run(&["list"]).exits(0).says("no such jobs").prints_nothing();
    place.run(&["enqueue", "SEQ", "a", "b", "c"]).exits(0);
    place.run(&["enqueue", "PAR", "d"]).exits(0);
    place.run(&["cancel", "2"]).exits(0);
    let ids = |page: &Value| {
        page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    let first = place.json(&["--json", "list", "--limit", "3"]);
    assert_eq!((ids(&first), &first["next_cursor"]), (vec![4, 3, 2], &json!("2")));
    let second = place.json(&["--json", "list", "--limit", "3", "--cursor", "2"]);
    assert_eq!((ids(&second), &second["next_cursor"]), (vec![1], &Value::Null));
    assert_eq!(ids(&place.json(&["--json", "list", "--status", "cancelled"])), [2]);
    assert_eq!(ids(&place.json(&["--json", "list", "--status", "PENDING", "--type", "SEQ"])), [3, 1]);
    assert_eq!(ids(&place.json(&["--json", "list", "--identifier", "d"])), [4]);
    let table = place.run(&["list", "--limit", "1"]).exits(0).says("--cursor 4").stdout;
    let cells: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(cells[0], ["ID", "TYPE", "IDENTIFIER", "STATUS", "ATTEMPT", "PROGRESS", "AGE", "RAN", "DETAIL"]);
    assert_eq!(cells[1][..5], ["4", "PAR", "d", "PENDING", "0"]);
    assert!(!table.contains('\u{1b}'), "no colour but on a terminal");
}

#[tokio::test]
async fn a_table_cuts_what_is_too_long_and_json_does_not() {
    let place = Place::new(CONFIG);
    let long = "x".repeat(200_000);
    place.store().await.enqueue(&[new_job(&long)]).await.unwrap();
    let table = place.run(&["list"]).exits(0).prints(&format!("  {}…  PENDING", "x".repeat(39))).stdout;
    assert!(table.lines().all(|line| line.len() < 200), "{}", &table[..500]);
    assert_eq!(place.json(&["--json", "list"])["jobs"][0]["identifier"], json!(long));
}

#[test]
fn cancel_says_what_became_of_each() {
    let place = Place::new(CONFIG);
    place.run(&["enqueue", "SEQ", "a", "b", "c", "d"]).exits(0);
    place.run(&["cancel", "1"]).exits(0).prints("1: cancelled before it started");
    place.run(&["cancel", "1"]).exits(4).says("job 1 can't be cancelled: it has ended and is CANCELLED");
    let came = place.run(&["cancel", "99", "2", "1"]).exits(3);
    came.prints("2: cancelled").says("there is no job 99").says("job 1 can't");
    let came = place.run(&["--json", "cancel", "--type", "SEQ"]).exits(0);
    assert_eq!(came.stdout, "{\"id\":4,\"result\":\"cancelled\"}\n{\"id\":3,\"result\":\"cancelled\"}\n");
    place.run(&["cancel", "--status", "PENDING"]).exits(0).says("no such open jobs");
}

#[test]
fn what_is_not_there_exits_with_3_and_errors_are_json_too() {
    let place = Place::new(CONFIG);
    place.run(&["migrate", "up", "-q"]).exits(0);
    place.run(&["show", "7"]).exits(3).says("there is no job 7").prints_nothing();
    place.run(&["logs", "7"]).exits(3).says("there is no job 7");
    let came = place.run(&["--json", "show", "7"]).exits(3);
    let error: Value = serde_json::from_str(&came.stderr).unwrap();
    assert_eq!((&error["error"], &error["exit_code"]), (&json!("there is no job 7"), &json!(3)));
}

#[test]
fn a_database_that_cannot_be_reached_exits_with_5_and_shows_no_password() {
    let place = Place::new(CONFIG);
    std::fs::write(place.path("garbage.db"), [b'x'; 4096]).unwrap();
    for arguments in [
        &["--database-url", "sqlite://nowhere/x.db", "list"][..],
        &["--database-url", "sqlite://garbage.db", "list"],
        &["--database-url", "postgres://ann:s3cret@127.0.0.1:1/x?connect_timeout=1", "list"],
        &["--database-url", "postgres://ann:s3cret@127.0.0.1:1/x", "check"],
    ] {
        let came = place.run(arguments);
        assert_eq!(came.code, 5, "{arguments:?}: {}", came.stderr);
        assert!(!came.stderr.contains("s3cret"), "{}", came.stderr);
    }
}

#[test]
fn migrate_brings_the_tables_up_to_date_once() {
    let place = Place::new(CONFIG);
    place.run(&["migrate", "status"]).exits(5);
    let applied = place.json(&["--json", "migrate", "up"]);
    assert!(!applied["applied"].as_array().unwrap().is_empty());
    place.run(&["migrate", "up"]).exits(0).says("is up to date").prints_nothing();
    let status = place.json(&["--json", "migrate", "status"]);
    assert!(status["migrations"].as_array().unwrap().iter().all(|migration| migration["applied"] == json!(true)));
}

/// Killed a little later each time: what a kill leaves is what the steps before it have made, from where the next one goes on.
async fn a_migration_that_is_killed_again_and_again_comes_to_its_end(on: On) {
    let place = Place::new(CONFIG);
    let database = match on {
        On::Sqlite => Some(format!("sqlite://{}", place.path("callsheet.db").display())),
        On::Postgres => postgres::database(),
        On::MariaDb => mariadb::database(),
    };
    let Some(database) = database else { return };
    let arguments = |last: &[&'static str]| [&["--database-url", &database], last].concat();
    let mut killed = 0_u32;
    loop {
        let patience = Duration::from_millis(2) * killed;
        let output = place.command(&arguments(&["migrate", "up"])).timeout(patience).output().unwrap();
        match output.status.code() {
            Some(0) => break,
            Some(code) => panic!("{code}: {}", String::from_utf8_lossy(&output.stderr)),
            None => killed += 1,
        }
        assert!(killed < 5_000, "it comes to no end");
    }
    assert!(killed > 0, "none was killed");
    let run = |last: &[&'static str]| place.run(&arguments(last));
    run(&["migrate", "up"]).exits(0).says("is up to date");
    run(&["enqueue", "SEQ", "one"]).exits(0);
    run(&["list"]).exits(0).prints("one");
    run(&["check"]).exits(0);
}

on_each_database!(a_migration_that_is_killed_again_and_again_comes_to_its_end, mariadb);

#[test]
fn notify_reports_to_the_socket_of_the_job() {
    let place = Place::empty();
    place.run(&["notify", "--progress", "40"]).exits(2).says("not inside a job: NOTIFY_SOCKET is not set");
    let path = place.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut command = place.command(&["notify", "--progress", "40", "--status", "frame 12 of 30", "--watchdog"]);
    came(command.env("NOTIFY_SOCKET", &path)).exits(0);
    let mut received = [0; 256];
    let length = socket.recv(&mut received).unwrap();
    assert_eq!(&received[..length], b"X_PROGRESS=40\nSTATUS=frame 12 of 30\nWATCHDOG=1");
    drop(socket);
    came(place.command(&["notify", "--watchdog"]).env("NOTIFY_SOCKET", &path)).exits(1).says("can't report to");
}

#[test]
fn completions_are_for_shells() {
    for shell in ["bash", "zsh", "fish"] {
        Place::empty().run(&["completions", shell]).exits(0).prints("callsheet");
    }
}

#[test]
fn serve_without_a_configuration_says_what_to_do() {
    Place::empty().run(&["serve", "--data-dir", "x"]).exits(2).says("callsheet init");
}

fn new_job(identifier: &str) -> NewJob {
    NewJob {
        flow: "SEQ".parse().unwrap(),
        identifier: identifier.to_owned(),
        payload: None,
        priority: 0,
        due: Due::After(Duration::ZERO),
        maximum_attempts: None,
        unique_key: None,
        trace: None,
    }
}

/// What a service does, by hand: a run whose files a test can write.
struct Hand {
    store: Store,
    flow: FlowType,
    worker: WorkerId,
}

impl Hand {
    async fn new(place: &Place) -> Self {
        Self { store: place.store().await, flow: "SEQ".parse().unwrap(), worker: "hand".parse().unwrap() }
    }

    /// Claims and starts the next job, as soon as there is one.
    async fn start(&self) -> (JobId, RunToken) {
        let mut claimed = None;
        eventually("a job to claim", async || {
            let claim = Claim {
                flow: self.flow.clone(),
                worker: self.worker.clone(),
                concurrency: 9,
                worker_concurrency: 9,
                requires: callsheet::domain::labels::Labels::default(),
                beyond_share: false,
                incarnation: String::new(),
                schedule_to_close_timeout: Duration::from_secs(86_400),
                terms: crate::store::terms(),
                tokens: vec![RunToken::from_bytes([7; 16])],
            };
            let Written::Claimed(answer) = self.store.apply(&[Write::Claim(claim)]).await.unwrap().remove(0) else {
                return false;
            };
            claimed = answer.jobs.into_iter().next();
            claimed.is_some()
        })
        .await;
        let job = claimed.unwrap();
        let started = Started {
            job: job.id,
            token: job.token.clone(),
            attempt: job.attempt,
            worker: self.worker.clone(),
            pid: 4321,
            started_time: Timestamp::from_unix_millis(job.created_time.unix_millis() + 10),
            slot: None,
        };
        let note =
            ProgressNote { token: job.token.clone(), progress: Some(40), status_message: Some("frame 12".to_owned()) };
        self.store.apply(&[Write::Started(started), Write::Progress(note)]).await.unwrap();
        (job.id, job.token)
    }

    async fn end(&self, job: JobId, token: RunToken, status: JobStatus) {
        let row = self.store.job(job).await.unwrap().unwrap();
        let failed = status != JobStatus::Completed;
        let settlement = Settlement {
            lapsed: false,
            slot: None,
            job,
            token,
            attempt: row.attempt,
            worker: self.worker.clone(),
            next: Next::Final(status),
            outcome: Some(if failed { Outcome::Failed } else { Outcome::Completed }),
            error: failed.then(|| "the command failed with exit code 3\nout of film".to_owned()),
            exit_code: Some(if failed { 3 } else { 0 }),
            signal: None,
            pid: Some(4321),
            started_time: row.started_time,
            completed_time: Timestamp::from_unix_millis(row.started_time.unwrap().unix_millis() + 1234),
            execution_ms: Some(1234),
            usage: Some(Usage::default()),
            message: None,
        };
        self.store.apply(&[Write::Settle(settlement)]).await.unwrap();
    }
}

fn write_logs(place: &Place, job: JobId, token: &RunToken, files: &[(&str, &[u8])]) -> std::path::PathBuf {
    let directory = run_dir(&place.path("callsheet-data"), job, callsheet::domain::Attempt(1), token);
    std::fs::create_dir_all(&directory).unwrap();
    for (name, bytes) in files {
        std::fs::write(directory.join(name), bytes).unwrap();
    }
    directory
}

#[tokio::test]
async fn show_and_logs_tell_of_a_run() {
    let place = Place::new(CONFIG);
    place.run(&["enqueue", "SEQ", "a", "b"]).exits(0);
    place.run(&["logs", "1"]).exits(3).says("job 1 has no logs yet: it is PENDING");
    let hand = Hand::new(&place).await;
    let (job, token) = hand.start().await;
    place.run(&["logs", "1"]).exits(3).says("there are no logs of attempt 1 of job 1");
    write_logs(&place, job, &token, &[("stdout.0", b"one\ntwo\xff\x1b[31m\nthree"), ("stderr.0", b"e1\ne2\n")]);
    hand.end(job, token, JobStatus::Error).await;

    let raw = place.command(&["logs", "1", "--stream", "stdout"]).output().unwrap();
    assert_eq!(raw.stdout, b"one\ntwo\xff\x1b[31m\nthree", "byte for byte to a pipe");
    assert_eq!(place.run(&["logs", "1", "--stream", "stdout", "--tail", "1"]).exits(0).stdout, "three");
    assert_eq!(place.run(&["logs", "1", "--stream", "stderr", "--follow"]).exits(0).stdout, "e1\ne2\n");
    assert_eq!(place.run(&["logs", "1", "--stream", "both", "--tail", "2"]).exits(0).stdout, "threee1\ne2\n");
    assert_eq!(place.run(&["logs", "1", "--stream", "stderr", "--offset", "3"]).exits(0).stdout, "e2\n");
    place.run(&["logs", "1", "--offset", "3", "--tail", "1"]).exits(2).says("--offset");
    let line = place.json(&["--json", "logs", "1", "--stream", "stderr"]);
    assert_eq!(line, json!({ "stream": "stderr", "offset": 0, "text": "e1\ne2\n" }));
    place.run(&["logs", "1", "--attempt", "2"]).exits(3).says("job 1 has no attempt 2");
    place.run(&["show", "2"]).exits(0).prints("seq(2)");

    let shown = place.run(&["show", "1"]).exits(0);
    let shown = shown
        .prints("seq(1)")
        .prints("master_seq")
        .prints("1234 (1.2s)")
        .prints("FAILED")
        .prints("out of film")
        .prints("e2");
    assert!(!shown.stdout.contains('\u{1b}'));
    let json = place.json(&["--json", "show", "1"]);
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    for key in ["id", "type", "status", "run_token", "execution_ms", "runs", "events", "workflow_id", "stderr_tail"] {
        assert!(keys.contains(&key), "{key} is missing in {keys:?}");
    }
    assert_eq!(
        (&json["status"], &json["exit_code"], &json["runs"][0]["outcome"]),
        (&json!("ERROR"), &json!(3), &json!("FAILED"))
    );
    let steps: Vec<&str> =
        json["events"].as_array().unwrap().iter().map(|event| event["to_status"].as_str().unwrap()).collect();
    assert_eq!(steps, ["INQUEUE", "PROGRESS", "ERROR"]);
}

#[tokio::test]
async fn following_ends_when_the_run_ends() {
    let place = Place::new(CONFIG);
    place.run(&["enqueue", "SEQ", "a"]).exits(0);
    let hand = Hand::new(&place).await;
    let (job, token) = hand.start().await;
    let directory = write_logs(&place, job, &token, &[("stdout.0", b"first\n")]);
    let mut command = place.command(&["logs", "1", "-f", "--stream", "stdout"]);
    let following = tokio::task::spawn_blocking(move || came(&mut command));
    append(&directory.join("stdout.0"), b"second\n");
    hand.end(job, token, JobStatus::Completed).await;
    assert_eq!(following.await.unwrap().exits(0).stdout, "first\nsecond\n");
}

fn append(path: &Path, bytes: &[u8]) {
    use std::io::Write as _;
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[tokio::test]
async fn waiting_exits_as_the_job_ended() {
    for (status, code) in [(JobStatus::Completed, 0), (JobStatus::Error, 1), (JobStatus::Cancelled, 1)] {
        let place = Place::new(CONFIG);
        let hand = Hand::new(&place).await;
        let mut command = place.command(&["enqueue", "SEQ", "a", "--wait"]);
        let waiting = tokio::task::spawn_blocking(move || came(&mut command));
        let (job, token) = hand.start().await;
        hand.end(job, token, status).await;
        let came = waiting.await.unwrap().exits(code).says(&format!("job 1: {status} in 1.2s"));
        assert_eq!(came.stdout, "1\n");
        assert_eq!(came.stderr.contains("out of film"), code == 1);
    }
}

#[tokio::test]
async fn waiting_for_many_prints_each_as_json() {
    let place = Place::new(CONFIG);
    let hand = Hand::new(&place).await;
    let mut command = place.command(&["--json", "enqueue", "SEQ", "a", "b", "--wait"]);
    let waiting = tokio::task::spawn_blocking(move || came(&mut command));
    let (job, token) = hand.start().await;
    hand.end(job, token, JobStatus::Completed).await;
    eventually("the second to be cancelled", async || {
        matches!(hand.store.request_cancel(JobId(2)).await.unwrap(), callsheet::store::CancelResult::Cancelled)
    })
    .await;
    let came = waiting.await.unwrap().exits(1);
    let mut ended: Vec<(i64, String)> = came
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|job| (job["id"].as_i64().unwrap(), job["status"].as_str().unwrap().to_owned()))
        .collect();
    ended.sort();
    assert_eq!(ended, [(1, "COMPLETED".to_owned()), (2, "CANCELLED".to_owned())]);
}

/// Adds a worker, and makes its last sign of life so many seconds old.
async fn add_worker(place: &Place, store: &Store, age: u32) {
    let worker = callsheet::store::Worker {
        worker: "hand".parse().unwrap(),
        incarnation: "1".to_owned(),
        hostname: "here".to_owned(),
        version: "1".to_owned(),
        labels: callsheet::domain::labels::Labels::default(),
        displaces: None,
        address: None,
    };
    store.apply(&[Write::RegisterWorker(worker)]).await.unwrap();
    let foreign = super::support::service::connect(format!("sqlite://{}", place.database())).await;
    let sql = format!("UPDATE workers SET heartbeat_time = heartbeat_time - {age} * 1000");
    foreign.execute_unprepared(&sql).await.unwrap();
}

#[tokio::test]
async fn cancelling_a_running_job_says_whether_a_worker_lives() {
    let place = Place::new(CONFIG);
    place.run(&["enqueue", "SEQ", "a"]).exits(0);
    let hand = Hand::new(&place).await;
    hand.start().await;
    add_worker(&place, &hand.store, 40).await;
    place.run(&["cancel", "1"]).exits(0).prints("1: the request is recorded, but no live worker was seen");
    add_worker(&place, &hand.store, 0).await;
    place.run(&["cancel", "1"]).exits(0).prints("1: somebody had asked already; its command is being ended");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the program under test, to be ended once it has said so")]
async fn waiting_without_a_live_worker_says_so() {
    let place = Place::new(CONFIG);
    let store = place.store().await;
    add_worker(&place, &store, 40).await;
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("callsheet"));
    command.current_dir(place.0.path()).env_remove("DATABASE_URL").env_remove("CALLSHEET_CONFIG");
    command.args(["enqueue", "SEQ", "a", "--wait"]).stdout(std::process::Stdio::null());
    let mut waiting = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(waiting.stderr.take().unwrap())).map_while(Result::ok);
    let said = lines.find(|line| line.contains("no worker seems to be running"));
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    assert!(said.is_some(), "it ended without a word");
}

/// The live processes that have the demo's scratch directory in their command line, environment or open files.
fn touching(directory: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let path = process.path();
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        let mut holds = String::from_utf8_lossy(&environment).contains(directory);
        for link in std::fs::read_dir(path.join("fd")).into_iter().flatten().filter_map(Result::ok) {
            let target = std::fs::read_link(link.path()).unwrap_or_default();
            holds |= target.to_string_lossy().contains(directory);
        }
        if holds {
            found.push(process.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

/// Starts the demo and gives it, with where it works, once one of its jobs has this status.
#[expect(clippy::disallowed_methods, reason = "the program under test, to be sent a signal")]
#[expect(clippy::zombie_processes, reason = "a demo that did not get that far fails the test, and the caller waits")]
fn demo_with(status: &str) -> (std::process::Child, std::io::BufReader<std::process::ChildStdout>, String) {
    use std::io::BufRead as _;
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("callsheet"));
    command.args(["--json", "demo"]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut demo = command.spawn().unwrap();
    let mut output = std::io::BufReader::new(demo.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let first: Value = serde_json::from_str(&line).unwrap();
    let config = first["config"].as_str().unwrap().to_owned();
    let scratch = Path::new(&config).parent().unwrap().display().to_string();
    loop {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the demo ended");
        if serde_json::from_str::<Value>(&line).unwrap()["status"] == status {
            return (demo, output, scratch);
        }
    }
}

#[tokio::test]
async fn the_demo_leaves_nothing_behind() {
    let (mut demo, output, scratch) = demo_with("COMPLETED");
    assert!(!touching(&scratch).is_empty(), "the demo runs in {scratch}");
    let pid = rustix::process::Pid::from_child(&demo);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    drop(std::io::read_to_string(output));
    assert!(demo.wait().unwrap().success());
    assert!(!Path::new(&scratch).exists(), "{scratch} is still there");
    eventually("every process of the demo to be gone", async || touching(&scratch).is_empty()).await;
}

#[tokio::test]
async fn the_demo_ends_when_nobody_reads_it() {
    let (mut demo, output, scratch) = demo_with("PROGRESS");
    drop(output);
    let mut ended = None;
    eventually("the demo to end", async || {
        ended = demo.try_wait().unwrap();
        ended.is_some()
    })
    .await;
    assert!(ended.unwrap().success());
    assert!(!Path::new(&scratch).exists(), "{scratch} is still there");
    eventually("every process of the demo to be gone", async || touching(&scratch).is_empty()).await;
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the program under test, to be sent a signal")]
async fn ctrl_c_while_waiting_leaves_the_job_and_says_so() {
    let place = Place::new(CONFIG);
    let store = place.store().await;
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("callsheet"));
    command.current_dir(place.0.path()).env_remove("DATABASE_URL").env_remove("CALLSHEET_CONFIG");
    command.args(["enqueue", "SEQ", "a", "--wait"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let waiting = command.spawn().unwrap();
    eventually("the job to be there", async || store.job(JobId(1)).await.unwrap().is_some()).await;
    let pid = rustix::process::Pid::from_child(&waiting);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b"1\n"[..]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("stopped waiting; 1 job is left as it is: 1"), "{said}");
    assert_eq!(store.job(JobId(1)).await.unwrap().unwrap().status, JobStatus::Pending);
}
