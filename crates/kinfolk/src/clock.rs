//! An actor's clock: turns the next timeout of its machine into a message. It decides nothing about time.

use std::sync::Arc;
use std::time::Instant;

use ractor::ActorRef;
use tokio::sync::{Notify, watch};

use crate::supervision::Pulse;

/// Wakes the actor when what its machine waits for is due, with one message at a time in its mailbox: the actor says by `ticked` that it has
/// handled it and that the alarm is set anew. Beside that, it answers for the actor's pulse.
pub(crate) async fn clock<M: ractor::Message>(
    mut alarm: watch::Receiver<Option<Instant>>,
    ticked: Arc<Notify>,
    pulse: Arc<Pulse>,
    actor: ActorRef<M>,
    tick: fn() -> M,
) {
    loop {
        let due = *alarm.borrow_and_update();
        let time = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = time => {
                if actor.send_message(tick()).is_err() {
                    return;
                }
                ticked.notified().await;
            }
            changed = alarm.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = pulse.answer() => {}
        }
    }
}
