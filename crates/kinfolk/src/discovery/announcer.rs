//! Announcer: spreads new records and departures, over one stream with each of a few neighbours.
//!
//! It translates between its machine, the [`announce`](super::announce) module, and streams: each stream has a task that reads frames and one
//! that writes them. A frame that came takes a place in this actor's mailbox until it is handled, and there are few of these, so that a peer
//! that sends more is slowed down by QUIC. A peer that takes too little loses its stream. Its handlers await nothing.
//! Discovery asks it now and then whether it is well; its clock answers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use iroh::EndpointId;
use kinfolk_core::catalog::{self, Source};
use kinfolk_core::code::Code;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::record::{Reach, Record};
use kinfolk_core::walk::{Hearsay, View};
use kinfolk_core::wire::StreamMode;
use kinfolk_core::wire::frame::{self, LENGTH_BYTES};
use ractor::{ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tracing::debug;

use crate::clock::clock;
use crate::context::Context;
use crate::discovery::announce::{self, FRAME_MAX, Input, Output, Surroundings};
use crate::discovery::manager::DiscoveryMessage;
use crate::discovery::own::wall_clock;
use crate::error::OpenError;
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::local_only::local_only;
use crate::metrics::Family;
use crate::peers::link::Link;
use crate::protocol::open::{self, Options};
use crate::protocol::service::{Incoming, Service};
use crate::protocol::stream::{RecvStream, SendStream};
use crate::supervision::{OwnedTask, Pulse, lock};

/// The library's own protocol by which neighbours tell each other of records.
pub(crate) const ANNOUNCE: ProtocolName = ProtocolName::from_static("kinfolk/announce/1");

/// Frames of all peers that wait for this actor.
const WAITING_MAX: usize = 64;

/// Frames that wait for one peer to take them; a peer that is further behind is given up (a guess).
const UNSENT_MAX: usize = 256;

/// Streams that peers may have open for each that the machine has room for: one that serves, and one that is ending.
const STREAMS_PER_PEER: usize = 2;

/// How long a peer may take for one frame: to send it once it has begun, or to take it.
const FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// The actor.
pub(crate) struct Announcer;

/// What it is started with.
pub(crate) struct AnnouncerArguments {
    pub(crate) context: Arc<Context>,
    pub(crate) pulse: Arc<Pulse>,
}

/// What an announcer is told.
pub(crate) enum AnnouncerMessage {
    /// This node has signed this record of its own.
    Own(Record),
    /// There are peers in the catalog that were not.
    Found,
    /// The node leaves, and this is its tombstone; answered once the neighbours have it, or cannot be told.
    Depart(Record, RpcReplyPort<()>),
    /// A peer has opened a stream.
    Met(Incoming),
    /// The stream that this actor was opening, which has this number, is up or cannot be.
    Opened(EndpointId, u64, Result<(SendStream, RecvStream), OpenError>),
    /// A frame came. The permit is its place in this mailbox.
    Received(EndpointId, Bytes, OwnedSemaphorePermit),
    /// This stream with this peer is over.
    Lost(EndpointId, u64),
    /// The machine's next timeout is due.
    Tick,
    /// Is it well?
    Pulse,
    /// One of its tasks panicked.
    TaskPanicked(String),
}
local_only!(AnnouncerMessage);

impl From<Incoming> for AnnouncerMessage {
    fn from(stream: Incoming) -> Self {
        Self::Met(stream)
    }
}

/// The machine, and the streams that it speaks of.
pub(crate) struct AnnouncerState {
    me: ActorRef<AnnouncerMessage>,
    context: Arc<Context>,
    machine: announce::Announcer,
    streams: HashMap<EndpointId, Vec<Stream>>,
    /// Counts the streams, to tell them apart.
    streams_in_all: u64,
    opening: HashMap<EndpointId, Opening>,
    /// What the machine is to be told, in the order in which it happened.
    inputs: VecDeque<Input>,
    /// Pays for opens to peers whose addresses are hearsay: as a walker does, so that the announcer dials a victim no more often than one.
    hearsay: Hearsay,
    /// Streams that are being ended, each as the machine wants it, and who is told once they are.
    ending: Vec<([OwnedTask; 2], oneshot::Receiver<()>)>,
    places: Arc<Semaphore>,
    /// Whoever waits for the departure.
    departing: Option<RpcReplyPort<()>>,
    /// After it, no stream is wanted: one that comes would keep the session from closing.
    has_departed: bool,
    leaving: Option<OwnedTask>,
    alarm: watch::Sender<Option<Instant>>,
    ticked: Arc<Notify>,
    pulse: Arc<Pulse>,
    _clock: OwnedTask,
}

/// A stream that is being opened.
struct Opening {
    number: u64,
    is_hearsay: bool,
    _task: OwnedTask,
}

/// One stream with a peer.
struct Stream {
    number: u64,
    is_ours: bool,
    frames: mpsc::Sender<Bytes>,
    link: Arc<Link>,
    /// Resets and stops the stream instead of finishing it.
    cut: watch::Sender<Option<Code>>,
    tasks: [OwnedTask; 2],
    /// Told once the writer is done.
    written: oneshot::Receiver<()>,
}

#[ractor::actor(
    message = AnnouncerMessage,
    state = AnnouncerState,
    arguments = AnnouncerArguments
)]
impl Announcer {
    async fn pre_start(
        &self,
        myself: ActorRef<AnnouncerMessage>,
        arguments: AnnouncerArguments,
    ) -> Result<AnnouncerState, ActorProcessingErr> {
        let AnnouncerArguments { context, pulse } = arguments;
        here!(context, Point::AnnouncerPreStart).pass().await?;
        let limits = context.limits.announce.clone();
        let hearsay = Hearsay::new(context.limits.walk.hearsay);
        let places = limits.streams;
        let machine = announce::Announcer::new(
            Instant::now(),
            context.id,
            context.network,
            limits,
            rand::random(),
        );
        let alarm = watch::Sender::new(machine.next_timeout());
        let ticked = Arc::new(Notify::new());
        let here = here!(context, Point::AnnouncerClock);
        let ticking = clock(
            alarm.subscribe(),
            Arc::clone(&ticked),
            Arc::clone(&pulse),
            myself.clone(),
            || AnnouncerMessage::Tick,
        );
        let clock = OwnedTask::spawn(&myself, here, ticking, AnnouncerMessage::TaskPanicked);
        // And one for a peer that is new, so that the machine hears of it and makes room.
        let places = places.saturating_mul(STREAMS_PER_PEER).saturating_add(1);
        context.serve_own(ANNOUNCE, Service::actor(myself.clone()).concurrency(places));
        Ok(AnnouncerState {
            me: myself,
            context,
            machine,
            streams: HashMap::new(),
            streams_in_all: 0,
            opening: HashMap::new(),
            inputs: VecDeque::new(),
            hearsay,
            ending: Vec::new(),
            places: Arc::new(Semaphore::new(WAITING_MAX)),
            departing: None,
            has_departed: false,
            leaving: None,
            alarm,
            ticked,
            pulse,
            _clock: clock,
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<AnnouncerMessage>,
        message: AnnouncerMessage,
        state: &mut AnnouncerState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, message.point()).pass().await?;
        state.receive(message)
    }
}

impl Drop for AnnouncerState {
    fn drop(&mut self) {
        // A restarted one begins without neighbours.
        self.context.note_neighbours([]);
    }
}

impl AnnouncerState {
    fn receive(&mut self, message: AnnouncerMessage) -> Result<(), ActorProcessingErr> {
        use AnnouncerMessage as M;
        match message {
            M::Own(record) => self.input(Input::Own(record)),
            M::Found => {
                for peer in self.context.records.found.take() {
                    // They were the ids of records: they are valid.
                    if let Ok(peer) = EndpointId::from_bytes(&peer) {
                        self.input(Input::Found(peer));
                    }
                }
            }
            M::Depart(record, reply) => {
                self.departing = Some(reply);
                self.input(Input::Depart(record));
            }
            M::Met(stream) => self.met(stream),
            M::Opened(peer, number, opened) => self.opened(peer, number, opened),
            M::Received(peer, frame, _place) => self.input(Input::Received { peer, frame }),
            M::Lost(peer, number) => self.lost(peer, number),
            M::Tick => {
                self.input(Input::Timeout);
                self.ticked.notify_one();
            }
            M::Pulse => self.pulse.pass_on(),
            M::TaskPanicked(text) => return Err(text.into()),
        }
        Ok(())
    }

    /// Tells the machine what happened, and carries out what it says and what follows from that.
    fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
        if self.inputs.len() > 1 {
            // It follows from one that is being carried out, whose outputs come first.
            return;
        }
        while let Some(input) = self.inputs.front().cloned() {
            let mut outputs = Vec::new();
            let known = self.context.records.snapshot();
            {
                let intake = &mut lock(&self.context.intake);
                let mut around = Surroundings { known: &known, intake, clock: wall_clock() };
                self.machine.handle(Instant::now(), &mut around, input, &mut outputs);
            }
            for output in outputs {
                self.perform(output);
            }
            self.inputs.pop_front();
        }
        let due = self.machine.next_timeout();
        self.alarm.send_if_modified(|alarm| std::mem::replace(alarm, due) != due);
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Open(peer) => self.open(peer),
            Output::Send { peer, frame } => self.send(peer, frame),
            Output::Close { peer, code } => self.close(peer, code),
            Output::Heard { sighting, from } => {
                let link = self.context.directory.get(&from);
                let reach = link.map_or(Reach::World, |link| link.reach());
                let source = Source::Peer { peer: from, reach };
                self.context.note(catalog::Input::Heard { sighting, source });
            }
            Output::Refresh => self.context.refresh_own(),
            Output::NeighbourUp(peer) => {
                debug!(peer = %peer.fmt_short(), "a new neighbour");
                self.context.note_neighbours(self.machine.neighbours().iter().copied());
            }
            Output::NeighbourDown(peer) => {
                debug!(peer = %peer.fmt_short(), "a neighbour no more");
                self.context.note_neighbours(self.machine.neighbours().iter().copied());
            }
            Output::Dropped { peer, reason } => {
                debug!(peer = %peer.fmt_short(), reason = reason.name(), "announcement dropped");
                self.context.counters.count(Family::AnnouncementDropped, reason.name());
            }
            Output::Departed => self.departed(),
        }
    }

    fn open(&mut self, peer: EndpointId) {
        if self.streams.contains_key(&peer) {
            self.input(Input::PeerUp(peer));
            return;
        }
        let known = self.context.records.snapshot();
        let is_connected = |peer: &EndpointId| self.context.directory.get(peer).is_some();
        let (bootstrap, is_connected) = (&self.context.bootstrap, &is_connected);
        let view = View { known: &known, bootstrap, neighbours: &[], is_connected };
        let is_hearsay = view.is_hearsay(&peer);
        if is_hearsay && !self.hearsay.take(Instant::now()) {
            self.context.counters.count(Family::AnnouncementDropped, "hearsay");
            self.gone(peer);
            return;
        }
        let number = self.number();
        let (me, context) = (self.me.clone(), Arc::clone(&self.context));
        let opening = async move {
            let options = Options::errand().deadline(context.limits.dial_deadline);
            let opened = open::open(&context, peer.into(), ANNOUNCE, StreamMode::Acked, options);
            let _ = me.send_message(AnnouncerMessage::Opened(peer, number, opened.await));
        };
        let here = here!(self.context, Point::AnnouncerOpens);
        let task = OwnedTask::spawn(&self.me, here, opening, AnnouncerMessage::TaskPanicked);
        self.opening.insert(peer, Opening { number, is_hearsay, _task: task });
    }

    /// The stream that was being opened is up, or cannot be.
    fn opened(
        &mut self,
        peer: EndpointId,
        number: u64,
        opened: Result<(SendStream, RecvStream), OpenError>,
    ) {
        let is_wanted = |opening: &&Opening| opening.number == number;
        // One that was given up meanwhile is for nobody.
        let Some(opening) = self.opening.get(&peer).filter(is_wanted) else { return };
        let is_hearsay = opening.is_hearsay;
        self.opening.remove(&peer);
        if is_hearsay {
            self.hearsay.settle(opened.is_ok());
        }
        match opened {
            Ok((send, recv)) => self.up(peer, true, send, recv),
            Err(_) => self.gone(peer),
        }
    }

    /// A peer has opened a stream. One is enough for it: more would take the places of others.
    fn met(&mut self, stream: Incoming) {
        let Incoming { peer, mut send, mut recv, .. } = stream;
        let streams = self.streams.get(&peer);
        if streams.is_some_and(|streams| streams.iter().any(|stream| !stream.is_ours)) {
            self.context.counters.count(Family::AnnouncementDropped, "second_stream");
            send.reset(Code::Busy);
            recv.stop(Code::Busy);
            return;
        }
        self.up(peer, false, send, recv);
    }

    fn number(&mut self) -> u64 {
        self.streams_in_all = self.streams_in_all.saturating_add(1);
        self.streams_in_all
    }

    /// A stream with a peer is up.
    fn up(&mut self, peer: EndpointId, is_ours: bool, send: SendStream, recv: RecvStream) {
        if self.has_departed {
            return;
        }
        let number = self.number();
        let (frames, unsent) = mpsc::channel(UNSENT_MAX);
        let cut = watch::Sender::new(None);
        let (done, written) = oneshot::channel();
        let (over, writer_over) = oneshot::channel::<()>();
        let (me, cut_by) = (self.me.clone(), cut.subscribe());
        let writing = async move {
            write(send, unsent, cut_by).await;
            drop(over);
            let _ = done.send(());
            let _ = me.send_message(AnnouncerMessage::Lost(peer, number));
        };
        let (me, places, cut_by) = (self.me.clone(), Arc::clone(&self.places), cut.subscribe());
        let link = Arc::clone(recv.link());
        let carrier = Arc::clone(&link);
        let reading = async move {
            let tell = |frame, place| {
                me.send_message(AnnouncerMessage::Received(peer, frame, place)).is_ok()
            };
            tokio::select! {
                // First, as a stream that is cut is stopped with the code that says why.
                biased;
                () = read(recv, places, cut_by, tell) => {}
                // The session ends: a stream that has no end of its own must not keep it.
                () = link.retired() => {}
                // This side has ended its half: nobody listens any more.
                _ = writer_over => {}
            }
            let _ = me.send_message(AnnouncerMessage::Lost(peer, number));
        };
        let here = here!(self.context, Point::AnnouncerWrites);
        let writer = OwnedTask::spawn(&self.me, here, writing, AnnouncerMessage::TaskPanicked);
        let here = here!(self.context, Point::AnnouncerReads);
        let reader = OwnedTask::spawn(&self.me, here, reading, AnnouncerMessage::TaskPanicked);
        let tasks = [writer, reader];
        let stream = Stream { number, is_ours, frames, link: carrier, cut, tasks, written };
        self.streams.entry(peer).or_default().push(stream);
        self.input(Input::PeerUp(peer));
    }

    fn send(&mut self, peer: EndpointId, frame: Bytes) {
        let streams = self.streams.get(&peer).into_iter().flatten();
        if !hand_over(frame, streams.map(|stream| &stream.frames)) {
            self.end(peer, Code::Busy);
            self.gone(peer);
        }
    }

    fn close(&mut self, peer: EndpointId, code: Code) {
        if self.opening.remove(&peer).is_some_and(|opening| opening.is_hearsay) {
            self.hearsay.settle(false);
        }
        self.end(peer, code);
    }

    /// Ends all streams with a peer.
    fn end(&mut self, peer: EndpointId, code: Code) {
        for stream in self.streams.remove(&peer).into_iter().flatten() {
            self.part_with(stream, code);
        }
    }

    /// Ends a stream: finishes it behind what was sent, or resets and stops it with a code that says what was wrong.
    fn part_with(&mut self, stream: Stream, code: Code) {
        self.ending.retain(|([writer, _], _)| !writer.is_over());
        let Stream { frames, link, cut, tasks: [writer, reader], written, .. } = stream;
        // Of one that the peer dialled nobody need hear: peers end streams as often as they like.
        if link.is_errand() {
            // A Discovery that is gone takes this announcer with it.
            let _ = self.context.tell_discovery(DiscoveryMessage::ErrandOver(link));
        }
        // Before its frames end, or the writer would take it for a clean end.
        if code != Code::Ok {
            cut.send_replace(Some(code));
        }
        // Without a sender, the writer finishes what is left and ends; the reader goes with it.
        drop(frames);
        self.ending.push(([writer, reader], written));
    }

    /// One stream with a peer is over.
    fn lost(&mut self, peer: EndpointId, number: u64) {
        let Some(streams) = self.streams.get_mut(&peer) else { return };
        let Some(place) = streams.iter().position(|stream| stream.number == number) else { return };
        let stream = streams.remove(place);
        let is_last = streams.is_empty();
        self.part_with(stream, Code::Ok);
        if is_last {
            self.streams.remove(&peer);
            self.gone(peer);
        }
    }

    /// The tombstone is with the streams: tells who waits once they are written, or cannot be.
    fn departed(&mut self) {
        self.has_departed = true;
        self.opening.clear();
        let Some(reply) = self.departing.take() else { return };
        let (tasks, written): (Vec<_>, Vec<_>) = self.ending.drain(..).unzip();
        let waiting = async move {
            let _tasks = tasks;
            join_all(written).await;
            let _ = reply.send(());
        };
        let here = here!(self.context, Point::AnnouncerDeparts);
        let task = OwnedTask::spawn(&self.me, here, waiting, AnnouncerMessage::TaskPanicked);
        self.leaving = Some(task);
    }

    fn gone(&mut self, peer: EndpointId) {
        if !self.streams.contains_key(&peer) && !self.opening.contains_key(&peer) {
            self.input(Input::PeerGone(peer));
        }
    }
}

/// Hands a frame to the first writer that is not over. Of those that are, word is on its way: the frame is lost where there is no other, as
/// what they had not written is. Returns whether it was not too much for who has to take it.
fn hand_over<'a>(
    mut frame: Bytes,
    writers: impl IntoIterator<Item = &'a mpsc::Sender<Bytes>>,
) -> bool {
    for writer in writers {
        match writer.try_send(frame) {
            Ok(()) => return true,
            Err(TrySendError::Full(_)) => return false,
            Err(TrySendError::Closed(unsent)) => frame = unsent,
        }
    }
    true
}

/// The code that a stream is to be cut with. Cancel safe.
async fn told(cut: &mut watch::Receiver<Option<Code>>) -> Code {
    let code = cut.wait_for(Option::is_some).await.ok().and_then(|code| *code);
    match code {
        Some(code) => code,
        // Nobody cuts it any more.
        None => std::future::pending().await,
    }
}

/// Writes frames until there are no more, then finishes the stream; or resets it when told to.
async fn write(
    mut send: SendStream,
    mut frames: mpsc::Receiver<Bytes>,
    mut cut: watch::Receiver<Option<Code>>,
) {
    loop {
        tokio::select! {
            biased;
            code = told(&mut cut) => return send.reset(code),
            frame = frames.recv() => {
                let Some(frame) = frame else { break };
                let Ok(length) = u32::try_from(frame.len()) else { return };
                let bytes = [&length.to_be_bytes()[..], &frame[..]].concat();
                let written = tokio::time::timeout(FRAME_DEADLINE, send.write_all(&bytes)).await;
                match written {
                    Ok(Ok(())) => {}
                    // The peer has stopped it, or the link is lost.
                    Ok(Err(_)) => return,
                    Err(_) => return send.reset(Code::DeadlineExceeded),
                }
            }
        }
    }
    if send.finish().is_ok() {
        let _ = tokio::time::timeout(FRAME_DEADLINE, send.acknowledged()).await;
    }
}

/// Reads frames until the stream is over, or the peer breaks the rules of it.
async fn read(
    mut recv: RecvStream,
    places: Arc<Semaphore>,
    mut cut: watch::Receiver<Option<Code>>,
    tell: impl Fn(Bytes, OwnedSemaphorePermit) -> bool,
) {
    loop {
        let mut prefix = [0; LENGTH_BYTES];
        tokio::select! {
            biased;
            code = told(&mut cut) => return recv.stop(code),
            // Neighbours may have nothing to say for long.
            read = recv.read_exact(&mut prefix) => if read.is_err() { return },
        }
        let length = match frame::length(prefix, FRAME_MAX) {
            Ok(length) => length,
            Err(error) => return recv.stop(error.code()),
        };
        let mut body = vec![0; length];
        match tokio::time::timeout(FRAME_DEADLINE, recv.read_exact(&mut body)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => return recv.stop(Code::DeadlineExceeded),
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        if !tell(body.into(), place) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_goes_to_the_first_writer_that_is_not_over() {
        let ((first, mut read), (second, mut other)) = (mpsc::channel(8), mpsc::channel(8));
        let writers = [first, second];
        assert!(hand_over(Bytes::from_static(b"one"), &writers));
        assert_eq!(read.try_recv().unwrap(), "one");
        drop(read);
        assert!(hand_over(Bytes::from_static(b"two"), &writers));
        assert_eq!(other.try_recv().unwrap(), "two");
        drop(other);
        assert!(hand_over(Bytes::from_static(b"three"), &writers), "word of both is on its way");
    }

    #[test]
    fn a_writer_that_is_too_far_behind_is_not_passed_over() {
        let ((first, _read), (second, mut other)) = (mpsc::channel(1), mpsc::channel(1));
        let writers = [first, second];
        assert!(hand_over(Bytes::from_static(b"one"), &writers));
        assert!(!hand_over(Bytes::from_static(b"two"), &writers));
        assert!(other.try_recv().is_err(), "frames keep their order");
    }
}
