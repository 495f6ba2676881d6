//! An actor as the place where items go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kinfolk::{Delivery, Received};
use kinfolk_tests::support::wait::within;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

use crate::scene::{SOON, Tick, consumer, exactly, over, pair, producer, send, subscribed};

/// Gives each delivery to the test, which holds its credit for as long as it keeps it.
struct Sink {
    given: Arc<AtomicUsize>,
}

struct Given(Delivery<Tick>);

impl From<Delivery<Tick>> for Given {
    fn from(delivery: Delivery<Tick>) -> Self {
        Self(delivery)
    }
}

impl Actor for Sink {
    type Msg = Given;
    type State = mpsc::UnboundedSender<Delivery<Tick>>;
    type Arguments = mpsc::UnboundedSender<Delivery<Tick>>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Given>,
        give: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(give)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Given>,
        Given(delivery): Given,
        give: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        self.given.fetch_add(1, Ordering::SeqCst);
        give.send(delivery)?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_actor_never_holds_more_items_than_it_has_credits() {
    const CREDITS: usize = 4;
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let consumer = consumer(&bob).await;
    subscribed(&producer, 1).await;
    let given = Arc::new(AtomicUsize::new(0));
    let (give, mut deliveries) = mpsc::unbounded_channel();
    let sink = Sink { given: Arc::clone(&given) };
    let (actor, ended) = Actor::spawn(None, sink, give).await.expect("it starts");
    let mut forward = consumer.forward(actor.clone(), CREDITS);
    send(&producer, 0..200).await;
    let mut held = std::collections::VecDeque::new();
    let mut taken = 0;
    for n in 0..200 {
        while held.len() < CREDITS && taken < 200 {
            held.push_back(within(SOON, "an item", deliveries.recv()).await.expect("it runs"));
            taken += 1;
        }
        // All credits are out: nothing more can come.
        assert!(given.load(Ordering::SeqCst) <= n + CREDITS);
        let delivery: Delivery<Tick> = held.pop_front().expect("one is held");
        match &delivery.received {
            Received::Item { number, .. } => assert_eq!(usize::try_from(*number), Ok(n)),
            other => panic!("{other:?}"),
        }
    }
    let more = tokio::time::timeout(Duration::from_millis(100), deliveries.recv()).await;
    assert!(more.is_err(), "nothing more was sent");
    actor.stop(None);
    within(SOON, "the end", ended).await.expect("it ends");
    send(&producer, 200..201).await;
    within(SOON, "nothing is forwarded any more", forward.ended()).await;
    exactly(&producer, 0).await;
    over([alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_that_is_dropped_unsubscribes() {
    let (alice, bob) = pair().await;
    let producer = producer(&alice).await;
    let consumer = consumer(&bob).await;
    let (give, _deliveries) = mpsc::unbounded_channel();
    let sink = Sink { given: Arc::default() };
    let (actor, _) = Actor::spawn(None, sink, give).await.expect("it starts");
    let forward = consumer.forward(actor.clone(), 1);
    subscribed(&producer, 1).await;
    drop(forward);
    exactly(&producer, 0).await;
    actor.stop(None);
    over([alice, bob]).await;
}
