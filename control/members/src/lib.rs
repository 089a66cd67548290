//! Which nodes of a cluster live, and which of them owns an address.
//!
//! Nodes that may announce the same addresses tell each other ten times a second that they live and what they own
//! ([`datagram`], [`session`]). [`Members`] makes of that, and of what the API server says of nodes and Services, which
//! addresses this node owns. What is owned stays where it is; rendezvous hashing ([`rank`]) decides vacancies, and which
//! of two owners stays, who may come of a partition.
//!
//! No I/O and no clock: the time comes in, as what has passed on this node's own clock since any moment of it. Nothing
//! compares the clocks of two nodes.
#![forbid(unsafe_code)]

pub mod datagram;
mod group;
pub mod rank;
pub mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use group::{Members, Settled, Why};

/// A Node's name.
pub type Name = Arc<str>;

/// A link-layer address.
pub type Mac = [u8; 6];

/// What has passed of this node's monotonic clock since some moment.
pub type Time = Duration;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From one heartbeat to the next.
    pub heartbeat: Duration,
    /// A node that was not heard for so long is dead.
    pub dead: Duration,
    /// The same of one that said that its successor is about to go on.
    pub handing_over: Duration,
    /// How long a node that starts listens before it claims what seems to be nobody's; less if it heard everybody.
    pub join: Duration,
    /// How long a vacancy waits for the node that ranks first, then for the second, and so on.
    pub step: Duration,
    /// How long an address is left to a machine that is no peer and answers for it.
    pub hold: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            heartbeat: ms(100),
            dead: ms(1200),
            handing_over: ms(5000),
            join: ms(1000),
            step: ms(600),
            hold: ms(3000),
        }
    }
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Standing {
    /// It starts, and listens first; it keeps what its predecessor owned.
    Joining,
    /// It takes what falls to it.
    Member,
    /// It takes no more, and keeps what nobody else can have.
    Draining,
    /// It is excluded: it owns nothing.
    Aside,
    /// Its successor on the same node is about to go on with what it owns.
    HandingOver,
    /// It ends: it owns nothing, and is no member any more.
    Leaving,
}

impl Standing {
    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Member => "member",
            Self::Draining => "draining",
            Self::Aside => "excluded",
            Self::HandingOver => "handing-over",
            Self::Leaving => "leaving",
        }
    }
}

/// What a node tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// What it says of itself.
    pub standing: Standing,
    /// What it owns.
    pub owned: Arc<BTreeSet<IpAddr>>,
    /// The link-layer addresses that it announces by.
    pub macs: Vec<Mac>,
}

/// What the API server says of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Its Nodes, and whether each is excluded from announcing.
    pub nodes: BTreeMap<Name, bool>,
    /// The addresses that somebody is to own, and who may.
    pub addresses: BTreeMap<IpAddr, Candidates>,
}

/// Who may own an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidates {
    /// Every node that is not excluded.
    All,
    /// Of those, these. With none, the owner keeps it.
    These(Arc<BTreeSet<Name>>),
}

impl Candidates {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::These(names) => names.contains(name),
        }
    }

    fn is_nobody(&self) -> bool {
        matches!(self, Self::These(names) if names.is_empty())
    }
}
