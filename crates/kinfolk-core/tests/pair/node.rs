//! One node: its machine, what its app wants, and the promises that its machine must keep after every step.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_base::{EndpointId, SecretKey};
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Intent, IntentId, Priority, Want};
use kinfolk_core::peer_link::{Input, Output, PeerLink, Rules};

use super::link::{Name, Side};

/// The times of the defaults, and few intents, so that the cap is met.
pub fn rules() -> Rules {
    Rules {
        dial_deadline: Duration::from_secs(10),
        hello_deadline: Duration::from_secs(10),
        linger: Duration::from_secs(30),
        drain_deadline: Duration::from_secs(10),
        stable_after: Duration::from_secs(15),
        session_age: None,
        quarantine: Duration::from_secs(600),
        peer_memory: Duration::from_secs(60),
        intents: 8,
    }
}

/// A ladder of ids: each is larger than the one before.
pub fn ids() -> [EndpointId; 3] {
    let mut ids = [1, 2, 3].map(|seed| SecretKey::from_bytes(&[seed; 32]).public());
    ids.sort();
    ids
}

/// One node as the pair sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    pub side: Side,
    /// Who the machine believes to be, and to talk to.
    pub me: EndpointId,
    pub peer: EndpointId,
    pub rules: Arc<Rules>,
    pub life: u64,
    pub now: Instant,
    pub machine: Option<PeerLink>,
    last_n: u64,
    last_stamp: u64,
    last_id: u64,
    pub published: Option<LinkId>,
    pub up: Option<LinkId>,
    /// Intents that the machine has and has not given back.
    pub holds: BTreeSet<IntentId>,
    pub waiting: BTreeSet<IntentId>,
    /// Streams that were lost and whose callers are about to ask again.
    pub asks: usize,
    /// Streams that the app asked for; those that were served; those that ended otherwise.
    pub opened: u64,
    pub served: u64,
    pub failed: u64,
    /// Dials whose failure was reported, with a delay until the next.
    pub troubles: u64,
    pub shut: bool,
    /// The peer's latest life, and its latest dial in it, that the machine was shown and has not forgotten.
    pub met: (u64, u64),
}

impl Node {
    pub fn new(side: Side, me: EndpointId, peer: EndpointId, rules: Rules, now: Instant) -> Self {
        Self {
            side,
            me,
            peer,
            rules: Arc::new(rules),
            life: 1,
            now,
            machine: None,
            last_n: 0,
            last_stamp: 0,
            last_id: 0,
            published: None,
            up: None,
            holds: BTreeSet::new(),
            waiting: BTreeSet::new(),
            asks: 0,
            opened: 0,
            served: 0,
            failed: 0,
            troubles: 0,
            shut: false,
            met: (0, 0),
        }
    }

    /// A new process with the same key: nothing is left.
    pub fn crash(&mut self) {
        let rules = Rules::clone(&self.rules);
        let fresh = Self::new(self.side, self.me, self.peer, rules, self.now);
        *self = Self { life: self.life + 1, last_id: self.last_id, ..fresh };
    }

    pub fn next_n(&mut self) -> u64 {
        self.last_n += 1;
        self.last_n
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

    pub fn link_id(&self, name: Name) -> LinkId {
        let dialler = if name.dialler == self.side { self.me } else { self.peer };
        LinkId { dialler, incarnation: Incarnation::new(name.life), n: name.n }
    }

    pub fn name(&self, link: LinkId) -> Name {
        let dialler = if link.dialler == self.me { self.side } else { self.side.other() };
        Name { dialler, life: link.incarnation.get(), n: link.n }
    }

    pub fn live(&self) -> Option<Name> {
        self.machine.as_ref().and_then(PeerLink::live).map(|link| self.name(link))
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        self.machine.as_ref().and_then(PeerLink::next_timeout)
    }

    pub fn wants_dial(&self) -> bool {
        self.machine.as_ref().is_some_and(PeerLink::wants_dial)
    }

    pub fn is_wanting(&self) -> bool {
        !self.holds.is_empty() || !self.waiting.is_empty()
    }

    /// Passes the input on as the table of peers does.
    pub fn feed(&mut self, input: Input) -> Vec<Output> {
        let creates = matches!(input, Input::Queue(_) | Input::Incoming { .. } | Input::Ban { .. });
        if self.machine.is_none() && creates {
            let rules = Arc::clone(&self.rules);
            let seed = self.side.index() as u64;
            let incarnation = Incarnation::new(self.life);
            self.machine = Some(PeerLink::new(self.me, incarnation, self.peer, rules, seed));
        }
        let mut out = Vec::new();
        if let Some(machine) = &mut self.machine {
            machine.handle(self.now, input, &mut out);
        }
        out
    }

    /// What must hold after every step, or the promise that was broken.
    pub fn broken_promise(&self, inbound: usize, outbound: usize) -> Option<String> {
        let Some(machine) = &self.machine else {
            return (inbound + outbound > 0).then(|| "a session outlives what is known".to_owned());
        };
        let usage = machine.usage();
        if (usage.inbound, usage.outbound) != (inbound, outbound) {
            return Some(format!("{usage:?}, but {inbound} in and {outbound} out have sessions"));
        }
        if usage.intents != self.holds.len() + self.waiting.len() {
            return Some(format!("{usage:?}, but {:?} and {:?}", self.holds, self.waiting));
        }
        if machine.live() != self.published || machine.live() != self.up {
            let (published, up) = (self.published, self.up);
            return Some(format!(
                "live {:?}, {published:?} is published, {up:?} up",
                machine.live()
            ));
        }
        let waits = usage.closing + usage.parked + usage.dialling > 0
            || (self.is_wanting() && machine.live().is_none());
        if waits && machine.next_timeout().is_none() && !machine.wants_dial() {
            return Some("it waits without a timer".to_owned());
        }
        if machine.live().is_some() && !self.waiting.is_empty() {
            return Some("an intent waits beside a live link".to_owned());
        }
        None
    }
}
