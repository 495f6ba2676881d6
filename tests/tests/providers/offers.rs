//! What a node offers, and that a provider is found wherever it is and whenever it comes.

use std::time::{Duration, Instant};

use kinfolk::error::{CallError, OfferError, OpenError, ServeError};
use kinfolk::{NodeMessage, Offer, Options, ProtocolName, Service};
use kinfolk_tests::support::node::node;
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_offered_protocol_is_in_the_record_for_as_long_as_it_is_served() {
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    serve(&bob, named(2).0).await;
    knows_of(&hub, 1).await;
    assert_eq!(offering_task(&hub), [bob.id()]);
    assert!(bob.unserve(&TASK).expect("up"));
    knows_of(&hub, 0).await;
    serve(&bob, named(2).0).await;
    knows_of(&hub, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protocol_that_is_served_and_not_offered_is_in_no_record() {
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    let quiet = Service::call(|_peer, number: u64| async move { Ok(number) });
    bob.serve(ProtocolName::from_static("quiet/1"), quiet).await.expect("a new protocol");
    serve(&bob, named(2).0).await;
    knows_of(&hub, 1).await;
    let entry = hub.catalog().get(&bob.id()).cloned().expect("it is known");
    assert!(entry.record().offers().eq([Offer::protocol(&TASK)]));
}

#[tokio::test]
async fn an_offer_for_which_the_record_has_no_room_is_an_error_and_nothing_is_served() {
    let alice = alone(1).await;
    let named_after = |n: usize| ProtocolName::new(format!("task/{n}")).expect("a name");
    for n in 0..12 {
        alice.serve(named_after(n), named(1).0).await.expect("room for it");
    }
    let full = alice.serve(named_after(12), named(1).0).await;
    assert!(matches!(full, Err(ServeError::Offer(OfferError::Full(_)))), "{full:?}");
    assert!(!alice.unserve(&named_after(12)).expect("up"));
    assert!(alice.unserve(&named_after(3)).expect("up"));
    alice.serve(named_after(12), named(1).0).await.expect("room for it again");
    // One that is served already takes nobody's offer away.
    let again = alice.serve(named_after(12), named(1).0).await;
    assert!(matches!(again, Err(ServeError::AlreadyServed(_))), "{again:?}");
    let full = alice.serve(named_after(13), named(1).0).await;
    assert!(matches!(full, Err(ServeError::Offer(OfferError::Full(_)))), "{full:?}");
}

#[tokio::test]
async fn without_discovery_there_is_nothing_to_offer_and_nobody_to_ask() {
    let alice = node(1).await;
    let refused = alice.serve(TASK, named(1).0).await;
    assert_eq!(refused, Err(ServeError::Offer(OfferError::NoDiscovery)));
    assert!(!alice.unserve(&TASK).expect("up"));
    let begun = Instant::now();
    assert_eq!(call(&alice, Options::new()).await, no_provider());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_was_never_met_is_found_and_asked() {
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    serve(&bob, named(2).0).await;
    let alice = from(3, hub.addr()).await;
    assert_eq!(call(&alice, Options::new()).await, Ok(2));
    let ended = alice.metrics().await.expect("up").intents_ended;
    assert_eq!(ended["done"], 1, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_a_provider_to_appear() {
    let hub = alone(1).await;
    let (alice, bob) = (from(2, hub.addr()).await, from(3, hub.addr()).await);
    let waiting = calling(&alice, Options::new());
    eventually(SOON, "all are known", async || alice.catalog().len() == 2).await;
    assert!(!waiting.is_finished());
    serve(&bob, named(3).0).await;
    assert_eq!(outcome_of(waiting).await, Ok(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_provider_a_call_ends_at_its_deadline() {
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    serve(&bob, named(2).0).await;
    knows_of(&hub, 1).await;
    // Who has no neighbour says farewell to nobody.
    eventually(SOON, "neighbours", async || {
        bob.metrics().await.expect("up").discovery.neighbours == 1
    })
    .await;
    // One that leaves is none any more, and this node itself never is.
    serve(&hub, named(1).0).await;
    bob.shutdown().await;
    knows_of(&hub, 0).await;
    let begun = Instant::now();
    let options = Options::new().deadline(ms(700));
    assert_eq!(call(&hub, options).await, no_provider());
    assert!((ms(700)..ms(3000)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_is_asked_for_by_message() {
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    serve(&bob, named(2).0).await;
    let (reply, answer) = ractor::concurrency::oneshot();
    let options = Options::new();
    let message = NodeMessage::CallAny(TASK, vec![1].into(), options, reply.into());
    hub.actor().send_message(message).expect("up");
    let answer = within(SOON, "an answer", answer).await.expect("one answer");
    assert_eq!(answer.expect("answered")[..], [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_ends_when_its_node_drains_or_ends() {
    for is_drained in [true, false] {
        let alice = alone(1).await;
        let waiting = calling(&alice, Options::new());
        eventually(SOON, "it waits", async || !waiting.is_finished()).await;
        if is_drained {
            alice.drain().await.expect("up");
            assert_eq!(outcome_of(waiting).await, intent(OpenError::ShuttingDown));
        } else {
            alice.shutdown().await;
            let outcome = outcome_of(waiting).await;
            let is_over = matches!(
                outcome,
                Err(CallError::Intent(OpenError::ShuttingDown | OpenError::Closed(_)))
            );
            assert!(is_over, "{outcome:?}");
        }
    }
}
