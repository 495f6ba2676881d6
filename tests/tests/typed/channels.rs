//! Streams of state, of which only the newest counts, and streams of datagrams.

use std::collections::BTreeMap;
use std::time::Duration;

use kinfolk::{AppendError, Channel, Consumer, KeyError, Producer, Received, SendError};
use kinfolk_tests::support::wait::within;

use crate::scene::{
    SOON, TICKS, Tick, apart, consumer, exactly, item, kibi, over, pair, produced, receives, send,
    source, subscribed, tick, tight,
};

const KEYS: u64 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_state_that_stalls_gets_the_newest_of_each_key_and_little_that_is_old() {
    let (alice, bob) = pair().await;
    let state = alice.producer(TICKS).latest(|tick: &Tick| tick.n % KEYS);
    let producer = produced(state).await;
    let mut consumer = tight(&bob).await;
    subscribed(&producer, 1).await;
    let last = 2_000;
    for n in 0..last {
        assert_eq!(within(SOON, "it never waits", producer.send(&kibi(n))).await, Ok(n));
    }
    let mut newest = BTreeMap::new();
    let (mut before, mut count) = (None, 0);
    while before != Some(last - 1) {
        let (_, number, item) = item(&mut consumer).await;
        assert!(before.is_none_or(|before| number > before), "{number} behind {before:?}");
        assert_eq!(number, item.n);
        newest.insert(item.n % KEYS, item.n);
        before = Some(number);
        count += 1;
    }
    assert_eq!(newest.into_values().collect::<Vec<_>>(), [last - 4, last - 3, last - 2, last - 1]);
    // What QUIC and the consumer hold on the way, and the newest.
    assert!(count < 300, "{count} of {last} came");
    let seen = source(&consumer, alice.id()).expect("it is known");
    assert_eq!((seen.channel, seen.missed), (Some(Channel::Latest), 0));
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_value_of_a_stream_of_state_always_arrives() {
    let (alice, bob) = pair().await;
    let state = alice.producer(TICKS).latest(|_: &Tick| ());
    let producer = produced(state).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    for round in 1..=50 {
        for n in 0..round {
            producer.send(&tick(round * 1000 + n)).await.expect("sent");
        }
        while item(&mut consumer).await.2.n != round * 1000 + round - 1 {}
    }
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_of_state_held_at_its_end_is_delivered() {
    let (alice, bob) = pair().await;
    let state = alice.producer(TICKS).latest(|tick: &Tick| tick.n % KEYS);
    let producer = produced(state).await;
    let mut consumer = tight(&bob).await;
    subscribed(&producer, 1).await;
    for n in 0..500 {
        producer.send(&kibi(n)).await.expect("sent");
    }
    let finishing = tokio::spawn(producer.finish());
    while item(&mut consumer).await.2.n != 499 {}
    within(SOON, "the end", finishing).await.expect("it finishes");
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_lost_link_the_newest_state_of_each_key_arrives_and_what_it_superseded_is_counted()
{
    let (alice, bob, network) = apart().await;
    let state = alice.producer(TICKS).latest(|tick: &Tick| tick.n % KEYS);
    let producer = produced(state).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    send(&producer, 0..KEYS).await;
    receives(&mut consumer, 0..KEYS).await;
    network.partition();
    exactly(&producer, 0).await;
    let last = 1_000;
    send(&producer, KEYS..last).await;
    network.heal();
    receives(&mut consumer, last - KEYS..last).await;
    let seen = source(&consumer, alice.id()).expect("it is known");
    let counts = (seen.items, seen.superseded, seen.missed, seen.reconnects);
    assert_eq!(counts, (2 * KEYS, last - 2 * KEYS, 0, 1));
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn state_of_more_bytes_than_a_producer_keeps_is_refused_and_the_rest_goes_on() {
    let (alice, bob) = pair().await;
    let state = alice.producer(TICKS).item_max(2 * 1024).keys_bytes(16 * 1024);
    let producer = produced(state.latest(|tick: &Tick| tick.n)).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let full = Err(SendError::Refused(AppendError::Key(KeyError::NoRoom(16 * 1024))));
    let mut n = 0;
    let refused = loop {
        let sent = producer.send(&kibi(n)).await;
        if sent != Ok(n) {
            break sent;
        }
        n += 1;
        assert!(n < 17, "all is kept");
    };
    assert_eq!((refused, n), (full, 13));
    // A newer one of a known key still has room.
    assert_eq!(producer.send(&kibi(0)).await, Ok(n));
    while item(&mut consumer).await.1 != n {}
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_arrive_and_those_that_do_not_are_counted() {
    let (alice, bob) = pair().await;
    let producer = produced(alice.producer(TICKS).datagrams()).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    // Until one has arrived, so that what comes before the first is known.
    let mut first = None;
    let mut sent = 0;
    while first.is_none() {
        producer.send(&tick(sent)).await.expect("sent");
        sent += 1;
        let soon = tokio::time::timeout(Duration::from_millis(50), consumer.recv());
        if let Ok(Some(Received::Item { number, item, .. })) = soon.await {
            assert_eq!(number, item.n);
            first = Some(number);
        }
        assert!(sent < 400, "none arrives: {:?}", consumer.sources());
    }
    let first = first.expect("it came");
    let until = sent + 500;
    for n in sent..until {
        producer.send(&tick(n)).await.expect("sent");
        if n % 10 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // The last ones may be lost like any: until one of a number above has come.
    let mut got = 1;
    let mut n = until;
    let mut highest = first;
    within(SOON, "a late one", async {
        while highest < until {
            tokio::select! {
                biased;
                received = consumer.recv() => match received {
                    Some(Received::Item { number, item, .. }) => {
                        assert_eq!(number, item.n);
                        highest = highest.max(number);
                        got += 1;
                    }
                    other => panic!("{other:?}"),
                },
                () = tokio::time::sleep(Duration::from_millis(20)) => {
                    producer.send(&tick(n)).await.expect("sent");
                    n += 1;
                }
            }
        }
    })
    .await;
    let seen = source(&consumer, alice.id()).expect("it is known");
    assert_eq!(seen.channel, Some(Channel::Datagram));
    assert!(seen.items >= got, "{seen:?}");
    // Those lost before the first one that came are counted too.
    assert!(seen.items + seen.missed <= n, "{seen:?}, {n} sent");
    assert!(seen.items + seen.missed > highest - first, "{seen:?}, {highest} came last");
    assert!(got > 50, "{got} of {n} came");
    let [ref fed] = producer.consumers()[..] else { panic!("{:?}", producer.consumers()) };
    assert_eq!((fed.behind, fed.missed), (0, 0));
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datagram_of_more_than_a_thousand_bytes_is_refused() {
    let (alice, bob) = pair().await;
    let producer = produced(alice.producer(TICKS).datagrams()).await;
    let long = Tick { n: 0, filling: "x".repeat(1_000) };
    let refused = producer.send(&long).await;
    let expected = AppendError::TooLarge { length: 1_003, max: 1_000 };
    assert_eq!(refused, Err(SendError::Refused(expected)));
    over([alice, bob]).await;
}

/// Sends ticks from this number on until one with at least the number `until` has come; the number of the next one. All that came is put behind `got`.
async fn reach(
    producer: &Producer<Tick>,
    consumer: &mut Consumer<Tick>,
    mut n: u64,
    until: u64,
    got: &mut Vec<Received<Tick>>,
) -> u64 {
    within(SOON, "datagrams", async {
        loop {
            producer.send(&tick(n)).await.expect("sent");
            n += 1;
            let soon = tokio::time::timeout(Duration::from_millis(10), consumer.recv());
            if let Ok(received) = soon.await {
                got.push(received.expect("the node is up"));
            }
            if matches!(got.last(), Some(Received::Item { number, .. }) if *number >= until) {
                return n;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_go_on_after_a_lost_link_and_each_is_received_or_counted_once() {
    let (alice, bob, network) = apart().await;
    let producer = produced(alice.producer(TICKS).datagrams()).await;
    let mut consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let mut got = Vec::new();
    let sent = reach(&producer, &mut consumer, 0, 50, &mut got).await;
    network.partition();
    exactly(&producer, 0).await;
    send(&producer, sent..sent + 100).await;
    network.heal();
    subscribed(&producer, 1).await;
    let sent = sent + 100;
    let last = reach(&producer, &mut consumer, sent, sent + 50, &mut got).await;
    // What is still on its way comes now or not at all; what came is counted before it is read.
    let mut seen = source(&consumer, alice.id()).expect("it is known");
    within(SOON, "all that came", async {
        let items = |got: &[Received<Tick>]| {
            got.iter().filter(|received| matches!(received, Received::Item { .. })).count()
        };
        while u64::try_from(items(&got)) != Ok(seen.items) {
            got.push(consumer.recv().await.expect("the node is up"));
            seen = source(&consumer, alice.id()).expect("it is known");
        }
    })
    .await;
    let gap = got.iter().position(|received| matches!(received, Received::Gap { .. }));
    let gap = gap.expect("what was sent meanwhile is lost");
    let numbers = |got: &[Received<Tick>]| -> Vec<u64> {
        let number = |received: &Received<Tick>| match received {
            Received::Item { number, item, .. } => {
                assert_eq!(*number, item.n);
                *number
            }
            other => panic!("{other:?}"),
        };
        got.iter().map(number).collect()
    };
    let (before, after) = (numbers(&got[..gap]), numbers(&got[gap + 1..]));
    let highest = *before.iter().max().expect("some came");
    assert!(after.iter().all(|number| *number >= sent), "{after:?} from {sent} on");
    let lost = sent - highest - 1;
    assert!(matches!(got[gap], Received::Gap { missed, .. } if missed == lost), "{:?}", got[gap]);
    let mut once = [before, after].concat();
    let highest = *once.iter().max().expect("some came");
    once.sort_unstable();
    once.dedup();
    assert_eq!(u64::try_from(once.len()), Ok(seen.items), "none comes twice");
    assert_eq!((seen.items + seen.missed, seen.reconnects), (highest + 1, 1), "{last} were sent");
    over([alice, bob]).await;
}
