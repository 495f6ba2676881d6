//! How long to wait before the next dial: a growing bound and, below it, a delay drawn from the caller's seed.
//!
//! It decides for [`PeerLink`](crate::peer_link::PeerLink), one value per peer. The bounds are 1, 5, 15, 60 s, 3 and
//! 10 min: the first forgives a dropped packet, the last keeps a vanished peer nearly free. The delay is uniform between half the bound
//! and the bound, so that peers which lost the same hub do not return in step, and none returns at once. A peer that says itself that it
//! is away for a moment is asked again after 5 s at most, however often it was missed before; for about a minute, then it counts as any other.
//! It never reads a clock; the delay of an attempt is a pure function of the seed and of the attempt's number.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Upper bounds of the delay after the first, second, … failed attempt; the last one repeats.
pub const BOUNDS: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(180),
    Duration::from_secs(600),
];

/// Counts failed attempts to reach one peer and says how long to wait after each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backoff {
    seed: u64,
    longest: Duration,
    attempts: u32,
    /// How many of them in a row the peer has announced.
    briefs: u32,
}

/// Attempts in a row that may fail because the peer is away for a moment, as it says: a minute at 2.5 to 5 s each. A drain takes 10 s and a
/// start less (a guess).
const BRIEFS_MAX: u32 = 16;

/// The attempt whose bound holds for a peer that announces that it is away for a moment.
const BRIEF: u32 = 1;

impl Backoff {
    /// Starts with no failed attempt; no bound is longer than `longest`. Two peers want different seeds, or they return in step.
    pub fn new(seed: u64, longest: Duration) -> Self {
        Self { seed, longest, attempts: 0, briefs: 0 }
    }

    /// How many attempts have failed since the last [`Backoff::reset`].
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Counts a failed attempt and returns how long to wait before the next.
    pub fn fail(&mut self) -> Duration {
        let delay = self.delay(self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        self.briefs = 0;
        delay
    }

    /// As [`Backoff::fail`], for a peer that is away for a moment, as it said: the delay does not grow beyond the second bound, and what failed
    /// counts once. A peer that says so for more than a minute is not believed.
    pub fn fail_briefly(&mut self) -> Duration {
        if self.briefs >= BRIEFS_MAX {
            let delay = self.delay(self.attempts);
            self.attempts = self.attempts.saturating_add(1);
            return delay;
        }
        self.briefs = self.briefs.saturating_add(1);
        let delay = self.delay(self.attempts.min(BRIEF));
        self.attempts = self.attempts.max(BRIEF);
        delay
    }

    /// How long to wait at least before the next attempt where none has failed.
    pub fn pause(&self) -> Duration {
        self.delay(0)
    }

    /// Forgets the failures: the peer has proven reachable.
    pub fn reset(&mut self) {
        self.attempts = 0;
        self.briefs = 0;
    }

    fn delay(&self, attempts: u32) -> Duration {
        let half = bound(attempts).min(self.longest).mul_f64(0.5);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(u64::from(attempts)));
        let share = f64::from(rng.next_u32()) / f64::from(u32::MAX);
        half.saturating_add(half.mul_f64(share))
    }
}

/// The bound that holds after `attempts` earlier failures.
pub fn bound(attempts: u32) -> Duration {
    let last = BOUNDS.len().saturating_sub(1);
    let index = usize::try_from(attempts).unwrap_or(last).min(last);
    BOUNDS.get(index).copied().unwrap_or(Duration::from_secs(600))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unbounded(seed: u64) -> Backoff {
        Backoff::new(seed, BOUNDS[BOUNDS.len() - 1])
    }

    #[test]
    fn every_delay_lies_between_half_its_bound_and_its_bound() {
        for seed in 0..500 {
            let mut backoff = unbounded(seed);
            for attempt in 0..10 {
                let delay = backoff.fail();
                assert!(delay >= bound(attempt) / 2, "{delay:?} at {attempt}");
                assert!(delay <= bound(attempt), "{delay:?} at {attempt}");
            }
        }
    }

    #[test]
    fn the_delay_grows_to_ten_minutes_and_stays_there() {
        let mut backoff = unbounded(7);
        for _ in 0..100 {
            backoff.fail();
        }
        assert_eq!(backoff.attempts(), 100);
        assert!(backoff.fail() >= Duration::from_secs(300));
    }

    #[test]
    fn no_delay_is_longer_than_the_longest() {
        let longest = Duration::from_secs(8);
        let mut backoff = Backoff::new(7, longest);
        let delays: Vec<_> = (0..10).map(|_| backoff.fail()).collect();
        assert!(delays.iter().all(|delay| *delay <= longest), "{delays:?}");
        assert!(delays[2..].iter().all(|delay| *delay >= longest / 2), "{delays:?}");
    }

    #[test]
    fn a_peer_that_is_away_for_a_moment_is_asked_again_soon_and_not_in_a_loop() {
        let mut backoff = unbounded(7);
        assert!(backoff.fail_briefly() <= BOUNDS[0]);
        for _ in 0..10 {
            let delay = backoff.fail_briefly();
            assert!(delay <= BOUNDS[1] && delay >= BOUNDS[1] / 2, "{delay:?}");
        }
        assert_eq!(backoff.attempts(), 1);
        for _ in 0..5 {
            backoff.fail();
        }
        assert!(backoff.fail_briefly() <= BOUNDS[1]);
        assert_eq!(backoff.attempts(), 6, "what failed before is not forgotten");
    }

    #[test]
    fn a_peer_that_is_always_away_for_a_moment_is_left_alone_for_longer_and_longer() {
        let mut backoff = unbounded(7);
        let delays: Vec<_> = (0..40).map(|_| backoff.fail_briefly()).collect();
        let brief = usize::try_from(BRIEFS_MAX).unwrap();
        assert!(
            delays[1..brief].iter().all(|delay| *delay <= BOUNDS[1] && *delay >= BOUNDS[1] / 2)
        );
        assert!(delays[30] >= Duration::from_secs(300), "{delays:?}");
    }

    #[test]
    fn a_reset_starts_again_at_the_first_bound() {
        let mut backoff = unbounded(7);
        backoff.fail();
        backoff.fail();
        backoff.reset();
        assert!(backoff.fail() <= BOUNDS[0]);
    }

    #[test]
    fn different_seeds_do_not_return_in_step() {
        let delays: std::collections::BTreeSet<_> =
            (0..100).map(|seed| unbounded(seed).fail()).collect();
        assert!(delays.len() > 90, "only {} different delays", delays.len());
    }
}
