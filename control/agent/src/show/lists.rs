//! The columns of `services`, `backends` and `flows`.

use std::net::SocketAddr;

use super::{Row, Tint, age, or_dash};
use crate::view::{BackendView, FlowView, PortView, SET_ASIDE, ServiceView};

impl Row for ServiceView {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["NAMESPACE", "NAME", "TYPE", "ADDRESS", "PORT(S)", "ENDPOINTS", "STATUS"];
        if wide {
            header.extend(["CLUSTER-IP", "ALGORITHM", "MODE", "SOURCE"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        addresses.extend(self.external_name.clone());
        let mut cells = vec![
            self.namespace.clone(),
            self.name.clone(),
            self.kind.clone(),
            joined(addresses),
            joined(self.ports.iter().map(port).collect()),
            format!("{}/{}", self.endpoints_ready, self.endpoints_total),
            self.not_served.clone().unwrap_or_else(|| "served".to_owned()),
        ];
        if wide {
            let cluster_ips = self.cluster_ips.iter().map(ToString::to_string).collect();
            cells.extend([joined(cluster_ips), self.algorithm.clone(), self.mode.clone(), self.source.clone()]);
        }
        cells
    }

    fn tint(&self) -> Tint {
        match (&self.not_served, self.endpoints_ready) {
            (Some(_), _) => Tint::Warn,
            (None, 0) => Tint::Bad,
            (None, _) => Tint::Plain,
        }
    }
}

impl Row for BackendView {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["SERVICE", "PORT", "BACKEND", "WEIGHT", "STATE", "CONNECTIONS", "HEALTH", "REASON"];
        if wide {
            header.extend(["MODE", "POD", "NODE", "ZONE", "READY", "SERVING", "TERMINATING", "CHECK", "SOURCE"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let port = match self.port_name.as_str() {
            "" => self.protocol.clone(),
            name => format!("{name}/{}", self.protocol),
        };
        let mut cells = vec![
            self.service.clone(),
            port,
            SocketAddr::new(self.address, self.port).to_string(),
            self.weight.to_string(),
            if self.drained { format!("{},drained", self.state) } else { self.state.clone() },
            self.connections.to_string(),
            self.health().to_owned(),
            or_dash(self.reason.as_deref()),
        ];
        if wide {
            let check = match (&self.health_check, &self.last_probe) {
                (Some(check), Some(last)) => Some(format!("{check} ({last})")),
                (check, _) => check.clone(),
            };
            cells.push(self.mode.clone());
            cells.extend([&self.pod, &self.node, &self.zone].map(|text| or_dash(text.as_deref())));
            cells.extend([self.ready, self.serving, self.terminating].map(|flag| flag.to_string()));
            cells.extend([or_dash(check.as_deref()), self.source.clone()]);
        }
        cells
    }

    fn tint(&self) -> Tint {
        match self.state.as_str() {
            "usable" => Tint::Plain,
            "draining" | SET_ASIDE => Tint::Warn,
            _ => Tint::Bad,
        }
    }
}

impl BackendView {
    /// What its health check says, in a word.
    fn health(&self) -> &'static str {
        match (&self.health_check, self.healthy) {
            (None, _) => "-",
            (Some(_), None) => "unknown",
            (Some(_), Some(true)) => "healthy",
            (Some(_), Some(false)) => "unhealthy",
        }
    }
}

impl Row for FlowView {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["PROTOCOL", "CLIENT", "VIP", "BACKEND", "STATE", "IDLE", "SERVICE"];
        if wide {
            header.extend(["SNAT", "MODE", "WORKER", "AGE", "CLIENT-HOP"]);
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.protocol.clone(),
            self.client.to_string(),
            self.vip.to_string(),
            self.backend.to_string(),
            self.state.clone(),
            age(self.idle_seconds),
            or_dash(Some(&self.service)),
        ];
        if wide {
            cells.extend([
                self.snat.to_string(),
                self.mode.clone(),
                self.worker.to_string(),
                age(self.age_seconds),
                self.client_mac.clone(),
            ]);
        }
        cells
    }
}

/// A port as kubectl shows it: `80/TCP`, `80:30080/TCP`.
fn port(port: &PortView) -> String {
    match port.node_port {
        Some(node_port) => format!("{}:{node_port}/{}", port.port, port.protocol),
        None => format!("{}/{}", port.port, port.protocol),
    }
}

fn joined(texts: Vec<String>) -> String {
    or_dash(Some(&texts.join(",")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::{Format, backends, flows, services};
    use super::*;

    pub(crate) fn service(namespace: &str, name: &str) -> ServiceView {
        ServiceView {
            namespace: namespace.into(),
            name: name.into(),
            kind: "LoadBalancer".into(),
            addresses: vec!["203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            cluster_ips: vec!["10.96.0.7".parse().unwrap()],
            external_name: None,
            ports: vec![
                PortView { name: "http".into(), protocol: "TCP".into(), port: 80, node_port: Some(30080) },
                PortView { name: "dns".into(), protocol: "UDP".into(), port: 53, node_port: None },
            ],
            endpoints_ready: 2,
            endpoints_total: 3,
            algorithm: "maglev".into(),
            mode: "nat".into(),
            not_served: None,
            source: "web.yaml:1".into(),
        }
    }

    pub(crate) fn backend(service: &str, address: &str) -> BackendView {
        BackendView {
            service: service.into(),
            port_name: "http".into(),
            protocol: "TCP".into(),
            address: address.parse().unwrap(),
            port: 8080,
            weight: 100,
            mode: "nat".into(),
            state: "usable".into(),
            reason: None,
            connections: 7,
            drained: false,
            ready: true,
            serving: true,
            terminating: false,
            health_check: None,
            healthy: None,
            last_probe: None,
            pod: Some("default/web-0".into()),
            node: Some("n1".into()),
            zone: None,
            source: "web.yaml:20".into(),
        }
    }

    pub(crate) fn flow(service: &str, client: &str, backend: &str) -> FlowView {
        FlowView {
            protocol: "tcp".into(),
            client: client.parse().unwrap(),
            vip: "203.0.113.1:80".parse().unwrap(),
            snat: "192.0.2.10:4711".parse().unwrap(),
            backend: backend.parse().unwrap(),
            state: "established".into(),
            mode: "nat".into(),
            idle_seconds: 3,
            age_seconds: 200,
            worker: 1,
            service: service.into(),
            client_mac: "02:00:00:00:00:01".into(),
            client_port: 0,
        }
    }

    #[test]
    fn services_have_these_columns() {
        let refused = ServiceView { not_served: Some("headless".into()), ..service("a", "b") };
        assert_eq!(
            services(&[service("default", "web"), refused], Format::Table, false).out,
            "\
NAMESPACE   NAME   TYPE           ADDRESS                   PORT(S)               ENDPOINTS   STATUS
default     web    LoadBalancer   203.0.113.1,2001:db8::1   80:30080/TCP,53/UDP   2/3         served
a           b      LoadBalancer   203.0.113.1,2001:db8::1   80:30080/TCP,53/UDP   2/3         headless
"
        );
        let wide = services(&[service("default", "web")], Format::Wide, false).out;
        assert!(wide.lines().next().unwrap().ends_with("STATUS   CLUSTER-IP   ALGORITHM   MODE   SOURCE"), "{wide}");
        assert!(wide.contains("10.96.0.7    maglev      nat    web.yaml:1"), "{wide}");
    }

    #[test]
    fn backends_have_these_columns() {
        let unwell = BackendView {
            state: "out".into(),
            reason: Some("unhealthy".into()),
            health_check: Some("tcp;interval=1s".into()),
            healthy: Some(false),
            last_probe: Some("connection refused".into()),
            ..backend("default/web", "fd00::5")
        };
        assert_eq!(
            backends(&[backend("default/web", "10.0.0.5"), unwell.clone()], Format::Table, false).out,
            "\
SERVICE       PORT       BACKEND          WEIGHT   STATE    CONNECTIONS   HEALTH      REASON
default/web   http/TCP   10.0.0.5:8080    100      usable   7             -           -
default/web   http/TCP   [fd00::5]:8080   100      out      7             unhealthy   unhealthy
"
        );
        let wide = backends(&[unwell], Format::Wide, false).out;
        assert!(wide.contains("POD             NODE   ZONE   READY   SERVING   TERMINATING   CHECK"), "{wide}");
        assert!(wide.contains("tcp;interval=1s (connection refused)"), "{wide}");
    }

    #[test]
    fn a_drained_backend_says_so() {
        let drained = BackendView { drained: true, state: "draining".into(), ..backend("default/web", "10.0.0.5") };
        assert!(backends(&[drained], Format::Table, false).out.contains("draining,drained"));
    }

    #[test]
    fn flows_have_these_columns() {
        let row = flow("default/web", "198.51.100.9:50000", "10.0.0.5:8080");
        assert_eq!(
            flows(std::slice::from_ref(&row), Format::Table, false).out,
            "\
PROTOCOL   CLIENT               VIP              BACKEND         STATE         IDLE   SERVICE
tcp        198.51.100.9:50000   203.0.113.1:80   10.0.0.5:8080   established   3s     default/web
"
        );
        let wide = flows(&[row], Format::Wide, false).out;
        assert!(wide.contains("SNAT              MODE   WORKER   AGE     CLIENT-HOP"), "{wide}");
    }

    #[test]
    fn json_and_yaml_have_every_field() {
        let json = services(&[service("default", "web")], Format::Json, true).out;
        let read: Vec<ServiceView> = serde_json::from_str(&json).unwrap();
        assert_eq!(read, [service("default", "web")]);
        let yaml = services(&[service("default", "web")], Format::Yaml, true).out;
        assert!(yaml.contains("endpointsReady: 2\n") && yaml.contains("- \"2001:db8::1\"\n"), "{yaml}");
    }
}
