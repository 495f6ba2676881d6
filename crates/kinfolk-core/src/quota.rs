//! The quota of exchanges: how often, and with how many bytes, one peer has its exchanges answered; and the places that all peers share.
//!
//! It decides for Discovery whether an exchange that a peer opens is answered. Catalogs are meant to be complete, so a peer may
//! have all of it; it may not have it again and again. The quota never cuts an exchange under way, which has bounds of its own, and never
//! counts what this node opens itself. Where all places are taken, [`room`] says whether one of those that have them makes room.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

mod places;

pub use places::{Place, Room, room};

/// What one peer is granted, and how many peers are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Exchanges that a peer may open in a burst: what it does while it and the network are new to each other (a guess).
    pub burst: u32,
    /// The time after which it may open one more. With it, one peer costs some 0.01 % of a core at most.
    pub interval: Duration,
    /// Bytes, both ways, within [`QuotaLimits::period`]: three times a full catalog of 10 000 records (a guess).
    pub bytes: u64,
    /// The time within which spent bytes are granted anew.
    pub period: Duration,
    /// Peers that are counted at once; about 150 bytes each. Beyond them the one is forgotten that will have its full quota the soonest.
    pub peers: usize,
}

impl Default for QuotaLimits {
    fn default() -> Self {
        Self {
            burst: 8,
            interval: Duration::from_secs(10),
            bytes: 32 * 1024 * 1024,
            period: Duration::from_secs(3600),
            peers: 4096,
        }
    }
}

impl QuotaLimits {
    /// Checks that anybody can be answered within these limits.
    ///
    /// # Errors
    ///
    /// Names the first field that prevents it.
    pub fn validate(&self) -> Result<(), QuotaLimitError> {
        let Self { burst, interval, bytes, period, peers } = self;
        let zeros = [
            ("burst", *burst == 0),
            ("interval", interval.is_zero()),
            ("bytes", *bytes == 0),
            ("period", period.is_zero()),
            ("peers", *peers == 0),
        ];
        if let Some((field, _)) = zeros.iter().find(|(_, is_zero)| *is_zero) {
            return Err(QuotaLimitError::Zero { field });
        }
        let times = [("interval", *interval), ("period", *period)];
        match times.iter().find(|(_, time)| *time > LONGEST) {
            Some((field, _)) => Err(QuotaLimitError::TooLarge { field }),
            None => Ok(()),
        }
    }
}

/// Why [`QuotaLimits`] cannot be used. The app's configuration is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuotaLimitError {
    /// Nobody would ever be answered.
    #[error("quota limit `{field}` must be above zero")]
    Zero {
        /// The field of [`QuotaLimits`].
        field: &'static str,
    },
    /// A time is longer than a day.
    #[error("quota limit `{field}` is too large")]
    TooLarge {
        /// The field of [`QuotaLimits`].
        field: &'static str,
    },
}

/// No time of a quota is longer: what was granted is forgotten by then.
const LONGEST: Duration = Duration::from_hours(24);

/// Two token buckets for each peer, each kept as the time at which it will be full: nothing needs to tick.
#[derive(Debug, Clone, Copy)]
struct Use {
    starts_full_at: Instant,
    bytes_full_at: Instant,
}

impl Use {
    fn full_at(&self) -> Instant {
        self.starts_full_at.max(self.bytes_full_at)
    }
}

/// The machine; see the module page. A `now` that is earlier than one before only makes it stricter.
#[derive(Debug, Clone)]
pub struct Quota {
    limits: QuotaLimits,
    peers: BTreeMap<EndpointId, Use>,
    by_time: BTreeSet<(Instant, EndpointId)>,
}

impl Quota {
    /// Nobody has used any of it.
    #[must_use]
    pub fn new(limits: QuotaLimits) -> Self {
        Self { limits, peers: BTreeMap::new(), by_time: BTreeSet::new() }
    }

    /// Whether an exchange that the peer opens now is answered; if so, it is counted.
    pub fn start(&mut self, now: Instant, peer: EndpointId) -> bool {
        let mut used = self.used(now, &peer);
        let burst = self.limits.interval.saturating_mul(self.limits.burst);
        let starts_full_at = used.starts_full_at.checked_add(self.limits.interval);
        let Some(starts_full_at) = starts_full_at else { return false };
        let has_start = starts_full_at.saturating_duration_since(now) <= burst;
        let has_bytes = used.bytes_full_at.saturating_duration_since(now) < self.limits.period;
        if !(has_start && has_bytes) {
            return false;
        }
        used.starts_full_at = starts_full_at;
        self.put(now, peer, used);
        true
    }

    /// Counts the bytes of an exchange that the peer opened.
    pub fn spend(&mut self, now: Instant, peer: EndpointId, bytes: u64) {
        let mut used = self.used(now, &peer);
        let nanos = self.limits.period.as_nanos();
        let cost = nanos.saturating_mul(bytes.into()).checked_div(self.limits.bytes.into());
        let cost = Duration::from_nanos(u64::try_from(cost.unwrap_or(nanos)).unwrap_or(u64::MAX));
        // More than all of it costs no more than the longest exchange does.
        let cost = cost.min(self.limits.period);
        used.bytes_full_at = used.bytes_full_at.checked_add(cost).unwrap_or(used.bytes_full_at);
        self.put(now, peer, used);
    }

    /// How many peers are counted.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    fn used(&self, now: Instant, peer: &EndpointId) -> Use {
        let used = self.peers.get(peer).copied();
        let used = used.unwrap_or(Use { starts_full_at: now, bytes_full_at: now });
        Use {
            starts_full_at: used.starts_full_at.max(now),
            bytes_full_at: used.bytes_full_at.max(now),
        }
    }

    fn put(&mut self, now: Instant, peer: EndpointId, used: Use) {
        if let Some(before) = self.peers.insert(peer, used) {
            self.by_time.remove(&(before.full_at(), peer));
        }
        self.by_time.insert((used.full_at(), peer));
        while let Some((full_at, first)) = self.by_time.first().copied()
            && (full_at <= now || self.peers.len() > self.limits.peers)
        {
            self.by_time.pop_first();
            self.peers.remove(&first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> EndpointId {
        iroh_base::SecretKey::from_bytes(&[n; 32]).public()
    }

    #[test]
    fn limits_under_which_nobody_is_answered_are_refused_by_name() {
        assert_eq!(QuotaLimits::default().validate(), Ok(()));
        type Change = fn(&mut QuotaLimits);
        let changes: [(&str, Change); 5] = [
            ("burst", |limits| limits.burst = 0),
            ("interval", |limits| limits.interval = Duration::ZERO),
            ("bytes", |limits| limits.bytes = 0),
            ("period", |limits| limits.period = Duration::ZERO),
            ("peers", |limits| limits.peers = 0),
        ];
        for (field, change) in changes {
            let mut limits = QuotaLimits::default();
            change(&mut limits);
            assert_eq!(limits.validate(), Err(QuotaLimitError::Zero { field }));
        }
        let limits = QuotaLimits { period: Duration::MAX, ..QuotaLimits::default() };
        assert_eq!(limits.validate(), Err(QuotaLimitError::TooLarge { field: "period" }));
    }

    #[test]
    fn a_peer_has_a_burst_and_then_one_exchange_per_interval() {
        let (limits, start) = (QuotaLimits::default(), Instant::now());
        let mut quota = Quota::new(limits.clone());
        let granted = (0..100).filter(|_| quota.start(start, peer(1))).count();
        assert_eq!(granted, 8);
        let mut now = start;
        let mut granted = 0;
        for _ in 0..3600 {
            now += Duration::from_secs(1);
            granted += usize::from(quota.start(now, peer(1)));
        }
        assert_eq!(granted, 360);
        assert!(quota.start(now, peer(2)), "another peer has its own");
    }

    #[test]
    fn a_peer_that_has_used_up_its_bytes_waits_until_some_are_granted_anew() {
        let (limits, start) = (QuotaLimits::default(), Instant::now());
        let mut quota = Quota::new(limits.clone());
        assert!(quota.start(start, peer(1)));
        quota.spend(start, peer(1), limits.bytes);
        assert!(!quota.start(start, peer(1)));
        let later = start + limits.period / 100;
        assert!(quota.start(later, peer(1)));
        quota.spend(later, peer(1), u64::MAX);
        assert!(!quota.start(later + limits.period / 2, peer(1)));
        assert!(quota.start(later + limits.period, peer(1)));
    }

    #[test]
    fn in_an_hour_a_peer_gets_no_more_bytes_than_its_quota_and_one_exchange() {
        let (limits, start) = (QuotaLimits::default(), Instant::now());
        let mut quota = Quota::new(limits.clone());
        let one = 2 * 1024 * 1024;
        let mut spent = 0;
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            if quota.start(now, peer(1)) {
                quota.spend(now, peer(1), one);
                spent += one;
            }
        }
        assert!(spent <= 2 * limits.bytes + one, "{spent}");
    }

    #[test]
    fn the_table_forgets_who_has_a_full_quota_and_never_outgrows_its_bound() {
        let limits = QuotaLimits { peers: 10, ..QuotaLimits::default() };
        let start = Instant::now();
        let mut quota = Quota::new(limits);
        for n in 0..50 {
            assert!(quota.start(start, peer(n)));
            assert!(quota.peers() <= 10);
        }
        quota.start(start + Duration::from_secs(3600), peer(1));
        assert_eq!(quota.peers(), 1);
    }
}
