//! The places for exchanges that peers open: who gives up its own when all are taken and another peer asks.
//!
//! It goes by time alone. A peer chooses how many bytes it sends and when, so that who holds a place to keep others out could always be
//! the one that seems to do most. An exchange that has to make room is not lost: what came of it is kept, and the next goes on.

use std::time::{Duration, Instant};

/// How long a peer may be silent and keep its place when others want it: an answer takes a round trip and some milliseconds (a guess).
const SILENCE: Duration = Duration::from_secs(2);

/// How long an exchange keeps its place whatever its peer says: most take less than a second, and one that hands over a whole catalog some
/// seconds (a guess). So those who always have something to say cannot keep others out for as long as an exchange may take.
const TENURE: Duration = Duration::from_secs(5);

/// A place that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// When its exchange began.
    pub since: Instant,
    /// When its peer was last heard.
    pub heard: Instant,
}

/// What there is for one more exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room<K> {
    /// A place that nobody has.
    Free,
    /// The place of this one, which has to make room.
    Of(K),
    /// None: all are taken by those that may keep theirs.
    None,
}

/// What there is for one more exchange, given how many places there are, and those that are taken.
///
/// If all are, the peer that is silent for longest makes room, and where none is silent the exchange that runs for longest; neither before
/// its time.
pub fn room<K>(
    now: Instant,
    places: usize,
    taken: impl IntoIterator<Item = (K, Place)>,
) -> Room<K> {
    let mut count = 0_usize;
    let mut least: Option<((bool, Instant), K)> = None;
    for (who, Place { since, heard }) in taken {
        count = count.saturating_add(1);
        let is_silent = now.saturating_duration_since(heard) >= SILENCE;
        let is_old = now.saturating_duration_since(since) >= TENURE;
        let claim = (!is_silent, if is_silent { heard } else { since });
        if (is_silent || is_old) && least.as_ref().is_none_or(|(least, _)| claim < *least) {
            least = Some((claim, who));
        }
    }
    if count < places {
        return Room::Free;
    }
    least.map_or(Room::None, |(_, who)| Room::Of(who))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place whose exchange began, and whose peer was heard, so many milliseconds ago.
    fn place(now: Instant, since: u64, heard: u64) -> Place {
        Place {
            since: now - Duration::from_millis(since),
            heard: now - Duration::from_millis(heard),
        }
    }

    fn room_of(places: usize, taken: &[(u64, u64)]) -> Room<usize> {
        let now = Instant::now() + Duration::from_secs(3600);
        let taken = taken.iter().map(|(since, heard)| place(now, *since, *heard));
        room(now, places, taken.enumerate())
    }

    #[test]
    fn nobody_makes_room_while_a_place_is_free() {
        assert_eq!(room_of(3, &[(30_000, 30_000), (30_000, 0)]), Room::Free);
        assert_eq!(room_of(2, &[(30_000, 30_000), (30_000, 0)]), Room::Of(0));
    }

    #[test]
    fn those_that_are_young_and_speak_keep_their_places() {
        assert_eq!(room_of(3, &[(4_999, 0), (1_999, 1_999), (0, 0)]), Room::None);
    }

    #[test]
    fn the_peer_that_is_silent_for_longest_makes_room_before_any_that_speaks() {
        assert_eq!(
            room_of(4, &[(29_000, 0), (3_000, 2_000), (2_500, 2_500), (9_000, 1_900)]),
            Room::Of(2)
        );
    }

    #[test]
    fn of_peers_that_all_speak_the_exchange_that_runs_for_longest_makes_room() {
        assert_eq!(room_of(3, &[(5_000, 100), (6_000, 1_900), (5_500, 0)]), Room::Of(1));
    }

    #[test]
    fn a_crowd_that_is_never_silent_keeps_nobody_out_for_longer_than_a_tenure() {
        let start = Instant::now();
        let mut crowd = [start; 16];
        // Each begins anew as often as its quota allows, and whenever it has lost its place.
        let mut waited = Duration::ZERO;
        for tenth in 0..600 {
            let now = start + Duration::from_millis(100 * tenth);
            let taken = crowd.iter().map(|since| Place { since: *since, heard: now });
            if let Room::Of(who) = room(now, 16, taken.enumerate()) {
                crowd[who] = now;
                waited = Duration::ZERO;
            } else {
                waited += Duration::from_millis(100);
            }
            assert!(waited <= TENURE, "nobody was let in for {waited:?}");
        }
    }
}
