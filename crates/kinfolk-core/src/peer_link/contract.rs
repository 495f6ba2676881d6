//! What goes into a peer's machine and what comes out: the contract between the machine and the PeerManager.
//!
//! These are values only; what they mean to each other is decided in [`PeerLink`](super::PeerLink).

use std::fmt;
use std::time::{Duration, Instant};

use crate::code::Code;
use crate::id::{Incarnation, LinkId};
use crate::intent::{Failure, Intent, IntentId, Outcome};
use crate::limits::Limits;

/// The times that the machine lives by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rules {
    /// From a granted dial until QUIC is established.
    pub dial_deadline: Duration,
    /// From `Hello` until its answer, and the longest time a link is parked.
    pub hello_deadline: Duration,
    /// How long a live link that nothing needs stays.
    pub linger: Duration,
    /// How long a draining link may take.
    pub drain_deadline: Duration,
    /// A link that lived this long resets the backoff.
    pub stable_after: Duration,
    /// The longest wait before a dial.
    pub redial_max: Duration,
    /// Oldest age of a live link, if any.
    pub session_age: Option<Duration>,
    /// How long a peer whose sessions panic is left alone.
    pub quarantine: Duration,
    /// How long an unneeded peer is remembered.
    pub peer_memory: Duration,
    /// Intents that may wait for the peer.
    pub intents: usize,
}

impl From<&Limits> for Rules {
    fn from(limits: &Limits) -> Self {
        Self {
            dial_deadline: limits.dial_deadline,
            hello_deadline: limits.hello_deadline,
            linger: limits.linger,
            drain_deadline: limits.drain_deadline,
            stable_after: limits.stable_after,
            redial_max: limits.redial_max,
            session_age: limits.session_age,
            quarantine: limits.quarantine,
            peer_memory: limits.peer_memory,
            intents: limits.intents_per_peer,
        }
    }
}

/// Who opened a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The peer.
    Inbound,
    /// This node.
    Outbound,
}

/// What an incoming link said of itself, and when.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Incoming {
    /// The link, dialled by the peer.
    pub link: LinkId,
    /// Links with this node that the peer holds dead or drains.
    pub dead: Vec<LinkId>,
    /// Stamp of its arrival: later hellos and welcomes have larger ones.
    pub arrival: u64,
}

/// Why a dial did not lead to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DialFailure {
    /// No address is known.
    NoAddress,
    /// Nobody answered in time.
    TimedOut,
    /// The peer refused before or in the handshake.
    Refused,
    /// No common protocol: another network, or another major version.
    NoCommonProtocol,
    /// Whoever answered has another identity.
    WrongIdentity,
    /// The peer is this node.
    SelfDial,
    /// Anything else, such as a closed endpoint.
    Other,
}

/// How a link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkEnd {
    /// Both sides agreed to close it and nothing was lost.
    Drained,
    /// This side closed it, with this code.
    Closed(Code),
    /// The peer closed it, with this code.
    ClosedByPeer(Code),
    /// The dial failed.
    DialFailed(DialFailure),
    /// The connection was lost.
    Lost,
    /// The peer broke the protocol; this side closed it with this code.
    PeerMisbehaved(Code),
    /// The session failed.
    Failed,
    /// The session panicked.
    Panicked,
}

impl LinkEnd {
    /// Whether a dial that ended like this has missed the peer: nobody was there, or nobody who can be talked to. What this side gave up says
    /// nothing of the peer.
    pub const fn is_miss(self) -> bool {
        use DialFailure as F;
        matches!(
            self,
            Self::DialFailed(
                F::NoAddress | F::TimedOut | F::Refused | F::NoCommonProtocol | F::WrongIdentity
            ) | Self::Lost
                | Self::Closed(Code::HelloTimeout)
        )
    }

    /// A word for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Closed(_) => "closed",
            Self::ClosedByPeer(_) => "closed_by_peer",
            Self::DialFailed(failure) => failure.name(),
            Self::Lost => "lost",
            Self::PeerMisbehaved(_) => "peer_misbehaved",
            Self::Failed => "failed",
            Self::Panicked => "panicked",
        }
    }
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("closed in agreement"),
            Self::Closed(code) => write!(f, "closed by this side: {code}"),
            Self::ClosedByPeer(code) => write!(f, "closed by the peer: {code}"),
            Self::DialFailed(failure) => failure.fmt(f),
            Self::Lost => f.write_str("the connection was lost"),
            Self::PeerMisbehaved(code) => write!(f, "the peer broke the protocol: {code}"),
            Self::Failed => f.write_str("the session failed"),
            Self::Panicked => f.write_str("the session panicked"),
        }
    }
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAddress => "no address of the peer is known",
            Self::TimedOut => "nobody answered the dial in time",
            Self::Refused => "the peer refused the connection",
            Self::NoCommonProtocol => "the peer is of another network or major version",
            Self::WrongIdentity => "another identity answered",
            Self::SelfDial => "the peer is this node itself",
            Self::Other => "the dial failed",
        })
    }
}

impl DialFailure {
    /// A word for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoAddress => "no_address",
            Self::TimedOut => "dial_timed_out",
            Self::Refused => "dial_refused",
            Self::NoCommonProtocol => "no_common_protocol",
            Self::WrongIdentity => "wrong_identity",
            Self::SelfDial => "self_dial",
            Self::Other => "dial_failed",
        }
    }

    /// The failure that an intent ends with at once, where waiting cannot help.
    pub(super) fn is_final(self) -> Option<Failure> {
        match self {
            Self::NoAddress => Some(Failure::NoAddress),
            Self::NoCommonProtocol => Some(Failure::NoCommonProtocol),
            Self::WrongIdentity => Some(Failure::WrongIdentity),
            Self::SelfDial => Some(Failure::SelfDial),
            Self::TimedOut | Self::Refused | Self::Other => None,
        }
    }
}

/// Why the live link stopped being live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DownReason {
    /// This side drains it, for this reason.
    Draining(Code),
    /// The peer drains it, for this reason.
    PeerDraining(Code),
    /// It was replaced by another link of the peer.
    Replaced,
    /// It ended.
    Ended(LinkEnd),
    /// The app banned the peer.
    Banned,
}

/// What the manager reports after it tried to close an idle link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Linger {
    /// Its leases were zero and unused since the linger time; they are closed now.
    Closed,
    /// It is in use.
    InUse,
    /// It was last used then.
    UsedAt(Instant),
}

/// What happened to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// The app wants something.
    Queue(Intent),
    /// The caller of a waiting intent, or the owner of a hold, is gone.
    Cancel(IntentId),
    /// An incoming link was read up to its hello. `room` says whether the table can take one more session;
    /// without it the link may still take the place of an earlier one of the peer.
    Incoming {
        /// What it said.
        incoming: Incoming,
        /// Whether one more inbound session fits.
        room: bool,
    },
    /// The table permits the dial that waits; `n` numbers it.
    Granted {
        /// Number of the dial, larger than all before in this incarnation.
        n: u64,
    },
    /// The dialled link's QUIC handshake is done.
    Connected {
        /// The link.
        link: LinkId,
    },
    /// The peer welcomed the dialled link.
    Welcomed {
        /// The link.
        link: LinkId,
        /// The peer's incarnation.
        incarnation: Incarnation,
        /// Stamp of the welcome's arrival.
        arrival: u64,
    },
    /// The peer said goodbye on the link.
    Draining {
        /// The link.
        link: LinkId,
        /// Why.
        code: Code,
    },
    /// The answer to [`Output::CloseIfIdle`].
    Lingered {
        /// The link.
        link: LinkId,
        /// What the attempt found.
        linger: Linger,
    },
    /// The link's session ended.
    Ended {
        /// The link.
        link: LinkId,
        /// How.
        end: LinkEnd,
    },
    /// A new address of the peer is known.
    AddressNews,
    /// A new address of the node itself is known, and many other nodes may have learnt theirs in the same moment.
    NetworkNews,
    /// The app wants the peer disconnected.
    Disconnect,
    /// The app bans the peer until then.
    Ban {
        /// End of the ban.
        until: Instant,
    },
    /// The app lifts the ban.
    Unban,
    /// The node is draining.
    Shutdown,
    /// Time passed.
    Timeout,
}

/// What the manager has to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// Ask the table for permission to dial.
    WantDial,
    /// Start a session that dials.
    Dial(LinkId),
    /// Let the dialling session write its `Hello`, with these dead links.
    Greet(LinkId, Vec<LinkId>),
    /// Start a session on the incoming link and welcome it.
    Admit(LinkId),
    /// Start a session on the incoming link, to be welcomed or closed later.
    Park(LinkId),
    /// Welcome the parked link.
    Welcome(LinkId),
    /// Close the incoming link, which has no session, with this code.
    Refuse(LinkId, Code),
    /// Let everyone open streams on this link.
    Publish(LinkId),
    /// Let nobody open streams on this link any more.
    Unpublish(LinkId),
    /// Tell the peer that the app holds the link (or no longer does).
    Keep(LinkId, bool),
    /// Say goodbye on the link and let its streams finish within this time; but close a link of our own at once, with this code, if no
    /// welcome was heard on it.
    Drain(LinkId, Code, Duration),
    /// Close the link now, with this code.
    Close(LinkId, Code),
    /// Kill the session: it did not end when told to.
    Kill(LinkId),
    /// Close the link's leases if it is idle since this duration, and answer with [`Input::Lingered`].
    CloseIfIdle(LinkId, Duration),
    /// Give the intent to its caller: it opens its stream on this link.
    Hand(LinkId, IntentId),
    /// End the intent; the link end says what was last wrong with the peer.
    End(IntentId, Outcome, Option<LinkEnd>),
    /// Tell whoever listens.
    Event(PeerEvent),
    /// Nothing is left to remember of the peer.
    Forget,
}

/// What others may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerEvent {
    /// A link went live.
    Up(LinkId, Direction),
    /// The live link is live no more.
    Down(LinkId, DownReason),
    /// A dial failed; the next starts after this time if the peer is still wanted.
    DialFailed(LinkId, LinkEnd, Option<Duration>),
    /// An incoming link was refused.
    Refused(LinkId, Code),
    /// A link's session is gone.
    Ended(LinkId, LinkEnd),
    /// The peer is left alone after repeated panics of its sessions.
    Quarantined(Duration),
    /// The peer is banned until then.
    Banned(Instant),
    /// The ban was lifted or has run out.
    Unbanned,
}

/// How many sessions and dials a peer accounts for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Usage {
    /// Links that the peer opened.
    pub inbound: usize,
    /// Links that this node opened.
    pub outbound: usize,
    /// Dials under way, until they are welcomed or have failed.
    pub dialling: usize,
    /// Links that are closing.
    pub closing: usize,
    /// Links that are parked.
    pub parked: usize,
    /// Intents that wait, holds included.
    pub intents: usize,
}

/// What a peer is doing, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerState {
    /// Nothing.
    Idle,
    /// Wants a dial, which waits for a free slot.
    Waiting,
    /// Waits until the next attempt.
    BackingOff,
    /// The QUIC handshake runs.
    Connecting,
    /// `Hello` is sent, its answer is awaited.
    Greeting,
    /// A link is live.
    Connected,
    /// The last link is draining.
    Draining,
    /// The app banned the peer, or it is in quarantine.
    Banned,
}

impl PeerState {
    /// A word for metrics and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::BackingOff => "backing off",
            Self::Connecting => "connecting",
            Self::Greeting => "greeting",
            Self::Connected => "connected",
            Self::Draining => "draining",
            Self::Banned => "banned",
        }
    }
}

/// Everything the machine can say about why a peer is connected or is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// What it is doing.
    pub state: PeerState,
    /// The live link.
    pub link: Option<LinkId>,
    /// Who opened it.
    pub direction: Option<Direction>,
    /// The peer's incarnation on it.
    pub incarnation: Option<Incarnation>,
    /// How long it has been live.
    pub age: Option<Duration>,
    /// Holds of the app on the peer.
    pub holds: usize,
    /// Intents that wait for a link.
    pub waiting: usize,
    /// Links that are draining or being closed.
    pub closing: usize,
    /// Failed attempts since the peer was last stable.
    pub attempts: u32,
    /// Time until the next dial.
    pub retry_in: Option<Duration>,
    /// Time until the ban ends.
    pub banned_for: Option<Duration>,
    /// Time until the idle link is closed.
    pub linger_left: Option<Duration>,
    /// What was last wrong with a link to the peer.
    pub last_error: Option<LinkEnd>,
}
