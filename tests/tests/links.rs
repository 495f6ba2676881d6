//! Links over real QUIC: who dials, which link of a restarted peer stays, when a link is let go, and what is known about it.

use std::time::{Duration, Instant};

use kinfolk::error::{CallError, OpenError, StreamError};
use kinfolk::{
    Code, DialFailure, Direction, DownReason, EndpointId, Hold, Limits, LinkEnd, Node, NodeEvent,
    Options, PeerState, PeerStatus, Why,
};
use kinfolk_core::wire::{Control, StreamMode};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, header, hear, hello, knock};
use kinfolk_tests::support::host::Host;
use kinfolk_tests::support::node::{
    ECHO, Mortal, NEXT, address_to_return_to, builder, builder_at, connect, down, link, live, node,
    node_with, quick_limits, relay, serving, watching,
};
use kinfolk_tests::support::stranger::{Nobody, Stranger, closed_code};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::task::JoinSet;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

/// How late a busy machine may be.
const SLACK: Duration = Duration::from_secs(4);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

async fn why(node: &Node, peer: EndpointId) -> Why {
    let why = within(SOON, "why", node.why(peer)).await.expect("the node is up");
    why.expect("the peer is known")
}

async fn state(node: &Node, peer: EndpointId) -> PeerState {
    let why = within(SOON, "why", node.why(peer)).await.expect("the node is up");
    why.map_or(PeerState::Idle, |why| why.state)
}

async fn held(node: &Node, peer: &Node) -> Hold {
    let hold = node.hold(peer.addr());
    live(node, peer.id()).await;
    live(peer, node.id()).await;
    hold
}

fn code(code: Code) -> Option<u64> {
    Some(u64::from(code.to_wire()))
}

// One link for all

#[tokio::test]
async fn a_hundred_opens_at_once_to_an_unknown_peer_share_one_dial() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut opens = JoinSet::new();
    for _ in 0..100 {
        let (alice, address) = (alice.clone(), bob.addr());
        opens.spawn(async move { alice.open(address, ECHO).await });
    }
    for opened in within(SOON, "all opens", opens.join_all()).await {
        opened.expect("opened");
    }
    assert_eq!(alice.metrics().await.expect("up").dials_started, 1);
    let bobs = bob.metrics().await.expect("up");
    assert_eq!((bobs.incoming_accepted, bobs.sessions.established), (1, 1));
    assert_eq!(bobs.protocols["echo/1"].served, 100);
}

#[tokio::test]
async fn both_sides_use_the_one_link_that_either_dialled() {
    let (alice, bob) = (node(1).await, node(2).await);
    let shared = connect(&alice, &bob).await;
    let asked = bob.call::<_, u64>(alice.id(), NEXT, &6_u64);
    assert_eq!(within(SOON, "an answer", asked).await, Ok(7));
    assert_eq!(link(&bob, alice.id()).await, Some(shared));
    assert_eq!(bob.metrics().await.expect("up").dials_started, 0);
}

// Restarted peers

/// A node that notices a dead peer late.
async fn with_slow_idle_timeout(key: u8) -> Node {
    node_with(key, |limits| limits.idle_timeout = Duration::from_secs(30)).await
}

/// How long it takes until both have asked and answered, one having dialled the other.
async fn met(dialling: &Node, dialled: &Node) -> Duration {
    let start = Instant::now();
    assert_eq!(connect_once(dialling, dialled).await, Ok(2));
    let asked = dialled.call::<_, u64>(dialling.id(), NEXT, &2_u64);
    assert_eq!(within(SOON, "an answer", asked).await, Ok(3));
    start.elapsed()
}

#[tokio::test]
async fn a_peer_that_died_and_dials_again_is_usable_at_once_although_its_old_link_seems_alive() {
    let alice = with_slow_idle_timeout(1).await;
    let (mut first, mut again) = (Duration::MAX, Duration::MAX);
    // The fastest of some rounds, as the machine may be busy.
    for _ in 0..5 {
        let bob = Mortal::spawn(builder(2)).await;
        first = first.min(met(&bob.node, &alice).await);
        let (id, dead) = (bob.node.id(), live(&alice, bob.node.id()).await);
        bob.kill().await;

        let bob = Mortal::spawn(builder(2)).await;
        let mut log = EventLog::of(&alice).await;
        again = again.min(met(&bob.node, &alice).await);
        let replaced =
            NodeEvent::SessionDown { peer: id, link: dead, reason: DownReason::Replaced };
        log.next(SOON, "the old link's end", |event| *event == replaced).await;
        assert_ne!(live(&alice, id).await, dead);
        alice.disconnect(id).await.expect("up");
        bob.kill().await;
    }
    assert!(again < first + ms(100), "{again:?}, and {first:?} for a peer that was never met");
}

#[tokio::test]
async fn a_stream_with_a_process_that_is_gone_ends_when_the_next_one_says_hello() {
    let alice = with_slow_idle_timeout(1).await;
    let bob = Mortal::spawn(builder(2)).await;
    alice.add_address(bob.node.addr()).expect("an address");
    let (_send, mut recv) =
        within(SOON, "the open", alice.open(bob.node.id(), ECHO)).await.expect("opened");
    bob.kill().await;
    let bob = node(2).await;
    connect(&bob, &alice).await;
    let end = within(ms(1000), "the end", recv.read(&mut [0])).await;
    assert_eq!(end, Err(StreamError::LinkClosed(Code::Replaced)));
}

#[tokio::test]
async fn an_open_that_waits_on_a_dead_process_is_served_by_the_next_one() {
    let alice = with_slow_idle_timeout(1).await;
    let bob = Mortal::spawn(builder(2)).await;
    connect(&alice, &bob.node).await;
    let id = bob.node.id();
    bob.kill().await;
    let opening = alice.open(id, ECHO);
    let returning = async {
        let bob = node(2).await;
        connect(&bob, &alice).await;
        bob
    };
    let both = async { tokio::join!(opening, returning) };
    let (opened, _bob) = within(Duration::from_secs(5), "the open", both).await;
    opened.expect("opened with the new process");
}

#[tokio::test]
async fn a_peer_that_died_without_a_word_is_lost_after_the_idle_timeout_and_found_again_by_a_dial()
{
    let (alice, address) = (node(1).await, address_to_return_to());
    let bob = Mortal::spawn(builder_at(2, address)).await;
    connect(&alice, &bob.node).await;
    let mut status = watching(&alice, bob.node.id()).await;
    bob.kill().await;
    let died = Instant::now();
    let reason = down(&mut status).await;
    assert_eq!(reason, Some(DownReason::Ended(LinkEnd::Lost)));
    let limits = quick_limits();
    // It counts from the first sign of life that has no answer.
    let latest = limits.idle_timeout + limits.keep_alive + SLACK;
    assert!(died.elapsed() < latest, "{:?}", died.elapsed());

    let bob = serving(builder_at(2, address)).await;
    let asked = alice.call::<_, u64>(bob.id(), NEXT, &2_u64);
    assert_eq!(within(limits.dial_deadline, "an answer", asked).await, Ok(3));
}

#[tokio::test]
async fn an_open_on_a_link_that_is_dead_already_is_repeated_on_the_next_link() {
    let (alice, address) = (node(1).await, address_to_return_to());
    let bob = Mortal::spawn(builder_at(2, address)).await;
    connect(&alice, &bob.node).await;
    bob.kill().await;
    let bob = serving(builder_at(2, address)).await;
    let limits = quick_limits();
    let latest = limits.idle_timeout + limits.dial_deadline;
    within(latest, "the open", alice.open(bob.id(), ECHO)).await.expect("opened");
    assert_eq!(alice.metrics().await.expect("up").dials_started, 2);
}

#[tokio::test]
async fn a_new_link_is_taken_while_the_old_one_drains_and_the_old_one_s_end_changes_nothing() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    let old = live(&alice, bob.id()).await;
    let mut log = EventLog::of(&alice).await;
    alice.disconnect(bob.id()).await.expect("up");
    let new = connect(&bob, &alice).await;
    assert_ne!(new, old);
    assert_eq!(live(&alice, bob.id()).await, new);

    send.write_all(b"still here").await.expect("sent");
    send.finish().expect("finished once");
    let echoed = within(SOON, "the echo", recv.read_to_end(100)).await.expect("received");
    assert_eq!(echoed, b"still here");
    let ended = NodeEvent::SessionEnded { peer: bob.id(), link: old, end: LinkEnd::Drained };
    log.next(SOON, "the old link's end", |event| *event == ended).await;
    assert_eq!(link(&alice, bob.id()).await, Some(new));
    assert_eq!(link(&bob, alice.id()).await, Some(new));
    assert_eq!(bob.metrics().await.expect("up").dials_started, 1);
}

#[tokio::test]
async fn an_incoming_link_that_is_older_than_the_live_one_disturbs_neither_streams_nor_watchers() {
    let (alice, mallory) = (node(1).await, Stranger::bind(66).await);
    let guest = Guest::enter(&mallory, &alice, hello(1, 2)).await;
    let mut status = watching(&alice, mallory.id()).await;
    let before = *status.borrow_and_update();
    let header = header(ECHO, StreamMode::Acked);
    let (mut send, mut receive) = guest.ask(&header).await;
    let mut answer = [0];
    within(SOON, "the ack", receive.read_exact(&mut answer)).await.expect("answered");

    let (older, _send, _receive) = knock(&mallory, &alice, hello(1, 1)).await;
    assert_eq!(closed_code(&older, SOON).await, code(Code::Duplicate));
    send.write_all(b"x").await.expect("sent");
    within(SOON, "the echo", receive.read_exact(&mut answer)).await.expect("echoed");
    assert_eq!(answer, *b"x");
    assert!(!status.has_changed().expect("up"), "{before:?}, then {:?}", *status.borrow());
}

// Deadlines, and links that close

fn is_dial_failure(event: &NodeEvent) -> bool {
    matches!(event, NodeEvent::DialFailed { .. })
}

#[tokio::test]
async fn a_dial_that_nobody_answers_fails_at_its_deadline_and_the_waiter_learns_the_cause() {
    let alice = node_with(1, |limits| limits.dial_deadline = ms(300)).await;
    let nobody = Nobody::bind();
    let mut log = EventLog::of(&alice).await;
    let start = Instant::now();
    let _hold = alice.hold(nobody.as_if(99));
    let failed = log.next(SOON, "the failed dial", is_dial_failure).await;
    let timed_out = LinkEnd::DialFailed(DialFailure::TimedOut);
    assert!(matches!(failed, NodeEvent::DialFailed { end, .. } if end == timed_out), "{failed:?}");
    assert!((ms(300)..ms(1300)).contains(&start.elapsed()), "{:?}", start.elapsed());

    let options = Options::new().deadline(ms(100));
    let opened = within(SOON, "an outcome", alice.open_with(nobody.as_if(99), ECHO, options)).await;
    assert_eq!(
        opened.expect_err("nobody is there"),
        OpenError::TimedOut { cause: Some(timed_out) }
    );
}

#[tokio::test]
async fn a_peer_that_never_welcomes_is_closed_with_a_code_and_the_waiter_learns_the_cause() {
    let alice = node_with(1, |limits| limits.hello_deadline = ms(1000)).await;
    let mut host = Host::bind(2).await;
    let mut log = EventLog::of(&alice).await;
    let _hold = alice.hold(host.addr());
    let silent = host.greeted().await;
    assert_eq!(closed_code(&silent.connection, SOON).await, code(Code::HelloTimeout));
    log.next(SOON, "the first failure", is_dial_failure).await;

    // It cuts the first backoff short; the second one is longer than its deadline.
    let options = Options::new().deadline(ms(2300));
    let opened = alice.open_with(host.addr(), ECHO, options);
    let opened = within(SOON, "an outcome", opened).await;
    let cause = Some(LinkEnd::Closed(Code::HelloTimeout));
    assert_eq!(opened.expect_err("never welcomed"), OpenError::TimedOut { cause });
}

/// Waits for the end of a session that the peer closed as cancelled, which must show within a second.
async fn ends_within_a_second(log: &mut EventLog) {
    let end = LinkEnd::ClosedByPeer(Code::Cancelled);
    let is_end = |event: &NodeEvent| matches!(event, NodeEvent::SessionEnded { end: how, .. } if *how == end);
    log.next(ms(1000), "the close is noticed", is_end).await;
}

#[tokio::test]
async fn a_close_is_noticed_within_a_second_while_the_welcome_is_awaited() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let mut log = EventLog::of(&alice).await;
    let _hold = alice.hold(host.addr());
    host.greeted().await.close(Code::Cancelled);
    ends_within_a_second(&mut log).await;
}

#[tokio::test]
async fn a_close_is_noticed_within_a_second_while_the_link_is_live() {
    let (alice, mallory) = (node(1).await, Stranger::bind(66).await);
    let mut log = EventLog::of(&alice).await;
    let guest = Guest::enter(&mallory, &alice, hello(1, 1)).await;
    guest.connection.close(2_u32.into(), b"");
    ends_within_a_second(&mut log).await;
}

#[tokio::test]
async fn a_close_is_noticed_within_a_second_while_the_link_drains() {
    let (alice, mallory) = (node(1).await, Stranger::bind(66).await);
    let mut guest = Guest::enter(&mallory, &alice, hello(1, 1)).await;
    let mut log = EventLog::of(&alice).await;
    alice.disconnect(mallory.id()).await.expect("up");
    let heard = hear(&mut guest.receive).await;
    assert!(matches!(heard, Some(Control::Goodbye(_))), "{heard:?}");
    guest.connection.close(2_u32.into(), b"");
    ends_within_a_second(&mut log).await;
}

#[tokio::test]
async fn a_link_in_a_partition_is_lost_after_the_idle_timeout() {
    let (alice, bob) = (node(1).await, node(2).await);
    let pair = relay(1, &alice, &bob);
    let mut status = watching(&alice, bob.id()).await;
    let _hold = alice.hold(bob.id());
    live(&alice, bob.id()).await;
    let start = Instant::now();
    pair.partition();
    assert_eq!(down(&mut status).await, Some(DownReason::Ended(LinkEnd::Lost)));
    let took = start.elapsed();
    let limits = quick_limits();
    assert!(took < limits.idle_timeout + limits.keep_alive + SLACK, "{took:?}");
}

#[tokio::test]
async fn a_link_at_rest_lives_on_whichever_side_keeps_it_alive() {
    let patient = |limits: &mut Limits| {
        limits.idle_timeout = Duration::from_secs(30);
        limits.keep_alive = Duration::from_secs(20);
    };
    let quick = |_: &mut Limits| {};
    let dialled_by_the_quick = [node_with(1, quick).await, node_with(2, patient).await];
    let dialled_by_the_patient = [node_with(3, patient).await, node_with(4, quick).await];
    let mut ends = JoinSet::new();
    for [dialler, other] in [dialled_by_the_quick, dialled_by_the_patient] {
        ends.spawn(async move {
            let _hold = held(&dialler, &other).await;
            let mut status = watching(&dialler, other.id()).await;
            // The shorter of two idle timeouts counts for both.
            timeout(2 * quick_limits().idle_timeout, down(&mut status)).await
        });
    }
    let ends = ends.join_all().await;
    assert!(ends.iter().all(Result::is_err), "{ends:?}");
}

// Linger and holds

#[tokio::test]
async fn an_unused_link_is_closed_after_the_linger_time_and_not_before() {
    const LINGER: Duration = ms(400);
    let (alice, bob) = (node_with(1, |limits| limits.linger = LINGER).await, node(2).await);
    let mut logs = [EventLog::of(&alice).await, EventLog::of(&bob).await];
    // The link is used after this.
    let before_use = Instant::now();
    assert_eq!(connect_once(&alice, &bob).await, Ok(2));
    assert_eq!(next_down(&mut logs[0]).await, DownReason::Draining(Code::Idle));
    assert!(before_use.elapsed() >= LINGER, "{:?}", before_use.elapsed());
    assert_eq!(next_down(&mut logs[1]).await, DownReason::PeerDraining(Code::Idle));
}

/// Why the next link that stops being live does so. Unlike a watcher, it misses none, however short its life.
async fn next_down(log: &mut EventLog) -> DownReason {
    let is_down = |event: &NodeEvent| matches!(event, NodeEvent::SessionDown { .. });
    match log.next(SOON, "the end of the session", is_down).await {
        NodeEvent::SessionDown { reason, .. } => reason,
        other => panic!("waited for the end of a session, came {other:?}"),
    }
}

#[tokio::test]
async fn the_linger_time_counts_from_the_end_of_the_last_stream() {
    const LINGER: Duration = ms(300);
    let (alice, bob) = (node_with(1, |limits| limits.linger = LINGER).await, node(2).await);
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    live(&alice, bob.id()).await;
    let mut status = watching(&alice, bob.id()).await;
    timeout(LINGER * 3, down(&mut status)).await.expect_err("the open stream keeps the link");
    // The stream ends after this.
    let before_end = Instant::now();
    send.finish().expect("finished once");
    assert_eq!(within(SOON, "the end", recv.read(&mut [0])).await, Ok(None));
    assert_eq!(down(&mut status).await, Some(DownReason::Draining(Code::Idle)));
    assert!(before_end.elapsed() >= LINGER, "{:?}", before_end.elapsed());
}

#[tokio::test]
async fn a_link_that_is_used_again_and_again_outlives_the_linger_time() {
    // A busy machine would have to pause for two seconds between two uses.
    const LINGER: Duration = ms(2500);
    let (alice, bob) = (node_with(1, |limits| limits.linger = LINGER).await, node(2).await);
    let first = connect(&alice, &bob).await;
    let start = Instant::now();
    let mut pace = tokio::time::interval(LINGER / 5);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while start.elapsed() < LINGER * 3 / 2 {
        pace.tick().await;
        assert_eq!(connect(&alice, &bob).await, first);
    }
}

#[tokio::test]
async fn a_hold_keeps_the_link_open_at_both_sides_until_it_is_dropped() {
    let brief = |limits: &mut kinfolk::Limits| limits.linger = ms(1000);
    let (alice, bob) = (node_with(1, brief).await, node_with(2, brief).await);
    let hold = held(&alice, &bob).await;
    let mut status = watching(&alice, bob.id()).await;
    timeout(ms(3000), down(&mut status)).await.expect_err("the hold keeps the link");
    assert_eq!(hold.outcome(), None);
    drop(hold);
    let reason = down(&mut status).await;
    let idle = [DownReason::Draining(Code::Idle), DownReason::PeerDraining(Code::Idle)];
    assert!(reason.is_some_and(|reason| idle.contains(&reason)), "{reason:?}");
}

#[tokio::test]
async fn one_of_two_holds_is_enough() {
    let (alice, bob) = (node_with(1, |limits| limits.linger = ms(300)).await, node(2).await);
    let first = held(&alice, &bob).await;
    let second = alice.hold(bob.id());
    drop(first);
    let mut status = watching(&alice, bob.id()).await;
    timeout(ms(1000), down(&mut status)).await.expect_err("the second hold keeps the link");
    assert_eq!(second.outcome(), None);
    assert_eq!(why(&alice, bob.id()).await.holds, 1);
}

/// Lets the link linger out four times, each time after one call, as fast as the calls are answered.
async fn lingers_out_four_times(alice: &Node, bob: &Node) {
    let mut log = EventLog::of(alice).await;
    for _ in 0..4 {
        let asked = within(ms(2000), "an answer", connect_once(alice, bob)).await;
        assert_eq!(asked, Ok(2));
        next_down(&mut log).await;
    }
    assert_eq!(why(alice, bob.id()).await.attempts, 0);
}

#[tokio::test]
async fn a_link_that_lingers_out_is_no_failed_attempt() {
    let (alice, bob) = (node_with(1, |limits| limits.linger = ms(50)).await, node(2).await);
    lingers_out_four_times(&alice, &bob).await;
}

#[tokio::test]
async fn a_link_that_the_peer_lets_linger_out_is_no_failed_attempt() {
    let (alice, bob) = (node(1).await, node_with(2, |limits| limits.linger = ms(50)).await);
    lingers_out_four_times(&alice, &bob).await;
}

async fn connect_once(node: &Node, peer: &Node) -> Result<u64, CallError> {
    within(SOON, "an answer", node.call(peer.addr(), NEXT, &1_u64)).await
}

// Dialling again

#[tokio::test]
async fn all_that_waits_for_a_peer_shares_its_backoff_and_cuts_it_short_once() {
    let (alice, nobody) =
        (node_with(1, |limits| limits.dial_deadline = ms(150)).await, Nobody::bind());
    let mut log = EventLog::of(&alice).await;
    let _hold = alice.hold(nobody.as_if(99));
    log.next(SOON, "the first failure", is_dial_failure).await;
    let mut opens = JoinSet::new();
    for _ in 0..50 {
        let (alice, address) = (alice.clone(), nobody.as_if(99));
        let options = Options::new().deadline(ms(450));
        opens.spawn(async move { alice.open_with(address, ECHO, options).await.map(|_| ()) });
    }
    let cause = Some(LinkEnd::DialFailed(DialFailure::TimedOut));
    let ends = within(SOON, "all outcomes", opens.join_all()).await;
    assert_eq!(ends, vec![Err(OpenError::TimedOut { cause }); 50]);
    // The second delay is at least two and a half seconds.
    assert_eq!(alice.metrics().await.expect("up").dials_started, 2);
    // That dial may end just after the opens.
    eventually(SOON, "its end", async || why(&alice, nobody.as_if(99).id).await.attempts == 2)
        .await;
}

#[tokio::test]
async fn news_of_an_address_end_the_backoff() {
    let alice = node_with(1, |limits| limits.dial_deadline = ms(1000)).await;
    let (bob, nobody) = (node(2).await, Nobody::bind());
    alice.add_address(nobody.as_if(2)).expect("an address");
    let _hold = alice.hold(bob.id());
    eventually(SOON, "a long backoff", async || {
        why(&alice, bob.id()).await.retry_in.is_some_and(|left| left > ms(2000))
    })
    .await;
    alice.add_address(bob.addr()).expect("an address");
    let mut status = watching(&alice, bob.id()).await;
    let up = status.wait_for(PeerStatus::is_up);
    within(ms(1500), "a session", up).await.expect("watched");
}

#[tokio::test]
async fn a_hold_without_an_address_is_served_once_the_address_is_known() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut log = EventLog::of(&alice).await;
    let hold = alice.hold(bob.id());
    let no_address = LinkEnd::DialFailed(DialFailure::NoAddress);
    let is_failure = |event: &NodeEvent| matches!(event, NodeEvent::DialFailed { end, .. } if *end == no_address);
    log.next(SOON, "the failed dial", is_failure).await;
    alice.add_address(bob.addr()).expect("an address");
    live(&alice, bob.id()).await;
    assert_eq!(hold.outcome(), None);
}

#[tokio::test]
async fn a_held_peer_that_died_and_came_back_is_dialled_again_within_seconds() {
    let alice = node_with(1, |limits| limits.idle_timeout = ms(1000)).await;
    let address = address_to_return_to();
    let bob = Mortal::spawn(builder_at(2, address)).await;
    let id = bob.node.id();
    let hold = held(&alice, &bob.node).await;
    let mut status = watching(&alice, id).await;
    bob.kill().await;
    assert_eq!(down(&mut status).await, Some(DownReason::Ended(LinkEnd::Lost)));
    let bob = serving(builder_at(2, address)).await;
    let up = status.wait_for(PeerStatus::is_up);
    within(ms(2500), "the next session", up).await.expect("watched");
    assert_eq!(live(&bob, alice.id()).await, live(&alice, id).await);
    assert_eq!(hold.outcome(), None);
}

#[tokio::test]
async fn a_held_peer_that_says_goodbye_is_dialled_again() {
    let (alice, bob) = (node(1).await, node(2).await);
    let hold = held(&alice, &bob).await;
    let old = live(&alice, bob.id()).await;
    let mut status = watching(&alice, bob.id()).await;
    bob.disconnect(alice.id()).await.expect("up");
    let is_next =
        |status: &PeerStatus| matches!(status, PeerStatus::Up { link, .. } if *link != old);
    within(ms(2500), "the next session", status.wait_for(is_next)).await.expect("watched");
    assert_eq!(hold.outcome(), None);
}

// What is known about a peer

#[tokio::test]
async fn watchers_at_both_sides_see_a_session_come_and_go_with_the_reason() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut at_alice = watching(&alice, bob.id()).await;
    let mut at_bob = watching(&bob, alice.id()).await;
    assert_eq!(*at_alice.borrow(), PeerStatus::Down { reason: None });
    let link = connect(&alice, &bob).await;
    assert_eq!(*at_alice.borrow(), PeerStatus::Up { link, direction: Direction::Outbound });
    assert_eq!(*at_bob.borrow(), PeerStatus::Up { link, direction: Direction::Inbound });
    alice.disconnect(bob.id()).await.expect("up");
    assert_eq!(down(&mut at_alice).await, Some(DownReason::Draining(Code::Ok)));
    assert_eq!(down(&mut at_bob).await, Some(DownReason::PeerDraining(Code::Ok)));
}

#[tokio::test]
async fn watchers_at_both_sides_see_the_ban_that_ended_a_session() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut at_alice = watching(&alice, bob.id()).await;
    let mut at_bob = watching(&bob, alice.id()).await;
    connect(&alice, &bob).await;
    alice.ban(bob.id(), SOON).expect("the node is up");
    assert_eq!(down(&mut at_alice).await, Some(DownReason::Banned));
    let closed = DownReason::Ended(LinkEnd::ClosedByPeer(Code::Banned));
    assert_eq!(down(&mut at_bob).await, Some(closed));
}

#[tokio::test]
async fn why_tells_nothing_of_a_peer_that_nobody_asked_for() {
    let (alice, bob) = (node(1).await, node(2).await);
    assert_eq!(alice.why(bob.id()).await.expect("up"), None);
}

#[tokio::test]
async fn why_tells_of_a_live_link_what_keeps_it_and_for_how_long() {
    let (alice, bob) = (node(1).await, node(2).await);
    let link = connect(&alice, &bob).await;
    let linger = quick_limits().linger;
    let at_alice = why(&alice, bob.id()).await;
    let at_bob = why(&bob, alice.id()).await;
    assert_eq!((at_alice.state, at_bob.state), (PeerState::Connected, PeerState::Connected));
    assert_eq!((at_alice.link, at_bob.link), (Some(link), Some(link)));
    assert_eq!(at_alice.direction, Some(Direction::Outbound));
    assert_eq!(at_bob.direction, Some(Direction::Inbound));
    assert_eq!(at_bob.incarnation, Some(link.incarnation));
    assert!(at_alice.incarnation.is_some_and(|incarnation| incarnation != link.incarnation));
    assert!(at_alice.age.is_some_and(|age| age < SOON), "{at_alice:?}");
    assert!(at_alice.linger_left.is_some_and(|left| left <= linger), "{at_alice:?}");
    assert_eq!((at_alice.holds, at_alice.waiting, at_alice.closing), (0, 0, 0));
    assert_eq!((at_alice.attempts, at_alice.last_error), (0, None));

    let _hold = alice.hold(bob.id());
    let held = why(&alice, bob.id()).await;
    assert_eq!((held.holds, held.linger_left), (1, None));
}

#[tokio::test]
async fn why_tells_what_a_dial_waits_for() {
    let alice = node_with(1, |limits| limits.dials = 1).await;
    let (nobody, mut host) = (Nobody::bind(), Host::bind(2).await);
    let (_, _first, _second) =
        (alice.hold(host.addr()), alice.hold(host.addr()), alice.hold(nobody.as_if(99)));
    let dialled = host.greeted().await;
    let greeting = why(&alice, host.id()).await;
    assert_eq!((greeting.state, greeting.link), (PeerState::Greeting, None));
    assert_eq!(state(&alice, nobody.as_if(99).id).await, PeerState::Waiting);
    dialled.close(Code::Busy);
    eventually(SOON, "the next dial", async || {
        state(&alice, nobody.as_if(99).id).await == PeerState::Connecting
    })
    .await;
}

#[tokio::test]
async fn why_tells_of_a_backoff_how_often_the_dial_failed_how_and_when_the_next_is_due() {
    let alice = node(1).await;
    let mut host = Host::bind(2).await;
    let _hold = alice.hold(host.addr());
    host.greeted().await.close(Code::Busy);
    eventually(SOON, "the backoff", async || {
        state(&alice, host.id()).await == PeerState::BackingOff
    })
    .await;
    let why = why(&alice, host.id()).await;
    assert_eq!((why.attempts, why.holds, why.link), (1, 1, None));
    assert_eq!(why.last_error, Some(LinkEnd::ClosedByPeer(Code::Busy)));
    assert!(why.retry_in.is_some_and(|left| left <= ms(1000)), "{why:?}");
}

#[tokio::test]
async fn why_tells_of_a_link_that_drains_and_of_one_that_lingered_out() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    alice.disconnect(bob.id()).await.expect("up");
    let draining = why(&alice, bob.id()).await;
    assert_eq!((draining.state, draining.closing), (PeerState::Draining, 1));
    send.finish().expect("finished once");
    assert_eq!(within(SOON, "the end", recv.read(&mut [0])).await, Ok(None));
    eventually(SOON, "the link is gone", async || state(&alice, bob.id()).await == PeerState::Idle)
        .await;
    assert_eq!(why(&alice, bob.id()).await.closing, 0);
}

#[tokio::test]
async fn why_tells_of_a_ban_how_long_it_lasts() {
    let (alice, bob) = (node(1).await, node(2).await);
    alice.ban(bob.id(), Duration::from_secs(60)).expect("the node is up");
    let why = why(&alice, bob.id()).await;
    assert_eq!(why.state, PeerState::Banned);
    assert!(why.banned_for.is_some_and(|left| left <= Duration::from_secs(60)), "{why:?}");
}
