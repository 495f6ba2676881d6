//! Where the node can be reached: keeps what it publishes of that in step with what iroh finds out.
//!
//! It tells the PeerManager and Discovery that there is a new address, as whom the node could not reach from elsewhere it may reach from
//! here; how often that counts is for [`News`] to decide. Any change is a reason for a new record. It never dials.

use std::sync::Arc;
use std::time::Instant;

use iroh::Endpoint;
use kinfolk_core::news::News;
use n0_watcher::Watcher as _;

use crate::context::Context;
use crate::discovery::manager::DiscoveryMessage;
use crate::peers::manager::PeerManagerMessage;

/// Runs until the endpoint is gone, which it does not keep.
pub(crate) async fn follow_address(endpoint: Endpoint, context: Arc<Context>) {
    let mut watcher = endpoint.watch_addr();
    context.address.send_replace(watcher.get());
    // iroh reads the host's addresses before it subscribes to their changes, so that one between the two is never seen: neither would a new
    // address be told, nor would the endpoint end whose only one is gone. This lets it read them once more, now that it has subscribed.
    endpoint.network_change().await;
    drop(endpoint);
    let mut news = News::default();
    loop {
        let due = news.next_timeout();
        let is_due = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into());
        tokio::select! {
            updated = watcher.updated() => {
                let Ok(address) = updated else { return };
                let before = context.address.send_replace(address.clone());
                if !address.addrs.is_subset(&before.addrs) {
                    news.learn(Instant::now());
                }
                if address != before {
                    context.renew_own();
                }
            }
            () = is_due, if due.is_some() => {
                if news.handle_timeout(Instant::now()) {
                    let _ = context.tell_manager(PeerManagerMessage::NetworkNews);
                    let _ = context.tell_discovery(DiscoveryMessage::NetworkNews);
                }
            }
        }
    }
}
