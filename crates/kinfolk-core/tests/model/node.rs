//! One node: its table of peers, what its app wants, and the accounts that the table must keep after every step.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use iroh_base::{EndpointId, SecretKey};
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Intent, IntentId, Priority, Want};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{Input, Output, PeerState};
use kinfolk_core::peer_table::PeerTable;

use super::name::{Name, Side};
use super::promise::{Breach, Promise};

/// The times of the defaults, and few intents, so that the cap is met.
pub fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.dial_deadline = Duration::from_secs(10);
    limits.hello_deadline = Duration::from_secs(10);
    limits.linger = Duration::from_secs(30);
    limits.drain_deadline = Duration::from_secs(10);
    limits.stable_after = Duration::from_secs(15);
    limits.session_age = None;
    limits.quarantine = Duration::from_secs(600);
    limits.peer_memory = Duration::from_secs(60);
    limits.intents_per_peer = 8;
    limits
}

/// A ladder of ids: each is larger than the one before.
pub fn ids() -> [EndpointId; 3] {
    let mut ids = [1, 2, 3].map(|seed| SecretKey::from_bytes(&[seed; 32]).public());
    ids.sort();
    ids
}

/// What a node's app wants of one peer, and what the table has said about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    pub published: Option<LinkId>,
    pub up: Option<LinkId>,
    /// Intents that the machine has and has not given back.
    pub holds: BTreeSet<IntentId>,
    pub waiting: BTreeSet<IntentId>,
    /// Streams that were lost and whose callers are about to ask again.
    pub asks: usize,
    /// The peer's latest life, and its latest dial in it, that the machine was shown and has not forgotten.
    pub met: (u64, u64),
}

impl Peer {
    pub fn is_wanted(&self) -> bool {
        !self.holds.is_empty() || !self.waiting.is_empty()
    }
}

/// One node as the world sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    pub side: Side,
    /// Who it believes each side to be, itself included.
    ids: [EndpointId; 3],
    pub life: u64,
    pub now: Instant,
    pub table: PeerTable,
    pub peers: [Peer; 3],
    /// What is added to the numbers of its dials, where a restarted node counts anew under its old incarnation.
    skipped: u64,
    last_stamp: u64,
    last_id: u64,
    /// Streams that the app asked for; those that were served; those that ended otherwise.
    pub opened: u64,
    pub served: u64,
    pub failed: u64,
    /// Dials whose failure was reported, with a delay until the next.
    pub troubles: u64,
    pub shut: bool,
}

impl Node {
    pub fn new(side: Side, ids: [EndpointId; 3], limits: &Limits, now: Instant) -> Self {
        Self {
            side,
            ids,
            life: 1,
            now,
            table: table(side, &ids, 1, limits),
            peers: Default::default(),
            skipped: 0,
            last_stamp: 0,
            last_id: 0,
            opened: 0,
            served: 0,
            failed: 0,
            troubles: 0,
            shut: false,
        }
    }

    /// A new process with the same key: nothing is left.
    pub fn crash(&mut self, limits: &Limits, keeps_incarnation: bool) {
        let fresh = Self::new(self.side, self.ids, limits, self.now);
        let life = if keeps_incarnation { self.life } else { self.life + 1 };
        // Numbers must not repeat, or two links would share a name.
        let skipped = if keeps_incarnation { self.skipped + 8 } else { 0 };
        let table = table(self.side, &self.ids, life, limits);
        *self = Self { life, skipped, table, last_id: self.last_id, ..fresh };
    }

    pub fn next_stamp(&mut self) -> u64 {
        self.last_stamp += 1;
        self.last_stamp
    }

    pub fn new_intent(&mut self, want: Want) -> Intent {
        self.last_id += 1;
        let id = IntentId(self.last_id);
        Intent { id, want, priority: Priority::default(), deadline: None }
    }

    pub fn id(&self, of: Side) -> EndpointId {
        self.ids[of.index()]
    }

    pub fn peer(&self, peer: Side) -> &Peer {
        &self.peers[peer.index()]
    }

    pub fn peer_mut(&mut self, peer: Side) -> &mut Peer {
        &mut self.peers[peer.index()]
    }

    /// The peer that this id is.
    pub fn whose(&self, id: EndpointId) -> Side {
        let known = |side: &Side| *side != self.side && self.ids[side.index()] == id;
        Side::ALL.into_iter().find(known).unwrap()
    }

    /// The peer of whom this intent is asked.
    pub fn asked_of(&self, id: IntentId) -> Option<Side> {
        Side::ALL.into_iter().find(|side| {
            let peer = self.peer(*side);
            peer.holds.contains(&id) || peer.waiting.contains(&id)
        })
    }

    pub fn link_id(&self, name: Name) -> LinkId {
        // It wraps for a link of an earlier process of a node that kept its incarnation.
        let skipped = if name.dialler == self.side { self.skipped } else { 0 };
        let n = name.n.wrapping_sub(skipped);
        LinkId { dialler: self.id(name.dialler), incarnation: Incarnation::new(name.life), n }
    }

    pub fn name(&self, peer: Side, link: LinkId) -> Name {
        let life = link.incarnation.get();
        if link.dialler == self.id(self.side) {
            Name { dialler: self.side, life, n: link.n.wrapping_add(self.skipped), to: peer }
        } else {
            Name { dialler: peer, life, n: link.n, to: self.side }
        }
    }

    pub fn live(&self, peer: Side) -> Option<Name> {
        self.table.live(&self.id(peer)).map(|link| self.name(peer, link))
    }

    pub fn knows(&self, peer: Side) -> bool {
        self.table.why(self.now, &self.id(peer)).is_some()
    }

    pub fn state(&self, peer: Side) -> PeerState {
        self.table.why(self.now, &self.id(peer)).map_or(PeerState::Idle, |why| why.state)
    }

    /// Nothing of it waits for a link.
    pub fn is_content(&self) -> bool {
        self.peers.iter().all(|peer| !peer.is_wanted() && peer.asks == 0)
            && self.opened == self.served + self.failed
    }

    /// Passes the input on as the manager does.
    pub fn feed(&mut self, peer: Side, input: Input) -> Vec<(EndpointId, Output)> {
        let mut out = Vec::new();
        match input {
            Input::Timeout => self.table.handle_timeout(self.now, &mut out),
            Input::Shutdown => self.table.shut_down(self.now, &mut out),
            Input::Cancel(id) => self.table.cancel(self.now, id, &mut out),
            input => self.table.handle(self.now, self.id(peer), input, &mut out),
        }
        out
    }

    /// What must hold after every step, or the promise that was broken.
    pub fn breach(&self, inbound: usize, outbound: usize) -> Option<Breach> {
        let side = self.side;
        let breach =
            |promise, what: String| Some(Breach { promise, what: format!("{side:?}: {what}") });
        let usage = self.table.totals(self.now).usage;
        if (usage.inbound, usage.outbound) != (inbound, outbound) {
            let what = format!("{usage:?}, but {inbound} in and {outbound} out have sessions");
            return breach(Promise::Accounts, what);
        }
        let intents: usize =
            self.peers.iter().map(|peer| peer.holds.len() + peer.waiting.len()).sum();
        if usage.intents != intents {
            let what = format!("{usage:?}, but the app has {intents} intents");
            return breach(Promise::OneOutcome, what);
        }
        for of in Side::ALL {
            let (peer, id) = (self.peer(of), self.id(of));
            let live = self.table.live(&id);
            if live != peer.published || live != peer.up {
                let (published, up) = (peer.published, peer.up);
                let what = format!("live {live:?}, {published:?} is published, {up:?} up");
                return breach(Promise::Accounts, what);
            }
            if live.is_some() && !peer.waiting.is_empty() {
                let what = "an intent waits beside a live link".to_owned();
                return breach(Promise::OneOutcome, what);
            }
            let Some(why) = self.table.why(self.now, &id) else { continue };
            // A link that the app holds stays as long as QUIC keeps it; everything else ends, or is followed by something.
            let held = why.state == PeerState::Connected && why.holds > 0;
            let rests = (held || why.state == PeerState::Idle) && why.closing == 0;
            let waits = !rests || (peer.is_wanted() && live.is_none());
            if waits && self.table.next_timeout().is_none() {
                return breach(Promise::NextTimeout, format!("{why:?} waits without a timer"));
            }
        }
        None
    }
}

fn table(side: Side, ids: &[EndpointId; 3], life: u64, limits: &Limits) -> PeerTable {
    PeerTable::new(ids[side.index()], Incarnation::new(life), limits, side.index() as u64)
}
