//! What tests of several modules are made of.

use lb::model::{ServicePort, ServicePortKey};
use wire::Protocol;

/// TCP port 80 of Service `default/NAME`, served nowhere and by nobody, all else as it is by default.
pub(crate) fn service_port(name: &str) -> ServicePort {
    ServicePort::new(ServicePortKey::new("default", name, Protocol::TCP, false), 80)
}
