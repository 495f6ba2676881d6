//! Places that the streams of all peers share: those of the node, and those of each protocol.
//!
//! Who gets one is decided by [`kinfolk_core::shares`]; here a place is given back when it is dropped.

use std::sync::{Arc, Mutex};

use iroh::EndpointId;
use kinfolk_core::code::Code;
use kinfolk_core::shares::Shares;

use crate::supervision::lock;

/// The places.
#[derive(Debug)]
pub(crate) struct Places(Mutex<Shares<EndpointId>>);

/// One of them, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    peer: EndpointId,
}

impl Places {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Shares::new(places))))
    }

    /// A place for a stream of this peer, or what to refuse it with.
    pub(crate) fn take(self: &Arc<Self>, peer: EndpointId) -> Result<Place, Code> {
        let is_taken = lock(&self.0).take(peer);
        is_taken.then(|| Place { places: Arc::clone(self), peer }).ok_or(Code::Busy)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places.0).give_back(&self.peer);
    }
}
