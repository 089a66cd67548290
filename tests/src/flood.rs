//! A flood: SYNs of sources that do not exist, sent over AF_XDP from a host's own interface.
//!
//! Nothing answers the SYN-ACKs. So that the far end's kernel is not what is measured, its hosts drop the flood's SYNs where
//! they come in ([`absorb`]), told by their TTL; connections that are meant have another.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use xsk::{BURST, BindMode, Frame, Queue, QueueConfig, Umem, XskQueue};

use crate::lab::{Host, run};

/// The flood's TTL at its source; a router less at the far end.
const TTL: u8 = 77;
const FRAME: usize = 54;
const FRAMES: u32 = 4096;

/// Has a host drop what is left of a flood before its own stack sees it.
pub fn absorb(host: &Host) {
    let rules = format!(
        "table netdev flood {{\nchain in {{\ntype filter hook ingress device eth0 priority 0;\nip ttl {{ {}, {TTL} }} drop\n}}\n}}",
        TTL - 1
    );
    host.run("nft", [rules]);
}

/// A flood, until it is dropped.
pub struct Flood {
    stop: Arc<AtomicBool>,
    rate: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// Begins a flood of `target` from a host's `interface` to the station `mac`, with no SYN yet.
#[must_use]
pub fn begin(host: &Host, interface: &'static str, mac: [u8; 6], target: (Ipv4Addr, u16)) -> Flood {
    let stop = Arc::new(AtomicBool::new(false));
    let (rate, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (stop_in, rate_in, sent_in) = (Arc::clone(&stop), Arc::clone(&rate), Arc::clone(&sent));
    let thread = host.within(move || {
        // A flood comes from elsewhere: it takes only what clients and servers leave of this machine's cores.
        run("renice", ["-n", "19", "-p", &nix::unistd::gettid().to_string()]);
        let (umem, frames) = Umem::new(FRAMES, 2048, false).expect("memory for frames");
        let config = QueueConfig { mode: BindMode::Copy, ..QueueConfig::default() };
        let queue = XskQueue::bind(&umem, interface, 0, &config).expect("a socket on the interface");
        let sender = Sender { umem, queue, pool: frames, template: template(mac, target), next: 0 };
        sender.run(&stop_in, &rate_in, &sent_in);
    });
    Flood { stop, rate, sent, thread: Some(thread) }
}

impl Flood {
    /// So many SYNs a second from now on.
    pub fn set_rate(&self, per_second: u64) {
        self.rate.store(per_second, Ordering::Relaxed);
    }

    /// SYNs so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the flood failed");
        }
    }
}

struct Sender {
    umem: Umem,
    queue: XskQueue,
    pool: Vec<Frame>,
    template: [u8; FRAME],
    next: u32,
}

impl Sender {
    fn run(mut self, stop: &AtomicBool, rate: &AtomicU64, sent: &AtomicU64) {
        let mut ready = Vec::with_capacity(BURST);
        let (mut rate_now, mut begun, mut of_rate) = (0, Instant::now(), 0u64);
        while !stop.load(Ordering::Relaxed) {
            let wanted = rate.load(Ordering::Relaxed);
            if wanted != rate_now {
                (rate_now, begun, of_rate) = (wanted, Instant::now(), 0);
            }
            let due = (begun.elapsed().as_nanos() * u128::from(rate_now) / 1_000_000_000) as u64;
            let count = due.saturating_sub(of_rate).min(BURST as u64) as usize;
            // What could not be sent in time is not made up for in a burst.
            of_rate = of_rate.max(due.saturating_sub(4 * BURST as u64));
            self.queue.reclaim(&mut self.pool);
            for _ in ready.len()..count {
                let Some(mut frame) = self.pool.pop() else { break };
                let syn = self.syn();
                self.umem.room_mut(&mut frame)[..FRAME].copy_from_slice(&syn);
                frame.set_len(FRAME);
                ready.push(frame);
            }
            let done = self.queue.send(&mut ready) as u64;
            self.queue.kick();
            of_rate += done;
            sent.fetch_add(done, Ordering::Relaxed);
            if done == 0 {
                std::thread::park_timeout(Duration::from_micros(100));
            }
        }
        while self.queue.in_flight() > 0 {
            self.queue.kick();
            self.queue.reclaim(&mut self.pool);
        }
    }

    /// The next SYN: of another source address and port than all for a long time.
    fn syn(&mut self) -> [u8; FRAME] {
        self.next = self.next.wrapping_add(1);
        let scattered = self.next.wrapping_mul(0x9e37_79b1);
        let mut frame = self.template;
        // 198.18.0.0/15 (RFC 2544).
        frame[26..30].copy_from_slice(&(0xc612_0000 | scattered >> 15).to_be_bytes());
        frame[34..36].copy_from_slice(&(1024 + (scattered & 0x7fff) as u16).to_be_bytes());
        frame[38..42].copy_from_slice(&scattered.rotate_left(16).to_be_bytes());
        let ip = checksum(0, &frame[14..34]);
        frame[24..26].copy_from_slice(&ip.to_be_bytes());
        let pseudo = 6 + 20 + words(&frame[26..34]);
        let tcp = checksum(pseudo, &frame[34..54]);
        frame[50..52].copy_from_slice(&tcp.to_be_bytes());
        frame
    }
}

/// A SYN without source and checksums.
fn template(mac: [u8; 6], (address, port): (Ipv4Addr, u16)) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&mac);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0xf, 1]);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, TTL, 6]);
    frame[30..34].copy_from_slice(&address.octets());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame[46..50].copy_from_slice(&[0x50, 2, 0xff, 0xff]);
    frame
}

fn words(octets: &[u8]) -> u32 {
    octets.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum()
}

fn checksum(sum: u32, octets: &[u8]) -> u16 {
    let sum = sum + words(octets);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
