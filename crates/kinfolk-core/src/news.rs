//! News of an own address: how often it may end all backoffs.
//!
//! It decides for the node when those whom it could not reach from elsewhere are worth a dial from here. A host that moves has a few pieces of
//! news at once, and all are passed on at once; an address that comes and goes, by a bad relay's or NAT's doing, must not make a node
//! dial whom it wants all the time. What comes too often waits, and all that has waited is passed on as one. It never looks at an address.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Most news that is passed on within [`NEWS_PERIOD`]. A host that moves has a few at once (a guess).
pub const NEWS_MAX: usize = 5;

/// The period of [`NEWS_MAX`]. An address that comes and goes lets a node dial whom it wants anew once a minute, which is some four dials (a guess).
pub const NEWS_PERIOD: Duration = Duration::from_secs(300);

/// Remembers when news was passed on, at most [`NEWS_MAX`] times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct News {
    /// Oldest first.
    passed_on: VecDeque<Instant>,
    /// Set while news waits.
    due: Option<Instant>,
}

impl News {
    /// There is news at `now`. It is due at once, or as soon as that is not too often.
    pub fn learn(&mut self, now: Instant) {
        let is_full = self.passed_on.len() >= NEWS_MAX;
        let oldest = self.passed_on.front().filter(|_| is_full);
        let free = oldest.map(|oldest| oldest.checked_add(NEWS_PERIOD).unwrap_or(now));
        self.due.get_or_insert(free.map_or(now, |free| free.max(now)));
    }

    /// When [`News::handle_timeout`] is due; `None` while nothing waits.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Whether what waits is to be passed on at `now`; then it counts as that.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        self.due = None;
        self.passed_on.push_back(now);
        if self.passed_on.len() > NEWS_MAX {
            self.passed_on.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_few_are_passed_on_at_once_and_each_counts_once() {
        let (mut news, now) = (News::default(), Instant::now());
        assert!(news.next_timeout().is_none() && !news.handle_timeout(now));
        for _ in 0..NEWS_MAX {
            news.learn(now);
            assert_eq!(news.next_timeout(), Some(now));
            assert!(news.handle_timeout(now) && !news.handle_timeout(now));
            assert_eq!(news.next_timeout(), None);
        }
    }

    #[test]
    fn one_too_many_waits_until_the_first_is_long_ago_and_more_of_them_are_one() {
        let (mut news, start) = (News::default(), Instant::now());
        for n in 0..5 {
            news.learn(start + n * SECOND);
            assert!(news.handle_timeout(start + n * SECOND));
        }
        let free = start + NEWS_PERIOD;
        for n in 5..9 {
            news.learn(start + n * SECOND);
            assert_eq!(news.next_timeout(), Some(free));
            assert!(!news.handle_timeout(start + n * SECOND));
        }
        assert!(!news.handle_timeout(free - SECOND / 2));
        assert!(news.handle_timeout(free) && !news.handle_timeout(free));
        news.learn(free);
        assert_eq!(news.next_timeout(), Some(free + SECOND));
    }

    #[test]
    fn an_address_that_comes_and_goes_is_news_five_times_in_any_five_minutes() {
        let (mut news, start) = (News::default(), Instant::now());
        let mut passed_on = Vec::new();
        for n in 0..3600 {
            let now = start + n * SECOND;
            news.learn(now);
            if news.handle_timeout(now) {
                passed_on.push(now);
            }
        }
        assert_eq!(passed_on.len(), 3600 / 60);
        assert!(
            passed_on.windows(NEWS_MAX + 1).all(|some| some[NEWS_MAX] - some[0] >= NEWS_PERIOD)
        );
    }
}
