//! Building a node: what it is called, who it is, where it listens, within which limits.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use iroh::endpoint::{BindOpts, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey};
use kinfolk_core::anchors::FIRST_CONTACTS;
use kinfolk_core::id::NetworkId;
use kinfolk_core::limits::Limits;
use kinfolk_core::record::Topic;
use ractor::{ActorCell, ActorRef};

use crate::admission::Admission;
use crate::context::Context;
use crate::discovery::keep::Keep;
use crate::error::SpawnError;
use crate::node::actor::{NodeMessage, Root, RootArguments};
use crate::node::handle::Node;
use crate::node::identity::Identity;
use crate::node::thread::{self, Launched};
use crate::peers::transport;
use crate::protocol::open::Peer;
use crate::supervision::lock;

/// Peers that an earlier life has reached and that a node begins with; the walk wants some dozens to come back to at most.
const PROVEN_MAX: usize = 24;

/// Builds a [`Node`].
#[derive(Debug, Clone)]
#[must_use]
pub struct NodeBuilder {
    network: String,
    identity: Identity,
    bind: Vec<SocketAddr>,
    relay: RelayMode,
    limits: Limits,
    admission: Admission,
    addresses: Vec<EndpointAddr>,
    bootstrap: Vec<Peer>,
    topics: Vec<Topic>,
    discovery: bool,
    mdns: bool,
    state_dir: Option<PathBuf>,
    own_thread: bool,
    #[cfg(feature = "fault-injection")]
    faults: crate::fault::Faults,
}

impl NodeBuilder {
    pub(crate) fn new(network: String) -> Self {
        Self {
            network,
            identity: Identity::default(),
            bind: Vec::new(),
            relay: RelayMode::Disabled,
            limits: Limits::default(),
            admission: Admission::default(),
            addresses: Vec::new(),
            bootstrap: Vec::new(),
            topics: Vec::new(),
            discovery: true,
            mdns: false,
            state_dir: None,
            own_thread: false,
            #[cfg(feature = "fault-injection")]
            faults: crate::fault::Faults::default(),
        }
    }

    /// The node's key. The default is a new one, drawn at each start.
    pub fn secret_key(mut self, key: SecretKey) -> Self {
        self.identity = Identity::Key(key);
        self
    }

    /// Reads the node's key from a file of 64 hex digits, which is created for its owner alone if it is missing.
    pub fn identity_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.identity = Identity::File(path.into());
        self
    }

    /// Reads the node's key from an environment variable of 64 hex digits.
    pub fn identity_variable(mut self, name: impl Into<String>) -> Self {
        self.identity = Identity::Variable(name.into());
        self
    }

    /// Listens on this address instead of on every interface; call it again for the other IP family. Port 0 is any free port.
    ///
    /// On `0.0.0.0` and `[::]`, which is the default, a node follows its host from address to address. Another address has to stay: a node
    /// that has lost its only one, be it for a moment, ends as failed, and whoever supervises it has to start it again.
    pub fn bind_addr(mut self, address: SocketAddr) -> Self {
        self.bind.push(address);
        self
    }

    /// Uses relays where no direct path works. The default is none.
    pub fn relay(mut self, mode: RelayMode) -> Self {
        self.relay = mode;
        self
    }

    /// The node's bounds.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who may connect. The default is every node of the network.
    pub fn admission(mut self, admission: Admission) -> Self {
        self.admission = admission;
        self
    }

    /// A peer's addresses, known from the start; the same as [`Node::add_address`] later.
    pub fn peer(mut self, address: EndpointAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// A member of the network by which the node finds the others: an address, or a [`Ticket`](crate::Ticket). Call it again for more: any one of them that
    /// lives is enough, and none of them is needed once others are known.
    pub fn bootstrap(mut self, peer: impl Into<Peer>) -> Self {
        self.bootstrap.push(peer.into());
        self
    }

    /// Topics that the node takes part in from the start; the same as [`Node::join_topic`] later. Everybody in the network can see them.
    pub fn topics(mut self, topics: impl IntoIterator<Item = Topic>) -> Self {
        self.topics.extend(topics);
        self
    }

    /// Switches discovery off, or on again. Without it the node says nothing of itself, keeps no catalog, and reaches only peers
    /// whose addresses the app gives; a state directory and mDNS are then of no use and left alone. The default is on.
    pub fn discovery(mut self, on: bool) -> Self {
        self.discovery = on;
        self
    }

    /// Looks for others on the local network too, by multicast DNS, and lets itself be found there. The default is off: it tells everybody
    /// there which network this node is of, and its id. What is found is asked for its record like anybody else.
    pub fn mdns(mut self, on: bool) -> Self {
        self.mdns = on;
        self
    }

    /// Keeps what the node needs in its next life in this directory, which is made if only its parent exists: the number of its last record, its
    /// incarnations, and the peers that it has reached, whom it asks first when it starts again. Use one directory for each node, and
    /// give the node the same key each time: a file of another key is set aside.
    pub fn state_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(directory.into());
        self
    }

    /// Runs the node's network on a thread of its own, with a single-threaded runtime. Handlers run there too and must not block it.
    pub fn network_thread(mut self) -> Self {
        self.own_thread = true;
        self
    }

    /// The faults that the node is to meet, in tests.
    #[cfg(feature = "fault-injection")]
    pub fn faults(mut self, faults: &crate::fault::Faults) -> Self {
        self.faults = faults.clone();
        self
    }

    /// Starts the node. Its root actor has no supervisor: [`Node::closed`] tells its end.
    ///
    /// Cancelled, nothing of the node is left.
    pub async fn spawn(self) -> Result<Node, SpawnError> {
        self.start(None).await
    }

    /// Starts the node under a supervisor of the app, which learns its failure from the supervision event.
    ///
    /// Cancelled, nothing of the node is left.
    pub async fn spawn_linked(self, supervisor: ActorCell) -> Result<Node, SpawnError> {
        self.start(Some(supervisor)).await
    }

    async fn start(self, supervisor: Option<ActorCell>) -> Result<Node, SpawnError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(SpawnError::NoRuntime);
        }
        if self.own_thread {
            thread::run(move || self.launch(supervisor)).await
        } else {
            self.launch(supervisor).await.map(|launched| launched.value)
        }
    }

    async fn launch(self, supervisor: Option<ActorCell>) -> Result<Launched<Node>, SpawnError> {
        self.limits.validate()?;
        if self.network.is_empty() {
            return Err(SpawnError::EmptyNetworkName);
        }
        let network = NetworkId::from_name(&self.network);
        let alpn = network.alpn();
        let key = self.identity.clone().load()?;
        let mut context =
            Context::new(key.clone(), network, self.limits.clone(), self.admission.clone());
        #[cfg(feature = "fault-injection")]
        {
            context.faults = self.faults.clone();
        }
        context.discovers = self.discovery;
        context.mdns = self.mdns;
        let configured: Vec<EndpointId> = self.bootstrap.iter().map(Peer::id).collect();
        let mut proven = Vec::new();
        if let (Some(directory), true) = (&self.state_dir, self.discovery) {
            let (keep, recovered) = Keep::open(directory, context.id, network).await?;
            context.keep = Some(keep);
            proven = context.recover(recovered);
        }
        context.bootstrap = first_asked(&configured, &proven, context.id);
        let context = Arc::new(context);
        let launched = self.launch_with(&context, key, alpn, supervisor).await;
        if launched.is_err() {
            context.close_store().await;
        }
        launched
    }

    async fn launch_with(
        self,
        context: &Arc<Context>,
        key: SecretKey,
        alpn: Vec<u8>,
        supervisor: Option<ActorCell>,
    ) -> Result<Launched<Node>, SpawnError> {
        for address in self.addresses {
            context.configure(address)?;
        }
        for peer in &self.bootstrap {
            if peer.is_foreign(context.network) {
                return Err(SpawnError::ForeignTicket);
            }
            if let Some(address) = peer.address() {
                context.configure(address.clone())?;
            }
        }
        for topic in self.topics {
            lock(&context.own).join(topic)?;
        }
        let endpoint = bind(key, &alpn, &self.bind, self.relay, &context.limits).await?;
        context.address.send_replace(endpoint.addr());
        let arguments =
            RootArguments { context: Arc::clone(context), endpoint: endpoint.clone(), alpn };
        let (actor, root): (ActorRef<NodeMessage>, _) = match supervisor {
            Some(supervisor) => {
                ractor::Actor::spawn_linked(None, Root, arguments, supervisor).await?
            }
            None => ractor::Actor::spawn(None, Root, arguments).await?,
        };
        let node = Node::new(Arc::clone(context), actor);
        Ok(Launched { value: node, root, endpoint })
    }
}

/// Whom a node asks first, each once: one that the app names and five that it has reached before, then the others. What those say whom it
/// has reached is worth as much as what the app says, and whoever has got hold of some of them has not got hold of all.
fn first_asked(
    configured: &[EndpointId],
    proven: &[EndpointAddr],
    me: EndpointId,
) -> Vec<EndpointId> {
    let mut configured = configured.iter().copied();
    let mut proven = proven.iter().map(|contact| contact.id).take(PROVEN_MAX);
    let first: Vec<_> =
        configured.by_ref().take(1).chain(proven.by_ref().take(FIRST_CONTACTS)).collect();
    let mut seen = BTreeSet::from([me]);
    first.into_iter().chain(configured).chain(proven).filter(|peer| seen.insert(*peer)).collect()
}

async fn bind(
    key: SecretKey,
    alpn: &[u8],
    addresses: &[SocketAddr],
    relay: RelayMode,
    limits: &Limits,
) -> Result<Endpoint, SpawnError> {
    let mut builder = Endpoint::builder(presets::Minimal)
        .secret_key(key)
        .alpns(vec![alpn.to_vec()])
        .transport_config(transport::accepting(limits, &relay))
        .relay_mode(relay);
    if !addresses.is_empty() {
        builder = builder.clear_ip_transports();
    }
    for address in addresses {
        let required = BindOpts::default().set_is_required(true);
        builder = builder.bind_addr_with_opts(*address, required).map_err(|error| {
            SpawnError::Address { address: *address, reason: error.to_string() }
        })?;
    }
    builder.bind().await.map_err(|error| SpawnError::Bind(Box::new(error)))
}
