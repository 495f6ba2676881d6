//! The order among the records of one node, and the machine that numbers a node's own.
//!
//! [`SeqSource`] decides for whoever signs this node's records. It counts in Unix milliseconds where the clock allows, so
//! that a node which lost its memory is still newer than before; but nobody reads a time out of a number: a clock that
//! stood wrong once only leaves a number that is far ahead, and [`SeqSource::heard`] jumps past it. It never reads a
//! clock and never writes to a disk; where a store is configured, the caller saves a number before it is used.

use std::fmt;

use thiserror::Error;

use super::time::UnixMillis;

/// Says which of two records of one node is newer: the one with the larger number. It is not a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(u64);

impl Seq {
    /// The sequence number with this value.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The value.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A clock beyond this reading is not believed: about the year 10 900. It leaves numbers to count on with, whatever a
/// clock says.
const CLOCK_MAX: u64 = 1 << 48;

/// Every number is used up: a record of this node, signed with its key, has the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "expected a sequence number above the last one, there is none: the key has signed the largest"
)]
pub struct SeqExhausted;

/// Numbers the records of one node: `seq = max(unix_ms, last + 1)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeqSource {
    last: Option<Seq>,
}

impl SeqSource {
    /// Goes on after `last`: what was stored, if anything was.
    pub const fn new(last: Option<Seq>) -> Self {
        Self { last }
    }

    /// The largest number given out or heard: what a store has to keep.
    pub const fn last(&self) -> Option<Seq> {
        self.last
    }

    /// The number for the next record.
    ///
    /// # Errors
    ///
    /// [`SeqExhausted`] if the largest of all numbers was given out or heard.
    pub fn next(&mut self, clock: UnixMillis) -> Result<Seq, SeqExhausted> {
        let clock = if clock.get() > CLOCK_MAX { 0 } else { clock.get() };
        let least = match self.last {
            None => 0,
            Some(Seq(last)) => last.checked_add(1).ok_or(SeqExhausted)?,
        };
        let seq = Seq(clock.max(least));
        self.last = Some(seq);
        Ok(seq)
    }

    /// Takes in that a record *of this node* with this number is about; a signature of ours is on it. Returns whether
    /// the number is new here: then others hold that record newer than all of ours, and a new one has to be signed.
    pub fn heard(&mut self, seq: Seq) -> bool {
        let is_ahead = self.last.is_none_or(|last| last < seq);
        if is_ahead {
            self.last = Some(seq);
        }
        is_ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> UnixMillis {
        UnixMillis::new(millis)
    }

    #[test]
    fn a_record_is_numbered_by_the_clock() {
        let mut source = SeqSource::default();
        assert_eq!(source.next(at(1_700_000_000_000)), Ok(Seq::new(1_700_000_000_000)));
        assert_eq!(source.last(), Some(Seq::new(1_700_000_000_000)));
    }

    #[test]
    fn two_records_of_one_millisecond_differ() {
        let mut source = SeqSource::default();
        assert_eq!(source.next(at(7)), Ok(Seq::new(7)));
        assert_eq!(source.next(at(7)), Ok(Seq::new(8)));
    }

    #[test]
    fn a_clock_that_steps_back_does_not_make_the_next_record_older() {
        let mut source = SeqSource::default();
        source.next(at(1_000_000)).unwrap();
        assert_eq!(source.next(at(10)), Ok(Seq::new(1_000_001)));
    }

    #[test]
    fn a_node_that_was_killed_before_it_stored_its_number_is_newer_when_it_returns() {
        let lost = SeqSource::default().next(at(5_000)).unwrap();
        let after = SeqSource::new(None).next(at(6_000)).unwrap();
        assert!(after > lost);
    }

    #[test]
    fn a_node_that_hears_its_own_record_with_a_higher_number_jumps_past_it() {
        let mut source = SeqSource::new(Some(Seq::new(10)));
        assert!(source.heard(Seq::new(99)));
        assert_eq!(source.next(at(20)), Ok(Seq::new(100)));
    }

    #[test]
    fn hearing_what_is_not_newer_changes_nothing() {
        let mut source = SeqSource::new(Some(Seq::new(10)));
        assert!(!source.heard(Seq::new(10)));
        assert!(!source.heard(Seq::new(3)));
        assert_eq!(source.last(), Some(Seq::new(10)));
    }

    #[test]
    fn a_mad_clock_does_not_use_up_the_numbers() {
        let mut source = SeqSource::new(Some(Seq::new(10)));
        assert_eq!(source.next(at(u64::MAX)), Ok(Seq::new(11)));
        assert_eq!(source.next(at(CLOCK_MAX)), Ok(Seq::new(CLOCK_MAX)));
    }

    #[test]
    fn after_the_largest_number_there_is_none() {
        let mut source = SeqSource::new(Some(Seq::new(u64::MAX)));
        assert_eq!(source.next(at(5)), Err(SeqExhausted));
        assert_eq!(source.last(), Some(Seq::new(u64::MAX)));
    }
}
