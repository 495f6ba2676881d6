//! What all parts of one producer share: the items that its subscribers have not got yet, and who subscribes.
//!
//! Senders put items in from the app's own tasks, feeds take them out in theirs; nobody here waits for a peer. It outlives every restart of the actors,
//! so that a producer that was restarted goes on with the same items and the same numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use iroh::EndpointId;
use kinfolk_core::record::Record;
use kinfolk_core::stream::{
    AppendError, Fanout, Patience, Piece, Progress, Replay, Schema, StreamName, SubscriberId, Take,
    patience,
};
use kinfolk_core::wire::subscription::{Channel, HEAD_BYTES, Resume, StreamEnd, encode_datagram};
use ractor::{ActorId, ActorRef};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::peers::link::Link;
use crate::streams::producer::actor::ProducerMessage;
use crate::streams::producer::line::Line;
use crate::supervision::lock;

/// Whether a ticket is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TicketVerdict {
    /// It is, for as long as the subscription lasts.
    Valid,
    /// It is for this time; then the subscription ends, unless the consumer has presented a newer one by then.
    ValidFor(Duration),
    /// It is not.
    Invalid,
}

pub(crate) type Admits = dyn Fn(&Record) -> bool + Send + Sync;
pub(crate) type ChecksTicket =
    dyn Fn(EndpointId, Bytes) -> BoxFuture<'static, TicketVerdict> + Send + Sync;

/// What a producer is, as it was built.
pub(crate) struct Terms {
    pub(crate) name: StreamName,
    pub(crate) schema: Schema,
    pub(crate) replay: Replay,
    /// How long a peer may hold up the others.
    pub(crate) patience: Duration,
    pub(crate) subscribers: usize,
    pub(crate) admits: Option<Box<Admits>>,
    pub(crate) tickets: Option<Box<ChecksTicket>>,
}

/// Subscribers to which a sender writes a lone item by itself: it costs about a microsecond each, where to wake their feeds costs not much less (a guess).
const FEW: usize = 4;

/// See the module page.
pub(crate) struct Outlet {
    pub(crate) terms: Terms,
    /// Tells this life of the producer from others of the same name.
    pub(crate) epoch: u64,
    log: Mutex<Log>,
    /// When the actor's clock strikes next: for its own machine, or for the patience with a subscriber.
    alarm: watch::Sender<Option<Instant>>,
    /// Numbers for subscribers.
    numbers: AtomicU64,
    /// There are items for whoever has none left.
    more: Notify,
    /// A subscriber that has some left gets nothing more.
    overrun: Notify,
    /// A subscriber has taken items, or is one no more.
    room: Notify,
    /// Senders that wait for room.
    waiting: AtomicUsize,
    /// Whether the producer has ended: what each send looks at.
    has_ended: AtomicBool,
    /// Why the producer has ended.
    end: watch::Sender<Option<StreamEnd>>,
    actor: watch::Sender<Option<ActorRef<ProducerMessage>>>,
    /// Places of those that ask to subscribe and have no answer yet: its actor's mailbox has no bound of its own.
    asking: Arc<Semaphore>,
    asking_max: usize,
    subscribers: watch::Sender<BTreeMap<SubscriberId, Subscribed>>,
    datagrams: Mutex<BTreeMap<SubscriberId, Datagrams>>,
    /// The lines of those who have got everything, and whose feeds wait for more.
    resting: Mutex<Vec<(SubscriberId, Line)>>,
}

/// The items that wait, and for how long anybody waits for whoever does not take them.
struct Log {
    fanout: Fanout,
    patience: Patience,
}

impl Log {
    /// Tells who is subscribed and takes what to the machine that may give up a subscriber. Nobody is given up but by time.
    fn note(&mut self, input: patience::Input) {
        self.patience.handle(Instant::now(), input, &mut Vec::new());
    }
}

/// A subscriber, from its acceptance on.
#[derive(Debug, Clone)]
pub(crate) struct Subscribed {
    pub(crate) peer: EndpointId,
    pub(crate) since: Instant,
}

/// Where the datagrams of a subscriber go.
struct Datagrams {
    link: Arc<Link>,
    subscription: u64,
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlet").field("name", &self.terms.name).finish_non_exhaustive()
    }
}

/// What an item became.
pub(crate) enum Sent {
    /// It has this number.
    Number(u64),
    /// There is no room for it yet.
    Full,
}

/// Why no item can be sent.
pub(crate) enum NotSent {
    Ended(StreamEnd),
    Refused(AppendError),
}

impl Outlet {
    pub(crate) fn new(terms: Terms, fanout: Fanout, asking_max: usize) -> Self {
        let asking_max = asking_max.min(Semaphore::MAX_PERMITS);
        let patience = Patience::new(terms.patience);
        Self {
            terms,
            epoch: rand::random(),
            log: Mutex::new(Log { fanout, patience }),
            alarm: watch::Sender::new(None),
            numbers: AtomicU64::new(0),
            more: Notify::new(),
            overrun: Notify::new(),
            room: Notify::new(),
            waiting: AtomicUsize::new(0),
            has_ended: AtomicBool::new(false),
            end: watch::Sender::new(None),
            actor: watch::Sender::new(None),
            asking: Arc::new(Semaphore::new(asking_max)),
            asking_max,
            subscribers: watch::Sender::new(BTreeMap::new()),
            datagrams: Mutex::new(BTreeMap::new()),
            resting: Mutex::new(Vec::new()),
        }
    }

    /// Puts an item in: room for its head, and the item.
    pub(crate) fn put(&self, entry: &mut Vec<u8>, key: Option<&[u8]>) -> Result<Sent, NotSent> {
        let mut log = lock(&self.log);
        // Under the lock: what is taken before the end is delivered before it.
        if self.has_ended.load(Ordering::Acquire)
            && let Some(end) = self.ended()
        {
            return Err(NotSent::Ended(end));
        }
        let appended = match log.fanout.append(entry, key) {
            Ok(appended) => appended,
            Err(AppendError::Full) => {
                self.held_up(&mut log, entry);
                return Ok(Sent::Full);
            }
            Err(error) => return Err(NotSent::Refused(error)),
        };
        let is_datagram = log.fanout.channel() == Channel::Datagram;
        let overrun = if appended.has_overrun { log.fanout.overrun() } else { Vec::new() };
        drop(log);
        if is_datagram {
            self.scatter(appended.number, entry.get(HEAD_BYTES..).unwrap_or_default());
        }
        if appended.is_awaited && !self.write_lone() {
            self.more.notify_waiters();
        }
        // Those that get nothing more learn it when they ask.
        if !overrun.is_empty() {
            self.overrun.notify_waiters();
        }
        Ok(Sent::Number(appended.number))
    }

    /// Writes a lone item to all subscribers, if they are few and have got everything before it; false if a feed is to see to it.
    fn write_lone(&self) -> bool {
        let mut resting = lock(&self.resting);
        if resting.len() > FEW || resting.len() != self.subscribers.borrow().len() {
            return false;
        }
        let now = Instant::now();
        let mut lines = resting.iter_mut();
        lines
            .all(|(id, line)| line.write_lone(now, |budget, pieces| self.take(*id, budget, pieces)))
    }

    /// Sends an item to every subscriber at once; what finds no room is lost.
    fn scatter(&self, number: u64, item: &[u8]) {
        for Datagrams { link, subscription } in lock(&self.datagrams).values() {
            let datagram = encode_datagram(*subscription, number, item);
            // A connection that is over, or takes no datagrams, gets none; its subscription learns that by its stream.
            let _ = link.connection.send_datagram(datagram.into());
        }
    }

    /// There is no room for an item: patience with those who are in its way begins to run out.
    fn held_up(&self, log: &mut Log, entry: &[u8]) {
        let (Log { fanout, patience }, now) = (log, Instant::now());
        for (id, behind) in fanout.holding_up(entry) {
            patience.handle(now, patience::Input::HoldsUp { id, behind }, &mut Vec::new());
        }
        // An alarm that is early is set again when it strikes, so that a clock that stops and starts wakes nobody.
        let due = patience.next_timeout();
        self.alarm.send_if_modified(|alarm| {
            let is_sooner = due.is_some_and(|due| alarm.is_none_or(|at| due < at));
            if is_sooner {
                *alarm = due;
            }
            is_sooner
        });
    }

    /// Disconnects those who have held up the others for too long.
    pub(crate) fn lose_patience(&self) {
        let mut given_up = Vec::new();
        let mut log = lock(&self.log);
        log.patience.handle(Instant::now(), patience::Input::Timeout, &mut given_up);
        for patience::Output::GiveUp(id) in &given_up {
            log.fanout.give_up(*id);
        }
        drop(log);
        if !given_up.is_empty() {
            self.overrun.notify_waiters();
            self.make_room();
        }
    }

    /// What the actor's clock goes by.
    pub(crate) fn alarm(&self) -> watch::Receiver<Option<Instant>> {
        self.alarm.subscribe()
    }

    /// Sets the alarm for what the actor waits for, unless patience with somebody is over sooner.
    pub(crate) fn set_alarm(&self, due: Option<Instant>) {
        // Under the lock, or a clock that starts meanwhile were not heard.
        let log = lock(&self.log);
        let due = due.into_iter().chain(log.patience.next_timeout()).min();
        self.alarm.send_if_modified(|alarm| std::mem::replace(alarm, due) != due);
    }

    /// A subscriber that nobody was before.
    pub(crate) fn next_subscriber(&self) -> SubscriberId {
        SubscriberId::new(self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// Registers a sender that waits for room.
    pub(crate) fn room(&self) -> (Waiting<'_>, Notified<'_>) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        (Waiting(&self.waiting), self.room.notified())
    }

    fn make_room(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.room.notify_waiters();
        }
    }

    /// Told when there is more to take. It has to be asked for before [`Outlet::take`] said that there is nothing.
    pub(crate) fn more(&self) -> Notified<'_> {
        self.more.notified()
    }

    /// Told when a subscriber gets nothing more. It has to be asked for before [`Outlet::is_over`].
    pub(crate) fn overrun(&self) -> Notified<'_> {
        self.overrun.notified()
    }

    /// Takes what a subscriber gets next.
    pub(crate) fn take(&self, id: SubscriberId, budget: usize, pieces: &mut Vec<Piece>) -> Take {
        let mut log = lock(&self.log);
        let taken = log.fanout.take(id, budget, pieces);
        if taken == Take::Pieces && !log.patience.is_idle() {
            let items = pieces.iter().map(|piece| match piece {
                Piece::Items { count, .. } => *count,
                Piece::Missed(_) | Piece::Superseded(_) => 0,
            });
            let items = items.fold(0, u64::saturating_add);
            log.note(patience::Input::Took { id, items });
        }
        drop(log);
        if taken == Take::Pieces {
            self.make_room();
        }
        taken
    }

    /// A subscriber gets nothing more.
    pub(crate) fn give_up(&self, id: SubscriberId) {
        let mut log = lock(&self.log);
        log.fanout.give_up(id);
        log.note(patience::Input::Left { id });
        drop(log);
        self.make_room();
    }

    /// A subscriber is to get what there is, since nothing comes after.
    pub(crate) fn hurry(&self, id: SubscriberId) {
        lock(&self.log).fanout.hurry(id);
    }

    /// Whether a subscriber gets nothing more, as it has fallen too far behind.
    pub(crate) fn is_over(&self, id: SubscriberId) -> bool {
        lock(&self.log).fanout.is_over(id)
    }

    /// A subscriber has taken everything below this number.
    pub(crate) fn taken(&self, id: SubscriberId, through: u64) {
        lock(&self.log).fanout.taken(id, through);
    }

    /// Gives a subscriber a seat: until it is dropped, items are kept for it. Returns the number of its first one too.
    pub(crate) fn seat(
        self: &Arc<Self>,
        id: SubscriberId,
        peer: EndpointId,
        resume: Option<Resume>,
    ) -> (Seat, u64) {
        let resume = resume.filter(|resume| resume.epoch == self.epoch).map(|resume| resume.next);
        let mut log = lock(&self.log);
        let next = log.fanout.subscribe(id, resume, self.terms.replay);
        log.note(patience::Input::Came { id, peer });
        drop(log);
        self.subscribers.send_modify(|subscribers| {
            subscribers.insert(id, Subscribed { peer, since: Instant::now() });
        });
        (Seat { outlet: Arc::clone(self), id }, next)
    }

    pub(crate) fn channel(&self) -> Channel {
        lock(&self.log).fanout.channel()
    }

    pub(crate) fn progress(&self, id: SubscriberId) -> Option<Progress> {
        lock(&self.log).fanout.progress(id)
    }

    pub(crate) fn subscribers(&self) -> watch::Receiver<BTreeMap<SubscriberId, Subscribed>> {
        self.subscribers.subscribe()
    }

    /// Why the producer has ended, if it has.
    pub(crate) fn ended(&self) -> Option<StreamEnd> {
        *self.end.borrow()
    }

    pub(crate) fn ending(&self) -> watch::Receiver<Option<StreamEnd>> {
        self.end.subscribe()
    }

    /// Ends the producer; the first reason stays.
    pub(crate) fn end(&self, end: StreamEnd) {
        let mut log = lock(&self.log);
        self.end.send_if_modified(|ended| {
            let is_first = ended.is_none();
            if is_first {
                *ended = Some(end);
            }
            is_first
        });
        self.has_ended.store(true, Ordering::Release);
        log.note(patience::Input::End);
        drop(log);
        self.more.notify_waiters();
        self.room.notify_waiters();
        // An actor that is away learns it when it is back.
        let _ = self.tell(ProducerMessage::End);
    }

    /// Publishes the actor that is up, or that none is.
    pub(crate) fn set_actor(&self, actor: Option<ActorRef<ProducerMessage>>) {
        self.actor.send_replace(actor);
    }

    /// Publishes that this actor is gone, unless another one has taken its place.
    pub(crate) fn clear_actor(&self, gone: ActorId) {
        self.actor.send_if_modified(|actor| {
            let is_it = actor.as_ref().is_some_and(|actor| actor.get_id() == gone);
            if is_it {
                *actor = None;
            }
            is_it
        });
    }

    /// A place among those that ask, if there is one.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.asking).try_acquire_owned().ok()
    }

    /// How many have such a place.
    pub(crate) fn asking(&self) -> usize {
        self.asking_max.saturating_sub(self.asking.available_permits())
    }

    /// Waits until the actor is up. False if the producer ends first, after which none may come. Cancel safe.
    pub(crate) async fn up(&self) -> bool {
        let (mut actor, mut ending) = (self.actor.subscribe(), self.ending());
        tokio::select! {
            biased;
            up = actor.wait_for(Option::is_some) => up.is_ok(),
            _ = ending.wait_for(Option::is_some) => false,
        }
    }

    pub(crate) fn tell(&self, message: ProducerMessage) -> Result<(), Away> {
        let actor = self.actor.borrow().clone().ok_or(Away)?;
        actor.send_message(message).map_err(|_| Away)
    }
}

/// The actor is being restarted, or has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Away;

/// A sender that waits for room, for as long as it does.
pub(crate) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A subscriber's place in the outlet; dropped, nothing is kept for it.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) id: SubscriberId,
}

impl Seat {
    /// Sends the items by datagrams of this link from now on.
    pub(crate) fn scatter_to(&self, link: Arc<Link>, subscription: u64) {
        lock(&self.outlet.datagrams).insert(self.id, Datagrams { link, subscription });
    }
}

impl Seat {
    /// Takes what is next.
    pub(crate) fn take(&self, budget: usize, pieces: &mut Vec<Piece>) -> Take {
        self.outlet.take(self.id, budget, pieces)
    }

    /// Leaves the line with the outlet until [`Seat::resume`], as there is nothing to write. What the outlet says by [`Outlet::more`] has to be listened to from before
    /// the last look.
    pub(crate) fn rest(&self, line: Line) {
        lock(&self.outlet.resting).push((self.id, line));
    }

    /// Takes the line back.
    pub(crate) fn resume(&self) -> Option<Line> {
        let mut resting = lock(&self.outlet.resting);
        let place = resting.iter().position(|(id, _)| *id == self.id)?;
        Some(resting.swap_remove(place).1)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        drop(self.resume());
        lock(&self.outlet.datagrams).remove(&self.id);
        let mut log = lock(&self.outlet.log);
        log.fanout.unsubscribe(self.id);
        log.note(patience::Input::Left { id: self.id });
        drop(log);
        self.outlet.make_room();
        self.outlet.subscribers.send_modify(|subscribers| {
            subscribers.remove(&self.id);
        });
    }
}
