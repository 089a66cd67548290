//! How this node reaches the API server: never through a ClusterIP that it serves itself.
//!
//! A pod's environment names the API server's ClusterIP, the one of the Service `default/kubernetes`. Where Millrace serves
//! ClusterIPs, that address leads back to it, and a node that starts would wait for itself. So it goes to the Service's
//! endpoints, as they were seen last (which are kept over restarts), and takes certificates for the name that was asked for.
//! Pure but for the handle on what was seen.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::store::Stores;
use crate::config::Kubernetes;

/// Namespace and name of the Service of the API server itself.
const API_SERVER: (&str, &str) = ("default", "kubernetes");
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// How the API server is reached. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    /// What is configured.
    pub(super) settings: Kubernetes,
    /// Whether this node serves ClusterIPs.
    serves_cluster_ips: bool,
    seen: Arc<OnceLock<Weak<Shared>>>,
    /// Which of several API servers is next.
    turn: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Where the API server is, as its Service says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApiServer {
    /// Its ClusterIPs.
    cluster_ips: Vec<IpAddr>,
    /// Its own addresses.
    places: Vec<SocketAddr>,
}

impl ApiServer {
    /// From all that is known of Services and slices.
    pub fn of<'s>(service: Option<&Service>, slices: impl Iterator<Item = &'s EndpointSlice>) -> Self {
        let spec = service.and_then(|service| service.spec.as_ref());
        let cluster_ips = spec.into_iter().flat_map(|spec| spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
        let mut cluster_ips: Vec<IpAddr> = cluster_ips.filter_map(|ip| ip.parse().ok()).collect();
        cluster_ips.dedup();
        let is_its = |slice: &&EndpointSlice| {
            let (metadata, labels) = (&slice.metadata, slice.metadata.labels.as_ref());
            let of = labels.and_then(|labels| labels.get(SERVICE_NAME)).map(String::as_str);
            (metadata.namespace.as_deref(), of) == (Some(API_SERVER.0), Some(API_SERVER.1))
        };
        let mut places: Vec<SocketAddr> = slices.filter(is_its).flat_map(places).collect();
        places.sort_unstable();
        places.dedup();
        Self { cluster_ips, places }
    }

    /// From what is there now; where that does not say, from when it did last: an API server that ends takes itself out of
    /// its Service, and who followed that could never follow the next one.
    pub fn known(stores: &mut Stores) -> &Self {
        let key = (API_SERVER.0.to_owned(), API_SERVER.1.to_owned());
        let service = stores.services.get(&key).map(|entry| &entry.object.object);
        let now = Self::of(service, stores.slices.entries().map(|entry| &entry.object.object));
        if !now.cluster_ips.is_empty() && !now.places.is_empty() || stores.api_server == Self::default() {
            stores.api_server = now;
        }
        &stores.api_server
    }

    /// Where to go instead of this host; `None`: it is no ClusterIP of the API server.
    fn instead_of(&self, host: &str, turn: usize) -> Option<Result<SocketAddr, String>> {
        let host: IpAddr = host.trim_matches(['[', ']']).parse().ok()?;
        if !self.cluster_ips.contains(&host) {
            return None;
        }
        let place = self.places.get(turn.checked_rem(self.places.len()).unwrap_or(0)).copied();
        Some(place.ok_or_else(|| format!("{host} is the API server's ClusterIP, which has no endpoint; {REAL}")))
    }
}

/// What to set where it is not known.
const REAL: &str = "set `apiServer.host` of the chart, or `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` of the \
                    container, to an address of the API server's own";

/// The ready endpoints of a slice, with its first TCP port: an API server has one.
fn places(slice: &EndpointSlice) -> Vec<SocketAddr> {
    let ports = slice.ports.iter().flatten();
    let tcp = |protocol: &Option<String>| protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let port = ports.filter(|port| tcp(&port.protocol)).find_map(|port| u16::try_from(port.port?).ok());
    let is_ready = |conditions: Option<bool>| conditions.unwrap_or(true);
    let endpoints = slice.endpoints.iter().flatten();
    let ready = endpoints.filter(|endpoint| is_ready(endpoint.conditions.as_ref().and_then(|all| all.ready)));
    let addresses = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok());
    addresses.filter_map(|address| Some(SocketAddr::new(address, port?))).collect()
}

impl Access {
    /// As configured, on a node that serves ClusterIPs or does not.
    #[must_use]
    pub fn new(settings: &Kubernetes, serves_cluster_ips: bool) -> Self {
        let (seen, turn) = (Arc::default(), Arc::default());
        Self { settings: settings.clone(), serves_cluster_ips, seen, turn }
    }

    /// From now on what is seen there counts.
    pub(super) fn learn_from(&self, shared: &Arc<Shared>) {
        let _ = self.seen.set(Arc::downgrade(shared));
    }

    fn api_server(&self) -> ApiServer {
        let Some(shared) = self.seen.get().and_then(Weak::upgrade) else { return ApiServer::default() };
        ApiServer::known(&mut shared.inner().stores).clone()
    }

    /// Has a client that is configured for a ClusterIP that this node serves go to an API server itself.
    ///
    /// # Errors
    /// If that is not known.
    pub(super) fn go_past_ourselves(&self, config: &mut kube::Config) -> Result<(), String> {
        let Some(host) = config.cluster_url.host().map(str::to_owned) else { return Ok(()) };
        if !self.serves_cluster_ips {
            return Ok(());
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let Some(place) = self.api_server().instead_of(&host, turn) else { return Ok(()) };
        let url = format!("https://{}", place?);
        config.cluster_url = url.parse().map_err(|error| format!("{url}: {error}"))?;
        config.tls_server_name.get_or_insert_with(|| host.trim_matches(['[', ']']).to_owned());
        Ok(())
    }

    /// What to say besides where no API server answers: on a node that has not seen its cluster yet, its ClusterIP is
    /// perhaps the only address there is.
    pub(super) fn hint(&self) -> Option<String> {
        let unknown = self.serves_cluster_ips && self.settings.kubeconfig.is_none();
        let unknown = unknown && self.api_server().places.is_empty();
        unknown.then(|| {
            let host = std::env::var("KUBERNETES_SERVICE_HOST").unwrap_or_default();
            format!("if nobody serves ClusterIPs on this node before Millrace does, {host} leads nowhere: {REAL}")
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(namespace: &str, service: &str, addresses: &[(&str, bool)]) -> EndpointSlice {
        let endpoint = |(ip, ready): &(&str, bool)| json!({"addresses": [ip], "conditions": {"ready": ready}});
        let object = json!({
            "metadata": {"name": service, "namespace": namespace, "labels": {SERVICE_NAME: service}},
            "addressType": "IPv4",
            "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_cluster_ip_of_the_api_server_is_gone_past_by_its_ready_endpoints_in_turn() {
        let service = json!({"spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:10:96::1"]}});
        let service: Service = serde_json::from_value(service).unwrap();
        let slices = [
            slice("default", "kubernetes", &[("10.0.0.2", true), ("10.0.0.1", true), ("10.0.0.3", false)]),
            slice("default", "web", &[("10.0.0.4", true)]),
            slice("other", "kubernetes", &[("10.0.0.5", true)]),
        ];
        let known = ApiServer::of(Some(&service), slices.iter());
        for (host, turn, expected) in [
            ("10.96.0.1", 0, Some("10.0.0.1:6443")),
            ("10.96.0.1", 1, Some("10.0.0.2:6443")),
            ("[fd00:10:96::1]", 2, Some("10.0.0.1:6443")),
            ("10.0.0.1", 0, None),
            ("10.96.0.10", 0, None),
            ("kubernetes.default.svc", 0, None),
        ] {
            let found = known.instead_of(host, turn).map(Result::unwrap);
            assert_eq!(found, expected.map(|place| place.parse().unwrap()), "{host}");
        }
        let without = ApiServer::of(Some(&service), slices[1..].iter());
        let error = without.instead_of("10.96.0.1", 0).unwrap().unwrap_err();
        assert!(error.contains("set `apiServer.host` of the chart"), "{error}");
        assert_eq!(ApiServer::of(None, [].into_iter()).instead_of("10.96.0.1", 0), None);
    }

    #[test]
    fn an_api_server_that_takes_itself_out_of_its_service_is_asked_where_it_was() {
        let service =
            json!({"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.1"}});
        let mut stores = Stores::default();
        stores.services.put(serde_json::from_value::<Service>(service).unwrap());
        for (addresses, expected) in [
            (&[][..], None),
            (&[("10.0.0.1", true)], Some("10.0.0.1:6443")),
            (&[], Some("10.0.0.1:6443")),
            (&[("10.0.0.2", true)], Some("10.0.0.2:6443")),
        ] {
            stores.slices.put(slice("default", "kubernetes", addresses));
            let found = ApiServer::known(&mut stores).instead_of("10.96.0.1", 0).unwrap().ok();
            assert_eq!(found, expected.map(|place| place.parse().unwrap()));
        }
    }
}
