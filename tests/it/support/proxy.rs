//! What a network does to a connection with PostgreSQL: a TCP proxy that refuses, hangs, cuts, and knows a COMMIT.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// What the proxy does to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Passes everything on.
    Fair,
    /// Nobody listens, and no connection is left.
    Refused,
    /// Connections stay, and nothing comes through.
    Hanging,
}

/// A proxy before a server's Unix socket; it ends with its test.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: PathBuf,
    weather: watch::Sender<Weather>,
    /// How many connections there are.
    open: watch::Sender<usize>,
    /// Raised to cut every connection.
    cuts: watch::Sender<u64>,
    /// Cut between the next COMMIT of a transaction with such a statement in it and its answer.
    wanted: Mutex<Option<String>>,
    commits_cut: watch::Sender<usize>,
    /// Hang where the next such statement is asked for.
    halts_at: Mutex<Option<String>>,
    halted: watch::Sender<usize>,
}

impl Proxy {
    pub async fn start(server: PathBuf) -> Self {
        // One of its own, so that nobody else gets it while the proxy refuses.
        let address = super::own_address();
        let listener = TcpListener::bind(address).await.unwrap();
        let shared = Arc::new(Shared {
            server,
            weather: watch::Sender::new(Weather::Fair),
            open: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
            wanted: Mutex::default(),
            commits_cut: watch::Sender::new(0),
            halts_at: Mutex::default(),
            halted: watch::Sender::new(0),
        });
        tokio::spawn(listen(listener, address, Arc::clone(&shared)));
        Self { address, shared }
    }

    /// The URL of the server's database `test` through here.
    pub fn url(&self) -> String {
        format!("postgres://callsheet@{}/test?sslmode=disable", self.address)
    }

    pub fn set(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Cuts every connection, wherever it is.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// The same, and returns when no connection is left.
    pub async fn cut_all(&self) {
        self.cut();
        self.shared.open.subscribe().wait_for(|open| *open == 0).await.unwrap();
    }

    /// Has the next COMMIT of a transaction with a statement that contains this succeed, and its answer lost.
    pub fn lose_answer_to_commit_of(&self, statement: &str) {
        *self.shared.wanted.lock().unwrap() = Some(statement.to_owned());
    }

    /// Has the next statement that contains this executed, and nothing more come through on its connection, which stays.
    pub fn halt_at(&self, statement: &str) {
        *self.shared.halts_at.lock().unwrap() = Some(statement.to_owned());
    }

    /// How many connections were halted so.
    pub fn halted(&self) -> usize {
        *self.shared.halted.borrow()
    }

    /// How many answers were lost so.
    pub fn commits_cut(&self) -> usize {
        *self.shared.commits_cut.borrow()
    }
}

async fn listen(listener: TcpListener, address: SocketAddr, shared: Arc<Shared>) {
    let mut listener = Some(listener);
    let mut weather = shared.weather.subscribe();
    loop {
        match &listener {
            Some(open) => tokio::select! {
                accepted = open.accept() => {
                    if let Ok((client, _)) = accepted {
                        tokio::spawn(serve(client, Arc::clone(&shared)));
                    }
                }
                _ = weather.changed() => if *weather.borrow_and_update() == Weather::Refused {
                    listener = None;
                }
            },
            None => {
                if weather.wait_for(|weather| *weather != Weather::Refused).await.is_err() {
                    return;
                }
                listener = TcpListener::bind(address).await.ok();
            }
        }
    }
}

async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let (mut cuts, mut weather) = (shared.cuts.subscribe(), shared.weather.subscribe());
    cuts.borrow_and_update();
    shared.open.send_modify(|open| *open += 1);
    let refused = async { weather.wait_for(|weather| *weather == Weather::Refused).await.is_ok() };
    tokio::select! {
        _ = pass(client, &shared) => {}
        _ = cuts.changed() => {}
        _ = refused => {}
    }
    // The connection went with what was passed on.
    shared.open.send_modify(|open| *open -= 1);
}

/// Passes messages on until either side ends, or an answer is to be lost.
async fn pass(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut server = UnixStream::connect(Path::new(&shared.server)).await?;
    let mut weather = shared.weather.subscribe();
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut talk = Talk::default();
    loop {
        if weather.wait_for(|weather| *weather != Weather::Hanging).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            read = client.read(&mut asked) => {
                let length = read?;
                let lose = talk.hear(&asked[..length], &shared.wanted);
                server.write_all(&asked[..length]).await?;
                if length == 0 {
                    return Ok(());
                }
                if talk.has_asked_for(&shared.halts_at) {
                    shared.halted.send_modify(|halted| *halted += 1);
                    std::future::pending::<()>().await;
                }
                if lose {
                    // Until ReadyForQuery: it is committed, and nobody will hear of it.
                    let mut last = Vec::new();
                    while !last.ends_with(b"Z\0\0\0\x05I") {
                        let length = server.read(&mut answered).await?;
                        if length == 0 {
                            return Ok(());
                        }
                        last.extend_from_slice(&answered[..length]);
                    }
                    shared.commits_cut.send_modify(|cut| *cut += 1);
                    return Ok(());
                }
            }
            read = server.read(&mut answered) => {
                let length = read?;
                if length == 0 {
                    return Ok(());
                }
                client.write_all(&answered[..length]).await?;
            }
        }
    }
}

/// What the client has said: <https://www.postgresql.org/docs/15/protocol-message-formats.html>.
#[derive(Default)]
struct Talk {
    unread: Vec<u8>,
    introduced: bool,
    prepared: HashMap<Vec<u8>, String>,
    /// The statements of the open transaction.
    statements: Vec<String>,
}

impl Talk {
    /// Whether a COMMIT was heard whose answer is to be lost.
    fn hear(&mut self, bytes: &[u8], wanted: &Mutex<Option<String>>) -> bool {
        self.unread.extend_from_slice(bytes);
        let mut lose = false;
        loop {
            let head = usize::from(self.introduced);
            let Some(length) = self.unread.get(head..head + 4) else { return lose };
            let end = head + usize::try_from(u32::from_be_bytes(length.try_into().unwrap())).unwrap();
            if self.unread.len() < end {
                return lose;
            }
            let message: Vec<u8> = self.unread.drain(..end).collect();
            if std::mem::replace(&mut self.introduced, true) {
                lose |= self.understand(message[0], &message[5..], wanted);
            }
        }
    }

    /// Whether the last statement is the wanted one, which is then not wanted any more.
    fn has_asked_for(&self, wanted: &Mutex<Option<String>>) -> bool {
        let mut wanted = wanted.lock().unwrap();
        let asked =
            wanted.as_ref().is_some_and(|wanted| self.statements.last().is_some_and(|sql| sql.contains(wanted)));
        if asked {
            *wanted = None;
        }
        asked
    }

    fn understand(&mut self, kind: u8, body: &[u8], wanted: &Mutex<Option<String>>) -> bool {
        let mut texts = body.split(|byte| *byte == 0);
        let mut text = || texts.next().unwrap_or_default().to_vec();
        match kind {
            b'P' => {
                let (name, sql) = (text(), text());
                self.prepared.insert(name, String::from_utf8_lossy(&sql).into_owned());
            }
            b'B' => {
                let (_portal, name) = (text(), text());
                self.statements.extend(self.prepared.get(&name).cloned());
            }
            b'Q' => {
                let sql = String::from_utf8_lossy(&text()).to_uppercase();
                if sql.starts_with("BEGIN") || sql.starts_with("ROLLBACK") {
                    self.statements.clear();
                } else if sql.starts_with("COMMIT") {
                    let statements = std::mem::take(&mut self.statements);
                    let mut wanted = wanted.lock().unwrap();
                    let meant = |wanted: &String| statements.iter().any(|sql| sql.contains(wanted));
                    if wanted.as_ref().is_some_and(meant) {
                        *wanted = None;
                        return true;
                    }
                }
            }
            _ => {}
        }
        false
    }
}
