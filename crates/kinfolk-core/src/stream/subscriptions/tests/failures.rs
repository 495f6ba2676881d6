//! Failures that streams of this kind were seen to have elsewhere, one test for each that this machine decides.

use super::*;

#[test]
fn a_late_end_of_an_old_link_does_not_remove_the_new_one() {
    let mut scene = Scene::new();
    let old = scene.connected();
    scene.lose(old);
    let new = scene.wait().1.attempt;
    scene.say(Input::Accepted { attempt: new });
    for late in [
        Input::Lost { attempt: old, resume: resume(1) },
        Input::Ended { attempt: old, end: StreamEnd::Finished, resume: None },
        Input::Refused { attempt: old, refusal: Refusal::NotAllowed },
        Input::Accepted { attempt: old },
        Input::Poisoned { attempt: old, resume: resume(1) },
        Input::Misbehaved { attempt: old },
    ] {
        assert_eq!(scene.say(late), []);
        assert_eq!(scene.said, []);
    }
    assert_eq!(scene.state(1), Some(SourceState::Connected));
}

#[test]
fn there_are_never_two_subscriptions_with_one_producer() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.withdraw(1, Withdrawal::Gone);
    assert_eq!(scene.offer(1, 2), []);
    scene.withdraw(1, Withdrawal::NotOffered);
    assert_eq!(scene.offer(1, 3), []);
    scene.lose(attempt);
    assert_eq!(scene.offer(1, 4), []);
    assert_eq!(scene.pass(HOUR).len(), 1);
    assert_eq!(scene.subscriptions.placed(), 1);
}

#[test]
fn a_refused_consumer_does_not_dial_at_each_change_of_the_catalog() {
    let mut scene = Scene::new();
    let attempt = scene.connecting();
    scene.refuse(attempt, Refusal::NotAllowed);
    let mut dials = 0;
    for change in 0..25 * 60 {
        let why = [Withdrawal::Gone, Withdrawal::NotWanted][change % 2];
        if change % 5 == 0 {
            scene.withdraw(1, why);
        }
        for connect in scene.offer(1, u64::try_from(change).unwrap()) {
            dials += 1;
            scene.refuse(connect.attempt, Refusal::NotAllowed);
        }
        for connect in scene.pass(MINUTE / 25) {
            dials += 1;
            scene.refuse(connect.attempt, Refusal::NotAllowed);
        }
    }
    assert!(dials <= 6, "{dials} in an hour");
}

#[test]
fn a_stream_of_another_schema_is_an_end_with_a_reason_and_no_panic() {
    let mut scene = Scene::new();
    let attempt = scene.connecting();
    scene.refuse(attempt, another_schema());
    let state = SourceState::Terminated(Termination::Refused(another_schema()));
    assert_eq!(scene.state(1), Some(state));
}

#[test]
fn a_quiet_stream_that_lasted_returns_at_once_however_often_it_is_lost() {
    let mut scene = Scene::new();
    let mut attempt = scene.connected();
    for _ in 0..1_000 {
        // No item ever comes.
        scene.pass(HOUR);
        scene.lose(attempt);
        let (waited, again) = scene.wait();
        assert!(waited <= JITTER, "{waited:?}");
        attempt = again.attempt;
        scene.say(Input::Accepted { attempt });
    }
}

#[test]
fn the_time_in_which_a_stream_flowed_does_not_use_up_its_returns() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.pass(100 * HOUR);
    scene.lose(attempt);
    let mut attempt = scene.wait().1.attempt;
    for _ in 0..1_000 {
        scene.lose(attempt);
        let (waited, again) = scene.wait();
        assert!(waited <= MINUTE, "{waited:?}");
        attempt = again.attempt;
    }
}

#[test]
fn a_stream_that_breaks_off_again_and_again_is_not_asked_for_in_a_loop() {
    let mut scene = Scene::new();
    let mut attempt = scene.connected();
    let (start, mut tries) = (scene.now, 0);
    while scene.now < start + HOUR {
        scene.lose(attempt);
        attempt = scene.wait().1.attempt;
        scene.say(Input::Accepted { attempt });
        tries += 1;
    }
    assert!(tries < 150, "{tries} in an hour");
}

#[test]
fn a_peer_whose_record_goes_and_comes_back_keeps_its_flowing_stream() {
    for why in [Withdrawal::Gone, Withdrawal::NotOffered] {
        let mut scene = Scene::new();
        let attempt = scene.connected();
        scene.withdraw(1, why);
        assert_eq!(scene.pass(HOUR), []);
        scene.offer(1, 2);
        assert_eq!((scene.said.len(), scene.state(1)), (0, Some(SourceState::Connected)));
        // And it is tried again when it is lost, as if nothing had been.
        scene.lose(attempt);
        assert!(scene.wait().0 <= JITTER);
    }
}

#[test]
fn a_producer_that_restarts_is_tried_as_soon_as_its_record_is_there() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.pass(MINUTE);
    scene.lose(attempt);
    // It is still away when it is tried at once.
    let attempt = scene.wait().1.attempt;
    scene.lose(attempt);
    scene.pass(BOUNDS[0] / 2);
    let waited = match scene.offer(1, 2).len() {
        0 => scene.wait().0,
        _ => Duration::ZERO,
    };
    assert!(waited <= BOUNDS[0] / 2, "{waited:?}");
}

#[test]
fn an_offer_during_an_attempt_is_not_lost() {
    // The wake-up comes while the attempt that fails is under way, in each way in which it can.
    type Fail = fn(&mut Scene, Attempt) -> Vec<Connect>;
    let fails: [Fail; 3] = [
        |scene, attempt| scene.lose(attempt),
        |scene, attempt| scene.refuse(attempt, Refusal::NoSuchStream),
        |scene, attempt| scene.end(attempt, StreamEnd::Finished),
    ];
    for fail in fails {
        let mut scene = Scene::new();
        let attempt = scene.connecting();
        scene.withdraw(1, Withdrawal::Gone);
        scene.offer(1, 2);
        fail(&mut scene, attempt);
        let (waited, _) = scene.wait();
        assert!(waited <= BOUNDS[0], "{waited:?}");
    }
}
