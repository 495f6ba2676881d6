//! Consumers that do not keep to the protocol: their own subscription ends with blame, or they take what anybody may, and nobody else loses anything by them.

use std::time::{Duration, Instant};

use iroh::endpoint::{RecvStream, SendStream};
use kinfolk::{Node, Refusal};
use kinfolk_core::stream::Schema;
use kinfolk_core::wire::subscription::{
    ANSWERED_MAX, Answered, ConsumerFrame, PROTOCOL, Subscribe,
};
use kinfolk_core::wire::{Answer, Extensions, StreamMode};
use kinfolk_tests::support::guest::{Guest, header, hello};
use kinfolk_tests::support::stranger::{Stranger, trickle};
use kinfolk_tests::support::wait::{eventually, within};

use crate::cheats::{framed, name};
use crate::scene::{
    SOON, TICKS, Tick, consumer, item, kibi, over, produced, producer, receives, send, small,
    source, subscribed,
};

/// A stranger that asks a node for its stream.
pub struct Consuming {
    guest: Guest,
}

impl Consuming {
    pub async fn at(node: &Node, key: u8) -> Self {
        Self::with_window(node, key, 4 * 1024).await
    }

    /// One that takes so many bytes on each stream before it reads.
    pub async fn with_window(node: &Node, key: u8, bytes: u32) -> Self {
        let stranger = Stranger::builder(key).stream_window(bytes).bind().await;
        let guest = Guest::enter(&stranger, node, hello(u64::from(key), 0)).await;
        // It has to live for as long as its connection.
        std::mem::forget(stranger);
        Self { guest }
    }

    pub fn id(key: u8) -> kinfolk::EndpointId {
        kinfolk::SecretKey::from_bytes(&[key; 32]).public()
    }

    pub async fn asks(&self, frames: &[ConsumerFrame]) -> (SendStream, RecvStream) {
        let mut bytes = header(PROTOCOL, StreamMode::Eager);
        for frame in frames {
            bytes.extend(frame.encode().expect("a frame"));
        }
        self.guest.ask(&bytes).await
    }
}

pub fn asking(id: u64) -> Subscribe {
    Subscribe {
        id,
        name: name(),
        schema: Schema::new("tick", 1),
        resume: None,
        ticket: None,
        extensions: Extensions::none(),
    }
}

pub fn subscribe(id: u64) -> ConsumerFrame {
    ConsumerFrame::Subscribe(asking(id))
}

/// What a node answers.
pub async fn answered(receive: &mut RecvStream) -> Answered {
    let mut ack = [0];
    within(SOON, "an answer", receive.read_exact(&mut ack)).await.expect("one byte");
    assert_eq!(ack, [Answer::Ack.to_byte()]);
    let body = framed(receive, ANSWERED_MAX).await.expect("a frame");
    Answered::decode(&body).expect("what a node says")
}

/// A number of a node's streams that ended.
async fn ended(node: &Node, how: &str) -> u64 {
    let metrics = node.metrics().await.expect("it is up");
    metrics.streams.subscriptions_ended.get(how).copied().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_subscribes_a_thousand_times_gets_a_few_places_and_takes_nobodys() {
    let (node, honest) = crate::scene::pair().await;
    let producer = producer(&node).await;
    let cheat = Consuming::at(&node, 77).await;
    let mut open = Vec::new();
    let mut accepted = 0;
    for id in 0..1_000 {
        let (send, mut receive) = cheat.asks(&[subscribe(id)]).await;
        match answered(&mut receive).await {
            Answered::Accepted(_) => {
                accepted += 1;
                open.push((send, receive));
            }
            Answered::Refused(refusal) => assert_eq!(refusal, Refusal::NoCapacity),
        }
    }
    assert_eq!((accepted, producer.consumers().len()), (8, 8));
    let mut served = consumer(&honest).await;
    subscribed(&producer, 9).await;
    send(&producer, 0..10).await;
    receives(&mut served, 0..10).await;
    drop(open);
    crate::scene::exactly(&producer, 1).await;
    over([node, honest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_subscribes_twice_on_one_stream_is_cut_off() {
    let (node, honest) = crate::scene::pair().await;
    let producer = producer(&node).await;
    let cheat = Consuming::at(&node, 77).await;
    let (_send, mut receive) = cheat.asks(&[subscribe(1), subscribe(2)]).await;
    while let Ok(Some(_)) = within(SOON, "the end", receive.read_chunk(1024)).await {}
    eventually(SOON, "it is blamed", async || ended(&node, "misbehaved").await == 1).await;
    crate::scene::exactly(&producer, 0).await;
    over([node, honest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_sends_garbage_is_cut_off() {
    let (node, honest) = crate::scene::pair().await;
    let producer = producer(&node).await;
    let cheat = Consuming::at(&node, 77).await;
    let (mut send, mut receive) = cheat.asks(&[subscribe(1)]).await;
    assert!(matches!(answered(&mut receive).await, Answered::Accepted(_)));
    send.write_all(&[0, 0, 0, 3, 9, 9, 9]).await.expect("the node reads");
    eventually(SOON, "it is blamed", async || ended(&node, "misbehaved").await == 1).await;
    crate::scene::exactly(&producer, 0).await;
    // So is one that begins with it.
    let mut garbage = header(PROTOCOL, StreamMode::Eager);
    garbage.extend([0xff; 8]);
    let (_send, _receive) = cheat.guest.ask(&garbage).await;
    eventually(SOON, "it is counted", async || {
        let metrics = node.metrics().await.expect("it is up");
        metrics.streams.subscriptions_refused.values().sum::<u64>() == 1
    })
    .await;
    over([node, honest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_lies_about_what_it_has_taken_gets_no_more_than_its_window_and_harms_nobody()
 {
    let (node, honest) = crate::scene::pair().await;
    let state = node.producer(TICKS).latest(|tick: &Tick| tick.n % 100);
    let producer = produced(state).await;
    let mut served = consumer(&honest).await;
    let cheat = Consuming::at(&node, 77).await;
    let (mut to_node, mut receive) = cheat.asks(&[subscribe(1)]).await;
    assert!(matches!(answered(&mut receive).await, Answered::Accepted(_)));
    subscribed(&producer, 2).await;
    let lies = [u64::MAX, 0, 1_999, u64::MAX - 1, 5, 5];
    let lies = lies.map(|through| ConsumerFrame::Taken { through }.encode().expect("a frame"));
    let lying = tokio::spawn(async move {
        for _ in 0..500 {
            to_node.write_all(&lies.concat()).await.expect("the node reads");
        }
        to_node
    });
    for n in 0..2_000 {
        producer.send(&kibi(n)).await.expect("sent");
    }
    let mut newest = std::collections::BTreeMap::new();
    while newest.get(&99) != Some(&1_999) {
        let (_, _, item) = crate::scene::item(&mut served).await;
        newest.insert(item.n % 100, item.n);
    }
    assert!(newest.into_values().eq(1_900..2_000), "the honest one has the newest of each key");
    let _to_node = within(SOON, "all lies are read", lying).await.expect("it runs");
    // It reads nothing: what it was given is its window, and what was taken out at once beyond it.
    let fed = producer.consumers();
    let liar = fed.iter().find(|fed| fed.peer != honest.id()).expect("nobody blames it");
    assert!(liar.bytes < 256 * 1024, "{liar:?}");
    assert_eq!(ended(&node, "misbehaved").await, 0);
    drop(receive);
    over([node, honest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_new_tickets_are_looked_at_one_at_a_time_and_disturb_nobody() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (node, honest) = crate::scene::pair().await;
    let at_once = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (now, peak) = (Arc::clone(&at_once), Arc::clone(&most));
    let builder = node.producer(TICKS).tickets(move |_, ticket| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            if ticket == "cheat" {
                peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
            }
            kinfolk::TicketVerdict::Valid
        }
    });
    let producer = produced(builder).await;
    let served = honest.consumer(TICKS).ticket("honest").await;
    let mut served = served.expect("a consumer");
    let cheat = Consuming::at(&node, 77).await;
    let mut asking = asking(1);
    asking.ticket = Some(b"cheat".to_vec());
    let (mut to_node, mut receive) = cheat.asks(&[ConsumerFrame::Subscribe(asking)]).await;
    assert!(matches!(answered(&mut receive).await, Answered::Accepted(_)));
    subscribed(&producer, 2).await;
    let renew = ConsumerFrame::Renew { ticket: b"cheat".to_vec() }.encode().expect("a frame");
    let flood = tokio::spawn(async move {
        let _ = to_node.write_all(&renew.repeat(1_000)).await;
        to_node
    });
    send(&producer, 0..100).await;
    receives(&mut served, 0..100).await;
    let _to_node = within(SOON, "all are read", flood).await.expect("it runs");
    assert_eq!(most.load(Ordering::SeqCst), 1);
    over([node, honest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tickets_where_nobody_looks_at_them_are_ignored_and_a_thousand_of_them_end_the_subscription()
 {
    let (node, honest) = crate::scene::pair().await;
    let producer = producer(&node).await;
    let mut served = consumer(&honest).await;
    let cheat = Consuming::at(&node, 77).await;
    let (mut to_node, mut receive) = cheat.asks(&[subscribe(1)]).await;
    assert!(matches!(answered(&mut receive).await, Answered::Accepted(_)));
    subscribed(&producer, 2).await;
    for ticket in ["one", "two", "three"] {
        served.set_ticket(ticket).expect("a ticket");
        send(&producer, 0..1).await;
        item(&mut served).await;
    }
    eventually(SOON, "they are counted", async || {
        let streams = node.metrics().await.expect("it is up").streams;
        streams.renewals_ignored.contains_key("not_wanted")
    })
    .await;
    let renew = ConsumerFrame::Renew { ticket: vec![7; 4096] }.encode().expect("a frame");
    let flood = tokio::spawn(async move {
        let _ = to_node.write_all(&renew.repeat(1_000)).await;
    });
    eventually(SOON, "it is blamed", async || ended(&node, "misbehaved").await == 1).await;
    within(SOON, "the rest is not taken", flood).await.expect("it runs");
    crate::scene::exactly(&producer, 1).await;
    assert_eq!(source(&served, node.id()).map(|source| source.reconnects), Some(0));
    over([node, honest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_never_read_or_read_a_byte_now_and_then_are_disconnected_and_delay_nobody_after()
 {
    let (node, honest) = crate::scene::pair().await;
    let producer = produced(small(&node).patience(Duration::from_secs(1))).await;
    let mut served = consumer(&honest).await;
    let cheat = Consuming::at(&node, 77).await;
    let (_never, mut never) = cheat.asks(&[subscribe(1)]).await;
    assert!(matches!(answered(&mut never).await, Answered::Accepted(_)));
    let other = Consuming::at(&node, 78).await;
    let (mut slow_send, mut slow) = other.asks(&[subscribe(2)]).await;
    assert!(matches!(answered(&mut slow).await, Answered::Accepted(_)));
    let slow = tokio::spawn(async move {
        let mut byte = [0];
        while slow.read_exact(&mut byte).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    // Nor does it help to speak slowly.
    let speaks = tokio::spawn(async move {
        trickle(&mut slow_send, &[0; 4], Duration::from_secs(1)).await;
        slow_send
    });
    subscribed(&producer, 3).await;
    let began = Instant::now();
    for n in 0..400 {
        within(SOON, "room", producer.send(&kibi(n))).await.expect("sent");
        receives(&mut served, n..n + 1).await;
    }
    assert!(began.elapsed() < SOON, "it takes {:?}", began.elapsed());
    crate::scene::exactly(&producer, 1).await;
    // Of either the producer hears when its place is free already.
    eventually(SOON, "both were cut off", async || {
        ended(&node, "too_slow").await + ended(&node, "misbehaved").await == 2
    })
    .await;
    slow.abort();
    speaks.abort();
    over([node, honest]).await;
}
