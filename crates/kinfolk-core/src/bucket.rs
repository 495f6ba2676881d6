//! Token buckets, and a bounded table of them: how often somebody may do something.
//!
//! They count for the [`gate`](crate::gate), for the [`intake`](crate::intake), and for whoever else bounds what strangers
//! may cause. A bucket is kept as the time at which it will be full, so that nothing ticks and no part of a token is
//! lost. What an empty bucket means says whoever asks. Nothing here reads a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use thiserror::Error;

/// The longest time in which a bucket may fill up: whoever refills keeps a place in a table, so slower rates would let a
/// short flood fill it for days. A guess.
const LONGEST_REFILL: Duration = Duration::from_hours(24);

/// The rate of a token bucket: `burst` at once, then one more per `every`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many a full bucket grants at once.
    pub burst: u32,
    /// The time in which one token grows back.
    pub every: Duration,
}

/// Why a [`Rate`] cannot be used. The app's configuration is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RateError {
    /// It would grant nothing, or not limit at all.
    #[error("a rate must be above zero in `burst` and `every`")]
    Zero,
    /// The bucket would take too long to fill up.
    #[error("a rate must refill within a day, `burst` times `every` is longer")]
    SlowRefill,
}

impl Rate {
    /// A rate of `burst` at once, then one more per `every`.
    #[must_use]
    pub const fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every }
    }

    /// Checks that it grants something and refills within a day.
    ///
    /// # Errors
    ///
    /// [`RateError`] says what it does not.
    pub fn validate(self) -> Result<(), RateError> {
        if self.burst == 0 || self.every.is_zero() {
            return Err(RateError::Zero);
        }
        match self.every.checked_mul(self.burst) {
            Some(refill) if refill <= LONGEST_REFILL => Ok(()),
            _ => Err(RateError::SlowRefill),
        }
    }
}

/// A token bucket, and beside it what is live of whoever it counts for: that keeps its place in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    pub(crate) full_at: Instant,
    pub(crate) live: u32,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub const fn full(now: Instant) -> Self {
        Self { full_at: now, live: 0 }
    }

    /// Whether nothing was taken that has not grown back.
    #[must_use]
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    /// Takes a token if not more than `depth` are then missing.
    pub fn take(&mut self, now: Instant, rate: Rate, depth: u32) -> bool {
        let after = self.after_take(now, rate, depth);
        self.full_at = after.unwrap_or(self.full_at);
        after.is_some()
    }

    /// Takes a token back that was taken.
    pub fn give_back(&mut self, rate: Rate) {
        self.full_at = self.full_at.checked_sub(rate.every).unwrap_or(self.full_at);
    }

    /// Whether [`take`](Self::take) would.
    #[must_use]
    pub fn has(&self, now: Instant, rate: Rate, depth: u32) -> bool {
        self.after_take(now, rate, depth).is_some()
    }

    /// When [`take`](Self::take) will, if nobody takes before. `None` if it never will.
    #[must_use]
    pub fn ready_at(&self, now: Instant, rate: Rate, depth: u32) -> Option<Instant> {
        if rate.every.is_zero() || depth == 0 {
            return None;
        }
        let missing = self.full_at.saturating_duration_since(now).checked_add(rate.every)?;
        now.checked_add(missing.saturating_sub(rate.every.checked_mul(depth)?))
    }

    pub(crate) fn after_take(&self, now: Instant, rate: Rate, depth: u32) -> Option<Instant> {
        // Without this, a zero interval would mean no limit instead of an unusable one.
        if rate.every.is_zero() {
            return None;
        }
        let full_at = self.full_at.max(now).checked_add(rate.every)?;
        let longest = rate.every.checked_mul(depth)?;
        (full_at.saturating_duration_since(now) <= longest).then_some(full_at)
    }
}

/// At most `capacity` buckets. One that is full and has nothing live is no different from one never
/// seen, so that is what makes room for a newcomer, and nothing else does.
#[derive(Debug, Clone)]
pub struct BucketTable<K> {
    pub(crate) capacity: usize,
    pub(crate) buckets: BTreeMap<K, Bucket>,
    /// The buckets with nothing live, by the time at which they will be full: the first is the
    /// first that can be forgotten, so a flood never costs a scan.
    pub(crate) idle: BTreeSet<(Instant, K)>,
}

impl<K: Ord + Copy> BucketTable<K> {
    /// A table that remembers nobody.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, buckets: BTreeMap::new(), idle: BTreeSet::new() }
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether nobody is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Finds or makes a bucket for `key`; false if the table is full of buckets in use.
    pub fn has_room(&mut self, now: Instant, key: K) -> bool {
        if self.buckets.contains_key(&key) {
            return true;
        }
        if self.buckets.len() >= self.capacity && !self.forget_one(now) {
            return false;
        }
        let bucket = Bucket::full(now);
        self.buckets.insert(key, bucket);
        self.idle.insert((now, key));
        true
    }

    /// The bucket of `key`, as it is.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&Bucket> {
        self.buckets.get(key)
    }

    /// When the first of those in use may be forgotten.
    #[must_use]
    pub fn room_at(&self) -> Option<Instant> {
        self.idle.first().map(|(full_at, _)| *full_at)
    }

    /// Takes a token of `key`. `None` if there is no room to count for it.
    pub fn take(&mut self, now: Instant, key: K, rate: Rate) -> Option<bool> {
        if !self.has_room(now, key) {
            return None;
        }
        self.change(key, |bucket| bucket.take(now, rate, rate.burst))
    }

    /// Changes the bucket of `key`, if there is one.
    pub fn change<R>(&mut self, key: K, change: impl FnOnce(&mut Bucket) -> R) -> Option<R> {
        let bucket = self.buckets.get_mut(&key)?;
        let before = *bucket;
        let result = change(bucket);
        // Most packets of a flood change nothing.
        if *bucket != before {
            if before.live == 0 {
                self.idle.remove(&(before.full_at, key));
            }
            if bucket.live == 0 {
                self.idle.insert((bucket.full_at, key));
            }
        }
        Some(result)
    }

    fn forget_one(&mut self, now: Instant) -> bool {
        match self.idle.first().copied() {
            Some((full_at, key)) if full_at <= now => {
                self.idle.remove(&(full_at, key));
                self.buckets.remove(&key);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate::new(4, Duration::from_millis(100));

    #[test]
    fn a_bucket_says_when_it_will_grant_again() {
        let now = Instant::now();
        let mut bucket = Bucket::full(now);
        while bucket.take(now, RATE, RATE.burst) {}
        let ready = bucket.ready_at(now, RATE, RATE.burst).unwrap();
        assert_eq!(ready, now + Duration::from_millis(100));
        assert!(!bucket.has(ready - Duration::from_nanos(1), RATE, RATE.burst));
        assert!(bucket.has(ready, RATE, RATE.burst));
    }

    #[test]
    fn a_token_that_is_given_back_can_be_taken_again_and_is_no_more_than_that() {
        let now = Instant::now();
        let rate = Rate::new(1, Duration::from_secs(10));
        let mut bucket = Bucket::full(now);
        assert!(bucket.take(now, rate, 1));
        bucket.give_back(rate);
        bucket.give_back(rate);
        assert!(bucket.take(now, rate, 1));
        assert!(!bucket.take(now, rate, 1));
    }

    #[test]
    fn a_bucket_that_grants_is_ready_now() {
        let now = Instant::now();
        assert_eq!(Bucket::full(now).ready_at(now, RATE, 1), Some(now));
        assert_eq!(Bucket::full(now).ready_at(now, RATE, 0), None);
    }

    #[test]
    fn a_full_table_says_when_there_will_be_room() {
        let now = Instant::now();
        let mut table = BucketTable::new(1);
        assert_eq!(table.take(now, 1, RATE), Some(true));
        assert_eq!(table.take(now, 2, RATE), None);
        let room = table.room_at().unwrap();
        assert_eq!(table.take(room, 2, RATE), Some(true));
        assert_eq!(table.len(), 1);
    }
}
