//! The control stream: reading its frames within bounds, and writing them in order.
//!
//! It serves Session and Accept. Reading checks the length before it allocates; what a frame means is decided by its reader.

use futures_util::FutureExt;
use iroh::endpoint::{ReadExactError, RecvStream, SendStream, WriteError};
use kinfolk_core::wire::frame::{self, CONTROL_MAX, FrameError, LENGTH_BYTES};
use kinfolk_core::wire::{Control, OutOfTurn};
use thiserror::Error;

/// Why a control frame could not be read or written.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    /// The peer sent bytes that are no frame.
    #[error("the peer's control frame is malformed: {0}")]
    Malformed(#[from] FrameError),
    /// The frame may not be sent by that side, or not again.
    #[error(transparent)]
    OutOfTurn(#[from] OutOfTurn),
    /// The peer ended the control stream, or ended it inside a frame.
    #[error("the peer ended the control stream")]
    Ended,
    /// The connection is gone.
    #[error("the connection is gone")]
    Lost,
}

/// Reads one frame. Not cancel safe: give the stream up when it is cancelled.
pub(crate) async fn read(stream: &mut RecvStream) -> Result<Control, ControlError> {
    let mut prefix = [0; LENGTH_BYTES];
    read_exact(stream, &mut prefix).await?;
    let length = frame::length(prefix, CONTROL_MAX)?;
    let mut body = vec![0; length];
    read_exact(stream, &mut body).await?;
    Ok(Control::decode(&body)?)
}

async fn read_exact(stream: &mut RecvStream, buffer: &mut [u8]) -> Result<(), ControlError> {
    stream.read_exact(buffer).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(_) => ControlError::Ended,
        ReadExactError::ReadError(iroh::endpoint::ReadError::Reset(_)) => ControlError::Ended,
        ReadExactError::ReadError(_) => ControlError::Lost,
    })
}

/// Writes as many of the bytes as QUIC takes at this moment, and returns how many.
pub(crate) fn write_now(stream: &mut SendStream, bytes: &[u8]) -> Result<usize, ControlError> {
    match stream.write(bytes).now_or_never() {
        None => Ok(0),
        Some(Ok(written)) => Ok(written),
        Some(Err(WriteError::Stopped(_) | WriteError::ClosedStream)) => Err(ControlError::Ended),
        Some(Err(_)) => Err(ControlError::Lost),
    }
}

/// Writes one frame.
pub(crate) async fn write(stream: &mut SendStream, frame: &Control) -> Result<(), ControlError> {
    let bytes = frame.encode()?;
    stream.write_all(&bytes).await.map_err(|error| match error {
        WriteError::Stopped(_) | WriteError::ClosedStream => ControlError::Ended,
        _ => ControlError::Lost,
    })
}
