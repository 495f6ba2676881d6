//! Links that are lost, nodes that are killed and come back: what is received then, and what is said of the rest.

use kinfolk::{NodeEvent, Received, ReceiverEnd, StreamEnd, WhenFull};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::Mortal;
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{
    SOON, TICKS, Tick, alone, apart, consumer, discovering, exactly, from, is_over, item, kibi,
    next, online, over, pair, produced, producer, receives, send, source, subscribed, tight,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_again_and_again_loses_and_doubles_nothing() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    for round in 0..5 {
        let (from, to) = (round * 100, round * 100 + 100);
        send(&producer, from..from + 50).await;
        receives(&mut consumer, from..from + 20).await;
        alice.disconnect(bob.id()).await.expect("it is up");
        send(&producer, from + 50..to).await;
        receives(&mut consumer, from + 20..to).await;
    }
    eventually(SOON, "it came back", async || {
        source(&consumer, alice.id()).is_some_and(|source| source.reconnects > 0)
    })
    .await;
    over([alice, bob]).await;
}

/// What a consumer receives that was away while a hundred items were sent, of which the log holds `keeps`.
async fn after_an_absence(keeps: u64) -> Vec<Received<Tick>> {
    let (alice, bob, network) = apart().await;
    let builder = alice.producer(TICKS).when_full(WhenFull::DropOldest).keep_items(keeps);
    let producer = produced(builder).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    send(&producer, 0..5).await;
    receives(&mut consumer, 0..5).await;
    network.partition();
    exactly(&producer, 0).await;
    send(&producer, 5..105).await;
    network.heal();
    let mut got = Vec::new();
    while got.last().is_none_or(|last| !matches!(last, Received::Item { number: 104, .. })) {
        got.push(next(&mut consumer).await);
    }
    over([alice, bob]).await;
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_was_away_goes_on_where_it_was_if_the_log_reaches() {
    let got = after_an_absence(1_000).await;
    let numbers: Vec<_> = got
        .iter()
        .map(|received| match received {
            Received::Item { number, item, .. } => {
                assert_eq!(*number, item.n);
                *number
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, (5..105).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_was_away_for_too_long_learns_how_many_items_it_has_missed() {
    let got = after_an_absence(10).await;
    assert!(matches!(got[0], Received::Gap { missed: 90, .. }), "{:?}", got[0]);
    let numbers: Vec<_> = got[1..]
        .iter()
        .map(|received| match received {
            Received::Item { number, .. } => *number,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, (95..105).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_by_key_that_a_lost_link_interrupts_goes_on_where_it_was() {
    const KEYS: u64 = 200;
    let (alice, bob) = pair().await;
    let builder = alice.producer(TICKS).when_full(WhenFull::DropOldest).keep_items(10);
    let producer = produced(builder.replay_latest(|tick: &Tick| tick.n % KEYS)).await;
    for n in 0..KEYS {
        within(SOON, "room", producer.send(&kibi(n))).await.expect("sent");
    }
    // It has room for little of it.
    let mut consumer = tight(&bob).await;
    subscribed(&producer, 1).await;
    receives(&mut consumer, 0..10).await;
    alice.disconnect(bob.id()).await.expect("it is up");
    exactly(&producer, 0).await;
    // The last keys again, twice: the log holds none of those that are to come.
    for n in (2 * KEYS - 20..2 * KEYS).chain(2 * KEYS - 20..2 * KEYS) {
        within(SOON, "room", producer.send(&kibi(n))).await.expect("sent");
    }
    receives(&mut consumer, 10..KEYS - 20).await;
    // The log's beginning and what was superseded before it lie between.
    for n in 0..20 {
        let (_, number, item) = item(&mut consumer).await;
        assert_eq!((number, item.n), (KEYS + 20 + n, 2 * KEYS - 20 + n));
    }
    let seen = source(&consumer, alice.id()).expect("it is known");
    assert_eq!((seen.items, seen.missed, seen.superseded), (KEYS, 0, 40));
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_was_killed_and_comes_back_elsewhere_is_said_to_have_restarted() {
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    let mut consumer = consumer(&bob).await;
    let mortal = Mortal::spawn(discovering(3).bootstrap(hub.addr())).await;
    let first = producer(&mortal.node).await;
    subscribed(&first, 1).await;
    send(&first, 0..10).await;
    receives(&mut consumer, 0..10).await;
    mortal.kill().await;
    // It has another address now.
    let node = from(3, hub.addr()).await;
    let second = producer(&node).await;
    subscribed(&second, 1).await;
    send(&second, 0..10).await;
    assert_eq!(next(&mut consumer).await, Received::Restarted { source: node.id() });
    receives(&mut consumer, 0..10).await;
    drop(first);
    over([hub, bob, node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_is_replaced_by_one_on_another_node() {
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    let mut consumer = consumer(&bob).await;
    let anna = from(3, hub.addr()).await;
    let first = producer(&anna).await;
    subscribed(&first, 1).await;
    send(&first, 0..10).await;
    receives(&mut consumer, 0..10).await;
    anna.shutdown().await;
    let bert = from(4, hub.addr()).await;
    let second = producer(&bert).await;
    subscribed(&second, 1).await;
    send(&second, 0..10).await;
    for n in 0..10 {
        let (source, number, _) = item(&mut consumer).await;
        assert_eq!((source, number), (bert.id(), n));
    }
    over([hub, bob, bert]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_was_killed_and_comes_back_is_subscribed_once() {
    let alice = alone(1).await;
    let producer = producer(&alice).await;
    let mortal = Mortal::spawn(discovering(2).bootstrap(alice.addr())).await;
    let first = consumer(&mortal.node).await;
    subscribed(&producer, 1).await;
    mortal.kill().await;
    let bob = from(2, alice.addr()).await;
    let mut second = consumer(&bob).await;
    online(&second, 1).await;
    exactly(&producer, 1).await;
    send(&producer, 0..10).await;
    receives(&mut second, 0..10).await;
    drop(first);
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_shuts_down_delivers_what_its_producer_has_sent() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    send(&producer, 0..1_000).await;
    let mut events = EventLog::of(&bob).await;
    let ending = alice.clone();
    let ending = tokio::spawn(async move { ending.shutdown().await });
    receives(&mut consumer, 0..1_000).await;
    within(SOON, "the shutdown", ending).await.expect("it ends");
    let refused = producer.send(&crate::scene::tick(0)).await;
    assert_eq!(refused, Err(kinfolk::SendError::Ended(StreamEnd::ShuttingDown)));
    let down = |event: &NodeEvent| {
        let said = ReceiverEnd::Ended(StreamEnd::ShuttingDown);
        matches!(event, NodeEvent::SourceDown { reason, .. } if *reason == said)
    };
    events.next(SOON, "the end that the producer said", down).await;
    over([bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_a_node_that_shuts_down_ends_after_what_has_come() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    send(&producer, 0..10).await;
    receives(&mut consumer, 0..10).await;
    bob.shutdown().await;
    assert_eq!(within(SOON, "the end", consumer.recv()).await, None);
    exactly(&producer, 0).await;
    over([alice]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_finishes_waits_until_all_is_taken() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    send(&producer, 0..1_000).await;
    let finishing = tokio::spawn(producer.finish());
    receives(&mut consumer, 0..1_000).await;
    within(SOON, "the end", finishing).await.expect("it finishes");
    is_over(&consumer, alice.id()).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_wanted_again_goes_on_where_it_was() {
    let (alice, bob) = pair().await;
    let topic = kinfolk::Topic::from_name("wanted");
    alice.join_topic(topic).expect("it is up");
    let producer = producer(&alice).await;
    let wants = move |record: &kinfolk::Record| record.topics().any(|one| one == topic);
    let mut consumer = bob.consumer(TICKS).from(wants).await.expect("a consumer");
    subscribed(&producer, 1).await;
    send(&producer, 0..10).await;
    receives(&mut consumer, 0..10).await;
    alice.leave_topic(&topic).expect("it is up");
    exactly(&producer, 0).await;
    send(&producer, 10..20).await;
    alice.join_topic(topic).expect("it is up");
    receives(&mut consumer, 10..20).await;
    over([alice, bob]).await;
}
