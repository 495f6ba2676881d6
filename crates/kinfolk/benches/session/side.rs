//! The work that both sides do, each in its own way.

use std::future::Future;
use std::time::Duration;

/// Bytes of a small message.
pub const SMALL: usize = 64;

/// Bytes of a chunk of a bulk stream.
pub const CHUNK: usize = 64 * 1024;

/// One end of a connection to a peer that serves. Each method does one unit of work and says how long the timed part took; closing
/// what was opened is done but not timed, the same on both sides.
pub trait Side: Clone + Send + Sync + 'static {
    /// Opens a stream and hears one byte from the peer.
    fn open(&self) -> impl Future<Output = Duration> + Send;

    /// Sends [`SMALL`] bytes with an end, and receives them with an end.
    fn call(&self) -> impl Future<Output = Duration> + Send;

    /// Opens a stream, sends [`SMALL`] bytes in the first flight, and receives them.
    fn eager(&self) -> impl Future<Output = Duration> + Send;

    /// Sends so many chunks on one stream and waits until the peer has read them.
    fn push(&self, chunks: usize) -> impl Future<Output = Duration> + Send;

    /// Connects anew and calls; the old connection was closed before.
    fn cold(&self) -> impl Future<Output = Duration> + Send;
}
