//! A token bucket that can be asked when it has the next token, and takes tokens back.

use std::time::Instant;

use crate::gate::Rate;

/// A token bucket, kept as the time at which it will be full.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    rate: Rate,
    /// `None` while it is full.
    full_at: Option<Instant>,
}

impl Budget {
    pub(super) const fn new(rate: Rate) -> Self {
        Self { rate, full_at: None }
    }

    /// When there is a token: at once if none is missing, `None` if never.
    pub(super) fn next_at(&self, now: Instant) -> Option<Instant> {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
        let spare = self.rate.every.checked_mul(self.rate.burst.checked_sub(1)?)?;
        Some(full_at.checked_sub(spare).map_or(now, |at| at.max(now)))
    }

    pub(super) fn has(&self, now: Instant) -> bool {
        self.next_at(now).is_some_and(|at| at <= now)
    }

    /// Takes a token, which must be there.
    pub(super) fn take(&mut self, now: Instant) {
        let full_at = self.full_at.map_or(now, |full_at| full_at.max(now));
        self.full_at = full_at.checked_add(self.rate.every);
    }

    /// Takes a token back.
    pub(super) fn give_back(&mut self) {
        self.full_at = self.full_at.and_then(|full_at| full_at.checked_sub(self.rate.every));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    #[test]
    fn a_budget_grants_its_burst_and_then_one_token_per_interval() {
        let start = Instant::now();
        let mut budget = Budget::new(Rate::new(3, EVERY));
        for _ in 0..3 {
            assert!(budget.has(start));
            budget.take(start);
        }
        assert!(!budget.has(start));
        assert_eq!(budget.next_at(start), Some(start + EVERY));
        assert!(budget.has(start + EVERY));
        budget.take(start + EVERY);
        assert!(!budget.has(start + EVERY));
    }

    #[test]
    fn a_token_that_is_given_back_can_be_taken_again() {
        let now = Instant::now();
        let mut budget = Budget::new(Rate::new(1, EVERY));
        budget.take(now);
        assert!(!budget.has(now));
        budget.give_back();
        assert!(budget.has(now));
    }

    #[test]
    fn tokens_that_are_given_back_are_no_more_than_the_burst() {
        let now = Instant::now();
        let mut budget = Budget::new(Rate::new(2, EVERY));
        (0..5).for_each(|_| budget.give_back());
        budget.take(now);
        budget.take(now);
        assert!(!budget.has(now));
    }
}
