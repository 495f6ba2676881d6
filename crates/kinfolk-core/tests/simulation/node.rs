//! One simulated node: its production machines, and what it counts.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use iroh_base::{EndpointId, SecretKey};
use kinfolk_core::catalog::{Catalog, CatalogLimits, Input, Output};
use kinfolk_core::id::NetworkId;
use kinfolk_core::record::{Record, Seq, SeqSource, Ttl, UnixMillis};
use kinfolk_core::walk::{Walk, WalkLimits};

use super::mint;
use super::time::CLOCK;

/// What a node does with exchanges that others begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Honest,
    /// It takes every connection and never says a word.
    Silent,
    /// It answers that it knows nobody, and learns nothing.
    Empty,
    /// It tells what it knows and learns nothing: its catalog stays as it is.
    Stubborn,
}

/// What a node has cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Visits that its walk asked for.
    pub visits: u64,
    /// Those for which it dialled, as there was no session.
    pub dials: u64,
    /// Those that came to nothing.
    pub failed: u64,
    /// Exchanges that others began with it.
    pub served: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Records that came in and were new to its catalog.
    pub learnt: u64,
    /// Records that came in.
    pub heard: u64,
}

pub struct Node {
    pub key: SecretKey,
    pub id: EndpointId,
    pub network: NetworkId,
    pub address: SocketAddr,
    pub catalog: Catalog,
    pub walk: Walk,
    /// What the app configured: whom to begin with, and where it is.
    pub bootstrap: Vec<(EndpointId, SocketAddr)>,
    pub bootstrap_ids: Vec<EndpointId>,
    pub seqs: SeqSource,
    pub ttl: Ttl,
    /// By how many milliseconds its wall clock is ahead.
    pub skew: i64,
    pub manner: Manner,
    pub is_up: bool,
    /// Whether others can dial it.
    pub is_reachable: bool,
    /// Which part of a parted network it is in.
    pub part: u8,
    /// Counts starts.
    pub life: u32,
    /// When the world looks at its catalog again.
    pub looks_at: Option<Instant>,
    pub figures: Figures,
    /// Those with whom it keeps a session.
    pub neighbours: BTreeSet<usize>,
    /// The newest number that it has taken of each node, where the world watches.
    pub newest: HashMap<EndpointId, Seq>,
}

/// What a node is made from.
pub struct Plan {
    pub number: u32,
    pub network: NetworkId,
    pub catalog: CatalogLimits,
    pub walk: WalkLimits,
    pub ttl: Ttl,
}

impl Plan {
    pub fn new(number: u32) -> Self {
        Self {
            number,
            network: mint::network(),
            catalog: CatalogLimits::default(),
            walk: WalkLimits::default(),
            ttl: Ttl::DEFAULT,
        }
    }
}

/// The key of the node with this number.
pub fn key(number: u32) -> SecretKey {
    SecretKey::from_bytes(blake3::hash(&number.to_be_bytes()).as_bytes())
}

/// Where the node with this number is, after it has moved so many times.
pub fn address(number: u32, moves: u8) -> SocketAddr {
    SocketAddr::from((0x0b00_0000_u32.wrapping_add(number).to_be_bytes(), 4000 + u16::from(moves)))
}

impl Node {
    pub fn new(plan: &Plan, seed: u64) -> Self {
        let key = key(plan.number);
        let id = key.public();
        let mut walk_seed = [0; 32];
        walk_seed[..8].copy_from_slice(&seed.to_be_bytes());
        walk_seed[8..12].copy_from_slice(&plan.number.to_be_bytes());
        Self {
            id,
            key,
            network: plan.network,
            address: address(plan.number, 0),
            catalog: Catalog::new(id, plan.catalog.clone()),
            walk: Walk::new(id, plan.walk.clone(), walk_seed),
            bootstrap: Vec::new(),
            bootstrap_ids: Vec::new(),
            seqs: SeqSource::default(),
            ttl: plan.ttl,
            skew: 0,
            manner: Manner::Honest,
            is_up: false,
            is_reachable: true,
            part: 0,
            life: 0,
            looks_at: None,
            figures: Figures::default(),
            neighbours: BTreeSet::new(),
            newest: HashMap::new(),
        }
    }

    /// Its wall clock, so long after the simulation began.
    pub fn clock(&self, elapsed: Duration) -> UnixMillis {
        let true_clock = CLOCK + u64::try_from(elapsed.as_millis()).unwrap();
        UnixMillis::new(true_clock.saturating_add_signed(self.skew))
    }

    /// Signs a new record of itself.
    pub fn sign(&mut self, now: Instant, elapsed: Duration) -> Record {
        let clock = self.clock(elapsed);
        let seq = self.seqs.next(clock).unwrap();
        let record = mint::present(self.network, &self.key, self.address, self.ttl, seq, clock);
        self.tell(now, Input::Own(record.clone()));
        record
    }

    pub fn tell(&mut self, now: Instant, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.catalog.handle(now, input, &mut out);
        out
    }
}
