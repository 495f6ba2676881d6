//! The lifecycle of one peer: which link to it is live, when to dial, what waits for it, when to let go.
//!
//! `PeerLink` decides for the PeerManager. It sees every link with the peer, its own dials and the peer's, and keeps at
//! most one *live* (welcomed and not draining). It never does I/O: the manager carries out its [`Output`]s and tells it what happened.
//! Every event about a link carries the link's id; one about a link that the machine no longer knows changes nothing.
//!
//! # States
//!
//! A peer's state is the product of four slots:
//!
//! | slot | values |
//! |---|---|
//! | `dial` | none · *ready* (waits for the table's permission) · *connecting* (QUIC handshake) · *greeting* (`Hello` written, unanswered) |
//! | `parked` | none · an incoming link that waits for the fate of our greeting dial |
//! | `live` | none · the link that carries streams |
//! | `closing` | links that drain or are being closed, each with a deadline |
//!
//! # Inputs
//!
//! | input | what it does |
//! |---|---|
//! | `Queue` | hands the intent to the carrier, or queues it and asks for a dial; cuts a backoff short once |
//! | `Cancel` | removes a waiting intent, or releases a hold |
//! | `Incoming` | arbitrates, see below |
//! | `Granted` | *ready* → *connecting* |
//! | `Connected` | *connecting* → *greeting*: `Hello` may be written; waiting intents are handed over |
//! | `Welcomed` | *greeting* → live; a parked link is refused as duplicate. If the peer has shown a newer incarnation since, the dial failed |
//! | `Draining` | the live link got a `Goodbye` from the peer: it is closing |
//! | `Lingered` | the answer to `CloseIfIdle`: drained when idle, asked again later when not |
//! | `Ended` | the link's session is gone: dial failed, live link lost, or one closing link less |
//! | `AddressNews` | ends a backoff |
//! | `Disconnect`, `Ban`, `Unban`, `Shutdown` | the app's or the node's wish |
//! | `Timeout` | whatever is due: intents, dial, hello, parking, retry, linger, age, closing, ban, memory |
//!
//! # Arbitration
//!
//! Both sides of two simultaneous links keep the same one, whatever the interleaving, without an extra round trip:
//!
//! | we have | an incoming hello arrives | decision |
//! |---|---|---|
//! | anything | its process is known to be gone, or has dialled again since | refuse it as duplicate |
//! | nothing, or a dial not yet greeting | | take it, give the dial up |
//! | a greeting dial, our id is the smaller | | take it; the dial stays until the peer says what became of it |
//! | a greeting dial, our id is the larger | it lists the dial as dead, or shows an incarnation newer than the one known | take it, give the dial up |
//! | | otherwise | park it; welcome it if the dial fails, refuse it once the dial is welcomed |
//! | a live link | it shows another incarnation and arrived later | take it, close the old one at once: that process is gone |
//! | | it lists the live link as dead, or is a later dial of the same dialler | take it, drain the old one |
//! | | otherwise | refuse it as duplicate |
//!
//! A greeting dial of the smaller side that is welcomed after all becomes live: the larger side can only have welcomed it
//! because it holds its own dial dead. What a `Hello` lists as dead are the links that the dialler lost, gave up, ended *or drains*: a
//! new dial may overtake the `Goodbye` of the old link. Of more than a hello can list the newest stay, and what still drains is newest.
//! A dial counts from the moment that the machine lets its `Hello` be written (`Connected` → `Greet`), so that both sides judge by the
//! same fact.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

use crate::backoff::Backoff;
use crate::code::Code;
use crate::id::{Incarnation, LinkId};
use crate::intensity::{Intensity, Verdict};
use crate::intent::{Failure, Intent, IntentId, Outcome, Priority, Want};
use crate::wire::hello::DEAD_LINKS_MAX;

mod contract;
#[cfg(test)]
mod tests;

pub use contract::{
    DialFailure, Direction, DownReason, Incoming, Input, Linger, LinkEnd, Output, PeerEvent,
    PeerState, Rules, Usage, Why,
};

/// Links of one peer that may be closing at once; a further one cuts the oldest. Only a peer that keeps replacing its
/// own links gets there.
const CLOSING_MAX: usize = 4;

/// Time between telling a session to end and killing it: ending is local work.
const END_GRACE: Duration = Duration::from_secs(2);

/// Session panics within [`PANIC_PERIOD`] after which a peer is quarantined.
const PANICS_MAX: usize = 4;
const PANIC_PERIOD: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Dial {
    Ready,
    Connecting { link: LinkId, deadline: Instant },
    Greeting { link: LinkId, deadline: Instant },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Parked {
    link: LinkId,
    arrival: u64,
    deadline: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Live {
    link: LinkId,
    direction: Direction,
    /// The peer's incarnation, from its hello or its welcome.
    incarnation: Incarnation,
    /// Stamp of that hello or welcome.
    arrival: u64,
    since: Instant,
    kept: bool,
    linger_at: Option<Instant>,
    retire_at: Option<Instant>,
}

/// What the peer last showed of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Seen {
    incarnation: Incarnation,
    /// Stamp of the hello or welcome that showed it.
    arrival: u64,
    /// The latest dial of that incarnation; 0 if none was seen.
    n: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Closing {
    deadline: Instant,
    killed: bool,
}

/// The machine; see the module page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerLink {
    me: EndpointId,
    incarnation: Incarnation,
    peer: EndpointId,
    rules: Arc<Rules>,
    dial: Option<Dial>,
    parked: Option<Parked>,
    live: Option<Live>,
    closing: BTreeMap<LinkId, Closing>,
    /// Newest last.
    dead: VecDeque<LinkId>,
    seen: Option<Seen>,
    queue: BTreeMap<(Reverse<Priority>, u64), Intent>,
    next_place: u64,
    holds: BTreeMap<IntentId, ()>,
    backoff: Backoff,
    retry_at: Option<Instant>,
    /// Whether the next new intent may cut the backoff short.
    may_cut: bool,
    banned_until: Option<Instant>,
    panics: Intensity,
    shutting_down: bool,
    last_error: Option<LinkEnd>,
    forget_at: Option<Instant>,
}

impl PeerLink {
    /// A peer of which nothing is known. `seed` spreads the backoff of different peers.
    pub fn new(
        me: EndpointId,
        incarnation: Incarnation,
        peer: EndpointId,
        rules: Arc<Rules>,
        seed: u64,
    ) -> Self {
        Self {
            me,
            incarnation,
            peer,
            rules,
            dial: None,
            parked: None,
            live: None,
            closing: BTreeMap::new(),
            dead: VecDeque::new(),
            seen: None,
            queue: BTreeMap::new(),
            next_place: 0,
            holds: BTreeMap::new(),
            backoff: Backoff::new(seed),
            retry_at: None,
            may_cut: true,
            banned_until: None,
            panics: Intensity::new(PANICS_MAX, PANIC_PERIOD),
            shutting_down: false,
            last_error: None,
            forget_at: None,
        }
    }

    /// Takes what happened and writes what has to be done.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Queue(intent) => self.queue(intent, out),
            Input::Cancel(id) => self.cancel(id, out),
            Input::Incoming { incoming, room } => self.incoming(now, incoming, room, out),
            Input::Granted { n } => self.granted(now, n, out),
            Input::Connected { link } => self.connected(now, link, out),
            Input::Welcomed { link, incarnation, arrival } => {
                self.welcomed(now, link, incarnation, arrival, out);
            }
            Input::Draining { link, code } => self.draining(now, link, code, out),
            Input::Lingered { link, linger } => self.lingered(now, link, linger, out),
            Input::Ended { link, end } => self.ended(now, link, end, out),
            Input::AddressNews => {
                self.retry_at = None;
                self.may_cut = true;
            }
            Input::Disconnect => self.disconnect(now, out),
            Input::Ban { until } => self.ban(now, until, out),
            Input::Unban => {
                if self.banned_until.take().is_some() {
                    out.push(Output::Event(PeerEvent::Unbanned));
                }
            }
            Input::Shutdown => self.shutdown(now, out),
            Input::Timeout => self.timeout(now, out),
        }
        self.settle(now, out);
    }

    /// When the next [`Input::Timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let dial = match &self.dial {
            Some(Dial::Connecting { deadline, .. } | Dial::Greeting { deadline, .. }) => {
                Some(*deadline)
            }
            Some(Dial::Ready) | None => None,
        };
        let live = self.live.as_ref();
        [
            dial,
            self.parked.as_ref().map(|parked| parked.deadline),
            live.and_then(|live| live.linger_at),
            live.and_then(|live| live.retire_at),
            self.closing.values().map(|closing| closing.deadline).min(),
            self.queue.values().filter_map(|intent| intent.deadline).min(),
            self.retry_at,
            self.banned_until,
            self.forget_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether the peer waits for permission to dial.
    pub fn wants_dial(&self) -> bool {
        self.dial == Some(Dial::Ready)
    }

    /// What the peer accounts for.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage {
            closing: self.closing.len(),
            intents: self.queue.len().saturating_add(self.holds.len()),
            ..Usage::default()
        };
        let mut count = |direction| match direction {
            Direction::Inbound => usage.inbound = usage.inbound.saturating_add(1),
            Direction::Outbound => usage.outbound = usage.outbound.saturating_add(1),
        };
        if let Some(live) = &self.live {
            count(live.direction);
        }
        for link in self.closing.keys() {
            count(self.direction(link));
        }
        if self.parked.is_some() {
            count(Direction::Inbound);
        }
        match &self.dial {
            Some(Dial::Connecting { .. } | Dial::Greeting { .. }) => {
                count(Direction::Outbound);
                usage.dialling = 1;
            }
            Some(Dial::Ready) | None => {}
        }
        usage.parked = usize::from(self.parked.is_some());
        usage
    }

    /// The live link.
    pub fn live(&self) -> Option<LinkId> {
        self.live.as_ref().map(|live| live.link)
    }

    /// Whether only memory is left of the peer, so that it may be evicted when memory runs short.
    pub fn is_memory(&self) -> bool {
        self.forget_at.is_some()
    }

    /// Why the peer is in the state it is in.
    pub fn why(&self, now: Instant) -> Why {
        let live = self.live.as_ref();
        let left = |at: Instant| at.saturating_duration_since(now);
        Why {
            state: self.state(),
            link: live.map(|live| live.link),
            direction: live.map(|live| live.direction),
            incarnation: live.map(|live| live.incarnation),
            age: live.map(|live| now.saturating_duration_since(live.since)),
            holds: self.holds.len(),
            waiting: self.queue.len(),
            closing: self.closing.len(),
            attempts: self.backoff.attempts(),
            retry_in: self.retry_at.map(left),
            banned_for: self.banned_until.map(left),
            linger_left: live.and_then(|live| live.linger_at).map(left),
            last_error: self.last_error,
        }
    }

    fn state(&self) -> PeerState {
        if self.live.is_some() {
            return PeerState::Connected;
        }
        match &self.dial {
            Some(Dial::Ready) => PeerState::Waiting,
            Some(Dial::Connecting { .. }) => PeerState::Connecting,
            Some(Dial::Greeting { .. }) => PeerState::Greeting,
            None if self.parked.is_some() => PeerState::Greeting,
            None if self.banned_until.is_some() => PeerState::Banned,
            None if !self.closing.is_empty() => PeerState::Draining,
            None if self.retry_at.is_some() && self.is_needed() => PeerState::BackingOff,
            None => PeerState::Idle,
        }
    }

    fn direction(&self, link: &LinkId) -> Direction {
        if link.dialler == self.me { Direction::Outbound } else { Direction::Inbound }
    }

    fn is_needed(&self) -> bool {
        !self.queue.is_empty() || !self.holds.is_empty()
    }

    // Intents

    fn queue(&mut self, intent: Intent, out: &mut Vec<Output>) {
        if let Some(outcome) = self.refusal_of_intents() {
            out.push(Output::End(intent.id, outcome, None));
            return;
        }
        if self.queue.len().saturating_add(self.holds.len()) >= self.rules.intents {
            let full = Outcome::Failed(Failure::QueueFull);
            out.push(Output::End(intent.id, full, self.last_error));
            return;
        }
        if self.retry_at.is_some() && self.may_cut {
            self.retry_at = None;
            self.may_cut = false;
        }
        match intent.want {
            Want::Hold => {
                self.holds.insert(intent.id, ());
            }
            Want::Stream => {
                let place = self.next_place;
                self.next_place = place.wrapping_add(1);
                self.queue.insert((Reverse(intent.priority), place), intent);
            }
        }
    }

    fn refusal_of_intents(&self) -> Option<Outcome> {
        if self.shutting_down {
            Some(Outcome::ShuttingDown)
        } else if self.banned_until.is_some() {
            Some(Outcome::Banned)
        } else if self.me == self.peer {
            Some(Outcome::Failed(Failure::SelfDial))
        } else {
            None
        }
    }

    fn cancel(&mut self, id: IntentId, out: &mut Vec<Output>) {
        let held = self.holds.remove(&id).is_some();
        let queued = self.queue.len();
        self.queue.retain(|_, intent| intent.id != id);
        if held || self.queue.len() != queued {
            out.push(Output::End(id, Outcome::Cancelled, None));
        }
    }

    fn end_streams(&mut self, outcome: Outcome, out: &mut Vec<Output>) {
        let cause = self.last_error;
        for (_, intent) in std::mem::take(&mut self.queue) {
            out.push(Output::End(intent.id, outcome, cause));
        }
    }

    fn end_holds(&mut self, outcome: Outcome, out: &mut Vec<Output>) {
        let cause = self.last_error;
        for (id, ()) in std::mem::take(&mut self.holds) {
            out.push(Output::End(id, outcome, cause));
        }
    }

    // Incoming links

    fn incoming(&mut self, now: Instant, incoming: Incoming, room: bool, out: &mut Vec<Output>) {
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
                self.displace(now, &incoming, out);
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
            return if newer_process || later_dial || lost_there {
                Arbitration::Take
            } else {
                Arbitration::Refuse(Code::Duplicate)
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

    fn knows(&self, link: &LinkId) -> bool {
        self.live() == Some(*link)
            || self.parked.as_ref().is_some_and(|parked| parked.link == *link)
            || self.closing.contains_key(link)
    }

    /// Whether something that arrived later showed another incarnation: the process that wrote this is gone.
    fn is_outdated(&self, incarnation: Incarnation, arrival: u64) -> bool {
        self.seen
            .as_ref()
            .is_some_and(|seen| seen.incarnation != incarnation && seen.arrival > arrival)
    }

    /// Whether the peer has dialled again since: it has one dial at a time.
    fn is_given_up(&self, link: &LinkId) -> bool {
        self.seen
            .as_ref()
            .is_some_and(|seen| seen.incarnation == link.incarnation && seen.n > link.n)
    }

    fn saw(&mut self, incarnation: Incarnation, arrival: u64, n: u64) {
        match &mut self.seen {
            Some(seen) if seen.incarnation == incarnation => {
                seen.arrival = seen.arrival.max(arrival);
                seen.n = seen.n.max(n);
            }
            Some(seen) if seen.arrival > arrival => {}
            _ => self.seen = Some(Seen { incarnation, arrival, n }),
        }
    }

    fn unpark(&mut self, now: Instant, code: Code, out: &mut Vec<Output>) {
        if let Some(parked) = self.parked.take() {
            self.close(now, parked.link, code, out);
        }
    }

    /// Makes way for an incoming link that was taken.
    fn yield_dial(&mut self, now: Instant, incoming: &Incoming, out: &mut Vec<Output>) {
        match self.dial.take() {
            None | Some(Dial::Ready) => {}
            Some(Dial::Connecting { link, .. }) => self.give_up_dial(now, link, out),
            Some(Dial::Greeting { link, deadline }) => {
                // The peer still has to say what it did with our hello, unless it has said so.
                if self.me < self.peer && !incoming.dead.contains(&link) {
                    self.dial = Some(Dial::Greeting { link, deadline });
                } else {
                    self.give_up_dial(now, link, out);
                }
            }
        }
    }

    fn give_up_dial(&mut self, now: Instant, link: LinkId, out: &mut Vec<Output>) {
        self.bury(link);
        self.close(now, link, Code::Duplicate, out);
    }

    /// Removes the live link in favour of an incoming one.
    fn displace(&mut self, now: Instant, incoming: &Incoming, out: &mut Vec<Output>) {
        let Some(live) = self.live.take() else { return };
        self.bury(live.link);
        out.push(Output::Unpublish(live.link));
        out.push(Output::Event(PeerEvent::Down(live.link, DownReason::Replaced)));
        if live.incarnation == incoming.link.incarnation {
            self.drain(now, live.link, Code::Replaced, out);
        } else {
            self.close(now, live.link, Code::Replaced, out);
        }
    }

    fn go_live(
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

    // Dials

    fn granted(&mut self, now: Instant, n: u64, out: &mut Vec<Output>) {
        if self.dial != Some(Dial::Ready) {
            return;
        }
        let link = LinkId { dialler: self.me, incarnation: self.incarnation, n };
        self.dial = Some(Dial::Connecting { link, deadline: after(now, self.rules.dial_deadline) });
        out.push(Output::Dial(link));
    }

    fn connected(&mut self, now: Instant, link: LinkId, out: &mut Vec<Output>) {
        match &self.dial {
            Some(Dial::Connecting { link: dial, .. }) if *dial == link => {}
            _ => return,
        }
        self.dial = Some(Dial::Greeting { link, deadline: after(now, self.rules.hello_deadline) });
        // What still drains counts as newest: it is what the peer is most likely to believe alive.
        let buried = self.dead.iter().filter(|dead| !self.closing.contains_key(dead));
        let mut dead: Vec<LinkId> = buried.chain(self.closing.keys()).copied().collect();
        dead.drain(..dead.len().saturating_sub(DEAD_LINKS_MAX));
        out.push(Output::Greet(link, dead));
    }

    fn welcomed(
        &mut self,
        now: Instant,
        link: LinkId,
        incarnation: Incarnation,
        arrival: u64,
        out: &mut Vec<Output>,
    ) {
        match &self.dial {
            Some(Dial::Greeting { link: dial, .. }) if *dial == link => {}
            _ => return,
        }
        self.dial = None;
        if self.is_outdated(incarnation, arrival) {
            self.close(now, link, Code::Duplicate, out);
            self.dial_failed(now, link, LinkEnd::Closed(Code::Duplicate), out);
            return;
        }
        self.saw(incarnation, arrival, 0);
        self.unpark(now, Code::Duplicate, out);
        // The peer welcomes a dial that it had to refuse only if it holds its own link dead.
        if let Some(live) = self.live.take() {
            self.bury(live.link);
            out.push(Output::Unpublish(live.link));
            out.push(Output::Event(PeerEvent::Down(live.link, DownReason::Replaced)));
            self.drain(now, live.link, Code::Replaced, out);
        }
        self.go_live(now, link, incarnation, arrival, out);
    }

    fn dial_failed(&mut self, now: Instant, link: LinkId, end: LinkEnd, out: &mut Vec<Output>) {
        self.bury(link);
        self.last_error = Some(end);
        if let Some(parked) = self.parked.take() {
            let incarnation = parked.link.incarnation;
            out.push(Output::Welcome(parked.link));
            out.push(Output::Event(PeerEvent::DialFailed(link, end, None)));
            self.go_live(now, parked.link, incarnation, parked.arrival, out);
            return;
        }
        if self.live.is_some() {
            // The dial had yielded; its end was expected.
            return;
        }
        match end {
            LinkEnd::DialFailed(failure) => {
                if let Some(failure) = failure.is_final() {
                    self.end_streams(Outcome::Failed(failure), out);
                }
            }
            LinkEnd::ClosedByPeer(code) if is_final_refusal(code) => {
                self.end_streams(Outcome::Refused(code), out);
            }
            _ => {}
        }
        let delay = self.back_off(now);
        out.push(Output::Event(PeerEvent::DialFailed(link, end, Some(delay))));
    }

    fn back_off(&mut self, now: Instant) -> Duration {
        let delay = self.backoff.fail();
        self.retry_at = Some(after(now, delay));
        delay
    }

    // Ends

    fn draining(&mut self, now: Instant, link: LinkId, code: Code, out: &mut Vec<Output>) {
        if self.live() == Some(link) {
            self.drop_live(now, DownReason::PeerDraining(code), out);
            if code == Code::Idle {
                // A link that nobody used any more is no failed attempt.
                self.retry_at = Some(after(now, self.backoff.pause()));
            } else {
                self.back_off(now);
            }
            // The session answers the goodbye by itself; here only its deadline is kept.
            self.start_closing(now, link, self.rules.drain_deadline, out);
        }
    }

    fn ended(&mut self, now: Instant, link: LinkId, end: LinkEnd, out: &mut Vec<Output>) {
        let dialled = match &self.dial {
            Some(Dial::Connecting { link: dial, .. } | Dial::Greeting { link: dial, .. }) => {
                *dial == link
            }
            Some(Dial::Ready) | None => false,
        };
        if !dialled && !self.knows(&link) {
            return;
        }
        out.push(Output::Event(PeerEvent::Ended(link, end)));
        if self.closing.remove(&link).is_some() {
            // The peer may not know yet that it is over.
            self.bury(link);
        } else if dialled {
            self.dial = None;
            self.dial_failed(now, link, end, out);
        } else if self.live() == Some(link) {
            self.last_error = Some(end);
            self.bury(link);
            self.drop_live(now, DownReason::Ended(end), out);
            self.back_off(now);
        } else {
            self.parked = None;
        }
        if end == LinkEnd::Panicked && self.panics.fail(now) == Verdict::Exceeded {
            self.panics.clear();
            out.push(Output::Event(PeerEvent::Quarantined(self.rules.quarantine)));
            let until = after(now, self.rules.quarantine);
            self.ban(now, self.banned_until.map_or(until, |banned| banned.max(until)), out);
        }
    }

    /// The live link stops being live.
    fn drop_live(&mut self, now: Instant, reason: DownReason, out: &mut Vec<Output>) {
        let Some(live) = self.live.take() else { return };
        if now.saturating_duration_since(live.since) >= self.rules.stable_after {
            self.backoff.reset();
            self.may_cut = true;
        }
        out.push(Output::Unpublish(live.link));
        out.push(Output::Event(PeerEvent::Down(live.link, reason)));
    }

    fn bury(&mut self, link: LinkId) {
        if self.dead.contains(&link) {
            return;
        }
        self.dead.push_back(link);
        if self.dead.len() > DEAD_LINKS_MAX {
            self.dead.pop_front();
        }
    }

    fn start_closing(
        &mut self,
        now: Instant,
        link: LinkId,
        within: Duration,
        out: &mut Vec<Output>,
    ) {
        // A killed one is on its way out and makes room already.
        let open = || self.closing.iter().filter(|(_, closing)| !closing.killed);
        if open().count() >= CLOSING_MAX {
            let oldest = open().min_by_key(|(_, closing)| closing.deadline);
            if let Some(oldest) = oldest.map(|(link, _)| *link) {
                self.kill(now, oldest, out);
            }
        }
        let deadline = after(now, within.saturating_add(END_GRACE));
        self.closing.insert(link, Closing { deadline, killed: false });
    }

    /// Cuts a closing link. Its end still comes from supervision; it is asked for again should that be slow.
    fn kill(&mut self, now: Instant, link: LinkId, out: &mut Vec<Output>) {
        let again = Closing { deadline: after(now, END_GRACE), killed: true };
        self.closing.insert(link, again);
        out.push(Output::Kill(link));
    }

    fn drain(&mut self, now: Instant, link: LinkId, code: Code, out: &mut Vec<Output>) {
        let within = self.rules.drain_deadline;
        self.start_closing(now, link, within, out);
        out.push(Output::Drain(link, code, within));
    }

    fn close(&mut self, now: Instant, link: LinkId, code: Code, out: &mut Vec<Output>) {
        self.start_closing(now, link, Duration::ZERO, out);
        out.push(Output::Close(link, code));
    }

    fn drain_live(&mut self, now: Instant, code: Code, out: &mut Vec<Output>) {
        if let Some(link) = self.live() {
            self.drop_live(now, DownReason::Draining(code), out);
            self.drain(now, link, code, out);
        }
    }

    fn lingered(&mut self, now: Instant, link: LinkId, linger: Linger, out: &mut Vec<Output>) {
        if self.live() != Some(link) {
            return;
        }
        let again = match linger {
            Linger::Closed => {
                self.drain_live(now, Code::Idle, out);
                return;
            }
            Linger::InUse => after(now, self.rules.linger),
            // Never sooner than a moment from now, or a clock that stands still would loop here.
            Linger::UsedAt(at) => {
                after(at, self.rules.linger).max(after(now, Duration::from_millis(10)))
            }
        };
        if let Some(live) = &mut self.live {
            live.linger_at = Some(again);
        }
    }

    // Wishes

    fn abandon(&mut self, now: Instant, code: Code, out: &mut Vec<Output>) {
        self.unpark(now, code, out);
        match self.dial.take() {
            None | Some(Dial::Ready) => {}
            Some(Dial::Connecting { link, .. } | Dial::Greeting { link, .. }) => {
                self.bury(link);
                self.close(now, link, code, out);
            }
        }
    }

    fn disconnect(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.end_streams(Outcome::Cancelled, out);
        self.end_holds(Outcome::Cancelled, out);
        self.abandon(now, Code::Cancelled, out);
        self.drain_live(now, Code::Ok, out);
    }

    fn ban(&mut self, now: Instant, until: Instant, out: &mut Vec<Output>) {
        self.banned_until = Some(until);
        out.push(Output::Event(PeerEvent::Banned(until)));
        self.end_streams(Outcome::Banned, out);
        self.end_holds(Outcome::Banned, out);
        let soon = after(now, END_GRACE);
        for (link, closing) in &mut self.closing {
            closing.deadline = closing.deadline.min(soon);
            out.push(Output::Close(*link, Code::Banned));
        }
        self.abandon(now, Code::Banned, out);
        if let Some(link) = self.live() {
            self.drop_live(now, DownReason::Banned, out);
            self.close(now, link, Code::Banned, out);
        }
        self.retry_at = None;
    }

    fn shutdown(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.shutting_down = true;
        self.end_streams(Outcome::ShuttingDown, out);
        self.end_holds(Outcome::ShuttingDown, out);
        self.abandon(now, Code::ShuttingDown, out);
        self.drain_live(now, Code::ShuttingDown, out);
    }

    // Time

    fn timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        let due = |at: Instant| at <= now;
        self.expire_intents(now, out);
        match &self.dial {
            Some(Dial::Connecting { link, deadline }) if due(*deadline) => {
                let link = *link;
                self.dial = None;
                self.close(now, link, Code::DeadlineExceeded, out);
                self.dial_failed(now, link, LinkEnd::DialFailed(DialFailure::TimedOut), out);
            }
            Some(Dial::Greeting { link, deadline }) if due(*deadline) => {
                let link = *link;
                self.dial = None;
                self.close(now, link, Code::HelloTimeout, out);
                self.dial_failed(now, link, LinkEnd::Closed(Code::HelloTimeout), out);
            }
            _ => {}
        }
        if self.parked.as_ref().is_some_and(|parked| due(parked.deadline)) {
            self.unpark(now, Code::HelloTimeout, out);
        }
        let late: Vec<LinkId> = self
            .closing
            .iter()
            .filter(|(_, closing)| due(closing.deadline))
            .map(|(link, _)| *link)
            .collect();
        for link in late {
            self.kill(now, link, out);
        }
        if self.retry_at.is_some_and(due) {
            self.retry_at = None;
            self.may_cut = true;
        }
        if self.banned_until.is_some_and(due) {
            self.banned_until = None;
            out.push(Output::Event(PeerEvent::Unbanned));
        }
        let Some(live) = &mut self.live else { return };
        if live.retire_at.is_some_and(due) {
            self.drain_live(now, Code::Idle, out);
        } else if live.linger_at.is_some_and(due) {
            live.linger_at = Some(after(now, self.rules.linger));
            out.push(Output::CloseIfIdle(live.link, self.rules.linger));
        }
    }

    fn expire_intents(&mut self, now: Instant, out: &mut Vec<Output>) {
        let cause = self.last_error;
        self.queue.retain(|_, intent| {
            let late = intent.deadline.is_some_and(|deadline| deadline <= now);
            if late {
                out.push(Output::End(intent.id, Outcome::TimedOut, cause));
            }
            !late
        });
    }

    /// Whatever follows from the state alone: hand over, keep, dial, linger, forget.
    fn settle(&mut self, now: Instant, out: &mut Vec<Output>) {
        if let Some(carrier) = self.carrier() {
            for (_, intent) in std::mem::take(&mut self.queue) {
                out.push(Output::Hand(carrier, intent.id));
            }
        }
        let held = !self.holds.is_empty();
        if let Some(live) = &mut self.live {
            if live.kept != held {
                live.kept = held;
                out.push(Output::Keep(live.link, held));
            }
            if held {
                live.linger_at = None;
            } else if live.linger_at.is_none() {
                live.linger_at = Some(after(now, self.rules.linger));
            }
        }
        let free = self.live.is_none() && self.parked.is_none() && self.retry_at.is_none();
        let wanted = free && self.is_needed();
        match &self.dial {
            None if wanted => {
                self.dial = Some(Dial::Ready);
                out.push(Output::WantDial);
            }
            Some(Dial::Ready) if !wanted => self.dial = None,
            _ => {}
        }
        self.settle_memory(now, out);
    }

    fn settle_memory(&mut self, now: Instant, out: &mut Vec<Output>) {
        let unused = self.dial.is_none()
            && self.parked.is_none()
            && self.live.is_none()
            && self.closing.is_empty()
            && self.banned_until.is_none()
            && !self.is_needed();
        if !unused {
            self.forget_at = None;
            return;
        }
        if self.shutting_down || self.forget_at.is_some_and(|at| at <= now) {
            out.push(Output::Forget);
        } else if self.forget_at.is_none() {
            // What was learnt about the peer outlives a running backoff, or forgetting would cut it short.
            let memory = after(now, self.rules.peer_memory);
            self.forget_at = Some(self.retry_at.map_or(memory, |at| at.max(memory)));
            if self.dead.is_empty() && self.seen.is_none() && self.retry_at.is_none() {
                out.push(Output::Forget);
            }
        }
    }

    /// The link that takes intents now: the live one, or a dial whose hello is written, since streams may follow right behind it.
    fn carrier(&self) -> Option<LinkId> {
        match (&self.live, &self.dial) {
            (Some(live), _) => Some(live.link),
            (None, Some(Dial::Greeting { link, .. })) => Some(*link),
            (None, _) => None,
        }
    }
}

enum Arbitration {
    Take,
    Park,
    Refuse(Code),
}

/// Refusals of a link that asking again soon would only repeat.
fn is_final_refusal(code: Code) -> bool {
    matches!(code, Code::Banned | Code::NotAdmitted | Code::Violation | Code::Malformed)
}

/// `at + by`, or `at` where the clock cannot carry the sum; limits keep `by` far below that.
fn after(at: Instant, by: Duration) -> Instant {
    at.checked_add(by).unwrap_or(at)
}
