//! Typed streams: what an app may rely on while sources come and go, and what hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kinfolk::fault::{Crash, Faults, Point};
use kinfolk::{
    Consumer, FeedEnd, Item, Limits, Node, NodeEvent, Received, ReceiverEnd, Schema, SourceState,
    StreamEnd, Termination, TicketVerdict, Topic,
};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::builder;
use kinfolk_tests::support::wait::{eventually, within};
use serde::{Deserialize, Serialize};

use crate::flows::{GOOD, Number};
use crate::scene::{SOON, limits, nothing_is_left};

const NAME: &str = "numbers";

/// What fills the room of a producer soon.
#[derive(Debug, Serialize, Deserialize)]
struct Large(String);

impl Item for Large {
    const SCHEMA: Schema = Schema::new("large", 1);
}

async fn discovering(key: u8, limits: Limits, faults: &Faults) -> Node {
    let builder = builder(key).limits(limits).faults(faults).discovery(true);
    builder.spawn().await.expect("it starts")
}

/// Alice, with these faults, and dave: they have met.
async fn two(limits: Limits) -> (Node, Node, Faults) {
    let faults = Faults::default();
    let alice = discovering(1, limits.clone(), &faults).await;
    let dave = discovering(2, limits, &Faults::default()).await;
    within(SOON, "an exchange", alice.sync_with(dave.addr())).await.expect("both discover");
    (alice, dave, faults)
}

async fn next(consumer: &mut Consumer<Number>) -> (u64, u64) {
    let received = within(2 * SOON, "an item", consumer.recv()).await;
    let Some(Received::Item { number, item, .. }) = received else { panic!("{received:?}") };
    (number, item.0)
}

fn state(consumer: &Consumer<Number>) -> Option<SourceState> {
    consumer.sources().first().map(|source| source.state.clone())
}

async fn over(nodes: [Node; 2]) {
    for node in &nodes {
        within(3 * SOON, "a shutdown", node.shutdown()).await;
    }
    drop(nodes);
    nothing_is_left().await;
}

#[tokio::test]
async fn a_source_that_was_not_wanted_for_a_while_brings_nothing_twice() {
    let (alice, dave, _faults) = two(limits()).await;
    let is_wanted = Arc::new(AtomicBool::new(true));
    let producer = dave.producer(NAME).await.expect("a producer");
    let wanted = Arc::clone(&is_wanted);
    let consumer = alice.consumer(NAME).from(move |_| wanted.load(Ordering::Relaxed));
    let mut consumer = consumer.await.expect("a consumer");
    within(SOON, "a source", consumer.when_online(1)).await.expect("up");
    for number in 0..3 {
        producer.send(&Number(number)).await.expect("sent");
        assert_eq!(next(&mut consumer).await, (number, number));
    }
    is_wanted.store(false, Ordering::Relaxed);
    dave.join_topic(Topic::from_name("a")).expect("room for it");
    let unwanted = Some(SourceState::Terminated(Termination::NotWanted));
    eventually(SOON, "it is not wanted", async || state(&consumer) == unwanted).await;
    producer.send(&Number(3)).await.expect("sent");
    is_wanted.store(true, Ordering::Relaxed);
    dave.join_topic(Topic::from_name("b")).expect("room for it");
    assert_eq!(next(&mut consumer).await, (3, 3));
    drop((producer, consumer));
    over([alice, dave]).await;
}

#[tokio::test]
async fn a_source_that_is_none_any_more_when_its_consumer_is_back_does_not_stay_queued() {
    let (alice, dave, faults) = two(limits()).await;
    let is_wanted = Arc::new(AtomicBool::new(true));
    let producer = dave.producer(NAME).await.expect("a producer");
    let wanted = Arc::clone(&is_wanted);
    let consumer = alice.consumer(NAME).from(move |_| wanted.load(Ordering::Relaxed));
    let mut consumer = consumer.await.expect("a consumer");
    within(SOON, "a source", consumer.when_online(1)).await.expect("up");
    producer.send(&Number(0)).await.expect("sent");
    assert_eq!(next(&mut consumer).await, (0, 0));
    // Nobody says so before the consumer fails, and none of its later lives hears of it.
    is_wanted.store(false, Ordering::Relaxed);
    faults.arm(Point::ConsumerPulse, Crash::Error);
    within(SOON, "the strike", faults.struck(Point::ConsumerPulse)).await;
    eventually(SOON, "it is no source", async || consumer.sources().is_empty()).await;
    producer.send(&Number(1)).await.expect("sent");
    is_wanted.store(true, Ordering::Relaxed);
    dave.join_topic(Topic::from_name("b")).expect("room for it");
    assert_eq!(next(&mut consumer).await, (1, 1), "it goes on where it was");
    drop((producer, consumer));
    over([alice, dave]).await;
}

#[tokio::test]
async fn a_receiver_that_never_asks_is_killed_after_its_deadlines_and_the_source_is_asked_again() {
    let mut limits = limits();
    limits.intent_deadline = Duration::from_millis(100);
    limits.unresponsive = Duration::from_secs(2);
    let (alice, dave, faults) = two(limits).await;
    let mut log = EventLog::of(&alice).await;
    faults.arm(Point::ReceiverTask, Crash::Never);
    let producer = dave.producer(NAME).replay_last(1).await.expect("a producer");
    producer.send(&Number(0)).await.expect("sent");
    let mut consumer = alice.consumer(NAME).await.expect("a consumer");
    within(SOON, "the strike", faults.struck(Point::ReceiverTask)).await;
    assert_eq!(next(&mut consumer).await, (0, 0));
    let metrics = alice.metrics().await.expect("up");
    assert_eq!(metrics.streams.sources_ended.get("failed"), Some(&1));
    assert_eq!(log.count(|event| matches!(event, NodeEvent::Restarted { .. })), 0);
    drop((producer, consumer));
    over([alice, dave]).await;
}

#[tokio::test]
async fn a_feed_that_hangs_holds_up_no_end_of_its_producer() {
    let mut limits = limits();
    limits.unresponsive = Duration::from_secs(2);
    let (alice, dave, faults) = two(limits).await;
    let mut log = EventLog::of(&alice).await;
    let producer = alice.producer::<Number>(NAME).await.expect("a producer");
    faults.arm(Point::FeedTask, Crash::Never);
    let consumer = dave.consumer::<Number>(NAME).await.expect("a consumer");
    within(SOON, "the strike", faults.struck(Point::FeedTask)).await;
    within(SOON, "the end", producer.finish()).await;
    let killed = FeedEnd::Failed("it was killed".into());
    let left = |event: &NodeEvent| matches!(event, NodeEvent::ConsumerLeft { reason, .. } if *reason == killed);
    log.next(SOON, "the event", left).await;
    drop(consumer);
    over([alice, dave]).await;
}

#[tokio::test]
async fn subscriptions_that_end_with_their_part_are_told_of_by_events() {
    let (alice, dave, faults) = two(limits()).await;
    let mut log = EventLog::of(&alice).await;
    let produced = alice.producer::<Number>("out").await.expect("a producer");
    let consumed = dave.producer::<Number>("in").await.expect("a producer");
    let outer = dave.consumer::<Number>("out").await.expect("a consumer");
    let inner = alice.consumer::<Number>("in").await.expect("a consumer");
    within(SOON, "dave", produced.when_subscribed(1)).await.expect("up");
    within(SOON, "alice", consumed.when_subscribed(1)).await.expect("up");
    for point in [Point::ProducerPulse, Point::ConsumerPulse] {
        faults.arm(point, Crash::Error);
    }
    let left = |event: &NodeEvent| {
        matches!(event, NodeEvent::ConsumerLeft { reason: FeedEnd::Failed(_), .. })
    };
    let down = |event: &NodeEvent| {
        matches!(event, NodeEvent::SourceDown { reason: ReceiverEnd::Failed(_), .. })
    };
    eventually(SOON, "both events", async || (log.count(left), log.count(down)) == (1, 1)).await;
    within(SOON, "dave again", produced.when_subscribed(1)).await.expect("up");
    within(SOON, "alice again", inner.when_online(1)).await.expect("up");
    drop((produced, consumed, outer, inner));
    over([alice, dave]).await;
}

#[tokio::test]
async fn a_ticket_that_is_never_looked_at_to_the_end_leaves_its_subscriber_heard() {
    let mut limits = limits();
    limits.streams.subscribers.ticket_check = Duration::from_millis(500);
    let (alice, dave, _faults) = two(limits).await;
    let mut log = EventLog::of(&alice).await;
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&looks);
    let producer = alice.producer::<Number>(NAME).tickets(move |_, _| {
        let look = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            // All but the second are looked at in time.
            if look == 1 {
                std::future::pending::<()>().await;
            }
            TicketVerdict::Valid
        }
    });
    let producer = producer.await.expect("a producer");
    let consumer = dave.consumer::<Number>(NAME).ticket(GOOD).await.expect("a consumer");
    within(SOON, "a source", consumer.when_online(1)).await.expect("up");
    consumer.set_ticket(&b"second"[..]).expect("a ticket");
    eventually(SOON, "the second look", async || looks.load(Ordering::Relaxed) == 2).await;
    consumer.set_ticket(&b"third"[..]).expect("a ticket");
    eventually(SOON, "the third look", async || looks.load(Ordering::Relaxed) == 3).await;
    drop(consumer);
    let left =
        |event: &NodeEvent| matches!(event, NodeEvent::ConsumerLeft { reason: FeedEnd::Left, .. });
    log.next(SOON, "dave has left", left).await;
    drop(producer);
    over([alice, dave]).await;
}

#[tokio::test]
async fn a_ticket_that_comes_while_the_old_one_expires_is_presented_by_the_next_subscription() {
    let (alice, dave, _faults) = two(limits()).await;
    let looks = Arc::new(AtomicUsize::new(0));
    let producer = alice.producer::<Number>(NAME).tickets(move |_, ticket| {
        let looks = Arc::clone(&looks);
        async move {
            if &*ticket == b"old" {
                return TicketVerdict::ValidFor(Duration::from_secs(3));
            }
            // Too late for the subscription by which it was presented first.
            if looks.fetch_add(1, Ordering::Relaxed) == 0 {
                std::future::pending::<()>().await;
            }
            TicketVerdict::Valid
        }
    });
    let producer = producer.await.expect("a producer");
    let mut events = EventLog::of(&alice).await;
    let mut consumer = dave.consumer::<Number>(NAME).ticket(&b"old"[..]).await.expect("a consumer");
    within(SOON, "dave", producer.when_subscribed(1)).await.expect("up");
    consumer.set_ticket(&b"new"[..]).expect("a ticket");
    let expired = |event: &NodeEvent| {
        let end = FeedEnd::Ended(StreamEnd::TicketExpired);
        matches!(event, NodeEvent::ConsumerLeft { reason, .. } if *reason == end)
    };
    events.next(SOON, "the old one has expired", expired).await;
    within(SOON, "dave again", producer.when_subscribed(1)).await.expect("up");
    producer.send(&Number(0)).await.expect("sent");
    assert_eq!(next(&mut consumer).await, (0, 0));
    drop((producer, consumer));
    over([alice, dave]).await;
}

#[tokio::test]
async fn who_asks_a_producer_that_hangs_waits_in_a_bounded_queue_and_more_are_told_to_come_later() {
    let mut limits = limits();
    limits.streams.subscribers.asking = 1;
    let (alice, dave, faults) = two(limits).await;
    let producer = alice.producer::<Number>(NAME).await.expect("a producer");
    faults.arm(Point::ProducerAsked, Crash::Never);
    let first = dave.consumer::<Number>(NAME).await.expect("a consumer");
    within(SOON, "the strike", faults.struck(Point::ProducerAsked)).await;
    let second = dave.consumer::<Number>(NAME).await.expect("a consumer");
    eventually(SOON, "one is refused", async || {
        let metrics = alice.metrics().await.expect("up");
        metrics.streams.subscriptions_refused.contains_key("no_capacity")
    })
    .await;
    // The producer is found out, and serves both.
    within(2 * SOON, "both", producer.when_subscribed(2)).await.expect("up");
    drop((producer, first, second));
    over([alice, dave]).await;
}

#[tokio::test]
async fn who_has_no_answer_when_the_producer_fails_is_counted_and_comes_again() {
    let (alice, dave, faults) = two(limits()).await;
    let looks = Arc::new(AtomicUsize::new(0));
    let looking = Arc::clone(&looks);
    let producer = alice.producer::<Number>(NAME).tickets(move |_, _| {
        let looks = Arc::clone(&looking);
        async move {
            // Nobody knows what the first is worth while the producer fails.
            if looks.fetch_add(1, Ordering::Relaxed) == 0 {
                std::future::pending::<()>().await;
            }
            TicketVerdict::Valid
        }
    });
    let producer = producer.await.expect("a producer");
    let mut first = dave.consumer::<Number>(NAME).ticket(&b"one"[..]).await.expect("a consumer");
    eventually(SOON, "the first look", async || looks.load(Ordering::Relaxed) == 1).await;
    faults.arm(Point::ProducerAsked, Crash::Error);
    let second = dave.consumer::<Number>(NAME).ticket(&b"two"[..]).await.expect("a consumer");
    eventually(SOON, "the first is counted", async || {
        let metrics = alice.metrics().await.expect("up");
        metrics.streams.subscriptions_refused.get("restarting") == Some(&1)
    })
    .await;
    within(2 * SOON, "both", producer.when_subscribed(2)).await.expect("up");
    producer.send(&Number(7)).await.expect("sent");
    assert_eq!(next(&mut first).await, (0, 7));
    drop((producer, first, second));
    over([alice, dave]).await;
}

#[tokio::test]
async fn who_takes_nothing_holds_up_a_sender_no_longer_because_others_come_and_go() {
    let (alice, dave, _faults) = two(limits()).await;
    let mut log = EventLog::of(&alice).await;
    let patience = Duration::from_secs(2);
    let producer = alice.producer::<Large>(NAME).patience(patience).await.expect("a producer");
    let stuck = dave.consumer::<Large>(NAME).buffer(1).await.expect("a consumer");
    within(SOON, "dave", producer.when_subscribed(1)).await.expect("up");
    let item = Large("x".repeat(100_000));
    let fill = async {
        loop {
            producer.send(&item).await.expect("sent");
        }
    };
    let churn = async {
        loop {
            let other = dave.consumer::<Large>(NAME).await.expect("a consumer");
            within(SOON, "a source", other.when_online(1)).await.expect("up");
            drop(other);
        }
    };
    let is_cut_off = |event: &NodeEvent| {
        let slow = FeedEnd::Ended(StreamEnd::TooSlow);
        matches!(event, NodeEvent::ConsumerLeft { reason, .. } if *reason == slow)
    };
    let cut_off = log.next(SOON, "it is cut off", is_cut_off);
    tokio::select! {
        _ = cut_off => {}
        () = async { tokio::join!(fill, churn); } => {}
    }
    drop((producer, stuck));
    over([alice, dave]).await;
}
