//! Which point the handling of each message is. The matches are exhaustive: a new message does not compile without its point.

use crate::accept::AcceptMessage;
use crate::fault::Point;
use crate::node::actor::{Internal, NodeMessage, Note};
use crate::peers::manager::PeerManagerMessage;
use crate::peers::session::SessionMessage;

impl NodeMessage {
    pub(crate) fn point(&self) -> Option<Point> {
        Some(match self {
            Self::Open(..) => Point::NodeOpen,
            Self::OpenEager(..) => Point::NodeOpenEager,
            Self::Call(..) => Point::NodeCall,
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
