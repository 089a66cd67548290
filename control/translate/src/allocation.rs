//! Which addresses Services of type LoadBalancer are to have, where an API server's `status` is the record of it.
//!
//! What a Service asks for comes first, then what its status says, then a free one of a pool: nothing that was given moves
//! unless the Service asks for another. Addresses of others in a status count for nothing (CVE-2020-8554).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::addresses;
use crate::context::Context;
use crate::objects::Objects;

/// Why a Service lacks an address that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No pool is for it.
    NoPool,
    /// The pools that are for it have no free one.
    PoolEmpty,
    /// Another Service has the one that it asks for.
    AddressTaken,
    /// The one that it asks for is in no pool.
    NotInPools,
    /// It is a Node's, a Pod's or a ClusterIP's.
    AddressReserved,
    /// It is of a family that the Service has not.
    WrongFamily,
}

impl Reason {
    /// The word for events and conditions.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoPool => "NoPool",
            Self::PoolEmpty => "PoolEmpty",
            Self::AddressTaken => "AddressTaken",
            Self::NotInPools => "AddressNotInPools",
            Self::AddressReserved => "AddressReserved",
            Self::WrongFamily => "AddressOfWrongFamily",
        }
    }
}

/// What a Service lacks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lack {
    /// Why.
    pub reason: Reason,
    /// For people: what is, and what was expected.
    pub message: String,
}

/// A port that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortError {
    /// `spec.ports[].port`.
    pub port: i32,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// A word as `status.loadBalancer.ingress[].ports[].error` takes it; `None` for one that can be served.
    pub error: Option<&'static str>,
}

/// What one Service of ours is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allotment {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses, of its first family in front.
    pub addresses: Vec<IpAddr>,
    /// Whether its endpoints see packets to their own addresses, not to these.
    pub proxied: bool,
    /// All its ports, if some cannot be served; else none.
    pub ports: Vec<PortError>,
    /// What it asks for and does not have, ordered.
    pub lacks: Vec<Lack>,
}

/// How much of a pool is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The pool's name.
    pub pool: String,
    /// Its addresses.
    pub size: u128,
    /// Those that Services have.
    pub given: u128,
    /// Those that nothing has that is known.
    pub free: u128,
}

/// What all are to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Every Service of type LoadBalancer that is ours and is not to be deleted, ordered by namespace and name.
    pub allotments: Vec<Allotment>,
    /// Pools in order of the context.
    pub usage: Vec<Usage>,
}

/// Decides. `before` is what each Service (`namespace/name`) had when it was looked at last, which settles who keeps an
/// address that two statuses have.
#[must_use]
pub fn allocate(objects: &Objects, context: &Context, before: &Arc<BTreeMap<String, Vec<IpAddr>>>) -> Allocation {
    addresses::allot(objects, context, before)
}
