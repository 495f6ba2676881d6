//! Services that answer with numbers, and what is asked of them.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use kinfolk::error::{ResponsesError, StreamError};
use kinfolk::{Node, ProtocolName, Responses, Service};
use kinfolk_tests::support::wait::within;
use tokio::sync::mpsc;

pub const SOON: Duration = Duration::from_secs(10);

/// Served by the test's own handler.
pub const COUNT: ProtocolName = ProtocolName::from_static("count/1");

pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Tells when it is dropped, as what holds it is.
pub struct Told(pub mpsc::UnboundedSender<&'static str>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

pub async fn hears(told: &mut mpsc::UnboundedReceiver<&'static str>, what: &str) {
    assert_eq!(within(SOON, what, told.recv()).await, Some(what));
}

/// Serves [`COUNT`]: the numbers below the one that is asked for.
pub async fn serve_count(node: &Node) {
    let service = Service::call_stream(|_peer, to: u64| stream::iter((0..to).map(Ok)));
    node.serve(COUNT, service).await.expect("a new protocol");
}

/// Serves [`COUNT`]: so many numbers, then nothing for ever; tells of each request that came and of each stream that was dropped.
pub async fn serve_never_ending(node: &Node) -> mpsc::UnboundedReceiver<&'static str> {
    let (tell, told) = mpsc::unbounded_channel();
    let service = Service::call_stream(move |_peer, to: u64| {
        let _ = tell.send("came");
        let told = Told(tell.clone());
        stream::iter((0..to).map(Ok)).chain(stream::once(async move {
            let _told = told;
            std::future::pending().await
        }))
    });
    node.serve(COUNT, service).await.expect("a new protocol");
    told
}

pub async fn ask(alice: &Node, bob: &Node, to: u64) -> Responses<u64> {
    let asked = alice.call_stream(bob.addr(), COUNT, &to);
    within(SOON, "an answer", asked).await.expect("taken")
}

/// The next response.
pub async fn next<T>(responses: &mut Responses<T>) -> Result<Option<T>, ResponsesError> {
    within(SOON, "a response", responses.recv()).await
}

/// How many responses came, and how they ended.
pub async fn rest<T>(responses: &mut Responses<T>) -> (usize, Result<(), ResponsesError>) {
    let mut count = 0;
    loop {
        match next(responses).await {
            Ok(Some(_)) => count += 1,
            end => return (count, end.map(|_| ())),
        }
    }
}

pub fn cut<T>(error: StreamError) -> Result<T, ResponsesError> {
    Err(ResponsesError::Cut(error))
}
