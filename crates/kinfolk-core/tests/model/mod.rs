//! Production machines, the sessions around them and the network between them, all in virtual time.
//!
//! `link` is one link as its two sessions see it, `node` one table of peers with the accounts it must keep, `world` all of them and every
//! `step` that can happen; `session`, `manager` and `judge` are its parts. `story` says what may happen in a search, `search` has
//! stateright take all such steps, `chaos` takes some at random; both look for a `promise` that is broken.

pub mod chaos;
mod judge;
pub mod link;
mod manager;
pub mod name;
pub mod node;
pub mod promise;
pub mod search;
mod session;
pub mod step;
pub mod story;
pub mod world;
