//! Where claims on PostgreSQL begin to look, while what earlier ones have left behind cannot be removed.
//!
//! What a row was before a change stays in the indexes until no snapshot can see it any more, and whoever reads an index comes
//! by it. All claims of a flow read the same three from their starts: the first waiting row, the open runs, the row that has
//! waited longest. While some session holds an old snapshot (a report, a backup, a transaction that was forgotten), each would
//! come by the rows of all claims since.
//!
//! So a claim that was slow has the next one count the pages that it reads, and after one that has read many, the following
//! ones begin where it ended, for [`REST`] times as long as it took. The open runs lose nothing by that: they are those that
//! were open at the last look, found by their ids, and those that the events of claims since then name, which are later ones,
//! as the claims of a flow follow one another. A waiting row that has come to stand before the place where the last claim ended
//! (by a higher priority, by a retry at once, by somebody's SQL) is found by the next whole look, and a claim that begins later
//! always says when that is due. Nothing is remembered of a transaction that may not have been committed.
//!
//! Word of a change comes to all flows at once, and most have nothing to do with it. Those that nothing waits in and nothing runs
//! in are found by one statement ([`Store::idle_flows`]) and not locked: a lock is a write, and has the commit wait for the disk.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sea_orm::Value;
use serde_json::json;

use super::connection::{Connection, Transaction};
use super::leases::others_live;
use super::sql::{Dialect, Doing, OPEN, Row};
use super::{Claim, Claimed, ClaimedJob, Error, Store, Write};
use crate::clock::boottime;
use crate::domain::{FlowType, Timestamp};

const ACTION: &str = "claim jobs";

/// How much longer than a whole look the time until the next one is, so that whole looks take a twentieth of it.
const REST: u32 = 20;
/// A claim that takes no longer than this and [`SLOW_EACH`] for each of its rows is not looked into.
const SLOW: Duration = Duration::from_millis(2);
const SLOW_EACH: Duration = Duration::from_millis(1);
/// Pages that a claim reads of the table and its indexes where there is nothing in its way, with those that each open run
/// and each row that it takes add: far more than were ever counted.
const PAGES: i64 = 100;
const PAGES_OPEN: i64 = 4;
const PAGES_TAKEN: i64 = 60;
/// How long after a claim that has counted no more the next one may count.
const COUNT_AGAIN: Duration = Duration::from_secs(1);

/// Events since the last look that are looked through; each is a millionth of a second.
const EVENTS: i64 = 10_000;

/// What is known of the flows that are claimed from slowly.
#[derive(Debug, Default)]
pub(super) struct Looks {
    last: Mutex<HashMap<FlowType, Last>>,
    /// Until when idle flows are not asked for, since that was slow itself.
    idle_unasked: Mutex<Duration>,
}

#[derive(Debug)]
enum Last {
    /// The last claim was slow: the next one counts pages.
    Slow,
    /// It was not for pages: none are counted until then.
    Usual(Duration),
    Whole(Looked),
}

impl Looks {
    fn take(&self, flow: &FlowType) -> Option<Last> {
        self.last().remove(flow)
    }

    fn last(&self) -> MutexGuard<'_, HashMap<FlowType, Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle_unasked(&self) -> MutexGuard<'_, Duration> {
        self.idle_unasked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called when what the looks were a part of has been committed.
    pub(super) fn keep(&self, looks: Vec<Look>) {
        self.last().extend(looks.into_iter().filter_map(|look| Some((look.flow, look.next?))));
    }
}

/// What a look has found, from which later ones can go on.
#[derive(Clone, Debug)]
pub(super) struct Looked {
    /// When all is to be looked at again, by [`boottime`].
    until: Duration,
    /// The ids of all open runs of the flow, as JSON.
    open: String,
    /// The highest id of an event.
    event: i64,
    /// The earliest time that `schedule_to_close_timeout` counts from.
    oldest: i64,
    /// Behind which row to look for waiting ones; `None` where none was claimed.
    place: Option<Place>,
}

/// Where a row stands in the order of claims.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) priority: i64,
    pub(super) run_at: Timestamp,
    pub(super) id: i64,
}

impl Place {
    fn of(job: &ClaimedJob) -> Self {
        Self { priority: job.priority, run_at: job.run_at, id: job.id.0 }
    }
}

/// One claim's look.
#[derive(Debug)]
pub(super) struct Look {
    flow: FlowType,
    begun: Duration,
    /// Pages that had been read before it, where they are counted.
    pages: Option<i64>,
    /// Where it begins, and then what it has found; `None` for a whole look.
    from: Option<Looked>,
    /// What a whole look has found that counts pages.
    whole: Option<Looked>,
    /// Where the one before ended.
    before: Option<Place>,
    /// Where it ended; `None` where waiting rows were not looked for.
    place: Option<Place>,
    next: Option<Last>,
}

impl Look {
    /// One that begins at the start, and of which nothing is kept.
    pub(super) fn whole(flow: &FlowType) -> Self {
        let (flow, begun) = (flow.clone(), boottime());
        Self { flow, begun, pages: None, from: None, whole: None, before: None, place: None, next: None }
    }

    /// Behind which row waiting ones are to be looked for.
    pub(super) fn place(&self) -> Option<Place> {
        self.from.as_ref().and_then(|from| from.place)
    }

    /// What a claim has to know of the last look, by the names that the statement has for it; `None` for a whole look.
    pub(super) fn behind(&self) -> Option<[Value; 3]> {
        self.from.as_ref().map(|from| [from.open.as_str().into(), from.event.into(), from.oldest.into()])
    }

    /// Whether a claim is to tell what later ones have to know.
    pub(super) fn is_kept(&self) -> bool {
        self.from.is_some() || self.pages.is_some()
    }

    /// Takes what a claim has found of the open runs. `false` where too many events have come since the last look, or somebody
    /// has begun them anew, so that not all claims are among them: then it is a whole look from now on.
    pub(super) fn goes_on(&mut self, row: &Row<'_>) -> Result<bool, Error> {
        if !self.is_kept() {
            return Ok(true);
        }
        let (open, event, oldest) = (row.some_text("ids")?, row.maybe_int("event")?, row.maybe_int("oldest")?);
        match &mut self.from {
            Some(from) => {
                let later = event.filter(|event| (0..=EVENTS).contains(&event.saturating_sub(from.event)));
                let Some(event) = later else {
                    self.from = None;
                    return Ok(false);
                };
                (from.open, from.event, from.oldest) = (open, event, oldest.unwrap_or(from.oldest));
            }
            // Without an event there is nothing that later claims could go by.
            None => {
                let until = Duration::ZERO;
                let oldest = oldest.unwrap_or(i64::MIN);
                self.whole = event.map(|event| Looked { until, open, event, oldest, place: None });
            }
        }
        Ok(true)
    }

    /// These rows were found, or there are none.
    pub(super) fn found(&mut self, rows: &[ClaimedJob]) {
        self.place = rows.last().map(Place::of).or(self.before);
    }
}

impl Store {
    /// Of the flows that this batch claims from, those in which no row waits or is open, as they are now: there is nothing in them
    /// for a claim to take or to see to. Asked for where a batch is several claims and nothing else, on PostgreSQL.
    pub(super) async fn idle_flows(
        &self,
        transaction: &Transaction,
        writes: &[Write],
    ) -> Result<HashMap<FlowType, IdleFlow>, Error> {
        let claims =
            || writes.iter().filter_map(|write| if let Write::Claim(claim) = write { Some(claim) } else { None });
        let begun = boottime();
        let looks = &self.inner.looks;
        let several = self.dialect() == Dialect::Postgres && writes.len() > 1 && claims().count() == writes.len();
        if !several || begun < *looks.idle_unasked() {
            return Ok(HashMap::new());
        }
        // Not those whose indexes are known to be full of what earlier rows have left.
        let flows: Vec<&FlowType> = {
            let last = looks.last();
            let is_full = |flow: &FlowType| matches!(last.get(flow), Some(Last::Whole(_)));
            claims().map(|claim| &claim.flow).filter(|flow| !is_full(flow)).collect()
        };
        let Some(worker) = claims().map(|claim| claim.worker.as_str()).next().filter(|_| !flows.is_empty()) else {
            return Ok(HashMap::new());
        };
        let names = json!(flows.iter().map(|flow| flow.as_str()).collect::<Vec<_>>()).to_string();
        let select = self.statement(idle_flows_sql(self.dialect()), [names.into(), worker.into()]);
        let results = transaction.query_all(select).await.doing(ACTION)?;
        let took = boottime().saturating_sub(begun);
        if took > SLOW + SLOW_EACH * u32::try_from(flows.len()).unwrap_or(u32::MAX) {
            *looks.idle_unasked() = boottime() + took * REST;
        }
        let mut idle = HashMap::new();
        for result in &results {
            let row = Row { result, dialect: self.dialect() };
            let name = row.some_text("type")?;
            if let Some(flow) = flows.iter().find(|flow| flow.as_str() == name) {
                let (now, paused, shared) = (row.time("now")?, row.flag("paused")?, row.flag("shared")?);
                idle.insert((*flow).clone(), IdleFlow { now, paused, shared });
            }
        }
        Ok(idle)
    }

    pub(super) async fn begin_look(&self, transaction: &Transaction, claim: &Claim) -> Result<Look, Error> {
        let mut look = Look::whole(&claim.flow);
        let begun = look.begun;
        if self.dialect() == Dialect::Postgres {
            let last = self.inner.looks.take(&claim.flow);
            if let Some(Last::Whole(looked)) = &last {
                look.before = looked.place;
            }
            match last {
                Some(Last::Whole(looked)) if begun < looked.until => look.from = Some(looked),
                Some(Last::Usual(until)) if begun < until => look.next = Some(Last::Usual(until)),
                Some(_) => look.pages = Some(self.pages_read(transaction).await?),
                None => {}
            }
        }
        Ok(look)
    }

    /// Notes what the next claim should know.
    pub(super) async fn end_look(
        &self,
        transaction: &Transaction,
        look: &mut Look,
        claimed: &mut Claimed,
    ) -> Result<(), Error> {
        if self.dialect() != Dialect::Postgres {
            return Ok(());
        }
        let now = boottime();
        if let Some(looked) = look.from.take() {
            let whole = claimed.now.plus(looked.until.saturating_sub(now));
            claimed.next_due = Some(claimed.next_due.map_or(whole, |due| due.min(whole)));
            look.next = Some(Last::Whole(Looked { place: look.place.or(looked.place), ..looked }));
            return Ok(());
        }
        let took = now.saturating_sub(look.begun);
        let taken = u32::try_from(claimed.jobs.len()).unwrap_or(u32::MAX);
        if let Some(before) = look.pages {
            let usual = PAGES + PAGES_OPEN * i64::from(claimed.open) + PAGES_TAKEN * i64::from(taken);
            if self.pages_read(transaction).await? - before > usual {
                let (until, place) = (boottime() + took * REST, look.place);
                look.next = look.whole.take().map(|whole| Last::Whole(Looked { until, place, ..whole }));
            } else {
                look.next = Some(Last::Usual(now + COUNT_AGAIN));
            }
        } else if look.next.is_none() && took > SLOW + SLOW_EACH * taken {
            look.next = Some(Last::Slow);
        }
        Ok(())
    }

    /// How many pages of the table and its indexes this session has read since it last told the server's statistics, which it
    /// does between transactions only. The same where statistics are off.
    async fn pages_read(&self, transaction: &Transaction) -> Result<i64, Error> {
        let table = self.adopted().map_or_else(|| "jobs".to_owned(), super::adopted::name_of);
        let select = "SELECT CAST(COALESCE(sum(pg_stat_get_xact_blocks_fetched(relation)), 0) AS bigint) AS pages FROM \
            (SELECT CAST(CAST($1 AS text) AS regclass) AS relation UNION ALL \
            SELECT indexrelid FROM pg_index WHERE indrelid = CAST(CAST($1 AS text) AS regclass)) AS read";
        let result = transaction.query_one(self.statement(select, [table.into()])).await.doing(ACTION)?;
        result.map_or(Ok(0), |result| Row { result: &result, dialect: self.dialect() }.int("pages"))
    }
}

/// A flow in which no row waits or is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleFlow {
    /// The database's time.
    pub(super) now: Timestamp,
    pub(super) paused: bool,
    /// Whether other workers live.
    pub(super) shared: bool,
}

/// The flows in the list `$1` in which no row waits or is open; none while something that jobs wait for has ended, which any claim
/// sees to.
///
/// By values rather than EXISTS, which the planner could take for a join with all rows that wait; and by the order of one index,
/// since to be asked for any one row it would expect to meet it soon, and read all the table. `$2` is this worker's name.
fn idle_flows_sql(dialect: Dialect) -> String {
    let none = |which: &str, order: &str| {
        format!("(SELECT 1 FROM jobs WHERE jobs.type = wanted.type AND {which} ORDER BY {order} LIMIT 1) IS NULL")
    };
    format!(
        "SELECT wanted.type AS type, {} AS now, CAST(CASE WHEN {} THEN 1 ELSE 0 END AS bigint) AS shared, \
         CAST(COALESCE((SELECT CASE WHEN paused THEN 1 ELSE 0 END FROM flows WHERE flows.type = wanted.type), 0) AS bigint) AS paused \
         FROM json_array_elements_text($1::json) AS wanted(type) WHERE {} AND {} \
         AND (SELECT 1 FROM job_dependencies WHERE {} ORDER BY job_id LIMIT 1) IS NULL",
        dialect.now(),
        others_live(dialect, "$2"),
        none("status = 'PENDING'", "priority DESC, run_at, id"),
        none(OPEN, "worker_id"),
        dialect.noted(),
    )
}

/// What a selection of open runs finds besides, for the next one.
pub(super) const FOUND_SQL: &str =
    ", CAST(COALESCE(json_agg(id), '[]') AS text) AS ids, (SELECT max(id) FROM job_events) AS event";

/// The open runs of a flow `$1` by those that were open, `$5`, and the last event then, `$6`.
///
/// The events since are named one by one: a range whose ends the planner does not know it takes for a part of the table,
/// however large that is.
pub(super) fn open_since_sql(dialect: Dialect) -> String {
    format!(
        "id = ANY (ARRAY(SELECT json_array_elements_text($5::json)::bigint UNION SELECT job_id FROM job_events \
         WHERE id = ANY (ARRAY(SELECT generate_series($6 + 1, (SELECT LEAST(max(id), $6 + {EVENTS}) FROM job_events)))) \
         AND to_status = 'INQUEUE')) AND (type || '') = $1 AND {}",
        dialect.of_named(OPEN)
    )
}
