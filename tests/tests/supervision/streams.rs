//! Streams: producers and consumers of the app outlive the part that runs them.

use kinfolk::fault::{Crash, Victim};
use kinfolk::{Consumer, Item, Node, NodeEvent, Producer, Received, Schema, Terminal};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::builder;
use kinfolk_tests::support::wait::within;
use serde::{Deserialize, Serialize};

use crate::scene::{BOTH, SOON, is_restart};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Number(u64);

impl Item for Number {
    const SCHEMA: Schema = Schema::new("number", 1);
}

/// Two nodes that know each other, with a stream from the first to the second and one back.
struct Pair {
    alice: Node,
    bob: Node,
    flows: [(Producer<Number>, Consumer<Number>); 2],
    next: u64,
}

impl Pair {
    async fn new() -> Self {
        let alice = builder(1).discovery(true).spawn().await.expect("it starts");
        let bob = builder(2).discovery(true).spawn().await.expect("it starts");
        let produced = [
            alice.producer("there").await.expect("a producer"),
            bob.producer("back").await.expect("a producer"),
        ];
        let consumed = [
            bob.consumer("there").await.expect("a consumer"),
            alice.consumer("back").await.expect("a consumer"),
        ];
        within(SOON, "an exchange", alice.sync_with(bob.addr())).await.expect("both discover");
        let [there, back] = produced;
        let [at_bob, at_alice] = consumed;
        let flows = [(there, at_bob), (back, at_alice)];
        for (producer, consumer) in &flows {
            within(2 * SOON, "a consumer", producer.when_subscribed(1)).await.expect("up");
            within(SOON, "a source", consumer.when_online(1)).await.expect("up");
        }
        Self { alice, bob, flows, next: 0 }
    }

    /// An item goes each way, behind those before; none is lost or comes twice.
    async fn flow(&mut self) {
        for (producer, consumer) in &mut self.flows {
            assert_eq!(producer.send(&Number(self.next)).await, Ok(self.next));
            let received = within(2 * SOON, "an item", consumer.recv()).await;
            let Some(Received::Item { number, item, .. }) = received else {
                panic!("{received:?} in the place of {}", self.next)
            };
            assert_eq!((number, item), (self.next, Number(self.next)));
        }
        self.next += 1;
    }
}

/// Lets Streams fail once more. While it is away it hears nothing.
async fn fail(node: &Node, log: &mut EventLog, crash: Crash) {
    let before = log.count(is_restart);
    while log.count(is_restart) == before && node.metrics().await.is_ok() {
        node.inject(Victim::Streams, crash);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn streams_fail_in_one_event_and_producers_and_consumers_go_on_without_a_gap() {
    for crash in BOTH {
        let mut pair = Pair::new().await;
        pair.flow().await;
        let mut log = EventLog::of(&pair.alice).await;
        pair.alice.inject(Victim::Streams, crash);
        let event = log.next(SOON, "the restart", is_restart).await;
        let NodeEvent::Restarted { actor, cause } = event else { panic!("{event:?}") };
        assert_eq!(actor, "streams");
        assert!(cause.contains("injected"), "{cause}");

        pair.flow().await;
        pair.flow().await;
        assert_eq!(log.count(is_restart), 1);
        let metrics = pair.alice.metrics().await.expect("alive");
        assert_eq!(metrics.restarts.get("streams"), Some(&1));
    }
}

#[tokio::test]
async fn what_the_app_makes_while_streams_are_away_is_taken_up_when_they_are_back() {
    let pair = Pair::new().await;
    let mut log = EventLog::of(&pair.alice).await;
    // The second restart waits for a while.
    for _ in 0..3 {
        fail(&pair.alice, &mut log, Crash::Error).await;
    }
    let producer = pair.alice.producer::<Number>("late").await.expect("a producer");
    let consumer = pair.bob.consumer::<Number>("late").await.expect("a consumer");
    within(2 * SOON, "bob", producer.when_subscribed(1)).await.expect("up");
    drop(consumer);
}

#[tokio::test]
async fn the_sixth_failure_of_streams_within_ten_seconds_ends_the_node_with_the_first_cause() {
    let mut pair = Pair::new().await;
    let mut log = EventLog::of(&pair.alice).await;
    for round in 0..6 {
        let crash = if round == 0 { Crash::Error } else { Crash::Panic };
        fail(&pair.alice, &mut log, crash).await;
    }
    let end = within(SOON, "the end", pair.alice.closed()).await;
    let Terminal::Failed(cause) = end else { panic!("{end:?}") };
    assert!(cause.contains("the first: streams: injected error"), "{cause}");
    assert!(cause.contains("the last: streams: injected panic"), "{cause}");
    // Whoever waits learns it.
    let [(there, _), (_, at_alice)] = &mut pair.flows;
    there.send(&Number(9)).await.expect_err("its node has ended");
    while let Some(received) = within(SOON, "the end", at_alice.recv()).await {
        assert!(matches!(received, Received::Item { .. }), "{received:?}");
    }
}
