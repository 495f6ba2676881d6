//! A hold: the app's intent to stay connected to a peer, for as long as the handle lives.

use std::sync::Arc;

use iroh::EndpointId;
use kinfolk_core::intent::{IntentId, Outcome};
use tokio::sync::watch;

use crate::context::{Context, Held};
use crate::peers::manager::PeerManagerMessage;

/// Keeps a peer connected: it is dialled, and dialled again whenever the session is lost, until this is dropped.
///
/// The peer sees the hold too and does not let the session linger out. What becomes of the session meanwhile is told by
/// [`Node::monitor`](crate::Node::monitor). A hold survives the restart of the node's parts. It ends early when the app
/// disconnects or bans the peer, or the node shuts down; and, at once or when a part is restarted, as [`Outcome::Failed`]
/// where there is no room for it ([`Failure::QueueFull`](crate::Failure::QueueFull): as many intents wait, holds included, as
/// [`Limits::intents_per_peer`](kinfolk_core::limits::Limits::intents_per_peer) and [`Limits::intents`](kinfolk_core::limits::Limits::intents) allow;
/// [`Failure::TooManyPeers`](crate::Failure::TooManyPeers)) or the peer is this node itself ([`Failure::SelfDial`](crate::Failure::SelfDial)).
#[derive(Debug)]
#[must_use = "a hold ends when it is dropped"]
pub struct Hold {
    context: Arc<Context>,
    id: IntentId,
    peer: EndpointId,
    ended: watch::Receiver<Option<Outcome>>,
}

impl Hold {
    pub(crate) fn new(context: &Arc<Context>, peer: EndpointId) -> Self {
        let id = context.intent_id();
        let sender = Arc::new(watch::Sender::new(None));
        let ended = sender.subscribe();
        let held = Held { peer, ended: sender };
        context.add_hold(id, held);
        if context.ended().is_some() {
            context.end_holds();
        } else {
            // A manager that is away finds it when it is back; one that is draining ends it.
            let _ = context.tell_manager(PeerManagerMessage::Hold(id));
        }
        Self { context: Arc::clone(context), id, peer, ended }
    }

    /// The peer that is held.
    pub fn peer(&self) -> EndpointId {
        self.peer
    }

    /// How the hold ended early; `None` while it lasts.
    pub fn outcome(&self) -> Option<Outcome> {
        *self.ended.borrow()
    }

    /// Waits until the hold has ended early, and says how. Cancel safe.
    pub async fn ended(&self) -> Outcome {
        let mut ended = self.ended.clone();
        let outcome = ended.wait_for(Option::is_some).await.ok().and_then(|outcome| *outcome);
        outcome.unwrap_or(Outcome::ShuttingDown)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.context.take_hold(self.id).is_some() {
            self.context.counters.outcome(&Outcome::Cancelled);
            // A manager that is away finds nothing of it when it is back.
            let _ = self.context.tell_manager(PeerManagerMessage::Cancel(self.id));
        }
    }
}
