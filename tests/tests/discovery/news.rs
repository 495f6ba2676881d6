//! What is new about a node is told to others: by walkers that are woken, and by records that are new again.

use std::time::Duration;

use kinfolk::{Code, EndpointAddr, Found, NodeEvent, Record, SecretKey, SecretTopic, Topic};
use kinfolk_core::wire::Answer;
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::host::{Asked, Dialled, Host};
use kinfolk_tests::support::node::quick_limits;
use kinfolk_tests::support::teller::{EXCHANGE, Told, answer, key, lore, record, wall_clock};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::task::JoinHandle;

use crate::scene::{
    SOON, all_know_all, count, discovering, falls_silent, knows, over, resting, short_silence,
};

/// The record of the host with this key.
fn own(name: u8) -> Record {
    record(&SecretKey::from_bytes(&[name; 32]), 1, None)
}

/// The next exchange that the node opens; all else is refused.
async fn next_exchange(dialled: &Dialled) -> Asked {
    loop {
        let mut stream = dialled.stream().await;
        if stream.header.protocol == EXCHANGE {
            return stream;
        }
        stream.answer(Answer::Refuse(Code::UnknownProtocol)).await;
    }
}

/// A host that answers the exchanges of whoever dials it once, and knows these records beside its own.
async fn answering(name: u8, records: Vec<Record>) -> (EndpointAddr, JoinHandle<()>) {
    let mut host = Host::bind(name).await;
    let (addr, known) = (host.addr(), lore(host.id(), records.into_iter().chain([own(name)])));
    let task = tokio::spawn(async move {
        let dialled = host.welcomed().await;
        loop {
            let mut stream = next_exchange(&dialled).await;
            answer(&mut stream.send, &mut stream.receive, known.clone()).await;
        }
    });
    (addr, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_exchange_of_the_app_has_taught_sends_the_walkers_on() {
    let (hub, _hub) = answering(66, Vec::new()).await;
    let node = discovering(1).limits(resting()).bootstrap(hub.clone()).spawn();
    let node = node.await.expect("it starts");
    eventually(SOON, "the hub is known", async || knows(&node, hub.id)).await;
    let mut log = EventLog::of(&node).await;
    let elsewhere = |event: &NodeEvent| matches!(event, NodeEvent::ExchangeStarted { peer, .. } if *peer != hub.id);
    let taught = (0..5).map(|n| record(&key(n), 1, None)).collect();
    let (other, _other) = answering(67, taught).await;
    let report = node.sync_with(other).await.expect("an exchange");
    assert_eq!(report.learnt, 6);
    // The one that was asked for, and a visit.
    eventually(SOON, "a visit", async || log.count(elsewhere) >= 2).await;
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn walkers_whose_visits_bring_nothing_slow_down_together() {
    let mut limits = short_silence();
    limits.walkers = 16;
    (limits.walk.first_wait, limits.walk.longest_wait) =
        (Duration::from_millis(1), Duration::from_hours(1));
    limits.walk.revisit = Duration::from_millis(1);
    let (mut builder, mut hosts) = (discovering(1), Vec::new());
    for name in 61..65 {
        let (addr, task) = answering(name, Vec::new()).await;
        builder = builder.bootstrap(addr.clone());
        hosts.push((addr, task));
    }
    let node = builder.limits(limits).spawn().await.expect("it starts");
    let _holds: Vec<_> = hosts.iter().map(|(addr, _)| node.hold(addr.clone())).collect();
    eventually(SOON, "all are known", async || hosts.iter().all(|(host, _)| knows(&node, host.id)))
        .await;
    falls_silent(&node).await;
    let exchanges =
        count(&node, |metrics| metrics.discovery.exchanges.get("complete").copied()).await;
    // Each visits somebody at the start and once more. By themselves they would make ten visits each until they wait for a second.
    assert!((4..=48).contains(&exchanges), "{exchanges} exchanges");
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_secret_topic_is_shown_as_soon_as_the_first() {
    let topics =
        [b"the cellar door", b"the attic stair"].map(|name| SecretTopic::from_secret(name));
    let bob = discovering(1).limits(resting()).spawn().await.expect("it starts");
    for topic in &topics {
        bob.join_secret_topic(topic.clone()).expect("room for it");
    }
    let alice = discovering(2).limits(resting()).bootstrap(bob.addr());
    let alice = alice.spawn().await.expect("it starts");
    all_know_all(&[bob.clone(), alice.clone()]).await;
    for topic in topics {
        // Whatever is shown from here on is shown since the walkers were woken.
        falls_silent(&alice).await;
        let mut found = alice.find_secret_topic(topic.clone());
        alice.join_secret_topic(topic).expect("room for it");
        let here = within(SOON, "bob is found", found.next()).await;
        assert!(matches!(here, Some(Found::Here(entry)) if entry.id() == bob.id()));
    }
    over([bob, alice]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn news_that_came_while_an_exchange_ran_is_told_in_another() {
    let mut host = Host::bind(66).await;
    let known = lore(host.id(), [own(66)]);
    let mut limits = resting();
    limits.walkers = 1;
    limits.exchange.silence = SOON;
    let node = discovering(1).limits(limits).bootstrap(host.addr()).spawn().await;
    let node = node.expect("it starts");
    let _hold = node.hold(host.addr());
    let dialled = host.welcomed().await;
    let told = async |mut stream: Asked| match answer(
        &mut stream.send,
        &mut stream.receive,
        known.clone(),
    )
    .await
    {
        Told::Over(_, records) => records,
        told => panic!("{told:?}"),
    };
    // Until the walker rests.
    while let Ok(stream) =
        tokio::time::timeout(Duration::from_secs(1), next_exchange(&dialled)).await
    {
        told(stream).await;
    }
    let (asking, peer) = (node.clone(), host.id());
    let asked = tokio::spawn(async move { asking.sync_with(peer).await });
    let held = next_exchange(&dialled).await;
    let topic = Topic::from_name("news");
    node.join_topic(topic).expect("room for it");
    let visiting = async || {
        count(&node, |metrics| u64::try_from(metrics.discovery.walkers_visiting).ok()).await
    };
    eventually(SOON, "the walker waits for this exchange", async || visiting().await == 1).await;
    let news = node.catalog().own().expect("it has a record").record().clone();
    assert!(news.topics().any(|one| one == topic));
    assert!(!told(held).await.iter().any(|record| record == news.bytes()));
    within(SOON, "what was asked for", asked).await.expect("it runs").expect("an exchange");
    let another = within(SOON, "another exchange", next_exchange(&dialled)).await;
    assert!(told(another).await.iter().any(|record| record == news.bytes()));
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_old_to_be_news_is_signed_anew_for_the_first_neighbour() {
    let mut limits = quick_limits();
    limits.announce.window = Duration::from_secs(2);
    let alice = discovering(1).limits(limits.clone()).spawn().await.expect("it starts");
    let own = || alice.catalog().own().map(|own| own.record().clone());
    let mut before = None;
    eventually(SOON, "its record is old", async || {
        before = own();
        let issued = before.as_ref().map(Record::issued_at);
        issued.is_some_and(|at| wall_clock().since(at) > Duration::from_secs(1))
    })
    .await;
    let before = before.expect("it was there").seq();
    let bob = discovering(2).limits(limits).bootstrap(alice.addr());
    let bob = bob.spawn().await.expect("it starts");
    eventually(SOON, "a new one", async || {
        let known = bob.catalog();
        known.get(&alice.id()).is_some_and(|entry| entry.record().seq() > before)
    })
    .await;
    over([alice, bob]).await;
}
