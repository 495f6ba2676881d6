//! How sources stood whose records are gone: should a record come back, its peer is not treated as if nothing had been.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

use super::source::{Source, Step};

/// At most `capacity` sources, each for `keep`; the oldest make room.
#[derive(Debug, Clone)]
pub(super) struct Absent {
    capacity: usize,
    keep: Duration,
    sources: BTreeMap<EndpointId, (Instant, Source)>,
    by_time: BTreeSet<(Instant, EndpointId)>,
}

impl Absent {
    pub(super) const fn new(capacity: usize, keep: Duration) -> Self {
        Self { capacity, keep, sources: BTreeMap::new(), by_time: BTreeSet::new() }
    }

    pub(super) fn remember(&mut self, now: Instant, peer: EndpointId, mut source: Source) {
        if let Step::Waiting(wait) = &mut source.step {
            wait.keeps_place = false;
        }
        source.shown = None;
        source.is_wanted = true;
        let until = now.checked_add(self.keep).unwrap_or(now);
        self.forget(peer);
        self.sources.insert(peer, (until, source));
        self.by_time.insert((until, peer));
        self.expire(now);
    }

    pub(super) fn take(&mut self, now: Instant, peer: EndpointId) -> Option<Source> {
        self.expire(now);
        self.forget(peer)
    }

    pub(super) fn forget(&mut self, peer: EndpointId) -> Option<Source> {
        let (until, source) = self.sources.remove(&peer)?;
        self.by_time.remove(&(until, peer));
        Some(source)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Source> {
        self.sources.values_mut().map(|(_, source)| source)
    }

    pub(super) fn clear(&mut self) {
        self.sources.clear();
        self.by_time.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.sources.len()
    }

    fn expire(&mut self, now: Instant) {
        while let Some((until, peer)) = self.by_time.first().copied()
            && (until <= now || self.sources.len() > self.capacity)
        {
            self.by_time.pop_first();
            self.sources.remove(&peer);
        }
    }
}
