//! Who is signed in to the page. In the database, so that a restart signs nobody out and any worker knows them.

use std::time::Duration;

use super::connection::Connection;
use super::sql::{Doing, Row};
use super::{Error, Store};
use crate::crash::Step;

/// A session, by hashes only: nothing that is kept here gives anybody one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The SHA-256 of what the cookie holds, in hexadecimal digits.
    pub session_sha256: String,
    /// The name of the token that signed in.
    pub token_name: String,
    /// What tells whether that token is still the same.
    pub token_mark: String,
}

const ACTION: &str = "keep a session";

impl Store {
    /// Keeps a session for so long, puts the sign-in down in the audit trail, and forgets all sessions that have ended.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn begin_session(&self, session: &Session, length: Duration) -> Result<(), Error> {
        let length = i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
        let write = || async {
            let transaction = self.begin(ACTION).await?;
            let now = self.time(&transaction).await?.unix_millis();
            let ended = self.statement("DELETE FROM sessions WHERE expires_time <= $1", [now.into()]);
            transaction.execute(ended).await.doing(ACTION)?;
            let insert = "INSERT INTO sessions (session_sha256, token_name, token_mark, created_time, expires_time) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT (session_sha256) DO NOTHING";
            let values = [
                session.session_sha256.as_str().into(),
                session.token_name.as_str().into(),
                session.token_mark.as_str().into(),
                now.into(),
                now.saturating_add(length).into(),
            ];
            transaction.execute(self.statement(insert, values)).await.doing(ACTION)?;
            self.deed(&transaction, "sign_in", "page", "done").await?;
            self.commit(transaction, Step::SessionCommit, ACTION).await
        };
        self.in_time(ACTION, self.retrying(write)).await
    }

    /// The session of this hash, unless it has ended.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn session(&self, session_sha256: &str) -> Result<Option<Session>, Error> {
        const ACTION: &str = "look a session up";
        let dialect = self.dialect();
        let select = format!(
            "SELECT {}, {}, {} FROM sessions WHERE session_sha256 = $1 AND expires_time > {}",
            dialect.text("session_sha256"),
            dialect.text("token_name"),
            dialect.text("token_mark"),
            dialect.now(),
        );
        let query = async {
            let found = self.reader().query_one(self.statement(select, [session_sha256.into()])).await.doing(ACTION)?;
            let Some(result) = found else { return Ok(None) };
            let row = Row { result: &result, dialect };
            Ok(Some(Session {
                session_sha256: row.some_text("session_sha256")?,
                token_name: row.some_text("token_name")?,
                token_mark: row.some_text("token_mark")?,
            }))
        };
        self.in_time(ACTION, query).await
    }

    /// Ends a session, and puts that down in the audit trail.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn end_session(&self, session_sha256: &str) -> Result<(), Error> {
        let write = || async {
            let transaction = self.begin(ACTION).await?;
            let delete = self.statement("DELETE FROM sessions WHERE session_sha256 = $1", [session_sha256.into()]);
            if transaction.execute(delete).await.doing(ACTION)?.rows_affected > 0 {
                self.deed(&transaction, "sign_out", "page", "done").await?;
            }
            self.commit(transaction, Step::SessionCommit, ACTION).await
        };
        self.in_time(ACTION, self.retrying(write)).await
    }
}
