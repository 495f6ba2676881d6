//! The node as a whole.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use iroh::SecretKey;
use kinfolk::error::OpenError;
use kinfolk::fault::{Crash, Victim};
use kinfolk::{LinkEnd, NodeEvent, Options, Terminal};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{
    ECHO, NEXT, address_to_return_to, builder_at, connect, link, node, serving,
};
use kinfolk_tests::support::stranger::Nobody;
use kinfolk_tests::support::wait::{eventually, within};
use tokio::task::JoinSet;

use crate::scene::{SOON, is_restart, next, port_becomes_free, port_of, supervised};

#[tokio::test]
async fn the_sixth_failure_within_ten_seconds_ends_the_node_with_its_cause() {
    let (_supervisor, node, mut ends) = supervised(1).await;
    for _ in 0..6 {
        within(SOON, "the manager", node.metrics()).await.expect("restarted up to five times");
        node.inject(Victim::PeerManager, Crash::Panic);
        // The question is answered by the next manager, or by the node's end.
        let _ = within(SOON, "an answer", node.metrics()).await;
    }
    let end = within(SOON, "the end", node.closed()).await;
    let Terminal::Failed(cause) = end else { panic!("{end:?}") };
    assert!(cause.contains("peer_manager") && cause.contains("injected panic"), "{cause}");
    let report = within(SOON, "the supervision event", ends.recv()).await.expect("reported");
    assert_eq!(*report, *cause);
}

#[tokio::test]
async fn five_failures_within_ten_seconds_are_survived() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut log = EventLog::of(&alice).await;
    for _ in 0..5 {
        alice.inject(Victim::PeerManager, Crash::Panic);
        log.next(SOON, "the restart", is_restart).await;
        within(SOON, "the manager", alice.metrics()).await.expect("restarted");
    }
    connect(&alice, &bob).await;
}

#[tokio::test]
async fn a_panic_of_the_node_reaches_its_supervisor_and_everyone_who_waits() {
    let (_supervisor, alice, mut ends) = supervised(1).await;
    let nobody = Nobody::bind();
    let open = within(SOON, "an outcome", alice.open(nobody.as_if(99), ECHO));
    let crash = async {
        eventually(SOON, "the open waits", async || {
            alice.metrics().await.is_ok_and(|metrics| metrics.intents_waiting == 1)
        })
        .await;
        alice.inject(Victim::Node, Crash::Panic);
    };
    let (opened, ()) = tokio::join!(open, crash);

    let end = within(SOON, "the end", alice.closed()).await;
    let Terminal::Failed(cause) = &end else { panic!("{end:?}") };
    assert!(cause.contains("injected panic"), "{cause}");
    let Err(OpenError::Closed(closed)) = opened else { panic!("{opened:?}") };
    assert_eq!(closed.0, end);
    let report = within(SOON, "the supervision event", ends.recv()).await.expect("reported");
    assert_eq!(*report, **cause);
    assert_eq!(alice.metrics().await.expect_err("it has ended").0, end);
}

#[tokio::test]
async fn an_error_of_the_node_is_its_end() {
    let alice = node(1).await;
    alice.inject(Victim::Node, Crash::Error);
    let end = within(SOON, "the end", alice.closed()).await;
    assert_eq!(end, Terminal::Failed("injected error".into()));
}

#[tokio::test]
async fn a_node_that_panicked_tells_its_peers_and_frees_its_port() {
    let alice = serving(builder_at(1, address_to_return_to())).await;
    let bob = node(2).await;
    let mut log = EventLog::of(&bob).await;
    connect(&bob, &alice).await;
    alice.inject(Victim::Node, Crash::Panic);
    within(SOON, "the end", alice.closed()).await;
    let told = |event: &NodeEvent| {
        matches!(event, NodeEvent::SessionEnded { end: LinkEnd::ClosedByPeer(_), .. })
    };
    log.next(SOON, "bob is told", told).await;
    port_becomes_free(port_of(&alice)).await;
}

#[tokio::test]
async fn a_node_whose_supervisor_is_killed_is_killed_too_and_frees_its_port() {
    let (supervisor, alice, _ends) = supervised(1).await;
    let bob = node(2).await;
    connect(&alice, &bob).await;
    let port = port_of(&alice);
    UdpSocket::bind(port).expect_err("the port is taken while the node is up");
    supervisor.kill();
    assert_eq!(within(SOON, "the end", alice.closed()).await, Terminal::Killed);
    port_becomes_free(port).await;
}

#[tokio::test]
async fn the_failure_of_one_node_does_not_touch_another_one_of_the_process() {
    let (alice, bob, carol) = (node(1).await, node(2).await, node(3).await);
    let kept = connect(&bob, &carol).await;
    alice.inject(Victim::Node, Crash::Panic);
    within(SOON, "the end", alice.closed()).await;
    assert_eq!(next(&bob, carol.id(), 2).await, 3);
    assert_eq!(link(&bob, carol.id()).await, Some(kept));
}

// Load

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_in_a_storm_of_failures_has_an_outcome_and_the_nodes_recover() {
    let (alice, bob) = (node(1).await, node(2).await);
    connect(&alice, &bob).await;
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for (from, to) in [(&alice, &bob), (&bob, &alice)].repeat(5) {
        let (from, to, over) = (from.clone(), to.addr(), over.clone());
        callers.spawn(async move {
            let mut calls = 0_u64;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                // The intent's own deadline is ten seconds.
                let call = from.call::<_, u64>(&to, NEXT, &calls);
                let outcome = within(2 * SOON, "an outcome", call).await;
                assert!(outcome.is_err() || outcome == Ok(calls + 1), "{outcome:?}");
                calls += 1;
            }
            calls
        });
    }
    for round in 0..20 {
        for (node, peer) in [(&alice, &bob), (&bob, &alice)] {
            node.inject(Victim::Session(peer.id()), Crash::Error);
            match round {
                3 | 12 => node.inject(Victim::PeerManager, Crash::Panic),
                6 | 15 => node.inject(Victim::Accept, Crash::Panic),
                _ => {}
            }
        }
        within(SOON, "alice's manager", alice.metrics()).await.expect("alive");
        within(SOON, "bob's manager", bob.metrics()).await.expect("alive");
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    let calls = within(3 * SOON, "all callers", callers.join_all()).await;
    assert!(calls.iter().all(|calls| *calls > 0), "{calls:?}");
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        // The last crash may be yet to come.
        let call = from.call_with(to.addr(), NEXT, &5_u64, Options::new().idempotent());
        assert_eq!(within(SOON, "an answer", call).await, Ok(6_u64));
    }
}

#[tokio::test]
async fn a_thousand_peers_worth_of_wishes_leave_the_manager_responsive() {
    const PEERS: u32 = 1000;
    /// How long half of the answers may take at most: other tests share the cores, and may keep any single one waiting.
    const MOSTLY: Duration = Duration::from_millis(50);
    /// How long any answer may take; shorter than the wishes wait.
    const ALWAYS: Duration = Duration::from_secs(2);
    const WISH: Duration = Duration::from_secs(6);
    let (alice, nobody) = (node(1).await, Nobody::bind());
    let mut opens = JoinSet::new();
    for peer in 0..PEERS {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&peer.to_le_bytes());
        let address = nobody.as_if(SecretKey::from_bytes(&key));
        let alice = alice.clone();
        let options = Options::new().deadline(WISH);
        opens.spawn(async move { alice.open_with(address, ECHO, options).await.map(|_| ()) });
    }
    eventually(SOON, "all wait", async || {
        alice.metrics().await.is_ok_and(|metrics| metrics.intents_waiting == 1000)
    })
    .await;
    let mut waits = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    for _ in 0..200 {
        pace.tick().await;
        let asked = Instant::now();
        let metrics = within(SOON, "the numbers", alice.metrics()).await.expect("alive");
        waits.push(asked.elapsed());
        assert!(metrics.sessions.dialling <= 16, "{metrics:?}");
    }
    waits.sort();
    let (half, slowest) = (waits[100], waits[199]);
    assert!(
        half < MOSTLY && slowest < ALWAYS,
        "of 200 answers, half took {half:?}, one {slowest:?}"
    );

    let ends = within(WISH + SOON, "all outcomes", opens.join_all()).await;
    let late = |end: &Result<(), OpenError>| matches!(end, Err(OpenError::TimedOut { .. }));
    assert_eq!(ends.iter().filter(|end| late(end)).count(), 1000);
}
