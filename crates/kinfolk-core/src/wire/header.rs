//! The header of a protocol stream: which protocol the opener wants, and when it expects the answer.
//!
//! It is the first frame on every bidirectional stream but the control stream, written by the opener; the acceptor
//! answers with one [`Answer`](super::refuse::Answer) byte. Whether the protocol is served, and to whom, is not
//! decided here.

use super::extension::Extensions;
use super::frame::{self, FrameError, Reader};
use crate::id::ProtocolName;

/// The longest body of a header. A header of this version has at most 66 bytes; the rest is room for extensions.
pub const HEADER_MAX: usize = 1024;

/// The longest header without extensions: a byte for the length of the name, the name, a byte for the mode.
const FIELDS_MAX: usize = ProtocolName::MAX_LEN + 2;

/// The first frame on a protocol stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamHeader {
    /// The protocol that the opener wants to speak.
    pub protocol: ProtocolName,
    /// What follows.
    pub mode: StreamMode,
    /// What later versions add.
    pub extensions: Extensions,
}

/// What the opener does after the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamMode {
    /// It waits for the answer before it sends payload.
    Acked,
    /// It sends payload at once, and reads the answer when it first reads.
    Eager,
    /// It sends one request frame at once, ends its side, and expects the answer and one response frame.
    Call,
    /// It sends one request frame at once, ends its side, and expects the answer and any number of response frames up to their end.
    CallStream,
}

impl StreamHeader {
    /// A header without extensions.
    pub const fn new(protocol: ProtocolName, mode: StreamMode) -> Self {
        Self { protocol, mode, extensions: Extensions::none() }
    }

    /// The whole frame, prefix included.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut fields = [0; FIELDS_MAX];
        let fields = self.fields(&mut fields)?;
        frame::encode_parts([fields, self.extensions.as_bytes()], HEADER_MAX)
    }

    /// The header with this body, which comes without its prefix.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        frame::check_body(body, HEADER_MAX)?;
        let mut reader = Reader::new(body);
        let protocol = ProtocolName::new(reader.field::<&str>("protocol")?)?;
        let mode = StreamMode::from_byte(reader.field("mode")?)?;
        let extensions = reader.extensions()?;
        let header = Self { protocol, mode, extensions };
        let mut fields = [0; FIELDS_MAX];
        let fields = header.fields(&mut fields)?;
        match body.strip_prefix(fields) {
            Some(rest) if rest == header.extensions.as_bytes() => Ok(header),
            _ => Err(FrameError::NonCanonical),
        }
    }

    /// What comes before the extensions, written into a buffer on the stack: every stream has a header at both ends.
    fn fields<'a>(&self, buffer: &'a mut [u8; FIELDS_MAX]) -> Result<&'a [u8], FrameError> {
        match postcard::to_slice(&(self.protocol.as_str(), self.mode.to_byte()), buffer) {
            Ok(fields) => Ok(fields),
            Err(_) => Err(FrameError::Unencodable { field: "protocol" }),
        }
    }
}

impl StreamMode {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Acked => 0,
            Self::Eager => 1,
            Self::Call => 2,
            Self::CallStream => 3,
        }
    }

    /// An unknown mode is an error, not a default: the acceptor could not tell what the bytes behind the header are.
    fn from_byte(byte: u8) -> Result<Self, FrameError> {
        match byte {
            0 => Ok(Self::Acked),
            1 => Ok(Self::Eager),
            2 => Ok(Self::Call),
            3 => Ok(Self::CallStream),
            other => Err(FrameError::InvalidField {
                field: "mode",
                expected: "0 to 3",
                came: other.into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ProtocolNameError;
    use crate::wire::frame::LENGTH_BYTES;

    const ECHO: ProtocolName = ProtocolName::from_static("echo/1");

    #[test]
    fn a_header_has_exactly_these_bytes() {
        for (mode, byte) in [
            (StreamMode::Acked, 0),
            (StreamMode::Eager, 1),
            (StreamMode::Call, 2),
            (StreamMode::CallStream, 3),
        ] {
            let header = StreamHeader::new(ECHO, mode);
            let body = [&b"\x06echo/1"[..], &[byte]].concat();
            let frame = header.encode().unwrap();
            assert_eq!(frame[..LENGTH_BYTES], [0, 0, 0, 8]);
            assert_eq!(frame[LENGTH_BYTES..], body[..]);
            assert_eq!(StreamHeader::decode(&body), Ok(header));
        }
    }

    #[test]
    fn a_header_is_written_into_one_buffer_of_its_size() {
        let extensions = Extensions::none().with(5, b"new").unwrap();
        let header = StreamHeader { extensions, ..StreamHeader::new(ECHO, StreamMode::Call) };
        let frame = header.encode().unwrap();
        assert_eq!(frame.capacity(), frame.len());
    }

    #[test]
    fn the_longest_name_fits() {
        let protocol = ProtocolName::new("x".repeat(ProtocolName::MAX_LEN)).unwrap();
        let header = StreamHeader::new(protocol, StreamMode::Acked);
        let frame = header.encode().unwrap();
        assert_eq!(frame.len(), LENGTH_BYTES + 66);
        assert_eq!(StreamHeader::decode(&frame[LENGTH_BYTES..]), Ok(header));
    }

    #[test]
    fn unknown_extensions_are_kept() {
        let body = b"\x01x\x01\x05\x03new";
        let header = StreamHeader::decode(body).unwrap();
        assert_eq!(header.extensions.get(5), Some(&b"new"[..]));
        assert_eq!(header.encode().unwrap()[LENGTH_BYTES..], body[..]);
    }

    #[test]
    fn an_unknown_mode_is_refused() {
        for mode in 4..=255 {
            let refused = StreamHeader::decode(&[1, b'x', mode]);
            assert!(
                matches!(refused, Err(FrameError::InvalidField { field: "mode", .. })),
                "{mode}"
            );
        }
    }

    #[test]
    fn a_name_that_is_invalid_is_refused() {
        let long = [&b"\x41"[..], &[b'x'; 65], b"\x00"].concat();
        for (body, error) in [
            (&b"\x00\x00"[..], ProtocolNameError::Empty),
            (b"\x01 \x00", ProtocolNameError::NotGraphic { byte: b' ' }),
            (b"\x02\xc3\xa9\x00", ProtocolNameError::NotGraphic { byte: 0xc3 }),
            (&long, ProtocolNameError::TooLong { len: 65 }),
        ] {
            assert_eq!(StreamHeader::decode(body), Err(FrameError::InvalidProtocol(error)));
        }
    }

    #[test]
    fn a_name_that_is_not_utf8_is_refused() {
        let undecodable = FrameError::Undecodable { field: "protocol" };
        assert_eq!(StreamHeader::decode(b"\x02\xff\xfe\x00"), Err(undecodable));
    }

    #[test]
    fn a_claimed_name_length_beyond_the_body_is_refused() {
        let four_gib = b"\x80\x80\x80\x80\x10x\x00";
        let largest = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x\x00";
        for body in [&four_gib[..], largest] {
            assert_eq!(
                StreamHeader::decode(body),
                Err(FrameError::Truncated { field: "protocol" })
            );
        }
    }

    #[test]
    fn a_header_cut_anywhere_is_refused() {
        let body = b"\x06echo/1\x00";
        assert_eq!(StreamHeader::decode(&[]), Err(FrameError::Empty));
        for end in 1..body.len() {
            let cut = StreamHeader::decode(&body[..end]);
            assert!(matches!(cut, Err(FrameError::Truncated { .. })), "{end}: {cut:?}");
        }
    }

    #[test]
    fn needless_bytes_in_a_length_are_refused() {
        assert_eq!(StreamHeader::decode(b"\x81\x00x\x00"), Err(FrameError::NonCanonical));
        assert_eq!(StreamHeader::decode(b"\x01x\x00\x05\x80\x00"), Err(FrameError::NonCanonical));
        assert_eq!(StreamHeader::decode(b"\x01x\x00\x85\x00\x00"), Err(FrameError::NonCanonical));
    }

    #[test]
    fn a_header_above_the_limit_is_neither_sent_nor_read() {
        let extensions = Extensions::none().with(0, &[0; HEADER_MAX]).unwrap();
        let header = StreamHeader { extensions, ..StreamHeader::new(ECHO, StreamMode::Acked) };
        assert!(matches!(header.encode(), Err(FrameError::TooLarge { .. })));
        let read = StreamHeader::decode(&[0; HEADER_MAX + 1]);
        assert!(matches!(read, Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn a_flipped_bit_is_refused_or_gives_another_header_with_exactly_these_bytes() {
        let extensions = Extensions::none().with(300, b"new").unwrap();
        let header = StreamHeader { extensions, ..StreamHeader::new(ECHO, StreamMode::Eager) };
        let sent = header.encode().unwrap()[LENGTH_BYTES..].to_vec();
        for at in 0..sent.len() * 8 {
            let mut flipped = sent.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            if let Ok(other) = StreamHeader::decode(&flipped) {
                assert_ne!(other, header);
                assert_eq!(other.encode().unwrap()[LENGTH_BYTES..], flipped[..]);
            }
        }
    }
}
