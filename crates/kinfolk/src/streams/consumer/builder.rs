//! Building a consumer: from whom, and how much may wait for the app.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use kinfolk_core::record::Record;
use kinfolk_core::stream::{NameError, StreamName};
use kinfolk_core::wire::subscription::{ITEM_MAX, TICKET_MAX};
use thiserror::Error;

use crate::context::Context;
use crate::error::NodeClosed;
use crate::streams::consumer::handle::Consumer;
use crate::streams::consumer::inlet::{Inlet, Terms, Wants};
use crate::streams::item::Item;

/// Bytes of items that may wait for the app, unless it says otherwise: as much as a producer keeps (a guess).
const BUFFER: u32 = 1024 * 1024;

/// Why a consumer cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// The name of the stream is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The node has as many consumers as its limits allow.
    #[error("expected at most {0} consumers, came one more")]
    TooMany(usize),
    /// Discovery is switched off: there is no catalog to find producers in.
    #[error("discovery is switched off in this node")]
    NoDiscovery,
    /// It has no room for anything.
    #[error("expected room for one source, and for items of 1 to {ITEM_MAX} bytes")]
    Empty,
    /// The ticket is too long.
    #[error("expected a ticket of at most {TICKET_MAX} bytes, came one of {0}")]
    TicketTooLong(usize),
    /// The node has ended.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

/// Builds a [`Consumer`]: await it.
#[must_use = "a consumer is made by awaiting this"]
pub struct ConsumerBuilder<T> {
    context: Arc<Context>,
    name: Result<StreamName, NameError>,
    sources: Option<usize>,
    item_max: usize,
    buffer: u32,
    ticket: Option<Bytes>,
    wants: Option<Box<Wants>>,
    _items: std::marker::PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for ConsumerBuilder<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsumerBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T: Item> ConsumerBuilder<T> {
    pub(crate) fn new(context: &Arc<Context>, name: &str) -> Self {
        Self {
            context: Arc::clone(context),
            name: StreamName::new(name),
            sources: None,
            item_max: 256 * 1024,
            buffer: BUFFER,
            ticket: None,
            wants: None,
            _items: std::marker::PhantomData,
        }
    }

    /// Subscribes to so many producers at most, those with the shortest round trips first. The default is that of the node's limits.
    pub fn max_sources(mut self, sources: usize) -> Self {
        self.sources = Some(sources);
        self
    }

    /// Subscribes only to producers for whose record the function is true. It is asked again whenever a record changes, and must not block.
    pub fn from(mut self, wants: impl Fn(&Record) -> bool + Send + Sync + 'static) -> Self {
        self.wants = Some(Box::new(wants));
        self
    }

    /// How many bytes of items may wait for the app, all sources together; the default is 1 MiB. What sources send beyond that waits with them, and in QUIC's windows.
    pub fn buffer(mut self, bytes: u32) -> Self {
        self.buffer = bytes;
        self
    }

    /// The longest item that is taken, in bytes; a source that sends a longer one is cut off. The default is 256 KiB.
    pub fn item_max(mut self, bytes: usize) -> Self {
        self.item_max = bytes;
        self
    }

    /// Presents this ticket to producers that want one; [`Consumer::set_ticket`] renews it.
    pub fn ticket(mut self, ticket: impl Into<Bytes>) -> Self {
        self.ticket = Some(ticket.into());
        self
    }

    fn start(self) -> Result<Consumer<T>, ConsumerError> {
        let context = self.context;
        let sources = self.sources.unwrap_or(context.limits.streams.subscriptions.sources);
        if sources == 0 || self.buffer == 0 || self.item_max == 0 || self.item_max > ITEM_MAX {
            return Err(ConsumerError::Empty);
        }
        let length = self.ticket.as_ref().map_or(0, Bytes::len);
        if length > TICKET_MAX {
            return Err(ConsumerError::TicketTooLong(length));
        }
        let terms = Terms {
            name: self.name?,
            schema: T::SCHEMA,
            item_max: self.item_max,
            sources,
            buffer: self.buffer,
            wants: self.wants,
        };
        let (inlet, batches) = Inlet::new(context.streams.number(), terms, self.ticket);
        context.start_consumer(&inlet)?;
        Ok(Consumer::new(context, inlet, batches))
    }
}

impl<T: Item> IntoFuture for ConsumerBuilder<T> {
    type Output = Result<Consumer<T>, ConsumerError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.start() })
    }
}
