//! Providers that die, refuse or fail: another one is asked where that is safe, and only there.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kinfolk::error::{CallError, HandlerError, OpenError};
use kinfolk::{Code, Failure, Options, SecretKey, Service};
use kinfolk_core::wire::Answer;
use kinfolk_tests::support::node::{Mortal, never, quick_limits, serving};
use kinfolk_tests::support::stranger::Nobody;
use kinfolk_tests::support::teller::offering;
use kinfolk_tests::support::wait::{eventually, within};
use tokio::task::JoinSet;

use crate::scene::*;

#[tokio::test(flavor = "multi_thread")]
async fn dead_providers_cost_a_share_of_the_deadline_each_and_never_all() {
    let hub = alone(1).await;
    let dead: Vec<_> = (0..3).map(|_| Nobody::bind()).collect();
    let records: Vec<_> = dead
        .iter()
        .zip(90..)
        .map(|(nobody, key)| {
            let address = nobody.as_if(key).addrs.first().cloned();
            offering(&SecretKey::from_bytes(&[key; 32]), 1, address, &TASK)
        })
        .collect();
    teach(&hub, records).await;
    knows_of(&hub, 3).await;
    // Nobody else is there at first: all of them are tried in vain.
    let waiting = calling(&hub, Options::new().deadline(Duration::from_secs(15)));
    let bob = from(2, hub.addr()).await;
    eventually(SOON, "one was dialled", async || {
        hub.metrics().await.expect("up").dials_started > 0
    })
    .await;
    serve(&bob, named(2).0).await;
    assert_eq!(outcome_of(waiting).await, Ok(2));
    // By now it is known who is dead.
    let begun = Instant::now();
    assert_eq!(call(&hub, Options::new()).await, Ok(2));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_dies_with_a_request_leaves_it_unknown_and_nobody_else_gets_it() {
    let (outcome, executed) = dies_with_a_request(Options::new()).await;
    assert_eq!((outcome, executed), (intent(OpenError::Unknown), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_request_of_a_provider_that_dies_goes_to_another_one() {
    let (outcome, executed) = dies_with_a_request(Options::new().idempotent()).await;
    assert_eq!((outcome, executed), (Ok(3), 1));
}

/// The outcome of a call whose provider dies once it has the request, and how often the other one was asked.
async fn dies_with_a_request(options: Options) -> (Result<u8, CallError>, usize) {
    let mut limits = quick_limits();
    limits.idle_timeout = ms(800);
    let hub = serving(discovering(1).limits(limits)).await;
    let carol = from(3, hub.addr()).await;
    let bob = Mortal::spawn(discovering(2).bootstrap(hub.addr())).await;
    let (service, mut told) = never();
    let service = service.offered();
    serve(&bob.node, service).await;
    knows_of(&hub, 1).await;
    // It is not asked beside the first: half of this time is never over.
    let call = calling(&hub, options.deadline(Duration::from_secs(60)));
    hears(&mut told, "came").await;
    let (service, executed) = named(3);
    serve(&carol, service).await;
    knows_of(&hub, 2).await;
    bob.kill().await;
    (outcome_of(call).await, executed.get())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_a_provider_certainly_did_not_serve_goes_to_another_one() {
    let hub = alone(1).await;
    let carol = from(3, hub.addr()).await;
    for (key, code) in [
        (70, Code::UnknownProtocol),
        (71, Code::NotAllowed),
        (72, Code::Busy),
        (73, Code::Draining),
        // It will not be told of this node either.
        (74, Code::UnknownPeer),
    ] {
        let (mut host, record) = provider_host(key).await;
        let id = host.id();
        let (service, executed) = named(3);
        // Both are strangers to it; in the end it is the other one that is asked, whoever was the first.
        let calls = async {
            teach(&hub, [record]).await;
            serve(&carol, service).await;
            knows_of(&hub, 2).await;
            let mut outcomes = Vec::new();
            for _ in 0..10 {
                outcomes.push(call(&hub, Options::new()).await);
            }
            outcomes
        };
        // From the start: walkers dial it as soon as it is known, and wait for its welcome no longer than a hello may take.
        let refusing = async {
            let link = host.welcomed().await;
            loop {
                // The request is here whole.
                asked(&link).await.answer(Answer::Refuse(code)).await;
            }
        };
        let outcomes = tokio::select! {
            outcomes = calls => outcomes,
            () = refusing => unreachable!("it never ends"),
        };
        assert!(outcomes.iter().all(|outcome| *outcome == Ok(3)), "{code}: {outcomes:?}");
        assert_eq!(executed.get(), 10, "{code}");
        carol.unserve(&TASK).expect("up");
        hub.ban(id, Duration::from_secs(600)).expect("up");
        knows_of(&hub, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_leaves_open_whether_a_handler_had_the_request_ends_the_call() {
    let hub = alone(1).await;
    let (mut host, record) = provider_host(70).await;
    teach(&hub, [record]).await;
    knows_of(&hub, 1).await;
    let call = calling(&hub, Options::new());
    let link = host.welcomed().await;
    asked(&link).await.answer(Answer::Refuse(Code::Internal)).await;
    let begun = Instant::now();
    assert_eq!(outcome_of(call).await, intent(OpenError::Refused(Code::Internal)));
    assert!(begun.elapsed() < quick_limits().intent_deadline / 2, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_fails_is_an_answer_and_nobody_else_is_asked() {
    let hub = alone(1).await;
    let asked = Count::default();
    let mut providers = Vec::new();
    for key in [2, 3] {
        let provider = from(key, hub.addr()).await;
        let counting = asked.clone();
        let service = Service::call(move |_peer, _request: u64| {
            counting.0.fetch_add(1, Ordering::Relaxed);
            async { Err::<u8, _>(HandlerError::new("not today")) }
        });
        serve(&provider, service.offered()).await;
        providers.push(provider);
    }
    knows_of(&hub, 2).await;
    let failed = call(&hub, Options::new().idempotent()).await;
    let failure = Failure::Reset(Code::HandlerFailed);
    assert_eq!(failed, intent(OpenError::Failed { failure, cause: None }));
    assert_eq!(asked.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_while_providers_come_and_go_run_once_each_or_say_that_it_is_unknown() {
    const CALLS: usize = 300;
    let hub = alone(1).await;
    let (ran, unknown) = (Count::default(), Count::default());
    let ran_too = ran.clone();
    let service = move || {
        let ran = ran_too.clone();
        let service = Service::call(move |_peer, _request: u64| {
            ran.0.fetch_add(1, Ordering::Relaxed);
            async {
                tokio::task::yield_now().await;
                Ok(7_u8)
            }
        });
        service.offered().concurrency(10)
    };
    let steady = from(2, hub.addr()).await;
    serve(&steady, service()).await;
    let fickle = from(3, hub.addr()).await;
    let mut calls = JoinSet::new();
    for n in 0..CALLS {
        if n % 30 == 0 {
            serve(&fickle, service()).await;
        } else if n % 30 == 15 {
            fickle.disconnect(hub.id()).await.expect("up");
            fickle.unserve(&TASK).expect("up");
        }
        let hub = hub.clone();
        calls.spawn(async move { call(&hub, Options::new()).await });
        // Some find both busy, and none for long.
        if calls.len() == 30 {
            let done = within(SOON, "a call", calls.join_next()).await.expect("some are left");
            count(&unknown, done.expect("it runs"));
        }
    }
    while let Some(done) = within(SOON, "a call", calls.join_next()).await {
        count(&unknown, done.expect("it runs"));
    }
    let (ran, unknown) = (ran.get(), unknown.get());
    assert!(ran <= CALLS && ran + unknown >= CALLS, "{ran} ran, {unknown} are unknown");

    fn count(unknown: &Count, outcome: Result<u8, CallError>) {
        match outcome {
            Ok(7) => {}
            Err(CallError::Intent(OpenError::Unknown)) => {
                unknown.0.fetch_add(1, Ordering::Relaxed);
            }
            other => panic!("{other:?}"),
        }
    }
}
