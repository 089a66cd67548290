//! What people narrow a listing down to: parsed from the command line, sent over the admin socket, applied there.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb::flow::FlowRecord;
use serde::{Deserialize, Serialize};

use super::{BackendView, FlowView, ServiceView};

/// What `--service`, `--backend` and `--source` leave of a listing; those that are absent leave everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filters {
    /// `namespace/name`; a name alone is of namespace `default`.
    pub service: Option<String>,
    /// An endpoint.
    pub backend: Option<BackendFilter>,
    /// A client.
    pub source: Option<IpAddr>,
}

/// `IP` or `IP:PORT`, `[IP]:PORT` for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackendFilter {
    /// The address.
    pub address: IpAddr,
    /// The port; `None` for every port.
    pub port: Option<u16>,
}

impl BackendFilter {
    /// Whether this endpoint is meant.
    #[must_use]
    pub fn matches(&self, address: IpAddr, port: u16) -> bool {
        self.address == address && self.port.is_none_or(|wanted| wanted == port)
    }
}

impl std::str::FromStr for BackendFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self { address: socket.ip(), port: Some(socket.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        match bare.parse() {
            Ok(address) => Ok(Self { address, port: None }),
            Err(_) => Err(format!("`{text}`, expected an address or ADDRESS:PORT, such as 10.0.0.5 or [fd00::5]:80")),
        }
    }
}

impl fmt::Display for BackendFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

impl TryFrom<String> for BackendFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<BackendFilter> for String {
    fn from(filter: BackendFilter) -> Self {
        filter.to_string()
    }
}

impl Filters {
    fn keeps_service(&self, namespace_and_name: &str) -> bool {
        self.service.as_deref().is_none_or(|wanted| {
            wanted == namespace_and_name
                || (!wanted.contains('/') && namespace_and_name.strip_prefix("default/") == Some(wanted))
        })
    }

    fn keeps_backend(&self, address: IpAddr, port: u16) -> bool {
        self.backend.is_none_or(|wanted| wanted.matches(address, port))
    }

    /// Whether a Service is listed. With `backend` only Services with that endpoint are; `backends` has all endpoints.
    #[must_use]
    pub fn service(&self, view: &ServiceView, backends: &[BackendView]) -> bool {
        let name = format!("{}/{}", view.namespace, view.name);
        self.keeps_service(&name)
            && (self.backend.is_none()
                || backends.iter().any(|b| b.service == name && self.keeps_backend(b.address, b.port)))
    }

    /// Whether an endpoint is listed.
    #[must_use]
    pub fn backend(&self, view: &BackendView) -> bool {
        self.keeps_service(&view.service) && self.keeps_backend(view.address, view.port)
    }

    /// Whether a flow is listed.
    #[must_use]
    pub fn flow(&self, view: &FlowView) -> bool {
        self.keeps_service(&view.service)
            && self.keeps_backend(view.backend.ip(), view.backend.port())
            && self.source.is_none_or(|wanted| wanted == view.client.ip())
    }

    /// Whether a flow may be listed, before its Service's name is looked up: by endpoint and client alone.
    #[must_use]
    pub fn record(&self, record: &FlowRecord) -> bool {
        self.keeps_backend(record.backend.0.into(), record.backend.1.number())
            && self.source.is_none_or(|wanted| wanted == IpAddr::from(record.client.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::examples::{backend, flow, service};

    fn filters(service: Option<&str>, backend: Option<&str>, source: Option<&str>) -> Filters {
        Filters {
            service: service.map(str::to_owned),
            backend: backend.map(|text| text.parse().unwrap()),
            source: source.map(|text| text.parse().unwrap()),
        }
    }

    #[test]
    fn without_filters_everything_is_listed() {
        let none = Filters::default();
        assert!(none.service(&service("a", "b"), &[]));
        assert!(none.backend(&backend("a/b", "10.0.0.1")));
        assert!(none.flow(&flow("", "192.0.2.1:1", "10.0.0.1:80")));
    }

    #[test]
    fn a_service_is_named_wholly_or_within_default() {
        let wanted = filters(Some("default/web"), None, None);
        assert!(wanted.service(&service("default", "web"), &[]) && !wanted.service(&service("other", "web"), &[]));
        let short = filters(Some("web"), None, None);
        assert!(short.service(&service("default", "web"), &[]) && !short.service(&service("other", "web"), &[]));
        assert!(short.backend(&backend("default/web", "10.0.0.1")) && !short.backend(&backend("web/web", "10.0.0.1")));
        assert!(!short.flow(&flow("", "192.0.2.1:1", "10.0.0.1:80")), "its Service is gone");
    }

    #[test]
    fn a_backend_is_an_address_with_or_without_a_port() {
        let row = backend("default/web", "fd00::5");
        for (text, kept) in [
            ("fd00::5", true),
            ("[fd00::5]", true),
            ("[fd00::5]:8080", true),
            ("[fd00::5]:80", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(filters(None, Some(text), None).backend(&row), kept, "{text}");
        }
        let wanted = filters(None, Some("10.0.0.1:8080"), None);
        assert!(wanted.flow(&flow("a/b", "192.0.2.1:1", "10.0.0.1:8080")));
        assert!(!wanted.flow(&flow("a/b", "192.0.2.1:1", "10.0.0.1:80")));
        let backends = [backend("default/web", "10.0.0.1")];
        assert!(wanted.service(&service("default", "web"), &backends));
        assert!(!wanted.service(&service("default", "api"), &backends));
    }

    #[test]
    fn a_source_is_the_client_s_address() {
        let wanted = filters(None, None, Some("192.0.2.1"));
        assert!(wanted.flow(&flow("a/b", "192.0.2.1:1", "10.0.0.1:80")));
        assert!(!wanted.flow(&flow("a/b", "192.0.2.2:1", "10.0.0.1:80")));
    }

    #[test]
    fn filters_cross_the_socket_as_text() {
        let sent = filters(Some("a/b"), Some("[fd00::5]:80"), Some("192.0.2.1"));
        let text = serde_json::to_string(&sent).unwrap();
        assert_eq!(text, r#"{"service":"a/b","backend":"[fd00::5]:80","source":"192.0.2.1"}"#);
        assert_eq!(serde_json::from_str::<Filters>(&text).unwrap(), sent);
        assert_eq!(serde_json::from_str::<Filters>("{}").unwrap(), Filters::default());
        assert!("10.0.0.300".parse::<BackendFilter>().is_err() && "[::1]:x".parse::<BackendFilter>().is_err());
    }
}
