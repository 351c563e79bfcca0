//! Threads that stay awake between small pieces of shared work.
//!
//! Decoding a token forks some two hundred times for ten microseconds of work, and between two forks one thread does what is not
//! worth sharing. A thread that falls asleep meanwhile takes longer to wake than its share takes.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    /// Whether this thread has such work below it on its stack, or stays awake for some. It must not wait for other work then, which
    /// may itself wait for this thread.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// Looks for work in vain, before the processor is offered to others.
const PATIENCE: u32 = 64;

/// Runs `work` while the other threads of the pool look for its pieces without falling asleep. Outside a pool, and inside other such
/// work, it is just run.
pub fn awake<T>(work: impl FnOnce() -> T) -> T {
    let alone = rayon::current_thread_index().is_none() || rayon::current_num_threads() == 1;
    if alone || TAKEN.replace(true) {
        return work();
    }
    let done = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        scope.spawn_broadcast(|_, _| stay(&done));
        let _end = End(&done);
        work()
    })
}

/// Lets the others go, whether the work ended or panicked.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        TAKEN.set(false);
    }
}

fn stay(done: &AtomicBool) {
    if TAKEN.replace(true) {
        return;
    }
    let mut in_vain = 0;
    while !done.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            in_vain = 0;
        } else if in_vain < PATIENCE {
            in_vain += 1;
            std::hint::spin_loop();
        } else {
            in_vain = 0;
            std::thread::yield_now();
        }
    }
    TAKEN.set(false);
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicUsize;

    use rayon::prelude::*;

    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool")
    }

    fn sum(n: usize) -> usize {
        (0..n).into_par_iter().with_max_len(1).sum()
    }

    #[test]
    fn work_ends_however_it_is_nested_and_started() {
        assert_eq!(awake(|| sum(100)), 4950);
        for threads in [1, 2, 3] {
            let pool = pool(threads);
            assert_eq!(pool.install(|| awake(|| awake(|| sum(100)) + sum(10))), 4995);
            // Several at a time in one pool, each with forks of its own.
            let all: usize = pool.install(|| (0..40).into_par_iter().map(|_| awake(|| sum(50))).sum());
            assert_eq!(all, 40 * 1225);
            let ended = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        (0..20).for_each(|_| assert_eq!(pool.install(|| awake(|| sum(64))), 2016));
                        ended.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
            assert_eq!(ended.into_inner(), 4);
        }
    }

    #[test]
    fn a_panic_passes_through_and_leaves_the_threads_free() {
        let pool = pool(2);
        let panicked = catch_unwind(AssertUnwindSafe(|| pool.install(|| awake(|| panic!("on purpose")))));
        assert!(panicked.is_err());
        assert_eq!(pool.install(|| awake(|| sum(100))), 4950);
        assert_eq!(pool.broadcast(|_| TAKEN.get()), [false, false]);
    }
}
