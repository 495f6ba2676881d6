//! Neighbours: a few peers with whom a node keeps a session, as those that announcements go to.

use super::*;

impl World {
    /// The neighbours of a node. What was parted from it is lost.
    pub(super) fn neighbours(&mut self, number: usize) -> Vec<usize> {
        let peers: Vec<_> = self.nodes[number].neighbours.iter().copied().collect();
        for peer in peers {
            if !self.is_joined(number, peer) {
                self.end_session(ordered(number, peer));
            }
        }
        self.nodes[number].neighbours.iter().copied().collect()
    }

    /// A node that lacks neighbours asks some that it knows.
    pub(super) fn look_for_neighbours(&mut self, number: usize) {
        let has = self.neighbours(number).len();
        let lacking = if self.has_neighbours { NEIGHBOURS_WANTED.saturating_sub(has) } else { 0 };
        for _ in 0..lacking {
            let mut place = [0; 32];
            self.rng.fill_bytes(&mut place);
            let known = self.nodes[number].catalog.known();
            let peer = known.iter_from(&place).next().map(|entry| entry.id());
            if let Some(peer) = peer.and_then(|peer| self.numbers.get(&peer).copied()) {
                self.ask_to_join(number, peer);
            }
        }
    }

    fn ask_to_join(&mut self, number: usize, peer: usize) {
        let life = self.nodes[number].life;
        let at = self.now + 2 * self.flight(number, peer);
        self.queue.enter(at, Event::Join { node: number, life, peer });
    }

    /// A node has come to this one. If it has enough neighbours, it sends the other on to one of these.
    pub(super) fn join(&mut self, number: usize, peer: usize) {
        let is_possible = number != peer
            && self.answers(number, peer, self.nodes[peer].id)
            && !self.nodes[number].neighbours.contains(&peer);
        if !is_possible || self.neighbours(number).len() >= NEIGHBOURS_WANTED {
            return;
        }
        let others = self.neighbours(peer);
        if others.len() < NEIGHBOURS_MOST {
            self.connect(number, peer);
            self.nodes[number].neighbours.insert(peer);
            self.nodes[peer].neighbours.insert(number);
        } else {
            let next = usize::try_from(self.below(others.len() as u64)).unwrap();
            self.ask_to_join(number, others[next]);
        }
    }
}
