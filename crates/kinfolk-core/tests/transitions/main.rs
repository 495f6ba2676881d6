//! Each transition of a peer's machine, in the order of the tables on `peer_link`'s page.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "a test may fail this way"
)]

mod arbitration;
mod backoff;
mod intents;
mod live;
mod memory;
mod orders;
mod scene;
