//! The producers and consumers that the app has: what the actors serve, kept through every restart of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kinfolk_core::record::Offer;
use kinfolk_core::stream::StreamName;
use kinfolk_core::wire::subscription::StreamEnd;
use ractor::ActorRef;
use tokio::sync::watch;

use crate::context::Context;
use crate::error::NodeClosed;
use crate::node::terminal::Terminal;
use crate::streams::consumer::builder::ConsumerError;
use crate::streams::consumer::inlet::Inlet;
use crate::streams::manager::StreamsMessage;
use crate::streams::producer::builder::ProducerError;
use crate::streams::producer::outlet::Outlet;
use crate::supervision::lock;

/// See the module page.
#[derive(Debug)]
pub(crate) struct Registry {
    producers: Mutex<BTreeMap<StreamName, Arc<Outlet>>>,
    consumers: Mutex<BTreeMap<u64, Arc<Inlet>>>,
    actor: watch::Sender<Option<ActorRef<StreamsMessage>>>,
    /// Numbers for consumers and for subscriptions.
    numbers: AtomicU64,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            producers: Mutex::default(),
            consumers: Mutex::default(),
            actor: watch::Sender::new(None),
            numbers: AtomicU64::new(0),
        }
    }
}

impl Registry {
    pub(crate) fn producer(&self, name: &StreamName) -> Option<Arc<Outlet>> {
        lock(&self.producers).get(name).cloned()
    }

    pub(crate) fn producers(&self) -> Vec<Arc<Outlet>> {
        lock(&self.producers).values().cloned().collect()
    }

    /// Peers that ask to subscribe and have no answer yet.
    pub(crate) fn asking(&self) -> usize {
        lock(&self.producers).values().map(|outlet| outlet.asking()).sum()
    }

    pub(crate) fn consumers(&self) -> Vec<Arc<Inlet>> {
        lock(&self.consumers).values().cloned().collect()
    }

    /// A number that nothing else of this node has.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Publishes the actor that is up, or that none is.
    pub(crate) fn set_actor(&self, actor: Option<ActorRef<StreamsMessage>>) {
        self.actor.send_replace(actor);
    }

    /// Sends to Streams; one that is away looks up what it missed when it is back.
    pub(crate) fn tell(&self, message: StreamsMessage) -> bool {
        let actor = self.actor.borrow().clone();
        actor.is_some_and(|actor| actor.send_message(message).is_ok())
    }
}

impl Context {
    fn takes_streams(&self) -> Result<(), NodeClosed> {
        match self.ended() {
            Some(end) => Err(NodeClosed(end)),
            None if self.is_draining() => Err(NodeClosed(Terminal::Shutdown)),
            None => Ok(()),
        }
    }

    /// Takes a producer into service and says so in the record.
    pub(crate) fn start_producer(&self, outlet: &Arc<Outlet>) -> Result<(), ProducerError> {
        self.takes_streams()?;
        let name = &outlet.terms.name;
        {
            let mut producers = lock(&self.streams.producers);
            if producers.contains_key(name) {
                return Err(ProducerError::AlreadyProduced(name.clone()));
            }
            let max = self.limits.streams.producers;
            if producers.len() >= max {
                return Err(ProducerError::TooMany(max));
            }
            self.offer(Offer::stream(name))?;
            producers.insert(name.clone(), Arc::clone(outlet));
        }
        self.streams.tell(StreamsMessage::Produce(Arc::clone(outlet)));
        // It may have begun to drain meanwhile.
        if self.is_draining() {
            outlet.end(StreamEnd::ShuttingDown);
        }
        Ok(())
    }

    /// Takes a producer out of service: what was sent is still delivered.
    pub(crate) fn end_producer(&self, outlet: &Arc<Outlet>) {
        let name = &outlet.terms.name;
        let mut producers = lock(&self.streams.producers);
        if producers.get(name).is_some_and(|own| Arc::ptr_eq(own, outlet)) {
            producers.remove(name);
            drop(producers);
            self.withdraw_offer(Offer::stream(name));
        }
        outlet.end(StreamEnd::Finished);
    }

    /// Lets a consumer look for sources.
    pub(crate) fn start_consumer(&self, inlet: &Arc<Inlet>) -> Result<(), ConsumerError> {
        self.takes_streams()?;
        if !self.discovers {
            return Err(ConsumerError::NoDiscovery);
        }
        {
            let mut consumers = lock(&self.streams.consumers);
            let max = self.limits.streams.consumers;
            if consumers.len() >= max {
                return Err(ConsumerError::TooMany(max));
            }
            consumers.insert(inlet.number, Arc::clone(inlet));
        }
        self.streams.tell(StreamsMessage::Consume(Arc::clone(inlet)));
        if self.is_draining() {
            inlet.close();
        }
        Ok(())
    }

    /// Unsubscribes a consumer from all its sources.
    pub(crate) fn end_consumer(&self, inlet: &Inlet) {
        lock(&self.streams.consumers).remove(&inlet.number);
        inlet.close();
    }

    /// Ends all streams, as the node takes no new work: what was sent is still delivered, and peers are told.
    pub(crate) fn end_streams(&self) {
        for outlet in self.streams.producers() {
            outlet.end(StreamEnd::ShuttingDown);
        }
        for inlet in self.streams.consumers() {
            inlet.close();
        }
    }
}
