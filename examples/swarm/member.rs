//! One node of the swarm in one of its lives: how it starts, what it serves, what it asks of others, and how it vanishes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kinfolk::error::SpawnError;
use kinfolk::{
    EndpointAddr, EndpointId, Hold, Limits, Metrics, Node, NodeBuilder, ProtocolName, RecvStream,
    SecretKey, SendStream, Service,
};
use kinfolk_examples::Error;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// Answers a number with its double, and says who answers.
const DOUBLE: ProtocolName = ProtocolName::from_static("swarm/double/1");
/// Sends back what it gets.
const ECHO: ProtocolName = ProtocolName::from_static("swarm/echo/1");
/// How many bytes each stream carries each way.
pub const STREAM_BYTES: usize = 4096;

/// How long a port may stay taken by a node that has ended.
const PORT_FREE: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
struct Question {
    number: u64,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    by: usize,
    double: u64,
}

/// Bounds for a demonstration: patient enough for a busy machine, and quick to see that a peer has vanished.
fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.idle_timeout = Duration::from_secs(5);
    limits.keep_alive = Duration::from_millis(1500);
    limits.linger = Duration::from_secs(10);
    limits
}

/// A node, from its start to its end. Clones are the same node in the same life.
#[derive(Clone)]
pub struct Member {
    pub index: usize,
    pub node: Node,
    asked: Arc<Asked>,
}

/// How often the node was asked for something, to be compared with the outcomes that it counts.
#[derive(Default)]
struct Asked {
    streams: AtomicU64,
    holds: AtomicU64,
}

/// What a life of a node left behind.
pub struct Life {
    pub index: usize,
    /// Calls and opens that it was asked for.
    pub streams: u64,
    /// Holds that it was asked for.
    pub holds: u64,
    pub metrics: Metrics,
}

/// The thread of a node that may vanish.
pub struct Apart {
    vanish: oneshot::Sender<()>,
    gone: oneshot::Receiver<()>,
}

impl Apart {
    /// Lets the node vanish: nothing of it runs on, and nothing says goodbye.
    pub async fn vanish(self) {
        let _ = self.vanish.send(());
        let _ = self.gone.await;
    }
}

fn builder(key: &SecretKey, bind: SocketAddr, bootstrap: Option<&EndpointAddr>) -> NodeBuilder {
    let builder = Node::builder("kinfolk-swarm").secret_key(key.clone()).bind_addr(bind);
    let builder = builder.limits(limits());
    match bootstrap {
        Some(address) => builder.bootstrap(address.clone()),
        None => builder,
    }
}

impl Member {
    /// Starts a node with this key on this address, which knows where one other is, or nobody.
    pub async fn start(
        index: usize,
        key: &SecretKey,
        bind: SocketAddr,
        bootstrap: Option<&EndpointAddr>,
    ) -> Result<Self, Error> {
        let builder = builder(key, bind, bootstrap);
        let began = Instant::now();
        let node = loop {
            match builder.clone().spawn().await {
                // The system has the port back only some milliseconds after the node that had it.
                Err(SpawnError::Bind(_)) if began.elapsed() < PORT_FREE => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                started => break started?,
            }
        };
        Self::serving(index, node).await
    }

    /// Starts a node whose tasks all run on a thread of its own, so that they can all stop at once in the middle of whatever they do.
    pub async fn start_apart(
        index: usize,
        key: &SecretKey,
        bind: SocketAddr,
        bootstrap: Option<&EndpointAddr>,
    ) -> Result<(Self, Apart), Error> {
        let builder = builder(key, bind, bootstrap);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (ready, started) = oneshot::channel();
        let (vanish, vanished) = oneshot::channel();
        let (last_word, gone) = oneshot::channel();
        std::thread::Builder::new().name("apart".to_owned()).spawn(move || {
            runtime.block_on(async {
                let _ = ready.send(builder.spawn().await);
                let _ = vanished.await;
            });
            // Drops every task where it stands. What they would still want to send, nobody is left to send.
            runtime.shutdown_background();
            let _ = last_word.send(());
        })?;
        let member = Self::serving(index, started.await??).await?;
        Ok((member, Apart { vanish, gone }))
    }

    async fn serving(index: usize, node: Node) -> Result<Self, Error> {
        let double = Service::call(move |_peer, question: Question| async move {
            Ok(Answer { by: index, double: question.number.wrapping_mul(2) })
        });
        let echo = Service::stream(|mut stream| async move {
            while let Some(chunk) = stream.recv.read_chunk(64 * 1024).await? {
                stream.send.write_chunk(chunk).await?;
            }
            stream.send.finish()?;
            Ok(())
        });
        node.serve(DOUBLE, double).await?;
        node.serve(ECHO, echo).await?;
        Ok(Self { index, node, asked: Arc::default() })
    }

    pub fn id(&self) -> EndpointId {
        self.node.id()
    }

    /// How many other nodes it knows by now.
    pub fn known(&self) -> usize {
        self.node.catalog().len()
    }

    /// Stays connected to a peer.
    pub fn hold(&self, peer: &Self) -> Hold {
        self.asked.holds.fetch_add(1, Ordering::Relaxed);
        self.node.hold(peer.id())
    }

    /// Calls a peer and checks its answer. The call may be repeated if the first answer was lost.
    pub async fn call(&self, peer: usize, id: EndpointId) -> Result<(), Error> {
        self.asked.streams.fetch_add(1, Ordering::Relaxed);
        let options = kinfolk::Options::new().idempotent();
        let number = self.index as u64;
        let answer: Answer =
            self.node
                .call_with(id, DOUBLE, &Question { number }, options)
                .await
                .map_err(|error| format!("node {} called node {peer}: {error}", self.index))?;
        if answer.by != peer || answer.double != number * 2 {
            return Err(format!("node {} got a wrong answer of node {peer}", self.index).into());
        }
        Ok(())
    }

    /// Opens a stream to a peer, sends a few kilobytes and checks what comes back.
    pub async fn stream(&self, peer: usize, id: EndpointId) -> Result<(), Error> {
        let mut echo = self.open(peer, id).await?;
        echo.send_half().await?;
        echo.finish().await
    }

    /// Opens a stream that is not used yet.
    pub async fn open(&self, peer: usize, id: EndpointId) -> Result<Echo, Error> {
        self.asked.streams.fetch_add(1, Ordering::Relaxed);
        let (send, recv) = self.node.open(id, ECHO).await.map_err(|error| {
            format!("node {} opened a stream to node {peer}: {error}", self.index)
        })?;
        let payload =
            (0..STREAM_BYTES).map(|at| (at ^ self.index ^ (at >> 8) ^ peer) as u8).collect();
        Ok(Echo { pair: (self.index, peer), payload, send, recv })
    }

    /// What the node counts now, beside what it was asked for.
    pub async fn life(&self) -> Result<Life, Error> {
        Ok(Life {
            index: self.index,
            streams: self.asked.streams.load(Ordering::Relaxed),
            holds: self.asked.holds.load(Ordering::Relaxed),
            metrics: self.node.metrics().await?,
        })
    }
}

/// A stream to a peer that sends back what it gets.
pub struct Echo {
    pair: (usize, usize),
    payload: Vec<u8>,
    send: SendStream,
    recv: RecvStream,
}

impl Echo {
    /// Sends the first half and waits for it to come back.
    pub async fn send_half(&mut self) -> Result<(), Error> {
        let half = STREAM_BYTES / 2;
        let mut back = vec![0; half];
        let exchange = async {
            self.send.write_all(&self.payload[..half]).await?;
            self.recv.read_exact(&mut back).await
        };
        exchange.await.map_err(|error| blame(self.pair, &error))?;
        if back != self.payload[..half] {
            Err(blame(self.pair, &"other bytes came back"))
        } else {
            Ok(())
        }
    }

    /// Sends the rest, and reads to the end.
    pub async fn finish(mut self) -> Result<(), Error> {
        let half = STREAM_BYTES / 2;
        let exchange = async {
            self.send.write_all(&self.payload[half..]).await?;
            self.send.finish()?;
            self.recv.read_to_end(STREAM_BYTES).await
        };
        let back = exchange.await.map_err(|error| blame(self.pair, &error))?;
        if back != self.payload[half..] {
            Err(blame(self.pair, &"other bytes came back"))
        } else {
            Ok(())
        }
    }
}

fn blame((from, to): (usize, usize), what: &dyn std::fmt::Display) -> Error {
    format!("stream from node {from} to node {to}: {what}").into()
}
