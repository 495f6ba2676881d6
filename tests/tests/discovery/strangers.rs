//! Strangers that exchange catalogs as they should not: each is got rid of with a code and counted, and takes nothing from others.

use std::time::Duration;

use iroh::endpoint::{RecvStream, SendStream};
use kinfolk::{Code, Direction, ExchangeError, Metrics, NodeBuilder, NodeEvent, Record, SecretKey};
use kinfolk_core::record::UnixMillis;
use kinfolk_core::wire::exchange::{MESSAGE_MAX, Message, Relayed, Rest, Turn};
use kinfolk_core::wire::{LENGTH_BYTES, StreamMode, frame};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, header, hello};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::teller::{
    EXCHANGE, Told, departure, exchange, exchange_spoilt, go_through, key, lore, opening, record,
    record_at, record_elsewhere, reset, wall_clock,
};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{SOON, all_know_all, count, discovering, from, knows, over, short_silence};

/// A node that a stranger visits; most give up on silence soon.
struct Scene {
    node: kinfolk::Node,
    stranger: Stranger,
    guest: Guest,
}

impl Scene {
    async fn new() -> Self {
        Self::around(discovering(1).limits(short_silence())).await
    }

    async fn around(node: NodeBuilder) -> Self {
        let node = node.spawn().await.expect("it starts");
        let stranger = Stranger::bind(66).await;
        let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
        Self { node, stranger, guest }
    }

    /// The stranger's exchange has begun.
    async fn is_under_way(&self) {
        let inbound = |metrics: &Metrics| u64::try_from(metrics.discovery.exchanges_inbound).ok();
        eventually(SOON, "it is under way", async || count(&self.node, inbound).await == 1).await;
    }

    /// How many exchanges ended in this way.
    async fn ended(&self, how: &str) -> u64 {
        count(&self.node, |metrics| metrics.discovery.exchanges.get(how).copied()).await
    }

    async fn rejected(&self, reason: &str) -> u64 {
        count(&self.node, |metrics| metrics.discovery.rejected.get(reason).copied()).await
    }

    /// A newcomer is known soon, and the stranger may still exchange catalogs.
    async fn ends_well(self) {
        let newcomer = from(2, self.node.addr()).await;
        all_know_all(&[self.node.clone(), newcomer.clone()]).await;
        over([self.node, newcomer]).await;
    }

    /// The stranger opens an exchange with these bytes behind the header, and is told this code.
    async fn is_told(&self, bytes: &[u8], code: Code) {
        let header = header(EXCHANGE, StreamMode::Eager);
        let (_send, mut receive) = self.guest.ask(&[&header, bytes].concat()).await;
        assert_eq!(reset(&mut receive).await, Some(code));
    }

    /// The stranger hands over a record of a node, and these bytes in its place.
    async fn hands_over(&self, record: Record, instead: Vec<u8>) -> Told {
        let known = lore(self.stranger.id(), [record]);
        exchange_spoilt(&self.guest, known, |message| {
            if let Message::Turn(turn) = message {
                for record in &mut turn.records {
                    record.bytes.clone_from(&instead);
                }
            }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_without_a_word_or_with_one_byte_is_given_up() {
    let scene = Scene::new().await;
    let mut log = EventLog::of(&scene.node).await;
    scene.is_told(&[], Code::DeadlineExceeded).await;
    let given_up = |event: &NodeEvent| match event {
        NodeEvent::ExchangeFailed { peer, error, direction, .. } => {
            let is_answered = *direction == Direction::Inbound && *peer == scene.stranger.id();
            is_answered && *error == ExchangeError::TimedOut
        }
        _ => false,
    };
    log.next(SOON, "the end", given_up).await;
    scene.is_told(&[0], Code::DeadlineExceeded).await;
    // The node's own visit to the stranger is another.
    eventually(SOON, "they are counted", async || scene.ended("timed_out").await >= 2).await;
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_claims_four_gigabytes_is_refused_by_its_length() {
    let scene = Scene::new().await;
    scene.is_told(&[0xff; 4], Code::TooLarge).await;
    eventually(SOON, "it is counted", async || scene.ended("misbehaved").await == 1).await;
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_message_are_malformed() {
    let scene = Scene::new().await;
    scene.is_told(&[0, 0, 0, 4, 9, 9, 9, 9], Code::Malformed).await;
    eventually(SOON, "it is counted", async || scene.ended("misbehaved").await == 1).await;
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_with_a_bad_signature_ends_the_exchange_and_is_not_taken() {
    let scene = Scene::new().await;
    let forged = record(&key(7), 1, None);
    let mut bytes = forged.bytes().to_vec();
    bytes[9] ^= 1;
    let told = scene.hands_over(forged, bytes).await;
    assert_eq!(told, Told::Reset(Code::Violation));
    assert!(!knows(&scene.node, key(7).public()));
    assert_eq!(scene.rejected("bad_signature").await, 1);
    eventually(SOON, "it is counted", async || scene.ended("misbehaved").await == 1).await;
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_another_network_ends_the_exchange_and_costs_no_check() {
    let scene = Scene::new().await;
    let foreign = record_elsewhere(&key(7), 1).bytes().to_vec();
    let told = scene.hands_over(record(&key(7), 1, None), foreign).await;
    assert_eq!(told, Told::Reset(Code::Violation));
    assert!(!knows(&scene.node, key(7).public()));
    assert_eq!(scene.rejected("wrong_network").await, 1);
    assert_eq!(count(&scene.node, |metrics| Some(metrics.discovery.signatures_checked)).await, 0);
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_from_the_future_is_not_taken_and_blames_nobody() {
    let scene = Scene::new().await;
    let later = UnixMillis::new(wall_clock().get() + 10 * 365 * 86_400_000);
    let known = lore(scene.stranger.id(), [record_at(&key(7), later.get(), later, None)]);
    let told = exchange(&scene.guest, known).await;
    assert!(told.is_complete(), "{told:?}");
    assert!(!knows(&scene.node, key(7).public()));
    assert_eq!(scene.rejected("from_future").await, 1);
    // What it says when its clock is right is taken.
    let known = lore(scene.stranger.id(), [record(&key(7), 1, None)]);
    assert!(exchange(&scene.guest, known).await.is_complete());
    assert!(knows(&scene.node, key(7).public()));
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_behind_jumps_past_the_number_that_others_know() {
    let scene = Scene::around(discovering(1)).await;
    let own = SecretKey::from_bytes(&[1; 32]);
    assert_eq!(own.public(), scene.node.id());
    // What it said when its clock was right.
    let before = UnixMillis::new(wall_clock().get() + 3_600_000);
    let known = lore(scene.stranger.id(), [record_at(&own, before.get(), before, None)]);
    let told = exchange(&scene.guest, known).await;
    assert!(told.is_complete(), "{told:?}");
    eventually(SOON, "a larger number", async || {
        let known = scene.node.catalog();
        known.own().is_some_and(|own| own.record().seq().get() > before.get())
    })
    .await;
    assert_eq!(scene.rejected("from_future").await, 0);
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farewell_is_not_undone_by_an_exchange_with_its_author_that_began_before() {
    let scene = Scene::around(discovering(1)).await;
    let author = SecretKey::from_bytes(&[66; 32]);
    assert_eq!(author.public(), scene.stranger.id());
    let (mut send, mut receive) = scene.guest.ask(&header(EXCHANGE, StreamMode::Eager)).await;
    scene.is_under_way().await;
    // Meanwhile the farewell comes by another.
    let teller = Stranger::bind(67).await;
    let guest = Guest::enter(&teller, &scene.node, hello(1, 1)).await;
    let farewell = lore(teller.id(), [departure(&author, 5)]);
    assert!(exchange(&guest, farewell).await.is_complete());
    let before = lore(author.public(), [record(&author, 4, None)]);
    assert!(go_through(&mut send, &mut receive, before).await.is_complete());
    let dead = |metrics: &Metrics| metrics.discovery.ignored.get("dead").copied();
    eventually(SOON, "it has come", async || count(&scene.node, dead).await == 1).await;
    assert!(!knows(&scene.node, author.public()));
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_not_asked_for_is_a_violation_and_not_taken() {
    let scene = Scene::new().await;
    let unasked = record(&key(7), 1, None);
    let known = lore(scene.stranger.id(), []);
    let told = exchange_spoilt(&scene.guest, known, |message| {
        if let Message::Open { turn, .. } = message {
            turn.ranges.clear();
            turn.records.push(Relayed::new(Duration::ZERO, unasked.bytes()));
        }
    })
    .await;
    assert_eq!(told, Told::Reset(Code::Violation));
    assert!(!knows(&scene.node, key(7).public()));
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_exchanges_a_hundred_times_is_answered_eight_times() {
    let scene = Scene::new().await;
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..100 {
        match exchange(&scene.guest, lore(scene.stranger.id(), [])).await {
            Told::Reset(Code::Busy) => refused += 1,
            told => {
                assert!(told.is_complete(), "{told:?}");
                answered += 1;
            }
        }
    }
    // One more for each ten seconds that a busy machine takes.
    assert!((8..=10).contains(&answered), "{answered} answered");
    assert_eq!(scene.ended("refused").await, refused);
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_one_exchange_at_a_time() {
    let scene = Scene::around(discovering(1)).await;
    let (mut silent, _receive) = scene.guest.ask(&header(EXCHANGE, StreamMode::Eager)).await;
    scene.is_under_way().await;
    let told = exchange(&scene.guest, lore(scene.stranger.id(), [])).await;
    assert_eq!(told, Told::Reset(Code::Busy));
    assert_eq!(scene.ended("refused").await, 1);
    silent.reset(0_u32.into()).expect("it is open");
    eventually(SOON, "it has ended", async || scene.ended("stream").await == 1).await;
    let told = exchange(&scene.guest, lore(scene.stranger.id(), [])).await;
    assert!(told.is_complete(), "{told:?}");
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_leaves_in_the_middle_of_an_exchange_pays_for_what_it_had() {
    let mut limits = short_silence();
    limits.quota.bytes = 40 * 1024;
    let node = discovering(1).limits(limits).spawn().await.expect("it starts");
    // It tells of two hundred nodes, which are 30 KB, in an exchange of its own.
    let (teller, reader) = (Stranger::bind(66).await, Stranger::bind(67).await);
    let guest = Guest::enter(&teller, &node, hello(1, 1)).await;
    let known = lore(teller.id(), (0..200).map(|n| record(&key(n), 1, None)));
    assert!(exchange(&guest, known).await.is_complete());
    let guest = Guest::enter(&reader, &node, hello(1, 1)).await;
    let ended =
        async || count(&node, |metrics| metrics.discovery.exchanges.get("stream").copied()).await;
    let before = ended().await;
    let mut answered = 0;
    for _ in 0..6 {
        let ask = [header(EXCHANGE, StreamMode::Eager), opening(lore(reader.id(), []))].concat();
        let (mut send, mut receive) = guest.ask(&ask).await;
        let mut most = vec![0; 20_000];
        if within(SOON, "the records", receive.read_exact(&mut most)).await.is_err() {
            break;
        }
        answered += 1;
        let _ = (send.reset(0_u32.into()), receive.stop(0_u32.into()));
        eventually(SOON, "the end", async || ended().await == before + answered).await;
    }
    assert!(answered < 6, "all were answered");
    over([node]).await;
}

/// A crowd of so many, each with so many exchanges, keeps no newcomer out though each is silent for as long as it may be.
async fn a_silent_crowd_keeps_no_newcomer_out(strangers: u32, each: u32) {
    let mut limits = short_silence();
    limits.exchange.silence = SOON;
    let node = discovering(1).limits(limits).spawn().await.expect("it starts");
    let mut crowd = Vec::new();
    for n in 0..strangers {
        let stranger = Stranger::bind(key(n)).await;
        let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
        let mut streams = Vec::new();
        for _ in 0..each {
            streams.push(guest.ask(&header(EXCHANGE, StreamMode::Eager)).await);
        }
        crowd.push((stranger, guest, streams));
        // Beside the first of those that come when all places were just taken.
        eventually(SOON, "all but the first of each are refused", async || {
            let read = |metrics: &Metrics| metrics.discovery.exchanges.get("refused").copied();
            count(&node, read).await >= u64::from((n + 1) * (each - 1))
        })
        .await;
    }
    let newcomer = from(2, node.addr()).await;
    all_know_all(&[node.clone(), newcomer.clone()]).await;
    let late = from(3, newcomer.addr()).await;
    all_know_all(&[node.clone(), newcomer.clone(), late.clone()]).await;
    let displaced = count(&node, |metrics| metrics.discovery.exchanges.get("displaced").copied());
    assert!(displaced.await > 0, "the crowd took no places");
    over([node, newcomer, late]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_silent_exchanges_keeps_no_newcomer_out() {
    // More than there are places.
    a_silent_crowd_keeps_no_newcomer_out(24, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_with_two_silent_exchanges_each_has_no_more_places_than_one_with_one() {
    a_silent_crowd_keeps_no_newcomer_out(16, 2).await;
}

/// Answers each message of the node after a while, always as if there were more to say.
async fn talk_on(mut send: SendStream, mut receive: RecvStream) {
    let more = Message::Turn(Turn { rest: Rest::More, ..Turn::default() });
    let more = more.encode().expect("a message");
    let mut acknowledgement = [0];
    let mut end = receive.read_exact(&mut acknowledgement).await;
    while end.is_ok() {
        let mut prefix = [0; LENGTH_BYTES];
        end = receive.read_exact(&mut prefix).await;
        let length = frame::length(prefix, MESSAGE_MAX).expect("a length within bounds");
        end = end.and(receive.read_exact(&mut vec![0; length]).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = send.write_all(&more).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_always_has_something_to_say_keeps_no_newcomer_out() {
    let mut limits = short_silence();
    limits.exchange.silence = SOON;
    let places = limits.exchanges_inbound;
    let node = discovering(1).limits(limits).spawn().await.expect("it starts");
    let mut crowd = Vec::new();
    for n in 0..places {
        let stranger = Stranger::bind(key(u32::try_from(n).expect("few"))).await;
        let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
        let ask = [header(EXCHANGE, StreamMode::Eager), opening(lore(stranger.id(), []))].concat();
        let (send, receive) = guest.ask(&ask).await;
        crowd.push((stranger, guest, tokio::spawn(talk_on(send, receive))));
    }
    let newcomer = Stranger::bind(66).await;
    let guest = Guest::enter(&newcomer, &node, hello(1, 1)).await;
    eventually(SOON, "a place", async || {
        exchange(&guest, lore(newcomer.id(), [])).await.is_complete()
    })
    .await;
    let displaced = count(&node, |metrics| metrics.discovery.exchanges.get("displaced").copied());
    assert_eq!(displaced.await, 1);
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_that_has_lost_its_number_is_taken_by_all() {
    let scene = Scene::new().await;
    // What others still know of the node: a number far beyond what its clock gives.
    let key = SecretKey::from_bytes(&[3; 32]);
    let before = wall_clock().get() + 365 * 86_400_000;
    let known = lore(scene.stranger.id(), [record(&key, before, None)]);
    assert!(exchange(&scene.guest, known).await.is_complete());
    let alice = from(2, scene.node.addr()).await;
    eventually(SOON, "alice knows the old record", async || knows(&alice, key.public())).await;
    let bob = from(3, scene.node.addr()).await;
    eventually(SOON, "alice knows where bob is", async || {
        let known = alice.catalog();
        known.get(&bob.id()).is_some_and(|entry| {
            entry.record().seq().get() > before && entry.record().addresses().count() > 0
        })
    })
    .await;
    all_know_all(&[scene.node.clone(), alice.clone(), bob.clone()]).await;
    over([scene.node, alice, bob]).await;
}
