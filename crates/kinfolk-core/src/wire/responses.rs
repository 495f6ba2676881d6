//! The frames of a call with many responses, behind the answer byte.
//!
//! Each response is a big-endian `u32`, the length of the body, and the body, as the one of a call is. The last frame is the [`END`] in place
//! of a length, and the number of a [`Code`]: [`Code::Ok`] says that these were all, any other why there are no more. It travels
//! in line, since a reset overtakes what came before it; a stream that ends or is reset without it was cut. Nothing here reads or copies a body.

use super::call::{call_length, call_prefix};
use super::frame::{FrameError, LENGTH_BYTES};
use crate::code::Code;

/// What stands in place of a length where no response follows. A body of so many bytes cannot be sent.
pub const END: [u8; LENGTH_BYTES] = [u8::MAX; LENGTH_BYTES];

/// The bytes of the last frame.
pub const END_BYTES: usize = LENGTH_BYTES + 1;

/// What follows a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResponsePrefix {
    /// A response with a body of this length.
    Body(usize),
    /// One byte, to be read by [`responses_end`].
    End,
}

impl ResponsePrefix {
    /// What this prefix announces, where a body may have at most `max` bytes.
    pub fn decode(prefix: [u8; LENGTH_BYTES], max: u32) -> Result<Self, FrameError> {
        if prefix == END {
            return Ok(Self::End);
        }
        call_length(prefix, max).map(Self::Body)
    }
}

/// The bytes before a body of `len` bytes, which may have at most `max`.
pub fn response_prefix(len: usize, max: u32) -> Result<[u8; LENGTH_BYTES], FrameError> {
    call_prefix(len, max.min(u32::MAX.saturating_sub(1)))
}

/// The last frame.
pub const fn end_of_responses(code: Code) -> [u8; END_BYTES] {
    let [a, b, c, d] = END;
    [a, b, c, d, code.to_wire()]
}

/// The code that the last byte of the last frame says.
pub fn responses_end(byte: u8) -> Result<Code, FrameError> {
    if byte == 0 {
        return Err(FrameError::InvalidField { field: "end", expected: "1 to 255", came: 0 });
    }
    Ok(Code::from_wire(byte.into()))
}

#[cfg(test)]
mod tests {
    use super::super::call::CALL_MAX_DEFAULT;
    use super::*;

    #[test]
    fn a_response_has_the_prefix_of_a_call_s_and_the_end_exactly_these_bytes() {
        assert_eq!(response_prefix(0x1_0203, CALL_MAX_DEFAULT), Ok([0, 1, 2, 3]));
        assert_eq!(end_of_responses(Code::Ok), [255, 255, 255, 255, 1]);
        assert_eq!(end_of_responses(Code::HandlerFailed), [255, 255, 255, 255, 19]);
    }

    #[test]
    fn a_prefix_announces_a_body_or_the_end() {
        let read = |prefix| ResponsePrefix::decode(prefix, CALL_MAX_DEFAULT);
        assert_eq!(read([0; 4]), Ok(ResponsePrefix::Body(0)));
        assert_eq!(read([0, 1, 2, 3]), Ok(ResponsePrefix::Body(0x1_0203)));
        assert_eq!(read(END), Ok(ResponsePrefix::End));
        assert!(matches!(read([255, 255, 255, 254]), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn no_body_is_so_long_that_its_prefix_is_the_end() {
        let longest = usize::try_from(u32::MAX).unwrap();
        let refused = response_prefix(longest, u32::MAX);
        assert!(matches!(refused, Err(FrameError::TooLarge { .. })));
        assert_eq!(response_prefix(longest - 1, u32::MAX), Ok([255, 255, 255, 254]));
    }

    #[test]
    fn the_end_says_its_code_and_zero_is_none() {
        for byte in 1..=255 {
            assert_eq!(responses_end(byte).map(Code::to_wire), Ok(byte));
        }
        assert!(matches!(responses_end(0), Err(FrameError::InvalidField { field: "end", .. })));
    }
}
