//! The supervision tree over real QUIC: what fails is contained, reported once and recovered, or ends the node with its cause.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use iroh::{EndpointId, SecretKey};
use kinfolk::error::{CallError, HandlerError, OpenError, StreamError};
use kinfolk::fault::{Crash, Victim};
use kinfolk::{
    Code, Failure, LinkEnd, LinkId, Node, NodeEvent, Options, PeerStatus, ProtocolName, Service,
    Terminal,
};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, alpn, hello, knock};
use kinfolk_tests::support::node::{ECHO, NEXT, builder, node, quick_limits, serving};
use kinfolk_tests::support::stranger::{Nobody, Stranger, closed_code};
use kinfolk_tests::support::wait::{eventually, within};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(10);
const BOTH: [Crash; 2] = [Crash::Panic, Crash::Error];

const BROKEN: ProtocolName = ProtocolName::from_static("broken/1");

async fn next(node: &Node, peer: EndpointId, number: u64) -> u64 {
    within(SOON, "an answer", node.call(peer, NEXT, &number)).await.expect("answered")
}

/// Lets the node dial the other one, and returns the link that is live then.
async fn connect(node: &Node, other: &Node) -> LinkId {
    let mut status = node.monitor(other.id()).await.expect("the node is up");
    let answer: u64 =
        within(SOON, "an answer", node.call(other.addr(), NEXT, &1_u64)).await.expect("answered");
    assert_eq!(answer, 2);
    // The answer may overtake the news of the session.
    up(&mut status, None).await
}

async fn link(node: &Node, peer: EndpointId) -> Option<LinkId> {
    within(SOON, "why", node.why(peer)).await.expect("the node is up").and_then(|why| why.link)
}

async fn up(status: &mut watch::Receiver<PeerStatus>, but: Option<LinkId>) -> LinkId {
    let is_new =
        |status: &PeerStatus| matches!(status, PeerStatus::Up { link, .. } if Some(*link) != but);
    let status = *within(SOON, "a session", status.wait_for(is_new)).await.expect("watched");
    match status {
        PeerStatus::Up { link, .. } => link,
        PeerStatus::Down { .. } => panic!("waited for a session"),
    }
}

fn is_restart(event: &NodeEvent) -> bool {
    matches!(event, NodeEvent::Restarted { .. })
}

fn is_session_panic(event: &NodeEvent) -> bool {
    matches!(event, NodeEvent::SessionPanicked { .. })
}

fn port_of(node: &Node) -> std::net::SocketAddr {
    *node.addr().ip_addrs().next().expect("a bound address")
}

async fn port_becomes_free(address: std::net::SocketAddr) {
    eventually(SOON, "the port is free", async || UdpSocket::bind(address).is_ok()).await;
}

/// A supervisor of the app: it reports how its children failed, and lives on.
struct Supervisor;

impl Actor for Supervisor {
    type Msg = ();
    type State = mpsc::UnboundedSender<String>;
    type Arguments = mpsc::UnboundedSender<String>;

    async fn pre_start(
        &self,
        _myself: ActorRef<()>,
        reports: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(reports)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<()>,
        event: SupervisionEvent,
        reports: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(_, error) => reports.send(error.to_string())?,
            SupervisionEvent::ActorTerminated(_, _, reason) => {
                reports.send(format!("terminated: {reason:?}"))?;
            }
            _ => {}
        }
        Ok(())
    }
}

async fn supervised(key: u8) -> (ActorRef<()>, Node, mpsc::UnboundedReceiver<String>) {
    let (reports, ends) = mpsc::unbounded_channel();
    let (supervisor, _) = Actor::spawn(None, Supervisor, reports).await.expect("it starts");
    let node = builder(key).spawn_linked(supervisor.get_cell()).await.expect("the node starts");
    (supervisor, node, ends)
}

// Sessions

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

    alice.unban(mallory.id());
    log.next(SOON, "the end of the quarantine", |event| {
        matches!(event, NodeEvent::PeerUnbanned { .. })
    })
    .await;
    Guest::enter(&mallory, &alice, hello(1, 7)).await;
}

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
    alice.ban(bob.id(), Duration::from_secs(60));
    let mut log = EventLog::of(&alice).await;
    alice.inject(Victim::PeerManager, Crash::Panic);
    log.next(SOON, "the restart", is_restart).await;
    let asked = within(SOON, "an outcome", alice.open(bob.addr(), ECHO)).await;
    assert_eq!(asked.expect_err("bob is banned"), OpenError::Banned);
    let refused = within(SOON, "an outcome", bob.open(alice.addr(), ECHO)).await;
    assert_eq!(refused.expect_err("bob is banned"), OpenError::Refused(Code::Banned));
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

// The node

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
    let (alice, bob) = (node(1).await, node(2).await);
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

// Handlers

#[tokio::test]
async fn a_stream_handler_that_panics_is_one_event_and_a_code_on_its_stream_alone() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::stream(|mut stream| async move {
        stream.recv.read_chunk(1).await?;
        panic!("on purpose")
    });
    bob.serve(BROKEN, service).await.expect("a new protocol");
    let kept = connect(&alice, &bob).await;
    let mut log = EventLog::of(&bob).await;
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(bob.id(), BROKEN)).await.expect("acknowledged");
    send.write_all(b"x").await.expect("sent");
    let end = within(SOON, "the end", recv.read_chunk(1)).await;
    assert_eq!(end, Err(StreamError::Reset(Code::HandlerPanicked)));

    let panicked = NodeEvent::HandlerPanicked {
        peer: alice.id(),
        protocol: BROKEN,
        message: "on purpose".to_owned(),
    };
    log.next(SOON, "the event", |event| *event == panicked).await;
    assert_eq!(next(&alice, bob.id(), 2).await, 3);
    assert_eq!(link(&alice, bob.id()).await, Some(kept));
    assert_eq!(log.count(|event| *event == panicked), 1);
    let metrics = bob.metrics().await.expect("alive");
    assert_eq!(metrics.protocols["broken/1"].handler_panics, 1);
    assert_eq!(metrics.protocols["broken/1"].active, 0);
    assert_eq!(metrics.panics.get("handler"), Some(&1));
}

#[tokio::test]
async fn a_stream_handler_that_fails_is_one_event_and_a_code_on_its_stream_alone() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::stream(|mut stream| async move {
        stream.recv.read_chunk(1).await?;
        Err(HandlerError::new("not today"))
    });
    bob.serve(BROKEN, service).await.expect("a new protocol");
    let kept = connect(&alice, &bob).await;
    let mut log = EventLog::of(&bob).await;
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(bob.id(), BROKEN)).await.expect("acknowledged");
    send.write_all(b"x").await.expect("sent");
    let end = within(SOON, "the end", recv.read_chunk(1)).await;
    assert_eq!(end, Err(StreamError::Reset(Code::HandlerFailed)));

    let failed = NodeEvent::HandlerFailed {
        peer: alice.id(),
        protocol: BROKEN,
        reason: "not today".to_owned(),
    };
    log.next(SOON, "the event", |event| *event == failed).await;
    assert_eq!(next(&alice, bob.id(), 2).await, 3);
    assert_eq!(link(&alice, bob.id()).await, Some(kept));
    assert_eq!(log.count(|event| *event == failed), 1);
    let metrics = bob.metrics().await.expect("alive");
    assert_eq!(metrics.protocols["broken/1"].handler_failures, 1);
    assert!(metrics.panics.is_empty(), "{:?}", metrics.panics);
}

#[tokio::test]
async fn a_stream_handler_that_panics_before_it_awaits_is_a_code_at_the_first_read() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::stream(|_stream| -> std::future::Ready<Result<(), HandlerError>> {
        panic!("on purpose")
    });
    bob.serve(BROKEN, service).await.expect("a new protocol");
    let (_send, mut recv) =
        within(SOON, "the open", alice.open_eager(bob.addr(), BROKEN)).await.expect("opened");
    let end = within(SOON, "the end", recv.read_chunk(1)).await;
    assert_eq!(end, Err(StreamError::Reset(Code::HandlerPanicked)));
}

#[tokio::test]
async fn a_call_handler_that_panics_fails_its_call_alone() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service =
        Service::call(|_peer, number: u64| async move { Ok(100_u64.checked_div(number).unwrap()) });
    bob.serve(BROKEN, service).await.expect("a new protocol");
    let mut log = EventLog::of(&bob).await;
    let failed = within(SOON, "the end", alice.call::<_, u64>(bob.addr(), BROKEN, &0_u64)).await;
    let failure = Failure::Reset(Code::HandlerPanicked);
    assert_eq!(failed, Err(CallError::Intent(OpenError::Failed { failure, cause: None })));
    let answer = within(SOON, "an answer", alice.call::<_, u64>(bob.id(), BROKEN, &4_u64)).await;
    assert_eq!(answer, Ok(25));
    let panics = log.count(|event| matches!(event, NodeEvent::HandlerPanicked { .. }));
    assert_eq!(panics, 1);
}

#[tokio::test]
async fn a_door_that_panics_refuses_its_stream_and_is_one_event() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call(|_peer, number: u64| async move { Ok(number) })
        .admit(|_peer| panic!("the door jams"));
    bob.serve(BROKEN, service).await.expect("a new protocol");
    let mut log = EventLog::of(&bob).await;
    let refused = within(SOON, "the end", alice.call::<_, u64>(bob.addr(), BROKEN, &0_u64)).await;
    assert_eq!(refused, Err(CallError::Intent(OpenError::Refused(Code::HandlerPanicked))));
    let panicked = NodeEvent::HandlerPanicked {
        peer: alice.id(),
        protocol: BROKEN,
        message: "the door jams".to_owned(),
    };
    log.next(SOON, "the event", |event| *event == panicked).await;
    assert_eq!(next(&alice, bob.id(), 2).await, 3);
    assert_eq!(log.count(|event| *event == panicked), 1);
    assert_eq!(bob.metrics().await.expect("alive").panics.get("handler"), Some(&1));
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
    let (alice, nobody) = (node(1).await, Nobody::bind());
    let mut opens = JoinSet::new();
    for peer in 0..PEERS {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&peer.to_le_bytes());
        let address = nobody.as_if(SecretKey::from_bytes(&key));
        let alice = alice.clone();
        let options = Options::new().deadline(Duration::from_secs(3));
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
    assert!(
        waits[197] < Duration::from_millis(50),
        "of 200 answers, the slowest took {:?}",
        &waits[190..]
    );

    let ends = within(SOON, "all outcomes", opens.join_all()).await;
    let late = |end: &Result<(), OpenError>| matches!(end, Err(OpenError::TimedOut { .. }));
    assert_eq!(ends.iter().filter(|end| late(end)).count(), 1000);
}
