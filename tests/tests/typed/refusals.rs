//! What consumers that are refused cost, and that they are told why.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh::endpoint::{RecvStream, SendStream};
use kinfolk::fault::{Crash, Faults, Point};
use kinfolk::{Limits, Node, Producer, Refusal, Schema, TicketVerdict};
use kinfolk_core::wire::subscription::{Answered, ConsumerFrame};
use kinfolk_tests::support::wait::{eventually, live_tasks, within};
use tokio::sync::Notify;

use crate::scene::{
    SOON, TICKS, Tick, alone, consumer, discovering, exactly, from, narrow, over, pair, produced,
    producer, receives, send, subscribed,
};
use crate::takers::{Consuming, answered, asking, subscribe};

/// Bytes that a consumer takes before it reads: that its stream is served fits, and why it is refused does not.
const NARROW: u32 = 4;

/// A subscription to the same name with other items.
fn mistaken(id: u64) -> ConsumerFrame {
    let mut asking = asking(id);
    asking.schema = Schema::new("tock", 1);
    ConsumerFrame::Subscribe(asking)
}

/// Limits under which an exchange with one who says nothing, as with each of these strangers at some time, is over soon: tasks are counted.
fn hasty() -> Limits {
    let mut limits = narrow();
    limits.exchange.silence = Duration::from_secs(1);
    limits
}

/// How many were refused, for whatever reason.
async fn refused(node: &Node) -> u64 {
    node.metrics().await.expect("it is up").streams.subscriptions_refused.values().sum()
}

/// Waits until so many peers wait for a producer's answer.
async fn waits(node: &Node, peers: usize) {
    eventually(SOON, "so many wait", async || {
        node.metrics().await.expect("it is up").streams.subscriptions_asking == peers
    })
    .await;
}

/// Streams of peers that are being served by the node's part for subscriptions, and streams of peers in all.
async fn served(node: &Node) -> (usize, usize) {
    let metrics = node.metrics().await.expect("it is up");
    (metrics.protocols["kinfolk/stream/1"].active, metrics.streams_inbound)
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_consumers_that_never_read_hold_no_place_and_nothing_for_longer_than_their_deadline()
 {
    let mut limits = hasty();
    limits.streams.subscribers.asking = 4;
    let deadline = limits.header_deadline;
    let node = discovering(1).limits(limits).spawn().await.expect("it starts");
    let producer = producer(&node).await;
    let cheat = Consuming::with_window(&node, 77, NARROW).await;
    eventually(SOON, "the exchange with it has begun and ended", async || {
        let metrics = node.metrics().await.expect("it is up").discovery;
        let under_way = metrics.exchanges_inbound + metrics.exchanges_outbound;
        under_way == 0 && !metrics.exchanges.is_empty()
    })
    .await;
    let tasks = live_tasks();
    let mut open = Vec::new();
    for id in 0..100 {
        open.push(cheat.asks(&[mistaken(id)]).await);
        eventually(SOON, "it is refused", async || refused(&node).await == id + 1).await;
    }
    let begun = Instant::now();
    // Others find a place at once.
    let honest = from(2, node.addr()).await;
    let mut received = consumer(&honest).await;
    subscribed(&producer, 1).await;
    send(&producer, 0..10).await;
    receives(&mut received, 0..10).await;
    drop(received);
    over([honest]).await;
    exactly(&producer, 0).await;
    eventually(SOON, "nothing is held", async || served(&node).await == (0, 0)).await;
    // Alarms are tasks too: one for the session's idle end, one for its exchange.
    eventually(SOON, "no task is left", async || live_tasks() <= tasks + 2).await;
    let late = Duration::from_secs(8);
    assert!(begun.elapsed() < deadline + late, "it takes {:?}", begun.elapsed());
    // They were let go by the node: all are still open at the other end.
    assert_eq!(open.len(), 100);
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_subscribes_a_thousand_times_while_it_is_refused_takes_nobodys_place() {
    let (node, honest) = pair().await;
    let producer = producer(&node).await;
    let cheat = Consuming::at(&node, 77).await;
    let mut open = Vec::new();
    for id in 0..1_000 {
        let (send, mut receive) = cheat.asks(&[mistaken(id)]).await;
        let refusal = Refusal::Schema { offered: Schema::new("tick", 1) };
        assert_eq!(answered(&mut receive).await, Answered::Refused(refusal));
        open.push((send, receive));
    }
    assert_eq!((refused(&node).await, producer.consumers().len()), (1_000, 0));
    let mut received = consumer(&honest).await;
    subscribed(&producer, 1).await;
    send(&producer, 0..10).await;
    receives(&mut received, 0..10).await;
    // Nor is it kept out: it is served as soon as it asks for what there is.
    let (_send, mut receive) = cheat.asks(&[subscribe(1_000)]).await;
    assert!(matches!(answered(&mut receive).await, Answered::Accepted(_)));
    drop((open, received));
    over([node, honest]).await;
}

/// A node with a producer that hangs while it starts, three times, each of which is seen after a second, and somebody who asks meanwhile and may be kept waiting for so long.
async fn asks_too_soon(
    patience: Duration,
) -> (Node, Producer<Tick>, Consuming, (SendStream, RecvStream)) {
    let (faults, mut limits) = (Faults::default(), narrow());
    limits.header_deadline = patience;
    let node = discovering(1).limits(limits).faults(&faults).spawn().await.expect("it starts");
    let cheat = Consuming::at(&node, 77).await;
    for _ in 0..3 {
        faults.arm(Point::ProducerPreStart, Crash::Never);
    }
    let producer = producer(&node).await;
    within(SOON, "the start", faults.struck(Point::ProducerPreStart)).await;
    let streams = cheat.asks(&[subscribe(1)]).await;
    (node, producer, cheat, streams)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_while_the_producer_is_being_started_is_served_as_soon_as_it_is() {
    let (node, producer, _cheat, (_send, mut receive)) = asks_too_soon(SOON).await;
    waits(&node, 1).await;
    let answer = answered(&mut receive).await;
    assert!(matches!(answer, Answered::Accepted(_)), "{answer:?}");
    subscribed(&producer, 1).await;
    waits(&node, 0).await;
    assert_eq!(refused(&node).await, 0);
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_a_producer_that_does_not_start_in_time_is_told_to_come_again() {
    let (node, _producer, _cheat, (_send, mut receive)) =
        asks_too_soon(Duration::from_millis(500)).await;
    assert_eq!(answered(&mut receive).await, Answered::Refused(Refusal::NoCapacity));
    assert_eq!(refused(&node).await, 1);
    waits(&node, 0).await;
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_a_producer_that_ends_before_it_has_started_is_told_so() {
    let (node, producer, _cheat, (_send, mut receive)) = asks_too_soon(SOON).await;
    waits(&node, 1).await;
    within(SOON, "the end", producer.finish()).await;
    assert_eq!(answered(&mut receive).await, Answered::Refused(Refusal::Ended));
    assert_eq!(refused(&node).await, 1);
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_answer_when_the_producer_ends_is_told_that_it_has_ended() {
    let mut limits = hasty();
    limits.header_deadline = SOON;
    let node = discovering(1).limits(limits).spawn().await.expect("it starts");
    let cheat = Consuming::with_window(&node, 77, NARROW).await;
    let tasks = live_tasks();
    let looked = Arc::new(Notify::new());
    let looks = Arc::clone(&looked);
    let builder = node.producer(TICKS).tickets(move |_, _| {
        looks.notify_one();
        std::future::pending::<TicketVerdict>()
    });
    let producer = produced(builder).await;
    let mut asks = asking(1);
    asks.ticket = Some(b"whatever".to_vec());
    let (_send, mut receive) = cheat.asks(&[ConsumerFrame::Subscribe(asks)]).await;
    within(SOON, "a look at the ticket", looked.notified()).await;
    within(SOON, "the end", producer.finish()).await;
    eventually(SOON, "it is refused", async || refused(&node).await == 1).await;
    // Only now does it read, and only now is there room for the reason.
    assert_eq!(answered(&mut receive).await, Answered::Refused(Refusal::Ended));
    eventually(SOON, "nothing is left", async || live_tasks() <= tasks).await;
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_what_nobody_produces_and_never_reads_is_let_go_too() {
    let node = alone(1).await;
    let cheat = Consuming::with_window(&node, 77, NARROW).await;
    let _open = cheat.asks(&[subscribe(1)]).await;
    eventually(SOON, "it is refused", async || refused(&node).await == 1).await;
    eventually(SOON, "nothing is held", async || served(&node).await == (0, 0)).await;
    over([node]).await;
}
