//! Streams over real QUIC: how they are opened, refused, served and ended, and that one is no other's business.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use iroh::endpoint::ReadError;
use kinfolk::error::{HandlerError, OpenError, StreamError};
use kinfolk::fault::{Crash, Victim};
use kinfolk::{
    Code, Failure, Incoming, Node, Options, Priority, ProtocolMetrics, ProtocolName, RecvStream,
    SendStream, Service,
};
use kinfolk_core::wire::{Answer, StreamMode};
use kinfolk_tests::support::host::{Asked, Dialled, Host};
use kinfolk_tests::support::impair::{Condition, Direction};
use kinfolk_tests::support::node::{ECHO, NEXT, connect, echo, link, node, node_with, relay};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(10);

/// Served by the test's own handler.
const TASK: ProtocolName = ProtocolName::from_static("task/1");

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

async fn open(
    node: &Node,
    peer: impl Into<kinfolk::Peer>,
    protocol: ProtocolName,
) -> Result<(SendStream, RecvStream), OpenError> {
    within(SOON, "an outcome", node.open(peer, protocol)).await
}

/// What an open ended with; what it opened is dropped.
fn refusal(opened: Result<(SendStream, RecvStream), OpenError>) -> OpenError {
    opened.expect_err("it cannot be opened")
}

async fn echoes(send: &mut SendStream, recv: &mut RecvStream, bytes: &[u8]) {
    send.write_all(bytes).await.expect("sent");
    let mut echoed = vec![0; bytes.len()];
    within(SOON, "the echo", recv.read_exact(&mut echoed)).await.expect("received");
    assert_eq!(echoed, bytes);
}

async fn protocol(node: &Node, name: &str) -> ProtocolMetrics {
    let metrics = within(SOON, "the numbers", node.metrics()).await.expect("up");
    metrics.protocols.get(name).copied().unwrap_or_default()
}

/// Serves [`TASK`] by giving each stream to the test.
async fn serve_here(node: &Node) -> mpsc::UnboundedReceiver<Incoming> {
    let (give, given) = mpsc::unbounded_channel();
    let service = Service::stream(move |stream| {
        let given = give.send(stream).map_err(HandlerError::new);
        async move { given }
    });
    node.serve(TASK, service).await.expect("a new protocol");
    given
}

async fn given(streams: &mut mpsc::UnboundedReceiver<Incoming>) -> Incoming {
    within(SOON, "a stream", streams.recv()).await.expect("the service is there")
}

// Opening

#[tokio::test]
async fn an_open_returns_once_the_peer_has_acknowledged_it_and_not_before() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let mut opening = tokio::spawn(async move { alice.open(address, ECHO).await });
    let dialled = host.welcomed().await;
    let mut asked = dialled.stream().await;
    assert_eq!(asked.header.mode, StreamMode::Acked);
    tokio::time::timeout(ms(200), &mut opening).await.expect_err("nothing is acknowledged");
    asked.answer(Answer::Ack).await;
    within(SOON, "the open", opening).await.expect("no panic").expect("opened");
}

#[tokio::test]
async fn opens_one_after_the_other_use_the_same_link() {
    let (alice, bob) = (node(1).await, node(2).await);
    for _ in 0..10 {
        let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
        echoes(&mut send, &mut recv, b"hello").await;
    }
    assert_eq!(alice.metrics().await.expect("up").dials_started, 1);
}

#[tokio::test]
async fn a_protocol_that_the_peer_does_not_serve_is_refused_on_its_stream_alone() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
    let before = link(&alice, bob.id()).await;
    let refused = refusal(open(&alice, bob.id(), TASK).await);
    assert_eq!(refused, OpenError::Refused(Code::UnknownProtocol));
    echoes(&mut send, &mut recv, b"still here").await;
    assert_eq!(link(&alice, bob.id()).await, before);
    let counted = bob.metrics().await.expect("up").streams_refused;
    assert_eq!(counted.get("unknown_protocol"), Some(&1));
}

/// Lets a host take a stream for what the test makes of it, and acknowledge one before and one after it, all on one link.
async fn asked_of_a_host(
    deadline: Duration,
    reply: impl AsyncFnOnce(Asked) -> Option<Asked>,
) -> OpenError {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let id = host.id();
    alice.add_address(host.addr()).expect("an address");
    let first = async {
        let dialled = host.welcomed().await;
        acknowledged(&dialled).await;
        dialled
    };
    let both = async { tokio::join!(open(&alice, id, ECHO), first) };
    let (opened, dialled) = within(SOON, "the first open", both).await;
    opened.expect("opened");

    let opening = alice.open_with(id, TASK, Options::new().deadline(deadline));
    let answering = async { reply(dialled.stream().await).await };
    let both = async { tokio::join!(opening, answering) };
    let (asked, _kept) = within(SOON, "both", both).await;

    let both = async { tokio::join!(open(&alice, id, ECHO), acknowledged(&dialled)) };
    let (opened, _asked) = within(SOON, "the last open", both).await;
    opened.expect("the link lives on");
    assert_eq!(alice.metrics().await.expect("up").dials_started, 1);
    refusal(asked)
}

async fn acknowledged(dialled: &Dialled) -> Asked {
    let mut asked = dialled.stream().await;
    asked.answer(Answer::Ack).await;
    asked
}

#[tokio::test]
async fn an_answer_that_never_comes_ends_the_open_at_its_deadline_and_nothing_else() {
    let ended = asked_of_a_host(ms(1000), async |asked| Some(asked)).await;
    assert_eq!(ended, OpenError::TimedOut { cause: None });
}

#[tokio::test]
async fn a_refusal_ends_the_open_with_its_code_and_nothing_else() {
    let refuse = async |mut asked: Asked| {
        asked.answer(Answer::Refuse(Code::NotAllowed)).await;
        Some(asked)
    };
    assert_eq!(asked_of_a_host(SOON, refuse).await, OpenError::Refused(Code::NotAllowed));
}

#[tokio::test]
async fn a_reset_instead_of_an_answer_ends_the_open_with_its_code_and_nothing_else() {
    let reset = async |mut asked: Asked| {
        asked.send.reset(u32::from(Code::Internal.to_wire()).into()).expect("open");
        Some(asked)
    };
    let failure = Failure::Reset(Code::Internal);
    assert_eq!(asked_of_a_host(SOON, reset).await, OpenError::Failed { failure, cause: None });
}

#[tokio::test]
async fn a_reset_whose_code_promises_that_nothing_was_served_counts_as_a_refusal() {
    let reset = async |mut asked: Asked| {
        asked.send.reset(u32::from(Code::Busy.to_wire()).into()).expect("open");
        Some(asked)
    };
    assert_eq!(asked_of_a_host(SOON, reset).await, OpenError::Refused(Code::Busy));
}

#[tokio::test]
async fn an_end_instead_of_an_answer_ends_the_open_as_malformed_and_nothing_else() {
    let end = async |mut asked: Asked| {
        asked.send.finish().expect("open");
        Some(asked)
    };
    let failure = Failure::Reset(Code::Malformed);
    assert_eq!(asked_of_a_host(SOON, end).await, OpenError::Failed { failure, cause: None });
}

#[tokio::test]
async fn an_unanswered_open_delays_no_other_open_to_the_same_peer() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let first = {
        let (alice, address) = (alice.clone(), address.clone());
        tokio::spawn(async move { alice.open(address, TASK).await })
    };
    let dialled = host.welcomed().await;
    let _unanswered = dialled.stream().await;
    let answering = async { dialled.stream().await.answer(Answer::Ack).await };
    let both = async { tokio::join!(alice.open(address, ECHO), answering) };
    let (second, ()) = within(ms(1000), "the second open", both).await;
    second.expect("opened");
    assert!(!first.is_finished());
}

#[tokio::test]
async fn many_protocols_share_a_link_and_each_stream_reaches_its_own() {
    let (alice, bob) = (node(1).await, node(2).await);
    let names: Vec<ProtocolName> = (0..20)
        .map(|number| ProtocolName::new(format!("letter/{number}")).expect("a valid name"))
        .collect();
    for name in &names {
        let service = Service::stream(|mut stream: Incoming| async move {
            let name = stream.protocol.to_string();
            stream.send.write_all(name.as_bytes()).await?;
            stream.send.finish()?;
            Ok(())
        });
        bob.serve(name.clone(), service).await.expect("a new protocol");
    }
    let mut asks = JoinSet::new();
    for name in names {
        let (alice, address) = (alice.clone(), bob.addr());
        asks.spawn(async move {
            let (_send, mut recv) = alice.open(address, name.clone()).await.expect("opened");
            let said = recv.read_to_end(100).await.expect("received");
            assert_eq!(said, name.to_string().as_bytes());
        });
    }
    within(SOON, "all answers", asks.join_all()).await;
    assert_eq!(alice.metrics().await.expect("up").dials_started, 1);
}

// Eager

#[tokio::test]
async fn an_eager_stream_is_returned_before_the_answer_and_its_payload_needs_none() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let opening = async {
        let (mut send, recv) = alice.open_eager(address, ECHO).await.expect("opened");
        send.write_all(b"early").await.expect("sent");
        (send, recv)
    };
    let listening = async {
        let dialled = host.greeted().await;
        let mut asked = dialled.stream().await;
        assert_eq!(asked.header.mode, StreamMode::Eager);
        let mut early = [0; 5];
        within(SOON, "the payload", asked.receive.read_exact(&mut early)).await.expect("came");
        assert_eq!(early, *b"early");
        (dialled, asked)
    };
    let both = async { tokio::join!(opening, listening) };
    let ((_send, mut recv), (mut dialled, mut asked)) = within(SOON, "both", both).await;

    dialled.welcome().await;
    asked.answer(Answer::Ack).await;
    asked.send.write_all(b"late").await.expect("sent");
    let mut late = [0; 4];
    within(SOON, "the response", recv.read_exact(&mut late)).await.expect("received");
    assert_eq!(late, *b"late");
}

#[tokio::test]
async fn a_refusal_of_an_eager_stream_is_seen_at_the_first_read() {
    let (alice, bob) = (node(1).await, node(2).await);
    let opening = within(SOON, "the open", alice.open_eager(bob.addr(), TASK));
    let (mut send, mut recv) = opening.await.expect("opened");
    // Whether the refusal has come by now does not matter.
    let _ = send.write_all(b"for nobody").await;
    let refused = Err(StreamError::Refused(Code::UnknownProtocol));
    assert_eq!(within(SOON, "the answer", recv.read(&mut [0; 8])).await, refused);
    assert_eq!(within(SOON, "the answer", recv.read_chunk(8)).await.map(|_| Some(0)), refused);
}

#[tokio::test]
async fn the_refusal_of_an_eager_stream_can_be_asked_for_without_reading() {
    let (alice, bob) = (node(1).await, node(2).await);
    let opening = within(SOON, "the open", alice.open_eager(bob.addr(), TASK));
    let (_send, mut recv) = opening.await.expect("opened");
    let refused = Err(StreamError::Refused(Code::UnknownProtocol));
    assert_eq!(within(SOON, "the answer", recv.answered()).await, refused);
}

#[tokio::test]
async fn both_halves_work_as_tokio_streams() {
    let (alice, bob) = (node(1).await, node(2).await);
    let opening = within(SOON, "the open", alice.open_eager(bob.addr(), ECHO));
    let (mut send, mut recv) = opening.await.expect("opened");
    let whole: Vec<u8> = (0..300_000_u32).map(|place| (place % 251) as u8).collect();
    let sending = async {
        AsyncWriteExt::write_all(&mut send, &whole).await.expect("sent");
        send.shutdown().await.expect("finished");
    };
    let mut echoed = Vec::new();
    let receiving = AsyncReadExt::read_to_end(&mut recv, &mut echoed);
    let both = async { tokio::join!(sending, receiving) };
    let ((), received) = within(SOON, "the echo", both).await;
    assert_eq!(received.expect("received"), whole.len());
    assert!(echoed == whole);
}

// Numbers

#[tokio::test]
async fn payload_is_counted_byte_by_byte_at_both_ends() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
    echoes(&mut send, &mut recv, &[7; 1234]).await;
    let (mut eager, mut back) =
        within(SOON, "the open", alice.open_eager(bob.id(), ECHO)).await.expect("opened");
    echoes(&mut eager, &mut back, &[8; 766]).await;
    let (at_alice, at_bob) = (protocol(&alice, "echo/1").await, protocol(&bob, "echo/1").await);
    assert_eq!((at_alice.opened, at_alice.served), (2, 0));
    assert_eq!((at_alice.bytes_sent, at_alice.bytes_received), (2000, 2000));
    assert_eq!((at_bob.opened, at_bob.served, at_bob.active), (0, 2, 2));
    assert_eq!((at_bob.bytes_sent, at_bob.bytes_received), (2000, 2000));
}

#[tokio::test]
async fn requests_and_responses_are_counted_alike_at_both_ends() {
    let (alice, bob) = (node(1).await, node(2).await);
    connect(&alice, &bob).await;
    let (at_alice, at_bob) = (protocol(&alice, "next/1").await, protocol(&bob, "next/1").await);
    assert_eq!(at_alice.bytes_sent, at_bob.bytes_received);
    assert_eq!(at_alice.bytes_received, at_bob.bytes_sent);
    // One is a byte in postcard, and so is two; the length in front of each has four.
    assert_eq!((at_alice.bytes_sent, at_alice.bytes_received), (5, 5));
}

#[tokio::test]
async fn streams_being_served_are_counted_until_their_handlers_end() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
    let inbound = async || bob.metrics().await.expect("up").streams_inbound;
    assert_eq!((inbound().await, protocol(&bob, "echo/1").await.active), (1, 1));
    send.finish().expect("finished once");
    assert_eq!(within(SOON, "the end", recv.read(&mut [0])).await, Ok(None));
    eventually(SOON, "the handler is gone", async || {
        (inbound().await, protocol(&bob, "echo/1").await.active) == (0, 0)
    })
    .await;
}

// Ends

#[tokio::test]
async fn a_sender_that_is_dropped_unfinished_is_no_end_of_the_stream_but_a_reset() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut streams = serve_here(&bob).await;
    let (mut send, _recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut at_bob = given(&mut streams).await;
    send.write_all(b"half").await.expect("sent");
    let mut half = [0; 4];
    within(SOON, "the half", at_bob.recv.read_exact(&mut half)).await.expect("received");
    drop(send);
    let end = within(SOON, "the end", at_bob.recv.read(&mut half)).await;
    assert_eq!(end, Err(StreamError::Reset(Code::Cancelled)));
}

/// What the opener reads after the handler took one byte and then ended like this.
async fn after_one_byte<Fut>(
    end: impl Fn(SendStream) -> Fut + Copy + Send + Sync + 'static,
) -> Result<Vec<u8>, StreamError>
where
    Fut: Future<Output = Result<(), HandlerError>> + Send,
{
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::stream(move |mut stream: Incoming| async move {
        stream.recv.read_exact(&mut [0]).await?;
        end(stream.send).await
    });
    bob.serve(TASK, service).await.expect("a new protocol");
    let (mut send, mut recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    send.write_all(b"x").await.expect("sent");
    within(SOON, "the end", recv.read_to_end(100)).await
}

#[tokio::test]
async fn a_handler_that_returns_with_its_sender_unfinished_resets_it_as_cancelled() {
    let leave = |mut send: SendStream| async move {
        send.write_all(b"half").await?;
        Ok(())
    };
    assert_eq!(after_one_byte(leave).await, Err(StreamError::Reset(Code::Cancelled)));
}

#[tokio::test]
async fn a_handler_that_fails_resets_its_stream_with_a_code_of_its_own() {
    let fail = |_send| async { Err(HandlerError::new("not today")) };
    assert_eq!(after_one_byte(fail).await, Err(StreamError::Reset(Code::HandlerFailed)));
}

#[tokio::test]
async fn a_handler_that_panics_resets_its_stream_with_a_code_of_its_own() {
    let panic = |_send| async { panic!("on purpose") };
    assert_eq!(after_one_byte(panic).await, Err(StreamError::Reset(Code::HandlerPanicked)));
}

#[tokio::test]
async fn the_code_of_a_handler_that_fails_at_once_is_seen_by_the_open_or_by_the_first_read() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::stream(|_stream| async { Err(HandlerError::new("not today")) });
    bob.serve(TASK, service).await.expect("a new protocol");
    // A reset takes along what was not delivered yet, the ack included.
    match open(&alice, bob.addr(), TASK).await {
        Ok((_send, mut recv)) => {
            let end = within(SOON, "the end", recv.read(&mut [0])).await;
            assert_eq!(end, Err(StreamError::Reset(Code::HandlerFailed)));
        }
        Err(error) => {
            let failure = Failure::Reset(Code::HandlerFailed);
            assert_eq!(error, OpenError::Failed { failure, cause: None });
        }
    }
}

#[tokio::test]
async fn a_handler_that_finishes_its_answer_and_then_fails_has_answered() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::stream(|mut stream: Incoming| async move {
        stream.send.write_all(b"whole").await?;
        stream.send.finish()?;
        Err(HandlerError::new("too late"))
    });
    bob.serve(TASK, service).await.expect("a new protocol");
    let (_send, mut recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    assert_eq!(within(SOON, "the end", recv.read_to_end(100)).await, Ok(b"whole".to_vec()));
}

#[tokio::test]
async fn a_reader_that_is_dropped_stops_the_other_side_s_writes() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut streams = serve_here(&bob).await;
    let (_send, recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut at_bob = given(&mut streams).await;
    drop(recv);
    let stopped = within(SOON, "the stop", async {
        loop {
            if let Err(error) = at_bob.send.write_all(&[0; 1000]).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(stopped.await, StreamError::Reset(Code::Cancelled));
}

#[tokio::test]
async fn a_code_of_the_app_s_choice_reaches_the_other_side() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut streams = serve_here(&bob).await;
    let (mut send, mut recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut at_bob = given(&mut streams).await;
    send.reset(Code::TooLarge);
    recv.stop(Code::Idle);
    let end = within(SOON, "the end", at_bob.recv.read(&mut [0])).await;
    assert_eq!(end, Err(StreamError::Reset(Code::TooLarge)));
    let stopped = within(SOON, "the stop", at_bob.send.acknowledged()).await;
    assert_eq!(stopped, Err(StreamError::Reset(Code::Idle)));
}

#[tokio::test]
async fn more_than_the_reader_s_limit_is_an_error_and_stops_the_stream() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
    send.write_all(&[1; 101]).await.expect("sent");
    send.finish().expect("finished once");
    let end = within(SOON, "the end", recv.read_to_end(100)).await;
    assert_eq!(end, Err(StreamError::TooLarge));
}

#[tokio::test]
async fn a_writer_waits_for_a_reader_that_does_not_read() {
    let window = 100_000;
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.stream_window = window).await;
    let mut streams = serve_here(&bob).await;
    let (mut send, _recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut at_bob = given(&mut streams).await;
    let whole = vec![5; 3 * usize::try_from(window).expect("small")];
    {
        let mut writing = std::pin::pin!(send.write_all(&whole));
        tokio::time::timeout(ms(300), &mut writing).await.expect_err("the window is full");
        let reading = async {
            let mut received = vec![0; whole.len()];
            at_bob.recv.read_exact(&mut received).await.expect("received");
            received
        };
        let both = async { tokio::join!(writing, reading) };
        let (written, received) = within(SOON, "the rest", both).await;
        written.expect("sent");
        assert!(received == whole);
    }
}

// Who and how many

#[tokio::test]
async fn a_protocol_out_of_service_is_refused_and_its_running_streams_go_on() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
    assert_eq!(bob.unserve(&ECHO), Ok(true));
    assert_eq!(bob.unserve(&ECHO), Ok(false));
    let refused = refusal(open(&alice, bob.id(), ECHO).await);
    assert_eq!(refused, OpenError::Refused(Code::UnknownProtocol));
    echoes(&mut send, &mut recv, b"still here").await;
    bob.serve(ECHO, echo()).await.expect("free again");
    open(&alice, bob.id(), ECHO).await.expect("opened");
}

#[tokio::test]
async fn a_stream_beyond_a_protocol_s_concurrency_is_refused_as_busy_until_one_ends() {
    let (alice, bob) = (node(1).await, node(2).await);
    bob.serve(TASK, echo().concurrency(2)).await.expect("a new protocol");
    let (mut send, mut recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let _second = open(&alice, bob.id(), TASK).await.expect("opened");
    let refused = refusal(open(&alice, bob.id(), TASK).await);
    assert_eq!(refused, OpenError::Refused(Code::Busy));
    open(&alice, bob.id(), ECHO).await.expect("another protocol has room");
    send.finish().expect("finished once");
    assert_eq!(within(SOON, "the end", recv.read(&mut [0])).await, Ok(None));
    eventually(SOON, "room for one more", async || open(&alice, bob.id(), TASK).await.is_ok())
        .await;
    assert!(protocol(&bob, "task/1").await.refused >= 1);
}

#[tokio::test]
async fn a_protocol_s_door_lets_some_peers_in_and_refuses_others_on_their_streams_alone() {
    let (alice, bob, carol) = (node(1).await, node(2).await, node(3).await);
    let friend = alice.id();
    let service = echo().admit(move |peer| *peer == friend);
    bob.serve(TASK, service).await.expect("a new protocol");
    open(&alice, bob.addr(), TASK).await.expect("opened");
    let refused = refusal(open(&carol, bob.addr(), TASK).await);
    assert_eq!(refused, OpenError::Refused(Code::NotAllowed));
    open(&carol, bob.id(), ECHO).await.expect("another protocol has no door");
    assert_eq!(carol.metrics().await.expect("up").dials_started, 1);
}

#[tokio::test]
async fn a_stream_beyond_what_a_node_serves_of_all_its_peers_is_refused_as_busy_on_that_stream_alone()
 {
    let alice = node_with(1, |limits| limits.streams_inbound = 2).await;
    let (bob, carol) = (node(2).await, node(3).await);
    let (mut send, mut recv) = open(&bob, alice.addr(), ECHO).await.expect("opened");
    let (mut other_send, mut other_recv) = open(&carol, alice.addr(), ECHO).await.expect("opened");
    for node in [&bob, &carol] {
        let refused = refusal(open(node, alice.id(), ECHO).await);
        assert_eq!(refused, OpenError::Refused(Code::Busy));
    }
    let counted = alice.metrics().await.expect("up");
    assert_eq!((counted.streams_inbound, counted.streams_refused["busy"]), (2, 2));
    echoes(&mut send, &mut recv, b"still here").await;
    echoes(&mut other_send, &mut other_recv, b"so am I").await;
    // What the node opens itself takes none of these places.
    let (mut own_send, mut own_recv) = open(&alice, bob.id(), ECHO).await.expect("opened");
    echoes(&mut own_send, &mut own_recv, b"and I").await;

    drop((send, recv));
    eventually(SOON, "room for one more", async || open(&carol, alice.id(), ECHO).await.is_ok())
        .await;
    for node in [&bob, &carol] {
        assert_eq!(node.metrics().await.expect("up").dials_started, 1);
    }
}

// Priority

#[tokio::test]
async fn the_bytes_of_a_stream_that_goes_first_overtake_those_of_a_transfer_that_can_wait() {
    // As much of either: streams of one priority take turns, and would end together.
    const SIZE: usize = 512 * 1024;
    let patient = |limits: &mut kinfolk::Limits| limits.idle_timeout = 3 * SOON;
    let (alice, bob) = (node_with(1, patient).await, node_with(2, patient).await);
    let pair = relay(1, &alice, &bob);
    let mut streams = serve_here(&bob).await;
    let mut opened = Vec::new();
    for priority in [Priority::Bulk, Priority::Control] {
        let options = Options::new().priority(priority);
        let opening = alice.open_with(bob.id(), TASK, options);
        let (send, recv) = within(SOON, "the open", opening).await.expect("opened");
        opened.push((send, recv, given(&mut streams).await));
    }
    let (mut urgent, _urgent_recv, urgent_there) = opened.pop().expect("two");
    let (mut bulk, _bulk_recv, bulk_there) = opened.pop().expect("two");

    // Nothing gets through until both have queued everything, the one that can wait first.
    pair.partition();
    within(SOON, "the bulk is queued", bulk.write_all(&[1; SIZE])).await.expect("written");
    within(SOON, "the rest is queued", urgent.write_all(&[2; SIZE])).await.expect("written");
    bulk.finish().expect("finished once");
    urgent.finish().expect("finished once");
    // A second or so for each, with little under way at once.
    let narrow =
        Condition { rate_bytes_per_s: Some(1024 * 1024), queue: 64, ..Condition::default() };
    pair.set(Direction::Both, narrow);

    let bulk_read = AtomicUsize::new(0);
    let urgent_first = async {
        let mut read = 0;
        let mut recv = urgent_there.recv;
        while let Some(chunk) = recv.read_chunk(SIZE).await.expect("nothing is lost") {
            read += chunk.len();
        }
        (read, bulk_read.load(Ordering::Relaxed))
    };
    let bulk_later = async {
        let mut recv = bulk_there.recv;
        while let Some(chunk) = recv.read_chunk(SIZE).await.expect("nothing is lost") {
            bulk_read.fetch_add(chunk.len(), Ordering::Relaxed);
        }
    };
    let both = async { tokio::join!(urgent_first, bulk_later) };
    let ((urgent, bulk_by_then), ()) = within(6 * SOON, "all bytes", both).await;
    assert_eq!((urgent, bulk_read.load(Ordering::Relaxed)), (SIZE, SIZE));
    // What was in flight before the other stream had anything to send, and what is on its way behind it.
    assert!(bulk_by_then < SIZE / 2, "{bulk_by_then} bytes of the transfer came first");
}

// The warm path

#[tokio::test]
async fn a_warm_open_and_a_warm_call_pass_by_a_manager_that_stalls() {
    let (alice, bob) = (node(1).await, node(2).await);
    connect(&alice, &bob).await;
    for node in [&alice, &bob] {
        node.inject(Victim::PeerManager, Crash::Stall(Duration::from_secs(600)));
    }
    eventually(SOON, "the manager answers no more", async || {
        tokio::time::timeout(ms(50), alice.metrics()).await.is_err()
    })
    .await;
    let (mut send, mut recv) = open(&alice, bob.id(), ECHO).await.expect("opened");
    echoes(&mut send, &mut recv, b"x").await;
    let call = alice.call::<_, u64>(bob.id(), NEXT, &1_u64);
    assert_eq!(within(SOON, "an answer", call).await, Ok(2));
}

#[tokio::test]
async fn a_burst_of_streams_is_served_however_few_may_be_negotiated_at_once() {
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.negotiating_per_peer = 8).await;
    connect(&alice, &bob).await;
    let mut calls = JoinSet::new();
    for number in 0..300_u64 {
        let (alice, bob) = (alice.clone(), bob.id());
        calls.spawn(async move { alice.call::<_, u64>(bob, NEXT, &number).await });
    }
    let answers = within(SOON, "all answers", calls.join_all()).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}

#[tokio::test]
async fn a_sender_that_outlives_its_handler_and_is_dropped_unfinished_is_no_clean_end() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (pass_on, mut passed_on) = mpsc::unbounded_channel();
    let service = Service::stream(move |stream| {
        let _ = pass_on.send(stream.send);
        async { Ok(()) }
    });
    bob.serve(TASK, service).await.expect("a new protocol");
    let (_send, mut recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut send = within(SOON, "the sender", passed_on.recv()).await.expect("passed on");
    eventually(SOON, "the handler has returned", async || {
        bob.metrics().await.expect("up").protocols["task/1"].active == 0
    })
    .await;
    send.write_all(b"half").await.expect("the stream is open");
    drop(send);
    let end = within(SOON, "the end", recv.read_to_end(100)).await;
    assert_eq!(end, Err(StreamError::Reset(Code::Cancelled)));
}

#[tokio::test]
async fn more_streams_at_once_than_the_peer_allows_wait_and_none_is_lost() {
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.streams_per_peer = 10).await;
    let mut calls = JoinSet::new();
    for number in 0..200_u64 {
        let (alice, address) = (alice.clone(), bob.addr());
        calls.spawn(async move { alice.call::<_, u64>(address, NEXT, &number).await });
    }
    let answers = within(SOON, "all answers", calls.join_all()).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}

/// A host is only here to show what the wire looks like to an opener that gives up.
#[tokio::test]
async fn an_eager_stream_that_is_dropped_is_reset_and_stopped_as_cancelled() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let opening = async {
        drop(alice.open_eager(address, ECHO).await.expect("opened"));
    };
    let listening = async {
        let dialled: Dialled = host.welcomed().await;
        let stream = within(SOON, "a stream", dialled.connection.accept_bi()).await;
        let (send, mut receive) = stream.expect("the connection is up");
        let end = within(SOON, "the reset", async {
            loop {
                match receive.read_chunk(100).await {
                    Ok(Some(_)) => {}
                    end => return end.map(|_| ()),
                }
            }
        });
        (end.await, within(SOON, "the stop", send.stopped()).await)
    };
    let both = async { tokio::join!(opening, listening) };
    let ((), (reset, stopped)) = within(SOON, "both", both).await;
    let cancelled = u32::from(Code::Cancelled.to_wire()).into();
    assert_eq!(reset, Err(ReadError::Reset(cancelled)));
    assert_eq!(stopped.expect("the connection is up"), Some(cancelled));
}
