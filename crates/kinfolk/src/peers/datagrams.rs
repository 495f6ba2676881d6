//! The datagrams of one link: read, and handed to the subscription that each is for.
//!
//! Somebody reads them only while there is a subscription; until then QUIC keeps a few and drops the rest. One that is for nobody is dropped and counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use iroh::endpoint::Connection;
use kinfolk_core::wire::subscription::decode_datagram;
use tokio::task::JoinHandle;

use crate::context::Context;
use crate::metrics::Family;
use crate::peers::link::Link;
use crate::supervision::lock;

/// Takes the number and the bytes of an item; whether it had room for it.
type Taker = dyn FnMut(u64, Bytes) -> bool + Send;

/// See the module page.
#[derive(Default)]
pub(crate) struct Datagrams(Mutex<Routes>);

#[derive(Default)]
struct Routes {
    takers: BTreeMap<u64, Box<Taker>>,
    reading: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datagrams").finish_non_exhaustive()
    }
}

/// A subscription to datagrams, for as long as it lives.
pub(crate) struct Subscribed {
    link: Arc<Link>,
    id: u64,
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        let mut routes = lock(&self.link.datagrams.0);
        let taker = routes.takers.remove(&self.id);
        if routes.takers.is_empty()
            && let Some(reading) = routes.reading.take()
        {
            reading.abort();
        }
        drop(routes);
        drop(taker);
    }
}

impl Link {
    /// Hands the datagrams of a subscription to this taker, which must not block, as long as the answer lives.
    pub(crate) fn follow_datagrams(
        self: &Arc<Self>,
        context: &Arc<Context>,
        id: u64,
        taker: impl FnMut(u64, Bytes) -> bool + Send + 'static,
    ) -> Subscribed {
        let mut routes = lock(&self.datagrams.0);
        routes.takers.insert(id, Box::new(taker));
        if routes.reading.is_none() {
            let (link, context) = (Arc::downgrade(self), Arc::clone(context));
            let connection: Connection = self.connection.clone();
            routes.reading = Some(tokio::spawn(async move {
                while let Ok(datagram) = connection.read_datagram().await {
                    let Some(link) = link.upgrade() else { return };
                    if let Err(reason) = link.datagrams.route(&datagram) {
                        context.counters.count(Family::DatagramDropped, reason);
                    }
                }
            }));
        }
        drop(routes);
        Subscribed { link: Arc::clone(self), id }
    }
}

impl Datagrams {
    fn route(&self, datagram: &Bytes) -> Result<(), &'static str> {
        let (id, number, item) = decode_datagram(datagram).map_err(|_| "malformed")?;
        let mut routes = lock(&self.0);
        let taker = routes.takers.get_mut(&id).ok_or("unknown")?;
        if taker(number, item) { Ok(()) } else { Err("full") }
    }
}
