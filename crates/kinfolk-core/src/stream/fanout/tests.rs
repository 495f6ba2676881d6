//! The log against a list of all items ever sent.

use proptest::prelude::*;

use super::*;

fn limits(bytes: u64, items: u64) -> FanoutLimits {
    FanoutLimits { bytes, items, item_max: 1024, keys: 4, ..FanoutLimits::default() }
}

fn fanout(when_full: WhenFull, limits: FanoutLimits) -> Fanout {
    Fanout::new(Channel::Reliable, when_full, false, limits).unwrap()
}

/// An item that says its number, in so many bytes.
fn item(number: u64, length: usize) -> Vec<u8> {
    let mut entry = vec![0; HEAD_BYTES];
    entry.extend((0..length).map(|at| u8::try_from((number + at as u64) % 251).unwrap()));
    entry
}

fn send(fanout: &mut Fanout, length: usize) -> Result<Appended, AppendError> {
    let number = fanout.end();
    fanout.append(&mut item(number, length), None)
}

/// What a subscriber knows of the items so far.
#[derive(Debug)]
struct Reader {
    id: SubscriberId,
    next: u64,
    received: Vec<u64>,
    missed: u64,
    superseded: u64,
}

impl Reader {
    fn new(fanout: &mut Fanout, id: u64, resume: Option<u64>, replay: Replay) -> Self {
        let id = SubscriberId::new(id);
        let next = fanout.subscribe(id, resume, replay);
        Self { id, next, received: Vec::new(), missed: 0, superseded: 0 }
    }

    fn live(fanout: &mut Fanout, id: u64) -> Self {
        Self::new(fanout, id, None, Replay::Nothing)
    }

    /// Takes what there is, and checks that each item is the one of its number.
    fn take(&mut self, fanout: &mut Fanout, budget: usize) -> Take {
        let mut pieces = Vec::new();
        let taken = fanout.take(self.id, budget, &mut pieces);
        for piece in pieces {
            match piece {
                Piece::Missed(missed) => {
                    self.missed += missed;
                    self.next += missed;
                }
                Piece::Superseded(superseded) => {
                    self.superseded += superseded;
                    self.next += superseded;
                }
                Piece::Items { count, bytes } => self.read(count, &bytes),
            }
        }
        taken
    }

    fn read(&mut self, count: u64, mut bytes: &[u8]) {
        let mut read = 0;
        while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() {
            let Head::Item(length) = Head::from_bytes(*head) else { panic!("an item") };
            let (body, rest) = rest.split_at(length);
            assert_eq!(body, &item(self.next, length)[HEAD_BYTES..], "item {}", self.next);
            self.received.push(self.next);
            self.next += 1;
            read += 1;
            bytes = rest;
        }
        assert_eq!(read, count, "as many items as the piece says");
    }

    fn take_all(&mut self, fanout: &mut Fanout) {
        while self.take(fanout, 4096) == Take::Pieces {}
    }
}

#[test]
fn a_subscriber_gets_every_item_once_and_in_order_whatever_its_length() {
    let mut fanout = fanout(WhenFull::Wait, FanoutLimits::default());
    let mut reader = Reader::live(&mut fanout, 1);
    for length in [0, 1, 64, 8 * 1024, 100_000, 3, 200_000, 0] {
        send(&mut fanout, length).unwrap();
        send(&mut fanout, length).unwrap();
        reader.take(&mut fanout, 1);
    }
    reader.take_all(&mut fanout);
    assert_eq!(reader.received, (0..16).collect::<Vec<_>>());
    assert_eq!((reader.missed, reader.superseded), (0, 0));
}

#[test]
fn whoever_has_all_is_told_of_the_next_item_and_nobody_else_costs_a_wake_up() {
    let mut fanout = fanout(WhenFull::Wait, FanoutLimits::default());
    let mut reader = Reader::live(&mut fanout, 1);
    assert!(!send(&mut fanout, 1).unwrap().is_awaited);
    assert_eq!(reader.take(&mut fanout, 100), Take::Pieces);
    assert_eq!(reader.take(&mut fanout, 100), Take::Wait);
    assert!(send(&mut fanout, 1).unwrap().is_awaited);
    assert!(!send(&mut fanout, 1).unwrap().is_awaited);
}

#[test]
fn one_copy_of_an_item_serves_all() {
    let mut fanout = fanout(WhenFull::Wait, FanoutLimits::default());
    for id in 0..2 {
        fanout.subscribe(SubscriberId::new(id), None, Replay::Nothing);
    }
    send(&mut fanout, 100).unwrap();
    let mut pieces = Vec::new();
    for id in 0..2 {
        fanout.take(SubscriberId::new(id), 1, &mut pieces);
    }
    let [Piece::Items { bytes: a, .. }, Piece::Items { bytes: b, .. }] = &pieces[..] else {
        panic!("{pieces:?}")
    };
    assert_eq!(a.as_ptr(), b.as_ptr());
}

#[test]
fn a_full_log_takes_nothing_until_the_slowest_has_caught_up() {
    let mut fanout = fanout(WhenFull::Wait, limits(1 << 20, 3));
    let (mut slow, mut fast) = (Reader::live(&mut fanout, 1), Reader::live(&mut fanout, 2));
    for _ in 0..3 {
        send(&mut fanout, 10).unwrap();
    }
    assert_eq!(send(&mut fanout, 10), Err(AppendError::Full));
    fast.take_all(&mut fanout);
    assert_eq!(send(&mut fanout, 10), Err(AppendError::Full));
    let entry = [0; HEAD_BYTES + 10];
    assert_eq!(fanout.holding_up(&entry).collect::<Vec<_>>(), [(slow.id, 3)]);
    slow.take_all(&mut fanout);
    assert_eq!(fanout.holding_up(&entry).count(), 0);
    send(&mut fanout, 10).unwrap();
    // One that is given up holds up nobody.
    for _ in 0..2 {
        send(&mut fanout, 10).unwrap();
        fast.take_all(&mut fanout);
    }
    assert_eq!(send(&mut fanout, 10), Err(AppendError::Full));
    fanout.give_up(slow.id);
    assert_eq!(slow.take(&mut fanout, 100), Take::Over);
    send(&mut fanout, 10).unwrap();
}

#[test]
fn without_subscribers_a_log_is_never_full() {
    let mut fanout = fanout(WhenFull::Wait, limits(2048, 3));
    for _ in 0..100 {
        send(&mut fanout, 500).unwrap();
    }
    assert!(fanout.first() > 90);
}

#[test]
fn the_oldest_are_dropped_for_the_slow_one_alone_and_counted() {
    let mut fanout = fanout(WhenFull::DropOldest, limits(1 << 20, 5));
    let (mut slow, mut fast) = (Reader::live(&mut fanout, 1), Reader::live(&mut fanout, 2));
    for _ in 0..20 {
        send(&mut fanout, 10).unwrap();
        fast.take_all(&mut fanout);
    }
    slow.take_all(&mut fanout);
    assert_eq!((slow.missed, &slow.received[..]), (15, &[15, 16, 17, 18, 19][..]));
    assert_eq!((fast.missed, fast.received.len()), (0, 20));
    assert_eq!(fanout.progress(slow.id).unwrap().missed, 15);
}

#[test]
fn one_that_is_too_slow_is_said_to_be_once_and_gets_no_more() {
    let mut fanout = fanout(WhenFull::Disconnect, limits(1 << 20, 2));
    let (mut slow, mut fast) = (Reader::live(&mut fanout, 1), Reader::live(&mut fanout, 2));
    let mut overrun = Vec::new();
    for _ in 0..5 {
        if send(&mut fanout, 10).unwrap().has_overrun {
            overrun.extend(fanout.overrun());
        }
        fast.take_all(&mut fanout);
    }
    assert_eq!(overrun, [slow.id]);
    assert_eq!(slow.take(&mut fanout, 100), Take::Over);
    assert_eq!(fast.received.len(), 5);
}

#[test]
fn a_subscriber_that_comes_back_goes_on_where_it_was_as_far_as_the_log_reaches() {
    let mut fanout = fanout(WhenFull::DropOldest, limits(1 << 20, 10));
    for _ in 0..20 {
        send(&mut fanout, 10).unwrap();
    }
    let begin = |fanout: &mut Fanout, id, next| {
        let mut reader = Reader::new(fanout, id, Some(next), Replay::Last(3));
        let told = reader.next;
        reader.take_all(fanout);
        (told, reader.received.len())
    };
    assert_eq!(begin(&mut fanout, 1, 15), (15, 5));
    assert_eq!(begin(&mut fanout, 2, 20), (20, 0));
    assert_eq!(begin(&mut fanout, 3, 2), (10, 10), "what is gone is gone");
    assert_eq!(begin(&mut fanout, 4, 99), (20, 0), "nobody has received what was not sent");
}

#[test]
fn a_new_subscriber_gets_what_the_producer_replays() {
    let mut fanout = fanout(WhenFull::Wait, limits(1 << 20, 10));
    for _ in 0..20 {
        send(&mut fanout, 10).unwrap();
    }
    let mut last = Reader::new(&mut fanout, 1, None, Replay::Last(3));
    last.take_all(&mut fanout);
    assert_eq!(last.received, [17, 18, 19]);
    let mut more = Reader::new(&mut fanout, 2, None, Replay::Last(1000));
    more.take_all(&mut fanout);
    assert_eq!(more.received, (10..20).collect::<Vec<_>>());
    let mut none = Reader::live(&mut fanout, 3);
    none.take_all(&mut fanout);
    assert!(none.received.is_empty());
}

fn keyed(fanout: &mut Fanout, key: &[u8]) -> Result<Appended, AppendError> {
    let number = fanout.end();
    fanout.append(&mut item(number, 20), Some(key))
}

#[test]
fn a_replay_by_key_is_the_latest_of_each_and_then_all() {
    let mut fanout =
        Fanout::new(Channel::Reliable, WhenFull::Wait, true, limits(1 << 20, 100)).unwrap();
    for key in [b"a", b"b", b"a", b"c", b"b", b"a"] {
        keyed(&mut fanout, key).unwrap();
    }
    let mut reader = Reader::new(&mut fanout, 1, None, Replay::Keyed);
    keyed(&mut fanout, b"a").unwrap();
    keyed(&mut fanout, b"a").unwrap();
    reader.take_all(&mut fanout);
    assert_eq!(reader.received, [3, 4, 6, 7], "the third a was superseded while it was on its way");
    assert_eq!((reader.missed, reader.next), (0, 8));
}

/// A log of at most so many items beside the latest ones of its keys, which are of the app's: the items of a table with a line for each key.
fn keyed_fanout(when_full: WhenFull, items: u64) -> Fanout {
    let limits = FanoutLimits { keys: 100, ..limits(1 << 20, items) };
    Fanout::new(Channel::Reliable, when_full, true, limits).unwrap()
}

#[test]
fn a_replay_by_key_that_was_interrupted_goes_on_although_the_log_begins_later() {
    for when_full in [WhenFull::Wait, WhenFull::DropOldest, WhenFull::Disconnect] {
        let mut fanout = keyed_fanout(when_full, 3);
        for key in 0..10 {
            keyed(&mut fanout, &[key]).unwrap();
        }
        let mut reader = Reader::new(&mut fanout, 1, None, Replay::Keyed);
        reader.take(&mut fanout, 4 * 24);
        assert_eq!(reader.received, [0, 1, 2, 3]);
        fanout.unsubscribe(reader.id);
        // Of those that are to come, 5 and 6 are superseded, the second of them twice.
        for key in [5, 6, 6, 4, 20, 21] {
            keyed(&mut fanout, &[key]).unwrap();
        }
        let mut again = Reader::new(&mut fanout, 2, Some(reader.next), Replay::Keyed);
        assert_eq!(again.next, 4, "it is told nothing of a gap");
        again.take_all(&mut fanout);
        assert_eq!(again.received, [7, 8, 9, 10, 12, 13, 14, 15], "{when_full:?}");
        assert_eq!((again.missed, again.superseded, again.next), (0, 4, 16), "{when_full:?}");
    }
}

#[test]
fn whoever_comes_back_too_late_for_the_log_gets_the_latest_of_each_key_that_it_has_not() {
    let mut fanout = keyed_fanout(WhenFull::DropOldest, 3);
    for key in [0, 1, 2, 3, 1, 1, 1, 1] {
        keyed(&mut fanout, &[key]).unwrap();
    }
    let mut reader = Reader::new(&mut fanout, 1, Some(2), Replay::Last(0));
    // One more leaves the log while it is on its way; it is superseded.
    keyed(&mut fanout, &[1]).unwrap();
    reader.take_all(&mut fanout);
    assert_eq!(reader.received, [2, 3, 6, 7, 8], "what the log holds comes whole");
    assert_eq!((reader.missed, reader.superseded), (0, 2));
    let mut reader = Reader::new(&mut fanout, 2, Some(7), Replay::Last(0));
    reader.take_all(&mut fanout);
    assert_eq!((reader.received, reader.superseded), (vec![7, 8], 0), "the log reaches");
}

#[test]
fn a_replay_holds_up_the_sender_by_no_more_than_the_log_and_goes_on_with_what_the_log_holds() {
    let mut fanout = keyed_fanout(WhenFull::Wait, 3);
    for key in 0..10 {
        keyed(&mut fanout, &[key]).unwrap();
    }
    let mut reader = Reader::new(&mut fanout, 1, Some(2), Replay::Keyed);
    for key in 10..13 {
        keyed(&mut fanout, &[key]).unwrap();
    }
    assert_eq!(keyed(&mut fanout, &[13]), Err(AppendError::Full));
    // Eight of keys, and the log still holds three of which it got none.
    reader.take(&mut fanout, 8 * 24);
    assert_eq!(reader.take(&mut fanout, 1), Take::Pieces);
    reader.take_all(&mut fanout);
    assert_eq!((reader.received, reader.missed), ((2..13).collect(), 0));
    keyed(&mut fanout, &[13]).unwrap();
}

#[test]
fn the_latest_items_of_keys_and_what_they_cost_are_bounded_in_bytes() {
    for channel in [Channel::Latest, Channel::Reliable] {
        let limits =
            FanoutLimits { key_bytes: 3000, item_max: 1500, keys: 100, ..limits(1 << 20, 100) };
        let mut fanout = Fanout::new(channel, WhenFull::Wait, true, limits).unwrap();
        let put = |fanout: &mut Fanout, key: &[u8], length| {
            let number = fanout.end();
            fanout.append(&mut item(number, length), Some(key)).map(|appended| appended.number)
        };
        let full = Err(AppendError::Key(KeyError::NoRoom(3000)));
        assert_eq!(put(&mut fanout, b"a", 1000), Ok(0));
        assert_eq!(put(&mut fanout, b"b", 1000), Ok(1));
        assert_eq!(put(&mut fanout, b"c", 1000), full, "one more is too much");
        assert_eq!(
            put(&mut fanout, b"a", 1500),
            Ok(2),
            "what it takes the place of counts no more"
        );
        assert_eq!(put(&mut fanout, b"b", 1500), full, "so is one that grows");
        assert_eq!(put(&mut fanout, b"a", 100), Ok(3));
        assert_eq!(put(&mut fanout, b"c", 1000), Ok(4), "room was given back");
        let mut reader = Reader::new(&mut fanout, 1, None, Replay::Keyed);
        reader.take_all(&mut fanout);
        assert_eq!(reader.received, [1, 3, 4], "what was refused has changed nothing");
        // Keys without items cost something too.
        let many = (0..100).take_while(|n| put(&mut fanout, &[1, *n], 0).is_ok()).count();
        assert!(many < 5, "{many} keys");
    }
}

#[test]
fn a_consumer_that_lies_about_what_it_has_taken_gets_no_item_twice_and_none_of_anybody_else() {
    let limits = FanoutLimits { item_max: 40_000, keys: 100, ..limits(1 << 20, 100) };
    let mut fanout = Fanout::new(Channel::Latest, WhenFull::Wait, false, limits).unwrap();
    let mut liar = Reader::live(&mut fanout, 1);
    let mut honest = Reader::live(&mut fanout, 2);
    let state = |fanout: &mut Fanout| {
        let number = fanout.end();
        let key = [u8::try_from(number).unwrap()];
        fanout.append(&mut item(number, 40_000), Some(&key)).unwrap();
    };
    for round in 0..5 {
        for _ in 0..4 {
            state(&mut fanout);
        }
        for through in [u64::MAX, 0, round, u64::MAX - 1, 3] {
            fanout.taken(liar.id, through);
            liar.take_all(&mut fanout);
        }
        assert_eq!(liar.received, (0..4 * (round + 1)).collect::<Vec<_>>());
        let kept = fanout.subscribers[&liar.id].under_way.len();
        assert!(kept <= 2, "{kept} are remembered");
    }
    honest.take_all(&mut fanout);
    assert_eq!(honest.received, [0, 1], "nobody has taken anything for it");
    assert!(!fanout.taken(honest.id, 0));
    assert!(fanout.taken(honest.id, 2));
}

#[test]
fn newer_state_takes_the_place_of_what_a_subscriber_has_not_got() {
    let mut fanout =
        Fanout::new(Channel::Latest, WhenFull::Wait, false, limits(1 << 20, 100)).unwrap();
    let mut reader = Reader::live(&mut fanout, 1);
    for key in [b"a", b"b", b"a", b"a"] {
        keyed(&mut fanout, key).unwrap();
    }
    reader.take_all(&mut fanout);
    assert_eq!((&reader.received[..], reader.superseded), (&[1, 3][..], 2));
    keyed(&mut fanout, b"c").unwrap();
    keyed(&mut fanout, b"d").unwrap();
    let key = AppendError::Key(KeyError::TooMany(4));
    assert_eq!(keyed(&mut fanout, b"e"), Err(key));
    assert!(matches!(keyed(&mut fanout, &[7; 257]), Err(AppendError::Key(KeyError::TooLong(257)))));
    assert_eq!(fanout.end(), 6, "what was refused has no number");
}

#[test]
fn state_that_is_on_its_way_is_bounded_until_it_was_taken() {
    let limits = FanoutLimits { item_max: 40_000, ..limits(1 << 20, 100) };
    let mut fanout = Fanout::new(Channel::Latest, WhenFull::Wait, false, limits).unwrap();
    let mut reader = Reader::live(&mut fanout, 1);
    for _ in 0..3 {
        let number = fanout.end();
        fanout.append(&mut item(number, 40_000), Some(&[u8::try_from(number).unwrap()])).unwrap();
    }
    reader.take_all(&mut fanout);
    assert_eq!(reader.received, [0, 1]);
    assert!(fanout.taken(reader.id, 2));
    reader.take_all(&mut fanout);
    assert_eq!(reader.received, [0, 1, 2]);
    let number = fanout.end();
    fanout.append(&mut item(number, 40_000), Some(&[9])).unwrap();
    fanout.append(&mut item(number + 1, 40_000), Some(&[8])).unwrap_err();
    reader.take_all(&mut fanout);
    assert_eq!(reader.received.len(), 4);
    fanout.hurry(reader.id);
    assert_eq!(reader.take(&mut fanout, 1), Take::Wait);
}

#[test]
fn an_item_that_is_too_long_is_refused_and_nothing_else_changes() {
    let mut fanout = fanout(WhenFull::Wait, limits(1 << 20, 10));
    let refused = AppendError::TooLarge { length: 1025, max: 1024 };
    assert_eq!(send(&mut fanout, 1025), Err(refused));
    assert_eq!(send(&mut fanout, 1024).unwrap().number, 0);
}

#[test]
fn bounds_without_room_for_an_item_are_refused() {
    let bad = |limits: FanoutLimits, channel| limits.validate(channel, true).unwrap_err();
    use FanoutLimitError::*;
    assert!(matches!(bad(limits(100, 1), Channel::Reliable), TooSmall { .. }));
    assert!(matches!(bad(limits(1 << 20, 0), Channel::Reliable), Empty { .. }));
    assert!(matches!(bad(limits(1 << 20, 1), Channel::Datagram), Datagram { .. }));
    let none = FanoutLimits { item_max: 0, ..FanoutLimits::default() };
    assert!(matches!(bad(none, Channel::Latest), ItemMax { .. }));
    let few = FanoutLimits { key_bytes: 1024, ..limits(1 << 20, 1) };
    assert!(matches!(bad(few, Channel::Reliable), KeysTooSmall { .. }));
    assert_eq!(few.validate(Channel::Reliable, false), Ok(()), "nothing is kept by key");
}

#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    Take(usize, usize),
    Join(usize, Option<u64>, u64),
    Leave(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![0..100_usize, 900..1024_usize];
    let step = prop_oneof![
        6 => length.prop_map(Step::Send),
        3 => (0..4_usize, 1..8192_usize).prop_map(|(who, budget)| Step::Take(who, budget)),
        1 => (0..4_usize, proptest::option::of(0..300_u64), 0..50_u64)
            .prop_map(|(who, resume, last)| Step::Join(who, resume, last)),
        1 => (0..4_usize).prop_map(Step::Leave),
    ];
    proptest::collection::vec(step, 1..300)
}

fn when_full() -> impl Strategy<Value = WhenFull> {
    prop_oneof![Just(WhenFull::Wait), Just(WhenFull::DropOldest), Just(WhenFull::Disconnect)]
}

proptest! {
    /// Whatever happens, what a subscriber gets is what was sent, in its order, without a hole that it is not told of; and the log keeps its bounds.
    #[test]
    fn nothing_is_lost_doubled_or_moved_in_silence(
        steps in steps(),
        when_full in when_full(),
        bytes in 1200..20_000_u64,
        items in 1..60_u64,
    ) {
        let mut log = fanout(when_full, limits(bytes, items));
        let mut readers: [Option<Reader>; 4] = [const { None }; 4];
        let mut over = [false; 4];
        let mut ids = 0;
        for step in steps {
            match step {
                Step::Send(length) => match send(&mut log, length) {
                    Ok(appended) => {
                        if appended.has_overrun {
                            for id in log.overrun() {
                                let of = |r: &Option<Reader>| r.as_ref().is_some_and(|r| r.id == id);
                                over[readers.iter().position(of).unwrap()] = true;
                            }
                        }
                    }
                    Err(AppendError::Full) => prop_assert_eq!(when_full, WhenFull::Wait),
                    Err(error) => prop_assert!(false, "{error}"),
                },
                Step::Take(who, budget) => if let Some(reader) = &mut readers[who] {
                    let taken = reader.take(&mut log, budget);
                    prop_assert_eq!(taken == Take::Over, over[who]);
                    prop_assert!(taken != Take::Wait || reader.next == log.end());
                },
                Step::Join(who, resume, last) => if readers[who].is_none() {
                    ids += 1;
                    readers[who] = Some(Reader::new(&mut log, ids, resume, Replay::Last(last)));
                    over[who] = false;
                },
                Step::Leave(who) => if let Some(reader) = readers[who].take() {
                    log.unsubscribe(reader.id);
                },
            }
            let kept: u64 = log.blocks.iter().map(|block| to_u64(block.bytes.len()) + BLOCK_COST).sum();
            let most = bytes + to_u64(BLOCK_BYTES) + BLOCK_COST;
            prop_assert!(kept <= most, "{} of {}", kept, most);
            for (reader, over) in readers.iter().zip(over) {
                let Some(reader) = reader else { continue };
                if when_full == WhenFull::Wait {
                    prop_assert_eq!(reader.missed, 0);
                    prop_assert!(log.end() - reader.next <= items);
                }
                if when_full == WhenFull::Disconnect && !over {
                    prop_assert!(reader.next >= log.first());
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum KeyedStep {
    Send(u8),
    /// Whoever has left comes back by it, to take something the next time.
    Take(usize, usize),
    Leave(usize),
}

fn keyed_steps() -> impl Strategy<Value = Vec<KeyedStep>> {
    let step = prop_oneof![
        6 => (0..12_u8).prop_map(KeyedStep::Send),
        3 => (0..2_usize, 1..300_usize).prop_map(|(who, budget)| KeyedStep::Take(who, budget)),
        1 => (0..2_usize).prop_map(KeyedStep::Leave),
    ];
    proptest::collection::vec(step, 1..300)
}

proptest! {
    /// However often and however long it is away, and whatever leaves the log meanwhile: a subscriber that comes back has the newest item of each key in the end,
    /// has missed nothing, and got nothing twice.
    #[test]
    fn whoever_comes_back_always_has_the_newest_of_each_key_in_the_end(
        steps in keyed_steps(),
        waits in any::<bool>(),
        items in 1..20_u64,
    ) {
        let when_full = if waits { WhenFull::Wait } else { WhenFull::Disconnect };
        let mut log = keyed_fanout(when_full, items);
        let mut newest = BTreeMap::new();
        let mut ids = 2;
        let mut readers = [1, 2].map(|id| Reader::new(&mut log, id, None, Replay::Keyed));
        let mut come_back = |log: &mut Fanout, reader: &mut Reader| {
            log.unsubscribe(reader.id);
            ids += 1;
            let again = Reader::new(log, ids, Some(reader.next), Replay::Keyed);
            assert_eq!(again.next, reader.next, "nothing is missed");
            reader.id = again.id;
        };
        for step in steps {
            match step {
                KeyedStep::Send(key) => match keyed(&mut log, &[key]) {
                    Ok(appended) => drop(newest.insert(key, appended.number)),
                    Err(error) => prop_assert_eq!((error, waits), (AppendError::Full, true)),
                },
                KeyedStep::Take(who, budget) => if readers[who].take(&mut log, budget) == Take::Over {
                    come_back(&mut log, &mut readers[who]);
                },
                KeyedStep::Leave(who) => drop(log.unsubscribe(readers[who].id)),
            }
            if !waits {
                log.overrun();
                continue;
            }
            for subscriber in log.subscribers.values() {
                prop_assert!(subscriber.next.number >= log.first(), "nobody is left behind");
                prop_assert!(subscriber.next.number >= log.slowest.number);
            }
        }
        for reader in &mut readers {
            come_back(&mut log, reader);
            reader.take_all(&mut log);
            prop_assert_eq!((reader.missed, reader.next), (0, log.end()));
            prop_assert!(reader.received.is_sorted_by(|a, b| a < b));
            prop_assert!(newest.values().all(|number| reader.received.contains(number)));
        }
    }
}
