//! Handlers of the app.

use kinfolk::error::{CallError, HandlerError, OpenError, StreamError};
use kinfolk::{Code, Failure, NodeEvent, Service};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{connect, link, node};
use kinfolk_tests::support::wait::within;

use crate::scene::{BROKEN, SOON, next};

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
