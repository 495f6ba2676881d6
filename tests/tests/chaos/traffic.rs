//! Calls and streams: the asking and the answering side, both of which tell the ledger what they see.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kinfolk::error::{CallError, HandlerError, OpenError, StreamError};
use kinfolk::{
    EndpointId, Incoming, Node, Options, Outcome, ProtocolName, RecvStream, SendStream, Service,
};

use super::ledger::{self, Ledger};
use super::life::Asks;
use super::plan::{Call, Opening, Stream};

pub const TASK: ProtocolName = ProtocolName::from_static("chaos/task/1");
pub const PIPE: ProtocolName = ProtocolName::from_static("chaos/pipe/1");

/// What a stream begins with: its number, how many bytes are to come back, and whether they are to end well.
const GREETING: usize = 13;

/// Most bytes written at once.
const PIECE: usize = 16 * 1024;

/// Payload bytes of [`PIPE`] that this life's app has handed over and was given.
#[derive(Debug, Default)]
pub struct Bytes {
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

/// Notes each run, and answers after a while.
pub fn task(ledger: &Arc<Ledger>) -> Service {
    let ledger = Arc::clone(ledger);
    Service::call(move |_peer, (call, takes): (u64, Duration)| {
        ledger.ran(call);
        async move {
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            Ok(call)
        }
    })
}

/// Makes a call and says how it ended.
pub async fn call(node: Node, to: EndpointId, id: u64, call: Call, ledger: &Ledger, asks: &Asks) {
    let options = if call.is_idempotent { Options::new().idempotent() } else { Options::new() };
    asks.begin();
    ledger.asked(id, call.is_idempotent);
    let request = (id, call.takes);
    let asking = node.call_with::<_, u64>(to, TASK, &request, options);
    let Some(answer) = unless(call.cancelled, asking).await else {
        asks.end(&Outcome::Cancelled);
        return;
    };
    let outcome = match answer {
        Ok(echo) => {
            if echo != id {
                ledger.blame(format!("call {id} got the answer of {echo}"));
            }
            Outcome::Done
        }
        Err(CallError::Intent(error)) => error.outcome(),
        Err(error) => {
            ledger.blame(format!("call {id}: {error}"));
            Outcome::Done
        }
    };
    asks.end(&outcome);
    ledger.ended(id, outcome.name());
}

/// Reads to the end, and meanwhile sends back what the opener wants.
pub fn pipe(ledger: &Arc<Ledger>, bytes: &Arc<Bytes>) -> Service {
    let (ledger, bytes) = (Arc::clone(ledger), Arc::clone(bytes));
    Service::stream(move |incoming| {
        let (ledger, bytes) = (Arc::clone(&ledger), Arc::clone(&bytes));
        async move { answer(incoming, &ledger, &bytes).await }
    })
}

async fn answer(mut stream: Incoming, ledger: &Ledger, bytes: &Bytes) -> Result<(), HandlerError> {
    let mut greeting = [0; GREETING];
    let mut filled = 0;
    while filled < GREETING {
        let Some(read) = stream.recv.read(&mut greeting[filled..]).await? else {
            ledger.blame("a clean end before the greeting");
            return Err(HandlerError::new("no greeting"));
        };
        bytes.received.fetch_add(read as u64, Ordering::Relaxed);
        filled += read;
    }
    let [i0, i1, i2, i3, i4, i5, i6, i7, d0, d1, d2, d3, is_answered] = greeting;
    let id = u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
    let down = u32::from_le_bytes([d0, d1, d2, d3]);
    let is_answered = is_answered == 1;
    ledger.stream(id, |stream| stream.is_taken = true);
    let length = if is_answered { down } else { down / 2 };
    let (received, sent) = tokio::join!(
        drink(&mut stream.recv, id, 0, ledger, bytes),
        pour(&mut stream.send, id, 1, length, bytes),
    );
    let received = received?;
    ledger.stream(id, |stream| stream.up.received = Some(received));
    sent?;
    if !is_answered {
        return Err(HandlerError::new("on purpose"));
    }
    let length = u64::from(length);
    ledger.stream(id, |stream| stream.down.finished = Some(length));
    stream.send.finish()?;
    if stream.send.acknowledged().await.is_ok() {
        ledger.stream(id, |stream| stream.down.acknowledged = Some(length));
    }
    Ok(())
}

/// Opens a stream, says how that ended, and uses it as planned.
pub async fn open(
    node: Node,
    to: EndpointId,
    id: u64,
    stream: Stream,
    ledger: &Ledger,
    asks: &Asks,
) {
    asks.begin();
    let mut is_open = false;
    let using = async {
        let opened: Result<_, OpenError> = match stream.opening {
            Opening::Acked => node.open(to, PIPE).await,
            Opening::Eager => node.open_eager(to, PIPE).await,
            Opening::OnlyIfLive => node.try_open(to, PIPE).await,
        };
        is_open = true;
        asks.end(&opened.as_ref().err().map_or(Outcome::Done, OpenError::outcome));
        if let Ok((send, recv)) = opened {
            // How it ends is in the ledger.
            let _ = converse(send, recv, id, stream, ledger, &asks.bytes).await;
        }
    };
    let is_cancelled = unless(stream.cancelled, using).await.is_none();
    if is_cancelled && !is_open {
        asks.end(&Outcome::Cancelled);
    }
    if is_cancelled {
        ledger.stream(id, ledger::Stream::given_up);
    }
}

async fn converse(
    mut send: SendStream,
    mut recv: RecvStream,
    id: u64,
    stream: Stream,
    ledger: &Ledger,
    bytes: &Bytes,
) -> Result<(), StreamError> {
    let is_answered = stream.opening != Opening::Eager;
    ledger.stream(id, |stream| stream.opened(is_answered));
    let mut greeting = [0; GREETING];
    greeting[..8].copy_from_slice(&id.to_le_bytes());
    greeting[8..12].copy_from_slice(&stream.down.to_le_bytes());
    greeting[12] = stream.is_answered.into();
    write(&mut send, &greeting, bytes).await?;
    if !stream.finishes {
        return pour(&mut send, id, 0, stream.up / 2, bytes).await;
    }
    let up = u64::from(stream.up);
    let sending = async {
        pour(&mut send, id, 0, stream.up, bytes).await?;
        ledger.stream(id, |stream| stream.up.finished = Some(up));
        send.finish()?;
        send.acknowledged().await?;
        ledger.stream(id, |stream| stream.up.acknowledged = Some(up));
        Ok::<_, StreamError>(())
    };
    let reading = async {
        recv.answered().await?;
        ledger.stream(id, |stream| stream.is_answered = true);
        drink(&mut recv, id, 1, ledger, bytes).await
    };
    let (sent, answer) = tokio::join!(sending, reading);
    let answer = answer?;
    ledger.stream(id, |stream| stream.down.received = Some(answer));
    sent
}

/// Reads to a clean end, and says how much there was.
async fn drink(
    recv: &mut RecvStream,
    id: u64,
    side: u64,
    ledger: &Ledger,
    bytes: &Bytes,
) -> Result<u64, StreamError> {
    let mut at = 0;
    while let Some(chunk) = recv.read_chunk(64 * 1024).await? {
        bytes.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        if chunk.iter().zip(at..).any(|(byte, at)| *byte != pattern(id, side, at)) {
            ledger.blame(format!("stream {id}: other bytes came"));
        }
        at += chunk.len() as u64;
    }
    Ok(at)
}

async fn pour(
    send: &mut SendStream,
    id: u64,
    side: u64,
    length: u32,
    bytes: &Bytes,
) -> Result<(), StreamError> {
    let mut at = 0;
    while at < u64::from(length) {
        let to = u64::from(length).min(at + PIECE as u64);
        let piece: Vec<u8> = (at..to).map(|at| pattern(id, side, at)).collect();
        write(send, &piece, bytes).await?;
        at = to;
    }
    Ok(())
}

async fn write(send: &mut SendStream, mut piece: &[u8], bytes: &Bytes) -> Result<(), StreamError> {
    while !piece.is_empty() {
        let written = send.write(piece).await?;
        bytes.sent.fetch_add(written as u64, Ordering::Relaxed);
        piece = &piece[written..];
    }
    Ok(())
}

fn pattern(id: u64, side: u64, at: u64) -> u8 {
    (id.wrapping_mul(31) ^ side.wrapping_mul(97) ^ at ^ (at >> 8)) as u8
}

/// What comes of the future, unless it is dropped before.
async fn unless<F: Future>(cancelled: Option<Duration>, future: F) -> Option<F::Output> {
    match cancelled {
        Some(after) => tokio::time::timeout(after, future).await.ok(),
        None => Some(future.await),
    }
}
