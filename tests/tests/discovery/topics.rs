//! What nodes take part in: for everybody to see, or only for those who do too.

use kinfolk::{Found, SecretTopic, Topic};
use kinfolk_tests::support::wait::within;

use crate::scene::{SOON, all_know_all, alone, discovering, from, over};

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_joined_and_left_is_seen_by_those_who_look_for_it() {
    let topic = Topic::from_name("weather");
    let hub = alone(1).await;
    let alice = from(2, hub.addr()).await;
    let bob = from(3, hub.addr()).await;
    let mut found = alice.find_topic(topic);
    bob.join_topic(topic).expect("room for it");
    let here = within(SOON, "bob joins", found.next()).await;
    assert!(matches!(here, Some(Found::Here(entry)) if entry.id() == bob.id()));
    assert!(bob.leave_topic(&topic).expect("it runs"));
    let gone = within(SOON, "bob leaves", found.next()).await;
    assert!(matches!(gone, Some(Found::Gone(peer)) if peer == bob.id()));
    over([hub, alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_from_the_start_is_in_the_first_record() {
    let topic = Topic::from_name("weather");
    let hub = alone(1).await;
    let bob =
        discovering(2).bootstrap(hub.addr()).topics([topic]).spawn().await.expect("it starts");
    let mut found = hub.find_topic(topic);
    let here = within(SOON, "bob is found", found.next()).await;
    assert!(matches!(here, Some(Found::Here(entry)) if entry.id() == bob.id()));
    over([hub, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_topic_is_found_by_those_who_take_part_and_is_in_no_record() {
    let secret = SecretTopic::from_secret(b"the cellar door");
    let (alice, carol) = (alone(1).await, alone(2).await);
    alice.join_secret_topic(secret.clone()).expect("room for it");
    let bob = from(3, alice.addr()).await;
    bob.join_secret_topic(secret.clone()).expect("room for it");
    let (mut by_alice, mut by_bob) =
        (alice.find_secret_topic(secret.clone()), bob.find_secret_topic(secret.clone()));
    bob.sync_with(alice.addr()).await.expect("an exchange");
    let here = within(SOON, "bob is found", by_alice.next()).await;
    assert!(matches!(here, Some(Found::Here(entry)) if entry.id() == bob.id()));
    let here = within(SOON, "alice is found", by_bob.next()).await;
    assert!(matches!(here, Some(Found::Here(entry)) if entry.id() == alice.id()));
    carol.sync_with(alice.addr()).await.expect("an exchange");
    all_know_all(&[alice.clone(), carol.clone()]).await;
    let record = carol.catalog().get(&alice.id()).expect("it is known").record().clone();
    assert_eq!(record.topics().count(), 0);
    assert!(bob.leave_secret_topic(&secret).expect("it runs"));
    let gone = within(SOON, "alice is looked for no more", by_bob.next()).await;
    assert!(matches!(gone, Some(Found::Gone(peer)) if peer == alice.id()));
    bob.sync_with(alice.addr()).await.expect("an exchange");
    let gone = within(SOON, "bob is gone", by_alice.next()).await;
    assert!(matches!(gone, Some(Found::Gone(peer)) if peer == bob.id()));
    over([alice, bob, carol]).await;
}
