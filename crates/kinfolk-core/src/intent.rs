//! Intents: what the app wants of a peer, and the one outcome that each ends in.
//!
//! An intent outlives links. It waits in its [`PeerLink`](crate::peer_link::PeerLink) until a link can carry it; from then on the caller's own
//! future runs the stream and asks [`after_loss`] what to do when the link goes away under it. The payload never leaves that future,
//! so a link that fails loses nothing. This module decides *whether* to ask again; it never sends anything.

use std::fmt;
use std::time::Instant;

use crate::code::Code;

/// Names one intent; unique within a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntentId(pub u64);

/// Which intents of one peer go first, and the priority of their streams on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Transfers that can wait.
    Bulk,
    /// What a person waits for.
    #[default]
    Interactive,
    /// Small messages that others depend on.
    Control,
}

/// What an intent asks of the peer's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// A link to open one stream on, for an `open` or a `call`.
    Stream,
    /// The same for the node's own ends, such as discovery: it waits as long as a backoff says, which an app's intent cuts short once.
    Errand,
    /// A link for as long as the intent exists.
    Hold,
}

/// An intent as a peer's machine sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Intent {
    /// Its name.
    pub id: IntentId,
    /// What it asks for.
    pub want: Want,
    /// Its place in the queue.
    pub priority: Priority,
    /// When it ends as [`Outcome::TimedOut`]; a hold has none.
    pub deadline: Option<Instant>,
}

/// How an intent ended. Every intent has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It got what it asked for.
    Done,
    /// The peer refused it, with this code.
    Refused(Code),
    /// It cannot succeed, for a reason on this side or on the way.
    Failed(Failure),
    /// Payload was sent and the link was lost before the answer: the peer may or may not have acted on it.
    Unknown,
    /// Its deadline passed.
    TimedOut,
    /// The caller dropped it.
    Cancelled,
    /// The app banned the peer.
    Banned,
    /// The part of the node that kept it failed and was restarted.
    Restarted,
    /// The node is shutting down.
    ShuttingDown,
}

/// Why an intent cannot succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// No address of the peer is known.
    NoAddress,
    /// No peer is known that offers the protocol.
    NoProvider,
    /// The peer is this node.
    SelfDial,
    /// No link was live, and the caller did not want to wait for one.
    NoLink,
    /// Too many intents wait already, for this peer or in total.
    QueueFull,
    /// Too many peers are remembered already.
    TooManyPeers,
    /// The peer is of another network or speaks another major version.
    NoCommonProtocol,
    /// Whoever answers at the peer's address has another key.
    WrongIdentity,
    /// The stream was still open when the drain deadline of its link passed.
    DrainDeadline,
    /// The request is larger than the limit of this node or of the peer.
    TooLarge,
    /// The peer accepted the stream and then gave it up with this code.
    Reset(Code),
}

impl Outcome {
    /// A word for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
            Self::Unknown => "unknown",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Banned => "banned",
            Self::Restarted => "restarted",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// The words of all outcomes, for tables of counters.
    pub const NAMES: [&'static str; 9] = [
        "done",
        "refused",
        "failed",
        "unknown",
        "timed_out",
        "cancelled",
        "banned",
        "restarted",
        "shutting_down",
    ];
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("no address of the peer is known"),
            Self::NoProvider => f.write_str("no peer is known that offers the protocol"),
            Self::SelfDial => f.write_str("the peer is this node itself"),
            Self::NoLink => f.write_str("no link with the peer is live"),
            Self::QueueFull => f.write_str("too many intents are waiting"),
            Self::TooManyPeers => f.write_str("too many peers are remembered"),
            Self::NoCommonProtocol => {
                f.write_str("the peer is of another network or speaks another major version")
            }
            Self::WrongIdentity => f.write_str("another identity answers at the peer's address"),
            Self::DrainDeadline => f.write_str("the link's drain deadline passed"),
            Self::TooLarge => f.write_str("the message is larger than allowed"),
            Self::Reset(code) => write!(f, "the peer gave the stream up: {code}"),
        }
    }
}

/// How far the caller's future got on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Progress {
    /// No payload was written: the stream's header at most.
    NothingSent,
    /// Payload was written.
    PayloadSent,
}

/// What became of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamLoss {
    /// The peer refused the stream with this code.
    Refused(Code),
    /// The peer accepted the stream, then reset it with this code.
    Reset(Code),
    /// The stream could not be opened: the link was over by then, closed with this code if with any.
    NotOpened(Option<Code>),
    /// The peer said in `Goodbye` that it never served the stream.
    NeverServed,
    /// The peer closed the link that this side dialled, with this code, and no welcome was heard on it.
    LinkRefused(Code),
    /// The peer closed the link, with this code.
    LinkClosed(Code),
    /// This side closed the link, with this code; what the peer did with the stream is not known.
    LinkClosedHere(Code),
    /// The link was lost without a word.
    LinkLost,
}

/// What the caller's future does about a lost stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Next {
    /// Ask for the next link, with the same deadline.
    Again,
    /// End with this outcome.
    End(Outcome),
}

/// Decides whether an intent whose stream was lost is asked again on the next link: always while no payload was sent;
/// afterwards only if it is idempotent or the peer certainly never served it.
///
/// A refusal that the next link would repeat (unknown protocol, not allowed, busy) is final.
pub fn after_loss(progress: Progress, idempotent: bool, loss: StreamLoss) -> Next {
    let safe = idempotent || progress == Progress::NothingSent;
    match loss {
        // A peer that turns us away may close the link before the first stream is opened.
        StreamLoss::NotOpened(Some(code @ (Code::Banned | Code::NotAdmitted))) => {
            Next::End(Outcome::Refused(code))
        }
        StreamLoss::NotOpened(_) | StreamLoss::NeverServed => Next::Again,
        StreamLoss::Refused(code) if code.retry_on_next_link() && (safe || code.never_served()) => {
            Next::Again
        }
        StreamLoss::Refused(code) => Next::End(Outcome::Refused(code)),
        StreamLoss::LinkClosed(Code::DrainDeadline)
        | StreamLoss::LinkClosedHere(Code::DrainDeadline)
        | StreamLoss::Reset(Code::DrainDeadline) => {
            Next::End(Outcome::Failed(Failure::DrainDeadline))
        }
        StreamLoss::Reset(code) => Next::End(Outcome::Failed(Failure::Reset(code))),
        // Before its welcome, for certain.
        StreamLoss::LinkRefused(Code::NotAdmitted) => {
            Next::End(Outcome::Refused(Code::NotAdmitted))
        }
        // Before it or after: a close may overtake the welcome, and the stream may have been served in between.
        StreamLoss::LinkRefused(Code::Banned) if safe => Next::End(Outcome::Refused(Code::Banned)),
        // An acceptor closes with one of these only before its welcome, and serves nothing before that.
        StreamLoss::LinkRefused(
            Code::Duplicate | Code::Busy | Code::ShuttingDown | Code::HelloTimeout,
        ) => Next::Again,
        // The app of this side did not want the peer any more.
        StreamLoss::LinkClosedHere(Code::Cancelled) if safe => Next::End(Outcome::Cancelled),
        StreamLoss::LinkClosedHere(Code::Banned) if safe => Next::End(Outcome::Banned),
        StreamLoss::LinkClosed(Code::Banned) if safe => Next::End(Outcome::Refused(Code::Banned)),
        StreamLoss::LinkRefused(_)
        | StreamLoss::LinkClosed(_)
        | StreamLoss::LinkClosedHere(_)
        | StreamLoss::LinkLost
            if safe =>
        {
            Next::Again
        }
        StreamLoss::LinkRefused(_)
        | StreamLoss::LinkClosed(_)
        | StreamLoss::LinkClosedHere(_)
        | StreamLoss::LinkLost => Next::End(Outcome::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_sent_is_always_asked_again_when_the_link_goes() {
        for loss in [
            StreamLoss::LinkLost,
            StreamLoss::LinkClosed(Code::Restarted),
            StreamLoss::LinkClosed(Code::Ok),
            StreamLoss::NotOpened(None),
            StreamLoss::NotOpened(Some(Code::DrainDeadline)),
            StreamLoss::NeverServed,
        ] {
            assert_eq!(after_loss(Progress::NothingSent, false, loss), Next::Again, "{loss:?}");
        }
    }

    #[test]
    fn sent_payload_is_unknown_unless_idempotent() {
        let lost = StreamLoss::LinkLost;
        assert_eq!(after_loss(Progress::PayloadSent, false, lost), Next::End(Outcome::Unknown));
        assert_eq!(after_loss(Progress::PayloadSent, true, lost), Next::Again);
    }

    #[test]
    fn sent_payload_that_the_peer_never_served_is_asked_again() {
        for loss in [
            StreamLoss::NeverServed,
            StreamLoss::Refused(Code::Draining),
            StreamLoss::LinkRefused(Code::Duplicate),
        ] {
            assert_eq!(after_loss(Progress::PayloadSent, false, loss), Next::Again, "{loss:?}");
        }
    }

    #[test]
    fn a_code_proves_nothing_about_sent_payload_once_the_link_was_welcomed_or_closed_here() {
        for code in [Code::Duplicate, Code::Busy, Code::ShuttingDown, Code::HelloTimeout] {
            for loss in [StreamLoss::LinkClosed(code), StreamLoss::LinkClosedHere(code)] {
                let next = after_loss(Progress::PayloadSent, false, loss);
                assert_eq!(next, Next::End(Outcome::Unknown), "{loss:?}");
            }
        }
    }

    #[test]
    fn what_the_app_disconnected_is_not_asked_again() {
        let closed = StreamLoss::LinkClosedHere(Code::Cancelled);
        let cancelled = Next::End(Outcome::Cancelled);
        assert_eq!(after_loss(Progress::NothingSent, false, closed), cancelled);
        let unknown = Next::End(Outcome::Unknown);
        assert_eq!(after_loss(Progress::PayloadSent, false, closed), unknown);
    }

    #[test]
    fn a_refusal_that_would_repeat_is_final() {
        for code in [Code::UnknownProtocol, Code::NotAllowed, Code::Busy] {
            assert_eq!(
                after_loss(Progress::NothingSent, true, StreamLoss::Refused(code)),
                Next::End(Outcome::Refused(code))
            );
        }
    }

    #[test]
    fn a_peer_that_turns_the_link_away_refuses_what_was_to_be_opened_on_it() {
        for code in [Code::Banned, Code::NotAdmitted] {
            let loss = StreamLoss::NotOpened(Some(code));
            let refused = Next::End(Outcome::Refused(code));
            assert_eq!(after_loss(Progress::NothingSent, true, loss), refused);
        }
    }

    #[test]
    fn a_peer_that_bans_may_have_served_before_and_one_that_does_not_admit_has_not() {
        let banned = StreamLoss::LinkRefused(Code::Banned);
        let refused = Next::End(Outcome::Refused(Code::Banned));
        assert_eq!(after_loss(Progress::NothingSent, false, banned), refused);
        assert_eq!(after_loss(Progress::PayloadSent, true, banned), refused);
        let unknown = Next::End(Outcome::Unknown);
        assert_eq!(after_loss(Progress::PayloadSent, false, banned), unknown);
        let not_admitted = StreamLoss::LinkRefused(Code::NotAdmitted);
        let refused = Next::End(Outcome::Refused(Code::NotAdmitted));
        assert_eq!(after_loss(Progress::PayloadSent, false, not_admitted), refused);
    }

    #[test]
    fn a_stream_cut_by_the_drain_deadline_fails_as_such() {
        let cut = StreamLoss::LinkClosed(Code::DrainDeadline);
        let failed = Next::End(Outcome::Failed(Failure::DrainDeadline));
        assert_eq!(after_loss(Progress::PayloadSent, true, cut), failed);
        assert_eq!(after_loss(Progress::NothingSent, false, cut), failed);
    }
}
