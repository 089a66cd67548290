//! From Services, EndpointSlices, Endpoints and Nodes to what the dataplane is to do.
//!
//! [`read`] judges manifests and makes typed objects of them; [`translate`] applies every rule of the Service API to
//! those and makes the desired state. Both are functions of their arguments: no I/O, no clock, and nothing depends on
//! the order of files, so two boxes with equal manifests get equal values.
#![forbid(unsafe_code)]

mod addresses;
mod annotations;
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
mod selection;
mod service;
mod settled;
mod topology;
pub mod translation;

pub use annotations::{MODES, judge_annotations, mode_name};
pub use context::{AddressRange, Context, Defaults, Drained, Node, Place, Pool, Serve};
pub use finding::{Finding, Severity};
pub use former::Former;
pub use given::Given;
pub use listing::{
    BackendListing, BackendState, CheckKind, Counters, HealthCheck, PortListing, Probe, ServiceKind, ServiceListing,
};
pub use manifest::{Read, Source, read, read_after};
pub use objects::{Located, Objects};
pub use translation::{Translation, translate, translate_after};
