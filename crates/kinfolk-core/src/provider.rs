//! Providers: which of the peers that offer a protocol is asked, and when another one may be.
//!
//! Three decisions for whoever calls "somebody who serves this". [`Loads`] remembers for the whole node how many of its own calls each provider has and
//! which were in trouble of late. A [`Search`] is one call: it names the provider to ask next, once for each until all have
//! failed. [`after_attempt`] is the retry rule across providers: another one is asked only if the first certainly did
//! not act on the request, or if it may be acted on twice. It never sends anything, reads no clock and draws no random number.
//!
//! # Hearsay
//!
//! Anybody can make up providers, thousands of them, with the address of a victim. So one of which only others told is asked after those that
//! are [backed](Candidate::is_backed), and a call tries at most [`HEARSAY_MAX`] times in vain: then it waits for one that is backed. One that
//! is reached is hearsay no more, and does not count. Where all are hearsay, the honest ones too, a call asks any of those that the node has not
//! missed of late: each call goes on where those before it failed, so that one that is there is found. The price is that nobody is asked on
//! hearsay to spread the load, before those that are backed are in trouble.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use iroh_base::EndpointId;

use crate::code::Code;
use crate::intent::{Failure, Outcome};
use crate::liveness;
use crate::record::Seq;

/// Differences of distance below this do not count: providers in one building are equals, and share the load (a guess).
const NEAR: Duration = Duration::from_millis(5);

/// How much farther away a provider seems for each call of this node that it has: twenty calls weigh as much as 100 ms (a guess).
const PER_CALL: Duration = Duration::from_millis(5);

/// How far away a provider seems with which there is no session: a dial around the world (a guess).
const UNKNOWN: Duration = Duration::from_millis(250);

/// How far away one seems that nobody knows how to reach.
const NO_WAY: Duration = Duration::from_secs(2);

/// How long a provider counts as in trouble: at first, and at most after failing again and again (guesses).
const TROUBLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The same for one that had a request and was silent until the caller's time was over, or until another provider had answered (guesses, the last as in
/// [`liveness`]): it costs a call not a round trip but its time.
const SILENCE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(900));

/// How many times one call asks providers in vain of which only others told: where half of these are there, one call in 256 meets none (a guess).
pub const HEARSAY_MAX: u32 = 8;

/// How long a call waits before it asks the same provider again: at first, and at most (guesses).
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The least that one provider gets to be reached in, where so much is left (a guess: a handshake around the world).
const REACH_MIN: Duration = Duration::from_secs(1);

/// Providers in trouble that are remembered; about 100 bytes each.
const TROUBLED_MAX: usize = 4096;

/// The bytes of an id, which compare faster than ids do.
type IdBytes = [u8; 32];

/// How far away a provider is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    /// There is a session, with this round-trip time.
    Measured(Duration),
    /// It has to be dialled.
    Unknown,
    /// It would have to be dialled, and nobody knows where.
    NoWay,
}

/// A peer that offers the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who it is.
    pub id: EndpointId,
    /// Its record, by number: one that has refused is asked again once it says something new.
    pub seq: Seq,
    /// How far away it is.
    pub distance: Distance,
    /// Whether it was missed of late.
    pub liveness: liveness::Standing,
    /// Whether more than the word of others says that it is there: a session, its own word, or the app's.
    pub is_backed: bool,
    /// What this node has with it.
    pub load: Load,
}

impl Candidate {
    /// How much it costs to ask it. Equals have the same.
    fn cost(&self) -> Duration {
        let distance = match self.distance {
            // Rounded down.
            Distance::Measured(rtt) => {
                let steps = rtt.as_micros().checked_div(NEAR.as_micros()).unwrap_or_default();
                NEAR.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
            }
            Distance::Unknown => UNKNOWN,
            Distance::NoWay => NO_WAY,
        };
        let calls = u32::try_from(self.load.in_flight).unwrap_or(u32::MAX);
        distance.saturating_add(PER_CALL.saturating_mul(calls))
    }

    /// What speaks against asking it before others, the weightiest first.
    fn doubts(&self) -> [bool; 4] {
        let is_lost = self.liveness == liveness::Standing::Doubtful;
        [
            self.load.is_troubled,
            is_lost || self.distance == Distance::NoWay,
            !self.is_backed,
            self.liveness == liveness::Standing::Due,
        ]
    }
}

/// What a node has with one provider at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Calls of this node that it has not answered.
    pub in_flight: usize,
    /// Whether it was busy, failed or was silent of late, or whether one call is finding out if that is over.
    pub is_troubled: bool,
}

/// What came of asking a provider, as far as it says something of its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It answered: whatever trouble it was in is over.
    Answered,
    /// It was busy, or failed.
    Trouble,
    /// It had the request, and had not answered when the caller's time was over, or when another provider that was asked later had.
    Silence,
    /// Nothing: the caller gave up, for example.
    Nothing,
}

impl News {
    /// What a failed attempt says of the provider. `is_safe` as in [`after_attempt`], of this request: whether the provider did not have it for certain.
    pub fn of_failure(outcome: Outcome, is_safe: bool) -> Self {
        match after_attempt(outcome, true) {
            Verdict::Elsewhere(Standing::Failed) if outcome == Outcome::TimedOut && !is_safe => {
                Self::Silence
            }
            Verdict::Elsewhere(Standing::Failed) => Self::Trouble,
            // It answered as it would answer everybody.
            Verdict::Elsewhere(Standing::Refuses | Standing::Away) | Verdict::End => Self::Nothing,
        }
    }
}

/// What a node has with all providers that it asks.
#[derive(Debug, Default)]
pub struct Loads(BTreeMap<IdBytes, Account>);

#[derive(Debug, Default)]
struct Account {
    in_flight: usize,
    /// How many times in a row it was in trouble, and until when that counts.
    troubles: u32,
    until: Option<Instant>,
    /// How much longer it is remembered, so that the next one counts for longer.
    memory: Duration,
}

impl Account {
    fn is_within(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// When its time is over, one call finds out whether the provider is out of it, and not all that come meanwhile.
    fn is_troubled(&self, now: Instant) -> bool {
        self.is_within(now) || self.troubles > 0 && self.in_flight > 0
    }

    fn trouble(&mut self, now: Instant, lasts: (Duration, Duration)) {
        let is_within = self.is_within(now);
        if !is_within {
            self.troubles = self.troubles.saturating_add(1);
        }
        // Of many calls that fail together, which are one trouble, the first counts, or the worst.
        if !is_within || lasts.1 > self.memory {
            self.until = now.checked_add(doubled(lasts, self.troubles.saturating_sub(1)));
            self.memory = self.memory.max(lasts.1);
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        let forgotten = self.until.and_then(|until| until.checked_add(self.memory));
        self.in_flight == 0 && forgotten.is_none_or(|forgotten| forgotten <= now)
    }
}

impl Loads {
    /// A call to this provider begins.
    pub fn started(&mut self, id: &EndpointId) {
        let account = self.0.entry(*id.as_bytes()).or_default();
        account.in_flight = account.in_flight.saturating_add(1);
    }

    /// A call that was begun is over.
    pub fn ended(&mut self, now: Instant, id: &EndpointId, news: News) {
        let is_full = self.0.len() > TROUBLED_MAX;
        let Some(account) = self.0.get_mut(id.as_bytes()) else { return };
        account.in_flight = account.in_flight.saturating_sub(1);
        match news {
            News::Answered => {
                *account = Account { in_flight: account.in_flight, ..Account::default() }
            }
            News::Trouble if !is_full => account.trouble(now, TROUBLE),
            News::Silence if !is_full => account.trouble(now, SILENCE),
            News::Trouble | News::Silence | News::Nothing => {}
        }
        if account.is_idle(now) {
            self.0.remove(id.as_bytes());
        }
        if is_full {
            self.0.retain(|_, account| !account.is_idle(now));
        }
    }

    /// What the node has with this provider.
    pub fn of(&self, now: Instant, id: &EndpointId) -> Load {
        let account = self.0.get(id.as_bytes());
        account.map_or_else(Load::default, |account| Load {
            in_flight: account.in_flight,
            is_troubled: account.is_troubled(now),
        })
    }
}

/// What a provider that was asked is to this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may do better after a while: it is asked again after all others.
    Failed,
    /// It serves this no more, though its record says so: not asked again before it has a newer one, as if it did not offer it.
    Away,
    /// It does not want this node: not asked again before it has a newer record.
    Refuses,
}

/// What a call does about an attempt without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another provider may be asked, and this is what the one that was asked is from now on.
    Elsewhere(Standing),
    /// The call ends as the attempt did.
    End,
}

/// Decides whether a call that a provider did not answer may be made to another one. `is_safe` says that no payload was sent that the provider may have
/// acted on, or that it may be acted on twice.
///
/// A refusal with a code that [promises it](Code::never_served) proves that no handler had the request. What a handler itself said is an
/// answer, even to a call that is idempotent: the next one would be likely to say the same, and a request that makes handlers panic is kept from
/// making its way through all of them.
pub fn after_attempt(outcome: Outcome, is_safe: bool) -> Verdict {
    use Verdict::{Elsewhere, End};
    match outcome {
        Outcome::Refused(code) if !is_safe && !code.never_served() => End,
        Outcome::Refused(Code::UnknownProtocol | Code::ShuttingDown) => Elsewhere(Standing::Away),
        Outcome::Refused(
            Code::NotAllowed
            | Code::NotAdmitted
            | Code::Banned
            | Code::UnknownPeer
            | Code::Violation
            | Code::Malformed
            | Code::TooLarge,
        ) => Elsewhere(Standing::Refuses),
        Outcome::Refused(_) => Elsewhere(Standing::Failed),
        Outcome::ShuttingDown | Outcome::Done => End,
        // It is said before anything is sent, and of the peer's limit.
        Outcome::Failed(Failure::TooLarge) => Elsewhere(Standing::Refuses),
        Outcome::Failed(Failure::Reset(code)) if is_safe && !is_of_request(code) => {
            Elsewhere(Standing::Failed)
        }
        Outcome::Failed(Failure::Reset(_)) => End,
        Outcome::Failed(Failure::NoCommonProtocol | Failure::WrongIdentity) if is_safe => {
            Elsewhere(Standing::Refuses)
        }
        Outcome::Failed(_)
        | Outcome::Unknown
        | Outcome::TimedOut
        | Outcome::Cancelled
        | Outcome::Restarted
            if is_safe =>
        {
            Elsewhere(Standing::Failed)
        }
        Outcome::Banned if is_safe => Elsewhere(Standing::Refuses),
        Outcome::Failed(_)
        | Outcome::Unknown
        | Outcome::TimedOut
        | Outcome::Cancelled
        | Outcome::Banned
        | Outcome::Restarted => End,
    }
}

/// Whether a reset with this code is likely to repeat at every provider.
fn is_of_request(code: Code) -> bool {
    matches!(
        code,
        Code::HandlerFailed
            | Code::HandlerPanicked
            | Code::Malformed
            | Code::Violation
            | Code::TooLarge
    )
}

/// Whom a call asks next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// This provider. So many others have not been asked yet.
    Ask(EndpointId, usize),
    /// Nobody before this time, unless another provider appears.
    Pause(Instant),
    /// Nobody, before a provider appears.
    Wait,
    /// Nobody: all that there are refuse.
    GiveUp,
}

/// One call in search of a provider.
#[derive(Debug, Default)]
pub struct Search {
    asked: BTreeMap<IdBytes, Asked>,
    /// How many times any was asked on the word of others alone.
    on_hearsay: u32,
}

#[derive(Debug)]
struct Asked {
    attempts: u32,
    /// How many of them on the word of others alone.
    on_hearsay: u32,
    /// `None` while the provider has the request.
    standing: Option<Standing>,
    seq: Seq,
    asked_at: Instant,
    again_at: Instant,
}

impl Asked {
    /// What the provider is to the call, now that its record has this number. With a new one it may serve what it refused; how often it was
    /// asked is not forgotten, as a new record costs nothing.
    fn standing(&self, seq: Seq) -> Option<Standing> {
        match self.standing {
            Some(Standing::Away | Standing::Refuses) if self.seq != seq => Some(Standing::Failed),
            standing => standing,
        }
    }
}

impl Search {
    /// Names the provider to ask next: of those that this call has asked the fewest times one that is in no trouble; of these one that was not
    /// missed a short while ago, backed before hearsay; and of these one with the least cost, made of distance and load. `random` is uniform, and
    /// chooses among equals.
    pub fn choose(&self, now: Instant, candidates: &[Candidate], random: u64) -> Choice {
        let mut best = Vec::new();
        let mut best_rank = None;
        let (mut fresh, mut refusing) = (0_usize, 0_usize);
        let mut pause: Option<Instant> = None;
        let follows_hearsay = self.follows_hearsay(candidates);
        for candidate in candidates {
            let asked = self.asked.get(candidate.id.as_bytes());
            let is_open = candidate.is_backed || follows_hearsay;
            match asked.map(|asked| asked.standing(candidate.seq)) {
                None if is_open => fresh = fresh.saturating_add(1),
                Some(Some(Standing::Refuses)) => {
                    refusing = refusing.saturating_add(1);
                    continue;
                }
                Some(Some(Standing::Failed)) if is_open => {}
                None | Some(Some(Standing::Away | Standing::Failed) | None) => continue,
            }
            if let Some(at) = asked.map(|asked| asked.again_at).filter(|at| *at > now) {
                pause = Some(pause.map_or(at, |pause| pause.min(at)));
                continue;
            }
            let attempts = asked.map_or(0, |asked| asked.attempts);
            let rank = (attempts, candidate.doubts(), candidate.cost());
            if best_rank.is_none_or(|best| rank < best) {
                best_rank = Some(rank);
                best.clear();
            }
            if best_rank == Some(rank) {
                best.push(candidate.id);
            }
        }
        let count = u64::try_from(best.len()).unwrap_or(u64::MAX);
        let place = random.checked_rem(count).and_then(|place| usize::try_from(place).ok());
        if let Some(id) = place.and_then(|place| best.get(place)) {
            return Choice::Ask(*id, fresh.saturating_sub(1));
        }
        match pause {
            Some(pause) => Choice::Pause(pause),
            None if refusing > 0 && refusing == candidates.len() => Choice::GiveUp,
            None => Choice::Wait,
        }
    }

    /// Whether one more may be asked on the word of others. Whoever turned out to be there does not count.
    fn follows_hearsay(&self, candidates: &[Candidate]) -> bool {
        let backed = candidates.iter().filter(|candidate| candidate.is_backed);
        let there = backed.filter_map(|candidate| self.asked.get(candidate.id.as_bytes()));
        let redeemed = there.fold(0_u32, |sum, asked| sum.saturating_add(asked.on_hearsay));
        self.on_hearsay.saturating_sub(redeemed) < HEARSAY_MAX
    }

    /// The provider is asked now.
    pub fn asking(&mut self, now: Instant, provider: &Candidate) {
        let seq = provider.seq;
        let asked = self.asked.entry(*provider.id.as_bytes()).or_insert(Asked {
            attempts: 0,
            on_hearsay: 0,
            standing: None,
            seq,
            asked_at: now,
            again_at: now,
        });
        asked.attempts = asked.attempts.saturating_add(1);
        (asked.standing, asked.seq, asked.asked_at) = (None, seq, now);
        if !provider.is_backed {
            asked.on_hearsay = asked.on_hearsay.saturating_add(1);
            self.on_hearsay = self.on_hearsay.saturating_add(1);
        }
    }

    /// Whether a provider still has the request that another one has answered which was asked later.
    pub fn is_overtaken(&self, id: &EndpointId, by: &EndpointId) -> bool {
        let [one, other] = [id, by].map(|id| self.asked.get(id.as_bytes()));
        one.zip(other)
            .is_some_and(|(one, other)| one.standing.is_none() && one.asked_at < other.asked_at)
    }

    /// The provider did not answer, and another one may be asked.
    pub fn failed(&mut self, now: Instant, id: &EndpointId, standing: Standing) {
        if let Some(asked) = self.asked.get_mut(id.as_bytes()) {
            asked.standing = Some(standing);
            let pause = doubled(PAUSE, asked.attempts.saturating_sub(1));
            asked.again_at = now.checked_add(pause).unwrap_or(now);
        }
    }
}

/// How long a provider that has to be dialled gets of what is left of a call's time, where this many others have not been asked: an equal
/// share with them and one more, so that one that is dead costs little and never all.
pub fn reach_share(left: Duration, others: usize) -> Duration {
    let shares = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(2);
    let share = left.checked_div(shares).unwrap_or(left);
    // Of many others, most are alive.
    share.max(REACH_MIN).min(left.checked_div(2).unwrap_or(left))
}

/// The first of the bounds, doubled so many times, up to the second.
fn doubled((first, most): (Duration, Duration), times: u32) -> Duration {
    let factor = 2_u32.checked_pow(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(most)
}

#[cfg(test)]
mod tests;
