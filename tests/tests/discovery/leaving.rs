//! Who left: with a word, without one, and to come back.

use std::time::Duration;

use kinfolk::{Limits, NodeEvent, Removal, SecretKey};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{Mortal, NEXT, quick_limits, serving};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{SOON, all_know_all, alone, discovering, from, has_neighbours, knows, over};

#[tokio::test(flavor = "multi_thread")]
async fn all_hear_at_once_of_a_node_that_says_farewell() {
    let hub = alone(1).await;
    let mut nodes = vec![hub.clone()];
    for key in 2..=6 {
        nodes.push(from(key, hub.addr()).await);
    }
    all_know_all(&nodes).await;
    for node in &nodes {
        eventually(SOON, "neighbours", async || {
            node.metrics().await.expect("it runs").discovery.neighbours > 0
        })
        .await;
    }
    let leaving = nodes.pop().expect("there is one");
    let mut logs = Vec::new();
    for node in &nodes {
        logs.push(EventLog::of(node).await);
    }
    let id = leaving.id();
    within(SOON, "the farewell", leaving.shutdown()).await;
    let departed = NodeEvent::PeerDeparted { peer: id, reason: Removal::Departed };
    for log in &mut logs {
        log.next(Duration::from_secs(5), "the farewell", |event| *event == departed).await;
    }
    over(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_left_and_came_back_elsewhere_is_reached_by_id() {
    let hub = alone(1).await;
    let alice = from(2, hub.addr()).await;
    let bob = serving(discovering(3).bootstrap(hub.addr())).await;
    all_know_all(&[hub.clone(), alice.clone(), bob.clone()]).await;
    let before = bob.addr();
    bob.shutdown().await;
    let bob = serving(discovering(3).bootstrap(hub.addr())).await;
    assert_ne!(bob.addr(), before);
    let answer: u64 = alice.call(bob.id(), NEXT, &41_u64).await.expect("an answer");
    assert_eq!(answer, 42);
    over([hub, alice, bob]).await;
}

/// Limits under which a record is soon over.
fn short_lived() -> Limits {
    let mut limits = quick_limits();
    limits.record_ttl = Duration::from_secs(3);
    limits
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_vanishes_without_a_word_is_forgotten_when_its_record_is_over() {
    let alice = discovering(1).limits(short_lived()).spawn().await.expect("it starts");
    let bob = discovering(2).limits(short_lived()).bootstrap(alice.addr());
    let bob = Mortal::spawn(bob).await;
    let id = SecretKey::from_bytes(&[2; 32]).public();
    eventually(SOON, "bob is known", async || knows(&alice, id)).await;
    let mut log = EventLog::of(&alice).await;
    // Long enough that it was renewed.
    log.next(SOON, "another record", |event| *event == NodeEvent::PeerUpdated { peer: id }).await;
    bob.kill().await;
    let expired = NodeEvent::PeerDeparted { peer: id, reason: Removal::Expired };
    log.next(SOON, "the end of its record", |event| *event == expired).await;
    over([alice]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_drained_says_farewell_and_is_not_kept_by_its_neighbours() {
    let mut limits = quick_limits();
    // Longer than anybody waits here.
    limits.drain_deadline = SOON.saturating_mul(3);
    let hub = discovering(1).limits(limits.clone()).spawn().await.expect("it starts");
    let alice = discovering(2).limits(limits).bootstrap(hub.addr());
    let alice = alice.spawn().await.expect("it starts");
    has_neighbours(&alice, 1).await;
    let mut log = EventLog::of(&hub).await;
    within(SOON, "the drain", alice.drain()).await.expect("it runs");
    let departed = NodeEvent::PeerDeparted { peer: alice.id(), reason: Removal::Departed };
    log.next(SOON, "the farewell", |event| *event == departed).await;
    let metrics = alice.metrics().await.expect("it runs");
    let asked: u64 = metrics.intents_ended.values().sum();
    assert_eq!(asked, 0, "outcomes are of the app's asks, and it had none");
    over([hub, alice]).await;
}
