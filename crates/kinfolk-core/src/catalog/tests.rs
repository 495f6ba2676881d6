//! Tests of the catalog: each rule of its page, and each way in which its predecessors failed.

use std::sync::OnceLock;

use iroh_base::{SecretKey, TransportAddr};

use super::*;
use crate::id::NetworkId;
use crate::liveness::Standing;
use crate::record::{Draft, Offer, Seq, Topic, UnixMillis};

mod hearsay;
mod rules;
mod sharing;
mod size;

/// The wall clock when a test begins.
const CLOCK: u64 = 1_700_000_000_000;

fn network() -> NetworkId {
    NetworkId::from_name("my-app")
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Ids without secret keys: valid points of the curve, cheap enough to have a hundred thousand of.
fn id(n: u32) -> EndpointId {
    let mut bytes = *blake3::hash(&n.to_be_bytes()).as_bytes();
    loop {
        if let Ok(id) = EndpointId::from_bytes(&bytes) {
            return id;
        }
        bytes = *blake3::hash(&bytes).as_bytes();
    }
}

fn draft() -> Draft {
    let mut draft = Draft::new(network());
    draft.add_address(ip("203.0.113.7:4433")).unwrap();
    draft.add_topic(Topic::from_name("weather")).unwrap();
    draft
}

fn ip(text: &str) -> TransportAddr {
    TransportAddr::Ip(text.parse().unwrap())
}

/// A record of `id(n)`, issued when the test begins.
pub(super) fn record(n: u32, seq: u64) -> Record {
    draft().forge(id(n), Seq::new(seq), UnixMillis::new(CLOCK))
}

fn departure(n: u8, seq: u64) -> Record {
    Record::departure(network(), &key(n), Seq::new(seq), UnixMillis::new(CLOCK)).unwrap()
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

/// A record of the node that `departure(n, …)` speaks of.
fn present(n: u8, seq: u64) -> Record {
    draft().forge(key(n).public(), Seq::new(seq), UnixMillis::new(CLOCK))
}

/// A catalog with a clock: both clocks go on together.
struct World {
    catalog: Catalog,
    start: Instant,
    now: Instant,
    out: Vec<Output>,
}

/// A source far away that is no node of these tests.
const STRANGER: u32 = 1_000_000;

impl World {
    fn new() -> Self {
        Self::holding(CatalogLimits::default().records)
    }

    fn holding(records: usize) -> Self {
        Self::with(CatalogLimits { records, ..CatalogLimits::default() })
    }

    fn with(limits: CatalogLimits) -> Self {
        static START: OnceLock<Instant> = OnceLock::new();
        let start = *START.get_or_init(Instant::now) + secs(1_000_000);
        Self { catalog: Catalog::new(id(u32::MAX), limits), start, now: start, out: Vec::new() }
    }

    fn clock(&self) -> UnixMillis {
        let elapsed = (self.now - self.start).as_millis();
        UnixMillis::new(CLOCK + u64::try_from(elapsed).unwrap())
    }

    fn handle(&mut self, input: Input) -> Vec<Output> {
        self.catalog.handle(self.now, input, &mut self.out);
        self.catalog.check();
        std::mem::take(&mut self.out)
    }

    fn wait(&mut self, time: Duration) -> Vec<Output> {
        self.now += time;
        self.handle(Input::Timeout)
    }

    fn hear_from(&mut self, from: EndpointId, reach: Reach, record: Record, age: Duration) -> Said {
        let sighting = Sighting::new(record, self.now, self.clock(), age);
        let source = Source::Peer { peer: from, reach };
        said(&self.handle(Input::Heard { sighting, source }))
    }

    /// Heard from a stranger, fresh.
    fn hear(&mut self, record: Record) -> Said {
        self.hear_from(id(STRANGER), Reach::World, record, Duration::ZERO)
    }

    /// Heard from its owner on its own session.
    fn hear_owner(&mut self, record: Record) -> Said {
        self.hear_from(record.id(), Reach::World, record, Duration::ZERO)
    }

    fn connect(&mut self, peer: EndpointId) {
        self.handle(Input::Connected { peer, direction: Direction::Outbound });
    }

    fn knows(&self, peer: &EndpointId) -> bool {
        self.catalog.known().get(peer).is_some()
    }

    fn seq(&self, peer: &EndpointId) -> Option<u64> {
        self.catalog.known().get(peer).map(|entry| entry.record().seq().get())
    }
}

/// Outputs, short enough to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Nothing,
    Added,
    Updated,
    Removed(Removal),
    Ignored(Ignored),
    Own(u64),
    /// One more after another was removed for it.
    AddedFor(EndpointId),
}

fn said(out: &[Output]) -> Said {
    match out {
        [] => Said::Nothing,
        [Output::Added(_)] => Said::Added,
        [Output::Updated(_)] => Said::Updated,
        [Output::Removed { reason, .. }] => Said::Removed(*reason),
        [Output::Ignored { reason, .. }] => Said::Ignored(*reason),
        [Output::OwnHeard(seq)] => Said::Own(seq.get()),
        [Output::Removed { peer, reason: Removal::Evicted }, Output::Added(_)] => {
            Said::AddedFor(*peer)
        }
        other => panic!("{other:?}"),
    }
}

impl Catalog {
    /// Small catalogs are checked in full after each input.
    fn check(&self) {
        assert!(self.known.len() <= self.limits.records);
        assert!(self.graves.len() <= self.limits.dead);
        if self.known.len() > 200 {
            return;
        }
        let is_kept = |id: &EndpointId| self.kept.contains_key(id);
        let entries = || self.known.iter();
        assert_eq!(self.proven, entries().filter(|entry| entry.is_proven()).count());
        let free = || entries().filter(|entry| !is_kept(&entry.id()));
        let is_hearsay = |entry: &&Arc<Entry>| entry.weight() == Weight::Hearsay;
        let loose = free().filter(is_hearsay).filter(|entry| self.places.has_source(&entry.id()));
        let places = (self.known.len(), free().count(), loose.count());
        assert_eq!(self.places.lens(), places);
        self.places.check();
        let topics = entries().map(|entry| entry.record().topics().count()).sum();
        let offers = entries().map(|entry| entry.record().offers().count()).sum();
        assert_eq!(self.known.tags(), (topics, offers));
        assert_eq!(self.timers.len(), self.graves.len() + self.known.departures.len());
        for departure in self.known.departures.iter() {
            let record = departure.entry.record();
            assert!(self.graves.get(&record.id()).is_some() && record.is_departure());
            assert!(self.known.get(&record.id()).is_none());
        }
        assert!(entries().all(|entry| !entry.record().is_departure()));
        assert!(entries().all(|entry| entry.id() != self.me));
    }
}
