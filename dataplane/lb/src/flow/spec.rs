//! What a flow is opened with: its ends, its endpoint and how packets get there.

use wire::nat::Rewrite;
use wire::{Addr, Delta, MacAddr, Port, Ports, Protocol};

use crate::flow::key::FlowKey;
use crate::flow::state::Direction;
use crate::id::{BackendId, PortId, ServiceId};
use crate::model::Mode;

/// What a flow is opened with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowSpec {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The client's address and port.
    pub client: (Addr, Port),
    /// The frontend's.
    pub vip: (Addr, Port),
    /// What the endpoint sees as the client's; the client's own but in [`Mode::Nat`].
    pub snat: (Addr, Port),
    /// What the endpoint answers from: its own; the frontend's where it answers past us ([`Mode::is_direct`]).
    pub backend: (Addr, Port),
    /// Whether a packet without the flow would go to the same endpoint, so that little is lost with it.
    pub dispensable: bool,
    /// How packets get to the endpoint.
    pub mode: Mode,
    /// The Service port.
    pub service: ServiceId,
    /// The endpoint.
    pub backend_id: BackendId,
    /// The link-layer hop that the client's packets come from.
    pub client_mac: MacAddr,
    /// The NIC that they come in by.
    pub client_nic: PortId,
    /// The Service's own `udp-timeout`, in ticks; kept in units of 2^10 ticks (1.07 s), rounded up, at most 19 h.
    pub udp_timeout: Option<u32>,
}

impl FlowSpec {
    /// The key of a direction's packets.
    #[must_use]
    #[inline]
    pub fn key(&self, direction: Direction) -> FlowKey {
        let protocol = self.protocol;
        match direction {
            Direction::Forward => {
                let ((src, sport), (dst, dport)) = (self.client, self.vip);
                FlowKey { src, dst, ports: Ports::new(sport, dport), protocol }
            }
            Direction::Reply => {
                let ((src, sport), (dst, dport)) = (self.backend, self.snat);
                FlowKey { src, dst, ports: Ports::new(sport, dport), protocol }
            }
        }
    }

    /// By what the sums of the client's packets change, of addresses and of all that the transport's covers; of replies it
    /// is undone.
    #[inline]
    pub(super) fn deltas(&self) -> [Delta; 2] {
        if self.mode.is_direct() {
            return [Delta::NONE; 2];
        }
        let old = (self.client.0, self.vip.0, self.client.1, self.vip.1);
        let rewrite = Rewrite::new(old, (self.snat.0, self.backend.0, self.snat.1, self.backend.1));
        [rewrite.ip_delta, rewrite.l4_delta]
    }
}
