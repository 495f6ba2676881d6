//! Short names: of the nodes, and of the links between them.

use std::fmt;

/// One of the nodes. Their ids grow in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    A,
    B,
    C,
}

impl Side {
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    pub fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
            Self::C => 2,
        }
    }

    /// The other one of a pair.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B | Self::C => Self::A,
        }
    }
}

/// A link id, short. `life` counts the dialler's incarnations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    pub dialler: Side,
    pub life: u64,
    pub n: u64,
    pub to: Side,
}

impl Name {
    pub fn ends(&self) -> [Side; 2] {
        [self.dialler, self.to]
    }

    /// The end that is not this one.
    pub fn far(&self, side: Side) -> Side {
        if side == self.dialler { self.to } else { self.dialler }
    }

    /// Whether the link is one between these two.
    pub fn joins(&self, one: Side, other: Side) -> bool {
        self.ends() == [one, other] || self.ends() == [other, one]
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{}#{}>{:?}", self.dialler, self.life, self.n, self.to)
    }
}
