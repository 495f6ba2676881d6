//! What is sent arrives, once and in its order, and nobody is sent more than he can take.

use futures_util::SinkExt as _;
use kinfolk::{Limits, TrySendError};
use kinfolk_tests::support::node::quick_limits;
use kinfolk_tests::support::wait::{eventually, within};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

use crate::scene::{
    SOON, consumer, discovering, fill, item, kibi, over, pair, produced, producer, receives, send,
    small, subscribed, tick, tight,
};

async fn nothing_is_lost_of_a_hundred_thousand() {
    let limits: fn() -> Limits = quick_limits;
    let alice = discovering(1).limits(limits()).spawn().await.expect("it starts");
    let bob =
        discovering(2).limits(limits()).bootstrap(alice.addr()).spawn().await.expect("it starts");
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let sending = tokio::spawn(async move {
        for n in 0..100_000 {
            assert_eq!(producer.send(&tick(n)).await, Ok(n));
        }
        producer
    });
    for n in 0..100_000 {
        let (_, number, item) = item(&mut consumer).await;
        assert_eq!((number, item.n), (n, n));
    }
    let producer = within(SOON, "the sender's end", sending).await.expect("all was sent");
    let fed = producer.consumers();
    assert_eq!((fed[0].items, fed[0].missed), (100_000, 0));
    over([alice, bob]).await;
}

#[tokio::test]
async fn nothing_is_lost_of_what_a_tight_producer_sends_on_one_thread() {
    nothing_is_lost_of_a_hundred_thousand().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_of_what_a_tight_producer_sends_on_many_threads() {
    nothing_is_lost_of_a_hundred_thousand().await;
}

#[tokio::test]
async fn a_lone_item_is_with_quic_when_it_was_sent_and_is_followed_by_those_close_behind() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumers = [consumer(&bob).await, consumer(&bob).await];
    subscribed(&producer, 2).await;
    let mut sent = 0;
    // No other task of this thread runs between the two looks. At first the feeds may have their answers to write.
    eventually(SOON, "a lone item that no feed has to write", async || {
        assert_eq!(producer.try_send(&tick(sent)), Ok(sent));
        sent += 1;
        producer.consumers().iter().all(|fed| fed.items == sent)
    })
    .await;
    for _ in 0..100 {
        assert_eq!(producer.try_send(&tick(sent)), Ok(sent));
        sent += 1;
    }
    for consumer in &mut consumers {
        for n in 0..sent {
            let (_, number, item) = item(consumer).await;
            assert_eq!((number, item.n), (n, n));
        }
    }
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_without_room_waits_and_goes_on_when_the_consumer_reads() {
    let (alice, bob) = pair().await;
    let producer = produced(small(&alice)).await;
    let mut consumer = tight(&bob).await;
    subscribed(&producer, 1).await;
    let n = fill(&producer, 0).await;
    assert_eq!(producer.try_send(&kibi(n)), Err(TrySendError::Full));
    assert!(producer.consumers()[0].behind > 0);
    let waiting = producer.clone();
    let waiting = tokio::spawn(async move { waiting.send(&kibi(n)).await });
    receives(&mut consumer, 0..n + 1).await;
    assert_eq!(within(SOON, "room", waiting).await.expect("it runs"), Ok(n));
    assert_eq!(producer.try_send(&kibi(n + 1)), Ok(n + 1));
    receives(&mut consumer, n + 1..n + 2).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn items_of_which_sending_was_cancelled_are_not_sent_and_no_other_is_lost() {
    let (alice, bob) = pair().await;
    let producer = produced(small(&alice)).await;
    let mut consumer = tight(&bob).await;
    subscribed(&producer, 1).await;
    let full = Arc::new(Notify::new());
    let (is_full, filling) = (Arc::clone(&full), producer.clone());
    let sending = tokio::spawn(async move {
        let (mut sent, mut cancelled) = (Vec::new(), 0);
        for n in 0..2_000 {
            match tokio::time::timeout(Duration::from_micros(200), filling.send(&kibi(n))).await {
                Ok(number) => {
                    assert_eq!(number, Ok(u64::try_from(sent.len()).expect("small")));
                    sent.push(n);
                }
                Err(_) => {
                    cancelled += 1;
                    is_full.notify_one();
                }
            }
        }
        (sent, cancelled)
    });
    // So that there is no room for some of them, however fast the consumer is.
    within(SOON, "a sender without room", full.notified()).await;
    let mut got = Vec::new();
    let (sent, cancelled) = {
        tokio::pin!(sending);
        loop {
            tokio::select! {
                done = &mut sending => break done.expect("it runs"),
                (_, _, item) = item(&mut consumer) => got.push(item.n),
            }
        }
    };
    while got.len() < sent.len() {
        got.push(item(&mut consumer).await.2.n);
    }
    assert_eq!(got, sent);
    assert!(cancelled > 0 && sent.len() > 16, "{cancelled} of 2000 were cancelled");
    drop(producer);
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receiving_that_is_cancelled_again_and_again_loses_nothing() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let sending = tokio::spawn(async move {
        for n in 0..3_000 {
            producer.send(&tick(n)).await.expect("sent");
            if n % 10 == 0 {
                tokio::task::yield_now().await;
            }
        }
        producer
    });
    let mut n = 0;
    let mut cancelled = 0;
    within(SOON, "all items", async {
        while n < 3_000 {
            tokio::select! {
                biased;
                received = consumer.recv() => match received {
                    Some(kinfolk::Received::Item { number, item, .. }) => {
                        assert_eq!((number, item.n), (n, n));
                        n += 1;
                    }
                    other => panic!("{other:?}"),
                },
                () = tokio::task::yield_now() => cancelled += 1,
            }
        }
    })
    .await;
    assert!(cancelled > 0, "something was always there");
    sending.await.expect("all was sent");
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_without_consumers_never_waits() {
    let (alice, bob) = pair().await;
    let producer = produced(small(&alice)).await;
    for n in 0..1_000 {
        assert_eq!(producer.try_send(&kibi(n)), Ok(n));
    }
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    send(&producer, 1_000..1_010).await;
    receives(&mut consumer, 1_000..1_010).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_of_a_megabyte_arrives_whole() {
    let (alice, bob) = pair().await;
    let size = 1024 * 1024;
    let builder = alice.producer(crate::scene::TICKS).item_max(size).keep_bytes(4 * 1024 * 1024);
    let producer = produced(builder).await;
    let wide = bob.consumer(crate::scene::TICKS).item_max(size);
    let mut consumer = wide.await.expect("a consumer");
    subscribed(&producer, 1).await;
    let long = crate::scene::Tick { n: 7, filling: "y".repeat(size - 10) };
    for _ in 0..5 {
        within(SOON, "room", producer.send(&long)).await.expect("sent");
        assert_eq!(item(&mut consumer).await.2, long);
    }
    over([alice, bob]).await;
}

/// Of any length.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Text(String);

impl kinfolk::Item for Text {
    const SCHEMA: kinfolk::Schema = kinfolk::Schema::new("text", 1);
}

#[tokio::test]
async fn a_sink_takes_others_after_an_item_that_cannot_be_sent() {
    let (alice, bob) = pair().await;
    let producer = alice.producer::<Text>("texts").item_max(100).await.expect("a producer");
    let mut consumer = bob.consumer::<Text>("texts").await.expect("a consumer");
    within(SOON, "a subscriber", producer.when_subscribed(1)).await.expect("it is up");
    let mut sink = producer.into_sink();
    let long = Text("x".repeat(200));
    sink.send(long).await.expect_err("it is too long");
    for text in ["a", "b"] {
        sink.send(Text(text.to_owned())).await.expect("sent");
        let received = within(SOON, "a text", consumer.recv()).await;
        let Some(kinfolk::Received::Item { item, .. }) = received else { panic!("{received:?}") };
        assert_eq!(item, Text(text.to_owned()));
    }
    drop(sink);
    over([alice, bob]).await;
}
