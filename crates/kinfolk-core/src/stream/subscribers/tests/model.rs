//! Random and exhaustive lives of small tables beside a model that a reader can check by eye: one list, searched from end to end.

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::*;

/// Who asked, by id and peer, and has heard no refusal and no end.
#[derive(Debug, Clone)]
struct Place {
    id: u64,
    peer: u8,
    is_accepted: bool,
    check: Option<(Generation, Instant)>,
    expires: Option<Instant>,
    /// When each renewal that still counts stops to count.
    renewals_full_at: Instant,
}

#[derive(Debug, Clone)]
struct Model {
    limits: SubscriberLimits,
    requires_ticket: bool,
    /// In the order of ids.
    places: Vec<Place>,
    is_ended: bool,
}

impl Model {
    /// Removes the places that `fate` names an outcome for, and says the outcomes.
    fn decide(&mut self, mut fate: impl FnMut(&mut Place) -> Option<Output>) -> Vec<Output> {
        let mut out = Vec::new();
        self.places.retain_mut(|place| match fate(place) {
            None => true,
            Some(output) => {
                out.push(output);
                false
            }
        });
        out
    }

    fn expire(&mut self, now: Instant) -> Vec<Output> {
        self.decide(|place| {
            let is_late = place.check.is_some_and(|(_, late)| late <= now);
            if is_late && !place.is_accepted {
                return Some(refuse(place.id, Refusal::Unchecked));
            }
            if is_late {
                place.check = None;
            }
            let is_over = place.expires.is_some_and(|expires| expires <= now);
            is_over.then(|| ended(place.id, StreamEnd::TicketExpired))
        })
    }

    fn refusal(&self, from: u8, eligible: Eligible, has_ticket: bool) -> Option<Refusal> {
        let of_peer = self.places.iter().filter(|place| place.peer == from).count();
        let is_full = self.places.len() == self.limits.total || of_peer == self.limits.per_peer;
        match eligible {
            _ if self.is_ended => Some(Refusal::Ended),
            Eligible::No => Some(Refusal::NotAllowed),
            _ if self.requires_ticket && !has_ticket => Some(Refusal::BadTicket),
            _ if is_full => Some(Refusal::NoCapacity),
            Eligible::Unknown => Some(Refusal::UnknownPeer),
            Eligible::Yes => None,
        }
    }

    fn judge(&mut self, from: u8, eligible: Eligible) -> Vec<Output> {
        self.decide(|place| match (eligible, place.is_accepted) {
            _ if place.peer != from => None,
            (Eligible::No, true) => Some(ended(place.id, StreamEnd::NotAllowed)),
            (Eligible::No, false) => Some(refuse(place.id, Refusal::NotAllowed)),
            (Eligible::Unknown, false) => Some(refuse(place.id, Refusal::UnknownPeer)),
            (Eligible::Unknown, true) | (Eligible::Yes, _) => None,
        })
    }
}

#[derive(Debug, Clone)]
enum Event {
    Ask(u8, Eligible, bool),
    /// The answer to the check that was asked for so many checks ago.
    Check(usize, Result<Option<u64>, ()>),
    Renew(u64),
    Judge(u8, Eligible),
    Leave(u64),
    Pass(u64),
    End(StreamEnd),
}

/// What became of an id.
#[derive(Debug, Default)]
struct Fate {
    accepted: u32,
    refused: u32,
    ended: u32,
    left: bool,
}

#[derive(Debug)]
struct Pair {
    machine: Subscribers,
    model: Model,
    now: Instant,
    asked: u64,
    checks: Vec<(u64, Generation)>,
    fates: BTreeMap<u64, Fate>,
}

impl Pair {
    fn new(requires_ticket: bool) -> Self {
        let limits = SubscriberLimits {
            total: 4,
            per_peer: 2,
            ticket_check: 10 * SECOND,
            renewals: Rate::new(2, 5 * SECOND),
            ..SubscriberLimits::default()
        };
        let machine = Subscribers::new(limits.clone(), SCHEMA, requires_ticket);
        let model = Model { limits, requires_ticket, places: Vec::new(), is_ended: false };
        let (checks, fates) = (Vec::new(), BTreeMap::new());
        Self { machine, model, now: Instant::now(), asked: 0, checks, fates }
    }

    fn take(&mut self, event: &Event) {
        let now = self.now;
        let mut want = Vec::new();
        let mut input = Input::Timeout;
        if let Event::Leave(number) = event {
            self.model.places.retain(|place| place.id != *number);
            input = Input::Left { id: id(*number) };
            self.fates.entry(*number).or_default().left = true;
        }
        if let Event::Pass(seconds) = event {
            self.now += Duration::from_secs(*seconds);
        }
        want.extend(self.model.expire(self.now));
        let mut new_check = None;
        match event {
            Event::Ask(from, eligible, has_ticket) => {
                self.asked += 1;
                let number = self.asked;
                let (peer, eligible, has_ticket) = (peer(*from), *eligible, *has_ticket);
                let ask = Ask { peer, schema: SCHEMA, eligible, has_ticket };
                input = Input::Asked { id: id(number), ask };
                self.fates.insert(number, Fate::default());
                if let Some(refusal) = self.model.refusal(*from, eligible, has_ticket) {
                    want.push(refuse(number, refusal));
                } else {
                    let is_accepted = !self.model.requires_ticket;
                    if is_accepted {
                        want.push(accept(number));
                    } else {
                        new_check = Some(number);
                    }
                    self.model.places.push(Place {
                        id: number,
                        peer: *from,
                        is_accepted,
                        check: None,
                        expires: None,
                        renewals_full_at: now,
                    });
                }
            }
            Event::Check(ago, verdict) => {
                let Some(index) = self.checks.len().checked_sub(ago + 1) else { return };
                let (number, generation) = self.checks[index];
                let verdict = verdict.map(|valid| valid.map(Duration::from_secs));
                input = Input::TicketChecked { id: id(number), generation, verdict };
                let outcome = self.model.decide(|place| {
                    let is_current = place.check.is_some_and(|(current, _)| current == generation);
                    if place.id != number || !is_current {
                        return None;
                    }
                    place.check = None;
                    match verdict {
                        Ok(valid) if valid != Some(Duration::ZERO) => {
                            place.expires = valid.map(|valid| now + valid);
                            if !std::mem::replace(&mut place.is_accepted, true) {
                                want.push(accept(number));
                            }
                            None
                        }
                        _ if place.is_accepted => None,
                        _ => Some(refuse(number, Refusal::BadTicket)),
                    }
                });
                want.extend(outcome);
            }
            Event::Renew(number) => {
                input = Input::Renewed { id: id(*number) };
                let (rate, requires_ticket) =
                    (self.model.limits.renewals, self.model.requires_ticket);
                want.extend(self.model.decide(|place| {
                    if place.id != *number || !requires_ticket {
                        return None;
                    }
                    let full_at = place.renewals_full_at.max(now) + rate.every;
                    if full_at > now + rate.every * rate.burst {
                        return Some(if place.is_accepted {
                            ended(*number, StreamEnd::Misbehaved)
                        } else {
                            refuse(*number, Refusal::BadTicket)
                        });
                    }
                    place.renewals_full_at = full_at;
                    new_check = Some(*number);
                    None
                }));
            }
            Event::Judge(from, eligible) => {
                input = Input::Judged { peer: peer(*from), eligible: *eligible };
                want.extend(self.model.judge(*from, *eligible));
            }
            Event::End(end) => {
                input = Input::End(*end);
                self.model.is_ended = true;
                want.extend(self.model.decide(|place| {
                    Some(if place.is_accepted {
                        ended(place.id, *end)
                    } else {
                        refuse(place.id, Refusal::Ended)
                    })
                }));
            }
            Event::Leave(_) | Event::Pass(_) => {}
        }
        let mut said = Vec::new();
        self.machine.handle(self.now, input, &mut said);
        if let Some(number) = new_check {
            let Some(Output::Check { id, generation }) = said.pop() else { panic!("no check") };
            assert_eq!(id.get(), number);
            self.checks.push((number, generation));
            let asks_now = now + self.model.limits.ticket_check;
            let place = self.model.places.iter_mut().find(|place| place.id == number).unwrap();
            let late = place.check.filter(|_| !place.is_accepted).map_or(asks_now, |(_, at)| at);
            place.check = Some((generation, late));
        }
        // What is due together is said in the order in which it was due, which is nobody's business.
        let sorted = |mut outputs: Vec<Output>| {
            outputs.sort_by_key(|output| format!("{output:?}"));
            outputs
        };
        assert_eq!(sorted(said.clone()), sorted(want), "at {event:?}");
        self.look(&said);
    }

    /// What holds whatever the model says.
    fn look(&mut self, said: &[Output]) {
        for output in said {
            match output {
                Output::Check { .. } => {}
                Output::Accept { id } => self.fates.get_mut(&id.get()).unwrap().accepted += 1,
                Output::Refuse { id, .. } => self.fates.get_mut(&id.get()).unwrap().refused += 1,
                Output::End { id, .. } => self.fates.get_mut(&id.get()).unwrap().ended += 1,
            }
        }
        let mut held = 0;
        for (number, fate) in (1..=self.asked).map(|number| (number, &self.fates[&number])) {
            let Fate { accepted, refused, ended, left } = fate;
            assert!(accepted + refused <= 1, "{number}: {fate:?}");
            assert!(ended <= accepted, "{number}: {fate:?}");
            held += usize::from(!left && refused + ended == 0);
        }
        let machine = &self.machine;
        let accepted = self.model.places.iter().filter(|place| place.is_accepted).count();
        assert_eq!((machine.held(), machine.accepted()), (held, accepted));
        assert!(held <= 4);
        assert_eq!(machine.by_peer.len(), held);
        for from in 0..3 {
            let places = self.model.places.iter().filter(|place| place.peer == from);
            assert_eq!(machine.held_by(peer(from)), places.count());
        }
        let times = self.model.places.iter().flat_map(|place| {
            [place.check.map(|(_, late)| late), place.expires].into_iter().flatten()
        });
        assert_eq!(machine.next_timeout(), times.min());
        let is_asking_without_end = |place: &Place| !place.is_accepted && place.check.is_none();
        assert!(!self.model.places.iter().any(is_asking_without_end));
    }

    /// When all have left and all is over, nothing is held.
    fn close(&mut self) {
        for number in 1..=self.asked {
            self.take(&Event::Leave(number));
        }
        assert_eq!(self.machine.held(), 0);
        assert!(self.machine.by_peer.is_empty() && self.machine.deadlines.is_empty());
        assert_eq!(self.machine.next_timeout(), None);
    }
}

fn eligible() -> impl Strategy<Value = Eligible> {
    prop_oneof![4 => Just(Eligible::Yes), 1 => Just(Eligible::No), 1 => Just(Eligible::Unknown)]
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let verdict = prop_oneof![
        3 => (0_u64..30).prop_map(|seconds| Ok(Some(seconds))),
        1 => Just(Ok(None)),
        1 => Just(Err(())),
    ];
    let end = prop_oneof![Just(StreamEnd::Finished), Just(StreamEnd::ShuttingDown)];
    let event = prop_oneof![
        60 => (0_u8..3, eligible(), prop::bool::weighted(0.9))
            .prop_map(|(from, eligible, has_ticket)| Event::Ask(from, eligible, has_ticket)),
        60 => (0_usize..4, verdict).prop_map(|(ago, verdict)| Event::Check(ago, verdict)),
        30 => (1_u64..20).prop_map(Event::Renew),
        15 => (0_u8..3, eligible()).prop_map(|(from, eligible)| Event::Judge(from, eligible)),
        20 => (1_u64..20).prop_map(Event::Leave),
        40 => (0_u64..15).prop_map(Event::Pass),
        1 => end.prop_map(Event::End),
    ];
    proptest::collection::vec(event, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(
            FileFailurePersistence::Direct("src/stream/subscribers/tests.regressions"),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_everybody_has_one_outcome_and_no_place_leaks(
        events in events(),
        requires_ticket: bool,
    ) {
        let mut pair = Pair::new(requires_ticket);
        for event in &events {
            pair.take(event);
        }
        pair.close();
    }
}

#[test]
fn every_short_life_of_a_subscriber_goes_by_the_rules() {
    let choices = [
        Event::Ask(1, Eligible::Yes, true),
        Event::Check(0, Ok(Some(12))),
        Event::Check(1, Ok(None)),
        Event::Check(0, Err(())),
        Event::Renew(1),
        Event::Judge(1, Eligible::No),
        Event::Judge(1, Eligible::Unknown),
        Event::Leave(1),
        Event::Pass(6),
    ];
    let depth = 4;
    for life in 0..choices.len().pow(depth) {
        let mut pair = Pair::new(true);
        pair.take(&choices[0]);
        let mut rest = life;
        for _ in 0..depth {
            pair.take(&choices[rest % choices.len()]);
            rest /= choices.len();
        }
        pair.close();
    }
}
