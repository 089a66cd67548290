//! From Services, EndpointSlices, Endpoints and Nodes to what the dataplane is to do.
//!
//! [`read`] judges manifests and makes typed objects of them; [`translate`] applies every rule of the Service API to
//! those and makes the desired state. Both are functions of their arguments: no I/O, no clock, and nothing depends on
//! the order of files, so two boxes with equal manifests get equal values.
#![forbid(unsafe_code)]

mod addresses;
pub mod allocation;
mod annotations;
mod combined;
pub mod context;
mod endpoints;
pub mod finding;
mod former;
mod frontends;
pub mod given;
mod join;
pub mod listing;
pub mod manifest;
pub mod objects;
pub mod pools;
mod selection;
mod service;
mod settled;
mod topology;
pub mod translation;

pub use allocation::{Allocation, Allotment, Lack, PortError, Reason, Usage, allocate};
pub use annotations::{MODES, judge_annotations, mode_name};
pub use context::{AddressRange, Context, Defaults, Drained, Node, Place, Serve};
pub use finding::{Finding, Severity};
pub use former::Former;
pub use given::Given;
pub use listing::{
    BackendListing, BackendState, CheckKind, Counters, HealthCheck, HealthCheckNodePort, PortListing, Probe,
    ServiceKind, ServiceListing,
};
pub use manifest::{Read, Source, read, read_after};
pub use objects::{All, Located, Objects};
pub use pools::{Labels, Pool, Selector};
pub use translation::{Translation, translate, translate_after};
