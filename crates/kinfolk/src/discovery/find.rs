//! Looking for peers: those that are there, those that come, and those that go.
//!
//! It serves the app. It follows the changes of the catalog; one that was not read for so long that changes were lost compares the whole
//! catalog with what it has told, so that nothing is missed in the end. It holds one number for each peer that it has told of.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures_util::Stream;
use iroh::EndpointId;
use kinfolk_core::catalog::{Entry, Snapshot};
use kinfolk_core::record::Seq;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::context::Context;
use crate::discovery::records::Change;

type Wanted = dyn Fn(&Entry) -> bool + Send + Sync;

/// A peer that was looked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Found {
    /// It is there: it was before, it came, or its record says now what was looked for.
    Here(Arc<Entry>),
    /// It has another record, which says so too.
    Changed(Arc<Entry>),
    /// It is gone, or its record does not say so any more.
    Gone(EndpointId),
}

/// Tells of peers that are there, that come and that go; made by [`Node::find`](crate::Node::find).
#[must_use = "it tells nothing unless it is asked"]
pub struct Find {
    context: Arc<Context>,
    wanted: Box<Wanted>,
    changes: broadcast::Receiver<Change>,
    told: BTreeMap<EndpointId, Seq>,
    queue: VecDeque<Found>,
}

impl std::fmt::Debug for Find {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Find").field("told", &self.told.len()).finish_non_exhaustive()
    }
}

impl Find {
    pub(crate) fn new(context: &Arc<Context>, wanted: Box<Wanted>) -> Self {
        let (snapshot, changes) = context.records.follow();
        let context = Arc::clone(context);
        let (told, queue) = (BTreeMap::new(), VecDeque::new());
        let mut find = Self { context, wanted, changes, told, queue };
        find.compare(&snapshot);
        find
    }

    /// The next peer; `None` once the node has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Found> {
        loop {
            if let Some(found) = self.queue.pop_front() {
                return Some(found);
            }
            let change = tokio::select! {
                biased;
                change = self.changes.recv() => change,
                _ = self.context.closed() => return None,
            };
            match change {
                Ok(Change::Present(entry)) => self.present(&entry),
                Ok(Change::Gone(peer)) => self.gone(peer),
                Err(RecvError::Lagged(_)) => {
                    let (snapshot, changes) = self.context.records.follow();
                    self.changes = changes;
                    self.compare(&snapshot);
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Whether a peer is there, as far as was told or is about to be.
    pub(crate) fn has_told(&self, peer: &EndpointId) -> bool {
        self.told.contains_key(peer)
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Found> + Send {
        futures_util::stream::unfold(self, |mut find| async move {
            find.next().await.map(|found| (found, find))
        })
    }

    fn compare(&mut self, snapshot: &Snapshot) {
        let missing: Vec<_> =
            self.told.keys().filter(|peer| snapshot.get(peer).is_none()).copied().collect();
        missing.into_iter().for_each(|peer| self.gone(peer));
        snapshot.iter().for_each(|entry| self.present(entry));
    }

    fn present(&mut self, entry: &Arc<Entry>) {
        let peer = entry.id();
        if !(self.wanted)(entry) {
            self.gone(peer);
            return;
        }
        let seq = entry.record().seq();
        match self.told.insert(peer, seq) {
            None => self.queue.push_back(Found::Here(Arc::clone(entry))),
            Some(before) if before != seq => {
                self.queue.push_back(Found::Changed(Arc::clone(entry)))
            }
            Some(_) => {}
        }
    }

    fn gone(&mut self, peer: EndpointId) {
        if self.told.remove(&peer).is_some() {
            self.queue.push_back(Found::Gone(peer));
        }
    }
}
