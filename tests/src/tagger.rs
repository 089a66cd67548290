//! A station's VLANs, where its kernel has none: between a host without tags and a trunk, it puts tags on and takes them off.
//!
//! The kernel takes the outermost tag off itself before anybody sees a frame, and keeps it aside; what tag that was is told
//! by [`received`].

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xsk::PacketSocket;

use crate::lab::Host;

/// IPv4, ARP, IPv6, and what stands behind an outer tag where there are two.
const TYPES: [u16; 4] = [0x0800, 0x0806, 0x86dd, CUSTOMER];
const CUSTOMER: u16 = 0x8100;
const ADDRESSES: usize = 12;
const TAG: usize = 4;

/// A tag: its type, and the VLAN's number.
pub type Tag = (u16, u16);

/// Copies frames between `plain`, which has none of these tags, and `trunk`, which has them (the outermost first), until the
/// test's process ends.
///
/// # Panics
/// If the host's kernel does not let it.
pub fn tag(host: &Host, plain: &'static str, trunk: &'static str, tags: &[Tag]) {
    let (kind, number) = tags[0];
    let word = if kind == CUSTOMER { "8021q" } else { "8021ad" };
    let rules = format!(
        "add table netdev tagger; add chain netdev tagger {trunk} {{ type filter hook ingress device {trunk} priority 0; }}; \
         add rule netdev tagger {trunk} ether type {word} vlan id {number} counter accept; \
         add rule netdev tagger {trunk} counter accept"
    );
    host.run("nft", [rules]);
    let header: Vec<u8> =
        tags.iter().flat_map(|(kind, number)| [kind.to_be_bytes(), number.to_be_bytes()].concat()).collect();
    let within = (tags.len() - 1) * TAG;
    let (ready, wait) = std::sync::mpsc::channel();
    host.within(move || {
        let open = |interface| TYPES.map(|kind| PacketSocket::open(interface, kind).expect("a packet socket"));
        let (inside, outside) = (open(plain), open(trunk));
        ready.send(()).expect("the test waits");
        let mut buffer = vec![0; 1 << 16];
        loop {
            let all = inside.iter().chain(&outside);
            let mut waiting: Vec<_> = all.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
            let _ = poll(&mut waiting, PollTimeout::NONE);
            // What does not fit now is lost, as on any wire.
            for socket in &inside {
                while let Ok(Some(length)) = socket.recv(&mut buffer) {
                    let frame = [&buffer[..ADDRESSES], &header, &buffer[ADDRESSES..length]].concat();
                    let _ = outside[0].send(&frame);
                }
            }
            for socket in &outside {
                while let Ok(Some(length)) = socket.recv(&mut buffer) {
                    if buffer[ADDRESSES..length].starts_with(&header[TAG..]) {
                        let frame = [&buffer[..ADDRESSES], &buffer[ADDRESSES + within..length]].concat();
                        let _ = inside[0].send(&frame);
                    }
                }
            }
        }
    });
    wait.recv_timeout(std::time::Duration::from_secs(5)).expect("the tagger is there");
}

/// How many frames came to the trunk with its outermost tag, and how many otherwise.
///
/// # Panics
/// If there is no tagger.
#[must_use]
pub fn received(host: &Host) -> (u64, u64) {
    let text = host.run("nft", ["list", "table", "netdev", "tagger"]);
    let counts: Vec<u64> =
        text.lines().filter_map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse().ok()).collect();
    let [tagged, others] = counts[..] else { panic!("two counters: {text}") };
    (tagged, others)
}
