//! The export form of a flow: what listings show, and later what boxes tell each other.

use wire::{Addr, MacAddr, Port, Protocol};

use crate::flow::entry::FlowEntry;
use crate::flow::state::FlowState;
use crate::id::{BackendId, PortId, ServiceId, WorkerId};
use crate::model::Mode;
use crate::time::Tick;

/// The version of [`FlowRecord`]; it grows when a field's meaning changes.
pub const FLOW_RECORD_VERSION: u16 = 1;

/// A flow as others see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowRecord {
    /// [`FLOW_RECORD_VERSION`].
    pub version: u16,
    /// The worker that owns it.
    pub worker: WorkerId,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// How far it has come.
    pub state: FlowState,
    /// How packets get to the endpoint.
    pub mode: Mode,
    /// The client.
    pub client: (Addr, Port),
    /// The frontend.
    pub vip: (Addr, Port),
    /// What the endpoint sees as the client.
    pub snat: (Addr, Port),
    /// The endpoint.
    pub backend: (Addr, Port),
    /// The Service port.
    pub service: ServiceId,
    /// The endpoint's id.
    pub backend_id: BackendId,
    /// The link-layer hop that the client's packets come from.
    pub client_mac: MacAddr,
    /// The NIC that they come in by.
    pub client_nic: PortId,
    /// When it was opened.
    pub opened_at: Tick,
    /// When the last packet came.
    pub last_seen: Tick,
    /// The Service's own `udp-timeout`, in ticks.
    pub udp_timeout: Option<u32>,
}

impl FlowRecord {
    pub(crate) fn of(entry: &FlowEntry, worker: WorkerId) -> Self {
        Self {
            version: FLOW_RECORD_VERSION,
            worker,
            protocol: entry.protocol(),
            state: entry.state(),
            mode: entry.mode(),
            client: (entry.client(), entry.client_port()),
            vip: (entry.vip(), entry.vip_port()),
            snat: (entry.snat(), entry.snat_port()),
            backend: (entry.backend(), entry.backend_port()),
            service: entry.service(),
            backend_id: entry.backend_id(),
            client_mac: entry.client_mac(),
            client_nic: entry.client_nic(),
            opened_at: entry.opened_at(),
            last_seen: entry.last_seen(),
            udp_timeout: entry.udp_timeout(),
        }
    }
}
