//! After the welcome, on streams of the stranger's own.

use std::collections::BTreeMap;
use std::time::Duration;

use kinfolk::{Code, Service};
use kinfolk_core::wire::{Answer, HEADER_MAX, StreamMode};
use kinfolk_tests::support::guest::{Guest, header, hello};
use kinfolk_tests::support::node::{ECHO, NEXT, builder, serving};
use kinfolk_tests::support::stranger::{Stranger, trickle};
use kinfolk_tests::support::wait::{eventually, live_tasks, within};
use tokio::sync::mpsc;

use crate::scene::{
    HOLD, SOON, STUCK, Scene, UNKNOWN, answer, framed, is_served, limits, one_byte_is_missing,
};

#[tokio::test]
async fn a_stream_header_that_never_ends_is_late() {
    let half = one_byte_is_missing(header(ECHO, StreamMode::Acked));
    Scene::new().await.is_refused_a_stream(&half, Code::HeaderTimeout).await;
}

#[tokio::test]
async fn a_stream_header_that_comes_byte_by_byte_is_late() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let slow = header(ECHO, StreamMode::Acked);
    let (mut send, mut receive) = guest.ask(&slow[..1]).await;
    let trickle = trickle(&mut send, &slow[1..], Duration::from_millis(200));
    let trickle = within(SOON, "the cut", trickle);
    let (written, answer) = tokio::join!(trickle, answer(&mut receive));
    assert!(written < slow.len() - 1, "the whole header was read");
    assert_eq!(answer, Some(Answer::Refuse(Code::HeaderTimeout)));
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_stream_header_that_claims_to_be_too_long_is_too_large() {
    let length = u32::try_from(HEADER_MAX).expect("small") + 1;
    for claim in [length, u32::MAX] {
        Scene::new().await.is_refused_a_stream(&claim.to_be_bytes(), Code::TooLarge).await;
    }
}

#[tokio::test]
async fn a_stream_header_that_is_none_is_malformed() {
    let unknown_mode = framed(b"\x06echo/1\x04");
    let no_name = framed(b"\x00\x00");
    let name_with_space = framed(b"\x03a b\x00");
    let longest = framed(&[&[65][..], &[b'x'; 65], &[0]].concat());
    let garbage = framed(&[0xff; 20]);
    for bytes in [unknown_mode, no_name, name_with_space, longest, garbage, vec![0; 4]] {
        Scene::new().await.is_refused_a_stream(&bytes, Code::Malformed).await;
    }
}

#[tokio::test]
async fn a_stream_that_ends_before_its_header_is_malformed() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let (mut send, mut receive) = guest.ask(b"\0\0").await;
    send.finish().expect("finished once");
    assert_eq!(answer(&mut receive).await, Some(Answer::Refuse(Code::Malformed)));
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn an_unknown_protocol_refuses_its_stream_alone() {
    let ask = header(UNKNOWN, StreamMode::Acked);
    Scene::new().await.is_refused_a_stream(&ask, Code::UnknownProtocol).await;
}

#[tokio::test]
async fn a_stream_in_a_mode_that_its_protocol_has_not_breaks_the_protocol() {
    let call_of_a_stream = header(ECHO, StreamMode::Call);
    let stream_of_a_call = header(NEXT, StreamMode::Acked);
    for ask in [call_of_a_stream, stream_of_a_call] {
        let scene = Scene::new().await;
        let guest = scene.guest().await;
        let (_send, mut receive) = guest.ask(&ask).await;
        assert_eq!(answer(&mut receive).await, Some(Answer::Refuse(Code::Violation)));
        is_served(&guest).await;
        scene.is_well().await;
    }
}

#[tokio::test]
async fn a_hold_in_a_mode_that_it_has_not_is_refused_and_counted() {
    let ask = header(HOLD, StreamMode::Eager);
    Scene::new().await.is_refused_a_stream(&ask, Code::Violation).await;
}

#[tokio::test]
async fn a_call_that_claims_four_gigabytes_is_too_large() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let ask = [header(NEXT, StreamMode::Call), vec![0xff; 4]].concat();
    let (_send, mut receive) = guest.ask(&ask).await;
    let end = within(SOON, "the end", receive.read_chunk(1)).await;
    assert_eq!(reset_code(end), Some(Code::TooLarge));
    scene.counts(1, "too_large", |metrics| &metrics.streams_refused).await;
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_request_that_stops_coming_is_late() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let ask = [header(NEXT, StreamMode::Call), vec![0, 0, 4, 0], vec![7; 100]].concat();
    let (_send, mut receive) = guest.ask(&ask).await;
    let end = within(SOON, "the end", receive.read_chunk(1)).await;
    assert_eq!(reset_code(end), Some(Code::HeaderTimeout));
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn requests_that_a_peer_has_in_service_take_up_no_more_room_than_its_window() {
    const ROOM: u32 = 256 * 1024;
    let mut limits = limits();
    limits.connection_window = ROOM;
    limits.call_bytes = ROOM / 4;
    let node = serving(builder(1).limits(limits)).await;
    let (tell, mut asked) = mpsc::unbounded_channel();
    let stuck = Service::call_bytes(move |_peer, _request| {
        let _ = tell.send(());
        std::future::pending()
    });
    node.serve(STUCK, stuck).await.expect("a new protocol");
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
    // A little room is left for calls of a few bytes.
    let length = ROOM / 4 - 8;
    let claim = [header(STUCK, StreamMode::Call), length.to_be_bytes().to_vec()].concat();
    let ask = [claim.clone(), vec![7; usize::try_from(length).expect("small")]].concat();
    let mut served = Vec::new();
    for _ in 0..4 {
        served.push(guest.ask(&ask).await);
        within(SOON, "the handler", asked.recv()).await.expect("asked");
    }
    let (_send, mut receive) = guest.ask(&claim).await;
    let end = within(SOON, "the end", receive.read_chunk(1)).await;
    assert_eq!(reset_code(end), Some(Code::Busy));
    is_served(&guest).await;
    // The room is that of one peer.
    let other = Stranger::bind(67).await;
    let other = Guest::enter(&other, &node, hello(1, 1)).await;
    let _fifth = other.ask(&ask).await;
    within(SOON, "the handler", asked.recv()).await.expect("asked");
}

#[tokio::test]
async fn a_response_that_nobody_reads_gives_its_place_back() {
    let mut limits = limits();
    limits.call_bytes = 4 * 1024 * 1024;
    let node = serving(builder(1).limits(limits)).await;
    let large = Service::call_bytes(|_peer, _request| async { Ok(vec![7; 4 * 1024 * 1024]) });
    node.serve(STUCK, large.concurrency(1)).await.expect("a new protocol");
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
    let ask = [header(STUCK, StreamMode::Call), vec![0; 4]].concat();
    let _unread = guest.ask(&ask).await;
    eventually(SOON, "the response is on its way", async || {
        let metrics = node.metrics().await.expect("alive");
        metrics.protocols["stuck/1"].active == 1
    })
    .await;
    eventually(SOON, "its place is free", async || {
        let metrics = node.metrics().await.expect("alive");
        metrics.protocols["stuck/1"].active == 0
    })
    .await;
    is_served(&guest).await;
}

#[tokio::test]
async fn a_second_hold_of_a_link_is_refused() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let (_send, mut receive) = guest.ask(&header(HOLD, StreamMode::Acked)).await;
    assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
    let (_send, mut receive) = guest.ask(&header(HOLD, StreamMode::Acked)).await;
    assert_eq!(answer(&mut receive).await, Some(Answer::Refuse(Code::Busy)));
    is_served(&guest).await;
    scene.is_well().await;
}

fn reset_code(end: Result<Option<bytes::Bytes>, iroh::endpoint::ReadError>) -> Option<Code> {
    match end {
        Err(iroh::endpoint::ReadError::Reset(code)) => Some(Code::from_wire(code.into_inner())),
        other => panic!("expected a reset, came {other:?}"),
    }
}

#[tokio::test]
async fn one_way_streams_are_not_possible_and_datagrams_for_nobody_change_nothing() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    for _ in 0..10_000 {
        guest.connection.send_datagram(vec![7; 1000].into()).expect("it may send them");
    }
    let uni = tokio::time::timeout(Duration::from_millis(200), guest.connection.open_uni()).await;
    assert!(uni.is_err(), "the node allows none, so the open waits");
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_thousand_streams_that_stall_at_once_are_bounded_and_leave_nothing_behind() {
    let mut limits = limits();
    // All of them are opened within two of these, on a busy machine too: else more than twice as many as may be are read in turn.
    limits.header_deadline = Duration::from_secs(4);
    let scene = Scene::around(builder(1).limits(limits)).await;
    let guest = scene.guest().await;
    is_served(&guest).await;
    eventually(SOON, "the calls are over", async || scene.metrics().await.streams_inbound == 0)
        .await;
    let tasks = live_tasks();
    let mut stalled = Vec::new();
    for _ in 0..1000 {
        stalled.push(guest.ask(b"\0").await);
    }
    eventually(SOON, "as many as may be are read, the others refused", async || {
        let metrics = scene.metrics().await;
        assert!(metrics.streams_inbound <= 128 + 1, "{}", metrics.streams_inbound);
        metrics.streams_refused.get("busy").copied().unwrap_or(0) >= 1000 - 2 * 128
    })
    .await;
    scene.is_well().await;
    let mut answers = BTreeMap::new();
    for (_, receive) in &mut stalled {
        let answer = answer(receive).await.expect("every stream is answered");
        *answers.entry(answer).or_insert(0) += 1;
    }
    let late = answers.get(&Answer::Refuse(Code::HeaderTimeout)).copied().unwrap_or(0);
    let busy = answers.get(&Answer::Refuse(Code::Busy)).copied().unwrap_or(0);
    assert_eq!(late + busy, 1000, "{answers:?}");
    assert!(late >= 128, "{answers:?}");
    is_served(&guest).await;
    drop(stalled);
    eventually(SOON, "no task is left of them", async || live_tasks() <= tasks).await;
    assert_eq!(scene.metrics().await.streams_inbound, 0);
}
