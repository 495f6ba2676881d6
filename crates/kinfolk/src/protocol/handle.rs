//! One stream with its handler: run, watched, ended with a code if the handler fails or panics, counted and reported.
//!
//! Whoever reads headers has admitted the stream already; nothing here decides whether it is served.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use iroh::EndpointId;
use iroh::endpoint::{RecvStream as RawRecv, SendStream as RawSend};
use kinfolk_core::code::Code;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::wire::{Answer, StreamMode, call_prefix};
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use crate::context::Context;
use crate::error::{HandlerError, StreamError};
use crate::events::NodeEvent;
use crate::metrics::{Family, ProtocolCounters};
use crate::peers::link::Lease;
use crate::protocol::open::{read_call_body, read_call_length};
use crate::protocol::places::Place;
use crate::protocol::respond::respond;
use crate::protocol::service::{Handler, Incoming, Registered};
use crate::protocol::stream::{AnswerState, Orphanage, RecvStream, SendStream};
use crate::supervision::{lock, panic_text};

/// The service that a stream is for, and whose stream it is.
pub(crate) struct Served {
    pub(crate) context: Arc<Context>,
    pub(crate) peer: EndpointId,
    pub(crate) protocol: ProtocolName,
    pub(crate) registered: Arc<Registered>,
}

impl Served {
    /// Whether the app serves this stream, if it has room.
    pub(crate) fn admit(&self, mode: StreamMode) -> Result<(), Code> {
        if !self.registered.takes(mode) {
            return Err(Code::Violation);
        }
        let service = &self.registered.service;
        if service.admits.as_ref().is_some_and(|admits| !admits(&self.peer)) {
            return Err(Code::NotAllowed);
        }
        if let Some(admits) = &service.admits_record {
            let known = self.context.records.snapshot();
            let entry = known.get(&self.peer).ok_or(Code::UnknownPeer)?;
            if !admits(entry.record()) {
                return Err(Code::NotAllowed);
            }
        }
        if service.is_away() {
            return Err(Code::Busy);
        }
        Ok(())
    }

    /// Counts the stream as served, and as active for as long as the answer lives.
    pub(crate) fn active(&self) -> Active {
        let counters = &self.registered.counters;
        counters.served.fetch_add(1, Ordering::Relaxed);
        counters.active.fetch_add(1, Ordering::Relaxed);
        Active(Arc::clone(counters))
    }

    pub(crate) fn incoming(
        &self,
        lease: Lease,
        send: RawSend,
        recv: RawRecv,
        rest: Bytes,
        orphanage: Weak<Orphanage>,
    ) -> Incoming {
        let counters = &self.registered.counters;
        let recv =
            RecvStream::new(recv, lease.again(), Arc::clone(counters), rest, AnswerState::Accepted);
        let send = SendStream::new(send, lease, Arc::clone(counters), orphanage);
        Incoming { peer: self.peer, protocol: self.protocol.clone(), send, recv }
    }

    /// Counts and reports how a handler ended; the code that its stream ends with, if it failed.
    pub(crate) fn judge<T>(
        &self,
        result: Result<Result<T, HandlerError>, Box<dyn std::any::Any + Send>>,
    ) -> Option<Code> {
        match result {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => {
                self.failed(error.to_string());
                Some(Code::HandlerFailed)
            }
            Err(panic) => Some(self.panicked(panic.as_ref())),
        }
    }

    pub(crate) fn panicked(&self, panic: &(dyn std::any::Any + Send)) -> Code {
        self.registered.counters.handler_panics.fetch_add(1, Ordering::Relaxed);
        self.context.counters.count(Family::Panicked, "handler");
        self.context.emit(NodeEvent::HandlerPanicked {
            peer: self.peer,
            protocol: self.protocol.clone(),
            message: panic_text(panic),
        });
        Code::HandlerPanicked
    }

    pub(crate) fn failed(&self, reason: String) {
        debug!(peer = %self.peer.fmt_short(), protocol = %self.protocol, %reason, "handler failed");
        self.registered.counters.handler_failures.fetch_add(1, Ordering::Relaxed);
        self.context.emit(NodeEvent::HandlerFailed {
            peer: self.peer,
            protocol: self.protocol.clone(),
            reason,
        });
    }
}

/// Counts a stream as present for as long as it lives.
pub(crate) struct Present(Arc<Context>);

impl Present {
    pub(crate) fn enter(context: Arc<Context>) -> Self {
        context.counters.streams_inbound.fetch_add(1, Ordering::Relaxed);
        Self(context)
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.counters.streams_inbound.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a stream as active for as long as it lives.
pub(crate) struct Active(Arc<ProtocolCounters>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream on its way to its handler.
pub(crate) struct Handling {
    pub(crate) served: Served,
    pub(crate) incoming: Incoming,
    /// Where an unfinished half goes, if the handler's end is known here.
    pub(crate) orphanage: Option<Arc<Orphanage>>,
    pub(crate) place: Place,
    pub(crate) active: Active,
    pub(crate) present: Present,
}

impl Handling {
    /// Tells the peer that the stream is accepted; false if it wants nothing any more.
    pub(crate) async fn acknowledge(&mut self) -> bool {
        self.incoming.send.write_overhead(&[Answer::Ack.to_byte()]).await.is_ok()
    }

    /// Runs the handler to its end.
    #[allow(clippy::manual_async_fn, reason = "an async function would hold all of this twice")]
    pub(crate) fn run(self) -> impl Future<Output = ()> + Send {
        async move {
            let _counted = (self.active, self.present);
            let served = &self.served;
            let (incoming, place) = (self.incoming, self.place);
            match &served.registered.service.handler {
                Handler::Stream(handler) => {
                    let started = catch_unwind(AssertUnwindSafe(|| handler(incoming)));
                    let result = match started {
                        Ok(handling) => AssertUnwindSafe(handling).catch_unwind().await,
                        Err(panic) => Err(panic),
                    };
                    let code = served.judge(result).unwrap_or(Code::Cancelled);
                    if let Some(orphanage) = self.orphanage {
                        orphanage.reset(code);
                    }
                    drop(place);
                }
                Handler::Actor { cast, .. } => {
                    // The actor keeps the stream when this is over, and with it the place.
                    incoming.send.occupy(place);
                    match catch_unwind(AssertUnwindSafe(|| cast(incoming))) {
                        Ok(true) => {}
                        Ok(false) => {
                            served.failed("the actor that serves the protocol is gone".to_owned());
                        }
                        Err(panic) => _ = served.panicked(panic.as_ref()),
                    }
                }
                // Not served as a stream.
                Handler::Call(_) | Handler::Responses(_) => {}
            }
        }
    }
}

/// A call being answered.
pub(crate) struct Call {
    service: Served,
    send: SendStream,
    recv: RecvStream,
    _present: Present,
}

impl Call {
    pub(crate) fn new(service: Served, incoming: Incoming, present: Present) -> Self {
        Self { service, send: incoming.send, recv: incoming.recv, _present: present }
    }

    /// Reads the request, lets the handler answer it, and sends that. `negotiating` is given back when the request is here.
    pub(crate) async fn serve(mut self, negotiating: OwnedSemaphorePermit) {
        let deadline = self.service.context.limits.call_deadline;
        let request = tokio::time::timeout(deadline, self.read_request()).await;
        // Both are kept until the handler has returned: the room that the request takes, and the protocol's place. But many responses may go on for long
        // after the request is of use to anybody.
        let (request, room) = match request.unwrap_or(Err(Code::HeaderTimeout)) {
            Ok(request) => request,
            Err(code) => return self.refuse(code),
        };
        if self.recv.link().responses.is_full() {
            return self.refuse(Code::Busy);
        }
        let _place = match self.service.registered.place(self.service.peer) {
            Ok(place) => place,
            Err(code) => return self.refuse(code),
        };
        let _active = self.service.active();
        self.recv.notice_end();
        drop(negotiating);
        let registered = Arc::clone(&self.service.registered);
        let handler = match &registered.service.handler {
            Handler::Call(handler) => handler,
            Handler::Responses(handler) => {
                let (request, _until_over) = Lodged::in_room(request, room);
                return respond(&self.service, &**handler, request, &mut self.send).await;
            }
            Handler::Stream(_) | Handler::Actor { .. } => return,
        };
        let (peer, _room) = (self.service.peer, room);
        let answering = AssertUnwindSafe(async { handler(peer, request).await }).catch_unwind();
        let result = tokio::select! {
            biased;
            result = answering => result,
            // The caller dropped its future: nobody wants the answer.
            _ = self.send.acknowledged() => return,
        };
        match result {
            Ok(Ok(response)) => self.respond(response.into()).await,
            failed => {
                if let Some(code) = self.service.judge(failed) {
                    self.end(code);
                }
            }
        }
    }

    async fn read_request(&mut self) -> Result<(Bytes, OwnedSemaphorePermit), Code> {
        let blame = |error| match error {
            StreamError::TooLarge => Code::TooLarge,
            StreamError::Truncated => Code::Malformed,
            // The caller gave up.
            _ => Code::Cancelled,
        };
        let max = self.service.context.limits.call_bytes;
        let length = read_call_length(&mut self.recv, max).await.map_err(blame)?;
        let bytes = u32::try_from(length).map_err(|_| Code::TooLarge)?;
        let room = Arc::clone(&self.recv.link().request_room);
        let room = room.try_acquire_many_owned(bytes).map_err(|_| Code::Busy)?;
        let request = read_call_body(&mut self.recv, length).await.map_err(blame)?;
        Ok((request, room))
    }

    async fn respond(&mut self, response: Bytes) {
        let limits = &self.service.context.limits;
        let Ok(prefix) = call_prefix(response.len(), limits.call_bytes) else {
            self.service.failed(format!("a response of {} bytes is too large", response.len()));
            self.send.reset(Code::HandlerFailed);
            return;
        };
        let _waiting = self.recv.link().responses.wait(response.len());
        // The answer byte is not counted where it is read either.
        let sent = prefix.len().saturating_add(response.len());
        let head = [&[Answer::Ack.to_byte()][..], &prefix].concat();
        let written = self.send.write_chunks_overhead([head.into(), response]);
        let written = tokio::time::timeout(limits.call_deadline, written).await;
        let counters = &self.service.registered.counters;
        if written.is_err() {
            counters.responses_untaken.fetch_add(1, Ordering::Relaxed);
            self.send.reset(Code::DeadlineExceeded);
        } else if matches!(written, Ok(Ok(()))) {
            let sent = u64::try_from(sent).unwrap_or(u64::MAX);
            counters.bytes_sent.fetch_add(sent, Ordering::Relaxed);
            let _ = self.send.finish();
        }
    }

    /// The handler never had it.
    fn refuse(self, code: Code) {
        self.service.registered.counters.refused.fetch_add(1, Ordering::Relaxed);
        self.service.context.counters.count(Family::StreamRefused, code.name());
        self.end(code);
    }

    fn end(mut self, code: Code) {
        self.send.reset(code);
        self.recv.stop(code);
    }
}

/// The bytes of a request, in the room that they take. It is given back with the first of those two that share it: the bytes, once nobody has any of them,
/// and one without bytes, which the call keeps for as long as it lasts.
struct Lodged {
    bytes: Bytes,
    room: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Lodged {
    /// The same bytes, which give their room back, and what does so at the end of the call if the app still has some.
    fn in_room(bytes: Bytes, room: OwnedSemaphorePermit) -> (Bytes, Self) {
        let room = Arc::new(Mutex::new(Some(room)));
        let until_over = Self { bytes: Bytes::new(), room: Arc::clone(&room) };
        (Bytes::from_owner(Self { bytes, room }), until_over)
    }
}

impl AsRef<[u8]> for Lodged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lodged {
    fn drop(&mut self) {
        lock(&self.room).take();
    }
}
