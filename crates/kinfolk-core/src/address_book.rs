//! The address book: where to dial each peer.
//!
//! It decides for the peer manager which addresses of a peer are kept, which are dropped and who
//! makes room for whom. An address is in one of three slots: *configured* (typed by the app, kept
//! until the app removes it, whatever a remote does), *learned* (seen on a live link of our own:
//! where an incoming link came from, or the selected path of an outgoing one; or hinted, where nothing
//! better was known; bounded, and dropped when it stops helping) or *signed* (said by the peer itself in its record, as long as the catalog
//! keeps that). What is configured and what is signed never shadow each other: an address may be in
//! both slots, and leaves one without leaving the other. The book never takes in what is not signed,
//! never checks a signature, never looks anything up, never dials, and never decides when to dial
//! again.
//!
//! Keys are free, so a full book is the normal state of a node that strangers can reach. Then a newcomer takes the place of
//! one that weighs no more, or finds none:
//!
//! | weight | who | of these goes first |
//! |---|---|---|
//! | least | peers that came by themselves or were hinted at, with no record | who came the longest time ago |
//! | | peers that a dial of ours has reached, with no record any more | who was reached the longest time ago |
//! | | peers with a record | whose record is the oldest |
//! | | peers with a record that a dial of ours has reached | who was reached the longest time ago |
//! | most | peers whose addresses the app has only named when it asked something of them | who was named the longest time ago |
//! | never goes | peers that the app has configured | |
//!
//! So strangers displace strangers only, and a record finds room as long as the book is larger than the catalog and what
//! the app has configured.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use iroh_base::{EndpointAddr, EndpointId, TransportAddr};

/// A learned address is dropped after this many attempts in a row that did not reach the peer.
///
/// With the backoff between dials that takes about one to twelve minutes: long enough for a peer to
/// reboot, short enough that whoever has its old address by now is soon left alone. A guess.
pub const UNREACHED_BEFORE_DROP: u32 = 6;

/// How much an [`AddressBook`] holds. A zero switches off what it limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressLimits {
    /// Configured addresses per peer. Default 16: all interfaces of a well-connected machine and
    /// its relays, and still few enough to try at once. A guess.
    pub configured_per_peer: usize,
    /// Learned addresses per peer. Default 4: direct v4, direct v6 and a relay, and one to spare for
    /// a peer that moves between two networks. A guess.
    pub learned_per_peer: usize,
    /// Signed addresses per peer. Default 8, all that a record can name.
    pub signed_per_peer: usize,
    /// Peers with addresses of any kind. Default 16 384: the 10 000 of a full catalog, and far more
    /// than a node holds links with besides; some 50 MiB if every one of them had all the addresses
    /// it may have. A guess.
    pub peers: usize,
}

impl Default for AddressLimits {
    fn default() -> Self {
        Self { configured_per_peer: 16, learned_per_peer: 4, signed_per_peer: 8, peers: 16_384 }
    }
}

/// Why [`AddressBook::configure`] kept nothing. The app is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BookError {
    /// The `EndpointAddr` names a peer, but no way to reach it.
    #[error("expected at least one transport address, got a bare endpoint id")]
    NoAddress,
    /// The peer would have more configured addresses than allowed.
    #[error("expected at most {limit} configured addresses for one peer, got {got}")]
    TooMany {
        /// [`AddressLimits::configured_per_peer`].
        limit: usize,
        /// How many the peer would have, with those configured before.
        got: usize,
    },
    /// As many other peers have configured addresses as the book holds.
    #[error("expected addresses of at most {limit} peers, and all of them are configured")]
    Full {
        /// [`AddressLimits::peers`].
        limit: usize,
    },
}

/// How an attempt to reach a peer failed, as far as its addresses are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptFailure {
    /// Nobody proved to be the peer: silence, an error on the way, a refusal before the handshake
    /// was done, or another key. Counts against the learned addresses.
    Unreached,
    /// The peer proved its key and turned us down. Its addresses are right.
    Rejected,
    /// This side gave up or has no network. Says nothing about the peer, so it only leaves its time.
    Local,
}

/// How attempts to reach a peer went. Times are those of the calls that recorded them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttemptRecord {
    /// Attempts since the last success that failed for a reason other than
    /// [`AttemptFailure::Local`].
    pub consecutive_failures: u32,
    /// When an attempt last succeeded.
    pub last_success: Option<Instant>,
    /// When an attempt last failed, for whatever reason.
    pub last_failure: Option<Instant>,
}

/// What became of a learned address, or of signed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// It is in the book.
    Kept,
    /// It is in the book, and this other peer, whom the app had not configured, no longer is.
    Displaced(EndpointId),
    /// It is not: every peer in the book weighs more, or the limits leave no place for it.
    NoRoom,
}

/// Who an address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The app.
    Configured,
    /// A live link of our own.
    Learned,
    /// The peer's own record.
    Signed,
}

/// One address of a peer, for those who ask why it is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownAddress<'a> {
    /// The address.
    pub addr: &'a TransportAddr,
    /// Who it comes from.
    pub slot: Slot,
    /// When a link was last known to use it.
    pub last_success: Option<Instant>,
}

/// The addresses of all peers; see the [module](self).
///
/// Every call costs O(log n) in the number of peers. A `now` that is earlier than one before counts
/// as no time passing.
#[derive(Debug, Clone, Default)]
pub struct AddressBook {
    limits: AddressLimits,
    /// Only peers with at least one address.
    peers: BTreeMap<EndpointId, Entry>,
    /// The peers that the app has not configured: the first makes room.
    evictable: BTreeSet<(Weight, EndpointId)>,
    evictions: u64,
    refusals: u64,
    latest: Option<Instant>,
}

impl AddressBook {
    /// An empty book.
    #[must_use]
    pub fn new(limits: AddressLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Adds addresses that the app vouches for. Returns whether any of them was not configured before.
    ///
    /// An address that was learned becomes the app's. If the table of peers is full, the peer that weighs
    /// least makes room.
    ///
    /// # Errors
    ///
    /// [`BookError`], in which case the book is as it was.
    pub fn configure(&mut self, addr: EndpointAddr) -> Result<bool, BookError> {
        self.vouch(addr, None)
    }

    /// Adds addresses that the app has named when it asked something of their peer. They are configured ones as long as there is room: an app
    /// may be led to name any number of peers, so whoever was only ever named makes room for others that are.
    ///
    /// # Errors
    ///
    /// [`BookError`], in which case the book is as it was.
    pub fn name(&mut self, now: Instant, addr: EndpointAddr) -> Result<bool, BookError> {
        let now = self.tick(now);
        self.vouch(addr, Some(now))
    }

    fn vouch(&mut self, addr: EndpointAddr, named: Option<Instant>) -> Result<bool, BookError> {
        let EndpointAddr { id, addrs } = addr;
        if addrs.is_empty() {
            return Err(BookError::NoAddress);
        }
        let known = self.peers.get(&id).map(|entry| &entry.configured);
        let known_count = known.map_or(0, BTreeMap::len);
        let is_new = |addr: &&TransportAddr| known.is_none_or(|known| !known.contains_key(*addr));
        let new_count = addrs.iter().filter(is_new).count();
        let limit = self.limits.configured_per_peer;
        let got = known_count.saturating_add(new_count);
        if got > limit {
            return Err(BookError::TooMany { limit, got });
        }
        if self.make_room(&id, named.map(Weight::Named)).is_err() {
            let limit = self.limits.peers;
            return Err(BookError::Full { limit });
        }
        self.change(id, |entry| {
            let is_lasting = !entry.configured.is_empty() && entry.named.is_none();
            entry.named = named.filter(|_| !is_lasting);
            for addr in addrs {
                entry.configure(addr);
            }
        });
        Ok(new_count > 0)
    }

    /// Removes a configured address of a peer, or all of them. Returns how many.
    ///
    /// Other addresses stay, but their peer can be evicted from now on if nothing is left that the
    /// app vouches for.
    pub fn unconfigure(&mut self, peer: &EndpointId, addr: Option<&TransportAddr>) -> usize {
        if !self.knows(peer) {
            return 0;
        }
        self.change(*peer, |entry| {
            let removed = match addr {
                Some(addr) => usize::from(entry.configured.remove(addr).is_some()),
                None => std::mem::take(&mut entry.configured).len(),
            };
            if entry.configured.is_empty() {
                entry.named = None;
            }
            removed
        })
    }

    /// Whether the app has configured addresses of `peer`, and not only named them.
    #[must_use]
    pub fn is_configured(&self, peer: &EndpointId) -> bool {
        self.peers
            .get(peer)
            .is_some_and(|entry| !entry.configured.is_empty() && entry.named.is_none())
    }

    /// Notes that `peer` came from `addr`: a live link that it has opened uses it.
    ///
    /// That teaches where the peer was, not that it can be dialled there, so this does not touch the
    /// record of attempts, and displaces only peers of which no more is known.
    pub fn learned(&mut self, now: Instant, peer: EndpointId, addr: TransportAddr) -> Learned {
        let now = self.tick(now);
        self.learn(now, peer, addr, Weight::Met(now))
    }

    /// Notes that a dial of ours has reached `peer` at `addr`.
    pub fn reached(&mut self, now: Instant, peer: EndpointId, addr: TransportAddr) -> Learned {
        let now = self.tick(now);
        let learned = self.learn(now, peer, addr, Weight::Reached(now));
        if self.knows(&peer) {
            self.change(peer, |entry| entry.succeed(now));
        }
        learned
    }

    fn learn(
        &mut self,
        now: Instant,
        peer: EndpointId,
        addr: TransportAddr,
        newcomer: Weight,
    ) -> Learned {
        let capacity = self.limits.learned_per_peer;
        let is_configured = |entry: &Entry| entry.configured.contains_key(&addr);
        if capacity == 0 && !self.peers.get(&peer).is_some_and(is_configured) {
            return Learned::NoRoom;
        }
        let Ok(displaced) = self.make_room(&peer, Some(newcomer)) else {
            return Learned::NoRoom;
        };
        self.change(peer, |entry| entry.learn(now, addr, capacity));
        displaced.map_or(Learned::Kept, Learned::Displaced)
    }

    /// Takes addresses that nobody vouches for, where nothing better is known: of a peer without any address, or one
    /// that was not reached at the last attempt. Elsewhere they are left out: anybody can make up hints, and whoever
    /// does must not displace what has led to the peer, nor another peer of which more is known than that it came by itself. Says
    /// whether any was taken.
    pub fn hinted(
        &mut self,
        now: Instant,
        peer: EndpointId,
        addrs: impl IntoIterator<Item = TransportAddr>,
    ) -> bool {
        let known = self.peers.get(&peer);
        let is_reached = known.is_some_and(|entry| entry.attempts.consecutive_failures == 0);
        let mut addrs = addrs.into_iter().peekable();
        let (now, capacity) = (self.tick(now), self.limits.learned_per_peer);
        if is_reached || addrs.peek().is_none() || capacity == 0 {
            return false;
        }
        if self.make_room(&peer, Some(Weight::Met(now))).is_err() {
            return false;
        }
        self.change(peer, |entry| entry.take_hints(now, addrs, capacity))
    }

    /// Puts what the newest record of `peer` says in the place of what an earlier one said; nothing, if
    /// there is no record any more. The caller leaves out what may not be dialled.
    ///
    /// If the table of peers is full, a peer without a record makes room, or the one that signed the longest time ago and was
    /// not reached.
    pub fn signed(
        &mut self,
        now: Instant,
        peer: EndpointId,
        addrs: impl IntoIterator<Item = TransportAddr>,
    ) -> Learned {
        let now = self.tick(now);
        let addrs: BTreeSet<_> = addrs.into_iter().take(self.limits.signed_per_peer).collect();
        if addrs.is_empty() {
            if self.knows(&peer) {
                self.change(peer, |entry| entry.signed = None);
            }
            return Learned::NoRoom;
        }
        let Ok(displaced) = self.make_room(&peer, Some(Weight::Signed(now))) else {
            return Learned::NoRoom;
        };
        self.change(peer, |entry| entry.signed = Some(Signed { addrs, since: now }));
        displaced.map_or(Learned::Kept, Learned::Displaced)
    }

    /// Records why an attempt to reach `peer` failed. Returns how many learned addresses were dropped because of it.
    ///
    /// An attempt tries all addresses at once, so a failure is one of each of them. Attempts at peers
    /// that are not in the book leave no trace, and a peer whose last address is dropped leaves it.
    pub fn failed(&mut self, now: Instant, peer: &EndpointId, failure: AttemptFailure) -> usize {
        let now = self.tick(now);
        if !self.knows(peer) {
            return 0;
        }
        self.change(*peer, |entry| entry.fail(now, failure))
    }

    /// Everything to dial `peer` on, configured, learned and signed.
    #[must_use]
    pub fn addresses(&self, peer: &EndpointId) -> Option<EndpointAddr> {
        let entry = self.peers.get(peer)?;
        let learned = entry.learned.iter().map(|known| &known.addr);
        let signed = entry.signed.iter().flat_map(|signed| &signed.addrs);
        let addrs = entry.configured.keys().chain(learned).chain(signed).cloned();
        Some(EndpointAddr::from_parts(*peer, addrs))
    }

    /// Whether there is an address to dial `peer` on.
    #[must_use]
    pub fn knows(&self, peer: &EndpointId) -> bool {
        self.peers.contains_key(peer)
    }

    /// The addresses of `peer` one by one: the configured, then the learned with the newest success
    /// first, then the signed. One that is signed may also be among the others.
    pub fn known(&self, peer: &EndpointId) -> impl Iterator<Item = KnownAddress<'_>> {
        self.peers.get(peer).into_iter().flat_map(Entry::known)
    }

    /// How attempts to reach `peer` went; `None` if it is not in the book.
    #[must_use]
    pub fn attempts(&self, peer: &EndpointId) -> Option<AttemptRecord> {
        self.peers.get(peer).map(|entry| entry.attempts)
    }

    /// What the app configured or named: all that a new book must be given to take the place of this one.
    pub fn configured(&self) -> impl Iterator<Item = EndpointAddr> {
        self.peers
            .iter()
            .filter(|(_, entry)| !entry.configured.is_empty())
            .map(|(peer, entry)| EndpointAddr::from_parts(*peer, entry.configured.keys().cloned()))
    }

    /// How many peers have addresses.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether no peer has an address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// How many peers that the app had not configured had to make room for others, so far.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// How often a peer found no room in a full book, so far.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Sees to it that `peer` may be in the book: whom the app configures has no weight. Says which peer had to go for it, if one had
    /// to.
    fn make_room(
        &mut self,
        peer: &EndpointId,
        newcomer: Option<Weight>,
    ) -> Result<Option<EndpointId>, NoRoom> {
        if self.knows(peer) || self.len() < self.limits.peers {
            return Ok(None);
        }
        let gives_way = |(weight, _): &&(Weight, EndpointId)| {
            newcomer.is_none_or(|newcomer| *weight <= newcomer)
        };
        let Some((weight, evicted)) = self.evictable.first().filter(gives_way).copied() else {
            self.refusals = self.refusals.saturating_add(1);
            return Err(NoRoom);
        };
        self.evictable.remove(&(weight, evicted));
        self.peers.remove(&evicted);
        self.evictions = self.evictions.saturating_add(1);
        Ok(Some(evicted))
    }

    /// Changes the entry of a peer, and keeps the rule that entries have addresses and the index
    /// of evictable peers true.
    fn change<R>(&mut self, peer: EndpointId, change: impl FnOnce(&mut Entry) -> R) -> R {
        let entry = self.peers.entry(peer).or_default();
        let before = entry.weight();
        let result = change(entry);
        let after = entry.weight();
        if entry.is_empty() {
            self.peers.remove(&peer);
        }
        if before != after {
            if let Some(weight) = before {
                self.evictable.remove(&(weight, peer));
            }
            if let Some(weight) = after {
                self.evictable.insert((weight, peer));
            }
        }
        result
    }

    fn tick(&mut self, now: Instant) -> Instant {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        now
    }
}

/// Every peer in a full book weighs more.
struct NoRoom;

/// What a peer that the app has not configured weighs when room has to be made: the smallest goes first, see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// It came by itself or was hinted at, last then.
    Met(Instant),
    /// A dial of ours has reached it, last then.
    Reached(Instant),
    /// It has signed addresses, since then.
    Signed(Instant),
    /// It has signed addresses, and a dial of ours has reached it, last then.
    Proven(Instant),
    /// The app has named addresses of it, last then.
    Named(Instant),
}

/// What is known of one peer. No address is both configured and learned.
#[derive(Debug, Clone, Default)]
struct Entry {
    /// With the time of the last known success.
    configured: BTreeMap<TransportAddr, Option<Instant>>,
    /// When the app last named its addresses, if it has never configured them.
    named: Option<Instant>,
    /// Newest success first.
    learned: Vec<LearnedAddress>,
    signed: Option<Signed>,
    attempts: AttemptRecord,
}

/// What the peer's record says; never empty.
#[derive(Debug, Clone)]
struct Signed {
    addrs: BTreeSet<TransportAddr>,
    since: Instant,
}

#[derive(Debug, Clone)]
struct LearnedAddress {
    addr: TransportAddr,
    last_success: Instant,
    /// Attempts in a row that did not reach the peer; an address learned late has its own count.
    unreached: u32,
}

impl Entry {
    fn configure(&mut self, addr: TransportAddr) {
        let learned = self.take_learned(&addr);
        self.configured.entry(addr).or_insert(learned);
    }

    fn learn(&mut self, now: Instant, addr: TransportAddr, capacity: usize) {
        if let Some(last_success) = self.configured.get_mut(&addr) {
            *last_success = Some(now);
            return;
        }
        self.take_learned(&addr);
        self.learned.truncate(capacity.saturating_sub(1));
        self.learned.insert(0, LearnedAddress { addr, last_success: now, unreached: 0 });
    }

    /// Takes addresses of which nothing is known behind those that have led to the peer.
    fn take_hints(
        &mut self,
        now: Instant,
        addrs: impl IntoIterator<Item = TransportAddr>,
        capacity: usize,
    ) -> bool {
        let mut is_taken = false;
        for addr in addrs {
            let is_known = self.known().any(|known| *known.addr == addr);
            if !is_known && self.learned.len() < capacity {
                let last_success = self.learned.last().map_or(now, |last| last.last_success);
                self.learned.push(LearnedAddress { addr, last_success, unreached: 0 });
                is_taken = true;
            }
        }
        is_taken
    }

    fn succeed(&mut self, now: Instant) {
        self.attempts.consecutive_failures = 0;
        self.attempts.last_success = Some(now);
        self.learned.iter_mut().for_each(|known| known.unreached = 0);
    }

    fn fail(&mut self, now: Instant, failure: AttemptFailure) -> usize {
        self.attempts.last_failure = Some(now);
        if failure == AttemptFailure::Local {
            return 0;
        }
        let failures = &mut self.attempts.consecutive_failures;
        *failures = failures.saturating_add(1);
        let before = self.learned.len();
        for known in &mut self.learned {
            known.unreached = match failure {
                AttemptFailure::Unreached => known.unreached.saturating_add(1),
                // One of the addresses led to the peer, and it is not known which.
                AttemptFailure::Rejected | AttemptFailure::Local => 0,
            };
        }
        self.learned.retain(|known| known.unreached < UNREACHED_BEFORE_DROP);
        before.saturating_sub(self.learned.len())
    }

    fn take_learned(&mut self, addr: &TransportAddr) -> Option<Instant> {
        let position = self.learned.iter().position(|known| known.addr == *addr)?;
        Some(self.learned.remove(position).last_success)
    }

    fn is_empty(&self) -> bool {
        self.configured.is_empty() && self.learned.is_empty() && self.signed.is_none()
    }

    fn weight(&self) -> Option<Weight> {
        if !self.configured.is_empty() {
            return self.named.map(Weight::Named);
        }
        let met = self.learned.first().map(|known| known.last_success);
        // Where nothing is left of what was reached, it is as if it never had been.
        let reached = met.and(self.attempts.last_success);
        match (self.signed.as_ref().map(|signed| signed.since), reached) {
            (Some(_), Some(reached)) => Some(Weight::Proven(reached)),
            (Some(since), None) => Some(Weight::Signed(since)),
            (None, Some(reached)) => Some(Weight::Reached(reached)),
            (None, None) => met.map(Weight::Met),
        }
    }

    fn known(&self) -> impl Iterator<Item = KnownAddress<'_>> {
        let configured = self.configured.iter().map(|(addr, success)| KnownAddress {
            addr,
            slot: Slot::Configured,
            last_success: *success,
        });
        let learned = self.learned.iter().map(|known| KnownAddress {
            addr: &known.addr,
            slot: Slot::Learned,
            last_success: Some(known.last_success),
        });
        let signed = self.signed.iter().flat_map(|signed| &signed.addrs).map(|addr| KnownAddress {
            addr,
            slot: Slot::Signed,
            last_success: None,
        });
        configured.chain(learned).chain(signed)
    }
}

#[cfg(test)]
mod tests;
