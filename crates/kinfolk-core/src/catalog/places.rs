//! Who is over first, who makes room first, and which source accounts for whom.
//!
//! Each peer in the catalog has a place, and the orders are heaps of the places' numbers, so that all of them together take
//! less memory than one set of ids. The module keeps the orders; what follows from them the catalog decides. A record that
//! somebody told and that nothing protects is *loose*: its source accounts for it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use iroh_base::EndpointId;

use super::entry::{Entry, Weight};

/// No place, no source.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct Place {
    /// `None` while nobody has the place.
    entry: Option<Arc<Entry>>,
    /// Who brought the peer into the catalog. Later records do not change it: who is first to pass on a news is charged
    /// for no place.
    source: u32,
    /// Where it is in the heaps.
    over: u32,
    room: u32,
    share: u32,
}

/// In what order a heap is.
#[derive(Debug, Clone, Copy)]
enum By {
    /// Whose record is over first.
    Over,
    /// Who makes room first: the lightest, and of these the one that came in the longest time ago.
    Room,
    /// Whose record came in the longest time ago.
    Share,
}

/// A source, for as long as a peer that it brought is in the catalog.
#[derive(Debug, Clone)]
struct Origin {
    id: EndpointId,
    /// Peers that it brought.
    brought: u32,
    /// Its loose records.
    loose: Heap,
}

/// See the module page.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    places: Vec<Place>,
    free: Vec<u32>,
    over: Heap,
    room: Heap,
    origins: Vec<Option<Origin>>,
    free_origins: Vec<u32>,
    numbers: BTreeMap<EndpointId, u32>,
    /// The sources that account for any, by how many.
    by_count: BTreeSet<(usize, EndpointId)>,
}

impl Places {
    /// Gives a peer a place.
    pub(super) fn add(&mut self, entry: Arc<Entry>, source: Option<EndpointId>) -> u32 {
        let source = source.map_or(NONE, |source| self.origin(source));
        let place = Place { entry: Some(entry), source, over: NONE, room: NONE, share: NONE };
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(free) = self.places.get_mut(index(number)) {
                    *free = place;
                }
                number
            }
            None => {
                let number = u32::try_from(self.places.len()).unwrap_or(NONE);
                push(&mut self.places, place);
                number
            }
        };
        self.over.insert(number, By::Over, &mut self.places);
        number
    }

    /// Puts another entry of the same peer in its place. It must not be listed.
    pub(super) fn replace(&mut self, number: u32, entry: Arc<Entry>) {
        self.over.remove(number, By::Over, &mut self.places);
        if let Some(place) = self.places.get_mut(index(number)) {
            place.entry = Some(entry);
        }
        self.over.insert(number, By::Over, &mut self.places);
    }

    /// Frees a place. It must not be listed.
    pub(super) fn remove(&mut self, number: u32) {
        self.over.remove(number, By::Over, &mut self.places);
        let Some(place) = self.places.get_mut(index(number)) else { return };
        place.entry = None;
        let source = place.source;
        self.free.push(number);
        if let Some(slot) = self.origins.get_mut(index(source))
            && let Some(origin) = slot
        {
            origin.brought = origin.brought.saturating_sub(1);
            if origin.brought == 0 {
                self.numbers.remove(&origin.id);
                *slot = None;
                self.free_origins.push(source);
            }
        }
    }

    /// Enters a peer that nothing protects among those that may make room.
    pub(super) fn list(&mut self, number: u32) {
        self.room.insert(number, By::Room, &mut self.places);
        let is_hearsay = |entry: &Arc<Entry>| entry.weight() == Weight::Hearsay;
        let place = self.places.get(index(number));
        let place = place.filter(|place| place.entry.as_ref().is_some_and(is_hearsay));
        if let Some(source) = place.map(|place| place.source) {
            self.change_loose(source, |loose, places| loose.insert(number, By::Share, places));
        }
    }

    /// Undoes [`list`](Self::list), if it was listed.
    pub(super) fn unlist(&mut self, number: u32) {
        self.room.remove(number, By::Room, &mut self.places);
        let place = self.places.get(index(number)).filter(|place| place.share != NONE);
        if let Some(source) = place.map(|place| place.source) {
            self.change_loose(source, |loose, places| loose.remove(number, By::Share, places));
        }
    }

    /// The first whose record is over.
    pub(super) fn first_over(&self) -> Option<&Arc<Entry>> {
        self.entry(self.over.first()?)
    }

    /// The first to make room.
    pub(super) fn first_to_go(&self) -> Option<&Arc<Entry>> {
        self.entry(self.room.first()?)
    }

    /// How many loose records a source accounts for.
    pub(super) fn count(&self, source: &EndpointId) -> usize {
        let number = self.numbers.get(source);
        number.and_then(|number| self.origin_of(*number)).map_or(0, |origin| origin.loose.len())
    }

    /// The oldest record of the source that accounts for most, if these are more than `share`.
    pub(super) fn surplus(&self, share: usize) -> Option<EndpointId> {
        let (count, source) = self.by_count.last()?;
        if *count <= share {
            return None;
        }
        let origin = self.numbers.get(source).and_then(|number| self.origin_of(*number))?;
        Some(self.entry(origin.loose.first()?)?.id())
    }

    fn entry(&self, number: u32) -> Option<&Arc<Entry>> {
        self.places.get(index(number))?.entry.as_ref()
    }

    fn origin_of(&self, number: u32) -> Option<&Origin> {
        self.origins.get(index(number))?.as_ref()
    }

    /// The number of a source that brings one more peer.
    fn origin(&mut self, id: EndpointId) -> u32 {
        if let Some(number) = self.numbers.get(&id) {
            if let Some(Some(origin)) = self.origins.get_mut(index(*number)) {
                origin.brought = origin.brought.saturating_add(1);
            }
            return *number;
        }
        let origin = Some(Origin { id, brought: 1, loose: Heap::default() });
        let number = self.free_origins.pop().unwrap_or_else(|| {
            self.origins.push(None);
            u32::try_from(self.origins.len().saturating_sub(1)).unwrap_or(NONE)
        });
        if let Some(slot) = self.origins.get_mut(index(number)) {
            *slot = origin;
        }
        self.numbers.insert(id, number);
        number
    }

    fn change_loose(&mut self, source: u32, change: impl FnOnce(&mut Heap, &mut [Place])) {
        let Some(Some(origin)) = self.origins.get_mut(index(source)) else { return };
        let before = origin.loose.len();
        change(&mut origin.loose, &mut self.places);
        let (after, id) = (origin.loose.len(), origin.id);
        if before != after {
            self.by_count.remove(&(before, id));
            if after > 0 {
                self.by_count.insert((after, id));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn has_source(&self, peer: &EndpointId) -> bool {
        let is_of = |place: &&Place| place.entry.as_ref().is_some_and(|entry| entry.id() == *peer);
        self.places.iter().find(is_of).is_some_and(|place| place.source != NONE)
    }

    /// Checks every heap, and that what is said twice agrees.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.over.check(By::Over, &self.places);
        self.room.check(By::Room, &self.places);
        let mut counts = BTreeSet::new();
        for (number, origin) in self.origins.iter().enumerate() {
            let Some(origin) = origin else { continue };
            origin.loose.check(By::Share, &self.places);
            let number = u32::try_from(number).unwrap();
            assert_eq!(self.numbers[&origin.id], number);
            let here = self.places.iter().filter(|place| place.entry.is_some());
            let brought = here.filter(|place| place.source == number).count();
            assert_eq!(index(origin.brought), brought);
            if origin.loose.len() > 0 {
                counts.insert((origin.loose.len(), origin.id));
            }
        }
        assert_eq!(self.by_count, counts);
        let living = self.places.iter().filter(|place| place.entry.is_some()).count();
        assert_eq!(self.places.len(), living + self.free.len());
        assert_eq!(self.numbers.len() + self.free_origins.len(), self.origins.len());
    }

    /// How many have a place, how many may make room, and how many records are loose.
    #[cfg(test)]
    pub(super) fn lens(&self) -> (usize, usize, usize) {
        let loose = self.origins.iter().flatten().map(|origin| origin.loose.len()).sum();
        (self.over.len(), self.room.len(), loose)
    }
}

impl Place {
    fn at(&mut self, by: By) -> &mut u32 {
        match by {
            By::Over => &mut self.over,
            By::Room => &mut self.room,
            By::Share => &mut self.share,
        }
    }
}

/// Numbers of places, the first in an order at the top. Each place knows where in the heap it is.
#[derive(Debug, Clone, Default)]
struct Heap {
    numbers: Vec<u32>,
}

impl Heap {
    const fn len(&self) -> usize {
        self.numbers.len()
    }

    fn first(&self) -> Option<u32> {
        self.numbers.first().copied()
    }

    fn insert(&mut self, number: u32, by: By, places: &mut [Place]) {
        let at = self.numbers.len();
        push(&mut self.numbers, number);
        self.rise(at, number, by, places);
    }

    fn remove(&mut self, number: u32, by: By, places: &mut [Place]) {
        let Some(place) = places.get_mut(index(number)) else { return };
        let at = std::mem::replace(place.at(by), NONE);
        if at == NONE {
            return;
        }
        let Some(last) = self.numbers.pop() else { return };
        if last != number {
            let at = self.rise(index(at), last, by, places);
            self.sink(at, last, by, places);
        }
    }

    /// Puts a number at this place or further up, where it belongs. Returns where.
    fn rise(&mut self, mut at: usize, number: u32, by: By, places: &mut [Place]) -> usize {
        while let Some(above) = at.checked_sub(1).map(|at| at / 2)
            && let Some(parent) = self.numbers.get(above).copied()
            && precedes(number, parent, by, places)
        {
            self.set(at, parent, by, places);
            at = above;
        }
        self.set(at, number, by, places);
        at
    }

    /// Puts a number at this place or further down, where it belongs.
    fn sink(&mut self, mut at: usize, number: u32, by: By, places: &mut [Place]) {
        loop {
            let left = at.saturating_mul(2).saturating_add(1);
            let right = left.saturating_add(1);
            let Some(mut child) = self.numbers.get(left).copied() else { break };
            let mut below = left;
            if let Some(other) = self.numbers.get(right).copied()
                && precedes(other, child, by, places)
            {
                (child, below) = (other, right);
            }
            if !precedes(child, number, by, places) {
                break;
            }
            self.set(at, child, by, places);
            at = below;
        }
        self.set(at, number, by, places);
    }

    fn set(&mut self, at: usize, number: u32, by: By, places: &mut [Place]) {
        if let Some(slot) = self.numbers.get_mut(at) {
            *slot = number;
        }
        if let Some(place) = places.get_mut(index(number)) {
            *place.at(by) = u32::try_from(at).unwrap_or(NONE);
        }
    }
}

#[cfg(test)]
impl Heap {
    fn check(&self, by: By, places: &[Place]) {
        for (at, number) in self.numbers.iter().enumerate() {
            let place = &places[index(*number)];
            assert_eq!(index(*place.clone().at(by)), at);
            let above = self.numbers[at.saturating_sub(1) / 2];
            assert!(!precedes(*number, above, by, places));
        }
        let inside = places.iter().filter(|place| *(*place).clone().at(by) != NONE).count();
        // The sources' heaps share the places.
        assert!(matches!(by, By::Share) || inside == self.numbers.len());
    }
}

/// Whether the peer at one place comes before the one at the other.
fn precedes(one: u32, other: u32, by: By, places: &[Place]) -> bool {
    let entry = |number| places.get(index(number)).and_then(|place| place.entry.as_ref());
    let (Some(one), Some(other)) = (entry(one), entry(other)) else { return false };
    let order = match by {
        By::Over => one.expires().cmp(&other.expires()),
        By::Room => one.weight().cmp(&other.weight()).then_with(|| came_in(one, other)),
        By::Share => came_in(one, other),
    };
    order.then_with(|| one.record().id_bytes().cmp(other.record().id_bytes())).is_lt()
}

fn came_in(one: &Entry, other: &Entry) -> Ordering {
    let (one, other): (Instant, Instant) = (one.told().received(), other.told().received());
    one.cmp(&other)
}

/// Appends, and grows by an eighth: doubling would leave a quarter of the memory empty.
fn push<E>(elements: &mut Vec<E>, element: E) {
    if elements.len() == elements.capacity() {
        elements.reserve_exact((elements.len() / 8).max(4));
    }
    elements.push(element);
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
