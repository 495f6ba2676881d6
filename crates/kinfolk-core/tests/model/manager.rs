//! What the manager does in the world: it tells a node's table what happened, and carries out what the table wants.

use std::sync::Arc;
use std::time::Duration;

use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Intent, IntentId, StreamLoss, Want};
use kinfolk_core::peer_link::{DownReason, Incoming, Input, Linger, LinkEnd, Output, PeerEvent};

use super::link::{Frame, Link, State, Told};
use super::name::{Name, Side};
use super::promise::Promise;
use super::step::Variant;
use super::world::World;

/// The word for an output; the table keeps some to itself.
fn word(output: &Output) -> &'static str {
    match output {
        Output::WantDial => "want dial",
        Output::Dial(_) => "dial",
        Output::Greet(..) => "greet",
        Output::Admit(_) => "admit",
        Output::Park(_) => "park",
        Output::Welcome(_) => "welcome",
        Output::Refuse(..) => "refuse",
        Output::Publish(_) => "publish",
        Output::Unpublish(_) => "unpublish",
        Output::Keep(..) => "keep",
        Output::Drain(..) => "drain",
        Output::Close(..) => "close",
        Output::Kill(_) => "kill",
        Output::CloseIfIdle(..) => "close if idle",
        Output::Hand(..) => "hand",
        Output::End(..) => "end",
        Output::Forget => "forget",
        Output::Event(PeerEvent::Up(..)) => "up",
        Output::Event(PeerEvent::Down(_, DownReason::Replaced)) => "replaced",
        Output::Event(PeerEvent::Down(..)) => "down",
        Output::Event(PeerEvent::DialFailed(..)) => "dial failed",
        Output::Event(PeerEvent::Refused(..)) => "refused",
        Output::Event(PeerEvent::Ended(..)) => "ended",
        Output::Event(PeerEvent::Quarantined(_)) => "quarantined",
        Output::Event(PeerEvent::Banned(_)) => "banned",
        Output::Event(PeerEvent::Unbanned) => "unbanned",
    }
}

/// The link that the manager has to have a session for.
fn ordered(output: &Output) -> Option<LinkId> {
    match output {
        Output::Greet(link, _)
        | Output::Welcome(link)
        | Output::Keep(link, _)
        | Output::Drain(link, ..)
        | Output::Close(link, _)
        | Output::Kill(link)
        | Output::CloseIfIdle(link, _) => Some(*link),
        _ => None,
    }
}

impl World {
    pub(super) fn handle(&mut self, name: Name, side: Side) {
        let Some(told) = self.link(name).end_mut(side).told.pop_front() else { return };
        let life = if let Told::Welcomed { life, .. } = told { life } else { 0 };
        let link = self.node(side).link_id(name);
        let input = match told {
            Told::Connected => Input::Connected { link },
            Told::Welcomed { life, arrival } => {
                Input::Welcomed { link, incarnation: Incarnation::new(life), arrival }
            }
            Told::Draining(code) => Input::Draining { link, code },
            Told::Lingered(linger) => Input::Lingered { link, linger },
        };
        let peer = name.far(side);
        self.feed(side, peer, input);
        if self.node(side).live(peer) == Some(name) {
            self.meet(side, peer, (life, 0));
        }
    }

    pub(super) fn report(&mut self, name: Name, side: Side) {
        let swallowed = self.setup.variant == Variant::SwallowsEnds;
        let end = self.link(name).end_mut(side);
        let Some(over) = end.ended.take() else { return };
        if swallowed {
            return;
        }
        end.session = false;
        let link = self.node(side).link_id(name);
        self.feed(side, name.far(side), Input::Ended { link, end: over });
    }

    pub(super) fn consider(&mut self, name: Name, side: Side) {
        let State::Arrived { dead, arrival, .. } = &self.links[&name].end(side).state else {
            return;
        };
        let (mut dead, arrival) = (dead.clone(), *arrival);
        if self.node(side).shut {
            return self.refuse(name, side, Code::ShuttingDown);
        }
        let peer = name.far(side);
        let ours = self.contenders(side, peer);
        match self.setup.variant {
            Variant::DropsDialOnIncoming => {
                dead.extend(ours.iter().filter(|link| Some(**link) != self.node(side).live(peer)));
            }
            Variant::NewestWins => dead.extend(&ours),
            Variant::LowerIdWins if peer < side => dead.extend(&ours),
            Variant::LowerIdWins if !ours.is_empty() => {
                self.judge_refusal(side, name);
                return self.refuse(name, side, Code::Duplicate);
            }
            _ => {}
        }
        let late = self.setup.variant == Variant::StampsLate;
        let arrival = if late { self.node_mut(side).next_stamp() } else { arrival };
        self.meet(side, peer, (name.life, name.n));
        let node = self.node(side);
        let dead = dead.into_iter().map(|name| node.link_id(name)).collect();
        let incoming = Incoming { link: node.link_id(name), dead, arrival };
        self.feed(side, peer, Input::Incoming { incoming, room: true });
    }

    /// The links of this side that an incoming one may have to beat: its dial and its live link.
    fn contenders(&self, side: Side, peer: Side) -> Vec<Name> {
        let live = self.node(side).live(peer);
        let contending = self.links.iter().filter(|(name, link)| {
            let dialled = name.ends() == [side, peer] && {
                let end = link.end(side);
                end.session && !end.is_gone() && !end.said_goodbye
            };
            dialled || live == Some(**name)
        });
        contending.map(|(name, _)| *name).collect()
    }

    fn meet(&mut self, side: Side, peer: Side, shown: (u64, u64)) {
        let peer = self.node_mut(side).peer_mut(peer);
        peer.met = peer.met.max(shown);
    }

    pub(super) fn queue(&mut self, side: Side, peer: Side, want: Want, within: Option<Duration>) {
        let node = self.node_mut(side);
        node.opened += u64::from(want == Want::Stream);
        if node.shut {
            node.failed += u64::from(want == Want::Stream);
            return;
        }
        let intent = node.new_intent(want);
        let deadline = within.map(|within| node.now + within);
        match want {
            Want::Hold => node.peer_mut(peer).holds.insert(intent.id),
            Want::Stream | Want::Errand => node.peer_mut(peer).waiting.insert(intent.id),
        };
        self.feed(side, peer, Input::Queue(Intent { deadline, ..intent }));
    }

    /// One clock for all, unless every order of timers is wanted.
    pub(super) fn keep_clocks_together(&mut self, side: Side) {
        if !self.setup.eager {
            let now = self.node(side).now;
            for node in &mut self.nodes {
                let node = Arc::make_mut(node);
                node.now = node.now.max(now);
            }
        }
    }

    pub(super) fn fire(&mut self, side: Side) {
        let node = self.node_mut(side);
        let Some(due) = node.table.next_timeout() else { return };
        node.now = node.now.max(due);
        self.keep_clocks_together(side);
        self.feed(side, side, Input::Timeout);
        let node = self.node(side);
        if node.table.next_timeout().is_some_and(|next| next <= node.now) {
            self.breaks(
                Promise::EndsByItself,
                format!("{side:?}: a timer that fired is still due"),
            );
        }
    }

    /// Tells the table; the peer does not matter where the input is about all of them.
    pub(super) fn feed(&mut self, side: Side, peer: Side, input: Input) {
        let before = Side::ALL.map(|peer| {
            let node = self.node(side);
            (node.knows(peer), node.live(peer))
        });
        let outputs = self.node_mut(side).feed(peer, input);
        if !self.setup.eager {
            self.wanted.extend(outputs.iter().map(|(_, output)| word(output)));
        }
        for (id, output) in outputs {
            let peer = self.node(side).whose(id);
            self.carry_out(side, peer, output);
        }
        for (peer, (known, old)) in Side::ALL.into_iter().zip(before) {
            if known && !self.node(side).knows(peer) {
                self.forget(side, peer);
            }
            if let (Some(old), Some(new)) = (old, self.node(side).live(peer))
                && old != new
            {
                self.judge_replacement(side, old, new);
            }
        }
    }

    /// The table has forgotten the peer.
    fn forget(&mut self, side: Side, peer: Side) {
        self.node_mut(side).peer_mut(peer).met = (0, 0);
        for (name, link) in &mut self.links {
            if name.joins(side, peer) && link.end(side).is_gone() {
                Arc::make_mut(link).end_mut(side).forgotten = true;
            }
        }
    }

    fn carry_out(&mut self, side: Side, peer: Side, output: Output) {
        let name = |world: &Self, link: LinkId| world.node(side).name(peer, link);
        if let Some(link) = ordered(&output)
            && !self.links.get(&name(self, link)).is_some_and(|link| link.has_session(side))
        {
            let what = format!("{side:?}: {output:?} for no session");
            return self.breaks(Promise::Accounts, what);
        }
        match output {
            Output::WantDial | Output::Forget => {}
            Output::Dial(link) => {
                let name = name(self, link);
                let now = [side, peer].map(|side| self.node(side).now);
                let mute = self.setup.unreachable.contains(&(side, peer));
                self.links.insert(name, Arc::new(Link::dialled(name, now, mute)));
            }
            Output::Greet(link, dead) => self.greet(name(self, link), side, &dead),
            Output::Admit(link) => self.admit(name(self, link), side, State::Welcomed),
            Output::Park(link) => self.park(name(self, link), side),
            Output::Welcome(link) => {
                let name = name(self, link);
                let end = self.link(name).end_mut(side);
                if end.state == State::Parked {
                    end.state = State::Welcomed;
                    self.welcome(name, side);
                }
            }
            Output::Refuse(link, code) => {
                let name = name(self, link);
                if code == Code::Duplicate {
                    self.judge_refusal(side, name);
                }
                self.refuse(name, side, code);
            }
            Output::Publish(link) => {
                if self.node_mut(side).peer_mut(peer).published.replace(link).is_some() {
                    let what = format!("{side:?}: two links with {peer:?} are published");
                    self.breaks(Promise::OneLive, what);
                }
            }
            Output::Unpublish(link) => {
                if self.node_mut(side).peer_mut(peer).published.take() != Some(link) {
                    let what = format!("{side:?}: {link} was not published");
                    self.breaks(Promise::Accounts, what);
                }
            }
            Output::Keep(link, keep) => {
                let link = self.link(name(self, link));
                let end = link.end_mut(side);
                if end.state == State::Welcomed && !end.said_goodbye && end.holding != keep {
                    end.holding = keep;
                    link.send_from(side, Frame::Hold(keep));
                }
            }
            Output::Drain(link, code @ (Code::Cancelled | Code::ShuttingDown), _)
                if self.setup.variant == Variant::CutsGivenUpDials =>
            {
                self.finish(name(self, link), side, LinkEnd::Closed(code), Some(code));
            }
            Output::Drain(link, code, within) => self.drain(name(self, link), side, code, within),
            Output::Close(link, code) => {
                let name = name(self, link);
                if code == Code::Duplicate && self.links[&name].end(side).state == State::Parked {
                    self.judge_refusal(side, name);
                }
                self.finish(name, side, LinkEnd::Closed(code), Some(code));
            }
            Output::Kill(link) => {
                self.finish(name(self, link), side, LinkEnd::Failed, Some(Code::Restarted));
            }
            Output::CloseIfIdle(link, linger) => self.close_if_idle(name(self, link), side, linger),
            Output::Hand(link, id) => {
                if !self.node_mut(side).peer_mut(peer).waiting.remove(&id) {
                    let what = format!("{side:?}: {id:?} was handed over unasked");
                    return self.breaks(Promise::OneOutcome, what);
                }
                self.open(name(self, link), side, id);
            }
            Output::End(id, outcome, _) => {
                let node = self.node_mut(side);
                let stream = node.peer_mut(peer).waiting.remove(&id);
                if !stream && !node.peer_mut(peer).holds.remove(&id) {
                    let what = format!("{side:?}: {id:?} ended twice, now as {outcome:?}");
                    return self.breaks(Promise::OneOutcome, what);
                }
                node.failed += u64::from(stream);
            }
            Output::Event(event) => self.note(side, peer, event),
        }
    }

    fn greet(&mut self, name: Name, side: Side, dead: &[LinkId]) {
        let (node, peer) = (self.node(side), name.to);
        let mut dead: Vec<Name> = dead.iter().map(|link| node.name(peer, *link)).collect();
        match self.setup.variant {
            Variant::ListsNothing => dead.clear(),
            Variant::ListsOnlyLost => {
                dead.retain(|name| self.links.get(name).is_none_or(|link| link.end(side).is_gone()))
            }
            _ => {}
        }
        let live = node.live(peer);
        let over = self.links.iter().filter(|(other, link)| {
            let end = link.end(side);
            // Everything that this process has let go and remembers: it neither awaits nor carries it.
            let had =
                !matches!(end.state, State::Unknown | State::Accepted | State::Arrived { .. })
                    && !end.crashed
                    && !end.forgotten;
            other.joins(side, peer) && had && **other != name && live != Some(**other)
        });
        let over = over.map(|(other, _)| *other).collect();
        let link = self.link(name);
        let end = link.end_mut(side);
        if end.state == State::Connected {
            end.state = State::Greeted;
            end.over = over;
            link.send_from(side, Frame::Hello { dead });
        }
    }

    fn park(&mut self, name: Name, side: Side) {
        self.admit(name, side, State::Parked);
        if self.setup.variant == Variant::RefusesInsteadOfParking {
            let code = Code::Duplicate;
            self.finish(name, side, LinkEnd::Closed(code), Some(code));
        }
    }

    /// Starts a session on an incoming link.
    fn admit(&mut self, name: Name, side: Side, state: State) {
        if (name.life, name.n) < self.node(side).peer(name.far(side)).met {
            let what = format!("{side:?}: {name:?} is taken, which its dialler must have given up");
            self.breaks(Promise::DeadNeverWins, what);
        }
        let end = self.link(name).end_mut(side);
        let State::Arrived { closed, .. } = &end.state else {
            let what = format!("{side:?}: {name:?} is taken and no hello waits");
            return self.breaks(Promise::Accounts, what);
        };
        let closed = *closed;
        end.session = true;
        let welcomed = state == State::Welcomed;
        end.state = state;
        if let Some(over) = closed {
            self.finish(name, side, over, None);
        } else if welcomed {
            self.welcome(name, side);
        }
    }

    fn welcome(&mut self, name: Name, side: Side) {
        let life = self.node(side).life;
        let now = self.node(side).now;
        let link = self.link(name);
        link.send_from(side, Frame::Welcome { life });
        for id in std::mem::take(&mut link.end_mut(side).unserved) {
            link.end_mut(side).acked = true;
            link.send_from(side, Frame::Ack(id));
        }
        link.end_mut(side).last_used = now;
    }

    fn refuse(&mut self, name: Name, side: Side, code: Code) {
        if !matches!(self.links[&name].end(side).state, State::Arrived { .. }) {
            let what = format!("{side:?}: {name:?} is refused and no hello waits");
            return self.breaks(Promise::Accounts, what);
        }
        self.finish(name, side, LinkEnd::Closed(code), Some(code));
    }

    /// The caller opens its stream on the link that it was given.
    fn open(&mut self, name: Name, side: Side, id: IntentId) {
        let takes = self.links.get(&name).is_some_and(|link| link.end(side).takes_streams());
        if !takes {
            return self.lose_stream(side, name.far(side), StreamLoss::NotOpened(None));
        }
        let link = self.link(name);
        link.end_mut(side).streams.insert(id);
        link.send_from(side, Frame::Stream(id));
    }

    fn close_if_idle(&mut self, name: Name, side: Side, linger: Duration) {
        let now = self.node(side).now;
        let end = self.link(name).end_mut(side);
        let found = if end.is_gone() {
            return;
        } else if end.in_use() {
            Linger::InUse
        } else if now.saturating_duration_since(end.last_used) < linger {
            Linger::UsedAt(end.last_used)
        } else {
            end.leases_closed = true;
            Linger::Closed
        };
        end.told.push_back(Told::Lingered(found));
    }

    fn note(&mut self, side: Side, of: Side, event: PeerEvent) {
        let node = self.node_mut(side);
        let peer = node.peer_mut(of);
        let paired = match event {
            PeerEvent::Up(link, _) => peer.up.replace(link).is_none(),
            PeerEvent::Down(link, _) => peer.up.take() == Some(link),
            PeerEvent::DialFailed(_, _, delay) => {
                node.troubles += u64::from(delay.is_some());
                true
            }
            _ => true,
        };
        if !paired {
            self.breaks(Promise::Accounts, format!("{side:?}: {event:?} out of turn"));
        }
    }
}
