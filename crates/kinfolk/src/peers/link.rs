//! One QUIC connection as the data path sees it: open a stream, hold a lease, learn that the link is over.
//!
//! The Session makes a `Link`, the PeerManager publishes it, and callers open streams on it in their own futures, without a
//! mailbox in between. Leases count the streams in use; whoever closes the link looks at them first. `Link` never decides
//! anything about the peer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use iroh::endpoint::{Connection, ConnectionError, VarInt};
use iroh::{EndpointId, TransportAddr};
use kinfolk_core::code::Code;
use kinfolk_core::id::LinkId;
use kinfolk_core::intent::StreamLoss;
use kinfolk_core::peer_link::{Direction, Linger};
use kinfolk_core::record::Reach;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::peers::datagrams::Datagrams;
use crate::protocol::backlog::Backlog;
use crate::protocol::places::{Place, Places};
use crate::supervision::{Latch, lock};

/// A link that streams can be opened on.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) peer: EndpointId,
    pub(crate) direction: Direction,
    pub(crate) connection: Connection,
    /// Places for streams of the peer, if it was admitted with fewer or more than others have.
    places: Option<Arc<Semaphore>>,
    leases: Mutex<Leases>,
    idle: Notify,
    /// Set once nobody gets this link for a new stream any more.
    retired: Latch,
    /// What the peer said in its `Goodbye`: how many of our streams it took.
    served_there: Mutex<Option<u64>>,
    /// Bytes of requests of the peer that may be held at once.
    pub(crate) request_room: Arc<Semaphore>,
    /// Bytes of responses to the peer that wait for room.
    pub(crate) responses: Arc<Backlog>,
    /// Whether the peer has acknowledged a stream of ours.
    acknowledged: AtomicBool,
    /// Whether the peer holds the link already.
    held_there: AtomicBool,
    /// Whether an app has used it, here or there; otherwise the library alone has, for errands of its own.
    has_served_apps: AtomicBool,
    /// Somebody waits for it to be idle for long enough after an errand.
    is_let_go: AtomicBool,
    /// The largest request that the peer takes, once it has said so.
    call_max: Mutex<Option<u32>>,
    /// Who closed the connection, as far as this side has looked.
    closed: Mutex<Option<CloseReason>>,
    pub(crate) datagrams: Datagrams,
}

/// Who closed a connection, and why.
#[derive(Debug, Clone, Copy)]
enum CloseReason {
    Here(Code),
    ByPeer(Code),
}

#[derive(Debug)]
struct Leases {
    held: usize,
    closed: bool,
    /// Streams of the peer that were taken, in opening order.
    accepted: u64,
    last_used: Instant,
}

/// Keeps a link open for one direction of one stream.
#[derive(Debug)]
pub(crate) struct Lease {
    link: Arc<Link>,
    /// `None` for a stream of our own.
    places: Option<Arc<Taken>>,
}

/// Somebody waits for a link to be idle for long enough after an errand. Once it is dropped, nobody does.
#[derive(Debug)]
pub(crate) struct LettingGo(Arc<Link>);

/// What a stream of the peer takes up until both of its directions are over.
#[derive(Debug)]
struct Taken {
    _of_peer: Option<OwnedSemaphorePermit>,
    _of_node: Place,
    of_protocol: OnceLock<Place>,
}

impl Link {
    /// `window` bounds the bytes of the peer's requests that are held at once, and beyond as many of responses no further call is begun.
    pub(crate) fn new(
        id: LinkId,
        peer: EndpointId,
        direction: Direction,
        connection: Connection,
        window: u32,
    ) -> Self {
        let window = usize::try_from(window).unwrap_or(usize::MAX);
        let request_room = window.min(Semaphore::MAX_PERMITS);
        Self {
            id,
            peer,
            direction,
            connection,
            places: None,
            leases: Mutex::new(Leases {
                held: 0,
                closed: false,
                accepted: 0,
                last_used: Instant::now(),
            }),
            idle: Notify::new(),
            retired: Latch::default(),
            served_there: Mutex::new(None),
            request_room: Arc::new(Semaphore::new(request_room)),
            responses: Backlog::new(window),
            acknowledged: AtomicBool::new(false),
            held_there: AtomicBool::new(false),
            has_served_apps: AtomicBool::new(false),
            is_let_go: AtomicBool::new(false),
            call_max: Mutex::new(None),
            closed: Mutex::new(None),
            datagrams: Datagrams::default(),
        }
    }

    /// Lets the peer have this many streams open at once.
    pub(crate) fn with_places(self, streams: u32) -> Self {
        let places = usize::try_from(streams).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { places: Some(Arc::new(Semaphore::new(places))), ..self }
    }

    /// Takes a lease for a stream of our own; `None` once the link takes no more.
    pub(crate) fn lease(self: &Arc<Self>) -> Option<Lease> {
        let mut leases = lock(&self.leases);
        if leases.closed {
            return None;
        }
        leases.held = leases.held.saturating_add(1);
        Some(Lease { link: Arc::clone(self), places: None })
    }

    /// Takes a stream of the peer into account and leases the link for it, or says why not.
    ///
    /// Counting and leasing are one step, so that the number in our `Goodbye` is exact.
    pub(crate) fn accept(self: &Arc<Self>, node: &Arc<Places>) -> Result<Lease, Code> {
        let mut leases = lock(&self.leases);
        if leases.closed {
            return Err(Code::Draining);
        }
        leases.accepted = leases.accepted.saturating_add(1);
        let place = |places: &Arc<Semaphore>| {
            Arc::clone(places).try_acquire_owned().map_err(|_| Code::Busy)
        };
        let places = Taken {
            _of_peer: self.places.as_ref().map(place).transpose()?,
            _of_node: node.take(self.peer)?,
            of_protocol: OnceLock::new(),
        };
        leases.held = leases.held.saturating_add(1);
        Ok(Lease { link: Arc::clone(self), places: Some(Arc::new(places)) })
    }

    /// How far away the peer is, by the path in use; if there is none at the moment, as far as can be.
    pub(crate) fn reach(&self) -> Reach {
        self.address().map_or(Reach::World, |address| match address {
            // What a relay's own address says is about the relay.
            TransportAddr::Relay(_) => Reach::World,
            address => Reach::of(&address),
        })
    }

    /// The round-trip time of the path in use; `None` if there is none at the moment.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        let paths = self.connection.paths();
        paths.iter().find(|path| path.is_selected()).map(|path| path.rtt())
    }

    /// Where the peer is, by the path in use.
    pub(crate) fn address(&self) -> Option<TransportAddr> {
        let paths = self.connection.paths();
        let selected = paths.iter().find(|path| path.is_selected());
        selected.map(|path| path.remote_addr().clone())
    }

    /// Gives out no more leases; returns how many streams of the peer were taken.
    pub(crate) fn close_leases(&self) -> u64 {
        let mut leases = lock(&self.leases);
        leases.closed = true;
        if leases.held == 0 {
            self.idle.notify_waiters();
        }
        leases.accepted
    }

    /// An app uses it, here or there.
    pub(crate) fn note_app(&self) {
        self.has_served_apps.store(true, Ordering::Relaxed);
    }

    /// Whether it was dialled here and has served errands of the library alone.
    pub(crate) fn is_errand(&self) -> bool {
        self.direction == Direction::Outbound && !self.has_served_apps.load(Ordering::Relaxed)
    }

    /// Since when no lease is held that could be; `None` while one is, and once there are no more.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let leases = lock(&self.leases);
        (leases.held == 0 && !leases.closed).then_some(leases.last_used)
    }

    /// Closes the leases if none is held and none was used for `linger`.
    pub(crate) fn close_if_idle(&self, now: Instant, linger: Duration) -> Linger {
        let mut leases = lock(&self.leases);
        if leases.held > 0 {
            return Linger::InUse;
        }
        if now.saturating_duration_since(leases.last_used) < linger {
            return Linger::UsedAt(leases.last_used);
        }
        leases.closed = true;
        Linger::Closed
    }

    /// Waits until the leases are closed and none is held. Cancel safe.
    pub(crate) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            // Registered before the look, so that a release in between is not missed.
            idle.as_mut().enable();
            {
                let leases = lock(&self.leases);
                if leases.closed && leases.held == 0 {
                    return;
                }
            }
            idle.await;
        }
    }

    /// Tells everyone who waits for the next link that this one is over.
    pub(crate) fn retire(&self) {
        self.retired.set();
    }

    /// Waits until the link is retired. Cancel safe.
    pub(crate) async fn retired(&self) {
        self.retired.wait().await;
    }

    /// Whether this is the peer's first hold on the link; one says all.
    pub(crate) fn first_hold(&self) -> bool {
        !self.held_there.swap(true, Ordering::Relaxed)
    }

    /// The peer holds the link no more.
    pub(crate) fn hold_over(&self) {
        self.held_there.store(false, Ordering::Relaxed);
    }

    pub(crate) fn note_acknowledged(&self) {
        self.acknowledged.store(true, Ordering::Relaxed);
    }

    /// Whether the peer serves streams on this link, as far as its acknowledgements have told: one may come before the welcome.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub(crate) fn note_served_there(&self, served: u64) {
        *lock(&self.served_there) = Some(served);
    }

    pub(crate) fn note_call_max(&self, max: u32) {
        *lock(&self.call_max) = Some(max);
    }

    pub(crate) fn call_max(&self) -> Option<u32> {
        *lock(&self.call_max)
    }

    /// What became of our stream with this QUIC index, now that the connection is over or going.
    pub(crate) fn loss_of(&self, index: u64) -> StreamLoss {
        // The control stream is the dialler's first; it does not count.
        let ordinal = match self.direction {
            Direction::Outbound => index,
            Direction::Inbound => index.saturating_add(1),
        };
        if lock(&self.served_there).is_some_and(|served| ordinal > served) {
            return StreamLoss::NeverServed;
        }
        let welcomed = self.direction == Direction::Inbound || self.call_max().is_some();
        match self.close_reason() {
            Some(CloseReason::ByPeer(code)) if welcomed => StreamLoss::LinkClosed(code),
            Some(CloseReason::ByPeer(code)) => StreamLoss::LinkRefused(code),
            Some(CloseReason::Here(code)) => StreamLoss::LinkClosedHere(code),
            None => StreamLoss::LinkLost,
        }
    }

    /// Closes the connection at once with this code, if it is still open; what is not acknowledged yet is lost.
    pub(crate) fn close(&self, code: Code) {
        let mut closed = lock(&self.closed);
        match self.connection.close_reason() {
            None => {
                closed.get_or_insert(CloseReason::Here(code));
                self.connection
                    .close(VarInt::from_u32(u32::from(code.to_wire())), code.name().as_bytes());
            }
            // QUIC would forget the peer's code, were it told to close once more.
            Some(ConnectionError::ApplicationClosed(close)) => {
                let code = Code::from_wire(close.error_code.into_inner());
                closed.get_or_insert(CloseReason::ByPeer(code));
            }
            Some(_) => {}
        }
    }

    /// The code that the connection was closed with, by either side; `None` if it is open or was lost without a word.
    pub(crate) fn close_code(&self) -> Option<Code> {
        self.close_reason().map(|reason| match reason {
            CloseReason::Here(code) | CloseReason::ByPeer(code) => code,
        })
    }

    fn close_reason(&self) -> Option<CloseReason> {
        let closed = *lock(&self.closed);
        closed.or_else(|| match self.connection.close_reason()? {
            ConnectionError::ApplicationClosed(close) => {
                Some(CloseReason::ByPeer(Code::from_wire(close.error_code.into_inner())))
            }
            _ => None,
        })
    }
}

impl Lease {
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// A second lease on the same link, even while it drains: the stream is already open.
    pub(crate) fn again(&self) -> Self {
        let mut leases = lock(&self.link.leases);
        leases.held = leases.held.saturating_add(1);
        Self { link: Arc::clone(&self.link), places: self.places.clone() }
    }

    /// Keeps the protocol's place for as long as this lease and those made of it last.
    pub(crate) fn occupy(&self, place: Place) {
        if let Some(places) = &self.places {
            // A stream is of one protocol: this happens once.
            let _ = places.of_protocol.set(place);
        }
    }

    /// Gives the stream's places back before its end: it is none of the app's.
    pub(crate) fn give_up_places(&mut self) {
        self.places = None;
    }
}

impl LettingGo {
    /// Begins to wait, unless somebody waits already.
    pub(crate) fn begin(link: &Arc<Link>) -> Option<Self> {
        let is_first = !link.is_let_go.swap(true, Ordering::AcqRel);
        is_first.then(|| Self(Arc::clone(link)))
    }
}

impl Drop for LettingGo {
    fn drop(&mut self) {
        self.0.is_let_go.store(false, Ordering::Release);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = lock(&self.link.leases);
        leases.held = leases.held.saturating_sub(1);
        if leases.held == 0 {
            leases.last_used = Instant::now();
            if leases.closed {
                self.link.idle.notify_waiters();
            }
        }
    }
}
