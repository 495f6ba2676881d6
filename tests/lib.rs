//! End-to-end tests of kinfolk over real QUIC, and what they share.
//!
//! The tests live in `tests/`; this library holds only their support code: a network that
//! misbehaves on command, peers that do not keep to the protocol, and waits that always end.
//! Nothing here knows what a kinfolk node is, so that a test which uses it tests the node alone.

pub mod support;
