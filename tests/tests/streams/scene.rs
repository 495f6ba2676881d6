//! What the stream tests open, serve and read.

use std::time::Duration;

use kinfolk::error::{HandlerError, OpenError};
use kinfolk::{Incoming, Node, ProtocolMetrics, ProtocolName, RecvStream, SendStream, Service};
use kinfolk_tests::support::wait::within;
use tokio::sync::mpsc;

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Served by the test's own handler.
pub(crate) const TASK: ProtocolName = ProtocolName::from_static("task/1");

pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(crate) async fn open(
    node: &Node,
    peer: impl Into<kinfolk::Peer>,
    protocol: ProtocolName,
) -> Result<(SendStream, RecvStream), OpenError> {
    within(SOON, "an outcome", node.open(peer, protocol)).await
}

/// What an open ended with; what it opened is dropped.
pub(crate) fn refusal(opened: Result<(SendStream, RecvStream), OpenError>) -> OpenError {
    opened.expect_err("it cannot be opened")
}

pub(crate) async fn echoes(send: &mut SendStream, recv: &mut RecvStream, bytes: &[u8]) {
    send.write_all(bytes).await.expect("sent");
    let mut echoed = vec![0; bytes.len()];
    within(SOON, "the echo", recv.read_exact(&mut echoed)).await.expect("received");
    assert_eq!(echoed, bytes);
}

pub(crate) async fn protocol(node: &Node, name: &str) -> ProtocolMetrics {
    let metrics = within(SOON, "the numbers", node.metrics()).await.expect("up");
    metrics.protocols.get(name).copied().unwrap_or_default()
}

/// Serves [`TASK`] by giving each stream to the test.
pub(crate) async fn serve_here(node: &Node) -> mpsc::UnboundedReceiver<Incoming> {
    let (give, given) = mpsc::unbounded_channel();
    let service = Service::stream(move |stream| {
        let given = give.send(stream).map_err(HandlerError::new);
        async move { given }
    });
    node.serve(TASK, service).await.expect("a new protocol");
    given
}

pub(crate) async fn given(streams: &mut mpsc::UnboundedReceiver<Incoming>) -> Incoming {
    within(SOON, "a stream", streams.recv()).await.expect("the service is there")
}
