//! Keeps the [`View`] true: reads everything once, then follows the kernel's notifications.
//!
//! Neighbours are followed message by message. Links, addresses and routes are read again as a whole when one of them
//! changed, for the kernel does not tell everything (IPv4 routes that vanish with their link are not announced, and a
//! replaced route looks like a new one). An overflow of the socket (`ENOBUFS`) makes all of it be read again.
//!
//! Order: what was announced while a dump ran is applied after it, so the last word of the kernel stands.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ethtool::EthtoolHandle;
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, IpVersion, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until};
use tracing::{error, warn};

use super::neighbours::{Kept, RETRY};
use super::routes::Routes;
use super::view::{Dump, View};
use super::{NetworkError, link};

type Message = NetlinkMessage<RouteNetlinkMessage>;
type Messages = std::pin::Pin<Box<dyn Stream<Item = Message> + Send>>;

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Nexthop,
];

/// Reading everything again may take this part of the time, so that a full routing table that churns does not fill a
/// core: one ninth.
const REST: u32 = 8;

/// How often the numbers of queues are asked for: `ethtool -L` is not announced to route netlink.
const QUEUES: Duration = Duration::from_secs(1);

/// What a batch of notifications asks for.
#[derive(Default)]
struct Due {
    /// An answer may have changed already.
    changed: bool,
    /// Links, addresses and routes are to be read again.
    reload: bool,
    /// Notifications were lost: everything is to be read again.
    lost: bool,
}

/// The task that follows the kernel.
pub(super) struct Follower {
    handle: Handle,
    ethtool: Option<EthtoolHandle>,
    messages: Messages,
    view: Arc<RwLock<View>>,
    changes: watch::Sender<u64>,
    wanted: watch::Receiver<BTreeSet<IpAddr>>,
    released: watch::Sender<bool>,
    kept: Kept,
}

impl Follower {
    /// Subscribes before anything is read, so that nothing is missed in between.
    pub fn open(
        view: Arc<RwLock<View>>,
        changes: watch::Sender<u64>,
        wanted: watch::Receiver<BTreeSet<IpAddr>>,
        released: watch::Sender<bool>,
    ) -> Result<Self, NetworkError> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
        // After an overflow the kernel drops everything, and does not say so again, until the socket was read empty. What is
        // read anew must be read after that: an overrun is forwarded with all that was in the socket.
        tokio::spawn(unconstrained(connection));
        // Only for the numbers of queues; a kernel without it leaves those of the link messages.
        let ethtool = ethtool::new_connection().ok().map(|(connection, handle, _)| {
            tokio::spawn(connection);
            handle
        });
        let messages = Box::pin(messages.map(|(message, _)| message));
        Ok(Self { handle, ethtool, messages, view, changes, wanted, released, kept: Kept::default() })
    }

    /// Reads everything. Returns whether an answer may have changed.
    pub async fn load(&mut self) -> Result<bool, NetworkError> {
        let changed = self.reload().await?;
        let neighbours: Vec<_> = self.handle.neighbours().get().execute().try_collect().await?;
        Ok(self.write(|view| view.replace_neighbours(&neighbours)) || changed)
    }

    /// Reads everything but the neighbours.
    async fn reload(&mut self) -> Result<bool, NetworkError> {
        let mut dump = Dump { links: self.handle.link().get().execute().try_collect().await?, ..Dump::default() };
        let ours: Vec<_> = self.view.read().unwrap_or_else(PoisonError::into_inner).ours().to_vec();
        for message in &dump.links {
            let name = message.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) if ours.iter().any(|link| link.name == *name) => Some(name),
                _ => None,
            });
            let (Some(name), Some(ethtool)) = (name, &mut self.ethtool) else { continue };
            if let Some(queues) = link::channels(ethtool, name).await {
                dump.queues.insert(message.header.index, queues);
            }
        }
        dump.addresses = self.handle.address().get().execute().try_collect().await?;
        let mut routes = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let any = match version {
                IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
            };
            let mut replies = Box::pin(self.handle.route().get(any).execute());
            while let Some(route) = replies.next().await {
                routes.push(route?);
            }
        }
        dump.routes = Routes::from_dump(&routes);
        Ok(self.write(|view| view.replace(dump)))
    }

    fn write<T>(&self, change: impl FnOnce(&mut View) -> T) -> T {
        change(&mut self.view.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn apply(&self, message: Message, due: &mut Due) {
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) => {
                due.changed |= self.write(|view| view.set_neighbour(&neighbour));
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(neighbour)) => {
                due.changed |= self.write(|view| view.remove_neighbour(&neighbour));
            }
            NetlinkPayload::Overrun(_) => due.lost = true,
            _ => due.reload = true,
        }
    }

    /// Follows until the [`super::Network`] is dropped, then takes back what it asked of the kernel.
    pub async fn run(mut self) {
        let mut due = Due::default();
        let mut reload_at = Instant::now();
        let mut retry_at = None;
        let mut queues_at = Instant::now() + QUEUES;
        loop {
            let mut reconcile = false;
            tokio::select! {
                message = self.messages.next() => {
                    let Some(message) = message else {
                        error!("netlink ended: routes and neighbours are no longer followed");
                        return;
                    };
                    self.apply(message, &mut due);
                    self.drain(&mut due);
                }
                changed = self.wanted.changed() => match changed {
                    Ok(()) => reconcile = true,
                    Err(_) => break,
                },
                () = sleep_until(queues_at) => {
                    due.reload |= self.queues_changed().await;
                    queues_at = Instant::now() + QUEUES;
                }
                () = sleep_until(reload_at), if due.reload || due.lost => {}
                () = sleep_until(retry_at.unwrap_or(reload_at)), if retry_at.is_some() => reconcile = true,
            }
            let now = Instant::now();
            if (due.reload || due.lost) && now >= reload_at {
                let rest = self.catch_up(&mut due).await;
                reload_at = Instant::now() + rest;
            }
            if std::mem::take(&mut due.changed) {
                self.changes.send_modify(|count| *count += 1);
                reconcile = true;
            }
            // Most notifications only tell that a neighbour was confirmed: not worth going through all of them.
            if reconcile {
                retry_at = self.reconcile().await;
            }
        }
        self.kept.reconcile(&self.handle, &self.view, &BTreeSet::new()).await;
        self.released.send_replace(true);
    }

    /// Whether a NIC of ours has other numbers of queues than it had.
    async fn queues_changed(&mut self) -> bool {
        let Some(ethtool) = &mut self.ethtool else { return false };
        let ours: Vec<_> = self.view.read().unwrap_or_else(PoisonError::into_inner).ours().to_vec();
        for link in ours {
            let queues = link::channels(ethtool, &link.name).await;
            if queues.is_some_and(|queues| queues != (link.rx_queues, link.tx_queues)) {
                return true;
            }
        }
        false
    }

    /// Brings what is kept resolved to what is wanted. Returns when to do it again, if something is open.
    async fn reconcile(&mut self) -> Option<Instant> {
        let wanted = self.wanted.borrow_and_update().clone();
        if !wanted.is_empty() {
            self.released.send_replace(false);
        }
        let again = self.kept.reconcile(&self.handle, &self.view, &wanted).await;
        if wanted.is_empty() && self.kept.is_empty() {
            self.released.send_replace(true);
        }
        again.then(|| Instant::now() + RETRY)
    }

    /// Applies what is there already.
    fn drain(&mut self, due: &mut Due) {
        while let Some(Some(message)) = self.messages.next().now_or_never() {
            self.apply(message, due);
        }
    }

    /// Reads again what is due. Returns how long to wait before the next time.
    async fn catch_up(&mut self, due: &mut Due) -> Duration {
        let began = Instant::now();
        if due.lost {
            warn!("netlink notifications were lost: reading the kernel's network state anew");
        }
        let read = if due.lost { self.load().await } else { self.reload().await };
        match read {
            Ok(changed) => {
                due.changed |= changed;
                (due.reload, due.lost) = (false, false);
                // Neighbours that changed while it ran: after it.
                self.drain(due);
                began.elapsed().max(Duration::from_millis(1)) * REST
            }
            Err(error) => {
                warn!(%error, "the kernel's network state could not be read; trying again");
                RETRY
            }
        }
    }
}
