//! What a catalog knows at one moment, for whoever reads it beside the catalog.

use std::cmp::Ordering;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

use super::entry::{Entry, Told};
use super::tree::{Item, Tree};
use crate::reconcile::{Digest, Version};
use crate::record::{Offer, Record, Topic};

/// The bytes of an id: a key that has a smallest and a largest value.
type IdBytes = [u8; 32];

/// The first bytes of an id, as a number in the same order: they tell ids apart, and lie where others need a look at the record. Eight, since
/// whoever makes ids can have as many as he likes begin with the same four, and those that begin alike are looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix(u64);

impl Prefix {
    fn of(id: &IdBytes) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *id;
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    /// The smallest id that begins so.
    fn first_id(self) -> IdBytes {
        let mut id = [0; 32];
        id.iter_mut().zip(self.0.to_be_bytes()).for_each(|(to, from)| *to = from);
        id
    }
}

impl Item for Prefix {
    type Key = Self;

    fn key(&self) -> Self {
        *self
    }
}

/// One node in a snapshot.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    prefix: Prefix,
    /// Its place in the catalog's [`Places`](super::places::Places), if it has one.
    pub(super) place: u32,
    pub(super) entry: Arc<Entry>,
    /// What an exchange says of it, and until when it says anything. They lie here so that whoever goes through a whole catalog has no
    /// look at the records, which lie all over the memory.
    digest: Digest,
    until: Instant,
}

impl Peer {
    pub(super) fn new(place: u32, entry: Arc<Entry>) -> Self {
        let (record, until) = (entry.record(), entry.told().ends());
        let prefix = Prefix::of(record.id_bytes());
        let digest = Digest::of(record.id_bytes(), Version::of(record));
        Self { prefix, place, digest, until, entry }
    }

    /// The same record, of which something else is known now.
    pub(super) fn with(&self, entry: Arc<Entry>) -> Self {
        Self { entry, ..self.clone() }
    }

    /// What an exchange says of it at this time, if anybody would still take its record.
    pub(super) fn digest(&self, now: Instant) -> Option<Digest> {
        (now < self.until).then_some(self.digest)
    }
}

impl Item for Peer {
    type Key = IdBytes;

    fn key(&self) -> IdBytes {
        *self.entry.record().id_bytes()
    }

    fn order(&self, key: &IdBytes) -> Ordering {
        let by_prefix = self.prefix.cmp(&Prefix::of(key));
        by_prefix.then_with(|| self.entry.record().id_bytes().cmp(key))
    }
}

/// Who names a tag, by the prefixes of their ids: whoever else has such a prefix is told apart by its record.
#[derive(Debug, Clone)]
struct Named<K> {
    tag: K,
    by: Tree<Prefix>,
}

impl<K: Ord + Copy + Debug> Item for Named<K> {
    type Key = K;

    fn key(&self) -> K {
        self.tag
    }
}

/// All that a catalog knows, as it was when the snapshot was taken. Cloning it, and taking it, copies nothing but
/// pointers: it shares what has not changed with the catalog and with later snapshots.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) own: Option<Arc<Entry>>,
    pub(super) peers: Tree<Peer>,
    /// Tombstones, which have no place.
    pub(super) departures: Tree<Peer>,
    topics: Tree<Named<Topic>>,
    offers: Tree<Named<Offer>>,
}

impl Snapshot {
    /// How many peers are known; this node is not one of them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether no peer is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// What is known of a peer.
    #[must_use]
    pub fn get(&self, id: &EndpointId) -> Option<&Arc<Entry>> {
        self.peers.get(id.as_bytes()).map(|peer| &peer.entry)
    }

    /// All peers, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.peers.iter().map(|peer| &peer.entry)
    }

    /// All peers by id, beginning at this place in the order and going around: from random bytes, a way to pick peers at
    /// random.
    pub fn iter_from<'a>(&'a self, at: &'a IdBytes) -> impl Iterator<Item = &'a Arc<Entry>> {
        let before = self.peers.iter().take_while(|peer| peer.order(at).is_lt());
        self.peers.iter_from(at).chain(before).map(|peer| &peer.entry)
    }

    /// The peers that take part in a topic.
    pub fn with_topic(&self, topic: &Topic) -> impl Iterator<Item = &Arc<Entry>> {
        let topic = *topic;
        let by = self.topics.get(&topic).into_iter().flat_map(|named| named.by.iter());
        by.flat_map(|prefix| self.beginning_with(*prefix))
            .filter(move |entry| entry.record().topics().any(|other| other == topic))
    }

    /// The peers that offer a stream.
    pub fn with_offer(&self, offer: &Offer) -> impl Iterator<Item = &Arc<Entry>> {
        let offer = *offer;
        let by = self.offers.get(&offer).into_iter().flat_map(|named| named.by.iter());
        by.flat_map(|prefix| self.beginning_with(*prefix))
            .filter(move |entry| entry.record().offers().any(|other| other == offer))
    }

    /// The peers whose ids begin so: hardly ever more than one.
    fn beginning_with(&self, prefix: Prefix) -> impl Iterator<Item = &Arc<Entry>> {
        let from = self.peers.iter_from(&prefix.first_id());
        from.take_while(move |peer| peer.prefix == prefix).map(|peer| &peer.entry)
    }

    /// This node's own record.
    #[must_use]
    pub fn own(&self) -> Option<&Told> {
        self.own.as_ref().map(|own| own.told())
    }

    /// What can be passed on: the own record, those of the peers, and tombstones; each with its age.
    pub fn relayable(&self, now: Instant) -> impl Iterator<Item = (&Record, Duration)> {
        let others = self.peers.iter().chain(self.departures.iter()).map(|peer| &peer.entry);
        self.own
            .iter()
            .chain(others)
            .map(|entry| entry.told())
            .filter(move |told| told.is_relayable(now))
            .map(move |told| (told.record(), told.age(now)))
    }

    /// What can be passed on about one node, with its age.
    #[must_use]
    pub fn relayable_of(&self, id: &EndpointId, now: Instant) -> Option<(&Record, Duration)> {
        let own = self.own().filter(|own| own.record().id() == *id);
        let known = || self.get(id).or_else(|| self.departure(id.as_bytes()));
        let told = own.or_else(|| known().map(|entry| entry.told()))?;
        told.is_relayable(now).then(|| (told.record(), told.age(now)))
    }

    /// The tombstone of a node.
    pub(super) fn departure(&self, id: &IdBytes) -> Option<&Arc<Entry>> {
        self.departures.get(id).map(|peer| &peer.entry)
    }

    /// Whether these bytes are those of a record that is known already, so that its signature need not be checked again.
    #[must_use]
    pub fn knows(&self, bytes: &[u8]) -> bool {
        self.find(bytes).is_some()
    }

    /// The known record that has these bytes: a peer's, a tombstone, or this node's own.
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Option<&Record> {
        let id = Record::claimed_id(bytes)?;
        let peer = self.peers.get(id).map(|peer| &peer.entry);
        let known = [peer, self.departure(id), self.own.as_ref()].into_iter().flatten();
        known.map(|entry| entry.record()).find(|record| record.bytes() == bytes)
    }

    pub(super) fn put(&mut self, peer: Peer) {
        let entry = peer.entry.clone();
        self.peers.insert(peer);
        self.name(&entry);
    }

    /// Most new records of a peer name what the one before named, so that the indexes stay as they are.
    pub(super) fn replace(&mut self, old: &Entry, peer: Peer) {
        let entry = peer.entry.clone();
        self.peers.insert(peer);
        let (before, after) = (old.record(), entry.record());
        if !before.topics().eq(after.topics()) || !before.offers().eq(after.offers()) {
            self.unname(old);
            self.name(&entry);
        }
    }

    pub(super) fn take(&mut self, id: &EndpointId) -> Option<Peer> {
        let peer = self.peers.remove(id.as_bytes())?;
        self.unname(&peer.entry);
        Some(peer)
    }

    /// Enters what a peer's record names.
    fn name(&mut self, entry: &Entry) {
        let prefix = Prefix::of(entry.record().id_bytes());
        entry.record().topics().for_each(|topic| add(&mut self.topics, topic, prefix));
        entry.record().offers().for_each(|offer| add(&mut self.offers, offer, prefix));
    }

    /// Removes what a record named that is here no longer, unless another one names it whose id begins in the same way.
    fn unname(&mut self, gone: &Entry) {
        let prefix = Prefix::of(gone.record().id_bytes());
        let others: Vec<_> =
            self.beginning_with(prefix).map(|entry| entry.record().clone()).collect();
        for topic in gone.record().topics() {
            if !others.iter().any(|record| record.topics().any(|other| other == topic)) {
                subtract(&mut self.topics, &topic, prefix);
            }
        }
        for offer in gone.record().offers() {
            if !others.iter().any(|record| record.offers().any(|other| other == offer)) {
                subtract(&mut self.offers, &offer, prefix);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn tags(&self) -> (usize, usize) {
        let topics = self.topics.iter().map(|named| named.by.len()).sum();
        (topics, self.offers.iter().map(|named| named.by.len()).sum())
    }
}

fn add<K: Ord + Copy + Debug>(names: &mut Tree<Named<K>>, tag: K, prefix: Prefix) {
    if let Some(named) = names.get_mut(&tag) {
        named.by.insert(prefix);
    } else {
        let mut by = Tree::default();
        by.insert(prefix);
        names.insert(Named { tag, by });
    }
}

fn subtract<K: Ord + Copy + Debug>(names: &mut Tree<Named<K>>, tag: &K, prefix: Prefix) {
    let Some(named) = names.get_mut(tag) else { return };
    named.by.remove(&prefix);
    if named.by.is_empty() {
        names.remove(tag);
    }
}
