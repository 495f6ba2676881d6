//! Numbers about a node: counters that every part adds to, and the snapshot that an app reads.
//!
//! The hot path (streams, bytes, outcomes) adds to atomics; what happens rarely is counted under a label in one small table. Labels
//! come from enums of this project and from protocol names of this app, never from a remote.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use kinfolk_core::address_book::AddressBook;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::intent::Outcome;
use kinfolk_core::peer_table::Totals;

use crate::supervision::{lock, read, write};

mod openmetrics;

/// Where protocols beyond the limit are counted; no protocol's name has a space.
const OVERFLOW: &str = "other protocols";

/// Numbers of one protocol.
#[derive(Debug, Default)]
pub(crate) struct ProtocolCounters {
    pub(crate) opened: AtomicU64,
    pub(crate) served: AtomicU64,
    pub(crate) active: AtomicUsize,
    pub(crate) refused: AtomicU64,
    pub(crate) handler_failures: AtomicU64,
    pub(crate) handler_panics: AtomicU64,
    pub(crate) responses_untaken: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
}

/// Families of rare counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// Incoming connections dropped before a session, by reason.
    IncomingRefused,
    /// Incoming links refused by the table, by code.
    LinkRefused,
    /// Dials that failed, by reason.
    DialFailed,
    /// Sessions that ended, by how.
    SessionEnded,
    /// Incoming streams refused before a handler, by code.
    StreamRefused,
    /// Children restarted, by actor.
    Restarted,
    /// Panics, by where.
    Panicked,
    /// Verified records that the catalog did not take, by reason.
    RecordIgnored,
    /// Records that were refused before the catalog, by reason.
    RecordRejected,
    /// Records that the catalog let go, by reason.
    RecordRemoved,
    /// Exchanges that ended, by how.
    ExchangeEnded,
    /// Announcements that were not taken or not made, by reason.
    AnnouncementDropped,
    /// News of peers that found no room on its way to an actor, by what it was.
    NewsDropped,
    /// Defects of what an earlier life has left.
    Store,
    /// Hints of the local network that were not passed on, by reason.
    HintDropped,
    /// Times that discovery on the local network did not work, by how.
    MdnsFailed,
    /// Subscriptions to producers of this node that were refused, by reason.
    SubscriptionRefused,
    /// Subscriptions to producers of this node that ended, by how.
    SubscriptionEnded,
    /// New tickets of subscribers that nobody looked at, by reason.
    RenewalIgnored,
    /// Subscriptions of consumers of this node that ended, by how.
    SourceEnded,
    /// Datagrams that came and reached no consumer, by reason.
    DatagramDropped,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::IncomingRefused => "incoming_refused",
            Self::LinkRefused => "links_refused",
            Self::DialFailed => "dials_failed",
            Self::SessionEnded => "sessions_ended",
            Self::StreamRefused => "streams_refused",
            Self::Restarted => "restarts",
            Self::Panicked => "panics",
            Self::RecordIgnored => "records_ignored",
            Self::RecordRejected => "records_rejected",
            Self::RecordRemoved => "records_removed",
            Self::ExchangeEnded => "exchanges_ended",
            Self::AnnouncementDropped => "announcements_dropped",
            Self::NewsDropped => "news_dropped",
            Self::Store => "store_defects",
            Self::HintDropped => "hints_dropped",
            Self::MdnsFailed => "mdns_failures",
            Self::SubscriptionRefused => "subscriptions_refused",
            Self::SubscriptionEnded => "subscriptions_ended",
            Self::RenewalIgnored => "renewals_ignored",
            Self::SourceEnded => "sources_ended",
            Self::DatagramDropped => "datagrams_dropped",
        }
    }

    fn help(self) -> &'static str {
        match self {
            Self::IncomingRefused => "Incoming connections dropped before a session.",
            Self::LinkRefused => "Incoming links refused after their hello.",
            Self::DialFailed => "Dials that failed.",
            Self::SessionEnded => "Sessions that ended.",
            Self::StreamRefused => "Incoming streams refused before a handler.",
            Self::Restarted => "Actors restarted after a failure.",
            Self::Panicked => "Panics caught.",
            Self::RecordIgnored => "Verified records that the catalog did not take.",
            Self::RecordRejected => "Records refused before the catalog.",
            Self::RecordRemoved => "Records that the catalog let go.",
            Self::ExchangeEnded => "Exchanges that ended.",
            Self::AnnouncementDropped => "Announcements that were not taken or not made.",
            Self::NewsDropped => "News of peers that came to nothing.",
            Self::Store => "Defects of what an earlier life has left.",
            Self::HintDropped => "Hints of the local network that were not passed on.",
            Self::MdnsFailed => "Times that discovery on the local network did not work.",
            Self::SubscriptionRefused => {
                "Subscriptions to producers of this node that were refused."
            }
            Self::SubscriptionEnded => "Subscriptions to producers of this node that ended.",
            Self::RenewalIgnored => "New tickets of subscribers that nobody looked at.",
            Self::SourceEnded => "Subscriptions of consumers of this node that ended.",
            Self::DatagramDropped => "Datagrams that came and reached no consumer.",
        }
    }
}

/// All counters of a node.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    outcomes: [AtomicU64; Outcome::NAMES.len()],
    pub(crate) dials_started: AtomicU64,
    pub(crate) sessions_established: AtomicU64,
    pub(crate) incoming_accepted: AtomicU64,
    pub(crate) handshakes: AtomicUsize,
    pub(crate) streams_inbound: AtomicUsize,
    rare: Mutex<BTreeMap<(Family, &'static str), u64>>,
    protocols: RwLock<BTreeMap<ProtocolName, Arc<ProtocolCounters>>>,
    other: Arc<ProtocolCounters>,
}

impl Counters {
    pub(crate) fn outcome(&self, outcome: &Outcome) {
        let place = Outcome::NAMES.iter().position(|name| *name == outcome.name());
        if let Some(counter) = place.and_then(|place| self.outcomes.get(place)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count(&self, family: Family, label: &'static str) {
        let mut rare = lock(&self.rare);
        let count = rare.entry((family, label)).or_default();
        *count = count.saturating_add(1);
    }

    /// The counters of a protocol that this app serves or opens; beyond `max` names they are counted together.
    pub(crate) fn protocol(&self, name: &ProtocolName, max: usize) -> Arc<ProtocolCounters> {
        let known = read(&self.protocols).get(name).cloned();
        if let Some(counters) = known {
            return counters;
        }
        let mut protocols = write(&self.protocols);
        if protocols.len() >= max && !protocols.contains_key(name) {
            return Arc::clone(&self.other);
        }
        Arc::clone(protocols.entry(name.clone()).or_default())
    }

    /// The counts of `discovery` by label are those of this table.
    pub(crate) fn snapshot(
        &self,
        totals: &Totals,
        manager_queue: usize,
        discovery: DiscoveryMetrics,
        addresses: AddressMetrics,
        subscriptions_asking: usize,
    ) -> Metrics {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut rare: BTreeMap<Family, BTreeMap<&'static str, u64>> = BTreeMap::new();
        for ((family, label), count) in lock(&self.rare).iter() {
            rare.entry(*family).or_default().insert(label, *count);
        }
        let mut family = |family| rare.remove(&family).unwrap_or_default();
        let usage = totals.usage;
        Metrics {
            sessions: SessionMetrics {
                live: totals.connected,
                inbound: usage.inbound,
                outbound: usage.outbound,
                dialling: usage.dialling,
                parked: usage.parked,
                closing: usage.closing,
                established: load(&self.sessions_established),
                ended: family(Family::SessionEnded),
            },
            peers: PeerMetrics {
                remembered: totals.peers,
                connected: totals.connected,
                waiting_to_dial: totals.waiting,
                backing_off: totals.backing_off,
                banned: totals.banned,
            },
            addresses,
            dials_started: load(&self.dials_started),
            dials_failed: family(Family::DialFailed),
            incoming_accepted: load(&self.incoming_accepted),
            incoming_refused: family(Family::IncomingRefused),
            links_refused: family(Family::LinkRefused),
            streams_refused: family(Family::StreamRefused),
            intents_waiting: usage.intents,
            intents_ended: Outcome::NAMES
                .iter()
                .zip(&self.outcomes)
                .map(|(name, counter)| (*name, load(counter)))
                .collect(),
            protocols: read(&self.protocols)
                .iter()
                .map(|(name, counters)| (name.to_string(), ProtocolMetrics::of(counters)))
                .chain(std::iter::once((OVERFLOW.to_owned(), ProtocolMetrics::of(&self.other))))
                .filter(|(name, metrics)| {
                    name != OVERFLOW || *metrics != ProtocolMetrics::default()
                })
                .collect(),
            handshakes: self.handshakes.load(Ordering::Relaxed),
            manager_queue,
            streams_inbound: self.streams_inbound.load(Ordering::Relaxed),
            restarts: family(Family::Restarted),
            panics: family(Family::Panicked),
            streams: StreamMetrics {
                subscriptions_asking,
                subscriptions_refused: family(Family::SubscriptionRefused),
                subscriptions_ended: family(Family::SubscriptionEnded),
                renewals_ignored: family(Family::RenewalIgnored),
                sources_ended: family(Family::SourceEnded),
                datagrams_dropped: family(Family::DatagramDropped),
            },
            discovery: DiscoveryMetrics {
                ignored: family(Family::RecordIgnored),
                rejected: family(Family::RecordRejected),
                removed: family(Family::RecordRemoved),
                exchanges: family(Family::ExchangeEnded),
                announcements_dropped: family(Family::AnnouncementDropped),
                hints_dropped: family(Family::HintDropped),
                mdns_failures: family(Family::MdnsFailed),
                news_dropped: family(Family::NewsDropped),
                store_defects: family(Family::Store),
                ..discovery
            },
        }
    }
}

/// One consistent look at a node's numbers. Counters only grow while the node lives; gauges are of the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Sessions.
    pub sessions: SessionMetrics,
    /// Peers.
    pub peers: PeerMetrics,
    /// The address book.
    pub addresses: AddressMetrics,
    /// Dials started.
    pub dials_started: u64,
    /// Dials that failed, by reason.
    pub dials_failed: BTreeMap<&'static str, u64>,
    /// Incoming connections that went on to their handshake.
    pub incoming_accepted: u64,
    /// Incoming connections dropped before a session, by reason.
    pub incoming_refused: BTreeMap<&'static str, u64>,
    /// Incoming links refused after their hello, by code.
    pub links_refused: BTreeMap<&'static str, u64>,
    /// Incoming streams refused before a handler, by code.
    pub streams_refused: BTreeMap<&'static str, u64>,
    /// Intents that wait for a link, holds included (gauge).
    pub intents_waiting: usize,
    /// Intents of the app by outcome. What the node asks of peers for itself shows in its own numbers, such as
    /// [`DiscoveryMetrics::exchanges`].
    pub intents_ended: BTreeMap<&'static str, u64>,
    /// Numbers of each protocol that this node serves or opened.
    pub protocols: BTreeMap<String, ProtocolMetrics>,
    /// Incoming handshakes under way (gauge).
    pub handshakes: usize,
    /// Messages waiting in the peer manager's mailbox (gauge).
    pub manager_queue: usize,
    /// Incoming streams that are being negotiated or served, the peers' holds included (gauge).
    pub streams_inbound: usize,
    /// Actors restarted after a failure, by actor.
    pub restarts: BTreeMap<&'static str, u64>,
    /// Panics caught, by where.
    pub panics: BTreeMap<&'static str, u64>,
    /// What the node knows of others, and how it came to know it.
    pub discovery: DiscoveryMetrics,
    /// What became of subscriptions to typed streams.
    pub streams: StreamMetrics,
}

/// Numbers about typed streams, by what happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamMetrics {
    /// Peers that have asked to subscribe to a producer of this node and have no answer yet (gauge).
    pub subscriptions_asking: usize,
    /// Subscriptions to producers of this node that were refused, by reason; `restarting` are those that the end of a producer's
    /// actor left without an answer.
    pub subscriptions_refused: BTreeMap<&'static str, u64>,
    /// Subscriptions to producers of this node that ended, by how.
    pub subscriptions_ended: BTreeMap<&'static str, u64>,
    /// New tickets of subscribers that nobody looked at, by reason.
    pub renewals_ignored: BTreeMap<&'static str, u64>,
    /// Subscriptions of consumers of this node that were refused or ended, by how.
    pub sources_ended: BTreeMap<&'static str, u64>,
    /// Datagrams that came and reached no consumer, by reason.
    pub datagrams_dropped: BTreeMap<&'static str, u64>,
}

/// Numbers about discovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscoveryMetrics {
    /// Peers in the catalog (gauge).
    pub known: usize,
    /// Peers in the catalog that a session of this node's own has reached (gauge).
    pub proven: usize,
    /// Dead records that are remembered (gauge).
    pub dead: usize,
    /// Peers that announcements are exchanged with (gauge).
    pub neighbours: usize,
    /// Announcements and frames of announcers that were not taken or not made, by reason.
    pub announcements_dropped: BTreeMap<&'static str, u64>,
    /// Verified records that the catalog did not take, by reason.
    pub ignored: BTreeMap<&'static str, u64>,
    /// Records that were refused before the catalog, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Records that the catalog let go, by reason.
    pub removed: BTreeMap<&'static str, u64>,
    /// Exchanges under way that this node has opened: visits of its walkers, and what the app asked for (gauge).
    pub exchanges_outbound: usize,
    /// Exchanges under way that peers have opened (gauge).
    pub exchanges_inbound: usize,
    /// Walkers with a visit under way (gauge).
    pub walkers_visiting: usize,
    /// Walkers that wait for their next visit (gauge). One that has failed is among neither until it is started again.
    pub walkers_resting: usize,
    /// Exchanges that ended, by how. Their bytes are among those of the protocol `kinfolk/exchange/1`.
    pub exchanges: BTreeMap<&'static str, u64>,
    /// Signatures checked.
    pub signatures_checked: u64,
    /// News of peers that came to nothing, by what it was: `moved`, `found` or `met` found no room on its way to an actor; `visit` is a
    /// peer that showed up and got no visit of its own, as too many waited or its address was hearsay and no visit might fail.
    pub news_dropped: BTreeMap<&'static str, u64>,
    /// What was found wrong in the state directory when the node started.
    pub store_defects: BTreeMap<&'static str, u64>,
    /// Times that something could not be saved in the state directory.
    pub store_failures: u64,
    /// Hints of the local network that were not passed on, by reason.
    pub hints_dropped: BTreeMap<&'static str, u64>,
    /// Times that discovery on the local network did not work, by how.
    pub mdns_failures: BTreeMap<&'static str, u64>,
}

/// Numbers about sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionMetrics {
    /// Live sessions (gauge).
    pub live: usize,
    /// Sessions that peers opened, closing ones included (gauge).
    pub inbound: usize,
    /// Sessions that this node opened, dials and closing ones included (gauge).
    pub outbound: usize,
    /// Dials under way (gauge).
    pub dialling: usize,
    /// Incoming links that wait for the fate of a dial (gauge).
    pub parked: usize,
    /// Sessions that are draining or being closed (gauge).
    pub closing: usize,
    /// Sessions that became live.
    pub established: u64,
    /// Sessions that ended, by how.
    pub ended: BTreeMap<&'static str, u64>,
}

/// Numbers about peers (all gauges).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerMetrics {
    /// Peers remembered.
    pub remembered: usize,
    /// Peers with a live session.
    pub connected: usize,
    /// Peers that wait for a dial slot.
    pub waiting_to_dial: usize,
    /// Peers that wait for their next attempt.
    pub backing_off: usize,
    /// Peers banned or in quarantine.
    pub banned: usize,
}

/// Numbers about the address book. Who makes room for whom in a full one is on the page of [`address_book`](kinfolk_core::address_book).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AddressMetrics {
    /// Peers with addresses (gauge).
    pub peers: usize,
    /// Peers that had to make room for others.
    pub evicted: u64,
    /// Times that a peer found no room.
    pub refused: u64,
}

impl AddressMetrics {
    pub(crate) fn of(book: &AddressBook) -> Self {
        Self { peers: book.len(), evicted: book.evictions(), refused: book.refusals() }
    }
}

/// Numbers of one protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProtocolMetrics {
    /// Streams that this node opened.
    pub opened: u64,
    /// Streams that a handler of this node took.
    pub served: u64,
    /// Handlers running (gauge).
    pub active: usize,
    /// Incoming streams refused.
    pub refused: u64,
    /// Handlers that returned an error.
    pub handler_failures: u64,
    /// Handlers that panicked.
    pub handler_panics: u64,
    /// Responses to calls that the callers did not take in time.
    pub responses_untaken: u64,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
}

impl ProtocolMetrics {
    fn of(counters: &ProtocolCounters) -> Self {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            opened: load(&counters.opened),
            served: load(&counters.served),
            active: counters.active.load(Ordering::Relaxed),
            refused: load(&counters.refused),
            handler_failures: load(&counters.handler_failures),
            handler_panics: load(&counters.handler_panics),
            responses_untaken: load(&counters.responses_untaken),
            bytes_sent: load(&counters.bytes_sent),
            bytes_received: load(&counters.bytes_received),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn snapshot(counters: &Counters) -> Metrics {
        let addresses = AddressMetrics::default();
        counters.snapshot(&Totals::default(), 0, DiscoveryMetrics::default(), addresses, 0)
    }

    #[test]
    fn protocols_beyond_the_limit_are_counted_together() {
        let counters = Counters::default();
        for n in 0..5 {
            let name = ProtocolName::new(format!("p/{n}")).expect("valid name");
            counters.protocol(&name, 2).opened.fetch_add(1, Ordering::Relaxed);
        }
        let metrics = snapshot(&counters);
        assert_eq!(metrics.protocols.len(), 3);
        assert_eq!(metrics.protocols[OVERFLOW].opened, 3);
    }
}
