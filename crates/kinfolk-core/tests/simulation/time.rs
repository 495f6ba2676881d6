//! Virtual time, and the events that wait for it.

use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

/// The wall clock when a simulation begins, in Unix milliseconds.
pub const CLOCK: u64 = 1_700_000_000_000;

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Which end of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Initiator,
    Responder,
}

impl End {
    pub const fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }
}

#[derive(Debug)]
pub enum Event {
    /// The walk's timer. `life` tells a node from what it was before a restart.
    Walk { node: usize, life: u32 },
    /// The catalog's timer.
    Catalog { node: usize, life: u32 },
    /// The node signs a new record before the old one is over.
    Refresh { node: usize, life: u32 },
    /// A dial of the node has come to this.
    Dialled { node: usize, life: u32, peer: EndpointId, reached: Option<usize> },
    /// A message reaches one end of an exchange.
    Message { talk: u64, to: End, frame: Vec<u8> },
    /// One end of an exchange is gone.
    Closed { talk: u64, to: End },
    /// A deadline of an exchange may have come.
    Deadline { talk: u64, of: End },
    /// A node that looks for neighbours has reached this one.
    Join { node: usize, life: u32, peer: usize },
    /// A session may have lingered long enough.
    Linger { pair: (usize, usize) },
}

struct Due {
    at: Instant,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest, for the heap.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Events by time; of two at the same time the one that was entered first.
#[derive(Default)]
pub struct Queue {
    due: BinaryHeap<Due>,
    entered: u64,
}

impl Queue {
    pub fn enter(&mut self, at: Instant, event: Event) {
        self.entered += 1;
        self.due.push(Due { at, order: self.entered, event });
    }

    pub fn next_until(&mut self, until: Instant) -> Option<(Instant, Event)> {
        if self.due.peek()?.at > until {
            return None;
        }
        self.due.pop().map(|due| (due.at, due.event))
    }
}
