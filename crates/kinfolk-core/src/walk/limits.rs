//! How fast and how far a [`Walk`](super::Walk) goes, each number with its unit and its reason.

use std::time::Duration;

use crate::gate::Rate;

/// How fast and how far one walker goes. Zeros and what contradicts itself are refused by [`validate`](Self::validate).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkLimits {
    /// The longest pause between two visits while there is news; no wait is bounded by less. Default 10 ms: it keeps walkers that began together from
    /// going on in step, and costs a network of 40 nodes some 50 ms in all.
    pub pause: Duration,
    /// The longest wait after the first visit that brought nothing new; it doubles with each further one. Default 50 ms, a
    /// round trip across a continent: what is new there has a chance to have spread (a guess).
    pub first_wait: Duration,
    /// The longest wait of all. Default 5 min: 200 walks in a network at rest cost their peers one exchange a second.
    pub longest_wait: Duration,
    /// The shortest time between two exchanges with the same peer; wake-ups are exempt. Default 10 s.
    pub revisit: Duration,
    /// Visits in total, whatever news there is. Default 32 at once, enough to get to know a whole network; then one per
    /// 10 s, at which the changes of 10 000 nodes, 11 a second, come by the hundred. A peer that makes up news without end
    /// gets no more.
    pub visits: Rate,
    /// Visits to peers whose addresses are hearsay: anybody's address may stand there. A walk that has met few peers may fail with
    /// so many of them, and reach [`ENOUGH`](super::ENOUGH), then one per interval; one that has met enough tries one per interval. As many
    /// may fail of peers that have shown up. Default 4 at once, then one per hour: whatever records there are, n nodes with one walker each
    /// dial a victim at most n/20 times a minute on average, after at most 24 n dials that were saved up, and most of these only if their
    /// peers are there as well. With 4, a newcomer gets past a network in which a third cannot be dialled.
    pub hearsay: Rate,
    /// Visited peers that are remembered; about 150 bytes each. Default 256. With more visits than these within
    /// [`revisit`](Self::revisit), the walk waits.
    pub visited: usize,
    /// After this time a visit that has not ended counts as failed, and the walk goes on without it. A net under the
    /// deadlines of dial and exchange, therefore longer than these together. Default 2 min (a guess).
    pub patience: Duration,
}

impl Default for WalkLimits {
    fn default() -> Self {
        Self {
            pause: Duration::from_millis(10),
            first_wait: Duration::from_millis(50),
            longest_wait: Duration::from_secs(300),
            revisit: Duration::from_secs(10),
            visits: Rate::new(32, Duration::from_secs(10)),
            hearsay: Rate::new(4, Duration::from_secs(3600)),
            visited: 256,
            patience: Duration::from_secs(120),
        }
    }
}

/// No time of a walk is longer: longer ones would never come while anybody watches.
const LONGEST: Duration = Duration::from_hours(24);

/// Nobody needs to remember more visits, and their times have to stay few enough to look through.
const MOST: usize = 1 << 16;

impl WalkLimits {
    /// Checks that a walk can go on within these limits.
    ///
    /// # Errors
    ///
    /// Names the first field that prevents it.
    pub fn validate(&self) -> Result<(), WalkLimitError> {
        let Self { pause, first_wait, longest_wait, revisit, visits, hearsay, visited, patience } =
            self;
        let times = [
            ("pause", *pause),
            ("first_wait", *first_wait),
            ("longest_wait", *longest_wait),
            ("revisit", *revisit),
            ("patience", *patience),
            ("visits", visits.every),
            ("hearsay", hearsay.every),
        ];
        let counts = [
            ("visits", usize::try_from(visits.burst).unwrap_or(usize::MAX)),
            ("hearsay", usize::try_from(hearsay.burst).unwrap_or(usize::MAX)),
            ("visited", *visited),
        ];
        for (field, time) in times {
            if time.is_zero() {
                return Err(WalkLimitError::Zero { field });
            }
            if time > LONGEST {
                return Err(WalkLimitError::TooLarge { field });
            }
        }
        for (field, count) in counts {
            if count == 0 {
                return Err(WalkLimitError::Zero { field });
            }
            if count > MOST {
                return Err(WalkLimitError::TooLarge { field });
            }
        }
        if pause > longest_wait || first_wait > longest_wait {
            return Err(WalkLimitError::LongestIsShorter);
        }
        Ok(())
    }
}

/// Why [`WalkLimits`] cannot be used. The app's configuration is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalkLimitError {
    /// The walk would never go, or never rest.
    #[error("walk limit `{field}` must be above zero")]
    Zero {
        /// The field of [`WalkLimits`].
        field: &'static str,
    },
    /// A time is longer than a day, or a count beyond what can be looked through.
    #[error("walk limit `{field}` is too large")]
    TooLarge {
        /// The field of [`WalkLimits`].
        field: &'static str,
    },
    /// The longest wait is not the longest.
    #[error("walk limit `longest_wait` must not be shorter than `pause` and `first_wait`")]
    LongestIsShorter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(WalkLimits::default().validate(), Ok(()));
    }

    type Change = fn(&mut WalkLimits);

    #[test]
    fn a_zero_in_any_field_is_refused_by_name() {
        let changes: [(&str, Change); 10] = [
            ("pause", |limits| limits.pause = Duration::ZERO),
            ("first_wait", |limits| limits.first_wait = Duration::ZERO),
            ("longest_wait", |limits| limits.longest_wait = Duration::ZERO),
            ("revisit", |limits| limits.revisit = Duration::ZERO),
            ("patience", |limits| limits.patience = Duration::ZERO),
            ("visits", |limits| limits.visits.burst = 0),
            ("visits", |limits| limits.visits.every = Duration::ZERO),
            ("hearsay", |limits| limits.hearsay.burst = 0),
            ("hearsay", |limits| limits.hearsay.every = Duration::ZERO),
            ("visited", |limits| limits.visited = 0),
        ];
        for (field, change) in changes {
            let mut limits = WalkLimits::default();
            change(&mut limits);
            assert_eq!(limits.validate(), Err(WalkLimitError::Zero { field }));
        }
    }

    #[test]
    fn what_no_clock_and_no_table_can_carry_is_refused_by_name() {
        let changes: [(&str, Change); 4] = [
            ("longest_wait", |limits| limits.longest_wait = Duration::MAX),
            ("hearsay", |limits| limits.hearsay.every = Duration::MAX),
            ("hearsay", |limits| limits.hearsay.burst = u32::MAX),
            ("visited", |limits| limits.visited = usize::MAX),
        ];
        for (field, change) in changes {
            let mut limits = WalkLimits::default();
            change(&mut limits);
            assert_eq!(limits.validate(), Err(WalkLimitError::TooLarge { field }));
        }
    }

    #[test]
    fn a_longest_wait_that_is_not_the_longest_is_refused() {
        let limits =
            WalkLimits { longest_wait: Duration::from_millis(20), ..WalkLimits::default() };
        assert_eq!(limits.validate(), Err(WalkLimitError::LongestIsShorter));
    }
}
