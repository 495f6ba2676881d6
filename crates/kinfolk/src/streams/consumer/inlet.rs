//! What all parts of one consumer share: the items that the app has not read yet, and the state of each source.
//!
//! Receivers put runs of items in as they come from QUIC, and wait while there is no room; the app takes them out and decodes them. Of few sources it reads by itself while it
//! waits. It outlives every restart of the actors, so that a consumer that was restarted goes on where it was.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::Context;
use std::time::Instant;

use bytes::Bytes;
use iroh::EndpointId;
use kinfolk_core::record::Record;
use kinfolk_core::stream::{Attempt, Items, Read, Schema, SourceState, StreamName};
use kinfolk_core::wire::subscription::{Accepted, Channel, Resume};
use ractor::{ActorId, ActorRef};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::streams::consumer::actor::ConsumerMessage;
use crate::streams::consumer::tap::{Found, Tap};
use crate::supervision::lock;

pub(crate) type Wants = dyn Fn(&Record) -> bool + Send + Sync;

/// What a consumer is, as it was built.
pub(crate) struct Terms {
    pub(crate) name: StreamName,
    pub(crate) schema: Schema,
    pub(crate) item_max: usize,
    pub(crate) sources: usize,
    /// Bytes of items that may wait for the app.
    pub(crate) buffer: u32,
    pub(crate) wants: Option<Box<Wants>>,
}

/// What a part that waits takes of the room beside its bytes: about what it costs in memory.
pub(crate) const PART_ROOM: usize = 128;

/// Sources that the app reads by itself while it waits: with each more, every wait costs a look more (a guess).
const FEW: usize = 4;

/// See the module page.
pub(crate) struct Inlet {
    pub(crate) number: u64,
    pub(crate) terms: Terms,
    /// `None` once the consumer is closed: what is in it can still be read.
    batches: Mutex<Option<mpsc::UnboundedSender<Batch>>>,
    /// What bounds it.
    room: Arc<Semaphore>,
    ticket: watch::Sender<Option<Bytes>>,
    sources: Mutex<Sources>,
    online: watch::Sender<usize>,
    actor: watch::Sender<Option<ActorRef<ConsumerMessage>>>,
    /// Those that bring something.
    taps: Mutex<Vec<(Arc<Flow>, Arc<Tap>)>>,
}

impl std::fmt::Debug for Inlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inlet").field("name", &self.terms.name).finish_non_exhaustive()
    }
}

/// Something that came from a source, in its order.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) flow: Arc<Flow>,
    pub(crate) content: Content,
    /// Its room, given back when the app has read it.
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

/// See [`Batch`].
#[derive(Debug)]
pub(crate) enum Content {
    /// A run of items; the first has this number.
    Items(u64, Items),
    /// One item that came as a datagram.
    Datagram(u64, Bytes),
    /// So many items were lost.
    Missed(u64),
    /// The producer has started anew.
    Restarted,
}

/// One subscription: what flows from a source between two losses.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) source: EndpointId,
    pub(crate) attempt: Attempt,
    pub(crate) numbers: Arc<Numbers>,
    /// The actor that runs it, and no later one.
    consumer: ActorRef<ConsumerMessage>,
    /// Nothing of it is wanted any more.
    is_spoilt: AtomicBool,
    /// What the producer has said, once the flow has begun.
    pub(crate) accepted: OnceLock<Accepted>,
    /// The app has read all items below this number.
    taken: AtomicU64,
    pub(crate) took: Notify,
}

/// What came from a source in all. A producer may claim any number: none of them runs over.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    pub(crate) items: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) missed: AtomicU64,
    pub(crate) superseded: AtomicU64,
    pub(crate) subscribed: AtomicU64,
}

impl Numbers {
    /// So many items came, in so many bytes.
    pub(crate) fn came(&self, items: u64, bytes: usize) {
        add(&self.items, items);
        add(&self.bytes, u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// So many will not come.
    pub(crate) fn miss(&self, items: u64) {
        add(&self.missed, items);
    }

    /// One that was missed came after all.
    pub(crate) fn miss_one_less(&self) {
        take(&self.missed, 1);
    }

    /// So many do not come, as newer ones took their place.
    pub(crate) fn supersede(&self, items: u64) {
        add(&self.superseded, items);
    }

    /// So many came, and the app cannot have them.
    pub(crate) fn spoil(&self, items: u64) {
        take(&self.items, items);
        add(&self.missed, items);
    }
}

fn add(number: &AtomicU64, more: u64) {
    let sum = |number: u64| Some(number.saturating_add(more));
    let _ = number.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
}

fn take(number: &AtomicU64, less: u64) {
    let rest = |number: u64| Some(number.saturating_sub(less));
    let _ = number.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
}

/// Sources, and where those were that are none any more: a producer that starts anew says for a moment that it has nothing to offer.
#[derive(Debug, Default)]
struct Sources {
    known: BTreeMap<[u8; EndpointId::LENGTH], Source>,
    left: VecDeque<([u8; EndpointId::LENGTH], Resume)>,
}

/// How many of those are remembered that are none any more; some 50 bytes each (a guess).
const LEFT_MAX: usize = 1024;

impl Sources {
    /// Remembers where a source was that is none any more.
    fn forget(&mut self, key: &[u8; EndpointId::LENGTH]) {
        let Some(source) = self.known.remove(key) else { return };
        if let Some(resume) = source.resume {
            self.left.push_back((*key, resume));
        }
        if self.left.len() > LEFT_MAX {
            self.left.pop_front();
        }
    }
}

/// A source, as the inlet knows it.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) state: SourceState,
    pub(crate) channel: Option<Channel>,
    pub(crate) numbers: Arc<Numbers>,
    pub(crate) resume: Option<Resume>,
    /// The subscription that counts: what one before it still brings would come twice.
    pub(crate) flow: Weak<Flow>,
    pub(crate) last_error: Option<Arc<str>>,
    pub(crate) connected_since: Option<Instant>,
}

impl Source {
    fn new() -> Self {
        Self {
            state: SourceState::Connecting,
            channel: None,
            numbers: Arc::default(),
            resume: None,
            flow: Weak::new(),
            last_error: None,
            connected_since: None,
        }
    }
}

impl Flow {
    pub(crate) fn new(
        source: EndpointId,
        attempt: Attempt,
        numbers: Arc<Numbers>,
        consumer: ActorRef<ConsumerMessage>,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            attempt,
            numbers,
            consumer,
            is_spoilt: AtomicBool::new(false),
            accepted: OnceLock::new(),
            taken: AtomicU64::new(0),
            took: Notify::new(),
        })
    }

    /// The app cannot read what comes: nothing more of it is wanted.
    pub(crate) fn spoil(&self, reason: Arc<str>) {
        if !self.is_spoilt.swap(true, Ordering::Relaxed) {
            // One that was restarted has lost the subscription anyway.
            let _ = self.consumer.send_message(ConsumerMessage::Poisoned(self.attempt, reason));
        }
    }

    pub(crate) fn is_spoilt(&self) -> bool {
        self.is_spoilt.load(Ordering::Relaxed)
    }

    /// The app has read all items below this number.
    pub(crate) fn take(&self, through: u64) {
        self.taken.store(through, Ordering::Release);
        self.took.notify_one();
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }
}

impl Inlet {
    pub(crate) fn new(
        number: u64,
        terms: Terms,
        ticket: Option<Bytes>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Batch>) {
        let (batches, out) = mpsc::unbounded_channel();
        let room = usize::try_from(terms.buffer).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let inlet = Self {
            number,
            terms,
            batches: Mutex::new(Some(batches)),
            room: Arc::new(Semaphore::new(room)),
            ticket: watch::Sender::new(ticket),
            sources: Mutex::default(),
            online: watch::Sender::new(0),
            actor: watch::Sender::new(None),
            taps: Mutex::default(),
        };
        (Arc::new(inlet), out)
    }

    /// Room for so many bytes, once the app has read enough. An item longer than all room has to itself what there is. Cancel safe.
    pub(crate) async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.terms.buffer);
        Arc::clone(&self.room).acquire_many_owned(bytes).await.ok()
    }

    /// Room for so many bytes, if there is some now.
    pub(crate) fn try_room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.terms.buffer);
        Arc::clone(&self.room).try_acquire_many_owned(bytes).ok()
    }

    /// Puts something behind what is there.
    pub(crate) fn put(&self, batch: Batch) {
        if let Some(batches) = lock(&self.batches).as_ref() {
            // Without an app that reads it is of no use.
            let _ = batches.send(batch);
        }
    }

    /// Puts something behind what is there, and notes how far the app is with it; false if another subscription to the source has taken the place of this one.
    /// All at once, with nothing in between that could fail: what the app gets is not asked for again.
    pub(crate) fn advance(&self, flow: &Arc<Flow>, resume: Resume, batch: Option<Batch>) -> bool {
        let mut sources = lock(&self.sources);
        let Some(source) = sources.known.get_mut(flow.source.as_bytes()) else { return false };
        let is_current = std::ptr::eq(source.flow.as_ptr(), Arc::as_ptr(flow));
        if is_current {
            source.resume = Some(resume);
            if let Some(batch) = batch {
                self.put(batch);
            }
        }
        is_current
    }

    /// Puts what was read behind what is there; false as for [`Inlet::advance`]. The number is that of the item behind it.
    pub(crate) fn put_read(
        &self,
        flow: &Arc<Flow>,
        read: Read,
        next: u64,
        room: Option<OwnedSemaphorePermit>,
    ) -> bool {
        let numbers = &flow.numbers;
        let content = match read {
            Read::Items { first, count, bytes } => {
                numbers.came(u64::from(count), bytes.len());
                Some(Content::Items(first, Items::new(bytes)))
            }
            Read::Gap { missed } => {
                numbers.miss(missed);
                Some(Content::Missed(missed))
            }
            Read::Skip { superseded } => {
                numbers.supersede(superseded);
                None
            }
            Read::End(_) => None,
        };
        let Some(accepted) = flow.accepted.get() else { return false };
        let resume = Resume { epoch: accepted.epoch, next };
        let batch = content.map(|content| Batch { flow: Arc::clone(flow), content, _room: room });
        self.advance(flow, resume, batch)
    }

    /// Lets the app read from a tap while it waits, for as long as the guard lives; then the tap is closed.
    pub(crate) fn open(self: &Arc<Self>, flow: &Arc<Flow>, tap: &Arc<Tap>) -> OpenTap {
        lock(&self.taps).push((Arc::clone(flow), Arc::clone(tap)));
        OpenTap { inlet: Arc::clone(self), tap: Arc::clone(tap) }
    }

    /// Has the app read what there is and put it in, if its sources are few. While there is nothing, the app is woken when there is, until
    /// [`Inlet::give_back`].
    pub(crate) fn read_by_app(&self, cx: &mut Context<'_>) {
        let taps = lock(&self.taps);
        if taps.len() > FEW {
            taps.iter().for_each(|(_, tap)| tap.give_back());
            return;
        }
        for (flow, tap) in taps.iter() {
            tap.read_by_app(cx, |found| self.put_at_once(flow, found));
        }
    }

    /// The app reads no more by itself.
    pub(crate) fn give_back(&self) {
        lock(&self.taps).iter().for_each(|(_, tap)| tap.give_back());
    }

    /// Puts items in if there is room for them; anything else comes back.
    fn put_at_once(&self, flow: &Arc<Flow>, found: Found) -> Result<(), Found> {
        let Found::Read(read @ Read::Items { .. }, next) = found else { return Err(found) };
        let Some(room) = self.try_room(room_of(&read)) else {
            return Err(Found::Read(read, next));
        };
        if self.put_read(flow, read, next, Some(room)) { Ok(()) } else { Err(Found::Stale) }
    }

    /// Whether no other subscription to the source has taken the place of this one.
    pub(crate) fn is_current(&self, flow: &Arc<Flow>) -> bool {
        let sources = lock(&self.sources);
        let source = sources.known.get(flow.source.as_bytes());
        source.is_some_and(|source| std::ptr::eq(source.flow.as_ptr(), Arc::as_ptr(flow)))
    }

    /// The state of a source, for whoever changes it; made if there is none.
    pub(crate) fn source<R>(&self, peer: &EndpointId, change: impl FnOnce(&mut Source) -> R) -> R {
        let mut sources = lock(&self.sources);
        let Sources { known, left } = &mut *sources;
        let source = known.entry(*peer.as_bytes()).or_insert_with(|| {
            let place = left.iter().position(|(key, _)| key == peer.as_bytes());
            let resume = place.and_then(|place| left.remove(place)).map(|(_, resume)| resume);
            Source { resume, ..Source::new() }
        });
        let result = change(source);
        self.count_online(known);
        result
    }

    /// The same for a source that is still one.
    pub(crate) fn known<R>(
        &self,
        peer: &EndpointId,
        change: impl FnOnce(&mut Source) -> R,
    ) -> Option<R> {
        let mut sources = lock(&self.sources);
        let result = sources.known.get_mut(peer.as_bytes()).map(change);
        self.count_online(&sources.known);
        result
    }

    fn count_online(&self, known: &BTreeMap<[u8; EndpointId::LENGTH], Source>) {
        let online = known.values().filter(|source| source.state == SourceState::Connected);
        let online = online.count();
        self.online.send_if_modified(|known| std::mem::replace(known, online) != online);
    }

    /// Of no source is known any more what it does; how far the app is with each stays.
    pub(crate) fn start_anew(&self) {
        for source in lock(&self.sources).known.values_mut() {
            source.state = SourceState::Queued;
            source.connected_since = None;
        }
        self.online.send_if_modified(|online| std::mem::replace(online, 0) != 0);
    }

    pub(crate) fn forget(&self, peer: &EndpointId) {
        let mut sources = lock(&self.sources);
        sources.forget(peer.as_bytes());
        self.count_online(&sources.known);
    }

    /// Forgets all sources but these: whoever was one before the consumer was started anew may be none any more, and nobody would say so.
    pub(crate) fn keep(&self, is_one: impl Fn(&EndpointId) -> bool) {
        let mut sources = lock(&self.sources);
        let keys: Vec<_> = sources.known.keys().copied().collect();
        for key in keys {
            // The keys are of peers: they are valid.
            if !EndpointId::from_bytes(&key).is_ok_and(|peer| is_one(&peer)) {
                sources.forget(&key);
            }
        }
        self.count_online(&sources.known);
    }

    pub(crate) fn sources(&self) -> Vec<(EndpointId, Source)> {
        let sources = lock(&self.sources);
        // The keys are of peers: they are valid.
        let valid = |(id, source): (&[u8; 32], &Source)| {
            Some((EndpointId::from_bytes(id).ok()?, source.clone()))
        };
        sources.known.iter().filter_map(valid).collect()
    }

    pub(crate) fn online(&self) -> watch::Receiver<usize> {
        self.online.subscribe()
    }

    pub(crate) fn ticket(&self) -> watch::Receiver<Option<Bytes>> {
        self.ticket.subscribe()
    }

    pub(crate) fn set_ticket(&self, ticket: Bytes) {
        self.ticket.send_replace(Some(ticket));
        let _ = self.tell(ConsumerMessage::NewTicket);
    }

    /// Takes nothing more from anybody.
    pub(crate) fn close(&self) {
        lock(&self.batches).take();
        let _ = self.tell(ConsumerMessage::Close);
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.batches).is_none()
    }

    /// Publishes the actor that is up, or that none is.
    pub(crate) fn set_actor(&self, actor: Option<ActorRef<ConsumerMessage>>) {
        self.actor.send_replace(actor);
    }

    /// Publishes that this actor is gone; false if another one has taken its place.
    pub(crate) fn clear_actor(&self, gone: ActorId) -> bool {
        self.actor.send_if_modified(|actor| {
            let is_it = actor.as_ref().is_some_and(|actor| actor.get_id() == gone);
            if is_it {
                *actor = None;
            }
            is_it
        })
    }

    /// Sends to the actor; one that is away looks up what it missed when it is back.
    pub(crate) fn tell(&self, message: ConsumerMessage) -> bool {
        let actor = self.actor.borrow().clone();
        actor.is_some_and(|actor| actor.send_message(message).is_ok())
    }
}

/// A tap that the app may read from. See [`Inlet::open`].
#[derive(Debug)]
pub(crate) struct OpenTap {
    inlet: Arc<Inlet>,
    tap: Arc<Tap>,
}

impl Drop for OpenTap {
    fn drop(&mut self) {
        lock(&self.inlet.taps).retain(|(_, tap)| !Arc::ptr_eq(tap, &self.tap));
        self.tap.close();
    }
}

/// The room that something takes while it waits: what comes in many small parts costs more than its bytes.
pub(crate) fn room_of(read: &Read) -> usize {
    let bytes = match read {
        Read::Items { bytes, .. } => bytes.len(),
        Read::Gap { .. } | Read::Skip { .. } | Read::End(_) => 0,
    };
    bytes.saturating_add(PART_ROOM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_claim_of_a_producer_lets_a_number_run_over() {
        let numbers = Numbers::default();
        let all = || {
            [&numbers.items, &numbers.bytes, &numbers.missed, &numbers.superseded]
                .map(|number| number.load(Ordering::Relaxed))
        };
        numbers.spoil(1);
        assert_eq!(all(), [0, 0, 1, 0]);
        numbers.miss_one_less();
        numbers.miss_one_less();
        assert_eq!(all(), [0, 0, 0, 0]);
        for _ in 0..2 {
            numbers.came(u64::MAX - 3, usize::MAX - 3);
            numbers.miss(u64::MAX - 3);
            numbers.supersede(u64::MAX - 3);
        }
        assert_eq!(all(), [u64::MAX; 4]);
        numbers.spoil(5);
        assert_eq!(all(), [u64::MAX - 5, u64::MAX, u64::MAX, u64::MAX]);
    }
}
