//! Up to the hello, and the links that come after the first.

use std::time::Duration;

use iroh::endpoint::VarInt;
use kinfolk::{Code, NetworkId};
use kinfolk_core::wire::{
    CONTROL_MAX, Control, DeadLink, Extensions, Hello, LENGTH_BYTES, StreamHeader, StreamMode,
    Welcome,
};
use kinfolk_tests::support::guest::{Guest, bytes, done, goodbye, hello, knock};
use kinfolk_tests::support::node::{NETWORK, NEXT};
use kinfolk_tests::support::stranger::{DialError, closed_code, read_until_end, trickle};
use kinfolk_tests::support::wait::within;

use crate::scene::{SOON, Scene, closed, framed, is_served, one_byte_is_missing};

// In the handshake

#[tokio::test]
async fn a_node_of_another_network_ends_in_the_handshake_and_is_counted() {
    let scene = Scene::new().await;
    let other = NetworkId::from_name("another network").alpn();
    let dialled = scene.stranger.connect(scene.node.addr(), &other).await;
    assert!(matches!(dialled, Err(DialError::Refused(_))), "{dialled:?}");
    scene.counts(1, "no_common_protocol", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_node_of_another_major_version_ends_in_the_handshake_and_is_counted() {
    let scene = Scene::new().await;
    let other = format!("kinfolk/2/{}", NetworkId::from_name(NETWORK));
    let dialled = scene.stranger.connect(scene.node.addr(), other.as_bytes()).await;
    assert!(matches!(dialled, Err(DialError::Refused(_))), "{dialled:?}");
    scene.counts(1, "no_common_protocol", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

// Instead of a hello

#[tokio::test]
async fn garbage_instead_of_a_hello_is_malformed() {
    let garbage = framed(&[0xff; 40]);
    Scene::new().await.is_turned_away(&garbage, Code::Malformed, "malformed_hello").await;
}

#[tokio::test]
async fn an_empty_frame_instead_of_a_hello_is_malformed() {
    Scene::new().await.is_turned_away(&[0; 4], Code::Malformed, "malformed_hello").await;
}

#[tokio::test]
async fn a_hello_that_claims_to_be_too_long_is_too_large() {
    let length = u32::try_from(CONTROL_MAX).expect("small") + 1;
    for claim in [length, u32::MAX] {
        let scene = Scene::new().await;
        scene.is_turned_away(&claim.to_be_bytes(), Code::TooLarge, "malformed_hello").await;
    }
}

#[tokio::test]
async fn a_hello_with_more_dead_links_than_allowed_is_malformed() {
    let nine_dead = [&[0, 0, 1, 1, 9][..], &[1, 1, 1].repeat(9)].concat();
    let scene = Scene::new().await;
    scene.is_turned_away(&framed(&nine_dead), Code::Malformed, "malformed_hello").await;
}

#[tokio::test]
async fn a_hello_that_claims_the_most_dead_links_that_a_number_can_is_malformed() {
    let claim = [&[0, 0, 1, 1][..], &[0xff; 9], &[1]].concat();
    let scene = Scene::new().await;
    scene.is_turned_away(&framed(&claim), Code::Malformed, "malformed_hello").await;
}

#[tokio::test]
async fn a_hello_in_another_encoding_than_the_shortest_is_malformed() {
    let needless = framed(&[0, 0, 0x81, 0, 1, 0]);
    Scene::new().await.is_turned_away(&needless, Code::Malformed, "malformed_hello").await;
}

#[tokio::test]
async fn whoever_says_something_else_first_breaks_the_protocol() {
    let welcome = Control::Welcome(Welcome {
        minor: 0,
        incarnation: kinfolk::Incarnation::new(1),
        call_max: 1,
        extensions: Extensions::none(),
    });
    for frame in [welcome, goodbye(Code::Ok), done()] {
        Scene::new().await.is_turned_away(&bytes(&frame), Code::Violation, "no_hello").await;
    }
}

#[tokio::test]
async fn a_hello_that_ends_too_early_breaks_the_protocol() {
    let scene = Scene::new().await;
    let half = one_byte_is_missing(bytes(&Control::Hello(hello(1, 1))));
    let (connection, mut send, _receive) = scene.begins_with(&half).await;
    send.finish().expect("finished once");
    assert_eq!(closed(&connection).await, Some(Code::Violation));
    scene.counts(1, "no_hello", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_hello_that_is_reset_breaks_the_protocol() {
    let scene = Scene::new().await;
    let (connection, mut send, _receive) = scene.begins_with(b"\0\0\0").await;
    send.reset(VarInt::MAX).expect("reset once");
    assert_eq!(closed(&connection).await, Some(Code::Violation));
    scene.counts(1, "no_hello", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_hello_that_never_comes_is_late() {
    let scene = Scene::new().await;
    let connection = scene.dial().await;
    assert_eq!(closed(&connection).await, Some(Code::HelloTimeout));
    scene.counts(1, "hello_timeout", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_hello_that_comes_byte_by_byte_is_late() {
    let scene = Scene::new().await;
    let slow = bytes(&Control::Hello(hello(u64::MAX, u64::MAX)));
    let (connection, mut send, _receive) = scene.begins_with(&slow[..1]).await;
    let pace = Duration::from_millis(200);
    let trickle = within(SOON, "the cut", trickle(&mut send, &slow[1..], pace));
    let (written, code) = tokio::join!(trickle, closed(&connection));
    assert!(written < slow.len() - 1, "the whole hello was read");
    assert_eq!(code, Some(Code::HelloTimeout));
    scene.counts(1, "hello_timeout", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

#[tokio::test]
async fn whoever_leaves_before_its_hello_is_counted() {
    let scene = Scene::new().await;
    scene.dial().await.close(VarInt::MAX, b"changed my mind");
    scene.counts(1, "lost_before_hello", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

// Unusual hellos that must be served

#[tokio::test]
async fn a_newer_minor_version_with_unknown_extensions_is_served() {
    let scene = Scene::new().await;
    let extensions = Extensions::none()
        .with(7, b"from the future")
        .and_then(|extensions| extensions.with(u32::MAX, b""));
    let extensions = extensions.expect("rising kinds");
    let newer = Hello { minor: u16::MAX, extensions: extensions.clone(), ..hello(1, 1) };
    let guest = Guest::enter(&scene.stranger, &scene.node, newer).await;
    let mut header = StreamHeader::new(NEXT, StreamMode::Call);
    header.extensions = extensions;
    let ask = [header.encode().expect("short enough"), vec![0, 0, 0, 1, 41]].concat();
    let (mut send, mut receive) = guest.ask(&ask).await;
    send.finish().expect("finished once");
    assert_eq!(read_until_end(&mut receive, SOON).await[..], [0, 0, 0, 0, 1, 42]);
}

#[tokio::test]
async fn a_hello_as_long_as_allowed_is_served() {
    let scene = Scene::new().await;
    let short = bytes(&Control::Hello(hello(1, 1)));
    // One byte for the extension's kind, and two for its length.
    let room = CONTROL_MAX + LENGTH_BYTES - short.len() - 3;
    let extensions = Extensions::none().with(1, &vec![7; room]).expect("one extension");
    let long = Hello { extensions, ..hello(1, 1) };
    assert_eq!(bytes(&Control::Hello(long.clone())).len(), CONTROL_MAX + LENGTH_BYTES);
    is_served(&Guest::enter(&scene.stranger, &scene.node, long).await).await;
}

#[tokio::test]
async fn the_largest_numbers_that_a_hello_can_carry_are_served() {
    let scene = Scene::new().await;
    let incarnation = kinfolk::Incarnation::new(u64::MAX);
    let dead = [true, false].repeat(4);
    let dead = dead.into_iter().map(|mine| DeadLink { mine, incarnation, n: u64::MAX - 1 });
    let largest = Hello { minor: u16::MAX, dead: dead.collect(), ..hello(u64::MAX, u64::MAX) };
    let guest = Guest::enter(&scene.stranger, &scene.node, largest).await;
    is_served(&guest).await;
    scene.is_well().await;
}

// A second link

#[tokio::test]
async fn a_second_hello_for_a_live_link_is_refused_and_the_link_lives_on() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let (second, ..) = knock(&scene.stranger, &scene.node, hello(1, 1)).await;
    assert_eq!(closed(&second).await, Some(Code::Violation));
    scene.counts(1, "violation", |metrics| &metrics.links_refused).await;
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn an_older_link_than_the_live_one_is_refused_and_the_live_one_lives_on() {
    let scene = Scene::new().await;
    let guest = Guest::enter(&scene.stranger, &scene.node, hello(1, u64::MAX)).await;
    let (second, ..) = knock(&scene.stranger, &scene.node, hello(1, u64::MAX - 1)).await;
    assert_eq!(closed(&second).await, Some(Code::Duplicate));
    scene.counts(1, "duplicate", |metrics| &metrics.links_refused).await;
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_peer_that_replaces_its_link_over_and_over_has_one_live_link_and_few_that_close() {
    let scene = Scene::new().await;
    let mut guests = Vec::new();
    for n in 1..=30 {
        guests.push(Guest::enter(&scene.stranger, &scene.node, hello(1, n)).await);
        let sessions = scene.metrics().await.sessions;
        // The live one, those that close, and the honest peer's.
        assert!(sessions.inbound <= 7, "{sessions:?}");
    }
    is_served(guests.last().expect("thirty")).await;
    for replaced in &guests[..29] {
        assert!(closed_code(&replaced.connection, SOON).await.is_some());
    }
    scene.is_well().await;
}
