//! The caller's side of a call with many responses: frames are put together from what arrives, and nothing is read that nobody asked for.
//!
//! Reading only when asked is what makes the backpressure: QUIC gives the peer room for more as this side reads. A response that lies in
//! one chunk, as nearly all do, is a slice of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use iroh::EndpointId;
use kinfolk_core::code::Code;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::wire::{LENGTH_BYTES, ResponsePrefix, responses_end};
use serde::de::DeserializeOwned;
use tokio::time::Sleep;

use crate::context::Context;
use crate::error::{OpenError, ResponsesError, StreamError};
use crate::protocol::open::{self, Options, Peer};
use crate::protocol::stream::RecvStream;

/// Most bytes taken from QUIC at once.
const CHUNK: usize = 64 * 1024;

/// Largest buffer that is reserved for a response before any of it has arrived.
const RESERVED: usize = 64 * 1024;

/// Turns a body into a response, or says why it is none.
type Decode<T> = fn(Bytes) -> Result<T, Arc<str>>;

/// The responses to a request, one after another; made by [`Node::call_stream`](crate::Node::call_stream).
///
/// Responses that are not read wait in QUIC's windows, which all streams with the peer share: a caller that keeps some of them and reads none, as few as seven
/// with the default limits, keeps everything else of that peer waiting. Read them, or drop them.
///
/// It is a [`Stream`] too, of which the item after an error is `None`. Dropped before the end, it tells the peer, which drops its handler at the next await.
#[must_use = "dropped, it cancels the call"]
pub struct Responses<T> {
    peer: EndpointId,
    /// `None` once it is known how the responses end.
    recv: Option<RecvStream>,
    frames: Frames,
    decode: Decode<T>,
    /// Set once all responses were given, or no more will be.
    end: Option<Result<(), ResponsesError>>,
    /// When all of them are to have come.
    total: Option<Pin<Box<Sleep>>>,
}

impl<T> std::fmt::Debug for Responses<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responses")
            .field("peer", &self.peer)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// Sends the request, and waits until the peer has taken it.
pub(crate) async fn call<T>(
    context: &Arc<Context>,
    peer: Peer,
    protocol: ProtocolName,
    request: &[u8],
    options: Options,
    decode: Decode<T>,
) -> Result<Responses<T>, OpenError> {
    let total = options.total_from(Instant::now());
    let recv = open::call_stream(context, peer, protocol, request, options).await?;
    let total = total.map(|at| {
        let _timers = context.timers();
        Box::pin(tokio::time::sleep_until(at.into()))
    });
    Ok(Responses {
        peer: recv.peer(),
        frames: Frames::new(context.limits.call_bytes),
        recv: Some(recv),
        decode,
        end: None,
        total,
    })
}

pub(crate) fn typed<T: DeserializeOwned>(body: Bytes) -> Result<T, Arc<str>> {
    postcard::from_bytes(&body).map_err(|error| error.to_string().into())
}

impl<T> Responses<T> {
    /// The peer that responds.
    pub fn peer(&self) -> EndpointId {
        self.peer
    }

    /// The next response; `None` once the peer has said that these were all. Cancel safe: no response is lost.
    ///
    /// # Errors
    ///
    /// [`ResponsesError`] if the responses were cut, each time that it is asked from then on: only `None` means that nothing is missing.
    pub async fn recv(&mut self) -> Result<Option<T>, ResponsesError> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Poller<'_>) -> Poll<Result<Option<T>, ResponsesError>> {
        if let Some(end) = &self.end {
            return Poll::Ready(end.clone().map(|()| None));
        }
        let next = match ready!(self.poll_in_time(cx)) {
            Ok(Some(body)) => match (self.decode)(body) {
                Ok(response) => return Poll::Ready(Ok(Some(response))),
                Err(error) => Err(ResponsesError::Response(error)),
            },
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        self.end = Some(next.clone());
        if let Some(mut recv) = self.recv.take() {
            match &next {
                // The end of the stream came along: then there is nothing to stop.
                Ok(()) | Err(ResponsesError::Cut(StreamError::Reset(_))) => recv.notice_end(),
                Err(ResponsesError::Cut(StreamError::TooLarge)) => recv.stop(Code::TooLarge),
                Err(ResponsesError::TimedOut) => recv.stop(Code::DeadlineExceeded),
                Err(_) => {}
            }
        }
        Poll::Ready(next.map(|()| None))
    }

    /// The next body within the time that all of them have; `None` at the end that the peer says itself.
    fn poll_in_time(&mut self, cx: &mut Poller<'_>) -> Poll<Result<Option<Bytes>, ResponsesError>> {
        let is_late = |total: &Pin<Box<Sleep>>| total.deadline().into_std() <= Instant::now();
        if self.total.as_ref().is_some_and(is_late) {
            return Poll::Ready(Err(ResponsesError::TimedOut));
        }
        let next = self.poll_frame(cx);
        match &mut self.total {
            // Only now: once the runtime of its node is gone the timer panics, and there is an end to be told.
            Some(total) if next.is_pending() => {
                total.as_mut().poll(cx).map(|()| Err(ResponsesError::TimedOut))
            }
            _ => next,
        }
    }

    /// The next body; `None` at the end that the peer says itself.
    fn poll_frame(&mut self, cx: &mut Poller<'_>) -> Poll<Result<Option<Bytes>, ResponsesError>> {
        let Some(recv) = &mut self.recv else { return Poll::Ready(Ok(None)) };
        loop {
            match self.frames.next()? {
                Some(Frame::Body(body)) => return Poll::Ready(Ok(Some(body))),
                Some(Frame::End(Code::Ok)) => return Poll::Ready(Ok(None)),
                Some(Frame::End(code)) => return Poll::Ready(Err(StreamError::Reset(code).into())),
                None => {}
            }
            // The future keeps nothing between two polls, so that a new one each time is the same one.
            let reading = std::pin::pin!(recv.read_chunk(CHUNK));
            match ready!(reading.poll(cx))? {
                Some(chunk) => self.frames.feed(chunk),
                None => return Poll::Ready(Err(StreamError::Truncated.into())),
            }
        }
    }
}

impl<T> Stream for Responses<T> {
    type Item = Result<T, ResponsesError>;

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Poller<'_>,
    ) -> Poll<Option<Result<T, ResponsesError>>> {
        let this = self.get_mut();
        if this.end.is_some() {
            return Poll::Ready(None);
        }
        this.poll_recv(cx).map(Result::transpose)
    }
}

/// What a frame is.
#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Body(Bytes),
    End(Code),
}

/// Puts frames together from chunks of any size. Memory grows with what arrives, not with what is claimed.
struct Frames {
    max: u32,
    /// What has arrived and is in no frame yet.
    chunk: Bytes,
    /// The beginning of a frame whose rest has not arrived; then nothing else is left of the chunk.
    begun: Vec<u8>,
}

impl Frames {
    fn new(max: u32) -> Self {
        Self { max, chunk: Bytes::new(), begun: Vec::new() }
    }

    /// Takes the next chunk, once [`Frames::next`] has said that there is no frame in the last.
    fn feed(&mut self, chunk: Bytes) {
        self.chunk = chunk;
    }

    /// The next frame, if all of it is here.
    fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        if self.begun.is_empty() {
            let length = frame_length(&self.chunk, self.max)?;
            if self.chunk.len() >= length {
                return take(self.chunk.split_to(length)).map(Some);
            }
        }
        loop {
            let length = frame_length(&self.begun, self.max)?;
            if self.begun.len() >= length {
                return take(std::mem::take(&mut self.begun).into()).map(Some);
            }
            if self.chunk.is_empty() {
                return Ok(None);
            }
            let missing = length.saturating_sub(self.begun.len());
            let part = self.chunk.split_to(missing.min(self.chunk.len()));
            self.begun.reserve(missing.min(RESERVED));
            self.begun.extend_from_slice(&part);
        }
    }
}

/// How long the frame is that begins with these bytes, as far as they tell: never shorter than a prefix.
fn frame_length(begun: &[u8], max: u32) -> Result<usize, StreamError> {
    let Some(prefix) = begun.first_chunk::<LENGTH_BYTES>() else { return Ok(LENGTH_BYTES) };
    let body = match ResponsePrefix::decode(*prefix, max) {
        Ok(ResponsePrefix::Body(length)) => length,
        Ok(ResponsePrefix::End) => 1,
        Err(_) => return Err(StreamError::TooLarge),
    };
    Ok(LENGTH_BYTES.saturating_add(body))
}

/// The frame that these bytes are, all of them.
fn take(mut frame: Bytes) -> Result<Frame, StreamError> {
    let is_end = frame.starts_with(&kinfolk_core::wire::responses::END);
    frame.advance(LENGTH_BYTES.min(frame.len()));
    if !is_end {
        return Ok(Frame::Body(frame));
    }
    // A peer that says nothing there has cut its responses as much as one that says nothing at all.
    let code = frame.first().and_then(|byte| responses_end(*byte).ok());
    code.map(Frame::End).ok_or(StreamError::Truncated)
}

#[cfg(test)]
mod tests {
    use kinfolk_core::wire::{end_of_responses, response_prefix};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const MAX: u32 = 1000;

    fn frame(body: &[u8]) -> Vec<u8> {
        [&response_prefix(body.len(), MAX).unwrap()[..], body].concat()
    }

    /// All frames of these bytes, which come in chunks that end at these places.
    fn read(bytes: &[u8], cuts: &[usize]) -> (Vec<Bytes>, Option<Result<Code, StreamError>>) {
        let mut frames = Frames::new(MAX);
        let mut bodies = Vec::new();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        for ends in cuts.windows(2) {
            frames.feed(Bytes::copy_from_slice(&bytes[ends[0]..ends[1]]));
            loop {
                match frames.next() {
                    Ok(Some(Frame::Body(body))) => bodies.push(body),
                    Ok(Some(Frame::End(code))) => return (bodies, Some(Ok(code))),
                    Ok(None) => break,
                    Err(error) => return (bodies, Some(Err(error))),
                }
            }
            assert!(frames.begun.capacity() <= 2 * RESERVED + bytes.len());
        }
        (bodies, None)
    }

    #[test]
    fn a_response_in_one_chunk_is_not_copied() {
        let chunk = Bytes::from([frame(b"one"), frame(b"two")].concat());
        let mut frames = Frames::new(MAX);
        frames.feed(chunk.clone());
        let Ok(Some(Frame::Body(body))) = frames.next() else { panic!("it is whole") };
        assert_eq!(body.as_ptr(), chunk[LENGTH_BYTES..].as_ptr());
    }

    #[test]
    fn a_claim_above_the_limit_is_refused_before_its_body() {
        let claim = [&frame(b"one")[..], &(MAX + 1).to_be_bytes()].concat();
        let (bodies, end) = read(&claim, &[5]);
        assert_eq!((bodies.len(), end), (1, Some(Err(StreamError::TooLarge))));
    }

    #[test]
    fn an_end_without_a_code_is_a_cut() {
        assert_eq!(read(&[255, 255, 255, 255, 0], &[]).1, Some(Err(StreamError::Truncated)));
        assert_eq!(read(&[255, 255, 255, 255], &[]).1, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            sent in vec(vec(any::<u8>(), 0..200), 0..10),
            code in 1..=255_u8,
            cuts in vec(any::<usize>(), 0..20),
        ) {
            let code = Code::from_wire(code.into());
            let mut bytes: Vec<u8> = sent.iter().flat_map(|body| frame(body)).collect();
            bytes.extend(end_of_responses(code));
            let (bodies, end) = read(&bytes, &cuts);
            prop_assert_eq!(bodies, sent);
            prop_assert_eq!(end, Some(Ok(code)));
        }

        #[test]
        fn frames_that_are_cut_off_have_no_end(
            sent in vec(vec(any::<u8>(), 0..200), 0..10),
            cuts in vec(any::<usize>(), 0..20),
            at: usize,
        ) {
            let mut bytes: Vec<u8> = sent.iter().flat_map(|body| frame(body)).collect();
            bytes.extend(end_of_responses(Code::Ok));
            let (bodies, end) = read(&bytes[..at % bytes.len()], &cuts);
            prop_assert_eq!(end, None);
            prop_assert!(bodies.iter().zip(&sent).all(|(body, sent)| body == sent));
        }

        #[test]
        fn any_bytes_give_the_same_frames_in_any_chunks(
            bytes in vec(prop_oneof![3 => Just(0_u8), 2 => 0..5_u8, 2 => Just(255), 1 => any::<u8>()], 0..300),
            cuts in vec(any::<usize>(), 0..20),
        ) {
            prop_assert_eq!(read(&bytes, &cuts), read(&bytes, &[]));
        }
    }
}
