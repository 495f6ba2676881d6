//! What goes into an announcer and what comes out of it.

use bytes::Bytes;
use iroh::EndpointId;
use kinfolk_core::catalog::{Sighting, Snapshot};
use kinfolk_core::code::{Blame, Code};
use kinfolk_core::intake::{Intake, IntakeError, Refusal};
use kinfolk_core::record::{Record, UnixMillis};

use super::frame::FrameError;

/// What the announcer looks at while it decides, and never keeps.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// What the catalog knows now: whom to join, who may be dialled, and what needs no check.
    pub(crate) known: &'a Snapshot,
    /// Where records are checked, with the budget that all parts of the node share.
    pub(crate) intake: &'a mut Intake,
    /// The wall clock.
    pub(crate) clock: UnixMillis,
}

/// What an announcer is told.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// This node has signed this record of its own: because it changed, or because [`Output::Refresh`] asked.
    Own(Record),
    /// A peer is in the catalog that was not, or was reached that had been missed: it may be in another part of the
    /// overlay. One that this announcer has just heard of may be told too, and is known to be in this part.
    Found(EndpointId),
    /// A stream with this peer is up, whoever opened it. One more with the same peer changes nothing.
    PeerUp(EndpointId),
    /// A frame came from this peer, without its length prefix.
    Received {
        /// The peer.
        peer: EndpointId,
        /// The frame.
        frame: Bytes,
    },
    /// The last stream with this peer is over, or none could be opened. Not told after [`Output::Close`].
    PeerGone(EndpointId),
    /// The node leaves, and this is its tombstone. Whatever comes after it is ignored.
    Depart(Record),
    /// The time of [`next_timeout`](super::Announcer::next_timeout) has come.
    Timeout,
}

/// What an announcer wants done, in this order.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    /// Open a stream to this peer, over a session that there is or one that is dialled. Answered with
    /// [`Input::PeerUp`] or [`Input::PeerGone`], also if a stream of the peer came first.
    Open(EndpointId),
    /// Send a frame to this peer, which is up. It is not waited for: if the peer takes no more than so many, the stream is
    /// given up and [`Input::PeerGone`] told.
    Send {
        /// The peer.
        peer: EndpointId,
        /// The frame, without its length prefix.
        frame: Bytes,
    },
    /// End all streams with this peer: finish them behind what was sent if the code is [`Code::Ok`], reset and stop them with
    /// the code otherwise. Also gives up opening one. What still comes from it is for nobody.
    Close {
        /// The peer.
        peer: EndpointId,
        /// Why.
        code: Code,
    },
    /// A verified record was announced that may be new, or of which more addresses may be used if whoever tells it once more is nearer than who
    /// told it before, for [`kinfolk_core::catalog::Input::Heard`].
    Heard {
        /// The record.
        sighting: Sighting,
        /// The neighbour it came from.
        from: EndpointId,
    },
    /// Sign a new record of this node, and tell it as [`Input::Own`].
    Refresh,
    /// This peer is a neighbour now.
    NeighbourUp(EndpointId),
    /// This peer is no longer a neighbour.
    NeighbourDown(EndpointId),
    /// Something was not done or not taken.
    Dropped {
        /// Who sent it, or whom it was for.
        peer: EndpointId,
        /// Why.
        reason: Dropped,
    },
    /// The tombstone was handed to the streams of all neighbours, and all streams are told to close: nothing else follows.
    Departed,
}

/// Why an announcer did not take or do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub(crate) enum Dropped {
    /// A frame has too many bytes.
    FrameTooLarge,
    /// A frame is of another version.
    FrameVersion,
    /// A frame is of a topic that nobody subscribed.
    UnknownTopic,
    /// A frame cannot be read.
    FrameMalformed,
    /// A frame is not canonical.
    FrameNonCanonical,
    /// A payload is not what its name says.
    WrongHash,
    /// A payload is not meant for all.
    WrongScope,
    /// A frame came from a peer without a stream.
    NoStream,
    /// Only neighbours may say that.
    NotNeighbour,
    /// A peer sends more frames than it may.
    FrameRate,
    /// More peers want to become neighbours than may at once.
    NewcomerRate,
    /// A neighbour relays more records than it may.
    RelayerRate,
    /// A neighbour promises more payloads than it may, or all together do.
    PromiseRate,
    /// An author announces more often than it may.
    AuthorRate,
    /// More authors announce at once than are remembered.
    AuthorTable,
    /// The payload was turned away before.
    Repeated,
    /// A record that is older than the one known.
    Outdated,
    /// A record with the number of the one known and other bytes.
    Equivocation,
    /// A record that was issued too long ago to be news.
    Stale,
    /// A record of this node itself, which others need not hear from it once more.
    Own,
    /// A message names a peer that the catalog does not know.
    Stranger,
    /// A peer that was missed a short while ago was to be asked.
    Doubtful,
    /// More streams were to be opened than may at once.
    OpenRate,
    /// A stream made room for another.
    StreamEvicted,
    /// Frames for a peer whose stream is being opened were too many, or too large.
    Unsent,
    /// The node is leaving.
    Leaving,
    /// The intake turned a record away.
    Record(Refusal),
}

impl Dropped {
    /// The reasons but those of the intake, which are `Record` of each in [`Refusal::ALL`].
    #[cfg(test)]
    pub(crate) const OWN: [Self; 26] = [
        Self::FrameTooLarge,
        Self::FrameVersion,
        Self::UnknownTopic,
        Self::FrameMalformed,
        Self::FrameNonCanonical,
        Self::WrongHash,
        Self::WrongScope,
        Self::NoStream,
        Self::NotNeighbour,
        Self::FrameRate,
        Self::NewcomerRate,
        Self::RelayerRate,
        Self::PromiseRate,
        Self::AuthorRate,
        Self::AuthorTable,
        Self::Repeated,
        Self::Outdated,
        Self::Equivocation,
        Self::Stale,
        Self::Own,
        Self::Stranger,
        Self::Doubtful,
        Self::OpenRate,
        Self::StreamEvicted,
        Self::Unsent,
        Self::Leaving,
    ];

    /// Every reason, for metrics that list them all.
    #[cfg(test)]
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Self::OWN.into_iter().chain(Refusal::ALL.into_iter().map(Self::Record))
    }

    /// The reason's name in metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::FrameTooLarge => "frame_too_large",
            Self::FrameVersion => "frame_version",
            Self::UnknownTopic => "unknown_topic",
            Self::FrameMalformed => "frame_malformed",
            Self::FrameNonCanonical => "frame_non_canonical",
            Self::WrongHash => "wrong_hash",
            Self::WrongScope => "wrong_scope",
            Self::NoStream => "no_stream",
            Self::NotNeighbour => "not_neighbour",
            Self::FrameRate => "frame_rate",
            Self::NewcomerRate => "newcomer_rate",
            Self::RelayerRate => "relayer_rate",
            Self::PromiseRate => "promise_rate",
            Self::AuthorRate => "author_rate",
            Self::AuthorTable => "author_table",
            Self::Repeated => "repeated",
            Self::Outdated => "outdated",
            Self::Equivocation => "equivocation",
            Self::Stale => "stale",
            Self::Own => "own",
            Self::Stranger => "stranger",
            Self::Doubtful => "doubtful",
            Self::OpenRate => "open_rate",
            Self::StreamEvicted => "stream_evicted",
            Self::Unsent => "unsent",
            Self::Leaving => "leaving",
            Self::Record(refusal) => refusal.name(),
        }
    }
}

/// What is wrong with something that came, and what follows for whoever sent it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) reason: Dropped,
    /// The code to end its streams with, if the sender is to blame.
    pub(super) code: Option<Code>,
}

impl From<Dropped> for Fault {
    fn from(reason: Dropped) -> Self {
        Self { reason, code: None }
    }
}

impl From<FrameError> for Fault {
    fn from(error: FrameError) -> Self {
        let reason = match &error {
            FrameError::TooLarge { .. } => Dropped::FrameTooLarge,
            FrameError::UnknownVersion(_) => Dropped::FrameVersion,
            FrameError::UnknownTopic => Dropped::UnknownTopic,
            FrameError::Malformed(_) => Dropped::FrameMalformed,
            FrameError::NonCanonical => Dropped::FrameNonCanonical,
            FrameError::WrongHash => Dropped::WrongHash,
            FrameError::WrongScope => Dropped::WrongScope,
        };
        Self { reason, code: (error.blame() == Blame::Sender).then(|| error.code()) }
    }
}

impl From<IntakeError> for Fault {
    fn from(error: IntakeError) -> Self {
        let code = (error.blame() == Blame::Sender).then_some(Code::Violation);
        Self { reason: Dropped::Record(error.refusal()), code }
    }
}
