//! Every interleaving of the handshake of [`millrace_publish::Wake`], and of the hand-over of [`millrace_publish::Slot`].
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;
use millrace_publish::Wake;

/// One sleeper, `givers` givers: either the sleeper sees all work before it sleeps, or its eventfd is written.
fn no_work_is_slept_over(givers: u32) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(move || {
        let wake = Arc::new(Wake::new());
        let work = Arc::new(AtomicU32::new(0));
        let eventfd = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..givers)
            .map(|_| {
                let (wake, work, eventfd) = (wake.clone(), work.clone(), eventfd.clone());
                thread::spawn(move || {
                    work.fetch_add(1, Ordering::Relaxed);
                    if wake.needs_wake() {
                        eventfd.store(true, Ordering::Release);
                    }
                })
            })
            .collect();
        let mut seen = 0;
        let sleeps = wake.prepare_sleep(|| {
            seen = work.load(Ordering::Relaxed);
            seen == 0
        });
        for thread in threads {
            thread.join().unwrap();
        }
        if sleeps {
            assert!(eventfd.load(Ordering::Acquire), "asleep over work");
        } else {
            assert!(seen > 0);
        }
    });
}

#[test]
fn a_sleeper_sees_the_work_or_is_woken() {
    no_work_is_slept_over(1);
}

#[test]
fn a_sleeper_is_woken_by_one_of_two_givers() {
    no_work_is_slept_over(2);
}

/// Needs crossbeam-epoch's own loom mode: `--cfg loom --cfg crossbeam_loom`.
#[cfg(crossbeam_loom)]
mod slot {
    use std::sync::Arc;

    use loom::cell::UnsafeCell;
    use loom::thread;
    use millrace_publish::Slot;

    /// Loom reports a drop (a write) that is not ordered after every read.
    struct Watched(UnsafeCell<u32>);

    // SAFETY: for loom to check; the cell is read through `with` while pinned, and written by the drop alone.
    unsafe impl Send for Watched {}
    // SAFETY: as above.
    unsafe impl Sync for Watched {}

    impl Drop for Watched {
        fn drop(&mut self) {
            // SAFETY: the value is being dropped; that nobody reads it is what loom checks.
            self.0.with_mut(|cell| unsafe { *cell = 0 });
        }
    }

    #[test]
    fn a_pinned_value_is_neither_torn_nor_dropped() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(|| {
            let slot = Arc::new(Slot::new(Watched(UnsafeCell::new(1))));
            let reads = Arc::clone(&slot);
            let thread = thread::spawn(move || {
                let mut reader = reads.reader();
                let pinned = reader.pin();
                // SAFETY: pinned, so the value lives, and it is not written while it does.
                pinned.0.with(|cell| assert!(matches!(unsafe { *cell }, 1 | 2)));
            });
            slot.publish(Watched(UnsafeCell::new(2)));
            thread.join().unwrap();
        });
    }
}
