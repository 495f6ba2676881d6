//! Whom a walk has visited of late: a bounded memory, in the order of the visits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use iroh_base::EndpointId;

/// The peers of the latest visits, each with the time at which the last one ended.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    capacity: usize,
    at: BTreeMap<EndpointId, Instant>,
    order: BTreeSet<(Instant, EndpointId)>,
}

impl Memory {
    pub(super) const fn new(capacity: usize) -> Self {
        Self { capacity, at: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// Enters a visit; the oldest makes room.
    pub(super) fn enter(&mut self, now: Instant, peer: EndpointId) {
        self.forget(&peer);
        while self.at.len() >= self.capacity
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.at.remove(&oldest);
        }
        self.at.insert(peer, now);
        self.order.insert((now, peer));
    }

    pub(super) fn forget(&mut self, peer: &EndpointId) {
        if let Some(at) = self.at.remove(peer) {
            self.order.remove(&(at, *peer));
        }
    }

    pub(super) fn last_visit(&self, peer: &EndpointId) -> Option<Instant> {
        self.at.get(peer).copied()
    }

    /// The oldest visit, if another one would displace it.
    pub(super) fn displaced_next(&self) -> Option<Instant> {
        let is_full = self.at.len() >= self.capacity;
        self.order.first().filter(|_| is_full).map(|(at, _)| *at)
    }

    /// The peers, latest visit first.
    pub(super) fn newest(&self) -> impl Iterator<Item = EndpointId> {
        self.order.iter().rev().map(|(_, peer)| *peer)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.at.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use iroh_base::SecretKey;

    use super::*;

    fn peer(seed: u8) -> EndpointId {
        SecretKey::from_bytes(&[seed; 32]).public()
    }

    #[test]
    fn the_oldest_visit_makes_room() {
        let start = Instant::now();
        let mut memory = Memory::new(2);
        for n in 1..=3 {
            memory.enter(start + Duration::from_secs(n.into()), peer(n));
        }
        assert_eq!(memory.len(), 2);
        assert_eq!(memory.last_visit(&peer(1)), None);
        assert_eq!(memory.newest().collect::<Vec<_>>(), [peer(3), peer(2)]);
    }

    #[test]
    fn a_second_visit_takes_the_place_of_the_first() {
        let start = Instant::now();
        let later = start + Duration::from_secs(9);
        let mut memory = Memory::new(2);
        memory.enter(start, peer(1));
        memory.enter(start, peer(2));
        memory.enter(later, peer(1));
        assert_eq!(memory.last_visit(&peer(1)), Some(later));
        assert_eq!(memory.newest().collect::<Vec<_>>(), [peer(1), peer(2)]);
    }
}
