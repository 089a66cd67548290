//! What the API demands of Endpoints and EndpointSlices beyond the shape of their fields.

use std::net::{IpAddr, Ipv6Addr};

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::endpoints::SERVICE_NAME;
use crate::finding::{Finding, Severity};
use crate::objects::Located;

use super::names::{is_label, is_subdomain};

/// Judges `v1 Endpoints`.
pub(super) fn judge_endpoints(located: &Located<Endpoints>) -> Vec<Finding> {
    let mut found = judge_name(located, &located.object.metadata);
    let error = |field: &str, message: String| located.finding(Severity::Error, field, message);
    for (index, subset) in located.object.subsets.iter().flatten().enumerate() {
        let path = format!("subsets[{index}]");
        let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
        if count(&subset.addresses) + count(&subset.not_ready_addresses) == 0 {
            found.push(error(&path, "no address, expected `addresses` or `notReadyAddresses`".to_owned()));
        }
        let lists = [("addresses", &subset.addresses), ("notReadyAddresses", &subset.not_ready_addresses)];
        for (name, list) in lists {
            let addresses = list.iter().flatten().map(|EndpointAddress { ip, .. }| ip);
            for (index, ip) in addresses.enumerate() {
                if let Err(message) = judge_address(ip) {
                    found.push(error(&format!("{path}.{name}[{index}].ip"), message));
                }
            }
        }
        let names: Vec<&str> = subset.ports.iter().flatten().map(|p| p.name.as_deref().unwrap_or_default()).collect();
        found.extend(
            judge_port_names(&names)
                .into_iter()
                .map(|(at, message)| error(&format!("{path}.ports[{at}].name"), message)),
        );
    }
    found
}

/// Judges an EndpointSlice.
pub(super) fn judge_slice(located: &Located<EndpointSlice>) -> Vec<Finding> {
    let slice = &located.object;
    let mut found = judge_name(located, &slice.metadata);
    let error = |field: &str, message: String| located.finding(Severity::Error, field, message);
    for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        if endpoint.addresses.is_empty() {
            found.push(error(&path, "empty, expected an address".to_owned()));
        }
        for (at, address) in endpoint.addresses.iter().enumerate() {
            if let Err(message) = judge_slice_address(&slice.address_type, address) {
                found.push(error(&format!("{path}[{at}]"), message));
            }
        }
    }
    let labels = slice.metadata.labels.as_ref();
    if labels.is_none_or(|labels| labels.get(SERVICE_NAME).is_none_or(String::is_empty)) {
        let message = format!("no label `{SERVICE_NAME}`, expected it to name the Service");
        found.push(located.finding(Severity::Warning, "metadata.labels", message));
    }
    let names: Vec<&str> = slice.ports.iter().flatten().map(|p| p.name.as_deref().unwrap_or_default()).collect();
    for (at, name) in names.iter().enumerate() {
        if !name.is_empty() && !is_label(name) {
            found.push(error(&format!("ports[{at}].name"), bad_label(name)));
        }
        if names[..at].contains(name) {
            found.push(error(&format!("ports[{at}].name"), format!("`{name}` a second time, expected it once")));
        }
    }
    found
}

fn judge_slice_address(address_type: &str, address: &str) -> Result<(), String> {
    match (address_type, address.parse::<IpAddr>()) {
        ("FQDN", _) => Ok(()),
        ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => judge_address(address),
        _ => Err(format!("`{address}`, expected an address of type {address_type}")),
    }
}

fn judge_name<T>(
    located: &Located<T>,
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let name = metadata.name.as_deref().unwrap_or_default();
    if !is_subdomain(name) {
        let message = format!("`{name}`, expected lower-case letters, digits, `-` and `.` (RFC 1123)");
        found.push(located.finding(Severity::Error, "metadata.name", message));
    }
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    if !is_label(namespace) {
        found.push(located.finding(Severity::Error, "metadata.namespace", bad_label(namespace)));
    }
    found
}

/// Of several ports each needs a name. The API takes one name twice here: TCP and UDP of one Service port.
fn judge_port_names(names: &[&str]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, name) in names.iter().enumerate() {
        if name.is_empty() && names.len() > 1 {
            found.push((at, "missing, expected a name since there are several ports".to_owned()));
        } else if !name.is_empty() && !is_label(name) {
            found.push((at, bad_label(name)));
        }
    }
    found
}

pub(super) fn bad_label(name: &str) -> String {
    format!("`{name}`, expected at most 63 lower-case letters, digits and `-`, with none of `-` at an end (RFC 1123)")
}

/// An endpoint may be any routable address.
fn judge_address(text: &str) -> Result<(), String> {
    let address: IpAddr = text.parse().map_err(|_| format!("`{text}`, expected an IP address"))?;
    let what = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V6(v6) if is_link_local(v6) => "a link-local address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4-mapped address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        _ => return Ok(()),
    };
    Err(format!("`{text}` is {what}, expected one that can be routed to"))
}

fn is_link_local(address: Ipv6Addr) -> bool {
    address.is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_be_routed_to_are_refused() {
        for bad in ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "ff02::1", "::", "x", "1.2.3"]
        {
            assert!(judge_address(bad).is_err(), "{bad}");
        }
        for good in ["1.2.3.4", "10.0.0.1", "2001:db8::1", "fd00::1", "192.168.1.255"] {
            assert_eq!(judge_address(good), Ok(()), "{good}");
        }
    }
}
