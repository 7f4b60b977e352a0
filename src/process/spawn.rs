//! Starting the command: which file it is, and why it can't be started.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::Access;
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, setrlimit};

use super::environment::Environment;
use super::link::Order;
use super::tree;
use crate::domain::run::{CommandEnd, Usage};

/// Where programs are looked for when the command's environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A command that is ready to be started.
#[derive(Debug)]
pub(super) struct Prepared {
    program: CString,
    arguments: Vec<CString>,
    environment: Environment,
    working_dir: Option<CString>,
    /// See [`tree::mark_of`].
    mark: u64,
}

impl Prepared {
    /// Finds the program and checks what can be checked before there is a process.
    ///
    /// # Errors
    /// A sentence for a person.
    pub(super) fn new(order: &Order, environment: &Environment) -> Result<Self, String> {
        Self::of(&order.argv, order, environment)
    }

    /// The same for another program than the order's command, in its place.
    ///
    /// # Errors
    /// A sentence for a person.
    pub(super) fn of(argv: &[String], order: &Order, environment: &Environment) -> Result<Self, String> {
        let working_dir = order.working_dir.as_deref().map(Path::new);
        let program = program(argv, environment, working_dir)?;
        let text = |bytes: Vec<u8>, what: &str| {
            CString::new(bytes).map_err(|_| format!("{what} holds a zero byte, which no program can be given"))
        };
        Ok(Self {
            program: text(program.into_os_string().into_vec(), "the program's path")?,
            arguments: argv
                .iter()
                .map(|argument| text(argument.clone().into_bytes(), "an argument"))
                .collect::<Result<_, _>>()?,
            environment: environment.clone(),
            working_dir: working_dir
                .map(|directory| text(directory.as_os_str().as_bytes().to_vec(), "the working directory"))
                .transpose()?,
            mark: tree::mark_of(&order.token),
        })
    }

    fn refusal(&self, failure: Failure) -> Refusal {
        Refusal::new(self.sentence(failure), &io::Error::from_raw_os_error(failure.errno))
    }

    /// Why the exec, or what comes right before it, failed.
    fn sentence(&self, failure: Failure) -> String {
        let program = self.program.to_string_lossy();
        let error = io::Error::from_raw_os_error(failure.errno);
        match (failure.stage, Errno::from_raw_os_error(failure.errno)) {
            (Stage::Fork, Errno::AGAIN) => {
                "no more processes can be started: the limit of this user or of the system is reached".to_owned()
            }
            (Stage::Fork, _) => format!("no process can be started: {error}"),
            (Stage::Directory, _) => {
                let directory = self.working_dir.as_ref().map(|path| path.to_string_lossy()).unwrap_or_default();
                format!("the working directory {directory:?} can't be entered: {error}")
            }
            (Stage::Setup, _) => format!("its process can't be set up: {error}"),
            (Stage::Last, _) => "its process was kept from becoming the command".to_owned(),
            (Stage::Exec, Errno::TOOBIG) => {
                "its arguments and environment are too long (see ARG_MAX in execve(2))".to_owned()
            }
            (Stage::Exec, Errno::NOEXEC) => format!(
                "{program:?} is not a program: it is neither a binary for this machine nor a script that starts with #!"
            ),
            (Stage::Exec, Errno::ACCESS | Errno::PERM) => format!("{program:?} can't be executed: permission denied"),
            // The file is there, it was looked at before.
            (Stage::Exec, Errno::NOENT) => format!(
                "{program:?} needs an interpreter that does not exist (see its first line, which starts with #!)"
            ),
            (Stage::Exec, Errno::TXTBSY) => {
                format!("{program:?} is open for writing: somebody is still writing the program's file")
            }
            (Stage::Exec, _) => format!("{program:?} can't be executed: {error}"),
        }
    }
}

/// The file that the first of these words means to a command with this environment and working directory; its path has a slash,
/// so that whoever starts it looks no further.
///
/// # Errors
/// A sentence for a person.
pub(super) fn program(
    argv: &[String],
    environment: &Environment,
    working_dir: Option<&Path>,
) -> Result<PathBuf, String> {
    let name = argv.first().filter(|name| !name.is_empty()).ok_or("the command is empty")?;
    if let Some(directory) = working_dir {
        check_working_dir(directory)?;
    }
    find_program(name, environment.get("PATH").unwrap_or(OsStr::new(DEFAULT_PATH)), working_dir)
}

fn check_working_dir(directory: &Path) -> Result<(), String> {
    match directory.metadata() {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("the working directory {directory:?} is not a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("the working directory {directory:?} does not exist"))
        }
        Err(error) => Err(format!("the working directory {directory:?} can't be used: {error}")),
    }
}

/// The file that `name` means, the way execvp(3) looks for it, but from the command's `PATH` and working directory.
fn find_program(name: &str, path: &OsStr, working_dir: Option<&Path>) -> Result<PathBuf, String> {
    let placed = |file: &Path| working_dir.map_or_else(|| file.to_owned(), |directory| directory.join(file));
    if name.contains('/') {
        let file = placed(Path::new(name));
        return match file.metadata() {
            Ok(found) if found.is_dir() => Err(format!("{file:?} is a directory, not a program")),
            Ok(_) if !is_executable(&file) => {
                Err(format!("{file:?} can't be executed: permission denied (is it marked executable?)"))
            }
            Ok(_) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("the program {file:?} does not exist"))
            }
            Err(error) => Err(format!("the program {file:?} can't be used: {error}")),
        };
    }
    let mut not_executable = None;
    for directory in std::env::split_paths(path) {
        let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        let file = placed(&directory.join(name));
        if file.is_file() {
            if is_executable(&file) {
                return Ok(file);
            }
            not_executable.get_or_insert(file);
        }
    }
    Err(not_executable.map_or_else(
        || format!("the program {name:?} was not found in PATH ({})", path.display()),
        |file| format!("{file:?} can't be executed: permission denied (is it marked executable?)"),
    ))
}

fn is_executable(file: &Path) -> bool {
    rustix::fs::access(file, Access::EXEC_OK).is_ok()
}

/// How far the start of a command came.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Fork,
    Setup,
    Directory,
    Last,
    Exec,
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    stage: Stage,
    errno: i32,
}

/// Why there is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// A sentence for a person.
    pub(super) reason: String,
    /// The machine had no process, memory or descriptor to give: no fault of the command's, which may start later.
    pub(super) shortage: bool,
}

impl Refusal {
    pub(super) fn new(reason: String, error: &io::Error) -> Self {
        Self { reason, shortage: is_shortage(error) }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self { reason, shortage: false }
    }
}

/// Whether this says that the machine, or this user's share of it, is used up: fork(2), open(2).
pub(super) fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE))
}

/// What the command's process gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlets<'a> {
    pub(super) stdout: BorrowedFd<'a>,
    pub(super) stderr: BorrowedFd<'a>,
    /// `cgroup.procs` of the group that it joins.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
    /// Whether it may run outside that group: without it the tree is followed by parenthood, but nothing limits it.
    pub(super) may_run_outside: bool,
}

/// What the new process does when everything but its exec is done, in the memory of the one that starts it: so it must not
/// allocate. Where it says false there is no exec.
pub(super) type Last<'a> = &'a mut dyn FnMut() -> bool;

/// Why a process has not become a command.
#[derive(Debug)]
pub(super) enum Unstarted {
    Refused(Refusal),
    /// By [`Last`], which knows why.
    Kept,
    /// It was killed before.
    Killed,
}

impl From<Refusal> for Unstarted {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Starts the command as the leader of its own session, and waits until the exec has succeeded or failed.
///
/// `execve` itself rather than `std::process::Command`, because that ends in `execvp`, which hands a file that
/// is no program to `/bin/sh`: its exit code would pass for the command's.
///
/// # Errors
/// Why it was not.
pub(super) fn start(prepared: &Prepared, outlets: Outlets<'_>, last: Last<'_>) -> Result<Pid, Unstarted> {
    let arguments = pointers(prepared.arguments.iter().map(CString::as_c_str));
    let environment = pointers(prepared.environment.entries());
    let (answer, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| prepared.refusal(Failure { stage: Stage::Setup, errno: error.raw_os_error() }))?;
    let came_to_exec = AtomicBool::new(false);
    let mut start = Start {
        prepared,
        outlets,
        shim: rustix::process::getpid(),
        mark: prepared.mark,
        arguments: &arguments,
        environment: &environment,
        tell: tell.as_fd(),
        last,
        came_to_exec: &came_to_exec,
    };
    let child = clone_into(&mut start).map_err(|error| {
        prepared.refusal(Failure { stage: Stage::Fork, errno: error.raw_os_error().unwrap_or_default() })
    })?;
    drop(tell);
    let unstarted = match read_failure(&answer) {
        None if came_to_exec.load(Ordering::Acquire) => return Ok(child),
        None => Unstarted::Killed,
        Some(Failure { stage: Stage::Last, .. }) => Unstarted::Kept,
        Some(failure) => prepared.refusal(failure).into(),
    };
    // It is exiting; reaped here so that it is not taken for the command's end.
    while rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())
        .is_err_and(|error| error == Errno::INTR)
    {}
    Err(unstarted)
}

fn read_failure(answer: &OwnedFd) -> Option<Failure> {
    let mut told = [0_u8; 5];
    let length = loop {
        match rustix::io::read(answer, &mut told) {
            Err(Errno::INTR) => {}
            outcome => break outcome.unwrap_or(0),
        }
    };
    let [stage, errno @ ..] = told;
    let stage = match stage {
        0 => Stage::Fork,
        1 => Stage::Setup,
        2 => Stage::Directory,
        3 => Stage::Last,
        _ => Stage::Exec,
    };
    (length == told.len()).then(|| Failure { stage, errno: i32::from_ne_bytes(errno) })
}

/// `strings` as execve(2) wants them, with a null pointer at the end.
fn pointers<'a>(strings: impl Iterator<Item = &'a CStr>) -> Vec<*const libc::c_char> {
    strings.map(CStr::as_ptr).chain([std::ptr::null()]).collect()
}

/// Forks; `None` in the child. To be called by single-threaded processes only.
#[expect(unsafe_code, reason = "no safe wrapper for fork exists")]
pub(super) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: zygote and shim have one thread, so the child finds every lock free and every value whole, and
    // may go on as any program may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Ends this process without running anything that was meant for the end of the process it was forked from.
#[expect(unsafe_code, reason = "std::process::exit runs exit handlers")]
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(code) }
}

/// What the zygote ignores and a shim does, too, but for the last: signals that end a process by default and that they must outlive
/// (a log that is larger than a limit allows is an error of its write), and the end of a child, so that the kernel reaps the shims.
const IGNORED: [libc::c_int; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE, libc::SIGXFSZ, libc::SIGCHLD];

/// For the zygote: from here on [`IGNORED`] is what is ignored, and all that a command has to have set back, whatever the service was
/// started with.
pub(super) fn outlive_signals() {
    for signal in 1..=31 {
        ignore(signal, IGNORED.contains(&signal));
    }
}

/// Sets a signal to be ignored, or back to its default.
#[expect(unsafe_code, reason = "rustix has no safe way to set signal dispositions")]
pub(super) fn ignore(signal: libc::c_int, ignored: bool) {
    // SAFETY: neither disposition runs code of ours in a signal handler.
    unsafe {
        libc::signal(signal, if ignored { libc::SIG_IGN } else { libc::SIG_DFL });
    }
}

/// What the new process needs until its exec.
struct Start<'a> {
    prepared: &'a Prepared,
    outlets: Outlets<'a>,
    shim: Pid,
    mark: u64,
    arguments: &'a [*const libc::c_char],
    environment: &'a [*const libc::c_char],
    tell: BorrowedFd<'a>,
    last: Last<'a>,
    /// Whether nothing was left to do but the exec; in the memory of the one that starts it.
    came_to_exec: &'a AtomicBool,
}

/// Bytes of stack for the new process until its exec: a few calls deep, and far more than they take. What is larger than 64 KiB
/// has glibc tidy up its heap when it is freed, which touches pages that nobody needs.
const START_STACK: usize = 32 * 1024;

/// Starts a process that becomes the command, as vfork(2) does: in this process' memory, which waits meanwhile.
///
/// A fork would copy the page tables, and then each page that either side touches, only for the exec to throw it away.
#[expect(unsafe_code, reason = "no safe wrapper for clone exists")]
fn clone_into(start: &mut Start<'_>) -> io::Result<Pid> {
    extern "C" fn enter(start: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `clone_into` passes a `Start` that outlives this process' use of its memory, and that nobody else uses meanwhile.
        let start = unsafe { &mut *start.cast::<Start<'_>>() };
        let failure = become_command(start);
        let stage = match failure.stage {
            Stage::Fork => 0_u8,
            Stage::Setup => 1,
            Stage::Directory => 2,
            Stage::Last => 3,
            Stage::Exec => 4,
        };
        let [a, b, c, d] = failure.errno.to_ne_bytes();
        let _ = rustix::io::write(start.tell, &[stage, a, b, c, d]);
        exit_now(127);
    }
    // Of 16-byte units, so that its end is aligned as the ABI wants a stack to be. Not zeroed: that would touch all of its pages,
    // of which a few are used, and each of them costs a fault and stays the shim's for as long as the command runs.
    let mut stack = Vec::<u128>::with_capacity(START_STACK / size_of::<u128>());
    let argument = std::ptr::from_mut(start).cast::<libc::c_void>();
    // SAFETY: the stack and the argument live until the call returns, which CLONE_VFORK delays until the child has left
    // this memory by its exec or its exit. The child allocates nothing, holds no lock, does not unwind and ends by _exit;
    // this thread waits, and the guard's, where there is one, has nothing to do with what the child reads. Descriptors, signal dispositions and the working directory are the child's own.
    let pid = unsafe {
        libc::clone(
            enter,
            stack.spare_capacity_mut().as_mut_ptr_range().end.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            argument,
        )
    };
    if pid == -1 { Err(io::Error::last_os_error()) } else { Pid::from_raw(pid).ok_or_else(io::Error::last_os_error) }
}

/// In the new process: everything up to the exec; returns only where something failed. Allocates nothing.
#[expect(unsafe_code, reason = "execve, dup2 onto the standard streams, and the signal mask")]
fn become_command(start: &mut Start<'_>) -> Failure {
    let Start { prepared, outlets, shim, mark, arguments, environment, last, came_to_exec, .. } = start;
    let at = |stage| move |error: Errno| Failure { stage, errno: error.raw_os_error() };
    let set_up = || {
        rustix::process::setsid()?;
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        if rustix::process::getppid() != Some(*shim) {
            // The shim died before the death signal was set: nobody watches, so nothing may start.
            exit_now(127);
        }
        if let Some(group) = outlets.cgroup {
            let joined = rustix::io::write(group, b"0");
            if !outlets.may_run_outside {
                joined?;
            }
        }
        rustix::stdio::dup2_stdout(outlets.stdout)?;
        rustix::stdio::dup2_stderr(outlets.stderr)?;
        Ok(())
    };
    if let Err(failure) = set_up().map_err(at(Stage::Setup)) {
        return failure;
    }
    if let Some(directory) = &prepared.working_dir
        && let Err(failure) = rustix::process::chdir(directory.as_c_str()).map_err(at(Stage::Directory))
    {
        return failure;
    }
    // Before the signals are as the command wants them: it may have to wait for a moment.
    if !last() {
        return Failure { stage: Stage::Last, errno: 0 };
    }
    // Not before, so that nobody takes it for something that a run has left. Where it is refused (a limit that is lower already), the
    // run's token in the environment is all that marks it.
    let _ = setrlimit(Resource::Locks, Rlimit { current: Some(*mark), maximum: Some(*mark) });
    came_to_exec.store(true, Ordering::Release);
    for signal in IGNORED {
        ignore(signal, false);
    }
    // SAFETY: the set is initialised by sigemptyset before it is read; the pointers given to execve end with a
    // null pointer and point into strings that `prepared` owns.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execve(prepared.program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
    }
    Failure { stage: Stage::Exec, errno: io::Error::last_os_error().raw_os_error().unwrap_or_default() }
}

/// A descriptor that becomes readable when a child of this process has changed its state.
#[expect(unsafe_code, reason = "rustix has no signalfd")]
pub(super) fn child_signals() -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the set is initialised before it is read, and the new descriptor is owned by nobody else.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

/// A child of this process that has ended, with what it and everybody that it had waited for has used (wait4(2)); `None` where
/// there are children, and all of them live.
///
/// # Errors
/// Where there are no children, or the call was interrupted.
#[expect(unsafe_code, reason = "rustix has no wait4")]
pub(super) fn reaped() -> rustix::io::Result<Option<(Pid, CommandEnd, Usage)>> {
    let time = |time: libc::timeval| {
        let (seconds, micros) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_usec).unwrap_or(0));
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage, and the call writes no more than one, and one status.
    let (pid, usage) = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        (libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage), usage)
    };
    if pid < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::CHILD));
    }
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    let usage = Usage {
        user_cpu: time(usage.ru_utime),
        system_cpu: time(usage.ru_stime),
        // Linux counts in KiB.
        max_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1024),
        // In blocks of 512 bytes, whatever the file system's are.
        io_read_bytes: u64::try_from(usage.ru_inblock).ok().map(|blocks| blocks.saturating_mul(512)),
        output_bytes: 0,
        io_write_bytes: u64::try_from(usage.ru_oublock).ok().map(|blocks| blocks.saturating_mul(512)),
    };
    // Only ends are waited for, and one that is no exit is a signal's.
    let end = if libc::WIFEXITED(status) {
        CommandEnd::Exited(libc::WEXITSTATUS(status))
    } else {
        CommandEnd::Signaled(libc::WTERMSIG(status))
    };
    Ok(Some((pid, end, usage)))
}

/// Has all threads of a shim allocate from one place: for its guard alone glibc would map another one (mallopt(3)). And has
/// it keep no lists of small freed pieces: to clear them up, it would touch each page that one is in.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no safe wrapper for mallopt exists")]
pub(super) fn allocate_in_one_place() {
    // SAFETY: it sets limits, and there is one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MXFAST, 0);
    }
}

/// Other allocators have their own ways.
#[cfg(not(target_env = "gnu"))]
pub(super) fn allocate_in_one_place() {}

/// Has the threads of a service allocate from two places: glibc would give each one of its own, up to eight for each core
/// (mallopt(3)), and what was freed stays with each.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no safe wrapper for mallopt exists")]
pub(super) fn allocate_in_two_places() {
    // SAFETY: it sets a limit for the places that are yet to come.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Other allocators have their own ways.
#[cfg(not(target_env = "gnu"))]
pub(super) const fn allocate_in_two_places() {}

/// Closes every descriptor from `first` on: what a careless parent of the service left open to us.
#[expect(unsafe_code, reason = "rustix has no close_range")]
pub(super) fn close_from(first: RawFd) {
    // SAFETY: called at the very start of the zygote, before it owns any descriptor but the standard ones.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0);
    }
}

/// The path by which this process reaches an open file or directory, whatever becomes of its name and however long that
/// is (proc(5)); sockets can be bound below it and connected to.
pub(super) fn path_of(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn refusal(argv: &[&str], working_dir: Option<&Path>, path: &str) -> String {
        let order = Order {
            start_by_ms: u64::MAX,
            lease: None,
            token: String::new(),
            run_dir: OsString::new(),
            argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
            cancel: None,
            working_dir: working_dir.map(|directory| directory.as_os_str().to_owned()),
            env: Vec::new(),
            time_limit_ms: 0,
            schedule_to_close: false,
            watchdog_ms: None,
            silence_timeout_ms: None,
            kill_grace_ms: 0,
            output_limit: 0,
            memory_limit: None,
            cpu_millis: None,
            pids_limit: None,
            boot_id: String::new(),
            in_memory: None,
            held: false,
        };
        Prepared::new(&order, &Environment::inherited([("PATH".into(), path.into())])).unwrap_err()
    }

    #[test]
    fn what_cannot_be_found_is_told_in_a_sentence() {
        let scratch = tempfile::tempdir().unwrap();
        let here = scratch.path();
        std::fs::write(here.join("plain"), "text").unwrap();
        std::fs::create_dir(here.join("directory")).unwrap();
        let path = here.to_str().unwrap();
        assert_eq!(
            refusal(&["nothere"], None, "/bin:/nowhere"),
            r#"the program "nothere" was not found in PATH (/bin:/nowhere)"#
        );
        assert!(refusal(&["plain"], None, path).contains("permission denied"));
        assert!(refusal(&["./plain"], Some(here), "").contains("permission denied"));
        assert!(refusal(&["./nothere"], Some(here), "").contains(&format!("\"{path}/./nothere\" does not exist")));
        assert!(refusal(&["./directory"], Some(here), "").contains("is a directory"));
        assert!(refusal(&["true"], Some(&here.join("missing")), "/bin").contains("does not exist"));
        assert!(refusal(&["true"], Some(&here.join("plain")), "/bin").contains("is not a directory"));
        assert_eq!(refusal(&[], None, "/bin"), "the command is empty");
        assert!(refusal(&["/bin/echo", "a\0b"], None, "").contains("zero byte"));
    }
}
