//! Every interleaving of a story, by stateright: breadth first, each state once.
//!
//! A state is a world, and what is left of the story. Every promise is a property. Wherever nothing can happen any more the story is told
//! to its end without faults, timers soonest first, and the end is judged; and from every state each node is shut down, which must leave nothing there.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::link::State;
use super::name::Side;
use super::node::limits;
use super::promise::{Breach, Promise};
use super::step::{Step, Variant};
use super::story::{Demand, Faults, Story};
use super::world::{Setup, World};

/// Steps until a story without further faults must be over.
const PATIENCE: usize = 400;

/// Why something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Itself,
    Wish,
    Fault,
}

/// What of the story is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Left {
    /// How many of its wishes each node has made.
    made: [u8; 3],
    faults: Faults,
}

/// A state of the model.
#[derive(Debug, Clone)]
pub struct Place {
    world: World,
    left: Left,
    judged: OnceLock<Option<Box<Verdict>>>,
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.left == other.left && self.world == other.world
    }
}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.left.hash(state);
        self.world.hash(state);
    }
}

/// A promise that a state breaks, and the steps from there to where it shows.
#[derive(Debug, Clone)]
struct Verdict {
    breach: Breach,
    tail: Vec<Step>,
}

/// How far a search came.
#[derive(Clone, Copy)]
pub struct Found {
    pub states: usize,
    /// Steps from one state to another.
    steps: usize,
    /// Steps on the longest of the ways to a state.
    depth: usize,
    /// States where nothing happens by itself any more.
    ends: usize,
    /// Whether a link was parked anywhere.
    pub parked: bool,
    /// Whether there was nothing more to see within the bounds.
    pub complete: bool,
    time: Duration,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, steps, depth, ends, parked, complete, time } = self;
        let seen = if *complete { "all" } else { "the first" };
        let parked = if *parked { "some" } else { "no" };
        write!(
            f,
            "{seen} {states} states ({steps} steps, {depth} deep, {ends} ends, {parked} parking) in {time:.1?}"
        )
    }
}

/// A broken promise, and a shortest way to it.
pub struct Broken {
    pub breach: Breach,
    pub way: Vec<Step>,
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.breach)?;
        self.way.iter().try_for_each(|step| writeln!(f, "  {step:?}"))
    }
}

/// How much a search may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub time: Duration,
    /// Steps from one state to another: the memory that the search takes grows with them.
    pub steps: usize,
}

/// Tells every version of the story, as far as the bounds allow.
pub fn search(story: &Story, variant: Variant, bounds: Bounds) -> Result<Found, Broken> {
    let begun = Instant::now();
    let telling = Telling::new(story, variant);
    let ends = Arc::clone(&telling.ends);
    // Two threads are faster and go less strictly breadth first.
    let checker = telling
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .timeout(bounds.time)
        .target_state_count(bounds.steps)
        .spawn_bfs()
        .join();
    let discoveries = checker.discoveries();
    let parked = discoveries.contains_key(PARKED);
    if discoveries.keys().any(|name| *name != PARKED) {
        return Err(shortest(story, variant));
    }
    let (time, steps) = (begun.elapsed(), checker.state_count());
    Ok(Found {
        states: checker.unique_state_count(),
        steps,
        depth: checker.max_depth(),
        ends: ends.load(Ordering::Relaxed),
        parked,
        complete: time < bounds.time && steps < bounds.steps,
        time,
    })
}

/// Looks for a shortest way to a broken promise: on one thread the search is strictly breadth first.
fn shortest(story: &Story, variant: Variant) -> Broken {
    let telling = Telling::new(story, variant);
    let checker = telling.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let discoveries = checker.discoveries();
    let broken = discoveries.into_iter().filter(|(name, _)| *name != PARKED);
    let way = broken.map(|(_, path)| path.into_actions()).min_by_key(Vec::len).unwrap();
    let telling = Telling::new(story, variant);
    let mut place = telling.start();
    for step in &way {
        place = telling.follow(&place, step);
    }
    let mut way: Vec<Step> = way.into_iter().map(|(_, step)| step).collect();
    let Verdict { breach, tail } = telling.verdict(&place).unwrap().clone();
    way.extend(tail);
    Broken { breach, way }
}

/// A story that is told: the model.
struct Telling {
    story: Story,
    setup: Arc<Setup>,
    hasher: BuildHasherDefault<DefaultHasher>,
    /// Worlds from which the node that is shut down ends, by hash.
    emptied: Mutex<HashSet<u64>>,
    /// A broken promise was found, and no other is looked for: stateright would go on for a while, and keep the last.
    broken: AtomicBool,
    ends: Arc<AtomicUsize>,
}

const PARKED: &str = "a link is parked";

impl Model for Telling {
    type State = Place;
    type Action = (Cause, Step);

    fn init_states(&self) -> Vec<Place> {
        vec![self.start()]
    }

    fn actions(&self, place: &Place, actions: &mut Vec<(Cause, Step)>) {
        let Place { world, left, .. } = place;
        if world.breach().is_some() {
            return;
        }
        actions.extend(world.steps().into_iter().map(|step| (Cause::Itself, step)));
        for side in world.sides() {
            let wishes = &self.story.wishes[side.index()];
            if let Some(wish) = wishes.get(usize::from(left.made[side.index()])) {
                actions.push((Cause::Wish, wish.clone()));
            }
        }
        self.faults(place, |fault| actions.push((Cause::Fault, fault)));
    }

    fn next_state(&self, place: &Place, step: (Cause, Step)) -> Option<Place> {
        Some(self.follow(place, &step))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        /// One property for each promise: they cannot carry which one, so that each needs a function of its own.
        macro_rules! always {
            ($($promise:ident),+) => {
                vec![$(Property::always(Promise::$promise.sentence(), |telling: &Self, place| {
                    let verdict = telling.verdict(place);
                    verdict.is_none_or(|verdict| verdict.breach.promise != Promise::$promise)
                }),)+]
            };
        }
        let mut properties = always!(
            OneSharedLink,
            OneLive,
            DeadNeverWins,
            OneOutcome,
            ShutdownEmpties,
            NextTimeout,
            EndsByItself,
            Accounts,
            NothingCut,
            Peace
        );
        properties.push(Property::sometimes(PARKED, |_, place: &Place| {
            place.world.links.iter().any(|(name, link)| link.end(name.to).state == State::Parked)
        }));
        properties
    }
}

impl Telling {
    fn new(story: &Story, variant: Variant) -> Self {
        let mut limits = limits();
        limits.dials = story.dials;
        let setup = Setup {
            nodes: story.wishes.len(),
            limits,
            variant,
            eager: true,
            unreachable: story.unreachable.clone(),
            start: Instant::now(),
        };
        Self {
            story: story.clone(),
            setup: Arc::new(setup),
            hasher: BuildHasherDefault::default(),
            emptied: Mutex::default(),
            broken: AtomicBool::new(false),
            ends: Arc::default(),
        }
    }

    fn start(&self) -> Place {
        Place {
            world: World::new(Arc::clone(&self.setup)),
            left: Left { made: [0; 3], faults: self.story.faults },
            judged: OnceLock::new(),
        }
    }

    /// The faults that may strike here.
    fn faults(&self, place: &Place, mut strike: impl FnMut(Step)) {
        let (world, left) = (&place.world, &place.left.faults);
        for side in world.sides() {
            let node = world.node(side);
            let began = place.left.made[side.index()] > 0 || !world.links.is_empty();
            if left.crashes > 0 && began {
                strike(Step::Crash(side));
            }
            if left.timers > 0 && node.table.next_timeout().is_some() {
                strike(Step::Fire(side));
            }
            if left.cancels > 0 {
                let intents =
                    node.peers.iter().flat_map(|peer| peer.holds.iter().chain(&peer.waiting));
                intents.for_each(|id| strike(Step::Cancel(side, *id)));
            }
        }
        for (side, peer) in world.pairs() {
            if left.disconnects > 0 && world.node(side).knows(peer) {
                strike(Step::Disconnect(side, peer));
            }
        }
        for (name, link) in &world.links {
            for side in name.ends() {
                let end = link.end(side);
                match end.state {
                    State::Connected | State::Greeted | State::Parked | State::Welcomed
                        if left.losses > 0 =>
                    {
                        strike(Step::Lose(*name, side));
                    }
                    State::Dialling { mute: false } if left.mute_dials > 0 => {
                        strike(Step::Mute(*name));
                    }
                    _ => {}
                }
                if left.lost_closes > 0 && end.close_is_coming() {
                    strike(Step::LoseFrames(*name, side));
                }
            }
        }
    }

    fn follow(&self, place: &Place, (cause, step): &(Cause, Step)) -> Place {
        let (mut world, mut left) = (place.world.clone(), place.left);
        world.apply(step);
        match cause {
            Cause::Itself => {}
            Cause::Wish => {
                let wishes = |side: &Side| {
                    let made = usize::from(place.left.made[side.index()]);
                    self.story.wishes[side.index()].get(made) == Some(step)
                };
                let side = world.sides().find(wishes).unwrap();
                left.made[side.index()] += 1;
            }
            Cause::Fault => left.spend(step),
        }
        Place { world, left, judged: OnceLock::new() }
    }

    /// The promise that is broken here, in the end that follows from here, or by a shutdown from here.
    fn verdict<'a>(&self, place: &'a Place) -> Option<&'a Verdict> {
        let judged = place.judged.get_or_init(|| {
            let verdict =
                (!self.broken.load(Ordering::Relaxed)).then(|| self.judge(place)).flatten();
            self.broken.fetch_or(verdict.is_some(), Ordering::Relaxed);
            verdict.map(Box::new)
        });
        judged.as_deref()
    }

    fn judge(&self, place: &Place) -> Option<Verdict> {
        let world = &place.world;
        if let Some(breach) = world.breach() {
            return Some(Verdict { breach: breach.clone(), tail: Vec::new() });
        }
        let told = |side: Side| {
            usize::from(place.left.made[side.index()]) == self.story.wishes[side.index()].len()
        };
        if world.sides().all(told) && world.steps().is_empty() {
            let verdict = self.judge_end(world);
            if verdict.is_some() {
                return verdict;
            }
        }
        let mut shut = world.sides().filter(|_| self.story.shutdowns);
        shut.find_map(|side| self.judge_shutdown(world, side))
    }

    fn judge_end(&self, world: &World) -> Option<Verdict> {
        self.ends.fetch_add(1, Ordering::Relaxed);
        let mut world = world.clone();
        let mut tail = Vec::new();
        let demand = self.story.demand;
        if demand != Demand::Agreement && !world.is_quiet() {
            return verdict(Promise::Peace, "a timer is needed", tail);
        }
        if demand == Demand::Peace && world.nodes.iter().any(|node| node.troubles + node.failed > 0)
        {
            return verdict(Promise::Peace, "trouble was reported", tail);
        }
        for _ in 0..PATIENCE {
            if world.is_quiet() {
                world.judge_quiet();
                return world.breach().map(|breach| Verdict { breach: breach.clone(), tail });
            }
            let Some(step) = world.next() else {
                return verdict(Promise::EndsByItself, "nothing will ever happen", tail);
            };
            world.apply(&step);
            tail.push(step);
            if let Some(breach) = world.breach() {
                return Some(Verdict { breach: breach.clone(), tail });
            }
        }
        verdict(Promise::EndsByItself, "it never becomes quiet", tail)
    }

    /// Shuts the node down; the others go on.
    fn judge_shutdown(&self, world: &World, side: Side) -> Option<Verdict> {
        let mut world = world.clone();
        let mut tail = Vec::new();
        let mut passed = Vec::new();
        let mut step = Step::Shutdown(side);
        for _ in 0..PATIENCE {
            world.apply(&step);
            tail.push(step);
            if let Some(breach) = world.breach() {
                return Some(Verdict { breach: breach.clone(), tail });
            }
            let hash = self.hasher.hash_one((side, &world));
            if world.is_over(side) || self.emptied.lock().unwrap().contains(&hash) {
                self.emptied.lock().unwrap().extend(passed);
                return None;
            }
            passed.push(hash);
            let Some(next) = world.next() else {
                return verdict(Promise::ShutdownEmpties, "nothing will ever happen", tail);
            };
            step = next;
        }
        verdict(Promise::ShutdownEmpties, "it never ends", tail)
    }
}

fn verdict(promise: Promise, what: &str, tail: Vec<Step>) -> Option<Verdict> {
    Some(Verdict { breach: Breach { promise, what: what.to_owned() }, tail })
}

impl Left {
    fn spend(&mut self, fault: &Step) {
        let faults = &mut self.faults;
        match fault {
            Step::Crash(side) => {
                faults.crashes -= 1;
                self.made[side.index()] = 0;
            }
            Step::Disconnect(side, _) => {
                faults.disconnects -= 1;
                self.made[side.index()] = 0;
            }
            Step::Lose(..) => faults.losses -= 1,
            Step::LoseFrames(..) => faults.lost_closes -= 1,
            Step::Mute(_) => faults.mute_dials -= 1,
            Step::Cancel(..) => faults.cancels -= 1,
            Step::Fire(_) => faults.timers -= 1,
            _ => {}
        }
    }
}
