//! A thousand nodes lose the hub that all of them hold, in the same instant, and get it back, or the network between: how hard they knock, and how
//! soon they are in.
//!
//! A simulation in virtual time over production tables and the hub's production gate. What lies between is QUIC in a few lines: first
//! packets are sent again after 1, 2 and 4 s, a `Retry` and a handshake cost a round trip each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use iroh_base::{EndpointId, SecretKey};
use kinfolk_core::gate::{Gate, Source, Verdict};
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Intent, IntentId, Priority, Want};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{DialFailure, Incoming, Input, LinkEnd, Output};
use kinfolk_core::peer_table::PeerTable;

const NODES: usize = 1000;
const SEEDS: u64 = 5;

/// Half a round trip.
const FLIGHT: Duration = Duration::from_millis(25);

/// From a first packet that is let in until the hello was read: a round trip of QUIC, and the hello.
const HANDSHAKE: Duration = Duration::from_millis(75);

/// When a first packet is sent again, from the start of a dial (RFC 9002 §6.2: the timeout doubles).
const REPEATS: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(7)];

fn id(n: usize) -> EndpointId {
    let mut bytes = [3; 32];
    bytes[..8].copy_from_slice(&u64::try_from(n).unwrap().to_be_bytes());
    SecretKey::from_bytes(&bytes).public()
}

fn address(n: usize) -> Source {
    Source::Ip(IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + u32::try_from(n).unwrap())))
}

enum Event {
    /// A first packet reaches the hub.
    Packet { node: usize, link: LinkId, validated: bool },
    /// The hub has read the hello of a handshake that it let in.
    Hello { node: usize, link: LinkId },
    /// The node hears of its dial.
    Heard(usize, Input),
    /// Every node has a new address.
    News,
}

struct World {
    now: Instant,
    hub: EndpointId,
    hub_is_back: Instant,
    nodes: Vec<PeerTable>,
    /// When the table of each node is due.
    timers: BTreeSet<(Instant, usize)>,
    events: BTreeMap<(Instant, u64), Event>,
    next_event: u64,
    gate: Gate,
    table: PeerTable,
    pending: usize,
    most_pending: usize,
    arrivals: u64,
    /// When dials were begun, one of them per node and attempt.
    dials: Vec<Instant>,
    /// When each node was in again.
    back: BTreeMap<usize, Instant>,
}

impl World {
    /// All nodes have been connected for long, and lose the hub now; it is back after the outage.
    fn of(seed: u64, outage: Duration) -> Self {
        let (limits, now) = (Limits::default(), Instant::now());
        let mut of_hub = limits.clone();
        (of_hub.sessions, of_hub.sessions_inbound) = (2 * NODES, 2 * NODES);
        let hub = id(NODES);
        let table = PeerTable::new(hub, Incarnation::new(2), &of_hub, seed);
        let incarnation = Incarnation::new(1);
        let node = |n| PeerTable::new(id(n), incarnation, &limits, seed ^ (n as u64) << 20);
        let mut world = Self {
            now,
            hub,
            hub_is_back: now + limits.stable_after + outage,
            nodes: (0..NODES).map(node).collect(),
            timers: BTreeSet::new(),
            events: BTreeMap::new(),
            next_event: 0,
            gate: Gate::new(of_hub.gate.clone()),
            table,
            pending: 0,
            most_pending: 0,
            arrivals: 0,
            dials: Vec::new(),
            back: BTreeMap::new(),
        };
        let intent = Intent {
            id: IntentId(1),
            want: Want::Hold,
            priority: Priority::default(),
            deadline: None,
        };
        for n in 0..NODES {
            let link = LinkId { dialler: id(n), incarnation, n: 1 };
            let welcomed = Input::Welcomed { link, incarnation, arrival: 1 };
            for input in [Input::Queue(intent.clone()), Input::Connected { link }, welcomed] {
                world.nodes[n].handle(now, hub, input, &mut Vec::new());
            }
            assert_eq!(world.nodes[n].live(&hub), Some(link));
        }
        world.now += limits.stable_after;
        for n in 0..NODES {
            let link = LinkId { dialler: id(n), incarnation, n: 1 };
            world.tell(n, Input::Ended { link, end: LinkEnd::Lost });
        }
        world
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + delay, self.next_event), event);
    }

    fn tell(&mut self, node: usize, input: Input) {
        self.step(node, |table, now, hub, out| table.handle(now, hub, input, out));
    }

    /// Lets a node's table act, and carries out what it wants.
    fn step(
        &mut self,
        node: usize,
        act: impl FnOnce(&mut PeerTable, Instant, EndpointId, &mut Vec<(EndpointId, Output)>),
    ) {
        if let Some(due) = self.nodes[node].next_timeout() {
            self.timers.remove(&(due, node));
        }
        let mut out = Vec::new();
        act(&mut self.nodes[node], self.now, self.hub, &mut out);
        let mut orders = VecDeque::from(out);
        while let Some((_, output)) = orders.pop_front() {
            let mut more = Vec::new();
            match output {
                Output::Dial(link) => {
                    self.dials.push(self.now);
                    // Those that are sent while there is no hub are lost.
                    let repeats =
                        REPEATS.iter().find(|after| self.now + **after >= self.hub_is_back);
                    if let Some(after) = repeats {
                        self.after(*after + FLIGHT, Event::Packet { node, link, validated: false });
                    }
                }
                Output::Close(link, code) => {
                    let input = Input::Ended { link, end: LinkEnd::Closed(code) };
                    self.nodes[node].handle(self.now, self.hub, input, &mut more);
                }
                _ => {}
            }
            orders.extend(more);
        }
        if let Some(due) = self.nodes[node].next_timeout() {
            self.timers.insert((due, node));
        }
    }

    /// Runs until all are in again; false if some are not after an hour.
    fn run(&mut self) -> bool {
        let end = self.now + Duration::from_secs(3600);
        while self.back.len() < NODES {
            let timer = self.timers.first().copied();
            let event = self.events.first_key_value().map(|((at, n), _)| (*at, *n));
            match (timer, event) {
                (_, Some((at, n))) if timer.is_none_or(|(due, _)| at <= due) => {
                    self.now = at;
                    let event = self.events.remove(&(at, n)).unwrap();
                    self.happens(event);
                }
                (Some((due, node)), _) => {
                    self.now = due.max(self.now);
                    self.step(node, |table, now, _, out| table.handle_timeout(now, out));
                }
                _ => return false,
            }
            if self.now > end {
                return false;
            }
        }
        true
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Packet { node, link, validated } => {
                match self.gate.arrive(self.now, address(node), validated, self.pending) {
                    Verdict::Accept(_) => {
                        self.pending += 1;
                        self.most_pending = self.pending.max(self.most_pending);
                        self.after(
                            HANDSHAKE - FLIGHT,
                            Event::Heard(node, Input::Connected { link }),
                        );
                        self.after(HANDSHAKE, Event::Hello { node, link });
                    }
                    Verdict::Retry => {
                        self.after(2 * FLIGHT, Event::Packet { node, link, validated: true });
                    }
                    Verdict::Refuse(_) => {
                        let end = LinkEnd::DialFailed(DialFailure::Refused);
                        self.after(FLIGHT, Event::Heard(node, Input::Ended { link, end }));
                    }
                    Verdict::Ignore(reason) => assert!(validated, "{node} is ignored: {reason}"),
                }
            }
            Event::Hello { node, link } => {
                self.pending -= 1;
                self.arrivals += 1;
                self.gate.greet(self.now, id(node)).expect("one of each is not too often");
                let incoming = Incoming { link, dead: Vec::new(), arrival: self.arrivals };
                let (input, mut out) = (Input::Incoming { incoming, room: true }, Vec::new());
                self.table.handle(self.now, id(node), input, &mut out);
                let heard = out.iter().find_map(|(_, output)| match output {
                    Output::Admit(_) => Some(Input::Welcomed {
                        link,
                        incarnation: Incarnation::new(2),
                        arrival: self.arrivals,
                    }),
                    Output::Refuse(_, code) => {
                        Some(Input::Ended { link, end: LinkEnd::ClosedByPeer(*code) })
                    }
                    _ => None,
                });
                self.after(FLIGHT, Event::Heard(node, heard.expect("an answer")));
            }
            Event::News => {
                for node in 0..NODES {
                    self.step(node, |table, now, _, out| table.network_news(now, out));
                }
            }
            Event::Heard(node, input) => {
                self.tell(node, input);
                if self.nodes[node].live(&self.hub).is_some() {
                    self.back.entry(node).or_insert(self.now);
                }
            }
        }
    }

    /// The most dials begun within any such time.
    fn peak(&self, time: Duration) -> usize {
        let within = |from: usize| {
            self.dials[from..].iter().take_while(move |at| **at - self.dials[from] < time)
        };
        (0..self.dials.len()).map(|from| within(from).count()).max().unwrap_or(0)
    }

    /// How long after the hub this share of the nodes were in, in percent.
    fn waited(&self, percent: usize) -> Duration {
        let mut waited: Vec<Duration> =
            self.back.values().map(|at| at.saturating_duration_since(self.hub_is_back)).collect();
        waited.sort_unstable();
        waited[NODES * percent / 100 - 1]
    }

    /// Runs until all are in again, and asserts that the hub was not stormed.
    fn assert_bounds(&mut self, what: &str) {
        assert!(self.run(), "{what}: {} of {NODES} came back", self.back.len());
        // What the hub takes in for good: as many handshakes as may be under way, again and again.
        let pending = Limits::default().gate.pending;
        let steady = pending as f64 / HANDSHAKE.as_secs_f64();
        let (peak, moment) =
            (self.peak(Duration::from_secs(1)), self.peak(Duration::from_millis(100)));
        println!(
            "{what}: {} dials, at most {peak} in a second and {moment} in a tenth, {} handshakes at once; half are back {:.1?} after the hub, \
             99 % {:.1?}",
            self.dials.len(),
            self.most_pending,
            self.waited(50),
            self.waited(99),
        );
        assert!(peak as f64 <= 2.0 * steady, "{what}: {peak}");
        // Nobody knocks twice within a second.
        assert!(peak <= NODES, "{what}: {peak}");
        // They come in half a second or more, a fifth of them in a tenth, and not in step.
        assert!(moment <= NODES * 3 / 10, "{what}: {moment}");
        assert!(self.most_pending <= pending, "{what}: {}", self.most_pending);
    }
}

fn hub_returns_after(outage: Duration) {
    for seed in 0..SEEDS {
        let mut world = World::of(seed, outage);
        world.assert_bounds(&format!("outage {outage:?}, seed {seed}"));
        assert!(world.waited(99) <= Duration::from_secs(60), "seed {seed}");
    }
}

#[test]
fn a_thousand_nodes_that_lose_their_hub_for_a_moment_are_back_within_a_minute() {
    hub_returns_after(Duration::ZERO);
}

#[test]
fn a_thousand_nodes_whose_hub_restarts_are_back_within_a_minute() {
    hub_returns_after(Duration::from_secs(5));
}

#[test]
fn a_thousand_nodes_that_miss_their_hub_for_half_a_minute_are_back_within_a_minute() {
    hub_returns_after(Duration::from_secs(30));
}

/// As when the relay or the router of all of them is restarted.
#[test]
fn a_thousand_nodes_that_get_a_new_address_in_the_same_instant_do_not_dial_in_the_same_instant() {
    // All of them wait for minutes by then.
    let outage = Duration::from_secs(600);
    for seed in 0..SEEDS {
        let mut world = World::of(seed, outage);
        world.after(outage, Event::News);
        world.assert_bounds(&format!("news after {outage:?}, seed {seed}"));
        assert!(world.waited(99) <= Duration::from_secs(60), "seed {seed}: {:?}", world.waited(99));
    }
}
