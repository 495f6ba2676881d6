//! Whom to join, and when: how the overlay grows, mends and merges from what the catalog knows.
//!
//! An overlay that fell into parts does not merge by itself, and joining everybody again and again costs n² messages. So only the
//! *difference* is joined: of the peers that were found since the last time, and not heard over the overlay itself, at most as
//! many as a node has neighbours, two at a time. Beside that a node with too few neighbours asks one peer, one without any asks
//! three, and every node asks one now and then, so that parts merge which nobody noticed: the catalog may have known all peers
//! throughout. Each pause is drawn anew, so that nodes do not ask in step. Peers that were missed a short while ago are not asked.
//!
//! To a node that has just begun everybody is a difference, although it is in one part with nearly all of them, and a join is
//! dear: whoever is joined takes the node in and names it to all its neighbours, each of which names it to one more that takes it in, and all of
//! them part with others for it, which makes some four streams. So a new node that has neighbours draws lots after each pause, such that
//! [`MERGERS`] nodes ask if all are new.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use iroh::EndpointId;
use kinfolk_core::catalog::Snapshot;
use kinfolk_core::errands::FEW_NEIGHBOURS;
use kinfolk_core::liveness::Standing;
use rand::rngs::ChaCha20Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};

use super::NEIGHBOURS;

/// Peers of the difference that are asked at once.
const AT_ONCE: usize = 2;
/// Peers that a node without neighbours asks at once.
const ALONE_AT_ONCE: usize = 3;

/// For so long a node is new: by then one of a thousand that began together knows all (simulated).
const NEW: Duration = Duration::from_secs(60);

/// New nodes that ask some of the difference after a pause, in the mean: that none of all does has a chance of e⁻⁸ (a guess). Of k of n
/// that have begun apart from the others none does with one of (1 - 8/n)ᵏ; those merge by whoever asks now and then.
const MERGERS: usize = 8;

/// Pauses before peers are asked, each drawn between half of it and the whole; all are guesses. The first two double
/// while nobody is found.
const ALONE: Duration = Duration::from_secs(2);
const LOW: Duration = Duration::from_secs(10);
const FOUND: Duration = Duration::from_secs(10);
const NOW_AND_THEN: Duration = Duration::from_secs(300);
/// The longest pause of a node without neighbours.
const ALONE_LONGEST: Duration = Duration::from_secs(60);

/// Places in the catalog that are looked at for somebody to ask, so that a catalog of peers that are all away costs little.
const LOOKED_AT: usize = 64;

/// Picks whom to join next.
#[derive(Debug)]
pub(super) struct Joins {
    /// Of the peers found since the last pick, an even sample.
    found: Vec<EndpointId>,
    found_in_all: u64,
    began: Instant,
    last: Instant,
    /// Picks in a row after which there was no new neighbour.
    futile: u32,
    /// The drawn part of the next pause.
    part: f64,
    /// Nothing was picked yet, or nobody could be: whoever is found next is asked at once.
    is_eager: bool,
    /// Nobody could be picked, so that there is nothing to be eager about until somebody is found.
    is_stuck: bool,
}

impl Joins {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            found: Vec::new(),
            found_in_all: 0,
            began: now,
            last: now,
            futile: 0,
            part: 1.0,
            is_eager: true,
            is_stuck: false,
        }
    }

    /// A peer is in the catalog that was not, or is reachable that was not.
    pub(super) fn found(&mut self, peer: EndpointId, rng: &mut ChaCha20Rng) {
        self.futile = 0;
        self.is_stuck = false;
        if self.found.contains(&peer) {
            return;
        }
        if self.found.is_empty() {
            self.found_in_all = 0;
        }
        self.found_in_all = self.found_in_all.saturating_add(1);
        if self.found.len() < NEIGHBOURS {
            self.found.push(peer);
        } else {
            let place = usize::try_from(rng.random_range(0..self.found_in_all));
            if let Some(kept) = place.ok().and_then(|place| self.found.get_mut(place)) {
                *kept = peer;
            }
        }
    }

    /// Those found need not be asked that are in this part of the overlay, nor any by a new node that has neighbours and draws a blank.
    pub(super) fn sift(
        &mut self,
        now: Instant,
        known: usize,
        neighbours: usize,
        is_here: impl Fn(&EndpointId) -> bool,
        rng: &mut ChaCha20Rng,
    ) {
        self.found.retain(|peer| !is_here(peer));
        let is_new = now.saturating_duration_since(self.began) < NEW;
        let draws = is_new && known > MERGERS && neighbours >= FEW_NEIGHBOURS;
        if draws && !self.found.is_empty() && rng.random_range(0..known) >= MERGERS {
            self.found.clear();
            self.is_eager = false;
            self.pause(now, rng);
        }
    }

    /// From now on there is a pause.
    fn pause(&mut self, now: Instant, rng: &mut ChaCha20Rng) {
        self.last = now;
        self.part = rng.random_range(0.5..=1.0);
    }

    /// There is one neighbour more or less.
    pub(super) fn changed(&mut self) {
        self.futile = 0;
    }

    /// When to pick next.
    pub(super) fn due_at(&self, neighbours: usize) -> Instant {
        if self.is_eager && !self.is_stuck {
            return self.last;
        }
        let doubled = |pause: Duration| {
            pause.saturating_mul(1_u32.checked_shl(self.futile.min(16)).unwrap_or(u32::MAX))
        };
        let pause = match neighbours {
            0 if self.is_stuck => ALONE_LONGEST,
            0 => doubled(ALONE).min(ALONE_LONGEST),
            _ if !self.found.is_empty() => FOUND,
            few if few < FEW_NEIGHBOURS => doubled(LOW).min(NOW_AND_THEN),
            _ => NOW_AND_THEN,
        };
        self.last.checked_add(pause.mul_f64(self.part)).unwrap_or(self.last)
    }

    /// Whom to ask now.
    pub(super) fn pick(
        &mut self,
        now: Instant,
        known: &Snapshot,
        neighbours: &BTreeSet<EndpointId>,
        rng: &mut ChaCha20Rng,
    ) -> Vec<EndpointId> {
        let may_be_asked = |peer: &EndpointId| {
            let entry = known.get(peer);
            !neighbours.contains(peer)
                && entry.is_some_and(|entry| entry.liveness().standing(now) != Standing::Doubtful)
        };
        self.found.retain(may_be_asked);
        self.found.shuffle(rng);
        let count = match neighbours.len() {
            0 => ALONE_AT_ONCE,
            enough if enough >= FEW_NEIGHBOURS && !self.found.is_empty() => AT_ONCE,
            _ => 1,
        };
        let mut picked = self.found.split_off(self.found.len().saturating_sub(count));
        if picked.len() < count {
            let mut place = [0; 32];
            rng.fill_bytes(&mut place);
            let somewhere = known.iter_from(&place).take(LOOKED_AT).map(|entry| entry.id());
            let others = somewhere.filter(|peer| may_be_asked(peer) && !picked.contains(peer));
            let others: Vec<_> = others.collect();
            let missing = count.saturating_sub(picked.len());
            picked.extend(others.sample(rng, missing));
        }
        self.is_stuck = neighbours.is_empty() && picked.is_empty();
        self.is_eager = self.is_stuck;
        self.futile = self.futile.saturating_add(1);
        self.pause(now, rng);
        picked
    }
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_new_node_that_draws_a_blank_pauses_before_it_draws_again_whoever_is_found() {
        const SECOND: Duration = Duration::from_secs(1);
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let start = Instant::now();
        let mut joins = Joins::new(start);
        let mut draws = 0;
        for second in 11..=40 {
            let now = start + second * SECOND;
            joins.found(SecretKey::from_bytes(&[second as u8; 32]).public(), &mut rng);
            if joins.due_at(NEIGHBOURS) <= now {
                draws += 1;
                // Of a million, so that it is a blank.
                joins.sift(now, 1_000_000, NEIGHBOURS, |_| false, &mut rng);
                assert!(joins.found.is_empty() && joins.due_at(NEIGHBOURS) > now);
            }
        }
        assert!((3..=7).contains(&draws), "{draws}");
        // Whoever lacks neighbours, or is new no more, draws no lots.
        joins.found(SecretKey::from_bytes(&[1; 32]).public(), &mut rng);
        let found = joins.found.len();
        joins.sift(start + 50 * SECOND, 1_000_000, FEW_NEIGHBOURS - 1, |_| false, &mut rng);
        joins.sift(start + NEW, 1_000_000, NEIGHBOURS, |_| false, &mut rng);
        assert_eq!(joins.found.len(), found);
    }
}
