//! The serving side of a call with many responses: the handler's stream is polled, and what it makes is written in batches.
//!
//! While responses are ready they are gathered; a batch is written when nothing more is ready, or when it is large enough. The stream is
//! not polled while a batch waits for room, nor while too much waits for the peer on other streams, so that the handler runs ahead of the reader by
//! QUIC's windows and one batch. It never outlives its caller: a stream that the peer has stopped is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, Stream};
use kinfolk_core::code::Code;
use kinfolk_core::wire::{Answer, end_of_responses, response_prefix};

use crate::error::HandlerError;
use crate::protocol::backlog::Waiting;
use crate::protocol::handle::Served;
use crate::protocol::service::ResponsesHandler;
use crate::protocol::stream::SendStream;

/// Bytes of responses that are written at once, or one response if it is larger: a few packets, so that a batch costs one pass through
/// QUIC, and little beside the windows (a guess).
const BATCH: usize = 32 * 1024;

/// What a handler makes, each a body.
pub(crate) type Bodies = BoxStream<'static, Result<Vec<u8>, HandlerError>>;

/// How far a handler got.
enum Gathered {
    /// There may be more.
    Some,
    /// There was nothing yet, and now no more may be made.
    Full,
    /// It was the last, and this is why.
    Last(Code),
}

/// Answers a request that was taken. Returns when all is written, or nobody wants it.
pub(crate) async fn respond(
    served: &Served,
    handler: &ResponsesHandler,
    request: Bytes,
    send: &mut SendStream,
) {
    let peer = served.peer;
    let mut batch = BytesMut::from(&[Answer::Ack.to_byte()][..]);
    // The answer byte is not counted where it is read either.
    let mut uncounted = batch.len();
    let begun = catch_unwind(AssertUnwindSafe(|| handler(peer, request)));
    let mut bodies = match begun {
        // A panic of the stream is its last item.
        Ok(bodies) => Ok(AssertUnwindSafe(bodies).catch_unwind()),
        Err(panic) => Err(served.panicked(panic.as_ref())),
    };
    let backlog = Arc::clone(&send.link().responses);
    let mut is_first = true;
    loop {
        let mut waiting = backlog.wait(batch.len());
        let gathered = match &mut bodies {
            Ok(bodies) => tokio::select! {
                biased;
                gathered =
                    gather(served, Pin::new(bodies), &mut batch, &mut waiting, is_first) => gathered,
                // The caller has dropped its responses: nobody wants more.
                _ = send.acknowledged() => return,
            },
            Err(code) => Gathered::Last(*code),
        };
        is_first = false;
        if let Gathered::Full = gathered {
            tokio::select! {
                biased;
                () = backlog.room() => continue,
                _ = send.acknowledged() => return,
            }
        }
        if let Gathered::Last(code) = gathered {
            // Whatever the handler holds is free before the caller has taken the rest.
            bodies = Err(code);
            batch.extend_from_slice(&end_of_responses(code));
        }
        let payload = batch.len().saturating_sub(std::mem::take(&mut uncounted));
        if send.write_chunk_overhead(batch.split().freeze()).await.is_err() {
            return;
        }
        let payload = u64::try_from(payload).unwrap_or(u64::MAX);
        served.registered.counters.bytes_sent.fetch_add(payload, Ordering::Relaxed);
        if bodies.is_err() {
            let _ = send.finish();
            return;
        }
    }
}

/// Takes what is ready into the batch; waits only if there is nothing in it, and nothing at all before the peer has its answer.
async fn gather<S>(
    served: &Served,
    mut bodies: Pin<&mut S>,
    batch: &mut BytesMut,
    waiting: &mut Waiting,
    is_first: bool,
) -> Gathered
where
    S: Stream<Item = Result<Result<Vec<u8>, HandlerError>, Box<dyn std::any::Any + Send>>>,
{
    std::future::poll_fn(|cx| {
        while batch.len() < BATCH {
            match waiting.backlog().is_full() {
                true if batch.is_empty() => return Poll::Ready(Gathered::Full),
                true => break,
                false => {}
            }
            let body = match bodies.as_mut().poll_next(cx) {
                Poll::Ready(Some(Ok(Ok(body)))) => body,
                Poll::Ready(Some(failed)) => {
                    let code = served.judge(failed).unwrap_or(Code::HandlerFailed);
                    return Poll::Ready(Gathered::Last(code));
                }
                Poll::Ready(None) => return Poll::Ready(Gathered::Last(Code::Ok)),
                Poll::Pending if batch.is_empty() && !is_first => return Poll::Pending,
                Poll::Pending => break,
            };
            let Ok(prefix) = response_prefix(body.len(), served.context.limits.call_bytes) else {
                served.failed(format!("a response of {} bytes is too large", body.len()));
                return Poll::Ready(Gathered::Last(Code::HandlerFailed));
            };
            waiting.add(prefix.len().saturating_add(body.len()));
            batch.extend_from_slice(&prefix);
            batch.extend_from_slice(&body);
        }
        Poll::Ready(Gathered::Some)
    })
    .await
}
