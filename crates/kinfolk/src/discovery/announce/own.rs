//! This node's own record: when it is announced, and when the next one is due.
//!
//! Changes that come too fast are announced together, a little more slowly than others would take them, and with two announcements
//! in hand for what cannot wait: the departure is one. While there is nobody to tell, nothing is told.

use std::time::{Duration, Instant};

use kinfolk_core::bucket::{Bucket, Rate};
use kinfolk_core::limits::AnnounceLimits;
use kinfolk_core::record::{Record, UnixMillis};

/// How long to wait for a new record before it is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Announcements that others would still take when we take no more of our own.
const RESERVE: u32 = 2;

/// The own record and its times.
#[derive(Debug)]
pub(super) struct OwnRecord {
    record: Option<Record>,
    is_unsent: bool,
    rate: Rate,
    bucket: Bucket,
    refresh_at: Option<Instant>,
}

impl OwnRecord {
    pub(super) fn new(now: Instant, limits: &AnnounceLimits) -> Self {
        let Rate { burst, every } = limits.author_rate;
        // A tenth slower: on the way, two announcements may come closer to each other.
        let every = every.saturating_add(every.checked_div(10).unwrap_or_default());
        let rate = Rate::new(burst.saturating_sub(RESERVE).max(1), every);
        let bucket = Bucket::full(now);
        Self { record: None, is_unsent: false, rate, bucket, refresh_at: None }
    }

    /// Takes a new record. The next one is due after `part` of the period, or of what its ttl leaves.
    pub(super) fn set(&mut self, now: Instant, record: Record, period: Duration, part: f64) {
        let ttl = record.ttl().as_duration();
        let longest = ttl.saturating_sub(ttl.checked_div(3).unwrap_or_default()).min(period);
        self.refresh_at = now.checked_add(longest.mul_f64(part));
        self.record = Some(record);
        self.is_unsent = true;
    }

    /// There is a neighbour where there was none: what was announced before was told to others, or to nobody. A record too old to
    /// be news is replaced first.
    pub(super) fn tell_again(&mut self, now: Instant, clock: UnixMillis, window: Duration) {
        let Some(record) = &self.record else { return };
        let news = window.checked_div(2).unwrap_or_default();
        if clock.since(record.issued_at()) < news {
            self.is_unsent = true;
        } else {
            self.refresh_at = Some(now);
        }
    }

    /// What to announce now, if there is anybody to hear it.
    pub(super) fn announce(&mut self, now: Instant) -> Option<Record> {
        if !self.is_unsent || !self.bucket.take(now, self.rate, self.rate.burst) {
            return None;
        }
        self.is_unsent = false;
        self.record.clone()
    }

    /// Whether a new record is due.
    pub(super) fn wants_refresh(&mut self, now: Instant) -> bool {
        let is_due = self.refresh_at.is_some_and(|at| at <= now);
        if is_due {
            self.refresh_at = now.checked_add(ASK_AGAIN);
        }
        is_due
    }

    /// When something is due, given whether there is anybody to tell.
    pub(super) fn next_timeout(&self, now: Instant, has_listeners: bool) -> Option<Instant> {
        let announce_at = (self.is_unsent && has_listeners)
            .then(|| self.bucket.ready_at(now, self.rate, self.rate.burst))
            .flatten();
        [announce_at, self.refresh_at].into_iter().flatten().min()
    }
}
