//! kinfolk, as an app would use it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::EndpointAddr;
use kinfolk::{Limits, Node, PeerStatus, ProtocolName, Rate, Service};

use crate::raw::SETTLE;
use crate::side::{CHUNK, SMALL, Side};

const OPEN: ProtocolName = ProtocolName::from_static("open/1");
const ECHO: ProtocolName = ProtocolName::from_static("echo/1");
const SINK: ProtocolName = ProtocolName::from_static("sink/1");
const CALL: ProtocolName = ProtocolName::from_static("call/1");

/// The default limits, without those that a benchmark on one machine runs into.
fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.sessions = 4096;
    limits.sessions_inbound = 4096;
    limits.sessions_outbound = 4096;
    // A new connection every few milliseconds is what the cold row is about.
    limits.gate.peer_rate = Rate::new(1_000_000, Duration::from_micros(1));
    // Idle sessions stay for the rows about idle sessions.
    limits.linger = Duration::from_secs(3600);
    limits
}

/// A node on a free port of loopback.
pub async fn spawn(own_thread: bool) -> Node {
    let here = ([127, 0, 0, 1], 0).into();
    let builder = Node::builder("kinfolk-bench").bind_addr(here).limits(limits()).discovery(false);
    let builder = if own_thread { builder.network_thread() } else { builder };
    builder.spawn().await.unwrap()
}

/// A node that serves whoever connects.
pub async fn serve(own_thread: bool) -> Node {
    let node = spawn(own_thread).await;
    let open = Service::stream(|mut stream| async move {
        while stream.recv.read_chunk(CHUNK).await?.is_some() {}
        stream.send.finish()?;
        Ok(())
    });
    let echo = Service::stream(|mut stream| async move {
        while let Some(chunk) = stream.recv.read_chunk(CHUNK).await? {
            stream.send.write_chunk(chunk).await?;
        }
        stream.send.finish()?;
        Ok(())
    });
    let sink = Service::stream(|mut stream| async move {
        let mut read = 0;
        while let Some(chunk) = stream.recv.read_chunk(CHUNK).await? {
            read += chunk.len() as u64;
        }
        stream.send.write_all(&read.to_be_bytes()).await?;
        stream.send.finish()?;
        Ok(())
    });
    let call = Service::call_bytes(|_peer, request| async move { Ok(request.to_vec()) });
    for (name, service) in [(OPEN, open), (ECHO, echo), (SINK, sink), (CALL, call)] {
        node.serve(name, service).await.unwrap();
    }
    node
}

/// The client's end.
#[derive(Debug, Clone)]
pub struct Kinfolk {
    node: Node,
    peer: EndpointAddr,
}

impl Kinfolk {
    /// Connects to a peer that [`serve`]s.
    pub async fn connect(own_thread: bool, peer: EndpointAddr) -> Self {
        let node = spawn(own_thread).await;
        call(&node, &peer).await;
        Self { node, peer }
    }

    /// Ends this end.
    pub async fn shut_down(self) {
        self.node.shutdown().await;
    }
}

/// Sends a request of [`SMALL`] bytes and takes the response; connects if need be.
pub async fn call(node: &Node, peer: &EndpointAddr) {
    let request = [7; SMALL];
    let response = node.call_bytes(peer, CALL, &request, kinfolk::Options::new()).await.unwrap();
    assert_eq!(response.len(), SMALL);
}

impl Side for Kinfolk {
    async fn open(&self) -> Duration {
        let start = Instant::now();
        let (mut send, mut recv) = self.node.open(self.peer.id, OPEN).await.unwrap();
        let took = start.elapsed();
        send.finish().unwrap();
        recv.read_to_end(0).await.unwrap();
        took
    }

    async fn call(&self) -> Duration {
        let start = Instant::now();
        let request = [7; SMALL];
        let options = kinfolk::Options::new();
        let response = self.node.call_bytes(self.peer.id, CALL, &request, options).await.unwrap();
        let took = start.elapsed();
        assert_eq!(response.len(), SMALL);
        took
    }

    async fn eager(&self) -> Duration {
        let start = Instant::now();
        let (mut send, mut recv) = self.node.open_eager(self.peer.id, ECHO).await.unwrap();
        send.write_all(&[7; SMALL]).await.unwrap();
        let mut bytes = [0; SMALL];
        recv.read_exact(&mut bytes).await.unwrap();
        let took = start.elapsed();
        send.finish().unwrap();
        recv.read_to_end(0).await.unwrap();
        took
    }

    async fn push(&self, chunks: usize) -> Duration {
        let chunk = Bytes::from(vec![7; CHUNK]);
        let (mut send, mut recv) = self.node.open(self.peer.id, SINK).await.unwrap();
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
        let mut status = self.node.monitor(self.peer.id).await.unwrap();
        self.node.disconnect(self.peer.id).await.unwrap();
        status.wait_for(|status| !PeerStatus::is_up(status)).await.unwrap();
        while self.node.metrics().await.unwrap().sessions.closing > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(SETTLE).await;
        let start = Instant::now();
        call(&self.node, &self.peer).await;
        start.elapsed()
    }
}
