//! Rendezvous hashing: every node ranks all nodes alike, for each address anew, and a node that comes or goes changes
//! nobody else's place.
//!
//! Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates" (highest random weight).

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::Mac;

/// What a node weighs for an address: the highest owns it.
#[must_use]
pub fn of_node(address: IpAddr, name: &str) -> u64 {
    weight(address, b"node", name.as_bytes())
}

/// What a link-layer address weighs, where nothing else is known of who has it.
#[must_use]
pub fn of_mac(address: IpAddr, mac: Mac) -> u64 {
    weight(address, b"mac", &mac)
}

fn weight(address: IpAddr, kind: &[u8], who: &[u8]) -> u64 {
    // The key is no secret: all nodes must have the same.
    let mut hasher = SipHasher13::new();
    match address {
        IpAddr::V4(v4) => hasher.write(&v4.octets()),
        IpAddr::V6(v6) => hasher.write(&v6.octets()),
    }
    hasher.write(kind);
    hasher.write(who);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first<'n>(address: IpAddr, names: &[&'n str]) -> &'n str {
        names.iter().copied().max_by_key(|name| of_node(address, name)).unwrap()
    }

    fn addresses() -> impl Iterator<Item = IpAddr> {
        (0..2000u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()))
    }

    #[test]
    fn a_node_that_goes_moves_its_own_addresses_alone_and_they_spread_over_the_others() {
        let all = ["n1", "n2", "n3", "n4"];
        let mut moved = [0; 3];
        for address in addresses() {
            let (before, after) = (first(address, &all), first(address, &all[..3]));
            if before == "n4" {
                moved[all.iter().position(|name| *name == after).unwrap()] += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert!(moved.iter().all(|count| (110..=230).contains(count)), "{moved:?} of about 500");
    }

    #[test]
    fn nodes_and_link_layer_addresses_have_the_weights_that_other_versions_give_them() {
        let address = "192.0.2.1".parse().unwrap();
        assert_eq!(of_node(address, "n1"), WEIGHT_OF_N1);
        assert_eq!(of_mac(address, [2, 0, 0, 0, 0, 1]), WEIGHT_OF_MAC);
    }

    const WEIGHT_OF_N1: u64 = 9_499_991_995_284_899_970;
    const WEIGHT_OF_MAC: u64 = 4_261_849_287_447_626_973;
}
