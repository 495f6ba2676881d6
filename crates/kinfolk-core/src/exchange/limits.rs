//! What one exchange may cost, each number with its unit and its reason.

use std::time::Duration;

use crate::catalog::UNDER_WAY;
use crate::wire::exchange::{ACCEPTS_MIN, MESSAGE_MAX, TURNS_MAX};

/// What one exchange may cost. The bounds that both sides have to agree on are constants of [`wire::exchange`](crate::wire::exchange).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeLimits {
    /// Bytes that this node sends at most, and that it lets the peer send, prefixes included. Default 1 MiB: some 4 000 records of
    /// 250 bytes, so that a newcomer to a network of 10 000 is done after three exchanges, with three peers (a guess).
    pub bytes: u32,
    /// How long the whole may take. Default 30 s: 1 MiB each way then needs 280 kbit/s. At most [`UNDER_WAY`], or what a peer said before would be taken
    /// for what it says now.
    pub deadline: Duration,
    /// How long the peer may be silent when it is its turn. Default 10 s, as long as QUIC waits for a connection: an answer takes
    /// a round trip and some milliseconds.
    pub silence: Duration,
}

impl Default for ExchangeLimits {
    fn default() -> Self {
        Self {
            bytes: 1024 * 1024,
            deadline: Duration::from_secs(30),
            silence: Duration::from_secs(10),
        }
    }
}

/// No more fits into the messages of one exchange.
const BYTES_MOST: u32 = TURNS_MAX.saturating_mul(MESSAGE_MAX as u32);

impl ExchangeLimits {
    /// Checks that an exchange can take place, and end.
    ///
    /// # Errors
    ///
    /// Names the first field that does not allow it.
    pub fn validate(&self) -> Result<(), ExchangeLimitError> {
        if !(ACCEPTS_MIN..=BYTES_MOST).contains(&self.bytes) {
            return Err(ExchangeLimitError::Bytes { bytes: self.bytes });
        }
        for (field, time) in [("deadline", self.deadline), ("silence", self.silence)] {
            if time.is_zero() || time > UNDER_WAY {
                return Err(ExchangeLimitError::Time { field });
            }
        }
        Ok(())
    }
}

/// Why [`ExchangeLimits`] cannot be used. The app's configuration is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeLimitError {
    /// Fewer bytes than every peer must take, or more than fit into one exchange.
    #[error("exchange limit `bytes` must be {ACCEPTS_MIN} to {BYTES_MOST}, is {bytes}")]
    Bytes {
        /// The limit that was asked for.
        bytes: u32,
    },
    /// A time that is zero or too long.
    #[error("exchange limit `{field}` must be above zero and at most {UNDER_WAY:?}")]
    Time {
        /// The field of [`ExchangeLimits`].
        field: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_checked() {
        let limits = ExchangeLimits::default();
        assert_eq!(limits.validate(), Ok(()));
        for bytes in [0, ACCEPTS_MIN - 1, BYTES_MOST + 1, u32::MAX] {
            let error = ExchangeLimitError::Bytes { bytes };
            assert_eq!(ExchangeLimits { bytes, ..limits.clone() }.validate(), Err(error));
        }
        for time in [Duration::ZERO, UNDER_WAY + Duration::from_nanos(1)] {
            let error = |field| Err(ExchangeLimitError::Time { field });
            let late = ExchangeLimits { deadline: time, ..limits.clone() };
            assert_eq!(late.validate(), error("deadline"));
            let silent = ExchangeLimits { silence: time, ..limits.clone() };
            assert_eq!(silent.validate(), error("silence"));
        }
    }
}
