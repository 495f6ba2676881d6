//! How long to wait before the next dial: a growing bound and, below it, a delay drawn from the caller's seed.
//!
//! It decides for [`PeerLink`](crate::peer_link::PeerLink), one value per peer. The bounds are 1, 5, 15, 60 s, 3 and
//! 10 min: the first forgives a dropped packet, the last keeps a vanished peer nearly free. The delay is uniform between half the bound
//! and the bound, so that peers which lost the same hub do not return in step, and none returns at once.
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
    attempts: u32,
}

impl Backoff {
    /// Starts with no failed attempt. Two peers want different seeds, or they return in step.
    pub fn new(seed: u64) -> Self {
        Self { seed, attempts: 0 }
    }

    /// How many attempts have failed since the last [`Backoff::reset`].
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Counts a failed attempt and returns how long to wait before the next.
    pub fn fail(&mut self) -> Duration {
        let delay = delay(self.seed, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        delay
    }

    /// How long to wait at least before the next attempt where none has failed.
    pub fn pause(&self) -> Duration {
        delay(self.seed, 0)
    }

    /// Forgets the failures: the peer has proven reachable.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// The bound that holds after `attempts` earlier failures.
pub fn bound(attempts: u32) -> Duration {
    let last = BOUNDS.len().saturating_sub(1);
    let index = usize::try_from(attempts).unwrap_or(last).min(last);
    BOUNDS.get(index).copied().unwrap_or(Duration::from_secs(600))
}

fn delay(seed: u64, attempts: u32) -> Duration {
    let half = bound(attempts).mul_f64(0.5);
    let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(u64::from(attempts)));
    let share = f64::from(rng.next_u32()) / f64::from(u32::MAX);
    half.saturating_add(half.mul_f64(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_delay_lies_between_half_its_bound_and_its_bound() {
        for seed in 0..500 {
            let mut backoff = Backoff::new(seed);
            for attempt in 0..10 {
                let delay = backoff.fail();
                assert!(delay >= bound(attempt) / 2, "{delay:?} at {attempt}");
                assert!(delay <= bound(attempt), "{delay:?} at {attempt}");
            }
        }
    }

    #[test]
    fn the_delay_grows_to_ten_minutes_and_stays_there() {
        let mut backoff = Backoff::new(7);
        for _ in 0..100 {
            backoff.fail();
        }
        assert_eq!(backoff.attempts(), 100);
        assert!(backoff.fail() >= Duration::from_secs(300));
    }

    #[test]
    fn a_reset_starts_again_at_the_first_bound() {
        let mut backoff = Backoff::new(7);
        backoff.fail();
        backoff.fail();
        backoff.reset();
        assert!(backoff.fail() <= BOUNDS[0]);
    }

    #[test]
    fn different_seeds_do_not_return_in_step() {
        let delays: std::collections::BTreeSet<_> =
            (0..100).map(|seed| Backoff::new(seed).fail()).collect();
        assert!(delays.len() > 90, "only {} different delays", delays.len());
    }
}
