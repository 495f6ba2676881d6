//! What a node keeps for its next life: its last number, its incarnations, and the peers that it has reached.
//!
//! It translates between the [`store`](super::store), the rule which peers are worth it (`kinfolk_core::anchors`), and those who learn
//! something worth keeping. Nobody waits for the disk but who signs a record: a number is saved before it is used.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use iroh::{EndpointAddr, EndpointId, TransportAddr};
use kinfolk_core::anchors::{Anchors, first_contacts};
use kinfolk_core::catalog::{self, Sighting, Source};
use kinfolk_core::id::{Incarnation, NetworkId};
use kinfolk_core::record::{Record, Seq, SeqSource};
use tokio::sync::Notify;
use tracing::warn;

use crate::context::Context;
use crate::discovery::own::wall_clock;
use crate::discovery::store::{Recovered, Store, StoreError};
use crate::metrics::Family;
use crate::supervision::lock;

/// How long news of reached peers is gathered before it is saved: a kill takes at most as much with it.
const GATHER: Duration = Duration::from_secs(5);

/// See the module page.
#[derive(Debug)]
pub(crate) struct Keep {
    store: Store,
    anchors: Mutex<Anchors>,
    /// Anchors have changed since they were saved.
    changed: Notify,
    incarnations: Vec<Incarnation>,
}

impl Keep {
    /// Opens the store, and returns with it what an earlier life has left.
    pub(crate) async fn open(
        directory: &Path,
        id: EndpointId,
        network: NetworkId,
    ) -> Result<(Self, Recovered), StoreError> {
        let (store, recovered) = Store::open(directory, id, network).await?;
        let anchors = Anchors::new(recovered.peers.iter().cloned(), wall_clock());
        let incarnations = recovered.incarnations.clone();
        let keep =
            Self { store, anchors: Mutex::new(anchors), changed: Notify::new(), incarnations };
        Ok((keep, recovered))
    }

    /// Waits until the number is on the disk; false if it cannot be.
    pub(crate) fn save_seq(&self, seq: Seq) -> impl Future<Output = bool> + Send + use<> {
        let saving = self.store.save_seq(seq);
        async move { saving.await.is_ok() }
    }

    /// How many saves have failed.
    pub(crate) fn failures(&self) -> u64 {
        self.store.failures()
    }

    /// Notes that a session of our own has reached the peer of this record.
    pub(crate) fn reached(&self, record: &Record, address: Option<TransportAddr>) {
        lock(&self.anchors).reached(record, address, wall_clock());
        self.changed.notify_one();
    }

    pub(crate) fn forget(&self, peer: &EndpointId) {
        lock(&self.anchors).forget(peer);
        self.changed.notify_one();
    }
}

impl Context {
    /// Takes up what an earlier life has left. The answer is whom to contact first.
    pub(crate) fn recover(&self, recovered: Recovered) -> Vec<EndpointAddr> {
        if recovered.set_aside.is_some() {
            self.counters.count(Family::Store, "set_aside");
        }
        if recovered.skipped > 0 {
            self.counters.count(Family::Store, "peers_skipped");
        }
        lock(&self.own).seq = SeqSource::new(recovered.last_seq);
        let (now, clock) = (Instant::now(), wall_clock());
        for anchor in &recovered.peers {
            let record = anchor.record().clone();
            let sighting = Sighting::new(record, now, clock, anchor.age(clock));
            self.note(catalog::Input::Heard { sighting, source: Source::Store });
        }
        let contacts = first_contacts(&recovered.peers, clock);
        let book = &mut lock(&self.retained).book;
        for contact in &contacts {
            for address in &contact.addrs {
                // In an earlier life.
                book.reached(now, contact.id, address.clone());
            }
        }
        contacts
    }

    /// A number that no earlier incarnation of this node had, as far as is known; it is kept.
    pub(crate) fn draw_incarnation(&self) -> Incarnation {
        let mut incarnation = Incarnation::new(rand::random());
        if let Some(keep) = &self.keep {
            while keep.incarnations.contains(&incarnation) {
                incarnation = Incarnation::new(rand::random());
            }
            // Queued by now: nobody has to wait for it.
            drop(keep.store.save_incarnation(incarnation));
        }
        incarnation
    }

    /// Saves the peers that are worth it whenever they have changed. Nothing to do where nothing is kept.
    pub(crate) async fn keep_anchors(&self) {
        let Some(keep) = &self.keep else { return std::future::pending().await };
        // The Discovery before may have failed while it gathered.
        self.save_anchors().await;
        loop {
            keep.changed.notified().await;
            tokio::time::sleep(GATHER).await;
            self.save_anchors().await;
        }
    }

    /// Saves the peers that are worth it.
    async fn save_anchors(&self) {
        let Some(keep) = &self.keep else { return };
        // One lock at a time: whoever tells of a reached peer holds the catalog's.
        let known = self.records.snapshot();
        let best = lock(&keep.anchors).best(&known, wall_clock());
        if let Err(error) = keep.store.save_peers(best).await {
            warn!(%error, "the peers of this node could not be saved");
        }
    }

    /// Saves what is left to save, and closes the store, so that another node may use its directory.
    pub(crate) async fn close_store(&self) {
        let Some(keep) = &self.keep else { return };
        self.save_anchors().await;
        if let Err(error) = keep.store.close().await {
            warn!(%error, "the store could not be closed as it should");
        }
    }
}
