//! What a catalog knows at one moment, for whoever reads it beside the catalog.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_base::EndpointId;
use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use super::entry::{Entry, Told};
use crate::reconcile::Version;
use crate::record::{Offer, Record, Topic};

/// The bytes of an id: a key that has a smallest and a largest value.
type IdBytes = [u8; 32];
const FIRST: IdBytes = [0; 32];
const LAST: IdBytes = [u8::MAX; 32];

/// All that a catalog knows, as it was when the snapshot was taken. Cloning it, and taking it, copies nothing but
/// pointers: it shares what has not changed with the catalog and with later snapshots.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) own: Option<Told>,
    pub(super) entries: RedBlackTreeMapSync<EndpointId, Arc<Entry>>,
    pub(super) departures: RedBlackTreeMapSync<EndpointId, Told>,
    topics: RedBlackTreeSetSync<(Topic, IdBytes)>,
    offers: RedBlackTreeSetSync<(Offer, IdBytes)>,
}

impl Snapshot {
    /// How many peers are known; this node is not one of them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.size()
    }

    /// Whether no peer is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is known of a peer.
    #[must_use]
    pub fn get(&self, id: &EndpointId) -> Option<&Arc<Entry>> {
        self.entries.get(id)
    }

    /// All peers, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// All peers by id, beginning at this place in the order and going around: from random bytes, a way to pick peers at
    /// random.
    pub fn iter_from<'a>(&'a self, at: &'a IdBytes) -> impl Iterator<Item = &'a Arc<Entry>> {
        let after = self.entries.range::<IdBytes, _>(at..);
        let before = self.entries.range::<IdBytes, _>(..at);
        after.chain(before).map(|(_, entry)| entry)
    }

    /// The peers that take part in a topic.
    pub fn with_topic(&self, topic: &Topic) -> impl Iterator<Item = &Arc<Entry>> {
        let ids = self.topics.range((*topic, FIRST)..=(*topic, LAST));
        ids.filter_map(|(_, id)| self.entries.get::<IdBytes>(id))
    }

    /// The peers that offer a stream.
    pub fn with_offer(&self, offer: &Offer) -> impl Iterator<Item = &Arc<Entry>> {
        let ids = self.offers.range((*offer, FIRST)..=(*offer, LAST));
        ids.filter_map(|(_, id)| self.entries.get::<IdBytes>(id))
    }

    /// This node's own record.
    #[must_use]
    pub fn own(&self) -> Option<&Told> {
        self.own.as_ref()
    }

    /// What can be passed on: the own record, those of the peers, and tombstones; each with its age.
    pub fn relayable(&self, now: Instant) -> impl Iterator<Item = (&Record, Duration)> {
        let peers = self.entries.values().map(|entry| entry.told());
        self.own
            .iter()
            .chain(peers)
            .chain(self.departures.values())
            .filter(move |told| told.is_relayable(now))
            .map(move |told| (told.record(), told.age(now)))
    }

    /// Whose records can be passed on, and which: mostly in the order of ids.
    pub(crate) fn versions(&self, now: Instant) -> impl Iterator<Item = (EndpointId, Version)> {
        // In two passes: the way through a tree is a chain of looks into memory that wait for each other, those at the
        // records do not.
        let peers = self.entries.values().map(|entry| entry.told());
        let known: Vec<&Told> = peers.chain(self.departures.values()).chain(&self.own).collect();
        known.into_iter().filter(move |told| told.is_relayable(now)).map(|told| {
            let record = told.record();
            (record.id(), Version::of(record))
        })
    }

    /// What can be passed on about one node, with its age.
    #[must_use]
    pub fn relayable_of(&self, id: &EndpointId, now: Instant) -> Option<(&Record, Duration)> {
        let own = self.own.as_ref().filter(|own| own.record().id() == *id);
        let entry = || self.entries.get(id).map(|entry| entry.told());
        let told = own.or_else(entry).or_else(|| self.departures.get(id))?;
        told.is_relayable(now).then(|| (told.record(), told.age(now)))
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
        let entry = self.entries.get::<IdBytes>(id).map(|entry| entry.told());
        let departure = self.departures.get::<IdBytes>(id);
        let told = [entry, departure, self.own.as_ref()].into_iter().flatten();
        told.map(Told::record).find(|record| record.bytes() == bytes)
    }

    pub(super) fn put(&mut self, entry: Arc<Entry>) {
        self.tag(&entry);
        self.entries.insert_mut(entry.id(), entry);
    }

    /// Most new records of a peer name what the one before named, so that the indexes stay as they are.
    pub(super) fn replace(&mut self, old: &Entry, entry: Arc<Entry>) {
        let (before, after) = (old.record(), entry.record());
        if !before.topics().eq(after.topics()) || !before.offers().eq(after.offers()) {
            self.untag(old);
            self.tag(&entry);
        }
        self.entries.insert_mut(entry.id(), entry);
    }

    pub(super) fn take(&mut self, id: &EndpointId) -> Option<Arc<Entry>> {
        let entry = self.entries.get(id).cloned()?;
        self.entries.remove_mut(id);
        self.untag(&entry);
        Some(entry)
    }

    fn tag(&mut self, entry: &Entry) {
        let id = *entry.id().as_bytes();
        entry.record().topics().for_each(|topic| self.topics.insert_mut((topic, id)));
        entry.record().offers().for_each(|offer| self.offers.insert_mut((offer, id)));
    }

    fn untag(&mut self, entry: &Entry) {
        let id = *entry.id().as_bytes();
        for topic in entry.record().topics() {
            self.topics.remove_mut(&(topic, id));
        }
        for offer in entry.record().offers() {
            self.offers.remove_mut(&(offer, id));
        }
    }

    #[cfg(test)]
    pub(super) fn tags(&self) -> (usize, usize) {
        (self.topics.size(), self.offers.size())
    }
}
