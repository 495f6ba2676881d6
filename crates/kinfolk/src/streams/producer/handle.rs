//! The handle of a producer: what an app sends by.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::Sink;
use futures_util::future::BoxFuture;
use iroh::EndpointId;
use kinfolk_core::stream::{AppendError, StreamName, SubscriberId};
use kinfolk_core::wire::subscription::{HEAD_BYTES, StreamEnd};
use thiserror::Error;

use crate::context::Context as NodeContext;
use crate::streams::item::Item;
use crate::streams::producer::outlet::{NotSent, Outlet, Sent, Subscribed};

/// What a key is made by.
pub(crate) type KeyOf<T> = dyn Fn(&T) -> Vec<u8> + Send + Sync;

thread_local! {
    /// Where items are encoded, so that each does not allocate anew.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };

    /// What was sent on this thread since a unit of tokio's budget was spent on it.
    static UNPAID: Cell<usize> = const { Cell::new(0) };
}

/// Bytes for a unit of tokio's budget, which is meant for more work than a small item is. A task that only sends has 128 units, and so fills some buffers before the others run.
const UNIT: usize = 1024;

/// What an item costs at least.
const ITEM_LEAST: usize = 128;

/// A buffer larger than this is not kept for the next item.
const SCRATCH_KEPT: usize = 64 * 1024;

/// Why an item was not sent.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SendError {
    /// It is longer than the producer's items may be, has a key too long or one key too many, or has no room among the latest items of keys.
    #[error(transparent)]
    Refused(AppendError),
    /// It could not be encoded.
    #[error("the item could not be encoded: {0}")]
    Encode(Arc<str>),
    /// The producer has ended.
    #[error("the producer has ended: {}", .0.name())]
    Ended(StreamEnd),
}

/// Why an item was not sent at once.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TrySendError {
    /// A consumer has to catch up first; [`Producer::send`] waits for that.
    #[error("a consumer has to catch up first")]
    Full,
    /// It cannot be sent.
    #[error(transparent)]
    Failed(#[from] SendError),
}

/// A consumer of a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStatus {
    /// Whose node it is on.
    pub peer: EndpointId,
    /// How long it is subscribed.
    pub subscribed_for: Duration,
    /// Items that were given to its stream.
    pub items: u64,
    /// Their bytes, with four for each item.
    pub bytes: u64,
    /// Items that it has lost, as it was too slow.
    pub missed: u64,
    /// Items that wait for it.
    pub behind: u64,
}

/// Sends items to all who consume the stream.
///
/// It is a cheap handle: every clone sends into the same stream. The producer ends when the last one is dropped: what was sent is still delivered, and
/// consumers learn that nothing more will come.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    context: Arc<NodeContext>,
    outlet: Arc<Outlet>,
    key: Option<Box<KeyOf<T>>>,
    _items: PhantomData<fn(T)>,
}

impl<T> Clone for Producer<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> std::fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("name", &self.shared.outlet.terms.name)
            .finish_non_exhaustive()
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        self.context.end_producer(&self.outlet);
    }
}

impl<T: Item> Producer<T> {
    pub(crate) fn new(
        context: Arc<NodeContext>,
        outlet: Arc<Outlet>,
        key: Option<Box<KeyOf<T>>>,
    ) -> Self {
        Self { shared: Arc::new(Shared { context, outlet, key, _items: PhantomData }) }
    }

    /// The stream's name.
    pub fn name(&self) -> &StreamName {
        &self.shared.outlet.terms.name
    }

    /// Sends an item and returns its number; the first one has the number 0. Whether anybody consumes it does not matter.
    ///
    /// Under [`WhenFull::Wait`](crate::WhenFull::Wait) it waits while a consumer is too far behind; one that does not catch up at all is disconnected after a while
    /// ([`ProducerBuilder::patience`](crate::ProducerBuilder::patience)). Cancel safe: cancelled, the item is not sent.
    ///
    /// # Errors
    ///
    /// If the item is too long or cannot be encoded, or the producer has ended.
    pub async fn send(&self, item: &T) -> Result<u64, SendError> {
        // A sender that never waits has to let the others run all the same.
        if UNPAID.get() >= UNIT {
            UNPAID.set(0);
            tokio::task::coop::consume_budget().await;
        }
        let mut encoded = self.encode(item)?;
        let outlet = &self.shared.outlet;
        if let Sent::Number(number) = self.put(&mut encoded)? {
            encoded.keep();
            return Ok(number);
        }
        loop {
            let (_waiting, room) = outlet.room();
            tokio::pin!(room);
            // Registered before the look, so that nothing in between is missed.
            room.as_mut().enable();
            if let Sent::Number(number) = self.put(&mut encoded)? {
                encoded.keep();
                return Ok(number);
            }
            // Whoever is in the way is given up in time by the outlet's patience, whether or not this sender waits on.
            room.await;
        }
    }

    /// Sends an item if that can be done at once, and returns its number. A consumer that is in the way is disconnected after as long a while as for
    /// [`Producer::send`].
    ///
    /// # Errors
    ///
    /// As [`Producer::send`], and if a consumer would have to catch up first.
    pub fn try_send(&self, item: &T) -> Result<u64, TrySendError> {
        let mut encoded = self.encode(item)?;
        match self.put(&mut encoded)? {
            Sent::Number(number) => {
                encoded.keep();
                Ok(number)
            }
            Sent::Full => Err(TrySendError::Full),
        }
    }

    /// The same as a sink, for this and no other handle. It takes the next item once the last one is sent; an item that cannot be sent is an error of the next poll, and the
    /// sink takes others after it. Flushed and closed mean sent, not delivered; closed, the sink can still be used.
    pub fn into_sink(self) -> ProducerSink<T>
    where
        T: Sync,
    {
        ProducerSink { producer: self, sending: None }
    }

    fn encode(&self, item: &T) -> Result<Encoded, SendError> {
        let key = self.shared.key.as_ref().map(|key| key(item));
        let mut entry = SCRATCH.take();
        entry.clear();
        entry.extend_from_slice(&[0; HEAD_BYTES]);
        match postcard::serialize_with_flavor(item, Appending(entry)) {
            Ok(entry) => Ok(Encoded { entry, key }),
            Err(error) => Err(SendError::Encode(error.to_string().into())),
        }
    }

    fn put(&self, encoded: &mut Encoded) -> Result<Sent, SendError> {
        UNPAID.set(UNPAID.get().saturating_add(encoded.entry.len().max(ITEM_LEAST)));
        let put = self.shared.outlet.put(&mut encoded.entry, encoded.key.as_deref());
        put.map_err(|error| match error {
            NotSent::Ended(end) => SendError::Ended(end),
            NotSent::Refused(error) => SendError::Refused(error),
        })
    }

    /// Waits until at least so many consumers are subscribed. Cancel safe.
    ///
    /// # Errors
    ///
    /// If the producer ends before.
    pub async fn when_subscribed(&self, consumers: usize) -> Result<(), SendError> {
        let outlet = &self.shared.outlet;
        let (mut subscribers, mut ending) = (outlet.subscribers(), outlet.ending());
        tokio::select! {
            biased;
            _ = subscribers.wait_for(|subscribers| subscribers.len() >= consumers) => Ok(()),
            end = ending.wait_for(Option::is_some) => {
                let end = end.ok().and_then(|end| *end);
                Err(SendError::Ended(end.unwrap_or(StreamEnd::ShuttingDown)))
            }
        }
    }

    /// Those who are subscribed now.
    pub fn consumers(&self) -> Vec<ConsumerStatus> {
        let outlet = &self.shared.outlet;
        let subscribers: BTreeMap<SubscriberId, Subscribed> = outlet.subscribers().borrow().clone();
        let now = Instant::now();
        let status = |(id, subscribed): (SubscriberId, Subscribed)| {
            let progress = outlet.progress(id)?;
            Some(ConsumerStatus {
                peer: subscribed.peer,
                subscribed_for: now.saturating_duration_since(subscribed.since),
                items: progress.items,
                bytes: progress.bytes,
                missed: progress.missed,
                behind: progress.behind,
            })
        };
        subscribers.into_iter().filter_map(status).collect()
    }

    /// Ends the producer for all its handles and waits until every consumer has got what was sent, or has had
    /// [`Limits::drain_deadline`](crate::Limits::drain_deadline) for it. Cancel safe; the end goes on.
    pub async fn finish(self) {
        self.shared.context.end_producer(&self.shared.outlet);
        let mut subscribers = self.shared.outlet.subscribers();
        let context = &self.shared.context;
        tokio::select! {
            biased;
            _ = subscribers.wait_for(BTreeMap::is_empty) => {}
            _ = context.closed() => {}
        }
    }
}

/// A producer as a [`Sink`]; made by [`Producer::into_sink`].
#[must_use = "a sink sends nothing by itself"]
pub struct ProducerSink<T> {
    producer: Producer<T>,
    sending: Option<BoxFuture<'static, Result<(), SendError>>>,
}

impl<T> std::fmt::Debug for ProducerSink<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProducerSink").field("producer", &self.producer).finish_non_exhaustive()
    }
}

impl<T> ProducerSink<T> {
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Some(sending) = &mut self.sending else { return Poll::Ready(Ok(())) };
        let sent = ready!(sending.as_mut().poll(cx));
        self.sending = None;
        Poll::Ready(sent)
    }
}

impl<T: Item + Sync> Sink<T> for ProducerSink<T> {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_sent(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, item: T) -> Result<(), SendError> {
        let (producer, before) = (self.producer.clone(), self.sending.take());
        self.sending = Some(Box::pin(async move {
            // There is one only if nobody has waited until the sink was ready.
            if let Some(before) = before {
                before.await?;
            }
            producer.send(&item).await.map(|_| ())
        }));
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_sent(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_sent(cx)
    }
}

/// An item on its way out, with room for its head.
struct Encoded {
    entry: Vec<u8>,
    key: Option<Vec<u8>>,
}

impl Encoded {
    /// Keeps the buffer for the next item.
    fn keep(self) {
        if self.entry.capacity() <= SCRATCH_KEPT {
            SCRATCH.set(self.entry);
        }
    }
}

/// Lets postcard write behind what is in a buffer.
struct Appending(Vec<u8>);

impl postcard::ser_flavors::Flavor for Appending {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}
