//! Admission over real QUIC: who is not wanted is told so, and the app's policy, however slow or broken, delays and harms nobody else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kinfolk::error::{OpenError, StreamError};
use kinfolk::fault::{Crash, Victim};
use kinfolk::{
    Admission, Admit, Code, Incarnation, LinkEnd, Node, NodeEvent, PeerState, ProtocolName, Rate,
    SecretKey, Service, SessionBounds,
};
use kinfolk_core::wire::StreamMode;
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, header, hear, hello, knock};
use kinfolk_tests::support::node::{ECHO, NEXT, builder, node, node_with, quick_limits, serving};
use kinfolk_tests::support::stranger::{Stranger, closed_code};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::{Notify, mpsc};

const SOON: Duration = Duration::from_secs(10);

/// How long an honest peer's call may take while a policy dawdles, on a busy machine; far below the minute that the policy takes.
const HONEST: Duration = Duration::from_secs(5);

const SINK: ProtocolName = ProtocolName::from_static("sink/1");

async fn asking(admission: Admission) -> Node {
    serving(builder(1).admission(admission)).await
}

async fn is_served(node: &Node, other: &Node) {
    let call = node.call::<_, u64>(other.addr(), NEXT, &1_u64);
    assert_eq!(within(HONEST, "an answer", call).await, Ok(2));
}

fn id(key: u8) -> kinfolk::EndpointId {
    kinfolk::SecretKey::from_bytes(&[key; 32]).public()
}

// Answers

#[tokio::test]
async fn who_is_on_the_list_is_served() {
    let alice = asking(Admission::only([id(2)])).await;
    is_served(&node(2).await, &alice).await;
}

#[tokio::test]
async fn who_is_not_on_the_list_learns_so_and_is_counted() {
    let alice = asking(Admission::only([id(2)])).await;
    let (carol, dave) = (node(3).await, node(4).await);
    let open = within(SOON, "an outcome", carol.open(alice.addr(), ECHO)).await;
    assert_eq!(open.err(), Some(OpenError::Refused(Code::NotAdmitted)));
    let call = within(SOON, "an outcome", dave.call::<_, u64>(alice.addr(), NEXT, &1_u64)).await;
    assert_eq!(call, Err(OpenError::Refused(Code::NotAdmitted).into()));
    eventually(SOON, "both are counted", async || {
        let refused = alice.metrics().await.expect("alive").incoming_refused;
        refused.get("not_admitted") == Some(&2)
    })
    .await;
}

#[tokio::test]
async fn who_opens_eagerly_and_is_not_on_the_list_learns_so_at_the_first_read_at_the_latest() {
    let alice = asking(Admission::only([id(2)])).await;
    let carol = node(3).await;
    match within(SOON, "the open", carol.open_eager(alice.addr(), ECHO)).await {
        Ok((_send, mut recv)) => {
            let read = within(SOON, "the first read", recv.read_chunk(1)).await;
            assert_eq!(read, Err(StreamError::LinkClosed(Code::NotAdmitted)));
        }
        Err(error) => assert_eq!(error, OpenError::Refused(Code::NotAdmitted)),
    }
}

#[tokio::test]
async fn a_hold_of_a_peer_that_does_not_admit_waits_and_says_why() {
    let alice = asking(Admission::only([])).await;
    let bob = node(2).await;
    let mut log = EventLog::of(&bob).await;
    let hold = bob.hold(alice.addr());
    let refused = LinkEnd::ClosedByPeer(Code::NotAdmitted);
    let is_refusal = |event: &NodeEvent| matches!(event, NodeEvent::DialFailed { end, retry_in: Some(_), .. } if *end == refused);
    log.next(SOON, "the first refusal", is_refusal).await;
    log.next(SOON, "the second refusal", is_refusal).await;
    let why = bob.why(alice.id()).await.expect("alive").expect("held");
    assert_eq!((why.holds, why.attempts, why.last_error), (1, 2, Some(refused)));
    assert_eq!(hold.outcome(), None);
}

#[tokio::test]
async fn a_peer_is_admitted_to_a_stream_only_by_the_door_of_its_protocol() {
    let (alice, bob, carol) = (node(1).await, node(2).await, node(3).await);
    let service = Service::call(|_peer, number: u64| async move { Ok(number) });
    let welcome = bob.id();
    alice.serve(SINK, service.admit(move |peer| *peer == welcome)).await.expect("new");
    let call = within(SOON, "an outcome", bob.call::<_, u64>(alice.addr(), SINK, &5_u64)).await;
    assert_eq!(call, Ok(5));
    let call = within(SOON, "an outcome", carol.call::<_, u64>(alice.addr(), SINK, &5_u64)).await;
    assert_eq!(call, Err(OpenError::Refused(Code::NotAllowed).into()));
    is_served(&carol, &alice).await;
}

// Slow and broken policies

/// Never decides on this peer, and lets everyone else in; tells when it is asked about this one.
fn undecided_on(slow: kinfolk::EndpointId) -> (Admission, mpsc::UnboundedReceiver<()>) {
    let (tell, asked) = mpsc::unbounded_channel();
    let admission = Admission::ask(move |peer| {
        let tell = tell.clone();
        async move {
            if peer == slow {
                let _ = tell.send(());
                std::future::pending::<()>().await;
            }
            Admit::Yes
        }
    });
    (admission, asked)
}

/// A node with such a policy, that gives it so long.
async fn undecided(
    slow: &Stranger,
    hello_deadline: Duration,
) -> (Node, mpsc::UnboundedReceiver<()>) {
    let (admission, asked) = undecided_on(slow.id());
    let mut limits = quick_limits();
    limits.hello_deadline = hello_deadline;
    (serving(builder(1).limits(limits).admission(admission)).await, asked)
}

async fn is_asked(asked: &mut mpsc::UnboundedReceiver<()>) {
    within(SOON, "the policy is asked", asked.recv()).await.expect("the node is up");
}

#[tokio::test]
async fn a_policy_that_takes_a_minute_over_one_peer_delays_nobody_else() {
    let slow = Stranger::bind(66).await;
    let (alice, mut asked) = undecided(&slow, Duration::from_secs(60)).await;
    let (connection, _send, _receive) = knock(&slow, &alice, hello(1, 1)).await;
    is_asked(&mut asked).await;
    for key in 2..6 {
        is_served(&node(key).await, &alice).await;
    }
    assert_eq!(connection.close_reason(), None, "the slow one still waits");
    assert_eq!(alice.metrics().await.expect("alive").handshakes, 1);
}

#[tokio::test]
async fn a_policy_that_takes_too_long_is_an_excuse_to_its_peer_and_counted_as_the_policy_s() {
    let slow = Stranger::bind(66).await;
    let deadline = Duration::from_secs(1);
    let (alice, mut asked) = undecided(&slow, deadline).await;
    let start = Instant::now();
    let (connection, _send, _receive) = knock(&slow, &alice, hello(1, 1)).await;
    is_asked(&mut asked).await;
    let code = closed_code(&connection, SOON).await;
    assert_eq!(code, Some(u64::from(Code::DeadlineExceeded.to_wire())));
    assert!(start.elapsed() >= deadline, "{:?}", start.elapsed());
    eventually(SOON, "it is counted as the policy's", async || {
        let refused = alice.metrics().await.expect("alive").incoming_refused;
        refused.get("admission_timeout") == Some(&1)
    })
    .await;
}

#[tokio::test]
async fn who_leaves_while_the_policy_dawdles_takes_up_no_place() {
    let slow = Stranger::bind(66).await;
    let (alice, mut asked) = undecided(&slow, Duration::from_secs(60)).await;
    let (connection, _send, _receive) = knock(&slow, &alice, hello(1, 1)).await;
    is_asked(&mut asked).await;
    connection.close(0_u32.into(), b"");
    eventually(SOON, "its place is free", async || {
        let metrics = alice.metrics().await.expect("alive");
        let left = metrics.incoming_refused.get("lost_before_admission") == Some(&1);
        left && metrics.handshakes == 0
    })
    .await;
}

/// The code that a stranger sees when this cuts its admission.
async fn cut(end: impl AsyncFnOnce(&Node)) -> Option<u64> {
    let slow = Stranger::bind(66).await;
    let (alice, mut asked) = undecided(&slow, Duration::from_secs(60)).await;
    let (connection, _send, _receive) = knock(&slow, &alice, hello(1, 1)).await;
    is_asked(&mut asked).await;
    within(SOON, "the cut", end(&alice)).await;
    closed_code(&connection, SOON).await
}

#[tokio::test]
async fn who_is_being_admitted_when_accept_fails_is_told_of_the_restart() {
    let code = cut(async |alice| alice.inject(Victim::Accept, Crash::Panic)).await;
    assert_eq!(code, Some(u64::from(Code::Restarted.to_wire())));
}

#[tokio::test]
async fn who_is_being_admitted_when_a_node_ends_is_told_of_the_shutdown() {
    let code = cut(async |alice| _ = alice.shutdown().await).await;
    assert_eq!(code, Some(u64::from(Code::ShuttingDown.to_wire())));
}

#[tokio::test]
async fn a_policy_that_panics_is_an_internal_error_to_its_peer_and_none_to_others() {
    let unlucky = Stranger::bind(66).await;
    let unlucky_id = unlucky.id();
    let alice = asking(Admission::ask(move |peer| async move {
        assert_ne!(peer, unlucky_id, "this one breaks the policy");
        Admit::Yes
    }))
    .await;
    let (connection, ..) = knock(&unlucky, &alice, hello(1, 1)).await;
    let code = closed_code(&connection, SOON).await;
    assert_eq!(code, Some(u64::from(Code::Internal.to_wire())));
    is_served(&node(2).await, &alice).await;
    eventually(SOON, "it is counted", async || {
        let metrics = alice.metrics().await.expect("alive");
        metrics.panics.get("admission") == Some(&1) && metrics.handshakes == 0
    })
    .await;
    assert!(alice.metrics().await.expect("alive").restarts.is_empty());
}

#[tokio::test]
async fn a_policy_that_panics_before_it_awaits_is_an_internal_error_to_its_peer() {
    let alice =
        asking(Admission::ask(|_peer| -> std::future::Ready<Admit> { panic!("on purpose") })).await;
    let unlucky = Stranger::bind(66).await;
    let (connection, ..) = knock(&unlucky, &alice, hello(1, 1)).await;
    let code = closed_code(&connection, SOON).await;
    assert_eq!(code, Some(u64::from(Code::Internal.to_wire())));
}

#[tokio::test]
async fn a_peer_that_the_app_banned_is_not_asked_about() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let alice = asking(Admission::ask(move |_peer| {
        counter.fetch_add(1, Ordering::Relaxed);
        async { Admit::Yes }
    }))
    .await;
    let mallory = Stranger::bind(66).await;
    alice.ban(mallory.id(), Duration::from_secs(60)).expect("the node is up");
    let (connection, ..) = knock(&mallory, &alice, hello(1, 1)).await;
    let code = closed_code(&connection, SOON).await;
    assert_eq!(code, Some(u64::from(Code::Banned.to_wire())));
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

// Answers out of order

/// Lets the first peer that asks wait until it is told, and everyone else in.
fn first_waits() -> (Admission, Arc<Notify>, Arc<AtomicUsize>) {
    let (go, asked) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let admission = {
        let (go, asked) = (Arc::clone(&go), Arc::clone(&asked));
        Admission::ask(move |_peer| {
            let is_first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            let go = Arc::clone(&go);
            async move {
                if is_first {
                    go.notified().await;
                }
                Admit::Yes
            }
        })
    };
    (admission, go, asked)
}

#[tokio::test]
async fn an_older_link_whose_answer_comes_late_never_wins() {
    // The same process dials again; another process of the same peer dials.
    for newer in [hello(1, 2), hello(2, 1)] {
        let (admission, go, asked) = first_waits();
        let alice = asking(admission).await;
        let bob = Stranger::bind(66).await;
        let (older, _send, _receive) = knock(&bob, &alice, hello(1, 1)).await;
        eventually(SOON, "the policy is asked", async || asked.load(Ordering::Relaxed) == 1).await;
        let guest = Guest::enter(&bob, &alice, newer.clone()).await;
        go.notify_one();
        let code = closed_code(&older, SOON).await;
        assert_eq!(code, Some(u64::from(Code::Duplicate.to_wire())));
        let (_send, mut receive) = guest.ask(&header(ECHO, StreamMode::Acked)).await;
        let mut ack = [1];
        within(SOON, "the ack", receive.read_exact(&mut ack)).await.expect("the newer one lives");
        assert_eq!(ack, [0]);
        let why = alice.why(bob.id()).await.expect("alive").expect("connected");
        assert_eq!(why.incarnation, Some(newer.incarnation));
        assert_eq!(why.link.map(|link| link.n), Some(newer.n));
    }
}

#[tokio::test]
async fn an_answer_that_comes_late_for_a_link_that_is_gone_changes_nothing() {
    let (admission, go, asked) = first_waits();
    let alice = asking(admission).await;
    let bob = Stranger::bind(66).await;
    let (older, ..) = knock(&bob, &alice, hello(1, 1)).await;
    eventually(SOON, "the policy is asked", async || asked.load(Ordering::Relaxed) == 1).await;
    older.close(0_u32.into(), b"");
    let guest = Guest::enter(&bob, &alice, hello(1, 2)).await;
    go.notify_one();
    eventually(SOON, "the handshake is over", async || {
        alice.metrics().await.is_ok_and(|metrics| metrics.handshakes == 0)
    })
    .await;
    let why = alice.why(bob.id()).await.expect("alive").expect("connected");
    assert_eq!(
        (why.incarnation, why.link.map(|link| link.n)),
        (Some(Incarnation::new(1)), Some(2))
    );
    assert_eq!(guest.connection.close_reason(), None);
}

// Bounds

#[tokio::test]
async fn no_more_streams_than_a_session_is_admitted_with_are_served_at_once() {
    let bounds = SessionBounds { streams: Some(2), ..SessionBounds::default() };
    let alice = asking(Admission::ask(move |_peer| {
        let bounds = bounds.clone();
        async move { Admit::With(bounds) }
    }))
    .await;
    let bob = node(2).await;
    let first = within(SOON, "the first", bob.open(alice.addr(), ECHO)).await.expect("opened");
    let _second = within(SOON, "the second", bob.open(alice.id(), ECHO)).await.expect("opened");
    let third = within(SOON, "an outcome", bob.open(alice.id(), ECHO)).await;
    assert_eq!(third.err(), Some(OpenError::Refused(Code::Busy)));
    drop(first);
    eventually(SOON, "the place of the first is free", async || {
        bob.open(alice.id(), ECHO).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn more_streams_than_the_nodes_own_bound_are_served_to_whom_it_admits_with_them() {
    let mut limits = quick_limits();
    limits.streams_per_peer = 2;
    let bounds = SessionBounds { streams: Some(10), ..SessionBounds::default() };
    let admission = Admission::ask(move |_peer| {
        let bounds = bounds.clone();
        async move { Admit::With(bounds) }
    });
    let alice = serving(builder(1).limits(limits).admission(admission)).await;
    let bob = node(2).await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        let stream = within(SOON, "a stream", bob.open(alice.addr(), ECHO)).await;
        streams.push(stream.expect("opened"));
    }
}

#[tokio::test]
async fn a_peer_may_send_as_much_unread_as_it_is_admitted_with() {
    const NARROW: u32 = 64 * 1024;
    let mut limits = quick_limits();
    limits.connection_window = NARROW;
    limits.call_bytes = NARROW / 2;
    let wide = id(2);
    let admission = Admission::ask(move |peer| async move {
        if peer == wide {
            let connection_window = Some(8 * NARROW);
            Admit::With(SessionBounds { connection_window, ..SessionBounds::default() })
        } else {
            Admit::Yes
        }
    });
    let alice = serving(builder(1).limits(limits).admission(admission)).await;
    let unread = Service::stream(|stream| async move {
        let _kept = stream;
        std::future::pending().await
    });
    alice.serve(SINK, unread).await.expect("a new protocol");
    let payload = vec![7; 4 * NARROW as usize];
    for (key, fits) in [(2, true), (3, false)] {
        let bob = node(key).await;
        let (mut send, _recv) =
            within(SOON, "the open", bob.open(alice.addr(), SINK)).await.expect("opened");
        let sent = tokio::time::timeout(Duration::from_secs(1), async {
            send.write_all(&payload).await.expect("a stream");
            send.finish().expect("finished once");
            send.acknowledged().await.expect("a stream");
        })
        .await;
        assert_eq!(sent.is_ok(), fits, "peer {key}: {sent:?}");
    }
}

#[tokio::test]
async fn every_link_of_a_peer_is_asked_about() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let mut limits = quick_limits();
    limits.gate.peer_rate = Rate::new(100, Duration::from_millis(10));
    let admission = Admission::ask(move |_peer| {
        let is_first = counter.fetch_add(1, Ordering::Relaxed) == 0;
        async move { if is_first { Admit::Yes } else { Admit::No } }
    });
    let alice = serving(builder(1).limits(limits).admission(admission)).await;
    let bob = Stranger::bind(66).await;
    let guest = Guest::enter(&bob, &alice, hello(1, 1)).await;
    let (second, _send, mut receive) = knock(&bob, &alice, hello(1, 2)).await;
    assert_eq!(hear(&mut receive).await, None);
    let code = closed_code(&second, SOON).await;
    assert_eq!(code, Some(u64::from(Code::NotAdmitted.to_wire())));
    assert_eq!(guest.connection.close_reason(), None, "the admitted one lives on");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn of_more_bans_than_the_limits_allow_those_that_end_soonest_make_room_and_the_newest_holds()
{
    let alice = node_with(1, |limits| limits.bans = 2).await;
    let ids: Vec<_> = (10..16).map(|key| SecretKey::from_bytes(&[key; 32]).public()).collect();
    let mut log = EventLog::of(&alice).await;
    for (id, minutes) in ids.iter().zip([600, 500, 1, 2, 1, 3]) {
        alice.ban(*id, Duration::from_secs(minutes * 60)).expect("the node is up");
    }
    // The manager has read everything once it answers.
    let peers = within(SOON, "the peers", alice.peers()).await.expect("the node is up");
    let banned: BTreeSet<_> = peers
        .iter()
        .filter(|summary| summary.why.state == PeerState::Banned)
        .map(|summary| summary.peer)
        .collect();
    assert_eq!(banned, BTreeSet::from([ids[0], ids[5]]));
    alice.unban(ids[1]).expect("the node is up");
    alice.unban(ids[5]).expect("the node is up");
    let lifted = |event: &NodeEvent| *event == NodeEvent::PeerUnbanned { peer: ids[5] };
    log.next(SOON, "the ban is lifted", lifted).await;
}
