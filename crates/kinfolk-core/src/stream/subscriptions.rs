//! With whom one consumer is subscribed, and when it tries again.
//!
//! It decides for a consumer that wants the stream of every peer that offers it: each such peer is a *source*, with at most one attempt at a time.
//! The machine never opens a stream, sees an item or reads a record, and it never reads a clock; its random numbers come from a
//! stream of its own, seeded from outside, so that consumers which lost the same producer do not return in step.
//!
//! # Whom
//!
//! At most [`SubscriptionLimits::sources`] have a place, that is an attempt or a stream. A place is never taken away for a nearer source. One that becomes free,
//! be it for as long as a source waits, goes to the nearest of those that are queued and have not failed; those that have come
//! after them, in turn, so that a dead source never keeps a good one waiting.
//!
//! # When again
//!
//! | what came | tried again |
//! |---|---|
//! | lost while connected | within [`JITTER`], once, in its place; if that comes to nothing before the stream has lasted for [`SubscriptionLimits::stable_after`], by backoff |
//! | not reached; lost again; shutting down | by backoff, or when a newer record is there: the peer may have moved or restarted |
//! | no capacity, too slow, we misbehaved | by backoff |
//! | unknown peer | at once, once, after an exchange of catalogs; then by backoff, with one |
//! | no such stream, ended, finished | when a newer record offers it; no sooner than by backoff |
//! | bad ticket, not allowed, ticket expired | with a new ticket; or as below |
//! | another schema, poisoned, misbehaved | when a newer record offers it, after [`SubscriptionLimits::forgive_after`] |
//!
//! What changes during an attempt is not lost: an attempt knows which record and ticket it was begun with, and what is newer counts
//! when it fails. Once, until the
//! stream has lasted again, a newer record ends a wait at once; after that none does before the first bound of the backoff, so that nobody can make a consumer
//! return in a loop.
//!
//! # What goes
//!
//! A record that goes says nothing of the stream that flows: it goes on, and if the record comes back nothing has happened. What is lost meanwhile
//! is not tried again. How the source stood is remembered for [`SubscriptionLimits::forgive_after`], where the items go on included. A record that does not offer
//! the stream any more wipes that out: the peer itself said that it is another stream that it may offer later.
//!
//! # Memory
//!
//! A source costs about 450 bytes while it is offered, so that the table is bounded by the catalog, and places by their limit; of those whose record is
//! gone there are [`SubscriptionLimits::absent`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iroh_base::EndpointId;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::backoff::Backoff;
use crate::record::Seq;
use crate::wire::subscription::{Refusal, Resume, StreamEnd};

mod absent;
mod contract;
mod limits;
mod source;
#[cfg(test)]
mod tests;

use absent::Absent;
pub use contract::{Attempt, Input, Output, SourceState, Termination, Withdrawal};
pub use limits::{SubscriptionLimitError, SubscriptionLimits};
use source::{Offer, Rank, Source, Step, Try, Wait};

/// Whoever returns at once does so within this time: a producer with a thousand consumers is not asked by all of them in one millisecond.
pub const JITTER: Duration = Duration::from_millis(100);

/// How an attempt came to its end.
enum Over {
    Lost,
    Refused(Refusal),
    Ended(StreamEnd),
    Terminated(Termination),
}

/// The machine; see the module page. A `now` that is earlier than one before counts as no time passing.
#[derive(Debug, Clone)]
pub struct Subscriptions {
    limits: SubscriptionLimits,
    rng: ChaCha20Rng,
    sources: BTreeMap<EndpointId, Source>,
    absent: Absent,
    attempts: BTreeMap<Attempt, EndpointId>,
    queue: BTreeSet<(Rank, EndpointId)>,
    timers: BTreeSet<(Instant, EndpointId)>,
    /// Sources that have a place.
    placed: usize,
    last_attempt: u64,
    /// Counts the tickets.
    ticket: u64,
    /// Sources of which something may have to be said.
    touched: Vec<EndpointId>,
    is_closed: bool,
    latest: Option<Instant>,
}

impl Subscriptions {
    /// Knows of no source. Every consumer needs a seed of its own.
    #[must_use]
    pub fn new(limits: SubscriptionLimits, seed: [u8; 32]) -> Self {
        Self {
            rng: ChaCha20Rng::from_seed(seed),
            sources: BTreeMap::new(),
            absent: Absent::new(limits.absent, limits.forgive_after),
            attempts: BTreeMap::new(),
            queue: BTreeSet::new(),
            timers: BTreeSet::new(),
            placed: 0,
            last_attempt: 0,
            ticket: 0,
            touched: Vec::new(),
            is_closed: false,
            latest: None,
            limits,
        }
    }

    /// Takes what happened and writes what has to be done, in this order.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        let now = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(now);
        if self.is_closed {
            return;
        }
        match input {
            Input::Offered { peer, record, rtt } => self.offer(now, peer, record, rtt),
            Input::Withdrawn { peer, why } => self.withdraw(now, peer, why, out),
            Input::Accepted { attempt } => self.accept(now, attempt),
            Input::Refused { attempt, refusal } => {
                self.end(now, attempt, Over::Refused(refusal), None, out);
            }
            Input::Ended { attempt, end, resume } => {
                self.end(now, attempt, Over::Ended(end), resume, out);
            }
            Input::Lost { attempt, resume } => self.end(now, attempt, Over::Lost, resume, out),
            Input::Poisoned { attempt, resume } => {
                self.end(now, attempt, Over::Terminated(Termination::Poisoned), resume, out);
            }
            Input::Misbehaved { attempt } => {
                self.end(now, attempt, Over::Terminated(Termination::Misbehaved), None, out);
            }
            Input::NewTicket => self.renew_ticket(),
            Input::Timeout => {}
            Input::Close => {
                self.close(out);
                return;
            }
        }
        self.go_on(now, out);
        self.show(out);
    }

    /// When [`Input::Timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// How a source stands; `None` if the peer is none.
    #[must_use]
    pub fn state(&self, peer: &EndpointId) -> Option<SourceState> {
        self.sources.get(peer).map(Source::state)
    }

    /// All sources and how they stand.
    pub fn sources(&self) -> impl Iterator<Item = (EndpointId, SourceState)> + '_ {
        self.sources.iter().map(|(peer, source)| (*peer, source.state()))
    }

    /// Places that are taken; at most [`SubscriptionLimits::sources`].
    #[must_use]
    pub const fn placed(&self) -> usize {
        self.placed
    }

    fn offer(&mut self, now: Instant, peer: EndpointId, record: Seq, rtt: Option<Duration>) {
        let known = self.take(peer).or_else(|| self.absent.take(now, peer));
        let mut source = known.unwrap_or_else(|| {
            let backoff = Backoff::new(self.rng.next_u64(), self.limits.redial_max);
            Source::new(record, rtt, backoff)
        });
        source.record = source.record.max(record);
        source.rtt = rtt;
        source.offer = Offer::Standing;
        source.is_wanted = true;
        self.hurry(now, &mut source);
        self.put(peer, source);
    }

    fn withdraw(&mut self, now: Instant, peer: EndpointId, why: Withdrawal, out: &mut Vec<Output>) {
        if why == Withdrawal::NotOffered {
            self.absent.forget(peer);
        }
        let Some(mut source) = self.take(peer) else { return };
        match why {
            Withdrawal::Gone if source.offer == Offer::Standing => source.offer = Offer::Gone,
            Withdrawal::Gone => {}
            Withdrawal::NotOffered => source.offer = Offer::Withdrawn,
            Withdrawal::NotWanted => {
                source.offer = Offer::Standing;
                source.is_wanted = false;
                if let Some(tried) = source.tried() {
                    out.push(Output::Cut { attempt: tried.attempt, peer });
                    source.prove(now, self.limits.stable_after);
                    self.lose(now, &mut source, tried, None);
                }
                if let Step::Waiting(wait) = &mut source.step {
                    wait.keeps_place = false;
                }
            }
        }
        self.put_or_forget(now, peer, source, out);
    }

    fn accept(&mut self, now: Instant, attempt: Attempt) {
        let Some((peer, mut source, tried)) = self.take_attempt(attempt) else { return };
        if let Step::Connecting(_) = source.step {
            source.step = Step::Connected { tried, since: now };
            source.introduce = false;
            source.resume = None;
        }
        self.put(peer, source);
    }

    fn end(
        &mut self,
        now: Instant,
        attempt: Attempt,
        over: Over,
        resume: Option<Resume>,
        out: &mut Vec<Output>,
    ) {
        let Some((peer, mut source, tried)) = self.take_attempt(attempt) else { return };
        source.prove(now, self.limits.stable_after);
        match over {
            Over::Lost => self.lose(now, &mut source, tried, resume),
            Over::Refused(refusal) => self.refuse(now, &mut source, tried, refusal),
            Over::Ended(end) => self.stop(now, &mut source, tried, end, resume),
            Over::Terminated(why) => {
                // Of whoever broke the rules none: what came last is at fault, and would come again.
                source.resume = resume;
                self.terminate(now, &mut source, tried, why);
            }
        }
        self.hurry(now, &mut source);
        self.put_or_forget(now, peer, source, out);
    }

    fn lose(&mut self, now: Instant, source: &mut Source, tried: Try, resume: Option<Resume>) {
        let was_connected = matches!(source.step, Step::Connected { .. });
        keep_resume(source, resume);
        let renewable = Some(tried.record);
        if was_connected && source.is_eager {
            source.is_eager = false;
            let until = self.jittered(now);
            let least = now.checked_add(source.backoff.pause()).unwrap_or(now);
            source.step = Step::Waiting(Wait { until, least, keeps_place: true, renewable });
        } else {
            let delay = source.backoff.fail();
            wait(now, source, tried, delay, renewable);
        }
    }

    fn refuse(&mut self, now: Instant, source: &mut Source, tried: Try, refusal: Refusal) {
        if refusal.is_final() {
            self.terminate(now, source, tried, Termination::Refused(refusal));
            return;
        }
        let is_unknown = refusal == Refusal::UnknownPeer;
        if is_unknown && !source.introduce {
            source.introduce = true;
            let wait = Wait { until: now, least: now, keeps_place: true, renewable: None };
            source.step = Step::Waiting(wait);
            return;
        }
        source.introduce = is_unknown;
        let delay = source.backoff.fail();
        wait(now, source, tried, delay, None);
    }

    fn stop(
        &mut self,
        now: Instant,
        source: &mut Source,
        tried: Try,
        end: StreamEnd,
        resume: Option<Resume>,
    ) {
        keep_resume(source, resume);
        if end.is_final() {
            self.terminate(now, source, tried, Termination::Ended(end));
        } else if end == StreamEnd::ShuttingDown {
            let delay = source.backoff.fail_briefly();
            wait(now, source, tried, delay, Some(tried.record));
        } else {
            let delay = source.backoff.fail();
            wait(now, source, tried, delay, None);
        }
    }

    fn terminate(&mut self, now: Instant, source: &mut Source, tried: Try, why: Termination) {
        source.introduce = false;
        source.failed = Some(tried.attempt);
        // The producer has judged another ticket than the one that it would be shown now.
        if why.is_about_ticket() && self.ticket > tried.ticket {
            source.step = Step::Queued;
            return;
        }
        let pause =
            if why.is_about_offer() { source.backoff.fail() } else { self.limits.forgive_after };
        let not_before = now.checked_add(pause).unwrap_or(now);
        source.step = Step::Terminated { why, record: tried.record, not_before };
    }

    /// Cuts a wait short if there is a record that was not tried.
    fn hurry(&mut self, now: Instant, source: &mut Source) {
        if let Step::Waiting(wait) = &source.step
            && let Some(record) = wait.renewable
            && record < source.record
        {
            source.backoff.reset();
            source.is_eager = false;
            let until = wait.until.min(self.jittered(now).max(wait.least));
            let renewable = Some(source.record);
            source.step = Step::Waiting(Wait { until, renewable, ..*wait });
        }
    }

    fn renew_ticket(&mut self) {
        self.ticket = self.ticket.saturating_add(1);
        let refused = self.sources.iter().filter(|(_, source)| source.wants_ticket());
        let refused: Vec<_> = refused.map(|(peer, _)| *peer).collect();
        for peer in refused {
            let Some(mut source) = self.take(peer) else { continue };
            source.step = Step::Queued;
            self.put(peer, source);
        }
        for source in self.absent.iter_mut().filter(|source| source.wants_ticket()) {
            source.step = Step::Queued;
        }
    }

    fn close(&mut self, out: &mut Vec<Output>) {
        self.is_closed = true;
        for (attempt, peer) in std::mem::take(&mut self.attempts) {
            out.push(Output::Cut { attempt, peer });
        }
        self.sources.clear();
        self.absent.clear();
        self.queue.clear();
        self.timers.clear();
        self.placed = 0;
    }

    /// Begins what is due and has room.
    fn go_on(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some((at, peer)) = self.timers.first().copied()
            && at <= now
        {
            let Some(mut source) = self.take(peer) else {
                self.timers.remove(&(at, peer));
                continue;
            };
            if source.has_place() {
                self.connect(peer, &mut source, out);
            } else {
                source.step = Step::Queued;
            }
            self.put(peer, source);
        }
        while self.placed < self.limits.sources
            && let Some((rank, peer)) = self.queue.first().copied()
        {
            let Some(mut source) = self.take(peer) else {
                self.queue.remove(&(rank, peer));
                continue;
            };
            self.connect(peer, &mut source, out);
            self.put(peer, source);
        }
    }

    fn connect(&mut self, peer: EndpointId, source: &mut Source, out: &mut Vec<Output>) {
        self.last_attempt = self.last_attempt.saturating_add(1);
        let attempt = Attempt::new(self.last_attempt);
        source.step = Step::Connecting(Try { attempt, record: source.record, ticket: self.ticket });
        let (resume, introduce) = (source.resume, source.introduce);
        out.push(Output::Connect { attempt, peer, resume, introduce });
    }

    /// Says of whom something has changed how they stand now.
    fn show(&mut self, out: &mut Vec<Output>) {
        for peer in self.touched.drain(..) {
            let Some(source) = self.sources.get_mut(&peer) else { continue };
            let state = source.state();
            if source.shown.as_ref() != Some(&state) {
                source.shown = Some(state.clone());
                out.push(Output::Changed { peer, state });
            }
        }
    }

    fn jittered(&mut self, now: Instant) -> Instant {
        let share = f64::from(self.rng.next_u32()) / f64::from(u32::MAX);
        now.checked_add(JITTER.mul_f64(share)).unwrap_or(now)
    }

    fn take_attempt(&mut self, attempt: Attempt) -> Option<(EndpointId, Source, Try)> {
        let peer = *self.attempts.get(&attempt)?;
        let source = self.take(peer)?;
        let tried = source.tried()?;
        Some((peer, source, tried))
    }

    /// Removes a source from all tables; it is none any more unless it is [`put`](Self::put) again.
    fn take(&mut self, peer: EndpointId) -> Option<Source> {
        let source = self.sources.remove(&peer)?;
        if let Some(tried) = source.tried() {
            self.attempts.remove(&tried.attempt);
        }
        if let Some(rank) = source.rank() {
            self.queue.remove(&(rank, peer));
        }
        if let Some(at) = source.timer() {
            self.timers.remove(&(at, peer));
        }
        self.placed = self.placed.saturating_sub(usize::from(source.has_place()));
        Some(source)
    }

    fn put(&mut self, peer: EndpointId, source: Source) {
        if let Some(tried) = source.tried() {
            self.attempts.insert(tried.attempt, peer);
        }
        if let Some(rank) = source.rank() {
            self.queue.insert((rank, peer));
        }
        if let Some(at) = source.timer() {
            self.timers.insert((at, peer));
        }
        self.placed = self.placed.saturating_add(usize::from(source.has_place()));
        self.sources.insert(peer, source);
        self.touched.push(peer);
    }

    /// Puts a source back if there is still an offer, or a stream without one.
    fn put_or_forget(
        &mut self,
        now: Instant,
        peer: EndpointId,
        source: Source,
        out: &mut Vec<Output>,
    ) {
        if source.offer == Offer::Standing || source.tried().is_some() {
            self.put(peer, source);
            return;
        }
        let state = source.state();
        if matches!(state, SourceState::Terminated(_)) && source.shown.as_ref() != Some(&state) {
            out.push(Output::Changed { peer, state });
        }
        out.push(Output::Forgotten { peer });
        if source.offer == Offer::Gone {
            self.absent.remember(now, peer, source);
        }
    }
}

/// Whoever was connected knows how far the items came; before, what was known still holds.
fn keep_resume(source: &mut Source, resume: Option<Resume>) {
    if resume.is_some() || matches!(source.step, Step::Connected { .. }) {
        source.resume = resume;
    }
}

/// Gives up the place for a while.
fn wait(now: Instant, source: &mut Source, tried: Try, delay: Duration, renewable: Option<Seq>) {
    source.failed = Some(tried.attempt);
    let until = now.checked_add(delay).unwrap_or(now);
    let pause = if source.is_eager { Duration::ZERO } else { source.backoff.pause() };
    let least = now.checked_add(pause).unwrap_or(now).min(until);
    source.step = Step::Waiting(Wait { until, least, keeps_place: false, renewable });
}
