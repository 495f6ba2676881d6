//! What the world must keep, with all sides in view: after every step, where a link is turned away, and where it is quiet.

use super::name::{Name, Side};
use super::promise::Promise;
use super::world::World;

impl World {
    /// After every step.
    pub(super) fn judge(&mut self) {
        for side in self.sides() {
            let sessions = |outbound: bool| {
                let ours = self.links.iter().filter(|(name, link)| {
                    link.has_session(side) && (name.dialler == side) == outbound
                });
                ours.count()
            };
            if let Some(breach) = self.node(side).breach(sessions(false), sessions(true)) {
                self.breaks(breach.promise, breach.what);
            }
        }
        for (side, peer) in self.pairs() {
            let live = self.links.iter().filter(|(name, link)| {
                name.joins(side, peer) && link.has_session(side) && link.end(side).is_live()
            });
            if live.count() > 1 {
                let what = format!("{side:?} has two live links with {peer:?}");
                self.breaks(Promise::OneLive, what);
            }
        }
    }

    fn is_of_a_dead_process(&self, name: Name, side: Side) -> bool {
        self.links.get(&name).is_some_and(|link| link.far_end(side).crashed)
    }

    /// A link is turned away in favour of the live one: its dialler must not have let go of that one before, and the process
    /// behind the live one must not be gone while the other is there.
    pub(super) fn judge_refusal(&mut self, side: Side, refused: Name) {
        let Some(live) = self.node(side).live(refused.far(side)) else { return };
        if self.links[&refused].far_end(side).over.contains(&live) {
            let what =
                format!("{side:?}: {refused:?} is refused for {live:?}, which its dialler let go");
            self.breaks(Promise::DeadNeverWins, what);
        }
        if self.is_of_a_dead_process(live, side) && !self.is_of_a_dead_process(refused, side) {
            let what = format!("{side:?}: {refused:?} is refused for {live:?} of a dead process");
            self.breaks(Promise::DeadNeverWins, what);
        }
    }

    pub(super) fn judge_replacement(&mut self, side: Side, old: Name, new: Name) {
        if self.is_of_a_dead_process(new, side) && !self.is_of_a_dead_process(old, side) {
            let what = format!("{side:?}: {old:?} gives way to {new:?} of a dead process");
            self.breaks(Promise::DeadNeverWins, what);
        }
    }

    /// Whether nothing more happens by itself or by a deadline: only lingering and memory are left.
    pub fn is_quiet(&self) -> bool {
        self.nodes.iter().all(|node| {
            let usage = node.table.totals(node.now).usage;
            usage.dialling + usage.parked + usage.closing == 0
        }) && self.pairs().all(|(side, peer)| {
            let (node, wants) = (self.node(side), self.node(side).peer(peer));
            (!wants.is_wanted() || node.live(peer).is_some())
                && (wants.asks == 0 || node.knows(peer))
        }) && self.steps().is_empty()
    }

    /// In a quiet world both sides have the same link, or none, and every stream has its outcome.
    pub fn judge_quiet(&mut self) {
        let mut shared = 0;
        for (side, peer) in self.pairs().filter(|(side, peer)| side < peer) {
            let [here, there] = [(side, peer), (peer, side)].map(|(a, b)| self.node(a).live(b));
            if here != there {
                let what = format!("{side:?} keeps {here:?} and {peer:?} keeps {there:?}");
                return self.breaks(Promise::OneSharedLink, what);
            }
            let wanted =
                self.node(side).peer(peer).is_wanted() || self.node(peer).peer(side).is_wanted();
            if here.is_none() && wanted {
                let what = format!("{side:?} or {peer:?} wants a link and there is none");
                return self.breaks(Promise::OneSharedLink, what);
            }
            shared += usize::from(here.is_some());
        }
        let links = self.links.len();
        if links != shared {
            let what = format!("{links} links are left where {shared} are live");
            return self.breaks(Promise::OneSharedLink, what);
        }
        for side in self.sides() {
            let node = self.node(side);
            let (opened, served, failed) = (node.opened, node.served, node.failed);
            if opened != served + failed {
                let what = format!("{side:?}: {opened} opened, {served} served, {failed} failed");
                return self.breaks(Promise::OneOutcome, what);
            }
        }
    }

    /// Whether nothing is left at this side: no session, nothing remembered, no intent without an outcome.
    pub fn is_over(&self, side: Side) -> bool {
        let node = self.node(side);
        let remembered = node.table.totals(node.now).peers;
        node.table.is_empty() && remembered == 0 && node.is_content()
    }
}
