//! Nodes that discover, and waits for what they know.

use std::time::Duration;

use kinfolk::{EndpointId, Limits, Metrics, Node, NodeBuilder, Peer};
use kinfolk_tests::support::node::{builder, quick_limits};
use kinfolk_tests::support::wait::eventually;

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
