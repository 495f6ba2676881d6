//! Tests of exchanges: two machines beside each other, and one against whoever breaks the rules.

use std::collections::{BTreeMap, BTreeSet};

use iroh_base::EndpointId;

use super::*;
use crate::catalog::{Catalog, CatalogLimits, Source};
use crate::id::NetworkId;
use crate::reconcile::{Salt, Version};
use crate::record::{Draft, Reach, Record, Seq, Topic, UnixMillis};

mod cost;
mod hostile;
mod pairs;

/// The wall clock when a test begins.
const CLOCK: u64 = 1_700_000_000_000;

fn network() -> NetworkId {
    NetworkId::from_name("my-app")
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Ids without secret keys: valid points of the curve, cheap enough to have ten thousand of.
fn id(n: u32) -> EndpointId {
    let mut bytes = *blake3::hash(&n.to_be_bytes()).as_bytes();
    loop {
        if let Ok(id) = EndpointId::from_bytes(&bytes) {
            return id;
        }
        bytes = *blake3::hash(&bytes).as_bytes();
    }
}

/// A record of `id(n)` with some 230 bytes. Nobody checks signatures here.
fn record(n: u32, seq: u64) -> Record {
    let mut draft = Draft::new(network());
    for host in [7, 8] {
        draft.add_address(crate::TransportAddr::Ip(([203, 0, 113, host], 4433).into())).unwrap();
    }
    let relay = "https://relay.example/".parse().unwrap();
    draft.add_address(crate::TransportAddr::Relay(relay)).unwrap();
    draft.add_topic(Topic::from_name("weather")).unwrap();
    draft.add_topic(Topic::from_name("news")).unwrap();
    draft.forge(id(n), Seq::new(seq), UnixMillis::new(CLOCK))
}

fn departure(n: u32, seq: u64) -> Record {
    Record::forge_departure(network(), id(n), Seq::new(seq), UnixMillis::new(CLOCK))
}

/// A node with its catalog.
struct Node {
    catalog: Catalog,
    now: Instant,
}

impl Node {
    fn new(n: u32, now: Instant) -> Self {
        let limits = CatalogLimits { records: 50_000, dead: 50_000 };
        let mut node = Self { catalog: Catalog::new(id(n), limits), now };
        node.tell(crate::catalog::Input::Own(record(n, CLOCK)));
        node
    }

    fn tell(&mut self, input: crate::catalog::Input) {
        self.catalog.handle(self.now, input, &mut Vec::new());
    }

    fn hear(&mut self, record: Record, age: Duration) {
        let clock = UnixMillis::new(CLOCK);
        let sighting = crate::catalog::Sighting::new(record, self.now, clock, age);
        let source = Source::Peer { peer: id(u32::MAX), reach: Reach::World };
        self.tell(crate::catalog::Input::Heard { sighting, source });
    }

    fn known(&self) -> BTreeMap<EndpointId, Record> {
        let known = self.catalog.known().relayable(self.now);
        known.map(|(record, _)| (record.id(), record.clone())).collect()
    }

    fn exchange(&self, role: Role, limits: &ExchangeLimits) -> Exchange {
        Exchange::new(role, self.catalog.known().clone(), Tokens::none(), limits.clone())
    }
}

/// Two nodes that exchange.
struct Pair {
    nodes: [Node; 2],
    limits: ExchangeLimits,
    salts: u8,
}

/// What came of one exchange, by side: the initiator first.
struct Outcome {
    learned: [Vec<(Record, Duration)>; 2],
    summaries: [Summary; 2],
}

impl Pair {
    /// Nodes 0 and 1, which do not know each other.
    fn new() -> Self {
        let now = Instant::now();
        let limits = ExchangeLimits::default();
        Self { nodes: [Node::new(0, now), Node::new(1, now)], limits, salts: 0 }
    }

    fn hear(&mut self, side: usize, record: Record) {
        self.nodes[side].hear(record, Duration::ZERO);
    }

    fn both_hear(&mut self, record: &Record) {
        self.nodes.iter_mut().for_each(|node| node.hear(record.clone(), Duration::ZERO));
    }

    fn both_know_all_of(&mut self, count: u32) {
        (0..2).for_each(|n| self.both_hear(&record(n, CLOCK)));
        (2..count).for_each(|n| self.both_hear(&record(n, CLOCK)));
    }

    fn machines(&mut self) -> [Exchange; 2] {
        self.salts += 1;
        let salt = Salt::from_bytes(*blake3::hash(&[self.salts]).as_bytes().first_chunk().unwrap());
        let [first, second] = &self.nodes;
        [
            first.exchange(Role::Initiator { salt }, &self.limits),
            second.exchange(Role::Responder, &self.limits),
        ]
    }

    /// An exchange that ends by itself. The catalogs hear what was learnt.
    fn exchange(&mut self) -> Outcome {
        let outcome = self.run(|_, _| None);
        self.tell(&outcome);
        outcome
    }

    fn tell(&mut self, outcome: &Outcome) {
        for (node, learned) in self.nodes.iter_mut().zip(&outcome.learned) {
            learned.iter().for_each(|(record, age)| node.hear(record.clone(), *age));
        }
    }

    /// An exchange in which a side is told something else than the message that came, if `instead` says so of the side
    /// and the number of the message.
    fn run(&mut self, instead: impl Fn(usize, u32) -> Option<Input<'static>>) -> Outcome {
        let all = self.nodes.iter().flat_map(|node| node.known().into_values());
        let all: BTreeMap<Vec<u8>, Record> =
            all.map(|record| (record.bytes().to_vec(), record)).collect();
        let now = self.nodes[0].now;
        let mut machines = self.machines();
        let mut learned = [Vec::new(), Vec::new()];
        let mut summaries = [None, None];
        let mut frames = [None, None];
        let mut out = Vec::new();
        let mut take = |side: usize, out: &mut Vec<Output>| {
            let mut frame = None;
            for output in out.drain(..) {
                assert_eq!(summaries[side], None, "{output:?} after the end");
                match output {
                    Output::Send(bytes) => assert_eq!(frame.replace(bytes), None),
                    Output::Tokens(tokens) => assert!(tokens.is_empty()),
                    Output::Learned { bytes, age } => {
                        learned[side].push((all[&bytes].clone(), age));
                    }
                    Output::Ended(summary) => summaries[side] = Some(summary),
                }
            }
            frame
        };
        for side in [1, 0] {
            machines[side].handle(now, Input::Start, &mut out);
            frames[side] = take(side, &mut out);
        }
        let mut number = 0;
        let mut side = 1;
        while let Some(frame) = frames[1 - side].take() {
            assert!(frame.len() <= LENGTH_BYTES + MESSAGE_MAX);
            let input = instead(side, number);
            let input = input.unwrap_or(Input::Received(&frame[LENGTH_BYTES..]));
            machines[side].handle(now, input, &mut out);
            frames[side] = take(side, &mut out);
            number += 1;
            side = 1 - side;
        }
        for side in [0, 1] {
            // Whoever waits for a peer that went away hears of it.
            if !machines[side].is_over() {
                machines[side].handle(now, Input::Closed, &mut out);
                take(side, &mut out);
            }
            assert_eq!(machines[side].next_timeout(), None);
        }
        let summaries = summaries.map(Option::unwrap);
        for side in [0, 1] {
            let [mine, other] = [&summaries[side], &summaries[1 - side]];
            assert!(mine.sent.bytes <= self.limits.bytes.into(), "{mine:?}");
            assert!(mine.sent.messages <= TURNS_MAX);
            assert!(mine.received.bytes <= other.sent.bytes);
            assert_eq!(learned[side].len(), mine.received.records as usize);
        }
        Outcome { learned, summaries }
    }
}

impl Outcome {
    fn ends(&self) -> [&End; 2] {
        self.summaries.each_ref().map(|summary| &summary.end)
    }

    fn is_complete(&self) -> bool {
        self.ends() == [&End::Complete; 2]
    }

    fn messages(&self) -> u32 {
        self.summaries.iter().map(|summary| summary.sent.messages).sum()
    }

    fn bytes(&self) -> u64 {
        self.summaries.iter().map(|summary| summary.sent.bytes).sum()
    }

    fn record_bytes(&self) -> u64 {
        let records = self.learned.iter().flatten();
        records.map(|(record, _)| u64::try_from(record.bytes().len()).unwrap()).sum()
    }
}
