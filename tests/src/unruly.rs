//! A wire that delays, reorders, duplicates, damages and loses frames, as this kernel has no netem: a thread that carries
//! them between two interfaces of a host by packet sockets (packet(7)).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket};

use crate::lab::Host;

/// Frames on their way at most; more are lost.
const MOST: usize = 4096;
/// Longest frame.
const FRAME: usize = 2048;

/// What happens to frames.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// How long each takes at least.
    pub delay: Duration,
    /// How much longer one may take: those behind it overtake it.
    pub jitter: Duration,
    /// How many of a million are sent twice.
    pub duplicated: u32,
    /// How many of a million have a bit turned over.
    pub damaged: u32,
    /// How many of a million are lost.
    pub lost: u32,
}

/// What happened.
#[derive(Default, Debug)]
pub struct Seen {
    /// Frames carried, without copies.
    pub carried: AtomicU64,
    /// Frames that left after one that came later.
    pub overtaken: AtomicU64,
    /// Frames sent twice.
    pub duplicated: AtomicU64,
    /// Frames with a bit turned over.
    pub damaged: AtomicU64,
}

/// The wire; ends when dropped.
pub struct Unruly {
    /// What happened so far.
    pub seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Unruly {
    /// Carries frames between two interfaces of a host, which must be up and have no address.
    ///
    /// # Panics
    /// If there is no such interface.
    #[must_use]
    pub fn between(host: &Host, interfaces: [&'static str; 2], manners: Manners) -> Self {
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let (counts, end) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = host.within(move || {
            let sockets = interfaces.map(open);
            Carrier { sockets, manners, seen: counts, random: 0x9e37_79b9_7f4a_7c15, waiting: BinaryHeap::new() }
                .run(&end);
        });
        Self { seen, stop, thread: Some(thread) }
    }
}

impl Drop for Unruly {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A socket that gets every frame that comes in by an interface.
fn open(interface: &str) -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).expect("a packet socket");
    let named = getifaddrs().expect("interfaces").filter(|found| found.interface_name == interface);
    let link = named.filter_map(|found| found.address).find_map(|address| address.as_link_addr().copied());
    // Of this address the interface counts; the protocol stays the socket's.
    bind(socket.as_raw_fd(), &link.unwrap_or_else(|| panic!("no interface {interface}"))).expect("to bind it");
    socket
}

/// A frame on its way, by when it is due.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    number: u64,
    to: usize,
    frame: Vec<u8>,
}

struct Carrier {
    sockets: [OwnedFd; 2],
    manners: Manners,
    seen: Arc<Seen>,
    random: u64,
    waiting: BinaryHeap<Reverse<Waiting>>,
}

impl Carrier {
    fn run(mut self, stop: &AtomicBool) {
        let (mut number, mut latest) = (0, [0; 2]);
        while !stop.load(Ordering::Relaxed) {
            self.wait();
            for from in 0..2 {
                while let Some(frame) = self.receive(from) {
                    number += 1;
                    self.take(number, 1 - from, frame);
                }
            }
            let now = Instant::now();
            while self.waiting.peek().is_some_and(|Reverse(first)| first.due <= now) {
                let Some(Reverse(Waiting { number, to, frame, .. })) = self.waiting.pop() else { break };
                if number < latest[to] {
                    self.seen.overtaken.fetch_add(1, Ordering::Relaxed);
                }
                latest[to] = latest[to].max(number);
                // A full interface loses it, as a wire may.
                let _ = send(self.sockets[to].as_raw_fd(), &frame, MsgFlags::empty());
            }
        }
    }

    /// Until a frame comes or is due.
    fn wait(&self) {
        let until = self.waiting.peek().map_or(Duration::from_millis(20), |Reverse(first)| {
            first.due.saturating_duration_since(Instant::now()).min(Duration::from_millis(20))
        });
        let mut fds = [0, 1].map(|at| PollFd::new(self.sockets[at].as_fd(), PollFlags::POLLIN));
        let timeout = PollTimeout::try_from(until.as_millis() as i32).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }

    fn receive(&self, from: usize) -> Option<Vec<u8>> {
        let mut frame = vec![0; FRAME];
        match recv(self.sockets[from].as_raw_fd(), &mut frame, MsgFlags::MSG_TRUNC) {
            Ok(len) => {
                assert!(len <= FRAME, "a frame of {len} octets: segmentation offload is on");
                frame.truncate(len);
                Some(frame)
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => None,
            Err(error) => panic!("recv: {error}"),
        }
    }

    /// Decides what becomes of a frame.
    fn take(&mut self, number: u64, to: usize, mut frame: Vec<u8>) {
        self.seen.carried.fetch_add(1, Ordering::Relaxed);
        if self.waiting.len() >= MOST || self.happens(self.manners.lost) {
            return;
        }
        if self.happens(self.manners.damaged) {
            let bit = self.next() as usize % (frame.len() * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
            self.seen.damaged.fetch_add(1, Ordering::Relaxed);
        }
        let copies = if self.happens(self.manners.duplicated) { 2 } else { 1 };
        self.seen.duplicated.fetch_add(copies - 1, Ordering::Relaxed);
        for _ in 0..copies {
            let more = self.next() % (self.manners.jitter.as_micros() as u64 + 1);
            let due = Instant::now() + self.manners.delay + Duration::from_micros(more);
            self.waiting.push(Reverse(Waiting { due, number, to, frame: frame.clone() }));
        }
    }

    fn happens(&mut self, of_a_million: u32) -> bool {
        self.next() % 1_000_000 < u64::from(of_a_million)
    }

    /// xorshift64: the same every time.
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 11
    }
}
