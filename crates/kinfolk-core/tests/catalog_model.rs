//! Random lives of a small `Catalog` beside a model that a reader can check by eye: plain lists, searched from end to end.
//!
//! The world is free: peers sign whatever they like with any number and any time, relays lie about ages, sessions and wants come and go, and
//! the clock jumps. The model holds the rules of the catalog's page; after each step both know the same, and have said the same.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use iroh_base::{EndpointId, SecretKey, TransportAddr};
use kinfolk_core::catalog::{
    Catalog, CatalogLimits, DEAD_MEMORY, Ignored, Input, Keep, Output, Removal, SHARES, Sighting,
    Source, UNDER_WAY,
};
use kinfolk_core::id::NetworkId;
use kinfolk_core::peer_link::Direction;
use kinfolk_core::record::{Draft, Reach, Record, Seq, Topic, Ttl, UnixMillis};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const PEERS: u8 = 9;
const CAPACITY: usize = 6;
const START: u64 = 1_000_000_000;

#[derive(Debug, Clone)]
enum Step {
    Hear { peer: u8, seq: u64, departs: bool, tag: u8, issued_ago: u64, from: Option<u8>, age: u64 },
    Connect(u8, bool),
    Disconnect(u8),
    Keep(u8, bool, bool),
    Forget(u8),
    Miss(u8),
    Online,
    Wait(u64),
}

/// Seconds; the ttl is a thousand, and a day for a departure.
fn step() -> impl Strategy<Value = Step> {
    let times =
        || prop_oneof![6 => Just(0), 4 => 0..400_u64, 2 => 900..1_100_u64, 1 => 86_300..86_500_u64];
    let hear = (
        0..PEERS,
        0..5_u64,
        prop::bool::weighted(0.15),
        0..2_u8,
        times(),
        prop::option::of(0..PEERS),
        times(),
    )
        .prop_map(|(peer, seq, departs, tag, issued_ago, from, age)| Step::Hear {
            peer,
            seq,
            departs,
            tag,
            issued_ago,
            from,
            age,
        });
    let wait =
        prop_oneof![6 => 1..300_u64, 1 => Just(1_000), 1 => Just(90_000), 1 => Just(172_800)];
    prop_oneof![
        12 => hear,
        2 => (0..PEERS, any::<bool>()).prop_map(|(peer, dialled)| Step::Connect(peer, dialled)),
        2 => (0..PEERS).prop_map(Step::Disconnect),
        2 => (0..PEERS, any::<bool>(), any::<bool>()).prop_map(|(peer, held, on)| Step::Keep(peer, held, on)),
        1 => (0..PEERS).prop_map(Step::Forget),
        2 => (0..PEERS).prop_map(Step::Miss),
        1 => Just(Step::Online),
        4 => wait.prop_map(Step::Wait),
    ]
}

/// Peer 0 is this node.
fn key(peer: u8) -> SecretKey {
    SecretKey::from_bytes(&[peer + 1; 32])
}

#[derive(Debug, Clone)]
struct Held {
    record: Record,
    received: Instant,
    age: Duration,
    expires: Instant,
    source: Option<EndpointId>,
    proven: bool,
    first_hand: bool,
    backed: bool,
    failures: u32,
    due: Option<Instant>,
}

impl Held {
    fn weight(&self) -> i32 {
        if self.proven { 2 } else { i32::from(self.first_hand) }
    }

    fn is_hearsay(&self) -> bool {
        !(self.backed && (self.proven || self.failures == 0))
    }
}

#[derive(Debug, Clone, Copy)]
struct Grave {
    seq: Seq,
    departed: bool,
    heard: Instant,
    last: (Seq, Instant),
    until: Instant,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Kept {
    session: Option<bool>,
    held: bool,
    configured: bool,
}

#[derive(Debug, PartialEq)]
enum Said {
    Added(EndpointId),
    Updated(EndpointId),
    Removed(EndpointId, Removal),
    Ignored(EndpointId, Ignored),
    Own(Seq),
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<EndpointId, Held>,
    graves: BTreeMap<EndpointId, Grave>,
    tombstones: BTreeMap<EndpointId, (Record, Instant)>,
    kept: BTreeMap<EndpointId, Kept>,
    said: Vec<Said>,
}

impl Model {
    fn protected(&self, id: &EndpointId) -> bool {
        self.kept.get(id).is_some_and(|kept| *kept != Kept::default())
    }

    fn bury(&mut self, id: EndpointId, seq: Seq, departed: bool, heard: Instant, now: Instant) {
        let until = now + DEAD_MEMORY;
        let last = (seq, heard);
        let grave = match self.graves.get(&id) {
            Some(old) if old.seq > seq => Grave { last, until, ..*old },
            Some(old) if old.seq == seq => {
                Grave { departed: departed || old.departed, last, until, ..*old }
            }
            _ => Grave { seq, departed, heard, last, until },
        };
        self.graves.insert(id, grave);
    }

    fn expire(&mut self, now: Instant) {
        // In the order of time, as the memory of the dead may end in the same step.
        loop {
            let over = self.entries.iter().map(|(id, held)| (held.expires, 0, *id));
            let told = self.tombstones.iter().map(|(id, (_, until))| (*until, 1, *id));
            let dead = self.graves.iter().map(|(id, grave)| (grave.until, 2, *id));
            let Some((_, what, id)) =
                over.chain(told).chain(dead).filter(|(at, ..)| *at <= now).min()
            else {
                return;
            };
            match what {
                0 => {
                    let held = self.entries.remove(&id).unwrap();
                    self.bury(id, held.record.seq(), false, held.received, now);
                    self.said.push(Said::Removed(id, Removal::Expired));
                }
                1 => drop(self.tombstones.remove(&id)),
                _ => drop(self.graves.remove(&id)),
            }
        }
    }

    fn hear(
        &mut self,
        now: Instant,
        record: Record,
        from: Option<EndpointId>,
        age: Duration,
        by_clock: Duration,
    ) {
        let id = record.id();
        if id == key(0).public() {
            self.said.push(Said::Own(record.seq()));
            return;
        }
        let is_owner = from == Some(id);
        let may_go_back = |heard| is_owner && now - heard >= UNDER_WAY;
        let ignored = |reason| Said::Ignored(id, reason);
        if let Some(held) = self.entries.get(&id) {
            let known = &held.record;
            if known.bytes() == record.bytes() {
                if is_owner && let Some(held) = self.entries.get_mut(&id) {
                    held.first_hand = true;
                    held.backed = true;
                }
                return self.said.push(ignored(Ignored::Known));
            }
            if known.seq() == record.seq() && !record.is_departure() {
                return self.said.push(ignored(Ignored::Equivocation));
            }
            if record.seq() < known.seq() && !may_go_back(held.received) {
                return self.said.push(ignored(Ignored::Outdated));
            }
        }
        if let Some(grave) = self.graves.get(&id) {
            let takes_back = record.seq() == grave.seq && record.is_departure() && !grave.departed;
            if self.tombstones.get(&id).is_some_and(|(told, _)| *told == record) {
                return self.said.push(ignored(Ignored::Known));
            }
            let is_dead = |(seq, heard): (Seq, Instant)| match record.seq().cmp(&seq) {
                Ordering::Less => !may_go_back(heard),
                Ordering::Equal => true,
                Ordering::Greater => false,
            };
            let all = [(grave.seq, grave.heard), grave.last];
            if all.into_iter().any(is_dead) && !takes_back {
                return self.said.push(ignored(Ignored::Dead));
            }
        }
        let full_age = age.max(by_clock);
        let counted = if is_owner { age } else { full_age };
        let ttl = record.ttl().as_duration();
        if counted >= ttl {
            return self.said.push(ignored(Ignored::Expired));
        }
        if record.is_departure() {
            if let Some(old) = self.entries.remove(&id) {
                self.bury(id, old.record.seq(), false, old.received, now);
                self.said.push(Said::Removed(id, Removal::Departed));
            }
            self.bury(id, record.seq(), true, now, now);
            self.tombstones.insert(id, (record, now + ttl.saturating_sub(full_age)));
            return;
        }
        let expires = now + (ttl - counted);
        let new = |source, proven, first_hand, backed| Held {
            record: record.clone(),
            received: now,
            age: full_age,
            expires,
            source,
            proven,
            first_hand,
            backed,
            failures: 0,
            due: None,
        };
        if let Some(old) = self.entries.get(&id).cloned() {
            if record.seq() < old.record.seq() {
                self.bury(id, old.record.seq(), false, old.received, now);
            }
            let stays = old.backed
                && old.failures == 0
                && record.addresses().all(|addr| old.record.addresses().any(|old| old == addr));
            let first_hand = old.first_hand || is_owner;
            self.entries.insert(id, new(old.source, old.proven, first_hand, is_owner || stays));
            self.said.push(Said::Updated(id));
            return;
        }
        if let Err(reason) = self.make_room(from, is_owner, self.protected(&id)) {
            return self.said.push(ignored(reason));
        }
        self.tombstones.remove(&id);
        let proven = self.kept.get(&id).is_some_and(|kept| kept.session == Some(true));
        self.entries.insert(id, new(from, proven, is_owner, is_owner));
        self.said.push(Said::Added(id));
    }

    fn loose(&self) -> impl Iterator<Item = (&EndpointId, &Held)> {
        self.entries.iter().filter(|(id, held)| held.weight() == 0 && !self.protected(id))
    }

    fn shares(&self) -> BTreeMap<EndpointId, usize> {
        let mut shares = BTreeMap::new();
        for source in self.loose().filter_map(|(_, held)| held.source) {
            *shares.entry(source).or_default() += 1;
        }
        shares
    }

    fn make_room(
        &mut self,
        from: Option<EndpointId>,
        is_owner: bool,
        protected: bool,
    ) -> Result<(), Ignored> {
        let proven = self.entries.values().filter(|held| held.proven).count();
        let share = ((CAPACITY - proven) / SHARES).max(1);
        let shares = self.shares();
        if self.entries.len() >= CAPACITY / 2 {
            if !protected
                && from.is_some_and(|from| shares.get(&from).copied().unwrap_or(0) >= share)
            {
                return Err(Ignored::OverShare);
            }
            while self.entries.len() >= CAPACITY / 2 {
                let shares = self.shares();
                let Some((source, count)) = shares.iter().max_by_key(|(id, count)| (**count, **id))
                else {
                    break;
                };
                if *count <= share {
                    break;
                }
                let of_source = self.loose().filter(|(_, held)| held.source == Some(*source));
                let victim = of_source.map(|(id, held)| (held.received, *id)).min().unwrap().1;
                self.evict(victim);
            }
        }
        if self.entries.len() < CAPACITY {
            return Ok(());
        }
        let free = self.entries.iter().filter(|(id, _)| !self.protected(id));
        match free.map(|(id, held)| (held.weight(), held.received, *id)).min() {
            Some((weight, _, victim)) if weight <= i32::from(is_owner) || protected => {
                self.evict(victim);
                Ok(())
            }
            _ => Err(Ignored::Full),
        }
    }

    fn evict(&mut self, victim: EndpointId) {
        self.entries.remove(&victim);
        self.said.push(Said::Removed(victim, Removal::Evicted));
    }
}

struct Pair {
    catalog: Catalog,
    model: Model,
    now: Instant,
    elapsed: u64,
}

impl Pair {
    fn new() -> Self {
        let limits = CatalogLimits { records: CAPACITY, dead: 64 };
        let catalog = Catalog::new(key(0).public(), limits);
        Self { catalog, model: Model::default(), now: Instant::now(), elapsed: 0 }
    }

    fn take(&mut self, step: &Step) {
        let input = self.input(step);
        let mut out = Vec::new();
        self.catalog.handle(self.now, input, &mut out);
        let said: Vec<_> = out.iter().map(said).collect();
        assert_eq!(said, std::mem::take(&mut self.model.said), "{step:?}");
        self.compare();
    }

    fn input(&mut self, step: &Step) -> Input {
        let id = |peer: &u8| key(*peer).public();
        if let Step::Wait(secs) = step {
            self.now += Duration::from_secs(*secs);
            self.elapsed += secs;
        }
        let model = &mut self.model;
        model.expire(self.now);
        match step {
            Step::Hear { peer, seq, departs, tag, issued_ago, from, age } => {
                let issued =
                    UnixMillis::new((START + self.elapsed).saturating_sub(*issued_ago) * 1_000);
                let record = record(*peer, Seq::new(*seq), *departs, *tag, issued);
                let (from, age) = (from.as_ref().map(id), Duration::from_secs(*age));
                let by_clock = Duration::from_secs(*issued_ago);
                model.hear(self.now, record.clone(), from, age, by_clock);
                let clock = UnixMillis::new((START + self.elapsed) * 1_000);
                let sighting = Sighting::new(record, self.now, clock, age);
                let source =
                    from.map_or(Source::Store, |peer| Source::Peer { peer, reach: Reach::World });
                Input::Heard { sighting, source }
            }
            Step::Connect(peer, dialled) => {
                let peer = id(peer);
                let kept = model.kept.entry(peer).or_default();
                kept.session = Some(*dialled || kept.session == Some(true));
                if let Some(held) = model.entries.get_mut(&peer) {
                    held.proven |= dialled;
                    held.backed |= dialled;
                    held.failures = 0;
                    held.due = None;
                }
                let direction = if *dialled { Direction::Outbound } else { Direction::Inbound };
                Input::Connected { peer, direction }
            }
            Step::Disconnect(peer) => {
                model.kept.entry(id(peer)).or_default().session = None;
                Input::Disconnected(id(peer))
            }
            Step::Keep(peer, held, wanted) => {
                let kept = model.kept.entry(id(peer)).or_default();
                let keep = if *held { Keep::Held } else { Keep::Configured };
                *(if *held { &mut kept.held } else { &mut kept.configured }) = *wanted;
                Input::Keep { peer: id(peer), keep, wanted: *wanted }
            }
            Step::Forget(peer) => {
                let peer = id(peer);
                if let Some(held) = model.entries.remove(&peer) {
                    model.bury(peer, held.record.seq(), false, held.received, self.now);
                    model.said.push(Said::Removed(peer, Removal::Forgotten));
                }
                Input::Forget(peer)
            }
            Step::Miss(peer) => {
                let peer = id(peer);
                let connected = model.kept.get(&peer).is_some_and(|kept| kept.session.is_some());
                if let Some(held) = model.entries.get_mut(&peer).filter(|_| !connected)
                    && held.due.is_none_or(|due| due <= self.now)
                {
                    let distance =
                        [30, 60, 120, 240, 480][usize::try_from(held.failures).unwrap().min(4)];
                    let distance = if held.failures > 4 { 900 } else { distance };
                    held.failures += 1;
                    held.due = Some(self.now + Duration::from_secs(distance));
                }
                Input::Missed(peer)
            }
            Step::Online => {
                for held in model.entries.values_mut().filter(|held| held.failures > 0) {
                    held.failures = u32::from(!held.backed);
                    held.due = (!held.backed).then_some(self.now);
                }
                Input::Online
            }
            Step::Wait(_) => Input::Timeout,
        }
    }

    fn compare(&self) {
        let (known, model) = (self.catalog.known(), &self.model);
        assert!(known.len() <= CAPACITY);
        assert!(known.iter().map(|entry| entry.id()).eq(model.entries.keys().copied()));
        for (id, held) in &model.entries {
            let entry = known.get(id).unwrap();
            assert_eq!(entry.record(), &held.record);
            assert_eq!(entry.expires(), held.expires);
            assert_eq!(entry.is_proven(), held.proven);
            assert_eq!(entry.weight() as i32, held.weight());
            assert_eq!(entry.told().age(self.now), held.age + (self.now - held.received));
            assert_eq!(entry.is_hearsay(), held.is_hearsay());
            assert_eq!(entry.liveness().failures(), held.failures);
            assert_eq!(entry.liveness().probe_at(), held.due);
        }
        assert_eq!(self.catalog.dead(), model.graves.len());
        for (source, count) in model.shares() {
            assert_eq!(self.catalog.loose_records_of(&source), count);
        }
        let ends = model.entries.values().map(|held| held.expires);
        let ends = ends.chain(model.tombstones.values().map(|(_, until)| *until));
        let ends = ends.chain(model.graves.values().map(|grave| grave.until));
        assert_eq!(self.catalog.next_timeout(), ends.min());
        let relayable: BTreeSet<_> =
            known.relayable(self.now).map(|(record, _)| record.id()).collect();
        let entries = model.entries.iter();
        let fresh = entries.filter(|(_, held)| {
            held.age + (self.now - held.received) < held.record.ttl().as_duration()
        });
        let told = model.tombstones.iter().filter(|(_, (_, until))| *until > self.now);
        assert_eq!(relayable, fresh.map(|(id, _)| *id).chain(told.map(|(id, _)| *id)).collect());
        for tag in 0..2 {
            let found: BTreeSet<_> =
                known.with_topic(&topic(tag)).map(|entry| entry.id()).collect();
            let has = |held: &Held| held.record.topics().any(|other| other == topic(tag));
            let expected = model.entries.iter().filter(|(_, held)| has(held)).map(|(id, _)| *id);
            assert_eq!(found, expected.collect());
        }
    }
}

fn topic(tag: u8) -> Topic {
    Topic::from_bytes([tag; 16])
}

fn record(peer: u8, seq: Seq, departs: bool, tag: u8, issued: UnixMillis) -> Record {
    let network = NetworkId::from_bytes([1; 16]);
    if departs {
        return Record::departure(network, &key(peer), seq, issued).unwrap();
    }
    let mut draft = Draft::new(network).with_ttl(Ttl::from_secs(1_000).unwrap());
    draft.add_topic(topic(tag)).unwrap();
    // That of tag 1 names one more.
    for host in 0..=tag {
        let addr = SocketAddr::from(([203, 0, 113, host + 1], 443));
        draft.add_address(TransportAddr::Ip(addr)).unwrap();
    }
    draft.sign(&key(peer), seq, issued).unwrap()
}

fn said(output: &Output) -> Said {
    match output {
        Output::Added(entry) => Said::Added(entry.id()),
        Output::Updated(entry) => Said::Updated(entry.id()),
        Output::Removed { peer, reason } => Said::Removed(*peer, *reason),
        Output::Ignored { peer, reason, .. } => Said::Ignored(*peer, *reason),
        Output::OwnHeard(seq) => Said::Own(*seq),
        other => unimplemented!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_catalog_knows_and_says_what_its_rules_say(steps in vec(step(), 0..150)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.take(step);
        }
        // In the end everything is over, and nothing is remembered.
        pair.take(&Step::Wait(90_000));
        prop_assert!(pair.catalog.known().is_empty());
        pair.take(&Step::Wait(172_800));
        prop_assert_eq!(pair.catalog.dead(), 0);
        prop_assert_eq!(pair.catalog.next_timeout(), None);
    }
}
