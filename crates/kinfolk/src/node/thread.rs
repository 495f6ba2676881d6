//! A thread of its own for a node's network, with a single-threaded runtime.
//!
//! It serves apps whose own runtime is busy or multi-threaded; `docs/performance.md` says when it pays. The thread ends with the node.

use std::future::Future;

use iroh::Endpoint;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};

use crate::error::SpawnError;
use crate::node::actor::ENDPOINT_CLOSE;

/// Runs `start` on a new thread and returns what it yields; the thread lives as long as the task that `start` names.
///
/// The endpoint that comes along is closed on the thread before it ends: a node that failed has nobody else left to do it.
pub(crate) async fn run<T, Fut>(
    start: impl FnOnce() -> Fut + Send + 'static,
) -> Result<T, SpawnError>
where
    T: Send + 'static,
    Fut: Future<Output = Result<Launched<T>, SpawnError>>,
{
    let (ready, started) = oneshot::channel();
    let body = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready.send(Err(SpawnError::Thread(error)));
                return;
            }
        };
        runtime.block_on(async move {
            match start().await {
                Ok(Launched { value, root, endpoint }) => {
                    let abort = root.abort_handle();
                    // If nobody waits any more, the value comes back or is dropped unread, and its guard ends the node.
                    let _ = ready.send(Ok(Unclaimed { value: Some(value), abort }));
                    let _ = root.await;
                    let _ = tokio::time::timeout(ENDPOINT_CLOSE, endpoint.close()).await;
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
    };
    std::thread::Builder::new()
        .name("kinfolk-network".to_owned())
        .spawn(body)
        .map_err(SpawnError::Thread)?;
    let mut unclaimed = started.await.unwrap_or(Err(SpawnError::ThreadEnded))?;
    unclaimed.value.take().ok_or(SpawnError::ThreadEnded)
}

/// A node that runs: its handle, the task of its root actor, and its endpoint.
pub(crate) struct Launched<T> {
    pub(crate) value: T,
    pub(crate) root: JoinHandle<()>,
    pub(crate) endpoint: Endpoint,
}

/// Ends the node if nobody takes its handle: nobody else would ever stop it.
struct Unclaimed<T> {
    value: Option<T>,
    abort: AbortHandle,
}

impl<T> Drop for Unclaimed<T> {
    fn drop(&mut self) {
        if self.value.is_some() {
            self.abort.abort();
        }
    }
}
