//! The kernel's links, addresses, routes and neighbours, followed live, and what they say: the next hop to an address.
//!
//! Everything here may be asked from any thread; the following itself runs on the tokio runtime that [`Network::start`]
//! was called in, in the network namespace of that thread. `view` is the pure picture, `follow` keeps it true,
//! `neighbours` keeps next hops resolved, `connections` is how both talk to the kernel. Source: rtnetlink(7).

mod connections;
mod follow;
mod link;
mod neighbours;
mod routes;
mod view;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use lb::PortId;
use lb::tables::{Hop, HopState, KernelPort};
use tokio::sync::watch;
use tracing::{error, warn};
use wire::MacAddr;

use follow::Follower;
use view::View;

/// How long the end waits for neighbours to be let go of.
const RELEASE: Duration = Duration::from_secs(5);

/// A NIC of ours as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its link-layer address.
    pub mac: MacAddr,
    /// Largest IP packet, octets.
    pub mtu: u32,
    /// Receive queues.
    pub rx_queues: u32,
    /// Transmit queues.
    pub tx_queues: u32,
    /// Whether frames may have partial checksums (veth, virtio, tap).
    pub virtual_device: bool,
    /// Whether it is up with carrier.
    pub up: bool,
    /// What the kernel calls its kind (`veth`, `bond`, `vlan`, `bridge`, `vxlan`), empty for hardware.
    pub kind: String,
}

impl Link {
    /// Whether it stands on other devices (bond, VLAN, bridge, tunnel): no place for AF_XDP sockets.
    #[must_use]
    pub fn is_stacked(&self) -> bool {
        !matches!(self.kind.as_str(), "" | "veth" | "tun" | "netkit" | "netdevsim" | "dummy" | "ifb")
    }
}

/// An address that the host itself owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The interface that has it (any of the host's, not only ours).
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
}

/// The way to addresses that the kernel does not reach by a NIC of ours, or that are the host's own: by the port that is
/// our end of a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToKernel {
    /// Our end.
    pub port: PortId,
    /// The name of the kernel's end.
    pub peer: String,
    /// Whether IPv4 goes there, and whether IPv6 does.
    pub families: (bool, bool),
    /// Whether answers to clients' own addresses come back by it.
    pub brings_back: bool,
}

/// Why the kernel's network state cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// An interface of the configuration is not there.
    #[error("there is no interface `{0}`; see `ip link` and correct `interfaces`")]
    NoInterface(String),
    /// Netlink failed.
    #[error("netlink: {0}")]
    Netlink(String),
    /// The kernel did not answer, or what it answered was lost. A new connection may do better.
    #[error("netlink: no answer: {0}")]
    Unanswered(String),
}

impl From<rtnetlink::Error> for NetworkError {
    fn from(error: rtnetlink::Error) -> Self {
        Self::Netlink(error.to_string())
    }
}

impl From<std::io::Error> for NetworkError {
    fn from(error: std::io::Error) -> Self {
        Self::Netlink(error.to_string())
    }
}

/// The kernel's network state. Its following ends when this is dropped.
#[derive(Debug)]
pub struct Network {
    view: Arc<RwLock<View>>,
    /// Whose neighbours are to stay resolved; the following task takes it up.
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    /// True once nothing of ours is left in the kernel's neighbour table.
    released: watch::Receiver<bool>,
    /// Why the following ended, once it did so by itself.
    ended: watch::Receiver<Option<String>>,
}

impl Network {
    /// Reads everything once and follows it from then on; `interfaces` are those of the configuration, in its order, so
    /// that an index is a [`lb::PortId`]. The receiver's number changes with anything that may change an answer of this.
    ///
    /// # Errors
    /// If an interface is not there or netlink fails.
    pub async fn start(interfaces: &[String]) -> Result<(Arc<Self>, watch::Receiver<u64>), NetworkError> {
        Self::start_with(interfaces, None).await
    }

    /// The same with one of these interfaces a way to the kernel.
    ///
    /// # Errors
    /// As [`Network::start`].
    pub async fn start_with(
        interfaces: &[String],
        to_kernel: Option<ToKernel>,
    ) -> Result<(Arc<Self>, watch::Receiver<u64>), NetworkError> {
        let view = Arc::new(RwLock::new(View::new(interfaces.to_vec(), to_kernel)));
        let (changes, receiver) = watch::channel(0);
        let (wanted, wants) = watch::channel(BTreeSet::new());
        let (release, released) = watch::channel(true);
        let mut follower = Follower::open(Arc::clone(&view), changes, wants, release)?;
        follower.load().await?;
        if let Some(name) = view.read().unwrap_or_else(PoisonError::into_inner).missing() {
            return Err(NetworkError::NoInterface(name));
        }
        let ended = Self::follow(follower);
        Ok((Arc::new(Self { view, wanted, released, ended }), receiver))
    }

    /// Starts the following. The receiver is told why it ended, and closes when it did.
    fn follow(follower: Follower) -> watch::Receiver<Option<String>> {
        let (end, ended) = watch::channel(None);
        tokio::spawn(async move {
            if let Err(error) = follower.run().await {
                error!(%error, "routes and neighbours are no longer followed");
                end.send_replace(Some(error.to_string()));
            }
        });
        ended
    }

    /// Why the kernel is no longer followed, if it is not: what this answers does not change any more then.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        let is_over = self.ended.has_changed().is_err();
        let why = self.ended.borrow().clone();
        // While this is there, only a panic ends it without a word.
        why.or_else(|| is_over.then(|| "the task that follows netlink panicked".to_owned()))
    }

    fn view<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        // A reader never leaves the picture half-changed, and the only writer replaces whole values: poison says nothing.
        read(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Our NICs by [`lb::PortId`]; one that went away stays, as not up.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        self.view(|view| view.ours().to_vec())
    }

    /// VLAN subinterfaces that a NIC of ours serves and which that is, by their index. Their link-layer address is the NIC's.
    #[must_use]
    pub fn vlans(&self) -> Vec<(PortId, Link)> {
        self.view(View::vlans)
    }

    /// The next hop to an address, by one of our NICs. As the kernel would route it, among the routes of the longest
    /// prefix those by our NICs; an address of the host itself has none. With a way to the kernel that is the next hop to
    /// the host itself, and to what the best of these routes leads to by none of our NICs.
    #[must_use]
    pub fn hop(&self, address: IpAddr) -> Hop {
        self.view(|view| view.hop(address)).unwrap_or(Hop { mtu: 0, ..Hop::NO_ROUTE })
    }

    /// The way to the kernel as packets take it, where there is one.
    #[must_use]
    pub fn to_kernel(&self) -> Option<KernelPort> {
        self.view(View::to_kernel)
    }

    /// Blocks until no next hop to these addresses is still to be resolved, for `limit` at most. The task that follows the
    /// kernel must be free to run meanwhile.
    pub fn await_resolved(&self, addresses: &[IpAddr], limit: Duration) {
        let deadline = Instant::now() + limit;
        let is_open = |hop: Option<Hop>| hop.is_some_and(|hop| hop.state == HopState::Unresolved);
        let open = || self.view(|view| addresses.iter().any(|address| is_open(view.hop(*address))));
        while open() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Counts what may have changed an answer: as long as it is the same, so is every [`Network::hop`].
    #[must_use]
    pub fn version(&self) -> u64 {
        self.view(View::version)
    }

    /// Keeps the neighbours towards these addresses resolved too, and those towards others no longer.
    pub fn resolve_also(&self, added: &[IpAddr], removed: &[IpAddr]) {
        self.wanted.send_if_modified(|wanted| {
            let mut differs = false;
            removed.iter().for_each(|address| differs |= wanted.remove(address));
            added.iter().for_each(|address| differs |= wanted.insert(*address));
            differs
        });
    }

    /// Keeps the neighbours towards exactly these addresses resolved (the call replaces the former set).
    pub fn resolve(&self, addresses: BTreeSet<IpAddr>) {
        self.wanted.send_if_modified(|wanted| {
            let differs = *wanted != addresses;
            *wanted = addresses;
            differs
        });
    }

    /// Lets go of every neighbour that was kept resolved, and waits until that is done, for some seconds at most: call it at
    /// the end.
    pub async fn release(&self) {
        let mut released = self.released.clone();
        self.resolve(BTreeSet::new());
        // An error means that the following ended, which undoes the same.
        if tokio::time::timeout(RELEASE, released.wait_for(|released| *released)).await.is_err() {
            warn!("the kernel keeps neighbours resolved that nobody needs: those that `ip neigh` calls `managed`");
        }
    }

    /// Every address of the host, of all its interfaces, ordered.
    #[must_use]
    pub fn host_addresses(&self) -> Vec<HostAddress> {
        self.view(View::host_addresses)
    }
}

#[cfg(test)]
pub(crate) mod lab;
#[cfg(test)]
mod tests;
