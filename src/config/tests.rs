//! What is taken, what is refused, and where the complaint points.

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(text, Path::new("/etc/callsheet/callsheet.toml"))
}

fn invalid(text: &str) -> Complaints {
    match parse(text) {
        Err(Error::Invalid(complaints)) => complaints,
        other => panic!("{other:?} from {text}"),
    }
}

/// The complaints as `line:column: message`.
fn complaints(text: &str) -> Vec<String> {
    let shown = |complaint: &Complaint| {
        let place = complaint.place.as_ref().unwrap();
        format!("{}:{}: {}", place.line, place.column, complaint.message)
    };
    invalid(text).0.iter().map(shown).collect()
}

/// The complaints about a flow that has this line in it, which is the third one of the file.
fn about_line(line: &str) -> Vec<String> {
    complaints(&format!("[flows.X]\ncommand = [\"true\"]\n{line}\n"))
}

fn flow(line: &str) -> FlowConfig {
    let config = parse(&format!("[flows.X]\ncommand = [\"true\"]\n{line}\n")).unwrap();
    let flow = config.flows.values().next().unwrap();
    FlowConfig::clone(flow)
}

/// CONTRACT §2, without tokens and limits, which have no defaults.
const CONTRACT: &str = r#"
data_dir = "callsheet-data"
database_url = "sqlite://callsheet-data/callsheet.db"
worker_id = "node-a"

[service]
on_stop = "leave"
stop_deadline = "30s"

[http]
listen = "127.0.0.1:8440"

[flows.SCREEN_REPLACEMENT_GENERATION]
command = ["poetry", "run", "invoke", "generate-screen-replacement", "--id", "{identifier}", "--jobId", "{job_id}"]
working_dir = "/srv/pipeline"
env = { PYTHONUNBUFFERED = "1" }
schedule = "*/1 * * * *"
timezone = "UTC"
concurrency = 1
worker_concurrency = 1
start_to_close_timeout = "2d"
schedule_to_close_timeout = "2d"
heartbeat_timeout = "20s"
watchdog = false
silence_timeout = "off"
kill_grace = "10s"
identifier_pattern = '^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,254}$'

[flows.SCREEN_REPLACEMENT_GENERATION.retry]
maximum_attempts = 1
initial_interval = "1s"
backoff_coefficient = 2.0
maximum_interval = "100s"
non_retryable_exit_codes = []

[flows.SCREEN_REPLACEMENT_GENERATION.limits]
output = "64MiB"

[flows.VEO_3_GENERATION]
command = ["poetry", "run", "invoke", "generate-veo-3", "--id", "{identifier}", "--jobId", "{job_id}"]
concurrency = 8

[retention]
completed = "30d"
error = "90d"
cancelled = "30d"
logs = "30d"
"#;

#[test]
fn the_contracts_example_is_taken_and_its_values_are_the_defaults() {
    let config = parse(CONTRACT).unwrap();
    assert_eq!(config.worker_id, Some("node-a".parse().unwrap()));
    let [screen, veo] = config.flows.values().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(screen.command.len(), 8);
    let with_defaults = FlowConfig {
        flow: screen.flow.clone(),
        command: screen.command.clone(),
        working_dir: screen.working_dir.clone(),
        env: screen.env.clone(),
        ..flow("")
    };
    assert_eq!(**screen, with_defaults);
    assert_eq!((veo.concurrency.get(), veo.worker_concurrency.get()), (8, 8));
    assert_eq!(config.service, ServiceConfig::default());
    assert_eq!(config.http, HttpConfig::default());
    assert_eq!(config.retention, RetentionConfig::default());
}

#[test]
fn the_template_is_valid_and_so_is_all_that_it_comments_out() {
    let config = parse(TEMPLATE).unwrap();
    assert_eq!(config.data_dir, Path::new("/etc/callsheet/callsheet-data"));
    assert_eq!(config.database_url.to_string(), "sqlite:///etc/callsheet/callsheet-data/callsheet.db");
    let is_key = |line: &str| {
        let first = line.split(' ').next().unwrap_or_default();
        line.starts_with("[[") || line.contains(" = ") && first.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let commented_in: Vec<&str> =
        TEMPLATE.lines().map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line)).collect();
    let all = parse(&commented_in.join("\n")).unwrap();
    assert_eq!(all.worker_id, Some("node-a".parse().unwrap()));
    let (own, written) = (config.flows.values().next().unwrap(), all.flows.values().next().unwrap());
    assert_eq!(written.recurring.len(), 1);
    assert_eq!(
        FlowConfig {
            env: Vec::new(),
            cancel_command: None,
            recurring: Vec::new(),
            slots: None,
            working_dir: own.working_dir.clone(),
            ..FlowConfig::clone(written)
        },
        **own
    );
}

#[test]
fn limits_and_guards_are_taken() {
    let given =
        flow("watchdog = true\nsilence_timeout = \"5min\"\nlimits = { memory = \"8GiB\", cpus = 2.5, pids = 500 }");
    assert_eq!((given.watchdog, given.silence_timeout), (true, Some(Duration::from_secs(300))));
    assert_eq!(given.limits, Limits { memory: Some(8 << 30), cpu_millis: Some(2500), pids: Some(500) });
    assert!(flow("").limits.is_unlimited());
    let retention = |line: &str| parse(&format!("[retention]\n{line}")).unwrap().retention.logs;
    let day = |days: u64| Some(Duration::from_secs(days * 86_400));
    assert_eq!(["", "logs = \"7d\"", "logs = \"off\""].map(retention), [day(30), day(7), None]);
    let written = parse(
        "[retention]\ncompleted = \"off\"\nerror = \"1d\"\ncancelled = \"2d\"\ndeliveries = \"4d\"\naudit = \"3d\"",
    )
    .unwrap();
    let now = Timestamp::from_unix_millis(10 * 86_400_000);
    let before = |days: i64| Some(Timestamp::from_unix_millis((10 - days) * 86_400_000));
    let horizon =
        Horizon { completed: None, error: before(1), cancelled: before(2), deliveries: before(4), audit: before(3) };
    assert_eq!(written.retention.horizon(now), horizon);
}

#[test]
fn labels_are_plain_words_each_once() {
    let config = parse("labels = [\"ssd\", \"gpu\"]\n[defaults]\nrequires = [\"gpu\"]\n[flows.A]\ncommand = [\"true\"]\n[flows.B]\ncommand = [\"true\"]\nrequires = []\n").unwrap();
    assert_eq!(config.labels.to_string(), "gpu, ssd");
    let required: Vec<_> = config.flows.values().map(|flow| flow.requires.to_string()).collect();
    assert_eq!(required, ["gpu", ""]);
    assert_eq!(
        complaints("labels = [\"gpu\", \"\", \"gpu\", 1]\n[flows.X]\ncommand = [\"true\"]\nrequires = [\"g p\"]\n"),
        [
            "1:18: \"\" in `labels` is no label",
            "1:22: \"gpu\" stands in `labels` twice",
            "1:29: `labels` must be a text in quotes, not an integer",
            "4:13: \"g p\" in `requires` is no label",
        ]
    );
    assert_eq!(about_line("requires = \"gpu\""), ["3:12: `requires` must be a list of texts, not a text"]);
}

#[test]
fn workers_that_ask_each_other_share_a_secret() {
    let http = parse("[http.peers]\nsecret_file = \"s\"\nadvertise = \"https://a:8443\"\n").unwrap().http;
    let peers = http.peers.unwrap();
    assert_eq!(peers.secret, SecretPlace::File("/etc/callsheet/s".into()));
    assert_eq!(peers.advertise.unwrap().authority(), "a:8443");
    let about = |text: &str| complaints(&format!("[http.peers]\n{text}\n"));
    assert_eq!(about("advertise = \"http://a\"")[0], "1:1: `http.peers` has neither `secret_env` nor `secret_file`");
    let both = "secret_file = \"s\"\nsecret_env = \"CALLSHEET_S\"";
    assert_eq!(about(both), ["2:15: the workers have either `secret_env` or `secret_file`, not both"]);
    assert_eq!(about("secret_env = \"S\""), ["2:14: `secret_env` must be a name that starts with CALLSHEET_"]);
    for wrong in ["10.0.0.5:8440", "http://a/path", "http://u:p@a", "ftp://a"] {
        let said = about(&format!("secret_file = \"s\"\nadvertise = \"{wrong}\""));
        assert_eq!(said, [format!("3:13: `advertise` can't be {wrong:?}")]);
    }
}

#[test]
fn slots_are_a_variable_and_its_values() {
    let slots = |line| flow(line).slots.map(|slots| slots.to_string());
    assert_eq!(slots(""), None);
    assert_eq!(slots("slots = { name = \"GPU\", values = [\"0\", \"1\"] }"), Some("GPU of 0 1".to_owned()));
    let about = |rest: &str| about_line(&format!("slots = {{ {rest} }}"));
    assert_eq!(about("name = \"GPU\""), ["3:9: `slots` has no `values`"]);
    assert_eq!(about("name = \"GPU\", values = []"), ["3:9: `slots`: there is no value, so nothing could ever run"]);
    assert_eq!(
        about("name = \"GPU\", values = [\"0\", \"0\"], order = 1"),
        [
            "3:40: `slots`: \"0\" stands there twice, and two runs would hold one device",
            "3:46: unknown key `order` in [flows.X.slots]"
        ]
    );
    for (number, said) in [
        ("name = \"GPU\", values = [0]", "3:35: `values` must be a text in quotes, not an integer"),
        ("name = \"GPU\", values = [\"0\", 1]", "3:40: `values` must be a text in quotes, not an integer"),
        ("name = \"GPU\", values = 2", "3:34: `values` must be a list of texts, not an integer"),
        ("name = 1, values = [\"0\"]", "3:18: `name` must be a text in quotes, not an integer"),
    ] {
        assert_eq!(about(number), [said]);
    }
    let of_ours = about("name = \"CALLSHEET_JOB_ID\", values = [\"0\"]");
    assert_eq!(of_ours, ["3:18: CALLSHEET_JOB_ID is set by Callsheet itself and can't be given another value"]);
    let both = "env = { GPU = \"1\" }\nslots = { name = \"GPU\", values = [\"0\"] }";
    assert_eq!(about_line(both), ["3:9: `env` sets GPU, which is what `slots` sets for each run"]);
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let config = parse("data_dir = \"data\"\ndatabase_url = \"sqlite://x/y.db\"").unwrap();
    assert_eq!(config.data_dir, Path::new("/etc/callsheet/data"));
    assert_eq!(config.database_url.to_string(), "sqlite:///etc/callsheet/x/y.db");
    let shown = |line| flow(line).working_dir.unwrap().to_string();
    assert_eq!(shown(""), "/etc/callsheet");
    assert_eq!(shown("working_dir = \"jobs/{identifier}\""), "/etc/callsheet/jobs/{identifier}");
    assert_eq!(shown("working_dir = \"/srv\""), "/srv");
    assert_eq!(shown("working_dir = \"{run_dir}\""), "{run_dir}");
}

#[test]
fn everything_wrong_is_said_at_once_in_the_order_of_the_file() {
    let text = "\
data_dri = \"x\"
worker_id = \"a b\"
[service]
on_stop = \"stay\"
[http]
listen = \"0.0.0.0:80\"
[flows.X]
command = [\"\", \"{id}\"]
concurrency = 0
kill_grace = 10
[flows.x]
schedule = \"* * * *\"
";
    assert_eq!(
        complaints(text),
        [
            "1:1: unknown key `data_dri` in the file",
            "2:13: \"a b\" is no worker id",
            "4:11: `on_stop` can't be \"stay\"",
            "6:10: `listen` = \"0.0.0.0:80\" can be reached by other machines, and there are no tokens",
            "8:12: the program, the first text of `command`, is empty",
            "8:17: unknown placeholder {id}; there are {identifier}, {job_id}, {type}, {attempt}, {run_token}, \
             {worker_id} and {run_dir} (write {{id}} for {id} as it stands)",
            "9:15: `concurrency` must be 1 to 10000, not 0",
            "10:14: `kill_grace` must be a text in quotes, not an integer",
            "11:8: the flow x has no `command`",
            "11:8: the job types X and x would both use the task queue name \"x\"",
            "12:12: \"* * * *\" is no cron line of five fields (minute, hour, day of month, month, day of week): \
             it has 4",
        ]
    );
}

#[test]
fn a_complaint_is_shown_with_its_line_and_what_to_do() {
    insta::assert_snapshot!(invalid("[flows.X]\n\tcommand = [\"true\"]\ntiemzone = \"UTC\"\nconcurrency = -1\nmaximum_attempts = 2"), @r#"
    callsheet.toml:3:1: unknown key `tiemzone` in [flows.X]
      |
    3 | tiemzone = "UTC"
      | ^^^^^^^^
      = did you mean `timezone`?

    callsheet.toml:4:15: `concurrency` must be 1 to 10000, not -1
      |
    4 | concurrency = -1
      |               ^^

    callsheet.toml:5:1: unknown key `maximum_attempts` in [flows.X]
      |
    5 | maximum_attempts = 2
      | ^^^^^^^^^^^^^^^^
      = `maximum_attempts` belongs in [flows.TYPE.retry] or [defaults.retry]
    "#);
}

#[test]
fn syntax_errors_have_a_place_and_hide_no_other_complaint() {
    assert_eq!(
        complaints("worker_id = \"a b\"\ndata_dir = \n[service]\non_stop = 3\n"),
        [
            "1:13: \"a b\" is no worker id",
            "2:12: string values must be quoted, expected literal string",
            "4:11: `on_stop` must be a text in quotes, not an integer",
        ]
    );
    assert_eq!(complaints("worker_id = \"a\"\nworker_id = \"b\"\n"), ["2:1: the key `worker_id` is there already"]);
    let twice =
        "[flows.A]\ncommand = [\"a\"]\n[flows.A]\ncommand = [\"b\"]\n[flows.B]\ncommand = [\"c\"]\ncommand = [\"d\"]\n";
    assert_eq!(
        complaints(twice),
        ["3:8: the table [flows.A] is there already", "7:1: the key `command` is there already"]
    );
}

#[test]
fn columns_count_characters() {
    assert_eq!(complaints("worker_id = \"ä\"; x"), ["1:16: unexpected key or value, expected newline, `#`"]);
}

#[test]
fn values_that_make_no_sense_are_refused_at_their_place() {
    for (line, complaint) in [
        ("concurrency = 10001", "3:15: `concurrency` must be 1 to 10000, not 10001"),
        ("worker_concurrency = 2", "3:22: `worker_concurrency` is 2, more than the 1 of `concurrency`"),
        ("start_to_close_timeout = \"0s\"", "3:26: `start_to_close_timeout` must be at least 1s"),
        (
            "start_to_close_timeout = \"2 fortnights\"",
            "3:26: `start_to_close_timeout` = \"2 fortnights\" is no duration: unknown time unit \"fortnights\", supported units: ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)",
        ),
        ("schedule_to_close_timeout = \"100years\"", "3:29: `schedule_to_close_timeout` must be at most 10years"),
        ("heartbeat_timeout = \"900ms\"", "3:21: `heartbeat_timeout` must be at least 1s"),
        ("kill_grace = \"2d\"", "3:14: `kill_grace` must be at most 1day"),
        ("cancel_command = []", "3:18: `cancel_command` is empty"),
        ("cancel_command = \"scancel\"", "3:18: `cancel_command` must be a list of texts, not a text"),
        (
            "cancel_command = [\"scancel x\"]",
            "3:19: `cancel_command` is one text with spaces in it; no shell takes it apart",
        ),
        (
            "cancel_command = [\"scancel\", \"-s{signals}\"]",
            "3:33: unknown placeholder {signals}; in a `cancel_command` there are {signal}, {identifier}, {job_id}, {type}, {attempt}, {run_token}, {worker_id} and {run_dir} (write {{signals}} for {signals} as it stands)",
        ),
        (
            "kill_grace = \"900ms\"\ncancel_command = [\"scancel\"]",
            "4:18: `cancel_command` needs a `kill_grace` of at least 1s",
        ),
        ("timezone = \"Mars\"", "3:12: \"Mars\" is no time zone of the IANA database, such as UTC or Europe/Berlin"),
        ("schedule = \"0 0 31 2 *\"", "3:12: \"0 0 31 2 *\" never comes due"),
        ("identifier_pattern = '['", "3:22: `identifier_pattern` is no regular expression: unclosed character class"),
        ("working_dir = \"~/x\"", "3:15: `working_dir` starts with ~, which only a shell expands"),
        ("env = { \"A=B\" = \"1\" }", "3:9: \"A=B\" can't be the name of an environment variable"),
        ("env = { A = 1 }", "3:13: `A` must be a text in quotes, not an integer"),
        (
            "env = { CALLSHEET_JOB_ID = \"1\" }",
            "3:9: CALLSHEET_JOB_ID is set by Callsheet itself and can't be given another value",
        ),
        (
            "env = { NOTIFY_SOCKET = \"1\" }",
            "3:9: NOTIFY_SOCKET is set by Callsheet itself and can't be given another value",
        ),
        ("retry.maximum_attempts = 0", "3:26: `maximum_attempts` must be 1 to 2147483647, not 0"),
        ("retry.maximum_attempts = 2147483648", "3:26: `maximum_attempts` must be 1 to 2147483647, not 2147483648"),
        ("retry.backoff_coefficient = 0.5", "3:29: backoff_coefficient must be a number of at least 1"),
        (
            "retry = { initial_interval = \"2h\", maximum_interval = \"1h\" }",
            "3:30: initial_interval must not be longer than maximum_interval",
        ),
        ("retry.non_retryable_exit_codes = [2, 256]", "3:38: 256: an exit code is a number from 1 to 255"),
        ("limits.output = \"1kB\"", "3:17: `limits.output` must be at least 1KiB"),
        ("limits.output = \"1.5GiB\"", "3:17: `limits.output` can't be \"1.5GiB\""),
        ("limits.output = -1", "3:17: `limits.output` can't be -1"),
        (
            "watchdog = true\nheartbeat_timeout = \"1s\"",
            "4:21: with `watchdog = true`, `heartbeat_timeout` must be at least 2s, not 1s",
        ),
        (
            "watchdog = true\nstart_to_close_timeout = \"10s\"",
            "3:12: `watchdog = true` would never end a run: its `heartbeat_timeout` is 20s, and `start_to_close_timeout` is 10s",
        ),
        ("watchdog = \"yes\"", "3:12: `watchdog` must be true or false, not a text"),
        (
            "silence_timeout = \"5min\"\nstart_to_close_timeout = \"5min\"",
            "3:19: `silence_timeout` = \"5min\" would never end a run: `start_to_close_timeout` is 5m",
        ),
        ("silence_timeout = \"0s\"", "3:19: `silence_timeout` must be at least 1s"),
        ("silence_timeout = \"never\"", "3:19: `silence_timeout` = \"never\" is no duration: expected number at 0"),
        ("limits.memory = 4096", "3:17: `limits.memory` must be at least 1MiB"),
        ("limits.memory = \"8 gigs\"", "3:17: `limits.memory` can't be \"8 gigs\""),
        ("limits.cpus = 0", "3:15: `limits.cpus` must be 0.01 to 10000, not 0"),
        ("limits.cpus = nan", "3:15: `limits.cpus` must be 0.01 to 10000, not NaN"),
        ("limits.pids = 0", "3:15: `limits.pids` must be 1 to 4194304, not 0"),
        ("[retention]\nerror = 30", "4:9: `error` must be a text in quotes, not an integer"),
        ("[retention]\njobs = \"30d\"", "4:1: unknown key `jobs` in [retention]"),
        ("[[webhooks]]\nurl = \"https://a\"\nsecret_file = \"x\"", "3:1: this webhook has no `name`"),
        ("[[webhooks]]\nname = \"a\"\nsecret_file = \"x\"", "3:1: this webhook has no `url`"),
        (
            "[[webhooks]]\nname = \"a\"\nurl = \"https://a\"",
            "3:1: this webhook has neither `secret_env` nor `secret_file`",
        ),
        (
            "[[webhooks]]\nname = \"a\"\nurl = \"https://a\"\nsecret_env = \"HOOK\"",
            "6:14: `secret_env` must be a name that starts with CALLSHEET_",
        ),
        (
            "[[webhooks]]\nname = \"a\"\nsecret_file = \"x\"\nurl = \"ftp://a\"",
            "6:7: `url` can't be used: it is no address of the form https://HOST/PATH",
        ),
        (
            "[[webhooks]]\nname = \"a\"\nsecret_file = \"x\"\nurl = \"http://a\"\ntimeout = \"10min\"",
            "7:11: `timeout` must be at most 5m",
        ),
        ("[[webhooks]]\nsecret = \"whsec_x\"", "4:1: unknown key `secret` in [[webhooks]]"),
        ("[store.jobs]\ncolumns.error = \"message\"", "3:1: [store.jobs] names no `table`"),
        ("[store.jobs]\ntable = \"\"", "4:9: \"\" is no name of a table"),
        ("[store.jobs]\ntable = \"a\\u0000b\"", "4:9: \"a\\0b\" is no name of a table"),
        (
            "[store.jobs]\ntable = \"a\"\nschema = \"callsheet\"",
            "5:10: the schema callsheet is where Callsheet keeps its own tables",
        ),
        (
            "[store.jobs]\ntable = \"a\"\ncolumns.startedTime = \"x\"",
            "5:9: unknown key `startedTime` in [store.jobs] columns",
        ),
        (
            "[store.jobs]\ntable = \"a\"\ncolumns = { error = \"x\", status_message = \"x\" }",
            "5:43: `error` and `status_message` are both the column \"x\"",
        ),
        (
            "[store.jobs]\ntable = \"a\"\nstatuses = { ERROR = \"DONE\", COMPLETED = \"DONE\" }",
            "5:22: \"DONE\" stands for both ERROR and COMPLETED",
        ),
        (
            "[store.jobs]\ntable = \"a\"\nstatuses.PENDING = \"ERROR\"",
            "5:20: \"ERROR\" stands for both PENDING and ERROR",
        ),
        ("[store.jobs]\ntable = \"a\"\nstatuses.DRAFT = \"x\"", "5:10: unknown key `DRAFT` in [store.jobs] statuses"),
        ("recurring = 3", "3:13: `recurring` must be a list of tables, not an integer"),
        ("[[flows.X.recurring]]\nschedule = \"0 3 * * *\"", "3:1: this recurring entry has no `identifier`"),
        ("[[flows.X.recurring]]\nidentifier = \"a\"", "3:1: this recurring entry has no `schedule`"),
        (
            "[[flows.X.recurring]]\nidentifier = \"a b\"\nschedule = \"0 3 * * *\"",
            "4:14: `identifier` can't be used: the identifier \"a b\" does not match the flow's identifier_pattern \
             ^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,254}$",
        ),
        (
            "[[flows.X.recurring]]\nidentifier = \"a\"\nschedule = \"0 25 * * *\"",
            "5:12: \"0 25 * * *\" is no cron line of five fields (minute, hour, day of month, month, day of week): the hour, \
             \"25\": one of its numbers is out of bounds",
        ),
        (
            "[[flows.X.recurring]]\nidentifier = \"a\"\nschedule = \"0 3 * * *\"\ntimezone = \"Mars/Olympus\"",
            "6:12: \"Mars/Olympus\" is no time zone of the IANA database, such as UTC or Europe/Berlin",
        ),
        (
            "[[flows.X.recurring]]\nidentifier = \"a\"\nschedule = \"@daily\"\npayload = \"{\"",
            "6:11: `payload` is no JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            "[[flows.X.recurring]]\nidentifier = \"a\"\nschedule = \"@daily\"\ncatch_up = \"some\"",
            "6:12: `catch_up` can't be \"some\"",
        ),
        (
            "[[flows.X.recurring]]\nidentifier = \"a\"\nschedule = \"@daily\"\noverlap = \"some\"",
            "6:11: `overlap` can't be \"some\"",
        ),
        (
            "[[flows.X.recurring]]\nidentifier = \"a\"\nschedule = \"@daily\"\n\
             [[flows.X.recurring]]\nidentifier = \"a\"\nschedule = \"@hourly\"",
            "6:1: two recurring entries of this flow have the name \"a\"",
        ),
        (
            "[[defaults.recurring]]\nidentifier = \"a\"\nschedule = \"@daily\"",
            "3:1: `recurring` can't stand in [defaults]: every flow would enqueue the same job",
        ),
        ("[retention]\nlogs = \"0s\"", "4:8: `logs` must be at least 1s"),
        (
            "[retention]\nlogs = \"30\"",
            "4:8: `logs` = \"30\" is no duration: time unit needed, for example 30sec or 30ms",
        ),
        ("[flows.1X]\ncommand = [\"true\"]", "3:8: \"1X\" is no job type"),
        ("[flows.Y]\ncommand = []", "4:11: `command` is empty"),
        ("[flows.Y]\ncommand = \"echo hi\"", "4:11: `command` must be a list of texts, not a text"),
        (
            "[flows.Y]\ncommand = [\"echo hi\"]",
            "4:12: `command` is one text with spaces in it; no shell takes it apart",
        ),
        (
            "[flows.MASTER_X]\ncommand = [\"true\"]",
            "1:8: the job types MASTER_X and X would both use the task queue name \"master_x\"",
        ),
    ] {
        let found = about_line(line);
        assert!(found.iter().any(|found| found == complaint), "{line}: wanted {complaint:?}, found {found:#?}");
    }
    for (text, complaint) in [
        (
            "database_url = \"oracle://h/db\"",
            "1:16: `database_url` can't be used: a database URL starts with sqlite://, postgres:// or mysql://",
        ),
        ("[service]\nstop_deadline = \"0s\"", "2:17: `stop_deadline` must be at least 1s"),
        ("[http]\nlisten = \"localhost:80\"", "2:10: `listen` can't be \"localhost:80\""),
        ("[[http.tokens]]\nname = \"ops\"\nrole = \"admin\"\ntoken_env = \"A\"", "3:8: `role` can't be \"admin\""),
        ("flows = 3", "1:9: `flows` must be a table, not an integer"),
    ] {
        let found = complaints(text);
        assert!(found.iter().any(|found| found == complaint), "{text}: {found:#?}");
    }
}

#[test]
fn the_rows_of_an_adopted_table_are_kept_unless_somebody_says_otherwise() {
    let adopted =
        "database_url = \"postgres://db/app\"\n[store.jobs]\ntable = \"Job\"\ncolumns.error = \"errorMessage\"\n";
    let config = parse(adopted).unwrap();
    let table = config.adopted.unwrap();
    assert_eq!((table.schema.as_str(), table.table.as_str()), ("public", "Job"));
    assert_eq!(table.statuses[&crate::domain::JobStatus::Error], "ERROR");
    let kept = config.retention;
    assert_eq!((kept.completed, kept.error, kept.cancelled), (None, None, None));
    assert_eq!(kept.logs, RetentionConfig::default().logs);
    let config = parse(&format!("{adopted}[retention]\nerror = \"90d\"\n")).unwrap();
    assert_eq!(config.retention.error, RetentionConfig::default().error);
    for (url, name) in [("", "SQLite"), ("database_url = \"mysql://h/db\"\n", "MySQL or MariaDB")] {
        let refused = parse(&format!("{url}[store.jobs]\ntable = \"Job\"\n"));
        assert!(matches!(refused, Err(Error::AdoptedWithoutPostgres { database }) if database == name), "{url}");
    }
}

#[test]
fn with_tokens_any_address_may_be_listened_on() {
    let token = |name: &str, secret: &str| format!("[[http.tokens]]\nname = \"{name}\"\nrole = \"viewer\"\n{secret}\n");
    let hash = format!("token_sha256 = \"{}\"", "Aa".repeat(32));
    let open = "[http]\nlisten = \"0.0.0.0:80\"\n";
    let text = format!("{open}{}{}", token("a", &hash), token("b", "token_env = \"B\""));
    let http = Config::parse(&text, Path::new("/srv/callsheet.toml")).unwrap().http;
    let secrets: Vec<_> = http.tokens.iter().map(|token| (token.name.as_str(), token.secret.clone())).collect();
    assert_eq!(secrets, [("a", TokenSecret::Sha256([0xaa; 32])), ("b", TokenSecret::Env("B".to_owned()))]);
    let twice = format!("{}{}", token("a", &hash), token("a", "token_env = \"B\""));
    assert_eq!(complaints(&twice), ["5:1: two tokens have the name \"a\""]);
    let nothing = token("a", "token_sha256 = \"E3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"");
    assert_eq!(complaints(&nothing), ["4:16: `token_sha256` is the hash of an empty text, which is no token"]);
    let long = token(&"n".repeat(101), &hash);
    assert_eq!(complaints(&long), ["2:8: a token's `name` has at most 100 bytes, none of a control character"]);
}

#[test]
fn defaults_hold_where_a_flow_says_nothing() {
    let text = "\
[defaults]
command = [\"run\", \"{type}\"]
concurrency = 4
env = { A = \"1\", B = \"1\" }
retry.maximum_attempts = 3
retry.initial_interval = \"2s\"
[flows.X]
env = { B = \"2\" }
retry.initial_interval = \"5s\"
";
    let config = parse(text).unwrap();
    let flow = config.flows.values().next().unwrap();
    assert_eq!(flow.command[1].to_string(), "{type}");
    assert_eq!(flow.concurrency.get(), 4);
    let mut env: Vec<String> = flow.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    env.sort();
    assert_eq!(env, ["A=1", "B=2"]);
    assert_eq!(flow.retry, RetryPolicy::new(3, Duration::from_secs(5), 2.0, Duration::from_secs(500), vec![]).unwrap());
}

#[test]
fn a_bad_default_is_complained_about_once_and_also_where_no_flow_uses_it() {
    let complaint = ["2:14: `kill_grace` must be at most 1day"];
    assert_eq!(
        complaints("[defaults]\nkill_grace = \"2d\"\n[flows.X]\ncommand = [\"a\"]\n[flows.Y]\ncommand = [\"a\"]"),
        complaint
    );
    assert_eq!(complaints("[defaults]\nkill_grace = \"2d\"\n"), complaint);
}

#[test]
fn a_longer_run_than_two_days_is_not_cut_short_unasked() {
    let days = |flow: FlowConfig| {
        (flow.start_to_close_timeout.as_secs() / 3600, flow.schedule_to_close_timeout.as_secs() / 3600)
    };
    assert_eq!(days(flow("")), (48, 48));
    assert_eq!(days(flow("start_to_close_timeout = \"5d\"")), (120, 120));
    assert_eq!(days(flow("schedule_to_close_timeout = \"1h\"")), (1, 1));
}

#[test]
fn sizes_have_units() {
    for (text, bytes) in
        [("\"64MiB\"", 64 << 20), ("\"2 kB\"", 2000), ("65536", 65536), ("\"1024\"", 1024), ("\"1TiB\"", 1 << 40)]
    {
        assert_eq!(flow(&format!("limits.output = {text}")).output_limit, bytes, "{text}");
    }
}

#[test]
fn no_password_is_ever_shown() {
    const SECRET: &str = "s3cret";
    for text in [
        "database_url = \"oracle://ann:s3cret@db/x\"",
        "database_url = \"postgres://ann:s3cret@db/x\ndata_dir = 3",
        "database_url = \"postgres://ann:s3cret@db/x\" trailing",
        "database_url = { a = \"s3cret\" }",
        "database_url = postgres://ann:s3cret@db/x",
        "[flows.X]\nenv = { TOKEN = \"s3cret {x}\", \"=\" = \"s3cret\" }",
        "[flows.X.env]\nTOKEN = [\"s3cret\"]",
    ] {
        let shown = format!("{:?} {}", parse(text), invalid(text));
        assert!(!shown.contains(SECRET), "{shown}");
    }
    let config =
        parse("database_url = \"postgres://ann:s3cret@db/x\"\n[flows.X]\ncommand = [\"a\"]\nenv.TOKEN = \"s3cret\"")
            .unwrap();
    assert!(!format!("{config:?}").contains(SECRET));
    let overrides = Overrides { database_url: Some("bad://ann:s3cret@db".to_owned()), ..Overrides::default() };
    let error = Config::load(&overrides).unwrap_err();
    assert!(!format!("{overrides:?} {error:?} {error}").contains(SECRET));
}

#[test]
fn bytes_that_are_no_text_have_a_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("callsheet.toml");
    std::fs::write(&path, b"data_dir = \"x\"\nworker_id = \"\xff\"\n").unwrap();
    let error = Config::load(&Overrides { config: Some(path), ..Overrides::default() }).unwrap_err();
    assert!(error.to_string().contains("callsheet.toml:2:14: this is not UTF-8 text"), "{error}");
}

#[test]
fn the_command_line_stands_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("callsheet.toml");
    std::fs::write(&path, "data_dir = \"x\"").unwrap();
    let file = Overrides { config: Some(path.clone()), ..Overrides::default() };
    let load = |overrides: Overrides| Config::load(&overrides).unwrap();
    assert_eq!(load(file.clone()).data_dir, directory.path().join("x"));
    let with_dir = load(Overrides { data_dir: Some("/other".into()), ..file.clone() });
    assert_eq!(
        (with_dir.data_dir.as_path(), with_dir.database_url.to_string().as_str()),
        (Path::new("/other"), "sqlite:///other/callsheet.db")
    );
    let with_url = load(Overrides { database_url: Some("postgres://h/db".to_owned()), ..file });
    assert_eq!(with_url.database_url.to_string(), "postgres://h/db");
    let missing = Overrides { config: Some(directory.path().join("none.toml")), ..Overrides::default() };
    assert!(matches!(Config::load(&missing), Err(Error::NotFound(_))));
}

#[test]
fn a_worker_keeps_its_id() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { data_dir: directory.path().join("data"), ..parse("").unwrap() };
    let id = worker_id(&config).unwrap();
    assert_eq!(worker_id(&config).unwrap(), id);
    let file = config.data_dir.join("worker_id");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(&config.data_dir).unwrap().count(), 1, "no draft is left");
    for garbage in [&b""[..], b"a b\n", b"\xff", &[b'a'; 4096]] {
        std::fs::write(&file, garbage).unwrap();
        assert!(matches!(worker_id(&config), Err(Error::WorkerIdGarbage(_))), "{garbage:?}");
    }
    assert_eq!(worker_id(&Config { worker_id: Some("me".parse().unwrap()), ..config }).unwrap().as_str(), "me");
}

#[test]
fn of_many_that_start_at_once_all_get_the_same_id() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { data_dir: directory.path().to_owned(), ..parse("").unwrap() };
    let ids = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| worker_id(&config).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<std::collections::BTreeSet<_>>()
    });
    assert_eq!(ids.len(), 1);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>()) {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_value_makes_the_reader_panic(
        key in "(data_dir|database_url|worker_id|http.listen|service.stop_deadline|flows.X.[a-z_]{1,8}|flows.X.(command|env|schedule|kill_grace|concurrency|retry.initial_interval|retry.backoff_coefficient|limits.output|identifier_pattern|timezone))",
        value in "(\"[^\"\\\\\u{0}-\u{1f}\u{7f}]{0,20}\"|-?[0-9]{1,20}(\\.[0-9]{1,3})?|true|inf|nan|\\[\"[a-z{}]{0,9}\"\\]|\\{ [a-z] = \"\\{\" \\}|[\u{0}-\u{ff}]{0,10})",
    ) {
        if let Err(error) = parse(&format!("{key} = {value}\n[flows.Y]\ncommand = [\"{{type}}\"]\n")) {
            prop_assert!(error.to_string().contains("callsheet.toml:"), "{error}");
        }
    }

    #[test]
    fn the_files_end_anywhere(at in 0..CONTRACT.len()) {
        let _ = parse(&CONTRACT[..CONTRACT.floor_char_boundary(at)]);
    }
}
