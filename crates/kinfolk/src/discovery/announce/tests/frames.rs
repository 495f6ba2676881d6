//! The bytes of frames, and what becomes of bytes that are none.

use bytes::Bytes;
use iroh::{RelayUrl, TransportAddr};
use iroh_gossip::proto::topic;
use kinfolk_core::record::{Draft, OFFERS_MAX, Offer, RECORD_MAX, Seq, TOPICS_MAX, Topic};
use kinfolk_core::wire::Extensions;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::super::frame::{
    self, FRAME_MAX, FrameError, Gossip, List, Message, Named, Priority, Promise, Scope, Swarm,
    payload_id,
};
use super::super::{Dropped, Input};
use super::network::{Net, id, key, network, topic};

fn decode(frame: &[u8]) -> Result<Message<'_>, FrameError> {
    Message::decode(frame, topic())
}

fn examples() -> Vec<Message<'static>> {
    let named = || List(vec![Named::new(id(1)), Named::new(id(2))]);
    vec![
        Message::Swarm(Swarm::Join(None)),
        Message::Swarm(Swarm::ForwardJoin { peer: Named::new(id(1)), ttl: 6 }),
        Message::Swarm(Swarm::Shuffle { origin: id(3), nodes: named(), ttl: 3 }),
        Message::Swarm(Swarm::ShuffleReply { nodes: named() }),
        Message::Swarm(Swarm::Neighbor { priority: Priority::High, data: None }),
        Message::Swarm(Swarm::Neighbor { priority: Priority::Low, data: None }),
        Message::Swarm(Swarm::Disconnect { alive: true, respond: false }),
        Message::payload(b"a record"),
        Message::Gossip(Gossip::Prune),
        Message::Gossip(Gossip::Graft { id: None, round: 7 }),
        Message::Gossip(Gossip::Graft { id: Some([9; 32]), round: 300 }),
        Message::Gossip(Gossip::Promises(List(vec![Promise::new([1; 32]), Promise::new([2; 32])]))),
    ]
}

#[test]
fn what_is_read_here_is_what_the_protocol_crate_writes_and_reads() {
    for message in examples() {
        let proto = message.clone().into_proto().unwrap();
        let frame = frame::encode(&proto, topic()).unwrap();
        assert_eq!(frame, frame::encode(&message, topic()).unwrap());
        assert_eq!(decode(&frame), Ok(message));
    }
}

#[test]
fn a_frame_is_a_version_a_topic_and_a_message() {
    let frame = frame::encode(&Message::Gossip(Gossip::Prune), topic()).unwrap();
    assert_eq!(hex(&frame[..1]), "01");
    assert_eq!(hex(&frame[33..]), "0101");
    assert_eq!(
        hex(&frame[1..33]),
        hex(&blake3::derive_key("kinfolk announcements topic", network().as_bytes()))
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_largest_record_fits_into_a_frame_and_no_larger_one_can_be_made() {
    let mut draft = Draft::new(network());
    for n in 0..6_u16 {
        let addr = std::net::SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n + 1], 65_535));
        draft.add_address(TransportAddr::Ip(addr)).unwrap();
    }
    for n in 0..2 {
        let host = format!("{n}{}.{}", "a".repeat(60), "b".repeat(40));
        let url: RelayUrl = format!("https://{host}/").parse().unwrap();
        draft.add_address(TransportAddr::Relay(url)).unwrap();
    }
    for n in 0..TOPICS_MAX {
        draft.add_topic(Topic::from_name(&n.to_string())).unwrap();
    }
    for n in 0..OFFERS_MAX {
        draft.add_offer(Offer::from_name(&n.to_string())).unwrap();
    }
    let sign = |padding: usize| {
        let extensions = Extensions::none().with(1, &vec![0; padding]).unwrap();
        draft.clone().with_extensions(extensions).sign(
            &key(1),
            Seq::new(u64::MAX),
            kinfolk_core::record::UnixMillis::new(u64::MAX),
        )
    };
    let largest = (0..RECORD_MAX).rev().find_map(|padding| sign(padding).ok()).unwrap();
    assert_eq!(largest.bytes().len(), RECORD_MAX);
    let content = largest.bytes();
    let scope = Scope::Swarm(u16::MAX);
    let message = Message::Gossip(Gossip::Payload { id: payload_id(content), content, scope });
    let frame = frame::encode(&message, topic()).unwrap();
    // Version, topic, two kinds, name, length, record, scope and hops.
    assert_eq!(frame.len(), 1 + 32 + 2 + 32 + 2 + RECORD_MAX + 1 + 3);
    assert!(frame.len() <= FRAME_MAX);
}

#[test]
fn the_longest_lists_fit_into_a_frame() {
    let promises = List((0..56_u8).map(|n| Promise::new([n; 32])).collect());
    let promises = Message::Gossip(Gossip::Promises(promises));
    assert!(frame::encode(&promises, topic()).is_some());
    let nodes = List((1..=8).map(|n| Named::new(id(n))).collect());
    let shuffle = Message::Swarm(Swarm::Shuffle { origin: id(1), nodes, ttl: 6 });
    assert!(frame::encode(&shuffle, topic()).is_some());
}

#[test]
fn what_is_no_frame_is_told_apart_and_blamed_on_whoever_is_to_blame() {
    let good = frame::encode(&Message::Gossip(Gossip::Prune), topic()).unwrap();
    let with = |at: usize, byte: u8| {
        let mut frame = good.to_vec();
        frame[at] = byte;
        frame
    };
    assert_eq!(decode(&with(0, 2)), Err(FrameError::UnknownVersion(2)));
    assert_eq!(decode(&with(1, !good[1])), Err(FrameError::UnknownTopic));
    assert!(matches!(decode(b""), Err(FrameError::Malformed(_))));
    assert!(matches!(decode(&good[..20]), Err(FrameError::Malformed(_))));
    assert!(matches!(decode(&with(34, 9)), Err(FrameError::Malformed(_))));
    let longer = [&good[..], &[0]].concat();
    assert_eq!(decode(&longer), Err(FrameError::NonCanonical));
    let len = FRAME_MAX + 1;
    assert_eq!(decode(&vec![1; len]), Err(FrameError::TooLarge { len }));
}

#[test]
fn data_about_peers_and_lists_without_a_bound_are_malformed() {
    let head = frame::encode(&Message::Gossip(Gossip::Prune), topic()).unwrap();
    let with = |body: &[u8]| [&head[..33], body].concat();
    // A join with two bytes of data; a list of promises that claims four billion.
    for body in [&b"\x00\x00\x01\x02ab"[..], b"\x01\x03\xff\xff\xff\xff\x0f"] {
        let frame = with(body);
        assert!(matches!(decode(&frame), Err(FrameError::Malformed(_))), "{body:?}");
    }
    let mut nodes = vec![0, 3, 9];
    for n in 1..=9 {
        nodes.extend_from_slice(id(n).as_bytes());
        nodes.push(0);
    }
    assert!(matches!(decode(&with(&nodes)), Err(FrameError::Malformed(_))));
    assert!(postcard::from_bytes::<topic::Message<iroh::EndpointId>>(&nodes).is_ok());
}

#[test]
fn a_frame_of_a_topic_that_nobody_subscribed_is_counted_and_costs_nobody_anything() {
    let mut net = Net::of(4, 1);
    let mut frame = frame::encode(&Message::Gossip(Gossip::Prune), topic()).unwrap().to_vec();
    frame[7] ^= 1;
    net.closed.clear();
    let neighbour = *net.node(1).announcer.neighbours().first().unwrap();
    for peer in [neighbour, id(99)] {
        net.tell(id(1), Input::Received { peer, frame: frame.clone().into() });
    }
    assert_eq!((net.dropped(Dropped::UnknownTopic), net.dropped(Dropped::NoStream)), (1, 1));
    assert!(net.closed.is_empty());
    let record = net.change(1);
    net.run(std::time::Duration::from_secs(3));
    assert_eq!(net.knowing(&record), 4);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    /// A neighbour that sends mutated frames, in any order, never makes a node fail, and what the node keeps stays small.
    #[test]
    fn whatever_a_neighbour_sends_a_node_lives_on(
        frames in vec((0_usize..12, vec((0_usize..120, any::<u8>()), 0..3), any::<bool>()), 1..60),
    ) {
        let mut net = Net::empty(1);
        net.start(1, []);
        net.start(2, [1]);
        let mallory = id(3);
        for (which, mutations, is_new) in frames {
            if is_new {
                net.tell(id(1), Input::PeerUp(mallory));
                let join = frame::encode(&Message::Swarm(Swarm::Join(None)), topic()).unwrap();
                net.tell(id(1), Input::Received { peer: mallory, frame: join });
            }
            let mut frame = frame::encode(&examples()[which], topic()).unwrap().to_vec();
            for (at, byte) in mutations {
                // Past the version and topic mostly, which are not interesting.
                let at = if at < 110 { 33 + at } else { at - 110 };
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            net.tell(id(1), Input::Received { peer: mallory, frame: Bytes::from(frame) });
            net.run(std::time::Duration::from_millis(300));
        }
        net.tell(id(1), Input::PeerGone(mallory));
        net.run(std::time::Duration::from_secs(90));
        prop_assert!(net.node(1).announcer.lanes.len() <= 2);
        let record = net.change(1);
        net.run(std::time::Duration::from_secs(3));
        prop_assert_eq!(net.knowing(&record), 2);
    }

    #[test]
    fn a_frame_that_is_read_is_the_one_that_its_message_is_written_as(
        which in 0_usize..12,
        mutations in vec((33_usize..140, any::<u8>()), 0..3),
    ) {
        let mut frame = frame::encode(&examples()[which], topic()).unwrap().to_vec();
        for (at, byte) in mutations {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if let Ok(message) = decode(&frame) {
            prop_assert!(message.clone().into_proto().is_ok());
            let again = frame::encode(&message, topic()).unwrap();
            prop_assert_eq!(decode(&again), Ok(message));
        }
    }
}
