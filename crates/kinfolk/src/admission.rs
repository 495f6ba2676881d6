//! Who may connect: the app's word on a peer that has said hello, before a session exists.
//!
//! The policy is asked in the incoming connection's own task, so that a slow answer delays nobody else; it has until the hello deadline.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use iroh::EndpointId;

/// What the app says of a peer that wants a session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Admit {
    /// Come in.
    #[default]
    Yes,
    /// Come in, under these bounds instead of the node's.
    With(SessionBounds),
    /// Stay out: the link is closed with the code `NotAdmitted`.
    No,
}

/// Bounds of one session that differ from the node's [`Limits`](kinfolk_core::limits::Limits).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionBounds {
    /// Streams that the peer may have open at once.
    pub streams: Option<u32>,
    /// Bytes that the peer may send before they are read, all streams together. What the handshake granted before the app was asked
    /// stays granted: fewer than that are the bound once the peer has used it up.
    pub connection_window: Option<u32>,
}

type Ask = dyn Fn(EndpointId) -> Pin<Box<dyn Future<Output = Admit> + Send>> + Send + Sync;

/// The app's admission policy. The default admits every peer of the network.
#[derive(Clone, Default)]
pub struct Admission(Policy);

#[derive(Clone, Default)]
enum Policy {
    #[default]
    Everyone,
    Ask(Arc<Ask>),
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Policy::Everyone => "Admission::everyone",
            Policy::Ask(_) => "Admission::ask",
        })
    }
}

impl Admission {
    /// Admits every peer of the network.
    pub fn everyone() -> Self {
        Self(Policy::Everyone)
    }

    /// Admits only these peers.
    pub fn only(peers: impl IntoIterator<Item = EndpointId>) -> Self {
        let peers: Arc<BTreeSet<EndpointId>> = Arc::new(peers.into_iter().collect());
        Self::ask(move |peer| {
            let admitted = peers.contains(&peer);
            async move { if admitted { Admit::Yes } else { Admit::No } }
        })
    }

    /// Asks an async function, once for each incoming link. A panic in it, or no answer before the hello deadline, refuses the link.
    pub fn ask<F, Fut>(policy: F) -> Self
    where
        F: Fn(EndpointId) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Admit> + Send + 'static,
    {
        Self(Policy::Ask(Arc::new(move |peer| Box::pin(policy(peer)))))
    }

    pub(crate) async fn admit(&self, peer: EndpointId) -> Admit {
        match &self.0 {
            Policy::Everyone => Admit::Yes,
            Policy::Ask(ask) => ask(peer).await,
        }
    }
}
