//! Typed streams end to end, over real QUIC: what producers send is what consumers receive, whoever comes, goes, stalls or cheats meanwhile.

mod admitting;
mod channels;
mod cheats;
mod finding;
mod flow;
mod lossy;
mod memory;
mod patience;
mod policies;
mod refusals;
mod resuming;
mod scene;
mod sinks;
mod takers;
mod waiting;
