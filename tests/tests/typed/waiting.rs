//! While the app waits it reads from its sources by itself, and nothing but speed depends on that.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Instant;

use futures_util::{FutureExt as _, StreamExt as _};
use kinfolk::{Consumer, EndpointId, Node, NodeEvent, Received};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::{Notify, mpsc};

use crate::scene::{
    SOON, Tick, alone, consumer, from, kibi, over, pair, producer, receives, send, subscribed,
    tight,
};

/// Tells that whoever waits was woken.
#[derive(Default)]
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

/// What the node has read from its subscriptions.
async fn bytes_read(node: &Node) -> u64 {
    node.metrics().await.expect("it runs").protocols["kinfolk/stream/1"].bytes_received
}

/// The item of this number is read although the app does not ask for it, and then the app gets it.
async fn comes_unasked(consumer: &mut Consumer<Tick>, source: EndpointId, n: u64) {
    eventually(SOON, "it is read", async || {
        crate::scene::source(consumer, source).is_some_and(|source| source.items == n + 1)
    })
    .await;
    receives(consumer, n..n + 1).await;
}

#[tokio::test]
async fn an_app_that_waits_is_woken_by_quic_and_takes_a_lone_item_by_itself() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let start = Instant::now();
    // At first its receiver may be the one that waits.
    for n in 0.. {
        let before = bytes_read(&bob).await;
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut receiving = pin!(consumer.recv());
        assert!(receiving.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        send(&producer, n..n + 1).await;
        within(SOON, "news", woken.0.notified()).await;
        // What a receiver hands over it has read; what the app is to read lies in QUIC, for however long that takes.
        if bytes_read(&bob).await == before {
            let received = receiving.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(received.is_ready(), "it lies in QUIC");
            let again = woken.0.notified().now_or_never();
            assert_eq!(again, None, "what it took by itself wakes it once more");
            break;
        }
        within(SOON, "the item", receiving).await.expect("it is up");
        assert!(start.elapsed() < SOON, "the app has taken no item by itself");
    }
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_when_the_app_has_stopped_waiting_is_read_without_it() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    for n in 0..50 {
        assert_eq!(consumer.recv().now_or_never(), None);
        send(&producer, n..n + 1).await;
        comes_unasked(&mut consumer, alice.id(), n).await;
    }
    over([alice, bob]).await;
}

#[tokio::test]
async fn what_an_app_was_woken_for_and_never_looked_at_is_read_without_it() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let (start, mut left) = (Instant::now(), 0);
    // At first its receiver may be the one that waits, and has read what the app is woken for.
    for n in 0.. {
        let before = bytes_read(&bob).await;
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        {
            let mut receiving = pin!(consumer.recv());
            assert!(receiving.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            send(&producer, n..n + 1).await;
            within(SOON, "news", woken.0.notified()).await;
            left += u32::from(bytes_read(&bob).await == before);
        }
        comes_unasked(&mut consumer, alice.id(), n).await;
        if left == 3 {
            break;
        }
        assert!(start.elapsed() < SOON, "the app would have taken no item by itself");
    }
    over([alice, bob]).await;
}

#[tokio::test]
async fn a_future_of_recv_that_is_leaked_stops_nothing() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    for n in 0..5 {
        bytes_read(&bob).await;
        let mut receiving = Box::pin(consumer.recv());
        assert_eq!(receiving.as_mut().now_or_never(), None);
        std::mem::forget(receiving);
        send(&producer, n..n + 1).await;
        let received = within(SOON, "the item", consumer.next()).await;
        assert!(matches!(received, Some(Received::Item { number, .. }) if number == n));
    }
    over([alice, bob]).await;
}

#[tokio::test]
async fn what_finds_no_room_while_the_app_waits_comes_when_there_is_some() {
    let (alice, bob) = pair().await;
    let carl = from(3, alice.addr()).await;
    let producers = [producer(&alice).await, producer(&carl).await];
    // Of two items that come at once it takes one.
    let mut consumer = tight(&bob).await;
    for producer in &producers {
        subscribed(producer, 1).await;
    }
    for n in 0..100 {
        let mut receiving = Box::pin(consumer.recv());
        assert_eq!(receiving.as_mut().now_or_never(), None);
        for producer in &producers {
            assert_eq!(within(SOON, "room", producer.send(&kibi(n))).await, Ok(n));
        }
        let first = within(SOON, "an item", receiving).await;
        let second = within(SOON, "the other item", consumer.recv()).await;
        let sources = [first, second].map(|received| match received {
            Some(Received::Item { source, number, .. }) => (source, number),
            other => panic!("{other:?}"),
        });
        assert!(sources.contains(&(alice.id(), n)) && sources.contains(&(carl.id(), n)));
    }
    over([alice, bob, carl]).await;
}

async fn the_end_of_a_source_is_told(waits: bool) {
    let (alice, bob) = pair().await;
    let mut log = EventLog::of(&bob).await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    send(&producer, 0..1).await;
    receives(&mut consumer, 0..1).await;
    // Meanwhile its receiver gets to where it waits for more.
    bytes_read(&bob).await;
    let down = |event: &NodeEvent| matches!(event, NodeEvent::SourceDown { .. });
    assert_eq!(consumer.recv().now_or_never(), None);
    drop(producer);
    let told = log.next(SOON, "the end", down);
    if waits {
        tokio::select! {
            _ = told => {}
            received = consumer.recv() => panic!("{received:?}"),
        }
    } else {
        told.await;
    }
    over([alice, bob]).await;
}

#[tokio::test]
async fn the_end_of_a_source_is_told_while_the_app_waits() {
    the_end_of_a_source_is_told(true).await;
}

#[tokio::test]
async fn the_end_of_a_source_is_told_when_the_app_has_stopped_waiting() {
    the_end_of_a_source_is_told(false).await;
}

#[tokio::test]
async fn an_app_that_waits_hears_of_all_sources_however_many_come_and_go_meanwhile() {
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    let mut consumer = consumer(&bob).await;
    let (mut nodes, mut producers) = (vec![hub.clone(), bob.clone()], Vec::new());
    let (told, mut hears) = mpsc::unbounded_channel();
    let waiting = tokio::spawn(async move {
        while let Some(Received::Item { source, number, .. }) = consumer.recv().await {
            told.send((source, number)).expect("the test listens");
        }
    });
    for (turn, key) in (3..9).chain([0, 0, 0]).enumerate() {
        if key > 0 {
            let node = from(key, hub.addr()).await;
            producers.push((node.id(), producer(&node).await, 0));
            nodes.push(node);
        } else {
            producers.pop();
        }
        for (_, producer, _) in &producers {
            subscribed(producer, 1).await;
        }
        for (peer, producer, sent) in &mut producers {
            send(producer, *sent..*sent + 1).await;
            let heard = within(SOON, "the item", hears.recv()).await;
            assert_eq!(heard, Some((*peer, *sent)), "turn {turn}");
            *sent += 1;
        }
    }
    drop(producers);
    waiting.abort();
    over(nodes).await;
}
