//! The bytes that two nodes say to each other, encoded and decoded without I/O.
//!
//! Each frame has a file, because each is one contract with older and newer peers: [`hello`], [`welcome`] and
//! [`goodbye`] travel on the control stream as [`Control`]; [`header`] and [`refuse`] open a protocol stream; [`call`]
//! bounds requests and responses; [`exchange`] holds the messages by which two catalogs are compared, and [`subscription`] what a consumer and a
//! producer of a stream say; [`frame`] holds what all share, [`extension`] lets frames grow, and [`turns`] says which
//! control frame may come when. A reader takes [`LENGTH_BYTES`] bytes, asks [`frame::length`] how many follow, reads those,
//! and only then decodes.
//!
//! Decoding is canonical: bytes that are accepted are exactly the bytes that encoding the result gives. Nothing here
//! decides what a frame means for a link, and nothing allocates for a length or count before it was checked.

pub mod call;
pub mod exchange;
pub mod extension;
pub mod frame;
pub mod goodbye;
pub mod header;
pub mod hello;
pub mod refuse;
pub mod subscription;
pub mod turns;
pub mod welcome;

pub use call::{CALL_MAX_DEFAULT, call_length, call_prefix};
pub use extension::Extensions;
pub use frame::{CONTROL_MAX, Control, FrameError, LENGTH_BYTES};
pub use goodbye::Goodbye;
pub use header::{HEADER_MAX, StreamHeader, StreamMode};
pub use hello::{DEAD_LINKS_MAX, DeadLink, Hello, MINOR};
pub use refuse::Answer;
pub use turns::{OutOfTurn, Turns};
pub use welcome::Welcome;
