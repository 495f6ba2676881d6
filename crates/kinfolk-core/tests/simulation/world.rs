//! The network between the nodes, and the loop that moves time.
//!
//! A dial takes two flights, or ten seconds if nobody answers; a session lingers for half a minute; a message that is lost is sent
//! again. What a discovery manager would do with the outputs of the machines is done here, and nothing else decides.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use iroh_base::{EndpointId, TransportAddr};
use kinfolk_core::catalog::{self, Sighting, Source};
use kinfolk_core::exchange::{self, Exchange, ExchangeLimits, Role};
use kinfolk_core::peer_link::Direction;
use kinfolk_core::reconcile::Salt;
use kinfolk_core::record::{Reach, Record, UnixMillis};
use kinfolk_core::walk::{self, TRAIL_MAX, View, Visit, Wake};
use kinfolk_core::wire::LENGTH_BYTES;
use kinfolk_core::wire::exchange::Tokens;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::mint::Mint;
use super::node::{Manner, Node, Plan};
use super::time::{End, Event, Queue, millis, secs};

mod neighbours;

/// How links are.
#[derive(Debug, Clone)]
pub struct Links {
    /// One flight takes so long, for each pair the same between these two.
    pub fastest: Duration,
    pub slowest: Duration,
    /// So many messages of a thousand are lost and sent again.
    pub lost_per_mille: u32,
    /// Nodes of different parts hear nothing of each other.
    pub are_parted: bool,
}

impl Links {
    /// Two processes on one machine.
    pub const LOOPBACK: Self = Self {
        fastest: Duration::from_micros(200),
        slowest: Duration::from_micros(500),
        lost_per_mille: 0,
        are_parted: false,
    };

    /// The internet.
    pub const WORLD: Self = Self {
        fastest: Duration::from_millis(5),
        slowest: Duration::from_millis(150),
        lost_per_mille: 10,
        are_parted: false,
    };
}

/// As iroh's handshake under `Limits::dial_deadline`.
const DIAL_DEADLINE: Duration = secs(10);
const LINGER: Duration = secs(30);

/// How many neighbours a node looks for, and how many it has at most: as the announcer's overlay.
const NEIGHBOURS_WANTED: usize = 3;
const NEIGHBOURS_MOST: usize = 5;

struct Side {
    node: usize,
    life: u32,
    machine: Exchange,
    is_over: bool,
    learnt: usize,
    /// A random choice of the peers that it brought.
    brought: Vec<EndpointId>,
    brought_in_all: u64,
}

struct Talk {
    initiator: Side,
    responder: Side,
}

impl Talk {
    fn side(&mut self, end: End) -> &mut Side {
        match end {
            End::Initiator => &mut self.initiator,
            End::Responder => &mut self.responder,
        }
    }
}

struct Session {
    used: Instant,
    talks: u32,
}

pub struct World {
    pub start: Instant,
    pub now: Instant,
    pub nodes: Vec<Node>,
    pub links: Links,
    pub mint: Mint,
    /// Dials that came to an address at which there is no node of ours.
    pub stray_dials: BTreeMap<SocketAddr, Vec<Duration>>,
    /// If not `None`: how often a node took an older record than it had taken before, and not from its owner.
    pub revived: Option<usize>,
    /// Whether nodes keep sessions with some neighbours, as they do for announcements. None are told here.
    pub has_neighbours: bool,
    seed: u64,
    rng: ChaCha8Rng,
    queue: Queue,
    at: HashMap<SocketAddr, usize>,
    numbers: HashMap<EndpointId, usize>,
    talks: HashMap<u64, Talk>,
    talks_begun: u64,
    sessions: HashMap<(usize, usize), Session>,
}

impl World {
    pub fn new(links: Links, seed: u64) -> Self {
        let start = Instant::now() + secs(1_000_000);
        Self {
            start,
            now: start,
            nodes: Vec::new(),
            links,
            mint: Mint::default(),
            stray_dials: BTreeMap::new(),
            revived: None,
            has_neighbours: false,
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            queue: Queue::default(),
            at: HashMap::new(),
            numbers: HashMap::new(),
            talks: HashMap::new(),
            talks_begun: 0,
            sessions: HashMap::new(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// A random number below this.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    /// Adds a node that is not up yet.
    pub fn add(&mut self, plan: &Plan) -> usize {
        let node = Node::new(plan, self.seed);
        let number = self.nodes.len();
        self.numbers.insert(node.id, number);
        self.nodes.push(node);
        number
    }

    /// So many honest nodes, not up yet.
    pub fn add_many(&mut self, count: usize) -> std::ops::Range<usize> {
        let first = self.nodes.len();
        for number in first..first + count {
            self.add(&Plan::new(u32::try_from(number).unwrap()));
        }
        first..first + count
    }

    pub fn configure(&mut self, node: usize, bootstrap: &[usize]) {
        let peers: Vec<_> = bootstrap
            .iter()
            .map(|peer| (self.nodes[*peer].id, self.nodes[*peer].address))
            .collect();
        let node = &mut self.nodes[node];
        node.bootstrap_ids = peers.iter().map(|(id, _)| *id).collect();
        node.bootstrap = peers;
    }

    /// The node comes up, with whatever its catalog holds.
    pub fn start_node(&mut self, number: usize) {
        let (now, elapsed) = (self.now, self.elapsed());
        let node = &mut self.nodes[number];
        node.is_up = true;
        node.life += 1;
        self.at.insert(node.address, number);
        let record = node.sign(now, elapsed);
        self.mint.keep(&record);
        self.after_refresh(number);
        self.wake(number, Wake::Started);
    }

    /// The node is gone without a word.
    pub fn crash(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        node.is_up = false;
        self.at.remove(&node.address);
        let gone: Vec<_> =
            self.sessions.keys().copied().filter(|(a, b)| *a == number || *b == number).collect();
        for pair in gone {
            self.end_session(pair);
        }
    }

    /// The node forgets all but its key, as one without a store does when it restarts.
    pub fn forget_all(&mut self, number: usize, plan: &Plan) {
        let old = &self.nodes[number];
        let mut node = Node::new(plan, self.seed + u64::from(old.life));
        node.bootstrap = old.bootstrap.clone();
        node.bootstrap_ids = old.bootstrap_ids.clone();
        node.address = old.address;
        node.life = old.life;
        node.figures = old.figures;
        self.nodes[number] = node;
    }

    pub fn wake(&mut self, number: usize, wake: Wake) {
        self.walk(number, walk::Input::Wake(wake));
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some((at, event)) = self.queue.next_until(until) {
            self.now = self.now.max(at);
            self.take(event);
        }
        self.now = until;
    }

    /// Lets time pass in such steps until this holds, or for at most that long. Returns whether it holds.
    pub fn run_until(
        &mut self,
        step: Duration,
        most: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> bool {
        let until = self.now + most;
        while self.now < until {
            if holds(self) {
                return true;
            }
            self.run(step);
        }
        holds(self)
    }

    /// Whether each of these that is up knows the latest record of each other that is up.
    pub fn all_know_all(&self, among: &[usize]) -> bool {
        among.iter().all(|node| !self.nodes[*node].is_up || self.misses(*node, among) == 0)
    }

    /// Of how many of these it does not know the latest record.
    pub fn misses(&self, node: usize, among: &[usize]) -> usize {
        let others = among.iter().filter(|other| **other != node && self.nodes[**other].is_up);
        others.filter(|other| !self.is_up_to_date(node, **other)).count()
    }

    pub fn is_up_to_date(&self, node: usize, other: usize) -> bool {
        let own = self.nodes[other].catalog.known().own().map(|told| told.record());
        self.known_record(node, other) == own
    }

    pub fn known_record(&self, node: usize, other: usize) -> Option<&Record> {
        let known = self.nodes[node].catalog.known();
        known.get(&self.nodes[other].id).map(|entry| entry.record())
    }

    pub fn knows(&self, node: usize, other: usize) -> bool {
        self.known_record(node, other).is_some()
    }

    /// Signs a new record because something about the node has changed.
    pub fn refresh(&mut self, number: usize) {
        let (now, elapsed) = (self.now, self.elapsed());
        let record = self.nodes[number].sign(now, elapsed);
        self.mint.keep(&record);
    }

    fn after_refresh(&mut self, number: usize) {
        let node = &self.nodes[number];
        let event = Event::Refresh { node: number, life: node.life };
        let half = node.ttl.as_duration() / 2;
        let early = half.mul_f64(0.1 * (self.below(1000) as f64 / 1000.0));
        self.queue.enter(self.now + half - early, event);
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Walk { node, life } => {
                if self.is_living(node, life) {
                    self.walk(node, walk::Input::Timeout);
                }
            }
            Event::Catalog { node, life } => {
                if self.is_living(node, life) {
                    let now = self.now;
                    self.nodes[node].tell(now, catalog::Input::Timeout);
                    self.after_catalog(node);
                }
            }
            Event::Refresh { node, life } => {
                if self.is_living(node, life) {
                    self.refresh(node);
                    self.after_refresh(node);
                }
            }
            Event::Dialled { node, life, peer, reached } => {
                if self.is_living(node, life) {
                    self.dialled(node, peer, reached);
                }
            }
            Event::Message { talk, to, frame } => self.message(talk, to, &frame),
            Event::Closed { talk, to } => self.converse(talk, to, exchange::Input::Closed),
            Event::Deadline { talk, of } => self.deadline(talk, of),
            Event::Linger { pair } => self.linger(pair),
            Event::Join { node, life, peer } => {
                if self.is_living(node, life) {
                    self.join(node, peer);
                }
            }
        }
    }

    fn is_living(&self, node: usize, life: u32) -> bool {
        self.nodes[node].is_up && self.nodes[node].life == life
    }

    fn walk(&mut self, number: usize, input: walk::Input<'_>) {
        let neighbours = self.neighbours(number).into_iter();
        let neighbours: Vec<_> = neighbours.map(|peer| self.nodes[peer].id).collect();
        let (numbers, sessions) = (&self.numbers, &self.sessions);
        let is_connected = |peer: &EndpointId| {
            let peer = numbers.get(peer).copied();
            peer.is_some_and(|peer| sessions.contains_key(&ordered(number, peer)))
        };
        let node = &mut self.nodes[number];
        let (known, bootstrap) = (node.catalog.known(), &node.bootstrap_ids);
        let is_connected = &is_connected;
        let view = View { known, bootstrap, neighbours: &neighbours, is_connected };
        let mut out = Vec::new();
        let before = node.walk.next_timeout();
        node.walk.handle(self.now, input, view, &mut out);
        let timeout = node.walk.next_timeout();
        let life = node.life;
        if let Some(at) = timeout.filter(|at| Some(*at) != before || *at <= self.now) {
            self.queue.enter(at.max(self.now), Event::Walk { node: number, life });
        }
        for walk::Output::Visit(peer) in out {
            self.visit(number, peer);
        }
    }

    fn visit(&mut self, number: usize, peer: EndpointId) {
        self.nodes[number].figures.visits += 1;
        let reached = self.numbers.get(&peer).copied();
        if let Some(reached) = reached.filter(|reached| self.has_session(number, *reached)) {
            self.begin(number, reached);
            return;
        }
        self.nodes[number].figures.dials += 1;
        let node = &self.nodes[number];
        let configured = node.bootstrap.iter().filter(|(id, _)| *id == peer).map(|(_, at)| *at);
        let entry = node.catalog.known().get(&peer);
        let told = entry.into_iter().flat_map(|entry| entry.addresses()).filter_map(|address| {
            if let TransportAddr::Ip(at) = address { Some(at) } else { None }
        });
        let addresses: Vec<_> = configured.chain(told).collect();
        let mut answers = None;
        for at in addresses {
            match self.at.get(&at).copied() {
                Some(there) if self.answers(number, there, peer) => answers = Some(there),
                Some(_) => {}
                None => {
                    let elapsed = self.elapsed();
                    self.stray_dials.entry(at).or_default().push(elapsed);
                }
            }
        }
        let takes = answers.map_or(DIAL_DEADLINE, |there| 2 * self.flight(number, there));
        let life = self.nodes[number].life;
        let event = Event::Dialled { node: number, life, peer, reached: answers };
        self.queue.enter(self.now + takes, event);
    }

    /// Whether the node at the other end of a path is that peer, and takes our connection.
    fn answers(&self, from: usize, there: usize, peer: EndpointId) -> bool {
        let node = &self.nodes[there];
        node.id == peer
            && node.is_up
            && node.is_reachable
            && node.network == self.nodes[from].network
            && self.is_joined(from, there)
    }

    fn is_joined(&self, a: usize, b: usize) -> bool {
        !self.links.are_parted || self.nodes[a].part == self.nodes[b].part
    }

    fn dialled(&mut self, number: usize, peer: EndpointId, reached: Option<usize>) {
        let reached = reached.filter(|there| self.answers(number, *there, peer));
        let Some(there) = reached else {
            self.visit_failed(number, peer);
            return;
        };
        self.connect(number, there);
        self.begin(number, there);
    }

    /// One of them has dialled the other, if there is no session yet.
    pub fn connect(&mut self, number: usize, there: usize) {
        if self.has_session(number, there) {
            return;
        }
        for (at, of, direction) in
            [(number, there, Direction::Outbound), (there, number, Direction::Inbound)]
        {
            let peer = self.nodes[of].id;
            let now = self.now;
            self.nodes[at].tell(now, catalog::Input::Connected { peer, direction });
            self.after_catalog(at);
        }
        let session = Session { used: self.now, talks: 0 };
        self.sessions.insert(ordered(number, there), session);
    }

    fn visit_failed(&mut self, number: usize, peer: EndpointId) {
        let now = self.now;
        self.nodes[number].figures.failed += 1;
        self.nodes[number].tell(now, catalog::Input::Missed(peer));
        self.walk(number, walk::Input::Ended { peer, visit: Visit::Failed });
    }

    fn has_session(&self, a: usize, b: usize) -> bool {
        self.sessions.contains_key(&ordered(a, b)) && self.is_joined(a, b)
    }

    fn begin(&mut self, from: usize, to: usize) {
        self.talks_begun += 1;
        let talk = self.talks_begun;
        let mut salt = [0; 16];
        self.rng.fill_bytes(&mut salt);
        let salt = Salt::from_bytes(salt);
        let initiator = self.side(from, Role::Initiator { salt });
        let responder = self.side(to, Role::Responder);
        self.nodes[to].figures.served += 1;
        if let Some(session) = self.sessions.get_mut(&ordered(from, to)) {
            session.talks += 1;
        }
        self.talks.insert(talk, Talk { initiator, responder });
        for end in [End::Responder, End::Initiator] {
            self.converse(talk, end, exchange::Input::Start);
            let next = self.talks.get_mut(&talk).and_then(|t| t.side(end).machine.next_timeout());
            if let Some(at) = next {
                self.queue.enter(at, Event::Deadline { talk, of: end });
            }
        }
    }

    fn side(&self, number: usize, role: Role) -> Side {
        let node = &self.nodes[number];
        let snapshot = match node.manner {
            Manner::Empty => catalog::Snapshot::default(),
            _ => node.catalog.snapshot(),
        };
        Side {
            node: number,
            life: node.life,
            machine: Exchange::new(role, snapshot, Tokens::none(), ExchangeLimits::default()),
            is_over: false,
            learnt: 0,
            brought: Vec::new(),
            brought_in_all: 0,
        }
    }

    fn message(&mut self, talk: u64, to: End, frame: &[u8]) {
        let Some(side) = self.talks.get_mut(&talk).map(|talk| talk.side(to)) else { return };
        let node = &mut self.nodes[side.node];
        if !node.is_up || node.life != side.life {
            return;
        }
        node.figures.bytes_received += u64::try_from(frame.len()).unwrap();
        if node.manner != Manner::Silent {
            self.converse(talk, to, exchange::Input::Received(&frame[LENGTH_BYTES..]));
        }
    }

    fn deadline(&mut self, talk: u64, of: End) {
        let Some(side) = self.talks.get_mut(&talk).map(|talk| talk.side(of)) else { return };
        match side.machine.next_timeout() {
            Some(at) if at > self.now => self.queue.enter(at, Event::Deadline { talk, of }),
            Some(_) => self.converse(talk, of, exchange::Input::Timeout),
            None => {}
        }
    }

    /// Gives one end of an exchange an input, and does what it says.
    fn converse(&mut self, talk: u64, end: End, input: exchange::Input<'_>) {
        let Some(talking) = self.talks.get_mut(&talk) else { return };
        let peer = talking.side(end.other()).node;
        let side = talking.side(end);
        if side.is_over {
            return;
        }
        let number = side.node;
        let mut out = Vec::new();
        side.machine.handle(self.now, input, &mut out);
        for output in out {
            match output {
                exchange::Output::Send(frame) => {
                    let len = u64::try_from(frame.len()).unwrap();
                    self.nodes[number].figures.bytes_sent += len;
                    if self.is_joined(number, peer) {
                        let at = self.now + self.flight(number, peer);
                        let event = Event::Message { talk, to: end.other(), frame };
                        self.queue.enter(at, event);
                    }
                }
                exchange::Output::Learned { bytes, age } => {
                    self.learn(talk, end, peer, &bytes, age);
                }
                exchange::Output::Ended(summary) => self.ended(talk, end, peer, &summary),
                _ => {}
            }
        }
    }

    fn learn(&mut self, talk: u64, end: End, from: usize, bytes: &[u8], age: Duration) {
        let elapsed = self.elapsed();
        let (now, from) = (self.now, self.nodes[from].id);
        let Some(side) = self.talks.get_mut(&talk).map(|talk| talk.side(end)) else { return };
        let number = side.node;
        let node = &mut self.nodes[number];
        node.figures.heard += 1;
        if matches!(node.manner, Manner::Empty | Manner::Stubborn)
            || node.catalog.known().knows(bytes)
        {
            return;
        }
        let clock = node.clock(elapsed);
        // As the intake: none of its own is of the future.
        let is_own = Record::claimed_id(bytes) == Some(node.id.as_bytes());
        let latest = if is_own { UnixMillis::new(u64::MAX) } else { clock };
        let Ok(record) = self.mint.verify(bytes, node.network, latest) else { return };
        let (id, seq) = (record.id(), record.seq());
        let sighting = Sighting::new(record, now, clock, age);
        let source = Source::Peer { peer: from, reach: Reach::World };
        let mut must_refresh = false;
        let mut learnt = 0;
        let mut added = None;
        for output in node.tell(now, catalog::Input::Heard { sighting, source }) {
            match output {
                catalog::Output::Added(entry) => {
                    learnt += 1;
                    added = Some(entry.id());
                }
                catalog::Output::Updated(_) => learnt += 1,
                catalog::Output::Removed { reason: catalog::Removal::Departed, .. } => learnt += 1,
                catalog::Output::OwnHeard(seq) => must_refresh |= node.seqs.heard(seq),
                _ => {}
            }
        }
        node.figures.learnt += u64::try_from(learnt).unwrap();
        if let Some(revived) = self.revived.as_mut().filter(|_| learnt > 0) {
            let newest = node.newest.entry(id).or_insert(seq);
            *revived += usize::from(seq < *newest && from != id);
            *newest = seq.max(*newest);
        }
        side.learnt += learnt;
        if let Some(added) = added {
            side.brought_in_all += 1;
            if side.brought.len() < TRAIL_MAX {
                side.brought.push(added);
            } else {
                let place = usize::try_from(self.rng.next_u64() % side.brought_in_all).unwrap();
                if let Some(place) = side.brought.get_mut(place) {
                    *place = added;
                }
            }
        }
        if must_refresh {
            self.refresh(number);
        }
        self.after_catalog(number);
    }

    fn ended(&mut self, talk: u64, end: End, peer: usize, summary: &exchange::Summary) {
        let Some(side) = self.talks.get_mut(&talk).map(|talk| talk.side(end)) else { return };
        side.is_over = true;
        let (number, life, learnt) = (side.node, side.life, side.learnt);
        let brought = std::mem::take(&mut side.brought);
        let is_good = matches!(summary.end, exchange::End::Complete | exchange::End::Cut);
        if !is_good && self.is_joined(number, peer) {
            let at = self.now + self.flight(number, peer);
            self.queue.enter(at, Event::Closed { talk, to: end.other() });
        }
        let talking = &self.talks[&talk];
        if talking.initiator.is_over && talking.responder.is_over {
            let pair = ordered(talking.initiator.node, talking.responder.node);
            self.talks.remove(&talk);
            if let Some(session) = self.sessions.get_mut(&pair) {
                session.talks = session.talks.saturating_sub(1);
                session.used = self.now;
                self.queue.enter(self.now + LINGER, Event::Linger { pair });
            }
        }
        if !self.is_living(number, life) {
            return;
        }
        self.look_for_neighbours(number);
        let peer_id = self.nodes[peer].id;
        match end {
            End::Initiator if is_good => {
                let visit = Visit::Exchanged { learnt, brought: &brought };
                self.walk(number, walk::Input::Ended { peer: peer_id, visit });
            }
            End::Initiator => self.visit_failed(number, peer_id),
            End::Responder => {
                let by = Some(peer_id).filter(|_| is_good);
                self.walk(number, walk::Input::Told { by, learnt });
            }
        }
    }

    fn linger(&mut self, pair: (usize, usize)) {
        let are_neighbours = self.nodes[pair.0].neighbours.contains(&pair.1);
        let is_over = self
            .sessions
            .get(&pair)
            .is_some_and(|session| session.talks == 0 && session.used + LINGER <= self.now);
        let is_over = is_over && !are_neighbours;
        if is_over {
            self.end_session(pair);
        }
    }

    fn end_session(&mut self, pair: (usize, usize)) {
        self.sessions.remove(&pair);
        for (at, of) in [pair, (pair.1, pair.0)] {
            let (now, peer) = (self.now, self.nodes[of].id);
            self.nodes[at].neighbours.remove(&of);
            if self.nodes[at].is_up {
                self.nodes[at].tell(now, catalog::Input::Disconnected(peer));
            }
        }
    }

    fn after_catalog(&mut self, number: usize) {
        let node = &self.nodes[number];
        let (life, now) = (node.life, self.now);
        if let Some(at) = node.catalog.next_timeout().filter(|_| node.is_up) {
            // One look per second and node is enough: what is over is not told in between either.
            let at = at.max(now) + millis(500);
            let node = &mut self.nodes[number];
            if node.looks_at.is_none_or(|looks_at| looks_at <= now || looks_at > at) {
                node.looks_at = Some(at);
                self.queue.enter(at, Event::Catalog { node: number, life });
            }
        }
    }

    /// How long a message from one to the other is on its way now.
    fn flight(&mut self, a: usize, b: usize) -> Duration {
        let (a, b) = ordered(a, b);
        let hash = blake3::hash(format!("{} {a} {b}", self.seed).as_bytes());
        let share = f64::from(hash.as_bytes()[0]) / 255.0;
        let flight = self.links.fastest + (self.links.slowest - self.links.fastest).mul_f64(share);
        let mut late = Duration::ZERO;
        while self.below(1000) < u64::from(self.links.lost_per_mille) && late < secs(4) {
            late += flight * 2 + millis(25);
        }
        flight + late
    }
}

fn ordered(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}
