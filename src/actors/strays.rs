//! Strays: commands that the last service has left running and that the database takes for ended, or knows nothing of.
//!
//! Somebody may have changed or removed a row while no service was there to fence its run, or have brought an old copy of the
//! database back. So at its start a service looks which shims live, and no flow of theirs claims anything until the database
//! has said what they are. A run that is its job's is recovery's. One that is over is killed, like any run whose token is no
//! longer current, and its flow waits for its end. One that the database has never heard of is not, since it may be the
//! wrong database that was asked: it counts as a run of its flow for as long as it is alive; and where a job of its number
//! waits, which may well be its own, the flow waits, too. A run that starts later is this service's own, and has an actor
//! that watches its row.
//!
//! The database is asked again while such a command lives: the right copy of it may be brought back, and then the run is
//! recovery's after all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::root::{self, RootMessage};
use super::status::ErrorChain;
use super::{AbortOnDrop, Shared};
use crate::domain::{FlowType, RunToken};
use crate::process::{Evidence, LivingRun, RunReport};
use crate::store::{Standing, Waiting};

/// How many runs the database is asked about at a time.
const TOGETHER: usize = 500;
/// How long to wait before a stray is looked at again, or the database is asked again; twice as long each time, at most
/// [`LONGEST_WAIT`].
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// When the database is asked again about a run that it did not know: somebody may have brought the right copy of it back, or
/// seen to the job that waits.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long a shim that has said its last word has to be gone.
const SOON: Duration = Duration::from_millis(20);
/// What holds a flow up for longer than this is told to people.
const LATE: Duration = Duration::from_secs(10);
/// So many are named to people.
pub(super) const NAMED: usize = 5;

/// The runs that were found alive and that nobody is known to look after; clones are the same.
#[derive(Clone, Default)]
pub struct Strays(Arc<Mutex<ByFlow>>);

type ByFlow = BTreeMap<FlowType, BTreeMap<RunToken, Stray>>;

struct Stray {
    run: LivingRun,
    /// `None` until the database has been asked.
    standing: Option<Standing>,
    since: Instant,
}

impl Strays {
    /// Every run that was alive before this service started its first.
    #[must_use]
    pub fn new(living: Vec<LivingRun>) -> Self {
        let (strays, since) = (Self::default(), Instant::now());
        for run in living {
            let stray = Stray { run: run.clone(), standing: None, since };
            strays.runs().entry(run.flow).or_default().insert(run.token, stray);
        }
        strays
    }

    /// How many of a flow's runs the database does not know of; [`u32::MAX`] while the flow has to wait.
    #[must_use]
    pub fn of(&self, flow: &FlowType) -> u32 {
        let runs = self.runs();
        let Some(strays) = runs.get(flow) else { return 0 };
        let counts = |stray: &Stray| stray.standing == Some(Standing::Unknown { waits: false });
        if strays.values().all(counts) { u32::try_from(strays.len()).unwrap_or(u32::MAX) } else { u32::MAX }
    }

    /// What people should know of, a sentence each.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let runs = self.runs();
        let complaint = |stray: &Stray| {
            let LivingRun { flow, job, attempt, pid, .. } = &stray.run;
            let pid = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
            let which = format!("a command of flow {flow} runs, attempt {attempt} at what was job {job}{pid}");
            match stray.standing {
                Some(Standing::Unknown { .. }) => Some(format!("{which}, and the database knows nothing of it")),
                _ if stray.since.elapsed() < LATE => None,
                Some(Standing::Over) => Some(format!("{which}, whose run is over; it was killed and is not gone yet")),
                Some(Standing::Open) | None => Some(format!("{which}, and the database does not say whether it may")),
            }
        };
        let mut complaints: Vec<String> = runs.values().flat_map(BTreeMap::values).filter_map(complaint).collect();
        if complaints.len() > NAMED {
            let more = complaints.split_off(NAMED).len();
            complaints.push(format!("{more} more commands run of which the database does not know as it should"));
        }
        complaints
    }

    fn all(&self) -> Vec<LivingRun> {
        self.runs().values().flat_map(BTreeMap::values).map(|stray| stray.run.clone()).collect()
    }

    fn change(&self, run: &LivingRun, change: impl FnOnce(&mut Stray)) {
        if let Some(stray) = self.runs().get_mut(&run.flow).and_then(|strays| strays.get_mut(&run.token)) {
            change(stray);
        }
    }

    fn remove(&self, run: &LivingRun) {
        let mut runs = self.runs();
        if let Some(strays) = runs.get_mut(&run.flow) {
            strays.remove(&run.token);
        }
        runs.retain(|_, strays| !strays.is_empty());
    }

    fn runs(&self) -> MutexGuard<'_, ByFlow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds out about each stray, and sees to those that are some; the root is told where there may be room for more runs, and of
/// flows that have a run that turns out to be a job's.
pub fn watch(shared: &Arc<Shared>, tell: impl Fn(RootMessage) + Send + Sync + 'static) -> AbortOnDrop {
    let (shared, tell) = (Arc::clone(shared), Arc::new(tell));
    // At the start recovery finds by itself what is a job's.
    let is_start = Arc::new(AtomicBool::new(true));
    root::keep_running("looking after strays", move || {
        let (shared, tell) = (Arc::clone(&shared), Arc::clone(&tell));
        let is_start = is_start.swap(false, Ordering::Relaxed);
        async move {
            let (mut looked_after, mut asked) = (JoinSet::new(), Vec::new());
            for runs in shared.strays.all().chunks(TOGETHER) {
                let Said { standings, at_once } = standings(&shared, runs, Waiting::OpenToo).await;
                let mut found = BTreeSet::new();
                for run in runs {
                    match standings.get(&run.token).copied() {
                        Some(Standing::Open) => {
                            shared.strays.remove(run);
                            found.insert(run.flow.clone());
                        }
                        Some(standing) => {
                            let (say, said) = watch::channel(standing);
                            asked.push((run.clone(), say));
                            let (shared, tell, run) = (Arc::clone(&shared), Arc::clone(&tell), run.clone());
                            looked_after.spawn(async move {
                                let is_a_jobs = look_after(&shared, &run, said, &|| tell(RootMessage::Wake)).await;
                                // Its row counts, or nothing does.
                                shared.strays.remove(&run);
                                tell(if is_a_jobs { RootMessage::Found(run.flow) } else { RootMessage::Wake });
                            });
                        }
                        None => {}
                    }
                }
                if !(is_start && at_once) {
                    found.into_iter().for_each(|flow| tell(RootMessage::Found(flow)));
                }
                tell(RootMessage::Wake);
            }
            let all_gone = async {
                while let Some(gone) = looked_after.join_next().await {
                    if let Err(failure) = gone {
                        tracing::error!(%failure, "the strays that are left are looked at once more");
                        return;
                    }
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = all_gone => {}
                () = ask_again(&shared, asked) => {}
            }
        }
    })
}

/// Says of each of these runs what the database does, over and over, for as long as somebody wants to hear it.
async fn ask_again(shared: &Shared, mut asked: Vec<(LivingRun, watch::Sender<Standing>)>) {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        asked.retain(|(_, say)| !say.is_closed());
        for some in asked.chunks(TOGETHER) {
            let runs: Vec<_> = some.iter().map(|(run, _)| run.clone()).collect();
            let Said { standings, .. } = standings(shared, &runs, Waiting::PendingOnly).await;
            for (run, say) in some {
                if let Some(standing) = standings.get(&run.token) {
                    // One that is over stays so: it is being killed.
                    say.send_if_modified(|said| {
                        *said != Standing::Over && std::mem::replace(said, *standing) != *standing
                    });
                }
            }
        }
    }
}

struct Said {
    standings: BTreeMap<RunToken, Standing>,
    /// Whether it said so when it was first asked.
    at_once: bool,
}

async fn standings(shared: &Shared, runs: &[LivingRun], waiting: Waiting) -> Said {
    let runs: Vec<_> = runs.iter().map(|run| (run.job, run.token.clone())).collect();
    let (mut wait, mut at_once) = (LOOK_AGAIN, true);
    loop {
        match shared.store.standings(&runs, waiting).await {
            Ok(standings) => return Said { standings, at_once },
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "can't ask the database about the runs that are alive");
                at_once = false;
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

/// Waits until nothing of the run is alive, as far as one may look: what the database does not know is neither killed nor swept. Or
/// until it is its job's again, which is the answer.
async fn look_after(
    shared: &Shared,
    run: &LivingRun,
    mut said: watch::Receiver<Standing>,
    wake: &(impl Fn() + Sync),
) -> bool {
    let LivingRun { job, attempt, token, flow, .. } = run;
    let (id, attempts, run_token) = (job.0, attempt.0, token.as_str());
    let mut standing = *said.borrow();
    if standing != Standing::Over {
        // One that was only got ready by the last service is gone in a moment.
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let mut told = None;
    let mut wait = LOOK_AGAIN;
    loop {
        standing = *said.borrow_and_update();
        if standing == Standing::Open {
            break;
        }
        if standing == Standing::Over && told != Some(standing) {
            told = Some(standing);
            shared.strays.change(run, |stray| stray.standing = Some(standing));
            tracing::warn!(job = id, r#type = %flow, attempt = attempts, run_token, "the database says that this run is over; its command is killed and nothing is written about it");
        }
        match shared.launcher.inspect(*job, *attempt, token.clone()).await {
            Ok(Evidence::Alive(mut link)) => {
                if told != Some(standing) {
                    shared.strays.change(run, |stray| stray.standing = Some(standing));
                    if told.replace(standing).is_none() {
                        tracing::error!(job = id, r#type = %flow, attempt = attempts, run_token, pid = run.pid, "a command runs that the database knows nothing of; it counts as a run of its flow until it ends, or somebody ends it");
                    }
                    wake();
                }
                if standing == Standing::Over {
                    link.control.stop_now();
                }
                loop {
                    let report = tokio::select! {
                        report = link.reports.recv() => report,
                        Ok(()) = said.changed() => break,
                    };
                    match report {
                        Some(RunReport::Started { pid, .. }) => {
                            shared.strays.change(run, |stray| stray.run.pid = Some(pid));
                        }
                        Some(RunReport::NotDying { reason }) => {
                            tracing::error!(
                                job = id,
                                run_token,
                                reason,
                                "processes of a run outlive SIGKILL; the run has not ended"
                            );
                        }
                        Some(RunReport::OutOfReach { reason }) => {
                            tracing::warn!(
                                job = id,
                                run_token,
                                reason,
                                "a run does not answer, or not do what it is asked; it is tried further"
                            );
                        }
                        Some(_) => {}
                        None => break,
                    }
                }
                // Its shim has said its last word, or is gone: that is for the next look to tell.
                tokio::time::sleep(SOON).await;
                continue;
            }
            Ok(_) if standing != Standing::Over => {
                // Its row may have been brought back since.
                let last = standings(shared, std::slice::from_ref(run), Waiting::PendingOnly).await.standings;
                standing = last.get(token).copied().unwrap_or(standing);
                break;
            }
            Ok(_) => match shared.launcher.is_over(*job, *attempt, token.clone()).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(job = id, run_token, error = %ErrorChain(&error), "can't tell whether a run is alive");
                }
            },
            Err(error) => tracing::warn!(job = id, run_token, error = %ErrorChain(&error), "can't look into a run"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    if standing == Standing::Open {
        tracing::info!(job = id, r#type = %flow, attempt = attempts, run_token, "the database knows this run again");
    } else if told.is_some() {
        tracing::info!(job = id, r#type = %flow, attempt = attempts, run_token, "nothing is alive any more of a run that was not one to the database");
    }
    standing == Standing::Open
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Attempt, JobId};

    fn run(byte: u8, flow: &str) -> LivingRun {
        let (job, pid) = (JobId(i64::from(byte)), Some(i32::from(byte)));
        LivingRun {
            job,
            attempt: Attempt(1),
            token: RunToken::from_bytes([byte; 16]),
            flow: flow.parse().unwrap(),
            pid,
        }
    }

    #[test]
    fn a_flow_waits_for_what_may_be_its_own_and_leaves_room_for_what_is_not() {
        let strays = Strays::new(vec![run(1, "A"), run(2, "A"), run(3, "B")]);
        let flow = |name: &str| name.parse::<FlowType>().unwrap();
        let set = |byte: u8, standing| strays.change(&run(byte, "A"), |stray| stray.standing = Some(standing));
        assert_eq!((strays.of(&flow("A")), strays.of(&flow("C"))), (u32::MAX, 0));
        set(1, Standing::Unknown { waits: false });
        assert_eq!(strays.of(&flow("A")), u32::MAX, "nobody knows of the other one");
        set(2, Standing::Unknown { waits: true });
        assert_eq!(strays.of(&flow("A")), u32::MAX, "its job waits");
        set(2, Standing::Over);
        assert_eq!(strays.of(&flow("A")), u32::MAX, "it is to be killed");
        set(2, Standing::Unknown { waits: false });
        assert_eq!(strays.of(&flow("A")), 2);
        strays.remove(&run(2, "A"));
        assert_eq!(strays.of(&flow("A")), 1);
        strays.remove(&run(1, "A"));
        assert_eq!((strays.of(&flow("A")), strays.all()), (0, vec![run(3, "B")]));
    }

    #[tokio::test(start_paused = true)]
    async fn people_hear_of_what_is_unknown_and_of_what_takes_long() {
        let strays = Strays::new((1..=9).map(|byte| run(byte, "A")).collect());
        let set = |byte: u8, standing| strays.change(&run(byte, "A"), |stray| stray.standing = Some(standing));
        assert_eq!(strays.complaints(), Vec::<String>::new());
        set(1, Standing::Unknown { waits: false });
        set(2, Standing::Over);
        let unknown =
            "a command of flow A runs, attempt 1 at what was job 1, pid 1, and the database knows nothing of it";
        assert_eq!(strays.complaints(), [unknown]);
        tokio::time::advance(LATE).await;
        let complaints = strays.complaints();
        assert_eq!(complaints.len(), NAMED + 1, "{complaints:?}");
        assert!(complaints[1].contains("job 2, pid 2, whose run is over") && complaints[NAMED].starts_with("4 more"));
        strays.remove(&run(1, "A"));
        assert!(!strays.complaints().concat().contains("knows nothing"));
    }
}
