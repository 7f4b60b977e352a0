//! Real commands under real shims.
#![cfg(target_os = "linux")]
#![expect(clippy::disallowed_methods, reason = "processes are what is tested here")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test and its helpers")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use callsheet::domain::limits::Limits;
use callsheet::domain::run::{CommandEnd, EndCause, TimedOut, Timeout, Verdict};
use callsheet::domain::{Attempt, JobId, RunToken};
use callsheet::process::logs::{RunLog, Selection, Stream};
use callsheet::process::{CancelSpec, CommandSpec, Error, Evidence, Processes, RunLink, RunReport};

use super::support::processes::{
    PATIENCE, Process, is_alive, kill, marked_with, number_in, processes, say_skipped, wait_until,
};

/// A data directory with its runs, and what the tests ask of it.
struct Stage {
    scratch: tempfile::TempDir,
    processes: Processes,
}

/// What a run told, from its start to its end.
#[derive(Debug)]
struct Told {
    pid: Option<i32>,
    progress: Vec<(Option<u8>, Option<String>)>,
    last: RunReport,
}

impl Told {
    fn verdict(self) -> Verdict {
        match self.last {
            RunReport::Ended(verdict) => verdict,
            other => panic!("no verdict but {other:?}"),
        }
    }
}

impl Stage {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let processes = open(scratch.path());
        Self { scratch, processes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn run_dir(&self, spec: &CommandSpec) -> PathBuf {
        self.processes.run_dir(spec.job, spec.attempt, &spec.token)
    }

    /// A command that runs this shell script, in the scratch directory.
    fn script(&self, script: &str) -> CommandSpec {
        CommandSpec { working_dir: Some(self.scratch.path().to_owned()), ..command(&["sh", "-c", script]) }
    }

    async fn launch(&self, spec: &CommandSpec) -> RunLink {
        self.processes.launch(spec.clone()).await.unwrap()
    }

    async fn run(&self, spec: &CommandSpec) -> Told {
        let mut link = self.launch(spec).await;
        told(&mut link).await
    }

    async fn inspect(&self, spec: &CommandSpec) -> Evidence {
        self.processes.inspect(spec.job, spec.attempt, &spec.token).await.unwrap()
    }

    fn output(&self, spec: &CommandSpec, stream: Stream) -> String {
        let page = RunLog::open(&self.run_dir(spec), Selection::Only(stream), true).read(0, usize::MAX).unwrap();
        String::from_utf8(page.to_bytes()).unwrap()
    }

    /// The zygote of this stage: a child of this process whose arguments say so (tests run at the same time).
    fn zygotes(&self) -> Vec<i32> {
        let us = std::process::id().cast_signed();
        let ours = processes().into_iter().filter(|(_, process)| process.parent == us);
        ours.filter(|(_, process)| process.command_line == "callsheet-zygote __zygote").map(|(pid, _)| pid).collect()
    }
}

fn open(data_dir: &Path) -> Processes {
    Processes::open_with_exe(data_dir, env!("CARGO_BIN_EXE_callsheet").into()).unwrap()
}

fn command(argv: &[&str]) -> CommandSpec {
    static NEXT_JOB: AtomicI64 = AtomicI64::new(1);
    let job = NEXT_JOB.fetch_add(1, Ordering::Relaxed);
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
    CommandSpec {
        start_by: Duration::MAX,
        lease: None,
        flow: "TEST_FLOW".parse().unwrap(),
        job: JobId(job),
        attempt: Attempt(1),
        token: RunToken::new(1, random, callsheet::process::boot_mark()),
        argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        cancel: None,
        working_dir: None,
        env: Vec::new(),
        slot: None,
        identifier: "identifier".to_owned(),
        worker: "worker".parse().unwrap(),
        payload: None,
        time_limit: Duration::from_secs(60),
        time_limit_is: Timeout::StartToClose,
        watchdog: None,
        silence_timeout: None,
        kill_grace: Duration::from_millis(300),
        output_limit: 1 << 20,
        limits: Limits::default(),
    }
}

async fn next(link: &mut RunLink) -> RunReport {
    let report = tokio::time::timeout(PATIENCE, link.reports.recv()).await;
    report.expect("waited in vain for a report").expect("the link closed without a last report")
}

async fn told(link: &mut RunLink) -> Told {
    let (mut pid, mut progress) = (None, Vec::new());
    loop {
        match next(link).await {
            RunReport::Started { pid: started, .. } => assert_eq!(pid.replace(started), None, "started twice"),
            RunReport::Progress { progress: percent, status_message } => progress.push((percent, status_message)),
            RunReport::NotDying { reason } => panic!("not dying: {reason}"),
            last => return Told { pid, progress, last },
        }
    }
}

async fn started(link: &mut RunLink) -> i32 {
    match next(link).await {
        RunReport::Started { pid, .. } => pid,
        other => panic!("not started but {other:?}"),
    }
}

fn assert_nothing_is_alive_of(spec: &CommandSpec) {
    let alive = marked_with(spec.token.as_str());
    let shown: Vec<_> = alive.iter().filter_map(|pid| Process::read(*pid)).collect();
    assert!(shown.is_empty(), "still alive: {shown:?}");
}

#[tokio::test]
async fn an_exit_code_is_the_commands_own() {
    let stage = Stage::new();
    for code in [0, 1, 127, 255] {
        let spec = stage.script(&format!("exit {code}"));
        let told = stage.run(&spec).await;
        let pid = told.pid;
        let verdict = told.verdict();
        assert_eq!((verdict.end, verdict.cause), (CommandEnd::Exited(code), EndCause::Itself));
        assert_eq!(Some(verdict.pid), pid);
        assert!(verdict.completed_time >= verdict.started_time);
        assert!(matches!(stage.inspect(&spec).await, Evidence::Finished(found) if found == verdict));
    }
}

#[tokio::test]
async fn a_signal_is_told_from_an_exit_code() {
    let stage = Stage::new();
    let verdict = stage.run(&stage.script("kill -9 $$")).await.verdict();
    assert_eq!((verdict.end, verdict.cause), (CommandEnd::Signaled(9), EndCause::Itself));
}

#[tokio::test]
async fn a_command_that_cannot_start_says_why_and_has_no_exit_code() {
    let stage = Stage::new();
    let executable = |name: &str, content: &[u8]| {
        use std::os::unix::fs::PermissionsExt;
        fs::write(stage.path(name), content).unwrap();
        fs::set_permissions(stage.path(name), fs::Permissions::from_mode(0o755)).unwrap();
        stage.path(name).to_str().unwrap().to_owned()
    };
    let (garbage, orphan) =
        (executable("garbage", b"\x7fgarbage\n"), executable("orphan", b"#!/no/such/interpreter\n"));
    let text = executable("text", b"exit 3\n");
    let longest = "x".repeat(140 * 1024);
    let too_long = "x".repeat(400 * 1024);
    let missing_directory = CommandSpec { working_dir: Some("/no/such/directory".into()), ..command(&["true"]) };
    let cases = [
        (command(&["no-such-program"]), "was not found in PATH"),
        (command(&["/no/such/program"]), "does not exist"),
        (command(&["/etc/passwd"]), "permission denied"),
        (command(&["/etc"]), "is a directory"),
        (command(&[&garbage]), "is not a program"),
        (command(&[&text]), "is not a program"),
        (command(&[&orphan]), "needs an interpreter"),
        (command(&["/bin/true", &longest]), "too long"),
        (command(&["/bin/true", &too_long]), "too long"),
        (missing_directory, "the working directory \"/no/such/directory\" does not exist"),
    ];
    for (spec, expected) in cases {
        let told = stage.run(&spec).await;
        assert_eq!(told.pid, None);
        assert!(
            matches!(&told.last, RunReport::SpawnFailed { reason } if reason.contains(expected)),
            "{:?}",
            told.last
        );
        let found = stage.inspect(&spec).await;
        assert!(matches!(&found, Evidence::SpawnFailed(reason) if reason.contains(expected)), "{found:?}");
        let notify = stage.run_dir(&spec).join("notify");
        wait_until("the notify socket to be removed", || (!notify.exists()).then_some(())).await;
    }
}

#[tokio::test]
async fn a_run_is_launched_once() {
    let stage = Stage::new();
    let spec = command(&["true"]);
    stage.run(&spec).await.verdict();
    assert!(matches!(stage.processes.launch(spec).await.unwrap_err(), Error::AlreadyExists { .. }));
}

#[tokio::test]
async fn a_command_finds_its_surroundings() {
    let stage = Stage::new();
    let spec = CommandSpec {
        payload: Some(br#"{"frames": 30}"#.to_vec()),
        env: vec![("FROM_FLOW".to_owned(), "a value".to_owned()), ("CALLSHEET_ATTEMPT".to_owned(), "9".to_owned())],
        ..stage.script("env; cat \"$CALLSHEET_PAYLOAD\"; echo; pwd; readlink /proc/$$/fd/0")
    };
    stage.run(&spec).await.verdict();
    let output = stage.output(&spec, Stream::Stdout);
    let run_dir = stage.run_dir(&spec);
    for expected in [
        format!("CALLSHEET_JOB_ID={}", spec.job),
        "CALLSHEET_JOB_TYPE=TEST_FLOW".to_owned(),
        "CALLSHEET_IDENTIFIER=identifier".to_owned(),
        "CALLSHEET_ATTEMPT=1".to_owned(),
        format!("CALLSHEET_RUN_TOKEN={}", spec.token),
        "CALLSHEET_WORKER_ID=worker".to_owned(),
        format!("CALLSHEET_WORKFLOW_ID=test_flow({})", spec.job),
        format!("CALLSHEET_RUN_DIR={}", run_dir.display()),
        format!("CALLSHEET_PAYLOAD={}", run_dir.join("payload.json").display()),
        format!("NOTIFY_SOCKET={}", run_dir.join("notify").display()),
        "FROM_FLOW=a value".to_owned(),
        r#"{"frames": 30}"#.to_owned(),
        stage.scratch.path().display().to_string(),
        "/dev/null".to_owned(),
    ] {
        assert!(output.lines().any(|line| line == expected), "{expected:?} is not in {output}");
    }
}

#[tokio::test]
async fn the_command_leads_a_session_without_the_services_descriptors_or_signal_settings() {
    let stage = Stage::new();
    // Not close-on-exec, as a careless parent of the service would leave it.
    let leak = fs::File::open("/etc/hostname").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    // By the shell itself, which blocks signals while it forks. Until `closed` it holds the file that it reads.
    let spec = stage.script(
        "while read line; do case $line in SigIgn* | SigBlk*) echo \"$line\" ;; esac; done < /proc/$$/status; \
        echo closed; while :; do sleep 1; done",
    );
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    let lines = wait_until("the signal settings", || {
        let output = stage.output(&spec, Stream::Stdout);
        output.strip_suffix("closed\n").map(str::to_owned)
    })
    .await;
    // Of the signals that programs use: 32 and 33 are the C library's own.
    let none = |line: &str| u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap() & 0x7fff_ffff == 0;
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(lines.lines().all(none), "{lines}");
    let process = Process::read(pid).unwrap();
    let shim = Process::read(process.parent).unwrap();
    assert_eq!((process.session, shim.session), (pid, process.parent), "command and shim lead sessions of their own");
    for (who, pid) in [("zygote", shim.parent), ("shim", process.parent), ("command", pid)] {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            // One that has just been closed holds nothing.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy();
            let own = ["/dev/null", "socket:", "pipe:", "anon_inode:"].iter().any(|kind| target.starts_with(kind));
            let of_the_run = who == "shim" && target.starts_with(&*stage.run_dir(&spec).to_string_lossy());
            assert!(own || of_the_run, "the {who} holds {target}");
        }
    }
    link.control.stop_now();
    told(&mut link).await.verdict();
}

/// A tree that tries to get away: own sessions, double forks, orphans, deaf to SIGTERM.
const ESCAPING_TREE: &str = r#"
    trap '' TERM HUP INT
    setsid sh -c 'trap "" TERM; echo $$ > session; while :; do sleep 1; done' &
    (setsid sh -c '(sh -c "trap \"\" TERM; echo \$\$ > double; while :; do sleep 1; done" &) &' &)
    (sleep 1000 &)
    while [ ! -s session ] || [ ! -s double ]; do sleep 0.01; done
    echo ready > ready
"#;

async fn escaped(stage: &Stage) -> [i32; 2] {
    wait_until("the tree to stand", || fs::read_to_string(stage.path("ready")).ok()).await;
    ["session", "double"].map(|name| number_in(&stage.path(name)).unwrap())
}

#[tokio::test]
async fn nothing_is_alive_after_a_normal_end() {
    let stage = Stage::new();
    let spec = stage.script(&format!("{ESCAPING_TREE} exit 7"));
    let mut link = stage.launch(&spec).await;
    let pids = escaped(&stage).await;
    let verdict = told(&mut link).await.verdict();
    assert_eq!((verdict.end, verdict.cause), (CommandEnd::Exited(7), EndCause::Itself));
    assert!(!pids.into_iter().any(is_alive), "{pids:?}");
    assert_nothing_is_alive_of(&spec);
}

#[tokio::test]
async fn nothing_is_alive_after_a_stop() {
    let stage = Stage::new();
    let spec = stage.script(&format!("{ESCAPING_TREE} while :; do sleep 1; done"));
    let mut link = stage.launch(&spec).await;
    let pids = escaped(&stage).await;
    assert!(pids.into_iter().all(is_alive));
    let begun = Instant::now();
    link.control.stop();
    link.control.stop();
    let verdict = told(&mut link).await.verdict();
    assert_eq!((verdict.end, verdict.cause), (CommandEnd::Signaled(9), EndCause::Requested));
    assert!(begun.elapsed() >= spec.kill_grace, "SIGKILL came before the grace was over");
    assert!(!pids.into_iter().any(is_alive), "{pids:?}");
    assert_nothing_is_alive_of(&spec);
}

/// As a service does that has a run's lease made longer and stops.
#[tokio::test]
async fn what_is_wanted_is_told_also_where_the_link_is_dropped_at_once() {
    let stage = Stage::new();
    let spec = stage.script("while :; do sleep 1; done");
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    // Nothing else gets its turn in between.
    link.control.stop();
    drop(link);
    wait_until("the command to be ended", || (!is_alive(pid)).then_some(())).await;
    assert_nothing_is_alive_of(&spec);
}

#[tokio::test]
async fn a_fork_bomb_is_ended() {
    let stage = Stage::new();
    // Each generation lives for a moment only, in a new session, and there are always some.
    let spec = stage.script("trap '' TERM; f() { trap '' TERM; sleep 0.02; setsid sh bomb & }; echo '. ./bomb2' > bomb; \
        echo 'trap \"\" TERM; sleep 0.02; setsid sh bomb & sleep 0.01' > bomb2; for i in 1 2 3 4; do f & done; echo > bombing; sleep 1000");
    let mut link = stage.launch(&spec).await;
    wait_until("the bombs", || stage.path("bombing").exists().then_some(())).await;
    link.control.stop_now();
    told(&mut link).await.verdict();
    assert_nothing_is_alive_of(&spec);
}

#[tokio::test]
async fn a_stop_gives_the_command_its_grace() {
    let stage = Stage::new();
    let spec = CommandSpec {
        kill_grace: Duration::from_secs(60),
        ..stage.script("trap 'echo tidied; exit 5' TERM; echo > ready; while :; do sleep 0.05; done")
    };
    let mut link = stage.launch(&spec).await;
    wait_until("the command", || stage.path("ready").exists().then_some(())).await;
    link.control.stop();
    let verdict = told(&mut link).await.verdict();
    assert_eq!((verdict.end, verdict.cause), (CommandEnd::Exited(5), EndCause::Requested));
    assert_eq!(stage.output(&spec, Stream::Stdout), "tidied\n");
}

#[tokio::test]
async fn stop_now_cuts_the_grace_short() {
    let stage = Stage::new();
    let spec = CommandSpec {
        kill_grace: Duration::from_secs(600),
        ..stage.script("trap '' TERM; echo > ready; sleep 600; sleep 600")
    };
    let mut link = stage.launch(&spec).await;
    wait_until("the command", || stage.path("ready").exists().then_some(())).await;
    link.control.stop();
    link.control.stop_now();
    let verdict = told(&mut link).await.verdict();
    assert_eq!((verdict.end, verdict.cause), (CommandEnd::Signaled(9), EndCause::Requested));
}

/// A spec whose `cancel_command` is this script, which finds TERM or KILL in `$0`.
fn cancelled_by(spec: CommandSpec, script: &str) -> CommandSpec {
    let words = |signal: &str| ["sh", "-c", script, signal].map(ToOwned::to_owned).to_vec();
    CommandSpec { cancel: Some(CancelSpec { term: words("TERM"), kill: words("KILL") }), ..spec }
}

#[tokio::test]
async fn a_cancel_command_stands_for_sigterm() {
    let stage = Stage::new();
    let command = "trap 'exit 9' TERM; while [ ! -e asked ]; do sleep 0.01; done; exit 7";
    let grace = CommandSpec { kill_grace: Duration::from_secs(60), ..stage.script(command) };
    // It says so in the run's own output, and has the run's environment.
    let spec = cancelled_by(grace, "echo \"$0 $CALLSHEET_RUN_TOKEN\"; [ \"$0\" = TERM ] && touch asked");
    let mut link = stage.launch(&spec).await;
    started(&mut link).await;
    link.control.stop();
    let verdict = told(&mut link).await.verdict();
    assert_eq!((verdict.end, verdict.cause), (CommandEnd::Exited(7), EndCause::Requested));
    assert_eq!(stage.output(&spec, Stream::Stderr), format!("TERM {}\n", spec.token));
}

#[tokio::test]
async fn a_cancel_command_that_fails_is_followed_by_sigterm() {
    let stage = Stage::new();
    let command = "trap 'exit 9' TERM; echo > ready; while :; do sleep 0.01; done";
    let grace = CommandSpec { kill_grace: Duration::from_secs(60), ..stage.script(command) };
    let spec = cancelled_by(grace, "echo $0 >>asked; exit 1");
    let mut link = stage.launch(&spec).await;
    wait_until("the command", || stage.path("ready").exists().then_some(())).await;
    link.control.stop();
    assert_eq!(told(&mut link).await.verdict().end, CommandEnd::Exited(9));
    assert_eq!(fs::read_to_string(stage.path("asked")).unwrap(), "TERM\n");
}

#[tokio::test]
async fn what_a_killed_command_left_elsewhere_is_ended_by_its_cancel_command() {
    let stage = Stage::new();
    // It ignores whatever it is asked, and the first asking takes for ever. What is elsewhere is the file.
    let grace = CommandSpec {
        kill_grace: Duration::from_secs(5),
        ..stage.script("touch elsewhere; while :; do sleep 0.01; done")
    };
    let spec = cancelled_by(grace, "echo $0 >>asked; [ $0 = KILL ] || exec sleep 1000; sleep 0.3; rm elsewhere");
    for at_once in [false, true] {
        let spec = CommandSpec { job: JobId(spec.job.0 + 1_000_000 + i64::from(at_once)), ..spec.clone() };
        let mut link = stage.launch(&spec).await;
        started(&mut link).await;
        wait_until("the command", || stage.path("elsewhere").exists().then_some(())).await;
        if at_once {
            link.control.stop_now();
        } else {
            link.control.stop();
        }
        let verdict = told(&mut link).await.verdict();
        assert_eq!((verdict.end, verdict.cause), (CommandEnd::Signaled(9), EndCause::Requested));
        assert!(!stage.path("elsewhere").exists(), "the verdict came before the end");
        let asked = fs::read_to_string(stage.path("asked")).unwrap();
        assert_eq!(asked, if at_once { "KILL\n" } else { "TERM\nKILL\n" });
        fs::remove_file(stage.path("asked")).unwrap();
    }
    // One that hangs then is not waited for longer than that.
    let grace = CommandSpec { kill_grace: Duration::from_secs(4), ..stage.script("kill -9 $$") };
    let spec = cancelled_by(grace, "echo $0 >asked; exec sleep 1000");
    let verdict = stage.run(&spec).await.verdict();
    assert_eq!((verdict.end, verdict.cause), (CommandEnd::Signaled(9), EndCause::Itself));
    assert_eq!(fs::read_to_string(stage.path("asked")).unwrap(), "KILL\n");
    assert!(marked_with(spec.token.as_str()).is_empty());
}

#[tokio::test]
async fn what_a_lost_run_left_elsewhere_is_ended_by_its_cancel_command() {
    use std::os::unix::fs::PermissionsExt;
    let stage = Stage::new();
    let script =
        "echo \"$0 $CALLSHEET_RUN_TOKEN $CALLSHEET_JOB_ID\" >>asked; rm elsewhere; (trap '' TERM; sleep 1000) & exit 0";
    let grace = CommandSpec { kill_grace: Duration::from_secs(60), ..stage.script("touch elsewhere; exec sleep 1000") };
    let spec = cancelled_by(grace, script);
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    wait_until("the command", || stage.path("elsewhere").exists().then_some(())).await;
    kill(processes()[&pid].parent);
    let RunReport::LinkLost { .. } = told(&mut link).await.last else { panic!("its shim was killed") };
    assert_eq!(stage.processes.clean_up(spec.clone()).await, Ok(()));
    assert!(!stage.path("elsewhere").exists());
    assert_eq!(fs::read_to_string(stage.path("asked")).unwrap(), format!("KILL {} {}\n", spec.token, spec.job));
    assert!(marked_with(spec.token.as_str()).is_empty());
    // That it fails is told, with what it said; one that hangs or does not stop talking has its time, as has what it starts.
    for (script, grace, told) in [
        ("echo 'no such\nthing' >&2; exit 3", 60_000, "failed (exit status: 3): no such; thing"),
        ("sleep 1000 & wait", 300, "took longer than kill_grace (300ms) and was killed"),
        (
            "while :; do echo on and on; done >&2",
            300,
            "took longer than kill_grace (300ms) and was killed: on and on; on",
        ),
    ] {
        let spec = CommandSpec { kill_grace: Duration::from_millis(grace), ..cancelled_by(spec.clone(), script) };
        let why = stage.processes.clean_up(spec.clone()).await.unwrap_err();
        assert!(why.starts_with(told) && why.len() < 1000, "{why}");
        assert!(marked_with(spec.token.as_str()).is_empty());
    }
    // It is found as a command is, in the working directory and in its own PATH, and what is no program is given to no shell.
    let bare = stage.path("bare");
    fs::write(&bare, "touch shelled\n").unwrap();
    fs::set_permissions(&bare, fs::Permissions::from_mode(0o755)).unwrap();
    let here = stage.path("").to_string_lossy().into_owned();
    for (program, told) in [
        ("/no/such/program", "can't be run: the program \"/no/such/program\" does not exist"),
        ("nothere", "can't be run: the program \"nothere\" was not found in PATH"),
        ("./bare", "can't be run: Exec format error"),
        ("bare", "can't be run: Exec format error"),
    ] {
        let words = vec![program.to_owned()];
        let cancel = Some(CancelSpec { term: words.clone(), kill: words });
        let env = vec![("PATH".to_owned(), here.clone())];
        let why = stage.processes.clean_up(CommandSpec { cancel, env, ..spec.clone() }).await.unwrap_err();
        assert!(why.starts_with(told), "{program}: {why}");
    }
    assert!(!stage.path("shelled").exists());
}

#[tokio::test]
async fn a_command_that_could_not_be_ended_is_not_started() {
    let stage = Stage::new();
    let words = vec!["/no/such/program".to_owned()];
    let cancel = Some(CancelSpec { term: words.clone(), kill: words });
    let told = stage.run(&CommandSpec { cancel, ..stage.script("touch started") }).await;
    let RunReport::SpawnFailed { reason } = told.last else { panic!("{told:?}") };
    assert_eq!(reason, "its cancel_command can't be run: the program \"/no/such/program\" does not exist");
    assert!(!stage.path("started").exists());
}

#[tokio::test]
async fn a_stop_that_comes_after_the_commands_end_is_not_its_cause() {
    let stage = Stage::new();
    // The command has ended, but what it left behind uses up its grace: the run goes on, and can be stopped.
    let spec = CommandSpec {
        kill_grace: Duration::from_secs(600),
        ..stage.script("(trap '' TERM; echo > ready; while :; do sleep 1; done) & while [ ! -e ready ]; do sleep 0.01; done; exit 3")
    };
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    wait_until("the command's end", || (!is_alive(pid)).then_some(())).await;
    link.control.stop_now();
    let verdict = told(&mut link).await.verdict();
    assert_eq!((verdict.end, verdict.cause), (CommandEnd::Exited(3), EndCause::Itself));
    assert_nothing_is_alive_of(&spec);
}

#[tokio::test]
async fn the_time_limit_ends_the_whole_tree() {
    let stage = Stage::new();
    let spec = CommandSpec {
        time_limit: Duration::from_secs(6),
        kill_grace: Duration::from_millis(100),
        ..stage.script(&format!("{ESCAPING_TREE} while :; do sleep 1; done"))
    };
    let mut link = stage.launch(&spec).await;
    let pids = escaped(&stage).await;
    let verdict = told(&mut link).await.verdict();
    assert_eq!(
        (verdict.end, verdict.cause),
        (
            CommandEnd::Signaled(9),
            EndCause::TimedOut(Some(TimedOut { timeout: Timeout::StartToClose, limit: Duration::from_secs(6) }))
        )
    );
    assert!(verdict.execution >= Duration::from_secs(6) && verdict.execution < Duration::from_secs(60));
    assert!(!pids.into_iter().any(is_alive), "{pids:?}");
    assert_nothing_is_alive_of(&spec);
}

#[tokio::test]
async fn output_beyond_the_limit_loses_its_oldest_part_only() {
    let stage = Stage::new();
    let spec = stage.script("seq -f %09.0f 1 5000000; echo the last words >&2");
    let verdict = stage.run(&spec).await.verdict();
    assert_eq!(verdict.end, CommandEnd::Exited(0));
    assert_eq!(verdict.stderr_tail, "the last words\n");
    let log = RunLog::open(&stage.run_dir(&spec), Selection::Only(Stream::Stdout), true);
    let (first, total) = (log.read(0, 1).unwrap().pieces[0].offset, log.total_length().unwrap());
    assert_eq!(total, 50_000_000);
    assert!(total - first <= 1 << 20, "more than the limit is kept");
    assert!(total - first >= 1 << 19, "less than half of the limit is kept");
    assert_eq!(log.tail(1).unwrap().to_bytes(), b"005000000\n");
    let line = first / 10 + 2;
    assert_eq!(log.read((line - 1) * 10, 10).unwrap().to_bytes(), format!("{line:09}\n").into_bytes());
    assert_eq!(stage.output(&spec, Stream::Stderr), "the last words\n");
}

#[tokio::test]
async fn a_silent_command_leaves_a_journal_and_nothing_else() {
    let stage = Stage::new();
    let spec = command(&["true"]);
    stage.run(&spec).await.verdict();
    let names =
        || fs::read_dir(stage.run_dir(&spec)).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    wait_until("the shim to tidy up", || (names() == ["journal"]).then_some(())).await;
}

#[tokio::test]
async fn the_verdict_holds_the_end_of_standard_error_and_what_was_used() {
    let stage = Stage::new();
    let spec = stage.script("seq 1 20000 >&2; printf '\\033[31mred\\033[0m\\n' >&2; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exit 1");
    let verdict = stage.run(&spec).await.verdict();
    assert!(verdict.stderr_tail.ends_with("\n19999\n20000\nred\n"), "{}", verdict.stderr_tail);
    assert!(verdict.stderr_tail.len() <= 4096);
    assert!(verdict.usage.user_cpu > Duration::from_millis(5), "{:?}", verdict.usage);
    assert!((100_000..500_000_000).contains(&verdict.usage.max_rss_bytes), "{:?}", verdict.usage);
}

#[tokio::test]
async fn progress_arrives_and_its_last_value_for_certain() {
    let stage = Stage::new();
    let notify = "import os, socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\na = os.environ['NOTIFY_SOCKET']\n\
        s.connect('\\0' + a[1:] if a[0] == '@' else a)\nfor i in range(1001): s.send(b'X_PROGRESS=%d\\nSTATUS=frame %d\\n' % (i // 10, i))\n\
        s.send(b'X_PROGRESS=101\\n\\xff\\xfe=\\0')";
    let mut spec = command(&["python3", "-c", notify]);
    let begun = Instant::now();
    let told = stage.run(&spec).await;
    assert_eq!(told.progress.last(), Some(&(Some(100), Some("frame 1000".to_owned()))), "{told:?}");
    // One in a tenth of a second, and the last.
    let most = begun.elapsed().as_millis() / 100 + 2;
    assert!((told.progress.len() as u128) <= most, "{} reports of progress", told.progress.len());

    // A path that is too long for a socket.
    let deep = stage.path(&"d".repeat(120));
    let processes = open(&deep);
    spec.job = JobId(1_000_000);
    let mut link = processes.launch(spec).await.unwrap();
    let told = self::told(&mut link).await;
    assert_eq!(told.progress.last(), Some(&(Some(100), Some("frame 1000".to_owned()))), "{told:?}");
}

#[tokio::test]
async fn a_run_whose_link_was_dropped_is_adopted_with_the_same_pid_and_its_last_progress() {
    let stage = Stage::new();
    let spec = stage.script(
        "python3 -c 'import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); \
        s.sendto(b\"X_PROGRESS=40\", os.environ[\"NOTIFY_SOCKET\"])'; while [ ! -e go ]; do sleep 0.01; done; exit 4",
    );
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    assert!(matches!(next(&mut link).await, RunReport::Progress { progress: Some(40), .. }));
    let Stage { scratch, processes } = stage;
    drop((link, processes));

    let stage = Stage { processes: open(scratch.path()), scratch };
    for _ in 0..3 {
        // More than once: the shim goes on listening.
        let Evidence::Alive(mut link) = stage.inspect(&spec).await else { panic!("not alive") };
        assert_eq!(started(&mut link).await, pid);
        assert!(matches!(next(&mut link).await, RunReport::Progress { progress: Some(40), .. }));
    }
    let Evidence::Alive(mut link) = stage.inspect(&spec).await else { panic!("not alive") };
    fs::write(stage.path("go"), "").unwrap();
    let verdict = told(&mut link).await.verdict();
    assert_eq!((verdict.end, verdict.pid), (CommandEnd::Exited(4), pid));
}

#[tokio::test]
async fn an_adopted_run_can_be_stopped() {
    let stage = Stage::new();
    // On a machine that is busy a signal takes its time.
    let spec = CommandSpec { kill_grace: Duration::from_secs(60), ..command(&["sleep", "600"]) };
    drop(stage.launch(&spec).await);
    let Evidence::Alive(mut link) = stage.inspect(&spec).await else { panic!("not alive") };
    link.control.stop();
    let verdict = told(&mut link).await.verdict();
    assert_eq!((verdict.end, verdict.cause), (CommandEnd::Signaled(15), EndCause::Requested));
}

#[tokio::test]
async fn a_run_that_ended_unwatched_is_found_finished() {
    let stage = Stage::new();
    let spec = stage.script("echo said; exit 6");
    drop(stage.launch(&spec).await);
    let evidence = tokio::time::timeout(PATIENCE, async {
        loop {
            match stage.inspect(&spec).await {
                Evidence::Alive(link) => drop(link),
                other => return other,
            }
        }
    });
    let evidence = evidence.await.unwrap();
    assert!(matches!(&evidence, Evidence::Finished(verdict) if verdict.end == CommandEnd::Exited(6)), "{evidence:?}");
    assert_eq!(stage.output(&spec, Stream::Stdout), "said\n");
}

#[tokio::test]
async fn a_run_that_was_never_launched_never_started() {
    let stage = Stage::new();
    assert!(matches!(stage.inspect(&command(&["true"])).await, Evidence::NeverStarted));
    // After a power failure a missing directory proves nothing.
    let before_a_restart = CommandSpec { token: RunToken::from_bytes([7; 16]), ..command(&["true"]) };
    let evidence = stage.inspect(&before_a_restart).await;
    assert!(matches!(&evidence, Evidence::Gone { reason } if reason.contains("restarted")), "{evidence:?}");
}

#[tokio::test]
async fn a_killed_zygote_costs_nothing() {
    let stage = Stage::new();
    let spec = stage.script("while [ ! -e go ]; do sleep 0.01; done; exit 2");
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    let shim = Process::read(pid).unwrap().parent;
    kill(Process::read(shim).unwrap().parent);
    for _ in 0..5 {
        let _ = fs::remove_file(stage.path("count"));
        // The next launch finds it dead, or sends its order into the grave: then it never started, and may be launched anew.
        loop {
            let counted = stage.script("echo >> count");
            let mut link = stage.launch(&counted).await;
            let told = told(&mut link).await;
            if matches!(told.last, RunReport::LinkLost { .. }) {
                assert!(matches!(stage.inspect(&counted).await, Evidence::NeverStarted));
                continue;
            }
            assert_eq!(told.verdict().end, CommandEnd::Exited(0));
            break;
        }
        assert_eq!(fs::read_to_string(stage.path("count")).unwrap(), "\n", "started more than once");
        assert!(!stage.zygotes().is_empty());
    }
    fs::write(stage.path("go"), "").unwrap();
    let told = told(&mut link).await;
    assert_eq!(told.verdict().end, CommandEnd::Exited(2));
}

#[tokio::test]
async fn an_order_that_died_unread_with_its_zygote_never_started() {
    let stage = Stage::new();
    let mut first = stage.launch(&stage.script("sleep 600")).await;
    let shim = Process::read(started(&mut first).await).unwrap().parent;
    let zygote = Process::read(shim).unwrap().parent;
    let pid = rustix::process::Pid::from_raw(zygote).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let spec = stage.script("echo >> count");
    let mut link = stage.launch(&spec).await;
    kill(zygote);
    let lost = told(&mut link).await;
    assert!(matches!(lost.last, RunReport::LinkLost { .. }), "{lost:?}");
    assert!(matches!(stage.inspect(&spec).await, Evidence::NeverStarted));
    assert!(!stage.path("count").exists());
    first.control.stop_now();
    told(&mut first).await.verdict();
}

#[tokio::test]
async fn a_killed_shim_is_told_as_lost_and_nothing_survives_the_clean_up() {
    let stage = Stage::new();
    let spec = stage.script(&format!("{ESCAPING_TREE} while :; do sleep 1; done"));
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    let pids = escaped(&stage).await;
    kill(Process::read(pid).unwrap().parent);
    let told = told(&mut link).await;
    assert!(matches!(&told.last, RunReport::LinkLost { reason } if reason.contains("killed")), "{told:?}");
    let evidence = stage.inspect(&spec).await;
    assert!(matches!(&evidence, Evidence::Gone { reason } if reason.contains("killed")), "{evidence:?}");
    wait_until("the command to die with its shim", || (!is_alive(pid)).then_some(())).await;
    assert!(pids.into_iter().any(is_alive), "there is nothing to clean up");
    let removed = stage.processes.remove_leftovers(&spec.token).await.unwrap();
    assert!(removed >= 2, "{removed}");
    assert_nothing_is_alive_of(&spec);
    assert_eq!(stage.processes.remove_leftovers(&spec.token).await.unwrap(), 0);
}

/// Nothing is left to know it by: no environment, no session or parent of the run's, no descriptor.
#[tokio::test]
async fn what_a_killed_shim_left_alive_is_found_whatever_it_has_got_rid_of() {
    let stage = Stage::new();
    let spec = stage.script(
        "(env -i /usr/bin/setsid /bin/sh -c 'trap \"\" TERM; echo $$ > bare; while :; do /bin/sleep 1; done' \
         < /dev/null > /dev/null 2>&1 &); while :; do sleep 1; done",
    );
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    let bare = wait_until("the bare process", || number_in(&stage.path("bare"))).await;
    assert!(!marked_with(spec.token.as_str()).contains(&bare), "its environment is empty");
    kill(Process::read(pid).unwrap().parent);
    told(&mut link).await;
    assert!(is_alive(bare));
    assert!(stage.processes.remove_leftovers(&spec.token).await.unwrap() >= 1);
    assert!(!is_alive(bare));
}

#[tokio::test]
async fn garbage_in_place_of_a_journal_is_no_verdict() {
    let stage = Stage::new();
    let spec = command(&["true"]);
    stage.run(&spec).await.verdict();
    let journal = stage.run_dir(&spec).join("journal");
    wait_until("the shim's end", || {
        let held =
            rustix::fs::flock(fs::File::open(&journal).unwrap(), rustix::fs::FlockOperation::NonBlockingLockShared);
        held.ok()
    })
    .await;
    let whole = fs::read(&journal).unwrap();
    fs::write(&journal, &whole[..whole.len() - 5]).unwrap();
    assert!(matches!(stage.inspect(&spec).await, Evidence::Gone { .. }));
    fs::write(&journal, [0xa5; 3000]).unwrap();
    assert!(matches!(stage.inspect(&spec).await, Evidence::Gone { .. }));
}

#[tokio::test]
async fn a_runs_directory_of_somebody_else_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(scratch.path().join("elsewhere"), scratch.path().join("runs")).unwrap();
    assert!(matches!(Processes::open(scratch.path(), Vec::new()).unwrap_err(), Error::Refused { .. }));
}

/// A control group made for one test, as a service manager would delegate one.
struct Delegated(PathBuf);

impl Delegated {
    fn new() -> Option<Self> {
        let name = format!("callsheet-test-{}", std::process::id());
        ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].iter().find_map(|root| {
            let group = Path::new(root).join(&name);
            fs::create_dir(&group).ok()?;
            let group = Self(group);
            group.0.join("cgroup.kill").exists().then_some(group)
        })
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // The zygote may take a moment to leave it.
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[tokio::test]
async fn a_delegated_control_group_is_used_and_emptied() {
    use std::os::unix::fs::PermissionsExt;
    let Some(group) = Delegated::new() else {
        return say_skipped(
            "a_delegated_control_group_is_used_and_emptied",
            "no control group (version 2) can be made here",
        );
    };
    let scratch = tempfile::tempdir().unwrap();
    let wrapper = scratch.path().join("in-group");
    let script = format!(
        "#!/bin/bash\necho $$ > {}/cgroup.procs\nexec -a callsheet-zygote {} __zygote\n",
        group.0.display(),
        env!("CARGO_BIN_EXE_callsheet")
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let processes = Processes::open_with_exe(scratch.path(), wrapper).unwrap();
    let stage = Stage { scratch, processes };
    let spec = stage.script(&format!("{ESCAPING_TREE} while :; do sleep 1; done"));
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    let pids = escaped(&stage).await;
    let name = format!("callsheet-{:.8}", spec.token.as_str());
    for pid in [pid].into_iter().chain(pids) {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(groups.lines().any(|line| line.starts_with("0::") && line.ends_with(&name)), "{groups}");
    }
    link.control.stop_now();
    let verdict = told(&mut link).await.verdict();
    assert_eq!((verdict.end, verdict.cause), (CommandEnd::Signaled(9), EndCause::Requested));
    assert!(!group.0.join(&name).exists(), "the run's group is still there");
    assert_nothing_is_alive_of(&spec);
    drop(stage);
}

#[tokio::test]
async fn many_runs_at_once_keep_apart() {
    let stage = Stage::new();
    let specs: Vec<_> = (0..40).map(|number| stage.script(&format!("echo {number}; exit {number}"))).collect();
    let mut links = Vec::new();
    for spec in &specs {
        links.push(stage.launch(spec).await);
    }
    for (number, (spec, link)) in specs.iter().zip(&mut links).enumerate() {
        assert_eq!(told(link).await.verdict().end, CommandEnd::Exited(i32::try_from(number).unwrap()));
        assert_eq!(stage.output(spec, Stream::Stdout), format!("{number}\n"));
    }
}

#[test]
#[ignore = "a measurement, not a check: run it alone, in release"]
fn launches_a_second() {
    use std::io::Write;
    let runs = 1000_u32;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut out = std::io::stderr();
    for _ in 0..3 {
        let begun = Instant::now();
        for _ in 0..runs {
            assert!(Command::new("/bin/true").status().unwrap().success());
        }
        let raw = begun.elapsed() / runs;
        let (shimmed, to_exec) = runtime.block_on(async {
            let stage = Stage::new();
            stage.run(&command(&["/bin/true"])).await.verdict();
            let (begun, mut to_exec) = (Instant::now(), Duration::ZERO);
            for _ in 0..runs {
                let launched = Instant::now();
                let mut link = stage.launch(&command(&["/bin/true"])).await;
                started(&mut link).await;
                to_exec += launched.elapsed();
                told(&mut link).await.verdict();
            }
            (begun.elapsed() / runs, to_exec / runs)
        });
        writeln!(
            out,
            "raw {raw:?} ({:.0}/s), with shim {shimmed:?} ({:.0}/s), launch to exec {to_exec:?}, on top {:?}, ratio {:.2}",
            1.0 / raw.as_secs_f64(),
            1.0 / shimmed.as_secs_f64(),
            shimmed.saturating_sub(raw),
            raw.as_secs_f64() / shimmed.as_secs_f64(),
        )
        .unwrap();
    }
}

/// The process that has started the command of this script, which must be short and silent.
async fn parent_of(stage: &Stage, rest: &str) -> (i32, Verdict) {
    let verdict = stage.run(&stage.script(&format!("echo $PPID > parent; {rest}"))).await.verdict();
    (number_in(&stage.path("parent")).unwrap(), verdict)
}

#[tokio::test]
async fn a_shim_has_another_run_after_a_short_one_and_nothing_of_it_is_left() {
    let scratch = tempfile::tempdir().unwrap();
    // Before its exec a command is a part of the shim, and counted with what that holds.
    let processes = Processes::open_with_exe(scratch.path(), env!("CARGO_BIN_EXE_callsheet-shim").into()).unwrap();
    let stage = Stage { scratch, processes };
    let memory = "exec dd if=/dev/zero of=/dev/null bs=12M count=1 status=none";
    // Where the machine is slow they are not short.
    let mut tries = 0;
    loop {
        let (first, large) = parent_of(&stage, memory).await;
        let (second, small) = parent_of(&stage, "exit 5").await;
        assert_eq!((large.end, small.end), (CommandEnd::Exited(0), CommandEnd::Exited(5)));
        assert!(large.usage.max_rss_bytes >= 12 << 20, "{large:?}");
        assert!(small.usage.max_rss_bytes < large.usage.max_rss_bytes, "{small:?} {large:?}");
        if first == second {
            break;
        }
        tries += 1;
        assert!(tries < 200, "each run has a shim of its own");
    }
    let (last, _) = parent_of(&stage, "true").await;
    wait_until("the shim to end where nothing more comes", || (!is_alive(last)).then_some(())).await;
    // What has lasted has had a guard beside it.
    let (lasted, _) = parent_of(&stage, "sleep 0.1").await;
    let (after, _) = parent_of(&stage, "true").await;
    assert_ne!(lasted, after);
}

#[tokio::test]
async fn an_order_that_comes_while_its_shim_goes_is_carried_out_once() {
    let stage = Stage::new();
    for step in 0..40 {
        let run = stage.script("echo >> count");
        assert_eq!(stage.run(&run).await.verdict().end, CommandEnd::Exited(0));
        // Around the time for which a shim waits.
        tokio::time::sleep(Duration::from_millis(90) + Duration::from_micros(500) * step).await;
    }
    assert_eq!(fs::read_to_string(stage.path("count")).unwrap().len(), 40);
}

#[tokio::test]
async fn an_order_that_died_unread_with_a_waiting_shim_never_started() {
    let stage = Stage::new();
    for _ in 0..200 {
        let (shim, _) = parent_of(&stage, "true").await;
        let _ = fs::remove_file(stage.path("count"));
        // It may have ended already, where the machine is slow.
        let pid = rustix::process::Pid::from_raw(shim).unwrap();
        let stopped = rustix::process::kill_process(pid, rustix::process::Signal::STOP).is_ok();
        let spec = stage.script("echo >> count");
        let mut link = stage.launch(&spec).await;
        if stopped {
            kill(shim);
        }
        let told = told(&mut link).await;
        if matches!(told.last, RunReport::LinkLost { .. }) {
            assert!(matches!(stage.inspect(&spec).await, Evidence::NeverStarted));
            assert!(!stage.path("count").exists());
            return;
        }
        assert_eq!(told.verdict().end, CommandEnd::Exited(0));
        assert_eq!(fs::read_to_string(stage.path("count")).unwrap(), "\n", "once");
    }
    panic!("no shim waited for an order");
}

#[tokio::test]
async fn what_commands_may_not_see_any_more_no_waiting_shim_shows_them() {
    let stage = Stage::new();
    // Which the machine's own environment has.
    let shows = "test -z \"$HOME\"";
    for _ in 0..10 {
        let (_, verdict) = parent_of(&stage, shows).await;
        assert_eq!(verdict.end, CommandEnd::Exited(1));
    }
    stage.processes.keep_back(vec!["HOME".to_owned()]);
    let (_, verdict) = parent_of(&stage, shows).await;
    assert_eq!(verdict.end, CommandEnd::Exited(0));
}

/// When the command of this script was started, by the machine's clock in nanoseconds.
const STAMP: &str = "date +%s%N >> stamps";

fn stamps(stage: &Stage) -> Vec<u128> {
    let stamps = fs::read_to_string(stage.path("stamps")).unwrap_or_default();
    stamps.lines().map(|stamp| stamp.parse().unwrap()).collect()
}

fn nanoseconds() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

#[tokio::test]
async fn a_held_command_starts_with_its_release_and_not_before() {
    let stage = Stage::new();
    // By a shim of its own, and by one that has had another run.
    for _ in 0..20 {
        let spec = stage.script(STAMP);
        let held = stage.processes.hold(&spec).expect("it is held");
        // As long as it may take to start a command.
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(stage.processes.released(&spec.token).is_none());
        let released = nanoseconds();
        held.release();
        let mut link = stage.processes.released(&spec.token).expect("it is there");
        assert!(stage.processes.released(&spec.token).is_none(), "it is two owners'");
        assert_eq!(told(&mut link).await.verdict().end, CommandEnd::Exited(0));
        assert!(stamps(&stage).last().is_some_and(|started| *started >= released), "it was started before");
    }
    assert_eq!(stamps(&stage).len(), 20);
}

#[tokio::test]
async fn a_held_command_that_is_given_up_is_never_started_and_leaves_nothing() {
    let stage = Stage::new();
    for way in 0..20_usize {
        let spec = stage.script(STAMP);
        let held = stage.processes.hold(&spec).expect("it is held");
        if way % 2 == 0 {
            held.give_up();
        } else {
            drop(held);
            wait_until("its directory to be gone", || (!stage.run_dir(&spec).exists()).then_some(())).await;
        }
        assert!(!stage.run_dir(&spec).exists());
        assert!(matches!(stage.inspect(&spec).await, Evidence::NeverStarted));
        assert_eq!(stamps(&stage).len(), way.div_ceil(2));
        // By the same token, as where the answer to a commit was lost.
        if way % 2 == 0 {
            assert_eq!(stage.run(&spec).await.verdict().end, CommandEnd::Exited(0));
        }
    }
    assert_eq!(stamps(&stage).len(), 10);
}

#[tokio::test]
async fn a_released_run_is_found_alive_by_whoever_looks_first() {
    let stage = Stage::new();
    let spec = stage.script("read -r word < go; exit 3");
    assert!(Command::new("mkfifo").arg(stage.path("go")).status().unwrap().success());
    stage.processes.hold(&spec).expect("it is held").release();
    let Evidence::Alive(mut link) = stage.inspect(&spec).await else { panic!("it is not alive") };
    assert!(stage.processes.released(&spec.token).is_none(), "it is two owners'");
    started(&mut link).await;
    fs::write(stage.path("go"), "on\n").unwrap();
    assert_eq!(told(&mut link).await.verdict().end, CommandEnd::Exited(3));
}

/// The shim of a held command, and its child that waits for the word and will be the command.
async fn shim_and_waiting(run_dir: &Path) -> (i32, i32) {
    wait_until("its shim, and what waits", || {
        let holds = |pid: &i32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            open.into_iter().any(|entry| fs::read_link(entry.path()).is_ok_and(|file| file == run_dir))
        };
        let holding: Vec<(i32, i32)> =
            processes().into_iter().filter(|(pid, _)| holds(pid)).map(|(pid, it)| (it.parent, pid)).collect();
        holding.iter().copied().find(|(parent, _)| holding.iter().any(|(_, pid)| pid == parent))
    })
    .await
}

async fn both_are_gone(shim: i32, waiting: i32) {
    let gone = || (Process::read(shim).is_none() && Process::read(waiting).is_none()).then_some(());
    wait_until("both to be gone", gone).await;
}

#[tokio::test]
async fn a_held_command_whose_shim_or_whose_process_is_killed_never_started() {
    for the_shim in [true, false] {
        let stage = Stage::new();
        let spec = stage.script(STAMP);
        let held = stage.processes.hold(&spec).expect("it is held");
        let (shim, waiting) = shim_and_waiting(&stage.run_dir(&spec)).await;
        kill(if the_shim { shim } else { waiting });
        // What waits dies with its shim, and a shim that lives records the end of what waits, and goes. A signal is sent, not
        // delivered, when kill(2) returns: for a moment more the word would have started the command.
        both_are_gone(shim, waiting).await;
        held.release();
        let mut link = stage.processes.released(&spec.token).expect("it is there");
        assert!(matches!(told(&mut link).await.last, RunReport::LinkLost { .. }));
        assert!(matches!(stage.inspect(&spec).await, Evidence::NeverStarted));
        assert_eq!(stamps(&stage).len(), 0);
    }
}

/// At any moment from the word to the command's own first steps: whether its start is recorded or not, who says that it never
/// started is right.
#[tokio::test]
async fn a_command_that_is_killed_while_it_starts_is_not_said_to_have_never_started() {
    for turn in 0..40_u32 {
        let stage = Stage::new();
        let spec = stage.script(STAMP);
        let held = stage.processes.hold(&spec).expect("it is held");
        let (shim, waiting) = shim_and_waiting(&stage.run_dir(&spec)).await;
        held.release();
        let released = std::time::Instant::now();
        while released.elapsed() < Duration::from_micros(30) * (turn / 2) {
            std::hint::spin_loop();
        }
        // Unless it has ended already.
        let victim = rustix::process::Pid::from_raw(if turn % 2 == 0 { shim } else { waiting }).unwrap();
        let _ = rustix::process::kill_process(victim, rustix::process::Signal::KILL);
        let mut link = stage.processes.released(&spec.token).expect("it is there");
        let last = told(&mut link).await.last;
        both_are_gone(shim, waiting).await;
        match stage.inspect(&spec).await {
            Evidence::NeverStarted => assert_eq!(stamps(&stage).len(), 0, "{turn}: {last:?}"),
            Evidence::Finished(_) | Evidence::Gone { .. } => {}
            other => panic!("{turn}: {last:?}, {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_can_not_be_held_leaves_nothing_and_says_why_when_it_is_launched() {
    let stage = Stage::new();
    let mut spec = stage.script(STAMP);
    spec.argv.push("x".repeat(300_000));
    assert!(stage.processes.hold(&spec).is_none());
    assert!(!stage.run_dir(&spec).exists());
    assert!(matches!(stage.run(&spec).await.last, RunReport::SpawnFailed { .. }));
    // One that is there already is somebody's.
    assert!(stage.processes.hold(&spec).is_none());
    assert!(stage.run_dir(&spec).exists());
}

/// The shim of a command.
fn shim_of(command: i32) -> i32 {
    Process::read(command).unwrap().parent
}

/// Something that nothing can be bound over, as on a disk without room, until it is removed.
fn in_the_way(stage: &Stage, spec: &CommandSpec) -> PathBuf {
    let control = stage.run_dir(spec).join("ctl");
    fs::create_dir_all(control.join("something")).unwrap();
    control
}

#[tokio::test]
async fn a_shim_that_can_not_listen_is_told_of_and_listens_when_it_can() {
    let stage = Stage::new();
    let spec = stage.script("while :; do sleep 1; done");
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    let obstacle = in_the_way(&stage, &spec);
    drop(link);
    let Evidence::Alive(mut link) = stage.inspect(&spec).await else { panic!("it is not alive") };
    let told_of = next(&mut link).await;
    assert!(matches!(&told_of, RunReport::OutOfReach { reason } if reason.contains("does not listen")), "{told_of:?}");
    // Asked meanwhile, it is told when there is somebody to be told.
    link.control.stop();
    fs::remove_dir_all(obstacle).unwrap();
    assert_eq!(next(&mut link).await, RunReport::WithinReach);
    let told = told(&mut link).await;
    assert_eq!((told.pid, told.verdict().cause), (Some(pid), EndCause::Requested));
    assert_nothing_is_alive_of(&spec);
}

/// So much processor time a process has used, in clock ticks of 10 ms.
fn ticks_of(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Sets how many descriptors a process may have, and tells how many it might before.
fn limit_descriptors(pid: i32, current: Option<u64>) -> Option<u64> {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Pid::from_raw(pid), Resource::Nofile, Rlimit { current, maximum }).unwrap().current
}

#[tokio::test]
async fn a_shim_without_a_descriptor_for_a_service_waits_quietly() {
    let stage = Stage::new();
    let spec = stage.script("while :; do sleep 1; done");
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    let shim = shim_of(pid);
    drop(link);
    let control = stage.run_dir(&spec).join("ctl");
    wait_until("its shim to wait for a service", || control.exists().then_some(())).await;
    // What it has it keeps. Where that is more than there may be, it can't even wait for it.
    let next_one = (0..).find(|number| !Path::new(&format!("/proc/{shim}/fd/{number}")).exists());
    let before = limit_descriptors(shim, next_one);
    let Evidence::Alive(mut link) = stage.inspect(&spec).await else { panic!("it is not alive") };
    for few in [next_one, Some(3)] {
        limit_descriptors(shim, few);
        let used = ticks_of(shim);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let used = ticks_of(shim) - used;
        // Spinning it would have had all of it, or its share of a busy machine.
        assert!(used < 20, "{used} ticks with {few:?} descriptors");
    }
    limit_descriptors(shim, before);
    assert_eq!(started(&mut link).await, pid);
    link.control.stop_now();
    told(&mut link).await.verdict();
}

#[tokio::test]
async fn a_time_limit_holds_for_a_shim_that_has_no_descriptor_for_a_timer() {
    let stage = Stage::new();
    let spec = CommandSpec { time_limit: Duration::from_secs(1), ..stage.script("while :; do sleep 1; done") };
    let held = stage.processes.hold(&spec).expect("it is held");
    let (shim, _) = shim_and_waiting(&stage.run_dir(&spec)).await;
    let before = limit_descriptors(shim, Some(3));
    held.release();
    let mut link = stage.processes.released(&spec.token).expect("it is there");
    started(&mut link).await;
    // By then it has also tried to have a guard beside it.
    let journal = stage.run_dir(&spec).join("journal");
    wait_until("the record of the start", || {
        fs::read_to_string(&journal).ok().filter(|records| records.contains("{\"started\":")).map(drop)
    })
    .await;
    limit_descriptors(shim, before);
    let verdict = told(&mut link).await.verdict();
    assert!(
        matches!(verdict.cause, EndCause::TimedOut(Some(TimedOut { timeout: Timeout::StartToClose, .. }))),
        "{verdict:?}"
    );
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn a_zygote_that_stands_still_is_killed_and_what_it_was_ordered_never_started() {
    let stage = Stage::new();
    stage.run(&command(&["sleep", "0.1"])).await.verdict();
    let us = std::process::id().cast_signed();
    let runs = format!("CALLSHEET_RUNS={}", stage.path("runs").canonicalize().unwrap().display());
    let is_its = |process: &Process| process.parent == us && process.environment.contains(&runs);
    let (zygote, _) = processes().into_iter().find(|(_, process)| is_its(process)).unwrap();
    signal(zygote, rustix::process::Signal::STOP);
    let spec = stage.script(STAMP);
    let mut link = stage.launch(&spec).await;
    let first = next(&mut link).await;
    assert!(matches!(&first, RunReport::OutOfReach { reason } if reason.contains("has answered")), "{first:?}");
    assert!(matches!(next(&mut link).await, RunReport::LinkLost { .. }));
    assert!(matches!(stage.inspect(&spec).await, Evidence::NeverStarted));
    assert_eq!(stamps(&stage).len(), 0);
    assert_eq!(stage.run(&stage.script(STAMP)).await.verdict().end, CommandEnd::Exited(0));
}

/// Alive by its lock, and no more than that.
#[tokio::test]
async fn a_zygote_that_stands_still_without_its_service_holds_up_nobody() {
    let stage = Stage::new();
    // With another service's data directory.
    let elsewhere = Stage::new();
    let mut zygotes = Vec::new();
    for stage in [&stage, &elsewhere] {
        stage.run(&command(&["sleep", "0.1"])).await.verdict();
        let variable = format!("CALLSHEET_RUNS={}", stage.path("runs").canonicalize().unwrap().display());
        let is_its = |process: &Process| process.environment.contains(&variable);
        let (zygote, _) = processes().into_iter().find(|(_, process)| is_its(process)).unwrap();
        zygotes.push(zygote);
        signal(zygote, rustix::process::Signal::STOP);
    }
    let spec = stage.script(STAMP);
    drop(stage.launch(&spec).await);
    // What a new service finds.
    let successor = open(stage.scratch.path());
    let Evidence::Alive(mut link) = successor.inspect(spec.job, spec.attempt, &spec.token).await.unwrap() else {
        panic!("its lock is not held")
    };
    assert!(matches!(next(&mut link).await, RunReport::OutOfReach { .. }));
    assert!(matches!(next(&mut link).await, RunReport::LinkLost { .. }));
    assert!(matches!(stage.inspect(&spec).await, Evidence::NeverStarted));
    assert_eq!(stamps(&stage).len(), 0);
    assert!(is_alive(zygotes[1]), "another service's helper was killed");
    signal(zygotes[1], rustix::process::Signal::CONT);
}

#[tokio::test]
async fn a_shim_that_stands_still_is_woken_to_end_its_run_or_to_be_adopted() {
    for is_adopted in [false, true] {
        let stage = Stage::new();
        let spec = stage.script("while :; do sleep 1; done");
        let mut link = stage.launch(&spec).await;
        let pid = started(&mut link).await;
        let begun = Instant::now();
        signal(shim_of(pid), rustix::process::Signal::STOP);
        if is_adopted {
            drop(link);
            let Evidence::Alive(adopted) = stage.inspect(&spec).await else { panic!("it is not alive") };
            link = adopted;
            assert!(matches!(next(&mut link).await, RunReport::OutOfReach { .. }));
            assert_eq!(next(&mut link).await, RunReport::WithinReach);
            assert_eq!(started(&mut link).await, pid);
        }
        link.control.stop();
        assert_eq!(told(&mut link).await.verdict().cause, EndCause::Requested);
        assert!(is_adopted || begun.elapsed() >= Duration::from_secs(10), "it has woken by itself");
        assert_nothing_is_alive_of(&spec);
    }
}

#[tokio::test]
async fn what_is_wanted_while_the_link_is_sought_is_told_though_the_owner_has_gone() {
    let stage = Stage::new();
    let spec = stage.script("while :; do sleep 1; done");
    let mut link = stage.launch(&spec).await;
    let pid = started(&mut link).await;
    let obstacle = in_the_way(&stage, &spec);
    drop(link);
    let Evidence::Alive(mut link) = stage.inspect(&spec).await else { panic!("it is not alive") };
    assert!(matches!(next(&mut link).await, RunReport::OutOfReach { .. }));
    link.control.stop();
    drop(link);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(is_alive(pid));
    fs::remove_dir_all(obstacle).unwrap();
    wait_until("the command to be ended", || (!is_alive(pid)).then_some(())).await;
    let verdict = match stage.inspect(&spec).await {
        Evidence::Finished(verdict) => verdict,
        // Its shim has not quite gone.
        Evidence::Alive(mut link) => told(&mut link).await.verdict(),
        other => panic!("it has no verdict but {other:?}"),
    };
    assert_eq!(verdict.cause, EndCause::Requested);
    assert_nothing_is_alive_of(&spec);
}
