//! One record in the catalog, and what this node knows about it by itself.

use std::time::{Duration, Instant};

use iroh_base::{EndpointAddr, EndpointId, TransportAddr};

use super::contract::Sighting;
use crate::liveness::Liveness;
use crate::record::{Reach, Record};

/// A record with the time that it came in: how old it is goes on by the monotonic clock of this node alone.
#[derive(Debug, Clone)]
pub struct Told {
    record: Record,
    received: Instant,
    /// How old it was when it was received: [`AGE`] bits of milliseconds. What this node knows of the peer fills the
    /// rest, see [`Entry`].
    age: u32,
    /// How many milliseconds from then on it holds here. Not always what its age leaves: from its owner a record is taken whose
    /// age by the clocks is larger.
    holds: u32,
}

/// The bits of an age. Its milliseconds then reach a day and a half, and no record lives longer than one.
const AGE: u32 = 27;
const AGE_MAX: u32 = (1 << AGE) - 1;

/// Where in the same number the distance is of who told the record, and whether its peer was reached, has told one itself, and answers for
/// the addresses of this one.
const REACH: u32 = 0b11 << AGE;
const PROVEN: u32 = 1 << 29;
const FIRST_HAND: u32 = 1 << 30;
const BACKED: u32 = 1 << 31;

impl Told {
    fn new(record: Record, received: Instant, age: Duration, holds: Duration) -> Self {
        // An age is never told as less than it is.
        let age = age.as_nanos().div_ceil(1_000_000);
        let age = u32::try_from(age).unwrap_or(AGE_MAX).min(AGE_MAX);
        let holds = u32::try_from(holds.as_millis()).unwrap_or(u32::MAX);
        Self { record, received, age, holds }
    }

    /// The record.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// How old it is: what is sent along when it is passed on. Of two that came more than a day and a half old, and are passed on
    /// no more, the age is the same.
    pub fn age(&self, now: Instant) -> Duration {
        self.first_age().saturating_add(now.saturating_duration_since(self.received))
    }

    /// Whether anybody else would still take it.
    pub fn is_relayable(&self, now: Instant) -> bool {
        self.age(now) < self.record.ttl().as_duration()
    }

    /// When nobody else would take it any more.
    pub(super) fn ends(&self) -> Instant {
        let remaining = self.record.ttl().as_duration().saturating_sub(self.first_age());
        self.received.checked_add(remaining).unwrap_or(self.received)
    }

    pub(super) const fn received(&self) -> Instant {
        self.received
    }

    fn first_age(&self) -> Duration {
        Duration::from_millis((self.age & AGE_MAX).into())
    }

    const fn is(&self, mark: u32) -> bool {
        self.age & mark != 0
    }

    const fn mark(&mut self, mark: u32, is_set: bool) {
        self.age = if is_set { self.age | mark } else { self.age & !mark };
    }
}

/// How much a record counts when there is no room for all, the lightest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weight {
    /// Others told of it.
    Hearsay,
    /// Its owner told it itself, on its own session, whoever dialled: somebody with that key was there. To make up peers of this
    /// weight costs a session each.
    FirstHand,
    /// A session that we dialled has reached its owner.
    Proven,
}

/// A peer in the catalog. There may be a million of these, so that each bit has its place: 40 bytes.
#[derive(Debug, Clone)]
pub struct Entry {
    told: Told,
    /// `None` while nothing speaks against the peer, as of most.
    liveness: Option<Box<Liveness>>,
}

const NEVER_MISSED: &Liveness = &Liveness::GOOD;

impl Entry {
    /// An entry that nothing is known of but its record: it came in at this moment, holds for so long, and came from this
    /// distance.
    pub(super) fn new(sighting: Sighting, holds: Duration, reach: Reach) -> Self {
        let age = sighting.age();
        let mut entry = Self::of(sighting.record, sighting.at, age, holds);
        entry.set_reach(reach);
        entry
    }

    /// The entry of a record that nobody else told.
    pub(super) fn of(record: Record, received: Instant, age: Duration, holds: Duration) -> Self {
        Self { told: Told::new(record, received, age, holds), liveness: None }
    }

    /// Whose record it is.
    pub fn id(&self) -> EndpointId {
        self.told.record.id()
    }

    /// The record.
    pub const fn record(&self) -> &Record {
        &self.told.record
    }

    /// The record with its age.
    pub const fn told(&self) -> &Told {
        &self.told
    }

    /// When its record came in.
    pub(super) const fn received(&self) -> Instant {
        self.told.received
    }

    /// When it is removed unless a newer one comes.
    pub fn expires(&self) -> Instant {
        let received = self.told.received;
        let holds = Duration::from_millis(self.told.holds.into());
        received.checked_add(holds).unwrap_or(received)
    }

    /// Whether a session that we dialled has reached the peer. Otherwise its signature was checked, and no more.
    pub const fn is_proven(&self) -> bool {
        self.told.is(PROVEN)
    }

    /// Whether its owner told a record itself.
    pub(super) const fn is_first_hand(&self) -> bool {
        self.told.is(FIRST_HAND)
    }

    /// How the record came, and whether its owner was reached.
    pub const fn weight(&self) -> Weight {
        match (self.is_proven(), self.is_first_hand()) {
            (true, _) => Weight::Proven,
            (false, true) => Weight::FirstHand,
            (false, false) => Weight::Hearsay,
        }
    }

    /// Whether the addresses are known from others alone: they may be a victim's. They are not if the owner answers for them, and then not
    /// until a dial fails if it never was reached there: it told them itself on a session of its own, or a session that we dialled reached it
    /// while its record named them.
    pub fn is_hearsay(&self) -> bool {
        !self.is_backed() || (!self.is_proven() && self.liveness().failures() > 0)
    }

    /// Whether the owner has answered for these addresses, reachable there or not.
    pub(super) const fn is_backed(&self) -> bool {
        self.told.is(BACKED)
    }

    /// Whether the owner answers for its next record too, if others tell that one: it names no other addresses, and nothing speaks against
    /// these. Otherwise a signature would do for what had cost a session.
    pub(super) fn answers_for(&self, next: &Record) -> bool {
        let named: Vec<_> = self.record().addresses().collect();
        self.is_backed()
            && self.liveness().failures() == 0
            && next.addresses().all(|addr| named.contains(&addr))
    }

    /// The distance that the owner's next record counts as told from, which came from this one: addresses that may be dialled now
    /// are not lost because somebody farther away was first to tell that they stand. New ones are taken as they come.
    pub(super) fn reach_of_next(&self, next: &Record, from: Reach) -> Reach {
        let usable: Vec<_> = self.addresses().collect();
        let is_known = |near: &Reach| {
            next.addresses_from(*near)
                .all(|addr| usable.contains(&addr) || Reach::of(&addr).is_usable_from(from))
        };
        let nearer = [Reach::Machine, Reach::Site].into_iter();
        nearer.filter(|near| (self.reach()..from).contains(near)).find(is_known).unwrap_or(from)
    }

    /// Whether the peer is worth contacting.
    pub fn liveness(&self) -> &Liveness {
        self.liveness.as_deref().unwrap_or(NEVER_MISSED)
    }

    /// The addresses of the record that may be dialled, given who handed it over.
    pub fn addresses(&self) -> impl Iterator<Item = TransportAddr> + '_ {
        self.told.record.addresses_from(self.reach())
    }

    /// The peer with those addresses, as a dial takes them.
    pub fn endpoint_addr(&self) -> EndpointAddr {
        self.told.record.endpoint_addr(self.reach())
    }

    /// How far away the nearest of those is who handed this record over.
    pub(super) const fn reach(&self) -> Reach {
        match (self.told.age & REACH) >> AGE {
            0 => Reach::Machine,
            1 => Reach::Site,
            _ => Reach::World,
        }
    }

    pub(super) const fn set_reach(&mut self, reach: Reach) {
        let reach = match reach {
            Reach::Machine => 0,
            Reach::Site => 1,
            Reach::World => 2,
        };
        self.told.age = (self.told.age & !REACH) | (reach << AGE);
    }

    pub(super) const fn set_proven(&mut self, is_proven: bool) {
        self.told.mark(PROVEN, is_proven);
    }

    pub(super) const fn set_first_hand(&mut self, is_first_hand: bool) {
        self.told.mark(FIRST_HAND, is_first_hand);
    }

    pub(super) const fn set_backed(&mut self, is_backed: bool) {
        self.told.mark(BACKED, is_backed);
    }

    /// The network of this node is back: what it missed before says nothing of addresses that their owner answers for, and others may be asked
    /// now.
    pub(super) fn ask_again(&mut self, now: Instant) {
        if self.is_backed() {
            self.restore();
        } else if let Some(liveness) = &mut self.liveness {
            liveness.ask_now(now);
        }
    }

    /// Counts a failed contact.
    pub(super) fn missed(&mut self, now: Instant) {
        self.liveness.get_or_insert_default().failed(now);
    }

    /// Forgets all failed contacts.
    pub(super) fn restore(&mut self) {
        self.liveness = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::record;

    #[test]
    fn an_entry_takes_forty_bytes() {
        assert_eq!(size_of::<Entry>(), 40);
    }

    #[test]
    fn what_is_known_of_a_peer_changes_no_age() {
        let now = Instant::now();
        for age in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(AGE_MAX.into())]
        {
            let mut entry = Entry::of(record(1, 1), now, age, Duration::from_secs(9));
            for reach in [Reach::Machine, Reach::Site, Reach::World] {
                for flags in 0..8 {
                    entry.set_reach(reach);
                    entry.set_proven(flags & 1 == 1);
                    entry.set_first_hand(flags & 2 == 2);
                    entry.set_backed(flags & 4 == 4);
                    assert_eq!(entry.reach(), reach);
                    assert_eq!(entry.is_proven(), flags & 1 == 1);
                    assert_eq!(entry.is_first_hand(), flags & 2 == 2);
                    assert_eq!(entry.is_hearsay(), flags & 4 == 0);
                    assert_eq!(entry.told().age(now), age);
                    assert_eq!(entry.expires(), now + Duration::from_secs(9));
                }
            }
        }
    }

    #[test]
    fn an_age_is_never_told_as_less_than_it_is_unless_the_record_is_long_over() {
        let now = Instant::now();
        let age = |age| Entry::of(record(1, 1), now, age, Duration::ZERO).told().age(now);
        assert_eq!(age(Duration::from_nanos(1)), Duration::from_millis(1));
        assert!(age(Duration::MAX) > crate::record::Ttl::MAX.as_duration());
    }
}
