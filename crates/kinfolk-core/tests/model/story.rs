//! A small story: what the apps wish, which faults may strike and which timers may fire, at any moment.

use std::fmt;

use super::name::Side;
use super::step::Step;

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

/// How many faults of which kind strike.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A node restarts with the same key.
    pub crashes: u8,
    /// One end of a link is lost.
    pub losses: u8,
    /// A close never arrives.
    pub lost_closes: u8,
    /// Dials that are never answered.
    pub mute_dials: u8,
    pub disconnects: u8,
    /// Intents that their callers give up.
    pub cancels: u8,
    /// Timers that fire while something else could happen.
    pub timers: u8,
}

pub const NO_FAULTS: Faults = Faults {
    crashes: 0,
    losses: 0,
    lost_closes: 0,
    mute_dials: 0,
    disconnects: 0,
    cancels: 0,
    timers: 0,
};

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { crashes, losses, lost_closes, mute_dials, disconnects, cancels, timers } = self;
        let counts = [
            ("crashes", crashes),
            ("losses", losses),
            ("lost closes", lost_closes),
            ("mute dials", mute_dials),
            ("disconnects", disconnects),
            ("cancels", cancels),
            ("timers", timers),
        ];
        f.debug_map().entries(counts.into_iter().filter(|(_, count)| **count > 0)).finish()
    }
}

/// What happens in a story, besides what goes on by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    pub demand: Demand,
    /// In this order at each node; one that crashed or disconnected wishes all of it again.
    pub wishes: Vec<Vec<Step>>,
    pub faults: Faults,
    /// Dials of the first to the second are never answered.
    pub unreachable: Vec<(Side, Side)>,
    /// Dials that each node may have under way.
    pub dials: usize,
    /// Whether it is seen from every state that a shutdown of any node leaves nothing there.
    pub shutdowns: bool,
}

impl Story {
    /// A story in which nothing goes wrong.
    pub fn of<const N: usize>(wishes: [Vec<Step>; N]) -> Self {
        Self {
            demand: Demand::Agreement,
            wishes: Vec::from(wishes),
            faults: NO_FAULTS,
            unreachable: Vec::new(),
            dials: 8,
            shutdowns: true,
        }
    }

    pub fn with(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    pub fn demanding(self, demand: Demand) -> Self {
        Self { demand, ..self }
    }

    /// Only the other of the two can dial.
    pub fn without_dials_from(mut self, side: Side) -> Self {
        self.unreachable.push((side, side.other()));
        self
    }

    pub fn then_shutdown(mut self, side: Side) -> Self {
        self.wishes[side.index()].push(Step::Shutdown(side));
        self
    }
}
