//! What goes into [`Subscriptions`](super::Subscriptions) and what comes out.

use std::time::{Duration, Instant};

use iroh_base::EndpointId;

use crate::record::Seq;
use crate::wire::subscription::{Refusal, Resume, StreamEnd};

/// One try to subscribe, and what becomes of it. The machine draws them and never uses one twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(u64);

impl Attempt {
    pub(super) const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, which counts up in one consumer.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Why a peer is no longer one to subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Withdrawal {
    /// Its record is gone. That says nothing of the peer: what it refused is remembered for a while, should the record come back.
    Gone,
    /// Its record does not offer the stream any more.
    NotOffered,
    /// Its record does not meet the consumer's condition any more.
    NotWanted,
}

/// What a consumer's subscriptions are told. All but the first two of an attempt say that it is over, and that nothing of it is left to be cut. Word of an
/// attempt that is not its source's current one is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A peer's record offers the stream and meets the consumer's condition: to be said at first, and at each change of either value.
    Offered {
        /// The peer.
        peer: EndpointId,
        /// The number of the record.
        record: Seq,
        /// How far it is, if that is known.
        rtt: Option<Duration>,
    },
    /// That is not so any more.
    Withdrawn {
        /// The peer.
        peer: EndpointId,
        /// Why.
        why: Withdrawal,
    },
    /// The producer has accepted, and items may come. From here on the caller knows how far they came.
    Accepted {
        /// Which attempt.
        attempt: Attempt,
    },
    /// The producer has refused.
    Refused {
        /// Which attempt.
        attempt: Attempt,
        /// Why.
        refusal: Refusal,
    },
    /// The producer has ended the stream.
    Ended {
        /// Which attempt.
        attempt: Attempt,
        /// Why.
        end: StreamEnd,
        /// How far the items came.
        resume: Option<Resume>,
    },
    /// The peer was not reached, did not answer in time, or the link broke.
    Lost {
        /// Which attempt.
        attempt: Attempt,
        /// How far the items came; `None` before it was accepted.
        resume: Option<Resume>,
    },
    /// An item could not be decoded.
    Poisoned {
        /// Which attempt.
        attempt: Attempt,
        /// How far the items came, that one included: it is not asked for again.
        resume: Option<Resume>,
    },
    /// The producer broke the rules of the wire. How far its items came says nothing any more: asked for the next one, it would do the same.
    Misbehaved {
        /// Which attempt.
        attempt: Attempt,
    },
    /// The consumer has another ticket. What is connected is not touched: to show it there is up to the caller.
    NewTicket,
    /// The time of [`next_timeout`](super::Subscriptions::next_timeout) has come.
    Timeout,
    /// The consumer is over: all is cut and forgotten, and nothing happens any more.
    Close,
}

/// What has to be done, and what has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Subscribe with the newest ticket, and say what comes of it, within a deadline of the caller's.
    Connect {
        /// To be named in all that is said of it.
        attempt: Attempt,
        /// With whom.
        peer: EndpointId,
        /// Where to go on, if something came before.
        resume: Option<Resume>,
        /// Whether the peer does not know us yet, so that catalogs have to be exchanged first.
        introduce: bool,
    },
    /// End this attempt and say nothing more of it.
    Cut {
        /// Which one.
        attempt: Attempt,
        /// With whom it is.
        peer: EndpointId,
    },
    /// How a source stands now. Said only when it is different from what was said last.
    Changed {
        /// The peer.
        peer: EndpointId,
        /// How it stands.
        state: SourceState,
    },
    /// A source of which something was said is none any more.
    Forgotten {
        /// The peer.
        peer: EndpointId,
    },
}

/// How a source stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// It is as good as any, and as many as are allowed are tried or connected.
    Queued,
    /// An attempt is under way.
    Connecting,
    /// Items may come.
    Connected,
    /// It is tried again, not before this time.
    Waiting {
        /// The time.
        until: Instant,
    },
    /// It is not tried again unless something changes; what, says the reason.
    Terminated(Termination),
}

/// Why a source is not tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Termination {
    /// It refused for good.
    Refused(Refusal),
    /// It ended the stream for good.
    Ended(StreamEnd),
    /// It sent an item that could not be decoded.
    Poisoned,
    /// It broke the rules of the wire.
    Misbehaved,
    /// It does not meet the consumer's condition.
    NotWanted,
}
