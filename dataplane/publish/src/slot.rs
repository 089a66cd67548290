//! The slot: one writer, many readers, one atomic store.
//!
//! A reader pins the epoch (crossbeam-epoch) once a burst and reads the value that is current then; the value stays
//! alive while pinned. A replaced value is given back, when no reader can have it any more, to a list of which only the
//! writing side takes: whichever thread's epoch work finds it free, no reader ever drops (and so never spends time on) a
//! large value.

use core::ops::Deref;
use std::ptr;
use std::sync::Arc;

use crossbeam_epoch::{Atomic, Collector, Guard, LocalHandle, Owned};

use crate::primitive::{AtomicPtr, Ordering};

/// A published value and the link of the list of those given back.
struct Node<T> {
    value: T,
    /// Written before the node is in the list, and read after it was taken out.
    next: AtomicPtr<Node<T>>,
}

/// Replaced values that no reader can have.
struct GivenBack<T> {
    head: AtomicPtr<Node<T>>,
}

impl<T> GivenBack<T> {
    fn new() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()) }
    }

    fn push(&self, node: Box<Node<T>>) {
        let node = Box::into_raw(node);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: `node` came from `into_raw` just above, and nobody else has it until the exchange succeeds.
            unsafe { (*node).next.store(head, Ordering::Relaxed) };
            match self.head.compare_exchange(head, node, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Drops all of them, and says how many.
    fn drop_all(&self) -> usize {
        let mut next = self.head.swap(ptr::null_mut(), Ordering::Acquire);
        let mut count = 0;
        while !next.is_null() {
            // SAFETY: a pointer in the list came from `Box::into_raw` in `push`, and the swap took the whole list from
            // everyone else; each link is followed once.
            let node = unsafe { Box::from_raw(next) };
            next = node.next.load(Ordering::Relaxed);
            count += 1;
        }
        count
    }
}

impl<T> Drop for GivenBack<T> {
    fn drop(&mut self) {
        self.drop_all();
    }
}

/// Holds the newest value.
pub struct Slot<T> {
    current: Atomic<Node<T>>,
    given_back: Arc<GivenBack<T>>,
    collector: Collector,
}

impl<T: Send + Sync + 'static> Slot<T> {
    /// A slot with its first value.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self {
            current: Atomic::new(Node { value, next: AtomicPtr::new(ptr::null_mut()) }),
            given_back: Arc::new(GivenBack::new()),
            collector: Collector::new(),
        }
    }

    /// Replaces the value: readers that pin from now on see this one. Drops values that were replaced before and that no
    /// reader can have any more.
    pub fn publish(&self, value: T) {
        let handle = self.collector.register();
        let guard = handle.pin();
        let new = Owned::new(Node { value, next: AtomicPtr::new(ptr::null_mut()) });
        let old = self.current.swap(new, std::sync::atomic::Ordering::AcqRel, &guard);
        let list = Arc::clone(&self.given_back);
        // SAFETY: `old` was made by `Owned` and is no longer reachable from `current`, which the swap alone took it from,
        // so it is given back once; readers that loaded it before are pinned, and the closure runs after they unpinned.
        // What it captures may be sent to another thread: T is Send, and the list is of atomics. `Owned` allocates as
        // `Box` does (crossbeam-epoch documents `Owned::into_box`).
        unsafe { guard.defer_unchecked(move || list.push(old.into_owned().into_box())) };
        guard.flush();
        drop(guard);
        self.collect();
    }

    /// Drops replaced values that no reader can have any more, and says how many. [`Slot::publish`] calls it; call it
    /// now and then besides, so that the last replaced value does not wait for the next one.
    pub fn collect(&self) -> usize {
        let handle = self.collector.register();
        // The epoch must advance twice until no reader of the time of the swap is left; each round tries once.
        for _ in 0..3 {
            handle.pin().flush();
        }
        self.given_back.drop_all()
    }

    /// A reader for the thread that calls this; it cannot be sent to another.
    #[must_use]
    pub fn reader(self: &Arc<Self>) -> Reader<T> {
        Reader { handle: self.collector.register(), slot: Arc::clone(self) }
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self`: no reader is left, for each holds the slot; `current` is never null, and its value is the
        // only one that was not handed to the collector.
        drop(unsafe { std::mem::replace(&mut self.current, Atomic::null()).into_owned() });
    }
}

/// A thread's way to read a [`Slot`].
pub struct Reader<T> {
    // Before the slot: deferred work refers to its list by an Arc of its own, so the order is of no consequence.
    handle: LocalHandle,
    slot: Arc<Slot<T>>,
}

impl<T> Reader<T> {
    /// The newest value, kept alive until the pin is dropped. Pin once a burst, and not for long: replaced values wait.
    #[inline]
    pub fn pin(&mut self) -> Pinned<'_, T> {
        let guard = self.handle.pin();
        let node = self.slot.current.load(std::sync::atomic::Ordering::Acquire, &guard).as_raw();
        // SAFETY: `current` is never null and was loaded under `guard`, which `Pinned` holds for as long as the reference
        // lives; the value is given back only after every guard of that time is gone, and is never changed before.
        let value = unsafe { &(*node).value };
        Pinned { value, _guard: guard }
    }

    /// The slot that this reads.
    #[must_use]
    pub fn slot(&self) -> &Arc<Slot<T>> {
        &self.slot
    }
}

/// The value that was newest when [`Reader::pin`] was called.
pub struct Pinned<'a, T> {
    value: &'a T,
    _guard: Guard,
}

impl<T> Deref for Pinned<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.value
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use std::thread;

    use super::*;

    struct Counted(u64, Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn a_reader_sees_the_newest_value_at_its_next_pin() {
        let slot = Arc::new(Slot::new(1));
        let mut reader = slot.reader();
        let pinned = reader.pin();
        slot.publish(2);
        assert_eq!(*pinned, 1, "what is pinned stays");
        drop(pinned);
        assert_eq!(*reader.pin(), 2);
    }

    #[test]
    fn a_replaced_value_lives_while_pinned_and_is_dropped_after() {
        let drops = Arc::new(AtomicUsize::new(0));
        let slot = Arc::new(Slot::new(Counted(1, drops.clone())));
        let mut reader = slot.reader();
        let pinned = reader.pin();
        slot.publish(Counted(2, drops.clone()));
        slot.collect();
        assert_eq!((drops.load(SeqCst), pinned.0), (0, 1));
        drop(pinned);
        assert_eq!(slot.collect(), 1);
        assert_eq!(drops.load(SeqCst), 1);
    }

    #[test]
    fn every_value_is_dropped_exactly_once() {
        let drops = Arc::new(AtomicUsize::new(0));
        let slot = Arc::new(Slot::new(Counted(0, drops.clone())));
        let mut reader = slot.reader();
        for n in 1..100 {
            slot.publish(Counted(n, drops.clone()));
            assert_eq!(reader.pin().0, n);
        }
        drop(reader);
        drop(slot);
        assert_eq!(drops.load(SeqCst), 100);
    }

    #[test]
    fn readers_on_other_threads_see_values_whole_and_in_order_and_drop_none() {
        struct Pair(u64, u64, thread::ThreadId);
        impl Drop for Pair {
            fn drop(&mut self) {
                assert_eq!(thread::current().id(), self.2, "only the writer drops");
            }
        }
        let writer = thread::current().id();
        let slot = Arc::new(Slot::new(Pair(0, 0, writer)));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut reader = slot.reader();
                    let mut last = 0;
                    while !done.load(SeqCst) {
                        let pair = reader.pin();
                        assert_eq!(pair.0.wrapping_mul(7), pair.1);
                        assert!(pair.0 >= last);
                        last = pair.0;
                    }
                    // Its Arc of the slot must not be the last one, or this thread would drop the value.
                });
            }
            for n in 1..5_000u64 {
                slot.publish(Pair(n, n.wrapping_mul(7), writer));
            }
            done.store(true, SeqCst);
        });
    }
}
