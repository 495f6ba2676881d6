//! Frames between neighbours: what they may say, checked before anything of it is acted upon.
//!
//! A frame is a version byte, the topic, and a message of `iroh_gossip::proto` 0.101 in postcard. That crate relays what it is
//! given before it says what came, names peers that we would then dial, counts hops until they overflow, and keeps what a
//! message brings in tables without a bound. So every message is first read into the types of this file, which mirror
//! those messages field by field, is checked, corrected and filtered here or by the [announcer](super), and only then becomes
//! one of the crate's own. Nothing here remembers anything.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use iroh::EndpointId;
use iroh_gossip::proto::topic;
use kinfolk_core::code::{Blame, Code};
use kinfolk_core::id::NetworkId;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

/// The most bytes of a frame, its length prefix not counted. The largest that this version sends is a list of promises.
pub(crate) const FRAME_MAX: usize = 2048;

/// The version of frames that this crate sends and reads.
pub(crate) const FRAME_VERSION: u8 = 1;

/// What `iroh_gossip::proto` may fill a message with.
pub(super) const MESSAGE_MAX: usize = FRAME_MAX - 1;

/// Peers named by one message: what a shuffle holds, three active, four passive and its origin.
pub(super) const NAMES_MAX: usize = 8;

/// Promises in one message: more than `MESSAGE_MAX` has room for.
const PROMISES_MAX: usize = 64;

/// Hops beyond which nobody counts: more than the longest way through an overlay of a million nodes (a guess). It keeps
/// the count from overflowing.
const ROUND_MAX: u16 = 1000;

/// The longest random walk of a message (as in the paper on HyParView).
pub(super) const WALK_MAX: u16 = 6;

const TOPIC_CONTEXT: &str = "kinfolk announcements topic";
const TOPIC_BYTES: usize = 32;

/// What announcements of one network are published under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TopicId([u8; TOPIC_BYTES]);

impl TopicId {
    /// The topic of the announcements of `network`.
    pub(crate) fn of(network: NetworkId) -> Self {
        Self(blake3::derive_key(TOPIC_CONTEXT, network.as_bytes()))
    }
}

/// The hash of a payload, which names it.
pub(super) type PayloadId = [u8; 32];

/// The name of a payload.
pub(super) fn payload_id(payload: &[u8]) -> PayloadId {
    *blake3::hash(payload).as_bytes()
}

/// Why a frame is not read any further.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub(crate) enum FrameError {
    /// It has more bytes than a frame may.
    #[error("expected a frame of at most {FRAME_MAX} bytes, came {len}")]
    TooLarge {
        /// How many came.
        len: usize,
    },
    /// It is of another version, which this node cannot read.
    #[error("expected a frame of version {FRAME_VERSION}, came one of version {0}")]
    UnknownVersion(u8),
    /// It is of a topic that this node has not subscribed.
    #[error("expected the topic of this network, came another one")]
    UnknownTopic,
    /// It cannot be read.
    #[error("the frame is malformed")]
    Malformed(#[source] postcard::Error),
    /// It can be read, yet the same message has other bytes.
    #[error("expected the canonical encoding of the message, came another one")]
    NonCanonical,
    /// A payload is not what its name says.
    #[error("expected a payload that is named by its hash, came another name")]
    WrongHash,
    /// A payload is not meant for all, which no node of this version asks for.
    #[error("expected a payload that is meant for the whole network")]
    WrongScope,
}

impl FrameError {
    /// Who did something wrong, where [`Blame::Sender`] is whoever sent the frame: a neighbour sends only what it would
    /// take. A newer version, and a topic that others share, blame nobody.
    pub(crate) const fn blame(&self) -> Blame {
        match self {
            Self::UnknownVersion(_) | Self::UnknownTopic => Blame::Nobody,
            Self::TooLarge { .. }
            | Self::Malformed(_)
            | Self::NonCanonical
            | Self::WrongHash
            | Self::WrongScope => Blame::Sender,
        }
    }

    /// The code that the stream with whoever is to blame ends with.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } => Code::TooLarge,
            Self::Malformed(_) | Self::NonCanonical => Code::Malformed,
            _ => Code::Violation,
        }
    }
}

/// A message, as `iroh_gossip::proto::topic::Message` encodes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message<'a> {
    Swarm(Swarm),
    #[serde(borrow)]
    Gossip(Gossip<'a>),
}

/// Who is whose neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Swarm {
    Join(Option<Data>),
    ForwardJoin { peer: Named, ttl: u16 },
    Shuffle { origin: EndpointId, nodes: List<Named, NAMES_MAX>, ttl: u16 },
    ShuffleReply { nodes: List<Named, NAMES_MAX> },
    Neighbor { priority: Priority, data: Option<Data> },
    Disconnect { alive: bool, respond: bool },
}

/// What is passed on, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Gossip<'a> {
    Payload {
        id: PayloadId,
        #[serde(borrow)]
        content: &'a [u8],
        scope: Scope,
    },
    Prune,
    Graft {
        id: Option<PayloadId>,
        round: u16,
    },
    Promises(List<Promise, PROMISES_MAX>),
}

/// A peer that others may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    pub(super) id: EndpointId,
    data: Option<Data>,
}

#[cfg(test)]
impl Named {
    pub(super) fn new(id: EndpointId) -> Self {
        Self { id, data: None }
    }
}

/// What the crate would carry about a peer without a bound. Nobody sends it: records say where a peer is. A message that
/// holds some is malformed, as this has no value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Data {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Priority {
    High,
    Low,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Scope {
    Swarm(u16),
    Neighbors,
}

/// That somebody has a payload, and how many hops it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Promise {
    pub(super) id: PayloadId,
    round: u16,
}

#[cfg(test)]
impl Promise {
    pub(super) fn new(id: PayloadId) -> Self {
        Self { id, round: 1 }
    }
}

/// A list of at most so many, for which no claimed number allocates anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct List<T, const MAX: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
            type Value = List<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(element) = seq.next_element()? {
                    if list.len() >= MAX {
                        return Err(A::Error::custom("too many elements"));
                    }
                    list.push(element);
                }
                Ok(List(list))
            }
        }

        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

impl<'a> Message<'a> {
    /// The message in a frame, with what it counts cut down to what can be counted on.
    ///
    /// # Errors
    ///
    /// [`FrameError`] says what is wrong with the frame.
    pub(super) fn decode(frame: &'a [u8], topic: TopicId) -> Result<Self, FrameError> {
        let len = frame.len();
        if len > FRAME_MAX {
            return Err(FrameError::TooLarge { len });
        }
        let end = || FrameError::Malformed(postcard::Error::DeserializeUnexpectedEnd);
        let (version, rest) = frame.split_first().ok_or_else(end)?;
        if *version != FRAME_VERSION {
            return Err(FrameError::UnknownVersion(*version));
        }
        let (named, body) = rest.split_first_chunk::<TOPIC_BYTES>().ok_or_else(end)?;
        if *named != topic.0 {
            return Err(FrameError::UnknownTopic);
        }
        let mut message: Self = postcard::from_bytes(body).map_err(FrameError::Malformed)?;
        if postcard::to_allocvec(&message).map_err(FrameError::Malformed)? != body {
            return Err(FrameError::NonCanonical);
        }
        if let Self::Gossip(Gossip::Payload { id, content, scope }) = &message {
            if *scope == Scope::Neighbors {
                return Err(FrameError::WrongScope);
            }
            if *id != payload_id(content) {
                return Err(FrameError::WrongHash);
            }
        }
        message.cut_down();
        Ok(message)
    }

    /// Whoever is first may count as it likes; those who pass it on are not to blame, so too much is made less.
    fn cut_down(&mut self) {
        match self {
            Self::Swarm(Swarm::ForwardJoin { ttl, .. } | Swarm::Shuffle { ttl, .. }) => {
                *ttl = (*ttl).min(WALK_MAX);
            }
            Self::Gossip(
                Gossip::Graft { round, .. } | Gossip::Payload { scope: Scope::Swarm(round), .. },
            ) => *round = (*round).min(ROUND_MAX),
            Self::Gossip(Gossip::Promises(promises)) => {
                for promise in &mut promises.0 {
                    promise.round = promise.round.min(ROUND_MAX);
                }
            }
            _ => {}
        }
    }

    /// A payload as its author sends it.
    pub(super) fn payload(content: &'a [u8]) -> Self {
        let id = payload_id(content);
        Self::Gossip(Gossip::Payload { id, content, scope: Scope::Swarm(0) })
    }

    /// The same as a message of the crate.
    ///
    /// # Errors
    ///
    /// Only if the crate's messages are no longer those of this file.
    pub(super) fn into_proto(self) -> Result<topic::Message<EndpointId>, FrameError> {
        convert(&self).map_err(FrameError::Malformed)
    }
}

fn convert<T: DeserializeOwned>(from: &impl Serialize) -> Result<T, postcard::Error> {
    postcard::from_bytes(&postcard::to_allocvec(from)?)
}

/// The frame of a message, this file's or the crate's own; `None` if it is larger than a frame may be, which nothing that this
/// version says is.
pub(super) fn encode(message: &impl Serialize, topic: TopicId) -> Option<Bytes> {
    let mut frame = vec![FRAME_VERSION];
    frame.extend_from_slice(&topic.0);
    let frame = postcard::to_extend(message, frame).ok()?;
    (frame.len() <= FRAME_MAX).then(|| frame.into())
}
