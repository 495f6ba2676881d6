//! Eager streams, whose answer the first read checks.

use iroh::endpoint::ReadError;
use kinfolk::Code;
use kinfolk::error::StreamError;
use kinfolk_core::wire::{Answer, StreamMode};
use kinfolk_tests::support::host::{Dialled, Host};
use kinfolk_tests::support::node::{ECHO, node};
use kinfolk_tests::support::wait::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::scene::{SOON, TASK};

#[tokio::test]
async fn an_eager_stream_is_returned_before_the_answer_and_its_payload_needs_none() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let opening = async {
        let (mut send, recv) = alice.open_eager(address, ECHO).await.expect("opened");
        send.write_all(b"early").await.expect("sent");
        (send, recv)
    };
    let listening = async {
        let dialled = host.greeted().await;
        let mut asked = dialled.stream().await;
        assert_eq!(asked.header.mode, StreamMode::Eager);
        let mut early = [0; 5];
        within(SOON, "the payload", asked.receive.read_exact(&mut early)).await.expect("came");
        assert_eq!(early, *b"early");
        (dialled, asked)
    };
    let both = async { tokio::join!(opening, listening) };
    let ((_send, mut recv), (mut dialled, mut asked)) = within(SOON, "both", both).await;

    dialled.welcome().await;
    asked.answer(Answer::Ack).await;
    asked.send.write_all(b"late").await.expect("sent");
    let mut late = [0; 4];
    within(SOON, "the response", recv.read_exact(&mut late)).await.expect("received");
    assert_eq!(late, *b"late");
}

#[tokio::test]
async fn a_refusal_of_an_eager_stream_is_seen_at_the_first_read() {
    let (alice, bob) = (node(1).await, node(2).await);
    let opening = within(SOON, "the open", alice.open_eager(bob.addr(), TASK));
    let (mut send, mut recv) = opening.await.expect("opened");
    // Whether the refusal has come by now does not matter.
    let _ = send.write_all(b"for nobody").await;
    let refused = Err(StreamError::Refused(Code::UnknownProtocol));
    assert_eq!(within(SOON, "the answer", recv.read(&mut [0; 8])).await, refused);
    assert_eq!(within(SOON, "the answer", recv.read_chunk(8)).await.map(|_| Some(0)), refused);
}

#[tokio::test]
async fn the_refusal_of_an_eager_stream_can_be_asked_for_without_reading() {
    let (alice, bob) = (node(1).await, node(2).await);
    let opening = within(SOON, "the open", alice.open_eager(bob.addr(), TASK));
    let (_send, mut recv) = opening.await.expect("opened");
    let refused = Err(StreamError::Refused(Code::UnknownProtocol));
    assert_eq!(within(SOON, "the answer", recv.answered()).await, refused);
}

#[tokio::test]
async fn both_halves_work_as_tokio_streams() {
    let (alice, bob) = (node(1).await, node(2).await);
    let opening = within(SOON, "the open", alice.open_eager(bob.addr(), ECHO));
    let (mut send, mut recv) = opening.await.expect("opened");
    let whole: Vec<u8> = (0..300_000_u32).map(|place| (place % 251) as u8).collect();
    let sending = async {
        AsyncWriteExt::write_all(&mut send, &whole).await.expect("sent");
        send.shutdown().await.expect("finished");
    };
    let mut echoed = Vec::new();
    let receiving = AsyncReadExt::read_to_end(&mut recv, &mut echoed);
    let both = async { tokio::join!(sending, receiving) };
    let ((), received) = within(SOON, "the echo", both).await;
    assert_eq!(received.expect("received"), whole.len());
    assert!(echoed == whole);
}

/// A host is only here to show what the wire looks like to an opener that gives up.
#[tokio::test]
async fn an_eager_stream_that_is_dropped_is_reset_and_stopped_as_cancelled() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let opening = async {
        drop(alice.open_eager(address, ECHO).await.expect("opened"));
    };
    let listening = async {
        let dialled: Dialled = host.welcomed().await;
        let stream = within(SOON, "a stream", dialled.connection.accept_bi()).await;
        let (send, mut receive) = stream.expect("the connection is up");
        let end = within(SOON, "the reset", async {
            loop {
                match receive.read_chunk(100).await {
                    Ok(Some(_)) => {}
                    end => return end.map(|_| ()),
                }
            }
        });
        (end.await, within(SOON, "the stop", send.stopped()).await)
    };
    let both = async { tokio::join!(opening, listening) };
    let ((), (reset, stopped)) = within(SOON, "both", both).await;
    let cancelled = u32::from(Code::Cancelled.to_wire()).into();
    assert_eq!(reset, Err(ReadError::Reset(cancelled)));
    assert_eq!(stopped.expect("the connection is up"), Some(cancelled));
}
