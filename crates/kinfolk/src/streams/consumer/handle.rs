//! The handle of a consumer: what an app receives by.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use iroh::EndpointId;
use kinfolk_core::stream::{Items, SourceState, StreamName};
use kinfolk_core::wire::subscription::{Channel, TICKET_MAX};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::context::Context;
use crate::error::NodeClosed;
use crate::node::terminal::Terminal;
use crate::streams::consumer::builder::ConsumerError;
use crate::streams::consumer::inlet::{Batch, Content, Flow, Inlet};
use crate::streams::item::Item;

/// What a consumer receives. What comes from one source comes in the order in which that sent it; between sources there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received<T> {
    /// An item.
    Item {
        /// Whose it is.
        source: EndpointId,
        /// The number that the producer gave it, counted from 0 since it started.
        number: u64,
        /// The item.
        item: T,
    },
    /// Items that this consumer will not get: it was too slow or away for too long, or they are those that came behind one that could not be decoded, and that one.
    Gap {
        /// Whose they were.
        source: EndpointId,
        /// How many.
        missed: u64,
    },
    /// The producer has started anew, and its items have numbers from 0 again. What its earlier life sent after the last item received from it is lost; nobody knows
    /// how much that was.
    Restarted {
        /// The producer.
        source: EndpointId,
    },
}

/// A source of a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceStatus {
    /// Whose node it is on.
    pub peer: EndpointId,
    /// Whether the consumer is subscribed, and why not.
    pub state: SourceState,
    /// The kind of its stream, once it has said so.
    pub channel: Option<Channel>,
    /// Items received.
    pub items: u64,
    /// Their bytes, with four for each item.
    pub bytes: u64,
    /// Items lost, as far as is known.
    pub missed: u64,
    /// Items that did not come as newer ones of their keys took their place, which is no loss.
    pub superseded: u64,
    /// Times that the consumer was subscribed anew after it had lost the source.
    pub reconnects: u64,
    /// What went wrong last.
    pub last_error: Option<Arc<str>>,
    /// How long the consumer is subscribed, if it is.
    pub connected_for: Option<Duration>,
}

/// Receives the items of all who produce the stream.
///
/// It follows the catalog: sources that come are subscribed to, and those that are lost again and again until they are back. It is a [`Stream`] too. While the app does not read, sources are not
/// read either once [`ConsumerBuilder::buffer`](crate::ConsumerBuilder::buffer) bytes wait; what then becomes of items is for each producer to say.
/// Dropped, it is unsubscribed everywhere.
///
/// What waits unread in QUIC counts against what this node lets one peer send on all its streams ([`Limits::connection_window`](crate::Limits::connection_window)): by default seven subscriptions to one
/// peer that nobody reads hold up everything else from it. Of datagrams, what was lost shows in [`SourceStatus::missed`] and in no gap while the link lives.
#[must_use = "a consumer that is dropped receives nothing"]
pub struct Consumer<T> {
    context: Arc<Context>,
    inlet: Arc<Inlet>,
    batches: mpsc::UnboundedReceiver<Batch>,
    current: Option<Current>,
    /// It reads from sources by itself.
    reads: bool,
    _items: std::marker::PhantomData<fn() -> T>,
}

/// A run of items that is being read.
struct Current {
    flow: Arc<Flow>,
    /// That of the next one.
    number: u64,
    items: Items,
    _room: Option<OwnedSemaphorePermit>,
}

impl<T> std::fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("name", &self.inlet.terms.name).finish_non_exhaustive()
    }
}

impl<T> Consumer<T> {
    /// Reads from sources by itself no more.
    fn give_back(&mut self) {
        if std::mem::take(&mut self.reads) {
            self.inlet.give_back();
        }
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.context.end_consumer(&self.inlet);
    }
}

impl<T: Item> Consumer<T> {
    pub(crate) fn new(
        context: Arc<Context>,
        inlet: Arc<Inlet>,
        batches: mpsc::UnboundedReceiver<Batch>,
    ) -> Self {
        let (current, reads) = (None, false);
        Self { context, inlet, batches, current, reads, _items: std::marker::PhantomData }
    }

    /// The stream's name.
    pub fn name(&self) -> &StreamName {
        &self.inlet.terms.name
    }

    /// The next item or gap; `None` once the node takes no more work and all that came before is read. Cancel safe.
    ///
    /// An item that cannot be decoded ends its source, and no other: [`Consumer::sources`] says why. It and what had come behind it are gaps in their places; should the source be subscribed to again,
    /// it goes on behind them.
    ///
    /// While it waits, it reads from up to four sources by itself, as soon as can be. So its future has to be polled or dropped: one that is kept without, as in a `select!` in a loop whose other
    /// arms take long, leaves what comes from them in QUIC, where it counts as unread, and does not notice that they end. Made anew in each turn of the loop it does.
    pub async fn recv(&mut self) -> Option<Received<T>> {
        let mut waiting = Waiting { consumer: self };
        std::future::poll_fn(|cx| waiting.poll(cx)).await
    }

    fn poll_received(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Received<T>>> {
        loop {
            if let Some(received) = self.read_on() {
                return Poll::Ready(Some(received));
            }
            let Some(batch) = ready!(self.batches.poll_recv(cx)) else { return Poll::Ready(None) };
            let source = batch.flow.source;
            let received = match batch.content {
                Content::Items(number, items) => {
                    let Batch { flow, _room, .. } = batch;
                    self.current = Some(Current { flow, number, items, _room });
                    continue;
                }
                Content::Missed(missed) => Received::Gap { source, missed },
                Content::Restarted => Received::Restarted { source },
                Content::Datagram(number, bytes) => match decode(&batch.flow, &bytes) {
                    Some(item) => Received::Item { source, number, item },
                    None => spoilt(&batch.flow, 1),
                },
            };
            return Poll::Ready(Some(received));
        }
    }

    /// The next item of the run that is being read.
    fn read_on(&mut self) -> Option<Received<T>> {
        let Current { flow, number, items, .. } = self.current.as_mut()?;
        let Some(bytes) = items.next_slice() else {
            flow.take(*number);
            self.current = None;
            return None;
        };
        let Some(item) = decode(flow, bytes) else {
            let behind = u64::try_from(items.count()).unwrap_or(u64::MAX);
            let gap = spoilt(flow, behind.saturating_add(1));
            self.current = None;
            return Some(gap);
        };
        let received = Received::Item { source: flow.source, number: *number, item };
        *number = number.saturating_add(1);
        Some(received)
    }

    /// Waits until the consumer is subscribed to at least so many sources. Cancel safe.
    ///
    /// # Errors
    ///
    /// If the node ends before.
    pub async fn when_online(&self, sources: usize) -> Result<(), NodeClosed> {
        let mut online = self.inlet.online();
        tokio::select! {
            biased;
            seen = online.wait_for(|online| *online >= sources) => {
                seen.map(|_| ()).map_err(|_| NodeClosed(Terminal::Shutdown))
            }
            end = self.context.closed() => Err(NodeClosed(end)),
        }
    }

    /// The sources that are known, with what came from each.
    pub fn sources(&self) -> Vec<SourceStatus> {
        let now = Instant::now();
        let status = |(peer, source): (EndpointId, crate::streams::consumer::inlet::Source)| {
            let numbers = &source.numbers;
            let since = source.connected_since;
            SourceStatus {
                peer,
                state: source.state,
                channel: source.channel,
                items: numbers.items.load(Ordering::Relaxed),
                bytes: numbers.bytes.load(Ordering::Relaxed),
                missed: numbers.missed.load(Ordering::Relaxed),
                superseded: numbers.superseded.load(Ordering::Relaxed),
                reconnects: numbers.subscribed.load(Ordering::Relaxed).saturating_sub(1),
                last_error: source.last_error,
                connected_for: since.map(|since| now.saturating_duration_since(since)),
            }
        };
        self.inlet.sources().into_iter().map(status).collect()
    }

    /// Presents this ticket from now on, at once to those who are subscribed to already: to be called before the last one expires.
    ///
    /// # Errors
    ///
    /// If it is too long; then the last one stays.
    pub fn set_ticket(&self, ticket: impl Into<Bytes>) -> Result<(), ConsumerError> {
        let ticket = ticket.into();
        if ticket.len() > TICKET_MAX {
            return Err(ConsumerError::TicketTooLong(ticket.len()));
        }
        self.inlet.set_ticket(ticket);
        Ok(())
    }
}

/// An app that waits for the next item.
struct Waiting<'a, T> {
    consumer: &'a mut Consumer<T>,
}

impl<T: Item> Waiting<'_, T> {
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Received<T>>> {
        let consumer = &mut *self.consumer;
        // What it puts in by itself is not to wake it: it would be run once more for nothing, by another worker if there is one.
        let quiet = &mut TaskContext::from_waker(Waker::noop());
        if let Poll::Ready(received) = consumer.poll_received(quiet) {
            return Poll::Ready(received);
        }
        consumer.reads = true;
        consumer.inlet.read_by_app(cx);
        consumer.poll_received(cx)
    }
}

impl<T> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        self.consumer.give_back();
    }
}

/// So many items cannot be had, as one cannot be decoded.
fn spoilt<T>(flow: &Flow, missed: u64) -> Received<T> {
    flow.numbers.spoil(missed);
    Received::Gap { source: flow.source, missed }
}

/// The item of these bytes. What cannot be decoded ends the subscription, and nothing behind it is decoded.
fn decode<T: Item>(flow: &Flow, bytes: &[u8]) -> Option<T> {
    if flow.is_spoilt() {
        return None;
    }
    let error = match postcard::take_from_bytes(bytes) {
        Ok((item, [])) => return Some(item),
        Ok((_, rest)) => format!("{} bytes behind an item", rest.len()),
        Err(error) => error.to_string(),
    };
    flow.spoil(error.into());
    None
}

impl<T: Item> Stream for Consumer<T> {
    type Item = Received<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Received<T>>> {
        // A future of `recv` that was leaked has not.
        self.give_back();
        self.poll_received(cx)
    }
}
