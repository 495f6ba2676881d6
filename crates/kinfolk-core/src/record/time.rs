//! The two times that a record carries: when it was signed, by its signer's clock, and for how long it holds.

use std::time::Duration;

use thiserror::Error;

/// Milliseconds since the start of 1970, by somebody's wall clock. It orders nothing: clocks are wrong, and go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(u64);

impl UnixMillis {
    /// The time with this number.
    pub const fn new(millis: u64) -> Self {
        Self(millis)
    }

    /// The time this long after the start of 1970.
    pub fn from_unix(since: Duration) -> Self {
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// How long before this time `earlier` was; zero if it was not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// How long a record holds after it was signed: one second to [`Ttl::MAX`], in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(u32);

/// Why a number is no [`Ttl`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected a time to live of 1 to 86400 seconds, came {secs}")]
pub struct TtlError {
    /// The seconds that were asked for.
    pub secs: u64,
}

impl Ttl {
    /// The longest: a day. It bounds how long a node that vanished is listed, and how long the dead have to be remembered.
    pub const MAX: Self = Self(24 * 60 * 60);

    /// Half an hour: refreshing 10 000 records that often costs some 1 KB/s (a guess).
    pub const DEFAULT: Self = Self(30 * 60);

    /// A time to live of this many seconds.
    pub const fn from_secs(secs: u32) -> Result<Self, TtlError> {
        if secs == 0 || secs > Self::MAX.0 {
            return Err(TtlError { secs: secs as u64 });
        }
        Ok(Self(secs))
    }

    /// The whole seconds of this time.
    pub fn from_duration(time: Duration) -> Result<Self, TtlError> {
        let secs = time.as_secs();
        u32::try_from(secs).map_err(|_| TtlError { secs }).and_then(Self::from_secs)
    }

    /// The seconds.
    pub const fn as_secs(self) -> u32 {
        self.0
    }

    /// The time.
    pub const fn as_duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_between_a_second_and_a_day() {
        for secs in [1, 1800, 86_400] {
            assert_eq!(Ttl::from_secs(secs).map(Ttl::as_secs), Ok(secs));
        }
        for secs in [0, 86_401, u32::MAX] {
            assert_eq!(Ttl::from_secs(secs), Err(TtlError { secs: secs.into() }));
        }
        assert!(Ttl::from_duration(Duration::from_millis(999)).is_err());
        assert!(Ttl::from_duration(Duration::MAX).is_err());
        assert_eq!(Ttl::from_duration(Duration::from_millis(1999)), Ttl::from_secs(1));
    }

    #[test]
    fn a_time_that_no_number_holds_is_the_largest() {
        assert_eq!(UnixMillis::from_unix(Duration::MAX).get(), u64::MAX);
    }

    #[test]
    fn nothing_is_earlier_than_an_earlier_time() {
        let (early, late) = (UnixMillis::new(5), UnixMillis::new(9));
        assert_eq!(late.since(early), Duration::from_millis(4));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
