//! Nothing allocates per packet: an allocator that counts what each thread asks of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;

use lb::process::process;
use lb::{Frame, Verdict};

use crate::packet::{ACK, SYN_ACK, Segment};
use crate::rig::{CLIENT_MAC, INSIDE, KINDS, OUTSIDE, ROOM, Rig, TCP4};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches a thread-local number that
// needs no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract, and `memory` came from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// Processes frames as one burst, and gives how often that allocated.
fn allocations_of(rig: &mut Rig, port: lb::PortId, frames: &[Vec<u8>], expected: fn(Verdict) -> bool) -> u64 {
    let mut rooms: Vec<Vec<u8>> =
        frames.iter().map(|bytes| [&bytes[..], &vec![0; ROOM - bytes.len()]].concat()).collect();
    let lens = frames.iter().map(Vec::len);
    let mut burst: Vec<Frame<'_>> =
        rooms.iter_mut().zip(lens).map(|(room, len)| Frame { room, len, port, handed: false }).collect();
    let mut verdicts = vec![Verdict::Pass; burst.len()];
    let before = allocations();
    process(&mut burst, rig.now, &rig.tables, &mut rig.workers[0], &mut verdicts);
    rig.workers[0].housekeep(rig.now, &rig.tables);
    let after = allocations();
    assert!(verdicts.iter().all(|verdict| expected(*verdict)), "{verdicts:?}");
    after - before
}

#[test]
fn opening_forwarding_replying_and_rejecting_allocate_nothing() {
    let probe = allocations();
    drop(vec![1u8]);
    assert!(allocations() > probe, "the counter counts");

    let mut rig = Rig::with(1, 1024);
    for kind in KINDS {
        let openings: Vec<Segment> = (0..64).map(|n| kind.opening(2000 + n)).collect();
        let bytes = |segments: &[Segment]| segments.iter().map(Segment::bytes).collect::<Vec<_>>();
        let frames = bytes(&openings);
        assert_eq!(allocations_of(&mut rig, OUTSIDE, &frames, |v| v == Verdict::Tx(INSIDE)), 0, "opening");

        let got: Vec<Segment> = openings.iter().map(|s| rig.outside(s).sent(INSIDE)).collect();
        let replies: Vec<Segment> = got.iter().map(|s| s.back().with_flags(SYN_ACK)).collect();
        assert_eq!(allocations_of(&mut rig, INSIDE, &bytes(&replies), |v| v == Verdict::Tx(OUTSIDE)), 0, "reply");

        let data: Vec<Segment> = openings.iter().map(|s| s.with_flags(ACK)).collect();
        assert_eq!(allocations_of(&mut rig, OUTSIDE, &bytes(&data), |v| v == Verdict::Tx(INSIDE)), 0, "established");

        let elsewhere = |s: &Segment| Segment { dst: SocketAddr::new(kind.vip(), 99), ..s.clone() };
        let strays: Vec<Segment> = openings.iter().map(elsewhere).collect();
        let decided = |v| !matches!(v, Verdict::Pass);
        assert_eq!(allocations_of(&mut rig, OUTSIDE, &bytes(&strays), decided), 0, "reject");
    }
    for kind in KINDS {
        let long = |n| Segment { payload: vec![0; 1000], ..kind.opening(2000 + n).with_flags(ACK) };
        let parts =
            (0..20u16).map(|n| crate::parts::parts(&long(n), u32::from(kind.protocol.0) << 8 | u32::from(n), 504));
        let (first, later): (Vec<_>, Vec<_>) = parts.map(|parts| (parts[0].clone(), parts[1].clone())).unzip();
        assert_eq!(allocations_of(&mut rig, OUTSIDE, &later, |v| v == Verdict::Keep), 0, "keeping fragments");
        assert_eq!(allocations_of(&mut rig, OUTSIDE, &first, |v| v == Verdict::Tx(INSIDE)), 0, "first fragments");
        let (mut room, before) = ([0; ROOM], allocations());
        let mut emit = || lb::emit(rig.now, &rig.tables, &mut rig.workers[0], &mut room);
        let sent = std::iter::from_fn(&mut emit).count();
        assert_eq!((sent, allocations() - before), (later.len(), 0), "emitting fragments");
    }
    let arp = crate::answers::arp(1, (CLIENT_MAC, [192, 0, 2, 1]), [10, 0, 0, 10]);
    assert_eq!(allocations_of(&mut rig, OUTSIDE, &[arp], |v| v == Verdict::Tx(OUTSIDE)), 0, "ARP");
    rig.wait(std::time::Duration::from_secs(8000));
    let late = TCP4.opening(9999).bytes();
    assert_eq!(allocations_of(&mut rig, OUTSIDE, &[late], |v| v == Verdict::Tx(INSIDE)), 0, "opening and expiring");
}
