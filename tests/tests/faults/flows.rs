//! Typed streams between alice and dave, in both directions: those that have to flow on whatever fails, and those by which a point is reached.

use std::time::Duration;

use kinfolk::{
    Consumer, EndpointId, Item, Node, Offer, Producer, ProducerBuilder, Received, Schema,
    StreamName, TicketVerdict,
};
use kinfolk_tests::support::wait::{eventually, within};
use serde::{Deserialize, Serialize};

use crate::scene::{SOON, Scene};

/// What the streams carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Number(pub(crate) u64);

impl Item for Number {
    const SCHEMA: Schema = Schema::new("number", 1);
}

/// Says that it is the same, and is not.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Poison(pub(crate) (u64, u64));

impl Item for Poison {
    const SCHEMA: Schema = Number::SCHEMA;
}

/// Something else.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Other;

impl Item for Other {
    const SCHEMA: Schema = Schema::new("other", 1);
}

/// The stream that alice produces to be asked for, and that dave produces.
pub(crate) const PROBE: &str = "probe";
/// A ticket that is good for ever.
pub(crate) const GOOD: &[u8] = b"good";
/// A ticket that is soon over.
pub(crate) const SHORT: &[u8] = b"short";

/// A stream of one producer with one consumer, from which nothing may be missing.
struct Flow {
    producer: Producer<Number>,
    consumer: Consumer<Number>,
    /// The number of the item that is to come next.
    next: u64,
}

impl Flow {
    /// An item goes through it, behind all that was sent before, and none twice.
    async fn flows(&mut self) {
        let sent = within(SOON, "room", self.producer.send(&Number(self.next))).await;
        assert_eq!(sent, Ok(self.next));
        let received = within(2 * SOON, "the next item", self.consumer.recv()).await;
        let Some(Received::Item { number, item, .. }) = received else {
            panic!("{received:?} in the place of {}", self.next)
        };
        assert_eq!((number, item), (self.next, Number(self.next)));
        self.next += 1;
    }

    /// How often it was interrupted.
    fn breaks(&self) -> u64 {
        self.consumer.sources().iter().map(|source| source.reconnects).sum()
    }
}

/// All of them.
pub(crate) struct Flows {
    flows: Vec<Flow>,
    breaks: u64,
    /// Producers that nobody consumes.
    kept: Vec<Producer<Number>>,
    /// Alice's, for those who have a ticket.
    pub(crate) out: Option<Producer<Number>>,
    pub(crate) inward: Option<Producer<Number>>,
    /// Dave's, of what alice produces.
    pub(crate) outer: Option<Consumer<Number>>,
    /// Alice's, of what dave produces.
    pub(crate) inner: Option<Consumer<Number>>,
}

/// A producer to which only those are admitted who have a ticket.
pub(crate) fn guarded(node: &Node, name: &str) -> ProducerBuilder<Number> {
    node.producer(name).admit(|_| true).tickets(|_, ticket| async move {
        match &*ticket {
            GOOD => TicketVerdict::Valid,
            SHORT => TicketVerdict::ValidFor(Duration::from_millis(300)),
            _ => TicketVerdict::Invalid,
        }
    })
}

impl Flows {
    pub(crate) async fn new(alice: &Node, dave: &Node) -> Self {
        let out = guarded(alice, PROBE).await.expect("a producer");
        let inward = dave.producer(PROBE).await.expect("a producer");
        let mut flows = Vec::new();
        for (from, to, name) in [
            (alice, dave, "out/1"),
            (alice, dave, "out/2"),
            (dave, alice, "in/1"),
            (dave, alice, "in/2"),
        ] {
            let producer = from.producer(name).await.expect("a producer");
            let consumer = to.consumer(name).await.expect("a consumer");
            flows.push(Flow { producer, consumer, next: 0 });
        }
        // What they know of each other may be of before.
        let (a, d) = (alice.id(), dave.id());
        let offers = |of: &Node, whom: &EndpointId, names: [&'static str; 3]| {
            let catalog = of.catalog();
            let names = names.map(|name| Offer::stream(&StreamName::from_static(name)));
            catalog.get(whom).is_some_and(|entry| {
                names.iter().all(|name| entry.record().offers().any(|offer| offer == *name))
            })
        };
        // What comes later, walkers bring: who asks too often is not answered.
        within(SOON, "an exchange", alice.sync_with(dave.addr())).await.expect("both discover");
        eventually(SOON, "both know of all streams", async || {
            offers(alice, &d, ["in/1", "in/2", PROBE])
                && offers(dave, &a, ["out/1", "out/2", PROBE])
        })
        .await;
        for flow in &flows {
            within(SOON, "a source", flow.consumer.when_online(1)).await.expect("up");
            within(SOON, "a consumer", flow.producer.when_subscribed(1)).await.expect("up");
        }
        let (outer, inner) = (None, None);
        let (out, inward) = (Some(out), Some(inward));
        let mut flows = Self { flows, breaks: 0, kept: Vec::new(), out, inward, outer, inner };
        flows.flow().await;
        flows.breaks = flows.count_breaks();
        flows
    }

    fn count_breaks(&self) -> u64 {
        self.flows.iter().map(Flow::breaks).sum()
    }

    /// How many of those that have to flow on were interrupted.
    pub(crate) fn broken(&self) -> u64 {
        self.count_breaks() - self.breaks
    }

    /// Items go through all that have to flow on.
    pub(crate) async fn flow(&mut self) {
        for flow in &mut self.flows {
            flow.flows().await;
        }
    }

    /// Items come by what a point was reached by, if it is there.
    pub(crate) async fn probes_flow(&mut self) {
        let probes = [(&self.out, &mut self.outer), (&self.inward, &mut self.inner)];
        for (producer, consumer) in probes {
            let (Some(producer), Some(consumer)) = (producer, consumer) else { continue };
            eventually(2 * SOON, "an item by the probe", async || {
                let _ = producer.try_send(&Number(7));
                let received =
                    tokio::time::timeout(Duration::from_millis(50), consumer.recv()).await;
                matches!(received, Ok(Some(Received::Item { item: Number(7), .. })))
            })
            .await;
        }
    }
}

impl Scene {
    /// Streams flow between alice and dave from now on.
    pub(crate) async fn let_flow(&mut self) {
        let dave = self.dave().await;
        self.flows = Some(Flows::new(&self.alice, &dave).await);
    }

    /// Dave consumes what alice produces, with this ticket.
    pub(crate) async fn dave_asks(&mut self, ticket: &'static [u8]) {
        let dave = self.dave().await;
        let consumer = dave.consumer(PROBE).ticket(ticket).await.expect("a consumer");
        self.flows().outer = Some(consumer);
    }

    /// Dave consumes it already.
    pub(crate) async fn dave_consumes(&mut self) {
        self.dave_asks(GOOD).await;
        let flows = self.flows();
        let consumer = flows.outer.as_ref().expect("it asks");
        within(SOON, "a source", consumer.when_online(1)).await.expect("up");
    }

    /// Alice consumes what dave produces.
    pub(crate) async fn alice_asks(&mut self) {
        let consumer = self.alice.consumer(PROBE).await.expect("a consumer");
        self.flows().inner = Some(consumer);
    }

    /// Alice consumes it already.
    pub(crate) async fn alice_consumes(&mut self) {
        self.alice_asks().await;
        let consumer = self.flows().inner.as_ref().expect("it asks");
        within(SOON, "a source", consumer.when_online(1)).await.expect("up");
    }

    /// Alice has another producer.
    pub(crate) async fn produce(&mut self, name: &str) {
        let producer = self.alice.producer(name).await.expect("a producer");
        self.keep(producer);
    }

    pub(crate) fn keep(&mut self, producer: Producer<Number>) {
        self.flows().kept.push(producer);
    }

    /// Reads what comes for as long as it comes, and then lets both go.
    pub(crate) fn read_on(&mut self, mut consumer: Consumer<Number>, producer: Producer<Poison>) {
        self.run(async move {
            let _ = tokio::time::timeout(SOON.mul_f64(0.5), async {
                while consumer.recv().await.is_some() {}
            })
            .await;
            drop(producer);
        });
    }

    pub(crate) fn flows(&mut self) -> &mut Flows {
        self.flows.as_mut().expect("they flow")
    }
}
