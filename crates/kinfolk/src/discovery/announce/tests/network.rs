//! A network of announcers in memory and virtual time, each beside a catalog and an intake, as their actors will have them.
//!
//! Streams keep their order and lose nothing while they live; each pair of nodes has its own latency. Everything follows from the
//! seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::{EndpointId, SecretKey};
use kinfolk_core::catalog::{self, Catalog, CatalogLimits, Sighting, Source};
use kinfolk_core::code::Code;
use kinfolk_core::id::NetworkId;
use kinfolk_core::intake::{Intake, IntakeLimits};
use kinfolk_core::limits::AnnounceLimits;
use kinfolk_core::peer_link::Direction;
use kinfolk_core::record::{Draft, Reach, Record, Seq, UnixMillis};
use rand::rngs::ChaCha20Rng;
use rand::{RngExt, SeedableRng};

use super::super::{Announcer, Dropped, Input, Output, Surroundings, TopicId};

/// The wall clock when a test begins.
const CLOCK: u64 = 1_700_000_000_000;

/// Until a silent connection is noticed, and until a dial is given up.
const SILENCE: Duration = Duration::from_secs(10);

pub(super) fn network() -> NetworkId {
    NetworkId::from_name("my-app")
}

pub(super) fn topic() -> TopicId {
    TopicId::of(network())
}

pub(super) fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

pub(super) fn id(n: u8) -> EndpointId {
    key(n).public()
}

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) struct Node {
    key: SecretKey,
    pub(super) announcer: Announcer,
    pub(super) catalog: Catalog,
    pub(super) intake: Intake,
    seq: u64,
    pub(super) dropped: BTreeMap<Dropped, usize>,
    pub(super) wakes: usize,
    pub(super) opens: usize,
    pub(super) heard: usize,
    /// As told, for comparison with what the announcer says when it is asked.
    told: BTreeSet<EndpointId>,
    pub(super) has_departed: bool,
}

enum Happening {
    Up { peer: EndpointId },
    Frame { from: EndpointId, frame: Bytes, stream: u64 },
    Gone { peer: EndpointId },
    Wake,
}

pub(super) struct Net {
    start: Instant,
    pub(super) now: Instant,
    pub(super) nodes: BTreeMap<EndpointId, Node>,
    happenings: BTreeMap<(Instant, u64), (EndpointId, Happening)>,
    serial: u64,
    /// The number of the stream of each pair.
    streams: BTreeMap<(EndpointId, EndpointId), u64>,
    /// Streams that this node has finished: what it sent before arrives.
    finished: BTreeSet<(EndpointId, u64)>,
    /// One side of a cut.
    island: BTreeSet<EndpointId>,
    rng: ChaCha20Rng,
    /// Frames that went to nobody of the network: to the strangers of a test.
    pub(super) to_strangers: Vec<(EndpointId, EndpointId, Bytes)>,
    pub(super) closed: Vec<(EndpointId, EndpointId, Code)>,
    /// Frames sent, with their sizes.
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

fn pair(a: EndpointId, b: EndpointId) -> (EndpointId, EndpointId) {
    (a.min(b), a.max(b))
}

impl Net {
    pub(super) fn empty(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            start: now,
            now,
            nodes: BTreeMap::new(),
            happenings: BTreeMap::new(),
            serial: 0,
            streams: BTreeMap::new(),
            finished: BTreeSet::new(),
            island: BTreeSet::new(),
            rng: ChaCha20Rng::seed_from_u64(seed),
            to_strangers: Vec::new(),
            closed: Vec::new(),
            frames: 0,
            bytes: 0,
        }
    }

    /// `count` nodes that start one after the other, each of which knows three that came before it, after half a minute.
    pub(super) fn of(count: u8, seed: u64) -> Self {
        Self::starting(count, seed, secs(1))
    }

    /// The same, with this pause between two starts.
    pub(super) fn starting(count: u8, seed: u64, pause: Duration) -> Self {
        let mut net = Self::empty(seed);
        for n in 1..=count {
            net.start(n, (1..n).rev().take(3));
            net.run(pause);
        }
        net.run(secs(30));
        net
    }

    /// `count` nodes that start at once, and tell each other of all by way of the first one after half a second.
    pub(super) fn starting_apart(count: u8, seed: u64) -> Self {
        let mut net = Self::empty(seed);
        for n in 1..=count {
            net.start(n, (n > 1).then_some(1));
        }
        net.run(secs(1) / 2);
        for n in (2..=count).chain(2..=count) {
            net.exchange(1, n);
        }
        net
    }

    /// Starts a node that knows these others, as from an exchange.
    pub(super) fn start(&mut self, n: u8, knows: impl IntoIterator<Item = u8>) {
        let (key, limits) = (key(n), AnnounceLimits::default());
        let me = key.public();
        let mut seed = [0; 32];
        self.rng.fill(&mut seed);
        let node = Node {
            announcer: Announcer::new(self.now, me, network(), limits, seed),
            catalog: Catalog::new(me, CatalogLimits::default()),
            intake: Intake::new(me, network(), IntakeLimits::default()),
            key,
            seq: 0,
            dropped: BTreeMap::new(),
            wakes: 0,
            opens: 0,
            heard: 0,
            told: BTreeSet::new(),
            has_departed: false,
        };
        self.nodes.insert(me, node);
        self.change(n);
        for other in knows {
            if let Some(own) = self.nodes[&id(other)].catalog.known().own() {
                let (record, age) = (own.record().clone(), own.age(self.now));
                self.hear(me, record, id(other), age);
            }
        }
    }

    pub(super) fn clock(&self) -> UnixMillis {
        let since = u64::try_from((self.now - self.start).as_millis()).unwrap();
        UnixMillis::new(CLOCK + since)
    }

    /// A node signs a new record, and says so.
    pub(super) fn change(&mut self, n: u8) -> Record {
        let (now, clock) = (self.now, self.clock());
        let node = self.nodes.get_mut(&id(n)).unwrap();
        node.seq += 1;
        let record = Draft::new(network()).sign(&node.key, Seq::new(node.seq), clock).unwrap();
        node.catalog.handle(now, catalog::Input::Own(record.clone()), &mut Vec::new());
        self.tell(id(n), Input::Own(record.clone()));
        record
    }

    /// A node leaves gracefully.
    pub(super) fn depart(&mut self, n: u8) {
        let clock = self.clock();
        let node = self.nodes.get_mut(&id(n)).unwrap();
        let seq = Seq::new(node.seq + 1);
        let tombstone = Record::departure(network(), &node.key, seq, clock).unwrap();
        self.tell(id(n), Input::Depart(tombstone));
    }

    /// A node is gone without a word.
    pub(super) fn crash(&mut self, n: u8) {
        self.nodes.remove(&id(n));
        for (one, other) in self.streams.keys().copied().collect::<Vec<_>>() {
            if one == id(n) || other == id(n) {
                self.break_stream(one, other);
            }
        }
    }

    /// Whatever is between these nodes and the others is lost from now on.
    pub(super) fn cut(&mut self, island: impl IntoIterator<Item = u8>) {
        self.island = island.into_iter().map(id).collect();
        for (one, other) in self.streams.keys().copied().collect::<Vec<_>>() {
            if self.is_cut(one, other) {
                self.break_stream(one, other);
            }
        }
    }

    pub(super) fn heal(&mut self) {
        self.island.clear();
    }

    fn is_cut(&self, one: EndpointId, other: EndpointId) -> bool {
        self.island.contains(&one) != self.island.contains(&other)
    }

    fn break_stream(&mut self, one: EndpointId, other: EndpointId) {
        self.streams.remove(&pair(one, other));
        self.plan(SILENCE, one, Happening::Gone { peer: other });
        self.plan(SILENCE, other, Happening::Gone { peer: one });
    }

    /// Two nodes tell each other all they know.
    pub(super) fn exchange(&mut self, one: u8, other: u8) {
        for (from, to) in [(one, other), (other, one)] {
            let known = self.nodes[&id(from)].catalog.snapshot();
            for (record, age) in known.relayable(self.now) {
                self.hear(id(to), record.clone(), id(from), age);
            }
        }
    }

    fn hear(&mut self, at: EndpointId, record: Record, from: EndpointId, age: Duration) {
        let sighting = Sighting::new(record, self.now, self.clock(), age);
        self.put(at, sighting, from);
    }

    fn put(&mut self, at: EndpointId, sighting: Sighting, from: EndpointId) {
        let source = Source::Peer { peer: from, reach: Reach::World };
        let node = self.nodes.get_mut(&at).unwrap();
        let mut out = Vec::new();
        node.catalog.handle(self.now, catalog::Input::Heard { sighting, source }, &mut out);
        for output in out {
            if let catalog::Output::Added(entry) = output {
                self.tell(at, Input::Found(entry.id()));
            }
        }
    }

    /// Whether these nodes know this record.
    pub(super) fn knowing(&self, record: &Record) -> usize {
        let knows = |node: &&Node| node.catalog.known().knows(record.bytes());
        self.nodes.values().filter(knows).count()
    }

    /// How many nodes know a record of this one.
    pub(super) fn listing(&self, n: u8) -> usize {
        let knows = |node: &&Node| node.catalog.known().get(&id(n)).is_some();
        self.nodes.values().filter(knows).count()
    }

    pub(super) fn node(&self, n: u8) -> &Node {
        &self.nodes[&id(n)]
    }

    pub(super) fn dropped(&self, reason: Dropped) -> usize {
        self.nodes.values().filter_map(|node| node.dropped.get(&reason)).sum()
    }

    /// Streams that were opened, by all that live.
    pub(super) fn opens(&self) -> usize {
        self.nodes.values().map(|node| node.opens).sum()
    }

    /// How many nodes can be reached over neighbours from this one, itself included.
    pub(super) fn component(&self, n: u8) -> usize {
        let mut reached = BTreeSet::from([id(n)]);
        let mut next = vec![id(n)];
        while let Some(at) = next.pop() {
            let Some(node) = self.nodes.get(&at) else { continue };
            for peer in node.announcer.neighbours() {
                if self.nodes.contains_key(peer) && reached.insert(*peer) {
                    next.push(*peer);
                }
            }
        }
        reached.len()
    }

    fn latency(&self, one: EndpointId, other: EndpointId) -> Duration {
        let (one, other) = pair(one, other);
        let sum = u64::from(one.as_bytes()[0]) + u64::from(other.as_bytes()[1]);
        Duration::from_millis(5 + sum % 95)
    }

    fn plan(&mut self, after: Duration, at: EndpointId, happening: Happening) {
        self.serial += 1;
        self.happenings.insert((self.now + after, self.serial), (at, happening));
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.happenings.first_entry()
            && entry.key().0 <= end
        {
            let ((now, _), (at, happening)) = entry.remove_entry();
            self.now = now;
            self.happen(at, happening);
        }
        self.now = end;
    }

    fn happen(&mut self, at: EndpointId, happening: Happening) {
        let Some(node) = self.nodes.get_mut(&at) else { return };
        let is_alive = |streams: &BTreeMap<_, _>, peer| streams.contains_key(&pair(at, peer));
        let input = match happening {
            Happening::Wake => {
                if node.announcer.next_timeout().is_none_or(|due| due > self.now) {
                    return;
                }
                node.wakes += 1;
                Input::Timeout
            }
            Happening::Up { peer } => {
                if !is_alive(&self.streams, peer) {
                    return;
                }
                let direction = Direction::Outbound;
                let connected = catalog::Input::Connected { peer, direction };
                node.catalog.handle(self.now, connected, &mut Vec::new());
                Input::PeerUp(peer)
            }
            Happening::Frame { from, frame, stream } => {
                let is_whole = self.streams.get(&pair(at, from)) == Some(&stream);
                if !is_whole && !self.finished.contains(&(from, stream)) {
                    return;
                }
                Input::Received { peer: from, frame }
            }
            Happening::Gone { peer } => {
                if is_alive(&self.streams, peer) {
                    return;
                }
                let gone = catalog::Input::Disconnected(peer);
                node.catalog.handle(self.now, gone, &mut Vec::new());
                if !self.nodes.contains_key(&peer) || self.is_cut(at, peer) {
                    let node = self.nodes.get_mut(&at).unwrap();
                    node.catalog.handle(self.now, catalog::Input::Missed(peer), &mut Vec::new());
                }
                Input::PeerGone(peer)
            }
        };
        self.tell(at, input);
    }

    /// Tells a node something, and does what it wants.
    pub(super) fn tell(&mut self, at: EndpointId, input: Input) {
        let (now, clock) = (self.now, self.clock());
        let node = self.nodes.get_mut(&at).unwrap();
        node.catalog.handle(now, catalog::Input::Timeout, &mut Vec::new());
        let known = node.catalog.snapshot();
        let mut around = Surroundings { known: &known, intake: &mut node.intake, clock };
        let mut out = Vec::new();
        node.announcer.handle(now, &mut around, input, &mut out);
        let due = node.announcer.next_timeout();
        for output in out {
            self.act(at, output);
        }
        let node = &self.nodes[&at];
        assert_eq!(node.announcer.neighbours(), &node.told);
        if let Some(due) = due {
            self.plan(due.saturating_duration_since(now), at, Happening::Wake);
        }
    }

    fn act(&mut self, at: EndpointId, output: Output) {
        let node = self.nodes.get_mut(&at).unwrap();
        match output {
            Output::Open(peer) => {
                node.opens += 1;
                self.open(at, peer);
            }
            Output::Send { peer, frame } => self.send(at, peer, frame),
            Output::Close { peer, code } => {
                self.closed.push((at, peer, code));
                if let Some(stream) = self.streams.remove(&pair(at, peer)) {
                    if code == Code::Ok {
                        self.finished.insert((at, stream));
                    }
                    self.plan(self.latency(at, peer), peer, Happening::Gone { peer: at });
                }
            }
            Output::Heard { sighting, from } => {
                node.heard += 1;
                self.put(at, sighting, from);
            }
            Output::Refresh => {
                let n = node.key.to_bytes()[0];
                self.change(n);
            }
            Output::NeighbourUp(peer) => assert!(node.told.insert(peer)),
            Output::NeighbourDown(peer) => assert!(node.told.remove(&peer)),
            Output::Dropped { peer, reason } => {
                assert!(peer != at || reason == Dropped::Stranger);
                *node.dropped.entry(reason).or_default() += 1;
            }
            Output::Departed => node.has_departed = true,
        }
    }

    fn open(&mut self, at: EndpointId, peer: EndpointId) {
        if !self.nodes.contains_key(&peer) || self.is_cut(at, peer) {
            self.plan(SILENCE, at, Happening::Gone { peer });
            return;
        }
        let latency = self.latency(at, peer);
        self.serial += 1;
        self.streams.entry(pair(at, peer)).or_insert(self.serial);
        self.plan(latency, peer, Happening::Up { peer: at });
        self.plan(latency * 2, at, Happening::Up { peer });
    }

    fn send(&mut self, at: EndpointId, peer: EndpointId, frame: Bytes) {
        self.frames += 1;
        self.bytes += frame.len();
        if !self.nodes.contains_key(&peer) {
            self.to_strangers.push((at, peer, frame));
        } else if let Some(stream) = self.streams.get(&pair(at, peer)).copied()
            && !self.is_cut(at, peer)
        {
            let latency = self.latency(at, peer);
            self.plan(latency, peer, Happening::Frame { from: at, frame, stream });
        }
    }
}
