//! Whether a peer of the catalog is worth contacting: how much it is doubted, and when it is asked again.
//!
//! It decides for whoever picks the next peer to talk to, one value per peer. A failed contact lowers the standing of a peer,
//! which is then asked again after 30 s, 1, 2, 4, 8 and at most 15 min; a successful contact, or a fresh record that the
//! peer signed, restores it at once. If it was this node's own network that failed, all may be asked at once when it is back. Nothing is stale for ever: however often a peer was missed, it is asked again. It
//! never removes a peer (its record expires), never dials, and never delays what the app itself asks for.

use std::time::{Duration, Instant};

/// How long a peer is left alone after the first, second, … failed contact in a row; the last one repeats. The first
/// is longer than a restart takes, the last keeps a vanished peer nearly free, and finds it again soon enough (a guess).
pub const DISTANCES: [Duration; 6] = [
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(240),
    Duration::from_secs(480),
    Duration::from_secs(900),
];

/// How a peer stands at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Nothing speaks against it.
    Good,
    /// It was missed, and may be asked again by now.
    Due,
    /// It was missed a short while ago.
    Doubtful,
}

/// Counts failed contacts in a row with one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Liveness {
    failures: u32,
    /// Set while there are failures.
    probe_at: Option<Instant>,
}

impl Liveness {
    /// That of a peer that nothing speaks against.
    pub(crate) const GOOD: Self = Self { failures: 0, probe_at: None };

    /// Counts a failed contact. One that fails before the peer is due again says nothing new, so that many callers who
    /// try at once do not make an outage longer than it is.
    pub fn failed(&mut self, now: Instant) {
        if self.standing(now) == Standing::Doubtful {
            return;
        }
        let last = DISTANCES.len().saturating_sub(1);
        let index = usize::try_from(self.failures).unwrap_or(last).min(last);
        let distance = DISTANCES.get(index).copied().unwrap_or_default();
        self.failures = self.failures.saturating_add(1);
        self.probe_at = Some(now.checked_add(distance).unwrap_or(now));
    }

    /// Forgets all failures: the peer was reached, or has signed a new record.
    pub fn restore(&mut self) {
        *self = Self::default();
    }

    /// The network of this node is back, so that what was missed before says little: a peer that was missed may be asked now, and counts as
    /// missed once.
    pub fn ask_now(&mut self, now: Instant) {
        if self.failures > 0 {
            *self = Self { failures: 1, probe_at: Some(now) };
        }
    }

    /// How the peer stands.
    pub fn standing(&self, now: Instant) -> Standing {
        match self.probe_at {
            None => Standing::Good,
            Some(at) if at <= now => Standing::Due,
            Some(_) => Standing::Doubtful,
        }
    }

    /// Failed contacts in a row, not counting those that came too early to say anything.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// When the peer is due again, if it was missed.
    pub const fn probe_at(&self) -> Option<Instant> {
        self.probe_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_was_never_missed_stands_well() {
        assert_eq!(Liveness::default().standing(Instant::now()), Standing::Good);
    }

    #[test]
    fn one_failure_is_not_held_against_a_peer_for_ever() {
        let now = Instant::now();
        let mut liveness = Liveness::default();
        liveness.failed(now);
        assert_eq!(liveness.standing(now), Standing::Doubtful);
        assert_eq!(liveness.standing(now + DISTANCES[0]), Standing::Due);
    }

    #[test]
    fn a_peer_that_is_missed_again_and_again_is_asked_at_growing_distance_but_asked() {
        let mut now = Instant::now();
        let mut liveness = Liveness::default();
        let mut distances = Vec::new();
        for _ in 0..100 {
            liveness.failed(now);
            let due = liveness.probe_at().unwrap();
            distances.push(due - now);
            now = due;
            assert_eq!(liveness.standing(now), Standing::Due);
        }
        assert_eq!(distances[..6], DISTANCES);
        assert!(distances.is_sorted());
        assert!(distances[6..].iter().all(|distance| *distance == DISTANCES[5]));
    }

    #[test]
    fn many_failures_at_once_are_one() {
        let now = Instant::now();
        let mut liveness = Liveness::default();
        for _ in 0..50 {
            liveness.failed(now);
        }
        assert_eq!(liveness.failures(), 1);
        assert_eq!(liveness.probe_at(), Some(now + DISTANCES[0]));
    }

    #[test]
    fn a_missed_peer_that_may_be_asked_now_is_due_and_left_alone_as_one_that_was_missed_once() {
        let mut now = Instant::now();
        let mut liveness = Liveness::default();
        liveness.ask_now(now);
        assert_eq!(liveness, Liveness::GOOD);
        for _ in 0..6 {
            liveness.failed(now);
            now = liveness.probe_at().unwrap();
        }
        liveness.failed(now);
        liveness.ask_now(now);
        assert_eq!(liveness.standing(now), Standing::Due);
        liveness.failed(now);
        assert_eq!(liveness.probe_at(), Some(now + DISTANCES[1]));
    }

    #[test]
    fn a_peer_that_is_restored_stands_as_if_nothing_had_been() {
        let now = Instant::now();
        let mut liveness = Liveness::default();
        liveness.failed(now);
        liveness.restore();
        assert_eq!(liveness.standing(now), Standing::Good);
        assert_eq!(liveness, Liveness::default());
    }
}
