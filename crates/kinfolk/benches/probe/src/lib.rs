//! What the benchmark measures beside time: the heap of its process and the CPU time that it used.
//!
//! Both need unsafe code, which the library forbids itself; so they are a crate of their own, used by the benchmark alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

/// The system's allocator, which counts while it is told to.
///
/// Off, it costs one relaxed load per call, so that rows about time can share a binary with rows about memory.
#[derive(Debug)]
pub struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicI64 = AtomicI64::new(0);
static BLOCKS: AtomicI64 = AtomicI64::new(0);
static ALLOCATIONS: AtomicI64 = AtomicI64::new(0);

/// What was allocated since counting began. Memory from before that is freed meanwhile counts as negative, so read differences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heap {
    /// Bytes that live.
    pub bytes: i64,
    /// Blocks that live.
    pub blocks: i64,
    /// Allocations ever made, reallocations included.
    pub allocations: i64,
}

/// Starts or stops to count.
pub fn count(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

/// The heap at this moment.
pub fn heap() -> Heap {
    Heap {
        bytes: BYTES.load(Ordering::Relaxed),
        blocks: BLOCKS.load(Ordering::Relaxed),
        allocations: ALLOCATIONS.load(Ordering::Relaxed),
    }
}

fn note(bytes: i64, blocks: i64, allocations: i64) {
    if ON.load(Ordering::Relaxed) {
        BYTES.fetch_add(bytes, Ordering::Relaxed);
        BLOCKS.fetch_add(blocks, Ordering::Relaxed);
        ALLOCATIONS.fetch_add(allocations, Ordering::Relaxed);
    }
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: every call is passed on to the system's allocator with its arguments unchanged, `alloc_zeroed` included: zeroed memory by way
// of `alloc` would touch every page of iroh's large receive buffers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(size(layout.size()), 1, 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(size(layout.size()), 1, 1);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        note(-size(layout.size()), -1, 0);
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        note(size(new) - size(layout.size()), 0, 1);
        unsafe { System.realloc(block, layout, new) }
    }
}

/// The CPU time that all threads of this process have used.
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer, which is all that the call touches.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } != 0;
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    match (failed, seconds, nanos) {
        (false, Ok(seconds), Ok(nanos)) => Duration::new(seconds, nanos),
        _ => Duration::ZERO,
    }
}
