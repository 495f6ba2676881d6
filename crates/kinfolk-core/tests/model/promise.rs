//! What is promised, by name: each is a property of the model, and a random run ends at the first that is broken.

use std::fmt;

/// A promise that holds in every state of every story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Promise {
    OneSharedLink,
    OneLive,
    DeadNeverWins,
    OneOutcome,
    ShutdownEmpties,
    NextTimeout,
    EndsByItself,
    Accounts,
    NothingCut,
    Peace,
}

impl Promise {
    pub fn sentence(self) -> &'static str {
        match self {
            Self::OneSharedLink => {
                "in every quiet state both sides share exactly one link whenever either wants one"
            }
            Self::OneLive => "no side ever has two live links with a peer",
            Self::DeadNeverWins => {
                "no link is refused in favour of one that its dialler holds dead, or whose process is gone"
            }
            Self::OneOutcome => "every intent ends in exactly one outcome",
            Self::ShutdownEmpties => "a shutdown from any state leaves nothing",
            Self::NextTimeout => "every state but idle has a next timeout",
            Self::EndsByItself => "without further faults everything comes to rest",
            Self::Accounts => "the machine accounts for every session, intent and event",
            Self::NothingCut => "no acknowledged stream is cut before its deadline",
            Self::Peace => "where nothing goes wrong no timer is needed and no trouble reported",
        }
    }
}

/// A promise that was broken, and how.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Breach {
    pub promise: Promise,
    pub what: String,
}

impl fmt::Debug for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broken: {}: {}", self.promise.sentence(), self.what)
    }
}
