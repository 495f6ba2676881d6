//! The catalog of the running node, for all who tell it something and all who read it.
//!
//! Whoever learns a fact tells the catalog at once, in its own task and without a mailbox: the PeerManager that a session is up, an exchange
//! that a record came, the app that it holds a peer. What the catalog says to that is carried out here: addresses for the
//! address book, events, numbers, changes for those who look for peers. It survives every restart, and never checks a signature.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iroh::{EndpointAddr, EndpointId};
use kinfolk_core::catalog::{
    Catalog, CatalogLimits, Entry, Ignored, Input, Keep as Kept, Output, Removal, Snapshot,
};
use kinfolk_core::peer_link::{DialFailure, Direction, LinkEnd};
use kinfolk_core::record::{Offer, Topic};
use kinfolk_core::secret_topic::{Binding, SecretTopic, TooManySecretTopics};
use kinfolk_core::wire::exchange::{Token, Tokens};
use tokio::sync::{broadcast, watch};
use tokio::time::MissedTickBehavior;

use crate::context::Context;
use crate::discovery::keep::Keep;
use crate::discovery::manager::{DiscoveryMessage, OwnNews};
use crate::discovery::pending::{Added, Pending};
use crate::error::{OfferError, TopicError};
use crate::events::NodeEvent;
use crate::listeners::Listeners;
use crate::metrics::{DiscoveryMetrics, Family};
use crate::peers::manager::PeerManagerMessage;
use crate::supervision::lock;

/// Changes kept for one who looks for peers and is slow; one that falls further behind compares the whole catalog.
const CHANGES: usize = 1024;

/// How often is looked whether a peer that is waited for has come by itself.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Peers with new addresses, or that nothing is known of, that wait to be looked at; beyond these they are found by other means (a guess).
const PENDING_MAX: usize = 1024;

/// The shared catalog; see the module page.
#[derive(Debug)]
pub(crate) struct Records {
    known: Mutex<Known>,
    /// When the catalog has something to do by itself.
    due: watch::Sender<Option<Instant>>,
    changes: Listeners<Change>,
    /// Peers with new addresses, for the PeerManager.
    pub(crate) moved: Pending<[u8; EndpointId::LENGTH]>,
    /// Peers that came into the catalog, or were reached again after they had been missed, for the announcer.
    pub(crate) found: Pending<[u8; EndpointId::LENGTH]>,
    /// Peers with a session and no record, for Discovery.
    pub(crate) met: Pending<[u8; EndpointId::LENGTH]>,
    /// Peers that announcements are exchanged with.
    neighbours: Mutex<Vec<EndpointId>>,
    under_way: Mutex<UnderWay>,
}

/// What Discovery has under way, as it says.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct UnderWay {
    /// Exchanges that this node has opened.
    pub(crate) outbound: usize,
    /// Exchanges that peers have opened.
    pub(crate) inbound: usize,
    /// Walkers with a visit.
    pub(crate) visiting: usize,
    /// Walkers without one.
    pub(crate) resting: usize,
}

#[derive(Debug)]
struct Known {
    catalog: Catalog,
    /// How many holds of the app there are of each peer.
    holds: BTreeMap<EndpointId, usize>,
    connected: BTreeSet<EndpointId>,
    /// Which secret topics of this node each peer was found to take part in, in the latest exchange with it; only peers of the catalog.
    shares: BTreeMap<EndpointId, BTreeSet<SecretTopic>>,
}

/// Something changed in the catalog.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// A peer is there, or has another record.
    Present(Arc<Entry>),
    /// A peer is there no more.
    Gone(EndpointId),
}

impl Records {
    pub(crate) fn new(me: EndpointId, limits: CatalogLimits) -> Self {
        Self {
            known: Mutex::new(Known {
                catalog: Catalog::new(me, limits),
                holds: BTreeMap::new(),
                connected: BTreeSet::new(),
                shares: BTreeMap::new(),
            }),
            due: watch::Sender::new(None),
            changes: Listeners::new(CHANGES),
            moved: Pending::new(PENDING_MAX),
            met: Pending::new(PENDING_MAX),
            found: Pending::new(PENDING_MAX),
            neighbours: Mutex::default(),
            under_way: Mutex::default(),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        lock(&self.known).catalog.snapshot()
    }

    /// The peers that announcements are exchanged with: a handful.
    pub(crate) fn neighbours(&self) -> Vec<EndpointId> {
        lock(&self.neighbours).clone()
    }

    /// The catalog as it is, and all that changes from then on.
    pub(crate) fn follow(&self) -> (Snapshot, broadcast::Receiver<Change>) {
        let known = lock(&self.known);
        (known.catalog.snapshot(), self.changes.subscribe())
    }

    /// Whether the peer was found to take part in a secret topic of this node.
    pub(crate) fn shares(&self, peer: &EndpointId, topic: &SecretTopic) -> bool {
        lock(&self.known).shares.get(peer).is_some_and(|topics| topics.contains(topic))
    }

    /// When [`Input::Timeout`] is due.
    pub(crate) fn due(&self) -> watch::Receiver<Option<Instant>> {
        self.due.subscribe()
    }
}

impl Known {
    fn sharers(&self, topic: &SecretTopic) -> impl Iterator<Item = EndpointId> {
        let shares = self.shares.iter().filter(|(_, topics)| topics.contains(topic));
        shares.map(|(peer, _)| *peer)
    }
}

impl Context {
    /// Tells the catalog what happened, and carries out what it says. Returns whether it took a record.
    pub(crate) fn note(&self, input: Input) -> bool {
        // A ban forgets the peer, and others go on telling of it.
        if let Input::Heard { sighting, .. } = &input
            && self.is_banned(&sighting.record().id())
        {
            self.counters.count(Family::RecordIgnored, "banned");
            return false;
        }
        self.note_in(&mut lock(&self.records.known), input)
    }

    fn note_in(&self, known: &mut Known, input: Input) -> bool {
        let mut outputs = Vec::new();
        let heard = match &input {
            Input::Heard { sighting, .. } => Some(sighting.record().id()),
            _ => None,
        };
        match &input {
            Input::Connected { peer, .. } => {
                known.connected.insert(*peer);
            }
            Input::Disconnected(peer) => {
                known.connected.remove(peer);
            }
            _ => {}
        }
        known.catalog.handle(Instant::now(), input, &mut outputs);
        let mut is_taken = false;
        // Under the lock, so that what changes is told in its order.
        for output in outputs {
            match &output {
                Output::Added(entry) | Output::Updated(entry) => {
                    is_taken |= heard == Some(entry.id());
                    self.keep_if_reached(entry);
                }
                // It was known, and came from nearer.
                Output::Ignored { peer, .. } => is_taken &= heard != Some(*peer),
                Output::Removed { peer, reason } => {
                    is_taken |= heard == Some(*peer) && *reason == Removal::Departed;
                    known.shares.remove(peer);
                }
                _ => {}
            }
            self.perform(output);
        }
        let due = known.catalog.next_timeout();
        self.records.due.send_if_modified(|alarm| std::mem::replace(alarm, due) != due);
        is_taken
    }

    fn perform(&self, output: Output) {
        match output {
            Output::Added(entry) => {
                self.learn_addresses(&entry);
                if self.is_first(&self.records.found, entry.id(), "found") {
                    let _ = self.tell_discovery(DiscoveryMessage::Found);
                }
                self.records.changes.tell(Change::Present(Arc::clone(&entry)));
                self.emit(NodeEvent::PeerDiscovered { peer: entry.id() });
            }
            Output::Updated(entry) => {
                self.learn_addresses(&entry);
                self.records.changes.tell(Change::Present(Arc::clone(&entry)));
                self.emit(NodeEvent::PeerUpdated { peer: entry.id() });
            }
            Output::Removed { peer, reason } => {
                lock(&self.retained).book.signed(Instant::now(), peer, []);
                self.records.changes.tell(Change::Gone(peer));
                self.counters.count(Family::RecordRemoved, reason.name());
                self.emit(NodeEvent::PeerDeparted { peer, reason });
            }
            Output::Ignored { reason: Ignored::Known, .. } => {}
            Output::Ignored { reason, .. } => {
                self.counters.count(Family::RecordIgnored, reason.name());
            }
            Output::OwnHeard(seq) if lock(&self.own).seq.heard(seq) => self.renew_own(),
            _ => {}
        }
    }

    /// Puts what a record says into the address book, and lets a dial that waits know.
    fn learn_addresses(&self, entry: &Entry) {
        let peer = entry.id();
        lock(&self.retained).book.signed(Instant::now(), peer, entry.addresses());
        if self.is_first(&self.records.moved, peer, "moved") {
            // A manager that is being restarted reads the book when it dials.
            let _ = self.tell_manager(PeerManagerMessage::RecordNews);
        }
    }

    /// Keeps a name for an actor, and says whether the actor has to be told. One for which there is no room is counted.
    fn is_first(
        &self,
        pending: &Pending<[u8; EndpointId::LENGTH]>,
        peer: EndpointId,
        what: &'static str,
    ) -> bool {
        let added = pending.add(*peer.as_bytes());
        if added == Added::Dropped {
            self.counters.count(Family::NewsDropped, what);
        }
        added == Added::First
    }

    /// A session is up. A peer of which no record is known is a reason to ask it.
    pub(crate) fn note_up(&self, peer: EndpointId, direction: Direction) {
        let entry = lock(&self.records.known).catalog.known().get(&peer).cloned();
        self.note(Input::Connected { peer, direction });
        if let Some(entry) = &entry {
            self.keep_if_reached(entry);
            // One that was missed may be in another part of the overlay.
            if entry.liveness().failures() > 0 && self.is_first(&self.records.found, peer, "found")
            {
                let _ = self.tell_discovery(DiscoveryMessage::Found);
            }
        }
        if entry.is_none() && self.is_first(&self.records.met, peer, "met") {
            let _ = self.tell_discovery(DiscoveryMessage::Met);
        }
    }

    /// All peers with a session and no record are told of again.
    pub(crate) fn note_strangers(&self) {
        let known = lock(&self.records.known);
        let is_stranger = |peer: &&EndpointId| known.catalog.known().get(peer).is_none();
        for peer in known.connected.iter().filter(is_stranger) {
            self.is_first(&self.records.met, *peer, "met");
        }
    }

    /// A session of our own may have reached the peer of this record: worth keeping.
    fn keep_if_reached(&self, entry: &Entry) {
        let Some(keep) = &self.keep else { return };
        let link = self.directory.get(&entry.id());
        if let Some(link) = link.filter(|link| link.direction == Direction::Outbound) {
            keep.reached(entry.record(), link.address());
        }
    }

    /// Somebody on the local network says that a peer is there, which nobody has proven: it is asked, unless a session with it is live.
    pub(crate) fn note_hint(&self, hint: EndpointAddr) {
        let EndpointAddr { id, addrs } = hint;
        if self.is_banned(&id) || self.directory.get(&id).is_some() {
            return;
        }
        let now = Instant::now();
        let is_taken = lock(&self.retained).book.hinted(now, id, addrs);
        if is_taken && self.is_first(&self.records.met, id, "met") {
            let _ = self.tell_discovery(DiscoveryMessage::Met);
        }
    }

    /// A dial failed: walkers think less of whom it missed.
    pub(crate) fn note_dial_failed(&self, peer: EndpointId, end: LinkEnd) {
        if end.is_miss() {
            self.note(Input::Missed(peer));
        }
        // What the app opens looks for itself, see `found`; errands look for nobody.
        if end == LinkEnd::DialFailed(DialFailure::NoAddress) && self.is_held(&peer) {
            let _ = self.tell_discovery(DiscoveryMessage::Sought);
        }
    }

    /// Whether a peer that cannot be reached now may be found by looking around.
    pub(crate) fn may_be_found(&self, peer: &EndpointId) -> bool {
        self.discovers
            && *peer != self.id
            && !self.is_draining()
            && !self.is_banned(peer)
            && !self.has_way_to(peer)
    }

    /// Has the walkers look around for a peer, and waits until there is a way to reach it, or it is not to be reached any more. Cancel safe.
    pub(crate) async fn found(&self, peer: &EndpointId) {
        let (_, mut changes) = self.records.follow();
        let mut looking = {
            let _timers = self.timers();
            tokio::time::interval(LOOK_AGAIN)
        };
        looking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.may_be_found(peer) {
            tokio::select! {
                biased;
                // Before the timer, which panics once the node's runtime is gone.
                _ = self.closed() => return,
                // At once, and then now and then: it may also call by itself, or the app may say where it is. Walkers hear of it no more often:
                // strangers change the catalog at any rate.
                _ = looking.tick() => {
                    let _ = self.tell_discovery(DiscoveryMessage::Sought);
                }
                _ = changes.recv() => {}
            }
        }
    }

    pub(crate) fn has_way_to(&self, peer: &EndpointId) -> bool {
        self.directory.get(peer).is_some() || lock(&self.retained).book.knows(peer)
    }

    /// Whether the app holds the peer.
    pub(crate) fn is_held(&self, peer: &EndpointId) -> bool {
        lock(&self.records.known).holds.contains_key(peer)
    }

    /// The app has given or taken back addresses of a peer.
    pub(crate) fn note_configured(&self, peer: EndpointId) {
        let known = &mut lock(&self.records.known);
        let wanted = lock(&self.retained).book.is_configured(&peer);
        self.note_in(known, Input::Keep { peer, keep: Kept::Configured, wanted });
    }

    /// Takes part in a topic.
    pub(crate) fn join_topic(&self, topic: Topic) -> Result<(), TopicError> {
        if lock(&self.own).join(topic)? {
            self.renew_own();
        }
        Ok(())
    }

    /// Takes part in a topic no more; whether it did.
    pub(crate) fn leave_topic(&self, topic: &Topic) -> bool {
        let did = lock(&self.own).leave(topic);
        if did {
            self.renew_own();
        }
        did
    }

    /// Says in the node's record that it offers this. Each success is to be followed by one [`Context::withdraw_offer`]: two parts of the
    /// node may make the same offer, and it stands until both have taken it back.
    pub(crate) fn offer(&self, offer: Offer) -> Result<(), OfferError> {
        if self.make_offer(offer)? {
            self.renew_own();
        }
        Ok(())
    }

    /// The same without telling anybody yet; whether there is something to tell.
    pub(crate) fn make_offer(&self, offer: Offer) -> Result<bool, OfferError> {
        if !self.discovers {
            return Err(OfferError::NoDiscovery);
        }
        Ok(lock(&self.own).offer(offer)?)
    }

    /// Takes an offer back that was made once.
    pub(crate) fn withdraw_offer(&self, offer: Offer) {
        if lock(&self.own).withdraw(offer) {
            self.renew_own();
        }
    }

    /// Takes part in a secret topic.
    pub(crate) fn join_secret_topic(&self, topic: SecretTopic) -> Result<(), TooManySecretTopics> {
        if lock(&self.own).join_secret(topic)? {
            let _ = self.tell_discovery(DiscoveryMessage::OwnNews(OwnNews::Secret));
        }
        Ok(())
    }

    /// Takes part in a secret topic no more; whether it did.
    pub(crate) fn leave_secret_topic(&self, topic: &SecretTopic) -> bool {
        let did = lock(&self.own).secrets.remove(topic);
        if did {
            let mut known = lock(&self.records.known);
            let sharers: Vec<_> = known.sharers(topic).collect();
            for peer in sharers {
                if let Some(topics) = known.shares.get_mut(&peer) {
                    topics.remove(topic);
                }
                self.tell_share(&known, &peer);
            }
        }
        did
    }

    /// What the peer of an exchange is shown of the secret topics of this node.
    pub(crate) fn tokens(&self, binding: &Binding) -> Tokens {
        let tokens = binding.tokens(&lock(&self.own).secrets, rand::random());
        // There are never more topics than tokens: see `Own::join_secret`.
        tokens.unwrap_or_default()
    }

    /// Takes in which secret topics a peer takes part in.
    pub(crate) fn note_tokens(&self, binding: &Binding, peer: EndpointId, tokens: &[Token]) {
        let topics = binding.matches(&lock(&self.own).secrets, tokens);
        let mut known = lock(&self.records.known);
        if known.catalog.known().get(&peer).is_none() {
            return;
        }
        let before = match topics.is_empty() {
            true => known.shares.remove(&peer).unwrap_or_default(),
            false => known.shares.insert(peer, topics.clone()).unwrap_or_default(),
        };
        if before != topics {
            self.tell_share(&known, &peer);
        }
    }

    /// Tells those who look for peers that a peer takes part in other secret topics than before.
    fn tell_share(&self, known: &Known, peer: &EndpointId) {
        if let Some(entry) = known.catalog.known().get(peer) {
            self.records.changes.tell(Change::Present(Arc::clone(entry)));
        }
    }

    /// What this node says of itself has changed.
    pub(crate) fn renew_own(&self) {
        let _ = self.tell_discovery(DiscoveryMessage::OwnNews(OwnNews::Said));
    }

    /// What this node says of itself has to be said in a new record.
    pub(crate) fn refresh_own(&self) {
        let _ = self.tell_discovery(DiscoveryMessage::OwnNews(OwnNews::Aged));
    }

    /// These peers are the neighbours of the announcer.
    pub(crate) fn note_neighbours(&self, peers: impl IntoIterator<Item = EndpointId>) {
        *lock(&self.records.neighbours) = peers.into_iter().collect();
    }

    pub(crate) fn note_under_way(&self, under_way: UnderWay) {
        *lock(&self.records.under_way) = under_way;
    }

    /// The gauges of discovery.
    pub(crate) fn discovery_metrics(&self) -> DiscoveryMetrics {
        let signatures_checked = lock(&self.intake).checks();
        let UnderWay { outbound, inbound, visiting, resting } = *lock(&self.records.under_way);
        let catalog = &lock(&self.records.known).catalog;
        DiscoveryMetrics {
            known: catalog.known().len(),
            proven: catalog.proven(),
            dead: catalog.dead(),
            store_failures: self.keep.as_ref().map_or(0, Keep::failures),
            neighbours: lock(&self.records.neighbours).len(),
            exchanges_outbound: outbound,
            exchanges_inbound: inbound,
            walkers_visiting: visiting,
            walkers_resting: resting,
            signatures_checked,
            ..DiscoveryMetrics::default()
        }
    }

    /// No session is left: the PeerManager has failed, or the node has ended.
    pub(crate) fn note_all_disconnected(&self) {
        let connected = std::mem::take(&mut lock(&self.records.known).connected);
        for peer in connected {
            self.note(Input::Disconnected(peer));
        }
    }

    /// The app holds a peer once more, or once less.
    pub(crate) fn note_hold(&self, peer: EndpointId, wanted: bool) {
        let known = &mut lock(&self.records.known);
        let count = known.holds.entry(peer).or_default();
        let before = *count;
        *count = if wanted { before.saturating_add(1) } else { before.saturating_sub(1) };
        let after = *count;
        if after == 0 {
            known.holds.remove(&peer);
        }
        if (before == 0) != (after == 0) {
            self.note_in(known, Input::Keep { peer, keep: Kept::Held, wanted });
        }
    }
}
