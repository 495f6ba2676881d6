//! Waits that end, and gauges of this process, for every end-to-end test.
//!
//! A test waits for an event or for a condition, and says for how long at most and for what; it
//! never sleeps and hopes. Late means a panic that names what was waited for. The gauges read
//! `/proc`, so they are for Linux, and they are for comparing a test with itself: other tests of
//! the same process move them too.

use std::{fs, future::Future, panic::Location, time::Duration};

use tokio::time::{Instant, sleep, timeout};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The output of `future`, which must come within `deadline`.
///
/// # Panics
/// When it does not; the message says `what`.
#[track_caller]
pub fn within<F: Future>(
    deadline: Duration,
    what: &str,
    future: F,
) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        match timeout(deadline, future).await {
            Ok(output) => output,
            Err(_) => panic!("{what}: not within {deadline:?} (awaited at {caller})"),
        }
    }
}

/// Returns once `condition` holds, asking again after short pauses that grow to 50 ms.
///
/// The condition is asked at least once, and a condition that never answers is late too.
///
/// # Panics
/// When it does not hold within `deadline`; the message says `what`.
#[track_caller]
pub fn eventually<C: AsyncFnMut() -> bool>(
    deadline: Duration,
    what: &str,
    mut condition: C,
) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let end = Instant::now() + deadline;
        let mut pause = FIRST_PAUSE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if timeout(left, condition()).await == Ok(true) {
                return;
            }
            assert!(
                Instant::now() < end,
                "{what}: still not so after {deadline:?} (awaited at {caller})"
            );
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// How many file descriptors this process holds open.
///
/// # Panics
/// Without `/proc`.
#[must_use]
pub fn open_fds() -> usize {
    let listing = fs::read_dir("/proc/self/fd").expect("/proc/self/fd can be listed");
    // The listing itself is one of them.
    listing.count().saturating_sub(1)
}

/// How much memory of its own this process has, in bytes: without the pages of its program, of which each is there from its first use on.
///
/// Allocators give memory back late or never: compare growth over many rounds, not one figure.
///
/// # Panics
/// Without `/proc`.
#[must_use]
pub fn own_memory() -> u64 {
    // `status` says kibibytes where `statm` says pages, of a size only libc would tell.
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status can be read");
    let kibibytes: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse().ok())
        .expect("/proc/self/status has an RssAnon line in kB");
    kibibytes * 1024
}

/// How many tasks of the current runtime have not ended, this test's own main future not counted.
///
/// # Panics
/// Outside a tokio runtime.
#[must_use]
pub fn live_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn a_condition_is_asked_until_it_holds() {
        let mut asked = 0;
        eventually(SOON, "third time", async || {
            asked += 1;
            asked == 3
        })
        .await;
        assert_eq!(asked, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "a silent peer: not within 20ms")]
    async fn a_late_future_is_named() {
        within(Duration::from_millis(20), "a silent peer", std::future::pending::<()>()).await;
    }

    #[tokio::test]
    #[should_panic(expected = "a hung question: still not so after 20ms")]
    async fn a_condition_that_never_answers_is_late() {
        eventually(Duration::from_millis(20), "a hung question", std::future::pending::<bool>)
            .await;
    }

    #[tokio::test]
    async fn the_gauges_follow_what_the_process_holds() {
        let before = live_tasks();
        let task = tokio::spawn(std::future::pending::<()>());
        assert_eq!(live_tasks(), before + 1);
        task.abort();
        eventually(SOON, "the aborted task is gone", async || live_tasks() == before).await;

        assert!(open_fds() >= 3, "a process has its three standard streams");
        assert!(own_memory() > 64 * 1024);
    }
}
