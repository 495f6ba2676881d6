//! The streams with peers, as the announcer sees them: one lane per peer, whoever opened how many streams.
//!
//! It decides which frames wait for a stream that is being opened, and which lane makes room for another. Neighbours are never
//! asked to. It opens and closes nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::EndpointId;
use kinfolk_core::bucket::{Bucket, Rate};

/// Frames of one peer. Default of records is 10 per second, and of control no more than a few per record (a guess).
const FRAME_RATE: Rate = Rate::new(500, Duration::from_millis(20));

/// Payloads that one peer may promise (a guess: ten times what it may relay).
const PROMISE_RATE: Rate = Rate::new(200, Duration::from_millis(10));

/// Frames that wait for one stream to open: a greeting and what follows it at once (a guess).
const WAITING_MAX: usize = 16;

/// How long a lane is kept with a peer that is no neighbour: longer than a dial and its hello may take.
const GRACE: Duration = Duration::from_secs(25);

/// What is between this node and one peer.
#[derive(Debug)]
pub(super) struct Lane {
    /// Since when the peer has been nothing but a peer: no neighbour.
    since: Instant,
    /// What is sent once the stream is open; `None` if it is.
    waiting: Option<Vec<Bytes>>,
    /// Close it once what waits was sent.
    is_closing: bool,
    frames: Bucket,
    promises: Bucket,
}

impl Lane {
    fn new(now: Instant, waiting: Option<Vec<Bytes>>) -> Self {
        let full = Bucket::full(now);
        Self { since: now, waiting, is_closing: false, frames: full, promises: full }
    }

    /// Whether one more frame may come.
    pub(super) fn take_frame(&mut self, now: Instant) -> bool {
        self.frames.take(now, FRAME_RATE, FRAME_RATE.burst)
    }

    /// Whether one more payload may be promised.
    pub(super) fn take_promise(&mut self, now: Instant) -> bool {
        self.promises.take(now, PROMISE_RATE, PROMISE_RATE.burst)
    }
}

/// What becomes of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Its stream is up.
    Send(Bytes),
    /// It waits until its stream is up.
    Wait,
    /// Too many wait already.
    Full,
    /// There is no stream.
    None(Bytes),
}

/// What becomes of a lane whose peer is to be left.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// Nothing waits to be sent: it is gone.
    Closed,
    /// It closes once what waits was sent.
    Later,
    /// There was none.
    None,
}

/// At most so many lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    capacity: usize,
    lanes: BTreeMap<EndpointId, Lane>,
}

impl Lanes {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, lanes: BTreeMap::new() }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn contains(&self, peer: &EndpointId) -> bool {
        self.lanes.contains_key(peer)
    }

    /// The lane of a peer whose stream is up.
    pub(super) fn up(&mut self, peer: &EndpointId) -> Option<&mut Lane> {
        self.lanes.get_mut(peer).filter(|lane| lane.waiting.is_none() && !lane.is_closing)
    }

    pub(super) fn way(&mut self, peer: &EndpointId, frame: Bytes) -> Way {
        match self.lanes.get_mut(peer) {
            None => Way::None(frame),
            Some(lane) => match &mut lane.waiting {
                None => Way::Send(frame),
                Some(waiting) if waiting.len() >= WAITING_MAX => Way::Full,
                Some(waiting) => {
                    waiting.push(frame);
                    lane.is_closing = false;
                    Way::Wait
                }
            },
        }
    }

    /// The lane that has to make room before another one is added: of those that are no neighbours the oldest.
    pub(super) fn surplus(&self, neighbours: &BTreeSet<EndpointId>) -> Option<EndpointId> {
        if self.lanes.len() < self.capacity {
            return None;
        }
        let strangers = self.lanes.iter().filter(|(peer, _)| !neighbours.contains(*peer));
        strangers.min_by_key(|(_, lane)| lane.since).map(|(peer, _)| *peer)
    }

    /// Adds a lane whose stream is to be opened.
    pub(super) fn open(&mut self, now: Instant, peer: EndpointId, frame: Bytes) {
        self.lanes.insert(peer, Lane::new(now, Some(vec![frame])));
    }

    /// The stream of a peer is up. What waited for it, and whether it is to be closed behind that.
    pub(super) fn opened(&mut self, now: Instant, peer: EndpointId) -> (Vec<Bytes>, bool) {
        let lane = self.lanes.entry(peer).or_insert_with(|| Lane::new(now, None));
        let is_closing = lane.is_closing;
        let waiting = lane.waiting.take().unwrap_or_default();
        if is_closing {
            self.lanes.remove(&peer);
        }
        (waiting, is_closing)
    }

    /// Takes a lane away, but not before what waits was sent.
    pub(super) fn leave(&mut self, peer: &EndpointId) -> Leave {
        match self.lanes.get_mut(peer) {
            None => Leave::None,
            Some(lane) if lane.waiting.is_some() => {
                lane.is_closing = true;
                Leave::Later
            }
            Some(_) => {
                self.lanes.remove(peer);
                Leave::Closed
            }
        }
    }

    pub(super) fn remove(&mut self, peer: &EndpointId) -> bool {
        self.lanes.remove(peer).is_some()
    }

    /// From now on the peer is no neighbour.
    pub(super) fn demote(&mut self, now: Instant, peer: &EndpointId) {
        if let Some(lane) = self.lanes.get_mut(peer) {
            lane.since = now;
        }
    }

    /// The peers that have been no neighbours for too long.
    pub(super) fn idle(&self, now: Instant, neighbours: &BTreeSet<EndpointId>) -> Vec<EndpointId> {
        let idle = self.lanes.iter().filter(|(peer, lane)| {
            !neighbours.contains(*peer) && now.saturating_duration_since(lane.since) >= GRACE
        });
        idle.map(|(peer, _)| *peer).collect()
    }

    /// Takes all lanes away.
    pub(super) fn clear(&mut self) -> Vec<EndpointId> {
        std::mem::take(&mut self.lanes).into_keys().collect()
    }
}
