//! How streams end.

use kinfolk::error::{HandlerError, OpenError, StreamError};
use kinfolk::{Code, Failure, Incoming, SendStream, Service};
use kinfolk_tests::support::node::{ECHO, connect, node, node_with};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;

use crate::scene::{SOON, TASK, given, ms, open, serve_here};

#[tokio::test]
async fn a_sender_that_is_dropped_unfinished_is_no_end_of_the_stream_but_a_reset() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut streams = serve_here(&bob).await;
    let (mut send, _recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut at_bob = given(&mut streams).await;
    send.write_all(b"half").await.expect("sent");
    let mut half = [0; 4];
    within(SOON, "the half", at_bob.recv.read_exact(&mut half)).await.expect("received");
    drop(send);
    let end = within(SOON, "the end", at_bob.recv.read(&mut half)).await;
    assert_eq!(end, Err(StreamError::Reset(Code::Cancelled)));
}

/// What the opener reads after the handler took one byte and then ended like this.
async fn after_one_byte<Fut>(
    end: impl Fn(SendStream) -> Fut + Copy + Send + Sync + 'static,
) -> Result<Vec<u8>, StreamError>
where
    Fut: Future<Output = Result<(), HandlerError>> + Send,
{
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::stream(move |mut stream: Incoming| async move {
        stream.recv.read_exact(&mut [0]).await?;
        end(stream.send).await
    });
    bob.serve(TASK, service).await.expect("a new protocol");
    let (mut send, mut recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    send.write_all(b"x").await.expect("sent");
    within(SOON, "the end", recv.read_to_end(100)).await
}

#[tokio::test]
async fn a_handler_that_returns_with_its_sender_unfinished_resets_it_as_cancelled() {
    let leave = |mut send: SendStream| async move {
        send.write_all(b"half").await?;
        Ok(())
    };
    assert_eq!(after_one_byte(leave).await, Err(StreamError::Reset(Code::Cancelled)));
}

#[tokio::test]
async fn a_handler_that_fails_resets_its_stream_with_a_code_of_its_own() {
    let fail = |_send| async { Err(HandlerError::new("not today")) };
    assert_eq!(after_one_byte(fail).await, Err(StreamError::Reset(Code::HandlerFailed)));
}

#[tokio::test]
async fn a_handler_that_panics_resets_its_stream_with_a_code_of_its_own() {
    let panic = |_send| async { panic!("on purpose") };
    assert_eq!(after_one_byte(panic).await, Err(StreamError::Reset(Code::HandlerPanicked)));
}

#[tokio::test]
async fn the_code_of_a_handler_that_fails_at_once_is_seen_by_the_open_or_by_the_first_read() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::stream(|_stream| async { Err(HandlerError::new("not today")) });
    bob.serve(TASK, service).await.expect("a new protocol");
    // A reset takes along what was not delivered yet, the ack included.
    match open(&alice, bob.addr(), TASK).await {
        Ok((_send, mut recv)) => {
            let end = within(SOON, "the end", recv.read(&mut [0])).await;
            assert_eq!(end, Err(StreamError::Reset(Code::HandlerFailed)));
        }
        Err(error) => {
            let failure = Failure::Reset(Code::HandlerFailed);
            assert_eq!(error, OpenError::Failed { failure, cause: None });
        }
    }
}

#[tokio::test]
async fn a_handler_that_finishes_its_answer_and_then_fails_has_answered() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::stream(|mut stream: Incoming| async move {
        stream.send.write_all(b"whole").await?;
        stream.send.finish()?;
        Err(HandlerError::new("too late"))
    });
    bob.serve(TASK, service).await.expect("a new protocol");
    let (_send, mut recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    assert_eq!(within(SOON, "the end", recv.read_to_end(100)).await, Ok(b"whole".to_vec()));
}

#[tokio::test]
async fn a_reader_that_is_dropped_stops_the_other_side_s_writes() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut streams = serve_here(&bob).await;
    let (_send, recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut at_bob = given(&mut streams).await;
    drop(recv);
    let stopped = within(SOON, "the stop", async {
        loop {
            if let Err(error) = at_bob.send.write_all(&[0; 1000]).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(stopped.await, StreamError::Reset(Code::Cancelled));
}

#[tokio::test]
async fn a_code_of_the_app_s_choice_reaches_the_other_side() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut streams = serve_here(&bob).await;
    let (mut send, mut recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut at_bob = given(&mut streams).await;
    send.reset(Code::TooLarge);
    recv.stop(Code::Idle);
    let end = within(SOON, "the end", at_bob.recv.read(&mut [0])).await;
    assert_eq!(end, Err(StreamError::Reset(Code::TooLarge)));
    let stopped = within(SOON, "the stop", at_bob.send.acknowledged()).await;
    assert_eq!(stopped, Err(StreamError::Reset(Code::Idle)));
}

#[tokio::test]
async fn what_was_given_up_is_not_acknowledged() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut streams = serve_here(&bob).await;
    let (mut send, _recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut at_bob = given(&mut streams).await;
    send.write_all(b"thrown away").await.expect("sent");
    send.reset(Code::TooLarge);
    for _ in 0..2 {
        let given_up = within(SOON, "an answer", send.acknowledged()).await;
        assert_eq!(given_up, Err(StreamError::Finished));
        // At the second time the peer's QUIC has acknowledged the reset.
        let _ = within(SOON, "the end", at_bob.recv.read_to_end(100)).await;
        connect(&alice, &bob).await;
    }
}

#[tokio::test]
async fn more_than_the_reader_s_limit_is_an_error_and_stops_the_stream() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
    send.write_all(&[1; 101]).await.expect("sent");
    send.finish().expect("finished once");
    let end = within(SOON, "the end", recv.read_to_end(100)).await;
    assert_eq!(end, Err(StreamError::TooLarge));
}

#[tokio::test]
async fn a_writer_waits_for_a_reader_that_does_not_read() {
    let window = 100_000;
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.stream_window = window).await;
    let mut streams = serve_here(&bob).await;
    let (mut send, _recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut at_bob = given(&mut streams).await;
    let whole = vec![5; 3 * usize::try_from(window).expect("small")];
    {
        let mut writing = std::pin::pin!(send.write_all(&whole));
        tokio::time::timeout(ms(300), &mut writing).await.expect_err("the window is full");
        let reading = async {
            let mut received = vec![0; whole.len()];
            at_bob.recv.read_exact(&mut received).await.expect("received");
            received
        };
        let both = async { tokio::join!(writing, reading) };
        let (written, received) = within(SOON, "the rest", both).await;
        written.expect("sent");
        assert!(received == whole);
    }
}

#[tokio::test]
async fn a_sender_that_outlives_its_handler_and_is_dropped_unfinished_is_no_clean_end() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (pass_on, mut passed_on) = mpsc::unbounded_channel();
    let service = Service::stream(move |stream| {
        let _ = pass_on.send(stream.send);
        async { Ok(()) }
    });
    bob.serve(TASK, service).await.expect("a new protocol");
    let (_send, mut recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let mut send = within(SOON, "the sender", passed_on.recv()).await.expect("passed on");
    eventually(SOON, "the handler has returned", async || {
        bob.metrics().await.expect("up").protocols["task/1"].active == 0
    })
    .await;
    send.write_all(b"half").await.expect("the stream is open");
    drop(send);
    let end = within(SOON, "the end", recv.read_to_end(100)).await;
    assert_eq!(end, Err(StreamError::Reset(Code::Cancelled)));
}
