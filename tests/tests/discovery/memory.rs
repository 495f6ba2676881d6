//! What a node remembers of an earlier life: numbers and peers, where a directory is given for it.

use std::path::PathBuf;

use kinfolk::error::SpawnError;
use kinfolk::{Node, NodeBuilder, StoreError};
use kinfolk_tests::support::node::{address_to_return_to, builder_at};
use kinfolk_tests::support::wait::eventually;

use crate::scene::{SOON, all_know_all, alone, discovering, from, knows, over};

/// A directory that is gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kinfolk-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn remembering(key: u8, directory: PathBuf) -> NodeBuilder {
    discovering(key).state_dir(directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_reached_the_network_once_needs_no_bootstrap_again() {
    let scratch = Scratch::new("anchors");
    let hub_at = address_to_return_to();
    let hub = builder_at(1, hub_at).discovery(true).spawn().await.expect("it starts");
    let bob = from(2, hub.addr()).await;
    let alice = remembering(3, scratch.at("alice")).bootstrap(hub.addr());
    let alice = alice.spawn().await.expect("it starts");
    all_know_all(&[hub.clone(), bob.clone(), alice.clone()]).await;
    alice.sync_with(hub.id()).await.expect("an exchange");
    let before = alice.catalog().own().expect("it has a record").record().seq();
    alice.shutdown().await;
    let alice = remembering(3, scratch.at("alice")).spawn().await.expect("it starts");
    eventually(SOON, "all are known again", async || {
        knows(&alice, hub.id()) && knows(&alice, bob.id())
    })
    .await;
    // Which its peers take: its number is larger than that of its farewell.
    let heard = |peer: &Node| peer.catalog().get(&alice.id()).map(|entry| entry.record().seq());
    for peer in [&hub, &bob] {
        eventually(SOON, "it is known again", async || heard(peer) > Some(before)).await;
    }
    over([hub, bob, alice]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_for_one_node_at_a_time() {
    let scratch = Scratch::new("lock");
    let alice = remembering(1, scratch.at("alice")).spawn().await.expect("it starts");
    let error = remembering(1, scratch.at("alice")).spawn().await.expect_err("it is in use");
    assert!(matches!(error, SpawnError::Store(StoreError::InUse { .. })), "{error}");
    alice.shutdown().await;
    let alice = remembering(1, scratch.at("alice")).spawn().await.expect("it is free");
    over([alice]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_set_aside_and_counted_and_the_node_starts() {
    let scratch = Scratch::new("damage");
    let alice = remembering(1, scratch.at("alice")).spawn().await.expect("it starts");
    alice.shutdown().await;
    let file = scratch.at("alice").join("kinfolk.redb");
    std::fs::write(&file, b"no store at all").expect("it is written");
    let alice = remembering(1, scratch.at("alice")).spawn().await.expect("it starts");
    let metrics = alice.metrics().await.expect("it runs");
    assert_eq!(metrics.discovery.store_defects.get("set_aside"), Some(&1));
    let bob = alone(2).await;
    bob.sync_with(alice.addr()).await.expect("an exchange");
    over([alice, bob]).await;
}
