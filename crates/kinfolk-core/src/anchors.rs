//! Anchors: the proven peers that a node remembers beyond its own life, and whom it contacts first when it is back.
//!
//! It decides for the discovery manager which peers are written into the store and in which order those that come out of it
//! are contacted. A restart is a node's weakest moment: whoever it talks to first tells it who else is there. So only
//! peers that a session dialled by this node has reached are anchors, they are known by addresses at which *this node* has
//! reached them, and those that are near each other in the address space never come before one that is elsewhere. It never
//! reads a clock, never writes to a disk, never dials, and forgets no peer because it is silent: a whole network that
//! was off for a week finds itself again.
//!
//! # Order
//!
//! Peers are grouped by the address at which they were last reached: IPv4 by the first 16 bits, IPv6 by the first 32, as
//! networks are handed out to those who ask for many; relays by their URL. The first round takes the latest peer of every
//! group, the second the next one of each, and so on; within a round the latest success is first. A success that lies in the
//! future by today's clock was timed by a wrong one and counts as older than all others.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use iroh_base::{EndpointAddr, EndpointId, RelayUrl, TransportAddr};

use crate::catalog::Snapshot;
use crate::record::{Reach, Record, UnixMillis};

/// Anchors that are kept: some 300 KiB on disk if every record is as large as it may be, and more than a node can
/// contact before the first of them has told it the rest (a guess).
pub const ANCHORS_MAX: usize = 256;

/// Addresses that are kept of one anchor, the latest first: direct v4, direct v6, a relay, and one to spare (a guess).
pub const REACHED_MAX: usize = 4;

/// How many of [`first_contacts`] are contacted before anybody else: two anchors and three more proven peers, which are
/// of five groups if there are so many. What others say is worth no contact before these were tried.
pub const FIRST_CONTACTS: usize = 5;

/// A peer that a session dialled by this node has reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    record: Record,
    reached: Vec<TransportAddr>,
    last_success: UnixMillis,
}

impl Anchor {
    /// A peer with its own record, the addresses at which this node has reached it, the latest first, and the time of the
    /// last success by this node's clock. More than [`REACHED_MAX`] addresses are not kept.
    pub fn new(
        record: Record,
        reached: impl IntoIterator<Item = TransportAddr>,
        last_success: UnixMillis,
    ) -> Self {
        let mut anchor = Self { record, reached: Vec::new(), last_success };
        for addr in reached {
            if anchor.reached.len() < REACHED_MAX && !anchor.reached.contains(&addr) {
                anchor.reached.push(addr);
            }
        }
        anchor
    }

    /// Whose it is.
    pub fn id(&self) -> EndpointId {
        self.record.id()
    }

    /// The newest record of the peer that was seen.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// The addresses at which this node has reached the peer, the latest first.
    pub fn reached(&self) -> &[TransportAddr] {
        &self.reached
    }

    /// When this node last reached it, by this node's clock.
    pub const fn last_success(&self) -> UnixMillis {
        self.last_success
    }

    /// How old its record is at least, by a clock that may have gone back since the last success: what it carries into a
    /// catalog.
    pub fn age(&self, clock: UnixMillis) -> Duration {
        clock.max(self.last_success).since(self.record.issued_at())
    }

    /// The peer as a dial takes it: where it was reached, and what it says of itself as far as the world may use it, since
    /// this node may be elsewhere by now.
    pub fn endpoint_addr(&self) -> EndpointAddr {
        let said = self.record.addresses_from(Reach::World);
        EndpointAddr::from_parts(self.id(), self.reached.iter().cloned().chain(said))
    }

    fn group(&self) -> Group {
        match self.reached.first() {
            Some(TransportAddr::Ip(addr)) => match addr.ip().to_canonical() {
                IpAddr::V4(ip) => {
                    let [first, second, _, _] = ip.octets();
                    Group::V4([first, second])
                }
                IpAddr::V6(ip) => {
                    let [first, second, ..] = ip.segments();
                    Group::V6([first, second])
                }
            },
            Some(TransportAddr::Relay(url)) => Group::Relay(url.clone()),
            _ => Group::Other,
        }
    }

    fn touch(&mut self, addr: Option<TransportAddr>, clock: UnixMillis) {
        self.last_success = clock;
        if let Some(addr) = addr {
            self.reached.retain(|known| *known != addr);
            self.reached.insert(0, addr);
            self.reached.truncate(REACHED_MAX);
        }
    }
}

/// Addresses that one party commonly has many of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    V4([u8; 2]),
    V6([u16; 2]),
    Relay(RelayUrl),
    Other,
}

/// The anchors of a running node; see the module page. At most [`ANCHORS_MAX`].
#[derive(Debug, Clone, Default)]
pub struct Anchors {
    peers: BTreeMap<EndpointId, Anchor>,
}

impl Anchors {
    /// Goes on with those of an earlier run; `clock` is the wall clock.
    pub fn new(stored: impl IntoIterator<Item = Anchor>, clock: UnixMillis) -> Self {
        let peers = stored.into_iter().map(|anchor| (anchor.id(), anchor)).collect();
        let mut anchors = Self { peers };
        anchors.trim(clock);
        anchors
    }

    /// A session that this node dialled has reached the peer of this record, at this address if that is known.
    pub fn reached(&mut self, record: &Record, addr: Option<TransportAddr>, clock: UnixMillis) {
        let anchor = self
            .peers
            .entry(record.id())
            .or_insert_with(|| Anchor::new(record.clone(), None, clock));
        anchor.record = record.clone();
        anchor.touch(addr, clock);
        self.trim(clock);
    }

    /// The app wants nothing known of this peer.
    pub fn forget(&mut self, peer: &EndpointId) {
        self.peers.remove(peer);
    }

    /// What to store: the best anchors in their order, each with the record that the catalog holds, if it holds one. A peer that
    /// the catalog does not know any more stays: its record is over, its address is not.
    #[must_use]
    pub fn best(&self, known: &Snapshot, clock: UnixMillis) -> Vec<Anchor> {
        let mut anchors: Vec<Anchor> = self.peers.values().cloned().collect();
        for anchor in &mut anchors {
            if let Some(entry) = known.get(&anchor.id()) {
                anchor.record = entry.record().clone();
            }
        }
        sort(&mut anchors, clock);
        anchors
    }

    fn trim(&mut self, clock: UnixMillis) {
        if self.peers.len() <= ANCHORS_MAX {
            return;
        }
        let mut anchors: Vec<Anchor> = std::mem::take(&mut self.peers).into_values().collect();
        sort(&mut anchors, clock);
        anchors.truncate(ANCHORS_MAX);
        self.peers = anchors.into_iter().map(|anchor| (anchor.id(), anchor)).collect();
    }
}

/// In which order to contact those of an earlier run, before anybody else is: at least the first [`FIRST_CONTACTS`].
#[must_use]
pub fn first_contacts(stored: &[Anchor], clock: UnixMillis) -> Vec<EndpointAddr> {
    let mut anchors = stored.to_vec();
    sort(&mut anchors, clock);
    anchors.iter().map(Anchor::endpoint_addr).collect()
}

/// The order of the module page.
fn sort(anchors: &mut Vec<Anchor>, clock: UnixMillis) {
    anchors.sort_by_key(|anchor| {
        let is_future = anchor.last_success > clock;
        (is_future, Reverse(anchor.last_success), anchor.id())
    });
    let mut sizes: BTreeMap<Group, usize> = BTreeMap::new();
    let mut rounds: Vec<(usize, Anchor)> = Vec::with_capacity(anchors.len());
    for anchor in anchors.drain(..) {
        let size = sizes.entry(anchor.group()).or_default();
        rounds.push((*size, anchor));
        *size = size.saturating_add(1);
    }
    // Stable, so that within a round the latest success stays first.
    rounds.sort_by_key(|(round, _)| *round);
    anchors.extend(rounds.into_iter().map(|(_, anchor)| anchor));
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use iroh_base::SecretKey;

    use super::*;
    use crate::catalog::{Catalog, CatalogLimits, Input, Sighting, Source};
    use crate::id::NetworkId;
    use crate::record::{Draft, Seq};

    const NOW: UnixMillis = UnixMillis::new(1_000_000);

    fn key(number: u16) -> SecretKey {
        let [high, low] = number.to_be_bytes();
        SecretKey::from_bytes(&std::array::from_fn(|place| if place == 0 { high } else { low }))
    }

    fn signed(number: u16, seq: u64) -> Record {
        let mut draft = Draft::new(NetworkId::from_name("anchors"));
        draft.add_address(ip("198.51.100.9:9")).unwrap();
        draft.add_address(ip("192.168.7.7:9")).unwrap();
        draft.sign(&key(number), Seq::new(seq), UnixMillis::new(seq)).unwrap()
    }

    fn ip(text: &str) -> TransportAddr {
        TransportAddr::Ip(text.parse().unwrap())
    }

    fn anchor(number: u16, addr: &str, at: u64) -> Anchor {
        Anchor::new(signed(number, 1), [ip(addr)], UnixMillis::new(at))
    }

    fn order(anchors: &[Anchor]) -> Vec<EndpointId> {
        first_contacts(anchors, NOW).into_iter().map(|addr| addr.id).collect()
    }

    fn ids(numbers: &[u16]) -> Vec<EndpointId> {
        numbers.iter().map(|number| key(*number).public()).collect()
    }

    #[test]
    fn the_latest_success_is_contacted_first() {
        let stored =
            [anchor(1, "10.1.0.1:1", 5), anchor(2, "10.2.0.1:1", 9), anchor(3, "10.3.0.1:1", 7)];
        assert_eq!(order(&stored), ids(&[2, 3, 1]));
    }

    #[test]
    fn many_peers_of_one_network_come_after_one_of_every_other() {
        let mut stored: Vec<_> =
            (10..200).map(|n| anchor(n, &format!("203.0.{n}.1:1"), 900 + u64::from(n))).collect();
        stored.push(anchor(1, "198.51.100.1:1", 3));
        stored.push(anchor(2, "[2001:db8::1]:1", 2));
        stored.push(anchor(3, "[2001:db9::1]:1", 1));
        let first = order(&stored);
        assert_eq!(first[..4], ids(&[199, 1, 2, 3]));
        assert_eq!(first.len(), stored.len(), "nobody is left out");
    }

    #[test]
    fn peers_behind_one_relay_are_of_one_network() {
        let relayed = |number, at| {
            let relay = TransportAddr::Relay("https://r.example".parse().unwrap());
            Anchor::new(signed(number, 1), [relay], UnixMillis::new(at))
        };
        let stored = [relayed(1, 9), relayed(2, 8), anchor(3, "10.0.0.1:1", 1)];
        assert_eq!(order(&stored), ids(&[1, 3, 2]));
    }

    #[test]
    fn a_success_in_the_future_counts_least() {
        let stored = [anchor(1, "10.1.0.1:1", NOW.get() + 1), anchor(2, "10.2.0.1:1", 0)];
        assert_eq!(order(&stored), ids(&[2, 1]));
    }

    #[test]
    fn a_contact_is_dialled_where_it_was_reached_and_where_the_world_may() {
        let contacts = first_contacts(&[anchor(1, "192.168.1.1:4", 1)], NOW);
        let addrs: Vec<_> = contacts[0].addrs.iter().cloned().collect();
        assert_eq!(addrs, [ip("192.168.1.1:4"), ip("198.51.100.9:9")]);
    }

    #[test]
    fn the_latest_address_of_a_peer_is_first_and_the_oldest_gives_way() {
        let mut anchors = Anchors::default();
        for port in 1..=6 {
            anchors.reached(&signed(1, 1), Some(ip(&format!("10.0.0.1:{port}"))), NOW);
        }
        anchors.reached(&signed(1, 1), Some(ip("10.0.0.1:4")), NOW);
        anchors.reached(&signed(1, 1), None, NOW);
        let best = anchors.best(&Snapshot::default(), NOW);
        let ports = [4, 6, 5, 3].map(|port| ip(&format!("10.0.0.1:{port}")));
        assert_eq!(best[0].reached(), ports);
    }

    #[test]
    fn however_many_peers_are_reached_those_of_few_are_kept() {
        let mut anchors = Anchors::default();
        anchors.reached(&signed(1, 1), Some(ip("198.51.100.1:1")), UnixMillis::new(1));
        for number in 2..600 {
            let addr = ip(&format!("203.0.113.1:{number}"));
            anchors.reached(&signed(number, 1), Some(addr), UnixMillis::new(number.into()));
        }
        let best = anchors.best(&Snapshot::default(), NOW);
        assert_eq!(best.len(), ANCHORS_MAX);
        assert!(best.iter().any(|anchor| anchor.id() == key(1).public()));
    }

    #[test]
    fn a_peer_that_the_catalog_no_longer_knows_stays_and_one_that_it_knows_has_the_newer_record() {
        let now = Instant::now();
        let mut catalog = Catalog::new(key(9).public(), CatalogLimits::default());
        let sighting = Sighting::new(signed(1, 7), now, UnixMillis::new(7), Duration::ZERO);
        let heard = Input::Heard { sighting, source: Source::Store };
        catalog.handle(now, heard, &mut Vec::new());
        let stored = [anchor(1, "10.1.0.1:1", 5), anchor(2, "10.2.0.1:1", 4)];
        let best = Anchors::new(stored, NOW).best(&catalog.snapshot(), NOW);
        assert_eq!(order(&best), ids(&[1, 2]));
        assert_eq!(best[0].record().seq(), Seq::new(7));
        assert_eq!(best[1].record().seq(), Seq::new(1));
    }

    #[test]
    fn a_peer_that_is_forgotten_is_not_stored() {
        let mut anchors = Anchors::new([anchor(1, "10.1.0.1:1", 5)], NOW);
        anchors.forget(&key(1).public());
        assert_eq!(anchors.best(&Snapshot::default(), NOW), []);
    }

    #[test]
    fn a_clock_that_went_back_makes_no_record_younger() {
        let anchor = anchor(1, "10.1.0.1:1", 5_001);
        assert_eq!(anchor.age(UnixMillis::new(0)), Duration::from_secs(5));
        assert_eq!(anchor.age(UnixMillis::new(7_001)), Duration::from_secs(7));
    }
}
