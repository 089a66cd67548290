//! The probe: datagrams that say when they were sent, stamped by the kernel when they are received.
//!
//! Source: `Documentation/networking/timestamping.rst` (SO_TIMESTAMPNS), `socket(7)`.

use std::io::IoSliceMut;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use super::site::{SERVER_PORT, Site};
use crate::cores;

/// Probes that open flow and neighbours, and are not counted.
const WARM_UP: u64 = 50;
/// How long the last probe may take.
const GRACE: Duration = Duration::from_millis(300);
/// Of a thousand probes so many may be lost.
const MOST_LOST: u64 = 10;
/// What is later counts as this, in nanoseconds.
const LONGEST_NS: u64 = 10_000_000_000;
/// Significant digits of the histogram.
const DIGITS: u8 = 3;

/// How long probes took.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// The median, in microseconds.
    pub p50_us: f64,
    /// Of a thousand the last but one, in microseconds.
    pub p999_us: f64,
}

/// Sends `rate` probes a second to `to` for so long, client and server on `core`.
///
/// # Errors
/// When too many are lost.
pub fn probe(site: &Site, to: SocketAddrV4, core: usize, rate: u32, time: Duration) -> Result<Delays, String> {
    let count = (time.as_secs_f64() * f64::from(rate)) as u64;
    let (ready, wait) = mpsc::channel();
    let server = site.server.within(move || {
        cores::bind_this_thread(core);
        let socket = UdpSocket::bind(("0.0.0.0", SERVER_PORT)).expect("the server's port");
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("every kernel stamps");
        socket.set_read_timeout(Some(GRACE)).expect("a timeout");
        ready.send(()).expect("it is waited for");
        receive(&socket, count)
    });
    wait.recv().expect("the server starts");
    let client = site.client.within(move || {
        cores::bind_this_thread(core);
        send(to.into(), count, Duration::from_secs(1) / rate);
    });
    client.join().expect("the client sends");
    let delays = server.join().expect("the server receives");
    let lost = count.saturating_sub(delays.len());
    if lost * 1000 > count * MOST_LOST {
        return Err(format!("{lost} of {count} probes to {to} were lost: is something else at work on these cores?"));
    }
    let us = |quantile| delays.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Delays { p50_us: us(0.5), p999_us: us(0.999) })
}

/// Each probe carries its number and the time.
fn send(to: SocketAddr, count: u64, pace: Duration) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(to).expect("a route");
    let start = Instant::now();
    for number in 0..WARM_UP + count {
        let due = start + pace * number as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut probe = [0; 16];
        probe[..8].copy_from_slice(&number.to_be_bytes());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        probe[8..].copy_from_slice(&(now.as_nanos() as u64).to_be_bytes());
        // What is not sent is lost, and counted so.
        let _ = socket.send(&probe);
    }
}

/// Nanoseconds that probes took, until all came or nothing more does.
fn receive(socket: &UdpSocket, count: u64) -> Histogram<u64> {
    let mut delays = Histogram::new_with_max(LONGEST_NS, DIGITS).expect("such a histogram is possible");
    let mut control = nix::cmsg_space!(TimeSpec);
    let mut quiet = 0;
    while delays.len() < count && quiet < 4 {
        let mut probe = [0; 16];
        let mut into = [IoSliceMut::new(&mut probe)];
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut control), MsgFlags::empty());
        let Ok(message) = received else {
            quiet += 1;
            continue;
        };
        quiet = 0;
        let stamp = message.cmsgs().expect("room for the stamp").find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time).as_nanos() as u64),
            _ => None,
        });
        let word = |at: usize| u64::from_be_bytes(probe[at..at + 8].try_into().expect("eight octets"));
        if word(0) >= WARM_UP {
            let delay = stamp.expect("it was asked for").saturating_sub(word(8));
            delays.saturating_record(delay);
        }
    }
    delays
}
