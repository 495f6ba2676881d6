//! The gate: what becomes of an incoming connection before its handshake, and of a peer right after.
//!
//! It decides for the accept loop, which asks [`Gate::arrive`] about every first packet,
//! [`Gate::greet`] once a handshake has proven an id, and hands the [`Ticket`] back to
//! [`Gate::depart`] when the connection has ended. So one address group (a v4 address, a v6 /56),
//! the peers behind relays, or one id cannot use up the node. It never reads packets, a clock or
//! randomness, knows nothing of trust and bans, and never limits links that this node dials.
//!
//! # Forged sources
//!
//! Until a source has answered a `Retry`, its address may be forged. An unproven source may
//! therefore use *half* of anything and no more: of the handshakes in flight, of its group's bucket,
//! of its group's live connections. Beyond that it is asked to prove itself, which takes no place in
//! any table. Whoever forges an address thus never shuts out its owner, and an empty bucket means
//! that somebody who receives at that address emptied it: only then is a group met with silence.
//!
//! Every call costs O(log n) in the size of a bounded table. The tables are ordered trees, so keys
//! that an attacker chooses cannot degrade them as they could a hash table.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use iroh_base::EndpointId;

mod bucket;
mod limits;
#[cfg(test)]
mod tests;

pub use crate::bucket::Rate;
use crate::bucket::{Bucket, BucketTable};
pub use limits::{GateLimitError, GateLimits};

/// The bits of a v6 address that name its group: the first 56, what one household commonly gets.
const V6_GROUP: u128 = u128::MAX << 72;

/// Why the gate turned somebody away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum GateReason {
    /// The address group has its number of live connections.
    #[error("the address group has as many live connections as it may")]
    AddressLive,
    /// The address group arrives too often.
    #[error("the address group arrives more often than it may")]
    AddressRate,
    /// Relayed peers (or those of custom transports) have their number of live connections.
    #[error("relayed peers have as many live connections as they may")]
    SharedLive,
    /// Relayed peers (or those of custom transports) arrive too often.
    #[error("relayed peers arrive more often than they may")]
    SharedRate,
    /// As many handshakes are in flight as may be.
    #[error("as many handshakes are in flight as may be")]
    Pending,
    /// The table of address groups is full of groups that cannot be forgotten yet.
    #[error("the table of address groups is full")]
    AddressTable,
    /// The peer id finishes handshakes too often.
    #[error("the peer connects more often than it may")]
    PeerRate,
    /// The table of peer ids is full of ids that cannot be forgotten yet.
    #[error("the table of peer ids is full")]
    PeerTable,
}

impl GateReason {
    /// Every reason, for metrics that list them all.
    pub const ALL: [Self; 8] = [
        Self::AddressLive,
        Self::AddressRate,
        Self::SharedLive,
        Self::SharedRate,
        Self::Pending,
        Self::AddressTable,
        Self::PeerRate,
        Self::PeerTable,
    ];

    /// The reason's name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AddressLive => "address_live",
            Self::AddressRate => "address_rate",
            Self::SharedLive => "shared_live",
            Self::SharedRate => "shared_rate",
            Self::Pending => "pending",
            Self::AddressTable => "address_table",
            Self::PeerRate => "peer_rate",
            Self::PeerTable => "peer_table",
        }
    }
}

/// Where an incoming connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Directly from this address.
    Ip(IpAddr),
    /// Over a relay, whichever.
    Relay,
    /// Over a custom transport, whose addresses say nothing about who can have how many of them.
    Other,
}

/// The group of sources that share one set of limits. `Display` writes it as an address prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey(Group);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Group {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    Relayed,
    Other,
}

impl GroupKey {
    fn is_shared(self) -> bool {
        matches!(self.0, Group::Relayed | Group::Other)
    }
}

impl From<Source> for GroupKey {
    fn from(source: Source) -> Self {
        Self(match source {
            // Dual-stack sockets report v4 peers as mapped v6 addresses, all of one /56.
            Source::Ip(ip) => match ip.to_canonical() {
                IpAddr::V4(ip) => Group::V4(ip),
                IpAddr::V6(ip) => Group::V6(Ipv6Addr::from_bits(ip.to_bits() & V6_GROUP)),
            },
            Source::Relay => Group::Relayed,
            Source::Other => Group::Other,
        })
    }
}

impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Group::V4(ip) => write!(f, "{ip}/32"),
            Group::V6(ip) => write!(f, "{ip}/56"),
            Group::Relayed => f.write_str("relayed"),
            Group::Other => f.write_str("other"),
        }
    }
}

/// The place that an accepted connection holds in its group, until [`Gate::depart`].
///
/// It is `Copy`, so that whoever learns first of the end can give it back: the gate keeps a ledger
/// and releases a ticket once. The time in it tells it from tickets of an earlier gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    serial: u64,
    accepted_at: Instant,
    group: GroupKey,
}

impl Ticket {
    /// The group that the connection counts for.
    #[must_use]
    pub const fn group(&self) -> GroupKey {
        self.group
    }
}

/// What to do with an incoming connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Begin the handshake; give the ticket back when the connection has ended, however it ends.
    Accept(Ticket),
    /// Ask the source to prove its address first.
    Retry,
    /// Say no.
    Refuse(GateReason),
    /// Say nothing.
    Ignore(GateReason),
}

/// Decides about incoming connections by count and rate; see the [module](self).
///
/// It holds at most `groups` × `live_per_address` + 2 × `relayed_live` tickets. A `now` that is
/// earlier than one before counts as no time passing.
#[derive(Debug, Clone)]
pub struct Gate {
    limits: GateLimits,
    addresses: BucketTable<GroupKey>,
    /// The groups `Relayed` and `Other`, apart so that no number of addresses pushes them out.
    shared: BucketTable<GroupKey>,
    peers: BucketTable<EndpointId>,
    /// The tickets not given back: what makes a second `depart` harmless.
    live: BTreeSet<Ticket>,
    next_serial: u64,
    latest: Option<Instant>,
}

impl Gate {
    /// A gate that nobody has come to yet.
    #[must_use]
    pub fn new(limits: GateLimits) -> Self {
        Self {
            addresses: BucketTable::new(limits.groups),
            shared: BucketTable::new(2),
            peers: BucketTable::new(limits.peers),
            live: BTreeSet::new(),
            next_serial: 0,
            latest: None,
            limits,
        }
    }

    /// Decides about a connection from `source` that is not accepted yet.
    ///
    /// `validated` says whether the source has proven that it receives at its address (ignored for
    /// relays, which know their clients by key), `pending` how many handshakes are in flight, this
    /// one not counted.
    pub fn arrive(
        &mut self,
        now: Instant,
        source: Source,
        validated: bool,
        pending: usize,
    ) -> Verdict {
        let now = self.tick(now);
        let is_crowded = pending >= self.limits.pending;
        let is_proven = validated || source == Source::Relay;
        if !is_proven {
            // Before any table is touched: forged sources must not fill one.
            if is_crowded {
                return Verdict::Refuse(GateReason::Pending);
            }
            if pending > self.limits.pending / 2 {
                return Verdict::Retry;
            }
        }
        let group = GroupKey::from(source);
        if self.is_exempt(source) {
            return if is_crowded {
                Verdict::Refuse(GateReason::Pending)
            } else {
                Verdict::Accept(self.issue(now, group))
            };
        }
        let limit = self.limits.of(group);
        let table = self.table_of(group);
        if !table.has_room(now, group) {
            return Verdict::Ignore(GateReason::AddressTable);
        }
        let judged = table.change(group, |bucket| {
            if is_proven {
                bucket.judge_proven(now, &limit, is_crowded)
            } else {
                bucket.judge_unproven(now, &limit)
            }
        });
        match judged.unwrap_or(Err(Verdict::Ignore(GateReason::AddressTable))) {
            Ok(()) => {
                let ticket = self.issue(now, group);
                self.live.insert(ticket);
                Verdict::Accept(ticket)
            }
            Err(verdict) => verdict,
        }
    }

    /// Takes back the ticket of a connection that has ended. Returns whether that released a place:
    /// not the second time, nor for exempt connections, nor for tickets of another gate.
    pub fn depart(&mut self, ticket: Ticket) -> bool {
        self.live.remove(&ticket)
            && self.table_of(ticket.group).change(ticket.group, Bucket::leave).is_some()
    }

    /// Decides about a peer whose handshake has just proven its id, before anything is started for it.
    ///
    /// # Errors
    ///
    /// [`GateReason::PeerRate`] if it connects too often, [`GateReason::PeerTable`] if too many
    /// other ids do for this one to be remembered.
    pub fn greet(&mut self, now: Instant, peer: EndpointId) -> Result<(), GateReason> {
        let now = self.tick(now);
        if !self.peers.has_room(now, peer) {
            return Err(GateReason::PeerTable);
        }
        let rate = self.limits.peer_rate;
        match self.peers.change(peer, |bucket| bucket.take(now, rate, rate.burst)) {
            Some(true) => Ok(()),
            _ => Err(GateReason::PeerRate),
        }
    }

    /// How many accepted connections hold a place.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// How many address groups are remembered.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.addresses.buckets.len()
    }

    /// How many peer ids are remembered.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers.buckets.len()
    }

    fn is_exempt(&self, source: Source) -> bool {
        self.limits.exempt_loopback
            && matches!(source, Source::Ip(ip) if ip.to_canonical().is_loopback())
    }

    fn table_of(&mut self, group: GroupKey) -> &mut BucketTable<GroupKey> {
        if group.is_shared() { &mut self.shared } else { &mut self.addresses }
    }

    fn issue(&mut self, accepted_at: Instant, group: GroupKey) -> Ticket {
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        Ticket { serial, accepted_at, group }
    }

    fn tick(&mut self, now: Instant) -> Instant {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        now
    }
}
