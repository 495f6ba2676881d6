//! The acceptor's answer to a stream header: one byte, and so never half received.
//!
//! 0 is the ack; any other byte is the number of the [`Code`] that refuses the stream, which works because no code has
//! number 0. The answer comes before a handler has the stream. What happens to the stream afterwards is said by
//! resetting or stopping it with a code.

use crate::code::Code;

/// Whether the acceptor takes a protocol stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// It does, and gives it to the protocol's handler.
    Ack,
    /// It does not, and says why.
    Refuse(Code),
}

impl Answer {
    const ACK: u8 = 0;

    /// The byte on the wire.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Ack => Self::ACK,
            Self::Refuse(code) => code.to_wire(),
        }
    }

    /// The answer that this byte is. Every byte is one.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            Self::ACK => Self::Ack,
            number => Self::Refuse(Code::from_wire(number.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_is_zero_and_a_refusal_its_code() {
        assert_eq!(Answer::Ack.to_byte(), 0);
        assert_eq!(Answer::Refuse(Code::UnknownProtocol).to_byte(), 11);
        assert_eq!(Answer::from_byte(0), Answer::Ack);
        assert_eq!(Answer::from_byte(5), Answer::Refuse(Code::Draining));
    }

    #[test]
    fn every_byte_comes_back_unchanged() {
        for byte in 0..=255 {
            assert_eq!(Answer::from_byte(byte).to_byte(), byte);
        }
    }

    #[test]
    fn no_refusal_reads_as_an_ack() {
        for code in Code::ASSIGNED {
            assert_eq!(Answer::from_byte(Answer::Refuse(*code).to_byte()), Answer::Refuse(*code));
        }
        assert_ne!(Answer::Refuse(Code::from_wire(0)).to_byte(), 0);
    }
}
