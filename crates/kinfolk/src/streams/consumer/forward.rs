//! An actor as the place where items go: what a consumer receives, cast to it with credits.
//!
//! An actor's mailbox has no bound. Each message therefore carries a credit, which comes back when the message is dropped; without credits left the consumer is not read.

use std::sync::Arc;

use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::streams::consumer::handle::{Consumer, Received};
use crate::streams::item::Item;

/// What an actor is sent: keep it for as long as the item is being worked on, and drop it then.
#[derive(Debug)]
#[must_use = "dropping it gives its credit back"]
pub struct Delivery<T> {
    /// What was received.
    pub received: Received<T>,
    _credit: OwnedSemaphorePermit,
}

/// Casts what a consumer receives to an actor; made by [`Consumer::forward`]. Dropped, the consumer is unsubscribed.
#[derive(Debug)]
#[must_use = "dropped, nothing is forwarded any more"]
pub struct Forward(JoinHandle<()>);

impl Forward {
    /// Waits until nothing more is forwarded: the actor is gone, or the consumer has ended. Cancel safe.
    pub async fn ended(&mut self) {
        // A panic can only come from the app's way to decode an item.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T: Item> Consumer<T> {
    /// Casts all that is received to an actor, at most so many messages at a time: the next one is sent when the actor has dropped one. It ends when the actor does.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn forward<M>(mut self, actor: ActorRef<M>, credits: usize) -> Forward
    where
        M: ractor::Message + From<Delivery<T>>,
    {
        let credits = Arc::new(Semaphore::new(credits.clamp(1, Semaphore::MAX_PERMITS)));
        Forward(tokio::spawn(async move {
            loop {
                // It is never closed.
                let Ok(credit) = Arc::clone(&credits).acquire_owned().await else { return };
                let Some(received) = self.recv().await else { return };
                let delivery = Delivery { received, _credit: credit };
                if actor.send_message(M::from(delivery)).is_err() {
                    return;
                }
            }
        }))
    }
}
