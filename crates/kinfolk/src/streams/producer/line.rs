//! Line: the stream to one subscriber, and what goes out next on it.
//!
//! It is a feed's. While the feed has nothing to write it leaves its line with the outlet, where a sender may write a lone item to it at once: an item then passes one
//! task less. Items that come close behind each other are left to the feed, which writes many at a time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use kinfolk_core::stream::{Piece, Take};
use kinfolk_core::wire::subscription::{ControlEntry, StreamEnd};

use crate::error::StreamError;
use crate::protocol::stream::SendStream;

/// Bytes taken from the outlet at once: what is taken is the subscriber's, whether or not its stream has room for it.
const BUDGET: usize = 64 * 1024;

/// What comes this soon after a lone item is none: about what a feed needs to wake up (a guess).
const SOON: Duration = Duration::from_micros(5);

/// See the module page.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) send: SendStream,
    /// What is written, in its order; the first `done` of them are out.
    chunks: Vec<Bytes>,
    done: usize,
    pieces: Vec<Piece>,
    /// The last word is among them.
    is_over: bool,
    /// When a sender wrote to it.
    lone_at: Option<Instant>,
}

impl Line {
    /// The line of this stream; the bytes go out first.
    pub(crate) fn new(send: SendStream, first: Bytes) -> Self {
        let (chunks, pieces) = (vec![first], Vec::new());
        Self { send, chunks, done: 0, pieces, is_over: false, lone_at: None }
    }

    /// Whether all is out that was to go out.
    pub(crate) fn is_done(&self) -> bool {
        self.done >= self.chunks.len()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Takes what is next from where the items are: some bytes, and pieces of them. Only when all is out.
    pub(crate) fn fill(&mut self, take: impl FnOnce(usize, &mut Vec<Piece>) -> Take) -> Take {
        self.chunks.clear();
        self.done = 0;
        let taken = take(BUDGET, &mut self.pieces);
        for piece in self.pieces.drain(..) {
            self.chunks.push(match piece {
                Piece::Items { bytes, .. } => bytes,
                Piece::Missed(missed) => ControlEntry::Gap { missed }.encode().into(),
                Piece::Superseded(superseded) => ControlEntry::Skip { superseded }.encode().into(),
            });
        }
        taken
    }

    /// Puts the last word behind everything.
    pub(crate) fn end(&mut self, end: StreamEnd) {
        self.chunks.push(ControlEntry::End(end).encode().into());
        self.is_over = true;
    }

    /// Writes as much as finds room. Cancel safe.
    pub(crate) async fn write(&mut self) -> Result<(), StreamError> {
        let rest = self.chunks.get_mut(self.done..).unwrap_or_default();
        let written = self.send.write_chunks(rest).await?;
        self.done = self.done.saturating_add(written);
        Ok(())
    }

    /// Takes and writes what there is if it is a lone item that finds room at once; false if its feed is to see to it.
    pub(crate) fn write_lone(
        &mut self,
        now: Instant,
        mut take: impl FnMut(usize, &mut Vec<Piece>) -> Take,
    ) -> bool {
        let is_soon = |at| now.saturating_duration_since(at) < SOON;
        if !self.is_done() || self.lone_at.is_some_and(is_soon) {
            return false;
        }
        self.lone_at = Some(now);
        if self.fill(&mut take) != Take::Pieces {
            return false;
        }
        while !self.is_done() {
            let Some(Ok(())) = self.write().now_or_never() else { return false };
        }
        // From now on the next one is awaited, unless it has come meanwhile: then it was not alone.
        self.fill(&mut take) == Take::Wait
    }
}
