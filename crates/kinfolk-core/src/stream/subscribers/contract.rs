//! What goes into [`Subscribers`](super::Subscribers) and what comes out.

use std::time::Duration;

use iroh_base::EndpointId;

use crate::stream::Schema;
use crate::wire::subscription::{Refusal, StreamEnd};

/// One subscription of one consumer, as its producer counts them. The caller draws the numbers and never uses one twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriberId(u64);

impl SubscriberId {
    /// The id with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Which check of a ticket an answer belongs to; unique in one producer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(u64);

impl Generation {
    pub(super) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// What the producer's condition says of a peer, by the record that is known of it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Eligible {
    /// It is met, or there is none.
    Yes,
    /// It is not met.
    No,
    /// There is one, and no record to look at.
    Unknown,
}

/// What a consumer asks with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ask {
    /// Who asks.
    pub peer: EndpointId,
    /// What it takes the items for.
    pub schema: Schema,
    /// What the condition says of it.
    pub eligible: Eligible,
    /// Whether it has shown a ticket.
    pub has_ticket: bool,
}

/// What a producer's subscribers are told. An id that is not known, or no longer, is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A consumer asks. One whose id is known is ignored: the id's outcome is already spoken for.
    Asked {
        /// A new one.
        id: SubscriberId,
        /// Who asks, and with what.
        ask: Ask,
    },
    /// The check that was asked for is over.
    TicketChecked {
        /// Whose ticket it was.
        id: SubscriberId,
        /// Which check it was.
        generation: Generation,
        /// For how long the ticket is valid from now on, `None` for ever; or that it is not.
        verdict: Result<Option<Duration>, ()>,
    },
    /// A consumer shows another ticket.
    Renewed {
        /// Which one.
        id: SubscriberId,
    },
    /// The record of a peer has changed or gone, and the condition was evaluated again. To be told of each change, or a revoked tag is not noticed.
    /// [`Eligible::No`] ends what the peer has; [`Eligible::Unknown`] keeps what is accepted, as a record that is gone says nothing
    /// against its peer, and refuses the rest.
    Judged {
        /// The peer.
        peer: EndpointId,
        /// What the condition says of it now.
        eligible: Eligible,
    },
    /// The consumer unsubscribed, its link is gone, or the caller has ended it.
    Left {
        /// Which one.
        id: SubscriberId,
    },
    /// The time of [`next_timeout`](super::Subscribers::next_timeout) has come.
    Timeout,
    /// The producer is over: all are ended, and nobody is accepted any more.
    End(StreamEnd),
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Check the newest ticket of this one, and say what came of it; an earlier check of it that still runs is in vain.
    Check {
        /// Whose ticket.
        id: SubscriberId,
        /// To be said with the answer.
        generation: Generation,
    },
    /// Send it the stream.
    Accept {
        /// Which one.
        id: SubscriberId,
    },
    /// Tell it that it gets nothing. The id is forgotten.
    Refuse {
        /// Which one.
        id: SubscriberId,
        /// Why.
        refusal: Refusal,
    },
    /// End the stream that it gets. The id is forgotten.
    End {
        /// Which one.
        id: SubscriberId,
        /// Why.
        end: StreamEnd,
    },
}
