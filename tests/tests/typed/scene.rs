//! Producers and consumers on nodes that discover each other, and what they have sent and received.

use std::time::Duration;

use kinfolk::{
    Consumer, EndpointId, Item, Limits, Node, NodeBuilder, Peer, Producer, ProducerBuilder,
    Received, Schema, SourceState, SourceStatus, StreamEnd, Termination,
};
use kinfolk_tests::support::impair::Pair;
use kinfolk_tests::support::node::{builder, quick_limits, relay};
use kinfolk_tests::support::wait::{eventually, within};
use serde::{Deserialize, Serialize};

/// How long news may take on a busy machine; it takes milliseconds on an idle one.
pub const SOON: Duration = Duration::from_secs(20);

/// The stream that tests use unless they need another one.
pub const TICKS: &str = "ticks";

/// For how long a sender that has to wait is watched: what has room goes out within microseconds.
const STANDS: Duration = Duration::from_millis(500);

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    pub n: u64,
    pub filling: String,
}

impl Item for Tick {
    const SCHEMA: Schema = Schema::new("tick", 1);
}

/// A tick of a few bytes.
pub fn tick(n: u64) -> Tick {
    Tick { n, filling: String::new() }
}

/// A tick of about a kibibyte.
pub fn kibi(n: u64) -> Tick {
    Tick { n, filling: "x".repeat(1020) }
}

/// Limits under which a consumer that does not read is felt soon.
pub fn narrow() -> Limits {
    let mut limits = quick_limits();
    limits.stream_window = 16 * 1024;
    limits
}

/// A builder of a node with this key that discovers.
pub fn discovering(key: u8) -> NodeBuilder {
    builder(key).discovery(true).limits(narrow())
}

/// A node with this key that knows nobody.
pub async fn alone(key: u8) -> Node {
    discovering(key).spawn().await.expect("it starts")
}

/// A node with this key that knows where another one is.
pub async fn from(key: u8, bootstrap: impl Into<Peer>) -> Node {
    discovering(key).bootstrap(bootstrap).spawn().await.expect("it starts")
}

/// Two nodes of which the second knows the first.
pub async fn pair() -> (Node, Node) {
    let alice = alone(1).await;
    let bob = from(2, alice.addr()).await;
    (alice, bob)
}

/// Two nodes that know each other, and a network between them that a test may spoil.
pub async fn apart() -> (Node, Node, Pair) {
    let (alice, bob) = (alone(1).await, alone(2).await);
    let network = relay(1, &alice, &bob);
    meet(&alice, &bob).await;
    (alice, bob, network)
}

/// Two nodes that know where the other one is learn what it offers.
pub async fn meet(alice: &Node, bob: &Node) {
    eventually(SOON, "they meet", async || {
        bob.sync_with(alice.id()).await.is_ok() && alice.catalog().get(&bob.id()).is_some()
    })
    .await;
}

pub async fn produced(builder: ProducerBuilder<Tick>) -> Producer<Tick> {
    builder.await.expect("a producer")
}

pub async fn producer(node: &Node) -> Producer<Tick> {
    produced(node.producer(TICKS)).await
}

pub async fn consumer(node: &Node) -> Consumer<Tick> {
    node.consumer(TICKS).await.expect("a consumer")
}

/// A producer whose log holds some 16 items of a kibibyte.
pub fn small(node: &Node) -> ProducerBuilder<Tick> {
    node.producer(TICKS).item_max(2 * 1024).keep_bytes(16 * 1024)
}

/// A consumer with room for one item of a kibibyte or two.
pub async fn tight(node: &Node) -> Consumer<Tick> {
    node.consumer(TICKS).buffer(2 * 1024).await.expect("a consumer")
}

/// Waits until so many consumers are subscribed.
pub async fn subscribed(producer: &Producer<Tick>, consumers: usize) {
    let subscribed = producer.when_subscribed(consumers);
    within(SOON, "subscribers", subscribed).await.expect("it is up");
}

/// Waits until so many are subscribed and no more.
pub async fn exactly(producer: &Producer<Tick>, consumers: usize) {
    eventually(SOON, &format!("{consumers} subscribers"), async || {
        producer.consumers().len() == consumers
    })
    .await;
}

pub async fn online(consumer: &Consumer<Tick>, sources: usize) {
    within(SOON, "sources", consumer.when_online(sources)).await.expect("it is up");
}

/// Sends ticks with these numbers.
pub async fn send(producer: &Producer<Tick>, numbers: std::ops::Range<u64>) {
    for n in numbers {
        within(SOON, "room", producer.send(&tick(n))).await.expect("sent");
    }
}

/// Sends items of a kibibyte, from this number on, until there is no room for one; the number of that.
pub async fn fill(producer: &Producer<Tick>, mut n: u64) -> u64 {
    while let Ok(sent) = tokio::time::timeout(STANDS, producer.send(&kibi(n))).await {
        sent.expect("sent");
        n += 1;
        assert!(n < 10_000, "there is always room");
    }
    n
}

/// What comes next.
pub async fn next(consumer: &mut Consumer<Tick>) -> Received<Tick> {
    within(SOON, "something received", consumer.recv()).await.expect("the node is up")
}

/// The next tick, its source and its number at its producer.
pub async fn item(consumer: &mut Consumer<Tick>) -> (EndpointId, u64, Tick) {
    match next(consumer).await {
        Received::Item { source, number, item } => (source, number, item),
        other => panic!("expected an item, not {other:?}"),
    }
}

/// Receives ticks with these numbers from one source, in their order and nothing else.
pub async fn receives(consumer: &mut Consumer<Tick>, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let (_, number, item) = item(consumer).await;
        assert_eq!((number, item.n), (n, n));
    }
}

/// What a consumer knows of a source.
pub fn source(consumer: &Consumer<Tick>, peer: EndpointId) -> Option<SourceStatus> {
    consumer.sources().into_iter().find(|source| source.peer == peer)
}

/// Waits until a source is in such a state.
pub async fn becomes(
    consumer: &Consumer<Tick>,
    peer: EndpointId,
    what: &str,
    is_so: impl Fn(&SourceState) -> bool,
) {
    let waiting = eventually(SOON, what, async || {
        source(consumer, peer).is_some_and(|source| is_so(&source.state))
    });
    if tokio::time::timeout(SOON / 2, waiting).await.is_err() {
        panic!("{what}: not so, but {:#?}", consumer.sources());
    }
}

/// Waits until the producer's end is known: whoever offers nothing more is soon no source at all.
pub async fn is_over(consumer: &Consumer<Tick>, peer: EndpointId) {
    let finished = SourceState::Terminated(Termination::Ended(StreamEnd::Finished));
    eventually(SOON, "the stream is over", async || {
        source(consumer, peer).is_none_or(|source| source.state == finished)
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
