//! Whether a flow may open from a SNAT port to an endpoint: by who has the key of its replies, or had it last.

use wire::{Addr, Port, Ports, Protocol};

use crate::flow::{Direction, FlowHash, FlowKey, FlowRef, FlowState, FlowTable};

/// What stands against a new flow from a port to an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// Nothing.
    Free,
    /// A flow that is closed, and whose TIME_WAIT, if there is one, the opening packet would pass.
    Lingering(FlowRef),
    /// The endpoint would take the opening packet for an old connection's, whose flow may still be there, closed.
    Held(Option<FlowRef>),
    /// A flow.
    Taken,
}

/// The key of what an endpoint answers to a SNAT port.
#[inline]
pub(crate) fn replies(backend: (Addr, Port), snat: (Addr, Port), protocol: Protocol) -> FlowKey {
    FlowKey { src: backend.0, dst: snat.0, ports: Ports::new(backend.1, snat.1), protocol }
}

/// What stands against a flow whose replies would have this key, which has this hash.
#[inline]
pub(crate) fn standing(
    flows: &FlowTable,
    key: &FlowKey,
    hash: FlowHash,
    holds: &impl Fn(FlowHash) -> bool,
) -> Standing {
    match flows.lookup(hash, key) {
        None if holds(hash) => Standing::Held(None),
        None => Standing::Free,
        Some((flow, Direction::Reply)) if matches!(flows.entry(flow).state(), FlowState::Closed | FlowState::Ended) => {
            if holds(hash) {
                Standing::Held(Some(flow))
            } else {
                Standing::Lingering(flow)
            }
        }
        Some(_) => Standing::Taken,
    }
}
