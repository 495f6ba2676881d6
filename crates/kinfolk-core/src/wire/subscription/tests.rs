//! Golden bytes of each frame, and bytes that are none.
