//! How each point is reached. A new point does not compile until it is here.

use std::time::Duration;

use kinfolk::fault::{Actor, Crash, Faults, Point, Victim};
use kinfolk::{Code, NodeMessage, Options, Producer, ProtocolName, SecretKey, Service, Topic};
use kinfolk_tests::support::guest::{Guest, hello, knock};
use kinfolk_tests::support::host::Host;
use kinfolk_tests::support::node::{ECHO, NEXT, builder, connect};
use kinfolk_tests::support::stranger::{Nobody, Stranger};
use kinfolk_tests::support::wait::{eventually, within};
use ractor::RpcReplyPort;

use crate::flows::{GOOD, Number, Other, PROBE, Poison, SHORT, guarded};
use crate::scene::{SOON, Scene, keys_in_order, limits};

/// The key of one more peer that discovers.
const ERIN: u8 = 7;

const OTHER: ProtocolName = ProtocolName::from_static("other/1");

/// A reply port; nobody waits for the answer.
fn port<T>() -> RpcReplyPort<T> {
    ractor::concurrency::oneshot().0.into()
}

/// What has to be armed before alice starts.
pub(crate) fn at_start(point: Point, crash: Crash) -> Vec<(Point, Crash)> {
    match point {
        Point::NodeFollowsAddress | Point::NodePreStart => vec![(point, crash)],
        Point::NodeTaskPanicked => {
            vec![(Point::NodeFollowsAddress, Crash::Panic), (point, crash)]
        }
        _ => Vec::new(),
    }
}

/// Whether alice has to discover.
pub(crate) fn needs_discovery(point: Point) -> bool {
    let is_part_of_it = matches!(
        point.actor(),
        Actor::Discovery | Actor::Walker | Actor::Announcer | Actor::Exchange
    );
    let is_told_by_it = matches!(point, Point::ManagerRecordNews | Point::ManagerErrandOver);
    is_part_of_it || needs_flows(point) || is_told_by_it
}

/// Whether alice has to have typed streams.
pub(crate) fn needs_flows(point: Point) -> bool {
    matches!(
        point.actor(),
        Actor::Streams | Actor::Producer | Actor::Feed | Actor::Consumer | Actor::Receiver
    )
}

/// Whether alice has to keep something on the disk.
pub(crate) fn needs_store(point: Point) -> bool {
    matches!(point, Point::DiscoverySaves | Point::DiscoveryNumbered)
}

/// Which part has to fail, in one restart more, so that the point is reached; by the name that events have.
pub(crate) fn needs_restart_of(point: Point) -> Option<&'static str> {
    use Point as P;
    match point {
        P::ManagerPreStart | P::ManagerTaskPanicked | P::ManagerClock => Some("peer_manager"),
        P::NodeSupervise | P::NodeStart | P::NodeRestart => Some("accept"),
        P::AcceptPreStart
        | P::AcceptEndpointClosed
        | P::AcceptLoopPanicked
        | P::AcceptTask
        | P::AcceptLoop => Some("accept"),
        P::DiscoveryPreStart
        | P::DiscoveryClock
        | P::DiscoveryRenewal
        | P::DiscoveryKeeps
        | P::DiscoveryLooks
        | P::DiscoveryTaskPanicked => Some("discovery"),
        P::DiscoveryStartWalker
        | P::DiscoveryRestart
        | P::WalkerPreStart
        | P::WalkerClock
        | P::WalkerTaskPanicked => Some("walker"),
        P::DiscoveryStartAnnouncer
        | P::AnnouncerPreStart
        | P::AnnouncerClock
        | P::AnnouncerTaskPanicked => Some("announcer"),
        P::StreamsPreStart => Some("streams"),
        P::StreamsStartChildren | P::StreamsRestart | P::StreamsTaskPanicked => Some("producer"),
        _ => None,
    }
}

/// Points that no test reaches, each with its reason.
pub(crate) const OUT_OF_REACH: &[(Point, &str)] = &[
    (Point::NodePreStart, "strikes before there is a node: it has tests of its own"),
    (Point::ManagerNetworkNews, "needs another address of the machine: see `hosts`"),
    (Point::DiscoveryNetworkNews, "needs another address of the machine: see `hosts`"),
    (Point::SessionWrites, "needs a peer that shuts its window before the first three frames"),
];

/// Does what makes alice pass the point.
pub(crate) async fn provoke(scene: &mut Scene, point: Point, crash: Crash) {
    use NodeMessage as M;
    use Point as P;
    let (alice, bob) = (scene.alice.clone(), scene.bob.clone());
    let tell = |message: M| alice.actor().send_message(message).expect("alice is up");
    // A link of alice's own that strikes when it ends, or is told something.
    if matches!(
        point,
        P::ManagerDraining
            | P::ManagerSupervise
            | P::SessionDrain
            | P::SessionDrains
            | P::SessionQuiet
            | P::SessionClose
    ) {
        scene.note_ask();
        connect(&alice, &bob).await;
    }
    // Subscriptions that strike when they end, or are told something.
    if matches!(point, P::ProducerSupervise | P::ProducerPresented | P::FeedDone) {
        scene.dave_consumes().await;
    }
    if matches!(
        point,
        P::ConsumerSupervise
            | P::ConsumerWithdrawn
            | P::ConsumerPoisoned
            | P::ConsumerNewTicket
            | P::ConsumerClose
            | P::ReceiverDone
    ) {
        scene.alice_consumes().await;
    }
    if at_start(point, crash).is_empty() {
        scene.faults.arm(point, crash);
    }
    match point {
        P::NodePreStart | P::SessionWrites | P::ManagerNetworkNews | P::DiscoveryNetworkNews => {
            unreachable!("out of reach")
        }
        P::NodeFollowsAddress | P::NodeTaskPanicked => {}
        // They pass by themselves, again and again.
        P::NodeWatch
        | P::NodeWatches
        | P::ManagerPulse
        | P::AcceptPulse
        | P::DiscoveryPulse
        | P::WalkerPulse
        | P::AnnouncerPulse
        | P::StreamsPulse
        | P::ProducerPulse
        | P::ConsumerPulse => {}
        P::NodeOpen => tell(M::Open(bob.addr().into(), ECHO, Options::new(), port())),
        P::NodeOpenEager => tell(M::OpenEager(bob.addr().into(), ECHO, Options::new(), port())),
        P::NodeCall | P::NodeRequest => {
            tell(M::Call(bob.addr().into(), NEXT, vec![1].into(), Options::new(), port()));
        }
        P::NodeCallAny => tell(M::CallAny(NEXT, vec![1].into(), Options::new(), port())),
        P::NodeHold => tell(M::Hold(bob.addr().into(), port())),
        P::NodeServe => {
            let service = Service::call(|_peer, number: u64| async move { Ok(number) });
            tell(M::Serve(OTHER, service, port()));
        }
        P::NodeUnserve => tell(M::Unserve(OTHER, port())),
        P::NodeSubscribe => tell(M::Subscribe(port())),
        P::NodeMetrics => tell(M::Metrics(port())),
        P::NodePeers => tell(M::Peers(port())),
        P::NodeWhy => tell(M::Why(bob.id(), port())),
        P::NodeMonitor => tell(M::Monitor(bob.id(), port())),
        P::NodeAddress => tell(M::Address(port())),
        P::NodeAddAddress => tell(M::AddAddress(bob.addr(), port())),
        P::NodeRemoveAddress => tell(M::RemoveAddress(bob.id(), None, port())),
        P::NodeJoinTopic => tell(M::JoinTopic(Topic::from_name("a"), port())),
        P::NodeLeaveTopic => tell(M::LeaveTopic(Topic::from_name("a"), port())),
        P::NodeCatalog => tell(M::Catalog(port())),
        P::NodeSyncWith => tell(M::SyncWith(bob.addr().into(), port())),
        P::NodeDisconnect => tell(M::Disconnect(bob.id())),
        P::NodeBan => tell(M::Ban(bob.id(), Duration::from_secs(1))),
        P::NodeUnban => tell(M::Unban(bob.id())),
        P::NodeDrain => tell(M::Drain(port())),
        P::NodeShutdown => tell(M::Shutdown),
        P::NodePostStop
        | P::ManagerPostStop
        | P::StreamsPostStop
        | P::DiscoveryPostStop
        | P::DiscoveryDepart
        | P::AnnouncerDepart
        | P::AnnouncerDeparts => alice.actor().stop(None),
        P::NodeSupervise | P::NodeStart | P::NodeRestart | P::AcceptPreStart | P::AcceptTask => {
            alice.inject(Victim::Accept, Crash::Error);
        }
        P::AcceptLoop => alice.inject(Victim::Accept, Crash::Error),
        P::AcceptEndpointClosed => {
            scene.faults.arm(P::AcceptLoop, Crash::Error);
            alice.inject(Victim::Accept, Crash::Error);
        }
        P::AcceptLoopPanicked => {
            scene.faults.arm(P::AcceptLoop, Crash::Panic);
            alice.inject(Victim::Accept, Crash::Error);
        }
        P::ManagerPreStart | P::ManagerClock => alice.inject(Victim::PeerManager, Crash::Error),
        P::ManagerTaskPanicked => {
            scene.faults.arm(P::ManagerClock, Crash::Panic);
            alice.inject(Victim::PeerManager, Crash::Error);
        }
        P::ManagerCancel => {
            scene.note_ask();
            let address = Nobody::bind().as_if(99);
            let open = alice.open(address, ECHO);
            let given_up = tokio::time::timeout(Duration::from_millis(100), open).await;
            assert!(given_up.is_err(), "nobody answers");
        }
        P::ManagerHold => {
            scene.note_ask();
            let hold = alice.hold(bob.addr());
            scene.faults.struck(point).await;
            drop(hold);
        }
        P::SessionKeep | P::SessionHolds => {
            scene.note_ask();
            let hold = alice.hold(bob.addr());
            within(SOON, "the strike", scene.faults.struck(point)).await;
            drop(hold);
        }
        P::ManagerAddressNews => {
            alice.add_address(Nobody::bind().as_if(98)).expect("an address");
        }
        P::ManagerArrived | P::AcceptHandshake => {
            let to = alice.addr();
            let options = Options::new().idempotent();
            scene.run(async move {
                let _ = bob.call_with::<_, u64>(to, NEXT, &1_u64, options).await;
            });
        }
        P::ManagerDraining => bob.disconnect(alice.id()).await.expect("bob is up"),
        P::ManagerTick => {
            scene.note_ask();
            let address = Nobody::bind().as_if(97);
            let options = Options::new().deadline(Duration::from_millis(200));
            scene.run(async move {
                let _ = alice.open_with(address, ECHO, options).await;
            });
        }
        P::ManagerSupervise => alice.inject(Victim::Session(bob.id()), Crash::Error),
        P::ManagerDisconnect | P::SessionDrain | P::SessionDrains | P::SessionQuiet => {
            alice.disconnect(bob.id()).await.expect("alice is up");
        }
        P::ManagerBan => alice.ban(bob.id(), Duration::from_secs(60)).expect("alice is up"),
        P::ManagerUnban => {
            alice.ban(bob.id(), Duration::from_secs(60)).expect("alice is up");
            alice.unban(bob.id()).expect("alice is up");
        }
        P::SessionClose => alice.ban(bob.id(), Duration::from_secs(60)).expect("alice is up"),
        P::ManagerShutDown => scene.run(async move {
            let _ = alice.drain().await;
        }),
        P::ManagerWhy => scene.run(async move {
            let _ = alice.why(bob.id()).await;
        }),
        P::ManagerPeers => scene.run(async move {
            let _ = alice.peers().await;
        }),
        P::ManagerMetrics => scene.run(async move {
            let _ = alice.metrics().await;
        }),
        P::ManagerMonitor => scene.run(async move {
            let _ = alice.monitor(bob.id()).await;
        }),
        P::ManagerRefusal => {
            let bob = Stranger::bind(77).await;
            let _first = Guest::enter(&bob, &alice, hello(1, 5)).await;
            let _second = knock(&bob, &alice, hello(1, 4)).await;
            within(SOON, "the strike", scene.faults.struck(point)).await;
            bob.close().await;
        }
        P::SessionTaskPanicked => {
            scene.faults.arm(P::SessionDials, Crash::Panic);
            scene.ask(bob.addr());
        }
        P::DiscoveryPreStart
        | P::DiscoveryClock
        | P::DiscoveryRenewal
        | P::DiscoveryKeeps
        | P::DiscoveryLooks => {
            alice.inject(Victim::Discovery, Crash::Error);
        }
        P::DiscoveryTaskPanicked => {
            scene.faults.arm(P::DiscoveryClock, Crash::Panic);
            alice.inject(Victim::Discovery, Crash::Error);
        }
        P::DiscoveryExpire => {
            let mut limits = limits();
            limits.record_ttl = Duration::from_secs(3);
            let erin = Scene::dave_builder().limits(limits).spawn().await.expect("it starts");
            let met = alice.sync_with(erin.addr());
            within(SOON, "an exchange", met).await.expect("both discover");
            // Without a word, so that the record stays until it is over.
            erin.inject(Victim::Node, Crash::Error);
            within(SOON, "the end of erin", erin.closed()).await;
        }
        P::DiscoveryOwnNews
        | P::DiscoveryRenew
        | P::DiscoverySaves
        | P::DiscoveryNumbered
        | P::AnnouncerOwn
        | P::WalkerWake => {
            alice.join_topic(Topic::from_name("a")).expect("room for it");
        }
        P::DiscoverySought => {
            scene.note_ask();
            let unknown = SecretKey::from_bytes(&[96; 32]).public();
            scene.run(async move {
                let options = Options::new().deadline(Duration::from_millis(200));
                let _ = alice.open_with(unknown, ECHO, options).await;
            });
        }
        P::DiscoveryAnswer | P::WalkerTold | P::AnnouncerMet => {
            // Else alice may be the first to ask dave, or to open a stream to him.
            for slow in [P::WalkerWake, P::AnnouncerFound] {
                scene.faults.arm(slow, Crash::Stall(Duration::from_secs(1)));
            }
            let (dave, to) = (scene.dave().await, alice.addr());
            scene.run(async move {
                let _ = dave.sync_with(to).await;
            });
        }
        P::DiscoveryStartWalker | P::DiscoveryRestart | P::WalkerPreStart | P::WalkerClock => {
            scene.faults.arm(P::WalkerWake, Crash::Error);
            alice.join_topic(Topic::from_name("a")).expect("room for it");
        }
        P::WalkerTaskPanicked => {
            scene.faults.arm(P::WalkerClock, Crash::Panic);
            scene.faults.arm(P::WalkerWake, Crash::Error);
            alice.join_topic(Topic::from_name("a")).expect("room for it");
        }
        P::DiscoveryStartAnnouncer | P::AnnouncerPreStart | P::AnnouncerClock => {
            scene.faults.arm(P::AnnouncerOwn, Crash::Error);
            alice.join_topic(Topic::from_name("a")).expect("room for it");
        }
        P::AnnouncerTaskPanicked => {
            scene.faults.arm(P::AnnouncerClock, Crash::Panic);
            scene.faults.arm(P::AnnouncerOwn, Crash::Error);
            alice.join_topic(Topic::from_name("a")).expect("room for it");
        }
        P::AnnouncerOpened | P::AnnouncerOpens => {
            // Else dave may be the first to open a stream.
            let slow = Faults::default();
            slow.arm(P::AnnouncerFound, Crash::Stall(Duration::from_secs(2)));
            scene.start_dave(Scene::dave_builder().faults(&slow)).await;
            scene.meet().await;
        }
        P::ExchangeDone => {
            // Else dave opens one too, and it may be that which is done first.
            let slow = Faults::default();
            slow.arm(P::DiscoveryMet, Crash::Stall(Duration::from_secs(2)));
            scene.start_dave(Scene::dave_builder().faults(&slow)).await;
            scene.meet().await;
        }
        P::ExchangeTaskPanicked => {
            scene.faults.arm(P::ExchangeTask, Crash::Panic);
            scene.meet().await;
        }
        // The stream is over that alice and dave have as neighbours, on the link by which she asked him.
        P::AnnouncerLost | P::DiscoveryErrandOver => {
            scene.meet().await;
            eventually(SOON, "dave is a neighbour", async || {
                alice.metrics().await.expect("up").discovery.neighbours == 1
            })
            .await;
            scene.lose_dave().await;
        }
        // On the heap: what all of these keep on the stack is near what a thread has.
        P::ManagerErrandOver => Box::pin(links_for_errands(scene, point)).await,
        P::ManagerRecordNews
        | P::DiscoveryLetsGo
        | P::DiscoverySupervise
        | P::DiscoverySync
        | P::DiscoveryFound
        | P::WalkerTick
        | P::AnnouncerFound
        | P::AnnouncerReceived
        | P::AnnouncerTick
        | P::AnnouncerWrites
        | P::AnnouncerReads
        | P::ExchangePreStart
        | P::ExchangeTask => scene.meet().await,
        P::DiscoveryMet
        | P::DiscoveryVisit
        | P::WalkerVisited
        | P::ManagerAsk
        | P::ManagerConnected
        | P::ManagerWelcomed
        | P::SessionPreStart
        | P::SessionDials
        | P::SessionDialled
        | P::SessionGreet
        | P::SessionHeard
        | P::SessionReads
        | P::SessionWatches
        | P::SessionServes => scene.ask(bob.addr()),
        P::StreamsPreStart => alice.inject(Victim::Streams, Crash::Error),
        P::StreamsSupervise | P::ProducerEnd => drop(scene.flows().out.take()),
        P::StreamsProduce | P::ProducerPreStart | P::ProducerClock => scene.produce("new").await,
        P::StreamsStartChildren | P::StreamsRestart => {
            scene.faults.arm(P::ProducerPreStart, Crash::Error);
            scene.produce("new").await;
        }
        P::StreamsTaskPanicked => {
            scene.faults.arm(P::StreamsRestart, Crash::Panic);
            scene.faults.arm(P::ProducerPreStart, Crash::Error);
            scene.produce("new").await;
        }
        P::ProducerTaskPanicked => {
            scene.faults.arm(P::ProducerClock, Crash::Panic);
            scene.produce("new").await;
        }
        P::ProducerAllRecords | P::ProducerFollows => {
            let producer = guarded(&alice, "new").await.expect("a producer");
            scene.keep(producer);
        }
        P::ProducerRecords => {
            let dave = scene.dave().await;
            dave.join_topic(Topic::from_name("a")).expect("room for it");
        }
        P::ProducerAsked | P::ProducerLooked | P::ProducerLooks | P::FeedPreStart | P::FeedTask => {
            scene.dave_asks(GOOD).await
        }
        P::FeedTaskPanicked => {
            scene.faults.arm(P::FeedTask, Crash::Panic);
            scene.dave_asks(GOOD).await;
        }
        P::ProducerPresented => {
            let consumer = scene.flows().outer.as_ref().expect("it consumes");
            consumer.set_ticket(GOOD).expect("a ticket");
        }
        P::ProducerTick => {
            scene.dave_asks(SHORT).await;
            within(SOON, "the strike", scene.faults.struck(point)).await;
            scene.flows().outer = None;
        }
        P::ProducerRefuses => {
            let dave = scene.dave().await;
            let consumer = dave.consumer::<Other>(PROBE).await.expect("a consumer");
            within(SOON, "the strike", scene.faults.struck(point)).await;
            drop(consumer);
        }
        P::ProducerSupervise | P::FeedDone => scene.flows().outer = None,
        P::StreamsConsume
        | P::ConsumerPreStart
        | P::ConsumerClock
        | P::ConsumerFollows
        | P::ConsumerOffered
        | P::ConsumerAccepted
        | P::ReceiverPreStart
        | P::ReceiverTask => scene.alice_asks().await,
        P::ConsumerTaskPanicked => {
            scene.faults.arm(P::ConsumerClock, Crash::Panic);
            scene.alice_asks().await;
        }
        P::ReceiverTaskPanicked => {
            scene.faults.arm(P::ReceiverTask, Crash::Panic);
            scene.alice_asks().await;
        }
        P::ConsumerNewTicket => {
            scene.flows().inner.as_ref().expect("it consumes").set_ticket(GOOD).expect("a ticket");
        }
        P::ConsumerClose => scene.flows().inner = None,
        P::ConsumerSupervise | P::ConsumerWithdrawn | P::ReceiverDone => {
            drop(scene.flows().inward.take());
        }
        P::ConsumerPoisoned => {
            // One of the same name that says something else.
            drop(scene.flows().inward.take());
            let dave = scene.dave().await;
            let producer: Producer<Poison> = dave.producer(PROBE).await.expect("a producer");
            let consumer = scene.flows().inner.take().expect("it consumes");
            within(SOON, "alice", producer.when_subscribed(1)).await.expect("up");
            producer.send(&Poison((1, 2))).await.expect("sent");
            scene.read_on(consumer, producer);
            within(SOON, "the strike", scene.faults.struck(point)).await;
        }
        P::ConsumerTick => {
            let dave = scene.dave().await;
            let full = dave.producer::<Number>("full").max_consumers(1);
            let full = full.await.expect("a producer");
            let first = alice.consumer::<Number>("full").await.expect("a consumer");
            within(SOON, "alice", full.when_subscribed(1)).await.expect("up");
            let second = alice.consumer::<Number>("full").await.expect("a consumer");
            within(SOON, "the strike", scene.faults.struck(point)).await;
            drop((first, second));
        }
        P::SessionOver => {
            let bob = Stranger::bind(77).await;
            let guest = Guest::enter(&bob, &alice, hello(1, 5)).await;
            guest.connection.close(0_u8.into(), b"");
            within(SOON, "the strike", scene.faults.struck(point)).await;
            bob.close().await;
        }
        P::SessionWelcome | P::SessionRefuses => {
            let mut host = Host::bind(keys_in_order()[0]).await;
            scene.ask(host.addr());
            let mut dialled = within(SOON, "a dial", host.greeted()).await;
            let _parked = knock(host.stranger(), &alice, hello(1, 1)).await;
            eventually(SOON, "the link is parked", async || {
                alice.metrics().await.expect("up").sessions.parked == 1
            })
            .await;
            if point == P::SessionRefuses {
                dialled.welcome().await;
            } else {
                dialled.close(Code::Busy);
            }
            within(SOON, "the strike", scene.faults.struck(point)).await;
        }
    }
}

/// Of the links by which alice asks peers that become no neighbours, one may linger.
async fn links_for_errands(scene: &mut Scene, point: Point) {
    let silent = Faults::default();
    for _ in 0..8 {
        silent.arm(Point::AnnouncerPreStart, Crash::Error);
    }
    scene.start_dave(Scene::dave_builder().faults(&silent)).await;
    let dave = scene.dave().await;
    let erin = builder(ERIN).limits(limits()).discovery(true).faults(&silent);
    let erin = erin.spawn().await.expect("it starts");
    for peer in [&dave, &erin] {
        let met = scene.alice.sync_with(peer.addr());
        within(SOON, "an exchange", met).await.expect("both discover");
    }
    within(SOON, "the strike", scene.faults.struck(point)).await;
    within(3 * SOON, "a shutdown", erin.shutdown()).await;
}
