//! A machine, its clock, and short ways to talk to it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_base::{EndpointId, SecretKey};
use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Intent, IntentId, Outcome, Priority, Want};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{Incoming, Input, LinkEnd, Output, PeerLink, PeerState, Rules};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A machine, its clock, and short ways to talk to it.
pub(crate) struct Bench {
    pub(crate) link: PeerLink,
    pub(crate) me: EndpointId,
    pub(crate) peer: EndpointId,
    pub(crate) now: Instant,
    pub(crate) arrivals: u64,
    pub(crate) dials: u64,
}

/// Two ids, the smaller first.
pub(crate) fn ids() -> (EndpointId, EndpointId) {
    let id = |n| SecretKey::from_bytes(&[n; 32]).public();
    if id(1) < id(2) { (id(1), id(2)) } else { (id(2), id(1)) }
}

impl Bench {
    /// A machine whose own id is the smaller one.
    pub(crate) fn smaller() -> Self {
        let (me, peer) = ids();
        Self::new(me, peer, &Limits::default())
    }

    /// A machine whose own id is the larger one.
    pub(crate) fn larger() -> Self {
        let (peer, me) = ids();
        Self::new(me, peer, &Limits::default())
    }

    pub(crate) fn new(me: EndpointId, peer: EndpointId, limits: &Limits) -> Self {
        let rules = Arc::new(Rules::from(limits));
        let link = PeerLink::new(me, Incarnation::new(1), peer, rules, 7);
        Self { link, me, peer, now: Instant::now(), arrivals: 0, dials: 0 }
    }

    pub(crate) fn tell(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.link.handle(self.now, input, &mut out);
        out
    }

    pub(crate) fn open(&mut self, id: u64) -> Vec<Output> {
        self.open_until(id, None)
    }

    pub(crate) fn open_until(&mut self, id: u64, deadline: Option<Instant>) -> Vec<Output> {
        let priority = Priority::default();
        let intent = Intent { id: IntentId(id), want: Want::Stream, priority, deadline };
        self.tell(Input::Queue(intent))
    }

    pub(crate) fn hold(&mut self, id: u64) -> Vec<Output> {
        let priority = Priority::default();
        let intent = Intent { id: IntentId(id), want: Want::Hold, priority, deadline: None };
        self.tell(Input::Queue(intent))
    }

    pub(crate) fn theirs(&self, incarnation: u64, n: u64) -> LinkId {
        LinkId { dialler: self.peer, incarnation: Incarnation::new(incarnation), n }
    }

    pub(crate) fn ours(&self, n: u64) -> LinkId {
        LinkId { dialler: self.me, incarnation: Incarnation::new(1), n }
    }

    pub(crate) fn arrive(&mut self, link: LinkId, dead: &[LinkId]) -> Vec<Output> {
        self.arrivals += 1;
        let incoming = Incoming { link, dead: dead.to_vec(), arrival: self.arrivals };
        self.tell(Input::Incoming { incoming, room: true })
    }

    /// Lets the waiting dial start and returns its link.
    pub(crate) fn dial(&mut self) -> LinkId {
        assert!(self.link.wants_dial(), "no dial is wanted: {:?}", self.link.why(self.now));
        self.dials += 1;
        let link = self.ours(self.dials);
        assert_eq!(self.tell(Input::Granted { n: self.dials }), [Output::Dial(link)]);
        link
    }

    /// A dial whose hello is written.
    pub(crate) fn greet(&mut self) -> LinkId {
        let link = self.dial();
        let out = self.tell(Input::Connected { link });
        assert!(
            out.iter()
                .any(|output| matches!(output, Output::Greet(greeted, _) if *greeted == link))
        );
        link
    }

    pub(crate) fn welcome(&mut self, link: LinkId, incarnation: u64) -> Vec<Output> {
        self.arrivals += 1;
        let incarnation = Incarnation::new(incarnation);
        self.tell(Input::Welcomed { link, incarnation, arrival: self.arrivals })
    }

    /// A live link that this side dialled for a hold.
    pub(crate) fn live(&mut self) -> LinkId {
        self.hold(1000);
        let link = self.greet();
        self.welcome(link, 50);
        assert_eq!(self.link.live(), Some(link));
        link
    }

    pub(crate) fn end(&mut self, link: LinkId, end: LinkEnd) -> Vec<Output> {
        self.tell(Input::Ended { link, end })
    }

    pub(crate) fn state(&self) -> PeerState {
        self.link.why(self.now).state
    }

    /// Moves the clock to the next timeout and fires it.
    pub(crate) fn fire(&mut self) -> Vec<Output> {
        self.now = self.now.max(self.link.next_timeout().unwrap());
        self.tell(Input::Timeout)
    }
}

pub(crate) fn ends(out: &[Output]) -> Vec<(u64, Outcome)> {
    let end = |output: &Output| match output {
        Output::End(id, outcome, _) => Some((id.0, *outcome)),
        _ => None,
    };
    out.iter().filter_map(end).collect()
}

/// Whether the link is drained with this code, and given all the time that it may take.
pub(crate) fn drains(out: &[Output], link: LinkId, code: Code) -> bool {
    out.contains(&Output::Drain(link, code, Limits::default().drain_deadline))
}

pub(crate) fn hands(out: &[Output]) -> Vec<(LinkId, u64)> {
    let hand = |output: &Output| match output {
        Output::Hand(link, id) => Some((*link, id.0)),
        _ => None,
    };
    out.iter().filter_map(hand).collect()
}
