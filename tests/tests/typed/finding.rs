//! Who is subscribed to whom: consumers follow the catalog, producers say that they are there and that they are not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kinfolk::{
    AppendError, FeedEnd, NodeEvent, Offer, ProducerError, Received, SendError, SourceState,
    StreamName,
};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::impair::{Condition, Direction};
use kinfolk_tests::support::node::{live, relay};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{
    SOON, TICKS, Tick, alone, consumer, discovering, exactly, from, is_over, item, meet, narrow,
    online, over, pair, produced, producer, receives, send, source, subscribed, tick,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_finds_all_producers_and_gets_from_each_what_it_sent_in_its_order() {
    let hub = alone(1).await;
    let mut nodes = vec![hub.clone()];
    let mut producers = Vec::new();
    for key in 2..5 {
        let node = from(key, hub.addr()).await;
        producers.push(producer(&node).await);
        nodes.push(node);
    }
    let node = from(5, hub.addr()).await;
    let mut consumer = consumer(&node).await;
    nodes.push(node);
    online(&consumer, 3).await;
    let mut sending = Vec::new();
    for producer in producers {
        subscribed(&producer, 1).await;
        sending.push(tokio::spawn(async move {
            send(&producer, 0..500).await;
            producer
        }));
    }
    let mut next = BTreeMap::new();
    for _ in 0..1500 {
        let (source, number, item) = item(&mut consumer).await;
        let next = next.entry(source).or_insert(0);
        assert_eq!((number, item.n), (*next, *next));
        *next += 1;
    }
    assert_eq!(next.into_values().collect::<Vec<_>>(), [500; 3]);
    over(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_item_on_a_live_session_takes_one_round_trip() {
    let mut limits = narrow();
    (limits.idle_timeout, limits.header_deadline) = (SOON, SOON);
    let node = |key| discovering(key).limits(limits.clone()).spawn();
    let (alice, bob) = (node(1).await.expect("it starts"), node(2).await.expect("it starts"));
    let network = relay(1, &alice, &bob);
    let producer = produced(alice.producer(TICKS).replay_last(1)).await;
    send(&producer, 0..1).await;
    let _held = bob.hold(alice.id());
    let offer = Offer::stream(&StreamName::new(TICKS).expect("a name"));
    meet(&alice, &bob).await;
    eventually(SOON, "its offer is known", async || {
        bob.catalog().with_offer(&offer).next().is_some()
    })
    .await;
    live(&bob, alice.id()).await;
    // What the producer says is under way for so long, and after the wish nothing more gets through to it.
    let delay = Duration::from_secs(5);
    network.set(Direction::AToB, Condition::delayed(delay));
    let wished = Instant::now();
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    assert!(wished.elapsed() < delay, "the wish was to wait for no answer");
    network.blackhole(Direction::BToA, true);
    receives(&mut consumer, 0..1).await;
    network.set(Direction::Both, Condition::default());
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_was_there_first_finds_a_producer_that_comes_later() {
    let (alice, bob) = pair().await;
    let mut consumer = consumer(&bob).await;
    let producer = producer(&alice).await;
    subscribed(&producer, 1).await;
    send(&producer, 0..10).await;
    receives(&mut consumer, 0..10).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_for_consumers_and_sources_miss_no_wake_up_in_fifty_rounds() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    for round in 0..50 {
        let early = producer.clone();
        let waiting = tokio::spawn(async move { early.when_subscribed(1).await });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let consumer = consumer(&bob).await;
        online(&consumer, 1).await;
        within(SOON, "a subscriber", waiting).await.expect("it runs").expect("it is up");
        subscribed(&producer, 1).await;
        drop(consumer);
        exactly(&producer, 0).await;
    }
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_count_what_went_by() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    // Items may overtake the news that there is a subscription.
    online(&consumer, 1).await;
    send(&producer, 0..100).await;
    receives(&mut consumer, 0..100).await;
    let seen = source(&consumer, alice.id()).expect("it is known");
    assert_eq!((seen.items, seen.missed, seen.reconnects), (100, 0, 0));
    // Each has a head, a number of one byte, and the length of its filling.
    assert_eq!(seen.bytes, 100 * (4 + 1 + 1));
    assert_eq!((seen.state, seen.last_error), (SourceState::Connected, None));
    assert!(seen.connected_for.is_some());
    let [ref fed] = producer.consumers()[..] else { panic!("{:?}", producer.consumers()) };
    assert_eq!((fed.peer, fed.items, fed.bytes), (bob.id(), 100, 600));
    assert_eq!((fed.missed, fed.behind), (0, 0));
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_consumer_is_unsubscribed() {
    let (alice, bob) = pair().await;
    let mut log = EventLog::of(&alice).await;
    let producer = producer(&alice).await;
    let consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    drop(consumer);
    exactly(&producer, 0).await;
    let left = log.next(SOON, "it leaves", |event| matches!(event, NodeEvent::ConsumerLeft { .. }));
    match left.await {
        NodeEvent::ConsumerLeft { peer, reason, .. } => {
            assert_eq!((peer, reason), (bob.id(), FeedEnd::Left));
        }
        other => panic!("{other:?}"),
    }
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_last_handle_of_its_producer_once_all_is_delivered() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let other = producer.clone();
    send(&producer, 0..100).await;
    drop(producer);
    send(&other, 100..200).await;
    drop(other);
    receives(&mut consumer, 0..200).await;
    is_over(&consumer, alice.id()).await;
    let offer = Offer::stream(&StreamName::new(TICKS).expect("a name"));
    eventually(SOON, "its record offers it no more", async || {
        let known = bob.catalog();
        let entry = known.get(&alice.id()).expect("it is there");
        entry.record().offers().all(|one| one != offer)
    })
    .await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_comes_again_under_the_same_name_is_another_one() {
    let (alice, bob) = pair().await;
    let first = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&first, 1).await;
    let again = alice.producer::<Tick>(TICKS).await.map(|_| ());
    assert!(matches!(again, Err(ProducerError::AlreadyProduced(_))), "{again:?}");
    send(&first, 0..10).await;
    drop(first);
    let second = producer(&alice).await;
    receives(&mut consumer, 0..10).await;
    subscribed(&second, 1).await;
    send(&second, 0..10).await;
    let restarted = crate::scene::next(&mut consumer).await;
    assert_eq!(restarted, Received::Restarted { source: alice.id() });
    receives(&mut consumer, 0..10).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_share_one_numbering_and_each_consumer_gets_every_item_once() {
    let (alice, bob) = pair().await;
    let carl = from(3, alice.addr()).await;
    let producer = producer(&alice).await;
    let mut consumers = [consumer(&bob).await, consumer(&carl).await];
    subscribed(&producer, 2).await;
    let mut sending = Vec::new();
    for sender in 0..4_u64 {
        let producer = producer.clone();
        sending.push(tokio::spawn(async move {
            for n in 0..250 {
                producer.send(&tick(sender * 1000 + n)).await.expect("sent");
            }
        }));
    }
    for consumer in &mut consumers {
        let mut next = [0; 4];
        for expected in 0..1000 {
            let (_, number, item) = item(consumer).await;
            assert_eq!(number, expected);
            let sender = usize::try_from(item.n / 1000).expect("small");
            assert_eq!(item.n % 1000, next[sender]);
            next[sender] += 1;
        }
        assert_eq!(next, [250; 4]);
    }
    over([alice, bob, carl]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_is_too_long_is_refused_and_the_next_one_is_not() {
    let (alice, bob) = pair().await;
    let producer = produced(alice.producer(TICKS).item_max(100)).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let long = Tick { n: 0, filling: "x".repeat(200) };
    let refused = producer.send(&long).await;
    let expected = AppendError::TooLarge { length: 203, max: 100 };
    assert_eq!(refused, Err(SendError::Refused(expected)));
    send(&producer, 0..1).await;
    receives(&mut consumer, 0..1).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_the_last_items_that_a_producer_replays() {
    let (alice, bob) = pair().await;
    let producer = produced(alice.producer(TICKS).replay_last(5)).await;
    send(&producer, 0..20).await;
    let mut consumer = consumer(&bob).await;
    receives(&mut consumer, 15..20).await;
    send(&producer, 20..25).await;
    receives(&mut consumer, 20..25).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_the_latest_item_of_each_key_where_the_producer_keeps_them() {
    let (alice, bob) = pair().await;
    let builder = alice.producer(TICKS).replay_latest(|tick: &Tick| tick.n % 3);
    let producer = produced(builder).await;
    send(&producer, 0..20).await;
    let mut consumer = consumer(&bob).await;
    let mut got = Vec::new();
    for _ in 0..3 {
        got.push(item(&mut consumer).await.2.n);
    }
    assert_eq!(got, [17, 18, 19]);
    send(&producer, 20..25).await;
    for n in 20..25 {
        assert_eq!(item(&mut consumer).await.2.n, n);
    }
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_with_one_place_takes_the_next_producer_when_its_own_ends() {
    let hub = alone(1).await;
    let (anna, bert) = (from(2, hub.addr()).await, from(3, hub.addr()).await);
    let (first, second) = (producer(&anna).await, producer(&bert).await);
    let node = from(4, hub.addr()).await;
    let consumer = node.consumer::<Tick>(TICKS).max_sources(1).await.expect("a consumer");
    online(&consumer, 1).await;
    eventually(SOON, "both are known", async || consumer.sources().len() == 2).await;
    let is_first = first.consumers().len() == 1;
    let (served, spare) = if is_first { (first, second) } else { (second, first) };
    assert_eq!(spare.consumers().len(), 0);
    drop(served);
    subscribed(&spare, 1).await;
    over([hub, anna, bert, node]).await;
}
