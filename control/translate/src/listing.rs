//! What `millrace services` and `millrace backends` show, and what the agent is to probe and count.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lb::model::Mode;
use serde::Serialize;

use crate::annotations::mode_name;

/// What sort of Service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ServiceKind {
    /// Type ClusterIP.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Type NodePort.
    NodePort,
    /// Type LoadBalancer.
    LoadBalancer,
    /// `clusterIP: None`: nothing to balance.
    #[serde(rename = "headless")]
    Headless,
    /// A DNS name: nothing to balance.
    ExternalName,
}

impl ServiceKind {
    /// The word that is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::Headless => "headless",
            Self::ExternalName => "ExternalName",
        }
    }
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A port of a Service as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortListing {
    /// Its name, empty if it has none.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `spec.ports[].port`.
    pub port: u16,
    /// Its NodePort, written or given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

/// A Service as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceListing {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What sort it is.
    pub kind: ServiceKind,
    /// The addresses where it is served here, those of NodePorts left out.
    pub addresses: Vec<IpAddr>,
    /// Its ClusterIPs, written or given, whether served here or not.
    pub cluster_ips: Vec<IpAddr>,
    /// The DNS name of an ExternalName.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_name: Option<String>,
    /// Its ports.
    pub ports: Vec<PortListing>,
    /// Endpoints (address and port) that get new flows.
    pub endpoints_ready: usize,
    /// All its endpoints (address and port).
    pub endpoints_total: usize,
    /// How an endpoint is chosen.
    pub algorithm: String,
    /// How packets get there.
    pub mode: String,
    /// Why nothing of it is served here; `None` where something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_served: Option<String>,
    /// `file:line` of its manifest.
    pub source: String,
}

/// Whether a backend gets flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// New flows and old ones.
    Usable,
    /// Old flows alone.
    Draining,
    /// None: not ready, unhealthy, or refused.
    Out,
}

impl BackendState {
    /// The word that is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::Draining => "draining",
            Self::Out => "out",
        }
    }
}

/// An endpoint of a Service port as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendListing {
    /// The Service, `namespace/name`; one text for all of its endpoints.
    pub service: Arc<str>,
    /// The Service port's name, empty if it has none.
    pub port_name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The endpoint's address.
    pub address: IpAddr,
    /// The endpoint's port.
    pub port: u16,
    /// Its weight.
    pub weight: u16,
    /// How packets get there; ClusterIPs of a Service of policy Local have a mode of their own.
    #[serde(serialize_with = "mode_word")]
    pub mode: Mode,
    /// Its pod (`targetRef`) as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The condition `ready`.
    pub ready: bool,
    /// The condition `serving`.
    pub serving: bool,
    /// The condition `terminating`.
    pub terminating: bool,
    /// Whether it gets flows here.
    pub state: BackendState,
    /// Why it gets no new flows, in a few words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its health check, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// What the health check found last; `None` before the first result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// `file:line` of the object that names it; one text for all that it names.
    pub source: Arc<str>,
}

fn mode_word<S: serde::Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode_name(*mode))
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// A TCP connect.
    Tcp,
    /// An HTTP GET of this path; 200 to 399 is healthy.
    Http(String),
}

/// `millrace.dev/health-check`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HealthCheck {
    /// What a probe does.
    pub kind: CheckKind,
    /// From one probe to the next.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Successes in a row that make it healthy.
    pub up: u32,
    /// Failures in a row that make it unhealthy.
    pub down: u32,
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            CheckKind::Tcp => f.write_str("tcp")?,
            CheckKind::Http(path) => write!(f, "http:{path}")?,
        }
        let (interval, timeout) = (self.interval, self.timeout);
        write!(f, ";interval={interval:?};timeout={timeout:?};up={};down={}", self.up, self.down)
    }
}

impl Serialize for HealthCheck {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An endpoint that is to be probed, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Probe {
    /// Whom to ask.
    pub endpoint: SocketAddr,
    /// What to ask.
    pub check: HealthCheck,
}

/// A `healthCheckNodePort`: where load balancers outside ask a node whether it has endpoints of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheckNodePort {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The port, on every address of the node.
    pub port: u16,
    /// Endpoints on this node that are ready: addresses, of the family that has more of them.
    pub endpoints: usize,
}

/// What was left out, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Documents of kinds that are not ours, by kind.
    pub skipped_kinds: BTreeMap<String, u64>,
    /// EndpointSlices of address type FQDN.
    pub fqdn_slices: u64,
    /// EndpointSlices and Endpoints that wait for their Service.
    pub endpoints_waiting: u64,
    /// Endpoints that are frontends of ours.
    pub loops_refused: u64,
}
