//! The announcer: new records and departures, spread to all nodes within seconds.
//!
//! It decides for its actor to whom frames are sent, which records that came in are news to be passed on, whose neighbour this
//! node is, and when its own record is told again. It stands on `iroh_gossip::proto`: HyParView keeps a few neighbours per node,
//! PlumTree spreads payloads over a tree of them. It never opens a stream, never reads a clock, draws no randomness of its own (the
//! caller gives a seed), and keeps no record: the catalog does. It is here and not in `kinfolk-core` because that crate brings a
//! runtime along, of which nothing runs.
//!
//! # Verified before it is relayed
//!
//! PlumTree passes a payload on before the application sees it. So every frame is read here first (see [`frame`]), and a payload goes
//! to PlumTree only once its record has verified; what PlumTree serves later, it serves from those. In this order, the cheap first:
//!
//! | check | else |
//! |---|---|
//! | the peer has a stream, and sends no more frames than it may | dropped |
//! | the frame is well-formed, of this version and topic; the payload is named by its hash | dropped; malformed: the sender is left |
//! | payloads, promises and walks come from a neighbour | dropped |
//! | the payload was not turned away before; one that was passed on is known to be good, and is not charged | dropped |
//! | the neighbour relays no more than it may, the author has announcements left | dropped, unverified |
//! | the record is known, or its signature is right and within the budget (see [`kinfolk_core::intake`]) | dropped; forged: the sender is left |
//! | it was issued within [`AnnounceLimits::window`], and is not older than what the catalog knows | dropped |
//! | the author's bucket, which only verified records empty | dropped |
//!
//! # Age
//!
//! An announcement carries no age: what is relayed is the bytes that its author named by their hash, so a number in them could
//! not grow on the way, and whoever replays it could write any. The receiver goes by the record's time of issue and its own clock, as
//! the catalog does in any case (`max(carried, clock - issued_at)`), and takes only what was issued within the window.
//! So a record that is told late is as old as it is; told again after the window it is not taken; and one that expired
//! here is dead in the catalog. What is understated is at most by how much this node's own clock is slow, and that goes no further: everybody
//! else goes by their own clocks. A node whose clock is off by more than the window hears and tells nothing by announcements, and
//! still takes part by exchanges.
//!
//! # What remotes can make it keep
//!
//! Streams, authors, payload names and promises have their caps here. What `iroh_gossip` keeps of them follows: it gets payloads and promises
//! from neighbours alone, no data about peers, and of names only those in the catalog. It forgets a promise that nobody kept when a
//! neighbour goes, so it is told now and then that one has (this node itself, which never is one); and it waits for ever for a peer to
//! answer, so it is told that each one is gone which has not become a neighbour in time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use iroh::EndpointId;
use iroh_gossip::proto::topic::{self, Command, Event, InEvent, OutEvent};
use iroh_gossip::proto::{Config, HyparviewConfig, PlumtreeConfig, Scope};
use kinfolk_core::bucket::{Bucket, BucketTable, Rate};
use kinfolk_core::catalog::{Sighting, Snapshot};
use kinfolk_core::code::Code;
use kinfolk_core::id::NetworkId;
use kinfolk_core::intake::{Arrival, Refusal};
use kinfolk_core::limits::AnnounceLimits;
use kinfolk_core::liveness::Standing;
use kinfolk_core::record::{Record, UnixMillis};
use rand::rngs::ChaCha20Rng;
use rand::{RngExt, SeedableRng};

mod contract;
mod frame;
mod joins;
mod lanes;
mod memory;
mod own;
#[cfg(test)]
mod tests;

use contract::Fault;
pub(crate) use contract::{Dropped, Input, Output, Surroundings};
pub(crate) use frame::FRAME_MAX;
use frame::{Gossip, Message, NAMES_MAX, Named, PayloadId, Swarm, TopicId};
use joins::Joins;
use lanes::{Lanes, Leave, Way};
use memory::{Fate, PROMISED_FOR, Promises, Seen};
use own::OwnRecord;

/// The most neighbours of a node (as in the paper on HyParView).
pub(crate) const NEIGHBOURS: usize = 5;

/// Streams that are opened on the word of others, or to mend the overlay: together with the catalog, where every peer that may be dialled is, this
/// bounds what a stranger can make this node dial (a guess).
const OPEN_RATE: Rate = Rate::new(16, Duration::from_secs(1));

/// Peers that become neighbours on their own word, each of which may displace another (a guess).
const NEWCOMER_RATE: Rate = Rate::new(64, Duration::from_millis(500));

/// Neighbours remembered for what they relay, of late ones too; about 200 bytes each.
const RELAYERS_MAX: usize = 1024;

/// How often is looked for what is over.
const SWEEP: Duration = PROMISED_FOR;

/// The machine; see the module page. A `now` that is earlier than one before counts as no time passing.
#[derive(Debug)]
pub(crate) struct Announcer {
    me: EndpointId,
    topic: TopicId,
    limits: AnnounceLimits,
    overlay: topic::State<EndpointId, ChaCha20Rng>,
    rng: ChaCha20Rng,
    /// The overlay's timers; the number keeps apart those of one moment.
    timers: BTreeMap<(Instant, u64), topic::Timer<EndpointId>>,
    timers_in_all: u64,
    lanes: Lanes,
    neighbours: BTreeSet<EndpointId>,
    seen: Seen,
    promises: Promises,
    authors: BucketTable<EndpointId>,
    relayers: BucketTable<EndpointId>,
    newcomers: Bucket,
    opens: Bucket,
    joins: Joins,
    own: OwnRecord,
    swept_at: Instant,
    is_leaving: bool,
    latest: Instant,
}

impl Announcer {
    /// An announcer without neighbours. `me` is this node, `seed` what all its choices come from.
    pub(crate) fn new(
        now: Instant,
        me: EndpointId,
        network: NetworkId,
        limits: AnnounceLimits,
        seed: [u8; 32],
    ) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let overlay_rng = ChaCha20Rng::from_rng(&mut rng);
        Self {
            me,
            topic: TopicId::of(network),
            overlay: topic::State::with_rng(me, None, config(), overlay_rng),
            rng,
            timers: BTreeMap::new(),
            timers_in_all: 0,
            lanes: Lanes::new(limits.streams),
            neighbours: BTreeSet::new(),
            seen: Seen::default(),
            promises: Promises::default(),
            authors: BucketTable::new(limits.authors),
            relayers: BucketTable::new(RELAYERS_MAX),
            newcomers: Bucket::full(now),
            opens: Bucket::full(now),
            joins: Joins::new(now),
            own: OwnRecord::new(now, &limits),
            swept_at: now,
            is_leaving: false,
            latest: now,
            limits,
        }
    }

    /// Takes what happened and writes what has to be done. What is due by now comes last.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        around: &mut Surroundings<'_>,
        input: Input,
        out: &mut Vec<Output>,
    ) {
        self.latest = self.latest.max(now);
        if self.is_leaving {
            if let Input::Received { peer, .. } = input {
                drop_for(peer, Dropped::Leaving, out);
            }
            return;
        }
        match input {
            Input::Own(record) => self.take_own(record),
            Input::Found(peer) => {
                if peer != self.me {
                    self.joins.found(peer, &mut self.rng);
                }
            }
            Input::PeerUp(peer) => self.welcome(around, peer, out),
            Input::Received { peer, frame } => {
                if let Err(Fault { reason, code }) = self.receive(around, peer, &frame, out) {
                    drop_for(peer, reason, out);
                    if let Some(code) = code {
                        self.leave(around, peer, code, out);
                    }
                }
            }
            Input::PeerGone(peer) => {
                if self.lanes.remove(&peer) {
                    self.feed(around, InEvent::PeerDisconnected(peer), out);
                }
            }
            Input::Depart(record) => {
                self.depart(around, &record, out);
                return;
            }
            Input::Timeout => {}
        }
        self.run(around, out);
    }

    /// When [`Input::Timeout`] is due.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if self.is_leaving {
            return None;
        }
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        let own = self.own.next_timeout(self.latest, !self.neighbours.is_empty());
        let join = self.joins.due_at(self.neighbours.len());
        let sweep = self.swept_at.checked_add(SWEEP);
        [timer, own, Some(join), sweep].into_iter().flatten().min()
    }

    /// The peers that announcements are exchanged with, at most [`NEIGHBOURS`].
    pub(crate) fn neighbours(&self) -> &BTreeSet<EndpointId> {
        &self.neighbours
    }

    fn take_own(&mut self, record: Record) {
        if record.id() == self.me {
            let part = self.rng.random_range(0.5..=1.0);
            self.own.set(self.latest, record, self.limits.period, part);
        }
    }

    /// Does what is due.
    fn run(&mut self, around: &mut Surroundings<'_>, out: &mut Vec<Output>) {
        let now = self.latest;
        while let Some(timer) = self.timers.first_entry()
            && timer.key().0 <= now
        {
            let timer = timer.remove();
            self.feed(around, InEvent::TimerExpired(timer), out);
        }
        if now.saturating_duration_since(self.swept_at) >= SWEEP {
            self.swept_at = now;
            self.sweep(around, out);
        }
        if self.joins.due_at(self.neighbours.len()) <= now {
            let Self { joins, neighbours, authors, rng, .. } = self;
            // Whoever was heard over the overlay a moment ago is in this part of it.
            let is_heard =
                |peer: &EndpointId| authors.get(peer).is_some_and(|bucket| !bucket.is_full(now));
            joins.sift(now, around.known.len(), neighbours.len(), is_heard, rng);
            // Not if it was for the sake of those who need not be asked.
            if joins.due_at(neighbours.len()) <= now {
                let peers = joins.pick(now, around.known, neighbours, rng);
                self.feed(around, InEvent::Command(Command::Join(peers)), out);
            }
        }
        if self.own.wants_refresh(now) {
            out.push(Output::Refresh);
        }
        if !self.neighbours.is_empty()
            && let Some(record) = self.own.announce(now)
        {
            let payload = bytes::Bytes::copy_from_slice(record.bytes());
            self.seen.remember(now, frame::payload_id(&payload), Fate::Relayed);
            self.feed(around, InEvent::Command(Command::Broadcast(payload, Scope::Swarm)), out);
        }
    }

    fn sweep(&mut self, around: &mut Surroundings<'_>, out: &mut Vec<Output>) {
        self.seen.forget(self.latest);
        self.promises.forget(self.latest);
        self.feed(around, InEvent::PeerDisconnected(self.me), out);
        for peer in self.lanes.idle(self.latest, &self.neighbours) {
            self.leave(around, peer, Code::Ok, out);
        }
    }

    /// A stream with a peer is up.
    fn welcome(&mut self, around: &mut Surroundings<'_>, peer: EndpointId, out: &mut Vec<Output>) {
        if peer == self.me {
            return;
        }
        if !self.lanes.contains(&peer) {
            self.make_room(around, out);
        }
        let (waiting, is_closing) = self.lanes.opened(self.latest, peer);
        out.extend(waiting.into_iter().map(|frame| Output::Send { peer, frame }));
        if is_closing {
            out.push(Output::Close { peer, code: Code::Ok });
        }
    }

    fn make_room(&mut self, around: &mut Surroundings<'_>, out: &mut Vec<Output>) {
        if let Some(surplus) = self.lanes.surplus(&self.neighbours) {
            drop_for(surplus, Dropped::StreamEvicted, out);
            self.leave(around, surplus, Code::Busy, out);
        }
    }

    /// Ends whatever there is with a peer.
    fn leave(
        &mut self,
        around: &mut Surroundings<'_>,
        peer: EndpointId,
        code: Code,
        out: &mut Vec<Output>,
    ) {
        if self.lanes.remove(&peer) {
            out.push(Output::Close { peer, code });
        }
        self.feed(around, InEvent::PeerDisconnected(peer), out);
    }

    fn receive(
        &mut self,
        around: &mut Surroundings<'_>,
        peer: EndpointId,
        frame: &[u8],
        out: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let lane = self.lanes.up(&peer).ok_or(Dropped::NoStream)?;
        if !lane.take_frame(self.latest) {
            return Err(Dropped::FrameRate.into());
        }
        let message = match Message::decode(frame, self.topic)? {
            Message::Swarm(message) => {
                Some(Message::Swarm(self.judge_swarm(around.known, peer, message)?))
            }
            Message::Gossip(_) if !self.neighbours.contains(&peer) => {
                return Err(Dropped::NotNeighbour.into());
            }
            Message::Gossip(message) => {
                self.judge_gossip(around, peer, message, out)?.map(Message::Gossip)
            }
        };
        if let Some(message) = message {
            let message = message.into_proto()?;
            self.feed(around, InEvent::RecvMessage(peer, message), out);
        }
        Ok(())
    }

    /// What of a message about neighbours may be heeded.
    fn judge_swarm(
        &mut self,
        known: &Snapshot,
        peer: EndpointId,
        mut message: Swarm,
    ) -> Result<Swarm, Fault> {
        let is_neighbour = self.neighbours.contains(&peer);
        let me = self.me;
        let is_known = |named: &Named| named.id != me && known.get(&named.id).is_some();
        let is_walk = matches!(message, Swarm::ForwardJoin { .. } | Swarm::Shuffle { .. });
        if is_walk && !is_neighbour {
            return Err(Dropped::NotNeighbour.into());
        }
        match &mut message {
            Swarm::Join(_) | Swarm::Neighbor { .. } => {
                let (now, rate) = (self.latest, NEWCOMER_RATE);
                if !is_neighbour && !self.newcomers.take(now, rate, rate.burst) {
                    return Err(Fault { reason: Dropped::NewcomerRate, code: Some(Code::Busy) });
                }
            }
            Swarm::ForwardJoin { peer, .. } => {
                if !is_known(peer) {
                    return Err(Dropped::Stranger.into());
                }
            }
            Swarm::Shuffle { origin, nodes, .. } => {
                if *origin == me || known.get(origin).is_none() {
                    return Err(Dropped::Stranger.into());
                }
                nodes.0.retain(is_known);
            }
            Swarm::ShuffleReply { nodes } => nodes.0.retain(is_known),
            Swarm::Disconnect { .. } => {}
        }
        Ok(message)
    }

    /// What of a message about payloads may be heeded, if anything.
    fn judge_gossip<'a>(
        &mut self,
        around: &mut Surroundings<'_>,
        peer: EndpointId,
        mut message: Gossip<'a>,
        out: &mut Vec<Output>,
    ) -> Result<Option<Gossip<'a>>, Fault> {
        match &mut message {
            Gossip::Payload { id, content, .. } => {
                self.judge_payload(around, peer, *id, content, out)?;
            }
            Gossip::Promises(promises) => {
                let now = self.latest;
                let (seen, kept) = (&self.seen, &mut self.promises);
                let lane = self.lanes.up(&peer).ok_or(Dropped::NoStream)?;
                let mut is_over = false;
                promises.0.retain(|promise| {
                    if seen.fate(&promise.id).is_some() {
                        return false;
                    }
                    let made = lane.take_promise(now).then(|| kept.make(now, peer, promise.id));
                    is_over |= made.flatten().is_none();
                    made.flatten() == Some(true)
                });
                if is_over {
                    drop_for(peer, Dropped::PromiseRate, out);
                }
                if promises.0.is_empty() {
                    return Ok(None);
                }
            }
            Gossip::Prune | Gossip::Graft { .. } => {}
        }
        Ok(Some(message))
    }

    /// Whether a payload may be passed on.
    fn judge_payload(
        &mut self,
        around: &mut Surroundings<'_>,
        peer: EndpointId,
        id: PayloadId,
        payload: &[u8],
        out: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let now = self.latest;
        self.seen.forget(now);
        match self.seen.fate(&id) {
            Some(Fate::Relayed) => {
                let sighting = self.told_again(around, payload);
                out.extend(sighting.map(|sighting| Output::Heard { sighting, from: peer }));
                return Ok(());
            }
            Some(Fate::Refused) => return Err(Dropped::Repeated.into()),
            None => {}
        }
        if self.relayers.take(now, peer, self.limits.relayer_rate) != Some(true) {
            return Err(Dropped::RelayerRate.into());
        }
        match self.verify(around, peer, payload, out) {
            Ok(sighting) => {
                self.seen.remember(now, id, Fate::Relayed);
                self.promises.keep(&id);
                out.push(Output::Heard { sighting, from: peer });
                Ok(())
            }
            Err(fault) => {
                if !may_pass_later(fault.reason) {
                    self.seen.remember(now, id, Fate::Refused);
                }
                Err(fault)
            }
        }
    }

    fn verify(
        &mut self,
        around: &mut Surroundings<'_>,
        peer: EndpointId,
        payload: &[u8],
        out: &mut Vec<Output>,
    ) -> Result<Sighting, Fault> {
        let (now, rate, clock) = (self.latest, self.limits.author_rate, around.clock);
        let claimed = Record::claimed_id(payload).and_then(|id| EndpointId::from_bytes(id).ok());
        let bucket = claimed.and_then(|author| self.authors.get(&author));
        if bucket.is_some_and(|bucket| !bucket.has(now, rate, rate.burst)) {
            return Err(Dropped::AuthorRate.into());
        }
        let arrival = Arrival { bytes: payload, source: peer, carried: Duration::ZERO, clock };
        let sighting = around.intake.admit(now, arrival, around.known)?;
        let record = sighting.record();
        if record.id() == self.me {
            out.push(Output::Heard { sighting, from: peer });
            return Err(Dropped::Own.into());
        }
        judge_record(record, now, clock, around.known, self.limits.window)?;
        match self.authors.take(now, record.id(), rate) {
            Some(true) => Ok(sighting),
            Some(false) => Err(Dropped::AuthorRate.into()),
            None => Err(Dropped::AuthorTable.into()),
        }
    }

    /// The record of a payload that was passed on before, if it names addresses that may not be used yet: whoever tells it now may be nearer.
    fn told_again(&self, around: &Surroundings<'_>, payload: &[u8]) -> Option<Sighting> {
        let author = EndpointId::from_bytes(Record::claimed_id(payload)?).ok()?;
        let entry = around.known.get(&author)?;
        let record = entry.record();
        let is_more = record.addresses().count() > entry.addresses().count();
        (record.bytes() == payload && is_more)
            .then(|| Sighting::new(record.clone(), self.latest, around.clock, Duration::ZERO))
    }

    /// Says goodbye to everybody. The tombstone goes to each neighbour whole: there is no time for promises.
    fn depart(&mut self, around: &mut Surroundings<'_>, record: &Record, out: &mut Vec<Output>) {
        self.is_leaving = true;
        if let Some(frame) = frame::encode(&Message::payload(record.bytes()), self.topic) {
            for peer in &self.neighbours {
                if self.lanes.up(peer).is_some() {
                    out.push(Output::Send { peer: *peer, frame: frame.clone() });
                }
            }
        }
        self.feed(around, InEvent::Command(Command::Quit), out);
        let neighbours = std::mem::take(&mut self.neighbours);
        out.extend(neighbours.into_iter().map(Output::NeighbourDown));
        let close = |peer| Output::Close { peer, code: Code::Ok };
        out.extend(self.lanes.clear().into_iter().map(close));
        self.timers.clear();
        out.push(Output::Departed);
    }

    /// Tells the overlay what happened, and does what it wants. It ends: whoever cannot be reached leaves the overlay's views, which are
    /// all that it asks.
    fn feed(
        &mut self,
        around: &mut Surroundings<'_>,
        event: InEvent<EndpointId>,
        out: &mut Vec<Output>,
    ) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = tokio::time::Instant::from_std(self.latest);
            let wanted: Vec<_> = self.overlay.handle(event, now).collect();
            for want in wanted {
                match want {
                    OutEvent::SendMessage(peer, message) => {
                        if !self.send(around, peer, &message, out) {
                            events.push_back(InEvent::PeerDisconnected(peer));
                        }
                    }
                    OutEvent::DisconnectPeer(peer) => {
                        if self.lanes.leave(&peer) == Leave::Closed {
                            out.push(Output::Close { peer, code: Code::Ok });
                        }
                        events.push_back(InEvent::PeerDisconnected(peer));
                    }
                    OutEvent::ScheduleTimer(after, timer) => {
                        let at = self.latest.checked_add(after).unwrap_or(self.latest);
                        self.timers_in_all = self.timers_in_all.wrapping_add(1);
                        self.timers.insert((at, self.timers_in_all), timer);
                    }
                    OutEvent::EmitEvent(Event::NeighborUp(peer)) => {
                        if self.neighbours.is_empty() {
                            self.own.tell_again(self.latest, around.clock, self.limits.window);
                        }
                        if self.neighbours.insert(peer) {
                            out.push(Output::NeighbourUp(peer));
                            self.joins.changed();
                        }
                    }
                    OutEvent::EmitEvent(Event::NeighborDown(peer)) => {
                        self.lanes.demote(self.latest, &peer);
                        if self.neighbours.remove(&peer) {
                            out.push(Output::NeighbourDown(peer));
                            self.joins.changed();
                        }
                    }
                    // Told when it was verified; and nobody sends data about peers.
                    OutEvent::EmitEvent(Event::Received(_)) | OutEvent::PeerData(..) => {}
                }
            }
        }
    }

    /// Sends a message of the overlay; false if the peer cannot be asked.
    fn send(
        &mut self,
        around: &mut Surroundings<'_>,
        peer: EndpointId,
        message: &topic::Message<EndpointId>,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(frame) = frame::encode(message, self.topic) else {
            drop_for(peer, Dropped::Unsent, out);
            return true;
        };
        let frame = match self.lanes.way(&peer, frame) {
            Way::Send(frame) => {
                out.push(Output::Send { peer, frame });
                return true;
            }
            Way::Wait => return true,
            Way::Full => {
                drop_for(peer, Dropped::Unsent, out);
                return true;
            }
            Way::None(frame) => frame,
        };
        // Nobody is dialled for the sake of a payload, or to be told that we part.
        if matches!(message, topic::Message::Gossip(_)) || message.is_disconnect() {
            return true;
        }
        if let Err(reason) = self.may_open(around.known, &peer) {
            drop_for(peer, reason, out);
            return false;
        }
        self.make_room(around, out);
        self.lanes.open(self.latest, peer, frame);
        out.push(Output::Open(peer));
        true
    }

    fn may_open(&mut self, known: &Snapshot, peer: &EndpointId) -> Result<(), Dropped> {
        let entry = known.get(peer).filter(|_| *peer != self.me).ok_or(Dropped::Stranger)?;
        if self.is_leaving {
            return Err(Dropped::Leaving);
        }
        if entry.liveness().standing(self.latest) == Standing::Doubtful {
            return Err(Dropped::Doubtful);
        }
        if !self.opens.take(self.latest, OPEN_RATE, OPEN_RATE.burst) {
            return Err(Dropped::OpenRate);
        }
        Ok(())
    }
}

/// Whether a verified record is news.
fn judge_record(
    record: &Record,
    now: Instant,
    clock: UnixMillis,
    known: &Snapshot,
    window: Duration,
) -> Result<(), Dropped> {
    if clock.since(record.issued_at()) >= window.min(record.ttl().as_duration()) {
        return Err(Dropped::Stale);
    }
    let entry = known.get(&record.id()).map(|entry| entry.record());
    let tombstone = || known.relayable_of(&record.id(), now).map(|(record, _)| record);
    let Some(before) = entry.or_else(tombstone) else { return Ok(()) };
    if record.seq() < before.seq()
        || (record.seq() == before.seq() && before.is_departure() && record != before)
    {
        return Err(Dropped::Outdated);
    }
    if record.seq() == before.seq() && record != before && !record.is_departure() {
        return Err(Dropped::Equivocation);
    }
    Ok(())
}

/// Whether a payload that is turned away for this reason may be taken when it comes again.
fn may_pass_later(reason: Dropped) -> bool {
    use kinfolk_core::record::Rejection::FromFuture;
    matches!(
        reason,
        Dropped::AuthorTable
            | Dropped::Record(Refusal::Busy | Refusal::Crowded | Refusal::Record(FromFuture))
    )
}

fn drop_for(peer: EndpointId, reason: Dropped, out: &mut Vec<Output>) {
    out.push(Output::Dropped { peer, reason });
}

/// How the overlay is run.
fn config() -> Config {
    let membership = HyparviewConfig {
        active_view_capacity: NEIGHBOURS,
        // A dial and its hello may take as long; the crate's half a second is for connections that exist.
        neighbor_request_timeout: Duration::from_secs(20),
        // Each shuffle dials a stranger, and the crate has one a minute. The catalog tells of more peers than the passive view holds, and what
        // it tells is joined, so that shuffles only mend what that misses (a guess).
        shuffle_interval: Duration::from_secs(300),
        shuffle_active_view_count: 3,
        shuffle_passive_view_count: NAMES_MAX.saturating_sub(4),
        ..HyparviewConfig::default()
    };
    let broadcast = PlumtreeConfig {
        // A round trip around the world: with less, payloads are asked for that are on their way; with more, newcomers wait (guesses).
        graft_timeout_1: Duration::from_millis(300),
        graft_timeout_2: Duration::from_millis(300),
        // Promises are put together for this long.
        dispatch_timeout: Duration::from_millis(20),
        // Its default of a second would wake an idle node as often.
        cache_evict_interval: Duration::from_secs(10),
        ..PlumtreeConfig::default()
    };
    Config { membership, broadcast, max_message_size: frame::MESSAGE_MAX }
}
