//! Serving the streams that a peer opens: header, admission, answer, and a handler in a task of its own.
//!
//! It runs in a task that the Session owns; when the link is gone, so are its handlers, at their next await. A slow, huge or broken
//! header concerns only its stream. Nearly always the header comes along with the stream; then everything up to the answer happens at once,
//! without another task in between.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use iroh::endpoint::{RecvStream as RawRecv, SendStream as RawSend};
use kinfolk_core::code::Code;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::wire::{Answer, HEADER_MAX, LENGTH_BYTES, StreamHeader, StreamMode, frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::context::Context;
use crate::metrics::Family;
use crate::peers::link::{Lease, Link};
use crate::protocol::handle::{Call, Handling, Present, Served};
use crate::protocol::service::Handler;
use crate::protocol::stream::{Orphanage, wire_code};
use crate::supervision::Latch;

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
            // In a burst of calls, requests that are here already may still have to be read by the tasks that wait for them.
            tokio::task::yield_now().await;
            negotiating = place();
        }
        let Some(negotiating) = negotiating else {
            refuse(&context, send, recv, Code::Busy);
            continue;
        };
        let present = Present::enter(Arc::clone(&context));
        let header = Header { recv, read: Bytes::new() };
        let mut stream = Negotiation { present, lease, send, header, negotiating };
        match stream.header.read().now_or_never() {
            Some(header) => {
                if let Some(admitted) = stream.decide(header) {
                    handlers.spawn(admitted.serve());
                }
            }
            None => handlers.spawn(Box::pin(stream.wait())),
        }
    }
    // The link is over: what still runs learns it from its streams, and is dropped when the session ends.
    std::future::pending().await
}

/// A stream being served, in a box, so that none needs to be as large as the largest kind.
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What serves the streams of a link; dropping it ends all of that. A `JoinSet` would wake its owner for each stream that ends.
#[derive(Default)]
struct Handlers {
    over: Arc<Latch>,
}

impl Handlers {
    fn spawn(&self, mut serving: Serving) {
        let over = Arc::clone(&self.over);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = &mut serving => {}
                () = over.wait() => {}
            }
        });
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        self.over.set();
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
    present: Present,
    lease: Lease,
    send: RawSend,
    header: Header,
    /// Held until the header and, for a call, the request is complete.
    negotiating: OwnedSemaphorePermit,
}

impl Negotiation {
    /// Serves the stream once its header is here.
    async fn wait(mut self) {
        let deadline = self.present.context().limits.header_deadline;
        let header = tokio::time::timeout(deadline, self.header.read()).await;
        if let Some(admitted) = self.decide(header.unwrap_or(Err(Code::HeaderTimeout))) {
            admitted.serve().await;
        }
    }

    /// Admits the stream and answers it, or refuses it.
    fn decide(self, header: Result<StreamHeader, Code>) -> Option<Admitted> {
        let Self { present, lease, send, header: Header { recv, read: rest }, negotiating } = self;
        let context = Arc::clone(present.context());
        let refuse = |send, recv, code| {
            refuse(present.context(), send, recv, code);
            None
        };
        let header = match header {
            Ok(header) => header,
            Err(code) => return refuse(send, recv, code),
        };
        if header.protocol == HOLD || !header.protocol.is_reserved() {
            lease.link().note_app();
        }
        if header.protocol == HOLD {
            if header.mode != StreamMode::Acked {
                return refuse(send, recv, Code::Violation);
            }
            if !lease.link().first_hold() {
                return refuse(send, recv, Code::Busy);
            }
            return Some(Admitted::Hold(Held { lease, send, recv, _present: present }));
        }
        let Some(registered) = context.services.get(&header.protocol) else {
            // A node that has ended serves nothing any more; another life of it may.
            let over = context.ended().is_some();
            let code = if over { Code::Draining } else { Code::UnknownProtocol };
            return refuse(send, recv, code);
        };
        let peer = lease.link().peer;
        let served = Served { context, peer, protocol: header.protocol, registered };
        // What admits is the app's: it may panic.
        let admitting = AssertUnwindSafe(|| served.admit(header.mode));
        let admitted =
            catch_unwind(admitting).unwrap_or_else(|panic| Err(served.panicked(panic.as_ref())));
        let is_call = matches!(header.mode, StreamMode::Call | StreamMode::CallStream);
        // A call takes its place when its request is complete: a slow one keeps nobody out.
        let place = match admitted {
            Ok(()) if is_call => Ok(None),
            Ok(()) => served.registered.place(peer).map(Some),
            Err(code) => Err(code),
        };
        let place = match place {
            Ok(place) => place,
            Err(code) => {
                served.registered.counters.refused.fetch_add(1, Ordering::Relaxed);
                return refuse(send, recv, code);
            }
        };
        let Some(place) = place else {
            let incoming = served.incoming(lease, send, recv, rest, Weak::new());
            let call = Call::new(served, incoming, present);
            return Some(Admitted::Call(call, negotiating));
        };
        let active = served.active();
        // Only of a handler that runs here is it known how it ended; others leave an unfinished half reset at once.
        let orphanage = match &served.registered.service.handler {
            Handler::Stream(_) => Some(Arc::new(Orphanage::default())),
            Handler::Actor { .. } | Handler::Call(_) | Handler::Responses(_) => None,
        };
        let orphans = orphanage.as_ref().map_or_else(Weak::new, Arc::downgrade);
        let incoming = served.incoming(lease, send, recv, rest, orphans);
        let mut handling = Handling { served, incoming, orphanage, place, active, present };
        let answered = handling.acknowledge().now_or_never();
        match answered {
            Some(true) => Some(Admitted::Stream(handling)),
            Some(false) => None,
            None => Some(Admitted::Unanswered(handling)),
        }
    }
}

/// A stream that is to be served.
enum Admitted {
    Hold(Held),
    Call(Call, OwnedSemaphorePermit),
    Stream(Handling),
    /// The answer found no room yet.
    Unanswered(Handling),
}

impl Admitted {
    /// Serves the stream to its end.
    fn serve(self) -> Serving {
        match self {
            Self::Hold(held) => Box::pin(held.keep()),
            Self::Call(call, negotiating) => Box::pin(call.serve(negotiating)),
            Self::Stream(handling) => Box::pin(handling.run()),
            Self::Unanswered(mut handling) => Box::pin(async move {
                let deadline = handling.served.context.limits.call_deadline;
                let acknowledged = tokio::time::timeout(deadline, handling.acknowledge()).await;
                if matches!(acknowledged, Ok(true)) {
                    handling.run().await;
                }
            }),
        }
    }
}

/// The stream by which the peer holds the link.
struct Held {
    lease: Lease,
    send: RawSend,
    recv: RawRecv,
    _present: Present,
}

impl Held {
    /// Keeps the link leased until the peer ends the stream.
    async fn keep(mut self) {
        let link = Arc::clone(self.lease.link());
        self.lease.give_up_places();
        // One byte, and nothing is ever read from it but its end: if it does not fit now, it will later or never.
        if self.send.write_all(&[Answer::Ack.to_byte()]).await.is_ok() {
            // Nothing is ever sent on it: data, the end and a reset all mean that the hold is over.
            let _ = self.recv.read_chunk(1).await;
        }
        link.hold_over();
    }
}

/// Reads a stream's header.
struct Header {
    recv: RawRecv,
    /// What has been read: once the header is out of it, it belongs to the handler.
    read: Bytes,
}

impl Header {
    /// Cancel safe: what was read is kept.
    async fn read(&mut self) -> Result<StreamHeader, Code> {
        loop {
            if let Some(prefix) = self.read.first_chunk::<LENGTH_BYTES>() {
                let length = frame::length(*prefix, HEADER_MAX).map_err(|error| error.code())?;
                let whole = length.saturating_add(LENGTH_BYTES);
                if self.read.len() >= whole {
                    let mut frame = self.read.split_to(whole);
                    frame.advance(LENGTH_BYTES);
                    return StreamHeader::decode(&frame).map_err(|error| error.code());
                }
            }
            // Enough for any header, and for the payload that an eager opener sends right behind it.
            match self.recv.read_chunk(HEADER_MAX.saturating_mul(2)).await {
                // Nearly always all of it comes in one piece, and nothing is copied.
                Ok(Some(chunk)) if self.read.is_empty() => self.read = chunk,
                Ok(Some(chunk)) => self.read = [&*self.read, &*chunk].concat().into(),
                Ok(None) => return Err(Code::Malformed),
                Err(_) => return Err(Code::Cancelled),
            }
        }
    }
}
