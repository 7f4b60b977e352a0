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

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sea_orm::ConnectionTrait;

use super::schema::Transaction;
use super::sql::{Dialect, Doing, OPEN, Row};
use super::{Claim, Claimed, ClaimedJob, Error, Store};
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

/// What is known of the flows that are claimed from slowly.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<HashMap<FlowType, Last>>);

#[derive(Debug)]
enum Last {
    /// The last claim was slow: the next one counts pages.
    Slow,
    Whole(Looked),
}

impl Looks {
    fn take(&self, flow: &FlowType) -> Option<Last> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(flow)
    }

    /// To be called when what the looks were a part of has been committed.
    pub(super) fn keep(&self, looks: Vec<Look>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(looks.into_iter().filter_map(|look| Some((look.flow, look.next?))));
    }
}

/// What a look has found, from which later ones can go on.
#[derive(Clone, Debug)]
pub(super) struct Looked {
    /// When all is to be looked at again, by [`boottime`].
    until: Duration,
    /// The ids of all open runs of the flow, as JSON.
    pub(super) open: String,
    /// The highest id of an event.
    pub(super) event: i64,
    /// The earliest time that `schedule_to_close_timeout` counts from.
    pub(super) oldest: i64,
    /// Behind which row to look for waiting ones; `None` where none was claimed.
    pub(super) place: Option<Place>,
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
    /// Where it begins; `None` for a whole look.
    pub(super) from: Option<Looked>,
    /// Where the one before ended.
    before: Option<Place>,
    /// Where it ended; `None` where waiting rows were not looked for.
    place: Option<Place>,
    next: Option<Last>,
}

impl Look {
    /// Behind which row waiting ones are to be looked for.
    pub(super) fn place(&self) -> Option<Place> {
        self.from.as_ref().and_then(|from| from.place)
    }

    /// Takes what a claim that began behind another has found of the open runs. `false` where the events were begun anew by
    /// somebody, so that nothing can be said of those since: then it is a whole look from now on.
    pub(super) fn goes_on(&mut self, row: &Row<'_>) -> Result<bool, Error> {
        let Some(from) = &mut self.from else { return Ok(true) };
        let Some(event) = row.maybe_int("event")?.filter(|event| *event >= from.event) else {
            self.from = None;
            return Ok(false);
        };
        from.event = event;
        from.open = row.some_text("ids")?;
        from.oldest = row.maybe_int("oldest")?.unwrap_or(from.oldest);
        Ok(true)
    }

    /// These rows were found, or there are none.
    pub(super) fn found(&mut self, rows: &[ClaimedJob]) {
        self.place = rows.last().map(Place::of).or(self.before);
    }
}

impl Store {
    pub(super) async fn begin_look(&self, transaction: &Transaction, claim: &Claim) -> Result<Look, Error> {
        let begun = boottime();
        let flow = claim.flow.clone();
        let mut look = Look { flow, begun, pages: None, from: None, before: None, place: None, next: None };
        if self.dialect() == Dialect::Postgres {
            let last = self.inner.looks.take(&claim.flow);
            if let Some(Last::Whole(looked)) = &last {
                look.before = looked.place;
            }
            match last {
                Some(Last::Whole(looked)) if begun < looked.until => look.from = Some(looked),
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
                let until = boottime() + took * REST;
                look.next = self.looked(transaction, look, until).await?.map(Last::Whole);
                return Ok(());
            }
        }
        look.next = (took > SLOW + SLOW_EACH * taken).then_some(Last::Slow);
        Ok(())
    }

    /// How many pages of the table and its indexes this session has read since it last told the server's statistics, which it
    /// does between transactions only. The same where statistics are off.
    async fn pages_read(&self, transaction: &Transaction) -> Result<i64, Error> {
        let table = self.adopted().map_or_else(|| "jobs".to_owned(), super::adopted::name_of);
        let select = "SELECT CAST(COALESCE(sum(pg_stat_get_xact_blocks_fetched(relation)), 0) AS bigint) AS pages FROM \
            (SELECT CAST(CAST($1 AS text) AS regclass) AS relation UNION ALL \
            SELECT indexrelid FROM pg_index WHERE indrelid = CAST(CAST($1 AS text) AS regclass)) AS read";
        let result = transaction.query_one_raw(self.statement(select, [table.into()])).await.doing(ACTION)?;
        result.map_or(Ok(0), |result| Row { result: &result, dialect: self.dialect() }.int("pages"))
    }

    /// What a claim behind this whole look has to know; `None` where there is no event at all.
    async fn looked(&self, transaction: &Transaction, look: &Look, until: Duration) -> Result<Option<Looked>, Error> {
        let (dialect, schedule_time) = (self.dialect(), self.dialect().schedule_time());
        let select = format!(
            "SELECT CAST(COALESCE(json_agg(id), '[]') AS text) AS open, (SELECT max(id) FROM job_events) AS event, \
             (SELECT {schedule_time} FROM jobs WHERE type = $1 AND status = 'PENDING' ORDER BY {schedule_time} LIMIT 1) AS oldest \
             FROM jobs WHERE type = $1 AND {OPEN}"
        );
        let result =
            transaction.query_one_raw(self.statement(select, [look.flow.as_str().into()])).await.doing(ACTION)?;
        let Some(result) = result else { return Ok(None) };
        let row = Row { result: &result, dialect };
        let Some(event) = row.maybe_int("event")? else { return Ok(None) };
        let oldest = row.maybe_int("oldest")?.unwrap_or(i64::MIN);
        Ok(Some(Looked { until, open: row.some_text("open")?, event, oldest, place: look.place }))
    }
}

/// What a selection of [`open_since_sql`] finds besides, for the next one.
pub(super) const FOUND_SQL: &str =
    ", CAST(COALESCE(json_agg(id), '[]') AS text) AS ids, (SELECT max(id) FROM job_events) AS event";

/// The open runs of a flow `$1` by those that were open, `$5`, and the last event then, `$6`. That there are no later events
/// than the last one the planner has to be told: it would hold them for a third of all.
pub(super) fn open_since_sql(dialect: Dialect) -> String {
    format!(
        "id = ANY (ARRAY(SELECT json_array_elements_text($5::json)::bigint UNION SELECT job_id FROM job_events \
         WHERE id > $6 AND id <= (SELECT max(id) FROM job_events) AND to_status = 'INQUEUE')) \
         AND (type || '') = $1 AND {}",
        dialect.of_named(OPEN)
    )
}
