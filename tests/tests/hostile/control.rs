//! After the welcome, on the control stream.

use iroh::endpoint::VarInt;
use kinfolk::Code;
use kinfolk_core::wire::{Answer, Control, Goodbye, StreamMode};
use kinfolk_tests::support::guest::{bytes, done, goodbye, header, hello};
use kinfolk_tests::support::node::ECHO;

use crate::scene::{SOON, Scene, answer, closed, framed, is_served};

#[tokio::test]
async fn a_frame_that_is_not_the_diallers_breaks_the_protocol() {
    let again = bytes(&Control::Hello(hello(1, 2)));
    Scene::new().await.is_shown_the_door(&again, Code::Violation).await;
    let welcome = b"\0\0\0\x04\x01\0\x01\x01";
    Scene::new().await.is_shown_the_door(welcome, Code::Violation).await;
}

#[tokio::test]
async fn a_done_before_its_goodbye_breaks_the_protocol() {
    Scene::new().await.is_shown_the_door(&bytes(&done()), Code::Violation).await;
}

#[tokio::test]
async fn a_second_goodbye_breaks_the_protocol() {
    let goodbye = bytes(&goodbye(Code::Ok));
    Scene::new().await.is_shown_the_door(&goodbye.repeat(2), Code::Violation).await;
}

#[tokio::test]
async fn a_second_done_breaks_the_protocol() {
    let scene = Scene::new().await;
    let mut guest = scene.guest().await;
    // An open stream keeps the node from being done itself.
    let (_send, mut receive) = guest.ask(&header(ECHO, StreamMode::Acked)).await;
    assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
    guest.say(&[goodbye(Code::Ok), done(), done()]).await;
    assert_eq!(closed(&guest.connection).await, Some(Code::Violation));
    scene.counts(1, "peer_misbehaved", |metrics| &metrics.sessions.ended).await;
    scene.is_well().await;
}

#[tokio::test]
async fn garbage_on_the_control_stream_is_malformed() {
    Scene::new().await.is_shown_the_door(&framed(b"\xffgarbage"), Code::Malformed).await;
}

#[tokio::test]
async fn a_goodbye_without_a_reason_is_malformed() {
    Scene::new().await.is_shown_the_door(&framed(&[2, 0, 0, 0]), Code::Malformed).await;
}

#[tokio::test]
async fn a_control_frame_that_claims_to_be_too_long_is_too_large() {
    Scene::new().await.is_shown_the_door(&[0xff; 4], Code::TooLarge).await;
}

#[tokio::test]
async fn a_control_stream_that_ends_breaks_the_protocol() {
    let scene = Scene::new().await;
    let mut guest = scene.guest().await;
    guest.send.finish().expect("finished once");
    assert_eq!(closed(&guest.connection).await, Some(Code::Violation));
    scene.counts(1, "peer_misbehaved", |metrics| &metrics.sessions.ended).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_control_stream_that_is_reset_breaks_the_protocol() {
    let scene = Scene::new().await;
    let mut guest = scene.guest().await;
    guest.send.reset(VarInt::MAX).expect("reset once");
    assert_eq!(closed(&guest.connection).await, Some(Code::Violation));
    scene.counts(1, "peer_misbehaved", |metrics| &metrics.sessions.ended).await;
    scene.is_well().await;
}

#[tokio::test]
async fn whoever_stops_the_nodes_control_stream_is_served_and_cut_when_the_node_drains() {
    let scene = Scene::new().await;
    let mut guest = scene.guest().await;
    guest.receive.stop(VarInt::MAX).expect("stopped once");
    is_served(&guest).await;
    scene.node.disconnect(scene.stranger.id()).await.expect("alive");
    assert_eq!(closed(&guest.connection).await, Some(Code::DrainDeadline));
    scene.is_well().await;
}

#[tokio::test]
async fn the_largest_numbers_that_a_goodbye_can_carry_do_not_stretch_the_drain() {
    let scene = Scene::new().await;
    let mut guest = scene.guest().await;
    let (_send, mut receive) = guest.ask(&header(ECHO, StreamMode::Acked)).await;
    assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
    let largest =
        Goodbye { served: u64::MAX, within_ms: u32::MAX, ..Goodbye::new(Code::Idle, 0, SOON) };
    guest.say(&[Control::Goodbye(largest)]).await;
    // The node's own deadline is half a second, the goodbye names 49 days.
    assert_eq!(closed(&guest.connection).await, Some(Code::DrainDeadline));
    scene.is_well().await;
}
