//! Bounds on typed streams.

use thiserror::Error;

use crate::stream::subscribers::{SubscriberLimitError, SubscriberLimits};
use crate::stream::subscriptions::{SubscriptionLimitError, SubscriptionLimits};

/// How many producers and consumers a node has, and how many peers each.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamLimits {
    /// Producers at once; the app's own number, so only a guard against a leak. A record has room for a dozen offers, so that it may be reached first.
    pub producers: usize,
    /// Consumers at once; as above.
    pub consumers: usize,
    /// Who may subscribe to each producer.
    pub subscribers: SubscriberLimits,
    /// To whom each consumer subscribes.
    pub subscriptions: SubscriptionLimits,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            producers: 256,
            consumers: 256,
            subscribers: SubscriberLimits::default(),
            subscriptions: SubscriptionLimits::default(),
        }
    }
}

/// Why bounds on streams cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamLimitError {
    /// One that has to be positive is zero.
    #[error("limit `{0}` of streams must be larger than zero")]
    Zero(&'static str),
    /// One of a producer's subscribers is.
    #[error(transparent)]
    Subscribers(#[from] SubscriberLimitError),
    /// One of a consumer's subscriptions is.
    #[error(transparent)]
    Subscriptions(#[from] SubscriptionLimitError),
}

impl StreamLimits {
    /// Whether there can be any streams.
    ///
    /// # Errors
    ///
    /// If there cannot.
    pub fn validate(&self) -> Result<(), StreamLimitError> {
        if self.producers == 0 {
            return Err(StreamLimitError::Zero("producers"));
        }
        if self.consumers == 0 {
            return Err(StreamLimitError::Zero("consumers"));
        }
        self.subscribers.validate()?;
        self.subscriptions.validate()?;
        Ok(())
    }
}
