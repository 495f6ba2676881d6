//! The live link of every connected peer, for callers that want to open a stream now.
//!
//! Only the PeerManager writes it, from the decisions of its table; everyone may read. It holds no more links than the table has
//! sessions.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use iroh::EndpointId;
use kinfolk_core::id::LinkId;

use crate::peers::link::Link;
use crate::supervision::{read, write};

/// See the module page.
///
/// The keys are the bytes of ids: comparing ids takes constant time, which is slow and of no use where nothing is secret.
#[derive(Debug, Default)]
pub(crate) struct Directory(RwLock<HashMap<[u8; EndpointId::LENGTH], Arc<Link>>>);

impl Directory {
    pub(crate) fn get(&self, peer: &EndpointId) -> Option<Arc<Link>> {
        read(&self.0).get(peer.as_bytes()).cloned()
    }

    pub(crate) fn publish(&self, link: Arc<Link>) {
        write(&self.0).insert(*link.peer.as_bytes(), link);
    }

    /// Removes the link; a newer one of the same peer stays.
    pub(crate) fn unpublish(&self, peer: &EndpointId, link: LinkId) {
        let mut links = write(&self.0);
        if links.get(peer.as_bytes()).is_some_and(|published| published.id == link) {
            links.remove(peer.as_bytes());
        }
    }

    pub(crate) fn clear(&self) {
        let links = std::mem::take(&mut *write(&self.0));
        for link in links.values() {
            link.retire();
        }
    }
}
