//! Networks of many nodes in one process, and what they have in common: who knows whom, and their numbers in sum.

use std::time::{Duration, Instant};

use iroh::RelayMode;
use iroh::endpoint::{self, Endpoint, presets};
use kinfolk::{EndpointAddr, Metrics, Node, NodeBuilder};
use tokio::task::JoinSet;

/// How often it is looked whether all is known. A look takes some 10 µs.
const LOOK: Duration = Duration::from_millis(1);

/// After this time a run is over, whether or not all is known.
const PATIENCE: Duration = Duration::from_secs(60);

/// A builder of a node on a free port of loopback.
pub fn builder() -> NodeBuilder {
    Node::builder("kinfolk-bench").bind_addr(([127, 0, 0, 1], 0).into())
}

/// A builder of an endpoint of iroh alone, on a free port of loopback.
pub fn endpoint() -> endpoint::Builder {
    let builder = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled);
    builder.clear_ip_transports().bind_addr("127.0.0.1:0").unwrap()
}

/// Starts a node that nobody tells of others.
pub async fn first() -> Node {
    builder().spawn().await.unwrap()
}

/// Starts nodes beside each other that all know this one.
pub async fn others(count: usize, bootstrap: &EndpointAddr) -> Vec<Node> {
    let mut starts = JoinSet::new();
    for _ in 0..count {
        let builder = builder().bootstrap(bootstrap.clone());
        starts.spawn(async move { builder.spawn().await.unwrap() });
    }
    starts.join_all().await
}

/// Waits until each of the nodes knows so many others. False if that takes too long.
pub async fn all_know(nodes: &[Node], others: usize) -> bool {
    let start = Instant::now();
    let mut left: Vec<&Node> = nodes.iter().collect();
    loop {
        left.retain(|node| node.catalog().len() < others);
        if left.is_empty() || start.elapsed() > PATIENCE {
            return left.is_empty();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until all nodes know this one. False if that takes too long.
pub async fn all_know_one(nodes: &[Node], one: &Node) -> bool {
    let start = Instant::now();
    let mut left: Vec<&Node> = nodes.iter().collect();
    loop {
        left.retain(|node| node.catalog().get(&one.id()).is_none());
        if left.is_empty() || start.elapsed() > PATIENCE {
            return left.is_empty();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Numbers of all nodes in sum.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Dials started.
    pub dials: f64,
    /// Dials that failed or lost against another link.
    pub dials_failed: f64,
    /// Handshakes, counted where they come in.
    pub handshakes: f64,
    /// Exchanges that ended, each counted at both sides.
    pub exchanges: f64,
    /// Those of them that went to their end.
    pub complete: f64,
    /// Signatures checked.
    pub signatures: f64,
    /// Streams between announcers.
    pub announce_streams: f64,
    /// Bytes of exchanges.
    pub exchange_bytes: f64,
    /// Bytes of announcements.
    pub announce_bytes: f64,
    /// Live sessions, and those of the node with most.
    pub sessions: f64,
    /// The most live sessions of one node.
    pub sessions_most: f64,
    /// Neighbours.
    pub neighbours: f64,
}

/// The metrics of all nodes.
pub async fn metrics(nodes: &[Node]) -> Vec<Metrics> {
    let mut all = Vec::new();
    for node in nodes {
        all.push(node.metrics().await.unwrap());
    }
    all
}

impl Counts {
    /// The numbers of these nodes.
    pub async fn of(nodes: &[Node]) -> Self {
        let mut counts = Self::default();
        for metrics in metrics(nodes).await {
            let discovery = &metrics.discovery;
            let sum = |counts: &std::collections::BTreeMap<&str, u64>| {
                counts.values().sum::<u64>() as f64
            };
            counts.dials += metrics.dials_started as f64;
            counts.dials_failed += sum(&metrics.dials_failed);
            counts.handshakes += metrics.incoming_accepted as f64;
            counts.exchanges += sum(&discovery.exchanges);
            counts.complete += discovery.exchanges.get("complete").copied().unwrap_or(0) as f64;
            counts.signatures += discovery.signatures_checked as f64;
            if let Some(exchange) = metrics.protocols.get("kinfolk/exchange/1") {
                counts.exchange_bytes += exchange.bytes_sent as f64;
            }
            if let Some(announce) = metrics.protocols.get("kinfolk/announce/1") {
                counts.announce_streams += announce.opened as f64;
                counts.announce_bytes += announce.bytes_sent as f64;
            }
            counts.sessions += metrics.sessions.live as f64;
            counts.sessions_most = counts.sessions_most.max(metrics.sessions.live as f64);
            counts.neighbours += discovery.neighbours as f64;
        }
        counts
    }

    /// What was counted since then.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            dials: self.dials - before.dials,
            dials_failed: self.dials_failed - before.dials_failed,
            handshakes: self.handshakes - before.handshakes,
            exchanges: self.exchanges - before.exchanges,
            complete: self.complete - before.complete,
            signatures: self.signatures - before.signatures,
            announce_streams: self.announce_streams - before.announce_streams,
            exchange_bytes: self.exchange_bytes - before.exchange_bytes,
            announce_bytes: self.announce_bytes - before.announce_bytes,
            ..*self
        }
    }
}
