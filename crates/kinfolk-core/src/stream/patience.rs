//! How long a consumer may hold up all others of a producer that loses nothing.
//!
//! It decides for a producer under [`WhenFull::Wait`](super::WhenFull::Wait): a subscriber that is as far behind as the log reaches holds up whoever
//! sends; one that takes nothing meanwhile is given up when its peer's patience is spent. It is told what happens to the log and to the subscribers, and never
//! sees an item, knows who sends, or reads a clock.
//!
//! # Rules
//!
//! - *The clock of a subscriber* starts when a send finds no room because of it, whoever sends and however long that one waits, and stops when it takes
//!   something, is given up or leaves. Slow is not stuck: who takes a little now and then sets the pace of all, and its clock begins anew each time.
//! - *Patience belongs to the peer.* What was on the clock of a subscriber that left or was given up is its peer's debt, and so much less patience have the
//!   peer's next subscriptions: nobody gains by subscribing again.
//! - *A debt is forgiven* once its peer's next subscriptions have taken as many items as the one before was behind. Otherwise it shrinks, [`SHRINKS`] times
//!   slower than it grew, so that a consumer that was away for long gets its chance, and whoever subscribes only to hold up others does so for a small part
//!   of the time.
//!
//! # Memory
//!
//! A subscriber costs some 100 bytes, and there are as many as the producer has; a debt costs as much, and there are at most [`DEBTS`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

use super::subscribers::SubscriberId;
use crate::limits::LONGEST;

/// A debt shrinks so many times slower than it grew: a peer that does nothing but hold up others and subscribe again does so for one part in so many (a guess).
pub const SHRINKS: u32 = 16;

/// Debts that are remembered; the smallest makes room. Twice as many peers as a node has sessions: who would have its debt forgotten needs as many keys, each of which
/// could hold up the senders itself.
pub const DEBTS: usize = 1024;

/// What happens. An id that is not known, or no longer, is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A peer has subscribed. Later ids are larger.
    Came {
        /// Which subscriber it is.
        id: SubscriberId,
        /// Whose.
        peer: EndpointId,
    },
    /// A send found no room because of this one.
    HoldsUp {
        /// Which one.
        id: SubscriberId,
        /// Items that wait for it.
        behind: u64,
    },
    /// This one has taken something.
    Took {
        /// Which one.
        id: SubscriberId,
        /// Items that it was given.
        items: u64,
    },
    /// This one has left, or gets nothing more.
    Left {
        /// Which one.
        id: SubscriberId,
    },
    /// The time of [`next_timeout`](Patience::next_timeout) has come.
    Timeout,
    /// Nothing will be sent any more: nobody is held up.
    End,
}

/// What has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Give this one nothing more.
    GiveUp(SubscriberId),
}

#[derive(Debug, Clone, Copy)]
struct Subscriber {
    peer: EndpointId,
    stall: Option<Stall>,
}

/// A clock that runs.
#[derive(Debug, Clone, Copy)]
struct Stall {
    since: Instant,
    /// When patience is spent, if the clock gets that far.
    due: Option<Instant>,
    behind: u64,
}

#[derive(Debug, Clone, Copy)]
struct Debt {
    /// How much it was at the time of `as_of`.
    spent: Duration,
    as_of: Instant,
    /// The last subscriber that added to it: later ones pay.
    by: SubscriberId,
    /// Items that forgive it.
    owed: u64,
}

impl Debt {
    fn at(&self, now: Instant) -> Duration {
        let shrunk = now.saturating_duration_since(self.as_of).checked_div(SHRINKS);
        self.spent.saturating_sub(shrunk.unwrap_or_default())
    }
}

/// The machine; see the module page. A `now` that is earlier than one before counts as no time passing.
#[derive(Debug, Clone)]
pub struct Patience {
    patience: Duration,
    subscribers: BTreeMap<SubscriberId, Subscriber>,
    /// The clocks that run.
    due: BTreeSet<(Instant, SubscriberId)>,
    debts: BTreeMap<EndpointId, Debt>,
    /// When all debts are gone, if no other comes before.
    paid_by: Option<Instant>,
    is_ended: bool,
    latest: Option<Instant>,
}

impl Patience {
    /// Nobody has subscribed. A peer without debts may hold up the others for so long.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let (subscribers, due, debts) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { patience, subscribers, due, debts, paid_by: None, is_ended: false, latest: None }
    }

    /// Takes what happened and writes what has to be done.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        if self.paid_by.is_some_and(|at| at <= now) {
            self.paid_by = None;
            self.debts.clear();
        }
        match input {
            Input::Came { id, peer } if !self.is_ended => {
                self.subscribers.entry(id).or_insert(Subscriber { peer, stall: None });
            }
            Input::Came { .. } => {}
            Input::HoldsUp { id, behind } => self.start(now, id, behind),
            Input::Took { id, items } => self.took(id, items),
            Input::Left { id } => {
                self.charge(now, id);
                self.subscribers.remove(&id);
            }
            Input::Timeout => self.expire(now, out),
            Input::End => {
                self.is_ended = true;
                self.due.clear();
                self.debts.clear();
                self.subscribers.clear();
            }
        }
    }

    /// When [`Input::Timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whether it makes no difference to this machine that somebody takes something, as nobody holds up anybody and nobody has debts.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.due.is_empty() && self.debts.is_empty()
    }

    fn start(&mut self, now: Instant, id: SubscriberId, behind: u64) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        if let Some(stall) = &mut subscriber.stall {
            stall.behind = stall.behind.max(behind);
            return;
        }
        let debt = self.debts.get(&subscriber.peer).map_or(Duration::ZERO, |debt| debt.at(now));
        let due = now.checked_add(self.patience.saturating_sub(debt));
        subscriber.stall = Some(Stall { since: now, due, behind });
        self.due.extend(due.map(|due| (due, id)));
    }

    /// Stops a clock.
    fn stop(&mut self, id: SubscriberId) -> Option<(EndpointId, Stall)> {
        let subscriber = self.subscribers.get_mut(&id)?;
        let stall = subscriber.stall.take()?;
        if let Some(due) = stall.due {
            self.due.remove(&(due, id));
        }
        Some((subscriber.peer, stall))
    }

    fn took(&mut self, id: SubscriberId, items: u64) {
        self.stop(id);
        let Some(Subscriber { peer, .. }) = self.subscribers.get(&id) else { return };
        let Some(debt) = self.debts.get_mut(peer) else { return };
        if id > debt.by {
            debt.owed = debt.owed.saturating_sub(items);
            if debt.owed == 0 {
                self.debts.remove(peer);
            }
        }
    }

    /// Stops a clock, and makes what was on it the peer's debt.
    fn charge(&mut self, now: Instant, id: SubscriberId) {
        let Some((peer, stall)) = self.stop(id) else { return };
        let new = Debt { spent: Duration::ZERO, as_of: stall.since, by: id, owed: 0 };
        let before = self.debts.remove(&peer).unwrap_or(new);
        // What two of them spent at once was spent once.
        let from = stall.since.max(before.as_of);
        let spent = before.at(from).saturating_add(now.saturating_duration_since(from));
        let debt = Debt {
            spent: spent.min(self.patience),
            as_of: now,
            by: before.by.max(id),
            owed: before.owed.max(stall.behind),
        };
        self.debts.retain(|_, debt| !debt.at(now).is_zero());
        if self.debts.len() >= DEBTS
            && let Some((smallest, _)) = self.debts.iter().min_by_key(|(_, debt)| debt.at(now))
        {
            let smallest = *smallest;
            self.debts.remove(&smallest);
        }
        let paid = now.checked_add(debt.spent.saturating_mul(SHRINKS).min(LONGEST));
        self.paid_by = self.paid_by.max(paid);
        self.debts.insert(peer, debt);
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some((at, id)) = self.due.first().copied()
            && at <= now
        {
            self.charge(now, id);
            self.due.remove(&(at, id));
            self.subscribers.remove(&id);
            out.push(Output::GiveUp(id));
        }
    }
}

#[cfg(test)]
mod tests;
