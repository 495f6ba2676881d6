//! Streams over real QUIC: how they are opened, refused, served and ended, and that one is no other's business.

mod counts;
mod eager;
mod ends;
mod opening;
mod pace;
mod places;
mod scene;
