//! Places that all peers share, such that a few of them cannot take all.
//!
//! It decides whether somebody gets one more. Whoever has few gets any that is free. Whoever has many gets one only while
//! enough are free for others: so one alone may have nearly all, and those that crowd in all end up with about as many, with
//! some to spare for who comes next. Nobody loses a place that it has, and nothing is known of what a place is for.

use std::collections::BTreeMap;

/// Whoever has fewer gets any place that is free. Sixteen, so that a protocol with few places is not cut into parts (a guess).
const FEW: usize = 16;

/// Whoever has more than [`FEW`] has less than so many times the number that is free. Four: one alone gets four fifths, and where four times as
/// many as anybody may have are shared by a few, they all get as many as they may (a guess).
const TIMES_FREE: usize = 4;

/// The places, and who has how many of them.
#[derive(Debug, Clone)]
pub struct Shares<K> {
    free: usize,
    /// Only who has one.
    held: BTreeMap<K, usize>,
}

impl<K: Ord> Shares<K> {
    /// So many places, all of them free.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self { free: places, held: BTreeMap::new() }
    }

    /// Takes a place, which is to be given back, and says whether there was one.
    #[must_use = "a place that is taken is to be given back"]
    pub fn take(&mut self, who: K) -> bool {
        let held = self.held.get(&who).copied().unwrap_or_default();
        let has_few = held < FEW || held < self.free.saturating_mul(TIMES_FREE);
        let Some(free) = self.free.checked_sub(1).filter(|_| has_few) else { return false };
        self.free = free;
        self.held.insert(who, held.saturating_add(1));
        true
    }

    /// Gives a place back that was taken.
    pub fn give_back(&mut self, who: &K) {
        let Some(held) = self.held.get_mut(who) else { return };
        *held = held.saturating_sub(1);
        if *held == 0 {
            self.held.remove(who);
        }
        self.free = self.free.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Lets so many ask in turn until nobody gets any more; how many each has.
    fn crowd(shares: &mut Shares<u32>, peers: u32, most: usize) -> BTreeMap<u32, usize> {
        loop {
            let mut is_over = true;
            for peer in 0..peers {
                let has = shares.held.get(&peer).copied().unwrap_or_default();
                is_over &= has >= most || !shares.take(peer);
            }
            if is_over {
                return shares.held.clone();
            }
        }
    }

    #[test]
    fn where_there_are_few_one_may_have_all() {
        let mut shares = Shares::new(FEW);
        assert_eq!(crowd(&mut shares, 1, usize::MAX), [(0, FEW)].into());
        assert!(!shares.take(1));
        shares.give_back(&0);
        assert!(shares.take(1));
    }

    #[test]
    fn one_alone_may_have_nearly_all_and_leaves_some_to_others() {
        let mut shares = Shares::new(100);
        assert_eq!(crowd(&mut shares, 1, usize::MAX), [(0, 80)].into());
        assert!(shares.take(1));
        assert!(!shares.take(0));
    }

    #[test]
    fn four_that_may_have_a_quarter_each_leave_some_to_others() {
        let mut shares = Shares::new(4096);
        let held = crowd(&mut shares, 4, 1024);
        assert!(held.values().all(|held| (950..=1024).contains(held)), "{held:?}");
        assert!((5..205).all(|peer| shares.take(peer)));
    }

    #[test]
    fn sixteen_that_may_have_a_sixteenth_each_leave_some_to_others() {
        let mut shares = Shares::new(16 * 1024);
        let held = crowd(&mut shares, 16, 1024);
        assert!(held.values().all(|held| (950..=1024).contains(held)), "{held:?}");
        assert!((16..216).all(|peer| shares.take(peer)));
    }

    #[test]
    fn what_was_not_taken_cannot_be_given_back() {
        let mut shares = Shares::new(1);
        shares.give_back(&1);
        assert!(shares.take(1));
        assert!(!shares.take(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_place_is_free_or_had_by_somebody_and_who_has_none_gets_any_that_is_free(
            places in 0..100_usize,
            steps in vec((any::<bool>(), 0..5_u32), 0..300),
        ) {
            let mut shares = Shares::new(places);
            let mut held = BTreeMap::<u32, usize>::new();
            for (takes, who) in steps {
                let has = held.entry(who).or_default();
                if takes {
                    let is_free = shares.free > 0;
                    let is_taken = shares.take(who);
                    prop_assert!(is_free || !is_taken);
                    prop_assert!(is_taken || !is_free || *has >= FEW);
                    *has += usize::from(is_taken);
                } else if *has > 0 {
                    shares.give_back(&who);
                    *has -= 1;
                }
                prop_assert_eq!(shares.free + held.values().sum::<usize>(), places);
                prop_assert!(shares.held.values().all(|held| *held > 0));
            }
        }
    }
}
