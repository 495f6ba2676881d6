//! Producers that do not keep to the protocol: their own subscription ends with blame, and nothing else does.

use std::time::Duration;

use iroh::endpoint::RecvStream;
use kinfolk::{
    Consumer, EndpointAddr, NetworkId, Node, Offer, Received, SourceState, SourceStatus,
    StreamName, Termination,
};
use kinfolk_core::record::{Draft, Record, Seq};
use kinfolk_core::wire::subscription::{
    ANSWERED_MAX, Accepted, Answered, Channel, ConsumerFrame, ControlEntry, PROTOCOL,
    SUBSCRIBE_MAX, StreamEnd, Subscribe, encode_datagram, item_head,
};
use kinfolk_core::wire::{Answer, Extensions};
use kinfolk_tests::support::guest::{self, Guest, hello};
use kinfolk_tests::support::host::{Asked, Dialled};
use kinfolk_tests::support::node::NETWORK;
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::teller::{exchange, lore, wall_clock};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{
    SOON, TICKS, Tick, alone, consumer, discovering, from, narrow, online, over, produced,
    producer, receives, send, source, subscribed,
};

pub fn name() -> StreamName {
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
pub async fn framed(receive: &mut RecvStream, max: usize) -> Option<Vec<u8>> {
    within(SOON, "a frame", guest::framed(receive, max)).await
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
