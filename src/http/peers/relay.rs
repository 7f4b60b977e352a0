//! What another worker answers, as it comes: passed on, or taken apart into the pieces of a run's output.

use std::io;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::header::{HeaderMap, HeaderName};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::actors::AbortOnDrop;
use crate::domain::Timestamp;
use crate::http::sse;
use crate::process::logs::{Page, Piece, Stream};

/// Whoever follows is sent something each 15 s.
const IDLE: Duration = Duration::from_secs(40);
/// More of one answer is not passed on, in bytes; whoever wants the rest asks again from where it ended.
const LONGEST: u64 = 1 << 30;
/// The longest event, in bytes: what is read at once, several times as long in JSON.
const LONGEST_EVENT: usize = 4 << 20;

/// An answer that is being read; dropped, it is not read any further, and the other worker stops.
pub struct Relay {
    headers: HeaderMap,
    body: BodyDataStream,
    left: u64,
    buffer: Vec<u8>,
    _connection: AbortOnDrop,
    _turn: OwnedSemaphorePermit,
}

/// One of the events of a run's output.
#[derive(Debug)]
pub enum Event {
    /// More output.
    Page(Page),
    /// There is no more.
    End,
}

#[derive(Deserialize)]
struct PageJson {
    next_offset: u64,
    pieces: Vec<PieceJson>,
}

#[derive(Deserialize)]
struct PieceJson {
    stream: String,
    offset: u64,
    time: Option<String>,
    dropped: u64,
    text: String,
}

impl Relay {
    pub(super) fn new(headers: HeaderMap, body: Body, connection: AbortOnDrop, turn: OwnedSemaphorePermit) -> Self {
        let (body, buffer) = (body.into_data_stream(), Vec::new());
        Self { headers, body, left: LONGEST, buffer, _connection: connection, _turn: turn }
    }

    /// A number that the other worker has put into a header.
    pub(in crate::http) fn number(&self, name: &HeaderName) -> Option<u64> {
        self.headers.get(name)?.to_str().ok()?.parse().ok()
    }

    /// More of it; `None` at its end. Safe to cancel.
    ///
    /// # Errors
    /// Where the other worker ends it in the middle, says nothing for too long, or does not come to an end.
    pub async fn bytes(&mut self) -> io::Result<Option<Bytes>> {
        let Some(next) = timeout(IDLE, self.body.next()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        else {
            return Ok(None);
        };
        let bytes = next.map_err(io::Error::other)?;
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(Some(bytes))
    }

    /// The next whole event as it is; `None` at the end. Safe to cancel.
    async fn block(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let rest = self.buffer.split_off(end + 2);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest).into()));
            }
            if self.buffer.len() > LONGEST_EVENT {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match self.bytes().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }

    /// The next event; `None` where the other worker has ended it before the run was over. Safe to cancel.
    ///
    /// # Errors
    /// Those of [`Relay::bytes`], and where it is no event.
    pub async fn event(&mut self) -> io::Result<Option<Event>> {
        while let Some(block) = self.block().await? {
            let text = String::from_utf8_lossy(&block);
            let field = |name: &str| {
                let values: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(name)).collect();
                (!values.is_empty()).then(|| values.join("\n"))
            };
            if field("event: ").as_deref() == Some("end") {
                return Ok(Some(Event::End));
            }
            if let Some(data) = field("data: ") {
                let page: PageJson = serde_json::from_str(&data)?;
                return Ok(Some(Event::Page(page.into())));
            }
        }
        Ok(None)
    }
}

impl From<PageJson> for Page {
    fn from(page: PageJson) -> Self {
        let pieces = page.pieces.into_iter().map(|piece| Piece {
            stream: if piece.stream == Stream::Stderr.as_str() { Stream::Stderr } else { Stream::Stdout },
            offset: piece.offset,
            dropped: piece.dropped,
            bytes: piece.text.into_bytes(),
            time: piece
                .time
                .and_then(|time| chrono::DateTime::parse_from_rfc3339(&time).ok())
                .map(|time| Timestamp::from_unix_millis(time.timestamp_millis())),
        });
        Self { pieces: pieces.collect(), next_offset: page.next_offset }
    }
}

impl sse::Source for Relay {
    async fn next(&mut self) -> Option<Bytes> {
        match self.block().await {
            Ok(block) => block,
            // The client comes back, to where the other worker is by then.
            Err(error) => {
                tracing::debug!(%error, "another worker's stream of output ends");
                None
            }
        }
    }
}
