//! Both nodes and all links between them, and every step that can happen to them.
//!
//! The world plays the manager, the sessions, Accept and the network. It never chooses: whoever drives it picks among
//! [`Pair::steps`] (what goes on by itself), timers, faults and wishes of the app. A clock moves only when a timer fires. The first promise that is broken is kept in [`Pair::broken`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Intent, IntentId, Next, Progress, StreamLoss, Want, after_loss};
use kinfolk_core::peer_link::{
    DialFailure, DownReason, Incoming, Input, Linger, LinkEnd, Output, PeerEvent, PeerState, Rules,
};

use super::link::{Frame, Link, Name, Side, State, Told};
use super::node::{Node, ids};

/// A rule of the machine that the driver breaks on its behalf, to see that the tests notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    AsWritten,
    /// Each side believes that its id is the larger one: both park.
    BothLarger,
    /// Each side believes that its id is the smaller one: an incoming link always wins.
    BothSmaller,
    /// No hello lists dead links.
    ListsNothing,
    /// A hello lists lost links, and none that drain.
    ListsOnlyLost,
    /// Hellos are stamped when they are handled, not when they arrive.
    StampsLate,
    /// A link that should be parked is refused at once.
    RefusesInsteadOfParking,
    /// A restarted node shows its old incarnation.
    KeepsIncarnation,
    /// A dial that the app gives up is closed, whatever its session has heard by then.
    CutsGivenUpDials,
}

/// Something that can happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    // What goes on by itself
    /// The table permits the dial.
    Grant(Side),
    /// The handshake of a dialled link is done.
    Establish(Name),
    /// The next frame arrives.
    Deliver(Name, Side),
    /// The close arrives, and nothing that was sent before it.
    Overtake(Name, Side),
    /// The idle timeout shows that the other end is gone.
    Notice(Name, Side),
    /// The manager handles the next message of the session.
    Handle(Name, Side),
    /// The manager learns that the session ended.
    Report(Name, Side),
    /// The admission policy said yes, and the manager gets the hello.
    Consider(Name, Side),
    /// Accept finds the connection closed before the policy has answered.
    Abandon(Name, Side),
    /// The caller of a lost stream asks again.
    AskAgain(Side),

    // Time
    /// The node's next timer fires.
    Fire(Side),
    /// The drain deadline of a session passes.
    CutDrain(Name, Side),

    // Faults
    FailDial(Name, DialFailure),
    /// Nobody will ever answer the dial.
    Mute(Name),
    /// One end loses the link without a word to the other.
    Lose(Name, Side),
    /// What is on its way from an end that is gone never arrives.
    LoseFrames(Name, Side),
    Panic(Name, Side),
    Crash(Side),
    /// The table is full when the hello is handed over.
    ConsiderFull(Name, Side),
    /// The admission policy says no.
    NotAdmitted(Name, Side),

    // Wishes
    Hold(Side),
    Open(Side, Option<Duration>),
    Cancel(Side, IntentId),
    Disconnect(Side),
    Ban(Side, Duration),
    Unban(Side),
    AddressNews(Side),
    Shutdown(Side),
}

/// The world; see the module page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pair {
    pub nodes: [Node; 2],
    pub links: BTreeMap<Name, Link>,
    variant: Variant,
    /// Steps that are local and certain happen at once (permissions, reports), and each node has a clock of its own.
    eager: bool,
    broken: Option<String>,
    /// What the machines wanted in the last step; not kept in a search, where it would tell equal states apart.
    wanted: Vec<&'static str>,
}

/// The word for an output.
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

impl Pair {
    pub fn new(rules: Rules, variant: Variant, eager: bool, now: Instant) -> Self {
        let [small, middle, large] = ids();
        let (a, b) = match variant {
            Variant::BothLarger => ((large, middle), (middle, small)),
            Variant::BothSmaller => ((middle, large), (small, middle)),
            _ => ((small, middle), (middle, small)),
        };
        let nodes = [
            Node::new(Side::A, a.0, a.1, rules.clone(), now),
            Node::new(Side::B, b.0, b.1, rules, now),
        ];
        Self { nodes, links: BTreeMap::new(), variant, eager, broken: None, wanted: Vec::new() }
    }

    pub fn node(&self, side: Side) -> &Node {
        &self.nodes[side.index()]
    }

    fn node_mut(&mut self, side: Side) -> &mut Node {
        &mut self.nodes[side.index()]
    }

    /// The first promise that was broken.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// What the machines wanted in the last step, in words.
    pub fn wanted(&self) -> &[&'static str] {
        &self.wanted
    }

    fn breaks(&mut self, promise: impl Into<String>) {
        self.broken.get_or_insert(promise.into());
    }

    /// What goes on by itself, now.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for node in &self.nodes {
            if node.wants_dial() {
                steps.push(Step::Grant(node.side));
            }
        }
        for (name, link) in &self.links {
            for side in Side::BOTH {
                self.steps_of(*name, link, side, &mut steps);
            }
        }
        // Last: whoever takes the first step lets a manager hear of an end before it is asked again.
        let asking = self.nodes.iter().filter(|node| node.asks > 0);
        for node in asking.filter(|node| !self.has_retiring_link(node)) {
            steps.push(Step::AskAgain(node.side));
        }
        steps
    }

    /// Whether the live link takes no streams and the manager does not know yet. A caller waits for that before it asks again.
    fn has_retiring_link(&self, node: &Node) -> bool {
        node.live().is_some_and(|live| {
            self.links.get(&live).is_none_or(|link| !link.end(node.side).takes_streams())
        })
    }

    fn steps_of(&self, name: Name, link: &Link, side: Side, steps: &mut Vec<Step>) {
        let (end, far) = (link.end(side), link.end(side.other()));
        if !end.told.is_empty() {
            steps.push(Step::Handle(name, side));
        }
        if end.ended.is_some() {
            steps.push(Step::Report(name, side));
        }
        if !end.arriving.is_empty() {
            steps.push(Step::Deliver(name, side));
            if end.close_is_coming() && end.arriving.len() > 1 {
                steps.push(Step::Overtake(name, side));
            }
        }
        match &end.state {
            State::Dialling { mute: false } => steps.push(Step::Establish(name)),
            State::Arrived { closed, .. } => {
                steps.push(Step::Consider(name, side));
                if closed.is_some() {
                    steps.push(Step::Abandon(name, side));
                }
            }
            State::Connected | State::Greeted | State::Parked | State::Welcomed => {
                if far.is_gone() && !end.close_is_coming() {
                    steps.push(Step::Notice(name, side));
                }
            }
            State::Unknown | State::Accepted | State::Dialling { mute: true } | State::Gone => {}
        }
    }

    /// Lets the step happen, and looks whether every promise is still kept.
    pub fn apply(&mut self, step: &Step) {
        self.wanted.clear();
        self.take(step);
        while self.eager && self.broken.is_none() {
            let certain = self.steps().into_iter().find(|step| match step {
                Step::Grant(_) | Step::Report(..) | Step::AskAgain(_) => true,
                Step::Handle(name, side) => {
                    let told = self.links[name].end(*side).told.front();
                    !matches!(told, Some(Told::Welcomed { .. }))
                }
                _ => false,
            });
            let Some(step) = certain else { break };
            self.take(&step);
        }
    }

    fn take(&mut self, step: &Step) {
        match step.clone() {
            Step::Grant(side) => {
                let n = self.node_mut(side).next_n();
                self.feed(side, Input::Granted { n });
            }
            Step::Establish(name) => self.establish(name),
            Step::Deliver(name, side) => self.deliver(name, side),
            Step::Overtake(name, side) => {
                let arriving = &mut self.link(name).end_mut(side).arriving;
                arriving.drain(..arriving.len() - 1);
                self.deliver(name, side);
            }
            Step::Notice(name, side) | Step::Lose(name, side) => {
                self.finish(name, side, LinkEnd::Lost, None);
            }
            Step::Handle(name, side) => self.handle(name, side),
            Step::Report(name, side) => self.report(name, side),
            Step::Consider(name, side) => self.consider(name, side, true),
            Step::ConsiderFull(name, side) => self.consider(name, side, false),
            Step::Abandon(name, side) => self.link(name).end_mut(side).state = State::Gone,
            Step::NotAdmitted(name, side) => {
                self.finish(name, side, LinkEnd::Lost, Some(Code::NotAdmitted));
            }
            Step::AskAgain(side) => {
                let node = self.node_mut(side);
                node.asks -= 1;
                // It is the same wish.
                node.opened -= 1;
                self.queue(side, Want::Stream, None);
            }
            Step::Fire(side) => self.fire(side),
            Step::CutDrain(name, side) => {
                let due = self.links[&name].end(side).drain_by;
                let node = self.node_mut(side);
                node.now = due.map_or(node.now, |due| node.now.max(due));
                self.keep_clocks_together(side);
                let code = Code::DrainDeadline;
                self.finish(name, side, LinkEnd::Closed(code), Some(code));
            }
            Step::FailDial(name, failure) => {
                self.finish(name, name.dialler, LinkEnd::DialFailed(failure), None);
            }
            Step::Mute(name) => {
                self.link(name).end_mut(name.dialler).state = State::Dialling { mute: true };
            }
            Step::LoseFrames(name, side) => self.link(name).end_mut(side).arriving.clear(),
            Step::Panic(name, side) => {
                self.finish(name, side, LinkEnd::Panicked, Some(Code::Restarted));
            }
            Step::Crash(side) => self.crash(side),
            Step::Hold(side) => self.queue(side, Want::Hold, None),
            Step::Open(side, within) => self.queue(side, Want::Stream, within),
            Step::Cancel(side, id) => self.feed(side, Input::Cancel(id)),
            Step::Disconnect(side) => self.feed(side, Input::Disconnect),
            Step::Ban(side, time) => {
                let until = self.node(side).now + time;
                self.feed(side, Input::Ban { until });
            }
            Step::Unban(side) => self.feed(side, Input::Unban),
            Step::AddressNews(side) => self.feed(side, Input::AddressNews),
            Step::Shutdown(side) => {
                self.node_mut(side).shut = true;
                self.feed(side, Input::Shutdown);
            }
        }
        self.links.retain(|_, link| !link.is_forgettable());
        for side in Side::BOTH {
            let sessions = |outbound: bool| {
                let ours = self.links.iter().filter(|(name, link)| {
                    link.end(side).session && (name.dialler == side) == outbound
                });
                ours.count()
            };
            if let Some(broken) = self.node(side).broken_promise(sessions(false), sessions(true)) {
                self.breaks(format!("{side:?}: {broken}"));
            }
        }
    }

    /// The link, which must exist.
    fn link(&mut self, name: Name) -> &mut Link {
        self.links.get_mut(&name).unwrap()
    }

    // Sessions and Accept

    fn establish(&mut self, name: Name) {
        // A handshake takes a round trip with the process that runs now; what an earlier one sent has arrived by then, or never will.
        for link in self.links.values_mut() {
            for side in Side::BOTH {
                if link.end(side.other()).crashed {
                    link.end_mut(side).arriving.clear();
                }
            }
        }
        let link = self.link(name);
        link.end_mut(name.dialler.other()).state = State::Accepted;
        let end = link.end_mut(name.dialler);
        end.state = State::Connected;
        end.told.push_back(Told::Connected);
    }

    fn deliver(&mut self, name: Name, side: Side) {
        let Some(frame) = self.link(name).end_mut(side).arriving.pop_front() else { return };
        match frame {
            Frame::Hello { dead } => {
                let late = self.variant == Variant::StampsLate;
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
                    link.send_to(side.other(), Frame::Refuse(id));
                } else {
                    end.acked = true;
                    link.send_to(side.other(), Frame::Ack(id));
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
                    self.lose_stream(side, StreamLoss::Refused(Code::Draining));
                }
                self.used(name, side);
            }
            Frame::Hold(held) => {
                self.link(name).end_mut(side).held = held;
                self.used(name, side);
            }
            Frame::Goodbye(code) => {
                self.link(name).end_mut(side).told.push_back(Told::Draining(code));
                let within = self.node(side).rules.drain_deadline;
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
            link.send_to(side.other(), Frame::Done);
        }
        let end = link.end(side);
        if end.said_done && end.heard_done {
            self.finish(name, side, LinkEnd::Drained, Some(Code::Ok));
        }
    }

    fn drain(&mut self, name: Name, side: Side, code: Code, within: Duration) {
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
            link.send_to(side.other(), Frame::Hold(false));
        }
        link.send_to(side.other(), Frame::Goodbye(code));
        self.close_if_done(name, side);
    }

    /// This end is over; with a code, the other one is told.
    fn finish(&mut self, name: Name, side: Side, over: LinkEnd, close: Option<Code>) {
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
        let cuts = !may_cut && end.acked && !link.end(side.other()).crashed;
        let end = link.end_mut(side);
        let streams = std::mem::take(&mut end.streams);
        if let Some(code) = close {
            link.send_to(side.other(), Frame::Close(code));
        }
        let loss = match (over, close) {
            (_, Some(code)) | (LinkEnd::ClosedByPeer(code), None) => StreamLoss::LinkClosed(code),
            _ => StreamLoss::LinkLost,
        };
        for _ in streams {
            self.lose_stream(side, loss);
        }
        if cuts {
            self.breaks(format!("{side:?}: {over:?} cuts an acknowledged stream of {name:?}"));
        }
    }

    fn lose_stream(&mut self, side: Side, loss: StreamLoss) {
        match after_loss(Progress::NothingSent, false, loss) {
            Next::Again => self.node_mut(side).asks += 1,
            Next::End(_) => self.node_mut(side).failed += 1,
        }
    }

    fn crash(&mut self, side: Side) {
        self.node_mut(side).crash();
        if self.variant == Variant::KeepsIncarnation {
            let node = self.node_mut(side);
            node.life -= 1;
            // Numbers must not repeat, or two links would share a name.
            (0..8).for_each(|_| _ = node.next_n());
        }
        for link in self.links.values_mut() {
            let end = link.end_mut(side);
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

    // The manager

    fn handle(&mut self, name: Name, side: Side) {
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
        self.feed(side, input);
        if self.node(side).live() == Some(name) {
            self.meet(side, (life, 0));
        }
    }

    fn report(&mut self, name: Name, side: Side) {
        let end = self.link(name).end_mut(side);
        let Some(over) = end.ended.take() else { return };
        end.session = false;
        let link = self.node(side).link_id(name);
        self.feed(side, Input::Ended { link, end: over });
    }

    fn consider(&mut self, name: Name, side: Side, room: bool) {
        let State::Arrived { dead, arrival, .. } = &self.link(name).end(side).state else { return };
        let (dead, arrival) = (dead.clone(), *arrival);
        if self.node(side).shut {
            return self.refuse(name, side, Code::ShuttingDown);
        }
        let late = self.variant == Variant::StampsLate;
        let arrival = if late { self.node_mut(side).next_stamp() } else { arrival };
        self.meet(side, (name.life, name.n));
        let node = self.node(side);
        let dead = dead.into_iter().map(|name| node.link_id(name)).collect();
        let incoming = Incoming { link: node.link_id(name), dead, arrival };
        self.feed(side, Input::Incoming { incoming, room });
    }

    fn meet(&mut self, side: Side, shown: (u64, u64)) {
        let node = self.node_mut(side);
        node.met = node.met.max(shown);
    }

    fn queue(&mut self, side: Side, want: Want, within: Option<Duration>) {
        let node = self.node_mut(side);
        node.opened += u64::from(want == Want::Stream);
        if node.shut {
            node.failed += u64::from(want == Want::Stream);
            return;
        }
        let intent = node.new_intent(want);
        let deadline = within.map(|within| node.now + within);
        match want {
            Want::Hold => node.holds.insert(intent.id),
            Want::Stream => node.waiting.insert(intent.id),
        };
        self.feed(side, Input::Queue(Intent { deadline, ..intent }));
    }

    /// One clock for both, unless every order of timers is wanted.
    fn keep_clocks_together(&mut self, side: Side) {
        if !self.eager {
            let now = self.node(side).now;
            let other = self.node_mut(side.other());
            other.now = other.now.max(now);
        }
    }

    fn fire(&mut self, side: Side) {
        let node = self.node_mut(side);
        let Some(due) = node.next_timeout() else { return };
        node.now = node.now.max(due);
        self.keep_clocks_together(side);
        self.feed(side, Input::Timeout);
        let node = self.node(side);
        if node.next_timeout().is_some_and(|next| next <= node.now) {
            self.breaks(format!("{side:?}: a timer that fired is still due"));
        }
    }

    fn feed(&mut self, side: Side, input: Input) {
        let before = self.node(side).live();
        let outputs = self.node_mut(side).feed(input);
        if !self.eager {
            self.wanted.extend(outputs.iter().map(word));
        }
        let mut forgotten = false;
        for output in outputs {
            forgotten |= output == Output::Forget;
            self.carry_out(side, output);
        }
        if forgotten {
            let node = self.node_mut(side);
            (node.machine, node.met) = (None, (0, 0));
            for link in self.links.values_mut() {
                let end = link.end_mut(side);
                end.forgotten |= end.is_gone();
            }
        }
        if let (Some(old), Some(new)) = (before, self.node(side).live())
            && old != new
        {
            self.judge_replacement(side, old, new);
        }
    }

    fn carry_out(&mut self, side: Side, output: Output) {
        let ordered = match &output {
            Output::Greet(link, _)
            | Output::Welcome(link)
            | Output::Keep(link, _)
            | Output::Drain(link, ..)
            | Output::Close(link, _)
            | Output::Kill(link)
            | Output::CloseIfIdle(link, _) => Some(self.node(side).name(*link)),
            _ => None,
        };
        if let Some(name) = ordered
            && !self.links.get(&name).is_some_and(|link| link.end(side).session)
        {
            return self.breaks(format!("{side:?}: {output:?} for no session"));
        }
        let name = |pair: &Self, link: LinkId| pair.node(side).name(link);
        match output {
            Output::WantDial | Output::Forget => {}
            Output::Dial(link) => {
                let name = name(self, link);
                let now = [self.node(Side::A).now, self.node(Side::B).now];
                self.links.insert(name, Link::dialled(name, now));
            }
            Output::Greet(link, dead) => self.greet(name(self, link), side, &dead),
            Output::Admit(link) => self.admit(name(self, link), side, State::Welcomed),
            Output::Park(link) => {
                let name = name(self, link);
                self.admit(name, side, State::Parked);
                if self.variant == Variant::RefusesInsteadOfParking {
                    let code = Code::Duplicate;
                    self.finish(name, side, LinkEnd::Closed(code), Some(code));
                }
            }
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
                if self.node_mut(side).published.replace(link).is_some() {
                    self.breaks(format!("{side:?}: two links are published"));
                }
            }
            Output::Unpublish(link) => {
                if self.node_mut(side).published.take() != Some(link) {
                    self.breaks(format!("{side:?}: {link} was not published"));
                }
            }
            Output::Keep(link, keep) => {
                let link = self.link(name(self, link));
                let end = link.end_mut(side);
                if end.state == State::Welcomed && !end.said_goodbye && end.holding != keep {
                    end.holding = keep;
                    link.send_to(side.other(), Frame::Hold(keep));
                }
            }
            Output::Drain(link, code @ (Code::Cancelled | Code::ShuttingDown), _)
                if self.variant == Variant::CutsGivenUpDials =>
            {
                self.finish(name(self, link), side, LinkEnd::Closed(code), Some(code));
            }
            Output::Drain(link, code, within) => self.drain(name(self, link), side, code, within),
            Output::Close(link, code) => {
                let name = name(self, link);
                if code == Code::Duplicate && self.link(name).end(side).state == State::Parked {
                    self.judge_refusal(side, name);
                }
                self.finish(name, side, LinkEnd::Closed(code), Some(code));
            }
            Output::Kill(link) => {
                self.finish(name(self, link), side, LinkEnd::Failed, Some(Code::Restarted));
            }
            Output::CloseIfIdle(link, linger) => self.close_if_idle(name(self, link), side, linger),
            Output::Hand(link, id) => {
                if !self.node_mut(side).waiting.remove(&id) {
                    return self.breaks(format!("{side:?}: {id:?} was handed over unasked"));
                }
                self.open(name(self, link), side, id);
            }
            Output::End(id, outcome, _) => {
                let node = self.node_mut(side);
                let stream = node.waiting.remove(&id);
                if !stream && !node.holds.remove(&id) {
                    return self.breaks(format!("{side:?}: {id:?} ended twice as {outcome:?}"));
                }
                node.failed += u64::from(stream);
            }
            Output::Event(event) => self.note(side, event),
        }
    }

    fn greet(&mut self, name: Name, side: Side, dead: &[LinkId]) {
        let node = self.node(side);
        let mut dead: Vec<Name> = dead.iter().map(|link| node.name(*link)).collect();
        match self.variant {
            Variant::ListsNothing => dead.clear(),
            Variant::ListsOnlyLost => {
                dead.retain(|name| self.links.get(name).is_none_or(|link| link.end(side).is_gone()))
            }
            _ => {}
        }
        let live = node.live();
        let over = self.links.iter().filter(|(other, link)| {
            let end = link.end(side);
            // Everything that this process has let go and remembers: it neither awaits nor carries it.
            let had =
                !matches!(end.state, State::Unknown | State::Accepted | State::Arrived { .. })
                    && !end.crashed
                    && !end.forgotten;
            had && **other != name && live != Some(**other)
        });
        let over = over.map(|(other, _)| *other).collect();
        let link = self.link(name);
        let end = link.end_mut(side);
        if end.state == State::Connected {
            end.state = State::Greeted;
            end.over = over;
            link.send_to(side.other(), Frame::Hello { dead });
        }
    }

    /// Starts a session on an incoming link.
    fn admit(&mut self, name: Name, side: Side, state: State) {
        if (name.life, name.n) < self.node(side).met {
            self.breaks(format!(
                "{side:?}: {name:?} is taken, which its dialler must have given up"
            ));
        }
        let end = self.link(name).end_mut(side);
        let State::Arrived { closed, .. } = &end.state else {
            return self.breaks(format!("{side:?}: {name:?} is taken and no hello waits"));
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
        let link = self.link(name);
        link.send_to(side.other(), Frame::Welcome { life });
        for id in std::mem::take(&mut link.end_mut(side).unserved) {
            link.end_mut(side).acked = true;
            link.send_to(side.other(), Frame::Ack(id));
        }
        let now = self.node(side).now;
        self.link(name).end_mut(side).last_used = now;
    }

    fn refuse(&mut self, name: Name, side: Side, code: Code) {
        if !matches!(self.link(name).end(side).state, State::Arrived { .. }) {
            return self.breaks(format!("{side:?}: {name:?} is refused and no hello waits"));
        }
        self.finish(name, side, LinkEnd::Closed(code), Some(code));
    }

    /// The caller opens its stream on the link that it was given.
    fn open(&mut self, name: Name, side: Side, id: IntentId) {
        let Some(link) = self.links.get_mut(&name) else {
            return self.lose_stream(side, StreamLoss::NotOpened(None));
        };
        let end = link.end_mut(side);
        if end.takes_streams() {
            end.streams.insert(id);
            link.send_to(side.other(), Frame::Stream(id));
        } else {
            self.lose_stream(side, StreamLoss::NotOpened(None));
        }
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

    fn note(&mut self, side: Side, event: PeerEvent) {
        let node = self.node_mut(side);
        let paired = match event {
            PeerEvent::Up(link, _) => node.up.replace(link).is_none(),
            PeerEvent::Down(link, _) => node.up.take() == Some(link),
            PeerEvent::DialFailed(_, _, delay) => {
                node.troubles += u64::from(delay.is_some());
                true
            }
            _ => true,
        };
        if !paired {
            self.breaks(format!("{side:?}: {event:?} out of turn"));
        }
    }

    // Judgement with both sides in view

    fn is_of_a_dead_process(&self, name: Name, side: Side) -> bool {
        self.links.get(&name).is_some_and(|link| link.end(side.other()).crashed)
    }

    /// A link is turned away in favour of the live one: its dialler must not have let go of that one before, and the process
    /// behind the live one must not be gone while the other is there.
    fn judge_refusal(&mut self, side: Side, refused: Name) {
        let Some(live) = self.node(side).live() else { return };
        let link = &self.links[&refused];
        if link.end(side.other()).over.contains(&live) {
            self.breaks(format!(
                "{side:?}: {refused:?} is refused for {live:?}, which its dialler let go"
            ));
        }
        if self.is_of_a_dead_process(live, side) && !self.is_of_a_dead_process(refused, side) {
            self.breaks(format!("{side:?}: {refused:?} is refused for {live:?} of a dead process"));
        }
    }

    fn judge_replacement(&mut self, side: Side, old: Name, new: Name) {
        if self.is_of_a_dead_process(new, side) && !self.is_of_a_dead_process(old, side) {
            self.breaks(format!("{side:?}: {old:?} gives way to {new:?} of a dead process"));
        }
    }

    // The state of the whole

    /// Whether nothing more happens by itself or by a deadline: only lingering and memory are left.
    pub fn is_quiet(&self) -> bool {
        self.steps().is_empty()
            && self.nodes.iter().all(|node| {
                let Some(machine) = &node.machine else { return node.asks == 0 };
                let usage = machine.usage();
                let at_rest = usage.dialling + usage.parked + usage.closing == 0;
                at_rest && (!node.is_wanting() || machine.live().is_some())
            })
    }

    /// In a quiet world both sides have the same link, or none.
    pub fn judge_quiet(&mut self) {
        let [a, b] = Side::BOTH.map(|side| self.node(side).live());
        if a != b {
            return self.breaks(format!("A keeps {a:?} and B keeps {b:?}"));
        }
        if a.is_none() && self.nodes.iter().any(Node::is_wanting) {
            return self.breaks("somebody wants a link and there is none");
        }
        let links = self.links.len();
        if links != usize::from(a.is_some()) {
            self.breaks(format!("{links} links are left where {a:?} is live"));
        }
    }

    /// Every timer that runs, soonest first.
    pub fn timers(&self) -> Vec<(Instant, Step)> {
        let machines = self
            .nodes
            .iter()
            .filter_map(|node| node.next_timeout().map(|at| (at, Step::Fire(node.side))));
        let drains = self.links.iter().flat_map(|(name, link)| {
            Side::BOTH.into_iter().filter_map(|side| {
                let end = link.end(side);
                let at = end.drain_by.filter(|_| !end.is_gone())?;
                Some((at, Step::CutDrain(*name, side)))
            })
        });
        let mut timers: Vec<_> = machines.chain(drains).collect();
        timers.sort_by_key(|(at, _)| *at);
        timers
    }

    pub fn state(&self, side: Side) -> PeerState {
        let node = self.node(side);
        node.machine.as_ref().map_or(PeerState::Idle, |machine| machine.why(node.now).state)
    }
}
