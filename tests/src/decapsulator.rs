//! The far end of tunnels, where the kernel has none: it takes IP in IP and GUE apart, and gives the kernel what was within.
//!
//! What was within comes up on the loopback interface, as from a tunnel's own.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xsk::PacketSocket;

use crate::lab::Host;

const ETHERNET: usize = 14;
const TYPES: [u16; 2] = [0x0800, 0x86dd];
const GUE_PORT: u16 = 6080;

/// Takes tunnels apart that end at these addresses of a host, until the test's process ends.
///
/// # Panics
/// If the host's kernel does not let it.
pub fn decapsulate(host: &Host, addresses: Vec<IpAddr>) {
    // The kernel would tell the tunnel's start that it does not know these protocols.
    let rules = "add table inet tunnels; add chain inet tunnels input { type filter hook input priority 0; }; \
                 add rule inet tunnels input meta l4proto { 4, 41 } drop";
    host.run("nft", [rules]);
    for interface in ["all", "lo", "eth0"] {
        // What comes up has a source that is reached elsewhere.
        host.sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0");
    }
    let (ready, wait) = std::sync::mpsc::channel();
    let also_ready = ready.clone();
    host.within(move || {
        let sockets = TYPES.map(|kind| PacketSocket::open("eth0", kind).expect("a packet socket"));
        let up = Up::new();
        ready.send(()).expect("the test waits");
        let mut buffer = vec![0; 1 << 16];
        loop {
            let mut waiting = sockets.each_ref().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
            let _ = poll(&mut waiting, PollTimeout::NONE);
            for socket in &sockets {
                while let Ok(Some(length)) = socket.recv(&mut buffer) {
                    if let Some(inner) = within(&buffer[..length], &addresses) {
                        up.give(inner);
                    }
                }
            }
        }
    });
    host.within(move || {
        // The kernel looks at the outer checksum.
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, GUE_PORT)).expect("a socket");
        let up = Up::new();
        also_ready.send(()).expect("the test waits");
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            up.give(&buffer[..length]);
        }
    });
    for _ in 0..2 {
        wait.recv_timeout(std::time::Duration::from_secs(5)).expect("the decapsulator is there");
    }
}

/// The packet within one of IP in IP that is for one of these addresses.
fn within<'a>(frame: &'a [u8], addresses: &[IpAddr]) -> Option<&'a [u8]> {
    let packet = frame.get(ETHERNET..)?;
    let number = |at: usize| Some(usize::from(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?)));
    let (protocol, to, header, end) = if packet.first()? >> 4 == 4 {
        let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
        (*packet.get(9)?, IpAddr::from(to), usize::from(packet[0] & 15) * 4, number(2)?)
    } else {
        let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
        (*packet.get(6)?, IpAddr::from(to), 40, 40 + number(4)?)
    };
    (matches!(protocol, 4 | 41) && addresses.contains(&to)).then(|| packet.get(header..end)).flatten()
}

/// The loopback interface, for packets of either family.
struct Up([PacketSocket; 2]);

impl Up {
    fn new() -> Self {
        Self(TYPES.map(|kind| PacketSocket::open("lo", kind).expect("a packet socket")))
    }

    fn give(&self, packet: &[u8]) {
        let at = usize::from(packet.first().is_some_and(|first| first >> 4 == 6));
        let frame = [&[0; 12][..], &TYPES[at].to_be_bytes(), packet].concat();
        // What does not fit now is lost, as on any wire.
        let _ = self.0[at].send(&frame);
    }
}
