//! Callers and peers that give up, and what lets go then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream;
use kinfolk::error::{CallError, OpenError, ResponsesError};
use kinfolk::{Code, Options, Service};
use kinfolk_core::wire::StreamMode;
use kinfolk_tests::support::host::Host;
use kinfolk_tests::support::node::{node, quick_limits};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;

use crate::scene::*;

#[tokio::test]
async fn responses_that_are_dropped_drop_the_handler_of_the_peer_which_waits() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut told = serve_never_ending(&bob).await;
    let mut responses = ask(&alice, &bob, 3).await;
    assert_eq!(next(&mut responses).await, Ok(Some(0)));
    hears(&mut told, "came").await;
    drop(responses);
    hears(&mut told, "dropped").await;
}

#[tokio::test]
async fn responses_that_are_dropped_drop_the_handler_of_the_peer_whose_window_is_full() {
    let (alice, bob) = (node(1).await, node(2).await);
    let made = Arc::new(AtomicU64::new(0));
    let (tell, mut told) = mpsc::unbounded_channel();
    let counting = Arc::clone(&made);
    let service = Service::call_stream(move |_peer, (): ()| {
        let (made, told) = (Arc::clone(&counting), Told(tell.clone()));
        stream::repeat_with(move || {
            let _told = &told;
            made.fetch_add(1, Ordering::Relaxed);
            Ok([7_u8; 32])
        })
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let asked = alice.call_stream::<_, [u8; 32]>(bob.addr(), COUNT, &());
    let responses = within(SOON, "an answer", asked).await.expect("taken");
    let window = u64::from(quick_limits().stream_window);
    eventually(SOON, "the window is full", async || made.load(Ordering::Relaxed) * 36 >= window)
        .await;
    drop(responses);
    hears(&mut told, "dropped").await;
}

#[tokio::test]
async fn a_call_that_is_given_up_before_its_answer_drops_the_handler_of_the_peer() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let calling = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.call_stream::<_, u64>(address, COUNT, &1_u64).await })
    };
    let dialled = host.welcomed().await;
    let mut asked = dialled.stream().await;
    assert_eq!(asked.header.mode, StreamMode::CallStream);
    calling.abort();
    let stopped = within(SOON, "the stop", asked.send.stopped()).await.expect("connected");
    assert_eq!(stopped.map(u64::from), Some(Code::Cancelled.to_wire().into()));
    asked.receive.read_to_end(100).await.expect("the request came whole");
    assert_eq!(alice.metrics().await.expect("up").intents_ended["cancelled"], 1);
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_given_up_at_the_deadline() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let options = Options::new().deadline(ms(500));
    let asking = alice.call_stream_with::<_, u64>(address, COUNT, &1_u64, options);
    let silent = async {
        let dialled = host.welcomed().await;
        let _asked = dialled.stream().await;
        std::future::pending::<()>().await;
    };
    let outcome = within(SOON, "an outcome", async {
        tokio::select! {
            outcome = asking => outcome,
            () = silent => unreachable!("it never ends"),
        }
    });
    let outcome = outcome.await.expect_err("no answer");
    assert!(matches!(outcome, CallError::Intent(OpenError::TimedOut { .. })), "{outcome:?}");
}

#[tokio::test]
async fn the_time_for_all_responses_is_over_for_the_request_too() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let options = Options::new().total(ms(500));
    let begun = std::time::Instant::now();
    let asking = alice.call_stream_with::<_, u64>(address, COUNT, &1_u64, options);
    let silent = async {
        let dialled = host.welcomed().await;
        let _asked = dialled.stream().await;
        std::future::pending::<()>().await;
    };
    let outcome = within(SOON * 2, "an outcome", async {
        tokio::select! {
            outcome = asking => outcome,
            () = silent => unreachable!("it never ends"),
        }
    });
    let outcome = outcome.await.expect_err("no answer");
    assert!(matches!(outcome, CallError::Intent(OpenError::TimedOut { .. })), "{outcome:?}");
    // The deadline of the limits is longer.
    assert!(begun.elapsed() < quick_limits().intent_deadline / 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn the_deadline_is_over_with_the_answer_and_the_time_for_all_responses_is_not() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut told = serve_never_ending(&bob).await;
    let options = Options::new().deadline(Duration::from_secs(2)).total(ms(2500));
    let asked = alice.call_stream_with::<_, u64>(bob.addr(), COUNT, &1_u64, options);
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    assert_eq!(next(&mut responses).await, Ok(Some(0)));
    let begun = std::time::Instant::now();
    assert_eq!(next(&mut responses).await, Err(ResponsesError::TimedOut));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    hears(&mut told, "came").await;
    hears(&mut told, "dropped").await;
}
