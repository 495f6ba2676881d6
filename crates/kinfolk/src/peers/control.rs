//! The control stream: reading its frames within bounds, and writing them in order.
//!
//! It serves Session and Accept. Reading checks the length before it allocates; what a frame means is decided by its reader.

use futures_util::FutureExt;
use iroh::endpoint::{ReadExactError, RecvStream, SendStream, WriteError};
use kinfolk_core::wire::Control;
use kinfolk_core::wire::frame::{self, CONTROL_MAX, FrameError, LENGTH_BYTES};
use thiserror::Error;

/// Why a control frame could not be read or written.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    /// The peer sent bytes that are no frame.
    #[error("the peer's control frame is malformed: {0}")]
    Malformed(#[from] FrameError),
    /// The frame may not be sent by that side, or not again.
    #[error("the peer sent a control frame that is not its turn")]
    OutOfTurn,
    /// The peer ended the control stream, or ended it inside a frame.
    #[error("the peer ended the control stream")]
    Ended,
    /// The connection is gone.
    #[error("the connection is gone")]
    Lost,
}

/// Which frames a peer may still send after its first. Each at most once, so that it can cause no more than a handful of messages.
#[derive(Debug)]
pub(crate) struct Turns {
    welcome: bool,
    goodbye: bool,
    done: bool,
}

impl Turns {
    /// The turns of the peer on a link that this side dialled, or that the peer did.
    pub(crate) fn new(dialled_here: bool) -> Self {
        Self { welcome: dialled_here, goodbye: false, done: false }
    }

    /// Takes a frame if it is its turn: `Welcome` first (from the acceptor), then `Goodbye`, then `Done`. An acceptor that refuses says
    /// `Goodbye` instead of `Welcome`.
    pub(crate) fn take(&mut self, frame: Control) -> Result<Control, ControlError> {
        let taken = match &frame {
            Control::Hello(_) => false,
            Control::Welcome(_) => std::mem::take(&mut self.welcome),
            Control::Goodbye(_) => {
                self.welcome = false;
                !std::mem::replace(&mut self.goodbye, true)
            }
            Control::Done(_) => self.goodbye && !std::mem::replace(&mut self.done, true),
        };
        if taken { Ok(frame) } else { Err(ControlError::OutOfTurn) }
    }
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

#[cfg(test)]
mod tests {
    use kinfolk_core::code::Code;
    use kinfolk_core::id::Incarnation;
    use kinfolk_core::wire::{Extensions, Goodbye, MINOR, Welcome};

    use super::*;

    fn welcome() -> Control {
        Control::Welcome(Welcome {
            minor: MINOR,
            incarnation: Incarnation::new(1),
            call_max: 1,
            extensions: Extensions::none(),
        })
    }

    fn goodbye() -> Control {
        Control::Goodbye(Goodbye::new(Code::Ok, 0, std::time::Duration::ZERO))
    }

    fn done() -> Control {
        Control::Done(Extensions::none())
    }

    #[test]
    fn an_acceptor_may_say_welcome_goodbye_and_done_once_each_in_this_order() {
        let mut turns = Turns::new(true);
        for frame in [welcome(), goodbye(), done()] {
            assert!(turns.take(frame).is_ok());
        }
        for frame in [welcome(), goodbye(), done()] {
            assert!(turns.take(frame).is_err());
        }
    }

    #[test]
    fn an_acceptor_may_say_goodbye_instead_of_welcome_and_not_both() {
        let mut turns = Turns::new(true);
        assert!(turns.take(goodbye()).is_ok());
        assert!(turns.take(welcome()).is_err());
    }

    #[test]
    fn nothing_may_come_before_its_turn() {
        assert!(Turns::new(true).take(done()).is_err());
        assert!(Turns::new(false).take(welcome()).is_err());
        assert!(Turns::new(false).take(done()).is_err());
        assert!(Turns::new(false).take(goodbye()).is_ok());
    }
}
