//! How many [`Subscribers`](super::Subscribers) a producer has, each number with its unit and its reason.

use std::time::Duration;

use thiserror::Error;

use crate::bucket::{Rate, RateError};

/// How many subscribers a producer has. Zeros are refused by [`validate`](Self::validate).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriberLimits {
    /// Places in total; about 320 bytes each, beside what the producer keeps for a stream. Default 4 096: eight times the sessions of a
    /// node, so that the streams of one producer are never what is scarce (a guess).
    pub total: usize,
    /// Places per peer. Default 8: the consumers that the parts of one app would have, few enough that 512 peers fit beside each other (a guess).
    pub per_peer: usize,
    /// How long the check of a ticket may take. Default 10 s: it may ask another node, or a server (a guess).
    pub ticket_check: Duration,
    /// Renewals per subscriber: each costs a check. Default 8 at once, then one per 10 s: tickets live for minutes; a consumer beyond it is
    /// ended (a guess).
    pub renewals: Rate,
}

impl Default for SubscriberLimits {
    fn default() -> Self {
        Self {
            total: 4_096,
            per_peer: 8,
            ticket_check: Duration::from_secs(10),
            renewals: Rate::new(8, Duration::from_secs(10)),
        }
    }
}

/// More subscribers than these no node can serve: 320 MiB.
const MOST: usize = 1 << 20;

/// A check that takes longer holds its place for nothing.
const LONGEST: Duration = Duration::from_hours(1);

impl SubscriberLimits {
    /// Checks that somebody can subscribe within these limits.
    ///
    /// # Errors
    ///
    /// Names the first field that prevents it.
    pub fn validate(&self) -> Result<(), SubscriberLimitError> {
        let Self { total, per_peer, ticket_check, renewals } = self;
        for (field, count) in [("total", *total), ("per_peer", *per_peer)] {
            if count == 0 {
                return Err(SubscriberLimitError::Zero { field });
            }
            if count > MOST {
                return Err(SubscriberLimitError::TooLarge { field });
            }
        }
        if ticket_check.is_zero() {
            return Err(SubscriberLimitError::Zero { field: "ticket_check" });
        }
        if *ticket_check > LONGEST {
            return Err(SubscriberLimitError::TooLarge { field: "ticket_check" });
        }
        renewals
            .validate()
            .map_err(|source| SubscriberLimitError::Rate { field: "renewals", source })
    }
}

/// Why [`SubscriberLimits`] cannot be used. The app's configuration is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SubscriberLimitError {
    /// Nobody could subscribe.
    #[error("subscriber limit `{field}` must be above zero")]
    Zero {
        /// The field of [`SubscriberLimits`].
        field: &'static str,
    },
    /// More than a node can serve, or longer than a check may take.
    #[error("subscriber limit `{field}` is too large")]
    TooLarge {
        /// The field of [`SubscriberLimits`].
        field: &'static str,
    },
    /// A rate is none.
    #[error("subscriber limit `{field}` cannot be used")]
    Rate {
        /// The field of [`SubscriberLimits`].
        field: &'static str,
        /// Why.
        source: RateError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_under_which_nobody_can_subscribe_are_refused_by_name() {
        assert_eq!(SubscriberLimits::default().validate(), Ok(()));
        type Change = fn(&mut SubscriberLimits);
        let zeros: [(&str, Change); 3] = [
            ("total", |limits| limits.total = 0),
            ("per_peer", |limits| limits.per_peer = 0),
            ("ticket_check", |limits| limits.ticket_check = Duration::ZERO),
        ];
        for (field, change) in zeros {
            let mut limits = SubscriberLimits::default();
            change(&mut limits);
            assert_eq!(limits.validate(), Err(SubscriberLimitError::Zero { field }));
        }
        let rate = Rate::new(0, Duration::from_secs(1));
        let limits = SubscriberLimits { renewals: rate, ..SubscriberLimits::default() };
        let refused = SubscriberLimitError::Rate { field: "renewals", source: RateError::Zero };
        assert_eq!(limits.validate(), Err(refused));
    }

    #[test]
    fn limits_that_no_node_can_keep_are_refused_by_name() {
        type Change = fn(&mut SubscriberLimits);
        let changes: [(&str, Change); 3] = [
            ("total", |limits| limits.total = usize::MAX),
            ("per_peer", |limits| limits.per_peer = usize::MAX),
            ("ticket_check", |limits| limits.ticket_check = Duration::MAX),
        ];
        for (field, change) in changes {
            let mut limits = SubscriberLimits::default();
            change(&mut limits);
            assert_eq!(limits.validate(), Err(SubscriberLimitError::TooLarge { field }));
        }
    }
}
