//! What a full or an empty bucket means to somebody who comes to the gate.

use std::time::Instant;

use super::{GateReason, Verdict};
use crate::bucket::{Bucket, Rate};

/// What one group is granted, and the reasons given beyond that.
pub(super) struct GroupLimit {
    pub(super) live: u32,
    pub(super) rate: Rate,
    pub(super) over_live: GateReason,
    pub(super) over_rate: GateReason,
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
        if !self.has(now, limit.rate, limit.rate.burst) {
            return Err(Verdict::Ignore(limit.over_rate));
        }
        let has_place = self.live < limit.live.div_ceil(2);
        if !(has_place && self.take(now, limit.rate, limit.rate.burst.div_ceil(2))) {
            return Err(Verdict::Retry);
        }
        self.live = self.live.saturating_add(1);
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.live = self.live.saturating_sub(1);
    }
}
