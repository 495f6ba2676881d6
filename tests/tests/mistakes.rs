//! Mistakes of the app: each gets a typed error that names it, and breaks nothing.

use std::future::Future as _;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use iroh::{EndpointAddr, SecretKey, TransportAddr};
use kinfolk::error::{AddressError, CallError, OpenError, ServeError, SpawnError};
use kinfolk::{
    BookError, Failure, GateLimits, IdentityError, Limits, LimitsError, Node, NodeBuilder, Options,
    ProtocolName, ProtocolNameError, Rate, Service,
};
use kinfolk_tests::support::node::{ECHO, NEXT, builder, echo, next, node, quick_limits, serving};
use kinfolk_tests::support::wait::{eventually, within};

const SOON: Duration = Duration::from_secs(10);

fn own() -> ProtocolName {
    ProtocolName::from_static("own/1")
}

/// How the start fails.
async fn failure(builder: NodeBuilder) -> SpawnError {
    within(SOON, "the start", builder.spawn()).await.expect_err("the node cannot start")
}

/// How the start fails with the default limits but for a change.
async fn failure_within(change: impl FnOnce(&mut Limits)) -> LimitsError {
    let mut limits = Limits::default();
    change(&mut limits);
    match failure(builder(1).limits(limits)).await {
        SpawnError::Limits(error) => error,
        other => panic!("expected an error about limits, came {other}"),
    }
}

/// A folder that is removed with what is in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kinfolk-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a new folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is left to the system.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

// Names

#[test]
fn a_protocol_name_is_checked_where_it_is_made() {
    assert_eq!(ProtocolName::new(""), Err(ProtocolNameError::Empty));
    assert_eq!(ProtocolName::new("x".repeat(65)), Err(ProtocolNameError::TooLong { len: 65 }));
    assert_eq!(ProtocolName::new("a b"), Err(ProtocolNameError::NotGraphic { byte: b' ' }));
    assert_eq!(ProtocolName::new("é"), Err(ProtocolNameError::NotGraphic { byte: 0xc3 }));
}

#[tokio::test]
async fn an_empty_network_name_is_refused() {
    let error = failure(Node::builder("")).await;
    assert!(matches!(error, SpawnError::EmptyNetworkName), "{error}");
}

// Limits

#[tokio::test]
async fn a_limit_of_zero_is_refused_by_name() {
    assert_eq!(failure_within(|limits| limits.dials = 0).await, LimitsError::Zero("dials"));
    let no_linger = failure_within(|limits| limits.linger = Duration::ZERO).await;
    assert_eq!(no_linger, LimitsError::Zero("linger"));
    let nobody =
        |limits: &mut Limits| limits.gate = GateLimits { pending: 0, ..GateLimits::default() };
    assert!(matches!(failure_within(nobody).await, LimitsError::Gate(_)));
    let never = |limits: &mut Limits| limits.gate.peer_rate = Rate::new(1, Duration::MAX);
    assert!(matches!(failure_within(never).await, LimitsError::Gate(_)));
}

#[tokio::test]
async fn limits_that_contradict_each_other_are_refused_by_name() {
    let error = failure_within(|limits| limits.keep_alive = limits.idle_timeout).await;
    let order = LimitsError::Order { smaller: "keep_alive", larger: "idle_timeout" };
    assert_eq!(error, order);
}

#[tokio::test]
async fn a_limit_that_cannot_be_kept_is_refused_by_name() {
    let endless = failure_within(|limits| limits.drain_deadline = Duration::MAX).await;
    assert_eq!(endless, LimitsError::TooLarge("drain_deadline"));
    let window = failure_within(|limits| limits.send_window = u64::MAX).await;
    assert_eq!(window, LimitsError::TooLarge("send_window"));
    let events = failure_within(|limits| limits.events = 1 << 31).await;
    assert_eq!(events, LimitsError::TooLarge("events"));
}

#[tokio::test]
async fn counts_as_large_as_numbers_can_be_mean_no_limit() {
    let mut limits = quick_limits();
    let counts = [
        &mut limits.sessions,
        &mut limits.sessions_inbound,
        &mut limits.sessions_outbound,
        &mut limits.dials,
        &mut limits.peers,
        &mut limits.intents_per_peer,
        &mut limits.intents,
        &mut limits.negotiating_per_peer,
        &mut limits.streams_inbound,
        &mut limits.protocol_concurrency,
        &mut limits.protocols,
        &mut limits.gate.pending,
        &mut limits.gate.groups,
        &mut limits.gate.peers,
    ];
    for count in counts {
        *count = usize::MAX;
    }
    let (alice, bob) = (serving(builder(1).limits(limits)).await, node(2).await);
    let there: Result<u64, _> =
        within(SOON, "an answer", bob.call(alice.addr(), NEXT, &1_u64)).await;
    assert_eq!(there, Ok(2));
    let back: Result<u64, _> = within(SOON, "an answer", alice.call(bob.id(), NEXT, &2_u64)).await;
    assert_eq!(back, Ok(3));
}

// Identity

#[tokio::test]
async fn a_malformed_identity_file_is_refused_and_left_alone() {
    let folder = Folder::new("malformed");
    let path = folder.0.join("key");
    std::fs::write(&path, "no key").expect("written");
    #[cfg(unix)]
    make(&path, 0o600);
    let error = failure(builder(1).identity_file(&path)).await;
    assert!(
        matches!(error, SpawnError::Identity(IdentityError::Malformed { length: 6, .. })),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&path).expect("there"), "no key");
}

#[cfg(unix)]
#[tokio::test]
async fn an_identity_file_that_others_can_read_is_refused() {
    let folder = Folder::new("exposed");
    let path = folder.0.join("key");
    let alice = builder(1).identity_file(&path).spawn().await.expect("a new key");
    alice.shutdown().await;
    make(&path, 0o644);
    let error = failure(builder(1).identity_file(&path)).await;
    assert!(
        matches!(error, SpawnError::Identity(IdentityError::Exposed { mode: 0o644, .. })),
        "{error}"
    );
}

#[cfg(unix)]
fn make(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("changed");
}

#[tokio::test]
async fn an_identity_file_keeps_a_node_who_it_is() {
    let folder = Folder::new("kept");
    let path = folder.0.join("key");
    let first = builder(1).identity_file(&path).spawn().await.expect("a new key");
    first.shutdown().await;
    let second = builder(1).identity_file(&path).spawn().await.expect("the same key");
    assert_eq!(second.id(), first.id());
}

#[tokio::test]
async fn a_missing_identity_variable_is_refused_by_name() {
    let error = failure(builder(1).identity_variable("KINFOLK_NOBODY_SETS_THIS")).await;
    let SpawnError::Identity(IdentityError::Unset(name)) = error else { panic!("{error}") };
    assert_eq!(name, "KINFOLK_NOBODY_SETS_THIS");
}

#[tokio::test]
async fn a_malformed_identity_variable_is_refused() {
    // Every process has it, and it is never a key.
    let error = failure(builder(1).identity_variable("PATH")).await;
    assert!(matches!(error, SpawnError::Identity(IdentityError::Malformed { .. })), "{error}");
}

// Addresses

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_of_the_start() {
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let error = failure(Node::builder("taken").bind_addr(address)).await;
    assert!(matches!(error, SpawnError::Bind(_)), "{error}");
}

#[tokio::test]
async fn two_addresses_of_one_family_are_an_error_of_the_start() {
    let second = "127.0.0.2:0".parse().expect("an address");
    let error = failure(builder(1).bind_addr(second)).await;
    assert!(matches!(error, SpawnError::Address { address, .. } if address == second), "{error}");
}

#[tokio::test]
async fn a_peer_without_an_address_is_refused_where_it_is_given() {
    let bare = EndpointAddr::new(SecretKey::from_bytes(&[9; 32]).public());
    let error = failure(builder(1).peer(bare.clone())).await;
    assert!(matches!(error, SpawnError::Peer(BookError::NoAddress)), "{error}");
    let alice = node(1).await;
    let added = alice.add_address(bare);
    assert_eq!(added, Err(AddressError::Book(BookError::NoAddress)));
}

#[tokio::test]
async fn too_many_addresses_of_one_peer_are_refused() {
    let alice = node(1).await;
    let id = SecretKey::from_bytes(&[9; 32]).public();
    let many = (1..=17).map(|port| TransportAddr::Ip(([127, 0, 0, 1], port).into()));
    let added = alice.add_address(EndpointAddr::from_parts(id, many));
    assert_eq!(added, Err(AddressError::Book(BookError::TooMany { limit: 16, got: 17 })));
}

#[tokio::test]
async fn a_wish_for_a_peer_of_unknown_address_fails_at_once() {
    let alice = node(1).await;
    let stranger = SecretKey::from_bytes(&[9; 32]).public();
    let open = within(SOON, "an outcome", alice.open(stranger, ECHO)).await;
    let Err(OpenError::Failed { failure, .. }) = open else { panic!("{open:?}") };
    assert_eq!(failure, Failure::NoAddress);
}

#[tokio::test]
async fn a_wish_for_the_node_itself_fails_at_once() {
    let alice = node(1).await;
    let open = within(SOON, "an outcome", alice.open(alice.addr(), ECHO)).await;
    let Err(OpenError::Failed { failure, .. }) = open else { panic!("{open:?}") };
    assert_eq!(failure, Failure::SelfDial);
}

#[tokio::test]
async fn a_wish_for_a_live_session_fails_at_once_where_there_is_none() {
    let (alice, bob) = (node(1).await, node(2).await);
    alice.add_address(bob.addr()).expect("an address");
    let open = within(SOON, "an outcome", alice.try_open(bob.id(), ECHO)).await;
    assert_eq!(open.err(), Some(OpenError::NotConnected));
}

#[tokio::test]
async fn what_is_not_there_is_not_removed() {
    let alice = node(1).await;
    let stranger = SecretKey::from_bytes(&[9; 32]).public();
    assert_eq!(alice.remove_address(stranger, None), Ok(0));
    assert_eq!(alice.unserve(&own()), Ok(false));
    alice.unban(stranger).expect("the node is up");
    alice.disconnect(stranger).await.expect("alive");
    assert_eq!(alice.why(stranger).await.expect("alive"), None);
}

// Services

#[tokio::test]
async fn a_second_handler_for_a_protocol_is_refused_and_the_first_serves_on() {
    let (alice, bob) = (node(1).await, node(2).await);
    let second = Service::call(|_peer, _number: u64| async { Ok(0_u64) });
    assert_eq!(alice.serve(NEXT, second).await, Err(ServeError::AlreadyServed(NEXT)));
    let answer: Result<u64, _> =
        within(SOON, "an answer", bob.call(alice.addr(), NEXT, &1_u64)).await;
    assert_eq!(answer, Ok(2));
}

#[tokio::test]
async fn a_reserved_protocol_is_not_taken_into_service() {
    let reserved = ProtocolName::from_static("kinfolk/mine/1");
    let served = node(1).await.serve(reserved.clone(), echo()).await;
    assert_eq!(served, Err(ServeError::Reserved(reserved)));
}

#[tokio::test]
async fn a_service_without_concurrency_is_refused() {
    let served = node(1).await.serve(own(), echo().concurrency(0)).await;
    assert_eq!(served, Err(ServeError::ZeroConcurrency));
}

#[tokio::test]
async fn more_protocols_than_the_limits_allow_are_refused() {
    let mut limits = quick_limits();
    limits.protocols = 2;
    let alice = serving(builder(1).limits(limits)).await;
    assert_eq!(alice.serve(own(), next()).await, Err(ServeError::TooMany(2)));
    assert_eq!(alice.unserve(&NEXT), Ok(true));
    assert_eq!(alice.serve(own(), next()).await, Ok(()));
}

// Calls

/// A request that cannot be encoded.
struct Unencodable;

impl serde::Serialize for Unencodable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("never"))
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_encoded_is_not_sent() {
    let (alice, bob) = (node(1).await, node(2).await);
    let call = alice.call::<_, u64>(bob.addr(), NEXT, &Unencodable).await;
    assert!(matches!(call, Err(CallError::Request(_))), "{call:?}");
    assert_eq!(alice.metrics().await.expect("alive").dials_started, 0);
}

#[tokio::test]
async fn a_response_of_another_type_is_an_error_of_its_own() {
    let (alice, bob) = (node(1).await, node(2).await);
    let call = alice.call::<_, String>(bob.addr(), NEXT, &200_u64);
    let call = within(SOON, "an outcome", call).await;
    assert!(matches!(call, Err(CallError::Response(_))), "{call:?}");
}

#[tokio::test]
async fn a_request_above_the_limit_is_not_sent() {
    let (alice, bob) = (node(1).await, node(2).await);
    let request = vec![7; 1024 * 1024 + 1];
    let call = alice.call_bytes(bob.addr(), NEXT, &request, Options::new()).await;
    assert_eq!(call, Err(OpenError::Failed { failure: Failure::TooLarge, cause: None }));
    assert_eq!(alice.metrics().await.expect("alive").dials_started, 0);
}

#[tokio::test]
async fn a_deadline_of_no_time_passes_at_once_and_one_without_end_is_kept_to_a_month() {
    let (alice, bob) = (node(1).await, node(2).await);
    let none = Options::new().deadline(Duration::ZERO);
    let open = within(SOON, "an outcome", alice.open_with(bob.addr(), ECHO, none)).await;
    assert!(matches!(open, Err(OpenError::TimedOut { .. })), "{open:?}");
    let endless = Options::new().deadline(Duration::MAX);
    let call = alice.call_with::<_, u64>(bob.addr(), NEXT, &1_u64, endless);
    assert_eq!(within(SOON, "an answer", call).await, Ok(2));
}

#[tokio::test]
async fn a_ban_without_end_is_kept_to_a_month() {
    let (alice, bob) = (node(1).await, node(2).await);
    alice.ban(bob.id(), Duration::MAX).expect("the node is up");
    let why = alice.why(bob.id()).await.expect("alive").expect("banned");
    assert!(why.banned_for.is_some_and(|left| left <= Duration::from_secs(30 * 24 * 3600)));
}

// Runtimes and supervisors

#[test]
fn a_start_outside_a_runtime_is_refused() {
    let spawn = pin!(builder(1).spawn());
    let polled = spawn.poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Err(error)) = polled else { panic!("{polled:?}") };
    assert!(matches!(error, SpawnError::NoRuntime), "{error}");
}

/// A supervisor that does nothing.
struct Idle;

impl ractor::Actor for Idle {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        _myself: ractor::ActorRef<()>,
        (): (),
    ) -> Result<(), ractor::ActorProcessingErr> {
        Ok(())
    }
}

#[tokio::test]
async fn a_start_under_a_supervisor_that_has_stopped_is_refused_and_leaves_nothing() {
    let (supervisor, ended) = ractor::Actor::spawn(None, Idle, ()).await.expect("it starts");
    supervisor.stop(None);
    within(SOON, "the supervisor's end", ended).await.expect("it ends");
    let free = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("bound");
    drop(free);
    let builder = Node::builder("orphan").bind_addr(address);
    let start = within(SOON, "the start", builder.spawn_linked(supervisor.get_cell())).await;
    assert!(matches!(start, Err(SpawnError::Actor(_))), "{start:?}");
    eventually(SOON, "the port is free", async || UdpSocket::bind(address).is_ok()).await;
}
