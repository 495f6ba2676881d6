//! What goes into a catalog and what comes out of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

use super::entry::Entry;
use crate::peer_link::Direction;
use crate::record::{Reach, Record, Seq, UnixMillis};

/// A verified record as it came in: with the moment, and with how old it was then.
#[derive(Debug, Clone)]
pub struct Sighting {
    pub(super) record: Record,
    pub(super) at: Instant,
    /// The age that it came with.
    pub(super) carried: Duration,
    /// Its age by its own time of issue and our wall clock.
    pub(super) by_clock: Duration,
}

impl Sighting {
    /// A record that came in `at` this moment, which was `clock` by the wall clock, and was `carried` old, as whoever
    /// passed it on says: zero if it says nothing.
    pub fn new(record: Record, at: Instant, clock: UnixMillis, carried: Duration) -> Self {
        let by_clock = clock.since(record.issued_at());
        Self { record, at, carried, by_clock }
    }

    /// The record.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// How old it was at least: what it carried, or what the clock says if that is more.
    pub(super) fn age(&self) -> Duration {
        self.carried.max(self.by_clock)
    }
}

/// Who handed a record over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A peer, over a session of ours with it. If the record is its own, it is the owner itself who speaks.
    Peer {
        /// The peer: the one that handed it over, not the one that it is about.
        peer: EndpointId,
        /// How far away that peer is, by the path of the session; over a relay it is [`Reach::World`].
        reach: Reach,
    },
    /// This node's own store, from an earlier run.
    Store,
}

/// Why a peer's record is never evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keep {
    /// The app holds the peer.
    Held,
    /// The app has configured addresses of it.
    Configured,
}

/// What a catalog is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// A record came in.
    Heard {
        /// The record.
        sighting: Sighting,
        /// From whom.
        source: Source,
    },
    /// This node has signed this record of its own, which takes the place of the one before.
    Own(Record),
    /// A session with this peer is up. One that we dialled proves the peer; every session protects its record while it
    /// lasts.
    Connected {
        /// The peer.
        peer: EndpointId,
        /// Who dialled.
        direction: Direction,
    },
    /// The last session with this peer is over.
    Disconnected(EndpointId),
    /// An attempt to contact this peer failed.
    Missed(EndpointId),
    /// The network of this node is back: whoever was missed may be asked now.
    Online,
    /// The app wants this peer kept, or no longer.
    Keep {
        /// The peer.
        peer: EndpointId,
        /// For what.
        keep: Keep,
        /// Whether it is wanted.
        wanted: bool,
    },
    /// The app wants nothing known of this peer, because it banned it, say. Newer records of it are taken.
    Forget(EndpointId),
    /// The time of [`next_timeout`](super::Catalog::next_timeout) has come.
    Timeout,
}

/// What a catalog has to say.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Output {
    /// A peer is in the catalog that was not.
    Added(Arc<Entry>),
    /// A peer has another record, or addresses of it may be used that might not before.
    Updated(Arc<Entry>),
    /// A peer is no longer in the catalog.
    Removed {
        /// The peer.
        peer: EndpointId,
        /// Why.
        reason: Removal,
    },
    /// A record was not taken.
    Ignored {
        /// Whose record.
        peer: EndpointId,
        /// Who handed it over; the store if nobody.
        from: Option<EndpointId>,
        /// Why not.
        reason: Ignored,
    },
    /// A record of this node itself is about. If [`SeqSource::heard`](crate::record::SeqSource::heard) finds its number
    /// new, a record with a larger one has to be signed.
    OwnHeard(Seq),
}

/// Why a peer is no longer in the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Removal {
    /// Its record's time is over.
    Expired,
    /// It said that it leaves.
    Departed,
    /// Another one took its place.
    Evicted,
    /// The app wanted it.
    Forgotten,
}

impl Removal {
    /// Every reason, for metrics that list them all.
    pub const ALL: [Self; 4] = [Self::Expired, Self::Departed, Self::Evicted, Self::Forgotten];

    /// The reason's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Departed => "departed",
            Self::Evicted => "evicted",
            Self::Forgotten => "forgotten",
        }
    }
}

/// Why a verified record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Ignored {
    /// It is in the catalog already, or is the tombstone that is remembered.
    Known,
    /// It is older than the one in the catalog.
    Outdated,
    /// It has the number of the one in the catalog and says something else: its owner signed both.
    Equivocation,
    /// It is dead: it expired here, was taken back or forgotten, or is older than one that was.
    Dead,
    /// Its time was over when it came.
    Expired,
    /// Whoever handed it over accounts for too many records that nobody has proven.
    OverShare,
    /// The catalog is full of records that weigh more.
    Full,
}

impl Ignored {
    /// Every reason, for metrics that list them all.
    pub const ALL: [Self; 7] = [
        Self::Known,
        Self::Outdated,
        Self::Equivocation,
        Self::Dead,
        Self::Expired,
        Self::OverShare,
        Self::Full,
    ];

    /// The reason's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Outdated => "outdated",
            Self::Equivocation => "equivocation",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::OverShare => "over_share",
            Self::Full => "full",
        }
    }
}
