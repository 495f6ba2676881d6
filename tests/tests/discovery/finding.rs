//! Who is found, from whom, and when nobody can be.

use std::time::Duration;

use kinfolk::error::{CallError, OpenError};
use kinfolk::{EndpointAddr, Failure, Found, NodeEvent, Options, SecretKey};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{NEXT, builder, serving};
use kinfolk_tests::support::wait::within;

use crate::scene::{SOON, all_know_all, alone, discovering, from, knows, over};

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_know_the_same_third_reach_each_other_by_id_alone() {
    let hub = alone(1).await;
    let alice = from(2, hub.addr()).await;
    let bob = serving(discovering(3).bootstrap(hub.addr())).await;
    let mut found = alice.find(|_| true);
    let mut seen = Vec::new();
    while !seen.contains(&bob.id()) {
        match within(SOON, "bob is found", found.next()).await {
            Some(Found::Here(entry)) => seen.push(entry.id()),
            other => panic!("{other:?}"),
        }
    }
    let answer: u64 = alice.call(bob.id(), NEXT, &41_u64).await.expect("an answer");
    assert_eq!(answer, 42);
    over([hub, alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_nodes_in_a_chain_of_bootstraps_all_learn_all() {
    let mut nodes = vec![alone(1).await];
    for key in 2..=10 {
        let last = nodes.last().expect("there is one").addr();
        nodes.push(from(key, last).await);
    }
    all_know_all(&nodes).await;
    over(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_joiner_learns_all_and_is_learnt_by_all() {
    let hub = alone(1).await;
    let mut nodes = vec![hub.clone()];
    for key in 2..=6 {
        nodes.push(from(key, hub.addr()).await);
    }
    all_know_all(&nodes).await;
    nodes.push(from(7, nodes[3].addr()).await);
    all_know_all(&nodes).await;
    over(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_bootstrap_does_not_keep_a_node_from_a_live_one() {
    let nowhere = SecretKey::from_bytes(&[99; 32]).public();
    let nowhere = EndpointAddr::new(nowhere).with_ip_addr(([127, 0, 0, 1], 9).into());
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    let alice = discovering(3).bootstrap(nowhere).bootstrap(hub.addr());
    let alice = alice.spawn().await.expect("it starts");
    all_know_all(&[hub.clone(), bob.clone(), alice.clone()]).await;
    over([hub, alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_any_network_starts_serves_and_stops_at_once() {
    let nowhere = SecretKey::from_bytes(&[99; 32]).public();
    let alone = discovering(1).bootstrap(nowhere).spawn();
    let alone = within(Duration::from_secs(5), "the start", alone).await.expect("it starts");
    assert!(alone.catalog().is_empty());
    within(Duration::from_secs(5), "the end", alone.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_networks_that_share_a_bootstrap_host_never_mix() {
    let (hub, bob) = (alone(1).await, alone(2).await);
    let stranger = kinfolk::Node::builder("another-network")
        .bind_addr(([127, 0, 0, 1], 0).into())
        .bootstrap(hub.addr())
        .bootstrap(bob.addr())
        .spawn()
        .await
        .expect("it starts");
    let mut log = EventLog::of(&stranger).await;
    log.next(SOON, "a dial that fails", |event| matches!(event, NodeEvent::DialFailed { .. }))
        .await;
    let alice = discovering(3).bootstrap(hub.addr()).bootstrap(bob.addr());
    let alice = alice.spawn().await.expect("it starts");
    all_know_all(&[hub.clone(), bob.clone(), alice.clone()]).await;
    assert!(stranger.catalog().is_empty());
    assert!([&hub, &bob, &alice].iter().all(|node| !knows(node, stranger.id())));
    over([hub, alice, bob, stranger]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_discover_is_served_all_the_same() {
    let hub = alone(1).await;
    let quiet = serving(builder(2)).await;
    let answer: u64 = hub.call(quiet.addr(), NEXT, &41_u64).await.expect("an answer");
    assert_eq!(answer, 42);
    let error = hub.sync_with(quiet.id()).await.expect_err("it does not discover");
    assert!(error.to_string().contains("unknown protocol"), "{error}");
    over([hub, quiet]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_nobody_knows_yet_is_waited_for_within_the_deadline() {
    let hub = alone(1).await;
    let alice = from(2, hub.addr()).await;
    let bob_id = SecretKey::from_bytes(&[3; 32]).public();
    let soon = Options::new().deadline(Duration::from_millis(300));
    let nobody = alice.call_with::<_, u64>(bob_id, NEXT, &41_u64, soon).await;
    assert!(matches!(
        nobody,
        Err(CallError::Intent(OpenError::Failed { failure: Failure::NoAddress, .. }))
    ));
    let asking = alice.clone();
    let asked = tokio::spawn(async move { asking.call(bob_id, NEXT, &41_u64).await });
    let bob = serving(discovering(3).bootstrap(hub.addr())).await;
    let answer: u64 = within(SOON, "bob is found", asked).await.expect("it runs").expect("asked");
    assert_eq!(answer, 42);
    over([hub, alice, bob]).await;
}
