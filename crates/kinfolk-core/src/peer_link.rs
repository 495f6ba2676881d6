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
//! | `AddressNews` | ends a backoff; a dial that runs and fails is followed by the next within a second |
//! | `NetworkNews` | the same, but a backoff ends after half a second to a second, as those who lost one network must not return in step; failures are forgotten |
//! | `Disconnect`, `Ban`, `Unban`, `Shutdown` | what the app or the node wants |
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
//! | | it lists the live link as dead, or is a later dial of the same dialler | take it, drain the old one, see below |
//! | | otherwise | refuse it as duplicate |
//!
//! A greeting dial of the smaller side that is welcomed after all becomes live: the larger side can only have welcomed it
//! because it holds its own dial dead. What a `Hello` lists as dead are the links that the dialler lost, gave up, ended *or drains*: a
//! new dial may overtake the `Goodbye` of the old link. Of more than a hello can list the newest stay, and what still drains is newest.
//! A dial counts from the moment that the machine lets its `Hello` be written (`Connected` → `Greet`), so that both sides judge by the
//! same fact.
//!
//! A new link needs room in the table, or is refused as busy; one that takes the place of an inbound link does not. The old one then drains
//! only if there was room for both and none that the peer opened is closing already; otherwise it is closed at once. A peer that replaces
//! its own links thus holds two sessions, and one more for a moment.
//!
//! # Giving up a dial
//!
//! A *connecting* dial is closed. A *greeting* one is drained, whether the app, the node, the deadline or another link ends it: the peer may
//! have welcomed it and acknowledged streams while `Welcomed` is still on its way here. Only the session knows. It closes the link at once,
//! with the code of the drain, if it has heard no welcome, and drains it if it has. Only a ban, or a welcome by a process
//! that is known to be gone, closes it either way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

use crate::backoff::Backoff;
use crate::code::Code;
use crate::id::{Incarnation, LinkId};
use crate::intensity::Intensity;
use crate::intent::{Failure, Intent, IntentId, Outcome, Priority, Want};

mod arbitration;
mod contract;
mod dialling;
mod ending;

pub use contract::{
    DialFailure, Direction, DownReason, Incoming, Input, Linger, LinkEnd, Output, PeerEvent,
    PeerState, Rules, Usage, Why,
};

/// Links of one peer that may be closing at once; a further one cuts the oldest. Only a peer or an app
/// that ends and renews its links over and over gets there.
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
    holds: BTreeSet<IntentId>,
    backoff: Backoff,
    retry_at: Option<Instant>,
    /// Whether the next new intent may cut the backoff short.
    may_cut: bool,
    /// Whether a way to the peer was learnt since the running dial began.
    has_news: bool,
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
            backoff: Backoff::new(seed, rules.redial_max),
            rules,
            dial: None,
            parked: None,
            live: None,
            closing: BTreeMap::new(),
            dead: VecDeque::new(),
            seen: None,
            queue: BTreeMap::new(),
            next_place: 0,
            holds: BTreeSet::new(),
            retry_at: None,
            may_cut: true,
            has_news: false,
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
                self.learnt_a_way();
            }
            Input::NetworkNews => {
                // A peer that many come back to refuses some: for them that is an early failure, not one of many.
                self.backoff.reset();
                if let Some(at) = self.retry_at {
                    self.retry_at = Some(at.min(after(now, self.backoff.fail())));
                }
                self.learnt_a_way();
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

    /// Whether only memory or a ban is left of the peer, so that it may be evicted when memory runs short.
    pub fn is_memory(&self) -> bool {
        self.dial.is_none()
            && self.parked.is_none()
            && self.live.is_none()
            && self.closing.is_empty()
            && !self.is_needed()
    }

    /// Whether the app banned the peer, or it is in quarantine.
    pub fn is_banned(&self) -> bool {
        self.banned_until.is_some()
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
        if self.retry_at.is_some() && self.may_cut && intent.want != Want::Errand {
            self.retry_at = None;
            self.may_cut = false;
        }
        match intent.want {
            Want::Hold => {
                self.holds.insert(intent.id);
            }
            Want::Stream | Want::Errand => {
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
        let held = self.holds.remove(&id);
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
        for id in std::mem::take(&mut self.holds) {
            out.push(Output::End(id, outcome, cause));
        }
    }

    // What the app and the node want

    fn abandon(&mut self, now: Instant, code: Code, out: &mut Vec<Output>) {
        self.unpark(now, code, out);
        match self.dial.take() {
            None | Some(Dial::Ready) => {}
            Some(Dial::Greeting { link, .. }) if code != Code::Banned => {
                self.bury(link);
                self.drain(now, link, code, out);
            }
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
                self.drain(now, link, Code::HelloTimeout, out);
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

    /// What failed before says nothing of the next dial.
    fn learnt_a_way(&mut self) {
        self.may_cut = true;
        self.has_news = matches!(self.dial, Some(Dial::Connecting { .. } | Dial::Greeting { .. }));
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
        if !self.is_memory() || self.is_banned() {
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

/// `at + by`, or `at` where the clock cannot carry the sum; limits keep `by` far below that.
fn after(at: Instant, by: Duration) -> Instant {
    at.checked_add(by).unwrap_or(at)
}
