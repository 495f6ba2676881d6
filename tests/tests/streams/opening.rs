//! Opening, and how an open is answered.

use std::time::Duration;

use kinfolk::error::OpenError;
use kinfolk::{Code, Failure, Incoming, Options, ProtocolName, Service};
use kinfolk_core::wire::{Answer, StreamMode};
use kinfolk_tests::support::host::{Asked, Dialled, Host};
use kinfolk_tests::support::node::{ECHO, link, node};
use kinfolk_tests::support::wait::within;
use tokio::task::JoinSet;

use crate::scene::{SOON, TASK, echoes, ms, open, refusal};

#[tokio::test]
async fn an_open_returns_once_the_peer_has_acknowledged_it_and_not_before() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let mut opening = tokio::spawn(async move { alice.open(address, ECHO).await });
    let dialled = host.welcomed().await;
    let mut asked = dialled.stream().await;
    assert_eq!(asked.header.mode, StreamMode::Acked);
    tokio::time::timeout(ms(200), &mut opening).await.expect_err("nothing is acknowledged");
    asked.answer(Answer::Ack).await;
    within(SOON, "the open", opening).await.expect("no panic").expect("opened");
}

#[tokio::test]
async fn opens_one_after_the_other_use_the_same_link() {
    let (alice, bob) = (node(1).await, node(2).await);
    for _ in 0..10 {
        let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
        echoes(&mut send, &mut recv, b"hello").await;
    }
    assert_eq!(alice.metrics().await.expect("up").dials_started, 1);
}

#[tokio::test]
async fn a_protocol_that_the_peer_does_not_serve_is_refused_on_its_stream_alone() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
    let before = link(&alice, bob.id()).await;
    let refused = refusal(open(&alice, bob.id(), TASK).await);
    assert_eq!(refused, OpenError::Refused(Code::UnknownProtocol));
    echoes(&mut send, &mut recv, b"still here").await;
    assert_eq!(link(&alice, bob.id()).await, before);
    let counted = bob.metrics().await.expect("up").streams_refused;
    assert_eq!(counted.get("unknown_protocol"), Some(&1));
}

/// Lets a host take a stream for what the test makes of it, and acknowledge one before and one after it, all on one link.
async fn asked_of_a_host(
    deadline: Duration,
    reply: impl AsyncFnOnce(Asked) -> Option<Asked>,
) -> OpenError {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let id = host.id();
    alice.add_address(host.addr()).expect("an address");
    let first = async {
        let dialled = host.welcomed().await;
        acknowledged(&dialled).await;
        dialled
    };
    let both = async { tokio::join!(open(&alice, id, ECHO), first) };
    let (opened, dialled) = within(SOON, "the first open", both).await;
    opened.expect("opened");

    let opening = alice.open_with(id, TASK, Options::new().deadline(deadline));
    let answering = async { reply(dialled.stream().await).await };
    let both = async { tokio::join!(opening, answering) };
    let (asked, _kept) = within(SOON, "both", both).await;

    let both = async { tokio::join!(open(&alice, id, ECHO), acknowledged(&dialled)) };
    let (opened, _asked) = within(SOON, "the last open", both).await;
    opened.expect("the link lives on");
    assert_eq!(alice.metrics().await.expect("up").dials_started, 1);
    refusal(asked)
}

async fn acknowledged(dialled: &Dialled) -> Asked {
    let mut asked = dialled.stream().await;
    asked.answer(Answer::Ack).await;
    asked
}

#[tokio::test]
async fn an_answer_that_never_comes_ends_the_open_at_its_deadline_and_nothing_else() {
    let ended = asked_of_a_host(ms(1000), async |asked| Some(asked)).await;
    assert_eq!(ended, OpenError::TimedOut { cause: None });
}

#[tokio::test]
async fn a_refusal_ends_the_open_with_its_code_and_nothing_else() {
    let refuse = async |mut asked: Asked| {
        asked.answer(Answer::Refuse(Code::NotAllowed)).await;
        Some(asked)
    };
    assert_eq!(asked_of_a_host(SOON, refuse).await, OpenError::Refused(Code::NotAllowed));
}

#[tokio::test]
async fn a_reset_instead_of_an_answer_ends_the_open_with_its_code_and_nothing_else() {
    let reset = async |mut asked: Asked| {
        asked.send.reset(u32::from(Code::Internal.to_wire()).into()).expect("open");
        Some(asked)
    };
    let failure = Failure::Reset(Code::Internal);
    assert_eq!(asked_of_a_host(SOON, reset).await, OpenError::Failed { failure, cause: None });
}

#[tokio::test]
async fn a_reset_whose_code_promises_that_nothing_was_served_counts_as_a_refusal() {
    let reset = async |mut asked: Asked| {
        asked.send.reset(u32::from(Code::Busy.to_wire()).into()).expect("open");
        Some(asked)
    };
    assert_eq!(asked_of_a_host(SOON, reset).await, OpenError::Refused(Code::Busy));
}

#[tokio::test]
async fn an_end_instead_of_an_answer_ends_the_open_as_malformed_and_nothing_else() {
    let end = async |mut asked: Asked| {
        asked.send.finish().expect("open");
        Some(asked)
    };
    let failure = Failure::Reset(Code::Malformed);
    assert_eq!(asked_of_a_host(SOON, end).await, OpenError::Failed { failure, cause: None });
}

#[tokio::test]
async fn an_unanswered_open_delays_no_other_open_to_the_same_peer() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let first = {
        let (alice, address) = (alice.clone(), address.clone());
        tokio::spawn(async move { alice.open(address, TASK).await })
    };
    let dialled = host.welcomed().await;
    let _unanswered = dialled.stream().await;
    let answering = async { dialled.stream().await.answer(Answer::Ack).await };
    let both = async { tokio::join!(alice.open(address, ECHO), answering) };
    let (second, ()) = within(ms(1000), "the second open", both).await;
    second.expect("opened");
    assert!(!first.is_finished());
}

#[tokio::test]
async fn many_protocols_share_a_link_and_each_stream_reaches_its_own() {
    let (alice, bob) = (node(1).await, node(2).await);
    let names: Vec<ProtocolName> = (0..20)
        .map(|number| ProtocolName::new(format!("letter/{number}")).expect("a valid name"))
        .collect();
    for name in &names {
        let service = Service::stream(|mut stream: Incoming| async move {
            let name = stream.protocol.to_string();
            stream.send.write_all(name.as_bytes()).await?;
            stream.send.finish()?;
            Ok(())
        });
        bob.serve(name.clone(), service).await.expect("a new protocol");
    }
    let mut asks = JoinSet::new();
    for name in names {
        let (alice, address) = (alice.clone(), bob.addr());
        asks.spawn(async move {
            let (_send, mut recv) = alice.open(address, name.clone()).await.expect("opened");
            let said = recv.read_to_end(100).await.expect("received");
            assert_eq!(said, name.to_string().as_bytes());
        });
    }
    within(SOON, "all answers", asks.join_all()).await;
    assert_eq!(alice.metrics().await.expect("up").dials_started, 1);
}
