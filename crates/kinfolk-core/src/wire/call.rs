//! The two frames of a call: the request, and behind the answer byte the response.
//!
//! Both are a big-endian `u32`, the length of the body, and the body, which is the app's alone. Unlike other frames a
//! body may be empty: a question or an answer without content is a common one. A reader takes the four bytes, asks
//! [`call_length`] how many follow, and makes room as they arrive; nothing here reads or copies a body.

use super::frame::{FrameError, LENGTH_BYTES};

/// The largest request or response that a node takes unless it is told otherwise: 1 MiB, below the window of one
/// stream, so that a call is one flight. What is larger is better sent on a stream.
pub const CALL_MAX_DEFAULT: u32 = 1024 * 1024;

/// The bytes before a body of `len` bytes, which may have at most `max`.
pub fn call_prefix(len: usize, max: u32) -> Result<[u8; LENGTH_BYTES], FrameError> {
    match u32::try_from(len) {
        Ok(length) if length <= max => Ok(length.to_be_bytes()),
        _ => Err(too_large(len, max)),
    }
}

/// The length of the body that follows this prefix: 0 to `max`.
pub fn call_length(prefix: [u8; LENGTH_BYTES], max: u32) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(prefix);
    match usize::try_from(length) {
        Ok(len) if length <= max => Ok(len),
        Ok(len) => Err(too_large(len, max)),
        Err(_) => Err(too_large(usize::MAX, max)),
    }
}

fn too_large(len: usize, max: u32) -> FrameError {
    FrameError::TooLarge { len, max: usize::try_from(max).unwrap_or(usize::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_exactly_these_bytes() {
        assert_eq!(call_prefix(0x1_0203, CALL_MAX_DEFAULT), Ok([0, 1, 2, 3]));
        assert_eq!(call_length([0, 1, 2, 3], CALL_MAX_DEFAULT), Ok(0x1_0203));
    }

    #[test]
    fn an_empty_body_is_allowed() {
        assert_eq!(call_prefix(0, 0), Ok([0; 4]));
        assert_eq!(call_length([0; 4], 0), Ok(0));
    }

    #[test]
    fn a_body_at_the_limit_passes_and_one_above_it_does_not() {
        let refused = FrameError::TooLarge { len: 11, max: 10 };
        assert_eq!(call_prefix(10, 10), Ok([0, 0, 0, 10]));
        assert_eq!(call_prefix(11, 10), Err(refused.clone()));
        assert_eq!(call_length([0, 0, 0, 10], 10), Ok(10));
        assert_eq!(call_length([0, 0, 0, 11], 10), Err(refused));
    }

    #[test]
    fn a_claim_of_four_gib_is_refused() {
        assert!(matches!(
            call_length([255; 4], CALL_MAX_DEFAULT),
            Err(FrameError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_body_that_no_prefix_can_name_is_not_sent() {
        assert!(matches!(call_prefix(usize::MAX, u32::MAX), Err(FrameError::TooLarge { .. })));
    }
}
