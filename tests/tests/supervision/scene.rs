//! Two nodes, what is watched of them, and a supervisor of the app.

use std::net::UdpSocket;
use std::time::Duration;

use iroh::EndpointId;
use kinfolk::fault::Crash;
use kinfolk::{LinkId, Node, NodeEvent, PeerStatus, ProtocolName};
use kinfolk_tests::support::node::{NEXT, address_to_return_to, builder_at};
use kinfolk_tests::support::wait::{eventually, within};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{mpsc, watch};

pub(crate) const SOON: Duration = Duration::from_secs(10);
pub(crate) const BOTH: [Crash; 2] = [Crash::Panic, Crash::Error];

pub(crate) const BROKEN: ProtocolName = ProtocolName::from_static("broken/1");

pub(crate) async fn next(node: &Node, peer: EndpointId, number: u64) -> u64 {
    within(SOON, "an answer", node.call(peer, NEXT, &number)).await.expect("answered")
}

pub(crate) async fn up(status: &mut watch::Receiver<PeerStatus>, but: Option<LinkId>) -> LinkId {
    let is_new =
        |status: &PeerStatus| matches!(status, PeerStatus::Up { link, .. } if Some(*link) != but);
    let status = *within(SOON, "a session", status.wait_for(is_new)).await.expect("watched");
    match status {
        PeerStatus::Up { link, .. } => link,
        PeerStatus::Down { .. } => panic!("waited for a session"),
    }
}

pub(crate) fn is_restart(event: &NodeEvent) -> bool {
    matches!(event, NodeEvent::Restarted { .. })
}

pub(crate) fn is_session_panic(event: &NodeEvent) -> bool {
    matches!(event, NodeEvent::SessionPanicked { .. })
}

pub(crate) fn port_of(node: &Node) -> std::net::SocketAddr {
    *node.addr().ip_addrs().next().expect("a bound address")
}

pub(crate) async fn port_becomes_free(address: std::net::SocketAddr) {
    eventually(SOON, "the port is free", async || UdpSocket::bind(address).is_ok()).await;
}

/// A supervisor of the app: it reports how its children failed, and lives on.
pub(crate) struct Supervisor;

impl Actor for Supervisor {
    type Msg = ();
    type State = mpsc::UnboundedSender<String>;
    type Arguments = mpsc::UnboundedSender<String>;

    async fn pre_start(
        &self,
        _myself: ActorRef<()>,
        reports: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(reports)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<()>,
        event: SupervisionEvent,
        reports: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(_, error) => reports.send(error.to_string())?,
            SupervisionEvent::ActorTerminated(_, _, reason) => {
                reports.send(format!("terminated: {reason:?}"))?;
            }
            _ => {}
        }
        Ok(())
    }
}

pub(crate) async fn supervised(key: u8) -> (ActorRef<()>, Node, mpsc::UnboundedReceiver<String>) {
    let (reports, ends) = mpsc::unbounded_channel();
    let (supervisor, _) = Actor::spawn(None, Supervisor, reports).await.expect("it starts");
    let builder = builder_at(key, address_to_return_to());
    let node = builder.spawn_linked(supervisor.get_cell()).await.expect("the node starts");
    (supervisor, node, ends)
}
