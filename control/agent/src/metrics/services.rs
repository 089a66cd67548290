//! Metrics of Services and their endpoints: written as they are read, for a cluster has a hundred thousand.
//!
//! Service ports are ordered by key, so those of one Service are neighbours: what they have in common is summed there,
//! and each series is written once.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use lb::health::Standing;
use lb::list::List;
use lb::shared::Shared;
use lb::tables::Origin;
use lb::{BackendId, ServiceId, Tick};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// What is counted of each.
pub(super) trait Counts: Send + Sync + 'static {
    /// Flows that were opened.
    fn opened(&self, id: ServiceId) -> u64;
    /// Connections that there are.
    fn connections(&self, id: BackendId) -> u32;
    /// Whether it gets no flows for a while.
    fn is_aside(&self, id: BackendId) -> bool;
}

/// As they are in the workers' shared tables now.
pub(super) struct Now {
    pub shared: Arc<Shared>,
    pub tick: Tick,
}

impl Counts for Now {
    fn opened(&self, id: ServiceId) -> u64 {
        self.shared.service_opened(id)
    }

    fn connections(&self, id: BackendId) -> u32 {
        self.shared.backend_connections(id)
    }

    fn is_aside(&self, id: BackendId) -> bool {
        self.shared.health.standing(id, self.tick) != Standing::Well
    }
}

/// Every Service that has tables, ordered by key.
pub(super) struct Services<C> {
    pub origins: List<Origin>,
    pub counts: C,
}

impl<C> fmt::Debug for Services<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").field("ports", &self.origins.len()).finish_non_exhaustive()
    }
}

impl<C: Counts> Services<C> {
    /// The ports of each Service, and its name.
    fn each(&self, mut take: impl FnMut(&str, &[&Origin]) -> fmt::Result) -> fmt::Result {
        let mut name = String::new();
        let mut ports: Vec<&Origin> = Vec::new();
        let mut rest = self.origins.iter().peekable();
        while let Some(first) = rest.next() {
            let key = &first.port.key;
            let same =
                |other: &&Origin| (&other.port.key.namespace, &other.port.key.name) == (&key.namespace, &key.name);
            ports.clear();
            ports.push(first);
            while let Some(next) = rest.next_if(same) {
                ports.push(next);
            }
            name.clear();
            write!(name, "{}/{}", key.namespace, key.name)?;
            take(&name, &ports)?;
        }
        Ok(())
    }

    /// Each endpoint of each Service, with what its ids add up to.
    fn each_backend(
        &self,
        value: impl Fn(BackendId) -> u32,
        mut take: impl FnMut(&[(&str, &str); 2], u32) -> fmt::Result,
    ) -> fmt::Result {
        let mut address = String::new();
        self.each(|service, ports| {
            let mut sums: BTreeMap<SocketAddr, u32> = BTreeMap::new();
            for origin in ports {
                for (endpoint, id) in origin.port.endpoints.iter().zip(origin.backends.iter()) {
                    let Some(id) = *id else { continue };
                    *sums.entry(SocketAddr::new(endpoint.address, endpoint.port)).or_default() += value(id);
                }
            }
            for (endpoint, sum) in sums {
                address.clear();
                write!(address, "{endpoint}")?;
                take(&[("service", service), ("backend", &address)], sum)?;
            }
            Ok(())
        })
    }
}

impl<C: Counts> Collector for Services<C> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let name = "millrace_flows_opened";
        let mut metric = encoder.encode_descriptor(name, "Flows opened.", None, MetricType::Counter)?;
        self.each(|service, ports| {
            let sum: u64 = ports.iter().map(|origin| self.counts.opened(origin.id)).sum();
            metric.encode_family(&[("service", service)])?.encode_counter::<NoLabelSet, _, u64>(&sum, None)
        })?;
        let name = "millrace_backend_connections";
        let mut metric = encoder.encode_descriptor(name, "Connections of an endpoint.", None, MetricType::Gauge)?;
        self.each_backend(
            |id| self.counts.connections(id),
            |labels, sum| metric.encode_family(labels)?.encode_gauge(&sum),
        )?;
        let (name, help) = ("millrace_backend_set_aside", "1 while an endpoint that failed connections gets none.");
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        let aside = |id| u32::from(self.counts.is_aside(id));
        self.each_backend(aside, |labels, sum| metric.encode_family(labels)?.encode_gauge(&sum.min(1)))
    }
}

#[cfg(test)]
mod tests {
    use lb::model::{Endpoint, ServicePort};
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::fixture;

    /// What ids say of themselves.
    struct ById;

    impl Counts for ById {
        fn opened(&self, id: ServiceId) -> u64 {
            10 + id.index() as u64
        }

        fn connections(&self, id: BackendId) -> u32 {
            id.index() as u32
        }

        fn is_aside(&self, id: BackendId) -> bool {
            id.index() == 3
        }
    }

    fn origin(service: &str, id: usize, endpoints: &[(u8, Option<usize>)]) -> Origin {
        let places = endpoints.iter().map(|(host, _)| Endpoint::new([10, 0, 0, *host].into(), 80)).collect();
        let port = ServicePort { endpoints: places, ..fixture::service_port(service) };
        let ids = endpoints.iter().map(|(_, id)| id.map(|id| BackendId::new(id as u32, 1)));
        Origin { id: ServiceId::new(id as u32, 1), port: Arc::new(port), backends: ids.collect() }
    }

    #[test]
    fn each_series_is_there_once_with_what_the_ports_of_a_service_add_up_to() {
        // Two ports of one Service share an endpoint; one endpoint has no row.
        let origins = vec![
            origin("a", 0, &[(1, Some(2)), (2, Some(3))]),
            origin("a", 1, &[(1, Some(4)), (3, None)]),
            origin("b", 2, &[(1, Some(5))]),
        ];
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Services { origins: origins.into(), counts: ById }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let expected = r#"# HELP millrace_flows_opened Flows opened.
# TYPE millrace_flows_opened counter
millrace_flows_opened_total{service="default/a"} 21
millrace_flows_opened_total{service="default/b"} 12
# HELP millrace_backend_connections Connections of an endpoint.
# TYPE millrace_backend_connections gauge
millrace_backend_connections{service="default/a",backend="10.0.0.1:80"} 6
millrace_backend_connections{service="default/a",backend="10.0.0.2:80"} 3
millrace_backend_connections{service="default/b",backend="10.0.0.1:80"} 5
# HELP millrace_backend_set_aside 1 while an endpoint that failed connections gets none.
# TYPE millrace_backend_set_aside gauge
millrace_backend_set_aside{service="default/a",backend="10.0.0.1:80"} 0
millrace_backend_set_aside{service="default/a",backend="10.0.0.2:80"} 1
millrace_backend_set_aside{service="default/b",backend="10.0.0.1:80"} 0
# EOF
"#;
        assert_eq!(text, expected);
    }
}
