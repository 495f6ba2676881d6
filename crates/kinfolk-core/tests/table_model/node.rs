//! A node around the table: it carries out what the table says, and knows what must be true.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iroh_base::{EndpointId, SecretKey};
use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Failure, Intent, IntentId, Outcome, Want};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{Incoming, Input, Linger, LinkEnd, Output, PeerEvent, Why};
use kinfolk_core::peer_table::{Caps, PeerTable};
use kinfolk_core::wire::DEAD_LINKS_MAX;
use proptest::sample::Index;

use super::{Dead, Idle, Op, PEERS};

mod checks;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Dialling,
    Greeting,
    Parked,
    Welcomed,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    peer: EndpointId,
    stage: Stage,
    /// It was told to drain or close.
    ending: bool,
    killed: bool,
    /// The peer said goodbye on it while it was live.
    goodbye: bool,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    peer: EndpointId,
    want: Want,
    deadline: Option<Instant>,
}

/// What the table is being told, as far as it may end intents.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Doing {
    Queueing(IntentId, Option<Outcome>),
    Cancelling(IntentId),
    Disconnecting(EndpointId),
    Ending(EndpointId),
    Other,
}

pub struct Node {
    table: PeerTable,
    me: EndpointId,
    peers: Vec<EndpointId>,
    caps: Caps,
    intents_per_peer: usize,
    now: Instant,
    stamps: u64,
    next_intent: u64,
    last_n: u64,
    /// The last dial of each peer and incarnation.
    dialled: BTreeMap<(EndpointId, u64), u64>,
    arriving: Option<LinkId>,
    shut_down: bool,
    doing: Doing,
    // The model.
    sessions: BTreeMap<LinkId, Session>,
    gone: BTreeSet<LinkId>,
    published: BTreeMap<EndpointId, LinkId>,
    open: BTreeMap<IntentId, Open>,
    /// The owner of the bans keeps them, whatever the table forgets.
    bans: BTreeMap<EndpointId, Instant>,
    idle_asked: Vec<LinkId>,
}

impl Node {
    pub fn new(limits: &Limits) -> Self {
        let id = |n: u8| SecretKey::from_bytes(&[n; 32]).public();
        let mut peers: Vec<EndpointId> = (1..=u8::try_from(PEERS).unwrap()).map(id).collect();
        // Half of the peers have smaller ids, and half larger ones.
        peers.sort();
        let me = peers[PEERS / 2];
        Self {
            table: PeerTable::new(me, Incarnation::new(7), limits, 7),
            me,
            peers,
            caps: Caps::from(limits),
            intents_per_peer: limits.intents_per_peer,
            now: Instant::now(),
            stamps: 1,
            next_intent: 0,
            last_n: 0,
            dialled: BTreeMap::new(),
            arriving: None,
            shut_down: false,
            doing: Doing::Other,
            sessions: BTreeMap::new(),
            gone: BTreeSet::new(),
            published: BTreeMap::new(),
            open: BTreeMap::new(),
            bans: BTreeMap::new(),
            idle_asked: Vec::new(),
        }
    }

    pub fn step(&mut self, op: Op) {
        self.apply(op);
        self.check();
    }

    /// The app gives up everything that it wants.
    pub fn cancel_all(&mut self) {
        while let Some(id) = self.open.keys().next().copied() {
            self.cancel(id);
            self.check();
        }
    }

    /// Time passes until nothing is left, though sessions that are not `polite` end only when they are killed.
    pub fn wind_down(&mut self, polite: bool) {
        for _ in 0..2_000 {
            for link in std::mem::take(&mut self.idle_asked) {
                self.linger(link, Linger::Closed);
            }
            let may_end = |session: &Session| session.killed || (polite && session.ending);
            let ended = self.sessions.iter().find(|(_, session)| may_end(session));
            if let Some(link) = ended.map(|(link, _)| *link) {
                self.end(link, LinkEnd::Closed(Code::Ok));
            } else if self.table.next_timeout().is_some() {
                self.time_out();
            } else {
                break;
            }
            self.check();
        }
        let totals = self.table.totals(self.now);
        assert_eq!(totals, Default::default(), "something is left");
        assert!(self.table.is_empty() && self.table.next_timeout().is_none());
        assert!(self.sessions.is_empty() && self.open.is_empty() && self.published.is_empty());
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Queue { peer, hold, priority, seconds } => {
                let id = IntentId(self.next_intent);
                self.next_intent += 1;
                let want = if hold { Want::Hold } else { Want::Stream };
                let deadline =
                    seconds.filter(|_| !hold).map(|by| self.now + Duration::from_secs(by));
                self.queue(self.peers[peer], Intent { id, want, priority, deadline });
            }
            Op::HoldAgain(at) => {
                let holds = self.open.iter().filter(|(_, open)| open.want == Want::Hold);
                let holds: Vec<_> = holds.map(|(id, open)| (*id, open.peer)).collect();
                let Some((id, peer)) = pick(&holds, at) else { return };
                let (want, priority) = (Want::Hold, Default::default());
                let again = Input::Queue(Intent { id, want, priority, deadline: None });
                assert_eq!(self.ask(peer, again), []);
            }
            Op::Cancel(at) => {
                let all: Vec<_> = (0..self.next_intent).map(IntentId).collect();
                if let Some(id) = pick(&all, at) {
                    self.cancel(id);
                }
            }
            Op::Incoming { peer, life, back, dead, late } => {
                self.arrive(self.peers[peer], life, back, dead, late);
            }
            Op::Connected(at) => {
                if let Some((link, session)) = self.pick_session(at) {
                    self.tell(session.peer, Input::Connected { link });
                }
            }
            Op::Welcomed(at, life) => {
                let Some((link, session)) = self.pick_session(at) else { return };
                if session.stage == Stage::Greeting {
                    self.session(link).stage = Stage::Welcomed;
                }
                let (incarnation, arrival) = (Incarnation::new(life), self.stamp(false));
                self.tell(session.peer, Input::Welcomed { link, incarnation, arrival });
            }
            Op::Goodbye(at, code) => {
                let Some((link, session)) = self.pick_session(at) else { return };
                self.session(link).goodbye |= self.published.get(&session.peer) == Some(&link);
                self.tell(session.peer, Input::Draining { link, code });
            }
            Op::Lingered(at, idle) => {
                let linger = match idle {
                    Idle::Closed => Linger::Closed,
                    Idle::InUse => Linger::InUse,
                    Idle::Used { seconds_ago } => {
                        let ago = Duration::from_secs(seconds_ago);
                        Linger::UsedAt(self.now.checked_sub(ago).unwrap_or(self.now))
                    }
                };
                if let Some((link, _)) = self.pick_session(at) {
                    self.linger(link, linger);
                }
            }
            Op::Ended(at, end) => {
                let Some((link, session)) = self.pick_session(at) else { return };
                let is_dial = session.stage == Stage::Dialling;
                if is_dial || !matches!(end, LinkEnd::DialFailed(_)) {
                    self.end(link, end);
                }
            }
            Op::Stale(at, end) => {
                let gone: Vec<LinkId> = self.gone.iter().copied().collect();
                let Some(link) = pick(&gone, at) else { return };
                let peers = self.peers.clone();
                for peer in peers {
                    let code = Code::Ok;
                    assert_eq!(self.ask(peer, Input::Connected { link }), []);
                    assert_eq!(self.ask(peer, Input::Draining { link, code }), []);
                    assert_eq!(self.ask(peer, Input::Ended { link, end }), []);
                }
            }
            Op::AddressNews(peer) => self.tell(self.peers[peer], Input::AddressNews),
            Op::NetworkNews => {
                let mut told = Vec::new();
                self.table.network_news(self.now, &mut told);
                self.carry_out(told);
            }
            Op::Disconnect(peer) => {
                let peer = self.peers[peer];
                self.doing = Doing::Disconnecting(peer);
                self.tell(peer, Input::Disconnect);
                assert_eq!(self.open_at(&peer), 0);
            }
            Op::Ban(peer, seconds) => {
                let peer = self.peers[peer];
                let until = self.now + Duration::from_secs(seconds);
                self.tell(peer, Input::Ban { until });
                assert_eq!(self.bans.get(&peer), Some(&until));
                assert_eq!(self.open_at(&peer), 0);
            }
            Op::Unban(peer) => {
                let peer = self.peers[peer];
                self.tell(peer, Input::Unban);
                self.bans.remove(&peer);
            }
            Op::Sleep(ms) => self.now += Duration::from_millis(ms),
            Op::Timeout => self.time_out(),
            Op::Shutdown => {
                self.shut_down = true;
                let mut told = Vec::new();
                self.table.shut_down(self.now, &mut told);
                self.carry_out(told);
                assert!(self.open.is_empty());
            }
        }
    }

    // What the node tells the table

    fn ask(&mut self, peer: EndpointId, input: Input) -> Vec<(EndpointId, Output)> {
        let mut told = Vec::new();
        self.table.handle(self.now, peer, input, &mut told);
        told
    }

    fn tell(&mut self, peer: EndpointId, input: Input) {
        let told = self.ask(peer, input);
        self.carry_out(told);
    }

    /// The table may have forgotten a ban, and is told it again before it matters.
    fn remind_of_ban(&mut self, peer: EndpointId) {
        if let Some(until) = self.bans.get(&peer).copied()
            && !self.table.is_banned(&peer)
        {
            self.tell(peer, Input::Ban { until });
        }
    }

    fn queue(&mut self, peer: EndpointId, intent: Intent) {
        self.remind_of_ban(peer);
        let id = intent.id;
        let refusal = self.refusal(&peer);
        self.doing = Doing::Queueing(id, refusal);
        let open = Open { peer, want: intent.want, deadline: intent.deadline };
        self.open.insert(id, open);
        self.tell(peer, Input::Queue(intent));
        assert!(refusal.is_none() || !self.open.contains_key(&id), "{refusal:?} was expected");
    }

    /// How one more intent for this peer has to end at once, if it has to.
    fn refusal(&self, peer: &EndpointId) -> Option<Outcome> {
        if self.shut_down {
            Some(Outcome::ShuttingDown)
        } else if self.open.len() >= self.caps.intents {
            Some(Outcome::Failed(Failure::QueueFull))
        } else if self.is_full_for(peer) {
            Some(Outcome::Failed(Failure::TooManyPeers))
        } else if self.bans.contains_key(peer) {
            Some(Outcome::Banned)
        } else if *peer == self.me {
            Some(Outcome::Failed(Failure::SelfDial))
        } else if self.open_at(peer) >= self.intents_per_peer {
            Some(Outcome::Failed(Failure::QueueFull))
        } else {
            None
        }
    }

    /// Whether the table can neither take the peer nor forget another: each has a session or is wanted.
    fn is_full_for(&self, peer: &EndpointId) -> bool {
        let known = |peer: &&EndpointId| self.why(peer).is_some();
        let is_needed = |peer: &EndpointId| {
            self.open_at(peer) > 0 || self.sessions.values().any(|session| session.peer == *peer)
        };
        let mut all = self.peers.iter().filter(known);
        !known(&peer)
            && self.peers.iter().filter(known).count() >= self.caps.peers
            && all.all(is_needed)
    }

    fn cancel(&mut self, id: IntentId) {
        self.doing = Doing::Cancelling(id);
        let mut told = Vec::new();
        self.table.cancel(self.now, id, &mut told);
        self.carry_out(told);
        assert!(!self.open.contains_key(&id));
    }

    fn arrive(&mut self, peer: EndpointId, life: u64, back: u64, dead: Dead, late: bool) {
        // Accept turns away whoever has our own key.
        if peer == self.me {
            return;
        }
        self.remind_of_ban(peer);
        let last = self.dialled.entry((peer, life)).or_default();
        let n = (*last + 1).saturating_sub(back).max(1);
        *last = n.max(*last);
        let link = LinkId { dialler: peer, incarnation: Incarnation::new(life), n };
        let dead = match dead {
            Dead::Nothing => vec![],
            Dead::Live => self.published.get(&peer).copied().into_iter().collect(),
            Dead::All => {
                let own = self.sessions.iter().filter(|(_, session)| session.peer == peer);
                own.map(|(link, _)| *link).take(DEAD_LINKS_MAX).collect()
            }
        };
        let incoming = Incoming { link, dead, arrival: self.stamp(late) };
        let may_enter = !self.shut_down && !self.bans.contains_key(&peer);
        self.arriving = Some(link);
        let sessions = self.sessions.len();
        // Whether there is room is for the table to say.
        self.tell(peer, Input::Incoming { incoming, room: true });
        assert_eq!(self.arriving, None, "the link was neither taken nor refused");
        assert!(may_enter || self.sessions.len() == sessions, "{link} had to be refused");
    }

    fn linger(&mut self, link: LinkId, linger: Linger) {
        if let Some(session) = self.sessions.get(&link) {
            self.tell(session.peer, Input::Lingered { link, linger });
        }
    }

    fn end(&mut self, link: LinkId, end: LinkEnd) {
        let session = self.sessions.remove(&link).unwrap();
        self.gone.insert(link);
        self.doing = Doing::Ending(session.peer);
        self.tell(session.peer, Input::Ended { link, end });
    }

    fn time_out(&mut self) {
        self.now = self.table.next_timeout().map_or(self.now, |at| at.max(self.now));
        let mut told = Vec::new();
        self.table.handle_timeout(self.now, &mut told);
        self.carry_out(told);
        let now = self.now;
        self.bans.retain(|_, until| *until > now);
        let late = |open: &Open| open.deadline.is_some_and(|at| at <= now);
        assert!(!self.open.values().any(late), "an intent outlived its deadline");
        assert!(self.table.next_timeout().is_none_or(|next| next > now), "time stands still");
    }

    // What the table tells the node

    fn carry_out(&mut self, told: Vec<(EndpointId, Output)>) {
        for (peer, output) in told {
            self.carry_out_one(peer, output);
        }
        self.doing = Doing::Other;
    }

    fn carry_out_one(&mut self, peer: EndpointId, output: Output) {
        let is_welcome = !self.shut_down && !self.bans.contains_key(&peer);
        match output {
            Output::WantDial | Output::Forget => panic!("{output:?} is the table's own"),
            Output::Dial(link) => {
                assert!(is_welcome && link.dialler == self.me && link.n > self.last_n);
                self.last_n = link.n;
                self.start(peer, link, Stage::Dialling);
            }
            Output::Greet(link, dead) => {
                assert!(dead.len() <= DEAD_LINKS_MAX && !dead.contains(&link));
                assert_eq!(self.session(link).stage, Stage::Dialling);
                self.session(link).stage = Stage::Greeting;
            }
            Output::Admit(link) => {
                assert_eq!(self.arriving.take(), Some(link));
                self.start(peer, link, Stage::Welcomed);
            }
            Output::Park(link) => {
                assert_eq!(self.arriving.take(), Some(link));
                self.start(peer, link, Stage::Parked);
            }
            Output::Refuse(link, _) => assert_eq!(self.arriving.take(), Some(link)),
            Output::Welcome(link) => {
                assert_eq!(self.session(link).stage, Stage::Parked);
                self.session(link).stage = Stage::Welcomed;
            }
            Output::Publish(link) => {
                assert!(is_welcome && self.session(link).stage == Stage::Welcomed);
                assert_eq!(self.published.insert(peer, link), None);
            }
            Output::Unpublish(link) => assert_eq!(self.published.remove(&peer), Some(link)),
            Output::Keep(link, _) => assert_eq!(self.published.get(&peer), Some(&link)),
            Output::CloseIfIdle(link, _) => {
                assert_eq!(self.published.get(&peer), Some(&link));
                self.idle_asked.push(link);
            }
            Output::Drain(link, ..) | Output::Close(link, _) => self.session(link).ending = true,
            Output::Kill(link) => {
                self.session(link).ending = true;
                self.session(link).killed = true;
            }
            Output::Hand(link, id) => {
                let open = self.open.remove(&id).expect("an intent is handed over while it waits");
                assert!(is_welcome && open.peer == peer && open.want == Want::Stream);
                let is_greeting = self.session(link).stage == Stage::Greeting;
                assert!(is_greeting || self.published.get(&peer) == Some(&link));
                assert!(!self.session(link).ending);
            }
            Output::End(id, outcome, _) => {
                let open = self.open.remove(&id).expect("an intent ends once");
                assert_eq!(open.peer, peer);
                self.check_outcome(id, &open, outcome);
            }
            Output::Event(PeerEvent::Banned(until)) => {
                self.bans.insert(peer, until);
            }
            Output::Event(PeerEvent::Unbanned) => {
                self.bans.remove(&peer);
            }
            Output::Event(_) => {}
        }
    }

    // Small things

    fn start(&mut self, peer: EndpointId, link: LinkId, stage: Stage) {
        self.gone.remove(&link);
        let session = Session { peer, stage, ending: false, killed: false, goodbye: false };
        assert!(self.sessions.insert(link, session).is_none(), "{link} has a session");
    }

    fn session(&mut self, link: LinkId) -> &mut Session {
        self.sessions.get_mut(&link).expect("the table speaks of sessions that exist")
    }

    fn pick_session(&self, at: Index) -> Option<(LinkId, Session)> {
        let all: Vec<_> = self.sessions.iter().map(|(link, session)| (*link, *session)).collect();
        pick(&all, at)
    }

    fn open_at(&self, peer: &EndpointId) -> usize {
        self.open.values().filter(|open| open.peer == *peer).count()
    }

    fn why(&self, peer: &EndpointId) -> Option<Why> {
        self.table.why(self.now, peer)
    }

    /// Stamps differ; a late one is older than some that were given before.
    fn stamp(&mut self, late: bool) -> u64 {
        self.stamps += 2;
        if late { self.stamps.saturating_sub(5) } else { self.stamps }
    }
}

fn pick<T: Copy>(all: &[T], at: Index) -> Option<T> {
    (!all.is_empty()).then(|| *at.get(all))
}
