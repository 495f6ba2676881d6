//! A node driven by messages to its root actor alone, and actors that serve its streams.

use std::time::Duration;

use kinfolk::error::{OpenError, ServeError, StreamError};
use kinfolk::{
    BookError, Bytes, Code, Failure, Incoming, MESSAGE_BYTES_MAX, Node, NodeEvent, NodeMessage,
    Options, PeerState, PeerStatus, ProtocolName, Service, Terminal,
};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{ECHO, NEXT, builder, echo, node, quick_limits, serving};
use kinfolk_tests::support::stranger::Nobody;
use kinfolk_tests::support::wait::{eventually, within};
use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus, RpcReplyPort};
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(10);

const OWN: ProtocolName = ProtocolName::from_static("own/1");

type Root = ActorRef<NodeMessage>;

async fn ask<T: Send + 'static>(
    root: &Root,
    question: impl FnOnce(RpcReplyPort<T>) -> NodeMessage,
) -> T {
    match root.call(question, Some(SOON)).await.expect("the node is up") {
        CallResult::Success(answer) => answer,
        CallResult::Timeout => panic!("no answer within {SOON:?}"),
        CallResult::SenderError => panic!("the question was dropped"),
    }
}

fn tell(root: &Root, message: NodeMessage) {
    root.send_message(message).expect("the node is up");
}

/// Two nodes; the first is known by its root actor alone.
async fn pair() -> (Root, Node) {
    (node(1).await.actor(), node(2).await)
}

fn next_of(number: u8) -> Bytes {
    Bytes::from(vec![number])
}

async fn call(
    root: &Root,
    peer: &Node,
    protocol: ProtocolName,
    request: Bytes,
) -> Result<Bytes, OpenError> {
    let address = peer.addr().into();
    ask(root, |reply| NodeMessage::Call(address, protocol, request, Options::new(), reply)).await
}

// Each message

#[tokio::test]
async fn a_stream_is_opened_by_message() {
    let (root, bob) = pair().await;
    let address = bob.addr().into();
    let opened = ask(&root, |reply| NodeMessage::Open(address, ECHO, Options::new(), reply)).await;
    let (mut send, mut recv) = opened.expect("opened");
    send.write_all(b"hello").await.expect("sent");
    send.finish().expect("finished once");
    let echoed = within(SOON, "the echo", recv.read_to_end(100)).await.expect("received");
    assert_eq!(echoed, b"hello");
}

#[tokio::test]
async fn an_eager_stream_is_opened_by_message_and_refused_at_the_first_read() {
    let (root, bob) = pair().await;
    for (protocol, first) in [(ECHO, Ok(Some(b'x'))), (OWN, Err(Code::UnknownProtocol))] {
        let address = bob.addr().into();
        let question = |reply| NodeMessage::OpenEager(address, protocol, Options::new(), reply);
        let (mut send, mut recv) = ask(&root, question).await.expect("opened");
        // A refusal may come before the payload has left.
        let _ = send.write_all(b"x").await;
        let read = within(SOON, "the first read", recv.read_chunk(1)).await;
        let read = read.map(|chunk| chunk.and_then(|chunk| chunk.first().copied()));
        assert_eq!(read, first.map_err(StreamError::Refused));
    }
}

#[tokio::test]
async fn a_call_is_made_by_message() {
    let (root, bob) = pair().await;
    assert_eq!(call(&root, &bob, NEXT, next_of(7)).await, Ok(next_of(8)));
    let refused = call(&root, &bob, OWN, next_of(7)).await;
    assert_eq!(refused, Err(OpenError::Refused(Code::UnknownProtocol)));
}

#[tokio::test]
async fn a_peer_is_held_watched_and_explained_by_message() {
    let (root, bob) = pair().await;
    let mut status = ask(&root, |reply| NodeMessage::Monitor(bob.id(), reply)).await;
    assert_eq!(*status.borrow(), PeerStatus::Down { reason: None });
    let address = bob.addr().into();
    let hold = ask(&root, |reply| NodeMessage::Hold(address, reply)).await.expect("held");
    assert_eq!(hold.peer(), bob.id());
    within(SOON, "the session", status.wait_for(PeerStatus::is_up)).await.expect("watched");
    let why = ask(&root, |reply| NodeMessage::Why(bob.id(), reply)).await.expect("known");
    assert_eq!((why.state, why.holds), (PeerState::Connected, 1));
    let peers = ask(&root, NodeMessage::Peers).await;
    assert_eq!(peers.iter().map(|summary| summary.peer).collect::<Vec<_>>(), [bob.id()]);
}

#[tokio::test]
async fn a_protocol_is_taken_into_and_out_of_service_by_message() {
    let (root, bob) = pair().await;
    let address = ask(&root, NodeMessage::Address).await;
    let served = ask(&root, |reply| NodeMessage::Serve(OWN, echo(), reply)).await;
    assert_eq!(served, Ok(()));
    let again = ask(&root, |reply| NodeMessage::Serve(OWN, echo(), reply)).await;
    assert_eq!(again, Err(ServeError::AlreadyServed(OWN)));
    within(SOON, "the open", bob.open(&address, OWN)).await.expect("served");
    assert!(ask(&root, |reply| NodeMessage::Unserve(OWN, reply)).await);
    assert!(!ask(&root, |reply| NodeMessage::Unserve(OWN, reply)).await);
    let open = within(SOON, "an outcome", bob.open(&address, OWN)).await;
    assert_eq!(open.err(), Some(OpenError::Refused(Code::UnknownProtocol)));
}

#[tokio::test]
async fn a_ban_is_set_and_lifted_by_message_and_both_are_events() {
    let (root, bob) = pair().await;
    let mut events = ask(&root, NodeMessage::Subscribe).await;
    tell(&root, NodeMessage::Ban(bob.id(), Duration::from_secs(60)));
    let banned = within(SOON, "the ban", events.recv()).await.expect("an event");
    assert!(matches!(banned, NodeEvent::PeerBanned { peer, .. } if peer == bob.id()), "{banned:?}");
    assert_eq!(call(&root, &bob, NEXT, next_of(7)).await, Err(OpenError::Banned));
    tell(&root, NodeMessage::Unban(bob.id()));
    let unbanned = within(SOON, "its end", events.recv()).await.expect("an event");
    assert_eq!(unbanned, NodeEvent::PeerUnbanned { peer: bob.id() });
    assert_eq!(call(&root, &bob, NEXT, next_of(7)).await, Ok(next_of(8)));
}

#[tokio::test]
async fn a_peer_is_disconnected_by_message() {
    let (root, bob) = pair().await;
    let mut status = ask(&root, |reply| NodeMessage::Monitor(bob.id(), reply)).await;
    call(&root, &bob, NEXT, next_of(7)).await.expect("answered");
    within(SOON, "the session", status.wait_for(PeerStatus::is_up)).await.expect("watched");
    tell(&root, NodeMessage::Disconnect(bob.id()));
    let down = status.wait_for(|status| !status.is_up());
    within(SOON, "its end", down).await.expect("watched");
}

#[tokio::test]
async fn addresses_are_given_and_taken_by_message() {
    let (root, bob) = pair().await;
    let given = ask(&root, |reply| NodeMessage::AddAddress(bob.addr(), reply)).await;
    assert_eq!(given, Ok(()));
    let bare = kinfolk::EndpointAddr::new(bob.id());
    let none = ask(&root, |reply| NodeMessage::AddAddress(bare, reply)).await;
    assert_eq!(none, Err(BookError::NoAddress));
    let taken = ask(&root, |reply| NodeMessage::RemoveAddress(bob.id(), None, reply)).await;
    assert_eq!(taken, 1);
    let open = ask(&root, |reply| NodeMessage::Open(bob.id().into(), ECHO, Options::new(), reply));
    let Err(OpenError::Failed { failure, .. }) = open.await else { panic!("no address is left") };
    assert_eq!(failure, Failure::NoAddress);
}

#[tokio::test]
async fn the_numbers_are_read_by_message() {
    let (root, bob) = pair().await;
    call(&root, &bob, NEXT, next_of(7)).await.expect("answered");
    let metrics = ask(&root, NodeMessage::Metrics).await;
    assert_eq!((metrics.sessions.live, metrics.dials_started), (1, 1));
    assert_eq!(metrics.intents_ended.get("done"), Some(&1));
}

#[tokio::test]
async fn a_node_is_drained_and_shut_down_by_message() {
    let alice = node(1).await;
    let (root, bob) = (alice.actor(), node(2).await);
    call(&root, &bob, NEXT, next_of(7)).await.expect("answered");
    ask(&root, NodeMessage::Drain).await;
    assert_eq!(ask(&root, NodeMessage::Metrics).await.sessions.outbound, 0);
    assert_eq!(call(&root, &bob, NEXT, next_of(7)).await, Err(OpenError::ShuttingDown));
    tell(&root, NodeMessage::Shutdown);
    assert_eq!(within(SOON, "the end", alice.closed()).await, Terminal::Shutdown);
    eventually(SOON, "the actor has stopped", async || root.get_status() == ActorStatus::Stopped)
        .await;
    root.send_message(NodeMessage::Shutdown).expect_err("nobody is there");
}

// Bounds

#[tokio::test]
async fn a_request_or_an_answer_of_64_kib_passes_and_one_byte_more_does_not() {
    let (root, bob) = pair().await;
    let service = Service::call_bytes(|_peer, request| async move {
        // Asked with nothing, it answers with too much.
        let extra = usize::from(request.is_empty()) * (MESSAGE_BYTES_MAX + 1);
        Ok([&request[..], &vec![0; extra]].concat())
    });
    bob.serve(OWN, service).await.expect("a new protocol");
    let largest = Bytes::from(vec![7; MESSAGE_BYTES_MAX]);
    assert_eq!(call(&root, &bob, OWN, largest.clone()).await, Ok(largest));
    let too_large = Err(OpenError::Failed { failure: Failure::TooLarge, cause: None });
    let larger = Bytes::from(vec![7; MESSAGE_BYTES_MAX + 1]);
    assert_eq!(call(&root, &bob, OWN, larger).await, too_large);
    assert_eq!(call(&root, &bob, OWN, Bytes::new()).await, too_large);
}

#[tokio::test]
async fn requests_beyond_the_limit_on_messages_are_refused_and_others_go_on() {
    let mut limits = quick_limits();
    limits.messages = 2;
    let alice = serving(builder(1).limits(limits)).await;
    let (root, nobody) = (alice.actor(), Nobody::bind());
    let mut waiting = Vec::new();
    for key in [98, 99] {
        let (reply, answer) = ractor::concurrency::oneshot();
        let address = nobody.as_if(key).into();
        let options = Options::new().deadline(Duration::from_secs(1));
        tell(&root, NodeMessage::Open(address, ECHO, options, reply.into()));
        waiting.push(answer);
    }
    let full = Err(OpenError::Failed { failure: Failure::QueueFull, cause: None });
    assert_eq!(call(&root, &alice, NEXT, next_of(7)).await, full);
    ask(&root, NodeMessage::Metrics).await;
    for answer in waiting {
        let outcome = within(SOON, "an outcome", answer).await.expect("answered");
        assert!(matches!(outcome, Err(OpenError::TimedOut { .. })), "{outcome:?}");
    }
    let bob = node(2).await;
    assert_eq!(call(&root, &bob, NEXT, next_of(7)).await, Ok(next_of(8)));
}

#[tokio::test]
async fn callers_that_leave_before_their_answer_do_not_harm_the_node() {
    let (root, bob) = pair().await;
    let peer = bob.id();
    let (there, here) = (bob.addr(), ask(&root, NodeMessage::Address).await);
    tell(&root, NodeMessage::Open(there.clone().into(), ECHO, Options::new(), gone()));
    tell(&root, NodeMessage::OpenEager(there.clone().into(), ECHO, Options::new(), gone()));
    tell(&root, NodeMessage::Call(there.clone().into(), NEXT, next_of(1), Options::new(), gone()));
    tell(&root, NodeMessage::Hold(there.clone().into(), gone()));
    tell(&root, NodeMessage::Serve(OWN, echo(), gone()));
    tell(&root, NodeMessage::Unserve(OWN, gone()));
    tell(&root, NodeMessage::Subscribe(gone()));
    tell(&root, NodeMessage::Metrics(gone()));
    tell(&root, NodeMessage::Peers(gone()));
    tell(&root, NodeMessage::Why(peer, gone()));
    tell(&root, NodeMessage::Monitor(peer, gone()));
    tell(&root, NodeMessage::Address(gone()));
    tell(&root, NodeMessage::AddAddress(there, gone()));
    tell(&root, NodeMessage::RemoveAddress(peer, Some(here), gone()));
    assert_eq!(call(&root, &bob, NEXT, next_of(7)).await, Ok(next_of(8)));
}

/// A reply port whose caller has left.
fn gone<T>() -> RpcReplyPort<T> {
    ractor::concurrency::oneshot().0.into()
}

// Actors as handlers

/// Echoes streams that it gets as messages.
struct EchoActor;

/// What it gets.
enum EchoMessage {
    Serve(Incoming),
}

impl From<Incoming> for EchoMessage {
    fn from(stream: Incoming) -> Self {
        Self::Serve(stream)
    }
}

impl Actor for EchoActor {
    type Msg = EchoMessage;
    type State = mpsc::UnboundedSender<kinfolk::EndpointId>;
    type Arguments = mpsc::UnboundedSender<kinfolk::EndpointId>;

    async fn pre_start(
        &self,
        _myself: ActorRef<EchoMessage>,
        served: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(served)
    }

    async fn handle(
        &self,
        _myself: ActorRef<EchoMessage>,
        EchoMessage::Serve(mut stream): EchoMessage,
        served: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let _ = served.send(stream.peer);
        tokio::spawn(async move {
            while let Ok(Some(chunk)) = stream.recv.read_chunk(1024).await {
                if stream.send.write_chunk(chunk).await.is_err() {
                    return;
                }
            }
            let _ = stream.send.finish();
        });
        Ok(())
    }
}

async fn echoing(
    node: &Node,
    concurrency: usize,
) -> (ActorRef<EchoMessage>, mpsc::UnboundedReceiver<kinfolk::EndpointId>) {
    let (tell, served) = mpsc::unbounded_channel();
    let (actor, _) = Actor::spawn(None, EchoActor, tell).await.expect("it starts");
    let service = Service::actor(actor.clone()).concurrency(concurrency);
    node.serve(OWN, service).await.expect("a new protocol");
    (actor, served)
}

#[tokio::test]
async fn an_actor_serves_streams() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (_actor, mut served) = echoing(&bob, 10).await;
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), OWN)).await.expect("opened");
    send.write_all(b"hello").await.expect("sent");
    send.finish().expect("finished once");
    let echoed = within(SOON, "the echo", recv.read_to_end(100)).await.expect("received");
    assert_eq!(echoed, b"hello");
    assert_eq!(served.recv().await, Some(alice.id()));
}

#[tokio::test]
async fn an_actor_gets_no_more_streams_at_once_than_its_concurrency() {
    let (alice, bob) = (node(1).await, node(2).await);
    let _actor = echoing(&bob, 1).await;
    let first = within(SOON, "the open", alice.open(bob.addr(), OWN)).await.expect("opened");
    let second = within(SOON, "an outcome", alice.open(bob.id(), OWN)).await;
    assert_eq!(second.err(), Some(OpenError::Refused(Code::Busy)));
    drop(first);
    eventually(SOON, "the first one's place is free", async || {
        alice.open(bob.id(), OWN).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn streams_for_an_actor_that_has_stopped_are_refused_as_busy() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (actor, _served) = echoing(&bob, 10).await;
    actor.stop_and_wait(None, Some(SOON)).await.expect("it stops");
    let open = within(SOON, "an outcome", alice.open(bob.addr(), OWN)).await;
    assert_eq!(open.err(), Some(OpenError::Refused(Code::Busy)));
    assert_eq!(bob.metrics().await.expect("alive").protocols["own/1"].refused, 1);
}

/// A message that cannot be made of a stream.
enum Picky {}

impl From<Incoming> for Picky {
    fn from(_stream: Incoming) -> Self {
        panic!("on purpose")
    }
}

struct PickyActor;

impl Actor for PickyActor {
    type Msg = Picky;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _myself: ActorRef<Picky>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

#[tokio::test]
async fn a_message_that_panics_when_it_is_made_of_a_stream_is_one_event() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (actor, _) = Actor::spawn(None, PickyActor, ()).await.expect("it starts");
    bob.serve(OWN, Service::actor(actor)).await.expect("a new protocol");
    let mut log = EventLog::of(&bob).await;
    let (_send, mut recv) =
        within(SOON, "the open", alice.open_eager(bob.addr(), OWN)).await.expect("opened");
    within(SOON, "the end", recv.read_chunk(1)).await.expect_err("nobody serves it");
    let panicked = NodeEvent::HandlerPanicked {
        peer: alice.id(),
        protocol: OWN,
        message: "on purpose".to_owned(),
    };
    log.next(SOON, "the event", |event| *event == panicked).await;
    assert_eq!(log.count(|event| *event == panicked), 1);
}
