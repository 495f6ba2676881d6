//! Opening streams and making calls, in the caller's own future.
//!
//! A warm open takes a lease from the published link and touches no mailbox. Otherwise the intent waits in the peer's machine
//! until a link can carry it. When the link goes away under a stream, [`after_loss`] says whether to ask for the next one; the payload
//! stays here all the while, so that nothing is lost with a session. Every wait ends with the deadline, and dropping the
//! future cancels the intent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryFutureExt;
use iroh::{EndpointAddr, EndpointId};
use kinfolk_core::code::Code;
use kinfolk_core::id::{NetworkId, ProtocolName};
use kinfolk_core::intent::{
    Failure, Intent, IntentId, Next, Outcome, Priority, Progress, StreamLoss, Want, after_loss,
};
use kinfolk_core::ticket::Ticket;
use kinfolk_core::wire::{LENGTH_BYTES, StreamHeader, StreamMode, call_length, call_prefix};
use tokio::sync::oneshot;

use crate::context::Context;
use crate::error::{NodeClosed, OpenError, StreamError};
use crate::metrics::ProtocolCounters;
use crate::peers::link::{Lease, Link};
use crate::peers::manager::{Grant, PeerManagerMessage};
use crate::protocol::stream::{AnswerState, RecvStream, SendStream};

/// How much later than the machine the caller's future gives up waiting, so that the machine's answer, which knows the cause, comes first.
const DEADLINE_GRACE: Duration = Duration::from_millis(500);

/// Largest buffer that is reserved for a response before any of it has arrived.
const RESERVED: usize = 64 * 1024;

/// A peer, by its id alone or with addresses at which to reach it.
///
/// Addresses that come along with an open, a call or an exchange are tried like those of [`Node::add_address`](crate::Node::add_address), and kept like them until room is
/// needed: a full address book forgets the peer that was named so the longest time ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    id: EndpointId,
    address: Option<EndpointAddr>,
    /// The network that a ticket names.
    network: Option<NetworkId>,
}

impl From<EndpointId> for Peer {
    fn from(id: EndpointId) -> Self {
        Self { id, address: None, network: None }
    }
}

impl From<&EndpointId> for Peer {
    fn from(id: &EndpointId) -> Self {
        Self { id: *id, address: None, network: None }
    }
}

impl From<EndpointAddr> for Peer {
    fn from(address: EndpointAddr) -> Self {
        let id = address.id;
        Self { id, address: (!address.is_empty()).then_some(address), network: None }
    }
}

/// The member that the ticket names. Whether it is of this node's network is not looked at here: a dial to another one fails in its handshake,
/// and [`Ticket::network`] tells before.
impl From<Ticket> for Peer {
    fn from(ticket: Ticket) -> Self {
        let network = Some(ticket.network());
        Self { network, ..Self::from(EndpointAddr::from(ticket)) }
    }
}

impl From<&EndpointAddr> for Peer {
    fn from(address: &EndpointAddr) -> Self {
        Self::from(address.clone())
    }
}

impl Peer {
    /// The peer's key.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// The addresses that came along.
    pub(crate) fn address(&self) -> Option<&EndpointAddr> {
        self.address.as_ref()
    }

    /// Whether it is known to be of another network.
    pub(crate) fn is_foreign(&self, network: NetworkId) -> bool {
        self.network.is_some_and(|named| named != network)
    }

    /// Remembers the addresses, if any came along, for as long as there is room.
    pub(crate) fn name(self, context: &Context) -> Result<EndpointId, OpenError> {
        if let Some(address) = self.address {
            let full = |_| OpenError::Failed { failure: Failure::TooManyPeers, cause: None };
            context.name(address).map_err(full)?;
        }
        Ok(self.id)
    }

    /// Remembers the addresses, if any came along, as if the app had added them: a hold has to find its peer for as long as it lasts.
    pub(crate) fn configure(self, context: &Context) -> Result<EndpointId, OpenError> {
        match self.address.clone().map(|address| context.configure(address)) {
            Some(Err(_)) => self.name(context),
            _ => Ok(self.id),
        }
    }
}

/// How an open or a call is to be carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Options {
    deadline: Option<Duration>,
    priority: Priority,
    idempotent: bool,
    total: Option<Duration>,
    /// It is for the node's own ends.
    is_errand: bool,
}

impl Options {
    /// The defaults: the deadline of the limits, interactive, not idempotent.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long all of it may take; of a call with many responses, how long until the peer has taken the request.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// How long a call with many responses may take until the last of them; without this, for as long as they come. It means nothing to
    /// others.
    pub fn total(mut self, total: Duration) -> Self {
        self.total = Some(total);
        self
    }

    /// Which intents and streams of the same peer go first.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// For the node's own ends.
    pub(crate) fn errand() -> Self {
        Self { is_errand: true, ..Self::default() }
    }

    /// Says that the peer may safely act on a call twice, so that it is asked again when the answer was lost.
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    pub(crate) fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    /// When all of it is to be over by the general deadline.
    pub(crate) fn deadline_from(&self, context: &Context, now: Instant) -> Instant {
        latest(now, self.deadline.unwrap_or(context.limits.intent_deadline))
    }

    /// When the last response is to have come.
    pub(crate) fn total_from(&self, now: Instant) -> Option<Instant> {
        self.total.map(|total| latest(now, total))
    }
}

fn latest(now: Instant, within: Duration) -> Instant {
    now.checked_add(within.min(kinfolk_core::limits::LONGEST)).unwrap_or(now)
}

/// Opens a stream: acked, after the peer's answer; eager, without waiting for it, as the first read checks it.
pub(crate) async fn open(
    context: &Arc<Context>,
    peer: Peer,
    protocol: ProtocolName,
    mode: StreamMode,
    options: Options,
) -> Result<(SendStream, RecvStream), OpenError> {
    let mut ask = Ask::new(context, peer.id, &options);
    ask.is_own = protocol.is_reserved();
    ask.is_counted = !ask.is_own;
    let result = async {
        peer.name(context)?;
        ask.open(&protocol, mode).await
    };
    let result = result.await;
    ask.end(&result);
    result
}

/// Opens a stream if a session is live, and waits for the peer's ack.
pub(crate) async fn try_open(
    context: &Arc<Context>,
    peer: EndpointId,
    protocol: ProtocolName,
    options: Options,
) -> Result<(SendStream, RecvStream), OpenError> {
    let mut ask = Ask::new(context, peer, &options);
    ask.only_live = true;
    let result = ask.open(&protocol, StreamMode::Acked).await;
    ask.end(&result);
    result
}

/// Sends a request and waits for the response.
pub(crate) async fn call(
    context: &Arc<Context>,
    peer: Peer,
    protocol: ProtocolName,
    request: &[u8],
    options: Options,
) -> Result<Bytes, OpenError> {
    let mut ask = Ask::new(context, peer.id, &options);
    let result = async {
        peer.name(context)?;
        ask.call(&protocol, request).await
    };
    let result = result.await;
    ask.end(&result);
    result
}

/// Sends a request of which many responses are expected, and waits until the peer has taken it. What is returned is read behind the answer.
pub(crate) async fn call_stream(
    context: &Arc<Context>,
    peer: Peer,
    protocol: ProtocolName,
    request: &[u8],
    options: Options,
) -> Result<RecvStream, OpenError> {
    let mut ask = Ask::new(context, peer.id, &options);
    ask.deadline =
        options.total_from(Instant::now()).map_or(ask.deadline, |at| ask.deadline.min(at));
    let result = async {
        peer.name(context)?;
        match ask.request(&protocol, StreamMode::CallStream, request).await? {
            Reply::Many(responses) => Ok(responses),
            // Not to this mode.
            Reply::One(_) => Err(OpenError::Unknown),
        }
    };
    let result = result.await;
    ask.end(&result);
    result
}

/// One of several attempts to have a request answered by one peer or another.
pub(crate) struct Attempt<'a> {
    pub(crate) protocol: &'a ProtocolName,
    pub(crate) request: &'a [u8],
    pub(crate) options: &'a Options,
    /// When the response is to have come.
    pub(crate) deadline: Instant,
    /// When the request is to have been sent.
    pub(crate) reach_by: Instant,
}

impl Attempt<'_> {
    /// Asks this peer. An error comes with whether it is certain that the peer did not act on the request. What comes of it is not counted.
    pub(crate) async fn at(
        &self,
        context: &Arc<Context>,
        peer: EndpointId,
    ) -> Result<Bytes, (OpenError, bool)> {
        let mut ask = Ask::new(context, peer, self.options);
        ask.deadline = self.deadline;
        ask.reach_by = Some(self.reach_by);
        ask.is_counted = false;
        let result = ask.call(self.protocol, self.request).await;
        ask.end(&result);
        result.map_err(|error| (error, !ask.sent.load(Ordering::Relaxed)))
    }
}

/// One open or call under way. Dropped before its end, it counts as cancelled.
struct Ask<'a> {
    context: &'a Arc<Context>,
    id: IntentId,
    peer: EndpointId,
    deadline: Instant,
    /// When a link has to be there by, if that is before the deadline, as there are other peers to ask.
    reach_by: Option<Instant>,
    /// Whether payload was sent that the peer may have acted on.
    sent: AtomicBool,
    priority: Priority,
    idempotent: bool,
    is_errand: bool,
    only_live: bool,
    /// Whether the machine has it.
    waiting: bool,
    /// Whether the peer was told who this node is.
    introduced: bool,
    /// Whether the node asks for itself.
    is_own: bool,
    /// Whether its outcome is one of the app's asks, and not of a part of one.
    is_counted: bool,
    ended: bool,
}

/// What came of a request.
enum Reply {
    One(Bytes),
    /// The peer has taken it; the responses are still to be read.
    Many(RecvStream),
}

/// Why a stream could not be used, and whether payload was on it.
struct Lost {
    progress: Progress,
    loss: StreamLoss,
    link: Arc<Link>,
}

impl<'a> Ask<'a> {
    fn new(context: &'a Arc<Context>, peer: EndpointId, options: &Options) -> Self {
        Self {
            context,
            id: context.intent_id(),
            peer,
            deadline: options.deadline_from(context, Instant::now()),
            reach_by: None,
            sent: AtomicBool::new(false),
            priority: options.priority,
            idempotent: options.idempotent,
            is_errand: options.is_errand,
            only_live: false,
            waiting: false,
            introduced: false,
            is_own: false,
            is_counted: true,
            ended: false,
        }
    }

    fn end<T>(&mut self, result: &Result<T, OpenError>) {
        self.ended = true;
        self.count(&result.as_ref().err().map_or(Outcome::Done, OpenError::outcome));
    }

    fn count(&self, outcome: &Outcome) {
        if self.is_counted {
            self.context.counters.outcome(outcome);
        }
    }

    async fn open(
        &mut self,
        protocol: &ProtocolName,
        mode: StreamMode,
    ) -> Result<(SendStream, RecvStream), OpenError> {
        let header = encode_header(protocol, mode)?;
        let counters = self.counters(protocol);
        let mut last = None;
        loop {
            let lease = self.lease(last.take()).await?;
            let link = Arc::clone(lease.link());
            let attempt = async {
                let (mut send, mut recv) = self.open_raw(lease, &counters, link).await?;
                let mut written = send.write_overhead(&header).await;
                if mode == StreamMode::Acked || written.is_err() {
                    // A refusal may have stopped the header; the answer says which.
                    written = recv.answered().await;
                }
                match written {
                    Ok(()) => Ok((send, recv)),
                    Err(error) => Err(lost(&recv, Progress::NothingSent, error)),
                }
            };
            match self.within(self.deadline, attempt).await? {
                Ok(streams) => {
                    counters.opened.fetch_add(1, Ordering::Relaxed);
                    return Ok(streams);
                }
                Err(loss) => last = self.retry(loss, protocol).await?,
            }
        }
    }

    async fn call(&mut self, protocol: &ProtocolName, request: &[u8]) -> Result<Bytes, OpenError> {
        match self.request(protocol, StreamMode::Call, request).await? {
            Reply::One(response) => Ok(response),
            // Not to this mode.
            Reply::Many(_) => Err(OpenError::Unknown),
        }
    }

    async fn request(
        &mut self,
        protocol: &ProtocolName,
        mode: StreamMode,
        request: &[u8],
    ) -> Result<Reply, OpenError> {
        let too_large = || OpenError::Failed { failure: Failure::TooLarge, cause: None };
        let max = self.context.limits.call_bytes;
        let mut message = encode_header(protocol, mode)?;
        let header_length = message.len();
        message.extend_from_slice(&call_prefix(request.len(), max).map_err(|_| too_large())?);
        message.extend_from_slice(request);
        let counters = self.counters(protocol);
        let mut last = None;
        loop {
            let lease = self.lease(last.take()).await?;
            let link = Arc::clone(lease.link());
            if link.call_max().is_some_and(|max| call_prefix(request.len(), max).is_err()) {
                return Err(too_large());
            }
            let attempt = async {
                let (mut send, mut recv) = self.open_raw(lease, &counters, link).await?;
                self.sent.store(true, Ordering::Relaxed);
                let sent = send.write_overhead(&message).await;
                let _ = send.finish();
                counters.opened.fetch_add(1, Ordering::Relaxed);
                if sent.is_ok() {
                    let payload = message.len().saturating_sub(header_length);
                    let payload = u64::try_from(payload).unwrap_or(u64::MAX);
                    counters.bytes_sent.fetch_add(payload, Ordering::Relaxed);
                }
                let reply = match mode {
                    StreamMode::CallStream => recv.answered().await.map(|()| None),
                    _ => read_response(&mut recv, max).await.map(Some),
                };
                match reply {
                    Ok(Some(response)) => Ok(Reply::One(response)),
                    Ok(None) => Ok(Reply::Many(recv)),
                    Err(error) => Err(lost(&recv, Progress::PayloadSent, error)),
                }
            };
            match self.within(self.deadline, attempt).await? {
                Ok(reply) => return Ok(reply),
                Err(loss) => last = self.retry(loss, protocol).await?,
            }
        }
    }

    fn reach_by(&self) -> Instant {
        self.reach_by.unwrap_or(self.deadline)
    }

    /// Not an async function: that would hold the future twice, as its argument and within the timeout.
    fn within<F: Future>(
        &self,
        deadline: Instant,
        future: F,
    ) -> impl Future<Output = Result<F::Output, OpenError>> + use<F> {
        let _timers = self.context.timers();
        tokio::time::timeout_at(deadline.into(), future)
            .map_err(|_| OpenError::TimedOut { cause: None })
    }

    fn counters(&self, protocol: &ProtocolName) -> Arc<ProtocolCounters> {
        self.context.counters.protocol(protocol, self.context.limits.protocols)
    }

    /// Opens the stream itself. Not being able to is no loss of a stream: nothing was sent.
    async fn open_raw(
        &self,
        lease: Lease,
        counters: &Arc<ProtocolCounters>,
        link: Arc<Link>,
    ) -> Result<(SendStream, RecvStream), Lost> {
        let opening = link.connection.open_bi();
        let opened = match self.reach_by {
            // A peer that lets no stream come to an end has room for no other.
            Some(by) => self.within(by, opening).await.ok().and_then(Result::ok),
            None => opening.await.ok(),
        };
        let Some((send, recv)) = opened else {
            let loss = StreamLoss::NotOpened(link.close_code());
            return Err(Lost { progress: Progress::NothingSent, loss, link });
        };
        let reading = lease.again();
        let send = SendStream::new(send, lease, Arc::clone(counters), std::sync::Weak::new());
        send.set_priority(self.priority);
        let answer = AnswerState::Awaited;
        let recv = RecvStream::new(recv, reading, Arc::clone(counters), Bytes::new(), answer);
        Ok((send, recv))
    }

    /// A lease on a link that can carry the stream; `last` is the link that could not.
    async fn lease(&mut self, last: Option<Arc<Link>>) -> Result<Lease, OpenError> {
        let lease = self.lease_of_any(last).await?;
        if !self.is_own {
            lease.link().note_app();
        }
        Ok(lease)
    }

    async fn lease_of_any(&mut self, last: Option<Arc<Link>>) -> Result<Lease, OpenError> {
        if let Some(last) = last {
            // The machine learns of the loss by itself; until then it would name the same link again.
            self.within(self.reach_by(), last.retired()).await?;
        }
        loop {
            let live = self.context.directory.get(&self.peer);
            if let Some(lease) = live.and_then(|link| link.lease()) {
                return Ok(lease);
            }
            if self.only_live {
                let draining = self.context.is_draining();
                return Err(if draining {
                    OpenError::ShuttingDown
                } else {
                    OpenError::NotConnected
                });
            }
            let link = self.grant().await?;
            match link.lease() {
                Some(lease) => return Ok(lease),
                None => {
                    let loss = StreamLoss::NotOpened(link.close_code());
                    let lost = Lost { progress: Progress::NothingSent, loss, link };
                    self.within(self.reach_by(), self.again(lost)?.retired()).await?;
                }
            }
        }
    }

    /// Lets the machine find a link; a peer that nobody knows yet, or not any more, is waited for.
    async fn grant(&mut self) -> Result<Arc<Link>, OpenError> {
        loop {
            if !self.is_errand && self.context.may_be_found(&self.peer) {
                // Past the deadline it is as if the peer were known to nobody.
                let found = self.within(self.reach_by(), self.context.found(&self.peer)).await;
                let failed = OpenError::Failed { failure: Failure::NoAddress, cause: None };
                found.map_err(|_| failed)?;
            }
            match self.ask().await {
                Err(OpenError::Failed { failure: Failure::NoAddress, .. })
                    if !self.is_errand && self.context.may_be_found(&self.peer) => {}
                Ok(None) => {}
                Ok(Some(link)) => return Ok(link),
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks the machine once; `None` if the link that it named was gone already.
    async fn ask(&mut self) -> Result<Option<Arc<Link>>, OpenError> {
        let (reply, grant) = oneshot::channel();
        let intent = Intent {
            id: self.id,
            want: if self.is_errand { Want::Errand } else { Want::Stream },
            priority: self.priority,
            deadline: Some(self.reach_by()),
        };
        let up = self.within(self.reach_by(), self.context.manager_up()).await?;
        up.map_err(OpenError::Closed)?;
        self.waiting = true;
        let told =
            self.context.tell_manager(PeerManagerMessage::Ask { peer: self.peer, intent, reply });
        let latest = self.reach_by().checked_add(DEADLINE_GRACE).unwrap_or(self.reach_by());
        let granted = match told {
            Ok(()) => {
                self.within(latest, grant).await?.unwrap_or(Grant::Ended(Outcome::Restarted, None))
            }
            Err(_) => Grant::Ended(Outcome::Restarted, None),
        };
        self.waiting = false;
        match granted {
            Grant::Link(link) => Ok(Some(link)),
            Grant::Gone => Ok(None),
            Grant::Ended(Outcome::Restarted, _) if self.context.ended().is_some() => {
                Err(OpenError::Closed(NodeClosed(self.context.closed().await)))
            }
            Grant::Ended(Outcome::Restarted, _) if self.context.is_draining() => {
                Err(OpenError::ShuttingDown)
            }
            Grant::Ended(outcome, cause) => Err(OpenError::from_outcome(outcome, cause)),
        }
    }

    /// What to wait out before asking again, if anything, or the outcome. A peer that does not know this node is told of it, once.
    async fn retry(
        &mut self,
        lost: Lost,
        protocol: &ProtocolName,
    ) -> Result<Option<Arc<Link>>, OpenError> {
        let is_gone = matches!(
            lost.loss,
            StreamLoss::LinkLost | StreamLoss::LinkClosed(_) | StreamLoss::LinkClosedHere(_)
        );
        let is_leaving = matches!(lost.loss, StreamLoss::Refused(Code::Draining));
        let error = match self.again(lost) {
            // Others are there to ask, before this one is waited for.
            Ok(_) if is_gone && self.reach_by.is_some() => return Err(OpenError::Unknown),
            Ok(_) if is_leaving && self.reach_by.is_some() => {
                return Err(OpenError::Refused(Code::Draining));
            }
            Ok(link) => return Ok(Some(link)),
            Err(error) => error,
        };
        let is_unknown = error == OpenError::Refused(Code::UnknownPeer);
        // The exchange itself goes without, whatever a peer says to it.
        if !is_unknown || self.introduced || protocol.is_reserved() {
            return Err(error);
        }
        self.introduced = true;
        // In a box, as an exchange opens a stream itself.
        let exchange = Box::pin(self.context.sync_with(self.peer));
        match self.within(self.reach_by(), exchange).await? {
            Ok(_) => Ok(None),
            Err(_) => Err(error),
        }
    }

    /// The link to wait out before asking again, or the outcome.
    fn again(&self, lost: Lost) -> Result<Arc<Link>, OpenError> {
        match after_loss(lost.progress, self.idempotent, lost.loss) {
            Next::Again => {
                // It did not act on it, or may do so twice.
                self.sent.store(false, Ordering::Relaxed);
                Ok(lost.link)
            }
            // It may be the app of this side that did not want the peer any more.
            Next::End(Outcome::Refused(Code::Banned)) if self.context.is_banned(&self.peer) => {
                Err(OpenError::Banned)
            }
            Next::End(outcome) => {
                if matches!(outcome, Outcome::Refused(code) if code.never_served()) {
                    self.sent.store(false, Ordering::Relaxed);
                }
                Err(OpenError::from_outcome(outcome, None))
            }
        }
    }
}

impl Drop for Ask<'_> {
    fn drop(&mut self) {
        if self.waiting {
            // If the manager is away, so is what it knew of this one.
            let _ = self.context.tell_manager(PeerManagerMessage::Cancel(self.id));
        }
        if !self.ended {
            self.count(&Outcome::Cancelled);
        }
    }
}

fn encode_header(protocol: &ProtocolName, mode: StreamMode) -> Result<Vec<u8>, OpenError> {
    let header = StreamHeader::new(protocol.clone(), mode).encode();
    header.map_err(|_| OpenError::Failed { failure: Failure::TooLarge, cause: None })
}

fn lost(recv: &RecvStream, progress: Progress, error: StreamError) -> Lost {
    Lost { progress, loss: recv.loss(error), link: Arc::clone(recv.link()) }
}

async fn read_response(recv: &mut RecvStream, max: u32) -> Result<Bytes, StreamError> {
    recv.answered().await?;
    let length = read_call_length(recv, max).await?;
    let response = read_call_body(recv, length).await?;
    recv.notice_end();
    Ok(response)
}

/// Reads the length of a request or a response.
pub(crate) async fn read_call_length(
    recv: &mut RecvStream,
    max: u32,
) -> Result<usize, StreamError> {
    let mut prefix = [0; LENGTH_BYTES];
    recv.read_exact(&mut prefix).await?;
    call_length(prefix, max).map_err(|_| StreamError::TooLarge)
}

/// Reads a request or a response of this length. Memory grows with what arrives, not with what is claimed.
pub(crate) async fn read_call_body(
    recv: &mut RecvStream,
    length: usize,
) -> Result<Bytes, StreamError> {
    if length == 0 {
        return Ok(Bytes::new());
    }
    let first = recv.read_chunk(length).await?.ok_or(StreamError::Truncated)?;
    if first.len() == length {
        return Ok(first);
    }
    let mut body = Vec::with_capacity(length.min(RESERVED));
    body.extend_from_slice(&first);
    while body.len() < length {
        let rest = length.saturating_sub(body.len());
        let chunk = recv.read_chunk(rest).await?.ok_or(StreamError::Truncated)?;
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}
