//! A command's start: all that it needs, the group, the outlets and the process that becomes it at the service's word.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::service::is_broken;
use super::{MemoryWatch, Phase, Shim, Surroundings, Watch, awake_time};
use crate::clock::boottime;
use crate::crash::{self, Step};
use crate::domain::limits::Limits;
use crate::domain::run::{Said, TimedOut, Timeout, Usage};
use crate::process::arrival::Arrival;
use crate::process::canceller::Canceller;
use crate::process::cgroup::{RunGroup, Site};
use crate::process::guard::Guarded;
use crate::process::link::{Order, ToShim};
use crate::process::logs::Stream;
use crate::process::notify::Inbox;
use crate::process::output::Log;
use crate::process::run_dir::{Journal, Record, StartedRecord, StartingRecord, encoded};
use crate::process::spawn::{self, Outlets, Prepared, Refusal, Unstarted};
use crate::process::tree;

impl Shim {
    pub(super) fn start(
        order: Order,
        journal: &mut Journal,
        link: OwnedFd,
        surroundings: &Surroundings,
    ) -> Result<Self, (OwnedFd, Refusal)> {
        match Self::try_start(order, journal, &link, surroundings) {
            Ok(mut shim) => {
                shim.link = Some(link);
                Ok(shim)
            }
            Err(refusal) => Err((link, refusal)),
        }
    }

    fn try_start(
        mut order: Order,
        journal: &mut Journal,
        link: &OwnedFd,
        surroundings: &Surroundings,
    ) -> Result<Self, Refusal> {
        let not_set_up = |error: std::io::Error| Refusal::new(format!("its shim can't be set up: {error}"), &error);
        if order.held && is_broken(link) {
            // Before it touches anything of a run of the same token that may have come after.
            return Err(taken_back());
        }
        // The zygote has its shims reaped by the kernel; a shim has to wait for its command itself.
        spawn::ignore(libc::SIGCHLD, false);
        let children = spawn::child_signals().map_err(not_set_up)?;
        crash::before(Step::ShimSession);
        let own = rustix::process::getpid();
        // One that has had a run before leads its session already.
        if rustix::process::getsid(None) != Ok(own) {
            rustix::process::setsid().map_err(|error| not_set_up(error.into()))?;
        }
        crash::after(Step::ShimSession);
        rustix::process::set_child_subreaper(Some(own)).map_err(|error| not_set_up(error.into()))?;
        let own_pid = own.as_raw_nonzero().get();

        let named = PathBuf::from(std::mem::take(&mut order.run_dir));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&named, flags, Mode::empty()).map_err(|error| {
            Refusal::new(format!("its run directory {} can't be used: {error}", named.display()), &error.into())
        })?;
        let run_dir = PathBuf::from(spawn::path_of(&directory));
        crash::before(Step::NotifyBind);
        let mut added = std::mem::take(&mut order.env);
        // What a watchdog depends on is not put where a logout may remove it.
        let in_memory = order.in_memory.as_ref().filter(|_| order.watchdog_ms.is_none()).map(Path::new);
        let opened = Inbox::open(&named, &run_dir, in_memory, &order.token);
        crash::after(Step::NotifyBind);
        let inbox = match opened {
            Ok(inbox) => {
                added.push(("NOTIFY_SOCKET".to_owned(), inbox.address()));
                Some(inbox)
            }
            Err(error) if order.watchdog_ms.is_some() => {
                let reason = format!("the socket that `watchdog = true` needs can't be made: {error}");
                return Err(Refusal::new(reason, &error));
            }
            Err(_) => None,
        };
        if let Some(limit) = order.watchdog_ms {
            // Without WATCHDOG_PID (sd_watchdog_enabled(3)): whichever process of the run does the work may prove that it is
            // alive, and a launcher between it and us is no reason not to.
            added.push(("WATCHDOG_USEC".to_owned(), limit.saturating_mul(1000).to_string().into()));
        }
        let environment = surroundings.environment.with(added)?;
        let prepared = Prepared::new(&order, &environment)?;
        let canceller = Canceller::new(&order, &environment)?;
        let starting = StartingRecord {
            shim_pid: own_pid,
            shim_start_ticks: *surroundings
                .start_ticks
                .get_or_init(|| tree::Stat::of(own_pid).map_or(0, |stat| stat.start_ticks)),
            boot_id: order.boot_id.clone(),
        };
        let starting = encoded(&Record::Starting(starting)).map_err(not_set_up)?;
        let limits = Limits { memory: order.memory_limit, cpu_millis: order.cpu_millis, pids: order.pids_limit };
        // Where the run has a group it waits before that is made, which else could be left behind by a claim that never counted.
        let has_group = !limits.is_unlimited() || surroundings.groups.is_some();
        if order.held && has_group {
            wait_for_word(link, own)?;
        }
        let group = group_of(limits, &order.token, surroundings)?;
        let (stdout, stdout_end) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| not_set_up(error.into()))?;
        let (stderr, stderr_end) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| not_set_up(error.into()))?;
        let outlets = Outlets {
            stdout: stdout_end.as_fd(),
            stderr: stderr_end.as_fd(),
            cgroup: group.as_ref().map(RunGroup::procs),
            may_run_outside: limits.is_unlimited(),
        };
        let mut kept = None;
        let mut last = || {
            let waits = if order.held && !has_group { wait_for_word(link, own) } else { Ok(()) };
            let may_start = waits.and_then(|()| comes_to_start(&order, own, journal, &starting));
            // In this process' memory, see `spawn::Last`.
            kept = may_start.err();
            kept.is_none()
        };
        let command = match spawn::start(&prepared, outlets, &mut last) {
            Ok(command) => command,
            Err(unstarted) => {
                if let Some(group) = group {
                    group.remove();
                }
                let killed = || Refusal {
                    reason: "its process was killed before it became the command".to_owned(),
                    shortage: true,
                };
                return Err(match unstarted {
                    Unstarted::Refused(refusal) => refusal,
                    Unstarted::Kept => kept.take().map_or_else(killed, Refusal::from),
                    Unstarted::Killed => {
                        // What it was writing, it may have written a part of, also of `kept`.
                        std::mem::forget(kept.take());
                        journal.take_back_unfinished().map_err(not_set_up)?;
                        killed()
                    }
                });
            }
        };
        crash::after(Step::CommandSpawn);
        let (started, started_time) = (boottime(), crate::clock::now());
        drop((stdout_end, stderr_end));
        for pipe in [&stdout, &stderr] {
            // Only our ends: the command's are another open file description and stay as it expects them.
            let _ = rustix::io::ioctl_fionbio(pipe, true);
        }
        let pid = command.as_raw_nonzero().get();
        let record = StartedRecord {
            pid,
            // Looked up when this is recorded: most short runs never do.
            start_ticks: 0,
            boot_id: order.boot_id,
            time_ms: started_time.unix_millis(),
        };
        let guarded = Guarded {
            root: own_pid,
            command,
            limit_at: started + Duration::from_millis(order.time_limit_ms),
            kill_grace: Duration::from_millis(order.kill_grace_ms),
        };
        let limit = order.output_limit;
        let mut shim = Self {
            own_pid,
            command,
            started_time,
            started,
            started_awake: awake_time(),
            kill_grace: Duration::from_millis(order.kill_grace_ms),
            phase: Phase::Running,
            cause: None,
            ended: None,
            link: None,
            control: None,
            deaf_until: None,
            children,
            alarm_at: None,
            alarm: None,
            lease: order.lease,
            guarded,
            guard: None,
            canceller,
            start: Some(record),
            time_is_up: TimedOut {
                timeout: if order.schedule_to_close { Timeout::ScheduleToClose } else { Timeout::StartToClose },
                limit: Duration::from_millis(order.time_limit_ms),
            },
            watchdog: Watch::new(Timeout::Watchdog, order.watchdog_ms),
            silence: Watch::new(Timeout::Silence, order.silence_timeout_ms),
            stdout: Some(stdout),
            stderr: Some(stderr),
            stdout_log: Log::new(run_dir.clone(), Stream::Stdout, limit),
            stderr_log: Log::new(run_dir.clone(), Stream::Stderr, limit),
            arrival: Arrival::new(run_dir.clone(), limit),
            run_dir,
            _directory: directory,
            inbox,
            said: Said::default(),
            start_untold: true,
            progress_told: Duration::ZERO,
            progress_untold: false,
            not_dying: None,
            memory: (!group.as_ref().is_some_and(RunGroup::counts_memory)).then(|| MemoryWatch::from(boottime())),
            group,
            used: Usage::default(),
            buffer: Vec::new(),
        };
        shim.set_alarm();
        Ok(shim)
    }
}

/// Why a command is not started after all.
enum Kept {
    TakenBack,
    TooLate,
    /// Nobody could tell later that it was started.
    Unrecorded(std::io::Error),
}

impl From<Kept> for Refusal {
    fn from(kept: Kept) -> Self {
        let for_now = |reason: &str| Self { reason: reason.to_owned(), shortage: true };
        match kept {
            Kept::TakenBack => taken_back(),
            Kept::TooLate => for_now("it came to be started too long after its claim"),
            Kept::Unrecorded(error) => {
                format!("its journal can't be written, so nobody could tell later that it was started: {error}").into()
            }
        }
    }
}

fn taken_back() -> Refusal {
    let reason = "its service was gone, or took it back, before its claim was committed".to_owned();
    Refusal { reason, shortage: true }
}

/// What comes before the exec, in the process that is about to become the command (see [`spawn::Last`]) for the shim, whose pid is
/// `shim`.
fn comes_to_start(order: &Order, shim: Pid, journal: &mut Journal, starting: &[u8]) -> Result<(), Kept> {
    if boottime() >= Duration::from_millis(order.start_by_ms) {
        // Its lease may be over, and its job another worker's.
        return Err(Kept::TooLate);
    }
    crash::before_for(shim, Step::StartingRecord);
    journal.append_line(starting).map_err(Kept::Unrecorded)?;
    crash::after_for(shim, Step::StartingRecord);
    crash::before_for(shim, Step::CommandSpawn);
    Ok(())
}

/// Waits for the claim to count. In the process that is about to become the command, so that while it is being committed all that a
/// start costs but the exec is done.
fn wait_for_word(link: &OwnedFd, shim: Pid) -> Result<(), Kept> {
    crash::before_for(shim, Step::StartReceive);
    if !is_given_word(link) {
        return Err(Kept::TakenBack);
    }
    crash::after_for(shim, Step::StartReceive);
    Ok(())
}

/// Waits until the service says that the run's claim is committed. A service that is gone, or has let go of the link, never will.
fn is_given_word(link: &OwnedFd) -> bool {
    let mut packet = [0_u8; 256];
    loop {
        // Where it could not wait it is as if nothing had come.
        let _ = poll(&mut [PollFd::new(link, PollFlags::IN)], None);
        match recv(link, &mut packet, RecvFlags::DONTWAIT) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok((length, _)) if length > 0 => {
                if let Some(starts) = packet.get(..length).and_then(ToShim::starts) {
                    return starts;
                }
            }
            Ok(_) | Err(_) => return false,
        }
    }
}

/// The group that the run gets: one that holds it to its limits, or where it has none, one if that is welcome.
fn group_of(limits: Limits, token: &str, surroundings: &Surroundings) -> Result<Option<RunGroup>, String> {
    if limits.is_unlimited() {
        let base = surroundings.groups.as_deref();
        return Ok(base.and_then(|base| RunGroup::create(base, token, limits).ok()));
    }
    // Asked now, since the service may have moved since the zygote was started.
    let site =
        Site::of_this_process().ok_or("its limits need a control group, and there is no version 2 tree of them")?;
    RunGroup::create(site.base(), token, limits)
        .map(Some)
        .map_err(|reason| format!("its limits can't be set: {reason}"))
}
