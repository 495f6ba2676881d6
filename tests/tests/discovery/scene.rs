//! Nodes that discover, and waits for what they know.

use std::time::Duration;

use kinfolk::{EndpointId, Limits, Metrics, Node, NodeBuilder, NodeEvent, Peer};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{builder, quick_limits};
use kinfolk_tests::support::wait::{eventually, within};

/// How long news may take on a busy machine; it takes milliseconds on an idle one.
pub const SOON: Duration = Duration::from_secs(20);

/// A builder of a node with this key that discovers.
pub fn discovering(key: u8) -> NodeBuilder {
    builder(key).discovery(true)
}

/// A node with this key that knows nobody.
pub async fn alone(key: u8) -> Node {
    discovering(key).spawn().await.expect("it starts")
}

/// A node with this key that knows where another one is.
pub async fn from(key: u8, bootstrap: impl Into<Peer>) -> Node {
    discovering(key).bootstrap(bootstrap).spawn().await.expect("it starts")
}

/// Whether a node has the record of another.
pub fn knows(node: &Node, peer: EndpointId) -> bool {
    node.catalog().get(&peer).is_some()
}

/// Waits until each node knows all others.
pub async fn all_know_all(nodes: &[Node]) {
    for node in nodes {
        eventually(SOON, "each knows all others", async || {
            nodes.iter().all(|other| other.id() == node.id() || knows(node, other.id()))
        })
        .await;
    }
}

/// Whether an exchange begins.
pub fn is_started(event: &NodeEvent) -> bool {
    matches!(event, NodeEvent::ExchangeStarted { .. })
}

/// Waits until no exchange begins at the node for a while.
pub async fn falls_silent(node: &Node) {
    let mut log = EventLog::of(node).await;
    within(SOON * 2, "silence", async {
        loop {
            let before = log.count(is_started);
            tokio::time::sleep(Duration::from_secs(1)).await;
            if log.count(is_started) == before {
                return;
            }
        }
    })
    .await;
}

/// Shuts all nodes down.
pub async fn over(nodes: impl IntoIterator<Item = Node>) {
    let ends = nodes.into_iter().map(|node| tokio::spawn(async move { node.shutdown().await }));
    for end in ends.collect::<Vec<_>>() {
        end.await.expect("it shuts down");
    }
}

/// Limits under which a silent peer is given up soon, and a stranger that has no word for a goodbye keeps nobody.
pub fn short_silence() -> Limits {
    let mut limits = quick_limits();
    limits.drain_deadline = Duration::from_millis(300);
    limits.exchange.silence = Duration::from_secs(1);
    limits
}

/// A number of the node, zero if it is not there.
pub async fn count(node: &Node, read: impl Fn(&Metrics) -> Option<u64>) -> u64 {
    read(&node.metrics().await.expect("it runs")).unwrap_or(0)
}

/// Waits until announcements go between the node and so many others.
pub async fn has_neighbours(node: &Node, neighbours: u64) {
    eventually(SOON, "neighbours", async || {
        count(node, |metrics| u64::try_from(metrics.discovery.neighbours).ok()).await == neighbours
    })
    .await;
}

/// As [`short_silence`]; and walkers that are woken visit somebody, and then rest for longer than any test takes.
pub fn resting() -> Limits {
    let mut limits = short_silence();
    let day = Duration::from_hours(24);
    (limits.walk.first_wait, limits.walk.longest_wait) = (day, day);
    limits
}
