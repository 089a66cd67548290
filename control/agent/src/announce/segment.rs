//! The task of one interface: sends what is due, listens to what others claim, joins groups.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};
use wire::MacAddr;
use xsk::PacketSocket;

use super::frames::{self, TYPE_ARP, TYPE_IPV6};
use super::ownership::Orders;
use super::schedule::{Frame, Schedule};
use super::{Conflict, Conflicts, Contest, QUIET};
use crate::netlink::Link;

/// More than neighbour discovery needs; longer frames are cut and not read.
const BUFFER: usize = 1514;

/// Frames read at a time, so that a flood does not keep the task from sending.
const BATCH: usize = 64;

/// What woke the task.
enum Event {
    Orders,
    Heard(Heard),
    Due,
}

/// What a socket gave.
#[derive(Default)]
struct Heard {
    claims: Vec<(IpAddr, MacAddr)>,
    /// The socket told an error: the interface is or was down.
    went_down: bool,
}

/// A packet socket as the runtime wants it.
struct Socket(PacketSocket);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[expect(deprecated, reason = "its successor is unsafe: a type may change its descriptor, which `Socket` never does")]
fn socket(interface: &str, ethertype: u16) -> io::Result<AsyncFd<Socket>> {
    AsyncFd::new(Socket(PacketSocket::open(interface, ethertype)?))
}

/// One interface.
pub(super) struct Segment {
    interface: String,
    mac: MacAddr,
    /// The link-layer addresses of all our NICs: two of them on one segment hear each other.
    own: BTreeSet<MacAddr>,
    arp: AsyncFd<Socket>,
    ipv6: AsyncFd<Socket>,
    groups: BTreeSet<[u8; 6]>,
    schedule: Schedule,
    orders: watch::Receiver<Orders>,
    /// How often each address was announced again.
    again: BTreeMap<IpAddr, u64>,
    conflicts: Arc<Conflicts>,
}

impl Segment {
    pub fn open(
        link: &Link,
        own: BTreeSet<MacAddr>,
        orders: watch::Receiver<Orders>,
        conflicts: Arc<Conflicts>,
    ) -> io::Result<Self> {
        Ok(Self {
            interface: link.name.clone(),
            mac: link.mac,
            own,
            arp: socket(&link.name, TYPE_ARP)?,
            ipv6: socket(&link.name, TYPE_IPV6)?,
            groups: BTreeSet::new(),
            schedule: Schedule::default(),
            orders,
            again: BTreeMap::new(),
            conflicts,
        })
    }

    /// Runs until the announcer is dropped.
    pub async fn run(mut self) {
        let mut prune_at = Instant::now() + QUIET;
        loop {
            let due = self.schedule.next().unwrap_or(prune_at).min(prune_at);
            let event = tokio::select! {
                changed = self.orders.changed() => match changed {
                    Ok(()) => Event::Orders,
                    Err(_) => return,
                },
                heard = listen(&self.arp) => Event::Heard(heard),
                heard = listen(&self.ipv6) => Event::Heard(heard),
                () = sleep_until(due) => Event::Due,
            };
            let now = Instant::now();
            match event {
                Event::Orders => self.take_orders(now),
                Event::Heard(heard) => self.take_heard(heard, now),
                Event::Due => {}
            }
            if now >= prune_at {
                self.prune(now);
                prune_at = now + QUIET / 4;
            }
            for (address, frame) in self.schedule.due(now, &self.conflicts.on(&self.interface)) {
                self.send(address, frame, now);
            }
        }
    }

    fn prune(&self, now: Instant) {
        self.conflicts.prune(&self.interface, &self.orders.borrow().addresses, now);
    }

    fn take_heard(&mut self, heard: Heard, now: Instant) {
        if heard.went_down {
            debug!(interface = self.interface, "the interface went down; announcing again");
            self.schedule.again(now);
        }
        for (address, mac) in heard.claims {
            self.judge(address, mac, now);
        }
    }

    fn take_orders(&mut self, now: Instant) {
        let orders = self.orders.borrow_and_update().clone();
        self.schedule.set(&orders.addresses, &orders.shared, now);
        self.schedule.watch(&orders.watched, now);
        for (address, _) in orders.again.iter().filter(|(address, times)| self.again.get(address) != Some(times)) {
            self.schedule.restart(*address, now);
        }
        self.again = orders.again;
        self.prune(now);
        let groups = frames::groups(&orders.addresses);
        let socket = &self.ipv6.get_ref().0;
        for &group in groups.difference(&self.groups) {
            if let Err(error) = socket.join_multicast(group) {
                let group = MacAddr(group);
                warn!(interface = self.interface, %group, %error, "the NIC cannot be told to let this group in");
            }
        }
        for &group in self.groups.difference(&groups) {
            if let Err(error) = socket.leave_multicast(group) {
                debug!(interface = self.interface, group = %MacAddr(group), %error, "not left");
            }
        }
        self.groups = groups;
    }

    /// Another machine says that it has `address`.
    fn judge(&mut self, address: IpAddr, mac: MacAddr, now: Instant) {
        if self.own.contains(&mac) {
            return;
        }
        let (shared, peer) = {
            let orders = self.orders.borrow();
            (orders.shared.contains(&address), orders.peers.contains(&mac))
        };
        if shared && peer {
            return;
        }
        if shared {
            self.conflicts.report(Contest { address, theirs: mac, ours: self.mac });
        }
        if !self.schedule.contains(address) {
            return;
        }
        self.conflicts.see(Conflict { interface: self.interface.clone(), address, mac }, now);
        if let Some(frame) = self.schedule.contested(address, now) {
            self.send(address, frame, now);
        }
    }

    fn send(&mut self, address: IpAddr, frame: Frame, now: Instant) {
        let octets = match frame {
            Frame::Probe => frames::probe(self.mac, address),
            Frame::Announcement => frames::announcement(self.mac, address),
        };
        let socket = if address.is_ipv4() { &self.arp } else { &self.ipv6 };
        if let Err(error) = socket.get_ref().0.send(&octets) {
            debug!(interface = self.interface, %address, %error, "not announced; trying again");
            self.schedule.failed(address, now);
        }
    }
}

/// Waits until something was read from the socket.
async fn listen(socket: &AsyncFd<Socket>) -> Heard {
    // The only error is that the runtime shuts down.
    let Ok(mut ready) = socket.readable().await else { return std::future::pending().await };
    let mut heard = Heard::default();
    let mut buffer = [0; BUFFER];
    for _ in 0..BATCH {
        match socket.get_ref().0.recv(&mut buffer) {
            Ok(Some(len)) => heard.claims.extend(frames::claim(&buffer[..len])),
            Ok(None) => {
                ready.clear_ready();
                break;
            }
            Err(_) => heard.went_down = true,
        }
    }
    heard
}
