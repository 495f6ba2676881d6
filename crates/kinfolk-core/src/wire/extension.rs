//! How frames grow: after the fields that a version knows come extensions that it may not know.
//!
//! An extension is its kind and its length, both as varints, and that many bytes; the last one ends with the body. A
//! reader takes those it knows and skips the rest, and they are kept, so that a frame encodes to the bytes it came as.
//! Kinds rise from one extension to the next: each can occur once, so that every reader finds the same one.
//!
//! This version knows no extension. It never interprets their bytes.

use std::iter;

use super::frame::{FrameError, Reader, Writer};

/// The extensions at the end of a frame; well-formed by construction, and bounded by the frame that holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Extensions {
    /// As on the wire.
    bytes: Vec<u8>,
}

impl Extensions {
    /// No extensions. It does not allocate.
    pub const fn none() -> Self {
        Self { bytes: Vec::new() }
    }

    /// These extensions and one more, whose kind must be larger than theirs.
    pub fn with(self, kind: u32, bytes: &[u8]) -> Result<Self, FrameError> {
        let last = self.iter().last().map(|(kind, _)| kind);
        Ok(Self { bytes: append(self.bytes, last, kind, bytes)? })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Kind and bytes of each, by rising kind.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let mut reader = Reader::new(&self.bytes);
        // The bytes were checked when they came in, so an error can only be the end.
        iter::from_fn(move || read(&mut reader).ok())
    }

    /// The bytes of the extension of this kind.
    pub fn get(&self, kind: u32) -> Option<&[u8]> {
        self.iter().find(|(other, _)| *other == kind).map(|(_, bytes)| bytes)
    }

    /// The extensions in the rest of a body. Needless bytes in a varint vanish here; the frame then differs from its
    /// body and is refused as not canonical.
    pub(crate) fn parse(rest: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(rest);
        let mut parsed = Vec::new();
        let mut last = None;
        while !reader.is_at_end() {
            let (kind, bytes) = read(&mut reader)?;
            parsed = append(parsed, last, kind, bytes)?;
            last = Some(kind);
        }
        Ok(Self { bytes: parsed })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn read<'a>(reader: &mut Reader<'a>) -> Result<(u32, &'a [u8]), FrameError> {
    let kind = reader.field("extension kind")?;
    let bytes = reader.field("extension")?;
    Ok((kind, bytes))
}

fn append(to: Vec<u8>, last: Option<u32>, kind: u32, bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    if last.is_some_and(|last| kind <= last) {
        return Err(FrameError::InvalidField {
            field: "extension kind",
            expected: "more than the kind before",
            came: kind.into(),
        });
    }
    let mut writer = Writer::after(to);
    writer.field("extension kind", &kind)?;
    writer.field("extension", bytes)?;
    Ok(writer.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(extensions: &Extensions) -> Vec<(u32, &[u8])> {
        extensions.iter().collect()
    }

    #[test]
    fn no_extensions_are_no_bytes() {
        assert!(Extensions::none().is_empty());
        assert_eq!(Extensions::none().as_bytes(), b"");
        assert_eq!(Extensions::parse(b""), Ok(Extensions::none()));
    }

    #[test]
    fn an_extension_is_kind_length_and_bytes() {
        let extensions = Extensions::none().with(5, b"abc").unwrap().with(300, b"").unwrap();
        assert_eq!(extensions.as_bytes(), b"\x05\x03abc\xac\x02\x00");
        assert_eq!(all(&extensions), [(5, &b"abc"[..]), (300, b"")]);
    }

    #[test]
    fn unknown_extensions_are_kept_as_they_came() {
        let bytes = b"\x00\x00\x01\x01x\xff\xff\xff\xff\x0f\x02yz";
        let extensions = Extensions::parse(bytes).unwrap();
        assert_eq!(extensions.as_bytes(), bytes);
        assert_eq!(all(&extensions), [(0, &b""[..]), (1, b"x"), (u32::MAX, b"yz")]);
    }

    #[test]
    fn an_extension_is_found_by_its_kind() {
        let extensions = Extensions::parse(b"\x01\x01x\x07\x02yz").unwrap();
        assert_eq!(extensions.get(7), Some(&b"yz"[..]));
        assert_eq!(extensions.get(2), None);
    }

    #[test]
    fn a_kind_occurs_once_and_kinds_rise() {
        for bytes in [&b"\x01\x00\x01\x00"[..], b"\x02\x00\x01\x00"] {
            assert!(matches!(
                Extensions::parse(bytes),
                Err(FrameError::InvalidField { came: 1, .. })
            ));
        }
        let one = Extensions::none().with(1, b"").unwrap();
        assert!(one.with(1, b"").is_err());
    }

    #[test]
    fn extensions_cut_anywhere_but_between_two_are_refused() {
        let bytes = b"\x05\x03abc\xac\x02\x01x";
        for end in 1..bytes.len() {
            assert_eq!(Extensions::parse(&bytes[..end]).is_ok(), end == 5, "{end}");
        }
    }

    #[test]
    fn a_claimed_length_beyond_the_frame_is_refused() {
        let four_gib = b"\x01\x80\x80\x80\x80\x10abc";
        let largest = b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01abc";
        for bytes in [&four_gib[..], largest] {
            assert_eq!(Extensions::parse(bytes), Err(FrameError::Truncated { field: "extension" }));
        }
    }

    #[test]
    fn a_kind_beyond_32_bits_is_refused() {
        let bytes = b"\xff\xff\xff\xff\x1f\x00";
        assert_eq!(
            Extensions::parse(bytes),
            Err(FrameError::Undecodable { field: "extension kind" })
        );
    }

    #[test]
    fn needless_bytes_in_a_varint_do_not_survive() {
        for bytes in [&b"\x85\x00\x01x"[..], b"\x05\x81\x00x"] {
            assert_eq!(Extensions::parse(bytes).unwrap().as_bytes(), b"\x05\x01x");
        }
    }
}
