//! Calls with many responses over real QUIC: all of them or a typed reason, no faster than they are read, and nothing left of those that
//! nobody wants any more.

mod cheats;
mod coming;
mod failing;
mod giving_up;
mod links;
mod room;
mod scene;
