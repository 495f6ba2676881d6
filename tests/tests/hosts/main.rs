//! Two hosts with networks of their own, a cable between them, and what happens to cables and addresses: sessions come back without the
//! app's help.
//!
//! The hosts are network namespaces, for which a test needs root, `ip`, `unshare` and `nsenter`; where they cannot be had it says so and
//! passes. Recovery is watched by asking only for what a live session carries, so that no question helps a dial along; the calls at the
//! end are for the answer. Each test prints how long its recovery took.

mod host;
mod resident;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use kinfolk_tests::support::wait::eventually;

use host::Host;

/// A session that is silent for this long is over, unless a test says otherwise.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long anything may take that waits for nothing but a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// How long a session may take to be back once the hosts can reach each other again, the time until its loss is noticed not counted: the
/// first three waits before a dial are at most 1, 5 and 15 s long, and a dial in vain takes 2 s.
const RECOVERY: Duration = Duration::from_secs(30);

/// How long it may take at most until a hold has made use of its host's new address.
const NEWS: Duration = Duration::from_secs(6);

const ALICE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const BOB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const BOB_ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);

/// Two hosts whose nodes have a session.
struct Neighbours {
    alice: Host,
    bob: Host,
    /// The link that was live when the test began.
    link: String,
}

/// Who holds whom.
#[derive(PartialEq)]
enum Holds {
    Both,
    OnlyAlice,
    OnlyBob,
}

impl Neighbours {
    /// `None` if there can be no hosts here, which is said.
    async fn new(idle_timeout: Duration, holds: Holds) -> Option<Self> {
        if !Host::can_boot() {
            return None;
        }
        let (mut alice, mut bob) = (Host::boot(1).await, Host::boot(2).await);
        Host::join(&alice, ALICE, &bob, BOB);
        alice.start(idle_timeout, &bob).await;
        bob.start(idle_timeout, &alice).await;
        if holds != Holds::OnlyBob {
            alice.hold(&bob, BOB).await;
        }
        if holds != Holds::OnlyAlice {
            bob.hold(&alice, ALICE).await;
        }
        let link = alice.up(SOON).await;
        assert_eq!(bob.up(SOON).await, link);
        let mut neighbours = Self { alice, bob, link };
        neighbours.call_each_other().await;
        Some(neighbours)
    }

    async fn reach_each_other(&mut self) -> bool {
        self.alice.reaches(&self.bob).await && self.bob.reaches(&self.alice).await
    }

    async fn call_each_other(&mut self) {
        self.alice.call(&self.bob, SOON).await;
        self.bob.call(&self.alice, SOON).await;
    }

    /// Waits until the session carries streams both ways, after what was just done to the network; then each calls the other.
    async fn recover(&mut self, deadline: Duration) {
        let since = Instant::now();
        eventually(deadline, "the session is back", async || self.reach_each_other().await).await;
        let link = self.alice.up(SOON).await;
        let way = if link == self.link { "over the old link" } else { "over a new link" };
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        println!("{test}: back after {:?}, {way}", since.elapsed());
        self.call_each_other().await;
        // News of the session may come later than what it carries.
        let (alice, bob) = (&self.alice, &self.bob);
        let is_shared = || alice.link().is_some() && alice.link() == bob.link();
        eventually(SOON, "one link for both", async || is_shared()).await;
    }

    /// Waits until Bob's node knows these addresses of its host, and no others.
    async fn bob_has(&mut self, addresses: &[Ipv4Addr]) {
        let bob = &mut self.bob;
        eventually(SOON, "known addresses", async || bob.addresses().await == addresses).await;
    }

    /// Bob's host, which has a gateway, gets another address in place of its own; nobody tells Alice.
    fn move_bob(&self) {
        self.bob.route_all();
        self.bob.remove_address(BOB, 24);
        self.bob.add_address(BOB_ELSEWHERE, 24);
        // The route has gone with the last address.
        self.bob.route_all();
    }
}

#[tokio::test]
async fn a_cable_that_is_unplugged_for_less_than_the_idle_timeout_ends_no_session() {
    let Some(mut pair) = Neighbours::new(Duration::from_secs(5), Holds::Both).await else { return };
    pair.alice.unplug();
    // The outage itself; nothing is waited for.
    tokio::time::sleep(Duration::from_secs(1)).await;
    pair.alice.plug_in();
    pair.recover(SOON).await;
    // After a link that was lost there would be another one.
    assert_eq!(pair.alice.link(), Some(pair.link));
}

#[tokio::test]
async fn a_session_that_an_unplugged_cable_has_ended_is_dialled_anew_once_it_is_plugged_in() {
    let Some(mut pair) = Neighbours::new(IDLE_TIMEOUT, Holds::Both).await else { return };
    pair.alice.unplug();
    for host in [&mut pair.alice, &mut pair.bob] {
        host.down(IDLE_TIMEOUT + SOON).await;
    }
    // Long enough that both holds have dialled in vain, and wait for their next attempt.
    for host in [&mut pair.alice, &mut pair.bob] {
        let before = host.dials_failed().await;
        eventually(SOON, "a dial in vain", async || host.dials_failed().await > before).await;
    }
    pair.alice.plug_in();
    pair.recover(RECOVERY).await;
    assert_ne!(pair.alice.link(), Some(pair.link));
}

#[tokio::test]
async fn a_host_that_gets_another_address_keeps_its_session_or_has_a_new_one() {
    let Some(mut pair) = Neighbours::new(IDLE_TIMEOUT, Holds::Both).await else { return };
    pair.move_bob();
    // iroh sees the change and tells the new address to Alice over the session. It often goes on over a path from there; but where iroh
    // takes the dead path for the faster one, the session ends by its idle timeout, and the holds dial.
    pair.recover(IDLE_TIMEOUT + RECOVERY).await;
    pair.bob_has(&[BOB_ELSEWHERE]).await;
}

#[tokio::test]
async fn a_host_that_comes_back_with_another_address_dials_the_one_that_it_holds() {
    let Some(mut pair) = Neighbours::new(IDLE_TIMEOUT, Holds::OnlyBob).await else { return };
    pair.bob.remove_address(BOB, 24);
    for host in [&mut pair.alice, &mut pair.bob] {
        host.down(IDLE_TIMEOUT + SOON).await;
    }
    // Three dials in vain: the next one is up to 15 s away, and no less than 7.5 s.
    let bob = &mut pair.bob;
    eventually(RECOVERY, "dials in vain", async || bob.dials_failed().await >= 3).await;
    pair.bob.add_address(BOB_ELSEWHERE, 24);
    // Nobody has the address any more that Alice knows, and no session has told her another one; but Bob knows hers, and dials as soon as
    // he has an address himself.
    pair.recover(NEWS).await;
    assert_ne!(pair.bob.link().as_ref(), Some(&pair.link));
    pair.bob_has(&[BOB_ELSEWHERE]).await;
}

/// What a node ends with when its host has lost the only address that it listens at.
const LOST: &str = "it failed: the endpoint has ended, as its sockets are gone";

/// A host with an address, and the one at the other end of its cable.
async fn host_with_one_address() -> Option<(Host, Host)> {
    if !Host::can_boot() {
        return None;
    }
    let (alice, bob) = (Host::boot(1).await, Host::boot(2).await);
    Host::join(&alice, ALICE, &bob, BOB);
    Some((alice, bob))
}

#[tokio::test]
async fn a_node_that_has_lost_the_only_address_it_listens_at_ends_and_says_why() {
    let Some((mut alice, _bob)) = host_with_one_address().await else { return };
    // It has nothing to send, and nobody to dial: iroh tries its sockets by itself, at most 6 s after the change where there is no gateway.
    alice.start_at(ALICE, IDLE_TIMEOUT).await;
    alice.remove_address(ALICE, 24);
    assert_eq!(alice.closed().await, LOST);
}

#[tokio::test]
async fn a_node_that_loses_its_only_address_while_it_starts_ends_and_says_why() {
    let Some((mut alice, _bob)) = host_with_one_address().await else { return };
    alice.start_and_lose(ALICE).await;
    assert_eq!(alice.closed().await, LOST);
}

#[tokio::test]
async fn a_host_that_holds_nobody_is_found_at_another_address_by_the_one_that_holds_it() {
    // Time enough for Bob's host to tell Alice's of the new address, as nothing but the session can.
    let idle_timeout = Duration::from_secs(5);
    let Some(mut pair) = Neighbours::new(idle_timeout, Holds::OnlyAlice).await else { return };
    pair.move_bob();
    // If the session does not go on from there: iroh remembers for a minute what a peer has told, and Alice's hold dials that too.
    pair.recover(idle_timeout + RECOVERY).await;
    pair.bob_has(&[BOB_ELSEWHERE]).await;
}

#[tokio::test]
async fn a_host_that_loses_the_address_in_use_goes_on_from_its_other_one() {
    let Some(mut pair) = Neighbours::new(IDLE_TIMEOUT, Holds::Both).await else { return };
    pair.bob.route_all();
    // In a network of another size, or it would go with the first one.
    pair.bob.add_address(BOB_ELSEWHERE, 25);
    pair.bob_has(&[BOB, BOB_ELSEWHERE]).await;
    assert_eq!(pair.alice.link().as_ref(), Some(&pair.link));
    pair.bob.remove_address(BOB, 24);
    // As with an address in place of the first: over a path from the other one, or over a new session after the idle timeout. It may be
    // that the session has gone over to the other address before.
    pair.recover(IDLE_TIMEOUT + RECOVERY).await;
    pair.bob_has(&[BOB_ELSEWHERE]).await;
}
