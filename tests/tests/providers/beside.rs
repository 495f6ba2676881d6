//! A request that takes long: where it may run twice, another provider is asked beside the first, and where not, nobody is.

use std::sync::atomic::Ordering;

use kinfolk::error::{CallError, OpenError};
use kinfolk::{Code, Options};
use kinfolk_core::wire::Answer;
use kinfolk_tests::support::host::{Asked, Host};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::scene::*;

/// The outcome of a call whose only provider has the request and says nothing, when another one appears; how often that was asked.
async fn hangs_with_a_request(options: Options) -> (Result<u8, CallError>, usize) {
    let hub = alone(1).await;
    let carol = from(3, hub.addr()).await;
    let (mut host, record) = provider_host(70).await;
    teach(&hub, [record]).await;
    knows_of(&hub, 1).await;
    let polls = Count::default();
    let call = {
        let (hub, polls, options) = (hub.clone(), polls.clone(), options.deadline(ms(5000)));
        let mut call =
            Box::pin(async move { hub.call_any_with::<_, u8>(TASK, &1_u64, options).await });
        tokio::spawn(std::future::poll_fn(move |cx| {
            polls.0.fetch_add(1, Ordering::Relaxed);
            call.as_mut().poll(cx)
        }))
    };
    let link = host.welcomed().await;
    let mut first = asked(&link).await;
    first.answer(Answer::Ack).await;
    let (service, executed) = named(3);
    serve(&carol, service).await;
    let outcome = outcome_of(call).await;
    // It waits for what happens, and does not look for it all the time.
    assert!(polls.get() < 300, "polled {} times", polls.get());
    (outcome, executed.get())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_request_that_takes_long_is_given_to_another_provider_beside_the_first() {
    let (outcome, executed) = hangs_with_a_request(Options::new().idempotent()).await;
    assert_eq!((outcome, executed), (Ok(3), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_long_and_must_not_run_twice_is_given_to_nobody_else() {
    let (outcome, executed) = hangs_with_a_request(Options::new()).await;
    assert!(matches!(outcome, Err(CallError::Intent(OpenError::TimedOut { .. }))), "{outcome:?}");
    assert_eq!(executed, 0);
}

/// Has a host take every request and answer none; each is counted, and kept.
fn hang(hosts: &mut JoinSet<()>, mut host: Host, count: Count) {
    hosts.spawn(async move {
        let link = host.welcomed().await;
        let mut kept: Vec<Asked> = Vec::new();
        loop {
            let mut request = asked(&link).await;
            count.0.fetch_add(1, Ordering::Relaxed);
            request.answer(Answer::Ack).await;
            kept.push(request);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_overtaken_is_not_asked_by_the_calls_that_follow() {
    let hub = alone(1).await;
    let carol = from(3, hub.addr()).await;
    let (host, record) = provider_host(70).await;
    let (mut hosts, hung) = (JoinSet::new(), Count::default());
    hang(&mut hosts, host, hung.clone());
    teach(&hub, [record]).await;
    knows_of(&hub, 1).await;
    let options = Options::new().idempotent().deadline(ms(3000));
    let first = calling(&hub, options.clone());
    eventually(SOON, "it is asked", async || hung.get() == 1).await;
    let (service, answered) = named(3);
    serve(&carol, service).await;
    assert_eq!(outcome_of(first).await, Ok(3));
    for _ in 0..12 {
        assert_eq!(call(&hub, options.clone()).await, Ok(3));
    }
    assert_eq!((hung.get(), answered.get()), (1, 13));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_may_still_answer_when_another_one_was_asked_beside_it_which_is_told_then() {
    let hub = alone(1).await;
    let (mut hosts, mut records) = (JoinSet::new(), Vec::new());
    let (tell, mut requests) = mpsc::unbounded_channel();
    for key in [70, 71] {
        let (mut host, record) = provider_host(key).await;
        let tell = tell.clone();
        records.push(record);
        hosts.spawn(async move {
            let link = host.welcomed().await;
            let mut request = asked(&link).await;
            request.answer(Answer::Ack).await;
            let _ = tell.send((request, link));
            std::future::pending::<()>().await;
        });
    }
    teach(&hub, records).await;
    knows_of(&hub, 2).await;
    let call = calling(&hub, Options::new().idempotent().deadline(ms(6000)));
    let (mut first, _link) = within(SOON, "a request", requests.recv()).await.expect("one");
    let (second, _other) = within(SOON, "another", requests.recv()).await.expect("another");
    // Of one byte.
    first.send.write_all(&[0, 0, 0, 1, 9]).await.expect("the node waits for it");
    first.send.finish().expect("finished once");
    assert_eq!(outcome_of(call).await, Ok(9));
    let stopped = within(SOON, "the stop", second.send.stopped()).await.expect("connected");
    assert_eq!(stopped.map(u64::from), Some(Code::Cancelled.to_wire().into()));
    let ended = hub.metrics().await.expect("up").intents_ended;
    assert_eq!((ended["done"], ended["cancelled"]), (1, 0), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_three_have_a_request_at_once() {
    let hub = alone(1).await;
    let (mut hosts, hung, mut records) = (JoinSet::new(), Count::default(), Vec::new());
    for key in 70..75 {
        let (host, record) = provider_host(key).await;
        hang(&mut hosts, host, hung.clone());
        records.push(record);
    }
    teach(&hub, records).await;
    knows_of(&hub, 5).await;
    let outcome = call(&hub, Options::new().idempotent().deadline(ms(4000))).await;
    assert!(matches!(outcome, Err(CallError::Intent(OpenError::TimedOut { .. }))), "{outcome:?}");
    assert_eq!(hung.get(), 3);
    let ended = hub.metrics().await.expect("up").intents_ended;
    assert_eq!(ended.values().sum::<u64>(), 1, "{ended:?}");
}
