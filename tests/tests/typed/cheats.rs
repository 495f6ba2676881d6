//! Producers and consumers that do not keep to the protocol: their own subscription ends with blame, and nothing else does.

use std::time::{Duration, Instant};

use iroh::endpoint::{RecvStream, SendStream};
use kinfolk::{
    Consumer, EndpointAddr, NetworkId, Node, Offer, Received, Refusal, SourceState, SourceStatus,
    StreamName, Termination,
};
use kinfolk_core::record::{Draft, Record, Seq};
use kinfolk_core::stream::Schema;
use kinfolk_core::wire::subscription::{
    ANSWERED_MAX, Accepted, Answered, Channel, ConsumerFrame, ControlEntry, PROTOCOL,
    SUBSCRIBE_MAX, StreamEnd, Subscribe, encode_datagram, item_head,
};
use kinfolk_core::wire::{Answer, Extensions, LENGTH_BYTES, StreamMode, frame};
use kinfolk_tests::support::guest::{Guest, header, hello};
use kinfolk_tests::support::host::{Asked, Dialled};
use kinfolk_tests::support::node::NETWORK;
use kinfolk_tests::support::stranger::{Stranger, trickle};
use kinfolk_tests::support::teller::{exchange, lore, wall_clock};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{
    SOON, TICKS, Tick, alone, consumer, discovering, from, item, kibi, narrow, online, over,
    produced, producer, receives, send, small, source, subscribed,
};

fn name() -> StreamName {
    StreamName::new(TICKS).expect("a name")
}

/// The record of the stranger with this key, of this number, which says that it produces [`TICKS`].
fn offering(key: u8, seq: u64) -> Record {
    let key = kinfolk::SecretKey::from_bytes(&[key; 32]);
    let mut draft = Draft::new(NetworkId::from_name(NETWORK));
    draft.add_offer(Offer::stream(&name())).expect("one offer");
    draft.sign(&key, Seq::new(seq), wall_clock()).expect("a small record")
}

/// A stranger that a node takes for a producer.
pub struct Producing {
    stranger: Stranger,
    link: Dialled,
}

impl Producing {
    async fn at(node: &Node) -> Self {
        Self::of(66, node.addr()).await
    }

    /// The stranger with this key, at the node with this address.
    pub async fn of(key: u8, addr: EndpointAddr) -> Self {
        let stranger = Stranger::bind(key).await;
        let guest = Guest::enter_at(&stranger, addr, hello(1, 0)).await;
        let told = exchange(&guest, lore(stranger.id(), [offering(key, 1)])).await;
        assert!(told.is_complete(), "{told:?}");
        let Guest { connection, send, receive } = guest;
        Self { stranger, link: Dialled { connection, send, receive, hello: hello(1, 0) } }
    }

    /// Leaves with a word.
    pub async fn leaves(self) {
        self.link.close(kinfolk::Code::Ok);
        self.stranger.close().await;
    }

    /// Says again that it produces, in a newer record.
    async fn renews(self, seq: u64) -> Self {
        let Self { stranger, link: Dialled { connection, send, receive, hello } } = self;
        let guest = Guest { connection, send, receive };
        let told = exchange(&guest, lore(stranger.id(), [offering(66, seq)])).await;
        assert!(told.is_complete(), "{told:?}");
        let Guest { connection, send, receive } = guest;
        Self { stranger, link: Dialled { connection, send, receive, hello } }
    }

    /// The next subscription that the node asks for, its frame read and not answered.
    pub async fn asked(&self) -> (Asked, Subscribe) {
        loop {
            let mut asked = self.link.stream().await;
            if asked.header.protocol == PROTOCOL {
                let body = framed(&mut asked.receive, SUBSCRIBE_MAX).await.expect("a frame");
                let ConsumerFrame::Subscribe(subscribe) =
                    ConsumerFrame::decode(&body).expect("what a node says")
                else {
                    panic!("expected a subscription");
                };
                return (asked, subscribe);
            }
            asked.answer(Answer::Refuse(kinfolk::Code::UnknownProtocol)).await;
        }
    }
}

/// The body of the next frame.
async fn framed(receive: &mut RecvStream, max: usize) -> Option<Vec<u8>> {
    within(SOON, "a frame", async {
        let mut prefix = [0; LENGTH_BYTES];
        receive.read_exact(&mut prefix).await.ok()?;
        let length = frame::length(prefix, max).expect("a length within bounds");
        let mut body = vec![0; length];
        receive.read_exact(&mut body).await.ok()?;
        Some(body)
    })
    .await
}

/// The bytes with which a producer accepts.
pub fn accepts(next: u64) -> Vec<u8> {
    accepts_in(7, next)
}

/// The same in another life of the producer.
fn accepts_in(epoch: u64, next: u64) -> Vec<u8> {
    let extensions = Extensions::none();
    let accepted = Accepted { channel: Channel::Reliable, epoch, next, extensions };
    let mut bytes = vec![Answer::Ack.to_byte()];
    bytes.extend(Answered::Accepted(accepted).encode().expect("an answer"));
    bytes
}

/// An item as it goes on the wire.
pub fn entry(item: &[u8]) -> Vec<u8> {
    let mut bytes = item_head(item.len(), 1 << 20).expect("a short one").to_vec();
    bytes.extend_from_slice(item);
    bytes
}

/// The bytes of a tick.
fn ticked(n: u8) -> Vec<u8> {
    entry(&[n, 0])
}

/// A node that consumes from an honest producer and from a stranger that says `bytes` when it is asked; what the consumer makes of the stranger, while the
/// honest one is heard on.
async fn makes_of(bytes: Vec<u8>) -> SourceStatus {
    let honest = alone(1).await;
    let producer = producer(&honest).await;
    let node = from(2, honest.addr()).await;
    let mut consumer = consumer(&node).await;
    subscribed(&producer, 1).await;
    let cheat = Producing::at(&node).await;
    let (mut asked, subscribe) = cheat.asked().await;
    assert_eq!((subscribe.name.as_str(), subscribe.resume), (TICKS, None));
    // It may have had enough before the end.
    let _ = within(SOON, "room", asked.send.write_all(&bytes)).await;
    let id = cheat.stranger.id();
    blamed(&consumer, id).await;
    let seen = source(&consumer, id).expect("it is known");
    send(&producer, 0..10).await;
    from_the_honest(&mut consumer, honest.id(), 0..10).await;
    over([honest, node]).await;
    seen
}

async fn from_the_honest(
    consumer: &mut Consumer<Tick>,
    honest: kinfolk::EndpointId,
    numbers: std::ops::Range<u64>,
) {
    let mut next = numbers.start;
    while next < numbers.end {
        if let Received::Item { source, number, .. } = crate::scene::next(consumer).await
            && source == honest
        {
            assert_eq!(number, next);
            next += 1;
        }
    }
}

async fn blamed(consumer: &Consumer<Tick>, peer: kinfolk::EndpointId) {
    let misbehaved = SourceState::Terminated(Termination::Misbehaved);
    crate::scene::becomes(consumer, peer, "it is blamed", |state| *state == misbehaved).await;
}

fn says(seen: &SourceStatus, word: &str) {
    let last = seen.last_error.as_deref().expect("it is blamed");
    assert!(last.contains(word), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_claims_an_item_too_long_is_cut_off() {
    let seen = makes_of([accepts(0), 0x7fff_ffff_u32.to_le_bytes().to_vec()].concat()).await;
    says(&seen, "2147483647");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_whose_answer_is_garbage_is_cut_off() {
    let seen = makes_of(vec![Answer::Ack.to_byte(), 0, 0, 0, 4, 9, 9, 9, 9]).await;
    says(&seen, "answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_whose_answer_is_longer_than_answers_are_is_cut_off() {
    let seen = makes_of(vec![Answer::Ack.to_byte(), 0xff, 0xff, 0xff, 0xff]).await;
    says(&seen, &ANSWERED_MAX.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_says_that_nothing_is_missing_is_cut_off() {
    let gap = [0x8000_0002_u32.to_le_bytes().to_vec(), vec![0, 0]].concat();
    let _ = makes_of([accepts(0), gap].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_says_that_nothing_was_superseded_is_cut_off() {
    let skip = [0x8000_0002_u32.to_le_bytes().to_vec(), vec![1, 0]].concat();
    let _ = makes_of([accepts(0), skip].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_whose_control_entry_is_garbage_is_cut_off() {
    let garbage = [0x8000_0003_u32.to_le_bytes().to_vec(), vec![9, 9, 9]].concat();
    let _ = makes_of([accepts(0), garbage].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_whose_control_entry_is_too_long_is_cut_off() {
    let long = 0x8000_0401_u32.to_le_bytes().to_vec();
    let _ = makes_of([accepts(0), ticked(0), long].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_whose_numbers_run_over_is_cut_off() {
    let _ = makes_of([accepts(u64::MAX), ticked(0), ticked(1)].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_offers_again_what_it_has_sent_is_cut_off() {
    let node = alone(1).await;
    let mut consumer = consumer(&node).await;
    let cheat = Producing::at(&node).await;
    let (mut asked, _) = cheat.asked().await;
    let first = [accepts(0), ticked(0), ticked(1), ticked(2)].concat();
    asked.send.write_all(&first).await.expect("the node reads");
    receives(&mut consumer, 0..3).await;
    asked.send.reset(0_u32.into()).expect("it is open");
    let (mut asked, subscribe) = cheat.asked().await;
    assert_eq!(subscribe.resume.map(|resume| (resume.epoch, resume.next)), Some((7, 3)));
    asked.send.write_all(&accepts(1)).await.expect("the node reads");
    blamed(&consumer, cheat.stranger.id()).await;
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_producer_says_behind_the_end_reaches_nobody() {
    let node = alone(1).await;
    let mut consumer = consumer(&node).await;
    let cheat = Producing::at(&node).await;
    let (mut asked, _) = cheat.asked().await;
    let end = ControlEntry::End(StreamEnd::Finished).encode();
    let bytes = [accepts(0), ticked(0), end, ticked(1)].concat();
    asked.send.write_all(&bytes).await.expect("the node reads");
    receives(&mut consumer, 0..1).await;
    let id = cheat.stranger.id();
    crate::scene::becomes(&consumer, id, "it is over", |state| {
        matches!(state, SourceState::Terminated(_))
    })
    .await;
    assert_eq!(source(&consumer, id).map(|source| source.items), Some(1));
    over([node]).await;
}

/// An item that is none, as it goes on the wire.
const POISON: [u8; 7] = [3, 0, 0, 0, 1, 5, 0xff];

async fn poisoned(consumer: &Consumer<Tick>, peer: kinfolk::EndpointId) {
    let poisoned = SourceState::Terminated(Termination::Poisoned);
    crate::scene::becomes(consumer, peer, "it is blamed", |state| *state == poisoned).await;
}

/// The sum of the gaps that come until there are so many missed items.
async fn misses(consumer: &mut Consumer<Tick>, all: u64) {
    let mut sum = 0;
    while sum < all {
        match crate::scene::next(consumer).await {
            Received::Gap { missed, .. } => sum += missed,
            other => panic!("{other:?} after {sum} missed"),
        }
    }
    assert_eq!(sum, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_behind_an_item_that_cannot_be_decoded_is_told_once_and_what_follows_goes_on_there()
 {
    let mut limits = narrow();
    limits.streams.subscriptions.forgive_after = Duration::from_millis(100);
    let node = discovering(1).limits(limits).spawn().await.expect("it starts");
    let mut consumer = consumer(&node).await;
    let cheat = Producing::at(&node).await;
    let id = cheat.stranger.id();
    let (mut asked, _) = cheat.asked().await;
    let gap = ControlEntry::Gap { missed: 4 }.encode();
    let bytes = [accepts(0), ticked(0), POISON.to_vec(), ticked(2), gap, ticked(7)].concat();
    asked.send.write_all(&bytes).await.expect("the node reads");
    let counts = |consumer: &Consumer<Tick>| {
        source(consumer, id).map_or((0, 0), |source| (source.items, source.missed))
    };
    // All of it waits for the app before that reads.
    eventually(SOON, "all is there", async || counts(&consumer) == (4, 4)).await;
    receives(&mut consumer, 0..1).await;
    misses(&mut consumer, 7).await;
    assert_eq!(counts(&consumer), (1, 7));
    poisoned(&consumer, id).await;
    let cheat = cheat.renews(2).await;
    let (mut asked, subscribe) = cheat.asked().await;
    assert_eq!(subscribe.resume.map(|resume| (resume.epoch, resume.next)), Some((7, 8)));
    asked.send.write_all(&[accepts(10), ticked(10)].concat()).await.expect("the node reads");
    misses(&mut consumer, 2).await;
    receives(&mut consumer, 10..11).await;
    assert_eq!(counts(&consumer), (2, 9));
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn losses_beyond_all_numbers_are_as_many_as_can_be_counted() {
    let node = alone(1).await;
    let mut consumer = consumer(&node).await;
    let cheat = Producing::at(&node).await;
    let id = cheat.stranger.id();
    let missed = u64::MAX - 5;
    for epoch in [7, 8] {
        let (mut asked, _) = cheat.asked().await;
        let lies = ControlEntry::Gap { missed }.encode();
        let bytes = [accepts_in(epoch, 0), lies].concat();
        asked.send.write_all(&bytes).await.expect("the node reads");
        if epoch == 8 {
            let came = crate::scene::next(&mut consumer).await;
            assert_eq!(came, Received::Restarted { source: id });
        }
        assert_eq!(crate::scene::next(&mut consumer).await, Received::Gap { source: id, missed });
        asked.send.reset(0_u32.into()).expect("it is open");
    }
    assert_eq!(source(&consumer, id).map(|source| source.missed), Some(u64::MAX));
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_cannot_be_decoded_ends_its_source_and_no_other() {
    let honest = alone(1).await;
    let producer = producer(&honest).await;
    let node = from(2, honest.addr()).await;
    let mut consumer = consumer(&node).await;
    subscribed(&producer, 1).await;
    let cheat = Producing::at(&node).await;
    let (mut asked, _) = cheat.asked().await;
    let bytes = [accepts(0), ticked(0), POISON.to_vec(), ticked(2)].concat();
    asked.send.write_all(&bytes).await.expect("the node reads");
    receives(&mut consumer, 0..1).await;
    send(&producer, 0..10).await;
    from_the_honest(&mut consumer, honest.id(), 0..10).await;
    let id = cheat.stranger.id();
    poisoned(&consumer, id).await;
    assert!(source(&consumer, id).and_then(|source| source.last_error).is_some());
    let metrics = node.metrics().await.expect("it is up");
    assert_eq!(metrics.streams.sources_ended.get("poisoned"), Some(&1));
    over([honest, node]).await;
}

/// What a consumer whose app does not read takes of a producer that sends these bytes again and again.
async fn takes_of(bytes: &[u8]) -> SourceStatus {
    let node = alone(1).await;
    let consumer = crate::scene::tight(&node).await;
    let cheat = Producing::at(&node).await;
    let (mut asked, _) = cheat.asked().await;
    asked.send.write_all(&accepts(0)).await.expect("the node reads");
    let many = bytes.repeat(64 * 1024 / bytes.len());
    let mut sent = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), asked.send.write_all(&many)).await
    {
        written.expect("the node is patient");
        sent += many.len();
        // QUIC on the stranger's side takes a dozen megabytes by itself.
        assert!(sent < 32 << 20, "nobody holds it up");
    }
    online(&consumer, 1).await;
    let seen = source(&consumer, cheat.stranger.id()).expect("it is known");
    over([node]).await;
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_sends_without_end_to_an_app_that_does_not_read_is_held_up() {
    let seen = takes_of(&entry(&[7; 1000])).await;
    assert!((1..256 * 1024).contains(&seen.bytes), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_tells_of_losses_without_end_is_held_up() {
    let seen = takes_of(&ControlEntry::Gap { missed: 1 }.encode()).await;
    assert!((1..16 * 1024).contains(&seen.missed), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_that_are_for_nobody_or_are_none_are_counted_and_dropped() {
    let (honest, node) = crate::scene::pair().await;
    let producer = produced(honest.producer(TICKS).datagrams()).await;
    let mut consumer = consumer(&node).await;
    subscribed(&producer, 1).await;
    let cheat = Producing::at(&node).await;
    let (mut asked, subscribe) = cheat.asked().await;
    asked.send.write_all(&accepts(0)).await.expect("the node reads");
    online(&consumer, 2).await;
    let unknown = encode_datagram(subscribe.id + 1_000, 0, &[0, 0]);
    let mut counted = (0, 0);
    within(SOON, "both are counted", async {
        while counted.0 == 0 || counted.1 == 0 {
            for bytes in [unknown.clone(), vec![0xff; 30]] {
                let _ = cheat.link.connection.send_datagram(bytes.into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            let metrics = node.metrics().await.expect("it is up");
            let dropped = |why| metrics.streams.datagrams_dropped.get(why).copied().unwrap_or(0);
            counted = (dropped("unknown"), dropped("malformed"));
        }
    })
    .await;
    // Those of the honest one still come.
    within(SOON, "a datagram", async {
        loop {
            send(&producer, 0..1).await;
            let soon = tokio::time::timeout(Duration::from_millis(50), consumer.recv()).await;
            if let Ok(Some(Received::Item { source, .. })) = soon {
                assert_eq!(source, honest.id());
                return;
            }
        }
    })
    .await;
    over([honest, node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_never_answers_is_given_up_and_asked_again() {
    let node = alone(1).await;
    let consumer = consumer(&node).await;
    let cheat = Producing::at(&node).await;
    let (_silent, _) = cheat.asked().await;
    let (mut asked, _) = cheat.asked().await;
    asked.send.write_all(&accepts(0)).await.expect("the node reads");
    online(&consumer, 1).await;
    let last = source(&consumer, cheat.stranger.id()).and_then(|source| source.last_error);
    assert!(last.is_some());
    over([node]).await;
}

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
    assert_eq!(ended(&node, "too_slow").await + ended(&node, "misbehaved").await, 2);
    slow.abort();
    speaks.abort();
    over([node, honest]).await;
}
