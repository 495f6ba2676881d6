//! What an announcer remembers of payloads: which it has passed on or turned away, and which were promised to it.
//!
//! It decides nothing but what is forgotten when. `iroh_gossip::proto` remembers payloads too, and forgets promises only
//! when a neighbour goes; see [`Promises`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use iroh::EndpointId;

use super::frame::PayloadId;

/// How long a payload is remembered by its name: less than `iroh_gossip` does, so that a payload which it has forgotten
/// is checked anew before it is passed on anew.
const SEEN_FOR: Duration = Duration::from_secs(80);

/// Payloads remembered; some 150 bytes each. What five neighbours may relay in `SEEN_FOR` at the default rate, twice. The
/// one remembered longest is forgotten first: that costs another check, and relays nothing unchecked.
const SEEN_MAX: usize = 8192;

/// What became of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was passed on: another copy only says how the tree of neighbours should grow.
    Relayed,
    /// It was turned away.
    Refused,
}

/// The payloads of late. Names are hashes, so nobody can choose what another payload is remembered as.
#[derive(Debug, Default)]
pub(super) struct Seen {
    fates: BTreeMap<PayloadId, Fate>,
    order: VecDeque<(Instant, PayloadId)>,
}

impl Seen {
    pub(super) fn fate(&self, id: &PayloadId) -> Option<Fate> {
        self.fates.get(id).copied()
    }

    pub(super) fn remember(&mut self, now: Instant, id: PayloadId, fate: Fate) {
        if self.fates.insert(id, fate).is_none() {
            self.order.push_back((now, id));
        }
        self.forget(now);
    }

    pub(super) fn forget(&mut self, now: Instant) {
        while let Some((since, id)) = self.order.front()
            && (self.order.len() > SEEN_MAX || now.saturating_duration_since(*since) >= SEEN_FOR)
        {
            self.fates.remove(id);
            self.order.pop_front();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.fates.len()
    }
}

/// Promises that may wait for their payload at once; some 200 bytes each, as much again in `iroh_gossip` (a guess).
const PROMISES_MAX: usize = 1024;

/// How long a promise is remembered: `iroh_gossip` has by then asked everybody who made it, one after the other, with
/// the timeouts that we give it.
pub(super) const PROMISED_FOR: Duration = Duration::from_secs(10);

/// The payloads that neighbours say they have and that have not come, as many as `iroh_gossip` keeps: it keeps a promise
/// that nobody honours until the next neighbour goes, whichever; so the announcer tells it of one now and then.
#[derive(Debug, Default)]
pub(super) struct Promises {
    promised: BTreeMap<PayloadId, (Instant, BTreeSet<EndpointId>)>,
}

impl Promises {
    /// Whether this promise is news; `None` if there is no room for it. Said again by the same peer it would only make
    /// `iroh_gossip` ask that peer again.
    pub(super) fn make(&mut self, now: Instant, peer: EndpointId, id: PayloadId) -> Option<bool> {
        if !self.promised.contains_key(&id) && self.promised.len() >= PROMISES_MAX {
            return None;
        }
        let (_, peers) = self.promised.entry(id).or_insert((now, BTreeSet::new()));
        Some(peers.insert(peer))
    }

    pub(super) fn keep(&mut self, id: &PayloadId) {
        self.promised.remove(id);
    }

    pub(super) fn forget(&mut self, now: Instant) {
        let is_young = |since: Instant| now.saturating_duration_since(since) < PROMISED_FOR;
        self.promised.retain(|_, (since, _)| is_young(*since));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.promised.len()
    }
}
