//! Ends over real QUIC: a graceful close loses nothing, a deadline cuts both sides alike, and what comes later finds a next link.

use std::time::{Duration, Instant};

use kinfolk::error::{CallError, OpenError, StreamError};
use kinfolk::fault::{Crash, Faults, Point};
use kinfolk::{
    Code, DownReason, EndpointId, Failure, Incoming, Limits, LinkEnd, Node, NodeEvent,
    ProtocolName, RecvStream, SendStream, Service, Terminal,
};
use kinfolk_core::wire::Control;
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, done, goodbye, hear, hello};
use kinfolk_tests::support::impair::{Condition, Direction};
use kinfolk_tests::support::node::{
    ECHO, NEXT, builder, connect, down, link, live, node, node_with, quick_limits, relay, serving,
    watching,
};
use kinfolk_tests::support::stranger::{Nobody, Stranger, closed_code};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(10);

/// Served by the test's own handler.
const TASK: ProtocolName = ProtocolName::from_static("task/1");

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

async fn opened(node: &Node, peer: EndpointId, protocol: ProtocolName) -> (SendStream, RecvStream) {
    within(SOON, "the open", node.open(peer, protocol)).await.expect("opened")
}

/// Serves [`TASK`] by giving each stream to the test.
async fn serve_here(node: &Node) -> mpsc::UnboundedReceiver<Incoming> {
    let (give, given) = mpsc::unbounded_channel();
    let service = Service::stream(move |stream| {
        let given = give.send(stream).map_err(kinfolk::error::HandlerError::new);
        async move { given }
    });
    node.serve(TASK, service).await.expect("a new protocol");
    given
}

async fn given(streams: &mut mpsc::UnboundedReceiver<Incoming>) -> Incoming {
    within(SOON, "a stream", streams.recv()).await.expect("the service is there")
}

/// A stream between two nodes, both ends of it in the test's hand.
struct Ends {
    near: (SendStream, RecvStream),
    far: (SendStream, RecvStream),
}

async fn stream(near: &Node, far: &Node) -> Ends {
    let mut streams = serve_here(far).await;
    let near = opened(near, far.id(), TASK).await;
    let far = given(&mut streams).await;
    Ends { near, far: (far.send, far.recv) }
}

async fn no_session(node: &Node) {
    eventually(SOON, "no session is left", async || {
        let sessions = node.metrics().await.expect("up").sessions;
        sessions.inbound + sessions.outbound == 0
    })
    .await;
}

// Nothing is lost

/// How both sides end the session once they have written everything.
#[derive(Clone, Copy)]
enum Goodbye {
    Disconnect,
    ShutDown,
}

/// Both sides write so much, finish, and end the session at once, while both still read. Slowly: most is unread by then.
async fn close_at_once(
    size: usize,
    goodbye: Goodbye,
    condition: Condition,
    change: fn(&mut Limits),
) {
    let mut limits = quick_limits();
    change(&mut limits);
    let (alice, bob) = (node_with(1, change).await, node_with(2, change).await);
    let pair = relay(1, &alice, &bob);
    let ends = stream(&alice, &bob).await;
    pair.set(Direction::Both, condition);
    let mut log = EventLog::of(&alice).await;
    let alice_does = talk(&alice, bob.id(), ends.near, goodbye, (1, 2), size);
    let bob_does = talk(&bob, alice.id(), ends.far, goodbye, (2, 1), size);
    let both = async { tokio::join!(alice_does, bob_does) };
    // Both nodes give the streams as long as that.
    within(limits.drain_deadline + SOON, "all bytes at both sides", both).await;
    if matches!(goodbye, Goodbye::Disconnect) {
        let is_end = |event: &NodeEvent| matches!(event, NodeEvent::SessionEnded { .. });
        // Who has everything may be gone, its `Done` and its close lost with it: then this side hears nothing more.
        let latest = limits.idle_timeout + SOON;
        let ended = log.next(latest, "the end of the session", is_end).await;
        let NodeEvent::SessionEnded { end, .. } = ended else { panic!("{ended:?}") };
        let may_be_lost = condition.loss > 0.0;
        assert!(end == LinkEnd::Drained || (may_be_lost && end == LinkEnd::Lost), "{end:?}");
    }
}

/// Writes `size` bytes of one kind, ends the session, and reads as many of the other kind.
async fn talk(
    node: &Node,
    peer: EndpointId,
    (mut send, mut recv): (SendStream, RecvStream),
    goodbye: Goodbye,
    (ours, theirs): (u8, u8),
    size: usize,
) {
    let writing = async {
        send.write_all(&vec![ours; size]).await.expect("written");
        send.finish().expect("finished once");
        match goodbye {
            Goodbye::Disconnect => node.disconnect(peer).await.expect("up"),
            Goodbye::ShutDown => assert_eq!(node.shutdown().await, Terminal::Shutdown),
        }
    };
    let reading = async {
        let mut received = 0;
        while let Some(chunk) = recv.read_chunk(16 * 1024).await.expect("nothing is lost") {
            assert!(chunk.iter().all(|byte| *byte == theirs));
            received += chunk.len();
            tokio::task::yield_now().await;
        }
        assert_eq!(received, size);
    };
    tokio::join!(writing, reading);
}

#[tokio::test]
async fn a_close_by_both_sides_at_once_loses_no_byte() {
    close_at_once(4 << 20, Goodbye::Disconnect, Condition::default(), patient).await;
}

#[tokio::test]
async fn a_shutdown_of_both_sides_at_once_loses_no_byte() {
    close_at_once(4 << 20, Goodbye::ShutDown, Condition::default(), patient).await;
}

fn patient(limits: &mut Limits) {
    limits.idle_timeout = Duration::from_secs(20);
    limits.drain_deadline = Duration::from_secs(50);
    limits.shutdown_deadline = Duration::from_secs(50);
}

#[tokio::test]
async fn a_close_by_both_sides_at_once_loses_no_byte_on_a_network_that_loses_a_third() {
    close_at_once(256 << 10, Goodbye::Disconnect, Condition::lossy(0.3), patient).await;
}

#[tokio::test]
async fn a_shutdown_of_both_sides_at_once_loses_no_byte_on_a_network_that_loses_a_third() {
    close_at_once(256 << 10, Goodbye::ShutDown, Condition::lossy(0.3), patient).await;
}

#[tokio::test]
async fn a_close_while_the_other_side_has_not_read_yet_waits_for_it() {
    let (alice, bob) = (node(1).await, node(2).await);
    alice.add_address(bob.addr()).expect("an address");
    let Ends { near: (mut send, recv), far: (_far_send, mut far_recv) } =
        stream(&alice, &bob).await;
    drop(recv);
    send.write_all(&[9; 100_000]).await.expect("written");
    send.finish().expect("finished once");
    let mut at_bob = watching(&bob, alice.id()).await;
    alice.disconnect(bob.id()).await.expect("up");
    assert_eq!(down(&mut at_bob).await, Some(DownReason::PeerDraining(Code::Ok)));
    // Only now, long after the goodbye, is anything read.
    tokio::time::sleep(ms(500)).await;
    let received = within(SOON, "all bytes", far_recv.read_to_end(200_000)).await;
    assert_eq!(received.expect("nothing is lost").len(), 100_000);
}

#[tokio::test]
async fn an_agreed_close_is_reported_as_drained_at_both_sides() {
    let (alice, bob) = (node(1).await, node(2).await);
    let link = connect(&alice, &bob).await;
    let (mut at_alice, mut at_bob) = (EventLog::of(&alice).await, EventLog::of(&bob).await);
    alice.disconnect(bob.id()).await.expect("up");
    for (log, peer) in [(&mut at_alice, bob.id()), (&mut at_bob, alice.id())] {
        let drained = NodeEvent::SessionEnded { peer, link, end: LinkEnd::Drained };
        log.next(SOON, "the end of the session", |event| *event == drained).await;
    }
}

#[tokio::test]
async fn a_close_with_nothing_open_takes_no_longer_than_a_few_round_trips() {
    // All that it could wait for instead takes far longer than a busy machine does.
    let slow = |limits: &mut Limits| {
        limits.linger = 6 * SOON;
        limits.drain_deadline = 6 * SOON;
        limits.idle_timeout = 3 * SOON;
    };
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let (alice, bob) = (node_with(1, slow).await, node_with(2, slow).await);
        connect(&alice, &bob).await;
        let start = Instant::now();
        alice.disconnect(bob.id()).await.expect("up");
        no_session(&alice).await;
        fastest = fastest.min(start.elapsed());
    }
    // Below each second that is written in the code: a duplicate's, and that of an end that does not come.
    assert!(fastest < ms(900), "{fastest:?}");
}

// A goodbye that gets lost

#[tokio::test]
async fn what_is_asked_for_after_a_goodbye_that_was_lost_is_served_on_a_next_link() {
    let (alice, bob) = (node(1).await, node(2).await);
    let pair = relay(1, &alice, &bob);
    let old = connect_by_id(&alice, &bob).await;
    pair.partition();
    let mut status = watching(&alice, bob.id()).await;
    alice.disconnect(bob.id()).await.expect("up");
    assert_eq!(down(&mut status).await, Some(DownReason::Draining(Code::Ok)));
    let asking = alice.call::<_, u64>(bob.id(), NEXT, &5_u64);
    let healing = async {
        eventually(SOON, "the next dial", async || {
            alice.metrics().await.expect("up").dials_started == 2
        })
        .await;
        pair.heal();
    };
    let both = async { tokio::join!(asking, healing) };
    let (answer, ()) = within(Duration::from_secs(5), "the answer", both).await;
    assert_eq!(answer, Ok(6));
    assert_ne!(live(&alice, bob.id()).await, old);
    assert_eq!(link(&alice, bob.id()).await, link(&bob, alice.id()).await);
}

/// As [`connect`], over the relay.
async fn connect_by_id(node: &Node, other: &Node) -> kinfolk::LinkId {
    let asked = node.call::<_, u64>(other.id(), NEXT, &1_u64);
    assert_eq!(within(SOON, "an answer", asked).await, Ok(2));
    live(node, other.id()).await
}

#[tokio::test]
async fn a_drain_whose_peer_is_out_of_reach_ends_at_its_deadline_and_stops_nobody() {
    let brief = |limits: &mut Limits| {
        limits.drain_deadline = ms(600);
        limits.idle_timeout = Duration::from_secs(5);
    };
    let (alice, bob) = (node_with(1, brief).await, node_with(2, brief).await);
    let pair = relay(1, &alice, &bob);
    connect_by_id(&alice, &bob).await;
    pair.partition();
    let start = Instant::now();
    alice.disconnect(bob.id()).await.expect("up");
    no_session(&alice).await;
    let took = start.elapsed();
    assert!((ms(500)..ms(2000)).contains(&took), "{took:?}");
    pair.heal();
    connect_by_id(&alice, &bob).await;
}

#[tokio::test]
async fn a_peer_that_says_done_and_goes_without_closing_costs_no_more_than_the_deadline() {
    let alice = node_with(1, |limits| limits.drain_deadline = ms(500)).await;
    let mallory = Stranger::bind(66).await;
    let mut guest = Guest::enter(&mallory, &alice, hello(1, 1)).await;
    alice.disconnect(mallory.id()).await.expect("up");
    let heard = hear(&mut guest.receive).await;
    assert!(matches!(heard, Some(Control::Goodbye(_))), "{heard:?}");
    guest.say(&[goodbye(Code::Draining), done()]).await;
    let heard = hear(&mut guest.receive).await;
    assert!(matches!(heard, Some(Control::Done(_)) | None), "{heard:?}");
    let ok = u64::from(Code::Ok.to_wire());
    assert_eq!(closed_code(&guest.connection, SOON).await, Some(ok));
}

// The drain deadline

#[tokio::test]
async fn streams_that_outlast_the_drain_deadline_are_cut_with_that_code_at_both_sides() {
    let brief = |limits: &mut Limits| limits.drain_deadline = ms(500);
    let (alice, bob) = (node_with(1, brief).await, node_with(2, brief).await);
    alice.add_address(bob.addr()).expect("an address");
    let mut ends = stream(&alice, &bob).await;
    let start = Instant::now();
    alice.disconnect(bob.id()).await.expect("up");
    let (mut near, mut far) = ([0], [0]);
    let both = async { tokio::join!(ends.near.1.read(&mut near), ends.far.1.read(&mut far)) };
    let cut = Err(StreamError::LinkClosed(Code::DrainDeadline));
    assert_eq!(within(SOON, "both ends", both).await, (cut, cut));
    let took = start.elapsed();
    assert!((ms(490)..ms(1500)).contains(&took), "{took:?}");
    for send in [&mut ends.near.0, &mut ends.far.0] {
        let written = within(SOON, "a write", send.write_all(b"late")).await;
        assert_eq!(written, Err(StreamError::LinkClosed(Code::DrainDeadline)));
    }
}

#[tokio::test]
async fn a_call_that_outlasts_the_drain_deadline_fails_as_such_whichever_side_drains() {
    let brief = |limits: &mut Limits| limits.drain_deadline = ms(300);
    for at_caller in [true, false] {
        let (alice, bob) = (node_with(1, brief).await, node_with(2, brief).await);
        let (came, mut asked) = mpsc::unbounded_channel();
        let service = Service::call(move |_peer, _request: u64| {
            let _ = came.send(());
            std::future::pending::<Result<u64, _>>()
        });
        bob.serve(TASK, service).await.expect("a new protocol");
        connect(&alice, &bob).await;
        let asking = alice.call::<_, u64>(bob.id(), TASK, &1_u64);
        let ending = async {
            within(SOON, "the request", asked.recv()).await.expect("asked");
            let (ender, other) = if at_caller { (&alice, &bob) } else { (&bob, &alice) };
            ender.disconnect(other.id()).await.expect("up");
        };
        let (outcome, ()) = within(SOON, "both", async { tokio::join!(asking, ending) }).await;
        let failure = Failure::DrainDeadline;
        let failed = Err(CallError::Intent(OpenError::Failed { failure, cause: None }));
        assert_eq!(outcome, failed, "the caller drains: {at_caller}");
    }
}

#[tokio::test]
async fn a_goodbye_that_takes_its_time_is_held_to_the_own_drain_deadline() {
    let alice = node_with(1, |limits| limits.drain_deadline = ms(400)).await;
    let bob = node_with(2, |limits| limits.drain_deadline = Duration::from_secs(60)).await;
    alice.add_address(bob.addr()).expect("an address");
    let mut ends = stream(&alice, &bob).await;
    let start = Instant::now();
    bob.disconnect(alice.id()).await.expect("up");
    let end = within(SOON, "the end", ends.near.1.read(&mut [0])).await;
    assert_eq!(end, Err(StreamError::LinkClosed(Code::DrainDeadline)));
    assert!(start.elapsed() < ms(1500), "{:?}", start.elapsed());
}

// After a goodbye

#[tokio::test]
async fn a_goodbye_of_the_peer_sends_later_intents_to_the_next_link_and_leaves_open_streams_alone()
{
    let (alice, bob) = (node(1).await, node(2).await);
    alice.add_address(bob.addr()).expect("an address");
    let mut ends = stream(&alice, &bob).await;
    let old = live(&alice, bob.id()).await;
    let mut status = watching(&alice, bob.id()).await;
    bob.disconnect(alice.id()).await.expect("up");
    assert_eq!(down(&mut status).await, Some(DownReason::PeerDraining(Code::Ok)));
    let asked = alice.call::<_, u64>(bob.id(), NEXT, &1_u64);
    assert_eq!(within(SOON, "an answer", asked).await, Ok(2));
    assert_ne!(live(&alice, bob.id()).await, old);

    ends.near.0.write_all(b"x").await.expect("written");
    let mut byte = [0];
    within(SOON, "a byte", ends.far.1.read_exact(&mut byte)).await.expect("received");
    assert_eq!(byte, *b"x");
}

#[tokio::test]
async fn an_intent_after_a_goodbye_does_not_wait_for_the_backoff() {
    let mut fastest = Duration::MAX;
    // The fastest of some, as the machine may be busy.
    for _ in 0..4 {
        let (alice, bob) = (node(1).await, node(2).await);
        connect(&alice, &bob).await;
        let mut status = watching(&alice, bob.id()).await;
        bob.disconnect(alice.id()).await.expect("up");
        down(&mut status).await;
        let start = Instant::now();
        connect(&alice, &bob).await;
        fastest = fastest.min(start.elapsed());
    }
    // The backoff is half a second at least.
    assert!(fastest < ms(450), "{fastest:?}");
}

#[tokio::test]
async fn a_disconnect_cancels_what_waits_for_that_peer_alone() {
    let (alice, nobody) = (node(1).await, Nobody::bind());
    let bob = node(2).await;
    let hold = alice.hold(nobody.as_if(99));
    let other_hold = alice.hold(bob.addr());
    let id = nobody.as_if(99).id;
    let opening = alice.open(id, ECHO);
    let ending = async {
        eventually(SOON, "both wait", async || {
            let why = alice.why(id).await.expect("up").expect("held");
            (why.holds, why.waiting) == (1, 1)
        })
        .await;
        alice.disconnect(id).await.expect("up");
    };
    let (outcome, ()) = within(SOON, "both", async { tokio::join!(opening, ending) }).await;
    assert_eq!(outcome.expect_err("cancelled"), OpenError::Cancelled);
    assert_eq!(within(SOON, "the hold's end", hold.ended()).await, kinfolk::Outcome::Cancelled);
    assert_eq!(other_hold.outcome(), None);
}

// Draining the node

#[tokio::test]
async fn a_draining_node_lets_streams_finish_and_returns_when_no_session_is_left() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = {
        alice.add_address(bob.addr()).expect("an address");
        opened(&alice, bob.id(), ECHO).await
    };
    let mut at_bob = watching(&bob, alice.id()).await;
    let mut draining = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.drain().await })
    };
    assert_eq!(down(&mut at_bob).await, Some(DownReason::PeerDraining(Code::ShuttingDown)));
    tokio::time::timeout(ms(200), &mut draining).await.expect_err("a stream is open");
    send.write_all(b"last words").await.expect("sent");
    send.finish().expect("finished once");
    let echoed = within(SOON, "the echo", recv.read_to_end(100)).await;
    assert_eq!(echoed, Ok(b"last words".to_vec()));
    let drained = within(SOON, "the end of the drain", draining).await;
    assert_eq!(drained.expect("no panic"), Ok(()));
    let sessions = alice.metrics().await.expect("it is still up").sessions;
    assert_eq!((sessions.inbound, sessions.outbound), (0, 0));
}

#[tokio::test]
async fn a_draining_node_takes_no_new_work_from_its_app() {
    let (alice, bob, nobody) = (node(1).await, node(2).await, Nobody::bind());
    let hold = alice.hold(nobody.as_if(99));
    let opening = alice.open(nobody.as_if(99).id, ECHO);
    let draining = async {
        eventually(SOON, "the open waits", async || {
            alice.metrics().await.expect("up").intents_waiting == 2
        })
        .await;
        alice.drain().await
    };
    let both = async { tokio::join!(opening, draining) };
    let (waiting, drained) = within(SOON, "both", both).await;
    assert_eq!(drained, Ok(()));
    assert_eq!(waiting.expect_err("ended"), OpenError::ShuttingDown);
    assert_eq!(hold.outcome(), Some(kinfolk::Outcome::ShuttingDown));
    let later = within(SOON, "an outcome", alice.open(bob.addr(), ECHO)).await;
    assert_eq!(later.expect_err("draining"), OpenError::ShuttingDown);
    let later = alice.hold(bob.addr());
    assert_eq!(within(SOON, "its end", later.ended()).await, kinfolk::Outcome::ShuttingDown);
}

#[tokio::test]
async fn a_draining_node_turns_peers_away_with_a_code() {
    let (alice, mallory) = (node(1).await, Stranger::bind(66).await);
    assert_eq!(within(SOON, "the drain", alice.drain()).await, Ok(()));
    let (connection, _send, _receive) =
        kinfolk_tests::support::guest::knock(&mallory, &alice, hello(1, 1)).await;
    let shutting_down = u64::from(Code::ShuttingDown.to_wire());
    assert_eq!(closed_code(&connection, SOON).await, Some(shutting_down));
}

#[tokio::test]
async fn a_node_with_nothing_open_is_drained_at_once() {
    let (alice, bob) = (node(1).await, node(2).await);
    connect(&alice, &bob).await;
    assert_eq!(within(ms(1000), "the drain", alice.drain()).await, Ok(()));
    assert_eq!(within(ms(1000), "a second drain", alice.drain()).await, Ok(()));
}

#[tokio::test]
async fn a_drain_that_is_given_up_before_the_neighbours_know_of_it_goes_on() {
    let faults = Faults::default();
    let alice = serving(builder(1).discovery(true).faults(&faults)).await;
    let bob = node(2).await;
    let hold = alice.hold(bob.addr());
    live(&alice, bob.id()).await;
    faults.arm(Point::DiscoveryDepart, Crash::Stall(ms(300)));
    tokio::time::timeout(ms(50), alice.drain()).await.expect_err("the neighbours are being told");
    let ended = within(SOON, "the hold's end", hold.ended()).await;
    assert_eq!(ended, kinfolk::Outcome::ShuttingDown);
    no_session(&alice).await;
    assert_eq!(faults.strikes(Point::DiscoveryDepart), 1);
}

#[tokio::test]
async fn a_drain_cuts_what_outlasts_its_deadline() {
    let alice = node_with(1, |limits| limits.drain_deadline = ms(400)).await;
    let bob = node(2).await;
    alice.add_address(bob.addr()).expect("an address");
    let mut ends = stream(&alice, &bob).await;
    let start = Instant::now();
    assert_eq!(within(SOON, "the drain", alice.drain()).await, Ok(()));
    assert!((ms(390)..ms(1400)).contains(&start.elapsed()), "{:?}", start.elapsed());
    let end = within(SOON, "the end", ends.far.1.read(&mut [0])).await;
    assert_eq!(end, Err(StreamError::LinkClosed(Code::DrainDeadline)));
}
