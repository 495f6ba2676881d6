//! Intents over real QUIC: every open and every call has exactly one outcome, whatever becomes of the links under it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kinfolk::error::{CallError, OpenError, StreamError};
use kinfolk::fault::{Crash, Faults, Point};
use kinfolk::{
    Code, DialFailure, EndpointAddr, Failure, Limits, LinkEnd, Node, NodeEvent, Options, PeerState,
    Priority, ProtocolName, Rate, SecretKey, Service,
};
use kinfolk_core::wire::{Answer, StreamMode};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::host::Host;
use kinfolk_tests::support::node::{
    ECHO, Mortal, NEXT, builder, connect, link, live, node, node_with, quick_limits,
};
use kinfolk_tests::support::stranger::Nobody;
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(10);

/// Served by the test's own handler.
const TASK: ProtocolName = ProtocolName::from_static("task/1");

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

async fn next(node: &Node, peer: impl Into<kinfolk::Peer>, number: u64) -> Result<u64, CallError> {
    within(SOON, "an outcome", node.call(peer, NEXT, &number)).await
}

async fn opened(node: &Node, peer: impl Into<kinfolk::Peer>) -> Result<(), OpenError> {
    within(SOON, "an outcome", node.open(peer, ECHO)).await.map(|_| ())
}

async fn intents_waiting(node: &Node) -> usize {
    within(SOON, "the numbers", node.metrics()).await.expect("up").intents_waiting
}

async fn all_wait(node: &Node, count: usize) {
    eventually(SOON, "all wait", async || intents_waiting(node).await == count).await;
}

// Exactly one outcome, in every phase of a link

#[tokio::test]
async fn the_outcomes_add_up_to_the_intents() {
    let (alice, bob, nobody) = (node(1).await, node(2).await, Nobody::bind());
    let brief = || Options::new().deadline(ms(300));
    next(&alice, bob.addr(), 1).await.expect("answered");
    opened(&alice, bob.id()).await.expect("opened");
    within(SOON, "an outcome", alice.open(bob.id(), TASK)).await.expect_err("not served");
    opened(&alice, SecretKey::from_bytes(&[9; 32]).public()).await.expect_err("no address");
    let late = alice.open_with(nobody.as_if(99), ECHO, brief());
    within(SOON, "an outcome", late).await.expect_err("nobody is there");
    let left = tokio::time::timeout(ms(50), alice.open(nobody.as_if(98), ECHO)).await;
    left.expect_err("nobody is there");
    drop(alice.hold(bob.id()));
    alice.ban(bob.id(), SOON).expect("the node is up");
    eventually(SOON, "the ban", async || {
        let why = alice.why(bob.id()).await.expect("up").expect("banned");
        why.state == PeerState::Banned
    })
    .await;
    opened(&alice, bob.id()).await.expect_err("banned");

    let metrics = alice.metrics().await.expect("up");
    let ended: Vec<_> = metrics.intents_ended.into_iter().filter(|(_, count)| *count > 0).collect();
    let expected = [
        ("banned", 1),
        ("cancelled", 2),
        ("done", 2),
        ("failed", 1),
        ("refused", 1),
        ("timed_out", 1),
    ];
    assert_eq!(ended, expected);
    assert_eq!(metrics.intents_waiting, 0);
}

/// What a host does with the first link, on which a call's request was sent already.
async fn run_on_the_next_link(code: Code) -> Result<u64, CallError> {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let answering = async {
        let first = host.greeted().await;
        let request = first.stream().await;
        assert_eq!(request.header.mode, StreamMode::Call);
        first.close(code);
        let second = host.welcomed().await;
        second.stream().await.respond(&[2]).await;
        second
    };
    let asking = next(&alice, address, 1);
    let (answer, _second) = within(SOON, "both", async { tokio::join!(asking, answering) }).await;
    answer
}

#[tokio::test]
async fn a_call_on_a_link_that_is_refused_as_duplicate_is_run_on_the_next_one() {
    assert_eq!(run_on_the_next_link(Code::Duplicate).await, Ok(2));
}

#[tokio::test]
async fn a_call_on_a_link_that_is_refused_as_busy_is_run_on_the_next_one() {
    assert_eq!(run_on_the_next_link(Code::Busy).await, Ok(2));
}

#[tokio::test]
async fn a_call_on_a_link_that_is_refused_by_a_node_shutting_down_is_run_on_the_next_one() {
    assert_eq!(run_on_the_next_link(Code::ShuttingDown).await, Ok(2));
}

#[tokio::test]
async fn a_call_made_while_the_dial_is_under_way_is_run_once() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let _hold = alice.hold(host.addr());
    let mut dialled = host.greeted().await;
    let answering = async {
        let mut asked = dialled.stream().await;
        dialled.welcome().await;
        asked.respond(&[8]).await;
        dialled
    };
    let asking = next(&alice, host.id(), 7);
    let (answer, dialled) = within(SOON, "both", async { tokio::join!(asking, answering) }).await;
    assert_eq!(answer, Ok(8));
    // The hold's stream is the only other one.
    assert_eq!(dialled.stream().await.header.protocol.as_str(), "kinfolk/hold/1");
    assert!(tokio::time::timeout(ms(200), dialled.connection.accept_bi()).await.is_err());
}

#[tokio::test]
async fn a_call_made_while_the_last_link_drains_is_run_on_the_next_one() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    let old = live(&alice, bob.id()).await;
    alice.disconnect(bob.id()).await.expect("up");
    eventually(SOON, "the link drains", async || link(&alice, bob.id()).await.is_none()).await;
    assert_eq!(next(&alice, bob.id(), 1).await, Ok(2));
    assert_ne!(live(&alice, bob.id()).await, old);
    send.finish().expect("finished once");
    assert_eq!(within(SOON, "the end", recv.read(&mut [0])).await, Ok(None));
}

#[tokio::test]
async fn a_call_made_while_the_peer_backs_off_is_run_at_once() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let _hold = alice.hold(host.addr());
    for _ in 0..2 {
        host.greeted().await.close(Code::Busy);
    }
    eventually(SOON, "a long backoff", async || {
        let why = alice.why(host.id()).await.expect("up").expect("held");
        why.retry_in.is_some_and(|left| left > ms(2000))
    })
    .await;
    let id = host.id();
    let answering = async {
        let dialled = host.welcomed().await;
        loop {
            let mut asked = dialled.stream().await;
            if asked.header.protocol == NEXT {
                asked.respond(&[2]).await;
                return dialled;
            }
        }
    };
    let asking = next(&alice, id, 1);
    let (answer, _dialled) =
        within(ms(1500), "both", async { tokio::join!(asking, answering) }).await;
    assert_eq!(answer, Ok(2));
}

#[tokio::test]
async fn a_call_made_while_the_old_process_seems_alive_is_run_once_it_is_known_to_be_gone() {
    let alice = node_with(1, |limits| limits.idle_timeout = ms(1000)).await;
    let bob = Mortal::spawn(builder(2)).await;
    connect(&alice, &bob.node).await;
    let id = bob.node.id();
    bob.kill().await;
    let bob = node(2).await;
    alice.add_address(bob.addr()).expect("an address");
    let options = Options::new().idempotent();
    let asked = alice.call_with::<_, u64>(id, NEXT, &1_u64, options);
    assert_eq!(within(Duration::from_secs(5), "an answer", asked).await, Ok(2));
    let served = bob.metrics().await.expect("up").protocols["next/1"].served;
    assert_eq!(served, 1);
}

#[tokio::test]
async fn no_call_is_lost_or_run_twice_while_the_peer_keeps_ending_the_session() {
    const CALLS: u64 = 400;
    let often = |limits: &mut Limits| {
        // Ten calls and a goodbye take less than a millisecond: a link that served them is to count, however fast it was.
        limits.stable_after = Duration::from_nanos(1);
        limits.gate.peer_rate = Rate::new(1000, ms(1));
    };
    let (alice, bob) = (node_with(1, often).await, node_with(2, often).await);
    let runs = Arc::new(Mutex::new(Vec::new()));
    let (count, ran) = mpsc::unbounded_channel();
    let service = {
        let runs = Arc::clone(&runs);
        Service::call(move |_peer, number: u64| {
            runs.lock().expect("no panic").push(number);
            let _ = count.send(());
            async move { Ok(number) }
        })
    };
    bob.serve(TASK, service).await.expect("a new protocol");
    let calling = async {
        let mut calls = JoinSet::new();
        for worker in 0..4 {
            let (alice, address) = (alice.clone(), bob.addr());
            calls.spawn(async move {
                for number in (worker..CALLS).step_by(4) {
                    let answer = alice.call::<_, u64>(address.clone(), TASK, &number).await;
                    assert_eq!(answer, Ok(number));
                }
            });
        }
        calls.join_all().await;
    };
    let ending = async {
        let mut ran = ran;
        for done in 1..CALLS {
            ran.recv().await.expect("one more call");
            if done % 10 == 0 {
                bob.disconnect(alice.id()).await.expect("up");
            }
        }
    };
    within(Duration::from_secs(30), "all calls", async { tokio::join!(calling, ending) }).await;
    let mut runs = std::mem::take(&mut *runs.lock().expect("no panic"));
    runs.sort_unstable();
    assert_eq!(runs, Vec::from_iter(0..CALLS));
    let sessions = bob.metrics().await.expect("up").sessions.established;
    assert!(sessions > 20, "only {sessions} sessions");
}

#[tokio::test]
async fn no_call_is_lost_while_links_are_replaced_because_of_their_age() {
    let alice = node_with(1, |limits| limits.session_age = Some(ms(60))).await;
    let bob = node_with(2, |limits| limits.gate.peer_rate = Rate::new(1000, ms(1))).await;
    let _hold = alice.hold(bob.addr());
    within(SOON, "six sessions", async {
        let mut number = 0;
        while alice.metrics().await.expect("up").sessions.established < 6 {
            assert_eq!(next(&alice, bob.id(), number).await, Ok(number + 1));
            number += 1;
        }
    })
    .await;
    let ended = alice.metrics().await.expect("up").intents_ended;
    assert_eq!(ended.values().sum::<u64>(), ended["done"], "{ended:?}");
}

#[tokio::test]
async fn an_open_whose_link_is_lost_before_the_answer_is_asked_again() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let answering = async {
        let first = host.welcomed().await;
        let _unanswered = first.stream().await;
        first.close(Code::Internal);
        let second = host.welcomed().await;
        second.stream().await.answer(Answer::Ack).await;
        second
    };
    let both = async { tokio::join!(opened(&alice, address), answering) };
    let (opened, _second) = within(SOON, "both", both).await;
    assert_eq!(opened, Ok(()));
}

// One intent is no other

#[tokio::test]
async fn an_open_whose_link_dies_with_the_start_of_its_session_gets_the_next_one() {
    let faults = Faults::default();
    let alice = builder(1).faults(&faults).spawn().await.expect("the node starts");
    let (bob, nobody) = (node(2).await, Nobody::bind());
    let mut log = EventLog::of(&alice).await;
    let opening = {
        let (alice, elsewhere) = (alice.clone(), nobody.as_if(2));
        tokio::spawn(async move { opened(&alice, elsewhere).await })
    };
    all_wait(&alice, 1).await;
    // What waits is given the first link that comes, which is Bob's.
    faults.arm(Point::SessionPreStart, Crash::Error);
    let _hold = bob.hold(alice.addr());
    within(SOON, "the strike", faults.struck(Point::SessionPreStart)).await;
    assert_eq!(opening.await.expect("no panic"), Ok(()));
    let established = |event: &NodeEvent| matches!(event, NodeEvent::SessionEstablished { .. });
    let down = |event: &NodeEvent| matches!(event, NodeEvent::SessionDown { .. });
    // The one that never was is not told of.
    assert_eq!((log.count(established), log.count(down)), (1, 0));
}

#[tokio::test]
async fn opens_that_are_given_up_affect_no_other_open() {
    let (alice, bob, nobody) = (node(1).await, node(2).await, Nobody::bind());
    // The dial goes nowhere until everything waits.
    alice.add_address(nobody.as_if(2)).expect("an address");
    let (mut kept, mut left) = (JoinSet::new(), JoinSet::new());
    for number in 0..20 {
        let (alice, id) = (alice.clone(), bob.id());
        let opening = async move { alice.open(id, ECHO).await };
        if number % 2 == 0 {
            kept.spawn(opening)
        } else {
            left.spawn(opening)
        };
    }
    all_wait(&alice, 20).await;
    left.shutdown().await;
    all_wait(&alice, 10).await;
    alice.add_address(bob.addr()).expect("an address");
    let opened = within(SOON, "all opens", kept.join_all()).await;
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    assert_eq!(bob.metrics().await.expect("up").protocols["echo/1"].served, 10);
}

#[tokio::test]
async fn a_stream_outlives_the_refusal_of_a_later_one_but_not_its_link() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    let refused = within(SOON, "an outcome", alice.open(bob.id(), TASK)).await;
    assert_eq!(refused.expect_err("not served"), OpenError::Refused(Code::UnknownProtocol));
    send.write_all(b"still here").await.expect("sent");
    let mut echoed = [0; 10];
    within(SOON, "the echo", recv.read_exact(&mut echoed)).await.expect("received");
    assert_eq!(echoed, *b"still here");

    bob.ban(alice.id(), SOON).expect("the node is up");
    let end = within(SOON, "the end", recv.read(&mut echoed)).await;
    assert_eq!(end, Err(StreamError::LinkClosed(Code::Banned)));
}

#[tokio::test]
async fn everyone_who_waits_learns_the_true_cause_in_words() {
    let alice = node_with(1, |limits| limits.dial_deadline = ms(200)).await;
    let nobody = Nobody::bind();
    let mut log = EventLog::of(&alice).await;
    let mut opens = JoinSet::new();
    let mut ask = |count: usize, deadline: Duration| {
        for _ in 0..count {
            let (alice, address) = (alice.clone(), nobody.as_if(99));
            let options = Options::new().deadline(deadline);
            opens.spawn(async move { alice.open_with(address, ECHO, options).await.map(|_| ()) });
        }
    };
    ask(3, ms(2000));
    let is_failure = |event: &NodeEvent| matches!(event, NodeEvent::DialFailed { .. });
    log.next(SOON, "the failed dial", is_failure).await;
    ask(3, ms(100));
    for outcome in within(SOON, "all outcomes", opens.join_all()).await {
        let text = outcome.expect_err("nobody is there").to_string();
        assert_eq!(text, "the deadline passed (last link: nobody answered the dial in time)");
    }
}

#[tokio::test]
async fn a_link_that_is_dead_already_costs_an_open_one_repetition_and_no_error() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let answering = async {
        let first = host.welcomed().await;
        first.stream().await.answer(Answer::Ack).await;
        first
    };
    let both = async { tokio::join!(opened(&alice, address.clone()), answering) };
    let (opened_first, first) = within(SOON, "the first open", both).await;
    assert_eq!(opened_first, Ok(()));

    // The next open is asked for before the node has noticed.
    first.close(Code::Internal);
    let answering = async {
        let second = host.welcomed().await;
        second.stream().await.answer(Answer::Ack).await;
        second
    };
    let both = async { tokio::join!(opened(&alice, address), answering) };
    let (opened_second, _second) = within(SOON, "the second open", both).await;
    assert_eq!(opened_second, Ok(()));
    assert_eq!(alice.metrics().await.expect("up").dials_started, 2);
}

// Outcomes at once

#[tokio::test]
async fn a_peer_without_an_address_is_a_failure_at_once() {
    let alice = node(1).await;
    let stranger = SecretKey::from_bytes(&[9; 32]).public();
    let asked = alice.open(stranger, ECHO);
    let failed = within(ms(1000), "an outcome", asked).await.map(|_| ());
    let (failure, cause) = (Failure::NoAddress, Some(LinkEnd::DialFailed(DialFailure::NoAddress)));
    assert_eq!(failed, Err(OpenError::Failed { failure, cause }));
}

#[tokio::test]
async fn an_address_where_someone_else_answers_is_a_failure_at_once() {
    let (alice, bob) = (node(1).await, node(2).await);
    let carol = SecretKey::from_bytes(&[3; 32]).public();
    let mistaken = EndpointAddr { id: carol, addrs: bob.addr().addrs };
    let failed = within(ms(1500), "an outcome", alice.open(mistaken, ECHO)).await.map(|_| ());
    let cause = Some(LinkEnd::DialFailed(DialFailure::WrongIdentity));
    assert_eq!(failed, Err(OpenError::Failed { failure: Failure::WrongIdentity, cause }));
}

#[tokio::test]
async fn a_node_of_another_network_is_a_failure_at_once() {
    let alice = node(1).await;
    let builder = Node::builder("another-network").bind_addr(([127, 0, 0, 1], 0).into());
    let bob = builder.limits(quick_limits()).spawn().await.expect("the node starts");
    let failed = within(ms(1500), "an outcome", alice.open(bob.addr(), ECHO)).await.map(|_| ());
    let cause = Some(LinkEnd::DialFailed(DialFailure::NoCommonProtocol));
    assert_eq!(failed, Err(OpenError::Failed { failure: Failure::NoCommonProtocol, cause }));
    eventually(SOON, "the other network counts it", async || {
        let refused = bob.metrics().await.expect("up").incoming_refused;
        refused.get("no_common_protocol") == Some(&1)
    })
    .await;
}

#[tokio::test]
async fn a_node_cannot_open_a_stream_to_itself() {
    let alice = node(1).await;
    let failed = within(ms(1000), "an outcome", alice.open(alice.addr(), ECHO)).await.map(|_| ());
    assert_eq!(failed, Err(OpenError::Failed { failure: Failure::SelfDial, cause: None }));
    assert_eq!(alice.metrics().await.expect("up").dials_started, 0);
}

#[tokio::test]
async fn try_open_fails_at_once_without_a_session_and_dials_nobody() {
    let (alice, bob) = (node(1).await, node(2).await);
    alice.add_address(bob.addr()).expect("an address");
    let tried = within(ms(1000), "an outcome", alice.try_open(bob.id(), ECHO)).await;
    assert_eq!(tried.expect_err("not connected"), OpenError::NotConnected);
    assert_eq!(alice.metrics().await.expect("up").dials_started, 0);
}

#[tokio::test]
async fn try_open_opens_on_a_live_session() {
    let (alice, bob) = (node(1).await, node(2).await);
    connect(&alice, &bob).await;
    let (mut send, mut recv) =
        within(SOON, "the open", alice.try_open(bob.id(), ECHO)).await.expect("opened");
    send.write_all(b"x").await.expect("sent");
    send.finish().expect("finished once");
    assert_eq!(within(SOON, "the echo", recv.read_to_end(10)).await, Ok(b"x".to_vec()));
    // The other side of the session can do the same.
    within(SOON, "the open", bob.try_open(alice.id(), ECHO)).await.expect("opened");
}

// Bounds

/// Makes so many opens wait for a peer.
async fn fill(node: &Node, address: &EndpointAddr, count: usize) -> JoinSet<Result<(), OpenError>> {
    let before = intents_waiting(node).await;
    let mut opens = JoinSet::new();
    for _ in 0..count {
        let (node, address) = (node.clone(), address.clone());
        opens.spawn(async move { node.open(address, ECHO).await.map(|_| ()) });
    }
    all_wait(node, before + count).await;
    opens
}

#[tokio::test]
async fn an_intent_beyond_the_bound_of_its_peer_is_refused_at_once_and_other_peers_are_not_affected()
 {
    let alice = node_with(1, |limits| limits.intents_per_peer = 5).await;
    let (bob, nobody) = (node(2).await, Nobody::bind());
    let mut waiting = fill(&alice, &nobody.as_if(99), 5).await;
    let refused = within(ms(500), "an outcome", alice.open(nobody.as_if(99), ECHO)).await;
    let full = OpenError::Failed { failure: Failure::QueueFull, cause: None };
    assert_eq!(refused.expect_err("one too many"), full);
    assert_eq!(next(&alice, bob.addr(), 1).await, Ok(2));

    waiting.abort_all();
    while waiting.join_next().await.is_some() {}
    all_wait(&alice, 0).await;
    fill(&alice, &nobody.as_if(99), 5).await;
}

#[tokio::test]
async fn an_intent_beyond_the_bound_of_the_node_is_refused_at_once() {
    let alice = node_with(1, |limits| limits.intents = 8).await;
    let nobody = Nobody::bind();
    let _first = fill(&alice, &nobody.as_if(98), 4).await;
    let _second = fill(&alice, &nobody.as_if(99), 4).await;
    let refused = within(ms(500), "an outcome", alice.open(nobody.as_if(97), ECHO)).await;
    let full = OpenError::Failed { failure: Failure::QueueFull, cause: None };
    assert_eq!(refused.expect_err("one too many"), full);
}

#[tokio::test]
async fn a_dial_beyond_the_bound_on_sessions_of_one_s_own_waits_and_is_made_when_one_ends() {
    let alice = node_with(1, |limits| limits.sessions_outbound = 2).await;
    let (bob, carol, dave, erin) = (node(2).await, node(3).await, node(4).await, node(5).await);
    let _holds = [alice.hold(bob.addr()), alice.hold(carol.addr())];
    live(&alice, bob.id()).await;
    live(&alice, carol.id()).await;
    let opening = alice.open(dave.addr(), ECHO);
    let ending = async {
        eventually(SOON, "the third dial waits", async || {
            let metrics = alice.metrics().await.expect("up");
            (metrics.peers.waiting_to_dial, metrics.intents_waiting) == (1, 3)
        })
        .await;
        // Who dials by itself takes no such place, and is served.
        assert_eq!(next(&erin, alice.addr(), 1).await, Ok(2));
        let metrics = alice.metrics().await.expect("up");
        assert_eq!((metrics.dials_started, metrics.sessions.outbound), (2, 2));
        assert_eq!(dave.metrics().await.expect("up").incoming_accepted, 0);
        alice.disconnect(bob.id()).await.expect("up");
    };
    let both = async { tokio::join!(opening, ending) };
    let (opened, ()) = within(SOON, "the third open", both).await;
    opened.expect("opened");
    let metrics = alice.metrics().await.expect("up");
    assert_eq!((metrics.dials_started, metrics.sessions.outbound), (3, 2));
}

// Priority, deadline, cancellation

#[tokio::test]
async fn what_waits_is_handed_over_by_priority_and_then_in_the_order_of_asking() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let nobody = Nobody::bind();
    // The dial goes nowhere until everything waits.
    alice.add_address(nobody.as_if(2)).expect("an address");
    let protocol = |name: String| ProtocolName::new(name).expect("a valid name");
    let asked = [
        ("bulk/1", Priority::Bulk),
        ("interactive/1", Priority::Interactive),
        ("control/1", Priority::Control),
        ("bulk/2", Priority::Bulk),
        ("interactive/2", Priority::Interactive),
        ("control/2", Priority::Control),
    ];
    let mut opens = JoinSet::new();
    for (place, (name, priority)) in asked.into_iter().enumerate() {
        let id = host.id();
        let options = Options::new().priority(priority);
        let name = protocol(name.to_owned());
        let opening = {
            let alice = alice.clone();
            async move { alice.open_with(id, name, options).await }
        };
        opens.spawn(opening);
        all_wait(&alice, place + 1).await;
    }
    alice.add_address(host.addr()).expect("an address");
    let dialled = host.welcomed().await;
    let mut order = Vec::new();
    for _ in 0..6 {
        order.push(dialled.stream().await.header.protocol.to_string());
    }
    assert_eq!(
        order,
        ["control/1", "control/2", "interactive/1", "interactive/2", "bulk/1", "bulk/2"]
    );
}

#[tokio::test]
async fn an_open_that_is_dropped_unanswered_is_reset_as_cancelled() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let options = Options::new().deadline(ms(300));
    let opening = alice.open_with(host.addr(), ECHO, options);
    let listening = async {
        let dialled = host.welcomed().await;
        let mut asked = dialled.stream().await;
        let ended = within(SOON, "the reset", asked.receive.read_chunk(1)).await;
        let stopped = within(SOON, "the stop", asked.send.stopped()).await;
        (ended, stopped)
    };
    let (opened, (ended, stopped)) =
        within(SOON, "both", async { tokio::join!(opening, listening) }).await;
    assert_eq!(opened.expect_err("unanswered"), OpenError::TimedOut { cause: None });
    let cancelled = u32::from(Code::Cancelled.to_wire()).into();
    assert_eq!(ended, Err(iroh::endpoint::ReadError::Reset(cancelled)));
    assert_eq!(stopped.expect("the connection is up"), Some(cancelled));
}

#[tokio::test]
async fn an_intent_s_deadline_counts_from_its_beginning_and_not_from_its_last_attempt() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let start = Instant::now();
    let options = Options::new().deadline(ms(900));
    let address = host.addr();
    let opening = async {
        let opened = alice.open_with(address, ECHO, options).await;
        (opened, start.elapsed())
    };
    let dialled = async {
        loop {
            let dialled = host.welcomed().await;
            let _unanswered = dialled.stream().await;
            tokio::time::sleep(ms(200)).await;
            dialled.close(Code::Internal);
        }
    };
    let (opened, took) = within(SOON, "an outcome", async {
        tokio::select! {
            opened = opening => opened,
            () = dialled => unreachable!("it never ends"),
        }
    })
    .await;
    assert!(matches!(opened, Err(OpenError::TimedOut { .. })), "{opened:?}");
    assert!((ms(900)..ms(1900)).contains(&took), "{took:?}");
}
