//! Building a producer: what becomes of items that nobody takes in time, and who may consume them.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use iroh::EndpointId;
use kinfolk_core::record::Record;
use kinfolk_core::stream::{
    DATAGRAM_ITEM_MAX, Fanout, FanoutLimitError, FanoutLimits, NameError, Replay, StreamName,
    WhenFull,
};
use kinfolk_core::wire::subscription::Channel;
use serde::Serialize;
use thiserror::Error;

use crate::context::Context;
use crate::error::{NodeClosed, OfferError};
use crate::streams::item::Item;
use crate::streams::producer::handle::{KeyOf, Producer};
use crate::streams::producer::outlet::{Admits, ChecksTicket, Outlet, Terms, TicketVerdict};

/// How long a subscriber may hold up the others before it is disconnected, unless the app says otherwise: as long as a call may take to be read.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a producer cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProducerError {
    /// Its name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// This node has a producer of this name.
    #[error("this node produces {0} already")]
    AlreadyProduced(StreamName),
    /// The node has as many producers as its limits allow.
    #[error("expected at most {0} producers, came one more")]
    TooMany(usize),
    /// Its bounds leave no room for an item.
    #[error(transparent)]
    Limits(#[from] FanoutLimitError),
    /// The node cannot say that it has it.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// The node has ended.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

/// Builds a [`Producer`]: await it.
#[must_use = "a producer is made by awaiting this"]
pub struct ProducerBuilder<T> {
    context: Arc<Context>,
    name: Result<StreamName, NameError>,
    channel: Channel,
    when_full: WhenFull,
    replay: Replay,
    limits: FanoutLimits,
    patience: Duration,
    consumers: Option<usize>,
    admits: Option<Box<Admits>>,
    tickets: Option<Box<ChecksTicket>>,
    key: Option<Box<KeyOf<T>>>,
}

impl<T> std::fmt::Debug for ProducerBuilder<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProducerBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T: Item> ProducerBuilder<T> {
    pub(crate) fn new(context: &Arc<Context>, name: &str) -> Self {
        Self {
            context: Arc::clone(context),
            name: StreamName::new(name),
            channel: Channel::Reliable,
            when_full: WhenFull::default(),
            replay: Replay::default(),
            limits: FanoutLimits::default(),
            patience: PATIENCE,
            consumers: None,
            admits: None,
            tickets: None,
            key: None,
        }
    }

    /// What becomes of items that a consumer does not take in time. The default is [`WhenFull::Wait`]. Of no meaning for the other kinds of stream.
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// How long one consumer may hold up all others under [`WhenFull::Wait`] without taking anything; then it is disconnected as too slow. The default is 30 s.
    ///
    /// It counts from the first item that finds no room, sent by [`Producer::send`] or by [`Producer::try_send`], and goes on while the app does not send. It
    /// counts for each peer: one that subscribes again has what was left, until it has taken what it was behind; it grows back sixteen times slower than it
    /// was spent.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends the latest item of each key only: a newer one takes the place of what a consumer has not got yet. What a slow consumer gets is never old, and not all.
    /// The key is what the function returns, as postcard, in at most 256 bytes.
    pub fn latest<K: Serialize>(self, key: impl Fn(&T) -> K + Send + Sync + 'static) -> Self {
        Self { channel: Channel::Latest, ..self.keyed(key) }
    }

    /// Sends each item as a datagram: in no order, once, or not at all; nothing is sent again, nothing waits. Items are of at most 1 000 bytes.
    pub fn datagrams(mut self) -> Self {
        self.channel = Channel::Datagram;
        self.limits.item_max = self.limits.item_max.min(DATAGRAM_ITEM_MAX);
        self
    }

    /// Gives new consumers the latest items first, at most so many and as far as they are kept. By default they get what is sent from then on.
    pub fn replay_last(mut self, items: u64) -> Self {
        self.replay = Replay::Last(items);
        self
    }

    /// Gives new consumers the latest item of each key first. The key is as in [`ProducerBuilder::latest`].
    pub fn replay_latest<K: Serialize>(
        self,
        key: impl Fn(&T) -> K + Send + Sync + 'static,
    ) -> Self {
        Self { replay: Replay::Keyed, ..self.keyed(key) }
    }

    fn keyed<K: Serialize>(mut self, key: impl Fn(&T) -> K + Send + Sync + 'static) -> Self {
        // One that cannot be encoded has no bytes, as all of its kind.
        self.key =
            Some(Box::new(move |item| postcard::to_allocvec(&key(item)).unwrap_or_default()));
        self
    }

    /// How many bytes of items are kept: by so much a consumer may be behind, and one that comes back within so much misses nothing. The default is 1 MiB. The latest items of keys
    /// come on top, within [`ProducerBuilder::keys_bytes`].
    pub fn keep_bytes(mut self, bytes: u64) -> Self {
        self.limits.bytes = bytes;
        self
    }

    /// How many items are kept at most. The default is as many as fit into [`ProducerBuilder::keep_bytes`].
    pub fn keep_items(mut self, items: u64) -> Self {
        self.limits.items = items;
        self
    }

    /// The longest item, in bytes. The default is 256 KiB; consumers have to take as much.
    pub fn item_max(mut self, bytes: usize) -> Self {
        self.limits.item_max = bytes;
        self
    }

    /// How many keys are kept. The default is 4 096.
    pub fn keys_max(mut self, keys: usize) -> Self {
        self.limits.keys = keys;
        self
    }

    /// How many bytes the latest items of all keys may take, with their keys and some 200 bytes for each. The default is 4 MiB. An item that has no room is
    /// [refused](crate::KeyError::NoRoom), and the one before it stays.
    pub fn keys_bytes(mut self, bytes: u64) -> Self {
        self.limits.key_bytes = bytes;
        self
    }

    /// How many consumers there may be at once; more are told to come back later. The default is that of the node's limits.
    pub fn max_consumers(mut self, consumers: usize) -> Self {
        self.consumers = Some(consumers);
        self
    }

    /// Lets only those consume it whose record is known and for which the function is true. It is asked again whenever a record changes: a consumer that is not
    /// wanted any more is cut off. It must not block.
    pub fn admit(mut self, admits: impl Fn(&Record) -> bool + Send + Sync + 'static) -> Self {
        self.admits = Some(Box::new(admits));
        self
    }

    /// Lets only those consume it who present a ticket, bytes that kinfolk does not look into, that the function finds good.
    pub fn tickets<F, Fut>(mut self, check: F) -> Self
    where
        F: Fn(EndpointId, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = TicketVerdict> + Send + 'static,
    {
        self.tickets = Some(Box::new(move |peer, ticket| check(peer, ticket).boxed()));
        self
    }

    fn start(self) -> Result<Producer<T>, ProducerError> {
        let context = self.context;
        let fanout =
            Fanout::new(self.channel, self.when_full, self.replay == Replay::Keyed, self.limits)?;
        let subscribers = context.limits.streams.subscribers.total;
        let terms = Terms {
            name: self.name?,
            schema: T::SCHEMA,
            replay: self.replay,
            patience: self.patience,
            subscribers: self.consumers.unwrap_or(subscribers),
            admits: self.admits,
            tickets: self.tickets,
        };
        let outlet =
            Arc::new(Outlet::new(terms, fanout, context.limits.streams.subscribers.asking));
        context.start_producer(&outlet)?;
        Ok(Producer::new(context, outlet, self.key))
    }
}

impl<T: Item> IntoFuture for ProducerBuilder<T> {
    type Output = Result<Producer<T>, ProducerError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.start() })
    }
}
