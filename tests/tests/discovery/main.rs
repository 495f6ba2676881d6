//! Discovery end to end: nodes on loopback find each other from one address, know what others take part in, and notice who left.

mod admitting;
mod announcers;
mod finding;
mod lasting;
mod leaving;
mod memory;
mod news;
mod scene;
mod strangers;
mod topics;
