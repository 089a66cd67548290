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

use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{IpVersion, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::connections::{Message, Notifications, Requests};
use super::neighbours::{Kept, RETRY};
use super::routes::Routes;
use super::view::{Dump, View};
use super::{Link, NetworkError};

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
    notifications: Notifications,
    requests: Requests,
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
        let notifications = Notifications::open(&GROUPS)?;
        let requests = Requests::open()?;
        Ok(Self { notifications, requests, view, changes, wanted, released, kept: Kept::default() })
    }

    /// Reads everything. Returns whether an answer may have changed.
    pub async fn load(&mut self) -> Result<bool, NetworkError> {
        // First, for nothing may fail between a change of the view and its being told.
        let neighbours = self.requests.dump(|handle| handle.neighbours().get().execute()).await?;
        let changed = self.reload().await?;
        Ok(self.write(|view| view.replace_neighbours(&neighbours)) || changed)
    }

    /// Reads everything but the neighbours.
    async fn reload(&mut self) -> Result<bool, NetworkError> {
        let links = self.requests.dump(|handle| handle.link().get().execute()).await?;
        let mut dump = Dump { links, ..Dump::default() };
        let ours = self.ours();
        for message in &dump.links {
            let name = message.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) if ours.iter().any(|link| link.name == *name) => Some(name),
                _ => None,
            });
            let Some(name) = name else { continue };
            // Where nobody says, those of the link message stand.
            if let Some(queues) = self.requests.channels(name).await? {
                dump.queues.insert(message.header.index, queues);
            }
        }
        dump.addresses = self.requests.dump(|handle| handle.address().get().execute()).await?;
        let mut routes = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let any = match version {
                IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
            };
            routes.extend(self.requests.dump(|handle| handle.route().get(any).execute()).await?);
        }
        dump.routes = Routes::from_dump(&routes);
        Ok(self.write(|view| view.replace(dump)))
    }

    fn ours(&self) -> Vec<Link> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).ours().to_vec()
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
    ///
    /// # Errors
    /// If the kernel's notifications end.
    pub async fn run(mut self) -> Result<(), NetworkError> {
        let mut due = Due::default();
        let mut reload_at = Instant::now();
        let mut retry_at = None;
        let mut queues_at = Instant::now() + QUEUES;
        loop {
            let mut reconcile = false;
            tokio::select! {
                message = self.notifications.next() => {
                    let Some(message) = message else {
                        return Err(NetworkError::Netlink("its notifications ended".to_owned()));
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
        self.kept.reconcile(&mut self.requests, &self.view, &BTreeSet::new()).await;
        self.released.send_replace(true);
        Ok(())
    }

    /// Whether a NIC of ours has other numbers of queues than it had.
    async fn queues_changed(&mut self) -> bool {
        for link in self.ours() {
            match self.requests.channels(&link.name).await {
                Ok(Some(queues)) if queues != (link.rx_queues, link.tx_queues) => return true,
                Ok(_) => {}
                Err(error) => {
                    warn!(%error, interface = %link.name, "the numbers of queues cannot be read; trying again");
                    return false;
                }
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
        let again = self.kept.reconcile(&mut self.requests, &self.view, &wanted).await;
        if wanted.is_empty() && self.kept.is_empty() {
            self.released.send_replace(true);
        }
        again.then(|| Instant::now() + RETRY)
    }

    /// Applies what is there already.
    fn drain(&mut self, due: &mut Due) {
        while let Some(message) = self.notifications.ready() {
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb::tables::HopState;

    use super::super::lab::{Namespace, eventually, until};
    use super::super::{Network, RELEASE};
    use super::*;

    /// What follows `eth0`, before it is started, and what becomes a [`Network`] with it.
    async fn follower() -> (Follower, impl FnOnce(Follower) -> Network, watch::Receiver<u64>) {
        let view = Arc::new(RwLock::new(View::new(vec!["eth0".to_owned()], None)));
        let (changes, receiver) = watch::channel(0);
        let (wanted, wants) = watch::channel(BTreeSet::new());
        let (release, released) = watch::channel(true);
        let mut follower = Follower::open(Arc::clone(&view), changes, wants, release).unwrap();
        follower.load().await.unwrap();
        let network = |follower| Network { ended: Network::follow(follower), view, wanted, released };
        (follower, network, receiver)
    }

    fn hosts() -> (Namespace, Namespace, IpAddr) {
        let (host, router) = (Namespace::new(), Namespace::new());
        host.wire("eth0", &["10.0.0.1/24"], &router, "r0", &["10.0.0.2/24"]);
        (host, router, [10, 0, 0, 2].into())
    }

    #[test]
    fn what_is_not_answered_in_time_is_asked_again() {
        let (host, _router, neighbour) = hosts();
        host.block_on(async move || {
            let (mut follower, network, mut changes) = follower().await;
            follower.requests.fall_silent();
            assert!(matches!(follower.load().await, Err(NetworkError::Unanswered(_))), "a dump");
            follower.load().await.expect("the next one");
            follower.requests.fall_silent();
            let network = network(follower);
            network.resolve(BTreeSet::from([neighbour]));
            until("resolved", &mut changes, || network.hop(neighbour).state == HopState::Resolved).await;
            assert_eq!(network.failed(), None);
        });
    }

    #[test]
    fn a_neighbour_is_let_go_of_again_when_nobody_says_that_it_was() {
        let (host, _router, neighbour) = hosts();
        host.block_on(async move || {
            let (mut follower, _, _changes) = follower().await;
            let wanted = BTreeSet::from([neighbour]);
            follower.kept.reconcile(&mut follower.requests, &follower.view, &wanted).await;
            follower.requests.fall_silent();
            for still in [true, false] {
                let again = follower.kept.reconcile(&mut follower.requests, &follower.view, &BTreeSet::new()).await;
                assert_eq!((again, follower.kept.is_empty()), (still, !still));
            }
        });
    }

    #[test]
    fn release_ends_though_nobody_says_that_all_is_let_go_of() {
        let (host, _router, _) = hosts();
        host.block_on(async move || {
            let (follower, network, _changes) = follower().await;
            // Nothing is kept, so that it has no reason to say that it let go.
            follower.released.send_replace(false);
            let network = network(follower);
            tokio::time::timeout(2 * RELEASE, network.release()).await.expect("the end");
        });
    }

    #[test]
    fn who_asks_is_told_why_the_following_ended() {
        let (host, _router, _) = hosts();
        host.block_on(async move || {
            let (mut follower, network, _changes) = follower().await;
            follower.notifications.end();
            let network = network(follower);
            let why = eventually("the end", || network.failed()).await;
            assert!(why.contains("notifications ended"), "{why}");
        });
    }
}
