//! Nodes that discover and services that they offer, strangers that do, and calls to whoever offers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kinfolk::error::{CallError, OpenError};
use kinfolk::{
    Code, EndpointId, Failure, Node, NodeBuilder, Offer, Options, Peer, ProtocolName, Record,
    SecretKey, Service, TransportAddr,
};
use kinfolk_core::wire::Answer;
use kinfolk_tests::support::guest::{Guest, hello};
use kinfolk_tests::support::host::{Asked, Dialled, Host};
use kinfolk_tests::support::node::{builder, serving};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::teller::{exchange, lore, offering};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;

/// How long news may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Offered by the test's own handlers.
pub const TASK: ProtocolName = ProtocolName::from_static("task/1");

pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub fn discovering(key: u8) -> NodeBuilder {
    builder(key).discovery(true)
}

/// A node that knows nobody, and serves what others in these tests do.
pub async fn alone(key: u8) -> Node {
    serving(discovering(key)).await
}

pub async fn from(key: u8, bootstrap: impl Into<Peer>) -> Node {
    serving(discovering(key).bootstrap(bootstrap)).await
}

/// How often a service was asked.
#[derive(Debug, Clone, Default)]
pub struct Count(pub Arc<AtomicUsize>);

impl Count {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A service that answers with the key of its node, and how often it was asked.
pub fn named(key: u8) -> (Service, Count) {
    let count = Count::default();
    let counting = count.clone();
    let service = Service::call(move |_peer, _request: u64| {
        counting.0.fetch_add(1, Ordering::Relaxed);
        async move { Ok(key) }
    });
    (service.offered(), count)
}

pub async fn serve(node: &Node, service: Service) {
    node.serve(TASK, service).await.expect("a new protocol");
}

pub async fn hears(told: &mut mpsc::UnboundedReceiver<&'static str>, what: &str) {
    assert_eq!(within(SOON, what, told.recv()).await, Some(what));
}

/// Who offers [`TASK`], as far as the node knows.
pub fn offering_task(node: &Node) -> Vec<EndpointId> {
    let catalog = node.catalog();
    catalog.with_offer(&Offer::protocol(&TASK)).map(|entry| entry.id()).collect()
}

/// Waits until the node knows so many that offer [`TASK`].
pub async fn knows_of(node: &Node, count: usize) {
    eventually(SOON, "the offers are known", async || offering_task(node).len() == count).await;
}

pub async fn call(node: &Node, options: Options) -> Result<u8, CallError> {
    within(SOON, "an outcome", node.call_any_with::<_, u8>(TASK, &1_u64, options)).await
}

/// The same in a task.
pub fn calling(node: &Node, options: Options) -> tokio::task::JoinHandle<Result<u8, CallError>> {
    let node = node.clone();
    tokio::spawn(async move { node.call_any_with::<_, u8>(TASK, &1_u64, options).await })
}

pub async fn outcome_of(
    call: tokio::task::JoinHandle<Result<u8, CallError>>,
) -> Result<u8, CallError> {
    within(SOON, "an outcome", call).await.expect("it runs to its end")
}

pub fn intent(error: OpenError) -> Result<u8, CallError> {
    Err(CallError::Intent(error))
}

pub fn no_provider() -> Result<u8, CallError> {
    intent(OpenError::Failed { failure: Failure::NoProvider, cause: None })
}

/// Has a stranger tell the node these records.
pub async fn teach(node: &Node, records: impl IntoIterator<Item = Record>) {
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, node, hello(rand_incarnation(), 1)).await;
    let told = exchange(&guest, lore(stranger.id(), records)).await;
    assert!(told.is_complete(), "{told:?}");
}

/// Each time another one, so that a second visit is no duplicate of the first.
pub fn rand_incarnation() -> u64 {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    u64::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).expect("small")
}

/// A host of this key, and the record in which it offers [`TASK`].
pub async fn provider_host(key: u8) -> (Host, Record) {
    let host = Host::bind(key).await;
    let address = TransportAddr::Ip(host.stranger().real_addr());
    (host, offering(&SecretKey::from_bytes(&[key; 32]), 1, Some(address), &TASK))
}

/// The next call of [`TASK`] on a link; all else is refused.
pub async fn asked(link: &Dialled) -> Asked {
    loop {
        let mut stream = link.stream().await;
        if stream.header.protocol == TASK {
            return stream;
        }
        stream.answer(Answer::Refuse(Code::UnknownProtocol)).await;
    }
}
