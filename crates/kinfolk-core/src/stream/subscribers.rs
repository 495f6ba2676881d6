//! Who may subscribe to one producer, and for how long.
//!
//! It decides for a producer: a consumer that asks is accepted, refused, or first has its ticket checked; one that is accepted stays until it
//! leaves, its peer is no longer eligible, its ticket expires, or the producer ends. The machine never reads a ticket or a record (it is told what
//! came of that), never sees an item, and never reads a clock. Whoever ends a subscriber for a reason of its own, because it is too slow
//! or breaks the rules, says so with [`Input::Left`].
//!
//! # Rules
//!
//! - *One outcome.* Whoever asked is told exactly one of [`Accept`](Output::Accept) and [`Refuse`](Output::Refuse), and whoever was
//!   accepted is ended exactly once, unless it leaves before.
//! - *A place is held from the question on*, so that those whose tickets are being checked count. It is given back with the refusal, the end or
//!   the leave, and with nothing else.
//! - *A ticket is worth what its last accepted check says.* A renewed one is checked while the old one still holds; if the check fails or
//!   is late, nothing changes; if it passes, its time takes the place of the old one's, and an old timer ends nobody.
//! - *One check at a time.* Each check has a generation, and an answer to any but the current one is ignored. The first one has to come back within
//!   [`SubscriberLimits::ticket_check`] of the question however often the ticket is renewed, or a place could be held without a valid ticket. That it
//!   does not is no fault of the consumer's: it is told that it may come again.
//! - *A peer is judged as it is now*, not as it was when it asked: see [`Input::Judged`].
//!
//! A refusal says the most final reason that holds, and room is looked at before a consumer is sent to make itself known: it would return in vain.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

use super::schema::Schema;
use crate::bucket::Bucket;
use crate::wire::subscription::{Refusal, StreamEnd};

mod contract;
mod limits;
#[cfg(test)]
mod tests;

pub use contract::{Ask, Eligible, Generation, Input, Output, SubscriberId};
pub use limits::{SubscriberLimitError, SubscriberLimits};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Subscriber {
    peer: EndpointId,
    is_accepted: bool,
    /// The check that is under way, and when it is late.
    check: Option<(Generation, Instant)>,
    /// When the last accepted ticket expires, if it does.
    expires: Option<Instant>,
    renewals: Bucket,
}

impl Subscriber {
    /// A ticket that expires while its successor is late: whichever is first.
    fn deadline(&self) -> Option<Instant> {
        let late = self.check.map(|(_, late)| late);
        self.expires.into_iter().chain(late).min()
    }
}

/// The machine; see the module page. A `now` that is earlier than one before counts as no time passing.
#[derive(Debug, Clone)]
pub struct Subscribers {
    limits: SubscriberLimits,
    schema: Schema,
    requires_ticket: bool,
    subscribers: BTreeMap<SubscriberId, Subscriber>,
    by_peer: BTreeSet<(EndpointId, SubscriberId)>,
    deadlines: BTreeSet<(Instant, SubscriberId)>,
    accepted: usize,
    generation: Generation,
    is_ended: bool,
    latest: Option<Instant>,
}

impl Subscribers {
    /// Nobody has subscribed to these items. With `requires_ticket` nobody is accepted before a ticket was checked; without, tickets are not looked at.
    #[must_use]
    pub fn new(limits: SubscriberLimits, schema: Schema, requires_ticket: bool) -> Self {
        Self {
            limits,
            schema,
            requires_ticket,
            subscribers: BTreeMap::new(),
            by_peer: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            accepted: 0,
            generation: Generation::default(),
            is_ended: false,
            latest: None,
        }
    }

    /// Takes what happened and writes what has to be done, in this order. What was due by `now` comes first, but for the one who leaves.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        if let Input::Left { id } = input {
            self.take(id);
        }
        self.expire(now, out);
        match input {
            Input::Asked { id, ask } => self.ask(now, id, &ask, out),
            Input::TicketChecked { id, generation, verdict } => {
                self.learn(now, id, generation, verdict, out);
            }
            Input::Renewed { id } => self.renew(now, id, out),
            Input::Judged { peer, eligible } => self.judge(peer, eligible, out),
            Input::Left { .. } | Input::Timeout => {}
            Input::End(end) => self.end(end, out),
        }
    }

    /// When [`Input::Timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Places that are held: accepted subscribers, and those whose ticket is being checked.
    #[must_use]
    pub fn held(&self) -> usize {
        self.subscribers.len()
    }

    /// Accepted subscribers.
    #[must_use]
    pub const fn accepted(&self) -> usize {
        self.accepted
    }

    /// Places that this peer holds; at most [`SubscriberLimits::per_peer`].
    #[must_use]
    pub fn held_by(&self, peer: EndpointId) -> usize {
        self.of(peer).count()
    }

    fn of(&self, peer: EndpointId) -> impl Iterator<Item = SubscriberId> + '_ {
        let ids = (peer, SubscriberId::new(0))..=(peer, SubscriberId::new(u64::MAX));
        self.by_peer.range(ids).map(|(_, id)| *id)
    }

    fn ask(&mut self, now: Instant, id: SubscriberId, ask: &Ask, out: &mut Vec<Output>) {
        if self.subscribers.contains_key(&id) {
            return;
        }
        if let Some(refusal) = self.refusal(ask) {
            out.push(Output::Refuse { id, refusal });
            return;
        }
        let (peer, renewals) = (ask.peer, Bucket::full(now));
        let mut subscriber =
            Subscriber { peer, is_accepted: false, check: None, expires: None, renewals };
        if self.requires_ticket {
            let generation = self.next_generation();
            let late = now.checked_add(self.limits.ticket_check).unwrap_or(now);
            subscriber.check = Some((generation, late));
            out.push(Output::Check { id, generation });
        } else {
            subscriber.is_accepted = true;
            out.push(Output::Accept { id });
        }
        self.put(id, subscriber);
    }

    fn refusal(&self, ask: &Ask) -> Option<Refusal> {
        if self.is_ended {
            return Some(Refusal::Ended);
        }
        if ask.schema != self.schema {
            return Some(Refusal::Schema { offered: self.schema.clone() });
        }
        if ask.eligible == Eligible::No {
            return Some(Refusal::NotAllowed);
        }
        if self.requires_ticket && !ask.has_ticket {
            return Some(Refusal::BadTicket);
        }
        let is_full = self.subscribers.len() >= self.limits.total;
        if is_full || self.held_by(ask.peer) >= self.limits.per_peer {
            return Some(Refusal::NoCapacity);
        }
        (ask.eligible == Eligible::Unknown).then_some(Refusal::UnknownPeer)
    }

    fn learn(
        &mut self,
        now: Instant,
        id: SubscriberId,
        generation: Generation,
        verdict: Result<Option<Duration>, ()>,
        out: &mut Vec<Output>,
    ) {
        let is_current = |subscriber: &Subscriber| {
            subscriber.check.is_some_and(|(current, _)| current == generation)
        };
        if !self.subscribers.get(&id).is_some_and(is_current) {
            return;
        }
        let Some(mut subscriber) = self.take(id) else { return };
        subscriber.check = None;
        match verdict {
            // One that is over by the time it was checked is none.
            Ok(valid_for) if valid_for.is_none_or(|valid_for| !valid_for.is_zero()) => {
                subscriber.expires = valid_for.and_then(|valid_for| now.checked_add(valid_for));
                if !subscriber.is_accepted {
                    subscriber.is_accepted = true;
                    out.push(Output::Accept { id });
                }
                self.put(id, subscriber);
            }
            Ok(_) | Err(()) if subscriber.is_accepted => self.put(id, subscriber),
            Ok(_) | Err(()) => out.push(Output::Refuse { id, refusal: Refusal::BadTicket }),
        }
    }

    fn renew(&mut self, now: Instant, id: SubscriberId, out: &mut Vec<Output>) {
        if !self.requires_ticket {
            return;
        }
        let rate = self.limits.renewals;
        let Some(mut subscriber) = self.take(id) else { return };
        if !subscriber.renewals.take(now, rate, rate.burst) {
            out.push(if subscriber.is_accepted {
                Output::End { id, end: StreamEnd::Misbehaved }
            } else {
                Output::Refuse { id, refusal: Refusal::BadTicket }
            });
            return;
        }
        let generation = self.next_generation();
        let late = match subscriber.check {
            Some((_, late)) if !subscriber.is_accepted => late,
            _ => now.checked_add(self.limits.ticket_check).unwrap_or(now),
        };
        subscriber.check = Some((generation, late));
        out.push(Output::Check { id, generation });
        self.put(id, subscriber);
    }

    fn judge(&mut self, peer: EndpointId, eligible: Eligible, out: &mut Vec<Output>) {
        let ids: Vec<_> = self.of(peer).collect();
        for id in ids {
            let is_accepted = self.subscribers.get(&id).is_some_and(|it| it.is_accepted);
            let output = match (eligible, is_accepted) {
                (Eligible::Yes, _) | (Eligible::Unknown, true) => continue,
                (Eligible::No, true) => Output::End { id, end: StreamEnd::NotAllowed },
                (Eligible::No, false) => Output::Refuse { id, refusal: Refusal::NotAllowed },
                (Eligible::Unknown, false) => Output::Refuse { id, refusal: Refusal::UnknownPeer },
            };
            self.take(id);
            out.push(output);
        }
    }

    fn end(&mut self, end: StreamEnd, out: &mut Vec<Output>) {
        self.is_ended = true;
        self.by_peer.clear();
        self.deadlines.clear();
        self.accepted = 0;
        for (id, subscriber) in std::mem::take(&mut self.subscribers) {
            out.push(if subscriber.is_accepted {
                Output::End { id, end }
            } else {
                Output::Refuse { id, refusal: Refusal::Ended }
            });
        }
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now
        {
            let Some(mut subscriber) = self.take(id) else {
                self.deadlines.remove(&(at, id));
                continue;
            };
            if !subscriber.is_accepted {
                out.push(Output::Refuse { id, refusal: Refusal::Unchecked });
            } else if subscriber.expires.is_some_and(|expires| expires <= now) {
                out.push(Output::End { id, end: StreamEnd::TicketExpired });
            } else {
                subscriber.check = None;
                self.put(id, subscriber);
            }
        }
    }

    fn next_generation(&mut self) -> Generation {
        self.generation = self.generation.next();
        self.generation
    }

    /// Removes one from all tables; it has given its place back unless it is [`put`](Self::put) again.
    fn take(&mut self, id: SubscriberId) -> Option<Subscriber> {
        let subscriber = self.subscribers.remove(&id)?;
        self.by_peer.remove(&(subscriber.peer, id));
        if let Some(at) = subscriber.deadline() {
            self.deadlines.remove(&(at, id));
        }
        self.accepted = self.accepted.saturating_sub(usize::from(subscriber.is_accepted));
        Some(subscriber)
    }

    fn put(&mut self, id: SubscriberId, subscriber: Subscriber) {
        self.by_peer.insert((subscriber.peer, id));
        if let Some(at) = subscriber.deadline() {
            self.deadlines.insert((at, id));
        }
        self.accepted = self.accepted.saturating_add(usize::from(subscriber.is_accepted));
        self.subscribers.insert(id, subscriber);
    }
}
