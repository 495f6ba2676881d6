//! Serving the streams that a peer opens: header, admission, handler, each stream in a task of its own.
//!
//! It runs in a task that the Session owns; when the link is gone, so are its handlers, at their next await. A slow, huge or broken
//! header concerns only its stream. A handler that fails or panics ends its stream with a code, is counted and reported.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use iroh::endpoint::{RecvStream as RawRecv, SendStream as RawSend};
use kinfolk_core::code::Code;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::wire::{
    Answer, HEADER_MAX, LENGTH_BYTES, StreamHeader, StreamMode, call_prefix, frame,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

use crate::context::Context;
use crate::error::HandlerError;
use crate::error::StreamError;
use crate::events::NodeEvent;
use crate::metrics::Family;
use crate::peers::link::{Lease, Link};
use crate::protocol::open::{read_call_body, read_call_length};
use crate::protocol::service::{Handler, Incoming, Registered};
use crate::protocol::stream::{AnswerState, Orphanage, RecvStream, SendStream, wire_code};
use crate::supervision::{Latch, panic_text};

/// The library's own protocol by which a peer says that it holds the session: a stream that stays open for as long.
pub(crate) const HOLD: ProtocolName = ProtocolName::from_static("kinfolk/hold/1");

/// Takes the peer's streams until the connection is over.
pub(crate) async fn streams(context: Arc<Context>, link: Arc<Link>) {
    let places = context.limits.negotiating_per_peer.min(Semaphore::MAX_PERMITS);
    let negotiating = Arc::new(Semaphore::new(places));
    let place = || Arc::clone(&negotiating).try_acquire_owned().ok();
    let handlers = Handlers::default();
    while let Ok((send, recv)) = link.connection.accept_bi().await {
        let lease = match link.accept(&context.inbound_places) {
            Ok(lease) => lease,
            Err(code) => {
                refuse(&context, send, recv, code);
                continue;
            }
        };
        let mut negotiating = place();
        if negotiating.is_none() {
            // In a burst streams come faster than their headers are read, although those are here already: they are read now.
            tokio::task::yield_now().await;
            negotiating = place();
        }
        let Some(negotiating) = negotiating else {
            refuse(&context, send, recv, Code::Busy);
            continue;
        };
        let stream = Negotiation { lease, send, recv, negotiating };
        let (context, over) = (Arc::clone(&context), Arc::clone(&handlers.over));
        tokio::spawn(async move {
            let _served = Gauge::enter(&context.counters.streams_inbound);
            tokio::select! {
                biased;
                () = stream.run(&context) => {}
                () = over.wait() => {}
            }
        });
    }
    // The link is over: what still runs learns it from its streams, and is dropped when the session ends.
    std::future::pending().await
}

/// What serves the streams of a link; dropping it ends all of that. A `JoinSet` would wake its owner for each stream that ends.
#[derive(Default)]
struct Handlers {
    over: Arc<Latch>,
}

impl Drop for Handlers {
    fn drop(&mut self) {
        self.over.set();
    }
}

/// Counts something as present for as long as it lives.
struct Gauge<'a>(&'a AtomicUsize);

impl<'a> Gauge<'a> {
    fn enter(gauge: &'a AtomicUsize) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers with a refusal. The one byte always fits a new stream's window unless the peer closed its connection window; then the
/// stop code says the same.
fn refuse(context: &Context, mut send: RawSend, mut recv: RawRecv, code: Code) {
    context.counters.count(Family::StreamRefused, code.name());
    let answer = [Answer::Refuse(code).to_byte()];
    let _ = recv.stop(wire_code(code));
    let written = send.write_all(&answer).now_or_never();
    match written {
        Some(Ok(())) => {
            let _ = send.finish();
        }
        _ => {
            let _ = send.reset(wire_code(code));
        }
    }
}

/// A stream whose header has not been read.
struct Negotiation {
    lease: Lease,
    send: RawSend,
    recv: RawRecv,
    /// Held until the header and, for a call, the request is complete.
    negotiating: OwnedSemaphorePermit,
}

impl Negotiation {
    async fn run(mut self, context: &Arc<Context>) {
        let header =
            tokio::time::timeout(context.limits.header_deadline, read_header(&mut self.recv));
        let (header, rest) = match header.await {
            Ok(Ok(read)) => read,
            Ok(Err(code)) => return refuse(context, self.send, self.recv, code),
            Err(_) => return refuse(context, self.send, self.recv, Code::HeaderTimeout),
        };
        if header.protocol == HOLD {
            // Boxed, so that other streams need not be as large.
            return Box::pin(self.keep(context, header.mode)).await;
        }
        let Some(registered) = context.services.get(&header.protocol) else {
            return refuse(context, self.send, self.recv, Code::UnknownProtocol);
        };
        let service = Served {
            context,
            peer: self.lease.link().peer,
            protocol: header.protocol,
            registered: &registered,
        };
        // What admits is the app's: it may panic.
        let admitting = AssertUnwindSafe(|| service.admit(header.mode));
        let admitted =
            catch_unwind(admitting).unwrap_or_else(|panic| Err(service.panicked(panic.as_ref())));
        let place = match (&registered.service.handler, admitted) {
            // A call takes its place when its request is complete: a slow one keeps nobody out.
            (Handler::Call(handler), Ok(())) => {
                let Self { lease, send, recv, negotiating } = self;
                let call = Call::new(service, lease, send, recv, rest);
                return Box::pin(call.serve(negotiating, handler)).await;
            }
            (_, Ok(())) => registered.place(),
            (_, Err(code)) => Err(code),
        };
        let place = match place {
            Ok(place) => place,
            Err(code) => {
                registered.counters.refused.fetch_add(1, Ordering::Relaxed);
                return refuse(context, self.send, self.recv, code);
            }
        };
        let _active = service.active();
        drop(self.negotiating);
        let ack = [Answer::Ack.to_byte()];
        let acknowledged =
            tokio::time::timeout(context.limits.call_deadline, self.send.write_all(&ack));
        if !matches!(acknowledged.await, Ok(Ok(()))) {
            // A peer that does not even take the answer wants nothing.
            let _ = self.send.reset(wire_code(Code::Cancelled));
            return;
        }
        let Self { lease, send, recv, .. } = self;
        match &registered.service.handler {
            Handler::Stream(handler) => {
                // Only of a handler that runs here is it known how it ended; others leave an unfinished half reset at once.
                let orphanage = Arc::new(Orphanage::default());
                let incoming =
                    service.incoming(lease, send, recv, rest, Arc::downgrade(&orphanage));
                let started = catch_unwind(AssertUnwindSafe(|| handler(incoming)));
                let result = match started {
                    Ok(handling) => AssertUnwindSafe(handling).catch_unwind().await,
                    Err(panic) => Err(panic),
                };
                orphanage.reset(service.judge(result).unwrap_or(Code::Cancelled));
                drop(place);
            }
            Handler::Actor { cast, .. } => {
                // The actor keeps the stream when this task is over, and with it the place.
                lease.occupy(place);
                let incoming = service.incoming(lease, send, recv, rest, Weak::new());
                match catch_unwind(AssertUnwindSafe(|| cast(incoming))) {
                    Ok(true) => {}
                    Ok(false) => {
                        service.failed("the actor that serves the protocol is gone".to_owned());
                    }
                    Err(panic) => _ = service.panicked(panic.as_ref()),
                }
            }
            // Served above.
            Handler::Call(_) => {}
        }
    }

    /// Keeps the link leased until the peer ends the stream.
    async fn keep(mut self, context: &Context, mode: StreamMode) {
        if mode != StreamMode::Acked {
            return refuse(context, self.send, self.recv, Code::Violation);
        }
        let link = Arc::clone(self.lease.link());
        if !link.first_hold() {
            return refuse(context, self.send, self.recv, Code::Busy);
        }
        drop(self.negotiating);
        self.lease.give_up_places();
        // One byte, and nothing is ever read from it but its end: if it does not fit now, it will later or never.
        if self.send.write_all(&[Answer::Ack.to_byte()]).await.is_ok() {
            // Nothing is ever sent on it: data, the end and a reset all mean that the hold is over.
            let _ = self.recv.read_chunk(1).await;
        }
        link.hold_over();
    }
}

/// The service that a stream is for, and whose stream it is.
struct Served<'a> {
    context: &'a Arc<Context>,
    peer: iroh::EndpointId,
    protocol: ProtocolName,
    registered: &'a Registered,
}

impl<'a> Served<'a> {
    fn admit(&self, mode: StreamMode) -> Result<(), Code> {
        if !self.registered.takes(mode) {
            return Err(Code::Violation);
        }
        let service = &self.registered.service;
        if service.admits.as_ref().is_some_and(|admits| !admits(&self.peer)) {
            return Err(Code::NotAllowed);
        }
        if service.is_away() {
            return Err(Code::Busy);
        }
        Ok(())
    }

    /// Counts the stream as served, and as active for as long as the answer lives.
    fn active(&self) -> Gauge<'a> {
        let counters = &self.registered.counters;
        counters.served.fetch_add(1, Ordering::Relaxed);
        Gauge::enter(&counters.active)
    }

    fn incoming(
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
    fn judge<T>(
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

    fn panicked(&self, panic: &(dyn std::any::Any + Send)) -> Code {
        self.registered.counters.handler_panics.fetch_add(1, Ordering::Relaxed);
        self.context.counters.count(Family::Panicked, "handler");
        self.context.emit(NodeEvent::HandlerPanicked {
            peer: self.peer,
            protocol: self.protocol.clone(),
            message: panic_text(panic),
        });
        Code::HandlerPanicked
    }

    fn failed(&self, reason: String) {
        debug!(peer = %self.peer.fmt_short(), protocol = %self.protocol, %reason, "handler failed");
        self.registered.counters.handler_failures.fetch_add(1, Ordering::Relaxed);
        self.context.emit(NodeEvent::HandlerFailed {
            peer: self.peer,
            protocol: self.protocol.clone(),
            reason,
        });
    }
}

/// A call being answered.
struct Call<'a> {
    service: Served<'a>,
    send: SendStream,
    recv: RecvStream,
}

impl<'a> Call<'a> {
    fn new(service: Served<'a>, lease: Lease, send: RawSend, recv: RawRecv, rest: Bytes) -> Self {
        let Incoming { send, recv, .. } = service.incoming(lease, send, recv, rest, Weak::new());
        Self { service, send, recv }
    }

    async fn serve<Fut>(
        mut self,
        negotiating: OwnedSemaphorePermit,
        handler: impl FnOnce(iroh::EndpointId, Bytes) -> Fut,
    ) where
        Fut: Future<Output = Result<Vec<u8>, HandlerError>>,
    {
        let deadline = self.service.context.limits.call_deadline;
        let request = tokio::time::timeout(deadline, self.read_request()).await;
        // Both are kept until the handler has returned: the room that the request takes, and the protocol's place.
        let (request, _room) = match request.unwrap_or(Err(Code::HeaderTimeout)) {
            Ok(request) => request,
            Err(code) => return self.refuse(code),
        };
        let _place = match self.service.registered.place() {
            Ok(place) => place,
            Err(code) => return self.refuse(code),
        };
        let _active = self.service.active();
        self.recv.notice_end();
        drop(negotiating);
        let peer = self.service.peer;
        let answering = AssertUnwindSafe(async { handler(peer, request).await }).catch_unwind();
        let result = tokio::select! {
            biased;
            result = answering => result,
            // The caller dropped its future: nobody wants the answer.
            _ = self.send.acknowledged() => return,
        };
        if let Ok(Ok(response)) = &result {
            self.respond(response).await;
        } else if let Some(code) = self.service.judge(result) {
            self.end(code);
        }
    }

    async fn read_request(&mut self) -> Result<(Bytes, OwnedSemaphorePermit), Code> {
        let blame = |error| match error {
            StreamError::TooLarge => Code::TooLarge,
            _ => Code::Malformed,
        };
        let max = self.service.context.limits.call_bytes;
        let length = read_call_length(&mut self.recv, max).await.map_err(blame)?;
        let bytes = u32::try_from(length).map_err(|_| Code::TooLarge)?;
        let room = Arc::clone(&self.recv.link().request_room);
        let room = room.try_acquire_many_owned(bytes).map_err(|_| Code::Busy)?;
        let request = read_call_body(&mut self.recv, length).await.map_err(blame)?;
        Ok((request, room))
    }

    async fn respond(&mut self, response: &[u8]) {
        let limits = &self.service.context.limits;
        let Ok(prefix) = call_prefix(response.len(), limits.call_bytes) else {
            self.service.failed(format!("a response of {} bytes is too large", response.len()));
            self.send.reset(Code::HandlerFailed);
            return;
        };
        let mut message = Vec::with_capacity(response.len().saturating_add(8));
        message.push(Answer::Ack.to_byte());
        message.extend_from_slice(&prefix);
        message.extend_from_slice(response);
        let written = self.send.write_overhead(&message);
        let written = tokio::time::timeout(limits.call_deadline, written).await;
        if matches!(written, Ok(Ok(()))) {
            // The answer byte is not counted where it is read either.
            let sent = message.len().saturating_sub(1);
            let sent = u64::try_from(sent).unwrap_or(u64::MAX);
            self.service.registered.counters.bytes_sent.fetch_add(sent, Ordering::Relaxed);
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

/// Reads the header; what came behind it belongs to the handler.
async fn read_header(recv: &mut RawRecv) -> Result<(StreamHeader, Bytes), Code> {
    let mut read = Bytes::new();
    loop {
        if let Some(prefix) = read.first_chunk::<LENGTH_BYTES>() {
            let length = frame::length(*prefix, HEADER_MAX).map_err(|error| error.code())?;
            let whole = length.saturating_add(LENGTH_BYTES);
            if read.len() >= whole {
                let mut frame = read.split_to(whole);
                frame.advance(LENGTH_BYTES);
                let header = StreamHeader::decode(&frame).map_err(|error| error.code())?;
                return Ok((header, read));
            }
        }
        // Enough for any header, and for the payload that an eager opener sends right behind it.
        match recv.read_chunk(HEADER_MAX.saturating_mul(2)).await {
            // Nearly always all of it comes in one piece, and nothing is copied.
            Ok(Some(chunk)) if read.is_empty() => read = chunk,
            Ok(Some(chunk)) => read = [read, chunk].concat().into(),
            Ok(None) => return Err(Code::Malformed),
            Err(_) => return Err(Code::Cancelled),
        }
    }
}
