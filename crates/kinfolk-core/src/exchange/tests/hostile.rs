//! Peers that break the rules, and peers that keep them and ask for all they can.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::code::Code;
use crate::wire::exchange::{
    ACCEPTS_MIN, Bound, Greeting, LIST_MAX, Listed, Range, Relayed, Rest, Said, Tag,
};

/// One machine whose peer is the test.
struct Victim {
    machine: Exchange,
    now: Instant,
    frames: Vec<Vec<u8>>,
    learned: usize,
    ended: Option<Summary>,
}

const SALT: Salt = Salt::from_bytes([9; 16]);

impl Victim {
    /// One that knows this many others.
    fn new(role: Role, others: u32) -> Self {
        let now = Instant::now();
        let mut node = Node::new(0, now);
        (2..2 + others).for_each(|n| node.hear(record(n, CLOCK), Duration::ZERO));
        let machine = node.exchange(role, &ExchangeLimits::default());
        let mut victim = Self { machine, now, frames: Vec::new(), learned: 0, ended: None };
        victim.tell(Input::Start);
        victim
    }

    fn responder(others: u32) -> Self {
        Self::new(Role::Responder, others)
    }

    fn tell(&mut self, input: Input<'_>) {
        let mut out = Vec::new();
        self.machine.handle(self.now, input, &mut out);
        let sends = out.iter().filter(|output| matches!(output, Output::Send(_))).count();
        assert!(sends <= 1, "more than one answer");
        for output in out {
            assert_eq!(self.ended, None);
            match output {
                Output::Send(frame) => {
                    assert!(frame.len() <= LENGTH_BYTES + MESSAGE_MAX);
                    self.frames.push(frame);
                }
                Output::Learned { .. } => self.learned += 1,
                Output::Ended(summary) => self.ended = Some(summary),
                Output::Tokens(_) => {}
            }
        }
        let sent: usize = self.frames.iter().map(Vec::len).sum();
        assert!(sent <= 1024 * 1024 && self.frames.len() <= TURNS_MAX as usize);
    }

    fn say(&mut self, message: &Message) {
        self.tell(Input::Received(&message.encode().unwrap()[LENGTH_BYTES..]));
    }

    /// The last that it said.
    fn heard(&self) -> Turn {
        let frame = self.frames.last().unwrap();
        Message::decode(&frame[LENGTH_BYTES..]).unwrap().turn().clone()
    }

    fn error(&self) -> &ExchangeError {
        match &self.ended {
            Some(Summary { end: End::Failed(error), .. }) => error,
            other => panic!("{other:?}"),
        }
    }
}

fn greeting() -> Greeting {
    Greeting { accepts: 1024 * 1024, tokens: Tokens::none() }
}

fn open(turn: Turn) -> Message {
    Message::Open { salt: SALT, greeting: greeting(), turn }
}

fn said(said: Said) -> Turn {
    Turn { ranges: vec![Range { upper: Bound::End, said }], ..Turn::default() }
}

fn relayed(n: u32) -> Relayed {
    Relayed::new(Duration::ZERO, record(n, CLOCK).bytes())
}

fn with_records(records: Vec<Relayed>) -> Turn {
    Turn { records, ..Turn::default() }
}

#[test]
fn bytes_that_are_no_message_end_it_and_blame_the_peer() {
    let mut victim = Victim::responder(10);
    victim.tell(Input::Received(b"\x07nonsense"));
    assert!(matches!(victim.error(), ExchangeError::Malformed(_)));
    assert_eq!(victim.error().code(), Code::Malformed);
    assert_eq!(victim.ended.unwrap().end.name(), "violation");
}

#[test]
fn every_message_has_its_turn() {
    let accept = Message::Accept { greeting: greeting(), turn: Turn::default() };
    for message in [accept.clone(), Message::Turn(Turn::default())] {
        let mut victim = Victim::responder(10);
        victim.say(&message);
        assert_eq!(victim.error(), &ExchangeError::OutOfTurn);
    }
    for message in [open(Turn::default()), Message::Turn(Turn::default())] {
        let mut victim = Victim::new(Role::Initiator { salt: SALT }, 10);
        victim.say(&message);
        assert_eq!(victim.error(), &ExchangeError::OutOfTurn);
    }
    for message in [accept, open(said(Said::Sum(1)))] {
        let mut victim = Victim::responder(10);
        victim.say(&open(said(Said::Sum(1))));
        victim.say(&message);
        assert_eq!(victim.error(), &ExchangeError::OutOfTurn);
    }
}

#[test]
fn a_record_before_anything_was_listed_is_not_taken() {
    let mut victim = Victim::responder(10);
    victim.say(&open(with_records(vec![relayed(50)])));
    assert_eq!((victim.error(), victim.learned), (&ExchangeError::Unasked, 0));
}

#[test]
fn a_record_in_a_range_that_was_only_summed_is_not_taken() {
    let mut victim = Victim::responder(1000);
    victim.say(&open(said(Said::Sum(1))));
    victim.say(&Message::Turn(with_records(vec![relayed(5000)])));
    assert_eq!((victim.error(), victim.learned), (&ExchangeError::Unasked, 0));
}

#[test]
fn bytes_that_cannot_be_a_record_are_not_taken() {
    let mut victim = Victim::responder(3);
    victim.say(&open(said(Said::Sum(1))));
    let bytes = Relayed::new(Duration::ZERO, &[7; 200]);
    victim.say(&Message::Turn(with_records(vec![relayed(50), bytes])));
    assert_eq!((victim.error(), victim.learned), (&ExchangeError::Unasked, 0));
}

#[test]
fn a_want_of_what_was_not_listed_is_not_answered() {
    let mut victim = Victim::responder(3);
    victim.say(&open(said(Said::Sum(1))));
    victim.say(&Message::Turn(Turn { wants: vec![0, 4], ..Turn::default() }));
    assert_eq!(victim.error(), &ExchangeError::UnknownWant { listed: 4, want: 4 });
}

#[test]
fn a_peer_that_sends_more_than_it_may_is_stopped() {
    let mut victim = Victim::responder(3);
    victim.say(&open(said(Said::Sum(1))));
    let mut came = 0;
    while victim.ended.is_none() {
        let records = vec![relayed(50); 280];
        let turn = Turn { rest: Rest::More, ..with_records(records) };
        victim.say(&Message::Turn(turn));
        came += 1;
        assert!(came < 30);
    }
    assert!(matches!(victim.error(), ExchangeError::OverBudget { max: 0x10_0000, .. }));
    assert_eq!(victim.error().code(), Code::Violation);
}

#[test]
fn a_peer_that_always_asks_is_stopped_at_its_last_turn() {
    let mut victim = Victim::responder(10);
    victim.say(&open(said(Said::Sum(1))));
    for _ in 2..TURNS_MAX {
        victim.say(&Message::Turn(said(Said::Sum(1))));
        assert_eq!(victim.ended, None);
    }
    victim.say(&Message::Turn(said(Said::Sum(1))));
    assert_eq!(victim.error(), &ExchangeError::AskedTooLate);
}

#[test]
fn whatever_a_peer_wants_again_and_again_is_sent_once() {
    let mut victim = Victim::responder(7);
    let turn = Turn { rest: Rest::More, ..said(Said::List(Vec::new())) };
    victim.say(&open(turn.clone()));
    assert_eq!(victim.heard().records.len(), 8);
    for number in 2..TURNS_MAX {
        victim.say(&Message::Turn(turn.clone()));
        assert!(victim.heard() == Turn::default(), "in message {number}");
    }
}

#[test]
fn a_peer_that_knows_nothing_gets_as_much_as_it_accepts_and_no_more() {
    let mut victim = Victim::responder(3000);
    let greeting = Greeting { accepts: ACCEPTS_MIN, tokens: Tokens::none() };
    victim.say(&Message::Open { salt: SALT, greeting, turn: said(Said::List(Vec::new())) });
    while victim.ended.is_none() {
        victim.say(&Message::Turn(Turn::default()));
    }
    let summary = victim.ended.unwrap();
    assert_eq!(summary.end, End::Cut);
    assert!((120_000..=ACCEPTS_MIN.into()).contains(&summary.sent.bytes), "{summary:?}");
}

/// Bounds that fall between the records of the victim, and on them.
fn bound() -> impl Strategy<Value = Bound> {
    let some = (any::<[u8; 2]>(), 1..=2_usize).prop_filter_map(
        "a bound above the first",
        |(bytes, len)| {
            let mut id = [0; 32];
            id[..len].copy_from_slice(&bytes[..len]);
            (id != [0; 32]).then_some(Bound::At(id))
        },
    );
    let own = (0..300_u32).prop_map(|n| Bound::At(*id(n).as_bytes()));
    prop_oneof![6 => some, 2 => own, 1 => Just(Bound::End)]
}

fn any_said() -> impl Strategy<Value = Said> {
    let listed = (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(hash, seq, departed)| {
        let version = Version { seq: Seq::new(seq), is_departure: departed };
        Listed { tag: Tag::from_hash(hash), version }
    });
    prop_oneof![
        1 => Just(Said::Skip),
        3 => any::<u64>().prop_map(Said::Sum),
        3 => vec(listed, 0..=LIST_MAX).prop_map(Said::List),
    ]
}

fn any_turn() -> impl Strategy<Value = Turn> {
    let ranges = vec((bound(), any_said()), 0..40).prop_map(|ranges| {
        let ranges: BTreeMap<Bound, Said> = ranges.into_iter().collect();
        ranges.into_iter().map(|(upper, said)| Range { upper, said }).collect()
    });
    let wants = prop_oneof![3 => Just(Vec::new()), 1 => vec(0..8_u16, 0..4)];
    let wants =
        wants.prop_map(|wants| wants.into_iter().collect::<BTreeSet<u16>>().into_iter().collect());
    let records =
        prop_oneof![3 => Just(Vec::new()), 1 => vec((0..400_u32).prop_map(relayed), 0..20)];
    let rest = prop_oneof![2 => Just(Rest::Nothing), 3 => Just(Rest::More), 1 => Just(Rest::Cut)];
    (ranges, wants, records, rest).prop_map(|(ranges, wants, records, rest)| Turn {
        ranges,
        wants,
        records,
        rest,
        ..Turn::default()
    })
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: ProptestConfig::default().cases / 4,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// `Victim::tell` checks the bounds after each message.
    #[test]
    fn whatever_well_formed_messages_come_no_bound_is_passed_and_it_ends(
        begins in any::<bool>(),
        turns in vec(any_turn(), TURNS_MAX as usize),
    ) {
        let role = if begins { Role::Initiator { salt: SALT } } else { Role::Responder };
        let mut victim = Victim::new(role, 300);
        for (number, turn) in turns.into_iter().enumerate() {
            let message = match (number, begins) {
                (0, false) => open(turn),
                (0, true) => Message::Accept { greeting: greeting(), turn },
                _ => Message::Turn(turn),
            };
            victim.say(&message);
            if victim.ended.is_some() {
                break;
            }
        }
        prop_assert!(victim.ended.is_some());
        prop_assert!(victim.machine.is_over());
    }

    #[test]
    fn no_bytes_in_any_turn_make_it_panic(messages in vec(vec(0..6_u8, 0..40), 1..6)) {
        let mut victim = Victim::responder(20);
        victim.say(&open(said(Said::Sum(1))));
        for bytes in &messages {
            victim.tell(Input::Received(&[&[2], &bytes[..]].concat()));
        }
    }
}
