//! Networks over time: cut in two and joined again, converged and at rest, with nodes that crash, miss a farewell, or read too slowly.

use std::collections::BTreeSet;
use std::time::Duration;

use kinfolk::fault::{Crash, Faults, Point};
use kinfolk::{Found, Node, NodeEvent, Options, Removal, Topic};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, hello};
use kinfolk_tests::support::node::{Mortal, NEXT, quick_limits, serving};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::teller::{departure, exchange, key, lore, record};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{
    SOON, all_know_all, alone, count, discovering, falls_silent, from, has_neighbours, is_started,
    knows, over, short_silence,
};

async fn group(keys: std::ops::RangeInclusive<u8>) -> Vec<Node> {
    let hub = alone(*keys.start()).await;
    let mut nodes = vec![hub.clone()];
    for key in keys.skip(1) {
        nodes.push(from(key, hub.addr()).await);
    }
    all_know_all(&nodes).await;
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn two_networks_that_grew_apart_become_one_by_a_single_link() {
    let (mut here, there) = (group(1..=4).await, group(11..=14).await);
    // Each changes while the other does not see it.
    let topic = Topic::from_name("news from here");
    here[2].join_topic(topic).expect("room for it");
    let left = here.pop().expect("there is one");
    let gone = left.id();
    has_neighbours(&left, 3).await;
    within(SOON, "the farewell", left.shutdown()).await;
    eventually(SOON, "all here know", async || here.iter().all(|node| !knows(node, gone))).await;
    here[0].sync_with(there[0].addr()).await.expect("a link");
    let all: Vec<_> = here.iter().chain(&there).cloned().collect();
    all_know_all(&all).await;
    eventually(SOON, "the news are everywhere", async || {
        there.iter().all(|node| node.catalog().with_topic(&topic).count() == 1)
    })
    .await;
    assert!(all.iter().all(|node| !knows(node, gone)), "who left came back");
    over(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_crashed_and_runs_elsewhere_is_reached_by_id() {
    let hub = alone(1).await;
    let alice = from(2, hub.addr()).await;
    let bob = Mortal::spawn(discovering(3).bootstrap(hub.addr())).await;
    all_know_all(&[hub.clone(), alice.clone(), bob.node.clone()]).await;
    let before = bob.node.addr();
    bob.kill().await;
    let bob = serving(discovering(3).bootstrap(hub.addr())).await;
    assert_ne!(bob.addr(), before);
    eventually(SOON, "alice knows where bob is", async || {
        let known = alice.catalog();
        let entry = known.get(&bob.id());
        entry.is_some_and(|entry| entry.record().addresses().any(|a| bob.addr().addrs.contains(&a)))
    })
    .await;
    // She may still take the link with the one that crashed for one.
    let twice = Options::new().idempotent();
    let answer = alice.call_with::<_, u64>(bob.id(), NEXT, &41_u64, twice).await;
    assert_eq!(answer, Ok(42));
    over([hub, alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_left_does_not_come_back_by_a_node_that_missed_the_farewell() {
    let hub = alone(1).await;
    let carol = Mortal::spawn(discovering(2).bootstrap(hub.addr())).await;
    let bob = from(3, hub.addr()).await;
    all_know_all(&[hub.clone(), carol.node.clone(), bob.clone()]).await;
    // Without carol, only the hub is left to hear it.
    has_neighbours(&bob, 2).await;
    let pause = carol.pause();
    let id = bob.id();
    within(SOON, "the farewell", bob.shutdown()).await;
    eventually(SOON, "the hub knows", async || !knows(&hub, id)).await;
    let mut log = EventLog::of(&hub).await;
    drop(pause);
    // What she still took for a link is lost.
    eventually(SOON, "an exchange", async || carol.node.sync_with(hub.addr()).await.is_ok()).await;
    eventually(SOON, "carol knows", async || !knows(&carol.node, id)).await;
    assert!(!knows(&hub, id));
    assert_eq!(log.count(|event| *event == NodeEvent::PeerDiscovered { peer: id }), 0);
    carol.kill().await;
    over([hub]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_missed_more_changes_than_are_kept_misses_nobody() {
    const PEERS: u32 = 1300;
    let node = discovering(1).limits(short_silence()).spawn().await.expect("it starts");
    let mut found = node.find(|_| true);
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
    let present = (0..PEERS).map(|n| record(&key(n), 1, None));
    assert!(exchange(&guest, lore(stranger.id(), present)).await.is_complete());
    let mut here = BTreeSet::new();
    for _ in 0..PEERS {
        match within(SOON, "a peer", found.next()).await {
            Some(Found::Here(entry)) => assert!(here.insert(entry.id()), "told twice"),
            other => panic!("{other:?}"),
        }
    }
    // All go while it does not look.
    let gone = (0..PEERS).map(|n| departure(&key(n), 2));
    assert!(exchange(&guest, lore(stranger.id(), gone)).await.is_complete());
    for _ in 0..PEERS {
        match within(SOON, "a departure", found.next()).await {
            Some(Found::Gone(peer)) => assert!(here.remove(&peer), "told twice"),
            other => panic!("{other:?}"),
        }
    }
    // More than may be checked at once: what had to wait was not dropped.
    let metrics = node.metrics().await.expect("it runs").discovery;
    assert!(here.is_empty() && node.catalog().is_empty() && metrics.rejected.is_empty());
    over([node]).await;
    assert!(within(SOON, "the end", found.next()).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_exchange_begins_and_ends_once_and_every_peer_comes_and_goes_once() {
    let hub = alone(1).await;
    let mut log = EventLog::of(&hub).await;
    let alice = from(2, hub.addr()).await;
    let bob = from(3, hub.addr()).await;
    all_know_all(&[hub.clone(), alice.clone(), bob.clone()]).await;
    let (alices, bobs) = (alice.id(), bob.id());
    let topic = Topic::from_name("news");
    bob.join_topic(topic).expect("room for it");
    let updated = NodeEvent::PeerUpdated { peer: bobs };
    log.next(SOON, "the news", |event| *event == updated).await;
    let mut found = hub.find_topic(topic);
    assert!(matches!(found.next().await, Some(Found::Here(entry)) if entry.id() == bobs));
    // Who has no neighbour says farewell to nobody.
    for node in [&alice, &bob] {
        has_neighbours(node, 2).await;
    }
    over([alice, bob]).await;
    let over_with = |event: &NodeEvent| {
        matches!(event, NodeEvent::ExchangeEnded { .. } | NodeEvent::ExchangeFailed { .. })
    };
    let departed = |peer| NodeEvent::PeerDeparted { peer, reason: Removal::Departed };
    for peer in [alices, bobs] {
        eventually(SOON, "the farewell", async || log.count(|e| *e == departed(peer)) > 0).await;
    }
    // The walkers go on to look for somebody: until they wait.
    eventually(SOON, "an end for each beginning", async || {
        log.count(is_started) == log.count(over_with)
    })
    .await;
    for peer in [alices, bobs] {
        assert_eq!(log.count(|e| *e == NodeEvent::PeerDiscovered { peer }), 1);
        assert_eq!(log.count(|e| *e == departed(peer)), 1);
    }
    assert_eq!(log.count(|event| *event == updated), 1);
    let metrics = hub.metrics().await.expect("it runs").discovery;
    assert_eq!((metrics.known, metrics.removed.get("departed")), (0, Some(&2)));
    let refused = metrics.exchanges.get("refused").copied().unwrap_or(0);
    let counted = metrics.exchanges.values().sum::<u64>() - refused;
    assert!(counted >= log.count(over_with).try_into().expect("few"), "{metrics:?}");
    over([hub]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_seen_the_end_of_an_exchange_may_begin_another_at_once() {
    let faults = Faults::default();
    let alice = discovering(1).faults(&faults).spawn().await.expect("it starts");
    let bob = from(2, alice.addr()).await;
    all_know_all(&[alice.clone(), bob.clone()]).await;
    // Alice's own part of the end takes longer than the test; her walkers, two, may visit bob meanwhile and take that for theirs.
    for _ in 0..3 {
        faults.arm(Point::ExchangeDone, Crash::Stall(SOON));
    }
    bob.sync_with(alice.id()).await.expect("an exchange");
    eventually(SOON, "it is under way at alice's", async || {
        alice.metrics().await.expect("it runs").discovery.exchanges_inbound > 0
    })
    .await;
    bob.sync_with(alice.id()).await.expect("another");
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_between_two_nodes_goes_over_one_connection() {
    let alice = serving(discovering(1)).await;
    let bob = serving(discovering(2).bootstrap(alice.addr())).await;
    all_know_all(&[alice.clone(), bob.clone()]).await;
    for (node, peer) in [(&alice, &bob), (&bob, &alice)] {
        let answer: u64 = node.call(peer.id(), NEXT, &41_u64).await.expect("an answer");
        assert_eq!(answer, 42);
        has_neighbours(node, 1).await;
    }
    bob.sync_with(alice.id()).await.expect("an exchange");
    for node in [&alice, &bob] {
        let sessions = node.metrics().await.expect("it runs").sessions;
        assert_eq!((sessions.established, sessions.live), (1, 1));
    }
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_at_rest_keeps_few_sessions_and_falls_silent() {
    let mut limits = quick_limits();
    limits.linger = Duration::from_secs(1);
    let hub = discovering(1).limits(limits.clone()).spawn().await.expect("it starts");
    let mut nodes = vec![hub.clone()];
    for key in 2..=12 {
        let node = discovering(key).limits(limits.clone()).bootstrap(hub.addr());
        nodes.push(node.spawn().await.expect("it starts"));
    }
    all_know_all(&nodes).await;
    falls_silent(&hub).await;
    for node in &nodes {
        eventually(SOON, "few sessions are left", async || {
            count(node, |metrics| u64::try_from(metrics.sessions.live).ok()).await <= 8
        })
        .await;
    }
    // And they are all connected still.
    let topic = Topic::from_name("still here");
    nodes[11].join_topic(topic).expect("room for it");
    eventually(SOON, "the news are everywhere", async || {
        nodes[..11].iter().all(|node| node.catalog().with_topic(&topic).count() == 1)
    })
    .await;
    over(nodes).await;
}

/// Less than such a link may linger otherwise.
const SOONER: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn of_links_for_errands_that_are_over_no_more_linger_than_may() {
    let mut limits = quick_limits();
    limits.linger = SOON;
    limits.errand_links = 1;
    let alice = discovering(1).limits(limits).spawn().await.expect("it starts");
    // Peers that become nobody's neighbours.
    let faults = Faults::default();
    for _ in 0..32 {
        faults.arm(Point::AnnouncerPreStart, Crash::Error);
    }
    let mut peers = Vec::new();
    for key in [2, 3] {
        peers.push(discovering(key).faults(&faults).spawn().await.expect("it starts"));
    }
    let mut log = EventLog::of(&alice).await;
    for peer in &peers {
        let met = alice.sync_with(peer.addr());
        within(SOON, "an exchange", met).await.expect("both discover");
    }
    let first = peers[0].id();
    let is_end =
        |event: &NodeEvent| matches!(event, NodeEvent::SessionEnded { peer, .. } if *peer == first);
    eventually(SOONER, "the first link closes", async || log.count(is_end) > 0).await;
    over(peers.into_iter().chain([alice])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_link_for_an_errand_lingers_with_a_node_that_has_neighbours() {
    let mut limits = quick_limits();
    limits.linger = SOON;
    let alice = discovering(1).limits(limits).spawn().await.expect("it starts");
    let mut nodes = Vec::new();
    for key in [2, 3, 4] {
        let node = discovering(key).bootstrap(alice.addr());
        nodes.push(node.spawn().await.expect("it starts"));
    }
    eventually(SOON, "all are neighbours", async || {
        count(&alice, |metrics| u64::try_from(metrics.discovery.neighbours).ok()).await == 3
    })
    .await;
    // Nobody's neighbour.
    let faults = Faults::default();
    for _ in 0..32 {
        faults.arm(Point::AnnouncerPreStart, Crash::Error);
    }
    let peer = discovering(5).faults(&faults).spawn().await.expect("it starts");
    let mut log = EventLog::of(&alice).await;
    let met = alice.sync_with(peer.addr());
    within(SOON, "an exchange", met).await.expect("both discover");
    let met = peer.id();
    let is_end =
        |event: &NodeEvent| matches!(event, NodeEvent::SessionEnded { peer, .. } if *peer == met);
    eventually(SOONER, "the link closes", async || log.count(is_end) > 0).await;
    over(nodes.into_iter().chain([peer, alice])).await;
}
