//! A world that is pushed about at random and then left alone.
//!
//! A run has four parts: chaos (wishes, faults, timers and deliveries in any order), calm (no more faults, until the world is quiet
//! and both sides agree), a while in which a link that somebody wants must stay, and an end in which everything must be given up.
//! The seed decides all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kinfolk_core::peer_link::DialFailure;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::link::State;
use super::name::{Name, Side};
use super::node::limits;
use super::step::{Step, Variant};
use super::world::{Setup, World};

/// Steps until a calm world must be quiet: far more than any was ever seen to need.
const PATIENCE: usize = 4000;

/// A run that broke a promise.
pub struct Broken {
    pub seed: u64,
    pub promise: String,
    pub steps: Vec<Step>,
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.promise)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step:?}"))
    }
}

/// What a run went through.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub steps: usize,
    pub crashes: usize,
    pub served: u64,
    /// How often the machines wanted what.
    pub wanted: BTreeMap<&'static str, usize>,
}

/// Runs the world of this seed to its end.
pub fn run(seed: u64, variant: Variant, start: Instant) -> Result<Tally, Broken> {
    let mut run = Run::new(seed, variant, start);
    match run.play() {
        Ok(()) => Ok(run.tally),
        Err(promise) => Err(Broken { seed, promise, steps: run.steps }),
    }
}

struct Run {
    rng: ChaCha8Rng,
    world: World,
    weather: Weather,
    steps: Vec<Step>,
    tally: Tally,
}

/// How often, in a thousand choices, each kind of step is taken in this run.
struct Weather {
    wishes: u32,
    faults: u32,
    timers: u32,
    length: u32,
}

impl Run {
    fn new(seed: u64, variant: Variant, start: Instant) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut pick = |choices: &[u32]| choices[rng.next_u32() as usize % choices.len()];
        let weather = Weather {
            wishes: pick(&[30, 100, 300]),
            faults: pick(&[0, 10, 50, 150]),
            timers: pick(&[0, 20, 100]),
            length: pick(&[10, 40, 120, 300]),
        };
        let age = [None, None, Some(Duration::from_secs(45))][pick(&[0, 1, 2]) as usize];
        let mut limits = limits();
        limits.session_age = age;
        limits.dials = pick(&[1, 8]) as usize;
        let nodes = pick(&[2, 2, 3]) as usize;
        if nodes == 2 {
            // Of three, one could then be kept out for ever.
            limits.sessions_inbound = pick(&[1, 2, 8, 8]) as usize;
        }
        let (eager, unreachable) = (false, Vec::new());
        let setup = Setup { nodes, limits, variant, eager, unreachable, start };
        let world = World::new(Arc::new(setup));
        Self { rng, world, weather, steps: Vec::new(), tally: Tally::default() }
    }

    fn play(&mut self) -> Result<(), String> {
        for _ in 0..self.weather.length {
            self.stir()?;
        }
        self.calm_down()?;
        self.stay()?;
        self.end()
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.next_u32() as usize % bound
    }

    fn one_of<T: Clone>(&mut self, choices: &[T]) -> Option<T> {
        (!choices.is_empty()).then(|| choices[self.below(choices.len())].clone())
    }

    /// A node, and a peer of it.
    fn pair(&mut self) -> (Side, Side) {
        let pairs: Vec<_> = self.world.pairs().collect();
        pairs[self.below(pairs.len())]
    }

    fn take(&mut self, step: Step) -> Result<(), String> {
        self.tally.steps += 1;
        self.tally.crashes += usize::from(matches!(step, Step::Crash(_)));
        self.world.apply(&step);
        self.steps.push(step);
        for word in self.world.wanted() {
            *self.tally.wanted.entry(word).or_default() += 1;
        }
        self.kept()
    }

    fn kept(&self) -> Result<(), String> {
        self.world.breach().map_or(Ok(()), |breach| Err(format!("{breach:?}")))
    }

    fn stir(&mut self) -> Result<(), String> {
        let choice = self.rng.next_u32() % 1000;
        let Weather { wishes, faults, timers, .. } = self.weather;
        let step = if choice < wishes {
            self.wish()
        } else if choice < wishes + faults {
            self.fault()
        } else if choice < wishes + faults + timers {
            self.timer()
        } else {
            let steps = self.world.steps();
            match self.one_of(&steps) {
                Some(step) => Some(step),
                None => self.timer(),
            }
        };
        step.map_or(Ok(()), |step| self.take(step))
    }

    fn timer(&mut self) -> Option<Step> {
        self.world.timers().into_iter().next().map(|(_, step)| step)
    }

    fn wish(&mut self) -> Option<Step> {
        let (side, peer) = self.pair();
        let node = self.world.node(side);
        let known = node.peers.iter().flat_map(|peer| peer.holds.iter().chain(&peer.waiting));
        let known: Vec<_> = known.copied().collect();
        Some(match self.below(40) {
            0..12 => Step::Hold(side, peer),
            12..22 => Step::Open(side, peer, None),
            22..25 => Step::Open(side, peer, Some(Duration::from_secs(3))),
            25..32 => Step::Cancel(side, self.one_of(&known)?),
            32..36 => Step::Disconnect(side, peer),
            36 => Step::Ban(side, peer, Duration::from_secs(20)),
            37 => Step::Unban(side, peer),
            38 => Step::AddressNews(side, peer),
            // Rarely, as nothing much happens afterwards.
            _ => match self.below(4) {
                0 => Step::Shutdown(side),
                _ => Step::AddressNews(side, peer),
            },
        })
    }

    fn fault(&mut self) -> Option<Step> {
        let kind = self.below(20);
        if kind == 0 {
            return Some(Step::Crash(self.pair().0));
        }
        let mut faults = Vec::new();
        for (name, link) in &self.world.links {
            for side in name.ends() {
                let end = link.end(side);
                match (&end.state, kind) {
                    (State::Dialling { .. }, 1..6) => {
                        faults.push(Step::FailDial(*name, DialFailure::TimedOut));
                        faults.push(Step::FailDial(*name, DialFailure::NoAddress));
                        faults.push(Step::Mute(*name));
                    }
                    (
                        State::Connected | State::Greeted | State::Parked | State::Welcomed,
                        6..12,
                    ) => faults.push(Step::Lose(*name, side)),
                    (State::Welcomed, 12) => faults.push(Step::Panic(*name, side)),
                    (State::Arrived { .. }, 13..15) => {
                        faults.push(Step::NotAdmitted(*name, side));
                    }
                    (_, 15..20) if link.far_end(side).is_gone() && !end.arriving.is_empty() => {
                        faults.push(Step::LoseFrames(*name, side));
                    }
                    _ => {}
                }
            }
        }
        self.one_of(&faults)
    }

    /// No more faults and wishes; the app forgives whom it banned.
    fn calm_down(&mut self) -> Result<(), String> {
        for (side, peer) in self.world.pairs() {
            self.take(Step::Unban(side, peer))?;
        }
        if self.world.nodes.iter().any(|node| node.shut) {
            return Ok(());
        }
        for _ in 0..PATIENCE {
            let steps = self.world.steps();
            if self.world.is_quiet() {
                self.world.judge_quiet();
                return self.kept();
            }
            let step = match self.one_of(&steps) {
                Some(step) => step,
                None => self.timer().ok_or("nothing happens, and nothing will")?,
            };
            self.take(step)?;
        }
        Err("it never became quiet".to_owned())
    }

    /// Time passes and nobody wishes anything: a link that the app holds stays the same.
    fn stay(&mut self) -> Result<(), String> {
        let ages = self.world.setup.limits.session_age.is_some();
        if ages || self.world.nodes.iter().any(|node| node.shut) {
            return Ok(());
        }
        let before = self.held_links();
        for _ in 0..20 {
            let steps = self.world.steps();
            let Some(step) = self.one_of(&steps).or_else(|| self.timer()) else { break };
            self.take(step)?;
        }
        let after = self.held_links();
        if before == after { Ok(()) } else { Err(format!("{before:?} became {after:?}, unasked")) }
    }

    fn held_links(&self) -> Vec<Option<Name>> {
        let held = |side: Side, peer| !self.world.node(side).peer(peer).holds.is_empty();
        let pairs = self.world.pairs().filter(|(side, peer)| held(*side, *peer));
        pairs.map(|(side, peer)| self.world.node(side).live(peer)).collect()
    }

    /// The app lets go, or the nodes shut down: everything ends and is accounted for.
    fn end(&mut self) -> Result<(), String> {
        let shut = self.world.nodes.iter().any(|node| node.shut) || self.below(2) == 0;
        let mut sides: Vec<Side> = self.world.sides().collect();
        let first = self.below(sides.len());
        sides.rotate_left(first);
        for side in sides {
            if shut {
                self.take(Step::Shutdown(side))?;
            } else {
                let peers = &self.world.node(side).peers;
                let holds: Vec<_> = peers.iter().flat_map(|peer| &peer.holds).copied().collect();
                for id in holds {
                    self.take(Step::Cancel(side, id))?;
                }
            }
            for _ in 0..self.below(6) {
                self.stir_nothing_new()?;
            }
        }
        for _ in 0..PATIENCE {
            if !self.stir_nothing_new()? {
                return self.judge_end();
            }
        }
        Err("it never ended".to_owned())
    }

    fn stir_nothing_new(&mut self) -> Result<bool, String> {
        let steps = self.world.steps();
        let Some(step) = self.one_of(&steps).or_else(|| self.timer()) else { return Ok(false) };
        self.take(step)?;
        Ok(true)
    }

    fn judge_end(&mut self) -> Result<(), String> {
        if !self.world.links.is_empty() {
            return Err(format!("links are left: {:?}", self.world.links.keys()));
        }
        for node in &self.world.nodes {
            let side = node.side;
            let remembered = node.table.totals(node.now).peers;
            if remembered > 0 {
                let states = Side::ALL.map(|peer| node.state(peer));
                return Err(format!("{side:?} has not forgotten: {states:?}"));
            }
            if !node.is_content() {
                let (opened, served, failed) = (node.opened, node.served, node.failed);
                return Err(format!("{side:?}: {opened} opened, {served} served, {failed} failed"));
            }
            self.tally.served += node.served;
        }
        Ok(())
    }
}
