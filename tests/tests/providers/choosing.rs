//! Which provider is asked: idle before busy, those that want this node, those that are there before those that somebody made up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kinfolk::error::OpenError;
use kinfolk::{Code, Options, SecretKey, Service};
use kinfolk_tests::support::node::{connect, down, never, quick_limits, serving, watching};
use kinfolk_tests::support::stranger::Nobody;
use kinfolk_tests::support::teller::{key, offering};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::scene::*;

#[tokio::test(flavor = "multi_thread")]
async fn calls_at_once_are_spread_over_equal_providers() {
    const CALLS: usize = 60;
    let hub = alone(1).await;
    let (here, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let mut counts = Vec::new();
    let mut providers = Vec::new();
    for key in 2..5 {
        let provider = from(key, hub.addr()).await;
        let count = Count::default();
        let (counting, here, all) = (count.clone(), Arc::clone(&here), Arc::clone(&all));
        let service = Service::call(move |_peer, _request: u64| {
            counting.0.fetch_add(1, Ordering::Relaxed);
            let (here, all) = (Arc::clone(&here), Arc::clone(&all));
            async move {
                let everyone = all.notified();
                tokio::pin!(everyone);
                everyone.as_mut().enable();
                if here.fetch_add(1, Ordering::Relaxed) + 1 == CALLS {
                    all.notify_waiters();
                }
                everyone.await;
                Ok(key)
            }
        });
        serve(&provider, service.offered()).await;
        connect(&hub, &provider).await;
        counts.push(count);
        providers.push(provider);
    }
    knows_of(&hub, 3).await;
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let hub = hub.clone();
        calls.spawn(async move { call(&hub, Options::new()).await });
    }
    let answers = within(SOON, "all answers", calls.join_all()).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let counts: Vec<_> = counts.iter().map(Count::get).collect();
    assert_eq!(counts.iter().sum::<usize>(), CALLS);
    assert!(counts.iter().all(|count| *count >= CALLS / 6), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_provider_is_passed_over_for_another_one() {
    let hub = alone(1).await;
    let (bob, carol) = (from(2, hub.addr()).await, from(3, hub.addr()).await);
    let (service, mut told) = never();
    let service = service.offered();
    serve(&bob, service.concurrency(1)).await;
    let occupying = {
        let (hub, bob) = (hub.clone(), bob.addr());
        tokio::spawn(async move { hub.call::<_, u8>(bob, TASK, &1_u64).await })
    };
    hears(&mut told, "came").await;
    serve(&carol, named(3).0).await;
    knows_of(&hub, 2).await;
    for _ in 0..20 {
        assert_eq!(call(&hub, Options::new()).await, Ok(3));
    }
    let refused = bob.metrics().await.expect("up").protocols["task/1"].refused;
    // Once it has said so, it is left alone for a while, though it may be nearer.
    assert!(refused <= 3, "asked {refused} times");
    occupying.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_provider_is_asked_again_when_it_is_no_longer_busy() {
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let service = Service::call(move |_peer, number: u64| {
        let opened = Arc::clone(&opened);
        async move {
            if number == 0 {
                opened.notified().await;
            }
            Ok(2_u8)
        }
    });
    serve(&bob, service.offered().concurrency(1)).await;
    knows_of(&hub, 1).await;
    let occupying = {
        let (hub, bob) = (hub.clone(), bob.addr());
        tokio::spawn(async move { hub.call::<_, u8>(bob, TASK, &0_u64).await })
    };
    let numbers = async || bob.metrics().await.expect("up").protocols["task/1"];
    eventually(SOON, "its place is taken", async || numbers().await.active == 1).await;
    let waiting = calling(&hub, Options::new());
    eventually(SOON, "it was refused", async || numbers().await.refused > 0).await;
    assert!(!waiting.is_finished());
    gate.notify_one();
    assert_eq!(outcome_of(waiting).await, Ok(2));
    occupying.await.expect("runs").expect("answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_only_provider_stays_busy_a_call_ends_so() {
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    let (service, mut told) = never();
    let service = service.offered();
    serve(&bob, service.concurrency(1)).await;
    knows_of(&hub, 1).await;
    let first = calling(&hub, Options::new());
    hears(&mut told, "came").await;
    let refused = call(&hub, Options::new().deadline(ms(1100))).await;
    assert_eq!(refused, intent(OpenError::Refused(Code::Busy)));
    first.abort();
    hears(&mut told, "dropped").await;
    let ended = hub.metrics().await.expect("up").intents_ended;
    // However often it was asked, it is one call.
    assert_eq!((ended["refused"], ended["cancelled"], ended["done"]), (1, 1, 0), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_does_not_want_this_node_is_passed_over_and_where_all_do_not_it_is_told() {
    let hub = alone(1).await;
    let (bob, carol) = (from(2, hub.addr()).await, from(3, hub.addr()).await);
    let (service, asked) = named(2);
    serve(&bob, service.admit(|_| false)).await;
    knows_of(&hub, 1).await;
    let begun = Instant::now();
    let refused = call(&hub, Options::new()).await;
    assert_eq!(refused, intent(OpenError::Refused(Code::NotAllowed)));
    assert!(begun.elapsed() < quick_limits().intent_deadline, "{:?}", begun.elapsed());
    serve(&carol, named(3).0).await;
    knows_of(&hub, 2).await;
    for _ in 0..10 {
        assert_eq!(call(&hub, Options::new()).await, Ok(3));
    }
    assert_eq!(asked.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_providers_neither_keep_a_call_from_one_that_is_there_nor_have_it_dial_a_victim() {
    const ROUNDS: u64 = 8;
    let mut limits = quick_limits();
    // What this node dials of its own accord is little, so that what calls dial shows.
    limits.walkers = 1;
    limits.walk.hearsay.burst = 1;
    let hub = serving(discovering(1).limits(limits)).await;
    let bob = from(2, hub.addr()).await;
    serve(&bob, named(2).0).await;
    let target = Nobody::bind();
    let address = target.as_if(66).addrs.into_iter().next();
    teach(&hub, (0..500).map(|n| offering(&key(n), 1, address.clone(), &TASK))).await;
    knows_of(&hub, 501).await;
    let dials = async || hub.metrics().await.expect("up").dials_started;
    let before = dials().await;
    for _ in 0..ROUNDS {
        // A session would count for more than all else.
        let mut status = watching(&hub, bob.id()).await;
        hub.disconnect(bob.id()).await.expect("up");
        down(&mut status).await;
        assert_eq!(call(&hub, Options::new()).await, Ok(2));
    }
    // At most one is of bob in each round; he may dial by himself.
    let dials = dials().await - before;
    assert!(dials < 2 * ROUNDS, "{dials} dials in {ROUNDS} rounds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_cannot_be_reached_or_does_not_greet_is_doubted_from_then_on() {
    let hub = alone(1).await;
    let nobody = Nobody::bind();
    let address = nobody.as_if(90).addrs.into_iter().next();
    let dead = offering(&SecretKey::from_bytes(&[90; 32]), 1, address, &TASK);
    let (mut host, mute) = provider_host(70).await;
    let ids = [dead.id(), mute.id()];
    teach(&hub, [dead, mute]).await;
    knows_of(&hub, 2).await;
    let outcome = tokio::spawn({
        let hub = hub.clone();
        async move { call(&hub, Options::new().deadline(ms(4000))).await }
    });
    let _link = host.greeted().await;
    eventually(SOON, "both were missed", async || {
        let known = hub.catalog();
        ids.iter().all(|id| known.get(id).is_some_and(|entry| entry.liveness().failures() > 0))
    })
    .await;
    outcome.await.expect("it runs to its end").expect_err("nobody answers");
}
