//! What all parts of one node share, and what survives the restart of any of them.
//!
//! It holds no endpoint: an app may keep a node's handle long after the node has ended, and the UDP port must be free by then. It does
//! hold the runtime's handle; that of a network thread is two file descriptors. Facts
//! with one owner live here only if that owner is the node itself: addresses, bans, holds and services that the app gave.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iroh::{EndpointAddr, EndpointId, SecretKey};
use kinfolk_core::address_book::{AddressBook, BookError};
use kinfolk_core::gate::Gate;
use kinfolk_core::id::NetworkId;
use kinfolk_core::intake::Intake;
use kinfolk_core::intent::{IntentId, Outcome};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{DownReason, LinkEnd};
use kinfolk_core::quota::Quota;
use kinfolk_core::record::Ttl;
use ractor::{ActorId, ActorRef, RpcReplyPort};
use tokio::runtime::{EnterGuard, Handle};
use tokio::sync::{broadcast, watch};

use crate::admission::Admission;
use crate::discovery::keep::Keep;
use crate::discovery::manager::DiscoveryMessage;
use crate::discovery::own::Own;
use crate::discovery::records::Records;
use crate::error::NodeClosed;
use crate::events::NodeEvent;
use crate::listeners::Listeners;
use crate::metrics::{Counters, Family};
use crate::monitor::Monitors;
use crate::node::terminal::Terminal;
use crate::peers::directory::Directory;
use crate::peers::manager::PeerManagerMessage;
use crate::protocol::any::Providers;
use crate::protocol::places::Places;
use crate::protocol::service::Services;
use crate::streams::registry::Registry;
use crate::supervision::{Latch, lock};

/// How long the neighbours may take to hear that the node leaves: a round trip around the world and its repetition.
const FAREWELL: Duration = Duration::from_secs(1);

/// See the module page.
pub(crate) struct Context {
    pub(crate) id: EndpointId,
    pub(crate) network: NetworkId,
    pub(crate) limits: Limits,
    pub(crate) counters: Counters,
    /// `None` once the node has ended, so that whoever listens gets to the end.
    events: Mutex<Option<Listeners<NodeEvent>>>,
    pub(crate) monitors: Monitors,
    pub(crate) services: Services,
    pub(crate) directory: Directory,
    pub(crate) providers: Providers,
    pub(crate) admission: Admission,
    pub(crate) gate: Mutex<Gate>,
    pub(crate) retained: Mutex<Retained>,
    /// All that the node knows of others.
    pub(crate) records: Records,
    /// What the node says of itself.
    pub(crate) own: Mutex<Own>,
    /// Peers by which the node finds the others.
    pub(crate) bootstrap: Vec<EndpointId>,
    /// Whether the node takes part in discovery.
    pub(crate) discovers: bool,
    /// Whether it looks for others on the local network.
    pub(crate) mdns: bool,
    /// Where it keeps what it needs in its next life, if the app wants that.
    pub(crate) keep: Option<Keep>,
    /// The producers and consumers of the app.
    pub(crate) streams: Registry,
    /// How often each peer has its exchanges answered.
    pub(crate) quota: Mutex<Quota>,
    /// Checks the signatures of what strangers hand over.
    pub(crate) intake: Mutex<Intake>,
    /// Places for incoming streams, all peers together.
    pub(crate) inbound_places: Arc<Places>,
    /// The node takes no new work; it stays so until it ends.
    draining: Latch,
    /// Where the node can be reached, as far as iroh knows now.
    pub(crate) address: watch::Sender<EndpointAddr>,
    manager: watch::Sender<Option<Mailbox>>,
    discovery: watch::Sender<Option<ActorRef<DiscoveryMessage>>>,
    terminal: watch::Sender<Option<Terminal>>,
    arrivals: AtomicU64,
    intents: AtomicU64,
    /// What the node runs on; a caller may run on something else.
    runtime: Handle,
    #[cfg(feature = "fault-injection")]
    pub(crate) faults: crate::fault::Faults,
}

/// The PeerManager that is up, and how many messages wait for it.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    pub(crate) actor: ActorRef<PeerManagerMessage>,
    pub(crate) depth: Arc<AtomicUsize>,
}

impl Mailbox {
    pub(crate) fn send(&self, message: PeerManagerMessage) -> Result<(), ManagerAway> {
        self.depth.fetch_add(1, Ordering::Relaxed);
        self.actor.send_message(message).map_err(|_| ManagerAway)
    }
}

/// What the app gave, kept through every restart of the PeerManager.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    pub(crate) book: AddressBook,
    pub(crate) bans: BTreeMap<EndpointId, Ban>,
    pub(crate) holds: BTreeMap<IntentId, Held>,
}

/// A ban, of the app's or a quarantine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ban {
    pub(crate) until: Instant,
    /// Whether the app was told that it is in force: each PeerManager carries it out anew.
    pub(crate) is_told: bool,
}

/// A hold of the app.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) peer: EndpointId,
    pub(crate) ended: Arc<watch::Sender<Option<Outcome>>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Context {
    /// It has to be made on the runtime that the node will run on.
    pub(crate) fn new(
        key: SecretKey,
        network: NetworkId,
        limits: Limits,
        admission: Admission,
    ) -> Self {
        let id = key.public();
        Self {
            id,
            network,
            counters: Counters::default(),
            events: Mutex::new(Some(Listeners::new(limits.events))),
            monitors: Monitors::default(),
            services: Services::default(),
            directory: Directory::default(),
            providers: Providers::default(),
            admission,
            gate: Mutex::new(Gate::new(limits.gate.clone())),
            retained: Mutex::new(Retained {
                book: AddressBook::new(limits.addresses.clone()),
                ..Retained::default()
            }),
            records: Records::new(id, limits.catalog.clone()),
            // The limits are valid: the ttl is one.
            own: Mutex::new(Own::new(
                key,
                network,
                Ttl::from_duration(limits.record_ttl).unwrap_or_default(),
            )),
            bootstrap: Vec::new(),
            discovers: true,
            mdns: false,
            keep: None,
            streams: Registry::default(),
            quota: Mutex::new(Quota::new(limits.quota.clone())),
            intake: Mutex::new(Intake::new(id, network, limits.intake.clone())),
            inbound_places: Places::new(limits.streams_inbound),
            draining: Latch::default(),
            address: watch::Sender::new(EndpointAddr::new(id)),
            manager: watch::Sender::new(None),
            discovery: watch::Sender::new(None),
            terminal: watch::Sender::new(None),
            arrivals: AtomicU64::new(1),
            intents: AtomicU64::new(1),
            runtime: Handle::current(),
            #[cfg(feature = "fault-injection")]
            faults: crate::fault::Faults::default(),
            limits,
        }
    }

    /// Tells whoever listens; nobody may.
    pub(crate) fn emit(&self, event: NodeEvent) {
        if let Some(events) = lock(&self.events).as_ref() {
            events.tell(event);
        }
    }

    /// What happens from now on; `None` once the node has ended.
    pub(crate) fn subscribe(&self) -> Option<broadcast::Receiver<NodeEvent>> {
        lock(&self.events).as_ref().map(Listeners::subscribe)
    }

    /// Lets timers be made by a caller that is not on a tokio runtime: they are then of the node's.
    pub(crate) fn timers(&self) -> Option<EnterGuard<'_>> {
        Handle::try_current().is_err().then(|| self.runtime.enter())
    }

    /// The next stamp of arrival: a later hello or welcome gets a larger one.
    pub(crate) fn arrival(&self) -> u64 {
        self.arrivals.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn intent_id(&self) -> IntentId {
        IntentId(self.intents.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_set()
    }

    /// Waits until the node takes no new work any more. Cancel safe.
    pub(crate) async fn drains(&self) {
        self.draining.wait().await;
    }

    /// Takes no new work from now on, whatever is restarted.
    pub(crate) fn start_draining(&self) {
        if self.draining.set() {
            self.emit(NodeEvent::Draining);
        }
    }

    /// Publishes the PeerManager that is up, or that none is.
    pub(crate) fn set_manager(&self, manager: Option<Mailbox>) {
        self.manager.send_replace(manager);
    }

    /// The PeerManager failed: nobody may use what it published, and every watched peer is down.
    pub(crate) fn lose_manager(&self) {
        self.set_manager(None);
        self.directory.clear();
        self.note_all_disconnected();
        self.monitors.note_all_down(DownReason::Ended(LinkEnd::Failed));
    }

    /// Sends to the PeerManager and counts the message as waiting. Fails while it is being restarted.
    pub(crate) fn tell_manager(&self, message: PeerManagerMessage) -> Result<(), ManagerAway> {
        let manager = self.manager.borrow().clone().ok_or(ManagerAway)?;
        manager.send(message)
    }

    /// Publishes the Discovery that is up, or that none is.
    pub(crate) fn set_discovery(&self, discovery: Option<ActorRef<DiscoveryMessage>>) {
        self.discovery.send_replace(discovery);
    }

    /// Sends to Discovery; whoever is away finds out by itself when it is back.
    pub(crate) fn tell_discovery(&self, message: DiscoveryMessage) -> Result<(), DiscoveryAway> {
        let discovery = self.discovery.borrow().clone().ok_or(DiscoveryAway)?;
        discovery.send_message(message).map_err(|_| DiscoveryAway)
    }

    /// Tells the neighbours that the node leaves, once: their streams would keep its sessions from closing. Whoever is not told in time
    /// learns it from the others, or when the record is over.
    pub(crate) async fn farewell(&self) {
        // What was sent is delivered while the sessions drain.
        self.end_streams();
        let (reply, departed) = ractor::concurrency::oneshot();
        if self.tell_discovery(DiscoveryMessage::Depart(reply.into())).is_ok() {
            let told = {
                let _timers = self.timers();
                tokio::time::timeout(FAREWELL, departed)
            };
            let _ = told.await;
        }
    }

    /// Waits until a PeerManager is up, or the node has ended. Cancel safe.
    pub(crate) async fn manager_up(&self) -> Result<Mailbox, NodeClosed> {
        self.manager_after(None).await
    }

    /// Asks the PeerManager, and the next one if it is restarted over the question. Cancel safe.
    pub(crate) async fn ask_manager<T>(
        &self,
        question: impl Fn(RpcReplyPort<T>) -> PeerManagerMessage,
    ) -> Result<T, NodeClosed> {
        let mut last = None;
        loop {
            let manager = self.manager_after(last).await?;
            last = Some(manager.actor.get_id());
            let (reply, answer) = ractor::concurrency::oneshot();
            let asked = manager.send(question(reply.into()));
            if asked.is_ok()
                && let Ok(answer) = answer.await
            {
                return Ok(answer);
            }
        }
    }

    /// Waits for another PeerManager than the one that failed.
    async fn manager_after(&self, last: Option<ActorId>) -> Result<Mailbox, NodeClosed> {
        let next = |manager: &Option<Mailbox>| {
            manager.as_ref().is_some_and(|manager| Some(manager.actor.get_id()) != last)
        };
        let mut manager = self.manager.subscribe();
        let mut terminal = self.terminal.subscribe();
        tokio::select! {
            biased;
            end = terminal.wait_for(Option::is_some) => {
                Err(NodeClosed(end.ok().and_then(|end| end.clone()).unwrap_or(Terminal::Shutdown)))
            }
            up = manager.wait_for(next) => {
                let up = up.ok().and_then(|manager| manager.clone());
                up.ok_or(NodeClosed(Terminal::Killed))
            }
        }
    }

    /// Publishes why the node has ended; the first reason stays.
    pub(crate) fn end(&self, reason: Terminal) {
        let is_first = self.terminal.send_if_modified(|terminal| {
            let first = terminal.is_none();
            if first {
                *terminal = Some(reason.clone());
            }
            first
        });
        self.end_holds();
        self.end_streams();
        if !is_first {
            return;
        }
        if let Some(events) = lock(&self.events).take() {
            events.tell(NodeEvent::Ended { reason });
        }
        // A handler may hold a handle of this node; kept here, the two would keep each other for ever. What it drops is the app's, and
        // may panic.
        let services = AssertUnwindSafe(self.services.take());
        if catch_unwind(move || drop(services)).is_err() {
            self.counters.count(Family::Panicked, "handler");
        }
    }

    /// Keeps a hold of the app.
    pub(crate) fn add_hold(&self, id: IntentId, held: Held) {
        // Counted first: from the moment that it is kept, whoever takes it out counts it off.
        self.note_hold(held.peer, true);
        lock(&self.retained).holds.insert(id, held);
    }

    /// Takes out a hold that is over.
    pub(crate) fn take_hold(&self, id: IntentId) -> Option<Held> {
        let held = lock(&self.retained).holds.remove(&id)?;
        self.note_hold(held.peer, false);
        Some(held)
    }

    /// Ends every hold that is left: the node that kept it has ended.
    pub(crate) fn end_holds(&self) {
        let holds = std::mem::take(&mut lock(&self.retained).holds);
        for held in holds.into_values() {
            self.note_hold(held.peer, false);
            held.ended.send_replace(Some(Outcome::ShuttingDown));
            self.counters.outcome(&Outcome::ShuttingDown);
        }
    }

    pub(crate) fn ended(&self) -> Option<Terminal> {
        self.terminal.borrow().clone()
    }

    /// Waits until the node has ended. Cancel safe.
    pub(crate) async fn closed(&self) -> Terminal {
        let mut terminal = self.terminal.subscribe();
        let end = terminal.wait_for(Option::is_some).await;
        end.ok().and_then(|end| end.clone()).unwrap_or(Terminal::Shutdown)
    }

    /// Adds addresses that the app gave, and lets a waiting dial know.
    ///
    /// Fails if the book has no room for them.
    pub(crate) fn configure(&self, address: EndpointAddr) -> Result<(), BookError> {
        let peer = address.id;
        let is_new = lock(&self.retained).book.configure(address)?;
        self.note_configured(peer);
        if is_new {
            // A manager that is being restarted reads the book when it dials.
            let _ = self.tell_manager(PeerManagerMessage::AddressNews(peer));
        }
        Ok(())
    }

    /// Removes addresses that the app gave, these or all.
    pub(crate) fn unconfigure(&self, peer: &EndpointId, addresses: Option<&EndpointAddr>) -> usize {
        let removed = {
            let book = &mut lock(&self.retained).book;
            match addresses {
                None => book.unconfigure(peer, None),
                Some(addresses) => addresses
                    .addrs
                    .iter()
                    .map(|address| book.unconfigure(peer, Some(address)))
                    .fold(0, usize::saturating_add),
            }
        };
        self.note_configured(*peer);
        removed
    }

    /// Takes addresses that came along with an intent, for as long as there is room. Where the app has given as many as the book keeps of
    /// one peer, they are kept like learned ones, of which the newest stay: an app that names a peer's latest address again and again need not
    /// clean up. Fails if none of the peer is known in the end.
    pub(crate) fn name(&self, address: EndpointAddr) -> Result<(), BookError> {
        let peer = address.id;
        let named = lock(&self.retained).book.name(Instant::now(), address.clone());
        let error = match named {
            Ok(is_new) => {
                if is_new {
                    let _ = self.tell_manager(PeerManagerMessage::AddressNews(peer));
                }
                return Ok(());
            }
            Err(error) => error,
        };
        let (before, after) = {
            let (now, book) = (Instant::now(), &mut lock(&self.retained).book);
            let before = book.addresses(&peer);
            for address in address.addrs {
                book.learned(now, peer, address);
            }
            (before, book.addresses(&peer))
        };
        if after != before {
            let _ = self.tell_manager(PeerManagerMessage::AddressNews(peer));
        }
        after.map(|_| ()).ok_or(error)
    }

    /// Ends the holds of a peer as the app wants, whether or not a PeerManager is up.
    pub(crate) fn release(&self, peer: &EndpointId) {
        let mut retained = lock(&self.retained);
        let released: Vec<_> =
            retained.holds.extract_if(.., |_, held| held.peer == *peer).collect();
        drop(retained);
        for (_, held) in released {
            self.note_hold(held.peer, false);
            held.ended.send_replace(Some(Outcome::Cancelled));
            self.counters.outcome(&Outcome::Cancelled);
        }
    }
}

/// The PeerManager is being restarted, or the node has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ManagerAway;

/// Discovery is off or being restarted, or the node has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiscoveryAway;

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn a_peer_is_held_no_more_when_its_holds_were_made_and_released_at_the_same_time() {
        let key = SecretKey::from_bytes(&[1; 32]);
        let network = NetworkId::from_name("context");
        let context = Context::new(key, network, Limits::default(), Admission::everyone());
        let peer = SecretKey::from_bytes(&[2; 32]).public();
        let start = Barrier::new(2);
        for _ in 0..2000 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..10 {
                        context.release(&peer);
                    }
                });
                start.wait();
                let id = context.intent_id();
                let ended = Arc::new(watch::Sender::new(None));
                context.add_hold(id, Held { peer, ended });
                let _ = context.take_hold(id);
            });
            assert!(!context.is_held(&peer));
        }
    }
}
