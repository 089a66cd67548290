//! Where an address of the kernel port is of the subnet of another link (that of a bridge with pods, whose range it was taken
//! from), who is there asks for it on that link: the kernel is told to answer. On NICs of ours workers answer.
//!
//! A link that goes down loses what the kernel was told of it, and nobody announces that; so it is told again every now and
//! then, of all of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;

use super::wire::Wire;
use super::{KERNELS, looks, settings};
use crate::netlink::{HostAddress, Network};

/// An address on an interface.
type Place = (String, IpAddr);

/// Has the kernel answer for these addresses wherever they are on a link, for as long as this runs and they are `ours` to see
/// to; `nics` are ours. What somebody else took away is back at the latest after the time `look`, what failed is tried again.
pub async fn answer(
    network: Arc<Network>,
    mut changes: watch::Receiver<u64>,
    runtime: PathBuf,
    addresses: Vec<IpAddr>,
    nics: Vec<String>,
    look: Duration,
    ours: impl Fn() -> bool,
) {
    let (mut answered, mut said) = (BTreeSet::new(), String::new());
    let mut looks = looks(look);
    // A successor may have others by now, or none.
    while ours() {
        let wanted = places(&network.host_addresses(), &addresses, &nics);
        answered.retain(|place| wanted.contains(place));
        let error = answer_at(&runtime, &wanted, &mut answered).await;
        if !error.is_empty() && said != error {
            tracing::error!(%error, "not everybody is answered who asks for the kernel port's addresses");
        }
        said = error;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = looks.tick() => answered.clear(),
        }
    }
}

/// Has the kernel answer wherever it is wanted and not answered yet. Returns what failed.
async fn answer_at(runtime: &Path, wanted: &BTreeSet<Place>, answered: &mut BTreeSet<Place>) -> String {
    let mut failed = Vec::new();
    for place @ (interface, address) in wanted {
        if answered.contains(place) {
            continue;
        }
        match answer_on(runtime, interface, *address).await {
            Ok(()) => drop(answered.insert(place.clone())),
            Err(error) => failed.push(error),
        }
    }
    failed.join("; ")
}

async fn answer_on(runtime: &Path, interface: &str, address: IpAddr) -> Result<(), String> {
    settings::answer_on(runtime, interface, address.is_ipv6())?;
    Wire::open().await?.answer_on(interface, address).await
}

/// Which addresses are of subnets of which interfaces that are not ours.
fn places(host: &[HostAddress], addresses: &[IpAddr], nics: &[String]) -> BTreeSet<Place> {
    let others = host.iter().filter(|own| own.interface != KERNELS && !nics.contains(&own.interface));
    let of = |own: &HostAddress| {
        let net = IpNet::new(own.address, own.prefix).ok();
        let within = addresses.iter().filter(move |address| net.is_some_and(|net| net.contains(*address)));
        let interface = own.interface.clone();
        within.map(move |address| (interface.clone(), *address)).collect::<Vec<_>>()
    };
    others.flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_answered_for_on_the_links_of_its_subnet_that_are_not_ours() {
        let own = |interface: &str, net: &str| {
            let net: IpNet = net.parse().unwrap();
            HostAddress { interface: interface.to_owned(), address: net.addr(), prefix: net.prefix_len() }
        };
        let host = [
            own("cni0", "10.244.1.1/24"),
            own("cni0", "fd00:244:1::1/64"),
            own("eth0", "10.244.1.2/24"),
            own("lo", "127.0.0.1/8"),
            own("wide", "10.244.0.1/16"),
            own("other", "10.244.2.1/24"),
            own(KERNELS, "10.244.1.3/24"),
        ];
        let addresses: [IpAddr; 2] = ["10.244.1.250".parse().unwrap(), "fd00:244:1::250".parse().unwrap()];
        let found = places(&host, &addresses, &["eth0".to_owned()]);
        let at = |interface: &str, address| (interface.to_owned(), address);
        assert_eq!(found, [at("cni0", addresses[0]), at("cni0", addresses[1]), at("wide", addresses[0])].into());
    }
}
