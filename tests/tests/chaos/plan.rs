//! What is done to twenty nodes, and when: all of it drawn from a seed before the first node starts.
//!
//! Nothing here looks at a node. What the plan has to know of them, such as who is away, it knows from itself, so that the same seed does
//! the same whatever the nodes make of it.

use std::time::Duration;

use kinfolk_tests::support::impair::{Condition, Direction};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// How many nodes there are.
pub const NODES: usize = 20;

/// Between one action and the next, on average: half of this twice.
const PACE: u64 = 10;

/// How long it goes on, and how bad it gets.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub time: Duration,
    pub longest_pause: Duration,
    pub longest_cut: Duration,
}

/// One thing that is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    Open {
        from: usize,
        to: usize,
        stream: Stream,
    },
    Call {
        from: usize,
        to: usize,
        call: Call,
    },
    Hold {
        from: usize,
        to: usize,
    },
    /// Drops one of the node's holds.
    Release {
        node: usize,
        which: usize,
    },
    Disconnect {
        from: usize,
        to: usize,
    },
    Ban {
        from: usize,
        to: usize,
        lasts: Duration,
    },
    Unban {
        from: usize,
        to: usize,
    },
    /// The node dies without a word, and comes back with the same key.
    Kill {
        node: usize,
        away: Duration,
    },
    /// The node takes its leave, and comes back with the same key.
    Drain {
        node: usize,
        away: Duration,
    },
    /// The node is not polled.
    Pause {
        node: usize,
        lasts: Duration,
    },
    /// The way between two nodes is cut or bad.
    Spoil {
        pair: usize,
        direction: Direction,
        condition: Condition,
        lasts: Duration,
    },
}

impl Action {
    /// A word for the figures.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Call { .. } => "call",
            Self::Hold { .. } => "hold",
            Self::Release { .. } => "release",
            Self::Disconnect { .. } => "disconnect",
            Self::Ban { .. } => "ban",
            Self::Unban { .. } => "unban",
            Self::Kill { .. } => "kill",
            Self::Drain { .. } => "drain",
            Self::Pause { .. } => "pause",
            Self::Spoil { condition, .. } if condition.blackhole => "partition",
            Self::Spoil { .. } => "spoil",
        }
    }
}

/// How a stream is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    Acked,
    Eager,
    OnlyIfLive,
}

/// A stream with payload both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    pub opening: Opening,
    /// Bytes that the opener sends, and those that come back.
    pub up: u32,
    pub down: u32,
    /// Whether each side ends well: otherwise it sends half and drops what it holds.
    pub finishes: bool,
    pub is_answered: bool,
    /// When the opener drops everything, the open included.
    pub cancelled: Option<Duration>,
}

/// A call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub is_idempotent: bool,
    /// How long the handler takes.
    pub takes: Duration,
    pub cancelled: Option<Duration>,
}

/// An action and its time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    pub at: Duration,
    pub action: Action,
}

/// Who may talk to whom: each node with six others, so that a pair sees enough of what can happen to it.
pub fn pairs() -> Vec<(usize, usize)> {
    let of = |node| [1, 2, 5].map(|distance| (node, (node + distance) % NODES));
    (0..NODES).flat_map(of).collect()
}

/// The plan of this seed.
pub fn plan(seed: u64, shape: Shape) -> Vec<Step> {
    let mut drawing = Drawing {
        lots: ChaCha8Rng::seed_from_u64(seed),
        shape,
        pairs: pairs(),
        node_is_free: [Duration::ZERO; NODES],
        pair_is_free: vec![Duration::ZERO; pairs().len()],
    };
    let mut at = Duration::ZERO;
    let mut steps = Vec::new();
    loop {
        at += drawing.time(0, PACE) + drawing.time(0, PACE);
        if at >= shape.time {
            return steps;
        }
        let action = drawing.action(at);
        steps.push(Step { at, action });
    }
}

struct Drawing {
    lots: ChaCha8Rng,
    shape: Shape,
    pairs: Vec<(usize, usize)>,
    /// When each node is back from what was last done to it, and some more.
    node_is_free: [Duration; NODES],
    pair_is_free: Vec<Duration>,
}

impl Drawing {
    fn action(&mut self, at: Duration) -> Action {
        let (from, to) = self.someone();
        match self.below(1000) {
            0..350 => Action::Open { from, to, stream: self.stream() },
            350..750 => Action::Call { from, to, call: self.call() },
            750..830 => Action::Hold { from, to },
            830..890 => Action::Release { node: from, which: self.index(64) },
            890..910 => Action::Disconnect { from, to },
            910..922 => Action::Ban { from, to, lasts: self.time(100, 3000) },
            922..930 => Action::Unban { from, to },
            930..937 => {
                let away = self.time(0, 2000);
                self.away(at, from, away, Action::Kill { node: from, away })
            }
            937..943 => {
                let away = self.time(0, 1000);
                self.away(at, from, away, Action::Drain { node: from, away })
            }
            943..948 => {
                let lasts = self.time(200, millis(self.shape.longest_pause));
                self.away(at, from, lasts, Action::Pause { node: from, lasts })
            }
            _ => self.spoil(at),
        }
    }

    /// The action, unless the node is away already.
    fn away(&mut self, at: Duration, node: usize, lasts: Duration, action: Action) -> Action {
        // To be there again takes a moment, and a drain up to its deadline.
        const RETURN: Duration = Duration::from_secs(3);
        if self.node_is_free[node] > at {
            return Action::Release { node, which: 0 };
        }
        self.node_is_free[node] = at + lasts + RETURN;
        action
    }

    fn spoil(&mut self, at: Duration) -> Action {
        let pair = self.index(self.pairs.len());
        let lasts = self.time(100, millis(self.shape.longest_cut));
        let direction =
            [Direction::Both, Direction::Both, Direction::AToB, Direction::BToA][self.index(4)];
        let condition = if self.one_in(3) {
            Condition { blackhole: true, ..Condition::default() }
        } else {
            Condition {
                delay: self.time(0, 40),
                jitter: self.time(0, 40),
                loss: self.below(30) as f64 / 100.0,
                duplicate: self.below(10) as f64 / 100.0,
                ..Condition::default()
            }
        };
        if self.pair_is_free[pair] > at {
            let (from, to) = self.pairs[pair];
            return Action::Hold { from, to };
        }
        self.pair_is_free[pair] = at + lasts;
        Action::Spoil { pair, direction, condition, lasts }
    }

    fn stream(&mut self) -> Stream {
        let opening = match self.below(10) {
            0..6 => Opening::Acked,
            6..9 => Opening::Eager,
            _ => Opening::OnlyIfLive,
        };
        // Few are large.
        let most = [100, 5_000, 60_000, 300_000][(self.below(4) * self.below(4) / 3) as usize];
        Stream {
            opening,
            up: self.below(most) as u32,
            down: self.below(most) as u32,
            finishes: !self.one_in(6),
            is_answered: !self.one_in(6),
            cancelled: self.cancelled(),
        }
    }

    fn call(&mut self) -> Call {
        Call {
            is_idempotent: self.one_in(3),
            takes: if self.one_in(4) { self.time(0, 300) } else { Duration::ZERO },
            cancelled: self.cancelled(),
        }
    }

    fn cancelled(&mut self) -> Option<Duration> {
        self.one_in(6).then(|| self.time(0, 400))
    }

    fn someone(&mut self) -> (usize, usize) {
        let pair = self.index(self.pairs.len());
        let (a, b) = self.pairs[pair];
        if self.one_in(2) { (a, b) } else { (b, a) }
    }

    fn time(&mut self, from: u64, below: u64) -> Duration {
        Duration::from_millis(from + self.below(below - from))
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// The bias of the remainder is of no matter here.
    fn below(&mut self, bound: u64) -> u64 {
        self.lots.next_u64() % bound
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
