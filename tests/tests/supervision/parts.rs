//! Accept and the PeerManager.

use std::time::Duration;

use kinfolk::error::{CallError, OpenError};
use kinfolk::fault::{Crash, Victim};
use kinfolk::{Code, Node, NodeEvent, Options, Service};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::alpn;
use kinfolk_tests::support::node::{ECHO, connect, link, node};
use kinfolk_tests::support::stranger::{Nobody, Stranger, closed_code};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::scene::{BOTH, BROKEN, SOON, is_restart, next, up};

// Accept

#[tokio::test]
async fn accept_fails_in_one_event_and_takes_connections_again() {
    for crash in BOTH {
        let (alice, bob) = (node(1).await, node(2).await);
        let mut log = EventLog::of(&alice).await;
        alice.inject(Victim::Accept, crash);
        let event = log.next(SOON, "the restart", is_restart).await;
        let NodeEvent::Restarted { actor, cause } = event else { panic!("{event:?}") };
        assert_eq!(actor, "accept");
        assert!(cause.contains("injected"), "{cause}");

        connect(&bob, &alice).await;
        assert_eq!(log.count(is_restart), 1);
        assert_eq!(alice.metrics().await.expect("alive").restarts.get("accept"), Some(&1));
    }
}

#[tokio::test]
async fn sessions_outlive_the_failure_of_accept() {
    let (alice, bob) = (node(1).await, node(2).await);
    let kept = connect(&bob, &alice).await;
    let mut log = EventLog::of(&alice).await;
    alice.inject(Victim::Accept, Crash::Panic);
    log.next(SOON, "the restart", is_restart).await;
    assert_eq!(next(&bob, alice.id(), 2).await, 3);
    assert_eq!(link(&bob, alice.id()).await, Some(kept));
}

#[tokio::test]
async fn a_handshake_under_way_when_accept_fails_is_closed_and_not_left_hanging() {
    let (alice, mallory) = (node(1).await, Stranger::bind(66).await);
    let connection = mallory.connect(alice.addr(), &alpn()).await.expect("the node is up");
    eventually(SOON, "the handshake is under way", async || {
        alice.metrics().await.is_ok_and(|metrics| metrics.handshakes == 1)
    })
    .await;
    alice.inject(Victim::Accept, Crash::Panic);
    assert!(closed_code(&connection, SOON).await.is_some(), "{:?}", connection.close_reason());
}

// PeerManager

#[tokio::test]
async fn the_peer_manager_fails_in_one_event_and_the_node_works_on() {
    for crash in BOTH {
        let (alice, bob) = (node(1).await, node(2).await);
        connect(&alice, &bob).await;
        let mut log = EventLog::of(&alice).await;
        alice.inject(Victim::PeerManager, crash);
        let event = log.next(SOON, "the restart", is_restart).await;
        let NodeEvent::Restarted { actor, cause } = event else { panic!("{event:?}") };
        assert_eq!(actor, "peer_manager");
        assert!(cause.contains("injected"), "{cause}");

        assert_eq!(next(&alice, bob.id(), 2).await, 3);
        assert_eq!(log.count(is_restart), 1);
        let metrics = alice.metrics().await.expect("alive");
        assert_eq!(metrics.restarts.get("peer_manager"), Some(&1));
        assert_eq!(metrics.manager_queue, 0);
    }
}

#[tokio::test]
async fn what_the_node_serves_outlives_the_peer_manager() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut log = EventLog::of(&alice).await;
    alice.inject(Victim::PeerManager, Crash::Panic);
    log.next(SOON, "the restart", is_restart).await;
    connect(&bob, &alice).await;
}

#[tokio::test]
async fn addresses_outlive_the_peer_manager() {
    let (alice, bob) = (node(1).await, node(2).await);
    alice.add_address(bob.addr()).expect("an address");
    let mut log = EventLog::of(&alice).await;
    alice.inject(Victim::PeerManager, Crash::Panic);
    log.next(SOON, "the restart", is_restart).await;
    assert_eq!(next(&alice, bob.id(), 4).await, 5);
}

#[tokio::test]
async fn a_ban_outlives_the_peer_manager() {
    let (alice, bob) = (node(1).await, node(2).await);
    alice.ban(bob.id(), Duration::from_secs(60)).expect("the node is up");
    let mut log = EventLog::of(&alice).await;
    alice.inject(Victim::PeerManager, Crash::Panic);
    log.next(SOON, "the restart", is_restart).await;
    let asked = within(SOON, "an outcome", alice.open(bob.addr(), ECHO)).await;
    assert_eq!(asked.expect_err("bob is banned"), OpenError::Banned);
    let refused = within(SOON, "an outcome", bob.open(alice.addr(), ECHO)).await;
    assert_eq!(refused.expect_err("bob is banned"), OpenError::Refused(Code::Banned));
}

#[tokio::test]
async fn a_ban_is_told_once_however_often_the_peer_manager_fails() {
    let (alice, bob, carol) = (node(1).await, node(2).await, node(3).await);
    let mut log = EventLog::of(&alice).await;
    let is_ban = |event: &NodeEvent| matches!(event, NodeEvent::PeerBanned { .. });
    alice.ban(bob.id(), Duration::from_secs(60)).expect("the node is up");
    log.next(SOON, "bob's ban", is_ban).await;
    for _ in 0..2 {
        alice.inject(Victim::PeerManager, Crash::Panic);
        log.next(SOON, "the restart", is_restart).await;
        // Not before the next one is up could it fail.
        within(SOON, "the next manager", alice.peers()).await.expect("the node is up");
    }
    // Another one is told, and so is the same one anew; before these a restart would have told of Bob's.
    alice.ban(carol.id(), Duration::from_secs(60)).expect("the node is up");
    log.next(SOON, "carol's ban", is_ban).await;
    alice.ban(bob.id(), Duration::from_secs(120)).expect("the node is up");
    log.next(SOON, "bob's second ban", is_ban).await;
    assert_eq!(log.count(is_ban), 3);
}

#[tokio::test]
async fn a_hold_outlives_the_peer_manager_and_its_peer_is_dialled_again() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut status = alice.monitor(bob.id()).await.expect("alive");
    let hold = alice.hold(bob.addr());
    let lost = up(&mut status, None).await;
    alice.inject(Victim::PeerManager, Crash::Panic);
    up(&mut status, Some(lost)).await;
    assert_eq!(hold.outcome(), None);
    let why = alice.why(bob.id()).await.expect("alive").expect("held");
    assert_eq!(why.holds, 1);
}

#[tokio::test]
async fn a_hold_that_is_dropped_while_the_peer_manager_is_away_is_not_taken_up_again() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut status = alice.monitor(bob.id()).await.expect("alive");
    let hold = alice.hold(bob.addr());
    up(&mut status, None).await;
    let mut log = EventLog::of(&alice).await;
    alice.inject(Victim::PeerManager, Crash::Panic);
    log.next(SOON, "the restart", is_restart).await;
    drop(hold);
    let holds = alice.why(bob.id()).await.expect("alive").map_or(0, |why| why.holds);
    assert_eq!(holds, 0);
}

#[tokio::test]
async fn a_watcher_sees_the_loss_of_the_peer_manager_and_the_next_session() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut status = alice.monitor(bob.id()).await.expect("alive");
    let lost = connect(&alice, &bob).await;
    alice.inject(Victim::PeerManager, Crash::Panic);
    within(SOON, "the loss", status.wait_for(|status| !status.is_up())).await.expect("watched");
    connect(&alice, &bob).await;
    up(&mut status, Some(lost)).await;
}

#[tokio::test]
async fn intents_queued_when_the_peer_manager_fails_end_as_restarted() {
    let (alice, nobody) = (node(1).await, Nobody::bind());
    let mut opens = JoinSet::new();
    for key in 100..110 {
        let (alice, address) = (alice.clone(), nobody.as_if(key));
        opens.spawn(async move { alice.open(address, ECHO).await.map(|_| ()) });
    }
    eventually(SOON, "all wait", async || {
        alice.metrics().await.is_ok_and(|metrics| metrics.intents_waiting == 10)
    })
    .await;
    alice.inject(Victim::PeerManager, Crash::Panic);
    let ends = within(SOON, "all outcomes", opens.join_all()).await;
    assert_eq!(ends, vec![Err(OpenError::Restarted); 10]);
    let metrics = alice.metrics().await.expect("alive");
    assert_eq!(metrics.intents_ended.get("restarted"), Some(&10));
    assert_eq!(metrics.intents_waiting, 0);
}

#[tokio::test]
async fn a_call_in_flight_when_the_peer_manager_fails_is_unknown() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut asked = serve_first_never(&bob).await;
    let call = within(SOON, "an outcome", alice.call::<_, u64>(bob.addr(), BROKEN, &1_u64));
    let crash = async {
        within(SOON, "the request", asked.recv()).await.expect("asked");
        alice.inject(Victim::PeerManager, Crash::Panic);
    };
    let (outcome, ()) = tokio::join!(call, crash);
    assert_eq!(outcome, Err(CallError::Intent(OpenError::Unknown)));
}

#[tokio::test]
async fn an_idempotent_call_in_flight_when_the_peer_manager_fails_is_asked_again() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut asked = serve_first_never(&bob).await;
    let options = Options::new().idempotent();
    let call = alice.call_with::<_, u64>(bob.addr(), BROKEN, &1_u64, options);
    let call = within(SOON, "an answer", call);
    let crash = async {
        within(SOON, "the request", asked.recv()).await.expect("asked");
        alice.inject(Victim::PeerManager, Crash::Panic);
    };
    let (outcome, ()) = tokio::join!(call, crash);
    assert_eq!(outcome, Ok(2));
}

/// Serves [`BROKEN`]: the first request is never answered, later ones are. Tells of each.
async fn serve_first_never(node: &Node) -> mpsc::UnboundedReceiver<()> {
    let (tell, asked) = mpsc::unbounded_channel();
    let count = std::sync::atomic::AtomicU64::new(0);
    let service = Service::call(move |_peer, _request: u64| {
        let earlier = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let _ = tell.send(());
        async move {
            if earlier == 0 {
                std::future::pending::<()>().await;
            }
            Ok(earlier + 1)
        }
    });
    node.serve(BROKEN, service).await.expect("a new protocol");
    asked
}
