//! Protocols that nodes offer in their records, and calls to whoever does: near, idle and alive ones are asked, dead ones cost little, and nothing
//! runs twice that must not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kinfolk::error::{CallError, HandlerError, OfferError, OpenError, ServeError};
use kinfolk::{
    Code, EndpointId, Failure, Node, NodeBuilder, NodeMessage, Offer, Options, Peer, ProtocolName,
    Record, SecretKey, Service, TransportAddr,
};
use kinfolk_core::wire::Answer;
use kinfolk_tests::support::guest::{Guest, hello};
use kinfolk_tests::support::host::{Asked, Dialled, Host};
use kinfolk_tests::support::node::{Mortal, builder, connect, node, quick_limits, serving};
use kinfolk_tests::support::stranger::{Nobody, Stranger};
use kinfolk_tests::support::teller::{exchange, lore, offering};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// How long news may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Offered by the test's own handlers.
const TASK: ProtocolName = ProtocolName::from_static("task/1");

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn discovering(key: u8) -> NodeBuilder {
    builder(key).discovery(true)
}

/// A node that knows nobody, and serves what others in these tests do.
async fn alone(key: u8) -> Node {
    serving(discovering(key)).await
}

async fn from(key: u8, bootstrap: impl Into<Peer>) -> Node {
    serving(discovering(key).bootstrap(bootstrap)).await
}

/// How often a service was asked.
#[derive(Debug, Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A service that answers with the key of its node, and how often it was asked.
fn named(key: u8) -> (Service, Count) {
    let count = Count::default();
    let counting = count.clone();
    let service = Service::call(move |_peer, _request: u64| {
        counting.0.fetch_add(1, Ordering::Relaxed);
        async move { Ok(key) }
    });
    (service.offered(), count)
}

/// A service that never answers, and tells of each request that came and was dropped.
fn never() -> (Service, mpsc::UnboundedReceiver<&'static str>) {
    struct Told(mpsc::UnboundedSender<&'static str>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }
    let (tell, told) = mpsc::unbounded_channel();
    let service = Service::call(move |_peer, _request: u64| {
        let _ = tell.send("came");
        let told = Told(tell.clone());
        async move {
            let _told = told;
            std::future::pending::<Result<u8, HandlerError>>().await
        }
    });
    (service.offered(), told)
}

async fn serve(node: &Node, service: Service) {
    node.serve(TASK, service).await.expect("a new protocol");
}

async fn hears(told: &mut mpsc::UnboundedReceiver<&'static str>, what: &str) {
    assert_eq!(within(SOON, what, told.recv()).await, Some(what));
}

/// Who offers [`TASK`], as far as the node knows.
fn offering_task(node: &Node) -> Vec<EndpointId> {
    let catalog = node.catalog();
    catalog.with_offer(&Offer::protocol(&TASK)).map(|entry| entry.id()).collect()
}

/// Waits until the node knows so many that offer [`TASK`].
async fn knows_of(node: &Node, count: usize) {
    eventually(SOON, "the offers are known", async || offering_task(node).len() == count).await;
}

async fn call(node: &Node, options: Options) -> Result<u8, CallError> {
    within(SOON, "an outcome", node.call_any_with::<_, u8>(TASK, &1_u64, options)).await
}

/// The same in a task.
fn calling(node: &Node, options: Options) -> tokio::task::JoinHandle<Result<u8, CallError>> {
    let node = node.clone();
    tokio::spawn(async move { node.call_any_with::<_, u8>(TASK, &1_u64, options).await })
}

async fn outcome_of(call: tokio::task::JoinHandle<Result<u8, CallError>>) -> Result<u8, CallError> {
    within(SOON, "an outcome", call).await.expect("it runs to its end")
}

fn intent(error: OpenError) -> Result<u8, CallError> {
    Err(CallError::Intent(error))
}

fn no_provider() -> Result<u8, CallError> {
    intent(OpenError::Failed { failure: Failure::NoProvider, cause: None })
}

/// Has a stranger tell the node these records.
async fn teach(node: &Node, records: impl IntoIterator<Item = Record>) {
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, node, hello(rand_incarnation(), 1)).await;
    let told = exchange(&guest, lore(stranger.id(), records)).await;
    assert!(told.is_complete(), "{told:?}");
}

/// Each time another one, so that a second visit is no duplicate of the first.
fn rand_incarnation() -> u64 {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    u64::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).expect("small")
}

/// A host of this key, and the record in which it offers [`TASK`].
async fn provider_host(key: u8) -> (Host, Record) {
    let host = Host::bind(key).await;
    let address = TransportAddr::Ip(host.stranger().real_addr());
    (host, offering(&SecretKey::from_bytes(&[key; 32]), 1, Some(address), &TASK))
}

/// The next call of [`TASK`] on a link; all else is refused.
async fn asked(link: &Dialled) -> Asked {
    loop {
        let mut stream = link.stream().await;
        if stream.header.protocol == TASK {
            return stream;
        }
        stream.answer(Answer::Refuse(Code::UnknownProtocol)).await;
    }
}

// Offers

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

// Finding one

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

// Choosing one

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
    serve(&bob, service.concurrency(1)).await;
    knows_of(&hub, 1).await;
    let first = calling(&hub, Options::new());
    hears(&mut told, "came").await;
    let refused = call(&hub, Options::new().deadline(ms(800))).await;
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

// Failing over

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
    ] {
        let (mut host, record) = provider_host(key).await;
        teach(&hub, [record]).await;
        let (service, executed) = named(3);
        serve(&carol, service).await;
        knows_of(&hub, 2).await;
        // Both are strangers to it; in the end it is the other one that is asked, whoever was the first.
        let calls = async {
            let mut outcomes = Vec::new();
            for _ in 0..10 {
                outcomes.push(call(&hub, Options::new()).await);
            }
            outcomes
        };
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
        hub.ban(host.id(), Duration::from_secs(600)).expect("up");
        knows_of(&hub, 0).await;
    }
}

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
