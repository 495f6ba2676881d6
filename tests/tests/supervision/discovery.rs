//! Discovery and what it runs.

use std::time::{Duration, Instant};

use kinfolk::fault::{Crash, Faults, Point, Victim};
use kinfolk::{ExchangeError, Found, Node, NodeBuilder, NodeEvent, SecretTopic, Terminal, Topic};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{builder, quick_limits};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{BOTH, SOON};

/// More than the second after which the next record may be signed, on a busy machine.
const RENEWED: Duration = Duration::from_secs(10);

fn discovering(key: u8) -> NodeBuilder {
    builder(key).discovery(true)
}

async fn alone(key: u8) -> Node {
    discovering(key).spawn().await.expect("it starts")
}

fn is_restart_of(part: &str) -> impl Fn(&NodeEvent) -> bool {
    move |event| matches!(event, NodeEvent::Restarted { actor, .. } if *actor == part)
}

/// Whether one node sees the other take part in a topic.
fn sees(node: &Node, other: &Node, topic: Topic) -> bool {
    let known = node.catalog();
    known.get(&other.id()).is_some_and(|entry| entry.record().topics().any(|own| own == topic))
}

async fn sync(node: &Node, other: &Node) {
    let synced = within(SOON, "an exchange", node.sync_with(other.addr())).await;
    synced.expect("both discover");
}

async fn neighbours(node: &Node, count: usize) {
    eventually(SOON, "neighbours", async || {
        node.metrics().await.expect("alive").discovery.neighbours == count
    })
    .await;
}

#[tokio::test]
async fn the_catalog_topics_secret_topics_and_the_record_outlive_discovery() {
    let (weather, news) = (Topic::from_name("weather"), Topic::from_name("news"));
    let secret = SecretTopic::from_secret(b"the cellar door");
    for crash in BOTH {
        let (alice, bob, carol) = (alone(1).await, alone(2).await, alone(3).await);
        alice.join_topic(weather).expect("room for it");
        for node in [&alice, &bob] {
            node.join_secret_topic(secret.clone()).expect("room for it");
        }
        sync(&alice, &bob).await;
        let mut found = alice.find_secret_topic(secret.clone());
        let here = within(SOON, "bob is found", found.next()).await;
        assert!(matches!(here, Some(Found::Here(entry)) if entry.id() == bob.id()));
        eventually(RENEWED, "bob sees the topic", async || sees(&bob, &alice, weather)).await;
        let before = bob.catalog().get(&alice.id()).expect("known").record().seq();

        let mut log = EventLog::of(&alice).await;
        alice.inject(Victim::Discovery, crash);
        let restart = log.next(SOON, "the restart", is_restart_of("discovery")).await;
        let NodeEvent::Restarted { cause, .. } = restart else { panic!("{restart:?}") };
        assert!(cause.contains("injected"), "{cause}");

        // What it knew it knows at once, of secret topics too.
        assert!(alice.catalog().get(&bob.id()).is_some());
        let mut again = alice.find_secret_topic(secret.clone());
        let here = within(SOON, "bob is still found", again.next()).await;
        assert!(matches!(here, Some(Found::Here(entry)) if entry.id() == bob.id()));
        // What it says of itself it goes on saying, to whoever knew it and to whoever did not, in newer records.
        sync(&carol, &alice).await;
        assert!(sees(&carol, &alice, weather));
        assert!(carol.catalog().get(&bob.id()).is_some());
        assert!(carol.catalog().get(&alice.id()).expect("known").record().seq() > before);
        alice.join_topic(news).expect("room for it");
        for other in [&bob, &carol] {
            eventually(RENEWED, "the news", async || {
                sees(other, &alice, weather) && sees(other, &alice, news)
            })
            .await;
        }
        assert_eq!(log.count(is_restart_of("discovery")), 1);
    }
}

#[tokio::test]
async fn an_exchange_under_way_when_discovery_fails_ends_as_restarted() {
    for crash in BOTH {
        let faults = Faults::default();
        let alice = discovering(1).faults(&faults).spawn().await.expect("it starts");
        let bob = alone(2).await;
        faults.arm(Point::ExchangeTask, Crash::Never);
        let crash = async {
            within(SOON, "the exchange", faults.struck(Point::ExchangeTask)).await;
            alice.inject(Victim::Discovery, crash);
        };
        let asked = within(SOON, "the end of it", alice.sync_with(bob.addr()));
        let (asked, ()) = tokio::join!(asked, crash);
        assert_eq!(asked, Err(ExchangeError::Restarted));
        eventually(SOON, "another exchange", async || alice.sync_with(bob.id()).await.is_ok())
            .await;
    }
}

#[tokio::test]
async fn the_sixth_failure_of_discovery_within_ten_seconds_ends_the_node_with_the_first_cause() {
    let faults = Faults::default();
    let alice = discovering(1).faults(&faults).spawn().await.expect("it starts");
    let mut log = EventLog::of(&alice).await;
    for _ in 0..5 {
        faults.arm(Point::DiscoveryPreStart, Crash::Error);
    }
    alice.inject(Victim::Discovery, Crash::Panic);
    let end = within(SOON, "the end", alice.closed()).await;
    let Terminal::Failed(cause) = &end else { panic!("{end:?}") };
    assert!(cause.contains("the first: discovery: injected panic"), "{cause}");
    assert!(cause.contains("the last: discovery: "), "{cause}");
    assert_eq!(faults.strikes(Point::DiscoveryPreStart), 5);
    assert_eq!(log.count(is_restart_of("discovery")), 5);
    let asked = within(SOON, "an answer", alice.sync_with(alice.id())).await;
    assert!(matches!(asked, Err(ExchangeError::Closed(_))), "{asked:?}");
}

#[tokio::test]
async fn an_announcer_that_fails_costs_nothing_but_freshness() {
    let faults = Faults::default();
    let mut limits = quick_limits();
    // So that bob may ask again and again.
    limits.quota.burst = 1000;
    let alice = discovering(1).limits(limits).faults(&faults).spawn().await.expect("it starts");
    let bob = alone(2).await;
    sync(&bob, &alice).await;
    neighbours(&alice, 1).await;
    let mut log = EventLog::of(&alice).await;
    for (n, crash) in [Crash::Panic, Crash::Error, Crash::Panic].into_iter().enumerate() {
        let topic = Topic::from_name(&format!("topic {n}"));
        faults.arm(Point::AnnouncerOwn, crash);
        alice.join_topic(topic).expect("room for it");
        let restart = log.next(RENEWED, "the restart", is_restart_of("announcer")).await;
        let NodeEvent::Restarted { cause, .. } = restart else { panic!("{restart:?}") };
        assert!(cause.contains("injected"), "{cause}");
        // A record at most a second later, and an exchange tells of it.
        eventually(RENEWED, "the topic", async || {
            sync(&bob, &alice).await;
            sees(&bob, &alice, topic)
        })
        .await;
    }
    assert_eq!(log.count(is_restart_of("discovery")), 0);
    // The announcer of now has told what the earlier ones did not, and is a neighbour again.
    neighbours(&alice, 1).await;
    let last = Topic::from_name("the last");
    alice.join_topic(last).expect("room for it");
    eventually(RENEWED, "an announcement", async || sees(&bob, &alice, last)).await;
    let metrics = alice.metrics().await.expect("alive");
    assert_eq!(metrics.restarts.get("announcer"), Some(&3));
}

/// As many failures as come at once, then the walker that is up.
async fn walkers_fail(times: usize) -> (Node, EventLog, Duration) {
    let faults = Faults::default();
    let mut limits = quick_limits();
    limits.walkers = 1;
    let builder = discovering(1).limits(limits).faults(&faults);
    let alice = builder.spawn().await.expect("it starts");
    let mut log = EventLog::of(&alice).await;
    for _ in 1..times {
        faults.arm(Point::WalkerPreStart, Crash::Error);
    }
    faults.arm(Point::WalkerWake, Crash::Panic);
    alice.join_topic(Topic::from_name("weather")).expect("room for it");
    let mut begun = None;
    for n in 1..=times {
        let part = if n == 6 { "discovery" } else { "walker" };
        log.next(SOON, "the restart", is_restart_of(part)).await;
        begun.get_or_insert_with(Instant::now);
    }
    (alice, log, begun.expect("there was one").elapsed())
}

#[tokio::test]
async fn walkers_that_fail_are_restarted_at_once_and_then_with_growing_delays() {
    let (alice, mut log, took) = walkers_fail(5).await;
    // The first restart is at once; those after the second, third and fourth failure wait.
    assert!(took >= Duration::from_millis(20 + 40 + 80), "{took:?}");
    sync(&alice, &alone(2).await).await;
    assert_eq!(log.count(is_restart_of("discovery")), 0);
    assert_eq!(alice.metrics().await.expect("alive").restarts.get("walker"), Some(&5));
}

#[tokio::test]
async fn the_sixth_failure_below_discovery_is_a_failure_of_discovery_and_not_of_the_node() {
    let (alice, mut log, _) = walkers_fail(6).await;
    let bob = alone(2).await;
    eventually(SOON, "an exchange", async || alice.sync_with(bob.addr()).await.is_ok()).await;
    assert_eq!(log.count(is_restart_of("walker")), 5);
    let of_discovery = is_restart_of("discovery");
    let is_told = |event: &NodeEvent| match event {
        NodeEvent::Restarted { cause, .. } => cause.contains("the first: walker: injected panic"),
        _ => false,
    };
    assert_eq!(log.count(|event| of_discovery(event) && is_told(event)), 1);
}

#[tokio::test]
async fn a_peer_manager_that_fails_over_news_of_records_is_told_of_the_next() {
    let faults = Faults::default();
    let alice = discovering(1).faults(&faults).spawn().await.expect("it starts");
    let mut log = EventLog::of(&alice).await;
    faults.arm(Point::ManagerRecordNews, Crash::Error);
    let _ = alice.sync_with(alone(2).await.addr()).await;
    log.next(SOON, "the restart", is_restart_of("peer_manager")).await;
    faults.arm(Point::ManagerRecordNews, Crash::Stall(Duration::ZERO));
    let carol = alone(3).await;
    eventually(SOON, "an exchange", async || alice.sync_with(carol.addr()).await.is_ok()).await;
    let told = async || faults.strikes(Point::ManagerRecordNews) == 2;
    eventually(SOON, "the news", told).await;
}
