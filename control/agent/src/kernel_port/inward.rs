//! The host's own packets to service addresses, and those of its pods: routed into the kernel port, where they meet a worker
//! as a client's do. The routes are in a table of their own, which is looked up before all others but the local one.
//!
//! They are read once, and from then on only what differs is changed: there may be one for each Service. Every now and then
//! they are read again, for others take them away: systemd-networkd has routes and rules go that it did not make itself.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;

use super::wire::Wire;
use super::{HELP, looks};

/// How soon the kernel is asked again after it refused.
const RETRY: Duration = Duration::from_secs(1);

/// Has these routed into the kernel port, those of its `families` (IPv4, IPv6), for as long as this runs and they are `ours`
/// to see to. What somebody else took away is put back, at the latest after the time `look`.
pub async fn route(
    mut places: watch::Receiver<BTreeSet<IpNet>>,
    families: (bool, bool),
    look: Duration,
    ours: impl Fn() -> bool,
) {
    let (mut routed, mut said) = (None, String::new());
    let mut looks = looks(look);
    let mut is_look = false;
    // A successor may have others routed by now.
    while ours() {
        if is_look && is_taken(routed.as_ref(), families).await {
            routed = None;
        }
        let wanted: BTreeSet<IpNet> = places.borrow_and_update().clone();
        let of_ours = |place: &IpNet| if place.addr().is_ipv4() { families.0 } else { families.1 };
        let wanted = wanted.into_iter().filter(of_ours).collect();
        let done = match Wire::open().await {
            Ok(wire) => wire.route_inward(routed.as_ref(), &wanted, families).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => (routed, said) = (Some(wanted), String::new()),
            Err(error) => {
                if said != error {
                    tracing::error!(%error, "this host's own packets to service addresses do not come to them");
                }
                (routed, said) = (None, error);
            }
        }
        is_look = tokio::select! {
            changed = places.changed() => if changed.is_err() { return } else { false },
            () = tokio::time::sleep(RETRY), if routed.is_none() => false,
            _ = looks.tick() => true,
        };
    }
}

/// Whether something of what was routed is not there any more, or nobody can say; says what.
async fn is_taken(routed: Option<&BTreeSet<IpNet>>, families: (bool, bool)) -> bool {
    let Some(routed) = routed else { return false };
    let taken = match Wire::open().await {
        Ok(wire) => wire.taken_inward(routed, families).await,
        Err(error) => Err(error),
    };
    // Why it cannot be read is said when it is routed anew.
    let Ok(taken) = taken else { return true };
    if !taken.is_empty() {
        let what = taken.join(", ");
        tracing::warn!(%what, "somebody else took away what leads to service addresses; putting it back: {HELP}");
    }
    !taken.is_empty()
}
