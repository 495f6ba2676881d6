//! What becomes of a consumer that does not keep up, and of those beside it.

use std::time::Duration;

use futures_util::FutureExt;
use kinfolk::{FeedEnd, NodeEvent, Producer, Received, StreamEnd, WhenFull};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::wait::within;

use crate::scene::{
    SOON, Tick, consumer, fill, from, kibi, next, over, pair, produced, receives, small, source,
    subscribed, tight,
};

/// Sends items of a kibibyte, which must find room at once whoever reads.
async fn rushes(producer: &Producer<Tick>, numbers: std::ops::Range<u64>) {
    for n in numbers {
        assert_eq!(within(SOON, "it does not wait", producer.send(&kibi(n))).await, Ok(n));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_the_oldest_items_learns_exactly_how_many() {
    let (alice, bob) = pair().await;
    let producer = produced(small(&alice).when_full(WhenFull::DropOldest)).await;
    let mut consumer = tight(&bob).await;
    subscribed(&producer, 1).await;
    let last = 999;
    rushes(&producer, 0..last + 1).await;
    let (mut expected, mut missed, mut items) = (0, 0, 0);
    while expected <= last {
        match next(&mut consumer).await {
            Received::Item { number, item, .. } => {
                assert_eq!((number, item.n), (expected, expected));
                expected += 1;
                items += 1;
            }
            Received::Gap { missed: more, .. } => {
                assert!(more > 0);
                expected += more;
                missed += more;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(items + missed, last + 1);
    assert!(missed > 500, "{missed} were missed");
    let seen = source(&consumer, alice.id()).expect("it is known");
    assert_eq!((seen.items, seen.missed), (items, missed));
    assert_eq!(producer.consumers()[0].missed, missed);
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_too_slow_is_disconnected_and_learns_what_it_missed_and_nobody_else_is_delayed() {
    let (alice, bob) = pair().await;
    let carl = from(3, alice.addr()).await;
    let mut log = EventLog::of(&alice).await;
    let producer = produced(small(&alice).when_full(WhenFull::Disconnect)).await;
    let mut slow = tight(&bob).await;
    let mut quick = consumer(&carl).await;
    subscribed(&producer, 2).await;
    let mut n = 0;
    let left = log.next(SOON, "it is cut", |event| matches!(event, NodeEvent::ConsumerLeft { .. }));
    tokio::pin!(left);
    // The quick one has all of it before more is sent. The slow one has a second for the reason, during which nothing that is sent waits for it.
    let left = loop {
        rushes(&producer, n..n + 1).await;
        receives(&mut quick, n..n + 1).await;
        n += 1;
        if let Some(left) = left.as_mut().now_or_never() {
            break left;
        }
    };
    match left {
        NodeEvent::ConsumerLeft { peer, reason, .. } => {
            assert_eq!((peer, reason), (bob.id(), FeedEnd::Ended(StreamEnd::TooSlow)));
        }
        other => panic!("{other:?}"),
    }
    // It reads on, comes back, and knows all that became of what it was not given.
    let (mut expected, mut gaps) = (0, 0);
    while expected < n {
        match next(&mut slow).await {
            Received::Item { number, .. } => {
                assert_eq!(number, expected);
                expected += 1;
            }
            Received::Gap { missed, .. } => {
                expected += missed;
                gaps += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(gaps <= 1, "{gaps} gaps");
    rushes(&producer, n..n + 1).await;
    receives(&mut quick, n..n + 1).await;
    over([alice, bob, carl]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_stalls_delays_no_other_where_the_oldest_are_dropped() {
    let (alice, bob) = pair().await;
    let carl = from(3, alice.addr()).await;
    let producer = produced(small(&alice).when_full(WhenFull::DropOldest)).await;
    let _stalled = tight(&bob).await;
    let mut quick = consumer(&carl).await;
    subscribed(&producer, 2).await;
    for n in 0..500 {
        rushes(&producer, n..n + 1).await;
        receives(&mut quick, n..n + 1).await;
    }
    assert_eq!(producer.consumers().len(), 2);
    over([alice, bob, carl]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_stalls_delays_the_others_until_patience_is_over_where_nothing_may_be_lost()
{
    let (alice, bob) = pair().await;
    let carl = from(3, alice.addr()).await;
    let mut log = EventLog::of(&alice).await;
    let producer = produced(small(&alice).patience(Duration::from_secs(2))).await;
    let _stalled = tight(&bob).await;
    let mut quick = consumer(&carl).await;
    subscribed(&producer, 2).await;
    let n = fill(&producer, 0).await;
    receives(&mut quick, 0..n).await;
    // Only the stalled one is in the way now.
    let next = kibi(n);
    let (sent, left) = tokio::join!(
        within(SOON, "room", producer.send(&next)),
        log.next(SOON, "it is cut", |event| matches!(event, NodeEvent::ConsumerLeft { .. })),
    );
    assert_eq!(sent, Ok(n));
    match left {
        NodeEvent::ConsumerLeft { peer, reason, .. } => {
            assert_eq!((peer, reason), (bob.id(), FeedEnd::Ended(StreamEnd::TooSlow)));
        }
        other => panic!("{other:?}"),
    }
    receives(&mut quick, n..n + 1).await;
    over([alice, bob, carl]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_consumer_that_never_reads_is_bounded_on_both_sides() {
    let (alice, bob) = pair().await;
    let producer = produced(small(&alice)).await;
    let consumer = tight(&bob).await;
    subscribed(&producer, 1).await;
    let n = fill(&producer, 0).await;
    // The log, what the feed has taken, QUIC's window, what the receiver has read, and the inlet.
    assert!(n < 250, "{n} KiB are on their way");
    assert_eq!(producer.consumers().len(), 1, "it is still subscribed");
    drop(consumer);
    within(SOON, "there is nobody in the way", producer.send(&kibi(n))).await.expect("sent");
    over([alice, bob]).await;
}
