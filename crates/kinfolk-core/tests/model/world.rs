//! All nodes and all links between them, and every step that can happen to them.
//!
//! The world plays the manager, the sessions, Accept and the network. It never chooses: whoever drives it picks among
//! [`World::steps`] (what goes on by itself), timers, faults and wishes of the app. A clock moves only when a timer fires. The first promise
//! that is broken is kept in [`World::breach`].

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use kinfolk_core::code::Code;
use kinfolk_core::intent::Want;
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{Input, LinkEnd};

use super::link::{Link, State, Told};
use super::name::{Name, Side};
use super::node::{Node, ids};
use super::promise::{Breach, Promise};
use super::step::{Step, Variant};

/// Steps that follow from one other at once, at most.
const CERTAIN_MAX: usize = 100;

/// What stays the same in a world.
#[derive(Debug, Clone)]
pub struct Setup {
    pub nodes: usize,
    pub limits: Limits,
    pub variant: Variant,
    /// Steps that are local and certain happen at once (reports), and each node has a clock of its own.
    pub eager: bool,
    /// Dials of the first to the second are never answered.
    pub unreachable: Vec<(Side, Side)>,
    pub start: Instant,
}

// Worlds are compared and hashed within one setup only.
impl PartialEq for Setup {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Setup {}

impl Hash for Setup {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// The world; see the module page. Nodes and links are shared between a world and the ones that follow from it, up to the first change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub setup: Arc<Setup>,
    pub nodes: Vec<Arc<Node>>,
    pub links: BTreeMap<Name, Arc<Link>>,
    pub(super) breach: Option<Box<Breach>>,
    /// What the machines wanted in the last step; not kept in a search, where it would tell equal states apart.
    pub(super) wanted: Vec<&'static str>,
}

impl World {
    pub fn new(setup: Arc<Setup>) -> Self {
        let [small, middle, large] = ids();
        let views = match setup.variant {
            Variant::BothLarger => [[large, middle, small], [small, middle, large]],
            Variant::BothSmaller => [[middle, large, small], [large, middle, small]],
            _ => [[small, middle, large]; 2],
        };
        let sides = Side::ALL.into_iter().take(setup.nodes);
        let nodes = sides.map(|side| {
            let ids = views[side.index() % 2];
            Arc::new(Node::new(side, ids, &setup.limits, setup.start))
        });
        let nodes = nodes.collect();
        Self { setup, nodes, links: BTreeMap::new(), breach: None, wanted: Vec::new() }
    }

    pub fn node(&self, side: Side) -> &Node {
        &self.nodes[side.index()]
    }

    pub(super) fn node_mut(&mut self, side: Side) -> &mut Node {
        Arc::make_mut(&mut self.nodes[side.index()])
    }

    /// The link, which must exist.
    pub(super) fn link(&mut self, name: Name) -> &mut Link {
        Arc::make_mut(self.links.get_mut(&name).unwrap())
    }

    pub fn sides(&self) -> impl Iterator<Item = Side> + use<> {
        Side::ALL.into_iter().take(self.setup.nodes)
    }

    /// Every node with every peer of it.
    pub fn pairs(&self) -> impl Iterator<Item = (Side, Side)> + use<> {
        let nodes = self.setup.nodes;
        self.sides().flat_map(move |side| {
            Side::ALL
                .into_iter()
                .take(nodes)
                .filter(move |peer| *peer != side)
                .map(move |peer| (side, peer))
        })
    }

    /// The first promise that was broken.
    pub fn breach(&self) -> Option<&Breach> {
        self.breach.as_deref()
    }

    /// What the machines wanted in the last step, in words.
    pub fn wanted(&self) -> &[&'static str] {
        &self.wanted
    }

    pub(super) fn breaks(&mut self, promise: Promise, what: impl Into<String>) {
        self.breach.get_or_insert_with(|| Box::new(Breach { promise, what: what.into() }));
    }

    /// What goes on by itself, now.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (name, link) in &self.links {
            for side in name.ends() {
                steps_of(*name, link, side, &mut steps);
            }
        }
        // Last: whoever takes the first step lets a manager hear of an end before it is asked again.
        for (side, peer) in self.pairs() {
            if self.node(side).peer(peer).asks > 0 && !self.has_retiring_link(side, peer) {
                steps.push(Step::AskAgain(side, peer));
            }
        }
        steps
    }

    /// Whether the link that the machine would give takes no streams, and the machine does not know yet. A caller waits for that before it
    /// asks again.
    fn has_retiring_link(&self, side: Side, peer: Side) -> bool {
        let live = self.node(side).live(peer);
        self.links.iter().any(|(name, link)| {
            let carries =
                live == Some(*name) || (name.ends() == [side, peer] && link.has_news(side));
            carries && !link.end(side).takes_streams()
        })
    }

    /// Every timer that runs, soonest first.
    pub fn timers(&self) -> Vec<(Instant, Step)> {
        let machines = self
            .nodes
            .iter()
            .filter_map(|node| node.table.next_timeout().map(|at| (at, Step::Fire(node.side))));
        let drains = self.links.iter().flat_map(|(name, link)| {
            name.ends().into_iter().filter_map(|side| {
                let end = link.end(side);
                let at = end.drain_by.filter(|_| !end.is_gone())?;
                Some((at, Step::CutDrain(*name, side)))
            })
        });
        let mut timers: Vec<_> = machines.chain(drains).collect();
        timers.sort_by_key(|(at, _)| *at);
        timers
    }

    /// What happens next where nobody interferes: steps in a fixed order, then timers, soonest first.
    pub fn next(&self) -> Option<Step> {
        let next = self.steps().into_iter().next();
        next.or_else(|| self.timers().into_iter().next().map(|(_, step)| step))
    }

    /// Lets the step happen, and looks whether every promise is still kept.
    pub fn apply(&mut self, step: &Step) {
        self.wanted.clear();
        self.take(step);
        let mut rounds = 0;
        while self.setup.eager && self.breach.is_none() {
            let certain = self.steps().into_iter().find(|step| match step {
                Step::Report(..) | Step::AskAgain(..) => true,
                Step::Handle(name, side) => {
                    let told = self.links[name].end(*side).told.front();
                    !matches!(told, Some(Told::Welcomed { .. }))
                }
                _ => false,
            });
            let Some(step) = certain else { return };
            self.take(&step);
            rounds += 1;
            if rounds > CERTAIN_MAX {
                self.breaks(Promise::EndsByItself, format!("{step:?} goes round in circles"));
            }
        }
    }

    fn take(&mut self, step: &Step) {
        match step.clone() {
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
            Step::Consider(name, side) => self.consider(name, side),
            Step::Abandon(name, side) => self.link(name).end_mut(side).state = State::Gone,
            Step::NotAdmitted(name, side) => {
                self.finish(name, side, LinkEnd::Lost, Some(Code::NotAdmitted));
            }
            Step::AskAgain(side, peer) => {
                let node = self.node_mut(side);
                node.peer_mut(peer).asks -= 1;
                // It is the same wish.
                node.opened -= 1;
                self.queue(side, peer, Want::Stream, None);
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
            Step::Hold(side, peer) => self.queue(side, peer, Want::Hold, None),
            Step::Open(side, peer, within) => self.queue(side, peer, Want::Stream, within),
            Step::Cancel(side, id) => {
                if let Some(peer) = self.node(side).asked_of(id) {
                    self.feed(side, peer, Input::Cancel(id));
                }
            }
            Step::Disconnect(side, peer) => self.feed(side, peer, Input::Disconnect),
            Step::Ban(side, peer, time) => {
                let until = self.node(side).now + time;
                self.feed(side, peer, Input::Ban { until });
            }
            Step::Unban(side, peer) => self.feed(side, peer, Input::Unban),
            Step::AddressNews(side, peer) => self.feed(side, peer, Input::AddressNews),
            Step::Shutdown(side) => {
                self.node_mut(side).shut = true;
                self.feed(side, side, Input::Shutdown);
            }
        }
        self.links.retain(|_, link| !link.is_forgettable());
        self.judge();
    }
}

fn steps_of(name: Name, link: &Link, side: Side, steps: &mut Vec<Step>) {
    let (end, far) = (link.end(side), link.far_end(side));
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
