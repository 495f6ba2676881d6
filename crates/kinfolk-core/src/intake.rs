//! The intake: the one gate through which records of strangers pass before the [`catalog`](crate::catalog).
//!
//! It decides for exchanges and for the announcer whether the bytes of a record are worth a check of their signature, and
//! what they are. A record that the catalog knows costs no check; what is of the wrong size, version or network costs
//! none; all others draw on a budget, in total and per source, so that a flood of made-up records costs a bounded share of
//! a processor. It never decides whether a record is kept, never reads a clock, and never waits.
//!
//! # Who may use the budget
//!
//! Every check takes a token of the whole budget and one of its source. A source that has used more than half of its own
//! may use only the upper half of the whole: so a flood, whatever its rate, leaves the lower half to those who ask for
//! little. A check is paid whatever comes of it, by whoever handed the bytes over: nobody can use up the share of
//! somebody else.
//!
//! Nothing is lost in silence: [`IntakeError::Busy`] says when to come again. An exchange waits until then, which slows down
//! its peer; an announcement is dropped and counted, as the next exchange brings what it said.

use std::time::{Duration, Instant};

use iroh_base::EndpointId;
use thiserror::Error;

use crate::bucket::{Bucket, BucketTable};
use crate::catalog::{Sighting, Snapshot};
use crate::code::Blame;
use crate::id::NetworkId;
use crate::record::{Record, RecordError, Rejection, UnixMillis};

mod limits;
#[cfg(test)]
mod tests;

pub use limits::{IntakeLimitError, IntakeLimits};

/// How long whoever may never be served is told to wait: limits that pass validation never say so.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Why bytes did not become a [`Sighting`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IntakeError {
    /// The budget is used up, in total or that of the source. The bytes are unchecked.
    #[error("as many signatures were checked as may be for now")]
    Busy {
        /// When it is worth trying again. Others may be first.
        retry_at: Instant,
    },
    /// Too many other sources draw on the budget for this one to be counted. The bytes are unchecked.
    #[error("too many sources draw on the budget at once")]
    Crowded {
        /// When it is worth trying again. Others may be first.
        retry_at: Instant,
    },
    /// They are no record of this network that may be believed now.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl IntakeError {
    /// The reason alone, for counters.
    #[must_use]
    pub const fn refusal(&self) -> Refusal {
        match self {
            Self::Busy { .. } => Refusal::Busy,
            Self::Crowded { .. } => Refusal::Crowded,
            Self::Record(error) => Refusal::Record(error.reason()),
        }
    }

    /// Who did something wrong, where [`Blame::Sender`] is whoever handed the bytes over: only what verified may be passed
    /// on, so a bad signature is the relay's fault whoever made it. Clocks differ, and versions do: these blame nobody.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Busy { .. }
            | Self::Crowded { .. }
            | Self::Record(RecordError::FromFuture { .. } | RecordError::UnknownVersion(_)) => {
                Blame::Nobody
            }
            Self::Record(_) => Blame::Sender,
        }
    }
}

/// The reasons of [`IntakeError`], for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// [`IntakeError::Busy`]
    Busy,
    /// [`IntakeError::Crowded`]
    Crowded,
    /// [`IntakeError::Record`]
    Record(Rejection),
}

impl Refusal {
    /// Every reason, for metrics that list them all.
    pub const ALL: [Self; 11] = [
        Self::Busy,
        Self::Crowded,
        Self::Record(Rejection::TooLarge),
        Self::Record(Rejection::UnknownVersion),
        Self::Record(Rejection::WrongNetwork),
        Self::Record(Rejection::InvalidKey),
        Self::Record(Rejection::BadSignature),
        Self::Record(Rejection::Malformed),
        Self::Record(Rejection::NonCanonical),
        Self::Record(Rejection::FromFuture),
        Self::Record(Rejection::InvalidTtl),
    ];

    /// The reason's name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Crowded => "crowded",
            Self::Record(rejection) => rejection.name(),
        }
    }
}

/// Bytes of a record as they came, and from whom.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Who handed them over: the peer of the session, not whoever the record is about.
    pub source: EndpointId,
    /// How old the source says that the record is; zero if it says nothing.
    pub carried: Duration,
    /// The wall clock when they came.
    pub clock: UnixMillis,
}

/// The machine; see the module page. A `now` that is earlier than one before counts as no time passing.
#[derive(Debug, Clone)]
pub struct Intake {
    me: EndpointId,
    network: NetworkId,
    limits: IntakeLimits,
    whole: Option<Bucket>,
    sources: BucketTable<EndpointId>,
    checks: u64,
    latest: Option<Instant>,
}

impl Intake {
    /// An intake for records of `network` that has checked nothing yet. `me` is this node.
    #[must_use]
    pub fn new(me: EndpointId, network: NetworkId, limits: IntakeLimits) -> Self {
        let sources = BucketTable::new(limits.sources);
        Self { me, network, limits, whole: None, sources, checks: 0, latest: None }
    }

    /// What the bytes are: a record for [`Input::Heard`](crate::catalog::Input::Heard), unless the error says otherwise.
    /// `known` is what the catalog knows.
    ///
    /// # Errors
    ///
    /// [`IntakeError`]; only [`IntakeError::Busy`] and [`IntakeError::Crowded`] are worth trying again.
    pub fn admit(
        &mut self,
        now: Instant,
        arrival: Arrival<'_>,
        known: &Snapshot,
    ) -> Result<Sighting, IntakeError> {
        let now = self.tick(now);
        let Arrival { bytes, source, carried, clock } = arrival;
        let record = match known.find(bytes) {
            Some(record) => record.clone(),
            None => {
                Record::precheck(bytes, self.network)?;
                self.pay(now, source)?;
                self.checks = self.checks.saturating_add(1);
                // Of this node's own none is of the future: only its number counts, and the clock that is wrong is ours.
                let is_own = Record::claimed_id(bytes) == Some(self.me.as_bytes());
                let clock = if is_own { UnixMillis::new(u64::MAX) } else { clock };
                Record::verify(bytes, self.network, clock)?
            }
        };
        Ok(Sighting::new(record, now, clock, carried))
    }

    /// How many signatures were checked.
    #[must_use]
    pub const fn checks(&self) -> u64 {
        self.checks
    }

    /// How many sources are remembered.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// The network whose records pass.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// Takes a token of both buckets, or of neither.
    fn pay(&mut self, now: Instant, source: EndpointId) -> Result<(), IntakeError> {
        let IntakeLimits { checks, checks_per_source: share, .. } = self.limits;
        if !self.sources.has_room(now, source) {
            let retry_at = self.sources.room_at().unwrap_or(now);
            return Err(IntakeError::Crowded { retry_at });
        }
        let whole = self.whole.get_or_insert(Bucket::full(now));
        let paid = self.sources.change(source, |own| {
            let is_modest = own.has(now, share, share.burst.div_ceil(2));
            let depth = if is_modest { checks.burst } else { checks.burst.div_ceil(2) };
            if own.has(now, share, share.burst) && whole.take(now, checks, depth) {
                own.take(now, share, share.burst);
                return Ok(());
            }
            let own_at = own.ready_at(now, share, share.burst);
            let whole_at = whole.ready_at(now, checks, depth);
            // Limits that grant nothing have no such time.
            let never = || now.checked_add(LONGEST_WAIT).unwrap_or(now);
            let retry_at = own_at.zip(whole_at).map_or_else(never, |(own, whole)| own.max(whole));
            Err(IntakeError::Busy { retry_at })
        });
        paid.unwrap_or(Err(IntakeError::Crowded { retry_at: now }))
    }

    fn tick(&mut self, now: Instant) -> Instant {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        now
    }
}
