//! Random lives of small tables in a world that does what it likes, beside a witness that only writes down what was said: who may be tried, where
//! the items go on, who is barred. In the end the world turns good, and whoever is there has to be connected.

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::*;

const PEERS: u32 = 6;
const PLACES: usize = 3;

#[derive(Debug, Clone)]
enum Event {
    Offer {
        n: u32,
        is_newer: bool,
        millis: Option<u64>,
    },
    Withdraw(u32, Withdrawal),
    /// What comes of the live attempt with this index.
    Live(usize, Word),
    /// The same of one that is over.
    Stale(usize, Word),
    NewTicket,
    Pass(u64),
    Timeout,
}

#[derive(Debug, Clone)]
enum Word {
    Accepted,
    Refused(Refusal),
    Ended(StreamEnd, u64),
    Lost(Option<u64>),
    Poisoned(u64),
    Misbehaved,
}

impl Word {
    fn of(&self, attempt: Attempt) -> Input {
        match self.clone() {
            Self::Accepted => Input::Accepted { attempt },
            Self::Refused(refusal) => Input::Refused { attempt, refusal },
            Self::Ended(end, next) => Input::Ended { attempt, end, resume: resume(next) },
            Self::Lost(next) => Input::Lost { attempt, resume: next.and_then(resume) },
            Self::Poisoned(next) => Input::Poisoned { attempt, resume: resume(next) },
            Self::Misbehaved => Input::Misbehaved { attempt },
        }
    }

    fn termination(&self) -> Option<Termination> {
        match self.clone() {
            Self::Refused(refusal) if refusal.is_final() => Some(Termination::Refused(refusal)),
            Self::Ended(end, _) if end.is_final() => Some(Termination::Ended(end)),
            Self::Poisoned(_) => Some(Termination::Poisoned),
            Self::Misbehaved => Some(Termination::Misbehaved),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Live {
    n: u32,
    is_connected: bool,
    record: u64,
    ticket: u64,
}

/// A verdict that forbids to come back.
#[derive(Debug, Clone)]
struct Bar {
    why: Termination,
    record: u64,
    ticket: u64,
    until: Instant,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Standing {
    /// There is no record, or one that does not offer the stream.
    #[default]
    NotOffered,
    Gone,
    NotWanted,
    Offered,
}

#[derive(Debug, Clone, Default)]
struct Peer {
    standing: Standing,
    record: u64,
    bar: Option<Bar>,
    resume: Option<Resume>,
    shown: Option<SourceState>,
    /// When it was forgotten because its record is gone.
    departed: Option<Instant>,
}

struct World {
    machine: Subscriptions,
    limits: SubscriptionLimits,
    now: Instant,
    ticket: u64,
    peers: Vec<Peer>,
    live: BTreeMap<Attempt, Live>,
    over: Vec<Attempt>,
}

fn number(peer: EndpointId) -> usize {
    let found = (0..PEERS).position(|n| super::peer(n) == peer);
    found.unwrap()
}

impl World {
    fn new(seed: [u8; 32]) -> Self {
        let limits = SubscriptionLimits { sources: PLACES, ..SubscriptionLimits::default() };
        Self {
            machine: Subscriptions::new(limits.clone(), seed),
            limits,
            now: Instant::now(),
            ticket: 0,
            peers: vec![Peer::default(); usize::try_from(PEERS).unwrap()],
            live: BTreeMap::new(),
            over: Vec::new(),
        }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Offer { n, is_newer, millis } => {
                self.offer(*n, *is_newer, millis.map(Duration::from_millis));
            }
            Event::Withdraw(n, why) => self.withdraw(*n, *why),
            Event::Live(index, word) => {
                let attempts: Vec<_> = self.live.keys().copied().collect();
                if !attempts.is_empty() {
                    self.hear(attempts[index % attempts.len()], word);
                }
            }
            Event::Stale(index, word) => {
                if !self.over.is_empty() {
                    let attempt = self.over[index % self.over.len()];
                    let before: Vec<_> = self.machine.sources().collect();
                    let said = self.say(word.of(attempt));
                    assert_eq!(said, [], "{attempt:?} is over");
                    assert_eq!(self.machine.sources().collect::<Vec<_>>(), before);
                }
            }
            Event::NewTicket => {
                self.ticket += 1;
                self.say(Input::NewTicket);
            }
            Event::Pass(millis) => {
                self.now += Duration::from_millis(*millis);
                self.say(Input::Timeout);
            }
            Event::Timeout => {
                self.now = self.machine.next_timeout().unwrap_or(self.now).max(self.now);
                self.say(Input::Timeout);
            }
        }
    }

    fn offer(&mut self, n: u32, is_newer: bool, rtt: Option<Duration>) {
        let (now, forgive_after) = (self.now, self.limits.forgive_after);
        let it = self.peer(n);
        it.record += u64::from(is_newer);
        it.standing = Standing::Offered;
        if it.departed.take().is_some_and(|at| now >= at + forgive_after) {
            (it.bar, it.resume) = (None, None);
        }
        let record = Seq::new(it.record);
        self.say(Input::Offered { peer: peer(n), record, rtt });
    }

    fn withdraw(&mut self, n: u32, why: Withdrawal) {
        let is_live = self.live.values().any(|live| live.n == n);
        let live = self.live.values().find(|live| live.n == n).copied();
        let it = self.peer(n);
        match why {
            Withdrawal::Gone if it.standing != Standing::NotOffered => {
                it.standing = Standing::Gone;
            }
            Withdrawal::Gone => {}
            Withdrawal::NotOffered => {
                it.standing = Standing::NotOffered;
                if !is_live {
                    (it.bar, it.resume, it.departed) = (None, None, None);
                }
            }
            Withdrawal::NotWanted if it.shown.is_none() => {}
            Withdrawal::NotWanted => {
                it.standing = Standing::NotWanted;
                if live.is_some_and(|live| live.is_connected) {
                    it.resume = None;
                }
            }
        }
        let said = self.say(Input::Withdrawn { peer: peer(n), why });
        let cuts = said.iter().filter(|output| matches!(output, Output::Cut { .. })).count();
        assert_eq!(cuts, usize::from(is_live && why == Withdrawal::NotWanted));
    }

    fn hear(&mut self, attempt: Attempt, word: &Word) {
        let (now, ticket, forgive_after) = (self.now, self.ticket, self.limits.forgive_after);
        let live = self.live[&attempt];
        let it = self.peer(live.n);
        if let Word::Accepted = word {
            if !live.is_connected {
                it.resume = None;
            }
            self.live.get_mut(&attempt).unwrap().is_connected = true;
        } else {
            match word {
                Word::Ended(_, next) | Word::Poisoned(next) => it.resume = resume(*next),
                Word::Lost(None) if live.is_connected => it.resume = None,
                Word::Lost(Some(next)) => it.resume = resume(*next),
                Word::Misbehaved => it.resume = None,
                _ => {}
            }
            let bar = word.termination().map(|why| Bar {
                why,
                record: live.record,
                ticket: live.ticket,
                until: now + forgive_after,
            });
            it.bar = bar.filter(|bar| !bar.why.is_about_ticket() || bar.ticket == ticket);
            self.live.remove(&attempt);
            self.over.push(attempt);
        }
        self.say(word.of(attempt));
    }

    fn peer(&mut self, n: u32) -> &mut Peer {
        &mut self.peers[usize::try_from(n).unwrap()]
    }

    fn say(&mut self, input: Input) -> Vec<Output> {
        let mut said = Vec::new();
        self.machine.handle(self.now, input, &mut said);
        for output in &said {
            self.witness(output);
        }
        self.look();
        said
    }

    fn witness(&mut self, output: &Output) {
        let (now, ticket) = (self.now, self.ticket);
        match output.clone() {
            Output::Connect { attempt, peer, resume, .. } => {
                let n = number(peer);
                assert!(self.live.values().all(|live| super::peer(live.n) != peer), "two attempts");
                let newest = self.live.keys().chain(&self.over).max();
                assert!(newest.is_none_or(|newest| *newest < attempt), "an attempt comes twice");
                let it = &mut self.peers[n];
                assert_eq!(it.standing, Standing::Offered);
                assert_eq!(resume, it.resume);
                if let Some(Bar { why, record, ticket: shown, until }) = it.bar.take() {
                    let has_ticket = why.is_about_ticket() && ticket > shown;
                    let has_record = it.record > record && (why.is_about_offer() || now >= until);
                    assert!(has_ticket || has_record, "{why:?} is not remembered");
                }
                let (n, record) = (u32::try_from(n).unwrap(), it.record);
                self.live.insert(attempt, Live { n, is_connected: false, record, ticket });
            }
            Output::Cut { attempt, peer } => {
                let live = self.live.remove(&attempt).expect("what is cut is live");
                assert_eq!(super::peer(live.n), peer);
                self.over.push(attempt);
            }
            Output::Changed { peer, state } => {
                let it = &mut self.peers[number(peer)];
                assert_ne!(it.shown.as_ref(), Some(&state), "nothing has changed");
                it.shown = Some(state);
            }
            Output::Forgotten { peer } => {
                let it = &mut self.peers[number(peer)];
                assert!(it.shown.take().is_some());
                match it.standing {
                    Standing::Gone => it.departed = Some(now),
                    Standing::NotOffered => (it.bar, it.resume) = (None, None),
                    other => panic!("forgotten while {other:?}"),
                }
            }
        }
    }

    /// What holds whatever happens.
    fn look(&self) {
        let machine = &self.machine;
        assert!(self.live.len() <= machine.placed() && machine.placed() <= PLACES);
        let next = machine.next_timeout();
        assert!(next.is_none_or(|at| at > self.now), "what is due was not done");
        for (n, it) in (0..).zip(&self.peers) {
            let state = machine.state(&peer(n));
            assert_eq!(state, it.shown, "what is so was not said");
            let live = self.live.values().find(|live| live.n == n);
            let is_source =
                live.is_some() || matches!(it.standing, Standing::Offered | Standing::NotWanted);
            assert_eq!(state.is_some(), is_source);
            match state {
                Some(SourceState::Connecting) => assert!(!live.unwrap().is_connected),
                Some(SourceState::Connected) => assert!(live.unwrap().is_connected),
                Some(SourceState::Queued) => assert_eq!(machine.placed(), PLACES),
                Some(SourceState::Waiting { until }) => {
                    assert!(next.is_some_and(|at| at <= until));
                    assert!(until <= self.now + self.limits.redial_max);
                }
                Some(SourceState::Terminated(_)) | None => assert!(live.is_none()),
            }
        }
        assert_eq!(machine.attempts.len(), self.live.len());
        assert!(machine.timers.len() + machine.queue.len() <= machine.sources.len());
        assert!(machine.touched.is_empty());
    }

    /// From now on the peers that are good accept whoever comes and break nothing off; the others are dead. All offer, and all sign a record each five minutes.
    fn turns_good(&mut self, is_good: &[bool]) {
        let goods = is_good.iter().filter(|is_good| **is_good).count().min(PLACES);
        let is_good = |n: u32| is_good[usize::try_from(n).unwrap()];
        let connected = |world: &Self| {
            let live = world.live.values();
            live.filter(|live| is_good(live.n) && live.is_connected).count()
        };
        let start = self.now;
        let mut renewed = None;
        loop {
            if renewed.is_none_or(|at| self.now >= at + 5 * MINUTE) {
                renewed = Some(self.now);
                for n in 0..PEERS {
                    self.offer(n, true, None);
                }
            }
            let attempts: Vec<_> = self.live.iter().map(|(at, live)| (*at, *live)).collect();
            for (attempt, live) in attempts {
                let word = if is_good(live.n) { Word::Accepted } else { Word::Lost(None) };
                self.hear(attempt, &word);
            }
            if connected(self) == goods {
                return;
            }
            assert!(self.now < start + HOUR, "only {} of {goods}", connected(self));
            self.now += SECOND;
            self.say(Input::Timeout);
        }
    }
}

fn word() -> impl Strategy<Value = Word> {
    let refusal = prop_oneof![
        Just(Refusal::NoSuchStream),
        Just(another_schema()),
        Just(Refusal::NotAllowed),
        Just(Refusal::BadTicket),
        Just(Refusal::NoCapacity),
        Just(Refusal::UnknownPeer),
        Just(Refusal::Ended),
        Just(Refusal::Unchecked),
    ];
    let end = prop_oneof![
        Just(StreamEnd::Finished),
        Just(StreamEnd::TooSlow),
        Just(StreamEnd::NotAllowed),
        Just(StreamEnd::TicketExpired),
        Just(StreamEnd::ShuttingDown),
        Just(StreamEnd::Misbehaved),
    ];
    prop_oneof![
        6 => Just(Word::Accepted),
        4 => refusal.prop_map(Word::Refused),
        3 => (end, 0_u64..9).prop_map(|(end, next)| Word::Ended(end, next)),
        4 => prop::option::of(0_u64..9).prop_map(Word::Lost),
        1 => (0_u64..9).prop_map(Word::Poisoned),
        1 => Just(Word::Misbehaved),
    ]
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let why = prop_oneof![
        2 => Just(Withdrawal::Gone),
        1 => Just(Withdrawal::NotOffered),
        1 => Just(Withdrawal::NotWanted),
    ];
    let pass = prop_oneof![0_u64..200, 0_u64..20_000, 0_u64..700_000];
    let event = prop_oneof![
        8 => (0..PEERS, any::<bool>(), prop::option::of(0_u64..50))
            .prop_map(|(n, is_newer, millis)| Event::Offer { n, is_newer, millis }),
        3 => (0..PEERS, why).prop_map(|(n, why)| Event::Withdraw(n, why)),
        10 => (0_usize..8, word()).prop_map(|(index, word)| Event::Live(index, word)),
        2 => (0_usize..50, word()).prop_map(|(index, word)| Event::Stale(index, word)),
        1 => Just(Event::NewTicket),
        3 => pass.prop_map(Event::Pass),
        5 => Just(Event::Timeout),
    ];
    proptest::collection::vec(event, 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(
            FileFailurePersistence::Direct("src/stream/subscriptions/tests.regressions"),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happened_whoever_offers_and_accepts_is_connected_in_the_end(
        events in events(),
        seed: [u8; 32],
        is_good: [bool; 6],
    ) {
        let mut world = World::new(seed);
        for event in &events {
            world.take(event);
        }
        world.turns_good(&is_good);
        // And all of it can be cut in one go.
        let mut said = Vec::new();
        world.machine.handle(world.now, Input::Close, &mut said);
        prop_assert_eq!(said.len(), world.live.len());
    }
}

#[test]
fn every_short_life_of_two_sources_keeps_the_rules() {
    let choices = [
        Event::Offer { n: 0, is_newer: true, millis: None },
        Event::Offer { n: 1, is_newer: false, millis: None },
        Event::Withdraw(0, Withdrawal::Gone),
        Event::Withdraw(0, Withdrawal::NotWanted),
        Event::Live(0, Word::Accepted),
        Event::Live(0, Word::Lost(Some(3))),
        Event::Live(0, Word::Refused(Refusal::NotAllowed)),
        Event::Live(0, Word::Refused(Refusal::UnknownPeer)),
        Event::Stale(0, Word::Lost(None)),
        Event::NewTicket,
        Event::Timeout,
    ];
    let depth = 4;
    for life in 0..choices.len().pow(depth) {
        let mut world = World::new([7; 32]);
        world.take(&choices[0]);
        let mut rest = life;
        for _ in 0..depth {
            world.take(&choices[rest % choices.len()]);
            rest /= choices.len();
        }
    }
}
