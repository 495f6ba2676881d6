//! Typed streams over links that lose, double and reorder what is sent.

use std::collections::BTreeMap;
use std::time::Duration;

use kinfolk_tests::support::impair::{Condition, Direction};
use kinfolk_tests::support::node::relay;
use kinfolk_tests::support::wait::within;

use crate::scene::{SOON, alone, consumer, item, kibi, meet, over, producer, subscribed};

const ITEMS: u64 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn of_each_source_every_item_arrives_in_order_though_a_tenth_of_all_packets_is_lost() {
    let (alice, bob, carl) = (alone(1).await, alone(2).await, alone(3).await);
    let networks = [relay(1, &alice, &bob), relay(2, &carl, &bob)];
    meet(&alice, &bob).await;
    meet(&carl, &bob).await;
    let producers = [producer(&alice).await, producer(&carl).await];
    let mut consumer = consumer(&bob).await;
    for producer in &producers {
        subscribed(producer, 1).await;
    }
    let bad = Condition {
        loss: 0.1,
        duplicate: 0.05,
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(10),
        ..Condition::default()
    };
    for network in &networks {
        network.set(Direction::Both, bad);
    }
    let sending = producers.map(|producer| {
        tokio::spawn(async move {
            for n in 0..ITEMS {
                producer.send(&kibi(n)).await.expect("sent");
            }
            producer
        })
    });
    let mut next = BTreeMap::from([(alice.id(), 0), (carl.id(), 0)]);
    while next.values().any(|next| *next < ITEMS) {
        let (source, number, item) = item(&mut consumer).await;
        let next = next.get_mut(&source).expect("a producer");
        assert_eq!((number, item.n), (*next, *next));
        *next += 1;
    }
    let mut kept = Vec::new();
    for sending in sending {
        kept.push(within(SOON, "the sender's end", sending).await.expect("all was sent"));
    }
    for network in networks {
        let tally = network.tally(Direction::Both);
        assert!(tally.lost > 10 && tally.duplicated > 10, "{tally:?}");
        network.set(Direction::Both, Condition::default());
    }
    over([alice, bob, carl]).await;
}
