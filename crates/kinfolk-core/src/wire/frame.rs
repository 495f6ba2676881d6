//! What all frames share: the length before the body, the way fields are read and written, and the frames of the
//! control stream.
//!
//! On the wire a frame is a big-endian `u32`, the length of the body, and the body. The body of a control frame is one
//! byte for its kind, its fields in postcard, and [`Extensions`] up to the end. A peer of another minor version adds
//! extensions and never touches the fields.
//!
//! The async side reads and writes the bytes; this module never waits for any.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::extension::Extensions;
use super::goodbye::Goodbye;
use super::hello::Hello;
use super::welcome::Welcome;
use crate::code::Code;
use crate::id::ProtocolNameError;

/// The longest body on the control stream. The largest frame of this version has about 300 bytes; the rest is room for
/// extensions.
pub const CONTROL_MAX: usize = 16 * 1024;

/// The bytes before the body, which hold its length.
pub const LENGTH_BYTES: usize = 4;

/// Why bytes are no frame, or why a value cannot be sent as one.
///
/// While decoding, all variants but [`FrameError::Unencodable`] are the fault of the peer that wrote the bytes; while
/// encoding, of the caller who made the value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The body is longer than allowed.
    #[error("expected a frame of at most {max} bytes, came {len}")]
    TooLarge {
        /// Its length, or the length that its prefix claims.
        len: usize,
        /// The longest that was allowed.
        max: usize,
    },
    /// The body has no bytes.
    #[error("expected a frame with a body, came one of no bytes")]
    Empty,
    /// The body ends too early.
    #[error("expected more bytes for {field}, came the end of the frame")]
    Truncated {
        /// What could not be read in full.
        field: &'static str,
    },
    /// No control frame of this version begins with this byte.
    #[error("expected a control frame of kind 0 to 3, came {0}")]
    UnknownKind(u8),
    /// The bytes can be read, yet the same frame has a shorter encoding, and only that one is allowed.
    #[error("expected the canonical encoding of the frame, came another one")]
    NonCanonical,
    /// A field has a value that is not allowed.
    #[error("expected {expected} for {field}, came {came}")]
    InvalidField {
        /// The field.
        field: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// The value.
        came: u64,
    },
    /// A stream header names no valid protocol.
    #[error("expected a protocol name, came an invalid one")]
    InvalidProtocol(#[from] ProtocolNameError),
    /// A field holds a text that is no valid name.
    #[error("expected a name for {field}, came an invalid one")]
    InvalidName {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: ProtocolNameError,
    },
    /// The bytes of a field are no value of its type: an overlong number, a text that is not UTF-8, a truth value that
    /// is neither 0 nor 1.
    #[error("expected a value for {field}, came bytes that are none")]
    Undecodable {
        /// The field.
        field: &'static str,
    },
    /// A field of ours could not be written. No value of this version is known to do that.
    #[error("expected {field} to be encodable, it is not")]
    Unencodable {
        /// The field.
        field: &'static str,
    },
}

impl FrameError {
    /// What to tell the peer whose bytes failed to decode.
    pub const fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } => Code::TooLarge,
            Self::Empty
            | Self::Truncated { .. }
            | Self::UnknownKind(_)
            | Self::NonCanonical
            | Self::InvalidField { .. }
            | Self::InvalidProtocol(_)
            | Self::InvalidName { .. }
            | Self::Undecodable { .. } => Code::Malformed,
            Self::Unencodable { .. } => Code::Internal,
        }
    }
}

/// The length of the body that follows this prefix. It is 1 to `max`, so that room for it can be allocated.
pub fn length(prefix: [u8; LENGTH_BYTES], max: usize) -> Result<usize, FrameError> {
    match usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX) {
        0 => Err(FrameError::Empty),
        len if len > max => Err(FrameError::TooLarge { len, max }),
        len => Ok(len),
    }
}

/// A whole frame: the prefix and this body, which must have 1 to `max` bytes.
pub fn encode_frame(body: &[u8], max: usize) -> Result<Vec<u8>, FrameError> {
    encode_parts([body, &[]], max)
}

/// A whole frame whose body is these two parts, in one allocation.
pub(super) fn encode_parts(parts: [&[u8]; 2], max: usize) -> Result<Vec<u8>, FrameError> {
    let [head, tail] = parts;
    let len = head.len().saturating_add(tail.len());
    check_len(len, max)?;
    let Ok(prefix) = u32::try_from(len) else {
        return Err(FrameError::TooLarge { len, max });
    };
    Ok([&prefix.to_be_bytes(), head, tail].concat())
}

/// A frame of the control stream, the first bidirectional stream of a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Control {
    /// The dialler's first frame.
    Hello(Hello),
    /// The acceptor's answer: the link is live.
    Welcome(Welcome),
    /// The sender takes no new streams.
    Goodbye(Goodbye),
    /// The sender will send no more, and its app has read or stopped every stream. It has no fields, only
    /// [`Extensions`].
    Done(Extensions),
}

impl Control {
    const HELLO: u8 = 0;
    const WELCOME: u8 = 1;
    const GOODBYE: u8 = 2;
    const DONE: u8 = 3;

    /// The whole frame, prefix included.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        encode_frame(&self.encode_body()?, CONTROL_MAX)
    }

    /// The frame with this body, which comes without its prefix.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        check_body(body, CONTROL_MAX)?;
        let mut reader = Reader::new(body);
        let control = match reader.field("kind")? {
            Self::HELLO => Self::Hello(Hello::read(reader)?),
            Self::WELCOME => Self::Welcome(Welcome::read(reader)?),
            Self::GOODBYE => Self::Goodbye(Goodbye::read(reader)?),
            Self::DONE => Self::Done(reader.extensions()?),
            kind => return Err(FrameError::UnknownKind(kind)),
        };
        check_canonical(body, &control.encode_body()?)?;
        Ok(control)
    }

    fn encode_body(&self) -> Result<Vec<u8>, FrameError> {
        let mut writer = Writer::default();
        match self {
            Self::Hello(hello) => {
                writer.field("kind", &Self::HELLO)?;
                hello.write(&mut writer)?;
            }
            Self::Welcome(welcome) => {
                writer.field("kind", &Self::WELCOME)?;
                welcome.write(&mut writer)?;
            }
            Self::Goodbye(goodbye) => {
                writer.field("kind", &Self::GOODBYE)?;
                goodbye.write(&mut writer)?;
            }
            Self::Done(extensions) => {
                writer.field("kind", &Self::DONE)?;
                writer.extensions(extensions);
            }
        }
        Ok(writer.finish())
    }
}

/// Refuses a body that is empty or longer than `max`, whoever read it.
pub(super) fn check_body(body: &[u8], max: usize) -> Result<(), FrameError> {
    check_len(body.len(), max)
}

fn check_len(len: usize, max: usize) -> Result<(), FrameError> {
    match len {
        0 => Err(FrameError::Empty),
        len if len > max => Err(FrameError::TooLarge { len, max }),
        _ => Ok(()),
    }
}

/// Refuses a body that is not what encoding its meaning gives: postcard reads numbers with needless bytes, and two
/// encodings of one frame would let relays and signatures disagree about what was said.
pub(crate) fn check_canonical(body: &[u8], encoded: &[u8]) -> Result<(), FrameError> {
    if body == encoded { Ok(()) } else { Err(FrameError::NonCanonical) }
}

/// Reads the fields of a body one by one, so that an error names the field and nothing is read past a bad one.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next value in postcard.
    pub(crate) fn field<T: Deserialize<'a>>(
        &mut self,
        field: &'static str,
    ) -> Result<T, FrameError> {
        let (value, rest) = postcard::take_from_bytes(self.rest).map_err(|error| match error {
            postcard::Error::DeserializeUnexpectedEnd => FrameError::Truncated { field },
            _ => FrameError::Undecodable { field },
        })?;
        self.rest = rest;
        Ok(value)
    }

    /// The next count, which must be at most `max`. `expected` says so in words.
    pub(crate) fn count(
        &mut self,
        field: &'static str,
        max: usize,
        expected: &'static str,
    ) -> Result<usize, FrameError> {
        let came: u64 = self.field(field)?;
        match usize::try_from(came) {
            Ok(count) if count <= max => Ok(count),
            _ => Err(FrameError::InvalidField { field, expected, came }),
        }
    }

    /// What is left of the body.
    pub(crate) fn extensions(self) -> Result<Extensions, FrameError> {
        Extensions::parse(self.rest)
    }
}

/// Writes the fields of a body one by one, in the order in which [`Reader`] takes them.
#[derive(Default)]
pub(crate) struct Writer {
    body: Vec<u8>,
}

impl Writer {
    /// Goes on after these bytes.
    pub(super) fn after(body: Vec<u8>) -> Self {
        Self { body }
    }

    /// Appends a value in postcard.
    pub(crate) fn field<T: Serialize + ?Sized>(
        &mut self,
        field: &'static str,
        value: &T,
    ) -> Result<(), FrameError> {
        let body = std::mem::take(&mut self.body);
        self.body =
            postcard::to_extend(value, body).map_err(|_| FrameError::Unencodable { field })?;
        Ok(())
    }

    /// Appends bytes as they are.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.body.extend_from_slice(bytes);
    }

    /// Appends the extensions, which end the body.
    pub(crate) fn extensions(&mut self, extensions: &Extensions) {
        self.raw(extensions.as_bytes());
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Incarnation;
    use crate::wire::hello::DeadLink;

    /// One frame of each kind, with a few bytes in every field.
    fn samples() -> Vec<Control> {
        let extensions = Extensions::none().with(9, b"later").unwrap();
        let incarnation = Incarnation::new(u64::MAX);
        let dead = vec![DeadLink { mine: true, incarnation, n: 300 }; 2];
        vec![
            Control::Hello(Hello {
                minor: 300,
                incarnation,
                n: u64::MAX,
                dead,
                extensions: extensions.clone(),
            }),
            Control::Welcome(Welcome {
                minor: 1,
                incarnation,
                call_max: 70_000,
                extensions: extensions.clone(),
            }),
            Control::Goodbye(Goodbye {
                code: Code::Idle,
                served: 1 << 40,
                within_ms: 5_000,
                extensions: extensions.clone(),
            }),
            Control::Done(extensions),
        ]
    }

    fn body(control: &Control) -> Vec<u8> {
        control.encode().unwrap()[LENGTH_BYTES..].to_vec()
    }

    #[test]
    fn a_length_is_big_endian() {
        assert_eq!(length([0, 0, 1, 2], CONTROL_MAX), Ok(258));
    }

    #[test]
    fn a_length_of_zero_is_refused() {
        assert_eq!(length([0; 4], CONTROL_MAX), Err(FrameError::Empty));
        assert_eq!(encode_frame(&[], CONTROL_MAX), Err(FrameError::Empty));
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_anything_is_allocated() {
        let max = 258;
        assert_eq!(length([0, 0, 1, 3], max), Err(FrameError::TooLarge { len: 259, max }));
        let len = usize::try_from(u32::MAX).unwrap();
        assert_eq!(length([255; 4], max), Err(FrameError::TooLarge { len, max }));
    }

    #[test]
    fn a_body_at_the_limit_is_sent_and_one_above_it_is_not() {
        assert_eq!(encode_frame(b"abc", 3).unwrap(), b"\0\0\0\x03abc");
        assert_eq!(encode_frame(b"abcd", 3), Err(FrameError::TooLarge { len: 4, max: 3 }));
    }

    #[test]
    fn done_is_one_byte() {
        let done = Control::Done(Extensions::none());
        assert_eq!(done.encode().unwrap(), b"\0\0\0\x01\x03");
        assert_eq!(Control::decode(b"\x03"), Ok(done));
    }

    #[test]
    fn done_keeps_the_extensions_of_a_newer_peer() {
        let body = b"\x03\x07\x02hi\x80\x01\x00";
        let decoded = Control::decode(body).unwrap();
        assert_eq!(decoded.encode().unwrap()[LENGTH_BYTES..], body[..]);
        let Control::Done(extensions) = decoded else { panic!("{decoded:?}") };
        assert_eq!(extensions.get(7), Some(&b"hi"[..]));
    }

    #[test]
    fn every_kind_comes_back_as_it_was_sent() {
        for control in samples() {
            assert_eq!(Control::decode(&body(&control)), Ok(control));
        }
    }

    #[test]
    fn an_empty_body_is_refused() {
        assert_eq!(Control::decode(&[]), Err(FrameError::Empty));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        for kind in 4..=255 {
            assert_eq!(Control::decode(&[kind, 0, 0]), Err(FrameError::UnknownKind(kind)));
        }
    }

    #[test]
    fn a_body_above_the_limit_is_refused_however_it_was_read() {
        let len = CONTROL_MAX + 1;
        let max = CONTROL_MAX;
        assert_eq!(Control::decode(&vec![3; len]), Err(FrameError::TooLarge { len, max }));
    }

    #[test]
    fn a_frame_that_grew_past_the_limit_is_not_sent() {
        let extensions = Extensions::none().with(0, &vec![0; CONTROL_MAX]).unwrap();
        assert!(matches!(Control::Done(extensions).encode(), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused_or_ends_before_its_extensions() {
        for control in samples() {
            let body = body(&control);
            for end in 0..body.len() {
                let Ok(cut) = Control::decode(&body[..end]) else {
                    continue;
                };
                // The one place where a cut gives a frame: the same fields, and no extension.
                assert_eq!(end, body.len() - b"\x09\x05later".len(), "{cut:?}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_refused_or_gives_another_frame_with_exactly_these_bytes() {
        for control in samples() {
            let sent = body(&control);
            for at in 0..sent.len() * 8 {
                let mut flipped = sent.clone();
                flipped[at / 8] ^= 1 << (at % 8);
                if let Ok(other) = Control::decode(&flipped) {
                    assert_ne!(other, control);
                    assert_eq!(body(&other), flipped);
                }
            }
        }
    }

    #[test]
    fn the_peer_is_told_what_was_wrong_with_its_bytes() {
        assert_eq!(FrameError::TooLarge { len: 2, max: 1 }.code(), Code::TooLarge);
        assert_eq!(FrameError::NonCanonical.code(), Code::Malformed);
        assert_eq!(FrameError::Unencodable { field: "n" }.code(), Code::Internal);
    }

    #[test]
    fn an_error_says_what_was_expected_and_what_came() {
        let error = FrameError::InvalidField { field: "mode", expected: "0, 1 or 2", came: 7 };
        assert_eq!(error.to_string(), "expected 0, 1 or 2 for mode, came 7");
    }
}
