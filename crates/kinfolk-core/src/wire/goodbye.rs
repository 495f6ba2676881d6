//! `Goodbye`: the sender takes no new streams on this link and will close it.
//!
//! It says which streams were never served, so that the receiver can ask for those again on the next link, even where
//! payload was sent. Open streams may finish until the deadline; when to close is decided by the session.

use std::time::Duration;

use super::extension::Extensions;
use super::frame::{FrameError, Reader, Writer};
use crate::code::Code;

/// The beginning of a graceful close, sent by either side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Goodbye {
    /// Why the link will close.
    pub code: Code,
    /// How many protocol streams of the receiver its sender has accepted, in the order in which they were opened. A
    /// stream that was opened later was never served, and never will be.
    pub served: u64,
    /// How long open streams may go on, in milliseconds, as it is on the wire; read it with [`Goodbye::within`].
    pub within_ms: u32,
    /// What later versions add.
    pub extensions: Extensions,
}

impl Goodbye {
    /// The longest drain that a peer can ask for. The wire could say 49 days; an hour is a guess at what a large
    /// transfer needs to finish.
    pub const WITHIN_MAX: Duration = Duration::from_hours(1);

    /// A frame without extensions. A time longer than [`Goodbye::WITHIN_MAX`] is shortened to it.
    pub fn new(code: Code, served: u64, within: Duration) -> Self {
        let within = within.min(Self::WITHIN_MAX).as_millis();
        let within_ms = u32::try_from(within).unwrap_or(u32::MAX);
        Self { code, served, within_ms, extensions: Extensions::none() }
    }

    /// How long open streams may go on, at most [`Goodbye::WITHIN_MAX`].
    pub fn within(&self) -> Duration {
        Duration::from_millis(self.within_ms.into()).min(Self::WITHIN_MAX)
    }

    pub(super) fn write(&self, writer: &mut Writer) -> Result<(), FrameError> {
        writer.field("code", &self.code.to_wire())?;
        writer.field("served", &self.served)?;
        writer.field("drain time", &self.within_ms)?;
        writer.extensions(&self.extensions);
        Ok(())
    }

    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self {
            code: read_code(&mut reader)?,
            served: reader.field("served")?,
            within_ms: reader.field("drain time")?,
            extensions: reader.extensions()?,
        })
    }
}

/// A 0 is no dropped handle here, since somebody wrote the frame: it is an error.
fn read_code(reader: &mut Reader<'_>) -> Result<Code, FrameError> {
    match reader.field::<u8>("code")? {
        0 => Err(FrameError::InvalidField { field: "code", expected: "1 to 255", came: 0 }),
        number => Ok(Code::from_wire(number.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Control, LENGTH_BYTES};

    const BODY: &[u8] = b"\x02\x05\xac\x02\x88\x27";

    fn goodbye() -> Goodbye {
        Goodbye::new(Code::Draining, 300, Duration::from_secs(5))
    }

    fn decode(body: &[u8]) -> Result<Goodbye, FrameError> {
        match Control::decode(body)? {
            Control::Goodbye(goodbye) => Ok(goodbye),
            other => panic!("expected a goodbye, came {other:?}"),
        }
    }

    #[test]
    fn a_goodbye_has_exactly_these_bytes() {
        let frame = Control::Goodbye(goodbye()).encode().unwrap();
        assert_eq!(frame[..LENGTH_BYTES], [0, 0, 0, 6]);
        assert_eq!(frame[LENGTH_BYTES..], *BODY);
        assert_eq!(decode(BODY), Ok(goodbye()));
        assert_eq!(goodbye().within(), Duration::from_secs(5));
    }

    #[test]
    fn a_code_of_a_newer_peer_is_kept() {
        let goodbye = decode(b"\x02\xc8\x00\x00").unwrap();
        assert_eq!(goodbye.code, Code::from_wire(200));
        assert_eq!(
            Control::Goodbye(goodbye).encode().unwrap()[LENGTH_BYTES..],
            b"\x02\xc8\x00\x00"[..]
        );
    }

    #[test]
    fn a_written_code_is_never_zero() {
        let refused = decode(b"\x02\x00\x00\x00");
        assert!(matches!(refused, Err(FrameError::InvalidField { came: 0, .. })), "{refused:?}");
        let unspecified = Goodbye::new(Code::Unspecified, 0, Duration::ZERO);
        assert_eq!(
            Control::Goodbye(unspecified).encode().unwrap()[LENGTH_BYTES..],
            b"\x02\xff\x00\x00"[..]
        );
    }

    #[test]
    fn no_peer_makes_a_drain_last_longer_than_an_hour() {
        let largest = b"\x02\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\xff\xff\xff\xff\x0f";
        let goodbye = decode(largest).unwrap();
        assert_eq!((goodbye.served, goodbye.within_ms), (u64::MAX, u32::MAX));
        assert_eq!(goodbye.within(), Goodbye::WITHIN_MAX);
        assert_eq!(Goodbye::new(Code::Ok, 0, Duration::MAX).within(), Goodbye::WITHIN_MAX);
    }

    #[test]
    fn unknown_extensions_are_kept() {
        let body = b"\x02\x01\x00\x00\x00\x02hi";
        let goodbye = decode(body).unwrap();
        assert_eq!(goodbye.extensions.get(0), Some(&b"hi"[..]));
        assert_eq!(Control::Goodbye(goodbye).encode().unwrap()[LENGTH_BYTES..], body[..]);
    }

    #[test]
    fn a_goodbye_cut_anywhere_is_refused() {
        for end in 1..BODY.len() {
            let cut = decode(&BODY[..end]);
            assert!(matches!(cut, Err(FrameError::Truncated { .. })), "{end}: {cut:?}");
        }
    }

    #[test]
    fn needless_bytes_in_a_number_are_refused() {
        for body in [&b"\x02\x01\x80\x00\x00"[..], b"\x02\x01\x00\x80\x00"] {
            assert_eq!(decode(body), Err(FrameError::NonCanonical), "{body:?}");
        }
    }
}
