//! A world that is pushed about at random and then left alone.
//!
//! A run has four parts: chaos (wishes, faults, timers and deliveries in any order), calm (no more faults, until the world is quiet
//! and both sides agree), a while in which a link that somebody wants must stay, and an end in which everything must be given up.
//! The seed decides all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use kinfolk_core::peer_link::{DialFailure, Rules};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::link::{Side, State};
use super::node::rules;
use super::world::{Pair, Step, Variant};

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
    pair: Pair,
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
        let rules = Rules { session_age: age, ..rules() };
        let pair = Pair::new(rules, variant, false, start);
        Self { rng, pair, weather, steps: Vec::new(), tally: Tally::default() }
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

    fn side(&mut self) -> Side {
        Side::BOTH[self.below(2)]
    }

    fn take(&mut self, step: Step) -> Result<(), String> {
        self.tally.steps += 1;
        self.tally.crashes += usize::from(matches!(step, Step::Crash(_)));
        self.pair.apply(&step);
        self.steps.push(step);
        for word in self.pair.wanted() {
            *self.tally.wanted.entry(word).or_default() += 1;
        }
        self.pair.broken().map_or(Ok(()), |broken| Err(broken.to_owned()))
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
            let steps = self.pair.steps();
            match self.one_of(&steps) {
                Some(step) => Some(step),
                None => self.timer(),
            }
        };
        step.map_or(Ok(()), |step| self.take(step))
    }

    fn timer(&mut self) -> Option<Step> {
        self.pair.timers().into_iter().next().map(|(_, step)| step)
    }

    fn wish(&mut self) -> Option<Step> {
        let side = self.side();
        let node = self.pair.node(side);
        let known: Vec<_> = node.holds.iter().chain(&node.waiting).copied().collect();
        Some(match self.below(40) {
            0..12 => Step::Hold(side),
            12..22 => Step::Open(side, None),
            22..25 => Step::Open(side, Some(Duration::from_secs(3))),
            25..32 => Step::Cancel(side, self.one_of(&known)?),
            32..36 => Step::Disconnect(side),
            36 => Step::Ban(side, Duration::from_secs(20)),
            37 => Step::Unban(side),
            38 => Step::AddressNews(side),
            // Rarely, as nothing much happens afterwards.
            _ => match self.below(4) {
                0 => Step::Shutdown(side),
                _ => Step::AddressNews(side),
            },
        })
    }

    fn fault(&mut self) -> Option<Step> {
        let kind = self.below(20);
        if kind == 0 {
            return Some(Step::Crash(self.side()));
        }
        let mut faults = Vec::new();
        for (name, link) in &self.pair.links {
            for side in Side::BOTH {
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
                        faults.push(Step::ConsiderFull(*name, side));
                        faults.push(Step::NotAdmitted(*name, side));
                    }
                    (_, 15..20) if link.end(side.other()).is_gone() && !end.arriving.is_empty() => {
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
        for side in Side::BOTH {
            self.take(Step::Unban(side))?;
        }
        if self.pair.nodes.iter().any(|node| node.shut) {
            return Ok(());
        }
        for _ in 0..PATIENCE {
            let steps = self.pair.steps();
            if self.pair.is_quiet() {
                self.pair.judge_quiet();
                return self.pair.broken().map_or(Ok(()), |broken| Err(broken.to_owned()));
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
        let held = self.pair.nodes.iter().any(|node| !node.holds.is_empty());
        let ages = self.pair.node(Side::A).rules.session_age.is_some();
        if !held || ages || self.pair.nodes.iter().any(|node| node.shut) {
            return Ok(());
        }
        let before = self.pair.node(Side::A).live();
        for _ in 0..20 {
            let steps = self.pair.steps();
            let Some(step) = self.one_of(&steps).or_else(|| self.timer()) else { break };
            self.take(step)?;
        }
        let after = self.pair.node(Side::A).live();
        if before == after { Ok(()) } else { Err(format!("{before:?} became {after:?}, unasked")) }
    }

    /// The app lets go, or the nodes shut down: everything ends and is accounted for.
    fn end(&mut self) -> Result<(), String> {
        let shut = self.pair.nodes.iter().any(|node| node.shut) || self.below(2) == 0;
        let mut sides = Side::BOTH;
        sides.rotate_left(self.below(2));
        for side in sides {
            if shut {
                self.take(Step::Shutdown(side))?;
            } else {
                let holds: Vec<_> = self.pair.node(side).holds.iter().copied().collect();
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
        let steps = self.pair.steps();
        let Some(step) = self.one_of(&steps).or_else(|| self.timer()) else { return Ok(false) };
        self.take(step)?;
        Ok(true)
    }

    fn judge_end(&mut self) -> Result<(), String> {
        if !self.pair.links.is_empty() {
            return Err(format!("links are left: {:?}", self.pair.links.keys()));
        }
        for node in &self.pair.nodes {
            let side = node.side;
            if node.machine.is_some() {
                return Err(format!("{side:?} is not forgotten: {:?}", self.pair.state(side)));
            }
            if node.is_wanting() || node.asks > 0 || node.opened != node.served + node.failed {
                let (opened, served, failed) = (node.opened, node.served, node.failed);
                return Err(format!("{side:?}: {opened} opened, {served} served, {failed} failed"));
            }
            self.tally.served += node.served;
        }
        Ok(())
    }
}
