//! Strangers that speak to one node of a network and break the rules.

use std::collections::BTreeSet;
use std::time::Duration;

use iroh::{EndpointId, TransportAddr};
use kinfolk_core::code::Code;
use kinfolk_core::id::NetworkId;
use kinfolk_core::intake::Refusal;
use kinfolk_core::record::{Draft, RECORD_MAX, Record, Rejection, Seq, Ttl};
use serde::Serialize;

use super::super::frame::{self, Gossip, List, Message, Promise, Scope, Swarm, payload_id};
use super::super::{Dropped, Input};
use super::network::{Net, id, key, network, secs, topic};

/// The attacker, which is no node of the network, and its victim.
const MALLORY: u8 = 200;
const VICTIM: u8 = 1;

fn say(net: &mut Net, message: &impl Serialize) {
    let frame = frame::encode(message, topic()).unwrap();
    net.tell(id(VICTIM), Input::Received { peer: id(MALLORY), frame });
}

/// Becomes a neighbour of the victim.
fn join(net: &mut Net) {
    net.tell(id(VICTIM), Input::PeerUp(id(MALLORY)));
    say(net, &Message::Swarm(Swarm::Join(None)));
    assert!(net.node(VICTIM).announcer.neighbours().contains(&id(MALLORY)));
}

fn attacked(count: u8, seed: u64) -> Net {
    let mut net = Net::of(count, seed);
    net.run(secs(200));
    join(&mut net);
    net
}

fn record_of(net: &Net, n: u8, seq: u64) -> Record {
    Draft::new(network()).sign(&key(n), Seq::new(seq), net.clock()).unwrap()
}

fn last_close(net: &Net) -> Option<Code> {
    let of_mallory = |(_, peer, _): &&(EndpointId, EndpointId, Code)| *peer == id(MALLORY);
    net.closed.iter().rfind(of_mallory).map(|(_, _, code)| *code)
}

#[test]
fn an_author_of_ten_thousand_records_a_second_is_passed_on_ten_times_and_then_every_ten_seconds() {
    let mut net = attacked(10, 1);
    let checks = net.node(VICTIM).intake.checks();
    let mut heard = BTreeSet::new();
    let mut seq = 0;
    for second in 0..30 {
        // The frame bucket lets fifty a second through after the first five hundred; more would only take time to sign.
        for _ in 0..if second == 0 { 10_000 } else { 100 } {
            seq += 1;
            let record = record_of(&net, MALLORY, seq);
            say(&mut net, &Message::payload(record.bytes()));
            let known = net.node(2).catalog.known().get(&id(MALLORY)).cloned();
            heard.extend(known.map(|entry| entry.record().seq()));
        }
        net.run(secs(1));
        join_again(&mut net);
    }
    // Ten at once, three more in half a minute; and the honest nodes' own.
    let spent = net.node(VICTIM).intake.checks() - checks;
    assert!(spent <= 10 + 3 + 5, "{spent} checks");
    assert!((1..=13).contains(&heard.len()), "{heard:?}");
    assert!(net.dropped(Dropped::FrameRate) > 9_000);
    for node in net.nodes.values() {
        assert!(node.intake.checks() <= 60, "{}", node.intake.checks());
    }
}

/// The overlay may have displaced the attacker.
fn join_again(net: &mut Net) {
    if !net.node(VICTIM).announcer.neighbours().contains(&id(MALLORY)) {
        join(net);
    }
}

#[test]
fn what_is_forged_oversized_or_of_another_network_is_passed_on_by_nobody_and_its_sender_is_left() {
    let mut net = attacked(10, 2);
    let honest = record_of(&net, 3, 1_000);
    let mut forged = honest.bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let foreign = Draft::new(NetworkId::from_name("other"));
    let foreign = foreign.sign(&key(MALLORY), Seq::new(1), net.clock()).unwrap();
    let cases: [(&[u8], Rejection); 4] = [
        (&forged, Rejection::BadSignature),
        (&[1; RECORD_MAX + 1], Rejection::TooLarge),
        (foreign.bytes(), Rejection::WrongNetwork),
        (b"", Rejection::Malformed),
    ];
    for (bytes, reason) in cases {
        let checks: u64 = net.nodes.values().map(|node| node.intake.checks()).sum();
        net.closed.clear();
        say(&mut net, &Message::payload(bytes));
        net.run(secs(5));
        let reason = Dropped::Record(Refusal::Record(reason));
        assert_eq!(net.dropped(reason), 1, "{}", reason.name());
        assert_eq!(net.node(VICTIM).dropped.get(&reason), Some(&1));
        assert_eq!(last_close(&net), Some(Code::Violation));
        let spent = net.nodes.values().map(|node| node.intake.checks()).sum::<u64>() - checks;
        assert!(spent <= 1, "{spent}");
        // Once more costs no check.
        join(&mut net);
        say(&mut net, &Message::payload(bytes));
        assert_eq!(net.node(VICTIM).dropped.get(&Dropped::Repeated), Some(&1));
        net.nodes.get_mut(&id(VICTIM)).unwrap().dropped.clear();
        join_again(&mut net);
    }
}

#[test]
fn a_payload_under_a_false_name_or_for_neighbours_only_is_not_heeded() {
    let mut net = attacked(4, 3);
    let record = record_of(&net, MALLORY, 1);
    let content = record.bytes();
    let false_name = Gossip::Payload { id: [7; 32], content, scope: Scope::Swarm(0) };
    let aside = Gossip::Payload { id: payload_id(content), content, scope: Scope::Neighbors };
    for (message, reason) in [(false_name, Dropped::WrongHash), (aside, Dropped::WrongScope)] {
        net.closed.clear();
        say(&mut net, &Message::Gossip(message));
        assert_eq!(net.dropped(reason), 1);
        assert_eq!(last_close(&net), Some(Code::Violation));
        join(&mut net);
    }
    net.run(secs(5));
    assert_eq!(net.knowing(&record), 0);
}

#[test]
fn a_count_of_hops_that_would_overflow_is_cut_down_and_blames_nobody() {
    let mut net = attacked(10, 4);
    let record = record_of(&net, MALLORY, 1);
    let content = record.bytes();
    let scope = Scope::Swarm(u16::MAX);
    net.closed.clear();
    say(&mut net, &Message::Gossip(Gossip::Payload { id: payload_id(content), content, scope }));
    net.run(secs(3));
    assert_eq!(net.knowing(&record), 10);
    assert!(net.closed.iter().all(|(_, _, code)| *code == Code::Ok));
}

#[test]
fn a_replayed_record_is_not_renewed_and_one_that_is_no_news_is_not_passed_on() {
    let mut net = attacked(10, 5);
    let ttl = Ttl::from_secs(1_000).unwrap();
    let draft = Draft::new(network()).with_ttl(ttl);
    let record = draft.sign(&key(MALLORY), Seq::new(5), net.clock()).unwrap();
    say(&mut net, &Message::payload(record.bytes()));
    net.run(secs(3));
    assert_eq!(net.knowing(&record), 10);
    let expires = |net: &Net| {
        let entries =
            net.nodes.values().map(|node| node.catalog.known().get(&id(MALLORY)).cloned());
        entries.map(|entry| entry.unwrap().expires()).max().unwrap()
    };
    let end = expires(&net);
    // Within the window it may be passed on once more, and nobody's memory of it grows longer.
    for _ in 0..5 {
        net.run(secs(100));
        join_again(&mut net);
        say(&mut net, &Message::payload(record.bytes()));
        net.run(secs(3));
        assert_eq!(expires(&net), end);
    }
    // After it, it is not taken, known or not.
    net.run(secs(200));
    join_again(&mut net);
    say(&mut net, &Message::payload(record.bytes()));
    assert_eq!(net.dropped(Dropped::Stale), 1);
    net.run(secs(400));
    assert_eq!(net.knowing(&record), 0);
    join_again(&mut net);
    say(&mut net, &Message::payload(record.bytes()));
    net.run(secs(5));
    assert_eq!((net.knowing(&record), net.dropped(Dropped::Stale)), (0, 2));
}

#[test]
fn a_record_is_told_to_the_catalog_once_more_only_while_addresses_of_it_cannot_be_used() {
    for (address, again) in [("192.168.1.1:80", 2), ("203.0.113.1:80", 1)] {
        let mut net = attacked(10, 5);
        let mut draft = Draft::new(network());
        draft.add_address(TransportAddr::Ip(address.parse().unwrap())).unwrap();
        let record = draft.sign(&key(MALLORY), Seq::new(5), net.clock()).unwrap();
        let before = net.node(VICTIM).heard;
        say(&mut net, &Message::payload(record.bytes()));
        say(&mut net, &Message::payload(record.bytes()));
        assert_eq!(net.node(VICTIM).heard - before, again, "{address}");
    }
}

#[test]
fn an_older_record_a_second_one_of_the_same_number_and_one_of_the_departed_are_not_passed_on() {
    let mut net = attacked(10, 6);
    let (old, new) = (record_of(&net, MALLORY, 5), record_of(&net, MALLORY, 7));
    let draft = Draft::new(network()).with_ttl(Ttl::from_secs(99).unwrap());
    let twin = draft.sign(&key(MALLORY), Seq::new(7), net.clock()).unwrap();
    say(&mut net, &Message::payload(new.bytes()));
    net.run(secs(3));
    join_again(&mut net);
    say(&mut net, &Message::payload(old.bytes()));
    say(&mut net, &Message::payload(twin.bytes()));
    net.run(secs(3));
    assert_eq!((net.dropped(Dropped::Outdated), net.dropped(Dropped::Equivocation)), (1, 1));
    assert_eq!((net.knowing(&new), net.knowing(&old), net.knowing(&twin)), (10, 0, 0));
    join_again(&mut net);
    let clock = net.clock();
    let tombstone = Record::departure(network(), &key(MALLORY), Seq::new(7), clock).unwrap();
    say(&mut net, &Message::payload(tombstone.bytes()));
    net.run(secs(90));
    assert_eq!((net.knowing(&tombstone), net.listing(MALLORY)), (10, 0));
    join_again(&mut net);
    say(&mut net, &Message::payload(new.bytes()));
    net.run(secs(3));
    assert_eq!((net.dropped(Dropped::Outdated), net.listing(MALLORY)), (2, 0));
}

#[test]
fn an_own_record_that_is_ahead_is_told_and_not_passed_on() {
    let mut net = attacked(10, 7);
    let ahead = record_of(&net, VICTIM, 1_000);
    say(&mut net, &Message::payload(ahead.bytes()));
    net.run(secs(3));
    assert_eq!((net.knowing(&ahead), net.dropped(Dropped::Own)), (0, 1));
}

#[test]
fn who_is_no_neighbour_says_nothing_about_payloads() {
    let mut net = Net::of(4, 8);
    net.tell(id(VICTIM), Input::PeerUp(id(MALLORY)));
    let record = record_of(&net, MALLORY, 1);
    say(&mut net, &Message::payload(record.bytes()));
    say(&mut net, &Message::Gossip(Gossip::Prune));
    say(&mut net, &Message::Gossip(Gossip::Graft { id: None, round: 0 }));
    net.run(secs(3));
    assert_eq!((net.dropped(Dropped::NotNeighbour), net.knowing(&record)), (3, 0));
    // And is left in peace after a while.
    net.closed.clear();
    net.run(secs(60));
    assert_eq!(last_close(&net), Some(Code::Ok));
}

#[test]
fn promises_that_nobody_keeps_are_bounded_and_forgotten() {
    let mut net = attacked(10, 9);
    let size = |net: &Net| format!("{:?}", net.node(VICTIM).announcer.overlay).len();
    let before = size(&net);
    let mut serial = 0_u32;
    for _ in 0..60 {
        for _ in 0..20 {
            let promises = (0..50).map(|_| {
                serial += 1;
                Promise::new(payload_id(&serial.to_be_bytes()))
            });
            let promises = List(promises.collect());
            say(&mut net, &Message::Gossip(Gossip::Promises(promises)));
        }
        net.run(secs(1));
        join_again(&mut net);
        let announcer = &net.node(VICTIM).announcer;
        assert!(announcer.promises.len() <= 1024 && announcer.timers.len() <= 1100);
        assert!(size(&net) <= before + 1_500 * 300, "{}", size(&net));
    }
    assert!(net.dropped(Dropped::PromiseRate) > 0);
    net.run(secs(30));
    assert!(size(&net) <= before * 2, "{before} {}", size(&net));
    assert_eq!(net.node(VICTIM).announcer.promises.len(), 0);
}

#[test]
fn nobody_is_dialled_on_the_word_of_a_stranger_whom_the_catalog_does_not_know() {
    let mut net = attacked(10, 10);
    let opens = net.node(VICTIM).opens;
    net.nodes.get_mut(&id(VICTIM)).unwrap().dropped.clear();
    for n in 100..150 {
        let shuffle = Swarm::Shuffle { origin: id(n), nodes: List(Vec::new()), ttl: 0 };
        say(&mut net, &Message::Swarm(shuffle));
        let forward = Swarm::ForwardJoin { peer: frame::Named::new(id(n)), ttl: 0 };
        say(&mut net, &Message::Swarm(forward));
        let reply = Swarm::ShuffleReply { nodes: List(vec![frame::Named::new(id(n))]) };
        say(&mut net, &Message::Swarm(reply));
    }
    assert_eq!(net.node(VICTIM).dropped.get(&Dropped::Stranger), Some(&100));
    assert_eq!(net.node(VICTIM).opens, opens);
}

#[test]
fn strangers_that_open_streams_fill_no_table_and_displace_no_neighbour_by_that() {
    let mut net = Net::of(10, 11);
    let neighbours = net.node(VICTIM).announcer.neighbours().clone();
    for n in 100..=255 {
        net.tell(id(VICTIM), Input::PeerUp(id(n)));
        assert!(net.node(VICTIM).announcer.lanes.len() <= 32);
    }
    assert!(net.dropped(Dropped::StreamEvicted) >= 100);
    assert_eq!(net.node(VICTIM).announcer.neighbours(), &neighbours);
}

#[test]
fn peers_that_would_all_be_neighbours_at_once_are_taken_at_a_bounded_rate() {
    let mut net = Net::of(10, 12);
    for n in 50..=255 {
        net.tell(id(VICTIM), Input::PeerUp(id(n)));
        let frame = frame::encode(&Message::Swarm(Swarm::Join(None)), topic()).unwrap();
        net.tell(id(VICTIM), Input::Received { peer: id(n), frame });
    }
    assert!(net.dropped(Dropped::NewcomerRate) >= 130);
    // They took the places of all; the node finds its way back to the others when they are silent.
    for n in 50..=255 {
        net.tell(id(VICTIM), Input::PeerGone(id(n)));
    }
    net.run(Duration::from_secs(120));
    assert_eq!(net.component(VICTIM), 10);
}
