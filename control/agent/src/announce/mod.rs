//! Announcements: gratuitous ARP and unsolicited neighbour advertisements for addresses of ours, and noticing that
//! another machine answers for one.
//!
//! An address that appears is probed for (is another machine using it?), announced, and announced again a few times. It
//! is served whatever the probe finds: a second machine that has it is a fault to be told, not a reason to stop. One that
//! several nodes may announce is announced while this node owns it ([`Announcer::own`]), without asking first: whoever
//! else claims it is reported to whom settles that. The
//! tasks, one an interface, run on the tokio runtime that [`Announcer::start`] was called in, and end with the
//! [`Announcer`]. In a VLAN it is done by the kernel's subinterface, which puts the tags on. Sources: RFC 5227, RFC 4861
//! section 7.2.6.

mod frames;
mod ownership;
mod placing;
mod schedule;
mod segment;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};
use wire::MacAddr;

use crate::netlink::Link;
use ownership::{Orders, Plan};

pub use ownership::{Contest, Owning};
pub use placing::{is_announced, place};

/// A conflict that nothing was seen of for this long is over. While it lasts, the address is probed for more often.
const QUIET: Duration = Duration::from_secs(60);

/// Addresses to announce on one interface.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Announced {
    /// The interface.
    pub interface: String,
    /// Announced at start and whenever one appears, defended and watched for conflicts.
    pub addresses: BTreeSet<IpAddr>,
    /// The same of those that several nodes may announce, while this one owns them.
    pub shared: BTreeSet<IpAddr>,
}

/// Another machine answers for an address of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// Where it was seen.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Who else has it.
    pub mac: MacAddr,
}

/// Conflicts and when each was last seen.
#[derive(Debug, Default)]
struct Conflicts {
    seen: Mutex<BTreeMap<Conflict, Instant>>,
    /// Who settles claims of addresses that several nodes may announce.
    settles: OnceLock<UnboundedSender<Contest>>,
}

impl Conflicts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Conflict, Instant>> {
        // Nothing that runs under the lock can leave it half-changed.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells who settles it that another machine claims an address.
    fn report(&self, contest: Contest) {
        if let Some(settles) = self.settles.get() {
            let _ = settles.send(contest);
        }
    }

    /// Notes a conflict; the first sight of it is logged.
    fn see(&self, conflict: Conflict, now: Instant) {
        let mut seen = self.lock();
        if !seen.contains_key(&conflict) {
            let Conflict { interface, address, mac } = &conflict;
            warn!(%address, %mac, interface, "another machine answers for an address of ours");
        }
        seen.insert(conflict, now);
    }

    /// Forgets what has gone quiet, and on `interface` what is no longer announced there.
    fn prune(&self, interface: &str, announced: &BTreeSet<IpAddr>, now: Instant) {
        self.lock().retain(|conflict, last| {
            let ours = conflict.interface != interface || announced.contains(&conflict.address);
            let loud = now.duration_since(*last) < QUIET;
            if ours && !loud {
                let Conflict { interface, address, mac } = conflict;
                info!(%address, %mac, interface, "the other machine no longer answers for our address");
            }
            ours && loud
        });
    }

    fn on(&self, interface: &str) -> BTreeSet<IpAddr> {
        self.lock().keys().filter(|c| c.interface == interface).map(|c| c.address).collect()
    }
}

/// Announces addresses and notices conflicts.
#[derive(Debug)]
pub struct Announcer {
    /// By interface.
    segments: Mutex<BTreeMap<String, Open>>,
    /// What is to be announced where, and what of it this node owns.
    plan: Mutex<Plan>,
    /// Link-layer addresses of our NICs.
    own: BTreeSet<MacAddr>,
    conflicts: Arc<Conflicts>,
    runtime: Option<Handle>,
}

/// An interface whose task runs, until this is dropped.
#[derive(Debug)]
struct Open {
    /// Of a VLAN, which may go and come again by the same name.
    vlan: Option<u32>,
    orders: watch::Sender<Orders>,
}

impl Announcer {
    /// Opens what it needs on each NIC and starts its tasks. A NIC where that fails is logged and left out.
    ///
    /// # Panics
    /// Outside a tokio runtime, if there is a NIC.
    #[must_use]
    pub fn start(links: &[Link]) -> Arc<Self> {
        let announcer = Self {
            segments: Mutex::default(),
            plan: Mutex::default(),
            own: links.iter().map(|link| link.mac).collect(),
            conflicts: Arc::new(Conflicts::default()),
            runtime: Handle::try_current().ok(),
        };
        assert!(announcer.runtime.is_some() || links.is_empty(), "outside a tokio runtime");
        let opened = links.iter().filter_map(|link| Some((link.name.clone(), announcer.open(link, None)?))).collect();
        *announcer.segments() = opened;
        Arc::new(announcer)
    }

    fn segments(&self) -> MutexGuard<'_, BTreeMap<String, Open>> {
        // Nothing that runs under the lock can leave it half-changed.
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens what it needs on an interface and starts its task; `vlan` is its index, if it is a VLAN's.
    fn open(&self, link: &Link, vlan: Option<u32>) -> Option<Open> {
        let _runtime = self.runtime.as_ref()?.enter();
        let (sender, orders) = watch::channel(Orders::default());
        match segment::Segment::open(link, self.own.clone(), orders, Arc::clone(&self.conflicts)) {
            Ok(segment) => {
                tokio::spawn(segment.run());
                Some(Open { vlan, orders: sender })
            }
            Err(error) => {
                warn!(interface = link.name, %error, "addresses cannot be announced here");
                None
            }
        }
    }

    /// Which VLANs our NICs serve from now on (replaces the former). Callable from any thread.
    pub fn follow(&self, vlans: &[Link]) {
        let mut segments = self.segments();
        segments.retain(|name, open| {
            let is_there = |ifindex| vlans.iter().any(|link| link.name == *name && link.ifindex == ifindex);
            open.vlan.is_none_or(is_there)
        });
        for link in vlans {
            if !segments.contains_key(&link.name)
                && let Some(open) = self.open(link, Some(link.ifindex))
            {
                segments.insert(link.name.clone(), open);
            }
        }
    }

    /// What is to be announced from now on (replaces the former); also joins the solicited-node groups. New addresses
    /// are announced at once, and a few times more. Callable from any thread.
    pub fn set(&self, announced: Vec<Announced>) {
        let mut plan = self.plan();
        plan.place(announced);
        self.order(&plan);
        let segments = self.segments();
        for interface in plan.interfaces().filter(|interface| !segments.contains_key(*interface)) {
            warn!(interface, "addresses are to be announced on an interface that is none of ours");
        }
    }

    /// Which of the shared addresses this node owns from now on, and what is known of those that it does not (replaces the
    /// former). Those that are new are announced at once, and a few times more. Callable from any thread.
    pub fn own(&self, owning: Owning) {
        let mut plan = self.plan();
        plan.own(owning);
        self.order(&plan);
    }

    /// Has these announced as if they were new, where they are announced at all.
    pub fn again(&self, addresses: &[IpAddr]) {
        let mut plan = self.plan();
        plan.again(addresses);
        self.order(&plan);
    }

    /// Who is told from now on that other machines claim shared addresses.
    pub fn report_to(&self, settles: UnboundedSender<Contest>) {
        // There is one of them.
        let _ = self.conflicts.settles.set(settles);
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, plan: &Plan) {
        for (interface, open) in &*self.segments() {
            let orders = plan.orders(interface);
            open.orders.send_if_modified(|former| {
                let differs = *former != orders;
                *former = orders;
                differs
            });
        }
    }

    /// Conflicts that were seen lately.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Conflict> {
        let now = Instant::now();
        let seen = self.conflicts.lock();
        seen.iter().filter(|(_, last)| now.duration_since(**last) < QUIET).map(|(c, _)| c.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
