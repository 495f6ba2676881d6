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
    /// How old it was when it was received.
    age: Duration,
}

impl Told {
    pub(super) fn new(record: Record, received: Instant, age: Duration) -> Self {
        Self { record, received, age }
    }

    /// The record.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// How old it is: what is sent along when it is passed on.
    pub fn age(&self, now: Instant) -> Duration {
        self.age.saturating_add(now.saturating_duration_since(self.received))
    }

    /// Whether anybody else would still take it.
    pub fn is_relayable(&self, now: Instant) -> bool {
        self.age(now) < self.record.ttl().as_duration()
    }

    /// When nobody else would take it any more.
    pub(super) fn ends(&self) -> Instant {
        let remaining = self.record.ttl().as_duration().saturating_sub(self.age);
        self.received.checked_add(remaining).unwrap_or(self.received)
    }

    pub(super) const fn received(&self) -> Instant {
        self.received
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

/// A peer in the catalog.
#[derive(Debug, Clone)]
pub struct Entry {
    pub(super) told: Told,
    pub(super) expires: Instant,
    /// How far away the nearest of those is who handed this record over.
    pub(super) reach: Reach,
    /// Who brought the peer into the catalog. Later records do not change it: who is first to pass on a news is charged
    /// for no place.
    pub(super) source: Option<EndpointId>,
    pub(super) is_proven: bool,
    pub(super) is_first_hand: bool,
    pub(super) liveness: Liveness,
}

impl Entry {
    pub(super) fn new(
        sighting: Sighting,
        expires: Instant,
        reach: Reach,
        source: Option<EndpointId>,
        is_proven: bool,
        is_first_hand: bool,
    ) -> Self {
        let age = sighting.age();
        let told = Told::new(sighting.record, sighting.at, age);
        let liveness = Liveness::default();
        Self { told, expires, reach, source, is_proven, is_first_hand, liveness }
    }

    /// Whose record it is.
    pub const fn id(&self) -> EndpointId {
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

    /// When it is removed unless a newer one comes.
    pub const fn expires(&self) -> Instant {
        self.expires
    }

    /// Whether a session that we dialled has reached the peer. Otherwise its signature was checked, and no more.
    pub const fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// How the record came, and whether its owner was reached.
    pub const fn weight(&self) -> Weight {
        match (self.is_proven, self.is_first_hand) {
            (true, _) => Weight::Proven,
            (false, true) => Weight::FirstHand,
            (false, false) => Weight::Hearsay,
        }
    }

    /// Whether the peer is worth contacting.
    pub const fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// The addresses of the record that may be dialled, given who handed it over.
    pub fn addresses(&self) -> impl Iterator<Item = TransportAddr> + '_ {
        self.told.record.addresses_from(self.reach)
    }

    /// The peer with those addresses, as a dial takes them.
    pub fn endpoint_addr(&self) -> EndpointAddr {
        self.told.record.endpoint_addr(self.reach)
    }
}
