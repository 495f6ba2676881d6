//! What the announcer of a node may cause and believe, each number with its unit and its reason.

use std::time::Duration;

use thiserror::Error;

use crate::bucket::{Rate, RateError};
use crate::record::Ttl;

/// The bounds of the announcer. Nodes of one network do best with the same ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnounceLimits {
    /// The longest time between two announcements of a record that has not changed; each time is drawn between half of it
    /// and the whole, and is never longer than two thirds of the record's ttl. A record that is renewed before, as it is after a third to a
    /// half of its ttl, is announced then. Default 20 min, two thirds of the default ttl: with both a record is announced every 12 min. What
    /// all nodes together announce has to fit into `relayer_rate`: 10 per second are 7 000 nodes; a larger network wants a longer ttl and period.
    pub period: Duration,
    /// How old, by its own time of issue and our clock, a record may be that is taken from an announcement and passed on.
    /// Default 10 min: far more than an announcement is on its way, and what clocks may differ by. It has to be shorter than
    /// the records' ttl (a guess).
    pub window: Duration,
    /// Records of one author that are passed on. Default 10 at once, then one per 10 s.
    pub author_rate: Rate,
    /// Records that are taken from one neighbour. Default 100 at once, then 10 per second.
    pub relayer_rate: Rate,
    /// Authors remembered for `author_rate`; about 200 bytes each. Default 4 096 (a guess): of more authors within the 100 s that
    /// a bucket refills in, announcements are dropped.
    pub authors: usize,
    /// Peers that there are announcement streams with, neighbours or not. Default 32: five neighbours, and those with
    /// whom a word is exchanged about becoming one (a guess).
    pub streams: usize,
}

impl Default for AnnounceLimits {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(20 * 60),
            window: Duration::from_secs(10 * 60),
            author_rate: Rate::new(10, Duration::from_secs(10)),
            relayer_rate: Rate::new(100, Duration::from_millis(100)),
            authors: 4_096,
            streams: 32,
        }
    }
}

/// As many streams as the neighbours of a node need, and as many again for those that ask to become one.
const FEWEST_STREAMS: usize = 10;
/// Tables beyond these are no longer small.
const MOST_STREAMS: usize = 1 << 10;
const MOST_AUTHORS: usize = 1 << 20;
/// An announcement more often than this is a flood of its own.
const SHORTEST_PERIOD: Duration = Duration::from_secs(20);

impl AnnounceLimits {
    /// Checks that announcements can be made, taken and passed on.
    ///
    /// # Errors
    ///
    /// Names the first field that is at fault.
    pub fn validate(&self) -> Result<(), AnnounceLimitError> {
        let Self { period, window, author_rate, relayer_rate, authors, streams } = self;
        for (field, rate) in [("author_rate", author_rate), ("relayer_rate", relayer_rate)] {
            rate.validate().map_err(|error| AnnounceLimitError::Rate { field, error })?;
        }
        let longest = Ttl::MAX.as_duration();
        let second = Duration::from_secs(1);
        for (field, time, shortest) in
            [("period", period, SHORTEST_PERIOD), ("window", window, second)]
        {
            if *time < shortest || *time > longest {
                return Err(AnnounceLimitError::OutOfRange { field });
            }
        }
        let counts = [
            ("authors", *authors, 1..=MOST_AUTHORS),
            ("streams", *streams, FEWEST_STREAMS..=MOST_STREAMS),
        ];
        match counts.into_iter().find(|(_, count, range)| !range.contains(count)) {
            Some((field, ..)) => Err(AnnounceLimitError::OutOfRange { field }),
            None => Ok(()),
        }
    }
}

/// Why [`AnnounceLimits`] cannot be used. The app's configuration is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AnnounceLimitError {
    /// A rate is unusable.
    #[error("announce limit `{field}` is unusable")]
    Rate {
        /// The field of [`AnnounceLimits`].
        field: &'static str,
        /// Why.
        #[source]
        error: RateError,
    },
    /// A time or a count is too small for anything to be announced, or too large to be a bound.
    #[error("announce limit `{field}` is too small or too large")]
    OutOfRange {
        /// The field of [`AnnounceLimits`].
        field: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_cannot_work_are_refused_by_name() {
        assert_eq!(AnnounceLimits::default().validate(), Ok(()));
        let with = |change: fn(&mut AnnounceLimits)| {
            let mut limits = AnnounceLimits::default();
            change(&mut limits);
            limits.validate().unwrap_err()
        };
        let zero = |field| AnnounceLimitError::Rate { field, error: RateError::Zero };
        let out = |field| AnnounceLimitError::OutOfRange { field };
        assert_eq!(with(|limits| limits.period = Duration::ZERO), out("period"));
        assert_eq!(with(|limits| limits.window = Duration::MAX), out("window"));
        assert_eq!(with(|limits| limits.author_rate.burst = 0), zero("author_rate"));
        assert_eq!(with(|limits| limits.relayer_rate.every = Duration::ZERO), zero("relayer_rate"));
        assert_eq!(with(|limits| limits.authors = 0), out("authors"));
        assert_eq!(with(|limits| limits.streams = 9), out("streams"));
        assert_eq!(with(|limits| limits.streams = usize::MAX), out("streams"));
    }
}
