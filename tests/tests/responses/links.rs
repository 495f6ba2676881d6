//! Links that are lost, or drain, under responses.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use kinfolk::error::{CallError, OpenError, StreamError};
use kinfolk::{Code, Options, Service};
use kinfolk_core::wire::{Answer, Control, Goodbye};
use kinfolk_tests::support::guest::hear;
use kinfolk_tests::support::host::{Dialled, Host};
use kinfolk_tests::support::node::{Mortal, builder, node, node_with};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;

use crate::scene::*;

#[tokio::test]
async fn responses_of_a_peer_that_dies_are_cut_and_not_over() {
    let alice = node_with(1, |limits| limits.idle_timeout = ms(800)).await;
    let bob = Mortal::spawn(builder(2)).await;
    let mut told = serve_never_ending(&bob.node).await;
    let mut responses = ask(&alice, &bob.node, 2).await;
    assert_eq!(next(&mut responses).await, Ok(Some(0)));
    hears(&mut told, "came").await;
    bob.kill().await;
    assert_eq!(rest(&mut responses).await, (1, cut(StreamError::LinkLost)));
}

#[tokio::test]
async fn responses_that_come_while_the_link_drains_come_to_their_end() {
    for at_caller in [true, false] {
        let (alice, bob) = (node(1).await, node(2).await);
        let (make, made) = mpsc::unbounded_channel();
        let made = Arc::new(tokio::sync::Mutex::new(made));
        let service = Service::call_stream(move |_peer, (): ()| {
            stream::unfold(Arc::clone(&made), |made| async move {
                let number: u64 = made.lock().await.recv().await?;
                Some((Ok(number), made))
            })
        });
        bob.serve(COUNT, service).await.expect("a new protocol");
        let asked = alice.call_stream::<_, u64>(bob.addr(), COUNT, &());
        let mut responses = within(SOON, "an answer", asked).await.expect("taken");
        let (ender, other) = if at_caller { (&alice, &bob) } else { (&bob, &alice) };
        ender.disconnect(other.id()).await.expect("up");
        eventually(SOON, "it drains", async || {
            ender.metrics().await.expect("up").sessions.closing == 1
        })
        .await;
        make.send(7).expect("the handler lives");
        assert_eq!(next(&mut responses).await, Ok(Some(7)));
        drop(make);
        assert_eq!(next(&mut responses).await, Ok(None));
    }
}

#[tokio::test]
async fn responses_that_are_not_over_by_the_drain_deadline_are_cut_with_its_code() {
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.drain_deadline = ms(500)).await;
    let mut told = serve_never_ending(&bob).await;
    let mut responses = ask(&alice, &bob, 1).await;
    assert_eq!(next(&mut responses).await, Ok(Some(0)));
    bob.disconnect(alice.id()).await.expect("up");
    let cut_off = cut(StreamError::LinkClosed(Code::DrainDeadline));
    assert_eq!(next(&mut responses).await, cut_off);
    hears(&mut told, "came").await;
    hears(&mut told, "dropped").await;
}

/// Lets a host take a request, and then end the link like this; the outcome, and whether the request came again.
async fn after_a_request(
    idempotent: bool,
    end: impl AsyncFnOnce(&mut Dialled),
) -> (Result<(), CallError>, bool) {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let mut options = Options::new().deadline(Duration::from_secs(4));
    if idempotent {
        options = options.idempotent();
    }
    let address = host.addr();
    let answering = async {
        let mut first = host.welcomed().await;
        let _asked = first.stream().await;
        end(&mut first).await;
        let again = host.welcomed().await;
        again.stream().await.answer(Answer::Ack).await;
        std::future::pending::<()>().await;
    };
    let asking = alice.call_stream_with::<_, u64>(address, COUNT, &1_u64, options);
    let outcome = within(SOON, "an outcome", async {
        tokio::select! {
            outcome = asking => outcome.map(drop),
            () = answering => unreachable!("it never ends"),
        }
    });
    let outcome = outcome.await;
    let dials = alice.metrics().await.expect("up").dials_started;
    (outcome, dials > 1)
}

#[tokio::test]
async fn a_request_whose_link_is_lost_before_its_answer_is_sent_again_only_if_that_is_safe() {
    let lose = async |dialled: &mut Dialled| dialled.close(Code::Internal);
    let unknown = Err(CallError::Intent(OpenError::Unknown));
    assert_eq!(after_a_request(false, lose).await, (unknown, false));
    assert_eq!(after_a_request(true, lose).await, (Ok(()), true));
    let leave = async |dialled: &mut Dialled| {
        dialled.say(&[Control::Goodbye(Goodbye::new(Code::Ok, 0, SOON))]).await;
        let heard = hear(&mut dialled.receive).await;
        assert!(matches!(heard, Some(Control::Goodbye(_))), "{heard:?}");
        dialled.close(Code::Ok);
    };
    assert_eq!(after_a_request(false, leave).await, (Ok(()), true));
}
