//! Tap: the stream from one source, and what came by it and is not whole yet.
//!
//! It is a receiver's. But while the app waits for an item, and the receiver for bytes, the app reads from it by itself: a lone item then passes one task less. What is no item,
//! or finds no room, the app leaves to the receiver, and all else once it waits no more.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker, ready};

use bytes::BytesMut;
use kinfolk_core::code::Code;
use kinfolk_core::stream::{Entries, EntryError, Read};
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;

use crate::error::StreamError;
use crate::protocol::stream::RecvStream;
use crate::supervision::lock;

/// Bytes asked of QUIC at once, at first.
pub(crate) const READ: usize = 64 * 1024;

/// Bytes asked of a source that fills the room there is: the more, the fewer items lie across two buffers and are copied.
const READ_MOST: usize = 256 * 1024;

/// What is worth a read.
const READ_LEAST: usize = 4 * 1024;

/// See the module page.
#[derive(Debug)]
pub(crate) struct Tap {
    state: Mutex<State>,
    bell: Arc<Bell>,
}

/// What QUIC wakes where the app has looked for bytes last.
#[derive(Debug, Default)]
struct Bell {
    /// The app, while it waits for them and was not woken.
    app: Mutex<Option<Waker>>,
    /// Told when the receiver is to look.
    receiver: Notify,
}

impl Bell {
    /// Wakes this app from now on, or the receiver. Returns who would have been woken before and was not.
    fn wakes(&self, app: Option<Waker>) -> Option<Waker> {
        std::mem::replace(&mut *lock(&self.app), app)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        match self.wakes(None) {
            Some(app) => app.wake(),
            None => self.receiver.notify_one(),
        }
    }
}

#[derive(Debug)]
struct State {
    /// `None` once the subscription is over.
    recv: Option<RecvStream>,
    buffer: BytesMut,
    entries: Entries,
    /// Bytes asked of QUIC at once.
    ask: usize,
    reader: Reader,
    /// What the app has found and left to the receiver.
    left: Option<Found>,
}

/// Who reads next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// The receiver alone: it has something in its hands, behind which everything else comes.
    Receiver,
    /// The receiver, unless the app comes first: there is nothing yet.
    Either,
    /// The app, until it gives the tap back.
    App,
}

/// What is next on the stream.
#[derive(Debug)]
pub(crate) enum Found {
    /// This; the number of the item behind it comes along.
    Read(Read, u64),
    /// What no producer may say.
    Broken(EntryError),
    /// The bytes ended.
    Ended,
    /// The stream was lost.
    Lost(StreamError),
    /// It counts no more: another subscription has taken its place.
    Stale,
}

impl Tap {
    /// The tap of this stream; what was read of it already is in the buffer.
    pub(crate) fn new(recv: RecvStream, buffer: BytesMut, entries: Entries) -> Self {
        let (recv, reader) = (Some(recv), Reader::Receiver);
        let state = State { recv, buffer, entries, ask: READ, reader, left: None };
        Self { state: Mutex::new(state), bell: Arc::default() }
    }

    /// What comes next, for the receiver. Cancel safe.
    pub(crate) async fn next(&self) -> Found {
        loop {
            tokio::select! {
                biased;
                found = std::future::poll_fn(|cx| self.poll_next(cx)) => return found,
                () = self.bell.receiver.notified() => {}
            }
        }
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Found> {
        let mut state = lock(&self.state);
        if state.reader == Reader::App {
            return Poll::Pending;
        }
        // Until it is there.
        state.reader = Reader::Either;
        let found = match state.left.take() {
            Some(left) => left,
            None => ready!(state.poll_found(cx)),
        };
        state.reader = Reader::Receiver;
        Poll::Ready(found)
    }

    /// Lets the app take what is next and put it where it reads from, unless the receiver has something in its hands. From then on the app is woken when
    /// there is more, until [`Tap::give_back`]. What is there behind that already, and what `put` does not take, is the receiver's.
    pub(crate) fn read_by_app(
        &self,
        cx: &mut Context<'_>,
        put: impl FnOnce(Found) -> Result<(), Found>,
    ) {
        let mut state = lock(&self.state);
        if state.reader == Reader::Receiver {
            return;
        }
        state.reader = Reader::App;
        self.bell.wakes(Some(cx.waker().clone()));
        let waker = Waker::from(Arc::clone(&self.bell));
        let cx = &mut Context::from_waker(&waker);
        let Poll::Ready(first) = state.poll_found(cx) else { return };
        let left = match put(first) {
            // Looked for at once, so that QUIC knows whom to wake when nobody does any more.
            Ok(()) => state.poll_found(cx),
            Err(left) => Poll::Ready(left),
        };
        if let Poll::Ready(left) = left {
            state.left = Some(left);
            state.reader = Reader::Receiver;
            drop(state);
            self.bell.wakes(None);
            self.bell.receiver.notify_one();
        }
    }

    /// The app reads no more: what comes next wakes the receiver.
    pub(crate) fn give_back(&self) {
        let mut state = lock(&self.state);
        if state.reader == Reader::App {
            state.reader = Reader::Either;
            drop(state);
            // What the app was woken for it may not have looked at.
            if self.bell.wakes(None).is_none() {
                self.bell.receiver.notify_one();
            }
        }
    }

    /// Nothing more is wanted from the stream; the code says why.
    pub(crate) fn stop(&self, code: Code) {
        if let Some(recv) = &mut lock(&self.state).recv {
            recv.stop(code);
        }
    }

    /// Lets go of the stream, whoever still has the tap.
    pub(crate) fn close(&self) {
        let recv = lock(&self.state).recv.take();
        drop(recv);
    }
}

impl State {
    fn poll_found(&mut self, cx: &mut Context<'_>) -> Poll<Found> {
        loop {
            match self.entries.take(&mut self.buffer) {
                Ok(Some(read)) => return Poll::Ready(Found::Read(read, self.entries.next())),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Found::Broken(error)),
            }
            let Some(recv) = &mut self.recv else { return Poll::Pending };
            make_room(&mut self.buffer, self.entries.needs(), self.ask);
            // It keeps nothing between two polls.
            let read = ready!(pin!(recv.read_buf(&mut self.buffer)).poll(cx));
            match read {
                Ok(0) => return Poll::Ready(Found::Ended),
                Ok(_) if self.buffer.len() == self.buffer.capacity() => self.ask = READ_MOST,
                Ok(_) => self.ask = READ,
                Err(error) => return Poll::Ready(Found::Lost(StreamError::from_io(&error))),
            }
        }
    }
}

/// Makes room for what comes next. A buffer is filled before there is another one: whatever of it waits for the app keeps all of it in memory.
fn make_room(buffer: &mut BytesMut, needs: usize, ask: usize) {
    if buffer.capacity().saturating_sub(buffer.len()) < needs.max(READ_LEAST) {
        buffer.reserve(needs.max(ask));
    }
}

#[cfg(test)]
mod tests {
    use kinfolk_core::wire::Extensions;
    use kinfolk_core::wire::subscription::{Accepted, Channel};

    use super::*;

    #[test]
    fn lone_items_that_wait_share_the_buffers_that_they_came_in() {
        let (channel, extensions) = (Channel::Reliable, Extensions::none());
        let accepted = Accepted { channel, epoch: 1, next: 0, extensions };
        let mut entries = Entries::new(&accepted, 64);
        let item = [[64, 0, 0, 0].as_slice(), &[7; 64]].concat();
        let (mut buffer, mut behind) = (BytesMut::new(), std::ptr::null());
        let (mut waiting, mut buffers) = (Vec::new(), 0);
        for _ in 0..2000 {
            make_room(&mut buffer, entries.needs(), READ);
            buffers += usize::from(buffer.as_ptr() != behind);
            buffer.extend_from_slice(&item);
            let read = entries.take(&mut buffer);
            behind = buffer.as_ptr();
            waiting.push(read);
        }
        assert!(waiting.iter().all(|read| matches!(read, Ok(Some(Read::Items { count: 1, .. })))));
        let filled = waiting.len() * item.len() / (READ - READ_LEAST);
        assert!(buffers <= filled + 1, "{buffers} buffers for what fills {filled}");
    }
}
