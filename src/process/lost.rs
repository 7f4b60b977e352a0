//! A lost run's `cancel_command`, which the service runs itself, since the shim that would have is gone.
//!
//! Once, with `{signal}` as KILL, when nothing of the run is alive here any more, and for `kill_grace` at most. It carries
//! the run's token: where the service dies or stops meanwhile, the next one finds it among what the run has left, kills it,
//! and runs it again.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::environment::Environment;
use super::shim::timespec;
use super::{CancelSpec, CommandSpec, environment, spawn, text, tree};
use crate::clock::boottime;
use crate::crash::{self, Step};

/// How much of what it says on standard error is told: a sentence or two.
const TOLD: usize = 400;

/// Runs it to its end, or to that of its time. Blocks.
///
/// # Errors
/// What it did instead of ending well, to follow "its cancel_command".
pub(super) fn clean_up(spec: &CommandSpec, run_dir: &Path, secrets: &[String]) -> Result<(), String> {
    let Some(CancelSpec { kill: words, .. }) = &spec.cancel else { return Ok(()) };
    let is_inherited = |(name, _): &(OsString, OsString)| {
        environment::is_passed_on(name) && !secrets.iter().any(|secret| name == secret.as_str())
    };
    let not_run = |reason: String| format!("can't be run: {reason}");
    let inherited = Environment::inherited(std::env::vars_os().filter(is_inherited));
    let environment = inherited.with(spec.added_environment(run_dir)).map_err(not_run)?;
    // By its path: what is looked for in a PATH ends in execvp(3), which hands a file that is no program to a shell.
    let program = spawn::program(words, &environment, spec.working_dir.as_deref()).map_err(not_run)?;
    #[expect(clippy::disallowed_methods, reason = "this is a place where processes are started")]
    let mut command = Command::new(program);
    // Under the name that it was given, as the shim does.
    command.arg0(words.first().map_or("", String::as_str)).args(words.iter().skip(1));
    command.env_clear().envs(environment.pairs());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    if let Some(directory) = &spec.working_dir {
        command.current_dir(directory);
    }
    let unwatched = |error: std::io::Error| format!("can't be waited for: {error}");
    crash::before(Step::LostCancel);
    let mut child = command.spawn().map_err(|error| not_run(error.to_string()))?;
    let mut said = Vec::new();
    let ended = wait(&mut child, boottime() + spec.kill_grace, &mut said);
    // Whether or not it has ended, it may have left others behind, which carry the token as it does.
    let killed = child.kill().and_then(|()| tree::kill_marked(&spec.token));
    let reaped = child.wait();
    crash::after(Step::LostCancel);
    killed.and(reaped).map_err(unwatched)?;
    match ended.map_err(unwatched)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("failed ({status}){}", told(&said))),
        None => {
            let grace = humantime::format_duration(spec.kill_grace);
            Err(format!("took longer than kill_grace ({grace}) and was killed{}", told(&said)))
        }
    }
}

/// `None` where it has not ended by then. What it says is read all the time, so that it is never held up by it.
fn wait(child: &mut Child, until: Duration, said: &mut Vec<u8>) -> std::io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let mut stderr = child.stderr.take();
    loop {
        let left = until.saturating_sub(boottime());
        let mut polled = vec![PollFd::new(&process, PollFlags::IN)];
        polled.extend(stderr.as_ref().map(|stderr| PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::IN)));
        match poll(&mut polled, Some(&timespec(left))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        let (has_ended, has_said) = (ready.next() == Some(true), ready.next() == Some(true));
        if has_said {
            stderr = stderr.filter(|stderr| read(stderr, said));
        } else if has_ended {
            return child.try_wait();
        }
        if left.is_zero() {
            return Ok(None);
        }
    }
}

/// Takes what is there; false at its end.
fn read(stderr: &ChildStderr, said: &mut Vec<u8>) -> bool {
    let mut bytes = [0_u8; 4096];
    match rustix::io::read(stderr, &mut bytes) {
        Ok(length) => {
            said.extend(bytes.iter().take(length.min(TOLD.saturating_sub(said.len()))));
            length > 0
        }
        Err(error) => error == Errno::INTR,
    }
}

fn told(said: &[u8]) -> String {
    let said = text::made_safe(said);
    let said = said.trim();
    if said.is_empty() { String::new() } else { format!(": {}", said.replace('\n', "; ")) }
}
