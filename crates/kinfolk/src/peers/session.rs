//! Session: the actor that owns one link, from its dial or its hello to its end.
//!
//! It translates: orders of the PeerManager into QUIC, and what happens on the connection into messages to the PeerManager. It decides
//! nothing about the peer. All waiting is done in tasks that it owns and that report back; its handlers never await the network. It
//! ends by stopping with a typed [`SessionEnd`] in its state; if it is killed or fails, dropping its state closes the connection.
//!
//! The graceful close: `Goodbye` says how many of the peer's streams were taken and closes the leases; when no lease is held any more
//! `Done` follows; whoever has sent and received `Done` closes with `Ok`.
//!
//! Of two simultaneous links one is refused as a duplicate, in the normal course of things, and what its dialler sent on it moves to the
//! other one. A close may be lost and would leave in doubt whether it was served. So the refusal is a `Goodbye` instead of a `Welcome`, which
//! QUIC repeats until it arrives, and the dialler closes.

use std::sync::Arc;
use std::time::Duration;

use iroh::endpoint::{
    ConnectError, ConnectWithOptsError, ConnectingError, Connection, ConnectionError, RecvStream,
    SendStream,
};
use iroh::{EndpointAddr, EndpointId};
use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::peer_link::{DialFailure, Direction, LinkEnd};
use kinfolk_core::wire::{
    Control, DeadLink, Extensions, Goodbye, Hello, MINOR, StreamHeader, StreamMode, Turns, Welcome,
};
use ractor::{ActorProcessingErr, ActorRef};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::accept::Pass;
use crate::context::{Context, Mailbox};
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::{Here, Injected, here};
use crate::local_only::local_only;
use crate::peers::control::{self, ControlError};
use crate::peers::link::Link;
use crate::peers::manager::PeerManagerMessage;
use crate::peers::transport::Dialler;
use crate::protocol::serve;
use crate::protocol::stream::wire_code;
use crate::supervision::OwnedTask;

/// How long after the end of its stream a hold is told again.
const HOLD_AGAIN: Duration = Duration::from_secs(1);

/// How long the dialler of a duplicate link has to close it; less than a session has to end.
const DUPLICATE_CLOSE: Duration = Duration::from_secs(1);

/// The actor.
pub(crate) struct Session;

/// What a session is started with.
pub(crate) struct SessionArguments {
    pub(crate) context: Arc<Context>,
    /// The manager that started it, and no later one, gets its reports.
    pub(crate) manager: Mailbox,
    pub(crate) link: LinkId,
    pub(crate) peer: EndpointId,
    pub(crate) incarnation: Incarnation,
    pub(crate) start: Start,
}

/// How a session gets its connection.
pub(crate) enum Start {
    /// It dials.
    Dial { dialler: Dialler, address: Option<EndpointAddr> },
    /// It takes over a connection whose hello was read.
    TakeOver { arrived: Box<Arrived>, link: Arc<Link>, welcome: bool },
}

/// An incoming connection up to its hello.
pub(crate) struct Arrived {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    pub(crate) hello: Hello,
    pub(crate) arrival: u64,
    /// Streams that the peer may have open at once, if the app bounds them for it.
    pub(crate) streams: Option<u32>,
    /// Its place at the gate, given back when the session is gone.
    pub(crate) pass: Pass,
}

impl Arrived {
    /// Ends the connection with this code; nothing of it was served.
    pub(crate) async fn refuse(mut self, code: Code) {
        if code == Code::Duplicate {
            let told = async {
                if control::write(&mut self.send, &duplicate()).await.is_ok() {
                    self.connection.closed().await;
                }
            };
            let _ = tokio::time::timeout(DUPLICATE_CLOSE, told).await;
        }
        self.connection.close(wire_code(code), code.name().as_bytes());
    }
}

/// A failure that a session knows of; one that does not downcast to this is a panic.
#[derive(Debug, Error)]
#[error("the session failed: {0}")]
pub(crate) struct SessionFailure(pub(crate) String);

impl From<Injected> for SessionFailure {
    fn from(injected: Injected) -> Self {
        Self(injected.to_string())
    }
}

/// Orders from the PeerManager, and reports of the session's own tasks.
pub(crate) enum SessionMessage {
    /// The dial is done.
    Dialled(Result<(Connection, SendStream, RecvStream), LinkEnd>),
    /// Write the hello.
    Greet(Vec<LinkId>),
    /// Welcome the parked link.
    Welcome,
    /// Tell the peer that the app holds the session, or no longer does.
    Keep(bool),
    /// Say goodbye, and let streams finish within this time.
    Drain(Code, Duration),
    /// Close now.
    Close(Code),
    /// A control frame arrived, or cannot any more.
    Heard(Result<Control, ControlError>),
    /// All streams of the draining link are over, or its deadline has passed.
    Quiet(bool),
    /// The connection is over.
    Over(ConnectionError),
    /// One of its tasks panicked.
    TaskPanicked(String),
    /// Fail, as a test asked.
    #[cfg(feature = "fault-injection")]
    Crash(crate::fault::Crash),
}
local_only!(SessionMessage);

/// What the PeerManager finds in the state of a session that stopped.
pub(crate) struct SessionState {
    context: Arc<Context>,
    manager: Mailbox,
    me: ActorRef<SessionMessage>,
    id: LinkId,
    peer: EndpointId,
    incarnation: Incarnation,
    /// How the session ended; `None` while it runs.
    pub(crate) end: Option<LinkEnd>,
    link: Option<CloseOnDrop>,
    /// Both halves of the control stream until the first frame may be written.
    control: Option<(SendStream, RecvStream)>,
    outbox: Option<Outbox>,
    /// Whether the link was welcomed, by either side.
    welcomed: bool,
    drain: Drain,
    /// Until it has its connection: the dial is large, and a finished task keeps its memory.
    dialling: Option<OwnedTask>,
    hold: Option<OwnedTask>,
    tasks: Vec<OwnedTask>,
    /// Declared last: the gate counts the connection until everything of it is gone.
    _pass: Option<Pass>,
}

/// The sending half of the control stream.
enum Outbox {
    /// Frames are written at once. A session ever writes three, so that they nearly always fit.
    Free(SendStream),
    /// The peer keeps its window shut: a task writes what did not fit, and what comes after it.
    Blocked(mpsc::Sender<Vec<u8>>),
}

/// Frames that may wait behind one that did not fit: each side ever writes three.
const CONTROL_QUEUE: usize = 4;

/// How far the graceful close is.
#[derive(Debug, Default)]
struct Drain {
    said: bool,
    heard_done: bool,
    said_done: bool,
}

/// Closes the connection when the session is gone, however it went.
struct CloseOnDrop(Arc<Link>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close_leases();
        self.0.retire();
        self.0.close(Code::Restarted);
    }
}

#[ractor::actor(message = SessionMessage, state = SessionState, arguments = SessionArguments)]
impl Session {
    async fn pre_start(
        &self,
        myself: ActorRef<SessionMessage>,
        arguments: SessionArguments,
    ) -> Result<SessionState, ActorProcessingErr> {
        let here = here!(arguments.context, Point::SessionPreStart);
        here.pass().await.map_err(SessionFailure::from)?;
        let mut state = SessionState {
            context: arguments.context,
            manager: arguments.manager,
            me: myself,
            id: arguments.link,
            peer: arguments.peer,
            incarnation: arguments.incarnation,
            end: None,
            link: None,
            control: None,
            outbox: None,
            welcomed: false,
            drain: Drain::default(),
            dialling: None,
            hold: None,
            tasks: Vec::new(),
            _pass: None,
        };
        match arguments.start {
            Start::Dial { dialler, address } => state.dial(dialler, address),
            Start::TakeOver { arrived, link, welcome } => {
                state.take_over(*arrived, link, welcome)?;
            }
        }
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<SessionMessage>,
        message: SessionMessage,
        state: &mut SessionState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, message.point()).pass().await.map_err(SessionFailure::from)?;
        match message {
            SessionMessage::Dialled(result) => self.dialled(result, state),
            SessionMessage::Greet(dead) => self.greet(dead, state)?,
            SessionMessage::Welcome => state.welcome()?,
            SessionMessage::Keep(keep) => self.keep(keep, state),
            SessionMessage::Drain(code, within) => state.drain(code, within)?,
            SessionMessage::Close(code) => self.close(code, state)?,
            SessionMessage::Heard(frame) => self.heard(frame, state)?,
            SessionMessage::Quiet(in_time) => self.quiet(in_time, state)?,
            SessionMessage::Over(error) => self.over(error, state),
            SessionMessage::TaskPanicked(text) => return Err(text.into()),
            #[cfg(feature = "fault-injection")]
            SessionMessage::Crash(crash) => crash.strike().await.map_err(SessionFailure::from)?,
        }
        Ok(())
    }
}

impl Session {
    fn dialled(
        &self,
        result: Result<(Connection, SendStream, RecvStream), LinkEnd>,
        state: &mut SessionState,
    ) {
        state.dialling = None;
        match result {
            Ok((connection, send, recv)) => {
                let link = Link::new(
                    state.id,
                    state.peer,
                    Direction::Outbound,
                    connection,
                    state.context.limits.connection_window,
                );
                let link = Arc::new(link);
                state.adopt(Arc::clone(&link));
                state.control = Some((send, recv));
                state.tell(PeerManagerMessage::Connected { link });
            }
            Err(end) => state.finish(end),
        }
    }

    fn greet(&self, dead: Vec<LinkId>, state: &mut SessionState) -> Result<(), SessionFailure> {
        let me = state.context.id;
        let hello = Control::Hello(Hello {
            minor: MINOR,
            incarnation: state.incarnation,
            n: state.id.n,
            dead: dead.iter().map(|link| DeadLink::of(link, &me)).collect(),
            extensions: Extensions::none(),
        });
        state.start_control();
        state.say(hello)
    }

    fn keep(&self, keep: bool, state: &mut SessionState) {
        state.hold = match &state.link {
            Some(link) if keep && !state.drain.said => Some(
                state.task(here!(state.context, Point::SessionHolds), hold(Arc::clone(&link.0))),
            ),
            _ => None,
        };
    }

    fn close(&self, code: Code, state: &mut SessionState) -> Result<(), SessionFailure> {
        let unanswered = state.direction() == Direction::Inbound && !state.welcomed;
        if unanswered && code == Code::Duplicate && !state.drain.said {
            return state.refuse_duplicate();
        }
        state.close(code, LinkEnd::Closed(code));
        Ok(())
    }

    fn heard(
        &self,
        frame: Result<Control, ControlError>,
        state: &mut SessionState,
    ) -> Result<(), SessionFailure> {
        match frame {
            Ok(Control::Welcome(welcome)) => state.welcomed(&welcome),
            Ok(Control::Goodbye(goodbye)) => state.peer_drains(&goodbye)?,
            Ok(Control::Done(_)) => {
                state.drain.heard_done = true;
                state.close_if_done();
            }
            Err(ControlError::Malformed(error)) => state.blame(error.code()),
            Ok(Control::Hello(_)) | Err(ControlError::OutOfTurn(_) | ControlError::Ended) => {
                state.blame(Code::Violation);
            }
            // The connection's own end says more.
            Err(ControlError::Lost) => {}
        }
        Ok(())
    }

    fn quiet(&self, in_time: bool, state: &mut SessionState) -> Result<(), SessionFailure> {
        if in_time {
            state.drain.said_done = true;
            state.say(Control::Done(Extensions::none()))?;
            state.close_if_done();
        } else {
            state.close(Code::DrainDeadline, LinkEnd::Closed(Code::DrainDeadline));
        }
        Ok(())
    }

    fn over(&self, error: ConnectionError, state: &mut SessionState) {
        let end = match error {
            ConnectionError::ApplicationClosed(close) => {
                match Code::from_wire(close.error_code.into_inner()) {
                    // A received `Ok` counts as `Done`: the peer has read everything.
                    Code::Ok if state.drain.said => LinkEnd::Drained,
                    code => LinkEnd::ClosedByPeer(code),
                }
            }
            ConnectionError::LocallyClosed => LinkEnd::Closed(Code::Unspecified),
            _ => LinkEnd::Lost,
        };
        state.finish(end);
    }
}

impl SessionState {
    fn dial(&mut self, dialler: Dialler, address: Option<EndpointAddr>) {
        self.context.counters.dials_started.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let me = self.me.clone();
        self.dialling = Some(self.task(here!(self.context, Point::SessionDials), async move {
            let result = match address {
                Some(address) => connect(&dialler, address).await,
                None => Err(LinkEnd::DialFailed(DialFailure::NoAddress)),
            };
            let _ = me.send_message(SessionMessage::Dialled(result));
        }));
    }

    fn take_over(
        &mut self,
        arrived: Arrived,
        link: Arc<Link>,
        welcome: bool,
    ) -> Result<(), SessionFailure> {
        self._pass = Some(arrived.pass);
        self.adopt(link);
        self.control = Some((arrived.send, arrived.recv));
        self.start_control();
        if welcome { self.welcome() } else { Ok(()) }
    }

    /// Owns the connection from now on, and watches for its end.
    fn adopt(&mut self, link: Arc<Link>) {
        let me = self.me.clone();
        let closed = link.connection.weak_handle().closed();
        self.tasks.push(self.task(here!(self.context, Point::SessionWatches), async move {
            if let Some(closed) = closed.await {
                let _ = me.send_message(SessionMessage::Over(closed.reason));
            }
        }));
        self.link = Some(CloseOnDrop(link));
    }

    /// Starts to read the control stream, and lets frames be written.
    fn start_control(&mut self) {
        let Some((send, mut recv)) = self.control.take() else { return };
        // QUIC sends strictly by priority: no stream of the app may keep a goodbye from leaving. It fails only on a dead stream.
        let _ = send.set_priority(i32::MAX);
        self.outbox = Some(Outbox::Free(send));
        let me = self.me.clone();
        let mut turns = Turns::new(self.direction() == Direction::Outbound);
        self.tasks.push(self.task(here!(self.context, Point::SessionReads), async move {
            loop {
                let frame = control::read(&mut recv).await.and_then(|frame| Ok(turns.take(frame)?));
                let over = frame.is_err();
                if me.send_message(SessionMessage::Heard(frame)).is_err() || over {
                    return;
                }
            }
        }));
    }

    fn direction(&self) -> Direction {
        if self.id.dialler == self.context.id { Direction::Outbound } else { Direction::Inbound }
    }

    fn welcome(&mut self) -> Result<(), SessionFailure> {
        self.say(Control::Welcome(Welcome {
            minor: MINOR,
            incarnation: self.incarnation,
            call_max: self.context.limits.call_bytes,
            extensions: Extensions::none(),
        }))?;
        self.serve();
        Ok(())
    }

    fn welcomed(&mut self, welcome: &Welcome) {
        if let Some(link) = &self.link {
            link.0.note_call_max(welcome.call_max);
        }
        self.serve();
        self.tell(PeerManagerMessage::Welcomed {
            link: self.id,
            incarnation: welcome.incarnation,
            arrival: self.context.arrival(),
        });
    }

    /// Serves the peer's streams from now on.
    fn serve(&mut self) {
        self.welcomed = true;
        if let Some(link) = &self.link {
            let serving = serve::streams(Arc::clone(&self.context), Arc::clone(&link.0));
            self.tasks.push(self.task(here!(self.context, Point::SessionServes), serving));
        }
    }

    fn peer_drains(&mut self, goodbye: &Goodbye) -> Result<(), SessionFailure> {
        if !self.welcomed && self.direction() == Direction::Inbound {
            self.blame(Code::Violation);
            return Ok(());
        }
        if let Some(link) = &self.link {
            link.0.note_served_there(if self.welcomed { goodbye.served } else { 0 });
        }
        if !self.welcomed {
            self.close(goodbye.code, LinkEnd::ClosedByPeer(goodbye.code));
            return Ok(());
        }
        self.tell(PeerManagerMessage::Draining { link: self.id, code: goodbye.code });
        self.drain(Code::Draining, goodbye.within().min(self.context.limits.drain_deadline))
    }

    /// Says goodbye, once, and waits for the streams in tasks.
    fn drain(&mut self, code: Code, within: Duration) -> Result<(), SessionFailure> {
        let Some(link) = self.link.as_ref().map(|link| Arc::clone(&link.0)) else {
            self.finish(LinkEnd::Closed(code));
            return Ok(());
        };
        if !self.welcomed && !link.is_acknowledged() {
            // Nothing is promised yet.
            self.close(code, LinkEnd::Closed(code));
            return Ok(());
        }
        if std::mem::replace(&mut self.drain.said, true) {
            return Ok(());
        }
        self.hold = None;
        let served = link.close_leases();
        link.retire();
        self.say(Control::Goodbye(Goodbye::new(code, served, within)))?;
        let me = self.me.clone();
        self.tasks.push(self.task(here!(self.context, Point::SessionDrains), async move {
            let deadline = tokio::time::sleep(within);
            tokio::pin!(deadline);
            tokio::select! {
                () = link.drained() => {
                    let _ = me.send_message(SessionMessage::Quiet(true));
                    // The peer has to say `Done` as well, by the same deadline.
                    deadline.await;
                }
                () = &mut deadline => {}
            }
            let _ = me.send_message(SessionMessage::Quiet(false));
        }));
        Ok(())
    }

    /// Tells the dialler that its link is a duplicate, and gives it time to close it.
    fn refuse_duplicate(&mut self) -> Result<(), SessionFailure> {
        self.drain.said = true;
        self.end = Some(LinkEnd::Closed(Code::Duplicate));
        self.say(duplicate())?;
        let me = self.me.clone();
        self.tasks.push(self.task(here!(self.context, Point::SessionRefuses), async move {
            tokio::time::sleep(DUPLICATE_CLOSE).await;
            let _ = me.send_message(SessionMessage::Close(Code::Duplicate));
        }));
        Ok(())
    }

    fn close_if_done(&mut self) {
        if self.drain.said_done && self.drain.heard_done {
            self.close(Code::Ok, LinkEnd::Drained);
        }
    }

    /// The peer broke the protocol.
    fn blame(&mut self, code: Code) {
        self.close(code, LinkEnd::PeerMisbehaved(code));
    }

    fn close(&mut self, code: Code, end: LinkEnd) {
        if let Some(link) = &self.link {
            link.0.close(code);
        }
        self.finish(end);
    }

    fn finish(&mut self, end: LinkEnd) {
        self.end.get_or_insert(end);
        self.me.stop(None);
    }

    /// Writes a control frame, now or as soon as QUIC has room for it.
    fn say(&mut self, frame: Control) -> Result<(), SessionFailure> {
        // Without an outbox the connection is over, or has not begun; its end is reported by itself.
        let Some(outbox) = self.outbox.take() else { return Ok(()) };
        let bytes = frame.encode().map_err(|error| SessionFailure(error.to_string()))?;
        self.outbox = match outbox {
            Outbox::Free(mut send) => match control::write_now(&mut send, &bytes) {
                Ok(written) if written == bytes.len() => Some(Outbox::Free(send)),
                Ok(written) => {
                    let (outbox, mut later) = mpsc::channel::<Vec<u8>>(CONTROL_QUEUE);
                    self.tasks.push(self.task(
                        here!(self.context, Point::SessionWrites),
                        async move {
                            let mut rest = bytes.get(written..).unwrap_or_default().to_vec();
                            while send.write_all(&rest).await.is_ok() {
                                let Some(next) = later.recv().await else { return };
                                rest = next;
                            }
                        },
                    ));
                    Some(Outbox::Blocked(outbox))
                }
                Err(_) => None,
            },
            Outbox::Blocked(queue) => match queue.try_send(bytes) {
                Ok(()) => Some(Outbox::Blocked(queue)),
                Err(TrySendError::Closed(_)) => None,
                Err(TrySendError::Full(_)) => {
                    return Err(SessionFailure(
                        "more control frames than a session writes".to_owned(),
                    ));
                }
            },
        };
        Ok(())
    }

    /// A task that ends with this session, and whose panic is the session's.
    fn task(&self, here: Here, future: impl Future<Output = ()> + Send + 'static) -> OwnedTask {
        OwnedTask::spawn(&self.me, here, future, SessionMessage::TaskPanicked)
    }

    fn tell(&self, message: PeerManagerMessage) {
        // If the manager is gone, this session is being killed.
        let _ = self.manager.send(message);
    }
}

/// What refuses a link as a duplicate.
fn duplicate() -> Control {
    Control::Goodbye(Goodbye::new(Code::Duplicate, 0, Duration::ZERO))
}

async fn connect(
    dialler: &Dialler,
    address: EndpointAddr,
) -> Result<(Connection, SendStream, RecvStream), LinkEnd> {
    let dialled = dialler.dial(address).await;
    let connection = dialled.map_err(|error| LinkEnd::DialFailed(dial_failure(&error)))?;
    // The control stream is the first, whatever is opened next.
    match connection.open_bi().await {
        Ok((send, recv)) => Ok((connection, send, recv)),
        Err(ConnectionError::ApplicationClosed(close)) => {
            Err(LinkEnd::ClosedByPeer(Code::from_wire(close.error_code.into_inner())))
        }
        Err(_) => Err(LinkEnd::Lost),
    }
}

fn dial_failure(error: &ConnectError) -> DialFailure {
    match error {
        ConnectError::Connect { source: ConnectWithOptsError::SelfConnect { .. }, .. } => {
            DialFailure::SelfDial
        }
        ConnectError::Connect { source: ConnectWithOptsError::NoAddress { .. }, .. } => {
            DialFailure::NoAddress
        }
        ConnectError::Connecting {
            source: ConnectingError::ConnectionError { source, .. },
            ..
        }
        | ConnectError::Connection { source, .. } => connection_failure(source),
        ConnectError::Connecting { source: ConnectingError::HandshakeFailure { .. }, .. } => {
            DialFailure::WrongIdentity
        }
        _ => DialFailure::Other,
    }
}

/// Whether two nodes of different networks or major versions met.
pub(crate) fn is_no_common_protocol(error: &ConnectionError) -> bool {
    connection_failure(error) == DialFailure::NoCommonProtocol
}

/// TLS alerts of RFC 8446 §6, as QUIC carries them: 0x100 plus the alert (RFC 9001 §4.8).
fn connection_failure(error: &ConnectionError) -> DialFailure {
    const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
    const BAD_CERTIFICATE: u64 = 0x100 + 42;
    const CERTIFICATE_UNKNOWN: u64 = 0x100 + 46;
    const UNKNOWN_CA: u64 = 0x100 + 48;
    const CONNECTION_REFUSED: u64 = 0x2;
    let code = match error {
        ConnectionError::TimedOut => return DialFailure::TimedOut,
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        ConnectionError::TransportError(error) => u64::from(error.code),
        _ => return DialFailure::Other,
    };
    match code {
        NO_APPLICATION_PROTOCOL => DialFailure::NoCommonProtocol,
        BAD_CERTIFICATE | CERTIFICATE_UNKNOWN | UNKNOWN_CA => DialFailure::WrongIdentity,
        CONNECTION_REFUSED => DialFailure::Refused,
        _ => DialFailure::Other,
    }
}

/// Keeps a stream of the library's own open, so that the peer sees the session as used. A peer that refuses it, as it may for a
/// moment, is asked again.
async fn hold(link: Arc<Link>) {
    let Ok(header) = StreamHeader::new(serve::HOLD, StreamMode::Acked).encode() else { return };
    let Some(_lease) = link.lease() else { return };
    link.note_app();
    while let Ok((mut send, mut recv)) = link.connection.open_bi().await {
        if send.write_all(&header).await.is_ok() {
            // One byte of answer; after an ack nothing more comes until the peer lets go.
            while let Ok(Some(_)) = recv.read_chunk(1).await {}
        }
        drop((send, recv));
        tokio::time::sleep(HOLD_AGAIN).await;
    }
}
