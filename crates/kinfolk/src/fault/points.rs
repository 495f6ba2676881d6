//! Which point the handling of each message is. The matches are exhaustive: a new message does not compile without its point.

use crate::accept::AcceptMessage;
use crate::discovery::announcer::AnnouncerMessage;
use crate::discovery::manager::DiscoveryMessage;
use crate::discovery::walker::WalkerMessage;
use crate::fault::{Point, Points};
use crate::node::actor::{Internal, NodeMessage, Note};
use crate::peers::manager::PeerManagerMessage;
use crate::peers::session::SessionMessage;
use crate::streams::consumer::actor::ConsumerMessage;
use crate::streams::manager::StreamsMessage;
use crate::streams::producer::actor::ProducerMessage;
use crate::supervision::job::JobMessage;

impl NodeMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        Some(match self {
            Self::Open(..) => Point::NodeOpen,
            Self::OpenEager(..) => Point::NodeOpenEager,
            Self::Call(..) => Point::NodeCall,
            Self::CallAny(..) => Point::NodeCallAny,
            Self::Hold(..) => Point::NodeHold,
            Self::Serve(..) => Point::NodeServe,
            Self::Unserve(..) => Point::NodeUnserve,
            Self::Subscribe(_) => Point::NodeSubscribe,
            Self::Metrics(_) => Point::NodeMetrics,
            Self::Peers(_) => Point::NodePeers,
            Self::Why(..) => Point::NodeWhy,
            Self::Monitor(..) => Point::NodeMonitor,
            Self::Address(_) => Point::NodeAddress,
            Self::AddAddress(..) => Point::NodeAddAddress,
            Self::JoinTopic(..) => Point::NodeJoinTopic,
            Self::LeaveTopic(..) => Point::NodeLeaveTopic,
            Self::Catalog(_) => Point::NodeCatalog,
            Self::SyncWith(..) => Point::NodeSyncWith,
            Self::RemoveAddress(..) => Point::NodeRemoveAddress,
            Self::Disconnect(_) => Point::NodeDisconnect,
            Self::Ban(..) => Point::NodeBan,
            Self::Unban(_) => Point::NodeUnban,
            Self::Drain(_) => Point::NodeDrain,
            Self::Shutdown => Point::NodeShutdown,
            Self::Internal(Internal(Note::Start(_))) => Point::NodeStart,
            Self::Internal(Internal(Note::Watch)) => Point::NodeWatch,
            Self::Internal(Internal(Note::TaskPanicked(_))) => Point::NodeTaskPanicked,
            Self::Internal(Internal(Note::Crash(..))) => return None,
        })
    }
}

impl PeerManagerMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        Some(match self {
            Self::Ask { .. } => Point::ManagerAsk,
            Self::Cancel(_) => Point::ManagerCancel,
            Self::Hold(_) => Point::ManagerHold,
            Self::AddressNews(_) => Point::ManagerAddressNews,
            Self::RecordNews => Point::ManagerRecordNews,
            Self::ErrandOver(..) => Point::ManagerErrandOver,
            Self::NetworkNews => Point::ManagerNetworkNews,
            Self::Arrived(..) => Point::ManagerArrived,
            Self::Connected { .. } => Point::ManagerConnected,
            Self::Welcomed { .. } => Point::ManagerWelcomed,
            Self::Draining { .. } => Point::ManagerDraining,
            Self::Tick => Point::ManagerTick,
            Self::Disconnect(_) => Point::ManagerDisconnect,
            Self::Ban { .. } => Point::ManagerBan,
            Self::Unban(_) => Point::ManagerUnban,
            Self::ShutDown(_) => Point::ManagerShutDown,
            Self::Why(..) => Point::ManagerWhy,
            Self::Peers(_) => Point::ManagerPeers,
            Self::Metrics(_) => Point::ManagerMetrics,
            Self::Monitor(..) => Point::ManagerMonitor,
            Self::Pulse => Point::ManagerPulse,
            Self::TaskPanicked(_) => Point::ManagerTaskPanicked,
            Self::Crash(..) => return None,
        })
    }
}

impl SessionMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        Some(match self {
            Self::Dialled(_) => Point::SessionDialled,
            Self::Greet(_) => Point::SessionGreet,
            Self::Welcome => Point::SessionWelcome,
            Self::Keep(_) => Point::SessionKeep,
            Self::Drain(..) => Point::SessionDrain,
            Self::Close(_) => Point::SessionClose,
            Self::Heard(_) => Point::SessionHeard,
            Self::Quiet(_) => Point::SessionQuiet,
            Self::Over(_) => Point::SessionOver,
            Self::TaskPanicked(_) => Point::SessionTaskPanicked,
            Self::Crash(_) => return None,
        })
    }
}

impl AcceptMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        match self {
            Self::Pulse => Some(Point::AcceptPulse),
            Self::EndpointClosed => Some(Point::AcceptEndpointClosed),
            Self::LoopPanicked(_) => Some(Point::AcceptLoopPanicked),
            Self::Crash(_) => None,
        }
    }
}

impl DiscoveryMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        Some(match self {
            Self::Expire => Point::DiscoveryExpire,
            Self::Renew => Point::DiscoveryRenew,
            Self::OwnNews(_) => Point::DiscoveryOwnNews,
            Self::Numbered(..) => Point::DiscoveryNumbered,
            Self::Met => Point::DiscoveryMet,
            Self::ErrandOver(_) => Point::DiscoveryErrandOver,
            Self::Sought => Point::DiscoverySought,
            Self::NetworkNews => Point::DiscoveryNetworkNews,
            Self::Answer(_) => Point::DiscoveryAnswer,
            Self::Visit { .. } => Point::DiscoveryVisit,
            Self::Sync(..) => Point::DiscoverySync,
            Self::Found => Point::DiscoveryFound,
            Self::Depart(_) => Point::DiscoveryDepart,
            Self::StartWalker => Point::DiscoveryStartWalker,
            Self::StartAnnouncer => Point::DiscoveryStartAnnouncer,
            Self::Pulse => Point::DiscoveryPulse,
            Self::TaskPanicked(_) => Point::DiscoveryTaskPanicked,
            Self::Crash(_) => return None,
        })
    }
}

impl WalkerMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        Some(match self {
            Self::Wake(_) => Point::WalkerWake,
            Self::Visited(..) => Point::WalkerVisited,
            Self::Told(..) => Point::WalkerTold,
            Self::Tick => Point::WalkerTick,
            Self::Pulse => Point::WalkerPulse,
            Self::TaskPanicked(_) => Point::WalkerTaskPanicked,
        })
    }
}

impl AnnouncerMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        Some(match self {
            Self::Own(_) => Point::AnnouncerOwn,
            Self::Found => Point::AnnouncerFound,
            Self::Depart(..) => Point::AnnouncerDepart,
            Self::Met(_) => Point::AnnouncerMet,
            Self::Opened(..) => Point::AnnouncerOpened,
            Self::Received(..) => Point::AnnouncerReceived,
            Self::Lost(..) => Point::AnnouncerLost,
            Self::Tick => Point::AnnouncerTick,
            Self::Pulse => Point::AnnouncerPulse,
            Self::TaskPanicked(_) => Point::AnnouncerTaskPanicked,
        })
    }
}

impl StreamsMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        Some(match self {
            Self::Produce(_) => Point::StreamsProduce,
            Self::Consume(_) => Point::StreamsConsume,
            Self::StartChildren => Point::StreamsStartChildren,
            Self::Pulse => Point::StreamsPulse,
            Self::TaskPanicked(_) => Point::StreamsTaskPanicked,
            Self::Crash(_) => return None,
        })
    }
}

impl ProducerMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        Some(match self {
            Self::Asked(_) => Point::ProducerAsked,
            Self::Presented(..) => Point::ProducerPresented,
            Self::Looked(..) => Point::ProducerLooked,
            Self::Records(_) => Point::ProducerRecords,
            Self::AllRecords => Point::ProducerAllRecords,
            Self::End => Point::ProducerEnd,
            Self::Tick => Point::ProducerTick,
            Self::Pulse => Point::ProducerPulse,
            Self::TaskPanicked(_) => Point::ProducerTaskPanicked,
        })
    }
}

impl ConsumerMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        Some(match self {
            Self::Offered(..) => Point::ConsumerOffered,
            Self::Withdrawn(..) => Point::ConsumerWithdrawn,
            Self::Accepted(..) => Point::ConsumerAccepted,
            Self::Poisoned(..) => Point::ConsumerPoisoned,
            Self::NewTicket => Point::ConsumerNewTicket,
            Self::Close => Point::ConsumerClose,
            Self::Tick => Point::ConsumerTick,
            Self::Pulse => Point::ConsumerPulse,
            Self::TaskPanicked(_) => Point::ConsumerTaskPanicked,
        })
    }
}

impl<E> JobMessage<E> {
    pub(crate) fn point(&self, points: &Points) -> Option<Point> {
        Some(match self {
            Self::Done(_) => points.done,
            Self::TaskPanicked(_) => points.panicked,
        })
    }
}
