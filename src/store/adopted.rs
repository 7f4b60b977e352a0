//! A table that the user already has as `jobs` (`[store.jobs]`), on PostgreSQL.
//!
//! Callsheet's own tables are then in a schema of their own, and `jobs` there is a view of the user's table under our names.
//! Nothing in it is computed: a column of another type (an enum of other words, a `timestamp`) has a twin that is added
//! beside it, and a trigger keeps the two in step within the row, whoever writes which. So every statement, lock, plan and
//! fence is what it is with our own table, and there is one row, written once.
//!
//! What is to be done to the user's table is never done here, only said ([`Store::adoption`]). It is read off an empty table
//! (`jobs_model`) that the migrations are applied to instead, by calling its columns as they are called there and taking
//! that back.

mod columns;
mod statements;

pub use columns::Unfit;
use columns::{Column, Ours, Theirs, literal, place, quoted};
use statements::{MODEL, Model, Present};

use super::connection::{Connection, Transaction};
use super::schema::WAIT_BRIEFLY;
use super::sql::{Dialect, Doing, Row};
use super::{Error, Store};
use crate::config::{AdoptedTable, OWN_SCHEMA};

const ACTION: &str = "look into the table of [store.jobs]";

/// What the table of `[store.jobs]` lacks, or why it can't be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// The table, quoted and with its schema.
    pub table: String,
    /// What is wrong with it, or with what the configuration says about it.
    pub unfit: Vec<Unfit>,
    /// The statements that add what it lacks, in order.
    pub missing: Vec<String>,
    /// The columns that an insert has to name and that Callsheet has no value for: it can't enqueue jobs itself.
    pub unfillable: Vec<String>,
}

impl Adoption {
    /// The statements as a script for `psql`; it is one transaction but for new words of an enum, which need their own.
    #[must_use]
    pub fn script(&self) -> String {
        let (words, rest): (Vec<_>, Vec<_>) =
            self.missing.iter().partition(|statement| statement.starts_with("ALTER TYPE "));
        let lines = |statements: &[&String]| statements.iter().map(|sql| format!("{sql};\n")).collect::<String>();
        let rest = if rest.is_empty() { String::new() } else { format!("BEGIN;\n{}COMMIT;\n", lines(&rest)) };
        lines(&words) + &rest
    }
}

/// An adopted table as it is now.
struct Look {
    columns: Vec<Column>,
    theirs: Vec<Theirs>,
    unfit: Vec<Unfit>,
}

/// The user's table, quoted and with its schema.
pub(super) fn name_of(adopted: &AdoptedTable) -> String {
    statements::table(adopted)
}

impl Store {
    /// What the adopted table lacks; `None` where there is none. Leaves nothing behind: what it does is taken back.
    ///
    /// # Errors
    /// [`Error::SchemaTooNew`] where a newer Callsheet was here; else where the database fails, also for want of a right.
    pub async fn adoption(&self) -> Result<Option<Adoption>, Error> {
        let Some(adopted) = self.adopted() else { return Ok(None) };
        let looking = async {
            let transaction = self.begin(ACTION).await?;
            self.migrate_in(&transaction).await?;
            let adoption = self.adoption_in(&transaction, adopted).await?;
            transaction.rollback().await.doing(ACTION)?;
            Ok(Some(adoption))
        };
        self.in_time(ACTION, looking).await
    }

    /// Checks that the adopted table, if there is one, has all that it needs.
    ///
    /// # Errors
    /// [`Error::Adopted`] and [`Error::AdoptionMissing`] where it has not.
    pub async fn check_adoption(&self) -> Result<(), Error> {
        self.adoption().await?.map_or(Ok(()), |adoption| complete(&adoption))
    }

    /// Has the view stand for the table as it is, and what belongs to jobs hang on it. The transaction is at an end where
    /// the table lacks anything: nothing is done by halves.
    pub(super) async fn adopt(&self, transaction: &Transaction, adopted: &AdoptedTable) -> Result<(), Error> {
        complete(&self.adoption_in(transaction, adopted).await?)?;
        // Whoever inserts into `job_dependencies` looks for tables elsewhere.
        let functions = format!(
            "SELECT format('ALTER FUNCTION %s SET search_path = {OWN_SCHEMA}, pg_temp', oid::regprocedure) AS a FROM pg_proc \
             WHERE pronamespace = '{OWN_SCHEMA}'::regnamespace AND proconfig IS NULL AND proname NOT LIKE 'adopted_%'"
        );
        for [alter] in self.texts(transaction, &functions, ["a"]).await? {
            self.run(transaction, &alter).await?;
        }
        let look = self.look(transaction, adopted).await?;
        let view = statements::view(adopted, &look.columns, &look.theirs);
        if self.view_is(transaction, &view).await? {
            return Ok(());
        }
        let id = look.columns.iter().find(|column| column.ours.name == "id").map(Column::stored).unwrap_or_default();
        let references = self
            .texts(
                transaction,
                &format!(
                    "SELECT format('ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I ', conrelid::regclass, conname, conname) \
                     AS a, pg_get_constraintdef(oid) AS b FROM pg_constraint WHERE confrelid = '{MODEL}'::regclass AND contype = 'f'"
                ),
                ["a", "b"],
            )
            .await?;
        // A foreign key locks the table.
        self.run(transaction, WAIT_BRIEFLY).await?;
        let from = format!("REFERENCES {MODEL}(id)");
        let to = format!("REFERENCES {}({id})", statements::table(adopted));
        for [alter, definition] in references {
            self.run(transaction, &format!("{alter}{}", definition.replace(&from, &to))).await?;
        }
        self.run(transaction, "DROP VIEW IF EXISTS jobs").await?;
        for statement in &view {
            self.run(transaction, statement).await?;
        }
        self.run(transaction, &format!("COMMENT ON VIEW jobs IS {}", literal(&view.join(";\n")))).await
    }

    /// Checks that the view is as it has to be for what the configuration says and the table is now; `migrate up` makes it.
    pub(super) async fn check_view(&self, adopted: &AdoptedTable) -> Result<(), Error> {
        let look = self.look(self.reader(), adopted).await?;
        refuse(&look.unfit)?;
        let view = statements::view(adopted, &look.columns, &look.theirs);
        if self.view_is(self.reader(), &view).await? { Ok(()) } else { Err(Error::SchemaMissing) }
    }

    async fn view_is(&self, connection: &impl Connection, view: &[String]) -> Result<bool, Error> {
        let comment = "SELECT obj_description(to_regclass('jobs')::oid, 'pg_class') AS a";
        Ok(self.texts(connection, comment, ["a"]).await? == [[view.join(";\n")]])
    }

    /// Before migrations are applied: they find a table `jobs`, which is none yet the first time.
    pub(super) async fn show_model(&self, transaction: &Transaction) -> Result<(), Error> {
        let there = format!("SELECT to_regclass('{MODEL}')::text AS a");
        if self.texts(transaction, &there, ["a"]).await? == [[MODEL]] {
            self.run(transaction, &format!("DROP VIEW IF EXISTS jobs; ALTER TABLE {MODEL} RENAME TO jobs")).await?;
        }
        Ok(())
    }

    pub(super) async fn hide_model(&self, transaction: &Transaction) -> Result<(), Error> {
        self.run(transaction, &format!("ALTER TABLE jobs RENAME TO {MODEL}")).await
    }

    /// Makes the schema where there is none; refuses one with a Callsheet in it that has a table of its own.
    pub(super) async fn make_own_schema(&self, transaction: &Transaction) -> Result<(), Error> {
        let there = "SELECT to_regnamespace($1)::text AS a, to_regclass('jobs_model')::text AS b, \
            (SELECT relkind::text FROM pg_class WHERE oid = to_regclass('jobs')) AS c";
        let there = there.replace("$1", &literal(OWN_SCHEMA));
        match self.texts(transaction, &there, ["a", "b", "c"]).await?.first() {
            Some([_, model, kind]) if model.is_empty() && kind == "r" => {
                let reason = format!(
                    "the schema {OWN_SCHEMA} holds a Callsheet whose jobs are in a table of their own; give one of the two another database"
                );
                Err(Error::Adopted { reason })
            }
            Some([schema, ..]) if schema.is_empty() => {
                self.run(transaction, &format!("CREATE SCHEMA {OWN_SCHEMA}")).await
            }
            _ => Ok(()),
        }
    }

    async fn adoption_in(&self, transaction: &Transaction, adopted: &AdoptedTable) -> Result<Adoption, Error> {
        let look = self.look(transaction, adopted).await?;
        let mut adoption = Adoption { table: statements::table(adopted), unfit: look.unfit, ..Adoption::default() };
        if adoption.unfit.is_empty() {
            adoption.unfit.extend(self.other_table(transaction, &adoption.table, &look.columns).await?);
        }
        if !adoption.unfit.is_empty() {
            return Ok(adoption);
        }
        let model = self.model(transaction, &look.columns).await?;
        let table = literal(&adoption.table);
        let of = |name: &str| format!("{name} = {table}::regclass");
        let rights: Vec<String> =
            statements::RIGHTS.split(", ").map(|right| format!("has_table_privilege({table}, '{right}')")).collect();
        let service = format!("SELECT quote_ident(current_user) AS a, ({})::text AS b", rights.join(" AND "));
        let [service, has_rights] = self.texts(transaction, &service, ["a", "b"]).await?.pop().unwrap_or_default();
        let present = Present {
            service,
            has_rights: has_rights == "true",
            indexes: self.indexes(transaction, &of("indrelid"), "AND indisvalid").await?,
            checks: self.checks(transaction, &of("conrelid")).await?,
            triggers: self.triggers(transaction, &of("tgrelid")).await?,
            functions: self
                .texts(
                    transaction,
                    &format!(
                        "SELECT proname::text AS a, prosecdef::text AS b, prosrc AS c FROM pg_proc \
                         WHERE pronamespace = '{OWN_SCHEMA}'::regnamespace AND proname LIKE 'adopted_%'"
                    ),
                    ["a", "b", "c"],
                )
                .await?
                .into_iter()
                .map(|[name, definer, body]| (name, definer == "true", body))
                .collect(),
            columns: look.theirs,
        };
        adoption.missing = statements::missing(adopted, &look.columns, &model, &present);
        adoption.unfillable =
            statements::unfillable(&look.columns, &present.columns).into_iter().map(str::to_owned).collect();
        Ok(adoption)
    }

    /// Whether runs and events that are there are those of another table's rows, or go by another id.
    async fn other_table(
        &self,
        transaction: &Transaction,
        table: &str,
        columns: &[Column],
    ) -> Result<Option<Unfit>, Error> {
        let id = columns.iter().find(|column| column.ours.name == "id").map(Column::stored).unwrap_or_default();
        let select = format!(
            "SELECT DISTINCT confrelid::regclass::text AS a, quote_ident(attname) AS b FROM pg_constraint \
             JOIN pg_attribute ON attrelid = confrelid AND attnum = confkey[1] JOIN pg_class ON pg_class.oid = confrelid \
             WHERE contype = 'f' AND connamespace = '{OWN_SCHEMA}'::regnamespace AND relnamespace <> connamespace \
             AND (confrelid <> {}::regclass OR format('\"%s\"', replace(attname, '\"', '\"\"')) <> {})",
            literal(table),
            literal(&if id.starts_with('"') { id } else { quoted(&id) })
        );
        let found = self.texts(transaction, &select, ["a", "b"]).await?;
        Ok(found.into_iter().next().map(|[other, column]| Unfit {
            key: "store.jobs".to_owned(),
            reason: format!("what is in the schema {OWN_SCHEMA} is about the rows of {other} by their {column}"),
            help: format!("name that table and column again, or start anew: DROP SCHEMA {OWN_SCHEMA} CASCADE"),
        }))
    }

    /// What hangs on our own table, by the names of the other one: PostgreSQL says it, once the columns are called so.
    async fn model(&self, transaction: &Transaction, columns: &[Column]) -> Result<Model, Error> {
        self.run(transaction, "SAVEPOINT scratch").await?;
        let mut renames = String::new();
        // By way of names that nobody has: two columns may change theirs.
        for (place, column) in columns.iter().enumerate() {
            renames +=
                &format!("ALTER TABLE {MODEL} RENAME COLUMN {} TO \"callsheet {place}\";", quoted(&column.ours.name));
        }
        for (place, column) in columns.iter().enumerate() {
            renames += &format!("ALTER TABLE {MODEL} RENAME COLUMN \"callsheet {place}\" TO {};", column.stored());
        }
        self.run(transaction, &renames).await?;
        let of = |name: &str| format!("{name} = '{MODEL}'::regclass");
        let functions = format!(
            "SELECT DISTINCT proname::text AS a, prosrc AS b FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid \
             WHERE {} AND NOT tgisinternal ORDER BY 1",
            of("tgrelid")
        );
        let model = Model {
            indexes: self.indexes(transaction, &of("indrelid"), "AND NOT indisprimary").await?,
            checks: self.checks(transaction, &of("conrelid")).await?,
            triggers: self.triggers(transaction, &of("tgrelid")).await?,
            functions: self
                .texts(transaction, &functions, ["a", "b"])
                .await?
                .into_iter()
                .map(|[name, body]| (name, body))
                .collect(),
        };
        self.run(transaction, "ROLLBACK TO SAVEPOINT scratch").await?;
        Ok(model)
    }

    async fn indexes(
        &self,
        connection: &impl Connection,
        of: &str,
        which: &str,
    ) -> Result<Vec<(String, bool, String)>, Error> {
        let select = format!(
            "SELECT c.relname::text AS a, i.indisunique::text AS b, pg_get_indexdef(i.indexrelid) AS c FROM pg_index i \
             JOIN pg_class c ON c.oid = i.indexrelid WHERE {of} {which} ORDER BY i.indexrelid"
        );
        let read = |[name, unique, definition]: [String; 3]| {
            let rest = definition.split_once(" USING ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            (name, unique == "true", rest)
        };
        Ok(self.texts(connection, &select, ["a", "b", "c"]).await?.into_iter().map(read).collect())
    }

    async fn checks(&self, connection: &impl Connection, of: &str) -> Result<Vec<(String, String)>, Error> {
        let select = format!(
            "SELECT conname::text AS a, pg_get_constraintdef(oid) AS b FROM pg_constraint WHERE {of} AND contype = 'c' ORDER BY oid"
        );
        Ok(self.texts(connection, &select, ["a", "b"]).await?.into_iter().map(|[name, check]| (name, check)).collect())
    }

    async fn triggers(&self, connection: &impl Connection, of: &str) -> Result<Vec<String>, Error> {
        let select = format!(
            "SELECT pg_get_triggerdef(oid) || CASE WHEN tgenabled IN ('O', 'A') THEN '' ELSE ' (disabled)' END AS a \
             FROM pg_trigger WHERE {of} AND NOT tgisinternal ORDER BY oid"
        );
        Ok(self.texts(connection, &select, ["a"]).await?.into_iter().map(|[trigger]| trigger).collect())
    }

    /// The columns of the table, and where ours are among them.
    async fn look(&self, connection: &impl Connection, adopted: &AdoptedTable) -> Result<Look, Error> {
        let table = statements::table(adopted);
        let unfit = |reason: String, help: &str| Look {
            columns: Vec::new(),
            theirs: Vec::new(),
            unfit: vec![Unfit { key: "store.jobs".to_owned(), reason, help: help.to_owned() }],
        };
        let kind = format!(
            "SELECT relkind::text AS a, relhassubclass::text AS b, row_security_active(oid)::text AS c \
             FROM pg_class WHERE oid = to_regclass({})",
            literal(&table)
        );
        match self.texts(connection, &kind, ["a", "b", "c"]).await?.first() {
            None => {
                let help = "check its name, which is as it was written in quotes, and its schema (public, unless `schema` names another)";
                return Ok(unfit(format!("there is no table {table} in this database"), help));
            }
            Some([kind, ..]) if kind != "r" => {
                let what = match kind.as_str() {
                    "p" => "a partitioned table, whose ids can't be unique by themselves",
                    "v" | "m" => "a view",
                    "f" => "a foreign table",
                    _ => "no table",
                };
                return Ok(unfit(format!("{table} is {what}"), "name an ordinary table"));
            }
            Some([_, parts, _]) if parts == "true" => {
                return Ok(unfit(format!("{table} has tables that inherit from it"), "name an ordinary table"));
            }
            Some([.., hidden]) if hidden == "true" => {
                let help = "run Callsheet as the owner of the table, or as a role with BYPASSRLS";
                return Ok(unfit(format!("row security hides rows of {table} from this user"), help));
            }
            Some(_) => {}
        }
        let theirs = self.columns(connection, &table).await?;
        let model = self.columns(connection, MODEL).await?;
        let checked = format!(
            "SELECT attname::text AS a FROM pg_attribute JOIN pg_constraint ON conrelid = attrelid AND attnum = ANY (conkey) \
             WHERE attrelid = '{MODEL}'::regclass AND contype = 'c'"
        );
        let checked = self.texts(connection, &checked, ["a"]).await?;
        let ours: Vec<Ours> = model
            .into_iter()
            .map(|(column, default)| Ours {
                checked: checked.iter().any(|[name]| *name == column.name),
                name: column.name,
                kind: column.kind,
                not_null: column.not_null,
                default,
            })
            .collect();
        let theirs: Vec<Theirs> = theirs.into_iter().map(|(column, _)| column).collect();
        let (columns, unfit) = place(adopted, &ours, &theirs);
        Ok(Look { columns, theirs, unfit })
    }

    /// The columns of a table, each with its default, in their order.
    async fn columns(&self, connection: &impl Connection, table: &str) -> Result<Vec<(Theirs, Option<String>)>, Error> {
        let select = format!(
            "SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS kind, \
             CASE WHEN t.typtype = 'e' THEN 'enum' WHEN n.nspname = 'pg_catalog' THEN t.typname::text ELSE '' END AS base, \
             CASE WHEN t.typname IN ('varchar', 'bpchar') AND a.atttypmod > 4 THEN a.atttypmod - 4 END::bigint AS length, \
             array_to_json(ARRAY(SELECT enumlabel FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder))::text AS words, \
             format('%I.%I', n.nspname, t.typname) AS type_name, a.attnotnull::int::bigint AS not_null, \
             (a.atthasdef OR a.attidentity <> '')::int::bigint AS has_default, (a.attgenerated <> '')::int::bigint AS generated, \
             EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indisvalid \
             AND i.indpred IS NULL AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum)::int::bigint AS is_unique, \
             pg_get_expr(d.adbin, d.adrelid) AS default_value \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace \
             LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
             WHERE a.attrelid = to_regclass({}) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            literal(table)
        );
        let results = connection.query_all(self.statement(select, [])).await.doing(ACTION)?;
        let read = |row: Row<'_>| {
            let words = serde_json::from_str(&row.some_text("words")?);
            let column = Theirs {
                name: row.some_text("name")?,
                kind: row.some_text("kind")?,
                base: row.some_text("base")?,
                length: row.maybe_int("length")?,
                words: words.map_err(|error| Error::UnreadableRow { reason: error.to_string() })?,
                type_name: row.some_text("type_name")?,
                not_null: row.flag("not_null")?,
                has_default: row.flag("has_default")?,
                generated: row.flag("generated")?,
                unique: row.flag("is_unique")?,
            };
            Ok((column, row.text("default_value")?))
        };
        results.iter().map(|result| read(Row { result, dialect: Dialect::Postgres })).collect()
    }

    /// The rows of a query as texts, nothing for NULL.
    async fn texts<const N: usize>(
        &self,
        connection: &impl Connection,
        select: &str,
        names: [&str; N],
    ) -> Result<Vec<[String; N]>, Error> {
        let results = connection.query_all(self.statement(select, [])).await.doing(ACTION)?;
        let mut rows = Vec::with_capacity(results.len());
        for result in &results {
            let row = Row { result, dialect: Dialect::Postgres };
            let mut texts = [const { String::new() }; N];
            for (text, name) in texts.iter_mut().zip(names) {
                *text = row.some_text(name)?;
            }
            rows.push(texts);
        }
        Ok(rows)
    }

    async fn run(&self, transaction: &Transaction, statements: &str) -> Result<(), Error> {
        transaction.run(statements).await.doing(ACTION).map(drop)
    }
}

fn complete(adoption: &Adoption) -> Result<(), Error> {
    refuse(&adoption.unfit)?;
    if !adoption.missing.is_empty() {
        return Err(Error::AdoptionMissing { table: adoption.table.clone() });
    }
    Ok(())
}

fn refuse(unfit: &[Unfit]) -> Result<(), Error> {
    let reasons: Vec<&str> = unfit.iter().map(|unfit| unfit.reason.as_str()).collect();
    if reasons.is_empty() { Ok(()) } else { Err(Error::Adopted { reason: reasons.join("; ") }) }
}
