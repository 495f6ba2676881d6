//! Two production machines, the sessions around them and the network between them, all in virtual time.
//!
//! `link` is one link as its two sessions see it, `node` one machine with the promises it must keep, `world` both of them and every
//! step that can happen; `chaos` takes such steps at random, `search` takes all of them.

pub mod chaos;
pub mod link;
pub mod node;
pub mod search;
pub mod world;
