//! The bare forwarder: what comes in on one wire leaves by the other, with new link-layer addresses and nothing else.
//!
//! It is the least that a forwarder over AF_XDP can do, with rings and frames as many as Millrace has.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use aya::Ebpf;
use aya::maps::{MapData, XskMap};
use aya::programs::{Xdp, XdpMode};
use millrace_tests::lab::Host;
use nix::poll::{PollFd, PollFlags, poll};
use wire::MacAddr;
use xsk::{BURST, BindMode, Frame, Queue, QueueConfig, Umem, XskQueue};

use crate::cores;

/// Frames of each queue, as Millrace has them.
const FRAMES_PER_QUEUE: u32 = 5120;
const FRAME_SIZE: u32 = 2048;
/// Frames that wait for room in a TX ring; more are dropped.
const BACKLOG: usize = 4 * BURST;
/// Empty rounds before it blocks, and for how many milliseconds.
const SPIN_ROUNDS: u32 = 128;
const NAP_MS: u8 = 10;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bare.o"));

/// A running bare forwarder. It ends when this is dropped.
pub struct Bare {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bare {
    /// Starts it in `host`, on `core`, between two interfaces: what leaves by one has its `[destination, source]`.
    pub fn start(host: &Host, core: usize, ends: [(&'static str, [MacAddr; 2]); 2]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, wait) = mpsc::channel();
        let thread = host.within(move || {
            cores::bind_this_thread(core);
            let mut forwarder = Forwarder::new(ends);
            ready.send(()).expect("it is waited for");
            forwarder.run(&stopped);
        });
        wait.recv().expect("the bare forwarder starts");
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One interface of it.
struct End {
    queue: XskQueue,
    /// What a frame begins with that leaves here.
    addresses: [u8; 12],
    out: Vec<Frame>,
    /// Owns the program on the interface.
    _program: Ebpf,
}

struct Forwarder {
    umem: Umem,
    pool: Vec<Frame>,
    burst: Vec<Frame>,
    ends: [End; 2],
}

impl Forwarder {
    fn new(ends: [(&'static str, [MacAddr; 2]); 2]) -> Self {
        let (umem, pool) = Umem::new(2 * FRAMES_PER_QUEUE, FRAME_SIZE, false).expect("memory for frames");
        let ends = ends.map(|(interface, [destination, source])| {
            let config = QueueConfig { mode: BindMode::Copy, ..QueueConfig::default() };
            let queue = XskQueue::bind(&umem, interface, 0, &config).expect("an AF_XDP socket");
            let program = attach(interface, queue.socket());
            let mut addresses = [0; 12];
            addresses[..6].copy_from_slice(&destination.0);
            addresses[6..].copy_from_slice(&source.0);
            End { queue, addresses, out: Vec::with_capacity(BACKLOG), _program: program }
        });
        Self { umem, pool, burst: Vec::with_capacity(BURST), ends }
    }

    fn run(&mut self, stop: &AtomicBool) {
        let mut empty_rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            if self.round() {
                empty_rounds = 0;
            } else if empty_rounds < SPIN_ROUNDS {
                empty_rounds += 1;
                std::hint::spin_loop();
            } else {
                let mut fds = self.ends.each_ref().map(|end| PollFd::new(end.queue.socket(), PollFlags::POLLIN));
                let _ = poll(&mut fds, NAP_MS);
            }
        }
    }

    /// Does everything once. Says whether there was anything to do.
    fn round(&mut self) -> bool {
        let mut work = 0;
        for (from, to) in [(0, 1), (1, 0)] {
            work += self.ends[from].queue.receive(&mut self.burst, BURST);
            for mut frame in self.burst.drain(..) {
                let end = &mut self.ends[to];
                if end.out.len() < BACKLOG {
                    self.umem.room_mut(&mut frame)[..12].copy_from_slice(&end.addresses);
                    end.out.push(frame);
                } else {
                    frame.reset();
                    self.pool.push(frame);
                }
            }
        }
        for end in &mut self.ends {
            while !end.out.is_empty() && end.queue.send(&mut end.out) > 0 {}
            end.queue.kick();
            loop {
                let reclaimed = end.queue.reclaim(&mut self.pool);
                work += reclaimed;
                if reclaimed < BURST {
                    break;
                }
            }
            while end.queue.refill(&mut self.pool) > 0 {}
        }
        work > 0
    }
}

/// Has every packet of the interface's first queue given to `socket`, until the object is dropped.
fn attach(interface: &str, socket: BorrowedFd<'_>) -> Ebpf {
    let mut object = Ebpf::load(OBJECT).expect("the kernel takes the bare program");
    let program: &mut Xdp = object.program_mut("bare").expect("it is in the object").try_into().expect("XDP");
    program.load().expect("the kernel takes the bare program");
    program.attach(interface, XdpMode::Driver).expect("native XDP");
    let map = object.map_mut("sockets").expect("it is in the object");
    let mut sockets: XskMap<&mut MapData> = map.try_into().expect("a socket map");
    sockets.set(0, socket, 0).expect("a socket");
    object
}
