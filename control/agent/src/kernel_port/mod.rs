//! The kernel port: a veth pair with AF_XDP on one end, whose other end the kernel routes. Backends that no NIC reaches
//! (pods behind a bridge, a routed veth or an overlay, servers of the host itself) are reached by it.
//!
//! What is sent to a backend by it comes from one of the addresses that [`make`] routes into it, so that the answers come
//! back; with an address of the host they would not. What was made stays for a successor, and [`remove`] takes it away by
//! its name and by the note in the runtime folder, also after a dead instance. `wire` makes the devices, `settings` knows
//! the kernel's settings that were changed, `marks` have answers brought back that are to clients' own addresses, `answering`
//! has neighbours find the addresses, `inward` has the host itself find services, and `redirect` NodePorts of its own addresses.

mod answering;
mod inward;
mod marks;
mod redirect;
mod settings;
mod wire;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

pub use answering::answer;
pub use inward::route;
pub use redirect::{NODE_PORTS, Redirected, redirect};
use settings::Changed;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use wire::Wire;

/// Millrace's end: AF_XDP is on it, and it has no address.
pub const OURS: &str = "millrace-k0";
/// The kernel's end.
pub const KERNELS: &str = "millrace-k1";

/// How often it is looked whether somebody else took away what was made: routes, rules, chains, proxy neighbours.
pub const LOOK: Duration = Duration::from_secs(30);
/// What to do against that.
const HELP: &str =
    "for systemd-networkd, `ManageForeignRoutes=no` and `ManageForeignRoutingPolicyRules=no` in networkd.conf";

/// What a kernel port must be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The addresses that are routed into it.
    pub addresses: &'a [IpAddr],
    /// Queues: one for each worker.
    pub queues: u32,
    /// Largest IP packet, octets.
    pub mtu: u32,
}

impl Wanted<'_> {
    fn has(&self, ipv6: bool) -> bool {
        self.addresses.iter().any(|address| address.is_ipv6() == ipv6)
    }
}

/// Makes the kernel port, or makes the one that is there what is wanted; its queues stay as they are, for a predecessor may
/// be using them. Routes of others of its addresses stay until [`settle`]. Gives whether answers to clients' own addresses
/// come back by it.
///
/// # Errors
/// A text for people: what the kernel refused or who has one of the names or addresses, and what to do.
pub async fn make(runtime: &Path, wanted: &Wanted<'_>) -> Result<bool, String> {
    let mut changed = Changed::read(runtime).map_err(|e| e.to_string())?.unwrap_or_default();
    changed.addresses.extend(wanted.addresses);
    let wire = Wire::open().await?;
    wire.judge(wanted).await?;
    // Noted before anything is there, so that whatever comes next is found.
    changed.write(runtime)?;
    wire.make(wanted).await?;
    settings::of_both_ends(wanted.has(true))?;
    wire.number(wanted).await?;
    for ipv6 in [false, true] {
        if wanted.has(ipv6) {
            settings::forward(&mut changed, runtime, ipv6)?;
        }
    }
    settings::end_at_ours()?;
    let marked = mark(&wire).await;
    if let Err(error) = &marked {
        tracing::warn!(%error, "endpoints that only the kernel reaches get nothing in mode preserve, as with policy Local");
    }
    tracing::info!(interface = OURS, kernels = KERNELS, addresses = ?wanted.addresses, mtu = wanted.mtu, "kernel port is there");
    Ok(marked.is_ok())
}

async fn mark(wire: &Wire) -> Result<(), String> {
    let ours = wire.our_address().await?;
    // It waits for another program, and the caller's thread has more to do.
    let set = tokio::task::spawn_blocking(move || marks::set(&ours)).await;
    set.unwrap_or_else(|error| Err(error.to_string()))
}

/// Puts back what [`make`] made that leads answers here, whenever somebody else took it away: looks every `look`, for as long
/// as this runs and it is `ours` to see to. `brings_back` is what [`make`] gave.
pub async fn keep(addresses: Vec<IpAddr>, brings_back: bool, look: Duration, ours: impl Fn() -> bool) {
    let mut looks = looks(look);
    let mut said = String::new();
    loop {
        looks.tick().await;
        // A successor may have other addresses by now.
        if !ours() {
            return;
        }
        match put_back(&addresses, brings_back).await {
            Ok(taken) => {
                said.clear();
                if !taken.is_empty() {
                    let what = taken.join(", ");
                    tracing::warn!(%what, "somebody else took away what leads answers here; it is back: {HELP}");
                }
            }
            Err(error) => {
                if said != error {
                    tracing::error!(%error, "what leads answers to the kernel port cannot be looked after");
                }
                said = error;
            }
        }
    }
}

/// Puts back what is not there, and tells what that was.
async fn put_back(addresses: &[IpAddr], brings_back: bool) -> Result<Vec<String>, String> {
    let wire = Wire::open().await?;
    let mut taken = wire.put_back(addresses).await?;
    if brings_back {
        let looked = tokio::task::spawn_blocking(marks::are_set).await;
        if !looked.unwrap_or_else(|error| Err(error.to_string()))? {
            mark(&wire).await?;
            taken.push("chains of table `inet millrace` of nftables".to_owned());
        }
    }
    Ok(taken)
}

/// Ticks at this distance, the first after that time.
fn looks(every: Duration) -> Interval {
    let mut looks = tokio::time::interval_at(Instant::now() + every, every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// Has no others than these addresses routed into the kernel port any more.
///
/// # Errors
/// What the kernel refused.
pub async fn settle(addresses: &[IpAddr]) -> Result<(), String> {
    Wire::open().await?.route_no_others(addresses).await
}

/// Takes back what a predecessor [`redirect`]ed.
///
/// # Errors
/// What nft says.
pub fn redirect_nothing() -> Result<(), String> {
    redirect::remove()
}

/// Whether [`make`] noted that it made something.
///
/// # Errors
/// If there is something else of that name, or it cannot be read.
pub fn is_noted(runtime: &Path) -> io::Result<bool> {
    Changed::read(runtime).map(|changed| changed.is_some())
}

/// Removes the kernel port and puts settings back. Nothing where there is no note.
///
/// # Errors
/// The first thing that could not be removed, after trying all others.
pub fn remove(runtime: &Path) -> Result<(), String> {
    let Some(changed) = Changed::read(runtime).map_err(|e| e.to_string())? else { return Ok(()) };
    // Callers are tasks and plain threads alike: netlink gets a runtime on a thread of its own, in the same namespace.
    let unmake = || -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        runtime.block_on(async { Wire::open().await?.unmake(&changed.addresses).await })
    };
    let unmade = thread::scope(|scope| scope.spawn(unmake).join()).unwrap_or_else(|_| Err("netlink failed".to_owned()));
    let removed = unmade.map_err(|why| format!("{OURS}: {why}: `ip link del {OURS}`"));
    removed.and(marks::remove()).and(changed.put_back(runtime))
}

#[cfg(test)]
mod tests;
