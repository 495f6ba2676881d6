//! Which control frames a peer may still send: each at most once, so that it can cause no more than a handful of messages.
//!
//! It decides for the reader of a control stream, from the second frame on; the `Hello` that names the link is read before.
//! It never looks into a frame.

use thiserror::Error;

use super::frame::Control;

/// A frame that its sender may not send, or not again: a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the peer sent a control frame that is not its turn")]
pub struct OutOfTurn;

/// Which frames a peer may still send after its first.
#[derive(Debug)]
pub struct Turns {
    welcome: bool,
    goodbye: bool,
    done: bool,
}

impl Turns {
    /// The turns of the peer on a link that this side dialled, or that the peer did.
    pub fn new(dialled_here: bool) -> Self {
        Self { welcome: dialled_here, goodbye: false, done: false }
    }

    /// Takes a frame if it is its turn: `Welcome` first (from the acceptor), then `Goodbye`, then `Done`. An acceptor that refuses says
    /// `Goodbye` instead of `Welcome`.
    pub fn take(&mut self, frame: Control) -> Result<Control, OutOfTurn> {
        let taken = match &frame {
            Control::Hello(_) => false,
            Control::Welcome(_) => std::mem::take(&mut self.welcome),
            Control::Goodbye(_) => {
                self.welcome = false;
                !std::mem::replace(&mut self.goodbye, true)
            }
            Control::Done(_) => self.goodbye && !std::mem::replace(&mut self.done, true),
        };
        if taken { Ok(frame) } else { Err(OutOfTurn) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Code;
    use crate::id::Incarnation;
    use crate::wire::{Extensions, Goodbye, MINOR, Welcome};

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
