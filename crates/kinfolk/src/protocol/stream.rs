//! The two halves of a negotiated stream, as apps hold them.
//!
//! They add to iroh's streams what a supervised session needs: a lease, so that linger and drain see the stream; byte counts; the
//! check of the peer's answer to an eagerly opened stream; and a reset when a sender is dropped unfinished, where iroh would
//! send a clean end. Both implement tokio's `AsyncRead` and `AsyncWrite`.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use iroh::EndpointId;
use iroh::endpoint::{ReadError, VarInt, WriteError};
use kinfolk_core::code::Code;
use kinfolk_core::intent::{Priority, StreamLoss};
use kinfolk_core::wire::Answer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::StreamError;
use crate::metrics::ProtocolCounters;
use crate::peers::link::{Lease, Link};
use crate::protocol::places::Place;
use crate::supervision::lock;

/// Most bytes taken from QUIC at once; a chunk is a slice of what arrived, so larger ones cost no copy either.
const CHUNK: usize = 64 * 1024;

pub(crate) fn wire_code(code: Code) -> VarInt {
    VarInt::from_u32(u32::from(code.to_wire()))
}

/// The sending half of a negotiated stream.
///
/// Dropped unfinished, it is reset with [`Code::Cancelled`]: the peer never takes half a message for a whole one.
#[derive(Debug)]
pub struct SendStream {
    /// `None` only while it is being dropped.
    inner: Option<iroh::endpoint::SendStream>,
    /// `None` once nothing more will be sent.
    lease: Option<Lease>,
    /// Given up here: QUIC does not tell what becomes of it then.
    is_reset: bool,
    link: Arc<Link>,
    counters: Arc<ProtocolCounters>,
    orphanage: Weak<Orphanage>,
}

/// Where the unfinished sending half of a served stream goes when its handler drops it: only after the handler has returned
/// is it known whether it failed, panicked or just left.
#[derive(Debug, Default)]
pub(crate) struct Orphanage(Mutex<Option<(iroh::endpoint::SendStream, Lease)>>);

impl Drop for Orphanage {
    fn drop(&mut self) {
        // What comes too late for its handler's end is unfinished all the same.
        self.reset(Code::Cancelled);
    }
}

impl Orphanage {
    /// Resets what the handler left unfinished.
    pub(crate) fn reset(&self, code: Code) {
        if let Some((mut stream, _lease)) = lock(&self.0).take() {
            // It fails only if the stream is over already.
            let _ = stream.reset(wire_code(code));
        }
    }
}

/// The receiving half of a negotiated stream.
///
/// Dropped before its end, it asks the peer to stop with [`Code::Cancelled`].
#[derive(Debug)]
pub struct RecvStream {
    inner: iroh::endpoint::RecvStream,
    /// `None` once the end or an error was read.
    lease: Option<Lease>,
    link: Arc<Link>,
    counters: Arc<ProtocolCounters>,
    /// Bytes that came along with the header.
    stash: Bytes,
    answer: AnswerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerState {
    /// The peer accepted the stream, or we did.
    Accepted,
    /// The first byte to come is the peer's answer.
    Awaited,
    /// The peer refused the stream.
    Refused(Code),
}

impl SendStream {
    pub(crate) fn new(
        inner: iroh::endpoint::SendStream,
        lease: Lease,
        counters: Arc<ProtocolCounters>,
        orphanage: Weak<Orphanage>,
    ) -> Self {
        let link = Arc::clone(lease.link());
        let (inner, lease) = (Some(inner), Some(lease));
        Self { inner, lease, is_reset: false, link, counters, orphanage }
    }

    fn inner(&mut self) -> Result<&mut iroh::endpoint::SendStream, StreamError> {
        self.inner.as_mut().ok_or(StreamError::Finished)
    }

    /// The peer at the other end.
    pub fn peer(&self) -> EndpointId {
        self.link.peer
    }

    /// Writes some of the bytes and returns how many. Cancel safe: nothing is written if it is cancelled.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        std::future::poll_fn(|cx| self.poll_send(cx, bytes)).await
    }

    /// Writes all the bytes. Not cancel safe: cancelled, some of them may have been written.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes the chunk without copying it. Not cancel safe.
    pub async fn write_chunk(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        self.write_chunk_overhead(chunk).await?;
        self.counters.bytes_sent.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Writes as many of the chunks as find room, without copying them, and returns how many are out whole; what is left of the next one stays in its place.
    /// Cancel safe.
    pub(crate) async fn write_chunks(
        &mut self,
        chunks: &mut [Bytes],
    ) -> Result<usize, StreamError> {
        let count = chunks.len();
        let mut rest = chunks;
        let written = self.inner()?.write_many_chunks(&mut rest).await;
        let left = rest.len();
        let written = written.map_err(|error| self.write_failed(error))?;
        let bytes = u64::try_from(written).unwrap_or(u64::MAX);
        self.counters.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
        Ok(count.saturating_sub(left))
    }

    /// Says that nothing more will be sent. What was written is still delivered, unless the link is lost.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.inner()?.finish().map_err(|_| StreamError::Finished)?;
        self.lease = None;
        Ok(())
    }

    /// Gives the stream up: the peer sees the code instead of what is still on its way. After [`SendStream::finish`] it has no effect.
    pub fn reset(&mut self, code: Code) {
        if let (Some(inner), Some(_lease)) = (&mut self.inner, self.lease.take()) {
            // It fails only if the stream is over already.
            let _ = inner.reset(wire_code(code));
            self.is_reset = true;
        }
    }

    /// Waits until the peer's QUIC has acknowledged everything up to [`SendStream::finish`], or has stopped the stream. Cancel safe.
    ///
    /// It says that the bytes arrived, not that the peer's app has read them. After [`SendStream::reset`] nobody will ever know, and it fails as
    /// [`StreamError::Finished`].
    pub async fn acknowledged(&mut self) -> Result<(), StreamError> {
        if self.is_reset {
            return Err(StreamError::Finished);
        }
        match self.inner()?.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamError::Reset(Code::from_wire(code.into_inner()))),
            Err(_) => Err(lost(&self.link)),
        }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Keeps the protocol's place until both halves are over.
    pub(crate) fn occupy(&self, place: Place) {
        if let Some(lease) = &self.lease {
            lease.occupy(place);
        }
    }

    /// Sets the stream's place among the streams of this connection.
    pub(crate) fn set_priority(&self, priority: Priority) {
        let priority = match priority {
            Priority::Bulk => -1,
            Priority::Interactive => 0,
            Priority::Control => 1,
        };
        if let (Some(inner), true) = (&self.inner, priority != 0) {
            // It fails only if the stream is over already.
            let _ = inner.set_priority(priority);
        }
    }

    /// Writes bytes that are no payload of the app.
    pub(crate) async fn write_overhead(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let written = self.inner()?.write_all(bytes).await;
        written.map_err(|error| self.write_failed(error))
    }

    /// The same without copying them.
    pub(crate) async fn write_chunk_overhead(&mut self, chunk: Bytes) -> Result<(), StreamError> {
        self.write_chunks_overhead([chunk]).await
    }

    /// The same in several pieces.
    pub(crate) async fn write_chunks_overhead<const N: usize>(
        &mut self,
        mut chunks: [Bytes; N],
    ) -> Result<(), StreamError> {
        let written = self.inner()?.write_all_chunks(&mut chunks).await;
        written.map_err(|error| self.write_failed(error))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, StreamError>> {
        match ready!(Pin::new(self.inner()?).poll_write(cx, bytes)) {
            Ok(written) => {
                let count = u64::try_from(written).unwrap_or(u64::MAX);
                self.counters.bytes_sent.fetch_add(count, Ordering::Relaxed);
                Poll::Ready(Ok(written))
            }
            Err(error) => Poll::Ready(Err(self.write_failed(error))),
        }
    }

    fn write_failed(&mut self, error: WriteError) -> StreamError {
        match error {
            WriteError::Stopped(code) => StreamError::Reset(Code::from_wire(code.into_inner())),
            WriteError::ClosedStream => StreamError::Finished,
            WriteError::ConnectionLost(_) | WriteError::ZeroRttRejected => {
                self.lease = None;
                lost(&self.link)
            }
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        let Some(orphanage) = self.orphanage.upgrade() else {
            self.reset(Code::Cancelled);
            return;
        };
        if let (Some(inner), Some(lease)) = (self.inner.take(), self.lease.take()) {
            *lock(&orphanage.0) = Some((inner, lease));
        }
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // QUIC sends what is written as soon as it may.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish().map_err(io::Error::from))
    }
}

impl RecvStream {
    pub(crate) fn new(
        inner: iroh::endpoint::RecvStream,
        lease: Lease,
        counters: Arc<ProtocolCounters>,
        stash: Bytes,
        answer: AnswerState,
    ) -> Self {
        let link = Arc::clone(lease.link());
        Self { inner, lease: Some(lease), link, counters, stash, answer }
    }

    /// The peer at the other end.
    pub fn peer(&self) -> EndpointId {
        self.link.peer
    }

    /// Reads some bytes; `None` at the end of the stream. Cancel safe.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, StreamError> {
        if buffer.is_empty() {
            return Ok(Some(0));
        }
        let mut buffer = ReadBuf::new(buffer);
        std::future::poll_fn(|cx| self.poll_receive(cx, &mut buffer)).await?;
        let read = buffer.filled().len();
        Ok((read > 0).then_some(read))
    }

    /// Reads at most `max` bytes without copying them; `None` at the end of the stream. Cancel safe.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, StreamError> {
        self.answered().await?;
        if !self.stash.is_empty() {
            let chunk = self.stash.split_to(max.min(self.stash.len()));
            self.received(chunk.len());
            return Ok(Some(chunk));
        }
        match self.inner.read_chunk(max).await {
            Ok(Some(chunk)) => {
                self.received(chunk.len());
                Ok(Some(chunk))
            }
            Ok(None) => {
                self.lease = None;
                Ok(None)
            }
            Err(error) => Err(self.read_failed(error)),
        }
    }

    /// Fills the buffer, or fails with [`StreamError::Truncated`]. Not cancel safe.
    pub async fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), StreamError> {
        while !buffer.is_empty() {
            let read = self.read(buffer).await?.ok_or(StreamError::Truncated)?;
            buffer = buffer.get_mut(read..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads to the end, at most `limit` bytes; one more is [`StreamError::TooLarge`], and the peer is asked to stop. Not cancel safe.
    pub async fn read_to_end(&mut self, limit: usize) -> Result<Vec<u8>, StreamError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.read_chunk(CHUNK).await? {
            if bytes.len().saturating_add(chunk.len()) > limit {
                self.stop(Code::TooLarge);
                return Err(StreamError::TooLarge);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Asks the peer to send no more, and why.
    pub fn stop(&mut self, code: Code) {
        if self.lease.take().is_some() {
            // It fails only if the stream is over already.
            let _ = self.inner.stop(wire_code(code));
        }
    }

    /// Waits for the peer's answer if it has not come yet. Cancel safe.
    pub async fn answered(&mut self) -> Result<(), StreamError> {
        while self.answer == AnswerState::Awaited {
            match self.inner.read_chunk(CHUNK).await {
                Ok(Some(mut chunk)) if chunk.has_remaining() => {
                    self.take_answer(chunk.get_u8());
                    self.stash = chunk;
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err(self.ended_unanswered()),
                Err(error) => return Err(self.read_failed(error)),
            }
        }
        match self.answer {
            AnswerState::Refused(code) => Err(StreamError::Refused(code)),
            AnswerState::Accepted | AnswerState::Awaited => Ok(()),
        }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The stream's number on its connection, the same on both sides.
    pub(crate) fn index(&self) -> u64 {
        self.inner.id().index()
    }

    /// Notices the end of the stream if it is here already, so that a drop need not tell the peer to stop.
    pub(crate) fn notice_end(&mut self) {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(Ok(0)) = self.inner.poll_read(&mut cx, &mut byte) {
            self.lease = None;
        }
    }

    /// What became of the stream, for whoever decides about a retry.
    pub(crate) fn loss(&self, error: StreamError) -> StreamLoss {
        match error {
            StreamError::Refused(code) => StreamLoss::Refused(code),
            // A refusal whose byte found no room comes as a reset.
            StreamError::Reset(code) if code.never_served() => StreamLoss::Refused(code),
            StreamError::Reset(code) => StreamLoss::Reset(code),
            StreamError::Truncated | StreamError::Finished => StreamLoss::Reset(Code::Malformed),
            StreamError::TooLarge => StreamLoss::Reset(Code::TooLarge),
            StreamError::LinkClosed(_) | StreamError::LinkLost => {
                self.link.loss_of(self.inner.id().index())
            }
        }
    }

    fn take_answer(&mut self, byte: u8) {
        match Answer::from_byte(byte) {
            Answer::Ack => {
                self.answer = AnswerState::Accepted;
                self.link.note_acknowledged();
            }
            Answer::Refuse(code) => {
                self.answer = AnswerState::Refused(code);
                self.lease = None;
            }
        }
    }

    fn ended_unanswered(&mut self) -> StreamError {
        self.lease = None;
        self.answer = AnswerState::Refused(Code::Malformed);
        StreamError::Truncated
    }

    fn received(&self, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.counters.bytes_received.fetch_add(count, Ordering::Relaxed);
    }

    /// Reads into the buffer; nothing read is the end of the stream.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), StreamError>> {
        if let AnswerState::Refused(code) = self.answer {
            return Poll::Ready(Err(StreamError::Refused(code)));
        }
        if !self.stash.is_empty() {
            let count = self.stash.len().min(buffer.remaining());
            buffer.put_slice(self.stash.get(..count).unwrap_or_default());
            self.stash.advance(count);
            self.received(count);
            return Poll::Ready(Ok(()));
        }
        loop {
            let before = buffer.filled().len();
            // As tokio's trait, since that does not clear the room in the buffer first.
            if let Err(error) = ready!(AsyncRead::poll_read(Pin::new(&mut self.inner), cx, buffer))
            {
                let error = error.downcast().unwrap_or(ReadError::ClosedStream);
                return Poll::Ready(Err(self.read_failed(error)));
            }
            let read = buffer.filled().len().saturating_sub(before);
            if read == 0 {
                return Poll::Ready(match self.answer {
                    AnswerState::Awaited => Err(self.ended_unanswered()),
                    _ => {
                        self.lease = None;
                        Ok(())
                    }
                });
            }
            if self.answer != AnswerState::Awaited {
                self.received(read);
                return Poll::Ready(Ok(()));
            }
            // The answer came in front of the payload: take it out of the app's buffer.
            let new = buffer.filled_mut().get_mut(before..).unwrap_or_default();
            let answer = new.first().copied().unwrap_or_default();
            new.copy_within(1.., 0);
            let payload = read.saturating_sub(1);
            buffer.set_filled(before.saturating_add(payload));
            self.take_answer(answer);
            if let AnswerState::Refused(code) = self.answer {
                return Poll::Ready(Err(StreamError::Refused(code)));
            }
            if payload > 0 {
                self.received(payload);
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn read_failed(&mut self, error: ReadError) -> StreamError {
        self.lease = None;
        match error {
            ReadError::Reset(code) => StreamError::Reset(Code::from_wire(code.into_inner())),
            ReadError::ClosedStream => StreamError::Finished,
            ReadError::ConnectionLost(_) | ReadError::ZeroRttRejected => lost(&self.link),
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        self.stop(Code::Cancelled);
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_receive(cx, buffer).map_err(io::Error::from)
    }
}

fn lost(link: &Link) -> StreamError {
    link.close_code().map_or(StreamError::LinkLost, StreamError::LinkClosed)
}
