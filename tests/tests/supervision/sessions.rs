//! Sessions.

use std::time::Duration;

use kinfolk::error::StreamError;
use kinfolk::fault::{Crash, Victim};
use kinfolk::{Code, LinkEnd, NodeEvent, Service};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, hello, knock};
use kinfolk_tests::support::node::{ECHO, builder, connect, link, node, quick_limits, serving};
use kinfolk_tests::support::stranger::{Stranger, closed_code};
use kinfolk_tests::support::wait::within;
use tokio::sync::mpsc;

use crate::scene::{BROKEN, SOON, is_restart, is_session_panic, next, up};

#[tokio::test]
async fn a_panic_in_a_session_is_one_event_and_the_peer_can_be_called_again() {
    let (alice, bob) = (node(1).await, node(2).await);
    let lost = connect(&alice, &bob).await;
    let mut log = EventLog::of(&alice).await;
    alice.inject(Victim::Session(bob.id()), Crash::Panic);

    let event = log.next(SOON, "the panic", is_session_panic).await;
    let NodeEvent::SessionPanicked { peer, link, message } = event else { panic!("{event:?}") };
    assert_eq!((peer, link), (bob.id(), lost));
    assert!(message.contains("injected panic"), "{message}");
    assert_eq!(next(&alice, bob.id(), 2).await, 3);
    assert_eq!(log.count(is_session_panic), 1);
    assert_eq!(log.count(is_restart), 0);
    let metrics = alice.metrics().await.expect("alive");
    assert_eq!(metrics.panics.get("session"), Some(&1));
    assert_eq!(metrics.sessions.ended.get("panicked"), Some(&1));
}

#[tokio::test]
async fn an_error_in_a_session_is_no_panic_and_the_peer_can_be_called_again() {
    let (alice, bob) = (node(1).await, node(2).await);
    let lost = connect(&alice, &bob).await;
    let mut log = EventLog::of(&alice).await;
    alice.inject(Victim::Session(bob.id()), Crash::Error);

    let ended = NodeEvent::SessionEnded { peer: bob.id(), link: lost, end: LinkEnd::Failed };
    log.next(SOON, "the session's end", |event| *event == ended).await;
    assert_eq!(next(&alice, bob.id(), 2).await, 3);
    assert_eq!(log.count(is_session_panic), 0);
    assert_eq!(log.count(|event| *event == ended), 1);
    assert_eq!(alice.metrics().await.expect("alive").panics.get("session"), None);
}

#[tokio::test]
async fn a_stream_with_another_peer_outlives_the_panic_of_a_session() {
    let (alice, bob, carol) = (node(1).await, node(2).await, node(3).await);
    connect(&alice, &bob).await;
    let kept = connect(&alice, &carol).await;
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(carol.id(), ECHO)).await.expect("opened");
    let mut log = EventLog::of(&alice).await;
    alice.inject(Victim::Session(bob.id()), Crash::Panic);
    log.next(SOON, "the panic", is_session_panic).await;

    send.write_all(b"still here").await.expect("sent");
    send.finish().expect("finished once");
    let echoed = within(SOON, "the echo", recv.read_to_end(100)).await.expect("received");
    assert_eq!(echoed, b"still here");
    assert_eq!(link(&alice, carol.id()).await, Some(kept));
}

#[tokio::test]
async fn a_held_peer_is_dialled_again_after_a_panic_of_its_session() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut status = alice.monitor(bob.id()).await.expect("alive");
    let hold = alice.hold(bob.addr());
    let lost = up(&mut status, None).await;
    alice.inject(Victim::Session(bob.id()), Crash::Panic);
    up(&mut status, Some(lost)).await;
    assert_eq!(hold.outcome(), None);
}

#[tokio::test]
async fn streams_of_a_session_that_panicked_end_with_a_code_on_both_sides() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (seen, mut end_at_bob) = mpsc::unbounded_channel();
    let watch = Service::stream(move |mut stream| {
        let seen = seen.clone();
        async move {
            let _ = seen.send(stream.recv.read_chunk(1).await);
            Ok(())
        }
    });
    bob.serve(BROKEN, watch).await.expect("a new protocol");
    let (_send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), BROKEN)).await.expect("opened");
    alice.inject(Victim::Session(bob.id()), Crash::Panic);

    let at_alice = within(SOON, "the end at alice", recv.read_chunk(1)).await;
    assert_eq!(at_alice, Err(StreamError::LinkClosed(Code::Restarted)));
    let at_bob = within(SOON, "the end at bob", end_at_bob.recv()).await;
    assert_eq!(at_bob, Some(Err(StreamError::LinkClosed(Code::Restarted))));
}

#[tokio::test]
async fn a_peer_whose_sessions_keep_panicking_is_quarantined_once_and_with_the_cause() {
    let mut limits = quick_limits();
    limits.quarantine = Duration::from_secs(321);
    let alice = serving(builder(1).limits(limits)).await;
    let (bob, mallory) = (node(2).await, Stranger::bind(66).await);
    connect(&bob, &alice).await;
    let mut log = EventLog::of(&alice).await;
    for n in 1..=5 {
        let guest = Guest::enter(&mallory, &alice, hello(1, n)).await;
        alice.inject(Victim::Session(mallory.id()), Crash::Panic);
        log.next(SOON, "the panic", is_session_panic).await;
        drop(guest);
    }
    let is_quarantine = |event: &NodeEvent| matches!(event, NodeEvent::PeerQuarantined { .. });
    let event = log.next(SOON, "the quarantine", is_quarantine).await;
    let NodeEvent::PeerQuarantined { peer, duration, cause } = event else { panic!("{event:?}") };
    assert_eq!((peer, duration), (mallory.id(), Duration::from_secs(321)));
    assert!(cause.contains("injected panic"), "{cause}");

    let (again, ..) = knock(&mallory, &alice, hello(1, 6)).await;
    assert_eq!(closed_code(&again, SOON).await, Some(u64::from(Code::Banned.to_wire())));
    assert_eq!(next(&bob, alice.id(), 7).await, 8);
    assert_eq!(log.count(is_quarantine), 1);
    assert_eq!(log.count(is_session_panic), 5);

    alice.unban(mallory.id()).expect("the node is up");
    log.next(SOON, "the end of the quarantine", |event| {
        matches!(event, NodeEvent::PeerUnbanned { .. })
    })
    .await;
    Guest::enter(&mallory, &alice, hello(1, 7)).await;
}
