//! How many peers may be dialled whose addresses are hearsay.

use std::time::Instant;

use super::ENOUGH;
use super::budget::Budget;
use crate::gate::Rate;

/// Pays for dials of peers whose addresses are hearsay, see [`View::is_hearsay`](super::View::is_hearsay): for those that fail by the rate
/// that it is made with, and for those that reach their peer too, as the other addresses of its record are dialled with the one at which it
/// is. Of these there may be [`ENOUGH`] at once, then as many as of the others.
#[derive(Debug, Clone)]
pub struct Hearsay {
    failures: Budget,
    successes: Budget,
}

impl Hearsay {
    /// A budget of which nothing was spent, with so many dials that may fail.
    #[must_use]
    pub fn new(failures: Rate) -> Self {
        let burst = u32::try_from(ENOUGH).unwrap_or(u32::MAX);
        let successes = Rate::new(burst, failures.every);
        Self { failures: Budget::new(failures), successes: Budget::new(successes) }
    }

    /// Whether [`take`](Self::take) would.
    #[must_use]
    pub fn has(&self, now: Instant) -> bool {
        self.failures.has(now) && self.successes.has(now)
    }

    /// Pays for a dial in advance, whatever will come of it, so that many at once do not pass before the first has failed. False if there
    /// is not enough left.
    #[must_use]
    pub fn take(&mut self, now: Instant) -> bool {
        let has = self.has(now);
        if has {
            self.failures.take(now);
            self.successes.take(now);
        }
        has
    }

    /// A dial that was paid for is over: takes back what it did not cost.
    pub fn settle(&mut self, is_reached: bool) {
        if is_reached {
            self.failures.give_back();
        } else {
            self.successes.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    fn dials(hearsay: &mut Hearsay, now: Instant, is_reached: bool) -> usize {
        let dial = |_: &usize| {
            let is_paid = hearsay.take(now);
            if is_paid {
                hearsay.settle(is_reached);
            }
            is_paid
        };
        (0..1000).take_while(dial).count()
    }

    #[test]
    fn dials_that_fail_and_dials_that_succeed_are_paid_from_budgets_of_their_own() {
        let now = Instant::now();
        let mut hearsay = Hearsay::new(Rate::new(4, EVERY));
        hearsay.take(now).then(|| hearsay.settle(false)).unwrap();
        assert_eq!(dials(&mut hearsay, now, true), ENOUGH);
        assert_eq!(dials(&mut hearsay, now, false), 0);
        assert_eq!(dials(&mut hearsay, now + EVERY, false), 4);
        assert_eq!(dials(&mut hearsay, now + 2 * EVERY, true), 2);
    }

    #[test]
    fn dials_that_are_under_way_are_paid_for() {
        let now = Instant::now();
        let mut hearsay = Hearsay::new(Rate::new(4, EVERY));
        let taken = (0..100).filter(|_| hearsay.take(now)).count();
        assert_eq!(taken, 4);
    }
}
