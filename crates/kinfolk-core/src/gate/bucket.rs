//! Token buckets, and a bounded table of them.
//!
//! They count for the gate; what a full or an empty bucket means to a newcomer is said by [`GroupLimit`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{GateReason, Rate, Verdict};

/// What one group is granted, and the reasons given beyond that.
pub(super) struct GroupLimit {
    pub(super) live: u32,
    pub(super) rate: Rate,
    pub(super) over_live: GateReason,
    pub(super) over_rate: GateReason,
}

/// A token bucket, kept as the time at which it will be full: nothing needs to tick, and no
/// fractions of tokens get lost. Beside it, the live connections of the same group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) full_at: Instant,
    pub(super) live: u32,
}

impl Bucket {
    /// Whoever is turned away pays a token too, so that insisting leads to silence.
    pub(super) fn judge_proven(
        &mut self,
        now: Instant,
        limit: &GroupLimit,
        is_crowded: bool,
    ) -> Result<(), Verdict> {
        if !self.take(now, limit.rate, limit.rate.burst) {
            return Err(Verdict::Ignore(limit.over_rate));
        }
        if is_crowded {
            return Err(Verdict::Refuse(GateReason::Pending));
        }
        if self.live >= limit.live {
            return Err(Verdict::Refuse(limit.over_live));
        }
        self.live = self.live.saturating_add(1);
        Ok(())
    }

    /// Whoever is asked to prove itself pays nothing: it pays when it comes back.
    pub(super) fn judge_unproven(
        &mut self,
        now: Instant,
        limit: &GroupLimit,
    ) -> Result<(), Verdict> {
        if self.after_take(now, limit.rate, limit.rate.burst).is_none() {
            return Err(Verdict::Ignore(limit.over_rate));
        }
        let has_place = self.live < limit.live.div_ceil(2);
        if !(has_place && self.take(now, limit.rate, limit.rate.burst.div_ceil(2))) {
            return Err(Verdict::Retry);
        }
        self.live = self.live.saturating_add(1);
        Ok(())
    }

    /// Takes a token if not more than `depth` are then missing.
    pub(super) fn take(&mut self, now: Instant, rate: Rate, depth: u32) -> bool {
        let after = self.after_take(now, rate, depth);
        self.full_at = after.unwrap_or(self.full_at);
        after.is_some()
    }

    fn after_take(&self, now: Instant, rate: Rate, depth: u32) -> Option<Instant> {
        // Without this, a zero interval would mean no limit instead of an unusable one.
        if rate.every.is_zero() {
            return None;
        }
        let full_at = self.full_at.max(now).checked_add(rate.every)?;
        let longest = rate.every.checked_mul(depth)?;
        (full_at.saturating_duration_since(now) <= longest).then_some(full_at)
    }

    pub(super) fn leave(&mut self) {
        self.live = self.live.saturating_sub(1);
    }
}

/// At most `capacity` buckets. One that is full and has nothing live is no different from one never
/// seen, so that is what makes room for a newcomer, and nothing else does.
#[derive(Debug, Clone)]
pub(super) struct BucketTable<K> {
    pub(super) capacity: usize,
    pub(super) buckets: BTreeMap<K, Bucket>,
    /// The buckets with nothing live, by the time at which they will be full: the first is the
    /// first that can be forgotten, so a flood never costs a scan.
    pub(super) idle: BTreeSet<(Instant, K)>,
}

impl<K: Ord + Copy> BucketTable<K> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, buckets: BTreeMap::new(), idle: BTreeSet::new() }
    }

    /// Finds or makes a bucket for `key`; false if the table is full of buckets in use.
    pub(super) fn has_room(&mut self, now: Instant, key: K) -> bool {
        if self.buckets.contains_key(&key) {
            return true;
        }
        if self.buckets.len() >= self.capacity && !self.forget_one(now) {
            return false;
        }
        let bucket = Bucket { full_at: now, live: 0 };
        self.buckets.insert(key, bucket);
        self.idle.insert((now, key));
        true
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

    pub(super) fn change<R>(&mut self, key: K, change: impl FnOnce(&mut Bucket) -> R) -> Option<R> {
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
}
