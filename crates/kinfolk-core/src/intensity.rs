//! Restart intensity: how many failures within a period are still bad luck.
//!
//! It decides for supervisors (restart once more, or give up with the cause) and for
//! [`PeerLink`](crate::peer_link::PeerLink) (keep talking to a peer whose sessions panic, or quarantine it). The rule is
//! Erlang/OTP's: at most `max` failures in any `period`. It never restarts anything itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Remembers the latest failures, at most `max` of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Intensity {
    max: usize,
    period: Duration,
    failures: VecDeque<Instant>,
}

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Within the limit; it was the n-th of the current period, counted from 1.
    Tolerated(usize),
    /// More than the limit allows.
    Exceeded,
}

impl Intensity {
    /// Tolerates `max` failures within any `period`.
    pub fn new(max: usize, period: Duration) -> Self {
        Self { max, period, failures: VecDeque::new() }
    }

    /// Counts a failure at `now`.
    pub fn fail(&mut self, now: Instant) -> Verdict {
        while self
            .failures
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= self.period)
        {
            self.failures.pop_front();
        }
        if self.failures.len() >= self.max {
            return Verdict::Exceeded;
        }
        self.failures.push_back(now);
        Verdict::Tolerated(self.failures.len())
    }

    /// Forgets all failures.
    pub fn clear(&mut self) {
        self.failures.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failure_after_the_last_tolerated_one_exceeds() {
        let start = Instant::now();
        let mut intensity = Intensity::new(5, Duration::from_secs(10));
        for n in 1..=5 {
            assert_eq!(intensity.fail(start), Verdict::Tolerated(n));
        }
        assert_eq!(intensity.fail(start), Verdict::Exceeded);
    }

    #[test]
    fn failures_older_than_the_period_do_not_count() {
        let start = Instant::now();
        let mut intensity = Intensity::new(2, Duration::from_secs(10));
        for n in 0..50 {
            let now = start + Duration::from_secs(5 * n);
            assert!(matches!(intensity.fail(now), Verdict::Tolerated(_)), "failure {n}");
        }
    }
}
