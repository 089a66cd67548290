//! The sender: a thread on a core of its own that has the kernel run a BPF program over live frames.
//!
//! A load is one system call: each takes some tens of milliseconds to begin and end (the kernel waits for a grace period
//! of RCU). Meanwhile another thread counts. Source: `Documentation/bpf/bpf_prog_run.rst`.

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use millrace_tests::lab::Host;
use wire::MacAddr;

use super::{VIP, VIP_PORT};
use crate::cores;

/// Frames that the kernel has in hand at once: they arrive together.
const BATCH: u32 = 32;
/// Bits of fraction of a nanosecond that the program counts time in.
const FRACTION: u32 = 8;
/// How long a load may take to begin.
const PATIENCE: Duration = Duration::from_secs(5);

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/send.o"));

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The sending interface's index.
    pub interface: u32,
    /// The link-layer address behind it.
    pub mac: MacAddr,
    /// How many flows take turns.
    pub flows: usize,
    /// Octets of a frame, without the frame check sequence.
    pub size: usize,
    /// Packets a second, 20,000 at least; fewer are sent when the core cannot.
    pub rate: f64,
}

/// What came of a load while it was counted.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Packets sent.
    pub sent: u64,
    /// Packets that the counted interface received.
    pub delivered: u64,
    /// For how long it was counted.
    pub elapsed: Duration,
}

impl Outcome {
    /// Million packets a second that were sent.
    pub fn offered_mpps(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64() / 1e6
    }

    /// Million packets a second that arrived.
    pub fn delivered_mpps(&self) -> f64 {
        self.delivered as f64 / self.elapsed.as_secs_f64() / 1e6
    }
}

/// The sending thread, and what was sent and received. It ends when this is dropped.
pub struct Sender {
    orders: Option<mpsc::Sender<(usize, u32)>>,
    done: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
    plan: Array<MapData, [u64; 6]>,
    progress: Array<MapData, [u64; 3]>,
    counters: File,
}

impl Sender {
    /// Starts it in `host`, on `core`; it counts at interfaces of `sink`.
    pub fn start(host: &Host, sink: &Host, core: usize) -> Self {
        let counters = sink.within(|| File::open("/proc/thread-self/net/dev")).join().expect("a thread");
        let counters = counters.expect("every kernel has /proc/thread-self/net/dev");
        let mut object = Ebpf::load(OBJECT).expect("the kernel takes the sender's program");
        let plan = object.take_map("plans").expect("it is in the object").try_into().expect("an array");
        let progress = object.take_map("progresses").expect("it is in the object").try_into().expect("an array");
        let program: &mut Xdp = object.program_mut("send").expect("it is in the object").try_into().expect("XDP");
        program.load().expect("the kernel takes the sender's program");
        let (orders, ordered) = mpsc::channel();
        let (give, done) = mpsc::channel();
        let thread = host.within(move || {
            cores::bind_this_thread(core);
            for (size, packets) in ordered {
                run(&object, size, packets);
                if give.send(()).is_err() {
                    break;
                }
            }
        });
        Self { orders: Some(orders), done, thread: Some(thread), plan, progress, counters }
    }

    /// Sends so many packets, and counts what `counted` of the sink received of all of them.
    pub fn send(&mut self, load: &Load, packets: u32, counted: &str) -> Outcome {
        let (delivered, start) = (self.received(counted), Instant::now());
        self.begin(load, packets);
        self.done.recv().expect("the sender runs");
        let (delivered, elapsed) = (self.received(counted) - delivered, start.elapsed());
        Outcome { sent: self.sent(), delivered, elapsed }
    }

    /// Sends, and once it did so for a while counts for a while.
    pub fn measure(&mut self, load: &Load, settle: Duration, window: Duration, counted: &str) -> Outcome {
        // A little more, so that it still sends when the counting thread wakes late.
        let seconds = (settle + window).as_secs_f64() * 1.1 + 0.002;
        self.begin(load, (load.rate * seconds) as u32);
        let deadline = Instant::now() + PATIENCE;
        while self.sent() == 0 {
            assert!(Instant::now() < deadline, "nothing is sent: {load:?}");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(settle);
        let (sent, delivered, start) = (self.sent(), self.received(counted), Instant::now());
        thread::sleep(window);
        let (all, delivered, elapsed) = (self.sent(), self.received(counted) - delivered, start.elapsed());
        self.done.recv().expect("the sender runs");
        Outcome { sent: all - sent, delivered, elapsed }
    }

    fn begin(&mut self, load: &Load, packets: u32) {
        let interval = (1e9 / load.rate * f64::from(1 << FRACTION)) as u64;
        let mac = load.mac.0.iter().fold(0, |mac, octet| mac << 8 | u64::from(*octet));
        let vip = u64::from(u32::from(VIP));
        let plan = [load.interface.into(), load.flows as u64, interval, mac, vip, VIP_PORT.into()];
        self.plan.set(0, plan, 0).expect("one entry");
        self.progress.set(0, [0; 3], 0).expect("one entry");
        let orders = self.orders.as_ref().expect("it is there until the drop");
        orders.send((load.size, packets)).expect("the sender runs");
    }

    fn sent(&self) -> u64 {
        self.progress.get(&0, 0).expect("one entry")[2]
    }

    /// Packets that an interface of the sink received so far.
    fn received(&mut self, interface: &str) -> u64 {
        let mut text = String::new();
        self.counters.rewind().and_then(|()| self.counters.read_to_string(&mut text)).expect("counters");
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
        let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        packets.unwrap_or_else(|| panic!("no counters of {interface}: {text}"))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Has the kernel run the program over so many frames of `size` octets.
fn run(object: &Ebpf, size: usize, packets: u32) {
    let program: &Xdp = object.program("send").expect("it is in the object").try_into().expect("XDP");
    let frame = vec![0; size];
    let options = TestRunOptions {
        data_in: Some(&frame),
        repeat: packets,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::new()
    };
    program.test_run(options).expect("BPF_PROG_RUN with live frames: a kernel of 5.18 at least, and root");
}
