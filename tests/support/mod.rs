//! What the end-to-end tests stand on: one module per thing that a test cannot get from kinfolk.
//!
//!  - [`events`]: what happened in a node, in order;
//!  - [`guest`]: a stranger that says what a node would say, up to a point;
//!  - [`host`]: a stranger that a node dials, and that answers as a node would, up to a point;
//!  - [`impair`]: a network between two nodes that delays, loses, reorders, throttles or cuts;
//!  - [`stranger`]: peers that speak QUIC but not kinfolk;
//!  - [`teller`]: what a stranger tells of nodes, by exchanges and announcements;
//!  - [`wait`]: waits with a deadline, and gauges of the process.

pub mod events;
pub mod guest;
pub mod host;
pub mod impair;
pub mod node;
pub mod stranger;
pub mod teller;
pub mod wait;
