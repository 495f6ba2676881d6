//! Strangers that speak QUIC but not the protocol, or the protocol but not its rules: each is told why, counted, and let go,
//! and an honest peer is served all the while.

mod acceptor;
mod breaks;
mod control;
mod floods;
mod greeting;
mod queue;
mod scene;
mod siege;
mod stalls;
mod states;
mod streams;
mod victim;
