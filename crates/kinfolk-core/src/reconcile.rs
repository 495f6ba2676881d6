//! Where two catalogs differ: range-based set reconciliation over (id, version), for [`exchange`](crate::exchange).
//!
//! An `Index` is one side's catalog in the order of ids. It answers how a range of ids is best described to the other
//! side, and what a description that came says about both. It never sees a record (whose it is and which one
//! is all that it asks of what is in it), sends nothing, keeps no budget and draws no random number.
//!
//! A range is described by the sum of keyed hashes of what is in it, or, if that is little, by a list with a short tag and
//! the version of each. Sums that differ are split into up to 16 parts, and a part with at most eight is
//! listed, so that what is said grows with the difference and the number of turns with the logarithm of the catalog.
//! (A. Meyer, *Range-Based Set Reconciliation*, SRDS 2023.)
//!
//! What is hashed of a record is a digest of its id and version that was made when it came in, so that an exchange goes through a
//! catalog without a look at what lies all over the memory.
//!
//! Sums and tags are keyed by a [`Salt`] that is drawn for each exchange. Whoever makes up records has done so before the
//! salt exists, so that it cannot make sums or tags collide; a chance collision hides one difference until the next
//! exchange. A peer of the exchange knows the salt and can hide what it likes: from itself, as it could by silence.

use std::collections::BTreeMap;
use std::ops::Range as Span;

use siphasher::sip::SipHasher13;

use crate::record::{Record, Seq};
use crate::wire::exchange::{Bound, IdBytes, Listed, Range, Said, Tag};

/// Into how many parts a range that differs is split. 16 sums are some 200 bytes, and find one difference among 10 000
/// in three turns.
const FAN_OUT: usize = 16;

/// A range of so many is listed: its list takes about as many bytes as splitting it once more, and saves a turn.
const LEAF: usize = 8;

/// The key of the hashes in one exchange: random, drawn by the initiator, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Salt([u8; 16]);

impl Salt {
    /// The salt with these bytes, which must be random.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A place in the order of ids at which both sides begin, so that exchanges that are cut short do not all
    /// transfer the same part.
    pub(crate) fn place(&self) -> IdBytes {
        let mut place = [0; 32];
        place.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        place
    }
}

/// Which of two records of a node is newer: the one with the larger number; of two with the same number a departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The record's number.
    pub seq: Seq,
    /// Whether it is a departure.
    pub is_departure: bool,
}

impl Version {
    /// The version of a record.
    pub fn of(record: &Record) -> Self {
        Self { seq: record.seq(), is_departure: record.is_departure() }
    }
}

/// What an index is made of: records in the order of their ids, one for each.
pub(crate) trait Versions {
    fn len(&self) -> usize;

    /// Whose record is at a place.
    fn id(&self, at: usize) -> Option<&IdBytes>;

    /// Which of its records it is.
    fn version(&self, at: usize) -> Option<Version>;

    /// Both in one; `None` if nothing is said of it.
    fn digest(&self, at: usize) -> Option<Digest>;
}

/// Whose record it is and which one, in 16 bytes: what is hashed in each exchange, made once for all. Nobody finds two that are the same but by
/// 2^64 attempts, and none that is the same as another's at all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Digest([u8; 16]);

impl Digest {
    pub(crate) fn of(id: &IdBytes, version: Version) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(id).update(&version.seq.get().to_le_bytes());
        hasher.update(&[version.is_departure.into()]);
        let mut digest = [0; 16];
        digest.iter_mut().zip(hasher.finalize().as_bytes()).for_each(|(to, from)| *to = *from);
        Self(digest)
    }
}

/// One side's catalog in the order of ids, hashed with the salt of one exchange. Beside the items it takes 8 bytes for each.
#[derive(Debug)]
pub(crate) struct Index<T> {
    hasher: SipHasher13,
    items: T,
    /// The sum of the hashes of the items before each; one more at the end.
    sums: Vec<u64>,
}

/// What a list that came says about both sides.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// What is newer here, or known here only, by its place in the index.
    pub(crate) ours: Vec<usize>,
    /// What is newer there, or known there only, by its place in the list.
    pub(crate) theirs: Vec<usize>,
}

impl<T: Versions> Index<T> {
    pub(crate) fn new(items: T, salt: Salt) -> Self {
        let hasher = SipHasher13::new_with_key(salt.as_bytes());
        let len = items.len();
        debug_assert!(
            (0..len).is_sorted_by(|one, other| items.id(*one) < items.id(*other)),
            "unordered"
        );
        let mut sums = Vec::with_capacity(len.saturating_add(1));
        let mut sum = 0_u64;
        sums.push(sum);
        for at in 0..len {
            let hash = items.digest(at).map_or(0, |digest| hasher.hash(&digest.0));
            sum = sum.wrapping_add(hash);
            sums.push(sum);
        }
        Self { hasher, items, sums }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) const fn items(&self) -> &T {
        &self.items
    }

    /// The place of an id.
    pub(crate) fn find(&self, id: &IdBytes) -> Option<usize> {
        Some(self.place(id)).filter(|at| self.items.id(*at) == Some(id))
    }

    /// The first place at or behind an id.
    pub(crate) fn place(&self, id: &IdBytes) -> usize {
        let mut span = 0..self.len();
        while !span.is_empty() {
            let middle = span.start.midpoint(span.end);
            if self.items.id(middle) < Some(id) {
                span.start = middle.saturating_add(1);
            } else {
                span.end = middle;
            }
        }
        span.start
    }

    fn span(&self, from: &IdBytes, upper: &Bound) -> Span<usize> {
        let start = self.place(from);
        let end = match upper {
            Bound::At(id) => self.place(id).max(start),
            Bound::End => self.len(),
        };
        start..end
    }

    fn sum(&self, span: &Span<usize>) -> u64 {
        let before = |at| self.sums.get(at).copied().unwrap_or_default();
        before(span.end).wrapping_sub(before(span.start))
    }

    /// Whether a sum that came for a range is ours too.
    pub(crate) fn agrees(&self, from: &IdBytes, upper: &Bound, sum: u64) -> bool {
        self.sum(&self.span(from, upper)) == sum
    }

    /// A range, described for the other side, with the places of what is listed in the order of the lists. The item at
    /// `apart` gets a list of its own, so that it is settled at once.
    pub(crate) fn describe(
        &self,
        from: &IdBytes,
        upper: Bound,
        apart: Option<usize>,
    ) -> (Vec<Range>, Vec<usize>) {
        let span = self.span(from, &upper);
        let mut listed = Vec::new();
        if span.len() <= LEAF {
            let said = self.list(span, &mut listed);
            return (vec![Range { upper, said }], listed);
        }
        let parts = span.len().div_ceil(LEAF).min(FAN_OUT);
        let size = span.len().div_ceil(parts);
        let apart = apart.filter(|at| span.contains(at));
        let mut ends: Vec<usize> = span.clone().step_by(size).skip(1).chain([span.end]).collect();
        ends.extend(apart.into_iter().flat_map(|at| [at, at.saturating_add(1)]));
        ends.sort_unstable();
        ends.dedup();
        let mut start = span.start;
        let mut ranges = Vec::with_capacity(ends.len());
        for end in ends.into_iter().filter(|end| *end > span.start) {
            let part = start..end;
            let upper = if end == span.end { upper } else { self.border(end) };
            let said = if apart == Some(start) {
                self.list(part, &mut listed)
            } else {
                Said::Sum(self.sum(&part))
            };
            ranges.push(Range { upper, said });
            start = end;
        }
        (ranges, listed)
    }

    fn list(&self, span: Span<usize>, listed: &mut Vec<usize>) -> Said {
        let list = span.filter(|at| self.items.digest(*at).is_some()).filter_map(|at| {
            let item = Listed { tag: self.tag(at)?, version: self.items.version(at)? };
            listed.push(at);
            Some(item)
        });
        Said::List(list.collect())
    }

    /// The shortest bound between an item and the one before.
    fn border(&self, at: usize) -> Bound {
        let id = |at| self.items.id(at);
        let (Some(before), Some(here)) = (at.checked_sub(1).and_then(id), id(at)) else {
            return Bound::End;
        };
        let mut border = [0; 32];
        for ((to, here), before) in border.iter_mut().zip(here).zip(before) {
            *to = *here;
            if here != before {
                break;
            }
        }
        Bound::At(border)
    }

    /// What a list that came for a range says. If one tag occurs twice, the first counts for all of ours with that tag.
    pub(crate) fn compare(&self, from: &IdBytes, upper: &Bound, list: &[Listed]) -> Difference {
        let mut tags = BTreeMap::new();
        for (at, listed) in list.iter().enumerate() {
            tags.entry(listed.tag).or_insert((at, listed.version, false));
        }
        let mut difference = Difference::default();
        for at in self.span(from, upper) {
            let ours = self.items.digest(at).and(self.items.version(at));
            let Some(ours) = ours else { continue };
            let listed = self.tag(at).and_then(|tag| tags.get_mut(&tag));
            let Some((_, version, is_settled)) = listed else {
                difference.ours.push(at);
                continue;
            };
            *is_settled |= *version <= ours;
            if *version < ours {
                difference.ours.push(at);
            }
        }
        let unsettled = tags.values().filter(|(_, _, is_settled)| !is_settled);
        difference.theirs.extend(unsettled.map(|(at, _, _)| *at));
        difference.theirs.sort_unstable();
        difference
    }

    fn tag(&self, at: usize) -> Option<Tag> {
        self.items.id(at).map(|id| Tag::from_hash(self.hasher.hash(id)))
    }
}

#[cfg(test)]
mod tests {
    use iroh_base::EndpointId;

    use super::*;

    /// With whether anything is said of it.
    type Items = Vec<(EndpointId, Version, bool)>;

    impl Versions for Items {
        fn len(&self) -> usize {
            self.len()
        }

        fn id(&self, at: usize) -> Option<&IdBytes> {
            self.get(at).map(|(id, _, _)| id.as_bytes())
        }

        fn version(&self, at: usize) -> Option<Version> {
            self.get(at).map(|(_, version, _)| *version)
        }

        fn digest(&self, at: usize) -> Option<Digest> {
            let (id, version, is_said) = self.get(at)?;
            is_said.then(|| Digest::of(id.as_bytes(), *version))
        }
    }

    const FIRST: IdBytes = [0; 32];
    const SALT: Salt = Salt::from_bytes([1; 16]);

    fn id(n: u32) -> EndpointId {
        let mut bytes = *blake3::hash(&n.to_be_bytes()).as_bytes();
        while EndpointId::from_bytes(&bytes).is_err() {
            bytes = *blake3::hash(&bytes).as_bytes();
        }
        EndpointId::from_bytes(&bytes).unwrap()
    }

    fn present(seq: u64) -> Version {
        Version { seq: Seq::new(seq), is_departure: false }
    }

    fn index(items: impl IntoIterator<Item = (u32, Version)>, salt: Salt) -> Index<Items> {
        let items = items.into_iter().map(|(n, version)| (id(n), version, true));
        sorted(items.collect(), salt)
    }

    fn sorted(mut items: Items, salt: Salt) -> Index<Items> {
        items.sort();
        Index::new(items, salt)
    }

    fn all(count: u32) -> Index<Items> {
        index((0..count).map(|n| (n, present(7))), SALT)
    }

    fn total(index: &Index<Items>) -> u64 {
        index.sum(&(0..index.len()))
    }

    #[test]
    fn of_two_versions_the_larger_number_is_newer_and_a_departure_at_the_same() {
        let departed = |seq| Version { is_departure: true, ..present(seq) };
        assert!(present(1) < departed(1) && departed(1) < present(2));
    }

    #[test]
    fn the_sum_depends_on_everything_that_is_hashed() {
        let pairs = [(1, present(1)), (2, present(2))];
        let sum = total(&index(pairs, SALT));
        let departed = Version { is_departure: true, ..present(2) };
        for other in [
            index([(1, present(2)), (2, present(1))], SALT),
            index([(1, present(0)), (2, present(3))], SALT),
            index([(1, present(1)), (2, departed)], SALT),
            index([(1, present(1)), (3, present(2))], SALT),
            index([(1, present(1))], SALT),
            index(pairs, Salt::from_bytes([2; 16])),
        ] {
            assert_ne!(sum, total(&other));
        }
    }

    /// As `docs/wire.md` has it.
    const DIGEST: &str = "c9caa21214cc9d89df4ed8701fed46fe";

    #[test]
    fn the_documented_record_has_exactly_this_sum_and_this_tag() {
        let id = EndpointId::from_bytes(&[0x66; 32]).unwrap();
        let version = Version { is_departure: true, ..present(300) };
        let index = sorted(vec![(id, version, true)], SALT);
        let digest = index.items.digest(0).unwrap();
        assert_eq!(digest.0.map(|byte| format!("{byte:02x}")).concat(), DIGEST);
        assert_eq!(total(&index), 0x8a13_1f95_dc04_cf0f);
        assert_eq!(index.tag(0), Some(Tag::from_hash(0x5d13_4fec << 33)));
    }

    #[test]
    fn the_tag_of_an_id_is_another_in_each_exchange() {
        let tag = |salt| {
            let index = index([(1, present(1))], salt);
            index.tag(0)
        };
        assert_ne!(tag(SALT), tag(Salt::from_bytes([2; 16])));
    }

    #[test]
    fn a_description_covers_its_range_in_parts_that_rise() {
        for count in [0, 1, 8, 9, 16, 17, 100, 128, 129, 1000] {
            let index = all(count);
            for apart in [None, Some(0), index.len().checked_sub(1), Some(index.len() / 2)] {
                let (ranges, listed) = index.describe(&FIRST, Bound::End, apart);
                assert!(ranges.is_sorted_by(|a, b| a.upper < b.upper));
                assert_eq!(ranges.last().unwrap().upper, Bound::End);
                assert!(ranges.len() <= FAN_OUT + 3);
                let mut from = FIRST;
                let mut lists = 0;
                for range in ranges {
                    match range.said {
                        Said::Sum(sum) => assert!(index.agrees(&from, &range.upper, sum)),
                        Said::List(list) => {
                            lists += list.len();
                            let difference = index.compare(&from, &range.upper, &list);
                            assert!(difference.ours.is_empty() && difference.theirs.is_empty());
                        }
                        Said::Skip => panic!("{range:?}"),
                    }
                    if let Bound::At(upper) = range.upper {
                        from = upper;
                    }
                }
                assert_eq!(lists, listed.len());
                let apart = apart.filter(|at| *at < index.len());
                assert!(apart.is_none_or(|at| listed.contains(&at)));
            }
        }
    }

    #[test]
    fn of_some_nothing_is_said_wherever_they_lie() {
        for count in [1, 5, 100, 1000] {
            let is_said = |n: &u32| n % 3 == 1;
            let some = (0..count).map(|n| (id(n), present(7), is_said(&n)));
            let some = sorted(some.collect(), SALT);
            let rest = index((0..count).filter(is_said).map(|n| (n, present(7))), SALT);
            let (ranges, listed) = some.describe(&FIRST, Bound::End, Some(some.len() / 2));
            let lists = ranges.iter().filter_map(|range| match &range.said {
                Said::List(list) => Some(list),
                _ => None,
            });
            let tags: Vec<_> = lists.flatten().map(|listed| Some(listed.tag)).collect();
            assert_eq!(listed.iter().map(|at| some.tag(*at)).collect::<Vec<_>>(), tags);
            assert!(listed.iter().all(|at| some.items[*at].2));
            let mut from = FIRST;
            for range in ranges {
                match range.said {
                    Said::Sum(sum) => assert!(rest.agrees(&from, &range.upper, sum)),
                    Said::List(list) => {
                        let difference = rest.compare(&from, &range.upper, &list);
                        assert!(difference.ours.is_empty() && difference.theirs.is_empty());
                        let missed = some.compare(&from, &range.upper, &[]).ours;
                        assert_eq!(missed.len(), list.len());
                    }
                    Said::Skip => panic!("{range:?}"),
                }
                if let Bound::At(upper) = range.upper {
                    from = upper;
                }
            }
        }
    }

    #[test]
    fn a_list_tells_what_either_side_lacks_or_has_older() {
        let ours = index([(1, present(1)), (2, present(5)), (3, present(3))], SALT);
        let theirs = index([(2, present(4)), (3, present(9)), (4, present(1))], SALT);
        let (ranges, listed) = theirs.describe(&FIRST, Bound::End, None);
        let [Range { said: Said::List(list), .. }] = &ranges[..] else { panic!("{ranges:?}") };
        let difference = ours.compare(&FIRST, &Bound::End, list);
        let mut newer: Vec<_> = difference.ours.iter().map(|at| ours.items[*at].0).collect();
        newer.sort();
        let mut expected = vec![id(1), id(2)];
        expected.sort();
        assert_eq!(newer, expected);
        let wanted = difference.theirs.iter().map(|at| theirs.items[listed[*at]].0);
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort();
        let mut expected = vec![id(3), id(4)];
        expected.sort();
        assert_eq!(wanted, expected);
    }
}
