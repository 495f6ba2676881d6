//! `Welcome`: the acceptor's answer to `Hello`, which makes the link live.
//!
//! It tells the dialler which incarnation it reached and what the acceptor takes. There is no frame that says no: a
//! link is refused by the close code alone, as a frame right before a close may be lost.

use super::extension::Extensions;
use super::frame::{FrameError, Reader, Writer};
use crate::id::Incarnation;

/// The acceptor's first frame on a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Welcome {
    /// The sender's minor version.
    pub minor: u16,
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// The largest body of a call's request that the sender takes, in bytes. It is the peer's claim: whoever sends a
    /// request keeps its own limit as well.
    pub call_max: u32,
    /// What later versions add.
    pub extensions: Extensions,
}

impl Welcome {
    pub(super) fn write(&self, writer: &mut Writer) -> Result<(), FrameError> {
        writer.field("minor", &self.minor)?;
        writer.field("incarnation", &self.incarnation)?;
        writer.field("call limit", &self.call_max)?;
        writer.extensions(&self.extensions);
        Ok(())
    }

    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self {
            minor: reader.field("minor")?,
            incarnation: reader.field("incarnation")?,
            call_max: reader.field("call limit")?,
            extensions: reader.extensions()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::call::CALL_MAX_DEFAULT;
    use crate::wire::frame::{Control, LENGTH_BYTES};
    use crate::wire::hello::MINOR;

    const BODY: &[u8] = b"\x01\x00\xb4\x24\x80\x80\x40";

    fn welcome() -> Welcome {
        Welcome {
            minor: MINOR,
            incarnation: Incarnation::new(0x1234),
            call_max: CALL_MAX_DEFAULT,
            extensions: Extensions::none(),
        }
    }

    fn decode(body: &[u8]) -> Result<Welcome, FrameError> {
        match Control::decode(body)? {
            Control::Welcome(welcome) => Ok(welcome),
            other => panic!("expected a welcome, came {other:?}"),
        }
    }

    #[test]
    fn a_welcome_has_exactly_these_bytes() {
        let frame = Control::Welcome(welcome()).encode().unwrap();
        assert_eq!(frame[..LENGTH_BYTES], [0, 0, 0, 7]);
        assert_eq!(frame[LENGTH_BYTES..], *BODY);
        assert_eq!(decode(BODY), Ok(welcome()));
    }

    #[test]
    fn the_largest_numbers_fit() {
        let incarnation = Incarnation::new(u64::MAX);
        let largest = Welcome {
            minor: u16::MAX,
            incarnation,
            call_max: u32::MAX,
            extensions: Extensions::none(),
        };
        let frame = Control::Welcome(largest.clone()).encode().unwrap();
        assert_eq!(decode(&frame[LENGTH_BYTES..]), Ok(largest));
    }

    #[test]
    fn a_newer_minor_with_unknown_extensions_is_understood() {
        let body = b"\x01\x01\x02\x03\x00\x00\x04\x01!";
        let welcome = decode(body).unwrap();
        assert_eq!((welcome.minor, welcome.call_max), (1, 3));
        assert_eq!(Control::Welcome(welcome).encode().unwrap()[LENGTH_BYTES..], body[..]);
    }

    #[test]
    fn a_welcome_cut_anywhere_is_refused() {
        for end in 1..BODY.len() {
            let cut = decode(&BODY[..end]);
            assert!(matches!(cut, Err(FrameError::Truncated { .. })), "{end}: {cut:?}");
        }
    }

    #[test]
    fn needless_bytes_in_a_number_are_refused() {
        for body in [&b"\x01\x80\x00\x02\x03"[..], b"\x01\x00\x82\x00\x03", b"\x01\x00\x02\x83\x00"]
        {
            assert_eq!(decode(body), Err(FrameError::NonCanonical), "{body:?}");
        }
    }

    #[test]
    fn a_call_limit_beyond_32_bits_is_refused() {
        let body = b"\x01\x00\x02\xff\xff\xff\xff\x1f";
        assert_eq!(decode(body), Err(FrameError::Undecodable { field: "call limit" }));
    }
}
