//! What is known of one source, and what of it stands in the tables.

use std::time::{Duration, Instant};

use super::contract::{Attempt, SourceState, Termination};
use crate::backoff::Backoff;
use crate::record::Seq;
use crate::wire::subscription::{Refusal, Resume, StreamEnd};

/// Whether there is a record that offers the stream. But for [`Standing`](Self::Standing) a source exists only while it is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    Standing,
    /// The record is gone.
    Gone,
    /// A newer one does not offer it.
    Withdrawn,
}

/// An attempt, and what it was begun on: what is newer when it fails has not been tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Try {
    pub(super) attempt: Attempt,
    pub(super) record: Seq,
    pub(super) ticket: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// To be tried as soon as there is room.
    Queued,
    Connecting(Try),
    Connected {
        tried: Try,
        since: Instant,
    },
    Waiting(Wait),
    Terminated {
        why: Termination,
        /// A record newer than this gives hope,
        record: Seq,
        /// but not before this time.
        not_before: Instant,
    },
}

/// A pause between two attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) until: Instant,
    /// Whatever news there is, it does not end before this.
    pub(super) least: Instant,
    /// Whether the source is about to return at once, so that nobody else gets its place.
    pub(super) keeps_place: bool,
    /// A record newer than this cuts it short. `None` if it was not for want of a way to the peer.
    pub(super) renewable: Option<Seq>,
}

#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The newest that was told.
    pub(super) record: Seq,
    pub(super) rtt: Option<Duration>,
    pub(super) offer: Offer,
    pub(super) is_wanted: bool,
    pub(super) step: Step,
    /// What was said of it last.
    pub(super) shown: Option<SourceState>,
    pub(super) backoff: Backoff,
    /// The last attempt that failed since it was proven good.
    pub(super) failed: Option<Attempt>,
    /// Whether it may return at once, when it is lost or a newer record is there.
    pub(super) is_eager: bool,
    /// Whether the next attempt begins with an exchange of catalogs.
    pub(super) introduce: bool,
    /// How far the items came. While it is connected the caller knows, and a value that grows old here would bring items twice.
    pub(super) resume: Option<Resume>,
}

/// Who gets the next place: whoever has not failed, or did so the longest ago, so that a dead source never keeps a good one waiting; among those that have not the
/// nearest, and such as are unknown last.
pub(super) type Rank = (Option<Attempt>, Duration);

impl Source {
    pub(super) fn new(record: Seq, rtt: Option<Duration>, backoff: Backoff) -> Self {
        Self {
            record,
            rtt,
            offer: Offer::Standing,
            is_wanted: true,
            step: Step::Queued,
            shown: None,
            backoff,
            failed: None,
            is_eager: true,
            introduce: false,
            resume: None,
        }
    }

    pub(super) const fn tried(&self) -> Option<Try> {
        match self.step {
            Step::Connecting(tried) | Step::Connected { tried, .. } => Some(tried),
            Step::Queued | Step::Waiting(_) | Step::Terminated { .. } => None,
        }
    }

    pub(super) fn has_place(&self) -> bool {
        let is_reserved = matches!(&self.step, Step::Waiting(wait) if wait.keeps_place);
        self.tried().is_some() || is_reserved
    }

    pub(super) fn rank(&self) -> Option<Rank> {
        let is_queued = self.is_wanted && self.step == Step::Queued;
        is_queued.then(|| (self.failed, self.rtt.unwrap_or(Duration::MAX)))
    }

    pub(super) fn timer(&self) -> Option<Instant> {
        match &self.step {
            _ if !self.is_wanted => None,
            Step::Waiting(wait) => Some(wait.until),
            Step::Terminated { record, not_before, .. } if *record < self.record => {
                Some(*not_before)
            }
            Step::Queued
            | Step::Connecting(_)
            | Step::Connected { .. }
            | Step::Terminated { .. } => None,
        }
    }

    pub(super) fn state(&self) -> SourceState {
        match &self.step {
            _ if !self.is_wanted => SourceState::Terminated(Termination::NotWanted),
            Step::Queued => SourceState::Queued,
            Step::Connecting(_) => SourceState::Connecting,
            Step::Connected { .. } => SourceState::Connected,
            Step::Waiting(wait) => SourceState::Waiting { until: wait.until },
            Step::Terminated { why, .. } => SourceState::Terminated(why.clone()),
        }
    }

    /// Forgets what failed if the stream has lasted.
    pub(super) fn prove(&mut self, now: Instant, stable_after: Duration) {
        if let Step::Connected { since, .. } = self.step
            && now.saturating_duration_since(since) >= stable_after
        {
            self.backoff.reset();
            self.failed = None;
            self.is_eager = true;
        }
    }

    /// Whether another ticket may change the verdict that it was terminated with.
    pub(super) const fn wants_ticket(&self) -> bool {
        matches!(&self.step, Step::Terminated { why, .. } if why.is_about_ticket())
    }
}

impl Termination {
    pub(super) const fn is_about_ticket(&self) -> bool {
        matches!(
            self,
            Self::Refused(Refusal::BadTicket | Refusal::NotAllowed)
                | Self::Ended(StreamEnd::TicketExpired | StreamEnd::NotAllowed)
        )
    }

    /// Whether the next record that offers the stream says that it is over: nothing was wrong, there was only nothing to subscribe to.
    pub(super) const fn is_about_offer(&self) -> bool {
        matches!(
            self,
            Self::Refused(Refusal::NoSuchStream | Refusal::Ended)
                | Self::Ended(StreamEnd::Finished)
        )
    }
}
