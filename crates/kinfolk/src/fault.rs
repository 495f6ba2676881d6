//! Failures on demand, for tests of the supervision tree only; the feature `fault-injection` is never on in an app.

use ractor::ActorProcessingErr;

/// How an actor is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Panic.
    Panic,
    /// Return an error.
    Error,
    /// Do nothing for this time.
    Stall(std::time::Duration),
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
    /// The session that is live with a peer.
    Session(iroh::EndpointId),
}

impl Crash {
    #[allow(clippy::panic, reason = "it is what was asked for")]
    pub(crate) async fn strike(self) -> Result<(), ActorProcessingErr> {
        match self {
            Self::Stall(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Self::Panic => panic!("injected panic"),
            Self::Error => Err("injected error".into()),
        }
    }
}
