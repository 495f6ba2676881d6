//! Which of several links stays: what becomes of an incoming link, by the table on the page of [`peer_link`](super).

use std::time::Instant;

use crate::code::Code;
use crate::id::{Incarnation, LinkId};

use super::{
    Dial, Direction, DownReason, Incoming, Live, Output, Parked, PeerEvent, PeerLink, Seen, after,
};

enum Arbitration {
    Take,
    Park,
    Refuse(Code),
}

impl PeerLink {
    pub(super) fn incoming(
        &mut self,
        now: Instant,
        incoming: Incoming,
        room: bool,
        out: &mut Vec<Output>,
    ) {
        let link = incoming.link;
        let decision = self.arbitrate(&incoming, room);
        if link.dialler == self.peer {
            self.saw(link.incarnation, incoming.arrival, link.n);
        }
        match decision {
            Arbitration::Refuse(code) => {
                out.push(Output::Refuse(link, code));
                out.push(Output::Event(PeerEvent::Refused(link, code)));
            }
            Arbitration::Park => {
                self.unpark(now, Code::Duplicate, out);
                self.parked = Some(Parked {
                    link,
                    arrival: incoming.arrival,
                    deadline: after(now, self.rules.hello_deadline),
                });
                out.push(Output::Park(link));
            }
            Arbitration::Take => {
                self.unpark(now, Code::Duplicate, out);
                self.yield_dial(now, &incoming, out);
                self.displace(now, &incoming, room, out);
                out.push(Output::Admit(link));
                self.go_live(now, link, incoming.link.incarnation, incoming.arrival, out);
            }
        }
    }

    fn arbitrate(&self, incoming: &Incoming, room: bool) -> Arbitration {
        let link = &incoming.link;
        if self.shutting_down {
            return Arbitration::Refuse(Code::ShuttingDown);
        }
        if self.banned_until.is_some() {
            return Arbitration::Refuse(Code::Banned);
        }
        if link.dialler != self.peer || self.knows(link) {
            return Arbitration::Refuse(Code::Violation);
        }
        if self.is_outdated(link.incarnation, incoming.arrival) || self.is_given_up(link) {
            return Arbitration::Refuse(Code::Duplicate);
        }
        if let Some(live) = &self.live {
            let newer_process =
                live.incarnation != link.incarnation && incoming.arrival > live.arrival;
            let later_dial = live.link.dialler == link.dialler
                && live.link.incarnation == link.incarnation
                && live.link.n < link.n;
            let lost_there = incoming.dead.contains(&live.link);
            if !(newer_process || later_dial || lost_there) {
                return Arbitration::Refuse(Code::Duplicate);
            }
            // The place of an inbound link is free for its successor; that of a dial of ours is not the peer's to take.
            return if room || live.direction == Direction::Inbound {
                Arbitration::Take
            } else {
                Arbitration::Refuse(Code::Busy)
            };
        }
        // A parked link's place is free for the one that displaces it.
        if !room && self.parked.is_none() {
            return Arbitration::Refuse(Code::Busy);
        }
        match &self.dial {
            Some(Dial::Greeting { link: dial, .. }) if self.me > self.peer => {
                let newer_process =
                    self.seen.as_ref().is_some_and(|seen| seen.incarnation != link.incarnation);
                if newer_process || incoming.dead.contains(dial) {
                    Arbitration::Take
                } else {
                    Arbitration::Park
                }
            }
            _ => Arbitration::Take,
        }
    }

    pub(super) fn knows(&self, link: &LinkId) -> bool {
        self.live() == Some(*link)
            || self.parked.as_ref().is_some_and(|parked| parked.link == *link)
            || self.closing.contains_key(link)
    }

    /// Whether something that arrived later showed another incarnation: the process that wrote this is gone.
    pub(super) fn is_outdated(&self, incarnation: Incarnation, arrival: u64) -> bool {
        self.seen
            .as_ref()
            .is_some_and(|seen| seen.incarnation != incarnation && seen.arrival > arrival)
    }

    /// Whether the peer has dialled again since: it has one dial at a time.
    pub(super) fn is_given_up(&self, link: &LinkId) -> bool {
        self.seen
            .as_ref()
            .is_some_and(|seen| seen.incarnation == link.incarnation && seen.n > link.n)
    }

    pub(super) fn saw(&mut self, incarnation: Incarnation, arrival: u64, n: u64) {
        match &mut self.seen {
            Some(seen) if seen.incarnation == incarnation => {
                seen.arrival = seen.arrival.max(arrival);
                seen.n = seen.n.max(n);
            }
            Some(seen) if seen.arrival > arrival => {}
            _ => self.seen = Some(Seen { incarnation, arrival, n }),
        }
    }

    pub(super) fn unpark(&mut self, now: Instant, code: Code, out: &mut Vec<Output>) {
        if let Some(parked) = self.parked.take() {
            self.close(now, parked.link, code, out);
        }
    }

    /// Makes way for an incoming link that was taken.
    pub(super) fn yield_dial(&mut self, now: Instant, incoming: &Incoming, out: &mut Vec<Output>) {
        match self.dial.take() {
            None | Some(Dial::Ready) => {}
            Some(Dial::Connecting { link, .. }) => {
                self.bury(link);
                self.close(now, link, Code::Duplicate, out);
            }
            Some(Dial::Greeting { link, deadline }) => {
                // The peer still has to say what it did with our hello, unless it has said so.
                if self.me < self.peer && !incoming.dead.contains(&link) {
                    self.dial = Some(Dial::Greeting { link, deadline });
                } else {
                    self.bury(link);
                    self.drain(now, link, Code::Duplicate, out);
                }
            }
        }
    }

    /// Removes the live link in favour of an incoming one. It drains if it belongs to the same process and there is room for both; a peer
    /// that replaces its links over and over has one draining, and the others are closed at once.
    pub(super) fn displace(
        &mut self,
        now: Instant,
        incoming: &Incoming,
        room: bool,
        out: &mut Vec<Output>,
    ) {
        let Some(live) = self.take_replaced(out) else { return };
        let same_process = live.incarnation == incoming.link.incarnation;
        let spare = room && !self.closing.keys().any(|link| link.dialler == self.peer);
        if same_process && (spare || live.direction == Direction::Outbound) {
            self.drain(now, live.link, Code::Replaced, out);
        } else {
            self.close(now, live.link, Code::Replaced, out);
        }
    }

    /// The live link, live no more since another one takes its place.
    pub(super) fn take_replaced(&mut self, out: &mut Vec<Output>) -> Option<Live> {
        let live = self.live.take()?;
        self.bury(live.link);
        out.push(Output::Unpublish(live.link));
        out.push(Output::Event(PeerEvent::Down(live.link, DownReason::Replaced)));
        Some(live)
    }

    pub(super) fn go_live(
        &mut self,
        now: Instant,
        link: LinkId,
        incarnation: Incarnation,
        arrival: u64,
        out: &mut Vec<Output>,
    ) {
        let direction = self.direction(&link);
        self.retry_at = None;
        self.live = Some(Live {
            link,
            direction,
            incarnation,
            arrival,
            since: now,
            kept: false,
            linger_at: None,
            retire_at: self.rules.session_age.map(|age| after(now, age)),
        });
        out.push(Output::Publish(link));
        out.push(Output::Event(PeerEvent::Up(link, direction)));
    }
}
