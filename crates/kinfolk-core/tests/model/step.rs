//! Everything that can happen, and the rules that a test may break to see whether that is noticed.

use std::time::Duration;

use kinfolk_core::intent::IntentId;
use kinfolk_core::peer_link::DialFailure;

use super::name::{Name, Side};

/// A rule of the machine that the driver breaks on its behalf, to see that the tests notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    AsWritten,
    /// Each side believes that its id is the larger one: both park.
    BothLarger,
    /// Each side believes that its id is the smaller one: an incoming link always wins.
    BothSmaller,
    /// No hello lists dead links.
    ListsNothing,
    /// A hello lists lost links, and none that drain.
    ListsOnlyLost,
    /// Hellos are stamped when they are handled, not when they arrive.
    StampsLate,
    /// A link that should be parked is refused at once.
    RefusesInsteadOfParking,
    /// A restarted node shows its old incarnation.
    KeepsIncarnation,
    /// A dial that the app gives up is closed, whatever its session has heard by then.
    CutsGivenUpDials,
    /// The manager never tells the table that a session ended.
    SwallowsEnds,
    /// The caller of a lost stream neither asks again nor hears of it.
    DropsLostStreams,
    /// Instead of the rule: the dial of the lower id wins, always.
    LowerIdWins,
    /// Instead of the rule: whatever arrives last wins, over a live link too.
    NewestWins,
    /// Instead of the rule: an incoming link ends a dial of ours.
    DropsDialOnIncoming,
}

/// Something that can happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    // What goes on by itself
    /// The handshake of a dialled link is done.
    Establish(Name),
    /// The next frame arrives.
    Deliver(Name, Side),
    /// The close arrives, and nothing that was sent before it.
    Overtake(Name, Side),
    /// The idle timeout shows that the other end is gone.
    Notice(Name, Side),
    /// The manager handles the next message of the session.
    Handle(Name, Side),
    /// The manager learns that the session ended.
    Report(Name, Side),
    /// The admission policy said yes, and the manager gets the hello.
    Consider(Name, Side),
    /// Accept finds the connection closed before the policy has answered.
    Abandon(Name, Side),
    /// The caller of a stream to that peer, which was lost, asks again.
    AskAgain(Side, Side),

    // Time
    /// The node's next timer fires.
    Fire(Side),
    /// The drain deadline of a session passes.
    CutDrain(Name, Side),

    // Faults
    FailDial(Name, DialFailure),
    /// Nobody will ever answer the dial.
    Mute(Name),
    /// One end loses the link without a word to the other.
    Lose(Name, Side),
    /// What is on its way from an end that is gone never arrives.
    LoseFrames(Name, Side),
    Panic(Name, Side),
    Crash(Side),
    /// The admission policy says no.
    NotAdmitted(Name, Side),

    // Wishes: of whom, about whom
    Hold(Side, Side),
    Open(Side, Side, Option<Duration>),
    Cancel(Side, IntentId),
    Disconnect(Side, Side),
    Ban(Side, Side, Duration),
    Unban(Side, Side),
    AddressNews(Side, Side),
    Shutdown(Side),
}
