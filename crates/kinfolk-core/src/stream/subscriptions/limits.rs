//! How many [`Subscriptions`](super::Subscriptions) a consumer has and how eagerly it returns, each number with its unit and its reason.

use std::time::Duration;

use thiserror::Error;

/// How many subscriptions a consumer has and how eagerly it returns. Zeros, and times below 100 ms, are refused by
/// [`validate`](Self::validate).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionLimits {
    /// Sources that are tried or connected at once. Default 1 024: twice the sessions of a node, so that what is scarce there is what
    /// limits (a guess). Others that offer the stream wait until there is room.
    pub sources: usize,
    /// The longest wait before a source is tried again; see [`backoff`](crate::backoff). Default 60 s: a try costs one stream where there is a
    /// session, and where there is none the peer's own, longer backoff keeps it from being a dial.
    pub redial_max: Duration,
    /// A subscription that lived this long proves its source good: what failed before is forgotten. Default 15 s, longer than it takes to fail
    /// for whatever can fail in an attempt (a guess).
    pub stable_after: Duration,
    /// A source that refused for good, or broke the rules, is left alone for at least so long, whatever it announces. Default 10 min (a guess).
    pub forgive_after: Duration,
    /// Sources whose record is gone and of which is remembered, for [`forgive_after`](Self::forgive_after), how they stood; about 450 bytes each.
    /// Default 1 024, as many as are connected at once: when a network falls apart these are gone together.
    pub absent: usize,
}

impl Default for SubscriptionLimits {
    fn default() -> Self {
        Self {
            sources: 1_024,
            redial_max: Duration::from_secs(60),
            stable_after: Duration::from_secs(15),
            forgive_after: Duration::from_secs(600),
            absent: 1_024,
        }
    }
}

/// No time is shorter: what is retried, forgiven or proven in less is a loop.
const SHORTEST: Duration = Duration::from_millis(100);

/// No time is longer: longer ones would never come while anybody watches.
const LONGEST: Duration = Duration::from_hours(24);

/// Sources are tried all at once, and nothing else on a node is there in larger numbers.
const MOST: usize = 1 << 16;

impl SubscriptionLimits {
    /// Checks that somebody can be subscribed to within these limits.
    ///
    /// # Errors
    ///
    /// Names the first field that prevents it.
    pub fn validate(&self) -> Result<(), SubscriptionLimitError> {
        let Self { sources, redial_max, stable_after, forgive_after, absent } = self;
        let counts = [("sources", *sources), ("absent", *absent)];
        let times = [
            ("redial_max", *redial_max),
            ("stable_after", *stable_after),
            ("forgive_after", *forgive_after),
        ];
        for (field, count) in counts {
            if count == 0 {
                return Err(SubscriptionLimitError::Zero { field });
            }
            if count > MOST {
                return Err(SubscriptionLimitError::TooLarge { field });
            }
        }
        for (field, time) in times {
            if time < SHORTEST {
                return Err(SubscriptionLimitError::TooShort { field });
            }
            if time > LONGEST {
                return Err(SubscriptionLimitError::TooLarge { field });
            }
        }
        Ok(())
    }
}

/// Why [`SubscriptionLimits`] cannot be used. The app's configuration is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SubscriptionLimitError {
    /// Nobody would be subscribed to, or nothing remembered.
    #[error("subscription limit `{field}` must be above zero")]
    Zero {
        /// The field of [`SubscriptionLimits`].
        field: &'static str,
    },
    /// Sources would be tried in a loop.
    #[error("subscription limit `{field}` must be at least 100 ms")]
    TooShort {
        /// The field of [`SubscriptionLimits`].
        field: &'static str,
    },
    /// A time is longer than a day, or a count beyond what a node can serve.
    #[error("subscription limit `{field}` is too large")]
    TooLarge {
        /// The field of [`SubscriptionLimits`].
        field: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut SubscriptionLimits);

    #[test]
    fn limits_under_which_nobody_is_tried_or_somebody_in_a_loop_are_refused_by_name() {
        assert_eq!(SubscriptionLimits::default().validate(), Ok(()));
        let changes: [(&str, Change); 2] =
            [("sources", |limits| limits.sources = 0), ("absent", |limits| limits.absent = 0)];
        for (field, change) in changes {
            let mut limits = SubscriptionLimits::default();
            change(&mut limits);
            assert_eq!(limits.validate(), Err(SubscriptionLimitError::Zero { field }));
        }
        let changes: [(&str, Change); 3] = [
            ("redial_max", |limits| limits.redial_max = Duration::ZERO),
            ("stable_after", |limits| limits.stable_after = Duration::ZERO),
            ("forgive_after", |limits| limits.forgive_after = Duration::from_millis(99)),
        ];
        for (field, change) in changes {
            let mut limits = SubscriptionLimits::default();
            change(&mut limits);
            assert_eq!(limits.validate(), Err(SubscriptionLimitError::TooShort { field }));
        }
    }

    #[test]
    fn what_no_clock_and_no_node_can_carry_is_refused_by_name() {
        let changes: [(&str, Change); 5] = [
            ("sources", |limits| limits.sources = usize::MAX),
            ("redial_max", |limits| limits.redial_max = Duration::MAX),
            ("stable_after", |limits| limits.stable_after = Duration::MAX),
            ("forgive_after", |limits| limits.forgive_after = Duration::MAX),
            ("absent", |limits| limits.absent = usize::MAX),
        ];
        for (field, change) in changes {
            let mut limits = SubscriptionLimits::default();
            change(&mut limits);
            assert_eq!(limits.validate(), Err(SubscriptionLimitError::TooLarge { field }));
        }
    }
}
