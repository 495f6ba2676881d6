//! kinfolk: one producer on one node, its consumers on another.

use std::time::{Duration, Instant};

use kinfolk::{Consumer, EndpointAddr, Limits, Node, Producer, Received};
use tokio::task::JoinHandle;

use crate::blob::Blob;

const STREAM: &str = "blobs";

/// What comes back.
const ECHOES: &str = "echoes";

/// The default limits, without those that many consumers of one node run into.
pub fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.streams.subscribers.per_peer = 4096;
    limits
}

/// A node on a free port of loopback.
pub async fn node(bootstrap: Option<EndpointAddr>) -> Node {
    let here = ([127, 0, 0, 1], 0).into();
    let mut builder = Node::builder("kinfolk-bench").bind_addr(here).limits(limits()).mdns(false);
    if let Some(bootstrap) = bootstrap {
        builder = builder.bootstrap(bootstrap);
    }
    builder.spawn().await.unwrap()
}

/// A producer that never gives up on a consumer.
pub async fn producer(node: &Node) -> Producer<Blob> {
    let patience = Duration::from_secs(3600);
    node.producer(STREAM).replay_last(1).patience(patience).await.unwrap()
}

/// So many consumers of one node.
pub async fn consumers(node: &Node, count: usize) -> Vec<Consumer<Blob>> {
    let mut consumers = Vec::new();
    for _ in 0..count {
        consumers.push(node.consumer(STREAM).await.unwrap());
    }
    consumers
}

/// Both ends.
pub struct Typed {
    nodes: [Node; 2],
    producer: Producer<Blob>,
    consumers: Vec<Consumer<Blob>>,
}

/// Both ends, each with a producer: what one sends comes back from the other.
pub struct Echo {
    typed: Typed,
    echoes: Consumer<Blob>,
    echoing: JoinHandle<()>,
}

impl Echo {
    /// Starts both ends and waits until each is subscribed to the other.
    pub async fn start() -> Self {
        let mut typed = Typed::start(1).await;
        let [there, here] = &typed.nodes;
        let back = here.producer(ECHOES).await.unwrap();
        let echoes = there.consumer(ECHOES).await.unwrap();
        back.when_subscribed(1).await.unwrap();
        let mut consumer = typed.consumers.remove(0);
        let echoing = tokio::spawn(async move {
            while let Some(received) = consumer.recv().await {
                if let Received::Item { item, .. } = received {
                    back.send(&item).await.unwrap();
                }
            }
        });
        Self { typed, echoes, echoing }
    }

    /// Ends both ends.
    pub async fn shut_down(self) {
        self.echoing.abort();
        drop(self.echoes);
        self.typed.shut_down().await;
    }

    /// Half of what an item needs there and back.
    pub async fn half(&mut self, blob: &Blob) -> Duration {
        let start = Instant::now();
        self.typed.producer.send(blob).await.unwrap();
        item(&mut self.echoes).await;
        start.elapsed() / 2
    }
}

impl Typed {
    /// Starts both ends and waits until all consumers are subscribed.
    pub async fn start(count: usize) -> Self {
        let there = node(None).await;
        let here = node(Some(there.addr())).await;
        let producer = producer(&there).await;
        let consumers = consumers(&here, count).await;
        producer.when_subscribed(count).await.unwrap();
        Self { nodes: [there, here], producer, consumers }
    }

    /// Ends both ends.
    pub async fn shut_down(self) {
        drop((self.producer, self.consumers));
        for node in self.nodes {
            node.shutdown().await;
        }
    }

    /// Sends so many items and waits until every consumer has them.
    pub async fn push(&mut self, blob: &Blob, count: usize) -> Duration {
        let receive = |mut consumer: Consumer<Blob>| async move {
            for _ in 0..count {
                item(&mut consumer).await;
            }
            consumer
        };
        let start = Instant::now();
        let receiving: Vec<_> =
            self.consumers.drain(..).map(|consumer| tokio::spawn(receive(consumer))).collect();
        let (producer, mut blob) = (self.producer.clone(), blob.clone());
        let sending = tokio::spawn(async move {
            for _ in 0..count {
                blob.number += 1;
                producer.send(&blob).await.unwrap();
            }
        });
        sending.await.unwrap();
        for receiving in receiving {
            self.consumers.push(receiving.await.unwrap());
        }
        start.elapsed()
    }

    /// Sends an item and waits for it.
    pub async fn lone(&mut self, blob: &Blob) -> Duration {
        let start = Instant::now();
        self.producer.send(blob).await.unwrap();
        item(&mut self.consumers[0]).await;
        start.elapsed()
    }

    /// Subscribes a new consumer and waits for the item that it gets first.
    pub async fn first(&mut self) -> Duration {
        let start = Instant::now();
        let mut consumer = self.nodes[1].consumer(STREAM).await.unwrap();
        item(&mut consumer).await;
        let took = start.elapsed();
        let others = self.consumers.len();
        drop(consumer);
        while self.producer.consumers().len() > others {
            tokio::task::yield_now().await;
        }
        took
    }
}

async fn item(consumer: &mut Consumer<Blob>) -> Blob {
    match consumer.recv().await {
        Some(Received::Item { item, .. }) => item,
        other => panic!("expected an item, came {other:?}"),
    }
}
