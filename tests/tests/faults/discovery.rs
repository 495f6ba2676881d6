//! What a part of discovery was told is not lost with it, and what others do costs it no more than it allows.

use std::time::{Duration, Instant};

use kinfolk::fault::{Crash, Faults, Point, Victim};
use kinfolk::{Code, Direction, Node, NodeBuilder, NodeEvent, Options, SecretKey, Topic};
use kinfolk_core::wire::Answer;
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, hello};
use kinfolk_tests::support::host::Host;
use kinfolk_tests::support::node::{ECHO, builder};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::teller::{EXCHANGE, answer, exchange, key, lore, record};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{SOON, Scene, Scratch, limits, nothing_is_left};

fn alice(faults: &Faults) -> NodeBuilder {
    builder(1).limits(limits()).faults(faults).discovery(true)
}

fn is_restart(event: &NodeEvent) -> bool {
    matches!(event, NodeEvent::Restarted { .. })
}

async fn over(nodes: impl IntoIterator<Item = Node>) {
    for node in nodes {
        within(3 * SOON, "a shutdown", node.shutdown()).await;
    }
    nothing_is_left().await;
}

/// Waits until the node visits this stranger.
async fn visits(log: &mut EventLog, stranger: &Stranger) {
    let visit = |event: &NodeEvent| match event {
        NodeEvent::ExchangeStarted { peer, direction: Direction::Outbound } => {
            *peer == stranger.id()
        }
        _ => false,
    };
    log.next(SOON, "a visit", visit).await;
}

#[tokio::test]
async fn who_is_met_while_there_is_no_walker_is_visited_by_the_next() {
    let faults = Faults::default();
    let alice = alice(&faults).spawn().await.expect("it starts");
    let mut log = EventLog::of(&alice).await;
    // The only walker fails, and it takes a while until it is started again.
    faults.arm(Point::DiscoveryRestart, Crash::Stall(Duration::from_secs(2)));
    faults.arm(Point::WalkerWake, Crash::Error);
    alice.join_topic(Topic::from_name("a")).expect("room for it");
    within(SOON, "no walker is left", faults.struck(Point::DiscoveryRestart)).await;
    faults.arm(Point::DiscoveryMet, Crash::Stall(Duration::ZERO));
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &alice, hello(1, 1)).await;
    within(SOON, "the stranger is met", faults.struck(Point::DiscoveryMet)).await;
    visits(&mut log, &stranger).await;
    drop(guest);
    stranger.close().await;
    over([alice]).await;
}

#[tokio::test]
async fn who_was_to_be_visited_by_a_walker_that_failed_is_visited_by_the_next() {
    let faults = Faults::default();
    let alice = alice(&faults).spawn().await.expect("it starts");
    let mut log = EventLog::of(&alice).await;
    faults.arm(Point::WalkerWake, Crash::Error);
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &alice, hello(1, 1)).await;
    within(SOON, "the walker is told", faults.struck(Point::WalkerWake)).await;
    visits(&mut log, &stranger).await;
    drop(guest);
    stranger.close().await;
    over([alice]).await;
}

#[tokio::test]
async fn a_catalog_that_changes_does_not_ask_walkers_to_look_for_somebody_more_often() {
    const RECORDS: usize = 500;
    let faults = Faults::default();
    for _ in 0..2 * RECORDS {
        faults.arm(Point::DiscoverySought, Crash::Stall(Duration::ZERO));
    }
    let mut limits = limits();
    (limits.exchange.deadline, limits.exchange.silence) = (SOON, SOON);
    let alice = alice(&faults).limits(limits).spawn().await.expect("it starts");
    let began = Instant::now();
    let (asking, unknown) = (alice.clone(), SecretKey::from_bytes(&[96; 32]).public());
    let asked = tokio::spawn(async move {
        asking.open_with(unknown, ECHO, Options::new().deadline(3 * SOON)).await
    });
    within(SOON, "the walkers are asked", faults.struck(Point::DiscoverySought)).await;
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &alice, hello(1, 1)).await;
    let records = (0..RECORDS).map(|n| record(&key(u32::try_from(n).expect("few")), 1, None));
    assert!(exchange(&guest, lore(stranger.id(), records)).await.is_complete());
    assert!(alice.catalog().len() >= RECORDS);
    // Twice a second, and once at the beginning.
    let most = began.elapsed().as_millis() / 500 + 1;
    let sought = faults.strikes(Point::DiscoverySought) as u128;
    assert!(sought <= most, "{sought}, not {most}");
    asked.abort();
    let _ = asked.await;
    drop(guest);
    stranger.close().await;
    over([alice]).await;
}

#[tokio::test]
async fn a_peer_that_was_reached_just_before_discovery_failed_is_kept() {
    let (faults, store) = (Faults::default(), Scratch::new());
    let alice = alice(&faults).state_dir(store.0.join("alice")).spawn().await.expect("it starts");
    let mut log = EventLog::of(&alice).await;
    let dave = Scene::dave_builder().spawn().await.expect("it starts");
    within(SOON, "an exchange", alice.sync_with(dave.addr())).await.expect("both discover");
    alice.inject(Victim::Discovery, Crash::Error);
    log.next(SOON, "the restart", is_restart).await;
    let (file, id) = (store.0.join("alice").join("kinfolk.redb"), dave.id());
    eventually(SOON, "dave is on the disk", async || {
        let bytes = std::fs::read(&file).unwrap_or_default();
        bytes.windows(32).any(|bytes| bytes == id.as_bytes())
    })
    .await;
    over([alice, dave]).await;
}

#[tokio::test]
async fn a_link_of_errands_is_let_go_although_discovery_failed_meanwhile() {
    let faults = Faults::default();
    let mut limits = limits();
    limits.linger = 10 * SOON;
    // Its walkers visit somebody when they are woken, and then rest.
    let day = Duration::from_hours(24);
    (limits.walk.first_wait, limits.walk.longest_wait) = (day, day);
    let alice = alice(&faults).limits(limits).spawn().await.expect("it starts");
    let mut log = EventLog::of(&alice).await;
    let mut host = Host::bind(66).await;
    let (addr, id) = (host.addr(), host.id());
    let known = lore(id, [record(&SecretKey::from_bytes(&[66; 32]), 1, None)]);
    let serving = tokio::spawn(async move {
        let dialled = host.welcomed().await;
        let closed = dialled.connection.clone();
        let answering = async {
            loop {
                let mut stream = dialled.stream().await;
                if stream.header.protocol == EXCHANGE {
                    answer(&mut stream.send, &mut stream.receive, known.clone()).await;
                } else {
                    stream.answer(Answer::Refuse(Code::UnknownProtocol)).await;
                }
            }
        };
        tokio::select! {
            biased;
            _ = closed.closed() => {}
            () = answering => {}
        }
        host
    });
    within(SOON, "an exchange", alice.sync_with(addr)).await.expect("it answers");
    alice.inject(Victim::Discovery, Crash::Error);
    log.next(SOON, "the restart", is_restart).await;
    // As soon as there is somebody to ask.
    eventually(SOON, "another one", async || alice.sync_with(id).await.is_ok()).await;
    let host = within(SOON, "the end of the link", serving).await.expect("it runs");
    drop(host);
    over([alice]).await;
}
