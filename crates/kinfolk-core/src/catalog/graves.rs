//! Which records are dead, so that whoever still shares them cannot revive them.
//!
//! One grave per node: the largest number that died, and the one that died last, as an owner may go back to smaller ones. The table is bounded. When it is full, the grave that is nearest to
//! its end makes room; first those of nodes that never were in the catalog, as anybody can make up any number of these.
//! A record whose grave was lost can only come back for as long as its own time of issue allows, by our wall clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use iroh_base::EndpointId;

use crate::record::{Record, Seq};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grave {
    /// All records of the node up to this number are dead.
    pub(super) seq: Seq,
    /// Whether it is a tombstone that has this number.
    pub(super) is_departure: bool,
    /// When that number was heard.
    pub(super) heard: Instant,
    /// The number that died last, and when it was heard.
    pub(super) last: (Seq, Instant),
    pub(super) until: Instant,
    /// Whether the node was in the catalog.
    pub(super) was_known: bool,
}

impl Grave {
    /// That of a record which was heard then, of a node of which nothing else has died.
    pub(super) fn of(record: &Record, heard: Instant, until: Instant, was_known: bool) -> Self {
        let (seq, is_departure) = (record.seq(), record.is_departure());
        Self { seq, is_departure, heard, last: (seq, heard), until, was_known }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Graves {
    capacity: usize,
    graves: BTreeMap<EndpointId, Grave>,
    /// Whether the node was in the catalog, until when, and the node: the first makes room.
    order: BTreeSet<(bool, Instant, EndpointId)>,
}

/// What digging a grave did to others.
pub(super) struct Dug {
    /// The grave that was there before.
    pub(super) before: Option<Grave>,
    /// The node whose grave made room.
    pub(super) displaced: Option<(EndpointId, Grave)>,
}

impl Graves {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    pub(super) fn get(&self, id: &EndpointId) -> Option<Grave> {
        self.graves.get(id).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.graves.len()
    }

    /// Remembers that the records of `id` up to the grave's number are dead, which is the last one so far. What is remembered only grows.
    pub(super) fn dig(&mut self, id: EndpointId, grave: Grave) -> Dug {
        let before = self.remove(&id);
        let grave = before.map_or(grave, |before| Grave {
            seq: grave.seq.max(before.seq),
            is_departure: match grave.seq.cmp(&before.seq) {
                std::cmp::Ordering::Less => before.is_departure,
                std::cmp::Ordering::Equal => grave.is_departure || before.is_departure,
                std::cmp::Ordering::Greater => grave.is_departure,
            },
            heard: if grave.seq > before.seq { grave.heard } else { before.heard },
            last: grave.last,
            until: grave.until.max(before.until),
            was_known: grave.was_known || before.was_known,
        });
        let displaced = if self.graves.len() >= self.capacity {
            let first = self.order.first().map(|(_, _, id)| *id);
            first.and_then(|first| Some((first, self.remove(&first)?)))
        } else {
            None
        };
        if self.graves.len() < self.capacity {
            self.order.insert((grave.was_known, grave.until, id));
            self.graves.insert(id, grave);
        }
        Dug { before, displaced }
    }

    pub(super) fn remove(&mut self, id: &EndpointId) -> Option<Grave> {
        let grave = self.graves.remove(id)?;
        self.order.remove(&(grave.was_known, grave.until, *id));
        Some(grave)
    }
}
