//! Every interleaving of claims of one tag, and of affinity's pair changing its key.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p millrace-lb --test loom_directory`
#![cfg(loom)]

use arena::Pages;
use loom::sync::Arc;
use loom::thread;
use millrace_lb::affinity::Affinity;
use millrace_lb::directory::{Claim, Directory};
use millrace_lb::{BackendId, ServiceId, Tick, WorkerId};
use wire::Addr;

const HASH: u64 = 5 << 48;
const OTHER_HASH: u64 = 6 << 48;
const A: WorkerId = WorkerId(0);
const B: WorkerId = WorkerId(1);

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

#[test]
fn of_two_workers_at_once_one_owns_a_tag() {
    model(|| {
        let directory = Arc::new(Directory::new(0, 2, Pages::Base).unwrap());
        let other = directory.clone();
        let thread = thread::spawn(move || other.claim(HASH, B));
        let a = directory.claim(HASH, A);
        let b = thread.join().unwrap();
        match (a, b) {
            (Claim::Won, Claim::Owned(A)) => assert_eq!(directory.owner(HASH), Some(A)),
            (Claim::Owned(B), Claim::Won) => assert_eq!(directory.owner(HASH), Some(B)),
            // Both words of the (small) bucket were taken while a claim was under way: one is refused.
            (Claim::Won, Claim::Full) | (Claim::Full, Claim::Won) => {}
            _ => panic!("{a:?} {b:?}"),
        }
    });
}

#[test]
fn a_word_freed_in_between_does_not_make_two_owners() {
    model(|| {
        // Another tag holds the first word and goes while both look for a free one.
        let directory = Arc::new(Directory::new(0, 2, Pages::Base).unwrap());
        assert_eq!(directory.claim(OTHER_HASH, A), Claim::Won);
        let other = directory.clone();
        let thread = thread::spawn(move || other.claim(HASH, B));
        directory.release(OTHER_HASH, A);
        let a = directory.claim(HASH, A);
        let b = thread.join().unwrap();
        assert!(!(a == Claim::Won && b == Claim::Won), "two owners");
        assert!(a == Claim::Won || b == Claim::Won, "{a:?} {b:?}");
    });
}

#[test]
fn a_released_tag_is_claimed_by_one_or_seen_as_owned() {
    model(|| {
        let directory = Arc::new(Directory::new(0, 2, Pages::Base).unwrap());
        assert_eq!(directory.claim(HASH, A), Claim::Won);
        let other = directory.clone();
        let thread = thread::spawn(move || other.claim(HASH, B));
        directory.release(HASH, A);
        let b = thread.join().unwrap();
        match b {
            Claim::Won => assert_eq!(directory.owner(HASH), Some(B)),
            Claim::Owned(A) => assert_eq!(directory.owner(HASH), None),
            _ => panic!("{b:?}"),
        }
    });
}

#[test]
fn affinity_never_gives_a_source_the_endpoint_of_another() {
    model(|| {
        let (one, two) = (Addr::from_v4([10, 0, 0, 1]), Addr::from_v4([10, 0, 0, 2]));
        let service = ServiceId::new(1, 0);
        let backend = |n| BackendId::new(n, 0);
        // One pair: the second source takes it over from the first, which expired, while the first is looked up.
        let affinity = Arc::new(Affinity::new(1, (1, 2)));
        affinity.put(&one, service, backend(1), Tick(1), 10);
        let writer = affinity.clone();
        let thread = thread::spawn(move || writer.put(&two, service, backend(2), Tick(20), 10));
        let first = affinity.get(&one, service, Tick(5));
        assert!(first.is_none_or(|id| id == backend(1)), "{first:?}");
        affinity.put(&one, service, backend(1), Tick(20), 10);
        let second = affinity.get(&two, service, Tick(21));
        assert!(second.is_none_or(|id| id == backend(2)), "{second:?}");
        thread.join().unwrap();
    });
}
