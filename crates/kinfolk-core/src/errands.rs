//! Which of the links linger that a node has dialled for errands of its own.
//!
//! Such a link is of use for a moment after its errand in a small network, to whoever looks for neighbours there: the same peer is
//! wanted again. Each costs memory, and a node that gets to know a large network dials many within seconds, hardly any of them again. It
//! decides which of those that nobody uses are closed before their time. It never looks at one in use, and closes none.

use std::cmp::Reverse;
use std::time::Instant;

/// Below so many neighbours of announcements a node wants more. A node has five in the mean, so this says that it lost some, or has just begun.
pub const FEW_NEIGHBOURS: usize = 3;

/// With more peers than these the one that was just visited is as good as any other (a guess).
pub const HANDFUL: usize = 8;

/// How many links may linger, of so many at most, with a node that has these neighbours and knows so many peers.
pub fn lingering(most: usize, neighbours: usize, known: usize) -> usize {
    if neighbours < FEW_NEIGHBOURS && known <= HANDFUL { most } else { 0 }
}

/// The links that are too many if so many may linger: those that are idle for longest. Each comes with the time since when.
pub fn surplus<L>(
    idle: impl IntoIterator<Item = (L, Instant)>,
    lingering: usize,
) -> impl Iterator<Item = L> {
    let mut idle: Vec<_> = idle.into_iter().collect();
    idle.sort_by_key(|(_, since)| Reverse(*since));
    idle.into_iter().skip(lingering).map(|(link, _)| link)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn idle(seconds: &[u64]) -> Vec<(u64, Instant)> {
        let start = Instant::now();
        seconds.iter().map(|at| (*at, start + Duration::from_secs(*at))).collect()
    }

    #[test]
    fn those_that_were_used_last_linger_and_all_others_are_too_many() {
        let surplus: Vec<_> = surplus(idle(&[5, 1, 4, 2, 3]), 2).collect();
        assert_eq!(surplus, [3, 2, 1]);
    }

    #[test]
    fn none_is_too_many_while_all_may_linger() {
        assert_eq!(surplus(idle(&[2, 1]), 2).count(), 0);
        assert_eq!(surplus(idle(&[]), 0).count(), 0);
    }

    #[test]
    fn none_lingers_with_a_node_that_has_neighbours_or_knows_many() {
        assert_eq!(lingering(2, FEW_NEIGHBOURS - 1, HANDFUL), 2);
        assert_eq!(lingering(2, FEW_NEIGHBOURS, HANDFUL), 0);
        assert_eq!(lingering(2, 0, HANDFUL + 1), 0);
    }
}
