//! What sessions and Accept do in the world: handshakes, frames, streams, the graceful close, and how links end.

use std::sync::Arc;
use std::time::Duration;

use kinfolk_core::code::Code;
use kinfolk_core::intent::{Next, Progress, StreamLoss, after_loss};
use kinfolk_core::peer_link::LinkEnd;

use super::link::{Frame, State, Told};
use super::name::{Name, Side};
use super::promise::Promise;
use super::step::Variant;
use super::world::World;

impl World {
    pub(super) fn establish(&mut self, name: Name) {
        // A handshake takes a round trip with the process that runs now; what an earlier one sent has arrived by then, or never will.
        for (other, link) in &mut self.links {
            for side in other.ends() {
                let late = !link.end(side).arriving.is_empty() && link.far_end(side).crashed;
                if late && other.joins(name.dialler, name.to) {
                    Arc::make_mut(link).end_mut(side).arriving.clear();
                }
            }
        }
        let link = self.link(name);
        link.end_mut(name.to).state = State::Accepted;
        let end = link.end_mut(name.dialler);
        end.state = State::Connected;
        end.told.push_back(Told::Connected);
    }

    pub(super) fn deliver(&mut self, name: Name, side: Side) {
        let Some(frame) = self.link(name).end_mut(side).arriving.pop_front() else { return };
        match frame {
            Frame::Hello { dead } => {
                let late = self.setup.variant == Variant::StampsLate;
                let arrival = if late { 0 } else { self.node_mut(side).next_stamp() };
                let end = self.link(name).end_mut(side);
                end.state = State::Arrived { dead, arrival, closed: None };
            }
            Frame::Welcome { life } => {
                let arrival = self.node_mut(side).next_stamp();
                let end = self.link(name).end_mut(side);
                end.state = State::Welcomed;
                end.told.push_back(Told::Welcomed { life, arrival });
            }
            Frame::Stream(id) => {
                let link = self.link(name);
                let end = link.end_mut(side);
                if end.state != State::Welcomed {
                    end.unserved.insert(id);
                } else if end.leases_closed {
                    link.send_from(side, Frame::Refuse(id));
                } else {
                    end.acked = true;
                    link.send_from(side, Frame::Ack(id));
                }
            }
            Frame::Ack(id) => {
                let end = self.link(name).end_mut(side);
                end.acked = true;
                if end.streams.remove(&id) {
                    self.node_mut(side).served += 1;
                }
                self.used(name, side);
            }
            Frame::Refuse(id) => {
                if self.link(name).end_mut(side).streams.remove(&id) {
                    self.lose_stream(side, name.far(side), StreamLoss::Refused(Code::Draining));
                }
                self.used(name, side);
            }
            Frame::Hold(held) => {
                self.link(name).end_mut(side).held = held;
                self.used(name, side);
            }
            Frame::Goodbye(code) => {
                self.link(name).end_mut(side).told.push_back(Told::Draining(code));
                let within = self.setup.limits.drain_deadline;
                self.drain(name, side, Code::Draining, within);
            }
            Frame::Done => {
                self.link(name).end_mut(side).heard_done = true;
                self.close_if_done(name, side);
            }
            Frame::Close(code) => {
                let end = self.link(name).end_mut(side);
                let over = match code {
                    Code::Ok if end.said_goodbye => LinkEnd::Drained,
                    code => LinkEnd::ClosedByPeer(code),
                };
                if let State::Arrived { closed, .. } = &mut end.state {
                    *closed = Some(over);
                } else {
                    self.finish(name, side, over, None);
                }
            }
        }
    }

    fn used(&mut self, name: Name, side: Side) {
        let now = self.node(side).now;
        self.link(name).end_mut(side).last_used = now;
        self.close_if_done(name, side);
    }

    /// The graceful close: once both sides have said and heard `Done`.
    fn close_if_done(&mut self, name: Name, side: Side) {
        let link = self.link(name);
        let end = link.end_mut(side);
        if end.is_gone() || !end.said_goodbye {
            return;
        }
        if !end.in_use() && !end.said_done {
            end.said_done = true;
            link.send_from(side, Frame::Done);
        }
        let end = link.end(side);
        if end.said_done && end.heard_done {
            self.finish(name, side, LinkEnd::Drained, Some(Code::Ok));
        }
    }

    pub(super) fn drain(&mut self, name: Name, side: Side, code: Code, within: Duration) {
        let now = self.node(side).now;
        let link = self.link(name);
        let end = link.end_mut(side);
        if end.is_gone() || end.said_goodbye {
            return;
        }
        // A dial whose welcome was not heard carries nothing; whether it was, only the session knows.
        if end.state == State::Greeted {
            return self.finish(name, side, LinkEnd::Closed(code), Some(code));
        }
        end.said_goodbye = true;
        end.leases_closed = true;
        end.drain_by = Some(now + within);
        let held = std::mem::replace(&mut end.holding, false);
        if held {
            link.send_from(side, Frame::Hold(false));
        }
        link.send_from(side, Frame::Goodbye(code));
        self.close_if_done(name, side);
    }

    /// This end is over; with a code, the other one is told.
    pub(super) fn finish(&mut self, name: Name, side: Side, over: LinkEnd, close: Option<Code>) {
        let link = self.link(name);
        let end = link.end_mut(side);
        if end.is_gone() {
            return;
        }
        end.state = State::Gone;
        end.arriving.clear();
        end.unserved.clear();
        if end.session {
            end.ended = Some(over);
        }
        // Whatever is acknowledged goes on until the drain deadline, unless the peer is banned, replaced the link or is gone.
        let may_cut = match over {
            LinkEnd::Closed(code) => {
                matches!(code, Code::DrainDeadline | Code::Banned | Code::Replaced)
            }
            _ => true,
        };
        let cuts = !may_cut && end.acked && !link.far_end(side).crashed;
        let end = link.end_mut(side);
        let streams = std::mem::take(&mut end.streams);
        if let Some(code) = close {
            link.send_from(side, Frame::Close(code));
        }
        let loss = match (over, close) {
            (_, Some(code)) | (LinkEnd::ClosedByPeer(code), None) => StreamLoss::LinkClosed(code),
            _ => StreamLoss::LinkLost,
        };
        for _ in streams {
            self.lose_stream(side, name.far(side), loss);
        }
        if cuts {
            self.breaks(
                Promise::NothingCut,
                format!("{side:?}: {over:?} cuts an acknowledged stream of {name:?}"),
            );
        }
    }

    pub(super) fn lose_stream(&mut self, side: Side, peer: Side, loss: StreamLoss) {
        if self.setup.variant == Variant::DropsLostStreams {
            return;
        }
        match after_loss(Progress::NothingSent, false, loss) {
            Next::Again => self.node_mut(side).peer_mut(peer).asks += 1,
            Next::End(_) => self.node_mut(side).failed += 1,
        }
    }

    pub(super) fn crash(&mut self, side: Side) {
        let setup = Arc::clone(&self.setup);
        let keeps_incarnation = setup.variant == Variant::KeepsIncarnation;
        self.node_mut(side).crash(&setup.limits, keeps_incarnation);
        for (_, link) in self.links.iter_mut().filter(|(name, _)| name.ends().contains(&side)) {
            let end = Arc::make_mut(link).end_mut(side);
            end.crashed |= end.state != State::Unknown;
            if end.crashed {
                end.state = State::Gone;
            }
            end.arriving.clear();
            end.told.clear();
            end.streams.clear();
            end.session = false;
            end.ended = None;
        }
        self.links.retain(|_, link| !link.is_forgettable());
    }
}
