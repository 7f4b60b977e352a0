//! The list of jobs by flow, status, text and time, as fast at ten million rows as at ten.
//!
//! Without a text, each combination of a type and a status is a range of an index that is read from its end, and the
//! ranges are merged; where no type is named, of as many types as there are, which is taken to be some dozens. A text is
//! looked for among so many rows at a time, and the answer says how far that was. The time of a row's creation grows with
//! its id, give or take, so that the ids of a stretch of time are found by bisection.

use std::collections::BTreeMap;

use entity::jobs;
use sea_orm::sea_query::Order;
use sea_orm::{ColumnTrait, Value};

use super::connection::Connection;
use super::jobs::{job_row, select_but};
use super::sql::{Dialect, Doing, Row, storable};
use super::{Error, JobFilter, JobRow, Store};
use crate::domain::{JobId, JobStatus, Timestamp};

const ACTION: &str = "search the jobs";
/// A text is looked for in so many rows at a time: on PostgreSQL, whose ILIKE is slow, 20,000 took a list 80 ms.
const LOOKED_AT: u32 = 10_000;
/// More types than this in one filter are left out.
const MOST_TYPES: usize = 20;
/// Payloads of one page, in bytes; as JSON they take several times as much.
const MOST_PAYLOAD: i64 = 16 << 20;
/// How far the order of ids may be from the order of creation: transactions that overlap, clocks that differ.
const DISORDER: i64 = 1000;

/// Which jobs to find, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobSearch {
    /// Types to find; empty for all.
    pub types: Vec<String>,
    /// Statuses to find; empty for all.
    pub statuses: Vec<JobStatus>,
    /// A part of the identifier, the error or the last word of the command, in any case of its letters; or the id.
    pub text: Option<String>,
    /// Created then or later.
    pub from: Option<Timestamp>,
    /// Created before then.
    pub until: Option<Timestamp>,
    /// Only rows older than this one: the `next_cursor` of the page before.
    pub cursor: Option<JobId>,
    /// At most so many rows: 1 to 1000.
    pub limit: u32,
    /// Whether the rows bring their payloads; a page may be shorter then, see [`Store::search`].
    pub payloads: bool,
}

/// Some jobs, and where to look for more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The jobs.
    pub rows: Vec<JobRow>,
    /// The cursor of the next page; `None` where there is none.
    pub next_cursor: Option<JobId>,
    /// Where only a part was looked at: the oldest row of it.
    pub looked_down_to: Option<JobId>,
}

/// A half-open range of ids.
#[derive(Clone, Copy)]
struct Ids {
    from: i64,
    until: i64,
}

impl Store {
    /// Finds jobs, newest first. With payloads a page ends early, after at least one row, where they would be more than
    /// `MOST_PAYLOAD` bytes: anybody may write rows with large ones.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn search(&self, search: &JobSearch) -> Result<Found, Error> {
        let limit = search.limit.clamp(1, 1000);
        let (mut ids, looked_down_to) = self.in_time(ACTION, self.ids_found(search, limit + 1)).await?;
        let mut fit = usize::try_from(limit).unwrap_or(usize::MAX).min(ids.len());
        if search.payloads {
            fit = self.in_time(ACTION, self.fitting(ids.get(..fit).unwrap_or_default())).await?;
        }
        let more = ids.len() > fit;
        ids.truncate(fit);
        let next_cursor = if more { ids.last().copied().map(JobId) } else { looked_down_to };
        let looked_down_to = looked_down_to.filter(|_| !more);
        if ids.is_empty() {
            return Ok(Found { rows: Vec::new(), next_cursor, looked_down_to });
        }
        let left_out = if search.payloads { None } else { Some(jobs::Column::Payload) };
        let mut query = select_but::<jobs::Entity>(self.dialect(), left_out);
        query.and_where(jobs::Column::Id.is_in(ids)).order_by(jobs::Column::Id, Order::Desc);
        Ok(Found { rows: self.rows(&query, job_row).await?, next_cursor, looked_down_to })
    }

    /// How many of these jobs, from the first on, have payloads that together are no more than may be read at once.
    async fn fitting(&self, ids: &[i64]) -> Result<usize, Error> {
        let dialect = self.dialect();
        let size = dialect.pick("LENGTH(CAST(payload AS BLOB))", "octet_length(payload::text)", "LENGTH(payload)");
        if ids.is_empty() {
            return Ok(0);
        }
        let these = dialect.among_ids("id", "$1");
        let select = format!("SELECT id, CAST(COALESCE({size}, 0) AS bigint) AS size FROM jobs WHERE {these}");
        let list = format!("[{}]", ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", "));
        let results = self.reader().query_all(self.statement(select, [list.into()])).await.doing(ACTION)?;
        let mut sizes = BTreeMap::new();
        for result in &results {
            let row = Row { result, dialect };
            sizes.insert(row.int("id")?, row.int("size")?);
        }
        let mut sum = 0_i64;
        let fit = ids.iter().take_while(|id| {
            sum = sum.saturating_add(sizes.get(id).copied().unwrap_or_default());
            sum <= MOST_PAYLOAD
        });
        Ok(fit.count().max(1))
    }

    /// The ids of the jobs, newest first; and where the rest is still to be looked at, from where down.
    async fn ids_found(&self, search: &JobSearch, most: u32) -> Result<(Vec<i64>, Option<JobId>), Error> {
        let mut within = Ids { from: i64::MIN, until: search.cursor.map_or(i64::MAX, |cursor| cursor.0) };
        if let Some(from) = search.from {
            within.from = self.first_created(from).await?.saturating_sub(DISORDER);
        }
        if let Some(until) = search.until {
            within.until = within.until.min(self.first_created(until).await?.saturating_add(DISORDER));
        }
        let Some(text) = search.text.as_deref().map(str::trim).filter(|text| !text.is_empty()) else {
            return Ok((self.ids_of_ranges(search, within, most).await?, None));
        };
        let text = storable(text);
        let floor = self.nth_below(within, LOOKED_AT).await?;
        let part = Ids { from: floor.unwrap_or(within.from), until: within.until };
        let mut ids = self.ids_with_text(search, part, &text, most).await?;
        if search.cursor.is_none() {
            // Whoever gives a whole identifier, or an id, gets it wherever it is.
            ids.extend(self.ids_named(search, within, &text, most).await?);
            ids.sort_unstable_by(|a, b| b.cmp(a));
            ids.dedup();
        }
        Ok((ids, floor.map(JobId)))
    }

    /// The ids of the jobs that a filter means, newest first, at most `most`.
    pub(super) async fn ids_matching(&self, filter: &JobFilter, most: u32) -> Result<Vec<i64>, Error> {
        let within = Ids { from: i64::MIN, until: filter.cursor.map_or(i64::MAX, |cursor| cursor.0) };
        // All types at once where none is named.
        let chunks = filter.types.chunks(MOST_TYPES).chain(filter.types.is_empty().then_some(&[][..]));
        let mut ids = Vec::new();
        for types in chunks {
            let search = JobSearch { types: types.to_vec(), statuses: filter.statuses.clone(), ..JobSearch::default() };
            ids.extend(match &filter.identifier {
                Some(identifier) => self.ids_identified(&search, within, &storable(identifier), most).await?,
                None => self.ids_of_ranges(&search, within, most).await?,
            });
        }
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.dedup();
        ids.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(ids)
    }

    /// Of the rows with this identifier, which are few.
    async fn ids_identified(
        &self,
        search: &JobSearch,
        within: Ids,
        identifier: &str,
        most: u32,
    ) -> Result<Vec<i64>, Error> {
        let (times, mut values) = times(search, within);
        let others = others(search, &mut values);
        values.push(identifier.into());
        let place = values.len();
        let select = format!(
            "SELECT id FROM jobs {} WHERE identifier = ${place}{times}{others} ORDER BY id DESC LIMIT {most}",
            self.dialect().by_index("jobs_by_identifier")
        );
        self.read_ids(select, values).await
    }

    async fn ids_of_ranges(&self, search: &JobSearch, within: Ids, most: u32) -> Result<Vec<i64>, Error> {
        let dialect = self.dialect();
        let by_type = dialect.by_index("jobs_by_type_and_status");
        let (times, mut values) = times(search, within);
        let newest = |index: &str, condition: &str| {
            format!("SELECT id FROM jobs {index} WHERE {condition}{times} ORDER BY id DESC LIMIT {most}")
        };
        let (mut with, mut parts) = (String::new(), Vec::new());
        match (search.types.is_empty(), search.statuses.as_slice()) {
            (true, []) => parts.push(newest("", "true")),
            (true, statuses) => {
                if dialect != Dialect::MySql {
                    with = all_types(&by_type);
                }
                parts.extend(statuses.iter().map(|status| {
                    let of_status = format!("status = '{status}'");
                    let of_type = || newest(&by_type, &format!("type = types.type AND {of_status}"));
                    match dialect {
                        // It has no LATERAL.
                        Dialect::Sqlite => {
                            format!("SELECT jobs.id FROM types CROSS JOIN jobs WHERE jobs.id IN ({})", of_type())
                        }
                        // How many rows a type has it can't know, and takes for many what may be few: it would read all rows by
                        // their key, from the last one on, until it has found some. A range it takes for a small part of them.
                        Dialect::Postgres => format!(
                            "SELECT newest.id FROM types CROSS JOIN LATERAL ({}) AS newest",
                            newest(
                                &by_type,
                                &format!(
                                    "type = types.type AND type BETWEEN types.type AND types.type AND {of_status}"
                                )
                            )
                        ),
                        Dialect::MySql => newest(&dialect.by_index("jobs_by_status"), &of_status),
                    }
                }));
            }
            (false, statuses) => {
                let statuses = if statuses.is_empty() { &JobStatus::ALL[..] } else { statuses };
                for name in search.types.iter().take(MOST_TYPES) {
                    values.push(storable(name).into());
                    let place = values.len();
                    let condition = |status| format!("type = ${place} AND status = '{status}'");
                    parts.extend(statuses.iter().map(|status| newest(&by_type, &condition(status))));
                }
            }
        }
        let parts = parts.iter().enumerate().map(|(number, part)| format!("SELECT id FROM ({part}) AS part{number}"));
        let all = format!("{with}{} ORDER BY id DESC LIMIT {most}", parts.collect::<Vec<_>>().join(" UNION ALL "));
        self.read_ids(all, values).await
    }

    async fn ids_with_text(&self, search: &JobSearch, within: Ids, text: &str, most: u32) -> Result<Vec<i64>, Error> {
        let (times, mut values) = times(search, within);
        let others = others(search, &mut values);
        values.push(format!("%{}%", escaped(text)).into());
        let (place, dialect) = (values.len(), self.dialect());
        // MySQL's texts are compared as they are, so there both sides are in small letters.
        let like = |column: &str| match dialect {
            Dialect::Sqlite => format!("{column} LIKE ${place} ESCAPE '!'"),
            Dialect::Postgres => format!("{column} ILIKE ${place} ESCAPE '!'"),
            Dialect::MySql => format!("LOWER({column}) LIKE LOWER(${place}) ESCAPE '!'"),
        };
        let select = format!(
            "SELECT id FROM jobs WHERE true{times}{others} AND ({} OR {} OR {}) ORDER BY id DESC LIMIT {most}",
            like("identifier"),
            like("error"),
            like("status_message"),
        );
        self.read_ids(select, values).await
    }

    async fn ids_named(&self, search: &JobSearch, within: Ids, text: &str, most: u32) -> Result<Vec<i64>, Error> {
        let dialect = self.dialect();
        let (times, mut values) = times(search, within);
        let others = others(search, &mut values);
        values.push(text.into());
        let by_name = format!(
            "SELECT id FROM jobs {} WHERE identifier = ${}{times}{others} ORDER BY id DESC LIMIT {most}",
            dialect.by_index("jobs_by_identifier"),
            values.len()
        );
        let mut ids = self.read_ids(by_name, values).await?;
        if let Ok(id) = text.trim_start_matches('#').parse::<i64>() {
            let (times, mut values) = self::times(search, within);
            let others = self::others(search, &mut values);
            values.push(id.into());
            let by_id = format!("SELECT id FROM jobs WHERE id = ${}{times}{others}", values.len());
            ids.extend(self.read_ids(by_id, values).await?);
        }
        Ok(ids)
    }

    /// The id of the row that has `rows` others of the range above it; `None` where there are not so many.
    async fn nth_below(&self, within: Ids, rows: u32) -> Result<Option<i64>, Error> {
        let select = format!("SELECT id FROM jobs WHERE id >= $1 AND id < $2 ORDER BY id DESC LIMIT 1 OFFSET {rows}");
        Ok(self.read_ids(select, vec![within.from.into(), within.until.into()]).await?.pop())
    }

    /// The first id of which every later row, give or take, was created at `time` or after.
    async fn first_created(&self, time: Timestamp) -> Result<i64, Error> {
        if self.dialect() == Dialect::MySql {
            return self.first_created_by_steps(time).await;
        }
        // One statement for all steps: each is one look into an index, and as many round trips would take ten times as long.
        // Lowest and highest id apart: asked for both at once, SQLite reads the whole table.
        let middle = "search.low + (search.high - search.low) / 2";
        let at = |column: &str| format!("(SELECT {column} FROM jobs WHERE id >= {middle} ORDER BY id LIMIT 1)");
        let (id, created) = (at("id"), at("created_time"));
        let select = format!(
            "WITH RECURSIVE search(low, high) AS (\
             SELECT (SELECT min(id) FROM jobs), (SELECT max(id) + 1 FROM jobs) UNION ALL \
             SELECT CASE WHEN {created} < $1 THEN {id} + 1 ELSE search.low END, \
             CASE WHEN {created} < $1 THEN search.high ELSE {middle} END \
             FROM search WHERE search.low < search.high) SELECT max(low) AS first FROM search"
        );
        let values = [time.unix_millis().into()];
        let result = self.reader().query_one(self.statement(select, values)).await.doing(ACTION)?;
        let first =
            result.map(|result| Row { result: &result, dialect: self.dialect() }.maybe_int("first")).transpose()?;
        Ok(first.flatten().unwrap_or(0))
    }

    /// The same on MySQL, which in a recursive statement would read the table from its start at each step.
    async fn first_created_by_steps(&self, time: Timestamp) -> Result<i64, Error> {
        let dialect = self.dialect();
        let ends = self.statement("SELECT min(id) AS low, max(id) AS high FROM jobs", []);
        let Some(ends) = self.reader().query_one(ends).await.doing(ACTION)? else { return Ok(0) };
        let ends = Row { result: &ends, dialect };
        let Some((mut low, high)) = ends.maybe_int("low")?.zip(ends.maybe_int("high")?) else { return Ok(0) };
        let mut high = high.saturating_add(1);
        while low < high {
            let middle = low + (high - low) / 2;
            let next = "SELECT id, created_time FROM jobs WHERE id >= $1 ORDER BY id LIMIT 1";
            let next = self.statement(next, [middle.into()]);
            let Some(result) = self.reader().query_one(next).await.doing(ACTION)? else {
                high = middle;
                continue;
            };
            let row = Row { result: &result, dialect };
            if row.time("created_time")? < time {
                low = row.int("id")?.saturating_add(1);
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    async fn read_ids(&self, select: String, values: Vec<Value>) -> Result<Vec<i64>, Error> {
        let dialect: Dialect = self.dialect();
        let results = self.reader().query_all(self.statement(select, values)).await.doing(ACTION)?;
        results.iter().map(|result| Row { result, dialect }.int("id")).collect()
    }
}

/// The table `types`, of those of all rows: each is found by one look into an index, however many rows it has.
fn all_types(by_type: &str) -> String {
    format!(
        "WITH RECURSIVE types(type) AS (SELECT min(type) FROM jobs {by_type} UNION ALL \
         SELECT (SELECT min(type) FROM jobs {by_type} WHERE type > types.type) FROM types WHERE types.type IS NOT NULL) "
    )
}

/// The conditions of ids and times, each after an AND, and their values.
fn times(search: &JobSearch, within: Ids) -> (String, Vec<Value>) {
    let mut values: Vec<Value> = vec![within.from.into(), within.until.into()];
    let mut conditions = " AND id >= $1 AND id < $2".to_owned();
    for (operator, time) in [(">=", search.from), ("<", search.until)] {
        if let Some(time) = time {
            values.push(time.unix_millis().into());
            conditions.push_str(&format!(" AND created_time {operator} ${}", values.len()));
        }
    }
    (conditions, values)
}

/// The conditions of types and statuses, each after an AND.
fn others(search: &JobSearch, values: &mut Vec<Value>) -> String {
    let mut conditions = String::new();
    if !search.types.is_empty() {
        let places: Vec<String> = search
            .types
            .iter()
            .take(MOST_TYPES)
            .map(|name| {
                values.push(storable(name).into());
                format!("${}", values.len())
            })
            .collect();
        conditions.push_str(&format!(" AND type IN ({})", places.join(", ")));
    }
    if !search.statuses.is_empty() {
        let words: Vec<String> = search.statuses.iter().map(|status| format!("'{status}'")).collect();
        conditions.push_str(&format!(" AND status IN ({})", words.join(", ")));
    }
    conditions
}

/// The text as LIKE takes it literally.
fn escaped(text: &str) -> String {
    text.replace('!', "!!").replace('%', "!%").replace('_', "!_")
}
