//! How long a consumer that takes nothing holds up a producer that loses nothing, however the app sends and however the consumer comes back.

use std::time::Duration;

use kinfolk::{EndpointId, FeedEnd, NodeEvent, StreamEnd, TrySendError};
use kinfolk_core::wire::subscription::Answered;
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::wait::within;

use crate::scene::{
    SOON, TICKS, Tick, consumer, fill, kibi, next, over, pair, produced, small, subscribed, tight,
};
use crate::takers::{Consuming, answered, subscribe};

/// For how long producers have patience here.
const PATIENCE: Duration = Duration::from_secs(4);

/// Waits until this consumer is disconnected as too slow, while something else goes on that has no end.
async fn is_cut_off(log: &mut EventLog, peer: EndpointId, meanwhile: impl Future<Output = ()>) {
    let is_it = |event: &NodeEvent| {
        let slow = FeedEnd::Ended(StreamEnd::TooSlow);
        matches!(event, NodeEvent::ConsumerLeft { peer: left, reason, .. } if (*left, reason) == (peer, &slow))
    };
    tokio::select! {
        _ = log.next(SOON, "it is cut off", is_it) => {}
        () = meanwhile => panic!("it has an end"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_takes_nothing_is_cut_off_where_the_app_only_tries_to_send() {
    let (alice, bob) = pair().await;
    let mut log = EventLog::of(&alice).await;
    let producer = produced(small(&alice).patience(PATIENCE)).await;
    let _stalled = tight(&bob).await;
    subscribed(&producer, 1).await;
    let tries = async {
        let mut n = 0;
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        loop {
            match producer.try_send(&kibi(n)) {
                Ok(_) => n += 1,
                Err(TrySendError::Full) => {}
                Err(error) => panic!("{error}"),
            }
            pace.tick().await;
        }
    };
    is_cut_off(&mut log, bob.id(), tries).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_takes_nothing_is_cut_off_where_the_app_cancels_its_sends_soon() {
    let (alice, bob) = pair().await;
    let mut log = EventLog::of(&alice).await;
    let producer = produced(small(&alice).patience(PATIENCE)).await;
    let _stalled = tight(&bob).await;
    subscribed(&producer, 1).await;
    let sends = async {
        let mut n = 0;
        loop {
            let sent = tokio::time::timeout(PATIENCE / 40, producer.send(&kibi(n))).await;
            n += u64::from(sent.is_ok());
        }
    };
    is_cut_off(&mut log, bob.id(), sends).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_takes_nothing_is_cut_off_although_nothing_more_is_sent() {
    let (alice, bob) = pair().await;
    let mut log = EventLog::of(&alice).await;
    let producer = produced(small(&alice).patience(PATIENCE)).await;
    let _stalled = tight(&bob).await;
    subscribed(&producer, 1).await;
    fill(&producer, 0).await;
    is_cut_off(&mut log, bob.id(), std::future::pending()).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_gains_nothing_by_subscribing_again_just_before_it_is_cut_off() {
    let (alice, bob) = pair().await;
    let mut log = EventLog::of(&alice).await;
    let patience = Duration::from_secs(3);
    // More than the feed of a new subscription takes by itself.
    let producer = produced(
        alice.producer(TICKS).item_max(16 * 1024).keep_bytes(256 * 1024).patience(patience),
    )
    .await;
    let mut quick = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let cheat = Consuming::at(&alice, 77).await;
    let item = Tick { n: 0, filling: "x".repeat(8 * 1024) };
    let sends = async {
        loop {
            producer.send(&item).await.expect("sent");
        }
    };
    let reads = async {
        loop {
            next(&mut quick).await;
        }
    };
    let returns = async {
        for id in 0.. {
            let (_send, mut receive) = cheat.asks(&[subscribe(id)]).await;
            let answer = answered(&mut receive).await;
            assert!(matches!(answer, Answered::Accepted(_)), "{answer:?}");
            tokio::time::sleep(patience * 2 / 3).await;
        }
    };
    let all = async {
        tokio::join!(sends, reads, returns);
    };
    is_cut_off(&mut log, Consuming::id(77), all).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_was_cut_off_and_reads_again_is_served_as_before() {
    let (alice, bob) = pair().await;
    let mut log = EventLog::of(&alice).await;
    let producer = produced(small(&alice).patience(PATIENCE)).await;
    let mut stalled = tight(&bob).await;
    subscribed(&producer, 1).await;
    let n = fill(&producer, 0).await;
    is_cut_off(&mut log, bob.id(), std::future::pending()).await;
    let last = n + 500;
    let sends = async {
        for n in n..=last {
            within(SOON, "room", producer.send(&kibi(n))).await.expect("sent");
        }
        // What was sent while nobody was subscribed may be lost.
        let mut n = last;
        loop {
            n += 1;
            within(SOON, "room", producer.send(&kibi(n))).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reads = async {
        loop {
            if let kinfolk::Received::Item { number, .. } = next(&mut stalled).await
                && number > last
            {
                return;
            }
        }
    };
    tokio::select! {
        () = reads => {}
        () = sends => panic!("it has no end"),
    }
    over([alice, bob]).await;
}
