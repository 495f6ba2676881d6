//! The catalog: which records a node knows, and for how long.
//!
//! It decides for the discovery manager which verified records are kept, which one of two of the same node counts, who
//! makes room for whom, and when a record is over; and for the walkers whom to contact. Every entry is *verified*: its
//! signature was checked before it came here. It is *proven* once a session that this node dialled has reached the peer;
//! a session that the peer dialled protects its record while it lasts and proves nothing, as inbound sessions are a
//! stranger's to open. The catalog never checks a signature, never reads a clock, never contacts anybody, and never takes
//! a record of this node itself from others.
//!
//! # Which record counts
//!
//! | a record of the same node comes | decision |
//! |---|---|
//! | with a larger number | take it; its peer's standing is restored |
//! | with the same number and the same bytes | nothing: hearing it again renews nothing |
//! | with the same number and other bytes | keep the first, count it; but a departure wins |
//! | with a smaller number | ignore it; but take it from its owner [later](UNDER_WAY), so that a broken clock can heal |
//! | with a number that is dead | ignore it; only the owner may speak with a smaller one, later |
//!
//! In one life of a node numbers only grow. A smaller one that its owner says soon after the larger was heard may have been under way while that came by another path, and is out of
//! date; one that it says much later is what it says now.
//!
//! After an owner went back, what it said with larger numbers is dead: only the owner itself can tell its next records,
//! until it has heard of the larger number and jumped past it (see [`SeqSource`](crate::record::SeqSource)).
//!
//! # How long a record lives
//!
//! A record comes with the age that its sender says. What remains of it is its ttl less that age, or less the time since
//! it was issued if that is more, as measured at receipt. From then on only the monotonic clock of this node counts,
//! and the age that is passed on has grown by as much: sharing never renews. From its owner, on its own session, the time of
//! issue is not held against a record, so that a node with a slow clock can be used by those who talk to it; others will
//! not take it. A record that expired, was taken back or forgotten is remembered by its number for [`DEAD_MEMORY`], so
//! that nobody revives it; what happens when that table is full says [`CatalogLimits::dead`]: whoever never was in the
//! catalog goes first, then whoever's memory ends first.
//!
//! # Who makes room
//!
//! Peers that are connected, held or configured are never evicted. Otherwise records weigh by how they came, see [`Weight`]: the lightest
//! makes room, of these the one that came in the longest time ago; one that is proven only for a peer that is itself protected, and
//! one that its owner told only for another such. Else whoever relays made-up nodes, in good faith even, would displace those that were here. Once the catalog is more than half full, one
//! source accounts for at most 1/[`SHARES`] of the room that proven records leave, counted over its records that are hearsay
//! and not protected: more are refused, and what it brought while there was room makes room for those of others. So a
//! source that makes up any number of nodes gets no further than that, and a node's first source can still fill half of it.
//!
//! # Which addresses may be dialled
//!
//! A record is kept and passed on as it was signed. Addresses of this machine in it are used only if it came from this
//! machine, addresses of the local network only if it came from there or from this machine, whoever signed it; see
//! [`Reach`]. Where such addresses could be used and the owner's next record names them and no other such ones, they still can, whoever
//! brings it. Unspecified, multicast and reserved addresses are in no record.
//!
//! Any other address may be a victim's, and whose are *hearsay* says [`Entry::is_hearsay`]: those that the owner told on a session of its
//! own are not, nor those under which a session that we dialled reached it. A next record that others bring keeps that only if it names no
//! new address and nothing spoke against the old ones. What records weigh does not depend on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

use crate::peer_link::Direction;
use crate::record::{Reach, Record, Ttl};

mod contract;
mod entry;
mod graves;
mod limits;
mod places;
mod relayable;
mod snapshot;
#[cfg(test)]
mod tests;
mod tree;

pub use contract::{Ignored, Input, Keep, Output, Removal, Sighting, Source};
pub use entry::{Entry, Told, Weight};
use graves::{Grave, Graves};
pub use limits::{CatalogLimitError, CatalogLimits};
use places::Places;
pub(crate) use relayable::Relayable;
use snapshot::Peer;
pub use snapshot::Snapshot;

/// One source accounts for at most one part in so many of the room for records that nobody has proven (as in Bitcoin's
/// table of new addresses).
pub const SHARES: usize = 16;

/// How long dead records are remembered: twice the longest ttl, so that even a record that was passed on by clocks that
/// disagree is over before it is forgotten.
pub const DEAD_MEMORY: Duration = Ttl::MAX.as_duration().saturating_mul(2);

/// For how long what an owner said before may still come from it: four times as long as an exchange takes at most by default (a guess; a
/// longer one costs only those whose clock was set back, and who have heard of their larger number from nobody). No exchange may take longer, see
/// [`ExchangeLimits`](crate::exchange::ExchangeLimits).
pub const UNDER_WAY: Duration = Duration::from_secs(120);

/// Why a peer's record must not be evicted.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    /// Outbound if one of its links was.
    session: Option<Direction>,
    held: bool,
    configured: bool,
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.session.is_none() && !self.held && !self.configured
    }
}

/// What is due at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A tombstone is no longer passed on.
    Departure,
    /// A dead record may be forgotten.
    Grave,
}

/// The machine; see the module page. A `now` that is earlier than one before counts as no time passing.
#[derive(Debug, Clone)]
pub struct Catalog {
    me: EndpointId,
    limits: CatalogLimits,
    known: Snapshot,
    /// Entries that are proven.
    proven: usize,
    /// Only peers with a reason to be kept, whether they have a record or not: as many as the node has sessions and the
    /// app has holds and configured peers.
    kept: BTreeMap<EndpointId, Kept>,
    graves: Graves,
    /// Whose record is over first, and who of those that nothing protects makes room first.
    places: Places,
    /// What is due of the dead.
    timers: BTreeSet<(Instant, Due, EndpointId)>,
    latest: Option<Instant>,
}

impl Catalog {
    /// A catalog that knows nobody. `me` is this node.
    #[must_use]
    pub fn new(me: EndpointId, limits: CatalogLimits) -> Self {
        Self {
            me,
            known: Snapshot::default(),
            proven: 0,
            kept: BTreeMap::new(),
            graves: Graves::new(limits.dead),
            places: Places::default(),
            timers: BTreeSet::new(),
            latest: None,
            limits,
        }
    }

    /// Takes what happened and writes what it means. What is due by now comes first.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        let now = self.tick(now);
        self.expire(now, out);
        match input {
            Input::Heard { sighting, source } => self.hear(now, sighting, source, out),
            Input::Own(record) => {
                if record.id() == self.me {
                    self.known.own =
                        Some(Arc::new(Entry::of(record, now, Duration::ZERO, Duration::MAX)));
                }
            }
            Input::Connected { peer, direction } => {
                self.keep(peer, |kept| {
                    // A session that proves is not outdone by a later one that does not.
                    if kept.session != Some(Direction::Outbound) {
                        kept.session = Some(direction);
                    }
                });
                self.rework(&peer, |entry| {
                    if direction == Direction::Outbound {
                        entry.set_proven(true);
                        entry.set_backed(true);
                    }
                    entry.restore();
                });
            }
            Input::Disconnected(peer) => self.keep(peer, |kept| kept.session = None),
            Input::Missed(peer) => {
                if self.kept.get(&peer).is_none_or(|kept| kept.session.is_none()) {
                    self.rework(&peer, |entry| entry.missed(now));
                }
            }
            Input::Online => {
                let missed = self.known.iter().filter(|entry| entry.liveness().failures() > 0);
                let missed: Vec<_> = missed.map(|entry| entry.id()).collect();
                for peer in missed {
                    self.rework(&peer, |entry| entry.ask_again(now));
                }
            }
            Input::Keep { peer, keep, wanted } => self.keep(peer, |kept| match keep {
                Keep::Held => kept.held = wanted,
                Keep::Configured => kept.configured = wanted,
            }),
            Input::Forget(peer) => {
                self.end(now, &peer, Removal::Forgotten, out);
            }
            Input::Timeout => {}
        }
    }

    /// When [`Input::Timeout`] is due. It costs O(log n).
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let dead = self.timers.first().map(|(at, _, _)| *at);
        let record = self.places.first_over().map(|entry| entry.expires());
        record.into_iter().chain(dead).min()
    }

    /// All that is known, for others to read. It copies no records.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.known.clone()
    }

    /// All that is known, as it is now.
    #[must_use]
    pub fn known(&self) -> &Snapshot {
        &self.known
    }

    /// How many entries are proven.
    #[must_use]
    pub fn proven(&self) -> usize {
        self.proven
    }

    /// How many dead records are remembered.
    #[must_use]
    pub fn dead(&self) -> usize {
        self.graves.len()
    }

    /// How many records this source accounts for that are hearsay and not protected.
    #[must_use]
    pub fn loose_records_of(&self, source: &EndpointId) -> usize {
        self.places.count(source)
    }

    fn hear(&mut self, now: Instant, sighting: Sighting, source: Source, out: &mut Vec<Output>) {
        let peer = sighting.record.id();
        if peer == self.me {
            out.push(Output::OwnHeard(sighting.record.seq()));
            return;
        }
        let (from, reach) = match source {
            Source::Peer { peer, reach } => (Some(peer), reach),
            // What was stored is what was dialled before; where it came from is not stored, so the careful rule holds.
            Source::Store => (None, Reach::World),
        };
        let is_owner = from == Some(peer);
        let taken = self.judge(now, &sighting.record, is_owner).and_then(|()| {
            let holds = remaining(now, &sighting, is_owner).ok_or(Ignored::Expired)?;
            if sighting.record.is_departure() {
                self.depart(now, sighting, out);
                Ok(())
            } else {
                self.admit(now, Arrival { sighting, holds, from, reach, is_owner }, out)
            }
        });
        if let Err(reason) = taken {
            if reason == Ignored::Known {
                self.come_nearer(&peer, reach, is_owner, out);
                let is_news = |entry: &Arc<Entry>| !entry.is_first_hand() || !entry.is_backed();
                if is_owner && self.known.get(&peer).is_some_and(is_news) {
                    self.rework(&peer, |entry| {
                        entry.set_first_hand(true);
                        entry.set_backed(true);
                    });
                }
            }
            out.push(Output::Ignored { peer, from, reason });
        }
    }

    /// Whether a record may take the place of what is known of its node.
    fn judge(&self, now: Instant, record: &Record, is_owner: bool) -> Result<(), Ignored> {
        let (id, seq) = (record.id(), record.seq());
        let may_go_back =
            |heard: Instant| is_owner && now.saturating_duration_since(heard) >= UNDER_WAY;
        if let Some(entry) = self.known.get(&id) {
            let known = entry.record();
            if record == known {
                return Err(Ignored::Known);
            }
            if seq == known.seq() && !record.is_departure() {
                return Err(Ignored::Equivocation);
            }
            if seq < known.seq() && !may_go_back(entry.received()) {
                return Err(Ignored::Outdated);
            }
        }
        let Some(grave) = self.graves.get(&id) else { return Ok(()) };
        let departure = self.known.departure(record.id_bytes());
        if departure.is_some_and(|told| told.record() == record) {
            return Err(Ignored::Known);
        }
        let counts = |(dead, heard)| seq > dead || (seq < dead && may_go_back(heard));
        if counts((grave.seq, grave.heard)) && counts(grave.last) {
            return Ok(());
        }
        if seq == grave.seq && record.is_departure() && !grave.is_departure {
            return Ok(());
        }
        Err(Ignored::Dead)
    }

    /// Takes the tombstone of a node.
    fn depart(&mut self, now: Instant, sighting: Sighting, out: &mut Vec<Output>) {
        let (peer, heard) = (sighting.record.id(), sighting.at.min(now));
        let removed = self.remove(&peer);
        let was_known = removed.is_some();
        if let Some(entry) = removed {
            // Its owner may have gone back to a smaller number.
            self.bury(now, &entry);
            out.push(Output::Removed { peer, reason: Removal::Departed });
        }
        self.dig(peer, Grave::of(&sighting.record, heard, dead_until(now), was_known));
        self.forget_departure(&peer);
        if self.graves.get(&peer).is_some() {
            let age = sighting.age();
            let told = Entry::of(sighting.record, heard, age, Duration::MAX);
            self.timers.insert((told.told().ends(), Due::Departure, peer));
            self.known.departures.insert(Peer::new(u32::MAX, Arc::new(told)));
        }
    }

    /// Takes a record of a node that is there, if there is a place for it.
    fn admit(
        &mut self,
        now: Instant,
        arrival: Arrival,
        out: &mut Vec<Output>,
    ) -> Result<(), Ignored> {
        let Arrival { mut sighting, holds, from, reach, is_owner } = arrival;
        sighting.at = sighting.at.min(now);
        let peer = sighting.record.id();
        if let Some(old) = self.known.peers.get(peer.as_bytes()).cloned() {
            let old_seq = old.entry.record().seq();
            if sighting.record.seq() < old_seq {
                self.bury(now, &old.entry);
            }
            let is_backed = is_owner || old.entry.answers_for(&sighting.record);
            let reach = old.entry.reach_of_next(&sighting.record, reach);
            let mut entry = Entry::new(sighting, holds, reach);
            entry.set_first_hand(is_owner || old.entry.is_first_hand());
            entry.set_proven(old.entry.is_proven());
            entry.set_backed(is_backed);
            let entry = Arc::new(entry);
            self.replace(&old, Peer::new(old.place, entry.clone()));
            out.push(Output::Updated(entry));
            return Ok(());
        }
        let kept = self.kept.get(&peer).copied().unwrap_or_default();
        let weight = if is_owner { Weight::FirstHand } else { Weight::Hearsay };
        self.make_room(from, weight, !kept.is_empty(), out)?;
        self.forget_departure(&peer);
        let mut entry = Entry::new(sighting, holds, reach);
        entry.set_first_hand(is_owner);
        entry.set_backed(is_owner);
        entry.set_proven(kept.session == Some(Direction::Outbound));
        let entry = Arc::new(entry);
        self.put(entry.clone(), from);
        out.push(Output::Added(entry));
        Ok(())
    }

    /// Sees to it that one more record may come in from this source.
    fn make_room(
        &mut self,
        from: Option<EndpointId>,
        weight: Weight,
        is_protected: bool,
        out: &mut Vec<Output>,
    ) -> Result<(), Ignored> {
        let capacity = self.limits.records;
        let half = capacity / 2;
        let share = (capacity.saturating_sub(self.proven) / SHARES).max(1);
        if self.known.len() >= half {
            let is_over = from.is_some_and(|from| self.places.count(&from) >= share);
            if is_over && !is_protected {
                return Err(Ignored::OverShare);
            }
            while self.known.len() >= half
                && let Some(surplus) = self.places.surplus(share)
            {
                self.evict(surplus, out);
            }
        }
        if self.known.len() < capacity {
            return Ok(());
        }
        match self.places.first_to_go() {
            Some(first) if is_protected || first.weight() <= weight => {
                let victim = first.id();
                self.evict(victim, out);
                Ok(())
            }
            _ => Err(Ignored::Full),
        }
    }

    fn evict(&mut self, peer: EndpointId, out: &mut Vec<Output>) {
        if self.remove(&peer).is_some() {
            out.push(Output::Removed { peer, reason: Removal::Evicted });
        }
    }

    /// Ends what is known of a peer, and remembers it as dead. Returns whether anything was.
    fn end(
        &mut self,
        now: Instant,
        peer: &EndpointId,
        reason: Removal,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(entry) = self.remove(peer) else { return false };
        self.bury(now, &entry);
        out.push(Output::Removed { peer: *peer, reason });
        true
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<Output>) {
        loop {
            let record = self.places.first_over().map(|entry| (entry.expires(), entry.id()));
            let dead = self.timers.first().copied();
            let is_record_first = record.is_some_and(|(at, _)| {
                // At the same time the living come first.
                at <= now && dead.is_none_or(|(dead, _, _)| at <= dead)
            });
            match (record, dead) {
                (Some((_, peer)), _) if is_record_first => {
                    // Who has a place is known, so that it does not go around without end.
                    if !self.end(now, &peer, Removal::Expired, out) {
                        break;
                    }
                }
                (_, Some((at, due, peer))) if at <= now => {
                    self.timers.pop_first();
                    match due {
                        Due::Departure => {
                            self.known.departures.remove(peer.as_bytes());
                        }
                        Due::Grave => {
                            self.graves.remove(&peer);
                            self.forget_departure(&peer);
                        }
                    }
                }
                _ => break,
            }
        }
    }

    /// A known record came from somebody who is nearer than who told it before: more of its addresses may be used. Its owner does not
    /// answer for those if it told them from afar alone.
    fn come_nearer(
        &mut self,
        peer: &EndpointId,
        reach: Reach,
        is_owner: bool,
        out: &mut Vec<Output>,
    ) {
        let gains = |entry: &Arc<Entry>| {
            let usable = |reach| entry.record().addresses_from(reach).count();
            reach < entry.reach() && usable(reach) > usable(entry.reach())
        };
        if self.known.get(peer).is_some_and(gains) {
            self.rework(peer, |entry| {
                entry.set_reach(reach);
                entry.set_backed(is_owner);
            });
            if let Some(entry) = self.known.get(peer) {
                out.push(Output::Updated(entry.clone()));
            }
        }
    }

    /// Changes why a peer is kept.
    fn keep(&mut self, peer: EndpointId, change: impl FnOnce(&mut Kept)) {
        let known = self.known.peers.get(peer.as_bytes()).cloned();
        if let Some(known) = &known {
            self.unlist(known);
        }
        let kept = self.kept.entry(peer).or_default();
        change(kept);
        if kept.is_empty() {
            self.kept.remove(&peer);
        }
        if let Some(known) = &known {
            self.list(known);
        }
    }

    /// Changes what is known about a peer beside its record.
    fn rework(&mut self, peer: &EndpointId, change: impl FnOnce(&mut Entry)) {
        let Some(old) = self.known.peers.get(peer.as_bytes()).cloned() else { return };
        let mut entry = Entry::clone(&old.entry);
        change(&mut entry);
        self.replace(&old, old.with(Arc::new(entry)));
    }

    /// Puts what is known of a peer now in the place of what was.
    fn replace(&mut self, old: &Peer, peer: Peer) {
        self.unlist(old);
        self.places.replace(old.place, peer.entry.clone());
        self.list(&peer);
        self.known.replace(&old.entry, peer);
    }

    fn put(&mut self, entry: Arc<Entry>, from: Option<EndpointId>) {
        let peer = Peer::new(self.places.add(entry.clone(), from), entry);
        self.list(&peer);
        self.known.put(peer);
    }

    fn remove(&mut self, peer: &EndpointId) -> Option<Arc<Entry>> {
        let known = self.known.take(peer)?;
        self.unlist(&known);
        self.places.remove(known.place);
        Some(known.entry)
    }

    /// Enters a peer into the orders that depend on its standing and on what protects it.
    fn list(&mut self, peer: &Peer) {
        self.proven = self.proven.saturating_add(peer.entry.is_proven().into());
        if !self.kept.contains_key(&peer.entry.id()) {
            self.places.list(peer.place);
        }
    }

    /// Undoes [`list`](Self::list).
    fn unlist(&mut self, peer: &Peer) {
        self.proven = self.proven.saturating_sub(peer.entry.is_proven().into());
        self.places.unlist(peer.place);
    }

    /// Remembers what was known as dead.
    fn bury(&mut self, now: Instant, entry: &Entry) {
        self.dig(entry.id(), Grave::of(entry.record(), entry.received(), dead_until(now), true));
    }

    fn dig(&mut self, peer: EndpointId, grave: Grave) {
        let dug = self.graves.dig(peer, grave);
        if let Some(before) = dug.before {
            self.timers.remove(&(before.until, Due::Grave, peer));
        }
        if let Some((displaced, grave)) = dug.displaced {
            self.timers.remove(&(grave.until, Due::Grave, displaced));
            self.forget_departure(&displaced);
        }
        match self.graves.get(&peer) {
            Some(grave) => {
                self.timers.insert((grave.until, Due::Grave, peer));
            }
            None => self.forget_departure(&peer),
        }
    }

    fn forget_departure(&mut self, peer: &EndpointId) {
        if let Some(departure) = self.known.departures.remove(peer.as_bytes()) {
            let end = departure.entry.told().ends();
            self.timers.remove(&(end, Due::Departure, *peer));
        }
    }

    fn tick(&mut self, now: Instant) -> Instant {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        now
    }
}

/// A record that may be taken, and all that is known of how it came.
struct Arrival {
    sighting: Sighting,
    /// For how long from its receipt it holds.
    holds: Duration,
    from: Option<EndpointId>,
    reach: Reach,
    is_owner: bool,
}

/// For how long from its receipt a record holds by the clock of this node; `None` if it is over already.
fn remaining(now: Instant, sighting: &Sighting, is_owner: bool) -> Option<Duration> {
    let age = if is_owner { sighting.carried } else { sighting.age() };
    let remaining = sighting.record.ttl().as_duration().checked_sub(age)?;
    // Whole milliseconds, as it is kept.
    let remaining = Duration::from_millis(u64::try_from(remaining.as_millis()).ok()?);
    let expires = sighting.at.min(now).checked_add(remaining)?;
    (expires > now).then_some(remaining)
}

/// Until when a record that dies now is remembered.
fn dead_until(now: Instant) -> Instant {
    now.checked_add(DEAD_MEMORY).unwrap_or(now)
}
