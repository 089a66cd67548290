//! A cluster's manifests: so many Services with so many endpoints each, and the same with one endpoint changed.

use std::fmt::Write;
use std::net::IpAddr;

use lb::PortId;
use lb::build::BuildConfig;
use lb::flow::{FlowFile, FlowFileConfig, Pages};
use lb::registry::Registry;
use lb::tables::{Hop, HopState, SelectionSeed};
use translate::{Context, Pool, Source};
use wire::MacAddr;

/// Services of a namespace.
const NAMESPACE: usize = 100;

/// How many there are of what.
#[derive(Clone, Copy)]
pub struct Cluster {
    /// Services of type LoadBalancer, one port each.
    pub services: usize,
    /// Endpoints of each.
    pub endpoints: usize,
}

impl Cluster {
    /// The manifests; with `changed`, one endpoint of that Service has another address.
    pub fn sources(&self, changed: Option<usize>) -> Vec<Source> {
        (0..self.services).map(|n| self.source(n, changed == Some(n))).collect()
    }

    /// A Service's file: itself and its slice.
    pub fn source(&self, n: usize, changed: bool) -> Source {
        let (namespace, name) = (format!("team-{}", n / NAMESPACE), format!("service-{n}"));
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
             type: LoadBalancer\n  ports: [{{name: http, port: 80, protocol: TCP}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: {name}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             ports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints:\n"
        );
        for endpoint in 0..self.endpoints {
            let number = n * self.endpoints + endpoint;
            let base: u32 = if changed && endpoint == 0 { 0x0b00_0000 } else { 0x0a00_0000 };
            let address = std::net::Ipv4Addr::from(base + 256 + number as u32);
            let node = number % 200;
            writeln!(
                text,
                "- {{addresses: [{address}], conditions: {{ready: true}}, nodeName: node-{node}, \
                 targetRef: {{kind: Pod, name: pod-{number}, namespace: {namespace}}}}}"
            )
            .expect("memory");
        }
        Source { path: format!("manifests/{namespace}/{name}.yaml").into(), text: text.into() }
    }
}

/// What translation is told of the box.
pub fn context() -> Context {
    let pool = Pool::new("public", vec!["172.16.0.0/12".parse().expect("a range")]);
    Context { pools: vec![pool], ..Context::default() }
}

/// Ids for as many Services and endpoints as a gateway has room for by default.
pub fn registry() -> Registry {
    let config = FlowFileConfig { flows: 1024, pages: Pages::Base, ..FlowFileConfig::default() };
    FlowFile::in_memory(&config).expect("memory for a registry").registry
}

/// What tables are built with besides.
pub fn build_config() -> BuildConfig {
    BuildConfig { seed: SelectionSeed(1, 2), ..BuildConfig::default() }
}

/// Every address is behind one next hop.
pub fn hop(_: IpAddr) -> Hop {
    Hop {
        state: HopState::Resolved,
        port: PortId(0),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        on_link: true,
        tags: wire::Tags::NONE,
    }
}
