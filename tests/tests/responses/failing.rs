//! How handlers and requests fail, and what came before.

use futures_util::{StreamExt, stream};
use kinfolk::error::{CallError, HandlerError, OpenError, ResponsesError, StreamError};
use kinfolk::{Bytes, Code, NodeEvent, Options, Service};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{ECHO, NEXT, node, node_with};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;

use crate::scene::*;

#[tokio::test]
async fn what_a_handler_made_before_it_failed_comes_before_its_code() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call_stream(|_peer, to: u64| {
        stream::iter((0..to).map(Ok).chain([Err(HandlerError::new("not more"))]))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let mut log = EventLog::of(&bob).await;
    // More than the windows hold: the code has to wait for its turn.
    let mut responses = ask(&alice, &bob, 1_000_000).await;
    let failed = cut(StreamError::Reset(Code::HandlerFailed));
    assert_eq!(rest(&mut responses).await, (1_000_000, failed.clone()));
    assert_eq!(next(&mut responses).await.map(|_| ()), failed);
    let is_told = |event: &NodeEvent| matches!(event, NodeEvent::HandlerFailed { reason, .. } if reason == "not more");
    log.next(SOON, "the event", is_told).await;
    assert_eq!(bob.metrics().await.expect("up").protocols["count/1"].handler_failures, 1);
}

#[tokio::test]
async fn what_a_handler_made_before_it_panicked_comes_before_its_code() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call_stream(|_peer, to: u64| {
        assert_ne!(to, 0, "on purpose");
        stream::iter(0..=to).map(move |n| {
            assert_ne!(n, to, "on purpose");
            Ok(n)
        })
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let panicked = cut(StreamError::Reset(Code::HandlerPanicked));
    assert_eq!(rest(&mut ask(&alice, &bob, 3).await).await, (3, panicked.clone()));
    assert_eq!(rest(&mut ask(&alice, &bob, 0).await).await, (0, panicked));
    assert_eq!(bob.metrics().await.expect("up").protocols["count/1"].handler_panics, 2);
}

#[tokio::test]
async fn a_response_above_the_serving_side_s_limit_is_a_failure_of_its_handler() {
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.call_bytes = 1000).await;
    let service = Service::call_stream_bytes(|_peer, _request: Bytes| {
        stream::iter([1000, 1001, 1].map(|size| Ok(vec![0; size])))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let asked = alice.call_stream_bytes(bob.addr(), COUNT, b"", Options::new());
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    let failed = cut(StreamError::Reset(Code::HandlerFailed));
    assert_eq!(rest(&mut responses).await, (1, failed));
}

#[tokio::test]
async fn a_response_above_the_caller_s_limit_ends_the_call_and_drops_the_handler() {
    let alice = node_with(1, |limits| limits.call_bytes = 1000).await;
    let bob = node(2).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let service = Service::call_stream_bytes(move |_peer, _request: Bytes| {
        let told = Told(tell.clone());
        stream::iter([1000, 1001].map(|size| Ok(vec![0; size]))).chain(stream::once(async move {
            let _told = told;
            std::future::pending().await
        }))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let asked = alice.call_stream_bytes(bob.addr(), COUNT, b"", Options::new());
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    assert_eq!(rest(&mut responses).await, (1, cut(StreamError::TooLarge)));
    hears(&mut told, "dropped").await;
}

#[tokio::test]
async fn a_response_of_another_type_ends_the_call_and_drops_the_handler() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut told = serve_never_ending(&bob).await;
    let asked = alice.call_stream::<_, (u64, String)>(bob.addr(), COUNT, &3_u64);
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    let failed = next(&mut responses).await;
    assert!(matches!(failed, Err(ResponsesError::Response(_))), "{failed:?}");
    hears(&mut told, "came").await;
    hears(&mut told, "dropped").await;
}

#[tokio::test]
async fn a_request_of_another_type_fails_at_the_peer_s_handler() {
    let (alice, bob) = (node(1).await, node(2).await);
    serve_count(&bob).await;
    let asked = alice.call_stream::<_, u64>(bob.addr(), COUNT, &());
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    let failed = cut(StreamError::Reset(Code::HandlerFailed));
    assert_eq!(rest(&mut responses).await, (0, failed));
}

#[tokio::test]
async fn a_service_of_one_kind_asked_in_another_mode_refuses_as_a_violation() {
    let (alice, bob) = (node(1).await, node(2).await);
    serve_count(&bob).await;
    let refused = OpenError::Refused(Code::Violation);
    for protocol in [ECHO, NEXT] {
        let asked = alice.call_stream::<_, u64>(bob.addr(), protocol, &1_u64);
        let outcome = within(SOON, "an outcome", asked).await.expect_err("of another kind");
        assert_eq!(outcome, CallError::Intent(refused.clone()));
    }
    let called = alice.call::<_, u64>(bob.addr(), COUNT, &1_u64);
    let called = within(SOON, "an outcome", called).await;
    assert_eq!(called, Err(CallError::Intent(refused.clone())));
    let opened = within(SOON, "an outcome", alice.open(bob.addr(), COUNT)).await;
    assert_eq!(opened.expect_err("of another kind"), refused);
}

#[tokio::test]
async fn a_service_without_a_place_refuses_and_has_one_again_when_a_stream_is_over() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call_stream(|_peer, to: u64| {
        stream::iter((0..to).map(Ok)).chain(stream::pending())
    });
    bob.serve(COUNT, service.concurrency(1)).await.expect("a new protocol");
    let mut first = ask(&alice, &bob, 1).await;
    assert_eq!(next(&mut first).await, Ok(Some(0)));
    let second = alice.call_stream::<_, u64>(bob.addr(), COUNT, &1_u64);
    let second = within(SOON, "an outcome", second).await.expect_err("no place");
    assert_eq!(second, CallError::Intent(OpenError::Refused(Code::Busy)));
    drop(first);
    eventually(SOON, "a place", async || {
        alice.call_stream::<_, u64>(bob.addr(), COUNT, &1_u64).await.is_ok()
    })
    .await;
}
