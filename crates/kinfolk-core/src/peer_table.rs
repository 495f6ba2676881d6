//! All peers of a node, and what spans them: caps on sessions, dials, intents and memory, and fairness.
//!
//! `PeerTable` decides for the PeerManager. It owns one [`PeerLink`] per peer and passes inputs on to it; it numbers
//! dials and permits them first come, first served, at most one per peer, so that no peer's retries starve another's. It never does I/O.
//!
//! Peers that nothing needs are forgotten after a while, or earlier when the table is full; what the app wants or is connected to is never
//! evicted. A peer that is banned and nothing else may be: keys are free, so that bans alone could fill the table. The owner of the bans
//! therefore keeps them, and turns away what concerns a peer whose ban [`PeerTable::is_banned`] does not know. All work per input is logarithmic in the
//! number of peers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use iroh_base::EndpointId;

use crate::code::Code;
use crate::id::{Incarnation, LinkId};
use crate::intent::{Failure, IntentId, Outcome};
use crate::limits::Limits;
use crate::peer_link::{Input, Output, PeerEvent, PeerLink, PeerState, Rules, Usage, Why};

/// Inbound sessions beyond [`Caps::inbound`], all peers together: links that were replaced while no more fit, and that are closed at once
/// but not gone yet. Half the default of handshakes under way, as the peers of a hub may all come back together. A guess.
pub const REPLACED_MAX: usize = 32;

/// What spans peers; see [`Limits`] for units and reasons.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caps {
    /// Sessions in total, but for [`REPLACED_MAX`].
    pub sessions: usize,
    /// Sessions that others opened, but for [`REPLACED_MAX`].
    pub inbound: usize,
    /// Sessions that this node opened.
    pub outbound: usize,
    /// Dials under way at once.
    pub dials: usize,
    /// Peers remembered.
    pub peers: usize,
    /// Intents that wait.
    pub intents: usize,
}

impl From<&Limits> for Caps {
    fn from(limits: &Limits) -> Self {
        Self {
            sessions: limits.sessions,
            inbound: limits.sessions_inbound,
            outbound: limits.sessions_outbound,
            dials: limits.dials,
            peers: limits.peers,
            intents: limits.intents,
        }
    }
}

/// A peer as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSummary {
    /// The peer.
    pub peer: EndpointId,
    /// Why it is in its state.
    pub why: Why,
}

/// Numbers over all peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Peers remembered.
    pub peers: usize,
    /// Links in use or closing, by who opened them, dials, parked and closing links; and waiting intents.
    pub usage: Usage,
    /// Peers with a live link.
    pub connected: usize,
    /// Peers that wait for a dial slot.
    pub waiting: usize,
    /// Peers that wait for their next attempt.
    pub backing_off: usize,
    /// Peers that are banned or quarantined.
    pub banned: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    link: PeerLink,
    timer: Option<Instant>,
    usage: Usage,
    in_dial_queue: bool,
    in_memory_since: Option<Instant>,
}

/// The machine of all peers; see the module page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerTable {
    me: EndpointId,
    incarnation: Incarnation,
    seed: u64,
    rules: Arc<Rules>,
    caps: Caps,
    peers: BTreeMap<EndpointId, Entry>,
    waiting: BTreeMap<IntentId, EndpointId>,
    dial_queue: VecDeque<EndpointId>,
    timers: BTreeSet<(Instant, EndpointId)>,
    /// Peers of which only memory is left, oldest first: the order of eviction.
    memories: BTreeSet<(Instant, EndpointId)>,
    usage: Usage,
    last_n: u64,
    shutting_down: bool,
    scratch: Vec<Output>,
}

impl PeerTable {
    /// An empty table. `seed` spreads the backoff of this node's peers.
    pub fn new(me: EndpointId, incarnation: Incarnation, limits: &Limits, seed: u64) -> Self {
        Self {
            me,
            incarnation,
            seed,
            rules: Arc::new(Rules::from(limits)),
            caps: Caps::from(limits),
            peers: BTreeMap::new(),
            waiting: BTreeMap::new(),
            dial_queue: VecDeque::new(),
            timers: BTreeSet::new(),
            memories: BTreeSet::new(),
            usage: Usage::default(),
            last_n: 0,
            shutting_down: false,
            scratch: Vec::new(),
        }
    }

    /// Takes what happened to a peer and writes what has to be done.
    ///
    /// [`Output::WantDial`] and [`Output::Forget`] are carried out here and never reach the caller.
    pub fn handle(
        &mut self,
        now: Instant,
        peer: EndpointId,
        input: Input,
        out: &mut Vec<(EndpointId, Output)>,
    ) {
        let input = match input {
            // A hold that is already known is told again after a restart.
            Input::Queue(intent) if self.waiting.contains_key(&intent.id) => return,
            Input::Queue(intent) => match self.admit_intent(now, peer) {
                Ok(()) => {
                    self.waiting.insert(intent.id, peer);
                    Input::Queue(intent)
                }
                Err(outcome) => {
                    out.push((peer, Output::End(intent.id, outcome, None)));
                    return;
                }
            },
            Input::Incoming { incoming, .. } => {
                if let Err(code) = self.admit_incoming(now, peer) {
                    out.push((peer, Output::Refuse(incoming.link, code)));
                    let refused = PeerEvent::Refused(incoming.link, code);
                    out.push((peer, Output::Event(refused)));
                    return;
                }
                let room = self.usage.inbound < self.caps.inbound && self.has_session_room();
                Input::Incoming { incoming, room }
            }
            Input::Ban { until } => {
                if self.ensure(now, peer).is_err() {
                    // There is nothing to end; the owner of the bans keeps it.
                    out.push((peer, Output::Event(PeerEvent::Banned(until))));
                    return;
                }
                Input::Ban { until }
            }
            other => other,
        };
        self.pass(now, peer, input, out);
        self.grant_dials(now, out);
    }

    /// Ends an intent that its caller gave up, wherever it waits.
    pub fn cancel(&mut self, now: Instant, id: IntentId, out: &mut Vec<(EndpointId, Output)>) {
        if let Some(peer) = self.waiting.get(&id).copied() {
            self.handle(now, peer, Input::Cancel(id), out);
        }
    }

    /// Carries out everything that is due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<(EndpointId, Output)>) {
        // Each peer at most once: a machine that re-arms itself in the past waits for the next call.
        let due: Vec<EndpointId> =
            self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, peer)| *peer).collect();
        for peer in due {
            self.pass(now, peer, Input::Timeout, out);
        }
        self.grant_dials(now, out);
    }

    /// Ends all backoffs within a second: the node has a new way into the network, so that what failed before says nothing of the next
    /// dial. Not at once: a thousand nodes whose relay or router is back learn that together, and would dial whom all of them want in one
    /// instant. It visits every peer.
    pub fn network_news(&mut self, now: Instant, out: &mut Vec<(EndpointId, Output)>) {
        let peers: Vec<EndpointId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.pass(now, peer, Input::NetworkNews, out);
        }
        self.grant_dials(now, out);
    }

    /// When [`PeerTable::handle_timeout`] is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Ends all intents, drains all links, and refuses new ones from now on.
    pub fn shut_down(&mut self, now: Instant, out: &mut Vec<(EndpointId, Output)>) {
        self.shutting_down = true;
        let peers: Vec<EndpointId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.pass(now, peer, Input::Shutdown, out);
        }
    }

    /// Whether no session is left.
    pub fn is_empty(&self) -> bool {
        self.usage.inbound == 0 && self.usage.outbound == 0
    }

    /// Why the peer is in the state it is in; `None` if nothing is known of it.
    pub fn why(&self, now: Instant, peer: &EndpointId) -> Option<Why> {
        self.peers.get(peer).map(|entry| entry.link.why(now))
    }

    /// All peers that are more than a memory, banned ones included.
    pub fn peers(&self, now: Instant) -> Vec<PeerSummary> {
        self.peers
            .iter()
            .filter(|(_, entry)| entry.in_memory_since.is_none() || entry.link.is_banned())
            .map(|(peer, entry)| PeerSummary { peer: *peer, why: entry.link.why(now) })
            .collect()
    }

    /// Numbers over all peers.
    pub fn totals(&self, now: Instant) -> Totals {
        let mut totals = Totals { peers: self.peers.len(), usage: self.usage, ..Totals::default() };
        for entry in self.peers.values() {
            let slot = match entry.link.why(now).state {
                PeerState::Connected => &mut totals.connected,
                PeerState::Waiting => &mut totals.waiting,
                PeerState::BackingOff => &mut totals.backing_off,
                PeerState::Banned => &mut totals.banned,
                PeerState::Idle
                | PeerState::Connecting
                | PeerState::Greeting
                | PeerState::Draining => continue,
            };
            *slot = slot.saturating_add(1);
        }
        totals
    }

    /// Whether the table knows of a ban of the peer. If it does not and there is one, it was evicted or never fitted: the owner of the bans
    /// passes on no intent for the peer and no link of it, or tells the ban by [`Input::Ban`] first.
    pub fn is_banned(&self, peer: &EndpointId) -> bool {
        self.peers.get(peer).is_some_and(|entry| entry.link.is_banned())
    }

    /// The live link with a peer.
    pub fn live(&self, peer: &EndpointId) -> Option<LinkId> {
        self.peers.get(peer).and_then(|entry| entry.link.live())
    }

    /// Whether one more session fits. What others opened beyond their share is not held against dials of our own.
    fn has_session_room(&self) -> bool {
        let inbound = self.usage.inbound.min(self.caps.inbound);
        inbound.saturating_add(self.usage.outbound) < self.caps.sessions
    }

    /// What inbound sessions never exceed, whatever others do.
    fn inbound_max(&self) -> usize {
        self.caps.inbound.min(self.caps.sessions).saturating_add(REPLACED_MAX)
    }

    fn admit_intent(&mut self, now: Instant, peer: EndpointId) -> Result<(), Outcome> {
        if self.shutting_down {
            return Err(Outcome::ShuttingDown);
        }
        if self.waiting.len() >= self.caps.intents {
            return Err(Outcome::Failed(Failure::QueueFull));
        }
        self.ensure(now, peer).map_err(|Full| Outcome::Failed(Failure::TooManyPeers))
    }

    fn admit_incoming(&mut self, now: Instant, peer: EndpointId) -> Result<(), Code> {
        if self.shutting_down {
            return Err(Code::ShuttingDown);
        }
        // Even for a link that replaces another: the one that it replaces takes a moment to end.
        if self.usage.inbound >= self.inbound_max() {
            return Err(Code::Busy);
        }
        self.ensure(now, peer).map_err(|Full| Code::Busy)
    }

    /// Makes sure that the peer has an entry, at the cost of the oldest memory if need be.
    fn ensure(&mut self, now: Instant, peer: EndpointId) -> Result<(), Full> {
        if self.peers.contains_key(&peer) {
            return Ok(());
        }
        if self.peers.len() >= self.caps.peers {
            let oldest = self.memories.first().map(|(_, peer)| *peer).ok_or(Full)?;
            self.forget(&oldest);
        }
        let seed = self.seed ^ seed_of(&peer);
        let link = PeerLink::new(self.me, self.incarnation, peer, Arc::clone(&self.rules), seed);
        let entry = Entry {
            link,
            timer: None,
            usage: Usage::default(),
            in_dial_queue: false,
            in_memory_since: Some(now),
        };
        self.memories.insert((now, peer));
        self.peers.insert(peer, entry);
        Ok(())
    }

    fn forget(&mut self, peer: &EndpointId) {
        let Some(entry) = self.peers.remove(peer) else { return };
        if let Some(at) = entry.timer {
            self.timers.remove(&(at, *peer));
        }
        if let Some(since) = entry.in_memory_since {
            self.memories.remove(&(since, *peer));
        }
        if entry.in_dial_queue {
            // Rare: it wanted a dial, got no slot, and is not wanted any more.
            self.dial_queue.retain(|waiting| waiting != peer);
        }
        self.usage = self.usage.without(&entry.usage);
    }

    /// Lets the peer's machine handle the input and keeps the indexes in step with it.
    fn pass(
        &mut self,
        now: Instant,
        peer: EndpointId,
        input: Input,
        out: &mut Vec<(EndpointId, Output)>,
    ) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let mut outputs = std::mem::take(&mut self.scratch);
        entry.link.handle(now, input, &mut outputs);

        let usage = entry.link.usage();
        self.usage = self.usage.without(&entry.usage).with(&usage);
        entry.usage = usage;
        let timer = entry.link.next_timeout();
        if timer != entry.timer {
            if let Some(at) = entry.timer {
                self.timers.remove(&(at, peer));
            }
            if let Some(at) = timer {
                self.timers.insert((at, peer));
            }
            entry.timer = timer;
        }
        match (entry.link.is_memory(), entry.in_memory_since) {
            (true, None) => {
                entry.in_memory_since = Some(now);
                self.memories.insert((now, peer));
            }
            (false, Some(since)) => {
                entry.in_memory_since = None;
                self.memories.remove(&(since, peer));
            }
            _ => {}
        }

        let mut forgotten = false;
        for output in outputs.drain(..) {
            match output {
                Output::WantDial => {
                    if !entry.in_dial_queue {
                        entry.in_dial_queue = true;
                        self.dial_queue.push_back(peer);
                    }
                }
                Output::Forget => forgotten = true,
                Output::Hand(_, id) | Output::End(id, _, _) => {
                    self.waiting.remove(&id);
                    out.push((peer, output));
                }
                other => out.push((peer, other)),
            }
        }
        self.scratch = outputs;
        if forgotten {
            self.forget(&peer);
        }
    }

    fn grant_dials(&mut self, now: Instant, out: &mut Vec<(EndpointId, Output)>) {
        while self.usage.dialling < self.caps.dials
            && self.usage.outbound < self.caps.outbound
            && self.has_session_room()
        {
            let Some(peer) = self.dial_queue.pop_front() else { return };
            let Some(entry) = self.peers.get_mut(&peer) else { continue };
            entry.in_dial_queue = false;
            if entry.link.wants_dial() {
                self.last_n = self.last_n.saturating_add(1);
                self.pass(now, peer, Input::Granted { n: self.last_n }, out);
            }
        }
    }
}

struct Full;

impl Usage {
    fn with(&self, other: &Self) -> Self {
        self.zip(other, usize::saturating_add)
    }

    fn without(&self, other: &Self) -> Self {
        self.zip(other, usize::saturating_sub)
    }

    fn zip(&self, other: &Self, op: impl Fn(usize, usize) -> usize) -> Self {
        Self {
            inbound: op(self.inbound, other.inbound),
            outbound: op(self.outbound, other.outbound),
            dialling: op(self.dialling, other.dialling),
            closing: op(self.closing, other.closing),
            parked: op(self.parked, other.parked),
            intents: op(self.intents, other.intents),
        }
    }
}

/// Folds the peer's key into a number; keys are uniform already.
fn seed_of(peer: &EndpointId) -> u64 {
    peer.as_bytes().iter().fold(0, |seed: u64, byte| seed.rotate_left(8) ^ u64::from(*byte))
}
