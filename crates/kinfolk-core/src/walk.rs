//! The strategy of one walker: whom it visits next, and when.
//!
//! It decides for a walker of the discovery manager, which has one exchange at a time with the peer that this machine
//! names. It never dials, never exchanges, never changes the catalog, and never reads a clock; its random numbers come from a
//! stream of its own, seeded from outside, so that no two walkers go in step.
//!
//! # Whom
//!
//! 1. A peer that has just shown up itself is visited next, but for a visit that our own news causes. Of several, or of one that shows up
//!    again and again, every other visit is another one's if there is anybody else: strangers show up as often as they like.
//! 2. Otherwise one of those that the last visit brought, if it brought much news. A few newcomers are left to chance: else
//!    everybody who hears of a newcomer would visit it.
//! 3. If there is none, and in one of [`RESET`] visits all the same, the walk begins anew: at a bootstrap peer, or at a
//!    random known one. The more peers are known the rarer it is a bootstrap peer, down to one in [`RESET`]. But the
//!    first [`FIRST`] visits are to bootstrap peers, unless one succeeds: what a node has stored before a restart may be lies.
//!
//! Among several the choice is random and weighted: four times for a peer that the walk has not visited of late, four times
//! for one that nothing speaks against (see [`liveness`](crate::liveness)), twice for one whose addresses are no hearsay. A peer that was
//! missed is left alone until it is due again, be it a bootstrap peer or not; whoever is next in line takes its place, so
//! that a dead bootstrap peer stands in nobody's way. It is asked out of turn if nobody else is known at all, every
//! [`ALONE_MAX`] at most.
//!
//! Random known peers are found by looking around a random place in the order of ids, at the cost of a few look-ups however
//! many are known; looking at several there evens out that some ids have more room before them than others.
//!
//! # Neighbours
//!
//! A visit to a neighbour, with whom there is a session in any case, costs no handshake. So all but one visit in [`ABROAD`] go to neighbours, in
//! two cases: while visits follow each other quickly, as each dial would open a session beside those of the last ones;
//! and once the walk has met [`ENOUGH`] peers. In between it goes on as above, to meet them. A neighbour is due if it was not visited of
//! late and has not begun an exchange with us since there was news. If none is due and there is no much news, that is as good as
//! a visit without news, and the walk waits. A neighbour whose last visit failed is none.
//!
//! # When
//!
//! News is what this node's catalog took, whether a visit brought it or a peer that came by itself. After much news, one
//! record in 64 of those known, the next visit follows at once, after a random pause of some milliseconds. Every
//! visit without news doubles the bound of the wait up to [`WalkLimits::longest_wait`], a little news halves it: so the walk
//! comes to visit about as often as there is something new. The wait is uniform below its bound. What a peer took from us does
//! not count: we cannot know that it did, and a record that it refuses is offered to it each time.
//!
//! The walks of a node slow down together: a visit of one that brings nothing doubles the bounds of the others too. Walks that did not would cost
//! a network at rest once more for each of them, and learn the same. But no other walk is slowed down by visits that fail or are refused, by exchanges that others begin, nor by visits to peers
//! that have shown up: strangers call as often as they like.
//!
//! A wake-up ends the wait, and one that comes during a visit is kept until it is over. Nobody is visited twice within
//! [`WalkLimits::revisit`] but by a wake-up. However much news there is, visits are no more than [`WalkLimits::visits`].
//!
//! # Hearsay
//!
//! The addresses in a record may be a victim's, in as many records as somebody cares to sign. They are hearsay, but for those of bootstrap
//! peers, unless the peer itself answers for them, see [`Entry::is_hearsay`](crate::catalog::Entry::is_hearsay): it told them on a session of
//! its own and no dial has failed since, or a session that we dialled reached it. Whoever makes up peers that answer pays with a session for
//! that. With a peer that is connected nobody is dialled. Therefore, by [`WalkLimits::hearsay`] and a [`Hearsay`]:
//!
//! - Until a walk has met [`ENOUGH`] peers that are still good, it follows hearsay. Each visit costs a token: of those that fail by the
//!   limit's rate, and of those that succeed, as a record may name a victim beside its owner, [`ENOUGH`] at once and then the same rate.
//!   While there is none of either it keeps to those that are no hearsay.
//! - From then on it needs no hearsay. It tries a peer once per interval all the same, at a random time, so that it meets new ones.
//! - A peer that has shown up and is gone again before its visit is dialled at the address that it came from, unless others have told
//!   more of it by then. Visits to such peers that fail have a rate of their own, the limit's, so that they use up nothing of the above.
//!
//! With the defaults a walk that has met enough peers dials hearsay once an hour, and another one twice, after 4 visits that fail and
//! [`ENOUGH`] that succeed, saved up; and either dials peers that show up and vanish once an hour, after 4. So n nodes with w walkers each
//! dial a victim w n/60 to w n/20 times a minute on average, whatever the records, but for what costs their author a session with each node.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use iroh_base::EndpointId;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::liveness::{Liveness, Standing};

mod budget;
mod contract;
mod hearsay;
mod limits;
mod memory;
#[cfg(test)]
mod tests;

use budget::Budget;
pub use contract::{Input, Output, View, Visit, Wake};
pub use hearsay::Hearsay;
pub use limits::{WalkLimitError, WalkLimits};
use memory::Memory;

/// One in so many visits begins the walk anew although it could go on (a guess: often enough to leave a corner of the
/// network that knows only itself within a few visits).
pub const RESET: u64 = 8;

/// The longest wait of a node that knows nobody: its bootstrap peer may be one that was started later (a guess).
pub const ALONE_MAX: Duration = Duration::from_secs(30);

/// So many visits to bootstrap peers come first after a start (as many as a dial's deadline allows in half a minute).
pub const FIRST: u32 = 3;

/// With so many peers that it has met a walk needs no hearsay: a random graph of this degree is connected and
/// spreads news nearly as fast as any (a guess; simulated).
pub const ENOUGH: usize = 16;

/// One record in so many of those known is much news (a guess).
const MUCH: usize = 64;

/// How many of the peers that a visit brought are considered.
pub const TRAIL_MAX: usize = 32;

/// Peers that have shown up and wait for their visit; more than these are left to the walk itself.
const HINTS_MAX: usize = 16;

/// Known peers that are looked at around one random place.
const WINDOW: usize = 16;

/// Random places that are looked at before the walk falls back on peers that it has visited.
const PLACES: usize = 4;

/// One in so many visits goes to whoever it may be, although there are neighbours: a walk that stayed with them would never
/// leave a part of the network, or a crowd that has gathered around it (a guess).
pub const ABROAD: u64 = 4;

/// While the wait is bounded by less than this, sessions that visits open would all be there at once (they linger for some seconds).
const BUSY: Duration = Duration::from_secs(1);

/// Peers whose last visit failed, and that are not preferred for being neighbours.
const SILENT_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// `None` before the first wake-up, and when there is nothing to wait for.
    Resting {
        until: Option<Instant>,
    },
    Visiting {
        peer: EndpointId,
        since: Instant,
        stake: Stake,
    },
}

/// What a visit costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stake {
    Nothing,
    /// A part of the budget for hearsay.
    Hearsay,
    /// A token of those for peers that have shown up, if it fails.
    Hint,
}

/// What a choice among peers depends on, beside the walk.
#[derive(Clone, Copy)]
struct Look<'a> {
    now: Instant,
    view: View<'a>,
    /// Whether peers may be chosen whose addresses are hearsay.
    follows: bool,
    /// Whether the walk has met enough peers.
    is_settled: bool,
}

/// The machine; see the module page. A `now` that is earlier than one before counts as no time passing.
#[derive(Debug, Clone)]
pub struct Walk {
    me: EndpointId,
    limits: WalkLimits,
    rng: ChaCha20Rng,
    step: Step,
    /// How often the bound of the wait was doubled; at zero there is no wait.
    level: u32,
    visited: Memory,
    /// Peers that have exchanged with us by themselves.
    callers: Memory,
    /// Peers whose last visit failed.
    silent: Memory,
    /// When an exchange last brought something.
    learnt_at: Option<Instant>,
    /// The peers that the last visit brought.
    trail: Vec<EndpointId>,
    /// Peers that have shown up.
    hints: VecDeque<EndpointId>,
    /// The last visit was to one of them, so that the next is not if there is anybody else.
    was_hinted: bool,
    dropped_hints: u64,
    /// A wake-up came, and the visit that it causes has not begun: no pace holds that one back.
    is_woken: bool,
    /// Visits to bootstrap peers that still come first.
    first: u32,
    /// Bootstrap peers that were missed; the catalog may not know them.
    missed: BTreeMap<EndpointId, Liveness>,
    visits: Budget,
    hearsay: Hearsay,
    /// Visits to peers that have shown up, whose address is hearsay, and that may fail: others bring them about as often as they like.
    hinted: Budget,
    /// When hearsay is tried although it is not needed; drawn when it is not needed for the first time.
    feeler_at: Option<Instant>,
    latest: Option<Instant>,
}

impl Walk {
    /// A walk of the node `me` that rests until it is woken or told something. Every walker needs a seed of its own.
    #[must_use]
    pub fn new(me: EndpointId, limits: WalkLimits, seed: [u8; 32]) -> Self {
        Self {
            me,
            rng: ChaCha20Rng::from_seed(seed),
            step: Step::Resting { until: None },
            level: 0,
            visited: Memory::new(limits.visited),
            callers: Memory::new(limits.visited),
            silent: Memory::new(SILENT_MAX),
            learnt_at: None,
            trail: Vec::new(),
            hints: VecDeque::new(),
            was_hinted: false,
            dropped_hints: 0,
            is_woken: false,
            first: FIRST,
            missed: BTreeMap::new(),
            visits: Budget::new(limits.visits),
            hearsay: Hearsay::new(limits.hearsay),
            hinted: Budget::new(limits.hearsay),
            feeler_at: None,
            latest: None,
            limits,
        }
    }

    /// Takes what happened and writes whom to visit, if it is time.
    pub fn handle(
        &mut self,
        now: Instant,
        input: Input<'_>,
        view: View<'_>,
        out: &mut Vec<Output>,
    ) {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        match input {
            Input::Wake(reason) => self.wake(now, reason),
            Input::Ended { peer, visit } => {
                if matches!(self.step, Step::Visiting { peer: current, .. } if current == peer) {
                    self.end(now, peer, visit, view);
                }
            }
            Input::Told { by, learnt } => {
                if let Some(peer) = by {
                    self.callers.enter(now, peer);
                }
                if learnt > 0 {
                    self.learnt_at = Some(now);
                    self.speed_up(learnt, view);
                    self.rest_at_most(now, view);
                } else if by.is_none() {
                    self.slow_down();
                }
            }
            Input::Timeout => {
                if let Step::Visiting { peer, since, .. } = self.step
                    && now.saturating_duration_since(since) >= self.limits.patience
                {
                    self.end(now, peer, Visit::Failed, view);
                }
            }
        }
        self.go_on(now, view, out);
    }

    /// When [`Input::Timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        match self.step {
            Step::Resting { until } => until,
            Step::Visiting { since, .. } => since.checked_add(self.limits.patience),
        }
    }

    /// The peer that is being visited.
    #[must_use]
    pub const fn visiting(&self) -> Option<EndpointId> {
        match self.step {
            Step::Resting { .. } => None,
            Step::Visiting { peer, .. } => Some(peer),
        }
    }

    /// Whether the peer that is being visited is the walk's own choice, and none that has shown up.
    #[must_use]
    pub const fn has_chosen(&self) -> bool {
        !self.was_hinted
    }

    /// Peers that have shown up and got no visit of their own: too many waited, or their address was hearsay and no such visit
    /// might fail.
    #[must_use]
    pub const fn dropped_hints(&self) -> u64 {
        self.dropped_hints
    }

    fn wake(&mut self, now: Instant, reason: Wake) {
        match reason {
            Wake::Started | Wake::Changed => self.level = 0,
            Wake::Online => {
                self.level = 0;
                self.missed.clear();
            }
            Wake::Appeared(peer) => {
                if peer == self.me || self.hints.contains(&peer) {
                    return;
                }
                if self.hints.len() >= HINTS_MAX {
                    self.dropped_hints = self.dropped_hints.saturating_add(1);
                    return;
                }
                self.hints.push_back(peer);
                self.rest_until(Some(now));
                return;
            }
        }
        self.is_woken = true;
        self.rest_until(Some(now));
    }

    fn end(&mut self, now: Instant, peer: EndpointId, visit: Visit<'_>, view: View<'_>) {
        if let Step::Visiting { stake, .. } = self.step {
            match stake {
                Stake::Hearsay => self.hearsay.settle(visit != Visit::Failed),
                Stake::Hint if visit != Visit::Failed => self.hinted.give_back(),
                Stake::Hint | Stake::Nothing => {}
            }
        }
        // One that failed counts as well: of a peer that is connected and silent the catalog thinks no less.
        self.visited.enter(now, peer);
        if visit == Visit::Failed {
            self.silent.enter(now, peer);
        } else {
            self.silent.forget(&peer);
        }
        match visit {
            Visit::Exchanged { learnt, brought } => {
                self.first = 0;
                self.missed.remove(&peer);
                self.trail.clear();
                if is_much(learnt, view) {
                    self.trail.extend(brought.iter().take(TRAIL_MAX).filter(|id| **id != self.me));
                }
                if learnt == 0 {
                    self.slow_down();
                } else {
                    self.learnt_at = Some(now);
                    self.speed_up(learnt, view);
                }
            }
            Visit::Refused => {
                self.missed.remove(&peer);
                self.slow_down();
            }
            Visit::Failed => {
                self.missed.retain(|id, _| view.bootstrap.contains(id));
                if view.bootstrap.contains(&peer) {
                    self.missed.entry(peer).or_default().failed(now);
                }
                self.slow_down();
            }
        }
        if self.is_woken {
            self.level = 0;
        }
        let is_called = self.is_woken || !self.hints.is_empty();
        let wait = if is_called { Duration::ZERO } else { self.draw_wait(view) };
        self.step = Step::Resting { until: now.checked_add(wait) };
    }

    /// Begins the next visit if it is time and there is whom to visit.
    fn go_on(&mut self, now: Instant, view: View<'_>, out: &mut Vec<Output>) {
        let Step::Resting { until: Some(until) } = self.step else { return };
        if until > now {
            return;
        }
        if !self.is_woken {
            let Some(allowed) = self.allowed_at(now) else {
                self.step = Step::Resting { until: None };
                return;
            };
            if allowed > now {
                self.step = Step::Resting { until: Some(allowed) };
                return;
            }
        }
        if let Some((peer, stake)) = self.pick(now, view) {
            if !self.is_woken {
                self.visits.take(now);
            }
            self.is_woken = false;
            self.step = Step::Visiting { peer, since: now, stake };
            out.push(Output::Visit(peer));
        } else {
            self.is_woken = false;
            self.slow_down();
            let wait = self.draw_wait(view);
            self.step = Step::Resting { until: now.checked_add(wait) };
        }
    }

    /// When the next visit may begin, by the pace of visits and by how many can be remembered.
    fn allowed_at(&self, now: Instant) -> Option<Instant> {
        let by_pace = self.visits.next_at(now)?;
        let displaced = self.visited.displaced_next();
        let by_memory = displaced.and_then(|at| at.checked_add(self.limits.revisit));
        Some(by_memory.map_or(by_pace, |at| at.max(by_pace)))
    }

    /// Whom to visit now, and what it costs, which is paid.
    fn pick(&mut self, now: Instant, view: View<'_>) -> Option<(EndpointId, Stake)> {
        // What woke the walk is told to somebody of its own choice, and strangers that show up all the time get every other visit.
        let is_turn_of_hints = !self.is_woken && !self.was_hinted;
        let hint = if is_turn_of_hints { self.pick_hint(now, view) } else { None };
        if hint.is_some() {
            return hint;
        }
        let is_settled = self.is_settled(now, view);
        let follows = if is_settled { self.is_feeler_due(now) } else { self.hearsay.has(now) };
        let Some(peer) = self.pick_next(Look { now, view, follows, is_settled }) else {
            let hint = self.pick_hint(now, view);
            return hint.or_else(|| Some((self.pick_last_resort(view)?, Stake::Nothing)));
        };
        self.was_hinted = false;
        let stake = match (view.is_hearsay(&peer), is_settled) {
            (false, _) => Stake::Nothing,
            // There is enough, or none would have been followed.
            (true, false) => {
                if self.hearsay.take(now) {
                    Stake::Hearsay
                } else {
                    Stake::Nothing
                }
            }
            (true, true) => {
                let every = self.limits.hearsay.every;
                let wait = every.mul_f64(0.5).saturating_add(self.draw(every));
                self.feeler_at = now.checked_add(wait);
                Stake::Nothing
            }
        };
        Some((peer, stake))
    }

    /// The next of those that have shown up, unless their addresses are hearsay and too many such visits have failed.
    fn pick_hint(&mut self, now: Instant, view: View<'_>) -> Option<(EndpointId, Stake)> {
        while let Some(peer) = self.hints.pop_front() {
            let is_hearsay = view.is_hearsay(&peer);
            if is_hearsay && !self.hinted.has(now) {
                self.dropped_hints = self.dropped_hints.saturating_add(1);
                continue;
            }
            self.was_hinted = true;
            if !is_hearsay {
                return Some((peer, Stake::Nothing));
            }
            self.hinted.take(now);
            return Some((peer, Stake::Hint));
        }
        None
    }

    /// Whether a walk that needs no hearsay tries a peer all the same. The time of the first is drawn, as otherwise nodes that
    /// began together would follow the same hearsay together.
    fn is_feeler_due(&mut self, now: Instant) -> bool {
        if self.feeler_at.is_none() {
            let wait = self.draw(self.limits.hearsay.every);
            self.feeler_at = now.checked_add(wait);
        }
        self.feeler_at.is_some_and(|at| at <= now)
    }

    /// Whether it has met enough peers that are still good, so that it needs no hearsay.
    fn is_settled(&self, now: Instant, view: View<'_>) -> bool {
        let is_good = |id: &EndpointId| {
            view.known.get(id).is_some_and(|entry| {
                let is_good = entry.liveness().standing(now) == Standing::Good;
                entry.is_proven() && is_good && !entry.is_hearsay()
            })
        };
        self.visited.newest().filter(is_good).take(ENOUGH).count() >= ENOUGH
    }

    fn pick_next(&mut self, look: Look<'_>) -> Option<EndpointId> {
        let view = look.view;
        if self.stays_with_neighbours(look) && below(&mut self.rng, ABROAD) != 0 {
            let peers: Vec<_> = self.neighbours(view).collect();
            let due: Vec<_> =
                peers.iter().copied().filter(|id| self.is_due(look.now, id)).collect();
            let next = self.choose(look, due.into_iter());
            // These have just told what there is, and it was not much: no dial would be worth more.
            let is_told = !peers.is_empty() && self.level > 0 && !self.is_woken;
            if next.is_some() || is_told {
                return next;
            }
        }
        if !self.trail.is_empty() && self.first == 0 && below(&mut self.rng, RESET) != 0 {
            let trail = std::mem::take(&mut self.trail);
            let next = self.choose(look, trail.iter().copied());
            self.trail = trail;
            if next.is_some() {
                return next;
            }
        }
        let known = u64::try_from(view.known.len()).unwrap_or(u64::MAX);
        let bootstrap = u64::try_from(view.bootstrap.len()).unwrap_or(u64::MAX);
        let all = bootstrap.saturating_add(known);
        let is_bootstrap_first = self.first > 0
            || below(&mut self.rng, all) < bootstrap
            || below(&mut self.rng, RESET) == 0;
        self.first = self.first.saturating_sub(1);
        if is_bootstrap_first {
            self.pick_bootstrap(look).or_else(|| self.pick_known(look))
        } else {
            self.pick_known(look).or_else(|| self.pick_bootstrap(look))
        }
    }

    /// Whether neighbours are preferred: while one visit follows the other, so that no crowd of sessions is opened at once, and
    /// once the walk has met enough others.
    fn stays_with_neighbours(&self, look: Look<'_>) -> bool {
        let is_busy = self.doubled() < BUSY;
        self.first == 0 && !look.view.neighbours.is_empty() && (is_busy || look.is_settled)
    }

    /// The neighbours that are worth a visit.
    fn neighbours<'a>(&'a self, view: View<'a>) -> impl Iterator<Item = EndpointId> + 'a {
        let neighbours = view.neighbours.iter().copied();
        neighbours.filter(|id| *id != self.me && self.silent.last_visit(id).is_none())
    }

    /// Whether there is something to tell to a peer, or it may have something to tell: it has not exchanged with us by itself a moment
    /// ago, or there was news since.
    fn is_due(&self, now: Instant, peer: &EndpointId) -> bool {
        let call = self.callers.last_visit(peer);
        self.is_woken
            || call.is_none_or(|at| {
                now.saturating_duration_since(at) >= self.limits.revisit
                    || self.learnt_at > Some(at)
            })
    }

    fn pick_bootstrap(&mut self, look: Look<'_>) -> Option<EndpointId> {
        self.choose(look, look.view.bootstrap.iter().copied())
    }

    fn pick_known(&mut self, look: Look<'_>) -> Option<EndpointId> {
        for _ in 0..PLACES {
            let mut place = [0; 32];
            self.rng.fill_bytes(&mut place);
            let around = look.view.known.iter_from(&place).take(WINDOW).map(|entry| entry.id());
            let next = self.choose(look, around);
            if next.is_some() {
                return next;
            }
        }
        // Where hearsay must not be followed, those that are proven may be too few to be found by chance.
        let visited: Vec<_> =
            self.visited.newest().filter(|id| look.view.known.get(id).is_some()).collect();
        self.choose(look, visited.into_iter())
    }

    /// Where nobody is known there is nobody but the missed to ask, and the growing wait alone holds back.
    fn pick_last_resort(&mut self, view: View<'_>) -> Option<EndpointId> {
        let me = self.me;
        let others = view.bootstrap.iter().filter(|id| **id != me && view.known.is_empty());
        choose(&mut self.rng, others.map(|id| (*id, 1)))
    }

    fn choose(
        &mut self,
        look: Look<'_>,
        peers: impl Iterator<Item = EndpointId>,
    ) -> Option<EndpointId> {
        let weighted: Vec<_> = peers.map(|peer| (peer, self.weight(look, &peer))).collect();
        choose(&mut self.rng, weighted.into_iter())
    }

    /// How much speaks for visiting a peer; zero if it must not be visited now.
    fn weight(&self, look: Look<'_>, peer: &EndpointId) -> u64 {
        let Look { now, view, follows, .. } = look;
        let entry = view.known.get(peer);
        let last_visit = self.visited.last_visit(peer);
        let is_recent =
            last_visit.is_some_and(|at| now.saturating_duration_since(at) < self.limits.revisit);
        let is_followed = follows || !view.is_hearsay(peer);
        if *peer == self.me || (is_recent && !self.is_woken) || !is_followed {
            return 0;
        }
        let known = entry.map_or(Standing::Good, |entry| entry.liveness().standing(now));
        let own = self.missed.get(peer).map_or(Standing::Good, |missed| missed.standing(now));
        let by_standing: u64 = match known.max(own) {
            Standing::Good => 4,
            Standing::Due => 1,
            Standing::Doubtful => return 0,
        };
        let by_memory = if last_visit.is_none() { 4 } else { 1 };
        let by_proof = if view.is_backed(peer) { 2 } else { 1 };
        by_standing.saturating_mul(by_memory).saturating_mul(by_proof)
    }

    /// Doubles the bound of the wait, unless it is the longest already.
    fn slow_down(&mut self) {
        if self.doubled() < self.limits.longest_wait {
            self.level = self.level.saturating_add(1);
        }
    }

    /// News: much of it ends the wait, a little halves its bound.
    fn speed_up(&mut self, learnt: usize, view: View<'_>) {
        self.level = if is_much(learnt, view) { 0 } else { self.level.saturating_sub(1) };
    }

    /// The bound of the wait, as far as news and visits without it make it.
    fn doubled(&self) -> Duration {
        let Some(doublings) = self.level.checked_sub(1) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.limits.first_wait.saturating_mul(factor).min(self.limits.longest_wait)
    }

    fn draw_wait(&mut self, view: View<'_>) -> Duration {
        let most = if view.known.is_empty() { ALONE_MAX } else { Duration::MAX };
        let bound = self.doubled().max(self.limits.pause).min(self.limits.longest_wait);
        self.draw(bound.min(most))
    }

    /// A random time up to this one.
    fn draw(&mut self, most: Duration) -> Duration {
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(below(&mut self.rng, nanos.saturating_add(1)))
    }

    /// Draws the wait anew, and keeps it if it ends earlier.
    fn rest_at_most(&mut self, now: Instant, view: View<'_>) {
        let wait = self.draw_wait(view);
        self.rest_until(now.checked_add(wait));
    }

    /// Rests until then, or less if it is to rest for less.
    fn rest_until(&mut self, at: Option<Instant>) {
        if let Step::Resting { until } = &mut self.step {
            *until = until.iter().copied().chain(at).min();
        }
    }
}

/// Whether this is much news, given how much is known.
fn is_much(learnt: usize, view: View<'_>) -> bool {
    learnt > 0 && learnt.saturating_mul(MUCH) >= view.known.len()
}

/// A random number below `bound`; zero if that is zero.
fn below(rng: &mut ChaCha20Rng, bound: u64) -> u64 {
    rng.next_u64().checked_rem(bound).unwrap_or(0)
}

/// A random choice by weight; what weighs nothing is not chosen.
fn choose(
    rng: &mut ChaCha20Rng,
    weighted: impl Iterator<Item = (EndpointId, u64)>,
) -> Option<EndpointId> {
    let mut chosen = None;
    let mut total = 0_u64;
    for (peer, weight) in weighted.filter(|(_, weight)| *weight > 0) {
        total = total.saturating_add(weight);
        if below(rng, total) < weight {
            chosen = Some(peer);
        }
    }
    chosen
}
