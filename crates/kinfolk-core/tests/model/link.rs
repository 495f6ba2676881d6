//! One link between two nodes: what the session at either end knows, and what is on its way to it.
//!
//! A link is reliable and ordered per direction, up to its end. A close may overtake what was sent before it, as QUIC discards
//! undelivered data; an end that vanishes without a close is noticed by the other one later.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use kinfolk_core::code::Code;
use kinfolk_core::intent::IntentId;
use kinfolk_core::peer_link::{Linger, LinkEnd};

use super::name::{Name, Side};

/// What travels on a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Frame {
    Hello {
        dead: Vec<Name>,
    },
    Welcome {
        life: u64,
    },
    /// A stream is opened.
    Stream(IntentId),
    /// The stream is served, and over.
    Ack(IntentId),
    /// The stream is refused, as the link drains.
    Refuse(IntentId),
    /// The stream by which the app's hold is known to the other side begins, or ends.
    Hold(bool),
    Goodbye(Code),
    Done,
    Close(Code),
}

/// What a session has told its manager and the manager has not handled yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Told {
    Connected,
    Welcomed { life: u64, arrival: u64 },
    Draining(Code),
    Lingered(Linger),
}

/// How far one end of a link is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    /// Nobody here knows of the link yet.
    Unknown,
    /// Accept has the connection and awaits the hello.
    Accepted,
    /// QUIC's handshake runs; `mute` if nobody will ever answer.
    Dialling {
        mute: bool,
    },
    /// Established; the machine has not allowed the hello yet.
    Connected,
    /// The hello is written.
    Greeted,
    /// The hello arrived and Accept asks the admission policy. `closed` once the connection is over.
    Arrived {
        dead: Vec<Name>,
        arrival: u64,
        closed: Option<LinkEnd>,
    },
    /// The manager keeps it for later.
    Parked,
    /// Streams are served.
    Welcomed,
    Gone,
}

/// One end of a link: a session, or a task of Accept before there is one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct End {
    pub state: State,
    pub arriving: VecDeque<Frame>,
    pub told: VecDeque<Told>,
    /// A session runs here, or its end is not reported yet.
    pub session: bool,
    pub ended: Option<LinkEnd>,
    /// The node that had this end crashed.
    pub crashed: bool,
    /// The node remembers nothing of it any more, as its deadline for that has passed.
    pub forgotten: bool,
    /// Streams of this side that are not answered.
    pub streams: BTreeSet<IntentId>,
    /// Streams of the other side that wait for the welcome.
    pub unserved: BTreeSet<IntentId>,
    /// A stream was acknowledged, from here or as this end heard; the app may be using it ever since.
    pub acked: bool,
    /// This side's app holds the link, and the other side's does.
    pub holding: bool,
    pub held: bool,
    pub last_used: Instant,
    pub leases_closed: bool,
    pub said_goodbye: bool,
    pub said_done: bool,
    pub heard_done: bool,
    pub drain_by: Option<Instant>,
    /// Links that this end's node had and held no more when it wrote the hello of this one.
    pub over: Vec<Name>,
}

impl End {
    fn new(now: Instant, state: State) -> Self {
        Self {
            state,
            arriving: VecDeque::new(),
            told: VecDeque::new(),
            session: false,
            ended: None,
            crashed: false,
            forgotten: false,
            streams: BTreeSet::new(),
            unserved: BTreeSet::new(),
            acked: false,
            holding: false,
            held: false,
            last_used: now,
            leases_closed: false,
            said_goodbye: false,
            said_done: false,
            heard_done: false,
            drain_by: None,
            over: Vec::new(),
        }
    }

    pub fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    pub fn takes_streams(&self) -> bool {
        matches!(self.state, State::Greeted | State::Welcomed) && !self.leases_closed
    }

    pub fn in_use(&self) -> bool {
        !self.streams.is_empty() || self.holding || self.held
    }

    /// Welcomed and not draining, and the manager has heard everything of it.
    pub fn is_live(&self) -> bool {
        self.state == State::Welcomed && !self.leases_closed && self.told.is_empty()
    }

    /// Whether a close is on its way to this end.
    pub fn close_is_coming(&self) -> bool {
        matches!(self.arriving.back(), Some(Frame::Close(_)))
    }

    fn is_forgettable(&self) -> bool {
        let silent = matches!(self.state, State::Unknown | State::Accepted);
        let over = self.is_gone() || (silent && self.arriving.is_empty());
        over && !self.session && self.told.is_empty()
    }
}

/// A link with both of its ends, the dialler's first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Link {
    name: Name,
    ends: [End; 2],
}

impl Link {
    /// `now` at the dialler and at the other side; a mute dial is one that nobody will ever answer.
    pub fn dialled(name: Name, now: [Instant; 2], mute: bool) -> Self {
        let mut dialled = End::new(now[0], State::Dialling { mute });
        dialled.session = true;
        Self { name, ends: [dialled, End::new(now[1], State::Unknown)] }
    }

    pub fn end(&self, side: Side) -> &End {
        &self.ends[usize::from(side != self.name.dialler)]
    }

    pub fn end_mut(&mut self, side: Side) -> &mut End {
        &mut self.ends[usize::from(side != self.name.dialler)]
    }

    pub fn far_end(&self, side: Side) -> &End {
        self.end(self.name.far(side))
    }

    /// The side has a part in the link, and a session for it.
    pub fn has_session(&self, side: Side) -> bool {
        self.name.ends().contains(&side) && self.end(side).session
    }

    /// The manager has not heard everything of it.
    pub fn has_news(&self, side: Side) -> bool {
        let end = self.end(side);
        end.session && (!end.told.is_empty() || end.ended.is_some())
    }

    /// Sends from `side` to the other one; an end that is gone hears nothing.
    pub fn send_from(&mut self, side: Side, frame: Frame) {
        let end = self.end_mut(self.name.far(side));
        match end.state {
            State::Unknown | State::Gone => {}
            // Nobody hears of a connection that is closed before its first frame.
            State::Accepted if end.arriving.is_empty() && matches!(frame, Frame::Close(_)) => {
                end.state = State::Gone;
            }
            _ => end.arriving.push_back(frame),
        }
    }

    pub fn is_forgettable(&self) -> bool {
        self.ends.iter().all(End::is_forgettable)
    }
}
