//! What people narrow a listing down to: parsed from the command line, sent over the admin socket, applied there.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb::flow::FlowRecord;
use serde::{Deserialize, Serialize};

use super::{BackendView, FlowView, ServiceView};

/// What `--service`, `--backend` and `--source` leave of a listing; those that are absent leave everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filters {
    /// `namespace/name`, or a name alone where one namespace has it; see [`Filters::resolve`].
    pub service: Option<String>,
    /// An endpoint.
    pub backend: Option<BackendFilter>,
    /// A client.
    pub source: Option<IpAddr>,
}

/// How alike an unknown Service and one that there is must be for a hint (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.85;

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
    /// The same with the Service's namespace, of the Services that there are.
    ///
    /// # Errors
    /// If there is no such Service, or a name alone is that of several: a text for people.
    pub fn resolve(&self, services: &BTreeSet<String>) -> Result<Self, String> {
        let Some(wanted) = &self.service else { return Ok(self.clone()) };
        let name = |full: &str| full.split_once('/').map(|(_, name)| name.to_owned()).unwrap_or_default();
        let matching: Vec<&String> = services.iter().filter(|full| *full == wanted || name(full) == *wanted).collect();
        match matching[..] {
            [one] => Ok(Self { service: Some(one.clone()), ..self.clone() }),
            [] => {
                let likeness =
                    |full: &String| strsim::jaro_winkler(wanted, full).max(strsim::jaro_winkler(wanted, &name(full)));
                let nearest = services.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
                let hint = match nearest {
                    Some(near) if likeness(near) >= ALIKE => format!("did you mean {near}?"),
                    _ => "see `millrace services`".to_owned(),
                };
                Err(format!("no such Service: {wanted}; {hint}"))
            }
            _ => {
                let all: Vec<&str> = matching.iter().map(|full| full.as_str()).collect();
                Err(format!("{wanted} is the name of several Services: say which of {}", all.join(", ")))
            }
        }
    }

    fn keeps_service(&self, namespace_and_name: &str) -> bool {
        self.service.as_deref().is_none_or(|wanted| wanted == namespace_and_name)
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
    fn a_service_is_named_wholly_or_by_a_name_that_one_namespace_has() {
        let wanted = filters(Some("default/web"), None, None);
        assert!(wanted.service(&service("default", "web"), &[]) && !wanted.service(&service("other", "web"), &[]));
        assert!(
            wanted.backend(&backend("default/web", "10.0.0.1")) && !wanted.backend(&backend("web/web", "10.0.0.1"))
        );
        assert!(!wanted.flow(&flow("", "192.0.2.1:1", "10.0.0.1:80")), "its Service is gone");
        let services = ["a/web", "b/api", "b/web"].map(str::to_owned).into();
        let resolve = |text| filters(Some(text), None, None).resolve(&services).map(|filters| filters.service.unwrap());
        assert_eq!((resolve("a/web"), resolve("api")), (Ok("a/web".into()), Ok("b/api".into())));
        assert_eq!(resolve("web").unwrap_err(), "web is the name of several Services: say which of a/web, b/web");
        assert_eq!(resolve("a/wbe").unwrap_err(), "no such Service: a/wbe; did you mean a/web?");
        assert_eq!(resolve("mail").unwrap_err(), "no such Service: mail; see `millrace services`");
        assert_eq!(Filters::default().resolve(&services), Ok(Filters::default()));
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
