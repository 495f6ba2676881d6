//! Why a connection was closed, or a stream refused, reset or stopped: one set of codes for both.
//!
//! Whoever ends something says why with a [`Code`]; whoever learns of it decides with its predicates whether to ask
//! again. Numbers are stable: a new reason takes a new number, and an old number is never used for something else.
//!
//! | nr | name | nr | name | nr | name |
//! |---|---|---|---|---|---|
//! | 1 | ok | 9 | not_admitted | 17 | hello_timeout |
//! | 2 | cancelled | 10 | busy | 18 | header_timeout |
//! | 3 | duplicate | 11 | unknown_protocol | 19 | handler_failed |
//! | 4 | shutting_down | 12 | unknown_peer | 20 | handler_panicked |
//! | 5 | draining | 13 | not_allowed | 21 | deadline_exceeded |
//! | 6 | drain_deadline | 14 | malformed | 22 | restarted |
//! | 7 | idle | 15 | violation | 23 | internal |
//! | 8 | banned | 16 | too_large | 24 | replaced |
//! | | | | | 255 | unspecified |
//!
//! Number 0 is never assigned: iroh closes connections and stops streams with 0 when a handle is merely dropped, so a 0
//! says nothing about the peer's reason and is read as [`Code::Unspecified`].

use std::fmt;

/// A number that this version has no meaning for. Only [`Code::from_wire`] makes one, so that no assigned code has a
/// second form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unassigned(u8);

impl Unassigned {
    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Unassigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Makes the enum and both directions of its mapping from one list, so that they cannot disagree.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $number:literal, $name:literal;)*) => {
        /// Why something ended. The *sender* of a code is the node that closed, refused, reset or stopped; the
        /// *receiver* is the node that learns of it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $(
                $(#[$doc])*
                #[doc = concat!("\n\nNumber ", stringify!($number), " on the wire.")]
                $code,
            )*
            /// A number that this version does not know: a newer peer's reason.
            Other(Unassigned),
        }

        impl Code {
            /// Every code with a meaning, in the order of their numbers; for tables of counters.
            pub const ASSIGNED: &'static [Self] = &[$(Self::$code),*];

            /// The number on the wire, 1 to 255.
            pub const fn to_wire(self) -> u8 {
                match self {
                    $(Self::$code => $number,)*
                    Self::Other(number) => number.get(),
                }
            }

            const fn from_byte(byte: u8) -> Self {
                match byte {
                    0 => Self::Unspecified,
                    $($number => Self::$code,)*
                    number => Self::Other(Unassigned(number)),
                }
            }

            /// A word for metrics, in snake case; all codes of [`Code::Other`] share one, so that a peer cannot grow a
            /// table of labels.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)*
                    Self::Other(_) => "other",
                }
            }
        }
    };
}

codes! {
    /// Everything was said and heard: both sides have sent `Done`, or a stream ended as it should.
    Ok = 1, "ok";
    /// The app no longer wants it: it dropped the handle or the future.
    Cancelled = 2, "cancelled";
    /// Another link between the two nodes was kept instead. Closes only links that were never welcomed.
    Duplicate = 3, "duplicate";
    /// The sender is shutting down.
    ShuttingDown = 4, "shutting_down";
    /// The link takes no new streams, as it is about to close; the next link will.
    Draining = 5, "draining";
    /// The time for open streams to finish after `Goodbye` is over.
    DrainDeadline = 6, "drain_deadline";
    /// Nothing needed the link.
    Idle = 7, "idle";
    /// The sender's app banned the receiver.
    Banned = 8, "banned";
    /// The sender's admission policy does not want a link with the receiver.
    NotAdmitted = 9, "not_admitted";
    /// The sender is at one of its limits.
    Busy = 10, "busy";
    /// The sender does not serve this protocol.
    UnknownProtocol = 11, "unknown_protocol";
    /// The protocol is served only to peers in the sender's catalog, and the receiver is not in it. Refuses streams,
    /// never links, so that the two can still exchange catalogs.
    UnknownPeer = 12, "unknown_peer";
    /// The protocol's own admission policy does not want the receiver.
    NotAllowed = 13, "not_allowed";
    /// The receiver sent bytes that break the format.
    Malformed = 14, "malformed";
    /// The receiver sent something well-formed that is forbidden at this point.
    Violation = 15, "violation";
    /// The receiver sent more than allowed.
    TooLarge = 16, "too_large";
    /// The receiver did not send its `Hello` or `Welcome` in time.
    HelloTimeout = 17, "hello_timeout";
    /// The receiver opened a stream and did not send its header in time.
    HeaderTimeout = 18, "header_timeout";
    /// The sender's handler of the stream returned an error.
    HandlerFailed = 19, "handler_failed";
    /// The sender's handler of the stream panicked.
    HandlerPanicked = 20, "handler_panicked";
    /// What the stream was for took longer than the sender was willing to wait.
    DeadlineExceeded = 21, "deadline_exceeded";
    /// A part of the sender failed and was restarted, and what it kept is gone.
    Restarted = 22, "restarted";
    /// The sender failed in a way that it did not foresee.
    Internal = 23, "internal";
    /// A newer link between the two nodes took the place of this one, which the receiver had lost or given up.
    Replaced = 24, "replaced";
    /// No reason was given: a dropped handle, or a number beyond 255.
    Unspecified = 255, "unspecified";
}

/// Who did something wrong. This is about faults, not causes: a policy that says no blames nobody, and neither does a
/// node at its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Blame {
    /// Nobody, or it cannot be told.
    Nobody,
    /// The node that sent the code.
    Sender,
    /// The node that the code was sent to.
    Receiver,
}

impl Code {
    /// The code with this number. 0 and numbers beyond 255, which no node of ours sends, are read as
    /// [`Code::Unspecified`]; numbers without a meaning are kept in [`Code::Other`].
    pub fn from_wire(number: u64) -> Self {
        u8::try_from(number).map_or(Self::Unspecified, Self::from_byte)
    }

    /// Who is at fault when this code is sent.
    pub const fn blame(self) -> Blame {
        match self {
            Self::Ok
            | Self::Cancelled
            | Self::Duplicate
            | Self::ShuttingDown
            | Self::Draining
            | Self::DrainDeadline
            | Self::Idle
            | Self::Replaced
            | Self::NotAdmitted
            | Self::Busy
            | Self::UnknownProtocol
            | Self::UnknownPeer
            | Self::NotAllowed
            // The receiver may have been slow, or the sender impatient.
            | Self::DeadlineExceeded
            | Self::Unspecified
            | Self::Other(_) => Blame::Nobody,
            Self::HandlerFailed | Self::HandlerPanicked | Self::Restarted | Self::Internal => Blame::Sender,
            Self::Banned
            | Self::Malformed
            | Self::Violation
            | Self::TooLarge
            | Self::HelloTimeout
            | Self::HeaderTimeout => Blame::Receiver,
        }
    }

    /// Whether a stream that was refused with this code was certainly never given to a handler, so that even a request
    /// that must not run twice can be sent again.
    ///
    /// This is a promise of the code's sender: it uses these codes on a stream only before a handler has it. It holds
    /// for streams alone. A link that is closed with `Banned`, `ShuttingDown` or `Busy` may have served streams, and
    /// what was not served there is said by `Goodbye`; what an acceptor closes before its `Welcome`
    /// was not served either.
    ///
    /// Codes that can also be sent later make no promise, even where a stream is mostly refused with them at once:
    /// - `Malformed`, `Violation` and `TooLarge` may be about the payload that a handler was reading;
    /// - `Restarted` and `Internal` come from a part that may have handed the stream over before it failed;
    /// - `Idle`, `Replaced` and `HelloTimeout` close links, and say nothing of a stream;
    /// - of a number without a meaning nothing is known.
    pub const fn never_served(self) -> bool {
        match self {
            Self::Duplicate
            | Self::ShuttingDown
            | Self::Draining
            | Self::Banned
            | Self::NotAdmitted
            | Self::Busy
            | Self::UnknownProtocol
            | Self::UnknownPeer
            | Self::NotAllowed
            | Self::HeaderTimeout => true,
            Self::Ok
            | Self::Cancelled
            | Self::DrainDeadline
            | Self::Idle
            | Self::Malformed
            | Self::Violation
            | Self::TooLarge
            | Self::HelloTimeout
            | Self::HandlerFailed
            | Self::HandlerPanicked
            | Self::DeadlineExceeded
            | Self::Restarted
            | Self::Internal
            | Self::Replaced
            | Self::Unspecified
            | Self::Other(_) => false,
        }
    }

    /// Whether the same ask makes sense on another link with the same peer at once: the reason lay with this link, or
    /// with a part that is new by now.
    ///
    /// It says nothing about what was sent already; that is [`Code::never_served`].
    pub const fn retry_on_next_link(self) -> bool {
        matches!(self, Self::Duplicate | Self::Draining | Self::Idle | Self::Restarted)
    }
}

impl fmt::Display for Code {
    /// The name in words; a number without a meaning is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Other(number) = self {
            return write!(f, "unknown code {number}");
        }
        for (at, word) in self.name().split('_').enumerate() {
            if at > 0 {
                f.write_str(" ")?;
            }
            f.write_str(word)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_number_means_what_it_always_meant() {
        let table: Vec<_> =
            Code::ASSIGNED.iter().map(|code| (code.to_wire(), code.name())).collect();
        assert_eq!(
            table,
            [
                (1, "ok"),
                (2, "cancelled"),
                (3, "duplicate"),
                (4, "shutting_down"),
                (5, "draining"),
                (6, "drain_deadline"),
                (7, "idle"),
                (8, "banned"),
                (9, "not_admitted"),
                (10, "busy"),
                (11, "unknown_protocol"),
                (12, "unknown_peer"),
                (13, "not_allowed"),
                (14, "malformed"),
                (15, "violation"),
                (16, "too_large"),
                (17, "hello_timeout"),
                (18, "header_timeout"),
                (19, "handler_failed"),
                (20, "handler_panicked"),
                (21, "deadline_exceeded"),
                (22, "restarted"),
                (23, "internal"),
                (24, "replaced"),
                (255, "unspecified"),
            ]
        );
    }

    #[test]
    fn every_number_from_1_to_255_comes_back_unchanged() {
        for number in 1..=255_u8 {
            assert_eq!(Code::from_wire(number.into()).to_wire(), number);
        }
    }

    #[test]
    fn no_two_numbers_are_the_same_code() {
        let codes: BTreeSet<_> = (1..=255).map(Code::from_wire).collect();
        assert_eq!(codes.len(), 255);
    }

    #[test]
    fn a_dropped_handle_gives_no_reason() {
        assert_eq!(Code::from_wire(0), Code::Unspecified);
    }

    #[test]
    fn numbers_beyond_a_byte_give_no_reason() {
        for number in [256, 257, 1 << 32, u64::MAX] {
            assert_eq!(Code::from_wire(number), Code::Unspecified);
        }
    }

    #[test]
    fn no_code_is_sent_as_zero() {
        assert!(Code::ASSIGNED.iter().all(|code| code.to_wire() != 0));
    }

    #[test]
    fn an_unknown_number_is_kept_and_promises_nothing() {
        let code = Code::from_wire(200);
        assert!(matches!(code, Code::Other(number) if number.get() == 200));
        assert_eq!(code.to_string(), "unknown code 200");
        assert_eq!(code.name(), "other");
        assert_eq!(code.blame(), Blame::Nobody);
        assert!(!code.never_served());
        assert!(!code.retry_on_next_link());
    }

    #[test]
    fn a_code_reads_as_lower_case_words() {
        assert_eq!(Code::Ok.to_string(), "ok");
        assert_eq!(Code::DrainDeadline.to_string(), "drain deadline");
    }

    #[test]
    fn a_handler_that_had_the_stream_is_never_denied() {
        for code in [
            Code::HandlerFailed,
            Code::HandlerPanicked,
            Code::DeadlineExceeded,
            Code::DrainDeadline,
        ] {
            assert!(!code.never_served(), "{code}");
        }
    }

    #[test]
    fn a_no_blames_nobody_and_only_misbehaviour_blames_the_receiver() {
        let blamed = |blame| {
            let codes = Code::ASSIGNED.iter().filter(move |code| code.blame() == blame);
            codes.map(|code| code.name()).collect::<Vec<_>>()
        };
        assert_eq!(
            blamed(Blame::Receiver),
            ["banned", "malformed", "violation", "too_large", "hello_timeout", "header_timeout"]
        );
        assert_eq!(
            blamed(Blame::Sender),
            ["handler_failed", "handler_panicked", "restarted", "internal"]
        );
    }

    #[test]
    fn exactly_four_codes_ask_for_the_next_link() {
        let retried: Vec<_> =
            Code::ASSIGNED.iter().filter(|code| code.retry_on_next_link()).collect();
        assert_eq!(retried, [&Code::Duplicate, &Code::Draining, &Code::Idle, &Code::Restarted]);
    }
}
