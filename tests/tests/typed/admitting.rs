//! Who may consume: records, tickets, places and schemas.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kinfolk::{
    Bytes, EndpointId, Item, Node, ProducerBuilder, Refusal, Schema, SourceState, StreamEnd,
    Termination, TicketVerdict, Topic,
};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{
    SOON, TICKS, Tick, alone, becomes, consumer, discovering, exactly, from, online, over, pair,
    produced, producer, receives, send, source, subscribed,
};

/// How often a producer has refused for this reason.
async fn refused(node: &Node, reason: &str) -> u64 {
    let metrics = node.metrics().await.expect("it is up");
    metrics.streams.subscriptions_refused.get(reason).copied().unwrap_or(0)
}

const fn terminated(refusal: Refusal) -> SourceState {
    SourceState::Terminated(Termination::Refused(refusal))
}

fn members() -> Topic {
    Topic::from_name("members")
}

fn for_members(node: &Node) -> ProducerBuilder<Tick> {
    let topic = members();
    node.producer(TICKS).admit(move |record| record.topics().any(|one| one == topic))
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_served_and_others_refused_for_good() {
    let alice = alone(1).await;
    let producer = produced(for_members(&alice)).await;
    let bob = discovering(2).topics([members()]).bootstrap(alice.addr());
    let bob = bob.spawn().await.expect("it starts");
    let carl = from(3, alice.addr()).await;
    let (mut member, other) = (consumer(&bob).await, consumer(&carl).await);
    subscribed(&producer, 1).await;
    becomes(&other, alice.id(), "it is refused", |state| *state == terminated(Refusal::NotAllowed))
        .await;
    let before = refused(&alice, "not_allowed").await;
    send(&producer, 0..10).await;
    receives(&mut member, 0..10).await;
    // Whatever changes in the catalog, one that was refused for good does not ask again.
    for topic in ["one", "two", "three"].map(Topic::from_name) {
        alice.join_topic(topic).expect("it is up");
        eventually(SOON, "it is known", async || {
            let known = carl.catalog();
            let entry = known.get(&alice.id()).expect("it is there");
            entry.record().topics().any(|one| one == topic)
        })
        .await;
    }
    let dora = from(4, alice.addr()).await;
    eventually(SOON, "dora is known", async || carl.catalog().get(&dora.id()).is_some()).await;
    assert_eq!(refused(&alice, "not_allowed").await, before);
    over([alice, bob, carl, dora]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_leaves_is_cut_off_at_once() {
    let alice = alone(1).await;
    let producer = produced(for_members(&alice)).await;
    let bob = discovering(2).topics([members()]).bootstrap(alice.addr());
    let bob = bob.spawn().await.expect("it starts");
    let member = consumer(&bob).await;
    subscribed(&producer, 1).await;
    bob.leave_topic(&members()).expect("it is up");
    becomes(&member, alice.id(), "it is cut off", |state| {
        *state == SourceState::Terminated(Termination::Ended(StreamEnd::NotAllowed))
    })
    .await;
    exactly(&producer, 0).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_the_producer_does_not_know_introduces_itself_first() {
    // The producer's node is told of nobody: whoever asks is unknown until the two have exchanged what they know.
    for round in 0..3 {
        let alice = alone(1).await;
        let producer = produced(for_members(&alice)).await;
        let bob = discovering(10 + round).topics([members()]).bootstrap(alice.addr());
        let bob = bob.spawn().await.expect("it starts");
        let mut member = consumer(&bob).await;
        subscribed(&producer, 1).await;
        send(&producer, 0..10).await;
        receives(&mut member, 0..10).await;
        over([alice, bob]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_predicate_that_panics_admits_nobody_and_harms_nothing() {
    let (alice, bob) = pair().await;
    let builder = alice.producer::<Tick>(TICKS).admit(|_| panic!("the app's own fault"));
    let _producer = produced(builder).await;
    let other = producer_named(&alice, "other").await;
    let refused = consumer(&bob).await;
    becomes(&refused, alice.id(), "it is refused", |state| {
        *state == terminated(Refusal::NotAllowed)
    })
    .await;
    let mut served = bob.consumer::<Tick>("other").await.expect("a consumer");
    subscribed(&other, 1).await;
    send(&other, 0..3).await;
    receives(&mut served, 0..3).await;
    over([alice, bob]).await;
}

async fn producer_named(node: &Node, name: &str) -> kinfolk::Producer<Tick> {
    produced(node.producer(name)).await
}

/// A producer that finds tickets good for as many milliseconds as they say, and for ever if that is `ever`.
fn timed(node: &Node) -> ProducerBuilder<Tick> {
    node.producer(TICKS).tickets(|_: EndpointId, ticket: Bytes| async move {
        match ticket.as_ref() {
            b"ever" => TicketVerdict::Valid,
            other => match std::str::from_utf8(other).ok().and_then(|text| text.parse().ok()) {
                Some(time) => TicketVerdict::ValidFor(Duration::from_millis(time)),
                None => TicketVerdict::Invalid,
            },
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ticket_or_with_a_bad_one_nobody_is_served_until_there_is_a_good_one() {
    let (alice, bob) = pair().await;
    let producer = produced(timed(&alice)).await;
    let mut consumer = consumer(&bob).await;
    for (bad, times) in [(None, 1), (Some("bad"), 2)] {
        if let Some(bad) = bad {
            consumer.set_ticket(bad).expect("a ticket");
        }
        eventually(SOON, "it is refused", async || refused(&alice, "bad_ticket").await == times)
            .await;
        becomes(&consumer, alice.id(), "it is refused", |state| {
            *state == terminated(Refusal::BadTicket)
        })
        .await;
    }
    consumer.set_ticket("ever").expect("a ticket");
    subscribed(&producer, 1).await;
    send(&producer, 0..10).await;
    receives(&mut consumer, 0..10).await;
    assert_eq!(refused(&alice, "bad_ticket").await, 2);
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_expires_ends_the_subscription_and_a_new_one_begins_it_again() {
    let (alice, bob) = pair().await;
    let producer = produced(timed(&alice)).await;
    let consumer = bob.consumer(TICKS).ticket("1000").await;
    let mut consumer = consumer.expect("a consumer");
    subscribed(&producer, 1).await;
    send(&producer, 0..10).await;
    becomes(&consumer, alice.id(), "it has expired", |state| {
        *state == SourceState::Terminated(Termination::Ended(StreamEnd::TicketExpired))
    })
    .await;
    exactly(&producer, 0).await;
    send(&producer, 10..20).await;
    consumer.set_ticket("ever").expect("a ticket");
    receives(&mut consumer, 0..20).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_is_renewed_in_time_is_not_ended_by_the_clock_of_the_old_one() {
    let (alice, bob) = pair().await;
    let producer = produced(timed(&alice)).await;
    let consumer = bob.consumer(TICKS).ticket("3000").await;
    let mut consumer = consumer.expect("a consumer");
    online(&consumer, 1).await;
    let began = tokio::time::Instant::now();
    consumer.set_ticket("bad").expect("a ticket");
    consumer.set_ticket("ever").expect("a ticket");
    let mut n = 0;
    // Well beyond the end of the first.
    while began.elapsed() < Duration::from_millis(4500) {
        send(&producer, n..n + 1).await;
        receives(&mut consumer, n..n + 1).await;
        n += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(source(&consumer, alice.id()).map(|source| source.reconnects), Some(0));
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_app_does_not_read_renews_its_ticket_all_the_same() {
    let (alice, bob) = pair().await;
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let builder = crate::scene::small(&alice).tickets(move |_, ticket| {
        counter.fetch_add(usize::from(ticket == "two"), Ordering::Relaxed);
        async { TicketVerdict::Valid }
    });
    let producer = produced(builder).await;
    let stalled = bob.consumer::<Tick>(TICKS).buffer(2 * 1024).ticket("one").await;
    let stalled = stalled.expect("a consumer");
    subscribed(&producer, 1).await;
    crate::scene::fill(&producer, 0).await;
    stalled.set_ticket("two").expect("a ticket");
    eventually(SOON, "the second ticket is looked at", async || seen.load(Ordering::Relaxed) == 1)
        .await;
    let state = source(&stalled, alice.id()).expect("it is known");
    assert_eq!((state.reconnects, state.last_error), (0, None));
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_that_panics_or_never_returns_lets_nobody_in_and_keeps_nobody_waiting() {
    let mut limits = crate::scene::narrow();
    limits.streams.subscribers.ticket_check = Duration::from_secs(1);
    let alice = discovering(1).limits(limits).spawn().await.expect("it starts");
    let bob = from(2, alice.addr()).await;
    let hanging = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&hanging);
    let builder = alice.producer(TICKS).tickets(move |_: EndpointId, ticket: Bytes| {
        counter.fetch_add(usize::from(ticket == "never"), Ordering::Relaxed);
        async move {
            match ticket.as_ref() {
                b"panic" => panic!("the app's own fault"),
                b"never" => std::future::pending().await,
                _ => TicketVerdict::Valid,
            }
        }
    });
    let producer = produced(builder).await;
    let mut consumer = consumer(&bob).await;
    for (ticket, reason) in [("panic", "bad_ticket"), ("never", "unchecked")] {
        eventually(SOON, "it has its answer", async || {
            source(&consumer, alice.id())
                .is_some_and(|source| source.state == terminated(Refusal::BadTicket))
        })
        .await;
        // What was refused so far was another ticket.
        let before = refused(&alice, reason).await;
        consumer.set_ticket(ticket).expect("a ticket");
        eventually(SOON, "it is refused", async || refused(&alice, reason).await > before).await;
    }
    consumer.set_ticket("good").expect("a ticket");
    subscribed(&producer, 1).await;
    // One that is in goes on while the new one hangs, and is heard again after it.
    consumer.set_ticket("never").expect("a ticket");
    send(&producer, 0..10).await;
    receives(&mut consumer, 0..10).await;
    eventually(SOON, "it is looked at", async || hanging.load(Ordering::Relaxed) == 2).await;
    drop(consumer);
    exactly(&producer, 0).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_that_is_slow_once_keeps_nobody_out_for_good() {
    let mut limits = crate::scene::narrow();
    limits.streams.subscribers.ticket_check = Duration::from_millis(500);
    let alice = discovering(1).limits(limits).spawn().await.expect("it starts");
    let bob = from(2, alice.addr()).await;
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&looks);
    let builder = alice.producer(TICKS).tickets(move |_, _| {
        let look = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            if look == 0 {
                std::future::pending::<()>().await;
            }
            TicketVerdict::Valid
        }
    });
    let producer = produced(builder).await;
    let consumer = bob.consumer(TICKS).ticket("good").await;
    let mut consumer = consumer.expect("a consumer");
    subscribed(&producer, 1).await;
    send(&producer, 0..10).await;
    receives(&mut consumer, 0..10).await;
    assert_eq!((refused(&alice, "unchecked").await, refused(&alice, "bad_ticket").await), (1, 0));
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_place_takes_one_that_becomes_free() {
    let (alice, bob) = pair().await;
    let carl = from(3, alice.addr()).await;
    let producer = produced(alice.producer(TICKS).max_consumers(1)).await;
    let first = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let mut second = consumer(&carl).await;
    eventually(SOON, "there is no place", async || refused(&alice, "no_capacity").await > 0).await;
    assert_eq!(producer.consumers().len(), 1);
    drop(first);
    eventually(SOON, "the place is taken", async || {
        producer.consumers().iter().any(|fed| fed.peer == carl.id())
    })
    .await;
    send(&producer, 0..10).await;
    receives(&mut second, 0..10).await;
    over([alice, bob, carl]).await;
}

/// The same stream in another version.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Tock(u8);

impl Item for Tock {
    const SCHEMA: Schema = Schema::new("tick", 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_of_another_schema_refuses_and_says_its_own_while_the_right_one_serves() {
    let hub = alone(1).await;
    let (anna, bert) = (from(2, hub.addr()).await, from(3, hub.addr()).await);
    let _newer = anna.producer::<Tock>(TICKS).await.expect("a producer");
    let right = producer(&bert).await;
    let node = from(4, hub.addr()).await;
    let mut consumer = consumer(&node).await;
    subscribed(&right, 1).await;
    let offered = Tock::SCHEMA;
    becomes(&consumer, anna.id(), "it is refused", |state| {
        *state == terminated(Refusal::Schema { offered: offered.clone() })
    })
    .await;
    let last = source(&consumer, anna.id()).and_then(|source| source.last_error);
    let last = last.expect("it was refused");
    assert!(last.contains("tick/2"), "{last}");
    assert_eq!(refused(&anna, "schema").await, 1);
    send(&right, 0..10).await;
    receives(&mut consumer, 0..10).await;
    within(SOON, "the end", over([hub, anna, bert, node])).await;
}
