//! What goes into a walk and what comes out of it.

use iroh_base::EndpointId;

use crate::catalog::Snapshot;

/// What a walk may look at while it decides.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// All that the node knows.
    pub known: &'a Snapshot,
    /// Peers to begin with and to come back to, whether they are known or not: those that the app configured, and at a
    /// start the ones that an earlier run has proven: some dozens, as they are looked through for each choice. Nobody else
    /// may write here, as these are dialled whatever others say.
    pub bootstrap: &'a [EndpointId],
    /// Peers with whom the node keeps a session in any case, so that a visit costs no handshake: a handful. Sessions that end in a
    /// moment do not count, or those would be visited again and again that were visited before.
    pub neighbours: &'a [EndpointId],
    /// Whether there is a session with a peer, so that nobody is dialled for a visit.
    pub is_connected: &'a dyn Fn(&EndpointId) -> bool,
}

impl View<'_> {
    /// Whether to visit a peer is to dial addresses that may be a victim's: see [`Entry::is_hearsay`](crate::catalog::Entry::is_hearsay).
    pub fn is_hearsay(&self, peer: &EndpointId) -> bool {
        !self.is_backed(peer) && !(self.is_connected)(peer)
    }

    /// Whether somebody answers for the addresses of a peer: itself, or the app that begins with it.
    pub(super) fn is_backed(&self, peer: &EndpointId) -> bool {
        self.bootstrap.contains(peer)
            || self.known.get(peer).is_some_and(|entry| !entry.is_hearsay())
    }
}

/// Why a walk is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The node has started.
    Started,
    /// Our topics or addresses have changed, so that others have to hear of it.
    Changed,
    /// The network is back: what was missed before says little. The catalog is told first, by
    /// [`Online`](crate::catalog::Input::Online).
    Online,
    /// A peer that was unknown has shown up itself: it has opened a session, or was seen on the local network. One that
    /// begins an exchange with us need not be visited as well. A peer that others only told of has not shown up: if each of
    /// them called for a visit, every newcomer would be visited by the whole network.
    Appeared(EndpointId),
}

/// What a walk is told.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// There is a reason to go on now.
    Wake(Wake),
    /// The visit that the walk asked for is over. Word of any other visit is ignored.
    Ended {
        /// The peer that was visited.
        peer: EndpointId,
        /// What came of it.
        visit: Visit<'a>,
    },
    /// An exchange is over that was no visit of this walk, or a visit that failed. If nobody began it and nothing was learnt, it was a visit of another walk of this
    /// node, of that one's own choice, to its end and in vain.
    Told {
        /// The peer that began it, if it went to its end or to its bound: there is no reason to visit it as well.
        by: Option<EndpointId>,
        /// What the catalog took: new peers, newer records of known ones, tombstones.
        learnt: usize,
    },
    /// The time of [`next_timeout`](super::Walk::next_timeout) has come.
    Timeout,
}

/// What came of a visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit<'a> {
    /// There was an exchange, to its end or to its bound.
    Exchanged {
        /// What the catalog took of it: new peers, newer records of known ones, tombstones.
        learnt: usize,
        /// The peers whose records it taught us. If there are more than can be named here, a random choice of them: the
        /// first ones by id would be visited by everybody. The walk reads [`TRAIL_MAX`](super::TRAIL_MAX) of them.
        brought: &'a [EndpointId],
    },
    /// The peer was reached, and has no time for an exchange. It is worth another visit as one after an exchange is.
    Refused,
    /// The peer was not reached, was silent or broke the rules.
    Failed,
}

/// What a walk wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Exchange with this peer, dial it if need be, and say how it [`Ended`](Input::Ended).
    Visit(EndpointId),
}
