//! What packets that may open flows will need, seen to before they are decided: most of what opening costs is waiting for
//! memory, and the waits of a burst can pass together.
//!
//! First the lines that the packet's own key leads to are asked for (owner directory, source, frontend), then the endpoint
//! is chosen where its hash alone says which, a SNAT port is drawn, and the line is asked for that the reply's key leads to.
//! A plan is a suggestion: nothing is taken, and whoever opens the flow looks at everything as if there were none.

use wire::{Addr, Port, Ports, Protocol};

use super::{BURST, Look, transport_of};
use crate::flow::{FlowHash, FlowKey};
use crate::id::BackendId;
use crate::model::Mode;
use crate::select::{Opening, by_hash_alone};
use crate::state::WorkerState;
use crate::tables::Tables;
use crate::time::Tick;
use crate::verdict::Frame;

/// The plans of a burst, in its order; has room for all from the start.
pub(crate) struct Plans {
    plans: Vec<Plan>,
    next: usize,
}

/// What may be chosen for a flow that may open.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    hash: FlowHash,
    opening: Opening,
    /// The endpoint that the flow's hash gives.
    pub backend: Option<BackendId>,
    /// A SNAT port that may be free towards it.
    pub snat: Option<(Addr, Port)>,
}

impl Plans {
    pub fn new() -> Self {
        Self { plans: Vec::with_capacity(BURST), next: 0 }
    }

    /// Forgets all of them.
    #[inline]
    pub fn forget(&mut self) {
        self.plans.clear();
        self.next = 0;
    }

    /// The plan for a key's hash. Asked for in the burst's order, so that none is looked at twice.
    pub fn take(&mut self, hash: FlowHash) -> Option<Plan> {
        let found = self.plans[self.next..].iter().position(|plan| plan.hash == hash)?;
        self.next += found + 1;
        Some(self.plans[self.next - 1])
    }
}

/// Plans for the frames for which no flow was found at first sight.
#[cold]
pub(super) fn plan(frames: &[Frame<'_>], looks: &[Look], now: Tick, tables: &Tables, state: &mut WorkerState) {
    let mut plans = core::mem::replace(&mut state.plans, Plans { plans: Vec::new(), next: 0 });
    for look in looks.iter().filter(|look| look.guess.is_none()) {
        plans.plans.extend(first_look(&frames[usize::from(look.at)], look, tables, state));
    }
    for plan in &mut plans.plans {
        second_look(plan, now, tables, state);
    }
    state.plans = plans;
}

fn first_look(frame: &Frame<'_>, look: &Look, tables: &Tables, state: &WorkerState) -> Option<Plan> {
    let (plain, hash) = (look.plain?, look.hash);
    if plain.kind.protocol() == Protocol::TCP && !plain.tcp_flags.opens() {
        // Another worker's most likely.
        if state.shared.workers() > 1 && !frame.handed {
            state.shared.directory.prefetch(hash.0);
        }
        return None;
    }
    let t = transport_of(frame, &plain)?;
    state.shared.directory.prefetch(hash.0);
    state.shared.sources.prefetch(&t.src);
    tables.frontends.prefetch(&t.dst, t.dport(), t.protocol);
    let opening = Opening {
        source: t.src,
        source_port: t.sport(),
        destination: t.dst,
        destination_port: t.dport(),
        protocol: t.protocol,
    };
    Some(Plan { hash, opening, backend: None, snat: None })
}

fn second_look(plan: &mut Plan, now: Tick, tables: &Tables, state: &mut WorkerState) {
    let opening = &plan.opening;
    let frontend = tables.frontends.get(&opening.destination, opening.destination_port, opening.protocol);
    let Some(service) = frontend.and_then(|frontend| tables.service(frontend.service)) else { return };
    plan.backend = by_hash_alone(service, &tables.selection, opening);
    let Some(row) = plan.backend.and_then(|id| tables.backend(id)) else { return };
    let client = (opening.source, opening.source_port);
    plan.snat = match service.mode {
        Mode::Nat => {
            let supply = tables.snat.supply(row.address.is_v4(), tables.is_by_kernel(&row.hop));
            state.snat.suggest(supply, &state.flows, (row.address, row.port), opening.protocol, now)
        }
        _ => None,
    };
    let (dst, dport) = plan.snat.unwrap_or(client);
    let direct = (opening.destination, opening.destination_port);
    let (src, sport) = if service.mode.is_direct() { direct } else { (row.address, row.port) };
    let reply = FlowKey { src, dst, ports: Ports::new(sport, dport), protocol: opening.protocol };
    let reply = state.flows.hash(&reply);
    state.flows.prefetch_bucket(reply);
    if opening.protocol == Protocol::TCP {
        state.time_waits.prefetch(reply);
    }
}
