//! iroh alone, as an app would use it: a task per connection, a task per stream.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use iroh::{Endpoint, EndpointAddr};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::bare;
use crate::side::{CHUNK, SMALL, Side};

/// How long a closed connection is left to end before the next is opened.
pub const SETTLE: Duration = Duration::from_millis(10);

/// What a stream asks for, said by its first byte.
const OPEN: u8 = 1;
const CALL: u8 = 2;
const ECHO: u8 = 3;
const SINK: u8 = 4;

/// A thread with a single-threaded runtime, which ends with the last clone: what an app would do by hand to keep the network off its
/// own runtime.
#[derive(Debug, Clone)]
pub struct NetworkThread {
    runtime: Handle,
    _stop: Arc<oneshot::Sender<()>>,
}

impl NetworkThread {
    /// Starts the thread.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        std::thread::spawn(move || runtime.block_on(stopped));
        Self { runtime: handle, _stop: Arc::new(stop) }
    }
}

/// Runs the future on the network's thread if there is one.
async fn on<T, F>(network: &Option<NetworkThread>, future: F) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    match network {
        Some(network) => network.runtime.spawn(future).await.unwrap(),
        None => future.await,
    }
}

/// An endpoint on a free port of loopback.
pub async fn bind(network: &Option<NetworkThread>) -> Endpoint {
    on(network, bare::bind()).await
}

/// An endpoint that serves whoever connects; its loop keeps the thread until the endpoint is closed.
pub async fn serve(network: &Option<NetworkThread>) -> Endpoint {
    let endpoint = bind(network).await;
    let accepting = accept(endpoint.clone(), network.clone());
    match network {
        Some(network) => network.runtime.spawn(accepting),
        None => tokio::spawn(accepting),
    };
    endpoint
}

async fn accept(endpoint: Endpoint, _network: Option<NetworkThread>) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, recv)) = connection.accept_bi().await {
                // A client that goes away in the middle ends its stream, and that is all.
                tokio::spawn(async move { answer(send, recv).await.ok() });
            }
        });
    }
}

async fn answer(
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(first) = recv.read_chunk(CHUNK).await? else { return Ok(()) };
    match first[0] {
        OPEN => {
            send.write_all(&first).await?;
            recv.read_to_end(0).await?;
        }
        CALL => {
            let rest = recv.read_to_end(SMALL).await?;
            send.write_all(&[&first, &rest[..]].concat()).await?;
        }
        ECHO => {
            send.write_chunk(first).await?;
            while let Some(chunk) = recv.read_chunk(CHUNK).await? {
                send.write_chunk(chunk).await?;
            }
        }
        _ => {
            let mut read = first.len();
            while let Some(chunk) = recv.read_chunk(CHUNK).await? {
                read += chunk.len();
            }
            send.write_all(&(read as u64).to_be_bytes()).await?;
        }
    }
    send.finish()?;
    Ok(())
}

/// The client's end.
#[derive(Debug, Clone)]
pub struct Raw {
    endpoint: Endpoint,
    network: Option<NetworkThread>,
    peer: EndpointAddr,
    connection: Arc<Mutex<Connection>>,
}

impl Raw {
    /// Connects to a peer that [`serve`]s.
    pub async fn connect(network: Option<NetworkThread>, peer: EndpointAddr) -> Self {
        let endpoint = bind(&network).await;
        let connection = dial(&endpoint, &network, peer.clone()).await;
        Self { endpoint, network, peer, connection: Arc::new(Mutex::new(connection)) }
    }

    /// Ends this end.
    pub async fn shut_down(self) {
        self.endpoint.close().await;
    }

    fn connection(&self) -> Connection {
        self.connection.lock().unwrap().clone()
    }
}

/// Connects on the network's thread, where the task that drives the connection then runs too.
pub async fn dial(
    endpoint: &Endpoint,
    network: &Option<NetworkThread>,
    peer: EndpointAddr,
) -> Connection {
    let endpoint = endpoint.clone();
    on(network, async move { bare::connect(&endpoint, peer).await }).await
}

/// Opens a stream and sends a request of [`SMALL`] bytes with an end.
pub async fn call(connection: &Connection) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&[CALL; SMALL]).await.unwrap();
    send.finish().unwrap();
    assert_eq!(recv.read_to_end(SMALL).await.unwrap().len(), SMALL);
}

impl Side for Raw {
    async fn open(&self) -> Duration {
        let connection = self.connection();
        let start = Instant::now();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&[OPEN]).await.unwrap();
        let mut byte = [0];
        recv.read_exact(&mut byte).await.unwrap();
        let took = start.elapsed();
        send.finish().unwrap();
        recv.read_to_end(0).await.unwrap();
        took
    }

    async fn call(&self) -> Duration {
        let connection = self.connection();
        let start = Instant::now();
        call(&connection).await;
        start.elapsed()
    }

    async fn eager(&self) -> Duration {
        let connection = self.connection();
        let start = Instant::now();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&[ECHO; SMALL]).await.unwrap();
        let mut bytes = [0; SMALL];
        recv.read_exact(&mut bytes).await.unwrap();
        let took = start.elapsed();
        send.finish().unwrap();
        recv.read_to_end(0).await.unwrap();
        took
    }

    async fn push(&self, chunks: usize) -> Duration {
        let connection = self.connection();
        let chunk = Bytes::from(vec![SINK; CHUNK]);
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let start = Instant::now();
        for _ in 0..chunks {
            send.write_chunk(chunk.clone()).await.unwrap();
        }
        send.finish().unwrap();
        let read = recv.read_to_end(8).await.unwrap();
        let took = start.elapsed();
        assert_eq!(u64::from_be_bytes(read.try_into().unwrap()), (chunks * CHUNK) as u64);
        took
    }

    async fn cold(&self) -> Duration {
        self.connection().close(VarInt::from_u32(0), b"");
        tokio::time::sleep(SETTLE).await;
        let start = Instant::now();
        let connection = dial(&self.endpoint, &self.network, self.peer.clone()).await;
        call(&connection).await;
        let took = start.elapsed();
        *self.connection.lock().unwrap() = connection;
        took
    }
}
