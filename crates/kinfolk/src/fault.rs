//! Failures on demand, for tests of the supervision tree only; the feature `fault-injection` is never on in an app.
//!
//! Every callback of every actor, and every task that an actor owns, passes a [`Point`] that a test can arm once. The points of messages are
//! found by exhaustive matches over the message enums, and an owned task cannot be spawned without one, so that what is new has a point
//! too. Without the feature all of this is empty.

#[cfg(feature = "fault-injection")]
pub use injection::{Actor, Crash, Faults, Kind, Point, Victim};

/// Names a point of the code; without the feature nothing of it is evaluated.
#[cfg(feature = "fault-injection")]
macro_rules! here {
    ($context:expr, $point:expr) => {
        crate::fault::Here::new(&$context.faults, $point)
    };
}
#[cfg(not(feature = "fault-injection"))]
macro_rules! here {
    ($context:expr, $point:expr) => {{
        let _ = &$context;
        crate::fault::Here
    }};
}
pub(crate) use here;

/// An error that a test asked for.
#[derive(Debug, thiserror::Error)]
#[error("injected error")]
pub(crate) struct Injected;

/// A point of the code that fails if a test wants it to.
#[cfg(not(feature = "fault-injection"))]
#[derive(Debug)]
pub(crate) struct Here;

#[cfg(not(feature = "fault-injection"))]
impl Here {
    #[allow(clippy::unused_async, reason = "as with the feature")]
    pub(crate) async fn pass(self) -> Result<(), Injected> {
        Ok(())
    }
}

#[cfg(feature = "fault-injection")]
pub(crate) use injection::{Here, Points};

#[cfg(feature = "fault-injection")]
mod points;

#[cfg(feature = "fault-injection")]
mod injection {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::sync::watch;

    use super::Injected;
    use crate::supervision::lock;

    /// How an actor or a task is to fail.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Crash {
        /// Panic.
        Panic,
        /// Return an error; a task has none, and ends without a word.
        Error,
        /// Do nothing for this time.
        Stall(Duration),
        /// Never return.
        Never,
    }

    /// Which actor is to fail.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Victim {
        /// The root actor.
        Node,
        /// The actor that takes incoming connections.
        Accept,
        /// The actor that decides about peers.
        PeerManager,
        /// The actor that keeps the catalog.
        Discovery,
        /// The actor that supervises producers and consumers.
        Streams,
        /// The session that is live with a peer.
        Session(iroh::EndpointId),
    }

    impl Crash {
        #[allow(clippy::panic, reason = "it is what was asked for")]
        pub(crate) async fn strike(self) -> Result<(), Injected> {
            match self {
                Self::Stall(time) => {
                    tokio::time::sleep(time).await;
                    Ok(())
                }
                Self::Never => std::future::pending().await,
                Self::Panic => panic!("injected panic"),
                Self::Error => Err(Injected),
            }
        }
    }

    macro_rules! points {
        ($($(#[$doc:meta])* $actor:ident $kind:ident [$($point:ident),* $(,)?];)*) => {
            /// Where a fault can strike: the name of the actor, then that of the callback, the message or the task.
            #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
            #[allow(missing_docs, reason = "the names say it")]
            pub enum Point { $($($point,)*)* }

            impl Point {
                /// Every point there is.
                pub const ALL: &[Self] = &[$($(Self::$point,)*)*];

                /// Whose it is.
                pub fn actor(self) -> Actor {
                    match self { $($(Self::$point => Actor::$actor,)*)* }
                }

                /// What it is.
                pub fn kind(self) -> Kind {
                    match self { $($(Self::$point => Kind::$kind,)*)* }
                }
            }
        };
    }

    /// The actors of the tree.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    #[allow(missing_docs, reason = "the names say it")]
    pub enum Actor {
        Node,
        PeerManager,
        Session,
        Accept,
        Discovery,
        Walker,
        Announcer,
        Exchange,
        Streams,
        Producer,
        Feed,
        Consumer,
        Receiver,
    }

    /// The points of a job.
    #[derive(Debug)]
    pub(crate) struct Points {
        pub(crate) pre_start: Point,
        pub(crate) task: Point,
        pub(crate) done: Point,
        pub(crate) panicked: Point,
    }

    /// What a point is a part of.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Kind {
        /// A callback of ractor's.
        Callback,
        /// The handling of one kind of message.
        Message,
        /// A task that the actor owns.
        Task,
    }

    points! {
        Node Callback [NodePreStart, NodeSupervise, NodePostStop];
        Node Message [
            NodeOpen, NodeOpenEager, NodeCall, NodeCallAny, NodeHold, NodeServe, NodeUnserve, NodeSubscribe, NodeMetrics, NodePeers, NodeWhy,
            NodeMonitor, NodeAddress, NodeAddAddress, NodeRemoveAddress, NodeJoinTopic, NodeLeaveTopic, NodeCatalog, NodeSyncWith, NodeDisconnect, NodeBan, NodeUnban, NodeDrain,
            NodeShutdown, NodeStart, NodeWatch, NodeTaskPanicked,
        ];
        Node Task [NodeFollowsAddress, NodeRequest, NodeRestart, NodeWatches];
        PeerManager Callback [ManagerPreStart, ManagerSupervise, ManagerPostStop];
        PeerManager Message [
            ManagerAsk, ManagerCancel, ManagerHold, ManagerAddressNews, ManagerRecordNews, ManagerErrandOver, ManagerNetworkNews, ManagerArrived, ManagerConnected, ManagerWelcomed,
            ManagerDraining, ManagerTick, ManagerDisconnect, ManagerBan, ManagerUnban, ManagerShutDown, ManagerWhy, ManagerPeers,
            ManagerMetrics, ManagerMonitor, ManagerPulse, ManagerTaskPanicked,
        ];
        PeerManager Task [ManagerClock, ManagerRefusal];
        Session Callback [SessionPreStart];
        Session Message [
            SessionDialled, SessionGreet, SessionWelcome, SessionKeep, SessionDrain, SessionClose, SessionHeard, SessionQuiet,
            SessionOver, SessionTaskPanicked,
        ];
        Session Task [
            SessionDials, SessionWatches, SessionReads, SessionServes, SessionDrains, SessionRefuses, SessionWrites, SessionHolds,
        ];
        Accept Callback [AcceptPreStart];
        Accept Message [AcceptPulse, AcceptEndpointClosed, AcceptLoopPanicked];
        Accept Task [AcceptTask, AcceptLoop, AcceptHandshake];
        Discovery Callback [DiscoveryPreStart, DiscoverySupervise, DiscoveryPostStop];
        Discovery Message [
            DiscoveryExpire, DiscoveryRenew, DiscoveryOwnNews, DiscoveryNumbered, DiscoveryMet, DiscoverySought, DiscoveryNetworkNews, DiscoveryAnswer,
            DiscoveryVisit, DiscoverySync, DiscoveryFound, DiscoveryErrandOver, DiscoveryDepart, DiscoveryStartWalker, DiscoveryStartAnnouncer, DiscoveryPulse, DiscoveryTaskPanicked,
        ];
        Discovery Task [DiscoveryClock, DiscoveryRenewal, DiscoveryRestart, DiscoveryLetsGo, DiscoverySaves, DiscoveryKeeps, DiscoveryLooks];
        Walker Callback [WalkerPreStart];
        Walker Message [WalkerWake, WalkerVisited, WalkerTold, WalkerTick, WalkerPulse, WalkerTaskPanicked];
        Walker Task [WalkerClock];
        Announcer Callback [AnnouncerPreStart];
        Announcer Message [
            AnnouncerOwn, AnnouncerFound, AnnouncerDepart, AnnouncerMet, AnnouncerOpened, AnnouncerReceived, AnnouncerLost, AnnouncerTick,
            AnnouncerPulse, AnnouncerTaskPanicked,
        ];
        Announcer Task [AnnouncerClock, AnnouncerOpens, AnnouncerWrites, AnnouncerReads, AnnouncerDeparts];
        Exchange Callback [ExchangePreStart];
        Exchange Message [ExchangeDone, ExchangeTaskPanicked];
        Exchange Task [ExchangeTask];
        Streams Callback [StreamsPreStart, StreamsSupervise, StreamsPostStop];
        Streams Message [StreamsProduce, StreamsConsume, StreamsStartChildren, StreamsPulse, StreamsTaskPanicked];
        Streams Task [StreamsRestart];
        Producer Callback [ProducerPreStart, ProducerSupervise];
        Producer Message [
            ProducerAsked, ProducerPresented, ProducerLooked, ProducerRecords, ProducerAllRecords, ProducerEnd, ProducerTick, ProducerPulse,
            ProducerTaskPanicked,
        ];
        Producer Task [ProducerClock, ProducerFollows, ProducerLooks, ProducerRefuses];
        Feed Callback [FeedPreStart];
        Feed Message [FeedDone, FeedTaskPanicked];
        Feed Task [FeedTask];
        Consumer Callback [ConsumerPreStart, ConsumerSupervise];
        Consumer Message [
            ConsumerOffered, ConsumerWithdrawn, ConsumerAccepted, ConsumerPoisoned, ConsumerNewTicket, ConsumerClose, ConsumerTick, ConsumerPulse,
            ConsumerTaskPanicked,
        ];
        Consumer Task [ConsumerClock, ConsumerFollows];
        Receiver Callback [ReceiverPreStart];
        Receiver Message [ReceiverDone, ReceiverTaskPanicked];
        Receiver Task [ReceiverTask];
    }

    /// The faults of one node: what is armed, and what has struck. Every clone is the same.
    #[derive(Debug, Clone)]
    pub struct Faults {
        armed: Arc<Mutex<Vec<(Point, Crash)>>>,
        struck: watch::Sender<Vec<Point>>,
    }

    impl Default for Faults {
        fn default() -> Self {
            Self { armed: Arc::default(), struck: watch::Sender::new(Vec::new()) }
        }
    }

    impl Faults {
        /// Lets the point fail so, the next time that it is passed and only then.
        pub fn arm(&self, point: Point, crash: Crash) {
            lock(&self.armed).push((point, crash));
        }

        /// How often the point has struck.
        pub fn strikes(&self, point: Point) -> usize {
            self.struck.borrow().iter().filter(|struck| **struck == point).count()
        }

        /// Waits until the point has struck. Cancel safe.
        pub async fn struck(&self, point: Point) {
            // It fails only when the sender is gone, and here it is.
            let _ = self.struck.subscribe().wait_for(|struck| struck.contains(&point)).await;
        }
    }

    /// A point of the code that fails if a test wants it to.
    #[derive(Debug)]
    pub(crate) struct Here(Option<(Faults, Point)>);

    impl Here {
        pub(crate) fn new(faults: &Faults, point: impl Into<Option<Point>>) -> Self {
            Self(point.into().map(|point| (faults.clone(), point)))
        }

        pub(crate) async fn pass(self) -> Result<(), Injected> {
            let Some((faults, point)) = self.0 else { return Ok(()) };
            let crash = {
                let mut armed = lock(&faults.armed);
                let place = armed.iter().position(|(armed, _)| *armed == point);
                place.map(|place| armed.remove(place).1)
            };
            let Some(crash) = crash else { return Ok(()) };
            faults.struck.send_modify(|struck| struck.push(point));
            drop(faults);
            crash.strike().await
        }
    }
}
