//! A worker's way to whichever PostgreSQL is the primary: an address of its own that stays when that changes.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// What is done to what passes; for machines where the kernel may not be told to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Nothing goes from the worker to the server.
    pub out_held: bool,
    /// Nothing comes back.
    pub in_held: bool,
    /// How long each piece takes, each way.
    pub delay: Duration,
}

/// A TCP proxy before a server's Unix socket; clones are the same one.
#[derive(Clone, Debug)]
pub struct Wire {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: watch::Sender<PathBuf>,
    weather: watch::Sender<Weather>,
}

impl Wire {
    /// Listens on this address of the machine's.
    pub async fn to(server: PathBuf, address: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared =
            Arc::new(Shared { server: watch::Sender::new(server), weather: watch::Sender::new(Weather::default()) });
        tokio::spawn(listen(listener, Arc::clone(&shared)));
        Self { port, shared }
    }

    /// Leads to another server from now on; what is connected with the old one is cut.
    pub fn switch(&self, server: PathBuf) {
        self.shared.server.send_replace(server);
    }

    pub fn set(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let mut server = shared.server.subscribe();
            let path = server.borrow_and_update().clone();
            tokio::select! {
                _ = pass(client, path, &shared.weather) => {}
                _ = server.changed() => {}
            }
        });
    }
}

async fn pass(client: TcpStream, server: PathBuf, weather: &watch::Sender<Weather>) -> io::Result<()> {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = UnixStream::connect(server).await?.into_split();
    tokio::select! {
        ended = carry(from_client, to_server, weather, |weather| weather.out_held) => ended,
        ended = carry(from_server, to_client, weather, |weather| weather.in_held) => ended,
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    weather: &watch::Sender<Weather>,
    held: impl Fn(&Weather) -> bool,
) -> io::Result<()> {
    let (mut weather, mut piece) = (weather.subscribe(), vec![0; 64 * 1024]);
    loop {
        let length = from.read(&mut piece).await?;
        let delay = weather.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // As TCP would, it comes late.
        if weather.wait_for(|weather| !held(weather)).await.is_err() || length == 0 {
            return Ok(());
        }
        to.write_all(&piece[..length]).await?;
    }
}
