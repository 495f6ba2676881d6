//! Networks of production machines in virtual time: catalogs, walks, exchanges, records, liveness. What lies between them, links
//! that are slow, lose, part and lie, is played by `world`.
//!
//! Everything follows from a seed. Each record is signed and verified once and then shared between all nodes, by its bytes; all else is what a
//! node does. There is one walker per node and no gossip: what spreads here spreads by exchanges alone. Where a test asks for neighbours,
//! nodes keep the sessions that gossip would go over.
//!
//! `growth` measures how fast and at what cost a network gets to know itself; the other modules are small networks in which something
//! is wrong. See docs/testing.md for the commands.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

mod faults;
mod growth;
mod lies;
mod mint;
mod node;
mod time;
mod world;
