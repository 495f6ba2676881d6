//! Which source accounts for which loose records: those that are hearsay and not protected.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use iroh_base::EndpointId;

/// The loose records of each source, oldest first, and the sources by how many they account for.
#[derive(Debug, Clone, Default)]
pub(super) struct Shares {
    by_source: BTreeMap<EndpointId, BTreeSet<(Instant, EndpointId)>>,
    by_count: BTreeSet<(usize, EndpointId)>,
}

impl Shares {
    pub(super) fn insert(&mut self, source: EndpointId, since: Instant, id: EndpointId) {
        self.change(source, |records| records.insert((since, id)));
    }

    pub(super) fn remove(&mut self, source: EndpointId, since: Instant, id: EndpointId) {
        self.change(source, |records| records.remove(&(since, id)));
    }

    pub(super) fn count(&self, source: &EndpointId) -> usize {
        self.by_source.get(source).map_or(0, BTreeSet::len)
    }

    /// The oldest record of the source that accounts for most, if these are more than `share`.
    pub(super) fn surplus(&self, share: usize) -> Option<EndpointId> {
        let (count, source) = self.by_count.last()?;
        if *count <= share {
            return None;
        }
        self.by_source.get(source)?.first().map(|(_, id)| *id)
    }

    fn change(
        &mut self,
        source: EndpointId,
        change: impl FnOnce(&mut BTreeSet<(Instant, EndpointId)>) -> bool,
    ) {
        let records = self.by_source.entry(source).or_default();
        let before = records.len();
        change(records);
        let after = records.len();
        if after == 0 {
            self.by_source.remove(&source);
        }
        if before != after {
            self.by_count.remove(&(before, source));
            if after > 0 {
                self.by_count.insert((after, source));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_source.values().map(BTreeSet::len).sum()
    }
}
