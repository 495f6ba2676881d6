//! Strangers that announce what they should not, or as often as they should not: seen at a second node, to which it would be relayed.

use iroh::endpoint::{ReadError, ReadToEndError};
use kinfolk::{Code, Node, NodeEvent, Record, SecretKey, Topic};
use kinfolk_core::record::UnixMillis;
use kinfolk_core::wire::{Answer, StreamMode};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, header, hello};
use kinfolk_tests::support::node::builder;
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::teller::{
    ANNOUNCE, Announcing, EXCHANGE, key, message, payload, record, record_at, reset, stopped,
    wall_clock,
};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{
    SOON, all_know_all, count, discovering, from, has_neighbours, knows, over, short_silence,
};

/// Two neighbours, and a stranger that is a neighbour of the first.
struct Scene {
    node: Node,
    second: Node,
    _stranger: Stranger,
    _guest: Guest,
    announcing: Announcing,
}

impl Scene {
    async fn new() -> Self {
        Self::with(Stranger::bind(66).await).await
    }

    async fn with(stranger: Stranger) -> Self {
        let node = discovering(1).limits(short_silence()).spawn().await.expect("it starts");
        let second = from(2, node.addr()).await;
        all_know_all(&[node.clone(), second.clone()]).await;
        has_neighbours(&node, 1).await;
        has_neighbours(&second, 1).await;
        let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
        let announcing = Announcing::join(&guest).await;
        has_neighbours(&node, 2).await;
        Self { node, second, _stranger: stranger, _guest: guest, announcing }
    }

    async fn dropped(&self, reason: &str) -> u64 {
        let read = |metrics: &kinfolk::Metrics| {
            metrics.discovery.announcements_dropped.get(reason).copied()
        };
        count(&self.node, read).await
    }

    async fn counts(&self, reason: &str, at_least: u64) {
        eventually(SOON, reason, async || self.dropped(reason).await >= at_least).await;
    }

    /// The stranger sends this, and its stream is ended with this code.
    async fn ends_upon(mut self, frame: &[u8], code: Code, reason: &str) {
        self.announcing.say(frame).await;
        assert_eq!(reset(&mut self.announcing.receive).await, Some(code));
        self.counts(reason, 1).await;
        has_neighbours(&self.node, 1).await;
        self.ends_well().await;
    }

    /// What the second node says reaches the first.
    async fn ends_well(self) {
        let topic = Topic::from_name("still here");
        self.second.join_topic(topic).expect("room for it");
        eventually(SOON, "the news", async || {
            self.node.catalog().with_topic(&topic).any(|entry| entry.id() == self.second.id())
        })
        .await;
        over([self.node, self.second]).await;
    }
}

fn forged(record: &Record) -> Vec<u8> {
    let mut bytes = record.bytes().to_vec();
    bytes[9] ^= 1;
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_garbage_ends_the_stream() {
    let garbage = message(&[0xff; 100]);
    Scene::new().await.ends_upon(&garbage, Code::Malformed, "frame_malformed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_claims_too_many_bytes_is_stopped_by_its_length() {
    let mut scene = Scene::new().await;
    for (name, claim) in [(67, 2049), (68, u32::MAX)] {
        let other = Stranger::bind(name).await;
        let guest = Guest::enter(&other, &scene.node, hello(1, 1)).await;
        let mut announcing = Announcing::open(&guest).await;
        announcing.send.write_all(&claim.to_be_bytes()).await.expect("the node reads");
        assert_eq!(stopped(&mut announcing.send).await, Some(Code::TooLarge));
    }
    // Nothing that it said before is held against it.
    scene.announcing.announce(record(&key(7), 1, None).bytes()).await;
    let heard = async || knows(&scene.second, key(7).public());
    eventually(SOON, "it is relayed", heard).await;
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_record_ends_the_stream_and_is_not_relayed() {
    let scene = Scene::new().await;
    let frame = payload(&forged(&record(&key(7), 1, None)));
    let second = scene.second.clone();
    scene.ends_upon(&frame, Code::Violation, "bad_signature").await;
    assert!(!knows(&second, key(7).public()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_record_is_neither_taken_nor_relayed_again() {
    let mut scene = Scene::new().await;
    let old = record(&key(7), 1, None);
    scene.announcing.announce(record(&key(7), 2, None).bytes()).await;
    let seq = |node: &Node| node.catalog().get(&key(7).public()).map(|e| e.record().seq().get());
    eventually(SOON, "the new one is relayed", async || seq(&scene.second) == Some(2)).await;
    let mut log = EventLog::of(&scene.second).await;
    scene.announcing.announce(old.bytes()).await;
    scene.counts("outdated", 1).await;
    // Nor one that was issued too long ago to be news, of a node that nobody knows.
    let long_ago = UnixMillis::new(wall_clock().get() - 20 * 60_000);
    scene.announcing.announce(record_at(&key(8), 1, long_ago, None).bytes()).await;
    scene.counts("stale", 1).await;
    // What was said before it on the same way has arrived.
    scene.announcing.announce(record(&key(9), 1, None).bytes()).await;
    eventually(SOON, "another one", async || knows(&scene.second, key(9).public())).await;
    assert_eq!(seq(&scene.second), Some(2));
    assert!(!knows(&scene.second, key(8).public()));
    let updated = NodeEvent::PeerUpdated { peer: key(7).public() };
    assert_eq!(log.count(|event| *event == updated), 0);
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_records_of_one_author_are_relayed_ten_times() {
    const SENT: u64 = 10_000;
    let mut scene = Scene::new().await;
    let author = key(7);
    let mut log = EventLog::of(&scene.second).await;
    let records: Vec<_> = (1..=SENT).map(|seq| record(&author, seq, None)).collect();
    let frames: Vec<u8> = records
        .iter()
        .flat_map(|record| {
            let frame = payload(record.bytes());
            let length = u32::try_from(frame.len()).expect("a short frame");
            [&length.to_be_bytes()[..], &frame].concat()
        })
        .collect();
    let before = scene.dropped("author_rate").await;
    assert_eq!(before, 0);
    scene.announcing.send.write_all(&frames).await.expect("the node reads");
    let mut passed = 0;
    eventually(SOON, "all are dealt with", async || {
        let dropped = scene.node.metrics().await.expect("it runs").discovery.announcements_dropped;
        passed = SENT.saturating_sub(dropped.values().sum());
        passed < 40
    })
    .await;
    let of_author = |event: &NodeEvent| match event {
        NodeEvent::PeerDiscovered { peer } | NodeEvent::PeerUpdated { peer } => {
            *peer == author.public()
        }
        _ => false,
    };
    let relayed = log.count(of_author);
    assert!((1..=14).contains(&relayed), "{relayed} relayed");
    let checked = count(&scene.node, |metrics| Some(metrics.discovery.signatures_checked)).await;
    assert!(checked < 100, "{checked} signatures checked");
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_never_reads_loses_its_stream() {
    // It takes less than one frame.
    let mut scene = Scene::with(Stranger::builder(66).stream_window(16).bind().await).await;
    let code = scene.announcing.receive.received_reset().await.expect("the connection is up");
    let code = code.map(|code| Code::from_wire(code.into_inner()));
    assert_eq!(code, Some(Code::DeadlineExceeded));
    has_neighbours(&scene.node, 1).await;
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_a_stream_for_every_place_takes_no_place_of_others() {
    let node = discovering(1).limits(short_silence()).spawn().await.expect("it starts");
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
    let _first = Announcing::join(&guest).await;
    has_neighbours(&node, 1).await;
    let mut streams = Vec::new();
    // As many as all peers together may open.
    for _ in 0..60 {
        streams.push(guest.ask(&header(ANNOUNCE, StreamMode::Acked)).await);
    }
    let surplus = |metrics: &kinfolk::Metrics| {
        metrics.discovery.announcements_dropped.get("second_stream").copied()
    };
    eventually(SOON, "the surplus is refused", async || count(&node, surplus).await > 0).await;
    for (_, receive) in &mut streams {
        let end = within(SOON, "the refusal", receive.read_to_end(1)).await;
        // By the announcer; or by the answer, where more are open at the moment than one peer has places for.
        let is_refused = match &end {
            Ok(answer) => {
                let answer = answer.first().map(|byte| Answer::from_byte(*byte));
                matches!(answer, Some(Answer::Refuse(_)))
            }
            Err(error) => matches!(error, ReadToEndError::Read(ReadError::Reset(_))),
        };
        assert!(is_refused, "{end:?}");
    }
    let newcomer = from(2, node.addr()).await;
    has_neighbours(&newcomer, 1).await;
    has_neighbours(&node, 2).await;
    over([node, newcomer]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_discovery_refuses_exchanges_and_announcements_and_asks_for_none() {
    let node = builder(1).limits(short_silence()).spawn().await.expect("it starts");
    let mut log = EventLog::of(&node).await;
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
    for protocol in [EXCHANGE, ANNOUNCE] {
        let (_send, mut receive) = guest.ask(&header(protocol, StreamMode::Acked)).await;
        let mut answer = [0];
        receive.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(Answer::from_byte(answer[0]), Answer::Refuse(Code::UnknownProtocol));
    }
    let other = SecretKey::from_bytes(&[2; 32]).public();
    let error = node.sync_with(other).await.expect_err("it does not discover");
    assert_eq!(error, kinfolk::ExchangeError::Off);
    let started = |event: &NodeEvent| matches!(event, NodeEvent::ExchangeStarted { .. });
    assert_eq!(log.count(started), 0);
    let opened = node.metrics().await.expect("it runs").protocols;
    assert!(opened.values().all(|protocol| protocol.opened == 0), "{opened:?}");
    assert!(node.catalog().is_empty());
    over([node]).await;
}
