//! Which of the links linger that a node has dialled for errands of its own.
//!
//! Such a link may be of use for a moment after its errand: neighbours are made of it, and an app may want a peer that the node has just heard of. Each costs
//! memory, and a node that gets to know a network dials many within seconds. So a node that has neighbours keeps none. It decides which of those that
//! nobody uses are closed before their time. It never looks at one in use, and closes none.

use std::cmp::Reverse;
use std::time::Instant;

/// Below so many neighbours of announcements a node wants more. A node has five in the mean, so this says that it lost some, or has just begun.
pub const FEW_NEIGHBOURS: usize = 3;

/// The links that are too many, if so many may linger for want of neighbours: those that are idle for longest. Each comes with the time since when.
pub fn surplus<L>(
    idle: impl IntoIterator<Item = (L, Instant)>,
    lingering: usize,
    neighbours: usize,
) -> impl Iterator<Item = L> {
    let lingering = if neighbours < FEW_NEIGHBOURS { lingering } else { 0 };
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
        let surplus: Vec<_> = surplus(idle(&[5, 1, 4, 2, 3]), 2, 0).collect();
        assert_eq!(surplus, [3, 2, 1]);
    }

    #[test]
    fn none_is_too_many_while_all_may_linger() {
        assert_eq!(surplus(idle(&[2, 1]), 2, 0).count(), 0);
        assert_eq!(surplus(idle(&[]), 0, 0).count(), 0);
    }

    #[test]
    fn none_lingers_with_a_node_that_has_neighbours() {
        let few: Vec<_> = surplus(idle(&[2, 1]), 1, FEW_NEIGHBOURS - 1).collect();
        assert_eq!(few, [1]);
        let enough: Vec<_> = surplus(idle(&[2, 1]), 1, FEW_NEIGHBOURS).collect();
        assert_eq!(enough, [2, 1]);
    }
}
