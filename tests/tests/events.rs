//! Events: what subscribers get when they are slower than the node.

use std::time::Duration;

use kinfolk::{NodeEvent, SecretKey};
use kinfolk_tests::support::node::node_with;
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_subscriber_that_falls_behind_learns_how_many_it_missed_and_goes_on_with_the_newest() {
    // A power of two, which is kept as it is.
    const KEPT: u64 = 4;
    const MISSED: u64 = 6;
    let alice = node_with(1, |limits| limits.events = 4).await;
    let mut slow = alice.events().await.expect("the node is up");
    let peers: Vec<_> = (100..)
        .take(usize::try_from(KEPT + MISSED).expect("small"))
        .map(|key: u8| SecretKey::from_bytes(&[key; 32]).public())
        .collect();
    for peer in &peers {
        alice.ban(*peer, SOON * 6).expect("the node is up");
    }
    eventually(SOON, "all bans", async || {
        alice.metrics().await.expect("up").peers.banned == peers.len()
    })
    .await;

    assert_eq!(within(SOON, "the news", slow.recv()).await, Err(RecvError::Lagged(MISSED)));
    for peer in &peers[usize::try_from(MISSED).expect("small")..] {
        let event = within(SOON, "an event", slow.recv()).await.expect("kept");
        assert!(matches!(event, NodeEvent::PeerBanned { peer: banned, .. } if banned == *peer));
    }
    assert_eq!(slow.try_recv(), Err(TryRecvError::Empty));

    // It has caught up, and misses nothing that comes now.
    alice.unban(peers[0]).expect("the node is up");
    let event = within(SOON, "an event", slow.recv()).await.expect("not missed");
    assert_eq!(event, NodeEvent::PeerUnbanned { peer: peers[0] });
}
