//! The PeerManager's clock: turns the next timeout of its table into a message. It decides nothing about time.

use std::sync::Arc;
use std::time::Instant;

use ractor::ActorRef;
use tokio::sync::{Notify, watch};

use crate::peers::manager::PeerManagerMessage;
use crate::supervision::Pulse;

/// Wakes the manager when its table's next timeout is due, with one message at a time in its mailbox.
pub(crate) async fn clock(
    mut alarm: watch::Receiver<Option<Instant>>,
    ticked: Arc<Notify>,
    pulse: Arc<Pulse>,
    manager: ActorRef<PeerManagerMessage>,
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
                if manager.send_message(PeerManagerMessage::Tick).is_err() {
                    return;
                }
                // The alarm is set anew by then.
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
