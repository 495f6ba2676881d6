//! Every interleaving of a small story: breadth first, each state once.
//!
//! A story is what the two apps wish, and how many faults of which kind and how many timers may strike, at any moment. Wherever nothing
//! can happen any more the story is told to its end without faults, timers soonest first, and the end is judged.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::{Duration, Instant};

use super::link::{Side, State};
use super::node::rules;
use super::world::{Pair, Step, Variant};

/// Steps until a story without further faults must be over.
const PATIENCE: usize = 1000;

/// What must hold where a story ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Demand {
    /// In the end both sides have the same link.
    Agreement,
    /// They agree already, before any timer has fired.
    AgreementAtOnce,
    /// And neither app has heard of a failed dial or a lost intent.
    Peace,
}

/// What happens in a story, besides what goes on by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Story {
    pub demand: Demand,
    /// In this order at each side; a node that crashed or disconnected wishes all of it again.
    pub wishes: [Vec<Step>; 2],
    pub crashes: u8,
    /// One end of a link is lost.
    pub losses: u8,
    /// A close never arrives.
    pub lost_closes: u8,
    /// Dials that are never answered.
    pub mute_dials: u8,
    pub disconnects: u8,
    /// Timers that fire while something else could happen.
    pub timers: u8,
}

impl Story {
    /// A story in which nothing goes wrong.
    pub fn of(wishes: [Vec<Step>; 2]) -> Self {
        Self {
            demand: Demand::Agreement,
            wishes,
            crashes: 0,
            losses: 0,
            lost_closes: 0,
            mute_dials: 0,
            disconnects: 0,
            timers: 0,
        }
    }
}

/// How far a search came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub states: usize,
    /// Steps on the longest of the shortest ways to a state.
    pub depth: usize,
    pub ends: usize,
    /// Whether there was nothing more to see within the limit.
    pub complete: bool,
}

/// A broken promise, and a shortest way to it.
pub struct Broken {
    pub promise: String,
    pub way: Vec<Step>,
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.promise)?;
        self.way.iter().try_for_each(|step| writeln!(f, "  {step:?}"))
    }
}

/// Tells every version of the story, as long as time is left.
pub fn search(story: &Story, variant: Variant, limit: Duration) -> Result<Found, Broken> {
    Search::new(story, variant).run(story, limit)
}

type Place = (Pair, Story);

struct Search {
    hasher: BuildHasherDefault<DefaultHasher>,
    seen: HashSet<u64>,
    /// For each place, the one before it and the step between: the way back to the start.
    ways: Vec<(usize, Option<Step>)>,
    queue: VecDeque<(usize, usize, Place)>,
}

impl Search {
    fn new(story: &Story, variant: Variant) -> Self {
        let pair = Pair::new(rules(), variant, true, Instant::now());
        let start = (pair, story.clone());
        Self {
            hasher: BuildHasherDefault::default(),
            seen: HashSet::new(),
            ways: vec![(0, None)],
            queue: VecDeque::from([(0, 0, start)]),
        }
    }

    fn run(mut self, story: &Story, limit: Duration) -> Result<Found, Broken> {
        let begun = Instant::now();
        let mut found = Found { states: 1, depth: 0, ends: 0, complete: true };
        while let Some((index, depth, place)) = self.queue.pop_front() {
            if begun.elapsed() > limit {
                found.complete = false;
                break;
            }
            found.depth = depth;
            let nexts = successors(&place, story);
            if place.0.steps().is_empty() && place.1.wishes.iter().all(Vec::is_empty) {
                found.ends += 1;
                self.judge_end(index, &place.0, story.demand)?;
            }
            for (step, next) in nexts {
                if !self.seen.insert(self.hasher.hash_one(&next)) {
                    continue;
                }
                found.states += 1;
                let broken = next.0.broken().map(str::to_owned);
                self.ways.push((index, Some(step)));
                let index = self.ways.len() - 1;
                if let Some(promise) = broken {
                    return Err(Broken { promise, way: self.way(index) });
                }
                self.queue.push_back((index, depth + 1, next));
            }
        }
        Ok(found)
    }

    fn way(&self, mut index: usize) -> Vec<Step> {
        let mut way = Vec::new();
        while let (before, Some(step)) = &self.ways[index] {
            way.push(step.clone());
            index = *before;
        }
        way.reverse();
        way
    }

    fn judge_end(&self, index: usize, pair: &Pair, demand: Demand) -> Result<(), Broken> {
        let mut way = self.way(index);
        let mut pair = pair.clone();
        if demand != Demand::Agreement && !pair.is_quiet() {
            return Err(Broken { promise: "a timer is needed".to_owned(), way });
        }
        if demand == Demand::Peace && pair.nodes.iter().any(|node| node.troubles + node.failed > 0)
        {
            return Err(Broken { promise: "trouble was reported".to_owned(), way });
        }
        for _ in 0..PATIENCE {
            if let Some(broken) = pair.broken() {
                return Err(Broken { promise: broken.to_owned(), way });
            }
            if pair.is_quiet() {
                pair.judge_quiet();
                let Some(broken) = pair.broken() else { return Ok(()) };
                return Err(Broken { promise: broken.to_owned(), way });
            }
            let next = pair.steps().into_iter().next();
            let next = next.or_else(|| pair.timers().into_iter().next().map(|(_, step)| step));
            let Some(step) = next else {
                return Err(Broken { promise: "nothing will ever happen".to_owned(), way });
            };
            pair.apply(&step);
            way.push(step);
        }
        Err(Broken { promise: "it never becomes quiet".to_owned(), way })
    }
}

fn successors((pair, story): &Place, whole: &Story) -> Vec<(Step, Place)> {
    let mut nexts = Vec::new();
    let mut go = |step: Step, change: &dyn Fn(&mut Story)| {
        let mut next = (pair.clone(), story.clone());
        next.0.apply(&step);
        change(&mut next.1);
        nexts.push((step, next));
    };
    for step in pair.steps() {
        go(step, &|_| {});
    }
    for side in Side::BOTH {
        let at = side.index();
        if let Some(wish) = story.wishes[at].first() {
            go(wish.clone(), &|story| {
                story.wishes[at].remove(0);
            });
        }
        let again = |story: &mut Story| story.wishes[at].clone_from(&whole.wishes[at]);
        let began = story.wishes[at] != whole.wishes[at] || !pair.links.is_empty();
        if story.crashes > 0 && began {
            go(Step::Crash(side), &|story| {
                story.crashes -= 1;
                again(story);
            });
        }
        if story.disconnects > 0 && pair.node(side).machine.is_some() {
            go(Step::Disconnect(side), &|story| {
                story.disconnects -= 1;
                again(story);
            });
        }
        if story.timers > 0 && pair.node(side).next_timeout().is_some() {
            go(Step::Fire(side), &|story| story.timers -= 1);
        }
    }
    for (name, link) in &pair.links {
        for side in Side::BOTH {
            let end = link.end(side);
            match end.state {
                State::Connected | State::Greeted | State::Parked | State::Welcomed
                    if story.losses > 0 =>
                {
                    go(Step::Lose(*name, side), &|story| story.losses -= 1);
                }
                State::Dialling { mute: false } if story.mute_dials > 0 => {
                    go(Step::Mute(*name), &|story| story.mute_dials -= 1);
                }
                _ => {}
            }
            if story.lost_closes > 0 && end.close_is_coming() {
                go(Step::LoseFrames(*name, side), &|story| story.lost_closes -= 1);
            }
        }
    }
    nexts
}
