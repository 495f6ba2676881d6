//! What a catalog passes on, for an exchange to go through.

use std::time::Instant;

use super::entry::Entry;
use super::snapshot::{Peer, Snapshot};
use super::tree::Leaf;
use crate::reconcile::{Digest, Version, Versions};

/// What a snapshot has to pass on, in the order of ids: the own record, those of the peers, and tombstones. Of those that nobody would
/// take any more nothing is said.
///
/// It shares the leaves of the snapshot and says where in them each record lies. To count each record instead, as one that is
/// shared, would be to write to memory all over the catalog, which the cores of a processor then take from each other.
#[derive(Debug)]
pub(crate) struct Relayable {
    leaves: Vec<Leaf<Peer>>,
    spots: Vec<Spot>,
    /// When it was taken.
    since: Instant,
}

/// In which leaf, and at which place there.
#[derive(Debug, Clone, Copy)]
struct Spot {
    leaf: u32,
    slot: u32,
}

impl Relayable {
    pub(crate) fn of(snapshot: &Snapshot, now: Instant) -> Self {
        let mut relayable = Self { leaves: Vec::new(), spots: Vec::new(), since: now };
        let peers = relayable.add(snapshot.peers.leaves());
        let mut others = relayable.add(snapshot.departures.leaves());
        if let Some(own) = &snapshot.own {
            others.extend(relayable.add(vec![Leaf::of(vec![Peer::new(u32::MAX, own.clone())])]));
        }
        let id = |spot: Spot| relayable.peer(spot).map(|peer| peer.entry.record().id_bytes());
        others.sort_by_key(|spot| id(*spot));
        // The peers are in order already, so that only where the others belong has to be found.
        let mut peers = &peers[..];
        let mut spots = Vec::with_capacity(peers.len().saturating_add(others.len()));
        for other in others {
            let before = peers.partition_point(|peer| id(*peer) < id(other));
            let (first, rest) = peers.split_at_checked(before).unwrap_or((peers, &[]));
            spots.extend_from_slice(first);
            spots.push(other);
            peers = rest;
        }
        spots.extend_from_slice(peers);
        relayable.spots = spots;
        relayable
    }

    /// What is known of the node at a place.
    pub(crate) fn entry(&self, at: usize) -> Option<&Entry> {
        self.peer(*self.spots.get(at)?).map(|peer| &*peer.entry)
    }

    fn peer(&self, spot: Spot) -> Option<&Peer> {
        let leaf = self.leaves.get(usize::try_from(spot.leaf).ok()?)?;
        leaf.items().get(usize::try_from(spot.slot).ok()?)
    }

    /// Adds leaves, and says where everything in them lies.
    fn add(&mut self, leaves: Vec<Leaf<Peer>>) -> Vec<Spot> {
        let mut spots = Vec::new();
        for leaf in leaves {
            // No catalog has so many.
            let number = u32::try_from(self.leaves.len()).unwrap_or(u32::MAX);
            let slots = (0..u32::MAX).zip(leaf.items());
            spots.extend(slots.map(|(slot, _)| Spot { leaf: number, slot }));
            self.leaves.push(leaf);
        }
        spots
    }
}

impl Versions for Relayable {
    fn len(&self) -> usize {
        self.spots.len()
    }

    fn id(&self, at: usize) -> Option<&[u8; 32]> {
        self.entry(at).map(|entry| entry.record().id_bytes())
    }

    fn version(&self, at: usize) -> Option<Version> {
        self.entry(at).map(|entry| Version::of(entry.record()))
    }

    fn digest(&self, at: usize) -> Option<Digest> {
        self.peer(*self.spots.get(at)?)?.digest(self.since)
    }
}
