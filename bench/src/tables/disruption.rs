//! How many flows of the other endpoints move when one goes: by the tables as they are built, size and all.

use lb::Tables;
use lb::build::build;
use lb::model::{DesiredState, Endpoint, Frontend, FrontendKind, ServicePort, ServicePortKey};
use wire::{Addr, Protocol};

use super::cluster;

/// Share of the flows of those that stay, in percent, which move when one of `count` endpoints goes; one value for each
/// endpoint in `gone`.
pub fn moved(count: usize, gone: impl Iterator<Item = usize>) -> Vec<f64> {
    let mut registry = cluster::registry();
    let config = cluster::build_config();
    let before = build(None, &desired(count, None), &mut registry, &cluster::hop, &config).tables;
    gone.map(|gone| {
        let after = build(Some(&before), &desired(count, Some(gone)), &mut registry, &cluster::hop, &config).tables;
        let pairs: Vec<(Addr, Addr)> = slots(&before).zip(slots(&after)).collect();
        let stay = pairs.iter().filter(|(old, _)| *old != address(gone));
        let moved = stay.clone().filter(|(old, new)| old != new).count();
        moved as f64 / stay.count() as f64 * 100.0
    })
    .collect()
}

/// The endpoint of each slot of the one Service's table: flows fall on slots evenly.
fn slots(tables: &Tables) -> impl Iterator<Item = Addr> {
    let service = tables.services.iter().flatten().next().expect("one Service");
    let address = |&at: &u32| tables.backend(service.usable[at as usize].id).expect("a usable endpoint").address;
    service.maglev.slots().iter().map(address)
}

fn address(n: usize) -> Addr {
    Addr::from_v4((0x0a00_0100 + n as u32).to_be_bytes())
}

fn desired(count: usize, gone: Option<usize>) -> DesiredState {
    let endpoint = |n| Endpoint::new(address(n).into(), 8080);
    let port = ServicePort {
        frontends: vec![Frontend { address: address(1 << 20).into(), port: 80, kind: FrontendKind::LoadBalancer }],
        endpoints: (0..count).filter(|&n| Some(n) != gone).map(endpoint).collect(),
        ..ServicePort::new(ServicePortKey::new("default", "bench", Protocol::TCP, false), 80)
    };
    DesiredState { service_ports: vec![port.into()].into(), addresses: Vec::new() }
}
