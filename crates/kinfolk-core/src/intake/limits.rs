//! What an [`Intake`](super::Intake) may spend, each number with its unit and its reason.

use std::time::Duration;

use thiserror::Error;

use crate::bucket::{Rate, RateError};

/// What an [`Intake`](super::Intake) may spend. Zeros are refused by [`validate`](Self::validate); an intake built with
/// them all the same checks nothing where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntakeLimits {
    /// Checks of signatures in total. Default 4 000 at once, then 2 000 per second: at some 50 µs each a tenth of a core;
    /// the burst lets a newcomer's first exchange pass at full speed.
    pub checks: Rate,
    /// Checks per source. Default 2 000 at once, then 500 per second, a quarter of the whole: a single source gets no
    /// further than that in the long run, and cannot empty the whole at once (a guess).
    pub checks_per_source: Rate,
    /// Sources remembered; about 200 bytes each. Default 1 024, twice the sessions of a node; one that has not been heard
    /// for four seconds needs no place.
    pub sources: usize,
}

impl Default for IntakeLimits {
    fn default() -> Self {
        Self {
            checks: Rate::new(4_000, Duration::from_micros(500)),
            checks_per_source: Rate::new(2_000, Duration::from_millis(2)),
            sources: 1_024,
        }
    }
}

/// Beyond this many sources the table is no longer small.
const MOST_SOURCES: usize = 1 << 16;

impl IntakeLimits {
    /// Checks that records can come in at all, and that no source can use up what is there for all.
    ///
    /// # Errors
    ///
    /// Names the first field that is at fault.
    pub fn validate(&self) -> Result<(), IntakeLimitError> {
        let Self { checks, checks_per_source, sources } = self;
        for (field, rate) in [("checks", checks), ("checks_per_source", checks_per_source)] {
            rate.validate().map_err(|error| IntakeLimitError::Rate { field, error })?;
        }
        if *sources == 0 {
            return Err(IntakeLimitError::Zero { field: "sources" });
        }
        if *sources > MOST_SOURCES {
            return Err(IntakeLimitError::TooLarge { field: "sources" });
        }
        if checks_per_source.burst > checks.burst || checks_per_source.every < checks.every {
            return Err(IntakeLimitError::Order);
        }
        Ok(())
    }
}

/// Why [`IntakeLimits`] cannot be used. The app's configuration is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IntakeLimitError {
    /// A rate is unusable.
    #[error("intake limit `{field}` is unusable")]
    Rate {
        /// The field of [`IntakeLimits`].
        field: &'static str,
        /// Why.
        #[source]
        error: RateError,
    },
    /// Nobody could hand anything over.
    #[error("intake limit `{field}` must be above zero")]
    Zero {
        /// The field of [`IntakeLimits`].
        field: &'static str,
    },
    /// The table would not stay small.
    #[error("intake limit `{field}` must not exceed {MOST_SOURCES}")]
    TooLarge {
        /// The field of [`IntakeLimits`].
        field: &'static str,
    },
    /// One source would get more than there is.
    #[error("intake limit `checks_per_source` must not exceed `checks`")]
    Order,
}
